//! The tables of the history, and opening a database that may be anything.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::StoreError;

mod journal;

use journal::State;

/// The schema that this version writes.
pub(super) const VERSION: i64 = 1;
/// `DPLR`, where SQLite has a place for it.
const APPLICATION: i64 = 0x4450_4c52;

/// Bytes of a page in databases that this program makes.
pub(super) const PAGE: usize = 4096;

/// The database below the state directory.
pub(super) const FILE: &str = "runs.db";
/// Where a new one is made, before it takes its place as a whole.
const NEW: &str = "runs.db.new";

/// The schema's number stands in the file's header and in a table: damage changes one of them, a
/// newer version of the program both.
///
/// `generation` grows with every transaction, so it is in every state that the journal can bring
/// about, and `base` is what it was when the database held it all. A journal is the database's
/// own if it begins where that is, or before, and leads on from there. SQLite does not notice
/// when it is not, and makes a mixture of both.
const SCHEMA: &str = "
    CREATE TABLE runs (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        program TEXT NOT NULL,
        action TEXT NOT NULL,
        outcome TEXT NOT NULL,
        exit_code INTEGER,
        signal INTEGER,
        uid INTEGER NOT NULL,
        gid INTEGER NOT NULL,
        user TEXT NOT NULL,
        pid INTEGER NOT NULL,
        reason TEXT,
        inputs TEXT,
        args TEXT,
        covered_by INTEGER,
        requested_at INTEGER NOT NULL,
        started_at INTEGER,
        ended_at INTEGER,
        bytes INTEGER NOT NULL DEFAULT 0,
        dropped INTEGER NOT NULL DEFAULT 0,
        leftovers INTEGER NOT NULL DEFAULT 0,
        detail TEXT,
        request_key TEXT
    ) STRICT;
    CREATE TABLE version (
        schema INTEGER NOT NULL,
        identity INTEGER NOT NULL,
        generation INTEGER NOT NULL,
        base INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX runs_program ON runs (program);
    CREATE UNIQUE INDEX runs_key ON runs (request_key) WHERE request_key IS NOT NULL;
";

/// What was found where the database should be.
pub(super) enum Found {
    /// It is there, and sound.
    Sound(Sound),
    /// There is none.
    Nothing,
    /// It is not what it should be.
    Damaged(Damage),
}

/// A database that can be used.
pub(super) struct Sound {
    pub(super) connection: Connection,
    /// The generation that is in the database itself, whatever becomes of its journal.
    pub(super) base: i64,
    /// Why it cannot be written just now, such as a full disk.
    pub(super) unwritable: Option<rusqlite::Error>,
}

/// What is wrong with a database.
pub(super) struct Damage {
    /// A fragment for people.
    pub(super) why: String,
    /// Its journal has nothing to do with it.
    pub(super) journal_is_foreign: bool,
}

impl Damage {
    fn new(why: impl Into<String>) -> Self {
        Self {
            why: why.into(),
            journal_is_foreign: false,
        }
    }
}

/// The state directory: made, for its owner only, if it is missing.
pub(super) fn make_state_dir(dir: &Path) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(|e| StoreError::file("make directory", dir, e))
}

/// Space that is set aside for the day the disk is full: SQLite cannot open a database without
/// writing some, and a daemon that has to start again then has runs to look after.
const RESERVE: &str = "runs.db.reserve";
const RESERVE_BYTES: usize = 256 * 1024;

/// Sets the space aside, if there is some.
pub(super) fn make_reserve(dir: &Path) {
    let path = dir.join(RESERVE);
    let how = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&path);
    let Ok(file) = how else { return };
    if file.write_all_at(&[0; RESERVE_BYTES], 0).is_err() {
        let _ = fs::remove_file(&path);
    }
}

/// Opens the database, if it is one, with the space that was set aside if it takes that.
pub(super) fn look(dir: &Path) -> Result<Found, StoreError> {
    match look_once(dir) {
        Err(StoreError::Database { .. }) if fs::remove_file(dir.join(RESERVE)).is_ok() => {
            look_once(dir)
        }
        found => found,
    }
}

