//! Networks that are a chain of parts, then the mean over the map and a classifier. A site and a
//! residual block are parts.

use crate::algebra;
use crate::net::builder::{BlockExtras, Classifier};
use crate::net::network::Network;
use crate::net::site::Site;
use crate::op::activation::Activation;
use std::cell::Cell;
use std::fmt::Debug;
use tch::{Tensor, nn};

/// A part of a network: x (N, C, H, W) to y (N, C', H', W').
pub trait Part: Debug + Send {
    /// Returns y of x; `shared` is the tensor that the operators of the enclosing block share.
    fn forward(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor;

    /// Returns the sites, in the order in which they run.
    fn sites(&self) -> Vec<&Site> {
        Vec::new()
    }

    /// Returns the modules that the blocks have in addition to their sites.
    fn extras(&self) -> Vec<&BlockExtras> {
        Vec::new()
    }

    /// Returns the residual blocks, in the order in which they run.
    fn residuals(&self) -> Vec<&Residual> {
        Vec::new()
    }
}

/// Parts that run in sequence.
pub type Parts = Vec<Box<dyn Part>>;

impl Part for Site {
    fn forward(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor {
        Site::forward(self, x, shared, train)
    }

    fn sites(&self) -> Vec<&Site> {
        vec![self]
    }
}

impl Part for Parts {
    fn forward(&self, x: &Tensor, shared: Option<&Tensor>, train: bool) -> Tensor {
        self.iter().fold(x.shallow_clone(), |x, part| part.forward(&x, shared, train))
    }

    fn sites(&self) -> Vec<&Site> {
        self.iter().flat_map(|part| part.sites()).collect()
    }

    fn extras(&self) -> Vec<&BlockExtras> {
        self.iter().flat_map(|part| part.extras()).collect()
    }

    fn residuals(&self) -> Vec<&Residual> {
        self.iter().flat_map(|part| part.residuals()).collect()
    }
}

/// Max pooling, as torch.nn.MaxPool2d.
#[derive(Debug)]
pub struct MaxPool {
    /// Height and width of the window.
    pub window: i64,
    /// Stride of the window.
    pub stride: i64,
    /// Rows and columns of -infinity on each side.
    pub padding: i64,
    /// True if the last window may reach over the edge, as `ceil_mode` of PyTorch.
    pub ceil: bool,
}

impl MaxPool {
    /// Returns a pooling with a square window; `ceil` is false.
    pub fn new(window: i64, stride: i64, padding: i64) -> MaxPool {
        MaxPool { window, stride, padding, ceil: false }
    }
}

impl Part for MaxPool {
    fn forward(&self, x: &Tensor, _shared: Option<&Tensor>, _train: bool) -> Tensor {
        x.max_pool2d([self.window; 2], [self.stride; 2], [self.padding; 2], [1, 1], self.ceil)
    }
}

/// A residual block: activation(attention(main(x)) + shortcut(x)).
#[derive(Debug)]
pub struct Residual {
    /// The main branch.
    pub main: Parts,
    /// The shortcut: none for a block without one, an empty list for the identity.
    pub shortcut: Option<Parts>,
    /// Activation after the sum.
    pub activation: Activation,
    /// Probability with which the main branch of a sample is left out in training.
    pub drop_path: Cell<f64>,
    /// The attention, and the tensor that the operators share.
    pub extras: BlockExtras,
}

impl Residual {
    /// Creates a block that keeps the main branch of every sample in training.
    pub fn new(main: Parts, shortcut: Option<Parts>, activation: Activation, extras: BlockExtras) -> Residual {
        Residual { main, shortcut, activation, drop_path: Cell::default(), extras }
    }
}

impl Part for Residual {
    fn forward(&self, x: &Tensor, _shared: Option<&Tensor>, train: bool) -> Tensor {
        let shared = self.extras.share(x, train);
        let y = self.extras.attend(self.main.forward(x, shared.as_ref(), train), train);
        let sum = match &self.shortcut {
            None => y,
            Some(parts) => drop_path(y, self.drop_path.get(), train) + parts.forward(x, shared.as_ref(), train),
        };
        self.activation.apply(sum)
    }

    fn sites(&self) -> Vec<&Site> {
        self.main.sites().into_iter().chain(self.shortcut.iter().flat_map(Part::sites)).collect()
    }

    fn extras(&self) -> Vec<&BlockExtras> {
        vec![&self.extras]
    }

    fn residuals(&self) -> Vec<&Residual> {
        vec![self]
    }
}

/// Sets y (N, C, H, W) to 0 for each sample with the given probability in training, and scales the
/// others so that the mean stays.
fn drop_path(y: Tensor, probability: f64, train: bool) -> Tensor {
    if !train || probability == 0. {
        return y;
    }
    let kept = 1. - probability;
    let size = [y.size()[0], 1, 1, 1];
    let mask = Tensor::empty(size, (y.kind(), y.device())).bernoulli_float_(kept);
    y * (mask / kept)
}

/// A network of parts, mean over the map, dropout and classifier.
#[derive(Debug)]
pub struct Chain {
    /// Parts that compute the last map (N, features, H, W).
    pub parts: Parts,
    /// Dropout probability of the features in training.
    pub dropout: Cell<f64>,
    /// Classifier: features to logits.
    pub classifier: Classifier,
}

impl nn::ModuleT for Chain {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let pooled = algebra::global_mean(&self.parts.forward(x, None, train));
        self.classifier.forward_t(&pooled.dropout(self.dropout.get(), train), train)
    }
}

impl Network for Chain {
    fn set_drop_path(&self, most: f64) -> bool {
        let blocks = self.parts.residuals().into_iter().filter(|block| block.shortcut.is_some());
        let blocks: Vec<&Residual> = blocks.collect();
        let last = blocks.len().saturating_sub(1).max(1) as f64;
        blocks.iter().enumerate().for_each(|(at, block)| block.drop_path.set(most * at as f64 / last));
        !blocks.is_empty()
    }

    fn set_dropout(&self, probability: f64) -> bool {
        self.dropout.set(probability);
        true
    }

    fn classifier(&self) -> Option<&str> {
        Some(&self.classifier.name)
    }

    fn sites(&self) -> Vec<&Site> {
        self.parts.sites()
    }

    fn extras(&self) -> Vec<&BlockExtras> {
        self.parts.extras()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    /// Each sample keeps all of its map or nothing. The mean over 4000 samples is within five
    /// standard errors.
    #[test]
    fn paths_are_dropped_by_sample_and_keep_the_mean() {
        let (n, probability) = (4000, 0.3);
        let ones = Tensor::ones([n, 2, 1, 3], (Kind::Double, Device::Cpu));
        let dropped = drop_path(ones.shallow_clone(), probability, true);
        let first = dropped.narrow(1, 0, 1).narrow(3, 0, 1);
        assert_eq!(dropped, first.expand_as(&dropped));
        let kept = first.gt(0.).sum(Kind::Double).double_value(&[]) / n as f64;
        assert!((kept - 0.7).abs() < 5. * (0.3f64 * 0.7 / n as f64).sqrt(), "{kept}");
        assert!((first.max().double_value(&[]) - 1. / 0.7).abs() < 1e-12);
        assert_eq!(drop_path(ones.shallow_clone(), probability, false), ones);
    }
}
