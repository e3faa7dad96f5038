//! Where the output of one run goes: its log, or nowhere while that is impossible.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, fcntl_setpipe_size, splice};

use crate::ids::RunId;
use crate::log::format::RECORD_LEN;
use crate::log::{IndexWriter, Stream, now_ns};

use super::{Listener, LogTrouble, TURN};

/// How often a failing disk is tried.
const RETRY: Duration = Duration::from_millis(100);
/// How often the count of what was dropped is written.
const UPDATE: Duration = Duration::from_millis(100);
/// What a pipe holds unless it was told otherwise.
const USUAL_PIPE: usize = 64 * 1024;
/// What a busy pipe is made to hold.
const LARGE_PIPE: usize = TURN;

/// One stream of a run: the reading end of a pipe.
pub(super) struct Source {
    pub(super) fd: OwnedFd,
    size: Size,
    /// It cannot be spliced from, or not into this log.
    copies: bool,
}

#[derive(PartialEq)]
enum Size {
    Usual,
    Large,
    /// The system did not let us.
    Fixed,
}

impl Source {
    pub(super) fn new(fd: OwnedFd) -> Self {
        Self {
            fd,
            size: Size::Usual,
            copies: false,
        }
    }

    /// Makes the pipe larger if it was found full. True when it did.
    pub(super) fn grow_if_full(&mut self, moved: usize) -> bool {
        if moved < USUAL_PIPE || self.size != Size::Usual || self.copies {
            return false;
        }
        self.size = match fcntl_setpipe_size(&self.fd, LARGE_PIPE) {
            Ok(_) => Size::Large,
            Err(_) => Size::Fixed,
        };
        self.is_large()
    }

    pub(super) fn is_large(&self) -> bool {
        self.size == Size::Large
    }
}

/// What all runs use together.
pub(super) struct Means {
    /// `/dev/null`.
    pub(super) null: File,
    /// For what cannot be spliced.
    pub(super) buffer: Vec<u8>,
}

/// What happened to some output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// So many bytes are in the log.
    Moved(usize),
    /// So many bytes were dropped.
    Dropped(usize),
    /// There is none at the moment.
    Empty,
    /// There will be none.
    Ended,
}

/// Why output could not be written.
enum Refusal {
    Full,
    Disk(&'static str, io::Error),
}

/// The end of a log, its index and its limit.
pub(super) struct Sink {
    run: RunId,
    log: File,
    idx: Arc<File>,
    /// None until the first output: opening looks at the disk.
    opened: Option<Opened>,
    limit: u64,
    /// The log loses its beginning when it becomes too large.
    rotates: bool,
    /// Bytes dropped since this sink exists; those before are in the index.
    dropped: u64,
    /// The limit was reached.
    full: bool,
    /// The disk failed; when it is tried again.
    retry_at: Option<Instant>,
    /// When the count of dropped bytes may be written again, and whether a timer is set for it.
    update_at: Option<Instant>,
    timer_set: bool,
}

struct Opened {
    len: u64,
    index: IndexWriter,
    /// The count of dropped bytes that was in the index at first.
    dropped_before: u64,
}

impl Sink {
    pub(super) fn new(run: RunId, log: File, idx: File, limit: u64, rotates: bool) -> Self {
        Self {
            run,
            log,
            idx: Arc::new(idx),
            opened: None,
            limit,
            rotates,
            dropped: 0,
            full: false,
            retry_at: None,
            update_at: None,
            timer_set: false,
        }
    }

    /// Length of the log in bytes, as far as it is known.
    pub(super) fn len(&self) -> u64 {
        match &self.opened {
            Some(opened) => opened.len,
            None => self.log.metadata().map_or(0, |found| found.len()),
        }
    }

    /// All bytes that were ever dropped, as far as it is known.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped + self.opened.as_ref().map_or(0, |o| o.dropped_before)
    }

    /// Takes at most `most` bytes from `source`, which has some.
    pub(super) fn take(
        &mut self,
        source: &mut Source,
        stream: Stream,
        most: usize,
        means: &mut Means,
        listener: &mut dyn Listener,
    ) -> Step {
        let waits = self.retry_at.is_some_and(|at| Instant::now() < at);
        if !self.full && !waits {
            match self.write(source, stream, most, means) {
                Ok(step) => {
                    if matches!(step, Step::Moved(_)) {
                        self.retry_at = None;
                    }
                    return step;
                }
                Err(Refusal::Full) => {
                    self.full = true;
                    listener.trouble(LogTrouble::Full { limit: self.limit });
                }
                Err(Refusal::Disk(doing, source)) => {
                    if self.retry_at.is_none() {
                        listener.trouble(LogTrouble::Disk { doing, source });
                    }
                    self.retry_at = Some(Instant::now() + RETRY);
                }
            }
        }
        let step = discard(source, most, means);
        if let Step::Dropped(count) = step {
            self.dropped += count as u64;
            if self.update_at.is_none_or(|at| at <= Instant::now()) {
                self.update_dropped();
            }
        }
        step
    }

