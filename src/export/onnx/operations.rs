//! Which translation each operation of libtorch has; arithmetic, comparisons and conversions.

use super::writer::{Call, Writer};
use crate::onnx::UNARY;
use anyhow::{Result, bail, ensure};
use tch::Kind;

/// Comparisons, and ONNX's operators.
const COMPARISONS: [(&str, &str); 6] = [
    ("eq", "Equal"),
    ("ne", "Equal"),
    ("gt", "Greater"),
    ("ge", "GreaterOrEqual"),
    ("lt", "Less"),
    ("le", "LessOrEqual"),
];

/// Operations on truth values, and ONNX's operators.
const LOGICAL: [(&str, &str); 8] = [
    ("logical_and", "And"),
    ("logical_or", "Or"),
    ("logical_xor", "Xor"),
    ("bitwise_and", "And"),
    ("bitwise_or", "Or"),
    ("bitwise_xor", "Xor"),
    ("__and__", "And"),
    ("__or__", "Or"),
];

impl Writer<'_> {
    /// Translates an operation, and returns the names of its results: more than one for a list of
    /// tensors, and where the network may read the others.
    pub fn operation(&mut self, call: &Call) -> Result<Vec<String>> {
        if !call.items.is_empty() {
            return self.parts(call);
        }
        let several = match call.op {
            "max" | "min" if call.x.len() == 3 => Some(self.extreme(call)?),
            "var_mean" => Some(self.variance_and_mean(call)?),
            "topk" => Some(self.largest(call)?),
            _ => None,
        };
        several.map_or_else(|| Ok(vec![self.one(call)?]), Ok)
    }

    /// Translates an operation of which the network reads one result.
    fn one(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        // ONNX has Mish from opset 18 on.
        let unary = UNARY.iter().find(|(name, of)| *of == call.op && *name != "Mish");
        if let Some((name, _)) = unary.filter(|_| x.len() == 1) {
            let input = self.tensor_as(x[0], call.kind)?;
            return Ok(self.plain(name, &[&input]));
        }
        if let Some((_, name)) = COMPARISONS.iter().find(|(op, _)| *op == call.op) {
            return self.comparison(name, call);
        }
        if let Some((_, name)) = LOGICAL.iter().find(|(op, _)| *op == call.op) {
            ensure!(call.kind == Kind::Bool, "an operation on bits");
            return self.pair(name, call);
        }
        match call.op {
            "add" | "sub" | "rsub" | "mul" | "div" | "floor_divide" | "remainder" | "pow" => self.arithmetic(call),
            "maximum" => self.pair("Max", call),
            "minimum" => self.pair("Min", call),
            "max" if x.len() == 2 => self.pair("Max", call),
            "min" if x.len() == 2 => self.pair("Min", call),
            "addcmul" | "addcdiv" => self.with_product(call),
            "square" => self.pair_of("Mul", [x[0], x[0]], call.kind),
            "rsqrt" => {
                let root = self.of("Sqrt", x[0], vec![])?;
                Ok(self.plain("Reciprocal", &[&root]))
            }
            "expm1" | "log1p" => self.near_one(call),
            "bitwise_not" if call.kind == Kind::Bool => self.of("Not", x[0], vec![]),
            "clamp" | "clamp_min" | "clamp_max" | "clip" | "hardtanh" | "relu6" => self.clamp(call),
            "where" => self.choice([x[0], x[1], x[2]], call.kind),
            "masked_fill" => self.choice([x[1], x[2], x[0]], call.kind),
            "to" | "type_as" | "_to_copy" => {
                let (input, from) = (self.tensor(x[0])?, self.kind(x[0])?);
                self.convert(input, from, call.kind)
            }
            "dropout" | "feature_dropout" | "contiguous" | "detach" | "clone" | "lift_fresh" => {
                self.of("Identity", x[0], vec![])
            }
            _ => self.layer(call),
        }
    }

    /// Translates the operations of one of the other files.
    fn layer(&mut self, call: &Call) -> Result<String> {
        for translate in [Self::activation, Self::neural, Self::reduction, Self::shaping, Self::selection, Self::window]
        {
            if let Some(name) = translate(self, call)? {
                return Ok(name);
            }
        }
        bail!("this operation is not translated; export the compact form, or TorchScript")
    }

    /// Adds an operation of two arguments, converted to one element type.
    pub fn pair_of(&mut self, op: &str, ids: [usize; 2], kind: Kind) -> Result<String> {
        let [a, b] = [self.tensor_as(ids[0], kind)?, self.tensor_as(ids[1], kind)?];
        Ok(self.plain(op, &[&a, &b]))
    }

    /// Adds an operation of the first two arguments, which are converted to the element type of the
    /// result, as PyTorch does.
    pub fn pair(&mut self, op: &str, call: &Call) -> Result<String> {
        self.pair_of(op, [call.x[0], call.x[1]], call.kind)
    }

    fn arithmetic(&mut self, call: &Call) -> Result<String> {
        let (x, kind) = (call.x, call.kind);
        ensure!(kind != Kind::Bool, "arithmetic of truth values");
        match (call.op, x.get(2)) {
            ("add" | "sub" | "rsub", Some(alpha)) => {
                let [mut a, mut b] = [self.tensor_as(x[0], kind)?, self.tensor_as(x[1], kind)?];
                if call.op == "rsub" {
                    std::mem::swap(&mut a, &mut b);
                }
                if self.number(*alpha)? != 1. {
                    let (alpha, scaled) =
                        (self.tensor_as(*alpha, kind)?, if call.op == "rsub" { &mut a } else { &mut b });
                    *scaled = self.plain("Mul", &[scaled, &alpha]);
                }
                Ok(self.plain(if call.op == "add" { "Add" } else { "Sub" }, &[&a, &b]))
            }
            ("add", None) => self.pair("Add", call),
            ("sub", None) => self.pair("Sub", call),
            ("mul", _) => self.pair("Mul", call),
            ("pow", _) => self.pair("Pow", call),
            ("div", Some(rounding)) if !self.is_none(*rounding) => {
                let rounding = self.text(*rounding)?;
                self.rounded(call, &rounding)
            }
            ("div", _) => self.pair("Div", call),
            ("floor_divide", _) => self.rounded(call, "floor"),
            ("remainder", _) if kind == Kind::Int64 => self.pair("Mod", call),
            _ => {
                // x − b ⌊x / b⌋, which has the sign of b.
                let (quotient, b) = (self.rounded(call, "floor")?, self.tensor_as(x[1], kind)?);
                let (whole, a) = (self.plain("Mul", &[&quotient, &b]), self.tensor_as(x[0], kind)?);
                Ok(self.plain("Sub", &[&a, &whole]))
            }
        }
    }

    /// Translates a division that rounds. ONNX rounds quotients of integers to zero.
    fn rounded(&mut self, call: &Call, rounding: &str) -> Result<String> {
        if (call.kind, rounding) == (Kind::Int64, "trunc") {
            return self.pair("Div", call);
        }
        ensure!(rounding == "floor", "a division that rounds to zero");
        let quotient = self.pair_of("Div", [call.x[0], call.x[1]], Kind::Float)?;
        let floor = self.plain("Floor", &[&quotient]);
        self.convert(floor, Kind::Float, call.kind)
    }

    fn comparison(&mut self, name: &str, call: &Call) -> Result<String> {
        let kinds = [self.kind(call.x[0])?, self.kind(call.x[1])?];
        let kind = match kinds {
            [Kind::Bool, Kind::Bool] if name == "Equal" => Kind::Bool,
            _ if kinds.contains(&Kind::Float) => Kind::Float,
            _ => Kind::Int64,
        };
        let found = self.pair_of(name, [call.x[0], call.x[1]], kind)?;
        Ok(if call.op == "ne" { self.plain("Not", &[&found]) } else { found })
    }

    /// Translates a choice between two tensors by a condition.
    fn choice(&mut self, [condition, a, b]: [usize; 3], kind: Kind) -> Result<String> {
        let condition = self.tensor_as(condition, Kind::Bool)?;
        let [a, b] = [self.tensor_as(a, kind)?, self.tensor_as(b, kind)?];
        Ok(self.plain("Where", &[&condition, &a, &b]))
    }

    /// Translates a + value b c, and a + value b / c.
    fn with_product(&mut self, call: &Call) -> Result<String> {
        let (x, kind) = (call.x, call.kind);
        let op = if call.op == "addcmul" { "Mul" } else { "Div" };
        let mut product = self.pair_of(op, [x[1], x[2]], kind)?;
        if self.number(x[3])? != 1. {
            let value = self.tensor_as(x[3], kind)?;
            product = self.plain("Mul", &[&product, &value]);
        }
        let a = self.tensor_as(x[0], kind)?;
        Ok(self.plain("Add", &[&a, &product]))
    }

    /// Translates exp(x) − 1 and log(x + 1).
    fn near_one(&mut self, call: &Call) -> Result<String> {
        let (x, one) = (self.tensor_as(call.x[0], Kind::Float)?, self.scalar(1., Kind::Float)?);
        Ok(match call.op {
            "expm1" => {
                let power = self.plain("Exp", &[&x]);
                self.plain("Sub", &[&power, &one])
            }
            _ => {
                let sum = self.plain("Add", &[&x, &one]);
                self.plain("Log", &[&sum])
            }
        })
    }

    fn clamp(&mut self, call: &Call) -> Result<String> {
        let (x, kind) = (call.x, call.kind);
        let [low, high] = match call.op {
            "relu6" => [self.scalar(0., kind)?, self.scalar(6., kind)?],
            "clamp_max" => [String::new(), self.tensor_as(x[1], kind)?],
            _ => {
                let mut bound = |at: usize| match x.get(at).filter(|id| !self.is_none(**id)) {
                    Some(id) => self.tensor_as(*id, kind),
                    None => Ok(String::new()),
                };
                [bound(1)?, bound(2)?]
            }
        };
        let input = self.tensor_as(x[0], kind)?;
        Ok(self.plain("Clip", &[&input, &low, &high]))
    }
}
