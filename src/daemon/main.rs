//! The daemon's role: takes over, serves, and goes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdListener, UnixStream as StdStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::fs::MemfdFlags;
use tokio::io::Interest;
use tokio::net::UnixListener;
use tokio::sync::{mpsc, watch};
use tracing::{error, info, warn};

use super::InForce;
use super::actor::{Actor, Msg, Wanted};
use super::code::Lookout;
use super::effects::{Hands, Surroundings};
use super::events::Events;
use super::freeze::Freezer;
use super::front::{Admin, Front, chain};
use super::gateway;
use super::names::Names;
use super::recover::{self, Inherited, Recovery};
use super::schedule::Scheduler;
use super::tokens::Tokens;
use crate::config::load;
use crate::config::model::{Cgroup, Config, Program};
use crate::ids::{ProgramName, Uid};
use crate::keeper::link::Heard;
use crate::keeper::saved::VERSION;
use crate::keeper::{Link, Reason, Saved, Settings, ToDaemon, ToKeeper};
use crate::run::cgroup::Cgroups;
use crate::run::pump::Pump;
use crate::server::listener;
use crate::store::{Opened, Store};

/// How often the keeper hears that the daemon is well.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// How often what is too old is deleted of programs that do not run.
const SWEEP_EVERY: Duration = Duration::from_secs(3600);

/// Why the daemon cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum MainError {
    /// The keeper handed over nothing.
    #[error("the keeper is gone")]
    NoKeeper,
    /// The configuration in force is not valid here.
    #[error("the configuration in force is not valid any more:\n{0}")]
    Config(String),
    /// The history.
    #[error("{0}")]
    Store(String),
    /// The socket.
    #[error("cannot listen on {}: {source}", path.display())]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// Something else that the daemon cannot do without.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

fn io_error(doing: &'static str) -> impl FnOnce(io::Error) -> MainError {
    move |e| MainError::Io(doing, e)
}

/// Serves until told to stop.
///
/// # Errors
/// [`MainError`]; the keeper tries again, unless no daemon has ever served.
pub fn main(settings: Settings, link: OwnedFd) -> Result<(), MainError> {
    let link = Arc::new(Link::new(link));
    let mut inherited = recover::inherit(&link).ok_or(MainError::NoKeeper)?;
    let memfd = inherited.config.take().ok_or(MainError::NoKeeper)?;
    let kept = recover::read_config(&memfd).map_err(io_error("read the configuration in force"))?;
    let (text, former) = recover::split_config(&kept);
    let checked = load::from_text(&text, &settings.config);
    let Some(mut config) = checked.config else {
        return Err(MainError::Config(checked.render(false)));
    };
    override_with(&mut config, &settings);
    for former in former.iter().rev() {
        let before = load::from_text(former, &settings.config).config;
        linger(
            &mut config,
            before.iter().flat_map(|before| &before.programs),
        );
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .max_blocking_threads(64)
        .thread_keep_alive(Duration::from_secs(30))
        .build()
        .map_err(io_error("start the runtime"))?;
    let result = runtime.block_on(
        Daemon {
            settings,
            link,
            memfd,
            text,
            former,
        }
        .serve(config, inherited),
    );
    // A spawn that hangs does not keep the daemon.
    runtime.shutdown_background();
    result
}

/// This program, as it is running: a new one may be on the disk. Its number is none that a worker
/// is given.
fn own_binary() -> io::Result<OwnedFd> {
    let file = std::fs::File::open("/proc/self/exe")?;
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, 10)?)
}

/// What the command line says counts more than the file.
fn override_with(config: &mut Config, settings: &Settings) {
    let global = &mut config.global;
    if let Some(path) = &settings.socket {
        global.socket_path.clone_from(path);
    }
    if let Some(root) = &settings.root {
        global.root.clone_from(root);
    }
    if let Some(groups) = settings.autostart {
        global.do_autostart = groups;
    }
    if let Some(mode) = settings.mode {
        global.socket_mode = mode;
    }
}

struct Daemon {
    settings: Settings,
    link: Arc<Link>,
    memfd: OwnedFd,
    /// The text of the configuration in force.
    text: Vec<u8>,
    /// Those of former ones that had programs which linger since, the oldest first.
    former: Vec<Vec<u8>>,
}

/// How many former configurations are kept for what lingers.
const FORMER: usize = 8;

/// Programs of a former configuration that are supervised no more linger.
fn linger<'a>(
    config: &mut Config,
    programs: impl IntoIterator<Item = (&'a ProgramName, &'a Arc<Program>)>,
) {
    for (name, spec) in programs {
        let supervised = config.programs.get(name).is_some_and(|p| p.is_supervised());
        if spec.is_supervised() && !supervised && !config.lingering.contains_key(name) {
            config.lingering.insert(name.clone(), Arc::clone(spec));
        }
    }
}

