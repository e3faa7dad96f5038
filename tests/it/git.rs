//! Repositories: who has signed what, and what belongs to them.

use std::fs;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{BOT_GID, BOT_UID, Daemon, OWNER, chmod, finish};
use crate::sources::{Repository, current, follow, update, why};

/// Makes an SSH key pair; the private one's path.
fn ssh_key(d: &Daemon, name: &str) -> PathBuf {
    let key = d.path(format!("shared/{name}"));
    let mut keygen = Command::new("ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", name, "-f"]);
    keygen.arg(&key);
    finish(keygen).exits(0);
    key
}

/// Lets these sign: the content of a file for `source-verify`.
fn let_sign(d: &Daemon, keys: &[&Path]) {
    let line = |key: &&Path| {
        let public = fs::read_to_string(key.with_extension("pub")).unwrap();
        let name = key.file_name().unwrap().to_string_lossy().into_owned();
        format!("{name}@example.org {public}")
    };
    let lines: String = keys.iter().map(line).collect();
    fs::write(d.path("shared/signers"), lines).unwrap();
}

impl Repository {
    /// Commits as the one who has this SSH key.
    fn signed(&self, text: &str, key: &Path) -> String {
        self.commit(text);
        let key = format!("user.signingKey={}", key.display());
        self.git(&[
            "-c",
            "gpg.format=ssh",
            "-c",
            &key,
            "commit",
            "-q",
            "--amend",
            "-S",
            "-m",
            text,
        ]);
        self.git(&["rev-parse", "HEAD"])
    }
}

const VERIFY: &str = "source-verify = @S@/signers\n";

#[test]
fn only_commits_that_somebody_named_has_signed_are_used() {
    let (d, repository) = follow("#main", VERIFY);
    let (alice, mallory) = (ssh_key(&d, "alice"), ssh_key(&d, "mallory"));
    let missing = update(&d).exits(1);
    assert!(missing.errors().contains("cannot read"), "{missing:?}");
    let_sign(&d, &[&alice]);
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("is not signed"), "{refused:?}");
    assert_eq!(current(&d), "");

    repository.signed("two", &alice);
    let done = update(&d).exits(0).text();
    let verify = done.lines().find(|l| l.starts_with("verify: "));
    assert!(verify.unwrap().contains("alice@example.org"), "{done}");
    assert_eq!(current(&d), "two");

    repository.signed("three", &mallory);
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("no good signature"),
        "{refused:?}"
    );
    assert_eq!(current(&d), "two");
    assert!(why(&d).contains("no good signature"), "{}", why(&d));
    // It is no better for being asked for again, or seriously.
    update(&d).exits(1);
    d.ask(OWNER, ["app", "update", "--force"]).exits(1);
    assert_eq!(current(&d), "two");

    // Whoever changes the file changes what is good.
    let_sign(&d, &[&alice, &mallory]);
    update(&d).exits(0);
    assert_eq!(current(&d), "three");
    assert!(!d.path("deploy/.deployer/keys").exists());
}

#[test]
fn what_the_programs_user_trusts_does_not_count() {
    root_only!(what_the_programs_user_trusts_does_not_count);
    let (d, repository) = follow(
        "#main",
        &format!("{VERIFY}env-GIT_CONFIG_SYSTEM = @S@/home/gitconfig\n"),
    );
    let (alice, mallory) = (ssh_key(&d, "alice"), ssh_key(&d, "mallory"));
    let_sign(&d, &[&mallory]);
    let home = d.path("shared/home");
    fs::create_dir(&home).unwrap();
    fs::rename(d.path("shared/signers"), home.join("mine")).unwrap();
    fs::write(
        home.join("gitconfig"),
        format!(
            "[gpg \"ssh\"]\n\tallowedSignersFile = {0}/mine\n\tprogram = /bin/true\n\
             [gpg]\n\tprogram = /bin/true\n\tminTrustLevel = undefined\n",
            home.display()
        ),
    )
    .unwrap();
    chmod(&home, 0o755);
    let_sign(&d, &[&alice]);
    repository.signed("two", &mallory);
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("no good signature"),
        "{refused:?}"
    );
}

