//! `-t`, `-s`, `-r`, `CANCEL` and `PROGRAM kill`: one question, a short answer.

use std::io::{self, Write};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{PidfdFlags, pidfd_open};

use super::{Connection, Exit, Fault, Problem, printable, say, socket_path};
use crate::cli::Target;
use crate::config;
use crate::protocol::message::{Reply, Request};

/// How long `-t` waits for an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// `-t`: prints `running` or `not running`; exit status 0 or 1.
pub fn test(target: &Target) -> Result<Exit, Problem> {
    let path = socket_path(target)?;
    let asked = Connection::ask(&path, &Request::Ping).map(|mut connection| {
        // The keeper holds the socket also while there is no daemon that answers.
        connection.lose_patience_after(PATIENCE);
        connection.receive()
    });
    match asked {
        Ok(Ok(Some(Reply::Done { .. }))) => {
            writeln!(io::stdout(), "running")?;
            Ok(Exit::Status(0))
        }
        Ok(Err(Fault::TurnedAway(why))) => {
            writeln!(io::stdout(), "running")?;
            say(&why);
            Ok(Exit::Status(0))
        }
        Err(Fault::Connect { source, .. })
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            writeln!(io::stdout(), "not running")?;
            Ok(Exit::Status(1))
        }
        Err(fault) => {
            say(&fault.to_string());
            Ok(Exit::Status(1))
        }
        Ok(_) => {
            writeln!(io::stdout(), "experiencing problems")?;
            Ok(Exit::Status(1))
        }
    }
}

/// `-s`: asks the daemon to stop and waits until it has.
pub fn stop(target: &Target) -> Result<Exit, Problem> {
    let mut connection = Connection::ask(&socket_path(target)?, &Request::Stop)?;
    let mut keeper = None;
    loop {
        match connection.receive() {
            Ok(Some(Reply::Error { code, message })) => {
                return Err(Problem::from_reply(code, &message));
            }
            Ok(Some(Reply::Stopping { keeper: pid })) => {
                let pid = rustix::process::Pid::from_raw(pid);
                keeper = pid.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
            }
            Ok(Some(_)) => {}
            // The daemon keeps the connection until it ends; the keeper, and with it the lock on
            // the state directory, goes last.
            Ok(None) | Err(Fault::Lost) => {
                if let Some(keeper) = keeper {
                    let _ = poll(&mut [PollFd::new(&keeper, PollFlags::IN)], None);
                }
                return Ok(Exit::Status(0));
            }
            Err(fault) => return Err(fault.into()),
        }
    }
}

/// `-r`: the daemon reads its configuration again; its errors are shown here.
pub fn reload(target: &Target) -> Result<Exit, Problem> {
    let mut connection = Connection::ask(&socket_path(target)?, &Request::Reload)?;
    match connection.receive()? {
        Some(Reply::Done { message, .. }) => {
            if let Some(message) = message {
                io::stderr().write_all(message.as_bytes())?;
            }
            Ok(Exit::Status(0))
        }
        Some(Reply::Error {
            code: crate::protocol::message::ErrorCode::BadConfig,
            message,
        }) => {
            // The diagnostics, as CHECK prints them.
            io::stderr().write_all(message.as_bytes())?;
            Err(Problem {
                text: "the configuration stays as it was".into(),
                exit: Exit::Status(1),
            })
        }
        Some(Reply::Error { code, message }) => Err(Problem::from_reply(code, &message)),
        Some(other) => Err(Problem::unexpected(&other)),
        None => Err(Fault::Lost.into()),
    }
}

/// `CANCEL ID`.
pub fn cancel(target: &Target, id: u64) -> Result<Exit, Problem> {
    let mut connection = Connection::ask(&socket_path(target)?, &Request::Cancel { id })?;
    match connection.expect()? {
        Reply::Done { message, .. } => {
            if let Some(message) = message {
                writeln!(io::stdout(), "{}", printable(&message))?;
            }
            Ok(Exit::Status(0))
        }
        other => Err(Problem::unexpected(&other)),
    }
}

/// `PROGRAM kill SIGNAL`.
pub fn kill(target: &Target, program: String, signal: &str) -> Result<Exit, Problem> {
    let signal = config::signal_number(signal).map_err(Problem::new)?;
    let request = Request::Kill { program, signal };
    let mut connection = Connection::ask(&socket_path(target)?, &request)?;
    match connection.expect()? {
        Reply::Done {
            message, status, ..
        } => {
            if let Some(message) = message {
                say(&message);
            }
            Ok(Exit::Status(status))
        }
        other => Err(Problem::unexpected(&other)),
    }
}
