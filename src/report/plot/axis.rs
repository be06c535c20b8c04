//! Figures of top-1 along one axis of the sweep: one row per value, or a line if the values are
//! numbers.

use super::draw::{self, Axes, LEFT, Plane, RIGHT, RowLabels, Scale, Sign};
use super::figure::{Area, FAINT, Figure, INK, UNIT};
use super::{MOST_SERIES, file_name, names, titled};
use crate::report::comparison::groups;
use crate::report::statistics::Statistics;
use crate::report::summary::{PointSummary, Summary};
use anyhow::Result;
use plotters::style::RGBColor;
use std::collections::BTreeSet;

/// Half the length, in units, of the line of a baseline that belongs to a single value of a numeric
/// axis.
const BESIDE: i32 = 14 * UNIT;

/// Contents of a figure.
struct Shown<'a> {
    /// Series of points that differ along the axis only, each with its name.
    series: Vec<(Vec<&'a PointSummary>, String)>,
    /// Index of the axis.
    axis: usize,
    /// Values of the axis, in the short form of tables.
    values: Vec<String>,
    /// Values as numbers, if all values are numbers and there are more than two.
    numbers: Option<Vec<f64>>,
    /// Finished baselines that are not points of a series.
    baselines: Vec<Baseline<'a>>,
}

/// A baseline with the position and style of its line.
struct Baseline<'a> {
    point: &'a PointSummary,
    /// Colour of the line: the series' colour for the baseline of a single series.
    color: RGBColor,
    /// Whether the baseline belongs to several series.
    shared: bool,
    /// Index of the axis value that the baseline belongs to. None if the baseline's own value is
    /// not among the axis values, so that its line spans all of them.
    value: Option<usize>,
    name: String,
}

/// Returns a figure for each axis along which any point is finished.
pub fn figures(summary: &Summary) -> Result<Vec<Figure>> {
    (0..summary.axes.len()).filter_map(|axis| figure(summary, axis).transpose()).collect()
}

fn figure(summary: &Summary, axis: usize) -> Result<Option<Figure>> {
    let finished = |group: &Vec<usize>| group.iter().any(|at| summary.points[*at].expanded_top1().is_some());
    let mut found: Vec<Vec<usize>> = groups(summary, axis).into_iter().filter(finished).collect();
    if found.is_empty() {
        return Ok(None);
    }
    let all = found.len();
    keep_best(summary, &mut found);
    let shown = Shown::new(summary, axis, &found);
    let key = &summary.axes[axis];
    let firsts: Vec<&PointSummary> = found.iter().map(|group| &summary.points[group[0]]).collect();
    let title = titled(&format!("Top-1, % along {key}"), &names(&firsts, Some(axis)).1);
    let left_out = if all > found.len() {
        format!(" The {} of {all} series with the highest mean are shown.", found.len())
    } else {
        String::new()
    };
    let note = format!("Expanded form: mean and standard deviation over the finished seeds.{left_out}");
    let legend = shown.legend(summary);
    let height = draw::height(shown.height(), draw::legend_lines(&legend));
    let name = format!("axis-{}", file_name(key));
    Figure::draw(name, title.clone(), note, height, |area| {
        let plane = shown.axes(area, &title, key)?;
        shown.draw(area, &plane)?;
        draw::legend(area, &legend, shown.height())
    })
    .map(Some)
}

/// Keeps at most MOST_SERIES series, the number of colours: those with the highest mean of their
/// points' means, in the order of the plan.
fn keep_best(summary: &Summary, groups: &mut Vec<Vec<usize>>) {
    let mean = |group: &[usize]| {
        let means: Vec<f64> = group.iter().filter_map(|at| Some(summary.points[*at].expanded_top1()?.mean)).collect();
        Statistics::of(&means).map_or(f64::NEG_INFINITY, |of| of.mean)
    };
    let mut order = groups.clone();
    order.sort_by(|a, b| mean(b).total_cmp(&mean(a)));
    order.truncate(MOST_SERIES);
    groups.retain(|group| order.contains(group));
}

