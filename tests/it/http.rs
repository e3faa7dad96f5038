//! The HTTP gateway: identity, the API, and what other sites may not do.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    ALICE, CAROL, Daemon, OWNER, Running, Site, User, as_user, descendants, executable, finish,
    free_port, kill, wait_for,
};
use crate::sources::Nginx;

/// An answer of the gateway.
#[derive(Debug)]
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn read(text: &str) -> Self {
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text, ""));
        let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
        Self {
            status: status.unwrap_or_else(|| panic!("no answer: {text:?}")),
            head: head.to_ascii_lowercase(),
            body: body.to_owned(),
        }
    }

    #[track_caller]
    fn is(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self:?}");
        if status >= 400 {
            assert!(self.head.contains("application/problem+json"), "{self:?}");
            let problem = self.json();
            assert_eq!(problem["status"], status);
            assert!(
                problem["code"].is_string() && problem["detail"].is_string(),
                "{problem}"
            );
        }
        self
    }

    #[track_caller]
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

/// A daemon with a gateway on a UNIX socket, and these programs.
fn serve(globals: &str, programs: &str) -> Daemon {
    let site = Site::new();
    site.configure(&format!(
        "http-socket = @D@/http\nallow-uid = {}\n{globals}\n{programs}",
        ALICE.uid
    ));
    let d = site.start();
    await_gateway(&d);
    d
}

fn await_gateway(d: &Daemon) {
    wait_for("the gateway serves", || {
        let healthy = curl(d, OWNER, &["http://localhost/healthz"])?;
        (healthy.status == 200).then_some(())
    });
}

fn curl(d: &Daemon, user: User, words: &[&str]) -> Option<Answer> {
    let mut curl = as_user(user, "curl");
    curl.args([
        "-s",
        "-i",
        "--max-time",
        "20",
        "--path-as-is",
        "--unix-socket",
    ]);
    curl.arg(d.path("http")).args(words);
    let done = finish(curl);
    (!done.out.is_empty()).then(|| Answer::read(&done.text()))
}

#[track_caller]
fn get(d: &Daemon, user: User, path: &str) -> Answer {
    curl(d, user, &[&format!("http://localhost{path}")]).expect("there is an answer")
}

#[track_caller]
fn post(d: &Daemon, user: User, path: &str, body: &Value) -> Answer {
    let address = format!("http://localhost{path}");
    curl(d, user, &["--json", &body.to_string(), &address]).expect("there is an answer")
}

/// Asks the program to do something; the number of the run.
#[track_caller]
fn act(d: &Daemon, user: User, path: &str, body: &Value) -> u64 {
    let answer = post(d, user, &format!("/api/v1/programs/{path}"), body).is(202);
    let run = answer.json()["run"].as_u64().unwrap();
    assert!(
        answer
            .head
            .contains(&format!("location: /api/v1/runs/{run}")),
        "{answer:?}"
    );
    run
}

