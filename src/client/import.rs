//! `IMPORT`: another program's file as a configuration of this one. Asks no daemon.

use std::io::{self, Write};
use std::path::Path;

use super::{Exit, Problem, say};
use crate::import::{self, From};

/// Prints the configuration to stdout and what is different to stderr.
pub fn import(kind: &str, file: &Path) -> Result<Exit, Problem> {
    let wrong = |text: String| Problem {
        text,
        exit: Exit::Status(2),
    };
    let from = From::named(kind).ok_or_else(|| {
        wrong(format!(
            "{kind:?} cannot be imported; known: procmgr, supervisord, sudoers"
        ))
    })?;
    let bytes = std::fs::read(file).map_err(|e| Problem {
        text: format!("cannot read {}: {e}", file.display()),
        exit: Exit::Status(1),
    })?;
    let imported = import::import(from, &String::from_utf8_lossy(&bytes));
    io::stdout().write_all(imported.text.as_bytes())?;
    for line in &imported.report {
        say(line);
    }
    say("read it, then try `deployer CHECK -c FILE`");
    Ok(Exit::Status(0))
}
