//! Translation of the operators of ONNX that move numbers, or make them of shapes, and compute
//! none.

use super::node::Site;
use super::tensors;
use crate::graph::{Arg, scalar_type};
use std::path::Path;
use tch::Kind;

/// Adds the calls that compute what the node computes. Returns none for a node that has no
/// translation.
pub fn translate(site: &mut Site) -> Option<()> {
    match site.node.op_type.as_str() {
        "Concat" => {
            let args = vec![Arg::List(site.all()?), Arg::Int(site.int("axis", 1))];
            site.out("aten::cat", "", args)
        }
        "Split" => split(site),
        "Slice" => slice(site),
        "Gather" => gather(site),
        "GatherElements" => {
            let args = vec![site.x(0)?, Arg::Int(site.int("axis", 0)), site.x(1)?, Arg::Bool(false)];
            site.out("aten::gather", "", args)
        }
        "Reshape" => reshape(site),
        "Flatten" => {
            let x = site.x(0)?;
            let axis = site.int("axis", 1);
            let axis = if axis < 0 { axis.checked_add(site.shape(0)?.len() as i64)? } else { axis };
            match axis {
                0 => site.out("aten::reshape", "", vec![x, Arg::integers(&[1, -1])]),
                1 => site.out("aten::flatten", "using_ints", vec![x, Arg::Int(1), Arg::Int(-1)]),
                // Two axes come out: all before this one, and all from it on.
                axis => {
                    let behind = site.inner("aten::flatten", "using_ints", vec![x, Arg::Int(axis), Arg::Int(-1)])?;
                    site.out("aten::flatten", "using_ints", vec![behind, Arg::Int(0), Arg::Int(axis.checked_sub(1)?)])
                }
            }
        }
        "Size" => {
            let x = site.x(0)?;
            let shape = site.inner("aten::_shape_as_tensor", "", vec![x])?;
            site.out("aten::prod", "", vec![shape, Arg::None])
        }
        "CumSum" if site.int("exclusive", 0) == 0 && site.int("reverse", 0) == 0 => {
            let (x, axis) = (site.x(0)?, site.integers(1)?);
            site.out("aten::cumsum", "", vec![x, Arg::Int(*axis.first()?), Arg::None])
        }
        "Transpose" => {
            let order = site.ints("perm").unwrap_or_else(|| (0..site.rank(0)).rev().collect());
            let args = vec![site.x(0)?, Arg::integers(&order)];
            site.out("aten::permute", "", args)
        }
        "Squeeze" => match site.axes("axes", 1)? {
            Some(axes) => {
                let args = vec![site.x(0)?, Arg::integers(&axes)];
                site.out("aten::squeeze", "dims", args)
            }
            None => {
                let x = site.x(0)?;
                site.out("aten::squeeze", "", vec![x])
            }
        },
        "Unsqueeze" => {
            let mut axes = site.axes("axes", 1)??;
            axes.sort_unstable();
            let (last, first) = axes.split_last()?;
            if *last < 0 && !first.is_empty() || axes[0] < 0 && *last >= 0 {
                return None;
            }
            let mut x = site.x(0)?;
            for axis in first {
                x = site.inner("aten::unsqueeze", "", vec![x, Arg::Int(*axis)])?;
            }
            site.out("aten::unsqueeze", "", vec![x, Arg::Int(*last)])
        }
        "Expand" => {
            // Both shapes are broadcast, so the larger one may be that of the tensor.
            let (x, shape) = (site.x(0)?, site.list(1)?);
            let args = vec![x.clone(), shape, Arg::None, Arg::None, Arg::None, Arg::None];
            let ones = site.inner("aten::new_ones", "", args)?;
            site.out("aten::mul", "Tensor", vec![x, ones])
        }
        "Tile" => {
            let args = vec![site.x(0)?, site.list(1)?];
            site.out("aten::repeat", "", args)
        }
        "Shape" => shape(site),
        "ConstantOfShape" => {
            let value = match site.node.attribute.first() {
                Some(attribute) => Some(tensors::tensor(attribute.t.as_ref()?, Path::new(".")).ok()??),
                None => None,
            };
            let whole = value.as_ref().is_some_and(|value| !value.is_floating_point());
            let number = value.map_or(0., |value| value.double_value(&[0]));
            let number = if whole { Arg::Int(number as i64) } else { Arg::Float(number) };
            let args = vec![site.list(0)?, number, Arg::None, Arg::None, Arg::None, Arg::None];
            site.out("aten::full", "", args)
        }
        "Range" => range(site),
        "GatherND" if site.int("batch_dims", 0) == 0 => {
            let (x, indices) = (site.x(0)?, site.x(1)?);
            let indices = site.inner("aten::unbind", "int", vec![indices, Arg::Int(-1)])?;
            site.out("aten::index", "Tensor", vec![x, indices])
        }
        "ScatterND" if site.text("reduction", "none") == "none" => {
            // The last axis of the indices has one for each axis of the map.
            let (x, indices, updates) = (site.x(0)?, site.x(1)?, site.x(2)?);
            let indices = site.inner("aten::unbind", "int", vec![indices, Arg::Int(-1)])?;
            site.out("aten::index_put", "", vec![x, indices, updates, Arg::Bool(false)])
        }
        "Pad" => pad(site),
        "Resize" | "Upsample" => resize(site),
        "DepthToSpace" if site.text("mode", "DCR") == "CRD" => {
            let args = vec![site.x(0)?, Arg::Int(site.int("blocksize", 1))];
            site.out("aten::pixel_shuffle", "", args)
        }
        _ => None,
    }
}

