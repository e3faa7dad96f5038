//! How a process says that it is ready, that it is well, and how far it has come.
//!
//! `ready = notify` and `watchdog` speak the protocol of `sd_notify`: datagrams to a socket with
//! an abstract name, believed if the kernel says that they come from the program's user or root.
//! So do workers, which say how far a download has come.
//! `ready = fd:N` is a newline on a pipe.

use std::borrow::Cow;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::fcntl_dupfd_cloexec;
use rustix::net::sockopt::set_socket_passcred;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::actor::Msg;
use crate::config::model::{Program, Ready};
use crate::ids::{ProgramName, RunId};
use crate::server::LiveLog;
use crate::sys;

/// Longest message of `sd_notify`, in bytes.
const LONGEST: usize = 4096;
/// How often a port is tried: at first, and later.
const SOON: Duration = Duration::from_millis(20);
const LATER: Duration = Duration::from_millis(250);
/// No program sends more messages than that in one turn of its socket.
const MOST: usize = 64;

/// The daemon's end of what a process says of itself.
#[derive(Debug)]
pub struct Signs {
    /// `sd_notify`, and the user that is believed.
    socket: Option<(OwnedFd, u32)>,
    /// The pipe of `fd:N`.
    pipe: Option<OwnedFd>,
    /// It was up already under a former daemon.
    resumed: bool,
}

/// What a process is given to speak of itself.
#[derive(Debug, Default)]
pub struct Means {
    /// A descriptor, and its number in the child.
    pub extra: Option<(OwnedFd, RawFd)>,
    /// Variables of its environment.
    pub env: Vec<(String, String)>,
}

/// Makes what a program's process needs to speak of itself; nothing where it does not.
///
/// # Errors
/// No descriptors left.
pub fn prepare(spec: &Program, uid: u32) -> io::Result<(Option<Signs>, Means)> {
    let mut means = Means::default();
    let mut signs = Signs {
        socket: None,
        pipe: None,
        resumed: false,
    };
    if spec.ready == Some(Ready::Notify) || spec.watchdog.is_some() {
        let (name, socket) = open()?;
        means.env.push(("NOTIFY_SOCKET".into(), format!("@{name}")));
        if let Some(time) = spec.watchdog {
            let time = time.as_micros().to_string();
            means.env.push(("WATCHDOG_USEC".into(), time));
        }
        signs.socket = Some((socket, uid));
    }
    if let Some(Ready::Fd(number)) = spec.ready {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Its number in the child is not taken by itself or anything else that the child needs.
        let write = fcntl_dupfd_cloexec(&write, number + 1)?;
        rustix::io::ioctl_fionbio(&write, false)?;
        signs.pipe = Some(read);
        means.extra = Some((write, number));
    }
    let any = signs.socket.is_some() || signs.pipe.is_some();
    Ok((any.then_some(signs), means))
}

/// Makes a socket for a worker of this user; its name too.
///
/// # Errors
/// No descriptors left.
pub fn for_worker(uid: u32) -> io::Result<(String, Signs)> {
    let (name, socket) = open()?;
    let signs = Signs {
        socket: Some((socket, uid)),
        pipe: None,
        resumed: false,
    };
    Ok((name, signs))
}

/// A socket with a name that nobody guesses.
fn open() -> io::Result<(String, OwnedFd)> {
    let mut random = [0; 8];
    rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
    let name = format!("deployer-notify-{:016x}", u64::from_ne_bytes(random));
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name)?)?;
    socket.set_nonblocking(true)?;
    set_socket_passcred(&socket, true)?;
    Ok((name, socket.into()))
}

/// What a process that a former daemon started speaks to, from its environment.
#[must_use]
pub fn resume(pid: i32) -> Option<Signs> {
    let environment = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
    let mut variables = environment.split(|b| *b == 0);
    let name = variables.find_map(|v| v.strip_prefix(b"NOTIFY_SOCKET=@deployer-notify-"))?;
    let name = [b"deployer-notify-", name].concat();
    let uid = std::fs::metadata(format!("/proc/{pid}")).ok()?.uid();
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(name).ok()?).ok()?;
    socket.set_nonblocking(true).ok()?;
    set_socket_passcred(&socket, true).ok()?;
    Some(Signs {
        socket: Some((socket.into(), uid)),
        pipe: None,
        resumed: true,
    })
}

