//! L1–L13, L15–L21 (L14 is in `supervision`): what becomes of a run when something goes wrong around it.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::net::Shutdown;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::Value;

use crate::harness::{
    BOT_UID, Daemon, OWNER, Running, Site, alive, descendants, finish, kill, root, wait_for,
};
use crate::talk::{Framed, Plain, connect};

/// A script that can be held at a gate, and that notices when another one runs beside it.
const HELD: &str = "mkdir @S@/busy || echo OVERLAP >> @S@/trace\necho begin >> @S@/trace\n\
    echo before; read _ < @S@/gate; echo after; rmdir @S@/busy; echo end >> @S@/trace; exit 7";

fn outcome(row: &Value) -> &str {
    row["outcome"].as_str().unwrap_or("")
}

/// The pid of a run's process, from its row's log on disk being written: its script says it.
fn pid_from(d: &Daemon, name: &str) -> i32 {
    let path = d.path("shared").join(name);
    wait_for(&format!("a pid in {name}"), || {
        fs::read_to_string(&path).ok()?.trim().parse().ok()
    })
}

/// L1: a client that is killed takes nothing with it.
#[test]
fn l1_a_killed_client_leaves_the_run_and_its_lock_alone() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script("app", HELD);
    let d = site.start();
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    drop(client); // by SIGKILL
    let mut second = Plain::run(&d, OWNER, "app");
    assert_eq!(second.line(), "OK WAIT");
    assert_eq!(outcome(&d.row(1)), "running");
    gate.open(2);
    assert_eq!(second.rest(), b"before\nafter\n");
    for id in [1, 2] {
        let row = d.ended(id);
        assert_eq!(
            (outcome(&row), &row["exit_code"]),
            ("failed", &Value::from(7)),
            "{row}"
        );
        assert_eq!(d.output(id), b"before\nafter\n");
    }
    assert_eq!(d.trace(), ["begin", "end", "begin", "end"]);
}

/// L2: a run does not notice that its daemon is killed, and its client only by a pause.
#[test]
fn l2_a_killed_daemon_loses_no_run_no_output_and_no_exit_code() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script("app", HELD);
    let d = site.start();
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    for _ in 0..3 {
        d.kill_daemon();
        d.await_ready();
        assert_eq!(outcome(&d.row(1)), "running");
    }
    let mut second = Plain::run(&d, OWNER, "app");
    assert_eq!(second.line(), "OK WAIT");
    gate.open(2);
    assert_eq!(client.done().exits(7).text(), "before\nafter\n");
    assert_eq!(second.rest(), b"before\nafter\n");
    for n in [1, 2] {
        let id = d.nth(n);
        assert_eq!(d.ended(id)["exit_code"], 7);
        assert_eq!(d.output(id), b"before\nafter\n");
    }
    assert_eq!(d.trace(), ["begin", "end", "begin", "end"]);
}

/// L2: a run that ends while there is no daemon at all.
#[test]
fn l2_a_run_that_ends_while_there_is_no_daemon_is_recorded_by_the_next() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo $$ > @S@/pid; echo begin >> @S@/trace; read _ < @S@/gate; seq 1 1000; exit 9",
    );
    let d = site.start();
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let run = pid_from(&d, "pid");
    let daemon = d.daemon_pid();
    // A stopped keeper starts no other daemon.
    kill(d.keeper_pid(), Signal::STOP);
    kill(daemon, Signal::KILL);
    wait_for("the daemon is dead", || (!alive(daemon)).then_some(()));
    gate.open(1);
    wait_for("the run is over", || (!alive(run)).then_some(()));
    kill(d.keeper_pid(), Signal::CONT);
    let expected: String = (1..=1000).map(|n| format!("{n}\n")).collect();
    assert_eq!(client.done().exits(9).text(), expected);
    let row = d.ended(1);
    assert_eq!(
        (outcome(&row), &row["exit_code"]),
        ("failed", &Value::from(9)),
        "{row}"
    );
    assert_eq!(d.output(1), expected.as_bytes());
}

/// L2: output that streams while the daemon is killed again and again comes out whole.
#[test]
fn l2_no_byte_is_lost_or_repeated_while_the_daemon_dies() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = echo begin >> @S@/trace; seq 1 400000; echo end >> @S@/trace; exit 3\n");
    let d = site.start();
    let mut client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    for _ in 0..4 {
        d.kill_daemon();
        d.await_ready();
        if client.is_over() {
            break;
        }
    }
    let expected: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    let done = client.done().exits(3);
    assert!(
        done.text() == expected,
        "{} of {} bytes",
        done.out.len(),
        expected.len()
    );
    assert!(d.output(1) == expected.as_bytes());
    assert_eq!(d.trace(), ["begin", "end"]);
}

/// L2: requests that wait when the daemon is killed get their run.
#[test]
fn l2_waiting_requests_survive_the_daemon() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script("app", HELD);
    let d = site.start();
    let first = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let waiting: Vec<Running> = (0..3)
        .map(|_| d.background(OWNER, ["RUN", "app"]))
        .collect();
    wait_for("all are on record", || {
        (d.history().len() == 4).then_some(())
    });
    d.kill_daemon();
    gate.open(2);
    first.done().exits(7);
    for client in waiting {
        assert_eq!(client.done().exits(7).text(), "before\nafter\n");
    }
    assert_eq!(d.trace(), ["begin", "end", "begin", "end"]);
    assert_eq!(d.history().len(), 4, "nobody asked twice");
}

/// The daemon is killed while the child that is to become the run is held at this system call,
/// before it has executed anything. The child goes on: it must be known, and be the only one.
fn killed_while_it_starts_a_run(call: &str) {
    let site = Site::new();
    site.script(
        "app",
        "mkdir @S@/busy || echo OVERLAP >> @S@/trace\necho begin >> @S@/trace\n\
         echo out; sleep 0.3; rmdir @S@/busy; echo end >> @S@/trace; exit 7",
    );
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(7);
    let pid = d.daemon_pid();
    let delay = format!("inject={call}:delay_enter=1000000");
    let strace = inject(&d, &["-e", &format!("trace={call}"), "-e", &delay]);
    let client = d.background(OWNER, ["RUN", "app"]);
    wait_for("the child is on its way", || {
        (!descendants(pid).is_empty()).then_some(())
    });
    kill(pid, Signal::KILL);
    // The client asks again under the same name, so it gets the outcome of its first request.
    let done = client.done();
    assert_eq!(
        (done.code(), done.text().as_str()),
        (Some(7), "out\n"),
        "{done:?}"
    );
    assert_eq!(d.trace(), ["begin", "end", "begin", "end"]);
    let rows = d.history();
    assert_eq!(rows.len(), 2, "{rows:?}");
    assert_eq!(
        (outcome(&rows[1]), &rows[1]["exit_code"]),
        ("failed", &Value::from(7))
    );
    drop(strace);
}

