use super::proto::*;
use super::wire::put;
use super::{Original, decode};
use crate::graph::Graph;
use crate::graph::fold::{Report, fold};
use crate::graph::run::Place;
use anyhow::Result;
use prost::Message;
use std::path::Path;
use tch::{Device, Kind, Tensor};

const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn node(op: &str, inputs: &[&str], outputs: &[&str], attributes: Vec<AttributeProto>) -> NodeProto {
    NodeProto::new(op, &format!("node of {}", outputs[0]), inputs, outputs, attributes)
}

fn tensor(name: &str, tensor: &Tensor) -> TensorProto {
    super::encode(name, tensor).unwrap()
}

fn value(name: &str, size: &[i64]) -> ValueInfoProto {
    ValueInfoProto::of(name, 1, size.iter().map(|n| Size::DimValue(*n)))
}

fn model(opset: i64, ir_version: i64, graph: GraphProto) -> ModelProto {
    ModelProto {
        ir_version,
        producer_name: "someone".into(),
        producer_version: "7".into(),
        graph: Some(graph),
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: opset }],
        metadata_props: vec![StringStringEntryProto { key: "author".into(), value: "anyone".into() }],
    }
}

/// Two 3x3 convolutions without an activation between them, the first one with asymmetric padding,
/// then an operation of another domain, and a convolution by itself.
fn network() -> GraphProto {
    let draw = |size: &[i64]| Tensor::randn(size, FLOAT);
    let pads = AttributeProto::ints("pads", [1, 0, 2, 1]);
    let mut own = node("Own", &["b"], &["c"], vec![AttributeProto::ints("kept", [4, 2])]);
    own.domain = "org.example".into();
    GraphProto {
        name: "net".into(),
        node: vec![
            node("Conv", &["x", "first.weight"], &["a"], vec![pads]),
            node("Conv", &["a", "second.weight", "second.bias"], &["b"], vec![]),
            own,
            node("Conv", &["c", "third.weight"], &["y"], vec![]),
        ],
        initializer: vec![
            tensor("first.weight", &draw(&[8, 3, 3, 3])),
            tensor("second.weight", &draw(&[2, 8, 1, 1])),
            tensor("second.bias", &draw(&[2])),
            tensor("third.weight", &draw(&[2, 2, 1, 1])),
            tensor("unread", &draw(&[2])),
        ],
        input: vec![value("x", &[1, 3, 6, 5])],
        output: vec![value("y", &[1, 2, 7, 4]), value("b", &[1, 2, 7, 4])],
        value_info: vec![value("a", &[1, 8, 7, 4]), value("c", &[1, 2, 7, 4])],
    }
}

fn read(bytes: &[u8]) -> Result<(Graph, Original)> {
    decode(bytes.to_vec().into(), Path::new("."))
}

fn folded(bytes: &[u8], size: &[i64]) -> (Vec<u8>, Report) {
    let (mut graph, original) = read(bytes).unwrap();
    graph.infer_sizes(&[size.to_vec()]);
    let report = fold(&mut graph).unwrap();
    (original.rewrite(&graph, &report.folded, Path::new(".")).unwrap().to_vec(), report)
}

/// Returns the value of a name for a map.
fn run(bytes: &[u8], output: &str, x: &Tensor) -> Tensor {
    let (mut graph, _) = read(bytes).unwrap();
    let id = graph.values.iter().position(|info| info.name == output).unwrap();
    graph.outputs = vec![id];
    graph.remove_dead();
    tch::no_grad(|| graph.run(&[x.shallow_clone()], Place::DOUBLE)).unwrap().remove(0)
}

