//! One key after another: from values to the fields of a configuration, and what stands there
//! where the file says nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use super::diag::{Place, Report, quote};
use super::ini::Entry;
use super::inputs;
use super::keys::{self, Key};
use super::model::{
    AfterUpdate, Allow, Allowed, Args, Cgroup, Global, Http, KillMode, Leftovers, LogTo, Pause,
    Program, Ready, RecordFailure, Restart, RestartWhen, Retention, RunAs, RunUser, S3, Schedule,
    Source, Switch, UiRoot,
};
use super::people::{Names, groups, run_group, run_user, users};
use super::remote::{self, Remote};
use super::values::{self, Bad, Bounds};
use crate::ids::{ActionName, Gid, ProgramName, Uid};

/// The daemon's settings where the file says nothing.
pub(super) fn default_global() -> Global {
    Global {
        socket_path: "/var/run/deployer".into(),
        socket_mode: 0o666,
        clients_per_user: 1024,
        root: "/usr/share/deployer".into(),
        state_dir: "/var/lib/deployer".into(),
        log_dir: "/var/log/deployer".into(),
        record_failure: RecordFailure::Refuse,
        shutdown_timeout: Duration::from_secs(30),
        cgroup: Cgroup::Auto,
        do_autostart: u32::MAX,
        http: Http {
            socket_mode: 0o666,
            ..Http::default()
        },
    }
}

/// A program where the file says nothing.
pub(super) fn default_program() -> Program {
    let days = |n: u64| Some(Duration::from_secs(n * 86_400));
    Program {
        line: 0,
        commands: BTreeMap::new(),
        allow: Allow::default(),
        allow_action: BTreeMap::new(),
        run_as: RunAs {
            user: None,
            group: None,
            line: 0,
        },
        run_as_action: BTreeMap::new(),
        cwd: None,
        umask: 0o022,
        path: "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned(),
        shell: "/bin/sh".into(),
        env: BTreeMap::new(),
        limits: BTreeMap::new(),
        args: Args::None,
        inputs: Vec::new(),
        timeout: None,
        timeout_action: BTreeMap::new(),
        stop_timeout: Duration::from_secs(10),
        stop_signal: 15,
        kill_mode: KillMode::Tree,
        no_new_privs: true,
        tty: false,
        tty_action: BTreeMap::new(),
        coalesce: true,
        leftovers: Leftovers::Keep,
        schedules: BTreeMap::new(),
        hooks: BTreeMap::new(),
        source: None,
        autostart: None,
        restart: Restart {
            when: RestartWhen::Never,
            pause: Pause::Doubling(Duration::from_millis(500), Duration::from_secs(60)),
            most: Some((10, Duration::from_secs(300))),
        },
        after: Vec::new(),
        ready: None,
        ready_timeout: Duration::from_secs(60),
        watchdog: None,
        log: LogTo::File,
        log_max_size: 1 << 30,
        log_keep: Retention {
            count: Some(100),
            age: days(30),
            size: Some(4 << 30),
        },
        history_keep: Retention {
            count: Some(1000),
            age: days(90),
            size: None,
        },
    }
}

/// What belongs to a source where the file says nothing. The remote is put in its place later.
fn default_source() -> Source {
    Source {
        remote: Remote::Git {
            url: String::new(),
            login: None,
            reference: None,
            path: None,
        },
        deploy_dir: "/var/deploy".into(),
        switch: Switch::Link,
        shared: Vec::new(),
        keep: 5,
        pre_hooks: None,
        post_hooks: None,
        hook_timeout: Some(Duration::from_secs(600)),
        ssh_key: None,
        known_hosts: None,
        token_file: None,
        verify: None,
        submodules: false,
        s3: S3 {
            region: "us-east-1".to_owned(),
            ..S3::default()
        },
        digest: None,
        max_size: 4 << 30,
        max_files: 1_000_000,
        after: AfterUpdate::Nothing,
    }
}