/// L2: killed when the child has not yet written down which process it is.
#[test]
fn l2_a_daemon_killed_before_the_child_has_noted_its_pid_does_not_start_it_twice() {
    root_only!(l2_a_daemon_killed_before_the_child_has_noted_its_pid_does_not_start_it_twice);
    killed_while_it_starts_a_run("setsid");
}

/// L2: killed when the child has not yet told the keeper which process it is.
#[test]
fn l2_a_daemon_killed_before_the_keeper_knows_the_child_does_not_lose_its_exit_code() {
    root_only!(l2_a_daemon_killed_before_the_keeper_knows_the_child_does_not_lose_its_exit_code);
    killed_while_it_starts_a_run("sendto");
}

/// L2: killed when a run has ended and the next one begun, and the end is not on record yet.
#[test]
fn l2_a_daemon_killed_between_two_runs_of_a_lane_records_both() {
    root_only!(l2_a_daemon_killed_between_two_runs_of_a_lane_records_both);
    let site = Site::new();
    let gate = site.gate("gate");
    site.script("app", HELD);
    let d = site.start();
    let first = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let second = d.background(OWNER, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 2).then_some(()));
    // The history is slow: every write to it takes a while.
    let delay = "inject=pwrite64:delay_enter=1000000";
    let strace = inject(&d, &["-e", "trace=pwrite64", "-e", delay]);
    gate.open(1);
    d.await_trace("begin", 2);
    d.kill_daemon();
    drop(strace);
    d.await_ready();
    gate.open(1);
    for client in [first, second] {
        assert_eq!(client.done().exits(7).text(), "before\nafter\n");
    }
    for n in [1, 2] {
        let row = d.ended(d.nth(n));
        assert_eq!(
            (outcome(&row), &row["exit_code"]),
            ("failed", &Value::from(7)),
            "{row}"
        );
        assert_eq!(d.output(d.nth(n)), b"before\nafter\n");
    }
    assert_eq!(d.trace(), ["begin", "end", "begin", "end"]);
}

/// L3: keeper and daemon are killed, the run lives on: its lane stays closed until it is gone.
#[test]
fn l3_after_both_were_killed_the_lane_stays_closed_until_the_run_is_gone() {
    let site = Site::new();
    let gate = site.gate("gate");
    // It prints nothing after the gate: the readers of its pipes are gone.
    site.script(
        "app",
        "mkdir @S@/busy || echo OVERLAP >> @S@/trace\necho begin >> @S@/trace\nread _ < @S@/gate; rmdir @S@/busy; echo end >> @S@/trace; exit 7",
    );
    let d = site.start();
    let first = d.detach("app");
    d.await_trace("begin", 1);
    d.kill_both();
    d.start_again();
    assert_eq!(outcome(&d.row(first)), "running");
    let mut second = Plain::run(&d, OWNER, "app");
    assert_eq!(second.line(), "OK WAIT");
    assert_eq!(d.trace(), ["begin"]);
    gate.open(1);
    d.await_trace("begin", 2);
    let row = d.ended(first);
    // Nobody was there to see its status: no guess.
    assert_eq!(
        (outcome(&row), &row["exit_code"]),
        ("lost", &Value::Null),
        "{row}"
    );
    gate.open(1);
    assert_eq!(second.rest(), b"");
    assert_eq!(outcome(&d.ended(d.nth(2))), "failed");
    assert_eq!(d.trace(), ["begin", "end", "begin", "end"]);
}

/// L3: keeper and daemon are killed, and the run ends before anybody is back.
#[test]
fn l3_a_run_that_ended_while_nobody_was_there_is_not_running_for_ever() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo $$ > @S@/pid; echo early; echo begin >> @S@/trace; read _ < @S@/gate; exit 7",
    );
    let d = site.start();
    let id = d.detach("app");
    d.await_trace("begin", 1);
    let run = pid_from(&d, "pid");
    wait_for("its output is in the log", || {
        (d.output(id) == b"early\n").then_some(())
    });
    d.kill_both();
    gate.open(1);
    wait_for("the run is over", || (!alive(run)).then_some(()));
    d.start_again();
    let row = d.ended(id);
    assert_eq!(outcome(&row), "lost", "{row}");
    assert_eq!(d.output(id), b"early\n");
    d.detach("app");
    d.await_trace("begin", 2);
    gate.open(1);
    assert_eq!(d.ended(d.nth(2))["exit_code"], 7);
}

/// L3: the keeper alone is killed: the daemon finds another, and nothing is lost.
#[test]
fn l3_a_killed_keeper_does_not_lose_the_run() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script("app", HELD);
    let d = site.start();
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    d.kill_keeper();
    wait_for("somebody serves", || {
        (d.ask(OWNER, ["-t"]).code() == Some(0)).then_some(())
    });
    let mut second = Plain::run(&d, OWNER, "app");
    assert_eq!(second.line(), "OK WAIT");
    gate.open(2);
    assert_eq!(client.done().exits(7).text(), "before\nafter\n");
    assert_eq!(second.rest(), b"before\nafter\n");
    assert_eq!(d.ended(1)["exit_code"], 7);
    assert_eq!(d.trace(), ["begin", "end", "begin", "end"]);
    d.ask(OWNER, ["-s"]).exits(0);
    d.await_strays();
    assert!(!d.socket().exists());
    d.start_again();
    assert_eq!(d.row(1)["exit_code"], 7);
}

/// L3: first the daemon, then the keeper whose child the run has become: it is nobody's child
/// then, and its status is still known.
#[test]
fn l3_a_run_that_was_taken_over_keeps_its_status_when_the_keeper_is_killed() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script("app", HELD);
    let d = site.start();
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    d.kill_daemon();
    d.await_ready();
    d.kill_keeper();
    wait_for("somebody serves", || {
        (d.ask(OWNER, ["-t"]).code() == Some(0)).then_some(())
    });
    gate.open(1);
    assert_eq!(client.done().exits(7).text(), "before\nafter\n");
    assert_eq!(d.ended(1)["exit_code"], 7);
    d.ask(OWNER, ["-s"]).exits(0);
    d.await_strays();
}

