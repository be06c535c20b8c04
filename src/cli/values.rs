//! Parsers of flag values, with errors that say which values are valid.

use crate::net::Form;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use std::ops::RangeInclusive;

/// Returns a parser of whole numbers in `range`. Every number of the range must fit into `T`.
pub fn whole<T: TryFrom<u64>>(range: RangeInclusive<u64>) -> impl Fn(&str) -> Result<T, String> + Clone {
    move |text| {
        let number =
            text.parse().ok().filter(|number| range.contains(number)).and_then(|number| T::try_from(number).ok());
        number.ok_or_else(|| format!("give a whole number from {} to {}", range.start(), range.end()))
    }
}

/// Parses a number.
pub fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "give a number".into())
}

/// Returns a parser of numbers in `range`.
pub fn between(range: RangeInclusive<f64>) -> impl Fn(&str) -> Result<f64, String> + Clone {
    move |text| {
        let number = text.parse().ok().filter(|number| range.contains(number));
        number.ok_or_else(|| format!("give a number from {} to {}", range.start(), range.end()))
    }
}

/// Returns a parser of the forms `expanded` and `compact`.
pub fn form() -> impl TypedValueParser<Value = Form> {
    let forms = [Form::Expanded, Form::Compact];
    PossibleValuesParser::new(forms.map(Form::name))
        .map(move |name| forms.into_iter().find(|form| form.name() == name).unwrap_or(Form::Expanded))
}

/// A shape such as 1x3x224x224.
#[derive(Clone, Debug)]
pub struct Shape(pub Vec<i64>);

impl Shape {
    /// Returns the sizes of some shapes.
    pub fn sizes(shapes: &[Shape]) -> Vec<Vec<i64>> {
        shapes.iter().map(|shape| shape.0.clone()).collect()
    }
}

impl std::str::FromStr for Shape {
    type Err = String;

    fn from_str(text: &str) -> Result<Shape, String> {
        let size = |n: &str| n.parse().ok().filter(|n| (1..=1 << 20).contains(n));
        let sizes: Option<Vec<i64>> = text.split('x').map(size).collect();
        sizes.map(Shape).ok_or_else(|| "give numbers such as 1x3x224x224".into())
    }
}