    fn write(
        &mut self,
        source: &mut Source,
        stream: Stream,
        most: usize,
        means: &mut Means,
    ) -> Result<Step, Refusal> {
        self.open()?;
        let dropped = self.dropped();
        let limit = self.limit;
        let Some(opened) = &mut self.opened else {
            return Ok(Step::Empty); // open() leaves it opened
        };
        let taken = |o: &Opened| o.len - o.index.cut().at + o.index.kept() + RECORD_LEN;
        // What is cut off is given back only at the next cut, so that readers can notice: half of
        // the room is for that.
        let mut limit = limit;
        if self.rotates {
            limit /= 2;
            if taken(opened) >= limit {
                let begin = opened.index.cut().at;
                let half = begin + (opened.len - begin) / 2;
                if let Err(e) = opened.index.cut_at(&self.log, half) {
                    // It goes on until it is full.
                    tracing::warn!("the log of run {} cannot be rotated: {e}", self.run);
                    self.rotates = false;
                }
            }
        }
        let room = usize::try_from(limit.saturating_sub(taken(opened))).unwrap_or(usize::MAX);
        if room == 0 {
            return Err(Refusal::Full);
        }
        let time = now_ns();
        let index = &mut opened.index;
        if index.dropped() < dropped {
            index
                .set_dropped(dropped, time)
                .map_err(|e| Refusal::Disk("write the index of a log", e))?;
        }
        index
            .segment(stream, opened.len, time)
            .map_err(|e| Refusal::Disk("write the index of a log", e))?;
        let most = most.min(room);
        if !source.copies {
            match splice_all(&source.fd, &self.log, Some(&mut opened.len), most) {
                Err(Errno::INVAL | Errno::NOSYS) => source.copies = true,
                Err(e) => return Err(Refusal::Disk("write a log", e.into())),
                Ok(step) => return Ok(step),
            }
        }
        let bytes = match read(source, most, means) {
            Ok(bytes) => bytes,
            Err(step) => return Ok(step),
        };
        match write_all(&self.log, bytes, &mut opened.len) {
            Ok(()) => Ok(Step::Moved(bytes.len())),
            Err((left, e)) => {
                self.dropped += left as u64;
                Err(Refusal::Disk("write a log", e))
            }
        }
    }

    fn open(&mut self) -> Result<(), Refusal> {
        if self.opened.is_none() {
            let found = self.log.metadata();
            let len = found.map_err(|e| Refusal::Disk("look at a log", e))?.len();
            let index = IndexWriter::resume(Arc::clone(&self.idx), len, self.run)
                .map_err(|e| Refusal::Disk("go on with the index of a log", e))?;
            let dropped_before = index.dropped();
            self.opened = Some(Opened {
                len,
                index,
                dropped_before,
            });
        }
        Ok(())
    }

    /// Writes the count of what was dropped; if that fails, a later attempt will do.
    pub(super) fn update_dropped(&mut self) {
        self.timer_set = false;
        self.update_at = Some(Instant::now() + UPDATE);
        let dropped = self.dropped();
        if let Some(opened) = &mut self.opened {
            let _ = opened.index.set_dropped(dropped, now_ns());
        }
    }

    /// When [`Sink::update_dropped`] is to be called because of what was dropped last; told once.
    pub(super) fn set_timer(&mut self) -> Option<Instant> {
        let written = self.opened.as_ref()?.index.dropped();
        if self.timer_set || written >= self.dropped() {
            return None;
        }
        self.timer_set = true;
        self.update_at
    }

    /// Marks the log as complete. May be tried again.
    pub(super) fn finish(&mut self) -> io::Result<()> {
        if let Err(Refusal::Disk(_, e)) = self.open() {
            return Err(e);
        }
        let dropped = self.dropped();
        if let Some(opened) = &mut self.opened {
            if opened.index.dropped() < dropped {
                opened.index.set_dropped(dropped, now_ns())?;
            }
            opened.index.end(opened.len, now_ns())?;
        }
        Ok(())
    }
}

/// Moves what is in the pipe, at most `most` bytes, into `file` at `offset`.
fn splice_all(
    pipe: &OwnedFd,
    file: &File,
    mut offset: Option<&mut u64>,
    most: usize,
) -> Result<Step, Errno> {
    loop {
        let at = offset.as_deref_mut();
        match splice(pipe, None, file, at, most, SpliceFlags::NONBLOCK) {
            Ok(0) => return Ok(Step::Ended),
            Ok(n) => return Ok(Step::Moved(n)),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(Step::Empty),
            Err(e) => return Err(e),
        }
    }
}

fn discard(source: &mut Source, most: usize, means: &mut Means) -> Step {
    if !source.copies {
        match splice_all(&source.fd, &means.null, None, most) {
            Ok(Step::Moved(n)) => return Step::Dropped(n),
            Ok(step) => return step,
            Err(_) => source.copies = true,
        }
    }
    match read(source, most, means) {
        Ok(bytes) => Step::Dropped(bytes.len()),
        Err(step) => step,
    }
}

/// Reads at most a buffer's worth. A source that fails has ended: so does a terminal's.
fn read<'a>(source: &Source, most: usize, means: &'a mut Means) -> Result<&'a [u8], Step> {
    let most = most.min(means.buffer.len());
    loop {
        match rustix::io::read(&source.fd, &mut means.buffer[..most]) {
            Ok(0) => return Err(Step::Ended),
            Ok(n) => return Ok(&means.buffer[..n]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Err(Step::Empty),
            Err(_) => return Err(Step::Ended),
        }
    }
}

/// Writes at `offset`, which moves along; on failure says how much was left.
fn write_all(file: &File, mut bytes: &[u8], offset: &mut u64) -> Result<(), (usize, io::Error)> {
    while !bytes.is_empty() {
        match file.write_at(bytes, *offset) {
            Ok(0) => return Err((bytes.len(), io::ErrorKind::WriteZero.into())),
            Ok(n) => {
                *offset += n as u64;
                bytes = &bytes[n..];
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err((bytes.len(), e)),
        }
    }
    Ok(())
}
