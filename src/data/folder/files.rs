//! The images of a split that stay in their files until they are needed.

use super::decode::{Rgb, decode, decode_twice};
use super::scan::Listing;
use crate::{bad_request, note};
use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

/// What is done with a file that can't be decoded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OnCorrupt {
    /// It ends the work, and is named.
    #[default]
    Error,
    /// Its batch goes without it; it is named on stderr once.
    Skip,
}

/// The files of a split.
#[derive(Debug)]
pub struct Files {
    listing: Listing,
    size: i64,
    on_corrupt: OnCorrupt,
    /// Those that were left out.
    damaged: Mutex<BTreeSet<usize>>,
}

impl Files {
    /// The files of a listing, of which a network gets squares of that side.
    pub fn new(listing: Listing, size: i64, on_corrupt: OnCorrupt) -> Files {
        Files { listing, size, on_corrupt, damaged: Mutex::default() }
    }

    /// Number of files.
    pub fn len(&self) -> usize {
        self.listing.files.len()
    }

    /// Whether there is no file.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// So many of them (all, if there are fewer), evenly spread: they are sorted by class, and each class keeps its share.
    pub fn spread(&self, limit: usize) -> Files {
        let limit = limit.min(self.len());
        let places: Vec<i64> = (0..limit).map(|at| (at * self.len() / limit) as i64).collect();
        self.select(&places)
    }

    /// The files in these places.
    pub fn select(&self, places: &[i64]) -> Files {
        let Listing { folder, files, ignored } = &self.listing;
        let files = places.iter().map(|at| files[*at as usize].clone()).collect();
        Files::new(Listing { folder: folder.clone(), files, ignored: *ignored }, self.size, self.on_corrupt)
    }

    /// The side of what a network gets, unless it is cut otherwise.
    pub fn size(&self) -> i64 {
        self.size
    }

    /// The class of a file.
    pub fn label(&self, index: usize) -> i64 {
        self.listing.files[index].1
    }

    /// Where a file lies.
    pub fn path(&self, index: usize) -> PathBuf {
        self.listing.folder.join(&self.listing.files[index].0)
    }

    /// The pixels of a file, or what is wrong with it.
    ///
    /// # Errors
    /// One line: the file can't be read at all.
    pub fn decode(&self, index: usize) -> Result<Result<Rgb, String>> {
        Ok(decode(&crate::files::read(&self.path(index))?))
    }

    /// The same, JPEG by two decoders.
    ///
    /// # Errors
    /// As [`Files::decode`].
    pub fn decode_twice(&self, index: usize) -> Result<Result<Rgb, String>> {
        Ok(decode_twice(&crate::files::read(&self.path(index))?))
    }

    /// The pixels of a file; none of a damaged one that is to be left out.
    ///
    /// # Errors
    /// One line that names the file: it can't be read, or is damaged.
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
