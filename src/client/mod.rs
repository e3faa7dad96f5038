//! The client: asks the daemon and shows what it says. One file a verb.
//!
//! It is plain blocking code without a runtime: it starts, asks, copies bytes and exits. It uses
//! the protocol and the format of logs, and nothing of the daemon.

mod can;
mod check;
mod code;
mod connection;
mod control;
mod history;
mod import;
mod list;
mod logs;
mod run;
mod terminal;
mod token;
mod ui;
mod view;

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

pub use connection::{Connection, Fault};

use crate::cli::{Command, DEFAULT_CONFIG, Refusal, Target};
use crate::config;
use crate::protocol::message::{ErrorCode, Reply, Request};

/// Exit status when a request is refused or the daemon cannot be reached.
pub const REFUSED: i32 = 125;

/// How the client ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Status(i32),
    /// By this signal, as the run did.
    Signal(i32),
}

/// Carries out a client command and says how to end.
pub fn main(target: &Target, command: Command) -> Exit {
    let result = match command {
        Command::Run(options) => run::run(target, options),
        Command::Code {
            program,
            about,
            json,
        } => code::code(target, program, about, json),
        Command::Freeze {
            program,
            reason,
            time,
        } => code::freeze(target, program, reason, time.as_deref()),
        Command::Thaw { program } => code::ask(target, &Request::Thaw { program }),
        Command::Attach { what } => run::attach(target, &what),
        Command::Logs(options) => logs::logs(target, &options),
        Command::History(options) => history::history(target, options),
        Command::Cancel { id } => control::cancel(target, id),
        Command::Import { kind, file } => import::import(&kind, &file),
        Command::Kill { program, signal } => control::kill(target, program, &signal),
        Command::Can(options) => can::can(target, options),
        Command::Check { diff } => check::check(target, diff),
        Command::Test => control::test(target),
        Command::Stop => control::stop(target),
        Command::Reload => control::reload(target),
        Command::List { long, nul, json } => list::list(target, long, nul, json),
        Command::Ui => ui::ui(target),
        Command::Token(command) => token::token(target, command),
        Command::Daemon(_) => Err(Problem::new("the daemon is no client")),
    };
    result.unwrap_or_else(|problem| {
        if !problem.text.is_empty() {
            say(&problem.text);
        }
        problem.exit
    })
}

/// Shows what the daemon has to say at the end of something that has no run.
fn done(message: Option<String>, output: Option<String>, status: i32) -> Result<Exit, Problem> {
    if let Some(output) = output {
        io::stdout().write_all(output.as_bytes())?;
    }
    if let Some(message) = message {
        say(&message);
    }
    Ok(Exit::Status(status))
}

/// A message for the user, and how to end.
#[derive(Debug)]
pub struct Problem {
    text: String,
    exit: Exit,
}

impl Problem {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            exit: Exit::Status(REFUSED),
        }
    }

    /// Ends without a word.
    fn silent(exit: Exit) -> Self {
        Self {
            text: String::new(),
            exit,
        }
    }

    /// What the daemon refused, with what to do next where that can be said.
    fn from_reply(code: ErrorCode, message: &str) -> Self {
        Self::new(match code {
            ErrorCode::Refused => format!("{message}\n`deployer CAN` shows what you may do"),
            _ => message.to_owned(),
        })
    }

    fn unexpected(reply: &Reply) -> Self {
        Self::new(format!(
            "the daemon answered something unexpected ({reply:?}); are client and daemon of one version?"
        ))
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        Self::new(fault.to_string())
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let text = refusal.text.trim_end();
        Self {
            text: text.strip_prefix("deployer: ").unwrap_or(text).to_owned(),
            exit: Exit::Status(refusal.status),
        }
    }
}

/// Output that cannot be written: the reader has gone, or its disk is full.
impl From<io::Error> for Problem {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::BrokenPipe {
            Self::silent(Exit::Signal(libc::SIGPIPE))
        } else {
            Self::new(format!("cannot write the output: {e}"))
        }
    }
}

/// Says something to the user: on stderr, behind the program's name, control characters shown
/// as what they are.
pub fn say(text: &str) {
    terminal::hide_status();
    let mut lines = String::new();
    let end = if terminal::is_raw() { "\r\n" } else { "\n" };
    for line in text.lines() {
        let _ = write!(lines, "deployer: {}{end}", printable(line));
    }
    let _ = io::stderr().write_all(lines.as_bytes());
}

/// Text with its control characters escaped, so that no name or reason moves a cursor.
#[must_use]
pub fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            clean.extend(c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Whether a person is looking at what goes to stderr.
fn watched() -> bool {
    io::stderr().is_terminal()
}

/// The configuration file that is meant, and whether somebody named it.
fn config_path(target: &Target) -> (PathBuf, bool) {
    match &target.config {
        Some(path) => (path.clone(), true),
        None => (DEFAULT_CONFIG.into(), false),
    }
}

/// Where the daemon listens: `--socket`, else what the configuration says, else the default.
fn socket_path(target: &Target) -> Result<PathBuf, Problem> {
    if let Some(path) = &target.socket {
        return Ok(path.clone());
    }
    let (path, named) = config_path(target);
    match std::fs::read(&path) {
        Ok(text) => Ok(config::socket_path(&text).unwrap_or_else(|| config::DEFAULT_SOCKET.into())),
        Err(e) if named => Err(Problem::new(format!("cannot read {}: {e}", path.display()))),
        Err(_) => Ok(Path::new(config::DEFAULT_SOCKET).into()),
    }
}
