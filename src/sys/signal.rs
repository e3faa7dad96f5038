//! Signal dispositions of this process.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// Ignores a signal from now on.
pub fn ignore(signal: Signal) {
    set(signal, SigHandler::SigIgn);
}

/// Raises a flag when a signal comes, from now on, instead of ending this process. What it
/// executes starts with the usual disposition.
pub fn note(signal: Signal, flag: &'static AtomicBool) {
    static FLAG: AtomicPtr<AtomicBool> = AtomicPtr::new(std::ptr::null_mut());
    extern "C" fn raise_flag(_: i32) {
        // SAFETY: it points to nothing, or to something that lives for ever.
        if let Some(flag) = unsafe { FLAG.load(Ordering::Acquire).as_ref() } {
            flag.store(true, Ordering::Relaxed);
        }
    }
    FLAG.store(std::ptr::from_ref(flag).cast_mut(), Ordering::Release);
    set(signal, SigHandler::Handler(raise_flag));
}

fn set(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither SIG_IGN nor SIG_DFL runs code of this process, and what `note` sets only
    // stores into an atomic.
    let _ = unsafe { sigaction(signal, &action) };
}

/// Ends this process by `signal`, without a core file; by the shell's status for it if the
/// signal does not end a process.
pub fn die_of(number: i32) -> ! {
    let _ = nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_CORE, 0, 0);
    if let Ok(signal) = Signal::try_from(number) {
        set(signal, SigHandler::SigDfl);
        let mut only = SigSet::empty();
        only.add(signal);
        let _ = only.thread_unblock();
        let _ = raise(signal);
    }
    std::process::exit(128 + number)
}

/// The signals that this process ignores: its children do not get that passed on. Looked up once:
/// what is ignored is settled when the process begins.
pub fn ignored() -> Vec<i32> {
    static IGNORED: OnceLock<Vec<i32>> = OnceLock::new();
    let is_ignored = |signal: &i32| {
        let mut action = [0_usize; 4];
        // SAFETY: asks only; the kernel's structure has the size of four words.
        let asked = unsafe {
            libc::syscall(
                libc::SYS_rt_sigaction,
                *signal,
                std::ptr::null::<usize>(),
                action.as_mut_ptr(),
                8_usize,
            )
        };
        asked == 0 && action[0] == libc::SIG_IGN
    };
    IGNORED
        .get_or_init(|| (1..=64).filter(is_ignored).collect())
        .clone()
}
