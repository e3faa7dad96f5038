//! The pump's thread: waits for pipes, commands and timers, and gives every run its turn.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, Event, EventFlags};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread};

use crate::ids::RunId;
use crate::log::Stream;

use super::sink::{Means, Sink, Source, Step};
use super::{Closed, Listener, Shared, TURN, WAKE};

/// Events taken at once.
const BATCH: usize = 256;
/// A stream that gives so many bytes at once is one that will give more.
const MUCH: usize = 4096;
/// How long such a stream is left to itself then.
const GATHER: Duration = Duration::from_micros(300);
/// How many pipes may be large at a time: they hold kernel memory.
const MOST_LARGE: usize = 64;
/// How many logs may wait for their end to be written, on a disk that fails.
const MOST_ENDS: usize = 1024;
/// How often that is tried.
const END_RETRY: Duration = Duration::from_secs(1);

/// A run that is with the pump.
pub(super) struct Run {
    pub(super) id: RunId,
    /// Stdout's and stderr's; none when they have ended.
    pub(super) sources: [Option<Source>; 2],
    pub(super) sink: Sink,
    pub(super) listener: Box<dyn Listener>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    /// The time after a process' end is over.
    Grace,
    /// A count of dropped bytes is to be written.
    Dropped,
    /// Ends of logs are to be written.
    Ends,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    means: Means,
    /// By key.
    runs: HashMap<u64, Run>,
    keys: HashMap<RunId, u64>,
    /// What is due when, and for which key; may be of runs that have gone.
    timers: BinaryHeap<Reverse<(Instant, Timer, u64)>>,
    /// Closed logs whose end could not be written yet.
    ends: VecDeque<Sink>,
    large: usize,
    /// Keys of the runs whose logs grew in this round.
    grew: Vec<u64>,
    /// Whether somebody wrote much in this round.
    busy: bool,
}

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, null: File) -> Self {
        Self {
            shared,
            means: Means {
                null,
                buffer: vec![0; 64 * 1024],
            },
            runs: HashMap::new(),
            keys: HashMap::new(),
            timers: BinaryHeap::new(),
            ends: VecDeque::new(),
            large: 0,
            grew: Vec::new(),
            busy: false,
        }
    }

    pub(super) fn work(mut self) {
        // Signals are for other threads; above all SIGXFSZ, whose error is enough.
        let _ = SigSet::all().thread_block();
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        loop {
            let timeout = self.timeout();
            events.clear();
            match epoll::wait(
                &self.shared.epoll,
                spare_capacity(&mut events),
                timeout.as_ref(),
            ) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(e) => unreachable!("waiting on an epoll instance of our own: {e}"),
            }
            let mut woken = false;
            for event in &events {
                match event.data.u64() {
                    WAKE => woken = true,
                    mark => self.turn(mark / 2, stream_of(mark), event.flags),
                }
            }
            if woken && self.obey() {
                return;
            }
            self.fire();
            self.tell();
            if std::mem::take(&mut self.busy) {
                // Whoever writes much fills its pipe meanwhile: one large piece instead of many
                // small ones, each with a wake-up of its own.
                std::thread::sleep(GATHER);
            }
        }
    }

    /// How long to wait for events: whole milliseconds, rounded up.
    fn timeout(&self) -> Option<Timespec> {
        let Reverse((at, ..)) = self.timers.peek()?;
        let left = at.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        let millis = i64::try_from(left.as_millis())
            .unwrap_or(i64::MAX)
            .min(3_600_000);
        Some(Timespec {
            tv_sec: millis / 1000,
            tv_nsec: millis % 1000 * 1_000_000,
        })
    }

    /// Takes over what was added. Its events may come before anybody wakes us.
    fn take_in(&mut self) {
        let added = std::mem::take(&mut self.shared.inbox().added);
        for (key, run) in added {
            self.keys.insert(run.id, key);
            let ended = run.sources.iter().all(Option::is_none);
            self.runs.insert(key, run);
            if ended {
                self.close(key, false);
            }
        }
    }

    /// Does what was commanded. True: the last handle has gone.
    fn obey(&mut self) -> bool {
        let _ = rustix::io::read(&self.shared.wake, &mut [0; 8]);
        self.take_in();
        let (ended, stop) = {
            let mut inbox = self.shared.inbox();
            (std::mem::take(&mut inbox.ended), inbox.stop)
        };
        for (run, until) in ended {
            if let Some(key) = self.keys.get(&run) {
                self.timers.push(Reverse((until, Timer::Grace, *key)));
            }
        }
        stop
    }

    /// Gives one stream of one run its turn.
    fn turn(&mut self, key: u64, stream: Stream, flags: EventFlags) {
        if !self.runs.contains_key(&key) {
            self.take_in();
        }
        // An event of a run that this round has closed finds nothing.
        let step = if flags.contains(EventFlags::IN) {
            self.step(key, stream, TURN)
        } else if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            Step::Ended
        } else {
            return;
        };
        if step == Step::Ended {
            self.let_go(key, stream);
            if self
                .runs
                .get(&key)
                .is_some_and(|run| run.sources.iter().all(Option::is_none))
            {
                self.close(key, false);
            }
        }
    }

    /// Moves at most `most` bytes of a stream.
    fn step(&mut self, key: u64, stream: Stream, most: usize) -> Step {
        let Some(run) = self.runs.get_mut(&key) else {
            return Step::Empty;
        };
        let Some(source) = &mut run.sources[stream as usize] else {
            return Step::Empty;
        };
        let listener = run.listener.as_mut();
        let step = run
            .sink
            .take(source, stream, most, &mut self.means, listener);
        match step {
            Step::Moved(count) => {
                self.grew.push(key);
                self.busy |= count >= MUCH;
                if self.large < MOST_LARGE && source.grow_if_full(count) {
                    self.large += 1;
                }
            }
            Step::Dropped(_) => {
                if let Some(at) = run.sink.set_timer() {
                    self.timers.push(Reverse((at, Timer::Dropped, key)));
                }
            }
            Step::Empty | Step::Ended => {}
        }
        step
    }

    /// Closes our end of a pipe.
    fn let_go(&mut self, key: u64, stream: Stream) {
        let Some(run) = self.runs.get_mut(&key) else {
            return;
        };
        if let Some(source) = run.sources[stream as usize].take() {
            self.shared.unwatch(&source.fd);
            self.large -= usize::from(source.is_large());
        }
    }

    fn fire(&mut self) {
        let now = Instant::now();
        while let Some(Reverse((at, ..))) = self.timers.peek()
            && *at <= now
        {
            let Some(Reverse((_, timer, key))) = self.timers.pop() else {
                return;
            };
            match timer {
                Timer::Grace => self.grace_over(key),
                Timer::Dropped => {
                    if let Some(run) = self.runs.get_mut(&key) {
                        run.sink.update_dropped();
                    }
                }
                Timer::Ends => self.write_ends(),
            }
        }
    }

    /// Moves what is in the pipes at this moment, since it may be the process' own, and lets go.
    fn grace_over(&mut self, key: u64) {
        let mut leftover = false;
        for stream in [Stream::Stdout, Stream::Stderr] {
            leftover |= !self.drain(key, stream);
            self.let_go(key, stream);
        }
        self.close(key, leftover);
    }

    /// Moves what is in a pipe now. True if it has ended, too.
    fn drain(&mut self, key: u64, stream: Stream) -> bool {
        let Some(mut left) = self.waiting(key, stream) else {
            return true;
        };
        while left > 0 {
            match self.step(key, stream, left.min(TURN)) {
                Step::Moved(count) | Step::Dropped(count) => left = left.saturating_sub(count),
                Step::Empty => break,
                Step::Ended => return true,
            }
        }
        let source = self
            .runs
            .get(&key)
            .and_then(|run| run.sources[stream as usize].as_ref());
        source.is_none_or(|source| {
            let mut polled = [PollFd::new(&source.fd, PollFlags::IN)];
            let asked = poll(&mut polled, Some(&Timespec::default()));
            asked.is_ok() && polled[0].revents() == PollFlags::HUP
        })
    }

    /// How many bytes are in a pipe; none for a stream that has ended.
    fn waiting(&self, key: u64, stream: Stream) -> Option<usize> {
        let source = self.runs.get(&key)?.sources[stream as usize].as_ref()?;
        let count = ioctl_fionread(&source.fd).unwrap_or(0);
        Some(usize::try_from(count).unwrap_or(usize::MAX))
    }

    /// A run is over: its log gets its end, and its listener the report.
    fn close(&mut self, key: u64, leftover: bool) {
        let Some(mut run) = self.runs.remove(&key) else {
            return;
        };
        if self.keys.get(&run.id) == Some(&key) {
            self.keys.remove(&run.id);
        }
        let finished = run.sink.finish();
        run.listener.closed(Closed {
            bytes: run.sink.len(),
            dropped: run.sink.dropped(),
            leftover,
        });
        if finished.is_err() {
            if self.ends.is_empty() {
                self.timers
                    .push(Reverse((Instant::now() + END_RETRY, Timer::Ends, 0)));
            }
            if self.ends.len() == MOST_ENDS {
                self.ends.pop_front();
            }
            self.ends.push_back(run.sink);
        }
    }

    fn write_ends(&mut self) {
        self.ends.retain_mut(|sink| sink.finish().is_err());
        if !self.ends.is_empty() {
            self.timers
                .push(Reverse((Instant::now() + END_RETRY, Timer::Ends, 0)));
        }
    }

    fn tell(&mut self) {
        self.grew.sort_unstable();
        self.grew.dedup();
        for key in self.grew.drain(..) {
            if let Some(run) = self.runs.get_mut(&key) {
                run.listener.grew(run.sink.len());
            }
        }
    }
}

fn stream_of(mark: u64) -> Stream {
    if mark % 2 == Stream::Stdout as u64 {
        Stream::Stdout
    } else {
        Stream::Stderr
    }
}
