//! Plots of a sweep. Each is written as NAME.svg and NAME.png to `plots/` in the sweep's folder.

mod axis;
mod cost;
mod draw;
mod figure;
mod forms;
mod training;

use crate::files;
use crate::report::summary::{PointSummary, Summary};
use crate::sweep::plan::axes::DASH;
use anyhow::Result;
pub use figure::{Figure, Fonts};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Largest number of series in a figure: each has a colour of its own.
const MOST_SERIES: usize = figure::SERIES.len();

/// Figures that answer one question.
#[derive(Clone, Debug)]
pub struct Section {
    /// Title, which names the question.
    pub title: &'static str,
    /// Figures of the section.
    pub figures: Vec<Figure>,
}

/// Draws all plots of a sweep; sections without figures are left out.
pub fn sections(summary: &Summary) -> Result<Vec<Section>> {
    let all = [
        Section { title: "Accuracy along each axis", figures: axis::figures(summary)? },
        Section { title: "Accuracy against cost", figures: cost::figures(summary)? },
        Section { title: "Training", figures: training::figures(summary)? },
        Section { title: "Expanded against compact", figures: forms::figures(summary)? },
    ];
    Ok(all.into_iter().filter(|section| !section.figures.is_empty()).collect())
}

/// Writes every figure as SVG and PNG, and removes the SVG and PNG files of an earlier report that
/// are not among the figures.
pub fn write(folder: &Path, figures: &[&Figure]) -> Result<()> {
    files::create_dir(folder)?;
    let names: BTreeSet<String> =
        figures.iter().flat_map(|figure| ["svg", "png"].map(|end| format!("{}.{end}", figure.name))).collect();
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if (name.ends_with(".svg") || name.ends_with(".png")) && !names.contains(&name) {
            std::fs::remove_file(entry.path())?;
        }
    }
    let fonts = Fonts::new();
    in_parallel(figures, |figure| {
        write_if_new(&folder.join(format!("{}.svg", figure.name)), figure.file().as_bytes())?;
        write_if_new(&folder.join(format!("{}.png", figure.name)), &figure.picture(&fonts)?)
    })
}

/// Writes a file unless it holds these bytes already. Most reports leave most plots unchanged, and
/// syncing a plot takes longer than drawing it.
fn write_if_new(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::read(path).is_ok_and(|old| old == bytes) {
        return Ok(());
    }
    files::write_atomic(path, bytes)
}

/// Does `work` for each figure, on as many threads as the machine has cores.
fn in_parallel(figures: &[&Figure], work: impl Fn(&Figure) -> Result<()> + Sync) -> Result<()> {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Ok(())));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(figure) = figures.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let (Err(error), Ok(mut failed)) = (work(figure), failed.lock()) {
                        *failed = Err(error);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or(Ok(()))
}

/// Returns a name for each point that distinguishes it from the other points, and the part that all
/// names have in common. The axis `without` is left out of both.
fn names(points: &[&PointSummary], without: Option<usize>) -> (Vec<String>, String) {
    let axes = points.first().map_or(0, |point| point.coordinates.len());
    let kept = (0..axes).filter(|axis| Some(*axis) != without);
    let label = |point: &PointSummary, axis: usize| point.coordinates[axis].label.clone();
    let (same, different): (Vec<usize>, Vec<usize>) =
        kept.partition(|axis| points.iter().all(|point| label(point, *axis) == label(points[0], *axis)));
    let name = |point: &PointSummary, axes: &[usize]| -> String {
        let shorts = axes.iter().map(|axis| point.coordinates[*axis].short.as_str());
        shorts.filter(|short| *short != DASH).collect::<Vec<_>>().join(" ")
    };
    let all = points.iter().map(|point| name(point, &different)).collect();
    (all, points.first().map_or(String::new(), |point| name(point, &same)))
}

/// Returns the title, followed by what all points of the figure have in common.
fn titled(title: &str, common: &str) -> String {
    if common.is_empty() { title.into() } else { format!("{title}: {common}") }
}

