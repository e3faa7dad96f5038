//! All processes of a run, to be signalled, ended and waited for together.
//!
//! Where a control group could be made it is the truth. Elsewhere the tree is found by descent:
//! children of children, the members of the run's session, and children of the keeper that carry
//! the run's number in their environment (a process that forked twice and left the session is a
//! child of the keeper by then; only one that also replaced its environment escapes, and
//! `doc/security.rst` says so). A pass that found somebody is followed by another
//! one, since who is being forked is not yet seen.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::fd::OwnedFd;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::RunGroup;
use crate::sys;

/// How many passes are made before a tree that forks faster is given up.
const PASSES: usize = 100;

/// See the module's documentation.
#[derive(Debug)]
pub enum Tree {
    /// By control group.
    Group(RunGroup),
    /// By descent.
    Descent(Descent),
}

/// What a tree without a group is known by.
#[derive(Debug, Clone)]
pub struct Descent {
    /// The run's own process: leader of its session.
    pub leader: i32,
    /// `DEPLOYER_RUN=…`, as it stands in the environment.
    pub mark: Vec<u8>,
    /// The keeper: parent of those who were left by theirs.
    pub keeper: i32,
    /// Start of the run's own process, in clock ticks since boot: nobody older belongs to it.
    pub since: u64,
}

/// What `/proc/PID/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Its parent.
    pub parent: i32,
    /// Its session.
    pub session: i32,
    /// When it started, in clock ticks since boot.
    pub start: u64,
    /// Whether it has ended and waits to be reaped.
    pub zombie: bool,
}

/// Reads `/proc/PID/stat`.
#[must_use]
pub fn stat(pid: i32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<Stat> {
    // The second field is a name in parentheses, and may contain anything.
    let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
    Some(Stat {
        zombie: matches!(*fields.first()?, "Z" | "X"),
        parent: fields.get(1)?.parse().ok()?,
        session: fields.get(3)?.parse().ok()?,
        start: fields.get(19)?.parse().ok()?,
    })
}

/// What processes use together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Memory that is theirs alone or shared, in bytes; what they share counts for each.
    pub memory: u64,
    /// Processor time, that of children they have waited for included, in clock ticks.
    pub ticks: u64,
}

fn usage_of(pid: i32) -> Option<Usage> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text.get(text.rfind(')')? + 2..)?.split(' ').collect();
    let number = |n: usize| -> Option<u64> { fields.get(n)?.parse().ok() };
    let pages = number(21)?;
    Some(Usage {
        memory: pages * rustix::param::page_size() as u64,
        ticks: (11..=14).filter_map(number).sum(),
    })
}

/// The wait status of a process that has ended and was not reaped, if this process may see it.
/// Only of one that is held by a pidfd: else the number may be another's.
#[must_use]
pub fn zombie_status(pid: i32) -> Option<i32> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = text
        .get(text.rfind(')')? + 2..)?
        .trim_end()
        .split(' ')
        .collect();
    matches!(*fields.first()?, "Z" | "X").then_some(())?;
    fields.get(49)?.parse().ok()
}

/// Clock ticks a second, the unit of start times.
#[must_use]
pub fn ticks_per_second() -> u64 {
    rustix::param::clock_ticks_per_second()
}

impl Tree {
    /// Sends a signal to all.
    pub fn signal(&self, signal: i32) {
        match self {
            Self::Group(group) => group.signal(signal),
            Self::Descent(descent) => {
                descent.signal_new(signal, &mut HashSet::new());
            }
        }
    }

    /// Ends all, until nobody is left.
    pub fn kill(&self) {
        match self {
            Self::Group(group) => {
                if let Err(e) = group.kill() {
                    tracing::warn!("a control group cannot be killed: {e}");
                }
            }
            Self::Descent(descent) => {
                let mut seen = HashSet::new();
                for _ in 0..PASSES {
                    if !descent.signal_new(libc::SIGKILL, &mut seen) {
                        return;
                    }
                }
                tracing::warn!(
                    "the tree of process {} forks faster than it is killed",
                    descent.leader
                );
            }
        }
    }

    /// What all its processes use.
    #[must_use]
    pub fn usage(&self) -> Usage {
        let pids: Vec<i32> = match self {
            Self::Group(group) => group.pids(),
            Self::Descent(descent) => descent.members().into_iter().map(|(pid, _)| pid).collect(),
        };
        let all = pids.into_iter().filter_map(usage_of);
        all.fold(Usage::default(), |sum, one| Usage {
            memory: sum.memory + one.memory,
            ticks: sum.ticks + one.ticks,
        })
    }

    /// Whether nobody is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Group(group) => group.is_empty(),
            Self::Descent(descent) => descent.members().is_empty(),
        }
    }
}

impl Descent {
    /// Everybody who belongs to it and has not ended, with the start time that tells them from
    /// a later process of the same number.
    fn members(&self) -> Vec<(i32, u64)> {
        let all = processes();
        let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
        for (pid, stat) in &all {
            children.entry(stat.parent).or_default().push(*pid);
        }
        let mut found = HashSet::new();
        let mut ahead: Vec<i32> = all
            .iter()
            .filter(|(pid, s)| {
                s.start >= self.since
                    && (**pid == self.leader
                        || s.session == self.leader
                        || (s.parent == self.keeper && self.is_marked(**pid)))
            })
            .map(|(pid, _)| *pid)
            .collect();
        while let Some(pid) = ahead.pop() {
            if found.insert(pid) {
                ahead.extend(children.get(&pid).into_iter().flatten());
            }
        }
        let alive = found
            .into_iter()
            .filter_map(|pid| all.get(&pid).map(|s| (pid, *s)));
        alive
            .filter(|(_, s)| !s.zombie)
            .map(|(pid, s)| (pid, s.start))
            .collect()
    }

    fn is_marked(&self, pid: i32) -> bool {
        let Ok(environment) = fs::read(format!("/proc/{pid}/environ")) else {
            return false;
        };
        environment
            .split(|b| *b == 0)
            .any(|entry| entry == self.mark)
    }

    /// Signals the members that `seen` does not hold; false when there were none.
    fn signal_new(&self, signal: i32, seen: &mut HashSet<(i32, u64)>) -> bool {
        let mut any = false;
        for (pid, start) in self.members() {
            if seen.insert((pid, start))
                && let Some(pidfd) = open(pid, start)
            {
                sys::process::signal(&pidfd, signal);
                any = true;
            }
        }
        any
    }
}

/// A descriptor for the process that started then, and for no other of the same number.
fn open(pid: i32, start: u64) -> Option<OwnedFd> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    (stat(pid)?.start == start).then_some(pidfd)
}

fn processes() -> HashMap<i32, Stat> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse::<i32>().ok());
    pids.filter_map(|pid| Some((pid, stat(pid)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_whose_name_looks_like_fields_is_read_right() {
        let line = "42 (a) 7 (b) S 1 42 40 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 1000 10";
        assert_eq!(
            parse_stat(line),
            Some(Stat {
                parent: 1,
                session: 40,
                start: 777,
                zombie: false
            })
        );
    }

    #[test]
    fn this_process_is_found() {
        let own = stat(std::process::id() as i32).unwrap();
        assert_eq!(own.parent, std::os::unix::process::parent_id() as i32);
    }
}
