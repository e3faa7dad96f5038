//! `RUN`: asks for a run, shows its output, ends as it did.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::terminal::{self, Keyboard};
use super::view::View;
use super::{Connection, Exit, Fault, Problem, REFUSED, say, socket_path, watched};
use crate::cli::{self, RunOptions, Target};
use crate::protocol::message::{
    Behind, LogsRequest, OutputWay, Reply, Request, Row, RunRequest, StdinWay,
};
use crate::sys;

/// How long a client whose connection broke tries to find the daemon again.
const PATIENCE: Duration = Duration::from_secs(60);

/// After this time a run is no longer a short one: somebody may want to leave it by Ctrl-C.
const SHORT: Duration = Duration::from_millis(50);

/// `RUN PROGRAM`.
pub fn run(target: &Target, options: RunOptions) -> Result<Exit, Problem> {
    let request = RunRequest {
        inputs: cli::inputs(&options.inputs)?,
        args: cli::texts(&options.args)?,
        reason: options.reason,
        key: Some(random_key()?),
        stdin: if options.detach || !has_input() {
            StdinWay::None
        } else {
            StdinWay::Fd
        },
        output: if options.json || options.detach {
            OutputWay::None
        } else {
            OutputWay::Fd
        },
        detach: options.detach,
        terminal: terminal::here().filter(|_| !options.detach),
        program: options.program,
        action: options.action,
    };
    let mut follower = Follower::new(target, Request::Run(request))?;
    follower.json = options.json;
    follower.detach = options.detach;
    follower.follow()
}

/// `ATTACH PROGRAM|ID`: comes back to the terminal of a run.
pub fn attach(target: &Target, what: &str) -> Result<Exit, Problem> {
    let id = what.parse::<u64>().ok();
    let request = LogsRequest {
        id,
        program: id.is_none().then(|| what.to_owned()),
        follow: true,
        output: OutputWay::Fd,
        terminal: Some(terminal::here().unwrap_or_default()),
        ..LogsRequest::default()
    };
    Follower::new(target, Request::Logs(request))?.follow()
}

/// A name for this request that nobody else makes up, so that asking again is not asking twice.
fn random_key() -> Result<String, Problem> {
    let mut bytes = [0; 16];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    match filled {
        Ok(16) => Ok(bytes.iter().map(|b| format!("{b:02x}")).collect()),
        _ => Err(Problem::new("the system has no random numbers")),
    }
}

/// Whether stdin is there and may have something to say: `/dev/null` has not.
fn has_input() -> bool {
    let Ok(stat) = rustix::fs::fstat(io::stdin()) else {
        return false;
    };
    let null = rustix::fs::FileType::from_raw_mode(stat.st_mode)
        == rustix::fs::FileType::CharacterDevice
        && (
            rustix::fs::major(stat.st_rdev),
            rustix::fs::minor(stat.st_rdev),
        ) == (1, 3);
    !null
}

/// What was shown so far; it outlives a connection.
#[derive(Default)]
struct Shown {
    /// The number of the request, once it is known.
    request: Option<u64>,
    /// The run whose log is shown, and how far, in bytes.
    run: Option<u64>,
    offset: u64,
    waiting: bool,
}

struct Follower {
    path: PathBuf,
    request: Request,
    json: bool,
    detach: bool,
    shown: Shown,
    /// The thread that waits for Ctrl-C; it is started when it is worth it.
    leaving: Option<std::sync::mpsc::Sender<u64>>,
    /// Where stdin is to go once it has something to say.
    input: Option<OwnedFd>,
    /// The key that leaves the terminal of a run.
    detach_key: Option<u8>,
    /// What is typed, if it goes to a terminal of the run.
    keyboard: Option<Keyboard>,
}

impl Follower {
    fn new(target: &Target, request: Request) -> Result<Self, Problem> {
        Ok(Self {
            path: socket_path(target)?,
            request,
            json: false,
            detach: false,
            shown: Shown::default(),
            leaving: None,
            input: None,
            detach_key: terminal::detach_key()?,
            keyboard: None,
        })
    }

