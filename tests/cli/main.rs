//! The command line: every command as a user calls it, its documentation, and its error messages.

#[path = "../common/mod.rs"]
mod common;

mod advice;
mod bench;
mod browser;
mod compact;
mod config;
mod data;
mod docs;
mod errors;
mod flags;
mod folder;
mod graphs;
mod init;
mod launcher;
mod recipes;
mod train;
