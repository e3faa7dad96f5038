//! `CAN`: what the caller may do, or, for root, why somebody may or may not.

use std::io::{self, Write};

use super::{Connection, Exit, Problem, printable, socket_path};
use crate::cli::{CanOptions, Target};
use crate::protocol::message::{Reply, Request};

/// Prints what is allowed; exit status 0 if anything that was asked for is, else 1.
pub fn can(target: &Target, options: CanOptions) -> Result<Exit, Problem> {
    let explain = options.user.is_some();
    let request = Request::Can {
        program: options.program,
        action: options.action,
        user: options.user,
    };
    let mut connection = Connection::ask(&socket_path(target)?, &request)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut any = false;
    loop {
        match connection.expect()? {
            Reply::May {
                program,
                action,
                allowed,
                because,
            } => {
                any |= allowed;
                if options.json {
                    let line = serde_json::json!({
                        "program": program, "action": action, "allowed": allowed, "because": because,
                    });
                    writeln!(out, "{line}")?;
                } else if explain {
                    let may = if allowed { "may" } else { "may not" };
                    let because = because
                        .map(|b| format!(": {}", printable(&b)))
                        .unwrap_or_default();
                    writeln!(out, "{may} {action} {program}{because}")?;
                } else if allowed {
                    writeln!(out, "{program} {action}")?;
                }
            }
            Reply::Done { .. } => break,
            other => return Err(Problem::unexpected(&other)),
        }
    }
    out.flush()?;
    Ok(Exit::Status(i32::from(!any)))
}