impl Daemon {
    async fn serve(mut self, config: Config, mut inherited: Inherited) -> Result<(), MainError> {
        let owner = Uid::new(rustix::process::geteuid().as_raw())
            .map_err(|e| MainError::Store(e.to_string()))?;
        let global = config.global.clone();
        let opened = Store::open(&global.state_dir, Some(&global.log_dir))
            .map_err(|e| MainError::Store(chain(&e)))?;
        let Opened {
            store,
            next_id,
            unfinished,
            lost,
        } = opened;
        if let Some(lost) = lost {
            error!("{lost}");
        }
        let pump = Pump::start().map_err(|e| MainError::Store(chain(&e)))?;
        let path = self.settings.config.clone();
        let in_force = Arc::new(InForce {
            config,
            path,
            owner,
        });
        let (new_in_force, watched) = watch::channel(Arc::clone(&in_force));
        let (to_actor, inbox) = mpsc::unbounded_channel();
        let surroundings = Arc::new(Surroundings {
            cgroups: (global.cgroup == Cgroup::Auto)
                .then(|| Cgroups::find(&group_name(&global.state_dir)))
                .flatten(),
            nofile: self.settings.nofile,
            binary: own_binary().map_err(io_error("open the program itself"))?,
        });
        match &surroundings.cgroups {
            Some(_) => info!("each run gets a control group of its own"),
            None => info!("no control groups: the processes of a run are found by descent"),
        }
        let queries = store.queries();
        let (tell_updated, updated) = mpsc::unbounded_channel();
        let events = Events::new();
        let hands = Hands::new(
            (to_actor.clone(), tell_updated, events.clone()),
            store.clone(),
            queries.clone(),
            pump,
            Arc::clone(&self.link),
            Arc::clone(&surroundings),
            watched.clone(),
        );
        let rebooted = recover::rebooted(&global.state_dir);
        let mut actor = Actor::new(hands, Arc::clone(&in_force), next_id.0);
        Recovery {
            in_force: &in_force,
            store: &store,
            link: &self.link,
            surroundings: &surroundings,
            inbox: &to_actor,
            rebooted,
        }
        .recover(unfinished, std::mem::take(&mut inherited.runs), &mut actor);
        if let Some(groups) = &surroundings.cgroups {
            groups.sweep();
        }
        let wanted = Wanted {
            known: recover::read_wanted(&global.state_dir),
            first: inherited.reason == Reason::First,
            rebooted,
        };
        let _ = to_actor.send(Msg::Supervise(Box::new(wanted)));

        let socket = match self.listen(&in_force, inherited.listener) {
            Ok(socket) => socket,
            Err(e) => {
                if let Some(groups) = &surroundings.cgroups {
                    groups.remove();
                }
                return Err(e);
            }
        };
        let kept = socket
            .listener
            .try_clone()
            .map_err(io_error("keep the socket"))?;
        let listener = UnixListener::from_std(socket.listener).map_err(io_error("listen"))?;
        let (limit, limits) = watch::channel(global.clients_per_user);
        let (admin, orders) = mpsc::unbounded_channel();
        let front = Front {
            in_force: watched,
            actor: to_actor.clone(),
            admin,
            store: store.clone(),
            queries,
            names: Arc::new(Names::default()),
            freezer: Freezer::open(&global.state_dir),
            tokens: Tokens::open(&global.state_dir),
            lookout: Lookout::default(),
            surroundings: Arc::clone(&surroundings),
            events,
        };
        let scheduler = Scheduler {
            front: front.clone(),
            surroundings: Arc::clone(&surroundings),
            updated,
        };
        let scheduling = tokio::spawn(scheduler.work());
        let http = tokio::spawn(gateway::keep(front.clone()));
        let serving = tokio::spawn(listener::serve(listener, limits, front));
        self.link.send(&ToKeeper::Ready, &[]);
        info!("serving on {}", global.socket_path.display());

        let work = actor.work(inbox);
        let control = self.control(orders, &to_actor, &kept, new_in_force, limit);
        tokio::pin!(work);
        let leaving = tokio::select! {
            () = &mut work => Leaving::Stopped,
            leaving = control => leaving,
        };
        match leaving {
            Leaving::Retired => {
                info!("another daemon takes over");
                store.close();
                return Ok(());
            }
            Leaving::Stopped => {}
        }
        serving.abort();
        scheduling.abort();
        // The gateway's process ends with the task, and that with the runtime.
        http.abort();
        store.close();
        if let Some(groups) = &surroundings.cgroups {
            groups.remove();
        }
        if !self.settings.activated {
            socket.place.remove();
        }
        info!("stopped");
        self.link.send(&ToKeeper::Quit, &[]);
        Ok(())
    }

