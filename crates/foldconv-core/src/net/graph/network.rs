//! A network that a file describes, in expanded or compact form.

use super::Init;
use super::blueprint::{self, Blueprint, Fill, Step, is_below};
use crate::error::one_line;
use crate::graph::run::{Place, step};
use crate::graph::{Id, Node, Operators};
use crate::native::dispatch::Value;
use crate::net::builder::{Builder, Classifier, DefaultOperator, SitePlan};
use crate::net::network::{InputSpec, Network};
use crate::net::site::{Form, Site};
use crate::op::contract::operator::After;
use crate::op::layers::{below, uniform, with_bn};
use crate::{bad_request, trace};
use anyhow::{Result, bail};
use std::collections::HashMap;
use std::sync::{Arc, PoisonError};
use tch::nn::{self, Init as Values, ModuleT};
use tch::{Kind, Tensor};

/// A network as a list of steps.
#[derive(Debug)]
pub struct GraphNetwork {
    pub(super) layout: Arc<Blueprint>,
    pub(super) parts: Vec<Part>,
    /// Values that the steps read and do not make.
    pub(super) given: Vec<(Id, Tensor)>,
    /// Values that each step is the last to read.
    last: Vec<Vec<Id>>,
}

/// A step with its variables.
#[derive(Debug)]
pub(super) enum Part {
    Site(Box<Site>),
    Classifier(Classifier),
    Call(Node),
}

impl GraphNetwork {
    /// Builds the network on `root`.
    ///
    /// # Errors
    /// The network does not take the images of `spec`, or returns something other than logits for
    /// its classes.
    pub fn new(
        layout: &Arc<Blueprint>,
        root: &nn::Path,
        builder: &Builder,
        spec: InputSpec,
        init: Init,
    ) -> Result<GraphNetwork> {
        layout.check()?;
        let mut operators = Operators::default();
        let parts = layout.steps.iter().map(|step| part(step, root, builder, spec, &mut operators));
        let parts = parts.collect::<Result<Vec<Part>>>()?;
        let variables = layout.variables.iter().map(|variable| Ok((variable.id, created(root, variable))));
        let constants = layout.constants.iter().map(|constant| Ok((constant.id, constant.tensor(root.device())?)));
        let given = variables.chain(constants).collect::<Result<Vec<(Id, Tensor)>>>()?;
        let network = GraphNetwork { layout: layout.clone(), parts, given, last: layout.last_uses() };
        network.fill(root, builder.form, init)?;
        network.check(root, spec)?;
        Ok(network)
    }

    /// Sets the variables to the numbers of the file: all of them, or those that have no usual
    /// initial values.
    fn fill(&self, root: &nn::Path, form: Form, init: Init) -> Result<()> {
        let kept = |name: &str| {
            self.layout.variables.iter().any(|variable| variable.name == name && variable.fill == Fill::Kept)
        };
        let replaced = |name: &str| {
            self.sites()
                .iter()
                .filter(|site| form == Form::Compact || site.operator.name() != "plain")
                .any(|site| is_below(name, &site.name) || matches!(&site.after, After::Norm(bn) if is_below(name, bn)))
        };
        let weights = self.layout.weights.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, tensor) in weights.iter() {
            if init == Init::Scratch && !kept(name) || replaced(name) {
                continue;
            }
            let (path, last) = place(root, name);
            // A last layer of another number of classes has another shape.
            if let Some(mut variable) = path.get(last).filter(|variable| variable.size() == tensor.size()) {
                tch::no_grad(|| variable.f_copy_(tensor))?;
            }
        }
        Ok(())
    }

    /// Runs two images of the data's size in evaluation.
    fn check(&self, root: &nn::Path, spec: InputSpec) -> Result<()> {
        let images = Tensor::zeros([2, spec.channels, spec.size, spec.size], (Kind::Float, root.device()));
        let run = || tch::no_grad(|| self.run(&images, false, |_, _| {}));
        let size = trace::unrecorded(run)?.size();
        if size != [2, spec.classes] {
            bad_request!(
                "net.file: returns {size:?} for 2 images of {0}x{0} pixels, and the data has {1} classes; a network of a file has logits (N, classes)",
                spec.size,
                spec.classes
            );
        }
        Ok(())
    }

    /// Returns the logits of images. `watch` sees the results of each step.
    pub(super) fn run(&self, x: &Tensor, train: bool, mut watch: impl FnMut(Id, &Value)) -> Result<Tensor> {
        let place = Place { kind: x.kind(), device: x.device(), train };
        let mut known: HashMap<Id, Value> =
            self.given.iter().map(|(id, tensor)| (*id, Value::Tensor(tensor.shallow_clone()))).collect();
        known.insert(self.layout.input, Value::Tensor(x.shallow_clone()));
        for ((part, step), last) in self.parts.iter().zip(&self.layout.steps).zip(&self.last) {
            let results = match part {
                Part::Site(site) => vec![Value::Tensor(site.forward(&input(&known, step)?, None, train))],
                Part::Classifier(layer) => vec![Value::Tensor(layer.forward_t(&input(&known, step)?, train))],
                Part::Call(node) => {
                    let results = self::step(node, &known, place)?;
                    trace::add_macs(macs(node, &known, &results));
                    results
                }
            };
            for (id, result) in step.outputs().into_iter().zip(results) {
                watch(id, &result);
                known.insert(id, result);
            }
            last.iter().for_each(|id| drop(known.remove(id)));
        }
        match known.remove(&self.layout.output) {
            Some(Value::Tensor(logits)) => Ok(logits),
            _ => bail!("its output is no tensor"),
        }
    }
}

