//! From the command line to a keeper: everything that is done once, before any thread exists,
//! and the roles that the program executes itself in.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, MemfdFlags, flock};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::front::chain;
use crate::accounts;
use crate::cli::{DEFAULT_CONFIG, DaemonOptions, Target};
use crate::config::diag::printable;
use crate::config::{autostart_groups as config_groups, load};
use crate::keeper::guard::{Keeper, leak};
use crate::keeper::{Saved, Settings, saved};
use crate::logging;
use crate::run::tree;
use crate::sys;

/// Why the daemon was not started.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct BootError(String);

/// Says something to whoever starts the daemon.
fn say(text: &str) {
    let lines = text
        .lines()
        .map(|line| format!("deployer: {}\n", printable(line)));
    let _ = io::stderr().write_all(lines.collect::<String>().as_bytes());
}

fn failed<E: std::fmt::Display>(doing: impl std::fmt::Display) -> impl FnOnce(E) -> BootError {
    move |e| BootError(format!("cannot {doing}: {e}"))
}

/// Starts a daemon: returns when it serves (or, in the foreground, when it has ended).
pub fn boot(target: &Target, options: DaemonOptions) -> u8 {
    match try_boot(target, options) {
        Ok(status) => (status & 0xff) as u8,
        Err(e) => {
            say(&e.0);
            1
        }
    }
}

/// Enters a role that another process of this program asked for.
pub fn enter(role: &str, args: &[OsString]) -> u8 {
    let _ = rustix::thread::set_name(c"deployer");
    match role {
        "source" => return crate::source::worker::main(),
        "web" => return crate::web::gateway::main(),
        _ => {}
    }
    let number = args
        .first()
        .and_then(|a| a.to_str())
        .and_then(|a| a.parse().ok());
    let result = match (role, number) {
        ("daemon", Some(link)) => daemon(link, args.get(1)),
        ("keeper", Some(state)) => keeper(state),
        _ => Err(BootError(
            "this role is taken up by the program itself, not by hand".into(),
        )),
    };
    match result {
        Ok(status) => (status & 0xff) as u8,
        Err(e) => {
            say(&e.0);
            1
        }
    }
}

fn daemon(link: i32, settings: Option<&OsString>) -> Result<i32, BootError> {
    let settings = settings
        .and_then(|s| s.to_str())
        .ok_or_else(|| BootError("no settings".into()))?;
    let settings: Settings = serde_json::from_str(settings).map_err(failed("read the settings"))?;
    let link = saved::inherit(link).map_err(failed("reach the keeper"))?;
    // A run's processes never see the lock: they would keep it.
    drop(saved::inherit(settings.lock).map(leak));
    logging::start(&settings.level, settings.syslog);
    limit_capabilities();
    super::main::main(settings, link)
        .map_err(|e| BootError(e.to_string()))
        .map(|()| 0)
}

fn keeper(state: i32) -> Result<i32, BootError> {
    let memfd = saved::inherit(state).map_err(failed("read the state"))?;
    let saved = Saved::restore(memfd).map_err(|e| BootError(chain(&e)))?;
    logging::start(&saved.settings.level, saved.settings.syslog);
    // The process may be another one than before: a daemon that lost its keeper.
    let (pid, pid_file) = (std::process::id(), saved.settings.pid_file.clone());
    if let Some(path) = &pid_file {
        write_pid_file(path, pid)?;
    }
    let lock = sys::fd::borrow(saved.settings.lock).and_then(|fd| fd.try_clone_to_owned());
    if let Ok(lock) = lock {
        let _ = note_pid(&File::from(lock), pid);
    }
    let status = Keeper::from_saved(saved)
        .map_err(failed("take over"))?
        .guard();
    if let Some(path) = pid_file {
        remove_pid_file(&path, pid);
    }
    status.map_err(failed("go on"))
}

