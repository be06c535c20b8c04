//! Drawing shared by the plots: axes, marks with error bars, lines with bands, legends. Positions
//! and lengths are in pixels of the page unless stated otherwise.

use super::figure::{Area, FAINT, GRID, INK, PAPER, SERIES, UNIT, WIDTH, shorten};
use anyhow::Result;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::element::{Circle, PathElement, Polygon, Text};
use plotters::prelude::{BindKeyPoints, ChartBuilder, Color, IntoFont, IntoLogRange, RGBColor, ShapeStyle};
use plotters::style::TextStyle;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// Height of a line of a legend.
const LINE: i32 = 19;
/// Space above the axes, for the title.
pub const TOP: i32 = 30;
/// Space below the axes, for numbers and the axis title.
const FOOT: i32 = 44;
/// Space to the right of axes with nothing there.
pub const RIGHT: i32 = 26;
/// Space to the left of axes with numbers there.
pub const LEFT: i32 = 48;
/// Font size of numbers and labels (SMALL), and of titles (LARGE).
const SMALL: i32 = 13;
const LARGE: i32 = 15;
/// Average width of a character of a label in a wide font, as a multiple of the font size.
const CHARACTER: f64 = 0.62;

/// Range of values that an axis shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scale {
    /// Lowest value.
    pub low: f64,
    /// Highest value.
    pub high: f64,
    /// Whether the axis is logarithmic.
    pub log: bool,
}

impl Scale {
    /// Returns a linear scale for all values with a margin around them, and a range of at least
    /// `least`.
    pub fn around(values: impl IntoIterator<Item = f64>, least: f64) -> Scale {
        let (low, high) = ends(values);
        let air = ((high - low) * 0.08).max((least - (high - low)) / 2.).max(rounding(low, high));
        Scale { low: low - air, high: high + air, log: false }
    }

    /// Returns a scale for sizes, which are not negative, with a margin around them: logarithmic if
    /// they are positive and span more than a factor of `factor`.
    pub fn of_sizes(values: impl IntoIterator<Item = f64>, factor: f64) -> Scale {
        let (low, high) = ends(values);
        // Without a limit, a size of almost 0 would stretch the axis down to that size.
        let low = if low > 0. { low.max(high * 1e-12) } else { low };
        if low > 0. && high > factor * low {
            let air = (high / low).powf(0.06);
            return Scale { low: low / air, high: high * air, log: true };
        }
        let air = ((high - low) * 0.08).max(high * 0.02).max(rounding(low, high));
        Scale { low: low - air, high: high + air, log: false }
    }
}

impl Scale {
    /// Returns the positions of numbers on a logarithmic axis: 1, 2 and 5 times the powers of ten,
    /// or the powers of ten alone if these are more than 7 numbers.
    fn round_numbers(&self) -> Vec<f64> {
        let powers = (self.low.log10().floor() as i32)..=(self.high.log10().ceil() as i32);
        let of = |factors: &[f64]| -> Vec<f64> {
            let all = powers.clone().flat_map(|power| factors.iter().map(move |factor| factor * 10f64.powi(power)));
            all.filter(|value| (self.low..=self.high).contains(value)).collect()
        };
        let fine = of(&[1., 2., 5.]);
        if fine.len() <= 7 { fine } else { of(&[1.]) }
    }

    /// Returns the position of a value along the axis, from 0 to 1.
    pub fn fraction(&self, value: f64) -> f64 {
        if self.log {
            (value / self.low).ln() / (self.high / self.low).ln()
        } else {
            (value - self.low) / (self.high - self.low)
        }
    }
}

/// Returns a range that does not vanish by rounding when it is added to numbers of this size.
fn rounding(low: f64, high: f64) -> f64 {
    1e-6 * low.abs().max(high.abs()).max(1e-6)
}

/// Returns the minimum and maximum, or 0 and 1 if there are no values.
fn ends(values: impl IntoIterator<Item = f64>) -> (f64, f64) {
    values
        .into_iter()
        .fold(None, |ends: Option<(f64, f64)>, value| {
            let (low, high) = ends.unwrap_or((value, value));
            Some((low.min(value), high.max(value)))
        })
        .unwrap_or((0., 1.))
}

