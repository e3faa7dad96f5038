//! What each operation does: one request to the daemon, and its answer as HTTP has it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;

use hyper::StatusCode;
use hyper::body::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answer::{self, Answer, Body, Problem};
use super::events::Hubs;
use super::routes::{self, Operation};
use super::upstream::{Caller, Fault, Session};
use crate::log::{Chunk, Reader, Stream};
use crate::protocol::gateway::Hook;
use crate::protocol::message::{
    CodeQuestion, Detail, LogsRequest, OutputWay, Reply, Request, RunRequest, Service,
};

/// How many runs a page has, if nobody says; and at most.
const PAGE: u64 = 50;
const LARGEST_PAGE: u64 = 1000;
/// How much of a log is read at once, in bytes.
const PIECE: usize = 256 * 1024;
/// How many pieces may wait for a client to take them.
const AHEAD: usize = 4;

/// A request, taken apart.
pub struct Asked {
    /// What for.
    pub operation: Operation,
    /// The parameters of its path.
    pub path: Vec<String>,
    /// Those behind the question mark.
    pub query: BTreeMap<String, String>,
    /// Its body, if it has one.
    pub body: Bytes,
    /// The last event that a client that connects again has seen.
    pub last_event: Option<String>,
    /// What a webhook proves, if it is one.
    pub hook: Hook,
}

type Outcome = Result<Answer, Problem>;

fn bad(detail: impl Into<String>) -> Problem {
    Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail)
}

impl Asked {
    /// Does it.
    ///
    /// # Errors
    /// Why not, as a problem document.
    pub async fn answer(self, caller: &Caller, hubs: &Hubs) -> Outcome {
        let first = || self.path.first().cloned().unwrap_or_default();
        match self.operation {
            Operation::Me => {
                let (_, last) = caller.all(&Request::WhoAmI).await?;
                match last {
                    Reply::You(you) => Ok(answer::json(StatusCode::OK, &you)),
                    other => Err(unexpected(&other)),
                }
            }
            Operation::Programs => programs(caller).await,
            Operation::Program => program(caller, first()).await,
            Operation::Act | Operation::Start => self.act(caller).await,
            Operation::Releases => releases(caller, first()).await,
            Operation::Why => question(caller, first(), CodeQuestion::Why).await,
            Operation::Plan => question(caller, first(), CodeQuestion::Plan).await,
            Operation::Verify => question(caller, first(), CodeQuestion::Verify).await,
            Operation::Freeze => {
                #[derive(Deserialize)]
                #[serde(deny_unknown_fields)]
                struct Freeze {
                    reason: String,
                    #[serde(default)]
                    seconds: Option<f64>,
                }
                let Freeze { reason, seconds } = self.body()?;
                let program = first();
                let request = Request::Freeze {
                    program,
                    reason,
                    seconds,
                };
                done(caller, &request).await
            }
            Operation::Thaw => {
                let Nothing {} = self.body()?;
                done(caller, &Request::Thaw { program: first() }).await
            }
            Operation::Runs => self.runs(caller).await,
            Operation::Run => {
                let id = self.run()?;
                match rows(caller, Some(id), None, None, (None, None))
                    .await?
                    .pop()
                {
                    Some(row) => Ok(answer::json(StatusCode::OK, &row)),
                    None => Err(unexpected(&"no row")),
                }
            }
            Operation::Cancel => {
                let Nothing {} = self.body()?;
                let id = self.run()?;
                done(caller, &Request::Cancel { id }).await
            }
            Operation::Hook => self.webhook(caller).await,
            Operation::Log => self.log(caller).await,
            Operation::Events => self.events(caller, hubs).await,
            Operation::Metrics => metrics(caller).await,
            Operation::Health => {
                caller.all(&Request::Ping).await?;
                Ok(answer::text(StatusCode::OK, "text/plain", "ok\n".into()))
            }
            Operation::OpenApi => Ok(answer::json(StatusCode::OK, &routes::document())),
        }
    }

