//! Who may do what. Pure: a configuration and a peer in, a verdict out.
//!
//! This is the only module that can make a [`Grant`], and nothing runs without one. The rules:
//!
//! 1. root may do everything;
//! 2. the user the daemon runs as may, too: whoever is that user can do to its processes, its
//!    files and the daemon itself all that the daemon could do for them;
//! 3. for everybody else the list of users or the list of groups of the action has to contain
//!    the peer: its uid, its gid, or one of its supplementary groups.
//!
//! A list of the action (`uid-run`) replaces the program's (`allow-uid`), and that one the
//! global one; users and groups apart. `cancel` has the lists of `run` where it has none of
//! its own. Whoever shows a token may at most what it is confined to. Overflow and unset ids are no [`Uid`] or [`Gid`] at all, so they match nothing.
//! The pid never counts.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use crate::config::keys;
use crate::config::lists::Lists;
use crate::config::model::{Config, Program};
use crate::ids::{ActionName, Gid, ProgramName, Uid};

/// Who asks, as the kernel recorded it when the connection was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The effective uid; none for an overflow or unset one.
    pub uid: Option<Uid>,
    /// The effective gid; none for an overflow or unset one.
    pub gid: Option<Gid>,
    /// Supplementary groups, without overflow and unset ones.
    pub groups: Vec<Gid>,
    /// The process, for the record only.
    pub pid: i32,
    /// The uid as the kernel gave it, for the record only.
    pub raw_uid: u32,
    /// What it is confined to, whatever it may do otherwise; none: nothing.
    pub scope: Option<Arc<Scope>>,
}

/// What somebody is confined to who shows a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// These programs alone.
    pub programs: Vec<ProgramName>,
    /// These actions alone.
    pub actions: Vec<ActionName>,
}

impl Peer {
    /// Whether what it is confined to has this.
    fn reaches(&self, program: &ProgramName, action: &ActionName) -> bool {
        self.scope
            .as_ref()
            .is_none_or(|scope| scope.programs.contains(program) && scope.actions.contains(action))
    }
}

/// What allowed a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rule {
    /// The peer is root.
    Root,
    /// The peer is the user the daemon runs as.
    Owner,
    /// A list of users has the peer's uid.
    User {
        /// The uid.
        uid: Uid,
        /// The key of the list.
        key: String,
        /// Line of the list in the configuration.
        line: usize,
    },
    /// A list of groups has one of the peer's.
    Group {
        /// The gid.
        gid: Gid,
        /// The key of the list.
        key: String,
        /// Line of the list in the configuration.
        line: usize,
    },
}

impl Rule {
    /// The line of the configuration that decided, if one did.
    #[must_use]
    pub fn line(&self) -> Option<usize> {
        match self {
            Self::Root | Self::Owner => None,
            Self::User { line, .. } | Self::Group { line, .. } => Some(*line),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("root may do everything"),
            Self::Owner => f.write_str("the user the daemon runs as may do everything"),
            Self::User { uid, key, line } => write!(f, "uid {uid} is in {key}, line {line}"),
            Self::Group { gid, key, line } => write!(f, "gid {gid} is in {key}, line {line}"),
        }
    }
}

/// A request that policy allowed. Only [`authorize`] makes one.
#[derive(Debug, Clone, PartialEq)]
#[must_use = "a grant is what a request needs to go on"]
pub struct Grant {
    name: ProgramName,
    program: Arc<Program>,
    action: ActionName,
    rule: Rule,
}

impl Grant {
    /// The program's name.
    #[must_use]
    pub fn name(&self) -> &ProgramName {
        &self.name
    }

    /// The program as it was configured when the request was allowed.
    #[must_use]
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// What is allowed.
    #[must_use]
    pub fn action(&self) -> &ActionName {
        &self.action
    }

    /// Why.
    #[must_use]
    pub fn rule(&self) -> &Rule {
        &self.rule
    }
}

/// The answer to whoever may not. It is the same for a program that does not exist, so that
/// nobody learns the names of programs they may not use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no such program, or not allowed")]
#[must_use = "a refusal has to reach whoever asked"]
pub struct Denied;