/// L10: somebody sets the machine's clock while a run goes on: its time is what has passed.
#[test]
fn l10_timeouts_and_pauses_do_not_care_about_the_clock() {
    root_only!(l10_timeouts_and_pauses_do_not_care_about_the_clock);
    let site = Site::new();
    let clock = site.own_clock();
    site.configure(
        "[prog-app]\ntimeout = 1s\ncmd-run = echo begin >> @S@/trace; exec sleep 1000\n\
         [prog-up]\nrestart-delay = 0.5\ncmd-start = echo up >> @S@/trace; exit 1\n",
    );
    let d = site.start();
    let mut ids = Vec::new();
    for (n, jump) in ["200000", "-200000"].into_iter().enumerate() {
        let since = Instant::now();
        ids.push(d.detach("app"));
        d.await_trace("begin", n + 1);
        fs::write(&clock, jump).unwrap();
        let row = d.ended(ids[n]);
        assert_eq!(outcome(&row), "timed-out", "{row}");
        assert!(since.elapsed() >= Duration::from_secs(1), "{jump}: {row}");
    }
    // The clock did jump for the daemon, and people can still read what happened.
    let day = |id: u64| d.row(id)["ended_at"].as_str().unwrap()[..10].to_owned();
    assert_ne!(day(ids[0]), day(ids[1]));
    d.ask(OWNER, ["HISTORY"]).exits(0);
    d.ask(OWNER, ["up", "start"]).exits(0);
    fs::write(&clock, "-900000").unwrap();
    d.await_trace("up", 3);
    d.ask(OWNER, ["up", "stop"]);
    // Nor does the daemon that takes a run over.
    let since = Instant::now();
    let run = d.detach("app");
    d.await_trace("begin", 3);
    fs::write(&clock, "900000").unwrap();
    d.kill_daemon();
    d.await_ready();
    let row = d.ended(run);
    assert_eq!(outcome(&row), "timed-out", "{row}");
    assert!(since.elapsed() >= Duration::from_secs(1), "{row}");
}

/// L12: the machine is started anew: what ran is over, and does not begin again by itself unless
/// the configuration says so.
#[test]
fn l12_a_reboot_interrupts_runs_and_starts_only_what_is_configured_to_start() {
    root_only!(l12_a_reboot_interrupts_runs_and_starts_only_what_is_configured_to_start);
    let site = Site::new();
    // The number of this boot, as the daemon sees it.
    let boots = [
        "11111111-1111-4111-8111-111111111111\n",
        "22222222-2222-4222-8222-222222222222\n",
    ];
    fs::write(site.path("shared/boot"), boots[0]).unwrap();
    site.wrap([
        "unshare",
        "-m",
        "sh",
        "-c",
        "mount --bind @S@/boot /proc/sys/kernel/random/boot_id && exec \"$@\"",
        "sh",
    ]);
    site.configure(
        "[prog-app]\ncmd-run = echo $$ > @S@/app; echo app >> @S@/trace; exec sleep 1000\n\
         [prog-auto]\nautostart = yes\ncmd-start = echo $$ > @S@/auto; echo auto >> @S@/trace; exec sleep 1000\n\
         [prog-halted]\nautostart = yes\ncmd-start = echo halted >> @S@/trace; exec sleep 1000\n\
         [prog-manual]\nrestart = always\ncmd-start = echo $$ > @S@/manual; echo manual >> @S@/trace; exec sleep 1000\n",
    );
    let d = site.start();
    for program in ["auto", "halted"] {
        d.await_trace(program, 1);
    }
    d.ask(OWNER, ["halted", "stop"]).exits(0);
    d.ask(OWNER, ["manual", "start"]).exits(0);
    let run = d.detach("app");
    d.await_trace("app", 1);
    let waits = d.detach("app");
    d.await_trace("manual", 1);
    let before = d.history();
    d.kill_both();
    for name in ["app", "auto", "manual"] {
        let pid = pid_from(&d, name);
        kill(pid, Signal::KILL);
        wait_for("it is gone", || (!alive(pid)).then_some(()));
    }
    fs::write(d.path("shared/boot"), boots[1]).unwrap();
    d.start_again();
    let row = d.ended(run);
    assert_eq!(
        (outcome(&row), &row["exit_code"]),
        ("interrupted", &Value::Null),
        "{row}"
    );
    for row in before.iter().filter(|r| r["outcome"] == "running") {
        let now = d.ended(row["id"].as_u64().unwrap());
        assert_eq!(outcome(&now), "interrupted", "{now}");
    }
    d.await_trace("auto", 2);
    assert_eq!(outcome(&d.ended(waits)), "not-started");
    assert_eq!(
        d.ask(OWNER, ["auto", "status"]).exits(0).text(),
        "running\n"
    );
    d.ask(OWNER, ["halted", "status"]).exits(1);
    d.ask(OWNER, ["manual", "status"]).exits(1);
}

/// L4: what ignores TERM is killed after stop-timeout, with all that belongs to it.
#[test]
fn l4_a_run_that_ignores_term_is_killed_with_its_tree() {
    let site = Site::new();
    site.configure(
        "[prog-app]\ntimeout = 0.3s\nstop-timeout = 0.3s\n\
         cmd-run = trap '' TERM; (echo $$ > @S@/parent; sh -c 'echo $$ > @S@/child; sleep 1000; sleep 1000') & while :; do sleep 1000; done\n",
    );
    let d = site.start();
    let done = d.ask(OWNER, ["RUN", "app"]).exits(124);
    assert!(done.errors().contains("timeout"), "{done:?}");
    let row = d.ended(1);
    assert_eq!(
        (outcome(&row), &row["signal"]),
        ("timed-out", &Value::from("SIGKILL")),
        "{row}"
    );
    let child = pid_from(&d, "child");
    wait_for("its tree is gone", || (!alive(child)).then_some(()));
}

/// L4: the polite signal comes first, and a run that listens to it is not killed.
#[test]
fn l4_a_run_may_clean_up_when_it_is_asked_to_end() {
    let site = Site::new();
    let _gate = site.gate("gate");
    site.configure(
        "[prog-app]\nstop-signal = INT\ncmd-run = trap 'echo cleaned; exit 5' INT; echo begin >> @S@/trace; while :; do read _ < @S@/gate; done\n",
    );
    let d = site.start();
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    d.ask(OWNER, ["CANCEL", "1"]).exits(0);
    assert_eq!(client.done().exits(5).text(), "cleaned\n");
    assert_eq!(outcome(&d.ended(1)), "cancelled");
}

fn processes_that_hide(cgroup: &str) {
    let site = Site::new();
    site.configure(&format!(
        "cgroup = {cgroup}\n[prog-app]\nstop-timeout = 1s\n\
         cmd-run = setsid sh -c 'setsid sh -c \"echo \\$\\$ > @S@/hidden; trap \\\"\\\" TERM HUP; sleep 1000; sleep 1000\" & echo $$ > @S@/middle' & wait; echo begin >> @S@/trace; read _ < @S@/gate\n\
         [prog-left]\nleftovers = kill\nstop-timeout = 1s\n\
         cmd-run = setsid sh -c 'setsid sh -c \"echo \\$\\$ > @S@/left; sleep 1000\" >/dev/null 2>&1 &' & wait; until test -s @S@/left; do :; done\n"
    ));
    let _gate = site.gate("gate");
    let d = site.start();
    let id = d.detach("app");
    d.await_trace("begin", 1);
    let hidden = pid_from(&d, "hidden");
    assert!(alive(hidden));
    d.ask(OWNER, ["CANCEL", &id.to_string()]).exits(0);
    assert_eq!(outcome(&d.ended(id)), "cancelled");
    wait_for("what had hidden is gone", || (!alive(hidden)).then_some(()));
    let id = d.detach("left");
    assert_eq!(outcome(&d.ended(id)), "succeeded");
    let left = pid_from(&d, "left");
    wait_for("what was left is gone", || (!alive(left)).then_some(()));
    wait_for("nothing descends from the keeper", || {
        d.others().is_empty().then_some(())
    });
}

