//! Activations. Opset 17 has most of them; the others are composed.

use super::writer::{Call, Writer};
use crate::onnx::proto::AttributeProto;
use anyhow::{Result, ensure};
use tch::Kind;

impl Writer<'_> {
    /// Translates an activation; none for any other operation.
    pub fn activation(&mut self, call: &Call) -> Result<Option<String>> {
        let x = call.x;
        Ok(Some(match call.op {
            "silu" => {
                let (input, gate) = (self.tensor(x[0])?, self.of("Sigmoid", x[0], vec![])?);
                self.plain("Mul", &[&input, &gate])
            }
            "mish" => {
                let (input, soft) = (self.tensor(x[0])?, self.of("Softplus", x[0], vec![])?);
                let gate = self.plain("Tanh", &[&soft]);
                self.plain("Mul", &[&input, &gate])
            }
            "hardswish" => self.of("HardSwish", x[0], vec![])?,
            "hardsigmoid" => {
                let more = vec![AttributeProto::float("alpha", 1. / 6.), AttributeProto::float("beta", 0.5)];
                self.of("HardSigmoid", x[0], more)?
            }
            "leaky_relu" => {
                let slope = self.number(x[1])?;
                self.of("LeakyRelu", x[0], vec![AttributeProto::float("alpha", slope)])?
            }
            "elu" => {
                let [alpha, scale, input_scale] = [self.number(x[1])?, self.number(x[2])?, self.number(x[3])?];
                ensure!(scale == 1. && input_scale == 1., "an ELU with a scale");
                self.of("Elu", x[0], vec![AttributeProto::float("alpha", alpha)])?
            }
            "celu" => {
                let alpha = self.number(x[1])?;
                self.of("Celu", x[0], vec![AttributeProto::float("alpha", alpha)])?
            }
            "softplus" => {
                ensure!(self.number(x[1])? == 1., "a Softplus with a factor");
                self.of("Softplus", x[0], vec![])?
            }
            "log_sigmoid" => {
                let negative = self.of("Neg", x[0], vec![])?;
                let soft = self.plain("Softplus", &[&negative]);
                self.plain("Neg", &[&soft])
            }
            "prelu" => {
                let (input, slopes) = (self.tensor(x[0])?, self.of_channels(x[1], call.size.len())?);
                self.plain("PRelu", &[&input, &slopes])
            }
            "glu" => self.gated(call)?,
            "gelu" if self.text(x[1])? == "tanh" => self.gelu_of_tanh(call)?,
            "gelu" => self.gelu(call)?,
            _ => return Ok(None),
        }))
    }

    /// Translates a gated linear unit: one half of a dimension, times the sigmoid of the other.
    fn gated(&mut self, call: &Call) -> Result<String> {
        let (input, half) = (self.tensor(call.x[0])?, self.integer(call.x[1])?);
        let parts = self.add_several("Split", &[&input], vec![AttributeProto::int("axis", half)], 2);
        let gate = self.plain("Sigmoid", &[&parts[1]]);
        Ok(self.plain("Mul", &[&parts[0], &gate]))
    }

    /// Translates x/2 (1 + erf(x / √2)).
    fn gelu(&mut self, call: &Call) -> Result<String> {
        let (x, factor) = (self.tensor(call.x[0])?, self.scalar(std::f64::consts::FRAC_1_SQRT_2, Kind::Float)?);
        let inner = self.plain("Mul", &[&x, &factor]);
        let value = self.plain("Erf", &[&inner]);
        self.half_of_one_plus(&x, &value)
    }

    /// Translates x/2 (1 + tanh(√(2/π) x (1 + 0.044715 x²))).
    fn gelu_of_tanh(&mut self, call: &Call) -> Result<String> {
        let x = self.tensor(call.x[0])?;
        let [factor, cubic, one] =
            [(2. / std::f64::consts::PI).sqrt(), 0.044715, 1.].map(|n| self.scalar(n, Kind::Float));
        let (factor, cubic, one) = (factor?, cubic?, one?);
        let square = self.plain("Mul", &[&x, &x]);
        let small = self.plain("Mul", &[&square, &cubic]);
        let sum = self.plain("Add", &[&small, &one]);
        let product = self.plain("Mul", &[&x, &sum]);
        let inner = self.plain("Mul", &[&product, &factor]);
        let value = self.plain("Tanh", &[&inner]);
        self.half_of_one_plus(&x, &value)
    }

    /// Returns x/2 (1 + value).
    fn half_of_one_plus(&mut self, x: &str, value: &str) -> Result<String> {
        let [half, one] = [self.scalar(0.5, Kind::Float)?, self.scalar(1., Kind::Float)?];
        let more = self.plain("Add", &[value, &one]);
        let scaled = self.plain("Mul", &[x, &half]);
        Ok(self.plain("Mul", &[&scaled, &more]))
    }
}