    fn body<T: for<'a> Deserialize<'a>>(&self) -> Result<T, Problem> {
        let body = if self.body.is_empty() {
            b"{}"
        } else {
            &*self.body
        };
        serde_json::from_slice(body).map_err(|e| bad(format!("the body is malformed: {e}")))
    }

    fn run(&self) -> Result<u64, Problem> {
        let text = self.path.first().map_or("", String::as_str);
        number("the run", text)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Problem> {
        let value = self.query.get(name);
        value.map(|value| number(name, value)).transpose()
    }

    /// One of these words; the first if nothing is said.
    fn word(&self, name: &str, words: &[&'static str]) -> Result<&'static str, Problem> {
        let value = self.query.get(name).map_or(words[0], String::as_str);
        let found = words.iter().find(|word| **word == value);
        found.copied().ok_or_else(|| {
            let words = words.join(", ");
            bad(format!("{name} is {value:?}, and there are {words}"))
        })
    }

    async fn act(&self, caller: &Caller) -> Outcome {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Act {
            /// Of what is not said by the address.
            #[serde(default)]
            program: Option<String>,
            #[serde(default)]
            action: Option<String>,
            #[serde(default)]
            inputs: BTreeMap<String, String>,
            #[serde(default)]
            args: Vec<String>,
            #[serde(default)]
            reason: Option<String>,
            #[serde(default)]
            key: Option<String>,
        }
        let Act {
            program,
            action,
            inputs,
            args,
            reason,
            key,
        } = self.body()?;
        let (program, action) = match (self.path.as_slice(), program, action) {
            ([program, action], None, None) => (program.clone(), action.clone()),
            ([], Some(program), action) => (program, action.unwrap_or_else(|| "run".to_owned())),
            ([], None, _) => return Err(bad("say which program: {\"program\": NAME}")),
            _ => {
                return Err(bad(
                    "the address says which program and action, the body does not",
                ));
            }
        };
        let request = Request::Run(RunRequest {
            program,
            action,
            inputs,
            args,
            reason,
            key,
            output: OutputWay::None,
            detach: true,
            ..RunRequest::default()
        });
        let mut session = caller.ask(&request).await?;
        let (run, message) = loop {
            match session.receive().await? {
                Reply::Accepted { id, .. } | Reply::Started { id, .. } => break (Some(id), None),
                Reply::Ended { run, .. } => break (Some(run.id), run.detail),
                Reply::Done {
                    message,
                    output,
                    status: 0,
                } => break (None, message.or(output)),
                Reply::Done {
                    message, output, ..
                } => {
                    let said = message.or(output).unwrap_or_default();
                    return Err(Problem::new(
                        StatusCode::CONFLICT,
                        "failed",
                        said.trim_end(),
                    ));
                }
                _ => {}
            }
        };
        let mut answer = answer::json(
            StatusCode::ACCEPTED,
            &json!({ "run": run, "message": message }),
        );
        if let Some(place) = run.and_then(|id| format!("/api/v1/runs/{id}").parse().ok()) {
            answer.headers_mut().insert(hyper::header::LOCATION, place);
        }
        Ok(answer)
    }

    async fn webhook(&self, caller: &Caller) -> Outcome {
        let [program, action] = self.path.as_slice() else {
            return Err(bad("no program"));
        };
        let hook = Hook {
            program: program.clone(),
            action: action.clone(),
            ..self.hook.clone()
        };
        let (run, message) = match caller.clone().hook(hook, &self.body).await? {
            Reply::Accepted { id, .. } => (Some(id), None),
            Reply::Done { message, .. } => (None, message),
            other => return Err(unexpected(&other)),
        };
        let answer = json!({ "run": run, "message": message });
        Ok(answer::json(StatusCode::ACCEPTED, &answer))
    }

    async fn runs(&self, caller: &Caller) -> Outcome {
        let limit = self.number("limit")?.unwrap_or(PAGE).min(LARGEST_PAGE);
        let before = self.number("before")?;
        let program = self.query.get("program").cloned();
        let outcome = self.query.get("outcome").cloned();
        let mut rows = rows(caller, None, program, outcome, (Some(limit), before)).await?;
        rows.reverse();
        Ok(answer::json(StatusCode::OK, &json!({ "runs": rows })))
    }

    async fn log(&self, caller: &Caller) -> Outcome {
        let id = self.run()?;
        let follow = self.word("follow", &["false", "0", "true", "1", ""])?;
        let follow = !matches!(follow, "false" | "0");
        let lines = self.word("format", &["raw", "lines"])? == "lines";
        let only = match self.word("stream", &["", "out", "err"])? {
            "out" => Some(Stream::Stdout),
            "err" => Some(Stream::Stderr),
            _ => None,
        };
        let offset = self.number("offset")?.unwrap_or(0);
        let request = Request::Logs(LogsRequest {
            id: Some(id),
            follow,
            output: OutputWay::Fd,
            ..LogsRequest::default()
        });
        let mut session = caller.ask(&request).await?;
        let (send, body) = mpsc::channel(AHEAD);
        // A refusal is the first thing that is said.
        let first = session.receive().await?;
        let pouring = Pouring {
            session,
            send,
            form: Form { lines, only },
            offset,
        };
        tokio::spawn(pouring.pour(first));
        let kind = match lines {
            true => "application/x-ndjson",
            false => "text/plain; charset=utf-8",
        };
        Ok(answer::answer(StatusCode::OK, kind, Body::Coming(body)))
    }

    async fn events(&self, caller: &Caller, hubs: &Hubs) -> Outcome {
        let after = match &self.last_event {
            Some(id) => id.parse().ok(),
            None => self.number("after")?,
        };
        let body = hubs.stream(caller, after).await?;
        let kind = "text/event-stream";
        Ok(answer::answer(StatusCode::OK, kind, Body::Coming(body)))
    }
}

/// An empty object.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

fn number(name: &str, text: &str) -> Result<u64, Problem> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let number = text
        .parse()
        .ok()
        .filter(|n: &u64| digits && *n <= i64::MAX as u64);
    number.ok_or_else(|| bad(format!("{name} is {text:?}, which is no number")))
}

fn unexpected(what: &impl std::fmt::Debug) -> Problem {
    let detail = format!("the daemon answered something unexpected ({what:?})");
    Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", detail)
}

/// A program as the API has it.
#[derive(Serialize)]
struct Program {
    name: String,
    state: String,
    run: Option<u64>,
    waiting: u64,
    frozen: Option<String>,
    service: Option<Service>,
    #[serde(flatten)]
    detail: Detail,
}

async fn list(caller: &Caller, program: Option<String>) -> Result<Vec<Program>, Fault> {
    let request = Request::List {
        program,
        detail: true,
    };
    let (said, _) = caller.all(&request).await?;
    let programs = said.into_iter().filter_map(|reply| match reply {
        Reply::Program {
            name,
            state,
            service,
            run,
            waiting,
            frozen,
            detail,
        } => Some(Program {
            name,
            state,
            run,
            waiting,
            frozen,
            service,
            detail: detail.map(|detail| *detail).unwrap_or_default(),
        }),
        _ => None,
    });
    Ok(programs.collect())
}

async fn programs(caller: &Caller) -> Outcome {
    let programs = list(caller, None).await?;
    Ok(answer::json(
        StatusCode::OK,
        &json!({ "programs": programs }),
    ))
}

async fn program(caller: &Caller, name: String) -> Outcome {
    match list(caller, Some(name)).await?.pop() {
        Some(program) => Ok(answer::json(StatusCode::OK, &program)),
        None => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "refused",
            "there is no such program any more",
        )),
    }
}

