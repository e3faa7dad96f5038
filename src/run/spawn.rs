//! Makes the process of a run: everything a child gets, in one place.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::pipe::{PipeFlags, pipe_with};

use super::environment::{Facts, environment};
use super::identity::{Identity, IdentityError};
use super::script::{self, Script, ScriptError};
use crate::config::keys;
use crate::config::model::{Limit, Program, Resource};
use crate::sys::child::{self, Child, Failure, Image, PidReport, Step};
use crate::sys::terminal::{Size, Terminal};

/// Standard input, output and error of a run, on the child's side.
#[derive(Debug)]
pub struct Stdio {
    /// 0
    pub stdin: OwnedFd,
    /// 1
    pub stdout: OwnedFd,
    /// 2
    pub stderr: OwnedFd,
    /// Whether they are a terminal, which becomes that of its session.
    pub terminal: bool,
    /// Another one, and its number.
    pub extra: Option<(OwnedFd, RawFd)>,
}

/// Why a run has no process.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Its user.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// Its script.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// A step of the child.
    #[error("{0}")]
    Step(StepError),
    /// A NUL where the kernel takes none.
    #[error("{0} contains a NUL")]
    Nul(&'static str),
    /// Pipes and the like.
    #[error("cannot {0}: {1}")]
    Io(&'static str, io::Error),
}

/// A step of the child that failed, and on what.
#[derive(Debug)]
pub struct StepError {
    /// Which, and the errno.
    pub failure: Failure,
    /// What was to be executed.
    pub program: PathBuf,
    /// Where it was to start.
    pub cwd: PathBuf,
    /// As whom.
    pub user: String,
}

impl std::fmt::Display for StepError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (program, cwd, user) = (self.program.display(), self.cwd.display(), &self.user);
        let e = io::Error::from_raw_os_error(self.failure.errno);
        match self.failure.step {
            Step::Clone => write!(f, "cannot make a process for {program}: {e}"),
            Step::Session => write!(f, "cannot make a session for {program}: {e}"),
            Step::Report => write!(f, "cannot note the process of {program}: {e}"),
            Step::Signals => write!(f, "cannot set the signals of {program}: {e}"),
            Step::Limits => write!(
                f,
                "cannot set the limits of {program}: {e} (limit-… above what the daemon may have?)"
            ),
            Step::Stdio | Step::Descriptors => write!(f, "cannot connect {program}: {e}"),
            Step::Terminal => write!(f, "cannot give {program} its terminal: {e}"),
            Step::Capabilities => write!(f, "cannot drop capabilities for {program}: {e}"),
            Step::Groups | Step::Gid | Step::Uid => write!(
                f,
                "cannot become {user}: {e} (does the daemon run as root?)"
            ),
            Step::Regain => write!(
                f,
                "cannot become {user}: the change is not final, so nothing was run"
            ),
            Step::NoNewPrivs => write!(f, "cannot set no-new-privs for {program}: {e}"),
            Step::Cwd => write!(
                f,
                "cannot enter {cwd} as {user}: {e} (cwd = … says where to start)"
            ),
            Step::Exec => match self.failure.errno {
                libc::ENOENT if program_exists(&self.program) => {
                    write!(
                        f,
                        "cannot execute {program}: its interpreter does not exist (look at its first line)"
                    )
                }
                libc::ENOENT => write!(f, "cannot execute {program}: it does not exist"),
                libc::EACCES => write!(
                    f,
                    "cannot execute {program} as {user}: {e} (chmod +x, and every directory above it)"
                ),
                libc::ENOEXEC => write!(
                    f,
                    "cannot execute {program}: it has neither a #! line nor a known binary format"
                ),
                _ => write!(f, "cannot execute {program}: {e}"),
            },
        }
    }
}

fn program_exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

impl SpawnError {
    /// What a shell would exit with: 127 not found, 126 could not be executed.
    #[must_use]
    pub fn exit_status(&self) -> i32 {
        match self {
            Self::Script(e) => e.exit_status(),
            Self::Step(e) if e.failure.step == Step::Exec && e.failure.errno == libc::ENOENT => 127,
            _ => 126,
        }
    }
}

