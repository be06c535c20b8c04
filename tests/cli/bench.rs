//! `foldconv bench train`: its numbers are present and consistent. No test asserts how fast this
//! machine is.

use crate::common::{arg, error, folder, run, stdout};
use foldconv::config::{self, Config};
use foldconv::net::Form;
use foldconv::weights::tensors;
use serde_json::Value;
use tch::Device;

const CONFIG: &str = "data: {name: shapes, train: 512, test: 16}
net: {name: smallnet}
operator: {name: maconv}
train: {batch: 64, algorithm: moments}
";

fn bench(more: &[&str]) -> String {
    let (_guard, root) = folder(&[("a.yaml", CONFIG.as_bytes())]);
    let args = ["bench", "train", &arg(&root.join("a.yaml")), "--device", "cpu", "--threads", "1", "--warmup", "2"];
    stdout(&run(args.iter().chain(more)))
}

fn measured(more: &[&str]) -> Value {
    serde_json::from_str(&bench(&[more, &["--json"]].concat())).unwrap()
}

fn number(document: &Value, path: &str) -> f64 {
    document.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("no number {path} in {document:#}"))
}

/// Weights of ten classes load without --data: bench import takes the number of classes from the
/// weights.
#[test]
fn weights_are_read_into_a_network_of_as_many_classes_as_they_have() {
    let keys = config::named("", "{data: shapes, net: smallnet}").unwrap();
    let built = Config::new(&keys, "a.yaml").unwrap().build(Form::Expanded, Device::Cpu).unwrap();
    let (_guard, root) = folder(&[]);
    let file = root.join("weights.safetensors");
    tensors::write(&file, &(), &built.store.variables()).unwrap();
    let file = arg(&file);
    let import = ["bench", "import", &file, "--net", "smallnet"];
    assert!(stdout(&run(import)).contains("median of 1"));
    let other = error(&run(import.iter().chain(&["--data", "cifar100"])), 2);
    assert!(
        other.contains("does not fit smallnet") && other.contains("--data is the data set that it is of"),
        "{other}"
    );
}

#[test]
fn the_numbers_of_training_fit_together() {
    let speed = measured(&["--steps", "10"]);
    let of = |path: &str| number(&speed, path);
    let step = of("/step_seconds");
    assert_eq!((of("/steps"), of("/batch")), (10., 64.));
    let near = |a: f64, b: f64| (a / b - 1.).abs() < 1e-9;
    assert!(near(of("/images_per_second"), 64. / step));
    // Medians of the phases come from other steps than those timed as a whole, so their sum only
    // approximates the step.
    let phases = ["data", "forward", "backward", "optimizer"].map(|name| of(&format!("/phases/{name}_seconds")));
    let share = phases.iter().sum::<f64>() / step;
    assert!((0.5..2.).contains(&share) && phases.iter().all(|time| *time > 0.), "{phases:?} of {step}");
    assert_eq!(speed["execs"].as_object().unwrap().len(), 3, "the 1x1 convolutions of SmallNet");
    assert_eq!(speed["execs"]["blocks.0.pointwise.conv"], "moments");

    // SmallNet's plain convolutions; the test beside the counting code lists each of them
    // separately.
    let macs = 16384 * 16 + 4096 * 9 + 8192 * 16 + 2048 * 9 + 4096 * 32 + 1024 * 9 + 640;
    let (x, y) = (16384 + 16384 + 4096 + 8192 + 2048 + 4096, 16384 + 4096 + 8192 + 2048 + 4096 + 1024);
    assert_eq!(of("/floor/flops"), f64::from(64 * (4 * 16384 * 27 + 6 * macs)));
    assert_eq!(of("/floor/bytes"), f64::from(64 * 4 * (3 * 3072 + 2 * 16384 + 5 * x + 3 * y)));
    // No layer is faster than its bytes and its products; all layers together are no slower than
    // bytes and products one after the other.
    let (bytes, products) =
        (of("/floor/bytes") / of("/floor/bytes_per_second"), of("/floor/flops") / of("/floor/flops_per_second"));
    let floor = of("/floor/seconds");
    assert!(bytes > 0. && products > 0. && floor >= bytes.max(products) && floor <= bytes + products, "{speed:#}");
    assert!(near(of("/over_floor"), step / floor));
}

/// Peak memory grows with the batch by at least the first map, which is kept for the backward pass.
/// Memory used before the steps, by libtorch and the images, isn't counted.
#[test]
#[cfg(target_os = "linux")]
fn memory_is_that_of_the_steps() {
    let of = |batch: &str| number(&measured(&["--steps", "2", "--set", batch]), "/peak_memory_bytes");
    let map = |batch: f64| 4. * 16. * 32. * 32. * batch;
    let (few, many) = (of("train.batch=64"), of("train.batch=256"));
    assert!(few > map(64.) && few < 30. * map(64.), "{few}");
    assert!(many - few > map(256. - 64.), "{few} {many}");
}

#[test]
fn training_is_told_in_lines() {
    let text = bench(&["--steps", "1"]);
    for part in [
        " images/s (",
        "waiting for data ",
        "several ways to compute their training: 3 in moments",
        "times the floor of ",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}
