//! The one that owns the engine: takes messages, lets the engine decide, performs its effects.
//!
//! Everything that happens to runs goes through [`Actor::handle`], one message after the other,
//! on one thread. It never waits: what may (a disk, a spawn, a name service) is done elsewhere
//! and comes back as a [`Msg`].

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};
use tracing::{error, info, warn};

use super::InForce;
use super::clock::Moment;
use super::code;
use super::effects::{Hands, LiveRun, Silence, SpawnFailure};
use super::front::chain;
use crate::config::keys;
use crate::config::model::{AfterUpdate, KillMode, Leftovers, Program, RecordFailure};
use crate::engine::service::{Ask, ServiceEvent, Services, Ticket};
use crate::engine::{Effect, Ending, Engine, Event, Exit, Standing, StopReason, Terms};
use crate::ids::{ActionName, LaneName, ProgramName, RunId};
use crate::keeper::Saved;
use crate::keeper::saved::SavedRun;
use crate::protocol::message::{Behind, ErrorCode, Reply, Terminal};
use crate::run::pump::Closed;
use crate::run::tree::Tree;
use crate::server::{Input, Notice, Progress};
use crate::store::{By, Finish, NewRun, Outcome, Row, StoreError};
use crate::sys::terminal::Size;

mod supervised;

use supervised::policy_of;

/// How many requests of a program with `coalesce = no` may wait.
const QUEUE_MAX: usize = 1000;
/// How long the end of a run may wait for the record of another one.
const SETTLE: Duration = Duration::from_millis(5);
/// How long the keeper may hold what it could forget.
const FORGET: Duration = Duration::from_millis(50);

/// Sends what a connection is told.
pub type Notices = mpsc::UnboundedSender<Notice>;

/// What the actor is told.
#[derive(Debug)]
pub enum Msg {
    /// A request that policy granted.
    Run(Box<Order>, Waiter),
    /// The store has, or has not, put a request on record.
    Recorded(RunId, Result<(), StoreError>),
    /// Somebody asks for the outcome of this row, which a former request has made.
    Known(Waiter, Box<Option<Row>>),
    /// A spawn is over.
    Spawned(RunId, Result<Box<LiveRun>, SpawnFailure>),
    /// A process has ended.
    Exited(RunId, Exit),
    /// A run's output is complete, or was given up, after its process had ended.
    Closed(RunId, Silence),
    /// Nothing of a run's tree is left; whether somebody had outlived its process.
    Vacated(RunId),
    /// The end of a run is on record.
    Finished(RunId),
    /// Somebody who may wants it ended.
    Cancel(RunId, oneshot::Sender<Standing>),
    /// A granted request about a supervised program.
    Ask(Ask, Box<Order>, Waiter),
    /// Somebody who may sends the program's process a signal; whether there is one.
    Signal(ProgramName, i32, oneshot::Sender<bool>),
    /// The process of a program is ready.
    Ready(ProgramName, RunId),
    /// The process of a program has not been heard of for too long.
    Hung(ProgramName, RunId),
    /// Supervision begins: what was wanted of programs before this daemon came.
    Supervise(Box<Wanted>),
    /// Somebody wants to see a run that may be live, and to be told its end.
    Watch(RunId, Waiter, oneshot::Sender<Option<Waiter>>),
    /// Somebody wants to see the next process of a supervised program, after this run.
    Next(ProgramName, RunId, Waiter),
    /// The state of these programs' lanes.
    Lanes(Vec<ProgramName>, oneshot::Sender<Vec<LaneState>>),
    /// Nobody came for the input of a run that a former daemon started.
    CloseStdin(RunId),
    /// The keeper is gone: this process takes its place.
    KeeperGone(Box<Saved>),
    /// It is time to delete what is too old.
    Sweep,
    /// A new configuration is in force.
    Reloaded(Arc<InForce>),
    /// Stop: nothing new; live runs may go on for a while.
    ShutDown(Duration),
}

/// What a daemon knows of supervised programs when it begins.
#[derive(Debug, Default)]
pub struct Wanted {
    /// What a former daemon was told: whether a program is to be up.
    pub known: BTreeMap<ProgramName, bool>,
    /// The keeper has just started: programs of the groups up to `do-autostart` come up.
    pub first: bool,
    /// The machine was started anew since then.
    pub rebooted: bool,
}

/// The state of a program, for lists.
#[derive(Debug, Clone, Default)]
pub struct LaneState {
    /// The live run, of a supervised program that of its process.
    pub run: Option<RunId>,
    /// How many requests wait.
    pub waiting: u64,
    /// A supervised program's state.
    pub service: Option<ServiceState>,
}

/// The state of a supervised program, for lists.
#[derive(Debug, Clone)]
pub struct ServiceState {
    /// `stopped`, `waiting`, `starting`, `running`, `stopping`, `backoff` or `failed`.
    pub word: &'static str,
    /// Its process.
    pub pid: Option<i32>,
    /// Since when.
    pub since: Option<Moment>,
    /// How often it was started again by itself.
    pub restarts: u64,
    /// How its former process ended, and when.
    pub last: Option<(Exit, Moment)>,
    /// When it is started again.
    pub next: Option<Duration>,
    /// It is not configured any more.
    pub lingering: bool,
    /// Its settings have changed since it was started.
    pub outdated: bool,
    /// All its processes.
    pub tree: Option<Arc<Tree>>,
}

/// A granted request, and what its row will say.
#[derive(Debug, Clone)]
pub struct Order {
    /// The program.
    pub program: ProgramName,
    /// Its settings when it was granted.
    pub spec: Arc<Program>,
    /// The action.
    pub action: ActionName,
    /// Who asked.
    pub by: By,
    /// Why.
    pub reason: Option<String>,
    /// Checked inputs, defaults included.
    pub inputs: BTreeMap<String, String>,
    /// Arguments.
    pub args: Vec<String>,
    /// uid and the client's own name of the request.
    pub key: Option<String>,
    /// When it came.
    pub requested_at: Moment,
    /// The process of the supervised program, for the script.
    pub pid: Option<i32>,
    /// Where its output will be seen, if it is to have a terminal of its own.
    pub terminal: Option<Terminal>,
    /// Further variables of its environment.
    pub more: Vec<(String, String)>,
}

impl Order {
    /// Whether its process is that of a supervised program.
    #[must_use]
    pub fn is_service(&self) -> bool {
        self.spec.is_supervised() && matches!(self.action.as_str(), "start" | "restart")
    }

