//! The examples that come with deployer do what they say.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::harness::{
    ALICE, BOT, BOT_GID, BOT_UID, CAROL, OWNER, Site, chmod, executable, finish, wait_for,
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
