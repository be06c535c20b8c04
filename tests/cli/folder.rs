//! Image folders through the binary: training, refusals and files left out; and the decoded pixels
//! compared with torchvision's.
//!
//! Real images are read from the folder in FOLDCONV_IMAGES (`tiny10`, `imagenet-sample`). Without
//! it, the tests that need them print a note and pass.

use crate::common::peer::{peer, script};
use crate::common::{arg, error, foldconv, run, start, stderr, stdout, wait_for_checkpoint};
use foldconv::config::Document;
use foldconv::data::folder::decode::decode;
use foldconv::train::trainer::Trainer;
use image::{ExtendedColorType, ImageEncoder, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tch::Device;

const CONFIG: &str =
    "data: {name: folder, folder: small, classes: 3, size: 16, augment: {random_resized_crop: 16, flip: true}}
net: {name: smallnet}
operator: {name: mdconv}
train: {epochs: 2, batch: 8}
";

/// Creates 12 training and 4 test images of each of 3 classes, in JPEG and PNG, and the config, and
/// returns the path of the config.
fn small(root: &Path) -> PathBuf {
    for (split, count) in [("train", 12), ("val", 4)] {
        for at in 0..3 * count {
            let folder = root.join("small").join(split).join(["ant", "bee", "cat"][at % 3]);
            std::fs::create_dir_all(&folder).unwrap();
            let (width, height) = (20 + at as u32 % 5, 24);
            let pixels: Vec<u8> = (0..width * height * 3).map(|byte| (byte as usize * (at % 3 + 1)) as u8).collect();
            let mut file = Vec::new();
            if at % 2 == 0 {
                JpegEncoder::new(&mut file).write_image(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
                std::fs::write(folder.join(format!("{at:02}.JPEG")), file).unwrap();
            } else {
                PngEncoder::new(&mut file).write_image(&pixels, width, height, ExtendedColorType::Rgb8).unwrap();
                std::fs::write(folder.join(format!("{at:02}.png")), file).unwrap();
            }
        }
    }
    std::fs::write(root.join("a.yaml"), CONFIG).unwrap();
    root.join("a.yaml")
}

fn train(root: &Path, config: &Path, out: &Path, more: &[&str]) -> std::process::Output {
    let data = format!("data.root={}", root.display());
    let args = ["train", &arg(config), "--out", &arg(out), "--threads", "2", "--set", &data].map(String::from);
    run(args.iter().map(String::as_str).chain(more.iter().copied()))
}

fn real_images() -> Option<PathBuf> {
    let folder = std::env::var_os("FOLDCONV_IMAGES").map(PathBuf::from);
    if folder.is_none() {
        eprintln!("left out: FOLDCONV_IMAGES says where real images are");
    }
    folder
}

#[test]
fn a_folder_is_trained_folded_and_evaluated() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let config = small(root);
    std::fs::write(root.join("small/train/ant/notes.txt"), "").unwrap();
    let out = root.join("out");
    let trained = train(root, &config, &out, &[]);
    assert!(stdout(&trained).contains("100.00 % of predictions agree"));
    assert!(stderr(&trained).contains("small/train: 1 files are no .jpg, .jpeg or .png of a class and are ignored"));
    let evaluated = stdout(&run(["eval", &arg(&out.join("compact.safetensors"))]));
    assert!(evaluated.contains("on 12 images of folder"), "{evaluated}");
    let described = stdout(&run(["describe", &arg(&config), "--json"]));
    assert!(!described.is_empty(), "a network can be described without its images");
}

#[test]
fn a_model_is_measured_on_folders_of_its_classes_from_everywhere() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let config = small(root);
    let rooted = CONFIG.replace("folder: small", "folder: small, root: .").replace("epochs: 2", "epochs: 1");
    std::fs::write(&config, rooted).unwrap();
    let out = root.join("out");
    // A root given in a config file is relative to the folder of that file, wherever the program is
    // called.
    stdout(&run(["train", &arg(&config), "--out", &arg(&out), "--threads", "2"]));
    let model = arg(&out.join("model.safetensors"));
    let measured = |args: &[&str]| {
        let output = foldconv().current_dir(root).args(["eval", &model, "--json"]).args(args).output().unwrap();
        (stdout(&output), stderr(&output))
    };
    let (own, said) = measured(&[]);
    assert!(!said.contains("its classes are"), "{said}");
    let part = "{name: folder, folder: small, size: 16, classes: 3, augment: {}}";
    for args in
        [&["--data", "folder"][..], &["--data", "{folder: ./small}", "--root", "."], &["--data", part, "--root", "."]]
    {
        assert_eq!(measured(args).0, own, "{args:?}");
    }
    // An imported model knows no folder; its classes and size come from the data given to `import`.
    let (shape, weights) = ("{name: external, classes: 3, size: 16}", arg(&root.join("weights.pth")));
    stdout(&run(["export", &model, "--format", "pytorch", "-o", &weights]));
    let taken = arg(&root.join("taken.safetensors"));
    let import = ["import", &weights, "--net", "smallnet", "--operator", "mdconv", "--data", shape, "-o", &taken];
    stdout(&run([&import[..], &["--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225"]].concat()));
    let evaluated = run(["eval", &taken, "--data", "{name: folder, folder: small}", "--root", &arg(root), "--json"]);
    assert_eq!(stdout(&evaluated), own);

    let refused = |args: &[&str]| error(&run([&["compare", &model][..], args].concat()), 2);
    assert_eq!(refused(&["--data", "shapes"]), "--data: the set has 10 classes, and the model was trained on 3");
    let misspelt = refused(&["--data", "foldr"]);
    assert!(misspelt.starts_with("--data foldr: data") && misspelt.contains("did you mean `folder`?"), "{misspelt}");
    assert!(refused(&["--data", "{size: 0}"]).starts_with("--data {size: 0}: data.size: 0; give 1 to 8192"));
    for split in ["train", "val"] {
        std::fs::rename(root.join("small").join(split).join("bee"), root.join("small").join(split).join("bug"))
            .unwrap();
    }
    let said = measured(&[]).1;
    assert!(said.contains("its classes are other ones than those of the data (`bee` is `bug` there)"), "{said}");
}

