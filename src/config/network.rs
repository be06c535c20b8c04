//! The file of `net: {name: graph}`: its hash, and the layout of the network in it.

use super::{Config, Mapping, anchor};
use crate::error::one_line;
use crate::exchange::{self, Format};
use crate::net::InputSpec;
use crate::net::graph::blueprint::Blueprint;
use crate::net::graph::{self, Layout};
use crate::{bad_request, files};
use anyhow::Result;
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::SystemTime;
use tch::{Device, Kind, Tensor};

/// A file as it is now: its path, length and time of change.
type State = (PathBuf, u64, Option<SystemTime>);

/// Hashes of files that were read: each point of a sweep needs that of its file.
static HASHES: LazyLock<Mutex<BTreeMap<State, String>>> = LazyLock::new(Mutex::default);

/// The layout that was read last: a trial builds its network several times.
static LAST: Mutex<Option<(String, InputSpec, Layout)>> = Mutex::new(None);

/// Returns the SHA-256 of a file in hexadecimal digits.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the file can't be read.
pub fn sha256(path: &Path) -> Result<String> {
    let state = std::fs::metadata(path).map(|of| (path.to_path_buf(), of.len(), of.modified().ok()));
    let mut hashes = HASHES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(hash) = state.as_ref().ok().and_then(|state| hashes.get(state)) {
        return Ok(hash.clone());
    }
    let hash: String = Sha256::digest(files::read(path)?).iter().map(|byte| format!("{byte:02x}")).collect();
    hashes.extend(state.ok().map(|state| (state, hash.clone())));
    Ok(hash)
}

/// Writes the SHA-256 of the file at `key` into the keys of a section that names one. Does nothing
/// if they have it, or if the file can't be read: reading the keys as a config says so.
pub fn pin(section: &mut Mapping, key: &str) {
    let file = section.get(key).and_then(|file| file.as_str()).map(PathBuf::from);
    // Of the networks only `graph` has a file; other sections have no name.
    let has_file = section.get("name").is_none_or(|name| name.as_str() == Some("graph"));
    let known = section.contains_key("sha256");
    if let Some(hash) = file.filter(|_| has_file && !known).and_then(|file| sha256(&file).ok()) {
        section.insert("sha256".into(), hash.into());
    }
}

/// Checks that a file is as the config says.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the file can't be read or has changed; `section` is that of
/// the file.
pub fn expect(section: &str, path: &Path, sha256: Option<&String>) -> Result<String> {
    let hash = self::sha256(path)?;
    if let Some(expected) = sha256.filter(|expected| **expected != hash) {
        bad_request!(
            "{section}.file: {}: has changed: its SHA-256 was {expected:.12}… and is {hash:.12}…; leave {section}.sha256 out to take it as it is",
            path.display()
        );
    }
    Ok(hash)
}

/// Reads the layout of the network in a file, as it is for images of `spec`.
///
/// # Errors
/// A [`crate::error::BadRequest`] if the file has changed or can't be read, or if the network can't
/// be trained on such images.
pub fn layout(net: &graph::Config, spec: InputSpec) -> Result<Layout> {
    let path = &net.file;
    let hash = expect("net", path, net.sha256.as_ref())?;
    let mut last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, _, layout)) = last.as_ref().filter(|(known, of, _)| *known == hash && *of == spec) {
        return Ok(layout.clone());
    }
    let layout = match read(path, spec) {
        Ok(blueprint) => Layout(Some(Arc::new(blueprint))),
        Err(error) => bad_request!("net.file: {}", one_line(&error)),
    };
    *last = Some((hash, spec, layout.clone()));
    Ok(layout)
}

/// Returns the config of a network of another program on a data set.
///
/// # Errors
/// A [`crate::error::BadRequest`] for a data set that is none, or a file that can't be read.
pub fn config(path: &Path, data: Mapping) -> Result<Config> {
    let mut net = Mapping::from_iter(
        [("name", "graph"), ("file", &path.to_string_lossy())].map(|(key, of)| (key.into(), of.into())),
    );
    anchor(&mut net, Path::new("."));
    Config::new(&Mapping::from_iter([("data".into(), data.into()), ("net".into(), net.into())]), "command line")
}

/// Returns the number of classes of a network whose layout is known.
pub fn classes(config: &Config) -> i64 {
    config.net.layout().map_or(0, |layout| layout.classes)
}

/// Returns the images and classes of a network of another program. `given` has the shape of its
/// input where the file leaves it open.
///
/// # Errors
/// A [`crate::error::BadRequest`] for a file that can't be read, or a network that does not take
/// square images and return logits.
pub fn spec(path: &Path, given: &[Vec<i64>]) -> Result<InputSpec> {
    let name = path.display();
    let (network, inputs) = exchange::read(path, format(path)?, given)?;
    let Some(&[_, channels, size, _]) = inputs.first().map(Vec::as_slice).filter(|of| of.len() == 4 && of[2] == of[3])
    else {
        bad_request!(
            "{name}: takes inputs of {inputs:?}; networks of square images (N, C, H, H) are taken here, and any by `foldconv fold`"
        );
    };
    let logits = network.graph.outputs.first().and_then(|id| network.graph.values[*id].size.clone());
    match logits.as_deref() {
        Some(&[_, classes]) => Ok(InputSpec { classes, channels, size }),
        logits => {
            let shape = logits.map_or("a tensor of unknown shape".into(), |shape| format!("{shape:?}"));
            bad_request!(
                "{name}: returns {shape}; networks with logits (N, classes) are taken here, and any by `foldconv fold`"
            )
        }
    }
}

fn read(path: &Path, spec: InputSpec) -> Result<Blueprint> {
    let name = path.display();
    let mut graph = exchange::open(path, format(path)?)?.graph;
    let own = graph.inputs.first().and_then(|id| graph.values[*id].size.clone());
    // The batch of the file's example, which its code may name.
    let batch = own.as_ref().and_then(|size| size.first().copied()).unwrap_or(1);
    let images = vec![batch, spec.channels, spec.size, spec.size];
    let seen = graph.observe(&[Tensor::zeros(&images, (Kind::Float, Device::Cpu))]);
    // An operation that can't be run is named before the values behind it are missed.
    let is_known = graph.inputs.len() == 1 && graph.opaque().is_none();
    if is_known && !graph.free_batch(std::slice::from_ref(&images)) {
        if let Err(error) = seen {
            bad_request!(
                "{name}: can't be run on {0}x{0} images of {1} channels; export it with such an example: {error:#}",
                spec.size,
                spec.channels
            );
        }
        bad_request!(
            "{name}: takes batches of {batch} alone, or mixes their images; export it for any batch (docs/graphs.md)"
        );
    }
    match Blueprint::new(graph) {
        Ok(blueprint) => Ok(blueprint),
        Err(error) => bad_request!("{name}: {error:#}"),
    }
}

fn format(path: &Path) -> Result<Format> {
    match Format::of(path) {
        Some(format) => Ok(format),
        None => bad_request!("{}: give a file that ends in .pt2, .onnx or .pt", path.display()),
    }
}
