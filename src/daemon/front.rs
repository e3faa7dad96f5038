//! The front desk: every request passes here, and policy decides here, once.
//!
//! What a request needs before the actor can take it (names, a look into the root directory,
//! the history) is found out here, one task a connection, so that nothing of it holds up others.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use tokio::sync::{mpsc, oneshot, watch};
use tracing::{info, warn};

use super::InForce;
use super::actor::{LaneState, Msg, Notices, Order, ServiceState, Waiter, said};
use super::clock::Moment;
use super::code::{self, Lookout, Question};
use super::diff;
use super::effects::Surroundings;
use super::events::{Events, News};
use super::freeze::{Freezer, Frozen};
use super::names::{self, Names};
use super::rows;
use super::tokens::Tokens;
use crate::config::inputs::validate_inputs;
use crate::config::load;
use crate::config::model::{Args, Config, Input, KillMode, LogTo, Program};
use crate::engine::Standing;
use crate::engine::service::Ask;
use crate::ids::{ActionName, ProgramName, RunId};
use crate::policy::{self, Grant, Peer};
use crate::protocol::message::{
    CodeQuestion, Detail, ErrorCode, Event, LogsRequest, OutputWay, Reply, Request, RunRequest,
    Service, StdinWay, Terminal, You,
};
use crate::run::script;
use crate::run::tree::{Tree, Usage, ticks_per_second};
use crate::server::{Desk, LiveLog, Notice, Progress};
use crate::source::{Facts, What};
use crate::store::{Filter, Outcome, Programs, Queries, Row, Store, StoreError};
use crate::sys::terminal::Size;

mod tokens;

/// How many events may wait for a client to take them; the others it finds where they are kept.
const EVENTS_AHEAD: usize = 16;
/// Longest reason, in bytes.
const REASON_MAX: usize = 1000;
/// Longest name that a client may give its request, in bytes.
const KEY_MAX: usize = 64;
/// What a child's arguments and inputs may come to, in bytes: far below what `execve` takes.
const ARGS_MAX: usize = 48 * 1024;

/// What an administrator asked for; the daemon's main loop takes it up.
#[derive(Debug)]
pub enum Admin {
    /// Read the configuration again; the answer is what there is to say, or the errors.
    Reload(oneshot::Sender<Result<String, String>>),
    /// Stop. Held until the daemon ends: whoever asked sees the connection close then.
    Stop(Notices),
}

/// See the module's documentation. Cheap to clone.
#[derive(Clone)]
pub struct Front {
    /// The configuration in force.
    pub in_force: watch::Receiver<Arc<InForce>>,
    /// To the actor.
    pub actor: mpsc::UnboundedSender<Msg>,
    /// To the daemon's main loop.
    pub admin: mpsc::UnboundedSender<Admin>,
    /// The history, to be settled.
    pub store: Store,
    /// The history, to be read.
    pub queries: Queries,
    /// Names of users.
    pub names: Arc<Names>,
    /// What stands still.
    pub freezer: Freezer,
    /// What is known of remotes.
    pub lookout: Lookout,
    /// What workers need.
    pub surroundings: Arc<Surroundings>,
    /// What happens.
    pub events: Events,
    /// Who is believed over HTTP.
    pub tokens: Tokens,
}

/// An answer that ends a request early.
type Refusal = Box<Reply>;

fn refusal(code: ErrorCode, message: impl Into<String>) -> Refusal {
    Box::new(Reply::Error {
        code,
        message: message.into(),
    })
}

/// So many seconds later, in nanoseconds since 1970; none is never.
fn until(since: Moment, seconds: Option<f64>) -> Result<Option<i64>, Refusal> {
    match seconds {
        None => Ok(None),
        Some(s) if s > 0.0 && s < 3.2e9 => Ok(Some(since.nanos() + (s * 1e9) as i64)),
        Some(_) => Err(refusal(
            ErrorCode::BadInput,
            "the time has to be more than nothing, and less than a hundred years",
        )),
    }
}

fn unknown(name: &ProgramName) -> Refusal {
    refusal(ErrorCode::Refused, format!("{name}: {}", policy::Denied))
}

impl Desk for Front {
    async fn submit(&self, peer: Peer, request: Request, plain: bool, notices: Notices) {
        let done = match request {
            Request::Run(request) => self.run(&peer, request, plain, &notices).await,
            Request::Logs(request) => self.logs(&peer, &request, &notices).await,
            Request::History { id: Some(id), .. } => self.one_run(&peer, id, &notices).await,
            Request::History {
                program,
                limit,
                before,
                outcome,
                ..
            } => {
                let (before, outcome) = (before.map(RunId), outcome.as_deref());
                self.history(&peer, program, (limit, before, outcome), &notices)
                    .await
            }
            Request::Kill { program, signal } => self.kill(&peer, &program, signal, &notices).await,
            Request::Cancel { id } => self.cancel(&peer, RunId(id), &notices).await,
            Request::Can {
                program,
                action,
                user,
            } => self.can(&peer, program, action, user, &notices).await,
            Request::Code {
                program,
                about,
                json,
            } => self.code(&peer, &program, about, json, &notices).await,
            Request::Freeze {
                program,
                reason,
                seconds,
            } => {
                let frozen = Some((reason, seconds));
                self.freeze(&peer, &program, frozen, &notices).await
            }
            Request::TokenAdd {
                programs,
                actions,
                name,
                seconds,
            } => {
                self.add_token(&peer, &programs, &actions, (name, seconds), &notices)
                    .await
            }
            Request::TokenList => {
                self.list_tokens(&peer, &notices);
                Ok(())
            }
            Request::TokenRemove { id } => self.remove_token(&peer, id, &notices).await,
            Request::Thaw { program } => self.freeze(&peer, &program, None, &notices).await,
            Request::List { program, detail } => self.list(&peer, program, detail, &notices).await,
            Request::WhoAmI => {
                let by = self.names.by(&peer).await;
                let you = You {
                    uid: peer.uid.map(|uid| uid.get()),
                    user: peer.uid.map_or(String::new(), |_| by.user),
                    admin: policy::is_admin(self.in_force().owner, &peer),
                };
                let _ = notices.send(Notice::Final(Box::new(Reply::You(you))));
                Ok(())
            }
            Request::Events { after } => {
                let (send, feed) = mpsc::channel(EVENTS_AHEAD);
                tokio::spawn(self.clone().tell_events(peer.clone(), after, send));
                let _ = notices.send(Notice::Feed(feed));
                Ok(())
            }
            Request::Ping => {
                finish(&notices, None);
                Ok(())
            }
            Request::Reload => self.reload(&peer, &notices).await,
            Request::Diff => self.diff(&peer, &notices).await,
            Request::Stop => self.stop(&peer, &notices),
        };
        if let Err(reply) = done {
            let _ = notices.send(Notice::Final(reply));
        }
    }
}

