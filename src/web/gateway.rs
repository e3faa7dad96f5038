//! The process: accepts HTTP connections, and makes sure of what has to be true of every request.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::{Ipv4Addr, TcpListener as StdTcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener as StdUnixListener;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, Interest};
use tokio::net::{TcpListener, UnixListener};

use super::answer::{Answer, Problem};
use super::api::Asked;
use super::assets::Pages;
use super::events::Hubs;
use super::loopback::Door;
use super::routes::{self, Found, Operation};
use super::upstream::{Caller, Daemon};
use crate::protocol::MAX_REQUEST;
use crate::protocol::gateway::{Claim, Hello, Hook, LARGEST_HOOK, LINE_FD, LONGEST, Listener};
use crate::sys;

/// How long the head of a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The largest head of a request, in bytes.
const HEAD: usize = 32 * 1024;
/// How long nobody is accepted when there is no room for anybody.
const PAUSE: Duration = Duration::from_millis(20);
/// By these names a machine calls itself.
const OWN_NAMES: [&str; 3] = ["localhost", "127.0.0.1", "[::1]"];

/// Serves until the daemon has gone; the exit status.
#[must_use]
pub fn main() -> u8 {
    // Others of this user are not to look into it.
    let _ = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable);
    // Programs and their runs come first.
    let _ = rustix::process::nice(5);
    let served = sys::fd::own(LINE_FD).and_then(|line| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .max_blocking_threads(16)
            .build()?;
        let result = runtime.block_on(serve(line));
        runtime.shutdown_background();
        result
    });
    u8::from(served.is_err())
}

async fn serve(line: OwnedFd) -> io::Result<()> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    let line = Arc::new(sys::fd::watch(line, interest)?);
    let mut bytes = vec![0; LONGEST];
    let (length, fds) = line
        .async_io(Interest::READABLE, |fd| {
            sys::socket::receive_with_fds(fd, &mut bytes)
        })
        .await?;
    let hello: Hello = serde_json::from_slice(&bytes[..length])?;
    let house = Arc::new(House {
        daemon: Daemon::Line(Arc::clone(&line)),
        hosts: hello.hosts,
        user_header: hello.user_header,
        pages: Pages::new(&hello.ui),
        door: None,
        hubs: Hubs::default(),
    });
    for (kind, fd) in hello.listeners.into_iter().zip(fds) {
        let house = Arc::clone(&house);
        rustix::io::ioctl_fionbio(&fd, true)?;
        match kind {
            Listener::Unix => {
                let listener = UnixListener::from_std(StdUnixListener::from(fd))?;
                tokio::spawn(async move {
                    loop {
                        match listener.accept().await {
                            Ok((stream, _)) => house.take_in(stream, kind),
                            Err(_) => tokio::time::sleep(PAUSE).await,
                        }
                    }
                });
            }
            Listener::Tcp => {
                let listener = TcpListener::from_std(StdTcpListener::from(fd))?;
                tokio::spawn(house.serve_tcp(listener));
            }
        }
    }
    // The daemon says nothing more: what comes is its end.
    let mut rest = [0; 64];
    loop {
        let heard = line
            .async_io(Interest::READABLE, |fd| {
                sys::socket::receive_with_fds(fd, &mut rest)
            })
            .await;
        if !matches!(heard, Ok((n, _)) if n > 0) {
            return Ok(());
        }
    }
}

/// What all connections have in common.
pub struct House {
    daemon: Daemon,
    hosts: Vec<String>,
    user_header: Option<String>,
    pages: Pages,
    /// Who may come in; everybody, if there is none.
    door: Option<Door>,
    hubs: Hubs,
}

impl House {
    /// For one user alone, who is this process' own, at this address.
    pub fn private(socket: &Path, door: Door, address: Ipv4Addr) -> Arc<Self> {
        Arc::new(Self {
            daemon: Daemon::Socket(Arc::new(socket.to_owned())),
            hosts: vec![address.to_string()],
            user_header: None,
            pages: Pages::BuiltIn,
            door: Some(door),
            hubs: Hubs::default(),
        })
    }