/// Opens the database, if it is one.
///
/// What says nothing about the file itself, such as a full disk, is an error.
fn look_once(dir: &Path) -> Result<Found, StoreError> {
    let path = dir.join(FILE);
    match fs::symlink_metadata(&path) {
        Ok(found) if found.is_file() => {
            // It may have been put there by hand, and it holds what others typed.
            if found.permissions().mode() & 0o077 != 0 {
                let _ = fs::set_permissions(&path, fs::Permissions::from_mode(0o600));
            }
        }
        Ok(_) => return Ok(Found::Damaged(Damage::new("it is not a regular file"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => return look_for_new(dir),
        Err(e) => return Err(StoreError::file("look at", &path, e)),
    }
    match open_sound(&path) {
        Ok(sound) => Ok(Found::Sound(sound)),
        Err(Unsound::Damaged(damage)) => Ok(Found::Damaged(damage)),
        Err(Unsound::Other(e)) => Err(e),
    }
}

/// There is no database. If one was being made when the process died, it takes the place.
fn look_for_new(dir: &Path) -> Result<Found, StoreError> {
    if dir.join(NEW).exists() && open_sound(&dir.join(NEW)).is_ok() {
        put_in_place(dir)?;
        return look_once(dir);
    }
    if companions(&dir.join(FILE)).iter().any(|file| file.exists()) {
        return Ok(Found::Damaged(Damage::new("only its journal is there")));
    }
    Ok(Found::Nothing)
}

/// The files that SQLite has beside a database.
pub(super) fn companions(path: &Path) -> [PathBuf; 3] {
    ["-wal", "-shm", "-journal"].map(|ending| {
        let mut name = path.as_os_str().to_owned();
        name.push(ending);
        name.into()
    })
}

/// Why a database cannot be used.
enum Unsound {
    Damaged(Damage),
    Other(StoreError),
}

/// Opens a database for writing and makes sure of it. If it is not sound, it and its journal are
/// left as they are.
fn open_sound(path: &Path) -> Result<Sound, Unsound> {
    let failed = |e: rusqlite::Error| {
        if says_nothing_of_the_file(&e, path) {
            Unsound::Other(StoreError::database("open", e))
        } else {
            Unsound::Damaged(Damage::new(e.to_string()))
        }
    };
    if ends_within_a_page(path).map_err(|e| Unsound::Other(StoreError::file("read", path, e)))? {
        return Err(Unsound::Damaged(Damage::new("it was cut off")));
    }
    let before = journal::without(path);
    let connection = open_existing(path).map_err(failed)?;
    let keep_journal = DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE;
    connection
        .set_db_config(keep_journal, true)
        .map_err(failed)?;
    let (base, unwritable) = match check(&connection, path, before).map_err(failed)? {
        Checked::Sound { base, unwritable } => (base, unwritable),
        Checked::Damaged(damage) => return Err(Unsound::Damaged(damage)),
        Checked::Newer(found) => {
            return Err(Unsound::Other(StoreError::Newer {
                path: path.to_owned(),
                found,
            }));
        }
    };
    connection
        .set_db_config(keep_journal, false)
        .map_err(failed)?;
    Ok(Sound {
        connection,
        base,
        unwritable,
    })
}

fn open_existing(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(Duration::from_secs(2))?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

/// Whether the file was cut where SQLite would take zeros for what is missing: within a page
/// that is not in the journal, where it can be whole if the disk was full.
fn ends_within_a_page(path: &Path) -> io::Result<bool> {
    let len = fs::metadata(path)?.len();
    if len % PAGE as u64 == 0 {
        return Ok(false);
    }
    Ok(!journal::has_page(path, len / PAGE as u64 + 1))
}

/// What a database is that can be read.
enum Checked {
    Sound {
        base: i64,
        unwritable: Option<rusqlite::Error>,
    },
    Damaged(Damage),
    Newer(i64),
}

/// Looks at everything that damage may have changed. `before` is the state without the journal.
fn check(connection: &Connection, path: &Path, before: Option<State>) -> rusqlite::Result<Checked> {
    let damaged = |why: &str| Ok(Checked::Damaged(Damage::new(why)));
    let pragma = |name: &str| connection.query_row(&format!("PRAGMA {name}"), [], |r| r.get(0));
    let application: i64 = pragma("application_id")?;
    if application != APPLICATION {
        return damaged("it is not a run history");
    }
    let header: i64 = pragma("user_version")?;
    let table: i64 = connection.query_row("SELECT max(schema) FROM version", [], |r| r.get(0))?;
    if header != table {
        return damaged("it says two things about its schema");
    }
    if header > VERSION {
        return Ok(Checked::Newer(header));
    }
    let now = State::read(connection)?;
    if before.is_some_and(|before| !now.follows(before)) {
        return Ok(Checked::Damaged(Damage {
            why: "its journal is of another time or place".to_owned(),
            journal_is_foreign: true,
        }));
    }
    let verdict: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return damaged(&verdict);
    }
    if journal_mode(connection, "wal")? != "wal" {
        return damaged("it cannot have a write-ahead log");
    }
    set_up(connection)?;
    // Whether everything that is needed is there.
    connection.execute_batch(&format!(
        "EXPLAIN SELECT {} FROM runs; EXPLAIN SELECT name, seq FROM sqlite_sequence;",
        super::row::COLUMNS
    ))?;
    if connection.is_readonly("main")? && is_writable(path) {
        return damaged("its header says that it is read-only");
    }
    let base = before.map_or(now.base, |before| before.generation);
    let sql = "UPDATE version SET generation = generation + 1, base = ?1";
    let unwritable = match connection.execute(sql, [base]) {
        Ok(_) => {
            drop_old_indexes(connection)?;
            None
        }
        Err(e) if says_nothing_of_the_file(&e, path) => Some(e),
        Err(e) => return Err(e),
    };
    Ok(Checked::Sound { base, unwritable })
}

/// What former versions kept up with every run, and nobody needs: all rows are looked at when a
/// database is opened, and a program's own index leads to its last successes.
fn drop_old_indexes(connection: &Connection) -> rusqlite::Result<()> {
    let sql = "SELECT count(*) FROM sqlite_schema
        WHERE type = 'index' AND name IN ('runs_succeeded', 'runs_unfinished')";
    if connection.query_row(sql, [], |row| row.get::<_, i64>(0))? == 0 {
        return Ok(());
    }
    let dropped = connection.execute_batch(
        "BEGIN IMMEDIATE;
         DROP INDEX IF EXISTS runs_succeeded;
         DROP INDEX IF EXISTS runs_unfinished;
         UPDATE version SET generation = generation + 1;
         COMMIT;",
    );
    if dropped.is_err() && !connection.is_autocommit() {
        // There is no room for that now: they are in nobody's way.
        connection.execute_batch("ROLLBACK")?;
    }
    Ok(())
}

fn journal_mode(connection: &Connection, mode: &str) -> rusqlite::Result<String> {
    connection.query_row(&format!("PRAGMA journal_mode = {mode}"), [], |row| {
        row.get(0)
    })
}

fn set_up(connection: &Connection) -> rusqlite::Result<()> {
    // Checkpoints are made by the writing thread when it has nothing better to do; the journal
    // is cut back to a small size then.
    connection.execute_batch(
        "PRAGMA synchronous = NORMAL;
         PRAGMA wal_autocheckpoint = 0;
         PRAGMA journal_size_limit = 1048576;
         PRAGMA temp_store = MEMORY;
         PRAGMA trusted_schema = OFF;",
    )
}

/// Whether an error is about the disk, the permissions or other users of the file.
fn says_nothing_of_the_file(error: &rusqlite::Error, path: &Path) -> bool {
    match error.sqlite_error_code() {
        Some(ErrorCode::ReadOnly) => !is_writable(path),
        Some(
            ErrorCode::DiskFull
            | ErrorCode::SystemIoFailure
            | ErrorCode::CannotOpen
            | ErrorCode::DatabaseBusy
            | ErrorCode::DatabaseLocked
            | ErrorCode::PermissionDenied
            | ErrorCode::OutOfMemory
            | ErrorCode::FileLockingProtocolFailed,
        ) => true,
        _ => false,
    }
}

fn is_writable(path: &Path) -> bool {
    OpenOptions::new().write(true).open(path).is_ok()
}

/// Makes a new database, lets `fill` put rows into it, and puts it in its place as a whole. What
/// was there is put aside; says as what.
pub(super) fn create<T>(
    dir: &Path,
    fill: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<(T, Option<PathBuf>), StoreError> {
    let new = dir.join(NEW);
    remove(&new)?;
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&new)
        .map_err(|e| StoreError::file("make", &new, e))?;
    let made = open_existing(&new).and_then(|connection| {
        connection.execute_batch("PRAGMA page_size = 4096; PRAGMA synchronous = FULL; BEGIN")?;
        make_tables(&connection)?;
        let filled = fill(&connection)?;
        connection.execute_batch("COMMIT")?;
        Ok(filled)
    });
    match made {
        Ok(filled) => Ok((filled, put_in_place(dir)?)),
        Err(e) => {
            let _ = remove(&new);
            Err(StoreError::database("make", e))
        }
    }
}

/// Makes the tables in a database that is empty.
pub(super) fn make_tables(connection: &Connection) -> rusqlite::Result<()> {
    connection.execute_batch(SCHEMA)?;
    connection.execute_batch(&format!(
        "INSERT INTO version VALUES ({VERSION}, random(), 1, 0);
         INSERT INTO sqlite_sequence VALUES ('runs', 0);
         PRAGMA application_id = {APPLICATION};
         PRAGMA user_version = {VERSION};"
    ))
}

/// Gives the new database its name, and says what became of files that had it.
fn put_in_place(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    // A journal that was left behind, too, would be taken for the new database's.
    let aside = put_aside(dir)?;
    let path = dir.join(FILE);
    fs::rename(dir.join(NEW), &path).map_err(|e| StoreError::file("make", &path, e))?;
    sync(dir)?;
    Ok(aside)
}

/// How many transactions there were.
pub(super) fn generation(connection: &Connection) -> rusqlite::Result<i64> {
    State::read(connection).map(|state| state.generation)
}

/// Removes a database and its companions, if they are there.
pub(super) fn remove(path: &Path) -> Result<(), StoreError> {
    for file in companions(path).iter().map(PathBuf::as_path).chain([path]) {
        match fs::remove_file(file) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::file("remove", file, e)),
        }
    }
    Ok(())
}

/// Renames the database and its companions, if they are there, and says what the database is
/// called now.
fn put_aside(dir: &Path) -> Result<Option<PathBuf>, StoreError> {
    let exists = |path: &Path| fs::symlink_metadata(path).is_ok();
    let free = |path: &PathBuf| !exists(path) && !companions(path).iter().any(|c| exists(c));
    let mut names = (1u64..).map(|n| dir.join(format!("{FILE}.damaged-{n}")));
    let Some(to) = names.find(free) else {
        return Ok(None); // there are more numbers than files
    };
    let path = dir.join(FILE);
    let mut moved = None;
    let from = [path.clone()].into_iter().chain(companions(&path));
    for (from, new) in from.zip([to.clone()].into_iter().chain(companions(&to))) {
        match fs::rename(&from, &new) {
            Ok(()) => moved = Some(to.clone()),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::file("put aside", &from, e)),
        }
    }
    Ok(moved)
}

fn sync(dir: &Path) -> Result<(), StoreError> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|e| StoreError::file("sync", dir, e))
}
