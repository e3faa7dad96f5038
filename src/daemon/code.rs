//! The daemon's side of sources: what a worker is given, and questions that are no runs.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Gid, MemfdFlags, Mode, OFlags, Uid, fchown, memfd_create};

use super::InForce;
use super::actor::Order;
use super::effects::Surroundings;
use crate::config::model::{Program, Source};
use crate::ids::{ActionName, ProgramName, RunId};
use crate::run::environment::Facts;
use crate::run::identity::Identity;
use crate::run::spawn::{self, Plan, Stdio};
use crate::source::{JOB_FD, Job, What};
use crate::sys;
use crate::sys::child::PidReport;

/// How long a question may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The longest answer, in bytes.
const LONGEST: u64 = 4 << 20;

/// The actions that are done to the code of a program.
const ACTIONS: [&str; 4] = ["update", "rollback", "pin", "unpin"];

/// Whether an action is done to the code of the program.
#[must_use]
pub fn is_about(spec: &Program, action: &ActionName) -> bool {
    spec.source.is_some() && ACTIONS.contains(&action.as_str())
}

/// What an action with these arguments comes to.
///
/// # Errors
/// What it takes instead.
pub fn what(action: &ActionName, args: &[String]) -> Result<What, String> {
    let takes = |usage: &str| Err(format!("{action} takes {usage}; nothing was run"));
    let id = |args: &[String]| match args {
        [] => Some(None),
        [id] if !id.starts_with('-') => Some(Some(id.clone())),
        _ => None,
    };
    match (action.as_str(), args) {
        ("update", []) => Ok(What::Update { force: false }),
        ("update", [force]) if force == "--force" => Ok(What::Update { force: true }),
        ("update", _) => takes("`--force` and nothing else"),
        ("rollback", args) => match id(args) {
            Some(to) => Ok(What::Rollback { to }),
            None => takes("a release and nothing else"),
        },
        ("pin", args) => match id(args) {
            Some(to) => Ok(What::Pin { to }),
            None => takes("a release and nothing else"),
        },
        (_, []) => Ok(What::Unpin),
        _ => takes("no arguments"),
    }
}

/// The job of an order about code; none if it is about something else. `listener` hears how far
/// it has come.
#[must_use]
pub fn job(id: RunId, order: &Order, listener: Option<String>) -> Option<Job> {
    let source = order.spec.source.as_ref();
    let source = source.filter(|_| is_about(&order.spec, &order.action))?;
    Some(Job {
        program: order.program.to_string(),
        run: id.0,
        by: order.by.user.clone(),
        reason: order.reason.clone(),
        source: source.clone(),
        what: what(&order.action, &order.args).ok()?,
        listener,
    })
}

/// Puts a job where the worker finds it, and makes the directory that it works in.
///
/// # Errors
/// There is no memory, or no descriptor.
pub fn hand_over(job: &Job, identity: &Identity) -> io::Result<(OwnedFd, i32)> {
    make_directory(&job.source, identity);
    let fd = memfd_create(c"deployer-job", MemfdFlags::CLOEXEC)?;
    let mut file = File::from(fd);
    serde_json::to_writer(&file, job)?;
    file.flush()?;
    Ok((file.into(), JOB_FD))
}

