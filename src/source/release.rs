//! The directory that code arrives in.
//!
//! ```text
//! releases/ID     whole trees, never changed once they have their name
//! current         the one in use: a relative link to it, or (switch = sync) a copy of its files
//! shared/…        what all releases have in common, linked into each
//! .deployer/      state.json journal.json lock, a manifest for each release, git's objects, and
//!                 staging/, where trees are made
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock, syncfs};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::state::{self, Journal, State, sync_directory_of};
use super::{Failure, Outcome};
use crate::config::model::{Source, Switch};

/// A directory that code arrives in. See the module's documentation.
#[derive(Debug)]
pub struct Place {
    root: PathBuf,
    switch: Switch,
    shared: Vec<String>,
}

/// What is known of a release.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its name.
    pub id: String,
    /// What the remote calls it.
    pub revision: String,
    /// The remote, without secrets.
    pub remote: String,
    /// When it was made, RFC 3339.
    pub made: String,
    /// By which run.
    pub run: u64,
    /// All that is in it, by path.
    pub entries: BTreeMap<String, Entry>,
}

/// One thing in a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Entry {
    /// A directory.
    Directory,
    /// A link, to this.
    Link(String),
    /// A file.
    File {
        /// Permission bits.
        mode: u32,
        /// SHA-256 of its bytes.
        digest: String,
    },
}

