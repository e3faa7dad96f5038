//! E1–E10 from end to end: what a child gets, as it sees it itself.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use serde_json::json;

use crate::harness::{
    BOT, BOT_GID, BOT_UID, Daemon, OWNER, Process, Site, as_user, chmod, copy, executable, finish,
    root,
};
use crate::talk::{Framed, Plain, answer_to};

/// `KEY:` of the child's `/proc/PID/status`, which the script has printed.
fn status(text: &str) -> BTreeMap<&str, &str> {
    text.lines()
        .filter_map(|l| l.split_once(':'))
        .map(|(k, v)| (k, v.trim()))
        .collect()
}

fn run(d: &Daemon, program: &str) -> String {
    d.ask(OWNER, ["RUN", program]).exits(0).text()
}

/// E1: the daemon's extra groups stay with the daemon, and there is no way back.
#[test]
fn e1_the_child_has_its_users_groups_and_cannot_regain_privilege() {
    root_only!(e1_the_child_has_its_users_groups_and_cannot_regain_privilege);
    let site = Site::new();
    site.configure(
        "[prog-named]\ncmd-run = id -u; id -g; id -G; cat /proc/self/status\n\
         [prog-number]\nuser = 54340\ncmd-run = id -u; id -g; id -G\n\
         [prog-back]\ncmd-run = setpriv --reuid 0 --clear-groups id; setpriv --regid 0 --keep-groups id; sudo -n id; true\n",
    );
    site.wrap(["setpriv", "--groups", "4,20,54399"]);
    let d = site.start();
    let groups = finish({
        let mut id = as_user(OWNER, "id");
        id.args(["-G", BOT]);
        id
    });
    let text = run(&d, "named");
    let ids: Vec<&str> = text.lines().take(3).collect();
    assert_eq!(
        ids,
        [
            &BOT_UID.to_string(),
            &BOT_GID.to_string(),
            groups.text().trim()
        ]
    );
    let s = status(&text);
    assert_eq!(
        s["Uid"],
        format!("{BOT_UID}\t{BOT_UID}\t{BOT_UID}\t{BOT_UID}")
    );
    assert_eq!(
        s["Gid"],
        format!("{BOT_GID}\t{BOT_GID}\t{BOT_GID}\t{BOT_GID}")
    );
    assert_eq!(s["NoNewPrivs"], "1");
    assert_eq!(run(&d, "number"), "54340\n54340\n54340\n");
    let back = d.ask(OWNER, ["RUN", "back"]).exits(0);
    assert!(
        !back.text().contains("uid=0") && !back.text().contains("gid=0"),
        "{back:?}"
    );
}

/// E2: capabilities that the daemon would hand down.
#[test]
fn e2_capabilities_are_cleared() {
    root_only!(e2_capabilities_are_cleared);
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = cat /proc/self/status\n");
    site.wrap([
        "setpriv",
        "--inh-caps",
        "+chown,+kill",
        "--ambient-caps",
        "+chown,+kill",
    ]);
    let d = site.start();
    let text = run(&d, "app");
    let s = status(&text);
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(u64::from_str_radix(s[set], 16), Ok(0), "{set} {}", s[set]);
    }
}

