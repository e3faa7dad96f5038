//! `CHECK`: what is wrong with a configuration file, all at once, without a daemon; or what a
//! reload would change in the one that runs.

use std::io::{self, IsTerminal, Write};

use super::{Connection, Exit, Fault, Problem, config_path, socket_path};
use crate::cli::Target;
use crate::config::load;
use crate::protocol::message::{ErrorCode, Reply, Request};

/// `CHECK --diff`: what a reload would change, by the daemon that it would change.
fn diff(target: &Target) -> Result<Exit, Problem> {
    let mut connection = Connection::ask(&socket_path(target)?, &Request::Diff)?;
    match connection.receive()? {
        Some(Reply::Done { output, .. }) => {
            io::stdout().write_all(output.unwrap_or_default().as_bytes())?;
            Ok(Exit::Status(0))
        }
        Some(Reply::Error {
            code: ErrorCode::BadConfig,
            message,
        }) => {
            io::stderr().write_all(message.as_bytes())?;
            Ok(Exit::Status(1))
        }
        Some(Reply::Error { code, message }) => Err(Problem::from_reply(code, &message)),
        Some(other) => Err(Problem::unexpected(&other)),
        None => Err(Fault::Lost.into()),
    }
}

/// Prints errors and warnings to stderr; exit status 0 when there are no errors, else 1.
pub fn check(target: &Target, with_daemon: bool) -> Result<Exit, Problem> {
    if with_daemon {
        return diff(target);
    }
    let (path, _) = config_path(target);
    let color = io::stderr().is_terminal();
    match load::load(&path) {
        Err(e) => {
            let cause = std::error::Error::source(&e)
                .map(|c| format!(": {c}"))
                .unwrap_or_default();
            Err(Problem {
                text: format!("{e}{cause}"),
                exit: Exit::Status(1),
            })
        }
        Ok(loaded) => {
            let text = loaded.checked.render(color);
            io::stderr().write_all(text.as_bytes())?;
            if loaded.checked.config.is_none() {
                return Ok(Exit::Status(1));
            }
            writeln!(
                io::stdout(),
                "{}: the configuration is valid",
                path.display()
            )?;
            Ok(Exit::Status(0))
        }
    }
}