    /// How large its terminal is to be.
    #[must_use]
    pub fn terminal_size(&self) -> Size {
        self.terminal.as_ref().map_or_else(Size::default, |t| Size {
            rows: t.rows,
            cols: t.cols,
        })
    }

    /// Of what kind it is to be.
    #[must_use]
    pub fn terminal_kind(&self) -> &str {
        let kind = self.terminal.as_ref().and_then(|t| t.kind.as_deref());
        kind.unwrap_or("dumb")
    }

    /// The action whose user it runs as: all that is done to code is done as one.
    #[must_use]
    pub fn right(&self) -> &ActionName {
        static UPDATE: std::sync::LazyLock<ActionName> =
            std::sync::LazyLock::new(ActionName::update);
        match code::is_about(&self.spec, &self.action) {
            true => &UPDATE,
            false => &self.action,
        }
    }

    /// Whether it has a terminal of its own.
    #[must_use]
    pub fn has_tty(&self) -> bool {
        self.spec.has_tty(&self.action) && !code::is_about(&self.spec, &self.action)
    }

    /// Where it waits its turn. The processes of a supervised program share one lane, whichever
    /// of its commands made them.
    #[must_use]
    pub fn lane(&self) -> LaneName {
        if self.is_service() {
            return LaneName::new(&self.program, &ActionName::start());
        }
        // What is done to code is done one after the other, too.
        LaneName::new(&self.program, self.right())
    }
}

/// Somebody who waits for the outcome of a request.
#[derive(Debug)]
pub struct Waiter {
    /// Which request; the actor fills it in.
    pub request: RunId,
    /// Where it is told.
    pub notices: Notices,
    /// It has input for the run.
    pub stdin: bool,
    /// That is for a terminal, at which somebody else may sit.
    pub joins: bool,
    /// It wants to know that it is accepted, and no more.
    pub detach: bool,
    /// It speaks the plain protocol: displaced means gone.
    pub plain: bool,
}

impl Waiter {
    /// Somebody who only looks on.
    #[must_use]
    pub fn onlooker(request: RunId, notices: Notices) -> Self {
        Self {
            request,
            notices,
            stdin: false,
            joins: false,
            detach: false,
            plain: false,
        }
    }

    fn tell(&self, notice: Notice) {
        // A client that has left is not told anything; its run is not concerned.
        let _ = self.notices.send(notice);
    }

    fn reply(&self, reply: Reply) {
        self.tell(Notice::Reply(Box::new(reply)));
    }

    fn last(&self, reply: Reply) {
        self.tell(Notice::Final(Box::new(reply)));
    }
}

/// What the actor knows of a request that has no final answer yet.
#[derive(Debug)]
struct Entry {
    order: Box<Order>,
    stage: Stage,
}

/// A run that ended under a former daemon, see [`Actor::adopt_ended`].
#[derive(Debug)]
struct Late {
    order: Box<Order>,
    started_at: Moment,
    run: Box<LiveRun>,
    exit: Option<Exit>,
    closed: Option<Closed>,
    waiters: Vec<Waiter>,
}

/// How far a request has come. The engine decides; this is what goes with its decision.
#[derive(Debug)]
enum Stage {
    /// On its way into the history. Its first waiter is kept here.
    Recording(Option<Waiter>),
    /// In its lane's queue, or displaced there.
    Waiting,
    /// Being spawned.
    Starting {
        started_at: Moment,
        waiters: Vec<Waiter>,
    },
    /// Alive.
    Live {
        started_at: Moment,
        waiters: Vec<Waiter>,
        run: Box<LiveRun>,
        closed: Option<Closed>,
        ended: bool,
    },
}

/// See the module's documentation.
pub struct Actor {
    engine: Engine,
    hands: Hands,
    in_force: Arc<InForce>,
    next_id: u64,
    entries: HashMap<RunId, Entry>,
    /// Who waits in which lane, in the order of the requests.
    waiting: HashMap<LaneName, VecDeque<Waiter>>,
    /// The number of the last run a lane started: what was displaced after it is covered by the next.
    last_started: HashMap<LaneName, RunId>,
    /// Runs that ended under a former daemon.
    late: HashMap<RunId, Late>,
    /// The request that is being admitted, if it is on record as started.
    started_early: Option<(RunId, Moment)>,
    /// Requests that go on record as started, by the idle lane that they came for.
    early: HashMap<LaneName, (RunId, Moment)>,
    /// Requests that waited for a former daemon: who was displaced by them is only on record.
    readmitted: HashSet<RunId>,
    /// Runs that are over, whose end is not on record yet.
    unrecorded: HashMap<RunId, Box<LiveRun>>,
    /// When ends that were not recorded with anything else are to be.
    settle_at: Option<Instant>,
    /// When the keeper is to be told of runs that it may forget.
    forget_at: Option<Instant>,
    effects: Vec<Effect>,
    services: Services,
    /// The process of each supervised program.
    processes: HashMap<ProgramName, RunId>,
    /// The newest process that each had.
    newest: HashMap<ProgramName, RunId>,
    /// Who wants to see the next process of a program.
    onlookers: HashMap<ProgramName, Vec<Waiter>>,
    /// Runs that end well when the process of a program is ready.
    questions: HashMap<RunId, (ProgramName, RunId)>,
    /// What each was started with last: it is started again with the same.
    asked: HashMap<ProgramName, Box<Order>>,
    /// Who stopped each last, for its script.
    asked_to_stop: HashMap<ProgramName, Box<Order>>,
    /// By which action, and of whom, the process of each is to end.
    halted_by: HashMap<ProgramName, (ActionName, String)>,
    /// How the last process of each ended.
    last_exits: HashMap<ProgramName, (Exit, Moment)>,
    /// Why a process could not be made.
    trouble: HashMap<ProgramName, SpawnFailure>,
    /// Who waits for a supervised program.
    tickets: HashMap<Ticket, (ProgramName, Waiter)>,
    next_ticket: Ticket,
    /// Whether programs are to be up.
    wanted: BTreeMap<ProgramName, bool>,
    stopping: bool,
}

