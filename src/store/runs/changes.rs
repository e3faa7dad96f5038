//! The statements that change rows.

use std::collections::HashSet;
use std::time::Duration;

use rusqlite::{Connection, ErrorCode, OptionalExtension, ToSql, params};

use crate::config::model::Retention;
use crate::ids::{ProgramName, RunId};
use crate::log::now_ns;
use crate::store::StoreError;
use crate::store::row::{Finish, NewRun, Outcome};

use super::Retained;

/// One write.
pub(super) enum Change {
    Insert(Box<NewRun>),
    Started {
        run: RunId,
        at: i64,
        covers_after: Option<RunId>,
    },
    Waiting {
        run: RunId,
    },
    Superseded {
        run: RunId,
        by: Option<RunId>,
        at: i64,
    },
    Finished {
        run: RunId,
        finish: Box<Finish>,
    },
}

/// Makes all the changes in one transaction. A change that cannot be, whatever the state of the
/// disk, has its own error and does not stop the others. No changes at all find out whether the
/// database can be written. `base` is the generation that is in the database itself.
pub(super) fn apply<'a>(
    connection: &Connection,
    base: i64,
    changes: impl ExactSizeIterator<Item = &'a Change>,
) -> Result<Vec<Result<(), StoreError>>, StoreError> {
    transaction(connection, base, |connection| {
        let mut results = Vec::with_capacity(changes.len());
        for change in changes {
            let result = match change.make(connection) {
                Ok(0) => Err(StoreError::NoSuchRun(change.run())),
                Ok(_) => Ok(()),
                Err(e) if e.sqlite_error_code() == Some(ErrorCode::ConstraintViolation) => {
                    Err(StoreError::Duplicate(change.run()))
                }
                Err(e) if is_about_the_statement(&e) => Err(StoreError::database("write", e)),
                Err(e) => return Err(e),
            };
            results.push(result);
        }
        Ok(results)
    })
    .map_err(|e| StoreError::database("write", e))
}

/// Does `action` as a whole or not at all, and begins a new generation.
fn transaction<T>(
    connection: &Connection,
    base: i64,
    action: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    run(connection, "BEGIN IMMEDIATE", &[])?;
    let done = action(connection).and_then(|result| {
        let sql = "UPDATE version SET generation = generation + 1, base = ?1";
        run(connection, sql, params![base])?;
        run(connection, "COMMIT", &[])?;
        Ok(result)
    });
    if done.is_err() && !connection.is_autocommit() {
        // If this fails too, the next BEGIN says so.
        let _ = run(connection, "ROLLBACK", &[]);
    }
    done
}

/// Whether trying again cannot help.
fn is_about_the_statement(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        None | Some(ErrorCode::TooBig | ErrorCode::TypeMismatch | ErrorCode::ParameterOutOfRange)
    )
}

impl Change {
    fn run(&self) -> RunId {
        match self {
            Self::Insert(new) => new.id,
            Self::Started { run, .. }
            | Self::Waiting { run }
            | Self::Superseded { run, .. }
            | Self::Finished { run, .. } => *run,
        }
    }

    /// Executes it, and says how many rows of its run it concerned.
    fn make(&self, connection: &Connection) -> rusqlite::Result<usize> {
        match self {
            Self::Insert(new) => insert(connection, new),
            Self::Started {
                run: id,
                at,
                covers_after,
            } => {
                let sql = "UPDATE runs SET outcome = 'running', started_at = ?2 WHERE id = ?1";
                let found = run(connection, sql, params![number(*id), at])?;
                if let (true, Some(after)) = (found > 0, covers_after) {
                    let sql = "UPDATE runs SET covered_by = ?1
                        WHERE program = (SELECT program FROM runs WHERE id = ?1)
                        AND action = (SELECT action FROM runs WHERE id = ?1)
                        AND id > ?2 AND id < ?1 AND outcome = 'superseded'";
                    run(connection, sql, params![number(*id), number(*after)])?;
                }
                Ok(found)
            }
            Self::Waiting { run: id } => {
                let sql = "UPDATE runs SET outcome = 'waiting', started_at = NULL WHERE id = ?1";
                run(connection, sql, params![number(*id)])
            }
            Self::Superseded { run: id, by, at } => {
                let sql = "UPDATE runs SET outcome = 'superseded', covered_by = ?2, ended_at = ?3
                    WHERE id = ?1";
                run(connection, sql, params![number(*id), by.map(number), at])
            }
            Self::Finished { run: id, finish } => finish_row(connection, *id, finish),
        }
    }
}

fn insert(connection: &Connection, new: &NewRun) -> rusqlite::Result<usize> {
    let inputs = to_json(&new.inputs)?;
    let args = to_json(&new.args)?;
    let values = params![
        number(new.id),
        new.program.as_str(),
        new.action.as_str(),
        new.outcome.as_str(),
        new.by.uid,
        new.by.gid,
        new.by.user,
        new.by.pid,
        new.reason,
        (!new.inputs.is_empty()).then_some(inputs),
        (!new.args.is_empty()).then_some(args),
        new.requested_at,
        new.started_at,
        new.request_key,
    ];
    let sql = "INSERT INTO runs (id, program, action, outcome, uid, gid, user, pid, reason, inputs,
        args, requested_at, started_at, request_key)
        VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)";
    run(connection, sql, values)
}

