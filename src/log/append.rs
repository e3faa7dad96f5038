//! Appending to a log: the index as the pump and the daemon write it, and the daemon's own words.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use crate::ids::{ProgramName, RunId};

use super::format::{
    BLOCK, CUT_OFFSET, Cut, HEADER_LEN, Header, RECORD_LEN, Record, Stream, What, now_ns,
};
use super::{LogError, place};
use rustix::fs::{FallocateFlags, fallocate};

/// Output of one stream this close to the last record of the same stream gets none of its own.
const SAME_MOMENT_NS: i64 = 1_000_000;

/// How much of an index is looked at in one read.
const READ: usize = 64 * 1024;

/// The writing end of an index. There must be only one at a time for a file.
///
/// It never moves the file's offset, and after an error it is as it was before the attempt.
#[derive(Debug)]
pub struct IndexWriter {
    file: Arc<File>,
    /// Where the next record goes.
    len: u64,
    /// The last record, if it is known.
    tail: Option<Record>,
    /// The count of the last dropped record.
    dropped: u64,
    /// Where the log begins, and the number of the record that says what is there.
    cut: Cut,
    first: u64,
}

impl IndexWriter {
    /// Goes on with an index whose log has `log_len` bytes: a partial record at its end, and
    /// records beyond the log's end, are cut off. A header that is missing or not one is written
    /// anew, without a process id.
    ///
    /// # Errors
    /// Reading or writing failed.
    pub fn resume(file: impl Into<Arc<File>>, log_len: u64, run: RunId) -> io::Result<Self> {
        let file = file.into();
        let size = file.metadata()?.len();
        let mut header = [0; HEADER_LEN as usize];
        let intact = read_full(&file, &mut header, 0)? == header.len()
            && Header::from_bytes(&header).is_some();
        let mut writer = Self {
            file,
            len: HEADER_LEN,
            tail: None,
            dropped: 0,
            cut: Cut::default(),
            first: 0,
        };
        if let Some(header) = Header::from_bytes(&header).filter(|_| intact) {
            writer.cut = header.cut;
            writer.first = first_record(&writer.file, header.cut);
            writer.len += writer.first * RECORD_LEN;
        }
        if !intact {
            writer.file.set_len(0)?;
            writer
                .file
                .write_all_at(&Header::for_run(run)?.to_bytes(), 0)?;
            return Ok(writer);
        }
        writer.skip_what_holds(log_len, size)?;
        writer.first = writer.covering(writer.cut.at)?;
        if writer.len < size {
            writer.file.set_len(writer.len)?;
        }
        Ok(writer)
    }

    /// Moves behind the last record that may be true of a log with `log_len` bytes, in an index
    /// of `size` bytes.
    fn skip_what_holds(&mut self, log_len: u64, size: u64) -> io::Result<()> {
        let left = usize::try_from(size.saturating_sub(self.len)).unwrap_or(READ);
        if left == 0 {
            return Ok(());
        }
        let mut block = vec![0; left.min(READ)];
        loop {
            let read = read_full(&self.file, &mut block, self.len)?;
            let (records, _) = block[..read].as_chunks();
            for record in records.iter().map(Record::from_bytes) {
                match record.what {
                    What::Segment(_, offset) if offset > log_len => return Ok(()),
                    What::Dropped(count) => self.dropped = count,
                    _ => {}
                }
                self.tail = Some(record);
                self.len += RECORD_LEN;
            }
            if records.is_empty() || read < block.len() {
                return Ok(());
            }
        }
    }

    /// Where the log begins.
    #[must_use]
    pub fn cut(&self) -> Cut {
        self.cut
    }

    /// How much of the index counts, in bytes.
    #[must_use]
    pub fn kept(&self) -> u64 {
        self.len - self.first * RECORD_LEN
    }

    /// Lets the log begin at `at`. What an earlier cut left out is given back to the disk.
    ///
    /// # Errors
    /// Writing failed, or the file system cannot take back the beginning of a file.
    pub fn cut_at(&mut self, log: &File, at: u64) -> io::Result<()> {
        let (before, first) = (self.cut, self.first);
        let cut = Cut {
            rotates: true,
            at,
            gone: before.at,
        };
        let covering = self.covering(at)?;
        self.file.write_all_at(&cut.to_bytes(), CUT_OFFSET)?;
        (self.cut, self.first) = (cut, covering);
        punch(log, before.gone, before.at)?;
        // The header is in the first block, which therefore stays.
        punch(&self.file, BLOCK, HEADER_LEN + first * RECORD_LEN)
    }

    /// The number of the last segment that begins at `at` or before.
    fn covering(&self, at: u64) -> io::Result<u64> {
        let (mut low, mut high) = (self.first, self.records());
        let mut first = low;
        while low < high {
            let middle = low + (high - low) / 2;
            match self.segment_from(middle, high)? {
                Some((number, offset)) if offset <= at => (first, low) = (number, number + 1),
                Some(_) | None => high = middle,
            }
        }
        Ok(first)
    }

    fn records(&self) -> u64 {
        (self.len - HEADER_LEN) / RECORD_LEN
    }

    /// The first segment from record number `from` on, and its offset; none before `end`.
    fn segment_from(&self, from: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
        for number in from..end {
            let mut bytes = [0; RECORD_LEN as usize];
            if read_full(&self.file, &mut bytes, HEADER_LEN + number * RECORD_LEN)? < bytes.len() {
                return Ok(None);
            }
            if let What::Segment(_, offset) = Record::from_bytes(&bytes).what {
                return Ok(Some((number, offset)));
            }
        }
        Ok(None)
    }

    /// Length of the index, in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // it has a header
    pub fn len(&self) -> u64 {
        self.len
    }

