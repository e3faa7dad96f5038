//! Code that arrives by itself: what is fetched, where it is kept, how it becomes current.
//!
//! All of it is done by a process of its own, the *worker*, which the daemon starts like every
//! other run: as the program's user, recorded, logged, cancellable. It gets a [`Job`] on a
//! descriptor, so that no secret stands on a command line or in an environment.
//!
//! ```text
//! worker   takes the job, and does what it says
//!  ├ update   the steps of an update, and of a rollback; the journal makes each crash harmless
//!  ├ report   what people ask: releases, why, verify
//!  ├ git, http, s3, archive   where code comes from, and how it is unpacked
//!  ├ netrc, signature         what one logs in with, and who may sign
//!  ├ progress  how far a download has come, for those who watch
//!  ├ hooks    the scripts that may refuse it
//!  ├ release  the directory: releases, current, shared files, what is deleted
//!  └ state    what is remembered from one update to the next
//! ```

mod archive;
mod git;
mod hooks;
mod hosts;
mod http;
mod netrc;
mod progress;
mod release;
mod report;
mod s3;
mod signature;
mod state;
mod update;
pub mod worker;

use serde::{Deserialize, Serialize};

use crate::config::model::Source;

/// Where the worker finds its job.
pub const JOB_FD: i32 = 3;

/// Exit status of an update that a hook has put off.
pub const DEFERRED: i32 = 75;

/// What a worker is to do.
#[derive(Debug, Serialize, Deserialize)]
pub struct Job {
    /// The program.
    pub program: String,
    /// The number of the run; 0 for what is not on record.
    pub run: u64,
    /// Who asked.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// Where code comes from, and all that belongs to it.
    pub source: Source,
    /// What is asked for.
    pub what: What,
    /// The abstract name of the socket that hears how far it has come.
    pub listener: Option<String>,
}

/// What a worker can do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum What {
    /// Make current what the remote has.
    Update {
        /// Also what was refused before, or is current already.
        force: bool,
    },
    /// Make an earlier release current.
    Rollback {
        /// Which; none is the good one before.
        to: Option<String>,
    },
    /// Stay with a release whatever the remote has.
    Pin {
        /// Which; none is the current one.
        to: Option<String>,
    },
    /// Follow the remote again.
    Unpin,
    /// Say whether an update would do something: a [`Verdict`] as JSON.
    Check,
    /// Say whether that run has made another release current: `true` or `false`.
    Outcome {
        /// Which.
        run: u64,
    },
    /// List releases.
    Releases {
        /// As JSON.
        json: bool,
    },
    /// Say why what is current is so.
    Why(Facts),
    /// Say whether what is current is still as it was released.
    Verify,
    /// Say what an update would bring.
    Plan,
}

/// What the daemon knows and the directory does not.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    /// All of the program stands still: the whole sentence.
    pub frozen: Option<String>,
    /// Checks have failed since then, for this reason.
    pub failing: Option<(String, String)>,
    /// An update has failed, and is tried again later: the whole sentence.
    pub held: Option<String>,
    /// When the remote is looked at next; none if only when somebody asks.
    pub next_check: Option<String>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// What the remote has.
    pub revision: String,
    /// Whether an update is worth a run.
    pub update: bool,
    /// Why, or why not.
    pub because: String,
}

/// Why something was not done, for people.
#[derive(Debug)]
struct Failure {
    message: String,
    /// It is the revision's fault: it would be so again.
    lasting: bool,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            lasting: false,
        }
    }

    /// One that the same revision would lead to again.
    fn lasting(message: impl Into<String>) -> Self {
        Self {
            lasting: true,
            ..Self::new(message)
        }
    }

    /// For system calls: the attempt, a verb and its object.
    fn io(doing: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |e| Self::new(format!("cannot {doing}: {e}"))
    }
}

type Outcome<T> = Result<T, Failure>;