impl Actor {
    /// An actor whose first new request gets the number `next_id`.
    pub fn new(hands: Hands, in_force: Arc<InForce>, next_id: u64) -> Self {
        Self {
            engine: Engine::new(),
            hands,
            in_force,
            next_id,
            entries: HashMap::new(),
            waiting: HashMap::new(),
            last_started: HashMap::new(),
            late: HashMap::new(),
            started_early: None,
            early: HashMap::new(),
            readmitted: HashSet::new(),
            unrecorded: HashMap::new(),
            settle_at: None,
            forget_at: None,
            effects: Vec::new(),
            services: Services::default(),
            processes: HashMap::new(),
            questions: HashMap::new(),
            newest: HashMap::new(),
            onlookers: HashMap::new(),
            asked: HashMap::new(),
            asked_to_stop: HashMap::new(),
            halted_by: HashMap::new(),
            last_exits: HashMap::new(),
            trouble: HashMap::new(),
            tickets: HashMap::new(),
            next_ticket: 1,
            wanted: BTreeMap::new(),
            stopping: false,
        }
    }

    /// Works until the daemon was told to stop and everything is over and on record.
    pub async fn work(mut self, mut inbox: mpsc::UnboundedReceiver<Msg>) {
        loop {
            let deadlines = [
                self.engine.deadline(),
                self.services.deadline(),
                self.settle_at,
                self.forget_at,
            ];
            let deadline = deadlines.into_iter().flatten().min();
            let deadline = deadline.map(tokio::time::Instant::from_std);
            let tick = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                msg = inbox.recv() => match msg {
                    Some(msg) => self.handle(msg),
                    None => return,
                },
                () = tick => {
                    self.feed(Event::Ticked);
                    self.supervise(ServiceEvent::Ticked);
                    if self.settle_at.is_some_and(|at| at <= Instant::now()) {
                        self.settle();
                    }
                    if self.forget_at.is_some_and(|at| at <= Instant::now()) {
                        self.forget_at = None;
                        self.hands.forget_all();
                    }
                }
            }
            if self.stopping
                && self.engine.is_idle()
                && self.entries.is_empty()
                && self.tickets.is_empty()
                && self.late.is_empty()
                && self.unrecorded.is_empty()
            {
                return;
            }
        }
    }

    /// Takes over a run that a former daemon started. Only before [`Actor::work`].
    pub fn adopt(
        &mut self,
        id: RunId,
        order: Order,
        mut run: Box<LiveRun>,
        started_at: Moment,
        stop_at: Option<Instant>,
    ) {
        let terms = terms_of(&order);
        let lane = order.lane();
        self.last_started.insert(lane.clone(), id);
        if order.is_service() {
            self.processes.insert(order.program.clone(), id);
            let policy = policy_of(&order.spec);
            let program = order.program.clone();
            self.asked.insert(program.clone(), Box::new(order.clone()));
            self.supervise(ServiceEvent::Adopted {
                program: program.clone(),
                policy,
            });
            if self.in_force.config.lingering.contains_key(&program) {
                self.supervise(ServiceEvent::Reconfigured {
                    program: program.clone(),
                    policy: None,
                });
            }
        }
        let closed = run.without_output();
        let signs = run.signs.take();
        self.hands.attend(id, &mut run);
        let stage = Stage::Live {
            started_at,
            waiters: Vec::new(),
            run,
            closed,
            ended: false,
        };
        self.entries.insert(
            id,
            Entry {
                order: Box::new(order),
                stage,
            },
        );
        self.heed(id, signs);
        self.feed(Event::Adopted {
            run: id,
            lane,
            terms,
            stop_at,
        });
    }

    /// Takes over a run whose process had ended before its lane went on, but whose end is not on
    /// record: that is all that is left to do. Only before [`Actor::work`].
    pub fn adopt_ended(
        &mut self,
        id: RunId,
        order: Order,
        mut run: Box<LiveRun>,
        started_at: Moment,
    ) {
        let closed = run.without_output();
        self.hands.attend(id, &mut run);
        let closed = closed.or_else(|| run.closing.ask().map(tell_viewers));
        let late = Late {
            order: Box::new(order),
            started_at,
            run,
            exit: None,
            closed,
            waiters: Vec::new(),
        };
        self.late.insert(id, late);
    }

    /// Puts the end of such a run on record when all of it is known.
    fn settle_late(&mut self, id: RunId) {
        let known = self
            .late
            .get(&id)
            .is_some_and(|l| l.exit.is_some() && l.closed.is_some());
        let Some(late) = known.then(|| self.late.remove(&id)).flatten() else {
            return;
        };
        let ending = Ending::Exited(late.exit.unwrap_or(Exit::Unknown));
        let Late {
            order,
            started_at,
            run,
            closed,
            waiters,
            ..
        } = late;
        let stage = Stage::Live {
            started_at,
            waiters,
            run,
            closed,
            ended: true,
        };
        self.entries.insert(id, Entry { order, stage });
        self.finish(id, ending);
    }

    /// Remembers which run a lane has started last. Only before [`Actor::work`].
    pub fn note_last_started(&mut self, lane: LaneName, id: RunId) {
        self.last_started.insert(lane, id);
    }

    /// Lets a request wait again that a former daemon had accepted. Only before [`Actor::work`],
    /// in the order of their numbers, after what is alive was adopted.
    pub fn readmit(&mut self, id: RunId, order: Order) {
        let terms = terms_of(&order);
        let lane = order.lane();
        self.readmitted.insert(id);
        self.entries.insert(
            id,
            Entry {
                order: Box::new(order),
                stage: Stage::Waiting,
            },
        );
        self.feed(Event::Admitted {
            run: id,
            lane,
            terms,
        });
    }

    fn handle(&mut self, msg: Msg) {
        match msg {
            Msg::Run(order, waiter) => self.receive(order, waiter),
            Msg::Recorded(run, result) => self.recorded(run, result),
            Msg::Known(waiter, row) => self.known(waiter, *row),
            Msg::Spawned(run, Ok(live)) => self.spawned(run, live),
            Msg::Spawned(run, Err(failure)) => self.not_spawned(run, &failure),
            Msg::Exited(run, exit) => self.exited(run, exit),
            Msg::Closed(run, silence) => self.closed(run, tell_viewers(silence)),
            Msg::Vacated(run) => self.feed(Event::Vacated { run }),
            Msg::Finished(run) => {
                if let Some(live) = self.unrecorded.remove(&run) {
                    self.hands.release(run, *live);
                    self.forget_at
                        .get_or_insert_with(|| Instant::now() + FORGET);
                }
            }
            Msg::Cancel(run, answer) => {
                let standing = self.engine.standing(run);
                let service = self.entries.get(&run).filter(|e| e.order.is_service());
                match service.map(|e| (e.order.program.clone(), policy_of(&e.order.spec))) {
                    // It would be started again.
                    Some((program, policy)) => self.supervise(ServiceEvent::Asked {
                        program,
                        ask: Ask::Stop,
                        ticket: None,
                        policy,
                    }),
                    None => self.feed(Event::CancelRequested { run }),
                }
                let _ = answer.send(standing);
            }
            Msg::Watch(run, waiter, answer) => {
                let left = self.watch(run, waiter);
                let _ = answer.send(left);
            }
            Msg::Lanes(names, answer) => {
                let states = names.iter().map(|name| self.state_of(name));
                let _ = answer.send(states.collect());
            }
            Msg::Next(program, after, waiter) => self.show_next(program, after, waiter),
            Msg::Ask(ask, order, waiter) => self.ask(ask, order, waiter),
            Msg::Signal(program, signal, answer) => {
                let live = self.process_of(&program);
                let pidfd = live.and_then(|(_, live)| live.pidfd.clone());
                if let Some(pidfd) = &pidfd {
                    crate::sys::process::signal(pidfd, signal);
                }
                let _ = answer.send(pidfd.is_some());
            }
            Msg::Ready(program, run) => {
                if self.processes.get(&program) == Some(&run) {
                    self.supervise(ServiceEvent::Ready { program });
                }
            }
            Msg::Hung(program, run) => {
                if let Some((entry, live)) = self.process_of(&program)
                    && self.processes.get(&program) == Some(&run)
                {
                    let time = entry.order.spec.watchdog.unwrap_or_default();
                    error!("{program} has not been heard of for {time:?}, and is ended");
                    self.hands.kill(run, live, true);
                }
            }
            Msg::Supervise(wanted) => self.begin_supervision(*wanted),
            Msg::CloseStdin(run) => {
                if let Some(Entry {
                    stage: Stage::Live { run: live, .. },
                    ..
                }) = self.entries.get_mut(&run)
                    && live.stdin.take().is_some()
                {
                    self.hands.unpark_stdin(run);
                }
            }
            Msg::KeeperGone(saved) => self.replace_keeper(*saved),
            Msg::Sweep => {
                let lanes = self.entries.values().map(|e| e.order.lane());
                let live = lanes.filter_map(|lane| self.engine.current(&lane));
                let live = live.chain(self.unrecorded.keys().copied()).collect();
                self.hands.sweep(live);
            }
            Msg::Reloaded(in_force) => self.reloaded(in_force),
            Msg::ShutDown(patience) => {
                self.stopping = true;
                self.settle();
                for waiter in self.onlookers.drain().flat_map(|(_, waiters)| waiters) {
                    waiter.last(refusal(ErrorCode::Stopping, "the daemon is stopping"));
                }
                self.supervise(ServiceEvent::ShutdownBegan);
                self.feed(Event::ShutdownBegan {
                    stop_at: Instant::now() + patience,
                });
            }
        }
    }

    fn receive(&mut self, order: Box<Order>, waiter: Waiter) {
        if self.stopping {
            return waiter.last(refusal(
                ErrorCode::Stopping,
                "the daemon is stopping; ask again when it is back",
            ));
        }
        if !terms_of(&order).coalesce && self.engine.waiting(&order.lane()) >= QUEUE_MAX {
            let message = format!(
                "busy: {QUEUE_MAX} requests wait for {} already; try again later",
                order.program
            );
            return waiter.last(refusal(ErrorCode::Busy, &message));
        }
        self.register(order, Some(waiter));
    }

    /// Gives a request its number, and has it put on record.
    fn register(&mut self, mut order: Box<Order>, mut waiter: Option<Waiter>) -> RunId {
        // What is recorded now takes along the ends that are not recorded yet.
        self.settle_at = None;
        let id = RunId(self.next_id);
        self.next_id += 1;
        let mut stdin = false;
        if let Some(waiter) = &mut waiter {
            waiter.request = id;
            stdin = waiter.stdin && !waiter.detach;
        }
        if !order.is_service() {
            order.pid = self.process_of(&order.program).map(|(_, live)| live.pid);
        }
        // Its lane is idle, and nobody is on the way into it: it goes on record as started.
        let lane = order.lane();
        let idle = self.engine.current(&lane).is_none();
        let started_at = (idle && !self.early.contains_key(&lane)).then(Moment::now);
        if let Some(at) = started_at {
            self.early.insert(lane, (id, at));
        }
        self.hands.insert(new_run(id, &order, started_at));
        if started_at.is_some() {
            self.hands.prepare(id, &order, stdin);
        }
        self.entries.insert(
            id,
            Entry {
                order,
                stage: Stage::Recording(waiter),
            },
        );
        id
    }

    fn recorded(&mut self, id: RunId, result: Result<(), StoreError>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let Stage::Recording(waiter) = &mut entry.stage else {
            return;
        };
        let lane = entry.order.lane();
        let early = self
            .early
            .get(&lane)
            .filter(|(first, _)| *first == id)
            .copied();
        if early.is_some() {
            self.early.remove(&lane);
        }
        // Off the record it is not on record as started either.
        self.started_early = early.filter(|_| result.is_ok());
        match result {
            Err(StoreError::Duplicate(_)) => {
                // The repeat of a request whose answer was lost: it gets the answer of the first.
                let (key, waiter) = (entry.order.key.clone().unwrap_or_default(), waiter.take());
                self.hands.abandon(id);
                self.entries.remove(&id);
                if let Some(waiter) = waiter {
                    self.hands.find(key, waiter);
                }
                return;
            }
            Err(e) if self.in_force.config.global.record_failure == RecordFailure::Refuse => {
                warn!(
                    "a request for {} cannot be recorded: {e}",
                    entry.order.program
                );
                if let Some(waiter) = waiter.take() {
                    let message = format!(
                        "the request cannot be recorded, so nothing was run: {}",
                        chain(&e)
                    );
                    waiter.last(refusal(ErrorCode::NotRecorded, &message));
                }
                self.hands.abandon(id);
                if let Some(entry) = self.entries.remove(&id)
                    && entry.order.is_service()
                {
                    let message = format!(
                        "it cannot be recorded, so it was not started: {}",
                        chain(&e)
                    );
                    self.not_up(&entry.order.program, SpawnFailure { message, status: 1 });
                }
                return;
            }
            Err(e) => {
                let program = &entry.order.program;
                warn!("run {id} of {program} is not on record yet: {}", chain(&e));
                self.hands.insert_later(new_run(id, &entry.order, None));
            }
            Ok(()) => {}
        }
        let waiter = waiter.take();
        entry.stage = Stage::Waiting;
        let terms = terms_of(&entry.order);
        if let Some(waiter) = waiter {
            if waiter.detach {
                waiter.last(Reply::Accepted {
                    id: id.0,
                    behind: self.behind(&lane),
                });
            } else {
                self.waiting
                    .entry(lane.clone())
                    .or_default()
                    .push_back(waiter);
            }
        }
        self.feed(Event::Admitted {
            run: id,
            lane,
            terms,
        });
    }

    /// A repeated request: its waiter joins those of the first one, or of what covers that.
    fn known(&mut self, mut waiter: Waiter, row: Option<Row>) {
        let Some(row) = row else {
            let gone = "the request was made before, and its record is gone";
            return waiter.last(refusal(ErrorCode::Failed, gone));
        };
        if waiter.request == RunId(0) {
            waiter.request = row.id;
        }
        if waiter.detach {
            let id = waiter.request.0;
            return waiter.last(Reply::Accepted { id, behind: None });
        }
        let Some(waiter) = self.watch(row.id, waiter) else {
            return;
        };
        match row.covered_by {
            Some(by) if row.outcome == Outcome::Superseded => {
                let Some(waiter) = self.watch(by, waiter) else {
                    return;
                };
                // Displaced by what was displaced itself: the next one in the queue covers both.
                let lane = lane_of_row(&row);
                let next = lane.and_then(|lane| self.engine.next_after(&lane, by));
                match next {
                    Some(next) if self.last_started_before(&row, by) => {
                        if let Some(waiter) = self.watch(next, waiter) {
                            self.hands.answer_from_history(next, waiter);
                        }
                    }
                    _ => self.hands.answer_from_history(by, waiter),
                }
            }
            _ => self.hands.answer_from_history(row.id, waiter),
        }
    }

    /// Whether no run of the program has started since `request` came.
    fn last_started_before(&self, row: &Row, request: RunId) -> bool {
        let lane = lane_of_row(row);
        lane.and_then(|lane| self.last_started.get(&lane))
            .is_none_or(|last| *last < request)
    }

    /// Lets somebody wait for the end of `run`; gives the waiter back if there is nothing to wait for.
    fn watch(&mut self, run: RunId, waiter: Waiter) -> Option<Waiter> {
        if let Some(late) = self.late.get_mut(&run) {
            late.waiters.push(waiter);
            return None;
        }
        let Some(entry) = self.entries.get_mut(&run) else {
            return Some(waiter);
        };
        match &mut entry.stage {
            Stage::Recording(_) => return Some(waiter),
            Stage::Waiting => {
                let lane = entry.order.lane();
                waiter.reply(Reply::Accepted {
                    id: waiter.request.0,
                    behind: self.behind(&lane),
                });
                let queue = self.waiting.entry(lane).or_default();
                let place = queue.partition_point(|w| w.request <= waiter.request);
                queue.insert(
                    place,
                    Waiter {
                        request: run,
                        ..waiter
                    },
                );
            }
            Stage::Starting { .. } if waiter.joins && !entry.order.has_tty() => {
                waiter.last(no_terminal(run));
                return None;
            }
            Stage::Starting { waiters, .. } => waiters.push(waiter),
            Stage::Live {
                waiters, run: live, ..
            } => {
                if waiter.joins && live.terminal.is_none() {
                    waiter.last(no_terminal(run));
                    return None;
                }
                let stdin = match waiter.stdin && waiter.request == run {
                    true => live.input(waiter.joins),
                    false => None,
                };
                if let Some(Input::Pipe(_)) = stdin {
                    self.hands.unpark_stdin(run);
                }
                waiter.tell(Notice::Started {
                    run,
                    request: waiter.request,
                    log: Arc::clone(&live.log),
                    stdin,
                });
                waiters.push(waiter);
            }
        }
        None
    }

    fn behind(&self, lane: &LaneName) -> Option<Behind> {
        let id = self.engine.current(lane)?;
        let entry = self.entries.get(&id)?;
        let since = match &entry.stage {
            Stage::Starting { started_at, .. } | Stage::Live { started_at, .. } => {
                Some(started_at.rfc3339())
            }
            Stage::Recording(_) | Stage::Waiting => None,
        };
        Some(Behind {
            id: id.0,
            user: entry.order.by.user.clone(),
            since,
        })
    }

    fn spawned(&mut self, id: RunId, mut live: Box<LiveRun>) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let Stage::Starting {
            started_at,
            waiters,
        } = &mut entry.stage
        else {
            return;
        };
        let onlookers = match entry.order.is_service() {
            true => self.onlookers.remove(&entry.order.program),
            false => None,
        };
        if entry.order.is_service() {
            self.newest.insert(entry.order.program.clone(), id);
        }
        for mut waiter in onlookers.into_iter().flatten() {
            waiter.request = id;
            waiters.push(waiter);
        }
        let had_stdin = live.stdin.is_some();
        for waiter in waiters.iter() {
            let stdin = match waiter.stdin && waiter.request == id {
                true => live.input(waiter.joins),
                false => None,
            };
            waiter.tell(Notice::Started {
                run: id,
                request: waiter.request,
                log: Arc::clone(&live.log),
                stdin,
            });
        }
        if had_stdin {
            // Its client may have left meanwhile: then the run's input is at its end.
            drop(live.stdin.take());
            self.hands.unpark_stdin(id);
        }
        info!(
            pid = live.pid,
            "run {id} of {} started for {}", entry.order.program, entry.order.by.user
        );
        let events = &self.hands.events;
        events.tell(&entry.order.program, Some(id), Outcome::Running.as_str());
        let (started_at, waiters) = (*started_at, std::mem::take(waiters));
        let signs = live.signs.take();
        self.hands.attend(id, &mut live);
        entry.stage = Stage::Live {
            started_at,
            waiters,
            run: live,
            closed: None,
            ended: false,
        };
        let service = entry
            .order
            .is_service()
            .then(|| entry.order.program.clone());
        self.feed(Event::Started { run: id });
        if let Some(program) = service {
            self.supervise(ServiceEvent::Started {
                program: program.clone(),
            });
            self.await_ready(program, id, signs);
        } else {
            self.heed(id, signs);
        }
    }

    fn not_spawned(&mut self, id: RunId, failure: &SpawnFailure) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        warn!(
            "run {id} of {} could not be started: {}",
            entry.order.program, failure.message
        );
        self.hands.spawn_failed(id, &entry.order.program, failure);
        if entry.order.is_service() {
            let program = entry.order.program.clone();
            self.trouble.insert(program, failure.clone());
        }
        self.feed(Event::SpawnFailed { run: id });
    }

    fn exited(&mut self, id: RunId, exit: Exit) {
        if let Some(late) = self.late.get_mut(&id) {
            late.exit = Some(exit);
            self.hands.drain(id);
            return self.settle_late(id);
        }
        let Some(Entry {
            stage: Stage::Live {
                closed, ended, run, ..
            },
            ..
        }) = self.entries.get_mut(&id)
        else {
            return;
        };
        *ended = true;
        if closed.is_none() {
            *closed = run.closing.ask().map(tell_viewers);
        }
        let drained = closed.is_some();
        if !drained {
            self.hands.drain(id);
        }
        self.feed(Event::Ended { run: id, exit });
        if drained {
            self.feed(Event::Drained { run: id });
        }
    }

    fn closed(&mut self, id: RunId, report: Closed) {
        if let Some(late) = self.late.get_mut(&id) {
            late.closed = Some(report);
            return self.settle_late(id);
        }
        let Some(Entry {
            stage: Stage::Live { closed, ended, .. },
            ..
        }) = self.entries.get_mut(&id)
        else {
            return;
        };
        *closed = Some(report);
        if *ended {
            self.feed(Event::Drained { run: id });
        }
    }

    /// One event for the engine, and all that follows from it.
    fn feed(&mut self, event: Event) {
        let mut effects = std::mem::take(&mut self.effects);
        self.engine.handle(Instant::now(), event, &mut effects);
        for effect in effects.drain(..) {
            self.perform(effect);
        }
        self.effects = effects;
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Start { run, covers } => self.start(run, &covers),
            Effect::Wait { run } => self.wait(run),
            Effect::Supersede { run, by } => self.supersede(run, by),
            Effect::Revive { run, from: _ } => self.hands.waiting(run),
            Effect::Stop { run } => self.with_live(run, |hands, live, order| {
                if order.spec.kill_mode == KillMode::None {
                    return;
                }
                let tree = order.spec.kill_mode == KillMode::Tree;
                hands.stop(run, live, order.spec.stop_signal, tree);
                // A shell at which somebody sits takes no notice of SIGTERM.
                if live.terminal.is_some() && !order.is_service() {
                    hands.stop(run, live, libc::SIGHUP, tree);
                }
            }),
            Effect::Kill { run } => self.with_live(run, |hands, live, order| {
                // Nothing outlives the daemon.
                if order.spec.kill_mode != KillMode::None || self.stopping {
                    hands.kill(run, live, order.spec.kill_mode == KillMode::Tree);
                }
            }),
            Effect::Watch { run } => self.with_live(run, |hands, live, _| hands.watch(run, live)),
            Effect::Finish { run, ending } => self.finish(run, ending),
        }
    }

    fn with_live(&self, id: RunId, act: impl FnOnce(&Hands, &LiveRun, &Order)) {
        if let Some(Entry {
            stage: Stage::Live { run, .. },
            order,
        }) = self.entries.get(&id)
        {
            act(&self.hands, run, order);
        }
    }

    fn wait(&mut self, id: RunId) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let lane = entry.order.lane();
        let events = &self.hands.events;
        events.tell(&lane.program, Some(id), Outcome::Waiting.as_str());
        let behind = self.behind(&lane);
        let Some(waiter) = self
            .waiting
            .get(&lane)
            .and_then(|q| q.back())
            .filter(|w| w.request == id)
        else {
            return;
        };
        waiter.reply(Reply::Accepted { id: id.0, behind });
        self.hands.outlook(&lane, waiter.notices.clone());
    }

    fn supersede(&mut self, id: RunId, by: RunId) {
        self.hands.superseded(id, by, Moment::now());
        let Some(lane) = self.entries.get(&id).map(|e| e.order.lane()) else {
            return;
        };
        let events = &self.hands.events;
        events.tell(&lane.program, Some(id), Outcome::Superseded.as_str());
        let Some(queue) = self.waiting.get_mut(&lane) else {
            return;
        };
        // Those of older requests were told before.
        let first = queue.partition_point(|w| w.request < id);
        let end = queue.partition_point(|w| w.request <= id);
        for waiter in queue.range(first..end) {
            waiter.reply(Reply::Displaced);
        }
        if queue.range(first..end).any(|w| w.plain) {
            queue.retain(|w| w.request != id || !w.plain);
        }
        if queue.len() > 64 && queue.len().is_power_of_two() {
            queue.retain(|w| !w.notices.is_closed());
        }
    }

    fn start(&mut self, id: RunId, covers: &[RunId]) {
        for covered in covers {
            self.entries.remove(covered);
        }
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let lane = entry.order.lane();
        let mut waiters = Vec::new();
        if let Some(queue) = self.waiting.get_mut(&lane) {
            let end = queue.partition_point(|w| w.request <= id);
            waiters = queue
                .drain(..end)
                .filter(|w| !w.notices.is_closed())
                .collect();
            if queue.is_empty() {
                self.waiting.remove(&lane);
            }
        }
        let previous = self.last_started.insert(lane.clone(), id);
        let early = self.started_early.take().filter(|(first, _)| *first == id);
        let started_at = match early {
            Some((_, at)) => at,
            None => {
                let at = Moment::now();
                // What was displaced since the lane's previous run is covered by this one.
                let covering = !covers.is_empty() || self.readmitted.remove(&id);
                let covers_after = covering.then_some(previous).flatten();
                self.hands.started(id, at, covers_after);
                at
            }
        };
        // What is in force now counts, not what was when the request came.
        let action = &entry.order.action;
        let offered = |spec: &Arc<Program>| {
            // What was removed does not turn into a script of the same name.
            match code::is_about(&entry.order.spec, action) {
                true => code::is_about(spec, action),
                false => {
                    entry.order.spec.command(action).is_none() || spec.command(action).is_some()
                }
            }
        };
        let program = self
            .in_force
            .program(&lane.program, entry.order.spec.line > 0);
        match program.filter(offered) {
            Some(spec) => entry.order.spec = spec,
            None => {
                entry.stage = Stage::Starting {
                    started_at,
                    waiters,
                };
                let message = format!(
                    "{} {} was removed from the configuration while the request waited",
                    lane.program, lane.action
                );
                return self.hands.fail(
                    id,
                    SpawnFailure {
                        message,
                        status: 127,
                    },
                );
            }
        }
        let stdin = waiters.iter().any(|w| w.request == id && w.stdin);
        self.hands.spawn(id, &entry.order, stdin);
        entry.stage = Stage::Starting {
            started_at,
            waiters,
        };
    }

    fn finish(&mut self, id: RunId, ending: Ending) {
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        self.hands.abandon(id);
        let ended_at = Moment::now();
        let (outcome, exit_code, signal) = outcome_of(ending);
        let mut finish = Finish {
            outcome,
            exit_code,
            signal,
            ended_at: ended_at.nanos(),
            bytes: 0,
            dropped: 0,
            leftovers: false,
            detail: None,
        };
        let order = entry.order;
        let (started_at, waiters, live) = match entry.stage {
            Stage::Live {
                started_at,
                waiters,
                run,
                closed,
                ..
            } => {
                if let Some(report) = closed {
                    finish.bytes = report.bytes;
                    finish.dropped = report.dropped;
                    finish.leftovers = report.leftover;
                }
                finish.leftovers |= run.has_leftovers();
                (Some(started_at), waiters, Some(run))
            }
            Stage::Starting { waiters, .. } => {
                let failure = self.hands.take_failure(id);
                finish.exit_code = failure.as_ref().map(|f| f.status);
                finish.detail = failure.map(|f| f.message);
                (None, waiters, None)
            }
            Stage::Waiting | Stage::Recording(_) => {
                let waiters = match self.waiting.get_mut(&order.lane()) {
                    None => Vec::new(),
                    Some(queue) => {
                        let first = queue.partition_point(|w| w.request < id);
                        let end = queue.partition_point(|w| w.request <= id);
                        queue.drain(first..end).collect()
                    }
                };
                finish.detail = match ending {
                    Ending::Withdrawn(StopReason::Shutdown) => {
                        Some("the daemon stopped before its turn came".into())
                    }
                    _ => None,
                };
                (None, waiters, None)
            }
        };
        if order.is_service() {
            // It may have ended before anybody had to end it.
            let by = self.halted_by.remove(&order.program);
            if let Ending::Stopped(StopReason::Halted, _) = ending {
                finish.detail = by.map(|(action, user)| format!("ended by `{action}` of {user}"));
            }
        }
        info!("run {id} of {}: {}", order.program, outcome.as_str());
        let events = &self.hands.events;
        events.tell(&order.program, Some(id), outcome.as_str());
        let row = finished_row(id, &order, started_at, &finish);
        let message = Box::new(super::rows::message(&row));
        for waiter in waiters {
            let request = (waiter.request != id).then_some(waiter.request.0);
            waiter.last(Reply::Ended {
                run: message.clone(),
                request,
            });
        }
        if let Some((program, of)) = self.questions.remove(&id)
            && finish.outcome == Outcome::Succeeded
            && self.processes.get(&program) == Some(&of)
        {
            self.supervise(ServiceEvent::Ready { program });
        }
        if finish.outcome == Outcome::Succeeded
            && code::is_about(&order.spec, &order.action)
            && order
                .spec
                .source
                .as_ref()
                .is_some_and(|s| s.after != AfterUpdate::Nothing)
        {
            let _ = self.hands.updated.send((order.program.clone(), id));
        }
        let began = live.is_some();
        if let Some(live) = live {
            self.unrecorded.insert(id, live);
        }
        self.record_end(id, &order, finish, began);
        self.notify(&order, &row);
        let service = order.is_service().then(|| order.program.clone());
        if let Some(program) = service {
            self.process_over(id, program, ending, began, ended_at);
        }
    }

    /// Begins what is to be done about the end of a run.
    fn notify(&mut self, order: &Order, row: &Row) {
        let own = keys::is_notice(order.action.as_str()) || order.action == ActionName::ready();
        if own || self.stopping {
            return;
        }
        let [failure, success, fixed] = keys::NOTICES.map(|notice| {
            let action = ActionName::new(notice).ok()?;
            order.spec.command(&action)?;
            Some(action)
        });
        let notice = |action: ActionName| {
            Box::new(Order {
                action,
                by: self.in_force.itself(),
                reason: Some(format!("run {} {}", row.id, row.outcome.as_str())),
                args: vec![row.id.to_string()],
                key: None,
                requested_at: Moment::now(),
                pid: None,
                terminal: None,
                more: super::rows::facts(row),
                ..order.clone()
            })
        };
        let now = match row.outcome {
            // That a supervised program was stopped is no success to speak of.
            Outcome::Succeeded if order.is_service() => None,
            Outcome::Succeeded => {
                if let Some(fixed) = fixed {
                    self.hands.if_fixed(row, notice(fixed));
                }
                success.map(notice)
            }
            Outcome::Failed
            | Outcome::Signalled
            | Outcome::TimedOut
            | Outcome::NotStarted
            | Outcome::Lost => failure.map(notice),
            Outcome::Waiting
            | Outcome::Running
            | Outcome::Cancelled
            | Outcome::Superseded
            | Outcome::Interrupted => None,
        };
        if let Some(order) = now {
            self.register(order, None);
        }
    }

    /// Puts the end of a run on record that clients are told of: soon, if the process that it
    /// leaves behind would tell another daemon the same.
    fn record_end(&mut self, id: RunId, order: &Order, finish: Finish, began: bool) {
        let actions = order.spec.commands.keys().cloned();
        let lanes = actions.chain([ActionName::run(), ActionName::start()]);
        let live = lanes.filter_map(|action| {
            let lane = LaneName::new(&order.program, &action);
            self.engine.current(&lane)
        });
        let live: Vec<RunId> = live.chain([id]).collect();
        let plain = finish.detail.is_none()
            && matches!(
                finish.outcome,
                Outcome::Succeeded | Outcome::Failed | Outcome::Signalled
            );
        self.hands.finished(id, order, finish, &live);
        if !(began && plain) || self.stopping {
            self.settle();
        } else if self.settle_at.is_none() {
            self.settle_at = Some(Instant::now() + SETTLE);
        }
    }

    /// Has all ends recorded that are not yet.
    fn settle(&mut self) {
        self.settle_at = None;
        self.hands.settle();
    }

    /// Executes this process as the keeper of its runs: they are its children and stay so.
    fn replace_keeper(&self, mut saved: Saved) {
        let live = self
            .entries
            .iter()
            .filter_map(|(id, entry)| match &entry.stage {
                Stage::Live { run, .. } => Some((id, run)),
                _ => None,
            });
        let late = self.late.iter().map(|(id, late)| (id, &late.run));
        for (id, run) in live.chain(&self.unrecorded).chain(late) {
            let fds = run
                .parked
                .iter()
                .chain(&run.stdin)
                .map(AsRawFd::as_raw_fd)
                .collect();
            saved.runs.push(SavedRun {
                run: id.0,
                pid: run.pid.cast_unsigned(),
                exit: None,
                fds,
            });
        }
        error!("the keeper is gone; this process takes its place, and starts a new daemon");
        error!(
            "that failed: {}",
            chain(&saved.execute(Path::new("/proc/self/exe")))
        );
        std::process::abort();
    }
}

