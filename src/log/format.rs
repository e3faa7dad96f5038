//! The bytes of an index file. Pure, but for the clocks that [`Header::for_run`] looks at.
//!
//! Everything is little endian. The header takes [`HEADER_LEN`] bytes:
//!
//! | at | length | what |
//! |---|---|---|
//! | 0 | 8 | `DPLRIDX1` |
//! | 8 | 8 | number of the run |
//! | 16 | 16 | boot id |
//! | 32 | 8 | start, ns of CLOCK_BOOTTIME |
//! | 40 | 8 | start, ns of CLOCK_REALTIME since 1970 |
//! | 48 | 4 | process id; 0 until the child has written it |
//! | 52 | 4 | top bit: the log is rotated; others: how far before the next number bytes are still there, in 4096 |
//! | 56 | 8 | the log begins at this offset |
//!
//! Records of [`RECORD_LEN`] bytes follow: a u64 with the kind in its top byte and a value in the
//! others, and an i64 with the time (ns of CLOCK_REALTIME). Kinds:
//!
//! | kind | value | meaning |
//! |---|---|---|
//! | 1 | offset | stdout from here to the next segment, or to the end of the log |
//! | 2 | offset | stderr, likewise |
//! | 3 | bytes | so much output of the run has been dropped so far; the last such record counts |
//! | 4 | size | the output is complete, and the log has this size |
//!
//! A segment may be empty, which means nothing. Readers pass over other kinds. The last record
//! may be rewritten in place while it is a dropped record or an empty segment.

use std::io;
use std::sync::OnceLock;

use rustix::time::{ClockId, clock_gettime};

use crate::ids::RunId;

/// First bytes of an index.
pub const MAGIC: [u8; 8] = *b"DPLRIDX1";
/// Length of the header, in bytes.
pub const HEADER_LEN: u64 = 64;
/// Length of a record, in bytes.
pub const RECORD_LEN: u64 = 16;
/// Where in the index a run's child writes its process id, as a u32.
pub const PID_OFFSET: u64 = 48;
/// Where the index says how a log was cut: see [`Cut`].
pub(super) const CUT_OFFSET: u64 = 52;
/// The log is rotated: it may be cut.
const ROTATES: u32 = 1 << 31;
/// What file systems take back is a multiple of this, in bytes.
pub(super) const BLOCK: u64 = 4096;

/// One of a run's output streams.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Where a log begins. One that is rotated loses its beginning when it becomes too large; offsets
/// stay what they are. What is before `at` is left out; what is before `gone` may not be there
/// any more. So whoever reads on its way has time to notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Cut {
    /// Whether it may be cut at all.
    pub rotates: bool,
    /// The offset of the first byte that counts.
    pub at: u64,
    /// An offset that the part given back to the disk does not go beyond.
    pub gone: u64,
}

impl Cut {
    /// The bytes of a header. They give `gone` as at most 4095 bytes more than it is.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 12] {
        let flag = if self.rotates { ROTATES } else { 0 };
        let kept = self.at.saturating_sub(self.gone) / BLOCK;
        let kept = u32::try_from(kept).unwrap_or(ROTATES - 1).min(ROTATES - 1);
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&(kept | flag).to_le_bytes());
        bytes[4..].copy_from_slice(&self.at.to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: [u8; 12]) -> Self {
        let kept = u32::from_le_bytes(part(&bytes, 0));
        let at = u64::from_le_bytes(part(&bytes, 4));
        Self {
            rotates: kept & ROTATES != 0,
            at,
            gone: at.saturating_sub(u64::from(kept & !ROTATES) * BLOCK),
        }
    }
}

/// What the header of an index says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The run.
    pub run: RunId,
    /// Which boot of the machine it started in.
    pub boot_id: [u8; 16],
    /// When it started: nanoseconds of CLOCK_BOOTTIME.
    pub boottime_ns: i64,
    /// When it started: nanoseconds of CLOCK_REALTIME since 1970.
    pub realtime_ns: i64,
    /// Its process id, once there is one.
    pub pid: Option<u32>,
    /// Where the log begins.
    pub cut: Cut,
}

