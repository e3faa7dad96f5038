//! The examples that come with deployer do what they say.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{
    ALICE, BOB, BOT, BOT_GID, BOT_UID, CAROL, OWNER, Site, User, chmod, executable, finish,
    wait_for,
};

fn example(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("etc/examples")
        .join(name);
    fs::read_to_string(path).unwrap()
}

fn git(dir: &Path, words: &[&str]) {
    let mut command = Command::new("git");
    command
        .arg("-C")
        .arg(dir)
        .args(["-c", "user.name=x", "-c", "user.email=x@x"]);
    finish({
        command.args(words);
        command
    })
    .exits(0);
}

/// A name server first, then the web server, as another user; a deploy script with a branch and
/// documentation, which restarts the web server. All without sudo.
#[test]
fn the_site_is_deployed_by_developers_as_deploybot() {
    root_only!(the_site_is_deployed_by_developers_as_deploybot);
    let site = Site::new();
    let srv = site.path("srv");
    for dir in ["bin", "code"] {
        fs::create_dir_all(srv.join(dir)).unwrap();
    }
    // The repository that it is deployed from.
    let origin = site.path("origin");
    fs::create_dir_all(origin.join("docs")).unwrap();
    git(&origin, &["init", "-q", "-b", "master"]);
    fs::write(origin.join("page"), "one\n").unwrap();
    fs::write(origin.join("docs/index"), "read me\n").unwrap();
    git(&origin, &["add", "."]);
    git(&origin, &["commit", "-qm", "first"]);
    git(&site.path("srv/code"), &["init", "-q"]);
    git(
        &site.path("srv/code"),
        &["remote", "add", "origin", &origin.to_string_lossy()],
    );
    let here = |text: &str| {
        text.replace("/srv/site", &srv.to_string_lossy())
            .replace("deploybot", BOT)
            .replace("developers", "54399")
            .replace(
                "deployer site",
                &format!(
                    "{} --socket {} site",
                    site.bin().display(),
                    site.socket().display()
                ),
            )
    };
    executable(&srv.join("bin/deploy"), here(&example("deploy")).as_bytes());
    executable(
        &srv.join("bin/names"),
        site.expand("#!/bin/sh\necho names >> @S@/trace; printf READY=1 | socat -u - ABSTRACT-SENDTO:${NOTIFY_SOCKET#@}\nexec sleep 1000\n").as_bytes(),
    );
    executable(
        &srv.join("bin/web"),
        site.expand(&format!(
            "#!/bin/sh\necho web $(cat {}/code/page) >> @S@/trace; echo >&3\nexec sleep 1000\n",
            srv.display()
        ))
        .as_bytes(),
    );
    for dir in [&srv, &origin] {
        let mut chown = Command::new("chown");
        chown.arg("-R").arg(format!("{BOT_UID}:{BOT_GID}")).arg(dir);
        finish(chown).exits(0);
        chmod(dir, 0o755);
    }
    site.configure(&here(&example("site.cfg")));
    let d = site.start();
    d.await_trace("web", 1);
    assert_eq!(d.trace(), ["names", "web"]);

    // Carol is a developer by a supplementary group, Alice is none.
    let deployed = d.ask(CAROL, ["RUN", "site"]).exits(0);
    assert!(
        deployed.text().starts_with("deployed ") && deployed.text().contains("first"),
        "{deployed:?}"
    );
    d.await_trace("web one", 1);
    assert!(!srv.join("docs").exists());
    git(
        &origin,
        &[
            "-c",
            &format!("safe.directory={}", origin.display()),
            "checkout",
            "-qb",
            "fix",
        ],
    );
    fs::write(origin.join("page"), "two\n").unwrap();
    git(
        &origin,
        &[
            "-c",
            &format!("safe.directory={}", origin.display()),
            "commit",
            "-qam",
            "second",
        ],
    );
    let deployed = d
        .ask(CAROL, ["RUN", "site", "branch=fix", "docs=yes"])
        .exits(0);
    assert!(
        deployed.text().contains("second") && deployed.text().contains("documentation copied"),
        "{deployed:?}"
    );
    d.await_trace("web two", 1);
    assert_eq!(
        fs::read_to_string(srv.join("docs/index")).unwrap(),
        "read me\n"
    );

    d.ask(CAROL, ["site", "status"]).exits(0);
    d.ask(CAROL, ["names", "status"]).exits(0);
    d.ask(CAROL, ["names", "stop"]).exits(125);
    d.ask(ALICE, ["RUN", "site"]).exits(125);
    // The option of the script that was asked for by a word is an input here.
    d.ask(CAROL, ["RUN", "site", "--", "-d"]).exits(125);
    d.ask(OWNER, ["site", "kill", "KILL"]).exits(0);
    wait_for("the web server is there again", || {
        (d.trace().iter().filter(|l| *l == "web two").count() == 2).then_some(())
    });
}

