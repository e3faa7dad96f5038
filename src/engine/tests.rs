//! Random histories against the invariants of the module's documentation, and named cases.

use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::*;
use crate::ids::{ActionName, ProgramName};

fn lane(n: u8) -> LaneName {
    let program = ProgramName::new(&format!("p{n}")).unwrap();
    LaneName::new(&program, &ActionName::run())
}

fn terms() -> Terms {
    Terms {
        coalesce: true,
        timeout: None,
        stop_timeout: Duration::from_secs(10),
        leftovers: Leftovers::Keep,
        tree: true,
    }
}

/// The engine with a virtual clock, and a model of the world that holds it to its invariants.
struct World {
    engine: Engine,
    now: Instant,
    next: u64,
    lanes: HashMap<RunId, (LaneName, Terms)>,
    /// Position in the order of events at which a request was admitted.
    admitted: HashMap<RunId, u64>,
    started: HashMap<RunId, u64>,
    live: HashMap<LaneName, RunId>,
    /// Which processes exist, and which trees are watched.
    alive: HashSet<RunId>,
    watched: HashSet<RunId>,
    starting: HashSet<RunId>,
    draining: HashSet<RunId>,
    covered: HashMap<RunId, RunId>,
    finished: HashMap<RunId, Ending>,
    cancelled: HashSet<RunId>,
    clock: u64,
}

impl World {
    fn new() -> Self {
        Self {
            engine: Engine::new(),
            now: Instant::now(),
            next: 1,
            lanes: HashMap::new(),
            admitted: HashMap::new(),
            started: HashMap::new(),
            live: HashMap::new(),
            alive: HashSet::new(),
            watched: HashSet::new(),
            starting: HashSet::new(),
            draining: HashSet::new(),
            covered: HashMap::new(),
            finished: HashMap::new(),
            cancelled: HashSet::new(),
            clock: 0,
        }
    }

    fn handle(&mut self, event: Event) -> Vec<Effect> {
        self.clock += 1;
        let mut out = Vec::new();
        self.engine.handle(self.now, event.clone(), &mut out);
        for effect in &out {
            self.check(effect);
        }
        if event == Event::Ticked {
            assert!(
                self.engine.deadline().is_none_or(|at| at > self.now),
                "a timer lies in the past after a tick"
            );
        }
        out
    }

    fn check(&mut self, effect: &Effect) {
        match effect {
            Effect::Start { run, covers } => {
                let name = self.lanes[run].0.clone();
                assert!(
                    self.live.insert(name, *run).is_none(),
                    "two live runs in one lane"
                );
                assert!(
                    self.started.insert(*run, self.clock).is_none(),
                    "{run} was started twice"
                );
                assert!(!self.finished.contains_key(run));
                self.starting.insert(*run);
                for c in covers {
                    assert!(self.admitted[c] <= self.clock);
                    assert!(!self.finished.contains_key(c) && !self.started.contains_key(c));
                    assert!(
                        self.covered.insert(*c, *run).is_none(),
                        "{c} is covered twice"
                    );
                }
            }
            Effect::Supersede { run, by } => {
                assert!(run < by, "an older request displaced a newer one");
                assert_eq!(self.lanes[run].0, self.lanes[by].0);
            }
            Effect::Stop { run } | Effect::Kill { run } => {
                assert!(
                    self.alive.contains(run)
                        || self.watched.contains(run)
                        || self.draining.contains(run),
                    "{run} is not alive and was signalled"
                );
                assert!(!self.finished.contains_key(run));
            }
            Effect::Watch { run } => {
                self.watched.insert(*run);
            }
            Effect::Finish { run, ending } => {
                assert!(
                    self.finished.insert(*run, *ending).is_none(),
                    "{run} was answered twice"
                );
                assert!(
                    !self.covered.contains_key(run),
                    "{run} is covered and was answered by itself"
                );
                assert!(
                    !self.alive.contains(run),
                    "{run} was answered while its process lived"
                );
                if self.started.contains_key(run) {
                    assert_eq!(self.live.remove(&self.lanes[run].0), Some(*run));
                }
                self.starting.remove(run);
                self.draining.remove(run);
                self.watched.remove(run);
            }
            Effect::Wait { .. } | Effect::Revive { .. } => {}
        }
    }

