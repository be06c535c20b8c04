//! A node of an ONNX file while it is translated: its attributes and inputs, and the calls that it
//! becomes.

use super::proto::{AttributeProto, NodeProto};
use super::tensors;
use crate::graph::build::{Builder, Call};
use crate::graph::{Arg, Id, Op};
use std::collections::{HashMap, HashSet};
use tch::{Kind, Tensor};

/// Facts about the values of a file, by their names.
#[derive(Default)]
pub struct Facts {
    /// Shapes that the file gives. A dimension that is left open is none.
    pub shapes: HashMap<String, Vec<Option<i64>>>,
    /// Values of integers that are no constants. One operator of ONNX does another thing to them.
    pub whole: HashSet<String>,
}

/// A node, and the graph that it is added to.
pub struct Site<'a> {
    builder: &'a mut Builder,
    /// The node.
    pub node: &'a NodeProto,
    facts: &'a Facts,
    /// Version of the set of operators.
    pub opset: i64,
    module: String,
}

impl<'a> Site<'a> {
    /// Returns the site of a node.
    pub fn new(builder: &'a mut Builder, node: &'a NodeProto, facts: &'a Facts, opset: i64) -> Site<'a> {
        // A parameter `layer1.0.conv1.weight` says which module the node belongs to.
        let module = node.input.iter().skip(1).find_map(|name| name.strip_suffix(".weight")).unwrap_or_default();
        Site { builder, node, facts, opset, module: module.into() }
    }

    fn attribute(&self, name: &str) -> Option<&'a AttributeProto> {
        self.node.attribute.iter().find(|attribute| attribute.name == name)
    }

    /// Returns whether the node has an attribute.
    pub fn has(&self, name: &str) -> bool {
        self.attribute(name).is_some()
    }

    /// Returns an integer attribute.
    pub fn int(&self, name: &str, default: i64) -> i64 {
        self.attribute(name).map_or(default, |attribute| attribute.i)
    }

    /// Returns a floating-point attribute.
    pub fn float(&self, name: &str, default: f64) -> f64 {
        self.attribute(name).map_or(default, |attribute| f64::from(attribute.f))
    }

    /// Returns a text attribute.
    pub fn text(&self, name: &str, default: &'static str) -> &'a str {
        self.attribute(name).map_or(default, |attribute| std::str::from_utf8(&attribute.s).unwrap_or_default())
    }

    /// Returns a list attribute.
    pub fn ints(&self, name: &str) -> Option<Vec<i64>> {
        self.attribute(name).map(|attribute| attribute.ints.clone())
    }

    /// Returns the name of an input that is there.
    fn name(&self, at: usize) -> Option<&'a str> {
        self.node.input.get(at).map(String::as_str).filter(|name| !name.is_empty())
    }

    /// Returns an input that must be there.
    pub fn x(&self, at: usize) -> Option<Arg> {
        self.builder.find(self.name(at)?).map(Arg::Value)
    }

    /// Returns an input, or None.
    pub fn maybe(&self, at: usize) -> Arg {
        self.x(at).unwrap_or(Arg::None)
    }

    /// Returns the inputs that are there.
    pub fn all(&self) -> Option<Vec<Arg>> {
        (0..self.node.input.len()).map(|at| self.x(at)).collect()
    }

    /// Returns an input that is a constant.
    pub fn tensor(&self, at: usize) -> Option<&Tensor> {
        let id = self.builder.find(self.name(at)?)?;
        self.builder.graph.values[id].tensor.as_ref()
    }

    /// Returns the integers of a constant input.
    pub fn integers(&self, at: usize) -> Option<Vec<i64>> {
        let tensor = self.tensor(at).filter(|tensor| tensor.kind() == Kind::Int64 || tensor.kind() == Kind::Int)?;
        Vec::try_from(tensor.to_kind(Kind::Int64).flatten(0, -1)).ok()
    }

    /// Returns the numbers of a constant input.
    pub fn numbers(&self, at: usize) -> Option<Vec<f64>> {
        Vec::try_from(self.tensor(at)?.to_kind(Kind::Double).flatten(0, -1)).ok()
    }

    /// Returns the number of a constant input that has one.
    pub fn number(&self, at: usize) -> Option<f64> {
        self.numbers(at).filter(|numbers| numbers.len() == 1).map(|numbers| numbers[0])
    }

    /// Returns a list that is an attribute in older opsets and an input in newer ones: none inside
    /// where it is left out, none outside where it is computed when the network runs.
    pub fn axes(&self, name: &str, at: usize) -> Option<Option<Vec<i64>>> {
        match (self.ints(name), self.name(at)) {
            (Some(axes), _) => Some(Some(axes)),
            (None, Some(_)) => self.integers(at).map(Some),
            (None, None) => Some(None),
        }
    }

    /// Returns an input as a list of integers, which may be computed when the network runs.
    pub fn list(&mut self, at: usize) -> Option<Arg> {
        match self.integers(at) {
            Some(values) => Some(Arg::integers(&values)),
            None => {
                let input = self.x(at)?;
                Some(self.listed(input))
            }
        }
    }

