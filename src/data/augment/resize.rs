//! Bilinear resizing. When shrinking, the filter widens with the scale, as in PIL and in
//! torchvision with antialias=True.

use super::image::{Image, View};
use super::region::Region;
use anyhow::{Result, bail};
use fast_image_resize::images::{CroppedImage, Image as Target, ImageRef};
use fast_image_resize::{FilterType, PixelType, ResizeAlg, ResizeOptions, Resizer};
use std::cell::RefCell;

thread_local! {
    /// The resizer of this thread, which keeps its buffers from one image to the next.
    static RESIZER: RefCell<Resizer> = RefCell::new(Resizer::new());
}

/// Resizes a part of an image to [width, height]. Pixels outside the part have no influence.
///
/// # Errors
/// An error if the image has more than 4 channels.
pub fn resize(image: View, part: Region, [width, height]: [usize; 2]) -> Result<Image> {
    let kind = match image.channels {
        1 => PixelType::U8,
        2 => PixelType::U8x2,
        3 => PixelType::U8x3,
        4 => PixelType::U8x4,
        channels => bail!("data.augment: images of {channels} channels can't be resized"),
    };
    let source = ImageRef::new(image.width as u32, image.height as u32, image.pixels, kind)?;
    let part = CroppedImage::new(&source, part.left as u32, part.top as u32, part.width as u32, part.height as u32)?;
    let mut pixels = vec![0; width * height * image.channels];
    let mut target = Target::from_slice_u8(width as u32, height as u32, &mut pixels, kind)?;
    let options = ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    RESIZER.with_borrow_mut(|resizer| resizer.resize(&part, &mut target, &options))?;
    Ok(Image { width, height, channels: image.channels, pixels })
}

/// Resizes an image so that its shorter side has `side` pixels. The longer side is rounded down, as
/// in torchvision.
///
/// # Errors
/// Those of [`resize`].
pub fn shorter_side(image: View, side: usize) -> Result<Image> {
    let View { width, height, .. } = image;
    let longer = |long: usize, short: usize| (side as f64 * long as f64 / short as f64) as usize;
    let size = if width <= height { [side, longer(height, width)] } else { [longer(width, height), side] };
    resize(image, Region { left: 0, top: 0, width, height }, size)
}
