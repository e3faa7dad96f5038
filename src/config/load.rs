//! The configuration file: opened once, and only believed if nobody else could have written it.
//!
//! Every step of the path is checked on an open descriptor, symbolic links included: each
//! directory, link and the file itself belongs to root or to the daemon's own user, and nobody
//! else may write there. In a sticky directory such as `/tmp` others may make files but not
//! replace ours, so that is allowed. The file is then read through the descriptor that was
//! checked.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Component, Path, PathBuf};

use rustix::fd::OwnedFd;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::check::{Checked, check};
use super::people::Names;
use crate::accounts;

/// The largest configuration, in bytes.
pub const MAX_SIZE: u64 = 4 << 20;

/// How many symbolic links a path may go through.
const MAX_LINKS: usize = 40;

/// Why a file could not be used, before a look at what it says.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no such file.
    #[error(
        "there is no configuration {}; write one (the example that comes with deployer, \
         etc/deployer.cfg, explains itself), or name another file with -c FILE or $DEPLOYER_CONFFILE",
        path.display()
    )]
    Missing {
        /// The file that was asked for.
        path: PathBuf,
    },
    /// Something on the way could not be opened or read.
    #[error("cannot {what} {}", path.display())]
    Io {
        /// What was being done, an infinitive.
        what: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// It is a directory, a pipe, a device.
    #[error("{} is not a regular file", path.display())]
    NotAFile {
        /// Which one.
        path: PathBuf,
    },
    /// It belongs to somebody who is neither root nor the daemon's user.
    #[error("{} belongs to uid {owner}, who could change it; run: chown root {}", path.display(), path.display())]
    Owner {
        /// The file, directory or link.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others may write to it.
    #[error("{} can be written by {who} (mode {mode:04o}); run: chmod {fix} {}", path.display(), path.display())]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// By whom, in words.
        who: &'static str,
        /// Its permission bits.
        mode: u32,
        /// The argument of chmod that helps.
        fix: &'static str,
    },
    /// More than [`MAX_SIZE`] bytes.
    #[error("{} is larger than {} MiB", path.display(), MAX_SIZE >> 20)]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// A configuration file, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The bytes of the file, to be kept for a daemon that has to start again.
    pub text: Vec<u8>,
    /// What they say.
    pub checked: Checked,
}

/// Reads and checks the file at `path`, for a daemon that runs as the user of this process.
///
/// # Errors
/// [`LoadError`] if the file cannot be read or others could have written it. Faults of its
/// text are in [`Checked::diagnostics`].
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let text = read_trusted(path)?;
    let checked = from_text(&text, path);
    Ok(Loaded { text, checked })
}

/// Checks a text that was read before, with the names this system knows. `path` is only shown.
#[must_use]
pub fn from_text(text: &[u8], path: &Path) -> Checked {
    check(text, path, &System, rustix::process::geteuid().is_root())
}

/// The users and groups of this system.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Names for System {
    fn user(&self, name: &str) -> Option<u32> {
        accounts::user(name).ok().flatten().map(|user| user.uid)
    }

    fn group(&self, name: &str) -> Option<u32> {
        accounts::group(name).ok().flatten()
    }
}

/// Reads a file that only root and the user of this process can have written.
///
/// # Errors
/// [`LoadError`] names the file, directory or link and what to do about it.
pub fn read_trusted(path: &Path) -> Result<Vec<u8>, LoadError> {
    let fd = open_trusted(path)?;
    let mut text = Vec::new();
    File::from(fd)
        .take(MAX_SIZE + 1)
        .read_to_end(&mut text)
        .map_err(|source| LoadError::Io {
            what: "read",
            path: path.to_owned(),
            source,
        })?;
    if text.len() as u64 > MAX_SIZE {
        return Err(LoadError::TooLarge {
            path: path.to_owned(),
        });
    }
    Ok(text)
}

/// Opens a regular file for reading after checking every step of the way to it.
///
/// # Errors
/// [`LoadError`] names the file, directory or link and what to do about it.
pub fn open_trusted(path: &Path) -> Result<OwnedFd, LoadError> {
    let io = |source| LoadError::Io {
        what: "find",
        path: path.to_owned(),
        source,
    };
    let absolute = std::path::absolute(path).map_err(io)?;
    let result = Walk::new(&absolute)?.file();
    result.map_err(|e| match e {
        // A missing directory on the way is a missing file to whoever asked.
        LoadError::Io { source, .. }
            if source.raw_os_error() == Some(Errno::NOENT.raw_os_error()) =>
        {
            LoadError::Missing {
                path: path.to_owned(),
            }
        }
        e => e,
    })
}

