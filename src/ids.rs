//! Names and numbers that cross module borders, checked where they are made.
//!
//! Whoever holds one of these values may rely on its form: no path tricks in a
//! [`ProgramName`], no "nobody in particular" in a [`Uid`] or [`Gid`]. Nothing here does I/O.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Words of the command line that a program can therefore not be called, in capitals or lower case.
pub const VERBS: [&str; 19] = [
    "RUN", "LOGS", "ATTACH", "HISTORY", "CANCEL", "FREEZE", "THAW", "CAN", "WHY", "CHECK", "UI",
    "TOKEN", "LIST", "IMPORT", "PIN", "UNPIN", "PLAN", "VERIFY", "RELEASES",
];

/// Why a name or a number was refused. The text is a fragment that follows the thing it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing there.
    #[error("is empty")]
    Empty,
    /// More than [`ProgramName::MAX`] bytes.
    #[error("is longer than {} bytes", ProgramName::MAX)]
    TooLong,
    /// A part between slashes is empty, or begins with a dot or a dash.
    #[error("has a part that is empty or begins with '.' or '-'")]
    BadPart,
    /// A character that names may not have.
    #[error("has the character {0:?}; letters, digits and . _ - + @ are allowed, / between parts")]
    BadCharacter(char),
    /// One of [`VERBS`].
    #[error("is a word of the command line")]
    Reserved,
    /// Not a number, or one that does not fit.
    #[error("is not a number between 0 and 4294967294")]
    NotANumber,
    /// 65534 or 4294967295.
    #[error("stands for nobody in particular (overflow or unset) and never authorises")]
    Nobody,
}

/// The name of a program: parts of letters, digits and `._-+@`, separated by `/`.
///
/// No part is empty or starts with a dot or a dash, so a name joined to the root directory
/// stays below it and is never taken for an option.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ProgramName(Box<str>);

impl ProgramName {
    /// The longest name, in bytes.
    pub const MAX: usize = 200;

    /// Checks `name` and takes it over.
    ///
    /// # Errors
    /// [`IdError`] says which rule it breaks.
    pub fn new(name: &str) -> Result<Self, IdError> {
        if name.is_empty() {
            return Err(IdError::Empty);
        }
        if name.len() > Self::MAX {
            return Err(IdError::TooLong);
        }
        for part in name.split('/') {
            if part.is_empty() || part.starts_with(['.', '-']) {
                return Err(IdError::BadPart);
            }
            let allowed = |c: char| c.is_alphanumeric() || matches!(c, '.' | '_' | '-' | '+' | '@');
            if let Some(c) = part.chars().find(|c| !allowed(*c)) {
                return Err(IdError::BadCharacter(c));
            }
        }
        if VERBS
            .iter()
            .any(|v| name == *v || name == v.to_ascii_lowercase())
        {
            return Err(IdError::Reserved);
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// What can be asked of a program: `run`, `cancel`, `status`, … Lower-case letters, digits, dashes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ActionName(Box<str>);

impl ActionName {
    /// Checks `name` and takes it over.
    ///
    /// # Errors
    /// [`IdError`] says which rule it breaks.
    pub fn new(name: &str) -> Result<Self, IdError> {
        if name.is_empty() {
            return Err(IdError::Empty);
        }
        if name.len() > 64 {
            return Err(IdError::TooLong);
        }
        if !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            return Err(IdError::BadPart);
        }
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if let Some(c) = name.chars().find(|c| !allowed(*c)) {
            return Err(IdError::BadCharacter(c));
        }
        Ok(Self(name.into()))
    }

    /// The action `run`.
    #[must_use]
    pub fn run() -> Self {
        Self("run".into())
    }

    /// The action `cancel`.
    #[must_use]
    pub fn cancel() -> Self {
        Self("cancel".into())
    }

    /// The action `start`.
    #[must_use]
    pub fn start() -> Self {
        Self("start".into())
    }

    /// The action `restart`.
    #[must_use]
    pub fn restart() -> Self {
        Self("restart".into())
    }

    /// The action `stop`.
    #[must_use]
    pub fn stop() -> Self {
        Self("stop".into())
    }

    /// The action `ready`.
    #[must_use]
    pub fn ready() -> Self {
        Self("ready".into())
    }

    /// The action `kill`.
    #[must_use]
    pub fn kill() -> Self {
        Self("kill".into())
    }

    /// The action `update`.
    #[must_use]
    pub fn update() -> Self {
        Self("update".into())
    }

    /// The action `reload`.
    #[must_use]
    pub fn reload() -> Self {
        Self("reload".into())
    }

    /// The action `freeze`.
    #[must_use]
    pub fn freeze() -> Self {
        Self("freeze".into())
    }

    /// The action `console`.
    #[must_use]
    pub fn console() -> Self {
        Self("console".into())
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

macro_rules! text_id {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                Self::new(s)
            }
        }
        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(s: String) -> Result<Self, IdError> {
                Self::new(&s)
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.into()
            }
        }
    };
}
text_id!(ProgramName);
text_id!(ActionName);

