//! Operations that take some numbers of a tensor: slices, parts, and those at given places.

use super::writer::{Call, Writer, axis};
use crate::onnx::proto::AttributeProto;
use anyhow::{Result, bail, ensure};
use tch::{Kind, Tensor};

impl Writer<'_> {
    /// Translates a selection; none for any other operation.
    pub fn selection(&mut self, call: &Call) -> Result<Option<String>> {
        let x = call.x;
        Ok(Some(match call.op {
            "slice" => {
                let bound = |at: usize, other| if self.is_none(x[at]) { Ok(other) } else { self.integer(x[at]) };
                let [from, to, along, step] =
                    [bound(2, 0)?, bound(3, i64::MAX)?, self.integer(x[1])?, self.integer(x[4])?];
                let input = self.tensor(x[0])?;
                self.slice(&input, along, [from, to, step])?
            }
            "narrow" => {
                let [along, from, length] = [self.integer(x[1])?, self.integer(x[2])?, self.integer(x[3])?];
                let input = self.tensor(x[0])?;
                self.slice(&input, along, [from, from + length, 1])?
            }
            "select" => {
                let (along, at) = (self.integer(x[1])?, self.tensor_as(x[2], Kind::Int64)?);
                self.taken(x[0], &at, along)?
            }
            "index_select" => {
                let (along, at) = (self.integer(x[1])?, self.tensor_as(x[2], Kind::Int64)?);
                self.taken(x[0], &at, along)?
            }
            "embedding" => {
                let at = self.tensor_as(x[1], Kind::Int64)?;
                self.taken(x[0], &at, 0)?
            }
            "gather" => {
                let (input, at) = (self.tensor(x[0])?, self.tensor_as(x[2], Kind::Int64)?);
                let along = AttributeProto::int("axis", self.integer(x[1])?);
                self.add("GatherElements", &[&input, &at], vec![along])
            }
            "index" => self.index(call)?,
            "repeat_interleave" => {
                ensure!(!self.is_none(x[2]), "repetitions of all numbers");
                let (times, along) = (self.integer(x[1])?, self.integer(x[2])?);
                let size = self.size(x[0])?;
                let length = size[axis(along, size.len())? as usize];
                let at = self.integers(&(0..length * times).map(|at| at / times).collect::<Vec<_>>())?;
                self.taken(x[0], &at, along)?
            }
            "roll" => self.rolled(call)?,
            "flip" => {
                let mut map = self.tensor(x[0])?;
                for along in self.list(x[1])? {
                    map = self.slice(&map, along, [-1, i64::MIN, -1])?;
                }
                map
            }
            "cumsum" => {
                let (input, along) = (self.tensor_as(x[0], call.kind)?, self.integer(x[1])?);
                let along = self.store(&Tensor::from(along))?;
                self.plain("CumSum", &[&input, &along])
            }
            "unfold" => self.windows_along(call)?,
            _ => return Ok(None),
        }))
    }

    /// Adds a slice along one dimension: from, to, step.
    pub fn slice(&mut self, input: &str, along: i64, [from, to, step]: [i64; 3]) -> Result<String> {
        let [from, to, along, step] = [from, to, along, step].map(|value| self.integers(&[value]));
        Ok(self.plain("Slice", &[input, &from?, &to?, &along?, &step?]))
    }

    /// Takes the slices at some places along a dimension.
    pub fn taken(&mut self, x: usize, at: &str, along: i64) -> Result<String> {
        let input = self.tensor(x)?;
        Ok(self.add("Gather", &[&input, at], vec![AttributeProto::int("axis", along)]))
    }

    /// Translates an operation that takes a tensor apart along a dimension.
    pub fn parts(&mut self, call: &Call) -> Result<Vec<String>> {
        let (x, input) = (call.x, self.tensor(call.x[0])?);
        let rank = self.size(x[0])?.len();
        match call.op {
            "unbind" => {
                let along = self.integer(x[1])?;
                let mut parts = Vec::new();
                for at in 0..call.items.len() as i64 {
                    let at = self.store(&Tensor::from(at))?;
                    parts.push(self.taken(x[0], &at, along)?);
                }
                Ok(parts)
            }
            "chunk" | "unsafe_chunk" | "split" | "unsafe_split" | "split_with_sizes" | "tensor_split" => {
                let along = axis(self.integer(x[2])?, rank)?;
                let lengths: Vec<i64> = call.items.iter().map(|item| item.size[along as usize]).collect();
                let lengths = self.integers(&lengths)?;
                let more = vec![AttributeProto::int("axis", along)];
                Ok(self.add_several("Split", &[&input, &lengths], more, call.items.len()))
            }
            _ => bail!("this operation is not translated; export the compact form, or TorchScript"),
        }
    }

    /// Translates x[…, i, j, …]: neighbouring dimensions are merged, and their indices with them.
    fn index(&mut self, call: &Call) -> Result<String> {
        let (size, indices) = (self.size(call.x[0])?, self.items(call.x[1])?);
        let given: Vec<usize> = (0..indices.len()).filter(|at| !self.is_none(indices[*at])).collect();
        let (Some(&first), Some(&last)) = (given.first(), given.last()) else { bail!("no index") };
        ensure!(last - first + 1 == given.len(), "indices of dimensions that are no neighbours");
        for at in &given {
            ensure!(self.kind(indices[*at])? == Kind::Int64, "an index by truth values");
        }
        if first == last {
            let at = self.tensor(indices[first])?;
            return self.taken(call.x[0], &at, first as i64);
        }
        let mut place: Option<String> = None;
        for at in given {
            let (index, length) = (self.tensor(indices[at])?, self.scalar(size[at] as f64, Kind::Int64)?);
            // An index below 0 counts from the end.
            let index = self.plain("Mod", &[&index, &length]);
            place = Some(match place {
                None => index,
                Some(before) => {
                    let before = self.plain("Mul", &[&before, &length]);
                    self.plain("Add", &[&before, &index])
                }
            });
        }
        let merged: i64 = size[first..=last].iter().product();
        let kept: Vec<i64> = if first == 0 { vec![] } else { vec![0; first] };
        let shape = self.integers(&[&kept, &[merged][..], &size[last + 1..]].concat())?;
        let input = self.tensor(call.x[0])?;
        let flat = self.plain("Reshape", &[&input, &shape]);
        let along = vec![AttributeProto::int("axis", first as i64)];
        Ok(self.add("Gather", &[&flat, &place.unwrap_or_default()], along))
    }

    /// Moves numbers along dimensions; those that leave at the end come in at the beginning.
    fn rolled(&mut self, call: &Call) -> Result<String> {
        let (shifts, along) = (self.list(call.x[1])?, self.list(call.x[2])?);
        ensure!(shifts.len() == along.len(), "a shift of all numbers");
        let mut map = self.tensor(call.x[0])?;
        for (shift, along) in shifts.into_iter().zip(along) {
            let along = axis(along, call.size.len())?;
            let length = call.size[along as usize];
            let from = length - shift.rem_euclid(length.max(1));
            if from == length {
                continue;
            }
            let parts = [self.slice(&map, along, [from, length, 1])?, self.slice(&map, along, [0, from, 1])?];
            map = self.add("Concat", &[&parts[0], &parts[1]], vec![AttributeProto::int("axis", along)]);
        }
        Ok(map)
    }

    /// Translates windows along a dimension, which become a dimension of their own at the end.
    /// Arguments: x, dimension, length, step.
    fn windows_along(&mut self, call: &Call) -> Result<String> {
        let x = call.x;
        let rank = call.size.len();
        let (along, length, step) = (axis(self.integer(x[1])?, rank - 1)?, self.integer(x[2])?, self.integer(x[3])?);
        let count = call.size[along as usize];
        let places: Vec<i64> = (0..count).flat_map(|i| (0..length).map(move |j| i * step + j)).collect();
        let places = self.store(&Tensor::from_slice(&places).reshape([count, length]))?;
        let windows = self.taken(x[0], &places, along)?;
        let mut order: Vec<i64> = (0..rank as i64).filter(|of| *of != along + 1).collect();
        order.push(along + 1);
        Ok(self.add("Transpose", &[&windows], vec![AttributeProto::ints("perm", order)]))
    }
}
