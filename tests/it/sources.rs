//! Code that arrives by itself: updates, hooks, releases, rollbacks, schedules.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::harness::{
    ALICE, BOT_GID, BOT_UID, Daemon, Done, OWNER, Site, chmod, executable, finish, root, wait_for,
};

/// A repository that somebody pushes to.
struct Repository {
    dir: PathBuf,
}

impl Repository {
    fn new(site: &Site) -> Self {
        let repository = Self {
            dir: site.path("shared/origin.git"),
        };
        fs::create_dir(&repository.dir).unwrap();
        repository.git(&["init", "-q", "-b", "main"]);
        repository.commit("one");
        repository
    }

    fn git(&self, words: &[&str]) -> String {
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
    fn commit(&self, text: &str) -> String {
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
fn follow(source: &str, keys: &str) -> (Daemon, Repository) {
    let site = Site::new();
    let repository = Repository::new(&site);
    let dir = site.path("deploy");
    fs::create_dir(&dir).unwrap();
    if root() {
        std::os::unix::fs::chown(&dir, Some(BOT_UID), Some(BOT_GID)).unwrap();
    }
    for name in ["pre", "post"] {
        fs::create_dir(site.path(name)).unwrap();
        chmod(&site.path(name), 0o755);
    }
    site.configure(&format!(
        "allow-uid = {}\n[prog-app]\nsource = @S@/origin.git{source}\ndeploy-dir = @D@/deploy\n\
         pre-hooks = @D@/pre\npost-hooks = @D@/post\nschedule-update = none\n{keys}\n",
        ALICE.uid
    ));
    (site.start(), repository)
}

fn current(d: &Daemon) -> String {
    fs::read_to_string(d.path("deploy/current/app")).unwrap_or_default()
}

fn update(d: &Daemon) -> Done {
    d.ask(OWNER, ["app", "update"])
}

fn hook(d: &Daemon, name: &str, body: &str) {
    let body = d.expand(&format!("#!/bin/sh\n{body}\n"));
    executable(&d.path(name), body.as_bytes());
}

fn why(d: &Daemon) -> String {
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