/// E3: neither the daemon's environment nor the client's reaches the child.
#[test]
fn e3_the_environment_is_built_from_nothing() {
    let site = Site::new();
    site.configure("env-LANG = C.UTF-8\n[prog-app]\nenv-COLOUR = a=b \"$HOME\"\npath = /usr/bin:/bin\ncmd-run = cat /proc/$$/environ\n");
    let evil = [
        ("LD_LIBRARY_PATH", "@S@"),
        ("BASH_ENV", "@S@/evil"),
        ("ENV", "@S@/evil"),
        ("IFS", "/"),
        ("GIT_DIR", "@S@"),
        ("PYTHONPATH", "@S@"),
        ("COLOUR", "evil"),
        ("DEPLOYER_RUN", "evil"),
    ];
    for (name, value) in evil {
        site.env(name, value);
    }
    let d = site.start();
    let mut client = d.client(OWNER, ["RUN", "app"]);
    client.envs(evil);
    let done = finish(client).exits(0);
    let text = done.text();
    let vars: BTreeMap<&str, &str> = text
        .split_terminator('\0')
        .filter_map(|v| v.split_once('='))
        .collect();
    let names: Vec<&str> = vars.keys().copied().collect();
    let expected = [
        "ACTION",
        "COLOUR",
        "DEPLOYER_BY",
        "DEPLOYER_RUN",
        "HOME",
        "LANG",
        "LOGNAME",
        "PATH",
        "PID",
        "PROGNAME",
        "SHELL",
        "USER",
    ];
    assert_eq!(names, expected, "{vars:?}");
    assert_eq!(vars["PROGNAME"], "app");
    assert_eq!(vars["ACTION"], "run");
    assert_eq!(vars["PID"], "");
    assert_eq!(vars["PATH"], "/usr/bin:/bin");
    assert_eq!(vars["COLOUR"], "a=b \"$HOME\"");
    assert_eq!(vars["DEPLOYER_RUN"], "1");
    if root() {
        assert_eq!(
            (vars["USER"], vars["LOGNAME"], vars["HOME"]),
            (BOT, BOT, "/usr/games")
        );
        assert_eq!(vars["DEPLOYER_BY"], "root");
    }
}

/// E4: whatever arguments and inputs hold, the script gets it, and no shell looks at it.
#[test]
fn e4_arguments_and_inputs_reach_the_script_as_data() {
    let site = Site::new();
    site.configure(
        "[prog-show]\nargs = any\ninput-text = text\ncmd-run = for a in \"$0\" \"$@\"; do printf '<%s>' \"$a\"; done; printf '[%s]' \"$INPUT_TEXT\"\n\
         [prog-none]\nargs = none\ncmd-run = echo ran\n",
    );
    let d = site.start();
    let hard = [
        "-rf",
        "--",
        "--help",
        "$(touch @S@/x)",
        "`id`",
        "a b",
        "",
        "*",
        "line\nline",
        "'\"\\",
        "ü",
        "; id",
    ];
    let hard: Vec<String> = hard.iter().map(|a| d.expand(a)).collect();
    let mut words = vec![
        "RUN".to_owned(),
        "show".into(),
        format!("text={}", "$(id) -x ;'\" *"),
        "--".into(),
    ];
    words.extend(hard.iter().cloned());
    let text = d.ask(OWNER, &words).exits(0).text();
    let mut expected: String = hard.iter().map(|a| format!("<{a}>")).collect();
    expected.push_str("[$(id) -x ;'\" *]");
    assert_eq!(text, expected);
    assert!(!d.path("shared/x").exists());
    let row = d.row(1);
    assert_eq!(row["args"], json!(hard));
    // A NUL cannot be an argument; a program without arguments takes none.
    let nul = Framed::ask(
        &d,
        OWNER,
        &json!({"op": "run", "program": "show", "args": ["a\u{0}b"], "inputs": {"text": "x"}}),
    )
    .rest();
    assert_eq!(nul.last()["code"], "bad-input", "{nul:?}");
    d.ask(OWNER, ["RUN", "none", "--", "x"]).exits(125);
    assert_eq!(d.history().len(), 1);
}

