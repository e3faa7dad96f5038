//! Scripts of the root directory: found, checked and opened, anew for every run.
//!
//! A script runs with somebody's rights, so nobody else may be able to change what runs. The
//! way from `/` to it is walked one descriptor at a time; every directory and the file itself
//! must belong to root, the daemon's user or the run's user, and nobody else may write there.
//! (A directory like `/tmp`, where everybody may write but only owners may rename, will do.)

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2, statat,
};
use rustix::io::Errno;

use super::identity::Identity;
use crate::ids::ProgramName;

/// How deep nested names are looked for in a listing.
const DEPTH: usize = 4;

/// A script that may run, open.
#[derive(Debug)]
pub struct Script {
    /// Open on the file.
    pub fd: OwnedFd,
    /// Where it is.
    pub path: PathBuf,
    /// Where it starts, when nothing else is configured: its own directory.
    pub directory: PathBuf,
    /// Whether it begins with `#!`.
    pub interpreted: bool,
}

/// Why a script is not run. Each says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ScriptError {
    /// Neither a file nor a directory with a file `run`.
    #[error("there is no script {0}")]
    NotFound(PathBuf),
    /// A symbolic link below the root directory.
    #[error("{0} is a symbolic link: put the file itself there")]
    Symlink(PathBuf),
    /// Something else than a file.
    #[error("{0} is not a regular file")]
    NotRegular(PathBuf),
    /// The run's user may not execute it.
    #[error("{0} is not executable for {1}: chmod +x {0}")]
    NotExecutable(PathBuf, String),
    /// Others could change it.
    #[error("{0} can be written by others than its owner: chmod go-w {0}")]
    Writable(PathBuf),
    /// It belongs to somebody who has nothing to do with the run.
    #[error(
        "{0} belongs to uid {1}, and only root, the daemon's user and the run's user are trusted: chown it"
    )]
    Stranger(PathBuf, u32),
    /// Neither a binary nor a script with an interpreter.
    #[error("{0} has neither a #! line nor a known binary format: begin it with #!/bin/sh")]
    Format(PathBuf),
    /// It was exchanged between check and execution.
    #[error("{0} was exchanged while it was being started: run it again")]
    Exchanged(PathBuf),
    /// The system failed.
    #[error("cannot {0} {1}: {2}")]
    Io(&'static str, PathBuf, io::Error),
}

impl ScriptError {
    /// What a shell would exit with.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        if matches!(self, Self::NotFound(_)) {
            127
        } else {
            126
        }
    }
}

fn io_error(doing: &'static str, path: &Path) -> impl FnOnce(Errno) -> ScriptError {
    let path = path.to_owned();
    move |e| match e {
        Errno::NOENT | Errno::NOTDIR => ScriptError::NotFound(path),
        Errno::LOOP => ScriptError::Symlink(path),
        e => ScriptError::Io(doing, path, e.into()),
    }
}

/// Whether there is something to run under this name. Checks nothing else.
#[must_use]
pub fn exists(root: &Path, name: &ProgramName) -> bool {
    let path = root.join(name.as_str());
    match std::fs::symlink_metadata(&path) {
        Ok(found) if found.is_dir() => path
            .join("run")
            .symlink_metadata()
            .is_ok_and(|f| f.is_file()),
        Ok(_) => true,
        Err(_) => false,
    }
}

/// The same, as far as it can be said without waiting for a disk or a network: none if it cannot.
#[must_use]
pub fn exists_cached(root: &Path, name: &ProgramName) -> Option<bool> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = root.join(name.as_str());
    let fd = openat2(CWD, &path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let stat = fstat(&fd).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile).then_some(true)
}

/// The programs that a root directory offers: executable files, and directories with an
/// executable `run`; nested ones, too. Hidden files and editor backups are none.
#[must_use]
pub fn list(root: &Path) -> Vec<ProgramName> {
    let mut found = Vec::new();
    list_below(root, "", DEPTH, &mut found);
    found.sort();
    found
}

