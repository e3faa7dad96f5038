//! Code from git: by the git command, kept on a short leash.
//!
//! Hooks, prompts and protocols other than those of the configuration are off; what
//! is fetched is a commit by its number, so that nothing that moves meanwhile can mix.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs::{self, File, OpenOptions};
use std::io::{BufReader, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use sha2::{Digest, Sha256};

use super::hooks::wait;
use super::update::not_cancelled;
use super::{Failure, Outcome, progress};
use crate::config::model::Source;
use crate::config::remote::{self, GIT_PROTOCOLS, Login, Remote};

/// How long a question may take.
pub(super) const QUESTION: Duration = Duration::from_secs(60);
/// How long fetching may take.
const FETCH: Duration = Duration::from_secs(3600);
/// How often it is looked whether an earlier git has ended.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How many commits are listed at most.
const LOG: u32 = 50;
/// How deep submodules may lie in submodules.
const DEEPEST: usize = 5;
/// What git says is shown up to this length, in bytes.
const SAID: usize = 4096;

/// A repository as a source names it.
#[derive(Debug)]
pub struct Git<'a> {
    /// The remote.
    pub url: &'a str,
    /// What to log in with.
    pub login: Option<&'a Login>,
    /// Branch, tag or commit.
    pub reference: Option<&'a str>,
    /// The directory that is meant.
    pub path: Option<&'a str>,
    /// Keys and limits.
    pub source: &'a Source,
    /// Where objects are kept.
    pub objects: PathBuf,
}

/// A commit, and where it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tip {
    /// Its number.
    pub commit: String,
    /// The name of the reference that leads to it, as the remote has it; none for a commit.
    pub name: Option<String>,
    /// The tag that leads to it, if that is an object of its own.
    pub tag: Option<String>,
}

/// A submodule in a tree.
struct Module {
    path: String,
    commit: String,
}

/// A release that is being written.
struct Export<'a> {
    /// Where git keeps the list of the files that it writes.
    index: &'a Path,
    size: Size,
}

/// How much there is in a release so far.
#[derive(Default)]
struct Size {
    files: u64,
    bytes: u64,
}

