//! Recorded and replayed steps equal plain steps.

use crate::common;
use foldconv::config::EvalForm;
use foldconv::fold;
use foldconv::net::Form;
use foldconv::train::cuda_graph::{Recorder, Steps};
use foldconv::train::evaluate::{Evaluation, Evaluator, evaluate};
use foldconv::train::trainer::Trainer;
use std::cell::RefCell;
use std::rc::Rc;
use tch::{Device, Tensor};

/// A recorder that runs the work itself in place of a replay, and logs the requests.
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

/// Returns a trainer with six steps per epoch, the last of four images. The batches are made by the
/// CPU, or gathered as on a GPU.
fn trainer(operator: &str, more: &str, gathered: bool) -> Trainer {
    let yaml = format!(
        "{{data: {{name: shapes, train: 84, test: 1300, augment: {{pad: 2, crop: 32, flip: true{more}}}}}, net: {{name: smallnet}},
          operator: {operator}, train: {{batch: 16, epochs: 2}}}}"
    );
    common::network::trainer(&yaml, gathered)
}

/// Returns the losses of an epoch from the step `first` on.
fn epoch(trainer: &mut Trainer, epoch: u64, first: u64) -> Vec<Tensor> {
    let batches = trainer.batches(epoch, first);
    (first..).zip(batches).map(|(step, batch)| trainer.step(&batch.unwrap(), epoch, step)).collect()
}

/// Returns the losses of two epochs, the first epoch from the step `first` on, and the parameters
/// afterwards.
fn trained(more: &str, gathered: bool, first: u64, steps: Option<Steps>) -> Vec<Tensor> {
    let operator = "{name: dyconv, temperature: {from: 30, to: 1, epochs: 2}}";
    let mut trainer = trainer(operator, more, gathered);
    trainer.steps = steps.unwrap_or(trainer.steps);
    let mut all = epoch(&mut trainer, 0, first);
    all.extend(epoch(&mut trainer, 1, 0));
    let mut variables: Vec<(String, Tensor)> = trainer.network.store.variables().into_iter().collect();
    variables.sort_by(|(a, _), (b, _)| a.cmp(b));
    all.extend(variables.into_iter().map(|(_, variable)| variable));
    all
}

fn pretended(refuses: bool) -> (Steps, Rc<RefCell<Vec<&'static str>>>) {
    let asked = Rc::default();
    (Steps::recorded("steps", Box::new(Pretended { asked: Rc::clone(&asked), refuses })), asked)
}

fn once_and(replays: usize) -> Vec<&'static str> {
    [vec!["record"], vec!["replay"; replays]].concat()
}

fn same(a: &[Tensor], b: &[Tensor]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.equal(b))
}

/// Each replay reads what was drawn for its batch, or its images and labels, copied into the
/// tensors of the recording.
#[test]
fn recorded_steps_are_the_same_to_the_bit() {
    let _turn = common::turn();
    let all = ", cutout: 8, random_erasing: 0.5, mixup: 0.2, cutmix: 1, repeats: 2";
    let cut = ", trivial_augment: true, random_erasing: {probability: 0.5, value: noise}, cutmix: 1";
    for more in ["", ", cutout: 8", ", cutout: 8, mixup: 0.2", cut, all] {
        let expected = trained(more, false, 0, None);
        for gathered in [false, true] {
            let (steps, asked) = pretended(false);
            assert!(same(&expected, &trained(more, gathered, 0, Some(steps))), "{more} {gathered}");
            // Three steps are warm-up, and the last batch of each epoch has another size.
            assert_eq!(*asked.borrow(), once_and(12 - 3 - 2));
        }
    }
}

/// The largest batch is recorded even if a resumed epoch begins with its last, smaller batch, or if
/// that batch directly follows the warm-up.
#[test]
fn the_largest_batch_is_recorded() {
    let _turn = common::turn();
    for (first, replays) in [(5, 5 - 3), (2, 4 + 5 - 3 - 1), (3, 3 + 5 - 1 - 3)] {
        let (steps, asked) = pretended(false);
        assert!(same(&trained("", true, first, None), &trained("", true, first, Some(steps))));
        assert_eq!(*asked.borrow(), once_and(replays), "from {first}");
    }
}

#[test]
fn what_cannot_be_recorded_runs_plainly() {
    let _turn = common::turn();
    let (steps, asked) = pretended(true);
    assert!(same(&trained("", true, 0, None), &trained("", true, 0, Some(steps))));
    assert_eq!(asked.borrow()[..], ["record"], "asked once");
}

/// Returns the evaluations after each of three epochs of a trial: not recorded, and recorded.
fn evaluations(operator: &str, form: EvalForm, steps: Steps) -> Vec<[Evaluation; 2]> {
    let mut trainer = trainer(operator, "", true);
    let compact = trainer.config.build(Form::Compact, Device::Cpu).unwrap();
    let mut evaluator = Evaluator::new(steps, Device::Cpu);
    let places = || compact.store.variables().values().map(Tensor::data_ptr).collect::<std::collections::BTreeSet<_>>();
    let before = places();
    let both = (0..3).map(|at| {
        epoch(&mut trainer, at, 0);
        let Trainer { network, test, .. } = &trainer;
        let network = match form {
            EvalForm::Folded => {
                fold::assign(&compact.store, &fold::fold(&*network.network, &network.store).unwrap()).unwrap();
                &compact
            }
            EvalForm::Expanded => network,
        };
        [evaluate(network, test).unwrap(), evaluator.evaluate(network, test).unwrap()]
    });
    let both = both.collect();
    assert_eq!(places(), before, "a recording reads the variables where they were");
    both
}

#[test]
fn recorded_evaluations_are_the_same_to_the_bit_and_recorded_once() {
    let _turn = common::turn();
    for form in [EvalForm::Folded, EvalForm::Expanded] {
        for (operator, refuses) in [("{name: maconv}", false), ("{name: mdconv}", false), ("{name: plain}", true)] {
            let (steps, asked) = pretended(refuses);
            let found = evaluations(operator, form, steps);
            assert!(found.iter().all(|[expected, found]| expected == found), "{operator} {form:?}: {found:?}");
            assert!(found[0] != found[1] && found[1] != found[2], "the weights change: {found:?}");
            // Three evaluations of five whole batches and one of 20 images: all whole batches but
            // the three of the warm-up are replayed.
            let expected = if refuses { vec!["record"] } else { once_and(3 * 5 - 3) };
            assert_eq!(*asked.borrow(), expected);
        }
    }
}
