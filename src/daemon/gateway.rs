//! The daemon's side of the HTTP gateway: makes its sockets, starts it, and starts it again.
//!
//! The gateway is this program in another role, without privileges. For every request it hands
//! over the HTTP client's own socket, and the daemon asks the kernel who that is: a gateway that
//! is broken, or taken over, can speak for those who are connected to it and for nobody else.

use std::ffi::CString;
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tracing::{error, info, warn};

use super::InForce;
use super::front::Front;
use super::main::{Place, clear_stale};
use super::names::peer_of_user;
use super::webhook;
use crate::config::model::{Http, UiRoot};
use crate::policy::Peer;
use crate::protocol::gateway::{Claim, Hello, LINE_FD, LONGEST, Listener, Ui};
use crate::run::spawn;
use crate::server::listener::{Census, TOO_MANY, turn_away};
use crate::server::{connection, peer};
use crate::sys;
use crate::sys::child::{Child, Ids, Image, PidReport};

/// Who the gateway is where the daemon is root: a user that no list of the configuration can name.
const NOBODY: u32 = 65534;
/// How long a gateway that ended soon is not started again.
const PAUSE: Duration = Duration::from_millis(200);
/// How often sockets are tried that cannot be made: a former gateway may just be letting go.
const AGAIN: Duration = Duration::from_millis(250);
/// How many HTTP clients may wait to be accepted.
const BACKLOG: i32 = 1024;

/// Keeps a gateway running wherever the configuration in force wants one. Never comes back.
pub async fn keep(front: Front) {
    let mut in_force = front.in_force.clone();
    let mut sockets: Option<(Http, Sockets)> = None;
    let mut trouble = String::new();
    loop {
        let now = Arc::clone(&in_force.borrow_and_update());
        let http = &now.config.global.http;
        if sockets.as_ref().is_some_and(|(of, _)| of != http) {
            sockets = None;
        }
        if !http.is_wanted() {
            sockets = None;
            if in_force.changed().await.is_err() {
                return;
            }
            continue;
        }
        let ready = match &sockets {
            Some((_, ready)) => ready,
            None => match Sockets::make(http) {
                Ok(made) => &sockets.insert((http.clone(), made)).1,
                Err(e) => {
                    if e != trouble {
                        error!("no HTTP yet: {e}");
                        trouble = e;
                    }
                    tokio::select! {
                        changed = in_force.changed() => if changed.is_err() { return },
                        () = tokio::time::sleep(AGAIN) => {}
                    }
                    continue;
                }
            },
        };
        let began = Instant::now();
        tokio::select! {
            ended = serve(&front, http, ready) => {
                match ended {
                    Ok(()) => warn!("the HTTP gateway ended; it is started again"),
                    Err(e) => error!("the HTTP gateway cannot be started: {e}"),
                }
                tokio::time::sleep(PAUSE.saturating_sub(began.elapsed())).await;
            }
            changed = another(&mut in_force, http) => if changed.is_err() { return },
        }
    }
}

/// Waits until other settings are in force.
async fn another(
    in_force: &mut watch::Receiver<Arc<InForce>>,
    http: &Http,
) -> Result<(), watch::error::RecvError> {
    let other = |now: &Arc<InForce>| now.config.global.http != *http;
    in_force.wait_for(other).await.map(drop)
}

/// Where HTTP clients connect.
struct Sockets {
    unix: Option<(UnixListener, Place)>,
    tcp: Option<TcpListener>,
}

impl Sockets {
    fn make(http: &Http) -> Result<Self, String> {
        let mut made = Self {
            unix: None,
            tcp: None,
        };
        if let Some(path) = &http.socket {
            let listen = || {
                clear_stale(path)?;
                let listener = UnixListener::bind(path)?;
                let mode = std::fs::Permissions::from_mode(http.socket_mode);
                std::fs::set_permissions(path, mode)?;
                rustix::net::listen(&listener, BACKLOG)?;
                io::Result::Ok(listener)
            };
            let listener = listen()
                .map_err(|e| format!("cannot listen on {} (http-socket): {e}", path.display()))?;
            made.unix = Some((listener, Place::of(path)));
        }
        if let Some(address) = http.listen {
            let listener = TcpListener::bind(address)
                .map_err(|e| format!("cannot listen on {address} (http-listen): {e}"))?;
            made.tcp = Some(listener);
        }
        Ok(made)
    }

