//! What is done by itself at certain times: `schedule-ACTION`, and the look at remotes.
//!
//! Times are those of the machine's clock and time zone, as cron has them; after a jump of the
//! clock they are reckoned anew. A time that was missed is not made up for. A remote is looked at
//! without leaving a record; only what it has that is new is worth a run.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Zoned;
use tokio::sync::{Semaphore, mpsc};
use tracing::{info, warn};

use super::clock::Moment;
use super::code::{self, Held, Lookout, Question, Seen};
use super::effects::{Surroundings, Updated};
use super::front::Front;
use crate::config::model::{AfterUpdate, Program, Schedule};
use crate::ids::{ActionName, ProgramName, RunId};
use crate::protocol::message::{Reply, Row};
use crate::server::Notice;
use crate::source::{DEFERRED, Verdict, What};

/// The clock is looked at at least this often: somebody may set it.
const LOOK_EVERY: Duration = Duration::from_secs(20);
/// How many remotes are looked at at a time.
const AT_A_TIME: usize = 8;

/// How long an update that failed is left alone: twice the one the first time, and at most so long.
const SHORTEST: Duration = Duration::from_secs(60);
const LONGEST: Duration = Duration::from_secs(3600);

type Name = (ProgramName, ActionName);

/// See the module's documentation.
pub struct Scheduler {
    /// Where requests go.
    pub front: Front,
    /// What workers need.
    pub surroundings: Arc<Surroundings>,
    /// Updates that have succeeded.
    pub updated: mpsc::UnboundedReceiver<Updated>,
}

/// Something that is done at certain times.
struct Timer {
    schedule: Schedule,
    next: Option<Zoned>,
    /// What was asked for last, if that is not over.
    asked: Option<mpsc::UnboundedReceiver<Notice>>,
}

impl Scheduler {
    /// Works as long as the daemon does.
    pub async fn work(mut self) {
        let mut in_force = self.front.in_force.clone();
        let mut timers: HashMap<Name, Timer> = HashMap::new();
        let at_a_time = Arc::new(Semaphore::new(AT_A_TIME));
        let config = in_force.borrow_and_update().clone();
        for (program, spec) in &config.config.programs {
            if spec
                .source
                .as_ref()
                .is_some_and(|s| code::has_journal(&s.deploy_dir))
            {
                info!("an update of {program} did not come to its end");
                self.look(program, spec, &at_a_time);
            }
        }
        loop {
            let now = Zoned::now();
            let config = in_force.borrow_and_update().clone();
            let mut wanted: HashMap<Name, (Schedule, Arc<Program>)> = HashMap::new();
            for (program, spec) in &config.config.programs {
                for (action, schedule) in &spec.schedules {
                    let name = (program.clone(), action.clone());
                    wanted.insert(name, (schedule.clone(), Arc::clone(spec)));
                }
            }
            timers.retain(|name, timer| {
                wanted
                    .get(name)
                    .is_some_and(|(schedule, _)| *schedule == timer.schedule)
            });
            for (name, (schedule, spec)) in &wanted {
                let timer = timers.entry(name.clone()).or_insert_with(|| Timer {
                    next: next(schedule, &now),
                    schedule: schedule.clone(),
                    asked: None,
                });
                // A clock that was set back would otherwise mean a long wait.
                let soonest = next(schedule, &now);
                let is_due = timer.next.as_ref().is_some_and(|at| *at <= now);
                timer.next = soonest;
                if name.1 == ActionName::update() && spec.source.is_some() {
                    let at = timer
                        .next
                        .as_ref()
                        .map(|at| at.strftime("%H:%M:%S").to_string());
                    self.front.lookout.note(&name.0, |seen| seen.next = at);
                }
                if is_due {
                    self.due(name, spec, timer, &at_a_time);
                }
            }
            let soonest = timers.values().filter_map(|t| t.next.as_ref()).min();
            let left = soonest.map_or(LOOK_EVERY, |at| {
                let left = at.duration_since(&Zoned::now());
                Duration::try_from(left).unwrap_or_default()
            });
            tokio::select! {
                () = tokio::time::sleep(left.min(LOOK_EVERY)) => {}
                changed = in_force.changed() => if changed.is_err() { return },
                Some((program, run)) = self.updated.recv() => self.follow(program, run),
            }
        }
    }

    fn due(&self, name: &Name, spec: &Arc<Program>, timer: &mut Timer, at_a_time: &Arc<Semaphore>) {
        let (program, action) = name;
        if self.front.frozen(program).is_some() {
            return;
        }
        if code::is_about(spec, action) && *action == ActionName::update() {
            return self.look(program, spec, at_a_time);
        }
        if let Some(asked) = &mut timer.asked {
            while let Ok(notice) = asked.try_recv() {
                if matches!(notice, Notice::Final(_)) {
                    timer.asked = None;
                    break;
                }
            }
        }
        if timer.asked.as_ref().is_some_and(|asked| !asked.is_closed()) {
            info!("{program} {action} is not begun again: the one before is not over");
            return;
        }
        timer.asked = self.front.by_itself(program, action, "scheduled");
    }