/// A run that is to have a process.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Its program's settings.
    pub spec: &'a Program,
    /// The root directory.
    pub root: &'a Path,
    /// What goes into its environment.
    pub facts: Facts<'a>,
    /// Arguments.
    pub args: &'a [String],
    /// Further variables.
    pub more: &'a [(String, String)],
    /// Who it is; see [`Identity::resolve`].
    pub identity: &'a Identity,
    /// The soft limit of open files that children get.
    pub nofile: u64,
    /// The daemon's own binary, if that is to be executed as a worker.
    pub worker: Option<BorrowedFd<'a>>,
}

/// A process that lacks nothing but its start.
#[derive(Debug)]
pub struct Ready {
    child: Child,
    program: PathBuf,
    cwd: PathBuf,
    user: String,
    /// What the child executes is open until then.
    _script: Option<Script>,
}

/// Gets everything ready for a process. Checks the script anew. The descriptors in `stdio` and
/// `report` have to stay open until [`Ready::start`].
///
/// # Errors
/// [`SpawnError`] says what is missing.
pub fn prepare(plan: &Plan<'_>, stdio: &Stdio, report: PidReport) -> Result<Ready, SpawnError> {
    let spec = plan.spec;
    let Executed {
        program,
        image,
        argv,
        shortcut,
        cwd,
        script,
    } = match (plan.worker, spec.command(plan.facts.action)) {
        (Some(binary), _) => worker(binary),
        (None, Some(command)) => shell(plan, command)?,
        (None, None) => own_script(plan)?,
    };
    let mut env = environment(spec, plan.identity, &plan.facts);
    env.extend(plan.more.iter().cloned());
    if shortcut.is_some() && !env.contains_key("PWD") {
        // As the shell would.
        env.insert("PWD".to_owned(), cwd.display().to_string());
    }
    let env = env
        .iter()
        .map(|(name, value)| c_string(format!("{name}={value}").as_bytes(), name_of(name)));
    let child = Child {
        stdio: [
            stdio.stdin.as_raw_fd(),
            stdio.stdout.as_raw_fd(),
            stdio.stderr.as_raw_fd(),
        ],
        terminal: stdio.terminal,
        extra: stdio.extra.as_ref().map(|(fd, to)| (fd.as_raw_fd(), *to)),
        report,
        umask: spec.umask,
        limits: limits(spec, plan.nofile),
        ids: plan.identity.ids(),
        no_new_privs: spec.no_new_privs,
        cwd: c_string(cwd.as_os_str().as_bytes(), "cwd")?,
        shortcut,
        image,
        argv,
        env: env.collect::<Result<_, _>>()?,
    };
    Ok(Ready {
        child,
        program,
        cwd,
        user: plan.identity.name.clone(),
        _script: script,
    })
}

/// What a process executes, and where.
struct Executed {
    /// As people call it.
    program: PathBuf,
    image: Image,
    argv: Vec<CString>,
    /// See [`shortcut`].
    shortcut: Option<Vec<CString>>,
    cwd: PathBuf,
    /// Open until then.
    script: Option<Script>,
}

/// The daemon's own binary, which has its job on a descriptor.
fn worker(binary: BorrowedFd<'_>) -> Executed {
    Executed {
        program: PathBuf::from("deployer"),
        image: Image::Fd(binary.as_raw_fd()),
        argv: vec![c"deployer".to_owned(), c"--role=source".to_owned()],
        shortcut: None,
        cwd: PathBuf::from("/"),
        script: None,
    }
}

