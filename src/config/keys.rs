//! Which keys there are, which actions, and where each may stand: two tables.
//!
//! Beside the actions of the table every `cmd-NAME` of a section is one of its program's own. To
//! add an action that means something to the daemon, add a row to [`ACTIONS`]; to add a key, a
//! variant to [`Key`], a row to `KEYS`, and what it means to `draft`.

use super::diag::{Code, quote};
use super::model::Resource;
use crate::ids::ActionName;

/// An action, as far as policy and configuration care.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActionSpec {
    /// Its name.
    pub name: &'static str,
    /// It has a process of its own, so `cmd-`, `user-`, `group-` and `timeout-` make sense for it.
    pub has_process: bool,
    /// The action whose lists hold for it as long as it has none.
    pub like: Option<&'static str>,
}

/// Every action that means something to the daemon.
pub const ACTIONS: &[ActionSpec] = &[
    ActionSpec {
        name: "run",
        has_process: true,
        like: None,
    },
    ActionSpec {
        name: "cancel",
        has_process: false,
        like: Some("run"),
    },
    own("start"),
    own("restart"),
    own("reload"),
    own("signal"),
    own("stop"),
    own("status"),
    ActionSpec {
        name: "kill",
        has_process: false,
        like: Some("signal"),
    },
    own("update"),
    of_update("rollback"),
    of_update("pin"),
    of_update("unpin"),
    ActionSpec {
        name: FREEZE,
        has_process: false,
        like: None,
    },
];

/// The action that nobody may but root, unless a list of its own says so: it is for those who
/// answer for the machine.
pub const FREEZE: &str = "freeze";

/// What is done to the code of a program, by those who may update it.
const fn of_update(name: &'static str) -> ActionSpec {
    ActionSpec {
        name,
        has_process: false,
        like: Some("update"),
    }
}

const fn own(name: &'static str) -> ActionSpec {
    ActionSpec {
        name,
        has_process: true,
        like: None,
    }
}

/// Commands that are run when a run has ended (`notify-…`). Nobody can ask for them.
pub const NOTICES: [&str; 3] = ["notify-failure", "notify-success", "notify-fixed"];

/// Whether it is one of [`NOTICES`].
#[must_use]
pub fn is_notice(action: &str) -> bool {
    NOTICES.contains(&action)
}

/// The row of an action.
#[must_use]
pub fn action(name: &str) -> Option<&'static ActionSpec> {
    ACTIONS.iter().find(|a| a.name == name)
}

/// A key of the configuration, however it is spelt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)]
pub enum Key {
    SocketPath,
    SocketMode,
    ClientsPerUser,
    Root,
    StateDir,
    LogDir,
    RecordFailure,
    ShutdownTimeout,
    Cgroup,
    DoAutostart,
    HttpSocket,
    HttpSocketMode,
    HttpListen,
    HttpHosts,
    HttpUserHeader,
    HttpTrustUid,
    HttpTrustAddress,
    UiRoot,
    AllowUid,
    AllowGid,
    UidAction(ActionName),
    GidAction(ActionName),
    Command(ActionName),
    User,
    Group,
    UserAction(ActionName),
    GroupAction(ActionName),
    Cwd,
    Umask,
    Path,
    Shell,
    Env(String),
    Limit(Resource),
    Args,
    Input(String),
    Timeout,
    TimeoutAction(ActionName),
    StopTimeout,
    StopSignal,
    KillMode,
    NoNewPrivs,
    Tty,
    TtyAction(ActionName),
    Coalesce,
    Leftovers,
    Notify(&'static str),
    Schedule(ActionName),
    Hook(ActionName),
    Source,
    DeployDir,
    Switch,
    Shared,
    Keep,
    PreHooks,
    PostHooks,
    HookTimeout,
    SshKey,
    KnownHosts,
    TokenFile,
    Verify,
    Submodules,
    S3Endpoint,
    S3Region,
    S3Credentials,
    AwsAccessKey,
    AwsSecretKey,
    Digest,
    MaxSize,
    MaxFiles,
    AfterUpdate,
    Autostart,
    Restart,
    RestartDelay,
    RestartBackoff,
    RestartMax,
    After,
    Ready,
    ReadyTimeout,
    Watchdog,
    Log,
    LogMaxSize,
    LogKeep,
    HistoryKeep,
}

impl Key {
    /// Whether it says something about a source, and nothing without one.
    pub(super) fn needs_source(&self) -> bool {
        use Key::{AfterUpdate, DeployDir, Digest, Shared, Submodules, Switch, Verify};
        matches!(
            self,
            AfterUpdate | DeployDir | Digest | Shared | Submodules | Switch | Verify
        )
    }
}

/// Where a key may stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Before the first section.
    Global,
    /// In a program's section.
    Program,
    /// In both; the global one is the default of the programs.
    Both,
}

