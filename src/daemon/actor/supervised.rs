//! What the actor does about supervised programs: the engine's `service` decides.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{error, info};

use super::{Actor, Entry, LaneState, Order, ServiceState, Stage, Waiter, Wanted, refusal, said};
use crate::config::model::{Program, Ready, RestartWhen};
use crate::daemon::InForce;
use crate::daemon::clock::Moment;
use crate::daemon::effects::{LiveRun, SpawnFailure};
use crate::daemon::signs::Signs;
use crate::engine::service::{
    Answer, Ask, Cause, Policy, ServiceEffect, ServiceEvent, State, Ticket,
};
use crate::engine::{Ending, Event, Exit};
use crate::ids::{ActionName, LaneName, ProgramName, RunId};
use crate::protocol::message::{ErrorCode, Reply};

impl Actor {
    /// One event for the supervision, and all that follows from it.
    pub(super) fn supervise(&mut self, event: ServiceEvent) {
        let mut effects = Vec::new();
        let about = event.program().cloned();
        let before = about.as_ref().map(|program| self.word_of(program));
        self.services.handle(Instant::now(), event, &mut effects);
        if let Some(program) = about {
            let word = self.word_of(&program);
            if before != Some(word) {
                self.hands.events.tell(&program, None, word);
            }
        }
        let mut remember = false;
        for effect in effects {
            match effect {
                ServiceEffect::Launch { program, cause } => self.launch(program, cause),
                ServiceEffect::RunStopScript { program } => self.run_stop_script(&program),
                ServiceEffect::Halt { program } => {
                    if let Some(run) = self.processes.get(&program).copied() {
                        self.feed(Event::HaltRequested { run });
                    }
                }
                ServiceEffect::Answer { ticket, answer } => self.answer(ticket, answer),
                ServiceEffect::Remember { program, up } => {
                    remember |= self.wanted.insert(program, up) != Some(up);
                }
                ServiceEffect::GiveUp { program } => {
                    error!(
                        "{program} has failed: it ended too often, and is left alone; \
                         `deployer {program} start` starts it again"
                    );
                }
            }
        }
        if remember {
            self.hands.remember(&self.wanted);
        }
    }

    /// A granted request about a supervised program.
    pub(super) fn ask(&mut self, ask: Ask, order: Box<Order>, waiter: Waiter) {
        let (program, ticket) = (order.program.clone(), self.next_ticket);
        let policy = policy_of(&order.spec);
        self.next_ticket += 1;
        self.tickets.insert(ticket, (program.clone(), waiter));
        info!(
            "{} is asked of {program} by {}",
            order.action, order.by.user
        );
        let (state, _) = self.services.state(&program);
        if ask != Ask::Start && self.processes.contains_key(&program) {
            let by = (order.action.clone(), order.by.user.clone());
            self.halted_by.insert(program.clone(), by);
        }
        match (ask, state) {
            (Ask::Stop, _) => drop(self.asked_to_stop.insert(program.clone(), order)),
            (
                Ask::Start,
                State::Up(_) | State::Waking { .. } | State::Starting { stop: None, .. },
            ) => {}
            // What it is started with counts when it is started again by itself, too.
            _ => drop(self.asked.insert(program.clone(), order)),
        }
        self.supervise(ServiceEvent::Asked {
            program,
            ask,
            ticket: Some(ticket),
            policy,
        });
    }

    /// Makes the process of a supervised program, as a run of its own.
    fn launch(&mut self, program: ProgramName, cause: Cause) {
        let spec = self.in_force.program(&program, true);
        let Some(spec) = spec.filter(|spec| spec.is_supervised()) else {
            let message = format!("{program} is not configured any more");
            return self.not_up(
                &program,
                SpawnFailure {
                    message,
                    status: 127,
                },
            );
        };
        let asked = self.asked.get(&program);
        let restart = Some(ActionName::restart())
            .filter(|r| spec.command(r).is_some() && asked.is_some_and(|o| o.action == *r));
        let (by, reason) = match (cause, asked) {
            (Cause::Asked, Some(order)) => (order.by.clone(), order.reason.clone()),
            (Cause::Asked, None) => (
                self.in_force.itself(),
                Some("started with the daemon".to_owned()),
            ),
            (Cause::Ended, _) => {
                let how = self.last_exits.get(&program).map(|(exit, _)| said(*exit));
                let reason = format!("started again: it {}", how.unwrap_or_default());
                (self.in_force.itself(), Some(reason))
            }
        };
        let order = Order {
            program: program.clone(),
            spec,
            action: restart.unwrap_or_else(ActionName::start),
            by,
            reason,
            inputs: asked.map(|o| o.inputs.clone()).unwrap_or_default(),
            args: asked.map(|o| o.args.clone()).unwrap_or_default(),
            key: None,
            requested_at: Moment::now(),
            pid: None,
            terminal: asked.and_then(|o| o.terminal.clone()),
            more: Vec::new(),
        };
        let id = self.register(Box::new(order), None);
        self.processes.insert(program, id);
    }

