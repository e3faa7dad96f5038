//! What a former daemon left behind: which runs live, which have ended and how, which never
//! began. Nothing is guessed, and nothing stays "running".
//!
//! The keeper knows the processes and holds their pipes. If it was gone, too, the index of each
//! run's log still says which process it was, and when.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::InForce;
use super::actor::{Actor, Msg, Order};
use super::clock::Moment;
use super::effects::{LiveRun, Parent, Surroundings, descent, observe};
use super::front::{chain, stored_log, supervised};
use crate::config::keys;
use crate::engine::Exit;
use crate::ids::{ActionName, LaneName, ProgramName, RunId};
use crate::keeper::link::Heard;
use crate::keeper::{Link, Reason, ToDaemon, ToKeeper};
use crate::log;
use crate::run::tree::{self, Tree};
use crate::store::{Finish, OnFailure, Outcome, Row, Store};
use crate::sys::terminal::Terminal;

/// How long the input of a run that was taken over waits for its client to come back.
const STDIN_FOR: Duration = Duration::from_secs(10);

/// What the keeper hands to a daemon at its start.
#[derive(Debug)]
pub struct Inherited {
    /// Why this daemon was started.
    pub reason: Reason,
    /// The configuration in force.
    pub config: Option<OwnedFd>,
    /// The listening socket.
    pub listener: Option<OwnedFd>,
    /// Runs by number.
    pub runs: HashMap<u64, Held>,
}

/// A run as the keeper knows it.
#[derive(Debug)]
pub struct Held {
    pid: i32,
    exit: Option<Exit>,
    fds: Vec<OwnedFd>,
}

/// Status, or minus the signal, as the keeper says it.
#[must_use]
pub fn exit_from(code: i32) -> Exit {
    if code < 0 {
        Exit::Signal(-code)
    } else {
        Exit::Code(code)
    }
}

/// Listens to the keeper until it has handed over everything. `None`: it is gone.
#[must_use]
pub fn inherit(link: &Link) -> Option<Inherited> {
    let mut inherited = Inherited {
        reason: Reason::First,
        config: None,
        listener: None,
        runs: HashMap::new(),
    };
    loop {
        match link.wait() {
            Heard::Message(message, mut fds) => match message {
                ToDaemon::Hello(reason) => inherited.reason = reason,
                ToDaemon::Config => inherited.config = fds.pop(),
                ToDaemon::Listener => inherited.listener = fds.pop(),
                ToDaemon::Run { run, pid, exit } => {
                    let held = Held {
                        pid: pid.cast_signed(),
                        exit: exit.map(exit_from),
                        fds,
                    };
                    inherited.runs.insert(run, held);
                }
                ToDaemon::Exited { run, exit } => {
                    if let Some(held) = inherited.runs.get_mut(&run) {
                        held.exit = Some(exit_from(exit));
                    }
                }
                ToDaemon::End => return Some(inherited),
                ToDaemon::Stop | ToDaemon::Retire => return None,
                ToDaemon::Reload => {}
            },
            Heard::Nothing => {}
            Heard::Gone => return None,
        }
    }
}

/// Whether the machine was started anew since a daemon last used this state directory; remembers
/// this start.
#[must_use]
pub fn rebooted(state_dir: &Path) -> bool {
    let path = state_dir.join("boot-id");
    let now = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let before = fs::read_to_string(&path).ok();
    if before.as_deref() != Some(&now) {
        // By rename: a daemon that is killed here leaves the old or the new one.
        let new = state_dir.join("boot-id.new");
        if let Err(e) = fs::write(&new, &now).and_then(|()| fs::rename(&new, &path)) {
            warn!("cannot write {}: {e}", path.display());
        }
    }
    before.is_some_and(|before| before != now)
}

/// Where it is kept which programs are to be up.
fn wanted_path(state_dir: &Path) -> std::path::PathBuf {
    state_dir.join("programs.json")
}

/// What a former daemon kept by [`write_wanted`]. What cannot be read counts as nothing, and the
/// log says so.
#[must_use]
pub fn read_wanted(state_dir: &Path) -> BTreeMap<ProgramName, bool> {
    let path = wanted_path(state_dir);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return BTreeMap::new(),
        Err(e) => {
            warn!("cannot read {}: {e}", path.display());
            return BTreeMap::new();
        }
    };
    serde_json::from_slice(&text).unwrap_or_else(|e| {
        warn!(
            "{} is damaged ({e}): programs come up as `autostart` says",
            path.display()
        );
        BTreeMap::new()
    })
}

