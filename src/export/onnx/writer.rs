//! The ONNX graph under construction, and what is known of each value of the recording.

use super::view::View;
use crate::export::recorded::{Node, TensorType, Type};
use crate::graph::element_type;
use crate::onnx;
use crate::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use tch::{Kind, Tensor};

/// State of a value of the recording during the translation.
#[derive(Clone, Debug)]
pub enum Known {
    /// A tensor of the ONNX graph, its size for a batch of 2, and its element type in the file.
    Tensor { name: String, size: Vec<i64>, kind: Kind },
    /// A tensor that is the same for all images, by its index in the recording. The file holds it
    /// from the first time on that it is read.
    Stored { name: String, at: usize },
    /// A constant that is not a tensor.
    Constant(Value),
    /// A list of values.
    List(Vec<usize>),
}

/// An operation of the recording.
pub struct Call<'n> {
    /// Name of libtorch's operator, without `aten::`.
    pub op: &'n str,
    /// Arguments, none left out.
    pub x: &'n [usize],
    /// Size of the first result for a batch of 2; empty for a list.
    pub size: &'n [i64],
    /// Element type of the first result.
    pub kind: Kind,
    /// Sizes of the items of the first result, where it is a list.
    pub items: &'n [TensorType],
}

/// The ONNX graph under construction.
pub struct Writer<'g> {
    known: HashMap<usize, Known>,
    /// Values that are parts of others and share their memory.
    pub views: HashMap<usize, View>,
    stored: &'g [Tensor],
    /// Names of the tensors of the recording that the file holds.
    held: HashSet<String>,
    /// Nodes so far.
    pub nodes: Vec<NodeProto>,
    /// Tensors of the file so far.
    pub initializers: Vec<TensorProto>,
}

/// Returns a dimension counted from the front; a negative one is counted from the end.
///
/// # Errors
/// There is no such dimension: libtorch lets a number have one.
pub fn axis(dimension: i64, rank: usize) -> Result<i64> {
    let along = if dimension < 0 { dimension + rank as i64 } else { dimension };
    ensure!((0..rank as i64).contains(&along), "dimension {dimension} of {rank}");
    Ok(along)
}

/// Returns the element type that stands for one in the file, so that no other conversions are
/// needed than between these three.
fn kind_in_file(kind: Kind) -> Kind {
    match kind {
        Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16 => Kind::Float,
        Kind::Bool => Kind::Bool,
        _ => Kind::Int64,
    }
}

