//! Code that arrives by itself: updates, hooks, releases, rollbacks, schedules.

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    ALICE, BOT_GID, BOT_UID, Daemon, Done, OWNER, Running, Site, chmod, descendants, executable,
    finish, free_port, kill, root, wait_for,
};
use crate::runs::{fill, inside, small};
use crate::terminal::Person;

/// A repository that somebody pushes to.
pub struct Repository {
    pub dir: PathBuf,
}

impl Repository {
    pub fn new(site: &Site) -> Self {
        let repository = Self {
            dir: site.path("shared/origin.git"),
        };
        fs::create_dir(&repository.dir).unwrap();
        repository.git(&["init", "-q", "-b", "main"]);
        repository.commit("one");
        repository
    }

    pub fn git(&self, words: &[&str]) -> String {
        let mut git = Command::new("git");
        git.arg("-C").arg(&self.dir);
        git.args([
            "-c",
            "user.name=x",
            "-c",
            "user.email=x@x",
            "-c",
            "safe.directory=*",
        ]);
        git.args(words);
        finish(git).exits(0).text().trim().to_owned()
    }

    /// Commits `text` as the content of all that is there; its number.
    pub fn commit(&self, text: &str) -> String {
        fs::create_dir_all(self.dir.join("config/deep")).unwrap();
        for name in ["app", "config/app", "config/deep/app"] {
            fs::write(self.dir.join(name), text).unwrap();
        }
        let link = self.dir.join("config/link");
        let _ = fs::remove_file(&link);
        symlink("app", &link).unwrap();
        executable(&self.dir.join("run"), b"#!/bin/sh\n");
        self.git(&["add", "-A"]);
        self.git(&["commit", "-qm", text]);
        self.git(&["rev-parse", "HEAD"])
    }
}

/// A daemon with a program `app` that follows a repository by hand, and that.
pub fn follow(source: &str, keys: &str) -> (Daemon, Repository) {
    let site = Site::new();
    let repository = Repository::new(&site);
    let source = format!("@S@/origin.git{source}");
    (follow_what(site, &source, keys), repository)
}

/// A daemon with a program `app` that follows this by hand.
pub fn follow_what(site: Site, source: &str, keys: &str) -> Daemon {
    let dir = site.path("deploy");
    fs::create_dir_all(&dir).unwrap();
    if root() {
        std::os::unix::fs::chown(&dir, Some(BOT_UID), Some(BOT_GID)).unwrap();
    }
    for name in ["pre", "post"] {
        fs::create_dir(site.path(name)).unwrap();
        chmod(&site.path(name), 0o755);
    }
    site.configure(&format!(
        "allow-uid = {}\n[prog-app]\nsource = {source}\ndeploy-dir = @D@/deploy\n\
         pre-hooks = @D@/pre\npost-hooks = @D@/post\nschedule-update = none\n{keys}\n",
        ALICE.uid
    ));
    site.start()
}

pub fn current(d: &Daemon) -> String {
    fs::read_to_string(d.path("deploy/current/app")).unwrap_or_default()
}

pub fn update(d: &Daemon) -> Done {
    d.ask(OWNER, ["app", "update"])
}

fn hook(d: &Daemon, name: &str, body: &str) {
    let body = d.expand(&format!("#!/bin/sh\n{body}\n"));
    executable(&d.path(name), body.as_bytes());
}

pub fn why(d: &Daemon) -> String {
    d.ask(OWNER, ["WHY", "app"]).exits(0).text()
}

