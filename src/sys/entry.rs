//! Where the program begins. Only the program itself includes this file, not the library.
//!
//! The client starts for every request, and a tenth of its life went into what the standard
//! library prepares before `main`: looking for the guard page of the stack in `/proc`, a handler
//! for stack overflows. What of it matters here is done here.

use std::ffi::{c_char, c_int};
use std::fs::File;
use std::os::fd::IntoRawFd;

use deployer::sys;
use nix::sys::signal::Signal;

// SAFETY: the one symbol of this name; the C library calls it once, with a single thread.
#[unsafe(no_mangle)]
extern "C" fn main(_count: c_int, _arguments: *const *const c_char) -> c_int {
    // Descriptors 0, 1 and 2 are open: else a file that is opened later would become one of them.
    while let Ok(file) = File::open("/dev/null") {
        let fd = file.into_raw_fd();
        if fd > 2 {
            drop(sys::fd::own(fd));
            break;
        }
    }
    // A reader that goes away is an error where it is written to, not the end.
    sys::signal::ignore(Signal::SIGPIPE);
    // Flushes what is left to print.
    std::process::exit(crate::run().into())
}