/// E4: typed inputs are judged before anything runs.
#[test]
fn e4_inputs_are_validated_before_anything_runs() {
    let site = Site::new();
    site.configure(
        "[prog-app]\ninput-branch = text ^[\\w./-]{1,20}$ default master\ninput-docs = flag\n\
         input-env = choice staging production\ninput-n = int 1..10 default 3\n\
         cmd-run = echo $INPUT_BRANCH $INPUT_DOCS $INPUT_ENV $INPUT_N\n",
    );
    let d = site.start();
    let run = |words: &[&str]| d.ask(OWNER, ["RUN", "app"].iter().chain(words));
    assert_eq!(
        run(&["env=staging"]).exits(0).text(),
        "master no staging 3\n"
    );
    assert_eq!(
        run(&["env=production", "branch=a/b", "docs=yes", "n=10"])
            .exits(0)
            .text(),
        "a/b yes production 10\n"
    );
    let before = d.history().len();
    for bad in [
        &["branch=x"][..],
        &["env=elsewhere"],
        &["env=staging", "branch=a b"],
        &["env=staging", "branch=x\ny"],
        &["env=staging", "n=0"],
        &["env=staging", "n=11"],
        &["env=staging", "n=1.5"],
        &["env=staging", "docs=maybe"],
        &["env=staging", "colour=red"],
    ] {
        let done = run(bad).exits(125);
        let name = bad.last().unwrap().split('=').next().unwrap();
        let shown = done.errors();
        assert!(
            shown.contains(name) || shown.contains("env"),
            "{bad:?}: {shown}"
        );
    }
    assert_eq!(d.history().len(), before);
    assert_eq!(
        d.history()[1]["inputs"],
        json!({"branch": "a/b", "docs": "yes", "env": "production", "n": "10"})
    );
}

/// E5: whatever the daemon has open, the child has three descriptors.
#[test]
fn e5_the_child_has_stdin_stdout_and_stderr_only() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = ls -l /proc/$$/fd\n");
    // A shell keeps the script that it reads open itself, so this one is a binary.
    copy(Path::new("/bin/ls"), &site.path("root/ls"));
    chmod(&site.path("root/ls"), 0o755);
    site.configure("args = any\n[prog-app]\ncmd-run = ls /proc/$$/fd\n");
    // A descriptor that the daemon itself inherits.
    site.wrap([
        "sh",
        "-c",
        "exec 7</etc/passwd 8>>@S@/held; exec \"$@\"",
        "sh",
    ]);
    let d = site.start();
    assert_eq!(run(&d, "app"), "0\n1\n2\n");
    // `ls` opens the directory that it lists as 3; nothing else is there.
    let listed = d
        .ask(OWNER, ["RUN", "ls", "--", "-1", "/proc/self/fd"])
        .exits(0)
        .text();
    assert_eq!(listed, "0\n1\n2\n3\n");
}

/// E6: signals, umask and limits are reset, whatever the daemon was started with.
#[test]
fn e6_signals_umask_and_limits_are_reset() {
    let site = Site::new();
    site.configure(
        "[prog-app]\ncmd-run = umask; ulimit -c; ulimit -n; cat /proc/self/status\n\
         [prog-set]\numask = 027\nlimit-nofile = 99\nlimit-core = 0\ncmd-run = umask; ulimit -n\n",
    );
    site.wrap([
        "sh",
        "-c",
        "trap '' HUP INT QUIT PIPE USR1 TERM CHLD; umask 0; ulimit -S -n 512; ulimit -S -c unlimited 2>/dev/null; exec \"$@\"",
        "sh",
    ]);
    let d = site.start();
    let text = run(&d, "app");
    let mut lines = text.lines();
    assert_eq!(lines.next(), Some("0022"));
    assert_eq!(lines.next(), Some("0"));
    // The daemon raises its own limit; the child has what the daemon began with.
    assert_eq!(lines.next(), Some("512"));
    let s = status(&text);
    assert_eq!(
        (s["SigIgn"], s["SigBlk"]),
        ("0000000000000000", "0000000000000000")
    );
    assert_eq!(run(&d, "set"), "0027\n99\n");
}

/// E7: a session of its own, without a terminal, even for a client that has one.
#[test]
fn e7_a_child_never_has_the_clients_terminal() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = cat /proc/$$/stat; test -t 0 && echo tty; test -t 1 && echo tty; (: < /dev/tty) && echo tty; true\n");
    let d = site.start();
    let mut client = as_user(OWNER, "script");
    let line = format!("{} -c {} RUN app", d.bin().display(), d.config().display());
    client.args(["-qec", &line, "/dev/null"]);
    let text = finish(client).exits(0).text();
    let stat = text
        .lines()
        .find(|l| l.contains("(sh)"))
        .unwrap_or_else(|| panic!("{text}"));
    let fields: Vec<&str> = stat[stat.rfind(')').unwrap() + 2..]
        .split_whitespace()
        .collect();
    let (pid, group, session, terminal) = (
        stat.split(' ').next().unwrap(),
        fields[2],
        fields[3],
        fields[4],
    );
    assert_eq!((group, session, terminal), (pid, pid, "0"), "{stat}");
    assert!(!text.lines().any(|l| l.trim() == "tty"), "{text}");
    // The one who asks stands in a session of their own, too.
    assert_ne!(
        Process::of(std::process::id() as i32)
            .unwrap()
            .session
            .to_string(),
        session
    );
}

