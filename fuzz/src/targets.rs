//! Readers of the fuzz targets.

use super::judged;
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use foldconv::config::{self, Document};
use foldconv::data::cifar::Cifar100Config;
use foldconv::data::dataset::Source;
use foldconv::data::{mnist, svhn};
use foldconv::graph::{Graph, pt2 as exported};
use foldconv::model::Model;
use foldconv::model::import::{read_map, table};
use foldconv::onnx as onnx_files;
use foldconv::report;
use foldconv::report::latency::Latency;
use foldconv::sweep::plan::axes::SweepKeys;
use foldconv::sweep::plan::prune;
use foldconv::sweep::plan::{Plan, Trial};
use foldconv::sweep::slurm::jobs::Jobs;
use foldconv::sweep::store::Store;
use foldconv::train::metrics;
use foldconv::train::progress::Status;
use foldconv::weights::pairing::{Aliases, Pairing, Theirs};
use foldconv::weights::pytorch::{Buffer, Checkpoint};
use foldconv::weights::state_dict::{NameMap, StateDict};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Maximum number of tensors of one file whose data are read; each tensor may be as large as the
/// file.
const MOST_READ: usize = 64;
/// Maximum number of trials of a sweep that is planned; a user may legitimately request more.
const MOST_POINTS: usize = 64;

thread_local! {
    /// Temporary folder for the files; each target rewrites the same few files.
    static FOLDER: TempDir = tempfile::tempdir().expect("a temporary folder");
}

fn folder() -> PathBuf {
    FOLDER.with(|folder| folder.path().to_path_buf())
}

/// Writes a file in the temporary folder.
fn put(name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder().join(name);
    if !path.exists() {
        std::fs::create_dir_all(path.parent().expect("a folder above")).expect("a folder");
    }
    std::fs::write(&path, bytes).expect("a written file");
    path
}

/// Writes a file with constant content, unless the file exists.
fn keep(name: &str, content: impl FnOnce() -> Vec<u8>) {
    if !folder().join(name).exists() {
        put(name, &content());
    }
}

/// Splits off the first byte, which chooses among `of` formats of the remaining bytes.
fn choice(bytes: &[u8], of: u8) -> (u8, &[u8]) {
    bytes.split_first().map_or((0, bytes), |(first, rest)| (first % of, rest))
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(bytes).expect("written to memory");
    encoder.finish().expect("written to memory")
}

/// Fuzzes the reader of `foldconv import`: zip, tar and pickle streams of torch.save, TorchScript,
/// safetensors.
pub fn checkpoint(bytes: &[u8]) {
    let path = put("checkpoint", bytes);
    let Some(checkpoint) = judged(Checkpoint::open(&path)) else { return };
    let expected = || Ok(BTreeSet::from(["stem.conv.weight".to_string()]));
    let found = StateDict::find(&checkpoint, &path, None, &NameMap::default(), &expected);
    let Some(state) = judged(found) else { return };
    let theirs = state.tensors.iter().map(|(name, tensor)| {
        let (size, unfit) = tensor.as_ref().map_or((Vec::new(), Some(String::new())), |t| (t.size.clone(), None));
        Theirs { name: name.clone(), size, unfit }
    });
    let ours = ["stem.conv.weight", "stem.bn.bias", "classifier.weight"].map(|name| (name.to_string(), vec![4, 3]));
    let pairing = Pairing::new(&BTreeMap::from(ours), &theirs.collect::<Vec<_>>(), &Aliases::default());
    assert!(!table(&pairing).is_empty());
    let mut buffer = Buffer::default();
    for tensor in state.tensors.iter().filter_map(|(_, tensor)| tensor.as_ref().ok()).take(MOST_READ) {
        if let Some(size) = judged(checkpoint.read(tensor, &mut buffer, |numbers| numbers.size())) {
            assert_eq!(size, tensor.size);
        }
    }
}

/// Fuzzes the reader of foldconv's model files. The tensor data are in libtorch's memory and must
/// not be larger than the file.
pub fn model(bytes: &[u8]) {
    let Some(model) = judged(Model::load(&put("model", bytes))) else { return };
    let numbers = |tensor: &tch::Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    assert!(model.tensors.values().map(numbers).sum::<usize>() <= bytes.len());
}

/// Fuzzes the CIFAR-100 readers: the images of either format, the class names, and an archive, with
/// the bytes as the archive or as the packed content.
pub fn cifar(bytes: &[u8]) {
    let (form, bytes) = choice(bytes, 5);
    let record = || [vec![1, 2], vec![7; 3072]].concat();
    keep("binary/cifar-100-binary/train.bin", record);
    keep("binary/cifar-100-binary/test.bin", record);
    let root = match form {
        0 => put("images/cifar-100-binary/train.bin", bytes).with_file_name(""),
        1 => put("python/cifar-100-python/train", bytes).with_file_name(""),
        2 => put("binary/cifar-100-binary/fine_label_names.txt", bytes).with_file_name(""),
        3 => put("packed/cifar-100-binary.tar.gz", &gzip(bytes)),
        _ => put("archive/cifar-100-python.tar.gz", bytes),
    };
    judged(Cifar100Config {}.load(Some(&root)));
}

