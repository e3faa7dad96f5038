//! A1–A8: who is asking, and what they learn.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Uid;
use serde_json::json;

use crate::harness::{
    ALICE, BOB, BOT_GID, CAROL, Daemon, OWNER, Running, Site, User, as_user, finish, wait_for,
};
use crate::talk::{Framed, Plain, answer_to, connect, request};

/// A daemon with a program for root alone, and one for Alice and Bob's group.
fn two_programs() -> Daemon {
    let site = Site::new();
    site.configure(&format!(
        "[prog-open]\nallow-uid = {}\nallow-gid = {BOT_GID}\ncmd-run = echo open\nargs = none\n\
         [prog-shut]\ncmd-run = echo shut\nargs = none\n",
        ALICE.uid
    ));
    site.script("scrp", "echo script");
    site.start()
}

/// A1: root connects and then becomes somebody else, and the other way round.
#[test]
fn a1_identity_is_what_the_kernel_recorded_at_connect() {
    root_only!(a1_identity_is_what_the_kernel_recorded_at_connect);
    let d = two_programs();
    let path = d.socket();
    let answers = std::thread::spawn(move || {
        let mut as_root = UnixStream::connect(&path).unwrap();
        let (root, carol) = (Uid::ROOT, Uid::from_raw(CAROL.uid));
        // The saved uid stays root's, so that this thread can come back.
        rustix::thread::set_thread_res_uid(carol, carol, root).unwrap();
        as_root.write_all(b"RUN shut\n").unwrap();
        let mut as_carol = UnixStream::connect(&path).unwrap();
        rustix::thread::set_thread_res_uid(root, root, root).unwrap();
        as_carol.write_all(b"RUN shut\n").unwrap();
        (Plain(as_root).line(), Plain(as_carol).line())
    });
    let (root, carol) = answers.join().unwrap();
    assert_eq!(root, "OK");
    assert!(carol.starts_with("ERROR "), "{carol}");
}

/// A2: the process that connected is dead when its connection is used by another.
#[test]
fn a2_a_connection_that_was_passed_on_keeps_its_identity() {
    root_only!(a2_a_connection_that_was_passed_on_keeps_its_identity);
    let d = two_programs();
    let _gate = d.gate("dead");
    let heir = d.script(
        "../shared/heir",
        "exec 3<&0\n( read _ < @S@/dead; printf 'RUN open\\n' >&3; cat <&3 > @S@/answer; echo heard >> @S@/trace ) &\nexit 0",
    );
    let mut socat = as_user(ALICE, "socat");
    socat
        .arg(format!("UNIX-CONNECT:{}", d.socket().display()))
        .arg(format!("EXEC:{},nofork", heir.display()));
    socat
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null());
    let status = socat.spawn().unwrap().wait().unwrap();
    assert!(status.success(), "{status}");
    _gate.open(1);
    d.await_trace("heard", 1);
    assert_eq!(
        std::fs::read_to_string(d.path("shared/answer")).unwrap(),
        "OK\nopen\n"
    );
    let rows = d.history();
    assert_eq!(rows[0]["by"]["uid"], ALICE.uid, "{rows:?}");
}

/// A3: whoever merely connects, or sends half a request, causes nothing.
#[test]
fn a3_nothing_happens_without_a_whole_request() {
    let site = Site::new();
    site.script("app", "echo ran >> @S@/trace");
    let d = site.start();
    let whole = request(&json!({"op": "run", "program": "app"}));
    for bytes in [
        &b""[..],
        b"RUN app",
        b"RUN ap",
        b"DEPLOYER 1\n",
        &whole[..whole.len() - 1],
    ] {
        let mut stream = connect(&d, OWNER);
        stream.write_all(bytes).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let answer = Plain(stream).rest();
        assert!(!answer.starts_with(b"OK"), "{bytes:?}");
    }
    assert_eq!(d.history(), Vec::<serde_json::Value>::new());
    assert!(d.trace().is_empty());
}

