//! The networks: names, shapes and logits equal torchvision's, parameters and multiply-accumulates
//! equal the published ones, and folded networks are the same function.
//!
//! `fixtures/names` was made with torch 2.11 and torchvision 0.26, for every NAME that has a file
//! there:
//!
//! ```python
//! net = getattr(torchvision.models, NAME)().double().eval()
//! state = {k: v for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
//! with open(NAME + ".txt", "w") as file:
//!     file.writelines(f"{k} {'x'.join(map(str, v.shape))}\n" for k, v in state.items())
//! for at, (name, v) in enumerate(sorted(state.items())):
//!     wave = (torch.arange(v.numel(), dtype=torch.float64) * 0.37 + at).sin().view(v.shape)
//!     if v.dim() > 1: v.copy_(wave * (2 / v[0].numel()) ** 0.5)
//!     elif name.endswith("running_var") or name.endswith("weight"): v.copy_(1 + 0.3 * wave)
//!     else: v.copy_(0.1 * wave)
//! image = (torch.arange(2 * 3 * 64 * 64, dtype=torch.float64) * 0.11).sin().view(2, 3, 64, 64)
//! print(NAME, *map(repr, net(image)[1, :4].tolist()))  # a line of logits.txt
//! ```
//!
//! `resnet20.txt` has the names of akamaster's checkpoint resnet20-12fca82f.th without the prefix
//! `module.`. The logits of resnet20 are those of a module with these names, which loads that
//! checkpoint, for an image of 32x32 made in the same way. The logits of the RepVGGs, MobileOnes
//! and the ResNeSt are timm 1.0's, with its names replaced by the references' names before sorting.
//! The logits of the VGG are those of torchvision's `features` without the biases of the
//! convolutions, the mean over the map, and `classifier = Linear(512, 10)`. The logits of the
//! TiedResNet are those of a module written from the description in
//! `crates/foldconv-core/src/net/tied_resnet.rs`. `resnet50_strides` has the strides of `conv1` and
//! `conv2` of each bottleneck exchanged, `resnet50_ceil` has `maxpool = MaxPool2d(3, 2,
//! ceil_mode=True)`, `mobilenet_v2_relu` has `ReLU` for each `ReLU6`, and `resnet20_a_end` pads the
//! channels of its shortcuts only at the end.

use crate::common;
use crate::common::network::{fold_error, network, network_on, operator, parameters, relative, weights};
use foldconv::config::Config;
use foldconv::net::InputSpec;
use foldconv::net::NetConfig;
use foldconv::net::{Builder, Form, Network};
use foldconv::op::{AttentionConfig, Resolved};
use foldconv::trace;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, nn};

/// Networks of torchvision: torchvision's name, and the network here.
const TORCHVISION: [(&str, &str); 10] = [
    ("mobilenet_v2", "{name: mobilenet_v2}"),
    ("resnet18", "{name: resnet18}"),
    ("resnet34", "{name: resnet34}"),
    ("resnet50", "{name: resnet50}"),
    ("resnet101", "{name: resnet101}"),
    ("resnext50_32x4d", "{name: resnext50_32x4d}"),
    ("shufflenet_v2_x0_5", "{name: shufflenet_v2, width: 0.5}"),
    ("shufflenet_v2_x1_0", "{name: shufflenet_v2}"),
    ("shufflenet_v2_x1_5", "{name: shufflenet_v2, width: 1.5}"),
    ("shufflenet_v2_x2_0", "{name: shufflenet_v2, width: 2}"),
];

