//! The control socket: who connects, what they say, and what they are told.
//!
//! * [`peer`]: the identity of a client, from the kernel, once.
//! * [`listener`]: the socket itself and the bounds on connections.
//! * [`connection`]: one client from its first byte to its last answer.
//! * [`stream`]: bytes of a log to a socket, for clients that do not read the log themselves.
//!
//! Nothing here decides: requests go to [`Desk`], answers come back as [`Notice`]s.

pub mod connection;
pub mod listener;
pub mod peer;
pub mod stream;

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use crate::ids::RunId;
use crate::policy::Peer;
use crate::protocol::message::{Reply, Request};
use crate::sys::terminal::Terminal;

/// Where requests go; the daemon's actor is behind it.
pub trait Desk: Clone + Send + Sync + 'static {
    /// Hands a request over. Answers come through `notices`, the last one a final one.
    fn submit(
        &self,
        peer: Peer,
        request: Request,
        plain: bool,
        notices: mpsc::UnboundedSender<Notice>,
    ) -> impl Future<Output = ()> + Send;
}

/// What a connection is told.
#[derive(Debug)]
pub enum Notice {
    /// A message that more may follow.
    Reply(Box<Reply>),
    /// The last message.
    Final(Box<Reply>),
    /// The run that answers the request has a process and a log.
    Started {
        /// Which run.
        run: RunId,
        /// For which request.
        request: RunId,
        /// Its log.
        log: Arc<LiveLog>,
        /// Its standard input, for the connection that asked for it.
        stdin: Option<Input>,
    },
    /// More messages, as fast as the client takes them, until it leaves.
    Feed(mpsc::Receiver<Reply>),
}

/// Where what a client sends goes.
#[derive(Debug)]
pub enum Input {
    /// The write end of a pipe, for one client alone.
    Pipe(OwnedFd),
    /// A terminal, at which several may sit.
    Terminal {
        /// It.
        terminal: Arc<Terminal>,
        /// The client did not begin the run: it sees what comes from now on, and the end of what
        /// it types is not that of the run's input.
        joined: bool,
    },
}

/// A log that is being written, or has been.
#[derive(Debug)]
pub struct LiveLog {
    /// `ID.log`.
    pub log: PathBuf,
    /// `ID.idx`.
    pub index: PathBuf,
    /// How far it has come.
    pub progress: watch::Receiver<Progress>,
    /// What its run says of itself just now, if it does; not kept.
    pub status: watch::Sender<String>,
}

impl LiveLog {
    /// A log in these files.
    #[must_use]
    pub fn new(log: PathBuf, index: PathBuf, progress: watch::Receiver<Progress>) -> Self {
        Self {
            log,
            index,
            progress,
            status: watch::Sender::default(),
        }
    }
}

/// How far a log has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Bytes.
    pub bytes: u64,
    /// Bytes of output that were not kept.
    pub dropped: u64,
    /// Nothing more will come.
    pub complete: bool,
}
