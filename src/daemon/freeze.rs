//! Programs that stand still: nothing of them is begun until somebody thaws them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::clock::Moment;
use super::kept;
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
        let programs = kept::read(&path, "nothing counts as frozen");
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
        kept::write(&self.path, &new)?;
        *programs = new;
        Ok(before.is_some())
    }
}