fn list_below(directory: &Path, prefix: &str, depth: usize, found: &mut Vec<ProgramName>) {
    use std::os::unix::fs::PermissionsExt;
    let Ok(entries) = std::fs::read_dir(directory) else {
        return;
    };
    let executable = |path: &Path| {
        path.symlink_metadata()
            .is_ok_and(|f| f.is_file() && f.permissions().mode() & 0o111 != 0)
    };
    for entry in entries.flatten() {
        let file_name = entry.file_name();
        let Some(own) = file_name
            .to_str()
            .filter(|n| !n.ends_with('~') && !n.starts_with('#'))
        else {
            continue;
        };
        let Ok(name) = ProgramName::new(&format!("{prefix}{own}")) else {
            continue;
        };
        let path = entry.path();
        let is_directory = entry.file_type().is_ok_and(|t| t.is_dir());
        if is_directory && !executable(&path.join("run")) {
            if depth > 1 {
                list_below(&path, &format!("{name}/"), depth - 1, found);
            }
        } else if is_directory || executable(&path) {
            found.push(name);
        }
    }
}

/// Finds, checks and opens the script `name` for a run as `identity`.
///
/// # Errors
/// [`ScriptError`] names the file or directory and what to do about it.
pub fn find(root: &Path, name: &ProgramName, identity: &Identity) -> Result<Script, ScriptError> {
    let trusted = [0, rustix::process::geteuid().as_raw(), identity.uid];
    // Symbolic links in the configured path itself are the administrator's; below it there are none.
    let real = root.canonicalize().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => ScriptError::NotFound(root.to_owned()),
        _ => ScriptError::Io("resolve", root.to_owned(), e),
    })?;
    let directory_flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut path = PathBuf::from("/");
    let mut here = open("/", directory_flags, Mode::empty()).map_err(io_error("open", &path))?;
    let mut above = check_directory(&here, &path, &trusted)?;

    let parts = real
        .strip_prefix("/")
        .unwrap_or(&real)
        .components()
        .map(|c| c.as_os_str().to_owned());
    let parts: Vec<_> = parts
        .chain(name.as_str().split('/').map(Into::into))
        .collect();
    let (last, directories) = parts
        .split_last()
        .ok_or_else(|| ScriptError::NotFound(root.to_owned()))?;
    for part in directories {
        path.push(part);
        let next = openat(&here, part, directory_flags, Mode::empty())
            .map_err(|e| not_there(&here, part, &path, e))?;
        check_owner_below(above, &next, &path, &trusted)?;
        above = check_directory(&next, &path, &trusted)?;
        here = next;
    }

    path.push(last);
    let mut file_name = last.clone();
    let found =
        statat(&here, last, AtFlags::SYMLINK_NOFOLLOW).map_err(io_error("look at", &path))?;
    if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
        let next =
            openat(&here, last, directory_flags, Mode::empty()).map_err(io_error("open", &path))?;
        check_owner_below(above, &next, &path, &trusted)?;
        check_directory(&next, &path, &trusted)?;
        here = next;
        path.push("run");
        file_name = "run".into();
    }
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd = open_file(&here, &file_name, &path, flags)?;
    let stat = fstat(&fd).map_err(io_error("look at", &path))?;
    check_file(&stat, &path, &trusted, identity)?;
    let interpreted = is_interpreted(&fd, &path)?;
    let directory = path.parent().unwrap_or(&real).to_owned();
    Ok(Script {
        fd,
        path,
        directory,
        interpreted,
    })
}

fn not_there(here: &OwnedFd, part: &std::ffi::OsStr, path: &Path, e: Errno) -> ScriptError {
    let link = statat(here, part, AtFlags::SYMLINK_NOFOLLOW)
        .is_ok_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Symlink);
    if link {
        ScriptError::Symlink(path.to_owned())
    } else {
        io_error("open", path)(e)
    }
}

/// Opens the file for reading; one that the daemon cannot read but its user can execute, too.
fn open_file(
    here: &OwnedFd,
    name: &std::ffi::OsStr,
    path: &Path,
    flags: OFlags,
) -> Result<OwnedFd, ScriptError> {
    match openat(here, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            openat(here, name, flags, Mode::empty()).map_err(io_error("open", path))
        }
        Err(Errno::NXIO) => Err(ScriptError::NotRegular(path.to_owned())),
        other => other.map_err(io_error("open", path)),
    }
}

