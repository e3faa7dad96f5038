//! `CHECK`: what is wrong with a configuration file, all at once. Asks no daemon.

use std::io::{self, IsTerminal, Write};

use super::{Exit, Problem, config_path};
use crate::cli::Target;
use crate::config::load;

/// Prints errors and warnings to stderr; exit status 0 when there are no errors, else 1.
pub fn check(target: &Target) -> Result<Exit, Problem> {
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
