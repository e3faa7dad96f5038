//! The daemon's hands: they perform what the engine decided, and decide nothing.
//!
//! Nothing here waits on the actor's thread. A spawn, a walk through `/proc` or a look at the
//! disk happens on the blocking pool, and its result comes back as a [`Msg`].

use std::collections::{BTreeMap, HashMap};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::Interest;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, warn};

use super::InForce;
use super::actor::{Msg, Notices, Order, Waiter};
use super::clock::Moment;
use super::code;
use super::events::Events;
use super::front::chain;
use super::rows;
use super::signs::{self, Signs};
use crate::config::model::{LogTo, Program, RecordFailure, Retention};
use crate::engine::Exit;
use crate::ids::{LaneName, ProgramName, RunId};
use crate::keeper::wire::{MOST_FORGOTTEN, STARTED_PID_AT};
use crate::keeper::{Link, ToKeeper};
use crate::log;
use crate::protocol::message::{ErrorCode, Reply};
use crate::run::cgroup::{Cgroups, RunGroup};
use crate::run::environment::Facts;
use crate::run::identity::Identity;
use crate::run::journal;
use crate::run::pump::{Closed, Listener, LogTrouble, Pump, PumpRun};
use crate::run::spawn;
use crate::run::tree::{self, Descent, Tree};
use crate::server::{Input, LiveLog, Notice, Progress};
use crate::store::{Finish, NewRun, OnFailure, Outcome, Queries, Row, Store};
use crate::sys;
use crate::sys::child::{Datagram, PidReport};
use crate::sys::terminal::Terminal;

/// How long the output of a run whose process has ended may be held up by what it left behind.
const DRAIN: Duration = Duration::from_millis(1500);
/// After how many ends of runs of a program, at most, old ones are deleted.
const MOST_SPARED: u32 = 16;
/// The most output of a run that is kept in memory, in bytes.
const IN_MEMORY: u64 = 16 << 20;
/// How long an answer waits for the record.
const SETTLE: Duration = Duration::from_secs(5);
/// How many processes are prepared at a time before their requests are on record.
const MOST_PREPARED: usize = 8;
/// How often a tree whose end is awaited is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// A run that has a process.
pub struct LiveRun {
    /// For the log only; signals go through `pidfd`.
    pub pid: i32,
    /// Its process; none if it had ended before this daemon came.
    pub pidfd: Option<Arc<OwnedFd>>,
    /// All its processes.
    pub tree: Arc<Tree>,
    /// Its log.
    pub log: Arc<LiveLog>,
    /// The write end of its standard input, until somebody is given it.
    pub stdin: Option<OwnedFd>,
    /// Its terminal, if it has one.
    pub terminal: Option<Arc<Terminal>>,
    /// The read ends of its output pipes once more, in case the keeper has to be replaced.
    pub parked: Vec<OwnedFd>,
    /// What the pump needs; taken when it is handed over.
    pub output: Option<PumpRun>,
    /// Whether its output is complete.
    pub closing: Arc<Closing>,
    /// Who can be asked how its process ended.
    pub parent: Parent,
    /// How it says that it is ready, and that it is well.
    pub signs: Option<Signs>,
}

/// The end of a run's output. It is of no interest before the process has ended: until then the
/// actor is not woken for it.
#[derive(Default)]
pub struct Closing(Mutex<Complete>);

/// The pump's report, and who is to be told.
pub type Silence = (Closed, watch::Sender<Progress>);

#[derive(Default)]
enum Complete {
    #[default]
    NotYet,
    /// Nor has the process, and somebody waits.
    Awaited,
    Since(Silence),
}

impl Closing {
    /// What the pump has reported. `None`: it is not complete, and will be [`Msg::Closed`].
    pub fn ask(&self) -> Option<Silence> {
        match std::mem::replace(&mut *self.state(), Complete::Awaited) {
            Complete::Since(silence) => Some(silence),
            Complete::NotYet | Complete::Awaited => None,
        }
    }

    /// Keeps the report. Gives it back if somebody waits for it.
    fn report(&self, silence: Silence) -> Option<Silence> {
        let mut state = self.state();
        if matches!(*state, Complete::Awaited) {
            return Some(silence);
        }
        *state = Complete::Since(silence);
        None
    }

    fn state(&self) -> std::sync::MutexGuard<'_, Complete> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whose child a run's process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// This daemon's.
    Daemon,
    /// The keeper's: a former daemon started it.
    Keeper,
    /// Was the keeper's, until that died: the kernel may tell.
    Former,
    /// Somebody else's: keeper and daemon had both died.
    Stranger,
}

impl std::fmt::Debug for LiveRun {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LiveRun")
            .field("pid", &self.pid)
            .field("parent", &self.parent)
            .finish_non_exhaustive()
    }
}

impl LiveRun {
    /// The input of its process for somebody who has some: for its own client, or for one who
    /// joined it. A pipe is given away.
    pub fn input(&mut self, joined: bool) -> Option<Input> {
        match &self.terminal {
            Some(terminal) => Some(Input::Terminal {
                terminal: Arc::clone(terminal),
                joined,
            }),
            None => self.stdin.take().map(Input::Pipe),
        }
    }

