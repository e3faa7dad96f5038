//! Small things that the daemon keeps in files of the state directory.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::warn;

/// What was kept. What is not there, or cannot be read, counts as nothing; `then` says to people
/// what follows from that.
pub fn read<T: DeserializeOwned + Default>(path: &Path, then: &str) -> T {
    let read = fs::read(path).and_then(|text| Ok(serde_json::from_slice(&text)?));
    read.unwrap_or_else(|e| {
        if e.kind() != io::ErrorKind::NotFound {
            warn!("cannot read {} ({e}): {then}", path.display());
        }
        T::default()
    })
}

/// Keeps it: the old state or the new one, whenever this is cut short.
///
/// # Errors
/// The disk: then the old one is there.
pub fn write(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let new = path.with_extension("new");
    let file = File::create(&new)?;
    serde_json::to_writer(&file, value)?;
    file.sync_all()?;
    fs::rename(new, path)
}
