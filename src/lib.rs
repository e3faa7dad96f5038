//! deployer: runs what a file allows, as whom the file says, for whom the file names.
//!
//! A pure core (`engine`, `policy`, `protocol`, `config` but for its `load`) with shells around
//! it, and `sys` below them, the only place with `unsafe`. `doc/design.rst` has the map.
#![deny(unsafe_code)]
#![warn(missing_docs)]

pub mod accounts;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod getent;
pub mod ids;
pub mod import;
pub mod keeper;
pub mod log;
pub mod logging;
pub mod policy;
pub mod protocol;
pub mod run;
pub mod server;
pub mod source;
pub mod store;
pub mod sys;
#[cfg(test)]
mod testing;
pub mod web;
