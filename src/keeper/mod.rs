//! The keeper: the daemon's parent, so small that it does not die.
//!
//! It starts the daemon and starts it again when it dies; it is the subreaper to whom a dead
//! daemon's runs fall, reaps them and tells the next daemon how they ended; and it holds the
//! descriptors that the daemon parks with it: read ends of output pipes, the listening socket,
//! the configuration in force. It never sees a byte that a client sent.
//!
//! One thread, one loop ([`guard`]); [`wire`] is its language, [`saved`] what survives when it
//! executes itself anew, [`link`](mod@link) the daemon's end of the conversation.

pub mod guard;
pub mod link;
pub mod saved;
pub mod wire;

pub use link::Link;
pub use saved::{Saved, Settings};
pub use wire::{Reason, ToDaemon, ToKeeper};