/// A fold replaces its region and keeps the rest: names, attributes, operations that are not known,
/// metadata, and fields that this version of the format does not have.
#[test]
fn a_fold_keeps_everything_else() {
    let mut bytes = model(17, 8, network()).encode_to_vec();
    let field = {
        let mut field = Vec::new();
        put(&mut field, 77, b"of a later version");
        field
    };
    bytes.extend_from_slice(&field);
    let (written, report) = folded(&bytes, &[1, 3, 6, 5]);
    assert_eq!(report.folded.len(), 1, "{report:?}");
    assert!(written.ends_with(&field));
    let (before, after) = (ModelProto::decode(&bytes[..]).unwrap(), ModelProto::decode(&written[..]).unwrap());
    assert_eq!((&before.opset_import, &before.metadata_props), (&after.opset_import, &after.metadata_props));
    assert_eq!((before.producer_name, before.ir_version), (after.producer_name, after.ir_version));
    let (before, after) = (before.graph.unwrap(), after.graph.unwrap());
    assert_eq!((&before.name, &before.input, &before.output), (&after.name, &after.input, &after.output));
    assert_eq!(before.node[2..], after.node[1..]);
    let conv = &after.node[0];
    assert_eq!((conv.op_type.as_str(), conv.output[0].as_str(), conv.input[0].as_str()), ("Conv", "b", "x"));
    let pads = conv.attribute.iter().find(|attribute| attribute.name == "pads").unwrap();
    assert_eq!(pads.ints, [1, 0, 2, 1]);
    let names: Vec<&str> = after.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
    assert_eq!(names[..2], ["third.weight", "unread"], "{names:?}");
    assert_eq!(names.len(), 4, "{names:?}");
    // Descriptions of values that are gone are gone too.
    assert_eq!(after.value_info, before.value_info[1..]);
    let x = Tensor::randn([1, 3, 6, 5], (Kind::Double, Device::Cpu));
    let (expected, found) = (run(&bytes, "b", &x), run(&written, "b", &x));
    let error = (&found - &expected).abs().max() / expected.abs().max();
    // Kernels are stored in float32.
    assert!(error.double_value(&[]) < 1e-6, "{error}");
}

/// Up to version 3 of the format, initializers are inputs too, and a list of operators is older.
#[test]
fn kernels_of_an_old_file_are_listed_as_inputs() {
    let mut graph = network();
    graph.input.extend(graph.initializer.iter().map(|tensor| value(&tensor.name, &tensor.dims)).collect::<Vec<_>>());
    let (written, _) = folded(&model(9, 3, graph).encode_to_vec(), &[1, 3, 6, 5]);
    let after = ModelProto::decode(&written[..]).unwrap().graph.unwrap();
    let inputs: Vec<&str> = after.input.iter().map(|input| input.name.as_str()).collect();
    let initializers = after.initializer.iter().map(|tensor| tensor.name.as_str());
    assert_eq!(inputs[0], "x");
    assert!(initializers.clone().all(|name| inputs.contains(&name)), "{inputs:?}");
    assert_eq!(inputs.len(), 1 + initializers.count());
}

/// A result of a split that is folded leaves the split, whose other result stays.
#[test]
fn a_node_that_stays_loses_the_names_of_folded_results() {
    let draw = |size: &[i64]| Tensor::randn(size, FLOAT);
    // Reading one channel twice costs less than moving eight.
    let graph = GraphProto {
        node: vec![
            node("Conv", &["x", "w"], &["a"], vec![]),
            node("Split", &["a"], &["b", "c"], vec![AttributeProto::int("axis", 1)]),
            node("Relu", &["b"], &["y"], vec![]),
            node("Relu", &["c"], &["z"], vec![]),
        ],
        initializer: vec![tensor("w", &draw(&[8, 1, 1, 1]))],
        input: vec![value("x", &[1, 1, 4, 4])],
        output: vec![value("y", &[1, 4, 4, 4]), value("z", &[1, 4, 4, 4])],
        ..GraphProto::default()
    };
    let bytes = model(17, 8, graph).encode_to_vec();
    let (written, report) = folded(&bytes, &[1, 1, 4, 4]);
    assert_eq!(report.folded.len(), 2, "{report:?}");
    let after = ModelProto::decode(&written[..]).unwrap().graph.unwrap();
    let operators: Vec<&str> = after.node.iter().map(|node| node.op_type.as_str()).collect();
    assert_eq!(operators, ["Conv", "Conv", "Relu", "Relu"]);
    let x = Tensor::randn([1, 1, 4, 4], (Kind::Double, Device::Cpu));
    for output in ["y", "z"] {
        let error = (run(&bytes, output, &x) - run(&written, output, &x)).abs().max();
        assert!(error.double_value(&[]) < 1e-5, "{output}: {error}");
    }
}

