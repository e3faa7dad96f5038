//! The keeper's loop.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{WaitIdOptions, WaitIdStatus};
use sd_notify::NotifyState;
use tracing::{error, info, warn};

use super::link::{Received, receive_datagram, send_datagram};
use super::saved::{self, Saved, SavedRun, Settings, VERSION};
use super::wire::{Reason, ToDaemon, ToKeeper};

/// The longest pause before a daemon that dies again and again is started again.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A daemon that served and is silent for so long hangs, and is replaced.
const SILENCE: Duration = Duration::from_secs(60);
/// How long the children of a daemon that died may take until they execute their programs.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long a retiring daemon may take.
const RETIREMENT: Duration = Duration::from_secs(10);

/// A run, as far as the keeper knows it.
#[derive(Debug, Default)]
struct Held {
    pid: u32,
    exit: Option<i32>,
    fds: Vec<OwnedFd>,
}

/// The daemon that lives.
#[derive(Debug)]
struct Daemon {
    pid: i32,
    socket: OwnedFd,
    quit: bool,
    /// What the socket did not take yet.
    outbox: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// When it is killed, unless it says that it is well, or has retired.
    kill_at: Option<Instant>,
    /// Another one is to take its place.
    retiring: bool,
}

/// A daemon that has died. Children that it was just making go on without it: they hold the
/// socket until they execute their programs, and say over it who they are. Until then nobody
/// knows which runs have a process, and no other daemon is started.
#[derive(Debug)]
struct Dead {
    socket: OwnedFd,
    until: Instant,
    /// Children that ended meanwhile, not known to be runs yet.
    ended: Vec<(i32, i32)>,
}

/// See the module's documentation.
#[derive(Debug)]
pub struct Keeper {
    settings: Settings,
    config: Option<OwnedFd>,
    listener: Option<OwnedFd>,
    runs: BTreeMap<u64, Held>,
    daemon: Option<Daemon>,
    dead: Option<Dead>,
    served: bool,
    reason: Reason,
    pause: Duration,
    start_at: Instant,
    stopping: bool,
    /// The starting process waits here for a first `Ready`.
    waiting: Option<OwnedFd>,
}

impl Keeper {
    /// A keeper that has not started a daemon yet. `waiting` is written to, and closed, when the
    /// first daemon serves.
    #[must_use]
    pub fn new(
        settings: Settings,
        config: OwnedFd,
        listener: Option<OwnedFd>,
        waiting: Option<OwnedFd>,
    ) -> Self {
        Self {
            settings,
            config: Some(config),
            listener,
            runs: BTreeMap::new(),
            daemon: None,
            dead: None,
            served: false,
            reason: Reason::First,
            pause: Duration::ZERO,
            start_at: Instant::now(),
            stopping: false,
            waiting,
        }
    }

    /// The keeper that a former one, or a daemon that lost its keeper, has executed.
    ///
    /// # Errors
    /// A descriptor is not there.
    pub fn from_saved(saved: Saved) -> io::Result<Self> {
        let mut runs = BTreeMap::new();
        for run in saved.runs {
            let fds = run
                .fds
                .iter()
                .map(|fd| saved::inherit(*fd))
                .collect::<io::Result<_>>()?;
            runs.insert(
                run.run,
                Held {
                    pid: run.pid,
                    exit: run.exit,
                    fds,
                },
            );
        }
        let daemon = match saved.daemon {
            None => None,
            Some((pid, socket)) => Some(Daemon {
                pid,
                socket: saved::inherit(socket)?,
                quit: false,
                outbox: VecDeque::from([(ToDaemon::Retire.encode(), Vec::new())]),
                kill_at: Some(Instant::now() + RETIREMENT),
                retiring: true,
            }),
        };
        Ok(Self {
            settings: saved.settings,
            config: saved.config.map(saved::inherit).transpose()?,
            listener: saved.listener.map(saved::inherit).transpose()?,
            runs,
            daemon,
            dead: None,
            served: saved.served,
            reason: Reason::Upgraded,
            pause: Duration::ZERO,
            start_at: Instant::now(),
            stopping: false,
            waiting: None,
        })
    }

    /// Guards the daemon until it quits; returns the exit status.
    ///
    /// # Errors
    /// What the keeper itself cannot do without.
    pub fn guard(mut self) -> io::Result<i32> {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
        let mut signals = SigSet::empty();
        for signal in [
            Signal::SIGCHLD,
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGUSR2,
        ] {
            signals.add(signal);
        }
        signals.thread_block()?;
        let signal_fd =
            SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        loop {
            self.listen();
            if let Some(status) = self.reap() {
                return Ok(status);
            }
            if self.daemon.is_none() && self.dead.is_none() && self.start_at <= Instant::now() {
                self.start();
            }
            self.flush();
            self.wait(&signal_fd);
            while let Ok(Some(info)) = signal_fd.read_signal() {
                if let Ok(signal) = Signal::try_from(info.ssi_signo as i32) {
                    self.signalled(signal);
                }
            }
        }
    }