fn finish(notices: &Notices, message: Option<String>) {
    done(notices, message, None, 0);
}

fn done(notices: &Notices, message: Option<String>, output: Option<String>, status: i32) {
    let _ = notices.send(Notice::Final(Box::new(Reply::Done {
        message,
        output,
        status,
    })));
}

fn tell(notices: &Notices, reply: Reply) {
    let _ = notices.send(Notice::Reply(Box::new(reply)));
}

impl Front {
    fn in_force(&self) -> Arc<InForce> {
        self.in_force.borrow().clone()
    }

    /// The one place where it is decided whether a request goes on.
    fn authorize(&self, peer: &Peer, program: &str, action: &ActionName) -> Result<Grant, Refusal> {
        let name = ProgramName::new(program).map_err(|e| {
            info!(
                uid = peer.raw_uid,
                pid = peer.pid,
                "refused {action} {program:?}: the name {e}"
            );
            refusal(
                ErrorCode::Refused,
                format!("the program name {program:?} {e}"),
            )
        })?;
        let now = self.in_force();
        policy::authorize(&now.config, now.owner, peer, &name, action).map_err(|denied| {
            info!(
                uid = peer.raw_uid,
                pid = peer.pid,
                "refused {action} {name}: {denied}"
            );
            refusal(ErrorCode::Refused, format!("{name}: {denied}"))
        })
    }

    async fn run(
        &self,
        peer: &Peer,
        request: RunRequest,
        plain: bool,
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let requested_at = Moment::now();
        let action = ActionName::new(&request.action).map_err(|e| {
            let message = format!("the action {:?} {e}", request.action);
            refusal(ErrorCode::Refused, message)
        })?;
        let grant = self.authorize(peer, &request.program, &action)?;
        let name = grant.name().clone();
        let spec = Arc::clone(grant.program());
        let what = Kind::of(&spec, &action);
        if let Some(frozen) = self.frozen(&name).filter(|_| what.begins_something()) {
            let message = format!("{name} is {}; nothing was run", frozen.said());
            return Err(refusal(ErrorCode::Frozen, message));
        }
        match what {
            Kind::Run if action == ActionName::run() => {
                // A program with a section may have its script in the root directory, too.
                if spec.line == 0 {
                    self.find_script(peer, &name).await?;
                }
            }
            Kind::Code => {
                let checked = code::what(&action, &request.args);
                checked.map_err(|e| refusal(ErrorCode::BadInput, format!("{name}: {e}")))?;
            }
            Kind::Run | Kind::Ask(_) => {}
            Kind::Status => return self.status(name, notices).await,
            Kind::Console => return self.console(name, notices).await,
            Kind::Nothing => {
                finish(notices, None);
                return Ok(());
            }
            Kind::Missing("source") => {
                let message = format!("{name} has no source in its section");
                return Err(refusal(ErrorCode::BadInput, message));
            }
            Kind::Missing(command) => {
                let message = if spec.is_supervised() {
                    format!("{name} has no {command} in its section")
                } else {
                    format!(
                        "{name} cannot be started and stopped: its section has no cmd-start; \
                         `deployer RUN {name}` runs it"
                    )
                };
                return Err(refusal(ErrorCode::BadInput, message));
            }
        }
        let bad = |message: String| refusal(ErrorCode::BadInput, message);
        if !request.args.is_empty() && spec.args == Args::None && what != Kind::Code {
            return Err(bad(format!(
                "{name} takes no arguments (`args = any` in its section would let it); nothing was run"
            )));
        }
        // What `run` needs, a stop does not.
        let mut asked = Cow::Borrowed(&*spec);
        if action != ActionName::run() {
            let given = |input: &Input| request.inputs.contains_key(&input.name);
            asked.to_mut().inputs.retain(given);
        }
        let inputs = validate_inputs(&asked, &request.inputs)
            .map_err(|e| bad(format!("{name}: {e}; nothing was run")))?;
        check_texts(&request).map_err(bad)?;
        let by = self.names.by(peer).await;
        let mut order = Order {
            program: name,
            spec,
            action: grant.action().clone(),
            key: request
                .key
                .as_ref()
                .map(|k| format!("{}:{k}", peer.raw_uid)),
            by,
            reason: request.reason,
            inputs,
            args: request.args,
            requested_at,
            pid: None,
            terminal: None,
            more: Vec::new(),
        };
        if order.has_tty() {
            order.terminal = request.terminal.map(usable);
        }
        let waiter = Waiter {
            request: RunId(0),
            notices: notices.clone(),
            stdin: request.stdin != StdinWay::None,
            joins: false,
            detach: request.detach,
            plain,
        };
        self.send(match what {
            Kind::Ask(ask) => Msg::Ask(ask, Box::new(order), waiter),
            _ => Msg::Run(Box::new(order), waiter),
        });
        Ok(())
    }

    /// Why a program stands still, if it does.
    #[must_use]
    pub fn frozen(&self, program: &ProgramName) -> Option<Frozen> {
        self.freezer.why(program)
    }

