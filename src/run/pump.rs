//! The pump: one thread that moves the output of every run from its pipes into its log.
//!
//! It owns the reading ends of output pipes while a run is with it, and the writing ends of logs.
//! It knows nothing of processes, clients or the history; whoever adds a run hears of its output
//! through a [`Listener`]. Invariants:
//!
//! * bytes go from pipe to file by `splice`, behind an index record written before: they are
//!   either in the pipe or in the file, so the process can be killed at any moment and whoever
//!   goes on with the same pipe and files loses and repeats nothing. (What is not a pipe, such as
//!   a terminal, has to be read and written, and loses what was between the two.)
//! * a pipe is always drained: where the log is full or the disk fails, output is dropped and
//!   counted, and no program ever waits for that;
//! * a failing disk is tried again with the output that comes later;
//! * no run takes more than [`TURN`] bytes before the others had their turn;
//! * [`Listener::closed`] is called exactly once for a run that was added, unless the pump ends.

mod sink;
mod worker;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::ids::RunId;
use crate::log::Stream;

use sink::{Sink, Source};
use worker::{Run, Worker};

/// The most bytes that one stream of one run moves before others have their turn.
pub const TURN: usize = 1024 * 1024;

/// What the pump could not set up.
#[derive(Debug, thiserror::Error)]
#[error("cannot {doing}")]
pub struct PumpError {
    /// The attempt, a verb and its object.
    pub doing: &'static str,
    /// What the system said.
    pub source: io::Error,
}

impl PumpError {
    fn new(doing: &'static str, source: impl Into<io::Error>) -> Self {
        Self {
            doing,
            source: source.into(),
        }
    }
}

/// A run whose output is to be moved.
pub struct PumpRun {
    /// Which. Only one at a time of the same number.
    pub run: RunId,
    /// Reading end of its standard output; made non-blocking. A file that cannot be waited for
    /// counts as one that has ended.
    pub out: OwnedFd,
    /// Reading end of its standard error; likewise.
    pub err: OwnedFd,
    /// The log, open for reading and writing, not for appending. What is in it stays: output is
    /// added at its end.
    pub log: File,
    /// The log's index, likewise.
    pub idx: File,
    /// The most bytes that log and index together may take, but for the last two records.
    pub limit: u64,
    /// Whether the log loses its beginning instead of getting no more when it is full.
    pub rotates: bool,
    /// Who is told of it.
    pub listener: Box<dyn Listener>,
}

/// Who is told of a run's output. Called on the pump's thread: it must not wait, nor panic.
pub trait Listener: Send {
    /// The log is now `bytes` long. Called at most once for each round of the pump; may come
    /// very often.
    fn grew(&mut self, bytes: u64);
    /// Output is being dropped from now on. Told once, until output could be written again.
    fn trouble(&mut self, what: LogTrouble);
    /// Nothing more will come. The last call, and the only one of its kind.
    fn closed(&mut self, report: Closed);
}

/// Why output is dropped.
#[derive(Debug, thiserror::Error)]
pub enum LogTrouble {
    /// The log has reached its limit; it stays so.
    #[error("the log has reached its limit of {limit} bytes")]
    Full {
        /// In bytes.
        limit: u64,
    },
    /// The disk does not take it; it is tried again.
    #[error("cannot {doing}")]
    Disk {
        /// The attempt, a verb and its object.
        doing: &'static str,
        /// What the system said: ENOSPC, EDQUOT, EIO, EROFS, …
        source: io::Error,
    },
}

/// What became of a run's output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Length of the log, in bytes.
    pub bytes: u64,
    /// Bytes that are not in it.
    pub dropped: u64,
    /// Whether somebody still had a pipe open when the grace ran out.
    pub leftover: bool,
}

/// A handle of the pump. The thread ends with the last of them; runs that are with it then are
/// let go without [`Listener::closed`], and somebody else can go on with them.
#[derive(Clone)]
pub struct Pump {
    owner: Arc<Owner>,
}

/// Ends the thread when it is dropped.
struct Owner {
    shared: Arc<Shared>,
}

/// What callers and the thread share.
struct Shared {
    epoll: OwnedFd,
    wake: OwnedFd,
    inbox: Mutex<Inbox>,
}

