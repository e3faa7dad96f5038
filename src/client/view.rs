//! A run's output on its way from the log to stdout and stderr.
//!
//! The daemon hands over the log and its index; the client reads them by offset, so a slow
//! terminal holds up nobody, and after a lost connection it goes on where it was.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::sendfile;
use rustix::io::Errno;

use super::Problem;
use crate::log::{Reader, Stream};

/// How much is copied at a time where the kernel cannot do it alone, in bytes.
const BUFFER: usize = 128 * 1024;

/// See the module's documentation.
pub struct View {
    reader: Reader,
    log: File,
    only: Option<Stream>,
    /// Whether the kernel copies to this stream (stdout, stderr) by itself.
    direct: [bool; 2],
}

impl View {
    /// Shows this log from `offset` on; both streams, or only one.
    ///
    /// # Errors
    /// The descriptor cannot be used.
    pub fn new(
        log: OwnedFd,
        index: OwnedFd,
        offset: u64,
        only: Option<Stream>,
    ) -> io::Result<Self> {
        let log = File::from(log);
        let mut reader = Reader::new(log.try_clone()?, Some(File::from(index)));
        reader.seek(offset);
        // What the kernel copies by itself cannot be looked at: it may be gone by then.
        let direct = [!reader.rotates(); 2];
        Ok(Self {
            reader,
            log,
            only,
            direct,
        })
    }

    /// How many bytes were gone before they could be shown.
    pub fn missed(&self) -> u64 {
        self.reader.missed()
    }

    /// How far the output was shown, in bytes of the log.
    pub fn position(&self) -> u64 {
        self.reader.position()
    }

    /// Shows all that the log holds by now.
    ///
    /// # Errors
    /// [`Problem`]: the output cannot be written, or the log not be read.
    pub fn show(&mut self) -> Result<(), Problem> {
        let broken = |e: crate::log::LogError| Problem::new(format!("{e}: {}", e.source));
        while let Some(chunk) = self.reader.next_chunk().map_err(broken)? {
            if self.only.is_some_and(|only| only != chunk.stream) {
                continue;
            }
            self.copy(chunk.stream, chunk.offset, chunk.len)?;
        }
        Ok(())
    }

    fn copy(&mut self, stream: Stream, mut offset: u64, mut len: u64) -> io::Result<()> {
        let (stdout, stderr) = (io::stdout(), io::stderr());
        let (to, direct): (BorrowedFd<'_>, _) = match stream {
            Stream::Stdout => (stdout.as_fd(), &mut self.direct[0]),
            Stream::Stderr => (stderr.as_fd(), &mut self.direct[1]),
        };
        let mut buffer = Vec::new();
        while len > 0 {
            let sent = if *direct {
                let mut at = offset;
                match sendfile(
                    to,
                    &self.log,
                    Some(&mut at),
                    usize::try_from(len).unwrap_or(usize::MAX),
                ) {
                    Ok(n) => n,
                    // Files opened to append, some terminals and file systems: copied by hand.
                    Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::IO) => {
                        *direct = false;
                        continue;
                    }
                    Err(Errno::INTR) => continue,
                    Err(Errno::AGAIN) => {
                        wait_writable(to)?;
                        continue;
                    }
                    Err(e) => return Err(e.into()),
                }
            } else {
                buffer.resize(BUFFER.min(usize::try_from(len).unwrap_or(BUFFER)), 0);
                let n = match self.reader.read_at(&mut buffer, offset) {
                    Ok(n) => n,
                    Err(e) => return Err(e.source),
                };
                write_all(to, &buffer[..n])?;
                n
            };
            if sent == 0 {
                return Err(io::Error::other("the log is shorter than it was"));
            }
            offset += sent as u64;
            len -= sent as u64;
        }
        Ok(())
    }
}

fn wait_writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};
    poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None)?;
    Ok(())
}

fn write_all(to: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_writable(to)?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
