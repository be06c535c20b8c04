//! Figures of top-1 against the cost of a point. Costs of the compact form: parameters,
//! multiply-accumulates, and latency if it was measured. Costs of training: multiply-accumulates of
//! the expanded form, and seconds per epoch. Points are drawn at their exact costs, so points of
//! equal cost stand above each other.

use super::draw::{self, Axes, LEFT, RIGHT, Scale, Sign};
use super::figure::{Area, Figure};
use super::{MOST_SERIES, names};
use crate::report::summary::{PointSummary, Summary};
use anyhow::Result;
use std::collections::BTreeSet;

const HEIGHT: i32 = 240;

/// A finished point with its cost and series.
struct Shown<'a> {
    point: &'a PointSummary,
    cost: f64,
    series: usize,
}

/// Function that returns a cost of a point, if the cost is known.
type Cost<'a> = &'a dyn Fn(&PointSummary) -> Option<f64>;

/// Returns a figure for each cost that is known for at least two finished points.
pub fn figures(summary: &Summary) -> Result<Vec<Figure>> {
    let latency = summary.latency.as_ref();
    let latency_title = latency.map_or(String::new(), |latency| {
        let batch = latency.batches().first().map_or(String::new(), |batch| format!(", batch {batch}"));
        format!("latency, ms ({}{batch})", latency.place())
    });
    let size = |value: Option<i64>| value.map(|value| value as f64);
    let seconds_title = format!("seconds an epoch of training ({})", summary.machines());
    let all: [(&str, &str, &str, Cost); 5] = [
        ("parameters", "parameters", "parameters, compact", &|point| size(point.parameters())),
        ("macs", "MACs", "multiply-accumulates, compact", &|point| size(point.macs())),
        ("latency", "latency", &latency_title, &|point| summary.latency_of(point)),
        ("expanded-macs", "MACs in training", "multiply-accumulates, expanded", &|point| size(point.expanded_macs())),
        ("seconds", "seconds of training", &seconds_title, &|point| Some(point.training()?.seconds_an_epoch)),
    ];
    let figures = all
        .into_iter()
        .filter_map(|(name, against, x_title, cost)| figure(summary, (name, against, x_title), cost).transpose());
    figures.collect()
}

fn figure(summary: &Summary, (name, against, x_title): (&str, &str, &str), cost: Cost) -> Result<Option<Figure>> {
    let points: Vec<&PointSummary> =
        summary.points.iter().filter(|point| point.expanded_top1().is_some() && cost(point).is_some()).collect();
    if points.len() < 2 {
        return Ok(None);
    }
    let (series, legend_names) = series(&points);
    let costs: Vec<f64> = points.iter().filter_map(|point| cost(point)).collect();
    let x = Scale::of_sizes(costs.iter().copied(), 10.);
    let shown = points.iter().zip(series).zip(&costs);
    let shown: Vec<Shown> = shown.map(|((point, series), cost)| Shown { point, cost: *cost, series }).collect();
    let mut legend: Vec<(Sign, String)> =
        legend_names.into_iter().enumerate().map(|(at, name)| (Sign::Mark(at), name)).collect();
    if let Some(citation) = &summary.citation
        && points.iter().any(|point| point.paper_top1.is_some())
    {
        legend.push((Sign::Cross, citation.clone()));
    }
    let height = draw::height(HEIGHT, draw::legend_lines(&legend));
    let title = format!("Top-1, % against {against}");
    let of = match name {
        "expanded-macs" => "Cost of the expanded form, for one image, in branches.",
        "seconds" => {
            "Seconds of training and evaluation over the epochs, the mean over the finished seeds; what else ran then is in them."
        }
        _ => "Cost of the compact form, or of the expanded one where there is no compact.",
    };
    let note = format!(
        "Expanded form: mean and standard deviation over the finished seeds. {of} Points of one cost stand above each other."
    );
    Figure::draw(format!("cost-{name}"), title.clone(), note, height, |area| {
        draw_points(area, &title, x_title, x, &shown)?;
        draw::legend(area, &legend, HEIGHT)
    })
    .map(Some)
}

/// Returns the series of each point and the names of the series. Each point is a series if there
/// are at most MOST_SERIES points; otherwise the series are the values of the first axis with 2 to
/// MOST_SERIES values, or a single unnamed series if there is no such axis.
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
    for Shown { point, cost, series } in shown {
        let at = |top1: f64| plane(*cost, top1);
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