    fn request(&mut self, name: LaneName, terms: Terms) -> (RunId, Vec<Effect>) {
        let run = RunId(self.next);
        self.next += 1;
        self.lanes.insert(run, (name.clone(), terms));
        self.admitted.insert(run, self.clock + 1);
        let out = self.handle(Event::Admitted {
            run,
            lane: name,
            terms,
        });
        (run, out)
    }

    fn begin(&mut self, run: RunId) -> Vec<Effect> {
        self.starting.remove(&run);
        self.alive.insert(run);
        self.handle(Event::Started { run })
    }

    fn end(&mut self, run: RunId, exit: Exit) -> Vec<Effect> {
        self.alive.remove(&run);
        self.draining.insert(run);
        self.handle(Event::Ended { run, exit })
    }

    fn end_and_drain(&mut self, run: RunId) -> Vec<Effect> {
        let mut out = self.end(run, Exit::Code(0));
        out.extend(self.handle(Event::Drained { run }));
        out
    }

    /// Lets everything that can still happen happen.
    fn play_out(&mut self) {
        for _ in 0..100_000 {
            if let Some(run) = self.starting.iter().next().copied() {
                self.begin(run);
            } else if let Some(run) = self.alive.iter().next().copied() {
                self.end(run, Exit::Signal(9));
            } else if let Some(run) = self.watched.iter().next().copied() {
                self.watched.remove(&run);
                self.handle(Event::Vacated { run });
                self.handle(Event::Drained { run });
            } else if let Some(run) = self.draining.iter().next().copied() {
                self.handle(Event::Drained { run });
            } else {
                break;
            }
        }
        assert!(
            self.engine.is_idle(),
            "something never ends: {:?}",
            self.engine
        );
        assert!(self.engine.deadline().is_none(), "a timer is left over");
        assert!(self.engine.whereabouts.is_empty());
        for (run, at) in &self.admitted {
            let by = self.covered.get(run).unwrap_or(run);
            assert!(self.finished.contains_key(by), "{run} was never answered");
            if let Some(started) = self.started.get(by) {
                assert!(
                    started >= at,
                    "{run} is answered by a run that began before it"
                );
            }
        }
    }
}

#[derive(Debug, Clone)]
enum Op {
    Request(u8, bool, u8),
    Begin(prop::sample::Index),
    FailToBegin(prop::sample::Index),
    End(prop::sample::Index, i32),
    Drain(prop::sample::Index),
    Vacate(prop::sample::Index),
    Cancel(prop::sample::Index),
    Pass(u16),
    Shutdown(u16),
    /// A report about any run at all, however late.
    Stray(prop::sample::Index, u8),
}

fn op() -> impl Strategy<Value = Op> {
    use any as a;
    type I = prop::sample::Index;
    prop_oneof![
        8 => (0..3u8, a::<bool>(), 0..3u8).prop_map(|(l, c, k)| Op::Request(l, c, k)),
        6 => a::<I>().prop_map(Op::Begin),
        1 => a::<I>().prop_map(Op::FailToBegin),
        5 => (a::<I>(), 0..3i32).prop_map(|(i, c)| Op::End(i, c)),
        5 => a::<I>().prop_map(Op::Drain),
        4 => a::<I>().prop_map(Op::Vacate),
        3 => a::<I>().prop_map(Op::Cancel),
        3 => (0..400u16).prop_map(Op::Pass),
        1 => (0..100u16).prop_map(Op::Shutdown),
        2 => (a::<I>(), 0..5u8).prop_map(|(i, k)| Op::Stray(i, k)),
    ]
}