/// L5: double forks and new sessions are found by descent.
#[test]
fn l5_processes_that_hide_are_found_by_descent() {
    processes_that_hide("off");
}

/// L5: and by control groups where there are any.
#[test]
fn l5_processes_that_hide_are_found_by_control_group() {
    processes_that_hide("auto");
}

/// L6: a background process that keeps the pipes open holds up neither client nor lane.
#[test]
fn l6_a_background_process_does_not_hold_up_the_end_of_its_run() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = sleep 1000 & echo $! > @S@/left; echo out; exit 4\n");
    let d = site.start();
    let begun = std::time::Instant::now();
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(4).text(), "out\n");
    let mut plain = Plain::run(&d, OWNER, "app");
    assert_eq!(plain.line(), "OK");
    assert_eq!(plain.rest(), b"out\n");
    // Two graces of two seconds, on a machine that may be busy.
    assert!(begun.elapsed().as_secs() < 20, "{:?}", begun.elapsed());
    let row = d.ended(1);
    assert_eq!(
        (outcome(&row), &row["exit_code"], &row["leftovers"]),
        ("failed", &Value::from(4), &Value::from(true)),
        "{row}"
    );
    assert!(alive(pid_from(&d, "left")));
}

/// L6: `leftovers = wait` is for those who want it otherwise.
#[test]
fn l6_leftovers_wait_keeps_the_run_going_until_they_are_gone() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.configure("[prog-app]\nleftovers = wait\ncmd-run = (read _ < @S@/gate; echo late >> @S@/trace) >/dev/null 2>&1 & echo now >> @S@/trace\n");
    let d = site.start();
    let id = d.detach("app");
    d.await_trace("now", 1);
    let mut second = Plain::run(&d, OWNER, "app");
    assert_eq!(second.line(), "OK WAIT");
    assert_eq!(d.trace(), ["now"]);
    gate.open(1);
    assert_eq!(outcome(&d.ended(id)), "succeeded");
    gate.open(1);
    second.rest();
    d.ended(2);
    assert_eq!(d.trace(), ["now", "late", "now", "late"]);
}

/// L7: death by a signal is a failure, and the signal has a name.
#[test]
fn l7_a_run_that_a_signal_killed_failed_and_the_signal_is_named() {
    let site = Site::new();
    site.configure("[prog-app]\nargs = any\ncmd-run = kill -\"$0\" $$\n");
    let d = site.start();
    for (name, number) in [
        ("TERM", 15),
        ("KILL", 9),
        ("SEGV", 11),
        ("USR1", 10),
        ("HUP", 1),
    ] {
        let done = d.ask(OWNER, ["RUN", "app", "--", name]);
        assert_eq!(done.signal(), Some(number), "{name}: {done:?}");
    }
    for (row, name) in d
        .history()
        .iter()
        .zip(["SIGTERM", "SIGKILL", "SIGSEGV", "SIGUSR1", "SIGHUP"])
    {
        assert_eq!(
            (outcome(row), &row["signal"], &row["exit_code"]),
            ("signalled", &Value::from(name), &Value::Null),
            "{row}"
        );
    }
}

/// L8: what the client gets on its stdin the child gets on its own, to the end.
#[test]
fn l8_stdin_and_its_end_reach_the_child() {
    let site = Site::new();
    site.configure("[prog-sum]\ncmd-run = cksum; echo over\n[prog-deaf]\ncmd-run = exec <&-; echo heard nothing\n");
    let d = site.start();
    let input: Vec<u8> = (0..3_000_000_u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    fs::write(d.path("shared/input"), &input).unwrap();
    let mut cksum = Command::new("sh");
    cksum.args(["-c", &d.expand("cksum < @S@/input")]);
    let expected = format!("{}over\n", finish(cksum).exits(0).text());
    assert_eq!(
        d.ask_with(OWNER, ["RUN", "sum"], &input).exits(0).text(),
        expected
    );
    // A plain client, half-closed.
    let mut stream = connect(&d, OWNER);
    stream.write_all(b"RUN sum\n").unwrap();
    stream.write_all(&input).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut plain = Plain(stream);
    assert_eq!(plain.line(), "OK");
    assert_eq!(String::from_utf8(plain.rest()).unwrap(), expected);
    // A framed one.
    let mut framed = Framed::ask(
        &d,
        OWNER,
        &serde_json::json!({"op": "run", "program": "sum", "stdin": "frames"}),
    );
    framed.until("started");
    for piece in input.chunks(50_000) {
        framed.send(crate::talk::STDIN, piece);
    }
    framed.send(crate::talk::STDIN, b"");
    assert_eq!(String::from_utf8(framed.rest().out).unwrap(), expected);
    // Who does not read is no error, for no client.
    assert_eq!(
        d.ask_with(OWNER, ["RUN", "deaf"], &input).exits(0).text(),
        "heard nothing\n"
    );
    let mut plain = Plain::run(&d, OWNER, "deaf");
    let _ = plain.0.write_all(&input);
    assert_eq!(plain.line(), "OK");
    assert_eq!(plain.rest(), b"heard nothing\n");
}

/// L8: a client that is gone, or never had a stdin, means the end of the input.
#[test]
fn l8_without_a_client_stdin_is_at_its_end() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = echo begin >> @S@/trace; cat; echo end >> @S@/trace\n");
    let d = site.start();
    d.detach("app");
    d.await_trace("end", 1);
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    let mut client = d.client(OWNER, ["RUN", "app"]);
    client.stdin(Stdio::piped());
    let running = Running::start(client);
    d.await_trace("begin", 3);
    drop(running);
    d.await_trace("end", 3);
}

/// L8: a stdin that is at its end, that speaks after a while, that never speaks.
#[test]
fn l8_stdin_may_take_its_time() {
    let site = Site::new();
    site.configure(
        "[prog-app]\ncmd-run = echo begin >> @S@/trace; cat; echo over\n\
         [prog-deaf]\ncmd-run = echo heard nothing\n",
    );
    let d = site.start();
    assert_eq!(
        d.ask_with(OWNER, ["RUN", "app"], b"").exits(0).text(),
        "over\n"
    );
    // The client has settled down to a long run.
    let mut client = d.client(OWNER, ["RUN", "app"]);
    client.stdin(Stdio::piped());
    let mut running = Running::start(client);
    let tasks = format!("/proc/{}/task", running.pid());
    d.await_trace("begin", 2);
    wait_for("the client waits in more than one thread", || {
        (fs::read_dir(&tasks).unwrap().count() > 1).then_some(())
    });
    let mut stdin = running.stdin();
    stdin.write_all(b"at last\n").unwrap();
    drop(stdin);
    assert_eq!(running.done().exits(0).text(), "at last\nover\n");
    // Waiting for one that does not end holds nothing up.
    let mut client = d.client(OWNER, ["RUN", "deaf"]);
    client.stdin(Stdio::piped());
    let mut running = Running::start(client);
    let stdin = running.stdin();
    assert_eq!(running.done().exits(0).text(), "heard nothing\n");
    drop(stdin);
}

