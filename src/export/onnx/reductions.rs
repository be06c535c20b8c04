//! Sums, means, extremes and variances along dimensions.

use super::writer::{Call, Writer, axis};
use crate::onnx::proto::AttributeProto;
use anyhow::{Result, bail, ensure};
use tch::Kind;

impl Writer<'_> {
    /// Translates a reduction; none for any other operation.
    pub fn reduction(&mut self, call: &Call) -> Result<Option<String>> {
        let x = call.x;
        Ok(Some(match call.op {
            "softmax" | "log_softmax" => {
                let along = AttributeProto::int("axis", self.integer(x[1])?);
                let name = if call.op == "softmax" { "Softmax" } else { "LogSoftmax" };
                let input = self.tensor_as(x[0], Kind::Float)?;
                self.add(name, &[&input], vec![along])
            }
            "argmax" | "argmin" => {
                ensure!(!self.is_none(x[1]), "the place among all numbers");
                let along = AttributeProto::int("axis", self.integer(x[1])?);
                let keep = AttributeProto::int("keepdims", self.flag(x[2])?.into());
                self.of(if call.op == "argmax" { "ArgMax" } else { "ArgMin" }, x[0], vec![along, keep])?
            }
            "mean" | "sum" => {
                let (axes, keep) = if x.len() == 2 { (vec![], false) } else { self.dimensions(x[1], x[2])? };
                let input = self.tensor_as(x[0], call.kind)?;
                self.reduce(if call.op == "mean" { "ReduceMean" } else { "ReduceSum" }, &input, &axes, keep)?
            }
            "amax" | "amin" => {
                let ((axes, keep), input) = (self.dimensions(x[1], x[2])?, self.tensor(x[0])?);
                self.reduce(if call.op == "amax" { "ReduceMax" } else { "ReduceMin" }, &input, &axes, keep)?
            }
            "max" | "min" if x.len() == 1 => {
                let input = self.tensor(x[0])?;
                self.reduce(if call.op == "max" { "ReduceMax" } else { "ReduceMin" }, &input, &[], false)?
            }
            "linalg_vector_norm" | "norm" => {
                let order = if self.is_none(x[1]) { 2. } else { self.number(x[1])? };
                ensure!(order == 2. && x.len() > 3, "a norm of order {order}");
                let ((axes, keep), input) = (self.dimensions(x[2], x[3])?, self.tensor(x[0])?);
                self.reduce("ReduceL2", &input, &axes, keep)?
            }
            "var" => self.variance(call)?.0,
            "std" => {
                let (variance, _) = self.variance(call)?;
                self.plain("Sqrt", &[&variance])
            }
            _ => return Ok(None),
        }))
    }

    /// Returns the dimensions of a reduction, none for all, and whether they stay with size 1.
    fn dimensions(&self, axes: usize, keep: usize) -> Result<(Vec<i64>, bool)> {
        let axes = match self.constant(axes)? {
            serde_json::Value::Null => vec![],
            value if value.is_i64() => vec![self.integer(axes)?],
            _ => self.list(axes)?,
        };
        Ok((axes, self.flag(keep)?))
    }

    fn reduce(&mut self, op: &str, input: &str, axes: &[i64], keep: bool) -> Result<String> {
        let mut more = vec![AttributeProto::int("keepdims", keep.into())];
        if axes.is_empty() {
            return Ok(self.add(op, &[input], more));
        }
        // Opset 17 has the dimensions of a sum as an input, and those of the others as a setting.
        if op == "ReduceSum" {
            let axes = self.integers(axes)?;
            return Ok(self.add(op, &[input, &axes], more));
        }
        more.push(AttributeProto::ints("axes", axes));
        Ok(self.add(op, &[input], more))
    }

    /// Translates the largest or smallest number along a dimension, and its place.
    pub fn extreme(&mut self, call: &Call) -> Result<Vec<String>> {
        let x = call.x;
        let ((axes, keep), input) = (self.dimensions(x[1], x[2])?, self.tensor(x[0])?);
        let (value, place) = if call.op == "max" { ("ReduceMax", "ArgMax") } else { ("ReduceMin", "ArgMin") };
        let more = vec![AttributeProto::int("axis", axes[0]), AttributeProto::int("keepdims", keep.into())];
        Ok(vec![self.reduce(value, &input, &axes, keep)?, self.add(place, &[&input], more)])
    }

    /// Translates the k largest or smallest numbers along a dimension, and their places. Arguments:
    /// x, k, dimension, whether the largest, and whether in their order.
    pub fn largest(&mut self, call: &Call) -> Result<Vec<String>> {
        let x = call.x;
        let (input, k) = (self.tensor(x[0])?, self.integers(&[self.integer(x[1])?])?);
        let more = vec![
            AttributeProto::int("axis", self.integer(x[2])?),
            AttributeProto::int("largest", self.flag(x[3])?.into()),
            AttributeProto::int("sorted", self.flag(x[4])?.into()),
        ];
        Ok(self.add_several("TopK", &[&input, &k], more, 2))
    }

    /// Translates the variance and the mean.
    pub fn variance_and_mean(&mut self, call: &Call) -> Result<Vec<String>> {
        let (variance, mean) = self.variance(call)?;
        Ok(vec![variance, mean])
    }

    /// Returns the variance Σ(x − mean)² / (n − correction), and the mean. Arguments: x,
    /// dimensions, correction (or whether it is 1), and whether the dimensions stay.
    fn variance(&mut self, call: &Call) -> Result<(String, String)> {
        let (x, input) = (call.x, self.tensor(call.x[0])?);
        let (axes, correction, keep) = match x.len() {
            2 => (vec![], x[1], false),
            4 => {
                let (axes, keep) = self.dimensions(x[1], x[3])?;
                (axes, x[2], keep)
            }
            n => bail!("{n} arguments"),
        };
        let correction = if self.is_none(correction) { 1. } else { self.number(correction)? };
        let size = self.size(x[0])?;
        let all: Vec<i64> = (0..size.len() as i64).collect();
        let over = if axes.is_empty() { &all } else { &axes };
        let length = |along: &i64| axis(*along, size.len()).map(|along| size[along as usize]);
        let count: i64 = over.iter().map(length).product::<Result<i64>>()?;
        let center = self.reduce("ReduceMean", &input, &axes, true)?;
        let apart = self.plain("Sub", &[&input, &center]);
        let square = self.plain("Mul", &[&apart, &apart]);
        let sum = self.reduce("ReduceSum", &square, &axes, keep)?;
        let count = self.scalar(count as f64 - correction, Kind::Float)?;
        Ok((self.plain("Div", &[&sum, &count]), self.reduce("ReduceMean", &input, &axes, keep)?))
    }
}
