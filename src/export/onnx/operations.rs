//! Translation of each operation of libtorch to ONNX; shaping.rs has those that compute nothing.

use super::{FLOAT, Known, Writer};
use crate::graph::{element_type, scalar_type};
use crate::onnx::proto::AttributeProto;
use crate::onnx::{self, UNARY};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tch::{Kind, Tensor};

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

    /// Writes an operation whose only input is the first one.
    pub(super) fn same(&mut self, op: &str, x: &[usize], out: &str, attributes: Vec<AttributeProto>) -> Result<()> {
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
            "to" => self.cast_to(x) == Some(scalar_type(Kind::Int64)),
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
    pub(super) fn per_axis(&self, id: usize, axes: usize) -> Result<Vec<i64>> {
        let list = self.list(id)?;
        Ok(if list.len() == 1 { vec![list[0]; axes] } else { list })
    }

    /// Writes an operation whose inputs are a tensor and a list of integers.
    pub(super) fn with_integers(
        &mut self,
        op: &str,
        x: usize,
        list: &[i64],
        out: &str,
        more: Vec<AttributeProto>,
    ) -> Result<()> {
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
        match self.cast_to(x) {
            Some(number) => {
                let to = element_type(number).and_then(onnx::number);
                let to = to.with_context(|| format!("numbers of type {number}"))?;
                self.same("Cast", x, out, vec![AttributeProto::int("to", to.into())])
            }
            None => self.same("Identity", x, out, vec![]),
        }
    }

    /// Returns libtorch's number of the type of a conversion, which comes first, or behind the
    /// device.
    fn cast_to(&self, x: &[usize]) -> Option<i64> {
        x.iter().skip(1).take(2).find_map(|id| self.integer(*id).ok())
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
}