/// Fuzzes the reader of SVHN's MATLAB files, with the bytes as the file or as its compressed
/// content.
pub fn svhn(bytes: &[u8]) {
    let (packed, bytes) = choice(bytes, 2);
    let mut file = Vec::new();
    if packed == 1 {
        let mut encoder = ZlibEncoder::new(Vec::new(), Compression::none());
        encoder.write_all(bytes).expect("written to memory");
        let data = encoder.finish().expect("written to memory");
        file =
            [&[b' '; 124][..], b"\x00\x01IM", &15u32.to_le_bytes(), &(data.len() as u32).to_le_bytes(), &data].concat();
    }
    let path = put("svhn/train_32x32.mat", if packed == 1 { &file } else { bytes });
    judged(svhn::Config::default().load(path.parent()));
}

/// Fuzzes the reader of MNIST's idx files: images or labels, plain or compressed.
pub fn mnist(bytes: &[u8]) {
    let (form, bytes) = choice(bytes, 3);
    let word = |n: u32| n.to_be_bytes();
    let images = || [&[0, 0, 8, 3][..], &word(2), &word(28), &word(28), &[9; 2 * 784]].concat();
    let labels = || [&[0, 0, 8, 1][..], &word(2), &[3, 4]].concat();
    keep("labels/t10k-images-idx3-ubyte", images);
    keep("labels/train-images-idx3-ubyte", images);
    keep("labels/t10k-labels-idx1-ubyte", labels);
    let path = match form {
        0 => put("images/train-images-idx3-ubyte", bytes),
        1 => put("labels/train-labels-idx1-ubyte", bytes),
        _ => put("packed/train-images-idx3-ubyte.gz", &gzip(bytes)),
    };
    judged(mnist::MnistConfig {}.load(path.parent()));
}

/// Splits the bytes at zero bytes into the content of a file and further texts.
fn pieces(bytes: &[u8]) -> (&[u8], Vec<String>) {
    let mut pieces = bytes.split(|byte| *byte == 0);
    let file = pieces.next().unwrap_or_default();
    (file, pieces.map(|piece| String::from_utf8_lossy(piece).into_owned()).collect())
}

/// Fuzzes the reader of a trial's or a sweep's YAML file, followed by `--set` values.
pub fn config(bytes: &[u8]) {
    let (file, overrides) = pieces(bytes);
    for text in &overrides {
        judged(config::operator(text));
        judged(config::data_section("shapes", std::slice::from_ref(text)));
    }
    let Some(document) = judged(Document::read(&put("config.yaml", file), &overrides)) else { return };
    if let Some(config) = judged(document.config()) {
        // The config saved with a trial reads back as the same trial.
        let saved = config.to_yaml();
        let again = Document::read(&put("saved.yaml", saved.as_bytes()), &[]).and_then(|document| document.config());
        assert_eq!(again.map(|config| config.hash()).ok(), Some(config.hash()), "{saved}");
    }
    let Some(keys) = judged(SweepKeys::read(&document)) else { return };
    let points = keys.axes.iter().map(|axis| axis.values.len().max(1)).fold(1, usize::saturating_mul);
    if points.saturating_mul(keys.seeds.map_or(1, |seeds| seeds.len())) <= MOST_POINTS {
        judged(Plan::of_checked(&document));
    }
}

/// Fuzzes a name map, followed by names that the map is applied to.
pub fn names(bytes: &[u8]) {
    let (file, names) = pieces(bytes);
    let Some(map) = judged(read_map(&put("map.yaml", file))) else { return };
    for name in &names {
        judged(map.apply(name));
    }
}

/// Returns a sweep with one trial, without state or results, and that trial.
fn started(name: &str) -> (Store, Trial) {
    const SWEEP: &str = "{data: {name: shapes}, net: {name: smallnet}, axes: {operator.name: [maconv]}, seeds: 1}";
    keep(&format!("{name}/sweep.yaml"), || SWEEP.into());
    let store = Store::open(&folder().join(name)).expect("the sweep");
    let plan = Plan::of_checked(&store.document().expect("its file")).expect("its plan");
    (store, plan.points[0].trials[0].clone())
}