/// A directory that is missing is made for its user, where only root can have a hand in it. If
/// that cannot be, the worker says what is missing.
fn make_directory(source: &Source, identity: &Identity) {
    let (Some(ids), Some(parent)) = (identity.ids(), source.deploy_dir.parent()) else {
        return;
    };
    let safe = |m: &std::fs::Metadata| m.uid() == 0 && m.mode() & 0o022 == 0;
    if !parent.metadata().is_ok_and(|m| safe(&m))
        || std::fs::create_dir(&source.deploy_dir).is_err()
    {
        return;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    if let Ok(dir) = rustix::fs::open(&source.deploy_dir, flags, Mode::empty()) {
        let (uid, gid) = (Uid::from_raw(ids.uid), Gid::from_raw(ids.gid));
        let _ = fchown(&dir, Some(uid), Some(gid));
    }
}

/// What a worker answered to a question.
#[derive(Debug)]
pub struct Answer {
    /// Its exit status.
    pub status: i32,
    /// What it printed.
    pub out: String,
    /// What it said was wrong.
    pub err: String,
}

/// A question about code, which leaves no record.
#[derive(Debug)]
pub struct Question {
    /// The program.
    pub program: ProgramName,
    /// Its settings.
    pub spec: Arc<Program>,
    /// What is asked.
    pub what: What,
}

impl Question {
    /// Has a worker answer it, as the program's user. Waits: not for the actor's thread.
    ///
    /// # Errors
    /// What stood in the way.
    pub fn ask(&self, now: &InForce, common: &Surroundings) -> Result<Answer, String> {
        let source = self.spec.source.as_ref();
        let source = source.ok_or_else(|| format!("{} has no source", self.program))?;
        let job = Job {
            program: self.program.to_string(),
            run: 0,
            by: String::new(),
            reason: None,
            source: source.clone(),
            what: self.what.clone(),
            listener: None,
        };
        let update = ActionName::update();
        let identity = Identity::resolve(self.spec.run_as(&update));
        let identity = identity.map_err(|e| e.to_string())?;
        let cannot = |e: io::Error| format!("cannot ask: {e}");
        let (out, stdout) = spawn::pipe_for(&identity).map_err(|e| e.to_string())?;
        let (err, stderr) = spawn::pipe_for(&identity).map_err(|e| e.to_string())?;
        let stdio = Stdio {
            stdin: spawn::null().map_err(|e| e.to_string())?,
            stdout,
            stderr,
            terminal: false,
            extra: Some(hand_over(&job, &identity).map_err(cannot)?),
        };
        let inputs = std::collections::BTreeMap::new();
        let plan = Plan {
            spec: &self.spec,
            root: &now.config.global.root,
            facts: Facts {
                program: &self.program,
                action: &update,
                run: RunId(0),
                by: "",
                pid: None,
                terminal: None,
                inputs: &inputs,
            },
            args: &[],
            more: &[],
            identity: &identity,
            nofile: common.nofile,
            worker: Some(common.binary.as_fd()),
        };
        let report = PidReport {
            file: None,
            datagram: None,
        };
        let ready = spawn::prepare(&plan, &stdio, report).map_err(|e| e.to_string())?;
        let (pid, pidfd) = ready.start(None).map_err(|e| e.to_string())?;
        drop(stdio);
        let (out, err) = (collect(out), collect(err));
        let in_time = ended_within(pidfd.as_fd(), PATIENCE);
        if !in_time {
            sys::process::signal(&pidfd, libc::SIGTERM);
            ended_within(pidfd.as_fd(), Duration::from_secs(2));
        }
        // It leads a session: what is left of its group is its own.
        if let Some(pid) = rustix::process::Pid::from_raw(pid) {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
        }
        let ended = sys::process::wait(&pidfd);
        let (out, err) = (
            out.join().unwrap_or_default(),
            err.join().unwrap_or_default(),
        );
        let status = match ended {
            _ if !in_time => return Err(format!("no answer within {PATIENCE:?}")),
            Some(sys::process::Ended::Code(code)) => code,
            _ => return Err(format!("the worker was killed: {err}")),
        };
        Ok(Answer { status, out, err })
    }
}

fn collect(from: OwnedFd) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = File::from(from).take(LONGEST).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

fn ended_within(pidfd: BorrowedFd<'_>, time: Duration) -> bool {
    let timeout = Timespec {
        tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(time.subsec_nanos()),
    };
    matches!(poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&timeout)), Ok(n) if n > 0)
}

/// What the daemon knows of the remotes that it looks at. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Lookout(Arc<Mutex<HashMap<ProgramName, Seen>>>);

/// An update that has failed, and is not begun again at once.
#[derive(Debug, Clone)]
pub struct Held {
    /// What it was to bring.
    pub revision: String,
    /// Which run it was.
    pub run: u64,
    /// How often it has failed.
    pub times: u32,
    /// When it is tried again.
    pub until: Instant,
}

/// What is known of one remote.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    /// Since when checks have failed (RFC 3339), and why the last one did.
    pub failing: Option<(String, String)>,
    /// When it is looked at next: the time of day.
    pub next: Option<String>,
    /// What it had when it was looked at last, and what became of that.
    pub newest: Option<(String, String)>,
    /// It is being looked at.
    pub looking: bool,
    /// An update that has failed.
    pub held: Option<Held>,
}

impl Lookout {
    fn held(&self) -> MutexGuard<'_, HashMap<ProgramName, Seen>> {
        // Nobody leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known of a program's remote.
    #[must_use]
    pub fn seen(&self, program: &ProgramName) -> Seen {
        self.held().get(program).cloned().unwrap_or_default()
    }

    /// Changes what is known.
    pub fn note<T>(&self, program: &ProgramName, change: impl FnOnce(&mut Seen) -> T) -> T {
        change(self.held().entry(program.clone()).or_default())
    }
}

/// Whether an update of a former daemon did not come to its end.
#[must_use]
pub fn has_journal(deploy_dir: &Path) -> bool {
    deploy_dir
        .join(".deployer/journal.json")
        .symlink_metadata()
        .is_ok()
}
