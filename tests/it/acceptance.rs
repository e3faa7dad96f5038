//! What an unprivileged user does with a root daemon, with the tools that they have.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use serde_json::Value;

use crate::harness::{
    ALICE, BOB, BOT_GID, BOT_UID, CAROL, Daemon, OWNER, Running, Site, User, as_user, executable,
    finish, kill, wait_for,
};
use crate::talk::Plain;

const BOT_USER: User = User {
    uid: BOT_UID,
    gid: BOT_GID,
    groups: &[],
};

/// A daemon whose scripts Alice and the members of Bob's group may run.
fn shared(more: &str) -> Site {
    let site = Site::new();
    site.configure(&format!(
        "allow-uid = {}\nallow-gid = {BOT_GID}\n{more}",
        ALICE.uid
    ));
    site
}

/// A shell line as that user, with the socket's path for `SOCKET` and the client for `deployer`.
fn shell(d: &Site, user: User, line: &str) -> Command {
    let mut command = as_user(user, "sh");
    command
        .args(["-c", line])
        .env("SOCKET", d.socket())
        .env("DEPLOYER_CONFFILE", d.config());
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", d.path(".").display()));
    command
}

const ONE_LINER: &str = "echo 'RUN sample.sh' | nc -U \"$SOCKET\" | tail -n+2";

#[test]
fn the_one_liner_prints_the_scripts_output() {
    root_only!(the_one_liner_prints_the_scripts_output);
    let site = shared("");
    site.script("sample.sh", "echo out; id -un");
    site.script("both", "echo out; echo err >&2");
    let d = site.start();
    let done = finish(shell(&d, ALICE, ONE_LINER)).exits(0);
    assert_eq!(done.text(), "out\ngames\n");
    let socat = finish(shell(
        &d,
        BOB,
        "echo 'RUN sample.sh' | socat -t 30 - UNIX-CONNECT:\"$SOCKET\"",
    ))
    .exits(0);
    assert_eq!(socat.text(), "OK\nout\ngames\n");
    // Both streams come; each is in order, the two are not in order with each other.
    let mut plain = Plain::run(&d, ALICE, "both");
    assert_eq!(plain.line(), "OK");
    let both = String::from_utf8(plain.rest()).unwrap();
    assert!(
        matches!(both.as_str(), "out\nerr\n" | "err\nout\n"),
        "{both:?}"
    );
}

#[test]
fn a_second_one_meanwhile_waits() {
    root_only!(a_second_one_meanwhile_waits);
    let site = shared("");
    let gate = site.gate("gate");
    site.script(
        "sample.sh",
        "echo begin >> @S@/trace; read _ < @S@/gate; echo over",
    );
    let d = site.start();
    let line = "echo 'RUN sample.sh' | nc -U \"$SOCKET\"";
    let first = Running::start(shell(&d, ALICE, line));
    d.await_trace("begin", 1);
    let second = Running::start(shell(&d, BOB, line));
    wait_for("the second is on record", || {
        (d.history().len() == 2).then_some(())
    });
    gate.open(2);
    assert_eq!(first.done().exits(0).text(), "OK\nover\n");
    assert_eq!(second.done().exits(0).text(), "OK WAIT\nover\n");
}

#[test]
fn three_that_wait_lead_to_exactly_one_more_run() {
    root_only!(three_that_wait_lead_to_exactly_one_more_run);
    let site = shared("");
    let gate = site.gate("gate");
    site.script(
        "sample.sh",
        "echo begin >> @S@/trace; read _ < @S@/gate; echo run $DEPLOYER_RUN",
    );
    let d = site.start();
    let line = "echo 'RUN sample.sh' | nc -U \"$SOCKET\"";
    let first = Running::start(shell(&d, ALICE, line));
    d.await_trace("begin", 1);
    let mut plain = Vec::new();
    for n in 2..=4 {
        plain.push(Running::start(shell(&d, ALICE, line)));
        wait_for("it is on record", || (d.history().len() == n).then_some(()));
    }
    let framed = d.background(BOB, ["RUN", "sample.sh"]);
    wait_for("it is on record", || (d.history().len() == 5).then_some(()));
    gate.open(2);
    assert_eq!(first.done().exits(0).text(), "OK\nrun 1\n");
    // The displaced plain ones are closed without output, as they always were.
    for client in plain {
        assert_eq!(client.done().exits(0).text(), "OK WAIT\n");
    }
    assert_eq!(framed.done().exits(0).text(), "run 5\n");
    assert_eq!(d.trace().len(), 2);
    let covered: Vec<Value> = d.history()[1..4]
        .iter()
        .map(|r| r["covered_by"].clone())
        .collect();
    assert_eq!(covered, [5, 5, 5]);
}

