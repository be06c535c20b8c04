//! Tests on small CIFAR data sets, which are written in every form and read back, intact and
//! damaged.

use super::*;
use crate::error::{exit_status, one_line};
use flate2::{Compression, write::GzEncoder};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Content of each file, by name.
type Files = BTreeMap<&'static str, Vec<u8>>;

/// Returns a byte of an image; `image` counts over the whole data set. Neighbours differ in every
/// direction.
fn pixel(image: usize, channel: usize, y: usize, x: usize) -> u8 {
    (image * 151 + channel * 89 + y * 37 + x * 5) as u8
}

fn label(variant: &Variant, image: usize) -> u8 {
    ((image * 7 + 3) % variant.classes as usize) as u8
}

fn planes(image: usize) -> Vec<u8> {
    let at = |at: usize| pixel(image, at / 1024, at / 32 % 32, at % 32);
    (0..PIXELS).map(at).collect()
}

/// Returns the files of a data set with two images per training file and three in the test file.
fn files(variant: &Variant, form: &Distribution) -> Files {
    let mut files = Files::new();
    let mut next = 0;
    for file in form.batches() {
        let images = next..next + if file == form.test { 3 } else { 2 };
        next = images.end;
        let labels: Vec<u8> = images.clone().map(|image| label(variant, image)).collect();
        let pixels: Vec<u8> = images.flat_map(planes).collect();
        let content = match form.encoding {
            Encoding::Binary { label_bytes } => binary(label_bytes, &labels, &pixels),
            Encoding::Python { labels: key, .. } => python2(key, &labels, &pixels),
        };
        files.insert(file, content);
    }
    let names: Vec<String> = (0..variant.classes).map(|class| format!("name{class}")).collect();
    let content = match form.encoding {
        Encoding::Binary { .. } => format!("{}\n\n", names.join("\n")).into_bytes(),
        Encoding::Python { names: key, .. } => {
            let list: String = names.iter().map(|name| format!("S'{name}'\na")).collect();
            format!("(dp1\nS'num_vis'\np2\nI3072\nsS'{key}'\np3\n(lp4\n{list}s.").into_bytes()
        }
    };
    files.insert(form.names, content);
    files
}

fn binary(label_bytes: usize, labels: &[u8], pixels: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (label, planes) in labels.iter().zip(pixels.chunks(PIXELS)) {
        // The coarse label, which must not be read as the fine label.
        bytes.extend(vec![77; label_bytes - 1]);
        bytes.push(*label);
        bytes.extend(planes);
    }
    bytes
}

/// Returns a batch in the format in which Python 2 wrote the official batches: pickle protocol 2
/// with byte strings.
fn python2(labels_key: &str, labels: &[u8], pixels: &[u8]) -> Vec<u8> {
    let mut bytes = b"\x80\x02}q\x01(U\x0bbatch_labelq\x02U\x15training batch 1 of 5q\x03U".to_vec();
    bytes.push(labels_key.len() as u8);
    bytes.extend(labels_key.as_bytes());
    bytes.extend(b"q\x04]q\x05(");
    bytes.extend(labels.iter().flat_map(|label| [b'K', *label]));
    bytes.extend(
        b"eU\x04dataq\x06cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87R",
    );
    bytes.extend(b"q\x09(K\x01K");
    bytes.push((pixels.len() / PIXELS) as u8);
    bytes.extend(b"M\x00\x0c\x86cnumpy\ndtype\nq\nU\x02u1K\x00K\x01\x87Rq\x0b(K\x03U\x01|NNNJ\xff\xff\xff\xff");
    bytes.extend(b"J\xff\xff\xff\xffK\x00tb\x89T");
    bytes.extend((pixels.len() as u32).to_le_bytes());
    bytes.extend(pixels);
    bytes.extend(b"tbU\tfilenamesq\x0c]q\rU\x05a.pngq\x0eau.");
    bytes
}

fn write_folder(root: &Path, form: &Distribution, files: &Files) -> PathBuf {
    let folder = root.join(form.folder);
    std::fs::create_dir_all(&folder).unwrap();
    for (file, content) in files {
        std::fs::write(folder.join(file), content).unwrap();
    }
    folder
}