async fn rows(
    caller: &Caller,
    id: Option<u64>,
    program: Option<String>,
    outcome: Option<String>,
    (limit, before): (Option<u64>, Option<u64>),
) -> Result<Vec<crate::protocol::message::Row>, Fault> {
    let request = Request::History {
        program,
        id,
        limit,
        before,
        outcome,
    };
    let (said, _) = caller.all(&request).await?;
    let rows = said.into_iter().filter_map(|reply| match reply {
        Reply::Row(row) => Some(*row),
        _ => None,
    });
    Ok(rows.collect())
}

/// Something that answers with a sentence.
async fn done(caller: &Caller, request: &Request) -> Outcome {
    let (_, last) = caller.all(request).await?;
    let Reply::Done {
        message,
        output,
        status,
    } = last
    else {
        return Err(unexpected(&last));
    };
    let text = output.or(message).unwrap_or_default();
    let answer = json!({ "text": text.trim_end(), "good": status == 0 });
    Ok(answer::json(StatusCode::OK, &answer))
}

async fn question(caller: &Caller, program: String, about: CodeQuestion) -> Outcome {
    let request = Request::Code {
        program,
        about,
        json: false,
    };
    done(caller, &request).await.map_err(conflict)
}

/// What is asked of a program that has no source: no input is wrong, it is the wrong program.
fn conflict(problem: Problem) -> Problem {
    match problem.status {
        StatusCode::UNPROCESSABLE_ENTITY => Problem {
            status: StatusCode::CONFLICT,
            ..problem
        },
        _ => problem,
    }
}