/// The configurations that stand in a document, as blocks behind `::`.
fn configurations(document: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(document);
    let text = fs::read_to_string(path).unwrap();
    let mut blocks = vec![String::new()];
    for line in text.lines() {
        match line.strip_prefix("    ") {
            Some(line) => {
                let block = blocks.last_mut().unwrap();
                block.push_str(line);
                block.push('\n');
            }
            None if line.is_empty() => blocks.last_mut().unwrap().push('\n'),
            None => blocks.push(String::new()),
        }
    }
    blocks.retain(|block| block.lines().any(|l| l.starts_with("[prog-")));
    blocks
}

/// What the manual and the README show works as they say.
#[test]
fn the_configurations_in_the_documents_work() {
    root_only!(the_configurations_in_the_documents_work);
    for (document, command) in [
        ("README.rst", "cmd-run = echo \"$INPUT_BRANCH as $USER\"\n"),
        ("doc/manual.rst", ""),
    ] {
        let found = configurations(document);
        assert_eq!(found.len(), 1, "{document}: {found:?}");
        let site = Site::new();
        let deploy = site.path("shared/deploy");
        executable(&deploy, b"#!/bin/sh\necho \"$1 as $USER\"\n");
        // Names that are not on every machine, and paths that are not ours.
        let root = site.path("root").display().to_string();
        let text = found[0]
            .replace("deploybot", BOT)
            .replace("developers", "60")
            .replace("staff", "60")
            .replace("/usr/share/deployer", &root)
            .replace("/srv/app/deploy", &deploy.display().to_string());
        site.configure_all(&format!(
            "socket-path = @D@/socket\nstate-dir = @D@/state\nlog-dir = @D@/log\n{text}{command}"
        ));
        let d = site.start();
        let said = d.ask(BOB, ["RUN", "app"]).exits(0);
        assert_eq!(said.text(), format!("main as {BOT}\n"), "{document}");
        let said = d.ask(BOB, ["RUN", "app", "branch=x/1"]).exits(0);
        assert_eq!(said.text(), format!("x/1 as {BOT}\n"), "{document}");
        d.ask(BOB, ["RUN", "app", "branch=x;y"]).exits(125);
        d.ask(CAROL, ["RUN", "app"]).exits(125);
    }
}

/// The example of procmgr's manual.
#[test]
fn the_example_of_procmgr_works_unchanged() {
    root_only!(the_example_of_procmgr_works_unchanged);
    let text = include_str!("../fixtures/config/seed-example.cfg");
    let site = Site::new();
    let server = site.path("shared/game.server");
    let body = "#!/bin/sh\ntrap 'echo reloaded >> @S@/trace' HUP\necho up >> @S@/trace\n\
         while :; do sleep 0.1; done\n";
    executable(&server, site.expand(body).as_bytes());
    let text = text
        .replace("/var/local/procmgr-local", "@D@/socket")
        .replace("/home/johndoe/bin/game.server", "@S@/game.server");
    site.configure_all(&format!(
        "state-dir = @D@/state\nlog-dir = @D@/log\nroot = @D@/root\n{text}"
    ));
    let john = User {
        uid: 1000,
        gid: 1000,
        groups: &[],
    };
    let wheel = User {
        uid: 1001,
        gid: 1001,
        groups: &[99],
    };
    let d = site.start();
    d.ask(CAROL, ["game-server", "start"]).exits(125);
    d.ask(john, ["game-server", "start"]).exits(0);
    d.await_trace("up", 1);
    d.ask(wheel, ["game-server", "reload"]).exits(0);
    d.await_trace("reloaded", 1);
    let status = d.ask(wheel, ["game-server", "status"]).exits(0);
    assert_eq!(status.text(), "running\n");
    d.ask(john, ["game-server", "stop"]).exits(0);
    d.ask(john, ["game-server", "status"]).exits(1);
}
