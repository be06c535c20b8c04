//! Comparisons with PyTorch: its files, networks and images, and other programs that read
//! foldconv's files.

#[path = "../common/mod.rs"]
mod common;

mod augment;
mod checkpoints;
mod export;
mod files;
mod graphs;
mod import;
mod init;
mod tensorboard;
mod torchvision;
mod training;
