//! The nodes of a graph that are linear in a feature map, as forms.

use super::run::{Part, Place};
use super::{Arg, Graph, Id, Node, Op};
use crate::algebra::{Form, FormShape, double};
use tch::{Device, Kind, Tensor};

/// A node that is linear in its inputs, all of which are maps (N, C, H, W).
#[derive(Debug)]
pub enum Linear {
    /// The result is x.
    Same(Id),
    /// A convolution or a mean over windows of x.
    Form {
        /// The map.
        x: Id,
        /// Shape of the form.
        shape: FormShape,
        /// Kernel of a convolution; absent for a mean over windows.
        weight: Option<Id>,
        /// Bias of a convolution.
        bias: Option<Id>,
    },
    /// scale · x + shift for each channel.
    Affine {
        /// The map.
        x: Id,
        /// Factor of each channel, (C) or (1) in float64; absent for 1.
        scale: Option<Tensor>,
        /// Summand of each channel, (C) or (1) in float64; absent for 0.
        shift: Option<Tensor>,
    },
    /// The sum of maps of equal size, each with a factor.
    Sum(Vec<(Id, f64)>),
    /// The channels of several maps, one map behind the other.
    Concat(Vec<Id>),
    /// Each result has a selection of the channels of x.
    Select {
        /// The map.
        x: Id,
        /// Channels of x in each result.
        channels: Vec<Vec<i64>>,
    },
}

impl Linear {
    /// Returns the linear part that a node computes; none for a node that is not linear, or whose
    /// arguments decide it only when it runs.
    pub fn of(graph: &Graph, producers: &[Option<usize>], node: &Node) -> Option<Linear> {
        match &node.op {
            Op::Unpack => return unpacked(graph, producers, node),
            Op::Call { .. } => {}
            _ => return None,
        }
        match node.operator() {
            "conv2d" | "convolution" | "_convolution" | "_convolution_mode" => convolution(graph, node),
            "avg_pool2d" => mean(graph, node),
            "constant_pad_nd" | "pad" => padding(graph, node),
            "batch_norm" | "_native_batch_norm_legit_no_training" => batch_norm(graph, node),
            "dropout" | "feature_dropout" => {
                let flag = node.arg("train")?.flag()?;
                (!flag).then_some(Linear::Same(node.value("input")?))
            }
            "add" | "sub" | "mul" | "div" => arithmetic(graph, node),
            "neg" => Some(Linear::Affine { x: node.value("self")?, scale: Some(one(-1.)), shift: None }),
            "contiguous" | "clone" | "detach" | "alias" => Some(Linear::Same(node.value("self")?)),
            "cat" => concat(graph, node),
            "slice" | "narrow" | "index_select" => select(graph, node),
            "view" | "reshape" | "_unsafe_view" | "permute" | "transpose" | "flatten" | "channel_shuffle" => {
                moved(graph, producers, node)
            }
            _ => None,
        }
    }

    /// Returns the maps that the result is linear in.
    pub fn inputs(&self) -> Vec<Id> {
        match self {
            Linear::Same(x) | Linear::Form { x, .. } | Linear::Affine { x, .. } | Linear::Select { x, .. } => vec![*x],
            Linear::Sum(terms) => terms.iter().map(|(x, _)| *x).collect(),
            Linear::Concat(parts) => parts.clone(),
        }
    }
}

/// Channels, taps and steps of a form at most, so that no product of them overflows.
const LARGEST: i64 = 1 << 16;

/// Returns a factor for all channels.
fn one(value: f64) -> Tensor {
    Tensor::from_slice(&[value])
}

/// Returns the shape of a map (N, C, H, W); none for a value of another rank, or of unknown shape.
pub fn map(graph: &Graph, id: Id) -> Option<[i64; 4]> {
    graph.values[id].size.as_ref()?.as_slice().try_into().ok()
}

fn constant(graph: &Graph, id: Id) -> Option<&Tensor> {
    graph.values[id].tensor.as_ref()
}

fn pair(arg: &Arg) -> Option<[i64; 2]> {
    match arg.ints()?.as_slice() {
        [both] => Some([*both; 2]),
        [rows, columns] => Some([*rows, *columns]),
        _ => None,
    }
}

/// Returns the padding of a convolution or a mean.
fn padded(arg: &Arg) -> Option<[i64; 2]> {
    pair(arg).filter(|padding| padding.iter().all(|p| (0..=LARGEST).contains(p)))
}

