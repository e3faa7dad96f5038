//! What a child does between its birth in the daemon's memory and the program it executes.
//!
//! Everything it needs was prepared in a [`Child`]; it only makes system calls. A step that fails
//! is written back, so that the error names the step.

use std::ffi::{CString, c_char, c_int, c_long};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::ptr;

use super::clone::spawn_in_memory;

/// The steps, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Step {
    Clone,
    Session,
    Report,
    Signals,
    Limits,
    Stdio,
    Terminal,
    Descriptors,
    Capabilities,
    Groups,
    Gid,
    Uid,
    Regain,
    NoNewPrivs,
    Cwd,
    Exec,
}

/// A failure of a child before it executed its program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// The step.
    pub step: Step,
    /// What the kernel said.
    pub errno: i32,
}

/// The ids to take on.
#[derive(Debug, Clone)]
pub struct Ids {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups, exactly these.
    pub groups: Vec<u32>,
}

/// Who is told the pid before the program starts.
#[derive(Debug, Clone)]
pub struct PidReport {
    /// A file and the offset at which the pid is written, 4 bytes, little endian.
    pub file: Option<(RawFd, i64)>,
    /// See there.
    pub datagram: Option<Datagram>,
}

/// A datagram that the child sends, its pid in it.
#[derive(Debug, Clone)]
pub struct Datagram {
    /// Over this socket.
    pub socket: RawFd,
    /// What it says.
    pub bytes: Vec<u8>,
    /// Where in it the pid goes, 4 bytes, little endian.
    pub pid_at: usize,
    /// Descriptors that go with it, [`Datagram::MOST_FDS`] at most.
    pub fds: Vec<RawFd>,
}

impl Datagram {
    /// How many descriptors one carries.
    pub const MOST_FDS: usize = 3;
}

/// A [`Datagram`] as the kernel takes it.
struct Letter {
    socket: RawFd,
    bytes: Vec<u8>,
    pid_at: usize,
    control: Control,
    control_len: usize,
}

/// Room for the one control message: its header and the descriptors.
#[repr(C)]
struct Control {
    header: libc::cmsghdr,
    fds: [RawFd; Datagram::MOST_FDS],
}

impl Letter {
    fn new(datagram: &Datagram) -> Self {
        let count = datagram.fds.len().min(Datagram::MOST_FDS);
        let mut fds = [-1; Datagram::MOST_FDS];
        fds[..count].copy_from_slice(&datagram.fds[..count]);
        let length = size_of::<libc::cmsghdr>() + count * size_of::<RawFd>();
        Self {
            socket: datagram.socket,
            bytes: datagram.bytes.clone(),
            pid_at: datagram.pid_at,
            control: Control {
                header: libc::cmsghdr {
                    cmsg_len: length as _,
                    cmsg_level: libc::SOL_SOCKET,
                    cmsg_type: libc::SCM_RIGHTS,
                },
                fds,
            },
            control_len: if count == 0 { 0 } else { length },
        }
    }

    /// Sends it, over a socket that nobody has to read: without a keeper, the index still says
    /// which process it is.
    ///
    /// # Safety
    /// Only in a child made by [`spawn_in_memory`].
    unsafe fn send(&mut self, pid: u32) {
        if let Some(place) = self.bytes.get_mut(self.pid_at..self.pid_at + 4) {
            place.copy_from_slice(&pid.to_le_bytes());
        }
        let mut piece = libc::iovec {
            iov_base: self.bytes.as_mut_ptr().cast(),
            iov_len: self.bytes.len(),
        };
        // SAFETY: a header of zeroes is a valid one.
        let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
        header.msg_iov = &raw mut piece;
        header.msg_iovlen = 1;
        if self.control_len > 0 {
            header.msg_control = (&raw mut self.control).cast();
            header.msg_controllen = self.control_len as _;
        }
        let flags = libc::MSG_NOSIGNAL as c_long;
        // SAFETY: the header points to what outlives the call.
        unsafe { libc::syscall(libc::SYS_sendmsg, self.socket, &raw const header, flags) };
    }
}

/// What to execute.
#[derive(Debug, Clone)]
pub enum Image {
    /// What this descriptor is open on.
    Fd(RawFd),
    /// What is at this path.
    Path(CString),
}

/// A child as it is to be. Descriptors are those of this process and stay open until the spawn
/// is over.
#[derive(Debug, Clone)]
pub struct Child {
    /// Standard input, output, error; none below 3.
    pub stdio: [RawFd; 3],
    /// Whether standard input is a terminal that is to be its session's own.
    pub terminal: bool,
    /// A further descriptor, and its number in the child. The number is neither that of an
    /// [`Image::Fd`] nor its own.
    pub extra: Option<(RawFd, RawFd)>,
    /// See [`PidReport`].
    pub report: PidReport,
    /// File mode creation mask.
    pub umask: u32,
    /// Resource limits: kind, soft, hard.
    pub limits: Vec<(u32, u64, u64)>,
    /// Ids to switch to; none keeps those of this process.
    pub ids: Option<Ids>,
    /// Whether set-id programs are to be powerless.
    pub no_new_privs: bool,
    /// Directory to start in.
    pub cwd: CString,
    /// The path and the arguments of what is tried before `image`.
    pub shortcut: Option<Vec<CString>>,
    /// What to execute.
    pub image: Image,
    /// Arguments, the zeroth included.
    pub argv: Vec<CString>,
    /// Environment, `NAME=VALUE`.
    pub env: Vec<CString>,
}