/// Decides a request. `owner` is the user the daemon runs as.
///
/// A program without a section is a script of the root directory: the global lists hold for it,
/// whether or not the script exists.
///
/// # Errors
/// [`Denied`] for unknown actions, even to root, and for everything that is not allowed.
#[must_use = "nothing may be done before this is looked at"]
pub fn authorize(
    config: &Config,
    owner: Uid,
    peer: &Peer,
    program: &ProgramName,
    action: &ActionName,
) -> Result<Grant, Denied> {
    let settings = settings(config, program, action.as_str());
    if !has_action(settings, action) || !peer.reaches(program, action) {
        return Err(Denied);
    }
    let rule = decide(settings, owner, peer, action.as_str()).ok_or(Denied)?;
    Ok(Grant {
        name: program.clone(),
        program: Arc::clone(settings),
        action: action.clone(),
        rule,
    })
}

/// Whether the peer may know of the program: it may do at least one thing with it.
#[must_use]
pub fn may_see(config: &Config, owner: Uid, peer: &Peer, program: &ProgramName) -> bool {
    let may = |settings: &Program, action: &str| {
        let reached = ActionName::new(action).is_ok_and(|action| peer.reaches(program, &action));
        reached && decide(settings, owner, peer, action).is_some()
    };
    let section = config.programs.get(program);
    let own = section.unwrap_or(&config.script);
    actions(own).iter().any(|action| may(own, action.as_str()))
        || config
            .lingering
            .get(program)
            .is_some_and(|removed| LINGERING.iter().any(|action| may(removed, action)))
}

/// The actions that make sense for a program: its own, and those of the daemon that it is made
/// for. Others of the daemon's can be asked for as well, and answer why not.
#[must_use]
pub fn actions(program: &Program) -> Vec<ActionName> {
    let supervised = program.is_supervised();
    let of_daemon = keys::ACTIONS.iter().filter(|spec| match spec.name {
        "run" | "cancel" => !supervised || program.commands.contains_key(&ActionName::run()),
        "update" | "rollback" | "pin" | "unpin" => program.source.is_some(),
        keys::FREEZE => true,
        _ => supervised,
    });
    let of_daemon = of_daemon.filter_map(|spec| ActionName::new(spec.name).ok());
    let mut actions: Vec<ActionName> = of_daemon.collect();
    let console = program.has_console().then(ActionName::console);
    for action in program.commands.keys().chain(&console) {
        if !actions.contains(action) && !keys::is_notice(action.as_str()) {
            actions.push(action.clone());
        }
    }
    actions
}

/// Whether the daemon or the program has such an action.
fn has_action(program: &Program, action: &ActionName) -> bool {
    keys::action(action.as_str()).is_some()
        || (program.commands.contains_key(action) && !keys::is_notice(action.as_str()))
        || (*action == ActionName::console() && program.has_console())
}

/// What changes for one action of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RightsChange {
    /// The program; none: scripts of the root directory without a section.
    pub program: Option<ProgramName>,
    /// The action.
    pub action: ActionName,
    /// Users and groups that may now, and could not before.
    pub gained: (Vec<Uid>, Vec<Gid>),
    /// Users and groups that may not any more.
    pub lost: (Vec<Uid>, Vec<Gid>),
}