/// A program while its keys are read: what can only be settled when all are known stands apart.
#[derive(Clone)]
pub(super) struct Draft {
    pub program: Program,
    args: Option<Args>,
    restart: Option<RestartWhen>,
    delay: Option<Option<Duration>>,
    backoff: Option<(Duration, Duration)>,
    most: Option<Option<(u32, Duration)>>,
    users: BTreeMap<ActionName, (Option<RunUser>, usize)>,
    groups: BTreeMap<ActionName, Gid>,
    schedules: BTreeMap<ActionName, Option<Schedule>>,
    remote: Option<Remote>,
    source: Source,
}

impl Draft {
    pub fn new() -> Self {
        Self {
            program: default_program(),
            args: None,
            restart: None,
            delay: None,
            backoff: None,
            most: None,
            users: BTreeMap::new(),
            groups: BTreeMap::new(),
            schedules: BTreeMap::new(),
            remote: None,
            source: default_source(),
        }
    }

    pub fn finish(mut self) -> Program {
        let program = &mut self.program;
        // A script of the root directory was written without a thought of arguments.
        let own = |action: &ActionName| !keys::is_notice(action.as_str());
        let usual = if program.commands.keys().any(own) {
            Args::Any
        } else {
            Args::None
        };
        program.args = self.args.unwrap_or(usual);
        let restart = &mut program.restart;
        // As in procmgr a delay alone means: always, after that time, however often.
        let delay = self.delay.flatten();
        let usual = match (delay, self.backoff) {
            (None, None) => RestartWhen::Never,
            _ => RestartWhen::Always,
        };
        restart.when = self.restart.unwrap_or(usual);
        match (delay, self.backoff) {
            (_, Some((first, longest))) => restart.pause = Pause::Doubling(first, longest),
            (Some(delay), None) => {
                restart.pause = Pause::Fixed(delay);
                restart.most = None;
            }
            (None, None) => {}
        }
        if let Some(most) = self.most {
            restart.most = most;
        }
        let mut schedules = self.schedules;
        if let Some(remote) = self.remote {
            program.source = Some(Source {
                remote,
                ..self.source
            });
            let update = schedules.entry(ActionName::update());
            update.or_insert_with(|| values::schedule("* * * * *").unwrap_or_default());
        }
        let schedules = schedules.into_iter();
        program.schedules = schedules.filter_map(|(a, s)| Some((a, s?))).collect();
        for action in self.users.keys().chain(self.groups.keys()) {
            let mut run_as = program.run_as.clone();
            if let Some((user, line)) = self.users.get(action) {
                run_as.user.clone_from(user);
                run_as.line = *line;
            }
            if let Some(group) = self.groups.get(action) {
                run_as.group = Some(*group);
            }
            program.run_as_action.insert(action.clone(), run_as);
        }
        self.program
    }
}

/// Reads the values of keys into the places where they belong, and reports those it cannot.
pub(super) struct Reader<'a> {
    pub names: &'a dyn Names,
    pub report: &'a mut Report,
}

