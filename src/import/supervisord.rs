//! supervisord: its `[program:NAME]` sections.

use std::collections::BTreeMap;

use super::{Imported, program_name, quoted};

/// A section with its keys: value and line.
struct Section {
    name: String,
    line: usize,
    keys: BTreeMap<String, (String, usize)>,
}

pub(super) fn import(text: &str) -> Imported {
    let mut out = Imported::default();
    out.line("# Nobody but root may use these programs until allow-uid or allow-gid says who.");
    out.report.push(
        "access: whoever reached supervisord's socket could do everything; now add allow-uid or allow-gid"
            .to_owned(),
    );
    for section in sections(text, &mut out) {
        match section.name.split_once(':') {
            Some(("program", name)) => program(name, &section, &mut out),
            Some(("group", _)) => {
                out.note(section.line, "groups are left out: `after` orders programs")
            }
            Some((kind, _)) => out.note(section.line, format_args!("left out: [{kind}:…]")),
            None if matches!(
                section.name.as_str(),
                "supervisord" | "supervisorctl" | "unix_http_server" | "rpcinterface"
            ) => {}
            None => out.note(section.line, format_args!("left out: [{}]", section.name)),
        }
    }
    out
}

/// Lines, with what continues on the next ones, and without comments.
fn sections(text: &str, out: &mut Imported) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    let mut key: Option<String> = None;
    for (n, raw) in text.lines().enumerate() {
        let line = n + 1;
        let bare = raw.trim();
        if bare.is_empty() || bare.starts_with(['#', ';']) {
            continue;
        }
        if raw.starts_with(char::is_whitespace)
            && let (Some(key), Some(section)) = (&key, sections.last_mut())
            && let Some((value, _)) = section.keys.get_mut(key)
        {
            value.push(' ');
            value.push_str(bare);
            continue;
        }
        if let Some(name) = bare.strip_prefix('[').and_then(|b| b.strip_suffix(']')) {
            sections.push(Section {
                name: name.trim().to_owned(),
                line,
                keys: BTreeMap::new(),
            });
            key = None;
            continue;
        }
        let Some((name, value)) = bare.split_once(['=', ':']) else {
            out.note(line, "left out: it is no key with a value");
            continue;
        };
        // A comment begins behind a blank.
        let value = value
            .split(" ;")
            .next()
            .unwrap_or_default()
            .trim()
            .to_owned();
        let name = name.trim().to_ascii_lowercase();
        if let Some(section) = sections.last_mut() {
            section.keys.insert(name.clone(), (value, line));
            key = Some(name);
        }
    }
    sections
}

fn program(name: &str, section: &Section, out: &mut Imported) {
    let shown = program_name(name);
    let get = |key: &str| {
        section
            .keys
            .get(key)
            .map(|(v, line)| (expanded(v, name), *line))
    };
    let Some((command, line)) = get("command").filter(|(c, _)| !c.is_empty()) else {
        return out.note(
            section.line,
            format_args!("{name} is left out: it has no command"),
        );
    };
    let Some(words) = split(&command) else {
        return out.note(
            line,
            format_args!("{name} is left out: the quotes of its command do not match"),
        );
    };
    if get("numprocs").is_some_and(|(n, _)| n != "1") {
        out.note(
            section.line,
            format_args!("{name}: one process instead of several (numprocs)"),
        );
    }
    out.line("");
    out.line(format_args!("[prog-{shown}]"));
    if shown != name {
        out.note(section.line, format_args!("{name} is called {shown} here"));
    }
    let words: Vec<String> = words.iter().map(|w| quoted(w)).collect();
    out.line(format_args!("cmd-start = exec {}", words.join(" ")));
    match get("user") {
        Some((user, _)) if crate::config::ini::is_word(&user) => {
            out.line(format_args!("user = {user}"))
        }
        _ => {
            out.line("user = root");
            out.note(
                section.line,
                format_args!("{name} runs as root, as it did: name another user"),
            );
        }
    }
    if let Some((directory, line)) = get("directory") {
        if directory.starts_with('/') {
            out.line(format_args!("cwd = {directory}"));
        } else {
            out.note(
                line,
                format_args!("left out: {directory} is not an absolute path"),
            );
        }
    }
    let auto = get("autostart").is_none_or(|(v, _)| is_true(&v));
    out.line(format_args!(
        "autostart = {}",
        if auto { "yes" } else { "no" }
    ));
    let restart = match get("autorestart").map(|(v, _)| v.to_ascii_lowercase()) {
        None => "on-failure",
        Some(v) if v == "unexpected" => "on-failure",
        Some(v) if is_true(&v) => "always",
        Some(_) => "never",
    };
    out.line(format_args!("restart = {restart}"));
    if restart == "on-failure"
        && let Some((codes, line)) = get("exitcodes")
        && codes != "0"
    {
        out.note(
            line,
            format_args!("{name}: only exit status 0 counts as success, not {codes}"),
        );
    }
    if let Some((retries, line)) = get("startretries") {
        match retries.parse::<u32>() {
            Ok(n) if n > 0 => {
                out.line(format_args!("restart-max = {n} in 1m"));
                out.note(
                    line,
                    format_args!("{name}: startretries became restarts in one minute"),
                );
            }
            _ => out.note(line, "startretries is left out"),
        }
    }
    if let Some((signal, line)) = get("stopsignal") {
        if crate::config::signal_number(&signal).is_ok() {
            out.line(format_args!("stop-signal = {signal}"));
        } else {
            out.note(line, format_args!("left out: {signal} is no signal"));
        }
    }
    if let Some((seconds, line)) = get("stopwaitsecs") {
        if seconds.parse::<u32>().is_ok_and(|n| n > 0) {
            out.line(format_args!("stop-timeout = {seconds}"));
        } else {
            out.note(line, "stopwaitsecs is left out");
        }
    }
    if let Some((mask, line)) = get("umask") {
        if mask.len() <= 4 && !mask.is_empty() && mask.bytes().all(|b| (b'0'..=b'7').contains(&b)) {
            out.line(format_args!("umask = {mask}"));
        } else {
            out.note(line, format_args!("left out: umask {mask}"));
        }
    }
    if let Some((environment, line)) = get("environment") {
        for pair in split_on(&environment, ',').unwrap_or_default() {
            match pair.split_once('=') {
                Some((key, value)) if crate::config::may_be_set(key.trim()) => {
                    out.line(format_args!("env-{} = {value}", key.trim()));
                }
                Some((key, _)) => {
                    out.note(line, format_args!("left out: the variable {}", key.trim()))
                }
                None => {}
            }
        }
    }
    for key in section.keys.keys() {
        let (_, line) = section.keys[key];
        match key.as_str() {
            "command" | "user" | "directory" | "autostart" | "autorestart" | "exitcodes"
            | "startretries" | "stopsignal" | "stopwaitsecs" | "umask" | "environment"
            | "numprocs" | "process_name" | "killasgroup" | "stopasgroup" => {}
            "startsecs" => out.note(
                line,
                "startsecs is left out: `ready` says when a program is up",
            ),
            "priority" => out.note(line, "priority is left out: `after` orders programs"),
            log if log.starts_with("stdout_")
                || log.starts_with("stderr_")
                || log == "redirect_stderr" =>
            {
                out.note(
                    line,
                    format_args!("{log} is left out: `deployer LOGS {shown}` shows its output"),
                );
            }
            other => out.note(line, format_args!("left out: {other}")),
        }
    }
    for (value, line) in section.keys.values() {
        if expanded(value, name).contains("%(") {
            out.note(
                *line,
                "an expression %(…)s stands there as it is: replace it",
            );
        }
    }
}

