//! The steps of an update, and of a rollback.
//!
//! Everything before the switch changes nothing that is used. From just before the switch to the
//! commit a journal says what is going on: whoever finds one (the next update, or the next start
//! of the daemon) finishes or undoes it first.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use sha2::{Digest as _, Sha256};

use super::archive::{self, Limits};
use super::git::{Git, Tip};
use super::hooks::{self, Answer};
use super::http::{Archive, Look};
use super::release::{Entry, Lock, Manifest, Place, previous_good, short};
use super::state::{Deferred, Journal, Phase, Pin, Refused, Seen, State, now};
use super::{DEFERRED, Failure, Job, Outcome, Verdict};
use super::{netrc, progress, s3, signature};
use crate::config::model::Source;
use crate::config::remote::{Kind, Login, Remote};

/// Somebody wants the update to end.
pub static CANCELLED: AtomicBool = AtomicBool::new(false);

/// Says something in the run's log.
pub fn tell(text: &str) {
    use std::io::Write;
    // A log that cannot be written is no reason to stop half-way.
    let _ = writeln!(std::io::stdout().lock(), "{text}");
}

/// One named step; its line says how long it took.
fn step<T>(name: &str, work: impl FnOnce() -> Outcome<(T, String)>) -> Outcome<T> {
    let began = Instant::now();
    let result = work();
    let took = began.elapsed().as_secs_f64();
    progress::over();
    match result {
        Ok((value, said)) => {
            tell(&format!("{name}: {said} ({took:.2} s)"));
            Ok(value)
        }
        Err(e) => {
            tell(&format!("{name}: failed ({took:.2} s)"));
            Err(e)
        }
    }
}

/// Ends an update that somebody has cancelled.
pub fn not_cancelled() -> Outcome<()> {
    match CANCELLED.load(Ordering::Relaxed) {
        true => Err(Failure::new("it was cancelled")),
        false => Ok(()),
    }
}

/// A source at work.
pub struct Worker<'a> {
    job: &'a Job,
    source: &'a Source,
    place: Place,
    login: Option<Login>,
}

impl<'a> Worker<'a> {
    /// Nothing is done yet, but that the token is read.
    ///
    /// # Errors
    /// The token cannot be read.
    pub fn new(job: &'a Job) -> Outcome<Self> {
        let source = &job.source;
        let login = match &source.token_file {
            None => source
                .remote
                .login()
                .cloned()
                .or_else(|| match &source.remote {
                    Remote::Archive { url, .. } => netrc::login(url),
                    _ => None,
                }),
            Some(path) => {
                let text = std::fs::read_to_string(path);
                let text = text.map_err(Failure::io(format!("read {}", path.display())))?;
                let text = text.trim();
                let (user, password) = text.split_once(':').unwrap_or(("git", text));
                Some(Login {
                    user: user.to_owned(),
                    password: password.to_owned(),
                })
            }
        };
        Ok(Self {
            job,
            source,
            place: Place::of(source),
            login,
        })
    }