impl Reader<'_> {
    /// Takes over a setting of the daemon; false if the key is not one.
    pub fn daemon_key(&mut self, key: &Key, entry: &Entry, global: &mut Global) -> bool {
        let v = entry.value.as_str();
        match key {
            Key::SocketPath => self.set(entry, values::socket_path(v), &mut global.socket_path),
            Key::SocketMode => self.set(entry, values::mode(v), &mut global.socket_mode),
            Key::ClientsPerUser => self.set(entry, values::count(v), &mut global.clients_per_user),
            Key::Root => self.set(entry, values::path(v), &mut global.root),
            Key::StateDir => self.set(entry, values::path(v), &mut global.state_dir),
            Key::LogDir => self.set(entry, values::path(v), &mut global.log_dir),
            Key::RecordFailure => {
                let words = [
                    ("refuse", RecordFailure::Refuse),
                    ("run", RecordFailure::Run),
                ];
                self.set(entry, values::word(v, &words), &mut global.record_failure);
            }
            Key::ShutdownTimeout => {
                self.set(entry, values::duration(v), &mut global.shutdown_timeout);
            }
            Key::Cgroup => {
                let auto = values::word(v, &[("auto", true), ("off", false)]);
                let cgroup = auto.map(|auto| if auto { Cgroup::Auto } else { Cgroup::Off });
                self.set(entry, cgroup, &mut global.cgroup);
            }
            Key::DoAutostart => {
                let groups = super::autostart_groups(v);
                let groups = groups.map_err(|message| {
                    Bad::new(message, "write `yes`, `no` or a number of at least 1")
                });
                self.set(entry, groups, &mut global.do_autostart);
            }
            Key::HttpSocket => global.http.socket = self.value(entry, values::socket_path(v)),
            Key::HttpSocketMode => {
                self.set(entry, values::mode(v), &mut global.http.socket_mode);
            }
            Key::HttpListen => global.http.listen = self.value(entry, values::address(v)),
            Key::HttpHosts => self.set(entry, values::hosts(v), &mut global.http.hosts),
            Key::HttpUserHeader => {
                global.http.user_header = self.value(entry, values::header(v));
            }
            Key::HttpTrustUid => global.http.trust_uids = self.uids(entry).ids,
            Key::HttpTrustAddress => {
                let addresses = values::ip_addresses(v);
                self.set(entry, addresses, &mut global.http.trust_addresses);
            }
            Key::UiRoot => {
                let ui = match v {
                    "none" => Ok(UiRoot::Nothing),
                    _ => values::path(v).map(UiRoot::Directory),
                };
                self.set(entry, ui, &mut global.http.ui);
            }
            _ => return false,
        }
        true
    }

    fn set<T>(&mut self, entry: &Entry, result: Result<T, Bad>, target: &mut T) {
        if let Some(value) = self.value(entry, result) {
            *target = value;
        }
    }

    /// Takes over a setting of a program, or the global default of one.
    pub fn program_key(&mut self, key: Key, entry: &Entry, draft: &mut Draft) {
        let v = entry.value.as_str();
        let p = &mut draft.program;
        match key {
            Key::AllowUid => p.allow.uids = self.uids(entry),
            Key::AllowGid => p.allow.gids = self.gids(entry),
            Key::UidAction(action) => {
                p.allow_action.entry(action).or_default().uids = Some(self.uids(entry));
            }
            Key::GidAction(action) => {
                p.allow_action.entry(action).or_default().gids = Some(self.gids(entry));
            }
            Key::Command(action) => {
                p.commands.insert(action, v.to_owned());
            }
            Key::User => {
                p.run_as.user = self.value(entry, run_user(v, self.names));
                p.run_as.line = entry.line;
            }
            Key::Group => p.run_as.group = self.value(entry, run_group(v, self.names)),
            Key::UserAction(action) => {
                let user = self.value(entry, run_user(v, self.names));
                draft.users.insert(action, (user, entry.line));
            }
            Key::GroupAction(action) => {
                if let Some(group) = self.value(entry, run_group(v, self.names)) {
                    draft.groups.insert(action, group);
                }
            }
            Key::Cwd => p.cwd = self.value(entry, values::path(v)),
            Key::Umask => self.set(entry, values::mode(v), &mut p.umask),
            Key::Path => self.set(entry, values::search_path(v), &mut p.path),
            Key::Shell => self.set(entry, values::path(v), &mut p.shell),
            Key::Env(name) => {
                p.env.insert(name, v.to_owned());
            }
            Key::Limit(resource) => {
                if let Some(limit) = self.value(entry, values::limit(resource, v)) {
                    p.limits.insert(resource, limit);
                }
            }
            Key::Args => {
                let words = [("none", Args::None), ("any", Args::Any)];
                draft.args = self.value(entry, values::word(v, &words));
            }
            Key::Input(name) => p.inputs.extend(self.value(entry, inputs::parse(&name, v))),
            Key::Timeout => self.set(entry, values::optional_duration(v), &mut p.timeout),
            Key::TimeoutAction(action) => {
                if let Some(timeout) = self.value(entry, values::optional_duration(v)) {
                    p.timeout_action.insert(action, timeout);
                }
            }
            Key::StopTimeout => self.set(entry, values::duration(v), &mut p.stop_timeout),
            Key::StopSignal => self.set(entry, values::signal(v), &mut p.stop_signal),
            Key::KillMode => {
                let words = [
                    ("tree", KillMode::Tree),
                    ("process", KillMode::Process),
                    ("none", KillMode::None),
                ];
                self.set(entry, values::word(v, &words), &mut p.kill_mode);
            }
            Key::NoNewPrivs => self.set(entry, values::yes_no(v), &mut p.no_new_privs),
            Key::Tty => self.set(entry, values::yes_no(v), &mut p.tty),
            Key::TtyAction(action) => {
                if let Some(tty) = self.value(entry, values::yes_no(v)) {
                    p.tty_action.insert(action, tty);
                }
            }
            Key::Coalesce => self.set(entry, values::yes_no(v), &mut p.coalesce),
            Key::Leftovers => {
                let words = [
                    ("keep", Leftovers::Keep),
                    ("kill", Leftovers::Kill),
                    ("wait", Leftovers::Wait),
                ];
                self.set(entry, values::word(v, &words), &mut p.leftovers);
            }
            Key::Notify(notice) => {
                if let Ok(action) = ActionName::new(notice) {
                    p.commands.insert(action, v.to_owned());
                }
            }
            Key::Schedule(action) => {
                if let Some(schedule) = self.value(entry, values::schedule(v)) {
                    draft.schedules.insert(action, schedule);
                }
            }
            Key::Hook(action) => {
                if let Some(path) = self.value(entry, values::path(v)) {
                    p.hooks.insert(action, path);
                }
            }
            Key::Source => {
                let remote = remote::parse(v).map_err(|e| {
                    let help = "write for example `git@host:team/app.git#main`";
                    Bad::new(format!("the source {e}"), help)
                });
                draft.remote = self.value(entry, remote);
            }
            Key::DeployDir => self.set(entry, values::path(v), &mut draft.source.deploy_dir),
            Key::Switch => {
                let words = [("link", Switch::Link), ("sync", Switch::Sync)];
                self.set(entry, values::word(v, &words), &mut draft.source.switch);
            }
            Key::Shared => self.set(entry, values::inner_paths(v), &mut draft.source.shared),
            Key::Keep => self.set(entry, values::count(v), &mut draft.source.keep),
            Key::PreHooks => draft.source.pre_hooks = self.value(entry, values::path(v)),
            Key::PostHooks => draft.source.post_hooks = self.value(entry, values::path(v)),
            Key::HookTimeout => {
                let timeout = values::optional_duration(v);
                self.set(entry, timeout, &mut draft.source.hook_timeout);
            }
            Key::SshKey => draft.source.ssh_key = self.value(entry, values::path(v)),
            Key::KnownHosts => draft.source.known_hosts = self.value(entry, values::path(v)),
            Key::TokenFile => draft.source.token_file = self.value(entry, values::path(v)),
            Key::Verify => draft.source.verify = self.value(entry, values::path(v)),
            Key::Submodules => self.set(entry, values::yes_no(v), &mut draft.source.submodules),
            Key::S3Endpoint => draft.source.s3.endpoint = self.value(entry, values::web_address(v)),
            Key::S3Region => draft.source.s3.region = v.to_owned(),
            Key::S3Credentials => draft.source.s3.credentials = self.value(entry, values::path(v)),
            Key::AwsAccessKey => draft.source.s3.access_key = Some(v.to_owned()),
            Key::AwsSecretKey => draft.source.s3.secret_key = Some(v.to_owned()),
            Key::Digest => draft.source.digest = self.value(entry, values::digest(v)),
            Key::MaxSize => self.set(entry, values::size(v), &mut draft.source.max_size),
            Key::MaxFiles => {
                let count = values::count(v).map(u64::from);
                self.set(entry, count, &mut draft.source.max_files);
            }
            Key::AfterUpdate => {
                let words = [
                    ("none", AfterUpdate::Nothing),
                    ("run", AfterUpdate::Run),
                    ("reload", AfterUpdate::Reload),
                    ("restart", AfterUpdate::Restart),
                ];
                self.set(entry, values::word(v, &words), &mut draft.source.after);
            }
            Key::Autostart => self.set(entry, values::group_number(v), &mut p.autostart),
            Key::Restart => {
                let words = [
                    ("always", RestartWhen::Always),
                    ("on-failure", RestartWhen::OnFailure),
                    ("never", RestartWhen::Never),
                ];
                draft.restart = self.value(entry, values::word(v, &words));
            }
            Key::RestartDelay => draft.delay = self.value(entry, values::restart_delay(v)),
            Key::RestartBackoff => draft.backoff = self.value(entry, values::durations(v)),
            Key::RestartMax => draft.most = self.value(entry, values::rate(v)),
            Key::After => p.after = self.programs(entry),
            Key::Ready => {
                p.ready = self.value(entry, values::ready(v));
                if let Some(Ready::Command(command)) = &p.ready {
                    // Run as an action of its own, until it succeeds.
                    let command = format!("until {{ {command}\n}}; do sleep 0.2\ndone");
                    p.commands.insert(ActionName::ready(), command);
                }
            }
            Key::ReadyTimeout => self.set(entry, values::duration(v), &mut p.ready_timeout),
            Key::Watchdog => self.set(entry, values::optional_duration(v), &mut p.watchdog),
            Key::Log => {
                let words = [
                    ("file", LogTo::File),
                    ("journald", LogTo::Journal),
                    ("none", LogTo::Nowhere),
                ];
                self.set(entry, values::word(v, &words), &mut p.log);
            }
            Key::LogMaxSize => self.set(entry, values::size(v), &mut p.log_max_size),
            Key::LogKeep => self.set(entry, values::retention(v, Bounds::Logs), &mut p.log_keep),
            Key::HistoryKeep => {
                self.set(
                    entry,
                    values::retention(v, Bounds::Rows),
                    &mut p.history_keep,
                );
            }
            // Never in a program, says the table; and of globals `daemon_key` takes them first.
            Key::SocketPath
            | Key::SocketMode
            | Key::ClientsPerUser
            | Key::Root
            | Key::StateDir
            | Key::LogDir
            | Key::RecordFailure
            | Key::ShutdownTimeout
            | Key::Cgroup
            | Key::DoAutostart
            | Key::HttpSocket
            | Key::HttpSocketMode
            | Key::HttpListen
            | Key::HttpHosts
            | Key::HttpUserHeader
            | Key::HttpTrustUid
            | Key::HttpTrustAddress
            | Key::UiRoot => {}
        }
    }

    /// Names of programs.
    fn programs(&mut self, entry: &Entry) -> Vec<ProgramName> {
        let mut names = Vec::new();
        for item in values::items(&entry.value) {
            match ProgramName::new(item.text) {
                Ok(name) => names.push(name),
                Err(e) => {
                    let message = format!("the program name {} {e}", quote(item.text));
                    self.bad(
                        entry,
                        Bad::new(message, "name programs of this file").at(&item),
                    );
                }
            }
        }
        names
    }

    fn uids(&mut self, entry: &Entry) -> Allowed<Uid> {
        let found = users(&entry.value, self.names);
        self.allowed(entry, found)
    }

    fn gids(&mut self, entry: &Entry) -> Allowed<Gid> {
        let found = groups(&entry.value, self.names);
        self.allowed(entry, found)
    }

    /// A list with its line; nobody's if anything is wrong with it.
    fn allowed<T>(&mut self, entry: &Entry, found: Result<Vec<T>, Vec<Bad>>) -> Allowed<T> {
        let ids = found.unwrap_or_else(|bad| {
            for bad in bad {
                self.bad(entry, bad);
            }
            Vec::new()
        });
        Allowed {
            ids,
            line: entry.line,
        }
    }

    /// Reports why `entry` cannot have its value; hands on a good one.
    fn value<T>(&mut self, entry: &Entry, result: Result<T, Bad>) -> Option<T> {
        result.map_err(|bad| self.bad(entry, bad)).ok()
    }

    fn bad(&mut self, entry: &Entry, bad: Bad) {
        let span = bad.span.unwrap_or_else(|| 0..entry.value.chars().count());
        let at = Place {
            line: entry.line,
            col: entry.value_col + span.start,
            width: span.len(),
        };
        self.report.error(bad.code, at, bad.message, bad.help);
    }
}