/// A4: to a daemon in a user namespace everybody outside it is 65534, and so is nobody to it.
#[test]
fn a4_overflow_ids_of_a_user_namespace_never_authorise() {
    root_only!(a4_overflow_ids_of_a_user_namespace_never_authorise);
    let site = Site::new();
    site.configure_all(
        "socket-path = @D@/socket\nroot = @D@/root\nstate-dir = @D@/state\nlog-dir = @D@/log\nallow-uid = 65533\n\
         [prog-app]\ncmd-run = echo ran\n",
    );
    site.wrap(["unshare", "--user", "--map-root-user"]);
    let d = site.start();
    let answer = answer_to(&d, ALICE, b"RUN app\n");
    assert!(
        answer.starts_with(b"ERROR "),
        "{}",
        String::from_utf8_lossy(&answer)
    );
    assert_eq!(d.history(), Vec::<serde_json::Value>::new());
}

/// A4: the account nobody is refused like everybody who is not listed.
#[test]
fn a4_nobody_is_nobody() {
    root_only!(a4_nobody_is_nobody);
    let d = two_programs();
    let nobody = User {
        uid: 65_534,
        gid: 65_534,
        groups: &[65_534],
    };
    assert!(answer_to(&d, nobody, b"RUN open\n").starts_with(b"ERROR "));
    let listed = User {
        uid: 65_534,
        gid: 65_534,
        groups: &[60],
    };
    assert!(answer_to(&d, listed, b"RUN shut\n").starts_with(b"ERROR "));
}

/// A5: a supplementary group is enough; the primary group is not needed.
#[test]
fn a5_a_supplementary_group_is_enough() {
    root_only!(a5_a_supplementary_group_is_enough);
    let d = two_programs();
    assert_eq!(d.ask(ALICE, ["RUN", "open"]).exits(0).text(), "open\n");
    assert_eq!(d.ask(BOB, ["RUN", "open"]).exits(0).text(), "open\n");
    d.ask(CAROL, ["RUN", "open"]).exits(125);
    let last = User {
        uid: 54_330,
        gid: 54_330,
        groups: &[54_331, 54_332, 54_333, 60],
    };
    assert_eq!(d.ask(last, ["RUN", "open"]).exits(0).text(), "open\n");
}

/// Users and groups that are in no file of the machine count like those that are.
#[test]
fn users_and_groups_of_other_name_services_count() {
    root_only!(users_and_groups_of_other_name_services_count);
    let site = Site::new();
    site.script(
        "getent",
        "case \"$1 $3\" in\n\
         'passwd far-dev' | 'passwd 54340') echo 'far-dev:*:54340:54341:F\u{e4}r:/far:/bin/sh' ;;\n\
         'group far-team') echo 'far-team:*:54342:far-bot' ;;\n\
         'passwd far-bot') echo 'far-bot:*:54343:54344::@D@:/bin/sh' ;;\n\
         'initgroups far-bot') echo 'far-bot               54344 54342' ;;\n\
         'initgroups far-dev') echo 'far-dev              54341 54345' ;;\n\
         'passwd far-away') exit 3 ;;\n\
         *) exec /usr/bin/getent \"$@\" ;;\nesac\n",
    );
    site.env("PATH", "@D@/root:/usr/bin:/bin");
    site.configure(
        "[prog-app]\nallow-uid = far-dev\nallow-gid = far-team\nuser = far-bot\n\
         cmd-run = id -u; id -g; id -G; echo $USER $HOME $DEPLOYER_BY\n\
         [prog-mine]\nallow-gid = 54345\n",
    );
    let d = site.start();
    let user = |uid, gid, groups| User { uid, gid, groups };
    let dev = user(54_340, 54_341, &[]);
    let home = d.expand("@D@");
    let ran = d.ask(dev, ["RUN", "app"]).exits(0);
    let expected = format!("54343\n54344\n54344 54342\nfar-bot {home} far-dev\n");
    assert_eq!(ran.text(), expected);
    assert_eq!(d.row(1)["by"]["user"], "far-dev");
    d.ask(user(54_350, 54_350, &[54_342]), ["RUN", "app"])
        .exits(0);
    d.ask(user(54_350, 54_350, &[]), ["RUN", "app"]).exits(125);
    // What root asks of somebody who is not here counts the groups that a login would give.
    let may = ["CAN", "--user", "far-dev"];
    let may = d.ask(OWNER, may).exits(0).text();
    assert!(
        may.contains("may run app") && may.contains("may run mine"),
        "{may}"
    );
    // A service that fails is not one without an answer.
    let unknown = d.ask(OWNER, ["CAN", "--user", "far-and-away"]).exits(125);
    assert!(unknown.errors().contains("no user"), "{unknown:?}");
    let failed = d.ask(OWNER, ["CAN", "--user", "far-away"]).exits(125);
    assert!(failed.errors().contains("look up"), "{failed:?}");
}

