//! A graph while a file is read: values by their names in the file, and which of them share memory.

use super::{Arg, Graph, Id, Info, Node, Op, Operators, is_in_place};
use crate::native::dispatch::{Operator, Value};
use anyhow::{Context, Result, ensure};
use std::collections::HashMap;
use tch::Tensor;

/// Operators whose result may share memory with their first argument.
const VIEWS: [&str; 24] = [
    "view",
    "reshape",
    "flatten",
    "unflatten",
    "slice",
    "select",
    "narrow",
    "split",
    "split_with_sizes",
    "chunk",
    "unbind",
    "transpose",
    "permute",
    "expand",
    "squeeze",
    "unsqueeze",
    "t",
    "as_strided",
    "view_as",
    "contiguous",
    "diagonal",
    "detach",
    "alias",
    "to",
];

/// A graph under construction.
#[derive(Default)]
pub struct Builder {
    /// The graph so far.
    pub graph: Graph,
    operators: Operators,
    ids: HashMap<String, Id>,
    /// The tensor whose memory a view shares.
    roots: HashMap<Id, Id>,
}

/// A call of an operator, as a file has it.
#[derive(Debug, Default)]
pub struct Call<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// Path of its module; empty where the file does not tell.
    pub module: &'a str,
    /// Name of the operator, such as `aten::conv2d`.
    pub name: &'a str,
    /// Name of the overload; empty for most.
    pub overload: &'a str,
    /// Arguments in their order.
    pub given: Vec<Arg>,
    /// Arguments by name.
    pub named: Vec<(String, Arg)>,
}

impl Builder {
    /// Adds a value that no node makes, under a name of the file.
    ///
    /// # Errors
    /// Another value has the name.
    pub fn define(&mut self, name: &str, info: Info) -> Result<Id> {
        let id = self.graph.push_value(info);
        ensure!(self.ids.insert(name.into(), id).is_none(), "two values have the name {name:.200}");
        Ok(id)
    }

    /// Adds an input.
    ///
    /// # Errors
    /// Those of [`Builder::define`].
    pub fn input(&mut self, name: &str, size: Option<Vec<i64>>) -> Result<Id> {
        let id = self.define(name, Info { name: name.into(), size, ..Info::default() })?;
        self.graph.inputs.push(id);
        Ok(id)
    }

    /// Adds the result of a node. A result without a name can't be read by it.
    ///
    /// # Errors
    /// Those of [`Builder::define`].
    pub fn result(&mut self, name: &str) -> Result<Id> {
        match name {
            "" => Ok(self.graph.push_value(Info::default())),
            _ => self.define(name, Info { name: name.into(), ..Info::default() }),
        }
    }

    /// Returns the value of a name.
    pub fn find(&self, name: &str) -> Option<Id> {
        self.ids.get(name).copied()
    }

    /// Returns the value of a name.
    ///
    /// # Errors
    /// No node before has made it.
    pub fn id(&self, name: &str) -> Result<Id> {
        self.find(name).with_context(|| format!("the value {name:.200} comes from nowhere"))
    }

    /// Adds a call whose results have the given names, or, without a name, can't be read by it.
    ///
    /// An operator that writes a tensor in place, which nothing else shares, becomes the one that
    /// returns a new tensor, and later readers of the tensor's name read that. A tensor that others
    /// share is marked as written.
    ///
    /// # Errors
    /// Those of [`Operators::call`], and of [`Builder::result`].
    pub fn call(&mut self, mut call: Call, results: &[&str]) -> Result<Vec<Id>> {
        let first = call.given.first().or(call.named.first().map(|(_, arg)| arg));
        let written = first.filter(|_| is_in_place(call.name)).and_then(|arg| arg.values().first().copied());
        let functional = call.name.trim_end_matches('_');
        let alone =
            written.filter(|id| self.aliases(*id).len() == 1 && Operator::find(functional, call.overload).is_some());
        if alone.is_some() {
            if call.given.is_empty() {
                // The two may name their first argument differently, as dropout_ and dropout do.
                call.given.push(call.named.remove(0).1);
            }
            call.name = functional;
        } else if let Some(id) = written {
            let shared = self.aliases(id);
            self.graph.written.extend(shared);
        }
        let (op, args) = self.operators.call(call.name, call.overload, call.given, call.named)?;
        let outputs = results.iter().map(|name| self.result(name)).collect::<Result<Vec<Id>>>()?;
        self.follow(&op, &args, &outputs, alone, written);
        self.push(call.node, call.module, op, args, outputs.clone());
        Ok(outputs)
    }