/// Layout and formatting of axes.
pub struct Axes<'a> {
    /// Horizontal scale.
    pub x: Scale,
    /// Vertical scale, upwards.
    pub y: Scale,
    /// Title of the x axis.
    pub x_title: &'a str,
    /// Formats the numbers of the x axis.
    pub x_number: &'a dyn Fn(f64) -> String,
    /// Whether the y axis has numbers.
    pub y_numbers: bool,
    /// Space at the left.
    pub left: i32,
    /// Space at the right.
    pub right: i32,
    /// Height between the title and the numbers of the x axis.
    pub height: i32,
    /// Desired count of numbers at the x axis.
    pub x_labels: usize,
}

/// Returns the space that labels at the left take: at least 60 pixels, at most `most`.
pub fn left_of<'a>(labels: impl IntoIterator<Item = &'a String>, most: i32) -> i32 {
    let longest = labels.into_iter().map(|label| label.chars().count()).max().unwrap_or(0);
    ((longest as f64 * f64::from(SMALL) * CHARACTER).ceil() as i32 + 16).clamp(60, most)
}

/// Returns the height of a figure with axes of height `axes` and a legend of `legend` lines.
pub fn height(axes: i32, legend: i32) -> i32 {
    TOP + axes + FOOT + legend * LINE + if legend > 0 { 6 } else { 0 }
}

/// Mapping from values (x, y) to units of a drawing.
pub type Plane = Box<dyn Fn(f64, f64) -> (i32, i32)>;

/// Draws axes and grid, and returns the mapping from values to units.
pub fn axes(area: &Area, title: &str, axes: &Axes) -> Result<Plane> {
    text(area, title, (8, 5), LARGE, INK, HPos::Left, VPos::Top)?;
    let (x, y) = (axes.x.low..axes.x.high, axes.y.low..axes.y.high);
    let x_log = x.clone().log_scale().with_key_points(axes.x.round_numbers());
    let y_log = y.clone().log_scale().with_key_points(axes.y.round_numbers());
    match (axes.x.log, axes.y.log) {
        (false, false) => plane(area, axes, x, y),
        (true, false) => plane(area, axes, x_log, y),
        (false, true) => plane(area, axes, x, y_log),
        (true, true) => plane(area, axes, x_log, y_log),
    }
}

fn plane<X, Y>(area: &Area, axes: &Axes, x: X, y: Y) -> Result<Plane>
where
    X: AsRangedCoord<Value = f64>,
    X::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: Ranged<ValueType = f64> + ValueFormatter<f64>,
{
    let mut chart = ChartBuilder::on(area)
        .margin_top(TOP * UNIT)
        .margin_right(axes.right * UNIT)
        .margin_bottom((area_height(area) - TOP - axes.height - FOOT) * UNIT)
        .x_label_area_size(FOOT * UNIT)
        .y_label_area_size(axes.left * UNIT)
        .build_cartesian_2d(x, y)?;
    let x_number = |value: &f64| (axes.x_number)(*value);
    let y_number = |value: &f64| plain_number(*value);
    let mut mesh = chart.configure_mesh();
    mesh.light_line_style(GRID.mix(0.))
        .bold_line_style(stroke(GRID, 1.))
        .axis_style(stroke(GRID, 1.))
        .label_style(font(SMALL, FAINT))
        .x_labels(axes.x_labels)
        .y_labels(6)
        .x_label_formatter(&x_number)
        .y_label_formatter(&y_number);
    if !axes.y_numbers {
        mesh.disable_y_mesh().disable_y_axis();
    }
    mesh.draw()?;
    let middle = (axes.left + WIDTH - axes.right) / 2;
    text(area, axes.x_title, (middle, TOP + axes.height + FOOT - 6), SMALL, FAINT, HPos::Center, VPos::Bottom)?;
    // This mapping equals that of plotters' coordinates, which can't outlive their chart.
    let (across, down) = chart.plotting_area().get_pixel_range();
    let (x, y) = (axes.x, axes.y);
    Ok(Box::new(move |at_x, at_y| {
        let (width, height) = (f64::from(across.end - across.start), f64::from(down.end - down.start));
        // A value far beyond the chart stays beyond it, even if its position does not fit a pixel
        // number.
        let pixels = |place: f64| place.round().clamp(-1e5, 1e5) as i32;
        let (right, below) = (x.fraction(at_x) * width, (1. - y.fraction(at_y)) * height);
        (across.start + pixels(right), down.start + pixels(below))
    }))
}

