//! Where logs are, and opening them so that no name and no symbolic link leads elsewhere.
//!
//! `log-dir/PROGRAM/ID.log` and `.idx`; a program's name may have several parts, each a
//! directory. The log directory itself may be reached through a symbolic link, what is below
//! it may not.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{
    AtFlags, Dir, FileType, IFlags, Mode, OFlags, fchmod, ioctl_getflags, ioctl_setflags, mkdirat,
    openat, renameat, statat, unlinkat,
};
use rustix::io::Errno;

use crate::ids::{ProgramName, RunId};

use super::LogError;
use super::format::{HEADER_LEN, Header};

/// Permissions of log files: the daemon's user writes, its group reads.
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
/// Permissions of directories of logs.
const DIR_MODE: Mode = Mode::from_raw_mode(0o750);

/// A log and its index, open for reading and writing.
#[derive(Debug)]
pub struct Files {
    /// The bytes.
    pub log: File,
    /// What is known of them.
    pub idx: File,
}

/// Where the output of a run is.
#[must_use]
pub fn log_path(log_dir: &Path, program: &ProgramName, run: RunId) -> PathBuf {
    log_dir.join(program.as_str()).join(file_name(run, "log"))
}

/// Where the index of a run's output is.
#[must_use]
pub fn index_path(log_dir: &Path, program: &ProgramName, run: RunId) -> PathBuf {
    log_dir.join(program.as_str()).join(file_name(run, "idx"))
}

/// Creates the two files of a new run, and directories where needed; the index gets its header.
///
/// # Errors
/// What could not be made or written; that one of the files exists is an error too.
pub fn create(log_dir: &Path, program: &ProgramName, run: RunId) -> Result<Files, LogError> {
    create_as(log_dir, program, run, false)
}

/// The same; the index says whether the log is to be rotated.
///
/// # Errors
/// As of [`create`].
pub fn create_as(
    log_dir: &Path,
    program: &ProgramName,
    run: RunId,
    rotates: bool,
) -> Result<Files, LogError> {
    let how = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
    let files = with_directory(log_dir, program, |dir| {
        let log = open_file(dir, log_dir, program, run, "log", how)?;
        let idx = match open_file(dir, log_dir, program, run, "idx", how) {
            Ok(idx) => idx,
            Err(e) => {
                let _ = unlinkat(dir, file_name(run, "log"), AtFlags::empty());
                return Err(e);
            }
        };
        for file in [&log, &idx] {
            // Whatever the daemon's umask is.
            fchmod(file, FILE_MODE).map_err(|e| {
                LogError::new("set the mode of", log_path(log_dir, program, run), e)
            })?;
        }
        Ok(Files { log, idx })
    })?;
    let written = Header::for_run(run).and_then(|mut header| {
        header.cut.rotates = rotates;
        files.idx.write_all_at(&header.to_bytes(), 0)
    });
    match written {
        Ok(()) => Ok(files),
        Err(e) => Err(LogError::new("write", index_path(log_dir, program, run), e)),
    }
}

/// The two files of a new run, in memory: they go with their last descriptor.
///
/// # Errors
/// There is no memory, or no descriptor.
pub fn in_memory(run: RunId) -> Result<Files, LogError> {
    let made = |name| {
        rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)
            .map(File::from)
            .map_err(|e| LogError::new("make", "a log in memory", e))
    };
    let files = Files {
        log: made("deployer-log")?,
        idx: made("deployer-index")?,
    };
    Header::for_run(run)
        .and_then(|header| files.idx.write_all_at(&header.to_bytes(), 0))
        .map_err(|e| LogError::new("write", "an index in memory", e))?;
    Ok(files)
}

/// Opens the log of an earlier run to go on with it; an index that is missing is created empty.
///
/// # Errors
/// What could not be opened.
pub fn open_for_writing(
    log_dir: &Path,
    program: &ProgramName,
    run: RunId,
) -> Result<Files, LogError> {
    let dir = open_directory(log_dir, program.as_str())?;
    let log = open_file(&dir, log_dir, program, run, "log", OFlags::RDWR)?;
    let how = OFlags::RDWR | OFlags::CREATE;
    let idx = open_file(&dir, log_dir, program, run, "idx", how)?;
    Ok(Files { log, idx })
}

/// Opens a log and, if there is one, its index for reading.
///
/// # Errors
/// What could not be opened.
pub fn open_for_reading(
    log_dir: &Path,
    program: &ProgramName,
    run: RunId,
) -> Result<(File, Option<File>), LogError> {
    let dir = open_directory(log_dir, program.as_str())?;
    let log = open_file(&dir, log_dir, program, run, "log", OFlags::RDONLY)?;
    let idx = match open_file(&dir, log_dir, program, run, "idx", OFlags::RDONLY) {
        Err(e) if e.source.kind() == io::ErrorKind::NotFound => None,
        other => Some(other?),
    };
    Ok((log, idx))
}

