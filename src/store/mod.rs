//! The history: a row for every accepted request, in an SQLite database below the state directory.
//!
//! It owns `runs.db` and its companions (`-wal`, `-shm`), and what becomes of them when they are
//! damaged. It decides nothing about runs. One thread writes (see [`Store`]), everybody may read
//! (see [`Queries`]). Invariants:
//!
//! * a write that was reported as done survives the death of the process at any moment;
//! * numbers of runs are never used twice, whatever rows were removed or lost;
//! * the outcome of a run is kept until it is written, in the order in which runs ended;
//! * no damage to the files keeps the daemon from starting: what can be read of them is taken
//!   over, the files are put aside, and what was lost is said.

mod queries;
mod row;
mod runs;
mod salvage;
mod schema;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::ids::RunId;

pub use queries::{Filter, Programs, Queries};
pub use row::{By, Finish, NewRun, Outcome, Row};
pub use runs::{Done, OnFailure, Opened, Retained, Store};

/// What went wrong with the history. Can be copied, since one failure may be that of many writes.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// A file could not be dealt with.
    #[error("cannot {doing} {}", path.display())]
    File {
        /// The attempt, a verb.
        doing: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// The database refused: the disk is full or fails, or it is damaged.
    #[error("cannot {doing} the run history")]
    Database {
        /// The attempt, a verb.
        doing: &'static str,
        /// What it said.
        source: Arc<rusqlite::Error>,
    },
    /// A newer version of the program has used this database.
    #[error(
        "{} has schema {found} of a newer version, this one knows {} and older",
        path.display(), schema::VERSION
    )]
    Newer {
        /// Which.
        path: PathBuf,
        /// Its schema's number.
        found: i64,
    },
    /// Nothing was written, for there is no such row.
    #[error("run {0} is not on record")]
    NoSuchRun(RunId),
    /// Nothing was written, for there is a run of this number, or a request of this key.
    #[error("run {0}, or a request of the same key, is on record already")]
    Duplicate(RunId),
    /// The thread that writes has ended.
    #[error("the run history is closed")]
    Closed,
}

impl StoreError {
    fn file(doing: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::File {
            doing,
            path: path.to_owned(),
            source: Arc::new(source.into()),
        }
    }

    fn database(doing: &'static str, source: rusqlite::Error) -> Self {
        Self::Database {
            doing,
            source: Arc::new(source),
        }
    }
}

#[cfg(test)]
mod tests;
