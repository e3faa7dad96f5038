//! sudo's rules: each command that somebody may run as somebody else becomes a program.

use std::collections::BTreeMap;

use super::{Imported, program_name, quoted};

/// A program to be: as whom, which command, and who may.
struct Rule {
    run_as: String,
    command: Vec<String>,
    /// Whether sudo allowed any arguments.
    any_args: bool,
    users: Vec<String>,
    groups: Vec<String>,
}

pub(super) fn import(text: &str) -> Imported {
    let mut out = Imported::default();
    let mut aliases: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut rules: Vec<Rule> = Vec::new();
    let lines = logical_lines(text);
    for (line, text) in &lines {
        let (kind, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        if kind.ends_with("_Alias") {
            for definition in rest.split(" : ").flat_map(|r| r.split(':')) {
                if let Some((name, members)) = definition.split_once('=') {
                    aliases.insert(name.trim().to_owned(), list(members));
                }
            }
        } else if kind.starts_with("Defaults") {
            out.note(*line, "left out: Defaults have no counterpart");
        } else if kind.starts_with("@include") || kind.starts_with("#include") {
            out.note(
                *line,
                format_args!("left out: import {} apart", rest.trim()),
            );
        } else {
            rule(*line, text, &aliases, &mut rules, &mut out);
        }
    }
    let mut taken: Vec<String> = Vec::new();
    for rule in &rules {
        let path = rule.command.first().map(String::as_str).unwrap_or_default();
        let words: Vec<&str> = path
            .rsplit('/')
            .take(1)
            .chain(rule.command.iter().skip(1).map(String::as_str))
            .filter(|w| !w.starts_with('-'))
            .take(3)
            .collect();
        let base = program_name(&words.join("-"));
        let mut name = base.clone();
        for n in 2.. {
            if !taken.contains(&name) {
                break;
            }
            name = format!("{base}-{n}");
        }
        taken.push(name.clone());
        let words: Vec<String> = rule.command.iter().map(|w| quoted(w)).collect();
        out.line(format_args!("[prog-{name}]"));
        out.line(format_args!("cmd-run = exec {}", words.join(" ")));
        out.line("args = none");
        out.line(format_args!("user = {}", rule.run_as));
        for (key, who) in [("allow-uid", &rule.users), ("allow-gid", &rule.groups)] {
            if !who.is_empty() {
                out.line(format_args!("{key} = {}", who.join(", ")));
            }
        }
        out.line("");
    }
    out
}

/// Lines with their numbers, with what continues on the next one, without comments.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (n, raw) in text.lines().enumerate() {
        let continues = raw.ends_with('\\');
        let part = raw.strip_suffix('\\').unwrap_or(raw);
        let comment =
            part.trim_start().starts_with('#') && !part.trim_start().starts_with("#include");
        let part = if comment && !open {
            ""
        } else {
            part.split(" #").next().unwrap_or_default()
        };
        match lines.last_mut().filter(|_| open) {
            Some((_, line)) => line.push_str(part.trim()),
            None => lines.push((n + 1, part.trim().to_owned())),
        }
        open = continues;
    }
    lines.retain(|(_, line)| !line.is_empty());
    lines
}

/// Members of a list between commas; a backslash takes a comma into one.
fn list(text: &str) -> Vec<String> {
    let mut items = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ',' => items.push(String::new()),
            '\\' => {
                if let (Some(next), Some(item)) = (chars.next(), items.last_mut()) {
                    item.push(next);
                }
            }
            c => {
                if let Some(item) = items.last_mut() {
                    item.push(c);
                }
            }
        }
    }
    let items = items.iter().map(|item| item.trim().to_owned());
    items.filter(|item| !item.is_empty()).collect()
}

/// Replaces aliases by what they stand for, a few levels deep.
fn resolve(items: Vec<String>, aliases: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut items = items;
    for _ in 0..5 {
        items = items
            .into_iter()
            .flat_map(|item| aliases.get(&item).cloned().unwrap_or_else(|| vec![item]))
            .collect();
        items.truncate(1000);
    }
    items
}

