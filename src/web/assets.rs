//! The pages: those that are built in, or those of a directory.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{self, HeaderValue};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::answer::{Answer, Body, answer};
use super::routes;
use crate::protocol::gateway::Ui;

/// What is built in: path, type, content.
const BUILT_IN: [(&str, &str, &str); 6] = [
    (
        "/",
        "text/html; charset=utf-8",
        include_str!("ui/index.html"),
    ),
    (
        "/ui/app.js",
        "text/javascript; charset=utf-8",
        include_str!("ui/app.js"),
    ),
    (
        "/ui/lib.js",
        "text/javascript; charset=utf-8",
        include_str!("ui/lib.js"),
    ),
    (
        "/ui/log.js",
        "text/javascript; charset=utf-8",
        include_str!("ui/log.js"),
    ),
    (
        "/ui/style.css",
        "text/css; charset=utf-8",
        include_str!("ui/style.css"),
    ),
    ("/ui/icon.svg", "image/svg+xml", include_str!("ui/icon.svg")),
];

/// Types of files, by the ends of their names.
const TYPES: [(&str, &str); 12] = [
    ("html", "text/html; charset=utf-8"),
    ("js", "text/javascript; charset=utf-8"),
    ("mjs", "text/javascript; charset=utf-8"),
    ("css", "text/css; charset=utf-8"),
    ("svg", "image/svg+xml"),
    ("png", "image/png"),
    ("jpg", "image/jpeg"),
    ("ico", "image/x-icon"),
    ("json", "application/json"),
    ("txt", "text/plain; charset=utf-8"),
    ("woff2", "font/woff2"),
    ("wasm", "application/wasm"),
];

/// The largest file of a directory that is served, in bytes.
const LARGEST: u64 = 32 << 20;

/// A page may use what comes from here, and nothing else.
const POLICY: &str =
    "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'";

/// The pages that are served.
pub enum Pages {
    /// Those that are built in.
    BuiltIn,
    /// Those of this directory.
    Of(OwnedFd),
    /// None.
    None,
}

impl Pages {
    /// Those that somebody wants. A directory that cannot be opened has none.
    pub fn new(ui: &Ui) -> Self {
        match ui {
            Ui::BuiltIn => Self::BuiltIn,
            Ui::None => Self::None,
            Ui::Directory(path) => {
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty()).map_or(Self::None, Self::Of)
            }
        }
    }

    /// What lies at a path.
    pub fn get(&self, path: &str) -> Option<Answer> {
        let (kind, content) = match self {
            Self::None => return None,
            Self::BuiltIn => {
                let (_, kind, text) = BUILT_IN.iter().find(|(at, ..)| *at == path)?;
                (*kind, Bytes::from_static(text.as_bytes()))
            }
            Self::Of(dir) => {
                let (kind, content) = read(dir, path)?;
                (kind, content.into())
            }
        };
        let mut answer = answer(StatusCode::OK, kind, Body::Whole(Some(content)));
        let policy = HeaderValue::from_static(POLICY);
        let headers = answer.headers_mut();
        headers.insert(header::CONTENT_SECURITY_POLICY, policy);
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        Some(answer)
    }
}

/// A file below a directory: no link, nothing hidden, nothing outside.
fn read(dir: &OwnedFd, path: &str) -> Option<(&'static str, Vec<u8>)> {
    let path = routes::decode(path)?;
    let path = match path.strip_prefix('/')? {
        "" => "index.html",
        path => path,
    };
    if path
        .split('/')
        .any(|part| part.is_empty() || part.starts_with('.'))
    {
        return None;
    }
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(openat2(dir, path, flags, Mode::empty(), how).ok()?);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut content = Vec::new();
    file.take(LARGEST).read_to_end(&mut content).ok()?;
    let end = path.rsplit('.').next().unwrap_or_default();
    let kind = TYPES.iter().find(|(e, _)| *e == end);
    Some((
        kind.map_or("application/octet-stream", |(_, kind)| kind),
        content,
    ))
}
