//! The section `train` of a config.

use crate::config::distill::DistillConfig;
use crate::op::contract::algorithm::WantedAlgorithm;
use crate::precision::Precision;
use crate::registry;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Options of the training.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainConfig {
    /// Number of passes over the training set. Default 200.
    pub epochs: u64,
    /// Number of images per step; the last step of an epoch takes the remaining images. Default
    /// 128.
    pub batch: usize,
    /// Optimizer. Default `sgd`.
    #[serde(skip_serializing_if = "registry::is_default")]
    pub optimizer: OptimizerName,
    /// Highest learning rate. Default 0.1.
    pub lr: f64,
    /// Schedule of the learning rate. Default `cosine`.
    pub schedule: Schedule,
    /// Learning rate at the end of `cosine` and `linear`. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// Number of epochs between two falls of `step`. Default: none, and `step` needs it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step_size: Option<f64>,
    /// Epochs after which `multi_step` falls. Default: none, and `multi_step` needs them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub milestones: Option<Vec<f64>>,
    /// Factor of the learning rate at each fall of `step` and `multi_step`, and per epoch in
    /// `exponential`, which needs it. Default 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// Share of the steps in which `one_cycle` rises. Default 0.3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pct_start: Option<f64>,
    /// Highest learning rate of `one_cycle` divided by the first one. Default 25.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub div_factor: Option<f64>,
    /// First learning rate of `one_cycle` divided by the last one. Default 1e4.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub final_div_factor: Option<f64>,
    /// Number of epochs over which the learning rate first rises linearly. Default 0.
    pub warmup: f64,
    /// Learning rate from which it rises. Default 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub warmup_lr: Option<f64>,
    /// Momentum of `sgd` and `rmsprop`. Default 0.9.
    pub momentum: f64,
    /// Uses Nesterov momentum, with `sgd`. Default false.
    pub nesterov: bool,
    /// Shares of the old running mean and mean square of the gradient, of `adamw` and `lamb`.
    /// Default [0.9, 0.999].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<[f64; 2]>,
    /// Share of the old mean square of the gradient, of `rmsprop`. Default 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Number that keeps divisions finite: added to the root of the mean square in `adamw` and
    /// `lamb`, and to the mean square itself in `rmsprop`. Default: 1e-8, 1e-6 and 1e-3.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eps: Option<f64>,
    /// Weight decay: an L2 penalty added to the gradient in `sgd` and `rmsprop`, and decoupled from
    /// the gradient in `adamw` and `lamb`. Default 5e-4.
    pub weight_decay: f64,
    /// Applies the penalty also to batch norms and biases, as PyTorch's optimizers do. Default
    /// true.
    pub decay_norm_and_bias: bool,
    /// Largest Euclidean norm of the gradient of all parameters, to which larger ones are scaled.
    /// Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Number of parts in which a batch is computed, one after another, to save memory. The
    /// gradients are averaged; each part has batch statistics of its own. Default 1.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub accumulate: u64,
    /// Moving average of the network, which is evaluated and folded beside it. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ema: Option<EmaConfig>,
    /// Number of training images over which the running statistics of the batch norms are computed
    /// anew before the last fold (Wu & Johnson, "Rethinking 'Batch' in BatchNorm", 2021). Default
    /// 0: they stay.
    #[serde(skip_serializing_if = "registry::is_default")]
    pub precise_bn: u64,
    /// Largest probability with which a residual branch of a sample is left out in training, and
    /// the others are scaled to keep the mean; it grows linearly from 0 at the first block to this
    /// at the last (stochastic depth; Huang et al., ECCV 2016; per sample, as timm's DropPath).
    /// Default 0.
    #[serde(skip_serializing_if = "registry::is_default")]
    pub drop_path: f64,
    /// Dropout of the features before the last layer in training. Default: that of the network.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropout: Option<f64>,
    /// Distillation from another network. Default: none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distill: Option<DistillConfig>,
    /// Label smoothing of the cross-entropy. Default 0.
    pub label_smoothing: f64,
    /// Algorithm of the operators in training: `branches`, `moments`, `features` or `per_sample` at
    /// each site that supports it, or `auto`, the fastest at each site, measured at the start. All
    /// compute the same function; the last bits of float32 differ. Default `auto`.
    #[serde(alias = "exec")]
    pub algorithm: WantedAlgorithm,
    /// Precision of the arithmetic in a step: `fp32`, `tf32` (CUDA) or `bf16`. Default `fp32`.
    pub precision: Precision,
    /// Form of the network that is evaluated after each epoch. Both forms compute the same function
    /// and training does not depend on the choice, so the trial's name does not either. Default
    /// `folded`.
    pub eval_form: EvalForm,
    /// Records training steps on CUDA once and replays them: `auto` or `off`. Recorded steps do the
    /// same operations on the same numbers, so the trial's name does not depend on the choice.
    /// Default `auto`.
    pub graphs: Graphs,
}