/// Keeps which programs are to be up: the old state or the new one, whenever this is cut short.
///
/// # Errors
/// The disk.
pub fn write_wanted(state_dir: &Path, wanted: &BTreeMap<ProgramName, bool>) -> std::io::Result<()> {
    super::kept::write(&wanted_path(state_dir), wanted)
}

/// Everything that recovery works with.
pub struct Recovery<'a> {
    /// What is in force.
    pub in_force: &'a InForce,
    /// The history.
    pub store: &'a Store,
    /// The keeper.
    pub link: &'a Link,
    /// See there.
    pub surroundings: &'a Surroundings,
    /// To the actor.
    pub inbox: &'a mpsc::UnboundedSender<Msg>,
    /// See [`rebooted`].
    pub rebooted: bool,
}

/// Where an unfinished run of a former daemon stands.
enum Found {
    /// It has, or had, a process whose end can still be learned.
    Process(Box<LiveRun>, Option<Exit>),
    /// It never had a process.
    Nothing,
    /// Its process is gone, and nobody saw how it ended.
    Gone(Outcome),
}

impl Recovery<'_> {
    /// Takes over the unfinished rows, oldest first, into the actor.
    pub fn recover(&self, rows: Vec<Row>, mut held: HashMap<u64, Held>, actor: &mut Actor) {
        let mut waiting = Vec::new();
        let mut processes = Vec::new();
        for row in rows {
            let id = row.id;
            let Some(order) = self.order(&row) else {
                self.close(
                    id,
                    Outcome::Lost,
                    "its program's name cannot be read any more",
                );
                continue;
            };
            match self.find(&order, id, held.remove(&id.0)) {
                Found::Process(live, exit) => processes.push((row, order, live, exit)),
                Found::Gone(outcome) => {
                    info!(
                        "run {id} of {} is over: {}",
                        order.program,
                        outcome.as_str()
                    );
                    let detail = match outcome {
                        Outcome::Interrupted => "the machine went down while it ran",
                        _ => "it ended while neither daemon nor keeper was there to see how",
                    };
                    self.close(id, outcome, detail);
                    self.link.send(&ToKeeper::Forget { runs: vec![id.0] }, &[]);
                }
                Found::Nothing if self.rebooted => {
                    let detail = "the machine was restarted before its turn came";
                    self.close(id, Outcome::NotStarted, detail);
                }
                Found::Nothing => waiting.push((id, order, row.outcome)),
            }
        }
        let newest: HashMap<LaneName, RunId> = processes
            .iter()
            .map(|(row, order, ..)| (order.lane(), row.id))
            .collect();
        for (row, order, live, exit) in processes {
            let current = newest.get(&order.lane()) == Some(&row.id);
            self.adopt(&row, order, live, exit, current, actor);
        }
        for (id, order, outcome) in waiting {
            let queries = self.store.queries();
            if let Ok(Some(last)) = queries.last_turn(&order.program, &order.action)
                && last.id < id
            {
                actor.note_last_started(order.lane(), last.id);
            }
            if order.is_service() {
                // Whether it is to be up is decided when all is known.
                let detail = "the daemon was killed before it was started";
                self.close(id, Outcome::NotStarted, detail);
                log::remove(&self.in_force.config.global.log_dir, &order.program, id);
                continue;
            }
            info!("request {id} for {} waits again", order.program);
            if outcome == Outcome::Running {
                self.store.waiting(id, OnFailure::Keep, Box::new(drop));
            }
            // What was prepared for a process that never came.
            let log_dir = &self.in_force.config.global.log_dir;
            log::remove(log_dir, &order.program, id);
            actor.readmit(id, order);
        }
        // On record as over, but the daemon died before it could say so to the keeper.
        for run in held.keys() {
            self.link.send(&ToKeeper::Forget { runs: vec![*run] }, &[]);
        }
    }

    /// Takes over a run that has, or had, a process. Of several of one program only the newest is
    /// its lane's `current` one: the others had ended, and their end was not on record yet.
    fn adopt(
        &self,
        row: &Row,
        order: Order,
        live: Box<LiveRun>,
        exit: Option<Exit>,
        current: bool,
        actor: &mut Actor,
    ) {
        let id = row.id;
        info!(
            pid = live.pid,
            "run {id} of {} is taken over", order.program
        );
        let started_at = Moment::from_nanos(row.started_at.unwrap_or(row.requested_at));
        if row.started_at.is_none() {
            self.store.started(
                id,
                started_at.nanos(),
                None,
                OnFailure::Keep,
                Box::new(drop),
            );
        }
        if live.stdin.is_some() {
            let inbox = self.inbox.clone();
            tokio::spawn(async move {
                tokio::time::sleep(STDIN_FOR).await;
                let _ = inbox.send(Msg::CloseStdin(id));
            });
        }
        if current {
            let timeout = order.spec.timeout(&order.action);
            let lived = self.lived(&order, id, started_at);
            let stop_at = timeout.map(|t| Instant::now() + t.saturating_sub(lived));
            actor.adopt(id, order, live, started_at, stop_at);
        } else {
            actor.adopt_ended(id, order, live, started_at);
        }
        if let Some(exit) = exit {
            let _ = self.inbox.send(Msg::Exited(id, exit));
        }
    }

    /// How long a run has lived. The clock may have been set since then; what the machine counts
    /// since it was started has not.
    fn lived(&self, order: &Order, id: RunId, started_at: Moment) -> Duration {
        let log_dir = &self.in_force.config.global.log_dir;
        let reader = log::Reader::open(log_dir, &order.program, id).ok();
        let then = reader.and_then(|r| r.header().ok().flatten());
        let now = log::Header::for_run(id).ok();
        let both = then
            .zip(now)
            .filter(|(then, now)| then.run == id && then.boot_id == now.boot_id);
        let nanos = match both {
            Some((then, now)) => now.boottime_ns - then.boottime_ns,
            None => Moment::now().nanos().saturating_sub(started_at.nanos()),
        };
        Duration::from_nanos(nanos.max(0).cast_unsigned())
    }

    fn order(&self, row: &Row) -> Option<Order> {
        let program = ProgramName::new(&row.program).ok()?;
        let action = ActionName::new(&row.action).ok()?;
        let config = &self.in_force.config;
        let process = matches!(row.action.as_str(), "start" | "restart");
        let spec = match supervised(config, &program).filter(|_| process) {
            Some(spec) => spec,
            None => config.programs.get(&program).unwrap_or(&config.script),
        };
        Some(Order {
            spec: Arc::clone(spec),
            program,
            action,
            by: row.by.clone(),
            reason: row.reason.clone(),
            inputs: row.inputs.clone(),
            args: row.args.clone(),
            key: row.request_key.clone(),
            requested_at: Moment::from_nanos(row.requested_at),
            pid: None,
            terminal: None,
            more: self.about(row),
        })
    }

    /// What a notice that was not begun yet has to tell.
    fn about(&self, row: &Row) -> Vec<(String, String)> {
        let of = row.args.first().filter(|_| keys::is_notice(&row.action));
        let of = of.and_then(|id| id.parse().ok());
        let found = of.and_then(|id| self.store.queries().get(RunId(id)).ok().flatten());
        found.map_or_else(Vec::new, |row| super::rows::facts(&row))
    }

    fn find(&self, order: &Order, id: RunId, held: Option<Held>) -> Found {
        let log_dir = &self.in_force.config.global.log_dir;
        let header = log::Reader::open(log_dir, &order.program, id)
            .ok()
            .and_then(|r| r.header().ok().flatten());
        let noted = header
            .filter(|h| h.run == id)
            .and_then(|h| Some((h, h.pid?.cast_signed())));
        let (held_pid, exit, fds) = match held {
            Some(held) => (Some(held.pid).filter(|p| *p != 0), held.exit, held.fds),
            None => (None, None, Vec::new()),
        };
        if let (Some(pid), Some(exit)) = (held_pid, exit) {
            return Found::Process(
                self.live(order, id, pid, None, Parent::Keeper, fds),
                Some(exit),
            );
        }
        let Some((header, pid)) = noted else {
            return match held_pid {
                // The index is damaged, but the keeper knows the process as its child.
                Some(pid) => match open(pid) {
                    Some(pidfd) => Found::Process(
                        self.live(order, id, pid, Some(pidfd), Parent::Keeper, fds),
                        None,
                    ),
                    None => Found::Gone(Outcome::Lost),
                },
                None => Found::Nothing,
            };
        };
        if log::Header::for_run(id).is_ok_and(|now| now.boot_id != header.boot_id) {
            return Found::Gone(Outcome::Interrupted);
        }
        // First the descriptor, then the question whose it is: so the answer stays true.
        let pidfd = open(pid).filter(|_| is_same(pid, header.boottime_ns));
        match (pidfd, held_pid) {
            (Some(pidfd), _) => {
                let keeper = std::os::unix::process::parent_id().cast_signed();
                let child = tree::stat(pid).is_some_and(|s| s.parent == keeper);
                let parent = match (held_pid, child) {
                    (Some(_), true) => Parent::Keeper,
                    (Some(_), false) => Parent::Former,
                    (None, _) => Parent::Stranger,
                };
                Found::Process(self.live(order, id, pid, Some(pidfd), parent, fds), None)
            }
            // The keeper is about to say how it ended.
            (None, Some(pid)) => {
                Found::Process(self.live(order, id, pid, None, Parent::Keeper, fds), None)
            }
            (None, None) => Found::Gone(Outcome::Lost),
        }
    }

    fn live(
        &self,
        order: &Order,
        id: RunId,
        pid: i32,
        pidfd: Option<OwnedFd>,
        parent: Parent,
        fds: Vec<OwnedFd>,
    ) -> Box<LiveRun> {
        let log_dir = &self.in_force.config.global.log_dir;
        let group = self
            .surroundings
            .cgroups
            .as_ref()
            .and_then(|groups| groups.of_process(pid));
        let tree = match group {
            Some(group) => Tree::Group(group),
            None => Tree::Descent(descent(id, pid)),
        };
        let mut fds = fds.into_iter();
        let pipes = fds.next().zip(fds.next());
        let stdin = fds.next();
        let paths = (
            log::log_path(log_dir, &order.program, id),
            log::index_path(log_dir, &order.program, id),
        );
        let terminal = pipes.as_ref().and_then(|(out, _)| Terminal::of(out));
        let mut parked = Vec::new();
        let observed = pipes.and_then(|(out, err)| {
            let files = log::open_for_writing(log_dir, &order.program, id);
            let files = files
                .map_err(|e| warn!("the log of run {id} cannot be gone on with: {}", chain(&e)))
                .ok()?;
            parked = [&out, &err]
                .into_iter()
                .filter_map(|fd| fd.try_clone().ok())
                .collect();
            Some(observe(
                self.inbox,
                id,
                (out, err),
                files,
                paths.clone(),
                (order.spec.log_max_size, order.is_service()),
            ))
        });
        let (output, log, closing) = match observed {
            Some((output, log, closing)) => (Some(output), log, closing),
            None => {
                let stored = stored_log(log_dir, &order.program, id);
                let none = || {
                    let (_, progress) =
                        tokio::sync::watch::channel(crate::server::Progress::default());
                    crate::server::LiveLog::new(paths.0, paths.1, progress)
                };
                (None, Arc::new(stored.unwrap_or_else(none)), Arc::default())
            }
        };
        let pidfd = pidfd.map(Arc::new);
        Box::new(LiveRun {
            pid,
            pidfd,
            tree: Arc::new(tree),
            log,
            stdin,
            terminal: terminal.map(Arc::new),
            parked,
            output,
            closing,
            parent,
            signs: if order.is_service() {
                super::signs::resume(pid)
            } else {
                None
            },
        })
    }

    fn close(&self, id: RunId, outcome: Outcome, detail: &str) {
        let finish = Finish {
            outcome,
            exit_code: None,
            signal: None,
            ended_at: Moment::now().nanos(),
            bytes: 0,
            dropped: 0,
            leftovers: false,
            detail: Some(detail.to_owned()),
        };
        self.store.finished(id, finish, Box::new(drop));
        self.store.flush();
    }
}

