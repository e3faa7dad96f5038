//! A daemon in a temporary directory, and people who ask it.
//!
//! [`Site`] is the directory: configuration, scripts, a place where scripts leave traces.
//! [`Daemon`] is a site whose daemon runs; dropping it ends all that it started, and shows its
//! log if the test fails. Nothing here sleeps but [`wait_until`], which waits for something that
//! can be observed, up to a deadline.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{Read, Write};
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use serde_json::Value;
use tempfile::TempDir;

/// How long anything may take that takes a moment. Generous: the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// Whether the tests may become other users.
pub fn root() -> bool {
    rustix::process::geteuid().is_root()
}

/// True as root. Otherwise says that the test is skipped, or fails where root was promised.
pub fn has_root(test: &str) -> bool {
    if root() {
        return true;
    }
    let promised = std::env::var_os("DEPLOYER_TEST_ROOT").is_some_and(|v| v == "1");
    assert!(
        !promised,
        "{test} needs root, and DEPLOYER_TEST_ROOT=1 promises it"
    );
    // Not by a macro: the test runner would hide it.
    let _ = writeln!(std::io::stderr(), "skipped: {test} needs root");
    false
}

/// Leaves a test that needs root and does not have it.
macro_rules! root_only {
    ($name:ident) => {
        if !crate::harness::has_root(stringify!($name)) {
            return;
        }
    };
}

/// Polls until `done` says something, for at most [`PATIENCE`].
#[track_caller]
pub fn wait_for<T>(what: &str, done: impl FnMut() -> Option<T>) -> T {
    wait_until(PATIENCE, what, done)
}

/// Polls until `done` says something, up to a deadline.
#[track_caller]
pub fn wait_until<T>(within: Duration, what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + within;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "waited {within:?} in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Somebody who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    pub groups: &'static [u32],
}

/// Root, or whoever runs the tests.
pub const OWNER: User = User {
    uid: 0,
    gid: 0,
    groups: &[],
};
/// Listed by uid. Nobody's account: a bare number.
pub const ALICE: User = User {
    uid: 54_321,
    gid: 54_321,
    groups: &[],
};
/// A member of the group games, which every Debian has.
pub const BOB: User = User {
    uid: 54_322,
    gid: 54_322,
    groups: &[60],
};
/// Nobody has heard of her.
pub const CAROL: User = User {
    uid: 54_323,
    gid: 54_323,
    groups: &[54_399],
};
/// The account that programs run as, and its group.
pub const BOT: &str = "games";
pub const BOT_UID: u32 = 5;
pub const BOT_GID: u32 = 60;

/// A command as that user, in a clean environment.
pub fn as_user(user: User, program: impl AsRef<OsStr>) -> Command {
    let mut command = if root() && user != OWNER {
        let mut c = Command::new("setpriv");
        c.arg("--reuid")
            .arg(user.uid.to_string())
            .arg("--regid")
            .arg(user.gid.to_string());
        if user.groups.is_empty() {
            c.arg("--clear-groups");
        } else {
            let groups: Vec<_> = user.groups.iter().map(u32::to_string).collect();
            c.arg("--groups").arg(groups.join(","));
        }
        c.arg("--").arg(program);
        c
    } else {
        Command::new(program)
    };
    command
        .current_dir("/")
        .env_remove("DEPLOYER_CONFFILE")
        .stdin(Stdio::null());
    command
}

/// A command that has ended.
pub struct Done {
    pub status: ExitStatus,
    pub out: Vec<u8>,
    pub err: Vec<u8>,
}

impl fmt::Debug for Done {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shorten = |text: String| text.chars().take(4000).collect::<String>();
        write!(
            f,
            "{}\nstdout: {}\nstderr: {}",
            self.status,
            shorten(self.text()),
            shorten(self.errors())
        )
    }
}

impl Done {
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    pub fn signal(&self) -> Option<i32> {
        self.status.signal()
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.out).into_owned()
    }

    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.err).into_owned()
    }

    /// It must have ended with this status.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self:?}");
        self
    }
}

/// A command that runs, with its output being read. Ended when it is dropped.
pub struct Running {
    child: Option<Child>,
    out: Option<JoinHandle<Vec<u8>>>,
    err: Option<JoinHandle<Vec<u8>>>,
    what: String,
}

