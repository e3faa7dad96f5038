//! The JSON control messages of the framed protocol.
//!
//! A client sends one [`Request`]; the daemon answers with [`Reply`] messages. Fields that are
//! absent mean their default, unknown fields are refused, so that a misspelt one is noticed.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a client asks for. One a connection.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// Run a program, or do something else with it.
    Run(RunRequest),
    /// Send a supervised program's process a signal.
    Kill {
        /// The program.
        program: String,
        /// The signal, a number.
        signal: i32,
    },
    /// Replay, and follow, the log of a run.
    Logs(LogsRequest),
    /// Rows of the history, oldest first.
    History {
        /// Only this program's.
        #[serde(default)]
        program: Option<String>,
        /// Only this run's.
        #[serde(default)]
        id: Option<u64>,
        /// Only the newest so many.
        #[serde(default)]
        limit: Option<u64>,
        /// Only those before this run.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<u64>,
        /// Only those with this outcome.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        outcome: Option<String>,
    },
    /// Withdraw a waiting request or end a live run.
    Cancel {
        /// Its number.
        id: u64,
    },
    /// What the caller, or as root somebody else, may do.
    Can {
        /// Only this program.
        #[serde(default)]
        program: Option<String>,
        /// Only this action.
        #[serde(default)]
        action: Option<String>,
        /// Root only: as seen by this user, a name or a number.
        #[serde(default)]
        user: Option<String>,
    },
    /// About a program's code.
    Code {
        /// The program.
        program: String,
        /// What is asked.
        about: CodeQuestion,
        /// As JSON.
        #[serde(default)]
        json: bool,
    },
    /// Let a program stand still: nothing of it is begun.
    Freeze {
        /// The program.
        program: String,
        /// Why.
        reason: String,
        /// For so long; none is until somebody thaws it.
        #[serde(default)]
        seconds: Option<f64>,
    },
    /// Let it go on.
    Thaw {
        /// The program.
        program: String,
    },
    /// Make a token for HTTP, which may what the caller may, and at most this.
    TokenAdd {
        /// Of these programs.
        programs: Vec<String>,
        /// These actions.
        actions: Vec<String>,
        /// What the caller calls it.
        #[serde(default)]
        name: String,
        /// For so long; none is until somebody removes it.
        #[serde(default)]
        seconds: Option<f64>,
    },
    /// The caller's tokens; root's and the daemon's user's question is about all.
    TokenList,
    /// Remove a token of the caller's own; root and the daemon's user: any.
    TokenRemove {
        /// Its number.
        id: u64,
    },
    /// The programs that the caller may use, and their states.
    List {
        /// Only this one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<String>,
        /// Also what can be done with each.
        #[serde(default, skip_serializing_if = "is_no")]
        detail: bool,
    },
    /// Who the caller is.
    WhoAmI,
    /// What happens from now on to programs and runs that the caller may see, until the
    /// connection is closed.
    Events {
        /// Go on after the event of this number.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        after: Option<u64>,
    },
    /// Whether the daemon serves.
    Ping,
    /// Root and the daemon's user: read the configuration again.
    Reload,
    /// Root and the daemon's user: what a reload would change.
    Diff,
    /// Root and the daemon's user: stop.
    Stop,
}

/// What can be asked about a program's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CodeQuestion {
    /// Which releases there are.
    Releases,
    /// Why what is current is so.
    Why,
    /// Whether what is current is as it was released.
    Verify,
    /// What an update would bring.
    Plan,
}

/// See [`Request::Run`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunRequest {
    /// The program.
    pub program: String,
    /// The action.
    #[serde(default = "run", skip_serializing_if = "is_run")]
    pub action: String,
    /// Typed inputs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub inputs: BTreeMap<String, String>,
    /// Arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Why, for the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The client's own name of this request, at most 64 characters. The same user asking again
    /// under the same name asks for the outcome of the first request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// Where its standard input comes from.
    #[serde(default)]
    pub stdin: StdinWay,
    /// How its output is wanted.
    #[serde(default)]
    pub output: OutputWay,
    /// Answer when it is accepted, not when it is over.
    #[serde(default)]
    pub detach: bool,
    /// The terminal at which somebody will type, if the run has one of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
}

/// A client's terminal.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terminal {
    /// Lines of text.
    pub rows: u16,
    /// Characters in each.
    pub cols: u16,
    /// Its kind, as `$TERM` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
}

/// What a client may say while a run goes on that it types into.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Aside {
    /// Its terminal has another size.
    Resize {
        /// Lines of text.
        rows: u16,
        /// Characters in each.
        cols: u16,
    },
}

impl Default for RunRequest {
    fn default() -> Self {
        Self {
            program: String::new(),
            action: run(),
            inputs: BTreeMap::new(),
            args: Vec::new(),
            reason: None,
            key: None,
            stdin: StdinWay::default(),
            output: OutputWay::default(),
            detach: false,
            terminal: None,
        }
    }
}