fn area_height(area: &Area) -> i32 {
    area.dim_in_pixel().1 as i32 / UNIT
}

/// Formats a number without unnecessary digits: `70`, `71.5`.
pub fn plain_number(value: f64) -> String {
    let text = format!("{value:.3}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.replace('-', "−") }
}

/// Formats a size with at most three decimals and a unit: 1234567 as `1.235 M`.
pub fn size_number(value: f64) -> String {
    let (value, unit) = match value.abs() {
        magnitude if magnitude >= 1e9 => (value / 1e9, " G"),
        magnitude if magnitude >= 1e6 => (value / 1e6, " M"),
        magnitude if magnitude >= 1e3 => (value / 1e3, " k"),
        _ => (value, ""),
    };
    format!("{}{unit}", plain_number(value))
}

/// Returns the style of a line, `width` pixels wide.
pub fn stroke(color: RGBColor, width: f64) -> ShapeStyle {
    color.stroke_width((width * f64::from(UNIT)).round() as u32)
}

fn font(size: i32, color: RGBColor) -> TextStyle<'static> {
    // plotters divides a font size by 1.24 when it writes the SVG.
    ("sans-serif", f64::from(size * UNIT) * 1.24).into_font().color(&color)
}

/// Draws text on one line.
pub fn text(
    area: &Area,
    text: &str,
    (x, y): (i32, i32),
    size: i32,
    color: RGBColor,
    across: HPos,
    down: VPos,
) -> Result<()> {
    let style = font(size, color).pos(Pos::new(across, down));
    Ok(area.draw(&Text::new(text.replace(char::is_control, " "), (x * UNIT, y * UNIT), style))?)
}

/// Returns the number of label characters that fit into a width.
fn room(width: i32) -> usize {
    ((f64::from(width) / (f64::from(SMALL) * CHARACTER)) as usize).max(4)
}

/// Returns whether every label fits into a width.
pub fn fit(labels: &[String], width: i32) -> bool {
    labels.iter().all(|label| label.chars().count() <= room(width))
}

/// Shortens labels to a width. If two different labels become equal, all labels are numbered.
pub fn distinct(labels: &[String], width: i32) -> Vec<String> {
    let most = room(width);
    let short: Vec<String> = labels.iter().map(|label| shorten(label, most)).collect();
    let is_double = |at: usize| (0..short.len()).any(|other| short[other] == short[at] && labels[other] != labels[at]);
    if !(0..short.len()).any(is_double) {
        return short;
    }
    let numbered = labels.iter().enumerate().map(|(at, label)| {
        let number = format!("{}. ", at + 1);
        number.clone() + &shorten(label, most.saturating_sub(number.len()).max(4))
    });
    numbered.collect()
}

/// Draws a label, shortened to a width and vertically centred at the given position.
pub fn label(area: &Area, words: &str, place: (i32, i32), width: i32, color: RGBColor, across: HPos) -> Result<()> {
    text(area, &shorten(words, room(width)), place, SMALL, color, across, VPos::Center)
}

/// Labels of rows: to the left of each row if all labels fit there, otherwise above the rows.
pub struct RowLabels {
    words: Vec<String>,
    /// Space at the left of the axes.
    pub left: i32,
    /// Height that a label takes above its row.
    pub above: i32,
}

impl RowLabels {
    /// Lays out the labels, with at most `most` pixels at the left.
    pub fn new(labels: &[String], most: i32) -> RowLabels {
        if fit(labels, most - 14) {
            return RowLabels { words: labels.to_vec(), left: left_of(labels, most), above: 0 };
        }
        RowLabels { words: distinct(labels, WIDTH - RIGHT - 14), left: 20, above: LINE }
    }