fn convolution(graph: &Graph, node: &Node) -> Option<Linear> {
    if node.arg("transposed").is_some_and(|arg| arg.flag() != Some(false)) {
        return None;
    }
    let (x, weight) = (node.value("input")?, node.value("weight")?);
    let size: [i64; 4] = constant(graph, weight)?.size().as_slice().try_into().ok()?;
    let bias = match node.arg("bias")? {
        Arg::None => None,
        Arg::Value(id) => Some(*id),
        _ => return None,
    };
    let (groups, dilation, stride) =
        (node.arg("groups")?.int()?, pair(node.arg("dilation")?)?, pair(node.arg("stride")?)?);
    let bias_fits = bias.is_none_or(|id| constant(graph, id).is_some_and(|bias| bias.size() == [size[0]]));
    let whole = [&size[..], &dilation, &stride, &[groups]].concat().iter().all(|n| (1..=LARGEST).contains(n));
    if !whole || !bias_fits || size[1] * groups != map(graph, x)?[1] || size[0] % groups != 0 {
        return None;
    }
    let kernel = [size[2], size[3]];
    let window = [0, 1].map(|axis| (kernel[axis] - 1) * dilation[axis] + 1);
    let (before, after) = match node.arg("padding")? {
        Arg::Text(mode) if mode == "valid" => ([0; 2], [0; 2]),
        // Where the window is even, PyTorch pads the end with the odd row.
        Arg::Text(mode) if mode == "same" => (window.map(|w| (w - 1) / 2), window.map(|w| w / 2)),
        padding => (padded(padding)?, padded(padding)?),
    };
    let shape = FormShape {
        in_channels: size[1] * groups,
        out_channels: size[0],
        kernel,
        stride,
        dilation,
        before,
        after,
        groups,
        bias: bias.is_some(),
    };
    Some(Linear::Form { x, shape, weight: Some(weight), bias })
}

/// Returns the form of a padding with zeros, or of a crop: one tap of 1.
fn padding(graph: &Graph, node: &Node) -> Option<Linear> {
    let x = node.value("self")?;
    let zeros = node.arg("value").is_none_or(|value| *value == Arg::None || value.number() == Some(0.));
    let mode = node.arg("mode").is_none_or(|mode| *mode == Arg::Text("constant".into()));
    // The last axis comes first, and an axis that is left out is not padded.
    let mut pad = node.arg("pad")?.ints()?;
    if !zeros || !mode || pad.len() > 8 || pad.iter().any(|p| p.abs() > LARGEST) {
        return None;
    }
    pad.resize(8, 0);
    if pad[4..] != [0; 4] {
        return None;
    }
    let identity = FormShape::identity(map(graph, x)?[1]);
    let shape = FormShape { before: [pad[2], pad[0]], after: [pad[3], pad[1]], ..identity };
    Some(Linear::Form { x, shape, weight: None, bias: None })
}

fn mean(graph: &Graph, node: &Node) -> Option<Linear> {
    let x = node.value("self")?;
    let [_, channels, height, width] = map(graph, x)?;
    let kernel = pair(node.arg("kernel_size")?)?;
    let padding = padded(node.arg("padding")?)?;
    let stride = node.arg("stride")?.ints()?;
    let stride = if stride.is_empty() { kernel } else { pair(node.arg("stride")?)? };
    if [kernel, stride].concat().iter().any(|n| !(1..=LARGEST).contains(n)) {
        return None;
    }
    let counts_zeros = padding == [0; 2] || node.arg("count_include_pad")?.flag()?;
    let shape = FormShape { kernel, stride, before: padding, after: padding, ..FormShape::identity(channels) };
    // With ceil_mode the last window may reach over the edge, where the mean is over fewer numbers.
    let ceil = node.arg("ceil_mode")?.flag()?;
    let whole = !ceil || graph.values[node.outputs[0]].size.as_ref()?[2..] == shape.output_size([height, width]);
    let divisor = node.arg("divisor_override")? == &Arg::None;
    (counts_zeros && whole && divisor).then_some(Linear::Form { x, shape, weight: None, bias: None })
}

fn batch_norm(graph: &Graph, node: &Node) -> Option<Linear> {
    if node.arg("training").is_some_and(|arg| arg.flag() != Some(false)) {
        return None;
    }
    let x = node.value("input")?;
    let [_, channels, ..] = map(graph, x)?;
    let vector = |name: &str, value: f64| match node.arg(name)? {
        Arg::None => Some(Tensor::full([channels], value, (Kind::Double, Device::Cpu))),
        Arg::Value(id) => constant(graph, *id).filter(|tensor| tensor.size() == [channels]).map(double),
        _ => None,
    };
    let (mean, variance) = (vector("running_mean", 0.)?, vector("running_var", 1.)?);
    let eps = node.arg("eps")?.number()?;
    let scale = vector("weight", 1.)? / (variance + eps).sqrt();
    let shift = vector("bias", 0.)? - mean * &scale;
    Some(Linear::Affine { x, scale: Some(scale), shift: Some(shift) })
}