#[test]
fn displaced_clients_follow_the_run_that_covers_them() {
    root_only!(displaced_clients_follow_the_run_that_covers_them);
    let site = shared("");
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo begin >> @S@/trace; read _ < @S@/gate; echo run $DEPLOYER_RUN; exit 7",
    );
    let d = site.start();
    let first = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let mut waiting = Vec::new();
    for n in 2..=4 {
        waiting.push(d.background(if n % 2 == 0 { ALICE } else { BOB }, ["RUN", "app"]));
        wait_for("it is on record", || (d.history().len() == n).then_some(()));
    }
    gate.open(2);
    assert_eq!(first.done().exits(7).text(), "run 1\n");
    for client in waiting {
        let done = client.done().exits(7);
        assert_eq!(done.text(), "run 4\n");
        assert_eq!(done.errors(), "", "nothing is said when nobody watches");
    }
}

#[test]
fn alice_and_bob_deploy_as_the_bot_and_carol_learns_nothing() {
    root_only!(alice_and_bob_deploy_as_the_bot_and_carol_learns_nothing);
    let site = shared("");
    site.script("app", "id -un; echo $DEPLOYER_BY");
    let d = site.start();
    let by = |user: User| format!("games\n{}\n", user.uid);
    assert_eq!(d.ask(ALICE, ["RUN", "app"]).exits(0).text(), by(ALICE));
    assert_eq!(d.ask(BOB, ["RUN", "app"]).exits(0).text(), by(BOB));
    let (app, none) = (
        d.ask(CAROL, ["RUN", "app"]).exits(125),
        d.ask(CAROL, ["RUN", "non"]).exits(125),
    );
    assert_eq!(app.errors().replace("app", "non"), none.errors());
    let uids: Vec<Value> = d.history().iter().map(|r| r["by"]["uid"].clone()).collect();
    assert_eq!(uids, [ALICE.uid, BOB.uid]);
    // Seed 004's way of saying it.
    assert_eq!(d.ask(ALICE, ["app", "run"]).exits(0).text(), by(ALICE));
    assert_eq!(d.ask(ALICE, ["run", "app"]).exits(0).text(), by(ALICE));
}

#[test]
fn exit_codes_come_out_of_the_client_as_they_are() {
    root_only!(exit_codes_come_out_of_the_client_as_they_are);
    let site = shared(
        "args = any\n[prog-slow]\ntimeout = 0.3s\nstop-timeout = 2s\ncmd-run = sleep 1000\n",
    );
    site.script("exit", "exit $1");
    site.script("term", "kill -TERM $$");
    executable(&site.path("root/bad"), b"no shebang");
    executable(&site.path("root/gone"), b"#!/no/such/interpreter\n");
    let d = site.start();
    for code in [0, 1, 7, 125, 126, 127, 255] {
        d.ask(ALICE, ["RUN", "exit", "--", &code.to_string()])
            .exits(code);
        // What a shell makes of it.
        finish(shell(&d, ALICE, &format!("deployer RUN exit -- {code}"))).exits(code);
    }
    assert_eq!(d.ask(ALICE, ["RUN", "term"]).signal(), Some(15));
    finish(shell(&d, ALICE, "deployer RUN term; exit $?")).exits(143);
    d.ask(ALICE, ["RUN", "slow"]).exits(124);
    d.ask(CAROL, ["RUN", "exit"]).exits(125);
    d.ask(ALICE, ["RUN", "bad"]).exits(126);
    let gone = d.ask(ALICE, ["RUN", "gone"]);
    assert!(matches!(gone.code(), Some(126 | 127)), "{gone:?}");
    let nobody_listens = d.path("nowhere").display().to_string();
    let done = d
        .ask(ALICE, ["--socket", &nobody_listens, "RUN", "exit"])
        .exits(125);
    assert!(
        done.errors().starts_with("deployer: ") && done.errors().contains("deployer -t"),
        "{done:?}"
    );
}

