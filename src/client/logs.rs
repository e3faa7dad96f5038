//! `LOGS`: replays the output of a run, and follows it while it grows.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use super::terminal;
use super::view::View;
use super::{Connection, Exit, Problem, say, socket_path};
use crate::cli::{LogsOptions, Target};
use crate::log::{Lines, Reader, Stream};
use crate::protocol::message::{LogsRequest, OutputWay, Reply, Request};

/// `LOGS PROGRAM|ID`.
pub fn logs(target: &Target, options: &LogsOptions) -> Result<Exit, Problem> {
    let run = options.what.parse::<u64>().is_ok();
    let mut after = 0;
    loop {
        match one(target, options, after)? {
            // The log of a supervised program is that of all its processes, one after the other.
            Some((id, action)) if !run && matches!(action.as_str(), "start" | "restart") => {
                after = id;
            }
            None if options.follow => {}
            _ => return Ok(Exit::Status(0)),
        }
    }
}

/// Shows one run; which it was, and of which action. None if there is none at the moment.
fn one(
    target: &Target,
    options: &LogsOptions,
    after: u64,
) -> Result<Option<(u64, String)>, Problem> {
    let id = options.what.parse::<u64>().ok();
    let request = LogsRequest {
        after: Some(after),
        program: if id.is_none() {
            Some(options.what.clone())
        } else {
            None
        },
        id,
        follow: options.follow,
        output: OutputWay::Fd,
        ..LogsRequest::default()
    };
    let only = match options.stream.as_deref() {
        Some("out") => Some(Stream::Stdout),
        Some("err") => Some(Stream::Stderr),
        _ => None,
    };
    let mut connection = Connection::ask(&socket_path(target)?, &Request::Logs(request))?;
    let mut show: Option<Show> = None;
    loop {
        let reply = connection.expect()?;
        terminal::hide_status();
        match reply {
            Reply::Status { text } => terminal::show_status(&text),
            Reply::Started { fds, .. } => {
                let mut take = || {
                    connection
                        .take_fd()
                        .ok_or_else(|| Problem::new("the daemon sent no log"))
                };
                if fds.len() < 2 {
                    return Err(Problem::new("the daemon sent no log"));
                }
                let (log, index) = (take()?, take()?);
                show = Some(Show::new(log, index, only, options.timestamps)?);
            }
            Reply::Grew { .. } => {
                if let Some(show) = &mut show {
                    show.go_on(false)?;
                }
            }
            Reply::Accepted { behind, .. } => {
                if let Some(behind) = behind {
                    say(&format!("the run waits for run {}", behind.id));
                }
            }
            Reply::Ended { run, .. } => {
                if let Some(show) = &mut show {
                    show.go_on(true)?;
                }
                if let Some(Show::Raw(view)) = &show
                    && view.missed() > 0
                {
                    say(&format!(
                        "{} bytes before that were rotated away (log-max-size)",
                        view.missed()
                    ));
                }
                if run.dropped > 0 {
                    say(&format!(
                        "{} bytes of output were not kept: the log, or its disk, was full",
                        run.dropped
                    ));
                }
                if show.is_none() {
                    let detail = run.detail.map(|d| format!(": {d}")).unwrap_or_default();
                    say(&format!("run {} is {}{detail}", run.id, run.outcome));
                }
                return Ok(Some((run.id, run.action.clone())));
            }
            Reply::Done { .. } => return Ok(None),
            Reply::Outlook { .. } | Reply::Displaced => {}
            other => return Err(Problem::unexpected(&other)),
        }
    }
}

/// The two ways of showing a log.
enum Show {
    /// Its bytes, each to the stream it came from.
    Raw(Box<View>),
    /// Its lines, each behind the time of its first byte.
    Lines(Box<Lines>),
}

impl Show {
    fn new(
        log: OwnedFd,
        index: OwnedFd,
        only: Option<Stream>,
        timestamps: bool,
    ) -> Result<Self, Problem> {
        if !timestamps {
            return Ok(Self::Raw(Box::new(View::new(log, index, 0, only)?)));
        }
        let reader = Reader::new(File::from(log), Some(File::from(index)));
        Ok(Self::Lines(Box::new(Lines::new(reader, only))))
    }

    /// Shows what there is; at the end also a last line that has no end of its own.
    fn go_on(&mut self, end: bool) -> Result<(), Problem> {
        let lines = match self {
            Self::Raw(view) => return view.show(),
            Self::Lines(lines) => lines,
        };
        let mut out = io::BufWriter::new(io::stdout().lock());
        loop {
            let next = lines
                .next_line()
                .map_err(|e| Problem::new(format!("{e}: {}", e.source)))?;
            let Some(line) = next.or_else(|| if end { lines.rest() } else { None }) else {
                break;
            };
            let time = line
                .time
                .and_then(|t| jiff::Timestamp::from_nanosecond(i128::from(t)).ok());
            match time {
                Some(t) => write!(
                    out,
                    "{} ",
                    t.to_zoned(jiff::tz::TimeZone::system())
                        .strftime("%Y-%m-%dT%H:%M:%S%.3f%:z")
                )?,
                None => write!(out, "- ")?,
            }
            out.write_all(&line.bytes)?;
            if !line.bytes.ends_with(b"\n") {
                out.write_all(b"\n")?;
            }
        }
        out.flush()?;
        Ok(())
    }
}