/// Returns a constant that is one number, or one number for each channel of a map, as (1) or (C).
fn per_channel(graph: &Graph, arg: &Arg, channels: i64) -> Option<Tensor> {
    if let Some(number) = arg.number() {
        return Some(one(number));
    }
    let Arg::Value(id) = arg else { return None };
    let tensor = constant(graph, *id)?;
    let size = tensor.size();
    if tensor.numel() == 1 {
        return Some(double(tensor).reshape([1]));
    }
    let along_channels = match size.as_slice() {
        [c, 1, 1] | [1, c, 1, 1] => *c == channels,
        _ => false,
    };
    along_channels.then(|| double(tensor).reshape([channels]))
}

fn arithmetic(graph: &Graph, node: &Node) -> Option<Linear> {
    let (op, [a, b]) = (node.operator(), [node.arg("self")?, node.arg("other")?]);
    if node.arg("rounding_mode").is_some_and(|mode| *mode != Arg::None) {
        return None;
    }
    let factor = node.arg("alpha").map_or(Some(1.), Arg::number)?;
    let is_map =
        |arg: &Arg| matches!(arg, Arg::Value(id) if constant(graph, *id).is_none() && map(graph, *id).is_some());
    let sign = if op == "sub" { -factor } else { factor };
    match (op, is_map(a), is_map(b)) {
        ("add" | "sub", true, true) => {
            let (Arg::Value(a), Arg::Value(b)) = (a, b) else { return None };
            let size = map(graph, *a)?;
            // A map that is broadcast is no sum of forms.
            (map(graph, *b)? == size).then_some(Linear::Sum(vec![(*a, 1.), (*b, sign)]))
        }
        ("add" | "sub", true, false) => {
            let Arg::Value(x) = a else { return None };
            let shift = per_channel(graph, b, map(graph, *x)?[1])? * sign;
            Some(Linear::Affine { x: *x, scale: None, shift: Some(shift) })
        }
        ("add" | "sub", false, true) => {
            let Arg::Value(x) = b else { return None };
            let shift = per_channel(graph, a, map(graph, *x)?[1])?;
            Some(Linear::Affine { x: *x, scale: (sign != 1.).then(|| one(sign)), shift: Some(shift) })
        }
        ("mul", true, false) | ("mul", false, true) => {
            let (x, factor) = if is_map(a) { (a, b) } else { (b, a) };
            let Arg::Value(x) = x else { return None };
            Some(Linear::Affine { x: *x, scale: Some(per_channel(graph, factor, map(graph, *x)?[1])?), shift: None })
        }
        ("div", true, false) => {
            let Arg::Value(x) = a else { return None };
            let scale = per_channel(graph, b, map(graph, *x)?[1])?.reciprocal();
            Some(Linear::Affine { x: *x, scale: Some(scale), shift: None })
        }
        _ => None,
    }
}

fn concat(graph: &Graph, node: &Node) -> Option<Linear> {
    let Arg::List(items) = node.arg("tensors")? else { return None };
    let parts = items.iter().map(|item| match item {
        Arg::Value(id) if constant(graph, *id).is_none() => map(graph, *id).map(|_| *id),
        _ => None,
    });
    let axis = node.arg("dim")?.int()?;
    matches!(axis, 1 | -3).then(|| parts.collect::<Option<Vec<Id>>>().map(Linear::Concat))?
}

fn select(graph: &Graph, node: &Node) -> Option<Linear> {
    let x = node.value("self")?;
    let [_, channels, height, width] = map(graph, x)?;
    let axis = node.arg("dim")?.int()?;
    let size = match axis.rem_euclid(4) {
        1 => channels,
        2 => height,
        3 => width,
        _ => return None,
    };
    let at = |name: &str, default: i64| match node.arg(name) {
        Some(Arg::None) | None => Some(default),
        Some(arg) => arg.int().map(|n| if n < 0 { (n + size).max(0) } else { n.min(size) }),
    };
    if axis.rem_euclid(4) != 1 {
        let step = node.arg("step")?.int().filter(|step| (1..=LARGEST).contains(step))?;
        let along = usize::try_from(axis.rem_euclid(4) - 2).ok()?;
        return strided(x, channels, along, [at("start", 0)?, at("end", size)? - size], step);
    }
    let selected = match node.operator() {
        "slice" => {
            let step = node.arg("step")?.int().filter(|step| *step > 0)?;
            vec![(at("start", 0)?..at("end", size)?).step_by(usize::try_from(step).ok()?).collect()]
        }
        "narrow" => {
            let start = at("start", 0)?;
            vec![(start..start.checked_add(node.arg("length")?.int()?)?.min(channels)).collect()]
        }
        "index_select" => vec![Vec::<i64>::try_from(constant(graph, node.value("index")?)?).ok()?],
        _ => return None,
    };
    let inside = selected.iter().flatten().all(|channel| (0..channels).contains(channel));
    inside.then_some(Linear::Select { x, channels: selected })
}