#[test]
fn a_script_that_was_removed_is_127() {
    root_only!(a_script_that_was_removed_is_127);
    let site = shared("");
    let gate = site.gate("gate");
    let path = site.script("app", "echo begin >> @S@/trace; read _ < @S@/gate");
    let d = site.start();
    let first = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let second = d.background(ALICE, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 2).then_some(()));
    fs::remove_file(path).unwrap();
    gate.open(1);
    first.done().exits(0);
    let done = second.done().exits(127);
    assert!(done.errors().contains("app"), "{done:?}");
}

/// A client, the daemon, both, and the keeper, killed in the middle of a deployment by Alice.
#[test]
fn whoever_is_killed_in_the_middle_the_deployment_is_whole() {
    root_only!(whoever_is_killed_in_the_middle_the_deployment_is_whole);
    let site = shared("");
    let gate = site.gate("gate");
    site.script(
        "app",
        "mkdir @S@/busy || echo OVERLAP >> @S@/trace\necho one; echo begin >> @S@/trace; read _ < @S@/gate; echo two; rmdir @S@/busy; exit 7",
    );
    let d = site.start();
    // The client.
    let client = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 1);
    drop(client);
    gate.open(1);
    assert_eq!(d.ended(d.nth(1))["exit_code"], 7);
    // The daemon.
    let client = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 2);
    d.kill_daemon();
    gate.open(1);
    assert_eq!(client.done().exits(7).text(), "one\ntwo\n");
    // Both client and daemon.
    let client = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 3);
    d.kill_daemon();
    drop(client);
    gate.open(1);
    d.await_ready();
    assert_eq!(d.ended(d.nth(3))["exit_code"], 7);
    for n in 1..=3 {
        assert_eq!(d.output(d.nth(n)), b"one\ntwo\n", "run {n}");
    }
    // The keeper, too.
    let client = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 4);
    d.kill_both();
    d.start_again();
    gate.open(1);
    let row = d.ended(d.nth(4));
    assert_eq!(row["outcome"], "lost", "{row}");
    client.done().exits(125);
    // Its last `echo` had no reader any more, so the lock of the script may be left.
    let _ = fs::remove_dir(d.path("shared/busy"));
    let client = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 5);
    gate.open(1);
    client.done().exits(7);
    assert!(!d.trace().iter().any(|l| l == "OVERLAP"), "{:?}", d.trace());
}

/// Ctrl-C leaves; the deployment goes on, and the client says how to come back.
#[test]
fn an_interrupted_client_leaves_the_run_alone_and_says_how_to_follow_it() {
    root_only!(an_interrupted_client_leaves_the_run_alone_and_says_how_to_follow_it);
    let site = shared("");
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo one; echo begin >> @S@/trace; read _ < @S@/gate; echo two; exit 7",
    );
    let d = site.start();
    let client = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 1);
    // From a moment after the start on it waits for the signal in a thread of its own.
    let tasks = format!("/proc/{}/task", client.pid());
    wait_for("the client watches for signals", || {
        (fs::read_dir(&tasks).ok()?.count() > 1).then_some(())
    });
    kill(client.pid(), rustix::process::Signal::INT);
    let done = client.done();
    assert_eq!(done.signal(), Some(2), "{done:?}");
    assert!(
        done.errors().contains("LOGS 1 -f") && done.errors().contains("CANCEL 1"),
        "{done:?}"
    );
    let follower = d.background(ALICE, ["LOGS", "1", "-f"]);
    gate.open(1);
    assert_eq!(follower.done().exits(0).text(), "one\ntwo\n");
    assert_eq!(d.ended(1)["exit_code"], 7);
}