    /// Asks, and asks again under the same key when the daemon went away in the middle.
    fn follow(&mut self) -> Result<Exit, Problem> {
        let mut since: Option<Instant> = None;
        let mut pause = Duration::from_millis(20);
        loop {
            let progress = (self.shown.request, self.shown.offset);
            let fault = match self.attempt() {
                Ok(exit) => return Ok(exit),
                Err(Broken::Problem(problem)) => return Err(problem),
                Err(Broken::Fault(fault)) => fault,
            };
            if let Some(keyboard) = &self.keyboard {
                keyboard.disconnect();
            }
            if since.is_none() && matches!(fault, Fault::Connect { .. }) {
                return Err(fault.into());
            }
            if since.is_none() && watched() {
                say("the connection to the daemon broke; trying to find it again");
            }
            if progress != (self.shown.request, self.shown.offset) {
                since = None;
                pause = Duration::from_millis(20);
            }
            if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                let follow = self
                    .shown
                    .request
                    .map(|id| format!("; `deployer LOGS {id} -f` shows how it went on"));
                return Err(Problem::new(format!(
                    "{fault}{}",
                    follow.unwrap_or_default()
                )));
            }
            thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    fn attempt(&mut self) -> Result<Exit, Broken> {
        let mut connection = Connection::ask(&self.path, &self.request)?;
        let began = Instant::now();
        let mut view: Option<View> = None;
        loop {
            if self.leaving.is_none() && !self.detach && !connection.buffered() {
                let patience = SHORT.saturating_sub(began.elapsed());
                match await_something(&connection, self.input.is_some(), patience)? {
                    Something::Reply => {}
                    Something::Input => {
                        self.feed()?;
                        continue;
                    }
                    Something::NoInput => {
                        self.input = None;
                        continue;
                    }
                    Something::Time => {
                        self.feed()?;
                        self.leaving = Some(watch_for_interrupt(self.shown.request)?);
                    }
                }
            }
            let Some(reply) = connection.receive()? else {
                return Err(Fault::Lost.into());
            };
            terminal::hide_status();
            match reply {
                Reply::Status { text } => terminal::show_status(&text),
                Reply::Accepted { id, behind } => {
                    self.accepted(id);
                    if self.detach {
                        return Ok(self.print_detached(id)?);
                    }
                    if let Some(behind) = behind {
                        self.tell_wait(id, &behind);
                    }
                }
                Reply::Outlook { usually } => {
                    if watched() && self.shown.waiting {
                        say(&format!("runs of it usually take {}", seconds(usually)));
                    }
                }
                Reply::Displaced => {
                    if watched() {
                        say("a newer request covers this one; its run is shown when it starts");
                    }
                }
                Reply::Started {
                    id,
                    request,
                    fds,
                    terminal,
                    offset,
                } => {
                    self.accepted(request.unwrap_or(id));
                    if self.shown.run != Some(id) {
                        self.shown.run = Some(id);
                        self.shown.offset = offset;
                    }
                    view = self.open(&mut connection, &fds)?;
                    if terminal {
                        self.sit_down(id, &connection)?;
                    }
                }
                Reply::Grew { .. } => self.show(&mut view)?,
                Reply::Ended { run, request } => {
                    self.show(&mut view)?;
                    self.keyboard = None;
                    return Ok(self.ended(&run, request)?);
                }
                Reply::Done {
                    message,
                    output,
                    status,
                } => {
                    // An action that has no run: it is over, and this came of it.
                    return Ok(super::done(message, output, status)?);
                }
                Reply::Error { code, message } => {
                    return Err(Broken::Problem(Problem::from_reply(code, &message)));
                }
                other => return Err(Broken::Problem(Problem::unexpected(&other))),
            }
        }
    }

    fn accepted(&mut self, id: u64) {
        self.shown.request = Some(id);
        if let Some(leaving) = &self.leaving {
            let _ = leaving.send(id);
        }
    }

    /// The run has a terminal of its own: what is typed here goes there.
    fn sit_down(&mut self, run: u64, connection: &Connection) -> Result<(), Problem> {
        if self.leaving.is_none() {
            self.leaving = Some(watch_for_interrupt(Some(run))?);
        }
        let keyboard = match self.keyboard.take() {
            Some(keyboard) => keyboard,
            None => Keyboard::take(self.detach_key)?,
        };
        keyboard.connect(run, connection.sender()?);
        self.keyboard = Some(keyboard);
        Ok(())
    }

    fn open(
        &mut self,
        connection: &mut Connection,
        fds: &[String],
    ) -> Result<Option<View>, Problem> {
        let (mut log, mut index) = (None, None);
        for name in fds {
            let fd = connection
                .take_fd()
                .ok_or_else(|| Problem::new("the daemon announced a descriptor and sent none"))?;
            match name.as_str() {
                "log" => log = Some(fd),
                "index" => index = Some(fd),
                "stdin" => self.input = Some(fd),
                _ => {}
            }
        }
        if self.leaving.is_some() {
            self.feed()?;
        }
        match (log, index) {
            (Some(log), Some(index)) => Ok(Some(View::new(log, index, self.shown.offset, None)?)),
            _ => Ok(None),
        }
    }

    /// Lets stdin through, if that is wanted and not yet done.
    fn feed(&mut self) -> Result<(), Problem> {
        self.input.take().map_or(Ok(()), feed)
    }

    fn show(&mut self, view: &mut Option<View>) -> Result<(), Problem> {
        if let Some(view) = view {
            let result = view.show();
            self.shown.offset = view.position();
            result?;
        }
        Ok(())
    }

    fn tell_wait(&mut self, id: u64, behind: &Behind) {
        if !watched() || self.shown.waiting {
            return;
        }
        self.shown.waiting = true;
        let since = behind
            .since
            .as_deref()
            .map(|s| format!(" since {}", local_time(s)))
            .unwrap_or_default();
        say(&format!(
            "request {id} waits for run {}, which {} has running{since}",
            behind.id, behind.user
        ));
    }

    fn print_detached(&self, id: u64) -> io::Result<Exit> {
        let mut out = io::stdout();
        if self.json {
            writeln!(out, "{}", serde_json::json!({ "id": id }))?;
        } else {
            writeln!(out, "{id}")?;
        }
        Ok(Exit::Status(0))
    }

    fn ended(&self, row: &Row, request: Option<u64>) -> Result<Exit, Problem> {
        if self.json {
            let line = serde_json::to_string(row).map_err(|e| Problem::new(e.to_string()))?;
            writeln!(io::stdout(), "{line}")?;
        }
        if row.dropped > 0 {
            say(&format!(
                "{} bytes of output were not kept: the log, or its disk, was full",
                row.dropped
            ));
        }
        if let Some(request) = request
            && watched()
        {
            say(&format!("request {request} was covered by run {}", row.id));
        }
        Ok(exit_of(row))
    }
}

/// Why an attempt ended without an answer.
enum Broken {
    /// It may be tried again.
    Fault(Fault),
    /// It may not.
    Problem(Problem),
}

impl From<Fault> for Broken {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Connect { .. } | Fault::Lost => Self::Fault(fault),
            Fault::TurnedAway(_) | Fault::Protocol(_) => Self::Problem(fault.into()),
        }
    }
}

