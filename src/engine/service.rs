//! Supervision: which programs are to be up, which are, and when one is started again.
//!
//! Pure, like the lanes. The process of a program is a run in the lane of its action `start`;
//! the shell around tells [`Services`] how that fares, and starts or ends it as told. What a
//! program is *wanted* to be (up or down) is apart from what it *is*.
//!
//! ```text
//!        Asked(Start)                     Started            Ready
//!   Down ────────────▶ Held ──▶ Starting ─────────▶ Waking ────────▶ Up ──▶ Stopping ──▶ Down, or Held
//!    ▲                  ▲          │ NotStarted        │ Ended        │  Asked(Stop, Restart)
//!    │                  │          ▼                   ▼              ▼
//!    └─ Asked(Stop) ── Pausing ◀──────────────────────────────────────┘   too often: Failed
//! ```
//!
//! A program is held while one that it comes `after` is on its way up. Without `ready` it is up
//! as soon as it has a process. When the daemon stops, programs go down in the opposite order.
//!
//! # Invariants (tested with random histories below)
//!
//! 1. Of a program there is at most one process: none is launched before the former one ended.
//! 2. A program that was stopped is launched by nothing but another request.
//! 3. Every request is answered exactly once.
//! 4. No timer lies in the past after a tick.
//! 5. Nothing is launched while something that it comes after is on its way up; in a shutdown
//!    nothing is halted while something that comes after it has a process.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use super::Exit;
use crate::config::model::{Pause, Restart, RestartWhen};
use crate::ids::ProgramName;

/// A program that was up for so long has recovered: the next pause is the first one again.
const RECOVERED: Duration = Duration::from_secs(10);

/// Names somebody who waits for an answer.
pub type Ticket = u64;

/// What can be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// Be up.
    Start,
    /// Be down.
    Stop,
    /// Be up, as another process than now.
    Restart,
}

/// What of a program's configuration matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// When it is started again.
    pub restart: Restart,
    /// It is stopped by a script of its own, which has so long.
    pub stop_script: Option<Duration>,
    /// It says when it is ready, and has so long for it.
    pub ready: Option<Duration>,
    /// What has to be up first.
    pub after: Vec<ProgramName>,
}

/// What has happened. Past tense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceEvent {
    /// Somebody who may asks for something.
    Asked {
        /// Of which program.
        program: ProgramName,
        /// What.
        ask: Ask,
        /// Who is to be answered; none: nobody.
        ticket: Option<Ticket>,
        /// The program's settings.
        policy: Policy,
    },
    /// After a restart of the daemon: a process of this program was found.
    Adopted {
        /// Which one.
        program: ProgramName,
        /// The program's settings.
        policy: Policy,
    },
    /// The process of a launch exists.
    Started {
        /// Of which program.
        program: ProgramName,
    },
    /// It is ready.
    Ready {
        /// Which program.
        program: ProgramName,
    },
    /// The process of a launch could not be made.
    NotStarted {
        /// Of which program.
        program: ProgramName,
    },
    /// The process has ended, and nothing of its tree is left.
    Ended {
        /// Of which program.
        program: ProgramName,
        /// How.
        exit: Exit,
    },
    /// The settings have changed; none: the program was removed.
    Reconfigured {
        /// Which one.
        program: ProgramName,
        /// The new settings.
        policy: Option<Policy>,
    },
    /// The daemon stops, and all programs with it. What they are wanted to be stays.
    ShutdownBegan,
    /// A time that [`Services::deadline`] named has come.
    Ticked,
}

impl ServiceEvent {
    /// The program that it is about, if it is about one.
    #[must_use]
    pub fn program(&self) -> Option<&ProgramName> {
        match self {
            Self::Asked { program, .. }
            | Self::Adopted { program, .. }
            | Self::Started { program }
            | Self::Ready { program }
            | Self::NotStarted { program }
            | Self::Ended { program, .. }
            | Self::Reconfigured { program, .. } => Some(program),
            Self::ShutdownBegan | Self::Ticked => None,
        }
    }
}

/// Why a program is launched.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Somebody asked for it.
    Asked,
    /// It had ended by itself.
    Ended,
}

