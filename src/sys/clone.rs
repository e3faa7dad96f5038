//! `clone3` with a child that shares this process' memory until it executes something.
//!
//! That is what makes a spawn cost the same whatever the size of the daemon. The price is the
//! discipline of [`super::child`]: the child does nothing but system calls. As with `vfork`, its
//! stack is that of the thread that made it, below all that is in use there: that thread stands
//! still meanwhile, and memory that is mapped already costs nothing.

use std::ffi::c_void;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::signal::SigSet;

/// Of `clone3` alone; the constant in `libc` is too narrow.
const CLONE_INTO_CGROUP: u64 = 1 << 33;
/// Handled signals get their default action in the child; ignored ones stay ignored.
const CLONE_CLEAR_SIGHAND: u64 = 1 << 32;

/// The kernel's `struct clone_args`.
#[repr(C, align(8))]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

/// Makes a child that runs `entry(argument)` in this process' memory, and waits until it has
/// executed a program or ended. Returns its pid and pidfd.
///
/// All signals are blocked in the child, and none has a handler: `entry` has to deal with ignored
/// ones and the mask.
///
/// # Errors
/// What the kernel said; there is no child then.
///
/// # Safety
/// `entry` must do nothing but system calls and writes to memory reachable through `argument`,
/// which nobody else uses meanwhile; it must not return, allocate, unwind or take a lock.
pub unsafe fn spawn_in_memory<T>(
    entry: unsafe extern "C" fn(*mut T) -> !,
    argument: *mut T,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(i32, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64
            | CLONE_CLEAR_SIGHAND,
        pidfd: (&raw mut pidfd) as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if let Some(fd) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = fd.as_raw_fd() as u64;
    }
    let before = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_SETMASK)?;
    // SAFETY: the arguments are valid for the call; the child calls `entry`, which the caller
    // vouches for, further down this thread's stack; the parent goes on when the child has left
    // this memory (CLONE_VFORK), and finds its own part of the stack as it was.
    let result = unsafe { clone3(&args, entry as *const c_void, argument.cast()) };
    let restored = before.thread_set_mask();
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result as i32));
    }
    restored?;
    // SAFETY: the kernel stored a new descriptor there, and nobody else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok((result as i32, pidfd))
}

#[cfg(target_arch = "x86_64")]
unsafe fn clone3(args: &CloneArgs, entry: *const c_void, argument: *mut c_void) -> isize {
    let result: isize;
    // SAFETY: the child (0) never comes back here: it calls `entry`. An assembler block may use
    // the stack below it, which is aligned as the ABI wants it before a call. The parent sees an
    // ordinary system call.
    unsafe {
        std::arch::asm!(
            "syscall",
            "test rax, rax",
            "jnz 2f",
            "xor ebp, ebp",
            "mov rdi, r12",
            "call r13",
            "ud2",
            "2:",
            inlateout("rax") libc::SYS_clone3 as isize => result,
            in("rdi") args,
            in("rsi") size_of::<CloneArgs>(),
            in("r12") argument,
            in("r13") entry,
            lateout("rcx") _,
            lateout("r11") _,
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
unsafe fn clone3(args: &CloneArgs, entry: *const c_void, argument: *mut c_void) -> isize {
    let result: isize;
    // SAFETY: as for x86_64.
    unsafe {
        std::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "mov x0, x20",
            "blr x21",
            "brk 1",
            "2:",
            inlateout("x0") args as *const CloneArgs as isize => result,
            in("x1") size_of::<CloneArgs>(),
            in("x8") libc::SYS_clone3,
            in("x20") argument,
            in("x21") entry,
        );
    }
    result
}
