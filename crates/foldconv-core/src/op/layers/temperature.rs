//! What the scores of an attention are divided by before they become weights: the larger, the more alike the weights are.

use crate::op::bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// A number, or one that moves linearly over the first epochs and then stays: `30`, or `{from: 30, to: 1, epochs: 10}` (Chen et
/// al., CVPR 2020).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "give a number, or {from: 30, to: 1, epochs: 10}")]
pub enum Temperature {
    /// Throughout training.
    Constant(f64),
    /// Moving.
    Linear(Linear),
}

/// A temperature that moves.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// At the first step.
    pub from: f64,
    /// After `epochs`.
    pub to: f64,
    /// Over how many epochs it moves, a step at a time.
    pub epochs: f64,
}

impl Temperature {
    /// Refuses what is not above 0.
    ///
    /// # Errors
    /// What is wrong, as `temperature: reason`.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Temperature::Constant(value) => bounds::positive("temperature", *value),
            Temperature::Linear(Linear { from, to, epochs }) => {
                bounds::positive("temperature.from", *from)?;
                bounds::positive("temperature.to", *to)?;
                bounds::positive("temperature.epochs", *epochs)
            }
        }
    }

    /// Its value after so many epochs.
    pub fn at(&self, epochs: f64) -> f64 {
        match *self {
            Temperature::Constant(value) => value,
            Temperature::Linear(Linear { from, to, epochs: whole }) => {
                from + (to - from) * (epochs / whole).clamp(0., 1.)
            }
        }
    }
}

/// A temperature in force: the buffer `temperature` (a scalar), saved with the variables, and its schedule.
#[derive(Debug)]
pub struct Divisor {
    value: Tensor,
    schedule: Temperature,
}

impl Divisor {
    /// On `path`, as it is at the start.
    pub fn new(path: &nn::Path, schedule: Temperature) -> Divisor {
        let mut value = path.zeros_no_train("temperature", &[]);
        let _ = value.fill_(schedule.at(0.));
        Divisor { value, schedule }
    }

    /// The scores divided by it.
    pub fn divide(&self, scores: Tensor) -> Tensor {
        scores / &self.value
    }

    /// As it is after so many epochs.
    pub fn anneal(&self, epochs: f64) {
        if let Temperature::Linear(_) = self.schedule {
            let _ = self.value.shallow_clone().fill_(self.schedule.at(epochs));
        }
    }

    /// Detached and in another precision.
    pub fn to_kind(&self, kind: Kind) -> Divisor {
        Divisor { value: self.value.detach().to_kind(kind), schedule: self.schedule }
    }

    /// Its buffer, by its name below `prefix` (with a dot where it isn't empty).
    pub fn tensor(&self, prefix: &str) -> (String, Tensor) {
        (format!("{prefix}temperature"), self.value.shallow_clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn it_moves_linearly_and_stays() {
        let temperature: Temperature = serde_yaml::from_str("{from: 30, to: 1, epochs: 10}").unwrap();
        assert_eq!([0., 5., 10., 50.].map(|epochs| temperature.at(epochs)), [30., 15.5, 1., 1.]);
        assert_eq!(serde_yaml::from_str::<Temperature>("4").unwrap().at(7.), 4.);
    }

    #[test]
    fn what_is_no_temperature_is_refused_by_key() {
        let refusal = |yaml: &str| serde_yaml::from_str::<Temperature>(yaml).unwrap().check().unwrap_err();
        assert!(refusal("0").starts_with("temperature: 0"));
        assert!(refusal(".nan").starts_with("temperature: NaN"));
        assert!(refusal("{from: 30, to: 0, epochs: 10}").starts_with("temperature.to: 0"));
        assert!(refusal("{from: -1, to: 1, epochs: 10}").starts_with("temperature.from: -1"));
        assert!(refusal("{from: 2, to: 1, epochs: 0}").starts_with("temperature.epochs: 0"));
        let error = serde_yaml::from_str::<Temperature>("{from: 30, too: 1}").unwrap_err().to_string();
        assert!(error.contains("give a number, or {from: 30, to: 1, epochs: 10}"), "{error}");
    }

    /// The buffer is what divides: another model's number, once loaded, is in force.
    #[test]
    fn the_buffer_is_in_force() {
        let store = nn::VarStore::new(Device::Cpu);
        let schedule = Temperature::Linear(Linear { from: 30., to: 1., epochs: 10. });
        let divisor = Divisor::new(&store.root(), schedule);
        let divided = || divisor.divide(Tensor::from(60f32)).double_value(&[]);
        assert_eq!(divided(), 2.);
        divisor.anneal(10.);
        assert_eq!(divided(), 60.);
        let _ = store.variables()["temperature"].shallow_clone().fill_(3.);
        assert_eq!(divided(), 20.);
    }
}
