//! A control group (v2) a run: all its processes, however they fork, and one write to kill them.
//!
//! The groups are made below the daemon's own, in a group named after its state directory. No
//! controller is used, so nothing but the right to make directories there is needed.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::sys;

/// How many empty groups are kept for the next runs.
const MOST_KEPT: usize = 64;

/// Makes groups for runs. One that is empty again is used for another run: making and removing
/// them costs more than everything else about them.
#[derive(Debug)]
pub struct Cgroups {
    base: PathBuf,
    kept: Mutex<Vec<PathBuf>>,
    next: AtomicU64,
}

/// The group of one run.
#[derive(Debug)]
pub struct RunGroup {
    path: PathBuf,
    directory: OwnedFd,
    events: File,
    killed: AtomicBool,
}

impl Cgroups {
    /// Finds where groups can be made, and makes the group `name` there. None: they cannot.
    #[must_use]
    pub fn find(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let base = place(&mounts, &own)?.join(name);
        if let Err(e) = fs::create_dir(&base)
            && e.kind() != io::ErrorKind::AlreadyExists
        {
            return None;
        }
        // A kernel that cannot kill a group at once (before 5.14) is no help.
        let works = base.join("cgroup.kill").exists();
        works.then(|| Self {
            base,
            kept: Mutex::default(),
            next: AtomicU64::new(1),
        })
    }

    /// An empty group for a run.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn take(&self) -> io::Result<RunGroup> {
        if let Some(path) = self.kept().pop() {
            return RunGroup::open(path);
        }
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let path = self.base.join(format!("run-{number}"));
            match fs::create_dir(&path) {
                // Somebody whom a former daemon left behind lives there.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                other => {
                    other?;
                    return RunGroup::open(path);
                }
            }
        }
    }

    /// Takes a group back whose run is over. If somebody is left in it, it stays theirs.
    pub fn give_back(&self, group: RunGroup) {
        if !group.is_empty() {
            return;
        }
        // Kernels kill whoever is born into a group that was killed as a whole once.
        let killed = group.killed.load(Ordering::Relaxed);
        let mut kept = self.kept();
        if kept.len() < MOST_KEPT && !killed {
            kept.push(group.path);
        } else {
            group.remove();
        }
    }

    /// The group that a process of a former daemon is in, if it is one of a run.
    #[must_use]
    pub fn of_process(&self, pid: i32) -> Option<RunGroup> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let own = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let path = place(&mounts, &own)?;
        if path.parent() != Some(&self.base) {
            return None;
        }
        RunGroup::open(path).ok()
    }

    /// Removes the groups that a former daemon made and nobody is in any more.
    pub fn sweep(&self) {
        let Ok(entries) = fs::read_dir(&self.base) else {
            return;
        };
        for entry in entries.flatten().filter(|e| e.path().is_dir()) {
            let _ = fs::remove_dir(entry.path());
        }
    }

    /// Removes all groups that nobody is in.
    pub fn remove(&self) {
        self.kept().clear();
        self.sweep();
        let _ = fs::remove_dir(&self.base);
    }

    fn kept(&self) -> MutexGuard<'_, Vec<PathBuf>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The directory of this process' group, from the two files in `/proc/self`.
fn place(mounts: &str, own: &str) -> Option<PathBuf> {
    let own = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    mounts.lines().find_map(|line| {
        // 36 35 98:0 /root /mount/point options … - type source options
        let (left, right) = line.split_once(" - ")?;
        if !right.starts_with("cgroup2 ") {
            return None;
        }
        let mut fields = left.split(' ').skip(3);
        let (root, point) = (fields.next()?, fields.next()?);
        let below = if root == "/" {
            own
        } else {
            own.strip_prefix(root)?
        };
        Some(Path::new(point).join(below.trim_start_matches('/')))
    })
}

impl RunGroup {
    fn open(path: PathBuf) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(&path, flags, Mode::empty())?;
        let events = File::open(path.join("cgroup.events"))?;
        Ok(Self {
            path,
            directory,
            events,
            killed: AtomicBool::new(false),
        })
    }

    /// For a child that is to be born in it.
    #[must_use]
    pub fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Whether no process is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let mut text = [0; 256];
        match self.events.read_at(&mut text, 0) {
            Ok(n) => text[..n]
                .split(|b| *b == b'\n')
                .any(|line| line == b"populated 0"),
            // The group is gone.
            Err(_) => true,
        }
    }

    /// Who is in it.
    #[must_use]
    pub fn pids(&self) -> Vec<i32> {
        let pids = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        pids.lines().filter_map(|l| l.parse().ok()).collect()
    }

    /// Ends every process in it, also those that are being forked.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn kill(&self) -> io::Result<()> {
        self.killed.store(true, Ordering::Relaxed);
        fs::write(self.path.join("cgroup.kill"), "1")
    }

    /// Sends a signal to every process in it.
    pub fn signal(&self, signal: i32) {
        let Ok(pids) = fs::read_to_string(self.path.join("cgroup.procs")) else {
            return;
        };
        for pid in pids
            .lines()
            .filter_map(|l| l.parse().ok())
            .filter_map(Pid::from_raw)
        {
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
                continue;
            };
            // The number may have been given to another since it was read: ask again.
            let still = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
            if still
                .lines()
                .any(|l| l.parse() == Ok(pid.as_raw_nonzero().get()))
            {
                sys::process::signal(&pidfd, signal);
            }
        }
    }

    /// Removes the group, unless somebody is in it.
    pub fn remove(&self) {
        let _ = fs::remove_dir(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_in_pure_and_hybrid_layouts() {
        let pure = "30 23 0:26 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw\n";
        assert_eq!(
            place(pure, "0::/system.slice/x.service\n").unwrap(),
            Path::new("/sys/fs/cgroup/system.slice/x.service")
        );
        let hybrid = "29 23 0:25 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      40 29 0:31 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup rw\n";
        assert_eq!(
            place(hybrid, "5:cpu:/\n0::/\n").unwrap(),
            Path::new("/sys/fs/cgroup/unified/")
        );
        assert_eq!(place("1 2 3:4 / / rw - ext4 x rw\n", "0::/\n"), None);
    }
}
