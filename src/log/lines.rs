//! A log line by line, with the time of each: for people who read, not for bytes on their way.

use super::LogError;
use super::format::Stream;
use super::reader::{Chunk, Reader};

/// A line that is longer is given in pieces, so that memory stays bounded.
pub const LONGEST_LINE: usize = 64 * 1024;

/// A line, or a piece of a long one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Where it came from.
    pub stream: Stream,
    /// When its first byte came: nanoseconds since 1970. None where the index does not say.
    pub time: Option<i64>,
    /// Whether this is where the line begins; a piece that does not follows the piece before
    /// it of the same stream.
    pub begins: bool,
    /// Its bytes, with the newline, if it has come.
    pub bytes: Vec<u8>,
}

/// Reads lines of one or both streams. The streams are told apart: a line of one that the
/// other interrupts is given whole, when it is complete.
#[derive(Debug)]
pub struct Lines {
    reader: Reader,
    only: Option<Stream>,
    /// What is left of the current chunk.
    rest: Option<Chunk>,
    block: Vec<u8>,
    block_used: usize,
    /// Lines that are not complete yet: stdout's and stderr's.
    open: [Open; 2],
}

#[derive(Debug, Default)]
struct Open {
    bytes: Vec<u8>,
    time: Option<i64>,
    /// Where in the log it begins.
    offset: u64,
    /// Whether a piece of it has been given.
    continues: bool,
}

impl Lines {
    /// Reads from where `reader` stands; `only` one stream, or both.
    #[must_use]
    pub fn new(reader: Reader, only: Option<Stream>) -> Self {
        Self {
            reader,
            only,
            rest: None,
            block: Vec::new(),
            block_used: 0,
            open: Default::default(),
        }
    }

    /// What it reads.
    #[must_use]
    pub fn reader(&mut self) -> &mut Reader {
        &mut self.reader
    }

    /// The next line that is complete. None: no further one so far.
    ///
    /// # Errors
    /// Reading failed.
    pub fn next_line(&mut self) -> Result<Option<Line>, LogError> {
        loop {
            if self.block_used == self.block.len() && !self.fill()? {
                return Ok(None);
            }
            if let Some(line) = self.take() {
                return Ok(Some(line));
            }
        }
    }

    /// What is left when there will be no more: lines without a newline, the older one first.
    /// To be called until it says None.
    pub fn rest(&mut self) -> Option<Line> {
        let [out, err] = &self.open;
        let first = match (out.bytes.is_empty(), err.bytes.is_empty()) {
            (true, true) => return None,
            (false, true) => Stream::Stdout,
            (true, false) => Stream::Stderr,
            (false, false) if out.offset < err.offset => Stream::Stdout,
            (false, false) => Stream::Stderr,
        };
        Some(self.close(first))
    }

    /// Reads the next block of a wanted chunk. False: there is none so far.
    fn fill(&mut self) -> Result<bool, LogError> {
        loop {
            let chunk = match self.rest.take() {
                Some(chunk) => chunk,
                None => match self.reader.next_chunk()? {
                    Some(chunk) => chunk,
                    None => return Ok(false),
                },
            };
            if self.only.is_some_and(|only| only != chunk.stream) {
                continue;
            }
            let want = usize::try_from(chunk.len).map_or(LONGEST_LINE, |n| n.min(LONGEST_LINE));
            self.block.resize(want, 0);
            let read = self.reader.read_at(&mut self.block, chunk.offset)?;
            self.block.truncate(read);
            self.block_used = 0;
            if read == 0 {
                // The log was cut after the reader looked at its length.
                continue;
            }
            self.rest = Some(Chunk {
                offset: chunk.offset + read as u64,
                len: chunk.len - read as u64,
                ..chunk
            });
            return Ok(true);
        }
    }

    /// Moves bytes of the block to the line they belong to, and gives the line if that ends it.
    fn take(&mut self) -> Option<Line> {
        let chunk = self.rest?;
        let from = &self.block[self.block_used..];
        let open = &mut self.open[chunk.stream as usize];
        if open.bytes.is_empty() {
            open.time = chunk.time;
            open.offset = chunk.offset - from.len() as u64;
        }
        let room = LONGEST_LINE - open.bytes.len();
        let newline = from.iter().take(room).position(|byte| *byte == b'\n');
        let taken = newline.map_or(room.min(from.len()), |n| n + 1);
        open.bytes.extend_from_slice(&from[..taken]);
        let full = open.bytes.len() == LONGEST_LINE;
        self.block_used += taken;
        (newline.is_some() || full).then(|| self.close(chunk.stream))
    }

    fn close(&mut self, stream: Stream) -> Line {
        let open = &mut self.open[stream as usize];
        let bytes = std::mem::take(&mut open.bytes);
        let begins = !open.continues;
        open.continues = !bytes.ends_with(b"\n");
        Line {
            stream,
            time: open.time,
            begins,
            bytes,
        }
    }
}