    fn listeners(&self) -> Vec<(Listener, BorrowedFd<'_>)> {
        let unix = self.unix.iter().map(|(l, _)| (Listener::Unix, l.as_fd()));
        let tcp = self.tcp.iter().map(|l| (Listener::Tcp, l.as_fd()));
        unix.chain(tcp).collect()
    }
}

impl Drop for Sockets {
    fn drop(&mut self) {
        if let Some((_, place)) = &self.unix {
            place.remove();
        }
    }
}

/// A gateway's process; it ends with this.
struct Process(OwnedFd);

impl Drop for Process {
    fn drop(&mut self) {
        sys::process::signal(&self.0, libc::SIGKILL);
        // It ends at once: it holds nothing that would have to be put down.
        let _ = sys::process::wait(&self.0);
    }
}

/// Starts a gateway and serves its clients until it ends.
async fn serve(front: &Front, http: &Http, sockets: &Sockets) -> io::Result<()> {
    let (ours, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let binary = front.surroundings.binary.try_clone()?;
    let line = theirs.try_clone()?;
    let started = tokio::task::spawn_blocking(move || start(&binary, &line)).await;
    let _process = Process(started.map_err(io::Error::other)??);
    drop(theirs);
    let (kinds, fds): (Vec<_>, Vec<_>) = sockets.listeners().into_iter().unzip();
    let hello = Hello {
        listeners: kinds,
        hosts: http.hosts.clone(),
        user_header: http.user_header.clone(),
        ui: match &http.ui {
            UiRoot::BuiltIn => Ui::BuiltIn,
            UiRoot::Directory(path) => Ui::Directory(path.clone()),
            UiRoot::Nothing => Ui::None,
        },
    };
    sys::socket::send_with_fds(&ours, &serde_json::to_vec(&hello)?, &fds)?;
    info!("the HTTP gateway serves");
    let line = sys::fd::watch(ours, Interest::READABLE)?;
    let census = Census::default();
    loop {
        let Some(Request {
            mut claim,
            client,
            session,
            body,
        }) = hear(&line).await?
        else {
            return Ok(());
        };
        let (front, http, census) = (front.clone(), http.clone(), census.clone());
        if let Some((hook, body)) = claim.hook.take().zip(body) {
            tokio::spawn(webhook::answer(front, hook, body, session));
            continue;
        }
        tokio::spawn(async move {
            let peer = identify(&front, &client, claim, &http).await;
            drop(client);
            let Some(peer) = peer else {
                return turn_away(&session, UNKNOWN);
            };
            let most = front.in_force.borrow().config.global.clients_per_user;
            match census.enter(peer.raw_uid, most) {
                Some(_place) => connection::serve(session, peer, front).await,
                None => turn_away(&session, TOO_MANY),
            }
        });
    }
}

/// Makes the process: this program, as nobody, with one end of the line and nothing else.
fn start(binary: &OwnedFd, line: &OwnedFd) -> io::Result<OwnedFd> {
    let null = spawn::null().map_err(io::Error::other)?;
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let most = most.unwrap_or(1 << 20);
    let is_root = rustix::process::geteuid().is_root();
    let child = Child {
        stdio: [null.as_raw_fd(), null.as_raw_fd(), null.as_raw_fd()],
        terminal: false,
        extra: Some((line.as_raw_fd(), LINE_FD)),
        report: PidReport {
            file: None,
            datagram: None,
        },
        umask: 0o077,
        limits: vec![(libc::RLIMIT_NOFILE, most, most), (libc::RLIMIT_CORE, 0, 0)],
        ids: is_root.then_some(Ids {
            uid: NOBODY,
            gid: NOBODY,
            groups: Vec::new(),
        }),
        no_new_privs: true,
        cwd: CString::from(c"/"),
        shortcut: None,
        image: Image::Fd(binary.as_raw_fd()),
        argv: vec![c"deployer".to_owned(), c"--role=web".to_owned()],
        env: Vec::new(),
    };
    let spawned = sys::child::spawn(&child, None);
    spawned.map(|(_, pidfd)| pidfd).map_err(|failure| {
        let e = io::Error::from_raw_os_error(failure.errno);
        io::Error::other(format!("{:?}: {e}", failure.step))
    })
}

/// What the gateway passes on.
struct Request {
    claim: Claim,
    client: OwnedFd,
    session: tokio::net::UnixStream,
    /// Of a webhook.
    body: Option<OwnedFd>,
}

/// The next request; none when the gateway has ended. What is no request is passed over.
async fn hear(line: &AsyncFd<OwnedFd>) -> io::Result<Option<Request>> {
    let mut bytes = vec![0; LONGEST];
    loop {
        let received = line
            .async_io(Interest::READABLE, |fd| {
                sys::socket::receive_with_fds(fd, &mut bytes)
            })
            .await;
        let (length, fds) = match received {
            Ok((0, _)) => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
            received => received?,
        };
        let mut fds = fds.into_iter();
        let claim = serde_json::from_slice(&bytes[..length]);
        if let (Ok(claim), Some(client), Some(session)) = (claim, fds.next(), fds.next()) {
            let session = std::os::unix::net::UnixStream::from(session);
            session.set_nonblocking(true)?;
            let session = tokio::net::UnixStream::from_std(session)?;
            return Ok(Some(Request {
                claim,
                client,
                session,
                body: fds.next(),
            }));
        }
        warn!("the HTTP gateway said something out of place");
    }
}

/// What a client is told whose token does not count.
const UNKNOWN: &str = "unauthorized: the token is not known, or has expired";

/// Who an HTTP client is: on a UNIX socket whoever the kernel says, elsewhere nobody; whoever a
/// trusted proxy says; and whoever made the token that it shows. None: that does not count.
async fn identify(front: &Front, client: &OwnedFd, claim: Claim, http: &Http) -> Option<Peer> {
    if let Some(secret) = claim.token {
        let token = front.tokens.find(&secret)?;
        let user = token.uid.to_string();
        let mut owner = named(user).await?;
        owner.scope = Some(Arc::new(token.scope()));
        return Some(owner);
    }
    let kernel = peer_of(client);
    let trusted = match &kernel {
        Ok(peer) => peer.uid.is_some_and(|uid| http.trust_uids.contains(&uid)),
        Err(_) => address_of(client).is_some_and(|ip| http.trust_addresses.contains(&ip)),
    };
    if trusted && http.user_header.is_some() {
        // One that does not say who asks speaks for nobody, and not for itself.
        let named = match claim.user {
            Some(user) => named(user).await,
            None => None,
        };
        return Some(named.unwrap_or_else(nobody));
    }
    Some(kernel.unwrap_or_else(|_| nobody()))
}

/// Whoever has this name. None: nobody has it, or that cannot be found out now.
async fn named(user: String) -> Option<Peer> {
    let asked = tokio::task::spawn_blocking(move || match peer_of_user(&user) {
        Ok(found) => found,
        Err(e) => {
            warn!("cannot look up the user {user:?}: {e}");
            None
        }
    });
    asked.await.ok().flatten()
}

/// The peer of a UNIX socket.
fn peer_of(client: &OwnedFd) -> io::Result<Peer> {
    let address = rustix::net::getsockname(client)?;
    if address.address_family() != AddressFamily::UNIX {
        return Err(io::ErrorKind::Unsupported.into());
    }
    peer::of(client)
}

fn address_of(client: &OwnedFd) -> Option<IpAddr> {
    let address = rustix::net::getpeername(client).ok()??;
    let address: std::net::SocketAddr = address.try_into().ok()?;
    // An address of IPv4 may come as one of IPv6.
    Some(address.ip().to_canonical())
}

fn nobody() -> Peer {
    Peer {
        uid: None,
        gid: None,
        groups: Vec::new(),
        pid: 0,
        raw_uid: u32::MAX,
        scope: None,
    }
}