/// The other networks of `logits.txt`: name there, network here, operator, number of classes, and
/// image size.
const OTHERS: [(&str, &str, &str, i64, i64); 13] = [
    ("resnet20_a", "{name: resnet20}", PLAIN, 10, 32),
    ("resnet20_a_end", "{name: resnet20, shortcut: a_end}", PLAIN, 10, 32),
    ("resnet20_b", "{name: resnet20, shortcut: b}", PLAIN, 10, 32),
    ("resnet50_strides", "{name: resnet50, stride_at: pointwise}", PLAIN, 1000, 64),
    ("resnet50_ceil", "{name: resnet50, pooling: ceil}", PLAIN, 1000, 64),
    ("mobilenet_v2_relu", "{name: mobilenet_v2, activation: relu}", PLAIN, 1000, 64),
    ("repvgg_a0", "{name: repvgg_a0}", "{name: repvgg}", 1000, 64),
    ("repvgg_b1g4", "{name: repvgg_b1g4}", "{name: repvgg}", 1000, 64),
    ("mobileone_s0", "{name: mobileone_s0}", "{name: mobileone}", 1000, 64),
    ("mobileone_s4", "{name: mobileone_s4}", "{name: mobileone, branches: 1}", 1000, 64),
    ("resnest50", "{name: resnest50}", PLAIN, 1000, 64),
    ("tied_resnet50_s", "{name: tied_resnet50_s}", PLAIN, 1000, 64),
    ("vgg16_bn_cifar", "{name: vgg16_bn_cifar}", PLAIN, 10, 32),
];

const PLAIN: &str = "{name: plain}";

