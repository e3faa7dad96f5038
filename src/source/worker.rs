//! The process that does the work: takes its job, and exits as it came out.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::FileExt;

use nix::sys::signal::Signal;

use super::update::{CANCELLED, Worker, tell};
use super::{Failure, JOB_FD, Job, Outcome, What, progress, report};
use crate::sys;

/// The longest job, in bytes.
const LONGEST: u64 = 1 << 20;

/// Does the job that is on [`JOB_FD`]; the exit status.
#[must_use]
pub fn main() -> u8 {
    sys::signal::note(Signal::SIGTERM, &CANCELLED);
    let done = take_job().and_then(|job| work(&job));
    let status = match done {
        Ok(status) => status,
        Err(Failure { message, .. }) => {
            let _ = std::io::stdout().flush();
            for line in message.lines() {
                eprintln!("deployer: {line}");
            }
            1
        }
    };
    u8::try_from(status).unwrap_or(1)
}

/// Reads the job, and closes where it came from: hooks are not to find it.
fn take_job() -> Outcome<Job> {
    let fd = sys::fd::own(JOB_FD).map_err(|_| Failure::new("this is done by the daemon alone"))?;
    let file = File::from(fd);
    let mut text = Vec::new();
    let length = file.metadata().map_or(0, |m| m.len()).min(LONGEST);
    text.resize(usize::try_from(length).unwrap_or(0), 0);
    file.read_exact_at(&mut text, 0)
        .map_err(Failure::io("read the job"))?;
    serde_json::from_slice(&text).map_err(|e| Failure::new(format!("the job is malformed: {e}")))
}

fn work(job: &Job) -> Outcome<i32> {
    if let Some(name) = &job.listener {
        progress::report_to(name);
    }
    let worker = Worker::new(job)?;
    match &job.what {
        What::Update { force } => worker.update(*force),
        What::Rollback { to } => worker.rollback(to.as_deref()),
        What::Pin { to } => worker.pin(to.as_deref()),
        What::Unpin => worker.unpin(),
        What::Check => {
            let verdict = worker.check()?;
            tell(&serde_json::to_string(&verdict).unwrap_or_default());
            Ok(0)
        }
        What::Outcome { run } => {
            let state = worker.place().state()?;
            tell(&(state.switched_by == Some(*run)).to_string());
            Ok(0)
        }
        What::Releases { json } => report::releases(&worker, *json),
        What::Why(facts) => report::why(&worker, facts),
        What::Verify => report::verify(&worker),
        What::Plan => worker.plan(),
    }
}
