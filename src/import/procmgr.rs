//! procmgr: the keys are ours already; what has to change is who runs it, and ids that mean
//! something else here.

use super::Imported;
use crate::config::ini::scan;

/// Global keys of procmgr that make sense here.
const GLOBAL: &[&str] = &[
    "socket-path",
    "allow-uid",
    "allow-gid",
    "do-autostart",
    "default-suid",
    "default-sgid",
];

pub(super) fn import(text: &str) -> Imported {
    let mut out = Imported::default();
    let scan = scan(text.as_bytes());
    out.line("# procmgr ran every command as the user of its daemon.");
    out.line("user = root");
    out.report.push(
        "commands run as root, as they did: name another user, for all programs or in their sections"
            .to_owned(),
    );
    for found in &scan.diagnostics {
        out.note(found.line, format_args!("left out: {}", found.message));
    }
    // Of same-named sections the last one counts.
    let last = |name: &str| {
        let same =
            |s: &crate::config::ini::Section| s.header.as_ref().is_some_and(|h| h.name == name);
        scan.document.sections.iter().rposition(same)
    };
    for (place, section) in scan.document.sections.iter().enumerate() {
        if let Some(header) = &section.header {
            let name = header.name.as_str();
            let program = name.strip_prefix("prog-");
            let fits = program.is_some_and(|p| crate::ids::ProgramName::new(p).is_ok());
            if !fits || header.damaged {
                out.note(header.line, format_args!("left out: the section [{name}]"));
                continue;
            }
            if last(name) != Some(place) {
                out.note(
                    header.line,
                    format_args!("left out: a later [{name}] takes its place"),
                );
                continue;
            }
            out.line("");
            out.line(format_args!("[{name}]"));
        }
        let global = section.header.is_none();
        for (n, entry) in section.entries.iter().enumerate() {
            let later = section
                .entries
                .iter()
                .skip(n + 1)
                .any(|e| e.key == entry.key);
            if later || entry.damaged {
                continue;
            }
            let known = if global {
                GLOBAL.contains(&entry.key.as_str())
            } else {
                is_known(&entry.key)
            };
            if !known {
                out.note(
                    entry.line,
                    format_args!("left out: {} means nothing here", entry.key),
                );
                continue;
            }
            match value(&entry.key, &entry.value) {
                Ok(value) => out.line(format_args!("{} = {value}", entry.key)),
                Err(why) => out.note(entry.line, format_args!("{}: {why}", entry.key)),
            }
        }
    }
    out
}

fn is_known(key: &str) -> bool {
    let action = |head: &str| {
        key.strip_prefix(head).is_some_and(|a| {
            crate::ids::ActionName::new(a).is_ok() && !matches!(a, "update" | "cancel" | "kill")
        })
    };
    ["cmd-", "uid-", "gid-", "suid-", "sgid-"]
        .iter()
        .any(|h| action(h))
        || matches!(
            key,
            "allow-uid"
                | "allow-gid"
                | "restart-delay"
                | "autostart"
                | "cwd"
                | "default-suid"
                | "default-sgid"
        )
}

/// The value here, or why there is none.
fn value(key: &str, value: &str) -> Result<String, String> {
    let is_id = key.contains("uid") || key.contains("gid");
    if !is_id {
        return match (key, value) {
            (_, "") => Err("left out: it has no value".to_owned()),
            ("cwd" | "socket-path", v) if !v.starts_with('/') => {
                Err(format!("left out: {v} is not an absolute path"))
            }
            ("restart-delay", v) if v != "none" && v.parse::<f64>().is_err() => {
                Err(format!("left out: {v} is not a number of seconds"))
            }
            ("autostart" | "do-autostart", v)
                if !matches!(v, "yes" | "no" | "none")
                    && v.parse::<u32>().is_ok_and(|n| n == 0) =>
            {
                Ok("no".to_owned())
            }
            ("autostart" | "do-autostart", v)
                if !matches!(v, "yes" | "no" | "none") && v.parse::<u32>().is_err() =>
            {
                Err(format!("left out: {v} is no group"))
            }
            (_, v) => Ok(v.to_owned()),
        };
    }
    let runs_as = key.contains("suid") || key.contains("sgid");
    match value {
        "-1" | "none" if runs_as => Err("left out: `none` means the user of the daemon".to_owned()),
        "-1" | "none" => Ok("none".to_owned()),
        "" => Err("left out: an empty id meant root, who may everything anyway".to_owned()),
        "65534" | "4294967295" => Err(format!("left out: {value} stands for nobody in particular")),
        v => match v.parse::<u32>() {
            Ok(_) => Ok(v.to_owned()),
            Err(_) if crate::config::ini::is_word(v) => Ok(v.to_owned()),
            Err(_) => Err(format!("left out: {v} is no id")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::From;
    use super::super::tests::checked;

    #[test]
    fn the_example_of_its_manual_works_unchanged() {
        let text = include_str!("../../tests/fixtures/config/seed-example.cfg");
        let imported = checked(From::Procmgr, text);
        for line in [
            "socket-path = /var/local/procmgr-local",
            "allow-gid = 99",
            "[prog-game-server]",
            "cmd-start = exec /home/johndoe/bin/game.server",
            "cmd-reload = kill -HUP $PID",
            "restart-delay = 5",
        ] {
            assert!(
                imported.text.lines().any(|l| l == line),
                "{line}: {}",
                imported.text
            );
        }
        assert_eq!(imported.report.len(), 1);
    }

    #[test]
    fn ids_that_mean_something_else_are_said() {
        let imported = checked(
            From::Procmgr,
            "[prog-a]\nuid-stop = -1\nallow-uid =\ncmd-start = x\nnonsense = 1\n[prog-b]\ncmd-run = old\n[prog-b]\ncmd-start = new\n",
        );
        assert!(imported.text.contains("uid-stop = none\n"));
        assert!(!imported.text.contains("old") && imported.text.contains("new"));
        let report = imported.report.join("\n");
        for part in [
            "line 3: allow-uid",
            "line 5: left out: nonsense",
            "line 6: left out: a later",
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
    }
}
