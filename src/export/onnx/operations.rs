//! Translation of each operation of libtorch to ONNX.

use super::{FLOAT, Known, Writer, axis};
use crate::graph::{element_type, scalar_type};
use crate::onnx::proto::AttributeProto;
use crate::onnx::{self, UNARY};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

impl Writer {
    /// Translates an operation with one output, called `out`, whose size for a batch of 2 is
    /// `size`.
    pub(super) fn operation(&mut self, op: &str, x: &[usize], out: &str, size: &[i64]) -> Result<()> {
        if let Some((name, _)) = UNARY.iter().find(|(_, of)| *of == op).filter(|_| x.len() == 1) {
            return self.same(name, x, out, vec![]);
        }
        match op {
            "silu" | "gelu" | "mish" | "hardswish" | "hardsigmoid" | "leaky_relu" | "elu" | "prelu" => {
                self.activation(op, x, out)
            }
            "pow" => self.pair("Pow", x, out),
            "dropout" | "contiguous" | "detach" | "alias" | "clone" => self.same("Identity", x, out, vec![]),
            "add" | "sub" | "mul" | "div" => self.arithmetic(op, x, out),
            "matmul" | "bmm" | "mm" => self.pair("MatMul", x, out),
            "eq" => self.pair("Equal", x, out),
            "relu6" => self.clip(x[0], Some(0.), Some(6.), out),
            "hardtanh" | "clamp" => {
                let bound = |at: usize| (!self.is_none(x[at])).then(|| self.number(x[at])).transpose();
                let (low, high) = (bound(1)?, bound(2)?);
                self.clip(x[0], low, high, out)
            }
            "softmax" | "log_softmax" => {
                let dimension = self.integer(x[1])?;
                let name = if op == "softmax" { "Softmax" } else { "LogSoftmax" };
                self.same(name, x, out, vec![AttributeProto::int("axis", dimension)])
            }
            "argmax" => {
                let (dimension, keep) = (self.integer(x[1])?, self.flag(x[2])?);
                self.same(
                    "ArgMax",
                    x,
                    out,
                    vec![AttributeProto::int("axis", dimension), AttributeProto::int("keepdims", keep.into())],
                )
            }
            "to" => self.cast(x, out),
            "square" => self.pair("Mul", &[x[0], x[0]], out),
            "maximum" => self.pair("Max", x, out),
            "minimum" => self.pair("Min", x, out),
            "rsqrt" => {
                let root = format!("{out}_root");
                self.same("Sqrt", x, &root, vec![])?;
                self.push("Reciprocal", &[&root], out, vec![]);
                Ok(())
            }
            "mean" => {
                let (axes, keep) = (self.list(x[1])?, self.flag(x[2])?);
                self.same(
                    "ReduceMean",
                    x,
                    out,
                    vec![AttributeProto::ints("axes", axes), AttributeProto::int("keepdims", keep.into())],
                )
            }
            "sum" => {
                let (axes, keep) = (self.list(x[1])?, self.flag(x[2])?);
                self.with_integers("ReduceSum", x[0], &axes, out, vec![AttributeProto::int("keepdims", keep.into())])
            }
            "_convolution" => self.convolution(x, out),
            "linear" => self.linear(x, out),
            "addcmul" => self.addcmul(x, out),
            "batch_norm" => self.batch_norm(x, out),
            "layer_norm" => self.layer_norm(x, out),
            _ => self.shaping(op, x, out, size),
        }
    }

