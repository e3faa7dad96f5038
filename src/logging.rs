//! The daemon's own log: to stderr (which may be a file), or to syslog.
//!
//! Whatever a client could have put into a message is escaped: one event is one line, and no
//! escape sequence reaches a terminal.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::str::FromStr;

use tracing::{Level, Metadata};
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;

use crate::config::diag::printable;

/// Where syslog listens.
const SYSLOG: &str = "/dev/log";

/// Makes this process log. `level` is one of seed 000's words, in any case.
pub fn start(level: &str, syslog: bool) {
    let level = match level.to_ascii_lowercase().as_str() {
        "warning" => LevelFilter::WARN,
        "critical" => LevelFilter::ERROR,
        other => LevelFilter::from_str(other).unwrap_or(LevelFilter::INFO),
    };
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_target(false)
        .with_ansi(false);
    // Somebody may have set one already: in tests.
    let socket = syslog
        .then(|| {
            UnixDatagram::unbound()
                .and_then(|s| s.connect(SYSLOG).map(|()| s))
                .ok()
        })
        .flatten();
    let _ = match socket {
        Some(socket) => builder
            .without_time()
            .with_level(false)
            .with_writer(Syslog(socket))
            .try_init(),
        None => builder.with_writer(Lines).try_init(),
    };
}

/// Lets stderr be this file, opened to append, from now on.
///
/// # Errors
/// It cannot be opened.
pub fn append_stderr_to(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt;
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)?;
    rustix::stdio::dup2_stderr(&file)?;
    Ok(())
}

/// Writes an event to stderr in one piece.
struct Lines;

/// What sends a finished line to syslog.
type Send<'a> = Box<dyn FnMut(&str) + 'a>;

/// One event on its way.
struct Line<F: FnMut(&str)> {
    bytes: Vec<u8>,
    send: F,
}

impl<F: FnMut(&str)> Write for Line<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<F: FnMut(&str)> Drop for Line<F> {
    fn drop(&mut self) {
        let text = String::from_utf8_lossy(&self.bytes);
        (self.send)(&printable(text.trim_end_matches('\n')));
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Line<fn(&str)>;

    fn make_writer(&'a self) -> Self::Writer {
        // A log that cannot be written must not end what it is about.
        Line {
            bytes: Vec::new(),
            send: |text| drop(io::stderr().write_all(format!("{text}\n").as_bytes())),
        }
    }
}

struct Syslog(UnixDatagram);

impl<'a> MakeWriter<'a> for Syslog {
    type Writer = Line<Send<'a>>;

    fn make_writer(&'a self) -> Self::Writer {
        self.line(6)
    }

    fn make_writer_for(&'a self, meta: &Metadata<'_>) -> Self::Writer {
        self.line(match *meta.level() {
            Level::ERROR => 3,
            Level::WARN => 4,
            Level::INFO => 6,
            Level::DEBUG | Level::TRACE => 7,
        })
    }
}

impl Syslog {
    fn line(&self, severity: u8) -> Line<Send<'_>> {
        // Facility 3: system daemons.
        let head = format!("<{}>deployer[{}]:", 3 * 8 + severity, std::process::id());
        let send = move |text: &str| {
            drop(
                self.0
                    .send(format!("{head} {}", text.trim_start()).as_bytes()),
            )
        };
        Line {
            bytes: Vec::new(),
            send: Box::new(send),
        }
    }
}