#[test]
fn mistakes_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let config = small(root);
    let refused = |set: &str| error(&train(root, &config, &root.join("out"), &["--set", set]), 2);
    assert_eq!(
        refused("data.classes=4"),
        format!("data.classes: 4, but {}/small/train holds 3 class folders; give `classes: 3`", root.display())
    );
    assert!(
        refused("data.folder=gone")
            .ends_with("gone/train: no such folder; an image folder has train/CLASS/*.jpg and val/CLASS/*.jpg")
    );
    assert!(refused("data.folder=/small").contains("data.folder: /small; give the folder above it as data.root"));
    assert!(refused("data.size=0").contains("data.size: 0; give 1 to 8192"));
    assert!(refused("data.on_corrupt=ignore").contains("on_corrupt: unknown value `ignore`, known are error, skip"));
    assert!(refused("data.augment.resize=12").contains("data.augment.resize: 12; give 16 or more"));
    let no_root = run(["train", &arg(&config), "--out", &arg(&root.join("out"))]);
    assert!(error(&no_root, 2).starts_with("data.root is not given"));
    std::fs::rename(root.join("small/val/cat"), root.join("small/val/dog")).unwrap();
    assert!(refused("seed=0").ends_with("small/val/dog: a class that train doesn't have"));
}

#[test]
fn a_damaged_image_ends_the_trial_by_name_or_is_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let config = small(root);
    let file = root.join("small/train/bee/10.JPEG");
    let whole = std::fs::read(&file).unwrap();
    let cut = |end: usize| whole[..end].to_vec();
    let flipped = |at: usize| whole.iter().enumerate().map(|(i, byte)| byte ^ if i == at { 0xff } else { 0 }).collect();
    let frame = whole.windows(2).position(|pair| pair == [0xff, 0xc0]).unwrap();
    let forms: [Vec<u8>; 7] = [
        vec![],
        b"<html>".to_vec(),
        cut(whole.len() / 2),
        cut(whole.len() - 2),
        cut(100),
        flipped(1),
        // No frame header is left.
        flipped(frame + 1),
    ];
    for damaged in &forms {
        std::fs::write(&file, damaged).unwrap();
        let said = error(&train(root, &config, &root.join("out"), &[]), 2);
        assert!(said.starts_with(&format!("{}: ", file.display())), "{said}");
        assert!(said.contains("data.on_corrupt=skip"), "{said}");
    }
    let left_out = train(root, &config, &root.join("skipped"), &["--set", "data.on_corrupt=skip"]);
    stdout(&left_out);
    // The file is reported once, though there are two epochs.
    assert_eq!(stderr(&left_out).matches("bee/10.JPEG").count(), 1, "{}", stderr(&left_out));
    assert!(stderr(&left_out).contains("left out, with 0 before it"));
}