fn is_true(value: &str) -> bool {
    matches!(
        value.to_ascii_lowercase().as_str(),
        "true" | "yes" | "on" | "1" | "t" | "y"
    )
}

fn expanded(value: &str, name: &str) -> String {
    value
        .replace("%(program_name)s", name)
        .replace("%(process_num)s", "0")
        .replace("%%", "%")
}

/// Words as `shlex` splits them; none if a quote is not closed.
fn split(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            '\'' | '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        end if end == c => break,
                        '\\' if c == '"' => word.push(chars.next()?),
                        other => word.push(other),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next()?),
            c if c.is_whitespace() => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Some(words)
}

/// Parts between separators outside of quotes, without their quotes.
fn split_on(text: &str, separator: char) -> Option<Vec<String>> {
    let mut parts = vec![String::new()];
    let mut quote: Option<char> = None;
    for c in text.chars() {
        match quote {
            Some(end) if c == end => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c == separator => parts.push(String::new()),
            _ => parts.last_mut()?.push(c),
        }
    }
    parts.retain(|p| !p.trim().is_empty());
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::super::From;
    use super::super::tests::checked;

    #[test]
    fn a_usual_file_comes_over() {
        let imported = checked(
            From::Supervisord,
            "[supervisord]\nlogfile=/x\n[program:web]\ncommand=/srv/web --title \"a b\" $x ; the server\n\
             directory=/srv\nuser=www-data\nautorestart=true\nstopsignal=INT\nstopwaitsecs=20\n\
             environment=LANG=\"C.UTF-8\",KEY='a,b',PATH=\"/x\"\nstdout_logfile=/var/log/web\n  more\n\
             [program:job]\ncommand=/srv/job %(program_name)s\nautostart=false\nnumprocs=3\n[group:g]\nprograms=web\n",
        );
        for line in [
            "cmd-start = exec /srv/web --title 'a b' '$x'",
            "cwd = /srv",
            "user = www-data",
            "restart = always",
            "stop-signal = INT",
            "stop-timeout = 20",
            "env-LANG = C.UTF-8",
            "env-KEY = a,b",
            "cmd-start = exec /srv/job job",
            "autostart = no",
            "restart = on-failure",
        ] {
            assert!(
                imported.text.lines().any(|l| l == line),
                "{line}: {}",
                imported.text
            );
        }
        let report = imported.report.join("\n");
        for part in [
            "the variable PATH",
            "stdout_logfile",
            "numprocs",
            "job runs as root",
            "groups",
        ] {
            assert!(report.contains(part), "{part}: {report}");
        }
    }
}
