//! Changes of the environment, while there is a single thread.

use std::ffi::OsStr;

/// Removes a variable. Only before any thread exists.
pub fn remove(name: &OsStr) {
    // SAFETY: called by the boot sequence alone, before any thread exists that could read it.
    unsafe { std::env::remove_var(name) }
}