impl Scope {
    fn holds(self, place: Self) -> bool {
        self == Self::Both || self == place
    }
}

/// What follows the fixed part of a key.
enum Tail {
    Nothing(Key),
    /// Any action.
    Action(fn(ActionName) -> Key),
    /// An action with a process.
    Process(fn(ActionName) -> Key),
    Env,
    Limit,
    Input,
}

struct KeySpec {
    /// The whole key, or what stands before its tail, with the dash.
    head: &'static str,
    scope: Scope,
    tail: Tail,
}

const fn row(head: &'static str, scope: Scope, tail: Tail) -> KeySpec {
    KeySpec { head, scope, tail }
}

/// Every key, with its old spellings.
const KEYS: &[KeySpec] = {
    use Scope::{Both, Global, Program};
    use Tail::{Action, Nothing, Process};
    &[
        row("socket-path", Global, Nothing(Key::SocketPath)),
        row("socket-mode", Global, Nothing(Key::SocketMode)),
        row("clients-per-user", Global, Nothing(Key::ClientsPerUser)),
        row("root", Global, Nothing(Key::Root)),
        row("state-dir", Global, Nothing(Key::StateDir)),
        row("log-dir", Global, Nothing(Key::LogDir)),
        row("record-failure", Global, Nothing(Key::RecordFailure)),
        row("shutdown-timeout", Global, Nothing(Key::ShutdownTimeout)),
        row("cgroup", Global, Nothing(Key::Cgroup)),
        row("do-autostart", Global, Nothing(Key::DoAutostart)),
        row("http-socket", Global, Nothing(Key::HttpSocket)),
        row("http-socket-mode", Global, Nothing(Key::HttpSocketMode)),
        row("http-listen", Global, Nothing(Key::HttpListen)),
        row("http-hosts", Global, Nothing(Key::HttpHosts)),
        row("http-user-header", Global, Nothing(Key::HttpUserHeader)),
        row("http-trust-uid", Global, Nothing(Key::HttpTrustUid)),
        row("http-trust-address", Global, Nothing(Key::HttpTrustAddress)),
        row("ui-root", Global, Nothing(Key::UiRoot)),
        row("allow-uid", Both, Nothing(Key::AllowUid)),
        row("allow-gid", Both, Nothing(Key::AllowGid)),
        row("uid-", Program, Action(Key::UidAction)),
        row("gid-", Program, Action(Key::GidAction)),
        row("cmd-", Program, Process(Key::Command)),
        row("user", Both, Nothing(Key::User)),
        row("default-suid", Both, Nothing(Key::User)),
        row("group", Both, Nothing(Key::Group)),
        row("default-sgid", Both, Nothing(Key::Group)),
        row("user-", Program, Process(Key::UserAction)),
        row("suid-", Program, Process(Key::UserAction)),
        row("group-", Program, Process(Key::GroupAction)),
        row("sgid-", Program, Process(Key::GroupAction)),
        row("cwd", Both, Nothing(Key::Cwd)),
        row("umask", Both, Nothing(Key::Umask)),
        row("path", Both, Nothing(Key::Path)),
        row("shell", Both, Nothing(Key::Shell)),
        row("env-", Both, Tail::Env),
        row("limit-", Both, Tail::Limit),
        row("args", Both, Nothing(Key::Args)),
        row("input-", Program, Tail::Input),
        row("timeout", Both, Nothing(Key::Timeout)),
        row("timeout-", Program, Process(Key::TimeoutAction)),
        row("stop-timeout", Both, Nothing(Key::StopTimeout)),
        row("stop-signal", Both, Nothing(Key::StopSignal)),
        row("kill-mode", Both, Nothing(Key::KillMode)),
        row("no-new-privs", Both, Nothing(Key::NoNewPrivs)),
        row("tty", Both, Nothing(Key::Tty)),
        row("tty-", Program, Process(Key::TtyAction)),
        row("coalesce", Both, Nothing(Key::Coalesce)),
        row("leftovers", Both, Nothing(Key::Leftovers)),
        row("notify-failure", Both, Nothing(Key::Notify(NOTICES[0]))),
        row("notify-success", Both, Nothing(Key::Notify(NOTICES[1]))),
        row("notify-fixed", Both, Nothing(Key::Notify(NOTICES[2]))),
        row("schedule-", Program, Action(Key::Schedule)),
        row("source", Program, Nothing(Key::Source)),
        row("deploy-dir", Program, Nothing(Key::DeployDir)),
        row("switch", Program, Nothing(Key::Switch)),
        row("shared", Program, Nothing(Key::Shared)),
        row("keep", Both, Nothing(Key::Keep)),
        row("pre-hooks", Both, Nothing(Key::PreHooks)),
        row("post-hooks", Both, Nothing(Key::PostHooks)),
        row("hook-timeout", Both, Nothing(Key::HookTimeout)),
        row("hook-", Program, Action(Key::Hook)),
        row("source-ssh-key", Both, Nothing(Key::SshKey)),
        row("source-known-hosts", Both, Nothing(Key::KnownHosts)),
        row("source-token-file", Both, Nothing(Key::TokenFile)),
        row("source-verify", Program, Nothing(Key::Verify)),
        row("source-submodules", Program, Nothing(Key::Submodules)),
        row("s3-endpoint", Both, Nothing(Key::S3Endpoint)),
        row("s3-region", Both, Nothing(Key::S3Region)),
        row("s3-credentials", Both, Nothing(Key::S3Credentials)),
        row("aws-access-key", Both, Nothing(Key::AwsAccessKey)),
        row("aws-secret-key", Both, Nothing(Key::AwsSecretKey)),
        row("source-digest", Program, Nothing(Key::Digest)),
        row("source-max-size", Both, Nothing(Key::MaxSize)),
        row("source-max-files", Both, Nothing(Key::MaxFiles)),
        row("after-update", Program, Nothing(Key::AfterUpdate)),
        row("autostart", Both, Nothing(Key::Autostart)),
        row("restart", Both, Nothing(Key::Restart)),
        row("restart-delay", Both, Nothing(Key::RestartDelay)),
        row("restart-backoff", Both, Nothing(Key::RestartBackoff)),
        row("restart-max", Both, Nothing(Key::RestartMax)),
        row("after", Program, Nothing(Key::After)),
        row("ready", Program, Nothing(Key::Ready)),
        row("ready-timeout", Both, Nothing(Key::ReadyTimeout)),
        row("watchdog", Program, Nothing(Key::Watchdog)),
        row("log", Both, Nothing(Key::Log)),
        row("log-max-size", Both, Nothing(Key::LogMaxSize)),
        row("log-keep", Both, Nothing(Key::LogKeep)),
        row("history-keep", Both, Nothing(Key::HistoryKeep)),
    ]
};