/// Recording of training steps as CUDA graphs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Graphs {
    /// Steps are recorded if possible.
    #[default]
    Auto,
    /// Steps are never recorded.
    Off,
}

/// Form of a network that is evaluated while the network trains.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EvalForm {
    /// The compact form, which is faster, if the network folds; else the expanded form.
    #[default]
    Folded,
    /// The expanded form.
    Expanded,
}

/// Optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OptimizerName {
    /// Stochastic gradient descent with momentum, as torch.optim.SGD.
    #[default]
    Sgd,
    /// Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019), as torch.optim.AdamW.
    Adamw,
    /// LAMB (You et al., ICLR 2020), as timm.optim.Lamb.
    Lamb,
    /// RMSProp as in TensorFlow, with which MobileNets and EfficientNets were trained, as
    /// timm.optim.RMSpropTF.
    Rmsprop,
}

/// Schedule of the learning rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Falls along half a cosine to `min_lr`, with a new value at each step.
    Cosine,
    /// Stays constant.
    Constant,
    /// Falls on a line to `min_lr`, with a new value at each step.
    Linear,
    /// Is multiplied by `gamma` every `step_size` epochs.
    Step,
    /// Is multiplied by `gamma` after each epoch in `milestones`.
    MultiStep,
    /// Is multiplied by `gamma` over each epoch, a little at each step.
    Exponential,
    /// Rises along half a cosine and falls along another (Smith & Topin, 2019), as
    /// torch.optim.lr_scheduler.OneCycleLR with constant momentum.
    OneCycle,
}

/// Options of the moving average of a network.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct EmaConfig {
    /// Share of the old average in each update. Default 0.9999.
    pub decay: f64,
    /// Whether the share is at most (1 + t)/(10 + t) at update t, so that the average soon forgets
    /// the initial values. Default true.
    pub warmup: bool,
}

impl Default for EmaConfig {
    fn default() -> EmaConfig {
        EmaConfig { decay: 0.9999, warmup: true }
    }
}

impl Default for TrainConfig {
    fn default() -> TrainConfig {
        TrainConfig {
            epochs: 200,
            batch: 128,
            optimizer: OptimizerName::Sgd,
            lr: 0.1,
            schedule: Schedule::Cosine,
            min_lr: None,
            step_size: None,
            milestones: None,
            gamma: None,
            pct_start: None,
            div_factor: None,
            final_div_factor: None,
            warmup: 0.,
            warmup_lr: None,
            momentum: 0.9,
            nesterov: false,
            betas: None,
            alpha: None,
            eps: None,
            weight_decay: 5e-4,
            decay_norm_and_bias: true,
            clip_norm: None,
            accumulate: 1,
            ema: None,
            precise_bn: 0,
            drop_path: 0.,
            dropout: None,
            distill: None,
            label_smoothing: 0.,
            algorithm: WantedAlgorithm::Auto,
            precision: Precision::Fp32,
            eval_form: EvalForm::Folded,
            graphs: Graphs::Auto,
        }
    }
}

fn one() -> u64 {
    1
}

fn is_one(number: &u64) -> bool {
    *number == 1
}

impl TrainConfig {
    /// Checks that the options are in range.
    ///
    /// # Errors
    /// The reason, as `key: reason`.
    pub(super) fn check(&self) -> Result<(), String> {
        self.check_ranges()?;
        self.check_optimizer()?;
        self.check_schedule()?;
        if self.precision == Precision::Bf16
            && !matches!(self.algorithm, WantedAlgorithm::Auto | WantedAlgorithm::Branches)
        {
            return Err("precision: bf16 trains in branches; give fp32 or tf32, or algorithm: auto".into());
        }
        self.distill.as_ref().map_or(Ok(()), |distill| distill.check().map_err(|reason| format!("distill.{reason}")))
    }

