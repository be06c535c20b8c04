//! Batches from images on a GPU: gathered, padded, cropped, flipped and normalised with a few operations on the whole batch. What is
//! drawn for a batch is one small tensor that is sent there; the operations read it, and nothing else that changes.

use super::send;
use crate::data::augment::draw::Draws;
use crate::data::augment::normalise::Normalisation;
use crate::data::augment::transform::Transform;
use crate::data::dataset::Split;
use tch::{Device, Kind, Tensor};

/// A split on the device.
#[derive(Debug)]
pub struct Gathered {
    /// Pixels of all images, padded, one a row: uint8 (N * side * side, C).
    pixels: Tensor,
    labels: Tensor,
    /// Height and width of a padded image, and of an image.
    side: i64,
    size: i64,
    pad: i64,
    transform: Transform,
    scale: Tensor,
    shift: Tensor,
}

impl Gathered {
    /// Pads a split on the device. The transform only takes pixels.
    pub(super) fn new(
        split: &Split,
        transform: Transform,
        pad: i64,
        normalisation: &Normalisation,
        device: Device,
    ) -> Gathered {
        let images = split.images.to_device(device).constant_pad_nd([0, 0, pad, pad, pad, pad]);
        let size = images.size();
        let (scale, shift) = normalisation.scale_and_shift();
        let row = |values: &[f32]| Tensor::from_slice(values).to_device(device);
        Gathered {
            pixels: images.reshape([-1, size[3]]),
            labels: split.labels.to_device(device),
            side: size[1],
            size: split.images.size()[1],
            pad,
            transform,
            scale: row(&scale),
            shift: row(&shift),
        }
    }

    /// Number of images.
    pub(super) fn len(&self) -> usize {
        self.labels.size()[0] as usize
    }

    /// Draws for the images at `indices`: on the device, a row of numbers for each.
    pub(super) fn draw(&self, indices: &[i64], draws: &dyn Fn(i64) -> Draws) -> Tensor {
        let mut rows = Vec::new();
        for index in indices {
            let mut draws = draws(*index);
            let window = self.transform.window([self.size as usize; 2], &mut draws);
            rows.extend([*index, window.top + self.pad, window.left + self.pad, i64::from(window.flip)]);
            if let Some(region) = self.transform.erased(&mut draws) {
                let (bottom, right) = (region.top + region.height, region.left + region.width);
                rows.extend([region.top, bottom, region.left, right].map(|at| at as i64));
            }
        }
        send(Tensor::from_slice(&rows).view([indices.len() as i64, -1]), self.pixels.device())
    }

    /// Images, float32 (n, C, H, W), and labels (n) of what was drawn: int64 (n, 4), or (n, 8) with an erased part.
    pub(super) fn make(&self, drawn: &Tensor) -> (Tensor, Tensor) {
        let columns = drawn.unsqueeze(2).unbind(1);
        let (place, edges) = columns.split_at(4);
        let mut images = self.gather(place);
        if !edges.is_empty() {
            images *= self.kept(edges);
        }
        (images.permute([0, 3, 1, 2]), self.labels.index_select(0, &drawn.select(1, 0)))
    }

    /// The images, normalised, (n, H, W, C). `place` is index, top, left and flip, int64 (n, 1) each.
    fn gather(&self, place: &[Tensor]) -> Tensor {
        let [indices, top, left, flip] = place else { unreachable!("four columns") };
        let across = self.across();
        // Mirrored, column j of the crop is its column crop - 1 - j.
        let columns = left + &across + flip * ((self.crop() - 1) - &across * 2);
        let rows = (indices * self.side + top + &across) * self.side;
        let places = (rows.unsqueeze(2) + columns.unsqueeze(1)).view([-1]);
        let pixels = self.pixels.index_select(0, &places).to_kind(Kind::Float) * &self.scale + &self.shift;
        pixels.view([indices.size()[0], self.crop(), self.crop(), self.scale.size()[0]])
    }

    /// 0 in the erased part of each image and 1 elsewhere, (n, H, W, 1). `edges` is top, bottom, left and right.
    fn kept(&self, edges: &[Tensor]) -> Tensor {
        let [top, bottom, left, right] = edges else { unreachable!("four columns") };
        let across = self.across();
        let inside = |from: &Tensor, to: &Tensor| across.ge_tensor(from).logical_and(&across.lt_tensor(to));
        let erased = inside(top, bottom).unsqueeze(2).logical_and(&inside(left, right).unsqueeze(1));
        erased.logical_not().unsqueeze(3)
    }

    fn crop(&self) -> i64 {
        self.transform.size() as i64
    }

    fn across(&self) -> Tensor {
        Tensor::arange(self.crop(), (Kind::Int64, self.pixels.device())).unsqueeze(0)
    }
}