/// On a terminal a waiting client says what it waits for; in a pipe it says nothing.
#[test]
fn a_waiting_client_on_a_terminal_says_who_is_running_it() {
    root_only!(a_waiting_client_on_a_terminal_says_who_is_running_it);
    let site = shared("");
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo begin >> @S@/trace; read _ < @S@/gate; echo ran",
    );
    let d = site.start();
    let first = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let piped = d.background(BOB, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 2).then_some(()));
    let typed = d.path("shared/typed");
    let line = format!(
        "script -qefc \"{} -c {} RUN app\" {}",
        d.bin().display(),
        d.config().display(),
        typed.display()
    );
    let watched = Running::start(shell(&d, BOB, &line));
    wait_for("the terminal shows it", || {
        fs::read_to_string(&typed)
            .is_ok_and(|t| t.contains("waits for run 1") && t.contains(&ALICE.uid.to_string()))
            .then_some(())
    });
    gate.open(2);
    first.done().exits(0);
    let piped = piped.done().exits(0);
    assert_eq!(
        (piped.text().as_str(), piped.errors().as_str()),
        ("ran\n", "")
    );
    assert!(watched.done().exits(0).text().contains("ran"));
}

/// A git command in a repository of the bot.
fn git(at: &PathBuf, args: &[&str]) -> String {
    let mut git = as_user(BOT_USER, "git");
    git.arg("-C").arg(at).args([
        "-c",
        "user.name=t",
        "-c",
        "user.email=t@example.org",
        "-c",
        "init.defaultBranch=master",
    ]);
    git.args(args)
        .env("HOME", at)
        .env("GIT_CONFIG_NOSYSTEM", "1");
    finish(git).exits(0).text().trim().to_owned()
}

const DEPLOY: &str = "set -e\nmkdir @S@/deploying || { echo OVERLAP >> @S@/trace; exit 99; }\ntrap 'rmdir @S@/deploying' EXIT\n\
    export GIT_CONFIG_NOSYSTEM=1 HOME=@S@\ncd @S@/live\ngit fetch -q origin master\ngit reset -q --hard FETCH_HEAD\n\
    git rev-parse HEAD\ncat version";

/// A daemon that deploys a real repository, which it holds with a clone to commit in.
fn repository() -> (Daemon, PathBuf, PathBuf) {
    let site = shared("");
    site.script("app", DEPLOY);
    let d = site.start();
    let (origin, work, live) = (
        d.path("shared/origin.git"),
        d.path("shared/work"),
        d.path("shared/live"),
    );
    for path in [&origin, &work] {
        let mut mkdir = as_user(BOT_USER, "mkdir");
        mkdir.arg(path);
        finish(mkdir).exits(0);
    }
    git(&origin, &["init", "-q", "--bare"]);
    git(&work, &["init", "-q"]);
    git(
        &work,
        &["remote", "add", "origin", origin.to_str().unwrap()],
    );
    commit(&work, "first");
    git(&origin, &["clone", "-q", ".", live.to_str().unwrap()]);
    git(
        &live,
        &["remote", "set-url", "origin", origin.to_str().unwrap()],
    );
    (d, work, live)
}

/// Commits and pushes; the commit.
fn commit(work: &PathBuf, text: &str) -> String {
    let mut write = as_user(BOT_USER, "sh");
    write
        .args(["-c", "echo \"$1\" > \"$2/version\"", "sh", text])
        .arg(work);
    finish(write).exits(0);
    git(work, &["add", "-A"]);
    git(work, &["commit", "-q", "-m", text]);
    git(work, &["push", "-q", "origin", "HEAD:master"]);
    git(work, &["rev-parse", "HEAD"])
}

