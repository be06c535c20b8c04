//! Steps that are recorded and replayed are the steps that they were recorded of.

use foldconv::config::Config;
use foldconv::train::graph::{Recorder, Steps};
use foldconv::train::trainer::Trainer;
use std::cell::RefCell;
use std::rc::Rc;
use tch::{Device, Tensor};

/// Does the work itself, as a device that plays back what it has recorded; keeps what it was asked for.
struct Pretended {
    asked: Rc<RefCell<Vec<&'static str>>>,
    refuses: bool,
}

impl Recorder for Pretended {
    fn record(&mut self, _work: &mut dyn FnMut()) -> Result<(), String> {
        self.asked.borrow_mut().push("record");
        if self.refuses { Err("an operation waits".into()) } else { Ok(()) }
    }

    fn replay(&mut self, work: &mut dyn FnMut()) -> Result<(), String> {
        self.asked.borrow_mut().push("replay");
        work();
        Ok(())
    }
}

/// Losses of two epochs of six steps, the last of four images, and the parameters behind them.
fn trained(more: &str, steps: Option<Steps>) -> Vec<Tensor> {
    let yaml = format!(
        "{{data: {{name: shapes, train: 84, test: 10, augment: {{pad: 2, crop: 32, flip: true{more}}}}}, net: {{name: smallnet}},
          operator: {{name: dyconv, temperature: {{from: 30, to: 1, epochs: 2}}}}, train: {{batch: 16, epochs: 2}}}}"
    );
    let config = Config::new(&serde_yaml::from_str(&yaml).unwrap(), "a.yaml").unwrap();
    let mut trainer = Trainer::new(&config, config.data.load().unwrap(), Device::Cpu).unwrap();
    trainer.steps = steps.unwrap_or(trainer.steps);
    let mut all = Vec::new();
    for epoch in 0..2 {
        for (step, batch) in (0..).zip(trainer.batches(epoch, 0)) {
            all.push(trainer.step(&batch.unwrap(), epoch, step));
        }
    }
    let mut variables: Vec<(String, Tensor)> = trainer.network.store.variables().into_iter().collect();
    variables.sort_by(|(a, _), (b, _)| a.cmp(b));
    all.extend(variables.into_iter().map(|(_, variable)| variable));
    all
}

fn pretended(refuses: bool) -> (Steps, Rc<RefCell<Vec<&'static str>>>) {
    let asked = Rc::default();
    (Steps::recorded("steps", Box::new(Pretended { asked: Rc::clone(&asked), refuses })), asked)
}

/// Each replay has the images and labels of its batch, copied to where those of the recording lie. One test, since libtorch's generator is one for
/// all threads.
#[test]
fn recorded_steps_are_the_same_to_the_bit() {
    let expected = trained("", None);
    let (steps, asked) = pretended(false);
    let found = trained("", Some(steps));
    assert_eq!(expected.len(), found.len());
    assert!(expected.iter().zip(&found).all(|(a, b)| a.equal(b)));
    // Three steps to warm up, and the last batch of each epoch is of another size.
    let replays = ["replay"; 12 - 3 - 2];
    assert_eq!(asked.borrow()[..], [&["record"][..], &replays].concat());

    // What can't be recorded runs plainly.
    let (steps, asked) = pretended(true);
    assert!(trained("", None).iter().zip(&trained("", Some(steps))).all(|(a, b)| a.equal(b)));
    assert_eq!(asked.borrow()[..], ["record"], "asked once");
    let (steps, asked) = pretended(false);
    let mixed = ", mixup: 0.2";
    assert!(trained(mixed, None).iter().zip(&trained(mixed, Some(steps))).all(|(a, b)| a.equal(b)));
    assert!(asked.borrow().is_empty(), "a share is drawn for each batch");
}