fn releases(d: &Daemon) -> Vec<Value> {
    let text = d.ask(OWNER, ["RELEASES", "app", "--json"]).exits(0).text();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn an_update_makes_current_what_the_branch_has() {
    let (d, repository) = follow("#main", "");
    let first = repository.git(&["rev-parse", "HEAD"]);
    let text = update(&d).exits(0).text();
    for step in [
        "check: ",
        "fetch: ",
        "unpack: ",
        "pre-hooks: ",
        "switch: ",
        "post-hooks: ",
        "commit: ",
    ] {
        assert!(text.lines().any(|l| l.starts_with(step)), "{step}: {text}");
    }
    assert_eq!(current(&d), "one");
    let link = fs::read_link(d.path("deploy/current")).unwrap();
    assert_eq!(link, Path::new("releases").join(&first[..12]));
    let inner = d.path("deploy/current/config");
    assert_eq!(fs::read_link(inner.join("link")).unwrap(), Path::new("app"));
    assert_eq!(
        fs::metadata(d.path("deploy/current/run")).unwrap().mode() & 0o777,
        0o755
    );
    assert!(!d.path("deploy/current/.git").exists());
    if root() {
        assert_eq!(fs::metadata(inner.join("app")).unwrap().uid(), BOT_UID);
    }

    let same = update(&d).exits(0).text();
    assert!(same.contains("nothing new"), "{same}");
    repository.commit("two");
    update(&d).exits(0);
    assert_eq!(current(&d), "two");
    // A run like every other.
    let rows = d.history();
    assert_eq!(rows.len(), 3);
    assert!(
        rows.iter()
            .all(|r| r["action"] == "update" && r["outcome"] == "succeeded")
    );
    let listed = releases(&d);
    assert_eq!(listed.len(), 2);
    assert_eq!(
        (&listed[0]["state"], &listed[1]["state"]),
        (&"current".into(), &"good".into())
    );
    d.ask(OWNER, ["VERIFY", "app"]).exits(0);
    fs::write(d.path("deploy/current/config/new"), "").unwrap();
    let verify = d.ask(OWNER, ["VERIFY", "app"]).exits(1);
    assert_eq!(verify.text(), "added     config/new\n");
}

#[test]
fn a_source_may_be_a_tag_a_commit_or_a_directory() {
    for (source, expected) in [
        ("", "two"),
        ("#v1", "one"),
        ("#light", "one"),
        ("/config#main", "two"),
        ("/config/deep", "two"),
        ("#feature/x", "feature"),
    ] {
        let (d, repository) = follow(source, "");
        repository.git(&["tag", "-a", "-m", "x", "v1"]);
        repository.git(&["tag", "light"]);
        repository.git(&["branch", "feature/x"]);
        repository.commit("two");
        repository.git(&["checkout", "-q", "feature/x"]);
        repository.commit("feature");
        repository.git(&["checkout", "-q", "main"]);
        update(&d).exits(0);
        assert_eq!(current(&d), expected, "{source}");
    }
    // The same commit, and another directory of it.
    let (d, _repository) = follow("#main", "");
    update(&d).exits(0);
    d.configure("[prog-app]\nsource = @S@/origin.git/config#main\ndeploy-dir = @D@/deploy\n");
    d.ask(OWNER, ["-r"]).exits(0);
    update(&d).exits(0);
    assert!(d.path("deploy/current/deep/app").exists());
    let (d, repository) = follow("/nowhere#main", "");
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("there is no directory nowhere"),
        "{refused:?}"
    );
    d.configure("[prog-app]\nsource = @S@/origin.git#nobranch\ndeploy-dir = @D@/deploy\n");
    d.ask(OWNER, ["-r"]).exits(0);
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("no branch or tag nobranch"),
        "{refused:?}"
    );
    let commit = repository.git(&["rev-parse", "HEAD"]);
    repository.commit("two");
    d.configure(&format!(
        "[prog-app]\nsource = @S@/origin.git#{commit}\ndeploy-dir = @D@/deploy\n"
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    update(&d).exits(0);
    assert_eq!(current(&d), "one");
}

/// F6: what moves at the remote is followed by the number of the commit.
#[test]
fn f6_forced_pushes_moved_tags_and_other_branches_are_followed() {
    let (d, repository) = follow("#main", "");
    update(&d).exits(0);
    repository.commit("two");
    update(&d).exits(0);
    repository.git(&["reset", "-q", "--hard", "HEAD^"]);
    repository.commit("other");
    update(&d).exits(0);
    assert_eq!(current(&d), "other");
    // Back to what was there before: that is a change like others.
    repository.git(&["reset", "-q", "--hard", "HEAD^"]);
    update(&d).exits(0);
    assert_eq!(current(&d), "one");
    let (d, repository) = follow("#v1", "");
    repository.git(&["tag", "v1"]);
    update(&d).exits(0);
    repository.commit("two");
    repository.git(&["tag", "-f", "v1"]);
    update(&d).exits(0);
    assert_eq!(current(&d), "two");
}

#[test]
fn hooks_run_in_order_as_the_programs_user_and_know_what_is_going_on() {
    let (d, repository) = follow("#main", "env-EXTRA = more");
    let say = "echo \"$(basename $0) $PHASE $(id -u) $REVISION <- $PREVIOUS_REVISION \
               $(cat $CURRENT_CONFIG/app) <- $(cat $PREVIOUS_CONFIG/app) $ATTEMPT $DEPLOYER_RUN $EXTRA\" >> @S@/trace";
    for name in [
        "pre/20-b",
        "pre/10-a",
        "post/a",
        "pre/10-a~",
        "pre/x.bak",
        "pre/.hidden",
        "pre/y.dpkg-old",
    ] {
        hook(&d, name, say);
    }
    fs::create_dir(d.path("pre/15-dir")).unwrap();
    fs::write(d.path("pre/12-not-executable"), "#!/bin/sh\nexit 1\n").unwrap();
    let first = repository.git(&["rev-parse", "HEAD"]);
    update(&d).exits(0);
    let second = repository.commit("two");
    update(&d).exits(0);
    let uid = if root() {
        BOT_UID
    } else {
        rustix::process::getuid().as_raw()
    };
    let line = |name: &str, phase: &str| {
        format!("{name} {phase} {uid} {second} <- {first} two <- one 1 2 more")
    };
    assert_eq!(
        d.trace()[3..],
        [line("10-a", "pre"), line("20-b", "pre"), line("a", "post")]
    );
}

/// F8: a pre-hook that refuses: nothing has changed, and the revision is not tried again.
#[test]
fn f8_what_a_pre_hook_refuses_is_quarantined() {
    let (d, repository) = follow("#main", "hook-timeout = 0.5");
    update(&d).exits(0);
    for (body, how) in [
        ("exit 3", "exited with status 3"),
        ("kill -9 $$", "was ended by signal 9"),
        (
            "trap '' TERM; sleep 1000 & wait; wait",
            "took longer than 500ms",
        ),
    ] {
        hook(&d, "pre/check", body);
        let bad = repository.commit(how);
        let refused = update(&d).exits(1);
        assert!(refused.errors().contains(how), "{how}: {refused:?}");
        assert_eq!(current(&d), "one");
        let again = update(&d).exits(1);
        assert!(again.errors().contains("--force"), "{again:?}");
        assert!(!again.text().contains("hook check"), "{again:?}");
        let why = why(&d);
        assert!(why.contains(&bad[..12]) && why.contains(how), "{why}");
    }
    // Somebody who knows better, and a remote that has moved.
    fs::remove_file(d.path("pre/check")).unwrap();
    d.ask(OWNER, ["app", "update", "--force"]).exits(0);
    assert!(current(&d).starts_with("took longer"));
    repository.commit("good");
    update(&d).exits(0);
    assert_eq!(current(&d), "good");
}

/// F8: a post-hook that refuses: what was current is so again, and its hooks know.
#[test]
fn f8_what_a_post_hook_refuses_is_rolled_back() {
    let (d, repository) = follow("#main", "");
    hook(
        &d,
        "post/check",
        "echo $PHASE $(cat $CURRENT_CONFIG/app) >> @S@/trace",
    );
    update(&d).exits(0);
    repository.commit("two");
    hook(
        &d,
        "post/check",
        "echo $PHASE $(cat $CURRENT_CONFIG/app) $(cat @D@/deploy/current/app) >> @S@/trace; test $PHASE = rollback",
    );
    let refused = update(&d).exits(1);
    assert!(
        refused
            .errors()
            .contains("post-hook check exited with status 1"),
        "{refused:?}"
    );
    assert_eq!(current(&d), "one");
    assert_eq!(d.trace(), ["post one", "post two two", "rollback one one"]);
    update(&d).exits(1);
    assert_eq!(d.trace().len(), 3, "it is not tried every minute");
    // The very first one has nothing to go back to.
    let (d, _repository) = follow("#main", "");
    hook(&d, "post/check", "exit 1");
    update(&d).exits(1);
    assert!(!d.path("deploy/current").exists());
}

#[test]
fn a_hook_puts_an_update_off() {
    let (d, repository) = follow("#main", "");
    update(&d).exits(0);
    repository.commit("two");
    hook(
        &d,
        "pre/busy",
        "echo $ATTEMPT >> @S@/trace; test -e @S@/idle || exit 75",
    );
    for _ in 0..2 {
        let off = update(&d).exits(75);
        assert!(off.text().contains("put off by the hook busy"), "{off:?}");
    }
    assert_eq!(current(&d), "one");
    assert!(why(&d).contains("put off by the hook busy"), "{}", why(&d));
    fs::write(d.path("shared/idle"), "").unwrap();
    let done = update(&d).exits(0);
    assert!(done.text().contains("is here already"), "{done:?}");
    assert_eq!(current(&d), "two");
    assert_eq!(d.trace(), ["1", "2", "3"]);
    assert!(!why(&d).contains("put off"));
}

#[test]
fn a_rollback_stays_until_there_is_something_newer() {
    let (d, repository) = follow("#main", "keep = 2");
    d.ask(OWNER, ["app", "rollback"]).exits(1);
    for text in ["two", "three", "four"] {
        update(&d).exits(0);
        repository.commit(text);
    }
    update(&d).exits(0);
    assert_eq!(releases(&d).len(), 2, "keep = 2: {:?}", releases(&d));
    let back = d
        .ask(OWNER, ["app", "rollback", "--reason", "it is slow"])
        .exits(0);
    assert!(back.text().contains("commit: "), "{back:?}");
    assert_eq!(current(&d), "three");
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("rolled back by"), "{refused:?}");
    assert!(why(&d).contains("it is slow"), "{}", why(&d));
    // Once more would be forwards, to what somebody went away from.
    let nowhere = d.ask(OWNER, ["app", "rollback"]).exits(1);
    assert!(
        nowhere.errors().contains("no earlier release"),
        "{nowhere:?}"
    );
    assert_eq!(current(&d), "three");
    repository.commit("five");
    update(&d).exits(0);
    assert_eq!(current(&d), "five");
    let id = releases(&d)[1]["release"].as_str().unwrap().to_owned();
    d.ask(OWNER, ["app", "rollback", &id[..7]]).exits(0);
    assert_eq!(current(&d), "three");
    let unknown = d.ask(OWNER, ["app", "rollback", "nonsense"]).exits(1);
    assert!(unknown.errors().contains("RELEASES"), "{unknown:?}");
}

#[test]
fn a_plan_says_what_an_update_would_bring() {
    let (d, repository) = follow("#main", "");
    update(&d).exits(0);
    hook(&d, "pre/10-look", "exit 1");
    repository.git(&["rm", "-q", "run"]);
    fs::write(repository.dir.join("added"), "").unwrap();
    repository.commit("the second");
    fs::remove_file(repository.dir.join("run")).unwrap();
    repository.git(&["commit", "-qam", "the third"]);
    let before = releases(&d);
    let plan = d.ask(OWNER, ["PLAN", "app"]).exits(0).text();
    for part in [
        "commit ",
        "x: the second",
        "x: the third",
        "new     added",
        "changed config/app",
        "gone    run",
        "pre     ",
        "10-look",
    ] {
        assert!(plan.contains(part), "{part}: {plan}");
    }
    assert!(!plan.contains("config/link"), "{plan}");
    assert_eq!((current(&d), releases(&d)), ("one".to_owned(), before));
    fs::remove_file(d.path("pre/10-look")).unwrap();
    update(&d).exits(0);
    assert_eq!(current(&d), "the second");
    // Nothing new: nothing to tell.
    let plan = d.ask(OWNER, ["PLAN", "app"]).exits(0).text();
    assert_eq!(plan.lines().count(), 1, "{plan}");
}

#[test]
fn a_pinned_release_stays() {
    let (d, repository) = follow("#main", "");
    update(&d).exits(0);
    repository.commit("two");
    update(&d).exits(0);
    let first = releases(&d)[1]["release"].as_str().unwrap().to_owned();
    d.ask(OWNER, ["PIN", "app", &first, "--reason", "audit"])
        .exits(0);
    assert_eq!(current(&d), "one");
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("UNPIN app"), "{refused:?}");
    assert!(why(&d).contains("audit"), "{}", why(&d));
    d.ask(OWNER, ["UNPIN", "app"]).exits(0);
    repository.commit("three");
    update(&d).exits(0);
    assert_eq!(current(&d), "three");
}

