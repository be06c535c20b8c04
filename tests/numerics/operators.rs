//! The operators: folded operators are the same function, and networks of operators have the
//! published number of parameters.
//!
//! Tolerance: float64 throughout, so the two forms differ by the rounding of a few hundred sums,
//! about 1e-15 relative; 1e-12 is three digits of room and ten below the error of any wrong fold.

use crate::common::network::{fold_error, network, network_on, operator, parameters, randomise, relative, weights};
use foldconv::algebra::{FoldError, Geometry};
use foldconv::fold::assign;
use foldconv::net::Form;
use foldconv::op::contract::operator::{Operator, VariablePaths};
use foldconv::op::{OperatorConfig, Resolved};
use tch::{Device, Kind, Tensor, nn};

const TOLERANCE: f64 = 1e-12;

fn double_store() -> nn::VarStore {
    let mut store = nn::VarStore::new(Device::Cpu);
    store.double();
    store
}

fn expanded(config: &Resolved<OperatorConfig>, geometry: Geometry) -> (nn::VarStore, Box<dyn Operator>) {
    let mut store = double_store();
    let root = store.root();
    let module = config.expanded(&VariablePaths::new(&root / "conv", Some(&root / "bn")), geometry);
    randomise(&mut store);
    (store, module)
}

#[test]
fn the_fold_is_of_the_evaluation_statistics() {
    let (_store, module) = expanded(&operator("{name: maconv}"), Geometry::same(8, 16, 3));
    let x = Tensor::randn([4, 8, 9, 12], (Kind::Double, Device::Cpu));
    let folded = module.fold().unwrap().apply(&x);
    // Batch statistics give another function, and the training step moves the running statistics,
    // which a new fold follows.
    assert!(relative(&folded, &module.forward_t(&x, true)) > 1e-3);
    let y = module.forward_t(&x, false);
    assert!(relative(&folded, &y) > 1e-3);
    assert!(relative(&module.fold().unwrap().apply(&x), &y) < TOLERANCE);
}

#[test]
fn relu_in_the_middle_is_refused() {
    for name in ["maconv", "mdconv"] {
        let (_store, module) =
            expanded(&operator(&format!("{{name: {name}, middle: relu}}")), Geometry::same(8, 16, 3));
        assert_eq!(module.fold().unwrap_err(), FoldError::NonLinear("a ReLU"));
    }
}

#[test]
fn options_that_contradict_are_refused_by_key() {
    let refusal = |yaml: &str| serde_yaml::from_str::<Resolved<OperatorConfig>>(yaml).unwrap_err().to_string();
    assert!(refusal("{name: maconv, intermediate: 0}").starts_with("intermediate: "));
    assert!(refusal("{name: mdconv, temperature: 0}").starts_with("temperature: "));
    assert!(refusal("{name: mdconv, temperature: .nan}").starts_with("temperature: "));
    assert!(refusal("{name: mdconv, hidden: 0}").starts_with("hidden: "));
    assert!(refusal("{name: maconv, form: compact, bn: each}").starts_with("bn: "));
    assert!(refusal("{name: maconv, form: compact, middle: relu}").starts_with("form: "));
}

#[test]
fn compact_training_is_the_expanded_form_without_its_inner_norms() {
    // Both forms have the same weights by name. With one norm behind the sum, composing the kernels
    // first or convolving with them in turn is the same function.
    for name in ["maconv", "mdconv"] {
        let geometry = Geometry::same(8, 16, 3).stride(2);
        let (store, branches) = expanded(&operator(&format!("{{name: {name}, bn: sum}}")), geometry);
        let (other, composed) = expanded(&operator(&format!("{{name: {name}, form: compact}}")), geometry);
        assign(&other, &store.variables()).unwrap();
        let x = Tensor::randn([3, 8, 9, 12], (Kind::Double, Device::Cpu)).set_requires_grad(true);
        let probe = Tensor::randn([3, 16, 5, 6], (Kind::Double, Device::Cpu));
        let run = |module: &dyn Operator, store: &nn::VarStore| {
            let y = module.forward_t(&x, true);
            let mut names: Vec<String> =
                store.variables().into_iter().filter(|(_, v)| v.requires_grad()).map(|(n, _)| n).collect();
            names.sort();
            let variables = store.variables();
            let inputs: Vec<&Tensor> = names.iter().map(|name| &variables[name]).chain([&x]).collect();
            let gradients = Tensor::run_backward(&[(&y * &probe).sum(Kind::Double)], &inputs, false, false);
            (y, gradients)
        };
        let ((y, gradients), (z, others)) = (run(&*branches, &store), run(&*composed, &other));
        assert!(relative(&z, &y) < TOLERANCE);
        for (a, b) in gradients.iter().zip(&others) {
            let error = relative(b, a);
            assert!(error < 1e-10, "{name}: {error:e}");
        }
    }
}

