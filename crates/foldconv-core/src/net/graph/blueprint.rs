//! The layout of a network that a file describes: sites, and the operators of libtorch between
//! them.

use crate::algebra::{Geometry, count};
use crate::graph::{Arg, Id, Node, Op, Operators};
use crate::net::site::SiteKind;
use crate::op::activation::Activation;
use crate::op::contract::operator::After;
use crate::op::layers::BnOptions;
use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use tch::{Device, Kind, Tensor};

/// The layout of a network. It has no numbers of weights, and travels in model files.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Blueprint {
    /// Number of values.
    pub values: usize,
    /// The images.
    pub input: Id,
    /// The logits.
    pub output: Id,
    /// Number of logits in the file.
    pub classes: i64,
    /// Whether the linear regions are folded.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub folded: bool,
    /// Steps in the order in which they run.
    pub steps: Vec<Step>,
    /// Tensors of operators that are no sites, which training sets or follows.
    pub variables: Vec<Variable>,
    /// Integers and flags.
    pub constants: Vec<Constant>,
    /// Numbers of the file, by the names of the network's variables. Models have their own.
    #[serde(skip)]
    pub weights: Weights,
}

/// Tensors by name. A lock makes them what other threads may read.
pub type Weights = Mutex<BTreeMap<String, Tensor>>;

/// A part of a network.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A convolution with the batch norm and the activation behind it.
    Site(Site),
    /// The last layer.
    Classifier {
        /// Path of its variables.
        name: String,
        /// Number of features.
        features: i64,
        /// The features.
        input: Id,
        /// The logits.
        output: Id,
    },
    /// Any other operation.
    Call(Call),
}

/// A convolution with the batch norm and the activation behind it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Site {
    /// Path of the convolution.
    pub name: String,
    /// The layer behind it.
    pub after: After<String>,
    /// eps and momentum of the batch norm.
    pub bn: BnOptions,
    /// Role of the convolution in the network.
    pub kind: SiteKind,
    /// Shape of the convolution.
    pub geometry: Geometry,
    /// Activation behind both.
    pub activation: Activation,
    /// Whether the convolution was folded, so that no operator stands on it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub folded: bool,
    /// The map that it reads.
    pub input: Id,
    /// The map that it makes.
    pub output: Id,
}

/// A call of an operator of libtorch.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Call {
    /// Name of the node in the file.
    pub node: String,
    /// Path of its module.
    pub module: String,
    /// Name of the operator, such as `aten::add`; `unpack` and `integers` are not libtorch's.
    pub name: String,
    /// Name of the overload.
    pub overload: String,
    /// Arguments in their order.
    pub args: Vec<Arg>,
    /// Results.
    pub outputs: Vec<Id>,
}

/// Numbers with which a variable begins where the file's are not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fill {
    /// U(-1/sqrt(n), 1/sqrt(n)), n the number of inputs of each output.
    Uniform(i64),
    /// Ones.
    Ones,
    /// Zeros.
    Zeros,
    /// Those of the file: the operation has no usual ones.
    Kept,
}

/// A tensor of floating-point numbers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Variable {
    /// The value.
    pub id: Id,
    /// Dotted name.
    pub name: String,
    /// Shape.
    pub size: Vec<i64>,
    /// Numbers with which it begins.
    pub fill: Fill,
    /// Whether training sets it.
    pub trained: bool,
}

/// A tensor of integers or flags.
#[derive(Debug, Serialize, Deserialize)]
pub struct Constant {
    /// The value.
    pub id: Id,
    /// Shape.
    pub size: Vec<i64>,
    /// Whether the numbers are flags.
    pub flags: bool,
    /// The numbers.
    pub numbers: Vec<i64>,
}

/// Values of a network at most.
const MOST_VALUES: usize = 1 << 20;

/// Numbers of a tensor at most.
const MOST_NUMBERS: i64 = 1 << 30;

/// Channels, taps and steps of a convolution at most.
const LARGEST: i64 = 1 << 16;

/// Returns whether a tensor can have a shape.
fn is_size(size: &[i64]) -> bool {
    size.iter().all(|n| *n >= 0) && count(size) <= MOST_NUMBERS
}

/// Returns whether a convolution can have a shape.
fn is_convolution(geometry: &Geometry) -> bool {
    let Geometry { in_channels, out_channels, kernel, stride, padding, dilation, groups, .. } = geometry;
    let positive = [&[*in_channels, *out_channels, *groups][..], kernel, stride, dilation].concat();
    positive.iter().all(|n| (1..=LARGEST).contains(n))
        && padding.iter().all(|n| (0..=LARGEST).contains(n))
        && in_channels % groups == 0
        && out_channels % groups == 0
        && is_size(&geometry.weight_size())
}