impl<'a> Shown<'a> {
    fn new(summary: &'a Summary, axis: usize, groups: &[Vec<usize>]) -> Shown<'a> {
        let points = |group: &Vec<usize>| group.iter().map(|at| &summary.points[*at]).collect::<Vec<_>>();
        let firsts: Vec<&PointSummary> = groups.iter().map(|group| &summary.points[group[0]]).collect();
        let series: Vec<_> = groups.iter().map(points).zip(names(&firsts, Some(axis)).0).collect();
        let mut labels: Vec<(&str, &str)> = Vec::new();
        for point in series.iter().flat_map(|(points, _)| points) {
            let place = &point.coordinates[axis];
            if !labels.iter().any(|(label, _)| *label == place.label) {
                labels.push((&place.label, &place.short));
            }
        }
        let numbers: Option<Vec<f64>> =
            labels.iter().map(|(label, _)| label.parse().ok().filter(|number: &f64| number.is_finite())).collect();
        let values = labels.iter().map(|(_, short)| short.to_string()).collect();
        let mut baselines: Vec<Baseline> = Vec::new();
        for (at, group) in groups.iter().enumerate() {
            let outside = |baseline: &usize| !groups.iter().any(|group| group.contains(baseline));
            let of_group = group.iter().filter_map(|at| summary.points[*at].compared_with).filter(outside);
            for baseline in of_group.collect::<BTreeSet<usize>>() {
                let point = &summary.points[baseline];
                match baselines.iter_mut().find(|known| known.point.title == point.title) {
                    Some(known) => known.shared = true,
                    None if point.expanded_top1().is_some() => {
                        let place = &point.coordinates[axis];
                        let value = labels.iter().position(|(label, _)| *label == place.label);
                        let name = names(&[point], Some(axis)).1;
                        let name = if value.is_some() && !name.is_empty() { name } else { point.title.clone() };
                        baselines.push(Baseline { point, color: draw::color(at), shared: false, value, name });
                    }
                    None => {}
                }
            }
        }
        // A baseline of several series has its own colour, so that no two lines look alike.
        for (at, baseline) in baselines.iter_mut().filter(|baseline| baseline.shared).enumerate() {
            baseline.color = if at == 0 { FAINT } else { draw::color(groups.len() + at - 1) };
        }
        Shown { series, axis, values, numbers: numbers.filter(|numbers| numbers.len() > 2), baselines }
    }

    /// Returns all points in the figure.
    fn points(&self) -> impl Iterator<Item = &'a PointSummary> {
        let series = self.series.iter().flat_map(|(points, _)| points.iter().copied());
        series.chain(self.baselines.iter().map(|baseline| baseline.point))
    }

    /// Returns the index of a point's value among the axis values.
    fn place(&self, point: &PointSummary) -> usize {
        let short = &point.coordinates[self.axis].short;
        self.values.iter().position(|value| value == short).unwrap_or(0)
    }

    fn labels(&self) -> RowLabels {
        RowLabels::new(&self.values, 190)
    }

    fn row_height(&self) -> i32 {
        (13 * self.series.len() as i32 + 9).max(28) + self.labels().above
    }

    /// Returns the fraction of a row's height that the label above the marks takes.
    fn label_share(&self) -> f64 {
        f64::from(self.labels().above) / f64::from(self.row_height())
    }

    fn height(&self) -> i32 {
        if self.numbers.is_some() { 230 } else { self.row_height() * self.values.len() as i32 + 8 }
    }

    fn legend(&self, summary: &Summary) -> Vec<(Sign, String)> {
        let mut entries: Vec<(Sign, String)> = Vec::new();
        if self.series.len() > 1 {
            let series = self.series.iter().enumerate();
            entries.extend(series.map(|(at, (_, name))| {
                (Sign::Mark(at), if name.is_empty() { "baseline".into() } else { name.clone() })
            }));
        }
        for Baseline { color, name, .. } in &self.baselines {
            let entry = (Sign::Dashes(*color), name.clone());
            if !entries.contains(&entry) {
                entries.push(entry);
            }
        }
        if let Some(citation) = &summary.citation
            && self.points().any(|point| point.paper_top1.is_some())
        {
            entries.push((Sign::Cross, citation.clone()));
        }
        entries
    }