fn pick(set: &HashSet<RunId>, index: &prop::sample::Index) -> Option<RunId> {
    let mut all: Vec<_> = set.iter().copied().collect();
    all.sort();
    (!all.is_empty()).then(|| all[index.index(all.len())])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn random_histories_keep_the_invariants(ops in prop::collection::vec(op(), 1..120)) {
        let mut w = World::new();
        let mut shut = false;
        for op in ops {
            match op {
                Op::Request(l, coalesce, kind) => {
                    let leftovers = [Leftovers::Keep, Leftovers::Kill, Leftovers::Wait][kind as usize];
                    let timeout = (kind != 0).then(|| Duration::from_secs(u64::from(kind) * 100));
                    w.request(lane(l), Terms { coalesce, leftovers, timeout, tree: l != 0, ..terms() });
                }
                Op::Begin(i) => { if let Some(run) = pick(&w.starting, &i) { w.begin(run); } }
                Op::FailToBegin(i) => {
                    if let Some(run) = pick(&w.starting, &i) {
                        w.starting.remove(&run);
                        w.handle(Event::SpawnFailed { run });
                    }
                }
                Op::End(i, c) => {
                    if let Some(run) = pick(&w.alive, &i) {
                        w.end(run, [Exit::Code(0), Exit::Signal(15), Exit::Unknown][c as usize]);
                    }
                }
                Op::Drain(i) => { if let Some(run) = pick(&w.draining, &i) { w.handle(Event::Drained { run }); } }
                Op::Vacate(i) => {
                    if let Some(run) = pick(&w.watched, &i) {
                        w.watched.remove(&run);
                        w.handle(Event::Vacated { run });
                    }
                }
                Op::Cancel(i) => {
                    if w.next > 1 {
                        let run = RunId(1 + i.index(w.next as usize - 1) as u64);
                        let waiting = w.engine.standing(run) == Standing::Waiting;
                        w.handle(Event::CancelRequested { run });
                        if waiting {
                            w.cancelled.insert(run);
                            prop_assert!(w.finished.contains_key(&run));
                        }
                    }
                }
                Op::Pass(seconds) => {
                    w.now += Duration::from_secs(u64::from(seconds));
                    w.handle(Event::Ticked);
                }
                Op::Shutdown(seconds) => {
                    let stop_at = w.now + Duration::from_secs(u64::from(seconds));
                    w.handle(Event::ShutdownBegan { stop_at });
                    shut = true;
                }
                Op::Stray(i, kind) => {
                    let run = RunId(1 + i.index(w.next as usize) as u64);
                    // A report that could be true of a live run is no stray.
                    if w.alive.contains(&run) || w.starting.contains(&run) || w.draining.contains(&run) { continue; }
                    w.handle(match kind {
                        0 => Event::Started { run },
                        1 => Event::SpawnFailed { run },
                        2 => Event::Ended { run, exit: Exit::Code(0) },
                        3 => Event::Drained { run },
                        _ => Event::Vacated { run },
                    });
                }
            }
        }
        w.play_out();
        if !shut {
            for l in 0..3 {
                // 4: the last request of a lane that nobody cancelled had a run of its own or a later one.
                let last = (1..w.next).rev().map(RunId).find(|r| w.lanes[r].0 == lane(l) && !w.cancelled.contains(r));
                if let Some(last) = last {
                    let by = w.covered.get(&last).copied().unwrap_or(last);
                    prop_assert!(by >= last && w.started.contains_key(&by), "{last} was not covered");
                }
            }
        }
    }
}

#[test]
fn three_waiting_requests_lead_to_one_more_run() {
    let mut w = World::new();
    let (first, out) = w.request(lane(0), terms());
    assert_eq!(
        out,
        [Effect::Start {
            run: first,
            covers: vec![]
        }]
    );
    w.begin(first);
    let (second, _) = w.request(lane(0), terms());
    let (third, out) = w.request(lane(0), terms());
    assert_eq!(
        out,
        [
            Effect::Supersede {
                run: second,
                by: third
            },
            Effect::Wait { run: third }
        ]
    );
    let (fourth, _) = w.request(lane(0), terms());
    let out = w.end_and_drain(first);
    assert_eq!(
        out.last(),
        Some(&Effect::Start {
            run: fourth,
            covers: vec![second, third]
        })
    );
    w.play_out();
}

#[test]
fn a_queue_runs_every_request_in_order() {
    let mut w = World::new();
    let queue = Terms {
        coalesce: false,
        ..terms()
    };
    let runs: Vec<_> = (0..4).map(|_| w.request(lane(0), queue).0).collect();
    for pair in runs.windows(2) {
        w.begin(pair[0]);
        let out = w.end_and_drain(pair[0]);
        assert_eq!(
            out.last(),
            Some(&Effect::Start {
                run: pair[1],
                covers: vec![]
            })
        );
    }
    w.play_out();
}