impl Running {
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Self::start_as_it_is(command)
    }

    /// The same for a command that has a place for its output.
    #[track_caller]
    pub fn start_as_it_is(mut command: Command) -> Self {
        let what = format!("{command:?}");
        let mut child = command
            .spawn()
            .unwrap_or_else(|e| panic!("cannot start {what}: {e}"));
        let (out, err) = (child.stdout.take(), child.stderr.take());
        Self {
            out: out.map(collect),
            err: err.map(collect),
            child: Some(child),
            what,
        }
    }

    fn child(&mut self) -> &mut Child {
        self.child
            .as_mut()
            .expect("it is taken out only at the end")
    }

    pub fn pid(&self) -> i32 {
        self.child
            .as_ref()
            .expect("it is taken out only at the end")
            .id() as i32
    }

    /// Its standard input, if that is a pipe.
    pub fn stdin(&mut self) -> impl Write + use<> {
        self.child().stdin.take().expect("stdin is a pipe")
    }

    pub fn is_over(&mut self) -> bool {
        self.child()
            .try_wait()
            .expect("a child can be asked")
            .is_some()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn done(mut self) -> Done {
        drop(self.child().stdin.take());
        let what = self.what.clone();
        let status = wait_for(&what, || {
            self.child().try_wait().expect("a child can be asked")
        });
        self.child = None;
        let read = |reader: Option<JoinHandle<Vec<u8>>>| {
            let Some(reader) = reader else {
                return Vec::new();
            };
            wait_for("the end of a command's output", || {
                reader.is_finished().then_some(())
            });
            reader.join().expect("reading does not panic")
        };
        let (out, err) = (read(self.out.take()), read(self.err.take()));
        Done { status, out, err }
    }
}

fn collect(mut from: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Runs a command to its end.
#[track_caller]
pub fn finish(command: Command) -> Done {
    Running::start(command).done()
}

/// A clock for one daemon and its children, so many seconds from the machine's.
const CLOCK: &str = r#"
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *now)
{
    int result = syscall(SYS_clock_gettime, clock, now);
    char offset[32] = "";
    int fd = clock == CLOCK_REALTIME ? open("@S@/clock", O_RDONLY | O_CLOEXEC) : -1;
    if (fd >= 0) {
        if (read(fd, offset, sizeof offset - 1) > 0)
            now->tv_sec += atol(offset);
        close(fd);
    }
    return result;
}
"#;

/// The directory of one test.
pub struct Site {
    /// Runs before the daemon's binary, in its place.
    wrap: Mutex<Vec<String>>,
    /// Further options of the daemon.
    options: Mutex<Vec<String>>,
    env: Mutex<BTreeMap<String, String>>,
    stdin: Mutex<Option<OwnedFd>>,
    dir: TempDir,
}

impl Site {
    /// A directory with an empty configuration.
    pub fn new() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("deployer-")
            .tempdir()
            .expect("a temporary directory can be made");
        let site = Self {
            wrap: Mutex::default(),
            options: Mutex::default(),
            env: Mutex::default(),
            stdin: Mutex::default(),
            dir,
        };
        chmod(site.dir.path(), 0o755);
        for (name, mode) in [("root", 0o755), ("shared", 0o1777)] {
            fs::create_dir(site.path(name)).expect("it is our directory");
            chmod(&site.path(name), mode);
        }
        let built = Path::new(env!("CARGO_BIN_EXE_deployer"));
        if fs::hard_link(built, site.bin()).is_err() {
            copy(built, &site.bin());
        }
        site.configure("");
        site
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The binary, at a place that every user can reach.
    pub fn bin(&self) -> PathBuf {
        self.path("deployer")
    }

    pub fn config(&self) -> PathBuf {
        self.path("deployer.cfg")
    }

    pub fn socket(&self) -> PathBuf {
        self.path("socket")
    }

    /// Replaces `@S@` by the directory where scripts may write, `@D@` by the site's.
    pub fn expand(&self, text: &str) -> String {
        let shared = self.path("shared");
        text.replace("@S@", &shared.to_string_lossy())
            .replace("@D@", &self.dir.path().to_string_lossy())
    }

