//! Optimizers, schedules and losses compared with PyTorch's and timm's, in float64. Needs
//! `make setup-peer`; without it the test says so and passes, unless FOLDCONV_PEER is set.

use crate::common::peer::{peer, script};
use foldconv::config::{DistillKind, TrainConfig};
use foldconv::train::distill::logits_loss;
use foldconv::train::optimizer::Optimizer;
use foldconv::train::schedule::learning_rate;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor, nn};

/// Rounding of 50 steps with a few operations each, on numbers near 1.
const ROUNDING: f64 = 1e-12;

fn numbers(value: &Value) -> Vec<f64> {
    serde_json::from_value(value.clone()).unwrap()
}

/// Returns the options of the training; 5 epochs.
fn options(case: &Value) -> TrainConfig {
    let mut keys = case["train"].as_object().unwrap().clone();
    keys.insert("epochs".into(), json!(5));
    serde_json::from_value(keys.into()).unwrap()
}

fn apart(found: &Tensor, expected: &Value) -> f64 {
    (found.flatten(0, -1) - Tensor::from_slice(&numbers(expected))).abs().max().double_value(&[])
}

#[test]
fn steps_rates_and_losses_are_those_of_pytorch_and_timm() {
    if !peer() {
        return;
    }
    let all: Value = serde_json::from_str(&script("training.py", &[])).unwrap();
    let x = Tensor::from_slice(&numbers(&all["x"])).view([5, 2]);
    for case in all["steps"].as_array().unwrap() {
        let mut store = nn::VarStore::new(Device::Cpu);
        let root = store.root();
        let (weight, bias) = (root.zeros("weight", &[3, 2]), root.zeros("bias", &[3]));
        store.double();
        tch::no_grad(|| {
            weight.shallow_clone().copy_(&Tensor::from_slice(&numbers(&all["weight"])).view([3, 2]));
            bias.shallow_clone().copy_(&Tensor::from_slice(&numbers(&all["bias"])));
        });
        let mut optimizer = Optimizer::new(&store, &options(case));
        for step in 0..50 {
            optimizer.set_lr(0.05 / (1. + 0.1 * f64::from(step)));
            let gradient = optimizer.gradient(&x.linear(&weight, Some(&bias)).sin().sum(Kind::Double));
            optimizer.update(gradient);
        }
        for (found, key) in [(&weight, "weight"), (&bias, "bias")] {
            let error = apart(found, &case[key]);
            assert!(error < ROUNDING, "{}: {key} {error:e}", case["train"]);
        }
    }
    for case in all["schedules"].as_array().unwrap() {
        let config = options(case);
        for (step, expected) in numbers(&case["rates"]).into_iter().enumerate() {
            let found = learning_rate(&config, 10, step as u64);
            assert!((found - expected).abs() < ROUNDING, "{}: step {step}: {found} {expected}", case["train"]);
        }
    }
    let logits = |key: &str| Tensor::from_slice(&numbers(&all[key])).view([6, 4]);
    let (student, teacher) = (logits("student"), logits("teacher"));
    for case in all["losses"].as_array().unwrap() {
        let found = logits_loss(&student, &teacher, DistillKind::Soft, case["temperature"].as_f64().unwrap());
        assert!((found.double_value(&[]) - case["soft"].as_f64().unwrap()).abs() < ROUNDING, "{case}");
    }
    let hard = logits_loss(&student, &teacher, DistillKind::Hard, 1.).double_value(&[]);
    assert!((hard - all["hard"].as_f64().unwrap()).abs() < ROUNDING);
}