    /// Translates operations that move numbers, pool them, or make constants.
    fn shaping(&mut self, op: &str, x: &[usize], out: &str, size: &[i64]) -> Result<()> {
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

    /// Writes an operation whose only input is the first one.
    fn same(&mut self, op: &str, x: &[usize], out: &str, attributes: Vec<AttributeProto>) -> Result<()> {
        let input = self.tensor(x[0])?;
        self.push(op, &[&input], out, attributes);
        Ok(())
    }

    /// Writes an operation of two inputs, which must have one type: integers stay integers only
    /// beside others, and not in a division.
    fn pair(&mut self, op: &str, x: &[usize], out: &str) -> Result<()> {
        let mut types = [x[0], x[1]].map(|id| self.is_whole(id)).into_iter().flatten().peekable();
        let whole = op != "Div" && types.peek().is_some() && types.all(|whole| whole);
        let mut names = Vec::new();
        for (at, id) in x[..2].iter().enumerate() {
            names.push(match (self.known(*id)?.clone(), self.is_whole(*id)) {
                (Known::Constant(value), _) if whole => {
                    let number = value.as_i64().context("no integer")?;
                    self.initializer(&format!("{out}_number_{at}"), &Tensor::from(number))?
                }
                (Known::Tensor { name, .. }, Some(true)) if !whole => {
                    let float = format!("{out}_float_{at}");
                    self.push("Cast", &[&name], &float, vec![AttributeProto::int("to", FLOAT.into())]);
                    float
                }
                _ => self.tensor(*id)?,
            });
        }
        self.push(op, &[&names[0], &names[1]], out, vec![]);
        Ok(())
    }

    /// Returns whether a value holds integers; none for a whole number, which may be of any type.
    fn is_whole(&self, id: usize) -> Option<bool> {
        match self.known.get(&id)? {
            Known::Tensor { name, .. } => Some(self.whole.contains(name)),
            Known::Constant(value) if value.is_i64() => None,
            _ => Some(false),
        }
    }

    /// Returns whether the result of an operation holds integers.
    pub(super) fn makes_whole(&self, op: &str, x: &[usize]) -> bool {
        match op {
            "argmax" | "arange" => true,
            "eq" | "div" | "mean" => false,
            "to" => x[1..].iter().take(2).find_map(|id| self.integer(*id).ok()) == Some(scalar_type(Kind::Int64)),
            _ => {
                let known: Vec<&Known> = x.iter().filter_map(|id| self.known.get(id)).collect();
                let fraction = |of: &&Known| matches!(of, Known::Constant(value) if value.get("float").is_some());
                let names = known.iter().filter_map(|of| match of {
                    Known::Tensor { name, .. } => Some(name),
                    _ => None,
                });
                let names: Vec<&String> = names.collect();
                !names.is_empty() && names.iter().all(|name| self.whole.contains(*name)) && !known.iter().any(fraction)
            }
        }
    }

    /// Returns a list of a number for each axis, of which PyTorch takes one for all.
    fn per_axis(&self, id: usize, axes: usize) -> Result<Vec<i64>> {
        let list = self.list(id)?;
        Ok(if list.len() == 1 { vec![list[0]; axes] } else { list })
    }

    /// Writes an operation whose inputs are a tensor and a list of integers.
    fn with_integers(&mut self, op: &str, x: usize, list: &[i64], out: &str, more: Vec<AttributeProto>) -> Result<()> {
        let (input, list) = (self.tensor(x)?, self.integers(&format!("{out}_list"), list)?);
        self.push(op, &[&input, &list], out, more);
        Ok(())
    }

    /// Translates a + alpha b and the like; alpha is 1 in all networks.
    fn arithmetic(&mut self, op: &str, x: &[usize], out: &str) -> Result<()> {
        if let ("add" | "sub", Some(alpha)) = (op, x.get(2)) {
            ensure!(self.number(*alpha)? == 1., "alpha is not 1");
        }
        if let ("div", Some(rounding)) = (op, x.get(2)) {
            ensure!(self.is_none(*rounding), "a division that rounds");
        }
        let name = match op {
            "add" => "Add",
            "sub" => "Sub",
            "mul" => "Mul",
            _ => "Div",
        };
        self.pair(name, x, out)
    }

    /// Translates a conversion of numbers; one of the device alone changes none.
    fn cast(&mut self, x: &[usize], out: &str) -> Result<()> {
        // The number of the type comes first, or behind the device.
        let kind = x[1..].iter().take(2).find_map(|id| self.integer(*id).ok());
        let to =
            |kind: i64| element_type(kind).and_then(onnx::number).with_context(|| format!("numbers of type {kind}"));
        match kind {
            Some(kind) => self.same("Cast", x, out, vec![AttributeProto::int("to", to(kind)?.into())]),
            None => self.same("Identity", x, out, vec![]),
        }
    }

    /// Translates activations that opset 17 has under another name, or composes them.
    fn activation(&mut self, op: &str, x: &[usize], out: &str) -> Result<()> {
        let input = self.tensor(x[0])?;
        let inner = format!("{out}_inner");
        match op {
            "silu" => {
                self.push("Sigmoid", &[&input], &inner, vec![]);
                self.push("Mul", &[&input, &inner], out, vec![]);
            }
            "mish" => {
                let soft = format!("{out}_soft");
                self.push("Softplus", &[&input], &soft, vec![]);
                self.push("Tanh", &[&soft], &inner, vec![]);
                self.push("Mul", &[&input, &inner], out, vec![]);
            }
            "hardswish" => self.push("HardSwish", &[&input], out, vec![]),
            "hardsigmoid" => {
                let attributes = vec![AttributeProto::float("alpha", 1. / 6.), AttributeProto::float("beta", 0.5)];
                self.push("HardSigmoid", &[&input], out, attributes);
            }
            "leaky_relu" => {
                let slope = self.number(x[1])?;
                self.push("LeakyRelu", &[&input], out, vec![AttributeProto::float("alpha", slope)]);
            }
            "elu" => {
                let [alpha, scale, input_scale] = [self.number(x[1])?, self.number(x[2])?, self.number(x[3])?];
                ensure!(scale == 1. && input_scale == 1., "an ELU with a scale");
                self.push("Elu", &[&input], out, vec![AttributeProto::float("alpha", alpha)]);
            }
            "prelu" => {
                let (weight, rank) = (self.tensor(x[1])?, self.size(x[0])?.len());
                // One slope for each channel: (C, 1, …) in ONNX, which aligns shapes at their ends.
                let shape = [vec![-1], vec![1; rank.saturating_sub(2)]].concat();
                let list = self.integers(&format!("{out}_list"), &shape)?;
                self.push("Reshape", &[&weight, &list], &inner, vec![]);
                self.push("PRelu", &[&input, &inner], out, vec![]);
            }
            _ => return self.gelu(x, &input, out),
        }
        Ok(())
    }

    /// Translates GELU, which opset 17 has not: x/2 (1 + erf(x / √2)), or x/2 (1 + tanh(√(2/π) (x +
    /// 0.044715 x³))).
    fn gelu(&mut self, x: &[usize], input: &str, out: &str) -> Result<()> {
        let approximate = self.constant(x[1])?.get("text").and_then(Value::as_str).is_some_and(|mode| mode == "tanh");
        let mut number =
            |name: &str, value: f64| self.initializer(&format!("{out}_{name}"), &Tensor::from(value as f32));
        let (half, one) = (number("half", 0.5)?, number("one", 1.)?);
        let (inner, value, more, scaled) =
            (format!("{out}_inner"), format!("{out}_value"), format!("{out}_more"), format!("{out}_scaled"));
        if approximate {
            let (factor, cubic) = (number("factor", (2. / std::f64::consts::PI).sqrt())?, number("cubic", 0.044715)?);
            let [square, small, sum] = ["square", "small", "sum"].map(|name| format!("{out}_{name}"));
            self.push("Mul", &[input, input], &square, vec![]);
            self.push("Mul", &[&square, &cubic], &small, vec![]);
            self.push("Add", &[&small, &one], &sum, vec![]);
            let product = format!("{out}_product");
            self.push("Mul", &[input, &sum], &product, vec![]);
            self.push("Mul", &[&product, &factor], &inner, vec![]);
            self.push("Tanh", &[&inner], &value, vec![]);
        } else {
            let factor = number("factor", std::f64::consts::FRAC_1_SQRT_2)?;
            self.push("Mul", &[input, &factor], &inner, vec![]);
            self.push("Erf", &[&inner], &value, vec![]);
        }
        self.push("Add", &[&value, &one], &more, vec![]);
        self.push("Mul", &[input, &half], &scaled, vec![]);
        self.push("Mul", &[&scaled, &more], out, vec![]);
        Ok(())
    }

    fn clip(&mut self, x: usize, low: Option<f64>, high: Option<f64>, out: &str) -> Result<()> {
        let input = self.tensor(x)?;
        let mut bound = |name: &str, value: Option<f64>| match value {
            Some(value) => self.initializer(&format!("{out}_{name}"), &Tensor::from(value as f32)),
            None => Ok(String::new()),
        };
        let (low, high) = (bound("low", low)?, bound("high", high)?);
        self.push("Clip", &[&input, &low, &high], out, vec![]);
        Ok(())
    }

    /// Translates a convolution. Inputs: x, weight, bias, stride, padding, dilation, transposed,
    /// output padding, groups.
    fn convolution(&mut self, x: &[usize], out: &str) -> Result<()> {
        let mut inputs = vec![self.tensor(x[0])?, self.tensor(x[1])?];
        if !self.is_none(x[2]) {
            inputs.push(self.tensor(x[2])?);
        }
        let kernel = self.size(x[1])?[2..].to_vec();
        let [stride, padding, dilation] = [3, 4, 5].map(|at| self.per_axis(x[at], kernel.len()));
        let (stride, padding, dilation) = (stride?, padding?, dilation?);
        let mut attributes = vec![
            AttributeProto::ints("kernel_shape", kernel),
            AttributeProto::ints("strides", stride),
            AttributeProto::ints("pads", [&padding[..], &padding[..]].concat()),
            AttributeProto::ints("dilations", dilation),
            AttributeProto::int("group", self.integer(x[8])?),
        ];
        let transposed = self.flag(x[6])?;
        if transposed {
            attributes.push(AttributeProto::ints("output_padding", self.per_axis(x[7], 2)?));
        }
        let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
        self.push(if transposed { "ConvTranspose" } else { "Conv" }, &inputs, out, attributes);
        Ok(())
    }

    /// Translates x Wᵀ + b.
    fn linear(&mut self, x: &[usize], out: &str) -> Result<()> {
        let (input, weight) = (self.tensor(x[0])?, self.tensor(x[1])?);
        let (turned, product) = (format!("{out}_turned"), format!("{out}_product"));
        self.push("Transpose", &[&weight], &turned, vec![AttributeProto::ints("perm", vec![1, 0])]);
        if self.is_none(x[2]) {
            self.push("MatMul", &[&input, &turned], out, vec![]);
        } else {
            let bias = self.tensor(x[2])?;
            self.push("MatMul", &[&input, &turned], &product, vec![]);
            self.push("Add", &[&product, &bias], out, vec![]);
        }
        Ok(())
    }

    /// Translates a + b c.
    fn addcmul(&mut self, x: &[usize], out: &str) -> Result<()> {
        ensure!(self.number(x[3])? == 1., "a factor that is not 1");
        let product = format!("{out}_product");
        self.pair("Mul", &x[1..3], &product)?;
        let a = self.tensor(x[0])?;
        self.push("Add", &[&a, &product], out, vec![]);
        Ok(())
    }

    /// Translates a batch norm. Inputs: x, weight, bias, mean, variance, training, momentum, eps.
    fn batch_norm(&mut self, x: &[usize], out: &str) -> Result<()> {
        ensure!(!self.flag(x[5])?, "a batch norm in training");
        let names = x[..5].iter().map(|id| self.tensor(*id)).collect::<Result<Vec<_>>>()?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let eps = self.number(x[7])?;
        self.push("BatchNormalization", &names, out, vec![AttributeProto::float("epsilon", eps)]);
        Ok(())
    }

    /// Translates a layer norm. Inputs: x, shape, weight, bias, eps.
    fn layer_norm(&mut self, x: &[usize], out: &str) -> Result<()> {
        let names = [0, 2, 3].map(|at| self.tensor(x[at]));
        let [input, weight, bias] = names;
        let (axes, eps) = (self.list(x[1])?.len() as i64, self.number(x[4])?);
        let attributes = vec![AttributeProto::int("axis", -axes), AttributeProto::float("epsilon", eps)];
        self.push("LayerNormalization", &[&input?, &weight?, &bias?], out, attributes);
        Ok(())
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