/// How a request came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It is up.
    Started,
    /// It was up already.
    AlreadyUp,
    /// It could not be started.
    NotStarted,
    /// It was not ready in time, or ended like this before it was.
    NotReady(Option<Exit>),
    /// It is down, and its process ended like this.
    Stopped(Exit),
    /// It was not up.
    AlreadyDown,
    /// It was not up, and will not be started again by itself.
    NotAgain,
    /// Another request came in between, which wants the opposite.
    Overtaken,
    /// The daemon stops.
    ShuttingDown,
}

/// What the shell is to do. Imperative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServiceEffect {
    /// Make its process, and say [`ServiceEvent::Started`] or [`ServiceEvent::NotStarted`].
    Launch {
        /// Of which program.
        program: ProgramName,
        /// Why.
        cause: Cause,
    },
    /// Run its script for the action `stop`.
    RunStopScript {
        /// Of which program.
        program: ProgramName,
    },
    /// End its process: the stop signal, later KILL.
    Halt {
        /// Of which program.
        program: ProgramName,
    },
    /// Answer a request.
    Answer {
        /// Whose.
        ticket: Ticket,
        /// How it came out.
        answer: Answer,
    },
    /// Keep across restarts of the daemon whether the program is to be up.
    Remember {
        /// Which one.
        program: ProgramName,
        /// Whether.
        up: bool,
    },
    /// It was started again too often, and is left alone now.
    GiveUp {
        /// Which one.
        program: ProgramName,
    },
}

/// What a program is. The data of each state is all there is to know in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Nothing is there.
    Down,
    /// It is to be launched when what it comes after is up.
    Held(Cause),
    /// It was launched; `stop` came meanwhile, and whether it is to come up again after that.
    Starting {
        /// See there.
        stop: Option<bool>,
        /// Why it was launched.
        cause: Cause,
    },
    /// Its process is there, and has this long to be ready.
    Waking {
        /// Since when it is there.
        since: Instant,
        /// When its time is over.
        until: Instant,
    },
    /// Its process is there, since then, and ready.
    Up(Instant),
    /// Its process is to end.
    Stopping {
        /// When the script that stops it has had its time.
        halt_at: Option<Instant>,
        /// What comes then.
        then: Then,
    },
    /// It has ended, and is launched again then.
    Pausing(Instant),
    /// It ended too often.
    Failed,
}

/// What comes after the end of a process that was told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// Nothing.
    Down,
    /// It is launched again.
    Again,
    /// It counts as having ended by itself: it had not become ready.
    Failure,
}

impl State {
    /// Whether there is, or may be, a process.
    #[must_use]
    pub fn has_process(self) -> bool {
        match self {
            Self::Starting { .. } | Self::Waking { .. } | Self::Up(_) | Self::Stopping { .. } => {
                true
            }
            Self::Down | Self::Held(_) | Self::Pausing(_) | Self::Failed => false,
        }
    }

    /// Whether it is on its way up: what comes after it waits.
    fn is_coming(self) -> bool {
        match self {
            Self::Held(_) | Self::Starting { .. } | Self::Waking { .. } | Self::Pausing(_) => true,
            Self::Stopping { then, .. } => then != Then::Down,
            Self::Down | Self::Up(_) | Self::Failed => false,
        }
    }
}

#[derive(Debug)]
struct Service {
    policy: Policy,
    /// It is not configured any more: it may go on, and is not started again.
    removed: bool,
    state: State,
    /// Who waits for it to be up, and to be down.
    starts: Vec<Ticket>,
    stops: Vec<Ticket>,
    /// How often it was launched again since it was last well.
    attempt: u32,
    /// When it was launched again, as far back as counts.
    again_at: VecDeque<Instant>,
    restarts: u64,
}

/// All supervised programs that were ever asked for. See the module's documentation.
#[derive(Debug, Default)]
pub struct Services {
    services: BTreeMap<ProgramName, Service>,
    shutting_down: bool,
}