    /// Does what is to follow an update, if that has made another release current.
    fn follow(&self, program: ProgramName, run: RunId) {
        let in_force = self.front.in_force.borrow().clone();
        let Some(spec) = in_force.config.programs.get(&program).cloned() else {
            return;
        };
        let action = match spec.source.as_ref().map(|source| source.after) {
            Some(AfterUpdate::Run) => ActionName::run(),
            Some(AfterUpdate::Reload) => ActionName::reload(),
            Some(AfterUpdate::Restart) => ActionName::restart(),
            Some(AfterUpdate::Nothing) | None => return,
        };
        let what = What::Outcome { run: run.0 };
        let question = Question {
            program,
            spec,
            what,
        };
        let (front, common) = (self.front.clone(), Arc::clone(&self.surroundings));
        tokio::task::spawn_blocking(move || match question.ask(&in_force, &common) {
            Ok(answer) if answer.out.trim() == "true" => {
                let reason = format!("update {run} has brought another release");
                drop(front.by_itself(&question.program, &action, &reason));
            }
            Ok(_) => {}
            Err(e) => warn!(
                "what update {run} of {} did is not known: {e}",
                question.program
            ),
        });
    }

    /// Looks at a remote, and asks for an update if there is something new.
    fn look(&self, program: &ProgramName, spec: &Arc<Program>, at_a_time: &Arc<Semaphore>) {
        let question = Question {
            program: program.clone(),
            spec: Arc::clone(spec),
            what: What::Check,
        };
        let (front, common) = (self.front.clone(), Arc::clone(&self.surroundings));
        let at_a_time = Arc::clone(at_a_time);
        if !front
            .lookout
            .note(program, |seen| !std::mem::replace(&mut seen.looking, true))
        {
            return;
        }
        tokio::spawn(async move {
            let _permit = at_a_time.acquire_owned().await;
            let in_force = front.in_force.borrow().clone();
            let program = question.program.clone();
            let asked = tokio::task::spawn_blocking(move || question.ask(&in_force, &common));
            let answer = asked.await.unwrap_or_else(|e| Err(e.to_string()));
            let verdict = answer.and_then(|answer| match answer.status {
                0 => serde_json::from_str::<Verdict>(&answer.out)
                    .map_err(|e| format!("the worker answered nonsense: {e}")),
                _ => Err(answer.err.trim().replace("deployer: ", "")),
            });
            note(&front.lookout, &program, verdict.as_ref().err());
            if let Ok(Verdict {
                revision, because, ..
            }) = &verdict
            {
                let newest = (revision.clone(), because.clone());
                front
                    .lookout
                    .note(&program, |seen| seen.newest = Some(newest));
            }
            let Ok(Verdict {
                update: true,
                because,
                revision,
            }) = verdict
            else {
                return;
            };
            let held = front.lookout.seen(&program).held;
            if held.is_some_and(|h| h.revision == revision && Instant::now() < h.until) {
                return;
            }
            let told = front.by_itself(&program, &ActionName::update(), &because);
            if let Some(run) = ended(told).await {
                front
                    .lookout
                    .note(&program, |seen| hold(seen, revision, &run));
            }
        });
    }
}

/// Waits for the end of a run.
async fn ended(told: Option<mpsc::UnboundedReceiver<Notice>>) -> Option<Row> {
    let mut told = told?;
    while let Some(notice) = told.recv().await {
        if let Notice::Final(reply) = notice
            && let Reply::Ended { run, .. } = *reply
        {
            return Some(*run);
        }
    }
    None
}

/// An update that failed is not begun again every minute. One that a hook put off is.
fn hold(seen: &mut Seen, revision: String, run: &Row) {
    if run.outcome == "succeeded" {
        seen.newest = Some((revision.clone(), "it is current".to_owned()));
    }
    let before = seen.held.take().filter(|held| held.revision == revision);
    if run.outcome != "failed" || run.exit_code == Some(DEFERRED) {
        return;
    }
    let times = before.map_or(0, |held| held.times) + 1;
    let pause = SHORTEST.saturating_mul(1 << times.min(10)).min(LONGEST);
    seen.held = Some(Held {
        revision,
        run: run.id,
        times,
        until: Instant::now() + pause,
    });
}

/// The next time of a schedule.
fn next(schedule: &Schedule, now: &Zoned) -> Option<Zoned> {
    schedule.0.find_next_occurrence(now, false).ok()
}

/// Remembers how a look at a remote came out; the log is told when that changes.
fn note(lookout: &Lookout, program: &ProgramName, error: Option<&String>) {
    lookout.note(program, |seen| {
        seen.looking = false;
        match (error, seen.failing.take()) {
            (None, None) => {}
            (None, Some(_)) => info!("the remote of {program} can be looked at again"),
            (Some(error), Some((since, before))) => {
                if *error != before {
                    warn!("the remote of {program} cannot be looked at: {error}");
                }
                seen.failing = Some((since, error.clone()));
            }
            (Some(error), None) => {
                warn!("the remote of {program} cannot be looked at: {error}");
                seen.failing = Some((Moment::now().rfc3339(), error.clone()));
            }
        }
    });
}