/// Returns the form of rows or columns that are a step apart: one tap with a stride. `cut` is the
/// place of the first, and that of the end less the size of the map.
fn strided(x: Id, channels: i64, along: usize, cut: [i64; 2], step: i64) -> Option<Linear> {
    let mut shape = FormShape::identity(channels);
    (shape.stride[along], shape.before[along], shape.after[along]) = (step, -cut[0], cut[1]);
    Some(Linear::Form { x, shape, weight: None, bias: None })
}

/// Returns the parts of a map that was split along its channels.
fn unpacked(graph: &Graph, producers: &[Option<usize>], node: &Node) -> Option<Linear> {
    let split = &graph.nodes[producers[*node.inputs().first()?]?];
    if !matches!(
        split.operator(),
        "split" | "split_with_sizes" | "chunk" | "tensor_split" | "unsafe_split" | "unsafe_chunk"
    ) {
        return None;
    }
    let x = split.value("self")?;
    let [_, channels, ..] = map(graph, x)?;
    if !matches!(split.arg("dim")?.int()?, 1 | -3) {
        return None;
    }
    let sizes = node.outputs.iter().map(|id| map(graph, *id).map(|size| size[1]));
    let mut start = 0;
    let part = |n: i64| {
        start += n;
        (start - n..start).collect()
    };
    let parts: Vec<Vec<i64>> = sizes.collect::<Option<Vec<i64>>>()?.into_iter().map(part).collect();
    (start == channels).then_some(Linear::Select { x, channels: parts })
}

/// Operations that move numbers and compute none.
const MOVES: [&str; 8] =
    ["view", "reshape", "_unsafe_view", "permute", "transpose", "flatten", "contiguous", "channel_shuffle"];

/// Returns the selection of channels that a chain of moves computes, such as the shuffle of
/// ShuffleNet. The chain is run on a map whose numbers are those of its channels.
fn moved(graph: &Graph, producers: &[Option<usize>], node: &Node) -> Option<Linear> {
    let result = *node.outputs.first()?;
    map(graph, result)?;
    let mut chain = vec![producers[result]?];
    let x = loop {
        let Some(Arg::Value(x)) = graph.nodes[*chain.last()?].args.first().cloned() else { return None };
        match producers[x] {
            Some(before) if MOVES.contains(&graph.nodes[before].operator()) && chain.len() < 8 => chain.push(before),
            _ => break x,
        }
    };
    chain.reverse();
    let [n, c, h, w] = map(graph, x)?;
    let channels = Tensor::arange(c, (Kind::Double, Device::Cpu)).reshape([1, c, 1, 1]).expand([n, c, h, w], false);
    let places = Tensor::arange(h * w, (Kind::Double, Device::Cpu)).reshape([1, 1, h, w]).expand([n, c, h, w], false);
    let part = Part::of(graph, chain, [x, result], Place::DOUBLE);
    let run = |map: Tensor| part.run(&map).ok();
    let (rows, places_after) = (run(channels)?, run(places.shallow_clone())?);
    let [_, m, ..] = map(graph, result)?;
    let size = [n, m, h, w];
    if rows.size() != size || places_after.size() != size || rows.numel() == 0 {
        return None;
    }
    // Each channel is one of x, at the same positions of the same sample.
    let first = rows.select(3, 0).select(2, 0).select(0, 0);
    let expected = first.reshape([1, m, 1, 1]).expand(size, false);
    let whole = rows.equal(&expected) && places_after.equal(&places.narrow(1, 0, 1).expand(size, false));
    let selected = Vec::<f64>::try_from(first).ok()?.into_iter().map(|channel| channel as i64).collect();
    whole.then(|| Linear::Select { x, channels: vec![selected] })
}

/// Returns the form of a convolution, in float64, or of a mean over windows.
pub fn form(graph: &Graph, shape: FormShape, weight: Option<Id>, bias: Option<Id>) -> Option<Form> {
    let weight = match weight {
        Some(id) => double(constant(graph, id)?),
        None => {
            let [rows, columns] = shape.kernel;
            let share = 1. / (rows * columns) as f64;
            Tensor::full(shape.weight_size(), share, (Kind::Double, Device::Cpu))
        }
    };
    let bias = match bias {
        Some(id) => Some(double(constant(graph, id)?)),
        None => None,
    };
    Some(Form { shape, weight, bias })
}