async fn releases(caller: &Caller, program: String) -> Outcome {
    let request = Request::Code {
        program,
        about: CodeQuestion::Releases,
        json: true,
    };
    let (_, last) = caller.all(&request).await.map_err(|e| conflict(e.into()))?;
    let Reply::Done { output, .. } = last else {
        return Err(unexpected(&last));
    };
    let output = output.unwrap_or_default();
    let lines = output.lines().map(serde_json::from_str::<Value>);
    let releases: Result<Vec<Value>, _> = lines.collect();
    let releases = releases.map_err(|e| unexpected(&e))?;
    Ok(answer::json(
        StatusCode::OK,
        &json!({ "releases": releases }),
    ))
}

/// The state of programs in the text format of Prometheus.
async fn metrics(caller: &Caller) -> Outcome {
    type Value = fn(&Program) -> Option<f64>;
    let columns: [(&str, &str, &str, Value); 7] = [
        (
            "deployer_program_running",
            "gauge",
            "Whether a run or process of it is there.",
            |p| {
                let running =
                    p.run.is_some() || p.service.as_ref().is_some_and(|s| s.pid.is_some());
                Some(f64::from(u8::from(running)))
            },
        ),
        (
            "deployer_program_waiting",
            "gauge",
            "Requests that wait.",
            |p| Some(p.waiting as f64),
        ),
        (
            "deployer_program_frozen",
            "gauge",
            "Whether it stands still.",
            |p| Some(f64::from(u8::from(p.frozen.is_some()))),
        ),
        (
            "deployer_service_failed",
            "gauge",
            "Whether it was given up.",
            |p| {
                let service = p.service.as_ref()?;
                Some(f64::from(u8::from(service.status == "failed")))
            },
        ),
        (
            "deployer_service_restarts_total",
            "counter",
            "How often it was started by itself.",
            |p| Some(p.service.as_ref()?.restarts as f64),
        ),
        (
            "deployer_service_memory_bytes",
            "gauge",
            "Memory of all its processes.",
            |p| Some(p.service.as_ref()?.memory? as f64),
        ),
        (
            "deployer_service_cpu_seconds_total",
            "counter",
            "Processor time of its processes.",
            |p| p.service.as_ref()?.cpu,
        ),
    ];
    let programs = list(caller, None).await?;
    let mut text = String::new();
    for (name, kind, about, value) in columns {
        let _ = writeln!(text, "# HELP {name} {about}\n# TYPE {name} {kind}");
        for program in &programs {
            if let Some(value) = value(program) {
                let _ = writeln!(text, "{name}{{program=\"{}\"}} {value}", program.name);
            }
        }
    }
    let kind = "text/plain; version=0.0.4; charset=utf-8";
    Ok(answer::text(StatusCode::OK, kind, text))
}

/// How a log is wanted.
#[derive(Clone, Copy)]
struct Form {
    lines: bool,
    only: Option<Stream>,
}

