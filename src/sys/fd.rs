//! Descriptors that came by number, from a parent across `execve`.

use std::io;
use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};

use tokio::io::unix::AsyncFd;

fn check(fd: RawFd) -> io::Result<()> {
    // SAFETY: asks the kernel about a number; harmless for any.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFD) };
    if fd < 0 || flags < 0 {
        Err(io::Error::from_raw_os_error(libc::EBADF))
    } else {
        Ok(())
    }
}

/// Takes over a descriptor that this process inherited and that nothing else of it uses.
///
/// # Errors
/// It is not open.
pub fn own(fd: RawFd) -> io::Result<OwnedFd> {
    check(fd)?;
    // SAFETY: it is open, and only the role that was given the number takes it over, once.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Looks at a descriptor that stays open for the rest of this process' life.
///
/// # Errors
/// It is not open.
pub fn borrow<'a>(fd: RawFd) -> io::Result<BorrowedFd<'a>> {
    check(fd)?;
    // SAFETY: it is open, and stays so: used right before `execve` and for the state lock.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}

/// Lets the runtime of the calling thread wait for a descriptor.
///
/// # Errors
/// It cannot be waited for, or there is no room.
pub fn watch(fd: OwnedFd, interest: tokio::io::Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by the registration, so it stays the same and open until
    // that is gone.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    watched.map_err(io::Error::from)
}
