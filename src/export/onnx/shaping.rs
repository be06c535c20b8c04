//! Translation of operations of libtorch that move numbers, pool them, or make constants.

use super::{Known, Writer, axis};
use crate::onnx::proto::AttributeProto;
use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

impl Writer {
    /// Translates operations that move numbers, pool them, or make constants.
    pub(super) fn shaping(&mut self, op: &str, x: &[usize], out: &str, size: &[i64]) -> Result<()> {
        match op {
            "reshape" | "view" | "_unsafe_view" => {
                let shape = self.list(x[1])?;
                self.with_integers("Reshape", x[0], &shape, out, vec![])
            }
            "flatten" => self.flatten(x, out),
            "unsqueeze" | "squeeze" => {
                let dimension = self.integer(x[1])?;
                let name = if op == "squeeze" { "Squeeze" } else { "Unsqueeze" };
                self.with_integers(name, x[0], &[dimension], out, vec![])
            }
            "transpose" => {
                let rank = self.size(x[0])?.len();
                let mut order: Vec<i64> = (0..rank as i64).collect();
                let [a, b] = [self.integer(x[1])?, self.integer(x[2])?].map(|dimension| axis(dimension, rank) as usize);
                order.swap(a, b);
                self.same("Transpose", x, out, vec![AttributeProto::ints("perm", order)])
            }
            "permute" => {
                let order = self.list(x[1])?;
                self.same("Transpose", x, out, vec![AttributeProto::ints("perm", order)])
            }
            "expand" => {
                // A size of 1 keeps a dimension in ONNX, as -1 does in PyTorch.
                let shape: Vec<i64> = self.list(x[1])?.into_iter().map(|n| if n < 0 { 1 } else { n }).collect();
                self.with_integers("Expand", x[0], &shape, out, vec![])
            }
            "repeat" => self.repeat(x, out),
            "cat" | "stack" => self.join(op, x, out),
            "slice" => self.slice(x, out),
            "select" => {
                let (dimension, index) = (self.integer(x[1])?, self.integer(x[2])?);
                let (input, at) = (self.tensor(x[0])?, self.initializer(&format!("{out}_at"), &Tensor::from(index))?);
                self.push("Gather", &[&input, &at], out, vec![AttributeProto::int("axis", dimension)]);
                Ok(())
            }
            "constant_pad_nd" | "pad" => self.pad(op, x, out),
            "max_pool2d" | "avg_pool2d" => self.pool(op, x, out),
            "adaptive_avg_pool2d" => self.adaptive_pool(x, out, size),
            "upsample_nearest2d" => self.nearest(x, out, size),
            "upsample_bilinear2d" => self.bilinear(x, out, size),
            "eye" => self.made(Tensor::eye(size[0], (Kind::Float, Device::Cpu)), out),
            "zeros" | "new_zeros" => self.made(Tensor::zeros(size, (Kind::Float, Device::Cpu)), out),
            "ones" | "new_ones" => self.made(Tensor::ones(size, (Kind::Float, Device::Cpu)), out),
            "arange" => {
                // Overloads of an end, of a start and an end, and of a step as well.
                let start = if x.len() > 5 { self.integer(x[0])? } else { 0 };
                let step = if x.len() > 6 { self.integer(x[2])? } else { 1 };
                self.made(Tensor::arange(size[0], (Kind::Int64, Device::Cpu)) * step + start, out)
            }
            _ => bail!("this operation is not translated; export the compact form, or TorchScript"),
        }
    }

    fn made(&mut self, tensor: Tensor, out: &str) -> Result<()> {
        self.initializer(out, &tensor).map(drop)
    }

    /// Flattens all dimensions from `start` to the last.
    fn flatten(&mut self, x: &[usize], out: &str) -> Result<()> {
        let rank = self.size(x[0])?.len();
        let [start, end] = [self.integer(x[1])?, self.integer(x[2])?].map(|dimension| axis(dimension, rank));
        ensure!(end == rank as i64 - 1, "dimensions {start} to {end} of {rank}");
        // In ONNX's Reshape, 0 keeps a dimension.
        let mut shape = vec![0; start as usize];
        shape.push(-1);
        self.with_integers("Reshape", x[0], &shape, out, vec![])
    }

