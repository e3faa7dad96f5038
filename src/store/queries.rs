//! Reading the history. Blocks, so it is not for the engine's thread.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, OptionalExtension, ToSql, params, params_from_iter};

use crate::config::keys;
use crate::ids::{ActionName, ProgramName, RunId};

use super::row::{COLUMNS, Outcome, Row};
use super::{StoreError, schema};

/// Rows that are read at once. No statement stays open while rows are given away, so a slow
/// reader does not keep the journal from being put into the database.
const PAGE: u64 = 500;
/// Connections that are kept for the next query.
const MOST_IDLE: usize = 4;
/// How many succeeded runs say what is usual.
const USUAL: i64 = 20;

/// Read-only connections to the history.
#[derive(Clone)]
pub struct Queries {
    shared: Arc<Shared>,
}

struct Shared {
    path: PathBuf,
    idle: Mutex<Vec<Connection>>,
}

/// Whose rows are wanted.
#[derive(Clone, Copy)]
pub enum Programs<'a> {
    /// All programs'.
    All,
    /// This program's.
    One(&'a ProgramName),
    /// Those of which this is true. Asked once for each program that has rows.
    Allowed(&'a dyn Fn(&str) -> bool),
}

/// Which rows are wanted: those of which everything that is set is true.
#[derive(Clone, Copy)]
pub struct Filter<'a> {
    /// By program.
    pub programs: Programs<'a>,
    /// The one of this number.
    pub id: Option<RunId>,
    /// With one of these outcomes; any, if there are none.
    pub outcomes: &'a [Outcome],
    /// With a number below this.
    pub before: Option<RunId>,
    /// With a number above this.
    pub after: Option<RunId>,
    /// Of all these the newest so many.
    pub limit: Option<u64>,
}

impl Default for Filter<'_> {
    fn default() -> Self {
        Self {
            programs: Programs::All,
            id: None,
            outcomes: &[],
            before: None,
            after: None,
            limit: None,
        }
    }
}

impl Queries {
    /// For the history below `state_dir`, which must have been opened for writing before.
    #[must_use]
    pub fn new(state_dir: &Path) -> Self {
        Self {
            shared: Arc::new(Shared {
                path: state_dir.join(schema::FILE),
                idle: Mutex::default(),
            }),
        }
    }

    /// Gives the rows that are wanted to `each`, oldest first, until it breaks off, and says how
    /// many it was given. Rows that change meanwhile are given as they were or as they are.
    ///
    /// # Errors
    /// The database could not be read; some rows may have been given.
    pub fn rows(
        &self,
        filter: &Filter<'_>,
        each: &mut dyn FnMut(Row) -> ControlFlow<()>,
    ) -> Result<u64, StoreError> {
        self.with(|connection| {
            let mut wanted = Wanted::new(connection, filter)?;
            if let Some(limit) = filter.limit {
                match wanted.oldest_of_newest(connection, limit)? {
                    Some(oldest) => wanted.above = wanted.above.max(oldest - 1),
                    None => return Ok(0),
                }
            }
            let mut given = 0;
            loop {
                let page = wanted.page(connection)?;
                let last = (page.len() as u64) < PAGE;
                for row in page {
                    wanted.above = number(row.id);
                    given += 1;
                    if each(row).is_break() {
                        return Ok(given);
                    }
                }
                if last {
                    return Ok(given);
                }
            }
        })
    }

