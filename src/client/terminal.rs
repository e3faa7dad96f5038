//! The client's own terminal, while it is that of a run.
//!
//! Keys go to the run as they are, Ctrl-C included; one key leaves it. Whatever happens, the
//! terminal is as it was before when the client ends.

use std::io::{self, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use nix::sys::signal::{SigSet, Signal};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

use super::{Problem, say};
use crate::protocol::frame::{self, Kind};
use crate::protocol::message::{Aside, Terminal};
use crate::sys;

/// Names the key that leaves a run: `^X`, or `none`.
const DETACH_KEY: &str = "DEPLOYER_DETACH_KEY";
/// Ctrl-], as with `virsh console` and telnet.
const USUAL_DETACH_KEY: u8 = 0x1d;

/// How the terminal was, while it is not so.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nobody leaves any of them half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The terminal that stdin is, if it is one.
pub fn here() -> Option<Terminal> {
    let size = tcgetwinsize(io::stdin()).ok()?;
    Some(Terminal {
        rows: size.ws_row,
        cols: size.ws_col,
        kind: std::env::var("TERM").ok(),
    })
}

/// Whether lines have to be ended as a terminal in raw mode wants it.
pub fn is_raw() -> bool {
    held(&BEFORE).is_some()
}

/// Whether a line stands there that is to go.
static STATUS: AtomicBool = AtomicBool::new(false);

/// Shows what a run says of itself in a line that goes again, if a person is looking.
pub fn show_status(text: &str) {
    let Some(cols) = tcgetwinsize(io::stderr()).ok().map(|size| size.ws_col) else {
        return;
    };
    hide_status();
    // Not up to the edge: there the line would become two.
    let width = usize::from(cols.max(2)) - 1;
    let line: String = super::printable(text).chars().take(width).collect();
    if !line.is_empty() {
        STATUS.store(true, Ordering::Relaxed);
        let _ = io::stderr().write_all(line.as_bytes());
    }
}

/// Takes that line away.
pub fn hide_status() {
    if STATUS.swap(false, Ordering::Relaxed) {
        let _ = io::stderr().write_all(b"\r\x1b[K");
    }
}

/// Makes the terminal what it was.
pub fn restore() {
    if let Some(before) = held(&BEFORE).take() {
        let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}

fn make_raw() -> Result<(), Problem> {
    let refused = |e| Problem::new(format!("cannot use the terminal: {e}"));
    let before = tcgetattr(io::stdin()).map_err(refused)?;
    let mut raw = before.clone();
    raw.make_raw();
    tcsetattr(io::stdin(), OptionalActions::Drain, &raw).map_err(refused)?;
    *held(&BEFORE) = Some(before);
    Ok(())
}

/// The key that leaves a run; none if there is to be none.
///
/// # Errors
/// [`Problem`]: `$DEPLOYER_DETACH_KEY` is no key.
pub fn detach_key() -> Result<Option<u8>, Problem> {
    let Ok(text) = std::env::var(DETACH_KEY) else {
        return Ok(Some(USUAL_DETACH_KEY));
    };
    match text.as_bytes() {
        b"none" => Ok(None),
        [b'^', key @ (b'@'..=b'_' | b'a'..=b'z')] => Ok(Some(key.to_ascii_uppercase() & 0x1f)),
        _ => Err(Problem::new(format!(
            "{DETACH_KEY} is {text:?}; write a caret and a character, such as `^]`, or `none`"
        ))),
    }
}

/// What is typed, on its way to a run. Dropped, it leaves the terminal as it was.
pub struct Keyboard {
    line: Arc<Line>,
}

/// The way to the daemon, which may be interrupted.
struct Line {
    socket: Mutex<Option<UnixStream>>,
    connected: Condvar,
    run: AtomicU64,
}

impl Keyboard {
    /// Takes over stdin, until `detach` is typed. What this thread blocks of signals, others have
    /// to block as well.
    ///
    /// # Errors
    /// [`Problem`]: the terminal cannot be changed.
    pub fn take(detach: Option<u8>) -> Result<Self, Problem> {
        let line = Arc::new(Line {
            socket: Mutex::new(None),
            connected: Condvar::new(),
            run: AtomicU64::new(0),
        });
        let at_terminal = io::stdin().is_terminal();
        if at_terminal {
            watch_size(Arc::clone(&line))?;
            make_raw()?;
        }
        let keyboard = Self {
            line: Arc::clone(&line),
        };
        // A client in the background of its terminal is told EIO instead of being stopped.
        sys::signal::ignore(Signal::SIGTTIN);
        spawn("stdin", move || {
            line.pass_on(detach.filter(|_| at_terminal))
        })?;
        Ok(keyboard)
    }

    /// From now on what is typed goes to this run, over this connection.
    pub fn connect(&self, run: u64, socket: UnixStream) {
        self.line.run.store(run, Ordering::Relaxed);
        *held(&self.line.socket) = Some(socket);
        self.line.connected.notify_all();
        self.line.tell_size();
    }

    /// The connection is gone: what is typed waits for the next.
    pub fn disconnect(&self) {
        *held(&self.line.socket) = None;
    }
}

impl Drop for Keyboard {
    fn drop(&mut self) {
        restore();
    }
}

impl Line {
    fn send(&self, kind: Kind, payload: &[u8]) {
        let mut socket = held(&self.socket);
        while socket.is_none() {
            let waited = self.connected.wait(socket);
            socket = waited.unwrap_or_else(PoisonError::into_inner);
        }
        if let Some(socket) = socket.as_mut() {
            // A broken connection is noticed, and mended, by whoever reads from it.
            let _ = socket.write_all(&frame::encode(kind, payload));
        }
    }

    fn pass_on(&self, detach: Option<u8>) {
        let mut buffer = [0; 4096];
        loop {
            let n = match io::stdin().lock().read(&mut buffer) {
                Ok(0) => return self.send(Kind::Stdin, b""),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let typed = &buffer[..n];
            let end = detach.and_then(|key| typed.iter().position(|b| *b == key));
            let before = &typed[..end.unwrap_or(n)];
            if !before.is_empty() {
                self.send(Kind::Stdin, before);
            }
            if end.is_some() {
                self.leave();
            }
        }
    }

    fn leave(&self) -> ! {
        restore();
        let run = self.run.load(Ordering::Relaxed);
        let _ = io::stderr().write_all(b"\n");
        say(&format!(
            "left; run {run} goes on. `deployer ATTACH {run}` comes back to it, `deployer CANCEL {run}` ends it"
        ));
        std::process::exit(0);
    }

    fn tell_size(&self) {
        let Some(Terminal { rows, cols, .. }) = here().filter(|t| t.rows > 0 && t.cols > 0) else {
            return;
        };
        if let Ok(json) = serde_json::to_vec(&Aside::Resize { rows, cols }) {
            self.send(Kind::Control, &json);
        }
    }
}

/// Tells the run of each new size of the terminal.
fn watch_size(line: Arc<Line>) -> Result<(), Problem> {
    let mut resized = SigSet::empty();
    resized.add(Signal::SIGWINCH);
    let cannot = |e| Problem::new(format!("cannot watch the terminal: {e}"));
    // Blocked by all threads, it waits for the one that asks for it.
    resized.thread_block().map_err(cannot)?;
    spawn("size", move || {
        while resized.wait().is_ok() {
            line.tell_size();
        }
    })
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), Problem> {
    let spawned = thread::Builder::new().name(name.into()).spawn(work);
    spawned
        .map(drop)
        .map_err(|e| Problem::new(format!("cannot read stdin: {e}")))
}