/// See [`Request::Logs`].
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogsRequest {
    /// The program whose latest run is meant; or else `id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub program: Option<String>,
    /// The run that is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// Go on until the run is over.
    #[serde(default)]
    pub follow: bool,
    /// How the output is wanted.
    #[serde(default)]
    pub output: OutputWay,
    /// With `output = frames`: begin at this byte.
    #[serde(default)]
    pub offset: u64,
    /// With `program`: of a supervised one the next process after this run, now or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<u64>,
    /// With `id`, or the name of a supervised program: also to type into its own terminal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub terminal: Option<Terminal>,
}

/// Where a run's standard input comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StdinWay {
    /// Nowhere: `/dev/null`.
    #[default]
    None,
    /// Frames of kind 2.
    Frames,
    /// A pipe whose write end the client is given.
    Fd,
}

/// How a run's output reaches the client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OutputWay {
    /// Not at all.
    None,
    /// Frames of kind 3 and 4.
    #[default]
    Frames,
    /// The client is given the log and its index, read-only, and is told how long they are.
    Fd,
}

/// What the daemon says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "kebab-case")]
pub enum Reply {
    /// The request is on record and waits, or nothing more was asked for. One that starts at
    /// once is told [`Reply::Started`] first.
    Accepted {
        /// Its number.
        id: u64,
        /// It has to wait for this.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        behind: Option<Behind>,
    },
    /// How long runs of the program usually take; for a request that waits.
    Outlook {
        /// Seconds.
        usually: f64,
    },
    /// What the run says of itself just now, such as how far a download has come; empty: nothing
    /// any more.
    Status {
        /// One line, for people.
        text: String,
    },
    /// A newer request took the place of this one; the run that covers it follows.
    Displaced,
    /// The run that answers this request has a process.
    Started {
        /// Its number: the request's own, or the one that covers it.
        id: u64,
        /// The request's number, where it is another one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<u64>,
        /// The fds that come with this message, in this order: `log`, `index`, `stdin`.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        fds: Vec<String>,
        /// The run has a terminal of its own, and takes frames of kind 2 for it.
        #[serde(default, skip_serializing_if = "is_no")]
        terminal: bool,
        /// Where in the log the output that is new to the client begins, in bytes.
        #[serde(default, skip_serializing_if = "is_none_at_all")]
        offset: u64,
    },
    /// The log is now so long.
    Grew {
        /// Bytes.
        bytes: u64,
    },
    /// The run is over. Last message.
    Ended {
        /// The row of the run that answers the request, as in `HISTORY --json`.
        run: Box<Row>,
        /// The number of the request, where another run covers it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        request: Option<u64>,
    },
    /// One row of the history, as in `HISTORY --json`.
    Row(Box<Row>),
    /// One program that the caller may use.
    Program {
        /// Its name.
        name: String,
        /// `idle` or `running`; of a supervised program `running`, `dead` or `lingering`.
        state: String,
        /// More about a supervised program.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        service: Option<Service>,
        /// The run that is live.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        run: Option<u64>,
        /// How many requests wait.
        #[serde(default)]
        waiting: u64,
        /// It stands still: who froze it, since when and why.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        frozen: Option<String>,
        /// What can be done with it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        detail: Option<Box<Detail>>,
    },
    /// A token, without what makes it one.
    Token(Token),
    /// Who the caller is.
    You(You),
    /// Something has happened.
    Event(Event),
    /// What somebody may do with a program.
    May {
        /// The program.
        program: String,
        /// The action.
        action: String,
        /// Whether.
        allowed: bool,
        /// Which line of the configuration decides (asked for a user by root).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        because: Option<String>,
    },
    /// Done; nothing follows.
    Done {
        /// What there is to say about it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        message: Option<String>,
        /// What the action prints.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        output: Option<String>,
        /// What the client is to exit with.
        #[serde(default, skip_serializing_if = "is_zero")]
        status: i32,
    },
    /// The daemon stops. It closes the connection when it ends.
    Stopping {
        /// The keeper, which ends last.
        keeper: i32,
    },
    /// Refused or failed; nothing follows.
    Error {
        /// A stable word for programs.
        code: ErrorCode,
        /// What, and what to do next.
        message: String,
    },
}

fn is_no(flag: &bool) -> bool {
    !flag
}

fn is_none_at_all(bytes: &u64) -> bool {
    *bytes == 0
}

fn is_zero(status: &i32) -> bool {
    *status == 0
}

fn is_run(action: &str) -> bool {
    action == "run"
}

fn run() -> String {
    "run".to_owned()
}

/// The stable codes of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// Malformed request.
    BadRequest,
    /// No such program or run, or not for this caller.
    Refused,
    /// Nobody knows who asks: the token does not count.
    Unauthorized,
    /// Inputs or arguments that the program does not take.
    BadInput,
    /// Too much of something: connections, waiting requests.
    Busy,
    /// The program stands still until somebody thaws it.
    Frozen,
    /// The run is over already.
    Over,
    /// The history cannot be written.
    NotRecorded,
    /// The configuration has errors; the old one stays in force.
    BadConfig,
    /// The daemon stops.
    Stopping,
    /// A fault of the daemon or its surroundings.
    Failed,
}