impl Git<'_> {
    /// What the remote has: one question, and nothing is written.
    pub fn tip(&self) -> Outcome<Tip> {
        let full = |r: &str| matches!(r.len(), 40 | 64) && r.bytes().all(|b| b.is_ascii_hexdigit());
        if let Some(commit) = self.reference.filter(|r| full(r)) {
            let commit = commit.to_ascii_lowercase();
            return Ok(Tip {
                commit,
                name: None,
                tag: None,
            });
        }
        let wanted: Vec<String> = match self.reference {
            None => vec!["HEAD".into()],
            Some(name) => vec![
                format!("refs/heads/{name}"),
                format!("refs/tags/{name}^{{}}"),
                format!("refs/tags/{name}"),
            ],
        };
        let mut command = self.command();
        command.args(["ls-remote", "--quiet", "--", self.url]);
        command.args(&wanted);
        let said = self.run(command, QUESTION, "look at")?;
        let found: Vec<(&str, &str)> = said.lines().filter_map(|l| l.split_once('\t')).collect();
        for name in &wanted {
            if let Some((commit, _)) = found.iter().find(|(_, found)| found == name) {
                let bare = name.strip_suffix("^{}");
                let tag = bare.and_then(|bare| found.iter().find(|(_, name)| *name == bare));
                return Ok(Tip {
                    commit: (*commit).to_owned(),
                    name: Some(bare.unwrap_or(name).to_owned()),
                    tag: tag.map(|(object, _)| (*object).to_owned()),
                });
            }
        }
        Err(Failure::new(match self.reference {
            Some(name) => format!("{} has no branch or tag {name}", self.url),
            None => format!("{} is empty", self.url),
        }))
    }

    /// Brings a commit here.
    pub fn fetch(&self, tip: &Tip) -> Outcome<()> {
        self.settle()?;
        if !self.objects.exists() {
            // It gets its name when it is whole.
            let new = self.objects.with_extension("new");
            let _ = fs::remove_dir_all(&new);
            let mut init = self.command();
            init.args(["init", "--quiet", "--bare", "--template=", "--"])
                .arg(&new);
            self.run(init, QUESTION, "make a repository for")?;
            let named = fs::rename(&new, &self.objects);
            named.map_err(Failure::io(format!("make {}", self.objects.display())))?;
        }
        self.fetch_object(&tip.commit, tip)
    }

    /// A worker that was killed may have left a git that is still at work, or git's own locks of
    /// one that was killed as well: waits for the one and takes the others away.
    fn settle(&self) -> Outcome<()> {
        let lock = self.lock()?;
        let began = Instant::now();
        while let Err(e) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            not_cancelled()?;
            if e != Errno::WOULDBLOCK || began.elapsed() > QUESTION {
                let path = self.objects.display();
                return Err(Failure::new(format!(
                    "git is still at work in {path} for an earlier update ({e})"
                )));
            }
            thread::sleep(LOOK_EVERY);
        }
        for entry in fs::read_dir(&self.objects).into_iter().flatten().flatten() {
            if entry.path().extension().is_some_and(|end| end == "lock") {
                let _ = fs::remove_file(entry.path());
            }
        }
        Ok(())
    }

    /// What every git that works in the repository of objects holds as long as it lives.
    fn lock(&self) -> Outcome<File> {
        let path = self.objects.with_extension("lock");
        let opened = fs::create_dir_all(path.parent().unwrap_or(Path::new("/"))).and_then(|()| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            options.open(&path)
        });
        opened.map_err(Failure::io(format!("open {}", path.display())))
    }

    /// Brings a commit or a tag here.
    pub fn fetch_object(&self, object: &str, tip: &Tip) -> Outcome<()> {
        if self.has(object) {
            return Ok(());
        }
        let fetch = |what: &str| {
            let mut command = self.local();
            command.args(["fetch", "--quiet"]);
            if progress::is_wanted() {
                command.arg("--progress");
            }
            command.args([
                "--depth=1",
                "--no-tags",
                "--no-recurse-submodules",
                "--no-write-fetch-head",
                "--no-auto-maintenance",
                "--",
                self.url,
                what,
            ]);
            self.run(command, FETCH, "fetch from")
        };
        let by_number = fetch(object);
        if by_number.is_err()
            && let Some(name) = &tip.name
        {
            // Servers need not give out a commit by its number.
            fetch(name)?;
        }
        if self.has(object) {
            return Ok(());
        }
        by_number?;
        Err(Failure::new(format!(
            "{} has moved on while {object} was fetched; the next update takes what is there then",
            self.url
        )))
    }

    /// The commits between two, the newest first, a line each; as far back as is sensible.
    pub fn log(&self, from: &str, to: &Tip) -> Outcome<Vec<String>> {
        let mut deepen = self.local();
        let what = to.name.as_deref().unwrap_or(&to.commit);
        deepen.args(["fetch", "--quiet", &format!("--depth={LOG}"), "--no-tags"]);
        deepen.args([
            "--no-recurse-submodules",
            "--no-write-fetch-head",
            "--",
            self.url,
            what,
        ]);
        self.run(deepen, FETCH, "fetch from")?;
        if !self.has(from) {
            return Ok(Vec::new());
        }
        let mut log = self.local();
        log.args(["log", "--format=%h %an: %s", &format!("--max-count={LOG}")]);
        log.arg(format!("{from}..{}", to.commit));
        let said = self.run(log, QUESTION, "list the commits of")?;
        Ok(said.lines().map(str::to_owned).collect())
    }

    fn has(&self, object: &str) -> bool {
        let mut command = self.local();
        command.args(["cat-file", "-e", object]);
        command.stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Writes the files of a commit into an empty directory.
    pub fn export(&self, commit: &str, tree: &Path) -> Outcome<()> {
        let index = tree.with_extension("index");
        let mut export = Export {
            index: &index,
            size: Size::default(),
        };
        self.export_into(commit, tree, &mut export, 0)
    }

    fn export_into(
        &self,
        commit: &str,
        tree: &Path,
        export: &mut Export<'_>,
        depth: usize,
    ) -> Outcome<()> {
        let what = match self.path {
            Some(path) => format!("{commit}:{path}"),
            None => commit.to_owned(),
        };
        let modules = self.survey(&what, commit, &mut export.size)?;
        let mut read = self.local();
        read.env("GIT_INDEX_FILE", export.index)
            .args(["read-tree", &what]);
        self.run(read, FETCH, "read a tree of")?;
        let mut write = self.local();
        write
            .env("GIT_INDEX_FILE", export.index)
            .env("GIT_WORK_TREE", tree)
            .current_dir(tree);
        write.args([
            "-c",
            "core.bare=false",
            "checkout-index",
            "--all",
            "--force",
            "--quiet",
        ]);
        self.run(write, FETCH, "write the files of")?;
        let _ = fs::remove_file(export.index);
        if self.source.submodules && !modules.is_empty() {
            let addresses = self.addresses(commit)?;
            for module in modules {
                self.module(&module, &addresses, tree, export, depth + 1)?;
            }
        }
        Ok(())
    }

    /// What there is in a tree of submodules. Refuses what is too large before any of it is
    /// written.
    fn survey(&self, what: &str, commit: &str, size: &mut Size) -> Outcome<Vec<Module>> {
        let mut list = self.local();
        list.args(["ls-tree", "-r", "-l", "-z", "--full-tree", what]);
        let said = match (self.run(list, FETCH, "list the files of"), self.path) {
            (Err(_), Some(path)) => {
                let message = format!("there is no directory {path} in {commit} of {}", self.url);
                return Err(Failure::lasting(message));
            }
            (said, _) => said?,
        };
        let mut modules = Vec::new();
        for line in said.split_terminator('\0') {
            let (facts, path) = line.split_once('\t').unwrap_or((line, ""));
            let facts: Vec<&str> = facts.split_whitespace().collect();
            if let ["160000", _, commit, ..] = facts.as_slice() {
                modules.push(Module {
                    path: path.to_owned(),
                    commit: (*commit).to_owned(),
                });
            }
            size.files += 1;
            size.bytes += facts.get(3).and_then(|s| s.parse().ok()).unwrap_or(0);
        }
        let Size { files, bytes } = *size;
        let source = self.source;
        if bytes > source.max_size || files > source.max_files {
            return Err(Failure::lasting(format!(
                "{commit} has {files} files with {bytes} bytes; source-max-files = {} and source-max-size = {} are allowed",
                source.max_files, source.max_size
            )));
        }
        Ok(modules)
    }

    /// The addresses of submodules, by the path of each in the whole repository.
    fn addresses(&self, commit: &str) -> Outcome<HashMap<String, String>> {
        let mut list = self.local();
        list.args(["config", "--null", "--blob"]);
        list.arg(format!("{commit}:.gitmodules"));
        list.args(["--get-regexp", r"^submodule\..*\.(path|url)$"]);
        let said = self.run(list, QUESTION, "read .gitmodules of");
        let said = said.map_err(|e| Failure::lasting(e.message))?;
        let (mut paths, mut urls) = (HashMap::new(), HashMap::new());
        for setting in said.split_terminator('\0') {
            let (key, value) = setting.split_once('\n').unwrap_or((setting, ""));
            match key.rsplit_once('.') {
                Some((name, "path")) => drop(paths.insert(name.to_owned(), value.to_owned())),
                Some((name, _)) => drop(urls.insert(name.to_owned(), value.to_owned())),
                None => {}
            }
        }
        let found = paths.into_iter();
        Ok(found
            .filter_map(|(name, path)| Some((path, urls.remove(&name)?)))
            .collect())
    }

    /// Writes the files of a submodule to their place.
    fn module(
        &self,
        module: &Module,
        addresses: &HashMap<String, String>,
        tree: &Path,
        export: &mut Export<'_>,
        depth: usize,
    ) -> Outcome<()> {
        let Module { path, commit } = module;
        let whole = match self.path {
            Some(outer) => format!("{outer}/{path}"),
            None => path.clone(),
        };
        let bad = |how: String| Failure::lasting(format!("the submodule {whole} {how}"));
        if depth > DEEPEST {
            return Err(bad("lies too deep".to_owned()));
        }
        let address = addresses.get(&whole);
        let address = address.ok_or_else(|| bad("has no address in .gitmodules".to_owned()))?;
        let url = resolved(self.url, address);
        let remote =
            remote::parse(&url).map_err(|e| bad(format!("has the address {url}: it {e}")))?;
        let Remote::Git {
            url,
            login,
            reference: None,
            path: None,
        } = remote
        else {
            return Err(bad(format!(
                "has the address {url}, which is no repository"
            )));
        };
        // Who writes a repository is not to read others of this machine.
        if url.starts_with("file:") && !self.url.starts_with("file:") {
            return Err(bad(format!(
                "has the address {url}, a place of this machine"
            )));
        }
        let mut name = String::new();
        for byte in Sha256::digest(&url).iter().take(8) {
            let _ = write!(name, "{byte:02x}");
        }
        let git = Git {
            url: &url,
            // A secret is for its host.
            login: login
                .as_ref()
                .or(self.login.filter(|_| host(&url) == host(self.url))),
            reference: None,
            path: None,
            source: self.source,
            objects: self.objects.with_file_name("modules").join(name),
        };
        let tip = Tip {
            commit: commit.clone(),
            name: None,
            tag: None,
        };
        git.fetch(&tip)?;
        let at = tree.join(path);
        fs::create_dir_all(&at).map_err(Failure::io(format!("make {}", at.display())))?;
        git.export_into(commit, &at, export, depth)
    }

    /// git in the repository of objects.
    pub(super) fn local(&self) -> Command {
        let mut command = self.command();
        command.env("GIT_DIR", &self.objects);
        // It reads nothing there: it holds the lock. Without one it works all the same.
        if let Ok(lock) = self.lock()
            && flock(&lock, FlockOperation::NonBlockingLockShared).is_ok()
        {
            command.stdin(lock);
        }
        command
    }

    fn command(&self) -> Command {
        let mut command = Command::new("git");
        command.stdin(Stdio::null()).process_group(0);
        for name in [
            "GIT_DIR",
            "GIT_WORK_TREE",
            "GIT_INDEX_FILE",
            "GIT_ASKPASS",
            "SSH_ASKPASS",
        ] {
            command.env_remove(name);
        }
        let mut settings: Vec<(String, String)> = [
            ("core.hooksPath", "/dev/null"),
            ("core.fsmonitor", "false"),
            ("core.askPass", ""),
            ("submodule.recurse", "false"),
            ("fetch.recurseSubmodules", "false"),
            ("protocol.allow", "never"),
            ("http.lowSpeedLimit", "1000"),
            ("http.lowSpeedTime", "60"),
            ("transfer.fsckObjects", "true"),
            ("fetch.fsck.zeroPaddedFilemode", "warn"),
            ("advice.detachedHead", "false"),
            ("gc.auto", "0"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into();
        for protocol in GIT_PROTOCOLS {
            settings.push((format!("protocol.{protocol}.allow"), "always".into()));
        }
        if let Some(Login { user, password }) = self.login {
            // For this address alone: a redirect elsewhere does not get it.
            let header = base64::Engine::encode(
                &base64::engine::general_purpose::STANDARD,
                format!("{user}:{password}"),
            );
            settings.push(("credential.helper".into(), String::new()));
            settings.push((
                format!("http.{}.extraHeader", self.url),
                format!("Authorization: Basic {header}"),
            ));
        }
        command.env("GIT_CONFIG_COUNT", settings.len().to_string());
        for (n, (name, value)) in settings.iter().enumerate() {
            command.env(format!("GIT_CONFIG_KEY_{n}"), name);
            command.env(format!("GIT_CONFIG_VALUE_{n}"), value);
        }
        command.env("GIT_TERMINAL_PROMPT", "0").env("LC_ALL", "C");
        command.env("GIT_SSH_COMMAND", self.ssh());
        if self.url.starts_with("file:") {
            self.trust_owner(&mut command);
        }
        command
    }

    /// A repository of this machine may be somebody else's: the configuration names it, and that
    /// is what git asks for. The other end of git, which looks, reads only files.
    fn trust_owner(&self, command: &mut Command) {
        let path = self.objects.with_file_name("gitconfig");
        let text = "[include]\n\tpath = ~/.gitconfig\n[safe]\n\tdirectory = *\n";
        let write = || {
            // Its first use may be a question, before there is anything else.
            fs::create_dir_all(path.parent().unwrap_or(Path::new("/")))?;
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&path)?.write_all(text.as_bytes())
        };
        let there = fs::read_to_string(&path).is_ok_and(|t| t == text);
        if there || write().is_ok() {
            command.env("GIT_CONFIG_GLOBAL", path);
        }
    }

    fn ssh(&self) -> String {
        let mut ssh = "ssh -oBatchMode=yes -oConnectTimeout=15 -oServerAliveInterval=15".to_owned();
        let quoted =
            |path: &Path| format!("'{}'", path.display().to_string().replace('\'', "'\\''"));
        if let Some(key) = &self.source.ssh_key {
            ssh.push_str(&format!(" -oIdentitiesOnly=yes -i {}", quoted(key)));
        }
        if let Some(hosts) = &self.source.known_hosts {
            ssh.push_str(" -oStrictHostKeyChecking=yes -oGlobalKnownHostsFile=/dev/null");
            ssh.push_str(&format!(" -oUserKnownHostsFile={}", quoted(hosts)));
        }
        ssh
    }

    /// Runs git; what it prints. What it says goes into the failure.
    pub(super) fn run(&self, command: Command, timeout: Duration, doing: &str) -> Outcome<String> {
        let (status, out, err) = finish(command, timeout)?;
        match status {
            Some(status) if status.success() => Ok(out),
            Some(status) => {
                let said = explain(&err).unwrap_or_else(|| format!("git ended with {status}"));
                Err(Failure::new(format!("cannot {doing} {}: {said}", self.url)))
            }
            None => Err(Failure::new(format!(
                "cannot {doing} {}: it took longer than {timeout:?}",
                self.url
            ))),
        }
    }

    /// Asks git something that may be true or not, and what it says of that.
    pub(super) fn ask(&self, command: Command) -> Outcome<(bool, String)> {
        let (status, _, err) = finish(command, QUESTION)?;
        Ok((status.is_some_and(|s| s.success()), err))
    }
}

/// An address in `.gitmodules` may be relative to that of the repository.
fn resolved(base: &str, address: &str) -> String {
    let mut base = base.trim_end_matches('/');
    let mut rest = address;
    if !rest.starts_with("./") && !rest.starts_with("../") {
        return address.to_owned();
    }
    loop {
        if let Some(same) = rest.strip_prefix("./") {
            rest = same;
        } else if let Some(up) = rest.strip_prefix("../") {
            rest = up;
            base = match (base.rfind('/'), base.rfind(':')) {
                (Some(at), _) => &base[..at],
                // `git@host:app.git`
                (None, Some(at)) => &base[..=at],
                (None, None) => base,
            };
        } else {
            let between = if base.ends_with(':') { "" } else { "/" };
            return format!("{base}{between}{rest}");
        }
    }
}

/// Scheme and host of an address.
fn host(url: &str) -> Option<&str> {
    let (scheme, rest) = url.split_once("://")?;
    let end = rest.find('/').unwrap_or(rest.len());
    Some(&url[..scheme.len() + 3 + end])
}

/// Runs git to its end: how that was (none: it took too long), what it printed and said.
fn finish(
    mut command: Command,
    timeout: Duration,
) -> Outcome<(Option<ExitStatus>, String, String)> {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let spawned = command.spawn();
    let mut child = spawned.map_err(Failure::io("start git (is it installed?)"))?;
    let out = collect(child.stdout.take());
    let err = child.stderr.take();
    let err = thread::spawn(move || err.map(listen).unwrap_or_default());
    let status = wait(&mut child, Some(timeout));
    let (out, err) = (
        out.join().unwrap_or_default(),
        err.join().unwrap_or_default(),
    );
    Ok((status, out, err))
}

type Collected = thread::JoinHandle<String>;

fn collect(from: Option<impl Read + Send + 'static>) -> Collected {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// What git says, line by line, but for how far it has come: that goes to those who watch.
fn listen(from: impl Read) -> String {
    let mut said = String::new();
    let mut line = Vec::new();
    let mut finish_line = |line: &mut Vec<u8>| {
        let text = String::from_utf8_lossy(line);
        match progress_in(&text) {
            Some(progress) => progress::report(|| format!("fetch: {progress}")),
            None => {
                said.push_str(&text);
                said.push('\n');
            }
        }
        line.clear();
    };
    for byte in BufReader::new(from).bytes() {
        match byte {
            Ok(b'\r' | b'\n') => finish_line(&mut line),
            Ok(byte) => line.push(byte),
            Err(_) => break,
        }
    }
    if !line.is_empty() {
        finish_line(&mut line);
    }
    said
}

/// What a line of git says of how far it has come, if that is what it says.
fn progress_in(line: &str) -> Option<&str> {
    let line = line.strip_prefix("remote: ").unwrap_or(line).trim();
    let (what, _) = line.split_once(": ").unwrap_or((line, ""));
    let is_progress = matches!(
        what,
        "Enumerating objects"
            | "Counting objects"
            | "Compressing objects"
            | "Receiving objects"
            | "Unpacking objects"
            | "Resolving deltas"
    );
    (is_progress || line.starts_with("Total ")).then_some(line)
}

/// What git said that matters to people, in one line, and what to do about it.
fn explain(said: &str) -> Option<String> {
    let lines: Vec<&str> = said
        .lines()
        .map(|l| {
            l.trim_start_matches("fatal: ")
                .trim_start_matches("error: ")
                .trim()
        })
        .filter(|l| {
            !l.is_empty()
                && !l.starts_with("Please make sure")
                && *l != "and the repository exists."
        })
        .collect();
    let mut text: String = lines.join("; ");
    text.truncate(text.trim_end_matches(['.', ';', ' ']).len());
    if text.len() > SAID {
        let end = (0..=SAID)
            .rev()
            .find(|i| text.is_char_boundary(*i))
            .unwrap_or(0);
        text.truncate(end);
    }
    if said.contains("Host key verification failed") {
        text.push_str(" (source-known-hosts = FILE names the host's key)");
    }
    if said.contains("could not read Username") || said.contains("Authentication failed") {
        text.push_str(" (source-token-file = FILE names a token)");
    }
    if said.contains("Permission denied (publickey") {
        text.push_str(" (source-ssh-key = FILE names a key that the host knows)");
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::{host, listen, resolved};

    #[test]
    fn how_far_git_has_come_is_not_what_it_says() {
        let said = "remote: Enumerating objects: 3, done.\nremote: Counting objects:  33% (1/3)\r\
                    remote: Counting objects: 100% (3/3), done.\nremote: Welcome\n\
                    remote: Total 3 (delta 0), reused 0 (delta 0)\n\
                    Receiving objects:  50% (1/2), 1.00 MiB | 2.00 MiB/s\rfatal: early EOF";
        assert_eq!(
            listen(said.as_bytes()),
            "remote: Welcome\nfatal: early EOF\n"
        );
    }

    #[test]
    fn addresses_of_submodules_may_be_relative() {
        for (base, address, whole) in [
            (
                "https://h/team/app.git",
                "../lib.git",
                "https://h/team/lib.git",
            ),
            (
                "https://h/team/app.git/",
                "../../x/lib.git",
                "https://h/x/lib.git",
            ),
            ("git@h:team/app.git", "../lib.git", "git@h:team/lib.git"),
            ("git@h:app.git", "../lib.git", "git@h:lib.git"),
            (
                "https://h/app.git",
                "./lib.git",
                "https://h/app.git/lib.git",
            ),
            (
                "https://h/app.git",
                "https://o/lib.git",
                "https://o/lib.git",
            ),
        ] {
            assert_eq!(resolved(base, address), whole);
        }
    }

    #[test]
    fn a_secret_is_for_one_host() {
        assert_eq!(host("https://h:8/a/b"), Some("https://h:8"));
        assert_ne!(host("https://h/a"), host("http://h/a"));
        assert_ne!(host("https://h/a"), host("https://h.evil/a"));
    }
}