    /// The directory.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// What the remote has, as far as one question tells.
    fn tip(&self, state: &State) -> Outcome<Found<'_>> {
        let source = self.source;
        match &source.remote {
            Remote::Git {
                url,
                reference,
                path,
                ..
            } => {
                let git = Git {
                    url,
                    login: self.login.as_ref(),
                    reference: reference.as_deref(),
                    path: path.as_deref(),
                    source,
                    objects: self.place.objects(),
                };
                let tip = git.tip()?;
                Ok(Found::Git(git, tip))
            }
            Remote::Archive {
                url, kind, path, ..
            } => {
                let archive = Archive {
                    url: url.clone(),
                    login: self.login.as_ref(),
                    keys: None,
                    digest: source.digest.as_ref(),
                    max_size: source.max_size,
                };
                self.look(archive, *kind, path.as_deref(), state)
            }
            Remote::S3 {
                bucket,
                key,
                kind,
                path,
            } => {
                let archive = Archive {
                    url: s3::url(bucket, key, &source.s3),
                    login: None,
                    keys: s3::keys(source)?.map(|keys| (keys, &*source.s3.region)),
                    digest: source.digest.as_ref(),
                    max_size: source.max_size,
                };
                self.look(archive, *kind, path.as_deref(), state)
            }
        }
    }

    fn look<'s>(
        &self,
        archive: Archive<'s>,
        kind: Kind,
        path: Option<&'s str>,
        state: &State,
    ) -> Outcome<Found<'s>> {
        let remote = self.source.remote.to_string();
        let seen = state.seen.as_ref().filter(|seen| seen.remote == remote);
        let revision = match archive.look(seen.map(|seen| &seen.marks))? {
            Look::Same => seen.map(|seen| seen.revision.clone()),
            Look::Is(digest) => Some(digest),
            Look::Other => None,
        };
        Ok(Found::Archive {
            archive,
            kind,
            path,
            revision,
        })
    }

    /// What the remote calls its tip, and whether an update would do something about it.
    pub fn check(&self) -> Outcome<Verdict> {
        let there = self.place.exists();
        let state = if there {
            self.place.state()?
        } else {
            State::default()
        };
        let found = self.tip(&state)?;
        let revision = found.revision().unwrap_or_default().to_owned();
        let verdict = |update, because: String| {
            Ok(Verdict {
                revision: revision.clone(),
                update,
                because,
            })
        };
        if !there {
            return verdict(true, "nothing was deployed yet".into());
        }
        if let Some(journal) = self.place.journal()? {
            let message = format!("run {} did not come to its end", journal.run);
            return verdict(true, message);
        }
        if let Some(pin) = &state.pin {
            return verdict(false, format!("{} is pinned", pin.release));
        }
        if found.revision().is_none() {
            return verdict(true, "the archive has changed".into());
        }
        if self.has(state.current.as_deref(), &revision)? {
            return verdict(false, "it is current".into());
        }
        if let Some(refused) = self.refused(&state, &revision) {
            return verdict(false, format!("it was refused: {}", refused.reason));
        }
        verdict(true, format!("{} is new", short(&revision)))
    }

    /// Whether a release is that revision, from the same place.
    fn has(&self, release: Option<&str>, revision: &str) -> Outcome<bool> {
        let manifest = match release {
            Some(id) => self.place.manifest(id)?,
            None => None,
        };
        Ok(manifest.is_some_and(|m| m.revision == revision && self.is_of_source(&m)))
    }

    /// Whether a release came from the place that the source names, by whichever reference.
    fn is_of_source(&self, manifest: &Manifest) -> bool {
        let place = |remote: &str| remote.split('#').next().map(str::to_owned);
        place(&manifest.remote) == place(&self.source.remote.to_string())
    }

    /// Why a revision is not to be tried again, if it is not.
    fn refused<'s>(&self, state: &'s State, revision: &str) -> Option<&'s Refused> {
        let refused = state.quarantine.get(revision)?;
        let counts = refused
            .under
            .as_ref()
            .is_none_or(|under| *under == self.terms());
        counts.then_some(refused)
    }

    /// What the configuration says of which revisions are good at all.
    fn terms(&self) -> String {
        let Source {
            remote,
            digest,
            verify,
            submodules,
            max_size,
            max_files,
            ..
        } = self.source;
        let signers = verify.as_ref().map(|keys| std::fs::read(keys).ok());
        let signers = signers.map(|keys| Sha256::digest(keys.unwrap_or_default()));
        format!("{remote} {digest:?} {signers:x?} {submodules} {max_size} {max_files}")
    }

    fn revision_of(&self, release: Option<&str>) -> Outcome<Option<String>> {
        match release {
            Some(id) => Ok(self.place.manifest(id)?.map(|m| m.revision)),
            None => Ok(None),
        }
    }

    /// Makes current what the remote has.
    pub fn update(&self, force: bool) -> Outcome<i32> {
        let lock = self.place.open()?;
        self.recover(&lock)?;
        let mut state = self.place.state()?;
        let found = step("check", || {
            let found = self.tip(&state)?;
            let at = found.revision().map_or("something new".to_owned(), short);
            Ok((found, format!("{} is at {at}", self.source.remote)))
        })?;
        let current = self.place.linked(&state)?;
        if let Some(pin) = state.pin.as_ref().filter(|_| !force) {
            return Err(Failure::new(format!(
                "{} was pinned by {}: `deployer UNPIN {}` lets it follow the remote again",
                pin.release, pin.by, self.job.program
            )));
        }
        if let (Some(revision), false) = (found.revision(), force)
            && self.is_settled(&state, current.as_deref(), revision)?
        {
            return Ok(0);
        }
        // To fetch again what is current is what somebody wants who doubts it.
        let doubted = self.revision_of(current.as_deref())?.filter(|_| force);
        let release = self.prepared(&mut state, &found, doubted.as_deref())?;
        let revision = release.revision.clone();
        if found.revision().is_none()
            && !force
            && self.is_settled(&state, current.as_deref(), &revision)?
        {
            return Ok(0);
        }
        let attempt = {
            let attempts = state.attempts.entry(revision.clone()).or_default();
            *attempts += 1;
            *attempts
        };
        self.place.keep_state(&state)?;
        not_cancelled()?;
        let asked = Asked {
            attempt,
            revision: &revision,
            previous: self.revision_of(current.as_deref())?.unwrap_or_default(),
        };
        let answer = step("pre-hooks", || {
            let answer = self.hooks("pre", Some(&release.id), current.as_deref(), &asked)?;
            let said = answer.to_string();
            Ok((answer, said))
        })?;
        match answer {
            Answer::Go => {}
            _ if CANCELLED.load(Ordering::Relaxed) => return Err(Failure::new("it was cancelled")),
            Answer::Defer(hook) => return self.put_off(&mut state, &revision, hook),
            answer @ Answer::Reject { .. } => {
                self.refuse(&mut state, &revision, format!("pre-hook {answer}"))?;
                let message = format!("{} was refused: the pre-hook {answer}", short(&revision));
                return Err(Failure::new(message));
            }
        }
        self.go_over(&mut state, current, &release, &asked)
    }

    /// Whether there is nothing to do about a revision: it is current.
    ///
    /// # Errors
    /// It was refused before.
    fn is_settled(&self, state: &State, current: Option<&str>, revision: &str) -> Outcome<bool> {
        if self.has(current, revision)? && current == state.current.as_deref() {
            tell("nothing new: that is current");
            return Ok(true);
        }
        if let Some(refused) = self.refused(state, revision) {
            return Err(Failure::new(format!(
                "{} was refused in run {}: {}\n`deployer {} update --force` tries it again",
                short(revision),
                refused.run,
                refused.reason,
                self.job.program
            )));
        }
        Ok(false)
    }

    /// A release of that revision that is there already, if nobody doubts it.
    fn there(&self, revision: &str, doubted: Option<&str>) -> Outcome<Option<Manifest>> {
        if doubted == Some(revision) {
            return Ok(None);
        }
        let mut all = self.place.manifests()?.into_iter().rev();
        let found = all.find(|m| m.revision == revision && self.is_of_source(m));
        if let Some(found) = &found {
            tell(&format!("fetch: {} is here already", found.id));
        }
        Ok(found)
    }

    /// The release of what was found: one that is there already, or a new one.
    fn prepared(
        &self,
        state: &mut State,
        found: &Found<'_>,
        doubted: Option<&str>,
    ) -> Outcome<Manifest> {
        let release = self.found_or_made(state, found, doubted);
        self.place.clear_staging();
        release
    }

    fn found_or_made(
        &self,
        state: &mut State,
        found: &Found<'_>,
        doubted: Option<&str>,
    ) -> Outcome<Manifest> {
        if let Some(revision) = found.revision() {
            // What is here already may have come under other terms.
            match found {
                Found::Archive { archive, .. } => {
                    self.judge(state, revision, archive.verify(revision))?;
                }
                Found::Git(git, tip) => {
                    if let Some(keys) = &self.source.verify {
                        fetch(git, tip)?;
                        let verified = step("verify", || {
                            let by = signature::verify(git, tip, keys)?;
                            Ok(((), by))
                        });
                        self.judge(state, revision, verified)?;
                    }
                }
            }
            if let Some(there) = self.there(revision, doubted)? {
                return Ok(there);
            }
        }
        let tree = self.place.staging()?;
        let revision = match found {
            Found::Git(git, tip) => {
                if self.source.verify.is_none() {
                    fetch(git, tip)?;
                }
                tip.commit.clone()
            }
            Found::Archive { archive, .. } => {
                let file = tree.with_extension("archive");
                let (revision, marks) = step("fetch", || {
                    let fetched = archive.fetch(&file)?;
                    let said = short(&fetched.0);
                    Ok((fetched, said))
                })?;
                state.seen = Some(Seen {
                    remote: self.source.remote.to_string(),
                    marks,
                    revision: revision.clone(),
                });
                self.place.keep_state(state)?;
                if let Some(there) = self.there(&revision, doubted)? {
                    return Ok(there);
                }
                if archive.digest.is_some() {
                    let verified = step("verify", || {
                        archive.verify(&revision)?;
                        Ok(((), "its digest is right".to_owned()))
                    });
                    self.judge(state, &revision, verified)?;
                }
                revision
            }
        };
        not_cancelled()?;
        let unpacked = step("unpack", || {
            self.unpack(found, &tree)?;
            let manifest = Manifest {
                id: short(&revision),
                revision: revision.clone(),
                remote: self.source.remote.to_string(),
                made: now(),
                run: self.job.run,
                entries: std::collections::BTreeMap::new(),
            };
            let manifest = self.place.adopt(&tree, manifest)?;
            let said = format!(
                "release {} with {} entries",
                manifest.id,
                manifest.entries.len()
            );
            Ok((manifest, said))
        });
        self.judge(state, &revision, unpacked)
    }

    /// Makes the tree of what was fetched.
    fn unpack(&self, found: &Found<'_>, tree: &Path) -> Outcome<()> {
        match found {
            Found::Git(git, tip) => git.export(&tip.commit, tree),
            Found::Archive { kind, path, .. } => {
                let limits = Limits {
                    bytes: self.source.max_size,
                    entries: self.source.max_files,
                };
                let file = tree.with_extension("archive");
                archive::unpack(&file, *kind, *path, tree, limits)?;
                let _ = std::fs::remove_file(file);
                Ok(())
            }
        }
    }

    /// What is wrong with a revision itself is not tried again.
    fn judge<T>(&self, state: &mut State, revision: &str, result: Outcome<T>) -> Outcome<T> {
        if let Err(failure) = &result
            && failure.lasting
        {
            self.refuse(state, revision, failure.message.clone())?;
            if let Some(refused) = state.quarantine.get_mut(revision) {
                refused.under = Some(self.terms());
            }
            self.place.keep_state(state)?;
        }
        result
    }

    /// From the switch to the commit, or back.
    fn go_over(
        &self,
        state: &mut State,
        from: Option<String>,
        release: &Manifest,
        asked: &Asked<'_>,
    ) -> Outcome<i32> {
        let mut journal = Journal {
            phase: Phase::Switching,
            from: from.clone(),
            to: release.id.clone(),
            revision: release.revision.clone(),
            run: self.job.run,
            reason: None,
        };
        self.place.note(&journal)?;
        let switched = step("switch", || {
            self.place.switch(Some(&release.id))?;
            let before = from.as_deref().unwrap_or("nothing");
            Ok(((), format!("from {before} to {}", release.id)))
        });
        let answer = switched.and_then(|()| {
            step("post-hooks", || {
                let answer = self.hooks("post", Some(&release.id), from.as_deref(), asked)?;
                let said = answer.to_string();
                Ok((answer, said))
            })
        });
        let (reason, lasting, deferred) = match answer {
            _ if CANCELLED.load(Ordering::Relaxed) => ("it was cancelled".to_owned(), false, None),
            Ok(Answer::Go) => {
                journal.phase = Phase::Committing;
                self.place.note(&journal)?;
                self.commit(state, &journal)?;
                tell(&format!("commit: {} is current", release.id));
                return Ok(0);
            }
            Ok(Answer::Defer(hook)) => (format!("{hook} put it off"), false, Some(hook)),
            Ok(answer) => (format!("post-hook {answer}"), true, None),
            Err(e) => (e.message, e.lasting, None),
        };
        journal.phase = Phase::Undoing;
        journal.reason = lasting.then(|| reason.clone());
        self.place.note(&journal)?;
        self.undo(state, &journal)?;
        if let Some(hook) = deferred {
            return self.put_off(state, &release.revision, hook);
        }
        let back = from.as_deref().unwrap_or("nothing");
        Err(Failure::new(format!("{reason}; {back} is current again")))
    }

    fn commit(&self, state: &mut State, journal: &Journal) -> Outcome<()> {
        state.current = Some(journal.to.clone());
        state.good.retain(|id| *id != journal.to);
        state.good.push(journal.to.clone());
        state.quarantine.remove(&journal.revision);
        state.attempts.clear();
        state.deferred = None;
        state.switched_by = Some(journal.run);
        self.place.keep_state(state)?;
        self.place.close_journal()?;
        // What cannot be deleted now is deleted with the next.
        match self.place.prune(state, self.source.keep as usize) {
            Ok(deleted) if !deleted.is_empty() => {
                tell(&format!("  deleted: {}", deleted.join(", ")));
            }
            Ok(_) => {}
            Err(e) => tell(&format!("  {}", e.message)),
        }
        self.place.keep_state(state)
    }

    /// Goes back to what was current before, and tells the post-hooks.
    fn undo(&self, state: &mut State, journal: &Journal) -> Outcome<()> {
        step("roll back", || {
            self.place.switch(journal.from.as_deref())?;
            let back = journal.from.as_deref().unwrap_or("nothing");
            Ok(((), format!("to {back}")))
        })?;
        let asked = Asked {
            attempt: state.attempts.get(&journal.revision).copied().unwrap_or(1),
            revision: &self
                .revision_of(journal.from.as_deref())?
                .unwrap_or_default(),
            previous: journal.revision.clone(),
        };
        let answer = self.hooks(
            "rollback",
            journal.from.as_deref(),
            Some(&journal.to),
            &asked,
        )?;
        if answer != Answer::Go {
            tell(&format!(
                "  the rollback was not what its hooks hoped for: {answer}"
            ));
        }
        if let Some(reason) = &journal.reason {
            self.refuse(state, &journal.revision, reason.clone())?;
        }
        self.place.close_journal()
    }

    fn refuse(&self, state: &mut State, revision: &str, reason: String) -> Outcome<()> {
        let refused = Refused {
            reason,
            since: now(),
            run: self.job.run,
            under: None,
        };
        state.quarantine.insert(revision.to_owned(), refused);
        state.deferred = None;
        self.place.keep_state(state)
    }

    fn put_off(&self, state: &mut State, revision: &str, hook: String) -> Outcome<i32> {
        tell(&format!(
            "put off by the hook {hook} (75): {} is tried again at the next time",
            short(revision)
        ));
        let same = state.deferred.take().filter(|d| d.revision == revision);
        let since = same.map_or_else(now, |d| d.since);
        state.deferred = Some(Deferred {
            revision: revision.to_owned(),
            hook,
            since,
        });
        self.place.keep_state(state)?;
        Ok(DEFERRED)
    }

    /// Finishes or undoes what a former worker left.
    fn recover(&self, _held: &Lock) -> Outcome<()> {
        let Some(mut journal) = self.place.journal()? else {
            return Ok(());
        };
        let mut state = self.place.state()?;
        tell(&format!("run {} did not come to its end", journal.run));
        if journal.phase == Phase::Committing {
            self.commit(&mut state, &journal)?;
            tell(&format!("commit: {} is current", journal.to));
            return Ok(());
        }
        journal.phase = Phase::Undoing;
        self.place.note(&journal)?;
        self.undo(&mut state, &journal)
    }

    /// What an update would bring. Nothing that is used changes.
    pub fn plan(&self) -> Outcome<i32> {
        let _lock = self.place.open()?;
        let state = self.place.state()?;
        let found = self.tip(&state)?;
        let current = match self.place.linked(&state)? {
            Some(id) => self.place.manifest(&id)?,
            None => None,
        };
        let tree = self.place.staging()?;
        let brought = || {
            let revision = match &found {
                Found::Git(git, tip) => {
                    git.fetch(tip)?;
                    if let Some(keys) = &self.source.verify {
                        signature::verify(git, tip, keys)?;
                    }
                    tip.commit.clone()
                }
                Found::Archive { archive, .. } => {
                    let (revision, _) = archive.fetch(&tree.with_extension("archive"))?;
                    archive.verify(&revision)?;
                    revision
                }
            };
            self.unpack(&found, &tree)?;
            Ok((revision, self.place.scan(&tree)?))
        };
        let brought = brought();
        self.place.clear_staging();
        let (revision, entries) = brought?;
        let now = current.as_ref().map_or("nothing", |m| &m.id);
        tell(&format!(
            "{} has {}; {now} is current",
            self.source.remote,
            short(&revision)
        ));
        if let Some(pin) = &state.pin {
            tell(&format!(
                "{} is pinned by {}: no update comes",
                pin.release, pin.by
            ));
        }
        if let Some(refused) = self.refused(&state, &revision) {
            tell(&format!(
                "it was refused in run {}: {}",
                refused.run, refused.reason
            ));
        }
        if let (Found::Git(git, tip), Some(current)) = (&found, &current) {
            for commit in git.log(&current.revision, tip)? {
                tell(&format!("  commit  {commit}"));
            }
        }
        let before = current.map(|m| m.entries).unwrap_or_default();
        let files = entries.iter().filter(|(_, e)| **e != Entry::Directory);
        for (path, entry) in files {
            match before.get(path) {
                None => tell(&format!("  new     {path}")),
                Some(was) if was != entry => tell(&format!("  changed {path}")),
                Some(_) => {}
            }
        }
        for (path, was) in &before {
            if *was != Entry::Directory && !entries.contains_key(path) {
                tell(&format!("  gone    {path}"));
            }
        }
        for (phase, dir) in [
            ("pre", &self.source.pre_hooks),
            ("post", &self.source.post_hooks),
        ] {
            let Some(dir) = dir else { continue };
            for hook in hooks::list(dir)? {
                tell(&format!("  {phase:<7} {}", hook.display()));
            }
        }
        Ok(0)
    }

    /// Makes an earlier release current.
    pub fn rollback(&self, to: Option<&str>) -> Outcome<i32> {
        let lock = self.place.open()?;
        self.recover(&lock)?;
        let mut state = self.place.state()?;
        let current = self.place.linked(&state)?;
        let to = match to {
            Some(id) => self.named(id)?,
            None => previous_good(&state, current.as_deref()).ok_or_else(|| {
                Failure::new(
                    "there is no earlier release that was good; `deployer RELEASES` lists them",
                )
            })?,
        };
        if Some(&to) == current.as_ref() {
            tell(&format!("{to} is current already"));
            return Ok(0);
        }
        let release = self.place.manifest(&to)?;
        let release = release.ok_or_else(|| Failure::new(format!("there is no release {to}")))?;
        let left = self.revision_of(current.as_deref())?;
        let asked = Asked {
            attempt: 1,
            revision: &release.revision,
            previous: left.clone().unwrap_or_default(),
        };
        let mut journal = Journal {
            phase: Phase::Switching,
            from: current.clone(),
            to: to.clone(),
            revision: release.revision.clone(),
            run: self.job.run,
            reason: None,
        };
        self.place.note(&journal)?;
        step("switch", || {
            self.place.switch(Some(&to))?;
            let before = current.as_deref().unwrap_or("nothing");
            Ok(((), format!("from {before} to {to}")))
        })?;
        // What was left is not to come back by itself.
        if let Some(left) = left {
            let reason = self
                .job
                .reason
                .as_ref()
                .map_or(String::new(), |r| format!(": {r}"));
            self.refuse(
                &mut state,
                &left,
                format!("rolled back by {}{reason}", self.job.by),
            )?;
        }
        let answer = self.hooks("rollback", Some(&to), current.as_deref(), &asked)?;
        journal.phase = Phase::Committing;
        self.place.note(&journal)?;
        self.commit(&mut state, &journal)?;
        tell(&format!("commit: {to} is current"));
        match answer {
            Answer::Go => Ok(0),
            answer => Err(Failure::new(format!(
                "{to} is current, but its hooks failed: {answer}"
            ))),
        }
    }

    /// A release by its name, or the beginning of it.
    fn named(&self, id: &str) -> Outcome<String> {
        let all = self.place.manifests()?;
        if all.iter().any(|m| m.id == id) {
            return Ok(id.to_owned());
        }
        let fits = |m: &&Manifest| m.id.starts_with(id) || m.revision.starts_with(id);
        let found: Vec<&Manifest> = all.iter().filter(fits).collect();
        match found.as_slice() {
            [one] => Ok(one.id.clone()),
            [] => Err(Failure::new(format!(
                "there is no release {id:?} any more; `deployer RELEASES {}` lists them",
                self.job.program
            ))),
            _ => Err(Failure::new(format!(
                "{id:?} fits several releases; write more of it"
            ))),
        }
    }

    /// Stays with a release.
    pub fn pin(&self, to: Option<&str>) -> Outcome<i32> {
        let lock = self.place.open()?;
        self.recover(&lock)?;
        let mut state = self.place.state()?;
        let current = self.place.linked(&state)?;
        let release = match (to, &current) {
            (Some(id), _) => self.named(id)?,
            (None, Some(current)) => current.clone(),
            (None, None) => return Err(Failure::new("nothing is current yet")),
        };
        state.pin = Some(Pin {
            release: release.clone(),
            by: self.job.by.clone(),
            reason: self.job.reason.clone(),
            since: now(),
        });
        self.place.keep_state(&state)?;
        drop(lock);
        tell(&format!("{release} is pinned"));
        if Some(&release) == current.as_ref() {
            return Ok(0);
        }
        self.rollback(Some(&release))
    }

    /// Follows the remote again.
    pub fn unpin(&self) -> Outcome<i32> {
        let _lock = self.place.open()?;
        let mut state = self.place.state()?;
        match state.pin.take() {
            Some(pin) => {
                self.place.keep_state(&state)?;
                tell(&format!("{} is pinned no more", pin.release));
            }
            None => tell("nothing was pinned"),
        }
        Ok(0)
    }

    fn hooks(
        &self,
        phase: &str,
        current: Option<&str>,
        previous: Option<&str>,
        asked: &Asked<'_>,
    ) -> Outcome<Answer> {
        let path = |id: Option<&str>| {
            id.map_or(String::new(), |id| {
                self.place.release(id).display().to_string()
            })
        };
        let variables = [
            ("PHASE", phase.to_owned()),
            ("CURRENT_CONFIG", path(current)),
            ("PREVIOUS_CONFIG", path(previous)),
            ("REVISION", asked.revision.to_owned()),
            ("PREVIOUS_REVISION", asked.previous.clone()),
            ("ATTEMPT", asked.attempt.to_string()),
        ];
        let dir = match phase {
            "pre" => &self.source.pre_hooks,
            _ => &self.source.post_hooks,
        };
        hooks::run(dir.as_deref(), &variables, self.source.hook_timeout)
    }
}

/// The step that brings a commit here.
fn fetch(git: &Git<'_>, tip: &Tip) -> Outcome<()> {
    step("fetch", || {
        git.fetch(tip)?;
        Ok(((), short(&tip.commit)))
    })
}

/// What a remote has.
enum Found<'a> {
    /// A commit.
    Git(Git<'a>, Tip),
    /// An archive; its revision if it is the one that was fetched last.
    Archive {
        archive: Archive<'a>,
        kind: Kind,
        path: Option<&'a str>,
        revision: Option<String>,
    },
}

impl Found<'_> {
    fn revision(&self) -> Option<&str> {
        match self {
            Self::Git(_, tip) => Some(&tip.commit),
            Self::Archive { revision, .. } => revision.as_deref(),
        }
    }
}

/// What hooks are told beside directories.
struct Asked<'a> {
    attempt: u32,
    revision: &'a str,
    previous: String,
}
