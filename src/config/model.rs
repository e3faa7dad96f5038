//! What a configuration says, valid by construction. Data only: [`super::check`] makes it from
//! text, everybody else reads it.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::remote::Remote;
use crate::ids::{ActionName, Gid, ProgramName, Uid};

/// A whole configuration, as it is in force.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// The daemon's own settings.
    pub global: Global,
    /// Every `[prog-NAME]` section, by name.
    pub programs: BTreeMap<ProgramName, Arc<Program>>,
    /// What a script of the root directory without a section gets: the global values.
    pub script: Arc<Program>,
    /// Supervised programs that an earlier configuration had: as long as one runs, whoever could
    /// stop it still can.
    pub lingering: BTreeMap<ProgramName, Arc<Program>>,
}

/// Settings of the daemon, from the lines before the first section.
#[derive(Debug, Clone, PartialEq)]
pub struct Global {
    /// Where clients connect.
    pub socket_path: PathBuf,
    /// Permission bits of the socket.
    pub socket_mode: u32,
    /// How many connections one uid may hold.
    pub clients_per_user: u32,
    /// The script directory.
    pub root: PathBuf,
    /// Run history, lock.
    pub state_dir: PathBuf,
    /// Logs of runs.
    pub log_dir: PathBuf,
    /// Whether new runs start while the history cannot be written.
    pub record_failure: RecordFailure,
    /// How long a stopping daemon lets live runs go on before it ends them.
    pub shutdown_timeout: Duration,
    /// Whether runs get control groups of their own.
    pub cgroup: Cgroup,
    /// Programs whose `autostart` is at most this are started with the daemon; 0 none.
    pub do_autostart: u32,
    /// The HTTP gateway.
    pub http: Http,
}

/// The HTTP gateway: where it listens, and who is believed there (`http-…`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Http {
    /// `http-socket`: a UNIX socket, on which everybody is who the kernel says.
    pub socket: Option<PathBuf>,
    /// `http-socket-mode`: its permission bits.
    pub socket_mode: u32,
    /// `http-listen`: an address, on which nobody is anybody by themselves.
    pub listen: Option<SocketAddr>,
    /// `http-hosts`: names by which it may be called, beside those of this machine itself.
    pub hosts: Vec<String>,
    /// `http-user-header`: the header in which a reverse proxy says who asks, in lower case.
    pub user_header: Option<String>,
    /// `http-trust-uid`: whose word counts there, on the UNIX socket.
    pub trust_uids: Vec<Uid>,
    /// `http-trust-address`: whose word counts there, of addresses.
    pub trust_addresses: Vec<IpAddr>,
    /// `ui-root`: the pages that are shown.
    pub ui: UiRoot,
}

/// The pages of the gateway (`ui-root`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum UiRoot {
    /// Those that are built in.
    #[default]
    BuiltIn,
    /// Those of this directory.
    Directory(PathBuf),
    /// None.
    Nothing,
}

impl Http {
    /// Whether it listens anywhere.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.socket.is_some() || self.listen.is_some()
    }
}

/// What happens to a new request while it cannot be recorded (`record-failure`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordFailure {
    /// It is refused: nothing runs off the record.
    Refuse,
    /// It runs, and is recorded when that works again.
    Run,
}

/// How the processes of a run are kept together (`cgroup`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// A control group (v2) a run where the daemon can make one, else by descent.
    Auto,
    /// Always by descent.
    Off,
}