/// The numbers of a range have one type. Whole ones may be computed when the network runs.
fn range(site: &mut Site) -> Option<()> {
    let is_whole = site.is_whole(0);
    let mut args = Vec::new();
    for at in 0..3 {
        args.push(match site.number(at) {
            Some(number) => Arg::Float(number),
            None if is_whole => {
                let number = site.x(at)?;
                site.inner("aten::Int", "Tensor", vec![number])?
            }
            None => return None,
        });
    }
    args.push(if is_whole { Arg::Int(scalar_type(Kind::Int64)) } else { Arg::Precision });
    args.extend([Arg::None, Arg::None, Arg::None]);
    site.out("aten::arange", "start_step", args)
}

fn split(site: &mut Site) -> Option<()> {
    let (x, axis, n) = (site.x(0)?, Arg::Int(site.int("axis", 0)), site.node.output.len() as i64);
    match site.axes("split", 1)? {
        Some(sizes) => site.parts("aten::split_with_sizes", "", vec![x, Arg::integers(&sizes), axis]),
        None => site.parts("aten::chunk", "", vec![x, Arg::Int(n), axis]),
    }
}

fn slice(site: &mut Site) -> Option<()> {
    let (old, axes) = (site.has("starts"), site.axes("axes", 3)?);
    let count = match (&axes, site.ints("starts"), site.shape(1)) {
        (Some(axes), ..) => axes.len(),
        (None, Some(starts), _) => starts.len(),
        (None, None, shape) => usize::try_from((*shape?.first()?)?).ok().filter(|n| *n <= 8)?,
    };
    let axes = axes.unwrap_or_else(|| (0..count as i64).collect());
    let steps = if site.maybe(4) == Arg::None { vec![1; count] } else { site.integers(4)? };
    if axes.len() != count || steps.len() != count || steps.iter().any(|step| *step == 0 || *step == i64::MIN) {
        return None;
    }
    let mut x = site.x(0)?;
    for at in 0..count {
        let [start, end] = match old {
            true => ["starts", "ends"].map(|name| site.ints(name).and_then(|list| list.get(at).copied().map(Arg::Int))),
            false => [site.item(1, at), site.item(2, at)],
        };
        let (mut start, mut end, step) = (start?, end?, steps[at]);
        if step < 0 {
            // Slices of the reversed axis, since libtorch has no steps back.
            let (Arg::Int(first), Arg::Int(last)) = (start, end) else { return None };
            (start, end) = (Arg::Int(-1 - first), Arg::Int(-1 - last));
            x = site.inner("aten::flip", "", vec![x, Arg::integers(&[axes[at]])])?;
        }
        let args = vec![x, Arg::Int(axes[at]), start, end, Arg::Int(step.abs())];
        if at + 1 == count {
            return site.out("aten::slice", "Tensor", args);
        }
        x = site.inner("aten::slice", "Tensor", args)?;
    }
    site.out("aten::alias", "", vec![x])
}

fn gather(site: &mut Site) -> Option<()> {
    let (x, axis, index) = (site.x(0)?, site.int("axis", 0), site.x(1)?);
    let rank = site.shape(1).map(|shape| shape.len());
    match (rank, site.integers(1)) {
        (Some(0), Some(index)) => site.out("aten::select", "int", vec![x, Arg::Int(axis), Arg::Int(*index.first()?)]),
        (Some(1), Some(values)) if values.iter().all(|value| *value >= 0) => {
            site.out("aten::index_select", "", vec![x, Arg::Int(axis), index])
        }
        _ => {
            let axis = if axis < 0 { axis + site.shape(0)?.len() as i64 } else { axis };
            let whole_axes = (0..axis.clamp(0, 8)).map(|_| Arg::None);
            site.out("aten::index", "Tensor", vec![x, Arg::List(whole_axes.chain([index]).collect())])
        }
    }
}

fn reshape(site: &mut Site) -> Option<()> {
    let x = site.x(0)?;
    let shape = match site.integers(1) {
        Some(shape) if site.int("allowzero", 0) == 0 && shape.contains(&0) => {
            // 0 keeps the size of the input.
            let size = |(axis, n): (usize, &i64)| match n {
                0 => site.inner("aten::size", "int", vec![x.clone(), Arg::Int(axis as i64)]),
                n => Some(Arg::Int(*n)),
            };
            Arg::List(shape.iter().enumerate().map(size).collect::<Option<Vec<Arg>>>()?)
        }
        _ => site.list(1)?,
    };
    site.out("aten::reshape", "", vec![x, shape])
}

