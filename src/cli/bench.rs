//! `foldconv bench`: benchmarks of training, of forward passes, of batches, of operators and of
//! imports.

mod latency;

use super::import::classes;
use super::output::{json, print};
use super::values::{between, whole};
use super::{FromConfig, Machine};
use crate::algebra::Geometry;
use crate::bench::data::data_speed;
use crate::bench::op::{Cost, Shape, costs};
use crate::bench::train::{TrainSpeed, train_speed};
use crate::config::{self, Config, Mapping, Value};
use crate::model::import::{ImportPlan, read_map};
use crate::net::Built;
use crate::net::Form;
use crate::op::compact::per_sample::CompactAlgorithm;
use crate::op::{OperatorConfig, Resolved};
use crate::sweep::plan::axes::label;
use crate::text::{align_right, table};
use crate::timing;
use crate::train::algorithm::summary;
use crate::weights::pytorch::Checkpoint;
use crate::weights::state_dict::StateDict;
use crate::{bad_request, note, say};
use anyhow::Result;
use clap::{Args, Subcommand};
use comfy_table::Table;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tch::Device;

#[derive(Debug, Args)]
pub struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Measure training: images per second with data loading, time of each phase, memory, and the
    /// least time of a step
    Train(TrainOptions),
    /// Measure the milliseconds of a forward pass of a model before and after its fold
    Latency(latency::Options),
    /// Measure how many images per second the training batches yield by themselves
    Data(DataOptions),
    /// Measure the cost of operators, as multiples of the plain convolution
    Op(OpOptions),
    /// Measure the seconds that reading a PyTorch file into a network takes
    Import(ImportOptions),
}

#[derive(Debug, Args)]
struct ImportOptions {
    /// PyTorch file, written by torch.save or safetensors
    file: PathBuf,
    /// Network, as resnet50 or '{name: mobilenet_v2, width: 0.35}'
    #[arg(long, value_name = "NAME|YAML")]
    net: String,
    /// Data set whose images the network takes [default: external, with as many classes as the
    /// file]
    #[arg(long, value_name = "NAME|YAML")]
    data: Option<String>,
    /// Keys that lead to the state dict in the file, as ema.state_dict [default: the usual keys]
    #[arg(long, value_name = "KEY.KEY")]
    key: Option<String>,
    /// YAML list of {from: REGEX, to: TEXT} and {drop: REGEX}, applied to the names in the file
    #[arg(long, value_name = "FILE")]
    map: Option<PathBuf>,
    /// Number of times that the file is read; the median time is reported
    #[arg(long, default_value_t = 1, value_parser = whole::<u16>(1..=65535))]
    rounds: u16,
}

#[derive(Debug, Args)]
struct OpOptions {
    /// Operators, by name or as YAML like '{name: tbc, blocks: 4}' [default: all]
    #[arg(value_name = "OPERATOR")]
    operators: Vec<String>,
    /// Number of input channels and of output channels
    #[arg(long, default_value_t = 64, value_parser = whole::<i64>(1..=65536))]
    channels: i64,
    /// Number of channel groups
    #[arg(long, default_value_t = 1, value_parser = whole::<i64>(1..=65536))]
    groups: i64,
    /// Kernel sizes to measure
    #[arg(long, value_delimiter = ',', default_values_t = [3, 1], value_parser = whole::<i64>(1..=255))]
    kernel: Vec<i64>,
    /// Height and width of the input
    #[arg(long, default_value_t = 16, value_parser = whole::<i64>(1..=4096))]
    size: i64,
    /// Batch sizes to measure, in images
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64], value_parser = whole::<i64>(1..=65536))]
    batch: Vec<i64>,
    /// Number of rounds whose median is reported; in each round the operator and the plain
    /// convolution take turns
    #[arg(long, default_value_t = 21, value_parser = whole::<u16>(1..=65535))]
    rounds: u16,
}

#[derive(Debug, Args)]
struct DataOptions {
    #[command(flatten)]
    from: FromConfig,
    /// Seconds to measure, after a warm-up of a tenth of that time
    #[arg(long, default_value_t = 3., value_parser = between(0.01..=86400.))]
    seconds: f64,
}

