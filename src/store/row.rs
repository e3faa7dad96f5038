//! A row of the history: what it holds, and the JSON that programs read.

use std::collections::BTreeMap;

use jiff::Timestamp;
use nix::sys::signal::Signal;
use rusqlite::types::ValueRef;
use serde::{Serialize, Serializer};

use crate::ids::{ActionName, ProgramName, RunId};

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its turn has not come.
    Waiting,
    /// It has, or is about to have, a process.
    Running,
    /// It exited with 0.
    Succeeded,
    /// It exited with something else.
    Failed,
    /// It died of a signal.
    Signalled,
    /// It was ended because it took too long.
    TimedOut,
    /// It was withdrawn, or ended on request.
    Cancelled,
    /// A newer request took its place.
    Superseded,
    /// It could not be executed.
    NotStarted,
    /// The machine went down.
    Interrupted,
    /// It is over, and nobody knows how.
    Lost,
}

impl Outcome {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Waiting,
        Self::Running,
        Self::Succeeded,
        Self::Failed,
        Self::Signalled,
        Self::TimedOut,
        Self::Cancelled,
        Self::Superseded,
        Self::NotStarted,
        Self::Interrupted,
        Self::Lost,
    ];

    /// Its word in the database, in JSON and on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Signalled => "signalled",
            Self::TimedOut => "timed-out",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::NotStarted => "not-started",
            Self::Interrupted => "interrupted",
            Self::Lost => "lost",
        }
    }

    /// The outcome of this word.
    #[must_use]
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|o| o.as_str() == word)
    }

    /// Whether this is final.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Waiting | Self::Running)
    }
}

/// Who asked, as the kernel said when they connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct By {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// The user's name at that time, or the number where there is none.
    pub user: String,
    /// Process id at that time; says nothing later.
    pub pid: i32,
}

/// A row of the history. Serializes to the JSON of `HISTORY --json`.
///
/// Times are nanoseconds since 1970 here, RFC 3339 in UTC with milliseconds in JSON.
/// Reading a row cannot fail: what a damaged one does not hold has its default, and an outcome
/// that is none is [`Outcome::Lost`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The number of the request.
    pub id: RunId,
    /// The program's name. A [`ProgramName`] when it was written.
    pub program: String,
    /// The action's name. An [`ActionName`] when it was written.
    pub action: String,
    /// What became of it.
    pub outcome: Outcome,
    /// With which status it exited.
    pub exit_code: Option<i32>,
    /// Of which signal it died; in JSON its name, such as `SIGTERM`.
    #[serde(serialize_with = "signal_name")]
    pub signal: Option<i32>,
    /// Who asked.
    pub by: By,
    /// Why, in their words.
    pub reason: Option<String>,
    /// Typed inputs.
    pub inputs: BTreeMap<String, String>,
    /// Arguments.
    pub args: Vec<String>,
    /// The run that answers a superseded request.
    pub covered_by: Option<RunId>,
    /// When it was accepted.
    #[serde(serialize_with = "rfc3339")]
    pub requested_at: i64,
    /// When its process was started.
    #[serde(serialize_with = "rfc3339_option")]
    pub started_at: Option<i64>,
    /// When it was over.
    #[serde(serialize_with = "rfc3339_option")]
    pub ended_at: Option<i64>,
    /// Length of its log, in bytes.
    pub bytes: u64,
    /// Output that is not in the log, in bytes.
    pub dropped: u64,
    /// Whether processes outlived it.
    pub leftovers: bool,
    /// What else there is to say, such as why it could not be executed.
    pub detail: Option<String>,
    /// The client's own name of the request, made unique by its uid; not for others.
    #[serde(skip)]
    pub request_key: Option<String>,
}

/// An accepted request, as it is put on record.
#[derive(Debug, Clone)]
pub struct NewRun {
    /// Its number: [`super::Opened::next_id`] and up.
    pub id: RunId,
    /// The program.
    pub program: ProgramName,
    /// The action.
    pub action: ActionName,
    /// Mostly [`Outcome::Waiting`] or [`Outcome::Running`].
    pub outcome: Outcome,
    /// Who asked.
    pub by: By,
    /// Why, in their words.
    pub reason: Option<String>,
    /// Typed inputs.
    pub inputs: BTreeMap<String, String>,
    /// Arguments.
    pub args: Vec<String>,
    /// When it was accepted: nanoseconds since 1970.
    pub requested_at: i64,
    /// When it was started, if it was: nanoseconds since 1970.
    pub started_at: Option<i64>,
    /// See [`Row::request_key`]. No two rows may have the same.
    pub request_key: Option<String>,
}