/// The programs that have a directory of logs, whether they are still configured or not.
///
/// # Errors
/// The log directory could not be read; of others it is passed over.
pub fn programs(log_dir: &Path) -> Result<Vec<ProgramName>, LogError> {
    let mut found = Vec::new();
    walk(log_dir, &mut |name, runs| {
        if let (false, Ok(program)) = (runs.is_empty(), ProgramName::new(name)) {
            found.push(program);
        }
    })?;
    found.sort();
    Ok(found)
}

/// Removes both files of a run, as far as they are there.
pub fn remove(log_dir: &Path, program: &ProgramName, run: RunId) {
    if let Ok(dir) = open_directory(log_dir, program.as_str()) {
        let _ = unlinkat(&dir, file_name(run, "log"), AtFlags::empty());
        let _ = unlinkat(&dir, file_name(run, "idx"), AtFlags::empty());
    }
}

/// The highest number above `recorded` of a run of which there is a log, whatever program it
/// belongs to. Logs above that which were prepared for a process that never was are removed.
///
/// # Errors
/// The log directory could not be read; of others it is passed over.
pub fn newest_id(log_dir: &Path, recorded: RunId) -> Result<Option<RunId>, LogError> {
    let mut newest = None;
    walk(log_dir, &mut |name, runs| {
        let Ok(program) = ProgramName::new(name) else {
            return;
        };
        // Each of a run's two files names it.
        let runs: BTreeSet<RunId> = runs.iter().copied().filter(|r| *r > recorded).collect();
        for run in runs {
            if is_blank(log_dir, &program, run) {
                remove(log_dir, &program, run);
            } else {
                newest = newest.max(Some(run));
            }
        }
    })?;
    Ok(newest)
}

/// Whether a log holds nothing, and belongs to no process.
fn is_blank(log_dir: &Path, program: &ProgramName, run: RunId) -> bool {
    let empty = |file: &File| file.metadata().is_ok_and(|m| m.len() == 0);
    let Ok((log, Some(idx))) = open_for_reading(log_dir, program, run) else {
        return false;
    };
    let mut header = [0; HEADER_LEN as usize];
    let of_no_process = match idx.read_exact_at(&mut header, 0) {
        Ok(()) => Header::from_bytes(&header).is_some_and(|h| h.pid.is_none()),
        Err(_) => empty(&idx),
    };
    of_no_process && empty(&log)
}

