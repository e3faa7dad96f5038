//! Users and groups in the configuration: who may, and as whom.
//!
//! Everything here fails closed: what cannot be resolved to somebody is an error, never root
//! and never "anybody".

use std::collections::BTreeSet;

use super::diag::{Code, quote};
use super::model::RunUser;
use super::values::{Bad, Item, items};
use crate::ids::{Gid, IdError, Uid};

/// The system's databases of users and groups.
pub trait Names {
    /// The uid of a user.
    fn user(&self, name: &str) -> Option<u32>;
    /// The gid of a group.
    fn group(&self, name: &str) -> Option<u32>;
}

/// Whether `text` means a number; `-1` does, and is then refused as one.
fn is_number(text: &str) -> bool {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn unknown(what: &str, text: &str) -> Bad {
    let command = if what == "user" { "passwd" } else { "group" };
    Bad {
        code: Code::UnknownAccount,
        message: format!("there is no {what} {}", quote(text)),
        help: Some(format!(
            "`getent {command}` lists those there are; a number needs no entry"
        )),
        span: None,
    }
}

fn nobodys(text: &str, error: &IdError, help: &str) -> Bad {
    Bad {
        code: Code::NobodysId,
        message: format!("{} {error}", quote(text)),
        help: Some(help.to_owned()),
        span: None,
    }
}

/// A user or group that is on a list, by name or number.
fn listed<T>(
    item: Item<'_>,
    what: &str,
    parse: impl Fn(&str) -> Result<T, IdError>,
    find: impl Fn(&str) -> Option<u32>,
    check: impl Fn(u32) -> Result<T, IdError>,
) -> Result<T, Bad> {
    const HELP: &str = "list somebody else, or write `none` to allow nobody";
    let result = if is_number(item.text) {
        parse(item.text)
    } else {
        match find(item.text) {
            Some(id) => check(id),
            None if item.text == "none" => {
                let help = "`none` stands alone, it means nobody";
                return Err(Bad::new("`none` among others", help).at(&item));
            }
            None => return Err(unknown(what, item.text).at(&item)),
        }
    };
    result.map_err(|e| nobodys(item.text, &e, HELP).at(&item))
}

/// The words of a list of people; empty for `none`.
fn people(value: &str) -> Result<Vec<Item<'_>>, Bad> {
    if value == "none" {
        return Ok(Vec::new());
    }
    let list = items(value);
    if list.is_empty() {
        return Err(Bad::new(
            "nobody is on this list",
            "write `none` to allow nobody",
        ));
    }
    Ok(list)
}

fn distinct<T: Ord + Copy>(mut ids: Vec<T>) -> Vec<T> {
    let mut seen = BTreeSet::new();
    ids.retain(|id| seen.insert(*id));
    ids
}

/// A list of users, all faults of it at once.
pub(super) fn users(value: &str, names: &dyn Names) -> Result<Vec<Uid>, Vec<Bad>> {
    let one = |item| listed(item, "user", str::parse, |n| names.user(n), Uid::new);
    collect(people(value).map_err(|bad| vec![bad])?.into_iter().map(one))
}

/// A list of groups, all faults of it at once.
pub(super) fn groups(value: &str, names: &dyn Names) -> Result<Vec<Gid>, Vec<Bad>> {
    let one = |item| listed(item, "group", str::parse, |n| names.group(n), Gid::new);
    collect(people(value).map_err(|bad| vec![bad])?.into_iter().map(one))
}

fn collect<T: Ord + Copy>(found: impl Iterator<Item = Result<T, Bad>>) -> Result<Vec<T>, Vec<Bad>> {
    let (mut ids, mut bad) = (Vec::new(), Vec::new());
    for result in found {
        match result {
            Ok(id) => ids.push(id),
            Err(e) => bad.push(e),
        }
    }
    if bad.is_empty() {
        Ok(distinct(ids))
    } else {
        Err(bad)
    }
}

/// `none` where somebody has to be named: silence there would mean the daemon's own user.
fn nobody_to_run_as(what: &str) -> Bad {
    Bad::new(
        format!("`none` is not a {what} to run as"),
        format!("name a {what}, or remove the line"),
    )
}