fn open(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// Whether the process of this number is the one that was noted at `noted` (nanoseconds since
/// boot): a later one of the same number started after that.
fn is_same(pid: i32, noted: i64) -> bool {
    let Some(stat) = tree::stat(pid) else {
        return false;
    };
    let started =
        u128::from(stat.start) * 1_000_000_000 / u128::from(tree::ticks_per_second().max(1));
    // The header is written just before the process is made.
    let soon = Duration::from_secs(5).as_nanos();
    started <= u128::from(noted.max(0).cast_unsigned()) + soon
}

/// Stands before each former configuration behind the one in force. No configuration has a NUL.
pub const FORMER: &[u8] = b"\0former\0";

/// The configuration in force, and former ones that something of still runs, the oldest first.
#[must_use]
pub fn split_config(kept: &[u8]) -> (Vec<u8>, Vec<Vec<u8>>) {
    let mut texts = vec![Vec::new()];
    let mut rest = kept;
    while let Some(&byte) = rest.first() {
        if let Some(behind) = rest.strip_prefix(FORMER) {
            texts.push(Vec::new());
            rest = behind;
            continue;
        }
        if let Some(text) = texts.last_mut() {
            text.push(byte);
        }
        rest = &rest[1..];
    }
    let former = texts.split_off(1);
    (texts.pop().unwrap_or_default(), former)
}

/// The text of the configuration in force, and of former ones.
///
/// # Errors
/// It cannot be read.
pub fn read_config(memfd: &OwnedFd) -> std::io::Result<Vec<u8>> {
    use std::os::unix::fs::FileExt;
    let file = File::from(memfd.try_clone()?);
    let mut text = vec![0; usize::try_from(file.metadata()?.len()).unwrap_or(0)];
    file.read_exact_at(&mut text, 0)?;
    Ok(text)
}
