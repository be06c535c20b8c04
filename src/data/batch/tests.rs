//! Tests of the content of batches, and of the agreement between the ways to make them.

use super::*;
use crate::data::augment::image::Image;
use crate::data::augment::region::Window;
use crate::data::dataset::Split;
use crate::data::folder::files::{Files, OnCorrupt};
use crate::data::folder::scan::Listing;
use std::path::PathBuf;
use std::sync::Arc;
use tch::Kind;

/// Returns random images whose labels are their indices.
fn split(n: i64, channels: i64) -> Split {
    let images = Tensor::randint(256, [n, 8, 8, channels], (Kind::Uint8, Device::Cpu));
    Split { images, labels: Tensor::arange(n, (Kind::Int64, Device::Cpu)) }
}

/// Returns a normalisation that leaves pixel values unchanged.
fn identity() -> Normalisation {
    Normalisation { mean: vec![0.; 3], std: vec![1. / 255.; 3] }
}

fn in_memory(split: &Split) -> Images {
    Images::Memory(Split { images: split.images.shallow_clone(), labels: split.labels.shallow_clone() })
}

fn training(split: &Split, augment: &Augment, normalisation: &Normalisation) -> Batches {
    Batches::train(&in_memory(split), augment, normalisation, Device::Cpu)
}

/// Makes the batches of a stream.
fn made(stream: Stream) -> impl Iterator<Item = Batch> {
    stream.map(|batch| batch.unwrap().batch())
}

fn one(batches: &Batches, indices: &[i64], seed: u64, epoch: u64) -> Batch {
    made(batches.epoch(indices.to_vec(), indices.len(), seed, epoch)).next().unwrap()
}

fn everything() -> Augment {
    let yaml = "{random_resized_crop: 6, flip: true, jitter: {brightness: 0.4, hue: 0.1}, cutout: 2}";
    serde_yaml::from_str(yaml).unwrap()
}

#[test]
fn a_test_batch_is_the_images_normalised() {
    let split = split(5, 3);
    let norm = Normalisation::of(&split).unwrap();
    let batches =
        Batches::test(&in_memory(&split), &Augment { pad: 2, flip: true, ..Augment::default() }, &norm, Device::Cpu);
    let all: Vec<Batch> = made(batches.in_order(3)).collect();
    let labels: Vec<Vec<i64>> = all.iter().map(|batch| Vec::try_from(&batch.labels).unwrap()).collect();
    assert_eq!(labels, [vec![0, 1, 2], vec![3, 4]]);
    let x = &all[0].images;
    assert_eq!(x.size(), [3, 3, 8, 8]);
    assert_eq!(x.stride(), [192, 1, 24, 3], "channels_last");
    let mean = Tensor::from_slice(&norm.mean).view([1, 3, 1, 1]);
    let std = Tensor::from_slice(&norm.std).view([1, 3, 1, 1]);
    let expected = (split.images.narrow(0, 0, 3).permute([0, 3, 1, 2]).to_kind(Kind::Double) / 255. - mean) / std;
    assert!((x - expected).abs().max().double_value(&[]) < 1e-5);
}

#[test]
fn the_normalised_training_set_has_mean_0_and_standard_deviation_1() {
    for channels in [1, 3] {
        let split = split(64, channels);
        let norm = Normalisation::of(&split).unwrap();
        let batches = Batches::test(&in_memory(&split), &Augment::default(), &norm, Device::Cpu);
        let x = made(batches.in_order(64)).next().unwrap().images.to_kind(Kind::Double);
        assert!(x.mean_dim([0, 2, 3].as_slice(), false, None).abs().max().double_value(&[]) < 1e-5);
        assert!((x.std_dim([0, 2, 3].as_slice(), false, false) - 1.).abs().max().double_value(&[]) < 1e-5);
    }
}

#[test]
fn every_training_image_is_a_crop_of_its_padded_original_and_every_place_and_flip_occurs() {
    let split = split(2, 3);
    let batches = training(&split, &Augment { pad: 1, flip: true, ..Augment::default() }, &identity());
    let padded = split.images.constant_pad_nd([0, 0, 1, 1, 1, 1]).permute([0, 3, 1, 2]).to_kind(Kind::Float);
    let mut seen = std::collections::BTreeSet::new();
    for epoch in 0..200 {
        let x = one(&batches, &[1, 0], 7, epoch).images;
        let found = (0..18).find(|place| {
            let (top, left, flip) = (place / 6, place / 2 % 3, place % 2 == 1);
            let crop = padded.get(1).narrow(1, top, 8).narrow(2, left, 8);
            (if flip { crop.flip([2]) } else { crop }).equal(&x.get(0).round())
        });
        seen.insert(found.expect("not a crop of image 1"));
    }
    assert_eq!(seen.len(), 18);
}

