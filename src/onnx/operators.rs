//! Translation of each operator of ONNX to libtorch's.

use super::node::Site;
use super::{moves, tensors};
use crate::graph::{Arg, scalar_type};

/// Operators of one tensor that libtorch has under another name.
pub const UNARY: [(&str, &str); 24] = [
    ("Abs", "abs"),
    ("Ceil", "ceil"),
    ("Cos", "cos"),
    ("Erf", "erf"),
    ("Exp", "exp"),
    ("Floor", "floor"),
    ("HardSwish", "hardswish"),
    ("Identity", "alias"),
    ("IsNaN", "isnan"),
    ("Log", "log"),
    ("Mish", "mish"),
    ("Neg", "neg"),
    ("Not", "logical_not"),
    ("Reciprocal", "reciprocal"),
    ("Relu", "relu"),
    ("Round", "round"),
    ("Selu", "selu"),
    ("Sigmoid", "sigmoid"),
    ("Sign", "sign"),
    ("Sin", "sin"),
    ("Softplus", "softplus"),
    ("Sqrt", "sqrt"),
    ("Tan", "tan"),
    ("Tanh", "tanh"),
];

/// Operators of two tensors, with the overload.
const BINARY: [(&str, &str, &str); 14] = [
    ("Add", "add", "Tensor"),
    ("And", "logical_and", ""),
    ("Div", "div", "Tensor"),
    ("Equal", "eq", "Tensor"),
    ("Greater", "gt", "Tensor"),
    ("GreaterOrEqual", "ge", "Tensor"),
    ("Less", "lt", "Tensor"),
    ("LessOrEqual", "le", "Tensor"),
    ("MatMul", "matmul", ""),
    ("Mul", "mul", "Tensor"),
    ("Or", "logical_or", ""),
    ("Pow", "pow", "Tensor_Tensor"),
    ("Sub", "sub", "Tensor"),
    ("Xor", "logical_xor", ""),
];

/// Adds the calls that compute what the node computes. Returns none for a node that has no
/// translation, of which nothing but nodes may be left in the graph.
pub fn translate(site: &mut Site) -> Option<()> {
    let op = site.node.op_type.as_str();
    if let Some((_, name)) = UNARY.iter().find(|(of, _)| *of == op) {
        let x = site.x(0)?;
        return site.out(&format!("aten::{name}"), "", vec![x]);
    }
    if op == "Div" && site.is_whole(0) {
        let args = vec![site.x(0)?, site.x(1)?, Arg::Text("trunc".into())];
        return site.out("aten::div", "Tensor_mode", args);
    }
    if let Some((_, name, overload)) = BINARY.iter().find(|(of, ..)| *of == op) {
        let args = vec![site.x(0)?, site.x(1)?];
        return site.out(&format!("aten::{name}"), overload, args);
    }
    match op {
        "Conv" | "ConvTranspose" => convolution(site),
        "MaxPool" | "AveragePool" => pool(site),
        "GlobalAveragePool" | "GlobalMaxPool" => global(site),
        "BatchNormalization" | "InstanceNormalization" | "GroupNormalization" | "LayerNormalization" => norm(site),
        "Gemm" => gemm(site),
        "LeakyRelu" | "Elu" | "Celu" | "Gelu" | "HardSigmoid" | "PRelu" | "Clip" | "Softmax" | "LogSoftmax" => {
            activation(site)
        }
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "ReduceMin" | "ReduceL2" | "ArgMax" | "ArgMin" => reduction(site),
        "Max" | "Min" | "Sum" => several(site),
        "Dropout" => {
            let ratio = site.number(1).unwrap_or(site.float("ratio", 0.5));
            let x = site.x(0)?;
            site.out("aten::dropout", "", vec![x, Arg::Float(ratio), Arg::Bool(false)])
        }
        "Mod" => {
            let name = if site.int("fmod", 0) == 0 { "aten::remainder" } else { "aten::fmod" };
            let args = vec![site.x(0)?, site.x(1)?];
            site.out(name, "Tensor", args)
        }
        "Where" => {
            let args = vec![site.x(0)?, site.x(1)?, site.x(2)?];
            site.out("aten::where", "self", args)
        }
        "Cast" => {
            let kind = tensors::kind(site.int("to", 0) as i32)?;
            let args = vec![site.x(0)?, Arg::Int(scalar_type(kind)), Arg::Bool(false), Arg::Bool(false), Arg::None];
            site.out("aten::to", "dtype", args)
        }
        "CastLike" => {
            let args = vec![site.x(0)?, site.x(1)?];
            site.out("aten::type_as", "", args)
        }
        "TopK" => {
            let k = Arg::Int(*site.integers(1)?.first()?);
            let [largest, sorted] = ["largest", "sorted"].map(|name| Arg::Bool(site.int(name, 1) != 0));
            let args = vec![site.x(0)?, k, Arg::Int(site.int("axis", -1)), largest, sorted];
            site.outs("aten::topk", "", args)
        }
        "GridSample" => {
            let mode = match site.text("mode", "bilinear") {
                "bilinear" | "linear" => 0,
                "nearest" => 1,
                "bicubic" | "cubic" => 2,
                _ => return None,
            };
            let padding =
                ["zeros", "border", "reflection"].iter().position(|of| *of == site.text("padding_mode", "zeros"))?;
            let align = Arg::Bool(site.int("align_corners", 0) != 0);
            let args = vec![site.x(0)?, site.x(1)?, Arg::Int(mode), Arg::Int(padding as i64), align];
            site.out("aten::grid_sampler", "", args)
        }
        "Einsum" => {
            let args = vec![Arg::Text(site.text("equation", "").into()), Arg::List(site.all()?), Arg::None];
            site.out("aten::einsum", "", args)
        }
        _ => moves::translate(site),
    }
}