fn finish_row(connection: &Connection, id: RunId, finish: &Finish) -> rusqlite::Result<usize> {
    let sql = "UPDATE runs SET outcome = ?2, exit_code = ?3, signal = ?4, ended_at = ?5,
        bytes = ?6, dropped = ?7, leftovers = ?8, detail = ?9 WHERE id = ?1";
    let values = params![
        number(id),
        finish.outcome.as_str(),
        finish.exit_code,
        finish.signal,
        finish.ended_at,
        size(finish.bytes),
        size(finish.dropped),
        finish.leftovers,
        finish.detail,
    ];
    run(connection, sql, values)
}

/// Executes a statement that is prepared once.
fn run(connection: &Connection, sql: &str, values: &[&dyn ToSql]) -> rusqlite::Result<usize> {
    connection.prepare_cached(sql)?.execute(values)
}

fn to_json<T: serde::Serialize>(value: &T) -> rusqlite::Result<String> {
    serde_json::to_string(value).map_err(|e| rusqlite::Error::ToSqlConversionFailure(Box::new(e)))
}

/// SQLite has no unsigned numbers; ids and sizes do not get that large.
fn number(RunId(id): RunId) -> i64 {
    size(id)
}

fn size(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

/// Rows that are looked at in one step.
const STEP: i64 = 500;

/// Whom to tell how a retention went.
type RetainDone = Box<dyn FnOnce(Result<Retained, StoreError>) + Send>;

/// Removing rows of one program that are beyond its bounds, in steps.
pub(super) struct RetainJob {
    program: ProgramName,
    count: Option<u64>,
    /// Rows that ended before are too old: nanoseconds since 1970.
    too_old: Option<i64>,
    protect: HashSet<RunId>,
    /// Rows up to this number have been looked at.
    looked: i64,
    removed: Vec<RunId>,
    done: RetainDone,
}

impl RetainJob {
    pub(super) fn new(
        program: ProgramName,
        bounds: Retention,
        protect: &[RunId],
        done: RetainDone,
    ) -> Self {
        let nanos = |age: Duration| i64::try_from(age.as_nanos()).unwrap_or(i64::MAX);
        Self {
            program,
            count: bounds.count,
            too_old: bounds.age.map(|age| now_ns().saturating_sub(nanos(age))),
            protect: protect.iter().copied().collect(),
            looked: 0,
            removed: Vec::new(),
            done,
        }
    }

    /// Looks at the next rows and removes those that must go. True: there are no more of them.
    pub(super) fn step(&mut self, connection: &Connection, base: i64) -> rusqlite::Result<bool> {
        let beyond = self.newest_beyond(connection)?;
        let sql = "SELECT id, outcome, coalesce(ended_at, requested_at) FROM runs
            WHERE program = ?1 AND id > ?2 ORDER BY id LIMIT ?3";
        let mut statement = connection.prepare_cached(sql)?;
        let mut rows = statement.query(params![self.program.as_str(), self.looked, STEP])?;
        let mut looked_at = 0;
        let mut goes = Vec::new();
        while let Some(row) = rows.next()? {
            let id: i64 = row.get(0)?;
            let outcome: String = row.get(1)?;
            let ended: i64 = row.get(2)?;
            looked_at += 1;
            self.looked = id;
            let too_many = beyond.is_some_and(|newest| id <= newest);
            let too_old = self.too_old.is_some_and(|then| ended < then);
            let is_final = Outcome::from_word(&outcome).is_none_or(Outcome::is_final);
            let run = RunId(id.unsigned_abs());
            if (too_many || too_old) && is_final && !self.protect.contains(&run) {
                goes.push(run);
            }
        }
        drop(rows);
        if !goes.is_empty() {
            let ids: Vec<u64> = goes.iter().map(|run| run.0).collect();
            let sql = "DELETE FROM runs WHERE id IN (SELECT value FROM json_each(?1))";
            let ids = to_json(&ids)?;
            transaction(connection, base, |connection| {
                run(connection, sql, params![ids])
            })?;
        }
        // Rows end roughly in the order of their numbers: a stretch with nothing to remove, and
        // nothing beyond the count behind it, is the end.
        let over = goes.is_empty() && beyond.is_none_or(|newest| newest <= self.looked);
        self.removed.extend(goes);
        Ok(looked_at < STEP || over)
    }

    /// The newest final row that is beyond the count.
    fn newest_beyond(&self, connection: &Connection) -> rusqlite::Result<Option<i64>> {
        let Some(count) = self.count else {
            return Ok(None);
        };
        let sql = "SELECT id FROM runs WHERE program = ?1
            AND outcome NOT IN ('waiting', 'running') ORDER BY id DESC LIMIT 1 OFFSET ?2";
        connection
            .prepare_cached(sql)?
            .query_row(params![self.program.as_str(), size(count)], |row| {
                row.get(0)
            })
            .optional()
    }

    /// Tells whoever asked.
    pub(super) fn end(self, result: Result<(), StoreError>) {
        let removed = self.removed;
        (self.done)(result.map(|()| Retained { removed }));
    }
}