    /// What became of its output, if there are no pipes to read any more.
    #[must_use]
    pub fn without_output(&self) -> Option<Closed> {
        let bytes = self.log.progress.borrow().bytes;
        let report = Closed {
            bytes,
            dropped: 0,
            leftover: false,
        };
        self.output.is_none().then_some(report)
    }

    /// Whether processes of its tree are there now.
    #[must_use]
    pub fn has_leftovers(&self) -> bool {
        matches!(&*self.tree, Tree::Group(group) if !group.is_empty())
    }
}

/// Why a run has no process.
#[derive(Debug, Clone)]
pub struct SpawnFailure {
    /// What could not be done, why, and what to do next.
    pub message: String,
    /// 127 not found, 126 otherwise.
    pub status: i32,
}

/// What all runs have in common.
#[derive(Debug)]
pub struct Surroundings {
    /// Makes control groups for runs; none: trees are found by descent.
    pub cgroups: Option<Cgroups>,
    /// The soft limit of open files that the daemon was started with.
    pub nofile: u64,
    /// The program itself, for workers.
    pub binary: OwnedFd,
}

/// An update that has succeeded: of which program, and which run it was.
pub type Updated = (ProgramName, RunId);

/// See the module's documentation.
pub struct Hands {
    /// To the actor.
    pub actor: mpsc::UnboundedSender<Msg>,
    /// To whoever does what follows an update.
    pub updated: mpsc::UnboundedSender<Updated>,
    /// The history, to be written.
    pub store: Store,
    /// The history, to be read.
    pub queries: Queries,
    /// Output.
    pub pump: Pump,
    /// The keeper.
    pub link: Arc<Link>,
    /// See there.
    pub surroundings: Arc<Surroundings>,
    /// The configuration in force.
    pub in_force: watch::Receiver<Arc<InForce>>,
    /// Those who watch are told here.
    pub events: Events,
    /// Processes that wait for their request to be on record.
    prepared: Mutex<HashMap<RunId, std::sync::mpsc::Sender<Job>>>,
    failures: Mutex<HashMap<RunId, SpawnFailure>>,
    /// Which programs are to be up, until that is kept; and who keeps it.
    to_remember: Arc<Mutex<Option<BTreeMap<ProgramName, bool>>>>,
    writing: Arc<Mutex<()>>,
    /// Runs that the keeper is still to be told to forget.
    to_forget: Mutex<Vec<u64>>,
    /// How many runs of a program have ended since old ones were deleted.
    ended: Mutex<HashMap<ProgramName, u32>>,
}

impl Hands {
    /// Hands that work with these.
    pub fn new(
        (actor, updated, events): (
            mpsc::UnboundedSender<Msg>,
            mpsc::UnboundedSender<Updated>,
            Events,
        ),
        store: Store,
        queries: Queries,
        pump: Pump,
        link: Arc<Link>,
        surroundings: Arc<Surroundings>,
        in_force: watch::Receiver<Arc<InForce>>,
    ) -> Self {
        Self {
            events,
            actor,
            updated,
            store,
            queries,
            pump,
            link,
            surroundings,
            in_force,
            prepared: Mutex::default(),
            failures: Mutex::default(),
            to_remember: Arc::default(),
            writing: Arc::default(),
            to_forget: Mutex::default(),
            ended: Mutex::default(),
        }
    }

    fn send(&self, msg: Msg) {
        let _ = self.actor.send(msg);
    }

    fn log_dir(&self) -> PathBuf {
        self.in_force.borrow().config.global.log_dir.clone()
    }

    /// Puts a request on record; the answer is [`Msg::Recorded`].
    pub fn insert(&self, run: NewRun) {
        let (id, actor) = (run.id, self.actor.clone());
        let done = move |result| drop(actor.send(Msg::Recorded(id, result)));
        self.store.insert(run, OnFailure::Report, Box::new(done));
    }

    /// Puts a request on record that runs off it, as soon as that is possible.
    pub fn insert_later(&self, run: NewRun) {
        self.store.insert(run, OnFailure::Keep, Box::new(noted));
    }

    /// Asks for a notice if the last run of the kind before this one went wrong.
    pub fn if_fixed(&self, row: &Row, notice: Box<Order>) {
        let (queries, actor) = (self.queries.clone(), self.actor.clone());
        let (id, program, action) = (row.id, row.program.clone(), row.action.clone());
        tokio::task::spawn_blocking(move || {
            let before = queries.outcome_before(id, &program, &action);
            let wrong = |outcome: Outcome| !matches!(outcome, Outcome::Succeeded);
            if before.ok().flatten().is_some_and(wrong) {
                let (notices, _) = mpsc::unbounded_channel();
                let _ = actor.send(Msg::Run(notice, Waiter::onlooker(RunId(0), notices)));
            }
        });
    }