/// Window of a convolution or pooling.
struct Window {
    kernel: Vec<i64>,
    stride: Vec<i64>,
    dilation: Vec<i64>,
    /// Padding before and after each axis.
    pads: [Vec<i64>; 2],
}

impl Window {
    fn of(site: &Site, kernel: Vec<i64>) -> Option<Window> {
        let n = kernel.len();
        let list = |name: &str, default: i64| {
            let list = site.ints(name).unwrap_or_else(|| vec![default; n]);
            (list.len() == n && list.iter().all(|value| (1..1 << 16).contains(value))).then_some(list)
        };
        let (stride, dilation) = (list("strides", 1)?, list("dilations", 1)?);
        let pads = match site.text("auto_pad", "NOTSET") {
            "NOTSET" | "" => {
                let pads = site.ints("pads").unwrap_or_else(|| vec![0; 2 * n]);
                (pads.len() == 2 * n).then(|| [pads[..n].to_vec(), pads[n..].to_vec()])?
            }
            "VALID" => [vec![0; n], vec![0; n]],
            mode => {
                let total = |axis: usize| {
                    let window = (kernel[axis] - 1) * dilation[axis] + 1;
                    if stride[axis] == 1 {
                        return Some(window - 1);
                    }
                    let size = (*site.shape(0)?.get(2 + axis)?)?;
                    let outputs = (size + stride[axis] - 1) / stride[axis];
                    Some(((outputs - 1) * stride[axis] + window - size).max(0))
                };
                let total: Vec<i64> = (0..n).map(total).collect::<Option<_>>()?;
                let less: Vec<i64> = total.iter().map(|total| total / 2).collect();
                let more: Vec<i64> = total.iter().map(|total| total - total / 2).collect();
                if mode == "SAME_LOWER" { [more, less] } else { [less, more] }
            }
        };
        Some(Window { kernel, stride, dilation, pads })
    }

    /// Returns the padding on both sides of each axis, after padding the map with `value` where the
    /// sides differ, or the padding is larger than `most`.
    fn pad(&self, site: &mut Site, x: Arg, value: f64, most: impl Fn(i64) -> i64) -> Option<(Arg, Vec<i64>)> {
        let [before, after] = &self.pads;
        let fits = before.iter().zip(&self.kernel).all(|(p, kernel)| *p >= 0 && *p <= most(*kernel));
        if before == after && fits {
            return Some((x, before.clone()));
        }
        let pairs: Vec<i64> = before.iter().zip(after).rev().flat_map(|(before, after)| [*before, *after]).collect();
        let x = site.inner("aten::constant_pad_nd", "", vec![x, Arg::integers(&pairs), Arg::Float(value)])?;
        Some((x, vec![0; before.len()]))
    }
}