/// E8: a script that others could have written is not run, and the message says what to do.
#[test]
fn e8_a_script_that_others_could_write_is_refused_until_that_is_mended() {
    let site = Site::new();
    let app = site.script("app", "echo ran");
    let nested = site.script("team/app", "echo nested");
    let d = site.start();
    assert_eq!(run(&d, "app"), "ran\n");
    let team = nested.parent().unwrap().to_owned();
    let root = d.path("root");
    for (path, bad, good, program) in [
        (&app, 0o775, 0o755, "app"),
        (&app, 0o757, 0o755, "app"),
        (&team, 0o777, 0o755, "team/app"),
        (&root, 0o775, 0o755, "app"),
    ] {
        chmod(path, bad);
        let done = d.ask(OWNER, ["RUN", program]);
        assert_eq!(
            done.code(),
            Some(126),
            "{} {bad:o}: {done:?}",
            path.display()
        );
        let shown = done.errors();
        assert!(
            shown.contains(&path.display().to_string()) && shown.contains("chmod"),
            "{shown}"
        );
        let line = Plain::run(&d, OWNER, program).line();
        assert!(line.starts_with("ERROR "), "{line}");
        chmod(path, good);
        d.ask(OWNER, ["RUN", program]).exits(0);
    }
}

/// E8: a link is followed only where nobody else could have laid it.
#[test]
fn e8_a_link_into_a_directory_of_others_is_refused() {
    let site = Site::new();
    let d = site.start();
    let open = d.path("open");
    fs::create_dir(&open).unwrap();
    executable(&open.join("evil"), b"#!/bin/sh\necho evil\n");
    chmod(&open.join("evil"), 0o755);
    chmod(&open, 0o777);
    symlink(open.join("evil"), d.path("root/link")).unwrap();
    let done = d.ask(OWNER, ["RUN", "link"]);
    assert_eq!(done.code(), Some(126), "{done:?}");
    assert!(done.out.is_empty());
}

/// E8: so is a configuration that others could write, at start and at reload.
#[test]
fn e8_a_configuration_that_others_could_write_is_refused() {
    let site = Site::new();
    chmod(&site.config(), 0o666);
    let done = site.start_in_vain();
    assert_ne!(done.code(), Some(0));
    assert!(
        site.log().contains("deployer.cfg") || done.errors().contains("deployer.cfg"),
        "{done:?}"
    );
    chmod(&site.config(), 0o644);
    let d = site.start();
    chmod(&d.config(), 0o666);
    let done = d.ask(OWNER, ["-r"]);
    assert_eq!(done.code(), Some(1), "{done:?}");
    assert!(done.errors().contains("deployer.cfg"), "{done:?}");
}

