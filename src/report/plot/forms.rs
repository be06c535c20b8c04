//! Figure of expanded against compact form: top-1 of both, agreement and fold error, one row per
//! point.

use super::draw::{self, Axes, RowLabels, Scale, Sign};
use super::figure::{Area, FAINT, Figure, INK, WIDTH};
use super::{names, titled};
use crate::report::summary::{PointSummary, Summary};
use crate::text::{rounded_down, scientific};
use anyhow::Result;
use plotters::style::text_anchor::HPos;

/// Maximum number of rows; further points are in the table.
const MOST_ROWS: usize = 40;
const ROW: i32 = 24;
/// Space at the right, for the two columns of numbers.
const RIGHT: i32 = 158;
/// Space above the rows, for the headings of these columns.
const HEAD: i32 = 20;

/// Returns the figure, or no figure if no point was folded.
pub fn figures(summary: &Summary) -> Result<Vec<Figure>> {
    let folded: Vec<&PointSummary> = summary.points.iter().filter(|point| point.compact_top1().is_some()).collect();
    if folded.is_empty() {
        return Ok(Vec::new());
    }
    let shown = &folded[..folded.len().min(MOST_ROWS)];
    let (mut labels, common) = names(shown, None);
    if let [label] = &mut labels[..] {
        label.clone_from(&shown[0].title);
    }
    let more = match folded.len() - shown.len() {
        0 => String::new(),
        more => format!(" {more} more points are in the table."),
    };
    let note = format!(
        "Means over the finished seeds. Agreement: the images for which both forms predict the same class, the least of the seeds. \
         Fold error: the largest difference of a logit over the largest logit, the most of the seeds.{more}"
    );
    let legend = [(Sign::Mark(0), "expanded, ± std".to_string()), (Sign::Ring, "compact".to_string())];
    let labels = RowLabels::new(&labels, 170);
    let axes = (ROW + labels.above) * shown.len() as i32 + HEAD;
    let height = draw::height(axes, draw::legend_lines(&legend));
    let title = titled("Top-1, % of both forms", &common);
    let figure = Figure::draw("forms".into(), title.clone(), note, height, |area| {
        rows(area, &title, axes, shown, &labels)?;
        draw::legend(area, &legend, axes)
    })?;
    Ok(vec![figure])
}

fn rows(area: &Area, title: &str, height: i32, points: &[&PointSummary], labels: &RowLabels) -> Result<()> {
    let values = points.iter().flat_map(|point| {
        let band = point.expanded_top1().map(|top1| top1.band());
        band.into_iter().flat_map(|(low, high)| [low, high]).chain(point.compact_top1().map(|top1| top1.mean))
    });
    let axes = Axes {
        x: Scale::around(values, 1.),
        y: Scale { low: -f64::from(height), high: 0., log: false },
        x_title: "top-1, %",
        x_number: &draw::plain_number,
        y_numbers: false,
        left: labels.left,
        right: RIGHT,
        height,
        x_labels: 5,
    };
    let plane = draw::axes(area, title, &axes)?;
    let columns = [WIDTH - RIGHT + 78, WIDTH - 10];
    for (x, head) in columns.iter().zip(["agreement", "fold error"]) {
        draw::label(area, head, (*x, draw::TOP + 8), 100, FAINT, HPos::Right)?;
    }
    for (row, point) in points.iter().enumerate() {
        let top = HEAD + (ROW + labels.above) * row as i32;
        labels.draw(area, row, (draw::TOP + top, ROW), INK)?;
        let y = top + labels.above + ROW / 2;
        let at = |top1: f64| plane(top1, -f64::from(y));
        if let Some(top1) = point.expanded_top1() {
            if top1.std.is_some() {
                let (low, high) = top1.band();
                draw::bar(area, at(low), at(high), draw::color(0))?;
            }
            draw::mark(area, at(top1.mean), 0)?;
        }
        if let Some(top1) = point.compact_top1() {
            draw::ring(area, at(top1.mean), INK)?;
        }
        if let Some((agreement, error)) = point.worst_fold() {
            for (x, number) in columns.iter().zip([format!("{} %", rounded_down(agreement)), scientific(error)]) {
                draw::label(area, &number, (*x, draw::TOP + y), 90, FAINT, HPos::Right)?;
            }
        }
    }
    Ok(())
}