#[test]
fn what_is_drawn_for_an_image_depends_on_seed_epoch_and_index_alone() {
    let crop = Augment { pad: 2, crop: Some(7), flip: true, cutout: Some(3), ..Augment::default() };
    for augment in [crop, everything()] {
        let batches = training(&split(40, 3), &augment, &identity());
        let alone = |index, seed, epoch| one(&batches, &[index], seed, epoch).images.get(0);
        let order: Vec<i64> = (0..40).rev().collect();
        let x = one(&batches, &order, 1, 2).images;
        assert!(order.iter().enumerate().all(|(at, index)| x.get(at as i64).equal(&alone(*index, 1, 2))));
        let different = (0..9).filter(|i| !alone(*i, 1, 2).equal(&alone(*i, 1, 3))).count();
        assert!(different > 5, "epochs draw anew, {different} of 9 differ");
    }
}

#[test]
fn the_rest_of_an_epoch_is_what_was_left_of_it() {
    let augment = Augment { mixup: Some(0.5), pad: 2, flip: true, ..Augment::default() };
    let batches = training(&split(10, 3), &augment, &identity());
    let order = vec![3, 1, 4, 0, 5, 9, 2, 6, 8, 7];
    let rest = batches.epoch(order[4..].to_vec(), 4, 6, 1);
    let (mut count, mut shares) = (0, Vec::new());
    for (whole, rest) in made(batches.epoch(order, 4, 6, 1)).skip(1).zip(made(rest)) {
        let (a, b) = (whole.mixed.unwrap(), rest.mixed.unwrap());
        assert!(whole.images.equal(&rest.images) && whole.labels.equal(&rest.labels) && a.labels.equal(&b.labels));
        assert_eq!(a.shares, b.shares);
        shares.push(a.shares);
        count += 1;
    }
    assert_eq!(count, 2);
    assert_ne!(shares[0], shares[1]);
}

#[test]
fn a_batch_gathered_whole_is_that_of_single_rows_bit_for_bit() {
    for channels in [1, 3] {
        let split = split(20, channels);
        let norm = Normalisation::of(&split).unwrap();
        for (pad, crop, cutout) in [(0, None, None), (3, None, None), (2, Some(5), Some(2)), (8, None, Some(8))] {
            let augment = Augment { pad, crop, cutout, flip: true, ..Augment::default() };
            for transform in [Transform::train, Transform::test] {
                let transform = transform(&augment, augment.size(8));
                let rows = Rows::new(&split, transform.clone(), &norm, Device::Cpu);
                let gathered = Rc::new(Gathered::new(&split, transform, pad, &norm, Device::Cpu));
                let order: Vec<i64> = (0..20).rev().collect();
                let draws = |index| Draws::new(9, 1, index);
                let (a, b) = (
                    rows.prepare(&order, &draws).unwrap().batch(),
                    Prepared::gathered(&gathered, &order, &draws).batch(),
                );
                assert!(a.images.equal(&b.images) && a.labels.equal(&b.labels), "{augment:?}");
                assert_eq!(a.images.stride(), b.images.stride());
            }
        }
    }
}

/// With images on the device, a recorded step copies a few numbers per image. A copy of a prepared
/// batch that is set to another one gives the other one's batch.
#[test]
fn a_gathered_batch_is_made_of_a_few_numbers_an_image_wherever_they_lie() {
    let split = split(12, 3);
    let order: Vec<i64> = (0..12).rev().collect();
    for (cutout, mixup, sizes) in [
        (None, None, vec![vec![6, 4]]),
        (Some(3), None, vec![vec![6, 8]]),
        (Some(3), Some(1.), vec![vec![6, 8], vec![6], vec![2], vec![]]),
    ] {
        let augment = Augment { pad: 2, flip: true, cutout, mixup, ..Augment::default() };
        alike_wherever_they_lie(&split, &order, &augment, &sizes);
    }
    let erased = "{pad: 2, cutout: 3, random_erasing: 0.7, cutmix: 1, repeats: 2}";
    let sizes = [vec![6, 12], vec![6], vec![2], vec![4]];
    alike_wherever_they_lie(&split, &order, &serde_yaml::from_str(erased).unwrap(), &sizes);
    let both = "{flip: true, random_erasing: 0.7, mixup: 0.5, cutmix: 1}";
    let sizes = [vec![6, 8], vec![6], vec![2], vec![], vec![4]];
    alike_wherever_they_lie(&split, &order, &serde_yaml::from_str(both).unwrap(), &sizes);
}