    /// Serves those who connect. Never comes back.
    pub async fn serve_tcp(self: Arc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let _ = stream.set_nodelay(true);
                    self.take_in(stream, Listener::Tcp);
                }
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    }

    /// Serves a connection in a task of its own.
    fn take_in<S>(self: &Arc<Self>, stream: S, kind: Listener)
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin + Send + 'static,
    {
        let Ok(client) = stream.as_fd().try_clone_to_owned() else {
            return;
        };
        let (house, client) = (Arc::clone(self), Arc::new(client));
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let (house, client) = (Arc::clone(&house), Arc::clone(&client));
                async move { Ok::<_, Infallible>(house.answer(request, client, kind).await) }
            });
            // How it ended is the client's own business.
            let _ = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(PATIENCE)
                .max_buf_size(HEAD)
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }

    async fn answer(
        &self,
        request: Request<Incoming>,
        client: Arc<OwnedFd>,
        kind: Listener,
    ) -> Answer {
        let answered = self.try_answer(request, client, kind).await;
        let mut answer = answered.unwrap_or_else(|problem| problem.answer());
        let headers = answer.headers_mut();
        for (name, value) in [
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
            (header::REFERRER_POLICY, "no-referrer"),
            (
                header::CONTENT_SECURITY_POLICY,
                "default-src 'none'; frame-ancestors 'none'",
            ),
        ] {
            headers
                .entry(name)
                .or_insert(HeaderValue::from_static(value));
        }
        answer
    }

    async fn try_answer(
        &self,
        request: Request<Incoming>,
        client: Arc<OwnedFd>,
        kind: Listener,
    ) -> Result<Answer, Problem> {
        let (head, body) = request.into_parts();
        let authority = head.uri.authority().map(|a| a.as_str().to_owned());
        self.check_host(&head.headers, authority.as_deref())?;
        if let Some(door) = &self.door
            && let Some(answer) = door.enter(&head.uri, &head.headers)?
        {
            return Ok(answer);
        }
        let looks = matches!(head.method, Method::GET | Method::HEAD);
        if looks && let Some(page) = self.pages.get(head.uri.path()) {
            return Ok(page);
        }
        let (route, path) = match routes::find(&head.method, head.uri.path()) {
            Found::Route(route, path) => (route, path),
            Found::Methods(methods) => {
                let problem = Problem::new(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "bad-request",
                    format!("here one can {methods}"),
                );
                let mut answer = problem.answer();
                if let Ok(methods) = methods.parse() {
                    answer.headers_mut().insert(header::ALLOW, methods);
                }
                return Ok(answer);
            }
            Found::Nothing => {
                let detail = "there is nothing here; /api/v1/openapi.json says what there is";
                return Err(Problem::new(StatusCode::NOT_FOUND, "not-found", detail));
            }
        };
        let changes = head.method == Method::POST;
        if changes {
            check_origin(&head.headers)?;
            check_is_json(&head.headers)?;
        }
        let claim = Claim {
            user: self.claimed_user(&head.headers)?,
            token: token(&head.headers)?,
            hook: None,
        };
        // A webhook proves by itself that it may.
        let is_hook = route.operation == Operation::Hook;
        let public = is_hook || matches!(route.operation, Operation::OpenApi | Operation::Health);
        let known = kind == Listener::Unix
            || claim.user.is_some()
            || claim.token.is_some()
            || self.door.is_some();
        if !known && !public {
            let problem = Problem::new(
                StatusCode::UNAUTHORIZED,
                "unauthorized",
                "nobody knows who asks: show a token (Authorization: Bearer …), come through a \
                 reverse proxy that says so (http-user-header), or use the UNIX socket",
            );
            return Err(problem);
        }
        let query = query(head.uri.query().unwrap_or_default())?;
        if let Some(name) = query.keys().find(|name| !route.takes(name)) {
            let detail = format!("there is no parameter {name:?} here");
            return Err(Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail));
        }
        let asked = Asked {
            operation: route.operation,
            path,
            query,
            body: if changes {
                let most = if is_hook {
                    LARGEST_HOOK
                } else {
                    MAX_REQUEST / 2
                };
                collect(body, most).await?
            } else {
                Bytes::new()
            },
            last_event: text_of(&head.headers, "last-event-id")?.map(str::to_owned),
            hook: hook(&head.headers)?,
        };
        let caller = Caller {
            daemon: self.daemon.clone(),
            client,
            claim,
        };
        asked.answer(&caller, &self.hubs).await
    }

    /// A page of somebody else's, under a name that leads here, is not to reach anything.
    fn check_host(&self, headers: &HeaderMap, authority: Option<&str>) -> Result<(), Problem> {
        let wrong =
            |detail: String| Problem::new(StatusCode::MISDIRECTED_REQUEST, "bad-request", detail);
        let mut named = headers.get_all(header::HOST).iter();
        let host = named.next().and_then(|host| host.to_str().ok());
        let host = host.ok_or_else(|| wrong("there is no Host".into()))?;
        if named.next().is_some() {
            return Err(wrong("there are several Hosts".into()));
        }
        for host in [Some(host), authority].into_iter().flatten() {
            let name = without_port(host).to_ascii_lowercase();
            if !OWN_NAMES.contains(&&*name) && !self.hosts.contains(&name) {
                return Err(wrong(format!(
                    "this is not {name:?}; `http-hosts` in the configuration says what it may be called"
                )));
            }
        }
        Ok(())
    }

    fn claimed_user(&self, headers: &HeaderMap) -> Result<Option<String>, Problem> {
        let Some(name) = &self.user_header else {
            return Ok(None);
        };
        let user = text_of(headers, name)?.filter(|user| !user.is_empty());
        Ok(user.map(str::to_owned))
    }
}