    /// Adds a node.
    pub fn push(&mut self, node: &str, module: &str, op: Op, args: Vec<Arg>, outputs: Vec<Id>) {
        self.graph.nodes.push(Node { name: node.into(), module: module.into(), op, args, outputs });
    }

    /// Adds an operation that can't be run.
    ///
    /// # Errors
    /// Those of [`Builder::result`].
    pub fn opaque(&mut self, op: &str, node: &str, args: Vec<Arg>, results: &[&str]) -> Result<()> {
        let outputs = results.iter().map(|name| self.result(name)).collect::<Result<Vec<Id>>>()?;
        self.push(node, "", Op::Opaque(op.into()), args, outputs);
        Ok(())
    }

    /// Adds a node that takes the list apart which the last call returned.
    ///
    /// # Errors
    /// Those of [`Builder::result`].
    pub fn unpack(&mut self, node: &str, module: &str, list: Id, results: &[&str]) -> Result<()> {
        let outputs = results.iter().map(|name| self.result(name)).collect::<Result<Vec<Id>>>()?;
        let root = self.root(list);
        self.roots.extend(outputs.iter().filter(|_| root != list).map(|id| (*id, root)));
        self.push(node, module, Op::Unpack, vec![Arg::Value(list)], outputs);
        Ok(())
    }

    /// Returns the values that share memory with a value.
    fn aliases(&self, id: Id) -> Vec<Id> {
        let root = self.root(id);
        let views = self.roots.iter().filter(|(_, of)| **of == root).map(|(view, _)| *view);
        views.chain([root]).collect()
    }

    fn root(&self, id: Id) -> Id {
        self.roots.get(&id).copied().unwrap_or(id)
    }

    /// Notes which results share memory with an argument, and lets later readers of a tensor that
    /// was written in place read the result.
    fn follow(&mut self, op: &Op, args: &[Arg], outputs: &[Id], functional: Option<Id>, written: Option<Id>) {
        if let (Some(old), Some(new)) = (functional, outputs.first()) {
            self.ids.values_mut().filter(|id| **id == old).for_each(|id| *id = *new);
            return;
        }
        let Op::Call { name, .. } = op else { return };
        let view = VIEWS.contains(&name.trim_start_matches("aten::")) || written.is_some();
        if let (true, Some(Arg::Value(base))) = (view, args.first()) {
            let root = self.root(*base);
            self.roots.extend(outputs.iter().map(|id| (*id, root)));
            if written.is_some() {
                self.graph.written.extend(outputs);
            }
        }
    }

    /// Adds a value that stands inside one operation of the file.
    pub fn inner(&mut self) -> Id {
        self.graph.push_value(Info { inner: true, ..Info::default() })
    }

    /// Computes the last node, if it reads constants alone, and makes its results constants.
    pub fn settle(&mut self) {
        let Some(node) = self.graph.nodes.pop() else { return };
        let results = self.graph.constant_results(&node, &HashMap::new());
        let tensors = results.into_iter().flatten().map(|result| match result {
            Value::Tensor(tensor) => Some(tensor),
            _ => None,
        });
        let tensors: Option<Vec<Tensor>> = tensors.collect();
        match tensors.filter(|tensors| !tensors.is_empty()) {
            Some(tensors) => {
                for (id, tensor) in node.outputs.iter().zip(tensors) {
                    self.graph.values[*id].tensor = Some(tensor);
                }
            }
            None => self.graph.nodes.push(node),
        }
    }

    /// Returns the graph.
    ///
    /// # Errors
    /// Those of [`Graph::check`], or it has no output.
    pub fn finish(self) -> Result<Graph> {
        ensure!(!self.graph.outputs.is_empty(), "it returns no tensor");
        self.graph.check()?;
        Ok(self.graph)
    }
}