/// Asserts that gathered batches, copied into the tensors of the first, are those of the CPU, and
/// that these tensors have the given sizes.
fn alike_wherever_they_lie(split: &Split, order: &[i64], augment: &Augment, sizes: &[Vec<i64>]) {
    let order = order.to_vec();
    let batches = Batches::gathered(&in_memory(split), augment, &identity(), Device::Cpu, true);
    let expected: Vec<Batch> = made(training(split, augment, &identity()).epoch(order.clone(), 6, 1, 2)).collect();
    let prepared: Vec<Prepared> = batches.epoch(order.clone(), 6, 1, 2).map(Result::unwrap).collect();
    let mut own = prepared[0].copy();
    assert_eq!(own.tensors().iter().map(Tensor::size).collect::<Vec<_>>(), sizes);
    let places: Vec<_> = own.tensors().iter().map(Tensor::data_ptr).collect();
    for (prepared, expected) in prepared.iter().zip(&expected) {
        own.set(prepared);
        let batch = own.batch();
        assert!(batch.images.equal(&expected.images) && batch.labels.equal(&expected.labels), "{augment:?}");
        assert_eq!(batch.mixed.map(|mixed| mixed.labels), expected.mixed.as_ref().map(|mixed| mixed.labels.copy()));
    }
    assert_eq!(own.tensors().iter().map(Tensor::data_ptr).collect::<Vec<_>>(), places);
}

#[test]
fn windows_of_every_width_and_many_channels_are_cut_and_mirrored() {
    for (channels, width) in [(1, 7), (3, 5), (3, 8), (2, 6), (4, 3)] {
        let pixels: Vec<u8> = (0..2 * width * channels).map(|at| at as u8 + 1).collect();
        let image = Image { width, height: 2, channels, pixels };
        let size = width + 3;
        for flip in [false, true] {
            let window = Window { top: -1, left: -2, size, flip };
            let cut = image.view().cut(&window);
            for (y, x, c) in (0..size).flat_map(|y| (0..size).flat_map(move |x| (0..channels).map(move |c| (y, x, c))))
            {
                let column = if flip { size - 1 - x } else { x };
                let inside = (1..3).contains(&y) && (2..width + 2).contains(&column);
                let expected = if inside { image.pixels[((y - 1) * width + column - 2) * channels + c] } else { 0 };
                assert_eq!(cut.pixels[(y * size + x) * channels + c], expected, "{window:?} {y} {x} {c}");
            }
        }
    }
}

#[test]
fn a_mixed_batch_is_the_two_images_weighted_and_keeps_their_labels() {
    let split = split(30, 3);
    let plain = training(&split, &Augment::default(), &identity());
    let mixing = training(&split, &Augment { mixup: Some(1.), ..Augment::default() }, &identity());
    let order: Vec<i64> = (0..30).collect();
    let (x, batch) = (one(&plain, &order, 3, 0).images.to_kind(Kind::Double), one(&mixing, &order, 3, 0));
    let Mixed { labels: others, shares } = batch.mixed.unwrap();
    let share = shares.double_value(&[0]);
    assert!((share + shares.double_value(&[1]) - 1.).abs() < 1e-7);
    // Labels are indices here.
    assert_eq!(batch.labels, Tensor::from_slice(&order));
    let mut sorted = Vec::<i64>::try_from(&others).unwrap();
    sorted.sort();
    assert_eq!(sorted, order, "everyone is somebody's partner once");
    let expected = &x * share + x.index_select(0, &others) * (1. - share);
    // Float32 numbers up to 255, rounded three times.
    assert!((&batch.images - expected).abs().max().double_value(&[]) < 5e-5);
    assert_eq!(batch.images.stride(), [192, 1, 24, 3], "channels_last");
    assert_ne!(one(&mixing, &order, 3, 1).mixed.unwrap().shares, shares);
}