impl Services {
    /// When the next [`ServiceEvent::Ticked`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let timer = |service: &Service| match service.state {
            State::Pausing(at) => Some(at),
            State::Stopping { halt_at, .. } => halt_at,
            State::Waking { until, .. } => Some(until),
            State::Down
            | State::Held(_)
            | State::Starting { .. }
            | State::Up(_)
            | State::Failed => None,
        };
        self.services.values().filter_map(timer).min()
    }

    /// What a program is, and how often it was started again by itself.
    #[must_use]
    pub fn state(&self, program: &ProgramName) -> (State, u64) {
        let service = self.services.get(program);
        service.map_or((State::Down, 0), |s| (s.state, s.restarts))
    }

    /// Programs that have, or may have, a process.
    pub fn with_process(&self) -> impl Iterator<Item = &ProgramName> {
        let live = self.services.iter().filter(|(_, s)| s.state.has_process());
        live.map(|(name, _)| name)
    }

    /// Takes one event and appends what follows from it to `out`.
    pub fn handle(&mut self, now: Instant, event: ServiceEvent, out: &mut Vec<ServiceEffect>) {
        match event {
            ServiceEvent::Asked {
                program,
                ask,
                ticket,
                policy,
            } => {
                if self.shutting_down {
                    answer(ticket, Answer::ShuttingDown, out);
                    return;
                }
                let service = self.service(&program, policy);
                match ask {
                    Ask::Start => service.start(now, &program, ticket, false, out),
                    Ask::Restart => service.start(now, &program, ticket, true, out),
                    Ask::Stop => service.stop(now, &program, ticket, out),
                }
            }
            ServiceEvent::Adopted { program, policy } => {
                self.service(&program, policy).state = State::Up(now);
            }
            ServiceEvent::Started { program } => {
                if let Some(service) = self.services.get_mut(&program) {
                    service.started(now, &program, out);
                }
            }
            ServiceEvent::Ready { program } => {
                if let Some(service) = self.services.get_mut(&program)
                    && let State::Waking { since, .. } = service.state
                {
                    service.state = State::Up(since);
                    answer_all(&mut service.starts, Answer::Started, out);
                }
            }
            ServiceEvent::NotStarted { program } => {
                let down = self.shutting_down;
                if let Some(service) = self.services.get_mut(&program) {
                    service.not_started(now, &program, down, out);
                }
                self.forget_if_removed(&program, out);
            }
            ServiceEvent::Ended { program, exit } => {
                let down = self.shutting_down;
                if let Some(service) = self.services.get_mut(&program) {
                    service.ended(now, &program, exit, down, out);
                }
                self.forget_if_removed(&program, out);
            }
            ServiceEvent::Reconfigured { program, policy } => {
                if let Some(service) = self.services.get_mut(&program) {
                    service.removed = policy.is_none();
                    if let Some(policy) = policy {
                        service.policy = policy;
                    }
                }
                self.forget_if_removed(&program, out);
            }
            ServiceEvent::ShutdownBegan => {
                self.shutting_down = true;
                for service in self.services.values_mut() {
                    service.shut_down(out);
                }
            }
            ServiceEvent::Ticked => {
                for (program, service) in &mut self.services {
                    service.tick(now, program, out);
                }
            }
        }
        if self.shutting_down {
            self.halt_in_order(now, out);
        } else {
            self.launch_in_order(out);
        }
    }

    /// Launches what waits for nothing any more.
    fn launch_in_order(&mut self, out: &mut Vec<ServiceEffect>) {
        let held = |s: &Service| matches!(s.state, State::Held(_));
        if !self.services.values().any(held) {
            return;
        }
        let coming: Vec<ProgramName> = self
            .services
            .iter()
            .filter(|(_, s)| s.state.is_coming())
            .map(|(name, _)| name.clone())
            .collect();
        for (program, service) in &mut self.services {
            let free = !service
                .policy
                .after
                .iter()
                .any(|first| coming.contains(first));
            if let (true, State::Held(cause)) = (free, service.state) {
                service.state = State::Starting { stop: None, cause };
                out.push(ServiceEffect::Launch {
                    program: program.clone(),
                    cause,
                });
            }
        }
    }

    /// In a shutdown: ends what nothing that is there comes after.
    fn halt_in_order(&mut self, now: Instant, out: &mut Vec<ServiceEffect>) {
        let needed: Vec<ProgramName> = self
            .services
            .values()
            .filter(|s| s.state.has_process())
            .flat_map(|s| s.policy.after.iter().cloned())
            .collect();
        for (program, service) in &mut self.services {
            let up = matches!(service.state, State::Up(_) | State::Waking { .. });
            if up && !needed.contains(program) {
                answer_all(&mut service.starts, Answer::ShuttingDown, out);
                service.halt(now, program, Then::Down, true, out);
            }
        }
    }

    fn service(&mut self, program: &ProgramName, policy: Policy) -> &mut Service {
        let service = self
            .services
            .entry(program.clone())
            .or_insert_with(|| Service {
                policy: policy.clone(),
                removed: false,
                state: State::Down,
                starts: Vec::new(),
                stops: Vec::new(),
                attempt: 0,
                again_at: VecDeque::new(),
                restarts: 0,
            });
        service.policy = policy;
        service
    }

    fn forget_if_removed(&mut self, program: &ProgramName, out: &mut Vec<ServiceEffect>) {
        let gone = |s: &Service| s.removed && !s.state.has_process();
        if self.services.get(program).is_some_and(gone)
            && let Some(mut service) = self.services.remove(program)
        {
            answer_all(&mut service.starts, Answer::NotStarted, out);
        }
    }
}

