//! Operations that only give numbers another shape or order, repeat or join them.

use super::writer::{Call, Writer, axis};
use crate::onnx::proto::AttributeProto;
use anyhow::{Result, bail, ensure};
use tch::{Device, Kind, Tensor};

impl Writer<'_> {
    /// Translates an operation that moves all numbers; none for any other.
    pub fn shaping(&mut self, call: &Call) -> Result<Option<String>> {
        let x = call.x;
        let rank = || self.size(x[0]).map(|size| size.len());
        Ok(Some(match call.op {
            "reshape" | "view" | "_unsafe_view" if self.list(x[1]).is_ok() => {
                let (input, shape) = (self.tensor(x[0])?, self.integers(&self.list(x[1])?)?);
                self.plain("Reshape", &[&input, &shape])
            }
            "reshape" | "view" | "_unsafe_view" | "view_as" | "reshape_as" | "unflatten" | "flatten" => {
                self.reshaped(call)?
            }
            "squeeze" if x.len() == 1 => self.reshaped(call)?,
            "squeeze" | "unsqueeze" => {
                let axes = self.integer(x[1]).map_or_else(|_| self.list(x[1]), |axis| Ok(vec![axis]))?;
                self.with_axes(if call.op == "squeeze" { "Squeeze" } else { "Unsqueeze" }, x[0], &axes)?
            }
            "transpose" | "swapaxes" | "swapdims" => {
                let rank = rank()?;
                let mut order: Vec<i64> = (0..rank as i64).collect();
                let [a, b] = [axis(self.integer(x[1])?, rank)?, axis(self.integer(x[2])?, rank)?];
                order.swap(a as usize, b as usize);
                self.permuted(x[0], order)?
            }
            "t" | "numpy_T" => {
                let order = (0..rank()? as i64).rev().collect();
                self.permuted(x[0], order)?
            }
            "mT" => {
                let rank = rank()?;
                let mut order: Vec<i64> = (0..rank as i64).collect();
                order.swap(rank - 2, rank - 1);
                self.permuted(x[0], order)?
            }
            "permute" => {
                let rank = rank()?;
                let order = self.list(x[1])?.into_iter().map(|of| axis(of, rank)).collect::<Result<_>>()?;
                self.permuted(x[0], order)?
            }
            "movedim" => self.moved(call)?,
            "expand" | "expand_as" => self.expanded(call)?,
            "repeat" | "tile" => {
                let (times, rank) = (self.list(x[1])?, rank()?);
                ensure!(times.len() == rank, "{} repetitions of {rank} dimensions", times.len());
                let (input, times) = (self.tensor(x[0])?, self.integers(&times)?);
                self.plain("Tile", &[&input, &times])
            }
            "cat" | "concat" | "stack" => self.join(call)?,
            "constant_pad_nd" | "pad" | "reflection_pad1d" | "reflection_pad2d" | "replication_pad1d"
            | "replication_pad2d" => self.padded(call)?,
            "zeros_like" | "ones_like" | "full_like" => {
                let value = match call.op {
                    "zeros_like" => 0.,
                    "ones_like" => 1.,
                    _ => self.number(x[1])?,
                };
                let (input, value) = (self.tensor(x[0])?, self.scalar(value, call.kind)?);
                let shape = self.plain("Shape", &[&input]);
                self.plain("Expand", &[&value, &shape])
            }
            "new_zeros" | "new_ones" | "new_full" => {
                let value = match call.op {
                    "new_zeros" => 0.,
                    "new_ones" => 1.,
                    _ => self.number(x[2])?,
                };
                self.store(&Tensor::full(call.size, value, (call.kind, Device::Cpu)))?
            }
            "triu" | "tril" => self.triangle(call)?,
            "pixel_shuffle" | "pixel_unshuffle" | "channel_shuffle" => self.shuffled(call)?,
            _ => return Ok(None),
        }))
    }

    /// Gives a tensor another shape. The batch is the first dimension on both sides, or is merged
    /// into that.
    fn reshaped(&mut self, call: &Call) -> Result<String> {
        let (input, own) = (self.tensor(call.x[0])?, self.size(call.x[0])?);
        let Some((first, rest)) = call.size.split_first() else { bail!("a tensor without dimensions") };
        // In ONNX's Reshape, 0 keeps a dimension.
        let batch = if own.first() == Some(first) { 0 } else { -1 };
        let shape = self.integers(&[&[batch], rest].concat())?;
        Ok(self.plain("Reshape", &[&input, &shape]))
    }

    /// Gives a tensor a shape that has its batch first.
    pub fn reshape_to(&mut self, input: &str, image: &[i64]) -> Result<String> {
        let shape = self.integers(&[&[0], image].concat())?;
        Ok(self.plain("Reshape", &[input, &shape]))
    }

    fn with_axes(&mut self, op: &str, x: usize, axes: &[i64]) -> Result<String> {
        let size = self.size(x)?;
        // PyTorch leaves a dimension that is not 1.
        let is_one = |of: &i64| axis(*of, size.len()).is_ok_and(|along| size[along as usize] == 1);
        let axes: Vec<i64> = axes.iter().copied().filter(|of| op != "Squeeze" || is_one(of)).collect();
        if axes.is_empty() {
            return self.of("Identity", x, vec![]);
        }
        let (input, axes) = (self.tensor(x)?, self.integers(&axes)?);
        Ok(self.plain(op, &[&input, &axes]))
    }

    fn permuted(&mut self, x: usize, order: Vec<i64>) -> Result<String> {
        self.of("Transpose", x, vec![AttributeProto::ints("perm", order)])
    }

    /// Moves dimensions to other places; the others keep their order.
    fn moved(&mut self, call: &Call) -> Result<String> {
        let rank = call.size.len();
        let places = |id: usize| {
            let list = self.integer(id).map_or_else(|_| self.list(id), |one| Ok(vec![one]))?;
            list.into_iter().map(|of| axis(of, rank)).collect::<Result<Vec<i64>>>()
        };
        let (from, to) = (places(call.x[1])?, places(call.x[2])?);
        let mut others = (0..rank as i64).filter(|of| !from.contains(of));
        let order = (0..rank as i64).filter_map(|place| match to.iter().position(|of| *of == place) {
            Some(at) => Some(from[at]),
            None => others.next(),
        });
        let order = order.collect();
        self.permuted(call.x[0], order)
    }

    /// Repeats dimensions of 1. Those that stay are 1 in ONNX's shape, as they are -1 in PyTorch's.
    fn expanded(&mut self, call: &Call) -> Result<String> {
        let own = self.size(call.x[0])?;
        let added = call.size.len() - own.len();
        let stays = |at: usize| at >= added && own[at - added] == call.size[at];
        let shape: Vec<i64> = (0..call.size.len()).map(|at| if stays(at) { 1 } else { call.size[at] }).collect();
        let (input, shape) = (self.tensor(call.x[0])?, self.integers(&shape)?);
        Ok(self.plain("Expand", &[&input, &shape]))
    }

    /// Concatenates a list of tensors, or stacks it along a new dimension.
    fn join(&mut self, call: &Call) -> Result<String> {
        let along = self.integer(call.x[1])?;
        let mut names = Vec::new();
        for part in self.items(call.x[0])? {
            // PyTorch leaves out a tensor without numbers.
            if call.op != "stack" && self.size(part)? == [0] {
                continue;
            }
            let part = self.tensor_as(part, call.kind)?;
            names.push(match call.op {
                "stack" => {
                    let axes = self.integers(&[along])?;
                    self.plain("Unsqueeze", &[&part, &axes])
                }
                _ => part,
            });
        }
        Ok(self.add_list("Concat", &names, vec![AttributeProto::int("axis", along)]))
    }

    /// Translates a padding. PyTorch lists pairs from the last dimension on; ONNX lists all
    /// beginnings and then all ends.
    fn padded(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let mode = match call.op {
            "pad" => self.text(x[2])?,
            op => op.split('_').next().unwrap_or_default().to_string(),
        };
        let mode = match mode.as_str() {
            "constant" => "constant",
            "reflect" | "reflection" => "reflect",
            "replicate" | "replication" => "edge",
            mode => bail!("padding `{mode}` has no like in ONNX"),
        };
        let (pads, rank) = (self.list(x[1])?, call.size.len());
        let mut all = vec![0; 2 * rank];
        for (pair, amounts) in pads.chunks(2).enumerate() {
            let dimension = rank - 1 - pair;
            (all[dimension], all[rank + dimension]) = (amounts[0], amounts[1]);
        }
        let value = x.get(if call.op == "pad" { 3 } else { 2 });
        let value = value.filter(|id| mode == "constant" && !self.is_none(**id));
        let value = value.map_or(Ok(0.), |id| self.number(*id))?;
        let (input, all, value) = (self.tensor(x[0])?, self.integers(&all)?, self.scalar(value, call.kind)?);
        Ok(self.add("Pad", &[&input, &all, &value], vec![AttributeProto::text("mode", mode)]))
    }

    /// Keeps one triangle of a matrix.
    fn triangle(&mut self, call: &Call) -> Result<String> {
        let (diagonal, sizes) = (self.integer(call.x[1])?, &call.size[call.size.len() - 2..]);
        let all = Tensor::ones(sizes, (Kind::Float, Device::Cpu));
        let kept = if call.op == "triu" { all.triu(diagonal) } else { all.tril(diagonal) };
        let (kept, zero) = (self.store(&kept.to_kind(Kind::Bool))?, self.scalar(0., call.kind)?);
        let input = self.tensor(call.x[0])?;
        Ok(self.plain("Where", &[&kept, &input, &zero]))
    }

    /// Moves channels to pixels, pixels to channels, or channels between groups.
    fn shuffled(&mut self, call: &Call) -> Result<String> {
        let (input, n) = (self.tensor(call.x[0])?, self.integer(call.x[1])?);
        let &[_, c, h, w] = &self.size(call.x[0])?[..] else { bail!("other than four dimensions") };
        let (apart, order): (Vec<i64>, &[i64]) = match call.op {
            "pixel_shuffle" => (vec![c / (n * n), n, n, h, w], &[0, 1, 4, 2, 5, 3]),
            "pixel_unshuffle" => (vec![c, h / n, n, w / n, n], &[0, 1, 3, 5, 2, 4]),
            _ => (vec![n, c / n, h, w], &[0, 2, 1, 3, 4]),
        };
        let apart = self.reshape_to(&input, &apart)?;
        let turned = self.add("Transpose", &[&apart], vec![AttributeProto::ints("perm", order)]);
        self.reshape_to(&turned, &call.size[1..])
    }
}