impl<'g> Writer<'g> {
    /// Begins a graph. `stored` are the tensors of the recording.
    pub fn new(stored: &'g [Tensor]) -> Writer<'g> {
        Writer {
            known: HashMap::new(),
            views: HashMap::new(),
            stored,
            held: HashSet::new(),
            nodes: Vec::new(),
            initializers: Vec::new(),
        }
    }

    /// Says what is known of a value.
    pub fn define(&mut self, id: usize, known: Known) {
        self.known.insert(id, known);
    }

    /// Translates a node of the recording. What is computed from weights is computed in the file,
    /// where ONNX can, so that the weights keep their names; what the code computes without them is
    /// stored.
    pub fn node(&mut self, node: &Node) -> Result<()> {
        let out = *node.outputs.first().context("nothing comes out")?;
        self.note_view(node);
        if node.of_weights && self.calculation(node).is_ok() {
            return Ok(());
        }
        let stored = |value: &Value| value.get("tensor").and_then(Value::as_u64).map(|at| at as usize);
        let list = node.value.as_array().filter(|items| !items.is_empty()).map(|items| items.iter().map(stored));
        if let Some(items) = list.and_then(|items| items.collect::<Option<Vec<usize>>>()) {
            let ids = self.fresh(items.len());
            for (id, at) in ids.iter().zip(items) {
                self.define(*id, Known::Stored { name: format!("constant_{out}_{at}"), at });
            }
            self.define(out, Known::List(ids));
            return Ok(());
        }
        if let Some(at) = stored(&node.value) {
            let name = node.name.clone().unwrap_or_else(|| format!("constant_{out}"));
            self.define(out, Known::Stored { name, at });
            return Ok(());
        }
        self.calculation(node)
    }

    /// Translates a node by what it does, whether or not its value is known.
    fn calculation(&mut self, node: &Node) -> Result<()> {
        let out = *node.outputs.first().context("nothing comes out")?;
        match node.op.as_str() {
            "prim::Constant" | "prim::GetAttr" | "prim::dtype" | "prim::device" => {
                self.define(out, Known::Constant(node.value.clone()));
            }
            "prim::ListConstruct" | "prim::TupleConstruct" => self.define(out, Known::List(node.inputs.clone())),
            "prim::ListUnpack" => {
                let items = self.items(node.inputs[0])?;
                for (output, item) in node.outputs.iter().zip(items) {
                    self.known.insert(*output, self.known(item)?.clone());
                }
            }
            op => {
                let op = op.trim_start_matches("aten::");
                // An operation in place has the name of the other and one more letter.
                match op.strip_suffix('_').filter(|plain| !plain.ends_with('_')) {
                    Some(plain) => self.write(node, plain)?,
                    None => self.call(node, op)?,
                }
            }
        }
        Ok(())
    }

    /// Translates a call of an operator, whose results are tensors or a list of tensors.
    pub fn call(&mut self, node: &Node, op: &str) -> Result<()> {
        let kind = |of: &TensorType| kind_in_file(element_type(of.kind).unwrap_or(Kind::Float));
        let (size, first, items) = match node.types.first() {
            Some(Type::Tensor(of)) => (&of.size[..], kind(of), &[][..]),
            Some(Type::Tensors(items)) => (&[][..], items.first().map_or(Kind::Float, kind), &items[..]),
            _ => bail!("a result that is no tensor"),
        };
        let names = self.operation(&Call { op, x: &node.inputs, size, kind: first, items })?;
        if !items.is_empty() {
            let ids = self.fresh(items.len());
            for ((id, name), of) in ids.iter().zip(names).zip(items) {
                self.define(*id, Known::Tensor { name, size: of.size.clone(), kind: kind(of) });
            }
            self.define(node.outputs[0], Known::List(ids));
            return Ok(());
        }
        for ((id, name), of) in node.outputs.iter().zip(names).zip(&node.types) {
            let Type::Tensor(of) = of else { continue };
            self.define(*id, Known::Tensor { name, size: of.size.clone(), kind: kind(of) });
        }
        Ok(())
    }

    /// Removes operations and tensors that no result needs, such as parts of a tensor that was
    /// written and is not read again.
    pub fn keep(&mut self, results: &[String]) {
        let mut read: HashSet<&str> = results.iter().map(String::as_str).collect();
        let mut kept = vec![false; self.nodes.len()];
        for (node, kept) in self.nodes.iter().zip(&mut kept).rev() {
            *kept = node.output.iter().any(|name| read.contains(name.as_str()));
            read.extend(node.input.iter().map(String::as_str).filter(|_| *kept));
        }
        self.initializers.retain(|tensor| read.contains(tensor.name.as_str()));
        let mut kept = kept.into_iter();
        self.nodes.retain(|_| kept.next().unwrap_or(true));
    }

    /// Returns ids that no value of the recording has.
    fn fresh(&self, count: usize) -> Vec<usize> {
        (0..count).map(|at| usize::MAX - self.known.len() - at).collect()
    }

    /// Writes a result of the network under its name.
    pub fn result(&mut self, id: usize, name: &str, kind: Kind, number: i32) -> Result<()> {
        let value = self.tensor(id)?;
        let (op, attributes) = match self.kind(id)? == kind {
            true => ("Identity", vec![]),
            false => ("Cast", vec![AttributeProto::int("to", number.into())]),
        };
        self.nodes.push(NodeProto::new(op, name, &[&value], &[name], attributes));
        Ok(())
    }

    /// Adds an operation with one result, and returns the result's name.
    pub fn add(&mut self, op: &str, inputs: &[&str], attributes: Vec<AttributeProto>) -> String {
        self.add_several(op, inputs, attributes, 1).remove(0)
    }

    /// Adds an operation, and returns the names of its results.
    pub fn add_several(&mut self, op: &str, inputs: &[&str], more: Vec<AttributeProto>, results: usize) -> Vec<String> {
        let name = format!("{op}_{}", self.nodes.len());
        let names: Vec<String> = match results {
            1 => vec![name.clone()],
            _ => (0..results).map(|at| format!("{name}_{at}")).collect(),
        };
        let outputs: Vec<&str> = names.iter().map(String::as_str).collect();
        self.nodes.push(NodeProto::new(op, &name, inputs, &outputs, more));
        names
    }

    /// Adds an operation without attributes.
    pub fn plain(&mut self, op: &str, inputs: &[&str]) -> String {
        self.add(op, inputs, vec![])
    }

    /// Adds an operation on a list of tensors.
    pub fn add_list(&mut self, op: &str, inputs: &[String], attributes: Vec<AttributeProto>) -> String {
        self.add(op, &inputs.iter().map(String::as_str).collect::<Vec<_>>(), attributes)
    }

    /// Adds an operation on one argument.
    pub fn of(&mut self, op: &str, id: usize, attributes: Vec<AttributeProto>) -> Result<String> {
        let input = self.tensor(id)?;
        Ok(self.add(op, &[&input], attributes))
    }

    /// Adds a conversion, unless there is nothing to convert.
    pub fn convert(&mut self, name: String, from: Kind, to: Kind) -> Result<String> {
        if from == to {
            return Ok(name);
        }
        let number = onnx::number(to).with_context(|| format!("ONNX has no {to:?}"))?;
        Ok(self.add("Cast", &[&name], vec![AttributeProto::int("to", number.into())]))
    }

    /// Stores a tensor in the file, and returns its name.
    pub fn store(&mut self, tensor: &Tensor) -> Result<String> {
        let name = format!("constant_{}_{}", self.nodes.len(), self.initializers.len());
        self.initializer(&name, tensor)
    }

    /// Stores a number as a scalar.
    pub fn scalar(&mut self, number: f64, kind: Kind) -> Result<String> {
        self.store(&Tensor::from(number).to_kind(kind))
    }

    /// Stores a list of integers.
    pub fn integers(&mut self, values: &[i64]) -> Result<String> {
        self.store(&Tensor::from_slice(values))
    }

    fn initializer(&mut self, name: &str, tensor: &Tensor) -> Result<String> {
        let encoded = onnx::encode(name, &tensor.to_kind(kind_in_file(tensor.kind())));
        self.initializers.push(encoded.with_context(|| format!("a constant of {:?}", tensor.kind()))?);
        Ok(name.to_string())
    }

    /// Returns what is known of a value.
    pub fn known(&self, id: usize) -> Result<&Known> {
        self.known.get(&id).with_context(|| format!("value {id} comes from nowhere"))
    }

    /// Returns the size of a tensor for a batch of 2.
    pub fn size(&self, id: usize) -> Result<Vec<i64>> {
        match self.known(id)? {
            Known::Tensor { size, .. } => Ok(size.clone()),
            Known::Stored { at, .. } => Ok(self.stored[*at].size()),
            Known::Constant(_) => Ok(vec![]),
            Known::List(_) => bail!("a tensor is missing, there is a list"),
        }
    }

    /// Returns the element type of a tensor or a number in the file.
    pub fn kind(&self, id: usize) -> Result<Kind> {
        Ok(match self.known(id)? {
            Known::Tensor { kind, .. } => *kind,
            Known::Stored { at, .. } => kind_in_file(self.stored[*at].kind()),
            Known::Constant(Value::Bool(_)) => Kind::Bool,
            Known::Constant(value) if value.is_i64() => Kind::Int64,
            _ => Kind::Float,
        })
    }

    /// Returns the name of a tensor. A number becomes a scalar of float32.
    pub fn tensor(&mut self, id: usize) -> Result<String> {
        match self.known(id)?.clone() {
            Known::Tensor { name, .. } => Ok(name),
            Known::Stored { name, at } => {
                if self.held.insert(name.clone()) {
                    let stored = self.stored;
                    self.initializer(&name, &stored[at])?;
                }
                Ok(name)
            }
            Known::Constant(_) => self.tensor_as(id, Kind::Float),
            Known::List(_) => bail!("a tensor is missing, there is a list"),
        }
    }

    /// Returns the name of a tensor or a number, converted to an element type.
    pub fn tensor_as(&mut self, id: usize, kind: Kind) -> Result<String> {
        if let Known::Constant(value) = self.known(id)? {
            let number = number(value).with_context(|| format!("a tensor is missing, there is {value}"))?;
            return self.scalar(number, kind);
        }
        let (name, from) = (self.tensor(id)?, self.kind(id)?);
        self.convert(name, from, kind)
    }

    /// Returns the values of a list.
    pub fn items(&self, id: usize) -> Result<Vec<usize>> {
        match self.known(id)? {
            Known::List(items) => Ok(items.clone()),
            other => bail!("a list is missing, there is {other:?}"),
        }
    }

    /// Returns the value of a constant, or of a list of constants.
    pub fn constant(&self, id: usize) -> Result<Value> {
        match self.known(id)? {
            Known::Constant(value) => Ok(value.clone()),
            Known::List(items) => items.iter().map(|id| self.constant(*id)).collect(),
            Known::Tensor { name, .. } | Known::Stored { name, .. } => bail!("{name} is no constant"),
        }
    }

    /// Returns an integer.
    pub fn integer(&self, id: usize) -> Result<i64> {
        self.constant(id)?.as_i64().context("no integer")
    }

    /// Returns a number.
    pub fn number(&self, id: usize) -> Result<f64> {
        number(&self.constant(id)?).context("no number")
    }

    /// Returns a flag.
    pub fn flag(&self, id: usize) -> Result<bool> {
        self.constant(id)?.as_bool().context("no flag")
    }

    /// Returns a text.
    pub fn text(&self, id: usize) -> Result<String> {
        let value = self.constant(id)?;
        value.get("text").and_then(Value::as_str).map(String::from).context("no text")
    }

    /// Returns a list of integers.
    pub fn list(&self, id: usize) -> Result<Vec<i64>> {
        let value = self.constant(id)?;
        let items = value.as_array().context("no list")?;
        items.iter().map(|item| item.as_i64().context("no integer")).collect()
    }

    /// Returns a list of an integer for each axis, of which PyTorch takes one for all.
    pub fn per_axis(&self, id: usize, axes: usize) -> Result<Vec<i64>> {
        let list = self.list(id)?;
        Ok(if list.len() == 1 { vec![list[0]; axes] } else { list })
    }

    /// Returns whether an argument is absent.
    pub fn is_none(&self, id: usize) -> bool {
        matches!(self.known.get(&id), Some(Known::Constant(Value::Null)))
    }
}

/// Returns a number, which the recording has as it is, as a flag, or as {"float": number}.
pub fn number(value: &Value) -> Option<f64> {
    let float = || match value.get("float")? {
        Value::String(text) => text.parse().ok(),
        number => number.as_f64(),
    };
    value.as_f64().or_else(|| value.as_bool().map(f64::from)).or_else(float)
}