fn convolution(site: &mut Site) -> Option<()> {
    let weight = site.shape(1)?.into_iter().collect::<Option<Vec<i64>>>()?;
    let dimensions = weight.len().checked_sub(2).filter(|n| (1..=3).contains(n))?;
    let window = Window::of(site, weight[2..].to_vec())?;
    let (weight, bias, groups) = (site.x(1)?, site.maybe(2), Arg::Int(site.int("group", 1)));
    let input = site.x(0)?;
    if site.node.op_type == "Conv" {
        let (x, padding) = window.pad(site, input, 0., |_| i64::MAX)?;
        let args = vec![
            x,
            weight,
            bias,
            Arg::integers(&window.stride),
            Arg::integers(&padding),
            Arg::integers(&window.dilation),
            groups,
        ];
        return site.out(&format!("aten::conv{dimensions}d"), "", args);
    }
    let given = site.has("output_shape") || !matches!(site.text("auto_pad", "NOTSET"), "NOTSET" | "VALID");
    if given || window.pads[0] != window.pads[1] {
        return None;
    }
    let more = site.ints("output_padding").unwrap_or_else(|| vec![0; dimensions]);
    let [stride, padding, more] = [&window.stride, &window.pads[0], &more].map(|list| Arg::integers(list));
    let args = vec![input, weight, bias, stride, padding, more, groups, Arg::integers(&window.dilation)];
    site.out(&format!("aten::conv_transpose{dimensions}d"), if dimensions == 1 { "" } else { "input" }, args)
}

fn pool(site: &mut Site) -> Option<()> {
    let kernel = site.ints("kernel_shape")?;
    let dimensions = Some(kernel.len()).filter(|n| (1..=3).contains(n))?;
    let window = Window::of(site, kernel)?;
    let (x, ceil) = (site.x(0)?, Arg::Bool(site.int("ceil_mode", 0) != 0));
    let half = |kernel: i64| kernel / 2;
    if site.node.op_type == "MaxPool" {
        let (x, padding) = window.pad(site, x, f64::NEG_INFINITY, half)?;
        let lists = [&window.kernel, &window.stride, &padding, &window.dilation].map(|list| Arg::integers(list));
        let args = [vec![x], lists.into(), vec![ceil]].concat();
        return site.out(&format!("aten::max_pool{dimensions}d"), "", args);
    }
    let counts_zeros = site.int("count_include_pad", 0) != 0;
    let plain = window.pads[0] == window.pads[1] && window.pads[0].iter().zip(&window.kernel).all(|(p, k)| *p <= k / 2);
    if window.dilation.iter().any(|step| *step != 1) || !plain && !counts_zeros {
        return None;
    }
    let (x, padding) = window.pad(site, x, 0., half)?;
    let lists = [&window.kernel, &window.stride, &padding].map(|list| Arg::integers(list));
    let mut args = [vec![x], lists.into(), vec![ceil, Arg::Bool(counts_zeros)]].concat();
    if dimensions > 1 {
        args.push(Arg::None);
    }
    site.out(&format!("aten::avg_pool{dimensions}d"), "", args)
}

fn global(site: &mut Site) -> Option<()> {
    let (x, axes) = (site.x(0)?, Arg::integers(&(2..site.rank(0)).collect::<Vec<i64>>()));
    if site.node.op_type == "GlobalMaxPool" {
        return site.out("aten::amax", "", vec![x, axes, Arg::Bool(true)]);
    }
    site.out("aten::mean", "dim", vec![x, axes, Arg::Bool(true), Arg::None])
}