    /// Writes the configuration: the site's own places, then `text`. Programs run as [`BOT`] if
    /// the tests run as root. The file is replaced by rename, as editors do.
    pub fn configure(&self, text: &str) {
        let user = if root() {
            format!("user = {BOT}\n")
        } else {
            String::new()
        };
        self.configure_all(&format!(
            "socket-path = @D@/socket\nroot = @D@/root\nstate-dir = @D@/state\nlog-dir = @D@/log\n{user}{text}"
        ));
    }

    /// Writes the whole configuration.
    pub fn configure_all(&self, text: &str) {
        let new = self.path("deployer.cfg.new");
        fs::write(&new, self.expand(text)).expect("it is our directory");
        chmod(&new, 0o644);
        fs::rename(&new, self.config()).expect("it is our directory");
    }

    /// Puts a shell script into the root directory.
    pub fn script(&self, name: &str, body: &str) -> PathBuf {
        let path = self.path("root").join(name);
        let parent = path.parent().expect("it is below the root directory");
        if !parent.exists() {
            fs::create_dir_all(parent).expect("it is our directory");
            chmod(parent, 0o755);
        }
        // By rename: the old one may be running.
        let new = path.with_extension("new");
        let text = format!("#!/bin/sh\n{}\n", self.expand(body));
        executable(&new, text.as_bytes());
        fs::rename(&new, &path).expect("it is our directory");
        path
    }

    /// The lines that scripts have appended to `@S@/trace`.
    pub fn trace(&self) -> Vec<String> {
        let text = fs::read_to_string(self.path("shared/trace")).unwrap_or_default();
        // A last line without its end is still being written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// Waits until the trace has this line so many times.
    #[track_caller]
    pub fn await_trace(&self, line: &str, times: usize) {
        wait_for(&format!("{times} lines {line:?} in the trace"), || {
            (self.trace().iter().filter(|l| *l == line).count() >= times).then_some(())
        });
    }

    /// A place where scripts wait: `read _ < @S@/NAME`.
    pub fn gate(&self, name: &str) -> Gate {
        Gate::new(&self.path("shared").join(name))
    }

    /// The daemon is started by this command, which ends in the daemon's own words.
    pub fn wrap<S: AsRef<str>>(&self, words: impl IntoIterator<Item = S>) {
        *held(&self.wrap) = words.into_iter().map(|w| self.expand(w.as_ref())).collect();
    }

    /// An option for the daemon.
    pub fn option(&self, word: &str) {
        held(&self.options).push(self.expand(word));
    }

    /// A variable for the daemon.
    pub fn env(&self, name: &str, value: &str) {
        held(&self.env).insert(name.into(), self.expand(value));
    }

    /// Gives the daemon a clock of its own: what is written to the file is how many seconds it is
    /// from the machine's. Needs root.
    pub fn own_clock(&self) -> PathBuf {
        let (source, library) = (self.path("clock.c"), self.path("clock.so"));
        fs::write(&source, self.expand(CLOCK)).expect("it is our directory");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"])
            .args([&library, &source]);
        finish(cc).exits(0);
        fs::create_dir(self.path("etc")).expect("it is our directory");
        // The daemon takes the environment away from its parts, so it has an /etc of its own.
        self.wrap([
            "unshare",
            "-m",
            "sh",
            "-c",
            "cp -a /etc/. @D@/etc && echo @D@/clock.so > @D@/etc/ld.so.preload && \
             mount --bind @D@/etc /etc && exec \"$@\"",
            "sh",
        ]);
        self.path("shared/clock")
    }

    /// What the command that starts the daemon has as its standard input.
    pub fn stdin(&self, fd: OwnedFd) {
        *held(&self.stdin) = Some(fd);
    }

    /// The client, not yet started.
    pub fn client<S: AsRef<OsStr>>(
        &self,
        user: User,
        args: impl IntoIterator<Item = S>,
    ) -> Command {
        let mut command = as_user(user, self.bin());
        command.arg("-c").arg(self.config()).args(args);
        command
    }

    /// Asks and waits for the end.
    #[track_caller]
    pub fn ask<S: AsRef<OsStr>>(&self, user: User, args: impl IntoIterator<Item = S>) -> Done {
        finish(self.client(user, args))
    }

    /// Asks with something on stdin.
    #[track_caller]
    pub fn ask_with<S: AsRef<OsStr>>(
        &self,
        user: User,
        args: impl IntoIterator<Item = S>,
        input: &[u8],
    ) -> Done {
        let mut client = self.client(user, args);
        client.stdin(Stdio::piped());
        let mut running = Running::start(client);
        let mut stdin = running.stdin();
        let input = input.to_vec();
        let feeder = thread::spawn(move || drop(stdin.write_all(&input)));
        let done = running.done();
        feeder.join().expect("writing does not panic");
        done
    }

    /// Starts a client in the background.
    #[track_caller]
    pub fn background<S: AsRef<OsStr>>(
        &self,
        user: User,
        args: impl IntoIterator<Item = S>,
    ) -> Running {
        Running::start(self.client(user, args))
    }

    /// A request that nobody waits for; its number.
    #[track_caller]
    pub fn detach(&self, program: &str) -> u64 {
        let done = self.ask(OWNER, ["RUN", program, "--detach"]).exits(0);
        done.text()
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("no number: {done:?}"))
    }

