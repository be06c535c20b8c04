//! Layers with weights, norms, products of matrices, and attention.

use super::writer::{Call, Writer};
use crate::onnx::proto::AttributeProto;
use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

impl Writer<'_> {
    /// Translates a layer, a norm or a product; none for any other operation.
    pub fn neural(&mut self, call: &Call) -> Result<Option<String>> {
        Ok(Some(match call.op {
            "_convolution" | "convolution" => self.convolution(call)?,
            "_convolution_mode" => self.convolution_of_mode(call)?,
            "linear" => self.linear(call)?,
            "matmul" | "bmm" | "mm" => self.pair("MatMul", call)?,
            "addmm" | "baddbmm" => self.product_and_sum(call)?,
            "einsum" => self.einsum(call)?,
            "scaled_dot_product_attention" => self.attention(call)?,
            "batch_norm" => self.batch_norm(call)?,
            "layer_norm" => self.layer_norm(call)?,
            "rms_norm" => self.rms_norm(call)?,
            "group_norm" => self.group_norm(call)?,
            "instance_norm" => self.instance_norm(call)?,
            _ => return Ok(None),
        }))
    }

    /// Translates a convolution. Arguments: x, weight, bias, stride, padding, dilation, transposed,
    /// output padding, groups.
    fn convolution(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let axes = self.size(x[1])?.len() - 2;
        let padding = self.per_axis(x[4], axes)?;
        let mut more = vec![
            AttributeProto::ints("pads", [&padding[..], &padding[..]].concat()),
            AttributeProto::int("group", self.integer(x[8])?),
        ];
        let transposed = self.flag(x[6])?;
        if transposed {
            more.push(AttributeProto::ints("output_padding", self.per_axis(x[7], axes)?));
        }
        self.add_convolution(if transposed { "ConvTranspose" } else { "Conv" }, x, [x[3], x[5]], more)
    }

    /// Translates a convolution whose padding is `same` or `valid`. Arguments: x, weight, bias,
    /// stride, padding, dilation, groups.
    fn convolution_of_mode(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let kernel = self.size(x[1])?[2..].to_vec();
        let dilation = self.per_axis(x[5], kernel.len())?;
        let same = self.text(x[4])? == "same";
        let all = kernel.iter().zip(&dilation).map(|(k, d)| if same { d * (k - 1) } else { 0 });
        // An odd number of rows has one more behind than before.
        let pads = all.clone().map(|n| n / 2).chain(all.map(|n| n - n / 2)).collect::<Vec<_>>();
        let more = vec![AttributeProto::ints("pads", pads), AttributeProto::int("group", self.integer(x[6])?)];
        self.add_convolution("Conv", x, [x[3], x[5]], more)
    }

    fn add_convolution(
        &mut self,
        op: &str,
        x: &[usize],
        [stride, dilation]: [usize; 2],
        mut more: Vec<AttributeProto>,
    ) -> Result<String> {
        let mut inputs = vec![self.tensor(x[0])?, self.tensor(x[1])?];
        if !self.is_none(x[2]) {
            inputs.push(self.tensor(x[2])?);
        }
        let kernel = self.size(x[1])?[2..].to_vec();
        more.push(AttributeProto::ints("strides", self.per_axis(stride, kernel.len())?));
        more.push(AttributeProto::ints("dilations", self.per_axis(dilation, kernel.len())?));
        more.push(AttributeProto::ints("kernel_shape", kernel));
        Ok(self.add_list(op, &inputs, more))
    }

    /// Translates x Wᵀ + b.
    fn linear(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let (input, weight) = (self.tensor(x[0])?, self.tensor(x[1])?);
        let turned = self.add("Transpose", &[&weight], vec![AttributeProto::ints("perm", [1, 0])]);
        let product = self.plain("MatMul", &[&input, &turned]);
        if self.is_none(x[2]) {
            return Ok(product);
        }
        let bias = self.tensor(x[2])?;
        Ok(self.plain("Add", &[&product, &bias]))
    }

    /// Translates β a + α b c.
    fn product_and_sum(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let terms = [self.pair_of("MatMul", [x[1], x[2]], call.kind)?, self.tensor(x[0])?];
        let mut scaled = Vec::new();
        for (term, factor) in terms.into_iter().zip([x[4], x[3]]) {
            scaled.push(if self.number(factor)? == 1. {
                term
            } else {
                let factor = self.tensor_as(factor, call.kind)?;
                self.plain("Mul", &[&term, &factor])
            });
        }
        Ok(self.plain("Add", &[&scaled[0], &scaled[1]]))
    }

    fn einsum(&mut self, call: &Call) -> Result<String> {
        let equation = self.text(call.x[0])?;
        let factors = self.items(call.x[1])?;
        let factors = factors.into_iter().map(|id| self.tensor_as(id, call.kind)).collect::<Result<Vec<_>>>()?;
        Ok(self.add_list("Einsum", &factors, vec![AttributeProto::text("equation", &equation)]))
    }

    /// Translates softmax(scale q kᵀ + mask) v. Arguments: q, k, v, mask, dropout, whether each
    /// query sees no later key, scale, and whether heads share keys.
    fn attention(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        ensure!(self.number(x[4])? == 0., "attention with dropout");
        let shared = x.get(7).is_some_and(|shared| self.flag(*shared).unwrap_or(true));
        ensure!(!shared, "heads that share keys");
        let (query, key) = (self.size(x[0])?, self.size(x[1])?);
        let rank = query.len();
        let scale = match self.is_none(x[6]) {
            true => (query[rank - 1] as f64).powf(-0.5),
            false => self.number(x[6])?,
        };
        let (scale, q) = (self.scalar(scale, Kind::Float)?, self.tensor(x[0])?);
        let scaled = self.plain("Mul", &[&q, &scale]);
        let mut order: Vec<i64> = (0..rank as i64).collect();
        order.swap(rank - 1, rank - 2);
        let turned = self.of("Transpose", x[1], vec![AttributeProto::ints("perm", order)])?;
        let mut scores = self.plain("MatMul", &[&scaled, &turned]);
        if self.flag(x[5])? {
            let sizes = [query[rank - 2], key[rank - 2]];
            let later = Tensor::full(sizes, f64::NEG_INFINITY, (Kind::Float, Device::Cpu)).triu(1);
            let mask = self.store(&later)?;
            scores = self.plain("Add", &[&scores, &mask]);
        }
        if !self.is_none(x[3]) {
            let mask = self.tensor(x[3])?;
            scores = match self.kind(x[3])? {
                Kind::Bool => {
                    let never = self.scalar(f64::NEG_INFINITY, Kind::Float)?;
                    self.plain("Where", &[&mask, &scores, &never])
                }
                _ => self.plain("Add", &[&scores, &mask]),
            };
        }
        let weights = self.add("Softmax", &[&scores], vec![AttributeProto::int("axis", -1)]);
        let values = self.tensor(x[2])?;
        Ok(self.plain("MatMul", &[&weights, &values]))
    }

    /// Returns the weight or bias of a norm, or the same number everywhere where it has none.
    fn affine(&mut self, id: usize, otherwise: f64, size: &[i64]) -> Result<String> {
        match self.is_none(id) {
            true => self.store(&Tensor::full(size, otherwise, (Kind::Float, Device::Cpu))),
            false => self.tensor(id),
        }
    }

    /// Returns one number for each channel in the shape (C, 1, …): ONNX aligns shapes at their
    /// ends.
    pub fn of_channels(&mut self, id: usize, rank: usize) -> Result<String> {
        let shape = self.integers(&[vec![-1], vec![1; rank.saturating_sub(2)]].concat())?;
        let numbers = self.tensor(id)?;
        Ok(self.plain("Reshape", &[&numbers, &shape]))
    }

    /// Translates a batch norm. Arguments: x, weight, bias, mean, variance, training, momentum,
    /// eps.
    fn batch_norm(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        ensure!(!self.flag(x[5])?, "a batch norm in training");
        let (channels, eps) = (call.size[1], self.number(x[7])?);
        let (weight, bias) = (self.affine(x[1], 1., &[channels])?, self.affine(x[2], 0., &[channels])?);
        let [input, mean, variance] = [self.tensor(x[0])?, self.tensor(x[3])?, self.tensor(x[4])?];
        let inputs = [&*input, &weight, &bias, &mean, &variance];
        Ok(self.add("BatchNormalization", &inputs, vec![AttributeProto::float("epsilon", eps)]))
    }

    /// Translates a layer norm. Arguments: x, shape, weight, bias, eps.
    fn layer_norm(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let (shape, eps) = (self.list(x[1])?, self.number(x[4])?);
        let mut inputs = vec![self.tensor(x[0])?, self.affine(x[2], 1., &shape)?];
        if !self.is_none(x[3]) {
            inputs.push(self.tensor(x[3])?);
        }
        let more = vec![AttributeProto::int("axis", -(shape.len() as i64)), AttributeProto::float("epsilon", eps)];
        Ok(self.add_list("LayerNormalization", &inputs, more))
    }

    /// Translates x / √(mean(x²) + eps), times the weight. Arguments: x, shape, weight, eps.
    fn rms_norm(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let axes: Vec<i64> = (1..=self.list(x[1])?.len() as i64).map(|axis| -axis).collect();
        let eps = if self.is_none(x[3]) { f64::from(f32::EPSILON) } else { self.number(x[3])? };
        let (input, eps) = (self.tensor(x[0])?, self.scalar(eps, Kind::Float)?);
        let square = self.plain("Mul", &[&input, &input]);
        let mean = self.add("ReduceMean", &[&square], vec![AttributeProto::ints("axes", axes)]);
        let sum = self.plain("Add", &[&mean, &eps]);
        let root = self.plain("Sqrt", &[&sum]);
        let normed = self.plain("Div", &[&input, &root]);
        if self.is_none(x[2]) {
            return Ok(normed);
        }
        let weight = self.tensor(x[2])?;
        Ok(self.plain("Mul", &[&normed, &weight]))
    }

    /// Translates a group norm, which opset 17 has not: an instance norm of the groups. Arguments:
    /// x, groups, weight, bias, eps.
    fn group_norm(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let (groups, eps) = (self.integer(x[1])?, self.number(x[4])?);
        let flat = self.integers(&[0, groups, -1])?;
        let input = self.tensor(x[0])?;
        let flat = self.plain("Reshape", &[&input, &flat]);
        let ones = self.store(&Tensor::ones([groups], (Kind::Float, Device::Cpu)))?;
        let zeros = self.store(&Tensor::zeros([groups], (Kind::Float, Device::Cpu)))?;
        let eps = vec![AttributeProto::float("epsilon", eps)];
        let normed = self.add("InstanceNormalization", &[&flat, &ones, &zeros], eps);
        let shape = self.integers(&[&[0], &call.size[1..]].concat())?;
        let mut normed = self.plain("Reshape", &[&normed, &shape]);
        for (op, id) in [("Mul", x[2]), ("Add", x[3])] {
            if !self.is_none(id) {
                let of_channels = self.of_channels(id, call.size.len())?;
                normed = self.plain(op, &[&normed, &of_channels]);
            }
        }
        Ok(normed)
    }

    /// Translates an instance norm. Arguments: x, weight, bias, mean, variance, whether the
    /// statistics are those of the images, momentum, eps.
    fn instance_norm(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        ensure!(self.flag(x[5])?, "an instance norm with statistics of its own");
        let channels = *call.size.get(1).context("no channels")?;
        let (weight, bias) = (self.affine(x[1], 1., &[channels])?, self.affine(x[2], 0., &[channels])?);
        let (input, eps) = (self.tensor(x[0])?, self.number(x[7])?);
        let eps = vec![AttributeProto::float("epsilon", eps)];
        Ok(self.add("InstanceNormalization", &[&input, &weight, &bias], eps))
    }
}