/// Who gains or loses which right if `new` takes the place of `old`. Users and groups are those of
/// the lists; one who is in both kinds may be named although nothing changes for them.
#[must_use]
pub fn rights_changes(old: &Config, new: &Config) -> Vec<RightsChange> {
    let mut changes = Vec::new();
    let mut compare = |program: Option<&ProgramName>, old: &Program, new: &Program| {
        let mut all = actions(old);
        for action in actions(new) {
            if !all.contains(&action) {
                all.push(action);
            }
        }
        for action in all {
            let allowed = |spec: &Program| {
                let there = actions(spec).contains(&action);
                let lists = Lists::of(spec, action.as_str());
                match there {
                    true => (lists.users.list.ids.clone(), lists.groups.list.ids.clone()),
                    false => (Vec::new(), Vec::new()),
                }
            };
            let (before, after) = (allowed(old), allowed(new));
            let gained = (without(&after.0, &before.0), without(&after.1, &before.1));
            let lost = (without(&before.0, &after.0), without(&before.1, &after.1));
            let none =
                |(users, groups): &(Vec<Uid>, Vec<Gid>)| users.is_empty() && groups.is_empty();
            if !none(&gained) || !none(&lost) {
                changes.push(RightsChange {
                    program: program.cloned(),
                    action,
                    gained,
                    lost,
                });
            }
        }
    };
    compare(None, &old.script, &new.script);
    let names: std::collections::BTreeSet<&ProgramName> =
        old.programs.keys().chain(new.programs.keys()).collect();
    for name in names {
        // Without a section it is what a script of that name would be.
        let before = old.programs.get(name).unwrap_or(&old.script);
        let after = new.programs.get(name).unwrap_or(&new.script);
        compare(Some(name), before, after);
    }
    changes
}

fn without<T: Copy + PartialEq>(these: &[T], those: &[T]) -> Vec<T> {
    these
        .iter()
        .copied()
        .filter(|x| !those.contains(x))
        .collect()
}

/// Whether the peer may do everything: root, and the user the daemon runs as.
#[must_use]
pub fn is_admin(owner: Uid, peer: &Peer) -> bool {
    peer.scope.is_none() && admin(owner, peer).is_some()
}

/// A verdict and its reason, for somebody who may know both.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Whether the peer may.
    pub allowed: bool,
    /// Why, a fragment.
    pub text: String,
    /// The line of the configuration that decides; none where no line does.
    pub line: Option<usize>,
}

/// Says why [`authorize`] decides as it does. It names lists and lines, so only those who may
/// read the configuration may have it.
#[must_use]
pub fn explain(
    config: &Config,
    owner: Uid,
    peer: &Peer,
    program: &ProgramName,
    action: &ActionName,
) -> Explanation {
    let denied = |text: String, line| Explanation {
        allowed: false,
        text,
        line,
    };
    let settings = settings(config, program, action.as_str());
    if !has_action(settings, action) {
        return denied(format!("there is no action {action}"), None);
    }
    if let Some(rule) = decide(settings, owner, peer, action.as_str()) {
        return Explanation {
            allowed: true,
            text: rule.to_string(),
            line: rule.line(),
        };
    }
    let lists = Lists::of(settings, action.as_str());
    let who = match peer.uid {
        Some(uid) => format!("uid {uid}"),
        None => format!("uid {} (nobody in particular)", peer.raw_uid),
    };
    let users = lists.users.describe();
    let groups = lists.groups.describe();
    let (user_line, group_line) = (lists.users.list.line, lists.groups.list.line);
    let (text, line) = match (users, groups) {
        (None, None) if user_line == 0 && group_line == 0 => {
            ("no list says who may, so only root may".to_owned(), 0)
        }
        (None, None) => {
            let text = "the lists allow nobody, so only root may".to_owned();
            (text, user_line.max(group_line))
        }
        (Some(users), None) => (format!("{who} is not in {users}"), user_line),
        (None, Some(groups)) => (
            format!("{who} has no group that is in {groups}"),
            group_line,
        ),
        (Some(users), Some(groups)) => {
            let text = format!("{who} is not in {users}, and has no group that is in {groups}");
            (text, user_line)
        }
    };
    denied(text, (line > 0).then_some(line))
}

/// What may still be done with a program that was removed from the configuration.
const LINGERING: [&str; 4] = ["stop", "status", "kill", "cancel"];

/// The section of a program, what it was for one that was removed, or what holds for scripts
/// without one.
fn settings<'a>(config: &'a Config, program: &ProgramName, action: &str) -> &'a Arc<Program> {
    let section = config.programs.get(program);
    let removed = config.lingering.get(program);
    // What is left of a section may still be run, and that be cancelled.
    removed
        .filter(|_| LINGERING.contains(&action) && (section.is_none() || action != "cancel"))
        .or(section)
        .unwrap_or(&config.script)
}