/// E9: whatever keeps a program from being executed has its own message, and never an `OK` before it.
#[test]
fn e9_what_keeps_a_program_from_running_is_named() {
    let site = Site::new();
    for (name, text, mode) in [
        ("bare", "echo no shebang\n", 0o755),
        ("gone", "#!/no/such/interpreter\n", 0o755),
        ("plain", "#!/bin/sh\necho ran\n", 0o644),
        ("empty", "", 0o755),
    ] {
        executable(&site.path("root").join(name), text.as_bytes());
        chmod(&site.path("root").join(name), mode);
    }
    fs::create_dir(site.path("root/dir")).unwrap();
    site.configure("[prog-cwd]\ncwd = /no/such/place\ncmd-run = echo ran\n[prog-shell]\nshell = /no/such/shell\ncmd-run = echo ran\n");
    let d = site.start();
    for (name, codes, word) in [
        ("bare", &[126][..], "#!"),
        ("gone", &[126, 127], "interpreter"),
        ("plain", &[126], "xecut"),
        ("empty", &[126], ""),
        ("cwd", &[125, 126, 127], "/no/such/place"),
        ("shell", &[126, 127], "/no/such/shell"),
    ] {
        let done = d.ask(OWNER, ["RUN", name]);
        let code = done.code().unwrap_or(-1);
        assert!(
            codes.contains(&code) && done.out.is_empty(),
            "{name}: {done:?}"
        );
        assert!(done.errors().contains(word), "{name}: {}", done.errors());
        let mut plain = Plain::run(&d, OWNER, name);
        let line = plain.line();
        assert!(
            line.starts_with("ERROR ") && line.contains(word),
            "{name}: {line}"
        );
        assert!(plain.rest().is_empty());
    }
    // A program that is not there at all: refused, or on record as not found.
    let done = d.ask(OWNER, ["RUN", "none"]);
    assert!(matches!(done.code(), Some(125 | 127)), "{done:?}");
    for row in d.history() {
        assert_eq!(row["outcome"], "not-started", "{row}");
        assert!(
            row["detail"].as_str().is_some_and(|d| !d.is_empty()),
            "{row}"
        );
    }
}

/// E10: names that are none are refused, and nothing is looked up for them.
#[test]
fn e10_names_that_leave_the_root_or_are_none_are_refused() {
    let site = Site::new();
    site.script("app", "echo ran");
    site.script("../shared/out", "echo escaped");
    let d = site.start();
    let long = "x".repeat(5000);
    let names: Vec<&[u8]> = vec![
        b"../shared/out",
        b"app/../app",
        b"/bin/true",
        b"",
        b".",
        b"..",
        b"-app",
        b"app/",
        b"a\x00b",
        b"\xff\xfe",
        b"a\x1b[2Jb",
        b"app ",
        b" app",
        b"RUN",
        long.as_bytes(),
    ];
    for name in names {
        let mut line = b"RUN ".to_vec();
        line.extend(name);
        line.push(b'\n');
        let answer = answer_to(&d, OWNER, &line);
        assert!(answer.starts_with(b"ERROR "), "{name:?}: {answer:?}");
        assert_eq!(
            answer.iter().filter(|b| **b < 32).count(),
            1,
            "{name:?}: {answer:?}"
        );
    }
    assert!(d.history().is_empty());
    assert_eq!(run(&d, "app"), "ran\n");
}

/// A command that a shell would only execute is executed without one; what goes wrong is said by
/// the shell, with its exit status.
#[test]
fn a_plain_command_needs_no_shell_and_fails_as_with_one() {
    let site = Site::new();
    site.configure(
        "[prog-env]\ncwd = /usr\ncmd-run = /usr/bin/env\n\
         [prog-words]\ncmd-run = exec  /bin/echo a  b=c ./d\n\
         [prog-shell]\ncmd-run = /bin/echo \"$PWD\" a  b\n\
         [prog-parent]\ncmd-run = /bin/cat /proc/self/stat\n\
         [prog-missing]\ncmd-run = exec /no/such/program here\n\
         [prog-data]\ncmd-run = /etc/passwd\n",
    );
    let d = site.start();
    assert!(run(&d, "env").lines().any(|l| l == "PWD=/usr"));
    assert_eq!(run(&d, "words"), "a b=c ./d\n");
    assert_eq!(run(&d, "shell"), "/ a b\n");
    let parent = run(&d, "parent");
    let parent: i32 = parent.split(' ').nth(3).unwrap().parse().unwrap();
    assert!(
        [d.daemon_pid(), d.keeper_pid()].contains(&parent),
        "{parent}"
    );
    let missing = d.ask(OWNER, ["RUN", "missing"]).exits(127);
    let said = missing.text() + &missing.errors();
    assert!(said.contains("/no/such/program"), "{said}");
    d.ask(OWNER, ["RUN", "data"]).exits(126);
}