/// One program: what it runs, for whom, as whom, and within which bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Program {
    /// Line of its section header; 0 for the template of scripts without a section.
    pub line: usize,
    /// `cmd-ACTION`. Without one for `run`, the root directory's script of the same name is run;
    /// with one for `start` the program is supervised.
    pub commands: BTreeMap<ActionName, String>,
    /// Who may, when no list for the action says otherwise.
    pub allow: Allow,
    /// `uid-ACTION` and `gid-ACTION`: each list that is given replaces the one in `allow`.
    pub allow_action: BTreeMap<ActionName, AllowAction>,
    /// Who its processes run as.
    pub run_as: RunAs,
    /// `user-ACTION` and `group-ACTION`, resolved against `run_as`.
    pub run_as_action: BTreeMap<ActionName, RunAs>,
    /// Directory to start in; none means the script's own, or `/` for a command.
    pub cwd: Option<PathBuf>,
    /// File mode creation mask of the child.
    pub umask: u32,
    /// `PATH` of the child.
    pub path: String,
    /// Shell that runs commands.
    pub shell: PathBuf,
    /// `env-NAME`: further environment.
    pub env: BTreeMap<String, String>,
    /// `limit-NAME`: resource limits.
    pub limits: BTreeMap<Resource, Limit>,
    /// Whether clients may pass arguments.
    pub args: Args,
    /// `input-NAME`, in the order of the file.
    pub inputs: Vec<Input>,
    /// How long one run may take.
    pub timeout: Option<Duration>,
    /// `timeout-ACTION`.
    pub timeout_action: BTreeMap<ActionName, Option<Duration>>,
    /// How long after the stop signal KILL follows.
    pub stop_timeout: Duration,
    /// The signal that asks a run to end, a number.
    pub stop_signal: i32,
    /// Which processes are ended with a run.
    pub kill_mode: KillMode,
    /// Whether set-id programs are powerless in the child.
    pub no_new_privs: bool,
    /// Whether a process gets a terminal of its own.
    pub tty: bool,
    /// `tty-ACTION`.
    pub tty_action: BTreeMap<ActionName, bool>,
    /// Whether waiting requests coalesce to the last.
    pub coalesce: bool,
    /// What happens to processes that outlive their run.
    pub leftovers: Leftovers,
    /// `schedule-ACTION`.
    pub schedules: BTreeMap<ActionName, Schedule>,
    /// `hook-ACTION`: the file with the secret of a webhook that asks for the action.
    pub hooks: BTreeMap<ActionName, PathBuf>,
    /// Where its code comes from.
    pub source: Option<Source>,
    /// The group of programs to be started with the daemon that it is in; none: it is in none.
    pub autostart: Option<u32>,
    /// When it is started again by itself, and how.
    pub restart: Restart,
    /// What has to be up before it is started, and down after it.
    pub after: Vec<ProgramName>,
    /// How it says that it is ready; none: it is as soon as it has a process.
    pub ready: Option<Ready>,
    /// How long it may take to be ready.
    pub ready_timeout: Duration,
    /// It is ended when it has not been heard of for so long.
    pub watchdog: Option<Duration>,
    /// Where the output of its supervised process goes.
    pub log: LogTo,
    /// The largest log of one run, in bytes.
    pub log_max_size: u64,
    /// Which logs are kept.
    pub log_keep: Retention,
    /// Which rows of the history are kept.
    pub history_keep: Retention,
}

impl Program {
    /// The command of an action, if the configuration has one.
    #[must_use]
    pub fn command(&self, action: &ActionName) -> Option<&str> {
        self.commands.get(action).map(String::as_str)
    }

    /// Whether it is a long-running program that can be started and stopped.
    #[must_use]
    pub fn is_supervised(&self) -> bool {
        self.commands.contains_key(&ActionName::start())
    }

    /// Whether what it starts is the same, wherever it stands in the file and whoever may use it.
    #[must_use]
    pub fn runs_like(&self, other: &Self) -> bool {
        let bare = |program: &Self| {
            let mut bare = program.clone();
            bare.line = 0;
            bare.allow = Allow::default();
            bare.allow_action.clear();
            bare.schedules.clear();
            bare.hooks.clear();
            bare.source = None;
            bare.run_as.line = 0;
            for run_as in bare.run_as_action.values_mut() {
                run_as.line = 0;
            }
            bare
        };
        bare(self) == bare(other)
    }

    /// Who the processes of `action` run as.
    #[must_use]
    pub fn run_as(&self, action: &ActionName) -> &RunAs {
        self.run_as_action.get(action).unwrap_or(&self.run_as)
    }

    /// Whether the processes of `action` get a terminal of their own.
    #[must_use]
    pub fn has_tty(&self, action: &ActionName) -> bool {
        self.tty_action.get(action).copied().unwrap_or(self.tty)
    }

