//! Images of a split that stay in their files until they are needed.

use super::decode::{Rgb, decode, decode_twice};
use super::scan::Listing;
use crate::{bad_request, note};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// Policy for files that can't be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnCorrupt {
    /// The run ends with an error that names the file.
    #[default]
    Error,
    /// The file is left out of its batch, and named on stderr once.
    Skip,
}

/// The files of a split.
#[derive(Debug)]
pub struct Files {
    listing: Listing,
    size: i64,
    on_corrupt: OnCorrupt,
    /// Indices of the damaged files that have been left out.
    damaged: Mutex<BTreeSet<usize>>,
}

impl Files {
    /// Creates the files of a listing. `size` is the default side of the squares that a network
    /// takes.
    pub fn new(listing: Listing, size: i64, on_corrupt: OnCorrupt) -> Files {
        Files { listing, size, on_corrupt, damaged: Mutex::default() }
    }

    /// Returns the number of files.
    pub fn len(&self) -> usize {
        self.listing.files.len()
    }

    /// Returns whether there are no files.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns `limit` files, or all if there are fewer, evenly spaced in the listing. Since the
    /// listing is sorted by class, each class keeps its share.
    pub fn spread(&self, limit: usize) -> Files {
        let limit = limit.min(self.len());
        let places: Vec<i64> = (0..limit).map(|at| (at * self.len() / limit) as i64).collect();
        self.select(&places)
    }

    /// Returns the files at the given indices.
    pub fn select(&self, places: &[i64]) -> Files {
        let Listing { folder, files, ignored } = &self.listing;
        let files = places.iter().map(|at| files[*at as usize].clone()).collect();
        Files::new(Listing { folder: folder.clone(), files, ignored: *ignored }, self.size, self.on_corrupt)
    }

    /// Returns the side of the squares that a network takes, unless the augmentation sets another.
    pub fn size(&self) -> i64 {
        self.size
    }

    /// Returns the class of a file.
    pub fn label(&self, index: usize) -> i64 {
        self.listing.files[index].1
    }

    /// Returns the path of a file.
    pub fn path(&self, index: usize) -> PathBuf {
        self.listing.folder.join(&self.listing.files[index].0)
    }

    /// Decodes a file; the inner error is the reason if the file is damaged.
    ///
    /// # Errors
    /// One line that names the file if it can't be read from disk.
    pub fn decode(&self, index: usize) -> Result<Result<Rgb, String>> {
        Ok(decode(&crate::files::read(&self.path(index))?))
    }

    /// Decodes a file like [`Files::decode`], a JPEG by two decoders.
    ///
    /// # Errors
    /// The errors of [`Files::decode`].
    pub fn decode_twice(&self, index: usize) -> Result<Result<Rgb, String>> {
        Ok(decode_twice(&crate::files::read(&self.path(index))?))
    }

    /// Reads the pixels of a file. Returns None for a damaged file that is to be left out
    /// ([`OnCorrupt::Skip`]).
    ///
    /// # Errors
    /// One line that names the file if it can't be read from disk, or is damaged under
    /// [`OnCorrupt::Error`].
    pub fn read(&self, index: usize) -> Result<Option<Rgb>> {
        let reason = match self.decode(index)? {
            Ok(image) => return Ok(Some(image)),
            Err(reason) => reason,
        };
        let path = self.path(index);
        let path = path.display();
        if self.on_corrupt == OnCorrupt::Error {
            bad_request!("{path}: {reason}; mend or remove it, or leave such files out with data.on_corrupt=skip");
        }
        let mut damaged = self.damaged.lock().unwrap_or_else(PoisonError::into_inner);
        if damaged.insert(index) {
            note!("{path}: {reason}; left out, with {} before it", damaged.len() - 1);
        }
        Ok(None)
    }
}
