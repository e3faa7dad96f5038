//! `TOKEN`: what programs show that speak HTTP.

use std::io::{self, Write};

use super::run::local_time;
use super::{Connection, Exit, Problem, code, printable, socket_path};
use crate::cli::{Target, TokenCommand};
use crate::config;
use crate::protocol::message::{Reply, Request, Token};

/// `TOKEN add`, `list`, `remove`.
pub fn token(target: &Target, command: TokenCommand) -> Result<Exit, Problem> {
    match command {
        TokenCommand::Add {
            programs,
            actions,
            expires,
            name,
        } => {
            let seconds = match expires.as_str() {
                "never" => None,
                time => {
                    let time = config::duration(time);
                    let time = time.map_err(|e| Problem::new(format!("--expires: {e}")))?;
                    Some(time.as_secs_f64())
                }
            };
            let request = Request::TokenAdd {
                programs,
                actions,
                name,
                seconds,
            };
            code::ask(target, &request)
        }
        TokenCommand::Remove { id } => code::ask(target, &Request::TokenRemove { id }),
        TokenCommand::List { json } => list(target, json),
    }
}

fn list(target: &Target, json: bool) -> Result<Exit, Problem> {
    let mut connection = Connection::ask(&socket_path(target)?, &Request::TokenList)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut first = true;
    loop {
        match connection.expect()? {
            Reply::Token(token) if json => {
                let line = serde_json::to_string(&token);
                let line = line.map_err(|e| Problem::new(e.to_string()))?;
                writeln!(out, "{line}")?;
            }
            Reply::Token(token) => {
                if first {
                    writeln!(out, "{:>5}  {:<12}  {:<19}  FOR", "TOKEN", "OF", "UNTIL")?;
                    first = false;
                }
                writeln!(out, "{}", line(&token))?;
            }
            Reply::Done { .. } => break,
            other => return Err(Problem::unexpected(&other)),
        }
    }
    out.flush()?;
    Ok(Exit::Status(0))
}

fn line(token: &Token) -> String {
    let until = token.until.as_deref().map_or("-".to_owned(), local_time);
    let name = match token.name.as_str() {
        "" => String::new(),
        name => format!("  {:?}", printable(name)),
    };
    format!(
        "{:>5}  {:<12}  {until:<19}  {} of {}{name}",
        token.id,
        token.user,
        token.actions.join(", "),
        token.programs.join(", "),
    )
}