    /// Whether somebody can sit down at the terminal of its supervised process.
    #[must_use]
    pub fn has_console(&self) -> bool {
        self.is_supervised() && self.has_tty(&ActionName::start())
    }

    /// How long a run of `action` may take; none is without bound.
    #[must_use]
    pub fn timeout(&self, action: &ActionName) -> Option<Duration> {
        self.timeout_action
            .get(action)
            .copied()
            .unwrap_or(self.timeout)
    }
}

/// Lists of who may. Root always may. Both empty: nobody else.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Allow {
    /// `allow-uid`.
    pub uids: Allowed<Uid>,
    /// `allow-gid`.
    pub gids: Allowed<Gid>,
}

/// The lists of one action; a list that is absent leaves the general one in force.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AllowAction {
    /// `uid-ACTION`.
    pub uids: Option<Allowed<Uid>>,
    /// `gid-ACTION`.
    pub gids: Option<Allowed<Gid>>,
}

/// A list of ids and the line that says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed<T> {
    /// The ids; empty for `none`.
    pub ids: Vec<T>,
    /// Line of the configuration file; 0 where nothing was said.
    pub line: usize,
}

impl<T> Default for Allowed<T> {
    fn default() -> Self {
        Self {
            ids: Vec::new(),
            line: 0,
        }
    }
}

/// Who a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs {
    /// `user`; none means the daemon's own user.
    pub user: Option<RunUser>,
    /// `group`; none means the user's primary group (for a bare number: the same number).
    pub group: Option<Gid>,
    /// Line that names the user; 0 where nothing was said.
    pub line: usize,
}

/// A user to run as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunUser {
    /// By name: with that user's groups.
    Named(String),
    /// A bare number: no supplementary groups.
    Number(Uid),
}

/// Whether clients may pass arguments (`args`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Args {
    /// Refused.
    None,
    /// Passed on as they are.
    Any,
}

/// A typed value that a client passes as `NAME=VALUE`, and the script gets as `INPUT_NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Lower-case letters, digits and dashes.
    pub name: String,
    /// Which values are valid.
    pub kind: InputKind,
    /// Used when the client says nothing; none makes the input required (a flag defaults to `no`).
    pub default: Option<String>,
}

/// The type of an input.
#[derive(Debug, Clone)]
pub enum InputKind {
    /// Text that matches a whole pattern; none allows any text without control characters.
    Text(Option<regex_lite::Regex>),
    /// `yes` or `no`.
    Flag,
    /// One of the words.
    Choice(Vec<String>),
    /// A whole number in the range, both ends included.
    Int(i64, i64),
}

impl PartialEq for InputKind {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => {
                a.as_ref().map(|r| r.as_str()) == b.as_ref().map(|r| r.as_str())
            }
            (Self::Flag, Self::Flag) => true,
            (Self::Choice(a), Self::Choice(b)) => a == b,
            (Self::Int(a, b), Self::Int(c, d)) => (a, b) == (c, d),
            _ => false,
        }
    }
}

/// When an action is done by itself (`schedule-ACTION`): times as cron writes them.
#[derive(Debug, Clone)]
pub struct Schedule(pub croner::Cron);

impl PartialEq for Schedule {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

/// As the configuration has it.
impl std::fmt::Display for Schedule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.pattern)
    }
}

/// Where a program's code comes from, and what becomes of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Source {
    /// `source`.
    pub remote: Remote,
    /// `deploy-dir`: releases, and the one that is current.
    pub deploy_dir: PathBuf,
    /// `switch`.
    pub switch: Switch,
    /// `shared`: paths that all releases have in common.
    pub shared: Vec<String>,
    /// `keep`: how many good releases.
    pub keep: u32,
    /// `pre-hooks`: a directory.
    pub pre_hooks: Option<PathBuf>,
    /// `post-hooks`: a directory.
    pub post_hooks: Option<PathBuf>,
    /// `hook-timeout`: how long each hook may take.
    pub hook_timeout: Option<Duration>,
    /// `source-ssh-key`.
    pub ssh_key: Option<PathBuf>,
    /// `source-known-hosts`.
    pub known_hosts: Option<PathBuf>,
    /// `source-token-file`.
    pub token_file: Option<PathBuf>,
    /// `source-verify`: the keys of those who sign.
    pub verify: Option<PathBuf>,
    /// `source-submodules`.
    pub submodules: bool,
    /// `s3-…` and `aws-…`.
    pub s3: S3,
    /// `source-digest`: what an archive has to be.
    pub digest: Option<Digest>,
    /// `source-max-size`: in bytes.
    pub max_size: u64,
    /// `source-max-files`.
    pub max_files: u64,
    /// `after-update`.
    pub after: AfterUpdate,
}

