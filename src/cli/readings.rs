//! `--try`: evaluation of alternative readings of a model's weights, for models whose low top-1
//! suggests that the weights were read wrong.

use super::output::print;
use crate::data::batch::Batches;
use crate::data::dataset::Images;
use crate::model::readings::{self, Reading};
use crate::model::{About, Model};
use crate::net::Built;
use crate::text::{align_right, table};
use crate::train::evaluate::{Evaluation, evaluate_some};
use crate::{note, say};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;
use std::slice::from_ref;
use tch::Device;

/// Maximum number of images on which a reading is evaluated.
const IMAGES: usize = 2000;

/// Gain in top-1, in percentage points, above which a reading counts as better. The gain exceeds
/// the noise of [`IMAGES`] images.
const GAIN: f64 = 1.;

/// Maximum number of facts that are changed together.
const DEEPEST: usize = 3;

/// Result of `--try`.
#[derive(Serialize)]
pub struct Tried {
    /// Number of images on which each reading was evaluated.
    images: usize,
    /// Top-1 of the model as it was read, in percent.
    top1: f64,
    /// All readings that differ from the model in one fact, the best first.
    readings: Vec<Row>,
    /// The best reading; None if none is better than the model as it was read.
    best: Option<Best>,
}

#[derive(Serialize)]
struct Row {
    fact: String,
    top1: f64,
}

#[derive(Serialize)]
struct Best {
    facts: Vec<String>,
    top1: f64,
    /// Flags of `foldconv import` that give this reading.
    flags: Vec<String>,
}

/// Whether a top-1, in percent, is hardly better than guessing.
fn is_near_chance(top1: f64, classes: i64) -> bool {
    let chance = 100. / classes as f64;
    top1 < chance + chance.min(10.)
}

/// Prints a note that suggests `--try` if top-1 is near chance.
pub fn hint(top1: f64, model: &Model, file: &Path) {
    let classes = model.about.config.data.spec().classes;
    if is_near_chance(top1, classes) {
        note!(
            "{}: a top-1 of {top1:.2} % is near chance ({:.2} %): weights that were trained elsewhere may be read wrong; --try tries \
             what a state dict does not say (docs/import.md)",
            file.display(),
            100. / classes as f64
        );
    }
}

/// Evaluates all other readings of the weights that fit: first those that differ in one fact, then
/// those that differ in further facts from the best so far.
///
/// # Errors
/// An error if an image can't be read.
pub fn try_all(model: &Model, images: &Images, device: Device) -> Result<Tried> {
    let score = |about: &About, network: &Built| {
        let batches = Batches::test(images, &about.config.data.augment(), &about.normalisation, device);
        evaluate_some(network, &batches, IMAGES)
    };
    let first = score(&model.about, &model.build(device)?)?;
    let (mut readings, mut chosen, mut best) = (Vec::new(), Vec::<Reading>::new(), first);
    while chosen.len() < DEEPEST {
        let base = chosen.last().map_or(&model.about, |reading| &reading.about);
        let mut better = None;
        for reading in readings::others(base) {
            let is_settled = chosen.iter().any(|earlier| earlier.key == reading.key);
            let Some(network) = reading.build(model, device).filter(|_| !is_settled) else { continue };
            let scores = score(&reading.about, &network)?;
            let facts = chosen.iter().chain(from_ref(&reading)).map(|reading| &*reading.fact);
            note!("{:6.2} %  {}", scores.top1, facts.collect::<Vec<_>>().join(", "));
            if chosen.is_empty() {
                readings.push(Row { fact: reading.fact.clone(), top1: scores.top1 });
            }
            let than = better.as_ref().map_or((best.top1 + GAIN, 0.), |(_, scores): &(_, Evaluation)| key(scores));
            if key(&scores) > than {
                better = Some((reading, scores));
            }
        }
        let Some((reading, scores)) = better else { break };
        chosen.push(reading);
        best = scores;
    }
    readings.sort_by(|a, b| b.top1.total_cmp(&a.top1));
    let best = chosen.last().map(|last| Best {
        facts: chosen.iter().map(|reading| reading.fact.clone()).collect(),
        top1: best.top1,
        flags: readings::flags(&model.about, &last.about),
    });
    Ok(Tried { images: IMAGES.min(images.len() as usize), top1: first.top1, readings, best })
}

/// Returns a key that orders evaluations by top-1 and, if that is equal, by loss.
fn key(scores: &Evaluation) -> (f64, f64) {
    (scores.top1, -scores.loss)
}

/// Prints the result as text.
pub fn print_text(tried: &Tried) -> Result<()> {
    let Tried { images, top1, readings, best } = tried;
    let mut rows = table(["read otherwise", "top-1"]);
    rows.add_row(["as it is".to_string(), format!("{top1:.2} %")]);
    rows.add_rows(readings.iter().map(|Row { fact, top1 }| [fact.clone(), format!("{top1:.2} %")]));
    align_right(&mut rows, 1..2);
    print(&rows)?;
    match best {
        Some(Best { facts, top1, flags }) => say!(
            "best on {images} images: {} with {top1:.2} %; import it again with {}",
            facts.join(", "),
            flags.join(" ")
        ),
        None => say!("on {images} images none is better than the model as it is"),
    }
}
