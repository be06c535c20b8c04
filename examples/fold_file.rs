//! Folds a model file and compares the outputs of both forms: `cargo run --example fold_file --
//! MODEL COMPACT`.
//!
//! Without arguments, the example folds a small network with initial values.

use anyhow::Result;
use foldconv::config::{Config, named};
use foldconv::data::augment::normalise::Normalisation;
use foldconv::fold::Agreement;
use foldconv::model::{About, Model};
use foldconv::net::Form;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// Returns a small untrained model.
fn untrained() -> Result<Model> {
    let keys = named("--config", "{data: {name: shapes}, net: {name: smallnet}, operator: {name: mdconv}}")?;
    let config = Config::new(&keys, "fold_file")?;
    let tensors = config.build(Form::Expanded, Device::Cpu)?.store.variables();
    let normalisation = Normalisation { mean: vec![0.; 3], std: vec![1.; 3] };
    let about = About::new(Form::Expanded, config, normalisation, Vec::new());
    Ok(Model { about, tensors })
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let model = match arguments.first() {
        Some(file) => Model::load(Path::new(file))?,
        None => untrained()?,
    };
    let compact = model.fold()?;
    let [before, after] = [model.build(Device::Cpu)?, compact.build(Device::Cpu)?];
    let spec = model.about.config.data.spec();
    let images = Tensor::randn([16, spec.channels, spec.size, spec.size], (Kind::Float, Device::Cpu));
    let mut agreement = Agreement::default();
    tch::no_grad(|| {
        agreement.add(&before.network.forward_t(&images, false), &after.network.forward_t(&images, false))
    })?;
    println!(
        "{} parameters, {} before; {} of {} predictions agree, the logits to {:.1e} of the largest",
        after.parameters(),
        before.parameters(),
        agreement.same,
        agreement.images,
        agreement.relative_difference()
    );
    if let Some(file) = arguments.get(1) {
        compact.save(Path::new(file))?;
    }
    Ok(())
}