/// F7: whatever stands in a journal is finished or undone by the next.
#[test]
fn f7_a_killed_update_is_finished_or_undone() {
    let (d, repository) = follow("#main", "");
    update(&d).exits(0);
    // Killed before, and after the switch, by its own hooks.
    for (name, phase) in [("pre/kill", "pre"), ("post/kill", "post")] {
        let text = format!("after {phase}");
        repository.commit(&text);
        hook(&d, name, "kill -9 $PPID");
        let before = current(&d);
        let killed = update(&d);
        assert_eq!(killed.signal(), Some(9), "{killed:?}");
        let there = d.path("deploy/.deployer/journal.json").exists();
        assert_eq!(there, phase == "post", "the journal after {phase}");
        if phase == "post" {
            assert_eq!(current(&d), text);
            hook(&d, name, "test $PHASE = rollback || test -e @S@/go");
            let second = update(&d).exits(1);
            assert!(
                second.text().contains("did not come to its end"),
                "{second:?}"
            );
            assert!(second.text().contains("roll back: "), "{second:?}");
            assert_eq!(current(&d), before);
        }
        fs::remove_file(d.path(name)).unwrap();
        d.ask(OWNER, ["app", "update", "--force"]).exits(0);
        assert_eq!(current(&d), text);
    }
    // At each record of the journal, as if the worker had been killed right behind it.
    let all = releases(&d);
    let (new, old) = (&all[0], &all[1]);
    let journal = d.path("deploy/.deployer/journal.json");
    let link = d.path("deploy/current");
    for (phase, switched, expected) in [
        ("Switching", false, old),
        ("Switching", true, old),
        ("Undoing", true, old),
        ("Undoing", false, old),
        ("Committing", true, new),
    ] {
        let at = if switched { new } else { old };
        fs::remove_file(&link).unwrap();
        symlink(
            format!("releases/{}", at["release"].as_str().unwrap()),
            &link,
        )
        .unwrap();
        let text = serde_json::json!({
            "phase": phase, "from": old["release"], "to": new["release"],
            "revision": new["revision"], "run": 77, "reason": null,
        });
        fs::write(&journal, text.to_string()).unwrap();
        d.ask(OWNER, ["PIN", "app"]).exits(0);
        d.ask(OWNER, ["UNPIN", "app"]).exits(0);
        assert!(!journal.exists(), "{phase}");
        let now = fs::read_link(&link).unwrap();
        assert!(
            now.ends_with(expected["release"].as_str().unwrap()),
            "{phase}: {now:?}"
        );
    }
}

/// F7: the daemon dies again and again, and what is current is always one commit, whole.
#[test]
fn f7_fifty_commits_are_followed_while_the_daemon_is_killed() {
    let (d, repository) = follow("#main", "keep = 3\ntimeout = none");
    update(&d).exits(0);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (link, stopped) = (d.path("deploy"), std::sync::Arc::clone(&stop));
    let watcher = std::thread::spawn(move || {
        let mut seen = std::collections::BTreeSet::new();
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let release = link.join(fs::read_link(link.join("current")).unwrap());
            let read = |name: &str| fs::read_to_string(release.join(name)).ok();
            let texts = ["app", "config/app", "config/deep/app"].map(read);
            // One that was read while it was deleted says nothing.
            if fs::read_link(link.join("current")).unwrap() == release.strip_prefix(&link).unwrap()
            {
                assert!(
                    texts[0].is_some() && texts.iter().all(|t| *t == texts[0]),
                    "{texts:?}"
                );
                seen.extend(texts[0].clone());
            }
        }
        seen.len()
    });
    let mut last = String::new();
    for n in 0..50 {
        last = format!("commit {n}");
        repository.commit(&last);
        d.ask(OWNER, ["app", "update", "--detach"]).exits(0);
        if n % 3 == 0 {
            d.kill_daemon();
            d.await_ready();
        }
        if n % 10 == 0 {
            wait_for("it to be current", || (current(&d) == last).then_some(()));
        }
    }
    update(&d).exits(0);
    assert_eq!(current(&d), last);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    assert!(watcher.join().unwrap() >= 5);
    d.ask(OWNER, ["VERIFY", "app"]).exits(0);
    assert!(releases(&d).len() <= 4, "{:?}", releases(&d));
}

/// Kills those who are at work on an update, but not what they have started.
fn kill_workers(d: &Daemon) {
    for process in descendants(d.keeper_pid()) {
        let words = fs::read_to_string(format!("/proc/{}/cmdline", process.pid));
        if words.is_ok_and(|words| words.contains("--role=source")) {
            kill(process.pid, Signal::KILL);
        }
    }
}

/// F7: the history of this very project, as far as it is here: forwards, and then from the start
/// again (a forced push) until fifty steps are done. Every release is its commit, byte for byte,
/// and so is `current` at each moment, for it never is anything but the link to one.
#[test]
fn f7_a_real_history_is_followed_while_the_daemon_is_killed() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut list = Command::new("git");
    list.arg("-C").arg(project);
    list.args([
        "-c",
        "safe.directory=*",
        "rev-list",
        "--reverse",
        "--first-parent",
        "HEAD",
    ]);
    let listed = finish(list).text();
    let commits: Vec<&str> = listed.lines().collect();
    if commits.len() < 2 {
        eprintln!("skipped: there is no history beside this test");
        return;
    }
    let site = Site::new();
    let bare = site.path("shared/origin.git");
    let mut clone = Command::new("git");
    clone.args(["-c", "safe.directory=*", "clone", "-q", "--bare"]);
    clone.arg(project).arg(&bare);
    finish(clone).exits(0);
    let repository = Repository { dir: bare };
    repository.git(&["update-ref", "refs/heads/followed", commits[0]]);
    let d = follow_what(
        site,
        "@S@/origin.git#followed",
        "keep = 100\ntimeout = none",
    );
    update(&d).exits(0);
    let mut random = fs::File::open("/dev/urandom").unwrap();
    let mut tip = commits[0];
    for n in 1..=50 {
        tip = commits[n % commits.len()];
        repository.git(&["update-ref", "refs/heads/followed", tip]);
        d.ask(OWNER, ["app", "update", "--detach"]).exits(0);
        let mut byte = [0];
        random.read_exact(&mut byte).unwrap();
        // At whichever step it is by then.
        std::thread::sleep(std::time::Duration::from_millis(byte[0].into()));
        match byte[0] % 3 {
            0 => drop(d.kill_daemon()),
            1 => kill_workers(&d),
            _ => {}
        }
        d.await_ready();
        if n % 5 == 0 {
            update(&d).exits(0);
        }
    }
    update(&d).exits(0);
    let current = fs::read_link(d.path("deploy/current")).unwrap();
    let name = current.file_name().unwrap().to_str().unwrap();
    assert!(tip.starts_with(&name[..12]), "{name} for {tip}");
    let mut compared = 0;
    for release in fs::read_dir(d.path("deploy/releases")).unwrap() {
        let release = release.unwrap().path();
        let name = release.file_name().unwrap().to_str().unwrap();
        let mut compare = Command::new("sh");
        compare.args([
            "-c",
            "mkdir \"$3\" && git -c safe.directory='*' --git-dir \"$0\" archive \"$1\" | tar -x -C \"$3\" && \
             diff -r --no-dereference \"$2\" \"$3\" && rm -r \"$3\"",
        ]);
        compare.arg(&repository.dir).arg(&name[..12]).arg(&release);
        compare.arg(d.path("compared"));
        finish(compare).exits(0);
        compared += 1;
    }
    assert!(compared >= 10.min(commits.len()), "{compared}");
    d.ask(OWNER, ["VERIFY", "app"]).exits(0);
}

#[test]
fn a_cancelled_update_is_undone() {
    let (d, repository) = follow("#main", "");
    update(&d).exits(0);
    repository.commit("two");
    hook(
        &d,
        "post/slow",
        "echo $PHASE >> @S@/trace; test $PHASE = rollback || sleep 1000",
    );
    let running = d.background(OWNER, ["app", "update"]);
    d.await_trace("post", 1);
    assert_eq!(current(&d), "two");
    let id = d.nth(2).to_string();
    d.ask(OWNER, ["CANCEL", &id]).exits(0);
    running.done();
    assert_eq!(d.ended(d.nth(2))["outcome"], "cancelled");
    assert_eq!(current(&d), "one");
    assert_eq!(d.trace(), ["post", "rollback"]);
    // It was not the revision's fault.
    hook(&d, "post/slow", "");
    update(&d).exits(0);
    assert_eq!(current(&d), "two");
}

