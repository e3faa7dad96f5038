//! What there is, in one table. A request is for one of these, exactly, or for nothing; the
//! OpenAPI document is made of the same table.

use hyper::Method;
use serde_json::{Value, json};

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Operation {
    Me,
    Programs,
    Program,
    Act,
    Releases,
    Why,
    Plan,
    Verify,
    Freeze,
    Thaw,
    Runs,
    Start,
    Run,
    Cancel,
    Hook,
    Log,
    Events,
    Metrics,
    Health,
    OpenApi,
}

/// How a value is written in an address.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Text,
    Number,
    Flag,
    Words(&'static [&'static str]),
}

/// A parameter behind the question mark.
struct Parameter {
    name: &'static str,
    kind: Kind,
    about: &'static str,
}

const fn parameter(name: &'static str, kind: Kind, about: &'static str) -> Parameter {
    Parameter { name, kind, about }
}

/// What is answered when all is well.
enum Good {
    /// JSON of this schema.
    Json(&'static str),
    /// A list of these, under this name.
    List(&'static str, &'static str),
    /// Something else of this type.
    Other(&'static str),
}

/// One thing that can be asked for.
pub struct Route {
    /// Whether it changes something: POST, not GET.
    changes: bool,
    path: &'static str,
    /// What it is.
    pub operation: Operation,
    about: &'static str,
    query: &'static [Parameter],
    /// The schema of the request's body.
    body: Option<&'static str>,
    status: u16,
    good: Good,
    /// What may go wrong beside what always may.
    bad: &'static [u16],
}

const OUTCOMES: &[&str] = &[
    "waiting",
    "running",
    "succeeded",
    "failed",
    "signalled",
    "timed-out",
    "cancelled",
    "superseded",
    "not-started",
    "interrupted",
    "lost",
];

const fn get(
    path: &'static str,
    operation: Operation,
    good: Good,
    bad: &'static [u16],
    about: &'static str,
) -> Route {
    Route {
        changes: false,
        path,
        operation,
        about,
        query: &[],
        body: None,
        status: 200,
        good,
        bad,
    }
}

const fn post(
    path: &'static str,
    operation: Operation,
    body: &'static str,
    status: u16,
    good: Good,
    about: &'static str,
) -> Route {
    Route {
        changes: true,
        path,
        operation,
        about,
        query: &[],
        body: Some(body),
        status,
        good,
        bad: &[404, 409, 422],
    }
}

/// Everything that there is.
pub static ROUTES: &[Route] = &[
    get(
        "/api/v1/me",
        Operation::Me,
        Good::Json("You"),
        &[],
        "Who the caller is.",
    ),
    get(
        "/api/v1/programs",
        Operation::Programs,
        Good::List("programs", "Program"),
        &[],
        "The programs that the caller may use, with what they may do with each.",
    ),
    get(
        "/api/v1/programs/{program}",
        Operation::Program,
        Good::Json("Program"),
        &[404],
        "One program.",
    ),
    post(
        "/api/v1/programs/{program}/actions/{action}",
        Operation::Act,
        "Request",
        202,
        Good::Json("Accepted"),
        "Does something with a program. The answer comes when the request is on record (202), or, \
         for what has no run of its own, when it is done (also 202, with `run` null).",
    ),
    get(
        "/api/v1/programs/{program}/releases",
        Operation::Releases,
        Good::List("releases", "Release"),
        &[404, 409],
        "The releases of a program with a source, the newest first.",
    ),
    get(
        "/api/v1/programs/{program}/why",
        Operation::Why,
        Good::Json("Text"),
        &[404, 409],
        "Why what is current is so.",
    ),
    get(
        "/api/v1/programs/{program}/plan",
        Operation::Plan,
        Good::Json("Text"),
        &[404, 409],
        "What an update would bring.",
    ),
    get(
        "/api/v1/programs/{program}/verify",
        Operation::Verify,
        Good::Json("Text"),
        &[404, 409],
        "Whether what is current still is as it was released.",
    ),
    post(
        "/api/v1/programs/{program}/freeze",
        Operation::Freeze,
        "Freeze",
        200,
        Good::Json("Text"),
        "Lets a program stand still: nothing of it is begun.",
    ),
    post(
        "/api/v1/programs/{program}/thaw",
        Operation::Thaw,
        "Nothing",
        200,
        Good::Json("Text"),
        "Lets it go on.",
    ),
    Route {
        query: &[
            parameter("program", Kind::Text, "Only this program's."),
            parameter(
                "outcome",
                Kind::Words(OUTCOMES),
                "Only those with this outcome.",
            ),
            parameter("before", Kind::Number, "Only those before this run."),
            parameter(
                "limit",
                Kind::Number,
                "At most so many; 50 if not said, 1000 at most.",
            ),
        ],
        ..get(
            "/api/v1/runs",
            Operation::Runs,
            Good::List("runs", "Run"),
            &[404],
            "Runs, the newest first. The last one's number is `before` of the next page.",
        )
    },
    post(
        "/api/v1/runs",
        Operation::Start,
        "Start",
        202,
        Good::Json("Accepted"),
        "The same as an action of a program, all of it in the body.",
    ),
    get(
        "/api/v1/runs/{run}",
        Operation::Run,
        Good::Json("Run"),
        &[404],
        "One run.",
    ),
    post(
        "/api/v1/runs/{run}/cancel",
        Operation::Cancel,
        "Nothing",
        200,
        Good::Json("Text"),
        "Withdraws a waiting request, or ends a live run.",
    ),
    post(
        "/hooks/{program}/{action}",
        Operation::Hook,
        "Anything",
        202,
        Good::Json("Accepted"),
        "A webhook of GitHub, GitLab, Gitea or Forgejo: asks for an action of a program whose \
         section has `hook-ACTION`, if its signature is right.",
    ),
    Route {
        query: &[
            parameter("offset", Kind::Number, "Begin at this byte of the log."),
            parameter("follow", Kind::Flag, "Go on until the run is over."),
            parameter("stream", Kind::Words(&["out", "err"]), "Only this stream."),
            parameter(
                "format",
                Kind::Words(&["raw", "lines"]),
                "The bytes as they are (raw), or pieces as JSON, one a line.",
            ),
        ],
        ..get(
            "/api/v1/runs/{run}/log",
            Operation::Log,
            Good::Other("text/plain"),
            &[404],
            "What a run has printed. With `format=lines` each line is an object with `offset` \
             (where to go on), `stream`, `time` and `text`.",
        )
    },
    Route {
        query: &[parameter(
            "after",
            Kind::Number,
            "Go on after the event of this number.",
        )],
        ..get(
            "/api/v1/events",
            Operation::Events,
            Good::Other("text/event-stream"),
            &[],
            "What happens from now on, as server-sent events. `Last-Event-ID` is heeded. An event \
             without a program means that everything has to be looked at anew.",
        )
    },
    get(
        "/api/v1/openapi.json",
        Operation::OpenApi,
        Good::Other("application/json"),
        &[],
        "This document.",
    ),
    get(
        "/metrics",
        Operation::Metrics,
        Good::Other("text/plain"),
        &[],
        "The state of programs, for Prometheus.",
    ),
    get(
        "/healthz",
        Operation::Health,
        Good::Other("text/plain"),
        &[],
        "Whether the daemon serves.",
    ),
];

/// What was found for a request.
#[derive(Debug)]
pub enum Found {
    /// This, with the values of its parameters, decoded.
    Route(&'static Route, Vec<String>),
    /// Something else can be done there: these methods.
    Methods(String),
    /// Nothing is there.
    Nothing,
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method(), self.path)
    }
}

impl Route {
    /// As OpenAPI has it.
    fn method(&self) -> &'static str {
        if self.changes { "post" } else { "get" }
    }