fn try_boot(target: &Target, options: DaemonOptions) -> Result<i32, BootError> {
    let exe = std::env::current_exe().map_err(failed("find the own program"))?;
    let config = target
        .config
        .clone()
        .unwrap_or_else(|| DEFAULT_CONFIG.into());
    let config =
        std::path::absolute(&config).map_err(failed("resolve the configuration's path"))?;
    let mode = match &options.mode {
        None => None,
        Some(text) => Some(
            octal(text)
                .ok_or_else(|| BootError(format!("-m {text}: not an octal mode such as 0660")))?,
        ),
    };
    let autostart = match options.autostart.as_deref() {
        None => None,
        Some(word) => {
            let groups = config_groups(word);
            Some(groups.map_err(|e| BootError(format!("-A {e}")))?)
        }
    };
    become_user(&options)?;
    let loaded = load::load(&config).map_err(|e| BootError(chain(&e)))?;
    let _ = io::stderr().write_all(loaded.checked.render(false).as_bytes());
    let Some(parsed) = loaded.checked.config else {
        return Err(BootError(format!(
            "{} has errors; nothing was started",
            config.display()
        )));
    };
    let state_dir = parsed.global.state_dir;
    make_directory(&state_dir, 0o700)?;
    make_directory(&parsed.global.log_dir, 0o750)?;
    crate::log::spread(&parsed.global.log_dir);
    let lock = take_lock(&state_dir)?;

    let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone());
    let (syslog, log_file) = match options.log.as_deref() {
        Some("syslog") => (true, None),
        Some("stderr") => (false, None),
        Some(path) => (false, Some(absolute(&PathBuf::from(path)))),
        None => (!options.foreground && Path::new("/dev/log").exists(), None),
    };
    let listener = activated();
    clear_environment();
    let settings = Settings {
        exe,
        config,
        socket: target.socket.as_ref().map(absolute),
        mode,
        root: options.root.as_ref().map(absolute),
        autostart,
        syslog,
        log_file,
        level: options.log_level.unwrap_or_else(|| "info".into()),
        activated: listener.is_some(),
        pid_file: options.pid_file.as_ref().map(absolute),
        nofile: raise_nofile(),
        lock: -1,
    };
    let memfd = rustix::fs::memfd_create("deployer-config", MemfdFlags::CLOEXEC);
    let mut config = File::from(memfd.map_err(failed("keep the configuration"))?);
    config
        .write_all(&loaded.text)
        .map_err(failed("keep the configuration"))?;
    let boot = Boot {
        settings,
        config: config.into(),
        listener,
        lock,
    };
    if options.foreground {
        boot.keep(None)
    } else {
        boot.go_to_background()
    }
}

/// What the keeper is made of.
struct Boot {
    settings: Settings,
    config: OwnedFd,
    listener: Option<OwnedFd>,
    lock: File,
}

impl Boot {
    /// Becomes the keeper.
    fn keep(mut self, waiting: Option<OwnedFd>) -> Result<i32, BootError> {
        let pid = std::process::id();
        note_pid(&self.lock, pid).map_err(failed("write the lock file"))?;
        self.settings.lock = leak(self.lock.into());
        if let Some(path) = &self.settings.log_file {
            logging::append_stderr_to(path).map_err(failed(format!("open {}", path.display())))?;
        }
        if let Some(path) = &self.settings.pid_file {
            write_pid_file(path, pid)?;
        }
        // Last to go when memory is short; children start from zero again.
        let _ = fs::write("/proc/self/oom_score_adj", "-900");
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        logging::start(&self.settings.level, self.settings.syslog);
        let pid_file = self.settings.pid_file.clone();
        let status = Keeper::new(self.settings, self.config, self.listener, waiting).guard();
        if let Some(path) = pid_file {
            remove_pid_file(&path, pid);
        }
        status.map_err(failed("keep the daemon"))
    }