fn admin(owner: Uid, peer: &Peer) -> Option<Rule> {
    match peer.uid? {
        Uid::ROOT => Some(Rule::Root),
        uid if uid == owner => Some(Rule::Owner),
        _ => None,
    }
}

fn decide(program: &Program, owner: Uid, peer: &Peer, action: &str) -> Option<Rule> {
    if let Some(rule) = admin(owner, peer) {
        return Some(rule);
    }
    let Lists { users, groups } = Lists::of(program, action);
    if let Some(uid) = peer.uid.filter(|uid| users.list.ids.contains(uid)) {
        return Some(Rule::User {
            uid,
            key: users.key(),
            line: users.list.line,
        });
    }
    let mut gids = peer.gid.iter().chain(&peer.groups);
    let gid = *gids.find(|gid| groups.list.ids.contains(gid))?;
    Some(Rule::Group {
        gid,
        key: groups.key(),
        line: groups.list.line,
    })
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::path::Path;

    use proptest::prelude::*;

    use super::*;
    use crate::config::check::{Names, check};

    /// Nobody has a name here.
    struct Numbers;

    impl Names for Numbers {
        fn user(&self, _: &str) -> Option<u32> {
            None
        }
        fn group(&self, _: &str) -> Option<u32> {
            None
        }
    }

    const OWNER: u32 = 900;

    fn owner() -> Uid {
        Uid::new(OWNER).unwrap()
    }

    fn config(text: &str) -> Config {
        let checked = check(text.as_bytes(), Path::new("x"), &Numbers, false);
        checked
            .config
            .clone()
            .unwrap_or_else(|| panic!("{}", checked.render(false)))
    }

    fn peer(uid: u32, gid: u32, groups: &[u32]) -> Peer {
        Peer {
            uid: Uid::new(uid).ok(),
            gid: Gid::new(gid).ok(),
            groups: groups.iter().filter_map(|g| Gid::new(*g).ok()).collect(),
            pid: 1,
            raw_uid: uid,
            scope: None,
        }
    }

    fn name(text: &str) -> ProgramName {
        ProgramName::new(text).unwrap()
    }

    fn action(text: &str) -> ActionName {
        ActionName::new(text).unwrap()
    }

    fn may(config: &Config, peer: &Peer, program: &str, what: &str) -> bool {
        authorize(config, owner(), peer, &name(program), &action(what)).is_ok()
    }

    const TEXT: &str = "allow-uid = 1\nallow-gid = 50\n[prog-app]\nallow-uid = 2\nuid-run = 3 4\n\
                        gid-cancel = none\n[prog-shut]\nallow-uid = none\nallow-gid = none\n";

    #[test]
    fn lists_of_the_action_come_before_those_of_the_program_and_the_global_ones() {
        let c = config(TEXT);
        for (uid, gid, program, what, expected) in [
            (1, 9, "script.sh", "run", true),
            (1, 9, "script.sh", "cancel", true),
            (1, 9, "app", "run", false),
            (2, 9, "app", "run", false),
            (3, 9, "app", "run", true),
            (4, 9, "app", "cancel", true),
            (9, 50, "app", "run", true),
            (9, 50, "app", "cancel", false),
            (9, 50, "shut", "run", false),
        ] {
            assert_eq!(
                may(&c, &peer(uid, gid, &[]), program, what),
                expected,
                "{uid} {gid} {program} {what}"
            );
        }
    }

    #[test]
    fn supplementary_groups_count() {
        assert!(may(&config(TEXT), &peer(9, 9, &[7, 50]), "app", "run"));
    }

    #[test]
    fn root_and_the_daemons_own_user_always_may() {
        let c = config(TEXT);
        for uid in [0, OWNER] {
            assert!(may(&c, &peer(uid, 9, &[]), "shut", "run"));
            assert!(is_admin(owner(), &peer(uid, 9, &[])));
        }
        assert!(!is_admin(owner(), &peer(1, 0, &[0])));
        assert!(!may(&c, &peer(9, 0, &[0]), "shut", "run"));
    }

    #[test]
    fn overflow_and_unset_ids_match_nothing() {
        let c = config("allow-uid = 1\nallow-gid = 50\n");
        for id in [65534, u32::MAX] {
            let p = peer(id, id, &[id]);
            assert!(!may(&c, &p, "x", "run") && !is_admin(owner(), &p));
        }
    }

    #[test]
    fn unknown_and_forbidden_are_the_same_answer() {
        let c = config("[prog-app]\nallow-uid = 1\n");
        let stranger = peer(9, 9, &[]);
        let ask = |program: &str, what: &str| {
            authorize(&c, owner(), &stranger, &name(program), &action(what)).unwrap_err()
        };
        let forbidden = ask("app", "run");
        for other in [
            ask("none-such", "run"),
            ask("app", "none-such"),
            ask("app", "cancel"),
        ] {
            assert_eq!(other, forbidden);
            assert_eq!(other.to_string(), forbidden.to_string());
        }
    }

    #[test]
    fn an_unknown_action_is_refused_even_to_root() {
        assert!(!may(&config(TEXT), &peer(0, 0, &[]), "app", "explode"));
    }

    #[test]
    fn a_grant_says_what_was_granted_and_why() {
        let c = config(TEXT);
        let ask = |p: &Peer| authorize(&c, owner(), p, &name("app"), &action("run")).unwrap();
        let grant = ask(&peer(3, 9, &[]));
        assert_eq!(
            (grant.name(), grant.action()),
            (&name("app"), &action("run"))
        );
        assert!(Arc::ptr_eq(grant.program(), &c.programs[&name("app")]));
        assert_eq!(
            (grant.rule().to_string().as_str(), grant.rule().line()),
            ("uid 3 is in uid-run, line 5", Some(5))
        );
        let grant = ask(&peer(9, 9, &[50]));
        assert_eq!(grant.rule().to_string(), "gid 50 is in allow-gid, line 2");
        assert_eq!(ask(&peer(0, 9, &[])).rule(), &Rule::Root);
    }

    #[test]
    fn an_explanation_names_the_line_that_decides() {
        let c = config(TEXT);
        let why = |c: &Config, p: &Peer, program, what| {
            let e = explain(c, owner(), p, &name(program), &action(what));
            (e.allowed, e.text, e.line)
        };
        let stranger = peer(9, 9, &[]);
        for (p, program, what, expected) in [
            (
                peer(3, 9, &[]),
                "app",
                "cancel",
                (true, "uid 3 is in uid-run, line 5", Some(5)),
            ),
            (
                peer(0, 0, &[]),
                "app",
                "run",
                (true, "root may do everything", None),
            ),
            (
                stranger.clone(),
                "app",
                "run",
                (
                    false,
                    "uid 9 is not in uid-run (line 5), and has no group that is in allow-gid (line 2)",
                    Some(5),
                ),
            ),
            (
                stranger.clone(),
                "app",
                "cancel",
                (false, "uid 9 is not in uid-run (line 5)", Some(5)),
            ),
            (
                stranger.clone(),
                "shut",
                "run",
                (false, "the lists allow nobody, so only root may", Some(9)),
            ),
            (
                stranger.clone(),
                "app",
                "explode",
                (false, "there is no action explode", None),
            ),
        ] {
            let (allowed, text, line) = expected;
            assert_eq!(why(&c, &p, program, what), (allowed, text.to_owned(), line));
        }
        let (_, text, line) = why(&config(""), &stranger, "app", "run");
        assert_eq!(
            (text.as_str(), line),
            ("no list says who may, so only root may", None)
        );
    }

    /// The six lists that decide about a program, none where the key is absent.
    #[derive(Debug, Clone, Default)]
    struct Keys {
        allow: [Option<Vec<u32>>; 2],
        run: [Option<Vec<u32>>; 2],
        cancel: [Option<Vec<u32>>; 2],
    }

    fn text_of(global: &Keys, program: &Keys) -> String {
        let mut text = String::new();
        let mut put = |key: String, list: &Option<Vec<u32>>| {
            let Some(ids) = list else { return };
            let ids: Vec<_> = ids.iter().map(u32::to_string).collect();
            let ids = if ids.is_empty() {
                "none".to_owned()
            } else {
                ids.join(" ")
            };
            writeln!(text, "{key} = {ids}").unwrap();
        };
        for (n, kind) in ["uid", "gid"].into_iter().enumerate() {
            put(format!("allow-{kind}"), &global.allow[n]);
        }
        put("[prog-app]\nenv-X".to_owned(), &Some(vec![]));
        for (n, kind) in ["uid", "gid"].into_iter().enumerate() {
            put(format!("allow-{kind}"), &program.allow[n]);
            put(format!("{kind}-run"), &program.run[n]);
            put(format!("{kind}-cancel"), &program.cancel[n]);
        }
        text
    }

    /// The rules, written down without the code they are to test.
    fn reference(global: &Keys, program: &Keys, p: &Peer, known: bool, cancel: bool) -> bool {
        if p.raw_uid == 0 || p.raw_uid == OWNER {
            return true;
        }
        (0..2).any(|n| {
            let mut lists = Vec::new();
            if known && cancel {
                lists.push(&program.cancel[n]);
            }
            if known {
                lists.extend([&program.run[n], &program.allow[n]]);
            }
            lists.push(&global.allow[n]);
            let list = lists
                .into_iter()
                .flatten()
                .next()
                .cloned()
                .unwrap_or_default();
            let mine: Vec<u32> = if n == 0 {
                p.uid.iter().map(|u| u.get()).collect()
            } else {
                p.gid.iter().chain(&p.groups).map(|g| g.get()).collect()
            };
            list.iter().any(|id| mine.contains(id))
        })
    }

    fn list() -> impl Strategy<Value = Option<Vec<u32>>> {
        prop::option::of(prop::collection::vec(0_u32..6, 0..3))
    }

    fn lists() -> impl Strategy<Value = Keys> {
        let pair = || (list(), list()).prop_map(|(a, b)| [a, b]);
        (pair(), pair(), pair()).prop_map(|(allow, run, cancel)| Keys { allow, run, cancel })
    }

    fn any_peer() -> impl Strategy<Value = Peer> {
        let id =
            || prop_oneof![8 => 0_u32..6, 1 => Just(65534), 1 => Just(u32::MAX), 1 => Just(OWNER)];
        (id(), id(), prop::collection::vec(id(), 0..3)).prop_map(|(u, g, s)| peer(u, g, &s))
    }

    proptest! {
        #[test]
        fn authorize_decides_as_the_rules_say(global in lists(), program in lists(), p in any_peer()) {
            let c = config(&text_of(&global, &program));
            let mut any = [false; 2];
            for (known, who) in [(true, "app"), (false, "other")] {
                for (cancel, what) in [(false, "run"), (true, "cancel")] {
                    let expected = reference(&global, &program, &p, known, cancel);
                    any[usize::from(known)] |= expected;
                    prop_assert_eq!(may(&c, &p, who, what), expected, "{} {}", who, what);
                    let e = explain(&c, owner(), &p, &name(who), &action(what));
                    prop_assert_eq!(e.allowed, expected);
                }
                let seen = may_see(&c, owner(), &p, &name(who));
                prop_assert_eq!(seen, any[usize::from(known)]);
            }
        }

        #[test]
        fn adding_somebody_to_a_list_takes_no_right_away(
            global in lists(), program in lists(), p in any_peer(), which in 0_usize..8, id in 0_u32..6,
        ) {
            let before = config(&text_of(&global, &program));
            let (mut global, mut program) = (global, program);
            let list = match which {
                0 | 1 => &mut global.allow[which],
                2 | 3 => &mut program.allow[which - 2],
                4 | 5 => &mut program.run[which - 4],
                _ => &mut program.cancel[which - 6],
            };
            if let Some(ids) = list {
                ids.push(id);
            }
            let after = config(&text_of(&global, &program));
            for who in ["app", "other"] {
                for what in ["run", "cancel"] {
                    prop_assert!(!may(&before, &p, who, what) || may(&after, &p, who, what));
                }
            }
        }
    }
}