    /// The whole history, oldest first.
    #[track_caller]
    pub fn history(&self) -> Vec<Value> {
        self.history_of(OWNER, &[])
    }

    #[track_caller]
    pub fn history_of(&self, user: User, words: &[&str]) -> Vec<Value> {
        let mut args = vec!["HISTORY", "--json"];
        args.extend(words);
        let done = self.ask(user, args).exits(0);
        done.text()
            .lines()
            .map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("{l}: {e}")))
            .collect()
    }

    /// One row.
    #[track_caller]
    pub fn row(&self, id: u64) -> Value {
        let rows = self.history_of(OWNER, &[&id.to_string()]);
        assert_eq!(rows.len(), 1, "rows of {id}: {rows:?}");
        rows[0].clone()
    }

    /// The number of the so-manieth request, from 1. (A request that was repeated after a crash has
    /// used up a number more: numbers may have gaps.)
    #[track_caller]
    pub fn nth(&self, n: usize) -> u64 {
        wait_for(&format!("request {n} is on record"), || {
            self.history().get(n - 1)?["id"].as_u64()
        })
    }

    /// Waits for a run's end; its row.
    #[track_caller]
    pub fn ended(&self, id: u64) -> Value {
        wait_for(&format!("the end of run {id}"), || {
            let row = self.row(id);
            (!matches!(row["outcome"].as_str(), Some("waiting" | "running"))).then_some(row)
        })
    }

    /// What `LOGS ID` prints on stdout.
    #[track_caller]
    pub fn output(&self, id: u64) -> Vec<u8> {
        self.ask(OWNER, ["LOGS", &id.to_string()]).exits(0).out
    }

    /// The daemon's command, not yet started.
    fn daemon(&self) -> Command {
        let wrap = held(&self.wrap);
        let mut command = match wrap.split_first() {
            None => Command::new(self.bin()),
            Some((first, rest)) => {
                let mut c = Command::new(first);
                c.args(rest).arg(self.bin());
                c
            }
        };
        command
            .args(["-d", "-f", "-L", "debug", "-c"])
            .arg(self.config())
            .args(held(&self.options).iter());
        command.envs(held(&self.env).iter());
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path("daemon.log"));
        let log = log.expect("it is our directory");
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .stderr(log.try_clone().expect("it can be"))
            .stdout(log);
        if let Some(fd) = held(&self.stdin).take() {
            command.stdin(fd);
        }
        command
    }

    /// Where the daemon makes control groups, if this system has any; its name for the directory
    /// is a hash of its state directory.
    pub fn control_groups(&self) -> Option<PathBuf> {
        let state = self.path("state");
        let mut hasher = DefaultHasher::new();
        state.canonicalize().unwrap_or(state).hash(&mut hasher);
        let ours = control_group(std::process::id() as i32)?;
        Some(ours.join(format!("deployer-{:016x}", hasher.finish())))
    }

    /// What the daemon has said.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.path("daemon.log")).unwrap_or_default()).into_owned()
    }

    /// Starts the daemon and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let keeper = self
            .daemon()
            .spawn()
            .expect("the daemon's binary can be started");
        let daemon = Daemon {
            keeper: Mutex::new(Some(keeper)),
            strays: Mutex::default(),
            site: self,
        };
        daemon.await_ready();
        daemon
    }

    /// Starts the daemon as `-d` alone does: it has gone to the background when this returns.
    #[track_caller]
    pub fn start_in_background(self) -> Daemon {
        let pid_file = self.path("deployer.pid");
        let mut command = Command::new(self.bin());
        command
            .args(["-d", "-L", "debug", "-c"])
            .arg(self.config())
            .arg("-P")
            .arg(&pid_file);
        command
            .arg("-l")
            .arg(self.path("daemon.log"))
            .args(held(&self.options).iter())
            .envs(held(&self.env).iter());
        command.stdin(Stdio::null());
        finish(command).exits(0);
        let pid = fs::read_to_string(&pid_file)
            .ok()
            .and_then(|p| p.trim().parse().ok())
            .expect("a pid file with a pid");
        let keeper = Process::of(pid).expect("the keeper lives");
        Daemon {
            keeper: Mutex::default(),
            strays: Mutex::new(vec![keeper]),
            site: self,
        }
    }

    /// A daemon that must not come up: waits for its end.
    #[track_caller]
    pub fn start_in_vain(&self) -> Done {
        let mut command = self.daemon();
        command.stdin(Stdio::null());
        finish(command)
    }
}

