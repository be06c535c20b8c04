//! SmallNet of the MDConv paper (Luo & Zhan 2022): a 3x3 convolution with 16 channels, three times [1x1, depthwise 3x3 with
//! stride 2] with 16, 32 and 64 channels times `width`, average pooling, one linear layer. ReLU behind every batch norm.

use crate::algebra::Geometry;
use crate::net::block::{Builder, Network, Site, SiteKind, SitePlan, sub};
use crate::op::layers::{Activation, Linear};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use tch::{Tensor, nn};

/// Options of `smallnet`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Multiplies the channels of the three blocks; the first convolution keeps its 16. Default 1.
    pub width: f64,
}

impl Default for Config {
    fn default() -> Config {
        Config { width: 1. }
    }
}

/// The network; the operator goes on the three 1x1 convolutions unless `apply_to` says otherwise.
#[derive(Debug)]
pub struct SmallNet {
    sites: Vec<Site>,
    classifier: Linear,
}

impl SmallNet {
    /// On `root`: `stem`, `blocks.{0,1,2}.{pointwise,depthwise}`, each with `conv` and `bn`, and `classifier`.
    pub fn new(root: &nn::Path, builder: &Builder, config: &Config, channels: i64, classes: i64) -> Result<SmallNet> {
        let site = |name: &str, kind, geometry, default| {
            let (conv, bn) = (&*format!("{name}.conv"), &*format!("{name}.bn"));
            builder.site(root, SitePlan { conv, bn, kind, geometry, activation: Activation::Relu, default })
        };
        let mut sites = vec![site("stem", SiteKind::Stem, Geometry::same(channels, 16, 3), false)?];
        let mut inputs = 16;
        for (block, base) in [16., 32., 64.].into_iter().enumerate() {
            let outputs = ((base * config.width).round() as i64).max(1);
            let pointwise = Geometry::same(inputs, outputs, 1);
            let depthwise = Geometry::same(outputs, outputs, 3).stride(2).groups(outputs);
            sites.push(site(&format!("blocks.{block}.pointwise"), SiteKind::Pointwise, pointwise, true)?);
            sites.push(site(&format!("blocks.{block}.depthwise"), SiteKind::Depthwise, depthwise, false)?);
            inputs = outputs;
        }
        Ok(SmallNet { sites, classifier: Linear::new(&sub(root, "classifier"), inputs, classes) })
    }
}

impl nn::ModuleT for SmallNet {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let last = self.sites.iter().fold(x.shallow_clone(), |x, site| site.forward_t(&x, train));
        self.classifier.forward(&last.mean_dim([2, 3].as_slice(), false, None))
    }
}

impl Network for SmallNet {
    fn sites(&self) -> Vec<&Site> {
        self.sites.iter().collect()
    }
}