fn answer(ticket: Option<Ticket>, answer: Answer, out: &mut Vec<ServiceEffect>) {
    if let Some(ticket) = ticket {
        out.push(ServiceEffect::Answer { ticket, answer });
    }
}

fn answer_all(tickets: &mut Vec<Ticket>, answer: Answer, out: &mut Vec<ServiceEffect>) {
    for ticket in tickets.drain(..) {
        out.push(ServiceEffect::Answer { ticket, answer });
    }
}

impl Service {
    /// Has its process ended: by its script, where it has one and may use it, else by a signal.
    fn halt(
        &mut self,
        now: Instant,
        program: &ProgramName,
        then: Then,
        politely: bool,
        out: &mut Vec<ServiceEffect>,
    ) {
        let program = program.clone();
        let script = self.policy.stop_script.filter(|_| politely);
        out.push(match script {
            Some(_) => ServiceEffect::RunStopScript { program },
            None => ServiceEffect::Halt { program },
        });
        let halt_at = script.map(|patience| now + patience);
        self.state = State::Stopping { halt_at, then };
    }

    /// Start, or with `anew` restart.
    fn start(
        &mut self,
        now: Instant,
        program: &ProgramName,
        ticket: Option<Ticket>,
        anew: bool,
        out: &mut Vec<ServiceEffect>,
    ) {
        let runs = matches!(
            self.state,
            State::Up(_) | State::Waking { .. } | State::Starting { stop: None, .. }
        );
        if runs && !anew {
            return answer(ticket, Answer::AlreadyUp, out);
        }
        out.push(ServiceEffect::Remember {
            program: program.clone(),
            up: true,
        });
        self.starts.extend(ticket);
        match &mut self.state {
            State::Down | State::Failed | State::Pausing(_) => {
                (self.attempt, self.restarts) = (0, 0);
                self.again_at.clear();
                self.state = State::Held(Cause::Asked);
            }
            // It is as new as it can be.
            State::Held(_) | State::Starting { stop: None, .. } => {}
            State::Starting { stop, .. } => *stop = Some(true),
            State::Waking { .. } | State::Up(_) => {
                self.halt(now, program, Then::Again, true, out);
            }
            State::Stopping { then, .. } => *then = Then::Again,
        }
    }

    fn stop(
        &mut self,
        now: Instant,
        program: &ProgramName,
        ticket: Option<Ticket>,
        out: &mut Vec<ServiceEffect>,
    ) {
        out.push(ServiceEffect::Remember {
            program: program.clone(),
            up: false,
        });
        match &mut self.state {
            State::Down => return answer(ticket, Answer::AlreadyDown, out),
            State::Failed | State::Pausing(_) | State::Held(_) => {
                self.state = State::Down;
                answer_all(&mut self.starts, Answer::Overtaken, out);
                return answer(ticket, Answer::NotAgain, out);
            }
            State::Starting { stop, .. } => *stop = Some(false),
            State::Waking { .. } | State::Up(_) => {
                answer_all(&mut self.starts, Answer::Overtaken, out);
                self.halt(now, program, Then::Down, true, out);
            }
            State::Stopping { then, .. } => {
                *then = Then::Down;
                answer_all(&mut self.starts, Answer::Overtaken, out);
            }
        }
        self.stops.extend(ticket);
    }

    fn started(&mut self, now: Instant, program: &ProgramName, out: &mut Vec<ServiceEffect>) {
        let State::Starting { stop, .. } = self.state else {
            return;
        };
        match (stop, self.policy.ready) {
            (Some(true), _) => self.halt(now, program, Then::Again, true, out),
            (Some(false), _) => {
                answer_all(&mut self.starts, Answer::Started, out);
                self.halt(now, program, Then::Down, true, out);
            }
            (None, Some(patience)) => {
                let until = now + patience;
                self.state = State::Waking { since: now, until };
            }
            (None, None) => {
                self.state = State::Up(now);
                answer_all(&mut self.starts, Answer::Started, out);
            }
        }
    }