    /// Looks for the first request under `key`; the answer is [`Msg::Known`].
    pub fn find(&self, key: String, mut waiter: Waiter) {
        let (queries, actor) = (self.queries.clone(), self.actor.clone());
        waiter.request = RunId(0);
        tokio::task::spawn_blocking(move || {
            let row = queries.find_by_key(&key).unwrap_or_else(|e| {
                warn!("the history cannot be read: {}", chain(&e));
                None
            });
            let _ = actor.send(Msg::Known(waiter, Box::new(row)));
        });
    }

    /// Tells somebody how a run came out that is over.
    pub fn answer_from_history(&self, id: RunId, waiter: Waiter) {
        let (queries, log_dir) = (self.queries.clone(), self.log_dir());
        let actor = self.actor.clone();
        let (done, settled) = std::sync::mpsc::channel();
        // Its end may be on the way to the record.
        self.store.barrier(Box::new(move |result| {
            let _ = done.send(result.is_ok());
        }));
        tokio::task::spawn_blocking(move || {
            let settled = settled.recv_timeout(SETTLE) == Ok(true);
            let reply = match covering(&queries, id) {
                // What covers it has begun meanwhile: the actor knows it by now.
                Ok(Some(row)) if settled && !row.outcome.is_final() => {
                    let _ = actor.send(Msg::Known(waiter, Box::new(Some(row))));
                    return;
                }
                Ok(Some(row)) => {
                    let program = ProgramName::new(&row.program).ok();
                    if let Some(log) =
                        program.and_then(|p| super::front::stored_log(&log_dir, &p, row.id))
                    {
                        let started = Notice::Started {
                            run: row.id,
                            request: waiter.request,
                            log: Arc::new(log),
                            stdin: None,
                        };
                        let _ = waiter.notices.send(started);
                    }
                    let request = (waiter.request != row.id).then_some(waiter.request.0);
                    Reply::Ended {
                        run: Box::new(rows::message(&row)),
                        request,
                    }
                }
                Ok(None) => Reply::Error {
                    code: ErrorCode::Failed,
                    message: format!("run {id} is not on record any more"),
                },
                Err(e) => Reply::Error {
                    code: ErrorCode::Failed,
                    message: format!("the history cannot be read: {}", chain(&e)),
                },
            };
            let _ = waiter.notices.send(Notice::Final(Box::new(reply)));
        });
    }

    /// Says how long runs of the program usually take, if that is known.
    pub fn outlook(&self, lane: &LaneName, notices: Notices) {
        let (queries, lane) = (self.queries.clone(), lane.clone());
        tokio::task::spawn_blocking(move || {
            if let Ok(Some(usually)) = queries.usual_duration(&lane.program, &lane.action) {
                let reply = Reply::Outlook {
                    usually: usually.as_secs_f64(),
                };
                let _ = notices.send(Notice::Reply(Box::new(reply)));
            }
        });
    }

    /// Heeds what a process says of itself: that it is ready, that it is well.
    pub fn heed(
        &self,
        signs: Signs,
        program: &ProgramName,
        run: RunId,
        watchdog: Option<Duration>,
        over: Arc<OwnedFd>,
        log: Arc<LiveLog>,
    ) {
        let (actor, program) = (self.actor.clone(), program.clone());
        tokio::spawn(signs::heed(signs, actor, program, run, watchdog, over, log));
    }

    /// Reports that a process is ready when something listens on the port.
    pub fn await_port(&self, port: u16, program: ProgramName, run: RunId, patience: Duration) {
        let actor = self.actor.clone();
        tokio::spawn(signs::await_port(actor, port, program, run, patience));
    }

    /// Keeps which programs are to be up, for the next daemon.
    pub fn remember(&self, wanted: &BTreeMap<ProgramName, bool>) {
        let state_dir = self.in_force.borrow().config.global.state_dir.clone();
        let held = |m: &Mutex<Option<BTreeMap<ProgramName, bool>>>, new| {
            std::mem::replace(&mut *m.lock().unwrap_or_else(PoisonError::into_inner), new)
        };
        // Who finds one there waits for the disk already, and will take the new one.
        if held(&self.to_remember, Some(wanted.clone())).is_some() {
            return;
        }
        let (to_remember, writing) = (Arc::clone(&self.to_remember), Arc::clone(&self.writing));
        tokio::task::spawn_blocking(move || {
            let _one_at_a_time = writing.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(wanted) = held(&to_remember, None) else {
                return;
            };
            if let Err(e) = super::recover::write_wanted(&state_dir, &wanted) {
                warn!("which programs are to be up cannot be kept: {e}");
            }
        });
    }

    /// Records that a request waits again.
    pub fn waiting(&self, id: RunId) {
        self.store.waiting(id, OnFailure::Keep, Box::new(noted));
    }

    /// Records that a newer request took the place of this one.
    pub fn superseded(&self, id: RunId, by: RunId, at: Moment) {
        self.store
            .superseded(id, Some(by), at.nanos(), OnFailure::Keep, Box::new(noted));
    }

    /// Records that a run starts. `covers_after`: it covers what was displaced after that run.
    pub fn started(&self, id: RunId, at: Moment, covers_after: Option<RunId>) {
        self.store.started(
            id,
            at.nanos(),
            covers_after,
            OnFailure::Keep,
            Box::new(noted),
        );
    }