    /// Draws the label of a row with its top at `top` and the given height.
    pub fn draw(&self, area: &Area, row: usize, (top, height): (i32, i32), color: RGBColor) -> Result<()> {
        let words = &self.words[row];
        if self.above == 0 {
            return label(area, words, (self.left - 8, top + height / 2), self.left - 14, color, HPos::Right);
        }
        label(area, words, (14, top + self.above / 2 + 1), WIDTH - RIGHT - 14, color, HPos::Left)
    }
}

/// Returns the colour of a series.
pub fn color(series: usize) -> RGBColor {
    SERIES[series % SERIES.len()]
}

/// Draws the mark of a series at a position in units: a circle, a square, a triangle or a diamond.
pub fn mark(area: &Area, (x, y): (i32, i32), series: usize) -> Result<()> {
    let r = 9 * UNIT / 2;
    let fill = color(series).filled();
    let shape = match series % 4 {
        0 => return Ok(area.draw(&Circle::new((x, y), r, fill))?),
        1 => vec![(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
        2 => vec![(x, y - r - 2), (x + r + 2, y + r), (x - r - 2, y + r)],
        _ => vec![(x, y - r - 4), (x + r + 4, y), (x, y + r + 4), (x - r - 4, y)],
    };
    Ok(area.draw(&Polygon::new(shape, fill))?)
}

/// Draws a ring at a position in units, which marks the compact form.
pub fn ring(area: &Area, (x, y): (i32, i32), color: RGBColor) -> Result<()> {
    area.draw(&Circle::new((x, y), 6 * UNIT, stroke(color, 2.)))?;
    Ok(())
}

/// Draws a cross at a position in units, which marks a paper's value.
pub fn cross(area: &Area, (x, y): (i32, i32), color: RGBColor) -> Result<()> {
    let r = 5 * UNIT;
    for line in [[(x - r, y - r), (x + r, y + r)], [(x - r, y + r), (x + r, y - r)]] {
        // A rim in the background colour keeps the cross visible on a mark of its own colour.
        area.draw(&PathElement::new(line, stroke(PAPER, 4.)))?;
        area.draw(&PathElement::new(line, stroke(color, 2.)))?;
    }
    Ok(())
}

/// Draws a line between two positions in units.
pub fn line(area: &Area, from: (i32, i32), to: (i32, i32), style: ShapeStyle) -> Result<()> {
    Ok(area.draw(&PathElement::new([from, to], style))?)
}

/// Draws an error bar between two positions in units, with caps.
pub fn bar(area: &Area, from: (i32, i32), to: (i32, i32), color: RGBColor) -> Result<()> {
    let cap = 3 * UNIT;
    let (dx, dy) = if from.0 == to.0 { (cap, 0) } else { (0, cap) };
    line(area, from, to, stroke(color, 1.5))?;
    for (x, y) in [from, to] {
        line(area, (x - dx, y - dy), (x + dx, y + dy), stroke(color, 1.5))?;
    }
    Ok(())
}

/// Symbol before an entry of a legend.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sign {
    /// Mark of a series.
    Mark(usize),
    /// Line of a series.
    Line(usize),
    /// Ring of the compact form.
    Ring,
    /// Cross of a paper's value.
    Cross,
    /// Dashed line of the given colour.
    Dashes(RGBColor),
}

/// Draws a legend below the axes: one entry per line, or two if all entries are short.
pub fn legend(area: &Area, entries: &[(Sign, String)], axes: i32) -> Result<()> {
    let columns = columns(entries);
    let width = (WIDTH - 16) / columns;
    let words: Vec<String> = entries.iter().map(|(_, words)| words.clone()).collect();
    for (at, ((sign, _), words)) in entries.iter().zip(distinct(&words, width - 34)).enumerate() {
        let at = at as i32;
        let (x, y) = (12 + at % columns * width, height(axes, 0) + 6 + at / columns * LINE + LINE / 2);
        let middle = ((x + 9) * UNIT, y * UNIT);
        let ends = [(x * UNIT, y * UNIT), ((x + 18) * UNIT, y * UNIT)];
        match sign {
            Sign::Mark(series) => mark(area, middle, *series)?,
            Sign::Line(series) => line(area, ends[0], ends[1], stroke(color(*series), 2.5))?,
            Sign::Dashes(color) => dashes(area, ends[0], ends[1], *color)?,
            Sign::Ring => ring(area, middle, INK)?,
            Sign::Cross => cross(area, middle, INK)?,
        }
        label(area, &words, (x + 26, y), width - 34, INK, HPos::Left)?;
    }
    Ok(())
}

/// Returns the number of lines of a legend.
pub fn legend_lines(entries: &[(Sign, String)]) -> i32 {
    (entries.len() as i32 + columns(entries) - 1) / columns(entries)
}

fn columns(entries: &[(Sign, String)]) -> i32 {
    let longest = entries.iter().map(|(_, words)| words.chars().count()).max().unwrap_or(0);
    if longest <= 24 { 2 } else { 1 }
}

/// Draws a dashed line between two positions in units.
pub fn dashes(area: &Area, from: (i32, i32), to: (i32, i32), color: RGBColor) -> Result<()> {
    let (dx, dy) = (f64::from(to.0 - from.0), f64::from(to.1 - from.1));
    let step = f64::from(5 * UNIT) / dx.hypot(dy).max(1.);
    let at = |t: f64| (from.0 + (dx * t.min(1.)) as i32, from.1 + (dy * t.min(1.)) as i32);
    let mut start = 0.;
    while start < 1. {
        line(area, at(start), at(start + step), stroke(color, 1.5))?;
        start += 2. * step;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_at_an_axis_are_short() {
        assert_eq!([70., 71.5, -0.25, -0.0001].map(plain_number), ["70", "71.5", "−0.25", "0"]);
        assert_eq!([5386., 1_031_808., 2.5e9, 12.].map(size_number), ["5.386 k", "1.032 M", "2.5 G", "12"]);
    }

    #[test]
    fn a_scale_has_air_around_its_values() {
        assert_eq!(Scale::around([70., 80.], 1.), Scale { low: 69.2, high: 80.8, log: false });
        assert_eq!(Scale::around([70.], 2.), Scale { low: 69., high: 71., log: false });
        assert_eq!(Scale::around([], 1.), Scale { low: -0.08, high: 1.08, log: false });
        let log = |low: f64, high: f64| Scale::of_sizes([low, high], 10.).log;
        assert_eq!([log(10., 1000.), log(10., 90.), log(0., 90.)], [true, false, false]);
        let of = Scale::of_sizes([1., 100.], 10.);
        assert!((of.fraction(10.) - 0.5).abs() < 1e-12 && of.low < 1. && of.high > 100., "equal factors, equal steps");
        assert_eq!(Scale::around([70., 80.], 1.).fraction(75.), 0.5);
    }

    #[test]
    fn numbers_on_a_logarithmic_axis_are_round() {
        let numbers = |low, high| Scale { low, high, log: true }.round_numbers();
        assert_eq!(numbers(0.9e6, 4.3e6), [1e6, 2e6]);
        assert_eq!(numbers(3., 70.), [5., 10., 20., 50.]);
        assert_eq!(numbers(0.9, 2e5), [1., 10., 100., 1e3, 1e4, 1e5]);
    }

    #[test]
    fn no_two_labels_read_the_same() {
        let labels = ["smallnet width=0.25 bypass=true", "smallnet width=0.35 bypass=true", "plain"].map(String::from);
        assert!(!fit(&labels, 150) && fit(&labels, 300));
        assert_eq!(distinct(&labels, 300), labels);
        let short = distinct(&labels, 150);
        assert_eq!(short, ["1. smal…ypass=true", "2. smal…ypass=true", "3. plain"].map(|label| label.to_string()));
        let equal = ["a".to_string(), "a".to_string()];
        assert_eq!(distinct(&equal, 150), equal, "the same thing twice");
    }

    #[test]
    fn a_legend_is_narrow_where_its_entries_are() {
        let entries = |words: &str| vec![(Sign::Ring, words.to_string()); 5];
        assert_eq!((legend_lines(&entries("a")), legend_lines(&entries(&"a".repeat(40)))), (3, 5));
        assert_eq!(legend_lines(&[]), 0);
    }
}