/// A supervised program, as programs read it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Service {
    /// `stopped`, `waiting`, `starting`, `running`, `stopping`, `backoff` or `failed`.
    pub status: String,
    /// Its process.
    pub pid: Option<i32>,
    /// Since when it has this process, or none; RFC 3339.
    pub since: Option<String>,
    /// How often it was started again by itself since somebody started it.
    pub restarts: u64,
    /// How its former process ended, for people.
    pub last_exit: Option<String>,
    /// In how many seconds it is started again.
    pub next_start: Option<f64>,
    /// Memory of all its processes, in bytes.
    pub memory: Option<u64>,
    /// Processor time that all its processes have used, in seconds.
    pub cpu: Option<f64>,
    /// Its settings were changed since it was started.
    pub outdated: bool,
}

/// What can be done with a program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Detail {
    /// What the caller may do.
    pub actions: Vec<String>,
    /// Whether it is kept running, and started and stopped.
    pub supervised: bool,
    /// What it can be told, in the order of the configuration.
    pub inputs: Vec<InputField>,
    /// Whether it takes arguments.
    pub args: bool,
    /// Where its code comes from, without secrets.
    pub source: Option<String>,
    /// What is done by itself, and when: schedules, by action.
    pub schedules: BTreeMap<String, String>,
    /// When its source is looked at next: the time of day.
    pub next_check: Option<String>,
    /// Why its source cannot be looked at, and since when.
    pub failing: Option<String>,
    /// What its source had when it was looked at last, and what became of that.
    pub newest: Option<String>,
}

/// Something that a program can be told.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct InputField {
    /// Its name.
    pub name: String,
    /// `text`, `flag`, `choice` or `int`.
    pub kind: String,
    /// What it is when nothing is said; null: something has to be.
    pub default: Option<String>,
    /// Of a text: the pattern that all of it has to match.
    pub pattern: Option<String>,
    /// Of a choice: the words.
    pub choices: Vec<String>,
    /// Of a number: the least.
    pub min: Option<i64>,
    /// Of a number: the largest.
    pub max: Option<i64>,
}

/// What may be known of a token.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Token {
    /// Its number.
    pub id: u64,
    /// What its owner calls it.
    pub name: String,
    /// Its owner.
    pub user: String,
    /// Where it counts.
    pub programs: Vec<String>,
    /// For what.
    pub actions: Vec<String>,
    /// When it was made, RFC 3339.
    pub since: String,
    /// Until when it counts, RFC 3339; null: until somebody removes it.
    pub until: Option<String>,
}

/// Who the caller is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct You {
    /// Number; null for nobody.
    pub uid: Option<u32>,
    /// Name; empty for nobody.
    pub user: String,
    /// May do everything.
    pub admin: bool,
}

/// Something that has happened to a program.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Its number; the next one is larger.
    pub id: u64,
    /// The program; null: so much has happened that nobody remembers, and everything has to be
    /// looked at anew.
    pub program: Option<String>,
    /// The run, if it is about one.
    pub run: Option<u64>,
    /// The run's outcome by now, or the state of a supervised program, or `frozen`, `thawed`.
    pub state: String,
}

/// What a waiting request waits for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Behind {
    /// The live run.
    pub id: u64,
    /// Who asked for it.
    pub user: String,
    /// When it started, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
}

/// A row of the history, as programs read it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Row {
    pub id: u64,
    pub program: String,
    pub action: String,
    /// One of `waiting running succeeded failed signalled timed-out cancelled superseded
    /// not-started interrupted lost`.
    pub outcome: String,
    pub exit_code: Option<i32>,
    /// Such as `SIGTERM`.
    pub signal: Option<String>,
    pub by: By,
    pub reason: Option<String>,
    pub inputs: BTreeMap<String, String>,
    pub args: Vec<String>,
    pub covered_by: Option<u64>,
    /// Times are RFC 3339, UTC.
    pub requested_at: Option<String>,
    pub started_at: Option<String>,
    pub ended_at: Option<String>,
    /// Length of its log.
    pub bytes: u64,
    /// Output that was not kept.
    pub dropped: u64,
    /// Whether processes outlived it.
    pub leftovers: bool,
    /// What else there is to say, such as why it could not be started.
    pub detail: Option<String>,
}

/// Who asked.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct By {
    pub uid: u32,
    pub gid: u32,
    pub user: String,
    pub pid: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_field_is_refused() {
        let bad = r#"{"op":"run","program":"a","input":{}}"#;
        assert!(
            serde_json::from_str::<Request>(bad)
                .unwrap_err()
                .to_string()
                .contains("unknown field `input`")
        );
        let bad = r#"{"op":"history","prog":"a"}"#;
        assert!(serde_json::from_str::<Request>(bad).is_err());
    }

    #[test]
    fn absent_fields_mean_their_default() {
        let run = RunRequest {
            program: "a".into(),
            ..RunRequest::default()
        };
        assert_eq!(
            serde_json::from_str::<Request>(r#"{"op":"run","program":"a"}"#).unwrap(),
            Request::Run(run)
        );
    }
}