/// Files that lie, or ask for much, are one error.
#[test]
fn hostile_files_are_refused() {
    let why = |graph: GraphProto| {
        let error = read(&model(17, 8, graph).encode_to_vec()).unwrap_err();
        format!("{error:#}")
    };
    let mut cyclic = network();
    cyclic.node.reverse();
    assert!(why(cyclic).contains("comes from nowhere"));
    let mut twice = network();
    twice.node[1].output = vec!["a".into()];
    assert!(why(twice).contains("two values have the name a"));
    let mut short = network();
    short.initializer[0].dims = vec![2, 3, 3, 1 << 40];
    assert!(why(short).contains("shape of"));
    let mut outside = network();
    let entry = |value: &str| vec![StringStringEntryProto { key: "location".into(), value: value.into() }];
    outside.initializer[0] = TensorProto {
        raw_data: Default::default(),
        data_location: 1,
        external_data: entry("../secret"),
        ..outside.initializer[0].clone()
    };
    assert!(why(outside).contains("outside the model's folder"));
    let many = GraphProto { node: vec![NodeProto::default(); 9_000_000], ..GraphProto::default() };
    assert!(why(many).contains("too much memory"));
    let newer = format!("{:#}", read(&model(99, 8, network()).encode_to_vec()).unwrap_err());
    assert!(newer.contains("opset 99"), "{newer}");
    for cut in [0, 1, 40, 200] {
        let bytes = model(17, 8, network()).encode_to_vec();
        assert!(read(&bytes[..cut]).is_err());
    }
}

/// Operators on shapes and integers, whose results PyTorch has under other rules: a division
/// truncates, an axis may be counted from the end, a padding may be computed, and a batch norm in
/// training has results that nobody reads.
#[test]
fn shapes_and_integers_are_computed_as_onnx_says() {
    let axis = |axis: i64| vec![AttributeProto::int("axis", axis)];
    let training = vec![AttributeProto::int("training_mode", 1)];
    let graph = GraphProto {
        node: vec![
            node("Flatten", &["x"], &["back"], axis(-1)),
            node("Flatten", &["x"], &["third"], axis(2)),
            node("Size", &["x"], &["size"], vec![]),
            node("Shape", &["x"], &["shape"], vec![]),
            node("Div", &["shape", "two"], &["half"], vec![]),
            node("Mod", &["shape", "two"], &["rest"], vec![]),
            node("Concat", &["half", "rest"], &["pads"], axis(0)),
            node("Pad", &["x", "pads"], &["padded"], vec![]),
            node("BatchNormalization", &["x", "one", "zero", "zero", "one"], &["norm", "m", "v"], training),
        ],
        name: "shapes".into(),
        initializer: vec![
            tensor("two", &Tensor::from_slice(&[2i64])),
            tensor("one", &Tensor::ones([3], FLOAT)),
            tensor("zero", &Tensor::zeros([3], FLOAT)),
        ],
        input: vec![value("x", &[1, 3, 5, 7])],
        output: ["back", "third", "padded", "norm", "size", "half"].map(|name| value(name, &[])).into(),
        value_info: vec![],
    };
    let bytes = model(17, 8, graph).encode_to_vec();
    let x = Tensor::randn([1, 3, 5, 7], (Kind::Double, Device::Cpu));
    assert!(run(&bytes, "back", &x).equal(&x.reshape([15, 7])));
    assert!(run(&bytes, "third", &x).equal(&x.reshape([3, 35])));
    assert_eq!(run(&bytes, "size", &x).int64_value(&[]), 105);
    assert_eq!(Vec::<i64>::try_from(run(&bytes, "half", &x)).unwrap(), [0, 1, 2, 3]);
    // 0, 1, 2, 3 in front, and 1, 1, 1, 1 behind.
    assert!(run(&bytes, "padded", &x).equal(&x.constant_pad_nd([3, 1, 2, 1, 1, 1, 0, 1])));
    let axes: &[i64] = &[2, 3];
    let (mean, variance) = (x.mean_dim(axes, true, Kind::Double), x.var_dim(axes, false, true));
    let expected = (&x - mean) / (variance + 1e-5).sqrt();
    let error = (run(&bytes, "norm", &x) - expected).abs().max().double_value(&[]);
    // The file has the eps in float32, of which 1e-5 is off by 1e-13.
    assert!(error < 1e-10, "{error:e}");
}