    /// Asks for an action as the daemon itself does. Nobody waits for it; what there is to know
    /// comes on the channel. None if there is no such action.
    pub fn by_itself(
        &self,
        program: &ProgramName,
        action: &ActionName,
        reason: &str,
    ) -> Option<mpsc::UnboundedReceiver<Notice>> {
        let now = self.in_force();
        let spec = Arc::clone(now.config.programs.get(program)?);
        let kind = Kind::of(&spec, action);
        let inputs = validate_inputs(&spec, &BTreeMap::new());
        let inputs = match inputs {
            Err(e) if *action == ActionName::run() => {
                warn!("{program} {action} cannot be done by itself: {e}");
                return None;
            }
            inputs => inputs.unwrap_or_default(),
        };
        let order = Order {
            program: program.clone(),
            spec,
            action: action.clone(),
            by: now.itself(),
            reason: Some(reason.to_owned()),
            inputs,
            args: Vec::new(),
            key: None,
            requested_at: Moment::now(),
            pid: None,
            terminal: None,
            more: Vec::new(),
        };
        let (notices, told) = mpsc::unbounded_channel();
        let waiter = Waiter::onlooker(RunId(0), notices);
        match kind {
            Kind::Run | Kind::Code => self.send(Msg::Run(Box::new(order), waiter)),
            Kind::Ask(ask) => self.send(Msg::Ask(ask, Box::new(order), waiter)),
            Kind::Status | Kind::Console | Kind::Nothing | Kind::Missing(_) => return None,
        }
        Some(told)
    }

    /// Answers a question about a program's code.
    async fn code(
        &self,
        peer: &Peer,
        program: &str,
        about: CodeQuestion,
        json: bool,
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let name = self.visible(peer, program)?;
        let now = self.in_force();
        let spec = now
            .config
            .programs
            .get(&name)
            .filter(|spec| spec.source.is_some());
        let spec = spec.ok_or_else(|| {
            let message = format!("{name} has no source in its section");
            refusal(ErrorCode::BadInput, message)
        })?;
        let frozen = self.frozen(&name);
        let what = match about {
            CodeQuestion::Releases => What::Releases { json },
            CodeQuestion::Verify => What::Verify,
            CodeQuestion::Plan => What::Plan,
            CodeQuestion::Why => {
                let seen = self.lookout.seen(&name);
                What::Why(Facts {
                    frozen: frozen.map(|f| format!("It is {}.", f.said())),
                    failing: seen.failing,
                    held: seen.held.map(|held| {
                        let left = held.until.saturating_duration_since(Instant::now());
                        format!(
                            "The update in run {} failed (`deployer LOGS {}`); it is tried again in {} min at the earliest.",
                            held.run,
                            held.run,
                            left.as_secs().div_ceil(60)
                        )
                    }),
                    next_check: seen.next,
                })
            }
        };
        let question = Question {
            program: name,
            spec: Arc::clone(spec),
            what,
        };
        let common = Arc::clone(&self.surroundings);
        let answer = blocking(move || question.ask(&now, &common)).await;
        match answer {
            Some(Ok(answer)) => {
                let message = answer.err.trim().replace("deployer: ", "");
                let message = (!message.is_empty()).then_some(message);
                done(notices, message, Some(answer.out), answer.status);
                Ok(())
            }
            Some(Err(e)) => Err(refusal(ErrorCode::Failed, e)),
            None => Err(refusal(
                ErrorCode::Failed,
                "the question was lost; ask again",
            )),
        }
    }

    /// Lets a program stand still, or go on.
    async fn freeze(
        &self,
        peer: &Peer,
        program: &str,
        frozen: Option<(String, Option<f64>)>,
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let grant = self.authorize(peer, program, &ActionName::freeze())?;
        let name = grant.name().clone();
        let by = self.names.by(peer).await;
        let bad = |message: &str| refusal(ErrorCode::BadInput, message);
        let frozen = match frozen {
            None => None,
            Some((reason, _)) if reason.trim().is_empty() => {
                return Err(bad("say why: `deployer FREEZE PROGRAM \"reason\"`"));
            }
            Some((reason, _)) if reason.len() > REASON_MAX => {
                return Err(bad(&format!(
                    "the reason is longer than {REASON_MAX} bytes"
                )));
            }
            Some((reason, seconds)) => {
                let since = Moment::now().nanos();
                let until = until(Moment::from_nanos(since), seconds)?;
                Some(Frozen {
                    by: by.user.clone(),
                    reason,
                    since,
                    until,
                })
            }
        };
        let (freezer, program) = (self.freezer.clone(), name.clone());
        let said = frozen.as_ref().map(Frozen::said);
        let set = blocking(move || freezer.set(&program, frozen)).await;
        let was = match set {
            Some(Ok(was)) => was,
            Some(Err(e)) => {
                let message = format!("that cannot be kept, so nothing has changed: {e}");
                return Err(refusal(ErrorCode::Failed, message));
            }
            None => return Err(refusal(ErrorCode::Failed, "nothing has changed")),
        };
        match said {
            Some(_) => self.events.tell(&name, None, "frozen"),
            None if was => self.events.tell(&name, None, "thawed"),
            None => {}
        }
        let message = match said {
            Some(said) => format!("{name} is {said}"),
            None if was => format!("{name} goes on"),
            None => format!("{name} was not frozen"),
        };
        info!(
            uid = peer.raw_uid,
            pid = peer.pid,
            "{message}, by {}",
            by.user
        );
        finish(notices, Some(message));
        Ok(())
    }

    /// What a program does now; none if it was never heard of.
    async fn lane(&self, name: &ProgramName) -> Option<LaneState> {
        let (answer, states) = oneshot::channel();
        self.send(Msg::Lanes(vec![name.clone()], answer));
        states.await.ok()?.pop()
    }