fn no_terminal(run: RunId) -> Reply {
    let message = format!(
        "run {run} has no terminal (`tty = yes` gives it one); `deployer LOGS {run} -f` follows it"
    );
    refusal(ErrorCode::BadRequest, &message)
}

/// Lets the viewers of a log know that it is complete.
fn tell_viewers((report, viewers): Silence) -> Closed {
    viewers.send_replace(Progress {
        bytes: report.bytes,
        dropped: report.dropped,
        complete: true,
    });
    report
}

fn refusal(code: ErrorCode, message: &str) -> Reply {
    Reply::Error {
        code,
        message: message.to_owned(),
    }
}

/// What the engine has to know of an order.
pub fn terms_of(order: &Order) -> Terms {
    let spec = &order.spec;
    if order.is_service() {
        // It runs until it is stopped, and nothing of it stays behind.
        return Terms {
            coalesce: false,
            timeout: None,
            stop_timeout: spec.stop_timeout,
            leftovers: Leftovers::Kill,
            tree: spec.kill_mode == KillMode::Tree,
        };
    }
    Terms {
        // What somebody types is for one run alone.
        // A rollback is not an update.
        // Each notice is about another run.
        coalesce: spec.coalesce
            && !keys::is_notice(order.action.as_str())
            && order.terminal.is_none()
            && (!code::is_about(spec, &order.action)
                || (*order.right() == order.action && order.args.is_empty())),
        timeout: spec.timeout(&order.action),
        stop_timeout: spec.stop_timeout,
        leftovers: spec.leftovers,
        tree: spec.kill_mode == KillMode::Tree,
    }
}

