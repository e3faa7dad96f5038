//! A datagram socket whose messages carry descriptors: the daemon's end, and the keeper's.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::wire::{MAX, MAX_FDS, ToDaemon, ToKeeper};

/// One datagram that was received.
#[derive(Debug)]
pub enum Received {
    /// Bytes and descriptors.
    Datagram(Vec<u8>, Vec<OwnedFd>),
    /// Nothing is there now.
    Nothing,
    /// The other side is gone.
    Closed,
}

/// Sends one datagram.
///
/// # Errors
/// What the kernel said; `EAGAIN` only on a non-blocking socket.
pub fn send_datagram(socket: impl AsFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::other("more descriptors than a datagram carries"));
    }
    loop {
        match sendmsg(
            &socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives one datagram, if one is there.
///
/// # Errors
/// What the kernel said.
pub fn receive_datagram(socket: impl AsFd) -> io::Result<Received> {
    let mut bytes = vec![0; MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let received = loop {
        match recvmsg(
            &socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            flags,
        ) {
            Err(rustix::io::Errno::INTR) => {}
            Err(rustix::io::Errno::AGAIN) => return Ok(Received::Nothing),
            Err(rustix::io::Errno::CONNRESET) => return Ok(Received::Closed),
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = message {
            fds.extend(sent);
        }
    }
    if received.bytes == 0 && fds.is_empty() {
        return Ok(Received::Closed);
    }
    bytes.truncate(received.bytes);
    Ok(Received::Datagram(bytes, fds))
}

/// The daemon's end of the conversation with its keeper.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What the keeper said.
#[derive(Debug)]
pub enum Heard {
    /// A message, with descriptors.
    Message(ToDaemon, Vec<OwnedFd>),
    /// Nothing for now.
    Nothing,
    /// The keeper is gone.
    Gone,
}

impl Link {
    /// Talks over this socket.
    #[must_use]
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Tells the keeper something. That the keeper is gone shows in [`Link::hear`].
    pub fn send(&self, message: &ToKeeper, fds: &[BorrowedFd<'_>]) {
        if let Err(e) = send_datagram(&self.0, &message.encode(), fds) {
            tracing::debug!("the keeper was not told {message:?}: {e}");
        }
    }

    /// What the keeper said, if anything.
    pub fn hear(&self) -> Heard {
        loop {
            match receive_datagram(&self.0) {
                Ok(Received::Datagram(bytes, fds)) => match ToDaemon::decode(&bytes) {
                    Some(message) => return Heard::Message(message, fds),
                    None => tracing::warn!("the keeper sent something unknown"),
                },
                Ok(Received::Nothing) => return Heard::Nothing,
                Ok(Received::Closed) => return Heard::Gone,
                Err(e) => {
                    tracing::error!("the keeper cannot be heard: {e}");
                    return Heard::Gone;
                }
            }
        }
    }

    /// Waits for what the keeper says.
    pub fn wait(&self) -> Heard {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            match self.hear() {
                Heard::Nothing => {
                    let _ = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], None);
                }
                heard => return heard,
            }
        }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}