/// What is in it, whoever panicked meanwhile.
fn held<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See [`Site::gate`]. Whoever waits when it is dropped goes on.
pub struct Gate(File);

impl Gate {
    fn new(path: &Path) -> Self {
        let mode = rustix::fs::Mode::from_raw_mode(0o666);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0)
            .expect("it is our directory");
        chmod(path, 0o666);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(path);
        Self(file.expect("it is our fifo"))
    }

    /// Lets so many pass, now or later.
    pub fn open(&self, times: usize) {
        (&self.0)
            .write_all(&vec![b'\n'; times])
            .expect("a fifo takes a few bytes");
    }
}

/// Copies a file, by another process: a descriptor that is open for writing here would be
/// inherited by whatever another test starts at this moment, and keep the copy from being executed.
pub fn copy(from: &Path, to: &Path) {
    let mut cp = Command::new("cp");
    cp.arg(from).arg(to);
    finish(cp).exits(0);
}

/// Makes a file that can be executed.
pub fn executable(path: &Path, bytes: &[u8]) {
    let text = path.with_extension("text");
    fs::write(&text, bytes).expect("it is our directory");
    copy(&text, path);
    chmod(path, 0o755);
    fs::remove_file(text).expect("it is our directory");
}

pub fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .unwrap_or_else(|e| panic!("chmod {}: {e}", path.display()));
}

/// A running daemon.
pub struct Daemon {
    keeper: Mutex<Option<Child>>,
    /// Processes that may have outlived a keeper.
    strays: Mutex<Vec<Process>>,
    site: Site,
}

impl Deref for Daemon {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Daemon {
    /// Waits until the daemon answers.
    #[track_caller]
    pub fn await_ready(&self) {
        wait_for("the daemon serves", || {
            if let Some(status) = self.ended_by_itself() {
                panic!("the daemon ended ({status}):\n{}", self.log());
            }
            (self.ask(OWNER, ["-t"]).code() == Some(0)).then_some(())
        });
    }

    /// How the keeper ended, if it has.
    pub fn ended_by_itself(&self) -> Option<ExitStatus> {
        held(&self.keeper)
            .as_mut()?
            .try_wait()
            .expect("a child can be asked")
    }

    pub fn keeper_pid(&self) -> i32 {
        match held(&self.keeper).as_ref() {
            Some(child) => child.id() as i32,
            // It went to the background.
            None => held(&self.strays).first().expect("there is a keeper").pid,
        }
    }

    /// The daemon's pid, if there is one just now.
    ///
    /// What becomes a run is the same program until it executes another, and falls to the keeper
    /// if its daemon dies before that; it has the name of the thread that made it.
    pub fn daemon_pid_now(&self) -> Option<i32> {
        let keeper = self.keeper_pid();
        let is_daemon = |p: &Process| {
            let read = |what| fs::read_to_string(format!("/proc/{}/{what}", p.pid));
            p.parent == keeper
                && p.state != 'Z'
                && is_binary(p.pid, &self.bin())
                && matches!(read("comm").unwrap_or_default().trim(), "deployer" | "exe")
                // A worker or gateway becomes a child of the keeper when the daemon dies.
                && !["--role=source", "--role=web"]
                    .iter()
                    .any(|role| read("cmdline").unwrap_or_default().contains(role))
        };
        processes().into_iter().find(is_daemon).map(|p| p.pid)
    }