    /// The default of `status`.
    async fn status(&self, name: ProgramName, notices: &Notices) -> Result<(), Refusal> {
        let service = self.lane(&name).await.and_then(|state| state.service);
        let up = service.as_ref().is_some_and(|s| s.pid.is_some());
        let word = if up { "running\n" } else { "not running\n" };
        let frozen = self.frozen(&name).map(|f| format!("it is {}", f.said()));
        let more = service.and_then(|s| {
            let outdated = "its settings were changed since it was started: restart it to use them";
            match s.word {
                "failed" => Some("it ended too often, and is not started again".to_owned()),
                "backoff" => {
                    let left = s.next.map_or(0.0, |left| left.as_secs_f64());
                    let last = s.last.map(|(exit, _)| said(exit)).unwrap_or_default();
                    Some(format!("it {last}, and is started again in {left:.1} s"))
                }
                _ if s.lingering => Some("it is not configured any more".to_owned()),
                _ => s.outdated.then(|| outdated.to_owned()),
            }
        });
        let more = frozen.or(more);
        done(notices, more, Some(word.to_owned()), i32::from(!up));
        Ok(())
    }

    /// The default of `console`: somebody sits down at the terminal of the program's process.
    async fn console(&self, name: ProgramName, notices: &Notices) -> Result<(), Refusal> {
        let is_up = |s: &LaneState| s.service.as_ref().is_some_and(|s| s.pid.is_some());
        let running = self.lane(&name).await.filter(is_up);
        let joined = match running.and_then(|state| state.run) {
            Some(run) => self.join(run, notices).await,
            None => false,
        };
        if joined {
            return Ok(());
        }
        let message = format!("{name} is not running; `deployer {name} start` starts it");
        Err(refusal(ErrorCode::BadRequest, message))
    }

    /// Lets somebody type into a run's terminal, and see what comes of it; whether it goes on.
    async fn join(&self, run: RunId, notices: &Notices) -> bool {
        let waiter = Waiter {
            stdin: true,
            joins: true,
            ..Waiter::onlooker(run, notices.clone())
        };
        let (answer, left) = oneshot::channel();
        self.send(Msg::Watch(run, waiter, answer));
        matches!(left.await, Ok(None))
    }

    /// Whether somebody may type into a run: into a supervised program whoever may use its
    /// console, into others whoever began them, and root.
    fn may_join(&self, peer: &Peer, row: &Row) -> Result<(), Refusal> {
        let refused = |message| Err(refusal(ErrorCode::Refused, message));
        let (program, id) = (&row.program, row.id);
        if self.is_process(row) {
            if self
                .authorize(peer, program, &ActionName::console())
                .is_err()
            {
                let message = format!("{program}: you may see its runs, but not use its console");
                return refused(message);
            }
            return Ok(());
        }
        let admin = policy::is_admin(self.in_force().owner, peer);
        if !admin && row.by.uid != peer.raw_uid {
            let message = format!("run {id} is {}'s, who alone may type into it", row.by.user);
            return refused(message);
        }
        let action = ActionName::new(&row.action).unwrap_or_else(|_| ActionName::run());
        self.authorize(peer, program, &action).map(drop)
    }

    async fn kill(
        &self,
        peer: &Peer,
        program: &str,
        signal: i32,
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let grant = self.authorize(peer, program, &ActionName::kill())?;
        if !(1..=64).contains(&signal) {
            let message = format!("{signal} is not a signal");
            return Err(refusal(ErrorCode::BadInput, message));
        }
        let name = grant.name().clone();
        info!(
            uid = peer.raw_uid,
            pid = peer.pid,
            "signal {signal} for {name}"
        );
        let (answer, there) = oneshot::channel();
        self.send(Msg::Signal(name.clone(), signal, answer));
        if there.await.unwrap_or(false) {
            finish(notices, None);
        } else {
            done(notices, Some(format!("{name} is not running")), None, 1);
        }
        Ok(())
    }

    /// A name without a section means a script of the root directory; one that is not there is
    /// answered as one that is not allowed.
    async fn find_script(&self, peer: &Peer, name: &ProgramName) -> Result<(), Refusal> {
        let root = self.in_force().config.global.root.clone();
        let wanted = name.clone();
        let found = match script::exists_cached(&root, &wanted) {
            Some(found) => Some(found),
            None => blocking(move || script::exists(&root, &wanted)).await,
        };
        if found.unwrap_or(false) {
            return Ok(());
        }
        info!(
            uid = peer.raw_uid,
            pid = peer.pid,
            "refused run {name}: there is no such script"
        );
        Err(refusal(
            ErrorCode::Refused,
            format!("{name}: {}", policy::Denied),
        ))
    }

    fn send(&self, msg: Msg) {
        // The actor outlives every connection, but for the last moments of the daemon.
        let _ = self.actor.send(msg);
    }

    fn may_see(&self, peer: &Peer, program: &ProgramName) -> bool {
        let now = self.in_force();
        policy::may_see(&now.config, now.owner, peer, program)
    }