    /// Takes orders: from the keeper, from administrators. Comes back only when another daemon
    /// is to take over.
    async fn control(
        &mut self,
        mut orders: mpsc::UnboundedReceiver<Admin>,
        to_actor: &mpsc::UnboundedSender<Msg>,
        listener: &StdListener,
        in_force: watch::Sender<Arc<InForce>>,
        limit: watch::Sender<u32>,
    ) -> Leaving {
        let link = Arc::clone(&self.link);
        let hearing = match link
            .as_fd()
            .try_clone_to_owned()
            .and_then(|fd| crate::sys::fd::watch(fd, Interest::READABLE))
        {
            Ok(hearing) => hearing,
            Err(e) => {
                error!("the keeper cannot be heard: {e}");
                return Leaving::Retired;
            }
        };
        let mut alive = tokio::time::interval(ALIVE_EVERY);
        let mut sweep = tokio::time::interval(SWEEP_EVERY);
        // Whoever asked to stop keeps the connection until the daemon ends.
        let mut held = Vec::new();
        loop {
            tokio::select! {
                ready = hearing.readable() => {
                    if let Ok(mut guard) = ready {
                        guard.clear_ready();
                    }
                    loop {
                        match link.hear() {
                            Heard::Message(message, _) => match message {
                                ToDaemon::Exited { run, exit } => {
                                    let _ = to_actor.send(Msg::Exited(crate::ids::RunId(run), recover::exit_from(exit)));
                                }
                                ToDaemon::Stop => self.stop(to_actor, &in_force),
                                ToDaemon::Reload => {
                                    if let Err(errors) = self.reload(&in_force, &limit, to_actor).await {
                                        error!("the configuration stays as it was:\n{errors}");
                                    }
                                }
                                ToDaemon::Retire => return Leaving::Retired,
                                _ => warn!("the keeper said something out of place"),
                            },
                            Heard::Nothing => break,
                            Heard::Gone => {
                                let _ = to_actor.send(Msg::KeeperGone(Box::new(self.saved(listener))));
                                std::future::pending::<()>().await;
                            }
                        }
                    }
                }
                order = orders.recv() => match order {
                    Some(Admin::Reload(answer)) => {
                        let result = self.reload(&in_force, &limit, to_actor).await;
                        let _ = answer.send(result);
                    }
                    Some(Admin::Stop(notices)) => {
                        held.push(notices);
                        self.stop(to_actor, &in_force);
                    }
                    None => std::future::pending().await,
                },
                _ = sweep.tick() => drop(to_actor.send(Msg::Sweep)),
                _ = alive.tick() => self.link.send(&ToKeeper::Alive, &[]),
            }
        }
    }

    fn stop(&self, to_actor: &mpsc::UnboundedSender<Msg>, in_force: &watch::Sender<Arc<InForce>>) {
        let patience = in_force.borrow().config.global.shutdown_timeout;
        info!("stopping; live runs may go on for {patience:?}");
        self.link.send(&ToKeeper::Stopping, &[]);
        let _ = to_actor.send(Msg::ShutDown(patience));
    }

    /// Reads the configuration again: all of it comes into force, or nothing. The answer names
    /// what waits for a restart.
    async fn reload(
        &mut self,
        in_force: &watch::Sender<Arc<InForce>>,
        limit: &watch::Sender<u32>,
        to_actor: &mpsc::UnboundedSender<Msg>,
    ) -> Result<String, String> {
        self.link.send(&ToKeeper::Reloading, &[]);
        let result = self.try_reload(in_force, limit, to_actor).await;
        self.link.send(&ToKeeper::Ready, &[]);
        result
    }

