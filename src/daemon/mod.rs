//! The daemon: the only one that decides.
//!
//! * [`boot`]: from the command line to a keeper, before any thread exists.
//! * [`main`]: the daemon's role: takes over what the keeper holds, then serves.
//! * [`front`]: every request, and policy's verdict on it.
//! * [`actor`]: owns the engine; [`effects`] does what it says.
//! * [`code`]: workers, which have to do with where code comes from.
//! * [`schedule`]: what is done by itself; [`freeze`]: what is not.
//! * [`events`]: what happens, for those who watch; [`gateway`]: the HTTP gateway;
//!   [`tokens`]: who is believed there; [`webhook`]: who knows a secret.
//! * [`recover`]: what a former daemon left behind.
//!
//! Threads: this one (sockets, timers, the actor), the pump, the store, and a pool for what may
//! block (spawning, files, names).

pub mod actor;
pub mod boot;
pub mod clock;
pub mod code;
pub mod diff;
mod effects;
mod events;
pub mod freeze;
pub mod front;
mod gateway;
mod kept;
pub mod main;
pub mod names;
pub mod recover;
pub mod rows;
mod schedule;
mod signs;
mod tokens;
mod webhook;

use std::path::PathBuf;
use std::sync::Arc;

use crate::config::model::{Config, Program};
use crate::ids::{ProgramName, Uid};
use crate::store::By;

/// A configuration that is in force.
#[derive(Debug)]
pub struct InForce {
    /// What it says.
    pub config: Config,
    /// The file it came from.
    pub path: PathBuf,
    /// Who the daemon runs as.
    pub owner: Uid,
}

impl InForce {
    /// The settings that hold for a program now; none if it `had_section` and has none any more:
    /// a removed program does not turn into a script of the same name.
    #[must_use]
    pub fn program(&self, name: &ProgramName, had_section: bool) -> Option<Arc<Program>> {
        match self.config.programs.get(name) {
            Some(section) => Some(Arc::clone(section)),
            None if had_section => None,
            None => Some(Arc::clone(&self.config.script)),
        }
    }

    /// Who asks for what the daemon does by itself.
    fn itself(&self) -> By {
        By {
            uid: self.owner.get(),
            gid: rustix::process::getegid().as_raw(),
            user: "deployer".to_owned(),
            pid: std::process::id().cast_signed(),
        }
    }
}