    /// The row of this number.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn get(&self, id: RunId) -> Result<Option<Row>, StoreError> {
        self.one("WHERE id = ?1", params![number(id)])
    }

    /// The row of the request that had this key.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn find_by_key(&self, key: &str) -> Result<Option<Row>, StoreError> {
        self.one("WHERE request_key = ?1", params![key])
    }

    /// A program's newest row, whatever became of it.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn last(&self, program: &ProgramName) -> Result<Option<Row>, StoreError> {
        self.one(
            "WHERE program = ?1 ORDER BY id DESC LIMIT 1",
            params![program.as_str()],
        )
    }

    /// A program's newest row that can have a log: its turn came. What was run to tell of another
    /// run is not what somebody looks for.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn last_run(&self, program: &ProgramName) -> Result<Option<Row>, StoreError> {
        self.one(
            "WHERE program = ?1 AND (started_at IS NOT NULL OR outcome IN ('running', \
             'not-started')) AND action NOT IN (?2, ?3, ?4) ORDER BY id DESC LIMIT 1",
            params![
                program.as_str(),
                keys::NOTICES[0],
                keys::NOTICES[1],
                keys::NOTICES[2]
            ],
        )
    }

    /// The same of one of its actions.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn last_turn(
        &self,
        program: &ProgramName,
        action: &ActionName,
    ) -> Result<Option<Row>, StoreError> {
        self.one(
            "WHERE program = ?1 AND action = ?2 AND (started_at IS NOT NULL OR outcome IN \
             ('running', 'not-started')) ORDER BY id DESC LIMIT 1",
            params![program.as_str(), action.as_str()],
        )
    }

    /// The newest process of a supervised program that has, or had, its turn.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn last_process(&self, program: &ProgramName) -> Result<Option<Row>, StoreError> {
        self.one(
            "WHERE program = ?1 AND action IN ('start', 'restart') AND (started_at IS NOT NULL OR \
             outcome IN ('running', 'not-started')) ORDER BY id DESC LIMIT 1",
            params![program.as_str()],
        )
    }

    /// The first process of a supervised program after that run.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn next_process(
        &self,
        program: &ProgramName,
        after: RunId,
    ) -> Result<Option<Row>, StoreError> {
        self.one(
            "WHERE program = ?1 AND action IN ('start', 'restart') AND started_at IS NOT NULL AND \
             id > ?2 ORDER BY id LIMIT 1",
            params![program.as_str(), number(after)],
        )
    }

    /// How long an action of a program usually takes: the median of its last runs that
    /// succeeded. None if there are none.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn usual_duration(
        &self,
        program: &ProgramName,
        action: &ActionName,
    ) -> Result<Option<Duration>, StoreError> {
        let sql = "SELECT ended_at - started_at FROM runs WHERE program = ?1 AND action = ?2
            AND outcome = 'succeeded' AND ended_at >= started_at ORDER BY id DESC LIMIT ?3";
        self.with(|connection| {
            let mut statement = connection.prepare_cached(sql)?;
            let values = params![program.as_str(), action.as_str(), USUAL];
            let took = statement.query_map(values, |row| row.get::<_, i64>(0))?;
            let mut took = took.collect::<rusqlite::Result<Vec<_>>>()?;
            took.sort_unstable();
            let median = took.get(took.len() / 2);
            Ok(median.map(|nanos| Duration::from_nanos(nanos.unsigned_abs())))
        })
    }

    /// How the last run of an action before that one ended that came to an end of its own.
    ///
    /// # Errors
    /// The database could not be read.
    pub fn outcome_before(
        &self,
        id: RunId,
        program: &str,
        action: &str,
    ) -> Result<Option<Outcome>, StoreError> {
        let row = self.one(
            "WHERE program = ?1 AND action = ?2 AND id < ?3 AND outcome NOT IN
             ('waiting', 'running', 'superseded', 'cancelled', 'interrupted')
             ORDER BY id DESC LIMIT 1",
            params![program, action, number(id)],
        )?;
        Ok(row.map(|row| row.outcome))
    }

    fn one(&self, rest: &str, values: &[&dyn ToSql]) -> Result<Option<Row>, StoreError> {
        let sql = format!("SELECT {COLUMNS} FROM runs {rest}");
        self.with(|connection| {
            let mut statement = connection.prepare_cached(&sql)?;
            statement.query_row(values, Row::read).optional()
        })
    }

    /// Lends a connection to `action`.
    fn with<T>(
        &self,
        action: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let idle = || {
            self.shared
                .idle
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        let lent = idle().pop();
        let connection = match lent {
            Some(connection) => connection,
            None => open(&self.shared.path).map_err(|e| StoreError::database("open", e))?,
        };
        let result = action(&connection).map_err(|e| StoreError::database("read", e));
        let mut idle = idle();
        // One that failed may go on failing.
        if result.is_ok() && idle.len() < MOST_IDLE {
            idle.push(connection);
        }
        result
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.execute_batch("PRAGMA temp_store = MEMORY; PRAGMA trusted_schema = OFF")?;
    Ok(connection)
}

/// A filter in SQL. The numbers of rows lie strictly between `above` and `below`.
struct Wanted {
    above: i64,
    below: i64,
    /// Further conditions, each with a `?` for the value of the same place.
    conditions: Vec<(&'static str, String)>,
}

impl Wanted {
    fn new(connection: &Connection, filter: &Filter<'_>) -> rusqlite::Result<Self> {
        let mut above = filter.after.map_or(0, number);
        let mut below = filter.before.map_or(i64::MAX, number);
        if let Some(id) = filter.id.map(number) {
            above = above.max(id.saturating_sub(1));
            below = below.min(id.saturating_add(1));
        }
        let mut conditions = Vec::new();
        match filter.programs {
            Programs::All => {}
            Programs::One(program) => {
                conditions.push(("program = ?", program.as_str().to_owned()));
            }
            Programs::Allowed(allowed) => {
                let mut names = programs(connection)?;
                names.retain(|name| allowed(name));
                conditions.push(("program IN (SELECT value FROM json_each(?))", json(&names)));
            }
        }
        if !filter.outcomes.is_empty() {
            let words = json(&filter.outcomes);
            conditions.push(("outcome IN (SELECT value FROM json_each(?))", words));
        }
        Ok(Self {
            above,
            below,
            conditions,
        })
    }

    /// The rest of a statement behind `FROM runs`, and its values.
    fn sql(&self) -> (String, Vec<&dyn ToSql>) {
        let mut sql = "WHERE id > ? AND id < ?".to_owned();
        let mut values: Vec<&dyn ToSql> = vec![&self.above, &self.below];
        for (condition, value) in &self.conditions {
            sql.push_str(" AND ");
            sql.push_str(condition);
            values.push(value);
        }
        (sql, values)
    }

    /// The next rows, ascending.
    fn page(&self, connection: &Connection) -> rusqlite::Result<Vec<Row>> {
        let (rest, values) = self.sql();
        let sql = format!("SELECT {COLUMNS} FROM runs {rest} ORDER BY id LIMIT {PAGE}");
        let mut statement = connection.prepare_cached(&sql)?;
        let rows = statement.query_map(params_from_iter(values), Row::read)?;
        rows.collect()
    }

    /// The lowest number among the newest `limit` rows.
    fn oldest_of_newest(
        &self,
        connection: &Connection,
        limit: u64,
    ) -> rusqlite::Result<Option<i64>> {
        let (rest, mut values) = self.sql();
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        values.push(&limit);
        let sql =
            format!("SELECT min(id) FROM (SELECT id FROM runs {rest} ORDER BY id DESC LIMIT ?)");
        let mut statement = connection.prepare_cached(&sql)?;
        statement.query_row(params_from_iter(values), |row| row.get(0))
    }
}

/// The names of all programs that have rows, each found by a step in the index.
fn programs(connection: &Connection) -> rusqlite::Result<Vec<String>> {
    let mut names: Vec<String> = Vec::new();
    let mut statement =
        connection.prepare_cached("SELECT min(program) FROM runs WHERE program > ?1")?;
    loop {
        let last = names.last().map_or("", String::as_str);
        match statement.query_row([last], |row| row.get(0))? {
            Some(name) => names.push(name),
            None => return Ok(names),
        }
    }
}

fn number(RunId(id): RunId) -> i64 {
    i64::try_from(id).unwrap_or(i64::MAX)
}

/// A list of words cannot fail to be JSON.
fn json<T: serde::Serialize + ?Sized>(words: &T) -> String {
    serde_json::to_string(words).unwrap_or_else(|_| "[]".to_owned())
}
