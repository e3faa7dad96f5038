//! The daemon as a service: background, files, users, systemd, upgrades.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::harness::{
    ALICE, Daemon, OWNER, PATIENCE, Process, Site, alive, chmod, copy, finish, kill, wait_for,
};
use crate::talk::Plain;

#[test]
fn it_goes_to_the_background_when_it_serves_and_not_before() {
    let site = Site::new();
    site.script("app", "echo ran");
    let d = site.start_in_background();
    // No waiting here: exit status 0 means that it serves.
    assert_eq!(d.ask(OWNER, ["-t"]).exits(0).text(), "running\n");
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "ran\n");
    let keeper = Process::of(d.keeper_pid()).unwrap();
    assert_eq!((keeper.session, keeper.terminal), (keeper.pid, 0));
    assert!(d.log().contains("app"), "{}", d.log());
    d.ask(OWNER, ["-s"]).exits(0);
    wait_for("the keeper has ended", || (!keeper.lives()).then_some(()));
    assert!(!d.socket().exists() && !d.path("deployer.pid").exists());
    assert_eq!(d.ask(OWNER, ["-t"]).exits(1).text(), "not running\n");
}

#[test]
fn a_daemon_that_cannot_serve_says_so_and_exits_with_a_failure() {
    let site = Site::new();
    site.configure_all(
        "socket-path = @D@/no/such/directory/socket\nstate-dir = @D@/state\nlog-dir = @D@/log\n",
    );
    let mut command = Command::new(site.bin());
    command.args(["-d", "-c"]).arg(site.config());
    let done = finish(command);
    assert!(done.code().is_some_and(|c| c != 0), "{done:?}");
    assert!(done.errors().contains("no/such/directory"), "{done:?}");
    let left = site.control_groups().filter(|base| base.exists());
    assert_eq!(left, None, "it leaves its control group behind");
    site.configure("colour = red\n");
    let mut command = Command::new(site.bin());
    command.args(["-d", "-c"]).arg(site.config());
    let done = finish(command);
    assert!(
        done.code().is_some_and(|c| c != 0) && done.errors().contains("colour"),
        "{done:?}"
    );
}

#[test]
fn after_a_stop_the_next_start_works_at_once() {
    let site = Site::new();
    let d = site.start_in_background();
    for _ in 0..10 {
        d.ask(OWNER, ["-s"]).exits(0);
        let mut start = Command::new(d.bin());
        start
            .args(["-d", "-c"])
            .arg(d.config())
            .arg("-P")
            .arg(d.path("deployer.pid"))
            .arg("-l")
            .arg(d.path("daemon.log"));
        finish(start).exits(0);
        let pid = fs::read_to_string(d.path("deployer.pid"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        d.adopt(pid);
    }
}

#[test]
fn another_user_group_mode_and_root_directory_can_be_given() {
    root_only!(another_user_group_mode_and_root_directory_can_be_given);
    let site = Site::new();
    for place in ["state", "log", "run"] {
        fs::create_dir(site.path(place)).unwrap();
        std::os::unix::fs::chown(site.path(place), Some(ALICE.uid), Some(ALICE.gid)).unwrap();
    }
    fs::create_dir(site.path("other")).unwrap();
    chmod(&site.path("other"), 0o755);
    site.script("../other/app", "id -u; id -g");
    site.configure_all("socket-path = @D@/run/socket\nstate-dir = @D@/state\nlog-dir = @D@/log\n");
    let (uid, gid) = (ALICE.uid.to_string(), "54399".to_owned());
    for word in ["-u", &uid, "-g", &gid, "-m", "0600", "--root", "@D@/other"] {
        site.option(word);
    }
    let d = site.start();
    assert_eq!(
        d.ask(ALICE, ["RUN", "app"]).exits(0).text(),
        format!("{uid}\n{gid}\n")
    );
    let socket = fs::metadata(d.path("run/socket")).unwrap();
    assert_eq!(
        (
            socket.uid(),
            socket.gid(),
            socket.permissions().mode() & 0o777
        ),
        (ALICE.uid, 54_399, 0o600)
    );
    let status = fs::read_to_string(format!("/proc/{}/status", d.daemon_pid())).unwrap();
    assert!(
        status.contains(&format!("Uid:\t{uid}\t{uid}\t{uid}\t{uid}\n")),
        "{status}"
    );
}

#[test]
fn systemd_is_told_of_every_step() {
    let site = Site::new();
    let notify = UnixDatagram::bind(site.path("notify")).unwrap();
    notify.set_read_timeout(Some(PATIENCE)).unwrap();
    let until = |word: &str| {
        let mut seen = String::new();
        loop {
            let mut text = [0; 4096];
            let n = notify
                .recv(&mut text)
                .unwrap_or_else(|e| panic!("{word} did not come ({e}) after {seen}"));
            let text = String::from_utf8_lossy(&text[..n]).into_owned();
            if text.lines().any(|l| l == word) {
                return text;
            }
            seen.push_str(&text);
        }
    };
    site.env("NOTIFY_SOCKET", "@D@/notify");
    site.env("WATCHDOG_USEC", "400000");
    let d = site.start();
    until("READY=1");
    until("WATCHDOG=1");
    d.ask(OWNER, ["-r"]).exits(0);
    let reloading = until("RELOADING=1");
    assert!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    until("READY=1");
    assert!(d.stop().success());
    until("STOPPING=1");
}

#[test]
fn a_socket_that_systemd_made_is_served_and_left_alone() {
    let site = Site::new();
    site.script("app", "echo ran");
    let listener = UnixListener::bind(site.socket()).unwrap();
    chmod(&site.socket(), 0o666);
    let inode = fs::metadata(site.socket()).unwrap().ino();
    // A client that comes before the daemon waits and is served.
    let mut early = Plain::run(&site, OWNER, "app");
    site.stdin(listener.into());
    site.wrap([
        "sh",
        "-c",
        "exec 3<&0 </dev/null; export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$@\"",
        "sh",
    ]);
    let d = site.start();
    assert_eq!(
        (early.line().as_str(), early.rest().as_slice()),
        ("OK", &b"ran\n"[..])
    );
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "ran\n");
    d.kill_daemon();
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "ran\n");
    d.stop();
    assert_eq!(fs::metadata(d.socket()).unwrap().ino(), inode);
}