fn rule(
    line: usize,
    text: &str,
    aliases: &BTreeMap<String, Vec<String>>,
    rules: &mut Vec<Rule>,
    out: &mut Imported,
) {
    let Some((left, right)) = text.split_once('=') else {
        return out.note(line, "left out: it is no rule");
    };
    let Some((who, host)) = left.trim().rsplit_once(char::is_whitespace) else {
        return out.note(line, "left out: it names no host");
    };
    if host != "ALL" {
        out.note(
            line,
            format_args!("the host {host} is not looked at: the rule holds here now"),
        );
    }
    let (mut users, mut groups) = (Vec::new(), Vec::new());
    for one in resolve(list(who), aliases) {
        match one.strip_prefix('%') {
            _ if one == "ALL" || one.starts_with(['!', '+']) || one.starts_with("%:") => {
                out.note(
                    line,
                    format_args!("left out: {one} may not be said here; name users or groups"),
                );
            }
            Some(group) => groups.push(group.trim_start_matches('#').to_owned()),
            None if one == "root" => {}
            None => users.push(one.trim_start_matches('#').to_owned()),
        }
    }
    let bad = |name: &String| {
        !crate::config::ini::is_word(name)
            || matches!(name.as_str(), "none" | "65534" | "4294967295")
    };
    for list in [&mut users, &mut groups] {
        for name in list.iter().filter(|n| bad(n)) {
            out.note(
                line,
                format_args!("left out: {name} is no name that can stand in a list"),
            );
        }
        list.retain(|name| !bad(name));
    }
    if users.is_empty() && groups.is_empty() {
        return out.note(
            line,
            "left out: nobody but root is named, who may everything anyway",
        );
    }
    let (mut run_as, mut asked) = ("root".to_owned(), true);
    for item in resolve(list(right), aliases) {
        let mut item = item.as_str();
        if let Some((inside, rest)) = item.strip_prefix('(').and_then(|i| i.split_once(')')) {
            let user = inside.split(':').next().unwrap_or_default().trim();
            run_as = if user.is_empty() { "root" } else { user }.to_owned();
            item = rest.trim();
        }
        while let Some((tag, rest)) = item.split_once(':').filter(|(tag, _)| {
            !tag.is_empty() && tag.bytes().all(|b| b.is_ascii_uppercase() || b == b'_')
        }) {
            match tag {
                "NOPASSWD" => asked = false,
                "PASSWD" => asked = true,
                other => out.note(line, format_args!("the tag {other} is left out")),
            }
            item = rest.trim();
        }
        if run_as.contains([',', '!', '%'])
            || run_as == "ALL"
            || !crate::config::ini::is_word(&run_as)
        {
            out.note(
                line,
                format_args!("left out: {item} as {run_as}; write a program for each user"),
            );
            continue;
        }
        let words: Vec<String> = item.split_whitespace().map(str::to_owned).collect();
        let Some(path) = words.first() else {
            continue;
        };
        if !path.starts_with('/') || path.ends_with('/') || item.contains(['*', '?', '[', '!']) {
            out.note(line, format_args!("left out: {item}; name one command"));
            continue;
        }
        if asked {
            out.note(
                line,
                format_args!("{item}: sudo asked for a password, deployer does not"),
            );
        }
        let no_args = words.len() == 2 && words[1] == "\"\"";
        let command = if no_args {
            vec![path.clone()]
        } else {
            words.clone()
        };
        let any_args = words.len() == 1;
        if any_args {
            out.note(line, format_args!("{item}: any arguments were allowed, none are now; `args = any` and \"$@\" let them in"));
        }
        let same =
            |r: &&mut Rule| r.run_as == run_as && r.command == command && r.any_args == any_args;
        match rules.iter_mut().find(same) {
            Some(rule) => {
                for (list, new) in [(&mut rule.users, &users), (&mut rule.groups, &groups)] {
                    for one in new {
                        if !list.contains(one) {
                            list.push(one.clone());
                        }
                    }
                }
            }
            None => rules.push(Rule {
                run_as: run_as.clone(),
                command,
                any_args,
                users: users.clone(),
                groups: groups.clone(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::From;
    use super::super::tests::checked;

    #[test]
    fn rules_become_programs() {
        let imported = checked(
            From::Sudoers,
            "# a comment\nDefaults env_reset\nUser_Alias DEVS = alice, bob\nCmnd_Alias WEB = /bin/systemctl restart nginx, \\\n  /bin/systemctl reload nginx\n\
             root ALL=(ALL) ALL\nDEVS ALL=(www-data) NOPASSWD: /srv/deploy.sh \"\", WEB\n\
             %ops ALL=(www-data) NOPASSWD: /srv/deploy.sh \"\"\ncarol web1 = /usr/bin/vi, /bin/cat *\ndan ALL=(ALL) NOPASSWD: ALL\n",
        );
        let text = &imported.text;
        for part in [
            "[prog-deploy.sh]\ncmd-run = exec /srv/deploy.sh\nargs = none\nuser = www-data\nallow-uid = alice, bob\nallow-gid = ops\n",
            "[prog-systemctl-restart-nginx]\ncmd-run = exec /bin/systemctl restart nginx\n",
            "[prog-vi]\ncmd-run = exec /usr/bin/vi\nargs = none\nuser = root\nallow-uid = carol\n",
        ] {
            assert!(text.contains(part), "{part}\n---\n{text}");
        }
        let report = imported.report.join("\n");
        for part in [
            "Defaults",
            "asked for a password",
            "the host web1",
            "/bin/cat *",
            "as ALL",
            "any arguments",
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
        assert!(!text.contains("dan") && !text.contains('*'), "{text}");
    }
}
