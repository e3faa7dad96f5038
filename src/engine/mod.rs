//! The scheduler: which run may begin, which must end, and who covers whom.
//!
//! It is pure. No clock, no I/O, no logging: [`Engine::handle`] takes the time and an [`Event`]
//! and appends [`Effect`]s, [`Engine::deadline`] says when it wants a [`Event::Ticked`]. A shell
//! around it (the daemon's actor) performs the effects and decides nothing.
//!
//! # States
//!
//! Every program has one lane. A lane that is not in the map is idle.
//!
//! ```text
//!            Admitted                 Started                Ended
//!   (idle) ───────────▶ Starting ───────────────▶ Running ─────────▶ Draining ──▶ (idle, or the next)
//!                          │ SpawnFailed             │ timeout, cancel   ▲  Drained and Vacated
//!                          ▼                         ▼                   │
//!                       (finished)                Stopping ──▶ Killing ──┘
//! ```
//!
//! A request is *admitted* when it is on record. While the lane is busy it waits in `queue`;
//! one that coalesces takes the place of the last one there, if that does so too, and *covers* it.
//!
//! # Invariants (tested with random histories in `tests.rs`)
//!
//! 1. At most one live run a lane, from its [`Effect::Start`] until its process has ended and its
//!    output is drained.
//! 2. A request is never covered by a run that started before it was admitted.
//! 3. Every admitted request gets exactly one final answer: the [`Effect::Finish`] of itself, or
//!    of the run that covers it.
//! 4. The last request that nobody cancelled is covered by a run that started after it.
//! 5. Only live runs are stopped or killed; no timer lies in the past after a tick.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::config::model::Leftovers;
use crate::ids::{LaneName, RunId};

pub mod service;
#[cfg(test)]
mod tests;

/// What the engine has to know of a request's program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Whether it takes the place of the request that waits last.
    pub coalesce: bool,
    /// How long the run may take.
    pub timeout: Option<Duration>,
    /// How long after a polite stop it is killed.
    pub stop_timeout: Duration,
    /// What happens to processes that outlive the run's own.
    pub leftovers: Leftovers,
    /// Whether a stop is over only when the whole tree has gone (`kill-mode = tree`).
    pub tree: bool,
}

/// How a run's process ended, as far as it is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// With this status.
    Code(i32),
    /// By this signal.
    Signal(i32),
    /// It is gone, and nobody who could be asked has seen how.
    Unknown,
}

/// Why a run was ended from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// It took longer than its `timeout`.
    TimedOut,
    /// Somebody cancelled it.
    Cancelled,
    /// It is a program that is to be down.
    Halted,
    /// The daemon is stopping.
    Shutdown,
}

/// How a request came out. The shell turns it into a row's outcome and the clients' answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Its process ended by itself.
    Exited(Exit),
    /// Its process was ended.
    Stopped(StopReason, Exit),
    /// There never was a process: it could not be started.
    SpawnFailed,
    /// There never was a process: it was withdrawn while it waited.
    Withdrawn(StopReason),
}

/// What has happened. Past tense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A request that policy granted is on record.
    Admitted {
        /// Its number.
        run: RunId,
        /// The program it asks for.
        lane: LaneName,
        /// The program's settings that matter here.
        terms: Terms,
    },
    /// After a restart of the daemon: this run was found alive.
    Adopted {
        /// Its number.
        run: RunId,
        /// Its program.
        lane: LaneName,
        /// The program's settings that matter here.
        terms: Terms,
        /// When its timeout runs out.
        stop_at: Option<Instant>,
    },
    /// The process of a started run exists.
    Started {
        /// Which run.
        run: RunId,
    },
    /// The process of a started run could not be made.
    SpawnFailed {
        /// Which run.
        run: RunId,
    },
    /// The process has ended.
    Ended {
        /// Which run.
        run: RunId,
        /// How.
        exit: Exit,
    },
    /// All output is in the log, or was given up.
    Drained {
        /// Which run.
        run: RunId,
    },
    /// Nothing of the run's tree is left (the answer to [`Effect::Watch`]).
    Vacated {
        /// Which run.
        run: RunId,
    },
    /// Somebody who may wants this request withdrawn or this run ended.
    CancelRequested {
        /// Which one.
        run: RunId,
    },
    /// The program whose process this is is to be down.
    HaltRequested {
        /// Which run.
        run: RunId,
    },
    /// The daemon stops: nothing waits any longer, and live runs end at this time at the latest.
    ShutdownBegan {
        /// When live runs are stopped.
        stop_at: Instant,
    },
    /// A time that [`Engine::deadline`] named has come.
    Ticked,
}

