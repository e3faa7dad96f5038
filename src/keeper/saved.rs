//! What survives when a process executes itself as the keeper: a memfd of JSON, and descriptors
//! that stay open across `execve`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::MemfdFlags;
use rustix::io::{FdFlags, fcntl_setfd};
use serde::{Deserialize, Serialize};

/// The form of [`Saved`]. A keeper refuses a form it does not know, before it gives up anything.
pub const VERSION: u32 = 1;

/// What keeper and daemon are told at their start. Descriptors are numbers that are open.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The program, to be executed again.
    pub exe: PathBuf,
    /// The configuration file.
    pub config: PathBuf,
    /// `--socket`.
    pub socket: Option<PathBuf>,
    /// `--mode`.
    pub mode: Option<u32>,
    /// `--root`.
    pub root: Option<PathBuf>,
    /// `-A`: programs of groups up to this are started with the daemon.
    #[serde(default)]
    pub autostart: Option<u32>,
    /// `syslog`, or everything else: stderr.
    pub syslog: bool,
    /// The log file that stderr is, to be opened again on a reload.
    pub log_file: Option<PathBuf>,
    /// The least severe messages that are logged.
    pub level: String,
    /// The listening socket came from a service manager: it is not this program's to remove.
    pub activated: bool,
    /// The pid file, removed at the end.
    pub pid_file: Option<PathBuf>,
    /// The soft limit of open files before it was raised.
    pub nofile: u64,
    /// The lock on the state directory; held as long as it is open.
    pub lock: RawFd,
}

/// A run, as it is handed from keeper to keeper.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct SavedRun {
    /// Which run.
    pub run: u64,
    /// Its process; 0 where none was ever made.
    pub pid: u32,
    /// Status, or minus the signal.
    pub exit: Option<i32>,
    /// Its parked descriptors.
    pub fds: Vec<RawFd>,
}

/// All that a keeper holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// See [`VERSION`].
    pub version: u32,
    /// See there.
    pub settings: Settings,
    /// The configuration in force.
    pub config: Option<RawFd>,
    /// The listening socket.
    pub listener: Option<RawFd>,
    /// The runs.
    pub runs: Vec<SavedRun>,
    /// The daemon that is to retire: its pid and the socket to it.
    pub daemon: Option<(i32, RawFd)>,
    /// Whether a daemon has served already.
    pub served: bool,
}

/// Why nothing was saved or restored.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}: {source}")]
pub struct SavedError {
    doing: &'static str,
    source: io::Error,
}

fn failed(doing: &'static str) -> impl FnOnce(io::Error) -> SavedError {
    move |source| SavedError { doing, source }
}

impl Saved {
    /// Executes `program` as a keeper with all this. Comes back only if that failed.
    pub fn execute(&self, program: &Path) -> SavedError {
        match self.try_execute(program) {
            Ok(never) => match never {},
            Err(e) => e,
        }
    }

    fn try_execute(&self, program: &Path) -> Result<std::convert::Infallible, SavedError> {
        let json = serde_json::to_vec(self)
            .map_err(io::Error::other)
            .map_err(failed("write the state"))?;
        let memfd = rustix::fs::memfd_create("deployer-state", MemfdFlags::CLOEXEC);
        let mut file = File::from(
            memfd
                .map_err(io::Error::from)
                .map_err(failed("make room for the state"))?,
        );
        file.write_all(&json).map_err(failed("write the state"))?;
        for fd in self.descriptors().chain([file.as_raw_fd()]) {
            keep_open(fd).map_err(failed("keep a descriptor"))?;
        }
        let e = Command::new(program)
            .arg0("deployer")
            .arg("--role=keeper")
            .arg(file.as_raw_fd().to_string())
            .exec();
        Err(SavedError {
            doing: "execute the program",
            source: e,
        })
    }

    /// Reads what [`Saved::execute`] wrote.
    ///
    /// # Errors
    /// [`SavedError`]: it is not readable, or of an unknown form.
    pub fn restore(memfd: OwnedFd) -> Result<Self, SavedError> {
        let mut file = File::from(memfd);
        let mut json = Vec::new();
        file.seek(SeekFrom::Start(0))
            .and_then(|_| file.read_to_end(&mut json))
            .map_err(failed("read the state"))?;
        let saved: Self = serde_json::from_slice(&json)
            .map_err(io::Error::other)
            .map_err(failed("read the state"))?;
        if saved.version != VERSION {
            let e = io::Error::other(format!("form {} where {VERSION} is known", saved.version));
            return Err(SavedError {
                doing: "understand the state",
                source: e,
            });
        }
        Ok(saved)
    }

    fn descriptors(&self) -> impl Iterator<Item = RawFd> + '_ {
        let runs = self.runs.iter().flat_map(|r| r.fds.iter().copied());
        let daemon = self.daemon.map(|(_, fd)| fd);
        runs.chain(self.config)
            .chain(self.listener)
            .chain(daemon)
            .chain([self.settings.lock])
    }
}

/// Lets a descriptor survive `execve`, or not.
fn set_cloexec(fd: RawFd, cloexec: bool) -> io::Result<()> {
    let borrowed = crate::sys::fd::borrow(fd)?;
    fcntl_setfd(
        borrowed,
        if cloexec {
            FdFlags::CLOEXEC
        } else {
            FdFlags::empty()
        },
    )?;
    Ok(())
}

fn keep_open(fd: RawFd) -> io::Result<()> {
    set_cloexec(fd, false)
}

/// Takes over a descriptor that was inherited by number; it does not go to children any more.
///
/// # Errors
/// It is not open.
pub fn inherit(fd: RawFd) -> io::Result<OwnedFd> {
    let owned = crate::sys::fd::own(fd)?;
    set_cloexec(owned.as_raw_fd(), true)?;
    Ok(owned)
}