/// Returns whether the dotted name of a variable lies below a path.
pub(super) fn is_below(name: &str, path: &str) -> bool {
    name.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'))
}

impl Constant {
    /// Returns the tensor on a device.
    ///
    /// # Errors
    /// The numbers do not fit the shape.
    pub fn tensor(&self, device: Device) -> Result<Tensor> {
        let kind = if self.flags { Kind::Bool } else { Kind::Int64 };
        Ok(Tensor::from_slice(&self.numbers).f_reshape(&self.size)?.to_kind(kind).to_device(device))
    }
}

impl Call {
    /// Returns a node of a graph as a call.
    ///
    /// # Errors
    /// The name of an operation that can't be run.
    pub fn of(node: Node) -> Result<Call> {
        let (name, overload) = match node.op {
            Op::Call { name, overload, .. } => (name, overload),
            Op::Unpack => ("unpack".into(), String::new()),
            Op::Integers => ("integers".into(), String::new()),
            Op::Opaque(name) => bail!("{}: the operation {name} can't be run", node.name),
        };
        Ok(Call { node: node.name, module: node.module, name, overload, args: node.args, outputs: node.outputs })
    }

    /// Returns the call as a node of a graph.
    ///
    /// # Errors
    /// libtorch has no such operator.
    pub fn node(&self, operators: &mut Operators) -> Result<Node> {
        let (op, args) = match self.name.as_str() {
            "unpack" => (Op::Unpack, self.args.clone()),
            "integers" => (Op::Integers, self.args.clone()),
            name => operators.call(name, &self.overload, self.args.clone(), vec![])?,
        };
        if let Op::Opaque(name) = &op {
            bail!("{}: libtorch has no operator {name}.{}", self.node, self.overload);
        }
        Ok(Node { name: self.node.clone(), module: self.module.clone(), op, args, outputs: self.outputs.clone() })
    }
}

impl Step {
    /// Returns the values that the step reads.
    pub fn inputs(&self) -> Vec<Id> {
        match self {
            Step::Site(Site { input, .. }) | Step::Classifier { input, .. } => vec![*input],
            Step::Call(call) => call.args.iter().flat_map(Arg::values).collect(),
        }
    }

    /// Returns the values that the step makes.
    pub fn outputs(&self) -> Vec<Id> {
        match self {
            Step::Site(Site { output, .. }) | Step::Classifier { output, .. } => vec![*output],
            Step::Call(call) => call.outputs.clone(),
        }
    }
}

impl Blueprint {
    /// Checks a layout that a file claims: each value is known before it is read, and shapes are
    /// those of layers.
    ///
    /// # Errors
    /// The number of a value that comes from nowhere, or the name of a layer of impossible shape.
    pub fn check(&self) -> Result<()> {
        ensure!(self.values <= MOST_VALUES, "{} values", self.values);
        let made = self.steps.iter().flat_map(Step::outputs);
        let given = self.variables.iter().map(|of| of.id).chain(self.constants.iter().map(|of| of.id));
        for id in made.chain(given).chain([self.input]) {
            ensure!(id < self.values, "the value {id} of {}", self.values);
        }
        for variable in &self.variables {
            ensure!(is_size(&variable.size), "{}: a shape of {:?}", variable.name, variable.size);
        }
        for step in &self.steps {
            match step {
                Step::Site(site) => {
                    ensure!(is_convolution(&site.geometry), "{}: a convolution of {:?}", site.name, site.geometry)
                }
                Step::Classifier { name, features, .. } => {
                    ensure!(is_size(&[*features]), "{name}: {features} features")
                }
                Step::Call(_) => {}
            }
        }
        let constants = self.variables.iter().map(|variable| variable.id);
        let constants = constants.chain(self.constants.iter().map(|constant| constant.id));
        let mut known: BTreeSet<Id> = constants.chain([self.input]).collect();
        for step in &self.steps {
            for id in step.inputs() {
                ensure!(known.contains(&id), "the value {id} comes from nowhere");
            }
            known.extend(step.outputs());
        }
        ensure!(known.contains(&self.output), "the output comes from nowhere");
        Ok(())
    }

    /// Returns, for each step, the values that no later step reads.
    pub fn last_uses(&self) -> Vec<Vec<Id>> {
        let mut seen = BTreeSet::from([self.output]);
        let mut last: Vec<Vec<Id>> = self
            .steps
            .iter()
            .rev()
            .map(|step| step.inputs().into_iter().filter(|id| seen.insert(*id)).collect())
            .collect();
        last.reverse();
        last
    }
}
