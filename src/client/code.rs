//! `RELEASES`, `WHY`, `VERIFY`, `PLAN`, `FREEZE`, `THAW`: about a program's code, and whether it moves.

use super::{Connection, Exit, Problem, socket_path};
use crate::cli::Target;
use crate::config;
use crate::protocol::message::{CodeQuestion, Reply, Request};

/// `RELEASES`, `WHY`, `VERIFY`, `PLAN`.
pub fn code(
    target: &Target,
    program: String,
    about: CodeQuestion,
    json: bool,
) -> Result<Exit, Problem> {
    let request = Request::Code {
        program,
        about,
        json,
    };
    ask(target, &request)
}

/// `FREEZE PROGRAM REASON [--for TIME]`.
pub fn freeze(
    target: &Target,
    program: String,
    reason: String,
    time: Option<&str>,
) -> Result<Exit, Problem> {
    let seconds = match time {
        None => None,
        Some(time) => {
            let time = config::duration(time).map_err(|e| Problem::new(format!("--for: {e}")))?;
            Some(time.as_secs_f64())
        }
    };
    let request = Request::Freeze {
        program,
        reason,
        seconds,
    };
    ask(target, &request)
}

/// Asks something that is answered at once.
pub fn ask(target: &Target, request: &Request) -> Result<Exit, Problem> {
    let mut connection = Connection::ask(&socket_path(target)?, request)?;
    match connection.expect()? {
        Reply::Done {
            message,
            output,
            status,
        } => super::done(message, output, status),
        other => Err(Problem::unexpected(&other)),
    }
}