    /// Gets everything ready for the process of a run while its request is put on record. Ended
    /// by [`Hands::spawn`] or [`Hands::abandon`].
    pub fn prepare(&self, id: RunId, order: &Order, stdin: bool) {
        let mut prepared = self.prepared();
        if prepared.len() >= MOST_PREPARED {
            return;
        }
        let (go, told) = std::sync::mpsc::channel::<Job>();
        prepared.insert(id, go);
        drop(prepared);
        let job = self.job(id, order, stdin);
        tokio::task::spawn_blocking(move || {
            let ready = job.prepare();
            match told.recv() {
                Ok(now) if now.is_like(&job) => now.start(ready),
                Ok(now) => {
                    job.discard(ready);
                    now.start(now.prepare());
                }
                Err(_) => job.discard(ready),
            }
        });
    }

    /// The run that was prepared is not to be.
    pub fn abandon(&self, id: RunId) {
        self.prepared().remove(&id);
    }

    /// Makes the process of a run; the answer is [`Msg::Spawned`].
    pub fn spawn(&self, id: RunId, order: &Order, stdin: bool) {
        let mut job = self.job(id, order, stdin);
        if let Some(go) = self.prepared().remove(&id) {
            job = match go.send(job) {
                Ok(()) => return,
                Err(unheard) => unheard.0,
            };
        }
        tokio::task::spawn_blocking(move || job.start(job.prepare()));
    }

    fn prepared(&self) -> std::sync::MutexGuard<'_, HashMap<RunId, std::sync::mpsc::Sender<Job>>> {
        self.prepared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn job(&self, id: RunId, order: &Order, stdin: bool) -> Job {
        Job {
            id,
            order: order.clone(),
            stdin,
            in_force: self.in_force.borrow().clone(),
            surroundings: Arc::clone(&self.surroundings),
            link: Arc::clone(&self.link),
            actor: self.actor.clone(),
        }
    }

    /// Answers a spawn that cannot even be tried.
    pub fn fail(&self, id: RunId, failure: SpawnFailure) {
        self.send(Msg::Spawned(id, Err(failure)));
    }