#[derive(Debug, Args)]
struct TrainOptions {
    #[command(flatten)]
    from: FromConfig,
    /// Number of steps measured whole; as many more are measured phase by phase
    #[arg(long, default_value_t = 50, value_parser = whole::<u64>(1..=1_000_000))]
    steps: u64,
    /// Number of warm-up steps that aren't measured
    #[arg(long, default_value_t = 10, value_parser = whole::<u64>(0..=1_000_000))]
    warmup: u64,
}

pub fn run(options: &Options, machine: &Machine, as_json: bool) -> Result<()> {
    let device = machine.prepare()?;
    match &options.what {
        What::Train(options) => train(options, device, as_json),
        What::Latency(options) => latency::run(options, device, as_json),
        What::Data(options) => data(options, device, as_json),
        What::Op(options) => operators(options, device, as_json),
        What::Import(options) => import(options, as_json),
    }
}

/// Measures imports: opens the file, finds its state dict, matches its names and reads its tensors,
/// each time into the same network. The network is built before and not timed.
fn import(options: &ImportOptions, as_json: bool) -> Result<()> {
    let map = options.map.as_deref().map(read_map).transpose()?.unwrap_or_default();
    let find = |checkpoint: &Checkpoint, built: &Built| {
        StateDict::find(checkpoint, &options.file, options.key.as_deref(), &map, &|| Ok(built.names()))
    };
    let data = options.data.as_ref().map(|data| config::named("--data", data)).transpose()?;
    let mut config = options.config_on(data.unwrap_or(config::named("--data", "external")?))?;
    let mut built = config.build(Form::Expanded, Device::Cpu)?;
    if options.data.is_none()
        && let Some(classes) = classes(&find(&Checkpoint::open(&options.file)?, &built)?)
    {
        config = options.config_on(config::named("--data", &format!("{{name: external, classes: {classes}}}"))?)?;
        built = config.build(Form::Expanded, Device::Cpu)?;
    }
    let mut times = Vec::new();
    for _ in 0..options.rounds {
        let clock = Instant::now();
        let checkpoint = Checkpoint::open(&options.file)?;
        let state = find(&checkpoint, &built)?;
        let plan = ImportPlan::of(built, Form::Expanded, &config, &state);
        if !plan.pairing.problems.is_empty() {
            bad_request!(
                "{}: does not fit {}: {}; --data is the data set that it is of, --map changes its names",
                options.file.display(),
                config.net.name(),
                plan.pairing.counts()
            );
        }
        plan.read(&checkpoint, &state)?;
        times.push(clock.elapsed());
        built = plan.built;
    }
    let seconds = timing::median(&mut times).as_secs_f64();
    if as_json {
        return json(&serde_json::json!({"seconds": seconds, "rounds": options.rounds}));
    }
    say!("{seconds:.4} s, median of {}", options.rounds)?;
    Ok(())
}

impl ImportOptions {
    fn config_on(&self, data: Mapping) -> Result<Config> {
        let net = config::named("--net", &self.net)?;
        Config::new(
            &Mapping::from_iter([("net".into(), Value::from(net)), ("data".into(), data.into())]),
            "command line",
        )
    }
}

fn train(options: &TrainOptions, device: Device, as_json: bool) -> Result<()> {
    let config = options.from.document()?.config()?;
    let speed = train_speed(&config, device, options.warmup, options.steps)?;
    if as_json {
        return json(&speed);
    }
    print_training(&speed)?;
    Ok(())
}

fn print_training(speed: &TrainSpeed) -> Result<()> {
    let TrainSpeed { images_per_second, step_seconds, phases, steps, batch, algorithms, floor, .. } = speed;
    let ms = |seconds: f64| format!("{:.2} ms", 1e3 * seconds);
    say!("{images_per_second:.0} images/s ({} a step of {batch} images; medians of {steps})", ms(*step_seconds))?;
    say!(
        "waiting for data {} ({:.2} %), forward {}, backward {}, optimizer {}",
        ms(phases.data_seconds),
        1e2 * phases.data_seconds / step_seconds,
        ms(phases.forward_seconds),
        ms(phases.backward_seconds),
        ms(phases.optimizer_seconds),
    )?;
    if !algorithms.is_empty() {
        say!("sites with several ways to compute their training: {}", summary(algorithms))?;
    }
    if let Some(bytes) = speed.peak_memory_bytes {
        say!("at most {:.0} MB of memory above what was there before the first step", bytes as f64 / 1e6)?;
    }
    if speed.waits > 0 {
        say!("{} operations of a step wait for the device", speed.waits)?;
    }
    let (bandwidth, rate) = (floor.rates.bytes_per_second, floor.rates.flops_per_second);
    say!(
        "{:.2} times the floor of {}: {:.3} GB at {:.1} GB/s and {:.2} GFLOP at {:.0} GFLOP/s, measured here",
        speed.over_floor,
        ms(floor.seconds),
        floor.bytes as f64 / 1e9,
        bandwidth / 1e9,
        floor.flops as f64 / 1e9,
        rate / 1e9,
    )?;
    Ok(())
}