#[test]
fn a_signed_tag_vouches_for_its_commit_under_its_own_name() {
    let (d, repository) = follow("#v1", VERIFY);
    let alice = ssh_key(&d, "alice");
    let_sign(&d, &[&alice]);
    let key = format!("user.signingKey={}", alice.display());
    repository.git(&[
        "-c",
        "gpg.format=ssh",
        "-c",
        &key,
        "tag",
        "-s",
        "-m",
        "1",
        "v1",
    ]);
    update(&d).exits(0);
    assert_eq!(current(&d), "one");
    // Somebody without the key shows the signed tag under another name, and moves the first.
    repository.git(&["update-ref", "refs/tags/v2", "refs/tags/v1"]);
    repository.commit("two");
    repository.git(&["tag", "-f", "v1"]);
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains("is not signed"), "{refused:?}");
    d.configure(&format!(
        "[prog-app]\nsource = @S@/origin.git#v2\ndeploy-dir = @D@/deploy\n{VERIFY}"
    ));
    d.ask(OWNER, ["-r"]).exits(0);
    // What is current was good under its own name.
    update(&d).exits(0);
    let refused = d.ask(OWNER, ["app", "update", "--force"]).exits(1);
    assert!(refused.errors().contains("is not signed"), "{refused:?}");
    assert_eq!(current(&d), "one");
}

#[test]
fn openpgp_signatures_count_as_well() {
    root_only!(openpgp_signatures_count_as_well);
    let (d, repository) = follow("#main", VERIFY);
    let home = d.path("gnupg");
    fs::create_dir(&home).unwrap();
    chmod(&home, 0o700);
    let gpg = |words: &[&str]| {
        let mut gpg = Command::new("gpg");
        gpg.args(["--batch", "--quiet", "--passphrase", "", "--homedir"]);
        gpg.arg(&home).args(words);
        finish(gpg).exits(0).text()
    };
    gpg(&[
        "--quick-generate-key",
        "alice@example.org",
        "ed25519",
        "sign",
    ]);
    fs::write(
        d.path("shared/signers"),
        gpg(&["--armor", "--export", "alice@example.org"]),
    )
    .unwrap();
    repository.commit("two");
    let mut sign = Command::new("git");
    sign.env("GNUPGHOME", &home).arg("-C").arg(&repository.dir);
    sign.args(["-c", "user.name=x", "-c", "user.email=alice@example.org"]);
    sign.args(["-c", "user.signingKey=alice@example.org"]);
    sign.args([
        "-c",
        "safe.directory=*",
        "commit",
        "-q",
        "--amend",
        "-S",
        "-m",
        "two",
    ]);
    let signed = finish(sign);
    let mut stop = Command::new("gpgconf");
    stop.arg("--homedir").arg(&home).args(["--kill", "all"]);
    finish(stop).exits(0);
    signed.exits(0);
    let done = update(&d).exits(0).text();
    assert!(
        done.contains("Good signature from \"alice@example.org\""),
        "{done}"
    );
    assert_eq!(current(&d), "two");
    repository.commit("three");
    update(&d).exits(1);
    // A key that nobody can read is nobody's fault but the file's: it is tried again.
    fs::write(
        d.path("shared/signers"),
        "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nnonsense\n-----END PGP PUBLIC KEY BLOCK-----\n",
    )
    .unwrap();
    let refused = update(&d).exits(1);
    assert!(
        refused.errors().contains("cannot read the keys"),
        "{refused:?}"
    );
}

impl Repository {
    /// Another repository beside this one.
    fn beside(&self, name: &str, text: &str) -> Self {
        let other = Self {
            dir: self.dir.with_file_name(name),
        };
        fs::create_dir(&other.dir).unwrap();
        other.git(&["init", "-q", "-b", "main"]);
        other.commit(text);
        if crate::harness::root() {
            chown(&other.dir, Some(BOT_UID), Some(BOT_GID)).unwrap();
        }
        other
    }