/// The names of resource limits.
pub(super) const RESOURCES: &[(&str, Resource)] = &[
    ("as", Resource::As),
    ("core", Resource::Core),
    ("cpu", Resource::Cpu),
    ("data", Resource::Data),
    ("fsize", Resource::Fsize),
    ("memlock", Resource::Memlock),
    ("nofile", Resource::Nofile),
    ("nproc", Resource::Nproc),
    ("stack", Resource::Stack),
];

/// Why a key was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct KeyError {
    pub code: Code,
    pub message: String,
    pub help: Option<String>,
}

/// Finds what `text` means in a place, [`Scope::Global`] or [`Scope::Program`].
pub(super) fn lookup(text: &str, place: Scope) -> Result<Key, KeyError> {
    for spec in KEYS {
        let Some(key) = spec.key(text) else { continue };
        let key = key?;
        return if spec.scope.holds(place) {
            Ok(key)
        } else {
            Err(misplaced(text, spec.scope))
        };
    }
    Err(unknown(text, place))
}

impl KeySpec {
    /// The key, if `text` has this form; an error if only its variable part is wrong.
    fn key(&self, text: &str) -> Option<Result<Key, KeyError>> {
        if let Tail::Nothing(key) = &self.tail {
            return (text == self.head).then(|| Ok(key.clone()));
        }
        let tail = text.strip_prefix(self.head)?;
        match &self.tail {
            Tail::Nothing(_) => None,
            // With another tail it may be a misspelt key of another form: left to `unknown`.
            Tail::Action(make) => Some(Ok(make(action_name(tail, false)?))),
            Tail::Process(make) => Some(Ok(make(action_name(tail, true)?))),
            Tail::Limit => {
                let (_, resource) = RESOURCES.iter().find(|(name, _)| *name == tail)?;
                Some(Ok(Key::Limit(*resource)))
            }
            Tail::Env => Some(variable_name(tail).map(Key::Env)),
            Tail::Input => Some(input_name(tail).map(Key::Input)),
        }
    }