/// How a source in S3 is reached.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct S3 {
    /// `s3-endpoint`: a server of one's own.
    pub endpoint: Option<String>,
    /// `s3-region`.
    pub region: String,
    /// `s3-credentials`: a file.
    pub credentials: Option<PathBuf>,
    /// `aws-access-key`.
    pub access_key: Option<String>,
    /// `aws-secret-key`.
    pub secret_key: Option<String>,
}

impl std::fmt::Debug for S3 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "S3({:?}, {}, …)", self.endpoint, self.region)
    }
}

/// How it is known that an archive is the right one (`source-digest`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Digest {
    /// By its SHA-256, in hexadecimal.
    Is(String),
    /// By the file beside it, with `.sha256` behind its name.
    Beside,
}

/// How a release becomes current (`switch`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Switch {
    /// `current` is a link to it.
    Link,
    /// `current` is a directory, and its files are replaced one by one.
    Sync,
}

/// What is done when another release has become current (`after-update`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub enum AfterUpdate {
    Nothing,
    Run,
    Reload,
    Restart,
}

/// Where the output of a supervised process goes (`log`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTo {
    /// Into a log like that of every run.
    File,
    /// To the machine's journal, straight from the process.
    Journal,
    /// Nowhere.
    Nowhere,
}

/// Which processes end with a run that is stopped (`kill-mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KillMode {
    /// All that descends from it.
    Tree,
    /// Its process alone.
    Process,
    /// None: they end by themselves, or by what `cmd-stop` does.
    None,
}

/// What happens to processes that outlive their run (`leftovers`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftovers {
    /// They stay, and the record says so.
    Keep,
    /// They are ended as by a stop.
    Kill,
    /// The run goes on until they are gone.
    Wait,
}

/// How a supervised program says that it is ready (`ready`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ready {
    /// By the protocol of `sd_notify`.
    Notify,
    /// By a newline on this descriptor.
    Fd(i32),
    /// By listening on this port of the machine itself.
    Tcp(u16),
    /// By this command's success.
    Command(String),
}

/// When a supervised program that ended is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// After which ends (`restart`).
    pub when: RestartWhen,
    /// After how long.
    pub pause: Pause,
    /// So many times in so long and no more (`restart-max`); none is without bound.
    pub most: Option<(u32, Duration)>,
}

/// After which ends a program is started again (`restart`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestartWhen {
    /// After every one.
    Always,
    /// After all but an exit status of 0.
    OnFailure,
    /// After none.
    Never,
}

/// How long after its end a program is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pause {
    /// Always so long (`restart-delay`).
    Fixed(Duration),
    /// First the one, then twice as long each time, up to the other (`restart-backoff`).
    Doubling(Duration, Duration),
}

/// A resource limit's name, as in `limit-NAME`: the POSIX name in lower case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Resource {
    As,
    Core,
    Cpu,
    Data,
    Fsize,
    Memlock,
    Nofile,
    Nproc,
    Stack,
}

/// Soft and hard value of a resource limit; none is unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The limit in force.
    pub soft: Option<u64>,
    /// What the process itself may raise it to.
    pub hard: Option<u64>,
}

/// What is kept: whatever exceeds one of the bounds goes, the oldest first. None is unbounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retention {
    /// Number of runs of one program.
    pub count: Option<u64>,
    /// Time since the end of the run.
    pub age: Option<Duration>,
    /// Bytes of all logs of one program.
    pub size: Option<u64>,
}
