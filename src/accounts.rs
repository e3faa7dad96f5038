//! The users and groups of this system: those in `/etc/passwd` and `/etc/group`, and whoever is
//! not there but known to another name service.
//!
//! All of these may wait for a disk or a server. An answer is believed for [`FRESH_FOR`]; a change
//! of the two files counts at once.

use std::collections::HashMap;
use std::fs;
use std::hash::Hash;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::getent;

/// How long an answer is believed.
pub const FRESH_FOR: Duration = Duration::from_secs(5);

/// How long a name service may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// How many answers of a kind are remembered.
const MOST: usize = 1024;

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// A user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Account {
    /// The name.
    pub name: String,
    /// The number.
    pub uid: u32,
    /// The number of the primary group.
    pub gid: u32,
    /// The home directory.
    pub home: String,
}

/// A group, and whom it lists.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Group {
    name: String,
    gid: u32,
    members: Vec<String>,
}

/// The user of this name.
///
/// # Errors
/// Why it could not be found out.
pub fn user(name: &str) -> io::Result<Option<Account>> {
    static KNOWN: Known<String, Option<Account>> = Known::new();
    KNOWN.get(name.to_owned(), || {
        find_in(PASSWD, "passwd", name, Account::read, |user| {
            user.name == name
        })
    })
}

/// The user with this number.
///
/// # Errors
/// As [`user`].
pub fn user_of(uid: u32) -> io::Result<Option<Account>> {
    static KNOWN: Known<u32, Option<Account>> = Known::new();
    KNOWN.get(uid, || {
        let key = uid.to_string();
        find_in(PASSWD, "passwd", &key, Account::read, |user| {
            user.uid == uid
        })
    })
}

/// The user of this name, or else with this number.
///
/// # Errors
/// As [`user`].
pub fn find(text: &str) -> io::Result<Option<Account>> {
    match (user(text)?, text.parse()) {
        (None, Ok(uid)) => user_of(uid),
        (found, _) => Ok(found),
    }
}

/// The number of the group of this name.
///
/// # Errors
/// As [`user`].
pub fn group(name: &str) -> io::Result<Option<u32>> {
    static KNOWN: Known<String, Option<u32>> = Known::new();
    KNOWN.get(name.to_owned(), || {
        let found = find_in(GROUP, "group", name, Group::read, |group| {
            group.name == name
        });
        Ok(found?.map(|group| group.gid))
    })
}

/// The name of the group with this number.
///
/// # Errors
/// As [`user`].
pub fn group_of(gid: u32) -> io::Result<Option<String>> {
    static KNOWN: Known<u32, Option<String>> = Known::new();
    KNOWN.get(gid, || {
        let key = gid.to_string();
        let found = find_in(GROUP, "group", &key, Group::read, |group| group.gid == gid);
        Ok(found?.map(|group| group.name))
    })
}

/// The groups that a login as this user gives: `gid`, its primary one, and those that list it.
///
/// # Errors
/// As [`user`].
pub fn groups_of(name: &str, gid: u32) -> io::Result<Vec<u32>> {
    static KNOWN: Known<(String, u32), Vec<u32>> = Known::new();
    KNOWN.get((name.to_owned(), gid), || {
        // Each service may add some; `getent` asks the files as well.
        let listed = match getent::ask("initgroups", name, PATIENCE)? {
            Some(answer) => read_numbers(&answer)?,
            None => lines(&fs::read(GROUP)?)
                .filter_map(Group::read)
                .filter(|group| group.members.iter().any(|member| member == name))
                .map(|group| group.gid)
                .collect(),
        };
        let mut groups = vec![gid];
        for gid in listed {
            if !groups.contains(&gid) {
                groups.push(gid);
            }
        }
        Ok(groups)
    })
}

/// Whoever is meant by `key`, from the file or else from another service.
fn find_in<T>(
    file: &str,
    database: &str,
    key: &str,
    read: impl Fn(&[u8]) -> Option<T>,
    is_meant: impl Fn(&T) -> bool,
) -> io::Result<Option<T>> {
    let text = match fs::read(file) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
        text => text?,
    };
    if let Some(found) = lines(&text).filter_map(&read).find(&is_meant) {
        return Ok(Some(found));
    }
    // A name that looks like a number is one to it.
    let answer = getent::ask(database, key, PATIENCE)?.unwrap_or_default();
    Ok(lines(answer.as_bytes()).filter_map(read).find(is_meant))
}

fn lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(|byte| *byte == b'\n')
}

/// The fields of an entry whose name is `fields[0]`. None: it is a comment, or what an old system
/// put there in place of another service's entries.
fn fields(line: &[u8]) -> Option<Vec<String>> {
    if matches!(line.first()?, b'#' | b'+' | b'-' | b':') {
        return None;
    }
    let fields = line.split(|byte| *byte == b':');
    Some(
        fields
            .map(|field| String::from_utf8_lossy(field).into_owned())
            .collect(),
    )
}

impl Account {
    fn read(line: &[u8]) -> Option<Self> {
        let fields = fields(line)?;
        let [name, _, uid, gid, _, home, ..] = &fields[..] else {
            return None;
        };
        Some(Self {
            name: name.clone(),
            uid: uid.parse().ok()?,
            gid: gid.parse().ok()?,
            home: home.clone(),
        })
    }
}

