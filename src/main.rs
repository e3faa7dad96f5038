//! One binary: client, daemon, keeper. Looks at its role before any thread exists.
#![no_main]

#[path = "sys/entry.rs"]
mod entry;

use std::ffi::OsString;
use std::io::Write;

use deployer::cli::{self, Command};
use deployer::client::{self, Exit};
use deployer::{daemon, sys};

/// Does what the command line asks for; returns the exit status.
fn run() -> u8 {
    let args: Vec<OsString> = std::env::args_os().collect();
    if let Some(role) = args
        .get(1)
        .and_then(|a| a.to_str())
        .and_then(|a| a.strip_prefix("--role="))
    {
        return daemon::boot::enter(role, &args[2..]);
    }
    let conffile = std::env::var_os("DEPLOYER_CONFFILE")
        .filter(|v| !v.is_empty())
        .map(Into::into);
    let (target, command) = match cli::parse(args, conffile) {
        Ok(parsed) => parsed,
        Err(refusal) if refusal.status == 0 => {
            let _ = std::io::stdout().write_all(refusal.text.as_bytes());
            return 0;
        }
        Err(refusal) => {
            let _ = std::io::stderr().write_all(refusal.text.as_bytes());
            return refusal.status.clamp(0, 255) as u8;
        }
    };
    match command {
        Command::Daemon(options) => daemon::boot::boot(&target, options),
        command => match client::main(&target, command) {
            Exit::Status(status) => (status & 0xff) as u8,
            Exit::Signal(signal) => sys::signal::die_of(signal),
        },
    }
}