/// Between the scan of the folder and the reading of its images, an image is replaced by another,
/// and then removed.
#[test]
fn an_image_that_changes_or_vanishes_once_the_folder_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let data = format!("data.root={}", root.display());
    let config = Document::read(&small(root), &[data]).unwrap().config().unwrap();
    let trainer = Trainer::new(&config, config.data.load().unwrap(), Device::Cpu).unwrap();
    let epoch = || trainer.batches(0, 0).collect::<anyhow::Result<Vec<_>>>();
    let file = root.join("small/train/bee/10.JPEG");
    std::fs::copy(root.join("small/train/cat/11.png"), &file).unwrap();
    assert_eq!(epoch().unwrap().len(), 5, "the content decides, whatever the name says");
    std::fs::remove_file(&file).unwrap();
    let refused = epoch().err().unwrap();
    assert_eq!(foldconv::error::exit_status(&refused), 2);
    assert!(refused.to_string().starts_with(&format!("{}: cannot read: No such file", file.display())), "{refused}");
}

/// Returns the JPEG `file` with an EXIF segment whose orientation says that the image lies on its
/// side.
fn on_its_side(file: &[u8]) -> Vec<u8> {
    let tiff = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0";
    let body = [b"Exif\0\0".as_slice(), tiff].concat();
    let length = (body.len() as u16 + 2).to_be_bytes();
    [&file[..2], &[0xff, 0xe1], &length, &body, &file[2..]].concat()
}

