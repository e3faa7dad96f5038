//! What happens, for those who watch: the last events in a ring that all of them read from.
//!
//! Nobody has a queue of their own, so one who does not read costs nothing and holds up nobody;
//! one who falls too far behind is told to look at everything anew.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

use crate::daemon::clock::Moment;
use crate::ids::{ProgramName, RunId};

/// How many events are remembered.
const REMEMBERED: usize = 4096;

/// Something that has happened to a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Happened {
    /// Its number; the next one is larger.
    pub id: u64,
    /// The program.
    pub program: ProgramName,
    /// The run, if it is about one.
    pub run: Option<RunId>,
    /// What is so now, in one word.
    pub state: &'static str,
}

/// See the module's documentation. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Events(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    ring: Mutex<VecDeque<Happened>>,
    /// The number of the last one.
    newest: watch::Sender<u64>,
}

impl Events {
    /// Nothing has happened yet. Numbers go on after those of a former daemon.
    #[must_use]
    pub fn new() -> Self {
        // Microseconds: no daemon has had so many events as it has lived.
        let first = Moment::now().nanos().unsigned_abs() / 1000;
        Self(Arc::new(Shared {
            ring: Mutex::default(),
            newest: watch::Sender::new(first),
        }))
    }

    fn ring(&self) -> MutexGuard<'_, VecDeque<Happened>> {
        // Nobody leaves it half changed.
        self.0.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something has happened.
    pub fn tell(&self, program: &ProgramName, run: Option<RunId>, state: &'static str) {
        let mut ring = self.ring();
        let id = *self.0.newest.borrow() + 1;
        if ring.len() == REMEMBERED {
            ring.pop_front();
        }
        ring.push_back(Happened {
            id,
            program: program.clone(),
            run,
            state,
        });
        self.0.newest.send_replace(id);
    }

    /// Reads from after this event on, or what happens from now on.
    #[must_use]
    pub fn follow(&self, after: Option<u64>) -> Follower {
        let newest = self.0.newest.subscribe();
        let at = after.unwrap_or(*newest.borrow());
        Follower {
            events: self.clone(),
            newest,
            at,
        }
    }
}

/// One who reads events.
#[derive(Debug)]
pub struct Follower {
    events: Events,
    newest: watch::Receiver<u64>,
    /// The last one that was read.
    at: u64,
}

/// What a [`Follower`] gets.
#[derive(Debug, PartialEq, Eq)]
pub enum News {
    /// These have happened, one after the other.
    Events(Vec<Happened>),
    /// More than is remembered has happened, up to this number.
    Lost(u64),
}

impl Follower {
    /// Waits for what has happened since the last time.
    pub async fn next(&mut self) -> News {
        loop {
            let newest = *self.newest.borrow_and_update();
            if newest != self.at {
                let ring = self.events.ring();
                let oldest = ring.front().map_or(newest, |first| first.id);
                // Also a number that was never given: it is that of another daemon.
                let known = self.at.saturating_add(1) >= oldest && self.at < newest;
                let at = std::mem::replace(&mut self.at, newest);
                if !known {
                    return News::Lost(newest);
                }
                let from = ring.partition_point(|event| event.id <= at);
                return News::Events(ring.range(from..).cloned().collect());
            }
            if self.newest.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name() -> ProgramName {
        ProgramName::new("app").unwrap()
    }

    fn ids(news: News) -> Vec<u64> {
        match news {
            News::Events(events) => events.iter().map(|e| e.id).collect(),
            News::Lost(_) => panic!("lost"),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn everybody_reads_all_from_where_they_are() {
        let events = Events::new();
        let mut early = events.follow(None);
        events.tell(&name(), None, "frozen");
        events.tell(&name(), Some(RunId(1)), "running");
        let read = ids(early.next().await);
        assert_eq!(read.len(), 2);
        let mut late = events.follow(Some(read[0]));
        assert_eq!(ids(late.next().await), read[1..]);
        events.tell(&name(), Some(RunId(1)), "failed");
        assert_eq!(ids(early.next().await), [read[1] + 1]);
        assert_eq!(ids(late.next().await), [read[1] + 1]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn who_falls_behind_is_told_so() {
        let events = Events::new();
        let mut slow = events.follow(None);
        for _ in 0..=REMEMBERED {
            events.tell(&name(), None, "running");
        }
        assert!(matches!(slow.next().await, News::Lost(_)));
        events.tell(&name(), None, "idle");
        assert_eq!(ids(slow.next().await).len(), 1);
        // A number of a former daemon.
        assert!(matches!(events.follow(Some(7)).next().await, News::Lost(_)));
        let future = events.follow(Some(u64::MAX)).next().await;
        assert!(matches!(future, News::Lost(_)));
    }
}
