//! Operations in place. ONNX has none, so a tensor of which a part is written is made anew, and so
//! are the other parts of it that the network reads later.

use super::view::{Step, View};
use super::writer::{Known, Writer, axis};
use crate::export::recorded::Node;
use crate::onnx::proto::AttributeProto;
use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

impl Writer<'_> {
    /// Keeps of which tensor the result of a node is a part, if it is one.
    pub fn note_view(&mut self, node: &Node) {
        if let (Some(view), Some(out)) = (self.view(node), node.outputs.first()) {
            self.views.insert(*out, view);
        }
    }

    fn view(&self, node: &Node) -> Option<View> {
        let x = *node.inputs.first()?;
        let integer = |at: usize| self.integer(*node.inputs.get(at)?).ok();
        let size = self.size(x).ok()?;
        let along = axis(integer(1)?, size.len()).ok()?;
        let length = *size.get(along as usize)?;
        let place = |at: i64| if at < 0 { at + length } else { at }.clamp(0, length);
        let bound = |at: usize, other: i64| if self.is_none(node.inputs[at]) { Some(other) } else { integer(at) };
        let step = match node.op.as_str() {
            "aten::slice" => {
                Step::Slice { along, from: place(bound(2, 0)?), to: place(bound(3, length)?), step: integer(4)? }
            }
            "aten::narrow" => Step::Slice { along, from: integer(2)?, to: integer(2)? + integer(3)?, step: 1 },
            "aten::select" => Step::Select { along, at: axis(integer(2)?, length as usize).ok()? },
            _ => return None,
        };
        let mut view = self.views.get(&x).cloned().unwrap_or(View { base: x, steps: Vec::new() });
        let whole = matches!(step, Step::Slice { from: 0, to, step: 1, .. } if to == length);
        view.steps.extend((!whole).then_some(step));
        Some(view)
    }

    /// Translates an operation in place, called `op` where it is not.
    pub fn write(&mut self, node: &Node, op: &str) -> Result<()> {
        let (target, out) = (node.inputs[0], *node.outputs.first().context("nothing comes out")?);
        match op {
            "copy" | "fill" | "zero" => self.filled(target, node.inputs.get(1).filter(|_| op != "zero"), out)?,
            _ => self.call(node, op)?,
        }
        let view = self.views.get(&target).cloned().unwrap_or(View { base: target, steps: Vec::new() });
        if view.steps.is_empty() {
            self.define(view.base, self.known(out)?.clone());
        } else {
            let whole = self.with_part(&view, out)?;
            self.define(view.base, whole);
        }
        self.views.insert(out, view.clone());
        let mut parts: Vec<usize> = self.views.keys().copied().filter(|id| self.views[id].base == view.base).collect();
        parts.sort_unstable();
        for id in parts.into_iter().filter(|id| *id != out && *id != view.base) {
            let part = if id == target { self.known(out)?.clone() } else { self.part(id)? };
            self.define(id, part);
        }
        Ok(())
    }

    /// Defines a tensor of the size of another, full of a number or of the numbers of a smaller
    /// one.
    fn filled(&mut self, like: usize, value: Option<&usize>, out: usize) -> Result<()> {
        let (size, kind) = (self.size(like)?, self.kind(like)?);
        let value = match value {
            Some(id) => self.tensor_as(*id, kind)?,
            None => self.scalar(0., kind)?,
        };
        let like = self.tensor(like)?;
        let shape = self.plain("Shape", &[&like]);
        let name = self.plain("Expand", &[&value, &shape]);
        self.define(out, Known::Tensor { name, size, kind });
        Ok(())
    }

    /// Returns a tensor of which a part has new numbers.
    fn with_part(&mut self, view: &View, part: usize) -> Result<Known> {
        let (size, kind) = (self.size(view.base)?, self.kind(view.base)?);
        // Where no step is along the first dimension, that may be one of images, of any number.
        let apart = view.steps.iter().all(|step| step.along() != 0);
        let images = i64::from(apart && size.len() > 1);
        let image = &size[images as usize..];
        let places = Tensor::arange(image.iter().product::<i64>(), (Kind::Int64, Device::Cpu)).reshape(image);
        let places = view.steps.iter().fold(places, |places, step| step.of(&places, images)).reshape([-1, 1]);
        let places = self.store(&places)?;
        let [base, part] = [self.tensor(view.base)?, self.tensor_as(part, kind)?];
        let [base, part] = [self.by_place(&base, images)?, self.by_place(&part, images)?];
        let mut whole = self.plain("ScatterND", &[&base, &places, &part]);
        if images == 1 {
            whole = self.add("Transpose", &[&whole], vec![AttributeProto::ints("perm", [1, 0])]);
        }
        let shape = if images == 1 { [&[0], image].concat() } else { size.clone() };
        let shape = self.integers(&shape)?;
        Ok(Known::Tensor { name: self.plain("Reshape", &[&whole, &shape]), size, kind })
    }

    /// Gives a tensor one row for each place in an image, and one column for each image.
    fn by_place(&mut self, name: &str, images: i64) -> Result<String> {
        let shape = self.integers(if images == 1 { &[0, -1] } else { &[-1] })?;
        let flat = self.plain("Reshape", &[name, &shape]);
        Ok(match images {
            1 => self.add("Transpose", &[&flat], vec![AttributeProto::ints("perm", [1, 0])]),
            _ => flat,
        })
    }

    /// Takes a part of its tensor anew.
    fn part(&mut self, id: usize) -> Result<Known> {
        let (view, size) = (self.views[&id].clone(), self.size(id)?);
        let (mut name, kind) = (self.tensor(view.base)?, self.kind(view.base)?);
        for step in view.steps {
            name = match step {
                Step::Slice { along, from, to, step } => self.slice(&name, along, [from, to, step])?,
                Step::Select { along, at } => {
                    let at = self.store(&Tensor::from(at))?;
                    self.add("Gather", &[&name, &at], vec![AttributeProto::int("axis", along)])
                }
            };
        }
        Ok(Known::Tensor { name, size, kind })
    }
}