/// Each pixel of a batch with CutMix is that of the image or of its partner; those of the partner
/// form a box, and their number gives the shares.
#[test]
fn a_cut_batch_has_a_box_of_the_partner_and_shares_of_its_area() {
    let split = split(30, 3);
    let order: Vec<i64> = (0..30).collect();
    let x = one(&training(&split, &Augment::default(), &identity()), &order, 3, 0).images;
    let both = Augment { cutmix: Some(1.), mixup: Some(1.), ..Augment::default() };
    let (mut cut, mut boxes) = (0, std::collections::BTreeSet::new());
    for (augment, epochs) in [(Augment { mixup: None, ..both }, 40), (both, 400)] {
        let batches = training(&split, &augment, &identity());
        for epoch in 0..epochs {
            let batch = one(&batches, &order, 3, epoch);
            let Mixed { labels: others, shares } = batch.mixed.unwrap();
            assert_eq!(batch.images.stride(), [192, 1, 24, 3], "channels_last");
            let partners = x.index_select(0, &others);
            let own = batch.images.eq_tensor(&x).all_dim(1, false).all_dim(0, false);
            let of_partner = batch.images.eq_tensor(&partners).all_dim(1, false).all_dim(0, false);
            if !bool::try_from(own.logical_or(&of_partner).all()).unwrap() {
                assert!(augment.mixup.is_some(), "neither image");
                continue;
            }
            cut += i64::from(augment.mixup.is_some());
            let (inside, area) = (own.logical_not(), own.logical_not().sum(Kind::Int64).int64_value(&[]));
            let extent = |dim: i64| inside.any_dim(dim, false).sum(Kind::Int64).int64_value(&[]);
            assert_eq!(extent(0) * extent(1), area, "a box");
            assert_eq!(Vec::<f32>::try_from(&shares).unwrap(), [1. - area as f32 / 64., area as f32 / 64.]);
            boxes.insert((extent(0), extent(1)));
        }
    }
    // One of the two with probability 1/2: 200 of 400, within five standard errors of 10.
    assert!((cut - 200).abs() < 50, "{cut} of 400");
    assert!(boxes.len() > 15, "{boxes:?}");
}

#[test]
fn a_repeated_image_comes_several_times_with_numbers_of_its_own() {
    let split = split(10, 3);
    let augment: Augment = serde_yaml::from_str("{pad: 2, flip: true, mixup: 1, repeats: 3}").unwrap();
    let plain = training(&split, &Augment { mixup: None, repeats: None, ..augment }, &identity());
    let batches = training(&split, &Augment { mixup: None, ..augment }, &identity());
    let (order, shuffled) = (batches.order(4, 1), plain.order(4, 1));
    assert_eq!(shuffled, draw::shuffled(10, 4, 1));
    let repeated = one(&batches, &order, 4, 1);
    let expected: Vec<i64> = (0..10).map(|at| shuffled[at / 3]).collect();
    // Labels are indices here.
    assert_eq!(Vec::<i64>::try_from(&repeated.labels).unwrap(), expected);
    let first = one(&plain, &shuffled, 4, 1).images;
    for at in 0..4 {
        assert!(repeated.images.get(3 * at).equal(&first.get(at)), "the first visit is that without repeats");
    }
    let pairs = (0..10).filter(|at| at % 3 > 0);
    let different = pairs.filter(|at| !repeated.images.get(*at).equal(&repeated.images.get(at - at % 3))).count();
    assert!(different >= 4, "{different} of 6 differ");
    // The rest of an interrupted epoch, which begins within the visits to an image.
    let mixing = training(&split, &augment, &identity());
    let whole: Vec<Batch> = made(mixing.epoch(order.clone(), 4, 4, 1)).collect();
    let rest: Vec<Batch> = made(mixing.epoch(order[4..].to_vec(), 4, 4, 1)).collect();
    assert_eq!((whole.len(), rest.len()), (3, 2));
    for (whole, rest) in whole[1..].iter().zip(&rest) {
        assert!(whole.images.equal(&rest.images) && whole.labels.equal(&rest.labels));
    }
}

