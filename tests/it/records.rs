//! What is on record: history, logs, cancelling, queues, repeated requests, retention.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{ALICE, BOB, CAROL, OWNER, Site, wait_for};
use crate::talk::{Framed, Plain};

/// L1: every field that programs may rely on.
#[test]
fn a_row_of_the_history_says_everything() {
    let site = Site::new();
    site.configure(
        "[prog-app]\ninput-branch = text default main\ncmd-run = printf 12345; exit 7\n",
    );
    let d = site.start();
    d.ask(
        OWNER,
        ["RUN", "app", "branch=next", "--reason", "fix \"login\""],
    )
    .exits(7);
    let row = d.ended(1);
    let names: Vec<&str> = row
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    for name in [
        "id",
        "program",
        "action",
        "outcome",
        "exit_code",
        "signal",
        "by",
        "reason",
        "inputs",
        "covered_by",
        "requested_at",
        "started_at",
        "ended_at",
        "bytes",
    ] {
        assert!(names.contains(&name), "{name} is missing: {row}");
    }
    assert_eq!(
        (&row["id"], &row["program"], &row["action"]),
        (&json!(1), &json!("app"), &json!("run"))
    );
    assert_eq!(
        (&row["outcome"], &row["exit_code"], &row["signal"]),
        (&json!("failed"), &json!(7), &Value::Null)
    );
    assert_eq!(
        (&row["reason"], &row["inputs"]),
        (&json!("fix \"login\""), &json!({"branch": "next"}))
    );
    assert_eq!(
        (&row["bytes"], &row["covered_by"]),
        (&json!(5), &Value::Null)
    );
    let uid = rustix::process::geteuid().as_raw();
    assert_eq!(row["by"]["uid"], uid);
    assert!(row["by"]["user"].is_string() && row["by"]["gid"].is_u64());
    let time = |name: &str| {
        row[name]
            .as_str()
            .unwrap_or_else(|| panic!("{name}: {row}"))
            .to_owned()
    };
    assert!(
        time("requested_at") <= time("started_at") && time("started_at") <= time("ended_at"),
        "{row}"
    );
}

#[test]
fn json_of_a_run_is_its_row() {
    let site = Site::new();
    site.script("app", "echo out; exit 3");
    let d = site.start();
    let done = d.ask(OWNER, ["RUN", "app", "--json"]).exits(3);
    let row: Value = serde_json::from_str(&done.text()).unwrap();
    assert_eq!(
        (&row["outcome"], &row["exit_code"], &row["bytes"]),
        (&json!("failed"), &json!(3), &json!(4))
    );
    let done = d.ask(OWNER, ["RUN", "app", "--detach", "--json"]).exits(0);
    assert_eq!(
        serde_json::from_str::<Value>(&done.text()).unwrap(),
        json!({"id": 2})
    );
}

#[test]
fn logs_replay_and_follow() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo one; echo begin >> @S@/trace; read _ < @S@/gate; echo err >&2; read _ < @S@/gate; echo two; printf last",
    );
    let d = site.start();
    let id = d.detach("app").to_string();
    d.await_trace("begin", 1);
    let follower = d.background(OWNER, ["LOGS", "app", "-f"]);
    let errors = d.background(OWNER, ["LOGS", &id, "-f", "--stream", "err"]);
    // One after the other: the order between the two streams is that of their arrival.
    for (out, err) in [("one\n", ""), ("one\n", "err\n")] {
        wait_for("what is there is shown", || {
            let done = d.ask(OWNER, ["LOGS", "app"]).exits(0);
            (done.text() == out && done.errors() == err).then_some(())
        });
        gate.open(1);
    }
    let done = follower.done().exits(0);
    assert_eq!(
        (done.text().as_str(), done.errors().as_str()),
        ("one\ntwo\nlast", "err\n")
    );
    let done = errors.done().exits(0);
    assert_eq!(
        (done.text().as_str(), done.errors().as_str()),
        ("", "err\n")
    );
    let stamped = d.ask(OWNER, ["LOGS", &id, "--timestamps"]).exits(0).text();
    let lines: Vec<(&str, &str)> = stamped
        .lines()
        .map(|l| l.split_once(' ').unwrap())
        .collect();
    let texts: Vec<&str> = lines.iter().map(|l| l.1).collect();
    assert_eq!(texts, ["one", "err", "two", "last"]);
    assert!(
        lines.iter().all(|l| l.0.len() > 20 && l.0.contains('T')),
        "{stamped}"
    );
    assert!(lines.windows(2).all(|w| w[0].0 <= w[1].0), "{stamped}");
    // The raw log is there for less, grep and any shipper.
    let raw = fs::read_to_string(d.path(format!("log/app/{id}.log"))).unwrap();
    assert_eq!(raw, "one\nerr\ntwo\nlast");
}