    fn check_ranges(&self) -> Result<(), String> {
        let fractions = [
            ("momentum", Some(self.momentum)),
            ("label_smoothing", Some(self.label_smoothing)),
            ("drop_path", Some(self.drop_path)),
            ("dropout", self.dropout),
            ("alpha", self.alpha),
            ("ema.decay", self.ema.map(|ema| ema.decay)),
            ("betas", self.betas.map(|betas| betas[0])),
            ("betas", self.betas.map(|betas| betas[1])),
        ];
        for (key, value) in fractions {
            if value.is_some_and(|value| !(0. ..1.).contains(&value)) {
                return Err(format!("{key}: {}; give a number from 0 to less than 1", value.unwrap_or_default()));
            }
        }
        let positive = [("lr", Some(self.lr)), ("clip_norm", self.clip_norm), ("eps", self.eps)];
        for (key, value) in positive {
            if value.is_some_and(|value| !(value.is_finite() && value > 0.)) {
                return Err(format!("{key}: {}; give a number above 0", value.unwrap_or_default()));
            }
        }
        if self.epochs < 1 {
            return Err("epochs: 0; train at least 1".into());
        }
        for (key, count) in [("batch", self.batch as u64), ("accumulate", self.accumulate)] {
            if count < 1 {
                let unit = if key == "batch" { "image" } else { "part" };
                return Err(format!("{key}: 0; use at least 1 {unit}"));
            }
        }
        if self.accumulate > self.batch as u64 {
            return Err(format!("accumulate: {}; a batch of {} has not so many parts", self.accumulate, self.batch));
        }
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.) {
            return Err(format!("weight_decay: {}; give 0 or more", self.weight_decay));
        }
        Ok(())
    }

    /// Refuses options of another optimizer.
    fn check_optimizer(&self) -> Result<(), String> {
        use OptimizerName::{Adamw, Lamb, Rmsprop, Sgd};
        let default = TrainConfig::default();
        let given: [(&str, bool, &[OptimizerName]); 5] = [
            ("momentum", self.momentum != default.momentum, &[Sgd, Rmsprop]),
            ("nesterov", self.nesterov, &[Sgd]),
            ("betas", self.betas.is_some(), &[Adamw, Lamb]),
            ("alpha", self.alpha.is_some(), &[Rmsprop]),
            ("eps", self.eps.is_some(), &[Adamw, Lamb, Rmsprop]),
        ];
        match given.iter().find(|(_, given, of)| *given && !of.contains(&self.optimizer)) {
            Some((key, ..)) => Err(format!("{key}: has no meaning with optimizer: {}", word(&self.optimizer))),
            None => Ok(()),
        }
    }

    /// Refuses options of another schedule, and values out of range.
    fn check_schedule(&self) -> Result<(), String> {
        use Schedule::{Cosine, Exponential, Linear, MultiStep, OneCycle, Step};
        let given: [(&str, Option<f64>, &[Schedule]); 6] = [
            ("min_lr", self.min_lr, &[Cosine, Linear]),
            ("step_size", self.step_size, &[Step]),
            ("gamma", self.gamma, &[Step, MultiStep, Exponential]),
            ("pct_start", self.pct_start, &[OneCycle]),
            ("div_factor", self.div_factor, &[OneCycle]),
            ("final_div_factor", self.final_div_factor, &[OneCycle]),
        ];
        for (key, value, of) in given {
            let Some(value) = value else { continue };
            if !of.contains(&self.schedule) {
                return Err(format!("{key}: has no meaning with schedule: {}", word(&self.schedule)));
            }
            if !(value.is_finite() && value > 0. || key == "min_lr" && value == 0.) {
                return Err(format!("{key}: {value}; give a number above 0"));
            }
        }
        if self.milestones.is_some() && self.schedule != MultiStep {
            return Err(format!("milestones: have no meaning with schedule: {}", word(&self.schedule)));
        }
        let missing = match self.schedule {
            Step => self.step_size.is_none().then_some("step_size"),
            MultiStep => self.milestones.as_ref().is_none_or(Vec::is_empty).then_some("milestones"),
            Exponential => self.gamma.is_none().then_some("gamma"),
            _ => None,
        };
        if let Some(key) = missing {
            return Err(format!("{key}: is missing; schedule: {} needs it", word(&self.schedule)));
        }
        if let Some(milestones) = &self.milestones
            && !(milestones[0] > 0. && milestones.windows(2).all(|pair| pair[0] < pair[1]))
        {
            return Err(format!("milestones: {milestones:?}; give rising numbers of epochs"));
        }
        if self.pct_start.is_some_and(|share| share >= 1.) {
            return Err("pct_start: 1 or more; give a share of the steps below 1".into());
        }
        if !(self.warmup >= 0. && self.warmup <= self.epochs as f64) {
            return Err(format!("warmup: {}; give 0 to {} epochs", self.warmup, self.epochs));
        }
        if self.schedule == OneCycle && self.warmup > 0. {
            return Err("warmup: schedule: one_cycle rises by itself; leave it out".into());
        }
        match self.warmup_lr {
            Some(_) if self.warmup == 0. => Err("warmup_lr: has no meaning without `warmup`".into()),
            Some(lr) if !(0. ..=self.lr).contains(&lr) => Err(format!("warmup_lr: {lr}; give 0 to lr")),
            _ => Ok(()),
        }
    }
}

/// Returns the word of an option in a config.
fn word(option: &impl Serialize) -> String {
    crate::config::yaml(option).trim().to_string()
}
