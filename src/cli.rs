//! The command line: arguments in, a [`Command`] out. No effects.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::ids::ActionName;
use crate::protocol::message::CodeQuestion;

/// Where the configuration is when nothing says otherwise.
pub const DEFAULT_CONFIG: &str = "/etc/deployer.cfg";

/// Where the daemon is, and how it is asked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Target {
    /// `-c`, or `$DEPLOYER_CONFFILE`.
    pub config: Option<PathBuf>,
    /// `--socket`.
    pub socket: Option<PathBuf>,
}

/// What the command line asks for.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Become the daemon.
    Daemon(DaemonOptions),
    /// `-t`
    Test,
    /// `-s`
    Stop,
    /// `-r`
    Reload,
    /// `-a`
    List {
        /// As a table, with all there is to say (`LIST`).
        long: bool,
        /// Names end with NUL, and nothing else is printed.
        nul: bool,
        /// One JSON object a line.
        json: bool,
    },
    /// `RUN`
    Run(RunOptions),
    /// `LOGS`
    Logs(LogsOptions),
    /// `ATTACH`
    Attach {
        /// The run, or a supervised program.
        what: String,
    },
    /// `RELEASES`, `WHY`, `VERIFY`, `PLAN`
    Code {
        /// The program.
        program: String,
        /// Which of them.
        about: CodeQuestion,
        /// As JSON.
        json: bool,
    },
    /// `FREEZE`
    Freeze {
        /// The program.
        program: String,
        /// Why.
        reason: String,
        /// For how long, as the configuration writes durations.
        time: Option<String>,
    },
    /// `THAW`
    Thaw {
        /// The program.
        program: String,
    },
    /// `TOKEN`
    Token(TokenCommand),
    /// `HISTORY`
    History(HistoryOptions),
    /// `CANCEL`
    Cancel {
        /// The run.
        id: u64,
    },
    /// `IMPORT`
    Import {
        /// Whose file it is.
        kind: String,
        /// The file.
        file: PathBuf,
    },
    /// `PROGRAM kill SIGNAL`
    Kill {
        /// The program.
        program: String,
        /// The signal, a name or a number.
        signal: String,
    },
    /// `CAN`
    Can(CanOptions),
    /// `UI`
    Ui,
    /// `CHECK`
    Check {
        /// What a reload would change.
        diff: bool,
    },
}

/// What `deployer -d` is given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DaemonOptions {
    /// Stay in the foreground.
    pub foreground: bool,
    /// Where the keeper's pid is written.
    pub pid_file: Option<PathBuf>,
    /// A file, `syslog` or `stderr`.
    pub log: Option<String>,
    /// The least severe messages that are logged.
    pub log_level: Option<String>,
    /// Run as this user.
    pub user: Option<String>,
    /// Run as this group.
    pub group: Option<String>,
    /// Permission bits of the socket, instead of the configuration's.
    pub mode: Option<String>,
    /// Script directory, instead of the configuration's.
    pub root: Option<PathBuf>,
    /// Which programs are started, instead of the configuration's `do-autostart`.
    pub autostart: Option<String>,
}

/// What `TOKEN` is given.
#[derive(Debug, Clone, PartialEq, Eq, Subcommand)]
pub enum TokenCommand {
    /// Make one, and print it once
    Add {
        /// A program that it is for (several times for several)
        #[arg(long = "program", value_name = "PROGRAM", required = true)]
        programs: Vec<String>,
        /// An action that it is for (several times for several)
        #[arg(long = "action", value_name = "ACTION", default_value = "run")]
        actions: Vec<String>,
        /// How long it counts, such as 90d, or `never`
        #[arg(long, value_name = "TIME", default_value = "90d")]
        expires: String,
        /// What you call it
        #[arg(long, default_value = "")]
        name: String,
    },
    /// List yours; as root, all
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Let one count no more
    Remove {
        /// Its number
        id: u64,
    },
}

/// What `RUN` is given.
#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct RunOptions {
    /// The program to run, such as `app` or `team/app`
    pub program: String,
    /// What to do with it.
    #[arg(skip = "run")]
    pub action: String,
    /// Values for the program's inputs
    #[arg(value_name = "NAME=VALUE")]
    pub inputs: Vec<String>,
    /// Arguments for its script, if it takes any
    #[arg(last = true, value_name = "ARG")]
    pub args: Vec<OsString>,
    /// Say why; it stands in the history
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Return as soon as the request is on record, and print its number
    #[arg(long)]
    pub detach: bool,
    /// Print the record of the run as one JSON object instead of its output
    #[arg(long)]
    pub json: bool,
}