    /// Reads the history, after all that happened so far has reached it.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Queries) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, Refusal> {
        self.settle().await;
        let queries = self.queries.clone();
        match blocking(move || read(&queries)).await {
            Some(Ok(found)) => Ok(found),
            Some(Err(e)) => {
                let e = chain(&e);
                warn!("the history cannot be read: {e}");
                Err(refusal(
                    ErrorCode::Failed,
                    format!("the history cannot be read: {e}"),
                ))
            }
            None => Err(refusal(ErrorCode::Failed, "the history cannot be read")),
        }
    }

    async fn row(&self, peer: &Peer, id: RunId) -> Result<Row, Refusal> {
        let unknown = || {
            refusal(
                ErrorCode::Refused,
                format!("run {id}: no such run, or not one of yours"),
            )
        };
        let row = self.read(move |queries| queries.get(id)).await?;
        row.filter(|row| self.may_see_word(peer, &row.program))
            .ok_or_else(unknown)
    }

    fn may_see_word(&self, peer: &Peer, program: &str) -> bool {
        ProgramName::new(program).is_ok_and(|name| self.may_see(peer, &name))
    }

    /// Waits until all that happened so far is in the history.
    async fn settle(&self) {
        let (done, settled) = oneshot::channel();
        self.store.barrier(Box::new(move |_| {
            let _ = done.send(());
        }));
        let _ = settled.await;
    }

    async fn one_run(&self, peer: &Peer, id: u64, notices: &Notices) -> Result<(), Refusal> {
        let row = self.row(peer, RunId(id)).await?;
        tell(notices, Reply::Row(Box::new(rows::message(&row))));
        finish(notices, None);
        Ok(())
    }

    async fn history(
        &self,
        peer: &Peer,
        program: Option<String>,
        (limit, before, outcome): (Option<u64>, Option<RunId>, Option<&str>),
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let outcomes = match outcome {
            None => Vec::new(),
            Some(word) => vec![Outcome::from_word(word).ok_or_else(|| {
                refusal(
                    ErrorCode::BadRequest,
                    format!("{word:?} is no outcome of a run"),
                )
            })?],
        };
        let one = match program {
            Some(program) => Some(self.visible(peer, &program)?),
            None => None,
        };
        let (front, peer, sink) = (self.clone(), peer.clone(), notices.clone());
        self.read(move |queries| {
            let allowed = |word: &str| front.may_see_word(&peer, word);
            let programs = one
                .as_ref()
                .map_or(Programs::Allowed(&allowed), Programs::One);
            let filter = Filter {
                programs,
                limit,
                before,
                outcomes: &outcomes,
                ..Filter::default()
            };
            queries.rows(&filter, &mut |row| {
                tell(&sink, Reply::Row(Box::new(rows::message(&row))));
                if sink.is_closed() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })
        })
        .await?;
        finish(notices, None);
        Ok(())
    }

    /// A program that the peer may know of.
    fn visible(&self, peer: &Peer, program: &str) -> Result<ProgramName, Refusal> {
        let name = ProgramName::new(program).map_err(|e| {
            refusal(
                ErrorCode::Refused,
                format!("the program name {program:?} {e}"),
            )
        })?;
        match self.may_see(peer, &name) {
            true => Ok(name),
            false => Err(unknown(&name)),
        }
    }

    async fn logs(
        &self,
        peer: &Peer,
        request: &LogsRequest,
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let row = match (&request.program, request.id, request.after) {
            (_, Some(id), _) => self.row(peer, RunId(id)).await?,
            (Some(program), None, Some(after)) => {
                let name = self.visible(peer, program)?;
                match self.next_process(&name, RunId(after)).await? {
                    Some(row) => row,
                    None if after == 0 => self.latest(peer, program).await?,
                    None if request.follow => {
                        let waiter = Waiter::onlooker(RunId(0), notices.clone());
                        self.send(Msg::Next(name, RunId(after), waiter));
                        return Ok(());
                    }
                    None => {
                        finish(notices, None);
                        return Ok(());
                    }
                }
            }
            (Some(program), None, None) => self.latest(peer, program).await?,
            (None, None, _) => {
                return Err(refusal(
                    ErrorCode::BadRequest,
                    "logs of what? Name a program or a run",
                ));
            }
        };
        let mut id = row.id;
        if let Some(by) = row.covered_by.filter(|_| row.started_at.is_none()) {
            id = by;
        }
        if request.terminal.is_some() {
            self.may_join(peer, &row)?;
            if self.join(id, notices).await {
                return Ok(());
            }
            return Err(refusal(ErrorCode::Over, over(&row)));
        }
        let waiter = Waiter::onlooker(id, notices.clone());
        if request.follow {
            let (answer, left) = oneshot::channel();
            self.send(Msg::Watch(id, waiter, answer));
            if let Ok(None) = left.await {
                return Ok(());
            }
        }
        let row = if id == row.id && row.outcome.is_final() {
            row
        } else {
            self.row(peer, id).await?
        };
        if request.output != OutputWay::None
            && let Some(log) = self.stored_log(&row).await
        {
            let _ = notices.send(Notice::Started {
                run: row.id,
                request: row.id,
                log: Arc::new(log),
                stdin: None,
            });
        }
        let run = Box::new(rows::message(&row));
        let _ = notices.send(Notice::Final(Box::new(Reply::Ended { run, request: None })));
        Ok(())
    }

    /// Of a supervised program the next process after that run whose log is still there.
    async fn next_process(&self, name: &ProgramName, after: RunId) -> Result<Option<Row>, Refusal> {
        let now = self.in_force();
        let Some(spec) = supervised(&now.config, name) else {
            return Ok(None);
        };
        let (wanted, log_dir) = (name.clone(), now.config.global.log_dir.clone());
        let elsewhere = spec.log != LogTo::File && !spec.has_console();
        let row = self
            .read(move |queries| {
                let shows_something = |row: &Row| match stored_log(&log_dir, &wanted, row.id) {
                    Some(log) => !elsewhere || log.progress.borrow().bytes > 0,
                    None => !row.outcome.is_final(),
                };
                let mut row = queries.next_process(&wanted, after)?;
                while let Some(found) = row.as_ref().filter(|row| !shows_something(row)) {
                    row = queries.next_process(&wanted, found.id)?;
                }
                Ok(row)
            })
            .await?;
        let instead = match spec.log {
            _ if row.is_some() || !elsewhere || after != RunId(0) => return Ok(row),
            LogTo::Journal => format!("is in the journal: journalctl -t {name}"),
            _ => "is not kept (log = none)".to_owned(),
        };
        let message = format!("the output of {name} {instead}");
        Err(refusal(ErrorCode::Failed, message))
    }

    /// The newest run of a program that has, or had, its turn.
    async fn latest(&self, peer: &Peer, program: &str) -> Result<Row, Refusal> {
        let name = self.visible(peer, program)?;
        let wanted = name.clone();
        // Of a supervised program its processes are meant, not what was done to them.
        let supervised = supervised(&self.in_force().config, &name).is_some();
        let row = self
            .read(move |queries| {
                let process = match supervised {
                    true => queries.last_process(&wanted)?,
                    false => None,
                };
                match process {
                    Some(row) => Ok(Some(row)),
                    None => queries.last_run(&wanted),
                }
            })
            .await?;
        row.ok_or_else(|| refusal(ErrorCode::Refused, format!("{name} has not run yet")))
    }

    /// The log of a run as it lies on the disk.
    async fn stored_log(&self, row: &Row) -> Option<LiveLog> {
        let now = self.in_force();
        let (log_dir, program, id) = (
            now.config.global.log_dir.clone(),
            ProgramName::new(&row.program).ok()?,
            row.id,
        );
        blocking(move || stored_log(&log_dir, &program, id))
            .await
            .flatten()
    }

    async fn cancel(&self, peer: &Peer, id: RunId, notices: &Notices) -> Result<(), Refusal> {
        let row = self.row(peer, id).await?;
        // To end the process of a supervised program is to stop it.
        let action = match self.is_process(&row) {
            true => ActionName::stop(),
            false => ActionName::cancel(),
        };
        if self.authorize(peer, &row.program, &action).is_err() {
            // They see the run, so the usual answer would be none.
            let message = format!("{}: you may see its runs, but not end them", row.program);
            return Err(refusal(ErrorCode::Refused, message));
        }
        let name = ProgramName::new(&row.program).ok();
        let spec = name.and_then(|name| self.in_force().program(&name, false));
        if row.outcome == Outcome::Running
            && !self.is_process(&row)
            && spec.is_some_and(|spec| spec.kill_mode == KillMode::None)
        {
            let message = format!(
                "run {id} of {} is ended by nobody but itself (kill-mode = none)",
                row.program
            );
            return Err(refusal(ErrorCode::Refused, message));
        }
        let (answer, standing) = oneshot::channel();
        self.send(Msg::Cancel(id, answer));
        let program = &row.program;
        match standing.await {
            Ok(Standing::Waiting) => {
                info!(
                    uid = peer.raw_uid,
                    pid = peer.pid,
                    "request {id} of {program} withdrawn"
                );
                finish(
                    notices,
                    Some(format!("request {id} of {program} was withdrawn")),
                );
                Ok(())
            }
            Ok(Standing::Live) => {
                info!(
                    uid = peer.raw_uid,
                    pid = peer.pid,
                    "run {id} of {program} cancelled"
                );
                let how = format!("`deployer LOGS {id} -f` shows how it ends");
                finish(
                    notices,
                    Some(format!("run {id} of {program} was asked to end; {how}")),
                );
                Ok(())
            }
            Ok(Standing::Over) | Err(_) => Err(refusal(ErrorCode::Over, over(&row))),
        }
    }

    /// Whether a run is, or was, the process of a supervised program.
    fn is_process(&self, row: &Row) -> bool {
        let now = self.in_force();
        let name = ProgramName::new(&row.program).ok();
        name.is_some_and(|name| supervised(&now.config, &name).is_some())
            && matches!(row.action.as_str(), "start" | "restart")
    }

    async fn can(
        &self,
        peer: &Peer,
        program: Option<String>,
        action: Option<String>,
        user: Option<String>,
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let now = self.in_force();
        let somebody = match user {
            None => None,
            Some(_) if !policy::is_admin(now.owner, peer) => {
                return Err(refusal(
                    ErrorCode::Refused,
                    "only root may ask what somebody else may do",
                ));
            }
            Some(user) => {
                let name = user.clone();
                let asked = blocking(move || names::peer_of_user(&name)).await;
                let asked = asked.unwrap_or_else(|| Err(io::Error::other("see the log")));
                let bad = |why| refusal(ErrorCode::BadRequest, why);
                let found = asked
                    .map_err(|e| bad(format!("cannot look up the user {user:?}: {e}")))?
                    .ok_or_else(|| bad(format!("there is no user {user:?} here")))?;
                Some(found)
            }
        };
        let explain = somebody.is_some();
        let who = somebody.as_ref().unwrap_or(peer);
        let programs = match program {
            Some(program) => {
                let name = ProgramName::new(&program).map_err(|e| {
                    refusal(
                        ErrorCode::Refused,
                        format!("the program name {program:?} {e}"),
                    )
                })?;
                vec![name]
            }
            None => self.programs().await,
        };
        for program in programs {
            let section = now.config.programs.get(&program);
            let mut actions = policy::actions(section.unwrap_or(&now.config.script));
            if let Some(wanted) = &action {
                let known = actions.iter().any(|a| a.as_str() == wanted);
                actions.retain(|a| a.as_str() == wanted);
                // Whoever asks why is also told of what there is not.
                if explain && !known {
                    actions.extend(ActionName::new(wanted));
                }
            }
            for action in actions {
                let verdict = policy::explain(&now.config, now.owner, who, &program, &action);
                let because = explain.then(|| match verdict.line {
                    Some(line) => {
                        let text = verdict.text.trim_end_matches(&format!(", line {line}"));
                        format!("{}:{line}: {text}", now.path.display())
                    }
                    None => verdict.text.clone(),
                });
                if verdict.allowed || explain {
                    let program = program.to_string();
                    tell(
                        notices,
                        Reply::May {
                            program,
                            action: action.to_string(),
                            allowed: verdict.allowed,
                            because,
                        },
                    );
                }
            }
        }
        finish(notices, None);
        Ok(())
    }

    /// Every program: those with a section and the scripts of the root directory.
    async fn programs(&self) -> Vec<ProgramName> {
        let now = self.in_force();
        let root = now.config.global.root.clone();
        let mut names = blocking(move || script::list(&root))
            .await
            .unwrap_or_default();
        names.extend(now.config.programs.keys().cloned());
        names.extend(now.config.lingering.keys().cloned());
        names.sort();
        names.dedup();
        names
    }

    /// Tells of what happens to what the peer may see, until nobody listens.
    async fn tell_events(self, peer: Peer, after: Option<u64>, send: mpsc::Sender<Reply>) {
        let mut follower = self.events.follow(after);
        loop {
            let news = tokio::select! {
                news = follower.next() => news,
                () = send.closed() => return,
            };
            let told = match news {
                News::Lost(id) => vec![Event {
                    id,
                    ..Event::default()
                }],
                News::Events(events) => {
                    let seen = events
                        .into_iter()
                        .filter(|e| self.may_see(&peer, &e.program));
                    let told = seen.map(|event| Event {
                        id: event.id,
                        program: Some(event.program.to_string()),
                        run: event.run.map(|run| run.0),
                        state: event.state.to_owned(),
                    });
                    told.collect()
                }
            };
            for event in told {
                if send.send(Reply::Event(event)).await.is_err() {
                    return;
                }
            }
        }
    }

    /// What can be done with a program, and by this peer.
    fn detail(&self, peer: &Peer, name: &ProgramName) -> Option<Box<Detail>> {
        let now = self.in_force();
        let spec = now.program(name, false)?;
        let allowed = |action: &ActionName| {
            policy::authorize(&now.config, now.owner, peer, name, action).is_ok()
        };
        let actions = policy::actions(&spec).into_iter().filter(allowed);
        let schedules = spec.schedules.iter();
        let seen = self.lookout.seen(name);
        Some(Box::new(Detail {
            next_check: seen.next,
            newest: seen.newest.map(|(revision, because)| {
                let short: String = revision.chars().take(12).collect();
                match because.starts_with(&short) || short.is_empty() {
                    true => because,
                    false => format!("{short}: {because}"),
                }
            }),
            failing: seen
                .failing
                .map(|(since, why)| format!("since {since}: {why}")),
            actions: actions.map(|action| action.to_string()).collect(),
            supervised: spec.is_supervised(),
            inputs: spec.inputs.iter().map(rows::input).collect(),
            args: spec.args != Args::None,
            source: spec.source.as_ref().map(|s| s.remote.to_string()),
            schedules: schedules
                .map(|(action, schedule)| (action.to_string(), schedule.to_string()))
                .collect(),
        }))
    }

    async fn list(
        &self,
        peer: &Peer,
        program: Option<String>,
        detail: bool,
        notices: &Notices,
    ) -> Result<(), Refusal> {
        let names = match program {
            Some(program) => {
                let name = self.visible(peer, &program)?;
                if !self.programs().await.contains(&name) {
                    return Err(unknown(&name));
                }
                vec![name]
            }
            None => {
                let mut names = self.programs().await;
                names.retain(|name| self.may_see(peer, name));
                names
            }
        };
        let (answer, states) = oneshot::channel();
        self.send(Msg::Lanes(names.clone(), answer));
        let states = states
            .await
            .unwrap_or_else(|_| vec![LaneState::default(); names.len()]);
        let now = self.in_force();
        // A look into /proc is a look at many files.
        let trees: Vec<Option<Arc<Tree>>> = states
            .iter()
            .map(|state| state.service.as_ref().and_then(|s| s.tree.clone()))
            .collect();
        let used = blocking(move || {
            let usage = |tree: Option<Arc<Tree>>| tree.map(|tree| tree.usage());
            trees.into_iter().map(usage).collect::<Vec<_>>()
        });
        let used = used.await.unwrap_or_default();
        let used = used.into_iter().chain(std::iter::repeat(None));
        for ((name, state), used) in names.into_iter().zip(states).zip(used) {
            let removed = now.config.lingering.contains_key(&name);
            if removed && state.service.is_none() && !now.config.programs.contains_key(&name) {
                continue;
            }
            let frozen = self.frozen(&name).map(|f| f.said());
            let detail = detail.then(|| self.detail(peer, &name)).flatten();
            let word = match &state.service {
                Some(service) if service.lingering => "lingering",
                Some(service) if service.pid.is_some() => "running",
                Some(_) => "dead",
                None if state.run.is_some() => "running",
                None => "idle",
            };
            tell(
                notices,
                Reply::Program {
                    name: name.to_string(),
                    state: word.into(),
                    service: state.service.as_ref().map(|s| service_message(s, used)),
                    run: state.run.map(|r| r.0),
                    waiting: state.waiting,
                    frozen,
                    detail,
                },
            );
        }
        finish(notices, None);
        Ok(())
    }

    fn admin(&self, peer: &Peer, what: &str) -> Result<(), Refusal> {
        if policy::is_admin(self.in_force().owner, peer) {
            return Ok(());
        }
        info!(uid = peer.raw_uid, pid = peer.pid, "refused {what}");
        Err(refusal(
            ErrorCode::Refused,
            format!("only root and the daemon's own user may {what} the daemon"),
        ))
    }

    async fn reload(&self, peer: &Peer, notices: &Notices) -> Result<(), Refusal> {
        self.admin(peer, "reload")?;
        let (answer, result) = oneshot::channel();
        let _ = self.admin.send(Admin::Reload(answer));
        match result.await {
            Ok(Ok(message)) => {
                finish(notices, (!message.is_empty()).then_some(message));
                Ok(())
            }
            Ok(Err(errors)) => Err(refusal(ErrorCode::BadConfig, errors)),
            Err(_) => Err(refusal(ErrorCode::Stopping, "the daemon is stopping")),
        }
    }

    /// What a reload would change.
    async fn diff(&self, peer: &Peer, notices: &Notices) -> Result<(), Refusal> {
        self.admin(peer, "look at the configuration of")?;
        let now = self.in_force();
        let loaded = blocking(move || {
            let loaded = load::load(&now.path)?;
            let said = loaded.checked.render(false);
            let diff = loaded
                .checked
                .config
                .map(|new| diff::text(&now.config, &new));
            Ok::<_, load::LoadError>((said, diff))
        });
        match loaded.await {
            Some(Ok((_, Some(text)))) => {
                done(notices, None, Some(text), 0);
                Ok(())
            }
            Some(Ok((said, None))) => Err(refusal(ErrorCode::BadConfig, said)),
            Some(Err(e)) => Err(refusal(ErrorCode::Failed, chain(&e))),
            None => Err(refusal(
                ErrorCode::Failed,
                "the configuration cannot be read",
            )),
        }
    }

    fn stop(&self, peer: &Peer, notices: &Notices) -> Result<(), Refusal> {
        self.admin(peer, "stop")?;
        info!(uid = peer.raw_uid, pid = peer.pid, "asked to stop");
        let keeper = std::os::unix::process::parent_id().cast_signed();
        tell(notices, Reply::Stopping { keeper });
        let _ = self.admin.send(Admin::Stop(notices.clone()));
        Ok(())
    }
}

