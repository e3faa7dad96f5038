//! Which lists of people hold for an action of a program.

use super::keys;
use super::model::{Allowed, Program};
use crate::ids::{Gid, Uid};

/// Nobody.
static NO_USER: Allowed<Uid> = Allowed {
    ids: Vec::new(),
    line: 0,
};
/// Nobody.
static NO_GROUP: Allowed<Gid> = Allowed {
    ids: Vec::new(),
    line: 0,
};

/// The lists that hold for one action.
pub(crate) struct Lists<'a> {
    /// Of users.
    pub users: List<'a, Uid>,
    /// Of groups.
    pub groups: List<'a, Gid>,
}

/// A list, and the action whose own it is; none is the program's.
pub(crate) struct List<'a, T> {
    kind: &'static str,
    /// The list itself.
    pub list: &'a Allowed<T>,
    action: Option<&'a str>,
}

impl<T> List<'_, T> {
    /// The key as the configuration has it.
    pub fn key(&self) -> String {
        match self.action {
            Some(action) => format!("{}-{action}", self.kind),
            None => format!("allow-{}", self.kind),
        }
    }

    /// The key and the line, if somebody is on the list.
    pub fn describe(&self) -> Option<String> {
        let somebody = !self.list.ids.is_empty();
        somebody.then(|| format!("{} (line {})", self.key(), self.list.line))
    }
}

impl<'a> Lists<'a> {
    /// Each list from the action itself, the action it is like, or the program.
    pub fn of(program: &'a Program, action: &'a str) -> Self {
        let mut users = None;
        let mut groups = None;
        let mut next = Some(action);
        // No row of the table is like itself, so this ends.
        while let Some(name) = next {
            let own = program
                .allow_action
                .iter()
                .find(|(action, _)| action.as_str() == name);
            if let Some((_, own)) = own {
                users = users.or(own.uids.as_ref().map(|list| (list, name)));
                groups = groups.or(own.gids.as_ref().map(|list| (list, name)));
            }
            next = keys::action(name).and_then(|spec| spec.like);
        }
        let (all_users, all_groups) = match action == keys::FREEZE {
            true => (&NO_USER, &NO_GROUP),
            false => (&program.allow.uids, &program.allow.gids),
        };
        let (users, user_action) = users.map_or((all_users, None), |(l, a)| (l, Some(a)));
        let (groups, group_action) = groups.map_or((all_groups, None), |(l, a)| (l, Some(a)));
        Self {
            users: List {
                kind: "uid",
                list: users,
                action: user_action,
            },
            groups: List {
                kind: "gid",
                list: groups,
                action: group_action,
            },
        }
    }
    /// Whether anybody is on a list who is not root.
    pub fn anybody_but_root(&self) -> bool {
        !self.groups.list.ids.is_empty() || self.users.list.ids.iter().any(|u| *u != Uid::ROOT)
    }
}