#[test]
fn operations_and_noise_apply_to_training_images_alone_and_only_on_the_cpu() {
    let split = split(30, 3);
    let order: Vec<i64> = (0..30).collect();
    let of = |yaml: &str| serde_yaml::from_str::<Augment>(yaml).unwrap();
    let plain = one(&training(&split, &Augment::default(), &identity()), &order, 1, 1).images;
    for yaml in [
        "trivial_augment: true",
        "rand_augment: {operations: 1, magnitude: 30}",
        "auto_augment: svhn",
        "random_erasing: {probability: 1, value: noise}",
    ] {
        let images = one(&training(&split, &of(yaml), &identity()), &order, 1, 1).images;
        let changed = (0..30).filter(|at| !images.get(*at).equal(&plain.get(*at))).count();
        assert!(changed > 15, "{yaml}: {changed}");
        assert!(!Transform::train(&of(yaml), 8).only_takes() && Transform::test(&of(yaml), 8).only_takes());
        let batches = Batches::test(&in_memory(&split), &of(yaml), &identity(), Device::Cpu);
        assert!(made(batches.in_order(30)).next().unwrap().images.equal(&plain), "{yaml}");
    }
    assert!(Transform::train(&of("random_erasing: 1"), 8).only_takes());
    let noise = of("random_erasing: {probability: 1, value: noise}");
    let (noisy, black) =
        (training(&split, &noise, &identity()), training(&split, &of("random_erasing: 1"), &identity()));
    let (noisy, black) = (one(&noisy, &order, 1, 1).images, one(&black, &order, 1, 1).images);
    let erased = black.ne_tensor(&plain).any_dim(1, true);
    assert!(noisy.where_self(&erased.logical_not(), &plain).equal(&plain), "the same place is erased");
    let numbers = noisy.masked_select(&erased);
    // Five standard errors of the mean of standard normal numbers.
    assert!(numbers.mean(Kind::Double).double_value(&[]).abs() < 5. / (numbers.numel() as f64).sqrt());
}

#[test]
fn images_are_erased_where_the_square_lies_and_nowhere_else() {
    let split = split(30, 3);
    let norm = Normalisation::of(&split).unwrap();
    let order: Vec<i64> = (0..30).collect();
    let whole = one(&training(&split, &Augment::default(), &norm), &order, 1, 1).images;
    let augment = Augment { cutout: Some(4), ..Augment::default() };
    let cut = one(&training(&split, &augment, &norm), &order, 1, 1).images;
    let zero = cut.eq(0.).all_dim(1, false);
    let kept = cut.eq_tensor(&whole).all_dim(1, false);
    assert!(bool::try_from(zero.logical_or(&kept).all()).unwrap());
    let sizes: Vec<i64> = (0..30).map(|at| zero.get(at).sum(Kind::Int64).int64_value(&[])).collect();
    // A square of side 4 whose centre is in the image has 2 to 4 rows and columns inside.
    assert!(sizes.iter().all(|size| [4, 6, 8, 9, 12, 16].contains(size)), "{sizes:?}");
    assert!(sizes.contains(&16));
    assert_eq!(zero.any_dim(0, false).sum(Kind::Int64).int64_value(&[]), 64, "no place is spared");
}

/// Writes 23 PNG files of 3 classes, each of another size, whose pixels are the file's number.
/// Returns the images and their labels in order.
fn in_files(root: &std::path::Path, on_corrupt: OnCorrupt) -> (Images, Vec<i64>) {
    let labels: Vec<i64> = (0..23).map(|at| at / 8).collect();
    let write = |(at, label): (usize, &i64)| {
        let file = PathBuf::from(format!("{label}/{at:02}.png"));
        let path = root.join(&file);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::RgbImage::from_pixel(10 + at as u32, 9, image::Rgb([at as u8; 3])).save(path).unwrap();
        (file, *label)
    };
    let files = labels.iter().enumerate().map(write).collect();
    let listing = Listing { folder: root.to_path_buf(), files, ignored: 0 };
    (Images::Files(Arc::new(Files::new(listing, 8, on_corrupt))), labels)
}

#[test]
fn batches_from_files_are_the_same_for_any_number_of_threads_and_any_resume() {
    let folder = tempfile::tempdir().unwrap();
    let (images, labels) = in_files(folder.path(), OnCorrupt::Error);
    let augment = Augment { crop: Some(8), pad: 2, flip: true, cutout: Some(3), mixup: Some(1.), ..Augment::default() };
    let batches = Batches::train(&images, &augment, &identity(), Device::Cpu);
    assert_eq!(batches.len(), 23);
    let order = crate::data::augment::draw::shuffled(23, 1, 2);
    let epoch = |threads, order: &[i64]| -> Vec<Batch> {
        tch::set_num_threads(threads);
        made(batches.epoch(order.to_vec(), 5, 1, 2)).collect()
    };
    let expected = epoch(1, &order);
    assert_eq!(expected[0].images.stride(), [192, 1, 24, 3], "channels_last");
    let taken: Vec<i64> = expected.iter().flat_map(|batch| Vec::<i64>::try_from(&batch.labels).unwrap()).collect();
    assert_eq!(taken, order.iter().map(|at| labels[*at as usize]).collect::<Vec<_>>());
    for threads in [2, 5] {
        for (found, expected) in epoch(threads, &order).iter().zip(&expected) {
            assert!(found.images.equal(&expected.images) && found.labels.equal(&expected.labels));
            assert_eq!(found.mixed.as_ref().unwrap().shares, expected.mixed.as_ref().unwrap().shares);
        }
    }
    let resumed = epoch(2, &order[10..]);
    assert_eq!(resumed.len(), 3);
    assert!(resumed[0].images.equal(&expected[2].images));
}

