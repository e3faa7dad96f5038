//! The only place with `unsafe`: thin wrappers around what no library offers safely, or not in one
//! piece.

#![allow(unsafe_code)]

pub mod child;
pub mod clone;
pub mod env;
pub mod fd;
pub mod fork;
pub mod process;
pub mod signal;
pub mod socket;
pub mod terminal;
