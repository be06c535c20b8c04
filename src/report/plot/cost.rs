//! Top-1 against what the compact form costs: parameters, multiply-accumulates, and latency where it was measured.

use super::draw::{self, Axes, LEFT, RIGHT, Scale, Sign};
use super::figure::{Area, Figure, UNIT};
use super::{MOST_SERIES, names};
use crate::report::summary::{PointSummary, Summary};
use anyhow::Result;
use std::collections::BTreeSet;

const HEIGHT: i32 = 240;
/// Points that are less of the axis apart than this stand beside each other, so many units apart.
const NEAR: f64 = 0.02;
const BESIDE: i32 = 10 * UNIT;

/// A finished point: its cost, its series, and how far it stands beside its place (in units), where others cost about as much.
struct Shown<'a> {
    point: &'a PointSummary,
    cost: f64,
    series: usize,
    aside: i32,
}

/// A cost of a point, where it is known.
type Cost<'a> = &'a dyn Fn(&PointSummary) -> Option<f64>;

/// One for each cost that is known.
pub fn figures(summary: &Summary) -> Result<Vec<Figure>> {
    let latency = summary.latency.as_ref();
    let latency_title = latency.map_or(String::new(), |latency| {
        let batch = latency.batches().first().map_or(String::new(), |batch| format!(", batch {batch}"));
        format!("latency, ms ({}{batch})", latency.place())
    });
    let size = |value: Option<i64>| value.map(|value| value as f64);
    let all: [(&str, &str, Cost); 3] = [
        ("parameters", "parameters, compact", &|point| size(point.parameters())),
        ("macs", "multiply-accumulates, compact", &|point| size(point.macs())),
        ("latency", &latency_title, &|point| summary.latency_of(point)),
    ];
    all.into_iter().filter_map(|(name, x_title, cost)| figure(summary, name, x_title, cost).transpose()).collect()
}

fn figure(summary: &Summary, name: &str, x_title: &str, cost: Cost) -> Result<Option<Figure>> {
    let points: Vec<&PointSummary> =
        summary.points.iter().filter(|point| point.expanded_top1().is_some() && cost(point).is_some()).collect();
    if points.len() < 2 {
        return Ok(None);
    }
    let (series, legend_names) = series(&points);
    let costs: Vec<f64> = points.iter().filter_map(|point| cost(point)).collect();
    let x = Scale::of_sizes(costs.iter().copied(), 10.);
    let shown = points.iter().zip(series).zip(&costs).enumerate().map(|(at, ((point, series), cost))| {
        let near = |other: &&f64| (x.fraction(**other) - x.fraction(*cost)).abs() < NEAR;
        let (before, all) = (costs[..at].iter().filter(near).count() as i32, costs.iter().filter(near).count() as i32);
        // In the middle between all that cost about the same.
        Shown { point, cost: *cost, series, aside: (2 * before - all + 1) * BESIDE / 2 }
    });
    let shown: Vec<Shown> = shown.collect();
    let mut legend: Vec<(Sign, String)> =
        legend_names.into_iter().enumerate().map(|(at, name)| (Sign::Mark(at), name)).collect();
    if let Some(citation) = &summary.citation
        && points.iter().any(|point| point.paper_top1.is_some())
    {
        legend.push((Sign::Cross, citation.clone()));
    }
    let height = draw::height(HEIGHT, draw::legend_lines(&legend));
    let title = format!("Top-1, % against {}", if name == "macs" { "MACs" } else { name });
    let note = "Expanded form: mean and standard deviation over the finished seeds. Cost of the compact form, or of the expanded \
        one where there is no compact."
        .into();
    Figure::draw(format!("cost-{name}"), title.clone(), note, height, |area| {
        draw_points(area, &title, x_title, x, &shown)?;
        draw::legend(area, &legend, HEIGHT)
    })
    .map(Some)
}

/// The series of each point and their names: the points themselves, where there are few; else the values of an axis.
fn series(points: &[&PointSummary]) -> (Vec<usize>, Vec<String>) {
    if points.len() <= MOST_SERIES {
        return ((0..points.len()).collect(), names(points, None).0);
    }
    let labels =
        |axis: usize| points.iter().map(|point| point.coordinates[axis].short.as_str()).collect::<BTreeSet<_>>().len();
    let axes = points[0].coordinates.len();
    let Some(axis) = (0..axes).find(|axis| (2..=MOST_SERIES).contains(&labels(*axis))) else {
        return (vec![0; points.len()], Vec::new());
    };
    let mut known: Vec<String> = Vec::new();
    let place = |point: &&PointSummary| {
        let short = &point.coordinates[axis].short;
        known.iter().position(|name| name == short).unwrap_or_else(|| {
            known.push(short.clone());
            known.len() - 1
        })
    };
    let series = points.iter().map(place).collect();
    (series, known)
}

fn draw_points(area: &Area, title: &str, x_title: &str, x: Scale, shown: &[Shown]) -> Result<()> {
    let top1 = shown.iter().flat_map(|Shown { point, .. }| {
        let band = point.expanded_top1().map(|top1| top1.band());
        band.into_iter().flat_map(|(low, high)| [low, high]).chain(point.paper_top1)
    });
    let axes = Axes {
        x,
        y: Scale::around(top1, 1.),
        x_title,
        x_number: &draw::size_number,
        y_numbers: true,
        left: LEFT,
        right: RIGHT,
        height: HEIGHT,
        x_labels: 5,
    };
    let plane = draw::axes(area, title, &axes)?;
    for Shown { point, cost, series, aside } in shown {
        let at = |top1: f64| {
            let (x, y) = plane(*cost, top1);
            (x + aside, y)
        };
        if let Some(top1) = point.expanded_top1() {
            if top1.std.is_some() {
                let (low, high) = top1.band();
                draw::bar(area, at(low), at(high), draw::color(*series))?;
            }
            draw::mark(area, at(top1.mean), *series)?;
        }
        if let Some(paper) = point.paper_top1 {
            draw::cross(area, at(paper), draw::color(*series))?;
        }
    }
    Ok(())
}