/// Tells `each` of every directory below `log_dir`: its name, and the runs with files in it.
fn walk(log_dir: &Path, each: &mut dyn FnMut(&str, &[RunId])) -> Result<(), LogError> {
    let mut names = vec![String::new()];
    while let Some(name) = names.pop() {
        let path = log_dir.join(&name);
        let entries = match open_base(&path).and_then(|dir| entries(&dir, &path)) {
            Ok(entries) => entries,
            Err(_) if !name.is_empty() => continue,
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut runs = Vec::new();
        for entry in entries {
            match entry {
                Entry::File(run, _) => runs.push(run),
                Entry::Directory(part) if name.is_empty() => names.push(part),
                Entry::Directory(part) => names.push(format!("{name}/{part}")),
            }
        }
        if !name.is_empty() {
            each(&name, &runs);
        }
    }
    Ok(())
}

/// Something in a directory of logs that is ours.
pub(super) enum Entry {
    /// A regular file of a run, and its name.
    File(RunId, String),
    /// A directory, by its name: a program, or a part of a program's name.
    Directory(String),
}

/// What is in a directory, without symbolic links and anything else that logs do not have.
pub(super) fn entries(dir: &OwnedFd, path: &Path) -> Result<Vec<Entry>, LogError> {
    let failed = |e| LogError::new("list", path, e);
    let mut found = Vec::new();
    for entry in Dir::read_from(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let Ok(name) = entry.file_name().to_str() else {
            continue;
        };
        let kind = match entry.file_type() {
            FileType::Unknown => statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
                .map_or(FileType::Unknown, |s| FileType::from_raw_mode(s.st_mode)),
            known => known,
        };
        match kind {
            FileType::RegularFile => {
                if let Some(run) = run_of_file(name) {
                    found.push(Entry::File(run, name.to_owned()));
                }
            }
            FileType::Directory if !name.starts_with(['.', '-']) => {
                found.push(Entry::Directory(name.to_owned()));
            }
            _ => {}
        }
    }
    Ok(found)
}

fn file_name(run: RunId, ending: &str) -> String {
    format!("{run}.{ending}")
}

/// The run that a file of this name belongs to: exactly what [`file_name`] makes.
fn run_of_file(name: &str) -> Option<RunId> {
    let (number, ending) = name.split_once('.')?;
    let run: RunId = number.parse().ok()?;
    (["log", "idx"].contains(&ending) && run.to_string() == number).then_some(run)
}

/// A program's directory, or one above it: `name` is a program's, or its beginning at a slash.
pub(super) fn open_directory(log_dir: &Path, name: &str) -> Result<OwnedFd, LogError> {
    let mut dir = open_base(log_dir)?;
    let mut path = log_dir.to_owned();
    for part in name.split('/') {
        path.push(part);
        dir = openat(&dir, part, DIRECTORY, Mode::empty())
            .map_err(|e| LogError::new("open", &path, e))?;
    }
    Ok(dir)
}

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// The log directory itself, through a symbolic link too.
pub(super) fn open_base(log_dir: &Path) -> Result<OwnedFd, LogError> {
    let how = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(log_dir, how, Mode::empty()).map_err(|e| LogError::new("open", log_dir, e))
}

/// Asks the file system to keep the directories of programs apart, which have nothing to do with
/// each other, nor with what else is there. ext4 without a journal looks past every inode that was
/// deleted nearby in the last minutes: among temporary files, a new one may take it longer than
/// the whole run (see also [`make_apart`]). File systems that know nothing of this are left alone.
pub fn spread(log_dir: &Path) {
    if let Ok(dir) = open_base(log_dir)
        && let Ok(flags) = ioctl_getflags(&dir)
        && !flags.contains(IFlags::TOPDIR)
    {
        let _ = ioctl_setflags(&dir, flags | IFlags::TOPDIR);
    }
}

/// Calls `action` with the program's directory, which it makes where needed, and once more if
/// the directory was removed meanwhile because it was empty.
fn with_directory<T>(
    log_dir: &Path,
    program: &ProgramName,
    action: impl Fn(&OwnedFd) -> Result<T, LogError>,
) -> Result<T, LogError> {
    let gone = |e: &LogError| e.source.kind() == io::ErrorKind::NotFound;
    let mut attempts = 3;
    loop {
        attempts -= 1;
        match make_directory(log_dir, program).and_then(|dir| action(&dir)) {
            Err(e) if attempts > 0 && gone(&e) => {}
            other => return other,
        }
    }
}

fn make_directory(log_dir: &Path, program: &ProgramName) -> Result<OwnedFd, LogError> {
    let mut dir = open_base(log_dir)?;
    let mut path = log_dir.to_owned();
    for part in program.as_str().split('/') {
        path.push(part);
        let open = || openat(&dir, part, DIRECTORY, Mode::empty());
        let opened = match open() {
            Err(Errno::NOENT) => {
                match make_apart(&dir, part).or_else(|_| mkdirat(&dir, part, DIR_MODE)) {
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(e) => return Err(LogError::new("make directory", &path, e)),
                }
                let made = open().map_err(|e| LogError::new("open", &path, e))?;
                fchmod(&made, DIR_MODE).map_err(|e| LogError::new("set the mode of", &path, e))?;
                Ok(made)
            }
            other => other,
        };
        dir = opened.map_err(|e| LogError::new("open", &path, e))?;
    }
    Ok(dir)
}

/// Makes a directory under a name that was never there before, and renames it. ext4 finds a place
/// for one by its name: the next of the same name would lie among what was deleted with the last.
fn make_apart(dir: &OwnedFd, part: &str) -> Result<(), Errno> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let name = format!(".{}", now.unwrap_or_default().as_nanos());
    mkdirat(dir, &name, DIR_MODE)?;
    let renamed = renameat(dir, &name, dir, part);
    if renamed.is_err() {
        let _ = unlinkat(dir, &name, AtFlags::REMOVEDIR);
    }
    renamed
}

fn open_file(
    dir: &OwnedFd,
    log_dir: &Path,
    program: &ProgramName,
    run: RunId,
    ending: &str,
    how: OFlags,
) -> Result<File, LogError> {
    let name = file_name(run, ending);
    let path = log_dir.join(program.as_str()).join(&name);
    let how = how | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file: File = openat(dir, &name, how, FILE_MODE)
        .map_err(|e| LogError::new("open", &path, e))?
        .into();
    if how.contains(OFlags::EXCL) {
        return Ok(file);
    }
    match file.metadata() {
        Ok(found) if found.is_file() => Ok(file),
        Ok(_) => Err(LogError::new(
            "open",
            path,
            io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"),
        )),
        Err(e) => Err(LogError::new("look at", path, e)),
    }
}