/// A [`Child`] with its pointer arrays, and the place where it reports a failure.
struct Prepared<'a> {
    child: &'a Child,
    shortcut: Option<Vec<*const c_char>>,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    letter: Option<Letter>,
    ignored: Vec<c_int>,
    failure: Option<Failure>,
}

/// Makes the child and waits until it executes its program.
///
/// # Errors
/// The step that failed; there is no process then.
pub fn spawn(child: &Child, cgroup: Option<BorrowedFd<'_>>) -> Result<(i32, OwnedFd), Failure> {
    let pointers = |strings: &[CString]| {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([ptr::null()])
            .collect()
    };
    let mut prepared = Prepared {
        child,
        shortcut: child.shortcut.as_deref().map(pointers),
        argv: pointers(&child.argv),
        env: pointers(&child.env),
        letter: child.report.datagram.as_ref().map(Letter::new),
        ignored: super::signal::ignored(),
        failure: None,
    };
    // SAFETY: `enter` keeps to what `spawn_in_memory` asks for, and `prepared` is used by nobody
    // else until the child has left this memory.
    let spawned = unsafe { spawn_in_memory(enter, &raw mut prepared, cgroup) };
    let (pid, pidfd) = match spawned {
        Ok(spawned) => spawned,
        // A group that cannot be entered is no reason not to run: the tree is found by descent.
        Err(e)
            if cgroup.is_some()
                && !matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::ENOMEM)) =>
        {
            return spawn(child, None);
        }
        Err(e) => {
            return Err(Failure {
                step: Step::Clone,
                errno: e.raw_os_error().unwrap_or(0),
            });
        }
    };
    match prepared.failure {
        None => Ok((pid, pidfd)),
        Some(failure) => {
            super::process::wait(&pidfd);
            Err(failure)
        }
    }
}

/// The child. It shares memory with its parent, which stands still.
unsafe extern "C" fn enter(prepared: *mut Prepared<'_>) -> ! {
    // SAFETY: the pointer is valid and exclusive until this child executes or exits.
    let prepared = unsafe { &mut *prepared };
    // SAFETY: see `steps`.
    let failure = unsafe { steps(prepared) };
    prepared.failure = Some(failure);
    // SAFETY: ends this child alone, without running anything of the parent's.
    unsafe {
        libc::syscall(libc::SYS_exit_group, 127);
        std::hint::unreachable_unchecked()
    }
}