/// The token that is shown, if one is. What else people log in with is their proxy's business.
fn token(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let shown = text_of(headers, "authorization")?;
    let token = shown.and_then(|text| {
        let (scheme, token) = text.split_once(' ')?;
        scheme
            .eq_ignore_ascii_case("bearer")
            .then(|| token.trim().to_owned())
    });
    Ok(token)
}

/// What a webhook proves, as the services send it.
fn hook(headers: &HeaderMap) -> Result<Hook, Problem> {
    let text = |name: &'static str| Ok::<_, Problem>(text_of(headers, name)?.map(str::to_owned));
    let signature = text("x-hub-signature-256")?;
    let signature = signature.and_then(|s| s.strip_prefix("sha256=").map(str::to_owned));
    let events = ["x-github-event", "x-gitea-event", "x-gitlab-event"];
    Ok(Hook {
        signature: signature.or(text("x-gitea-signature")?),
        token: text("x-gitlab-token")?,
        event: events
            .into_iter()
            .find_map(|name| text(name).ok().flatten()),
        ..Hook::default()
    })
}

/// The text of a header that may stand once.
fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Problem> {
    let mut values = headers.get_all(name).iter();
    let (first, more) = (values.next(), values.next().is_some());
    match first.map(HeaderValue::to_str) {
        None => Ok(None),
        Some(Ok(text)) if !more => Ok(Some(text)),
        _ => {
            let detail = format!("the header {name} is not one line of text");
            Err(Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail))
        }
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    }
}

/// What changes something comes from a page of this very server, or from no page at all.
fn check_origin(headers: &HeaderMap) -> Result<(), Problem> {
    let refused = || {
        let detail = "another site has sent this; open the page of this server instead";
        Problem::new(StatusCode::FORBIDDEN, "refused", detail)
    };
    let site = headers.get("sec-fetch-site").map(HeaderValue::as_bytes);
    if !matches!(site, None | Some(b"same-origin" | b"none")) {
        return Err(refused());
    }
    let Some(origin) = headers.get(header::ORIGIN) else {
        return Ok(());
    };
    let host = headers.get(header::HOST).and_then(|h| h.to_str().ok());
    let origin = origin.to_str().ok().and_then(|o| o.split_once("://"));
    match (origin, host) {
        (Some((_, origin)), Some(host)) if origin.eq_ignore_ascii_case(host) => Ok(()),
        _ => Err(refused()),
    }
}

/// A form of another site cannot send JSON unasked.
fn check_is_json(headers: &HeaderMap) -> Result<(), Problem> {
    let kind = text_of(headers, "content-type")?.unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    let detail = "send JSON: Content-Type: application/json";
    Err(Problem::new(
        StatusCode::UNSUPPORTED_MEDIA_TYPE,
        "bad-request",
        detail,
    ))
}

/// What stands behind the question mark.
fn query(text: &str) -> Result<BTreeMap<String, String>, Problem> {
    let bad = |what: &str| {
        let detail = format!("{what:?} behind the question mark cannot be read");
        Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail)
    };
    let mut found = BTreeMap::new();
    for part in text.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let decode = |text: &str| routes::decode(&text.replace('+', " "));
        let (name, value) = decode(name).zip(decode(value)).ok_or_else(|| bad(part))?;
        if found.insert(name, value).is_some() {
            return Err(bad(part));
        }
    }
    Ok(found)
}

/// The whole body of a request, if it is not too large.
async fn collect(mut body: Incoming, most: usize) -> Result<Bytes, Problem> {
    let mut all = Vec::new();
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
        let frame = frame.map_err(|e| {
            let detail = format!("the body cannot be read: {e}");
            Problem::new(StatusCode::BAD_REQUEST, "bad-request", detail)
        })?;
        if let Ok(data) = frame.into_data() {
            all.extend_from_slice(&data);
        }
        if all.len() > most {
            let detail = format!("the body has more than {most} bytes");
            return Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "bad-request",
                detail,
            ));
        }
    }
    Ok(all.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_do_not_belong_to_names() {
        for (host, name) in [
            ("localhost:80", "localhost"),
            ("[::1]:8080", "[::1]"),
            ("a.example", "a.example"),
        ] {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn queries_are_taken_apart() {
        let found = query("a=1&b=x%20y+z&c").unwrap();
        assert_eq!(
            (&*found["a"], &*found["b"], &*found["c"]),
            ("1", "x y z", "")
        );
        assert!(query("a=1&a=2").is_err() && query("a=%zz").is_err());
    }
}