/// Whether a directory lets everybody create entries, but only owners remove them.
#[derive(Clone, Copy, PartialEq)]
struct Sticky(bool);

fn check_directory(fd: &OwnedFd, path: &Path, trusted: &[u32; 3]) -> Result<Sticky, ScriptError> {
    let stat = fstat(fd).map_err(io_error("look at", path))?;
    if !trusted.contains(&stat.st_uid) {
        return Err(ScriptError::Stranger(path.to_owned(), stat.st_uid));
    }
    let sticky = stat.st_mode & 0o1000 != 0;
    if stat.st_mode & 0o022 != 0 && !sticky {
        return Err(ScriptError::Writable(path.to_owned()));
    }
    Ok(Sticky(sticky))
}

/// Below a sticky directory the owner of an entry decides what it is.
fn check_owner_below(
    above: Sticky,
    fd: &OwnedFd,
    path: &Path,
    trusted: &[u32; 3],
) -> Result<(), ScriptError> {
    let stat = fstat(fd).map_err(io_error("look at", path))?;
    if above.0 && !trusted.contains(&stat.st_uid) {
        return Err(ScriptError::Stranger(path.to_owned(), stat.st_uid));
    }
    Ok(())
}

fn check_file(
    stat: &Stat,
    path: &Path,
    trusted: &[u32; 3],
    identity: &Identity,
) -> Result<(), ScriptError> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {}
        FileType::Symlink => return Err(ScriptError::Symlink(path.to_owned())),
        _ => return Err(ScriptError::NotRegular(path.to_owned())),
    }
    if !trusted.contains(&stat.st_uid) {
        return Err(ScriptError::Stranger(path.to_owned(), stat.st_uid));
    }
    if stat.st_mode & 0o022 != 0 {
        return Err(ScriptError::Writable(path.to_owned()));
    }
    let bits = if identity.uid == 0 {
        stat.st_mode & 0o111
    } else if stat.st_uid == identity.uid {
        stat.st_mode & 0o100
    } else if stat.st_gid == identity.gid || identity.groups.contains(&stat.st_gid) {
        stat.st_mode & 0o010
    } else {
        stat.st_mode & 0o001
    };
    if bits == 0 {
        return Err(ScriptError::NotExecutable(
            path.to_owned(),
            identity.name.clone(),
        ));
    }
    Ok(())
}

/// Looks at the first bytes. The kernel would hand an interpreter `/dev/fd/N` for a script that
/// is executed by descriptor, which breaks `$0` and leaves the descriptor open in the child; so
/// those are executed by their path, whose every directory was checked.
fn is_interpreted(fd: &OwnedFd, path: &Path) -> Result<bool, ScriptError> {
    let mut start = [0; 4];
    let read = fd
        .try_clone()
        .and_then(|fd| File::from(fd).read_at(&mut start, 0));
    match read {
        Ok(n) if start[..n].starts_with(b"#!") => Ok(true),
        Ok(4) if &start == b"\x7fELF" => Ok(false),
        Ok(_) => Err(ScriptError::Format(path.to_owned())),
        // Not readable for the daemon: the kernel will tell.
        Err(e) if e.raw_os_error() == Some(libc::EBADF) => Ok(false),
        Err(e) => Err(ScriptError::Io("read", path.to_owned(), e)),
    }
}

impl Script {
    /// Makes sure that the path still leads to the file that was checked.
    ///
    /// # Errors
    /// [`ScriptError::Exchanged`].
    pub fn confirm(&self) -> Result<(), ScriptError> {
        let same = |a: &Stat, b: &Stat| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino);
        let checked = fstat(self.fd.as_fd()).map_err(io_error("look at", &self.path))?;
        match rustix::fs::lstat(&self.path) {
            Ok(now) if same(&now, &checked) => Ok(()),
            _ => Err(ScriptError::Exchanged(self.path.clone())),
        }
    }
}