/// A walk from `/` to a file, one step at a time, each step on an open descriptor.
struct Walk {
    /// The directory reached, and those above it, for `..`.
    directories: Vec<(OwnedFd, PathBuf)>,
    /// What is left of the path, the next step last.
    steps: Vec<OsString>,
    /// Symbolic links gone through.
    links: usize,
}

impl Walk {
    fn new(absolute: &Path) -> Result<Self, LoadError> {
        let mut walk = Self {
            directories: Vec::new(),
            steps: Vec::new(),
            links: 0,
        };
        walk.push_steps(absolute);
        walk.start_at_root()?;
        Ok(walk)
    }

    fn push_steps(&mut self, path: &Path) {
        let parts = path.components().rev().filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        });
        self.steps.extend(parts);
    }

    fn start_at_root(&mut self) -> Result<(), LoadError> {
        let root = PathBuf::from("/");
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open("/", flags, Mode::empty()).map_err(io("open", &root))?;
        check_directory(
            &root,
            &rustix::fs::fstat(&fd).map_err(io("look at", &root))?,
        )?;
        self.directories = vec![(fd, root)];
        Ok(())
    }

    /// Walks to the end, which has to be a regular file.
    fn file(mut self) -> Result<OwnedFd, LoadError> {
        loop {
            let Some((here, at)) = self.directories.last() else {
                self.start_at_root()?;
                continue;
            };
            let Some(step) = self.steps.pop() else {
                return Err(LoadError::NotAFile { path: at.clone() });
            };
            if step == ".." {
                self.directories
                    .truncate((self.directories.len() - 1).max(1));
                continue;
            }
            let path = at.join(&step);
            // What it is decides how to open it: a pipe or a device is never opened for reading.
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let fd =
                rustix::fs::openat(here, &step, flags, Mode::empty()).map_err(io("open", &path))?;
            let stat = rustix::fs::fstat(&fd).map_err(io("look at", &path))?;
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => {
                    check_directory(&path, &stat)?;
                    self.directories.push((fd, path));
                }
                FileType::Symlink => self.link(&fd, &path, &stat)?,
                FileType::RegularFile if self.steps.is_empty() => {
                    return self.open_regular(&step, path, &stat);
                }
                _ => return Err(LoadError::NotAFile { path }),
            }
        }
    }

    fn link(&mut self, fd: &OwnedFd, path: &Path, stat: &Stat) -> Result<(), LoadError> {
        check_owner(path, stat)?;
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(io("follow", path)(Errno::LOOP));
        }
        let target = rustix::fs::readlinkat(fd, "", Vec::new()).map_err(io("follow", path))?;
        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
        if target.is_absolute() {
            self.start_at_root()?;
        }
        self.push_steps(&target);
        Ok(())
    }

    /// Opens the file for reading and checks what was opened.
    fn open_regular(&self, name: &OsStr, path: PathBuf, seen: &Stat) -> Result<OwnedFd, LoadError> {
        let Some((here, _)) = self.directories.last() else {
            return Err(LoadError::NotAFile { path });
        };
        // Not blocking and no terminal, should it have become something else since.
        let flags =
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(here, name, flags, Mode::empty()).map_err(io("open", &path))?;
        let stat = rustix::fs::fstat(&fd).map_err(io("look at", &path))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile
            || (stat.st_dev, stat.st_ino) != (seen.st_dev, seen.st_ino)
        {
            return Err(LoadError::NotAFile { path });
        }
        check_owner(&path, &stat)?;
        check_mode(&path, &stat)?;
        Ok(fd)
    }
}

fn io(what: &'static str, path: &Path) -> impl Fn(Errno) -> LoadError {
    move |errno| LoadError::Io {
        what,
        path: path.to_owned(),
        source: errno.into(),
    }
}

fn check_directory(path: &Path, stat: &Stat) -> Result<(), LoadError> {
    check_owner(path, stat)?;
    if Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX) {
        return Ok(());
    }
    check_mode(path, stat)
}

fn check_owner(path: &Path, stat: &Stat) -> Result<(), LoadError> {
    let owner = stat.st_uid;
    if owner == 0 || owner == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(LoadError::Owner {
        path: path.to_owned(),
        owner,
    })
}