#[test]
fn parameter_counts_are_the_published_ones() {
    let (plain, maconv, mdconv) = (operator("{name: plain}"), operator("{name: maconv}"), operator("{name: mdconv}"));
    let rows = [
        ("{name: smallnet}", 10, 5_386, 3_520, 4_224),
        ("{name: smallnet, width: 0.5}", 10, 2_290, 1_920, 2_264),
        ("{name: smallnet, width: 2}", 10, 15_418, 6_720, 8_624),
        ("{name: smallnet, width: 4}", 10, 50_842, 13_120, 19_344),
        ("{name: mobilenet_v2}", 1000, 3_504_872, 338_560, 1_539_552),
        ("{name: mobilenet_v2, width: 0.75}", 1000, 2_636_424, 258_400, 948_016),
        ("{name: mobilenet_v2, width: 0.5}", 1000, 1_968_680, 171_520, 484_520),
        ("{name: mobilenet_v2, width: 0.35}", 1000, 1_677_128, 123_520, 284_416),
        ("{name: mobilenet_v2, stem: cifar}", 10, 2_236_682, 338_560, 1_539_552),
        ("{name: mobilenet_v2, width: 0.35, stem: cifar}", 10, 408_938, 123_520, 284_416),
    ];
    for (net, classes, total, ma_extra, md_extra) in rows {
        let (store, _) = network(net, &plain, Form::Expanded, classes);
        assert_eq!(parameters(&store), total, "{net}");
        let base = weights(&store);
        assert_eq!(weights(&network(net, &maconv, Form::Expanded, classes).0) - base, ma_extra, "{net}");
        assert_eq!(weights(&network(net, &mdconv, Form::Expanded, classes).0) - base, md_extra, "{net}");
        // Folded, `maconv` adds no weights, and `mdconv` keeps its low-rank part.
        assert_eq!(weights(&network(net, &maconv, Form::Compact, classes).0), base, "{net}");
        assert_eq!(weights(&network(net, &mdconv, Form::Compact, classes).0) - base, md_extra, "{net}");
    }
}

#[test]
fn a_folded_network_is_the_same_function() {
    for net in ["{name: smallnet}", "{name: mobilenet_v2, width: 0.35, stem: cifar}"] {
        for options in ["{name: plain}", "{name: maconv}", "{name: mdconv, gate: softmax}"] {
            let error = fold_error(&[], net, options, 32);
            assert!(error < 1e-11, "{net} {options}: {error:e}");
        }
    }
}

#[test]
fn an_operator_goes_where_apply_to_says() {
    let config = operator("{name: mdconv, intermediate: 3}");
    let operators = |apply_to: &[String]| -> Vec<&'static str> {
        let (_store, network) = network_on(apply_to, "{name: smallnet}", &config, Form::Expanded, 10);
        network.sites().iter().map(|site| site.operator.name()).collect()
    };
    let (p, m) = ("plain", "mdconv");
    assert_eq!(operators(&[]), [p, m, p, m, p, m, p]);
    assert_eq!(operators(&["depthwise".into()]), [p, p, m, p, m, p, m]);
    assert_eq!(operators(&["stem".into(), "blocks.1.pointwise.conv".into()]), [m, p, p, m, p, p, p]);

    // The operator folds on all sites, including strided depthwise convolutions.
    let error = fold_error(&["all".to_string()], "{name: smallnet}", "{name: mdconv, intermediate: 3}", 32);
    assert!(error < 1e-11, "{error:e}");
}

#[test]
fn initial_values_are_pytorchs() {
    tch::manual_seed(0);
    let (store, _) = network("{name: mobilenet_v2}", &operator("{name: mdconv}"), Form::Expanded, 1000);
    for (name, variable) in store.variables() {
        let (low, high) = (variable.min().double_value(&[]), variable.max().double_value(&[]));
        let size = variable.size();
        if name.ends_with("running_var") || size.len() == 1 && !name.contains("fc") && name.ends_with("weight") {
            assert_eq!((low, high), (1., 1.), "{name}");
        } else if size.len() == 1 && !name.contains("fc") && !name.contains("classifier") {
            assert_eq!((low, high), (0., 0.), "{name}");
        } else if size.len() > 1 {
            // U(-b, b) with b = 1/sqrt(fan_in): the standard deviation is b/sqrt(3).
            let bound = 1. / (size[1..].iter().product::<i64>() as f64).sqrt();
            assert!(low >= -bound && high <= bound, "{name}: {low} {high} beyond {bound}");
            if variable.numel() > 10_000 {
                let deviation = variable.std(true).double_value(&[]) * 3f64.sqrt() / bound;
                assert!((deviation - 1.).abs() < 0.05, "{name}: {deviation}");
            }
        }
    }
}
