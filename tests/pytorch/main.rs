//! Beside PyTorch: its files, its networks, its images, and what other programs make of ours.

#[path = "../common/mod.rs"]
mod common;

mod augment;
mod checkpoints;
mod export;
mod files;
mod import;
mod tensorboard;
mod torchvision;
