//! Temperature of an attention: the divisor of its scores before they become weights. The larger
//! the temperature, the more alike the weights.

use crate::op::bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, nn};

/// A constant temperature, or one that changes linearly over the first epochs and then stays: `30`,
/// or `{from: 30, to: 1, epochs: 10}` (Chen et al., CVPR 2020).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged, expecting = "give a number, or {from: 30, to: 1, epochs: 10}")]
pub enum Temperature {
    /// Constant throughout training.
    Constant(f64),
    /// Changing linearly over the first epochs.
    Linear(Linear),
}

/// A temperature that changes linearly and then stays.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Linear {
    /// Value at the first step.
    pub from: f64,
    /// Value after `epochs` epochs.
    pub to: f64,
    /// Number of epochs over which the temperature changes, a little at each step.
    pub epochs: f64,
}

impl Temperature {
    /// Checks that all numbers are above 0.
    ///
    /// # Errors
    /// The first invalid number, as `temperature: reason`, or `temperature.from: reason` and the
    /// like.
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

    /// Returns the temperature after `epochs` epochs.
    pub fn at(&self, epochs: f64) -> f64 {
        match *self {
            Temperature::Constant(value) => value,
            Temperature::Linear(Linear { from, to, epochs: whole }) => {
                from + (to - from) * (epochs / whole).clamp(0., 1.)
            }
        }
    }
}

/// A temperature in force: the buffer `temperature` (a scalar), saved with the variables, and its
/// schedule.
#[derive(Debug)]
pub struct Divisor {
    value: Tensor,
    schedule: Temperature,
}

impl Divisor {
    /// Creates the buffer on `path`, with the value at the start of the schedule.
    pub fn new(path: &nn::Path, schedule: Temperature) -> Divisor {
        let mut value = path.zeros_no_train("temperature", &[]);
        let _ = value.fill_(schedule.at(0.));
        Divisor { value, schedule }
    }

    /// Divides the scores by the temperature.
    pub fn divide(&self, scores: Tensor) -> Tensor {
        scores / &self.value
    }

    /// Sets the temperature to its value after `epochs` epochs.
    pub fn anneal(&self, epochs: f64) {
        if let Temperature::Linear(_) = self.schedule {
            let _ = self.value.shallow_clone().fill_(self.schedule.at(epochs));
        }
    }

    /// Returns a detached copy in another precision.
    pub fn to_kind(&self, kind: Kind) -> Divisor {
        Divisor { value: self.value.detach().to_kind(kind), schedule: self.schedule }
    }

    /// Returns the buffer and its name, `temperature` after `prefix`. A prefix that isn't empty
    /// ends with a dot.
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

    /// The buffer is the divisor: a number loaded from another model takes effect.
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