#[test]
fn on_the_socket_everybody_is_who_the_kernel_says() {
    root_only!(on_the_socket_everybody_is_who_the_kernel_says);
    let d = serve(
        "",
        "[prog-app]\ncmd-run = id -u\n[prog-hidden]\ncmd-run = true\nallow-uid = none\n",
    );
    let me = get(&d, ALICE, "/api/v1/me").is(200).json();
    assert_eq!(
        me,
        json!({"uid": ALICE.uid, "user": ALICE.uid.to_string(), "admin": false})
    );
    assert_eq!(get(&d, OWNER, "/api/v1/me").json()["admin"], true);
    let names = |user| {
        let found = get(&d, user, "/api/v1/programs").is(200).json();
        let programs = found["programs"].as_array().unwrap().clone();
        programs
            .iter()
            .map(|p| p["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(names(ALICE), ["app"]);
    assert_eq!(names(OWNER), ["app", "hidden"]);
    assert!(names(CAROL).is_empty());
    // What is forbidden looks like what is not there.
    let hidden = get(&d, ALICE, "/api/v1/programs/hidden").is(404).json();
    let absent = get(&d, ALICE, "/api/v1/programs/absent").is(404).json();
    let said = hidden["detail"]
        .as_str()
        .unwrap()
        .replace("hidden", "absent");
    assert_eq!(said, absent["detail"]);
    post(&d, CAROL, "/api/v1/programs/app/actions/run", &json!({})).is(404);
    let run = act(&d, ALICE, "app/actions/run", &json!({"reason": "a try"}));
    let row = d.ended(run);
    assert_eq!(row["by"]["uid"], ALICE.uid);
    assert_eq!(row["reason"], "a try");
    get(&d, CAROL, &format!("/api/v1/runs/{run}")).is(404);
    get(&d, CAROL, &format!("/api/v1/runs/{run}/log")).is(404);
    post(&d, CAROL, &format!("/api/v1/runs/{run}/cancel"), &json!({})).is(404);
}

#[test]
fn programs_are_described_with_what_the_caller_may_do() {
    let d = serve(
        "",
        "[prog-team/app]\ncmd-run = true\ninput-to = choice a b default a\ninput-n = int 1..3\n\
         schedule-run = 0 4 * * *\nuid-stop = none\n\
         [prog-web]\ncmd-start = exec sleep 1000\n",
    );
    let app = get(&d, OWNER, "/api/v1/programs/team%2Fapp").is(200).json();
    assert_eq!(app["name"], "team/app");
    assert_eq!(app["inputs"][0]["choices"], json!(["a", "b"]));
    assert_eq!(
        app["inputs"][1],
        json!({
            "name": "n", "kind": "int", "default": null, "pattern": null, "choices": [], "min": 1, "max": 3,
        })
    );
    assert_eq!(app["schedules"]["run"], "0 4 * * *");
    assert!(app["actions"].as_array().unwrap().contains(&json!("run")));
    assert_eq!(app["supervised"], false);
    let run = "/api/v1/programs/team%2Fapp/actions/run";
    let wrong = post(&d, OWNER, run, &json!({"inputs": {"n": "9"}}))
        .is(422)
        .json();
    assert_eq!(wrong["code"], "bad-input");
    post(&d, OWNER, run, &json!({"input": {}})).is(400);
    let id = act(
        &d,
        OWNER,
        "team%2Fapp/actions/run",
        &json!({"inputs": {"n": "2"}}),
    );
    assert_eq!(d.ended(id)["inputs"]["n"], "2");
    // All of it in the body is the same.
    let body = json!({"program": "team/app", "inputs": {"n": "3"}});
    let other = post(&d, OWNER, "/api/v1/runs", &body).is(202).json();
    assert_eq!(d.ended(other["run"].as_u64().unwrap())["inputs"]["n"], "3");
    post(&d, OWNER, "/api/v1/runs", &json!({"inputs": {}})).is(400);
    post(&d, OWNER, run, &json!({"program": "other"})).is(400);
    // What has no run of its own is done when the answer comes.
    let started = post(&d, OWNER, "/api/v1/programs/web/actions/start", &json!({})).is(202);
    let web = get(&d, OWNER, "/api/v1/programs/web").json();
    assert_eq!(web["service"]["status"], "running", "{started:?}");
    post(&d, OWNER, "/api/v1/programs/web/actions/stop", &json!({})).is(202);
    let web = get(&d, OWNER, "/api/v1/programs/web").json();
    assert_eq!(web["service"]["status"], "stopped");
}

#[test]
fn a_request_with_a_key_is_one_request() {
    let d = serve("", "[prog-app]\ncmd-run = echo ran >> @S@/trace\n");
    let body = json!({"key": "k1"});
    let first = act(&d, OWNER, "app/actions/run", &body);
    d.ended(first);
    assert_eq!(act(&d, OWNER, "app/actions/run", &body), first);
    assert_eq!(d.trace(), ["ran"]);
}

#[test]
fn logs_are_read_from_any_byte_and_followed() {
    let d = serve(
        "",
        "[prog-app]\ncmd-run = echo one; echo two >&2; read _ < @S@/gate; printf 'thr\\303'; sleep 0.1; printf '\\251e\\n'\n",
    );
    let gate = d.gate("gate");
    let run = act(&d, OWNER, "app/actions/run", &json!({}));
    let log = |query: &str| get(&d, OWNER, &format!("/api/v1/runs/{run}/log{query}"));
    wait_for("its first output", || {
        (log("").body == "one\ntwo\n").then_some(())
    });
    let mut curl = as_user(OWNER, "curl");
    curl.args(["-s", "-N", "--unix-socket"]).arg(d.path("http"));
    curl.arg(format!(
        "http://localhost/api/v1/runs/{run}/log?follow=true&offset=4"
    ));
    let follower = Running::start(curl);
    gate.open(1);
    assert_eq!(follower.done().exits(0).text(), "two\nthrée\n");
    assert_eq!(log("?stream=err").is(200).body, "two\n");
    let lines = log("?format=lines").is(200);
    assert!(lines.head.contains("application/x-ndjson"));
    let lines: Vec<Value> = lines
        .body
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    let text: String = lines.iter().map(|l| l["text"].as_str().unwrap()).collect();
    assert_eq!(text, "one\ntwo\nthrée\n");
    assert_eq!(lines[1]["stream"], "err");
    assert!(lines.iter().all(|l| l["time"].is_f64()));
    // From where any of them says on, nothing is lost and nothing comes twice.
    for line in &lines {
        let rest = log(&format!("?format=lines&offset={}", line["offset"]));
        let rest: String = rest
            .body
            .lines()
            .map(|l| {
                serde_json::from_str::<Value>(l).unwrap()["text"]
                    .as_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        assert!(text.ends_with(&rest), "{line} {rest:?}");
    }
    assert_eq!(log("?offset=999999").is(200).body, "");
    for query in [
        "?offset=-1",
        "?offset=x",
        "?follow=maybe",
        "?format=xml",
        "?stream=in",
        "?x=1",
    ] {
        log(query).is(400);
    }
}

#[test]
fn runs_are_listed_page_by_page() {
    let d = serve("", "[prog-a]\ncmd-run = true\n[prog-b]\ncmd-run = exit 3\n");
    for _ in 0..3 {
        d.ask(OWNER, ["RUN", "a"]).exits(0);
        d.ask(OWNER, ["RUN", "b"]).exits(3);
    }
    let ids = |query: &str| {
        let found = get(&d, OWNER, &format!("/api/v1/runs{query}"))
            .is(200)
            .json();
        let runs = found["runs"].as_array().unwrap().clone();
        runs.iter()
            .map(|r| r["id"].as_u64().unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(ids(""), [6, 5, 4, 3, 2, 1]);
    assert_eq!(ids("?limit=2"), [6, 5]);
    assert_eq!(ids("?limit=2&before=5"), [4, 3]);
    assert_eq!(ids("?program=a"), [5, 3, 1]);
    assert_eq!(ids("?outcome=failed&limit=1"), [6]);
    get(&d, OWNER, "/api/v1/runs?outcome=nonsense").is(400);
    get(&d, OWNER, "/api/v1/runs?limit=many").is(400);
    get(&d, OWNER, "/api/v1/runs/7").is(404);
    get(&d, OWNER, "/api/v1/runs/seven").is(400);
}

#[test]
fn runs_are_cancelled_and_programs_frozen() {
    let d = serve("", "[prog-app]\ncmd-run = exec sleep 1000\n");
    let run = act(&d, OWNER, "app/actions/run", &json!({}));
    wait_for("it runs", || {
        (d.row(run)["outcome"] == "running").then_some(())
    });
    post(&d, OWNER, &format!("/api/v1/runs/{run}/cancel"), &json!({})).is(200);
    assert_eq!(d.ended(run)["outcome"], "cancelled");
    let freeze = "/api/v1/programs/app/freeze";
    post(&d, OWNER, freeze, &json!({})).is(400);
    post(
        &d,
        OWNER,
        freeze,
        &json!({"reason": "party", "seconds": 3600}),
    )
    .is(200);
    let app = get(&d, OWNER, "/api/v1/programs/app").json();
    assert!(app["frozen"].as_str().unwrap().contains("party"), "{app}");
    let refused = post(&d, OWNER, "/api/v1/programs/app/actions/run", &json!({})).is(409);
    assert_eq!(refused.json()["code"], "frozen");
    post(&d, OWNER, "/api/v1/programs/app/thaw", &json!({})).is(200);
    act(&d, OWNER, "app/actions/run", &json!({}));
}

/// W1: another site's page can neither change anything nor read.
#[test]
fn w1_what_another_site_sends_is_refused() {
    let d = serve("", "[prog-app]\ncmd-run = echo ran >> @S@/trace\n");
    let address = "http://localhost/api/v1/programs/app/actions/run";
    let with = |words: &[&str]| {
        let mut all = words.to_vec();
        all.push(address);
        curl(&d, OWNER, &all).unwrap()
    };
    for (status, words) in [
        (
            403,
            &["--json", "{}", "-H", "Origin: http://evil.example"][..],
        ),
        (403, &["--json", "{}", "-H", "Origin: null"]),
        (403, &["--json", "{}", "-H", "Sec-Fetch-Site: cross-site"]),
        (403, &["--json", "{}", "-H", "Sec-Fetch-Site: same-site"]),
        (415, &["-d", "{}"]),
        (415, &["-d", "{}", "-H", "Content-Type: text/plain"]),
        (415, &["-X", "POST"]),
        (405, &["-G"]),
        (405, &["-X", "PUT", "--json", "{}"]),
        (405, &["-X", "OPTIONS", "-H", "Origin: http://evil.example"]),
    ] {
        let answer = with(words).is(status);
        assert!(!answer.head.contains("access-control"), "{answer:?}");
    }
    assert!(d.history().is_empty());
    let same = [
        "--json",
        "{}",
        "-H",
        "Origin: http://localhost",
        "-H",
        "Sec-Fetch-Site: same-origin",
    ];
    with(&same).is(202);
}

/// W2: a name of somebody else's that leads here reaches nothing.
#[test]
fn w2_only_known_names_are_served() {
    let d = serve(
        "http-hosts = deploy.example.org\n",
        "[prog-app]\ncmd-run = true\n",
    );
    for (host, status) in [
        ("localhost", 200),
        ("LOCALHOST:80", 200),
        ("127.0.0.1:8080", 200),
        ("[::1]:1", 200),
        ("Deploy.Example.Org", 200),
        ("evil.example", 421),
        ("localhost.evil.example", 421),
        ("deploy.example.org.evil", 421),
    ] {
        for path in ["/api/v1/me", "/healthz", "/metrics"] {
            let header = format!("Host: {host}");
            let address = format!("http://localhost{path}");
            let answer = curl(&d, OWNER, &["-H", &header, &address]).unwrap();
            assert_eq!(answer.status, status, "{host} {path}");
        }
        let header = format!("Host: {host}");
        let nothing = curl(&d, OWNER, &["-H", &header, "http://localhost/nothing"]).unwrap();
        assert_eq!(nothing.status, if status == 200 { 404 } else { 421 });
    }
}

/// Sends bytes to the gateway as they are; what comes back until it closes.
fn raw(d: &Daemon, bytes: &[u8]) -> String {
    let mut socket = UnixStream::connect(d.path("http")).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    socket.write_all(bytes).unwrap();
    socket.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    let _ = socket.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}

/// W4: paths in disguise, odd methods, and requests in requests.
#[test]
fn w4_only_what_is_in_the_table_is_served() {
    let d = serve("", "[prog-app]\ncmd-run = echo ran >> @S@/trace\n");
    for path in [
        "/api/v1/%2e%2e/%2e%2e/etc/passwd",
        "/../../etc/passwd",
        "//api/v1/me",
        "/api/v1/me/",
        "/api/v1/programs/..%2f..",
        "/api/v1/programs/%2e%2e/why",
        "/api/v1/programs/app%00",
        "/api/v1/programs/%ff",
        "/api/v1/programs/app/actions/run",
        "/api/v1/runs/%31%2fcancel",
    ] {
        let answer = get(&d, OWNER, path);
        assert!(
            matches!(answer.status, 400 | 404 | 405),
            "{path}: {answer:?}"
        );
    }
    let smuggled = "POST /api/v1/programs/app/actions/run HTTP/1.1\r\nHost: localhost\r\n\
                    Content-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    for head in [
        // Whoever stands in front might see one request in these, or two.
        "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding: xchunked\r\n",
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: +3\r\n",
        "Content-Length: 0x3\r\n",
    ] {
        let request = format!(
            "POST /api/v1/runs/1/cancel HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n{head}\r\n0\r\n\r\n{smuggled}"
        );
        let answer = raw(&d, request.as_bytes());
        assert!(!answer.contains(" 202 "), "{head}: {answer}");
    }
    for request in [
        "GET /api/v1/me HTTP/1.1\r\n\r\n",
        "GET /api/v1/me HTTP/1.1\r\nHost: localhost\r\nHost: evil\r\n\r\n",
        "GET http://evil.example/api/v1/me HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "GET /api/v1/me HTTP/1.0\r\n\r\n",
        "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "get /api/v1/me HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "nonsense\r\n\r\n",
        "\0\0\0\0",
    ] {
        let answer = raw(&d, request.as_bytes());
        assert!(!answer.contains(" 200 "), "{request:?}: {answer}");
    }
    let large = format!("{{\"reason\":\"{}\"}}", "x".repeat(100_000));
    let address = "http://localhost/api/v1/programs/app/actions/run";
    let file = d.path("shared/large");
    fs::write(&file, large).unwrap();
    let body = format!("@{}", file.display());
    curl(&d, OWNER, &["--json", &body, address])
        .unwrap()
        .is(413);
    assert!(d.trace().is_empty() && d.history().is_empty());
    // It still serves.
    get(&d, OWNER, "/api/v1/me").is(200);
}

/// W5: who a proxy says it is counts if the proxy is trusted, and only then.
#[test]
fn w5_identity_headers_count_from_trusted_peers_alone() {
    root_only!(w5_identity_headers_count_from_trusted_peers_alone);
    let port = free_port();
    let configure = |trust: &str| {
        format!("http-listen = 127.0.0.1:{port}\nhttp-user-header = X-Remote-User\n{trust}\n")
    };
    let program = "[prog-app]\ncmd-run = true\n";
    let trust = format!(
        "http-trust-uid = {}\nhttp-trust-address = 127.0.0.2",
        CAROL.uid
    );
    let d = serve(&configure(&trust), program);
    let me = |user: User, header: &str| {
        let words = ["-H", header, "http://localhost/api/v1/me"];
        curl(&d, user, &words).unwrap().is(200).json()["uid"].clone()
    };
    let alice = format!("X-Remote-User: {}", ALICE.uid);
    assert_eq!(me(CAROL, &alice), ALICE.uid, "trusted");
    assert_eq!(
        me(ALICE, "X-Remote-User: 0"),
        ALICE.uid,
        "not trusted: the kernel's word"
    );
    assert_eq!(
        me(CAROL, "X-Remote-User: no-such-user"),
        Value::Null,
        "nobody"
    );
    assert_eq!(
        me(CAROL, "X-Other: 1"),
        Value::Null,
        "a proxy that does not say who"
    );
    let twice = [
        "-H",
        &alice,
        "-H",
        "X-Remote-User: 0",
        "http://localhost/api/v1/me",
    ];
    curl(&d, CAROL, &twice).unwrap().is(400);
    // TCP: nobody is anybody, but who comes from an address that is trusted.
    let tcp = |words: &[&str]| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-i"]).args(words);
        curl.arg(format!("http://127.0.0.1:{port}/api/v1/me"));
        Answer::read(&finish(curl).text())
    };
    tcp(&[]).is(401);
    assert_eq!(tcp(&["-H", &alice]).is(200).json()["uid"], Value::Null);
    let trusted = tcp(&["-H", &alice, "--interface", "127.0.0.2"])
        .is(200)
        .json();
    assert_eq!(trusted["uid"], ALICE.uid);
    // Who is not asked may know whether it serves.
    let mut health = TcpStream::connect(("127.0.0.1", port)).unwrap();
    health
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut answer = String::new();
    health.read_to_string(&mut answer).unwrap();
    Answer::read(&answer).is(200);
}

/// The data of events, as they come.
struct Events(std::io::BufReader<UnixStream>);

impl Events {
    fn new(d: &Daemon, headers: &str) -> Self {
        let mut socket = UnixStream::connect(d.path("http")).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        write!(
            socket,
            "GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n"
        )
        .unwrap();
        let mut events = Self(std::io::BufReader::new(socket));
        assert!(events.line().contains("200"));
        events.line_with(": deployer");
        events
    }

    fn line(&mut self) -> String {
        use std::io::BufRead;
        let mut line = String::new();
        assert!(self.0.read_line(&mut line).unwrap() > 0, "the stream ended");
        line
    }

    fn line_with(&mut self, beginning: &str) -> String {
        loop {
            let line = self.line();
            if let Some(rest) = line.strip_prefix(beginning) {
                return rest.trim().to_owned();
            }
        }
    }

    fn next(&mut self) -> Value {
        serde_json::from_str(&self.line_with("data:")).unwrap()
    }
}

#[test]
fn events_say_what_happens_and_go_on_where_one_was() {
    let d = serve(
        "",
        "[prog-app]\ncmd-run = true\n[prog-web]\ncmd-start = exec sleep 1000\n",
    );
    let mut events = Events::new(&d, "");
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    let (running, ended) = (events.next(), events.next());
    assert_eq!(
        (&running["state"], &ended["state"]),
        (&json!("running"), &json!("succeeded"))
    );
    assert_eq!(
        (&ended["program"], &ended["run"]),
        (&json!("app"), &json!(1))
    );
    d.ask(OWNER, ["web", "start"]).exits(0);
    let mut states = Vec::new();
    while states.last() != Some(&json!({"program": "web", "run": null, "state": "running"})) {
        let mut event = events.next();
        event.as_object_mut().unwrap().remove("id");
        states.push(event);
    }
    // Who was away for a moment gets what they missed.
    let mut again = Events::new(&d, &format!("Last-Event-ID: {}\r\n", running["id"]));
    assert_eq!(again.next(), ended);
    // Who was away for longer than anybody remembers is told so.
    let mut late = Events::new(&d, "Last-Event-ID: 7\r\n");
    assert_eq!(late.next()["program"], Value::Null);
    d.kill_daemon();
    d.await_ready();
    await_gateway(&d);
    let mut after = Events::new(&d, &format!("Last-Event-ID: {}\r\n", ended["id"]));
    assert_eq!(after.next()["program"], Value::Null);
}

#[test]
fn events_are_for_those_who_may_see_the_program() {
    root_only!(events_are_for_those_who_may_see_the_program);
    let d = serve(
        "",
        "[prog-app]\ncmd-run = true\n[prog-hidden]\ncmd-run = true\nallow-uid = none\n",
    );
    let mut curl = as_user(ALICE, "curl");
    curl.args(["-s", "-N", "--max-time", "30", "--unix-socket"])
        .arg(d.path("http"));
    let sink = d.path("shared/events");
    curl.arg("-o")
        .arg(&sink)
        .arg("http://localhost/api/v1/events");
    fs::write(&sink, "").unwrap();
    std::os::unix::fs::chown(&sink, Some(ALICE.uid), None).unwrap();
    let follower = Running::start(curl);
    wait_for("she listens", || {
        fs::read_to_string(&sink)
            .unwrap()
            .contains("deployer")
            .then_some(())
    });
    d.ask(OWNER, ["RUN", "hidden"]).exits(0);
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    wait_for("the event of her program", || {
        fs::read_to_string(&sink)
            .unwrap()
            .contains("succeeded")
            .then_some(())
    });
    assert!(!fs::read_to_string(&sink).unwrap().contains("hidden"));
    drop(follower);
}

/// W7: a stream of events that nobody reads holds up neither runs nor other streams.
#[test]
fn w7_a_stream_that_nobody_reads_holds_up_nobody() {
    let d = serve("", "[prog-app]\ncmd-run = true\n");
    let deaf: Vec<Events> = (0..20).map(|_| Events::new(&d, "")).collect();
    let mut heard = Events::new(&d, "");
    // More than all buffers between here and there hold.
    for _ in 0..300 {
        d.ask(OWNER, ["RUN", "app"]).exits(0);
    }
    let mut ended = 0;
    while ended < 300 {
        let event = heard.next();
        assert!(event["program"].is_string(), "nothing was lost: {event}");
        ended += u64::from(event["state"] == "succeeded");
    }
    drop(deaf);
}

fn gateway(d: &Daemon) -> Option<i32> {
    let is_gateway = |pid: i32| {
        let words = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        words.contains("--role=web")
    };
    let all = descendants(d.keeper_pid());
    all.iter().map(|p| p.pid).find(|pid| is_gateway(*pid))
}

#[test]
fn a_gateway_that_is_killed_comes_back_and_nothing_else_notices() {
    let d = serve("", "[prog-app]\ncmd-run = read _ < @S@/gate; exit 3\n");
    let gate = d.gate("gate");
    let run = act(&d, OWNER, "app/actions/run", &json!({}));
    let daemon = d.daemon_pid();
    for _ in 0..5 {
        let before = gateway(&d).unwrap();
        kill(before, Signal::KILL);
        await_gateway(&d);
        assert_ne!(gateway(&d), Some(before));
    }
    assert_eq!(d.daemon_pid(), daemon);
    gate.open(1);
    assert_eq!(d.ended(run)["exit_code"], 3);
    // It goes with the daemon, and comes with the next.
    let before = gateway(&d);
    d.kill_daemon();
    d.await_ready();
    await_gateway(&d);
    assert_ne!(gateway(&d), before);
    d.ask(OWNER, ["-s"]).exits(0);
    wait_for("its socket is gone", || {
        (!d.path("http").exists()).then_some(())
    });
}

#[test]
fn the_gateway_has_no_privileges() {
    root_only!(the_gateway_has_no_privileges);
    let d = serve("", "[prog-app]\ncmd-run = true\n");
    let pid = gateway(&d).unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = |name: &str| {
        let found = status.lines().find_map(|l| l.strip_prefix(name));
        found
            .unwrap_or_default()
            .split_whitespace()
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(line("Uid:"), "65534 65534 65534 65534");
    assert_eq!(line("Gid:"), "65534 65534 65534 65534");
    assert_eq!(line("Groups:"), "");
    assert_eq!(line("NoNewPrivs:"), "1");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert_eq!(line(set), "0000000000000000", "{set}");
    }
    // What it holds open: its sockets, and nothing of the daemon's.
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        let target = target.to_string_lossy().into_owned();
        let fine = target.starts_with("socket:")
            || target.starts_with("anon_inode:")
            || target == "/dev/null";
        assert!(fine, "{target}");
    }
}

#[test]
fn a_reload_opens_and_closes_it() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = true\n");
    let d = site.start();
    assert_eq!(gateway(&d), None);
    d.configure("http-socket = @D@/http\n[prog-app]\ncmd-run = true\n");
    d.ask(OWNER, ["-r"]).exits(0);
    await_gateway(&d);
    d.configure("[prog-app]\ncmd-run = true\n");
    d.ask(OWNER, ["-r"]).exits(0);
    wait_for("it is gone", || {
        (gateway(&d).is_none() && !d.path("http").exists()).then_some(())
    });
    // An address that cannot be had is said, tried again, and no reason not to serve.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    d.configure(&format!(
        "http-listen = {address}\n[prog-app]\ncmd-run = true\n"
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    wait_for("it says so", || {
        d.log().contains("cannot listen on").then_some(())
    });
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    drop(taken);
    wait_for("it serves", || TcpStream::connect(address).ok());
}

#[test]
fn a_token_may_what_its_owner_may_and_no_more_than_it_says() {
    root_only!(a_token_may_what_its_owner_may_and_no_more_than_it_says);
    let port = free_port();
    let globals = format!("http-listen = 127.0.0.1:{port}");
    let programs = "[prog-app]\ncmd-run = true\ncmd-clean = true\n[prog-other]\ncmd-run = true\n";
    let d = serve(&globals, programs);
    let made = d
        .ask(ALICE, ["TOKEN", "add", "--program", "app", "--name", "ci"])
        .exits(0);
    let token = made.text().trim().to_owned();
    assert!(token.starts_with("deployer_"), "{made:?}");
    let with = |token: &str, words: &[&str], path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-i", "-H", &format!("Authorization: Bearer {token}")]);
        curl.args(words)
            .arg(format!("http://127.0.0.1:{port}{path}"));
        Answer::read(&finish(curl).text())
    };
    let run = "/api/v1/programs/app/actions/run";
    let answer = with(&token, &["--json", "{}"], run).is(202).json();
    assert_eq!(
        d.ended(answer["run"].as_u64().unwrap())["by"]["uid"],
        ALICE.uid
    );
    let names = with(&token, &[], "/api/v1/programs").is(200).json();
    assert_eq!(names["programs"].as_array().unwrap().len(), 1, "{names}");
    assert_eq!(names["programs"][0]["actions"], json!(["run"]));
    with(
        &token,
        &["--json", "{}"],
        "/api/v1/programs/app/actions/clean",
    )
    .is(404);
    with(
        &token,
        &["--json", "{}"],
        "/api/v1/programs/other/actions/run",
    )
    .is(404);
    with("deployer_0000", &[], "/api/v1/events").is(401);
    let wrong = with("deployer_0000", &[], "/api/v1/me").is(401);
    assert!(wrong.head.contains("www-authenticate: bearer"), "{wrong:?}");
    // Root's is confined, too.
    let roots = d
        .ask(OWNER, ["TOKEN", "add", "--program", "app"])
        .exits(0)
        .text();
    let me = with(roots.trim(), &[], "/api/v1/me").is(200).json();
    assert_eq!(me["admin"], false);
    with(
        roots.trim(),
        &["--json", "{}"],
        "/api/v1/programs/other/actions/run",
    )
    .is(404);
    // Nobody makes one for what they may not do.
    d.ask(CAROL, ["TOKEN", "add", "--program", "app"])
        .exits(125);
    d.ask(
        ALICE,
        ["TOKEN", "add", "--program", "other", "--action", "clean"],
    )
    .exits(125);
    // It is asked anew each time what its owner may.
    let config = |who: u32| {
        d.configure(&format!(
            "http-socket = @D@/http\n{globals}\nallow-uid = {who}\n{programs}"
        ));
        d.ask(OWNER, ["-r"]).exits(0);
    };
    config(CAROL.uid);
    with(&token, &["--json", "{}"], run).is(404);
    config(ALICE.uid);
    // It is known to the next daemon, until it is removed.
    d.kill_daemon();
    d.await_ready();
    await_gateway(&d);
    with(&token, &["--json", "{}"], run).is(202);
    let mine = d.ask(ALICE, ["TOKEN", "list", "--json"]).exits(0).text();
    let mine: Value = serde_json::from_str(mine.trim()).unwrap();
    assert_eq!((&mine["name"], &mine["id"]), (&json!("ci"), &json!(1)));
    assert_eq!(
        d.ask(OWNER, ["TOKEN", "list", "--json"])
            .text()
            .lines()
            .count(),
        2
    );
    d.ask(CAROL, ["TOKEN", "remove", "1"]).exits(125);
    d.ask(ALICE, ["TOKEN", "remove", "1"]).exits(0);
    with(&token, &[], "/api/v1/me").is(401);
    let kept = fs::read_to_string(d.path("state/tokens.json")).unwrap();
    assert!(!kept.contains(token.trim_start_matches("deployer_")) && !d.log().contains(&token));
}

/// A reverse proxy with passwords in front, as the manual has it.
#[test]
fn nginx_says_who_it_is() {
    root_only!(nginx_says_who_it_is);
    let site = Site::new();
    fs::write(site.path("users"), "bin:{PLAIN}s3cret\n").unwrap();
    let nginx = Nginx::new(
        &site,
        "location / { auth_basic deployer; auth_basic_user_file @D@/users;\n\
         proxy_set_header X-Remote-User $remote_user; proxy_set_header Host $host;\n\
         proxy_http_version 1.1; proxy_buffering off; proxy_pass http://unix:@D@/http; }",
    );
    // nginx runs as root here; elsewhere it has a user of its own.
    site.configure(
        "http-socket = @D@/http\nhttp-user-header = X-Remote-User\nhttp-trust-uid = root\nallow-uid = bin\n\
         [prog-app]\ncmd-run = echo hello\n[prog-hidden]\ncmd-run = true\nallow-uid = none\n",
    );
    let d = site.start();
    let through = |words: &[&str], path: &str| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-i"]).args(words);
        curl.arg(format!("http://127.0.0.1:{}{path}", nginx.port));
        Answer::read(&finish(curl).text())
    };
    let login = ["-u", "bin:s3cret"];
    wait_for("the gateway serves", || {
        (through(&login, "/healthz").status == 200).then_some(())
    });
    assert_eq!(through(&[], "/api/v1/me").status, 401);
    assert_eq!(through(&["-u", "bin:wrong"], "/api/v1/me").status, 401);
    assert_eq!(through(&login, "/api/v1/me").is(200).json()["user"], "bin");
    // What the client says of itself does not reach the gateway.
    let forged = ["-u", "bin:s3cret", "-H", "X-Remote-User: root"];
    assert_eq!(through(&forged, "/api/v1/me").is(200).json()["user"], "bin");
    let programs = through(&login, "/api/v1/programs").is(200).json();
    assert_eq!(programs["programs"].as_array().unwrap().len(), 1);
    let started = ["-u", "bin:s3cret", "--json", "{}"];
    let run = through(&started, "/api/v1/programs/app/actions/run")
        .is(202)
        .json();
    assert_eq!(d.ended(run["run"].as_u64().unwrap())["by"]["user"], "bin");
    assert_eq!(
        through(&login, "/api/v1/runs/1/log?follow=true")
            .is(200)
            .body
            .trim(),
        "hello"
    );
    assert!(
        through(&login, "/")
            .body
            .contains("<title>deployer</title>")
    );
}

/// The metrics are read by Prometheus' own library.
#[test]
fn prometheus_reads_the_metrics() {
    let d = serve(
        "",
        "[prog-app]\ncmd-run = true\n[prog-web]\ncmd-start = exec sleep 1000\n",
    );
    d.ask(OWNER, ["web", "start"]).exits(0);
    d.ask(OWNER, ["FREEZE", "app", "party"]).exits(0);
    let answer = get(&d, OWNER, "/metrics").is(200);
    assert!(answer.head.contains("text/plain; version=0.0.4"));
    let file = d.path("shared/metrics");
    fs::write(&file, &answer.body).unwrap();
    // The one that Debian's packages are for.
    let mut python = Command::new("/usr/bin/python3");
    python.arg("-c").arg(
        "import sys\n\
         from prometheus_client.parser import text_string_to_metric_families as families\n\
         for family in families(open(sys.argv[1]).read()):\n\
         \x20   for s in family.samples: print(family.type, s.name, s.labels['program'], s.value)",
    );
    python.arg(&file);
    let read = finish(python).exits(0).text();
    for line in [
        "gauge deployer_program_running app 0.0",
        "gauge deployer_program_running web 1.0",
        "gauge deployer_program_frozen app 1.0",
        "counter deployer_service_restarts_total web 0.0",
    ] {
        assert!(read.contains(line), "{line}: {read}");
    }
    assert!(read.contains("deployer_service_memory_bytes web"), "{read}");
}

/// Scripts of the root directory are there as soon as they are put there, without a section.
#[test]
fn jobs_are_directories_if_one_likes() {
    root_only!(jobs_are_directories_if_one_likes);
    let d = serve("user = games\n", "");
    let names = || {
        let found = get(&d, ALICE, "/api/v1/programs").is(200).json();
        let programs = found["programs"].as_array().unwrap().clone();
        programs
            .iter()
            .map(|p| p["name"].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    assert!(names().is_empty());
    fs::create_dir_all(d.path("root/team/backup")).unwrap();
    fs::write(d.path("root/team/backup/data"), "the data\n").unwrap();
    executable(&d.path("root/team/backup/run"), b"#!/bin/sh\ncat data\n");
    executable(&d.path("root/single"), b"#!/bin/sh\nid -un\n");
    assert_eq!(names(), ["single", "team/backup"]);
    let run = act(&d, ALICE, "team%2Fbackup/actions/run", &json!({}));
    let log = get(&d, ALICE, &format!("/api/v1/runs/{run}/log?follow=true"));
    assert_eq!(log.body, "the data\n");
    let other = act(&d, ALICE, "single/actions/run", &json!({}));
    assert_eq!(
        get(&d, ALICE, &format!("/api/v1/runs/{other}/log?follow=true")).body,
        "games\n"
    );
    // A section of that name adds inputs and rights.
    d.configure(&format!(
        "http-socket = @D@/http\nuser = games\nallow-uid = {}\n[prog-team/backup]\ninput-to = choice a b\nallow-uid = {}\n",
        ALICE.uid, CAROL.uid
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    assert_eq!(names(), ["single"]);
    let backup = get(&d, CAROL, "/api/v1/programs/team%2Fbackup")
        .is(200)
        .json();
    assert_eq!(backup["inputs"][0]["choices"], json!(["a", "b"]));
}

/// The pages of a directory: its files, and nothing beside them.
#[test]
fn other_pages_can_be_served_or_none() {
    let d = serve("ui-root = @S@/pages\n", "[prog-app]\ncmd-run = true\n");
    let pages = d.path("shared/pages");
    get(&d, OWNER, "/").is(404);
    fs::create_dir_all(pages.join("more")).unwrap();
    fs::write(pages.join("index.html"), "mine").unwrap();
    fs::write(pages.join("more/a b.css"), "css").unwrap();
    fs::write(pages.join(".hidden"), "hidden").unwrap();
    fs::write(d.path("shared/outside"), "outside").unwrap();
    std::os::unix::fs::symlink("../outside", pages.join("link")).unwrap();
    // The gateway has opened no directory, for there was none.
    d.ask(OWNER, ["-r"]).exits(0);
    kill(gateway(&d).unwrap(), Signal::KILL);
    await_gateway(&d);
    let page = get(&d, OWNER, "/");
    assert_eq!((page.status, &*page.body), (200, "mine"));
    assert!(
        page.head
            .contains("content-security-policy: default-src 'self'")
    );
    assert_eq!(get(&d, OWNER, "/more/a%20b.css").body, "css");
    for path in [
        "/.hidden",
        "/link",
        "/../outside",
        "/%2e%2e/outside",
        "/more",
        "/more/",
        "//index.html",
        "/absent",
    ] {
        get(&d, OWNER, path).is(404);
    }
    get(&d, OWNER, "/api/v1/me").is(200);
    d.configure("http-socket = @D@/http\nui-root = none\n[prog-app]\ncmd-run = true\n");
    d.ask(OWNER, ["-r"]).exits(0);
    wait_for("there are none", || {
        (get(&d, OWNER, "/").status == 404).then_some(())
    });
}

/// The signatures of the services, made by somebody else's tool.
#[test]
fn webhooks_ask_for_what_their_secret_is_for() {
    let port = free_port();
    let d = serve(
        &format!("http-listen = 127.0.0.1:{port}"),
        "[prog-app]\ncmd-run = echo ran >> @S@/trace\nhook-run = @S@/secret\n[prog-other]\ncmd-run = echo other >> @S@/trace\n",
    );
    let secret = "it is a secret";
    fs::write(d.path("shared/secret"), format!("{secret}\n")).unwrap();
    let body = d.path("shared/body");
    // Larger than any other request may be.
    fs::write(
        &body,
        json!({"ref": "refs/heads/main", "more": "x".repeat(1 << 20)}).to_string(),
    )
    .unwrap();
    let signature = |key: &str| {
        let mut openssl = Command::new("openssl");
        openssl
            .args(["dgst", "-sha256", "-hmac", key, "-r"])
            .arg(&body);
        let said = finish(openssl).exits(0).text();
        said.split(' ').next().unwrap().to_owned()
    };
    let send = |path: &str, headers: &[String]| {
        let mut curl = Command::new("curl");
        curl.args(["-s", "-i", "-H", "Content-Type: application/json"]);
        for header in headers {
            curl.arg("-H").arg(header);
        }
        curl.arg("--data-binary")
            .arg(format!("@{}", body.display()));
        curl.arg(format!("http://127.0.0.1:{port}/hooks/{path}"));
        let text = finish(curl).text();
        // What is said before the body was sent.
        Answer::read(text.trim_start_matches("HTTP/1.1 100 Continue\r\n\r\n"))
    };
    let (right, wrong) = (signature(secret), signature("another secret"));
    for (n, header) in [
        format!("X-Hub-Signature-256: sha256={right}"),
        format!("X-Gitea-Signature: {right}"),
        format!("X-Gitlab-Token: {secret}"),
    ]
    .into_iter()
    .enumerate()
    {
        let event = "X-GitHub-Event: push".to_owned();
        let answer = send("app/run", &[header, event]).is(202).json();
        let row = d.ended(answer["run"].as_u64().unwrap());
        assert_eq!(
            (&row["by"]["user"], &row["reason"]),
            (&json!("deployer"), &json!("a webhook: push"))
        );
        assert_eq!(d.trace().len(), n + 1);
    }
    let header = format!("X-Hub-Signature-256: sha256={right}");
    let pinged = send("app/run", &[header.clone(), "X-GitHub-Event: ping".into()])
        .is(202)
        .json();
    assert_eq!(pinged["run"], Value::Null);
    let mut refusals = Vec::new();
    for (path, headers) in [
        ("app/run", vec![]),
        (
            "app/run",
            vec![format!("X-Hub-Signature-256: sha256={wrong}")],
        ),
        ("app/run", vec!["X-Hub-Signature-256: sha256=00".to_owned()]),
        ("app/run", vec!["X-Hub-Signature-256: nonsense".to_owned()]),
        ("app/run", vec!["X-Gitlab-Token: it is a secre".to_owned()]),
        ("app/run", vec!["X-Gitlab-Token: ".to_owned()]),
        ("app/update", vec![header.clone()]),
        ("other/run", vec![header.clone()]),
        ("absent/run", vec![header.clone()]),
    ] {
        refusals.push(send(path, &headers).is(404).json());
    }
    refusals.dedup();
    assert_eq!(
        refusals.len(),
        1,
        "nobody learns what there is: {refusals:?}"
    );
    assert_eq!(d.trace().len(), 3);
    d.ask(OWNER, ["FREEZE", "app", "party"]).exits(0);
    send("app/run", std::slice::from_ref(&header)).is(409);
    fs::write(d.path("shared/secret"), "").unwrap();
    send("app/run", &["X-Gitlab-Token: ".into()]).is(404);
    assert!(!d.log().contains(secret));
}