#[derive(Default)]
struct Inbox {
    /// Runs that the thread has not seen yet, by their keys.
    added: Vec<(u64, Run)>,
    ended: Vec<(RunId, Instant)>,
    stop: bool,
    next_key: u64,
}

/// Marks events of the eventfd; a run's are its key doubled, plus one for stderr.
const WAKE: u64 = u64::MAX;

impl Pump {
    /// Starts the thread.
    ///
    /// # Errors
    /// A descriptor or the thread could not be made, or `/dev/null` not opened.
    pub fn start() -> Result<Self, PumpError> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| PumpError::new("make an epoll instance", e))?;
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| PumpError::new("make an eventfd", e))?;
        epoll::add(&epoll, &wake, EventData::new_u64(WAKE), EventFlags::IN)
            .map_err(|e| PumpError::new("wait for an eventfd", e))?;
        let null = File::options()
            .write(true)
            .open("/dev/null")
            .map_err(|e| PumpError::new("open /dev/null", e))?;
        let shared = Arc::new(Shared {
            epoll,
            wake,
            inbox: Mutex::default(),
        });
        let worker = Worker::new(Arc::clone(&shared), null);
        thread::Builder::new()
            .name("pump".to_owned())
            .spawn(move || worker.work())
            .map_err(|e| PumpError::new("start the pump's thread", e))?;
        Ok(Self {
            owner: Arc::new(Owner { shared }),
        })
    }

    /// Moves the output of a run from now on. Touches neither log nor index itself.
    ///
    /// # Errors
    /// A pipe could not be waited for; the run is not with the pump then, and not told of.
    pub fn add(&self, run: PumpRun) -> Result<(), PumpError> {
        let shared = &self.owner.shared;
        for fd in [&run.out, &run.err] {
            rustix::io::ioctl_fionbio(fd, true)
                .map_err(|e| PumpError::new("make an output pipe non-blocking", e))?;
        }
        let mut inbox = shared.inbox();
        // The thread looks for the run in the inbox when its first event comes, and has to
        // wait for the lock until both pipes are in place.
        let key = inbox.next_key;
        let out = shared.watch(&run.out, key, Stream::Stdout)?;
        let err = match shared.watch(&run.err, key, Stream::Stderr) {
            Ok(watched) => watched,
            Err(e) => {
                if out {
                    shared.unwatch(&run.out);
                }
                return Err(e);
            }
        };
        inbox.next_key += 1;
        let added = Run {
            id: run.run,
            sources: [
                out.then(|| Source::new(run.out)),
                err.then(|| Source::new(run.err)),
            ],
            sink: Sink::new(run.run, run.log, run.idx, run.limit, run.rotates),
            listener: run.listener,
        };
        inbox.added.push((key, added));
        if !out && !err {
            shared.wake();
        }
        Ok(())
    }

    /// The process of a run has ended: what is in its pipes is moved until they end too, or for
    /// at most `grace`; then they are let go of. Ignored for a run that is not with the pump.
    pub fn ended(&self, run: RunId, grace: Duration) {
        let shared = &self.owner.shared;
        shared.inbox().ended.push((run, Instant::now() + grace));
        shared.wake();
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        self.shared.inbox().stop = true;
        self.shared.wake();
    }
}

impl Shared {
    fn inbox(&self) -> MutexGuard<'_, Inbox> {
        // Nobody leaves it half changed.
        self.inbox.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // The only possible failure is a full counter, and then it is awake.
        let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
    }

    /// Whether events of the pipe will come; false for what is always readable.
    fn watch(&self, pipe: &OwnedFd, key: u64, stream: Stream) -> Result<bool, PumpError> {
        let data = EventData::new_u64(key * 2 + stream as u64);
        match epoll::add(&self.epoll, pipe, data, EventFlags::IN) {
            Ok(()) => Ok(true),
            Err(Errno::PERM) => Ok(false),
            Err(e) => Err(PumpError::new("wait for an output pipe", e)),
        }
    }

    /// Closing alone would not do it: others hold the same pipe.
    fn unwatch(&self, pipe: impl AsFd) {
        // It was watched, so this cannot fail.
        let _ = epoll::delete(&self.epoll, pipe);
    }
}

#[cfg(test)]
mod tests;
