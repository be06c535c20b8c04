//! Networks that are a chain of parts, then the mean over the map and a classifier. A site and a
//! residual block are parts.

use crate::algebra;
use crate::net::builder::{BlockExtras, Classifier};
use crate::net::network::Network;
use crate::net::site::Site;
use crate::op::activation::Activation;
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
    /// The attention, and the tensor that the operators share.
    pub extras: BlockExtras,
}

impl Part for Residual {
    fn forward(&self, x: &Tensor, _shared: Option<&Tensor>, train: bool) -> Tensor {
        let shared = self.extras.share(x, train);
        let y = self.extras.attend(self.main.forward(x, shared.as_ref(), train), train);
        let sum = match &self.shortcut {
            None => y,
            Some(parts) => y + parts.forward(x, shared.as_ref(), train),
        };
        self.activation.apply(sum)
    }

    fn sites(&self) -> Vec<&Site> {
        self.main.sites().into_iter().chain(self.shortcut.iter().flat_map(Part::sites)).collect()
    }

    fn extras(&self) -> Vec<&BlockExtras> {
        vec![&self.extras]
    }
}

/// A network of parts, mean over the map, dropout and classifier.
#[derive(Debug)]
pub struct Chain {
    /// Parts that compute the last map (N, features, H, W).
    pub parts: Parts,
    /// Dropout probability of the features in training.
    pub dropout: f64,
    /// Classifier: features to logits.
    pub classifier: Classifier,
}

impl nn::ModuleT for Chain {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let pooled = algebra::global_mean(&self.parts.forward(x, None, train));
        self.classifier.forward_t(&pooled.dropout(self.dropout, train), train)
    }
}

impl Network for Chain {
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