/// The settings of a supervised program, or of what is left of one.
#[must_use]
pub fn supervised<'a>(config: &'a Config, name: &ProgramName) -> Option<&'a Arc<Program>> {
    let found = [config.programs.get(name), config.lingering.get(name)];
    found
        .into_iter()
        .flatten()
        .find(|spec| spec.is_supervised())
}

/// What an action of a program comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A run: of its command, or of the root directory's script.
    Run,
    /// Something for the supervision.
    Ask(Ask),
    /// A run of a worker, which has to do with its code.
    Code,
    /// To say whether it is up.
    Status,
    /// To let somebody sit down at its terminal.
    Console,
    /// Nothing, successfully.
    Nothing,
    /// There is no such command, and nothing to do without one.
    Missing(&'static str),
}

impl Kind {
    /// Whether it is something that a frozen program does not do. It can be stopped, and looked at.
    fn begins_something(self) -> bool {
        matches!(
            self,
            Self::Run | Self::Code | Self::Ask(Ask::Start | Ask::Restart)
        )
    }

    fn of(spec: &Program, action: &ActionName) -> Self {
        let supervised = spec.is_supervised();
        let own = spec.command(action).is_some();
        match action.as_str() {
            "start" if supervised => Self::Ask(Ask::Start),
            "stop" if supervised => Self::Ask(Ask::Stop),
            "restart" if supervised => Self::Ask(Ask::Restart),
            "run" => Self::Run,
            _ if code::is_about(spec, action) => Self::Code,
            _ if own => Self::Run,
            "reload" if supervised => Self::Ask(Ask::Restart),
            "status" if supervised => Self::Status,
            "signal" if supervised => Self::Nothing,
            "console" if spec.has_console() => Self::Console,
            "start" | "stop" | "restart" => Self::Missing("cmd-start"),
            "status" => Self::Missing("cmd-status"),
            "reload" => Self::Missing("cmd-reload"),
            "update" | "rollback" | "pin" | "unpin" => Self::Missing("source"),
            _ => Self::Missing("cmd-signal"),
        }
    }
}

