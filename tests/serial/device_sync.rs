//! Between the start and the end of an epoch, and of an evaluation, no operation reads a number
//! from a device: on CUDA a read would empty the queue, and an operation that waits can't be
//! recorded.
use crate::common;
use foldconv::native::Waits;
use foldconv::net::Form;
use foldconv::train::algorithm::{TrainAlgorithms, settle};
use foldconv::train::evaluate::evaluate;
use foldconv::train::trainer::Trainer;
use tch::Device;

/// Returns a trainer whose batches are gathered as on a GPU, or made by the CPU.
fn trainer(operator: &str, algorithm: &str, augment: &str, gathered: bool) -> Trainer {
    let yaml = format!(
        "{{data: {{name: shapes, train: 96, test: 300, augment: {{pad: 2, crop: 32, flip: true{augment}}}}}, net: {{name: smallnet}}, \
          operator: {{name: {operator}}}, train: {{batch: 32, algorithm: {algorithm}}}}}"
    );
    let trainer = common::network::trainer(&yaml, gathered);
    let config = &trainer.config;
    settle(&trainer.network, config.data.spec(), &config.train, &TrainAlgorithms::new());
    trainer
}

#[test]
fn no_step_waits_for_the_device() {
    let _turn = common::turn();
    for (operator, algorithm, augment, gathered) in [
        ("plain", "branches", "", false),
        ("plain", "moments", "", false),
        ("maconv", "moments", "", true),
        ("mdconv", "features", "", false),
        ("mdconv", "per_sample", ", cutout: 8", true),
        ("dcd", "per_sample", ", mixup: 0.2", false),
        ("condconv", "branches", ", cutout: 8, mixup: 0.2", true),
        ("plain", "branches", ", random_erasing: 0.5, mixup: 0.2, cutmix: 1, repeats: 2", true),
        ("plain", "branches", ", rand_augment: 2, cutmix: 1", false),
    ] {
        let mut trainer = trainer(operator, algorithm, augment, gathered);
        // The first step makes the measurements that each new shape needs.
        let first = trainer.batches(0, 0).next().unwrap().unwrap();
        let _loss = trainer.step(&first, 0, 0);

        let waits = Waits::count();
        let losses: Vec<_> =
            (1..3).zip(trainer.batches(0, 1)).map(|(step, batch)| trainer.step(&batch.unwrap(), 0, step)).collect();
        assert_eq!(waits.so_far(), 0, "{operator} {algorithm}");
        let values: Vec<f64> = losses.iter().map(|loss| loss.double_value(&[])).collect();
        assert!(values.iter().all(|value| value.is_finite()));
        assert_eq!(waits.so_far(), 2, "each number that is read is counted");
    }
}

/// No batch of an evaluation waits for the device. The final sums are read by a copy to the CPU,
/// which is not counted if the device is the CPU.
#[test]
fn no_batch_of_an_evaluation_waits_for_the_device() {
    let _turn = common::turn();
    for (operator, gathered) in [("plain", true), ("maconv", true), ("mdconv", false), ("condconv", true)] {
        let trainer = trainer(operator, "branches", "", gathered);
        let compact = trainer.config.build(Form::Compact, Device::Cpu).unwrap();
        for network in [&trainer.network, &compact] {
            let waits = Waits::count();
            assert!(evaluate(network, &trainer.test).unwrap().loss.is_finite());
            assert_eq!(waits.so_far(), 0, "{operator}");
        }
    }
}