impl Default for RunOptions {
    fn default() -> Self {
        Self {
            program: String::new(),
            action: "run".to_owned(),
            inputs: Vec::new(),
            args: Vec::new(),
            reason: None,
            detach: false,
            json: false,
        }
    }
}

/// What `LOGS` is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct LogsOptions {
    /// A program (its latest run is meant) or the number of a run
    #[arg(value_name = "PROGRAM|ID")]
    pub what: String,
    /// Go on until the run is over
    #[arg(short, long)]
    pub follow: bool,
    /// Put the time of arrival before each line
    #[arg(long)]
    pub timestamps: bool,
    /// Only one of the two streams
    #[arg(long, value_name = "out|err", value_parser = ["out", "err"])]
    pub stream: Option<String>,
}

/// What `HISTORY` is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct HistoryOptions {
    /// A program or the number of a run; without it, everything that you may see
    #[arg(value_name = "PROGRAM|ID")]
    pub what: Option<String>,
    /// Only the newest N
    #[arg(short = 'n', long = "limit", value_name = "N")]
    pub limit: Option<u64>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// What `CAN` is given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Args)]
pub struct CanOptions {
    /// Only this program
    pub program: Option<String>,
    /// Only this action
    pub action: Option<String>,
    /// For root: what somebody else may, and which line of the configuration says so
    #[arg(long, value_name = "NAME|UID")]
    pub user: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    pub json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  deployer RUN app                         run app's script, show its output, exit as it did
  deployer RUN app branch=main --reason \"fix login\"
  deployer LOGS app -f                     watch the latest run of app
  deployer HISTORY app -n 5                who ran it, when, and how it came out
  deployer CAN                             what you may do here
  deployer -d -c /etc/deployer.cfg         start the daemon

Verbs may be written in lower case. `deployer RUN --help` explains one of them.
Exit status of RUN: the script's own; killed by a signal: the client dies of the same one;
124 timed out, 125 refused or no daemon, 126 could not be executed, 127 not found.";

#[derive(Debug, Parser)]
#[command(
    name = "deployer",
    version,
    about = "Deploy and manage programs without sudo.",
    after_help = AFTER_HELP,
    subcommand_value_name = "VERB",
    subcommand_help_heading = "Verbs",
    disable_help_subcommand = true,
    args_conflicts_with_subcommands = false,
    override_usage = "deployer [-c FILE] VERB …\n       deployer [-c FILE] PROGRAM ACTION [NAME=VALUE…] [-- ARG…]\n       deployer [-c FILE] -d [-f] | -t | -s | -r | -a [-0]"
)]
struct Arguments {
    /// Configuration file [default: $DEPLOYER_CONFFILE, then /etc/deployer.cfg]
    #[arg(short, long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Socket of the daemon, instead of the configuration's
    #[arg(long, value_name = "PATH", global = true)]
    socket: Option<PathBuf>,
    /// Start the daemon
    #[arg(short, long, group = "mode")]
    daemon: bool,
    /// Tell whether the daemon is running (exit status 0 or 1)
    #[arg(short, long, group = "mode")]
    test: bool,
    /// Stop the daemon
    #[arg(short, long, group = "mode")]
    stop: bool,
    /// Make the daemon read its configuration again
    #[arg(short, long, group = "mode")]
    reload: bool,
    /// List the programs that you may use
    #[arg(short = 'a', long = "list", group = "mode")]
    all: bool,
    /// With -a: names only, each ended by a NUL
    #[arg(short = '0', long = "null", requires = "all")]
    nul: bool,
    /// With -a: one JSON object a line
    #[arg(long, requires = "all")]
    json: bool,
    /// With -d: stay in the foreground
    #[arg(short, long, requires = "daemon")]
    foreground: bool,
    /// With -d: write the pid of the service's main process to this file
    #[arg(
        short = 'P',
        long = "pid-file",
        value_name = "FILE",
        requires = "daemon"
    )]
    pid_file: Option<PathBuf>,
    /// With -d: log to this file, to `syslog` or to `stderr`
    #[arg(short = 'l', long = "log", value_name = "FILE", requires = "daemon")]
    log: Option<String>,
    /// With -d: debug, info, warning, error or critical
    #[arg(short = 'L', long = "loglevel", value_name = "LEVEL", requires = "daemon", ignore_case = true,
          value_parser = ["trace", "debug", "info", "warn", "warning", "error", "critical"])]
    log_level: Option<String>,
    /// With -d: run as this user
    #[arg(short = 'u', long = "uid", value_name = "USER", requires = "daemon")]
    user: Option<String>,
    /// With -d: run as this group
    #[arg(short = 'g', long = "gid", value_name = "GROUP", requires = "daemon")]
    group: Option<String>,
    /// With -d: permission bits of the socket, octal
    #[arg(short = 'm', long = "mode", value_name = "MODE", requires = "daemon")]
    socket_mode: Option<String>,
    /// With -d: start the programs whose autostart is at most N, or `no` or `yes`: none or all
    #[arg(short = 'A', long, value_name = "N", requires = "daemon")]
    autostart: Option<String>,
    /// With -d: script directory
    #[arg(long, value_name = "DIR", requires = "daemon")]
    root: Option<PathBuf>,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a program's script and follow it
    #[command(name = "RUN", alias = "run")]
    Run(RunOptions),
    /// Show the output of a run
    #[command(name = "LOGS", alias = "logs")]
    Logs(LogsOptions),
    /// Come back to a run that has a terminal (Ctrl-] leaves it)
    #[command(name = "ATTACH", alias = "attach")]
    Attach {
        /// The number of the run, or a program
        #[arg(value_name = "PROGRAM|ID")]
        what: String,
    },
    /// Stay with the current release, or with this one, whatever the source has
    #[command(name = "PIN", alias = "pin")]
    Pin {
        /// The program
        program: String,
        /// A release, as RELEASES lists them
        release: Option<String>,
        /// Say why; it stands in the history and in WHY
        #[arg(long, value_name = "TEXT")]
        reason: Option<String>,
    },
    /// Follow the source again
    #[command(name = "UNPIN", alias = "unpin")]
    Unpin {
        /// The program
        program: String,
    },
    /// List the releases of a program's code
    #[command(name = "RELEASES", alias = "releases")]
    Releases {
        /// The program
        program: String,
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Say why a program's code is what it is, and not newer
    #[command(name = "WHY", alias = "why")]
    Why {
        /// The program
        program: String,
    },
    /// Say what an update would bring: commits, files, hooks
    #[command(name = "PLAN", alias = "plan")]
    Plan {
        /// The program
        program: String,
    },
    /// Check that the current code is as it was released
    #[command(name = "VERIFY", alias = "verify")]
    Verify {
        /// The program
        program: String,
    },
    /// Let a program stand still: nothing of it is begun until THAW
    #[command(name = "FREEZE", alias = "freeze")]
    Freeze {
        /// The program
        program: String,
        /// Why
        reason: String,
        /// Thaw by itself after this time, such as 2h
        #[arg(long = "for", value_name = "TIME")]
        time: Option<String>,
    },
    /// Make, list and remove tokens for HTTP
    #[command(name = "TOKEN", alias = "token", subcommand)]
    Token(TokenCommand),
    /// Let a frozen program go on
    #[command(name = "THAW", alias = "thaw")]
    Thaw {
        /// The program
        program: String,
    },
    /// Show who ran what, when, and how it came out
    #[command(name = "HISTORY", alias = "history")]
    History(HistoryOptions),
    /// Withdraw a waiting request or end a run
    #[command(name = "CANCEL", alias = "cancel")]
    Cancel {
        /// The number of the run
        id: u64,
    },
    /// Show what you may do
    #[command(name = "CAN", alias = "can")]
    Can(CanOptions),
    /// Show the programs that you may use: their state, process, restarts, memory
    #[command(name = "LIST", alias = "list")]
    List {
        /// One JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Show it all in a browser: serve pages to you alone, on this machine
    #[command(name = "UI", alias = "ui")]
    Ui,
    /// Check a configuration file without touching the daemon
    #[command(name = "CHECK", alias = "check")]
    Check {
        /// For root: what a reload would change in the running daemon, and who gains or loses what
        #[arg(long)]
        diff: bool,
    },
    /// Turn another program's file into a configuration, and say what is different
    #[command(name = "IMPORT", alias = "import")]
    Import {
        /// Whose file it is: procmgr, supervisord or sudoers
        kind: String,
        /// The file
        file: PathBuf,
    },
    #[command(external_subcommand)]
    Program(Vec<OsString>),
}

/// A `deployer PROGRAM ACTION …` line, behind its program.
#[derive(Debug, Parser)]
#[command(name = "deployer", disable_help_flag = true)]
struct ProgramLine {
    #[arg(value_name = "PROGRAM")]
    program: String,
    #[arg(value_name = "ACTION")]
    action: String,
    #[arg(value_name = "NAME=VALUE|ARG")]
    words: Vec<String>,
    #[arg(last = true, value_name = "ARG")]
    args: Vec<OsString>,
    #[arg(long)]
    reason: Option<String>,
    #[arg(long)]
    detach: bool,
    #[arg(long)]
    json: bool,
    #[arg(long)]
    force: bool,
}

/// A command line that cannot be followed: text for the terminal, and the exit status
/// (0 for `--help` and `--version`, whose text belongs on stdout).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// What to print.
    pub text: String,
    /// What to exit with.
    pub status: i32,
}