fn write_archive(root: &Path, form: &Distribution, files: &Files) -> PathBuf {
    let path = root.join(form.archive);
    let mut tar = tar::Builder::new(GzEncoder::new(std::fs::File::create(&path).unwrap(), Compression::fast()));
    let mut append = |name: &str, content: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, format!("{}/{name}", form.folder), content).unwrap();
    };
    append("readme.html", b"not CIFAR's");
    append("._test_batch.bin", b"a file that macOS adds");
    // Reverse order, because readers may not depend on the order of an archive.
    files.iter().rev().for_each(|(file, content)| append(file, content));
    tar.into_inner().unwrap().finish().unwrap();
    path
}

fn each_form() -> impl Iterator<Item = (&'static Variant, &'static Distribution)> {
    [&CIFAR10, &CIFAR100].into_iter().flat_map(|variant| variant.forms.iter().map(move |form| (variant, form)))
}

/// Checks every pixel and label of a data set made by [`files`].
fn check(variant: &Variant, form: &Distribution, data: &Dataset) {
    let in_train = 2 * form.train.len();
    for (split, images) in [(&data.train, 0..in_train), (&data.test, in_train..in_train + 3)] {
        assert_eq!(split.images.size(), [images.len() as i64, 32, 32, 3]);
        let mut expected = Vec::new();
        for image in images.clone() {
            for (y, x) in (0..1024).map(|at| (at / 32, at % 32)) {
                expected.extend((0..3).map(|channel| pixel(image, channel, y, x)));
            }
        }
        assert_eq!(Vec::<u8>::try_from(&split.images.contiguous().view(-1)).unwrap(), expected);
        let labels: Vec<i64> = images.map(|image| i64::from(label(variant, image))).collect();
        assert_eq!(Vec::<i64>::try_from(&split.labels).unwrap(), labels);
    }
}

/// Checks that loading fails with status 2 and a one-line message that contains all of `parts`, in
/// which `ROOT` stands for the folder.
fn refused(variant: &Variant, root: &Path, parts: &[&str]) {
    let error = load(variant, Some(root)).unwrap_err();
    assert_eq!(exit_status(&error), 2);
    let message = format!("{error:#}");
    assert!(!message.contains('\n'), "{message}");
    for part in parts {
        let part = part.replace("ROOT", &root.display().to_string());
        assert!(message.contains(&part), "`{message}` lacks `{part}`");
    }
}

#[test]
fn every_form_is_read_from_its_folder_and_its_archive() {
    for (variant, form) in each_form() {
        let (folders, archives) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let folder = write_folder(folders.path(), form, &files(variant, form));
        let archive = write_archive(archives.path(), form, &files(variant, form));
        for root in [folders.path(), &folder, archives.path(), &archive] {
            let data = load(variant, Some(root)).unwrap();
            check(variant, form, &data);
            assert_eq!(data.classes.len() as i64, variant.classes);
            assert_eq!(data.classes[9], "name9");
        }
    }
}

#[test]
fn a_batches_folder_may_have_another_name() {
    let root = tempfile::tempdir().unwrap();
    let form = &CIFAR10.forms[1];
    let folder = write_folder(root.path(), form, &files(&CIFAR10, form));
    let renamed = root.path().join("mine");
    std::fs::rename(folder, &renamed).unwrap();
    check(&CIFAR10, form, &load(&CIFAR10, Some(&renamed)).unwrap());
}

#[test]
fn a_folder_goes_before_an_archive_and_binary_before_python() {
    let root = tempfile::tempdir().unwrap();
    let [binary, python] = &CIFAR10.forms;
    std::fs::write(root.path().join(binary.archive), b"never read").unwrap();
    write_folder(root.path(), python, &files(&CIFAR10, python));
    check(&CIFAR10, python, &load(&CIFAR10, Some(root.path())).unwrap());
    write_folder(root.path(), binary, &files(&CIFAR10, binary));
    std::fs::write(root.path().join(python.folder).join("test_batch"), b"never read").unwrap();
    check(&CIFAR10, binary, &load(&CIFAR10, Some(root.path())).unwrap());
}

#[test]
fn without_a_file_of_names_the_classes_have_their_usual_ones() {
    for (variant, form) in each_form() {
        let root = tempfile::tempdir().unwrap();
        let mut files = files(variant, form);
        files.remove(form.names);
        write_folder(root.path(), form, &files);
        let classes = load(variant, Some(root.path())).unwrap().classes;
        assert_eq!(classes.len() as i64, variant.classes);
        assert_eq!(classes[9], if variant.classes == 10 { "truck" } else { "bottle" });
    }
}