    async fn try_reload(
        &mut self,
        in_force: &watch::Sender<Arc<InForce>>,
        limit: &watch::Sender<u32>,
        to_actor: &mpsc::UnboundedSender<Msg>,
    ) -> Result<String, String> {
        let path = self.settings.config.clone();
        let loaded = tokio::task::spawn_blocking(move || load::load(&path)).await;
        let loaded = loaded
            .map_err(|e| e.to_string())?
            .map_err(|e| format!("deployer: {}\n", chain(&e)))?;
        let mut said = loaded.checked.render(false);
        let Some(mut config) = loaded.checked.config else {
            return Err(said);
        };
        override_with(&mut config, &self.settings);
        let before = in_force.borrow().clone();
        let old = &before.config.global;
        let new = &mut config.global;
        let mut later = Vec::new();
        if new.socket_path != old.socket_path || new.socket_mode != old.socket_mode {
            later.push("socket-path, socket-mode");
        }
        if new.state_dir != old.state_dir || new.log_dir != old.log_dir {
            later.push("state-dir, log-dir");
        }
        if new.cgroup != old.cgroup {
            later.push("cgroup");
        }
        new.socket_path.clone_from(&old.socket_path);
        new.state_dir.clone_from(&old.state_dir);
        new.log_dir.clone_from(&old.log_dir);
        (new.socket_mode, new.cgroup) = (old.socket_mode, old.cgroup.clone());
        linger(&mut config, &before.config.programs);
        if !config.lingering.is_empty() {
            self.former.push(self.text.clone());
            let too_many = self.former.len().saturating_sub(FORMER);
            self.former.drain(..too_many);
        }
        linger(&mut config, &before.config.lingering);
        let parked = keep_config(&loaded.text, &self.former)
            .map_err(|e| format!("deployer: cannot keep the configuration: {e}\n"))?;
        self.link.send(&ToKeeper::ParkConfig, &[parked.as_fd()]);
        self.memfd = parked;
        self.text = loaded.text;
        let clients = config.global.clients_per_user;
        let now = Arc::new(InForce {
            config,
            path: before.path.clone(),
            owner: before.owner,
        });
        let _ = to_actor.send(Msg::Reloaded(Arc::clone(&now)));
        in_force.send_replace(now);
        limit.send_replace(clients);
        info!("the configuration was read again");
        for keys in later {
            said.push_str(&format!(
                "deployer: {keys}: the change takes effect when the daemon is restarted\n"
            ));
        }
        Ok(said)
    }

    /// What this process hands to the keeper that it becomes.
    fn saved(&self, listener: &StdListener) -> Saved {
        Saved {
            version: VERSION,
            settings: self.settings.clone(),
            config: Some(self.memfd.as_raw_fd()),
            listener: Some(listener.as_raw_fd()),
            runs: Vec::new(),
            daemon: None,
            served: true,
        }
    }

    /// The socket: the one that the keeper holds, or a new one.
    fn listen(&self, in_force: &InForce, inherited: Option<OwnedFd>) -> Result<Socket, MainError> {
        let global = &in_force.config.global;
        let path = &global.socket_path;
        let failed = |source| MainError::Listen {
            path: path.clone(),
            source,
        };
        let listener = match inherited {
            Some(fd) => StdListener::from(fd),
            None => {
                clear_stale(path).map_err(failed)?;
                let listener = StdListener::bind(path).map_err(failed)?;
                std::fs::set_permissions(path, std::fs::Permissions::from_mode(global.socket_mode))
                    .map_err(failed)?;
                self.link.send(&ToKeeper::ParkListener, &[listener.as_fd()]);
                listener
            }
        };
        // More may knock at once than the library's default admits.
        rustix::net::listen(&listener, 4096).map_err(|e| failed(e.into()))?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Socket {
            listener,
            place: Place::of(path),
        })
    }
}

/// How the daemon leaves.
enum Leaving {
    /// For good.
    Stopped,
    /// For another one.
    Retired,
}

struct Socket {
    listener: StdListener,
    place: Place,
}

/// A socket's file, known by its inode: another daemon's is never removed.
pub(super) struct Place {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl Place {
    /// The socket's file that is at a path now.
    pub(super) fn of(path: &Path) -> Self {
        let identity = path.symlink_metadata().ok().map(|m| (m.dev(), m.ino()));
        Self {
            path: path.to_owned(),
            identity,
        }
    }

    /// Removes it, if it still is the same.
    pub(super) fn remove(&self) {
        if self.identity.is_some() && Self::of(&self.path).identity == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// Removes a socket that nobody listens on. Somebody who holds another state directory may be
/// listening: theirs is left alone.
pub(super) fn clear_stale(path: &Path) -> io::Result<()> {
    let found = match path.symlink_metadata() {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::other(
            "something that is no socket lies there; move it away",
        ));
    }
    match StdStream::connect(path) {
        Ok(_) => Err(io::Error::other("another daemon listens there")),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => std::fs::remove_file(path),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
    }
}

fn keep_config(text: &[u8], former: &[Vec<u8>]) -> io::Result<OwnedFd> {
    use std::io::Write;
    let mut file = std::fs::File::from(rustix::fs::memfd_create(
        "deployer-config",
        MemfdFlags::CLOEXEC,
    )?);
    file.write_all(text)?;
    for former in former {
        file.write_all(recover::FORMER)?;
        file.write_all(former)?;
    }
    Ok(file.into())
}

/// A name for the control group of all runs, of one state directory only.
fn group_name(state_dir: &Path) -> String {
    use std::hash::{Hash, Hasher};
    let mut hasher = std::hash::DefaultHasher::new();
    state_dir
        .canonicalize()
        .unwrap_or_else(|_| state_dir.to_owned())
        .hash(&mut hasher);
    format!("deployer-{:016x}", hasher.finish())
}