impl Refusal {
    fn new(text: impl Into<String>) -> Self {
        Self {
            text: format!("deployer: {}\n", text.into()),
            status: 2,
        }
    }
}

impl From<clap::Error> for Refusal {
    fn from(e: clap::Error) -> Self {
        let text = e.render().to_string();
        let text = text
            .strip_prefix("error: ")
            .map_or(text.clone(), |t| format!("deployer: {t}"));
        Self {
            text,
            status: e.exit_code(),
        }
    }
}

/// Reads a command line, the program's name included. `conffile` is `$DEPLOYER_CONFFILE`.
///
/// # Errors
/// [`Refusal`]: help, version, or what is wrong with the arguments.
pub fn parse<I>(args: I, conffile: Option<PathBuf>) -> Result<(Target, Command), Refusal>
where
    I: IntoIterator<Item = OsString>,
{
    let args: Vec<OsString> = args.into_iter().collect();
    if let Some(run) = bare_run(&args) {
        let target = Target {
            config: conffile,
            socket: None,
        };
        return Ok((target, Command::Run(run)));
    }
    let a = Arguments::try_parse_from(args)?;
    let target = Target {
        config: a.config.or(conffile),
        socket: a.socket,
    };
    let mode = a.daemon || a.test || a.stop || a.reload || a.all;
    if mode && a.verb.is_some() {
        return Err(Refusal::new(
            "-d, -t, -s, -r and -a stand alone: leave out the rest",
        ));
    }
    let command = if a.daemon {
        Command::Daemon(DaemonOptions {
            foreground: a.foreground,
            pid_file: a.pid_file,
            log: a.log,
            log_level: a.log_level,
            user: a.user,
            group: a.group,
            mode: a.socket_mode,
            root: a.root,
            autostart: a.autostart,
        })
    } else if a.test {
        Command::Test
    } else if a.stop {
        Command::Stop
    } else if a.reload {
        Command::Reload
    } else if a.all {
        Command::List {
            long: false,
            nul: a.nul,
            json: a.json,
        }
    } else {
        match a.verb {
            Some(Verb::Run(o)) => Command::Run(o),
            Some(Verb::Logs(o)) => Command::Logs(o),
            Some(Verb::Attach { what }) => Command::Attach { what },
            Some(Verb::Pin {
                program,
                release,
                reason,
            }) => Command::Run(RunOptions {
                program,
                action: "pin".to_owned(),
                args: release.into_iter().map(OsString::from).collect(),
                reason,
                ..RunOptions::default()
            }),
            Some(Verb::Unpin { program }) => Command::Run(RunOptions {
                program,
                action: "unpin".to_owned(),
                ..RunOptions::default()
            }),
            Some(Verb::Releases { program, json }) => Command::Code {
                program,
                about: CodeQuestion::Releases,
                json,
            },
            Some(Verb::Why { program }) => Command::Code {
                program,
                about: CodeQuestion::Why,
                json: false,
            },
            Some(Verb::Plan { program }) => Command::Code {
                program,
                about: CodeQuestion::Plan,
                json: false,
            },
            Some(Verb::Verify { program }) => Command::Code {
                program,
                about: CodeQuestion::Verify,
                json: false,
            },
            Some(Verb::Freeze {
                program,
                reason,
                time,
            }) => Command::Freeze {
                program,
                reason,
                time,
            },
            Some(Verb::Token(command)) => Command::Token(command),
            Some(Verb::Thaw { program }) => Command::Thaw { program },
            Some(Verb::History(o)) => Command::History(o),
            Some(Verb::Cancel { id }) => Command::Cancel { id },
            Some(Verb::Can(o)) => Command::Can(o),
            Some(Verb::Import { kind, file }) => Command::Import { kind, file },
            Some(Verb::List { json }) => Command::List {
                long: true,
                nul: false,
                json,
            },
            Some(Verb::Ui) => Command::Ui,
            Some(Verb::Check { diff }) => Command::Check { diff },
            Some(Verb::Program(words)) => program_line(words)?,
            None => {
                return Err(Refusal::new(
                    "what shall it be? Try `deployer RUN PROGRAM`, `deployer CAN` to see what you may do, \
                     or `deployer --help`",
                ));
            }
        }
    };
    Ok((target, command))
}