impl Header {
    /// A header for a run that starts now, in this boot, and has no process yet.
    ///
    /// # Errors
    /// Reading the boot id from `/proc` failed.
    pub fn for_run(run: RunId) -> io::Result<Self> {
        Ok(Self {
            run,
            boot_id: boot_id()?,
            boottime_ns: nanoseconds(ClockId::Boottime),
            realtime_ns: now_ns(),
            pid: None,
            cut: Cut::default(),
        })
    }

    /// The bytes of a file.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_LEN as usize] {
        let mut bytes = [0; HEADER_LEN as usize];
        bytes[..8].copy_from_slice(&MAGIC);
        bytes[8..16].copy_from_slice(&self.run.0.to_le_bytes());
        bytes[16..32].copy_from_slice(&self.boot_id);
        bytes[32..40].copy_from_slice(&self.boottime_ns.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.realtime_ns.to_le_bytes());
        bytes[48..52].copy_from_slice(&self.pid.unwrap_or(0).to_le_bytes());
        bytes[52..].copy_from_slice(&self.cut.to_bytes());
        bytes
    }

    /// Reads what [`Header::to_bytes`] wrote; nothing if it begins otherwise.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; HEADER_LEN as usize]) -> Option<Self> {
        if bytes[..8] != MAGIC {
            return None;
        }
        Some(Self {
            run: RunId(u64::from_le_bytes(part(bytes, 8))),
            boot_id: part(bytes, 16),
            boottime_ns: i64::from_le_bytes(part(bytes, 32)),
            realtime_ns: i64::from_le_bytes(part(bytes, 40)),
            pid: Some(u32::from_le_bytes(part(bytes, 48))).filter(|pid| *pid != 0),
            cut: Cut::from_bytes(part(bytes, 52)),
        })
    }
}

/// One record of an index, and its time in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// What it says.
    pub what: What,
    /// When: nanoseconds of CLOCK_REALTIME since 1970.
    pub time: i64,
}

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The stream's bytes begin at this offset.
    Segment(Stream, u64),
    /// So many bytes have been dropped so far.
    Dropped(u64),
    /// The output is complete, the log has this many bytes.
    End(u64),
    /// Not written by this version.
    Unknown,
}

/// Values take the lower 56 bits.
const VALUE: u64 = (1 << 56) - 1;

impl Record {
    /// The bytes of a file. Values above 2^56 - 1 are written as that.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; RECORD_LEN as usize] {
        let (kind, value) = match self.what {
            What::Segment(Stream::Stdout, offset) => (1, offset),
            What::Segment(Stream::Stderr, offset) => (2, offset),
            What::Dropped(count) => (3, count),
            What::End(size) => (4, size),
            What::Unknown => (0, 0),
        };
        let word = (kind << 56) | value.min(VALUE);
        let mut bytes = [0; RECORD_LEN as usize];
        bytes[..8].copy_from_slice(&word.to_le_bytes());
        bytes[8..].copy_from_slice(&self.time.to_le_bytes());
        bytes
    }

    /// Reads what [`Record::to_bytes`] wrote. Every 16 bytes are a record.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; RECORD_LEN as usize]) -> Self {
        let word = u64::from_le_bytes(part(bytes, 0));
        let value = word & VALUE;
        let what = match word >> 56 {
            1 => What::Segment(Stream::Stdout, value),
            2 => What::Segment(Stream::Stderr, value),
            3 => What::Dropped(value),
            4 => What::End(value),
            _ => What::Unknown,
        };
        Self {
            what,
            time: i64::from_le_bytes(part(bytes, 8)),
        }
    }
}

/// The current time: nanoseconds of CLOCK_REALTIME since 1970.
#[must_use]
pub fn now_ns() -> i64 {
    nanoseconds(ClockId::Realtime)
}

fn nanoseconds(clock: ClockId) -> i64 {
    let time = clock_gettime(clock);
    time.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(time.tv_nsec)
}

/// The kernel's name of this boot. It stays the same as long as this process lives.
fn boot_id() -> io::Result<[u8; 16]> {
    static KNOWN: OnceLock<[u8; 16]> = OnceLock::new();
    if let Some(id) = KNOWN.get() {
        return Ok(*id);
    }
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(id) if digits.len() == 32 => Ok(*KNOWN.get_or_init(|| id.to_be_bytes())),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the boot id is not a UUID",
        )),
    }
}

/// `N` bytes from `at` on, which the callers' constants keep inside.
fn part<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(&bytes[at..at + N]);
    out
}
