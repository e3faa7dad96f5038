//! Pseudo-terminals: the daemon's end of one.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, Uid, fchmod, fchown};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{SpecialCodeIndex, Winsize, isatty, tcgetattr, tcsetwinsize};

/// How often the end of input is said: whoever reads after that finds the end as well, as behind a
/// pipe.
const ENDS: usize = 16;

/// Rows and columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Lines of text.
    pub rows: u16,
    /// Characters in each.
    pub cols: u16,
}

impl Default for Size {
    fn default() -> Self {
        Self { rows: 24, cols: 80 }
    }
}

/// The end of a pseudo-terminal at which somebody types and looks on. Non-blocking.
#[derive(Debug)]
pub struct Terminal(OwnedFd);

impl Terminal {
    /// Makes a terminal, and the end of it for a process. It belongs to `owner` if there is one.
    ///
    /// # Errors
    /// There are none left, or `/dev/pts` is not mounted.
    pub fn open(owner: Option<u32>, size: Size) -> io::Result<(Self, OwnedFd)> {
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let terminal = Self(openpt(flags)?);
        unlockpt(&terminal.0)?;
        let process = ioctl_tiocgptpeer(&terminal.0, flags)?;
        if let Some(uid) = owner {
            fchown(&process, Some(Uid::from_raw(uid)), None)?;
            fchmod(&process, Mode::RUSR | Mode::WUSR | Mode::WGRP)?;
        }
        rustix::io::ioctl_fionbio(&terminal.0, true)?;
        terminal.resize(size)?;
        Ok((terminal, process))
    }

    /// Once more what is such an end already; none if it is something else.
    #[must_use]
    pub fn of(fd: &OwnedFd) -> Option<Self> {
        isatty(fd).then(|| fd.try_clone().ok().map(Self)).flatten()
    }

    /// Another descriptor of it.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn try_clone(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }

    /// Gives it another size; its foreground processes hear of that.
    ///
    /// # Errors
    /// It is gone.
    pub fn resize(&self, size: Size) -> io::Result<()> {
        let size = Winsize {
            ws_row: size.rows,
            ws_col: size.cols,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        Ok(tcsetwinsize(&self.0, size)?)
    }

    /// Nobody will type any more: programs that read lines find the end of input, and others the
    /// character that stands for it. A terminal that takes nothing now is left alone.
    pub fn end_input(&self) {
        if let Ok(settings) = tcgetattr(&self.0) {
            let end = [settings.special_codes[SpecialCodeIndex::VEOF]; ENDS];
            let _ = rustix::io::write(&self.0, &end);
        }
    }
}

impl AsFd for Terminal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;

    use super::*;

    #[test]
    fn whoever_reads_finds_the_end_of_input_each_time() {
        let (terminal, process) = Terminal::open(None, Size { rows: 9, cols: 40 }).unwrap();
        rustix::io::write(&terminal, b"one\ntw").unwrap();
        terminal.end_input();
        let mut process = File::from(process);
        let mut bytes = [0; 64];
        for expected in [&b"one\n"[..], b"tw", b"", b"", b""] {
            let n = process.read(&mut bytes).unwrap();
            assert_eq!(&bytes[..n], expected);
        }
        let size = rustix::termios::tcgetwinsize(&process).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (9, 40));
        assert!(Terminal::of(&File::open("/dev/null").unwrap().into()).is_none());
    }
}
