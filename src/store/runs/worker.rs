//! The one thread that writes to the history.
//!
//! Whatever is queued is committed as one transaction, so a burst costs little more than a single
//! write. A write that fails is reported, or kept and tried again, as whoever asked for it said.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use rusqlite::Connection;

use crate::store::{StoreError, schema};

use super::changes::{self, RetainJob};
use super::queue::Outlet;
use super::{Command, OnFailure, Write};

/// The most commands, and so writes, in one transaction.
const BATCH: usize = 4096;
/// How often a database that fails is tried when nobody asks for anything.
const RETRY: Duration = Duration::from_millis(500);
/// When nothing was asked for so long, the journal is put into the database.
const IDLE: Duration = Duration::from_secs(1);
/// So many writes are put into the database without waiting for that.
const CHECKPOINT: usize = 1000;

/// The thread's own.
pub(super) struct Worker {
    connection: Connection,
    dir: PathBuf,
    from: Outlet,
    /// Writes that failed and are to be tried again, oldest first.
    backlog: VecDeque<Write>,
    retaining: VecDeque<RetainJob>,
    healthy: Arc<AtomicBool>,
    /// When a write was last tried.
    tried: Instant,
    /// Writes that are only in the journal.
    to_checkpoint: usize,
    /// The generation that is in the database itself, see the schema.
    base: i64,
}

impl Worker {
    pub(super) fn new(
        connection: Connection,
        base: i64,
        dir: &Path,
        from: Outlet,
        healthy: Arc<AtomicBool>,
    ) -> Self {
        Self {
            connection,
            dir: dir.to_owned(),
            from,
            backlog: VecDeque::new(),
            retaining: VecDeque::new(),
            healthy,
            tried: Instant::now(),
            to_checkpoint: 0,
            base,
        }
    }

    pub(super) fn work(mut self) {
        // Signals are for other threads; above all SIGXFSZ, whose error is enough.
        let _ = SigSet::all().thread_block();
        loop {
            let (mut writes, mut barriers) = (Vec::new(), Vec::new());
            let mut stop = false;
            let retaining = !self.retaining.is_empty();
            let mut commands = self.from.take(BATCH, self.patience()).into_iter();
            // Not between the steps of a retention: each would end in an fsync.
            let idle = commands.len() == 0 && !retaining;
            for command in commands.by_ref() {
                match command {
                    Command::Write(write) => writes.push(write),
                    Command::Barrier(done) => barriers.push(done),
                    Command::Retain(job) => self.retaining.push_back(job),
                    Command::Stop => {
                        stop = true;
                        break;
                    }
                }
            }
            let failure = self.commit(writes, stop || !barriers.is_empty());
            for done in barriers {
                match &failure {
                    Some(e) if !self.backlog.is_empty() => done(Err(e.clone())),
                    _ => done(Ok(())),
                }
            }
            if stop {
                return self.end(failure, commands);
            }
            self.retain_some();
            if self.to_checkpoint >= CHECKPOINT || idle {
                self.checkpoint();
            }
        }
    }

    /// How long to wait for a command, until there is something else to do.
    fn patience(&self) -> Option<Duration> {
        if !self.retaining.is_empty() {
            Some(Duration::ZERO)
        } else if !self.healthy.load(Ordering::Relaxed) {
            Some(RETRY.saturating_sub(self.tried.elapsed()))
        } else if self.to_checkpoint > 0 {
            Some(IDLE)
        } else {
            None
        }
    }

    /// Writes what is left from before and what is new, all of it or nothing, and tells those
    /// who asked. Says what failed. With nothing new, a database that failed is tried again if
    /// it is time for that, or `now`.
    fn commit(&mut self, new: Vec<Write>, now: bool) -> Option<StoreError> {
        let healthy = self.healthy.load(Ordering::Relaxed);
        let again = !healthy && (now || self.tried.elapsed() >= RETRY);
        if new.is_empty() && !again {
            return None;
        }
        let mut writes = std::mem::take(&mut self.backlog);
        writes.extend(new);
        self.tried = Instant::now();
        let applied = changes::apply(
            &self.connection,
            self.base,
            writes.iter().map(|w| &w.change),
        );
        // Before anybody hears of it: who then asks is told the same.
        self.healthy.store(applied.is_ok(), Ordering::Relaxed);
        let failure = match applied {
            Ok(results) => {
                self.to_checkpoint += results.len();
                // Runs wait for what may fail; for what cannot, nobody does.
                let (first, then): (Vec<_>, Vec<_>) = writes
                    .into_iter()
                    .zip(results)
                    .partition(|(write, _)| write.on_failure == OnFailure::Report);
                for (write, result) in first.into_iter().chain(then) {
                    (write.done)(result);
                }
                None
            }
            Err(e) => {
                for write in writes {
                    match write.on_failure {
                        OnFailure::Keep => self.backlog.push_back(write),
                        OnFailure::Report => (write.done)(Err(e.clone())),
                    }
                }
                Some(e)
            }
        };
        if !healthy && failure.is_none() {
            schema::make_reserve(&self.dir);
        }
        failure
    }

    /// One step of the retention that was asked for first.
    fn retain_some(&mut self) {
        let Some(mut job) = self.retaining.pop_front() else {
            return;
        };
        match job.step(&self.connection, self.base) {
            Ok(true) => job.end(Ok(())),
            Ok(false) => self.retaining.push_front(job),
            Err(e) => job.end(Err(StoreError::database("remove rows of", e))),
        }
        self.to_checkpoint += 1;
    }

    /// Puts the journal into the database, as far as nobody is reading there.
    fn checkpoint(&mut self) {
        if self.to_checkpoint == 0 {
            return;
        }
        self.to_checkpoint = 0;
        // If it fails, everything is in the journal still, and the next one may work.
        let sql = "PRAGMA wal_checkpoint(PASSIVE)";
        let pages = |row: &rusqlite::Row<'_>| Ok((row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
        if let Ok((there, done)) = self.connection.query_row(sql, [], pages)
            && there == done
            && let Ok(generation) = schema::generation(&self.connection)
        {
            self.base = generation;
        }
    }

    /// What is left is reported. Closing the connection puts the journal into the database.
    fn end(self, failure: Option<StoreError>, unheard: impl Iterator<Item = Command>) {
        let failure = failure.unwrap_or(StoreError::Closed);
        for write in self.backlog {
            (write.done)(Err(failure.clone()));
        }
        for job in self.retaining {
            job.end(Err(StoreError::Closed));
        }
        for command in unheard {
            command.refuse(&StoreError::Closed);
        }
    }
}
