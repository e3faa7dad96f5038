//! Says how far something has come that takes long, for those who watch. None of it is kept:
//! it goes to the daemon as `STATUS=` of `sd_notify`, and from there to terminals.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How often something is said at most.
const EVERY: Duration = Duration::from_millis(200);

static LISTENER: OnceLock<Listener> = OnceLock::new();

struct Listener {
    socket: UnixDatagram,
    /// When something was said last; none: nothing that still counts.
    said: Mutex<Option<Instant>>,
}

/// From now on it is said to the socket with this abstract name. If it cannot be, it is not said.
pub fn report_to(name: &str) {
    let connected = || {
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?;
        socket.set_nonblocking(true)?;
        std::io::Result::Ok(socket)
    };
    if let Ok(socket) = connected() {
        let said = Mutex::new(None);
        let _ = LISTENER.set(Listener { socket, said });
    }
}

/// Whether somebody listens.
pub fn is_wanted() -> bool {
    LISTENER.get().is_some()
}

/// Says something, unless something else was said a moment ago.
pub fn report(what: impl FnOnce() -> String) {
    let Some(listener) = LISTENER.get() else {
        return;
    };
    let mut said = listener.said.lock().unwrap_or_else(PoisonError::into_inner);
    if said.is_none_or(|at| at.elapsed() >= EVERY) {
        *said = Some(Instant::now());
        // Who does not hear it misses nothing.
        let _ = listener
            .socket
            .send(format!("STATUS={}", what()).as_bytes());
    }
}

/// It is over: what was said last counts no more.
pub fn over() {
    let Some(listener) = LISTENER.get() else {
        return;
    };
    let mut said = listener.said.lock().unwrap_or_else(PoisonError::into_inner);
    if said.take().is_some() {
        let _ = listener.socket.send(b"STATUS=");
    }
}

/// So many bytes of so many, for people.
pub fn bytes(done: u64, of: Option<u64>) -> String {
    let mega = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    match of.filter(|of| *of > 0) {
        Some(of) => format!(
            "{:.0} % of {:.1} MiB",
            100.0 * done.min(of) as f64 / of as f64,
            mega(of)
        ),
        None => format!("{:.1} MiB", mega(done)),
    }
}

#[cfg(test)]
mod tests {
    use super::bytes;

    #[test]
    fn sizes_are_told_with_what_is_known() {
        assert_eq!(bytes(1 << 20, Some(4 << 20)), "25 % of 4.0 MiB");
        assert_eq!(bytes(3 << 19, None), "1.5 MiB");
        assert_eq!(bytes(9, Some(0)), "0.0 MiB");
    }
}