#[test]
fn a_directory_can_be_kept_in_step_file_by_file() {
    let (d, repository) = follow("#main", "switch = sync\nshared = data\n");
    fs::write(repository.dir.join("stays"), "same").unwrap();
    fs::write(repository.dir.join("goes"), "").unwrap();
    repository.commit("two");
    update(&d).exits(0);
    let dir = d.path("deploy/current");
    assert!(dir.is_dir() && !dir.is_symlink());
    assert_eq!(current(&d), "two");
    fs::write(dir.join("data/kept"), "").unwrap();
    let before = fs::metadata(dir.join("stays")).unwrap();
    fs::remove_file(repository.dir.join("goes")).unwrap();
    // A directory where a file was, and the other way round.
    fs::write(repository.dir.join("config2"), "").unwrap();
    repository.commit("three");
    update(&d).exits(0);
    assert_eq!(current(&d), "three");
    assert!(!dir.join("goes").exists() && dir.join("config2").is_file());
    assert!(dir.join("data/kept").exists(), "what is shared stays");
    let after = fs::metadata(dir.join("stays")).unwrap();
    assert_eq!(
        (before.ino(), before.mtime_nsec()),
        (after.ino(), after.mtime_nsec())
    );
    fs::remove_file(repository.dir.join("config2")).unwrap();
    fs::create_dir(repository.dir.join("config2")).unwrap();
    fs::write(repository.dir.join("config2/x"), "").unwrap();
    repository.commit("four");
    update(&d).exits(0);
    assert!(dir.join("config2/x").is_file());
    d.ask(OWNER, ["VERIFY", "app"]).exits(0);
    hook(&d, "post/no", "test $PHASE = rollback");
    repository.commit("five");
    update(&d).exits(1);
    assert_eq!(current(&d), "four");
    d.ask(OWNER, ["VERIFY", "app"]).exits(0);
}

#[test]
fn what_is_shared_is_linked_into_each_release() {
    let (d, repository) = follow("#main", "shared = log, var/uploads, config/app\n");
    update(&d).exits(0);
    fs::write(d.path("deploy/current/var/uploads/cat"), "meow").unwrap();
    fs::write(d.path("deploy/current/config/app"), "edited").unwrap();
    repository.commit("two");
    update(&d).exits(0);
    let at = d.path("deploy/current");
    assert_eq!(
        fs::read_to_string(at.join("var/uploads/cat")).unwrap(),
        "meow"
    );
    // What the first release brought along is where it begins, and then it is the machine's own.
    assert_eq!(fs::read_to_string(at.join("config/app")).unwrap(), "edited");
    assert!(at.join("log").is_dir());
    d.ask(OWNER, ["VERIFY", "app"]).exits(0);
}

#[test]
fn an_update_may_end_with_a_run_of_the_program() {
    let (d, repository) = follow(
        "#main",
        "after-update = run\ncmd-run = cat @D@/deploy/current/app >> @S@/trace; echo >> @S@/trace",
    );
    update(&d).exits(0);
    d.await_trace("one", 1);
    update(&d).exits(0);
    repository.commit("two");
    update(&d).exits(0);
    d.await_trace("two", 1);
    assert_eq!(d.trace(), ["one", "two"]);
    let run = d.history().pop().unwrap();
    assert!(
        run["reason"].as_str().unwrap().starts_with("update "),
        "{run}"
    );
}

/// A remote is followed, and scripts are run, at their times; those that were missed are not made
/// up for.
#[test]
fn things_are_done_at_their_times() {
    root_only!(things_are_done_at_their_times);
    let site = Site::new();
    let repository = Repository::new(&site);
    std::os::unix::fs::chown(&repository.dir, Some(BOT_UID), Some(BOT_GID)).unwrap();
    let dir = site.path("deploy");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(BOT_UID), Some(BOT_GID)).unwrap();
    let clock = site.own_clock();
    // A few seconds before the next minute.
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let ahead = 57 - i64::try_from(now % 60).unwrap();
    fs::write(&clock, ahead.to_string()).unwrap();
    site.configure(
        "[prog-app]\nsource = @S@/origin.git#main\ndeploy-dir = @D@/deploy\n\
         [prog-often]\nschedule-run = * * * * *\ncmd-run = echo often >> @S@/trace\n\
         [prog-late]\nschedule-run = 0 0 1 1 *\ncmd-run = echo late >> @S@/trace\n\
         [prog-still]\nschedule-run = * * * * *\ncmd-run = echo still >> @S@/trace\n",
    );
    let d = site.start();
    d.ask(OWNER, ["FREEZE", "still", "no"]).exits(0);
    d.await_trace("often", 1);
    wait_for("the update", || (current(&d) == "one").then_some(()));
    wait_for("it to be on record", || {
        let rows = d.history_of(OWNER, &["app"]);
        (rows.first()?["outcome"] == "succeeded").then_some(())
    });
    let rows = d.history_of(OWNER, &["app"]);
    assert_eq!(rows[0]["by"]["user"], "deployer");
    // Five hours later: each once, and a look at a remote without news leaves no record.
    repository.git(&["commit", "-q", "--allow-empty", "-m", "x"]);
    repository.git(&["reset", "-q", "--hard", "HEAD^"]);
    fs::write(&clock, (ahead + 5 * 3600).to_string()).unwrap();
    d.await_trace("often", 2);
    let history = d.history();
    let of = |program: &str| history.iter().filter(|r| r["program"] == program).count();
    assert_eq!(
        (of("app"), of("often"), of("late"), of("still")),
        (1, 2, 0, 0)
    );
    assert!(why(&d).contains("looked at next at"), "{}", why(&d));
}

#[test]
fn a_remote_that_cannot_be_looked_at_changes_nothing_and_is_told_of() {
    root_only!(a_remote_that_cannot_be_looked_at_changes_nothing_and_is_told_of);
    let (d, repository) = follow("#main", "");
    update(&d).exits(0);
    let away = repository.dir.with_extension("away");
    fs::rename(&repository.dir, &away).unwrap();
    let failed = update(&d).exits(1);
    assert!(
        failed.errors().contains("cannot look at file://"),
        "{failed:?}"
    );
    assert_eq!(current(&d), "one");
}

#[test]
fn a_frozen_program_stands_still() {
    root_only!(a_frozen_program_stands_still);
    let (d, _repository) = follow(
        "#main",
        "cmd-run = echo ran\nuid-freeze = bin\nuid-update = bin",
    );
    // Whoever may run it may not freeze it.
    d.ask(ALICE, ["FREEZE", "app", "x"]).exits(125);
    d.ask(OWNER, ["FREEZE", "app", ""]).exits(125);
    d.ask(OWNER, ["FREEZE", "app", "x", "--for", "soon"])
        .exits(125);
    let said = d
        .ask(OWNER, ["FREEZE", "app", "release party", "--for", "2h"])
        .exits(0);
    assert!(said.errors().contains("frozen by root"), "{said:?}");
    for words in [["RUN", "app"], ["app", "update"]] {
        let refused = d.ask(OWNER, words).exits(125);
        assert!(refused.errors().contains("release party"), "{refused:?}");
    }
    d.ask(ALICE, ["RUN", "app"]).exits(125);
    for words in [&["-a"][..], &["LIST"], &["WHY", "app"]] {
        let shown = d.ask(OWNER, words).exits(0).text();
        assert!(shown.contains("release party"), "{words:?}: {shown}");
    }
    // It is so after a crash, too.
    d.kill_daemon();
    d.await_ready();
    d.ask(ALICE, ["RUN", "app"]).exits(125);
    d.ask(ALICE, ["THAW", "app"]).exits(125);
    d.ask(OWNER, ["THAW", "app"]).exits(0);
    assert_eq!(d.ask(ALICE, ["RUN", "app"]).exits(0).text(), "ran\n");
    d.ask(OWNER, ["FREEZE", "app", "a moment", "--for", "0.2"])
        .exits(0);
    wait_for("it thaws by itself", || {
        (d.ask(ALICE, ["RUN", "app"]).code() == Some(0)).then_some(())
    });
    assert!(d.history().iter().all(|r| r["outcome"] == "succeeded"));
}