fn fixture(name: &str) -> String {
    std::fs::read_to_string(format!("{}/tests/fixtures/names/{name}.txt", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn plain(net: &str, classes: i64) -> (nn::VarStore, Box<dyn Network>) {
    network(net, &operator(PLAIN), Form::Expanded, classes)
}

/// Returns the shape of each variable by name.
fn shapes(store: &nn::VarStore) -> BTreeMap<String, String> {
    let shape = |v: &Tensor| v.size().iter().map(i64::to_string).collect::<Vec<_>>().join("x");
    store.variables().iter().map(|(name, v)| (name.clone(), shape(v))).collect()
}

/// Sets the variables to the values of the script at the top of this file, in the order of their
/// names.
fn fill(store: &mut nn::VarStore) {
    store.double();
    let variables: BTreeMap<String, Tensor> = store.variables().into_iter().collect();
    tch::no_grad(|| {
        for (at, (name, mut v)) in variables.into_iter().enumerate() {
            let wave = (Tensor::arange(v.numel() as i64, (Kind::Double, Device::Cpu)) * 0.37 + at as f64).sin();
            let wave = wave.view_as(&v);
            let values = match v.dim() {
                1 if name.ends_with("running_var") || name.ends_with("weight") => 1. + 0.3 * wave,
                1 => 0.1 * wave,
                _ => wave * (2. / v.size()[1..].iter().product::<i64>() as f64).sqrt(),
            };
            v.copy_(&values);
        }
    });
}

/// Returns the largest difference between a network's logits on the image of the fixture and the
/// expected logits, relative to the largest expected logit.
fn logit_error(net: &str, options: &str, classes: i64, size: i64, expected: &[f64]) -> f64 {
    let (mut store, network) = network(net, &operator(options), Form::Expanded, classes);
    fill(&mut store);
    let image = (Tensor::arange(2 * 3 * size * size, (Kind::Double, Device::Cpu)) * 0.11).sin();
    let logits = tch::no_grad(|| network.forward_t(&image.view([2, 3, size, size]), false));
    let logits = Vec::<f64>::try_from(logits.get(1).narrow(0, 0, expected.len() as i64)).unwrap();
    let largest = expected.iter().fold(0f64, |largest, x| largest.max(x.abs()));
    logits.iter().zip(expected).fold(0f64, |error, (a, b)| error.max((a - b).abs())) / largest
}

#[test]
fn names_and_shapes_are_torchvisions() {
    let others = [("resnet20", "{name: resnet20}", 10)];
    for (name, net, classes) in TORCHVISION.map(|(name, net)| (name, net, 1000)).into_iter().chain(others) {
        let expected: BTreeMap<String, String> = fixture(name)
            .lines()
            .map(|line| line.split_once(' ').unwrap())
            .map(|(k, v)| (k.into(), v.into()))
            .collect();
        assert_eq!(shapes(&plain(net, classes).0), expected, "{net}");
    }
}

#[test]
fn vgg_for_cifar_has_torchvisions_names_but_no_biases_before_batch_norms() {
    let fixture = fixture("vgg16_bn");
    let lines: Vec<(&str, &str)> = fixture.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let is_conv = |name: &str| lines.iter().any(|(k, v)| *k == format!("{name}.weight") && v.ends_with("x3x3"));
    let has_bias = |k: &str| k.strip_suffix(".bias").is_some_and(is_conv);
    let expected = lines.iter().filter(|(k, _)| k.starts_with("features.") && !has_bias(k));
    let expected: BTreeMap<String, String> = expected.map(|(k, v)| (k.to_string(), v.to_string())).collect();
    let mut ours = shapes(&plain("{name: vgg16_bn_cifar}", 10).0);
    assert_eq!(
        [ours.remove("classifier.weight"), ours.remove("classifier.bias")],
        [Some("10x512".into()), Some("10".into())]
    );
    assert_eq!(ours, expected);
}

/// Logits depend on strides, paddings, pools, activations and their order, all of which must be
/// PyTorch's. In float64 only the rounding of some hundred sums per layer over at most 101 layers
/// is left: 1e-10 is ample, and no other network would come that close.
#[test]
fn logits_are_pytorchs() {
    let all = fixture("logits");
    let torchvision = TORCHVISION.map(|(name, net)| (name, net, PLAIN, 1000, 64));
    for (name, net, options, classes, size) in torchvision.into_iter().chain(OTHERS) {
        let line = all.lines().find_map(|line| line.strip_prefix(&format!("{name} "))).unwrap();
        let expected: Vec<f64> = line.split(' ').map(|x| x.parse().unwrap()).collect();
        let error = logit_error(net, options, classes, size, &expected);
        assert!(error < 1e-10, "{net}: {error:e}");
    }
}

#[test]
fn parameter_counts_are_the_published_ones() {
    let rows = [
        ("{name: resnet18}", 1000, 11_689_512),
        ("{name: resnet34}", 1000, 21_797_672),
        ("{name: resnet50}", 1000, 25_557_032),
        ("{name: resnet101}", 1000, 44_549_160),
        ("{name: resnext50_32x4d}", 1000, 25_028_904),
        ("{name: resnest50}", 1000, 27_483_240),
        ("{name: vgg16_bn_cifar}", 10, 14_724_042),
        ("{name: resnet20}", 10, 269_722),
        ("{name: resnet20, shortcut: b}", 10, 272_474),
        ("{name: resnet32}", 10, 464_154),
        ("{name: resnet44}", 10, 658_586),
        ("{name: resnet56}", 10, 853_018),
        ("{name: shufflenet_v2, width: 0.5}", 1000, 1_366_792),
        ("{name: shufflenet_v2}", 1000, 2_278_604),
        ("{name: shufflenet_v2, width: 1.5}", 1000, 3_503_624),
        ("{name: shufflenet_v2, width: 2}", 1000, 7_393_996),
    ];
    for (net, classes, expected) in rows {
        assert_eq!(parameters(&plain(net, classes).0), expected, "{net}");
    }
}

/// Folded networks have the published sizes, in millions as their papers print them, and operators
/// of other papers don't change the sizes.
#[test]
fn deployed_networks_have_the_published_sizes() {
    let repvgg = [("a0", 8.30), ("a1", 12.78), ("a2", 25.49), ("b0", 14.33), ("b1", 51.82), ("b1g2", 41.36)];
    let more = [("b1g4", 36.12), ("b2", 80.31), ("b2g2", 63.98), ("b2g4", 55.77), ("b3", 110.96), ("b3g4", 75.62)];
    for (name, millions) in repvgg.into_iter().chain(more) {
        let net = format!("{{name: repvgg_{name}}}");
        let folded = parameters(&network(&net, &operator("{name: repvgg}"), Form::Compact, 1000).0);
        assert!((folded as f64 / 1e6 - millions).abs() <= 0.025, "{net}: {folded}");
    }
    for (name, millions) in [("s0", 2.1), ("s1", 4.8), ("s2", 7.8), ("s3", 10.1), ("s4", 14.8)] {
        let net = format!("{{name: mobileone_{name}}}");
        let folded = parameters(&network(&net, &operator("{name: mobileone}"), Form::Compact, 1000).0);
        assert!((folded as f64 / 1e6 - millions).abs() <= 0.051, "{net}: {folded}");
        let (maconv, _) = network(&net, &operator("{name: maconv}"), Form::Compact, 1000);
        assert_eq!(parameters(&maconv), folded, "{net}");
    }
}

/// On the sites of the paper, `maconv` and `mdconv` add the published numbers of kernel and
/// attention weights.
#[test]
fn extra_weights_are_those_of_the_paper() {
    let rows = [
        ("{name: resnet18}", None, 987_968),
        ("{name: shufflenet_v2, width: 0.5}", Some(75_840), 117_144),
        ("{name: shufflenet_v2}", Some(181_920), 388_684),
    ];
    for (net, maconv, mdconv) in rows {
        let base = weights(&plain(net, 1000).0);
        let extra = |name: &str, form| weights(&network(net, &operator(name), form, 1000).0) - base;
        assert_eq!(extra("{name: mdconv}", Form::Expanded), mdconv, "{net}");
        assert_eq!(extra("{name: maconv}", Form::Compact), 0, "{net}");
        if let Some(maconv) = maconv {
            assert_eq!(extra("{name: maconv}", Form::Expanded), maconv, "{net}");
        }
    }
}

/// Returns the multiply-accumulates of one image of 224x224, in compact form.
fn macs(net: &str) -> i64 {
    let (_store, network) = network(net, &operator(PLAIN), Form::Compact, 1000);
    let image = Tensor::zeros([1, 3, 224, 224], (Kind::Float, Device::Cpu));
    trace::record(|| tch::no_grad(|| network.forward_t(&image, false))).1.macs
}

/// Multiply-accumulates of one image equal the published ones, in millions. Published figures are
/// rounded, and those of ShuffleNetV2 and ResNeSt count more than convolutions and products.
#[test]
fn multiply_accumulates_are_the_published_ones() {
    let rows = [
        ("{name: mobilenet_v2}", 300.8, 0.1),
        ("{name: resnet18}", 1814., 1.),
        ("{name: resnet34}", 3664., 1.),
        ("{name: resnet50}", 4089., 1.),
        ("{name: resnet101}", 7801., 1.),
        ("{name: resnext50_32x4d}", 4230., 1.),
        ("{name: resnest50}", 5390., 20.),
        ("{name: repvgg_a0}", 1364., 10.),
        ("{name: repvgg_b0}", 3058., 10.),
        ("{name: mobileone_s0}", 275., 1.),
        ("{name: mobileone_s1}", 825., 1.),
        ("{name: mobileone_s4}", 2978., 1.5),
        ("{name: shufflenet_v2, width: 0.5}", 41., 1.),
        ("{name: shufflenet_v2}", 146., 1.2),
    ];
    for (net, millions, rounding) in rows {
        let macs = macs(net) as f64 / 1e6;
        assert!((macs - millions).abs() <= rounding, "{net}: {macs}");
    }
}

/// TiedResNet50-S has 54 % of the parameters and 60 % of the multiply-accumulates of ResNet-50.
#[test]
fn tied_networks_are_as_small_as_published() {
    let cost = |net: &str| (parameters(&plain(net, 1000).0) as f64, macs(net) as f64);
    let (parameters, macs) = cost("{name: resnet50}");
    let (tied_parameters, tied_macs) = cost("{name: tied_resnet50_s}");
    assert!((tied_parameters / parameters - 0.54).abs() < 0.01);
    assert!((tied_macs / macs - 0.60).abs() < 0.01);
    // In the tied ResNeSt, the 3x3 kernels of the blocks have (1/2)^2 of their weights.
    let [resnest, tied] =
        ["{name: resnest50}", "{name: tied_resnest50}"].map(|net| self::parameters(&plain(net, 1000).0));
    let spatial: i64 =
        [(64, 3), (128, 4), (256, 6), (512, 3)].map(|(c, blocks)| blocks * 2 * c * c * 9 / 2).iter().sum();
    assert_eq!(resnest - tied, spatial * 3 / 4);
}

/// The last digits of odd numbers.
const ODD: [char; 5] = ['1', '3', '5', '7', '9'];

fn attention(yaml: &str) -> Resolved<AttentionConfig> {
    serde_yaml::from_str(yaml).unwrap()
}

/// Builds an expanded network for 32x32 images with the settings of `builder`.
fn built(net: &str, builder: &Builder, classes: i64) -> (nn::VarStore, Box<dyn Network>) {
    let store = nn::VarStore::new(Device::Cpu);
    let config: NetConfig = serde_yaml::from_str(net).unwrap();
    let network = config.recipe().build(&store.root(), builder, InputSpec { classes, channels: 3, size: 32 }).unwrap();
    (store, network)
}

fn attended(net: &str, attention: &Resolved<AttentionConfig>, classes: i64) -> (nn::VarStore, Box<dyn Network>) {
    let plain = operator(PLAIN);
    built(net, &Builder { attention: Some(attention), ..Builder::new(&plain, Form::Expanded) }, classes)
}

/// Networks of the authors of DCD, with all options at their defaults, have the parameters of the
/// authors' code. Their last layer is dynamic too.
#[test]
fn dcd_networks_have_the_parameters_of_the_authors_code() {
    let count = |keys: &str| {
        let text = format!("{{data: {{name: external}}, operator: {{name: dcd}}, {keys}}}");
        let config = Config::new(&serde_yaml::from_str(&text).unwrap(), "dcd").unwrap();
        config.build(Form::Expanded, Device::Cpu).unwrap().parameters()
    };
    assert_eq!(count("net: {name: resnet18}, classifier: {name: dcd}"), 14_703_332);
    assert_eq!(count("net: {name: resnet50}, classifier: {name: dcd}"), 29_835_056);
    assert_eq!(count("net: {name: mobilenet_v2}, classifier: {name: dcd}"), 5_720_028);
    assert_eq!(count("net: {name: mobilenet_v2}"), 4_259_188 + 1280 * 1000 + 1000, "a linear last layer");
}

/// The last word of `apply_to` that matches a site decides. Words that only leave sites out keep
/// the network's own choice for the rest.
#[test]
fn words_of_apply_to_choose_and_leave_out() {
    let chosen = |words: &[&str]| {
        let words: Vec<String> = words.iter().map(|word| word.to_string()).collect();
        let operator = operator("{name: maconv}");
        let builder = Builder { apply_to: &words, ..Builder::new(&operator, Form::Expanded) };
        let (_store, network) = built("{name: smallnet}", &builder, 10);
        let sites = network.sites();
        let named = sites.iter().filter(|site| site.operator.name() == "maconv").map(|site| site.name.as_str());
        named.map(|name| name.trim_end_matches(".conv")).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(chosen(&[]), "blocks.0.pointwise blocks.1.pointwise blocks.2.pointwise");
    assert_eq!(chosen(&["-blocks.1.pointwise.conv"]), "blocks.0.pointwise blocks.2.pointwise");
    assert_eq!(chosen(&["stem", "-blocks.1.pointwise.conv"]), "stem");
    assert_eq!(chosen(&["all", "-pointwise", "blocks.1.pointwise.conv", "-depthwise"]), "stem blocks.1.pointwise");
    assert_eq!(chosen(&["-stem", "pointwise", "-all"]), "");
}

/// SE-ResNet-50 as published has biases in its linear layers, which is timm's layout. The default
/// is the layout of the first reference, without biases.
#[test]
fn se_resnets_are_the_published_ones() {
    let count = |yaml: &str| parameters(&attended("{name: resnet50}", &attention(yaml), 1000).0);
    assert_eq!(count("{name: se, layout: timm}"), 28_088_024);
    assert_eq!(count("{name: se}"), 28_071_976);
}

/// An attention whose weights are 0 halves each main branch, just as halving the last batch norm of
/// the branch does: the attention stands there, before the shortcut is added. Halving is exact in
/// floating point.
#[test]
fn an_attention_stands_behind_each_main_branch() {
    type Last = fn(&str) -> bool;
    let nets: [(&str, Last, usize); 10] = [
        ("{name: mobilenet_v2, width: 0.35}", |bn| bn.ends_with("features.1.conv.2") || bn.ends_with(".conv.3"), 17),
        ("{name: shufflenet_v2, width: 0.5}", |bn| bn.ends_with(".branch2.6"), 16),
        ("{name: resnet18, width: 0.25}", |bn| bn.ends_with(".bn2"), 8),
        ("{name: resnet50, width: 0.25}", |bn| bn.ends_with(".bn3"), 16),
        ("{name: resnet20}", |bn| bn.ends_with(".bn2"), 9),
        ("{name: resnest50, width: 0.25}", |bn| bn.ends_with(".bn3"), 16),
        ("{name: tied_resnet50_s}", |bn| bn.ends_with(".bn3"), 16),
        ("{name: repvgg_a0}", |bn| bn.ends_with(".bn"), 22),
        (
            "{name: mobileone_s0}",
            |bn| bn == "stage0.bn" || bn.ends_with(".bn") && bn[..bn.len() - 3].ends_with(ODD),
            22,
        ),
        (
            "{name: vgg16_bn_cifar, width: 0.25}",
            |bn| [4, 11, 21, 31, 41].iter().any(|at| bn == format!("features.{at}")),
            5,
        ),
    ];
    let se = attention("{name: se, layout: timm}");
    let image = Tensor::randn([2, 3, 32, 32], (Kind::Double, Device::Cpu));
    for (net, last, blocks) in nets {
        let ((mut store, network), (mut other, halved)) = (attended(net, &se, 10), plain(net, 10));
        fill(&mut other);
        store.double();
        let sources = other.variables();
        let mut halves = 0;
        tch::no_grad(|| {
            for (name, mut v) in store.variables() {
                match sources.get(&name) {
                    Some(source) => v.copy_(source),
                    None => drop(v.zero_()),
                }
            }
            for (name, mut v) in other.variables() {
                let (norm, part) = name.rsplit_once('.').unwrap();
                if v.dim() == 1 && last(norm) && ["weight", "bias"].contains(&part) {
                    let _ = v.g_mul_scalar_(0.5);
                    halves += 1;
                }
            }
            assert_eq!(halves, 2 * blocks, "{net}");
            let error = relative(&network.forward_t(&image, false), &halved.forward_t(&image, false));
            assert!(error < 1e-12, "{net}: {error:e}");
        });
    }
}

/// Deep networks fold exactly. In float64, 1e-11 leaves a hundred times the rounding of their sums,
/// and is far below the error of any wrong fold.
#[test]
fn folded_networks_are_the_same_function() {
    let nets = [
        "{name: resnet18, width: 0.25}",
        "{name: resnext50_32x4d, width: 0.25, stem: cifar}",
        "{name: resnet20}",
        "{name: resnet20, shortcut: b}",
        "{name: vgg16_bn_cifar, width: 0.25}",
        "{name: repvgg_a0}",
        "{name: mobileone_s0}",
        "{name: mobileone_s4}",
        "{name: shufflenet_v2, width: 0.5}",
    ];
    for net in nets {
        for options in ["{name: plain}", "{name: maconv}", "{name: mdconv}"] {
            let error = fold_error(&[], net, options, 64);
            assert!(error < 1e-11, "{net} {options}: {error:e}");
        }
    }
}

/// The tensor that a block's operators share reaches all sites of the block, in both forms.
#[test]
fn operators_that_share_fold_in_every_family() {
    let nets = [
        "{name: resnet18, width: 0.25}",
        "{name: resnet20}",
        "{name: shufflenet_v2, width: 0.5}",
        "{name: repvgg_a0}",
        "{name: mobileone_s0}",
        "{name: vgg16_bn_cifar, width: 0.125}",
        "{name: resnest50, width: 0.25}",
    ];
    for net in nets {
        let error = fold_error(&[], net, "{name: condconv, experts: 2, shared: true}", 32);
        assert!(error < 1e-11, "{net}: {error:e}");
    }
    let error = fold_error(&[], "{name: shufflenet_v2, width: 0.5}", "{name: drconv, regions: 2, shared: true}", 64);
    assert!(error < 1e-11, "{error:e}");
}

/// Operators that a network brings along stay unless `apply_to` names their sites.
#[test]
fn a_networks_own_operators_are_replaced_where_apply_to_says() {
    let operators = |apply_to: &[&str]| -> BTreeMap<String, &'static str> {
        let apply_to: Vec<String> = apply_to.iter().map(|name| name.to_string()).collect();
        let maconv = operator("{name: maconv}");
        let (_store, network) = network_on(&apply_to, "{name: tied_resnet50_s}", &maconv, Form::Expanded, 10);
        network.sites().iter().map(|site| (site.name.clone(), site.operator.name())).collect()
    };
    let of = |operators: &BTreeMap<String, &'static str>, name: &str| operators[name];
    let own = operators(&[]);
    let names = ["conv1", "layer1.0.conv1", "layer1.0.conv2.0", "layer1.0.mixer.conv", "layer1.0.conv3"];
    assert_eq!(names.map(|name| of(&own, name)), ["plain", "tbc", "tbc", "tbc", "plain"]);
    let replaced = operators(&["spatial", "layer1.0.conv3"]);
    assert_eq!(names.map(|name| of(&replaced, name)), ["plain", "tbc", "maconv", "tbc", "maconv"]);
    for apply_to in [&[][..], &["spatial".to_string()]] {
        for net in
            ["{name: tied_resnet50_s}", "{name: tied_resnext50_s, mixer: none}", "{name: tied_resnest50, width: 0.25}"]
        {
            let error = fold_error(apply_to, net, "{name: maconv, intermediate: 4}", 32);
            assert!(error < 1e-11, "{net} {apply_to:?}: {error:e}");
        }
    }
}

/// `describe` counts each site as the operator that stands there, whether the config or the network
/// chose the operator.
#[test]
fn described_sites_and_the_classifier_are_the_whole_network() {
    for (net, classifier) in
        [("tied_resnet50_s", 2048 * 10), ("mobileone_s0", 1024 * 10), ("resnet20", 64 * 10), ("repvgg_a0", 1280 * 10)]
    {
        let yaml = format!("data: {{name: shapes}}\nnet: {{name: {net}}}\n");
        let (_guard, root) = common::folder(&[("a.yaml", yaml.as_bytes())]);
        let operator = if net == "mobileone_s0" { "operator={name: mobileone}" } else { "operator={name: plain}" };
        let output = common::run(["describe", &common::arg(&root.join("a.yaml")), "--set", operator, "--json"]);
        let document: serde_json::Value = serde_json::from_str(&common::stdout(&output)).unwrap();
        for form in ["expanded", "compact"] {
            let count = |value: &serde_json::Value, what: &str| value[form][what].as_i64().unwrap();
            let of_sites =
                |what| document["sites"].as_array().unwrap().iter().map(|site| count(site, what)).sum::<i64>();
            assert_eq!(count(&document, "parameters"), of_sites("parameters") + classifier + 10, "{net} {form}");
            assert_eq!(count(&document, "macs"), of_sites("macs") + classifier, "{net} {form}");
        }
    }
}

/// A batch of one image whose last maps have one pixel, and hence no variance, leaves no NaN in the
/// running variance.
#[test]
fn a_batch_of_one_small_image_trains() {
    for net in ["{name: resnet18, width: 0.25}", "{name: resnest50, width: 0.25}"] {
        let (store, network) = plain(net, 10);
        let logits = network.forward_t(&Tensor::randn([1, 3, 32, 32], (Kind::Float, Device::Cpu)), true);
        logits.square().sum(Kind::Float).backward();
        for (name, v) in store.variables() {
            assert!(bool::try_from(v.isfinite().all()).unwrap(), "{net} {name}");
        }
        let finite = |v: Tensor| bool::try_from(v.grad().isfinite().all()).unwrap();
        assert!(store.trainable_variables().into_iter().all(finite), "{net}");
    }
}

/// By default, an operator replaces the 3x3 convolutions in the blocks of ResNets, as in the paper.
#[test]
fn an_operator_stands_where_the_paper_puts_it() {
    let sites = |net: &str| {
        let (_store, network) = network(net, &operator("{name: maconv}"), Form::Expanded, 10);
        let sites = network.sites();
        let replaced = sites.iter().filter(|site| site.operator.name() == "maconv").map(|site| site.name.clone());
        (sites.len(), replaced.collect::<Vec<_>>())
    };
    let (all, replaced) = sites("{name: resnet18, width: 0.25}");
    assert_eq!((all, replaced.len()), (20, 16));
    assert_eq!((&*replaced[0], &*replaced[15]), ("layer1.0.conv1", "layer4.1.conv2"));
    let (all, replaced) = sites("{name: resnet50, width: 0.25}");
    assert_eq!((all, replaced.len()), (53, 16));
    assert!(replaced.iter().all(|name| name.ends_with("conv2")));
}