#[test]
fn the_configs_have_no_options() {
    assert_eq!(serde_yaml::from_str::<Cifar10Config>("{}").unwrap(), Cifar10Config {});
    assert!(serde_yaml::from_str::<Cifar100Config>("{fine: true}").is_err());
    assert_eq!(Cifar100Config {}.spec(), InputSpec { classes: 100, channels: 3, size: 32 });
}

#[test]
fn what_is_not_there_is_said_with_where_it_is_to_be_had() {
    let error = Cifar10Config {}.load(None).unwrap_err();
    assert_eq!(
        one_line(&error),
        "data.root is not given: name the folder that holds CIFAR-10 with --root or FOLDCONV_DATA \
         (https://www.cs.toronto.edu/~kriz/cifar.html)"
    );
    assert_eq!(exit_status(&error), 2);
    let root = tempfile::tempdir().unwrap();
    let wanted = "cifar-100-binary/, cifar-100-python/, cifar-100-binary.tar.gz, cifar-100-python.tar.gz (--root";
    refused(&CIFAR100, root.path(), &["ROOT: holds none of", wanted, HOME]);
    refused(&CIFAR100, &root.path().join("no"), &["ROOT: no such folder", wanted, HOME]);
    let other = root.path().join("cifar.zip");
    std::fs::write(&other, b"").unwrap();
    refused(
        &CIFAR10,
        &other,
        &["ROOT: a file that is neither cifar-10-binary.tar.gz nor cifar-10-python.tar.gz", HOME],
    );
}

#[test]
fn a_missing_file_is_named() {
    for (variant, form) in each_form() {
        for file in form.batches() {
            let root = tempfile::tempdir().unwrap();
            let mut files = files(variant, form);
            files.remove(file);
            let folder = write_folder(root.path(), form, &files);
            refused(variant, root.path(), &[&format!("{}: missing", folder.join(file).display()), HOME]);
            std::fs::remove_dir_all(folder).unwrap();
            let archive = write_archive(root.path(), form, &files);
            refused(variant, root.path(), &[&format!("{} ({file}): missing", archive.display()), HOME]);
        }
    }
}

/// Replaces one file and checks the refusal, in a folder and in an archive.
fn refused_with(variant: &Variant, form: &Distribution, file: &'static str, content: &[u8], part: &str) {
    let (folders, archives) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut files = files(variant, form);
    files.insert(file, content.to_vec());
    let folder = write_folder(folders.path(), form, &files);
    refused(variant, folders.path(), &[&format!("{}: {part}", folder.join(file).display())]);
    write_archive(archives.path(), form, &files);
    refused(variant, archives.path(), &[&format!("ROOT/{} ({file}): {part}", form.archive)]);
}

#[test]
fn a_damaged_binary_file_is_refused() {
    let form = &CIFAR10.forms[0];
    let with = |content: &[u8], part: &str| refused_with(&CIFAR10, form, "data_batch_2.bin", content, part);
    with(&[0; 5000], "truncated: 5000 bytes, expected a multiple of 3073 (the official file has 30730000)");
    with(&vec![0; 30_733_073], "oversized: 30733073 bytes, expected at most the 30730000 bytes");
    with(b"", "holds no images (0 bytes)");
    let mut wrong = vec![0; 3 * 3073];
    wrong[2 * 3073] = 10;
    with(&wrong, "record 2 has label 10, expected 0 to 9");
    refused_with(&CIFAR100, &CIFAR100.forms[0], "test.bin", &[100; 3074], "record 0 has label 100, expected 0 to 99");
    refused_with(&CIFAR10, form, "batches.meta.txt", b"cat\ndog\n", "names 2 classes, expected 10");
    let large = vec![b'x'; 70_000];
    refused_with(
        &CIFAR10,
        form,
        "batches.meta.txt",
        &large,
        "oversized: 70000 bytes, expected at most the 65536 bytes",
    );
}