#[test]
fn only_those_who_may_update_change_what_is_current() {
    root_only!(only_those_who_may_update_change_what_is_current);
    let (d, repository) = follow(
        "#main",
        "uid-update = bin\ncmd-run = true\nuid-rollback = 54321",
    );
    update(&d).exits(0);
    repository.commit("two");
    update(&d).exits(0);
    d.ask(ALICE, ["app", "update"]).exits(125);
    d.ask(ALICE, ["PIN", "app"]).exits(125);
    d.ask(ALICE, ["app", "rollback"]).exits(0);
    assert_eq!(current(&d), "one");
    // Whoever may see the program may ask why.
    d.ask(ALICE, ["WHY", "app"]).exits(0);
    d.ask(crate::harness::CAROL, ["WHY", "app"]).exits(125);
}

/// F4: a repository that would have git do something else.
#[test]
fn f4_a_hostile_repository_runs_nothing() {
    let (d, repository) = follow("#main", "");
    let evil = d.path("shared/evil.sh");
    executable(
        &evil,
        d.expand("#!/bin/sh\necho evil >> @S@/trace\n").as_bytes(),
    );
    let path = evil.display().to_string();
    fs::write(
        repository.dir.join(".gitattributes"),
        "* filter=evil export-ignore\n",
    )
    .unwrap();
    for name in [
        "post-checkout",
        "post-update",
        "reference-transaction",
        "pre-receive",
    ] {
        executable(
            &repository.dir.join(".git/hooks").join(name),
            fs::read(&evil).unwrap().as_slice(),
        );
    }
    repository.commit("two");
    fs::remove_file(d.path("shared/trace")).ok();
    update(&d).exits(0);
    assert_eq!(current(&d), "two");
    assert!(d.trace().is_empty(), "{:?}", d.trace());
    assert!(
        d.path("deploy/current/.gitattributes").exists(),
        "nothing is left out"
    );
    fs::write(
        repository.dir.join(".gitmodules"),
        format!("[submodule \"x\"]\n\tpath = x\n\turl = ext::{path}\n\tupdate = !{path}\n"),
    )
    .unwrap();
    repository.commit("three");
    fs::remove_file(d.path("shared/trace")).ok();
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("fsck"), "{refused:?}");
    assert_eq!(current(&d), "two");
    assert!(d.trace().is_empty(), "{:?}", d.trace());
}

#[test]
fn a_source_that_is_too_large_is_refused_before_anything_is_written() {
    let (d, repository) = follow("#main", "source-max-size = 100K\nsource-max-files = 20");
    update(&d).exits(0);
    fs::write(repository.dir.join("large"), vec![b'x'; 200_000]).unwrap();
    repository.commit("two");
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("source-max-size"), "{refused:?}");
    fs::remove_file(repository.dir.join("large")).unwrap();
    for n in 0..30 {
        fs::write(repository.dir.join(format!("f{n}")), "").unwrap();
    }
    repository.commit("three");
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("source-max-files"), "{refused:?}");
    assert_eq!(current(&d), "one");
    assert_eq!(releases(&d).len(), 1);
}

/// Runs a few lines of Python.
fn python(code: &str) {
    let mut python = Command::new("python3");
    python.args(["-c", code]);
    finish(python).exits(0);
}

/// Makes an archive whose file `app` holds `text`.
pub fn pack(at: &Path, text: &str) {
    let dir = at.with_extension("tree");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(dir.join("config")).unwrap();
    for name in ["app", "config/app"] {
        fs::write(dir.join(name), text).unwrap();
    }
    executable(&dir.join("run"), b"#!/bin/sh\n");
    let (dir, at) = (dir.display(), at.display());
    python(&format!(
        "import os, sys, tarfile, zipfile, io, subprocess\n\
         dir, at = {dir:?}, {at:?}\n\
         names = sorted(os.path.relpath(os.path.join(d, f), dir) for d, _, fs in os.walk(dir) for f in fs)\n\
         new = at + '.new'\n\
         if at.endswith('.zip'):\n\
         \u{20} z = zipfile.ZipFile(new, 'w', zipfile.ZIP_DEFLATED)\n\
         \u{20} [z.write(os.path.join(dir, n), n) for n in names]\n\
         \u{20} z.close()\n\
         else:\n\
         \u{20} mode = 'w:gz' if at.endswith('gz') else 'w'\n\
         \u{20} t = tarfile.open(new, mode)\n\
         \u{20} [t.add(os.path.join(dir, n), n) for n in names]\n\
         \u{20} t.close()\n\
         \u{20} if at.endswith('zst'): subprocess.check_call(['zstd', '-q', '-f', '--rm', new, '-o', new + 'z']); os.rename(new + 'z', new)\n\
         os.rename(new, at)\n"
    ));
}

/// nginx with a directory to serve: a single process, ended when it is dropped.
pub struct Nginx {
    _process: Running,
    pub port: u16,
    log: PathBuf,
}

impl Nginx {
    pub fn new(site: &Site, more: &str) -> Self {
        let dir = site.path("shared/www");
        fs::create_dir_all(&dir).unwrap();
        let port = free_port();
        let config = site.path("nginx.conf");
        fs::write(
            &config,
            site.expand(&format!(
                "daemon off; master_process off; pid @D@/nginx.pid; error_log @D@/nginx.err; events {{}}\n\
                 http {{ access_log @D@/nginx.log; client_body_temp_path @D@/nb; proxy_temp_path @D@/np;\n\
                 fastcgi_temp_path @D@/nf; uwsgi_temp_path @D@/nu; scgi_temp_path @D@/ns;\n\
                 server {{ listen 127.0.0.1:{port}; root @S@/www; {more} }} }}\n"
            )),
        )
        .unwrap();
        let mut nginx = Command::new("/usr/sbin/nginx");
        nginx
            .arg("-c")
            .arg(&config)
            .stdin(std::process::Stdio::null());
        let process = Running::start(nginx);
        wait_for("nginx", || {
            std::net::TcpStream::connect(("127.0.0.1", port)).ok()
        });
        Self {
            _process: process,
            port,
            log: site.path("nginx.log"),
        }
    }

    fn requests(&self) -> Vec<String> {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }
}

#[test]
fn an_archive_behind_http_is_followed_by_its_marks() {
    root_only!(an_archive_behind_http_is_followed_by_its_marks);
    for name in ["app.zip", "app.tar.gz", "app.tar", "app.tar.zst"] {
        let site = Site::new();
        let nginx = Nginx::new(&site, "");
        let at = site.path("shared/www").join(name);
        pack(&at, "one");
        let source = format!("http://127.0.0.1:{}/{name}", nginx.port);
        let d = follow_what(site, &source, "");
        update(&d).exits(0);
        assert_eq!(current(&d), "one", "{name}");
        assert_eq!(
            fs::metadata(d.path("deploy/current/run")).unwrap().mode() & 0o777,
            0o755
        );
        let before = nginx.requests().len();
        let same = update(&d).exits(0);
        assert!(same.text().contains("nothing new"), "{same:?}");
        let asked = &nginx.requests()[before..];
        assert!(
            asked.len() == 1 && asked[0].contains("\" 304 "),
            "{asked:?}"
        );
        // Older times, another content.
        pack(&at, "two");
        let mut touch = Command::new("touch");
        touch.args(["-d", "2001-01-01"]).arg(&at);
        finish(touch).exits(0);
        update(&d).exits(0);
        assert_eq!(current(&d), "two", "{name}");
        // Another time, the same content: it is fetched, and is nothing new.
        let mut touch = Command::new("touch");
        touch.args(["-d", "2002-01-01"]).arg(&at);
        finish(touch).exits(0);
        let same = update(&d).exits(0);
        assert!(same.text().contains("nothing new"), "{same:?}");
        assert_eq!(releases(&d).len(), 2);
        d.ask(OWNER, ["VERIFY", "app"]).exits(0);
    }
}

