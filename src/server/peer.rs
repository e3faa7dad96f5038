//! Who is on the other end of a connection, as the kernel recorded it when it was made.

use std::io;
use std::os::fd::AsFd;

use crate::ids::{Gid, Uid};
use crate::policy::Peer;
use crate::sys;

/// Asks the kernel who connected: SO_PEERCRED and SO_PEERGROUPS.
///
/// Both are fixed at `connect`, whatever the process does to its ids later or whoever it hands
/// the socket to. The pid is for the log only.
///
/// # Errors
/// What the kernel said; the connection cannot be used then.
pub fn of(socket: impl AsFd) -> io::Result<Peer> {
    let fd = socket.as_fd();
    let credentials = rustix::net::sockopt::socket_peercred(fd)?;
    let raw_uid = credentials.uid.as_raw();
    let groups = sys::socket::peer_groups(fd)?;
    Ok(Peer {
        uid: Uid::new(raw_uid).ok(),
        gid: Gid::new(credentials.gid.as_raw()).ok(),
        groups: groups
            .into_iter()
            .filter_map(|g| Gid::new(g).ok())
            .collect(),
        pid: credentials.pid.as_raw_nonzero().get(),
        raw_uid,
        scope: None,
    })
}
