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

use std::os::unix::ffi::OsStrExt;
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
/// the globals alone, however many programs there are, and reads them as a configuration only
/// where a glance does not do.
#[must_use]
pub fn socket_path(text: &[u8]) -> Option<PathBuf> {
    let mut lines = text.split_inclusive(|b| *b == b'\n');
    let end = lines
        .by_ref()
        .take_while(|line| line.trim_ascii_start().first() != Some(&b'['))
        .map(<[u8]>::len)
        .sum();
    let globals = &text[..end];
    glance(globals).unwrap_or_else(|| read(globals))
}

/// The path, if it is plain to see; `None`: it is not.
fn glance(globals: &[u8]) -> Option<Option<PathBuf>> {
    let mut path = None;
    for line in globals.split(|b| *b == b'\n') {
        let goes_on = line.first().is_some_and(u8::is_ascii_whitespace);
        if goes_on && !line.trim_ascii().is_empty() || line.iter().any(|b| b"\"'\\".contains(b)) {
            // It may belong to the line above, or the line below to it.
            return None;
        }
        if !line
            .windows(SOCKET_PATH.len())
            .any(|part| part == SOCKET_PATH)
        {
            continue;
        }
        let rest = line.strip_prefix(SOCKET_PATH)?.trim_ascii();
        let value = rest.strip_prefix(b"=")?.trim_ascii();
        let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-".contains(b);
        if value.is_empty() || !value.iter().all(plain) {
            return None;
        }
        path = Some(PathBuf::from(std::ffi::OsStr::from_bytes(value)));
    }
    Some(path)
}

const SOCKET_PATH: &[u8] = b"socket-path";

fn read(globals: &[u8]) -> Option<PathBuf> {
    let scan = ini::scan(globals);
    let mut entries = scan.document.sections.iter().flat_map(|s| &s.entries);
    let last = entries.rfind(|e| e.key == "socket-path")?;
    Some(PathBuf::from(&last.value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_glance_sees_what_reading_does_or_nothing() {
        let texts = [
            "",
            "user = bob\n[prog-a]\nsocket-path = /no\n",
            "socket-path = /run/x.sock\n",
            "socket-path=/a\nroot = /srv\nsocket-path =\t/b \r\n\n[prog-a]\n",
            "# socket-path = /a\n",
            "; socket-path = /a\nsocket-path = /b\n",
            "socket-path = /a # b\n",
            "socket-path = \"/a b\"\n",
            "socket-path = /a\n  /b\n",
            "  socket-path = /a\n",
            "root = \"x\nsocket-path = /a\n\"\n",
            "root = x\\\nsocket-path = /a\n",
            "socket-path\n",
            "socket-path =\n",
            "socket-path : /a\n",
            "socket-paths = /a\n",
            "my-socket-path = /a\n",
            "Socket-Path = /a\n",
            "\u{feff}socket-path = /a\n",
            "socket-path = /ä\n",
            "socket-path = a/b\n",
            "nonsense\nsocket-path = /a\n",
        ];
        let mut seen = 0;
        for text in texts {
            if let Some(path) = glance(text.as_bytes()) {
                assert_eq!(path, read(text.as_bytes()), "{text:?}");
                seen += usize::from(path.is_some());
            }
        }
        assert!(seen >= 4, "{seen}");
        let path = |text: &str| socket_path(text.as_bytes());
        assert_eq!(path(texts[1]), None);
        assert_eq!(path(texts[3]), Some("/b".into()));
        assert_eq!(
            path("socket-path = /a b\nroot = /srv\n"),
            Some("/a b".into())
        );
    }
}