    fn wait(&self, signal_fd: &SignalFd) {
        let due = match (&self.dead, &self.daemon) {
            (Some(dead), _) => Some(dead.until),
            (None, None) => Some(self.start_at),
            (None, Some(daemon)) => daemon.kill_at,
        };
        let timeout = due.map(|at| {
            let left = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            Timespec {
                tv_sec: left.as_secs().cast_signed(),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        let signal_fd = signal_fd.as_fd();
        let mut fds = vec![PollFd::from_borrowed_fd(signal_fd, PollFlags::IN)];
        if let Some(dead) = &self.dead {
            fds.push(PollFd::new(&dead.socket, PollFlags::IN));
        } else if let Some(daemon) = &self.daemon {
            let out = if daemon.outbox.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            fds.push(PollFd::new(&daemon.socket, PollFlags::IN | out));
        }
        let _ = poll(&mut fds, timeout.as_ref());
        // A daemon that closed its end is about to die: its death is what counts.
        if self.daemon.is_some()
            && fds.get(1).is_some_and(|f| {
                f.revents().contains(PollFlags::HUP) && !f.revents().contains(PollFlags::IN)
            })
        {
            let _ = poll(
                &mut fds[..1],
                Some(&Timespec {
                    tv_sec: 0,
                    tv_nsec: 10_000_000,
                }),
            );
        }
        if let Some(daemon) = &self.daemon
            && daemon.kill_at.is_some_and(|at| at <= Instant::now())
        {
            warn!("the daemon does not answer: it is killed");
            let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon.pid), Signal::SIGKILL);
        }
    }

    /// Takes in all that the daemon, and processes that become runs, have said.
    fn listen(&mut self) {
        loop {
            let socket = match (&self.dead, &self.daemon) {
                (Some(dead), _) => &dead.socket,
                (None, Some(daemon)) => &daemon.socket,
                (None, None) => return,
            };
            match receive_datagram(socket) {
                Ok(Received::Datagram(bytes, fds)) => match ToKeeper::decode(&bytes) {
                    Some(message) => self.told(message, fds),
                    None => warn!("the daemon sent something unknown ({} bytes)", bytes.len()),
                },
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => {
                    self.dead = None;
                    return;
                }
                Err(e) => {
                    error!("the daemon cannot be heard: {e}");
                    self.dead = None;
                    return;
                }
            }
        }
        if self
            .dead
            .as_ref()
            .is_some_and(|dead| dead.until <= Instant::now())
        {
            warn!("a run hangs before its program was executed: it is killed");
            kill_unfinished_children();
            self.dead = None;
        }
    }

    fn told(&mut self, message: ToKeeper, mut fds: Vec<OwnedFd>) {
        match message {
            ToKeeper::Unpark { run } => {
                if let Some(held) = self.runs.get_mut(&run) {
                    held.fds.truncate(2);
                }
            }
            ToKeeper::Forget { runs } => self.runs.retain(|run, _| !runs.contains(run)),
            ToKeeper::Started { run, pid } => {
                let held = self.runs.entry(run).or_default();
                held.pid = pid;
                held.fds = fds;
                let mut ended = self.dead.iter().flat_map(|dead| &dead.ended);
                if let Some((_, exit)) = ended.find(|(p, _)| *p == pid.cast_signed()) {
                    held.exit = Some(*exit);
                }
            }
            ToKeeper::ParkConfig => self.config = fds.pop(),
            ToKeeper::ParkListener => self.listener = fds.pop(),
            ToKeeper::Ready => {
                self.served = true;
                // Only one that dies before it serves is started again with a pause.
                self.pause = Duration::ZERO;
                notify(&[NotifyState::Ready]);
                if let Some(waiting) = self.waiting.take() {
                    let _ = rustix::io::write(waiting, b"ready");
                }
            }
            ToKeeper::Reloading => {
                let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
                let micros = i128::from(now.tv_sec) * 1_000_000 + i128::from(now.tv_nsec) / 1000;
                notify(&[NotifyState::Reloading, NotifyState::MonotonicUsec(micros)]);
            }
            ToKeeper::Stopping => notify(&[NotifyState::Stopping]),
            ToKeeper::Status(text) => notify(&[NotifyState::Status(&text)]),
            ToKeeper::Alive => {
                if let Some(daemon) = &mut self.daemon
                    && !daemon.retiring
                {
                    daemon.kill_at = Some(Instant::now() + SILENCE);
                }
                if sd_notify::watchdog_enabled().is_some() {
                    notify(&[NotifyState::Watchdog]);
                }
            }
            ToKeeper::Quit => {
                if let Some(daemon) = &mut self.daemon {
                    daemon.quit = true;
                }
            }
        }
    }

    fn tell(&mut self, message: &ToDaemon, fds: Vec<OwnedFd>) {
        if let Some(daemon) = &mut self.daemon {
            daemon.outbox.push_back((message.encode(), fds));
        }
    }

    /// Sends what the socket takes.
    fn flush(&mut self) {
        let Some(daemon) = &mut self.daemon else {
            return;
        };
        while let Some((bytes, fds)) = daemon.outbox.front() {
            let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
            match send_datagram(&daemon.socket, bytes, &borrowed) {
                Ok(()) => drop(daemon.outbox.pop_front()),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                // It is dying; the next one is told.
                Err(_) => daemon.outbox.clear(),
            }
        }
    }

    /// Reaps whoever has ended; the exit status when the daemon has and there is to be no other.
    fn reap(&mut self) -> Option<i32> {
        loop {
            let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
            let (pid, exit) =
                crate::sys::process::reap_any(options).and_then(|s| Some((s.0, exit_of(&s.1)?)))?;
            // Whatever it said before it ended comes first.
            self.listen();
            if self.daemon.as_ref().is_some_and(|d| d.pid == pid) {
                if let Some(status) = self.daemon_ended(exit) {
                    return Some(status);
                }
            } else if let Some((run, held)) =
                self.runs.iter_mut().find(|(_, h)| h.pid as i32 == pid)
            {
                held.exit = Some(exit);
                let message = ToDaemon::Exited { run: *run, exit };
                self.tell(&message, Vec::new());
            } else if let Some(dead) = &mut self.dead {
                dead.ended.push((pid, exit));
            }
        }
    }

    fn daemon_ended(&mut self, exit: i32) -> Option<i32> {
        let daemon = self.daemon.take()?;
        let (retiring, quit) = (daemon.retiring, daemon.quit);
        let until = Instant::now() + LAST_WORDS;
        self.dead = Some(Dead {
            socket: daemon.socket,
            until,
            ended: Vec::new(),
        });
        let status = if exit < 0 { 128 - exit } else { exit };
        if quit || self.stopping {
            return Some(status);
        }
        if !self.served {
            return Some(if status == 0 { 1 } else { status });
        }
        if retiring {
            info!("the former daemon has retired");
            self.reason = Reason::Upgraded;
            self.pause = Duration::ZERO;
        } else {
            error!("the daemon ended ({}); it is started again", describe(exit));
            self.reason = Reason::Crashed;
        }
        self.start_at = Instant::now() + self.pause;
        self.pause = (self.pause * 2).clamp(Duration::from_millis(100), LONGEST_PAUSE);
        None
    }

    fn start(&mut self) {
        match self.try_start() {
            Ok(daemon) => {
                self.daemon = Some(daemon);
                self.tell(&ToDaemon::Hello(self.reason), Vec::new());
                let duplicate = |fd: &OwnedFd| fd.try_clone().ok();
                if let Some(fd) = self.config.as_ref().and_then(duplicate) {
                    self.tell(&ToDaemon::Config, vec![fd]);
                }
                if let Some(fd) = self.listener.as_ref().and_then(duplicate) {
                    self.tell(&ToDaemon::Listener, vec![fd]);
                }
                let runs: Vec<_> = self
                    .runs
                    .iter()
                    .map(|(run, held)| {
                        let message = ToDaemon::Run {
                            run: *run,
                            pid: held.pid,
                            exit: held.exit,
                        };
                        (message, held.fds.iter().filter_map(duplicate).collect())
                    })
                    .collect();
                for (message, fds) in runs {
                    self.tell(&message, fds);
                }
                self.tell(&ToDaemon::End, Vec::new());
            }
            Err(e) => {
                error!("the daemon cannot be started: {e}");
                self.pause = (self.pause * 2).clamp(Duration::from_millis(100), LONGEST_PAUSE);
                self.start_at = Instant::now() + self.pause;
            }
        }
    }

    fn try_start(&self) -> io::Result<Daemon> {
        let flags = SocketFlags::CLOEXEC;
        let (own, its) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        rustix::io::ioctl_fionbio(&own, true)?;
        rustix::io::fcntl_setfd(&its, rustix::io::FdFlags::empty())?;
        let lock = crate::sys::fd::borrow(self.settings.lock)?;
        rustix::io::fcntl_setfd(lock, rustix::io::FdFlags::empty())?;
        let json = serde_json::to_string(&self.settings).map_err(io::Error::other)?;
        // The program that this keeper is, even if another one lies at its path by now.
        let child = Command::new("/proc/self/exe")
            .arg0("deployer")
            .arg("--role=daemon")
            .arg(its.as_raw_fd().to_string())
            .arg(json)
            .env_remove("NOTIFY_SOCKET")
            .env_remove("WATCHDOG_USEC")
            .env_remove("WATCHDOG_PID")
            .stdin(Stdio::null())
            .spawn()?;
        Ok(Daemon {
            pid: i32::try_from(child.id()).map_err(io::Error::other)?,
            socket: own,
            quit: false,
            outbox: VecDeque::new(),
            kill_at: None,
            retiring: false,
        })
    }

    fn signalled(&mut self, signal: Signal) {
        match signal {
            Signal::SIGTERM | Signal::SIGINT => {
                self.stopping = true;
                self.tell(&ToDaemon::Stop, Vec::new());
                if self.daemon.is_none() {
                    std::process::exit(0);
                }
            }
            Signal::SIGHUP => {
                self.reopen_log();
                self.tell(&ToDaemon::Reload, Vec::new());
            }
            Signal::SIGUSR2 => self.upgrade(),
            _ => {}
        }
    }

    fn reopen_log(&self) {
        if let Some(path) = &self.settings.log_file
            && let Err(e) = crate::logging::append_stderr_to(path)
        {
            warn!("the log file cannot be opened again: {e}");
        }
    }

    /// Puts the program that now lies at the own path in place of this one.
    fn upgrade(&mut self) {
        let exe = self.settings.exe.clone();
        match Command::new(&exe)
            .arg("--version")
            .stdout(Stdio::null())
            .stdin(Stdio::null())
            .spawn()
        {
            Err(e) => return warn!("no upgrade: {} cannot be executed: {e}", exe.display()),
            Ok(mut child) => {
                let deadline = Instant::now() + Duration::from_secs(5);
                let ended = loop {
                    match child.try_wait() {
                        Ok(None) if Instant::now() < deadline => {
                            std::thread::sleep(Duration::from_millis(5))
                        }
                        other => break other,
                    }
                };
                if !ended.is_ok_and(|s| s.is_some_and(|s| s.success())) {
                    let _ = child.kill();
                    let _ = child.wait();
                    return warn!("no upgrade: {} --version does not work", exe.display());
                }
            }
        }
        info!("upgrading to {}", exe.display());
        // Nothing may be lost between this keeper's last look and the next one's first.
        self.listen();
        self.flush();
        let raw = |fd: &OwnedFd| fd.as_raw_fd();
        let saved = Saved {
            version: VERSION,
            settings: self.settings.clone(),
            config: self.config.as_ref().map(raw),
            listener: self.listener.as_ref().map(raw),
            runs: self
                .runs
                .iter()
                .map(|(run, held)| SavedRun {
                    run: *run,
                    pid: held.pid,
                    exit: held.exit,
                    fds: held.fds.iter().map(raw).collect(),
                })
                .collect(),
            daemon: self.daemon.as_ref().map(|d| (d.pid, d.socket.as_raw_fd())),
            served: self.served,
        };
        error!("no upgrade: {}", saved.execute(&exe));
    }
}

/// Children of a dead daemon that have not executed their programs: they still are this program.
fn kill_unfinished_children() {
    let own = std::fs::read_link("/proc/self/exe").ok();
    let tasks = std::fs::read_dir("/proc/self/task")
        .into_iter()
        .flatten()
        .flatten();
    for task in tasks {
        let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        for pid in children
            .split_whitespace()
            .filter_map(|p| p.parse::<i32>().ok())
        {
            if own.is_some() && std::fs::read_link(format!("/proc/{pid}/exe")).ok() == own {
                // A child of this process that is not reaped: the number is still its own.
                let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn exit_of(status: &WaitIdStatus) -> Option<i32> {
    let code = status.exit_status();
    code.or_else(|| status.terminating_signal().map(|s| -s))
}

fn describe(exit: i32) -> String {
    if exit < 0 {
        format!("signal {}", -exit)
    } else {
        format!("status {exit}")
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // Without a service manager there is nobody to tell.
    let _ = sd_notify::notify(states);
}

/// Keeps the descriptor open, and forgets that it is owned: for numbers in [`Settings`].
#[must_use]
pub fn leak(fd: OwnedFd) -> std::os::fd::RawFd {
    fd.into_raw_fd()
}