/// A command of the configuration.
fn shell(plan: &Plan<'_>, command: &str) -> Result<Executed, SpawnError> {
    let spec = plan.spec;
    let shell = &spec.shell;
    let name = shell.file_name().unwrap_or(shell.as_os_str());
    let mut argv = vec![
        c_string(name.as_bytes(), "shell")?,
        c"-c".to_owned(),
        c_string(command.as_bytes(), "a command")?,
    ];
    argv.extend(arguments(plan)?);
    Ok(Executed {
        program: shell.clone(),
        image: Image::Path(c_string(shell.as_os_str().as_bytes(), "shell")?),
        argv,
        shortcut: match shell == Path::new("/bin/sh") {
            true => shortcut(command)?,
            false => None,
        },
        cwd: match &spec.cwd {
            // What tells of a failure is not to fail for the same reason.
            Some(cwd) if !keys::is_notice(plan.facts.action.as_str()) => cwd.clone(),
            _ => PathBuf::from("/"),
        },
        script: None,
    })
}

/// Its script below the root directory.
fn own_script(plan: &Plan<'_>) -> Result<Executed, SpawnError> {
    let script = script::find(plan.root, plan.facts.program, plan.identity)?;
    let path = c_string(script.path.as_os_str().as_bytes(), "the script's path")?;
    let image = image_of(&script, &path)?;
    let mut argv = vec![path];
    argv.extend(arguments(plan)?);
    let cwd = plan.spec.cwd.as_ref().unwrap_or(&script.directory).clone();
    Ok(Executed {
        program: script.path.clone(),
        image,
        argv,
        shortcut: None,
        cwd,
        script: Some(script),
    })
}

fn arguments(plan: &Plan<'_>) -> Result<Vec<CString>, SpawnError> {
    let args = plan.args.iter();
    args.map(|arg| c_string(arg.as_bytes(), "an argument"))
        .collect()
}

impl Ready {
    /// Makes the process. Returns its pid and pidfd.
    ///
    /// # Errors
    /// [`SpawnError`] names the step; there is no process then.
    pub fn start(self, cgroup: Option<BorrowedFd<'_>>) -> Result<(i32, OwnedFd), SpawnError> {
        child::spawn(&self.child, cgroup).map_err(|failure| {
            SpawnError::Step(StepError {
                failure,
                program: self.program,
                cwd: self.cwd,
                user: self.user,
            })
        })
    }
}

/// The words of a command that a shell would only hand on: a path and plain words, perhaps behind
/// `exec`. It is executed without starting a shell first; if that fails, the shell is asked all
/// the same, and says what is wrong in its own words.
fn shortcut(command: &str) -> Result<Option<Vec<CString>>, SpawnError> {
    let plain = |c: u8| c.is_ascii_alphanumeric() || b" \t_-+./:,@%=".contains(&c);
    let mut words: Vec<&str> = command.split_ascii_whitespace().collect();
    if words.first() == Some(&"exec") {
        words.remove(0);
    }
    let path = words
        .first()
        .is_some_and(|w| w.contains('/') && !w.contains('=') && !w.starts_with('-'));
    if !path || !command.bytes().all(plain) {
        return Ok(None);
    }
    let words = words.iter().map(|w| c_string(w.as_bytes(), "a command"));
    words.collect::<Result<_, _>>().map(Some)
}

/// Messages name variables by kind: their names may be a client's.
fn name_of(name: &str) -> &'static str {
    if name.starts_with("INPUT_") {
        "an input"
    } else {
        "a variable of the environment"
    }
}

fn image_of(script: &Script, path: &CString) -> Result<Image, ScriptError> {
    if script.interpreted {
        script.confirm()?;
        return Ok(Image::Path(path.clone()));
    }
    Ok(Image::Fd(script.fd.as_raw_fd()))
}

fn c_string(bytes: &[u8], what: &'static str) -> Result<CString, SpawnError> {
    CString::new(bytes).map_err(|_| SpawnError::Nul(what))
}

/// No core files and the original number of descriptors, unless configured otherwise.
fn limits(spec: &Program, nofile: u64) -> Vec<(u32, u64, u64)> {
    let number = |value: Option<u64>| value.unwrap_or(libc::RLIM_INFINITY);
    let mut limits: Vec<_> = spec
        .limits
        .iter()
        .map(|(r, Limit { soft, hard })| (raw(*r), number(*soft), number(*hard)))
        .collect();
    if !spec.limits.contains_key(&Resource::Core) {
        limits.push((libc::RLIMIT_CORE, 0, 0));
    }
    if !spec.limits.contains_key(&Resource::Nofile) {
        let hard = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        limits.push((libc::RLIMIT_NOFILE, nofile.min(number(hard)), number(hard)));
    }
    limits
}