/// A log on its way to a client.
struct Pouring {
    session: Session,
    send: mpsc::Sender<Bytes>,
    form: Form,
    offset: u64,
}

impl Pouring {
    /// Hands on what the log has and will have, until the daemon says that it is all, or one of
    /// the two ends has gone.
    async fn pour(mut self, first: Reply) {
        let mut source: Option<Source> = None;
        let mut reply = first;
        loop {
            let over = matches!(reply, Reply::Ended { .. } | Reply::Done { .. });
            if let Reply::Started { fds, .. } = &reply
                && fds.len() >= 2
                && let (Some(log), Some(index)) = (self.session.take_fd(), self.session.take_fd())
            {
                let mut reader = Reader::new(File::from(log), Some(File::from(index)));
                reader.seek(self.offset);
                source = Some(Source {
                    reader,
                    rest: None,
                    part: Vec::new(),
                });
            }
            while let Some(mut from) = source.take() {
                let form = self.form;
                let read = tokio::task::spawn_blocking(move || {
                    let piece = from.piece(form);
                    (from, piece)
                });
                let Ok((from, piece)) = read.await else {
                    return;
                };
                source = Some(from);
                match piece {
                    None => break,
                    Some(piece) if piece.is_empty() => {}
                    Some(piece) => {
                        if self.send.send(piece.into()).await.is_err() {
                            return;
                        }
                    }
                }
            }
            if over {
                return;
            }
            let told = tokio::select! {
                told = self.session.receive() => told,
                () = self.send.closed() => return,
            };
            match told {
                Ok(next) => reply = next,
                Err(_) => return,
            }
        }
    }
}

/// A log that is read.
struct Source {
    reader: Reader,
    /// What is left of the last chunk.
    rest: Option<Chunk>,
    /// The beginning of a character whose end has not been read yet.
    part: Vec<u8>,
}

impl Source {
    /// The next bytes for the client, perhaps none of what was read; `None`: that is all for now.
    fn piece(&mut self, form: Form) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let mut read_any = false;
        while out.len() < PIECE {
            let chunk = match self.rest.take() {
                Some(chunk) => chunk,
                // What cannot be read now cannot be read later: the client sees the end.
                None => match self.reader.next_chunk().ok().flatten() {
                    Some(chunk) => chunk,
                    None => break,
                },
            };
            read_any = true;
            if form.only.is_some_and(|only| only != chunk.stream) {
                continue;
            }
            let mut bytes = vec![0; usize::try_from(chunk.len).unwrap_or(PIECE).min(PIECE)];
            let n = self.reader.read_at(&mut bytes, chunk.offset).unwrap_or(0);
            if n == 0 {
                break;
            }
            bytes.truncate(n);
            if chunk.len > n as u64 {
                self.rest = Some(Chunk {
                    offset: chunk.offset + n as u64,
                    len: chunk.len - n as u64,
                    ..chunk
                });
            }
            match form.lines {
                false => out.extend_from_slice(&bytes),
                true => self.line(&chunk, &bytes, &mut out),
            }
        }
        read_any.then_some(out)
    }

    /// Bytes of a chunk as a JSON object.
    fn line(&mut self, chunk: &Chunk, bytes: &[u8], out: &mut Vec<u8>) {
        self.part.extend_from_slice(bytes);
        let mut whole = std::mem::take(&mut self.part);
        // A character may end in the next chunk.
        if let Err(e) = std::str::from_utf8(&whole)
            && e.error_len().is_none()
        {
            self.part = whole.split_off(e.valid_up_to());
        }
        let object = json!({
            "offset": chunk.offset + bytes.len() as u64 - self.part.len() as u64,
            "stream": match chunk.stream { Stream::Stdout => "out", Stream::Stderr => "err" },
            "time": chunk.time.map(|nanos| nanos as f64 / 1e9),
            "text": String::from_utf8_lossy(&whole),
        });
        // Nothing in it cannot be written.
        let _ = serde_json::to_writer(&mut *out, &object);
        out.push(b'\n');
    }
}