    /// Lets somebody see the next process of a program: the one that is there, or that will be.
    pub(super) fn show_next(&mut self, program: ProgramName, after: RunId, mut waiter: Waiter) {
        let current = self.processes.get(&program).copied();
        if let Some(run) = current.filter(|run| *run > after) {
            waiter.request = run;
            match self.watch(run, waiter) {
                None => return,
                Some(back) => waiter = back,
            }
        }
        if self.stopping {
            return waiter.last(refusal(ErrorCode::Stopping, "the daemon is stopping"));
        }
        if self.newest.get(&program).is_some_and(|run| *run > after) {
            // It has come and gone since the history was asked, which knows of it by now.
            return waiter.last(Reply::Done {
                message: None,
                output: None,
                status: 0,
            });
        }
        let onlookers = self.onlookers.entry(program).or_default();
        onlookers.retain(|w| !w.notices.is_closed());
        onlookers.push(waiter);
    }

    /// Has somebody look out for the signs of a process that is ready.
    pub(super) fn await_ready(&mut self, program: ProgramName, id: RunId, signs: Option<Signs>) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let spec = Arc::clone(&entry.order.spec);
        self.heed(id, signs);
        match &spec.ready {
            Some(Ready::Tcp(port)) => {
                let patience = spec.ready_timeout;
                self.hands.await_port(*port, program, id, patience);
            }
            Some(Ready::Command(_)) => {
                let order = Order {
                    action: ActionName::ready(),
                    by: self.in_force.itself(),
                    reason: None,
                    requested_at: Moment::now(),
                    key: None,
                    args: Vec::new(),
                    terminal: None,
                    ..(*entry.order).clone()
                };
                // One for a former process would speak of that.
                if let Some(former) = self.engine.current(&order.lane()) {
                    self.feed(Event::CancelRequested { run: former });
                }
                let run = self.register(Box::new(order), None);
                self.questions.insert(run, (program, id));
            }
            Some(Ready::Notify | Ready::Fd(_)) | None => {}
        }
    }

    /// Listens to what a process says of itself.
    pub(super) fn heed(&self, id: RunId, signs: Option<Signs>) {
        let Some(Entry {
            order,
            stage: Stage::Live { run, .. },
            ..
        }) = self.entries.get(&id)
        else {
            return;
        };
        if let Some((signs, over)) = signs.zip(run.pidfd.clone()) {
            let watchdog = order.spec.watchdog.filter(|_| order.is_service());
            let (program, log) = (&order.program, Arc::clone(&run.log));
            self.hands.heed(signs, program, id, watchdog, over, log);
        }
    }

    fn run_stop_script(&mut self, program: &ProgramName) {
        let asked = self.asked_to_stop.get(program).or(self.asked.get(program));
        let Some(asked) = asked else {
            return;
        };
        let mut order = asked.clone();
        order.action = ActionName::stop();
        order.key = None;
        order.requested_at = Moment::now();
        self.register(order, None);
    }

    /// The process of a supervised program could not be made.
    pub(super) fn not_up(&mut self, program: &ProgramName, failure: SpawnFailure) {
        self.trouble.insert(program.clone(), failure);
        self.processes.remove(program);
        self.supervise(ServiceEvent::NotStarted {
            program: program.clone(),
        });
    }

    /// The run that was a supervised program's process is over.
    pub(super) fn process_over(
        &mut self,
        id: RunId,
        program: ProgramName,
        ending: Ending,
        began: bool,
        at: Moment,
    ) {
        // One of a former daemon may be put on record when its successor is there already.
        if self.processes.get(&program) != Some(&id) {
            return;
        }
        self.processes.remove(&program);
        let asking: Vec<RunId> = self
            .questions
            .iter()
            .filter(|(_, (_, of))| *of == id)
            .map(|(run, _)| *run)
            .collect();
        for run in asking {
            self.feed(Event::CancelRequested { run });
        }
        let exit = match ending {
            Ending::Exited(exit) | Ending::Stopped(_, exit) => exit,
            Ending::SpawnFailed | Ending::Withdrawn(_) => Exit::Unknown,
        };
        if began {
            self.last_exits.insert(program.clone(), (exit, at));
            self.supervise(ServiceEvent::Ended { program, exit });
        } else {
            self.supervise(ServiceEvent::NotStarted { program });
        }
    }

    pub(super) fn process_of(&self, program: &ProgramName) -> Option<(&Entry, &LiveRun)> {
        let entry = self.entries.get(self.processes.get(program)?)?;
        match &entry.stage {
            Stage::Live {
                run, ended: false, ..
            } => Some((entry, run)),
            _ => None,
        }
    }

    /// Answers whoever asked something of a supervised program.
    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        let Some((program, waiter)) = self.tickets.remove(&ticket) else {
            return;
        };
        let asked = self
            .asked_to_stop
            .get(&program)
            .or(self.asked.get(&program));
        let stop_signal = asked.map(|o| o.spec.stop_signal);
        let (status, message) = match answer {
            Answer::Started => (0, None),
            Answer::AlreadyUp => {
                let pid = self.process_of(&program).map(|(_, live)| live.pid);
                let pid = pid.map_or(String::new(), |pid| format!(" (pid {pid})"));
                let advice = format!("`deployer {program} restart` starts it anew");
                (
                    1,
                    Some(format!("{program} is running already{pid}; {advice}")),
                )
            }
            Answer::NotStarted => match self.trouble.remove(&program) {
                Some(failure) => (failure.status, Some(failure.message)),
                None => (1, Some(format!("{program} was not started"))),
            },
            Answer::NotReady(None) => {
                let time = asked.map_or(Duration::ZERO, |o| o.spec.ready_timeout);
                let message = format!(
                    "{program} was not ready within {time:?}, and was ended; `deployer LOGS {program}` may show why"
                );
                (1, Some(message))
            }
            Answer::NotReady(Some(exit)) => {
                let message = format!(
                    "{program} {} before it was ready; `deployer LOGS {program}` may show why",
                    said(exit)
                );
                (1, Some(message))
            }
            Answer::Stopped(exit) => match exit {
                Exit::Code(code) => (code, None),
                Exit::Signal(signal) if Some(signal) == stop_signal => (0, None),
                Exit::Signal(signal) => (128 + signal, Some(format!("{program} {}", said(exit)))),
                Exit::Unknown => (1, Some(format!("{program} {}", said(exit)))),
            },
            Answer::AlreadyDown => (1, Some(format!("{program} is not running"))),
            Answer::NotAgain => {
                let message = format!("{program} was not running, and is not started again");
                (0, Some(message))
            }
            Answer::Overtaken => {
                let message = format!("{program} was asked to stop meanwhile");
                (1, Some(message))
            }
            Answer::ShuttingDown => {
                let message = "the daemon is stopping; ask again when it is back";
                return waiter.last(refusal(ErrorCode::Stopping, message));
            }
        };
        waiter.last(Reply::Done {
            message,
            output: None,
            status,
        });
    }

    /// Brings up what is to be up. Once, when the daemon begins.
    pub(super) fn begin_supervision(&mut self, wanted: Wanted) {
        let in_force = Arc::clone(&self.in_force);
        self.wanted = wanted.known;
        let live: HashSet<ProgramName> = self.services.with_process().cloned().collect();
        for (program, spec) in in_order(&in_force.config.programs) {
            if !spec.is_supervised() || live.contains(program) {
                continue;
            }
            let known = self.wanted.get(program).copied();
            let auto = comes_up(spec, &in_force);
            // What had ended by itself for good stays so, and what somebody stopped as well.
            let goes_on = known == Some(true)
                && !wanted.rebooted
                && (wanted.first || spec.restart.when != RestartWhen::Never);
            if goes_on || (wanted.first && auto && known != Some(false)) {
                self.bring_up(program, spec);
            }
        }
    }

    /// Starts a program that nobody asked for just now.
    fn bring_up(&mut self, program: &ProgramName, spec: &Program) {
        self.supervise(ServiceEvent::Asked {
            program: program.clone(),
            ask: Ask::Start,
            ticket: None,
            policy: policy_of(spec),
        });
    }

    /// A new configuration: programs go on under it. New ones of the groups to be started are.
    pub(super) fn reloaded(&mut self, in_force: Arc<InForce>) {
        let old = std::mem::replace(&mut self.in_force, in_force);
        let now = Arc::clone(&self.in_force);
        for (program, spec) in &old.config.programs {
            let new = now.config.programs.get(program);
            if !spec.is_supervised() || new == Some(spec) {
                continue;
            }
            let policy = new
                .filter(|new| new.is_supervised())
                .map(|new| policy_of(new));
            let program = program.clone();
            self.supervise(ServiceEvent::Reconfigured { program, policy });
        }
        for (program, spec) in in_order(&now.config.programs) {
            let is_new = !old.config.programs.contains_key(program);
            if is_new && comes_up(spec, &now) && self.wanted.get(program) != Some(&false) {
                self.bring_up(program, spec);
            }
        }
    }

    /// The state of a supervised program, in a word.
    fn word_of(&self, program: &ProgramName) -> &'static str {
        match self.services.state(program).0 {
            State::Down => "stopped",
            State::Held(_) => "waiting",
            State::Starting { .. } | State::Waking { .. } => "starting",
            State::Up(_) => "running",
            State::Stopping { .. } => "stopping",
            State::Pausing(_) => "backoff",
            State::Failed => "failed",
        }
    }

    /// What there is to say about a program, for lists.
    pub(super) fn state_of(&self, program: &ProgramName) -> LaneState {
        let run = LaneName::new(program, &ActionName::run());
        let mut state = LaneState {
            run: self.engine.current(&run),
            waiting: self.engine.waiting(&run) as u64,
            service: None,
        };
        let configured = self.in_force.config.programs.get(program);
        let (service, restarts) = self.services.state(program);
        let supervised = configured.is_some_and(|spec| spec.is_supervised());
        if !supervised && !service.has_process() {
            return state;
        }
        let process = self.process_of(program);
        let started = process.and_then(|(entry, _)| match &entry.stage {
            Stage::Live { started_at, .. } => Some(*started_at),
            _ => None,
        });
        let last = self.last_exits.get(program).copied();
        let next = match service {
            State::Pausing(at) => Some(at.saturating_duration_since(Instant::now())),
            _ => None,
        };
        if process.is_some() {
            state.run = self.processes.get(program).copied();
        }
        state.service = Some(ServiceState {
            word: self.word_of(program),
            pid: process.map(|(_, live)| live.pid),
            since: started.or(last.map(|(_, at)| at)),
            restarts,
            last,
            next,
            lingering: !supervised,
            tree: process.map(|(_, live)| Arc::clone(&live.tree)),
            outdated: process.is_some_and(|(entry, _)| {
                configured.is_some_and(|spec| !spec.runs_like(&entry.order.spec))
            }),
        });
        state
    }
}