/// F1: what is no archive changes nothing.
#[test]
fn f1_errors_and_pages_of_a_web_server_are_no_version() {
    root_only!(f1_errors_and_pages_of_a_web_server_are_no_version);
    let site = Site::new();
    let nginx = Nginx::new(
        &site,
        "location /moved.zip { return 302 /app.zip; } location /login.zip { return 302 /login.html; }\n\
         location /busy.zip { return 503; } location /gone.zip { return 404; }\n",
    );
    let www = site.path("shared/www");
    pack(&www.join("app.zip"), "one");
    fs::write(www.join("login.html"), "<html>who are you?</html>").unwrap();
    fs::write(www.join("page.zip"), "<html>an error</html>").unwrap();
    let whole = fs::read(www.join("app.zip")).unwrap();
    fs::write(www.join("half.zip"), &whole[..whole.len() / 2]).unwrap();
    let base = format!("http://127.0.0.1:{}", nginx.port);
    let d = follow_what(site, &format!("{base}/moved.zip"), "");
    update(&d).exits(0);
    assert_eq!(current(&d), "one");
    for (name, how) in [
        ("login.zip", "is no zip file"),
        ("page.zip", "is no zip file"),
        ("half.zip", "is no zip file"),
        ("busy.zip", "the server answers 503"),
        ("gone.zip", "the server answers 404"),
    ] {
        d.configure(&format!(
            "[prog-app]\nsource = {base}/{name}\ndeploy-dir = @D@/deploy\nschedule-update = none\n"
        ));
        d.ask(OWNER, ["-r"]).exits(0);
        let failed = update(&d).exits(1);
        assert!(failed.errors().contains(how), "{name}: {failed:?}");
        assert_eq!(current(&d), "one", "{name}");
        d.ask(OWNER, ["VERIFY", "app"]).exits(0);
    }
    assert_eq!(releases(&d).len(), 1);
}

/// F1, F8: what is wrong with an archive is not tried every minute.
#[test]
fn f8_an_archive_that_cannot_be_used_is_not_fetched_again_and_again() {
    root_only!(f8_an_archive_that_cannot_be_used_is_not_fetched_again_and_again);
    let site = Site::new();
    let nginx = Nginx::new(
        &site,
        "location /bare.zip { alias @S@/www/app.zip; etag off; add_header Last-Modified ''; }",
    );
    let at = site.path("shared/www/app.zip");
    fs::write(&at, "<html>maintenance</html>").unwrap();
    let base = format!("http://127.0.0.1:{}", nginx.port);
    let d = follow_what(site, &format!("{base}/app.zip"), "");
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("is no zip file"), "{refused:?}");
    let before = nginx.requests().len();
    let again = update(&d).exits(1);
    assert!(again.errors().contains("was refused in run 1"), "{again:?}");
    let asked = &nginx.requests()[before..];
    assert!(
        asked.len() == 1 && asked[0].contains("\" 304 "),
        "{asked:?}"
    );
    assert!(why(&d).contains("is no zip file"), "{}", why(&d));
    pack(&at, "one");
    update(&d).exits(0);
    assert_eq!(current(&d), "one");
    // A server that says nothing of what it has is asked for all of it, and nothing is written.
    d.configure(&format!(
        "[prog-app]\nsource = {base}/bare.zip\ndeploy-dir = @D@/deploy\nschedule-update = none\n"
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    update(&d).exits(0);
    let same = update(&d).exits(0);
    assert!(
        same.text().contains("nothing new") && !same.text().contains("fetch"),
        "{same:?}"
    );
}

/// F2, F3, F5: an archive that wants out, or too much, is refused as a whole.
#[test]
fn f2_hostile_archives_are_refused_whole() {
    root_only!(f2_hostile_archives_are_refused_whole);
    let site = Site::new();
    let at = site.path("shared/app.tar");
    pack(&at, "one");
    let d = follow_what(
        site,
        "@S@/app.tar",
        "source-max-size = 1M\nsource-max-files = 50",
    );
    update(&d).exits(0);
    let tar = |code: &str| {
        let at = at.display();
        python(&format!(
            "import tarfile, io, os\n\
             t = tarfile.open({at:?} + '.new', 'w')\n\
             def f(name, data=b'x', **k):\n\
             \u{20} i = tarfile.TarInfo(name); i.size = len(data); i.mode = 0o644\n\
             \u{20} for n, v in k.items(): setattr(i, n, v)\n\
             \u{20} t.addfile(i, io.BytesIO(data))\n\
             f('app', b'evil')\n{code}\nt.close(); os.rename({at:?} + '.new', {at:?})\n"
        ));
    };
    let outside = d.path("deploy/evil");
    for (code, how) in [
        ("f('../evil')", "leads out"),
        ("f('../../evil')", "leads out"),
        ("f('/evil')", "leads out"),
        ("f('a/../../evil')", "leads out"),
        (
            "f('l', b'', type=tarfile.SYMTYPE, linkname='/etc')",
            "neither a file nor",
        ),
        (
            "f('l', b'', type=tarfile.LNKTYPE, linkname='app')",
            "neither a file nor",
        ),
        (
            "f('d', b'', type=tarfile.CHRTYPE, devmajor=1, devminor=3)",
            "neither a file nor",
        ),
        ("f('p', b'', type=tarfile.FIFOTYPE)", "neither a file nor"),
        ("f('.git/config')", "nothing of git"),
        ("f('x/.GIT/hooks/a')", "nothing of git"),
        ("f('app')", "twice"),
        ("f('APP')", "two spellings"),
        ("f('a/' * 80 + 'b')", "too deep"),
        ("[f('f%d' % n) for n in range(60)]", "source-max-files"),
        (
            "f('large', b'x' * 900000)\nf('more', b'x' * 200000)",
            "source-max-size",
        ),
    ] {
        tar(code);
        let refused = update(&d).exits(1);
        assert!(refused.errors().contains(how), "{code}: {refused:?}");
        assert_eq!(current(&d), "one", "{code}");
        assert!(!outside.exists() && !d.path("evil").exists(), "{code}");
        assert_eq!(releases(&d).len(), 1, "{code}");
    }
    // A set-uid bit is taken off, and so is what everybody could write.
    tar("f('suid', mode=0o6777)");
    update(&d).exits(0);
    let mode = fs::metadata(d.path("deploy/current/suid")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
    // A bomb: small on the way, and large when it is unpacked.
    let zip = at.with_extension("zip");
    python(&format!(
        "import zipfile\nz = zipfile.ZipFile({:?}, 'w', zipfile.ZIP_DEFLATED)\n\
         z.writestr('zeros', b'\\0' * 50_000_000)\nz.close()\n",
        zip.display()
    ));
    d.configure(
        "[prog-app]\nsource = @S@/app.zip\ndeploy-dir = @D@/deploy\nsource-max-size = 1M\n",
    );
    d.ask(OWNER, ["-r"]).exits(0);
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("source-max-size"), "{refused:?}");
    assert_eq!(
        current(&d),
        "evil",
        "the one before that, which was harmless"
    );
}

#[test]
fn an_archive_has_to_be_what_its_digest_says() {
    root_only!(an_archive_has_to_be_what_its_digest_says);
    let site = Site::new();
    let at = site.path("shared/app.zip");
    pack(&at, "one");
    let beside = at.with_extension("zip.sha256");
    let sum = |at: &Path| {
        let mut sum = Command::new("sha256sum");
        sum.arg(at);
        finish(sum).exits(0).text()
    };
    fs::write(&beside, sum(&at)).unwrap();
    let d = follow_what(site, "@S@/app.zip", "source-digest = beside");
    update(&d).exits(0);
    pack(&at, "two");
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("is not what it has to be"),
        "{refused:?}"
    );
    assert_eq!(current(&d), "one");
    fs::write(&beside, sum(&at)).unwrap();
    update(&d).exits(0);
    assert_eq!(current(&d), "two");
    // Also when it is here already, and was good before.
    d.ask(OWNER, ["app", "rollback"]).exits(0);
    d.configure(&format!(
        "[prog-app]\nsource = @S@/app.zip\ndeploy-dir = @D@/deploy\nschedule-update = none\n\
         source-digest = sha256:{}\n",
        "0".repeat(64)
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    let refused = d.ask(OWNER, ["app", "update", "--force"]).exits(1);
    assert!(
        refused.errors().contains("is not what it has to be"),
        "{refused:?}"
    );
    assert_eq!(current(&d), "one");
}

/// F9: what stands in an address, or in a file, reaches nobody but the server.
#[test]
fn f9_secrets_reach_the_server_and_nobody_else() {
    root_only!(f9_secrets_reach_the_server_and_nobody_else);
    let site = Site::new();
    let nginx = Nginx::new(
        &site,
        "location / { if ($http_authorization != \"Basic Ym90OnMzY3IzdA==\") { return 401; } }",
    );
    pack(&site.path("shared/www/app.zip"), "one");
    let source = format!("http://bot:s3cr3t@127.0.0.1:{}/app.zip", nginx.port);
    let d = follow_what(site, &source, "");
    hook(
        &d,
        "post/look",
        "env >> @S@/trace; cat /proc/*/cmdline 2>/dev/null | tr '\\0' '\\n' >> @S@/trace; ls -l /proc/$$/fd /proc/$PPID/fd >> @S@/trace",
    );
    let done = update(&d).exits(0);
    assert_eq!(current(&d), "one");
    let history = d.ask(OWNER, ["HISTORY", "--json"]).text();
    let kept = fs::read_to_string(d.path("deploy/.deployer/state.json")).unwrap();
    let why = why(&d);
    for (what, text) in [
        ("output", done.text()),
        ("history", history),
        ("state", kept),
        ("daemon's log", d.log()),
        ("why", why),
        ("hook", d.trace().join("\n")),
    ] {
        assert!(
            !text.contains("s3cr3t") && !text.contains("Ym90"),
            "{what}: {text}"
        );
    }
    d.configure(&format!(
        "[prog-app]\nsource = http://127.0.0.1:{}/app.zip\ndeploy-dir = @D@/deploy\nsource-token-file = @S@/token\n",
        nginx.port
    ));
    fs::write(d.path("shared/token"), "bot:wrong\n").unwrap();
    d.ask(OWNER, ["-r"]).exits(0);
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("401"), "{refused:?}");
    fs::write(d.path("shared/token"), "bot:s3cr3t\n").unwrap();
    update(&d).exits(0);
}

/// A server that answers each request with the next of these, the last one again and again.
fn serve(answers: Vec<Vec<u8>>) -> u16 {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let mut answers = answers.into_iter().peekable();
        let mut answer = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let _ = lines.map_while(Result::ok).find(String::is_empty);
            answer = answers.next().unwrap_or(answer);
            let _ = stream.write_all(&answer);
        }
    });
    port
}

