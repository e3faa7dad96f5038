//! Accepts connections within bounds: so many a user, and never more than the descriptors last.

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::net::SendFlags;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tracing::{debug, warn};

use super::{Desk, connection, peer};
use crate::protocol::plain::Answer;

/// What a client is told whose user has too many.
pub const TOO_MANY: &str = "busy: you have too many connections open, close some and try again";

/// How many connections are open, by uid.
#[derive(Debug, Clone, Default)]
pub struct Census(Arc<Mutex<HashMap<u32, u32>>>);

/// One connection's place in the [`Census`], given back when it is dropped.
#[derive(Debug)]
pub struct Place {
    census: Census,
    uid: u32,
}

impl Census {
    /// Takes a place for `uid`, unless it holds `limit` already.
    #[must_use]
    pub fn enter(&self, uid: u32, limit: u32) -> Option<Place> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(uid).or_default();
        if *count >= limit {
            return None;
        }
        *count += 1;
        Some(Place {
            census: self.clone(),
            uid,
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.census.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.uid);
            }
        }
    }
}

/// Serves `listener` until the task is dropped.
///
/// `limit` is `clients-per-user`, as it is in force. Running out of descriptors ends nothing:
/// a reserved one is given up for a moment so that the client in front is turned away.
pub async fn serve(listener: UnixListener, limit: watch::Receiver<u32>, desk: impl Desk) {
    let census = Census::default();
    let mut reserve = spare_descriptor();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(e) if exhausted(&e) => {
                warn!(
                    "out of file descriptors: a client is turned away (raise LimitNOFILE of the daemon)"
                );
                drop(reserve.take());
                if let Ok((stream, _)) = listener.accept().await {
                    turn_away(
                        &stream,
                        "busy: the daemon is out of file descriptors, try again later",
                    );
                }
                reserve = spare_descriptor();
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            }
            Err(e) => {
                debug!("accept: {e}");
                continue;
            }
        };
        if reserve.is_none() {
            reserve = spare_descriptor();
        }
        let peer = match peer::of(&stream) {
            Ok(peer) => peer,
            Err(e) => {
                warn!("a client's identity cannot be read: {e}");
                continue;
            }
        };
        let Some(place) = census.enter(peer.raw_uid, *limit.borrow()) else {
            debug!(
                uid = peer.raw_uid,
                pid = peer.pid,
                "turned away: too many connections"
            );
            turn_away(&stream, TOO_MANY);
            continue;
        };
        let desk = desk.clone();
        tokio::spawn(async move {
            connection::serve(stream, peer, desk).await;
            drop(place);
        });
    }
}

fn spare_descriptor() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}

fn exhausted(e: &io::Error) -> bool {
    matches!(
        e.raw_os_error(),
        Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM)
    )
}

/// One line that both protocols understand, if the socket takes it; then the connection ends.
pub fn turn_away(stream: &UnixStream, message: &str) {
    // At once: the runtime does not know yet that there is room.
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let _ = rustix::net::send(stream, &Answer::Error(message).encode(), flags);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back() {
        let census = Census::default();
        let a = census.enter(1, 2).unwrap();
        let _b = census.enter(1, 2).unwrap();
        assert!(census.enter(1, 2).is_none());
        assert!(census.enter(2, 2).is_some());
        drop(a);
        assert!(census.enter(1, 2).is_some());
    }
}
