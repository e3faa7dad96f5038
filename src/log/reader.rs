//! Reading a log by offset, while it grows or later, with whatever is left of its index.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::ids::{ProgramName, RunId};

use super::append::{first_record, read_full};
use super::format::{Cut, HEADER_LEN, Header, RECORD_LEN, Record, Stream, What};
use super::{LogError, place};

/// How many records are read at once: a reader's memory does not grow with the index.
const BLOCK_RECORDS: usize = 4096;

/// How much of a log that is rotated is delivered at once, in bytes.
const AT_ONCE: u64 = 64 * 1024;

/// A stretch of a log: bytes of one stream that arrived at one time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// Where the bytes came from; stdout where the index does not say.
    pub stream: Stream,
    /// When they came (the first of them, the others within a millisecond or in one go):
    /// nanoseconds since 1970. None where the index does not say.
    pub time: Option<i64>,
    /// Where in the log they begin.
    pub offset: u64,
    /// How many they are, never 0.
    pub len: u64,
}

/// Reads a log that may still grow.
///
/// It never moves the offset of a file. Nothing in an index makes it fail: what is missing or
/// makes no sense is passed over, and every byte of the log is delivered once.
#[derive(Debug)]
pub struct Reader {
    log: File,
    idx: Option<File>,
    /// The next byte to deliver.
    position: u64,
    /// What is said of the byte at `position`.
    stream: Stream,
    time: Option<i64>,
    /// Length of the log when it was last looked at. Records of the index are to be believed
    /// below it, if they were read after it was found: later ones may yet be rewritten.
    known: u64,
    /// The next record to look at.
    next: u64,
    /// Records from number `block_at` on, read after `known` was found.
    block: Vec<Record>,
    block_at: u64,
    /// Where the log begins, when that was last looked at.
    cut: Cut,
    /// Bytes that were passed over because they are gone.
    missed: u64,
    /// The last dropped record: its count, and the number of the record to go on looking at.
    dropped: u64,
    dropped_next: u64,
}

impl Reader {
    /// Reads these files, open for reading. A file that is no index counts as none.
    #[must_use]
    pub fn new(log: File, idx: Option<File>) -> Self {
        let idx = idx.filter(|file| matches!(read_header(file), Ok(Some(_))));
        let mut reader = Self {
            log,
            idx,
            position: 0,
            stream: Stream::Stdout,
            time: None,
            known: 0,
            next: 0,
            block: Vec::new(),
            block_at: 0,
            cut: Cut::default(),
            missed: 0,
            dropped: 0,
            dropped_next: 0,
        };
        reader.look_at_cut(true);
        reader.dropped_next = reader.next;
        reader
    }

    /// Whether the log may lose its beginning while it is read.
    #[must_use]
    pub fn rotates(&self) -> bool {
        self.cut.rotates
    }

    /// How many bytes were passed over, because they were gone when their turn came.
    #[must_use]
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Where the log begins now. What is gone is passed over; what is left out, by one who begins.
    fn look_at_cut(&mut self, begins: bool) {
        let Some(idx) = &self.idx else {
            return;
        };
        let Ok(Some(header)) = read_header(idx) else {
            return;
        };
        if header.cut != self.cut {
            self.cut = header.cut;
            let first = first_record(idx, header.cut);
            if self.next < first {
                self.next = first;
                self.block.clear();
            }
        }
        let floor = if begins { self.cut.at } else { self.cut.gone };
        let gone = floor.saturating_sub(self.position);
        self.position += gone;
        self.missed += gone;
    }

    /// Opens the log of a run; its index may be missing.
    ///
    /// # Errors
    /// What could not be opened.
    pub fn open(log_dir: &Path, program: &ProgramName, run: RunId) -> Result<Self, LogError> {
        let (log, idx) = place::open_for_reading(log_dir, program, run)?;
        Ok(Self::new(log, idx))
    }

    /// The index' header as it is now: the process id may come later than the rest.
    ///
    /// # Errors
    /// Reading failed.
    pub fn header(&self) -> Result<Option<Header>, LogError> {
        match &self.idx {
            None => Ok(None),
            Some(file) => read_header(file).map_err(|e| LogError::new("read", "the index", e)),
        }
    }

    /// Length of the log as it is now, in bytes.
    ///
    /// # Errors
    /// Asking the system failed.
    pub fn size(&self) -> Result<u64, LogError> {
        match self.log.metadata() {
            Ok(found) => Ok(found.len()),
            Err(e) => Err(LogError::new("look at", "the log", e)),
        }
    }

    /// Where the next chunk begins.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Goes on at byte `offset` of the log.
    pub fn seek(&mut self, offset: u64) {
        self.position = offset;
        self.stream = Stream::Stdout;
        self.time = None;
        self.known = 0;
        self.next = 0;
        self.cut = Cut::default();
        self.block.clear();
        self.look_at_cut(offset == 0);
    }