fn check_mode(path: &Path, stat: &Stat) -> Result<(), LoadError> {
    let mode = Mode::from_raw_mode(stat.st_mode);
    let (who, fix) = match (mode.contains(Mode::WGRP), mode.contains(Mode::WOTH)) {
        (false, false) => return Ok(()),
        (true, false) => ("its group", "g-w"),
        (false, true) => ("everybody", "o-w"),
        (true, true) => ("its group and everybody", "go-w"),
    };
    let mode = mode.as_raw_mode() & 0o7777;
    Err(LoadError::Writable {
        path: path.to_owned(),
        who,
        mode,
        fix,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    /// A directory of our own below the sticky one for temporary files, and a good file in it.
    fn good() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        mode(dir.path(), 0o700);
        let path = dir.path().join("deployer.cfg");
        fs::write(&path, "umask = 027\n").unwrap();
        mode(&path, 0o644);
        (dir, path)
    }

    fn mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn refusal(path: &Path) -> String {
        read_trusted(path).unwrap_err().to_string()
    }

    #[test]
    fn a_file_that_only_its_owner_can_write_is_read() {
        let (_dir, path) = good();
        let loaded = load(&path).unwrap();
        assert_eq!(loaded.text, b"umask = 027\n");
        assert_eq!(loaded.checked.config.unwrap().script.umask, 0o27);
    }

    #[test]
    fn a_file_that_others_can_write_is_refused_with_what_to_do() {
        let (_dir, path) = good();
        for (bits, who, fix) in [
            (0o664, "its group", "g-w"),
            (0o646, "everybody", "o-w"),
            (0o666, "its group and everybody", "go-w"),
        ] {
            mode(&path, bits);
            let shown = path.display();
            let expected = format!(
                "{shown} can be written by {who} (mode {bits:04o}); run: chmod {fix} {shown}"
            );
            assert_eq!(refusal(&path), expected);
        }
    }

    #[test]
    fn a_directory_that_others_can_write_is_refused_unless_it_is_sticky() {
        let (dir, _) = good();
        let sub = dir.path().join("sub");
        fs::create_dir(&sub).unwrap();
        let path = sub.join("deployer.cfg");
        fs::write(&path, "").unwrap();
        mode(&path, 0o600);
        mode(&sub, 0o777);
        assert!(refusal(&path).contains(&format!("chmod go-w {}", sub.display())));
        mode(&sub, 0o1777);
        assert_eq!(read_trusted(&path).unwrap(), b"");
    }

    #[test]
    fn links_are_followed_step_by_step_and_each_step_is_checked() {
        let (dir, path) = good();
        let link = dir.path().join("link");
        symlink(
            "../".to_owned() + dir.path().file_name().unwrap().to_str().unwrap() + "/deployer.cfg",
            &link,
        )
        .unwrap();
        assert!(read_trusted(&link).is_ok());
        // The link is ours, but it leads through a directory where anybody could swap it.
        let open = dir.path().join("open");
        fs::create_dir(&open).unwrap();
        symlink(&path, open.join("link")).unwrap();
        mode(&open, 0o777);
        let absolute = dir.path().join("absolute");
        symlink(open.join("link"), &absolute).unwrap();
        assert!(refusal(&absolute).contains(&open.display().to_string()));
    }

    #[test]
    fn a_circle_of_links_ends() {
        let (dir, _) = good();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        symlink(&a, &b).unwrap();
        symlink(&b, &a).unwrap();
        assert!(refusal(&a).starts_with("cannot follow"), "{}", refusal(&a));
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_without_waiting_for_it() {
        let (dir, path) = good();
        let pipe = dir.path().join("pipe");
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, FileType::Fifo, mode, 0).unwrap();
        for odd in [
            &pipe,
            dir.path(),
            Path::new("/dev/null"),
            Path::new("/"),
            &path.join("x"),
        ] {
            assert!(
                refusal(odd).ends_with("is not a regular file"),
                "{}",
                refusal(odd)
            );
        }
    }

    #[test]
    fn a_file_that_does_not_exist_gets_a_word_on_what_to_do_next() {
        let (dir, _) = good();
        for missing in [dir.path().join("none"), dir.path().join("none/none")] {
            let text = refusal(&missing);
            assert!(text.starts_with(&format!("there is no configuration {}", missing.display())));
            assert!(text.contains("-c FILE"), "{text}");
        }
    }

    #[test]
    fn a_file_without_end_is_not_read_to_its_end() {
        let (_dir, path) = good();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(MAX_SIZE + 1)
            .unwrap();
        assert!(refusal(&path).ends_with("is larger than 4 MiB"));
    }

    #[test]
    fn somebody_elses_file_is_refused() {
        let (_dir, path) = good();
        if !rustix::process::geteuid().is_root() {
            assert!(
                std::env::var_os("DEPLOYER_TEST_ROOT").is_none(),
                "root is expected here"
            );
            eprintln!("skipped: only root can give a file away");
            return;
        }
        std::os::unix::fs::chown(&path, Some(1), None).unwrap();
        let shown = path.display();
        let expected =
            format!("{shown} belongs to uid 1, who could change it; run: chown root {shown}");
        assert_eq!(refusal(&path), expected);
    }

    #[test]
    fn the_system_knows_root() {
        assert_eq!(System.user("root"), Some(0));
        assert_eq!(System.group("root"), Some(0));
        assert_eq!(System.user("no such user, surely"), None);
        assert_eq!(System.user("nul\0"), None);
    }
}