/// A supervised program for lists: its words, and what its processes use.
fn service_message(state: &ServiceState, used: Option<Usage>) -> Service {
    let seconds = |ticks: u64| ticks as f64 / ticks_per_second().max(1) as f64;
    Service {
        status: state.word.to_owned(),
        pid: state.pid,
        since: state.since.map(Moment::rfc3339),
        restarts: state.restarts,
        last_exit: state.last.map(|(exit, _)| said(exit)),
        next_start: state.next.map(|left| left.as_secs_f64()),
        memory: used.map(|u| u.memory),
        cpu: used.map(|u| seconds(u.ticks)),
        outdated: state.outdated,
    }
}

/// Why there is nothing to cancel.
fn over(row: &Row) -> String {
    match row.covered_by {
        Some(by) => format!("request {} is covered by run {by}; cancel that one", row.id),
        None => format!(
            "run {} of {} is over: {}",
            row.id,
            row.program,
            row.outcome.as_str()
        ),
    }
}

/// An error with its causes.
pub fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut cause = e.source();
    while let Some(e) = cause {
        text.push_str(&format!(": {e}"));
        cause = e.source();
    }
    text
}

/// Runs what may wait for a disk or a name service. `None`: it panicked, and the log says so.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

/// A terminal as a process can use it: what a client knows nothing of is as usual.
fn usable(terminal: Terminal) -> Terminal {
    let word = |kind: &String| {
        let part = |c: char| c.is_ascii_alphanumeric() || "-+_.".contains(c);
        !kind.is_empty() && kind.len() <= 64 && kind.chars().all(part)
    };
    let usual = Size::default();
    let or = |given: u16, usual: u16| if given == 0 { usual } else { given };
    Terminal {
        rows: or(terminal.rows, usual.rows),
        cols: or(terminal.cols, usual.cols),
        kind: terminal.kind.filter(word),
    }
}

