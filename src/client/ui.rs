//! `UI`: the pages, for the one who typed it, on loopback.

use std::io::{self, Write};

use super::{Connection, Exit, Problem, say, socket_path};
use crate::cli::Target;
use crate::protocol::message::Request;
use crate::web::loopback;

/// `UI`.
pub fn ui(target: &Target) -> Result<Exit, Problem> {
    let socket = socket_path(target)?;
    // Better now than on the page.
    Connection::ask(&socket, &Request::Ping)?.expect()?;
    let served = loopback::serve(&socket, |address| {
        let _ = writeln!(io::stdout(), "{address}");
        say("open that in a browser; it works once. Ctrl-C ends it");
    });
    served.map_err(|e| Problem::new(format!("cannot serve on this machine: {e}")))?;
    Ok(Exit::Status(0))
}