    /// Keeps the reason of a failed spawn for the record, and puts it into the run's log.
    pub fn spawn_failed(&self, id: RunId, program: &ProgramName, failure: &SpawnFailure) {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, failure.clone());
        let (log_dir, program, message) =
            (self.log_dir(), program.clone(), failure.message.clone());
        let link = Arc::clone(&self.link);
        tokio::task::spawn_blocking(move || {
            let written = log::Writer::open(&log_dir, &program, id).and_then(|mut writer| {
                writer.message(format!("deployer: {message}\n").as_bytes())?;
                writer.finish()
            });
            if let Err(e) = written {
                warn!(
                    "the log of run {id} of {program} cannot be written: {e}: {}",
                    e.source
                );
            }
            link.send(&ToKeeper::Forget { runs: vec![id.0] }, &[]);
        });
    }

    /// The reason that [`Hands::spawn_failed`] kept.
    pub fn take_failure(&self, id: RunId) -> Option<SpawnFailure> {
        self.failures
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&id)
    }

    /// Looks after a live run: its output, and its end.
    pub fn attend(&self, id: RunId, live: &mut LiveRun) {
        if let Some(output) = live.output.take()
            && let Err(e) = self.pump.add(output)
        {
            error!("the output of run {id} cannot be kept: {}", chain(&e));
            let nothing = Closed {
                bytes: 0,
                dropped: 0,
                leftover: false,
            };
            let (nobody, _) = watch::channel(Progress::default());
            let _ = live.closing.report((nothing, nobody));
        }
        let Some(pidfd) = live.pidfd.clone() else {
            return;
        };
        let (actor, pid, parent) = (self.actor.clone(), live.pid, live.parent);
        tokio::spawn(async move {
            if let Some(exit) = wait_for_end(&pidfd, pid, parent).await {
                let _ = actor.send(Msg::Exited(id, exit));
            }
        });
    }

    /// The process has ended: its output may go on for [`DRAIN`].
    pub fn drain(&self, id: RunId) {
        self.pump.ended(id, DRAIN);
    }

    /// The run's input is in its client's hands, or nobody's: the keeper's copy of the pipe would
    /// keep it open.
    pub fn unpark_stdin(&self, id: RunId) {
        self.link.send(&ToKeeper::Unpark { run: id.0 }, &[]);
    }

    /// Asks a run to end.
    pub fn stop(&self, id: RunId, live: &LiveRun, signal: i32, tree: bool) {
        debug!("run {id} is asked to end with signal {signal}");
        if tree {
            let tree = Arc::clone(&live.tree);
            tokio::task::spawn_blocking(move || {
                tree.signal(signal);
                tree.signal(libc::SIGCONT);
            });
        } else if let Some(pidfd) = &live.pidfd {
            sys::process::signal(pidfd, signal);
            sys::process::signal(pidfd, libc::SIGCONT);
        }
    }

    /// Ends a run.
    pub fn kill(&self, id: RunId, live: &LiveRun, tree: bool) {
        debug!("run {id} is killed");
        if let Some(pidfd) = &live.pidfd {
            sys::process::signal(pidfd, libc::SIGKILL);
        }
        if tree {
            let tree = Arc::clone(&live.tree);
            tokio::task::spawn_blocking(move || tree.kill());
        }
    }

    /// Reports when nothing of a tree is left: [`Msg::Vacated`].
    pub fn watch(&self, id: RunId, live: &LiveRun) {
        let (actor, tree) = (self.actor.clone(), Arc::clone(&live.tree));
        tokio::spawn(async move {
            loop {
                let looked_at = Arc::clone(&tree);
                let empty = tokio::task::spawn_blocking(move || looked_at.is_empty())
                    .await
                    .unwrap_or(true);
                if empty {
                    let _ = actor.send(Msg::Vacated(id));
                    return;
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
    }

    /// Records the end of a run or request, with what is recorded next or by [`Hands::settle`];
    /// [`Msg::Finished`] says when that is done.
    pub fn finished(&self, id: RunId, order: &Order, finish: Finish, live: &[RunId]) {
        let actor = self.actor.clone();
        self.store.finished(
            id,
            finish,
            Box::new(move |_| drop(actor.send(Msg::Finished(id)))),
        );
        self.retain(&order.program, &order.spec, live);
    }

    /// Has the ends of runs recorded that were not yet.
    pub fn settle(&self) {
        self.store.flush();
    }

    /// The end is on record: the process may be forgotten. The keeper hears of it in time, at the
    /// latest by [`Hands::forget_all`].
    pub fn release(&self, id: RunId, live: LiveRun) {
        if let (Parent::Daemon, Some(pidfd)) = (live.parent, &live.pidfd) {
            sys::process::reap(pidfd);
        }
        self.forget(id);
        if let (Some(groups), Ok(Tree::Group(group))) =
            (&self.surroundings.cgroups, Arc::try_unwrap(live.tree))
        {
            groups.give_back(group);
        }
    }

    /// Tells the keeper of several at once: every word wakes it.
    fn forget(&self, id: RunId) {
        let mut to_forget = self.to_forget();
        to_forget.push(id.0);
        let many = to_forget.len() >= MOST_FORGOTTEN;
        drop(to_forget);
        if many {
            self.forget_all();
        }
    }

    /// Tells the keeper of all that it was not yet told to forget.
    pub fn forget_all(&self) {
        let runs = std::mem::take(&mut *self.to_forget());
        if !runs.is_empty() {
            self.link.send(&ToKeeper::Forget { runs }, &[]);
        }
    }

    fn to_forget(&self) -> std::sync::MutexGuard<'_, Vec<u64>> {
        self.to_forget
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Deletes what is more than is to be kept: the fewer that is, the sooner.
    fn retain(&self, program: &ProgramName, spec: &Program, live: &[RunId]) {
        let least = [spec.log_keep.count, spec.history_keep.count]
            .into_iter()
            .flatten()
            .min();
        let every = least.map_or(MOST_SPARED, |n| {
            u32::try_from(n / 10).unwrap_or(MOST_SPARED)
        });
        {
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            let count = ended.entry(program.clone()).or_default();
            *count += 1;
            if *count < every.clamp(1, MOST_SPARED) {
                return;
            }
            *count = 0;
        }
        self.retain_rows(program, spec);
        let (log_dir, program, keep, live) = (
            self.log_dir(),
            program.clone(),
            spec.log_keep,
            live.to_vec(),
        );
        tokio::task::spawn_blocking(move || retain_logs(&log_dir, &program, keep, &live));
    }

    /// Deletes what is too old or too much of every program, whether it runs or not.
    pub fn sweep(&self, live: Vec<RunId>) {
        let in_force = self.in_force.borrow().clone();
        for (program, spec) in &in_force.config.programs {
            self.retain_rows(program, spec);
        }
        tokio::task::spawn_blocking(move || {
            let log_dir = &in_force.config.global.log_dir;
            for program in log::programs(log_dir).unwrap_or_default() {
                let spec = in_force.config.programs.get(&program);
                let spec = spec.unwrap_or(&in_force.config.script);
                retain_logs(log_dir, &program, spec.log_keep, &live);
            }
        });
    }

    fn retain_rows(&self, program: &ProgramName, spec: &Program) {
        self.store
            .retain(program.clone(), spec.history_keep, &[], |result| {
                if let Err(e) = result {
                    warn!("old rows of the history cannot be deleted: {}", chain(&e));
                }
            });
    }
}

fn retain_logs(log_dir: &Path, program: &ProgramName, keep: Retention, live: &[RunId]) {
    if let Err(e) = log::retain(log_dir, program, keep, live) {
        warn!("old logs of {program} cannot be deleted: {}", chain(&e));
    }
}

/// The row that answers a request: its own, or that of the run that covers it.
fn covering(queries: &Queries, id: RunId) -> Result<Option<Row>, crate::store::StoreError> {
    let mut row = queries.get(id)?;
    while let Some(found) = &row {
        match found.covered_by {
            // Numbers only grow on the way, so it ends.
            Some(by) if found.outcome == Outcome::Superseded && by > found.id => {
                row = queries.get(by)?
            }
            _ => break,
        }
    }
    Ok(row)
}

/// Waits for the end of a process. `None`: somebody else will tell.
async fn wait_for_end(pidfd: &Arc<OwnedFd>, pid: i32, parent: Parent) -> Option<Exit> {
    let watched = match pidfd
        .try_clone()
        .and_then(|fd| crate::sys::fd::watch(fd, Interest::READABLE))
    {
        Ok(watched) => watched,
        Err(e) => {
            error!("a process cannot be watched: {e}");
            return Some(Exit::Unknown);
        }
    };
    let _ = watched.readable().await;
    match parent {
        Parent::Daemon => Some(sys::process::peek(pidfd).map_or(Exit::Unknown, exit_from)),
        Parent::Keeper => None,
        Parent::Former => {
            // Before somebody has reaped the process, `/proc` says it; after that, its pidfd.
            for _ in 0..100 {
                let zombie = tree::zombie_status(pid).map(sys::process::Ended::from_wait_status);
                if let Some(ended) = zombie.or_else(|| sys::process::exit_info(pidfd)) {
                    return Some(exit_from(ended));
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Some(Exit::Unknown)
        }
        Parent::Stranger => Some(Exit::Unknown),
    }
}

fn exit_from(ended: sys::process::Ended) -> Exit {
    match ended {
        sys::process::Ended::Code(code) => Exit::Code(code),
        sys::process::Ended::Signal(signal) => Exit::Signal(signal),
    }
}

/// A write that is kept until it succeeds can only fail by not making sense any more.
fn noted(result: Result<(), crate::store::StoreError>) {
    if let Err(e) = result {
        debug!("the history: {}", chain(&e));
    }
}

/// The making of one process, off the actor's thread.
struct Job {
    id: RunId,
    order: Order,
    stdin: bool,
    in_force: Arc<InForce>,
    surroundings: Arc<Surroundings>,
    link: Arc<Link>,
    actor: mpsc::UnboundedSender<Msg>,
}

/// The daemon's ends of a process's standard streams.
struct Ends {
    out: OwnedFd,
    err: OwnedFd,
    stdin: Option<OwnedFd>,
    terminal: Option<Terminal>,
}

impl Ends {
    /// What the keeper holds, in the order that it expects.
    fn to_park(&self) -> Vec<RawFd> {
        let always = [self.out.as_raw_fd(), self.err.as_raw_fd()];
        let stdin = self.stdin.as_ref().map(AsRawFd::as_raw_fd);
        always.into_iter().chain(stdin).collect()
    }

    /// Of streams that lead elsewhere.
    fn none() -> Result<Self, spawn::SpawnError> {
        Ok(Self {
            out: spawn::null()?,
            err: spawn::null()?,
            stdin: None,
            terminal: None,
        })
    }
}

/// What a run's process needs, but for the process itself.
struct Ready {
    process: spawn::Ready,
    stdio: spawn::Stdio,
    ends: Ends,
    files: log::Files,
    paths: (PathBuf, PathBuf),
    limit: u64,
    group: Option<RunGroup>,
    signs: Option<Signs>,
}

fn failed(message: String, status: i32) -> SpawnFailure {
    SpawnFailure { message, status }
}

fn spawn_failed(e: spawn::SpawnError) -> SpawnFailure {
    failed(e.to_string(), e.exit_status())
}

impl Job {
    /// Whether what was prepared for the other is right for this one.
    fn is_like(&self, other: &Self) -> bool {
        self.stdin == other.stdin
            && Arc::ptr_eq(&self.in_force, &other.in_force)
            && Arc::ptr_eq(&self.order.spec, &other.order.spec)
    }

    fn prepare(&self) -> Result<Ready, SpawnFailure> {
        let order = &self.order;
        let spec = &order.spec;
        let identity = Identity::resolve(spec.run_as(order.right()));
        let identity = identity.map_err(|e| spawn_failed(e.into()))?;

        let global = &self.in_force.config.global;
        let (files, paths, limit) = self.log_files().map_err(|e| failed(e, 126))?;
        let has_tty = order.has_tty();
        let streams = match spec.log {
            _ if has_tty => self.terminal(&identity),
            LogTo::Journal if order.is_service() => self.journal(),
            LogTo::Nowhere if order.is_service() => self.nowhere(),
            _ => self.pipes(&identity),
        };
        let (ends, [stdin, stdout, stderr]) = streams.map_err(spawn_failed)?;
        let cannot_listen = |e| failed(format!("cannot listen for its signs: {e}"), 126);
        let (mut signs, mut means) = (None, signs::Means::default());
        let mut is_worker = false;
        if order.is_service() {
            (signs, means) = signs::prepare(spec, identity.uid).map_err(cannot_listen)?;
        } else if code::is_about(spec, &order.action) {
            let (listener, its) = signs::for_worker(identity.uid).map_err(cannot_listen)?;
            signs = Some(its);
            if let Some(job) = code::job(self.id, order, Some(listener)) {
                let handed = code::hand_over(&job, &identity);
                let handed =
                    handed.map_err(|e| failed(format!("cannot hand over its job: {e}"), 126))?;
                means.extra = Some(handed);
                is_worker = true;
            }
        }
        let started = ToKeeper::Started {
            run: self.id.0,
            pid: 0,
        }
        .encode();
        let report = PidReport {
            file: Some((files.idx.as_raw_fd(), log::PID_OFFSET.cast_signed())),
            datagram: Some(Datagram {
                socket: self.link.as_raw_fd(),
                bytes: started,
                pid_at: STARTED_PID_AT,
                fds: ends.to_park(),
            }),
        };
        means.env.extend(order.more.iter().cloned());
        let plan = spawn::Plan {
            spec,
            root: &global.root,
            facts: Facts {
                program: &order.program,
                action: &order.action,
                run: self.id,
                by: &order.by.user,
                pid: order.pid,
                terminal: has_tty.then(|| order.terminal_kind()),
                inputs: &order.inputs,
            },
            args: &order.args,
            more: &means.env,
            identity: &identity,
            nofile: self.surroundings.nofile,
            worker: is_worker.then(|| self.surroundings.binary.as_fd()),
        };
        let stdio = spawn::Stdio {
            stdin,
            stdout,
            stderr,
            terminal: has_tty,
            extra: means.extra,
        };
        let process = spawn::prepare(&plan, &stdio, report).map_err(spawn_failed)?;
        let groups = self.surroundings.cgroups.as_ref();
        let group = groups.and_then(|groups| match groups.take() {
            Ok(group) => Some(group),
            Err(e) => {
                warn!("run {} gets no control group: {e}", self.id);
                None
            }
        });
        Ok(Ready {
            process,
            stdio,
            ends,
            files,
            paths,
            limit,
            group,
            signs,
        })
    }

    /// Pipes: the daemon's ends, and what becomes stdin, stdout and stderr of the process.
    fn pipes(&self, identity: &Identity) -> Result<(Ends, [OwnedFd; 3]), spawn::SpawnError> {
        let (out, stdout) = spawn::pipe_for(identity)?;
        let (err, stderr) = spawn::pipe_for(identity)?;
        let (stdin, fed) = if self.stdin {
            let (read, write) = spawn::pipe_for(identity)?;
            (read, Some(write))
        } else {
            (spawn::null()?, None)
        };
        let ends = Ends {
            out,
            err,
            stdin: fed,
            terminal: None,
        };
        Ok((ends, [stdin, stdout, stderr]))
    }

    /// A stream to the journal for output, and no input.
    fn journal(&self) -> Result<(Ends, [OwnedFd; 3]), spawn::SpawnError> {
        let stream = || {
            journal::stream(&self.order.program).map_err(|e| {
                let doing = "reach the journal (log = file keeps the output in a file)";
                spawn::SpawnError::Io(doing, e)
            })
        };
        Ok((Ends::none()?, [spawn::null()?, stream()?, stream()?]))
    }

    /// No input, and output that nobody sees.
    fn nowhere(&self) -> Result<(Ends, [OwnedFd; 3]), spawn::SpawnError> {
        let stdio = [spawn::null()?, spawn::null()?, spawn::null()?];
        Ok((Ends::none()?, stdio))
    }

    /// One terminal for all three. What is typed at it before the process reads is kept.
    fn terminal(&self, identity: &Identity) -> Result<(Ends, [OwnedFd; 3]), spawn::SpawnError> {
        let cloned = |fd: std::io::Result<OwnedFd>| {
            fd.map_err(|e| spawn::SpawnError::Io("use a terminal", e))
        };
        let (terminal, process) = spawn::terminal_for(identity, self.order.terminal_size())?;
        if !self.stdin && !self.order.is_service() {
            terminal.end_input();
        }
        let stdio = [
            cloned(process.try_clone())?,
            cloned(process.try_clone())?,
            process,
        ];
        let ends = Ends {
            out: cloned(terminal.try_clone())?,
            err: spawn::null()?,
            stdin: None,
            terminal: Some(terminal),
        };
        Ok((ends, stdio))
    }

    /// Makes the process, and tells the actor.
    fn start(&self, ready: Result<Ready, SpawnFailure>) {
        let result = ready.and_then(|ready| self.start_ready(ready));
        let _ = self.actor.send(Msg::Spawned(self.id, result));
    }

    fn start_ready(&self, ready: Ready) -> Result<Box<LiveRun>, SpawnFailure> {
        let Ready {
            process,
            stdio,
            ends,
            files,
            paths,
            limit,
            group,
            signs,
        } = ready;
        let Ends {
            out,
            err,
            stdin,
            terminal,
        } = ends;
        let spawned = process.start(group.as_ref().map(RunGroup::as_fd));
        drop(stdio);
        let (pid, pidfd) = match spawned {
            Ok(spawned) => spawned,
            Err(e) => {
                self.give_back(group);
                return Err(spawn_failed(e));
            }
        };
        let tree = match group {
            Some(group) => Tree::Group(group),
            None => Tree::Descent(descent(self.id, pid)),
        };
        let parked = [&out, &err]
            .into_iter()
            .filter_map(|fd| fd.try_clone().ok())
            .collect();
        let (output, log, closing) = observe(
            &self.actor,
            self.id,
            (out, err),
            files,
            paths,
            (limit, self.order.is_service()),
        );
        Ok(Box::new(LiveRun {
            pid,
            pidfd: Some(Arc::new(pidfd)),
            parked,
            tree: Arc::new(tree),
            log,
            stdin,
            terminal: terminal.map(Arc::new),
            output: Some(output),
            closing,
            parent: Parent::Daemon,
            signs,
        }))
    }

    /// Undoes what was prepared.
    fn discard(&self, ready: Result<Ready, SpawnFailure>) {
        let log_dir = &self.in_force.config.global.log_dir;
        log::remove(log_dir, &self.order.program, self.id);
        if let Ok(ready) = ready {
            self.give_back(ready.group);
        }
    }

    fn give_back(&self, group: Option<RunGroup>) {
        if let (Some(groups), Some(group)) = (&self.surroundings.cgroups, group) {
            groups.give_back(group);
        }
    }
}

impl Job {
    /// The log of the run, and the most it may hold. Where runs go on off the record, one that
    /// the disk does not take is kept in memory for those who follow the run.
    fn log_files(&self) -> Result<(log::Files, (PathBuf, PathBuf), u64), String> {
        let (order, global) = (&self.order, &self.in_force.config.global);
        let (log_dir, program) = (&global.log_dir, &order.program);
        let paths = (
            log::log_path(log_dir, program, self.id),
            log::index_path(log_dir, program, self.id),
        );
        let e = match log::create_as(log_dir, program, self.id, order.is_service()) {
            Ok(files) => return Ok((files, paths, order.spec.log_max_size)),
            Err(e) => chain(&e),
        };
        // What was begun would be taken for a log later.
        log::remove(log_dir, program, self.id);
        if global.record_failure == RecordFailure::Refuse {
            return Err(format!("{e}, so nothing was run"));
        }
        warn!(
            "the output of run {} of {program} is not kept: {e}",
            self.id
        );
        let in_memory = log::in_memory(self.id).map_err(|e| chain(&e))?;
        let path =
            |file: &std::fs::File| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        let paths = (path(&in_memory.log), path(&in_memory.idx));
        Ok((in_memory, paths, order.spec.log_max_size.min(IN_MEMORY)))
    }
}

/// How the tree of a run without a control group is found.
#[must_use]
pub fn descent(id: RunId, pid: i32) -> Descent {
    Descent {
        leader: pid,
        mark: format!("DEPLOYER_RUN={id}").into_bytes(),
        keeper: std::os::unix::process::parent_id().cast_signed(),
        since: tree::stat(pid).map_or(0, |s| s.start),
    }
}

/// What the pump is given for a run, and what viewers of its log are.
pub fn observe(
    actor: &mpsc::UnboundedSender<Msg>,
    run: RunId,
    (out, err): (OwnedFd, OwnedFd),
    files: log::Files,
    (log, index): (PathBuf, PathBuf),
    (limit, rotates): (u64, bool),
) -> (PumpRun, Arc<LiveLog>, Arc<Closing>) {
    let bytes = files.log.metadata().map_or(0, |m| m.len());
    let (tell, progress) = watch::channel(Progress {
        bytes,
        dropped: 0,
        complete: false,
    });
    let closing = Arc::<Closing>::default();
    let listener = Box::new(Ear {
        run,
        progress: Some(tell),
        closing: Arc::clone(&closing),
        actor: actor.clone(),
    });
    let live = LiveLog::new(log, index, progress);
    (
        PumpRun {
            run,
            out,
            err,
            log: files.log,
            idx: files.idx,
            limit,
            rotates,
            listener,
        },
        Arc::new(live),
        closing,
    )
}

/// Hears the pump, for the viewers of a log and for the actor.
struct Ear {
    run: RunId,
    /// None once the log is closed.
    progress: Option<watch::Sender<Progress>>,
    closing: Arc<Closing>,
    actor: mpsc::UnboundedSender<Msg>,
}

impl Listener for Ear {
    fn grew(&mut self, bytes: u64) {
        if let Some(progress) = &self.progress {
            progress.send_modify(|p| p.bytes = bytes);
        }
    }

    fn trouble(&mut self, what: LogTrouble) {
        warn!("output of run {} is dropped: {}", self.run, chain(&what));
    }

    fn closed(&mut self, report: Closed) {
        // The viewers are told by the actor: all that this wakes is on its thread, and one word
        // wakes it once.
        if let Some(progress) = self.progress.take()
            && let Some(silence) = self.closing.report((report, progress))
        {
            let _ = self.actor.send(Msg::Closed(self.run, silence));
        }
    }
}