impl From<Problem> for Broken {
    fn from(problem: Problem) -> Self {
        Self::Problem(problem)
    }
}

impl From<io::Error> for Broken {
    fn from(e: io::Error) -> Self {
        Self::Problem(e.into())
    }
}

/// How the client ends for a run that ended like this; says what a status alone does not.
pub fn exit_of(row: &Row) -> Exit {
    let signal = row.signal.as_deref().and_then(|s| s.parse::<Signal>().ok());
    match (row.outcome.as_str(), row.exit_code, signal) {
        ("succeeded" | "failed", Some(code), _) => Exit::Status(code),
        ("timed-out", ..) => {
            say(&format!(
                "run {} took longer than its timeout and was ended",
                row.id
            ));
            Exit::Status(124)
        }
        ("cancelled", code, signal) => {
            say(&format!("run {} was cancelled", row.id));
            match (code, signal) {
                (_, Some(signal)) => Exit::Signal(signal as i32),
                (Some(code), None) if code != 0 => Exit::Status(code),
                _ => Exit::Status(REFUSED),
            }
        }
        ("not-started", code, _) => {
            say(row.detail.as_deref().unwrap_or("the run was not started"));
            Exit::Status(code.unwrap_or(REFUSED))
        }
        ("signalled", _, Some(signal)) => Exit::Signal(signal as i32),
        (outcome, code, signal) => {
            let detail = row
                .detail
                .as_deref()
                .map(|d| format!(": {d}"))
                .unwrap_or_default();
            say(&format!("run {} is {outcome}{detail}", row.id));
            match (code, signal) {
                (_, Some(signal)) => Exit::Signal(signal as i32),
                (Some(code), None) if code != 0 => Exit::Status(code),
                _ => Exit::Status(REFUSED),
            }
        }
    }
}

/// Copies stdin to the run until either ends. The thread ends with the process at the latest.
fn feed(pipe: OwnedFd) -> Result<(), Problem> {
    // A client in the background of its terminal is told EIO instead of being stopped.
    sys::signal::ignore(Signal::SIGTTIN);
    let copy = move || {
        // The first thread hears them, or the one that waits for them.
        let _ = leaving_signals().thread_block();
        let mut pipe = File::from(pipe);
        let _ = io::copy(&mut io::stdin().lock(), &mut pipe);
    };
    let spawned = thread::Builder::new().name("stdin".into()).spawn(copy);
    spawned
        .map(drop)
        .map_err(|e| Problem::new(format!("cannot read stdin: {e}")))
}