/// Fuzzes the state files of a sweep, one at a time.
pub fn sweep(bytes: &[u8]) {
    let (file, bytes) = choice(bytes, 7);
    let (store, planned) = started("sweep");
    let hash = planned.hash.clone();
    let trial = store.trial(&hash);
    let place =
        |name: &str| put(trial.join(name).strip_prefix(folder()).expect("below").to_str().expect("text"), bytes);
    match file {
        0 => {
            place("state.json");
            let record = store.record(&hash);
            assert!(store.state(&hash).to_string().len() < 20, "{record:?}");
        }
        1 => {
            let path = place("result.json");
            judged(store.result(&planned));
            std::fs::remove_file(path).expect("it is there");
        }
        2 => {
            place("progress.json");
            Status::read(&trial).map(|status| status.to_string());
        }
        3 => {
            place("metrics.csv");
            prune::Curves::default().update(&hash, &store.trial(&hash));
            judged(metrics::read(&trial)).map(|rows| report::curves::Curves::of(&[rows]));
        }
        4 => drop(judged(Jobs::read(
            put("sweep/slurm/jobs.json", bytes).parent().and_then(Path::parent).expect("above"),
        ))),
        5 => {
            let path = put("sweep/latency.json", bytes);
            judged(Latency::read(&store)).flatten().map(|latency| latency.place());
            std::fs::remove_file(path).expect("it is there");
        }
        _ => {
            let root = put("other/sweep.yaml", bytes);
            let Some(store) = judged(Store::open(&root.with_file_name(""))) else { return };
            judged(store.name());
            judged(store.document());
        }
    }
}

/// Fuzzes the tables, plots and page of a report on a finished trial with arbitrary numbers.
pub fn report(bytes: &[u8]) {
    let (store, Trial { hash, .. }) = started("report");
    let mut numbers = bytes.as_chunks().0.iter().map(|bytes| f64::from_le_bytes(*bytes));
    let mut number = || numbers.next().filter(|number| number.is_finite()).unwrap_or(1.);
    let mut form = || {
        let (top1, top5, loss) = (number().abs() % 100., number().abs() % 100., number());
        format!(
            r#"{{"top1": {top1:?}, "top5": {top5:?}, "loss": {loss:?}, "parameters": {}, "macs": {}}}"#,
            number() as i64,
            number() as i64
        )
    };
    let (expanded, compact) = (form(), form());
    let (agreement, difference, seconds, milliseconds) = (number().abs() % 100., number(), number(), number().abs());
    let result = format!(
        r#"{{"hash": "{hash}", "seed": 0, "epochs": 3, "steps": 9, "train_loss": 1.0, "expanded": {expanded}, "compact": {compact},
        "fold": {{"agreement": {agreement:?}, "largest_difference": {difference:?}, "relative_difference": {difference:?}}},
        "seconds": {seconds:?}, "version": "0", "device": "cpu", "threads": 1}}"#
    );
    let mut metrics = "epoch,lr,train_loss,test_loss,top1,top5,images_per_second,seconds\n".to_string();
    for epoch in 1..=3 {
        metrics += &format!("{epoch},{:?},{:?},{:?},{:?},{:?},1,1\n", number(), number(), number(), number(), number());
    }
    let latency =
        format!(r#"{{"device": "cpu", "threads": 1, "milliseconds": {{"{hash}": {{"1": {milliseconds:?}}}}}}}"#);
    put(&format!("report/trials/{hash}/result.json"), result.as_bytes());
    put(&format!("report/trials/{hash}/metrics.csv"), metrics.as_bytes());
    put("report/latency.json", latency.as_bytes());
    judged(report::make(store.root()));
}

/// Fuzzes the reader of torch.export's files: the whole archive, or the JSON of its graph.
pub fn pt2(bytes: &[u8]) {
    let (form, bytes) = choice(bytes, 2);
    let path = match form {
        0 => put("whole.pt2", bytes),
        _ => {
            let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
            let stored = zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
            archive.start_file("m/models/model.json", stored).expect("written to memory");
            archive.write_all(bytes).expect("written to memory");
            put("json.pt2", &archive.finish().expect("written to memory").into_inner())
        }
    };
    judged(exported::read(&path)).iter().for_each(counted);
}

/// Fuzzes the reader of ONNX files, and the writer that replaces regions, here none.
pub fn onnx(bytes: &[u8]) {
    let Some((graph, original)) = judged(onnx_files::read(&put("fuzzed.onnx", bytes))) else { return };
    counted(&graph);
    let written = original.rewrite(&graph, &[], &folder()).expect("a file that was read can be written");
    assert!(written.len() <= bytes.len() + 16, "{} bytes of {}", written.len(), bytes.len());
    let (again, _) = onnx_files::decode(written, &folder()).expect("a file that was written can be read");
    assert_eq!(again.totals(), graph.totals());
}

/// Checks that a graph can be counted, and that its values are made before they are read.
fn counted(graph: &Graph) {
    graph.check().expect("a graph that was read is whole");
    assert!(graph.totals().convolutions >= 0);
}
