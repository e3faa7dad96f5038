//! `-a` and `LIST`: the programs that the caller may use, and how they are.

use std::io::{self, Write};

use super::history::span;
use super::run::local_time;
use super::{Connection, Exit, Problem, printable, socket_path};
use crate::cli::Target;
use crate::protocol::message::{Reply, Request, Service};

/// `-a`, or with `long` `LIST`.
pub fn list(target: &Target, long: bool, nul: bool, json: bool) -> Result<Exit, Problem> {
    let mut connection = Connection::ask(
        &socket_path(target)?,
        &Request::List {
            program: None,
            detail: false,
        },
    )?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    if long && !json {
        let columns = [
            "PROGRAM", "STATE", "PID", "SINCE", "RESTARTS", "MEMORY", "CPU",
        ];
        let [program, state, pid, since, restarts, memory, cpu] = columns;
        writeln!(
            out,
            "{program:<20}  {state:<9}  {pid:>8}  {since:<19}  {restarts:>8}  {memory:>8}  {cpu:>8}"
        )?;
    }
    loop {
        match connection.expect()? {
            reply @ Reply::Program { .. } if json => {
                let mut value =
                    serde_json::to_value(&reply).map_err(|e| Problem::new(e.to_string()))?;
                if let Some(object) = value.as_object_mut() {
                    object.remove("type");
                }
                writeln!(out, "{value}")?;
            }
            Reply::Program { name, .. } if nul => write!(out, "{name}\0")?,
            Reply::Program {
                name,
                state,
                service,
                run,
                waiting,
                frozen,
                ..
            } => {
                let mut text = if long {
                    long_line(&name, &state, service.as_ref(), run, waiting)
                } else {
                    short_line(&name, &state, service.as_ref(), run, waiting)
                };
                if let Some(frozen) = frozen {
                    text = format!("{text}  {}", printable(&frozen));
                }
                writeln!(out, "{text}")?;
            }
            Reply::Done { .. } => break,
            other => return Err(Problem::unexpected(&other)),
        }
    }
    out.flush()?;
    Ok(Exit::Status(0))
}

/// Name, state, and what is going on, separated by tabs.
fn short_line(
    name: &str,
    state: &str,
    service: Option<&Service>,
    run: Option<u64>,
    waiting: u64,
) -> String {
    let mut text = format!("{name}\t{state}");
    if let Some(pid) = service.and_then(|s| s.pid) {
        text.push_str(&format!("\tpid {pid}"));
    }
    if let Some(run) = run {
        text.push_str(&format!("\trun {run}"));
    }
    if waiting > 0 {
        text.push_str(&format!("\t{waiting} waiting"));
    }
    text
}

/// One row of the table.
fn long_line(
    name: &str,
    state: &str,
    service: Option<&Service>,
    run: Option<u64>,
    waiting: u64,
) -> String {
    let name = printable(name);
    let Some(service) = service else {
        let mut text = format!("{name:<20}  {state:<9}");
        if let Some(run) = run {
            text.push_str(&format!("  run {run}"));
        }
        if waiting > 0 {
            text.push_str(&format!("  {waiting} waiting"));
        }
        return text;
    };
    let word = if state == "lingering" {
        state
    } else {
        &service.status
    };
    let pid = service.pid.map(|pid| pid.to_string()).unwrap_or_default();
    let since = service.since.as_deref().map(local_time).unwrap_or_default();
    let memory = service.memory.map(size).unwrap_or_default();
    let cpu = service.cpu.map(span).unwrap_or_default();
    let mut text = format!(
        "{name:<20}  {word:<9}  {pid:>8}  {since:<19}  {:>8}  {memory:>8}  {cpu:>8}",
        service.restarts
    );
    if let (None, Some(last)) = (service.pid, &service.last_exit) {
        text.push_str(&format!("  {last}"));
    }
    if let Some(next) = service.next_start {
        text.push_str(&format!(", again in {}", span(next)));
    }
    if service.outdated {
        text.push_str("  (restart it to use its new settings)");
    }
    text
}

fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1000.0 {
        format!("{mib:.1}M")
    } else {
        format!("{:.2}G", mib / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_down_says_why_and_what_comes() {
        let service = Service {
            status: "backoff".into(),
            last_exit: Some("exited with status 3".into()),
            next_start: Some(4.25),
            restarts: 2,
            ..Service::default()
        };
        let line = long_line("web", "dead", Some(&service), None, 0);
        assert!(line.contains("backoff"), "{line}");
        assert!(
            line.ends_with("exited with status 3, again in 4.2s"),
            "{line}"
        );
        assert_eq!(
            short_line("web", "dead", Some(&service), None, 0),
            "web\tdead"
        );
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!(size(3 << 20), "3.0M");
        assert_eq!(size(5 << 30), "5.00G");
    }
}