    /// Concatenates a list of tensors, or stacks it along a new dimension.
    fn join(&mut self, op: &str, x: &[usize], out: &str) -> Result<()> {
        let Known::List(parts) = self.known(x[0])?.clone() else { bail!("no list") };
        let axis = self.integer(x[1])?;
        let mut names = Vec::new();
        for (at, part) in parts.into_iter().enumerate() {
            let name = self.tensor(part)?;
            names.push(if op == "stack" {
                let thick = format!("{out}_part_{at}");
                self.with_integers("Unsqueeze", part, &[axis], &thick, vec![])?;
                thick
            } else {
                name
            });
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.push("Concat", &names, out, vec![AttributeProto::int("axis", axis)]);
        Ok(())
    }

    fn repeat(&mut self, x: &[usize], out: &str) -> Result<()> {
        let (times, rank) = (self.list(x[1])?, self.size(x[0])?.len());
        ensure!(times.len() == rank, "{} repetitions of {rank} dimensions", times.len());
        self.with_integers("Tile", x[0], &times, out, vec![])
    }

    /// Translates a slice. Inputs: x, dimension, start, end, step.
    fn slice(&mut self, x: &[usize], out: &str) -> Result<()> {
        let input = self.tensor(x[0])?;
        let bound = |at: usize, default: i64| if self.is_none(x[at]) { Ok(default) } else { self.integer(x[at]) };
        let values = [bound(2, 0)?, bound(3, i64::MAX)?, self.integer(x[1])?, self.integer(x[4])?];
        let mut names = vec![input];
        for (name, value) in ["from", "to", "axes", "step"].iter().zip(values) {
            names.push(self.integers(&format!("{out}_{name}"), &[value])?);
        }
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.push("Slice", &names, out, vec![]);
        Ok(())
    }

    /// Translates a padding. PyTorch lists pairs from the last dimension on; ONNX lists all
    /// beginnings and then all ends.
    fn pad(&mut self, op: &str, x: &[usize], out: &str) -> Result<()> {
        let (pads, rank) = (self.list(x[1])?, self.size(x[0])?.len());
        let mode = match (op, self.constant(x[2])?.get("text").and_then(Value::as_str)) {
            ("constant_pad_nd", _) | (_, Some("constant")) => "constant",
            (_, Some("reflect")) => "reflect",
            (_, Some("replicate")) => "edge",
            (_, mode) => bail!("padding `{}` has no like in ONNX", mode.unwrap_or_default()),
        };
        let mut all = vec![0; 2 * rank];
        for (pair, amounts) in pads.chunks(2).enumerate() {
            let dimension = rank - 1 - pair;
            (all[dimension], all[rank + dimension]) = (amounts[0], amounts[1]);
        }
        let value = x.get(if op == "pad" { 3 } else { 2 }).filter(|id| mode == "constant" && !self.is_none(**id));
        let value = value.map_or(Ok(0.), |id| self.number(*id))?;
        let (input, list) = (self.tensor(x[0])?, self.integers(&format!("{out}_list"), &all)?);
        let value = self.initializer(&format!("{out}_value"), &Tensor::from(value as f32))?;
        self.push("Pad", &[&input, &list, &value], out, vec![AttributeProto::text("mode", mode)]);
        Ok(())
    }

    /// Translates a pooling. Inputs: x, kernel, stride, padding; then dilation and ceil for the
    /// maximum, or ceil, count_include_pad and divisor for the mean.
    fn pool(&mut self, op: &str, x: &[usize], out: &str) -> Result<()> {
        let (kernel, padding) = (self.per_axis(x[1], 2)?, self.per_axis(x[3], 2)?);
        let stride = self.per_axis(x[2], 2)?;
        let stride = if stride.is_empty() { kernel.clone() } else { stride };
        let pads = [&padding[..], &padding[..]].concat();
        let mut attributes = vec![
            AttributeProto::ints("kernel_shape", kernel),
            AttributeProto::ints("strides", stride),
            AttributeProto::ints("pads", pads),
        ];
        let name = if op == "max_pool2d" {
            attributes.push(AttributeProto::ints("dilations", self.per_axis(x[4], 2)?));
            attributes.push(AttributeProto::int("ceil_mode", self.flag(x[5])?.into()));
            "MaxPool"
        } else {
            ensure!(self.is_none(x[6]), "a divisor of its own");
            attributes.push(AttributeProto::int("ceil_mode", self.flag(x[4])?.into()));
            attributes.push(AttributeProto::int("count_include_pad", self.flag(x[5])?.into()));
            "AveragePool"
        };
        self.same(name, x, out, attributes)
    }

    /// Translates an adaptive average pooling. If the windows are not of equal size, the means over
    /// rows and columns are products with constant matrices.
    fn adaptive_pool(&mut self, x: &[usize], out: &str, size: &[i64]) -> Result<()> {
        let input = self.size(x[0])?;
        if [2, 3].iter().all(|axis| input[*axis] % size[*axis] == 0) {
            let window = [2, 3].map(|axis| input[axis] / size[axis]);
            let attributes =
                vec![AttributeProto::ints("kernel_shape", window), AttributeProto::ints("strides", window)];
            return self.same("AveragePool", x, out, attributes);
        }
        self.separable(x[0], &windows(input[2], size[2]), &windows(input[3], size[3]), out)
    }

    /// Multiplies the columns of a map by one matrix (H', H), and its rows by another (W', W).
    fn separable(&mut self, x: usize, columns: &Tensor, rows: &Tensor, out: &str) -> Result<()> {
        let (map, middle) = (self.tensor(x)?, format!("{out}_middle"));
        let left = self.initializer(&format!("{out}_columns"), columns)?;
        let right = self.initializer(&format!("{out}_rows"), &rows.tr())?;
        self.push("MatMul", &[&map, &right], &middle, vec![]);
        self.push("MatMul", &[&left, &middle], out, vec![]);
        Ok(())
    }

    /// Translates bilinear upsampling. Inputs: x, size, align_corners, and factors, which are
    /// absent or those of the sizes.
    fn bilinear(&mut self, x: &[usize], out: &str, size: &[i64]) -> Result<()> {
        let (from, align) = (self.size(x[0])?, self.flag(x[2])?);
        let mut factors = Vec::new();
        for id in &x[3..] {
            match self.constant(*id)? {
                Value::Null => {}
                Value::Array(items) => factors.extend(items.iter().filter_map(Value::as_f64)),
                factor => factors.extend(factor.as_f64()),
            }
        }
        for (factor, axis) in factors.into_iter().zip([2, 3]) {
            ensure!(factor * from[axis] as f64 == size[axis] as f64, "a factor of {factor} for {} numbers", from[axis]);
        }
        let matrix = |axis: usize| interpolation(from[axis], size[axis], align);
        self.separable(x[0], &matrix(2), &matrix(3), out)
    }

    /// Translates nearest-neighbour upsampling: row i of the output is row floor(i h / H) of the
    /// input, and likewise for columns.
    fn nearest(&mut self, x: &[usize], out: &str, size: &[i64]) -> Result<()> {
        let (input, from) = (self.tensor(x[0])?, self.size(x[0])?);
        let index = |axis: usize| (0..size[axis]).map(|i| i * from[axis] / size[axis]).collect::<Vec<_>>();
        let rows = self.integers(&format!("{out}_rows"), &index(2))?;
        let columns = self.integers(&format!("{out}_columns"), &index(3))?;
        let middle = format!("{out}_middle");
        self.push("Gather", &[&input, &rows], &middle, vec![AttributeProto::int("axis", 2)]);
        self.push("Gather", &[&middle, &columns], out, vec![AttributeProto::int("axis", 3)]);
        Ok(())
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

/// Returns the matrix (to, from) that interpolates linearly between numbers: output i lies at
/// (i + 1/2) from/to − 1/2, or at i (from − 1)/(to − 1) where the first and the last number stay.
fn interpolation(from: i64, to: i64, align_corners: bool) -> Tensor {
    let mut all = vec![0f32; usize::try_from(from * to).unwrap_or_default()];
    for i in 0..to {
        let place = match (align_corners, to) {
            (true, 1) => 0.,
            (true, _) => i as f64 * (from - 1) as f64 / (to - 1) as f64,
            _ => ((i as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.),
        };
        let low = (place.floor() as i64).min(from - 1);
        for (at, weight) in [(low, 1. - (place - low as f64)), ((low + 1).min(from - 1), place - low as f64)] {
            all[(i * from + at) as usize] += weight as f32;
        }
    }
    Tensor::from_slice(&all).reshape([to, from])
}
