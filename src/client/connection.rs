//! A connection to the daemon: requests out, messages, data and descriptors in.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::Problem;
use crate::protocol::frame::{self, HEADER, Kind};
use crate::protocol::message::{Reply, Request};
use crate::protocol::plain::FRAMED;

/// Why the daemon could not be asked, or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Nobody listens there.
    #[error("cannot reach the daemon at {}: {source}{}", path.display(), advice(source))]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The connection broke before the last message.
    #[error("the connection to the daemon broke")]
    Lost,
    /// The daemon turned the connection away before it was read.
    #[error("{0}")]
    TurnedAway(String),
    /// It does not speak the protocol.
    #[error("what answers there does not speak this protocol: {0}")]
    Protocol(String),
}

fn advice(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            "\nis it running? `deployer -t` tells; `deployer -d -c FILE` starts it; -c FILE or --socket PATH name another one"
        }
        io::ErrorKind::PermissionDenied => {
            "\nthe socket's directory or mode keeps you out; ask who runs the daemon"
        }
        _ => "",
    }
}

/// See the module's documentation.
pub struct Connection {
    stream: UnixStream,
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Connection {
    /// Connects and asks.
    ///
    /// # Errors
    /// [`Fault::Connect`], or [`Fault::Lost`] when the request could not be sent.
    pub fn ask(path: &Path, request: &Request) -> Result<Self, Fault> {
        let connected = UnixStream::connect(path);
        let mut stream = connected.map_err(|source| Fault::Connect {
            path: path.to_owned(),
            source,
        })?;
        let json = serde_json::to_vec(request).map_err(|e| Fault::Protocol(e.to_string()))?;
        let mut bytes = FRAMED.to_vec();
        bytes.extend_from_slice(&frame::encode(Kind::Control, &json));
        // Turned away while sending: the reason is there to be read.
        let _ = stream.write_all(&bytes);
        bytes.clear();
        Ok(Self {
            stream,
            bytes,
            fds: VecDeque::new(),
        })
    }

    /// The next message; waits for it. `None`: the daemon closed the connection.
    ///
    /// # Errors
    /// [`Fault`].
    pub fn receive(&mut self) -> Result<Option<Reply>, Fault> {
        loop {
            if self.bytes.starts_with(b"ERROR ") {
                if let Some(end) = self.bytes.iter().position(|b| *b == b'\n') {
                    return Err(Fault::TurnedAway(
                        String::from_utf8_lossy(&self.bytes[6..end]).into_owned(),
                    ));
                }
            } else {
                match frame::decode_reply(&self.bytes) {
                    Ok(Some((Kind::Control, length))) => {
                        let reply = serde_json::from_slice(&self.bytes[HEADER..HEADER + length]);
                        self.bytes.drain(..HEADER + length);
                        return reply.map(Some).map_err(|e| Fault::Protocol(e.to_string()));
                    }
                    Ok(Some(_)) => {
                        return Err(Fault::Protocol("data where none was asked for".into()));
                    }
                    Ok(None) => {}
                    Err(e) => return Err(Fault::Protocol(e.to_string())),
                }
            }
            if !self.fill()? {
                return if self.bytes.is_empty() {
                    Ok(None)
                } else {
                    Err(Fault::Lost)
                };
            }
        }
    }

    /// The next message, which has to come.
    ///
    /// # Errors
    /// [`Problem`]: a refusal by the daemon is one, too.
    pub fn expect(&mut self) -> Result<Reply, Problem> {
        match self.receive()? {
            Some(Reply::Error { code, message }) => Err(Problem::from_reply(code, &message)),
            Some(reply) => Ok(reply),
            None => Err(Fault::Lost.into()),
        }
    }

    /// Whether a whole message, or the end, is here already.
    #[must_use]
    pub fn buffered(&self) -> bool {
        matches!(frame::decode_reply(&self.bytes), Ok(Some(_)) | Err(_))
    }

    /// Gives up on the daemon when it is silent for so long: [`Fault::Lost`].
    pub fn lose_patience_after(&self, time: Duration) {
        // A time that is not zero is always taken.
        let _ = self.stream.set_read_timeout(Some(time));
    }

    /// The way to the daemon once more, for what is said while a run goes on.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn sender(&self) -> io::Result<UnixStream> {
        self.stream.try_clone()
    }

    /// A descriptor that came with the last messages, in order.
    pub fn take_fd(&mut self) -> Option<OwnedFd> {
        self.fds.pop_front()
    }

    fn fill(&mut self) -> Result<bool, Fault> {
        let mut buffer = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut slices = [IoSliceMut::new(&mut buffer)];
            match recvmsg(
                &self.stream,
                &mut slices,
                &mut ancillary,
                RecvFlags::CMSG_CLOEXEC,
            ) {
                Err(rustix::io::Errno::INTR) => {}
                other => break other,
            }
        };
        let n = received.map_err(|_| Fault::Lost)?.bytes;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        self.bytes.extend_from_slice(&buffer[..n]);
        Ok(n > 0)
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