/// Returns the JPEG `file`, whose JFIF marker implies YCbCr, with an Adobe marker behind it that
/// says RGB.
fn with_adobe(file: &[u8]) -> Vec<u8> {
    let at = 4 + usize::from(u16::from_be_bytes([file[4], file[5]]));
    [&file[..at], b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0", &file[at..]].concat()
}

/// Returns the JPEG `file` with its colour components renamed in the frame and in each scan, with
/// or without the JFIF marker.
fn with_names(file: &[u8], names: &[u8; 3], jfif: bool) -> Vec<u8> {
    let mut file = file.to_vec();
    let mut at = 2;
    while at + 4 < file.len() {
        let segment = at;
        match file[at + 1] {
            0xc2 => (0..3).for_each(|k| file[segment + 10 + 3 * k] = names[k]),
            0xda => {
                for k in 0..usize::from(file[at + 4]) {
                    file[segment + 5 + 2 * k] = names[usize::from(file[segment + 5 + 2 * k]) - 1];
                }
            }
            _ => {}
        }
        at += 2 + usize::from(u16::from_be_bytes([file[at + 2], file[at + 3]]));
        // Skips the scan's data up to the next marker.
        while at + 1 < file.len() && (file[at] != 0xff || matches!(file[at + 1], 0 | 0xd0..=0xd7)) {
            at += 1;
        }
    }
    if !jfif {
        let end = 4 + usize::from(u16::from_be_bytes([file[4], file[5]]));
        file.drain(2..end);
    }
    file
}

/// Returns files of every kind, including the real images if there are any.
fn files_to_compare(folder: &Path) -> Vec<PathBuf> {
    let fixture = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/images").join(name);
    let cmyk = std::fs::read(fixture("cmyk.jpg")).unwrap();
    let adobe = cmyk.windows(5).position(|part| part == b"Adobe").unwrap();
    // The same bytes read as YCCK: wrong colours, but the same in every decoder.
    let mut ycck = cmyk.clone();
    ycck[adobe + 11] = 2;
    let progressive = std::fs::read(fixture("progressive.jpg")).unwrap();
    let made = [
        ("ycck.jpg", ycck),
        ("side.jpg", on_its_side(&progressive)),
        ("png.jpg", png_by_another_name()),
        ("jfif_and_adobe.jpg", with_adobe(&progressive)),
        ("jfif_and_names.jpg", with_names(&progressive, b"RGB", true)),
        ("names.jpg", with_names(&progressive, b"RGB", false)),
        ("other_names.jpg", with_names(&progressive, &[7, 8, 9], false)),
    ];
    let mut files = ["cmyk.jpg", "progressive.jpg", "planar.jpg", "coarse.jpg"].map(fixture).to_vec();
    for (name, bytes) in made {
        std::fs::write(folder.join(name), bytes).unwrap();
        files.push(folder.join(name));
    }
    if let Some(real) = real_images() {
        for part in ["tiny10/train", "tiny10/val", "imagenet-sample"] {
            for class in std::fs::read_dir(real.join(part)).unwrap() {
                files.extend(std::fs::read_dir(class.unwrap().path()).unwrap().map(|file| file.unwrap().path()));
            }
        }
    }
    files
}

/// Returns a 16-bit grey PNG, a kind that Pillow converts in an unexpected way.
fn png_by_another_name() -> Vec<u8> {
    let values: Vec<u8> = (0..60u16).flat_map(|at| (at * 1000).to_ne_bytes()).collect();
    let mut file = Vec::new();
    PngEncoder::new(&mut file).write_image(&values, 10, 6, ExtendedColorType::L16).unwrap();
    file
}

#[test]
fn pixels_are_those_of_torchvisions_loader() {
    if !peer() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let files = files_to_compare(folder.path());
    let list: Vec<&str> = files.iter().map(|file| file.to_str().unwrap()).collect();
    std::fs::write(folder.path().join("list"), list.join("\n")).unwrap();
    let sizes: Vec<[usize; 2]> = serde_json::from_str(&script("decode.py", &[arg(folder.path())])).unwrap();
    let pixels = std::fs::read(folder.path().join("pixels")).unwrap();
    let mut start = 0;
    for (file, size) in files.iter().zip(sizes) {
        let found = decode(&std::fs::read(file).unwrap()).unwrap();
        assert_eq!([found.width, found.height], size, "{}", file.display());
        let expected = &pixels[start..start + found.pixels.len()];
        start += expected.len();
        let differences = found.pixels.iter().zip(expected).map(|(a, b)| u64::from(a.abs_diff(*b)));
        let (sum, most) = differences.fold((0, 0), |(sum, most), d| (sum + d, most.max(d)));
        let mean = sum as f64 / expected.len() as f64;
        // Both decoders round in the inverse cosine transform, in the interpolation of chroma and
        // in the conversion of colours: a level or two each. A mean of half a level is twice that
        // of the worst real image.
        assert!(mean < 0.5 && most <= 8, "{}: mean {mean}, most {most} of 255", file.display());
    }
    assert_eq!(start, pixels.len());
}

#[test]
fn ten_classes_of_tiny_imagenet_are_trained_folded_and_resumed_bit_for_bit() {
    let Some(images) = real_images() else { return };
    let folder = tempfile::tempdir().unwrap();
    let sweep = Path::new(env!("CARGO_MANIFEST_DIR")).join("experiments/folder-tiny10.yaml");
    let trial = Document::read(&sweep, &[]).unwrap().config().unwrap();
    let config = folder.path().join("trial.yaml");
    std::fs::write(&config, trial.to_yaml()).unwrap();
    let root = format!("data.root={}", images.display());
    // The training algorithm is fixed: the fastest of two runs need not be the same.
    let more = ["--set", "train.epochs=2", "--set", "train.warmup=0", "--set", "train.algorithm=moments"];
    let undisturbed = folder.path().join("undisturbed");
    let said = stdout(&train(&images, &config, &undisturbed, &more));
    assert!(said.contains("100.00 % of predictions agree"), "{said}");

    let out = folder.path().join("terminated");
    let mut child = start(&config, &out, &[more.as_slice(), &["--set", &root]].concat());
    wait_for_checkpoint(&mut child, &out);
    // Waits into the second epoch's steps.
    std::thread::sleep(Duration::from_millis(300));
    // SAFETY: the child has not been waited for.
    unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGTERM) };
    let stopped = child.wait_with_output().unwrap();
    assert!(error(&stopped, 1).contains("interrupted after epoch 1, step "), "{}", stderr(&stopped));
    let resumed = train(&images, &config, &out, &more);
    assert!(stderr(&resumed).contains("going on after epoch 1, step "), "{}", stderr(&resumed));
    stdout(&resumed);
    let model = |out: &Path| std::fs::read(out.join("model.safetensors")).unwrap();
    assert!(model(&out) == model(&undisturbed));
}

/// The check prints the counts of each class and the name of every damaged file, for both splits.
#[test]
fn a_folder_is_checked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    small(root);
    let root = arg(root);
    let options = ["--set", "folder=small", "--set", "classes=3"];
    let check = || run(["data", "check", "folder", "--root", &root].into_iter().chain(options));
    let text = stdout(&check());
    let rows: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
    for row in [["bee", "12", "4"].as_slice(), &["all", "3", "36", "12"]] {
        assert!(rows.iter().any(|found| found == row), "{row:?}:\n{text}");
    }
    for (file, content) in [("train/bee/01.png", ""), ("val/cat/02.JPEG", "GIF89a")] {
        std::fs::write(Path::new(&root).join("small").join(file), content).unwrap();
    }
    let output = check();
    assert!(error(&output, 2).contains("folder: 2 damaged files"));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("train/bee/01.png: is empty") && text.contains("val/cat/02.JPEG: neither JPEG"), "{text}");
}