    fn axes(&self, area: &Area, title: &str, key: &str) -> Result<Plane> {
        let top1 = Scale::around(self.points().flat_map(values), 1.);
        match &self.numbers {
            Some(numbers) => {
                let x = Scale::of_sizes(numbers.iter().copied(), 10.);
                let axes = Axes {
                    x,
                    y: top1,
                    x_title: key,
                    x_number: &draw::plain_number,
                    y_numbers: true,
                    left: LEFT,
                    right: RIGHT,
                    height: self.height(),
                    x_labels: 6,
                };
                draw::axes(area, title, &axes)
            }
            None => {
                let (rows, labels) = (self.values.len() as f64, self.labels());
                let axes = Axes {
                    x: top1,
                    y: Scale { low: -rows, high: 0., log: false },
                    x_title: "top-1, %",
                    x_number: &draw::plain_number,
                    y_numbers: false,
                    left: labels.left,
                    right: RIGHT,
                    height: self.height(),
                    x_labels: 8,
                };
                let plane = draw::axes(area, title, &axes)?;
                for row in 0..self.values.len() {
                    let top = draw::TOP + (f64::from(self.height()) * row as f64 / rows) as i32;
                    labels.draw(area, row, (top, self.row_height()), INK)?;
                }
                Ok(plane)
            }
        }
    }

    fn draw(&self, area: &Area, plane: &Plane) -> Result<()> {
        for Baseline { point, color, value, .. } in &self.baselines {
            if let Some(top1) = point.expanded_top1() {
                let [from, to] = self.across(plane, top1.mean, *value);
                draw::dashes(area, from, to, *color)?;
            }
        }
        for (series, (points, _)) in self.series.iter().enumerate() {
            if self.numbers.is_some() {
                let places =
                    points.iter().filter_map(|point| Some(self.at(plane, series, point, point.expanded_top1()?.mean)));
                let mut places: Vec<(i32, i32)> = places.collect();
                places.sort_unstable();
                let style = draw::stroke(draw::color(series), 1.5);
                area.draw(&plotters::element::PathElement::new(places, style))?;
            }
            for point in points {
                self.point(area, plane, series, point)?;
            }
        }
        Ok(())
    }

    fn point(&self, area: &Area, plane: &Plane, series: usize, point: &PointSummary) -> Result<()> {
        let at = |top1: f64| self.at(plane, series, point, top1);
        if let Some(top1) = point.expanded_top1() {
            if top1.std.is_some() {
                let (low, high) = top1.band();
                draw::bar(area, at(low), at(high), draw::color(series))?;
            }
            draw::mark(area, at(top1.mean), series)?;
        }
        if let Some(paper) = point.paper_top1 {
            draw::cross(area, at(paper), draw::color(series))?;
        }
        Ok(())
    }

    /// Returns the position of a point's top-1, in units.
    fn at(&self, plane: &Plane, series: usize, point: &PointSummary, top1: f64) -> (i32, i32) {
        let place = self.place(point);
        match &self.numbers {
            Some(numbers) => plane(numbers[place], top1),
            None => {
                let inside = (series as f64 + 0.5) / self.series.len() as f64;
                // Rows have a gap between them.
                let (above, marks) = (self.label_share(), 0.12 + 0.76 * inside);
                plane(top1, -(place as f64 + above + (1. - above) * marks))
            }
        }
    }

    /// Returns the ends of a line at the given top-1, through all values of the axis or at a single
    /// value, in units.
    fn across(&self, plane: &Plane, top1: f64, value: Option<usize>) -> [(i32, i32); 2] {
        match &self.numbers {
            Some(numbers) => {
                let ends = numbers.iter().fold((f64::MAX, f64::MIN), |(low, high), n| (low.min(*n), high.max(*n)));
                let [from, to] = [plane(ends.0, top1), plane(ends.1, top1)];
                match value.map(|value| plane(numbers[value], top1)) {
                    Some((x, y)) => [(x - BESIDE, y), (x + BESIDE, y)],
                    None => [from, to],
                }
            }
            None => match value {
                Some(row) => [plane(top1, -(row as f64)), plane(top1, -(row as f64 + 1.))],
                None => [plane(top1, 0.), plane(top1, -(self.values.len() as f64))],
            },
        }
    }
}

/// Returns the values of a point that must fit into the figure.
fn values(point: &PointSummary) -> Vec<f64> {
    let band = point.expanded_top1().map(|top1| top1.band());
    band.into_iter().flat_map(|(low, high)| [low, high]).chain(point.paper_top1).collect()
}
