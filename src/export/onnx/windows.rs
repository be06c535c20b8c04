//! Poolings, resizing, and the windows of a convolution.

use super::writer::{Call, Writer, number};
use crate::onnx::proto::AttributeProto;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tch::Tensor;

/// Weights of the numbers around a place.
#[derive(Clone, Copy)]
enum Interpolation {
    Linear,
    Cubic,
}

impl Writer<'_> {
    /// Translates an operation on windows; none for any other.
    pub fn window(&mut self, call: &Call) -> Result<Option<String>> {
        Ok(Some(match call.op {
            "max_pool1d"
            | "max_pool2d"
            | "max_pool3d"
            | "max_pool2d_with_indices"
            | "avg_pool1d"
            | "avg_pool2d"
            | "avg_pool3d" => self.pool(call)?,
            "adaptive_avg_pool1d" | "adaptive_avg_pool2d" => self.adaptive_mean(call)?,
            "adaptive_max_pool1d" | "adaptive_max_pool2d" => self.adaptive_maximum(call)?,
            "upsample_nearest2d" => self.nearest(call, 0.)?,
            "_upsample_nearest_exact2d" => self.nearest(call, 0.5)?,
            "upsample_bilinear2d" => self.resized(call, Interpolation::Linear)?,
            "upsample_bicubic2d" => self.resized(call, Interpolation::Cubic)?,
            "im2col" => self.columns(call)?,
            "grid_sampler" | "grid_sampler_2d" => self.sampled(call)?,
            _ => return Ok(None),
        }))
    }

    /// Translates a pooling. Arguments: x, kernel, stride, padding; then dilation and ceil for the
    /// maximum, or ceil, count_include_pad and divisor for the mean.
    fn pool(&mut self, call: &Call) -> Result<String> {
        let (x, axes) = (call.x, call.size.len() - 2);
        let (kernel, padding) = (self.per_axis(x[1], axes)?, self.per_axis(x[3], axes)?);
        let stride = self.per_axis(x[2], axes)?;
        let stride = if stride.is_empty() { kernel.clone() } else { stride };
        let mut more = vec![AttributeProto::ints("kernel_shape", kernel), AttributeProto::ints("strides", stride)];
        // onnxruntime merges a padding with zeros into the pooling behind it, also into a maximum,
        // which pads with -inf, unless the pooling says that it has none.
        if padding.iter().all(|n| *n == 0) && call.op.starts_with("max") && !self.flag(x[5])? {
            more.push(AttributeProto::text("auto_pad", "VALID"));
        } else {
            more.push(AttributeProto::ints("pads", [&padding[..], &padding[..]].concat()));
        }
        let name = if call.op.starts_with("max") {
            more.push(AttributeProto::ints("dilations", self.per_axis(x[4], axes)?));
            more.push(AttributeProto::int("ceil_mode", self.flag(x[5])?.into()));
            "MaxPool"
        } else {
            ensure!(x.get(6).is_none_or(|divisor| self.is_none(*divisor)), "a divisor of its own");
            more.push(AttributeProto::int("ceil_mode", self.flag(x[4])?.into()));
            more.push(AttributeProto::int("count_include_pad", self.flag(x[5])?.into()));
            "AveragePool"
        };
        self.of(name, x[0], more)
    }

    /// Returns the settings of windows that divide the input evenly; none if they don't.
    fn even_windows(&self, call: &Call) -> Result<Option<Vec<AttributeProto>>> {
        let input = self.size(call.x[0])?;
        let pairs = || input[2..].iter().zip(&call.size[2..]);
        ensure!(pairs().all(|(_, to)| *to > 0), "no windows");
        let even = pairs().all(|(from, to)| from % to == 0);
        let window: Vec<i64> = pairs().map(|(from, to)| from / to).collect();
        Ok(even.then(|| {
            vec![AttributeProto::ints("kernel_shape", window.clone()), AttributeProto::ints("strides", window)]
        }))
    }

    /// Translates an adaptive average pooling. If the windows are not of equal size, the means over
    /// rows and columns are products with constant matrices.
    fn adaptive_mean(&mut self, call: &Call) -> Result<String> {
        if let Some(windows) = self.even_windows(call)? {
            return self.of("AveragePool", call.x[0], windows);
        }
        let from = self.size(call.x[0])?;
        ensure!(from.len() == 4, "windows of unequal size in {} dimensions", from.len());
        self.separable(call.x[0], &windows(from[2], call.size[2]), &windows(from[3], call.size[3]))
    }

    fn adaptive_maximum(&mut self, call: &Call) -> Result<String> {
        match self.even_windows(call)? {
            Some(windows) => self.of("MaxPool", call.x[0], windows),
            None => bail!("windows of unequal size"),
        }
    }

    /// Multiplies the columns of a map by one matrix (H', H), and its rows by another (W', W).
    fn separable(&mut self, x: usize, columns: &Tensor, rows: &Tensor) -> Result<String> {
        let (map, left, right) = (self.tensor(x)?, self.store(columns)?, self.store(&rows.tr())?);
        let middle = self.plain("MatMul", &[&map, &right]);
        Ok(self.plain("MatMul", &[&left, &middle]))
    }

    /// Translates resizing by interpolation. Arguments: x, size, align_corners, and factors, which
    /// are absent or those of the sizes.
    fn resized(&mut self, call: &Call, how: Interpolation) -> Result<String> {
        let x = call.x;
        let (from, align) = (self.size(x[0])?, self.flag(x[2])?);
        let mut factors = Vec::new();
        for id in &x[3..] {
            match self.constant(*id)? {
                Value::Null => {}
                Value::Array(items) => factors.extend(items.iter().filter_map(number)),
                factor => factors.extend(number(&factor)),
            }
        }
        for (factor, axis) in factors.into_iter().zip([2, 3]) {
            let fits = (factor * from[axis] as f64 - call.size[axis] as f64).abs() < 1e-6;
            ensure!(fits, "a factor of {factor} for {} numbers", from[axis]);
        }
        let matrix = |axis: usize| interpolation(from[axis], call.size[axis], align, how);
        self.separable(x[0], &matrix(2), &matrix(3))
    }

    /// Translates nearest-neighbour resizing: row i of the output is row floor((i + shift) h / H)
    /// of the input, and likewise for columns.
    fn nearest(&mut self, call: &Call, shift: f64) -> Result<String> {
        let from = self.size(call.x[0])?;
        let index = |axis: usize| {
            let place = |i: i64| (i as f64 + shift) * from[axis] as f64 / call.size[axis] as f64;
            (0..call.size[axis]).map(|i| (place(i) + 1e-9).floor() as i64).collect::<Vec<_>>()
        };
        let (rows, columns) = (self.integers(&index(2))?, self.integers(&index(3))?);
        let middle = self.taken(call.x[0], &rows, 2)?;
        Ok(self.add("Gather", &[&middle, &columns], vec![AttributeProto::int("axis", 3)]))
    }

    /// Translates the numbers of a map at computed places. Arguments: x, places, interpolation,
    /// padding, align_corners.
    fn sampled(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let name = |names: [&'static str; 3], id: usize| {
            let at = usize::try_from(self.integer(id)?).unwrap_or(usize::MAX);
            names.get(at).copied().context("an unknown mode")
        };
        let mode = name(["bilinear", "nearest", "bicubic"], x[2])?;
        let padding = name(["zeros", "border", "reflection"], x[3])?;
        let (input, places, align) = (self.tensor(x[0])?, self.tensor(x[1])?, self.flag(x[4])?);
        let more = vec![
            AttributeProto::text("mode", mode),
            AttributeProto::text("padding_mode", padding),
            AttributeProto::int("align_corners", align.into()),
        ];
        Ok(self.add("GridSample", &[&input, &places], more))
    }

    /// Translates the windows of a convolution, side by side: (N, C kh kw, windows). Arguments: x,
    /// kernel, dilation, padding, stride.
    fn columns(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let [kernel, dilation, padding, stride] = [1, 2, 3, 4].map(|at| self.per_axis(x[at], 2));
        let (kernel, dilation, padding, stride) = (kernel?, dilation?, padding?, stride?);
        let (size, input) = (self.size(x[0])?, self.tensor(x[0])?);
        let pads = self.integers(&[0, 0, padding[0], padding[1], 0, 0, padding[0], padding[1]])?;
        let mut map = self.plain("Pad", &[&input, &pads]);
        let mut counts = Vec::new();
        // Rows become (kh, windows along the height), then columns likewise, two dimensions later.
        for (at, axis) in [(0, 2), (1, 4)] {
            let length = size[2 + at] + 2 * padding[at];
            let count = (length - dilation[at] * (kernel[at] - 1) - 1) / stride[at] + 1;
            let (dilation, stride) = (dilation[at], stride[at]);
            let places = (0..kernel[at]).flat_map(|k| (0..count).map(move |i| k * dilation + i * stride));
            let places = Tensor::from_slice(&places.collect::<Vec<_>>()).reshape([kernel[at], count]);
            let places = self.store(&places)?;
            map = self.add("Gather", &[&map, &places], vec![AttributeProto::int("axis", axis)]);
            counts.push(count);
        }
        let turned = self.add("Transpose", &[&map], vec![AttributeProto::ints("perm", [0, 1, 2, 4, 3, 5])]);
        self.reshape_to(&turned, &[size[1] * kernel[0] * kernel[1], counts[0] * counts[1]])
    }
}