/// Holds the directory for one update at a time. Let go of when dropped, or when the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Place {
    /// The directory that a source names; nothing is looked at yet.
    pub fn of(source: &Source) -> Self {
        Self {
            root: source.deploy_dir.clone(),
            switch: source.switch,
            shared: source.shared.clone(),
        }
    }

    /// Makes what is missing, and waits for whoever is at work here.
    pub fn open(&self) -> Outcome<Lock> {
        let own = self.own("");
        for dir in [self.root.join("releases"), own.join("manifests")] {
            fs::create_dir_all(&dir).map_err(|e| self.cannot_make(&dir, &e))?;
        }
        let private = fs::set_permissions(&own, fs::Permissions::from_mode(0o700));
        private.map_err(Failure::io(format!("set the mode of {}", own.display())))?;
        let path = self.own("lock");
        let file = File::options().create(true).append(true).open(&path);
        let file = file.map_err(Failure::io(format!("open {}", path.display())))?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|e| Failure::io(format!("lock {}", path.display()))(e.into()))?;
        Ok(Lock { _file: file })
    }

    fn cannot_make(&self, dir: &Path, e: &io::Error) -> Failure {
        let user = std::env::var("USER").unwrap_or_default();
        let advice = match e.kind() {
            io::ErrorKind::PermissionDenied => format!(
                "\n{user} has to be able to write there: `install -d -o {user} {}` makes it theirs",
                self.root.display()
            ),
            _ => String::new(),
        };
        Failure::new(format!("cannot make {}: {e}{advice}", dir.display()))
    }

    /// Whether there is anything here yet.
    pub fn exists(&self) -> bool {
        self.own("manifests").exists()
    }

    fn own(&self, name: &str) -> PathBuf {
        self.root.join(".deployer").join(name)
    }

    /// Where git keeps its objects.
    pub fn objects(&self) -> PathBuf {
        self.own("git")
    }

    /// What is remembered.
    pub fn state(&self) -> Outcome<State> {
        Ok(state::read(&self.own("state.json"))?.unwrap_or_default())
    }

    /// Remembers it.
    pub fn keep_state(&self, state: &State) -> Outcome<()> {
        state::write(&self.own("state.json"), state)
    }

    /// An update that is not over.
    pub fn journal(&self) -> Outcome<Option<Journal>> {
        state::read(&self.own("journal.json"))
    }

    /// Notes how far an update has come.
    pub fn note(&self, journal: &Journal) -> Outcome<()> {
        state::write(&self.own("journal.json"), journal)
    }

    /// It is over.
    pub fn close_journal(&self) -> Outcome<()> {
        state::remove(&self.own("journal.json"))
    }

    /// Where a release is.
    pub fn release(&self, id: &str) -> PathBuf {
        self.root.join("releases").join(id)
    }

    /// What is used.
    pub fn current(&self) -> PathBuf {
        self.root.join("current")
    }

    fn manifest_path(&self, id: &str) -> PathBuf {
        self.own("manifests").join(format!("{id}.json"))
    }

    /// What is known of a release; none if there is none of that name, or it is not whole.
    pub fn manifest(&self, id: &str) -> Outcome<Option<Manifest>> {
        let name = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
        if id.is_empty() || id.starts_with('.') || !id.chars().all(name) {
            return Ok(None);
        }
        if !self.release(id).is_dir() {
            return Ok(None);
        }
        state::read(&self.manifest_path(id))
    }

    /// All releases, the oldest first.
    pub fn manifests(&self) -> Outcome<Vec<Manifest>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(self.own("manifests"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let name = entry.file_name().to_string_lossy().into_owned();
            if let Some(id) = name.strip_suffix(".json") {
                found.extend(self.manifest(id)?);
            }
        }
        found.sort_by(|a, b| (&a.made, a.run).cmp(&(&b.made, b.run)));
        Ok(found)
    }

    /// The release that `current` is, by the link; with `switch = sync` as it is remembered.
    pub fn linked(&self, state: &State) -> Outcome<Option<String>> {
        if self.switch == Switch::Sync {
            return Ok(state.current.clone());
        }
        let current = self.current();
        match fs::read_link(&current) {
            Ok(target) => {
                let id = target.strip_prefix("releases").ok().and_then(Path::to_str);
                match id {
                    Some(id) => Ok(Some(id.to_owned())),
                    None => Err(self.strange(&format!("leads to {}", target.display()))),
                }
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(_) => Err(self.strange("is no link")),
        }
    }

    fn strange(&self, how: &str) -> Failure {
        Failure::new(format!(
            "{} {how}: move it away, or write `switch = sync` for a directory",
            self.current().display()
        ))
    }

    /// An empty directory in which a release is made, with room beside it. What former updates
    /// left is deleted.
    pub fn staging(&self) -> Outcome<PathBuf> {
        self.clear_staging();
        // A name that no other update has: a git of one that was killed may still be at work.
        let own = format!("{}/tree", std::process::id());
        let tree = self.own("staging").join(own);
        fs::create_dir_all(&tree).map_err(Failure::io(format!("make {}", tree.display())))?;
        Ok(tree)
    }

    /// Deletes what was made there and not adopted; what resists, another time.
    pub fn clear_staging(&self) {
        for entry in fs::read_dir(self.own("staging"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = clear(&entry.path());
        }
    }

    /// Makes a release of a tree that was made in [`Place::staging`]. Returns what is known of it.
    pub fn adopt(&self, tree: &Path, mut manifest: Manifest) -> Outcome<Manifest> {
        for path in &self.shared {
            self.link_shared(tree, path)?;
        }
        manifest.entries = self.scan(tree)?;
        let mut id = manifest.id.clone();
        let mut n = 1;
        while self.release(&id).exists() {
            n += 1;
            id = format!("{}-{n}", manifest.id);
        }
        manifest.id = id;
        let release = self.release(&manifest.id);
        // First the tree, then its name, then what says that it is whole.
        let named = File::open(tree).and_then(|dir| {
            syncfs(dir)?;
            fs::rename(tree, &release)?;
            sync_directory_of(&release)
        });
        named.map_err(Failure::io(format!("make {}", release.display())))?;
        state::write(&self.manifest_path(&manifest.id), &manifest)?;
        Ok(manifest)
    }

    /// Puts a link to what is shared into a tree. What the first release has there is the
    /// beginning of what is shared.
    fn link_shared(&self, tree: &Path, path: &str) -> Outcome<()> {
        let (inside, shared) = (tree.join(path), self.root.join("shared").join(path));
        let cannot = |e| Failure::io(format!("share {path}"))(e);
        for at in [&inside, &shared] {
            if let Some(parent) = at.parent() {
                fs::create_dir_all(parent).map_err(cannot)?;
            }
        }
        let there = inside.symlink_metadata().is_ok();
        match (there, shared.symlink_metadata().is_ok()) {
            (true, true) => clear(&inside).map_err(cannot)?,
            (true, false) => fs::rename(&inside, &shared).map_err(cannot)?,
            (false, true) => {}
            (false, false) => fs::create_dir(&shared).map_err(cannot)?,
        }
        // Relative, so that all of it can be moved.
        symlink(to_shared(path, 1), &inside).map_err(cannot)
    }

    fn is_shared(&self, path: &str) -> bool {
        self.shared.iter().any(|s| {
            path.strip_prefix(s.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    }

    /// All that is in a tree, but for what is shared.
    pub fn scan(&self, tree: &Path) -> Outcome<BTreeMap<String, Entry>> {
        self.walk(tree, examine)
    }

    /// What `look` finds at all that is in a tree, but for what is shared.
    fn walk<T>(
        &self,
        tree: &Path,
        look: impl Fn(&Path) -> io::Result<T>,
    ) -> Outcome<BTreeMap<String, T>> {
        let mut entries = BTreeMap::new();
        let mut left = vec![String::new()];
        while let Some(dir) = left.pop() {
            let path = tree.join(&dir);
            let cannot = || format!("read {}", path.display());
            for entry in fs::read_dir(&path).map_err(Failure::io(cannot()))? {
                let entry = entry.map_err(Failure::io(cannot()))?;
                let name = entry.file_name();
                let Some(name) = name.to_str() else {
                    let name = name.to_string_lossy();
                    return Err(Failure::new(format!("the name {name:?} is not UTF-8")));
                };
                let inner = if dir.is_empty() {
                    name.to_owned()
                } else {
                    format!("{dir}/{name}")
                };
                if self.is_shared(&inner) {
                    continue;
                }
                let path = entry.path();
                let found = look(&path).map_err(Failure::io(format!("read {}", path.display())))?;
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    left.push(inner.clone());
                }
                entries.insert(inner, found);
            }
        }
        Ok(entries)
    }

    /// Makes a release current; none takes `current` away.
    pub fn switch(&self, to: Option<&str>) -> Outcome<()> {
        match (self.switch, to) {
            (Switch::Sync, to) => self.sync(to),
            (Switch::Link, Some(id)) => {
                let (new, current) = (self.own("current.new"), self.current());
                let _ = fs::remove_file(&new);
                // Made where it is not seen; a relative link means where it is, not where it was.
                let switched = symlink(Path::new("releases").join(id), &new)
                    .and_then(|()| fs::rename(&new, &current))
                    .and_then(|()| sync_directory_of(&current));
                switched.map_err(Failure::io(format!("switch {}", current.display())))
            }
            (Switch::Link, None) => state::remove(&self.current()),
        }
    }

    /// Makes the directory `current` a copy of a release: what differs by content is replaced by
    /// rename, one after the other; what is too much is deleted last.
    fn sync(&self, to: Option<&str>) -> Outcome<()> {
        let current = self.current();
        if current.is_symlink() {
            return Err(Failure::new(format!(
                "{} is a link: move it away, or write `switch = link`",
                current.display()
            )));
        }
        let wanted = match to {
            Some(id) => {
                let manifest = self.manifest(id)?;
                manifest
                    .ok_or_else(|| Failure::new(format!("there is no release {id}")))?
                    .entries
            }
            None => BTreeMap::new(),
        };
        let failed = |e| Failure::io(format!("bring {} up to date", current.display()))(e);
        fs::create_dir_all(&current).map_err(failed)?;
        let release = to.map(|id| self.release(id)).unwrap_or_default();
        let temporary = self.own("sync.new");
        for (path, entry) in &wanted {
            let (at, from) = (current.join(path), release.join(path));
            let found = examine(&at).ok();
            if found.as_ref() == Some(entry) {
                continue;
            }
            let fits = |e: &Entry| (*e == Entry::Directory) == (*entry == Entry::Directory);
            if found.is_some_and(|found| !fits(&found)) {
                clear(&at).map_err(failed)?;
            }
            clear(&temporary).map_err(failed)?;
            match entry {
                Entry::Directory => fs::create_dir_all(&at).map_err(failed)?,
                Entry::Link(target) => symlink(target, &temporary)
                    .and_then(|()| fs::rename(&temporary, &at))
                    .map_err(failed)?,
                Entry::File { .. } => fs::copy(&from, &temporary)
                    .and_then(|_| fs::rename(&temporary, &at))
                    .map_err(failed)?,
            }
        }
        for path in &self.shared {
            let at = current.join(path);
            if to.is_some() && !at.is_symlink() {
                clear(&at).map_err(failed)?;
                symlink(to_shared(path, 0), &at).map_err(failed)?;
            }
        }
        let there = self.walk(&current, |_| Ok(()))?.into_keys();
        for path in there.filter(|path| !wanted.contains_key(path)) {
            clear(&current.join(path)).map_err(failed)?;
        }
        File::open(&current)
            .and_then(|dir| Ok(syncfs(dir)?))
            .map_err(failed)
    }

    /// Deletes releases that are not kept: all that were not found good, and of the good ones all
    /// but the newest `keep`. The current one, the good one before it and a pinned one stay.
    pub fn prune(&self, state: &mut State, keep: usize) -> Outcome<Vec<String>> {
        let current = self.linked(state)?;
        let mut kept: BTreeSet<String> = state.good.iter().rev().take(keep).cloned().collect();
        kept.extend(state.pin.as_ref().map(|pin| pin.release.clone()));
        kept.extend(previous_good(state, current.as_deref()));
        kept.extend(current);
        let mut deleted = Vec::new();
        let dir = self.root.join("releases");
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            let deferred = state
                .deferred
                .as_ref()
                .is_some_and(|d| id.starts_with(&short(&d.revision)));
            if kept.contains(&id) || deferred {
                continue;
            }
            // First what says that it is whole.
            state::remove(&self.manifest_path(&id))?;
            clear(&entry.path())
                .map_err(Failure::io(format!("delete {}", entry.path().display())))?;
            deleted.push(id);
        }
        state.good.retain(|id| kept.contains(id));
        Ok(deleted)
    }
}

/// The way to what is shared from its place in a tree, which lies so deep below the directory.
fn to_shared(path: &str, depth: usize) -> PathBuf {
    let up = std::iter::repeat_n("..", depth + Path::new(path).components().count());
    up.collect::<PathBuf>().join("shared").join(path)
}

/// The good release that was current before this one; none that was refused since.
pub fn previous_good(state: &State, current: Option<&str>) -> Option<String> {
    let before = match state
        .good
        .iter()
        .rposition(|id| Some(id.as_str()) == current)
    {
        Some(at) => &state.good[..at],
        None => &state.good[..],
    };
    let refused = |id: &String| {
        let mut revisions = state.quarantine.keys();
        revisions.any(|revision| id.starts_with(&short(revision)))
    };
    before.iter().rev().find(|id| !refused(id)).cloned()
}

/// A revision as a release is called, and as people read it.
pub fn short(revision: &str) -> String {
    revision.chars().take(12).collect()
}

/// What is at a path; links are not followed.
fn examine(path: &Path) -> io::Result<Entry> {
    let meta = path.symlink_metadata()?;
    let kind = meta.file_type();
    if kind.is_dir() {
        return Ok(Entry::Directory);
    }
    if kind.is_symlink() {
        return Ok(Entry::Link(
            fs::read_link(path)?.to_string_lossy().into_owned(),
        ));
    }
    if !kind.is_file() {
        return Err(io::Error::other(
            "it is neither a file, a directory nor a link",
        ));
    }
    let mut file = File::open(path)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    let digest: String = hash.finalize().iter().map(|b| format!("{b:02x}")).collect();
    let mode = meta.mode() & 0o777;
    Ok(Entry::File { mode, digest })
}

/// Deletes what is there, if anything is.
fn clear(path: &Path) -> io::Result<()> {
    let Ok(meta) = path.symlink_metadata() else {
        return Ok(());
    };
    if meta.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    }
}