    /// The daemon's pid.
    #[track_caller]
    pub fn daemon_pid(&self) -> i32 {
        wait_for("there is a daemon", || self.daemon_pid_now())
    }

    /// Kills the daemon; its keeper starts another.
    #[track_caller]
    pub fn kill_daemon(&self) -> i32 {
        let pid = self.daemon_pid();
        kill(pid, Signal::KILL);
        wait_for("the daemon is dead", || {
            (self.daemon_pid_now() != Some(pid)).then_some(())
        });
        pid
    }

    /// Kills the keeper, and waits for that.
    pub fn kill_keeper(&self) {
        self.remember_strays();
        let mut keeper = held(&self.keeper).take().expect("there is a keeper");
        keeper.kill().expect("it is our child");
        keeper.wait().expect("it is our child");
    }

    /// Kills keeper and daemon so that neither sees the other's end.
    pub fn kill_both(&self) {
        let (keeper, daemon) = (self.keeper_pid(), self.daemon_pid());
        kill(keeper, Signal::STOP);
        self.remember_strays();
        kill(daemon, Signal::KILL);
        self.kill_keeper();
        wait_for("the daemon is dead", || (!alive(daemon)).then_some(()));
    }

    fn remember_strays(&self) {
        let keeper = self.keeper_pid();
        held(&self.strays).extend(descendants(keeper));
    }

    /// Starts a keeper again after the former one has gone.
    #[track_caller]
    pub fn start_again(&self) {
        self.start_without_waiting();
        self.await_ready();
    }

    pub fn start_without_waiting(&self) {
        let child = self
            .site
            .daemon()
            .spawn()
            .expect("the daemon's binary can be started");
        assert!(
            held(&self.keeper).replace(child).is_none(),
            "there is a keeper already"
        );
    }

    /// Takes a keeper that was started by hand into care.
    pub fn adopt(&self, pid: i32) {
        held(&self.strays).extend(Process::of(pid));
    }

    /// Waits until every process that may have outlived a keeper is gone.
    #[track_caller]
    pub fn await_strays(&self) {
        let strays = held(&self.strays).clone();
        wait_for("nothing of the former keeper is left", || {
            strays.iter().all(|p| !p.lives()).then_some(())
        });
    }

    /// Stops the daemon politely and waits for its end.
    #[track_caller]
    pub fn stop(&self) -> ExitStatus {
        self.remember_strays();
        self.ask(OWNER, ["-s"]).exits(0);
        self.await_end()
    }

    /// Waits for the end of the keeper.
    #[track_caller]
    pub fn await_end(&self) -> ExitStatus {
        let mut keeper = held(&self.keeper).take().expect("there is a keeper");
        wait_for("the end of the keeper", || {
            keeper.try_wait().expect("it is our child")
        })
    }

    /// All that descends from the keeper, but the daemon itself.
    pub fn others(&self) -> Vec<Process> {
        let daemon = self.daemon_pid_now();
        let mut all = descendants(self.keeper_pid());
        all.retain(|p| Some(p.pid) != daemon && p.state != 'Z');
        all
    }

    /// How many descriptors the daemon has open.
    pub fn descriptors(&self) -> usize {
        self.open_files().len()
    }

    /// What the daemon has open, but for the history, which keeps a few readers ready.
    pub fn open_files(&self) -> Vec<String> {
        let entries = fs::read_dir(format!("/proc/{}/fd", self.daemon_pid()))
            .into_iter()
            .flatten()
            .flatten();
        let target =
            |e: fs::DirEntry| Some(fs::read_link(e.path()).ok()?.to_string_lossy().into_owned());
        let history = self.path("state/runs.db");
        entries
            .filter_map(target)
            .filter(|t| !t.starts_with(&*history.to_string_lossy()))
            .collect()
    }

    /// Waits until the daemon has no more open than before.
    #[track_caller]
    pub fn await_descriptors(&self, before: usize) {
        let end = Instant::now() + PATIENCE;
        wait_until(PATIENCE * 2, "no descriptor leaked", || {
            let now = self.open_files();
            assert!(
                now.len() <= before || Instant::now() < end,
                "{before} were open, now {now:#?}"
            );
            (now.len() <= before).then_some(())
        });
    }