impl Group {
    fn read(line: &[u8]) -> Option<Self> {
        let fields = fields(line)?;
        let [name, _, gid, members] = &fields[..] else {
            return None;
        };
        let members = members.split(',').map(str::trim);
        Some(Self {
            name: name.clone(),
            gid: gid.parse().ok()?,
            members: members.map(str::to_owned).collect(),
        })
    }
}

/// The numbers that follow a name.
fn read_numbers(answer: &str) -> io::Result<Vec<u32>> {
    let words = answer.split_ascii_whitespace().skip(1);
    let numbers: Result<_, _> = words.map(str::parse).collect();
    numbers.map_err(|_| io::Error::other(format!("`getent initgroups` answered {answer:?}")))
}

/// Answers to one kind of question.
struct Known<K, V>(LazyLock<Mutex<HashMap<K, Remembered<V>>>>);

struct Remembered<V> {
    answer: V,
    at: Instant,
    stamps: [Option<Stamp>; 2],
}

/// What tells one state of a file from another: inode, size, time of change.
type Stamp = (u64, u64, i64, i64);

fn stamps() -> [Option<Stamp>; 2] {
    [PASSWD, GROUP].map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((found.ino(), found.size(), found.ctime(), found.ctime_nsec()))
    })
}

impl<K: Eq + Hash, V: Clone> Known<K, V> {
    const fn new() -> Self {
        Self(LazyLock::new(Mutex::default))
    }

    /// The answer that was given a moment ago, or else that of `ask`, which may take its time.
    fn get(&self, key: K, ask: impl FnOnce() -> io::Result<V>) -> io::Result<V> {
        let (stamps, at) = (stamps(), Instant::now());
        let lock = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_fresh = |r: &Remembered<V>| r.stamps == stamps && r.at.elapsed() < FRESH_FOR;
        if let Some(known) = lock().get(&key).filter(|r| is_fresh(r)) {
            return Ok(known.answer.clone());
        }
        let answer = ask()?;
        let mut known = lock();
        if known.len() >= MOST {
            known.retain(|_, r| is_fresh(r));
        }
        if known.len() < MOST {
            let answer = answer.clone();
            known.insert(key, Remembered { answer, at, stamps });
        }
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_read_as_the_c_library_reads_them() {
        let account = |line: &str| Account::read(line.as_bytes());
        let alice = Account {
            name: "alice".into(),
            uid: 1001,
            gid: 100,
            home: "/home/alice".into(),
        };
        let line = "alice:x:1001:100:Alice, of sales:/home/alice:/bin/sh";
        assert_eq!(account(line), Some(alice.clone()));
        assert_eq!(
            account("alice:x:1001:100::/home/alice"),
            Some(alice.clone())
        );
        let latin = b"alice:x:1001:100:\xc4lice:/home/alice:/bin/sh";
        assert_eq!(Account::read(latin), Some(alice));
        for none in [
            "",
            "#alice:x:1001:100::/:",
            "+alice::::::",
            "+",
            "-bob::1:1::/:",
        ] {
            assert_eq!(account(none), None, "{none:?}");
        }
        for none in [
            "alice",
            "alice:x:1001:100:",
            "alice:x:-1:100::/:",
            ":x:0:0::/:",
        ] {
            assert_eq!(account(none), None, "{none:?}");
        }

        let group = Group::read(b"sales:x:50:alice,bob").unwrap();
        assert_eq!((group.name.as_str(), group.gid), ("sales", 50));
        assert_eq!(group.members, ["alice", "bob"]);
        assert_eq!(Group::read(b"sales:x:50:").unwrap().members, [""]);
        assert_eq!(Group::read(b"sales:x:50"), None);
    }

    #[test]
    fn who_is_in_a_file_is_found_and_nobody_else() {
        let root = user("root").unwrap().unwrap();
        assert_eq!((root.uid, root.name.as_str()), (0, "root"));
        assert_eq!(user_of(0).unwrap(), Some(root.clone()));
        assert_eq!(find("0").unwrap(), Some(root));
        // `getent passwd 0` knows somebody.
        assert_eq!(user("0").unwrap(), None);
        assert_eq!(user("no-such-user").unwrap(), None);
        assert_eq!(user("--help").unwrap(), None);
        assert_eq!(group("no-such-group").unwrap(), None);
        let name = group_of(0).unwrap().unwrap();
        assert_eq!(group(&name).unwrap(), Some(0));
        assert_eq!(groups_of("no-such-user", 54321).unwrap(), [54321]);
    }

    #[test]
    fn an_answer_is_remembered_and_an_error_is_not() {
        let known: Known<u32, u32> = Known::new();
        assert!(
            known
                .get(1, || Err(io::ErrorKind::TimedOut.into()))
                .is_err()
        );
        assert_eq!(known.get(1, || Ok(10)).unwrap(), 10);
        assert_eq!(known.get(1, || panic!("asked again")).unwrap(), 10);
        assert_eq!(known.get(2, || Ok(20)).unwrap(), 20);
        for key in 3..MOST as u32 + 10 {
            assert_eq!(known.get(key, || Ok(key)).unwrap(), key);
        }
    }

    #[test]
    fn groups_are_numbers_after_a_name() {
        assert_eq!(
            read_numbers("alice                 27 100\n").unwrap(),
            [27, 100]
        );
        assert_eq!(read_numbers("alice\n").unwrap(), [0_u32; 0]);
        assert!(read_numbers("alice 27 sales").is_err());
    }
}