    /// The count of the last dropped record, 0 without one.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Says that what follows at `offset`, at `time`, comes from `stream`. To be called before
    /// the bytes are written. Mostly writes nothing, see [`super::format`].
    ///
    /// # Errors
    /// Writing failed; the bytes must not be written then.
    pub fn segment(&mut self, stream: Stream, offset: u64, time: i64) -> io::Result<()> {
        let record = Record {
            what: What::Segment(stream, offset),
            time,
        };
        match self.tail {
            Some(Record {
                what: What::Segment(last, _),
                time: last_time,
            }) if last == stream && (0..SAME_MOMENT_NS).contains(&time.wrapping_sub(last_time)) => {
                Ok(())
            }
            Some(Record {
                what: What::Segment(_, last),
                ..
            }) if last == offset => self.rewrite(record),
            _ => self.append(record),
        }
    }

    /// Says that `total` bytes have been dropped so far.
    ///
    /// # Errors
    /// Writing failed.
    pub fn set_dropped(&mut self, total: u64, time: i64) -> io::Result<()> {
        let record = Record {
            what: What::Dropped(total),
            time,
        };
        match self.tail {
            Some(Record {
                what: What::Dropped(_),
                ..
            }) => self.rewrite(record)?,
            _ => self.append(record)?,
        }
        self.dropped = total;
        Ok(())
    }

    /// Says that the output is complete with `size` bytes in the log.
    ///
    /// # Errors
    /// Writing failed.
    pub fn end(&mut self, size: u64, time: i64) -> io::Result<()> {
        let what = What::End(size);
        match self.tail {
            Some(tail) if tail.what == what => Ok(()),
            _ => self.append(Record { what, time }),
        }
    }

    fn append(&mut self, record: Record) -> io::Result<()> {
        write_record(&self.file, record, self.len)?;
        self.len += RECORD_LEN;
        self.tail = Some(record);
        Ok(())
    }

    fn rewrite(&mut self, record: Record) -> io::Result<()> {
        // Unknown until it is written: a failed attempt may leave either.
        self.tail = None;
        write_record(&self.file, record, self.len - RECORD_LEN)?;
        self.tail = Some(record);
        Ok(())
    }
}

/// The number of a record from which on an index is there, whatever of it was given back.
pub(super) fn first_record(idx: &File, cut: Cut) -> u64 {
    if cut.at == 0 {
        return 0;
    }
    let there = rustix::fs::seek(idx, rustix::fs::SeekFrom::Data(BLOCK));
    let there = there.unwrap_or(HEADER_LEN).max(HEADER_LEN);
    (there - HEADER_LEN) / RECORD_LEN
}

/// Gives a part of a file back to the disk; its size stays.
fn punch(file: &File, from: u64, to: u64) -> io::Result<()> {
    // Only whole blocks are given back: one that was left over before may be whole now.
    let from = from - from % BLOCK;
    if to <= from {
        return Ok(());
    }
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(fallocate(file, flags, from, to - from)?)
}

/// One write, since a record must be there as a whole or not at all.
fn write_record(file: &File, record: Record, at: u64) -> io::Result<()> {
    loop {
        match file.write_at(&record.to_bytes(), at) {
            Ok(n) if n == RECORD_LEN as usize => return Ok(()),
            Ok(_) => return Err(io::ErrorKind::StorageFull.into()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Reads until `buf` is full or the file ends, and says how much that was.
pub(super) fn read_full(file: &File, buf: &mut [u8], at: u64) -> io::Result<usize> {
    let mut read = 0;
    while read < buf.len() {
        match file.read_at(&mut buf[read..], at + read as u64) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(read)
}

/// Appends what the daemon itself has to say to a run's log, as its standard error.
///
/// Only for logs that no pump has: before it gets them, or when the run is over.
#[derive(Debug)]
pub struct Writer {
    log: File,
    len: u64,
    index: IndexWriter,
}

impl Writer {
    /// Opens the log of a run, or creates it.
    ///
    /// # Errors
    /// What could not be created, opened, read or written.
    pub fn open(log_dir: &Path, program: &ProgramName, run: RunId) -> Result<Self, LogError> {
        let files = match place::open_for_writing(log_dir, program, run) {
            Err(e) if e.source.kind() == io::ErrorKind::NotFound => {
                place::create(log_dir, program, run)
            }
            other => other,
        }?;
        Self::new(files, run)
    }

    /// Goes on at the end of these files, both open for reading and writing.
    ///
    /// # Errors
    /// Reading or writing the index failed, or asking for the log's length.
    pub fn new(files: place::Files, run: RunId) -> Result<Self, LogError> {
        let asked = files.log.metadata();
        let len = asked
            .map_err(|e| LogError::new("look at", "the log", e))?
            .len();
        let index = IndexWriter::resume(files.idx, len, run)
            .map_err(|e| LogError::new("go on with", "the index", e))?;
        Ok(Self {
            log: files.log,
            len,
            index,
        })
    }

    /// Appends `text` as it is: whoever wants a line ends it.
    ///
    /// # Errors
    /// Writing failed; a part of the text may be there.
    pub fn message(&mut self, text: &[u8]) -> Result<(), LogError> {
        self.index
            .segment(Stream::Stderr, self.len, now_ns())
            .map_err(|e| LogError::new("write", "the index", e))?;
        self.log
            .write_all_at(text, self.len)
            .map_err(|e| LogError::new("write", "the log", e))?;
        self.len += text.len() as u64;
        Ok(())
    }

    /// Marks the log as complete and says its size in bytes.
    ///
    /// # Errors
    /// Writing failed.
    pub fn finish(mut self) -> Result<u64, LogError> {
        self.index
            .end(self.len, now_ns())
            .map_err(|e| LogError::new("write", "the index", e))?;
        Ok(self.len)
    }
}