/// How a run or request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finish {
    /// Final.
    pub outcome: Outcome,
    /// With which status it exited.
    pub exit_code: Option<i32>,
    /// Of which signal it died.
    pub signal: Option<i32>,
    /// When it was over: nanoseconds since 1970.
    pub ended_at: i64,
    /// Length of its log, in bytes.
    pub bytes: u64,
    /// Output that is not in the log, in bytes.
    pub dropped: u64,
    /// Whether processes outlived it.
    pub leftovers: bool,
    /// What else there is to say.
    pub detail: Option<String>,
}

/// The columns that [`Row::read`] expects, in this order.
pub(super) const COLUMNS: &str = "id, program, action, outcome, exit_code, signal, uid, gid, \
    user, pid, reason, inputs, args, covered_by, requested_at, started_at, ended_at, bytes, \
    dropped, leftovers, detail, request_key";

impl Row {
    /// Reads a row of [`COLUMNS`]. Only a column that is missing is an error.
    pub(super) fn read(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        let int = |at: usize| -> rusqlite::Result<Option<i64>> {
            Ok(match row.get_ref(at)? {
                ValueRef::Integer(n) => Some(n),
                _ => None,
            })
        };
        let text = |at: usize| -> rusqlite::Result<Option<String>> {
            Ok(match row.get_ref(at)? {
                ValueRef::Text(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
                _ => None,
            })
        };
        let unsigned = |n: Option<i64>| n.and_then(|n| u64::try_from(n).ok());
        let small = |n: Option<i64>| n.and_then(|n| i32::try_from(n).ok());
        let id = |n: Option<i64>| n.and_then(|n| u32::try_from(n).ok()).unwrap_or(u32::MAX);
        let word = text(3)?.unwrap_or_default();
        Ok(Self {
            id: RunId(unsigned(int(0)?).unwrap_or(0)),
            program: text(1)?.unwrap_or_default(),
            action: text(2)?.unwrap_or_default(),
            outcome: Outcome::from_word(&word).unwrap_or(Outcome::Lost),
            exit_code: small(int(4)?),
            signal: small(int(5)?),
            by: By {
                uid: id(int(6)?),
                gid: id(int(7)?),
                user: text(8)?.unwrap_or_default(),
                pid: small(int(9)?).unwrap_or(0),
            },
            reason: text(10)?,
            inputs: from_json(text(11)?),
            args: from_json(text(12)?),
            covered_by: unsigned(int(13)?).map(RunId),
            requested_at: int(14)?.unwrap_or(0),
            started_at: int(15)?,
            ended_at: int(16)?,
            bytes: unsigned(int(17)?).unwrap_or(0),
            dropped: unsigned(int(18)?).unwrap_or(0),
            leftovers: int(19)?.is_some_and(|n| n != 0),
            detail: text(20)?,
            request_key: text(21)?,
        })
    }
}

fn from_json<T: Default + serde::de::DeserializeOwned>(text: Option<String>) -> T {
    text.and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default()
}

/// A signal's name, such as `SIGTERM` or `SIGRTMIN+2`; `SIG99` if it has none.
fn name_of(signal: i32) -> String {
    let first = nix::libc::SIGRTMIN();
    match Signal::try_from(signal) {
        Ok(known) => known.as_str().to_owned(),
        Err(_) if signal == first => "SIGRTMIN".to_owned(),
        Err(_) if (first..=nix::libc::SIGRTMAX()).contains(&signal) => {
            format!("SIGRTMIN+{}", signal - first)
        }
        Err(_) => format!("SIG{signal}"),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, clippy::ref_option)] // serde's signature
fn signal_name<S: Serializer>(signal: &Option<i32>, to: S) -> Result<S::Ok, S::Error> {
    signal.map(name_of).serialize(to)
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn rfc3339<S: Serializer>(time: &i64, to: S) -> Result<S::Ok, S::Error> {
    // Every i64 of nanoseconds is a time that jiff knows.
    match Timestamp::from_nanosecond(i128::from(*time)) {
        Ok(time) => to.collect_str(&format_args!("{time:.3}")),
        Err(_) => to.serialize_none(),
    }
}

#[allow(clippy::trivially_copy_pass_by_ref, clippy::ref_option)]
fn rfc3339_option<S: Serializer>(time: &Option<i64>, to: S) -> Result<S::Ok, S::Error> {
    match time {
        Some(time) => rfc3339(time, to),
        None => to.serialize_none(),
    }
}