/// F1: a body that breaks off is fetched again, and is no version if it always does.
#[test]
fn f1_short_bodies_and_passing_errors_are_tried_again() {
    root_only!(f1_short_bodies_and_passing_errors_are_tried_again);
    let site = Site::new();
    let at = site.path("shared/app.zip");
    pack(&at, "one");
    let zip = fs::read(&at).unwrap();
    let whole = |length: usize| {
        let head =
            format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
        [head.as_bytes(), &zip].concat()
    };
    let busy = b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_vec();
    let port = serve(vec![
        busy.clone(),
        whole(zip.len()),
        whole(zip.len() + 9),
        busy,
        whole(zip.len()),
    ]);
    let d = follow_what(site, &format!("http://127.0.0.1:{port}/app.zip"), "");
    update(&d).exits(0);
    assert_eq!(current(&d), "one");
    let short = serve(vec![whole(zip.len() + 9)]);
    d.configure(&format!(
        "[prog-app]\nsource = http://127.0.0.1:{short}/app.zip\ndeploy-dir = @D@/deploy\n"
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    let failed = update(&d).exits(1);
    assert!(failed.errors().contains("cannot fetch"), "{failed:?}");
    assert_eq!(current(&d), "one");
}

/// A disk that is full, at whichever step, is not the version's fault: nothing that is used has
/// changed, and when there is room the same version comes.
#[test]
fn f7_a_full_disk_stops_an_update_and_no_more() {
    root_only!(f7_a_full_disk_stops_an_update_and_no_more);
    for kind in ["zip", "git"] {
        let site = Site::new();
        small(&site, "deploy", &format!("16m,uid={BOT_UID}"));
        let at = site.path("shared/app.zip");
        let repository = Repository::new(&site);
        let publish = |text: &str, large: bool| {
            let more = repository.dir.join("more");
            let mut bytes = vec![0; if large { 4 << 20 } else { 0 }];
            // Such that neither archives nor git save room.
            let mut random = fs::File::open("/dev/urandom").unwrap();
            random.read_exact(&mut bytes).unwrap();
            fs::write(&more, &bytes).unwrap();
            repository.commit(text);
            let tree = repository.dir.display();
            python(&format!(
                "import zipfile; z = zipfile.ZipFile({:?}, 'w', zipfile.ZIP_DEFLATED)\n\
                 for name in 'app', 'more': z.write({:?} + '/' + name, name)\n\
                 z.close()",
                at.display().to_string(),
                tree.to_string()
            ));
        };
        publish("one", false);
        let source = match kind {
            "zip" => "@S@/app.zip",
            _ => "@S@/origin.git#main",
        };
        let d = follow_what(site, source, "");
        let current = || fs::read_to_string(inside(&d, "deploy/current/app")).unwrap();
        update(&d).exits(0);
        publish("two", true);
        let filler = fill(&d, "deploy");
        let length = fs::metadata(&filler).unwrap().len();
        // No room at all; not for what is fetched; not for what is unpacked.
        for free in [0, 1 << 20, 5 << 20] {
            let file = fs::File::options().write(true).open(&filler).unwrap();
            file.set_len(length - free).unwrap();
            let failed = update(&d).exits(1);
            let said = failed.errors();
            assert!(said.contains("No space left"), "{kind} {free}: {said}");
            assert_eq!(current(), "one");
            let left = fs::read_dir(inside(&d, "deploy/releases")).unwrap().count();
            assert_eq!(left, 1, "{kind} {free}");
        }
        fs::remove_file(&filler).unwrap();
        update(&d).exits(0);
        assert_eq!(current(), "two");
        let whole = fs::metadata(inside(&d, "deploy/current/more")).unwrap();
        assert_eq!(whole.len(), 4 << 20);
    }
}

/// Only who sits at a terminal sees how far a download has come.
#[test]
fn a_download_tells_those_at_a_terminal_how_far_it_has_come() {
    use std::io::{BufRead, BufReader, Write};
    let site = Site::new();
    let at = site.path("shared/app.zip");
    python(&format!(
        "import zipfile; z = zipfile.ZipFile({:?}, 'w'); z.writestr('app', 'one'); z.writestr('more', bytes(1 << 20))",
        at.display()
    ));
    let zip = fs::read(&at).unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let gate = Arc::new((Mutex::new(false), Condvar::new()));
    let opened = Arc::clone(&gate);
    // Sends a half of it, and the rest when it may.
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, gate, zip) = (stream.unwrap(), Arc::clone(&gate), zip.clone());
            std::thread::spawn(move || {
                let lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let _ = lines.map_while(Result::ok).find(String::is_empty);
                let head = format!(
                    "HTTP/1.1 200 OK\r\nETag: \"1\"\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                    zip.len()
                );
                let (half, rest) = zip.split_at(zip.len() / 2);
                let _ = stream.write_all(&[head.as_bytes(), half].concat());
                let (open, changed) = &*gate;
                let open = changed.wait_while(open.lock().unwrap(), |open| !*open);
                drop(open.unwrap());
                let _ = stream.write_all(rest);
            });
        }
    });
    let d = follow_what(site, &format!("http://127.0.0.1:{port}/app.zip"), "");
    let person = Person::new(&d, OWNER, &["app", "update"]);
    person.sees("% of 1.0 MiB");
    // Somebody who comes later sees it, too.
    let late = Person::new(&d, OWNER, &["LOGS", "app", "-f"]);
    late.sees("% of 1.0 MiB");
    let (open, changed) = &*opened;
    *open.lock().unwrap() = true;
    changed.notify_all();
    for person in [person, late] {
        person.sees("is current");
        let screen = person.screen();
        assert!(screen.contains("\r\u{1b}[K"), "{screen}");
        assert_eq!(person.leaves(), 0);
    }
    assert_eq!(current(&d), "one");
    let log = d.ask(OWNER, ["LOGS", "app"]).exits(0);
    assert!(
        !log.text().contains('%') && !log.errors().contains('%'),
        "{log:?}"
    );
    let piped = d.ask(OWNER, ["app", "update", "--force"]).exits(0);
    assert!(
        !piped.text().contains('%') && !piped.errors().contains('%'),
        "{piped:?}"
    );
}