    /// Every spelling in full, with the tail of `text` where tails are free.
    fn spellings(&self, text: &str) -> Vec<String> {
        let with = |tails: &mut dyn Iterator<Item = &str>| -> Vec<String> {
            tails.map(|t| format!("{}{t}", self.head)).collect()
        };
        let processes = ACTIONS.iter().filter(|a| a.has_process);
        match &self.tail {
            Tail::Nothing(_) => vec![self.head.to_owned()],
            Tail::Action(_) => with(&mut ACTIONS.iter().map(|a| a.name)),
            Tail::Process(_) => with(&mut processes.map(|a| a.name)),
            Tail::Limit => with(&mut RESOURCES.iter().map(|(name, _)| *name)),
            Tail::Env | Tail::Input => {
                with(&mut text.split_once('-').map(|(_, tail)| tail).into_iter())
            }
        }
    }
}

/// The action of that name, if it is one that can be and, where `process` is asked for, has a
/// process. Whether a program has it is known when all of its section is.
fn action_name(name: &str, process: bool) -> Option<ActionName> {
    if action(name).is_some_and(|a| process && !a.has_process) {
        return None;
    }
    ActionName::new(name).ok()
}

/// The action of the table that a name is a misspelling of, if it looks like one.
pub(super) fn misspelt_action(name: &str) -> Option<&'static str> {
    let near = ACTIONS.iter().map(|a| (distance(name, a.name), a.name));
    near.filter(|(d, _)| *d == 1).map(|(_, name)| name).next()
}

fn misplaced(text: &str, scope: Scope) -> KeyError {
    let (message, help) = match scope {
        Scope::Global => ("is a global key", "move it before the first section"),
        Scope::Program | Scope::Both => ("belongs to a program", "move it below a `[prog-NAME]`"),
    };
    KeyError {
        code: Code::MisplacedKey,
        message: format!("{} {message}", quote(text)),
        help: Some(help.to_owned()),
    }
}

fn unknown(text: &str, place: Scope) -> KeyError {
    if let Some(error) = later(text) {
        return error;
    }
    let help = match (nearest(text, place), text.strip_prefix("limit-")) {
        (Some(near), _) => Some(format!("did you mean `{near}`?")),
        (None, Some(_)) => {
            let names: Vec<_> = RESOURCES.iter().map(|(name, _)| *name).collect();
            Some(format!("the limits are {}", names.join(", ")))
        }
        (None, None) => None,
    };
    KeyError {
        code: Code::UnknownKey,
        message: format!("unknown key {}", quote(text)),
        help,
    }
}

/// An error for keys of actions that have no process.
fn later(text: &str) -> Option<KeyError> {
    for spec in KEYS {
        // An action of the daemon that this form does not take has no process of its own.
        let Tail::Process(_) = spec.tail else {
            continue;
        };
        let name = text.strip_prefix(spec.head);
        let Some(name) = name.filter(|name| action(name).is_some()) else {
            continue;
        };
        let known = ACTIONS.iter().filter(|a| a.has_process);
        let known: Vec<String> = known
            .map(|a| format!("`{}{}`", spec.head, a.name))
            .collect();
        return Some(KeyError {
            code: Code::UnknownKey,
            message: format!(
                "{}: the action {name} has no process of its own",
                quote(text)
            ),
            help: Some(format!("there is {}", known.join(", "))),
        });
    }
    None
}

/// The known key most like `text`; keys that may stand here come first.
fn nearest(text: &str, place: Scope) -> Option<String> {
    // A key as long as a line is no misspelling, and comparing it would take long.
    if text.len() > 80 {
        return None;
    }
    let far = (text.chars().count() / 3).clamp(1, 4);
    KEYS.iter()
        .flat_map(|spec| spec.spellings(text).into_iter().map(move |s| (spec, s)))
        .filter(|(_, s)| s.len().abs_diff(text.len()) <= 4 * far)
        .map(|(spec, s)| (distance(text, &s), !spec.scope.holds(place), s))
        .filter(|(d, ..)| *d > 0 && *d <= far)
        .min()
        .map(|(_, _, s)| s)
}