    /// Forks; the parent waits until the daemon serves and passes on what it says until then.
    fn go_to_background(self) -> Result<i32, BootError> {
        let (mut ready, tell) = io::pipe().map_err(failed("make a pipe"))?;
        let (mut said, say_here) = io::pipe().map_err(failed("make a pipe"))?;
        match sys::fork::fork().map_err(failed("go to the background"))? {
            sys::fork::Fork::Child => {
                let _ = rustix::process::setsid();
                drop((ready, said));
                let null = File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/null")
                    .map_err(failed("open /dev/null"))?;
                rustix::stdio::dup2_stdin(&null).map_err(failed("let go of the terminal"))?;
                rustix::stdio::dup2_stdout(&null).map_err(failed("let go of the terminal"))?;
                rustix::stdio::dup2_stderr(say_here.as_fd())
                    .map_err(failed("let go of the terminal"))?;
                drop(say_here);
                // The directory that it was started in is nobody's business any more.
                let _ = std::env::set_current_dir("/");
                let result = self.keep(Some(tell.into()));
                let status = result.unwrap_or_else(|e| {
                    say(&e.0);
                    1
                });
                std::process::exit(status)
            }
            sys::fork::Fork::Parent => {
                drop((tell, say_here));
                let log_file = self.settings.log_file.clone();
                drop(self);
                let mut word = String::new();
                // What is said before is copied along, so that the pipe never fills.
                let copy = std::thread::spawn(move || {
                    let mut text = [0; 4096];
                    while let Ok(n @ 1..) = said.read(&mut text) {
                        let _ = io::stderr().write_all(&text[..n]);
                    }
                });
                let _ = ready.read_to_string(&mut word);
                if word == "ready" {
                    return Ok(0);
                }
                let _ = copy.join();
                let place = log_file
                    .map(|p| format!("; see {}", p.display()))
                    .unwrap_or_default();
                Err(BootError(format!("the daemon did not start{place}")))
            }
        }
    }
}

fn octal(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|m| *m <= 0o777)
}

/// `-u` and `-g`: this whole process, before it makes anything; and for good.
fn become_user(options: &DaemonOptions) -> Result<(), BootError> {
    use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid};
    if options.user.is_none() && options.group.is_none() {
        return Ok(());
    }
    let user = match &options.user {
        None => None,
        Some(name) => {
            let found = accounts::find(name).map_err(failed("look up the user of -u"))?;
            let number = name.parse::<crate::ids::Uid>().ok();
            match (found, number) {
                (Some(user), _) => Some((user.uid, user.gid, Some(user.name))),
                (None, Some(n)) => Some((n.get(), n.get(), None)),
                (None, None) => return Err(BootError(format!("-u {name}: there is no such user"))),
            }
        }
    };
    let group = match &options.group {
        None => None,
        Some(name) => {
            let found = accounts::group(name).map_err(failed("look up the group of -g"))?;
            let number = || Some(name.parse::<crate::ids::Gid>().ok()?.get());
            let unknown = || BootError(format!("-g {name}: there is no such group"));
            Some(found.or_else(number).ok_or_else(unknown)?)
        }
    };
    let gid = group
        .or(user.as_ref().map(|u| u.1))
        .unwrap_or_else(|| nix::unistd::getegid().as_raw());
    let refused = || failed("change user or group (that takes root)");
    if nix::unistd::geteuid().is_root() {
        let groups = match &user {
            Some((.., Some(name))) => {
                accounts::groups_of(name, gid).map_err(failed("look up the groups of -u"))?
            }
            _ => vec![gid],
        };
        let groups: Vec<Gid> = groups.into_iter().map(Gid::from_raw).collect();
        setgroups(&groups).map_err(refused())?;
    }
    let gid = Gid::from_raw(gid);
    setresgid(gid, gid, gid).map_err(refused())?;
    if let Some((uid, ..)) = user {
        let uid = Uid::from_raw(uid);
        setresuid(uid, uid, uid).map_err(refused())?;
        let root = Uid::from_raw(0);
        if !uid.is_root() && (setresuid(root, root, root).is_ok() || nix::unistd::geteuid() != uid)
        {
            return Err(BootError(
                "the change of user is not final; nothing was started".into(),
            ));
        }
    }
    Ok(())
}