/// git over ssh, with a key and a known host of its own.
#[test]
fn a_repository_behind_ssh_is_followed() {
    root_only!(a_repository_behind_ssh_is_followed);
    let site = Site::new();
    let repository = Repository::new(&site);
    let port = free_port();
    let ssh = site.path("ssh");
    fs::create_dir(&ssh).unwrap();
    chmod(&ssh, 0o755);
    for name in ["host", "other", "key"] {
        let mut keygen = Command::new("ssh-keygen");
        keygen
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(ssh.join(name));
        finish(keygen).exits(0);
    }
    fs::copy(ssh.join("key.pub"), ssh.join("authorized")).unwrap();
    // The program's user holds the key.
    std::os::unix::fs::chown(ssh.join("key"), Some(BOT_UID), Some(BOT_GID)).unwrap();
    let known = |name: &str| {
        let key = fs::read_to_string(ssh.join(format!("{name}.pub"))).unwrap();
        fs::write(ssh.join("known"), format!("[127.0.0.1]:{port} {key}")).unwrap();
    };
    known("host");
    fs::write(
        ssh.join("config"),
        format!(
            "ListenAddress 127.0.0.1:{port}\nHostKey {0}/host\nAuthorizedKeysFile {0}/authorized\n\
             PidFile none\nUsePAM no\nStrictModes no\nPermitRootLogin yes\nPasswordAuthentication no\n",
            ssh.display()
        ),
    )
    .unwrap();
    // It wants a directory in /run, and gets a /run of its own.
    let mut sshd = Command::new("unshare");
    sshd.args([
        "-m",
        "sh",
        "-c",
        "mount -t tmpfs none /run && mkdir -m 755 /run/sshd && exec /usr/sbin/sshd -D -E \"$0.log\" -f \"$0\"",
    ]);
    sshd.arg(ssh.join("config"))
        .stdin(std::process::Stdio::null());
    let _sshd = Running::start(sshd);
    // Not by knocking: it keeps those out for a while who say nothing.
    wait_for("sshd", || {
        let log = fs::read_to_string(ssh.join("config.log")).unwrap_or_default();
        log.contains("Server listening").then_some(())
    });

    let source = format!(
        "git+ssh://root@127.0.0.1:{port}{}#main",
        repository.dir.display()
    );
    let d = follow_what(
        site,
        &source,
        "source-ssh-key = @D@/ssh/key\nsource-known-hosts = @D@/ssh/known\n",
    );
    update(&d).exits(0);
    assert_eq!(current(&d), "one");
    repository.commit("two");
    known("other");
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("source-known-hosts"),
        "{refused:?}"
    );
    assert_eq!(current(&d), "one");
    known("host");
    update(&d).exits(0);
    assert_eq!(current(&d), "two");
    fs::write(d.path("ssh/authorized"), "").unwrap();
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("source-ssh-key"), "{refused:?}");
}

/// git's own server behind nginx, with and without a password.
#[test]
fn a_repository_behind_http_is_followed() {
    root_only!(a_repository_behind_http_is_followed);
    let site = Site::new();
    let repository = Repository::new(&site);
    fs::write(repository.dir.join(".git/git-daemon-export-ok"), "").unwrap();
    let socket = site.path("fcgi");
    let mut fcgi = Command::new("fcgiwrap");
    fcgi.arg("-s").arg(format!("unix:{}", socket.display()));
    fcgi.stdin(std::process::Stdio::null());
    let _fcgi = Running::start(fcgi);
    wait_for("fcgiwrap", || {
        socket.exists().then(|| chmod(&socket, 0o666))
    });
    let cgi = "fastcgi_pass unix:@D@/fcgi; fastcgi_param SCRIPT_FILENAME /usr/lib/git-core/git-http-backend;\n\
               fastcgi_param GIT_PROJECT_ROOT @S@; fastcgi_param QUERY_STRING $query_string;\n\
               fastcgi_param REQUEST_METHOD $request_method; fastcgi_param CONTENT_TYPE $content_type;\n\
               fastcgi_param CONTENT_LENGTH $content_length; fastcgi_param REMOTE_USER $remote_user;\n\
               fastcgi_param GIT_CONFIG_COUNT 1; fastcgi_param GIT_CONFIG_KEY_0 safe.directory; fastcgi_param GIT_CONFIG_VALUE_0 *;\n\
               fastcgi_param GIT_PROTOCOL $http_git_protocol;";
    let nginx = Nginx::new(
        &site,
        &format!(
            "location ~ ^/git(/.*)$ {{ {cgi} fastcgi_param PATH_INFO $1; }}\n\
             location ~ ^/private(/.*)$ {{ if ($http_authorization != \"Basic Ym90OnMzY3IzdA==\") {{ return 401; }} {cgi} fastcgi_param PATH_INFO $1; }}\n"
        ),
    );
    let base = format!("127.0.0.1:{}", nginx.port);
    let d = follow_what(site, &format!("git+http://{base}/git/origin.git#main"), "");
    update(&d).exits(0);
    assert_eq!(current(&d), "one");
    repository.commit("two");
    let configure = |source: &str| {
        d.configure(&format!(
            "[prog-app]\nsource = {source}\ndeploy-dir = @D@/deploy\nschedule-update = none\n"
        ));
        d.ask(OWNER, ["-r"]).exits(0);
    };
    configure(&format!("http://{base}/private/origin.git/config#main"));
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("source-token-file"),
        "{refused:?}"
    );
    configure(&format!(
        "http://bot:s3cr3t@{base}/private/origin.git/config#main"
    ));
    let done = update(&d).exits(0);
    assert_eq!(current(&d), "two");
    assert!(!done.text().contains("s3cr3t") && !d.log().contains("s3cr3t"));
    // No news: one question.
    let before = nginx.requests().len();
    update(&d).exits(0);
    let asked = nginx.requests().len() - before;
    assert!(asked <= 2, "{:?}", &nginx.requests()[before..]);
}

/// A bucket that wants signatures, with each place that keys may come from.
#[test]
fn an_archive_in_s3_is_followed() {
    root_only!(an_archive_in_s3_is_followed);
    let site = Site::new();
    let served = site.path("shared/s3/bucket/team/app.zip");
    fs::create_dir_all(served.parent().unwrap()).unwrap();
    let port = free_port();
    let mut server = Command::new("python3");
    server
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/s3.py"))
        .arg(port.to_string())
        .arg(site.path("shared/s3"))
        .args(["AKIDEXAMPLE", "s3cr3t/key+"])
        .stdin(std::process::Stdio::null());
    let _server = Running::start(server);
    wait_for("the server", || {
        std::net::TcpStream::connect(("127.0.0.1", port)).ok()
    });
    fs::write(
        site.path("shared/account-key"),
        "accessKey=AKIDEXAMPLE\nsecretKey=s3cr3t/key+\n",
    )
    .unwrap();
    fs::write(
        site.path("shared/wrong"),
        "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = other\n",
    )
    .unwrap();
    let endpoint = format!("s3-endpoint = http://127.0.0.1:{port}\n");
    let given =
        "aws-access-key = AKIDEXAMPLE\naws-secret-key = s3cr3t/key+\ns3-region = eu-west-1\n";
    let d = follow_what(site, "s3://bucket/none.zip", &format!("{endpoint}{given}"));
    let failed = update(&d).exits(1);
    assert!(
        failed.errors().contains("the server answers 404"),
        "{failed:?}"
    );
    let configure = |more: &str| {
        d.configure(&format!(
            "[prog-app]\nsource = s3://bucket/team/app.zip\ndeploy-dir = @D@/deploy\n\
             schedule-update = none\n{endpoint}{more}"
        ));
        d.ask(OWNER, ["-r"]).exits(0);
    };
    let role = format!("env-AWS_EC2_METADATA_SERVICE_ENDPOINT = http://127.0.0.1:{port}\n");
    for (n, keys) in [given, "s3-credentials = @S@/account-key\n", &role]
        .into_iter()
        .enumerate()
    {
        configure(keys);
        let text = format!("version {n}");
        pack(&served, &text);
        update(&d).exits(0);
        assert_eq!(current(&d), text);
        let same = update(&d).exits(0);
        assert!(same.text().contains("nothing new"), "{same:?}");
    }
    configure("s3-credentials = @S@/wrong\n");
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("the server answers 403"),
        "{refused:?}"
    );
    assert!(!d.log().contains("s3cr3t"));
}
