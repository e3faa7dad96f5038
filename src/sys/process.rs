//! Processes by their pidfd: never by a number that may have been given to another.

use std::os::fd::{AsFd, AsRawFd};

use rustix::process::{Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_send_signal, waitid};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
}

impl Ended {
    /// Reads the number that `wait` gives.
    #[must_use]
    pub fn from_wait_status(status: i32) -> Self {
        match status & 0x7f {
            0 => Self::Code((status >> 8) & 0xff),
            signal => Self::Signal(signal),
        }
    }
}

/// How an ended child of this process ended; it stays there to be asked again. None: it is not
/// this process' child, or has not ended.
pub fn peek(pidfd: &impl AsFd) -> Option<Ended> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    exit_of(&waitid(WaitId::PidFd(pidfd.as_fd()), options).ok()??)
}

/// How a process ended that is nobody's child here any more, from a descriptor that was open
/// before. None: it has not been reaped by whoever could, or the kernel (before 6.15) does not say.
pub fn exit_info(pidfd: &impl AsFd) -> Option<Ended> {
    /// The kernel's `struct pidfd_info`, first version.
    #[repr(C)]
    #[derive(Default)]
    struct Info {
        mask: u64,
        cgroup: u64,
        ids: [u32; 11],
        exit_code: i32,
    }
    const EXIT: u64 = 1 << 3;
    /// `_IOWR(0xFF, 11, struct pidfd_info)`
    const GET_INFO: libc::c_ulong =
        (3 << 30) | ((size_of::<Info>() as libc::c_ulong) << 16) | (0xFF << 8) | 11;
    let mut info = Info {
        mask: EXIT,
        ..Info::default()
    };
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: the kernel writes no more than the size that the request number carries.
    let result = unsafe { libc::ioctl(fd, GET_INFO as _, &raw mut info) };
    if result != 0 || info.mask & EXIT == 0 {
        return None;
    }
    Some(Ended::from_wait_status(info.exit_code))
}

/// Lets the kernel forget an ended child.
pub fn reap(pidfd: &impl AsFd) {
    let _ = waitid(
        WaitId::PidFd(pidfd.as_fd()),
        WaitIdOptions::EXITED | WaitIdOptions::NOHANG,
    );
}

/// Reaps some child that has ended: its pid and how.
pub fn reap_any(options: WaitIdOptions) -> Option<(i32, WaitIdStatus)> {
    // `waitid` of the libraries does not say whose status it is; looking before taking does.
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    // SAFETY: `info` is large enough, and valid when it is all zeroes, which means nobody.
    let pid = unsafe {
        libc::waitid(
            libc::P_ALL,
            0,
            info.as_mut_ptr(),
            libc::WEXITED | libc::WNOHANG | libc::WNOWAIT,
        );
        info.assume_init().si_pid()
    };
    let pid = rustix::process::Pid::from_raw(pid)?;
    let status = waitid(WaitId::Pid(pid), options).ok()??;
    Some((pid.as_raw_nonzero().get(), status))
}

/// Waits for the end of a child and lets the kernel forget it.
pub fn wait(pidfd: &impl AsFd) -> Option<Ended> {
    loop {
        match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
            Ok(status) => return exit_of(&status?),
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return None,
        }
    }
}

fn exit_of(status: &WaitIdStatus) -> Option<Ended> {
    let code = status.exit_status().map(Ended::Code);
    code.or_else(|| status.terminating_signal().map(Ended::Signal))
}

/// Sends a signal. A process that is gone gets none, and nobody else gets it instead.
pub fn signal(pidfd: &impl AsFd, number: i32) {
    if let Some(signal) = Signal::from_named_raw(number) {
        let _ = pidfd_send_signal(pidfd.as_fd(), signal);
    }
}
