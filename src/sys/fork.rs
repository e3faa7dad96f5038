//! `fork`, for going to the background while there is a single thread.

use std::io;

/// Which side this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fork {
    /// The new process.
    Child,
    /// The old one.
    Parent,
}

/// Forks this process.
///
/// # Errors
/// It has more than one thread, or the kernel refused.
pub fn fork() -> io::Result<Fork> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("there is more than one thread"));
    }
    // SAFETY: with a single thread no lock can be held by somebody who is not there any more.
    match unsafe { nix::unistd::fork() }? {
        nix::unistd::ForkResult::Child => Ok(Fork::Child),
        nix::unistd::ForkResult::Parent { .. } => Ok(Fork::Parent),
    }
}
