//! Benchmark of a report on a thousand finished trials of 200 epochs: `make bench-report`. The
//! results are made up, not trained.

use anyhow::Result;
use foldconv::config::{Document, Mapping};
use foldconv::report;
use foldconv::report::plot;
use foldconv::report::summary::Summary;
use foldconv::sweep::plan::Plan;
use foldconv::sweep::store::Store;
use foldconv::train::result::{FoldResult, FormResult, TrialResult};
use std::path::Path;
use std::time::Instant;

const SWEEP: &str = "{axes: {net: [{name: smallnet}, {name: mobilenet_v2, width: 0.35, stem: cifar}],
    operator: [{name: maconv}, {name: mdconv}], operator.bypass: [true, false],
    operator.intermediate: [2, 4, 5, 8, 10, 16, 20, 32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120, 128, 136, 144, 152, 160, 168]},
    seeds: 5}";
const EPOCHS: u64 = 200;

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let clock = Instant::now();
    let store = fabricate(folder.path())?;
    println!("made up in {:.2} s", clock.elapsed().as_secs_f64());

    let clock = Instant::now();
    let summary = Summary::read(&store)?;
    println!(
        "{} trials of {} points read in {:.2} s",
        summary.finished,
        summary.points.len(),
        clock.elapsed().as_secs_f64()
    );
    let clock = Instant::now();
    let figures: usize = plot::sections(&summary)?.iter().map(|section| section.figures.len()).sum();
    println!("{figures} figures drawn in {:.2} s", clock.elapsed().as_secs_f64());
    for what in ["first", "second"] {
        let clock = Instant::now();
        let written = report::make(store.root())?;
        let page = std::fs::metadata(&written.html)?.len();
        println!("{what} report in {:.2} s, a page of {:.1} MB", clock.elapsed().as_secs_f64(), page as f64 / 1e6);
    }
    Ok(())
}

fn fabricate(root: &Path) -> Result<Store> {
    let trial: Mapping =
        serde_yaml::from_str("{data: {name: cifar10}, net: {name: smallnet}, operator: {name: maconv}}")?;
    let document =
        Document { trial, sweep: serde_yaml::from_str(SWEEP)?, origin: "thousand.yaml".into(), ..Document::default() };
    let plan = Plan::of_checked(&document)?;
    let store = Store::at(&root.join("thousand"))?;
    store.start(&document, &plan)?;
    for (at, (_, trial)) in plan.trials().into_iter().enumerate() {
        let top1 = 70. + (at / 5) as f64 / 10. + (at * 7 % 5) as f64 / 4.;
        let form = FormResult { top1, top5: 98., loss: 0.6, parameters: 5000 + at as i64, macs: 1_000_000 + at as i64 };
        let result = TrialResult {
            ema: None,
            hash: trial.hash.clone(),
            seed: trial.config.seed,
            epochs: EPOCHS,
            steps: 391 * EPOCHS,
            train_loss: 0.4,
            expanded: form.clone(),
            compact: Some(form),
            validation: None,
            fold: FoldResult::Verified { agreement: 100., largest_difference: 1e-5, relative_difference: 3e-7 },
            seconds: 1000.,
            version: "0".into(),
            device: "cpu".into(),
            threads: 2,
        };
        let folder = store.trial(&trial.hash);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("result.json"), serde_json::to_vec_pretty(&result)?)?;
        let mut metrics = "epoch,lr,train_loss,test_loss,top1,top5,images_per_second,seconds\n".to_string();
        for epoch in 1..=EPOCHS {
            let done = epoch as f64 / EPOCHS as f64;
            let (loss, top1) = (2.3 - 1.8 * done.sqrt(), top1 * done.powf(0.3));
            metrics += &format!("{epoch},0.1,{},{loss},{top1},95.5,1234.5678,{}\n", loss - 0.1, epoch * 5);
        }
        std::fs::write(folder.join("metrics.csv"), metrics)?;
    }
    Ok(store)
}