fn norm(site: &mut Site) -> Option<()> {
    let (x, weight, bias, eps) = (site.x(0)?, site.x(1)?, site.maybe(2), Arg::Float(site.float("epsilon", 1e-5)));
    match site.node.op_type.as_str() {
        "BatchNormalization" => {
            if site.int("training_mode", 0) != 0 {
                // Of one image, as of weights that are standardised, that is the norm of each map.
                let is_one = site.shape(0)?.first() == Some(&Some(1));
                let rest = [Arg::None, Arg::None, Arg::Bool(true), Arg::Float(0.), eps, Arg::Bool(true)];
                let args = [vec![x, weight, bias], rest.into()].concat();
                return if is_one { site.first_out("aten::instance_norm", "", args) } else { None };
            }
            // ONNX's momentum is the share of the old statistics, PyTorch's that of the new ones.
            let momentum = Arg::Float(1. - site.float("momentum", 0.9));
            let statistics = [site.x(3)?, site.x(4)?];
            let rest = [Arg::Bool(false), momentum, eps, Arg::Bool(true)];
            let args = [vec![x, weight, bias], statistics.into(), rest.into()].concat();
            site.out("aten::batch_norm", "", args)
        }
        "InstanceNormalization" => {
            let rest = [Arg::None, Arg::None, Arg::Bool(true), Arg::Float(0.), eps, Arg::Bool(true)];
            site.out("aten::instance_norm", "", [vec![x, weight, bias], rest.into()].concat())
        }
        "GroupNormalization" if site.opset >= 21 => {
            let groups = Arg::Int(site.int("num_groups", 1));
            site.out("aten::group_norm", "", vec![x, groups, weight, bias, eps, Arg::Bool(true)])
        }
        "LayerNormalization" => {
            let shape = site.shape(1)?.into_iter().collect::<Option<Vec<i64>>>()?;
            let axis = site.int("axis", -1);
            let from = if axis < 0 { -axis } else { site.rank(0) - axis };
            if from != shape.len() as i64 {
                return None;
            }
            site.out("aten::layer_norm", "", vec![x, Arg::integers(&shape), weight, bias, eps, Arg::Bool(true)])
        }
        _ => None,
    }
}

/// Translates alpha A B + beta C, where A and B may be transposed.
fn gemm(site: &mut Site) -> Option<()> {
    let (alpha, beta) = (site.float("alpha", 1.), site.float("beta", 1.));
    let transposed = ["transA", "transB"].map(|name| site.int(name, 0) != 0);
    let ([mut a, mut b], bias) = ([site.x(0)?, site.x(1)?], site.maybe(2));
    let vector = site.shape(2).is_none_or(|shape| shape.len() == 1);
    if !transposed[0] && alpha == 1. && beta == 1. && vector {
        if !transposed[1] {
            b = site.inner("aten::t", "", vec![b])?;
        }
        return site.out("aten::linear", "", vec![a, b, bias]);
    }
    for (matrix, transposed) in [(&mut a, transposed[0]), (&mut b, transposed[1])] {
        if transposed {
            *matrix = site.inner("aten::t", "", vec![matrix.clone()])?;
        }
    }
    let product = site.inner("aten::matmul", "", vec![a, b])?;
    if bias == Arg::None {
        return site.out("aten::mul", "Scalar", vec![product, Arg::Float(alpha)]);
    }
    let product = site.inner("aten::mul", "Scalar", vec![product, Arg::Float(alpha)])?;
    site.out("aten::add", "Tensor", vec![product, bias, Arg::Float(beta)])
}