/// `deployer RUN PROGRAM [NAME=VALUE…] [-- ARG…]`, if it is that and has no options. There is
/// nothing to parse in it, and to describe all verbs to a parser would be a tenth of the client's
/// life.
fn bare_run(args: &[OsString]) -> Option<RunOptions> {
    let (verb, rest) = args.get(1..)?.split_first()?;
    if verb != "RUN" && verb != "run" {
        return None;
    }
    let end = rest.iter().position(|a| a == "--");
    let (words, args) = match end {
        Some(end) => (&rest[..end], &rest[end + 1..]),
        None => (rest, &[][..]),
    };
    let words: Option<Vec<&str>> = words.iter().map(|w| w.to_str()).collect();
    let (program, inputs) = words
        .as_deref()?
        .split_first()
        .filter(|(program, inputs)| !inputs.iter().chain([*program]).any(|w| w.starts_with('-')))?;
    Some(RunOptions {
        program: (*program).to_owned(),
        inputs: inputs.iter().map(|&w| w.to_owned()).collect(),
        args: args.to_vec(),
        ..RunOptions::default()
    })
}

fn program_line(words: Vec<OsString>) -> Result<Command, Refusal> {
    if let [program] = words.as_slice() {
        let program = program.to_string_lossy();
        return Err(Refusal::new(format!(
            "what shall be done with {program}? Say `deployer RUN {program}`, or name an action: `deployer {program} run`"
        )));
    }
    let line = ProgramLine::try_parse_from([OsString::from("deployer")].into_iter().chain(words))?;
    let ProgramLine {
        program,
        action,
        words,
        args,
        ..
    } = line;
    if ActionName::new(&action).is_err() {
        return Err(Refusal::new(format!(
            "{action:?} is not an action: they are written in lower case, such as start or run"
        )));
    }
    if action == "kill" {
        let name = match words.as_slice() {
            [name] if args.is_empty() => name,
            _ => {
                return Err(Refusal::new(format!(
                    "which signal? `deployer {program} kill HUP`"
                )));
            }
        };
        return Ok(Command::Kill {
            program,
            signal: name.clone(),
        });
    }
    // Words that are no NAME=VALUE are arguments, as in procmgr.
    let is_input = |word: &String| {
        word.split_once('=')
            .is_some_and(|(name, _)| !name.is_empty())
    };
    let inputs = words.iter().take_while(|w| is_input(w)).count();
    let (inputs, words) = words.split_at(inputs);
    // Of an update; what else an action takes stands behind `--`.
    let force = line.force.then(|| OsString::from("--force"));
    Ok(Command::Run(RunOptions {
        program,
        action,
        inputs: inputs.to_vec(),
        args: force
            .into_iter()
            .chain(words.iter().map(OsString::from))
            .chain(args)
            .collect(),
        reason: line.reason,
        detach: line.detach,
        json: line.json,
    }))
}

