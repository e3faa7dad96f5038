//! Terminals of programs: `tty = yes`, `console`, `ATTACH`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use deployer::sys::terminal::{Size, Terminal};

use crate::harness::{
    ALICE, BOB, BOT_UID, Daemon, OWNER, Process, Running, Site, User, descendants, finish, root,
    wait_for,
};

/// A person at a terminal of their own, with a client.
pub struct Person {
    terminal: Terminal,
    seen: Arc<Mutex<Vec<u8>>>,
    client: Option<Running>,
}

impl Person {
    /// Sits down before 30 lines of 100 characters and calls the client with these words.
    pub fn new(site: &Site, user: User, words: &[&str]) -> Self {
        Self::with(site.client(user, words), user)
    }

    fn with(inner: Command, user: User) -> Self {
        let size = Size {
            rows: 30,
            cols: 100,
        };
        let (terminal, process) = Terminal::open(Some(user.uid), size).unwrap();
        // A session of its own, as a login has: the kernel tells it of new sizes.
        let mut client = Command::new("setsid");
        client.args(["--ctty", "--wait"]).arg(inner.get_program());
        client.args(inner.get_args()).current_dir("/");
        client.env_remove("DEPLOYER_CONFFILE").env("TERM", "vt220");
        client.envs(inner.get_envs().filter_map(|(k, v)| Some((k, v?))));
        client
            .stdin(process.try_clone().unwrap())
            .stdout(process.try_clone().unwrap())
            .stderr(process);
        let client = Running::start_as_it_is(client);
        let seen = Arc::new(Mutex::new(Vec::new()));
        let screen = Arc::clone(&seen);
        rustix::io::ioctl_fionbio(&terminal, false).unwrap();
        let mut from = File::from(terminal.try_clone().unwrap());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = from.read(&mut buffer) {
                screen.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self {
            terminal,
            seen,
            client: Some(client),
        }
    }

    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen.lock().unwrap()).into_owned()
    }

    #[track_caller]
    pub fn sees(&self, text: &str) {
        wait_for(&format!("{text:?} on the terminal"), || {
            self.screen().contains(text).then_some(())
        });
    }

    fn types(&self, keys: &str) {
        let mut keyboard = File::from(self.terminal.try_clone().unwrap());
        keyboard.write_all(keys.as_bytes()).unwrap();
    }

    /// Whether the terminal hands on lines, and shows what is typed.
    fn is_cooked(&self) -> bool {
        use rustix::termios::LocalModes;
        let modes = rustix::termios::tcgetattr(&self.terminal)
            .unwrap()
            .local_modes;
        modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG)
    }

    /// Waits until the client has ended; its exit status.
    #[track_caller]
    pub fn leaves(mut self) -> i32 {
        let done = self.client.take().unwrap().done();
        assert!(self.is_cooked(), "the terminal is left as it was");
        done.code().unwrap_or(-1)
    }
}

fn site(program: &str) -> Daemon {
    let site = Site::new();
    let user = if root() { "user = games\n" } else { "" };
    site.configure(&format!(
        "allow-uid = {}, {}\n{user}[prog-app]\n{program}",
        ALICE.uid, BOB.uid
    ));
    site.start()
}

