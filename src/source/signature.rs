//! Whether a commit or a tag was signed by somebody whom the configuration names.
//!
//! git looks at the signature, with nothing but the keys of `source-verify`: OpenPGP public keys
//! in a key ring that is made for the question, or a file of SSH keys as `ssh-keygen` calls
//! `allowed_signers`. What the program's user trusts does not count.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::git::{Git, QUESTION, Tip};
use super::{Failure, Outcome};

/// Makes sure of a commit that was fetched. Says whose signature it has.
///
/// # Errors
/// Nobody has signed it, or somebody else; or this cannot be found out.
pub fn verify(git: &Git<'_>, tip: &Tip, keys: &Path) -> Outcome<String> {
    let text = fs::read(keys).map_err(Failure::io(format!("read {}", keys.display())))?;
    let is_openpgp = text.first().is_some_and(|first| first & 0x80 != 0)
        || String::from_utf8_lossy(&text).contains("-----BEGIN PGP PUBLIC KEY BLOCK-----");
    let signers = Signers {
        git,
        keys,
        ring: is_openpgp.then(|| git.objects.with_file_name("keys")),
    };
    let said = signers.make_ring().and_then(|()| signers.look(tip));
    signers.delete_ring();
    said
}

/// Those who may sign.
struct Signers<'a> {
    git: &'a Git<'a>,
    keys: &'a Path,
    /// Where gpg has their keys, if they are OpenPGP's.
    ring: Option<PathBuf>,
}

impl Signers<'_> {
    fn make_ring(&self) -> Outcome<()> {
        let Some(ring) = &self.ring else {
            return Ok(());
        };
        self.delete_ring();
        let made = DirBuilder::new().mode(0o700).create(ring);
        made.map_err(Failure::io(format!("make {}", ring.display())))?;
        let mut import = Command::new("gpg");
        import.args(["--batch", "--quiet", "--no-autostart", "--homedir"]);
        import.arg(ring).arg("--import").arg(self.keys);
        let said = import.output();
        let said = said.map_err(Failure::io("start gpg (is it installed?)"))?;
        if said.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&said.stderr).trim().to_owned();
        let keys = self.keys.display();
        Err(Failure::new(format!(
            "cannot read the keys in {keys}: {why}"
        )))
    }

    fn delete_ring(&self) {
        if let Some(ring) = &self.ring {
            let _ = fs::remove_dir_all(ring);
        }
    }

    /// The tag's signature, or the commit's.
    fn look(&self, tip: &Tip) -> Outcome<String> {
        if let Some(tag) = &tip.tag
            && let Ok(said) = self.tag(tag, tip)
        {
            return Ok(said);
        }
        self.ask(&["verify-commit", &tip.commit])
    }

    fn tag(&self, tag: &str, tip: &Tip) -> Outcome<String> {
        self.git.fetch_object(tag, tip)?;
        // A tag could be another one that was signed, under this one's name.
        let mut show = self.git.local();
        show.args(["cat-file", "tag", tag]);
        let text = self.git.run(show, QUESTION, "read a tag of")?;
        let head = text.split("\n\n").next().unwrap_or_default();
        let says = |what: &str, value: &str| head.lines().any(|l| l == format!("{what} {value}"));
        let name = tip.name.as_deref().unwrap_or_default();
        let name = name.strip_prefix("refs/tags/").unwrap_or(name);
        if !says("object", &tip.commit) || !says("tag", name) {
            return Err(Failure::lasting(format!("the tag {name} is another one")));
        }
        self.ask(&["verify-tag", tag])
    }

    fn ask(&self, words: &[&str]) -> Outcome<String> {
        let signers = self.keys.display().to_string();
        let mut verify = self.git.local();
        // Nothing of what its user has set counts. A key that is in the ring is trusted; of SSH
        // keys git itself tells those that are in the file from others.
        let settings = match &self.ring {
            Some(ring) => {
                verify.env("GNUPGHOME", ring);
                ["gpg", "gpg", "false", "undefined"]
            }
            None => ["false", "false", "ssh-keygen", "fully"],
        };
        let names = ["program", "openpgp.program", "ssh.program", "minTrustLevel"];
        for (name, value) in names.iter().zip(settings) {
            verify.args(["-c", &format!("gpg.{name}={value}")]);
        }
        verify.args(["-c", "gpg.x509.program=false"]);
        verify.args(["-c", &format!("gpg.ssh.allowedSignersFile={signers}")]);
        verify.args(words);
        let (good, said) = self.git.ask(verify)?;
        if good {
            let line = said.lines().find(|line| line.contains("Good "));
            let line = line.unwrap_or("the signature is good");
            return Ok(line.trim_start_matches("gpg: ").trim().to_owned());
        }
        // Without the program nothing is known of the signature.
        if said.contains("cannot run") || said.contains("is needed for ssh") {
            let why = said.trim().replace('\n', "; ");
            return Err(Failure::new(format!("cannot look at the signature: {why}")));
        }
        let commit = words.last().copied().unwrap_or_default();
        Err(Failure::lasting(match said.trim() {
            "" => format!("{commit} is not signed (source-verify = {signers})"),
            said => {
                let said = said.replace('\n', "; ");
                format!("{commit} has no good signature of somebody in {signers}: {said}")
            }
        }))
    }
}
