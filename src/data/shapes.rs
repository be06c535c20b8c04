pub use super::cifar::Cifar10Config as Config;