    /// Puts a commit of another repository at a path, as `git submodule` does.
    fn add_module(&self, path: &str, address: &str, commit: &str) {
        let file = self.dir.join(".gitmodules");
        let mut text = fs::read_to_string(&file).unwrap_or_default();
        text.push_str(&format!(
            "[submodule \"{path}\"]\n\tpath = {path}\n\turl = {address}\n"
        ));
        fs::write(file, text).unwrap();
        self.git(&["add", ".gitmodules"]);
        self.git(&[
            "update-index",
            "--add",
            "--cacheinfo",
            &format!("160000,{commit},{path}"),
        ]);
        self.git(&["commit", "-qm", "a submodule"]);
    }
}

fn module_file(d: &Daemon, path: &str) -> Option<String> {
    fs::read_to_string(d.path("deploy/current").join(path)).ok()
}

#[test]
fn submodules_come_if_they_are_asked_for() {
    let (d, repository) = follow("#main", "");
    let inner = repository.beside("inner.git", "inner");
    let lib = repository.beside("lib.git", "lib");
    lib.add_module(
        "vendor/inner",
        "../inner.git",
        &inner.git(&["rev-parse", "HEAD"]),
    );
    let pinned = lib.git(&["rev-parse", "HEAD"]);
    // Not what its branch has now: what the commit says.
    lib.commit("later");
    repository.add_module("libs/lib", "../lib.git", &pinned);
    update(&d).exits(0);
    assert_eq!(module_file(&d, "libs/lib/app"), None);

    let section = |source: &str, keys: &str| {
        d.configure(&format!(
            "[prog-app]\nsource = @S@/{source}\ndeploy-dir = @D@/deploy\nschedule-update = none\n\
             source-submodules = yes\n{keys}"
        ));
        d.ask(OWNER, ["-r"]).exits(0);
    };
    section("origin.git#main", "");
    d.ask(OWNER, ["app", "update", "--force"]).exits(0);
    assert_eq!(module_file(&d, "libs/lib/app").as_deref(), Some("lib"));
    let deep = module_file(&d, "libs/lib/vendor/inner/app");
    assert_eq!(deep.as_deref(), Some("inner"));
    d.ask(OWNER, ["VERIFY", "app"]).exits(0);

    // Below the directory that is meant, too.
    section("origin.git/libs#main", "");
    d.ask(OWNER, ["app", "update", "--force"]).exits(0);
    assert_eq!(module_file(&d, "lib/app").as_deref(), Some("lib"));

    // All of it together has to fit.
    section("origin.git#main", "source-max-files = 12\n");
    let refused = d.ask(OWNER, ["app", "update", "--force"]).exits(1);
    assert!(refused.errors().contains("source-max-files"), "{refused:?}");
}

#[test]
fn a_submodule_with_a_strange_address_is_refused() {
    let (d, repository) = follow("#main", "source-submodules = yes\n");
    let lib = repository.beside("lib.git", "lib");
    let commit = lib.git(&["rev-parse", "HEAD"]);
    let before = repository.git(&["rev-parse", "HEAD"]);
    for address in [
        "ext::sh -c 'echo pwned >> @S@/trace'",
        "-uecho",
        "--upload-pack=x",
        "../../../../../../x",
    ] {
        repository.git(&["reset", "-q", "--hard", &before]);
        repository.add_module("lib", &d.expand(address), &commit);
        update(&d).exits(1);
        assert_eq!(current(&d), "", "{address}");
    }
    assert!(d.trace().is_empty());
    // One that is named nowhere.
    repository.git(&["reset", "-q", "--hard", &before]);
    let module = format!("160000,{commit},lib");
    repository.git(&["update-index", "--add", "--cacheinfo", &module]);
    repository.git(&["commit", "-qm", "nowhere"]);
    let refused = update(&d).exits(1);
    assert!(refused.errors().contains(".gitmodules"), "{refused:?}");
}