/// What tells the client to leave its run alone.
fn leaving_signals() -> SigSet {
    let signals = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP];
    signals.into_iter().collect()
}

/// What the first moments of a run may bring.
enum Something {
    Reply,
    /// On stdin.
    Input,
    /// Stdin is at its end.
    NoInput,
    /// They are over.
    Time,
}

/// Waits for the daemon, and for stdin if `input` is set. A short run ends before either needs a
/// thread.
fn await_something(
    connection: &Connection,
    input: bool,
    patience: Duration,
) -> Result<Something, Problem> {
    let timeout = Timespec {
        tv_sec: 0,
        tv_nsec: i64::from(patience.subsec_nanos()),
    };
    let stdin = io::stdin();
    let mut fds = [
        PollFd::from_borrowed_fd(connection.as_fd(), PollFlags::IN),
        PollFd::new(&stdin, PollFlags::IN),
    ];
    let wanted = if input { 2 } else { 1 };
    let ready = loop {
        match poll(&mut fds[..wanted], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => break ready,
        }
    };
    match ready {
        Ok(0) => return Ok(Something::Time),
        Ok(_) => {}
        Err(e) => return Err(Problem::new(format!("cannot wait for the daemon: {e}"))),
    }
    let [reply, said] = fds.map(|fd| fd.revents());
    Ok(if !reply.is_empty() || !input {
        Something::Reply
    } else if said.contains(PollFlags::IN) {
        Something::Input
    } else {
        Something::NoInput
    })
}

/// From here on Ctrl-C (and TERM, HUP) leaves the run alone and says how to get back to it.
fn watch_for_interrupt(mut request: Option<u64>) -> Result<std::sync::mpsc::Sender<u64>, Problem> {
    let signals = leaving_signals();
    // Threads made from now on inherit the mask: also of the one for which a keyboard waits.
    let mut blocked = signals;
    blocked.add(Signal::SIGWINCH);
    blocked
        .thread_block()
        .map_err(|e| Problem::new(format!("cannot watch for signals: {e}")))?;
    let (tell, told) = std::sync::mpsc::channel();
    let wait = move || {
        let Ok(signal) = signals.wait() else { return };
        if let Some(id) = told.try_iter().last() {
            request = Some(id);
        }
        terminal::restore();
        if let Some(id) = request {
            say(&format!(
                "left; the run goes on. `deployer LOGS {id} -f` follows it, `deployer CANCEL {id}` ends it"
            ));
        }
        sys::signal::die_of(signal as i32);
    };
    let spawned = thread::Builder::new().name("signals".into()).spawn(wait);
    spawned.map_err(|e| Problem::new(format!("cannot watch for signals: {e}")))?;
    Ok(tell)
}

fn seconds(s: f64) -> String {
    let s = s.round().max(1.0) as u64;
    match s {
        0..=119 => format!("{s} s"),
        120..=7199 => format!("{} min", s / 60),
        _ => format!("{} h", s / 3600),
    }
}

/// The time of day of an RFC 3339 moment, here.
pub fn local_time(moment: &str) -> String {
    match moment.parse::<jiff::Timestamp>() {
        Ok(t) => t
            .to_zoned(jiff::tz::TimeZone::system())
            .strftime("%Y-%m-%d %H:%M:%S")
            .to_string(),
        Err(_) => moment.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(outcome: &str, code: Option<i32>, signal: Option<&str>) -> Row {
        Row {
            outcome: outcome.into(),
            exit_code: code,
            signal: signal.map(Into::into),
            ..Row::default()
        }
    }

    #[test]
    fn the_client_ends_as_the_run_did() {
        assert_eq!(exit_of(&row("succeeded", Some(0), None)), Exit::Status(0));
        assert_eq!(exit_of(&row("failed", Some(7), None)), Exit::Status(7));
        assert_eq!(
            exit_of(&row("signalled", None, Some("SIGTERM"))),
            Exit::Signal(15)
        );
        assert_eq!(
            exit_of(&row("timed-out", None, Some("SIGKILL"))),
            Exit::Status(124)
        );
        assert_eq!(
            exit_of(&row("not-started", Some(126), None)),
            Exit::Status(126)
        );
        assert_eq!(exit_of(&row("not-started", None, None)), Exit::Status(125));
        assert_eq!(exit_of(&row("cancelled", Some(0), None)), Exit::Status(125));
        assert_eq!(
            exit_of(&row("cancelled", None, Some("SIGTERM"))),
            Exit::Signal(15)
        );
        assert_eq!(exit_of(&row("lost", None, None)), Exit::Status(125));
    }
}