/// How a process ended, behind its name.
pub fn said(exit: Exit) -> String {
    match exit {
        Exit::Code(code) => format!("exited with status {code}"),
        Exit::Signal(signal) => match nix::sys::signal::Signal::try_from(signal) {
            Ok(signal) => format!("was ended by {signal}"),
            Err(_) => format!("was ended by signal {signal}"),
        },
        Exit::Unknown => "ended, and nobody saw how".to_owned(),
    }
}

fn lane_of_row(row: &Row) -> Option<LaneName> {
    let program = ProgramName::new(&row.program).ok()?;
    let action = ActionName::new(&row.action).ok()?;
    Some(LaneName { program, action })
}

fn outcome_of(ending: Ending) -> (Outcome, Option<i32>, Option<i32>) {
    let (code, signal) = match ending {
        Ending::Exited(exit) | Ending::Stopped(_, exit) => match exit {
            Exit::Code(code) => (Some(code), None),
            Exit::Signal(signal) => (None, Some(signal)),
            Exit::Unknown => (None, None),
        },
        Ending::SpawnFailed | Ending::Withdrawn(_) => (None, None),
    };
    let outcome = match ending {
        Ending::Exited(Exit::Code(0)) => Outcome::Succeeded,
        Ending::Exited(Exit::Code(_)) => Outcome::Failed,
        Ending::Exited(Exit::Signal(_)) => Outcome::Signalled,
        Ending::Exited(Exit::Unknown) => Outcome::Lost,
        Ending::Stopped(StopReason::TimedOut, _) => Outcome::TimedOut,
        Ending::Stopped(StopReason::Cancelled, _)
        | Ending::Withdrawn(StopReason::Cancelled | StopReason::Halted) => Outcome::Cancelled,
        // It was to end: as it was told to, or not.
        Ending::Stopped(StopReason::Halted, Exit::Code(0)) => Outcome::Succeeded,
        Ending::Stopped(StopReason::Halted, Exit::Code(_)) => Outcome::Failed,
        Ending::Stopped(StopReason::Halted, Exit::Signal(libc::SIGKILL)) => Outcome::Signalled,
        Ending::Stopped(StopReason::Halted, Exit::Signal(_)) => Outcome::Succeeded,
        Ending::Stopped(StopReason::Halted, Exit::Unknown) => Outcome::Lost,
        Ending::Stopped(StopReason::Shutdown, _) => Outcome::Interrupted,
        Ending::SpawnFailed | Ending::Withdrawn(_) => Outcome::NotStarted,
    };
    (outcome, code, signal)
}

