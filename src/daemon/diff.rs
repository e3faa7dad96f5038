//! What a new configuration would change, for people.

use std::fmt::Write as _;

use crate::accounts;
use crate::config::model::Config;
use crate::ids::{Gid, Uid};
use crate::policy;

/// One line a change; says so if there is none.
#[must_use]
pub fn text(old: &Config, new: &Config) -> String {
    let mut text = String::new();
    for (name, spec) in &new.programs {
        match old.programs.get(name) {
            None => {
                let _ = writeln!(text, "new      {name}");
            }
            Some(before) if !before.runs_like(spec) => {
                let restart = if spec.is_supervised() && before.is_supervised() {
                    "; a running one has to be restarted to use it"
                } else {
                    ""
                };
                let _ = writeln!(text, "changed  {name}{restart}");
            }
            Some(_) => {}
        }
    }
    for (name, spec) in &old.programs {
        if !new.programs.contains_key(name) {
            let lingers = if spec.is_supervised() {
                "; a running one lingers until it is stopped"
            } else {
                ""
            };
            let _ = writeln!(text, "gone     {name}{lingers}");
        }
    }
    for change in policy::rights_changes(old, new) {
        let program = change
            .program
            .as_ref()
            .map_or("scripts without a section", |p| p.as_str());
        for (sign, (users, groups)) in [("gains", &change.gained), ("loses", &change.lost)] {
            for who in users.iter().map(user).chain(groups.iter().map(group)) {
                let _ = writeln!(text, "right    {who} {sign} {program} {}", change.action);
            }
        }
    }
    if old.global != new.global {
        text.push_str("changed  settings of the daemon\n");
    }
    if text.is_empty() {
        text.push_str("nothing would change\n");
    }
    text
}

fn user(uid: &Uid) -> String {
    match accounts::user_of(uid.get()) {
        Ok(Some(user)) => format!("user {}", user.name),
        _ => format!("user {uid}"),
    }
}

fn group(gid: &Gid) -> String {
    match accounts::group_of(gid.get()) {
        Ok(Some(name)) => format!("group {name}"),
        _ => format!("group {gid}"),
    }
}
