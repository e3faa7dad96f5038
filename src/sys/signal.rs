//! Signal dispositions of this process.

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, raise, sigaction};

/// Ignores a signal from now on.
pub fn ignore(signal: Signal) {
    set(signal, SigHandler::SigIgn);
}

fn set(signal: Signal, handler: SigHandler) {
    let action = SigAction::new(handler, SaFlags::empty(), SigSet::empty());
    // SAFETY: neither SIG_IGN nor SIG_DFL runs code of this process.
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