    /// Returns a computed tensor of integers as a list.
    pub fn listed(&mut self, tensor: Arg) -> Arg {
        let output = self.builder.inner();
        self.builder.push(&self.node.name, &self.module, Op::Integers, vec![tensor], vec![output]);
        Arg::Value(output)
    }

    /// Returns one integer of an input, which may be computed when the network runs.
    pub fn item(&mut self, at: usize, index: usize) -> Option<Arg> {
        match self.integers(at) {
            Some(values) => values.get(index).map(|value| Arg::Int(*value)),
            None => {
                let input = self.x(at)?;
                let one = self.inner("aten::select", "int", vec![input, Arg::Int(0), Arg::Int(index as i64)])?;
                self.inner("aten::Int", "Tensor", vec![one])
            }
        }
    }

    /// Returns the shape of an input as far as the file gives it.
    pub fn shape(&self, at: usize) -> Option<Vec<Option<i64>>> {
        match self.tensor(at) {
            Some(tensor) => Some(tensor.size().into_iter().map(Some).collect()),
            None => self.facts.shapes.get(self.name(at)?).cloned(),
        }
    }

    /// Returns whether an input holds integers, as far as that is known.
    pub fn is_whole(&self, at: usize) -> bool {
        match self.tensor(at) {
            Some(tensor) => is_integer(tensor.kind()),
            None => self.name(at).is_some_and(|name| self.facts.whole.contains(name)),
        }
    }

    /// Returns whether a result of the node holds integers, as far as that is known.
    pub fn makes_whole(&self, result: usize) -> bool {
        match self.node.op_type.as_str() {
            "TopK" if result == 1 => true,
            "Shape" | "Size" | "ArgMax" | "ArgMin" | "NonZero" => true,
            "Cast" => tensors::kind(self.int("to", 0) as i32).is_some_and(is_integer),
            "ConstantOfShape" => {
                let value = self.attribute("value").and_then(|value| value.t.as_ref());
                value.and_then(|value| tensors::kind(value.data_type)).is_some_and(is_integer)
            }
            "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "IsNaN" | "Dropout" => false,
            "Where" => self.is_whole(1),
            // Every other operator has results of the type of its first input.
            _ => self.is_whole(0),
        }
    }

    /// Returns the number of dimensions of the map at an input. Where the file does not tell, a map
    /// is one of images.
    pub fn rank(&self, at: usize) -> i64 {
        self.shape(at).map_or(4, |shape| shape.len() as i64)
    }

    fn call(&mut self, name: &str, overload: &str, given: Vec<Arg>, results: &[&str]) -> Option<Vec<Id>> {
        let call = Call { node: &self.node.name, module: &self.module, name, overload, given, named: vec![] };
        let nodes = self.builder.graph.nodes.len();
        let ids = self.builder.call(call, results).ok()?;
        // An operator that libtorch does not have makes the whole node opaque.
        let known = self.builder.graph.nodes[nodes..].iter().all(|node| !matches!(node.op, Op::Opaque(_)));
        known.then_some(ids)
    }

    /// Adds a call whose result stays inside this node.
    pub fn inner(&mut self, name: &str, overload: &str, given: Vec<Arg>) -> Option<Arg> {
        let id = *self.call(name, overload, given, &[""])?.first()?;
        self.builder.graph.values[id].inner = true;
        self.builder.settle();
        Some(Arg::Value(id))
    }

    /// Adds the call whose result is that of this node.
    pub fn out(&mut self, name: &str, overload: &str, given: Vec<Arg>) -> Option<()> {
        let [output, rest @ ..] = &self.node.output[..] else { return None };
        if rest.iter().any(|name| !name.is_empty()) {
            return None;
        }
        self.call(name, overload, given, &[output])?;
        self.builder.settle();
        Some(())
    }

    /// Adds the call whose results are those of this node.
    pub fn outs(&mut self, name: &str, overload: &str, given: Vec<Arg>) -> Option<()> {
        let results: Vec<&str> = self.node.output.iter().map(String::as_str).collect();
        self.call(name, overload, given, &results)?;
        self.builder.settle();
        Some(())
    }

    /// Adds the call whose result is the first of this node; its other results can't be computed.
    pub fn first_out(&mut self, name: &str, overload: &str, given: Vec<Arg>) -> Option<()> {
        let [output, rest @ ..] = &self.node.output[..] else { return None };
        let rest: Vec<&str> = rest.iter().map(String::as_str).collect();
        self.call(name, overload, given.clone(), &[output])?;
        self.builder.settle();
        self.builder.opaque(&self.node.op_type, &self.node.name, given, &rest).ok()
    }

    /// Adds the call whose result is the list of this node's results.
    pub fn parts(&mut self, name: &str, overload: &str, given: Vec<Arg>) -> Option<()> {
        let list = *self.call(name, overload, given, &[""])?.first()?;
        self.builder.graph.values[list].inner = true;
        let results: Vec<&str> = self.node.output.iter().map(String::as_str).collect();
        self.builder.unpack(&self.node.name, &self.module, list, &results).ok()
    }
}

/// Returns whether a type is that of integers.
pub fn is_integer(kind: Kind) -> bool {
    [Kind::Int64, Kind::Int, Kind::Int16, Kind::Int8, Kind::Uint8].contains(&kind)
}
