//! Getting rows out of a database that is damaged.
//!
//! It works on a copy, and reads it in up to three ways, each only if those before found
//! something that could not be read: with its journal, without it, and with its first page
//! replaced (which holds the names and places of the tables, always the same ones). What an
//! earlier way has found is not overwritten by a later one.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags, params};

use crate::ids::{ActionName, ProgramName, RunId};

use super::StoreError;
use super::row::{COLUMNS, Row};
use super::schema::{self, PAGE};

/// The copy that is read.
const COPY: &str = "runs.db.salvage";
/// A new database, for its first page.
const TEMPLATE: &str = "runs.db.template";
/// Numbers above are no run's, but damage: JSON could not hold them either.
const HIGHEST: i64 = 1 << 53;

/// What came out.
#[derive(Debug, Default)]
pub(super) struct Salvaged {
    /// How many rows.
    pub(super) rows: u64,
    /// The newest of them.
    pub(super) newest: u64,
    /// The highest number that was ever given, as far as is known.
    pub(super) highest: u64,
    /// Whether nothing was met that could not be read.
    pub(super) whole: bool,
}

/// Copies rows of the database in `dir`, whatever it is, to the empty one behind `to`. A journal
/// that is `foreign` is not looked at.
pub(super) fn salvage(dir: &Path, foreign: bool, to: &Connection) -> rusqlite::Result<Salvaged> {
    let mut found = Salvaged::default();
    for way in [Way::WithJournal, Way::WithoutJournal, Way::NewFirstPage] {
        if found.whole {
            break;
        }
        if (way != Way::WithJournal || !foreign) && prepare(dir, way).is_ok() {
            read_copy(&dir.join(COPY), to, &mut found)?;
        }
    }
    for name in [COPY, TEMPLATE] {
        // Nothing uses them; the next attempt would overwrite them.
        let _ = schema::remove(&dir.join(name));
    }
    found.whole &= !foreign;
    Ok(found)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    WithJournal,
    WithoutJournal,
    NewFirstPage,
}

/// Makes the copy.
fn prepare(dir: &Path, way: Way) -> Result<(), StoreError> {
    let from = dir.join(schema::FILE);
    let copy = dir.join(COPY);
    schema::remove(&copy)?;
    let failed = |e| StoreError::file("copy", &from, e);
    fs::copy(&from, &copy).map_err(failed)?;
    cut_to_pages(&copy).map_err(failed)?;
    if way == Way::WithJournal {
        let [journal, ..] = schema::companions(&from);
        let [copy, ..] = schema::companions(&copy);
        match fs::copy(journal, copy) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
    }
    if way == Way::NewFirstPage {
        replace_first_page(dir).map_err(failed)?;
    }
    Ok(())
}

/// Takes away what there is of a last page: for the rest of it SQLite would see zeros, which may
/// make rows of their own.
fn cut_to_pages(copy: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(copy)?;
    let len = file.metadata()?.len();
    file.set_len(len - len % PAGE as u64)
}

fn replace_first_page(dir: &Path) -> io::Result<()> {
    let template = dir.join(TEMPLATE);
    schema::remove(&template).map_err(io::Error::other)?;
    Connection::open(&template)
        .and_then(|connection| schema::make_tables(&connection))
        .map_err(io::Error::other)?;
    let mut page = [0; PAGE];
    File::open(&template)?.read_exact_at(&mut page, 0)?;
    let copy = File::options().write(true).open(dir.join(COPY))?;
    let pages = (copy.metadata()?.len() / PAGE as u64).max(1);
    // The number of pages stands at 28, big endian.
    let pages = u32::try_from(pages).map_err(io::Error::other)?;
    page[28..32].copy_from_slice(&pages.to_be_bytes());
    copy.write_all_at(&page, 0)
}

fn read_copy(copy: &Path, to: &Connection, found: &mut Salvaged) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let Ok(from) = Connection::open_with_flags(copy, flags) else {
        return Ok(());
    };
    // What cannot be set does not matter either. The second lets it pass over broken indexes.
    let _ = from.execute_batch(
        "PRAGMA trusted_schema = OFF; PRAGMA writable_schema = ON; PRAGMA cell_size_check = ON;",
    );
    let mut taker = Taker {
        to,
        found,
        whole: true,
    };
    scan(&from, &mut taker)?;
    let whole = taker.whole;
    let given = "SELECT max(seq) FROM sqlite_sequence WHERE name = 'runs'";
    if let Ok(given) = from.query_row(given, [], |row| row.get::<_, i64>(0))
        && (0..HIGHEST).contains(&given)
    {
        found.highest = found.highest.max(given.unsigned_abs());
    }
    found.whole = whole;
    Ok(())
}

/// Takes rows over.
struct Taker<'a> {
    to: &'a Connection,
    found: &'a mut Salvaged,
    whole: bool,
}