fn data(options: &DataOptions, device: Device, as_json: bool) -> Result<()> {
    let config = options.from.document()?.config()?;
    let speed = data_speed(&config, device, Duration::from_secs_f64(options.seconds))?;
    if as_json {
        return json(&speed);
    }
    say!(
        "{:.0} images/s ({} images in batches of {}, {} threads)",
        speed.images_per_second,
        speed.images,
        speed.batch,
        speed.threads
    )?;
    Ok(())
}

fn operators(options: &OpOptions, device: Device, as_json: bool) -> Result<()> {
    let OpOptions { channels, groups, size, rounds, .. } = *options;
    if channels % groups != 0 {
        bad_request!("--groups {groups}: does not divide the {channels} channels");
    }
    let operators = match &*options.operators {
        [] => OperatorConfig::NAMES.iter().map(|name| operator(name)).collect::<Result<Vec<_>>>()?,
        names => names.iter().map(|name| operator(name)).collect::<Result<Vec<_>>>()?,
    };
    let mut all = Vec::new();
    for kernel in &options.kernel {
        let geometry = Geometry::same(channels, channels, *kernel).groups(groups);
        for (label, operator) in &operators {
            for batch in &options.batch {
                let shape = Shape { geometry, size, batch: *batch, rounds: rounds.into() };
                note!("{label}: {kernel}x{kernel}, batch {batch}");
                all.extend(costs(label, operator, shape, device)?);
            }
        }
    }
    if as_json {
        return json(&all);
    }
    for kernel in &options.kernel {
        let of_kernel: Vec<&Cost> = all.iter().filter(|cost| cost.shape.geometry.kernel == [*kernel; 2]).collect();
        say!("{kernel}x{kernel}, {channels} -> {channels} channels, {groups} groups, {size}x{size}:")?;
        print(&cost_table(&of_kernel, &options.batch))?;
    }
    Ok(())
}

/// Parses an operator's name or YAML; returns its label and the resolved operator.
fn operator(text: &str) -> Result<(String, Resolved<OperatorConfig>)> {
    // RepLK's default has no kernel larger than the convolution's, so a size is given here.
    let text = if text == "replk" { "{name: replk, kernel: 13}" } else { text };
    let name = label(&Value::Mapping(config::named("operator", text)?));
    let operator = config::operator(text)?;
    if operator.shares() {
        bad_request!("{name}: what a block shares is not measured on an operator by itself; leave `shared` out");
    }
    Ok((name, operator))
}

/// Builds a table with one row per operator and algorithm of its compact form, and three columns
/// per batch size.
fn cost_table(costs: &[&Cost], batches: &[i64]) -> Table {
    let columns =
        batches.iter().flat_map(|batch| ["train", "expanded", "compact"].map(|what| format!("{what}, {batch}")));
    let mut rows = table(std::iter::once("operator".to_string()).chain(columns));
    let mut names: Vec<(&str, CompactAlgorithm)> = Vec::new();
    for cost in costs {
        let name = (&*cost.operator, cost.algorithm);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    for (name, algorithm) in names {
        let of = |batch: i64| {
            let found = costs
                .iter()
                .find(|cost| (&*cost.operator, cost.algorithm, cost.shape.batch) == (name, algorithm, batch));
            found.map_or(["", "", ""].map(String::from), |cost| {
                [cost.train, cost.expanded, cost.compact].map(|ratio| format!("{ratio:.2}"))
            })
        };
        let how = if algorithm == CompactAlgorithm::Features { ", features" } else { "" };
        rows.add_row(std::iter::once(format!("{name}{how}")).chain(batches.iter().flat_map(|batch| of(*batch))));
    }
    align_right(&mut rows, 1..1 + 3 * batches.len());
    rows
}
