//! Batches of images on a GPU. The images are gathered, padded, cropped, flipped and normalised
//! with a few operations on the whole batch. The random numbers of a batch are one small tensor,
//! which is sent to the device; the operations read nothing else that changes from batch to batch.

use super::send;
use crate::data::augment::draw::{Draws, image_of};
use crate::data::augment::normalise::Normalisation;
use crate::data::augment::transform::Transform;
use crate::data::dataset::Split;
use tch::{Device, Kind, Tensor};

/// Images and labels of a split on the device.
#[derive(Debug)]
pub struct Gathered {
    /// Pixels of all padded images, one pixel per row: uint8 (N * side * side, C).
    pixels: Tensor,
    labels: Tensor,
    /// Height and width of a padded image; `size` is that of an image without padding.
    side: i64,
    size: i64,
    pad: i64,
    transform: Transform,
    scale: Tensor,
    shift: Tensor,
}

impl Gathered {
    /// Pads a split on the device. `transform` must only select pixels ([`Transform::only_takes`]).
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

    /// Returns the number of images.
    pub(super) fn len(&self) -> usize {
        self.labels.size()[0] as usize
    }

    /// Draws windows and erased regions for the images of `visits`. Returns them as a tensor on the
    /// device with one row per image.
    pub(super) fn draw(&self, visits: &[i64], draws: &dyn Fn(i64) -> Draws) -> Tensor {
        let mut rows = Vec::new();
        for visit in visits {
            let mut draws = draws(*visit);
            let window = self.transform.window([self.size as usize; 2], &mut draws);
            rows.extend([image_of(*visit), window.top + self.pad, window.left + self.pad, i64::from(window.flip)]);
            for region in self.transform.erased(&mut draws).into_iter().flatten() {
                let (bottom, right) = (region.top + region.height, region.left + region.width);
                rows.extend([region.top, bottom, region.left, right].map(|at| at as i64));
            }
        }
        send(Tensor::from_slice(&rows).view([visits.len() as i64, -1]), self.pixels.device())
    }

    /// Makes images, float32 (n, C, H, W), and labels (n) from the rows of [`Self::draw`]: int64
    /// (n, 4), and 4 more columns for each erased region.
    pub(super) fn make(&self, drawn: &Tensor) -> (Tensor, Tensor) {
        let columns = drawn.unsqueeze(2).unbind(1);
        let (place, edges) = columns.split_at(4);
        let mut images = self.gather(place);
        for edges in edges.chunks_exact(4) {
            images *= self.kept(edges);
        }
        (images.permute([0, 3, 1, 2]), self.labels.index_select(0, &drawn.select(1, 0)))
    }

    /// Returns the normalised images (n, H, W, C). `place` is index, top, left and flip, each
    /// int64 (n, 1).
    fn gather(&self, place: &[Tensor]) -> Tensor {
        let [indices, top, left, flip] = place else { unreachable!("four columns") };
        let across = self.across();
        // In a mirrored image, column j of the crop is its column crop - 1 - j.
        let columns = left + &across + flip * ((self.crop() - 1) - &across * 2);
        let rows = (indices * self.side + top + &across) * self.side;
        let places = (rows.unsqueeze(2) + columns.unsqueeze(1)).view([-1]);
        let pixels = self.pixels.index_select(0, &places).to_kind(Kind::Float) * &self.scale + &self.shift;
        pixels.view([indices.size()[0], self.crop(), self.crop(), self.scale.size()[0]])
    }

    /// Returns a mask (n, H, W, 1): 0 in the erased region of each image and 1 elsewhere. `edges`
    /// is top, bottom, left and right.
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