    /// Whether a parameter of that name may stand behind the question mark.
    pub fn takes(&self, name: &str) -> bool {
        self.query.iter().any(|p| p.name == name)
    }
}

/// Finds what a request asks for.
pub fn find(method: &Method, path: &str) -> Found {
    let mut methods: Vec<&str> = Vec::new();
    for route in ROUTES {
        let Some(values) = matches(route.path, path) else {
            continue;
        };
        let asked = match route.changes {
            true => *method == Method::POST,
            false => *method == Method::GET || *method == Method::HEAD,
        };
        if asked {
            return Found::Route(route, values);
        }
        methods.push(if route.changes { "POST" } else { "GET, HEAD" });
    }
    match methods.is_empty() {
        true => Found::Nothing,
        false => Found::Methods(methods.join(", ")),
    }
}

/// The parameters of a path, if it is of that form.
fn matches(form: &str, path: &str) -> Option<Vec<String>> {
    let (mut form, mut path) = (form.split('/'), path.split('/'));
    let mut values = Vec::new();
    loop {
        match (form.next(), path.next()) {
            (None, None) => return Some(values),
            (Some(part), Some(value)) if part.starts_with('{') => {
                values.push(decode(value).filter(|value| !value.is_empty())?);
            }
            (Some(part), Some(value)) if part == value => {}
            _ => return None,
        }
    }
}

