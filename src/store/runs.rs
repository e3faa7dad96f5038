//! Opening the history, and the handle by which others write to it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use rusqlite::Connection;

use crate::config::model::Retention;
use crate::ids::{ProgramName, RunId};
use crate::log;

use super::row::{COLUMNS, Finish, NewRun, Row};
use super::salvage::salvage;
use super::schema::{self, Found, Sound};
use super::{Queries, StoreError};

mod changes;
mod queue;
mod worker;

use changes::{Change, RetainJob};
use queue::{Outlet, Queue};
use worker::Worker;

/// Called on the store's thread when a write is committed, or known to have failed. It must not
/// wait, nor panic.
pub type Done = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// What happens to a write that fails because of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// It is reported and forgotten.
    Report,
    /// It is kept, before all later ones, and tried again until it is written.
    Keep,
}

/// Rows that [`Store::retain`] removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Retained {
    /// Their numbers, ascending.
    pub removed: Vec<RunId>,
}

/// What [`Store::open`] found.
pub struct Opened {
    /// The handle.
    pub store: Store,
    /// The first number that was never used.
    pub next_id: RunId,
    /// Rows that are waiting or running, oldest first: the daemon ended before they did.
    pub unfinished: Vec<Row>,
    /// What was lost to damage, for people, as a sentence without its final stop.
    pub lost: Option<String>,
}

/// A handle of the history. The thread ends with the last of them, or by [`Store::close`].
///
/// Writes take effect in the order in which they were asked for. None of the methods waits.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Arc<Queue>,
    healthy: Arc<AtomicBool>,
    state_dir: PathBuf,
    thread: Mutex<Option<JoinHandle<()>>>,
}

enum Command {
    Write(Write),
    Retain(RetainJob),
    Barrier(Done),
    Stop,
}

struct Write {
    change: Change,
    on_failure: OnFailure,
    done: Done,
}

impl Store {
    /// Opens the history below `state_dir`, which is made if it is missing, and starts the
    /// thread. Damaged files are put aside. Numbers of logs below `log_dir` count as used.
    ///
    /// Only one process may do this at a time; the state lock sees to that.
    ///
    /// A disk that is full or fails while the database can be read is no error: the store is
    /// not [healthy](Store::healthy) then.
    ///
    /// # Errors
    /// The directory or the files cannot be used at all: permissions, a failing disk, or a newer
    /// version's database. Never because of what the files hold.
    pub fn open(state_dir: &Path, log_dir: Option<&Path>) -> Result<Opened, StoreError> {
        let (sound, mut lost) = open_or_make(state_dir)?;
        let Sound {
            connection,
            base,
            unwritable,
        } = sound;
        let failed = |e| StoreError::database("read", e);
        let given = highest_id(&connection).map_err(failed)?;
        // Logs that cannot be listed are no reason not to start.
        let logged = log_dir.and_then(|dir| {
            log::newest_id(dir, RunId(given.unsigned_abs()))
                .ok()
                .flatten()
        });
        let logged = logged.map_or(0, |RunId(id)| i64::try_from(id).unwrap_or(0));
        if logged > given {
            // If that fails, the logs say so next time.
            let _ = raise_highest_id(&connection, logged);
            let also =
                format!("there are logs up to run {logged}, but rows only up to run {given}");
            lost = Some(match lost {
                Some(lost) => format!("{lost}; {also}"),
                None => format!("the run history lacks its newest rows: {also}"),
            });
        }
        let unfinished = unfinished(&connection).map_err(failed)?;
        let queue = Arc::<Queue>::default();
        let outlet = Outlet(Arc::clone(&queue));
        if unwritable.is_none() {
            schema::make_reserve(state_dir);
        }
        let healthy = Arc::new(AtomicBool::new(unwritable.is_none()));
        let worker = Worker::new(connection, base, state_dir, outlet, Arc::clone(&healthy));
        let thread = thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || worker.work())
            .map_err(|e| StoreError::file("start the thread for", state_dir, e))?;
        let inner = Inner {
            queue,
            healthy,
            state_dir: state_dir.to_owned(),
            thread: Mutex::new(Some(thread)),
        };
        Ok(Opened {
            store: Self {
                inner: Arc::new(inner),
            },
            next_id: RunId(given.max(logged).unsigned_abs() + 1),
            unfinished,
            lost,
        })
    }

    /// Whether the last write worked. While it did not, this is found out anew twice a second.
    #[must_use]
    pub fn healthy(&self) -> bool {
        self.inner.healthy.load(Ordering::Relaxed)
    }

    /// The reading side.
    #[must_use]
    pub fn queries(&self) -> Queries {
        Queries::new(&self.inner.state_dir)
    }

    /// Puts an accepted request on record.
    pub fn insert(&self, run: NewRun, on_failure: OnFailure, done: Done) {
        self.write(Change::Insert(Box::new(run)), on_failure, done);
    }

    /// The run is about to have a process (`at`: nanoseconds since 1970). With `covers_after`,
    /// superseded requests of its program with numbers between that and its own are covered by
    /// it: the number of the lane's previous run.
    pub fn started(
        &self,
        run: RunId,
        at: i64,
        covers_after: Option<RunId>,
        on_failure: OnFailure,
        done: Done,
    ) {
        let change = Change::Started {
            run,
            at,
            covers_after,
        };
        self.write(change, on_failure, done);
    }

    /// The request has to wait (again), and was not started.
    pub fn waiting(&self, run: RunId, on_failure: OnFailure, done: Done) {
        self.write(Change::Waiting { run }, on_failure, done);
    }

    /// A newer request took the place of this one (`at`: nanoseconds since 1970). `by` is that
    /// one, until the run that covers both starts.
    pub fn superseded(
        &self,
        run: RunId,
        by: Option<RunId>,
        at: i64,
        on_failure: OnFailure,
        done: Done,
    ) {
        self.write(Change::Superseded { run, by, at }, on_failure, done);
    }

    /// The run or request is over. Kept until it is written: `done` hears of an error only if
    /// there is no such run, or the store is closed before.
    ///
    /// It is written together with whatever is asked for next; whoever expects nothing soon asks
    /// for [`Store::flush`]. So runs that follow each other cost one transaction each, not two.
    pub fn finished(&self, run: RunId, finish: Finish, done: Done) {
        let change = Change::Finished {
            run,
            finish: Box::new(finish),
        };
        let write = Write {
            change,
            on_failure: OnFailure::Keep,
            done,
        };
        self.inner.queue.push(Command::Write(write), false);
    }

    /// Has everything written that was asked for so far.
    pub fn flush(&self) {
        self.inner.queue.flush();
    }

    /// `done` is called when everything asked for before has been written or reported; with an
    /// error if some of it is kept because it cannot be written.
    pub fn barrier(&self, done: Done) {
        self.send(Command::Barrier(done));
    }

    /// Removes rows of a program that are beyond the bounds on number and age, the oldest
    /// first, but none that is unfinished or in `protect`. Done in small steps between other
    /// writes.
    pub fn retain(
        &self,
        program: ProgramName,
        bounds: Retention,
        protect: &[RunId],
        done: impl FnOnce(Result<Retained, StoreError>) + Send + 'static,
    ) {
        let job = RetainJob::new(program, bounds, protect, Box::new(done));
        self.send(Command::Retain(job));
    }

    /// Writes what was asked for so far and ends the thread, waiting for it. What cannot be
    /// written is reported to its `done`; later requests fail as [`StoreError::Closed`].
    pub fn close(&self) {
        self.send(Command::Stop);
        let thread = self.inner.thread.lock();
        if let Some(thread) = thread.unwrap_or_else(PoisonError::into_inner).take() {
            // Its panic was reported where it happened.
            let _ = thread.join();
        }
    }

    fn write(&self, change: Change, on_failure: OnFailure, done: Done) {
        self.send(Command::Write(Write {
            change,
            on_failure,
            done,
        }));
    }

    fn send(&self, command: Command) {
        self.inner.queue.push(command, true);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.push(Command::Stop, true);
    }
}

