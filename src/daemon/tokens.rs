//! Tokens: for programs that speak HTTP and are nobody the kernel knows.
//!
//! A token stands for the one who made it, confined to some actions of some programs, for some
//! time. What that user may do then is asked anew each time: a token never allows more. Only a
//! digest of each is kept.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::clock::Moment;
use super::kept;
use crate::ids::{ActionName, ProgramName};
use crate::policy::Scope;

/// How many tokens one user may have.
const MOST: usize = 100;
/// Tokens begin with this, so that those who find one know what it is.
const PREFIX: &str = "deployer_";

/// What is known of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// Its number, which is no secret.
    pub id: u64,
    /// What its owner calls it.
    pub name: String,
    /// Whose it is.
    pub uid: u32,
    /// Their name when it was made.
    pub user: String,
    /// Where it counts.
    pub programs: Vec<ProgramName>,
    /// For what.
    pub actions: Vec<ActionName>,
    /// Since when, nanoseconds since 1970.
    pub since: i64,
    /// Until when; none is until somebody removes it.
    pub until: Option<i64>,
    /// SHA-256 of the token.
    digest: String,
}

impl Token {
    fn has_expired(&self) -> bool {
        let now = Moment::now().nanos();
        self.until.is_some_and(|until| until <= now)
    }

    /// What it confines its owner to.
    #[must_use]
    pub fn scope(&self) -> Scope {
        Scope {
            programs: self.programs.clone(),
            actions: self.actions.clone(),
        }
    }
}

/// All tokens. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tokens {
    path: PathBuf,
    all: Arc<Mutex<Vec<Token>>>,
}

/// What somebody wants a token for.
pub struct Wanted {
    /// What they call it.
    pub name: String,
    /// Whose it will be, and their name.
    pub owner: (u32, String),
    /// Where it counts.
    pub programs: Vec<ProgramName>,
    /// For what.
    pub actions: Vec<ActionName>,
    /// Until when, nanoseconds since 1970.
    pub until: Option<i64>,
}

impl Tokens {
    /// Those of the former daemon. If they cannot be read, none counts.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("tokens.json");
        let all = kept::read(&path, "no token counts");
        Self {
            path,
            all: Arc::new(Mutex::new(all)),
        }
    }

    fn held(&self) -> MutexGuard<'_, Vec<Token>> {
        // Nobody leaves it half changed.
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes one; its number, and the token itself, which nobody is told again. On the disk when
    /// it is back.
    ///
    /// # Errors
    /// The disk, or their owner has too many.
    pub fn add(&self, wanted: Wanted) -> io::Result<(u64, String)> {
        let mut bytes = [0; 20];
        rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
        let secret: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        let secret = format!("{PREFIX}{secret}");
        let mut held = self.held();
        let mut all: Vec<Token> = held.iter().filter(|t| !t.has_expired()).cloned().collect();
        let (uid, user) = wanted.owner;
        if all.iter().filter(|t| t.uid == uid).count() >= MOST {
            let message = format!("you have {MOST} tokens; `deployer TOKEN remove ID` removes one");
            return Err(io::Error::other(message));
        }
        let id = held.iter().map(|t| t.id).max().unwrap_or(0) + 1;
        all.push(Token {
            id,
            name: wanted.name,
            uid,
            user,
            programs: wanted.programs,
            actions: wanted.actions,
            since: Moment::now().nanos(),
            until: wanted.until,
            digest: digest(&secret),
        });
        kept::write(&self.path, &all)?;
        *held = all;
        Ok((id, secret))
    }

    /// Those that count, the oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Token> {
        let held = self.held();
        held.iter().filter(|t| !t.has_expired()).cloned().collect()
    }

    /// Removes one; none if there is none that `may` says yes to. On the disk when it is back.
    ///
    /// # Errors
    /// The disk: then nothing has changed.
    pub fn remove(&self, id: u64, may: impl Fn(&Token) -> bool) -> io::Result<Option<Token>> {
        let mut held = self.held();
        let mut all = held.clone();
        let Some(at) = all.iter().position(|t| t.id == id && may(t)) else {
            return Ok(None);
        };
        let removed = all.remove(at);
        kept::write(&self.path, &all)?;
        *held = all;
        Ok(Some(removed))
    }

    /// What a token is, if it counts.
    #[must_use]
    pub fn find(&self, secret: &str) -> Option<Token> {
        // Whoever measures how long the search takes learns something of a digest, and nothing
        // of a token.
        let digest = digest(secret);
        let held = self.held();
        let found = held.iter().find(|t| t.digest == digest);
        found.filter(|t| !t.has_expired()).cloned()
    }
}

fn digest(secret: &str) -> String {
    let bytes = Sha256::digest(secret);
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn wanted(until: Option<i64>) -> Wanted {
        Wanted {
            name: "ci".into(),
            owner: (7, "alice".into()),
            programs: vec![ProgramName::new("app").unwrap()],
            actions: vec![ActionName::run()],
            until,
        }
    }

    #[test]
    fn tokens_are_found_until_they_expire_or_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(dir.path());
        let (id, secret) = tokens.add(wanted(None)).unwrap();
        let (_, old) = tokens.add(wanted(Some(1))).unwrap();
        assert_eq!(tokens.find(&secret).unwrap().id, id);
        assert_eq!(tokens.find(&old), None);
        assert_eq!(tokens.find(""), None);
        let kept = fs::read_to_string(dir.path().join("tokens.json")).unwrap();
        assert!(!kept.contains(&secret) && !kept.contains(&secret[PREFIX.len()..]));
        // Another daemon knows them.
        let again = Tokens::open(dir.path());
        assert_eq!(again.find(&secret).unwrap().user, "alice");
        assert!(again.remove(id, |t| t.uid == 8).unwrap().is_none());
        assert!(again.remove(id, |t| t.uid == 7).unwrap().is_some());
        assert_eq!(again.find(&secret), None);
        fs::write(dir.path().join("tokens.json"), "nonsense").unwrap();
        assert!(Tokens::open(dir.path()).list().is_empty());
    }
}
