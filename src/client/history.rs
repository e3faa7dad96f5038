//! `HISTORY`: who ran what, when, and how it came out. Oldest first, the newest at the bottom.

use std::io::{self, Write};

use super::run::local_time;
use super::{Connection, Exit, Problem, printable, socket_path};
use crate::cli::{HistoryOptions, Target};
use crate::protocol::message::{Reply, Request, Row};

/// `HISTORY [PROGRAM|ID]`.
pub fn history(target: &Target, options: HistoryOptions) -> Result<Exit, Problem> {
    let id = options.what.as_deref().and_then(|w| w.parse().ok());
    let program = if id.is_none() { options.what } else { None };
    let request = Request::History {
        program,
        id,
        limit: options.limit,
        before: None,
        outcome: None,
    };
    let mut connection = Connection::ask(&socket_path(target)?, &request)?;
    let mut out = io::BufWriter::new(io::stdout().lock());
    let mut first = true;
    loop {
        match connection.expect()? {
            Reply::Row(row) if options.json => {
                let line = serde_json::to_string(&row).map_err(|e| Problem::new(e.to_string()))?;
                writeln!(out, "{line}")?;
            }
            Reply::Row(row) => {
                if first {
                    writeln!(
                        out,
                        "{:>6}  {:<19}  {:>8}  {:<12}  {:<16}  BY",
                        "ID", "REQUESTED", "TOOK", "OUTCOME", "PROGRAM"
                    )?;
                    first = false;
                }
                writeln!(out, "{}", line(&row))?;
            }
            Reply::Done { .. } => break,
            other => return Err(Problem::unexpected(&other)),
        }
    }
    out.flush()?;
    Ok(Exit::Status(0))
}

/// One row for people.
fn line(row: &Row) -> String {
    let requested = row
        .requested_at
        .as_deref()
        .map(local_time)
        .unwrap_or_default();
    let mut text = format!(
        "{:>6}  {requested:<19}  {:>8}  {:<12}  {:<16}  {}",
        row.id,
        took(row).unwrap_or_default(),
        outcome(row),
        what(row),
        printable(&row.by.user),
    );
    for (name, value) in &row.inputs {
        text.push_str(&format!(" {name}={}", printable(value)));
    }
    if let Some(reason) = &row.reason {
        text.push_str(&format!("  \"{}\"", printable(reason)));
    }
    if let Some(detail) = &row.detail {
        text.push_str(&format!("  ({})", printable(detail)));
    }
    text
}

/// The program, and the action where it is not the usual one.
fn what(row: &Row) -> String {
    let program = printable(&row.program);
    match row.action.as_str() {
        "run" | "" => program,
        action => format!("{program} {action}"),
    }
}

fn outcome(row: &Row) -> String {
    match (
        row.outcome.as_str(),
        row.exit_code,
        row.signal.as_deref(),
        row.covered_by,
    ) {
        ("failed", Some(code), ..) => format!("failed {code}"),
        ("signalled", _, Some(signal), _) => signal.to_owned(),
        ("superseded", .., Some(by)) => format!("-> {by}"),
        (other, ..) => other.to_owned(),
    }
}

fn took(row: &Row) -> Option<String> {
    let start: jiff::Timestamp = row.started_at.as_deref()?.parse().ok()?;
    let end: jiff::Timestamp = row.ended_at.as_deref()?.parse().ok()?;
    let seconds = end.duration_since(start).as_secs_f64();
    Some(span(seconds))
}

/// A time span for people.
pub fn span(seconds: f64) -> String {
    if seconds < 60.0 {
        format!("{seconds:.1}s")
    } else if seconds < 3600.0 {
        format!("{}m{:02}s", seconds as u64 / 60, seconds as u64 % 60)
    } else {
        format!("{}h{:02}m", seconds as u64 / 3600, seconds as u64 / 60 % 60)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_for_people_tells_the_story_in_one_line() {
        let row = Row {
            id: 12,
            program: "app".into(),
            outcome: "failed".into(),
            exit_code: Some(7),
            requested_at: Some("2026-11-21T08:00:00.000Z".into()),
            started_at: Some("2026-11-21T08:00:00.000Z".into()),
            ended_at: Some("2026-11-21T08:01:05.000Z".into()),
            reason: Some("a\u{1b}[2Jb".into()),
            inputs: [("branch".into(), "main".into())].into(),
            ..Row::default()
        };
        let line = line(&row);
        assert!(
            line.contains("1m05s") && line.contains("failed 7") && line.contains("branch=main"),
            "{line}"
        );
        assert!(line.contains(r"a\u{1b}[2Jb"), "{line}");
    }
}
