//! Configurations as people write them, and the exact words they get for it.

use std::path::{Path, PathBuf};

use deployer::config::check::{Checked, Names, check};

/// The accounts the fixtures speak of, and some that every Debian has.
struct Accounts;

impl Names for Accounts {
    fn user(&self, name: &str) -> Option<u32> {
        let known = [
            ("root", 0),
            ("daemon", 1),
            ("www-data", 33),
            ("alice", 1001),
            ("bob", 1002),
            ("deploybot", 1003),
            ("nobody", 65534),
        ];
        known.iter().find(|(n, _)| *n == name).map(|(_, id)| *id)
    }

    fn group(&self, name: &str) -> Option<u32> {
        let known = [
            ("root", 0),
            ("daemon", 1),
            ("staff", 50),
            ("games", 60),
            ("wheel", 99),
            ("deploy", 2000),
            ("nogroup", 65534),
        ];
        known.iter().find(|(n, _)| *n == name).map(|(_, id)| *id)
    }
}

fn top() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn check_file(path: &Path) -> Checked {
    let text = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    check(&text, Path::new(path.file_name().unwrap()), &Accounts, true)
}

/// Set `DEPLOYER_BLESS=1` to write down what is said now, then read the difference.
#[test]
fn every_fixture_gets_exactly_the_diagnostics_beside_it() {
    let dir = top().join("tests/fixtures/config");
    let bless = std::env::var_os("DEPLOYER_BLESS").is_some();
    let mut fixtures: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "cfg"))
        .collect();
    fixtures.sort();
    assert!(
        fixtures.len() >= 9,
        "fixtures are missing in {}",
        dir.display()
    );
    let mut wrong = Vec::new();
    for path in fixtures {
        let rendered = check_file(&path).render(false);
        let beside = path.with_extension("stderr");
        if bless {
            std::fs::write(&beside, &rendered).unwrap();
        }
        let expected = std::fs::read_to_string(&beside).unwrap_or_default();
        if rendered != expected {
            wrong.push(format!("{}:\n{rendered}", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_example_that_comes_with_deployer_has_nothing_to_complain_of() {
    let checked = check_file(&top().join("etc/deployer.cfg"));
    assert_eq!(checked.render(false), "");
    assert_eq!(checked.config.unwrap().programs.len(), 4);
}

#[test]
fn the_example_shows_true_defaults() {
    let text = std::fs::read_to_string(top().join("etc/deployer.cfg")).unwrap();
    let (globals, _) = text.split_once("\n[").unwrap();
    // These keys have no value that means the same as their absence.
    let no_default = [
        "group",
        "cwd",
        "limit-nofile",
        "args",
        "http-socket",
        "http-listen",
        "http-hosts",
        "http-user-header",
        "http-trust-uid",
        "http-trust-address",
        "ui-root",
        "notify-failure",
        "notify-success",
        "notify-fixed",
    ];
    let mut shown = 0;
    let mut uncommented = String::from("user = daemon\nenv-LANG = C.UTF-8\n");
    for line in globals.lines() {
        let Some((key, _)) = line.strip_prefix('#').and_then(|l| l.split_once(" = ")) else {
            continue;
        };
        if !key.contains(' ') && !no_default.contains(&key) {
            uncommented += &format!("{}\n", &line[1..]);
            shown += 1;
        }
    }
    assert!(shown > 20, "only {shown} defaults are shown");
    let path = Path::new("x");
    let config = |text: &str| {
        let checked = check(text.as_bytes(), path, &Accounts, false);
        checked
            .config
            .clone()
            .unwrap_or_else(|| panic!("{}", checked.render(false)))
    };
    let (with, without) = (
        config(&uncommented),
        config("user = daemon\nenv-LANG = C.UTF-8\n"),
    );
    assert_eq!(with.global, without.global);
    let mut script = (*with.script).clone();
    script.allow = without.script.allow.clone();
    assert_eq!(script, *without.script);
}