/// Splits `NAME=VALUE` words.
///
/// # Errors
/// [`Refusal`] names the word that is none, or that names something twice.
pub fn inputs(words: &[String]) -> Result<BTreeMap<String, String>, Refusal> {
    let mut inputs = BTreeMap::new();
    for word in words {
        let Some((name, value)) = word.split_once('=').filter(|(n, _)| !n.is_empty()) else {
            return Err(Refusal::new(format!(
                "{word:?} is not of the form NAME=VALUE; arguments for the script go behind `--`"
            )));
        };
        if inputs.insert(name.to_owned(), value.to_owned()).is_some() {
            return Err(Refusal::new(format!("the input {name} is given twice")));
        }
    }
    Ok(inputs)
}

/// Turns arguments into text.
///
/// # Errors
/// [`Refusal`] for one that is not UTF-8.
pub fn texts(args: &[OsString]) -> Result<Vec<String>, Refusal> {
    let text = |a: &OsString| {
        a.to_str()
            .map(str::to_owned)
            .ok_or_else(|| Refusal::new(format!("the argument {a:?} is not UTF-8")))
    };
    args.iter().map(text).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_line(line: &str) -> Result<(Target, Command), Refusal> {
        parse(line.split(' ').map(OsString::from), None)
    }

    #[test]
    fn the_definition_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
        ProgramLine::command().debug_assert();
    }

    #[test]
    fn verbs_are_reached_in_both_cases_and_by_the_long_way() {
        let run = |program: &str| RunOptions {
            program: program.into(),
            ..RunOptions::default()
        };
        assert_eq!(
            parse_line("deployer RUN app").unwrap().1,
            Command::Run(run("app"))
        );
        assert_eq!(
            parse_line("deployer run app").unwrap().1,
            Command::Run(run("app"))
        );
        assert_eq!(
            parse_line("deployer app run").unwrap().1,
            Command::Run(run("app"))
        );
        let full = RunOptions {
            inputs: vec!["branch=x".into()],
            args: vec!["-d".into(), "a=b".into()],
            reason: Some("why".into()),
            ..run("team/app")
        };
        assert_eq!(
            parse_line("deployer RUN team/app branch=x --reason why -- -d a=b")
                .unwrap()
                .1,
            Command::Run(full.clone())
        );
        assert_eq!(
            parse_line("deployer team/app run branch=x --reason why -- -d a=b")
                .unwrap()
                .1,
            Command::Run(full)
        );
    }

    #[test]
    fn a_run_without_options_is_read_as_the_parser_reads_it() {
        for line in [
            "deployer RUN app",
            "deployer run team/app a=b c=d",
            "deployer RUN app a=b -- -x -- c=d",
            "deployer RUN app --",
        ] {
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let Ok(Some(Verb::Run(parsed))) =
                Arguments::try_parse_from(args.clone()).map(|a| a.verb)
            else {
                panic!("{line}")
            };
            assert_eq!(bare_run(&args), Some(parsed), "{line}");
        }
        for line in [
            "deployer RUN",
            "deployer RUN --help",
            "deployer RUN -h app",
            "deployer RUN -- app",
            "deployer RUN app --json",
            "deployer RUN app -c x",
            "deployer -c x RUN app",
            "deployer LOGS app",
        ] {
            let args: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert_eq!(bare_run(&args), None, "{line}");
        }
    }

    #[test]
    fn the_flags_of_the_ancestors_work() {
        let (target, command) =
            parse_line("deployer -d -f -c /x.cfg -P /p -l syslog -L DEBUG -u a -g b -m 0660")
                .unwrap();
        assert_eq!(target.config, Some("/x.cfg".into()));
        let Command::Daemon(o) = command else {
            panic!("{command:?}")
        };
        assert!(o.foreground && o.pid_file.is_some() && o.mode.as_deref() == Some("0660"));
        assert_eq!(parse_line("deployer -c /x -t").unwrap().1, Command::Test);
        assert_eq!(
            parse_line("deployer -a -0").unwrap().1,
            Command::List {
                long: false,
                nul: true,
                json: false
            }
        );
        assert_eq!(parse_line("deployer -s").unwrap().1, Command::Stop);
        assert_eq!(parse_line("deployer -r").unwrap().1, Command::Reload);
        assert_eq!(parse_line("deployer --version").unwrap_err().status, 0);
    }

    #[test]
    fn nonsense_is_refused_with_advice() {
        for (line, part) in [
            ("deployer", "deployer RUN PROGRAM"),
            ("deployer app", "deployer RUN app"),
            ("deployer app FLY", "lower case"),
            ("deployer app kill", "which signal"),
            ("deployer -f", "--daemon"),
            ("deployer -d -t", "cannot be used with"),
            ("deployer -d app run", "stand alone"),
            ("deployer RUN", "PROGRAM"),
        ] {
            let refusal = parse_line(line).unwrap_err();
            assert_eq!(refusal.status, 2, "{line}");
            assert!(refusal.text.contains(part), "{line}: {}", refusal.text);
        }
        assert!(inputs(&["x".into()]).is_err() && inputs(&["=x".into()]).is_err());
        assert!(inputs(&["a=1".into(), "a=2".into()]).is_err());
        assert_eq!(inputs(&["a=b=c".into()]).unwrap()["a"], "b=c");
    }
}