    /// The next bytes, up to what the log holds now. None: there are no more so far. To tell
    /// that from the end, ask [`Reader::is_complete`] *before*.
    ///
    /// # Errors
    /// Reading failed.
    pub fn next_chunk(&mut self) -> Result<Option<Chunk>, LogError> {
        if self.position >= self.known {
            self.known = self.size()?;
            self.block.clear();
        }
        if self.cut.rotates {
            self.look_at_cut(false);
        }
        if self.position >= self.known {
            return Ok(None);
        }
        let mut end = self.known;
        if self.cut.rotates {
            // It has to be read before it is gone.
            end = end.min(self.position + AT_ONCE);
        }
        while let Some(record) = self.record()? {
            match record.what {
                What::Segment(stream, offset) if offset <= self.position => {
                    self.stream = stream;
                    self.time = Some(record.time);
                }
                What::Segment(_, offset) => {
                    end = end.min(offset);
                    break;
                }
                What::Dropped(_) | What::End(_) | What::Unknown => {}
            }
            self.next += 1;
        }
        let chunk = Chunk {
            stream: self.stream,
            time: self.time,
            offset: self.position,
            len: end - self.position,
        };
        self.position = end;
        Ok(Some(chunk))
    }

    /// Reads bytes of the log from `offset` on, and says how many: fewer than fit into `buf` only
    /// where the log ends.
    ///
    /// # Errors
    /// Reading failed.
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<usize, LogError> {
        let failed = |e| LogError::new("read", "the log", e);
        let read = read_full(&self.log, buf, offset).map_err(failed)?;
        if self.cut.rotates
            && let Some(idx) = &self.idx
            && let Ok(Some(header)) = read_header(idx)
            && header.cut.gone > offset
        {
            let text = "it was rotated faster than it could be read";
            return Err(failed(std::io::Error::other(text)));
        }
        Ok(read)
    }

    /// How many bytes of the run's output are known not to be in the log.
    ///
    /// # Errors
    /// Reading failed.
    pub fn dropped(&mut self) -> Result<u64, LogError> {
        let Some(file) = &self.idx else {
            return Ok(0);
        };
        loop {
            let records = read_records(file, self.dropped_next)?;
            for record in &records {
                if let What::Dropped(count) = record.what {
                    self.dropped = count;
                }
            }
            if records.len() < BLOCK_RECORDS {
                // The last one may be rewritten: it is looked at again next time.
                self.dropped_next += (records.len() as u64).saturating_sub(1);
                return Ok(self.dropped);
            }
            self.dropped_next += records.len() as u64;
        }
    }

    /// Whether the output is complete: nothing will be added to the log.
    ///
    /// # Errors
    /// Reading failed.
    pub fn is_complete(&self) -> Result<bool, LogError> {
        Ok(self.final_size()?.is_some())
    }

    /// The size that a complete log must have, in bytes: [`Reader::size`] is smaller if it was
    /// cut later. None while it is not complete.
    ///
    /// # Errors
    /// Reading failed.
    pub fn final_size(&self) -> Result<Option<u64>, LogError> {
        let Some(file) = &self.idx else {
            return Ok(None);
        };
        let failed = |e| LogError::new("read", "the index", e);
        let records = file
            .metadata()
            .map_err(failed)?
            .len()
            .saturating_sub(HEADER_LEN)
            / RECORD_LEN;
        if records == 0 {
            return Ok(None);
        }
        let mut bytes = [0; RECORD_LEN as usize];
        let at = HEADER_LEN + (records - 1) * RECORD_LEN;
        if read_full(file, &mut bytes, at).map_err(failed)? < bytes.len() {
            return Ok(None);
        }
        match Record::from_bytes(&bytes).what {
            What::End(size) => Ok(Some(size)),
            _ => Ok(None),
        }
    }

    /// The record number `next`, if it is there.
    fn record(&mut self) -> Result<Option<Record>, LogError> {
        let Some(file) = &self.idx else {
            return Ok(None);
        };
        let cached = |block: &[Record], at: u64| {
            let n = usize::try_from(self.next.checked_sub(at)?).ok()?;
            block.get(n).copied()
        };
        if let Some(record) = cached(&self.block, self.block_at) {
            return Ok(Some(record));
        }
        self.block = read_records(file, self.next)?;
        self.block_at = self.next;
        Ok(self.block.first().copied())
    }
}

fn read_header(file: &File) -> std::io::Result<Option<Header>> {
    let mut bytes = [0; HEADER_LEN as usize];
    file.read_exact_at(&mut bytes, 0)
        .map(|()| Header::from_bytes(&bytes))
}

/// A block of records from number `first` on; less than a block at the end of the file.
fn read_records(file: &File, first: u64) -> Result<Vec<Record>, LogError> {
    let mut bytes = vec![0; BLOCK_RECORDS * RECORD_LEN as usize];
    let read = read_full(file, &mut bytes, HEADER_LEN + first * RECORD_LEN)
        .map_err(|e| LogError::new("read", "the index", e))?;
    let (records, _) = bytes[..read].as_chunks();
    Ok(records.iter().map(Record::from_bytes).collect())
}
