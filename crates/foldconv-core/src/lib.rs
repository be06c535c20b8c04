//! Convolutions that are trained over-parameterised or dynamic, and folded, exactly, into compact kernels: operators and networks for tch.
//!
//! The floors, from the ground up; a module uses only floors below its own:
//!
//! 1. [`error`], [`files`], [`options`], [`mod@registry`], [`mod@pickle`], [`native`], [`timing`], [`finite`], [`algebra`] (pure functions on kernels)
//! 2. [`op`] (operators: expanded form and fold)
//! 3. [`net`] (networks: sites on which operators stand)
//! 4. [`fold`] (a network to its compact form), [`tune`] (how it is computed), [`weights`] (tensors in files, and PyTorch's checkpoints)
//!
//! # In a network of your own
//!
//! An operator is a [`tch::nn::ModuleT`]. Here MDConv stands on the second convolution of a network that tch alone could have
//! built; it is trained for a step, folded, saved, and loaded in its compact form.
//!
//! ```
//! use foldconv_core::algebra::Geometry;
//! use foldconv_core::net::block::{Builder, Form, Network, Site};
//! use foldconv_core::op::{OperatorConfig, Resolved};
//! use foldconv_core::op::layers::Activation;
//! use foldconv_core::{config, fold};
//! use tch::nn::{self, ModuleT, OptimizerConfig};
//! use tch::{Device, Kind, Tensor};
//!
//! #[derive(Debug)]
//! struct Net {
//!     first: Site,
//!     second: Site,
//!     last: nn::Linear,
//! }
//!
//! impl Net {
//!     /// The same struct is the network in both forms.
//!     fn new(path: &nn::Path, operator: &Resolved<OperatorConfig>, form: Form) -> anyhow::Result<Net> {
//!         let builder = Builder::new(operator, form);
//!         let plain = Resolved::PLAIN;
//!         Ok(Net {
//!             first: Builder::new(&plain, form).conv(path, "first", Geometry::same(3, 16, 3), Activation::Relu)?,
//!             second: builder.conv(path, "second", Geometry::same(16, 32, 3).stride(2), Activation::Relu)?,
//!             last: nn::linear(path / "last", 32, 10, Default::default()),
//!         })
//!     }
//! }
//!
//! impl ModuleT for Net {
//!     fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
//!         let y = self.second.forward_t(&self.first.forward_t(x, train), train);
//!         y.adaptive_avg_pool2d([1, 1]).flat_view().apply(&self.last)
//!     }
//! }
//!
//! impl Network for Net {
//!     fn sites(&self) -> Vec<&Site> {
//!         vec![&self.first, &self.second]
//!     }
//! }
//!
//! # fn main() -> anyhow::Result<()> {
//! let operator = config::operator("{name: mdconv, intermediate: 8, gate: softmax}")?;
//! let store = nn::VarStore::new(Device::Cpu);
//! let net = Net::new(&store.root(), &operator, Form::Expanded)?;
//!
//! // A step of training, as of any network of tch.
//! let images = Tensor::randn([8, 3, 32, 32], (Kind::Float, Device::Cpu));
//! let labels = Tensor::randint(10, [8], (Kind::Int64, Device::Cpu));
//! let mut sgd = nn::Sgd::default().build(&store, 0.1)?;
//! sgd.backward_step(&net.forward_t(&images, true).cross_entropy_for_logits(&labels));
//!
//! // The fold makes new variables; the compact network takes them up.
//! let mut compact_store = nn::VarStore::new(Device::Cpu);
//! let compact = Net::new(&compact_store.root(), &operator, Form::Compact)?;
//! fold::assign(&compact_store, &fold::fold(&net, &store)?)?;
//! let (expanded, folded) = (net.forward_t(&images, false), compact.forward_t(&images, false));
//! assert!((&expanded - &folded).abs().max().double_value(&[]) < 1e-5);
//!
//! // Its file is tch's own.
//! # let folder = tempfile::tempdir()?;
//! let file = folder.path().join("compact.safetensors");
//! compact_store.save(&file)?;
//! let _ = tch::no_grad(|| compact_store.trainable_variables().iter_mut().for_each(|v| drop(v.zero_())));
//! compact_store.load(&file)?;
//! assert_eq!(compact.forward_t(&images, false), folded);
//! # Ok(())
//! # }
//! ```

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::print_stdout, clippy::print_stderr))]

pub mod algebra;
pub mod error;
pub mod files;
pub mod finite;
pub mod options;
pub mod pickle;
pub mod registry;
pub mod timing;

pub mod op;

pub mod net;

pub mod fold;
pub mod tune;
pub mod weights;

pub use foldconv_native as native;
