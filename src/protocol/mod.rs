//! What travels over the control socket: bytes on one side, values on the other. No I/O.
//!
//! `doc/protocol.rst` describes it for other languages. A connection begins with one line:
//! `RUN NAME` makes it *plain* ([`plain`]), `DEPLOYER 1` makes it *framed* ([`frame`] carries
//! [`message`]s and raw data).

pub mod frame;
pub mod gateway;
pub mod message;
pub mod plain;

/// The longest first line and the largest control frame, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
