//! What the name services of this system know: users, groups and hosts.
//!
//! They are libraries that the C library loads, and `/etc/nsswitch.conf` says which: LDAP, SSSD,
//! systemd, mDNS. `getent` does that in a process of its own, so that this program can be linked
//! statically, and no such library is ever a part of a daemon of root.

use std::io::{self, Read as _};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// What `getent DATABASE KEY` prints, within `patience`. None: it knows of no such key, or there
/// is no such command.
///
/// # Errors
/// The system's; [`io::ErrorKind::TimedOut`]; one that says how it ended, if that was strange.
pub fn ask(database: &str, key: &str, patience: Duration) -> io::Result<Option<String>> {
    let mut command = Command::new("getent");
    command.args([database, "--", key]);
    let (answer, status) = match answer(command, patience) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        ended => ended?,
    };
    match status.code() {
        Some(0) => Ok(Some(answer)),
        // No such key. No such database: there are others of this name that have fewer.
        Some(1 | 2) => Ok(None),
        _ => Err(io::Error::other(format!(
            "`getent {database}` ended with {status}"
        ))),
    }
}

/// Runs a command that is to end soon.
fn answer(mut command: Command, patience: Duration) -> io::Result<(String, ExitStatus)> {
    command.stdin(Stdio::null()).stderr(Stdio::null());
    let mut asked = command.stdout(Stdio::piped()).spawn()?;
    let answer = listen(&mut asked, Instant::now() + patience);
    if answer.is_err() {
        let _ = asked.kill();
    }
    let status = asked.wait()?;
    Ok((answer?, status))
}

/// All that it prints until then.
fn listen(child: &mut Child, until: Instant) -> io::Result<String> {
    let mut answer = Vec::new();
    if let Some(mut from) = child.stdout.take() {
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(&from, PollFlags::IN)], Some(&left)) {
                Ok(0) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Errno::INTR) => continue,
                polled => polled?,
            };
            let mut piece = [0; 4096];
            match from.read(&mut piece)? {
                0 => break,
                n => answer.extend_from_slice(&piece[..n]),
            }
        }
    }
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_does_not_answer_is_given_up() {
        let mut silent = Command::new("sh");
        silent.args(["-c", "echo begun; exec sleep 1000"]);
        let e = answer(silent, Duration::from_millis(10)).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::TimedOut);
    }

    #[test]
    fn all_that_is_said_is_heard() {
        let mut speaks = Command::new("sh");
        speaks.args(["-c", "head -c 100000 /dev/zero; exit 2"]);
        let (said, status) = answer(speaks, Duration::MAX / 4).unwrap();
        assert_eq!((said.len(), status.code()), (100_000, Some(2)));
    }

    #[test]
    fn what_is_not_known_is_not_an_error() {
        let patience = Duration::from_secs(30);
        assert_eq!(ask("passwd", "no-such-user", patience).unwrap(), None);
        assert_eq!(ask("no-such-database", "root", patience).unwrap(), None);
        let root = ask("passwd", "root", patience).unwrap();
        assert!(root.is_none_or(|line| line.starts_with("root:")));
    }
}
