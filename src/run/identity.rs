//! Who a run's process is: ids, groups, home. From names, anew for every run.

use std::io;

use crate::accounts::{self, Account};
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
    Lookup(String, io::Error),
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
                let cannot = |e| IdentityError::Lookup(name.clone(), e);
                let user = accounts::user(name).map_err(cannot)?;
                let user = user.ok_or_else(|| IdentityError::Unknown(name.clone()))?;
                Self::of_user(user, run_as).map_err(cannot)?
            }
            // A bare number has no groups, and nothing is looked up for it.
            Some(RunUser::Number(uid)) => Self {
                uid: uid.get(),
                gid: run_as.group.map_or(uid.get(), |g| g.get()),
                groups: Vec::new(),
                name: uid.to_string(),
                home: "/".into(),
            },
            None => {
                let cannot = |e| IdentityError::Lookup(own.to_string(), e);
                match accounts::user_of(own).map_err(cannot)? {
                    Some(user) => Self::of_user(user, run_as).map_err(cannot)?,
                    None => Self {
                        uid: own,
                        gid: run_as
                            .group
                            .map_or(nix::unistd::getegid().as_raw(), |g| g.get()),
                        groups: Vec::new(),
                        name: own.to_string(),
                        home: "/".into(),
                    },
                }
            }
        };
        if own != 0 && (identity.uid != own || identity.gid != nix::unistd::getegid().as_raw()) {
            return Err(IdentityError::NotRoot(identity.name));
        }
        Ok(identity)
    }

    fn of_user(user: Account, run_as: &RunAs) -> io::Result<Self> {
        let gid = run_as.group.map_or(user.gid, |g| g.get());
        Ok(Self {
            uid: user.uid,
            gid,
            groups: accounts::groups_of(&user.name, gid)?,
            name: user.name,
            home: user.home,
        })
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