/// L9: without descriptors for its pipes a run fails with the reason, and the daemon lives.
#[test]
fn l9_a_run_without_descriptors_fails_with_the_reason() {
    let site = Site::new();
    site.script("app", "echo ran");
    let d = site.start();
    let pid = d.daemon_pid();
    let inherited = descriptors(pid);
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    wait_for("the pipes of the first run are closed", || {
        let of_run = |link: &String| link.starts_with("pipe:") && !inherited.contains(link);
        (!descriptors(pid).iter().any(of_run)).then_some(())
    });
    let before = descriptors(pid);
    let mut client = connect(&d, OWNER);
    client.write_all(b"DEPLOYER 1\n").unwrap();
    wait_for("the connection is accepted", || {
        let new = descriptors(pid)
            .into_iter()
            .any(|link| link.starts_with("socket:") && !before.contains(&link));
        new.then_some(())
    });
    let limit = |to: &str| {
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), to]);
        finish(prlimit).exits(0);
    };
    let highest = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let highest = highest
        .filter_map(|e| e.file_name().to_str()?.parse::<u64>().ok())
        .max()
        .unwrap();
    let low = format!("--nofile={}:", lowest_free(pid).min(highest + 1));
    limit(&low);
    let request = crate::talk::request(&serde_json::json!({"op": "run", "program": "app"}));
    client.write_all(&request[b"DEPLOYER 1\n".len()..]).unwrap();
    let outcome_of = Framed(client).rest();
    let last = outcome_of.last().clone();
    let text = last.to_string();
    assert!(
        last["run"]["outcome"] == "not-started" || last["type"] == "error",
        "{text}"
    );
    assert!(
        text.contains("descriptor") || text.contains("open files") || text.contains("os error 24"),
        "{text}"
    );
    limit("--nofile=1024:");
    wait_for("it runs again", || {
        (d.ask(OWNER, ["RUN", "app"]).code() == Some(0)).then_some(())
    });
    assert_eq!(d.daemon_pid(), pid);
}

/// What the descriptors of a process are.
fn descriptors(pid: i32) -> Vec<String> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let links = entries.filter_map(|e| fs::read_link(e.path()).ok());
    links.map(|l| l.to_string_lossy().into_owned()).collect()
}

fn lowest_free(pid: i32) -> u64 {
    (0..)
        .find(|n| !Path::new(&format!("/proc/{pid}/fd/{n}")).exists())
        .unwrap()
}

/// Attaches strace to the daemon with this fault, until it is dropped.
fn inject(d: &Daemon, options: &[&str]) -> Running {
    let pid = d.daemon_pid();
    let mut strace = Command::new("strace");
    strace
        .args(["-f", "-qq", "-o"])
        .arg(d.path("strace.log"))
        .args(options)
        .args(["-p", &pid.to_string()]);
    let running = Running::start(strace);
    wait_for("strace is attached to every thread", || {
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).ok()?;
        let traced = |e: fs::DirEntry| {
            let status = fs::read_to_string(e.path().join("status")).unwrap_or_default();
            !status.contains("TracerPid:\t0\n")
        };
        tasks.flatten().all(traced).then_some(())
    });
    running
}

fn end_injection(strace: Running, pid: i32) {
    kill(strace.pid(), Signal::INT);
    drop(strace.done());
    wait_for("strace has let go", || {
        fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|s| s.contains("TracerPid:\t0\n"))
            .then_some(())
    });
}

/// L9: no process can be made: that run fails, the next one after that does not.
#[test]
fn l9_a_failing_fork_fails_that_run_with_the_reason() {
    root_only!(l9_a_failing_fork_fails_that_run_with_the_reason);
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = echo ran\n");
    let d = site.start();
    // The thread that spawns exists from here on.
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    let pid = d.daemon_pid();
    let strace = inject(
        &d,
        &["-e", "trace=clone3", "-e", "inject=clone3:error=EAGAIN"],
    );
    let done = d.ask(OWNER, ["RUN", "app"]);
    assert!(
        matches!(done.code(), Some(125 | 126)) && done.out.is_empty(),
        "{done:?}"
    );
    assert!(
        done.errors().contains("process") || done.errors().contains("os error 11"),
        "{done:?}"
    );
    let row = d.ended(2);
    assert_eq!(outcome(&row), "not-started", "{row}");
    end_injection(strace, pid);
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    assert_eq!(d.daemon_pid(), pid);
}

/// L11: a number may belong to another process by now, so signals go through pidfds.
#[test]
fn l11_signals_go_through_pidfds() {
    root_only!(l11_signals_go_through_pidfds);
    let site = Site::new();
    let _gate = site.gate("gate");
    site.configure("cgroup = off\n[prog-app]\nstop-timeout = 0.2s\ncmd-run = trap '' TERM; echo begin >> @S@/trace; while :; do read _ < @S@/gate; done\n");
    let d = site.start();
    let id = d.detach("app");
    d.await_trace("begin", 1);
    let pid = d.daemon_pid();
    let strace = inject(&d, &["-e", "trace=kill,tkill,tgkill,pidfd_send_signal"]);
    d.ask(OWNER, ["CANCEL", &id.to_string()]).exits(0);
    let row = d.ended(id);
    assert_eq!(
        (outcome(&row), &row["signal"]),
        ("cancelled", &Value::from("SIGKILL")),
        "{row}"
    );
    end_injection(strace, pid);
    let log = fs::read_to_string(d.path("strace.log")).unwrap();
    assert!(
        log.contains("pidfd_send_signal(") && log.contains("SIGKILL"),
        "{log}"
    );
    let by_number = log.lines().find(|l| {
        let call = l.split_whitespace().nth(1).unwrap_or("");
        (call.starts_with("kill(") && !l.contains(", 0)")) || call.starts_with("tkill(")
    });
    assert_eq!(by_number, None);
}

/// L13: when memory runs out the kernel takes a run rather than the daemon.
#[test]
fn l13_the_daemon_is_spared_by_the_oom_killer_and_its_children_are_not() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = cat /proc/self/oom_score_adj\n");
    // It begins with a score that is neither its own nor its children's.
    site.wrap([
        "sh",
        "-c",
        "echo 500 > /proc/self/oom_score_adj; exec \"$@\"",
        "sh",
    ]);
    let d = site.start();
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "0\n");
    let mut lower = Command::new("sh");
    lower.args(["-c", "echo -1 > /proc/self/oom_score_adj"]);
    if finish(lower).code() != Some(0) {
        let why = "skipped: the daemon's half of L13, for nobody may lower an OOM score here\n";
        let _ = std::io::stderr().write_all(why.as_bytes());
        return;
    }
    for pid in [d.keeper_pid(), d.daemon_pid()] {
        let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
        assert!(score.starts_with('-'), "{score}");
    }
}