/// The place where the runs of one action of a program wait their turn.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LaneName {
    /// The program.
    pub program: ProgramName,
    /// The action.
    pub action: ActionName,
}

impl LaneName {
    /// The lane of an action.
    #[must_use]
    pub fn new(program: &ProgramName, action: &ActionName) -> Self {
        Self {
            program: program.clone(),
            action: action.clone(),
        }
    }
}

/// The number of an accepted request and of the run it may become. Never used twice in one
/// state directory; begins at 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RunId(pub u64);

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for RunId {
    type Err = IdError;
    fn from_str(s: &str) -> Result<Self, IdError> {
        digits(s)
            .filter(|n| *n > 0)
            .map(RunId)
            .ok_or(IdError::NotANumber)
    }
}

/// Parses plain decimal digits: no sign, no spaces, no empty text.
fn digits(s: &str) -> Option<u64> {
    if s.is_empty() || !s.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    s.parse().ok()
}

macro_rules! number_id {
    ($name:ident, $what:literal) => {
        #[doc = concat!("A ", $what, " id that stands for somebody: never -1, never the overflow id 65534.")]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "u32", into = "u32")]
        pub struct $name(u32);

        impl $name {
            /// Root's.
            pub const ROOT: Self = Self(0);

            /// Checks a number from the kernel or from a database of names.
            ///
            /// # Errors
            /// [`IdError::Nobody`] for 65534 and 4294967295.
            pub fn new(id: u32) -> Result<Self, IdError> {
                if id == u32::MAX || id == 65534 { Err(IdError::Nobody) } else { Ok(Self(id)) }
            }

            /// The number.
            #[must_use]
            pub fn get(self) -> u32 {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(s: &str) -> Result<Self, IdError> {
                let id = digits(s).and_then(|n| u32::try_from(n).ok()).ok_or(IdError::NotANumber)?;
                Self::new(id)
            }
        }

        impl TryFrom<u32> for $name {
            type Error = IdError;
            fn try_from(id: u32) -> Result<Self, IdError> {
                Self::new(id)
            }
        }

        impl From<$name> for u32 {
            fn from(id: $name) -> u32 {
                id.0
            }
        }
    };
}
number_id!(Uid, "user");
number_id!(Gid, "group");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_root_or_look_like_options_are_refused() {
        for bad in [
            "",
            "/",
            "/etc/passwd",
            "../x",
            "a/../b",
            "a//b",
            "a/",
            ".hidden",
            "a/.git",
            "-rf",
            "a/-x",
            "a b",
            "a\nb",
            "a\0b",
            "a\u{1b}[2J",
            "a\\b",
            "a:b",
            "$(x)",
            "RUN",
            "run",
            "check",
        ] {
            assert!(ProgramName::new(bad).is_err(), "{bad:?} was accepted");
        }
        assert!(ProgramName::new(&"x".repeat(201)).is_err());
    }

    #[test]
    fn ordinary_and_nested_names_are_accepted() {
        for good in [
            "sample.sh",
            "team/app",
            "a",
            "web-2",
            "x_y",
            "libstdc++",
            "app@blue",
            "Run",
            "déploy",
        ] {
            assert_eq!(ProgramName::new(good).unwrap().as_str(), good);
        }
    }

    #[test]
    fn ids_of_nobody_and_non_numbers_are_refused() {
        for bad in [
            "-1",
            "4294967295",
            "65534",
            "",
            "+5",
            " 5",
            "0x10",
            "99999999999999999999",
            "５",
        ] {
            assert!(bad.parse::<Uid>().is_err(), "{bad:?} was accepted");
            assert!(bad.parse::<Gid>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!("0".parse::<Uid>().unwrap(), Uid::ROOT);
        assert_eq!("65533".parse::<Gid>().unwrap().get(), 65533);
    }
}
