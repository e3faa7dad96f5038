//! The scripts that may refuse an update.

use std::fmt;
use std::fs;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Access, access};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{Failure, Outcome};

/// How long a hook that took too long has to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// What a hook says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Go on.
    Go,
    /// Not now: the hook that said so.
    Defer(String),
    /// No.
    Reject {
        /// Which hook.
        hook: String,
        /// How it said so.
        how: String,
    },
}

/// What hooks say, for people.
impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Go => f.write_str("go"),
            Self::Defer(hook) => write!(f, "{hook} says not now"),
            Self::Reject { hook, how } => write!(f, "{hook} {how}"),
        }
    }
}

/// The hooks of a directory, in the order of their names: executable files, and no copies that
/// editors and packagers leave behind.
///
/// # Errors
/// The directory cannot be read.
pub fn list(dir: &Path) -> Outcome<Vec<PathBuf>> {
    let entries = fs::read_dir(dir);
    let entries = entries.map_err(Failure::io(format!("read the hooks in {}", dir.display())))?;
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let name = name.to_string_lossy();
        let is_copy = name.starts_with(['.', '#'])
            || name.ends_with(['~', '#'])
            || [
                ".bak", ".orig", ".rej", ".swp", ".tmp", ".rpmsave", ".rpmnew", ".rpmorig",
            ]
            .iter()
            .any(|end| name.ends_with(end))
            || name.contains(".dpkg-");
        let is_file = fs::metadata(&path).is_ok_and(|m| m.is_file());
        if !is_copy && is_file && access(&path, Access::EXEC_OK).is_ok() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Runs them one after the other, until one does not say go.
///
/// # Errors
/// The directory cannot be read.
pub fn run(
    dir: Option<&Path>,
    variables: &[(&str, String)],
    timeout: Option<Duration>,
) -> Outcome<Answer> {
    let Some(dir) = dir else {
        return Ok(Answer::Go);
    };
    for hook in list(dir)? {
        let name = hook
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let mut command = Command::new(&hook);
        command.stdin(Stdio::null()).process_group(0);
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        let began = Instant::now();
        let reject = |how: String| Answer::Reject {
            hook: name.clone(),
            how,
        };
        let answer = match command.spawn() {
            Err(e) => reject(format!("cannot be executed: {e}")),
            Ok(mut child) => match wait(&mut child, timeout) {
                Some(status) => match (status.code(), status.signal()) {
                    (Some(0), _) => Answer::Go,
                    (Some(super::DEFERRED), _) => Answer::Defer(name.clone()),
                    (Some(code), _) => reject(format!("exited with status {code}")),
                    (None, signal) => {
                        reject(format!("was ended by signal {}", signal.unwrap_or(0)))
                    }
                },
                None => {
                    let time = timeout.unwrap_or_default();
                    reject(format!("took longer than {time:?} and was ended"))
                }
            },
        };
        let said = match &answer {
            Answer::Go => "go",
            Answer::Defer(_) => "not now (75)",
            Answer::Reject { how, .. } => how,
        };
        super::update::tell(&format!(
            "  hook {name}: {said} ({:.1} s)",
            began.elapsed().as_secs_f64()
        ));
        if answer != Answer::Go {
            return Ok(answer);
        }
    }
    Ok(Answer::Go)
}

/// Waits for a process; one that takes too long is ended with its group. None: it was.
pub fn wait(child: &mut Child, timeout: Option<Duration>) -> Option<ExitStatus> {
    let Some(timeout) = timeout else {
        return child.wait().ok();
    };
    let pid = Pid::from_child(child);
    if ended_within(pid, timeout) {
        return child.wait().ok();
    }
    let _ = kill_process_group(pid, Signal::TERM);
    ended_within(pid, GRACE);
    // It, or what it started and left behind: until it is waited for, the number is its own.
    let _ = kill_process_group(pid, Signal::KILL);
    let _ = child.wait();
    None
}

fn ended_within(pid: Pid, time: Duration) -> bool {
    let Ok(process) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let end = Instant::now() + time;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&timeout)) {
            Ok(0) => return false,
            Ok(_) => return true,
            // A signal: a cancel is noticed when what it ends has ended.
            Err(_) if left.is_zero() => return false,
            Err(_) => {}
        }
    }
}