fn raw(resource: Resource) -> u32 {
    match resource {
        Resource::As => libc::RLIMIT_AS,
        Resource::Core => libc::RLIMIT_CORE,
        Resource::Cpu => libc::RLIMIT_CPU,
        Resource::Data => libc::RLIMIT_DATA,
        Resource::Fsize => libc::RLIMIT_FSIZE,
        Resource::Memlock => libc::RLIMIT_MEMLOCK,
        Resource::Nofile => libc::RLIMIT_NOFILE,
        Resource::Nproc => libc::RLIMIT_NPROC,
        Resource::Stack => libc::RLIMIT_STACK,
    }
}

/// A pipe that belongs to the run's user, so that its scripts can open `/dev/stdout` anew.
/// Returns the end to read from and the end to write to.
///
/// # Errors
/// No descriptors left.
pub fn pipe_for(identity: &Identity) -> Result<(OwnedFd, OwnedFd), SpawnError> {
    let (read, write) =
        pipe_with(PipeFlags::CLOEXEC).map_err(|e| SpawnError::Io("make a pipe", e.into()))?;
    if identity.ids().is_some() {
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(identity.uid),
            rustix::fs::Gid::from_raw(identity.gid),
        );
        // Only a convenience of the child: without it everything else works.
        let _ = rustix::fs::fchown(&read, Some(uid), Some(gid));
    }
    Ok((read, write))
}

/// A terminal for the run's user. Returns the daemon's end, and the process's.
///
/// # Errors
/// There are none left, or `/dev/pts` is not mounted.
pub fn terminal_for(identity: &Identity, size: Size) -> Result<(Terminal, OwnedFd), SpawnError> {
    let owner = identity.ids().map(|ids| ids.uid);
    Terminal::open(owner, size).map_err(|e| SpawnError::Io("make a terminal (tty = yes)", e))
}

/// `/dev/null`.
///
/// # Errors
/// No descriptors left.
pub fn null() -> Result<OwnedFd, SpawnError> {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null");
    opened
        .map(OwnedFd::from)
        .map_err(|e| SpawnError::Io("open /dev/null", e))
}

/// The descriptor number, for a [`PidReport`].
pub fn raw_fd(fd: &impl AsRawFd) -> RawFd {
    fd.as_raw_fd()
}

#[cfg(test)]
mod tests {
    use super::shortcut;

    #[test]
    fn only_what_a_shell_would_hand_on_as_it_is_goes_without_one() {
        let words = |command: &str| {
            let found = shortcut(command).unwrap();
            found.map(|words| {
                words
                    .iter()
                    .map(|w| w.to_str().unwrap().to_owned())
                    .collect::<Vec<_>>()
            })
        };
        assert_eq!(words("/bin/true").unwrap(), ["/bin/true"]);
        assert_eq!(
            words("exec /srv/app/deploy  --to=x a\tb").unwrap(),
            ["/srv/app/deploy", "--to=x", "a", "b"]
        );
        assert_eq!(words("./run").unwrap(), ["./run"]);
        for command in [
            "true",
            "exec true",
            "",
            "exec",
            "exec -a x /bin/true",
            "A=/b /bin/true",
            "cd /srv",
            "/bin/echo $HOME",
            "/bin/echo \"a b\"",
            "/bin/ls *",
            "/bin/a; /bin/b",
            "/bin/a &",
            "/bin/a | /bin/b",
            "/bin/a > /tmp/b",
            "/bin/echo ~",
            "/bin/echo a#b",
            "/bin/echo a\\b",
            "/bin/a\n/bin/b",
            "! /bin/a",
            "{ /bin/a",
            "/bin/{a,b}",
            "/bin/echo ä",
        ] {
            assert_eq!(words(command), None, "{command}");
        }
    }
}