/// How many characters have to be inserted, removed, replaced or swapped with their neighbour.
pub(super) fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows: Vec<Vec<usize>> = vec![(0..=b.len()).collect()];
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replaced = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replaced.min(rows[i - 1][j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(rows[i - 2][j - 2] + 1);
            }
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

/// Variables that the daemon sets itself.
const RESERVED: &[&str] = &[
    "PATH", "SHELL", "PROGNAME", "ACTION", "PID", "HOME", "USER", "LOGNAME",
];
const RESERVED_PREFIXES: &[&str] = &["DEPLOYER_", "INPUT_"];

fn variable_name(name: &str) -> Result<String, KeyError> {
    let bad = |message: String, help: String| {
        Err(KeyError {
            code: Code::BadVariable,
            message,
            help: Some(help),
        })
    };
    let first = |c: char| c.is_ascii_alphabetic() || c == '_';
    if !name.starts_with(first) || !name.chars().all(|c| first(c) || c.is_ascii_digit()) {
        return bad(
            format!("{} is not a name for an environment variable", quote(name)),
            "letters, digits and `_`, not a digit first".to_owned(),
        );
    }
    if RESERVED.contains(&name) || RESERVED_PREFIXES.iter().any(|p| name.starts_with(p)) {
        let help = match name {
            "PATH" => "use the key `path`".to_owned(),
            "SHELL" => "use the key `shell`".to_owned(),
            "HOME" | "USER" | "LOGNAME" => "it follows from the key `user`".to_owned(),
            _ => "choose another name".to_owned(),
        };
        return bad(
            format!("the variable {} is set by the daemon", quote(name)),
            help,
        );
    }
    Ok(name.to_owned())
}

fn input_name(name: &str) -> Result<String, KeyError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.chars().all(allowed) {
        return Ok(name.to_owned());
    }
    Err(KeyError {
        code: Code::BadVariable,
        message: format!("{} is not a name for an input", quote(name)),
        help: Some("lower-case letters, digits and `-`, a letter first".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str, place: Scope) -> KeyError {
        lookup(text, place).unwrap_err()
    }

    fn help(text: &str, place: Scope) -> String {
        error(text, place).help.unwrap_or_default()
    }

    #[test]
    fn old_and_new_spellings_are_the_same_key() {
        for (old, new) in [
            ("default-suid", "user"),
            ("default-sgid", "group"),
            ("suid-run", "user-run"),
            ("sgid-run", "group-run"),
        ] {
            assert_eq!(lookup(old, Scope::Program), lookup(new, Scope::Program));
        }
    }

    #[test]
    fn every_spelling_of_the_table_is_found_where_it_belongs() {
        for spec in KEYS {
            for text in spec.spellings("x-name") {
                for place in [Scope::Global, Scope::Program] {
                    let found = lookup(&text, place);
                    assert_eq!(found.is_ok(), spec.scope.holds(place), "{text}: {found:?}");
                }
            }
        }
    }

    #[test]
    fn a_misspelt_key_gets_the_nearest_one() {
        for (text, near) in [
            ("alow-uid", "allow-uid"),
            ("allow_uid", "allow-uid"),
            ("comand-run", "cmd-run"),
            ("limit-nofiles", "limit-nofile"),
            ("inptu-branch", "input-branch"),
            ("evn-LANG", "env-LANG"),
            ("Timeout", "timeout"),
            ("users", "user"),
            ("kill_mode", "kill-mode"),
        ] {
            assert_eq!(
                help(text, Scope::Program),
                format!("did you mean `{near}`?"),
                "{text}"
            );
        }
        assert_eq!(error("zzz", Scope::Program).help, None);
        assert_eq!(
            help("scoket-path", Scope::Program),
            "did you mean `socket-path`?"
        );
    }

    #[test]
    fn actions_of_the_daemon_have_no_commands() {
        for text in ["cmd-cancel", "cmd-kill", "user-kill"] {
            assert_eq!(error(text, Scope::Program).code, Code::UnknownKey, "{text}");
        }
    }

    #[test]
    fn variables_of_the_daemon_cannot_be_set() {
        for name in [
            "PATH",
            "PID",
            "HOME",
            "DEPLOYER_RUN",
            "INPUT_X",
            "1A",
            "A-B",
            "",
            "ä",
            "A B",
        ] {
            let text = format!("env-{name}");
            assert_eq!(
                error(&text, Scope::Global).code,
                Code::BadVariable,
                "{name}"
            );
        }
        assert_eq!(lookup("env-_x1", Scope::Global), Ok(Key::Env("_x1".into())));
    }

    #[test]
    fn the_distance_counts_a_swap_once() {
        assert_eq!(distance("abc", "acb"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("kitten", "sitting"), 3);
    }
}
