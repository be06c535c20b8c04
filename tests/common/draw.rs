//! Random options and geometries. Options are drawn from the values that the catalogue allows, so
//! that a new option is drawn too.

use foldconv::algebra::{Geometry, PaddingMode};
use foldconv::options::{Choice, Entry};
use proptest::prelude::*;
use proptest::sample::select;
use std::collections::BTreeSet;

/// Options of an operator as in a config file: key and value of each option that is given.
pub type Given = Vec<(String, String)>;

/// Draws any options of an operator. Each option is left out half of the time.
pub fn options(entry: &Entry) -> BoxedStrategy<Given> {
    let one = |option: &Choice| {
        let key = option.key.clone();
        proptest::option::of(value(&option.values)).prop_map(move |value| Some((key.clone(), value?)))
    };
    let all: Vec<_> = entry.options.iter().map(one).collect();
    all.prop_map(|options| options.into_iter().flatten().collect()).boxed()
}

/// Returns the YAML of an operator.
pub fn yaml(name: &str, given: &Given) -> String {
    let options: String = given.iter().map(|(key, value)| format!(", {key}: {value}")).collect();
    format!("{{name: {name}{options}}}")
}

/// Draws a value of the type that `values` describes.
fn value(values: &str) -> BoxedStrategy<String> {
    let kinds: Vec<BoxedStrategy<String>> = values.split(" | ").map(kind).collect();
    proptest::strategy::Union::new(kinds).boxed()
}

fn kind(name: &str) -> BoxedStrategy<String> {
    let number = || select(&[0.0625, 0.25, 0.5, 1., 2., 3.][..]);
    match name {
        "integer" => (1..8i64).prop_map(|value| value.to_string()).boxed(),
        "number" => number().prop_map(|value| value.to_string()).boxed(),
        "{from, to, epochs}" => (number(), number(), 1..9u64)
            .prop_map(|(from, to, epochs)| format!("{{from: {from}, to: {to}, epochs: {epochs}}}"))
            .boxed(),
        "6 of number" => proptest::collection::vec(number(), 6).prop_map(|values| format!("{values:?}")).boxed(),
        name => {
            assert!(name.chars().all(|c| c.is_alphanumeric() || c == '_'), "`{name}`: say here how it is drawn");
            Just(name.to_string()).boxed()
        }
    }
}

/// Returns the labels of everything that must be drawn for an operator: every option, and each name
/// that is a value of an option.
pub fn wanted(entry: &Entry) -> BTreeSet<String> {
    let of = |option: &Choice| {
        let names = option.values.split(" | ").filter(|name| is_name(name));
        let named: Vec<String> = names.map(|name| format!("{}: {name}", option.key)).collect();
        if named.is_empty() { vec![option.key.clone()] } else { named }
    };
    entry.options.iter().flat_map(of).collect()
}

/// Returns the labels of the drawn options, in the same words as [`wanted`].
pub fn drawn(given: &Given) -> impl Iterator<Item = String> + '_ {
    given.iter().flat_map(|(key, value)| [key.clone(), format!("{key}: {value}")])
}

fn is_name(value: &str) -> bool {
    value != "integer" && value != "number" && value.chars().all(|c| c.is_alphanumeric() || c == '_')
}

/// Draws any convolution, and an image size (H, W) that its window fits into. Half of the
/// convolutions are those of networks: odd square kernels with the padding that keeps the size of
/// the map.
pub fn geometry() -> impl Strategy<Value = (Geometry, [i64; 2])> {
    let channels = (1..4i64, 1..5i64, 1..5i64, any::<bool>()).prop_map(|(groups, a, b, depthwise)| match depthwise {
        true => (a * b, a * b, a * b),
        false => (groups * a, groups * b, groups),
    });
    let pair = |range: std::ops::Range<i64>| [range.clone(), range];
    let modes = [PaddingMode::Reflect, PaddingMode::Replicate, PaddingMode::Circular];
    let mode = prop_oneof![6 => Just(PaddingMode::Zeros), 1 => select(modes.to_vec())];
    let windows = (pair(1..6), pair(0..4), pair(1..3), pair(1..3));
    (channels, windows, 0..4i64, any::<bool>(), mode, pair(0..5)).prop_map(
        |((inputs, outputs, groups), (kernel, padding, stride, dilation), half, usual, padding_mode, room)| {
            let (kernel, padding) = match usual {
                true => ([2 * half + 1; 2], dilation.map(|dilation| dilation * half)),
                false => (kernel, padding),
            };
            let [in_channels, out_channels] = [inputs, outputs];
            let geometry =
                Geometry { in_channels, out_channels, kernel, stride, padding, dilation, groups, padding_mode };
            // Padding other than zeros is taken from the image, so it must be smaller than the
            // image.
            let least = |axis: usize| (dilation[axis] * (kernel[axis] - 1) + 1).max(padding[axis] + 1);
            (geometry, [least(0) + room[0], least(1) + room[1]])
        },
    )
}