fn shape(site: &mut Site) -> Option<()> {
    let x = site.x(0)?;
    if !site.has("start") && !site.has("end") {
        return site.out("aten::_shape_as_tensor", "", vec![x]);
    }
    let all = site.inner("aten::_shape_as_tensor", "", vec![x])?;
    let [start, end] = [site.int("start", 0), site.int("end", i64::MAX)].map(Arg::Int);
    site.out("aten::slice", "Tensor", vec![all, Arg::Int(0), start, end, Arg::Int(1)])
}

fn pad(site: &mut Site) -> Option<()> {
    let x = site.x(0)?;
    if site.maybe(3) != Arg::None {
        return None;
    }
    // ONNX has all beginnings, then all ends. PyTorch has pairs, the last axis first.
    let pairs = match site.axes("pads", 1) {
        Some(pads) => Arg::integers(&pairs(&pads?)?),
        None => {
            let mut pads = site.x(1)?;
            for (name, overload, more) in [
                ("aten::reshape", "", vec![Arg::integers(&[2, -1])]),
                ("aten::transpose", "int", vec![Arg::Int(0), Arg::Int(1)]),
                ("aten::flip", "", vec![Arg::integers(&[0])]),
                ("aten::flatten", "using_ints", vec![Arg::Int(0), Arg::Int(-1)]),
            ] {
                pads = site.inner(name, overload, [vec![pads], more].concat())?;
            }
            site.listed(pads)
        }
    };
    let value = if site.maybe(2) == Arg::None { site.float("value", 0.) } else { site.number(2)? };
    let mode = match site.text("mode", "constant") {
        "constant" => return site.out("aten::constant_pad_nd", "", vec![x, pairs, Arg::Float(value)]),
        "reflect" => "reflect",
        "edge" => "replicate",
        "wrap" => "circular",
        _ => return None,
    };
    site.out("aten::pad", "", vec![x, pairs, Arg::Text(mode.into()), Arg::None])
}

/// Returns the pairs of a padding, without those at the end that pad nothing.
fn pairs(pads: &[i64]) -> Option<Vec<i64>> {
    if !pads.len().is_multiple_of(2) {
        return None;
    }
    let (before, after) = pads.split_at(pads.len() / 2);
    let mut pairs: Vec<i64> = before.iter().zip(after).rev().flat_map(|(before, after)| [*before, *after]).collect();
    while pairs.ends_with(&[0, 0]) && pairs.len() > 2 {
        pairs.truncate(pairs.len() - 2);
    }
    Some(pairs)
}

fn resize(site: &mut Site) -> Option<()> {
    let old = site.node.op_type == "Upsample" || site.opset < 11;
    let transform = site.text("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" });
    let nearest = site.text("nearest_mode", if old { "floor" } else { "round_prefer_floor" });
    let (scales, sizes) = if old { (1, usize::MAX) } else { (2, 3) };
    let outside = site.has("axes") || site.int("antialias", 0) != 0 || site.rank(0) != 4;
    let (size, factors) = match (site.maybe(sizes), site.numbers(scales).filter(|numbers| numbers.len() == 4)) {
        (Arg::None, Some(numbers)) if numbers[..2] == [1., 1.] => {
            (Arg::None, Arg::List(numbers[2..].iter().map(|number| Arg::Float(*number)).collect()))
        }
        (Arg::Value(_), _) => (Arg::List(vec![site.item(sizes, 2)?, site.item(sizes, 3)?]), Arg::None),
        _ => return None,
    };
    let whole =
        matches!(&factors, Arg::List(factors) if factors.iter().all(|f| f.number().is_some_and(|f| f.fract() == 0.)));
    let x = site.x(0).filter(|_| !outside)?;
    let corners = match transform {
        "align_corners" => true,
        "half_pixel" | "pytorch_half_pixel" => false,
        // For nearest neighbours alone.
        "asymmetric" if site.text("mode", "nearest") == "nearest" => false,
        _ => return None,
    };
    let corners = Arg::Bool(corners);
    match (site.text("mode", "nearest"), transform, nearest) {
        ("nearest", "asymmetric", "floor") => site.out("aten::upsample_nearest2d", "vec", vec![x, size, factors]),
        // Enlarged by whole factors, all roundings agree.
        ("nearest", "half_pixel" | "pytorch_half_pixel", _) if whole => {
            site.out("aten::upsample_nearest2d", "vec", vec![x, size, factors])
        }
        ("nearest", "half_pixel", "round_prefer_floor" | "round_prefer_ceil") => {
            site.out("aten::_upsample_nearest_exact2d", "vec", vec![x, size, factors])
        }
        ("linear", ..) => site.out("aten::upsample_bilinear2d", "vec", vec![x, size, corners, factors]),
        ("cubic", ..) if site.float("cubic_coeff_a", -0.75) == -0.75 => {
            site.out("aten::upsample_bicubic2d", "vec", vec![x, size, corners, factors])
        }
        _ => None,
    }
}