/// Fails the surrounding function with the step if a system call failed.
macro_rules! try_step {
    ($step:expr, $call:expr) => {
        if $call < 0 {
            return Failure {
                step: $step,
                errno: errno(),
            };
        }
    };
}

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// Takes the steps; comes back only with a failure.
///
/// # Safety
/// Only in a child made by [`spawn_in_memory`]: the raw system calls change the whole process.
unsafe fn steps(prepared: &mut Prepared<'_>) -> Failure {
    let child = prepared.child;
    // SAFETY: system calls on values and pointers that live in `prepared`, in the child alone.
    unsafe {
        try_step!(Step::Session, libc::syscall(libc::SYS_setsid));
        let pid = libc::syscall(libc::SYS_getpid) as u32;
        if let Some((fd, at)) = child.report.file {
            try_step!(
                Step::Report,
                libc::syscall(libc::SYS_pwrite64, fd, (&raw const pid), 4 as c_long, at)
            );
        }
        if let Some(letter) = &mut prepared.letter {
            letter.send(pid);
        }

        // SIG_DFL, no flags, no mask: all zeroes, as the kernel lays it out.
        let default = [0_u64; 4];
        for signal in &prepared.ignored {
            let none = ptr::null_mut::<u64>();
            libc::syscall(
                libc::SYS_rt_sigaction,
                *signal as c_long,
                default.as_ptr(),
                none,
                8 as c_long,
            );
        }

        libc::syscall(libc::SYS_umask, child.umask as c_long);
        for (resource, soft, hard) in &child.limits {
            let limit = [*soft, *hard];
            let none = ptr::null_mut::<u64>();
            try_step!(
                Step::Limits,
                libc::syscall(
                    libc::SYS_prlimit64,
                    0 as c_long,
                    *resource as c_long,
                    limit.as_ptr(),
                    none
                )
            );
        }
        let score = libc::syscall(
            libc::SYS_openat,
            libc::AT_FDCWD as c_long,
            c"/proc/self/oom_score_adj".as_ptr(),
            (libc::O_WRONLY | libc::O_CLOEXEC) as c_long,
            0 as c_long,
        );
        if score >= 0 {
            libc::syscall(libc::SYS_write, score, c"0".as_ptr(), 1 as c_long);
            libc::syscall(libc::SYS_close, score);
        }

        for (to, from) in child.stdio.iter().enumerate() {
            try_step!(
                Step::Stdio,
                libc::syscall(libc::SYS_dup3, *from as c_long, to as c_long, 0 as c_long)
            );
        }
        if child.terminal {
            let (stdin, steal) = (0 as c_long, 0 as c_long);
            try_step!(
                Step::Terminal,
                libc::syscall(libc::SYS_ioctl, stdin, libc::TIOCSCTTY, steal)
            );
        }
        try_step!(
            Step::Descriptors,
            libc::syscall(
                libc::SYS_close_range,
                3 as c_long,
                c_long::from(u32::MAX),
                libc::CLOSE_RANGE_CLOEXEC as c_long
            )
        );

        if let Some((from, to)) = child.extra {
            try_step!(
                Step::Descriptors,
                libc::syscall(libc::SYS_dup3, from as c_long, to as c_long, 0 as c_long)
            );
        }

        if let Some(ids) = &child.ids {
            let failure = switch(ids);
            if failure.errno != 0 {
                return failure;
            }
        }
        try_step!(Step::Capabilities, clear_inheritable());
        if child.no_new_privs {
            try_step!(Step::NoNewPrivs, prctl(libc::PR_SET_NO_NEW_PRIVS, 1));
        }
        try_step!(
            Step::Cwd,
            libc::syscall(libc::SYS_chdir, child.cwd.as_ptr())
        );

        let unblocked = 0_u64;
        let none = ptr::null_mut::<u64>();
        try_step!(
            Step::Signals,
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK as c_long,
                &raw const unblocked,
                none,
                8 as c_long
            )
        );
        if let Some(argv) = &prepared.shortcut {
            libc::syscall(
                libc::SYS_execve,
                *argv.as_ptr(),
                argv.as_ptr(),
                prepared.env.as_ptr(),
            );
        }
        let (fd, path, flags) = match &child.image {
            Image::Fd(fd) => (*fd, c"".as_ptr(), libc::AT_EMPTY_PATH),
            Image::Path(path) => (libc::AT_FDCWD, path.as_ptr(), 0),
        };
        libc::syscall(
            libc::SYS_execveat,
            fd as c_long,
            path,
            prepared.argv.as_ptr(),
            prepared.env.as_ptr(),
            flags as c_long,
        );
        Failure {
            step: Step::Exec,
            errno: errno(),
        }
    }
}

unsafe fn prctl(what: c_int, value: c_long) -> c_long {
    // SAFETY: by the caller: operations that take numbers only.
    unsafe {
        libc::syscall(
            libc::SYS_prctl,
            what as c_long,
            value,
            0 as c_long,
            0 as c_long,
            0 as c_long,
        )
    }
}

/// Takes on ids, and makes sure that they are taken on and the way back is closed. The C
/// library's own calls would change every thread of the daemon: hence the kernel's.
unsafe fn switch(ids: &Ids) -> Failure {
    let done = Failure {
        step: Step::Uid,
        errno: 0,
    };
    let (uid, gid) = (c_long::from(ids.uid), c_long::from(ids.gid));
    // SAFETY: by the caller; the pointers are to live memory of the right length.
    unsafe {
        try_step!(
            Step::Groups,
            libc::syscall(
                libc::SYS_setgroups,
                ids.groups.len() as c_long,
                ids.groups.as_ptr()
            )
        );
        try_step!(Step::Gid, libc::syscall(libc::SYS_setresgid, gid, gid, gid));
        try_step!(Step::Uid, libc::syscall(libc::SYS_setresuid, uid, uid, uid));
        let mut now = [0_u32; 6];
        let at = now.as_mut_ptr();
        libc::syscall(libc::SYS_getresuid, at, at.add(1), at.add(2));
        libc::syscall(libc::SYS_getresgid, at.add(3), at.add(4), at.add(5));
        if now != [ids.uid, ids.uid, ids.uid, ids.gid, ids.gid, ids.gid] {
            return Failure {
                step: Step::Regain,
                errno: libc::EPERM,
            };
        }
        if ids.uid != 0 {
            let root = 0 as c_long;
            if libc::syscall(libc::SYS_setresuid, root, root, root) == 0 {
                return Failure {
                    step: Step::Regain,
                    errno: libc::EPERM,
                };
            }
        }
    }
    done
}

/// Clears the ambient and inheritable capabilities of this child.
unsafe fn clear_inheritable() -> c_long {
    const VERSION_3: u32 = 0x2008_0522;
    let mut header = [VERSION_3, 0];
    // Twice: effective, permitted, inheritable.
    let mut data = [0_u32; 6];
    // SAFETY: by the caller; the arrays are as large as version 3 says.
    unsafe {
        prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL as c_long,
        );
        if libc::syscall(libc::SYS_capget, header.as_mut_ptr(), data.as_mut_ptr()) < 0 {
            return -1;
        }
        data[2] = 0;
        data[5] = 0;
        libc::syscall(libc::SYS_capset, header.as_mut_ptr(), data.as_ptr())
    }
}