/// Bounds of what reaches the child or the record as text.
fn check_texts(request: &RunRequest) -> Result<(), String> {
    if request.args.iter().any(|a| a.contains('\0')) {
        return Err("an argument contains a NUL; nothing was run".into());
    }
    let bytes = request.args.iter().map(|a| a.len() + 1).sum::<usize>() + total(&request.inputs);
    if bytes > ARGS_MAX {
        return Err(format!(
            "inputs and arguments come to {bytes} bytes, and {ARGS_MAX} are allowed; nothing was run"
        ));
    }
    if request
        .reason
        .as_ref()
        .is_some_and(|r| r.len() > REASON_MAX)
    {
        return Err(format!(
            "the reason is longer than {REASON_MAX} bytes; nothing was run"
        ));
    }
    if request
        .key
        .as_ref()
        .is_some_and(|k| k.is_empty() || k.len() > KEY_MAX)
    {
        return Err(format!(
            "the request's key has to have 1 to {KEY_MAX} bytes; nothing was run"
        ));
    }
    Ok(())
}

fn total(inputs: &BTreeMap<String, String>) -> usize {
    inputs.iter().map(|(k, v)| k.len() + v.len() + 8).sum()
}

/// A log on the disk, complete as far as it goes.
pub fn stored_log(log_dir: &std::path::Path, program: &ProgramName, id: RunId) -> Option<LiveLog> {
    let log: PathBuf = crate::log::log_path(log_dir, program, id);
    let index = crate::log::index_path(log_dir, program, id);
    let bytes = std::fs::metadata(&log).ok()?.len();
    index.exists().then_some(())?;
    let (_, progress) = watch::channel(Progress {
        bytes,
        dropped: 0,
        complete: true,
    });
    Some(LiveLog::new(log, index, progress))
}
