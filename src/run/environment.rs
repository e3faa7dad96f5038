//! The environment of a run, built from nothing. Pure.

use std::collections::BTreeMap;

use super::identity::Identity;
use crate::config::inputs::variable;
use crate::config::model::Program;
use crate::ids::{ActionName, ProgramName, RunId};

/// What goes into the environment beside the program's settings.
#[derive(Debug)]
pub struct Facts<'a> {
    /// The program.
    pub program: &'a ProgramName,
    /// The action.
    pub action: &'a ActionName,
    /// The run.
    pub run: RunId,
    /// Name of who asked.
    pub by: &'a str,
    /// The process of the supervised program.
    pub pid: Option<i32>,
    /// What kind of terminal it has, if it has one.
    pub terminal: Option<&'a str>,
    /// Checked inputs.
    pub inputs: &'a BTreeMap<String, String>,
}

/// All variables. Those that the daemon sets win over `env-NAME`, which cannot name them.
#[must_use]
pub fn environment(
    spec: &Program,
    identity: &Identity,
    facts: &Facts<'_>,
) -> BTreeMap<String, String> {
    let mut env = spec.env.clone();
    if let Some(kind) = facts.terminal {
        env.entry("TERM".to_owned())
            .or_insert_with(|| kind.to_owned());
    }
    for (name, value) in facts.inputs {
        env.insert(variable(name), value.clone());
    }
    let shell = spec.shell.to_string_lossy().into_owned();
    let own = [
        ("PATH", spec.path.clone()),
        ("SHELL", shell),
        ("PROGNAME", facts.program.to_string()),
        ("ACTION", facts.action.to_string()),
        (
            "PID",
            facts.pid.map_or(String::new(), |pid| pid.to_string()),
        ),
        ("HOME", identity.home.clone()),
        ("USER", identity.name.clone()),
        ("LOGNAME", identity.name.clone()),
        ("DEPLOYER_RUN", facts.run.to_string()),
        ("DEPLOYER_BY", facts.by.to_owned()),
    ];
    env.extend(own.map(|(name, value)| (name.to_owned(), value)));
    env
}
