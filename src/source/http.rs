//! Archives behind a web address, or in a file of the machine.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use ureq::http::{Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::s3::Keys;
use super::update::not_cancelled;
use super::{Failure, Outcome, hosts, progress};
use crate::config::model::Digest;
use crate::config::remote::Login;

/// Where systems keep the certificates that they trust.
const TRUSTED: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
];
/// How often something that may pass is tried, and how long is waited before the first time.
const ATTEMPTS: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
/// How long a server may be silent.
const SILENCE: Duration = Duration::from_secs(60);

/// How a server tells one state of a file from another.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marks {
    /// `ETag`.
    pub etag: Option<String>,
    /// `Last-Modified`, or the time and size of a file.
    pub modified: Option<String>,
}

impl Marks {
    fn is_empty(&self) -> bool {
        self.etag.is_none() && self.modified.is_none()
    }
}

/// What a look at an archive has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// What was there before.
    Same,
    /// Something else, or nobody knows.
    Other,
    /// Something with this SHA-256.
    Is(String),
}

/// What lies at an address.
pub struct Archive<'a> {
    /// The address.
    pub url: String,
    /// What to log in with.
    pub login: Option<&'a Login>,
    /// What requests are signed with, and for which region.
    pub keys: Option<(Keys, &'a str)>,
    /// What it has to be.
    pub digest: Option<&'a Digest>,
    /// The most bytes that may come.
    pub max_size: u64,
}

impl Archive<'_> {
    /// What is there, as far as one request tells, and without writing anything.
    pub fn look(&self, known: Option<&Marks>) -> Outcome<Look> {
        let known = known.filter(|marks| !marks.is_empty());
        if let Some(path) = self.path() {
            return Ok(match known == Some(&marks_of_file(path)?) {
                true => Look::Same,
                false => Look::Other,
            });
        }
        let response = patiently(&self.url, || self.get(&self.url, known))?;
        if response.status() == StatusCode::NOT_MODIFIED {
            return Ok(Look::Same);
        }
        let marks = marks_of(&response);
        if marks.is_empty() {
            // Only its content tells one state from another.
            let mut from = response.into_body().into_reader();
            let digest = self.copy(&mut from, &mut io::sink(), None);
            return digest.map(Look::Is).map_err(|e| self.cannot_fetch(&e));
        }
        // Not every server looks at the marks that it is given.
        Ok(match known == Some(&marks) {
            true => Look::Same,
            false => Look::Other,
        })
    }

    fn path(&self) -> Option<&Path> {
        self.url.strip_prefix("file://").map(Path::new)
    }

    /// Brings it here; the SHA-256 of its bytes, and its marks.
    pub fn fetch(&self, to: &Path) -> Outcome<(String, Marks)> {
        let Some(path) = self.path() else {
            return self.download(to);
        };
        let marks = marks_of_file(path)?;
        let file = File::open(path);
        let file = file.map_err(Failure::io(format!("open {}", path.display())))?;
        let bytes = file.metadata().ok().map(|m| m.len());
        let saved = self.save(file, to, bytes);
        Ok((saved.map_err(|e| self.cannot_fetch(&e))?, marks))
    }

    /// Whether this is what it has to be.
    pub fn verify(&self, digest: &str) -> Outcome<()> {
        let expected = match self.digest {
            None => return Ok(()),
            Some(Digest::Is(expected)) => expected.clone(),
            Some(Digest::Beside) => self.beside()?,
        };
        if expected == digest {
            return Ok(());
        }
        // The file beside it may come later than the archive itself.
        let message = format!(
            "{} is not what it has to be: its SHA-256 is {digest}, and {expected} is expected",
            self.url
        );
        Err(match self.digest {
            Some(Digest::Is(_)) => Failure::lasting(message),
            _ => Failure::new(message),
        })
    }

    fn download(&self, to: &Path) -> Outcome<(String, Marks)> {
        patiently(&self.url, || {
            let response = self.get(&self.url, None)?;
            let marks = marks_of(&response);
            let body = response.into_body();
            let bytes = body.content_length();
            let saved = self.save(body.into_reader(), to, bytes);
            saved.map(|digest| (digest, marks)).map_err(|e| Trouble {
                passes: passes(&e),
                message: e.to_string(),
            })
        })
    }

    fn cannot_fetch(&self, e: &io::Error) -> Failure {
        Failure::new(format!("cannot fetch {}: {e}", self.url))
    }

    /// The digest that lies beside the archive.
    fn beside(&self) -> Outcome<String> {
        let url = format!("{}.sha256", self.url);
        let text = match self.path() {
            Some(_) => fs::read_to_string(url.trim_start_matches("file://"))
                .map_err(Failure::io(format!("read {url}")))?,
            None => {
                let body = patiently(&url, || self.get(&url, None))?.into_body();
                let mut text = String::new();
                let read = body.into_reader().take(4096).read_to_string(&mut text);
                read.map_err(Failure::io(format!("fetch {url}")))?;
                text
            }
        };
        let word = text
            .split_whitespace()
            .next()
            .unwrap_or_default()
            .to_ascii_lowercase();
        match word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()) {
            true => Ok(word),
            false => Err(Failure::new(format!("{url} does not begin with a SHA-256"))),
        }
    }

    fn save(&self, mut from: impl Read, to: &Path, expected: Option<u64>) -> io::Result<String> {
        self.copy(&mut from, &mut File::create(to)?, expected)
    }

    /// Copies what comes, and not too much of it; its SHA-256. So many bytes are expected.
    fn copy(
        &self,
        from: &mut impl Read,
        to: &mut impl Write,
        expected: Option<u64>,
    ) -> io::Result<String> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 128 * 1024];
        let mut bytes = 0_u64;
        loop {
            let n = from.read(&mut buffer)?;
            if n == 0 {
                break;
            }
            bytes += n as u64;
            if bytes > self.max_size {
                let message = format!("it has more than {} bytes (source-max-size)", self.max_size);
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
            }
            hash.update(&buffer[..n]);
            to.write_all(&buffer[..n])?;
            progress::report(|| format!("fetch: {}", progress::bytes(bytes, expected)));
        }
        Ok(hash.finalize().iter().map(|b| format!("{b:02x}")).collect())
    }

    /// Asks once.
    fn get(&self, url: &str, known: Option<&Marks>) -> Result<Response<Body>, Trouble> {
        let mut request = agent(url).get(url);
        if let Some(Login { user, password }) = self.login {
            let plain = format!("{user}:{password}");
            let engine = &base64::engine::general_purpose::STANDARD;
            let login = base64::Engine::encode(engine, plain);
            request = request.header("Authorization", format!("Basic {login}"));
        }
        if let Some((keys, region)) = &self.keys {
            for (name, value) in keys.headers(url, region) {
                request = request.header(name, value);
            }
        }
        if let Some(Marks { etag, modified }) = known {
            if let Some(etag) = etag {
                request = request.header("If-None-Match", etag);
            }
            if let Some(modified) = modified {
                request = request.header("If-Modified-Since", modified);
            }
        }
        let response = request.call().map_err(|e| Trouble {
            message: e.to_string(),
            passes: !matches!(e, ureq::Error::BadUri(_)),
        })?;
        match response.status().as_u16() {
            200 | 304 => Ok(response),
            status => Err(Trouble {
                message: format!("the server answers {status}"),
                passes: matches!(status, 429 | 500..),
            }),
        }
    }
}

