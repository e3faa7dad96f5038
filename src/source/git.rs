//! Code from git: by the git command, kept on a short leash.
//!
//! Hooks, submodules, prompts and protocols other than those of the configuration are off; what
//! is fetched is a commit by its number, so that nothing that moves meanwhile can mix.

use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::hooks::wait;
use super::{Failure, Outcome};
use crate::config::model::Source;
use crate::config::remote::{GIT_PROTOCOLS, Login};

/// How long a question may take.
const QUESTION: Duration = Duration::from_secs(60);
/// How long fetching may take.
const FETCH: Duration = Duration::from_secs(3600);
/// How many commits are listed at most.
const LOG: u32 = 50;
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
}

impl Git<'_> {
    /// What the remote has: one question, and nothing is written.
    pub fn tip(&self) -> Outcome<Tip> {
        let full = |r: &str| matches!(r.len(), 40 | 64) && r.bytes().all(|b| b.is_ascii_hexdigit());
        if let Some(commit) = self.reference.filter(|r| full(r)) {
            let commit = commit.to_ascii_lowercase();
            return Ok(Tip { commit, name: None });
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
                let name = name.trim_end_matches("^{}").to_owned();
                return Ok(Tip {
                    commit: (*commit).to_owned(),
                    name: Some(name),
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
        if !self.objects.join("HEAD").exists() {
            let mut init = self.command();
            init.args(["init", "--quiet", "--bare", "--template=", "--"])
                .arg(&self.objects);
            self.run(init, QUESTION, "make a repository for")?;
        }
        if self.has(&tip.commit) {
            return Ok(());
        }
        let fetch = |what: &str| {
            let mut command = self.local();
            command.args([
                "fetch",
                "--quiet",
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
        let by_number = fetch(&tip.commit);
        if by_number.is_err()
            && let Some(name) = &tip.name
        {
            // Servers need not give out a commit by its number.
            fetch(name)?;
        }
        if self.has(&tip.commit) {
            return Ok(());
        }
        by_number?;
        Err(Failure::new(format!(
            "{} has moved on while {} was fetched; the next update takes what is there then",
            self.url, tip.commit
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

    fn has(&self, commit: &str) -> bool {
        let mut command = self.local();
        command.args(["cat-file", "-e", &format!("{commit}^{{commit}}")]);
        command.stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    /// Writes the files of a commit into an empty directory.
    pub fn export(&self, commit: &str, tree: &Path) -> Outcome<()> {
        let what = match self.path {
            Some(path) => format!("{commit}:{path}"),
            None => commit.to_owned(),
        };
        self.check_size(&what, commit)?;
        let index = tree.with_extension("index");
        let mut read = self.local();
        read.env("GIT_INDEX_FILE", &index)
            .args(["read-tree", &what]);
        self.run(read, FETCH, "read a tree of")?;
        let mut write = self.local();
        write
            .env("GIT_INDEX_FILE", &index)
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
        let _ = fs::remove_file(&index);
        Ok(())
    }

    /// Refuses what is too large before any of it is written.
    fn check_size(&self, what: &str, commit: &str) -> Outcome<()> {
        let mut list = self.local();
        list.args(["ls-tree", "-r", "-l", "-z", "--full-tree", what]);
        let said = match (self.run(list, FETCH, "list the files of"), self.path) {
            (Err(_), Some(path)) => {
                let message = format!("there is no directory {path} in {commit} of {}", self.url);
                return Err(Failure::lasting(message));
            }
            (said, _) => said?,
        };
        let (mut files, mut bytes) = (0_u64, 0_u64);
        for line in said.split_terminator('\0') {
            files += 1;
            let size = line
                .split('\t')
                .next()
                .and_then(|l| l.split_whitespace().nth(3));
            bytes += size.and_then(|s| s.parse::<u64>().ok()).unwrap_or(0);
        }
        let source = self.source;
        if bytes > source.max_size || files > source.max_files {
            return Err(Failure::lasting(format!(
                "{commit} has {files} files with {bytes} bytes; source-max-files = {} and source-max-size = {} are allowed",
                source.max_files, source.max_size
            )));
        }
        Ok(())
    }

    /// git in the repository of objects.
    fn local(&self) -> Command {
        let mut command = self.command();
        command.env("GIT_DIR", &self.objects);
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
    fn run(&self, mut command: Command, timeout: Duration, doing: &str) -> Outcome<String> {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let spawned = command.spawn();
        let mut child = spawned.map_err(Failure::io("start git (is it installed?)"))?;
        let out = collect(child.stdout.take());
        let err = collect(child.stderr.take());
        let status = wait(&mut child, Some(timeout));
        let (out, err) = (
            out.join().unwrap_or_default(),
            err.join().unwrap_or_default(),
        );
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
}

type Collected = std::thread::JoinHandle<String>;

fn collect(from: Option<impl Read + Send + 'static>) -> Collected {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut from) = from {
            let _ = from.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
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