/// A6: an id that means nobody, everybody or nothing is an error of the configuration.
#[test]
fn a6_ids_that_name_nobody_are_errors_and_the_daemon_does_not_start() {
    let bad = [
        "-1",
        "4294967295",
        "",
        "4294967296",
        "65534",
        "nobody",
        "no-such-user-here",
        "99999999999999999999",
        "0x0",
    ];
    for key in ["allow-uid", "allow-gid", "uid-run", "gid-run", "user"] {
        for value in bad {
            // The account may run programs, it may not ask; and there is no group of that name.
            if value == "nobody" && (key == "user" || key.contains("gid")) {
                continue;
            }
            let site = Site::new();
            let text = format!(
                "socket-path = @D@/socket\nroot = @D@/root\nstate-dir = @D@/state\nlog-dir = @D@/log\n\
                 [prog-app]\ncmd-run = true\n{key} = {value}\n"
            );
            site.configure_all(&text);
            let check = site.ask(OWNER, ["CHECK"]);
            assert_eq!(check.code(), Some(1), "{key} = {value}: {check:?}");
            let place = format!("{}:7:", site.config().display());
            let shown = check.errors();
            assert!(
                shown.contains(&place) || shown.contains("deployer.cfg:7:"),
                "{key} = {value}: {shown}"
            );
        }
    }
    let site = Site::new();
    site.configure("allow-uid =\n");
    let done = site.start_in_vain();
    assert_ne!(done.code(), Some(0));
    assert!(!site.socket().exists());
}

/// A7: what is forbidden looks like what is not there: to every request, in every protocol.
#[test]
fn a7_unknown_and_forbidden_programs_look_the_same() {
    root_only!(a7_unknown_and_forbidden_programs_look_the_same);
    let d = two_programs();
    d.ask(OWNER, ["RUN", "shut"]).exits(0);
    let plain = |name: &str| answer_to(&d, CAROL, format!("RUN {name}\n").as_bytes());
    let framed =
        |op: &str, name: &str| answer_to(&d, CAROL, &request(&json!({"op": op, "program": name})));
    let unnamed =
        |bytes: Vec<u8>, name: &str| String::from_utf8(bytes).unwrap().replace(name, "NAME");
    // Names of one length: a length is a byte, too. One has a section, one is a script, one is nothing.
    for forbidden in ["shut", "open", "scrp"] {
        assert_eq!(
            unnamed(plain(forbidden), forbidden),
            unnamed(plain("none"), "none")
        );
        for op in ["run", "logs", "history", "can"] {
            assert_eq!(
                unnamed(framed(op, forbidden), forbidden),
                unnamed(framed(op, "none"), "none"),
                "{op}"
            );
        }
        for verb in [
            &["RUN"][..],
            &["LOGS"],
            &["HISTORY"],
            &["HISTORY", "--json"],
            &["CAN"],
        ] {
            let ask = |name: &str| {
                let done = d.ask(CAROL, verb.iter().copied().chain([name]));
                (
                    done.code(),
                    unnamed(done.out, name),
                    unnamed(done.err, name),
                )
            };
            assert_eq!(ask(forbidden), ask("none"), "{verb:?}");
        }
    }
    // By number: a run that is not hers, and one that never was.
    for verb in ["LOGS", "CANCEL", "HISTORY"] {
        let ask = |id: &str| {
            let done = d.ask(CAROL, [verb, id]);
            (done.code(), unnamed(done.out, id), unnamed(done.err, id))
        };
        assert_eq!(ask("1"), ask("9"), "{verb}");
    }
    // Inputs and arguments are judged only for those who may.
    let args = |name: &str| {
        answer_to(
            &d,
            CAROL,
            &request(&json!({"op": "run", "program": name, "args": ["x"]})),
        )
    };
    assert_eq!(unnamed(args("shut"), "shut"), unnamed(args("none"), "none"));
}