impl Command {
    /// Tells whoever asked that nothing will come of it.
    fn refuse(self, why: &StoreError) {
        match self {
            Self::Write(write) => (write.done)(Err(why.clone())),
            Self::Retain(job) => job.end(Err(why.clone())),
            Self::Barrier(done) => done(Err(why.clone())),
            Self::Stop => {}
        }
    }
}

/// Opens the database, or makes one out of what there is. Says what was lost.
fn open_or_make(dir: &Path) -> Result<(Sound, Option<String>), StoreError> {
    schema::make_state_dir(dir)?;
    let lost = match schema::look(dir)? {
        Found::Sound(sound) => return Ok((sound, None)),
        Found::Nothing => {
            schema::create(dir, |_| Ok(()))?;
            None
        }
        Found::Damaged(damage) => {
            let (found, aside) = schema::create(dir, |new| {
                let found = salvage(dir, damage.journal_is_foreign, new)?;
                let highest = i64::try_from(found.highest).unwrap_or(0);
                raise_highest_id(new, highest).map(|()| found)
            })?;
            let taken = match (found.rows, found.newest) {
                (0, _) => "none of its rows could be read".to_owned(),
                (1, newest) => format!("one row could be read, that of run {newest}"),
                (rows, newest) => format!("{rows} rows could be read, up to run {newest}"),
            };
            let rest = match found.whole {
                true => "no other is known to be lost",
                false => "what else it held is lost",
            };
            let aside = aside.as_deref().unwrap_or(dir).display();
            let why = damage.why;
            Some(format!(
                "the run history was damaged ({why}): {taken}, {rest}; it was put aside as {aside}"
            ))
        }
    };
    match schema::look(dir)? {
        Found::Sound(sound) => Ok((sound, lost)),
        // It was made a moment ago.
        Found::Nothing | Found::Damaged(_) => Err(StoreError::database(
            "open",
            rusqlite::Error::InvalidPath(dir.to_owned()),
        )),
    }
}

/// The highest number that a row ever had.
fn highest_id(connection: &Connection) -> rusqlite::Result<i64> {
    connection.query_row(
        "SELECT max(
            coalesce((SELECT max(seq) FROM sqlite_sequence WHERE name = 'runs'), 0),
            coalesce((SELECT max(id) FROM runs), 0))",
        [],
        |row| row.get(0),
    )
}

/// Makes sure that no row will have this number or a lower one by itself.
fn raise_highest_id(connection: &Connection, id: i64) -> rusqlite::Result<()> {
    let raised = "UPDATE sqlite_sequence SET seq = max(seq, ?1) WHERE name = 'runs'";
    if connection.execute(raised, [id])? == 0 {
        connection.execute("INSERT INTO sqlite_sequence VALUES ('runs', ?1)", [id])?;
    }
    Ok(())
}

fn unfinished(connection: &Connection) -> rusqlite::Result<Vec<Row>> {
    let sql =
        format!("SELECT {COLUMNS} FROM runs WHERE outcome IN ('waiting', 'running') ORDER BY id");
    let mut statement = connection.prepare(&sql)?;
    let rows = statement.query_map([], Row::read)?;
    rows.collect()
}
