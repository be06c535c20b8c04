//! `--try`: the weights of a model read otherwise, where top-1 says that they were read wrong.

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

/// Images on which a reading is tried.
const IMAGES: usize = 2000;

/// Points of top-1 by which a reading is better: above the noise of that number of images.
const GAIN: f64 = 1.;

/// Facts that are changed one upon the other.
const DEEPEST: usize = 3;

/// What `--try` found.
#[derive(Serialize)]
pub struct Tried {
    /// Images that each reading saw.
    images: usize,
    /// Top-1 as the model was read, percent.
    top1: f64,
    /// Each reading that differs in one fact, the best first.
    readings: Vec<Row>,
    /// The best of all, where one is better than the model as it was read.
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
    /// What `import` is told for it.
    flags: Vec<String>,
}

/// Whether a top-1, in percent, is hardly better than guessing.
fn is_near_chance(top1: f64, classes: i64) -> bool {
    let chance = 100. / classes as f64;
    top1 < chance + chance.min(10.)
}

/// Says to try, where top-1 is near chance.
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

/// Reads the weights in all other ways that fit: first each fact by itself, then more upon the best.
///
/// # Errors
/// Where an image can't be read.
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

/// Orders scores: by top-1, and where that is equal by the loss.
fn key(scores: &Evaluation) -> (f64, f64) {
    (scores.top1, -scores.loss)
}

/// Prints it as text.
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