/// What the shell is to do. Imperative.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Start the process of this run. It covers requests that were displaced.
    Start {
        /// Which run.
        run: RunId,
        /// The requests whose place it took, oldest first.
        covers: Vec<RunId>,
    },
    /// This request waits.
    Wait {
        /// Which one.
        run: RunId,
    },
    /// This waiting request was displaced by a newer one.
    Supersede {
        /// The older one.
        run: RunId,
        /// The newer one.
        by: RunId,
    },
    /// This request waits again: the one that had displaced it was withdrawn.
    Revive {
        /// Which one.
        run: RunId,
        /// The newer one.
        from: RunId,
    },
    /// Ask the run to end: its stop signal, then CONT.
    Stop {
        /// Which run.
        run: RunId,
    },
    /// End the run: KILL.
    Kill {
        /// Which run.
        run: RunId,
    },
    /// Report [`Event::Vacated`] when nothing of the run's tree is left.
    Watch {
        /// Which run.
        run: RunId,
    },
    /// This request, and all that it covers, is over.
    Finish {
        /// Which run.
        run: RunId,
        /// How it came out.
        ending: Ending,
    },
}

/// Whether a cancel found something to cancel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It waits, or was displaced and is still to be covered.
    Waiting,
    /// It has, or is about to have, a process.
    Live,
    /// The engine does not know it, or not any more.
    Over,
}

/// A request in a lane's queue.
#[derive(Debug, Clone)]
struct Pending {
    run: RunId,
    terms: Terms,
    /// The requests it displaced, oldest first, with their own terms so that they can return.
    covers: Vec<(RunId, Terms)>,
}

/// Where a lane's run stands.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// [`Effect::Start`] was given; a stop that came meanwhile is kept.
    Starting(Option<StopReason>),
    /// It lives; at the instant its timeout runs out.
    Running(Option<Instant>),
    /// It was asked to end; at the instant it is killed.
    Stopping(StopReason, Instant),
    /// It was killed.
    Killing(StopReason),
    /// Its process has ended; its tree or its output has not.
    Draining(Drain),
}

/// What a run whose process has ended still waits for.
#[derive(Debug, Clone, Copy)]
struct Drain {
    ending: Ending,
    output: bool,
    tree: Tree,
}

/// The rest of a run's tree, after its own process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tree {
    /// Gone, or none of our business.
    Done,
    /// Waited for, without an end (`leftovers = wait`) or until the run's timeout.
    Awaited(Option<Instant>),
    /// Asked to end; killed at the instant.
    Stopping(Instant),
    /// Killed.
    Killed,
}

#[derive(Debug)]
struct Lane {
    run: RunId,
    terms: Terms,
    phase: Phase,
    queue: VecDeque<Pending>,
    /// Its entry in [`Engine::timers`].
    armed: Option<Instant>,
}

/// All lanes. See the module's documentation.
#[derive(Debug, Default)]
pub struct Engine {
    lanes: HashMap<LaneName, Lane>,
    /// The lane of every request that has no final answer yet.
    whereabouts: HashMap<RunId, LaneName>,
    timers: BTreeSet<(Instant, LaneName)>,
    stop_at: Option<Instant>,
}

