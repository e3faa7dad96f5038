//! What people ask of a source.

use std::fmt::Write;

use super::release::{Entry, Manifest, previous_good, short};
use super::update::{Worker, tell};
use super::{Facts, Failure, Outcome};

/// Releases, the newest first.
pub fn releases(worker: &Worker<'_>, json: bool) -> Outcome<i32> {
    let place = worker.place();
    if !place.exists() {
        return Ok(0);
    }
    let state = place.state()?;
    let current = place.linked(&state)?;
    let manifests = place.manifests()?;
    if !json && !manifests.is_empty() {
        tell("RELEASE          MADE                   RUN  STATE    REVISION");
    }
    for Manifest {
        id,
        revision,
        made,
        run,
        ..
    } in manifests.iter().rev()
    {
        let word = if Some(id) == current.as_ref() {
            "current"
        } else if state.quarantine.contains_key(revision) {
            "refused"
        } else if state.good.contains(id) {
            "good"
        } else {
            "new"
        };
        let pinned = state.pin.as_ref().is_some_and(|pin| pin.release == *id);
        if json {
            tell(
                &serde_json::json!({
                    "release": id, "revision": revision, "made": made, "run": run, "state": word,
                    "pinned": pinned,
                })
                .to_string(),
            );
        } else {
            let mark = if pinned { ", pinned" } else { "" };
            tell(&format!(
                "{id:<16} {made:<20} {run:>5}  {word:<8} {revision}{mark}"
            ));
        }
    }
    Ok(0)
}

/// Why what is current is so: one answer, the strongest reason first.
pub fn why(worker: &Worker<'_>, facts: &Facts) -> Outcome<i32> {
    let place = worker.place();
    let mut text = String::new();
    let state = if place.exists() {
        place.state()?
    } else {
        Default::default()
    };
    let current = if place.exists() {
        place.linked(&state)?
    } else {
        None
    };
    match &current {
        Some(id) => {
            let manifest = place.manifest(id)?;
            let revision = manifest.map(|m| m.revision).unwrap_or_default();
            let _ = writeln!(text, "{id} is current ({revision}).");
        }
        None => text.push_str("Nothing was deployed yet.\n"),
    }
    if let Some(frozen) = &facts.frozen {
        let _ = writeln!(text, "{frozen}");
    }
    if let Some(pin) = &state.pin {
        let reason = pin
            .reason
            .as_ref()
            .map_or(String::new(), |r| format!(": {r}"));
        let _ = writeln!(
            text,
            "{} is pinned by {} since {}{reason}.",
            pin.release, pin.by, pin.since
        );
    }
    if place.exists()
        && let Some(journal) = place.journal()?
    {
        let _ = writeln!(
            text,
            "Run {} is changing it, or did not come to its end.",
            journal.run
        );
    }
    if let Some(deferred) = &state.deferred {
        let revision = short(&deferred.revision);
        let _ = writeln!(
            text,
            "{revision} is put off by the hook {} since {}.",
            deferred.hook, deferred.since
        );
    }
    for (revision, refused) in &state.quarantine {
        let _ = writeln!(
            text,
            "{} was refused in run {} ({}): {}. It is skipped until the remote moves, or `update --force`.",
            short(revision),
            refused.run,
            refused.since,
            refused.reason
        );
    }
    if let Some((since, error)) = &facts.failing {
        let _ = writeln!(
            text,
            "The remote cannot be looked at since {since}: {error}."
        );
    }
    if let Some(held) = &facts.held {
        let _ = writeln!(text, "{held}");
    }
    match &facts.next_check {
        Some(next) => {
            let _ = writeln!(text, "The remote is looked at next at {next}.");
        }
        None => text.push_str("The remote is looked at only when somebody asks (`update`).\n"),
    }
    if let Some(back) = previous_good(&state, current.as_deref()) {
        let _ = writeln!(text, "`rollback` would go back to {back}.");
    }
    tell(text.trim_end());
    Ok(0)
}

/// Whether what is current is still as it was released: each difference in a line.
pub fn verify(worker: &Worker<'_>) -> Outcome<i32> {
    let place = worker.place();
    let state = place.state()?;
    let current = place.linked(&state)?;
    let current = current.ok_or_else(|| Failure::new("nothing was deployed yet"))?;
    let manifest = place.manifest(&current)?;
    let manifest = manifest
        .ok_or_else(|| Failure::new(format!("there is no release {current}, which is current")))?;
    let found = place.scan(&place.current())?;
    let mut differences = 0;
    let mut say = |how: &str, path: &str| {
        differences += 1;
        tell(&format!("{how:<9} {path}"));
    };
    for (path, entry) in &manifest.entries {
        match (found.get(path), entry) {
            (None, _) => say("missing", path),
            (Some(now), then) if now == then => {}
            (Some(Entry::File { digest: a, .. }), Entry::File { digest: b, .. }) if a == b => {
                say("mode", path);
            }
            _ => say("changed", path),
        }
    }
    for path in found
        .keys()
        .filter(|path| !manifest.entries.contains_key(*path))
    {
        say("added", path);
    }
    match differences {
        0 => {
            tell(&format!("{current} is as it was released"));
            Ok(0)
        }
        n => Err(Failure::new(format!(
            "{current} differs from its release in {n} places"
        ))),
    }
}
