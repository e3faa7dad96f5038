//! Who a run's process is: ids, groups, home. From names, anew for every run.

use std::ffi::CString;
use std::os::unix::fs::MetadataExt;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid as NixGid, User, getgrouplist};

use crate::config::model::{RunAs, RunUser};
use crate::sys::child::Ids;

/// An identity that a process can take on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups: exactly these.
    pub groups: Vec<u32>,
    /// `USER` and `LOGNAME`.
    pub name: String,
    /// `HOME`.
    pub home: String,
}

/// Why there is no such identity.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The name stood for somebody when the configuration was read, and does not now.
    #[error("there is no user {0:?} (any more)")]
    Unknown(String),
    /// The database of names could not be asked.
    #[error("cannot look up the user {0:?}: {1}")]
    Lookup(String, std::io::Error),
    /// Only root can run things as somebody else.
    #[error("the daemon does not run as root, so it cannot run anything as {0:?}")]
    NotRoot(String),
}

impl Identity {
    /// Looks up who `run_as` means.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn resolve(run_as: &RunAs) -> Result<Self, IdentityError> {
        let own = nix::unistd::geteuid().as_raw();
        let identity = match &run_as.user {
            Some(RunUser::Named(name)) => {
                let looked_up = User::from_name(name)
                    .map_err(|e| IdentityError::Lookup(name.clone(), e.into()))?;
                let user = looked_up.ok_or_else(|| not_found(name))?;
                Self::of_user(user, run_as)
            }
            // A bare number has no groups, and nothing is looked up for it.
            Some(RunUser::Number(uid)) => Self {
                uid: uid.get(),
                gid: run_as.group.map_or(uid.get(), |g| g.get()),
                groups: Vec::new(),
                name: uid.to_string(),
                home: "/".into(),
            },
            None => match User::from_uid(nix::unistd::geteuid()) {
                Ok(Some(user)) => Self::of_user(user, run_as),
                _ => Self {
                    uid: own,
                    gid: run_as
                        .group
                        .map_or(nix::unistd::getegid().as_raw(), |g| g.get()),
                    groups: Vec::new(),
                    name: own.to_string(),
                    home: "/".into(),
                },
            },
        };
        if own != 0 && (identity.uid != own || identity.gid != nix::unistd::getegid().as_raw()) {
            return Err(IdentityError::NotRoot(identity.name));
        }
        Ok(identity)
    }

    fn of_user(user: User, run_as: &RunAs) -> Self {
        let gid = run_as.group.map_or(user.gid.as_raw(), |g| g.get());
        let listed = CString::new(user.name.clone())
            .ok()
            .and_then(|n| getgrouplist(&n, NixGid::from_raw(gid)).ok());
        Self {
            uid: user.uid.as_raw(),
            gid,
            groups: listed
                .unwrap_or_else(|| vec![NixGid::from_raw(gid)])
                .into_iter()
                .map(NixGid::as_raw)
                .collect(),
            name: user.name,
            home: user.dir.to_string_lossy().into_owned(),
        }
    }

    /// The ids to switch to; none where this process is not root and has them already.
    #[must_use]
    pub fn ids(&self) -> Option<Ids> {
        let ids = Ids {
            uid: self.uid,
            gid: self.gid,
            groups: self.groups.clone(),
        };
        nix::unistd::geteuid().is_root().then_some(ids)
    }
}

/// Identities that were looked up a moment ago: a service of names may be slow, and hundreds of
/// runs a second ask for the same few. A change of `/etc/passwd` or `/etc/group` counts at once,
/// one of another service after [`FRESH_FOR`].
#[derive(Debug, Default)]
pub struct Identities(Mutex<Vec<Remembered>>);

#[derive(Debug)]
struct Remembered {
    run_as: RunAs,
    identity: Identity,
    at: Instant,
    stamps: [Option<Stamp>; 2],
}

/// What tells one state of a file from another: inode, size, time of change.
type Stamp = (u64, u64, i64, i64);

/// How long an identity is believed.
const FRESH_FOR: Duration = Duration::from_secs(5);

/// How many are remembered.
const MOST: usize = 256;

impl Identities {
    /// [`Identity::resolve`], from memory where that is fresh.
    ///
    /// # Errors
    /// [`IdentityError`].
    pub fn resolve(&self, run_as: &RunAs) -> Result<Identity, IdentityError> {
        let stamps = ["/etc/passwd", "/etc/group"].map(stamp);
        {
            let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            known.retain(|r| r.at.elapsed() < FRESH_FOR && r.stamps == stamps);
            if let Some(found) = known.iter().find(|r| r.run_as == *run_as) {
                return Ok(found.identity.clone());
            }
        }
        let identity = Identity::resolve(run_as)?;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() < MOST {
            let (run_as, identity) = (run_as.clone(), identity.clone());
            known.push(Remembered {
                run_as,
                identity,
                at: Instant::now(),
                stamps,
            });
        }
        Ok(identity)
    }
}

fn stamp(path: &str) -> Option<Stamp> {
    let found = std::fs::metadata(path).ok()?;
    Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
}

/// The C library calls a database that it cannot open an unknown user.
fn not_found(name: &str) -> IdentityError {
    match std::fs::File::open("/dev/null") {
        Ok(_) => IdentityError::Unknown(name.to_owned()),
        Err(e) => IdentityError::Lookup(name.to_owned(), e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Uid;

    fn run_as(user: Option<RunUser>) -> RunAs {
        RunAs {
            user,
            group: None,
            line: 1,
        }
    }

    #[test]
    fn a_bare_number_has_no_groups() {
        let uid = nix::unistd::geteuid().as_raw();
        let number = if uid == 0 { 54321 } else { uid };
        let identity = Identity::resolve(&run_as(Some(RunUser::Number(Uid::new(number).unwrap()))));
        if uid == 0 || nix::unistd::getegid().as_raw() == uid {
            let identity = identity.unwrap();
            assert_eq!(
                (identity.uid, identity.gid, identity.groups.len()),
                (number, number, 0)
            );
        }
    }

    #[test]
    fn an_unknown_user_is_an_error_that_names_it() {
        let e =
            Identity::resolve(&run_as(Some(RunUser::Named("no-such-user".into())))).unwrap_err();
        assert!(e.to_string().contains("no-such-user"), "{e}");
    }
}
