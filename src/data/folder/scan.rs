//! Listing of an image folder: the classes and the files of both splits, found without opening an
//! image.
//!
//! Classes and files are in the order of torchvision's `ImageFolder`: classes by name, the files of
//! a class folder by folder, each folder by name. Labels and indices therefore agree with
//! torchvision's.

use crate::bad_request;
use crate::error::BadRequest;
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::{self, DirEntry, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names of the folder of the test split; the first that exists is used.
pub const TEST_FOLDERS: [&str; 4] = ["val", "valid", "validation", "test"];

/// Tiny-ImageNet's list of the classes of the images in `val/images`.
const ANNOTATIONS: &str = "val_annotations.txt";

/// The files of one split.
#[derive(Debug, Default, PartialEq)]
pub struct Listing {
    /// Folder of the split.
    pub folder: PathBuf,
    /// Path of each file relative to the folder, and its class.
    pub files: Vec<(PathBuf, i64)>,
    /// Number of ignored files: files whose names are not those of images, and images of unknown
    /// class. Hidden files are not counted.
    pub ignored: usize,
}

/// Result of [`scan`].
#[derive(Debug, PartialEq)]
pub struct Scan {
    /// Classes in order of name: the folders of the training split.
    pub classes: Vec<String>,
    /// The training split.
    pub train: Listing,
    /// The split on which top-1 is reported.
    pub test: Listing,
}

/// Lists `root/train` and `root/val` (or another of [`TEST_FOLDERS`]).
///
/// # Errors
/// One line that names a folder that is missing, empty or can't be read, or a class that only the
/// test split has.
pub fn scan(root: &Path) -> Result<Scan> {
    let folder = root.join("train");
    if !folder.is_dir() {
        bad_request!("{}: no such folder; an image folder has train/CLASS/*.jpg and val/CLASS/*.jpg", folder.display());
    }
    let Some(test) = TEST_FOLDERS.iter().map(|name| root.join(name)).find(|folder| folder.is_dir()) else {
        bad_request!("{}: has train, but none of {}", root.display(), TEST_FOLDERS.join(", "));
    };
    let (names, mut train) = class_folders(&folder)?;
    let classes: BTreeMap<&str, i64> = names.iter().map(String::as_str).zip(0..).collect();
    for name in &names {
        let before = train.files.len();
        train.take(name, classes[name.as_str()])?;
        if train.files.len() == before {
            bad_request!("{}: holds no .jpg, .jpeg or .png file", folder.join(name).display());
        }
    }
    if names.is_empty() {
        return Err(no_classes(&folder).into());
    }
    let test = if test.join(ANNOTATIONS).is_file() && test.join("images").is_dir() {
        annotated(&test, &classes)?
    } else {
        second_split(&test, &classes)?
    };
    if test.files.is_empty() {
        bad_request!("{}: holds no .jpg, .jpeg or .png file", test.folder.display());
    }
    Ok(Scan { train, test, classes: names })
}

/// Lists the files of `val/CLASS`.
fn second_split(folder: &Path, classes: &BTreeMap<&str, i64>) -> Result<Listing> {
    let (names, mut listing) = class_folders(folder)?;
    if names.is_empty() {
        return Err(no_classes(folder).into());
    }
    for name in names {
        let Some(class) = classes.get(name.as_str()) else {
            bad_request!("{}: a class that train doesn't have", folder.join(name).display());
        };
        listing.take(&name, *class)?;
    }
    Ok(listing)
}

/// Lists the files of `val/images`. Their classes are in a file of Tiny-ImageNet with one line per
/// image: name, class and a box, separated by tabs.
fn annotated(folder: &Path, classes: &BTreeMap<&str, i64>) -> Result<Listing> {
    let path = folder.join(ANNOTATIONS);
    let text = crate::files::read_text(&path)?;
    let mut class_of = BTreeMap::new();
    for (line, number) in text.lines().zip(1..).filter(|(line, _)| !line.trim().is_empty()) {
        let mut columns = line.split('\t');
        let (Some(file), Some(class)) = (columns.next(), columns.next()) else {
            bad_request!("{}: line {number}: give a file and its class, parted by a tab", path.display());
        };
        let Some(class) = classes.get(class.trim()) else {
            bad_request!("{}: line {number}: `{class}` is a class that train doesn't have", path.display());
        };
        class_of.insert(file.to_string(), *class);
    }
    let mut listing = Listing { folder: folder.to_path_buf(), ..Listing::default() };
    listing.take("images", 0)?;
    let found = std::mem::take(&mut listing.files);
    let images = found.len();
    let known = |path: &Path| path.file_name().and_then(|name| class_of.get(name.to_str()?).copied());
    listing.files = found.into_iter().filter_map(|(path, _)| known(&path).map(|class| (path, class))).collect();
    listing.ignored += images - listing.files.len();
    let here: BTreeSet<_> = listing.files.iter().filter_map(|(path, _)| path.file_name()).collect();
    if let Some(missing) = class_of.keys().find(|name| !here.contains(OsStr::new(name))) {
        bad_request!("{}: names {missing}, which images doesn't hold", path.display());
    }
    Ok(listing)
}

/// Returns the error for a split that has no class folders.
fn no_classes(folder: &Path) -> BadRequest {
    BadRequest(format!("{0}: the folders of the classes are missing; images go into {0}/CLASS", folder.display()))
}

/// Returns the sorted names of the class folders of a split, and an empty listing that counts the
/// files beside these folders as ignored.
fn class_folders(folder: &Path) -> Result<(Vec<String>, Listing)> {
    let mut listing = Listing { folder: folder.to_path_buf(), ..Listing::default() };
    let mut names = Vec::new();
    for entry in entries(folder)? {
        if metadata(&entry)?.is_dir() {
            match entry.file_name().into_string() {
                Ok(name) => names.push(name),
                Err(_) => bad_request!("{}: the name of a class must be UTF-8", entry.path().display()),
            }
        } else {
            listing.ignored += 1;
        }
    }
    Ok((names, listing))
}

impl Listing {
    /// Adds the images of a class folder and of the folders below it.
    fn take(&mut self, name: &str, class: i64) -> Result<()> {
        let start = metadata_of(&self.folder.join(name))?;
        self.walk(Path::new(name), class, &mut vec![identity(&start)])
    }

    /// Adds the images of a folder, recursively. `above` are the identities of the folders on the
    /// way down; a link back to one of these folders is not followed.
    fn walk(&mut self, folder: &Path, class: i64, above: &mut Vec<(u64, u64)>) -> Result<()> {
        let mut folders = Vec::new();
        for entry in entries(&self.folder.join(folder))? {
            let path = folder.join(entry.file_name());
            // Only links are resolved, because a system call for each of a million files takes
            // time.
            let kind = entry.file_type().map_err(|error| unreadable(&entry.path(), &error))?;
            let target = if kind.is_symlink() { Some(metadata(&entry)?) } else { None };
            if target.as_ref().map_or(kind.is_dir(), Metadata::is_dir) {
                folders.push(path);
            } else if is_image(&path) {
                self.files.push((path, class));
            } else {
                self.ignored += 1;
            }
        }
        for folder in folders {
            let here = identity(&metadata_of(&self.folder.join(&folder))?);
            if !above.contains(&here) {
                above.push(here);
                self.walk(&folder, class, above)?;
                above.pop();
            }
        }
        Ok(())
    }
}

/// Returns the entries of a folder except hidden ones, sorted by name.
fn entries(folder: &Path) -> Result<Vec<DirEntry>> {
    let read = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<DirEntry>>>);
    let mut entries = read.map_err(|error| unreadable(folder, &error))?;
    entries.retain(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."));
    entries.sort_by_key(DirEntry::file_name);
    Ok(entries)
}

/// Returns whether the extension is that of a JPEG or PNG file.
fn is_image(path: &Path) -> bool {
    path.extension().is_some_and(|end| ["jpg", "jpeg", "png"].iter().any(|known| end.eq_ignore_ascii_case(known)))
}

/// Returns device and inode, which identify a folder whatever links lead to it.
fn identity(metadata: &Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

/// Returns the metadata of an entry, or of its target if the entry is a link.
fn metadata(entry: &DirEntry) -> Result<Metadata, BadRequest> {
    metadata_of(&entry.path())
}

fn metadata_of(path: &Path) -> Result<Metadata, BadRequest> {
    fs::metadata(path).map_err(|error| unreadable(path, &error))
}

fn unreadable(path: &Path, error: &std::io::Error) -> BadRequest {
    BadRequest(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// Creates a folder with these empty files.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    fn listed(listing: &Listing) -> Vec<(&str, i64)> {
        listing.files.iter().map(|(path, class)| (path.to_str().unwrap(), *class)).collect()
    }

    fn refusal(root: &tempfile::TempDir) -> String {
        scan(root.path()).unwrap_err().to_string().replace(root.path().to_str().unwrap(), "ROOT")
    }

    #[test]
    fn classes_and_files_are_sorted_by_name_and_labels_are_those_of_the_training_split() {
        let root = tree(&[
            "train/b/2.jpg",
            "train/b/10.JPEG",
            "train/a/x.png",
            "train/a/.hidden.jpg",
            "train/a/notes.txt",
            "train/.cache/y.jpg",
            "train/list.csv",
            "train/B/z.jpg",
            "val/b/1.jpg",
            "test/a/0.jpg",
        ]);
        let found = scan(root.path()).unwrap();
        assert_eq!(found.classes, ["B", "a", "b"], "by code points, as Python sorts");
        let expected = [("B/z.jpg", 0), ("a/x.png", 1), ("b/10.JPEG", 2), ("b/2.jpg", 2)];
        assert_eq!((listed(&found.train), found.train.ignored), (expected.to_vec(), 2));
        assert_eq!((listed(&found.test), found.test.ignored), (vec![("b/1.jpg", 2)], 0), "val comes before test");
    }

    #[test]
    fn tiny_imagenets_extra_level_and_its_annotations_are_read() {
        let root = tree(&[
            "train/n1/images/n1_0.JPEG",
            "train/n1/n1_boxes.txt",
            "train/n2/images/n2_0.JPEG",
            "val/images/val_0.JPEG",
            "val/images/val_1.JPEG",
            "val/images/val_2.JPEG",
            "test/images/test_0.JPEG",
        ]);
        let annotations = root.path().join("val/val_annotations.txt");
        fs::write(&annotations, "val_0.JPEG\tn2\t0\t32\t44\t62\nval_1.JPEG\tn1\t52\t55\t57\t59\n").unwrap();
        let found = scan(root.path()).unwrap();
        assert_eq!(listed(&found.train), [("n1/images/n1_0.JPEG", 0), ("n2/images/n2_0.JPEG", 1)]);
        assert_eq!(listed(&found.test), [("images/val_0.JPEG", 1), ("images/val_1.JPEG", 0)]);
        assert_eq!((found.train.ignored, found.test.ignored), (1, 1));

        fs::write(&annotations, "val_0.JPEG\tn3\n").unwrap();
        assert_eq!(refusal(&root), "ROOT/val/val_annotations.txt: line 1: `n3` is a class that train doesn't have");
        fs::write(&annotations, "val_0.JPEG n1\n").unwrap();
        assert!(refusal(&root).contains("line 1: give a file and its class"));
        fs::write(&annotations, "val_0.JPEG\tn1\nval_9.JPEG\tn1\n").unwrap();
        assert_eq!(refusal(&root), "ROOT/val/val_annotations.txt: names val_9.JPEG, which images doesn't hold");
    }

    #[test]
    fn links_are_followed_but_not_in_a_circle() {
        let root = tree(&["train/a/0.jpg", "val/a/0.jpg", "store/b/deep/1.jpg", "store/2.png"]);
        let at = |path: &str| root.path().join(path);
        symlink(at("store/b"), at("train/b")).unwrap();
        symlink(at("store/b"), at("store/b/deep/back")).unwrap();
        symlink(at("store/2.png"), at("train/a/2.png")).unwrap();
        let found = scan(root.path()).unwrap();
        assert_eq!(listed(&found.train), [("a/0.jpg", 0), ("a/2.png", 0), ("b/deep/1.jpg", 1)]);

        symlink(at("store/gone.png"), at("train/a/3.png")).unwrap();
        assert!(refusal(&root).starts_with("ROOT/train/a/3.png: No such file"), "{}", refusal(&root));
    }

    #[test]
    fn what_is_missing_is_said_in_one_line() {
        assert!(refusal(&tree(&["val/a/0.jpg"])).starts_with("ROOT/train: no such folder; "));
        assert_eq!(refusal(&tree(&["train/a/0.jpg"])), "ROOT: has train, but none of val, valid, validation, test");
        let missing =
            |split| format!("ROOT/{split}: the folders of the classes are missing; images go into ROOT/{split}/CLASS");
        assert_eq!(refusal(&tree(&["train/0.jpg", "val/a/0.jpg"])), missing("train"));
        assert_eq!(refusal(&tree(&["train/a/0.jpg", "val/0.jpg"])), missing("val"));
        assert_eq!(
            refusal(&tree(&["train/a/0.gif", "val/a/0.jpg"])),
            "ROOT/train/a: holds no .jpg, .jpeg or .png file"
        );
        assert_eq!(refusal(&tree(&["train/a/0.jpg", "val/a/x"])), "ROOT/val: holds no .jpg, .jpeg or .png file");
        assert_eq!(refusal(&tree(&["train/a/0.jpg", "val/b/0.jpg"])), "ROOT/val/b: a class that train doesn't have");
    }
}
