//! Between the start and the end of an epoch nothing asks a device for a number: on CUDA that would empty its queue.
#![cfg(feature = "native")]

use foldconv::config::Config;
use foldconv::native::Waits;
use foldconv::train::exec::{Execs, settle};
use foldconv::train::trainer::Trainer;
use tch::Device;

#[test]
fn no_step_waits_for_the_device() {
    for (operator, exec) in [
        ("plain", "branches"),
        ("plain", "moments"),
        ("maconv", "moments"),
        ("mdconv", "features"),
        ("mdconv", "per_sample"),
        ("dcd", "per_sample"),
        ("condconv", "branches"),
    ] {
        let yaml = format!(
            "{{data: {{name: shapes, train: 96, test: 10, augment: {{pad: 2, crop: 32, flip: true}}}}, net: {{name: smallnet}}, \
              operator: {{name: {operator}}}, train: {{batch: 32, exec: {exec}}}}}"
        );
        let config = Config::new(&serde_yaml::from_str(&yaml).unwrap(), "a.yaml").unwrap();
        let mut trainer = Trainer::new(&config, config.data.load().unwrap(), Device::Cpu).unwrap();
        settle(&trainer.network, config.data.spec(), &config.train, &Execs::new());
        // What is measured when a shape is first met is over.
        let first = trainer.batches(0, 0).next().unwrap().unwrap();
        let _loss = trainer.step(&first, 0, 0);

        let waits = Waits::count();
        let losses: Vec<_> =
            (1..3).zip(trainer.batches(0, 1)).map(|(step, batch)| trainer.step(&batch.unwrap(), 0, step)).collect();
        assert_eq!(waits.so_far(), 0, "{operator} {exec}");
        let values: Vec<f64> = losses.iter().map(|loss| loss.double_value(&[])).collect();
        assert!(values.iter().all(|value| value.is_finite()));
        assert_eq!(waits.so_far(), 2, "each number that is read is counted");
    }
}
