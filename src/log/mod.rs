//! Logs of runs on disk: what the files look like, where they are, how they are read and kept.
//!
//! A run's log is two files. `ID.log` holds the raw bytes of both streams in the order of
//! arrival. `ID.idx` says which bytes came when and from which stream (see [`mod@format`]).
//!
//! Daemon and client both use this module: it knows nothing of runs that are live, of the
//! history or of sockets. Invariants:
//!
//! * a byte of the log is described by the index before it is there, so a reader that looks at
//!   the log's length first and at the index second never takes a byte for the other stream's;
//! * the log is the truth: with a damaged index every byte is still read, with less said about it;
//! * no file offset is moved, since the descriptors are shared between processes;
//! * no path leaves the log directory, and no symbolic link below it is followed.

mod append;
pub mod format;
mod keep;
mod lines;
mod place;
mod reader;

use std::io;
use std::path::{Path, PathBuf};

pub use append::{IndexWriter, Writer};
pub use format::{Header, PID_OFFSET, Stream, now_ns};
pub use keep::{Removed, retain};
pub use lines::{Line, Lines};
pub use place::{
    Files, create, create_as, in_memory, index_path, log_path, newest_id, open_for_reading,
    open_for_writing, programs, remove, spread,
};
pub use reader::{Chunk, Reader};

/// What could not be done with which file of a log, and why.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing} {}", path.display())]
pub struct LogError {
    /// The attempt, a verb.
    pub doing: &'static str,
    /// The file or directory; `the log` or `the index` where only a descriptor is known.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

impl LogError {
    fn new(doing: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self {
            doing,
            path: path.as_ref().to_owned(),
            source: source.into(),
        }
    }
}

#[cfg(test)]
mod tests;