/// Returns the matrix (windows, length) whose product with a vector is its means over adaptive
/// windows: window i goes from floor(i length / windows) to ceil((i + 1) length / windows).
fn windows(length: i64, windows: i64) -> Tensor {
    let weight = |window: i64, at: i64| {
        let (from, to) = (window * length / windows, ((window + 1) * length + windows - 1) / windows);
        if (from..to).contains(&at) { 1. / (to - from) as f32 } else { 0. }
    };
    let all: Vec<f32> = (0..windows).flat_map(|window| (0..length).map(move |at| weight(window, at))).collect();
    Tensor::from_slice(&all).reshape([windows, length])
}

/// Returns the matrix (to, from) that interpolates between numbers: output i lies at
/// (i + 1/2) from/to − 1/2, or at i (from − 1)/(to − 1) where the first and the last number stay.
fn interpolation(from: i64, to: i64, align_corners: bool, how: Interpolation) -> Tensor {
    let mut all = vec![0f32; usize::try_from(from * to).unwrap_or_default()];
    for i in 0..to {
        let place = match (align_corners, to) {
            (true, 1) => 0.,
            (true, _) => i as f64 * (from - 1) as f64 / (to - 1) as f64,
            _ => (i as f64 + 0.5) * from as f64 / to as f64 - 0.5,
        };
        // The numbers at the ends go on beyond them.
        let mut add = |at: i64, weight: f64| all[(i * from + at.clamp(0, from - 1)) as usize] += weight as f32;
        let (low, t) = (place.floor() as i64, place - place.floor());
        match how {
            Interpolation::Linear => [(low, 1. - t), (low + 1, t)].into_iter().for_each(|(at, weight)| add(at, weight)),
            Interpolation::Cubic => (-1..=2).for_each(|k| add(low + k, cubic((t - k as f64).abs()))),
        }
    }
    Tensor::from_slice(&all).reshape([to, from])
}

/// Returns the weight of a number at a distance, in Keys' cubic convolution with a = −3/4.
fn cubic(x: f64) -> f64 {
    let a = -0.75;
    match x {
        x if x <= 1. => ((a + 2.) * x - (a + 3.)) * x * x + 1.,
        x if x < 2. => ((a * x - 5. * a) * x + 8. * a) * x - 4. * a,
        _ => 0.,
    }
}