/// L15: a second daemon on the same state leaves the first one alone.
#[test]
fn l15_a_second_daemon_exits_and_the_first_is_untouched() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script("app", HELD);
    let d = site.start();
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let second = d.start_in_vain();
    assert!(second.code().is_some_and(|c| c != 0), "{second:?}");
    // Also one with another socket, but the same state.
    let config = fs::read_to_string(d.config()).unwrap();
    fs::write(d.path("other.cfg"), config.replace("/socket\n", "/other\n")).unwrap();
    let mut other = Command::new(d.bin());
    other.args(["-d", "-f", "-c"]).arg(d.path("other.cfg"));
    let done = finish(other);
    assert!(done.code().is_some_and(|c| c != 0), "{done:?}");
    assert!(
        done.errors().contains("state")
            || done.errors().contains("running")
            || done.errors().contains("another"),
        "{done:?}"
    );
    assert!(!d.path("other").exists());
    assert_eq!(outcome(&d.row(1)), "running");
    gate.open(1);
    client.done().exits(7);
}

/// L16: the socket of a daemon that was killed is replaced.
#[test]
fn l16_a_stale_socket_is_replaced() {
    let site = Site::new();
    site.script("app", "echo ran");
    let d = site.start();
    d.kill_both();
    assert!(d.socket().exists());
    assert_eq!(d.ask(OWNER, ["-t"]).exits(1).text(), "not running\n");
    d.start_again();
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "ran\n");
    assert!(d.stop().success());
    assert!(!d.socket().exists());
}

/// L16: what is not the daemon's own socket is not removed.
#[test]
fn l16_only_its_own_socket_is_removed() {
    let site = Site::new();
    let d = site.start();
    fs::rename(d.socket(), d.path("moved")).unwrap();
    let foreign = std::os::unix::net::UnixListener::bind(d.socket()).unwrap();
    let mut stop = as_owner(&d, "-s");
    stop.arg("--socket").arg(d.path("moved"));
    finish(stop).exits(0);
    d.await_end();
    assert!(d.socket().exists(), "another daemon's socket was removed");
    drop(foreign);
    fs::remove_file(d.socket()).unwrap();
    fs::write(d.socket(), "precious").unwrap();
    let done = d.start_in_vain();
    assert_ne!(done.code(), Some(0), "{done:?}");
    assert_eq!(fs::read_to_string(d.socket()).unwrap(), "precious");
}

fn as_owner(d: &Daemon, option: &str) -> Command {
    let mut command = Command::new(d.bin());
    command.arg(option).stdin(Stdio::null());
    command
}

/// L17: a reload applies whole or not at all, and whoever asked is told why not.
#[test]
fn l17_a_bad_configuration_changes_nothing_and_its_errors_are_shown() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = echo old\n");
    let d = site.start();
    d.configure("[prog-app]\ncmd-run = echo new\ncolour = red\n[prog-two]\nuid-run = -1\ncmd-run = echo two\n");
    let done = d.ask(OWNER, ["-r"]).exits(1);
    let shown = done.errors();
    assert!(shown.contains("colour") && shown.contains("-1"), "{shown}");
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "old\n");
    // Also after a crash: what was in force goes on.
    d.kill_daemon();
    d.await_ready();
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "old\n");
    d.ask(OWNER, ["RUN", "two"]);
    d.configure("[prog-app]\ncmd-run = echo new\n");
    d.ask(OWNER, ["-r"]).exits(0);
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "new\n");
}

/// L18: a file that took the old one's place is read, and what it leaves out is gone.
#[test]
fn l18_a_replaced_file_is_read_and_a_removed_program_is_refused_at_once() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.configure("[prog-app]\ncmd-run = echo begin >> @S@/trace; read _ < @S@/gate; echo done\n[prog-other]\ncmd-run = echo other\n");
    let d = site.start();
    let running = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let waiting = d.background(OWNER, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 2).then_some(()));
    d.configure("[prog-other]\ncmd-run = echo changed\n");
    d.ask(OWNER, ["-r"]).exits(0);
    let refused = d.ask(OWNER, ["RUN", "app"]);
    assert!(matches!(refused.code(), Some(125 | 127)), "{refused:?}");
    assert_eq!(d.ask(OWNER, ["RUN", "other"]).exits(0).text(), "changed\n");
    // What runs goes on; what waits is not started any more.
    gate.open(2);
    assert_eq!(running.done().exits(0).text(), "done\n");
    let left = waiting.done();
    assert_ne!(left.code(), Some(0), "{left:?}");
    assert_eq!(d.trace(), ["begin"]);
    assert_eq!(outcome(&d.ended(2)), "not-started");
}

/// The mount namespace of a daemon that has a small file system at one of its places.
pub fn small(site: &Site, place: &str, options: &str) {
    let _ = fs::create_dir(site.path(place));
    let mount =
        format!("mount -t tmpfs -o mode=755,size={options} none @D@/{place} && exec \"$@\"");
    site.wrap([
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        &mount,
        "sh",
    ]);
}

/// A path as the daemon sees it.
pub fn inside(d: &Daemon, place: &str) -> std::path::PathBuf {
    let path = d.path(place);
    Path::new(&format!("/proc/{}/root", d.daemon_pid())).join(path.strip_prefix("/").unwrap())
}

/// Fills a file system of the daemon to the last byte.
pub fn fill(d: &Daemon, place: &str) -> std::path::PathBuf {
    let path = inside(d, place).join("filler");
    let mut file = fs::File::create(&path).unwrap();
    for size in [65_536, 4096, 512, 1] {
        while file.write_all(&vec![0; size]).is_ok() {}
    }
    path
}

/// L19: the disk with the logs fills up under a run, which goes on, and says what is missing.
#[test]
fn l19_a_log_disk_that_fills_up_does_not_stop_the_run() {
    root_only!(l19_a_log_disk_that_fills_up_does_not_stop_the_run);
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = seq 1 400000; echo over >> @S@/trace; exit 3\n[prog-small]\ncmd-run = echo small\n");
    small(&site, "log", "1m");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(3);
    assert_eq!(d.trace(), ["over"]);
    let row = d.ended(1);
    let (kept, dropped) = (
        row["bytes"].as_u64().unwrap(),
        row["dropped"].as_u64().unwrap(),
    );
    let whole: String = (1..=400_000).map(|n| format!("{n}\n")).collect();
    assert!(dropped > 0 && kept + dropped == whole.len() as u64, "{row}");
    assert!(
        whole.as_bytes().starts_with(&d.output(1)),
        "what is kept is right"
    );
    for entry in fs::read_dir(inside(&d, "log/app")).unwrap().flatten() {
        fs::remove_file(entry.path()).unwrap();
    }
    assert_eq!(d.ask(OWNER, ["RUN", "small"]).exits(0).text(), "small\n");
    assert_eq!(d.output(2), b"small\n");
}

