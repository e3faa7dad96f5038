//! The configuration: from the bytes of a file to a [`model::Config`] that is valid by construction.
//!
//! ```text
//! load   the file, its owner and its directories; the only part that does I/O
//!  └ check   what the keys mean; every error and warning at once
//!     ├ draft    what each key changes, and the defaults
//!     ├ ini      lines, sections, keys, columns
//!     ├ keys     which keys there are, and where: a table
//!     ├ values   durations, sizes, modes, limits, signals
//!     ├ people   users and groups
//!     ├ lists    which of them hold for an action
//!     ├ remote   where code comes from
//!     └ inputs   typed values that clients pass
//! model  the result          diag  how errors look
//! ```
//!
//! Nothing outside [`load`] reads a file, a clock or a database of names, so all of it can be
//! tested with text alone.

pub mod check;
pub mod diag;
mod draft;
pub mod ini;
pub mod inputs;
pub mod keys;
pub(crate) mod lists;
pub mod load;
pub mod model;
pub mod people;
pub mod remote;
mod values;

use std::path::PathBuf;

/// Where the daemon listens when nothing else is said.
pub const DEFAULT_SOCKET: &str = "/var/run/deployer";

/// Whether `env-NAME` can set this variable.
#[must_use]
pub fn may_be_set(name: &str) -> bool {
    keys::lookup(&format!("env-{name}"), keys::Scope::Program).is_ok()
}

/// The number of a signal that somebody names.
///
/// # Errors
/// It is none, and what one looks like.
pub fn signal_number(word: &str) -> Result<i32, String> {
    values::signal(word).map_err(|bad| match bad.help {
        Some(help) => format!("{}: {help}", bad.message),
        None => bad.message,
    })
}

/// A duration that somebody names.
///
/// # Errors
/// It is none, and what one looks like.
pub fn duration(word: &str) -> Result<std::time::Duration, String> {
    values::duration(word).map_err(|bad| match bad.help {
        Some(help) => format!("{}: {help}", bad.message),
        None => bad.message,
    })
}

/// Up to which group programs are started with the daemon: `no`, `yes` or a number.
///
/// # Errors
/// It is none of them.
pub fn autostart_groups(word: &str) -> Result<u32, String> {
    match values::group_number(word) {
        Ok(Some(_)) if word == "yes" => Ok(u32::MAX),
        Ok(group) => Ok(group.unwrap_or(0)),
        Err(bad) => Err(bad.message),
    }
}

/// The `socket-path` of a configuration, for a client that wants nothing else of it: looks at
/// the globals alone, however many programs there are.
#[must_use]
pub fn socket_path(text: &[u8]) -> Option<PathBuf> {
    let lines = text.split_inclusive(|b| *b == b'\n');
    let globals: Vec<u8> = lines
        .take_while(|line| line.trim_ascii_start().first() != Some(&b'['))
        .flatten()
        .copied()
        .collect();
    let scan = ini::scan(&globals);
    let mut entries = scan.document.sections.iter().flat_map(|s| &s.entries);
    let last = entries.rfind(|e| e.key == "socket-path")?;
    Some(PathBuf::from(&last.value))
}