#[test]
fn a_program_with_tty_has_a_terminal_of_its_own() {
    root_only!(a_program_with_tty_has_a_terminal_of_its_own);
    let d = site(
        "tty = yes\ncmd-run = for fd in 0 1 2; do test -t $fd && echo fd $fd; done; \
         stat -Lc 'owner %u mode %a' /dev/stdin; stty size; echo kind $TERM; \
         ps -o tty= -p $$; tty; (: < /dev/tty) && echo controlling; read x; echo read $?\n",
    );
    // Whoever has no terminal gets the usual one, and nobody types.
    let text = d.ask(ALICE, ["RUN", "app"]).exits(0).text();
    for part in [
        "fd 0",
        "fd 1",
        "fd 2",
        &format!("owner {BOT_UID} mode 620"),
        "24 80",
        "kind dumb",
        "controlling",
        "read 1",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let named: Vec<&str> = text.lines().filter(|l| l.contains("pts/")).collect();
    assert_eq!(named.len(), 2, "{text}");
    assert!(named[1].ends_with(named[0].trim_end()), "{text}");
    // The log has what the terminal showed.
    let id = d.nth(1);
    assert_eq!(String::from_utf8_lossy(&d.output(id)), text);
    assert_eq!(d.ended(id)["outcome"], "succeeded");
}

#[test]
fn what_is_piped_in_is_typed_and_ends() {
    let site = Site::new();
    site.configure("[prog-app]\ntty-run = yes\ncmd-run = cat; cat; echo over\n");
    let d = site.start();
    let done = d.ask_with(OWNER, ["RUN", "app"], b"one\ntwo").exits(0);
    // Once as it is echoed, once as it is written.
    assert_eq!(done.text().matches("one").count(), 2, "{done:?}");
    assert_eq!(done.text().matches("two").count(), 2, "{done:?}");
    assert!(done.text().ends_with("over\r\n"), "{done:?}");
}

#[test]
fn plain_clients_type_too() {
    let site = Site::new();
    site.configure("[prog-app]\ntty = yes\ncmd-run = read x; echo got $x; read x; echo $?\n");
    let d = site.start();
    let mut nc = Command::new("nc");
    nc.args(["-N", "-U"]).arg(d.socket()).stdin(Stdio::piped());
    let mut nc = Running::start(nc);
    nc.stdin().write_all(b"RUN app\nhello\n").unwrap();
    let text = nc.done().exits(0).text();
    assert!(text.starts_with("OK\n"), "{text}");
    assert!(
        text.contains("got hello") && text.ends_with("1\r\n"),
        "{text}"
    );
}

#[test]
fn a_console_has_the_size_and_the_kind_of_the_persons_terminal() {
    let d = site("tty-console = yes\ncmd-console = echo $TERM; PS1='ready> ' exec sh -i\n");
    let p = Person::new(&d, OWNER, &["app", "console"]);
    p.sees("vt220");
    p.sees("ready> ");
    assert!(!p.is_cooked(), "keys go to the program as they are");
    p.types("stty size; echo first\r");
    p.sees("30 100\r\nfirst");
    let larger = Size {
        rows: 41,
        cols: 132,
    };
    p.terminal.resize(larger).unwrap();
    wait_for("the new size to reach the program", || {
        p.types("stty size\r");
        p.screen().contains("41 132").then_some(())
    });
    p.types("exit 7\r");
    assert_eq!(p.leaves(), 7);
    let row = d.ended(d.nth(1));
    assert_eq!(
        (&row["action"], &row["exit_code"]),
        (&"console".into(), &7.into())
    );
}

#[test]
fn ctrl_c_reaches_the_program_and_not_the_client() {
    let d = site(
        "tty = yes\ncmd-console = trap 'echo interrupted' INT; echo begun; \
         while ! read line; do :; done; echo line $line\n",
    );
    let p = Person::new(&d, OWNER, &["app", "console"]);
    p.sees("begun");
    p.types("\x03");
    p.sees("interrupted");
    p.types("x\r");
    p.sees("line x");
    assert_eq!(p.leaves(), 0);
}

#[test]
fn a_console_can_be_left_and_come_back_to() {
    root_only!(a_console_can_be_left_and_come_back_to);
    let d = site("tty = yes\ncmd-console = PS1='ready> ' exec sh -i\n");
    let p = Person::new(&d, ALICE, &["app", "console"]);
    p.sees("ready> ");
    p.types("x=kept\r\x1d");
    p.sees("goes on. `deployer ATTACH");
    let seen = p.screen();
    assert_eq!(p.leaves(), 0, "{seen}");
    let id = d.nth(1).to_string();
    assert_eq!(d.row(d.nth(1))["outcome"], "running");

    // Somebody else may use the console, but not this one.
    let other = d.ask(BOB, ["ATTACH", &id]).exits(125);
    assert!(
        other.errors().contains("who alone may type into it"),
        "{other:?}"
    );

    let p = Person::new(&d, ALICE, &["ATTACH", &id]);
    wait_for("an answer", || {
        p.types("echo $x\r");
        p.screen().contains("kept\r\n").then_some(())
    });
    p.types("exit 4\r");
    assert_eq!(p.leaves(), 4);
    let over = d.ask(ALICE, ["ATTACH", &id]).exits(125);
    assert!(over.errors().contains("is over"), "{over:?}");
}

#[test]
fn the_key_that_leaves_can_be_another_one_or_none() {
    let d = site("tty = yes\ncmd-console = PS1='ready> ' exec sh -i\n");
    let mut client = d.client(OWNER, ["app", "console"]);
    client.env("DEPLOYER_DETACH_KEY", "F12");
    let (_terminal, process) = Terminal::open(None, Size::default()).unwrap();
    client.stdin(process);
    let refused = finish(client).exits(125);
    assert!(
        refused.errors().contains("DEPLOYER_DETACH_KEY"),
        "{refused:?}"
    );
    assert!(d.history().is_empty(), "nothing was asked for");

    let mut client = d.client(OWNER, ["app", "console"]);
    client.env("DEPLOYER_DETACH_KEY", "^p");
    let p = Person::with(client, OWNER);
    p.sees("ready> ");
    p.types("\x10");
    p.sees("goes on. `deployer ATTACH");
    assert_eq!(p.leaves(), 0);
    // A shell at which somebody sat does not have to be killed.
    d.ask(OWNER, ["CANCEL", &d.nth(1).to_string()]).exits(0);
    assert_eq!(d.ended(d.nth(1))["signal"], "SIGHUP");
}

#[test]
fn consoles_wait_for_each_other_and_none_is_covered() {
    let d = site("tty = yes\ncmd-console = PS1='ready> ' exec sh -i\n");
    let first = Person::new(&d, OWNER, &["app", "console"]);
    first.sees("ready> ");
    let mut others = Vec::new();
    for _ in 0..2 {
        let p = Person::new(&d, OWNER, &["app", "console"]);
        p.sees("waits for run");
        others.push(p);
    }
    first.types("exit 1\r");
    assert_eq!(first.leaves(), 1);
    let mut statuses: Vec<i32> = Vec::new();
    for p in others {
        wait_for("the next one's turn", || {
            p.screen().contains("ready> ").then_some(())
        });
        p.types(&format!("exit {}\r", 2 + statuses.len()));
        statuses.push(p.leaves());
    }
    assert_eq!(statuses, [2, 3]);
    assert!(d.history().iter().all(|r| r["covered_by"].is_null()));
}

#[test]
fn a_console_goes_on_when_the_daemon_is_killed() {
    let d = site("tty = yes\ncmd-console = PS1='ready> ' exec sh -i\n");
    let p = Person::new(&d, OWNER, &["app", "console"]);
    p.sees("ready> ");
    p.types("x=kept\r");
    p.sees("x=kept\r\nready> ");
    d.kill_daemon();
    p.sees("trying to find it again");
    d.await_ready();
    wait_for("an answer", || {
        p.types("echo $x $((20 + 3))\r");
        p.screen().contains("kept 23\r\n").then_some(())
    });
    p.types("exit 5\r");
    assert_eq!(p.leaves(), 5);
}

#[test]
fn a_supervised_program_is_typed_into_by_whoever_may_use_its_console() {
    root_only!(a_supervised_program_is_typed_into_by_whoever_may_use_its_console);
    let d = site(&format!(
        "tty = yes\ncmd-start = echo up; while read line; do echo \"heard $line\"; done\n\
         uid-console = {}\n",
        ALICE.uid
    ));
    let down = d.ask(ALICE, ["app", "console"]).exits(125);
    assert!(down.errors().contains("app is not running"), "{down:?}");
    d.ask(ALICE, ["app", "start"]).exits(0);
    let refused = d.ask(BOB, ["app", "console"]).exits(125);
    assert!(refused.errors().contains("not allowed"), "{refused:?}");
    let id = d.nth(1).to_string();
    let refused = d.ask(BOB, ["ATTACH", &id]).exits(125);
    assert!(
        refused.errors().contains("not use its console"),
        "{refused:?}"
    );

    let p = Person::new(&d, ALICE, &["app", "console"]);
    wait_for("an answer", || {
        p.types("hello\r");
        p.screen().contains("heard hello").then_some(())
    });
    assert!(!p.screen().contains("up\r\n"), "only what is new is shown");
    p.types("\x1d");
    assert_eq!(p.leaves(), 0);
    // What somebody pipes in and its end are not the end of the program's input.
    let mut piped = d.client(ALICE, ["ATTACH", "app"]);
    piped.stdin(Stdio::piped());
    let mut piped = Running::start(piped);
    piped.stdin().write_all(b"from a script\n").unwrap();
    wait_for("it in the log", || {
        let log = String::from_utf8_lossy(&d.output(d.nth(1))).into_owned();
        log.contains("heard from a script").then_some(())
    });
    assert_eq!(d.ask(ALICE, ["app", "status"]).exits(0).text(), "running\n");
    d.ask(ALICE, ["app", "stop"]).exits(0);
    piped.done();
}

#[test]
fn a_run_without_a_terminal_has_nothing_to_come_back_to() {
    let d = site("cmd-run = exec sleep 1000\n");
    let run = d.background(OWNER, ["RUN", "app"]);
    let id = d.nth(1).to_string();
    let refused = d.ask(OWNER, ["ATTACH", &id]).exits(125);
    assert!(refused.errors().contains("tty = yes"), "{refused:?}");
    d.ask(OWNER, ["CANCEL", &id]).exits(0);
    run.done();
}

/// The names of all threads of a process and of what it has started.
fn threads(pid: i32) -> Vec<String> {
    let mut names = Vec::new();
    for process in Process::of(pid).into_iter().chain(descendants(pid)) {
        let tasks = fs::read_dir(format!("/proc/{}/task", process.pid));
        for task in tasks.into_iter().flatten().flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            names.push(name.trim().to_owned());
        }
    }
    names
}

/// Ctrl-C at a client whose run has no terminal leaves the run alone, and says so.
#[test]
fn a_run_without_a_terminal_is_left_by_ctrl_c() {
    let d = site("cmd-run = echo begun; exec sleep 1000\n");
    for _ in 0..5 {
        let p = Person::new(&d, OWNER, &["RUN", "app"]);
        p.sees("begun");
        // A client that has just begun dies without a word.
        wait_for("the client to look out for it", || {
            let names = threads(p.client.as_ref()?.pid());
            names.iter().any(|t| t == "signals").then_some(())
        });
        p.types("\x03");
        p.sees("left; the run goes on");
        p.leaves();
        let id = d.history().last().unwrap()["id"].as_u64().unwrap();
        d.ask(OWNER, ["CANCEL", &id.to_string()]).exits(0);
        d.ended(id);
    }
}
