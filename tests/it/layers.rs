//! The map of `doc/design.rst` holds: modules use only what lies below them.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Which modules of the crate a module may name.
const MAY_USE: &[(&str, &[&str])] = &[
    ("ids", &[]),
    ("cli", &["ids", "protocol"]),
    ("sys", &[]),
    ("getent", &[]),
    ("accounts", &["getent"]),
    ("engine", &["config", "ids"]),
    ("config", &["accounts", "ids"]),
    ("policy", &["config", "ids"]),
    ("import", &["config", "ids"]),
    ("protocol", &[]),
    ("log", &["config", "ids"]),
    ("logging", &["config"]),
    ("store", &["config", "ids", "log"]),
    ("run", &["accounts", "config", "ids", "log", "sys"]),
    ("server", &["ids", "log", "policy", "protocol", "sys"]),
    ("source", &["config", "getent", "sys"]),
    ("web", &["log", "protocol", "sys"]),
    ("keeper", &["logging", "sys"]),
    (
        "client",
        &["cli", "config", "import", "log", "protocol", "sys", "web"],
    ),
    (
        "daemon",
        &[
            "accounts", "cli", "config", "engine", "ids", "keeper", "log", "logging", "policy",
            "protocol", "run", "server", "source", "store", "sys", "web",
        ],
    ),
];

fn sources(at: &Path, found: &mut Vec<String>) {
    if at.is_dir() {
        for entry in fs::read_dir(at).unwrap() {
            sources(&entry.unwrap().path(), found);
        }
    } else if at.extension().is_some_and(|e| e == "rs")
        && at.file_stem().is_none_or(|s| s != "tests" && s != "entry")
    {
        let text = fs::read_to_string(at).unwrap();
        // Tests may reach for what they like; and `sys/entry.rs` is the program, not the library.
        found.push(
            text.split("#[cfg(test)]")
                .next()
                .unwrap_or_default()
                .to_owned(),
        );
    }
}

#[test]
fn modules_use_only_what_lies_below_them() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for (module, may) in MAY_USE {
        let mut texts = Vec::new();
        let file = src.join(format!("{module}.rs"));
        let place = if file.exists() {
            file
        } else {
            src.join(module)
        };
        sources(&place, &mut texts);
        assert!(!texts.is_empty(), "{module} has no source");
        let named = |text: &String| -> Vec<String> {
            let code = text
                .lines()
                .filter(|line| !line.trim_start().starts_with("//"));
            let code: String = code.collect::<Vec<_>>().join("\n");
            let parts = code.split("crate::").skip(1);
            let word = |p: &str| {
                p.chars()
                    .take_while(|c| c.is_alphanumeric() || *c == '_')
                    .collect()
            };
            parts.map(word).collect()
        };
        let used: BTreeSet<String> = texts.iter().flat_map(named).collect();
        for other in used {
            let own = other == *module || other.is_empty();
            assert!(
                own || may.contains(&other.as_str()),
                "{module} uses {other}, which does not lie below it"
            );
        }
    }
    let listed: BTreeSet<_> = MAY_USE
        .iter()
        .map(|(module, _)| (*module).to_owned())
        .collect();
    for entry in fs::read_dir(src).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        assert!(
            listed.contains(&name) || ["lib", "main", "testing"].contains(&name.as_str()),
            "{name} is not on the map"
        );
    }
}

#[test]
fn the_way_to_the_kernel_that_the_compiler_cannot_check_is_in_one_place() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    assert!(lib.contains("#![deny(unsafe_code)]"));
    for (module, _) in MAY_USE.iter().filter(|(module, _)| *module != "sys") {
        let mut texts = Vec::new();
        let file = src.join(format!("{module}.rs"));
        let place = if file.exists() {
            file
        } else {
            src.join(module)
        };
        sources(&place, &mut texts);
        assert!(
            texts.iter().all(|t| !t.contains("allow(unsafe_code)")),
            "{module}"
        );
    }
}