/// A user to run as. An account that has the overflow id is allowed by name: it is somebody
/// to run as, though nobody to trust.
pub(super) fn run_user(value: &str, names: &dyn Names) -> Result<RunUser, Bad> {
    if is_number(value) {
        return value
            .parse()
            .map(RunUser::Number)
            .map_err(|e| nobodys(value, &e, "name a user, or another number"));
    }
    match names.user(value) {
        Some(u32::MAX) => Err(nobodys(value, &IdError::Nobody, "name another user")),
        Some(_) => Ok(RunUser::Named(value.to_owned())),
        None if value == "none" => Err(nobody_to_run_as("user")),
        None => Err(unknown("user", value)),
    }
}

/// A group to run as.
pub(super) fn run_group(value: &str, names: &dyn Names) -> Result<Gid, Bad> {
    let help = "name another group; without this key it is the user's own";
    if is_number(value) {
        return value.parse().map_err(|e| nobodys(value, &e, help));
    }
    match names.group(value) {
        Some(id) => Gid::new(id).map_err(|e| nobodys(value, &e, help)),
        None if value == "none" => Err(nobody_to_run_as("group")),
        None => Err(unknown("group", value)),
    }
}

#[cfg(test)]
pub(crate) mod fake {
    //! A database of names for tests.

    use super::Names;

    /// Users and groups that tests speak of.
    pub(crate) struct Fake;

    impl Names for Fake {
        fn user(&self, name: &str) -> Option<u32> {
            let known = [
                ("root", 0),
                ("alice", 1001),
                ("bob", 1002),
                ("deploybot", 1003),
                ("nobody", 65534),
                ("broken", u32::MAX),
            ];
            known.iter().find(|(n, _)| *n == name).map(|(_, id)| *id)
        }

        fn group(&self, name: &str) -> Option<u32> {
            let known = [
                ("root", 0),
                ("wheel", 99),
                ("deploy", 2000),
                ("nogroup", 65534),
            ];
            known.iter().find(|(n, _)| *n == name).map(|(_, id)| *id)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fake::Fake;
    use super::*;

    #[test]
    fn lists_take_names_and_numbers() {
        let ids: Vec<u32> = users("alice, 1002 root,alice", &Fake)
            .unwrap()
            .iter()
            .map(|u| u.get())
            .collect();
        assert_eq!(ids, [1001, 1002, 0]);
        assert_eq!(groups("wheel", &Fake).unwrap()[0].get(), 99);
        assert!(users("none", &Fake).unwrap().is_empty());
    }

    #[test]
    fn whoever_is_nobody_in_particular_is_an_error() {
        for bad in [
            "-1",
            "+5",
            "4294967295",
            "65534",
            "nobody",
            "broken",
            "nogroup",
            "",
            ",",
            "4294967296",
            "99999999999999999999",
            "0x10",
            "mallory",
            "alice bob mallory",
            "none alice",
            "None",
            "alice;bob",
        ] {
            assert!(users(bad, &Fake).is_err(), "{bad:?}");
            assert!(groups(bad, &Fake).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn every_fault_of_a_list_is_reported_with_its_place() {
        let bad = users("alice, -1 mallory", &Fake).unwrap_err();
        let places: Vec<_> = bad
            .iter()
            .map(|b| (b.code, b.span.clone().unwrap()))
            .collect();
        assert_eq!(
            places,
            [(Code::NobodysId, 7..9), (Code::UnknownAccount, 10..17)]
        );
    }

    #[test]
    fn nothing_but_root_means_root() {
        for bad in ["", "none", "-1", "4294967295", "65534", "mallory", "broken"] {
            assert!(run_user(bad, &Fake).is_err(), "{bad:?}");
            assert!(run_group(bad, &Fake).is_err(), "{bad:?}");
        }
        assert_eq!(
            run_user("root", &Fake).unwrap(),
            RunUser::Named("root".into())
        );
        assert_eq!(run_user("0", &Fake).unwrap(), RunUser::Number(Uid::ROOT));
        assert_eq!(
            run_user("nobody", &Fake).unwrap(),
            RunUser::Named("nobody".into())
        );
        assert!(run_group("nogroup", &Fake).is_err());
    }
}
