//! Folds the linear regions of a network whose sites are folded: the sites that are one kernel are
//! convolutions among the others, and all other sites stay as they are.

use super::blueprint::{self, Blueprint, Step, is_below};
use super::network::{GraphNetwork, Part};
use crate::algebra::Kernel;
use crate::graph::{self, Arg, Graph, Id, Info, Node, Op, Operators};
use crate::native::dispatch::Value;
use crate::net::network::InputSpec;
use crate::op::activation::Activation;
use anyhow::Result;
use std::collections::BTreeMap;
use std::sync::PoisonError;
use tch::{Kind, Tensor, nn};

/// Returns the layout of the folded network with its tensors.
///
/// # Errors
/// A region whose fold is not exact.
pub fn fold(network: &GraphNetwork, store: &nn::VarStore, spec: InputSpec) -> Result<Blueprint> {
    let (mut graph, known) = Writer::new(network).graph()?;
    sizes(&mut graph, network, store, spec)?;
    graph::fold::fold(&mut graph)?;
    let mut folded = Blueprint { folded: true, ..Blueprint::around(&graph, &known)? };
    let kept: Vec<&String> = known.values().filter_map(name).collect();
    for step in &mut folded.steps {
        if let Step::Site(site) = step
            && !kept.contains(&&site.name)
        {
            site.folded = true;
        }
    }
    // Sites and layers that stay have their variables.
    let mut weights = folded.weights.lock().unwrap_or_else(PoisonError::into_inner);
    for (name, tensor) in store.variables() {
        if kept.iter().any(|path| is_below(&name, path)) {
            weights.insert(name, tensor);
        }
    }
    drop(weights);
    Ok(folded)
}

fn name(step: &Step) -> Option<&String> {
    match step {
        Step::Site(site) => Some(&site.name),
        Step::Classifier { name, .. } => Some(name),
        Step::Call(_) => None,
    }
}

/// Sets the shapes of a graph from a run of its network.
fn sizes(graph: &mut Graph, network: &GraphNetwork, store: &nn::VarStore, spec: InputSpec) -> Result<()> {
    let images = Tensor::zeros([1, spec.channels, spec.size, spec.size], (Kind::Float, store.device()));
    let input = graph.inputs[0];
    graph.values[input].size = Some(images.size());
    for info in &mut graph.values {
        info.size = info.tensor.as_ref().map(Tensor::size).or(info.size.take());
    }
    let _ = tch::no_grad(|| {
        network.run(&images, false, |id, value| match value {
            Value::Tensor(tensor) => graph.values[id].size = Some(tensor.size()),
            integers => graph.values[id].known = Some(integers.clone()),
        })
    })?;
    // The map between a convolution and its activation is no value of the network.
    for node in &graph.nodes {
        if let (&[map, ..], &[output]) = (&node.inputs()[..], &node.outputs[..])
            && graph.values[map].size.is_none()
        {
            graph.values[map].size = graph.values[output].size.clone();
        }
    }
    Ok(())
}

/// A network as a graph.
struct Writer<'n> {
    network: &'n GraphNetwork,
    graph: Graph,
    operators: Operators,
    /// Steps that stay as they are, by the names of the opaque nodes in their places.
    known: BTreeMap<String, Step>,
}

impl<'n> Writer<'n> {
    fn new(network: &'n GraphNetwork) -> Writer<'n> {
        let layout = &network.layout;
        let mut graph = Graph { inputs: vec![layout.input], outputs: vec![layout.output], ..Graph::default() };
        graph.values.resize_with(layout.values, Info::default);
        for (id, tensor) in &network.given {
            graph.values[*id].tensor = Some(tensor.detach().to_device(tch::Device::Cpu));
        }
        for variable in &layout.variables {
            graph.values[variable.id].name.clone_from(&variable.name);
            graph.values[variable.id].trained = Some(variable.trained);
        }
        Writer { network, graph, operators: Operators::default(), known: BTreeMap::new() }
    }

    fn graph(mut self) -> Result<(Graph, BTreeMap<String, Step>)> {
        for (part, step) in self.network.parts.iter().zip(&self.network.layout.steps) {
            match (part, step) {
                (Part::Call(node), _) => self.graph.nodes.push(node.clone()),
                (Part::Site(site), Step::Site(plan)) => match site.kernel() {
                    Some(kernel) => self.convolution(plan, kernel)?,
                    None => self.keep(step),
                },
                _ => self.keep(step),
            }
        }
        Ok((self.graph, self.known))
    }

    fn keep(&mut self, step: &Step) {
        let title = format!("step {}", self.known.len());
        let args = step.inputs().into_iter().map(Arg::Value).collect();
        let (op, module) = (Op::Opaque(title.clone()), String::new());
        self.graph.nodes.push(Node { name: title.clone(), module, op, args, outputs: step.outputs() });
        self.known.insert(title, step.clone());
    }

    fn convolution(&mut self, plan: &blueprint::Site, kernel: &Kernel) -> Result<()> {
        let constant = |graph: &mut Graph, part: &str, tensor: &Tensor| {
            let tensor = tensor.detach().to_device(tch::Device::Cpu);
            let (name, size) = (format!("{}.{part}", plan.name), Some(tensor.size()));
            graph.push_value(Info { name, size, tensor: Some(tensor), ..Info::default() })
        };
        let weight = constant(&mut self.graph, "weight", &kernel.weight);
        let bias = kernel.bias.as_ref().map(|bias| constant(&mut self.graph, "bias", bias));
        let inner = match plan.activation {
            Activation::None => plan.output,
            _ => self.graph.push_value(Info { name: format!("{}.sum", plan.name), ..Info::default() }),
        };
        // A fold may have groups that its site has not.
        let geometry = &kernel.geometry;
        let args = vec![
            Arg::Value(plan.input),
            Arg::Value(weight),
            bias.map_or(Arg::None, Arg::Value),
            Arg::integers(&geometry.stride),
            Arg::integers(&geometry.padding),
            Arg::integers(&geometry.dilation),
            Arg::Int(geometry.groups),
        ];
        self.call(plan, "aten::conv2d", args, inner)?;
        match plan.activation {
            Activation::None => Ok(()),
            Activation::Relu => self.call(plan, "aten::relu", vec![Arg::Value(inner)], plan.output),
            Activation::Relu6 => {
                let args = vec![Arg::Value(inner), Arg::Float(0.), Arg::Float(6.)];
                self.call(plan, "aten::hardtanh", args, plan.output)
            }
        }
    }

    fn call(&mut self, plan: &blueprint::Site, name: &str, args: Vec<Arg>, output: Id) -> Result<()> {
        let (op, args) = self.operators.call(name, "", args, vec![])?;
        let (name, module) = (plan.name.clone(), plan.name.clone());
        self.graph.nodes.push(Node { name, module, op, args, outputs: vec![output] });
        Ok(())
    }
}