/// A run that is held, a client that watches it, and another that waits.
fn under_load(d: &Daemon, change: impl FnOnce()) {
    let gate = d.gate("gate");
    let watching = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let waiting = d.background(OWNER, ["RUN", "app"]);
    wait_for("it waits", || (d.history().len() == 2).then_some(()));
    change();
    assert_eq!(d.row(1)["outcome"], "running");
    gate.open(2);
    for client in [watching, waiting] {
        assert_eq!(client.done().exits(7).text(), "before\nafter\n");
    }
    assert_eq!(d.trace(), ["begin", "end", "begin", "end"]);
}

const HELD: &str = "mkdir @S@/busy || echo OVERLAP >> @S@/trace\necho begin >> @S@/trace\n\
    echo before; read _ < @S@/gate; echo after; rmdir @S@/busy; echo end >> @S@/trace; exit 7";

#[test]
fn an_upgrade_puts_the_new_binary_in_place_under_running_programs() {
    let site = Site::new();
    site.script("app", HELD);
    let d = site.start();
    under_load(&d, || {
        let (keeper, daemon) = (d.keeper_pid(), d.daemon_pid());
        copy(&d.bin(), &d.path("new"));
        fs::rename(d.path("new"), d.bin()).unwrap();
        let inode = fs::metadata(d.bin()).unwrap().ino();
        kill(keeper, Signal::USR2);
        let runs =
            |pid: i32| fs::metadata(format!("/proc/{pid}/exe")).is_ok_and(|m| m.ino() == inode);
        wait_for("the keeper is the new binary", || {
            runs(keeper).then_some(())
        });
        wait_for("the old daemon has gone", || (!alive(daemon)).then_some(()));
        d.await_ready();
        assert!(runs(d.daemon_pid()));
        assert_eq!(d.ended_by_itself(), None);
    });
}

#[test]
fn a_reload_leaves_running_programs_alone() {
    let site = Site::new();
    site.script("app", HELD);
    let d = site.start();
    under_load(&d, || {
        d.configure("env-NEW = yes\n");
        d.ask(OWNER, ["-r"]).exits(0);
    });
}

#[test]
fn signals_stop_and_reload_as_the_options_do() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = echo old\n");
    let d = site.start();
    d.configure("[prog-app]\ncmd-run = echo new\n");
    kill(d.keeper_pid(), Signal::HUP);
    wait_for("the new configuration is in force", || {
        (d.ask(OWNER, ["RUN", "app"]).exits(0).text() == "new\n").then_some(())
    });
    kill(d.keeper_pid(), Signal::TERM);
    assert!(d.await_end().success());
    assert!(!Path::new(&d.socket()).exists());
}
