//! Programs that stand still: nothing of them is begun until somebody thaws them.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::warn;

use super::clock::Moment;
use crate::ids::ProgramName;

/// Why a program stands still.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frozen {
    /// Who froze it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// Since when, nanoseconds since 1970.
    pub since: i64,
    /// Until when; none is until somebody thaws it.
    pub until: Option<i64>,
}

impl Frozen {
    /// All of it in a sentence, behind the program's name.
    #[must_use]
    pub fn said(&self) -> String {
        let at = |nanos| Moment::from_nanos(nanos).rfc3339();
        let until = self
            .until
            .map_or(String::new(), |until| format!(", until {}", at(until)));
        format!(
            "frozen by {} since {}{until}: {}",
            self.by,
            at(self.since),
            self.reason
        )
    }
}

/// All that stands still. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Freezer {
    path: PathBuf,
    programs: Arc<Mutex<BTreeMap<ProgramName, Frozen>>>,
}

impl Freezer {
    /// What was frozen when the daemon ended. What cannot be read counts as nothing.
    #[must_use]
    pub fn open(state_dir: &Path) -> Self {
        let path = state_dir.join("frozen.json");
        let programs = match fs::read(&path) {
            Ok(text) => serde_json::from_slice(&text).unwrap_or_else(|e| {
                warn!(
                    "{} is damaged ({e}): nothing counts as frozen",
                    path.display()
                );
                BTreeMap::new()
            }),
            Err(e) => {
                if e.kind() != std::io::ErrorKind::NotFound {
                    warn!("cannot read {}: {e}", path.display());
                }
                BTreeMap::new()
            }
        };
        Self {
            path,
            programs: Arc::new(Mutex::new(programs)),
        }
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<ProgramName, Frozen>> {
        // Nobody leaves it half changed.
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why a program stands still, if it does.
    #[must_use]
    pub fn why(&self, program: &ProgramName) -> Option<Frozen> {
        let now = Moment::now().nanos();
        let found = self.held().get(program).cloned();
        found.filter(|f| f.until.is_none_or(|until| now < until))
    }

    /// Freezes a program, or thaws it; says whether it was frozen. On the disk when it is back.
    ///
    /// # Errors
    /// The disk: then nothing has changed.
    pub fn set(&self, program: &ProgramName, frozen: Option<Frozen>) -> std::io::Result<bool> {
        let mut programs = self.held();
        let mut new = programs.clone();
        let before = match frozen {
            Some(frozen) => new.insert(program.clone(), frozen),
            None => new.remove(program),
        };
        let temporary = self.path.with_extension("new");
        let file = File::create(&temporary)?;
        serde_json::to_writer(&file, &new)?;
        file.sync_all()?;
        fs::rename(temporary, &self.path)?;
        *programs = new;
        Ok(before.is_some())
    }
}
