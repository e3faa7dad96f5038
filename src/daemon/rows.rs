//! Rows of the history as they are sent to clients.

use super::clock::rfc3339;
use crate::config::model::{Input, InputKind};
use crate::protocol::message::{self, InputField};
use crate::store::Row;

/// A row of the store as a message.
#[must_use]
pub fn message(row: &Row) -> message::Row {
    message::Row {
        id: row.id.0,
        program: row.program.clone(),
        action: row.action.clone(),
        outcome: row.outcome.as_str().to_owned(),
        exit_code: row.exit_code,
        signal: row.signal.map(signal_name),
        by: message::By {
            uid: row.by.uid,
            gid: row.by.gid,
            user: row.by.user.clone(),
            pid: row.by.pid,
        },
        reason: row.reason.clone(),
        inputs: row.inputs.clone(),
        args: row.args.clone(),
        covered_by: row.covered_by.map(|r| r.0),
        requested_at: Some(rfc3339(row.requested_at)),
        started_at: row.started_at.map(rfc3339),
        ended_at: row.ended_at.map(rfc3339),
        bytes: row.bytes,
        dropped: row.dropped,
        leftovers: row.leftovers,
        detail: row.detail.clone(),
    }
}

/// Such as `SIGTERM`; a number for signals without a name.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    match nix::sys::signal::Signal::try_from(signal) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) => format!("SIG{signal}"),
    }
}

/// Something that a program can be told, as a client is told of it.
#[must_use]
pub fn input(input: &Input) -> InputField {
    let mut field = InputField {
        name: input.name.clone(),
        default: input.default.clone(),
        ..InputField::default()
    };
    field.kind = match &input.kind {
        InputKind::Text(pattern) => {
            field.pattern = pattern.as_ref().map(|p| p.as_str().to_owned());
            "text"
        }
        InputKind::Flag => "flag",
        InputKind::Choice(words) => {
            field.choices.clone_from(words);
            "choice"
        }
        InputKind::Int(min, max) => {
            (field.min, field.max) = (Some(*min), Some(*max));
            "int"
        }
    }
    .to_owned();
    field
}

/// What a notice of the end of a run is told in its environment.
#[must_use]
pub fn facts(row: &Row) -> Vec<(String, String)> {
    let row = message(row);
    let number = |n: Option<i32>| n.map_or(String::new(), |n| n.to_string());
    [
        ("RUN_ID", row.id.to_string()),
        ("RUN_PROGRAM", row.program),
        ("RUN_ACTION", row.action),
        ("RUN_OUTCOME", row.outcome),
        ("RUN_EXIT_CODE", number(row.exit_code)),
        ("RUN_SIGNAL", row.signal.unwrap_or_default()),
        ("RUN_BY", row.by.user),
        ("RUN_REASON", row.reason.unwrap_or_default()),
        ("RUN_DETAIL", row.detail.unwrap_or_default()),
        ("RUN_STARTED_AT", row.started_at.unwrap_or_default()),
        ("RUN_ENDED_AT", row.ended_at.unwrap_or_default()),
    ]
    .map(|(name, value)| (name.to_owned(), value.replace('\0', "")))
    .into()
}
