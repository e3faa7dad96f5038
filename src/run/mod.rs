//! Runs as processes.

pub mod pump;