#[test]
fn a_follower_sees_the_end_of_a_run_that_outlived_its_daemon() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo one; echo begin >> @S@/trace; read _ < @S@/gate; echo two",
    );
    let d = site.start();
    let id = d.detach("app");
    d.await_trace("begin", 1);
    d.kill_daemon();
    d.await_ready();
    let mut follower = Framed::ask(&d, OWNER, &json!({"op": "logs", "id": id, "follow": true}));
    follower.until("started");
    gate.open(1);
    let outcome = follower.rest();
    assert_eq!(outcome.out, b"one\ntwo\n");
    assert_eq!(outcome.last()["run"]["outcome"], "succeeded");
}

#[test]
fn a_client_can_go_on_at_an_offset() {
    let site = Site::new();
    site.script("app", "printf 0123456789");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    d.ended(1);
    for offset in [0, 4, 10, 11, 1_u64 << 40] {
        let outcome =
            Framed::ask(&d, OWNER, &json!({"op": "logs", "id": 1, "offset": offset})).rest();
        let from = usize::try_from(offset).unwrap().min(10);
        assert_eq!(outcome.out, &b"0123456789"[from..], "{offset}");
    }
}

#[test]
fn a_waiting_request_and_a_live_run_can_be_cancelled() {
    root_only!(a_waiting_request_and_a_live_run_can_be_cancelled);
    let site = Site::new();
    let _gate = site.gate("gate");
    let (alice, bob) = (ALICE.uid, BOB.uid);
    site.configure(&format!(
        "[prog-app]\nallow-uid = {alice}, {bob}\nuid-cancel = {bob}\ncmd-run = echo begin >> @S@/trace; read _ < @S@/gate\n\
         [prog-own]\nallow-uid = {alice}\ncmd-run = echo own >> @S@/trace; read _ < @S@/gate\n"
    ));
    let d = site.start();
    let first = d.background(ALICE, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let second = d.background(ALICE, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 2).then_some(()));
    // A right of its own: who may run it may not cancel it here.
    d.ask(ALICE, ["CANCEL", "2"]).exits(125);
    d.ask(CAROL, ["CANCEL", "1"]).exits(125);
    d.ask(BOB, ["CANCEL", "2"]).exits(0);
    assert_ne!(second.done().code(), Some(0));
    assert_eq!(d.ended(2)["outcome"], "cancelled");
    d.ask(BOB, ["CANCEL", "1"]).exits(0);
    assert_eq!(first.done().signal(), Some(15));
    assert_eq!(d.ended(1)["outcome"], "cancelled");
    assert_eq!(d.trace(), ["begin"]);
    // Over is over.
    d.ask(BOB, ["CANCEL", "1"]).exits(125);
    // Where nothing is said, whoever may run it may cancel it.
    let own = d.background(ALICE, ["RUN", "own"]);
    d.await_trace("own", 1);
    d.ask(ALICE, ["CANCEL", "3"]).exits(0);
    assert_eq!(own.done().signal(), Some(15));
}

#[test]
fn cancelling_the_last_request_revives_the_one_it_displaced() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo begin >> @S@/trace; read _ < @S@/gate; echo $DEPLOYER_RUN",
    );
    let d = site.start();
    let _first = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let older = d.background(OWNER, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 2).then_some(()));
    let newer = d.background(OWNER, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 3).then_some(()));
    d.ask(OWNER, ["CANCEL", "3"]).exits(0);
    newer.done().exits(125);
    gate.open(2);
    let done = older.done().exits(0);
    assert_eq!(done.text(), "2\n");
    assert_eq!(d.ended(2)["outcome"], "succeeded");
    assert_eq!(d.ended(3)["outcome"], "cancelled");
}