fn activation(site: &mut Site) -> Option<()> {
    let x = site.x(0)?;
    let one = || Arg::Float(1.);
    match site.node.op_type.as_str() {
        "LeakyRelu" => site.out("aten::leaky_relu", "", vec![x, Arg::Float(site.float("alpha", 0.01))]),
        "Elu" => site.out("aten::elu", "", vec![x, Arg::Float(site.float("alpha", 1.)), one(), one()]),
        "Celu" => site.out("aten::celu", "", vec![x, Arg::Float(site.float("alpha", 1.))]),
        "Gelu" => site.out("aten::gelu", "", vec![x, Arg::Text(site.text("approximate", "none").into())]),
        "HardSigmoid" => {
            let x = site.inner("aten::mul", "Scalar", vec![x, Arg::Float(site.float("alpha", 0.2))])?;
            let x = site.inner("aten::add", "Scalar", vec![x, Arg::Float(site.float("beta", 0.5)), Arg::Int(1)])?;
            site.out("aten::clamp", "", vec![x, Arg::Float(0.), one()])
        }
        "PRelu" => {
            let shape = site.shape(1)?.into_iter().collect::<Option<Vec<i64>>>()?;
            // One slope, or one a channel: (C, 1, …), aligned at the last axis.
            let spatial = shape.iter().skip(1).all(|n| *n == 1) && shape.len() as i64 == site.rank(0) - 1;
            if shape.iter().product::<i64>() != 1 && !spatial {
                return None;
            }
            let slope = site.x(1)?;
            let slope = site.inner("aten::reshape", "", vec![slope, Arg::integers(&[-1])])?;
            site.out("aten::prelu", "", vec![x, slope])
        }
        "Clip" => {
            let bound = |name: &str, at: usize| match (site.has(name), site.maybe(at)) {
                (true, _) => Some(Arg::Float(site.float(name, 0.))),
                (false, Arg::None) => Some(Arg::None),
                _ => site.number(at).map(Arg::Float),
            };
            let args = vec![x, bound("min", 1)?, bound("max", 2)?];
            site.out("aten::clamp", "", args)
        }
        op => {
            let (axis, rank) = (site.int("axis", if site.opset < 13 { 1 } else { -1 }), site.rank(0));
            // Before opset 13 all axes from this one on count as one.
            if site.opset < 13 && axis != -1 && axis != rank - 1 {
                return None;
            }
            let name = if op == "Softmax" { "aten::softmax" } else { "aten::log_softmax" };
            site.out(name, "int", vec![x, Arg::Int(axis), Arg::None])
        }
    }
}

fn reduction(site: &mut Site) -> Option<()> {
    let (x, keep) = (site.x(0)?, Arg::Bool(site.int("keepdims", 1) != 0));
    let op = site.node.op_type.as_str();
    if let "ArgMax" | "ArgMin" = op {
        if site.int("select_last_index", 0) != 0 {
            return None;
        }
        let name = if op == "ArgMax" { "aten::argmax" } else { "aten::argmin" };
        return site.out(name, "", vec![x, Arg::Int(site.int("axis", 0)), keep]);
    }
    let axes = site.axes("axes", 1)?;
    if axes.is_none() && site.int("noop_with_empty_axes", 0) != 0 {
        return None;
    }
    let all = axes.as_ref().map_or(Arg::None, |axes| Arg::integers(axes));
    let some = Arg::integers(&axes.unwrap_or_default());
    match op {
        "ReduceMean" => site.out("aten::mean", "dim", vec![x, all, keep, Arg::None]),
        "ReduceSum" => site.out("aten::sum", "dim_IntList", vec![x, all, keep, Arg::None]),
        "ReduceMax" => site.out("aten::amax", "", vec![x, some, keep]),
        "ReduceMin" => site.out("aten::amin", "", vec![x, some, keep]),
        _ => site.out("aten::linalg_vector_norm", "", vec![x, Arg::Int(2), all, keep, Arg::None]),
    }
}

/// Translates an operator of any number of inputs to one of two.
fn several(site: &mut Site) -> Option<()> {
    let (name, overload, more) = match site.node.op_type.as_str() {
        "Max" => ("aten::maximum", "", vec![]),
        "Min" => ("aten::minimum", "", vec![]),
        _ => ("aten::add", "Tensor", vec![Arg::Int(1)]),
    };
    let all = site.all()?;
    let (first, rest) = all.split_first()?;
    let Some((last, middle)) = rest.split_last() else { return site.out("aten::alias", "", vec![first.clone()]) };
    let mut sum = first.clone();
    for x in middle {
        sum = site.inner(name, overload, [vec![sum, x.clone()], more.clone()].concat())?;
    }
    site.out(name, overload, [vec![sum, last.clone()], more].concat())
}