/// Returns `key` with `_` for every character other than ASCII letters and digits.
fn file_name(key: &str) -> String {
    key.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::sweep::store::Store;
    use crate::sweep::store::tests::{result, started, write_result};
    use crate::train::checkpoint::Row;

    /// Creates a sweep whose trials are all finished, with curves of two epochs.
    pub(crate) fn finished(sweep: &str) -> (tempfile::TempDir, Store) {
        let (folder, store, plan) = started(sweep);
        for (at, point) in plan.points.iter().enumerate() {
            for trial in &point.trials {
                let seed = trial.config.seed;
                let top1 = (80. + at as f64 + 0.3 * ((seed * 7 + at as u64 * 3) % 5) as f64).min(99.5);
                write_result(&store, &result(&trial.hash, seed, top1));
                let mut csv = csv::Writer::from_path(store.trial(&trial.hash).join("metrics.csv")).unwrap();
                for (epoch, top1) in [(1, top1 - 10.), (2, top1)] {
                    let loss = 100. / top1;
                    let (lr, top5, images_per_second, seconds) = (0.1, 99., 1000., 2.);
                    csv.serialize(Row {
                        epoch,
                        lr,
                        train_loss: loss,
                        loss,
                        top1,
                        top5,
                        images_per_second,
                        seconds,
                        ema_top1: None,
                        ema_loss: None,
                    })
                    .unwrap();
                }
                csv.flush().unwrap();
            }
        }
        (folder, store)
    }

    fn figures(sweep: &str) -> Vec<Figure> {
        let (_folder, store) = finished(sweep);
        let sections = sections(&Summary::read(&store).unwrap()).unwrap();
        sections.into_iter().flat_map(|section| section.figures).collect()
    }

    fn count(figure: &Figure, what: &str) -> usize {
        figure.file().matches(what).count()
    }

    const GRID: &str = "{axes: {operator: [{name: maconv}, {name: mdconv}], operator.bypass: [true, false]},
        baseline: {operator: {name: plain}}, seeds: 3, paper: {top1: {plain: 79, maconv bypass=true: 83}}}";

    #[test]
    fn points_stand_where_their_costs_are_and_baselines_look_like_nothing_else() {
        let sweep =
            "{axes: {net.width: [1, 2], operator: [{name: maconv}, {name: mdconv}], operator.bypass: [true, false]},
            baseline: {operator: {name: plain}}, seeds: 2}";
        let (_folder, store) = finished(sweep);
        let summary = Summary::read(&store).unwrap();
        let figures = figures(sweep);
        let named = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap().file();
        // All trials of the fixture have the same cost, so all marks and bars of all series have
        // one x coordinate.
        let across = |drawing: &str| -> BTreeSet<String> {
            let bars = drawing.split("<polyline ").filter(|line| line.contains("stroke-width=\"6\""));
            let places = bars.filter_map(|line| line.split_once("points=\"")?.1.split_once('"'));
            let ends = places.map(|(points, _)| points.split_whitespace().collect::<Vec<_>>());
            let upright = ends.filter(|ends| ends.len() == 2 && ends[0].split(',').next() == ends[1].split(',').next());
            upright.map(|ends| ends[0].split(',').next().unwrap().to_string()).collect()
        };
        assert_eq!(across(&named("cost-macs")).len(), 1, "{:?}", across(&named("cost-macs")));
        assert!(summary.points.iter().filter(|point| point.baseline).count() == 2);
        let dashed: BTreeSet<&str> =
            SERIES_NAMES.into_iter().filter(|name| named("axis-operator").contains(name)).collect();
        assert_eq!(dashed.len(), 2, "both baselines are in the legend");
    }

    const SERIES_NAMES: [&str; 2] = ["width=1 plain", "width=2 plain"];

    #[test]
    fn a_sweep_has_a_plot_of_each_kind() {
        let figures = figures(GRID);
        let names: Vec<&str> = figures.iter().map(|figure| figure.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "axis-operator",
                "axis-operator_bypass",
                "cost-parameters",
                "cost-macs",
                "cost-expanded-macs",
                "cost-seconds",
                "training-1-top1",
                "training-1-loss",
                "forms"
            ]
        );
        let by_name = |name: &str| figures.iter().find(|figure| figure.name == name).unwrap();
        // Two series of two points, each with an error bar, and the marks of the published values;
        // the baseline is a dashed line.
        let axis = by_name("axis-operator_bypass").file();
        for words in ["bypass=true", "bypass=false", "maconv", "mdconv", "plain", "published"] {
            assert!(axis.contains(&format!(">\n{words}")), "{words}: {axis}");
        }
        // Five points in five colours, each with a line and a band.
        let training = by_name("training-1-top1");
        assert_eq!(count(training, "<polygon"), 5);
        assert!(training.file().contains("mdconv bypass=false"));
        assert_eq!(count(by_name("forms"), "100.00"), 0);
        assert_eq!(count(by_name("forms"), "99.99"), 5);
    }

    #[test]
    fn an_axis_of_numbers_is_a_line() {
        let figures = figures("{axes: {operator.intermediate: [2, 4, 8, 32]}, seeds: 2}");
        let axis = figures.iter().find(|figure| figure.name == "axis-operator_intermediate").unwrap();
        assert!(count(axis, "<polyline") > 0 && axis.title.contains("operator.intermediate"), "{}", axis.title);
    }

    #[test]
    fn many_points_make_several_figures_and_no_series_without_a_colour() {
        let widths = (1..=20).map(|width| width.to_string()).collect::<Vec<_>>().join(", ");
        let figures = figures(&format!("{{axes: {{net.width: [{widths}], operator.bypass: [true, false]}}}}"));
        let training = figures.iter().filter(|figure| figure.name.ends_with("top1")).count();
        assert_eq!(training, 5, "forty points, eight at a time");
        let axis = figures.iter().find(|figure| figure.name == "axis-operator_bypass").unwrap();
        assert!(axis.note.contains("8 of 20"), "{}", axis.note);
    }

    #[test]
    fn without_results_there_is_no_plot() {
        let (_folder, store, _) = started(GRID);
        assert!(sections(&Summary::read(&store).unwrap()).unwrap().is_empty());
    }

    #[test]
    fn the_folder_holds_the_plots_of_the_last_report_alone() {
        let (folder, store) = finished(GRID);
        let sections = sections(&Summary::read(&store).unwrap()).unwrap();
        let figures: Vec<&Figure> = sections.iter().flat_map(|section| &section.figures).collect();
        let plots = folder.path().join("plots");
        write(&plots, &figures).unwrap();
        std::fs::write(plots.join("notes.txt"), "mine").unwrap();
        write(&plots, &figures[..1]).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(&plots)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        assert_eq!(names, ["axis-operator.png", "axis-operator.svg", "notes.txt"]);
    }
}