#[test]
fn a_request_of_its_own_is_displaced_by_nobody() {
    let mut w = World::new();
    let own = Terms {
        coalesce: false,
        ..terms()
    };
    let (first, _) = w.request(lane(0), terms());
    w.begin(first);
    let (second, _) = w.request(lane(0), own);
    let (third, _) = w.request(lane(0), terms());
    let (fourth, _) = w.request(lane(0), terms());
    for (run, covers) in [(second, vec![]), (fourth, vec![third])] {
        let before = if run == second { first } else { second };
        let out = w.end_and_drain(before);
        assert_eq!(out.last(), Some(&Effect::Start { run, covers }));
        w.begin(run);
    }
    w.play_out();
}

#[test]
fn cancelling_the_last_waiting_request_revives_the_one_it_displaced() {
    let mut w = World::new();
    let (first, _) = w.request(lane(0), terms());
    w.begin(first);
    let (second, _) = w.request(lane(0), terms());
    let (third, _) = w.request(lane(0), terms());
    let out = w.handle(Event::CancelRequested { run: third });
    assert_eq!(
        out,
        [
            Effect::Revive {
                run: second,
                from: third
            },
            Effect::Finish {
                run: third,
                ending: Ending::Withdrawn(StopReason::Cancelled)
            }
        ]
    );
    let out = w.end_and_drain(first);
    assert_eq!(
        out.last(),
        Some(&Effect::Start {
            run: second,
            covers: vec![]
        })
    );
    w.play_out();
}

#[test]
fn a_run_that_ignores_the_stop_signal_is_killed_after_its_stop_timeout() {
    let mut w = World::new();
    let (run, _) = w.request(
        lane(0),
        Terms {
            timeout: Some(Duration::from_secs(60)),
            ..terms()
        },
    );
    w.begin(run);
    w.now += Duration::from_secs(60);
    assert_eq!(w.handle(Event::Ticked), [Effect::Stop { run }]);
    w.now += Duration::from_secs(10);
    assert_eq!(w.handle(Event::Ticked), [Effect::Kill { run }]);
    assert_eq!(w.end(run, Exit::Signal(9)), [Effect::Watch { run }]);
    w.handle(Event::Drained { run });
    w.watched.remove(&run);
    let out = w.handle(Event::Vacated { run });
    assert_eq!(
        out,
        [Effect::Finish {
            run,
            ending: Ending::Stopped(StopReason::TimedOut, Exit::Signal(9))
        }]
    );
}

#[test]
fn children_that_survive_the_stop_of_their_parent_are_killed_too() {
    let mut w = World::new();
    let (run, _) = w.request(lane(0), terms());
    w.begin(run);
    w.handle(Event::CancelRequested { run });
    assert_eq!(w.end(run, Exit::Signal(15)), [Effect::Watch { run }]);
    assert_eq!(w.handle(Event::Drained { run }), []);
    w.now += Duration::from_secs(10);
    assert_eq!(w.handle(Event::Ticked), [Effect::Kill { run }]);
    w.play_out();
}

#[test]
fn a_cancel_that_comes_while_the_process_is_being_made_is_not_lost() {
    let mut w = World::new();
    let (run, _) = w.request(lane(0), terms());
    assert_eq!(w.handle(Event::CancelRequested { run }), []);
    assert_eq!(w.begin(run), [Effect::Stop { run }]);
    w.play_out();
}

#[test]
fn a_stopping_daemon_withdraws_what_waits_and_lets_live_runs_finish() {
    let mut w = World::new();
    let (run, _) = w.request(lane(0), terms());
    w.begin(run);
    let (waiting, _) = w.request(lane(0), terms());
    let stop_at = w.now + Duration::from_secs(30);
    let out = w.handle(Event::ShutdownBegan { stop_at });
    assert_eq!(
        out,
        [Effect::Finish {
            run: waiting,
            ending: Ending::Withdrawn(StopReason::Shutdown)
        }]
    );
    assert_eq!(w.engine.deadline(), Some(stop_at));
    w.now = stop_at;
    assert_eq!(w.handle(Event::Ticked), [Effect::Stop { run }]);
    w.play_out();
}
