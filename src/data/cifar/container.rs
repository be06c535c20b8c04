//! Locates CIFAR in the folder that the user gave, and reads its files from a folder or an archive.

use super::{Distribution, HOME, Variant, batch};
use crate::{bad_request, files};
use anyhow::Result;
use flate2::read::GzDecoder;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::{Path, PathBuf};

/// Maximum size of an unpacked archive, in bytes; the official archives unpack to 186 MB.
const MOST_UNPACKED: u64 = 1 << 30;

/// A folder or an archive with the files of one form of the data set.
#[derive(Debug)]
pub enum Container {
    Folder(PathBuf),
    Archive(PathBuf),
}

/// A function that takes the name of a file, its path with the container for errors, and its
/// content.
type Visitor<'v> = &'v mut dyn FnMut(&str, &str, &[u8]) -> Result<()>;

/// Locates a form of the data set. Searched in this order: a folder below `root`, `root` itself, an
/// archive below `root`. `root` may also be an archive.
///
/// # Errors
/// A [`crate::error::BadRequest`] that lists the names searched for.
pub fn locate<'v>(variant: &'v Variant, root: &Path) -> Result<(&'v Distribution, Container)> {
    let forms = &variant.forms;
    let [binary, python] = forms;
    if root.is_dir() {
        if let Some(form) = forms.iter().find(|form| root.join(form.folder).is_dir()) {
            return Ok((form, Container::Folder(root.join(form.folder))));
        }
        let is_own = |form: &&Distribution| {
            root.file_name().is_some_and(|name| name == form.folder)
                || form.batches().any(|file| root.join(file).is_file())
        };
        if let Some(form) = forms.iter().find(is_own) {
            return Ok((form, Container::Folder(root.to_path_buf())));
        }
        if let Some(form) = forms.iter().find(|form| root.join(form.archive).is_file()) {
            return Ok((form, Container::Archive(root.join(form.archive))));
        }
    } else if root.is_file() {
        if let Some(form) = forms.iter().find(|form| root.file_name().is_some_and(|name| name == form.archive)) {
            return Ok((form, Container::Archive(root.to_path_buf())));
        }
        bad_request!(
            "{}: a file that is neither {} nor {} (--root; {HOME})",
            root.display(),
            binary.archive,
            python.archive
        );
    }
    let what = if root.is_dir() { "holds none of" } else { "no such folder; it should hold one of" };
    bad_request!(
        "{}: {what} {}/, {}/, {}, {} (--root; {} is to be had from {HOME})",
        root.display(),
        binary.folder,
        python.folder,
        binary.archive,
        python.archive,
        variant.name
    )
}

impl Container {
    /// Returns the path of a file for errors: the path in a folder, or the archive with the name of
    /// the file.
    pub fn path_of(&self, file: &str) -> String {
        match self {
            Container::Folder(folder) => folder.join(file).display().to_string(),
            Container::Archive(archive) => format!("{} ({file})", archive.display()),
        }
    }

    /// Calls `visitor` with each file of the form that exists, one file at a time. A file that is
    /// too large is refused without being read.
    ///
    /// # Errors
    /// A [`crate::error::BadRequest`] for a file that is too large or can't be read, or an archive
    /// that is damaged. Errors of `visitor` are passed on.
    pub fn visit(&self, variant: &Variant, form: &Distribution, visitor: Visitor) -> Result<()> {
        match self {
            Container::Folder(folder) => self.visit_folder(folder, variant, form, visitor),
            Container::Archive(archive) => self.visit_archive(archive, variant, form, visitor),
        }
    }

    fn visit_folder(&self, folder: &Path, variant: &Variant, form: &Distribution, visitor: Visitor) -> Result<()> {
        for file in form.batches().chain([form.names]) {
            let path = self.path_of(file);
            // The caller decides about missing files, because the file of class names is optional.
            let Ok(metadata) = std::fs::metadata(folder.join(file)) else { continue };
            batch::check_size(variant, form, file, &path, metadata.len())?;
            visitor(file, &path, &files::read(&folder.join(file))?)?;
        }
        Ok(())
    }

    fn visit_archive(&self, archive: &Path, variant: &Variant, form: &Distribution, visitor: Visitor) -> Result<()> {
        let stream = match File::open(archive) {
            Ok(file) => GzDecoder::new(BufReader::new(file)).take(MOST_UNPACKED),
            Err(error) => bad_request!("{}: cannot read: {error}", archive.display()),
        };
        let mut tar = tar::Archive::new(stream);
        // Raw entries: the tar reader would otherwise read a long name into memory, whatever its
        // length. CIFAR's archives have no long names.
        let entries = match tar.entries() {
            Ok(entries) => entries.raw(true),
            Err(error) => return damaged(archive, error),
        };
        for entry in entries {
            let mut entry = match entry {
                Ok(entry) => entry,
                Err(error) => return damaged(archive, error),
            };
            let (kind, name) = (entry.header().entry_type(), entry.path_bytes());
            // Nothing is written to disk, so these entries could do no harm, but CIFAR's archives
            // have none.
            if files::leaves_folder(&name) || kind.is_symlink() || kind.is_hard_link() {
                bad_request!("{}: has a link, or a name that leaves it; get it again from {HOME}", archive.display());
            }
            if !kind.is_file() {
                continue;
            }
            let name = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
            let Some(file) = form.batches().chain([form.names]).find(|file| file.as_bytes() == name) else { continue };
            let path = self.path_of(file);
            batch::check_size(variant, form, file, &path, entry.size())?;
            let (size, mut bytes) = (entry.size(), Vec::new());
            match entry.read_to_end(&mut bytes) {
                Ok(read) if read as u64 == size => {}
                Ok(_) => return damaged(archive, std::io::ErrorKind::UnexpectedEof.into()),
                Err(error) => return damaged(archive, error),
            }
            visitor(file, &path, &bytes)?;
        }
        // gzip compares its checksum, which is at the end, only after all data have been read.
        match std::io::copy(&mut tar.into_inner(), &mut std::io::sink()) {
            Ok(_) => Ok(()),
            Err(error) => damaged(archive, error),
        }
    }
}

fn damaged(archive: &Path, error: std::io::Error) -> Result<()> {
    bad_request!("{}: cut short or damaged ({error}); get it again from {HOME}", archive.display())
}
