//! Training curves: top-1 and loss per epoch, the mean of each point over its seeds with a band of
//! one standard deviation.

use super::draw::{self, Axes, LEFT, Plane, RIGHT, Scale, Sign};
use super::figure::{Area, Figure};
use super::{MOST_SERIES, names, titled};
use crate::report::curves::{Curves, Epoch};
use crate::report::summary::{PointSummary, Summary};
use anyhow::Result;
use plotters::element::{PathElement, Polygon};
use plotters::style::Color;
use std::collections::BTreeSet;

const HEIGHT: i32 = 220;
/// Largest number of figures of one kind; the curves of further points are in their trials'
/// metrics.csv.
const MOST_FIGURES: usize = 12;

/// Draws a figure of top-1 and a figure of the loss for each chunk of at most `MOST_SERIES` points
/// that have curves.
pub fn figures(summary: &Summary) -> Result<Vec<Figure>> {
    let points: Vec<&PointSummary> = summary.points.iter().filter(|point| !point.curves.top1.is_empty()).collect();
    if points.is_empty() {
        return Ok(Vec::new());
    }
    // The fewest figures that can hold all points, with equally many points in each.
    let each = points.len().div_ceil(points.len().div_ceil(MOST_SERIES));
    let mut figures = Vec::new();
    let of_all = points.len().div_ceil(each).min(MOST_FIGURES);
    for (at, some) in points.chunks(each).take(MOST_FIGURES).enumerate() {
        let left_out = points.len().saturating_sub(each * MOST_FIGURES);
        let more = if left_out > 0 && at == MOST_FIGURES - 1 {
            format!(" The curves of {left_out} more points are in their trials' metrics.csv.")
        } else {
            String::new()
        };
        figures.extend(pair([at + 1, of_all], some, &points, &more)?);
    }
    Ok(figures)
}

/// Draws the two figures of some points; the axes cover the values of `all`, so that figures can be
/// compared.
fn pair(
    [number, of_all]: [usize; 2],
    points: &[&PointSummary],
    all: &[&PointSummary],
    more: &str,
) -> Result<[Figure; 2]> {
    let (mut labels, common) = names(points, None);
    if let [label] = &mut labels[..] {
        label.clone_from(&points[0].title);
    }
    let counted = |title: &str| {
        let place = if of_all > 1 { format!(" ({number} of {of_all})") } else { String::new() };
        format!("{title}{place}")
    };
    let watched: BTreeSet<&str> = all.iter().map(|point| point.watched.name()).collect();
    let watched = watched.into_iter().collect::<Vec<_>>().join(" or ");
    let note = format!("Mean over the finished seeds; the band is one standard deviation to each side.{more}");
    let top1 = |curves: &Curves| (curves.top1.clone(), Vec::new());
    let loss = |curves: &Curves| (curves.loss.clone(), curves.train_loss.clone());
    Ok([
        figure(
            format!("training-{number}-top1"),
            titled(&counted(&format!("Top-1 on the {watched} split, % an epoch")), &common),
            note.clone(),
            (points, all),
            &labels,
            &top1,
        )?,
        figure(
            format!("training-{number}-loss"),
            titled(&counted("Loss an epoch"), &common),
            format!("{note} Dashed: training, without a band; solid: {watched}."),
            (points, all),
            &labels,
            &loss,
        )?,
    ])
}

/// Function from a point's curves to the solid line, which has a band, and the dashed line, which
/// has none.
type Lines<'a> = &'a dyn Fn(&Curves) -> (Vec<Epoch>, Vec<Epoch>);

fn figure(
    name: String,
    title: String,
    note: String,
    (points, all): (&[&PointSummary], &[&PointSummary]),
    labels: &[String],
    of: Lines,
) -> Result<Figure> {
    let curves_of = |points: &[&PointSummary]| points.iter().map(|point| of(&point.curves)).collect::<Vec<_>>();
    let (curves, all) = (curves_of(points), curves_of(all));
    let legend: Vec<(Sign, String)> =
        labels.iter().enumerate().map(|(at, label)| (Sign::Line(at), label.clone())).collect();
    let height = draw::height(HEIGHT, draw::legend_lines(&legend));
    Figure::draw(name, title.clone(), note, height, |area| {
        let plane = axes(area, &title, &all, curves.iter().any(|(_, dashed)| !dashed.is_empty()))?;
        for (series, (solid, _)) in curves.iter().enumerate() {
            band(area, &plane, solid, series)?;
        }
        for (series, (solid, dashed)) in curves.iter().enumerate() {
            let places = |line: &[Epoch]| line.iter().map(|(at, of)| plane(*at as f64, of.mean)).collect::<Vec<_>>();
            area.draw(&PathElement::new(places(solid), draw::stroke(draw::color(series), 1.75)))?;
            dashed_line(area, &places(dashed), series)?;
        }
        draw::legend(area, &legend, HEIGHT)
    })
}

/// Draws the axes. The loss falls fast at first and slowly later, so its axis may be logarithmic.
fn axes(area: &Area, title: &str, curves: &[(Vec<Epoch>, Vec<Epoch>)], log: bool) -> Result<Plane> {
    let all = || curves.iter().flat_map(|(solid, dashed)| solid.iter().chain(dashed));
    let last = all().map(|(epoch, _)| *epoch).max().unwrap_or(1);
    let values = all().flat_map(|(_, of)| {
        let (low, high) = of.band();
        [low, high]
    });
    let y = if log { Scale::of_sizes(values, 4.) } else { Scale::around(values, 0.1) };
    let whole = |value: f64| if value.fract().abs() < 1e-6 { draw::plain_number(value) } else { String::new() };
    let axes = Axes {
        x: Scale { low: 1., high: (last as f64).max(2.), log: false },
        y,
        x_title: "epoch",
        x_number: &whole,
        y_numbers: true,
        left: LEFT,
        right: RIGHT,
        height: HEIGHT,
        x_labels: 6,
    };
    draw::axes(area, title, &axes)
}

fn band(area: &Area, plane: &Plane, line: &[Epoch], series: usize) -> Result<()> {
    let seeds: Vec<&Epoch> = line.iter().filter(|(_, of)| of.std.is_some()).collect();
    let lower = seeds.iter().map(|(at, of)| plane(*at as f64, of.band().0));
    let upper = seeds.iter().rev().map(|(at, of)| plane(*at as f64, of.band().1));
    let places: Vec<(i32, i32)> = lower.chain(upper).collect();
    if !places.is_empty() {
        area.draw(&Polygon::new(places, draw::color(series).mix(0.16)))?;
    }
    Ok(())
}

/// Draws a dashed line: every second piece of a long line. Dashes of equal length would be slow to
/// place on short pieces.
fn dashed_line(area: &Area, places: &[(i32, i32)], series: usize) -> Result<()> {
    if places.len() < 8 {
        for ends in places.windows(2) {
            draw::dashes(area, ends[0], ends[1], draw::color(series))?;
        }
        return Ok(());
    }
    let piece = places.len().div_ceil(60);
    for piece in places.chunks(2 * piece).map(|two| &two[..two.len().min(piece + 1)]) {
        area.draw(&PathElement::new(piece.to_vec(), draw::stroke(draw::color(series), 1.25)))?;
    }
    Ok(())
}
