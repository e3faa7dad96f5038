//! The way to the daemon: a session for each request, in somebody's name.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{MemfdFlags, memfd_create};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;

use crate::protocol::frame::{self, HEADER, Kind};
use crate::protocol::gateway::{Claim, Hook};
use crate::protocol::message::{ErrorCode, Reply, Request};
use crate::protocol::plain::FRAMED;
use crate::sys;

/// An HTTP client, as the daemon is to see it.
#[derive(Clone)]
pub struct Caller {
    /// The daemon.
    pub daemon: Daemon,
    /// The client's own socket.
    pub client: Arc<OwnedFd>,
    /// What is said of it.
    pub claim: Claim,
}

/// How the daemon is reached.
#[derive(Clone)]
pub enum Daemon {
    /// As its gateway: in the name of whoever is at the other end of a socket.
    Line(Arc<AsyncFd<OwnedFd>>),
    /// As everybody: in the name of this process' own user.
    Socket(Arc<PathBuf>),
}

/// Why there is no answer.
#[derive(Debug)]
pub struct Fault {
    /// The daemon's word for it.
    pub code: ErrorCode,
    /// What, and what to do next.
    pub message: String,
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        Self {
            code: ErrorCode::Stopping,
            message: format!("the daemon does not answer: {e}"),
        }
    }
}

impl Caller {
    /// Asks the daemon.
    ///
    /// # Errors
    /// It cannot be reached.
    pub async fn ask(&self, request: &Request) -> Result<Session, Fault> {
        let mut stream = match &self.daemon {
            Daemon::Socket(path) => UnixStream::connect(path.as_path()).await?,
            Daemon::Line(line) => self.open(line, None).await?,
        };
        let json = serde_json::to_vec(request).map_err(io::Error::from)?;
        let mut bytes = FRAMED.to_vec();
        bytes.extend_from_slice(&frame::encode(Kind::Control, &json));
        // Turned away while sending: the reason is there to be read.
        let _ = stream.write_all(&bytes).await;
        Ok(Session {
            stream,
            bytes: Vec::new(),
            fds: VecDeque::new(),
        })
    }

    /// Hands over a webhook; the daemon's one answer.
    ///
    /// # Errors
    /// The daemon's refusal, or its silence.
    pub async fn hook(mut self, hook: Hook, body: &[u8]) -> Result<Reply, Fault> {
        let Daemon::Line(line) = &self.daemon else {
            return Err(Fault {
                code: ErrorCode::Refused,
                message: "webhooks are for the daemon's own HTTP".to_owned(),
            });
        };
        let line = Arc::clone(line);
        let file = memfd_create(c"deployer-hook", MemfdFlags::CLOEXEC);
        let mut file = File::from(file.map_err(io::Error::from)?);
        file.write_all(body)?;
        self.claim.hook = Some(hook);
        let mut session = Session {
            stream: self.open(&line, Some(&file)).await?,
            bytes: Vec::new(),
            fds: VecDeque::new(),
        };
        session.receive().await
    }

    /// A session in the client's name.
    async fn open(&self, line: &AsyncFd<OwnedFd>, body: Option<&File>) -> io::Result<UnixStream> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let pair = socketpair(AddressFamily::UNIX, SocketType::STREAM, flags, None);
        let (ours, theirs) = pair?;
        let claim = serde_json::to_vec(&self.claim)?;
        let mut fds = vec![self.client.as_fd(), theirs.as_fd()];
        fds.extend(body.map(AsFd::as_fd));
        let send = |line: &OwnedFd| sys::socket::send_with_fds(line, &claim, &fds);
        line.async_io(Interest::WRITABLE, send).await?;
        UnixStream::from_std(ours.into())
    }

    /// All that the daemon says to this, but for the last word.
    ///
    /// # Errors
    /// The daemon's refusal, or its silence.
    pub async fn all(&self, request: &Request) -> Result<(Vec<Reply>, Reply), Fault> {
        let mut session = self.ask(request).await?;
        let mut said = Vec::new();
        loop {
            match session.receive().await? {
                last @ (Reply::Done { .. } | Reply::You(_)) => return Ok((said, last)),
                reply => said.push(reply),
            }
        }
    }
}

/// A request on its way.
pub struct Session {
    stream: UnixStream,
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Session {
    /// The next message.
    ///
    /// # Errors
    /// The daemon's refusal is one, and so is its end.
    pub async fn receive(&mut self) -> Result<Reply, Fault> {
        loop {
            if self.bytes.starts_with(b"ERROR ") {
                let text = String::from_utf8_lossy(&self.bytes[6..]);
                let code = match text.starts_with("unauthorized") {
                    true => ErrorCode::Unauthorized,
                    false => ErrorCode::Busy,
                };
                return Err(Fault {
                    code,
                    message: text.trim_end().to_owned(),
                });
            }
            let decoded = frame::decode_reply(&self.bytes).map_err(io::Error::other)?;
            if let Some((_, length)) = decoded {
                let reply = serde_json::from_slice(&self.bytes[HEADER..HEADER + length]);
                self.bytes.drain(..HEADER + length);
                return match reply.map_err(io::Error::from)? {
                    Reply::Error { code, message } => Err(Fault { code, message }),
                    reply => Ok(reply),
                };
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> io::Result<()> {
        let mut buffer = [0; 4096];
        let stream = &self.stream;
        let receive = || sys::socket::receive_with_fds(stream, &mut buffer);
        let (n, fds) = stream.async_io(Interest::READABLE, receive).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.fds.extend(fds);
        self.bytes.extend_from_slice(&buffer[..n]);
        Ok(())
    }

    /// A descriptor that came with the last messages, in order.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }
}
