//! Distillation: the loss that compares a network in training with a trained one, the teacher.

use crate::bad_request;
use crate::config::{Config, DistillConfig, DistillKind, network as file};
use crate::data::augment::normalise::Normalisation;
use crate::exchange::Format;
use crate::net::{Built, InputSpec, Network};
use crate::train::checkpoint::load_model;
use crate::train::init;
use crate::weights::tensors;
use anyhow::Result;
use std::path::Path;
use tch::{Device, Kind, Tensor};

/// A trained network whose logits and maps a network in training learns.
#[derive(Debug)]
pub struct Teacher {
    options: DistillConfig,
    network: Built,
    /// Factor and summand of each channel, (C, 1, 1), from the images of the trial to those of the
    /// teacher, if their normalisations differ.
    images: Option<[Tensor; 2]>,
}

impl Teacher {
    /// Loads the teacher that a config asks for. `student` is the network in training, of whose
    /// sites those that are compared are watched.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] if the file can't be read, or does not fit the images, the
    /// classes or the sites.
    pub fn load(config: &Config, student: &Built, normalisation: &Normalisation) -> Result<Option<Teacher>> {
        let Some(options) = &config.train.distill else { return Ok(None) };
        let (path, spec, device) = (&options.teacher, config.data.spec(), student.store.device());
        file::expect("train.distill", path, options.sha256.as_ref())?;
        let (mut network, own) = read(config, path, spec, device)?;
        network.store.freeze();
        let images = own.filter(|own| own != normalisation).map(|own| renormalise(normalisation, &own, device));
        let teacher = Teacher { options: options.clone(), network, images };
        teacher.watch(student, spec)?;
        Ok(Some(teacher))
    }

    /// Watches the sites to compare, and checks that their maps have the same shapes.
    fn watch(&self, student: &Built, spec: InputSpec) -> Result<()> {
        for name in &self.options.features {
            for (of, network) in [("the network", student), ("the teacher", &self.network)] {
                let Some(site) = network.network.sites().into_iter().find(|site| site.name == *name) else {
                    bad_request!("train.distill.features: {of} has no site `{name}` (`foldconv describe` lists them)");
                };
                site.watch();
            }
        }
        let image = Tensor::zeros([1, spec.channels, spec.size, spec.size], (Kind::Float, student.store.device()));
        for built in [student, &self.network] {
            let _ = tch::no_grad(|| built.network.forward_t(&image, false));
        }
        let maps = self.options.features.iter().zip(self.maps(&*student.network));
        for (name, [own, teacher]) in maps {
            if own.size() != teacher.size() {
                bad_request!(
                    "train.distill.features: {name} has {:?} in the network and {:?} in the teacher",
                    own.size(),
                    teacher.size()
                );
            }
        }
        Ok(())
    }

    /// Returns the last maps of each compared site, of the student and of the teacher.
    fn maps(&self, student: &dyn Network) -> Vec<[Tensor; 2]> {
        let of = |network: &dyn Network, name: &String| {
            network.sites().into_iter().find(|site| site.name == *name).and_then(|site| site.watched())
        };
        let pair = |name| Some([of(student, name)?, of(&*self.network.network, name)?]);
        self.options.features.iter().filter_map(pair).collect()
    }

    /// Returns the loss of a batch: that of the labels and that of the teacher. `logits` (N,
    /// classes) are those of the student, whose forward pass of `images` has just run.
    pub fn loss(&self, labels: Tensor, logits: &Tensor, images: &Tensor, student: &dyn Network) -> Tensor {
        let DistillConfig { alpha, temperature, kind, feature_weight, .. } = self.options;
        let theirs = tch::no_grad(|| {
            let images = match &self.images {
                Some([scale, shift]) => images * scale + shift,
                None => images.shallow_clone(),
            };
            self.network.network.forward_t(&images, false)
        });
        let loss = logits_loss(&logits.to_kind(Kind::Float), &theirs, kind, temperature);
        let total = labels * (1. - alpha) + loss * alpha;
        let maps = self.maps(student).into_iter();
        maps.fold(total, |total, [own, teacher]| {
            let difference = own.to_kind(Kind::Float) - teacher;
            total + difference.square().mean(Kind::Float) * feature_weight
        })
    }
}

/// Returns the loss of a student's logits (N, classes) for a teacher's: the cross-entropy of the
/// teacher's class, or T² KL(softmax(teacher / T) || softmax(student / T)); the mean over the
/// samples.
pub fn logits_loss(student: &Tensor, teacher: &Tensor, kind: DistillKind, temperature: f64) -> Tensor {
    if kind == DistillKind::Hard {
        let classes = teacher.argmax(1, false);
        return student.cross_entropy_loss(&classes, None::<Tensor>, tch::Reduction::Mean, -100, 0.);
    }
    let log = |logits: &Tensor| (logits / temperature).log_softmax(1, logits.kind());
    let (student, teacher) = (log(student), log(teacher));
    let divergence = (teacher.exp() * (&teacher - &student)).sum(student.kind());
    divergence * (temperature * temperature / teacher.size()[0] as f64)
}

/// Returns the factor and the summand that make images of one normalisation those of another.
fn renormalise(from: &Normalisation, to: &Normalisation, device: Device) -> [Tensor; 2] {
    let column = |values: &[f32]| Tensor::from_slice(values).to_device(device).reshape([-1, 1, 1]);
    let [(scale, shift), (new_scale, new_shift)] =
        [from, to].map(Normalisation::scale_and_shift).map(|(scale, shift)| (column(&scale), column(&shift)));
    let factor = new_scale / scale;
    [factor.shallow_clone(), new_shift - shift * factor]
}

/// Reads the network of the teacher, and the normalisation of its images if the file records it.
fn read(config: &Config, path: &Path, spec: InputSpec, device: Device) -> Result<(Built, Option<Normalisation>)> {
    let file = path.display();
    if tensors::is_ours(path) {
        let model = load_model(path)?;
        let own = model.about.config.data.spec();
        if own != spec {
            bad_request!(
                "train.distill.teacher: {file}: takes {0}x{0} images of {1} channels and knows {2} classes, and the data has {3}x{3}, {4} and {5}",
                own.size,
                own.channels,
                own.classes,
                spec.size,
                spec.channels,
                spec.classes
            );
        }
        return Ok((model.build(device)?, Some(model.about.normalisation)));
    }
    if Format::of(path).is_none() {
        bad_request!(
            "train.distill.teacher: {file}: give a model of foldconv (`foldconv import` makes one of a state dict), or a .pt2, .onnx or .pt file"
        );
    }
    let (network, classes) = init::exported(config, path, device)?;
    if classes != spec.classes {
        bad_request!("train.distill.teacher: {file}: knows {classes} classes, and the data has {}", spec.classes);
    }
    Ok((network, None))
}