    fn not_started(
        &mut self,
        now: Instant,
        program: &ProgramName,
        shutting_down: bool,
        out: &mut Vec<ServiceEffect>,
    ) {
        let State::Starting { stop, cause } = self.state else {
            return;
        };
        self.state = State::Down;
        answer_all(&mut self.starts, Answer::NotStarted, out);
        answer_all(&mut self.stops, Answer::AlreadyDown, out);
        if stop.is_none() && cause == Cause::Ended {
            self.go_on(now, program, Exit::Unknown, shutting_down, out);
        }
    }

    fn ended(
        &mut self,
        now: Instant,
        program: &ProgramName,
        exit: Exit,
        shutting_down: bool,
        out: &mut Vec<ServiceEffect>,
    ) {
        match self.state {
            State::Stopping { then, .. } => {
                self.state = State::Down;
                answer_all(&mut self.stops, Answer::Stopped(exit), out);
                if shutting_down {
                    answer_all(&mut self.starts, Answer::ShuttingDown, out);
                } else if then == Then::Again && !self.removed {
                    self.state = State::Held(Cause::Asked);
                } else {
                    answer_all(&mut self.starts, Answer::NotStarted, out);
                    if then == Then::Failure {
                        self.go_on(now, program, Exit::Unknown, shutting_down, out);
                    }
                }
            }
            State::Waking { .. } => {
                self.state = State::Down;
                answer_all(&mut self.starts, Answer::NotReady(Some(exit)), out);
                self.go_on(now, program, exit, shutting_down, out);
            }
            State::Up(since) => {
                self.state = State::Down;
                if now.saturating_duration_since(since) >= RECOVERED {
                    self.attempt = 0;
                }
                self.go_on(now, program, exit, shutting_down, out);
            }
            State::Down
            | State::Held(_)
            | State::Starting { .. }
            | State::Pausing(_)
            | State::Failed => {}
        }
    }

    /// Decides what becomes of a program that has ended by itself.
    fn go_on(
        &mut self,
        now: Instant,
        program: &ProgramName,
        exit: Exit,
        shutting_down: bool,
        out: &mut Vec<ServiceEffect>,
    ) {
        let restart = self.policy.restart;
        let wanted = match restart.when {
            RestartWhen::Always => true,
            RestartWhen::OnFailure => exit != Exit::Code(0),
            RestartWhen::Never => false,
        };
        if !wanted || shutting_down || self.removed {
            return;
        }
        if let Some((most, time)) = restart.most {
            while let Some(first) = self.again_at.front()
                && now.saturating_duration_since(*first) > time
            {
                self.again_at.pop_front();
            }
            if self.again_at.len() >= most as usize {
                self.state = State::Failed;
                out.push(ServiceEffect::GiveUp {
                    program: program.clone(),
                });
                return;
            }
            self.again_at.push_back(now);
        }
        let pause = match restart.pause {
            Pause::Fixed(pause) => pause,
            Pause::Doubling(first, longest) => first
                .saturating_mul(2_u32.saturating_pow(self.attempt))
                .min(longest),
        };
        self.attempt += 1;
        self.restarts += 1;
        self.state = State::Pausing(now + pause);
    }

    /// What is up is ended by [`Services::halt_in_order`].
    fn shut_down(&mut self, out: &mut Vec<ServiceEffect>) {
        match &mut self.state {
            State::Down | State::Failed | State::Up(_) | State::Waking { .. } => {}
            State::Pausing(_) => self.state = State::Down,
            State::Held(_) => {
                self.state = State::Down;
                answer_all(&mut self.starts, Answer::ShuttingDown, out);
            }
            State::Starting { stop, .. } => *stop = Some(false),
            State::Stopping { then, .. } => {
                *then = Then::Down;
                answer_all(&mut self.starts, Answer::ShuttingDown, out);
            }
        }
    }