/// L19: a new run whose log cannot even be begun is refused with the reason, or goes on without
/// one, as configured; and then it recovers.
#[test]
fn l19_a_full_log_disk_refuses_runs_or_lets_them_go_on_as_configured() {
    root_only!(l19_a_full_log_disk_refuses_runs_or_lets_them_go_on_as_configured);
    for (mode, code) in [("refuse", None), ("run", Some(3))] {
        let site = Site::new();
        site.configure(&format!("record-failure = {mode}\n[prog-app]\ncmd-run = echo ran >> @S@/trace; echo out; exit 3\n"));
        small(&site, "log", "1m");
        let d = site.start();
        let filler = fill(&d, "log");
        let done = d.ask(OWNER, ["RUN", "app"]);
        match code {
            Some(code) => {
                assert_eq!(done.code(), Some(code), "{done:?}");
                assert_eq!(d.trace(), ["ran"]);
                assert_eq!(d.ended(1)["exit_code"], code);
            }
            None => {
                assert!(matches!(done.code(), Some(125 | 126)), "{done:?}");
                assert!(done.errors().contains("space"), "{done:?}");
                assert!(d.trace().is_empty());
                assert_eq!(d.ended(1)["outcome"], "not-started");
            }
        }
        fs::remove_file(filler).unwrap();
        assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(3).text(), "out\n");
        assert_eq!(d.output(d.nth(2)), b"out\n");
    }
}

/// Requests until the history cannot take any more; what the last one said.
fn until_refused(d: &Daemon) -> crate::harness::Done {
    wait_for("a request cannot be recorded", || {
        let done = d.ask(OWNER, ["RUN", "app", "--reason", &"x".repeat(900)]);
        (done.code() != Some(0)).then_some(done)
    })
}

/// L19: the disk with the history is full: as configured, nothing runs off the record.
#[test]
fn l19_a_full_state_disk_refuses_runs_and_recovers() {
    root_only!(l19_a_full_state_disk_refuses_runs_and_recovers);
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = echo ran >> @S@/trace\n");
    small(&site, "state", "1m");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    let filler = fill(&d, "state");
    let done = until_refused(&d);
    assert_eq!(done.code(), Some(125), "{done:?}");
    assert!(done.errors().contains("record"), "{done:?}");
    let ran = d.trace().len();
    d.ask(OWNER, ["RUN", "app"]);
    assert_eq!(d.trace().len(), ran, "it ran off the record");
    fs::remove_file(filler).unwrap();
    wait_for("it recovers by itself", || {
        (d.ask(OWNER, ["RUN", "app"]).code() == Some(0)).then_some(())
    });
    for row in d.history() {
        assert!(matches!(outcome(&row), "succeeded"), "{row}");
    }
    assert_eq!(d.history().len(), d.trace().len());
    d.kill_daemon();
    d.await_ready();
    assert_eq!(d.history().len(), d.trace().len());
}

/// L19: or, as configured, they run, and the record is written when that works again.
#[test]
fn l19_a_full_state_disk_may_let_runs_go_on() {
    root_only!(l19_a_full_state_disk_may_let_runs_go_on);
    let site = Site::new();
    site.configure("record-failure = run\n[prog-app]\ncmd-run = echo ran >> @S@/trace; exit 5\n");
    small(&site, "state", "1m");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(5);
    let filler = fill(&d, "state");
    for _ in 0..40 {
        d.ask(OWNER, ["RUN", "app", "--reason", &"x".repeat(900)])
            .exits(5);
    }
    assert_eq!(d.trace().len(), 41);
    fs::remove_file(filler).unwrap();
    d.ask(OWNER, ["RUN", "app"]).exits(5);
    wait_for("every run is on record", || {
        let rows = d.history();
        (rows.len() == 42 && rows.iter().all(|r| r["exit_code"] == 5)).then_some(())
    });
}

/// L19: a disk that turns read-only under the daemon, and back.
#[test]
fn l19_a_read_only_state_disk_refuses_runs_and_recovers() {
    root_only!(l19_a_read_only_state_disk_refuses_runs_and_recovers);
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = echo ran >> @S@/trace\n");
    small(&site, "state", "4m");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    // Files that are open for writing keep a mount from turning read-only, so writes fail by injection.
    let pid = d.daemon_pid();
    let strace = inject(
        &d,
        &[
            "-e",
            "trace=pwrite64,fdatasync,fsync",
            "-e",
            "inject=pwrite64,fdatasync,fsync:error=EROFS",
        ],
    );
    let done = d.ask(OWNER, ["RUN", "app"]);
    assert_eq!(done.code(), Some(125), "{done:?}");
    assert_eq!(d.trace().len(), 1);
    end_injection(strace, pid);
    wait_for("it recovers by itself", || {
        (d.ask(OWNER, ["RUN", "app"]).code() == Some(0)).then_some(())
    });
    assert_eq!(d.daemon_pid(), pid);
}

/// L19: an I/O error below the history is a refusal, and no more.
#[test]
fn l19_an_io_error_below_the_history_refuses_runs_and_recovers() {
    root_only!(l19_an_io_error_below_the_history_refuses_runs_and_recovers);
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = echo ran >> @S@/trace\n");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    let pid = d.daemon_pid();
    let strace = inject(
        &d,
        &["-e", "trace=pwrite64", "-e", "inject=pwrite64:error=EIO"],
    );
    let done = d.ask(OWNER, ["RUN", "app"]);
    assert_eq!(done.code(), Some(125), "{done:?}");
    assert_eq!(d.trace().len(), 1);
    end_injection(strace, pid);
    wait_for("it recovers by itself", || {
        (d.ask(OWNER, ["RUN", "app"]).code() == Some(0)).then_some(())
    });
    for row in d.history() {
        assert_eq!(outcome(&row), "succeeded", "{row}");
    }
}

/// L19: writing the log fails under a run: the run does not notice.
#[test]
fn l19_an_io_error_below_a_log_does_not_touch_the_run() {
    root_only!(l19_an_io_error_below_a_log_does_not_touch_the_run);
    let site = Site::new();
    let gate = site.gate("gate");
    site.configure("[prog-app]\ncmd-run = echo first; echo begin >> @S@/trace; read _ < @S@/gate; seq 1 100000; echo end >> @S@/trace; exit 6\n");
    let d = site.start();
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let pid = d.daemon_pid();
    let strace = inject(
        &d,
        &[
            "-e",
            "trace=splice",
            "-e",
            "inject=splice:error=EIO:when=1..3",
        ],
    );
    gate.open(1);
    let done = client.done();
    assert_eq!(done.code(), Some(6), "{done:?}");
    end_injection(strace, pid);
    assert_eq!(d.trace(), ["begin", "end"]);
    assert_eq!(d.ended(1)["exit_code"], 6);
    assert_eq!(d.daemon_pid(), pid);
}