/// A7: nor does a stop-watch tell them apart. The shortest of many tries is compared: a busy
/// machine makes single ones longer, never shorter.
#[test]
fn a7_unknown_and_forbidden_programs_take_the_same_time() {
    root_only!(a7_unknown_and_forbidden_programs_take_the_same_time);
    let d = two_programs();
    let shortest = |name: &str| {
        let once = || {
            let begun = Instant::now();
            assert!(
                answer_to(&d, CAROL, format!("RUN {name}\n").as_bytes()).starts_with(b"ERROR ")
            );
            begun.elapsed()
        };
        (0..25).map(|_| once()).min().unwrap()
    };
    let (shut, script, none) = (shortest("shut"), shortest("scrp"), shortest("none"));
    for other in [shut, script] {
        assert!(
            other.abs_diff(none) < Duration::from_millis(4),
            "{shut:?} {script:?} {none:?}"
        );
    }
}

/// A8: lists and records show each peer only what they may use.
#[test]
fn a8_everybody_sees_only_what_they_may_use() {
    root_only!(a8_everybody_sees_only_what_they_may_use);
    let d = two_programs();
    let shut = d.detach("shut");
    let open = d.detach("open");
    d.ended(shut);
    d.ended(open);
    let names = |user| {
        let done = d.ask(user, ["-a", "-0"]).exits(0);
        let mut names: Vec<String> = done
            .text()
            .split_terminator('\0')
            .map(str::to_owned)
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(OWNER), ["open", "scrp", "shut"]);
    assert_eq!(names(ALICE), ["open"]);
    assert_eq!(names(BOB), ["open"]);
    assert_eq!(names(CAROL), Vec::<String>::new());
    let seen = |user| -> Vec<u64> {
        d.history_of(user, &[])
            .iter()
            .map(|r| r["id"].as_u64().unwrap())
            .collect()
    };
    assert_eq!(seen(OWNER), [shut, open]);
    assert_eq!(seen(ALICE), [open]);
    assert_eq!(seen(CAROL), Vec::<u64>::new());
    assert_eq!(
        d.ask(ALICE, ["LOGS", &open.to_string()]).exits(0).text(),
        "open\n"
    );
    assert!(
        d.ask(ALICE, ["LOGS", &shut.to_string()])
            .exits(125)
            .out
            .is_empty()
    );
    assert!(d.ask(CAROL, ["LOGS", "open"]).exits(125).out.is_empty());
    let can = |user: User| d.ask(user, ["CAN"]);
    assert!(can(ALICE).exits(0).text().contains("open run") && !can(ALICE).text().contains("shut"));
    assert!(can(CAROL).exits(1).out.is_empty());
    // Only root and the daemon's user may stop, reload, or ask for others.
    for args in [&["-s"][..], &["-r"], &["CAN", "--user", "root"]] {
        d.ask(ALICE, args).exits(125);
    }
    assert_eq!(d.ask(CAROL, ["-t"]).exits(0).text(), "running\n");
}