/// Whether a program is to be started with the daemon.
fn comes_up(spec: &Program, in_force: &InForce) -> bool {
    let most = in_force.config.global.do_autostart;
    spec.is_supervised() && spec.autostart.is_some_and(|group| group <= most)
}

/// Programs, each behind those that it comes after.
fn in_order(programs: &BTreeMap<ProgramName, Arc<Program>>) -> Vec<(&ProgramName, &Arc<Program>)> {
    let mut sorted: Vec<(&ProgramName, &Arc<Program>)> = Vec::new();
    let mut placed: HashSet<&ProgramName> = HashSet::new();
    let mut left: Vec<_> = programs.iter().collect();
    while !left.is_empty() {
        let before = left.len();
        left.retain(|(name, spec)| {
            let waits = |first: &ProgramName| {
                programs.contains_key(first) && !placed.contains(first) && first != *name
            };
            if spec.after.iter().any(waits) {
                return true;
            }
            placed.insert(name);
            sorted.push((name, spec));
            false
        });
        if left.len() == before {
            // A circle, which the configuration's check refuses.
            sorted.append(&mut left);
        }
    }
    sorted
}

/// What the supervision has to know of a program.
pub(super) fn policy_of(spec: &Program) -> Policy {
    let script = spec.command(&ActionName::stop()).is_some();
    Policy {
        restart: spec.restart,
        stop_script: script.then_some(spec.stop_timeout),
        ready: spec.ready.is_some().then_some(spec.ready_timeout),
        after: spec.after.clone(),
    }
}
