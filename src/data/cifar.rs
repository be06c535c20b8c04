use super::dataset::*;
use serde::*;
macro_rules! stub {
    ($n:ident) => {
        #[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        pub struct $n {}
        impl Source for $n {
            fn spec(&self) -> Spec {
                Spec { classes: 10, channels: 3, size: 32 }
            }
            fn load(&self, _r: Option<&std::path::Path>) -> anyhow::Result<Dataset> {
                let s = |n: i64| Split {
                    images: tch::Tensor::randint(256, [n, 32, 32, 3], (tch::Kind::Uint8, tch::Device::Cpu)),
                    labels: tch::Tensor::randint(10, [n], (tch::Kind::Int64, tch::Device::Cpu)),
                };
                Ok(Dataset { train: s(2048), test: s(500), classes: (0..10).map(|i| i.to_string()).collect() })
            }
        }
    };
}
stub!(Cifar10Config);
stub!(Cifar100Config);
