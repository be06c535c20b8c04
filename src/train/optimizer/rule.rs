//! The update rules of the optimizers, each a few passes over flat buffers.

use super::flat::Segments;
use crate::config::{OptimizerName, TrainConfig};
use tch::{Kind, Tensor};

/// An update rule and its constants.
#[derive(Clone, Copy, Debug)]
pub enum Rule {
    /// Stochastic gradient descent, as torch.optim.SGD with dampening 0.
    Sgd {
        /// Momentum.
        momentum: f64,
        /// Whether the momentum is Nesterov's.
        nesterov: bool,
    },
    /// AdamW (Loshchilov & Hutter, ICLR 2019), as torch.optim.AdamW.
    AdamW(Moments),
    /// LAMB (You et al., ICLR 2020), as timm.optim.Lamb: parameters without weight decay have no
    /// trust ratio.
    Lamb(Moments),
    /// RMSProp as TensorFlow computes it, with eps below the root and the learning rate in the
    /// momentum; timm.optim.RMSpropTF.
    RmsProp {
        /// Share of the old mean square.
        alpha: f64,
        /// Number that is added to the mean square.
        eps: f64,
        /// Momentum.
        momentum: f64,
    },
}

/// Constants of the running moments of Adam.
#[derive(Clone, Copy, Debug)]
pub struct Moments {
    /// Shares of the old mean and of the old mean square.
    pub betas: [f64; 2],
    /// Number that is added to the root of the mean square.
    pub eps: f64,
}

/// The tensors of an update. All keep their addresses, as recorded steps require.
pub struct Update<'a> {
    /// Parameters.
    pub flat: &'a mut Tensor,
    /// Gradient.
    pub gradient: Tensor,
    /// State of the rule, in the order of [`Rule::state`].
    pub state: &'a mut [Tensor],
    /// Learning rate, a scalar.
    pub lr: &'a Tensor,
    /// Number of updates including this one, a scalar in float64.
    pub steps: &'a Tensor,
    /// Number of elements at the front that get weight decay.
    pub decayed: i64,
    /// Weight decay.
    pub weight_decay: f64,
    /// Places of the parameters.
    pub segments: &'a Segments,
}

impl Rule {
    /// Returns the rule of a config.
    pub fn new(config: &TrainConfig) -> Rule {
        let TrainConfig { momentum, nesterov, .. } = *config;
        let betas = config.betas.unwrap_or([0.9, 0.999]);
        match config.optimizer {
            OptimizerName::Sgd => Rule::Sgd { momentum, nesterov },
            OptimizerName::Adamw => Rule::AdamW(Moments { betas, eps: config.eps.unwrap_or(1e-8) }),
            OptimizerName::Lamb => Rule::Lamb(Moments { betas, eps: config.eps.unwrap_or(1e-6) }),
            OptimizerName::Rmsprop => {
                Rule::RmsProp { alpha: config.alpha.unwrap_or(0.9), eps: config.eps.unwrap_or(1e-3), momentum }
            }
        }
    }

    /// Returns the names of the state's tensors and the numbers that they begin with.
    pub fn state(&self) -> &'static [(&'static str, f64)] {
        match self {
            Rule::Sgd { .. } => &[("velocity", 0.)],
            Rule::AdamW(_) | Rule::Lamb(_) => &[("exp_avg", 0.), ("exp_avg_sq", 0.)],
            // TensorFlow begins with ones.
            Rule::RmsProp { .. } => &[("square_avg", 1.), ("velocity", 0.)],
        }
    }

    /// Returns whether an update depends on the number of updates before it.
    pub fn counts(&self) -> bool {
        matches!(self, Rule::AdamW(_) | Rule::Lamb(_))
    }

    /// Updates the parameters and the state.
    pub fn update(&self, update: Update) {
        match *self {
            Rule::Sgd { momentum, nesterov } => sgd(update, momentum, nesterov),
            Rule::AdamW(moments) => adamw(update, moments),
            Rule::Lamb(moments) => lamb(update, moments),
            Rule::RmsProp { alpha, eps, momentum } => rmsprop(update, [alpha, eps, momentum]),
        }
    }
}

impl Update<'_> {
    /// Adds the weight decay to the gradient, as an L2 penalty.
    fn penalise(&mut self) {
        if self.weight_decay > 0. {
            let mut decayed = self.gradient.narrow(0, 0, self.decayed);
            decayed += self.flat.narrow(0, 0, self.decayed) * self.weight_decay;
        }
    }

    /// Updates the running moments of Adam. Returns the mean divided by the root of the mean square
    /// plus eps, both corrected for the zeros that they begin with.
    fn direction(&mut self, Moments { betas: [first, second], eps }: Moments) -> Tensor {
        let [mean, square] = self.state else { return self.gradient.shallow_clone() };
        let _ = mean.lerp_(&self.gradient, 1. - first);
        let _ = square.lerp_(&self.gradient.square(), 1. - second);
        // 1 - beta^t, of a number of steps that recorded steps count on the device.
        let correction = |beta: f64| (self.steps * beta.ln()).exp() * -1. + 1.;
        let root = square.sqrt().g_div_(&correction(second).sqrt()).g_add_scalar_(eps);
        (&*mean / root).g_div_(&correction(first))
    }
}

fn sgd(mut update: Update, momentum: f64, nesterov: bool) {
    update.penalise();
    let Update { flat, gradient, state: [velocity], lr, .. } = update else { return };
    *velocity *= momentum;
    *velocity += &gradient;
    let step = if nesterov { gradient + &*velocity * momentum } else { velocity.shallow_clone() };
    *flat -= step * lr;
}

fn adamw(mut update: Update, moments: Moments) {
    let direction = update.direction(moments);
    let Update { flat, lr, decayed, weight_decay, .. } = update;
    if weight_decay > 0. {
        let mut decayed = flat.narrow(0, 0, decayed);
        decayed *= lr * -weight_decay + 1.;
    }
    *flat -= direction * lr;
}

fn lamb(mut update: Update, moments: Moments) {
    let mut direction = update.direction(moments);
    let Update { flat, lr, decayed, weight_decay, segments, .. } = update;
    if weight_decay > 0. {
        let (mut part, weights) = (direction.narrow(0, 0, decayed), flat.narrow(0, 0, decayed));
        part += &weights * weight_decay;
        let (size, step) = (segments.norms(&weights), segments.norms(&part));
        // A parameter or a step of 0 is not scaled.
        let both = size.gt(0.).logical_and(&step.gt(0.));
        let ratio = (&size / &step).where_self(&both, &size.ones_like());
        part *= segments.spread(&ratio, decayed);
    }
    direction *= lr;
    *flat -= direction;
}

fn rmsprop(mut update: Update, [alpha, eps, momentum]: [f64; 3]) {
    update.penalise();
    let Update { flat, gradient, state: [square, velocity], lr, .. } = update else { return };
    let _ = square.lerp_(&gradient.square(), 1. - alpha);
    let step = gradient / (&*square + eps).sqrt() * lr;
    *velocity *= momentum;
    *velocity += step;
    *flat -= &*velocity;
}

/// Scales a gradient so that its norm is at most `most`, as torch.nn.utils.clip_grad_norm_.
pub fn clip(gradient: &mut Tensor, most: f64) {
    let norm = gradient.square().sum(Kind::Double).sqrt();
    *gradient *= ((norm + 1e-6).reciprocal() * most).clamp_max(1.).to_kind(gradient.kind());
}