/// Why something did not come.
struct Trouble {
    message: String,
    /// Another attempt may get it.
    passes: bool,
}

/// Tries until it works, or there is no hope.
fn patiently<T>(url: &str, mut attempt: impl FnMut() -> Result<T, Trouble>) -> Outcome<T> {
    let (mut pause, mut left) = (PAUSE, ATTEMPTS);
    loop {
        not_cancelled()?;
        left -= 1;
        match attempt() {
            Ok(done) => return Ok(done),
            Err(trouble) if !trouble.passes || left == 0 => {
                let message = trouble.message;
                return Err(Failure::new(format!("cannot fetch {url}: {message}")));
            }
            Err(_) => thread::sleep(pause),
        }
        pause *= 2;
    }
}

/// Whether a download broke off, and did not fail for want of room.
fn passes(e: &io::Error) -> bool {
    !matches!(
        e.kind(),
        io::ErrorKind::FileTooLarge | io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

fn agent(url: &str) -> Agent {
    let mut certificates = Vec::new();
    let named = std::env::var("SSL_CERT_FILE").ok();
    let places = named.iter().map(String::as_str).chain(TRUSTED);
    if let Some(pem) = places.map(fs::read).find_map(Result::ok) {
        for item in parse_pem(&pem).flatten() {
            if let PemItem::Certificate(certificate) = item {
                certificates.push(certificate);
            }
        }
    }
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .root_certs(RootCerts::Specific(Arc::new(certificates)))
        .build();
    let config = Agent::config_builder()
        .http_status_as_error(false)
        // A redirect does not lead from what is protected to what is not.
        .https_only(url.starts_with("https:"))
        .max_redirects(5)
        .user_agent("deployer")
        .accept_encoding("identity")
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(Some(SILENCE))
        .timeout_per_read(Some(SILENCE))
        .tls_config(tls)
        .build();
    hosts::agent(config)
}

fn marks_of(response: &Response<Body>) -> Marks {
    let header = |name| {
        let value = response.headers().get(name)?.to_str().ok()?;
        (!value.is_empty()).then(|| value.to_owned())
    };
    Marks {
        etag: header("etag"),
        modified: header("last-modified"),
    }
}

fn marks_of_file(path: &Path) -> Outcome<Marks> {
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(path).map_err(Failure::io(format!("look at {}", path.display())))?;
    let (seconds, nanos) = (meta.mtime(), meta.mtime_nsec());
    Ok(Marks {
        etag: None,
        modified: Some(format!("{}-{seconds}.{nanos}-{}", meta.ino(), meta.size())),
    })
}