/// Hears what a process says until it is over: tells the actor when it is ready,
/// and when it has been silent for longer than its `watchdog`; and those who look at its log what
/// it says of itself.
pub async fn heed(
    signs: Signs,
    actor: mpsc::UnboundedSender<Msg>,
    program: ProgramName,
    run: RunId,
    watchdog: Option<Duration>,
    over: Arc<OwnedFd>,
    log: Arc<LiveLog>,
) {
    if let Some(pipe) = signs.pipe {
        let (actor, program) = (actor.clone(), program.clone());
        tokio::spawn(async move {
            if let Ok(true) = newline(pipe).await {
                let _ = actor.send(Msg::Ready(program, run));
            }
        });
    }
    let Some((socket, uid)) = signs.socket else {
        return;
    };
    let over = over
        .try_clone()
        .and_then(|fd| sys::fd::watch(fd, Interest::READABLE));
    let socket = sys::fd::watch(socket, Interest::READABLE);
    let (Ok(socket), Ok(over)) = (socket, over) else {
        return;
    };
    // The watchdog begins when the program says that it is ready, or that it is well.
    let begun = watchdog.filter(|_| signs.resumed);
    let mut deadline: Option<Instant> = begun.map(|time| Instant::now() + time);
    loop {
        let silent = async {
            match deadline {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            heard = hear(&socket, uid) => match heard {
                Ok(words) => {
                    if words.ready {
                        let _ = actor.send(Msg::Ready(program.clone(), run));
                    }
                    if words.ready || words.well {
                        deadline = watchdog.map(|time| Instant::now() + time);
                    }
                    if words.trouble {
                        deadline = watchdog.map(|_| Instant::now());
                    }
                    if let Some(status) = words.status {
                        log.status.send_replace(status);
                    }
                }
                Err(_) => return,
            },
            () = silent => {
                let _ = actor.send(Msg::Hung(program.clone(), run));
                return;
            }
            _ = over.readable() => return,
        }
    }
}

/// What a message of `sd_notify` says, as far as it matters here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Words {
    ready: bool,
    well: bool,
    trouble: bool,
    /// How it is, in its own words.
    status: Option<String>,
}

fn understand(message: &[u8]) -> Words {
    let mut words = Words::default();
    for line in message.split(|b| *b == b'\n') {
        match line {
            b"READY=1" => words.ready = true,
            b"WATCHDOG=1" => words.well = true,
            b"WATCHDOG=trigger" => words.trouble = true,
            _ => {
                let status = line.strip_prefix(b"STATUS=").map(String::from_utf8_lossy);
                words.status = status.map(Cow::into_owned).or(words.status);
            }
        }
    }
    words
}

/// The next message of somebody who is believed.
async fn hear(socket: &AsyncFd<OwnedFd>, uid: u32) -> io::Result<Words> {
    loop {
        let mut ready = socket.readable().await?;
        for _ in 0..MOST {
            match receive(ready.get_inner(), uid) {
                Ok(Some(words)) => return Ok(words),
                Ok(None) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    break;
                }
                Err(e) => return Err(e),
            }
        }
        drop(ready);
        tokio::task::yield_now().await;
    }
}

/// One message; none if it came from somebody else.
fn receive(socket: &OwnedFd, uid: u32) -> io::Result<Option<Words>> {
    let mut bytes = [0; LONGEST];
    // Descriptors that came along are closed with this.
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16), ScmCredentials(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = recvmsg(
        socket,
        &mut [IoSliceMut::new(&mut bytes)],
        &mut ancillary,
        RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
    )?;
    let mut believed = false;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmCredentials(sender) = message {
            let sender = sender.uid.as_raw();
            believed = sender == uid || sender == 0;
        }
    }
    Ok(believed.then(|| understand(&bytes[..received.bytes.min(LONGEST)])))
}

/// Whether a newline comes before the end.
async fn newline(pipe: OwnedFd) -> io::Result<bool> {
    let pipe = sys::fd::watch(pipe, Interest::READABLE)?;
    let mut bytes = [0; 256];
    loop {
        let n = pipe
            .async_io(Interest::READABLE, |fd| {
                Ok(rustix::io::read(fd, &mut bytes)?)
            })
            .await?;
        if n == 0 || bytes[..n].contains(&b'\n') {
            return Ok(n > 0);
        }
    }
}

/// Reports that a process is ready when something listens on a port of this machine; ends when
/// nobody wants to know any more.
pub async fn await_port(
    actor: mpsc::UnboundedSender<Msg>,
    port: u16,
    program: ProgramName,
    run: RunId,
    patience: Duration,
) {
    let end = Instant::now() + patience;
    let mut pause = SOON;
    while Instant::now() < end && !actor.is_closed() {
        let own: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for address in own {
            if tokio::net::TcpStream::connect((address, port))
                .await
                .is_ok()
            {
                let _ = actor.send(Msg::Ready(program, run));
                return;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LATER);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_have_lines_and_most_do_not_matter() {
        let ready = understand(b"STATUS=fine\nREADY=1\nMAINPID=7");
        assert_eq!((ready.ready, ready.well), (true, false));
        assert_eq!(ready.status.as_deref(), Some("fine"));
        assert!(understand(b"WATCHDOG=1").well && understand(b"WATCHDOG=trigger").trouble);
        assert_eq!(understand(b"READY=10\n\xff\nNOTREADY=1"), Words::default());
    }
}