    fn tick(&mut self, now: Instant, program: &ProgramName, out: &mut Vec<ServiceEffect>) {
        match self.state {
            State::Pausing(at) if at <= now => self.state = State::Held(Cause::Ended),
            State::Waking { until, .. } if until <= now => {
                answer_all(&mut self.starts, Answer::NotReady(None), out);
                self.halt(now, program, Then::Failure, false, out);
            }
            State::Stopping { halt_at, then } if halt_at.is_some_and(|at| at <= now) => {
                let halt_at = None;
                self.state = State::Stopping { halt_at, then };
                out.push(ServiceEffect::Halt {
                    program: program.clone(),
                });
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn name(n: u8) -> ProgramName {
        ProgramName::new(&format!("p{n}")).unwrap()
    }

    fn policy(when: RestartWhen, script: bool) -> Policy {
        let second = Duration::from_secs(1);
        Policy {
            restart: Restart {
                when,
                pause: Pause::Doubling(second, second * 4),
                most: Some((3, second * 60)),
            },
            stop_script: script.then_some(second * 2),
            ready: None,
            after: Vec::new(),
        }
    }

    /// The first comes after the second, which says when it is ready.
    fn policy_of(n: u8) -> Policy {
        let whens = [
            RestartWhen::Always,
            RestartWhen::OnFailure,
            RestartWhen::Never,
        ];
        Policy {
            ready: (n == 1).then_some(Duration::from_secs(3)),
            after: if n == 0 { vec![name(1)] } else { Vec::new() },
            ..policy(whens[n as usize], n == 1)
        }
    }

    /// The machine with a virtual clock, and a model of the world that holds it to its invariants.
    struct World {
        services: Services,
        now: Instant,
        /// Processes: being made, or there.
        making: HashSet<ProgramName>,
        alive: HashSet<ProgramName>,
        /// Whether it was asked to be up last.
        wanted: HashMap<ProgramName, bool>,
        open: HashSet<Ticket>,
        answers: HashMap<Ticket, Answer>,
        next: Ticket,
        log: Vec<ServiceEffect>,
        ordered: bool,
    }

    impl World {
        fn new() -> Self {
            Self {
                services: Services::default(),
                now: Instant::now(),
                making: HashSet::new(),
                alive: HashSet::new(),
                wanted: HashMap::new(),
                open: HashSet::new(),
                answers: HashMap::new(),
                next: 1,
                log: Vec::new(),
                ordered: false,
            }
        }

        fn feed(&mut self, event: ServiceEvent) {
            let mut out = Vec::new();
            let before = self.services.state(&name(1)).0;
            self.services.handle(self.now, event.clone(), &mut out);
            let (first, second) = (
                self.services.state(&name(0)).0,
                self.services.state(&name(1)).0,
            );
            for effect in &out {
                if let ServiceEffect::Launch { program, .. } = effect
                    && *program == name(0)
                    && self.ordered
                {
                    assert!(
                        !second.is_coming(),
                        "launched before the other is up: {second:?}"
                    );
                }
                if let ServiceEffect::Halt { program } | ServiceEffect::RunStopScript { program } =
                    effect
                    && *program == name(1)
                    && self.ordered
                    && event == ServiceEvent::ShutdownBegan
                    && matches!(before, State::Up(_))
                {
                    assert!(!first.has_process(), "halted before what comes after it");
                }
                match effect {
                    ServiceEffect::Launch { program, cause } => {
                        assert!(!self.alive.contains(program), "launched while it is up");
                        assert!(self.making.insert(program.clone()), "launched twice");
                        if *cause == Cause::Ended {
                            assert_ne!(self.wanted.get(program), Some(&false), "it was stopped");
                        }
                    }
                    ServiceEffect::Halt { program } | ServiceEffect::RunStopScript { program } => {
                        assert!(self.alive.contains(program), "nothing is there to end");
                    }
                    ServiceEffect::Answer { ticket, answer } => {
                        assert!(self.open.remove(ticket), "answered twice, or never asked");
                        self.answers.insert(*ticket, *answer);
                    }
                    ServiceEffect::Remember { program, up } => {
                        self.wanted.insert(program.clone(), *up);
                    }
                    ServiceEffect::GiveUp { .. } => {}
                }
            }
            if event == ServiceEvent::Ticked {
                assert!(self.services.deadline().is_none_or(|at| at > self.now));
            }
            self.log.extend(out);
        }

        fn ask(&mut self, n: u8, ask: Ask, policy: Policy) -> Ticket {
            let ticket = self.next;
            self.next += 1;
            self.open.insert(ticket);
            self.feed(ServiceEvent::Asked {
                program: name(n),
                ask,
                ticket: Some(ticket),
                policy,
            });
            ticket
        }

        fn made(&mut self, n: u8, well: bool) {
            let program = name(n);
            if !self.making.remove(&program) {
                return;
            }
            if well {
                self.alive.insert(program.clone());
                self.feed(ServiceEvent::Started { program });
            } else {
                self.feed(ServiceEvent::NotStarted { program });
            }
        }

        fn end(&mut self, n: u8, exit: Exit) {
            let program = name(n);
            if self.alive.remove(&program) {
                self.feed(ServiceEvent::Ended { program, exit });
            }
        }

        fn pass(&mut self, time: Duration) {
            self.now += time;
            self.feed(ServiceEvent::Ticked);
        }

        /// Every process is made or ends as it is told to: then nobody waits any longer.
        fn settle(&mut self) {
            for _ in 0..200 {
                if self.open.is_empty() {
                    return;
                }
                for n in 0..3 {
                    self.made(n, true);
                    match self.services.state(&name(n)).0 {
                        State::Stopping { .. } => self.end(n, Exit::Signal(15)),
                        State::Waking { .. } => self.feed(ServiceEvent::Ready { program: name(n) }),
                        State::Pausing(_) => self.pass(Duration::from_secs(60)),
                        _ => {}
                    }
                }
            }
            assert!(self.open.is_empty(), "{:?} wait for ever", self.open);
        }
    }

    #[derive(Debug, Clone)]
    enum Act {
        Ask(u8, Ask),
        Made(u8, bool),
        End(u8, bool),
        Pass(u8),
        Ready(u8),
        Remove(u8),
        Shutdown,
    }

    fn act() -> impl Strategy<Value = Act> {
        let program = || 0..3_u8;
        let ask = prop_oneof![Just(Ask::Start), Just(Ask::Stop), Just(Ask::Restart)];
        prop_oneof![
            6 => (program(), ask).prop_map(|(n, ask)| Act::Ask(n, ask)),
            6 => (program(), prop::bool::weighted(0.8)).prop_map(|(n, well)| Act::Made(n, well)),
            4 => (program(), any::<bool>()).prop_map(|(n, well)| Act::End(n, well)),
            4 => (0..20_u8).prop_map(Act::Pass),
            4 => program().prop_map(Act::Ready),
            1 => program().prop_map(Act::Remove),
            1 => Just(Act::Shutdown),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn random_histories_keep_the_invariants(acts in prop::collection::vec(act(), 1..80)) {
            let mut world = World::new();
            world.ordered = true;
            for act in acts {
                match act {
                    Act::Ask(n, ask) => {
                        world.ask(n, ask, policy_of(n));
                    }
                    Act::Made(n, well) => world.made(n, well),
                    Act::End(n, well) => world.end(n, Exit::Code(i32::from(!well))),
                    Act::Ready(n) => world.feed(ServiceEvent::Ready { program: name(n) }),
                    Act::Pass(halves) => world.pass(Duration::from_millis(500) * u32::from(halves)),
                    Act::Remove(n) => world.feed(ServiceEvent::Reconfigured {
                        program: name(n),
                        policy: None,
                    }),
                    Act::Shutdown => world.feed(ServiceEvent::ShutdownBegan),
                }
            }
            world.settle();
        }
    }

    #[test]
    fn it_is_started_again_after_longer_and_longer_pauses_until_it_is_given_up() {
        let mut w = World::new();
        let ticket = w.ask(0, Ask::Start, policy(RestartWhen::Always, false));
        w.made(0, true);
        assert_eq!(w.answers[&ticket], Answer::Started);
        for pause in [1, 2, 4] {
            w.end(0, Exit::Code(1));
            let at = w.services.deadline().unwrap();
            assert_eq!(at - w.now, Duration::from_secs(pause));
            w.pass(Duration::from_secs(pause));
            w.made(0, true);
        }
        w.end(0, Exit::Code(1));
        assert_eq!(w.services.state(&name(0)), (State::Failed, 3));
        assert!(w.log.contains(&ServiceEffect::GiveUp { program: name(0) }));
        // By hand it starts, with a clean slate.
        w.ask(0, Ask::Start, policy(RestartWhen::Always, false));
        w.made(0, true);
        assert!(matches!(w.services.state(&name(0)), (State::Up(_), 0)));
    }

    #[test]
    fn staying_up_makes_the_next_pause_the_first_one_again() {
        let mut w = World::new();
        w.ask(0, Ask::Start, policy(RestartWhen::Always, false));
        w.made(0, true);
        for _ in 0..2 {
            w.end(0, Exit::Code(1));
            w.pass(Duration::from_secs(4));
            w.made(0, true);
        }
        w.pass(RECOVERED);
        w.end(0, Exit::Code(1));
        let at = w.services.deadline().unwrap();
        assert_eq!(at - w.now, Duration::from_secs(1));
    }

    #[test]
    fn a_stop_in_a_pause_ends_it() {
        let mut w = World::new();
        w.ask(0, Ask::Start, policy(RestartWhen::Always, false));
        w.made(0, true);
        w.end(0, Exit::Signal(9));
        let ticket = w.ask(0, Ask::Stop, policy(RestartWhen::Always, false));
        assert_eq!(w.answers[&ticket], Answer::NotAgain);
        assert_eq!(w.services.deadline(), None);
        w.pass(Duration::from_secs(100));
        assert!(w.making.is_empty());
        let ticket = w.ask(0, Ask::Stop, policy(RestartWhen::Always, false));
        assert_eq!(w.answers[&ticket], Answer::AlreadyDown);
    }

    #[test]
    fn a_restart_ends_the_old_process_first_and_answers_when_the_new_one_is_there() {
        let mut w = World::new();
        w.ask(0, Ask::Start, policy(RestartWhen::Never, false));
        w.made(0, true);
        let ticket = w.ask(0, Ask::Restart, policy(RestartWhen::Never, false));
        assert!(w.making.is_empty() && !w.answers.contains_key(&ticket));
        w.end(0, Exit::Signal(15));
        assert!(!w.answers.contains_key(&ticket));
        w.made(0, true);
        assert_eq!(w.answers[&ticket], Answer::Started);
    }

    #[test]
    fn a_script_has_its_time_to_stop_the_program() {
        let mut w = World::new();
        w.ask(1, Ask::Start, policy(RestartWhen::Never, true));
        w.made(1, true);
        let ticket = w.ask(1, Ask::Stop, policy(RestartWhen::Never, true));
        let script = ServiceEffect::RunStopScript { program: name(1) };
        let halt = ServiceEffect::Halt { program: name(1) };
        assert!(w.log.contains(&script) && !w.log.contains(&halt));
        w.pass(Duration::from_secs(2));
        assert!(w.log.contains(&halt));
        w.end(1, Exit::Signal(9));
        assert_eq!(w.answers[&ticket], Answer::Stopped(Exit::Signal(9)));
    }

    #[test]
    fn success_is_no_failure() {
        let mut w = World::new();
        w.ask(0, Ask::Start, policy(RestartWhen::OnFailure, false));
        w.made(0, true);
        w.end(0, Exit::Code(0));
        assert_eq!(w.services.state(&name(0)), (State::Down, 0));
    }

    #[test]
    fn one_that_comes_after_another_waits_until_that_is_ready() {
        let mut w = World::new();
        let second = w.ask(1, Ask::Start, policy_of(1));
        let first = w.ask(0, Ask::Start, policy_of(0));
        assert!(!w.making.contains(&name(0)));
        w.made(1, true);
        assert!(w.answers.is_empty() && !w.making.contains(&name(0)));
        w.feed(ServiceEvent::Ready { program: name(1) });
        assert_eq!(w.answers[&second], Answer::Started);
        w.made(0, true);
        assert_eq!(w.answers[&first], Answer::Started);
        // And goes down first.
        w.feed(ServiceEvent::ShutdownBegan);
        assert!(matches!(w.services.state(&name(1)).0, State::Up(_)));
        w.end(0, Exit::Signal(15));
        assert!(matches!(
            w.services.state(&name(1)).0,
            State::Stopping { .. }
        ));
    }

    #[test]
    fn one_that_is_not_ready_in_time_has_failed() {
        let mut w = World::new();
        let ticket = w.ask(1, Ask::Start, policy_of(1));
        w.made(1, true);
        w.pass(Duration::from_secs(3));
        assert_eq!(w.answers[&ticket], Answer::NotReady(None));
        assert!(w.log.contains(&ServiceEffect::Halt { program: name(1) }));
        w.end(1, Exit::Code(0));
        assert!(matches!(w.services.state(&name(1)), (State::Pausing(_), 1)));
        // What ends before it is ready has failed as well.
        w.pass(Duration::from_secs(1));
        w.made(1, true);
        w.end(1, Exit::Code(4));
        assert!(matches!(w.services.state(&name(1)), (State::Pausing(_), 2)));
    }
}
