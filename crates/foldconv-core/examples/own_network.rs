//! An operator in a custom network: trained for one step, folded, saved, and loaded in its compact
//! form.

use foldconv_core::algebra::Geometry;
use foldconv_core::fold;
use foldconv_core::net::{Builder, Form, Network, Site};
use foldconv_core::op::activation::Activation;
use foldconv_core::op::dynamic::attention::GateKind;
use foldconv_core::op::dynamic::maconv::{self, mdconv};
use foldconv_core::op::{OperatorConfig, Resolved};
use tch::nn::{self, ModuleT, OptimizerConfig};
use tch::{Device, Kind, Tensor};

#[derive(Debug)]
struct Net {
    first: Site,
    second: Site,
    last: nn::Linear,
}

impl Net {
    /// Builds the network in either form; the struct is the same for both.
    fn new(path: &nn::Path, operator: &Resolved<OperatorConfig>, form: Form) -> anyhow::Result<Net> {
        let (plain, chosen) = (Builder::new(Resolved::plain(), form), Builder::new(operator, form));
        Ok(Net {
            first: plain.conv(path, "first", Geometry::same(3, 16, 3), Activation::Relu)?,
            second: chosen.conv(path, "second", Geometry::same(16, 32, 3).stride(2), Activation::Relu)?,
            last: nn::linear(path / "last", 32, 10, Default::default()),
        })
    }
}

impl ModuleT for Net {
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let y = self.second.forward_t(&self.first.forward_t(x, train), train);
        y.adaptive_avg_pool2d([1, 1]).flat_view().apply(&self.last)
    }
}

impl Network for Net {
    fn sites(&self) -> Vec<&Site> {
        vec![&self.first, &self.second]
    }
}

fn main() -> anyhow::Result<()> {
    // MDConv with 8 intermediate channels and softmax attention, on the second convolution.
    let options = maconv::Config { intermediate: 8, gate: GateKind::Softmax, ..Default::default() };
    let operator = Resolved::new(OperatorConfig::MdConv(mdconv::Config(options)))?;
    let store = nn::VarStore::new(Device::Cpu);
    let net = Net::new(&store.root(), &operator, Form::Expanded)?;

    // One training step, as with any network of tch.
    let images = Tensor::randn([8, 3, 32, 32], (Kind::Float, Device::Cpu));
    let labels = Tensor::randint(10, [8], (Kind::Int64, Device::Cpu));
    let mut sgd = nn::Sgd::default().build(&store, 0.1)?;
    sgd.backward_step(&net.forward_t(&images, true).cross_entropy_for_logits(&labels));

    // The fold makes new variables, which are assigned to the compact network.
    let mut compact_store = nn::VarStore::new(Device::Cpu);
    let compact = Net::new(&compact_store.root(), &operator, Form::Compact)?;
    fold::assign(&compact_store, &fold::fold(&net, &store)?)?;
    let (expanded, folded) = (net.forward_t(&images, false), compact.forward_t(&images, false));
    let difference = (&expanded - &folded).abs().max().double_value(&[]);
    assert!(difference < 1e-5);
    println!("largest difference of a logit after folding: {difference:.1e}");

    // The compact network is saved in tch's own format.
    let file = std::env::temp_dir().join(format!("compact-{}.safetensors", std::process::id()));
    compact_store.save(&file)?;
    compact_store.load(&file)?;
    assert_eq!(compact.forward_t(&images, false), folded);
    std::fs::remove_file(file)?;
    Ok(())
}
