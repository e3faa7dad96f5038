//! The two protocols by hand, so that the tests do not believe the client.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::Duration;

use rustix::process::{Gid, Uid};
use serde_json::{Value, json};

use crate::harness::{OWNER, PATIENCE, Site, User, root};

/// Connects as that user. Only a thread of its own becomes that user: the kernel keeps these ids
/// for each thread.
#[track_caller]
pub fn connect(site: &Site, user: User) -> UnixStream {
    let path = site.socket();
    let stream = thread::spawn(move || {
        become_user(user);
        connect_to(&path)
    });
    stream.join().expect("the daemon listens")
}

fn connect_to(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("the daemon listens");
    stream
        .set_read_timeout(Some(PATIENCE))
        .expect("it is our socket");
    stream
        .set_write_timeout(Some(PATIENCE))
        .expect("it is our socket");
    stream
}

/// Makes the calling thread that user.
pub fn become_user(user: User) {
    if !root() || user == OWNER {
        return;
    }
    let groups: Vec<Gid> = user.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    rustix::thread::set_thread_groups(&groups).expect("root may");
    rustix::thread::set_thread_res_gid(gid, gid, gid).expect("root may");
    rustix::thread::set_thread_res_uid(uid, uid, uid).expect("root may");
}

/// The next byte; none at the end.
#[track_caller]
fn next_byte(stream: &mut UnixStream) -> Option<u8> {
    let mut byte = [0];
    loop {
        match stream.read(&mut byte) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            read => return (read.expect("the daemon answers in time") == 1).then_some(byte[0]),
        }
    }
}

/// A plain client.
pub struct Plain(pub UnixStream);

impl Plain {
    /// Sends `RUN NAME`.
    #[track_caller]
    pub fn run(site: &Site, user: User, name: &str) -> Self {
        let mut stream = connect(site, user);
        stream
            .write_all(format!("RUN {name}\n").as_bytes())
            .expect("the daemon listens");
        Self(stream)
    }

    /// The next line, without its end; empty at the end of everything.
    #[track_caller]
    pub fn line(&mut self) -> String {
        let mut bytes = Vec::new();
        // A byte at a time: what follows the line is for others.
        while let Some(byte) = next_byte(&mut self.0) {
            if byte == b'\n' {
                break;
            }
            bytes.push(byte);
        }
        String::from_utf8(bytes).expect("an answer is text")
    }

    /// All that still comes. A daemon that closes over input that nobody wanted resets the
    /// connection; what it had sent is here all the same.
    #[track_caller]
    pub fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self.0.read_to_end(&mut bytes) {
            Err(e) if e.kind() != std::io::ErrorKind::ConnectionReset => {
                panic!("the daemon does not close in time: {e}")
            }
            _ => bytes,
        }
    }
}

/// All that a daemon answers to these bytes, until it closes. The sending end stays open.
#[track_caller]
pub fn answer_to(site: &Site, user: User, bytes: &[u8]) -> Vec<u8> {
    let mut stream = connect(site, user);
    // The daemon may turn it down before it has read everything.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    answer
}

pub const CONTROL: u8 = 1;
pub const STDIN: u8 = 2;
pub const STDOUT: u8 = 3;
pub const STDERR: u8 = 4;

pub fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![kind];
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The bytes of a framed request.
pub fn request(value: &Value) -> Vec<u8> {
    let mut bytes = b"DEPLOYER 1\n".to_vec();
    bytes.extend(frame(CONTROL, value.to_string().as_bytes()));
    bytes
}

/// A framed client.
pub struct Framed(pub UnixStream);

/// How a framed request came out.
#[derive(Debug, Default)]
pub struct Outcome {
    pub out: Vec<u8>,
    pub err: Vec<u8>,
    /// Every control message, in order.
    pub messages: Vec<Value>,
}

impl Outcome {
    /// The last message.
    pub fn last(&self) -> &Value {
        self.messages.last().unwrap_or(&Value::Null)
    }

    pub fn all(&self, kind: &str) -> Vec<&Value> {
        self.messages.iter().filter(|m| m["type"] == kind).collect()
    }
}

impl Framed {
    #[track_caller]
    pub fn ask(site: &Site, user: User, value: &Value) -> Self {
        let mut stream = connect(site, user);
        stream
            .write_all(&request(value))
            .expect("the daemon listens");
        Self(stream)
    }

    /// Asks for a run whose output comes in frames.
    #[track_caller]
    pub fn run(site: &Site, user: User, program: &str) -> Self {
        Self::ask(site, user, &json!({"op": "run", "program": program}))
    }

    #[track_caller]
    pub fn send(&mut self, kind: u8, payload: &[u8]) {
        self.0
            .write_all(&frame(kind, payload))
            .expect("the daemon listens");
    }

    /// The next frame; none at the end.
    #[track_caller]
    pub fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut header = [next_byte(&mut self.0)?, 0, 0, 0, 0];
        self.0
            .read_exact(&mut header[1..])
            .expect("a header comes whole");
        let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
        let mut payload = vec![0; length as usize];
        self.0
            .read_exact(&mut payload)
            .expect("a frame comes whole");
        Some((header[0], payload))
    }

    /// Reads up to the next message of that type.
    #[track_caller]
    pub fn until(&mut self, kind: &str) -> Value {
        loop {
            let (k, payload) = self
                .next()
                .unwrap_or_else(|| panic!("the end came before {kind}"));
            if k != CONTROL {
                continue;
            }
            let value: Value = serde_json::from_slice(&payload).expect("control frames are JSON");
            if value["type"] == kind {
                return value;
            }
            assert_ne!(value["type"], "error", "{value}");
        }
    }

    /// Reads to the end.
    #[track_caller]
    pub fn rest(&mut self) -> Outcome {
        let mut outcome = Outcome::default();
        while let Some((kind, payload)) = self.next() {
            match kind {
                CONTROL => outcome
                    .messages
                    .push(serde_json::from_slice(&payload).expect("control frames are JSON")),
                STDOUT => outcome.out.extend(payload),
                STDERR => outcome.err.extend(payload),
                other => panic!("a frame of kind {other}"),
            }
        }
        outcome
    }
}

/// Reads what comes within a moment; none if nothing does. For clients that send slowly: the
/// pause between two bytes is a wait for an answer.
pub fn listen(stream: &mut UnixStream, pause: Duration) -> Option<Vec<u8>> {
    stream
        .set_read_timeout(Some(pause))
        .expect("it is our socket");
    let mut bytes = [0; 256];
    match stream.read(&mut bytes) {
        Err(e) if e.kind() == std::io::ErrorKind::Interrupted => None,
        Ok(n) => Some(bytes[..n].to_vec()),
        Err(e)
            if matches!(
                e.kind(),
                std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
            ) =>
        {
            None
        }
        // Reset: closed over bytes that it did not want.
        Err(_) => Some(Vec::new()),
    }
}