#[test]
fn coalesce_no_makes_it_a_queue() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.configure("[prog-app]\ncoalesce = no\ninput-n = int 1..9\ncmd-run = echo begin >> @S@/trace; read _ < @S@/gate; echo $INPUT_N\n");
    let d = site.start();
    let mut clients = vec![d.background(OWNER, ["RUN", "app", "n=1"])];
    d.await_trace("begin", 1);
    for n in 2..=4 {
        clients.push(d.background(OWNER, ["RUN", "app", &format!("n={n}")]));
        wait_for("it waits", || (d.history().len() == n).then_some(()));
    }
    gate.open(4);
    for (n, client) in clients.into_iter().enumerate() {
        assert_eq!(client.done().exits(0).text(), format!("{}\n", n + 1));
    }
    assert_eq!(d.trace().len(), 4);
    assert!(d.history().iter().all(|r| r["outcome"] == "succeeded"));
}

#[test]
fn a_repeated_request_is_the_same_request() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo begin >> @S@/trace; read _ < @S@/gate; echo $DEPLOYER_RUN; exit 5",
    );
    let d = site.start();
    let ask = || {
        Framed::ask(
            &d,
            OWNER,
            &json!({"op": "run", "program": "app", "key": "k1"}),
        )
    };
    let mut first = ask();
    first.until("started");
    d.await_trace("begin", 1);
    let mut again = ask();
    again.until("started");
    gate.open(1);
    for client in [&mut first, &mut again] {
        let outcome = client.rest();
        assert_eq!(
            (outcome.out.as_slice(), &outcome.last()["run"]["id"]),
            (&b"1\n"[..], &json!(1))
        );
    }
    // Also when it is long over, and after a restart of the daemon.
    for _ in 0..2 {
        let detached = json!({"op": "run", "program": "app", "key": "k1", "detach": true});
        let outcome = Framed::ask(&d, OWNER, &detached).rest();
        assert_eq!(outcome.last()["type"], "accepted", "{:?}", outcome.last());
        assert_eq!(outcome.last()["id"], 1);
        let outcome = ask().rest();
        assert_eq!(
            (outcome.out.as_slice(), &outcome.last()["run"]["exit_code"]),
            (&b"1\n"[..], &json!(5))
        );
        d.kill_daemon();
        d.await_ready();
    }
    assert_eq!(d.history().len(), 1);
    assert_eq!(d.trace().len(), 1);
}

#[test]
fn old_runs_and_their_logs_are_given_up_by_count() {
    let site = Site::new();
    site.configure("history-keep = 5\nlog-keep = 3\n[prog-app]\ncmd-run = echo out\n[prog-other]\ncmd-run = echo out\n");
    let d = site.start();
    d.ask(OWNER, ["RUN", "other"]).exits(0);
    // It is swept now and then, not after every run.
    for _ in 0..40 {
        d.ask(OWNER, ["RUN", "app"]).exits(0);
    }
    let logs = || {
        fs::read_dir(d.path("log/app"))
            .unwrap()
            .flatten()
            .filter(|e| e.path().extension().is_some_and(|x| x == "log"))
            .count()
    };
    wait_for("old runs and logs are gone", || {
        let rows = d.history_of(OWNER, &["app"]);
        let newest = rows.last().map(|r| r["id"].clone());
        (rows.len() <= 5 + 16 && logs() <= 3 + 16 && newest == Some(json!(41))).then_some(())
    });
    // Each program keeps its own.
    assert_eq!(d.output(1), b"out\n");
}

/// A run without output is a run all the same.
#[test]
fn a_run_without_output_has_an_empty_log() {
    let site = Site::new();
    site.script("app", "exit 0");
    let d = site.start();
    let done = d.ask(OWNER, ["RUN", "app"]).exits(0);
    assert!(done.out.is_empty() && done.err.is_empty());
    assert!(d.output(1).is_empty());
    let mut plain = Plain::run(&d, OWNER, "app");
    assert_eq!(
        (plain.line().as_str(), plain.rest().as_slice()),
        ("OK", &b""[..])
    );
    assert_eq!(d.ended(2)["bytes"], 0);
}

/// Stopping: live runs get the signal to end, waiting ones are told, and nothing is left behind.
#[test]
fn a_stop_ends_runs_and_records_them_as_interrupted() {
    let site = Site::new();
    let _gate = site.gate("gate");
    site.configure("shutdown-timeout = 0.2s\n[prog-app]\nstop-timeout = 0.5s\ncmd-run = trap '' TERM; echo begin >> @S@/trace; while :; do read _ < @S@/gate; done\n");
    let d = site.start();
    let id = d.detach("app");
    d.await_trace("begin", 1);
    let waiting = d.background(OWNER, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 2).then_some(()));
    assert!(d.stop().success());
    assert_ne!(waiting.done().code(), Some(0));
    assert!(!d.socket().exists());
    d.start_again();
    assert_eq!(d.row(id)["outcome"], "interrupted");
    assert_eq!(d.row(2)["outcome"], "not-started");
    assert_eq!(d.trace(), ["begin"]);
}