/// The files of a directory and below it.
fn tree(at: &Path) -> BTreeMap<std::path::PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(at).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            found.extend(tree(&path));
        } else if path.is_file() {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// L20: whatever file is cut, and wherever: the daemon starts, runs programs, and names the loss.
#[test]
fn l20_a_file_cut_at_any_byte_keeps_the_daemon_from_nothing() {
    let site = Site::new();
    site.script("app", "seq 1 50; echo err >&2; exit 3");
    let d = site.start();
    for _ in 0..6 {
        d.ask(OWNER, ["RUN", "app", "--reason", &"r".repeat(800)])
            .exits(3);
    }
    d.ended(6);
    d.kill_both();
    let files: Vec<_> = [d.path("state"), d.path("log")]
        .iter()
        .flat_map(|p| tree(p))
        .collect();
    let restore = || {
        let _ = fs::remove_dir_all(d.path("state"));
        let _ = fs::remove_dir_all(d.path("log"));
    };
    let modes: Vec<_> = ["state", "log", "log/app"]
        .map(|p| (p, fs::metadata(d.path(p)).unwrap().permissions()))
        .into();
    for (victim, bytes) in files.iter().filter(|(_, b)| !b.is_empty()) {
        let logs_matter = victim.starts_with(d.path("log"));
        if logs_matter && !victim.to_string_lossy().contains("/6.") {
            continue;
        }
        let n = bytes.len();
        let mut cuts = vec![0, 1, 17, n / 3, n / 2, 4096, n - 1];
        cuts.retain(|c| *c < n);
        cuts.dedup();
        for cut in cuts {
            restore();
            for (place, mode) in &modes {
                fs::create_dir_all(d.path(place)).unwrap();
                fs::set_permissions(d.path(place), mode.clone()).unwrap();
            }
            for (path, bytes) in &files {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                let length = if path == victim { cut } else { bytes.len() };
                fs::write(path, &bytes[..length]).unwrap();
            }
            d.start_again();
            let rows = d.history();
            assert!(
                rows.len() <= 6,
                "{} cut at {cut}: {rows:?}",
                victim.display()
            );
            for row in &rows {
                // The end of a run may be among what was lost: then it says so.
                let (outcome, code) = (outcome(row), &row["exit_code"]);
                let right =
                    outcome == "failed" && *code == 3 || outcome == "lost" && code.is_null();
                assert!(right, "{} cut at {cut}: {row}", victim.display());
                // A log that is cut is shown as far as it goes.
                d.ask(OWNER, ["LOGS", &row["id"].to_string()]);
            }
            d.ask(OWNER, ["RUN", "app"]).exits(3);
            let newest = d.history().last().unwrap()["id"].as_u64().unwrap();
            // A number is not used twice as long as a trace of it is left.
            assert!(
                newest > 6 || rows.len() < 6,
                "{} cut at {cut}: run {newest} again",
                victim.display()
            );
            d.kill_both();
        }
    }
}

/// L20: a history that is no database at all is put aside, not overwritten.
#[test]
fn l20_a_history_that_is_none_is_put_aside_and_named() {
    let site = Site::new();
    site.script("app", "echo ran");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    assert!(d.stop().success());
    let database = tree(&d.path("state"))
        .into_iter()
        .find(|(_, b)| b.starts_with(b"SQLite format 3"));
    let (path, bytes) = database.expect("the history is an SQLite database");
    let garbage: Vec<u8> = bytes.iter().map(|b| b ^ 0x5a).collect();
    fs::write(&path, &garbage).unwrap();
    d.start_again();
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "ran\n");
    let kept = tree(&d.path("state")).into_values().any(|b| b == garbage);
    assert!(kept, "the damaged history was thrown away");
    let name = path.file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        d.log().lines().any(|l| l.contains(&name)),
        "the loss is not named"
    );
}

/// L21: bytes are bytes.
#[test]
fn l21_binary_output_is_exact() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = cat @S@/data; head -c 100000 @S@/data >&2\n");
    let data: Vec<u8> = (0..2_500_000_u32)
        .map(|n| (n.wrapping_mul(2_246_822_519) >> 23) as u8)
        .collect();
    fs::write(site.path("shared/data"), &data).unwrap();
    let d = site.start();
    let done = d.ask(OWNER, ["RUN", "app"]).exits(0);
    assert!(done.out == data && done.err == data[..100_000]);
    let logs = d.ask(OWNER, ["LOGS", "1"]).exits(0);
    assert!(logs.out == data && logs.err == data[..100_000]);
    for (stream, expected) in [("out", &data[..]), ("err", &data[..100_000])] {
        let one = d.ask(OWNER, ["LOGS", "1", "--stream", stream]).exits(0);
        assert!(
            if stream == "out" {
                one.out == expected
            } else {
                one.err == expected
            },
            "{stream}"
        );
    }
    let framed = Framed::run(&d, OWNER, "app").rest();
    assert!(framed.out == data && framed.err == data[..100_000]);
    let mut plain = Plain::run(&d, OWNER, "app");
    assert_eq!(plain.line(), "OK");
    let both = plain.rest();
    assert_eq!(both.len(), data.len() + 100_000);
    assert!(both.starts_with(&data[..65_536]));
}

/// Who owns a run's process is who the configuration says, and stays so after a restart.
#[test]
fn l2_an_adopted_run_can_be_cancelled_and_times_out() {
    let site = Site::new();
    let _gate = site.gate("gate");
    site.configure(
        "[prog-app]\ncmd-run = echo $$ > @S@/pid; echo begin >> @S@/trace; read _ < @S@/gate\n\
         [prog-timed]\ntimeout = 2s\ncmd-run = echo timed >> @S@/trace; read _ < @S@/gate\n",
    );
    let d = site.start();
    let id = d.detach("app");
    let timed = d.detach("timed");
    d.await_trace("begin", 1);
    d.await_trace("timed", 1);
    d.kill_daemon();
    d.await_ready();
    let run = pid_from(&d, "pid");
    if root() {
        let status = fs::read_to_string(format!("/proc/{run}/status")).unwrap();
        assert!(status.contains(&format!("Uid:\t{BOT_UID}\t")), "{status}");
    }
    d.ask(OWNER, ["CANCEL", &id.to_string()]).exits(0);
    let row = d.ended(id);
    assert_eq!(
        (outcome(&row), &row["signal"]),
        ("cancelled", &Value::from("SIGTERM")),
        "{row}"
    );
    assert_eq!(outcome(&d.ended(timed)), "timed-out");
}