fn make_directory(path: &Path, mode: u32) -> Result<(), BootError> {
    let made = fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path);
    made.map_err(failed(format!("make the directory {}", path.display())))
}

/// How long the processes of a daemon that was killed may take to be gone.
const DYING: Duration = Duration::from_secs(2);

/// The one lock that says whose state directory it is; held as long as keeper or daemon lives.
fn take_lock(state_dir: &Path) -> Result<File, BootError> {
    let path = state_dir.join("lock");
    let opened = File::options()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path);
    let mut file = opened.map_err(failed(format!("open {}", path.display())))?;
    let patience = Instant::now() + DYING;
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                let _ = file
                    .rewind()
                    .and_then(|()| file.read_to_string(&mut pid).map(drop));
                let pid = pid.trim();
                let lives = pid
                    .parse()
                    .is_ok_and(|pid| tree::stat(pid).is_some_and(|s| !s.zombie));
                // What was killed a moment ago may not have let go of it yet.
                if !lives && Instant::now() < patience {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                }
                return Err(BootError(format!(
                    "a daemon is running on {} already (pid {pid}); `deployer -s` stops it, `deployer -r` reloads it",
                    state_dir.display()
                )));
            }
            Err(e) => return Err(BootError(format!("cannot lock {}: {e}", path.display()))),
        }
    }
}

/// Says in the lock file whose lock it is.
fn note_pid(lock: &File, pid: u32) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    lock.set_len(0)?;
    lock.write_all_at(format!("{pid}\n").as_bytes(), 0)
}

fn write_pid_file(path: &Path, pid: u32) -> Result<(), BootError> {
    let written = fs::write(path, format!("{pid}\n"));
    written.map_err(failed(format!("write {}", path.display())))
}

fn remove_pid_file(path: &Path, pid: u32) {
    if fs::read_to_string(path).is_ok_and(|text| text.trim() == pid.to_string()) {
        let _ = fs::remove_file(path);
    }
}

/// The soft limit as it was; from here on it is the hard one.
fn raise_nofile() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let _ = setrlimit(Resource::Nofile, raised);
    limit.current.unwrap_or(u64::MAX)
}

/// The socket of a service manager that listens already.
fn activated() -> Option<OwnedFd> {
    let mut fds = sd_notify::listen_fds().ok()?;
    fds.next().and_then(|fd| saved::inherit(fd).ok())
}

/// What keeper and daemon need of the environment; the rest is gone before anybody is started.
fn clear_environment() {
    const KEPT: [&str; 8] = [
        "PATH",
        "LANG",
        "LC_ALL",
        "TZ",
        "RUST_BACKTRACE",
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
    ];
    let names: Vec<OsString> = std::env::vars_os().map(|(name, _)| name).collect();
    for name in names {
        if !KEPT.iter().any(|k| name == *k) {
            sys::env::remove(&name);
        }
    }
}

/// Nothing that a run could inherit, and in effect only what the daemon uses. What is permitted
/// stays: a run as root gets it back when it executes.
fn limit_capabilities() {
    use caps::{CapSet, Capability as C};
    let _ = caps::clear(None, CapSet::Ambient);
    let _ = caps::clear(None, CapSet::Inheritable);
    let needed = [
        C::CAP_CHOWN,
        C::CAP_DAC_OVERRIDE,
        C::CAP_DAC_READ_SEARCH,
        C::CAP_FOWNER,
        C::CAP_KILL,
        C::CAP_SETGID,
        C::CAP_SETUID,
        C::CAP_SETPCAP,
        C::CAP_SYS_PTRACE,
        C::CAP_SYS_RESOURCE,
    ];
    if let Ok(permitted) = caps::read(None, CapSet::Permitted) {
        let kept = needed
            .into_iter()
            .filter(|c| permitted.contains(c))
            .collect();
        let _ = caps::set(None, CapSet::Effective, &kept);
    }
}