#[test]
fn a_damaged_pickle_is_refused() {
    let form = &CIFAR10.forms[1];
    let with = |content: &[u8], part: &str| refused_with(&CIFAR10, form, "data_batch_2", content, part);
    let one = planes(0);
    let whole = python2("labels", &[3], &one);
    with(&whole[..1000], "not a pickle of CIFAR's: it ends early (at byte ");
    with(
        b"\x80\x02cposix\nsystem\nU\x04true\x85R.",
        "not a pickle of CIFAR's: it asks for `posix.system`, but nothing",
    );
    with(b"}.", "not a CIFAR batch: a pickle without a numpy array `data`");
    with(&python2("other", &[3], &one), "not a CIFAR batch: a pickle without a list of integers `labels`");
    with(&python2("labels", &[3, 4], &one), "1 images but 2 labels");
    with(&python2("labels", &[10], &one), "record 0 has label 10, expected 0 to 9");
    let mut negative = python2("labels", &[0; 5], &one);
    let at = negative.windows(10).position(|bytes| bytes == b"K\0K\0K\0K\0K\0").unwrap();
    negative[at..at + 10].copy_from_slice(b"I-00000001");
    negative.insert(at + 10, b'\n');
    with(&negative, "record 0 has label -1, expected 0 to 9");
    with(&python2("labels", &[], &[]), "holds no images");
    let mut narrow = whole.clone();
    let at = whole.windows(5).position(|bytes| bytes == b"K\x01M\x00\x0c").unwrap();
    narrow[at..at + 5].copy_from_slice(b"K\x03M\x00\x04");
    with(&narrow, "`data` has shape [3, 1024], expected [N, 3072]");
    refused_with(
        &CIFAR10,
        form,
        "batches.meta",
        b"}.",
        "not CIFAR's: a pickle without a list of strings `label_names`",
    );
}

/// An archive is refused when cut to any of about 20 sizes, and when a byte is changed that only
/// the checksum reveals.
#[test]
fn a_cut_or_damaged_archive_is_refused() {
    for form in &CIFAR10.forms {
        let root = tempfile::tempdir().unwrap();
        let path = write_archive(root.path(), form, &files(&CIFAR10, form));
        let whole = std::fs::read(&path).unwrap();
        for size in (0..whole.len()).step_by(whole.len() / 20).chain([whole.len() - 1]) {
            std::fs::write(&path, &whole[..size]).unwrap();
            refused(&CIFAR10, &path, &["ROOT: cut short or damaged (", HOME]);
        }
        let mut damaged = whole.clone();
        let checksum = whole.len() - 8;
        damaged[checksum] ^= 1;
        std::fs::write(&path, &damaged).unwrap();
        refused(&CIFAR10, &path, &["ROOT: cut short or damaged (", HOME]);
    }
}

/// A tar that ends within a file is refused. The tar is compressed completely, so that gzip finds
/// no fault.
#[test]
fn an_archive_of_a_cut_tar_is_refused() {
    use std::io::{Read, Write};
    let root = tempfile::tempdir().unwrap();
    let form = &CIFAR10.forms[0];
    let path = write_archive(root.path(), form, &files(&CIFAR10, form));
    let mut tar = Vec::new();
    flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap()).read_to_end(&mut tar).unwrap();
    // Cut positions, behind three headers and two small files: within a record of test_batch.bin,
    // and after one record.
    for kept in [3000, 3073] {
        let mut cut = GzEncoder::new(std::fs::File::create(&path).unwrap(), Compression::fast());
        cut.write_all(&tar[..5 * 512 + kept]).unwrap();
        cut.finish().unwrap();
        refused(&CIFAR10, &path, &["ROOT: cut short or damaged (", HOME]);
    }
}

#[test]
fn the_real_cifar10_is_whole() {
    let root = std::env::var_os("FOLDCONV_DATA").map(PathBuf::from);
    let Some(root) = root.filter(|root| root.join("cifar-10-batches-bin").is_dir()) else {
        eprintln!("skipped: FOLDCONV_DATA names no folder with cifar-10-batches-bin");
        return;
    };
    let data = Cifar10Config {}.load(Some(&root)).unwrap();
    for (split, count) in [(data.train, 5000), (data.test, 1000)] {
        assert_eq!(split.images.size(), [10 * count, 32, 32, 3]);
        let counts = split.labels.bincount(None::<tch::Tensor>, 10);
        assert_eq!(Vec::<i64>::try_from(counts).unwrap(), [count; 10]);
    }
}
