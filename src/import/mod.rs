//! Moving in: what other programs' files say, as a configuration of this one. Pure.
//!
//! Whatever cannot be said here, or was made narrower, stands in the report; nothing is left out
//! in silence. What was imported has still to be read by somebody: see what `CHECK` says of it.

mod procmgr;
mod sudoers;
mod supervisord;

use std::fmt::Write as _;

/// Where a file comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum From {
    /// procmgr's configuration.
    Procmgr,
    /// supervisord's.
    Supervisord,
    /// sudo's rules.
    Sudoers,
}

impl From {
    /// The kind of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "procmgr" => Some(Self::Procmgr),
            "supervisord" | "supervisor" => Some(Self::Supervisord),
            "sudoers" | "sudo" => Some(Self::Sudoers),
            _ => None,
        }
    }
}

/// What came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Imported {
    /// The configuration.
    pub text: String,
    /// What is different now, a line each, with the line of the file in front.
    pub report: Vec<String>,
}

impl Imported {
    fn note(&mut self, line: usize, what: impl std::fmt::Display) {
        self.report.push(format!("line {line}: {what}"));
    }

    fn line(&mut self, text: impl std::fmt::Display) {
        let _ = writeln!(self.text, "{text}");
    }
}

/// Turns a file into a configuration.
#[must_use]
pub fn import(from: From, text: &str) -> Imported {
    match from {
        From::Procmgr => procmgr::import(text),
        From::Supervisord => supervisord::import(text),
        From::Sudoers => sudoers::import(text),
    }
}

/// A word as a shell reads it: quoted if anything in it means something to one.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-+./:,@%=".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

/// A name for a program that is made from some text.
fn program_name(text: &str) -> String {
    let fit = |c: char| {
        if c.is_alphanumeric() || "._-+@".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = text.chars().map(fit).collect();
    let name = name.trim_start_matches(['.', '-']).to_owned();
    match crate::ids::ProgramName::new(&name) {
        Ok(_) => name,
        Err(_) => format!("program-{name}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::check::{Names, check};
    use std::path::Path;

    struct Everybody;

    impl Names for Everybody {
        fn user(&self, _: &str) -> Option<u32> {
            Some(1000)
        }
        fn group(&self, _: &str) -> Option<u32> {
            Some(1000)
        }
    }

    /// What was imported has to be a configuration without errors.
    pub(super) fn checked(from: From, text: &str) -> Imported {
        let imported = import(from, text);
        let checked = check(imported.text.as_bytes(), Path::new("x"), &Everybody, false);
        assert!(
            checked.config.is_some(),
            "{}\n{}",
            imported.text,
            checked.render(false)
        );
        imported
    }

    #[test]
    fn whatever_is_in_a_file_the_result_is_a_configuration() {
        for from in [From::Procmgr, From::Supervisord, From::Sudoers] {
            for text in [
                "",
                "\u{0}\u{1}[",
                "[program:x]\ncommand",
                "a b c = d",
                "[prog-]\n=\n[prog-x\ncmd-start=\n",
                "%x ALL = (root) NOPASSWD: /a/\\, b, !/c, *\n",
                "[program:-x y]\ncommand=a 'b\nuser=\n",
            ] {
                checked(from, text);
            }
        }
    }
}
