//! Which logs stay: retention by number, age and size.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::fs::{AtFlags, statat, unlinkat};
use rustix::io::Errno;

use crate::config::model::Retention;
use crate::ids::{ProgramName, RunId};

use super::LogError;
use super::format::now_ns;
use super::place::{Entry, entries, open_base, open_directory};

/// Files up to this size count as large as they are, in bytes.
const SMALL: i64 = 64 * 1024;

/// What [`retain`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Runs that have no log any more, oldest first.
    pub runs: Vec<RunId>,
    /// Bytes of their files.
    pub bytes: u64,
}

/// The files of one run.
#[derive(Default)]
struct Kept {
    names: Vec<String>,
    bytes: u64,
    /// When the last of them was written, nanoseconds since 1970.
    written: i64,
}

/// Removes logs of a program that are beyond the bounds, the oldest first, and the program's
/// directory if nothing is left in it. Logs of the runs in `live` stay and count.
///
/// # Errors
/// What could not be read or removed; what was removed before stays removed.
pub fn retain(
    log_dir: &Path,
    program: &ProgramName,
    bounds: Retention,
    live: &[RunId],
) -> Result<Removed, LogError> {
    let path = log_dir.join(program.as_str());
    let dir = match open_directory(log_dir, program.as_str()) {
        Err(e) if e.source.kind() == std::io::ErrorKind::NotFound => return Ok(Removed::default()),
        other => other?,
    };
    let mut runs: BTreeMap<RunId, Kept> = BTreeMap::new();
    for entry in entries(&dir, &path)? {
        let Entry::File(run, name) = entry else {
            continue;
        };
        let Ok(found) = statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) else {
            continue;
        };
        let kept = runs.entry(run).or_default();
        // One that was rotated takes less than its size says. (A small one may take nothing of
        // its own for a while, and counts all the same.)
        let size = match found.st_size {
            small @ ..=SMALL => small,
            size => size.min(found.st_blocks * 512),
        };
        kept.bytes += u64::try_from(size).unwrap_or(0);
        let written = found.st_mtime.saturating_mul(1_000_000_000);
        kept.written = kept.written.max(written);
        kept.names.push(name);
    }

    let mut count = runs.len() as u64;
    let mut size: u64 = runs.values().map(|kept| kept.bytes).sum();
    let too_old = bounds.age.map(|age| {
        let age = i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
        now_ns().saturating_sub(age)
    });
    let mut removed = Removed::default();
    for (run, kept) in runs {
        let beyond = bounds.count.is_some_and(|most| count > most)
            || bounds.size.is_some_and(|most| size > most)
            || too_old.is_some_and(|then| kept.written < then);
        if !beyond || live.contains(&run) {
            continue;
        }
        for name in &kept.names {
            match unlinkat(&dir, name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => return Err(LogError::new("remove", path.join(name), e)),
            }
        }
        count -= 1;
        size -= kept.bytes;
        removed.runs.push(run);
        removed.bytes += kept.bytes;
    }
    remove_empty(log_dir, program)?;
    Ok(removed)
}

/// Removes the program's directory and those above it, as far as they are empty.
fn remove_empty(log_dir: &Path, program: &ProgramName) -> Result<(), LogError> {
    let mut name = Some(program.as_str());
    while let Some(path) = name {
        let (above, part) = match path.rsplit_once('/') {
            Some((above, part)) => (Some(above), part),
            None => (None, path),
        };
        let opened = match above {
            Some(above) => open_directory(log_dir, above),
            None => open_base(log_dir),
        };
        // Somebody else removed it if it is not there; that is as good.
        let Ok(dir) = opened else { return Ok(()) };
        match unlinkat(dir, part, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => name = above,
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR | Errno::BUSY) => return Ok(()),
            Err(e) => return Err(LogError::new("remove", log_dir.join(path), e)),
        }
    }
    Ok(())
}