/// A8: root can ask why, and is told the line that decides.
#[test]
fn a8_root_is_told_which_line_decides() {
    root_only!(a8_root_is_told_which_line_decides);
    let d = two_programs();
    let alice = ALICE.uid.to_string();
    let may = d
        .ask(OWNER, ["CAN", "--user", &alice, "open", "run"])
        .exits(0)
        .text();
    assert!(
        may.starts_with("may run open") && may.contains("deployer.cfg:7:"),
        "{may}"
    );
    let may_not = d
        .ask(OWNER, ["CAN", "--user", &alice, "shut", "run"])
        .exits(1)
        .text();
    assert!(may_not.starts_with("may not run shut"), "{may_not}");
}

/// A8: refusals stand in the daemon's log with uid, pid and reason.
#[test]
fn a8_refused_requests_are_in_the_daemons_log() {
    root_only!(a8_refused_requests_are_in_the_daemons_log);
    let d = two_programs();
    let refused = Running::start(d.client(CAROL, ["RUN", "shut"]));
    let pid = refused.pid();
    refused.done().exits(125);
    let line = wait_for("the refusal is logged", || {
        d.log()
            .lines()
            .find(|l| l.contains("refused") && l.contains("shut"))
            .map(str::to_owned)
    });
    // setpriv becomes the client: one pid.
    assert!(
        line.contains(&format!("{}", CAROL.uid)) && line.contains(&pid.to_string()),
        "{line}"
    );
}

/// Several peers at once are told apart.
#[test]
fn a1_connections_of_several_users_do_not_mix() {
    root_only!(a1_connections_of_several_users_do_not_mix);
    let d = two_programs();
    let mut open: Vec<(User, UnixStream)> = [ALICE, CAROL, BOB, CAROL, ALICE]
        .into_iter()
        .map(|u| (u, connect(&d, u)))
        .collect();
    for (_, stream) in open.iter_mut().rev() {
        stream.write_all(b"RUN open\n").unwrap();
    }
    for (user, stream) in open {
        let line = Plain(stream).line();
        assert_eq!(line.starts_with("OK"), user != CAROL, "{user:?}: {line}");
    }
}

/// A reload takes a right away at once, also from connections that were made before.
#[test]
fn a5_a_right_that_was_taken_away_is_gone_for_open_connections() {
    root_only!(a5_a_right_that_was_taken_away_is_gone_for_open_connections);
    let d = two_programs();
    let mut early = connect(&d, ALICE);
    d.configure("[prog-open]\nallow-uid = none\ncmd-run = echo open\n");
    d.ask(OWNER, ["-r"]).exits(0);
    early.write_all(b"RUN open\n").unwrap();
    assert!(Plain(early).line().starts_with("ERROR "));
}

/// The daemon's own user may what root may; that is what makes a private daemon useful.
#[test]
fn a5_the_daemons_own_user_may_everything() {
    root_only!(a5_the_daemons_own_user_may_everything);
    let site = Site::new();
    for place in ["state", "log", "run"] {
        std::fs::create_dir(site.path(place)).unwrap();
        let mut chown = Command::new("chown");
        chown
            .arg(format!("{}:{}", ALICE.uid, ALICE.gid))
            .arg(site.path(place));
        finish(chown).exits(0);
    }
    site.configure_all(
        "socket-path = @D@/run/socket\nroot = @D@/root\nstate-dir = @D@/state\nlog-dir = @D@/log\n\
         [prog-app]\ncmd-run = id -u\n",
    );
    let (uid, gid) = (ALICE.uid.to_string(), ALICE.gid.to_string());
    site.wrap([
        "setpriv",
        "--reuid",
        &uid,
        "--regid",
        &gid,
        "--clear-groups",
    ]);
    let d = site.start();
    assert_eq!(
        d.ask(ALICE, ["RUN", "app"]).exits(0).text(),
        format!("{uid}\n")
    );
    d.ask(CAROL, ["RUN", "app"]).exits(125);
    d.ask(ALICE, ["-r"]).exits(0);
}

/// A framed refusal has a stable code.
#[test]
fn a7_a_refusal_has_a_stable_code() {
    let site = Site::new();
    let d = site.start();
    let outcome = Framed::run(&d, OWNER, "none").rest();
    assert_eq!(outcome.last()["type"], "error");
    assert_eq!(outcome.last()["code"], "refused");
}