#[test]
fn two_alternating_deployers_of_a_repository_both_get_what_they_pushed() {
    root_only!(two_alternating_deployers_of_a_repository_both_get_what_they_pushed);
    let (d, work, live) = repository();
    let pushing = Mutex::new(());
    let (d, work, pushing) = (&d, &work, &pushing);
    thread::scope(|s| {
        for user in [ALICE, BOB] {
            s.spawn(move || {
                for n in 0..6 {
                    let mine = {
                        let _one = pushing.lock().unwrap_or_else(|e| e.into_inner());
                        commit(work, &format!("{} {n}", user.uid))
                    };
                    let done = d.ask(user, ["RUN", "app"]).exits(0);
                    let live = done.text().lines().next().unwrap_or_default().to_owned();
                    // Its own commit is in what was deployed by the run that answered it.
                    git(work, &["merge-base", "--is-ancestor", &mine, &live]);
                }
            });
        }
    });
    let (head, deployed) = (
        git(work, &["rev-parse", "HEAD"]),
        git(&live, &["rev-parse", "HEAD"]),
    );
    assert_eq!(head, deployed);
    assert!(d.trace().is_empty(), "{:?}", d.trace());
    let rows = d.history();
    assert_eq!(rows.len(), 12);
    for row in &rows {
        let covering = row["covered_by"]
            .as_u64()
            .map_or(row.clone(), |id| d.row(id));
        assert_eq!(covering["outcome"], "succeeded", "{row}");
        // RFC 3339 in UTC, all of one form: text sorts as time does.
        let (asked, began) = (
            row["requested_at"].as_str().unwrap(),
            covering["started_at"].as_str().unwrap(),
        );
        assert!(asked <= began, "{row} was covered by {covering}");
    }
}

#[test]
fn two_deployers_get_what_they_pushed_while_the_daemon_is_killed() {
    root_only!(two_deployers_get_what_they_pushed_while_the_daemon_is_killed);
    let (d, work, _) = repository();
    let pushing = Mutex::new(());
    let (d, work, pushing) = (&d, &work, &pushing);
    thread::scope(|s| {
        let deployers: Vec<_> = [ALICE, BOB]
            .into_iter()
            .map(|user| {
                s.spawn(move || {
                    for n in 0..4 {
                        let mine = {
                            let _one = pushing.lock().unwrap_or_else(|e| e.into_inner());
                            commit(work, &format!("{} {n}", user.uid))
                        };
                        let done = d.ask(user, ["RUN", "app"]).exits(0);
                        let live = done.text().lines().next().unwrap_or_default().to_owned();
                        git(work, &["merge-base", "--is-ancestor", &mine, &live]);
                    }
                })
            })
            .collect();
        while !deployers.iter().all(thread::ScopedJoinHandle::is_finished) {
            d.kill_daemon();
            d.await_ready();
        }
    });
    assert!(d.trace().is_empty(), "{:?}", d.trace());
    assert!(
        d.history()
            .iter()
            .all(|r| matches!(r["outcome"].as_str(), Some("succeeded" | "superseded"))),
        "{:?}",
        d.history()
    );
}

/// What the client shows to people, in one go.
#[test]
fn check_can_and_list_are_of_use_to_people() {
    root_only!(check_can_and_list_are_of_use_to_people);
    let site = shared("[prog-app]\ncmd-run = true\n");
    site.script("sample.sh", "true");
    let d = site.start();
    let check = d.ask(ALICE, ["CHECK"]);
    assert_eq!(check.code(), Some(0), "{check:?}");
    assert_eq!(
        d.ask(ALICE, ["CAN"]).exits(0).text(),
        "app run\napp cancel\nsample.sh run\nsample.sh cancel\n"
    );
    d.ask(ALICE, ["CAN", "app"]).exits(0);
    d.ask(CAROL, ["CAN", "app"]).exits(1);
    let listed = d.ask(ALICE, ["-a"]).exits(0).text();
    assert!(
        listed.contains("app\tidle") && listed.contains("sample.sh\tidle"),
        "{listed}"
    );
    let unnamed = Site::new();
    unnamed.configure_all("socket-path = @D@/socket\nroot = @D@/root\nstate-dir = @D@/state\nlog-dir = @D@/log\n[prog-app]\nallow-uid = daemon\ncmd-run = true\n");
    let warned = unnamed.ask(OWNER, ["CHECK"]).exits(0);
    assert!(warned.errors().contains("root"), "{warned:?}");
}