impl Taker<'_> {
    fn take(&mut self, row: &Row) -> rusqlite::Result<()> {
        let id = i64::try_from(row.id.0).unwrap_or(HIGHEST);
        let sensible = (1..HIGHEST).contains(&id)
            && ProgramName::new(&row.program).is_ok()
            && ActionName::new(&row.action).is_ok()
            && row.requested_at > 0
            && ![&row.reason, &row.detail, &row.request_key]
                .into_iter()
                .flatten()
                .any(|text| text.contains('\0'));
        if !sensible {
            self.whole = false;
            return Ok(());
        }
        let taken = put(self.to, row)?;
        self.found.rows += u64::from(taken);
        self.found.newest = self.found.newest.max(row.id.0);
        self.found.highest = self.found.highest.max(row.id.0);
        Ok(())
    }
}

/// Inserts a row as it is, unless there is one of its number. A key that is there already is
/// left out.
fn put(to: &Connection, row: &Row) -> rusqlite::Result<bool> {
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let json = |text: serde_json::Result<String>| text.unwrap_or_default();
    let sql = format!(
        "INSERT OR IGNORE INTO runs ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, \
         ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21, \
         CASE WHEN EXISTS (SELECT 1 FROM runs WHERE request_key = ?22) THEN NULL ELSE ?22 END)"
    );
    let values = params![
        number(row.id.0),
        row.program,
        row.action,
        row.outcome.as_str(),
        row.exit_code,
        row.signal,
        row.by.uid,
        row.by.gid,
        row.by.user,
        row.by.pid,
        row.reason,
        json(serde_json::to_string(&row.inputs)),
        json(serde_json::to_string(&row.args)),
        row.covered_by.map(|RunId(n)| number(n)),
        row.requested_at,
        row.started_at,
        row.ended_at,
        number(row.bytes),
        number(row.dropped),
        row.leftovers,
        row.detail,
        row.request_key,
    ];
    Ok(to.prepare_cached(&sql)?.execute(values)? > 0)
}

/// Reads every row that can be read, in islands between those that cannot.
fn scan(from: &Connection, taker: &mut Taker<'_>) -> rusqlite::Result<()> {
    // Everything up to here was read, or given up.
    let mut done = 0;
    loop {
        let (last, ended) = read(from, Direction::Up, done, i64::MAX, taker)?;
        if ended {
            return Ok(());
        }
        taker.whole = false;
        let last = last.unwrap_or(done);
        let Some(island) = next_readable(from, last) else {
            return Ok(());
        };
        // From its shore back to where the damage is.
        read(from, Direction::Down, last, island, taker)?;
        read(from, Direction::Up, island - 1, island + 1, taker)?;
        done = island;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Up,
    Down,
}

/// Reads rows between two numbers, without them, until one cannot be read. Says which was the
/// last, and whether that was all of them. Errors are those of the new database.
fn read(
    from: &Connection,
    direction: Direction,
    above: i64,
    below: i64,
    taker: &mut Taker<'_>,
) -> rusqlite::Result<(Option<i64>, bool)> {
    let order = if direction == Direction::Up {
        "ASC"
    } else {
        "DESC"
    };
    let sql = format!(
        "SELECT {COLUMNS} FROM runs NOT INDEXED WHERE id > ?1 AND id < ?2 ORDER BY id {order}"
    );
    let mut last = None;
    let Ok(mut statement) = from.prepare(&sql) else {
        return Ok((None, false));
    };
    let Ok(mut rows) = statement.query([above, below]) else {
        return Ok((None, false));
    };
    loop {
        match rows.next() {
            Ok(None) => return Ok((last, true)),
            Ok(Some(row)) => {
                let Ok(id) = row.get::<_, i64>(0) else {
                    return Ok((last, false));
                };
                let moves = match (direction, last) {
                    (Direction::Up, last) => id > last.unwrap_or(above),
                    (Direction::Down, last) => id < last.unwrap_or(below),
                };
                if !moves {
                    // Pages that point in circles.
                    return Ok((last, false));
                }
                last = Some(id);
                match Row::read(row) {
                    Ok(row) => taker.take(&row)?,
                    Err(_) => taker.whole = false,
                }
            }
            Err(_) => return Ok((last, false)),
        }
    }
}

/// The first row behind `last` that can be found, by steps that double.
fn next_readable(from: &Connection, last: i64) -> Option<i64> {
    let sql = "SELECT id FROM runs NOT INDEXED WHERE id >= ?1 ORDER BY id LIMIT 1";
    let mut statement = from.prepare(sql).ok()?;
    let mut step = 1;
    loop {
        let start = last.checked_add(step)?;
        match statement.query_row([start], |row| row.get::<_, i64>(0)) {
            Ok(id) if id > last => return Some(id),
            Err(rusqlite::Error::QueryReturnedNoRows) => return None,
            _ => step = step.checked_mul(2)?,
        }
    }
}