impl nn::ModuleT for GraphNetwork {
    /// # Panics
    /// libtorch refuses an operation, which building the network has run in evaluation, and
    /// [`Network::try_training`] in training.
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.run(x, train, |_, _| {}).unwrap_or_else(|error| panic!("net.file: {error:#}"))
    }
}

impl Network for GraphNetwork {
    fn classifier(&self) -> Option<&str> {
        self.parts.iter().find_map(|part| if let Part::Classifier(layer) = part { Some(&*layer.name) } else { None })
    }

    fn fold_regions(&self, store: &nn::VarStore, spec: InputSpec) -> Result<Option<Blueprint>> {
        super::regions::fold(self, store, spec).map(Some)
    }

    fn try_training(&self, store: &nn::VarStore, spec: InputSpec) -> Result<()> {
        let (trained, kept): (Vec<Tensor>, Vec<Tensor>) =
            store.variables().into_values().partition(|variable| variable.requires_grad());
        let before: Vec<Tensor> = kept.iter().map(Tensor::copy).collect();
        let step = || -> Result<()> {
            let size = [2, spec.channels, spec.size, spec.size];
            let logits = self.run(&Tensor::f_randn(size, (store.kind(), store.device()))?, true, |_, _| {})?;
            Tensor::f_run_backward(&[logits.f_sum(logits.kind())?], &trained, false, false)?;
            Ok(())
        };
        let outcome = trace::unrecorded(step);
        for (mut variable, before) in kept.into_iter().zip(&before) {
            tch::no_grad(|| variable.f_copy_(before))?;
        }
        outcome.or_else(|error| bad_request!("net.file: it can't be trained: {}", one_line(&error)))
    }

    fn sites(&self) -> Vec<&Site> {
        self.parts.iter().filter_map(|part| if let Part::Site(site) = part { Some(&**site) } else { None }).collect()
    }
}

/// Builds a step.
fn part(step: &Step, root: &nn::Path, builder: &Builder, spec: InputSpec, operators: &mut Operators) -> Result<Part> {
    Ok(match step {
        Step::Site(site) => {
            let blueprint::Site { name, after, bn, kind, geometry, activation, folded, .. } = site;
            let plan = SitePlan {
                conv: name,
                after: after.as_ref().map(String::as_str),
                kind: *kind,
                geometry: *geometry,
                activation: *activation,
                default: if *folded { DefaultOperator::Folded } else { DefaultOperator::Plain },
            };
            Part::Site(Box::new(with_bn(*bn, || builder.site(root, plan))?))
        }
        Step::Classifier { name, features, .. } => {
            Part::Classifier(builder.classifier(&below(root, name), *features, spec.classes)?)
        }
        Step::Call(call) => Part::Call(call.node(operators)?),
    })
}

/// Creates a variable of an operator that is no site.
fn created(root: &nn::Path, variable: &blueprint::Variable) -> Tensor {
    let blueprint::Variable { name, size, fill, trained, .. } = variable;
    let (path, last) = place(root, name);
    if !trained {
        return if *fill == Fill::Ones { path.ones_no_train(last, size) } else { path.zeros_no_train(last, size) };
    }
    let init = match fill {
        Fill::Uniform(inputs) => uniform(*inputs),
        Fill::Ones => Values::Const(1.),
        Fill::Zeros | Fill::Kept => Values::Const(0.),
    };
    path.var(last, size, init)
}

/// Returns the path and the last part of a dotted name.
fn place<'p, 'n>(root: &nn::Path<'p>, name: &'n str) -> (nn::Path<'p>, &'n str) {
    match name.rsplit_once('.') {
        Some((path, last)) => (below(root, path), last),
        None => (root.clone(), name),
    }
}

/// Returns the map that a site or the classifier reads.
fn input(known: &HashMap<Id, Value>, step: &Step) -> Result<Tensor> {
    match known.get(&step.inputs()[0]) {
        Some(Value::Tensor(x)) => Ok(x.shallow_clone()),
        _ => bail!("a site reads something that is no tensor"),
    }
}

/// Returns the multiply-accumulates of a call.
fn macs(node: &Node, known: &HashMap<Id, Value>, results: &[Value]) -> i64 {
    let size = |id: Id| match known.get(&id)? {
        Value::Tensor(tensor) => Some(tensor.size()),
        _ => None,
    };
    match results.first() {
        Some(Value::Tensor(y)) => node.macs(size, &y.size()),
        _ => 0,
    }
}
