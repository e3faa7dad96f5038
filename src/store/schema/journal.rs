//! Whether a database and the journal beside it belong together.

use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{PAGE, companions};

/// Where in its life a database is.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    identity: i64,
    /// Grows with every transaction.
    pub(super) generation: i64,
    /// The generation that the database itself, without its journal, had at least.
    pub(super) base: i64,
}

impl State {
    pub(super) fn read(connection: &Connection) -> rusqlite::Result<Self> {
        let sql = "SELECT identity, generation, base FROM version";
        connection.query_row(sql, [], |row| {
            Ok(Self {
                identity: row.get(0)?,
                generation: row.get(1)?,
                base: row.get(2)?,
            })
        })
    }

    /// Whether this state, with the journal, can have come of the one without it.
    pub(super) fn follows(self, without: Self) -> bool {
        self.identity == without.identity
            && (self.base..=self.generation).contains(&without.generation)
    }
}

/// The state that a database has without its journal, if that can be read.
pub(super) fn without(path: &Path) -> Option<State> {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri.push_str(&format!("%{byte:02x}"));
        }
    }
    uri.push_str("?immutable=1");
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let connection = Connection::open_with_flags(uri, flags).ok()?;
    State::read(&connection).ok()
}

/// Bytes of the journal's header, and of that of each page in it.
const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Whether the journal has this page of the database, counted from 1.
pub(super) fn has_page(path: &Path, page: u64) -> bool {
    let [journal, ..] = companions(path);
    let Ok(file) = File::open(journal) else {
        return false;
    };
    let mut file = BufReader::new(file);
    let mut header = [0; HEADER];
    if file.read_exact(&mut header).is_err() {
        return false;
    }
    let mut frame = [0; FRAME_HEADER];
    while file.read_exact(&mut frame).is_ok() {
        // Behind the last one of its time are those of earlier times, with other salts.
        if frame[8..16] != header[16..24] {
            return false;
        }
        let [a, b, c, d, ..] = frame;
        if u64::from(u32::from_be_bytes([a, b, c, d])) == page {
            return true;
        }
        if file.seek_relative(PAGE as i64).is_err() {
            return false;
        }
    }
    false
}