impl Engine {
    /// An engine with all lanes idle.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// When the next [`Event::Ticked`] is due.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.timers.first().map(|(at, _)| *at)
    }

    /// Whether nothing lives and nothing waits.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.lanes.is_empty()
    }

    /// How many requests wait in a lane, not counting displaced ones.
    #[must_use]
    pub fn waiting(&self, lane: &LaneName) -> usize {
        self.lanes.get(lane).map_or(0, |l| l.queue.len())
    }

    /// The first request that waits in a lane and came after `run`.
    #[must_use]
    pub fn next_after(&self, lane: &LaneName, run: RunId) -> Option<RunId> {
        let queue = &self.lanes.get(lane)?.queue;
        queue.iter().map(|p| p.run).find(|r| *r > run)
    }

    /// The run that occupies a lane.
    #[must_use]
    pub fn current(&self, lane: &LaneName) -> Option<RunId> {
        self.lanes.get(lane).map(|l| l.run)
    }

    /// Where a request stands.
    #[must_use]
    pub fn standing(&self, run: RunId) -> Standing {
        match self
            .whereabouts
            .get(&run)
            .and_then(|name| self.lanes.get(name))
        {
            None => Standing::Over,
            Some(lane) if lane.run == run => Standing::Live,
            Some(_) => Standing::Waiting,
        }
    }

    /// Takes one event and appends what follows from it to `out`.
    ///
    /// An event about a run that the engine does not (or no longer) expect is ignored: a late
    /// report never disturbs the run that came after.
    pub fn handle(&mut self, now: Instant, event: Event, out: &mut Vec<Effect>) {
        match event {
            Event::Admitted { run, lane, terms } => self.admit(run, lane, terms, out),
            Event::Adopted {
                run,
                lane,
                terms,
                stop_at,
            } => self.adopt(run, lane, terms, stop_at),
            Event::ShutdownBegan { stop_at } => self.shut_down(now, stop_at, out),
            Event::CancelRequested { run } => self.cancel(now, run, out),
            Event::HaltRequested { run } => {
                self.advance(now, run, Step::Stop(StopReason::Halted), out);
            }
            Event::Ticked => self.tick(now, out),
            Event::Started { run } => self.advance(now, run, Step::Started, out),
            Event::SpawnFailed { run } => self.advance(now, run, Step::SpawnFailed, out),
            Event::Ended { run, exit } => self.advance(now, run, Step::Ended(exit), out),
            Event::Drained { run } => self.advance(now, run, Step::Drained, out),
            Event::Vacated { run } => self.advance(now, run, Step::Vacated, out),
        }
    }

    fn admit(&mut self, run: RunId, name: LaneName, terms: Terms, out: &mut Vec<Effect>) {
        if self.stop_at.is_some() {
            out.push(Effect::Finish {
                run,
                ending: Ending::Withdrawn(StopReason::Shutdown),
            });
            return;
        }
        self.whereabouts.insert(run, name.clone());
        let Some(lane) = self.lanes.get_mut(&name) else {
            let phase = Phase::Starting(None);
            self.lanes.insert(
                name,
                Lane {
                    run,
                    terms,
                    phase,
                    queue: VecDeque::new(),
                    armed: None,
                },
            );
            out.push(Effect::Start {
                run,
                covers: Vec::new(),
            });
            return;
        };
        let covers = match lane.queue.pop_back() {
            Some(mut last) if terms.coalesce && last.terms.coalesce => {
                out.push(Effect::Supersede {
                    run: last.run,
                    by: run,
                });
                last.covers.push((last.run, last.terms));
                last.covers
            }
            Some(last) => {
                lane.queue.push_back(last);
                Vec::new()
            }
            None => Vec::new(),
        };
        lane.queue.push_back(Pending { run, terms, covers });
        out.push(Effect::Wait { run });
    }

    fn adopt(&mut self, run: RunId, name: LaneName, terms: Terms, stop_at: Option<Instant>) {
        debug_assert!(!self.lanes.contains_key(&name), "two live runs in one lane");
        self.whereabouts.insert(run, name.clone());
        let phase = Phase::Running(stop_at);
        self.lanes.insert(
            name.clone(),
            Lane {
                run,
                terms,
                phase,
                queue: VecDeque::new(),
                armed: None,
            },
        );
        self.arm(&name);
    }

    fn cancel(&mut self, now: Instant, run: RunId, out: &mut Vec<Effect>) {
        let Some(name) = self.whereabouts.get(&run).cloned() else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(&name) else {
            return;
        };
        if lane.run == run {
            self.advance(now, run, Step::Stop(StopReason::Cancelled), out);
            return;
        }
        let Some(place) = lane
            .queue
            .iter()
            .position(|p| p.run == run || p.covers.iter().any(|(r, _)| *r == run))
        else {
            return;
        };
        let pending = &mut lane.queue[place];
        if pending.run != run {
            pending.covers.retain(|(r, _)| *r != run);
        } else if let Some((older, terms)) = pending.covers.pop() {
            // Whoever was displaced by it still waits for a run that starts after their request.
            (pending.run, pending.terms) = (older, terms);
            out.push(Effect::Revive {
                run: older,
                from: run,
            });
        } else {
            lane.queue.remove(place);
        }
        self.whereabouts.remove(&run);
        out.push(Effect::Finish {
            run,
            ending: Ending::Withdrawn(StopReason::Cancelled),
        });
    }

    fn shut_down(&mut self, now: Instant, stop_at: Instant, out: &mut Vec<Effect>) {
        self.stop_at = Some(stop_at);
        let mut names: Vec<_> = self.lanes.keys().cloned().collect();
        names.sort();
        for name in names {
            let Some(lane) = self.lanes.get_mut(&name) else {
                continue;
            };
            for pending in std::mem::take(&mut lane.queue) {
                for run in pending.covers.iter().map(|(r, _)| *r).chain([pending.run]) {
                    self.whereabouts.remove(&run);
                    out.push(Effect::Finish {
                        run,
                        ending: Ending::Withdrawn(StopReason::Shutdown),
                    });
                }
            }
            self.arm(&name);
        }
        self.tick(now, out);
    }

    fn tick(&mut self, now: Instant, out: &mut Vec<Effect>) {
        while let Some((at, name)) = self.timers.first().cloned() {
            if at > now {
                break;
            }
            self.timers.pop_first();
            let Some(lane) = self.lanes.get_mut(&name) else {
                continue;
            };
            lane.armed = None;
            let run = lane.run;
            self.advance(now, run, Step::Timer, out);
        }
    }

    /// One step of the run that occupies a lane.
    fn advance(&mut self, now: Instant, run: RunId, step: Step, out: &mut Vec<Effect>) {
        let Some(name) = self.whereabouts.get(&run).cloned() else {
            return;
        };
        let Some(lane) = self.lanes.get_mut(&name) else {
            return;
        };
        if lane.run != run {
            return;
        }
        let shutdown = self
            .stop_at
            .filter(|at| *at <= now)
            .map(|_| StopReason::Shutdown);
        let next = match transition(now, run, lane.terms, lane.phase, step, shutdown, out) {
            Next::Phase(phase) => {
                lane.phase = phase;
                self.arm(&name);
                return;
            }
            Next::Over(ending) => {
                out.push(Effect::Finish { run, ending });
                self.whereabouts.remove(&run);
                lane.queue.pop_front()
            }
        };
        match next {
            Some(Pending { run, terms, covers }) => {
                lane.run = run;
                lane.terms = terms;
                lane.phase = Phase::Starting(None);
                for (covered, _) in &covers {
                    self.whereabouts.remove(covered);
                }
                out.push(Effect::Start {
                    run,
                    covers: covers.into_iter().map(|(r, _)| r).collect(),
                });
                self.arm(&name);
            }
            None => {
                if let Some(at) = self.lanes.remove(&name).and_then(|l| l.armed) {
                    self.timers.remove(&(at, name));
                }
            }
        }
    }

    /// Sets the one timer of a lane to what its phase asks for.
    fn arm(&mut self, name: &LaneName) {
        let Some(lane) = self.lanes.get_mut(name) else {
            return;
        };
        let at = match lane.phase {
            Phase::Running(at) => earlier(at, self.stop_at),
            Phase::Stopping(_, at) => Some(at),
            Phase::Draining(Drain {
                tree: Tree::Awaited(at),
                ..
            }) => earlier(at, self.stop_at),
            Phase::Draining(Drain {
                tree: Tree::Stopping(at),
                ..
            }) => Some(at),
            Phase::Starting(_) | Phase::Killing(_) | Phase::Draining(_) => None,
        };
        if lane.armed == at {
            return;
        }
        if let Some(old) = std::mem::replace(&mut lane.armed, at) {
            self.timers.remove(&(old, name.clone()));
        }
        if let Some(at) = at {
            self.timers.insert((at, name.clone()));
        }
    }
}