    /// A value of `/proc/PID/status` of the daemon, in kB.
    pub fn memory(&self, key: &str) -> u64 {
        let status =
            fs::read_to_string(format!("/proc/{}/status", self.daemon_pid())).unwrap_or_default();
        let line = status
            .lines()
            .find(|l| l.starts_with(key))
            .unwrap_or_default();
        line.split_whitespace()
            .nth(1)
            .and_then(|n| n.parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut keeper) = held(&self.keeper).take() {
            end_tree(keeper.id() as i32);
            let _ = keeper.wait();
        }
        for stray in held(&self.strays).drain(..).filter(Process::lives) {
            end_tree(stray.pid);
        }
        if thread::panicking() {
            eprintln!(
                "--- the daemon's log ---\n{}--- end of the daemon's log ---",
                self.site.log()
            );
        }
    }
}

/// Kills a process and all that descends from it. One that is stopped starts nothing, and
/// inherits what the dying leave behind if it is a keeper.
fn end_tree(pid: i32) {
    kill(pid, Signal::STOP);
    let end = Instant::now() + PATIENCE;
    loop {
        let left: Vec<_> = descendants(pid)
            .into_iter()
            .filter(|p| p.state != 'Z')
            .collect();
        if left.is_empty() || Instant::now() > end {
            break;
        }
        for process in left {
            kill(process.pid, Signal::KILL);
        }
        thread::yield_now();
    }
    kill(pid, Signal::KILL);
}

/// The v2 control group of a process, as a directory.
pub fn control_group(pid: i32) -> Option<PathBuf> {
    let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let path = text.lines().find_map(|l| l.strip_prefix("0::/"))?;
    let mounts = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];
    let mount = mounts
        .iter()
        .find(|m| Path::new(m).join("cgroup.procs").exists())?;
    Some(Path::new(mount).join(path))
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Some(base) = self.control_groups() {
            remove_control_groups(&base);
        }
    }
}

/// Removes the groups that a killed daemon could not remove itself.
fn remove_control_groups(base: &Path) {
    let end = Instant::now() + Duration::from_secs(5);
    // The dead leave their group a moment later.
    while base.exists() && Instant::now() < end {
        for group in fs::read_dir(base).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(group.path());
        }
        if fs::remove_dir(base).is_err() {
            thread::yield_now();
        }
    }
}

/// A process, as `/proc` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Process {
    pub pid: i32,
    pub parent: i32,
    pub state: char,
    pub session: i32,
    pub terminal: i32,
    started: u64,
}

impl Process {
    pub fn of(pid: i32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name stands in parentheses and may have anything in it.
        let fields: Vec<&str> = text[text.rfind(')')? + 2..].split_whitespace().collect();
        Some(Self {
            pid,
            state: fields.first()?.chars().next()?,
            parent: fields.get(1)?.parse().ok()?,
            session: fields.get(3)?.parse().ok()?,
            terminal: fields.get(4)?.parse().ok()?,
            started: fields.get(19)?.parse().ok()?,
        })
    }

    /// Whether this very process is still there, and no corpse.
    pub fn lives(&self) -> bool {
        Self::of(self.pid).is_some_and(|now| now.started == self.started && now.state != 'Z')
    }
}

pub fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").expect("there is a /proc").flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(Process::of)
        .collect()
}

/// Everything below a process.
pub fn descendants(pid: i32) -> Vec<Process> {
    let all = processes();
    let mut found: Vec<Process> = all.iter().filter(|p| p.parent == pid).copied().collect();
    let mut next = 0;
    while let Some(parent) = found.get(next).map(|p| p.pid) {
        found.extend(all.iter().filter(|p| p.parent == parent));
        next += 1;
    }
    found
}

/// A port that nobody listens on at the moment.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("there are ports");
    listener.local_addr().expect("it has one").port()
}

fn is_binary(pid: i32, binary: &Path) -> bool {
    let Ok(exe) = fs::read_link(format!("/proc/{pid}/exe")) else {
        return false;
    };
    exe == binary
        || exe.to_string_lossy().trim_end_matches(" (deleted)") == binary.to_string_lossy()
}

/// Whether there is such a process, and it is no corpse.
pub fn alive(pid: i32) -> bool {
    Process::of(pid).is_some_and(|p| p.state != 'Z')
}

pub fn kill(pid: i32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}