#[test]
fn somebody_is_told_when_runs_fail_and_when_they_work_again() {
    let site = Site::new();
    site.configure(
        "notify-failure = echo failure $RUN_PROGRAM $RUN_ID $RUN_OUTCOME $RUN_EXIT_CODE by $RUN_BY: $RUN_REASON >> @S@/trace\n\
         notify-success = echo success $RUN_ID >> @S@/trace\n\
         [prog-app]\ncmd-run = echo \"it was me\"; exit $(cat @S@/status)\nnotify-fixed = echo fixed $RUN_ID $DEPLOYER_BY $0 >> @S@/trace\n\
         [prog-slow]\ncmd-run = sleep 1000\ntimeout = 0.2\n[prog-absent]\ncwd = /nowhere/at/all\ncmd-run = /bin/true\n\
         [prog-web]\ncmd-start = echo up; read _ < @S@/gate; exit 1\nrestart = never\n",
    );
    let gate = site.gate("gate");
    let d = site.start();
    let status = |code: i32| fs::write(d.path("shared/status"), format!("{code}\n")).unwrap();
    let run = |code: i32| {
        status(code);
        d.ask(OWNER, ["RUN", "app", "--reason", "why not"])
            .exits(code);
    };
    run(0);
    d.await_trace("success 1", 1);
    run(3);
    let user = d.history()[0]["by"]["user"].as_str().unwrap().to_owned();
    let failed = d
        .history()
        .iter()
        .find(|r| r["outcome"] == "failed")
        .unwrap()["id"]
        .clone();
    d.await_trace(
        &format!("failure app {failed} failed 3 by {user}: why not"),
        1,
    );
    // Who looks for the log means that of the run, not of what told of it.
    assert_eq!(d.ask(OWNER, ["LOGS", "app"]).exits(0).text(), "it was me\n");
    run(0);
    let row = |outcome: &str| {
        let rows = d.history();
        let found = rows
            .iter()
            .rev()
            .find(|r| r["program"] == "app" && r["action"] == "run" && r["outcome"] == outcome);
        found.unwrap()["id"].clone()
    };
    let fixed = row("succeeded");
    d.await_trace(&format!("fixed {fixed} deployer {fixed}"), 1);
    d.await_trace(&format!("success {fixed}"), 1);
    // Nothing was broken: nothing is fixed.
    run(0);
    d.await_trace(&format!("success {}", row("succeeded")), 1);
    d.ask(OWNER, ["RUN", "slow"]).exits(124);
    d.ask(OWNER, ["RUN", "absent"]).exits(126);
    wait_for("both are told of", || {
        let trace = d.trace();
        let told = |text: &str| trace.iter().any(|line| line.contains(text));
        (told("failure slow") && told("timed-out") && told("failure absent") && told("not-started"))
            .then_some(())
    });
    // A program that goes down by itself; one that is stopped is none.
    d.ask(OWNER, ["web", "start"]).exits(0);
    gate.open(1);
    wait_for("it is told of", || {
        d.trace()
            .iter()
            .any(|line| line.starts_with("failure web"))
            .then_some(())
    });
    d.ask(OWNER, ["web", "start"]).exits(0);
    d.ask(OWNER, ["web", "stop"]).exits(0);
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    d.await_trace(&format!("success {}", row("succeeded")), 1);
    let trace = d.trace();
    assert_eq!(
        trace
            .iter()
            .filter(|l| l.starts_with("failure web"))
            .count(),
        1,
        "{trace:?}"
    );
    assert_eq!(
        trace.iter().filter(|l| l.starts_with("fixed")).count(),
        1,
        "{trace:?}"
    );
    // They are runs like others, and nobody can ask for them.
    assert!(
        d.history()
            .iter()
            .any(|r| r["action"] == "notify-failure" && r["outcome"] == "succeeded")
    );
    let refused = d.ask(OWNER, ["app", "notify-failure"]).exits(125);
    assert!(!refused.errors().is_empty());
}
