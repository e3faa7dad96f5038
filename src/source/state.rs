//! What is remembered from one update to the next, in files that are replaced as a whole.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::http::Marks;
use super::{Failure, Outcome};

/// `state.json`. What it does not say is as if nothing had happened yet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    /// The release that is current and was found good.
    pub current: Option<String>,
    /// All releases that were found good, the latest last.
    pub good: Vec<String>,
    /// Nothing else becomes current by itself.
    pub pin: Option<Pin>,
    /// Revisions that were refused, or given up.
    pub quarantine: BTreeMap<String, Refused>,
    /// One that a hook has put off.
    pub deferred: Option<Deferred>,
    /// How often each revision was tried that is not current yet.
    pub attempts: BTreeMap<String, u32>,
    /// What an archive was when it was fetched last.
    pub seen: Option<Seen>,
    /// The last run that made another release current.
    pub switched_by: Option<u64>,
}

/// See [`State::seen`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Seen {
    /// The remote, without secrets.
    pub remote: String,
    /// How the server knows it.
    pub marks: Marks,
    /// Its revision.
    pub revision: String,
}

/// See [`State::pin`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pin {
    /// The release.
    pub release: String,
    /// Who did it.
    pub by: String,
    /// Why.
    pub reason: Option<String>,
    /// When, RFC 3339.
    pub since: String,
}

/// See [`State::quarantine`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Why.
    pub reason: String,
    /// When, RFC 3339.
    pub since: String,
    /// In which run.
    pub run: u64,
    /// Only as long as the configuration says this of the source.
    pub under: Option<String>,
}

/// See [`State::deferred`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Deferred {
    /// Which revision.
    pub revision: String,
    /// By which hook.
    pub hook: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// `journal.json`: an update that has begun to change what is current, and is not over.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Journal {
    /// How far it has come.
    pub phase: Phase,
    /// What was current before.
    pub from: Option<String>,
    /// What is to be.
    pub to: String,
    /// Its revision.
    pub revision: String,
    /// The run.
    pub run: u64,
    /// Why it is being undone.
    pub reason: Option<String>,
}

/// How far an update has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// `current` is, or is about to be, the new release; post-hooks may have run.
    Switching,
    /// It was refused, and is being undone.
    Undoing,
    /// It was found good.
    Committing,
}

/// Reads a file of this module; none if there is none.
///
/// # Errors
/// It cannot be read, or is damaged.
pub fn read<T: DeserializeOwned>(path: &Path) -> Outcome<Option<T>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Failure::io(format!("read {}", path.display()))(e)),
    };
    serde_json::from_slice(&text).map(Some).map_err(|e| {
        Failure::new(format!(
            "{} is damaged ({e}); move it away, and the next update begins anew",
            path.display()
        ))
    })
}

/// Writes one: the old or the new one is there, whenever this is cut short.
///
/// # Errors
/// The disk.
pub fn write<T: Serialize>(path: &Path, value: &T) -> Outcome<()> {
    let new = path.with_extension("new");
    let written = File::create(&new).and_then(|mut file| {
        serde_json::to_writer_pretty(&file, value)?;
        file.write_all(b"\n")?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        sync_directory_of(path)
    });
    written.map_err(Failure::io(format!("write {}", path.display())))
}

/// Removes one for good.
///
/// # Errors
/// The disk.
pub fn remove(path: &Path) -> Outcome<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Failure::io(format!("remove {}", path.display()))(e))
        }
        _ => sync_directory_of(path).map_err(Failure::io("write a directory")),
    }
}

/// A change of a name is on the disk when its directory is.
pub fn sync_directory_of(path: &Path) -> std::io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

/// This moment, RFC 3339.
pub fn now() -> String {
    jiff::Timestamp::now()
        .strftime("%Y-%m-%dT%H:%M:%SZ")
        .to_string()
}