#[test]
fn a_test_batch_from_files_is_their_centres() {
    let folder = tempfile::tempdir().unwrap();
    let (images, labels) = in_files(folder.path(), OnCorrupt::Error);
    let augment = Augment { crop: Some(8), ..Augment::default() };
    let batches = Batches::test(&images, &augment, &identity(), Device::Cpu);
    let all: Vec<Batch> = made(batches.in_order(10)).collect();
    assert_eq!(
        all.iter().map(|batch| batch.images.size()).collect::<Vec<_>>(),
        [[10, 3, 8, 8], [10, 3, 8, 8], [3, 3, 8, 8]]
    );
    for (at, label) in labels.iter().enumerate() {
        let batch = &all[at / 10];
        let (image, found) = (batch.images.get(at as i64 % 10), batch.labels.int64_value(&[at as i64 % 10]));
        // Normalisation with 1 / 255 maps a pixel to itself, except for rounding.
        assert!((image - at as f64).abs().max().double_value(&[]) < 1e-5);
        assert_eq!(found, *label);
    }
}

#[test]
fn damaged_files_end_the_epoch_by_name_or_are_left_out_of_their_batch() {
    let folder = tempfile::tempdir().unwrap();
    let (strict, _) = in_files(folder.path(), OnCorrupt::Error);
    let (lenient, labels) = in_files(folder.path(), OnCorrupt::Skip);
    for at in [7, 12, 14] {
        let path = folder.path().join(format!("{}/{at:02}.png", labels[at]));
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(path, &whole[..whole.len() / 2]).unwrap();
    }
    let augment = Augment { crop: Some(8), ..Augment::default() };
    let of = |images: &Images| Batches::train(images, &augment, &identity(), Device::Cpu);
    let order: Vec<i64> = (0..23).collect();
    let mut stream = of(&strict).epoch(order.clone(), 10, 0, 0);
    let error = stream.next().unwrap().unwrap_err();
    assert_eq!(crate::error::exit_status(&error), 2);
    assert!(error.to_string().starts_with(&format!("{}/0/07.png: damaged PNG: ", folder.path().display())), "{error}");
    assert!(stream.next().is_none());

    let sizes = |size| -> Result<Vec<usize>> {
        of(&lenient).epoch(order.clone(), size, 0, 0).map(|batch| Ok(batch?.len())).collect()
    };
    assert_eq!(sizes(10).unwrap(), [9, 8, 3]);
    assert_eq!(sizes(1).unwrap_err().to_string(), "all 1 images of a batch are damaged");
    let second = made(of(&lenient).epoch(order.clone(), 10, 0, 0)).nth(1).unwrap();
    assert_eq!(Vec::<i64>::try_from(&second.labels).unwrap(), [1, 1, 1, 1, 2, 2, 2, 2]);
    assert_eq!(
        Vec::<f32>::try_from(second.images.select(1, 0).select(1, 4).select(1, 4))
            .unwrap()
            .iter()
            .map(|x| x.round())
            .collect::<Vec<_>>(),
        [10., 11., 13., 15., 16., 17., 18., 19.]
    );
}

#[test]
fn a_part_of_the_files_is_spread_over_all_classes() {
    let folder = tempfile::tempdir().unwrap();
    let (images, _) = in_files(folder.path(), OnCorrupt::Error);
    let Images::Files(files) = images else { unreachable!() };
    let labels = |limit| (0..files.spread(limit).len()).map(|at| files.spread(limit).label(at)).collect::<Vec<_>>();
    assert_eq!(labels(3), [0, 0, 1]);
    assert_eq!(labels(6), [0, 0, 0, 1, 1, 2]);
    assert_eq!(labels(99).len(), 23);
}