/// `%2F` is `/`. None for what is no text.
pub fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        let (high, low) = (digit(rest.next())?, digit(rest.next())?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok()
}

/// The document that describes all of it (OpenAPI 3.1).
pub fn document() -> Value {
    let mut paths = serde_json::Map::new();
    for route in ROUTES {
        let entry = paths.entry(route.path).or_insert_with(|| json!({}));
        entry[route.method()] = operation(route);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "deployer",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Programs, their runs and logs, under the caller's own identity.",
        },
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn operation(route: &Route) -> Value {
    let in_path = route.path.split('/').filter_map(|part| {
        let name = part.strip_prefix('{')?.strip_suffix('}')?;
        let schema = match name {
            "run" => json!({"type": "integer", "minimum": 0, "maximum": i64::MAX}),
            _ => json!({"type": "string", "minLength": 1}),
        };
        Some(json!({"name": name, "in": "path", "required": true, "schema": schema}))
    });
    let in_query = route.query.iter().map(|p| {
        let schema = match p.kind {
            Kind::Text => json!({"type": "string", "minLength": 1}),
            Kind::Number => json!({"type": "integer", "minimum": 0, "maximum": i64::MAX}),
            Kind::Flag => json!({"type": "boolean"}),
            Kind::Words(words) => json!({"type": "string", "enum": words}),
        };
        json!({"name": p.name, "in": "query", "description": p.about, "schema": schema})
    });
    let parameters: Vec<Value> = in_path.chain(in_query).collect();
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    let (kind, schema) = match &route.good {
        Good::Json(name) => ("application/json", reference(name)),
        Good::List(field, name) => (
            "application/json",
            json!({
                "type": "object",
                "required": [field],
                "properties": { *field: {"type": "array", "items": reference(name)} },
            }),
        ),
        Good::Other(kind) => (*kind, json!({})),
    };
    let mut content = json!({ kind: { "schema": schema } });
    if route.operation == Operation::Log {
        content["application/x-ndjson"] = json!({ "schema": {} });
    }
    let mut answers = json!({
        route.status.to_string(): { "description": "It is so.", "content": content },
    });
    let always = [400, 401, 403, 405, 421, 429, 500, 503];
    let with_body: &[u16] = if route.body.is_some() {
        &[413, 415]
    } else {
        &[]
    };
    for status in always.iter().chain(with_body).chain(route.bad) {
        let reason = hyper::StatusCode::from_u16(*status)
            .ok()
            .and_then(|s| s.canonical_reason());
        answers[status.to_string()] = json!({
            "description": reason.unwrap_or_default(),
            "content": { "application/problem+json": { "schema": reference("Problem") } },
        });
    }
    let mut operation = json!({
        "operationId": format!("{:?}", route.operation).to_ascii_lowercase(),
        "summary": route.about,
        "parameters": parameters,
        "responses": answers,
    });
    if let Some(body) = route.body {
        operation["requestBody"] = json!({
            "required": true,
            "content": { "application/json": { "schema": reference(body) } },
        });
    }
    operation
}

/// An object with these fields. A `?` behind a type: or null.
fn object(fields: &[(&str, &str)]) -> Value {
    let mut properties = serde_json::Map::new();
    for (name, kind) in fields {
        properties.insert((*name).to_owned(), field(kind));
    }
    let required: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    json!({"type": "object", "required": required, "properties": properties})
}

fn field(kind: &str) -> Value {
    let reference = |name: &str| json!({"$ref": format!("#/components/schemas/{name}")});
    match kind {
        "map" => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        "strings" => json!({"type": "array", "items": {"type": "string"}}),
        "inputs" => json!({"type": "array", "items": reference("Input")}),
        "by" => reference("By"),
        "service?" => json!({"oneOf": [reference("Service"), {"type": "null"}]}),
        _ => match kind.strip_suffix('?') {
            Some(kind) => json!({"type": [kind, "null"]}),
            None => json!({"type": kind}),
        },
    }
}

/// What goes to and fro.
fn schemas() -> Value {
    let optional = |fields: &[(&str, &str)]| {
        let mut schema = object(fields);
        schema["required"] = json!([]);
        schema["additionalProperties"] = json!(false);
        schema
    };
    let mut start = optional(&[
        ("program", "string"),
        ("action", "string"),
        ("inputs", "map"),
        ("args", "strings"),
        ("reason", "string?"),
        ("key", "string?"),
    ]);
    start["required"] = json!(["program"]);
    start["properties"]["program"]["minLength"] = json!(1);
    let mut freeze = optional(&[("reason", "string"), ("seconds", "number?")]);
    freeze["required"] = json!(["reason"]);
    freeze["properties"]["reason"]["minLength"] = json!(1);
    freeze["properties"]["seconds"]["exclusiveMinimum"] = json!(0);
    freeze["properties"]["seconds"]["exclusiveMaximum"] = json!(3.2e9);
    json!({
        "Problem": object(&[
            ("type", "string"), ("title", "string"), ("status", "integer"),
            ("detail", "string"), ("code", "string"),
        ]),
        "You": object(&[("uid", "integer?"), ("user", "string"), ("admin", "boolean")]),
        "Program": object(&[
            ("name", "string"), ("state", "string"), ("run", "integer?"), ("waiting", "integer"),
            ("frozen", "string?"), ("service", "service?"), ("actions", "strings"),
            ("supervised", "boolean"), ("inputs", "inputs"), ("args", "boolean"),
            ("source", "string?"), ("schedules", "map"), ("next_check", "string?"),
            ("failing", "string?"),
            ("newest", "string?"),
        ]),
        "Input": object(&[
            ("name", "string"), ("kind", "string"), ("default", "string?"),
            ("pattern", "string?"), ("choices", "strings"), ("min", "integer?"),
            ("max", "integer?"),
        ]),
        "Service": object(&[
            ("status", "string"), ("pid", "integer?"), ("since", "string?"),
            ("restarts", "integer"), ("last_exit", "string?"), ("next_start", "number?"),
            ("memory", "integer?"), ("cpu", "number?"), ("outdated", "boolean"),
        ]),
        "Run": object(&[
            ("id", "integer"), ("program", "string"), ("action", "string"),
            ("outcome", "string"), ("exit_code", "integer?"), ("signal", "string?"),
            ("by", "by"), ("reason", "string?"), ("inputs", "map"), ("args", "strings"),
            ("covered_by", "integer?"), ("requested_at", "string?"), ("started_at", "string?"),
            ("ended_at", "string?"), ("bytes", "integer"), ("dropped", "integer"),
            ("leftovers", "boolean"), ("detail", "string?"),
        ]),
        "By": object(&[
            ("uid", "integer"), ("gid", "integer"), ("user", "string"), ("pid", "integer"),
        ]),
        "Release": object(&[
            ("release", "string"), ("revision", "string"), ("made", "string"),
            ("run", "integer"), ("state", "string"),
        ]),
        "Accepted": object(&[("run", "integer?"), ("message", "string?")]),
        "Text": object(&[("text", "string"), ("good", "boolean")]),
        "Request": optional(&[
            ("inputs", "map"), ("args", "strings"), ("reason", "string?"), ("key", "string?"),
        ]),
        "Start": start,
        "Freeze": freeze,
        "Nothing": optional(&[]),
        "Anything": json!({}),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_in_the_table_is_found() {
        let found = |method: Method, path: &str| match find(&method, path) {
            Found::Route(route, values) => format!("{:?} {values:?}", route.operation),
            Found::Methods(methods) => methods,
            Found::Nothing => "nothing".into(),
        };
        assert_eq!(found(Method::GET, "/api/v1/programs"), "Programs []");
        assert_eq!(found(Method::HEAD, "/api/v1/programs"), "Programs []");
        assert_eq!(
            found(Method::POST, "/api/v1/programs/team%2Fapp/actions/run"),
            r#"Act ["team/app", "run"]"#
        );
        assert_eq!(found(Method::DELETE, "/api/v1/runs/7"), "GET, HEAD");
        assert_eq!(found(Method::GET, "/api/v1/runs/7/cancel"), "POST");
        for path in [
            "",
            "/",
            "//api/v1/programs",
            "/api/v1/programs/",
            "/api/v1/programs//why",
            "/api/v1/programs/a/b",
            "/api/v1/programs/..",
            "/api/v1/programs/%zz",
            "/api/v1/programs/%ff",
            "/api/v1/./programs",
            "/API/v1/programs",
        ] {
            let is = found(Method::GET, path);
            // A name that is none is the daemon's business.
            assert!(is == "nothing" || is == r#"Program [".."]"#, "{path}: {is}");
        }
    }

    #[test]
    fn the_document_names_every_route_and_every_schema_is_there() {
        let document = document();
        for route in ROUTES {
            let operation = &document["paths"][route.path][route.method()];
            assert!(operation.is_object(), "{route:?}");
        }
        let text = document.to_string();
        for part in text.split("#/components/schemas/").skip(1) {
            let name = part.split('"').next().unwrap();
            assert!(
                document["components"]["schemas"][name].is_object(),
                "{name}"
            );
        }
    }
}