fn new_run(id: RunId, order: &Order, started_at: Option<Moment>) -> NewRun {
    NewRun {
        id,
        program: order.program.clone(),
        action: order.action.clone(),
        outcome: match started_at {
            Some(_) => Outcome::Running,
            None => Outcome::Waiting,
        },
        by: order.by.clone(),
        reason: order.reason.clone(),
        inputs: order.inputs.clone(),
        args: order.args.clone(),
        requested_at: order.requested_at.nanos(),
        started_at: started_at.map(Moment::nanos),
        request_key: order.key.clone(),
    }
}

fn finished_row(id: RunId, order: &Order, started_at: Option<Moment>, finish: &Finish) -> Row {
    Row {
        id,
        program: order.program.to_string(),
        action: order.action.to_string(),
        outcome: finish.outcome,
        exit_code: finish.exit_code,
        signal: finish.signal,
        by: order.by.clone(),
        reason: order.reason.clone(),
        inputs: order.inputs.clone(),
        args: order.args.clone(),
        covered_by: None,
        requested_at: order.requested_at.nanos(),
        started_at: started_at.map(Moment::nanos),
        ended_at: Some(finish.ended_at),
        bytes: finish.bytes,
        dropped: finish.dropped,
        leftovers: finish.leftovers,
        detail: finish.detail.clone(),
        request_key: None,
    }
}