fn earlier(a: Option<Instant>, b: Option<Instant>) -> Option<Instant> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

/// What can happen to the run that occupies a lane.
#[derive(Debug, Clone, Copy)]
enum Step {
    Started,
    SpawnFailed,
    Ended(Exit),
    Drained,
    Vacated,
    Stop(StopReason),
    Timer,
}

enum Next {
    Phase(Phase),
    Over(Ending),
}

/// The table of phases and steps. `shutdown` is set once the time of live runs is over.
fn transition(
    now: Instant,
    run: RunId,
    terms: Terms,
    phase: Phase,
    step: Step,
    shutdown: Option<StopReason>,
    out: &mut Vec<Effect>,
) -> Next {
    let stop = |reason, out: &mut Vec<Effect>| {
        out.push(Effect::Stop { run });
        Next::Phase(Phase::Stopping(reason, now + terms.stop_timeout))
    };
    match (phase, step) {
        (Phase::Starting(None), Step::Started) => match shutdown {
            Some(reason) => stop(reason, out),
            None => Next::Phase(Phase::Running(terms.timeout.map(|t| now + t))),
        },
        (Phase::Starting(Some(reason)), Step::Started) => stop(reason, out),
        (Phase::Starting(_), Step::SpawnFailed) => Next::Over(Ending::SpawnFailed),
        (Phase::Starting(earlier), Step::Stop(reason)) => {
            Next::Phase(Phase::Starting(earlier.or(Some(reason))))
        }

        (Phase::Running(_), Step::Stop(reason)) => stop(reason, out),
        (Phase::Running(at), Step::Timer) => {
            if at.is_some_and(|at| at <= now) {
                stop(StopReason::TimedOut, out)
            } else if let Some(reason) = shutdown {
                stop(reason, out)
            } else {
                Next::Phase(phase)
            }
        }
        (Phase::Running(at), Step::Ended(exit)) => {
            let tree = match terms.leftovers {
                Leftovers::Keep => Tree::Done,
                Leftovers::Wait => Tree::Awaited(at),
                Leftovers::Kill => {
                    out.push(Effect::Stop { run });
                    Tree::Stopping(now + terms.stop_timeout)
                }
            };
            begin_drain(run, Ending::Exited(exit), tree, out)
        }

        (Phase::Stopping(reason, at), Step::Timer) if at <= now => {
            out.push(Effect::Kill { run });
            Next::Phase(Phase::Killing(reason))
        }
        (Phase::Stopping(reason, at), Step::Ended(exit)) => {
            let tree = if terms.tree {
                Tree::Stopping(at)
            } else {
                Tree::Done
            };
            begin_drain(run, Ending::Stopped(reason, exit), tree, out)
        }
        (Phase::Killing(reason), Step::Ended(exit)) => {
            let tree = if terms.tree { Tree::Killed } else { Tree::Done };
            begin_drain(run, Ending::Stopped(reason, exit), tree, out)
        }

        (Phase::Draining(drain), Step::Drained) => settle(Drain {
            output: true,
            ..drain
        }),
        (Phase::Draining(drain), Step::Vacated) => settle(Drain {
            tree: Tree::Done,
            ..drain
        }),
        (Phase::Draining(drain), Step::Timer | Step::Stop(_)) => {
            let cancelled = matches!(step, Step::Stop(_));
            match drain.tree {
                Tree::Awaited(at)
                    if cancelled || shutdown.is_some() || at.is_some_and(|at| at <= now) =>
                {
                    out.push(Effect::Stop { run });
                    settle(Drain {
                        tree: Tree::Stopping(now + terms.stop_timeout),
                        ..drain
                    })
                }
                Tree::Stopping(at) if at <= now => {
                    out.push(Effect::Kill { run });
                    settle(Drain {
                        tree: Tree::Killed,
                        ..drain
                    })
                }
                Tree::Done | Tree::Awaited(_) | Tree::Stopping(_) | Tree::Killed => {
                    Next::Phase(phase)
                }
            }
        }

        // Output that ends before its process: the pump says so when the process has ended, too.
        (
            Phase::Starting(_) | Phase::Running(_) | Phase::Stopping(..) | Phase::Killing(_),
            Step::Drained | Step::Vacated,
        )
        | (Phase::Starting(_), Step::Ended(_) | Step::Timer)
        | (
            Phase::Running(_) | Phase::Stopping(..) | Phase::Killing(_),
            Step::Started | Step::SpawnFailed,
        )
        | (Phase::Draining(_), Step::Started | Step::SpawnFailed | Step::Ended(_))
        | (Phase::Stopping(..) | Phase::Killing(_), Step::Stop(_) | Step::Timer) => {
            Next::Phase(phase)
        }
    }
}

fn begin_drain(run: RunId, ending: Ending, tree: Tree, out: &mut Vec<Effect>) -> Next {
    if tree != Tree::Done {
        out.push(Effect::Watch { run });
    }
    settle(Drain {
        ending,
        output: false,
        tree,
    })
}

fn settle(drain: Drain) -> Next {
    if drain.output && drain.tree == Tree::Done {
        Next::Over(drain.ending)
    } else {
        Next::Phase(Phase::Draining(drain))
    }
}
