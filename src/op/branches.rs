//! Parallel branches on one input: y = gate(sum over i of BN_i(W_i * x) + BN_skip(x)), each of whose terms folds into one kernel.
//! RepVGG, MobileOne and RepLK are such sums.

use crate::algebra::{self, FoldError, Geometry, Kernel};
use crate::op::layers::{Activation, BatchNorm, ConvNorm, Norm};
use crate::op::operator::{Compact, Operator};
use crate::op::se::Se;
use tch::{Device, Kind, Tensor, nn, nn::ModuleT};

/// The branches of one convolution.
#[derive(Debug)]
pub struct Branches {
    /// Convolutions whose windows coincide, each with its batch norm. At least one.
    pub convs: Vec<ConvNorm>,
    /// The batch norm of the input itself, where the block has that branch.
    pub skip: Option<Skip>,
    /// What weighs the channels of the sum.
    pub gate: Option<Se>,
}

/// The identity and its batch norm.
#[derive(Debug)]
pub struct Skip {
    norm: Norm,
    geometry: Geometry,
    device: Device,
}

impl Skip {
    /// The batch norm lies on `path` itself. None where output and input differ in channels or size, the kernel being centred.
    pub fn where_it_fits(path: nn::Path, site: &Geometry) -> Option<Skip> {
        (site.in_channels == site.out_channels && site.stride == [1; 2]).then(|| Skip {
            norm: Norm::Batch(BatchNorm::new(&path, site.out_channels)),
            geometry: Geometry { kernel: [1; 2], padding: [0; 2], ..*site },
            device: path.device(),
        })
    }

    fn fold(&self) -> Kernel {
        let weight = identity(&self.geometry, (Kind::Double, self.device));
        self.norm.fold_into(Kernel { weight, bias: None, geometry: self.geometry })
    }
}

/// The 1x1 kernel that changes nothing: 1 where input and output are one channel.
pub fn identity(geometry: &Geometry, options: (Kind, Device)) -> Tensor {
    let inner = geometry.in_channels / geometry.groups;
    Tensor::eye(inner, options).repeat([geometry.groups, 1]).reshape([geometry.out_channels, inner, 1, 1])
}

/// A convolution and its batch norm on `path`/conv and `path`/bn.
pub fn conv_bn(path: &nn::Path, geometry: Geometry) -> ConvNorm {
    ConvNorm::new(&(path / "conv"), geometry, Norm::batch(path, geometry.out_channels))
}

/// Refuses what 1x1 branches beside the convolution can't be centred on.
///
/// # Errors
/// What is wrong, as `key: reason`.
pub fn centred(name: &str, geometry: &Geometry, smallest: i64) -> Result<(), String> {
    let [kh, kw] = geometry.kernel;
    if kh != kw || kh < smallest || kh % 2 == 0 {
        let least = format!("{smallest}x{smallest}");
        return Err(format!("name: {name} stands in place of odd square kernels of {least} and more, not {kh}x{kw}"));
    }
    let expected = geometry.dilation.map(|d| d * (kh / 2));
    if geometry.padding != expected {
        return Err(format!(
            "name: {name} stands where the padding is dilation * (kernel // 2), {expected:?}, not {:?}",
            geometry.padding
        ));
    }
    Ok(())
}

impl nn::ModuleT for Branches {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        self.forward_activated(x, Activation::None, train)
    }
}

impl Operator for Branches {
    fn forward_activated(&self, x: &Tensor, activation: Activation, train: bool) -> Tensor {
        let skip = self.skip.iter().map(|skip| (&skip.norm, x.shallow_clone()));
        let terms = self.convs.iter().map(|conv| conv.term(x)).chain(skip).collect();
        match &self.gate {
            None => Norm::sum(terms, activation, train),
            Some(gate) => activation.apply(gate.forward_t(&Norm::sum(terms, Activation::None, train), train)),
        }
    }

    fn fold(&self) -> Result<Compact, FoldError> {
        let mut kernels = self.convs.iter().map(ConvNorm::fold).chain(self.skip.iter().map(Skip::fold));
        let first = kernels.next().ok_or_else(|| FoldError::Shape("a sum of no branches".into()))?;
        let kernel = kernels.try_fold(first, |sum, branch| algebra::add(&sum, &branch))?;
        Ok(Compact::behind(kernel, self.gate.as_ref().map(|gate| gate.to_kind(Kind::Double))))
    }
}
