//! The machine's journal, as a place for the output of a process.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::ids::ProgramName;

/// Where journald takes streams.
const SOCKET: &str = "/run/systemd/journal/stdout";
/// The priority of lines that do not begin with one of their own, such as `<4>`.
const INFO: u8 = 6;

/// A stream to the journal for the output of a program. What is written to it is journald's from
/// then on, whatever becomes of the daemon.
///
/// # Errors
/// There is no journald.
pub fn stream(program: &ProgramName) -> io::Result<OwnedFd> {
    let mut stream = UnixStream::connect(SOCKET)?;
    stream.shutdown(Shutdown::Read)?;
    // Its name, no unit, the priority, prefixes count; to syslog, kernel and console it does not go.
    stream.write_all(format!("{program}\n\n{INFO}\n1\n0\n0\n0\n").as_bytes())?;
    Ok(stream.into())
}
