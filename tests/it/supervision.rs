//! Long-running programs: started, watched, started again, stopped.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;

use serde_json::Value;

use crate::harness::{
    ALICE, BOT_UID, CAROL, Daemon, OWNER, Running, Site, User, as_user, free_port, root, wait_for,
};

/// What `LIST --json` says of a program.
fn listed(d: &Daemon, program: &str) -> Value {
    let text = d.ask(OWNER, ["LIST", "--json"]).exits(0).text();
    let rows = text
        .lines()
        .map(|l| serde_json::from_str::<Value>(l).unwrap());
    let mut rows = rows.filter(|r| r["name"] == program);
    rows.next().unwrap_or(Value::Null)
}

fn status(d: &Daemon, program: &str) -> String {
    listed(d, program)["service"]["status"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

#[track_caller]
fn await_status(d: &Daemon, program: &str, wanted: &str) {
    wait_for(&format!("{program} is {wanted}"), || {
        (status(d, program) == wanted).then_some(())
    });
}

fn pid(d: &Daemon, program: &str) -> Option<i32> {
    let pid = listed(d, program)["service"]["pid"].as_i64()?;
    Some(i32::try_from(pid).unwrap())
}

fn lives(pid: i32) -> bool {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    text.rsplit(')')
        .next()
        .is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
}

#[test]
fn the_actions_of_procmgr_work_as_its_manual_says() {
    let site = Site::new();
    site.configure(
        "[prog-app]\ncmd-start = exec sleep 1000\n\
         cmd-hello = echo \"$0 $1 $PROGNAME $ACTION $PID\"; exit 3\n",
    );
    let d = site.start();
    let not_running = d.ask(OWNER, ["app", "status"]).exits(1);
    assert_eq!(not_running.text(), "not running\n");
    let stop = d.ask(OWNER, ["app", "stop"]).exits(1);
    assert!(stop.errors().contains("app is not running"), "{stop:?}");

    d.ask(OWNER, ["app", "start"]).exits(0);
    assert_eq!(d.ask(OWNER, ["app", "status"]).exits(0).text(), "running\n");
    let first = pid(&d, "app").unwrap();
    if root() {
        let owner = fs::metadata(format!("/proc/{first}")).unwrap().uid();
        assert_eq!(owner, BOT_UID);
    }
    let again = d.ask(OWNER, ["app", "start"]).exits(1);
    assert!(
        again
            .errors()
            .contains(&format!("running already (pid {first})")),
        "{again:?}"
    );

    let hello = d.ask(OWNER, ["app", "hello", "one", "two"]).exits(3);
    assert_eq!(hello.text(), format!("one two app hello {first}\n"));
    // Without scripts: signal does nothing, reload restarts.
    d.ask(OWNER, ["app", "signal", "x"]).exits(0);
    assert_eq!(pid(&d, "app"), Some(first));
    d.ask(OWNER, ["app", "reload"]).exits(0);
    let second = pid(&d, "app").unwrap();
    assert!(second != first && !lives(first));
    d.ask(OWNER, ["app", "restart"]).exits(0);
    assert!(pid(&d, "app").unwrap() != second && !lives(second));

    // Ended by the signal that stop sent: that counts as 0.
    d.ask(OWNER, ["app", "stop"]).exits(0);
    assert_eq!(
        d.ask(OWNER, ["app", "status"]).exits(1).text(),
        "not running\n"
    );
    // A restart of what does not run starts it.
    d.ask(OWNER, ["app", "restart"]).exits(0);
    d.ask(OWNER, ["app", "status"]).exits(0);
}

#[test]
fn scripts_take_the_place_of_the_default_actions() {
    let site = Site::new();
    site.configure(
        "[prog-app]\n\
         cmd-start = trap 'echo hup >> @S@/trace' HUP; trap 'exit 7' TERM; echo up >> @S@/trace; while :; do sleep 0.1; done\n\
         cmd-reload = kill -HUP $PID; exit 4\n\
         cmd-status = echo \"pid $PID\"; test -n \"$PID\" || exit 9\n\
         cmd-stop = echo stop >> @S@/trace; kill -TERM $PID\n\
         [prog-stubborn]\n\
         cmd-start = exec sleep 1000\n\
         cmd-stop = echo no >> @S@/trace\n\
         stop-timeout = 0.3\n",
    );
    let d = site.start();
    assert_eq!(d.ask(OWNER, ["app", "status"]).exits(9).text(), "pid \n");
    d.ask(OWNER, ["app", "start"]).exits(0);
    d.await_trace("up", 1);
    let first = pid(&d, "app").unwrap();
    assert_eq!(
        d.ask(OWNER, ["app", "status"]).exits(0).text(),
        format!("pid {first}\n")
    );
    d.ask(OWNER, ["app", "reload"]).exits(4);
    d.await_trace("hup", 1);
    assert_eq!(pid(&d, "app"), Some(first));
    // The status of the program, not of the script.
    d.ask(OWNER, ["app", "stop"]).exits(7);
    assert_eq!(d.trace().iter().filter(|l| *l == "stop").count(), 1);
    // A script that does not stop it has its time, then it is stopped without.
    d.ask(OWNER, ["stubborn", "start"]).exits(0);
    d.ask(OWNER, ["stubborn", "stop"]).exits(0);
    assert!(d.trace().contains(&"no".to_owned()));
}

/// L4: and nothing of the tree is left.
#[test]
fn l4_a_program_that_ignores_term_is_killed_with_its_tree() {
    for cgroup in ["auto", "off"] {
        let site = Site::new();
        site.configure(&format!(
            "cgroup = {cgroup}\n[prog-app]\nstop-timeout = 0.3\n\
             cmd-start = trap '' TERM; (trap '' TERM; setsid sleep 1000) & echo $! > @S@/child; echo up >> @S@/trace; while :; do sleep 0.1; done\n",
        ));
        let d = site.start();
        d.ask(OWNER, ["app", "start"]).exits(0);
        d.await_trace("up", 1);
        let child: i32 = fs::read_to_string(d.path("shared/child"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        assert!(lives(child));
        let stop = d.ask(OWNER, ["app", "stop"]).exits(137);
        assert!(stop.errors().contains("SIGKILL"), "{stop:?}");
        assert!(!lives(child), "cgroup = {cgroup}");
        assert!(d.others().is_empty(), "cgroup = {cgroup}: {:?}", d.others());
    }
}

#[test]
fn workers_of_a_program_that_died_are_gone_before_it_is_started_again() {
    let site = Site::new();
    site.configure(
        "[prog-app]\nrestart-delay = 0.1\nstop-timeout = 20\n\
         cmd-start = sh -c 'trap \"rmdir @S@/lock; exit\" TERM; mkdir @S@/lock || echo OVERLAP >> @S@/trace; \
         echo up >> @S@/trace; while :; do sleep 0.05; done' & read _ < @S@/gate; exit 1\n",
    );
    let gate = site.gate("gate");
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    for times in 1..4 {
        d.await_trace("up", times);
        gate.open(1);
    }
    d.await_trace("up", 4);
    assert!(
        !d.trace().contains(&"OVERLAP".to_owned()),
        "{:?}",
        d.trace()
    );
    assert!(listed(&d, "app")["service"]["restarts"].as_u64() >= Some(3));
}

/// L14.
#[test]
fn l14_a_crash_loop_is_given_up_and_said() {
    let site = Site::new();
    site.configure(
        "[prog-app]\ncmd-start = echo up >> @S@/trace; exit 3\n\
         restart = on-failure\nrestart-backoff = 0.05s..0.1s\nrestart-max = 3 in 1h\n\
         [prog-once]\ncmd-start = echo once >> @S@/trace\nrestart = on-failure\n\
         [prog-plain]\ncmd-start = echo plain >> @S@/trace; exit 1\n",
    );
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    await_status(&d, "app", "failed");
    assert_eq!(d.trace().iter().filter(|l| *l == "up").count(), 4);
    assert!(d.log().contains("app has failed"));
    let said = d.ask(OWNER, ["app", "status"]).exits(1);
    assert!(said.errors().contains("ended too often"), "{said:?}");
    let table = d.ask(OWNER, ["LIST"]).exits(0).text();
    assert!(
        table.contains("failed") && table.contains("exited with status 3"),
        "{table}"
    );
    // By hand it goes on, with a clean slate.
    d.ask(OWNER, ["app", "start"]).exits(0);
    d.await_trace("up", 8);
    await_status(&d, "app", "failed");
    // Success is no failure; and without a word about it nothing is started again.
    for program in ["once", "plain"] {
        d.ask(OWNER, [program, "start"]).exits(0);
        await_status(&d, program, "stopped");
        assert_eq!(d.trace().iter().filter(|l| *l == program).count(), 1);
    }
}

#[test]
fn what_cannot_be_started_says_why_at_once() {
    let site = Site::new();
    site.configure(
        "[prog-app]\ncmd-start = exec sleep 10\ncwd = @D@/missing\nrestart = always\n\
         [prog-none]\ncmd-stop = true\n",
    );
    let d = site.start();
    let start = d.ask(OWNER, ["app", "start"]).exits(126);
    assert!(start.errors().contains("missing"), "{start:?}");
    assert_eq!(status(&d, "app"), "stopped");
    let none = d.ask(OWNER, ["none", "start"]).exits(125);
    assert!(none.errors().contains("no cmd-start"), "{none:?}");
}

/// L2: and what it does meanwhile is not lost.
#[test]
fn l2_a_program_outlives_its_daemon() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-start = echo up; read _ < @S@/gate; echo down; exit 5\n");
    let gate = site.gate("gate");
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    let first = pid(&d, "app").unwrap();
    d.kill_daemon();
    d.await_ready();
    assert_eq!(pid(&d, "app"), Some(first));
    d.ask(OWNER, ["app", "start"]).exits(1);
    gate.open(1);
    await_status(&d, "app", "stopped");
    let row = d.ended(1);
    assert_eq!(
        (&row["action"], &row["exit_code"]),
        (&"start".into(), &5.into())
    );
    assert_eq!(d.output(1), b"up\ndown\n");
    // Stopped by hand after a crash of the daemon: its rights and its stop are the same.
    d.ask(OWNER, ["app", "start"]).exits(0);
    d.kill_daemon();
    d.await_ready();
    d.ask(OWNER, ["app", "stop"]).exits(0);
}

#[test]
fn what_was_stopped_stays_stopped_and_what_was_up_comes_up_again() {
    let site = Site::new();
    site.configure(
        "[prog-one]\ncmd-start = exec sleep 1000\nautostart = yes\n\
         [prog-two]\ncmd-start = exec sleep 1000\nautostart = 2\n\
         [prog-hand]\ncmd-start = exec sleep 1000\n\
         [prog-never]\ncmd-start = exec sleep 1000\n",
    );
    let d = site.start();
    for (program, wanted) in [("one", "running"), ("two", "running"), ("hand", "stopped")] {
        await_status(&d, program, wanted);
    }
    d.ask(OWNER, ["one", "stop"]).exits(0);
    d.ask(OWNER, ["hand", "start"]).exits(0);
    d.kill_daemon();
    d.await_ready();
    assert_eq!(status(&d, "one"), "stopped");
    assert!(d.stop().success());
    d.await_strays();
    d.start_again();
    for program in ["two", "hand"] {
        await_status(&d, program, "running");
    }
    for program in ["one", "never"] {
        assert_eq!(status(&d, program), "stopped", "{program}");
    }
}

#[test]
fn groups_say_which_programs_come_up_with_the_daemon() {
    for (option, running) in [("no", 0), ("1", 1), ("2", 2), ("yes", 3)] {
        let site = Site::new();
        site.configure(
            "do-autostart = 1\n\
             [prog-one]\ncmd-start = exec sleep 1000\nautostart = yes\n\
             [prog-two]\ncmd-start = exec sleep 1000\nautostart = 2\n\
             [prog-three]\ncmd-start = exec sleep 1000\nautostart = 3\n\
             [prog-none]\ncmd-start = exec sleep 1000\nautostart = no\n",
        );
        site.option("-A");
        site.option(option);
        let d = site.start();
        let up = || {
            let text = d.ask(OWNER, ["LIST", "--json"]).exits(0).text();
            text.lines()
                .filter(|l| l.contains(r#""status":"running""#))
                .count()
        };
        wait_for("the programs are up", || (up() == running).then_some(()));
        assert_eq!(status(&d, "none"), "stopped");
    }
}

#[test]
fn each_action_has_its_own_rights() {
    root_only!(each_action_has_its_own_rights);
    let site = Site::new();
    site.configure(
        "[prog-app]\ncmd-start = exec sleep 1000\ncmd-migrate = echo done\n\
         allow-uid = 54321\nuid-stop = none\nuid-status = 54321, 54323\nuid-migrate = 54323\n",
    );
    let d = site.start();
    d.ask(ALICE, ["app", "start"]).exits(0);
    d.ask(ALICE, ["app", "kill", "0"]).exits(125);
    for refused in [["app", "stop"], ["app", "migrate"]] {
        let stop = d.ask(ALICE, refused).exits(125);
        assert!(
            stop.errors().contains("no such program, or not allowed"),
            "{stop:?}"
        );
    }
    assert_eq!(d.ask(CAROL, ["app", "migrate"]).exits(0).text(), "done\n");
    assert_eq!(d.ask(CAROL, ["app", "status"]).exits(0).text(), "running\n");
    d.ask(CAROL, ["app", "restart"]).exits(125);
    let may = d.ask(CAROL, ["CAN"]).exits(0).text();
    assert_eq!(may, "app status\napp migrate\n");
    // Signals go under the right `signal`.
    d.ask(ALICE, ["app", "kill", "TERM"]).exits(0);
    await_status(&d, "app", "stopped");
    d.ask(CAROL, ["app", "kill", "TERM"]).exits(125);
}

#[test]
fn a_removed_program_lingers_and_can_be_stopped_by_whoever_could() {
    root_only!(a_removed_program_lingers_and_can_be_stopped_by_whoever_could);
    let site = Site::new();
    let section = "[prog-app]\ncmd-start = exec sleep 1000\nallow-uid = 54321\nrestart = always\n";
    site.configure(section);
    let d = site.start();
    d.ask(ALICE, ["app", "start"]).exits(0);
    let first = pid(&d, "app").unwrap();
    d.configure("[prog-other]\ncmd-start = exec sleep 1000\nallow-uid = 54321\n");
    d.ask(OWNER, ["-r"]).exits(0);
    assert_eq!(listed(&d, "app")["state"], "lingering");
    assert_eq!(pid(&d, "app"), Some(first));
    d.ask(ALICE, ["app", "status"]).exits(0);
    d.ask(ALICE, ["app", "restart"]).exits(125);
    d.ask(CAROL, ["app", "stop"]).exits(125);
    // For the daemon that comes after a crash it is the same.
    d.kill_daemon();
    d.await_ready();
    assert_eq!(listed(&d, "app")["state"], "lingering");
    assert_eq!(pid(&d, "app"), Some(first));
    d.ask(OWNER, ["-r"]).exits(0);
    d.kill_daemon();
    d.await_ready();
    d.ask(CAROL, ["app", "stop"]).exits(125);
    d.ask(ALICE, ["app", "restart"]).exits(125);
    d.ask(ALICE, ["app", "stop"]).exits(0);
    assert_eq!(listed(&d, "app"), Value::Null);
    // One that ends by itself is not started again, and is forgotten.
    d.configure(section);
    d.ask(OWNER, ["-r"]).exits(0);
    d.ask(ALICE, ["app", "start"]).exits(0);
    d.configure("");
    d.ask(OWNER, ["-r"]).exits(0);
    d.ask(OWNER, ["app", "kill", "KILL"]).exits(0);
    wait_for("it is forgotten", || {
        listed(&d, "app").is_null().then_some(())
    });
}

#[test]
fn a_reload_leaves_programs_alone_and_says_which_are_older_than_their_settings() {
    let site = Site::new();
    let one = "[prog-one]\ncmd-start = exec sleep 1000\n";
    site.configure(&format!("{one}[prog-two]\ncmd-start = exec sleep 1000\n"));
    let d = site.start();
    for program in ["one", "two"] {
        d.ask(OWNER, [program, "start"]).exits(0);
    }
    let before = (pid(&d, "one"), pid(&d, "two"));
    d.configure(&format!(
        "{one}[prog-two]\ncmd-start = exec sleep 1001\n[prog-new]\ncmd-start = exec sleep 1000\nautostart = yes\n"
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    await_status(&d, "new", "running");
    assert_eq!((pid(&d, "one"), pid(&d, "two")), before);
    assert_eq!(listed(&d, "one")["service"]["outdated"], false);
    assert_eq!(listed(&d, "two")["service"]["outdated"], true);
    let said = d.ask(OWNER, ["two", "status"]).exits(0);
    assert!(said.errors().contains("restart it"), "{said:?}");
    d.ask(OWNER, ["two", "restart"]).exits(0);
    assert_eq!(listed(&d, "two")["service"]["outdated"], false);
}

#[test]
fn a_deploy_script_may_restart_its_own_program() {
    let site = Site::new();
    site.configure(
        "allow-uid = 5\n[prog-app]\ncmd-start = exec sleep 1000\n\
         cmd-run = @D@/deployer --socket @D@/socket app restart && echo deployed\n",
    );
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    let first = pid(&d, "app").unwrap();
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "deployed\n");
    assert!(pid(&d, "app").unwrap() != first && !lives(first));
}

#[test]
fn a_stop_that_comes_in_the_middle_of_a_start_counts() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-start = exec sleep 1000\nrestart = always\n");
    let d = site.start();
    for _ in 0..10 {
        let start = d.background(OWNER, ["app", "start"]);
        let restart = d.background(OWNER, ["app", "restart"]);
        let stop = d.background(OWNER, ["app", "stop"]);
        for client in [start, restart, stop] {
            let done = client.done();
            assert!(matches!(done.code(), Some(0 | 1)), "{done:?}");
        }
        let code = d.ask(OWNER, ["app", "stop"]).code();
        assert!(matches!(code, Some(0 | 1)), "{code:?}");
        assert_eq!(status(&d, "app"), "stopped");
        assert!(d.others().is_empty(), "{:?}", d.others());
    }
}

#[test]
fn start_returns_when_the_program_says_that_it_is_ready() {
    let port = free_port();
    let ways = [
        ("fd:3", "read _ < @S@/gate; echo >&3; exec sleep 1000".to_owned()),
        (
            "notify",
            "read _ < @S@/gate; printf 'STATUS=up\\nREADY=1' | socat -u - ABSTRACT-SENDTO:${NOTIFY_SOCKET#@}; exec sleep 1000"
                .to_owned(),
        ),
        ("cmd:test -e @S@/ok", "read _ < @S@/gate; touch @S@/ok; exec sleep 1000".to_owned()),
        (
            &*format!("tcp:{port}"),
            format!("read _ < @S@/gate; exec socat TCP-LISTEN:{port},bind=127.0.0.1,fork SYSTEM:true"),
        ),
    ];
    for (ready, command) in ways {
        let site = Site::new();
        site.configure(&format!(
            "[prog-app]\nready = {ready}\ncmd-start = {command}\n"
        ));
        let gate = site.gate("gate");
        let d = site.start();
        let mut start = d.background(OWNER, ["app", "start"]);
        await_status(&d, "app", "starting");
        assert!(pid(&d, "app").is_some() && !start.is_over(), "{ready}");
        gate.open(1);
        start.done().exits(0);
        assert_eq!(status(&d, "app"), "running", "{ready}");
        // One of them catches the signal and exits with a status of its own.
        assert!(matches!(
            d.ask(OWNER, ["app", "stop"]).code(),
            Some(0 | 143)
        ));
        assert!(d.others().is_empty(), "{ready}: {:?}", d.others());
    }
}

#[test]
fn what_is_not_ready_has_failed() {
    let site = Site::new();
    site.configure(
        "[prog-late]\nready = fd:4\nready-timeout = 0.3\ncmd-start = exec sleep 1000\n\
         [prog-dead]\nready = notify\ncmd-start = exit 6\n\
         [prog-stopped]\nready = cmd:false\ncmd-start = exec sleep 1000\n",
    );
    let d = site.start();
    let late = d.ask(OWNER, ["late", "start"]).exits(1);
    assert!(late.errors().contains("not ready within 300ms"), "{late:?}");
    await_status(&d, "late", "stopped");
    let dead = d.ask(OWNER, ["dead", "start"]).exits(1);
    assert!(
        dead.errors()
            .contains("exited with status 6 before it was ready"),
        "{dead:?}"
    );
    let start = d.background(OWNER, ["stopped", "start"]);
    await_status(&d, "stopped", "starting");
    d.ask(OWNER, ["stopped", "stop"]).exits(0);
    let start = start.done().exits(1);
    assert!(start.errors().contains("asked to stop"), "{start:?}");
    wait_for("nothing is left", || d.others().is_empty().then_some(()));
}

#[test]
fn programs_come_up_in_order_and_go_down_in_the_opposite_one() {
    let site = Site::new();
    let program = |name: &str, after: &str| {
        format!(
            "[prog-{name}]\nautostart = yes\n{after}ready = fd:3\n\
             cmd-start = trap 'echo {name} down >> @S@/trace; exit' TERM; echo {name} begins >> @S@/trace; sleep 0.1; \
             echo {name} up >> @S@/trace; echo >&3; while :; do sleep 0.05; done\n"
        )
    };
    // Their names are not in their order.
    site.configure(
        &[
            program("a-web", "after = c-app, d-db\n"),
            program("c-app", "after = d-db\n"),
            program("d-db", ""),
        ]
        .concat(),
    );
    let d = site.start();
    d.await_trace("a-web up", 1);
    let up: Vec<String> = d.trace();
    let order = ["d-db", "c-app", "a-web"];
    let wanted: Vec<String> = order
        .iter()
        .flat_map(|n| [format!("{n} begins"), format!("{n} up")])
        .collect();
    assert_eq!(up, wanted);
    assert!(d.stop().success());
    let down: Vec<String> = d.trace().split_off(6);
    let wanted: Vec<String> = order.iter().rev().map(|n| format!("{n} down")).collect();
    assert_eq!(down, wanted);
}

#[test]
fn circles_and_missing_programs_are_refused() {
    let site = Site::new();
    site.configure(
        "[prog-a]\ncmd-start = true\nafter = b\n[prog-b]\ncmd-start = true\nafter = c a\n\
         [prog-c]\ncmd-start = true\nafter = nobody\n[prog-d]\ncmd-start = true\nready = soon\n",
    );
    let config = site.config();
    let check = site
        .ask(OWNER, ["CHECK", "-c", config.to_str().unwrap()])
        .exits(1);
    let said = check.text() + &check.errors();
    for part in [
        "a comes after itself: a, b, a",
        "b comes after itself: b, a, b",
        "there is no supervised program nobody",
        "is no way to be ready",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn a_program_that_hangs_is_ended_by_its_watchdog() {
    let site = Site::new();
    site.configure(
        "[prog-app]\nready = notify\nwatchdog = 3\nrestart = always\nrestart-backoff = 0.1s..1s\n\
         cmd-start = tell() { printf \"$1\" | socat -u - ABSTRACT-SENDTO:${NOTIFY_SOCKET#@}; }; \
         test -n \"$WATCHDOG_USEC\" || exit 1; tell READY=1; echo up >> @S@/trace; \
         for n in 1 2 3 4; do sleep 0.2; tell WATCHDOG=1; done; echo hangs >> @S@/trace; sleep 1000\n",
    );
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    d.await_trace("up", 2);
    assert_eq!(d.trace()[..3], ["up", "hangs", "up"]);
    assert!(
        d.log().contains("app has not been heard of for 3s"),
        "{}",
        d.log()
    );
    assert_eq!(d.history()[0]["signal"], "SIGKILL");
    // Also by that of the daemon that comes after.
    d.kill_daemon();
    d.await_ready();
    d.await_trace("up", 3);
}

#[test]
fn a_log_is_followed_across_restarts() {
    let site = Site::new();
    site.configure(
        "[prog-app]\nrestart-delay = 0.1\ncmd-start = echo \"here $DEPLOYER_RUN\"; read _ < @S@/gate; echo bye; exit 1\n\
         cmd-other = echo other\n",
    );
    let gate = site.gate("gate");
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    let out = d.path("shared/followed");
    let mut follow = as_user(OWNER, "sh");
    let command = "exec @D@/deployer --socket @D@/socket LOGS app -f > @S@/followed";
    follow.arg("-c").arg(d.expand(command));
    let _follow = Running::start(follow);
    let text = || fs::read_to_string(&out).unwrap_or_default();
    wait_for("the first line", || text().contains("here 1").then_some(()));
    // What is done to the program in between is not its log.
    d.ask(OWNER, ["app", "other"]).exits(0);
    gate.open(2);
    wait_for("three of them", || {
        (text().matches("here").count() == 3).then_some(())
    });
    let runs: Vec<String> = text().lines().map(str::to_owned).collect();
    assert_eq!(runs, ["here 1", "bye", "here 3", "bye", "here 4"]);
    d.ask(OWNER, ["app", "stop"]).exits(0);
    d.ask(OWNER, ["app", "start"]).exits(0);
    wait_for("it goes on", || text().ends_with("here 5\n").then_some(()));
    // The program's log is that of all its processes; that of a run is its own.
    let whole = d.ask(OWNER, ["LOGS", "app"]).exits(0).text();
    assert_eq!(whole, "here 1\nbye\nhere 3\nbye\nhere 4\nhere 5\n");
    assert_eq!(d.ask(OWNER, ["LOGS", "3"]).exits(0).text(), "here 3\nbye\n");
    fs::remove_file(d.path("log/app/1.log")).unwrap();
    let kept = d.ask(OWNER, ["LOGS", "app"]).exits(0).text();
    assert_eq!(kept, "here 3\nbye\nhere 4\nhere 5\n");
}

#[test]
fn the_log_of_a_program_that_comes_and_goes_quickly_is_whole() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-start = echo \"here $DEPLOYER_RUN\"\n");
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    d.ended(1);
    let out = d.path("shared/followed");
    let mut follow = as_user(OWNER, "sh");
    let command = "exec @D@/deployer --socket @D@/socket LOGS app -f > @S@/followed";
    follow.arg("-c").arg(d.expand(command));
    let _follow = Running::start(follow);
    let text = || fs::read_to_string(&out).unwrap_or_default();
    let mut expected = "here 1\n".to_owned();
    for id in 2..=60 {
        wait_for("its end", || (status(&d, "app") == "stopped").then_some(()));
        d.ask(OWNER, ["app", "start"]).exits(0);
        expected.push_str(&format!("here {id}\n"));
    }
    wait_for("all of them", || (text() == expected).then_some(()));
}

#[test]
fn the_output_of_a_program_can_be_thrown_away() {
    let site = Site::new();
    site.configure(
        "[prog-app]\nlog = none\ncmd-start = echo lost; echo up >> @S@/trace; exec sleep 1000\n\
         cmd-say = echo kept\n",
    );
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    d.await_trace("up", 1);
    let pid = pid(&d, "app").unwrap();
    let out = fs::read_link(format!("/proc/{pid}/fd/1")).unwrap();
    assert_eq!(out.to_str(), Some("/dev/null"));
    let logs = d.ask(OWNER, ["LOGS", "app"]).exits(125);
    assert!(logs.errors().contains("log = none"), "{logs:?}");
    assert_eq!(d.ask(OWNER, ["app", "say"]).exits(0).text(), "kept\n");
    // Its end is noticed all the same, also by a later daemon.
    d.kill_daemon();
    d.await_ready();
    d.ask(OWNER, ["app", "stop"]).exits(0);
    let row = d.ended(1);
    assert_eq!(
        (&row["signal"], &row["bytes"]),
        (&"SIGTERM".into(), &0.into())
    );
}

#[test]
fn the_output_of_a_program_can_go_to_the_journal() {
    root_only!(the_output_of_a_program_can_go_to_the_journal);
    let site = Site::new();
    // The daemon sees a /run of its own, with our journald in it.
    let journal = site.path("shared/journal");
    fs::create_dir(&journal).unwrap();
    let listener = UnixListener::bind(journal.join("stdout")).unwrap();
    site.wrap([
        "unshare",
        "-m",
        "sh",
        "-c",
        "mount -t tmpfs none /run && mkdir -p /run/systemd/journal && \
         mount --bind @S@/journal /run/systemd/journal && exec \"$@\"",
        "sh",
    ]);
    site.configure(
        "[prog-app]\nlog = journald\ncmd-start = echo out; echo err >&2; exec sleep 1000\n",
    );
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    let mut said = Vec::new();
    for _ in 0..2 {
        let (mut stream, _) = listener.accept().unwrap();
        let mut text = String::new();
        while text.lines().count() < 8 {
            let mut bytes = [0; 1024];
            let n = stream.read(&mut bytes).unwrap();
            assert!(n > 0, "{text}");
            text.push_str(std::str::from_utf8(&bytes[..n]).unwrap());
        }
        said.push(text);
    }
    // The identifier, no unit, the priority, prefixes count, and it goes nowhere else.
    let header = "app\n\n6\n1\n0\n0\n0\n";
    assert_eq!(said, [format!("{header}out\n"), format!("{header}err\n")]);
    let logs = d.ask(OWNER, ["LOGS", "app"]).exits(125);
    assert!(logs.errors().contains("journalctl -t app"), "{logs:?}");
    d.ask(OWNER, ["app", "stop"]).exits(0);

    drop(listener);
    fs::remove_file(journal.join("stdout")).unwrap();
    let start = d.ask(OWNER, ["app", "start"]).exits(126);
    assert!(
        start.errors().contains("cannot reach the journal"),
        "{start:?}"
    );
}

#[test]
fn with_kill_mode_none_only_cmd_stop_ends_it() {
    let site = Site::new();
    site.configure(
        "[prog-app]\nkill-mode = none\nstop-timeout = 0.1\n\
         cmd-start = trap 'echo signalled >> @S@/trace' TERM HUP; echo up >> @S@/trace; read _ < @S@/gate; exit 4\n\
         cmd-stop = echo asked >> @S@/trace; (sleep 0.5; echo > @S@/gate) > /dev/null 2>&1 &\n\
         [prog-job]\nkill-mode = none\ncmd-run = trap 'echo signalled >> @S@/trace' TERM; read _ < @S@/gate2; exit 5\n",
    );
    let _gate = site.gate("gate");
    let gate = site.gate("gate2");
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    d.await_trace("up", 1);
    d.ask(OWNER, ["app", "stop"]).exits(4);
    assert_eq!(d.trace(), ["up", "asked"]);
    let run = d.background(OWNER, ["RUN", "job"]);
    let id = d.nth(3);
    wait_for("it runs", || {
        (d.row(id)["outcome"] == "running").then_some(())
    });
    let refused = d.ask(OWNER, ["CANCEL", &id.to_string()]).exits(125);
    assert!(refused.errors().contains("kill-mode = none"), "{refused:?}");
    gate.open(1);
    run.done().exits(5);
    assert!(!d.trace().contains(&"signalled".to_owned()));
}

#[test]
fn a_program_that_is_not_a_supervised_one_any_more_can_still_be_stopped() {
    root_only!(a_program_that_is_not_a_supervised_one_any_more_can_still_be_stopped);
    let site = Site::new();
    let command = "cmd-run = echo run\n";
    site.configure(&format!(
        "[prog-app]\nuser = games\nallow-uid = 54321\nuid-run = none\ncmd-start = exec sleep 1000\n{command}"
    ));
    let d = site.start();
    d.ask(ALICE, ["app", "start"]).exits(0);
    d.configure(&format!(
        "[prog-app]\nuser = games\nallow-uid = 54323\n{command}"
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    assert_eq!(listed(&d, "app")["state"], "lingering");
    d.ask(CAROL, ["app", "stop"]).exits(125);
    assert_eq!(d.ask(CAROL, ["RUN", "app"]).exits(0).text(), "run\n");
    d.ask(ALICE, ["app", "stop"]).exits(0);
    assert_eq!(listed(&d, "app")["state"], "idle");
    d.ask(ALICE, ["app", "start"]).exits(125);
}

#[test]
fn the_record_says_who_stopped_a_program() {
    root_only!(the_record_says_who_stopped_a_program);
    let site = Site::new();
    site.configure("[prog-app]\nuser = games\nallow-uid = bin\ncmd-start = exec sleep 1000\n");
    let d = site.start();
    let bin = User {
        uid: 2,
        gid: 2,
        groups: &[],
    };
    d.ask(OWNER, ["app", "start"]).exits(0);
    d.ask(bin, ["app", "restart"]).exits(0);
    d.ask(OWNER, ["app", "stop"]).exits(0);
    let rows = d.history();
    assert_eq!(rows[0]["detail"], "ended by `restart` of bin");
    assert_eq!(rows[1]["detail"], "ended by `stop` of root");
}

#[test]
fn the_record_names_nobody_who_stopped_a_former_process() {
    root_only!(the_record_names_nobody_who_stopped_a_former_process);
    let site = Site::new();
    site.configure(
        "[prog-app]\nready = notify\nready-timeout = 0.5\nrestart = never\n\
         cmd-start = test -e @S@/mute || printf READY=1 | socat -u - ABSTRACT-SENDTO:${NOTIFY_SOCKET#@}; \
         exec sleep 1000\n\
         cmd-stop = kill -TERM $PID\n",
    );
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    // It ends by its own command, which has no need of the daemon's signals.
    d.ask(OWNER, ["app", "stop"]).exits(0);
    fs::write(d.path("shared/mute"), "").unwrap();
    d.ask(OWNER, ["app", "start"]).exits(1);
    let mut rows = d.history();
    rows.retain(|row| row["action"] == "start");
    assert_eq!(rows.len(), 2);
    for row in rows {
        assert_eq!(row["detail"], Value::Null, "{row}");
    }
}

#[test]
fn check_tells_what_a_reload_would_change() {
    root_only!(check_tells_what_a_reload_would_change);
    let site = Site::new();
    let kept = "[prog-kept]\ncmd-run = true\nallow-uid = 54321\n";
    site.configure(&format!(
        "{kept}[prog-web]\ncmd-start = exec sleep 1000\nallow-uid = 54321, bin\nuid-stop = 54322\n\
         [prog-old]\ncmd-run = true\nallow-gid = 54399\n"
    ));
    let d = site.start();
    let same = d.ask(OWNER, ["CHECK", "--diff"]).exits(0).text();
    assert_eq!(same, "nothing would change\n");
    d.configure(&format!(
        "# a line more\n[prog-new]\ncmd-run = true\n{kept}\
         [prog-web]\ncmd-start = exec sleep 1001\nallow-uid = 54321\nuid-stop = 54323\n"
    ));
    let text = d.ask(OWNER, ["CHECK", "--diff"]).exits(0).text();
    for line in [
        "new      new",
        "changed  web; a running one has to be restarted to use it",
        "gone     old",
        "right    user bin loses web start",
        "right    user 54322 loses web stop",
        "right    user 54323 gains web stop",
        "right    group 54399 loses old run",
    ] {
        assert!(text.lines().any(|l| l == line), "{line}: {text}");
    }
    assert!(!text.contains("kept"), "{text}");
    // It was only looked at.
    assert_eq!(listed(&d, "web")["state"], "dead");
    assert!(!listed(&d, "old").is_null());
    d.configure("[prog-x]\nnonsense = 1\n");
    let bad = d.ask(OWNER, ["CHECK", "--diff"]).exits(1);
    assert!(bad.errors().contains("unknown key"), "{bad:?}");
    d.ask(ALICE, ["CHECK", "--diff"]).exits(125);
}

#[test]
fn the_log_of_a_program_is_rotated_and_nobody_who_follows_it_misses_a_byte() {
    let site = Site::new();
    site.configure(
        "[prog-app]\nlog-max-size = 256K\n\
         cmd-start = n=0; while read _ < @S@/gate; do seq $((n + 1)) $((n + 2000)) | \
         sed 's/$/ ----------------------------------------------/'; n=$((n + 2000)); done\n",
    );
    let gate = site.gate("gate");
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    let mut follow = as_user(OWNER, "sh");
    let command = "exec @D@/deployer --socket @D@/socket LOGS app -f > @S@/followed";
    follow.arg("-c").arg(d.expand(command));
    let _follow = Running::start(follow);
    let followed = || fs::read_to_string(d.path("shared/followed")).unwrap_or_default();
    // Each time about 112 KB, and the follower has seen them before there are more.
    for turn in 1..=30 {
        gate.open(1);
        wait_for("the follower has seen all", || {
            (followed().lines().count() == turn * 2000).then_some(())
        });
    }
    let numbers = |text: &str| -> Vec<u32> {
        text.lines()
            .map(|l| l.split_whitespace().next().unwrap().parse().unwrap())
            .collect()
    };
    assert_eq!(numbers(&followed()), (1..=60_000).collect::<Vec<u32>>());
    let log = fs::metadata(d.path("log/app/1.log")).unwrap();
    let index = fs::metadata(d.path("log/app/1.idx")).unwrap();
    let taken = (log.blocks() + index.blocks()) * 512;
    assert!(
        log.len() > 3_000_000 && taken <= 256 * 1024 + 8192,
        "{taken}"
    );
    // Who comes late gets the end of it, whatever became of the daemon.
    for _ in 0..2 {
        let late = d.ask(OWNER, ["LOGS", "app"]).exits(0);
        let whole = late.text();
        let (_, whole) = whole.split_once('\n').unwrap();
        let seen = numbers(whole);
        assert!(seen.len() > 800 && seen.len() < 5000, "{}", seen.len());
        assert_eq!(
            seen,
            (60_001 - u32::try_from(seen.len()).unwrap()..=60_000).collect::<Vec<u32>>()
        );
        let timed = d
            .ask(OWNER, ["LOGS", "app", "--timestamps"])
            .exits(0)
            .text();
        assert!(timed.trim_end().ends_with("-----") && timed.contains(" 60000 "));
        d.kill_daemon();
        d.await_ready();
    }
    assert_eq!(listed(&d, "app")["service"]["status"], "running");
}

#[test]
fn a_cancel_of_its_process_is_a_stop_and_needs_that_right() {
    root_only!(a_cancel_of_its_process_is_a_stop_and_needs_that_right);
    let site = Site::new();
    site.configure(
        "[prog-app]\ncmd-start = exec sleep 1000\nrestart = always\nallow-uid = 54321, 54323\nuid-stop = 54323\n\
         input-needed = text\ncmd-run = echo $INPUT_NEEDED\ncmd-show = echo \"<$INPUT_NEEDED>\"\n",
    );
    let d = site.start();
    // Inputs are for `run`; other actions take them and do not need them.
    d.ask(ALICE, ["app", "start"]).exits(0);
    d.ask(ALICE, ["RUN", "app"]).exits(125);
    assert_eq!(d.ask(ALICE, ["app", "show"]).exits(0).text(), "<>\n");
    assert_eq!(
        d.ask(ALICE, ["app", "show", "needed=x"]).exits(0).text(),
        "<x>\n"
    );
    d.ask(ALICE, ["app", "show", "other=x"]).exits(125);
    let id = listed(&d, "app")["run"].as_u64().unwrap().to_string();
    let refused = d.ask(ALICE, ["CANCEL", &id]).exits(125);
    assert!(refused.errors().contains("not end them"), "{refused:?}");
    assert_eq!(status(&d, "app"), "running");
    d.ask(CAROL, ["CANCEL", &id]).exits(0);
    await_status(&d, "app", "stopped");
}

/// L2: the daemon is killed again and again while a program ends and is started again.
#[test]
fn l2_a_program_that_keeps_ending_is_never_there_twice_whenever_the_daemon_is_killed() {
    let site = Site::new();
    site.configure(
        "[prog-app]\nrestart-delay = 0.01\n\
         cmd-start = mkdir @S@/lock || echo OVERLAP >> @S@/trace; echo up >> @S@/trace; sleep 0.02; rmdir @S@/lock; exit 1\n",
    );
    let d = site.start();
    d.ask(OWNER, ["app", "start"]).exits(0);
    for turn in 1..=25 {
        let before = d.trace().len();
        wait_for("it goes on", || {
            (d.trace().len() > before + turn % 4).then_some(())
        });
        d.kill_daemon();
        d.await_ready();
    }
    assert!(
        !d.trace().contains(&"OVERLAP".to_owned()),
        "{:?}",
        d.trace()
    );
    // What is said of it is true, and a stop is the end of it.
    let before = d.trace().len();
    wait_for("it goes on", || {
        (d.trace().len() > before + 3).then_some(())
    });
    assert!(matches!(d.ask(OWNER, ["app", "stop"]).code(), Some(0 | 1)));
    assert_eq!(status(&d, "app"), "stopped");
    wait_for("nothing is left", || d.others().is_empty().then_some(()));
    let rows = d.history();
    assert!(
        rows.iter()
            .all(|r| r["outcome"] != "running" && r["outcome"] != "waiting"),
        "{rows:?}"
    );
}
