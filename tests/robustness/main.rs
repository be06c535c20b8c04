//! Damaged files, full disks, panics and files from untrusted sources.

#[path = "../common/mod.rs"]
mod common;

mod corpus;
mod faults;
mod panics;
mod untrusted_files;
