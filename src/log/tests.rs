use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use tempfile::TempDir;

use super::format::{HEADER_LEN, RECORD_LEN};
use super::*;
use crate::config::model::Retention;
use crate::ids::{ProgramName, RunId};

const RUN: RunId = RunId(7);
const MS: i64 = 1_000_000;

fn program(name: &str) -> ProgramName {
    ProgramName::new(name).unwrap()
}

#[test]
fn programs_are_kept_apart_where_the_file_system_can() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        spread(dir.path());
        create(dir.path(), &program("team/app"), RUN).unwrap();
        remove(dir.path(), &program("team/app"), RUN);
    }
    let ext = rustix::fs::statfs(dir.path()).unwrap().f_type == 0xEF53;
    let flags = rustix::fs::ioctl_getflags(File::open(dir.path()).unwrap());
    let spread = flags.is_ok_and(|flags| flags.contains(rustix::fs::IFlags::TOPDIR));
    assert_eq!(spread, ext);
    // What is missing is somebody else's error.
    super::spread(&dir.path().join("missing"));
}

/// A log that is written piece by piece, at the times that the test says.
struct Sample {
    dir: TempDir,
    log: File,
    index: IndexWriter,
    len: u64,
}

impl Sample {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let files = create(dir.path(), &program("app"), RUN).unwrap();
        let index = IndexWriter::resume(files.idx, 0, RUN).unwrap();
        Self {
            dir,
            log: files.log,
            index,
            len: 0,
        }
    }

    fn put(&mut self, stream: Stream, time: i64, bytes: &[u8]) {
        self.index.segment(stream, self.len, time).unwrap();
        self.log.write_all_at(bytes, self.len).unwrap();
        self.len += bytes.len() as u64;
    }

    fn reader(&self) -> Reader {
        Reader::open(self.dir.path(), &program("app"), RUN).unwrap()
    }

    fn idx(&self) -> std::path::PathBuf {
        index_path(self.dir.path(), &program("app"), RUN)
    }
}

/// Three segments with a dropped record among them, and an end.
fn sample() -> Sample {
    let mut sample = Sample::new();
    sample.put(Stream::Stdout, 10 * MS, b"one\ntw");
    sample.put(Stream::Stderr, 20 * MS, b"oops\n");
    sample.index.set_dropped(5, 25 * MS).unwrap();
    sample.put(Stream::Stdout, 30 * MS, b"o\n");
    sample.index.end(13, 31 * MS).unwrap();
    sample
}

fn chunks(mut reader: Reader) -> Vec<Chunk> {
    let mut all = Vec::new();
    while let Some(chunk) = reader.next_chunk().unwrap() {
        all.push(chunk);
    }
    all
}

/// Checks that the chunks cover the log once, in order.
fn assert_covers(chunks: &[Chunk], len: u64) {
    let mut at = 0;
    for chunk in chunks {
        assert_eq!(chunk.offset, at);
        assert!(chunk.len > 0);
        at += chunk.len;
    }
    assert_eq!(at, len);
}

#[test]
fn a_header_is_read_as_it_was_written_and_the_child_adds_its_pid() {
    let sample = Sample::new();
    let header = sample.reader().header().unwrap().unwrap();
    assert_eq!((header.run, header.pid), (RUN, None));
    assert_eq!(
        Header::from_bytes(&header.to_bytes()),
        Some(header),
        "round trip"
    );
    assert_ne!(header.boot_id, [0; 16]);
    assert!(header.boottime_ns > 0 && (now_ns() - header.realtime_ns) < 60_000 * MS);
    let idx = File::options().write(true).open(sample.idx()).unwrap();
    idx.write_all_at(&4321u32.to_le_bytes(), PID_OFFSET)
        .unwrap();
    assert_eq!(sample.reader().header().unwrap().unwrap().pid, Some(4321));
}

#[test]
fn segments_come_back_with_stream_and_time() {
    let sample = sample();
    let mut reader = sample.reader();
    assert_eq!(reader.dropped().unwrap(), 5);
    assert_eq!(reader.final_size().unwrap(), Some(13));
    let chunk = |stream, time: i64, offset, len| Chunk {
        stream,
        time: Some(time * MS),
        offset,
        len,
    };
    let all = [
        chunk(Stream::Stdout, 10, 0, 6),
        chunk(Stream::Stderr, 20, 6, 5),
        chunk(Stream::Stdout, 30, 11, 2),
    ];
    assert_eq!(chunks(reader), all);
    let mut reader = sample.reader();
    reader.seek(8);
    assert_eq!(
        reader.next_chunk().unwrap(),
        Some(chunk(Stream::Stderr, 20, 8, 3))
    );
    reader.seek(3);
    assert_eq!(
        reader.next_chunk().unwrap(),
        Some(chunk(Stream::Stdout, 10, 3, 3))
    );
    reader.seek(99);
    assert_eq!(reader.next_chunk().unwrap(), None);
}

#[test]
fn output_of_one_stream_within_a_millisecond_takes_one_record() {
    let mut sample = Sample::new();
    sample.put(Stream::Stdout, 10 * MS, b"a");
    sample.put(Stream::Stdout, 10 * MS + 999_999, b"b");
    assert_eq!(sample.index.len(), HEADER_LEN + RECORD_LEN);
    sample.put(Stream::Stdout, 11 * MS, b"c");
    sample.put(Stream::Stderr, 11 * MS, b"d");
    assert_eq!(sample.index.len(), HEADER_LEN + 3 * RECORD_LEN);
}

#[test]
fn a_reader_follows_a_log_that_grows_and_sees_no_byte_under_a_wrong_stream() {
    let mut sample = Sample::new();
    let mut reader = sample.reader();
    assert_eq!(reader.next_chunk().unwrap(), None);
    // Announced, but then it was the other stream that had something.
    sample.index.segment(Stream::Stdout, 0, 10 * MS).unwrap();
    assert_eq!(reader.next_chunk().unwrap(), None);
    sample.put(Stream::Stderr, 20 * MS, b"ab");
    let chunk = reader.next_chunk().unwrap().unwrap();
    assert_eq!(
        (chunk.stream, chunk.time, chunk.len),
        (Stream::Stderr, Some(20 * MS), 2)
    );
    sample.index.segment(Stream::Stdout, 2, 30 * MS).unwrap();
    sample.log.write_all_at(b"c", 2).unwrap();
    sample.len = 3;
    let chunk = reader.next_chunk().unwrap().unwrap();
    assert_eq!(
        (chunk.stream, chunk.offset, chunk.len),
        (Stream::Stdout, 2, 1)
    );
    assert!(!reader.is_complete().unwrap());
    sample.index.end(3, 40 * MS).unwrap();
    assert!(reader.is_complete().unwrap());
    assert_eq!(reader.next_chunk().unwrap(), None);
}

#[test]
fn the_count_of_dropped_bytes_is_followed_while_it_is_rewritten() {
    let mut sample = Sample::new();
    let mut reader = sample.reader();
    assert_eq!(reader.dropped().unwrap(), 0);
    for count in [3, 9, 27] {
        sample.index.set_dropped(count, 0).unwrap();
        assert_eq!(reader.dropped().unwrap(), count);
    }
    assert_eq!(sample.index.len(), HEADER_LEN + RECORD_LEN);
    sample.put(Stream::Stdout, MS, b"x");
    assert_eq!(reader.dropped().unwrap(), 27);
    sample.index.set_dropped(81, 0).unwrap();
    assert_eq!(reader.dropped().unwrap(), 81);
}

#[test]
fn an_index_cut_at_any_byte_hides_no_byte_of_the_log() {
    let sample = sample();
    let whole = fs::read(sample.idx()).unwrap();
    for cut in 0..=whole.len() {
        fs::write(sample.idx(), &whole[..cut]).unwrap();
        let mut reader = sample.reader();
        reader.dropped().unwrap();
        assert_eq!(reader.is_complete().unwrap(), cut == whole.len());
        let chunks = chunks(reader);
        assert_covers(&chunks, 13);
        let unknown = cut < (HEADER_LEN + RECORD_LEN) as usize;
        assert_eq!(chunks[0].time.is_none(), unknown, "cut at {cut}");
        assert_eq!(chunks[0].stream, Stream::Stdout);
    }
    fs::remove_file(sample.idx()).unwrap();
    assert_covers(&chunks(sample.reader()), 13);
}

#[test]
fn a_log_cut_at_any_byte_is_read_to_its_end() {
    let sample = sample();
    for len in (0..13).rev() {
        sample.log.set_len(len).unwrap();
        let reader = sample.reader();
        assert_eq!(reader.final_size().unwrap(), Some(13));
        assert_covers(&chunks(reader), len);
    }
}

#[test]
fn an_index_of_many_blocks_is_read_and_resumed_as_a_whole() {
    let mut sample = Sample::new();
    let stream = |n: u64| {
        if n.is_multiple_of(2) {
            Stream::Stdout
        } else {
            Stream::Stderr
        }
    };
    for n in 0..10_000 {
        sample.put(stream(n), n as i64, b"xyz");
    }
    let idx = File::options()
        .read(true)
        .write(true)
        .open(sample.idx())
        .unwrap();
    let resumed = IndexWriter::resume(idx, 30_000, RUN).unwrap();
    assert_eq!(resumed.len(), HEADER_LEN + 10_000 * RECORD_LEN);
    let all = chunks(sample.reader());
    assert_eq!(all.len(), 10_000);
    assert_covers(&all, 30_000);
    for (n, chunk) in (0..).zip(&all) {
        assert_eq!((chunk.stream, chunk.time), (stream(n), Some(n as i64)));
    }
}

#[test]
fn resuming_cuts_off_what_the_log_does_not_hold() {
    let sample = sample();
    sample.log.set_len(8).unwrap();
    let idx = File::options()
        .read(true)
        .write(true)
        .open(sample.idx())
        .unwrap();
    let mut index = IndexWriter::resume(idx, 8, RUN).unwrap();
    assert_eq!(index.dropped(), 5);
    index.segment(Stream::Stdout, 8, 50 * MS).unwrap();
    sample.log.write_all_at(b"new", 8).unwrap();
    index.end(11, 51 * MS).unwrap();
    let all = chunks(sample.reader());
    assert_covers(&all, 11);
    assert_eq!(
        (all[2].stream, all[2].time),
        (Stream::Stdout, Some(50 * MS))
    );
}

#[test]
fn resuming_without_a_header_says_nothing_of_what_was_there() {
    let sample = sample();
    fs::write(sample.idx(), b"garbage that is no header").unwrap();
    let idx = File::options()
        .read(true)
        .write(true)
        .open(sample.idx())
        .unwrap();
    let mut index = IndexWriter::resume(idx, 13, RUN).unwrap();
    index.segment(Stream::Stderr, 13, 50 * MS).unwrap();
    sample.log.write_all_at(b"new", 13).unwrap();
    let all = chunks(sample.reader());
    assert_eq!(
        (all[0].stream, all[0].time, all[0].len),
        (Stream::Stdout, None, 13)
    );
    assert_eq!(
        (all[1].stream, all[1].time, all[1].len),
        (Stream::Stderr, Some(50 * MS), 3)
    );
}

#[test]
fn the_daemon_speaks_as_standard_error_and_creates_what_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let name = program("team/app");
    let mut writer = Writer::open(dir.path(), &name, RUN).unwrap();
    writer.message(b"could not execute\n").unwrap();
    assert_eq!(writer.finish().unwrap(), 18);
    let mut writer = Writer::open(dir.path(), &name, RUN).unwrap();
    writer.message(b"and more\n").unwrap();
    assert_eq!(writer.finish().unwrap(), 27);
    let reader = Reader::open(dir.path(), &name, RUN).unwrap();
    assert_eq!(reader.final_size().unwrap(), Some(27));
    let mut lines = Lines::new(reader, None);
    let first = lines.next_line().unwrap().unwrap();
    assert_eq!(
        (first.stream, &first.bytes[..]),
        (Stream::Stderr, &b"could not execute\n"[..])
    );
    assert!(first.time.is_some() && first.begins);
    assert_eq!(lines.next_line().unwrap().unwrap().bytes, b"and more\n");
}

#[test]
fn lines_of_two_streams_are_told_apart_and_have_the_time_of_their_first_byte() {
    let mut sample = sample();
    sample.put(Stream::Stdout, 40 * MS, b"end");
    sample.put(Stream::Stderr, 50 * MS, b"err");
    let all = |only| {
        let mut lines = Lines::new(sample.reader(), only);
        let mut found = Vec::new();
        while let Some(line) = lines.next_line().unwrap() {
            found.push(line);
        }
        while let Some(line) = lines.rest() {
            found.push(line);
        }
        let told = |l: Line| {
            (
                l.stream,
                l.time.unwrap() / MS,
                String::from_utf8(l.bytes).unwrap(),
            )
        };
        found.into_iter().map(told).collect::<Vec<_>>()
    };
    let line = |stream, time: i64, text: &str| (stream, time, text.to_owned());
    let expected = [
        line(Stream::Stdout, 10, "one\n"),
        line(Stream::Stderr, 20, "oops\n"),
        line(Stream::Stdout, 10, "two\n"),
        line(Stream::Stdout, 40, "end"),
        line(Stream::Stderr, 50, "err"),
    ];
    assert_eq!(all(None), expected);
    let only = |stream| {
        expected
            .iter()
            .filter(|l| l.0 == stream)
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(all(Some(Stream::Stdout)), only(Stream::Stdout));
    assert_eq!(all(Some(Stream::Stderr)), only(Stream::Stderr));
}

#[test]
fn a_line_without_end_comes_in_pieces() {
    let mut sample = Sample::new();
    let long = vec![b'x'; 150_000];
    sample.put(Stream::Stdout, MS, &long);
    sample.put(Stream::Stdout, 9 * MS, b"\nshort\n");
    let mut lines = Lines::new(sample.reader(), None);
    let mut pieces = Vec::new();
    while let Some(line) = lines.next_line().unwrap() {
        pieces.push((line.begins, line.bytes.len()));
    }
    assert_eq!(
        pieces,
        [(true, 65536), (false, 65536), (false, 18_929), (true, 6)]
    );
}

#[test]
fn files_are_private_and_their_directories_too() {
    let dir = tempfile::tempdir().unwrap();
    let name = program("team/app");
    create(dir.path(), &name, RUN).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(
        log_path(dir.path(), &name, RUN),
        dir.path().join("team/app/7.log")
    );
    assert_eq!(mode(&log_path(dir.path(), &name, RUN)), 0o640);
    assert_eq!(mode(&index_path(dir.path(), &name, RUN)), 0o640);
    assert_eq!(mode(&dir.path().join("team")), 0o750);
    assert_eq!(mode(&dir.path().join("team/app")), 0o750);
    let again = create(dir.path(), &name, RUN).unwrap_err();
    assert_eq!(again.source.kind(), std::io::ErrorKind::AlreadyExists);
}

#[test]
fn the_directory_of_a_program_is_made_once_by_whoever_comes_first() {
    let dir = tempfile::tempdir().unwrap();
    let name = program("team/app");
    for round in 0..20_u64 {
        let runs: Vec<RunId> = (1..=8).map(|n| RunId(round * 8 + n)).collect();
        std::thread::scope(|scope| {
            for run in &runs {
                scope.spawn(|| create(dir.path(), &name, *run).unwrap());
            }
        });
        for run in runs {
            assert!(log_path(dir.path(), &name, run).exists(), "{run}");
        }
        let names = fs::read_dir(dir.path()).unwrap();
        let names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, ["team"]);
        fs::remove_dir_all(dir.path().join("team")).unwrap();
    }
}

#[test]
fn no_symbolic_link_below_the_log_directory_is_followed() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("7.log"), b"secret").unwrap();
    symlink(elsewhere.path(), dir.path().join("app")).unwrap();
    assert!(create(dir.path(), &program("app"), RunId(8)).is_err());
    assert!(Reader::open(dir.path(), &program("app"), RUN).is_err());
    fs::create_dir(dir.path().join("other")).unwrap();
    symlink(
        elsewhere.path().join("7.log"),
        dir.path().join("other/7.log"),
    )
    .unwrap();
    assert!(Reader::open(dir.path(), &program("other"), RUN).is_err());
    assert!(Writer::open(dir.path(), &program("other"), RUN).is_err());
    let all = Retention {
        count: Some(0),
        age: None,
        size: None,
    };
    retain(dir.path(), &program("app"), all, &[]).unwrap_err();
    retain(dir.path(), &program("other"), all, &[]).unwrap();
    assert_eq!(newest_id(dir.path(), RunId(0)).unwrap(), None);
    assert_eq!(fs::read(elsewhere.path().join("7.log")).unwrap(), b"secret");
}

#[test]
fn programs_and_the_newest_run_are_found_whatever_else_lies_there() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(
        newest_id(&dir.path().join("missing"), RunId(0)).unwrap(),
        None
    );
    for (name, run) in [("app", 3), ("team/app", 12), ("team", 5)] {
        let files = create(dir.path(), &program(name), RunId(run)).unwrap();
        fs::File::write_all_at(&files.log, b"x", 0).unwrap();
    }
    fs::create_dir(dir.path().join("empty")).unwrap();
    for odd in ["99.txt", "x.log", "0099.log", "+99.log", "99.log.gz", "99"] {
        fs::write(dir.path().join("app").join(odd), b"").unwrap();
    }
    fs::create_dir(dir.path().join("app/99.log")).unwrap();
    // Prepared, for a request that was never recorded: it goes, and its number is free.
    create(dir.path(), &program("team/app"), RunId(13)).unwrap();
    // A process there was, although it printed nothing.
    let silent = create(dir.path(), &program("quiet"), RunId(11)).unwrap();
    fs::File::write_all_at(&silent.idx, &7_u32.to_le_bytes(), PID_OFFSET).unwrap();
    assert_eq!(newest_id(dir.path(), RunId(12)).unwrap(), None);
    assert_eq!(newest_id(dir.path(), RunId(0)).unwrap(), Some(RunId(12)));
    assert!(!log_path(dir.path(), &program("team/app"), RunId(13)).exists());
    assert!(log_path(dir.path(), &program("quiet"), RunId(11)).exists());
    let found = programs(dir.path()).unwrap();
    assert_eq!(found, ["app", "quiet", "team", "team/app"].map(program));
}

/// Logs of 100 bytes, index included, of the runs 1 to `count`.
fn logs(dir: &Path, name: &str, count: u64) {
    for run in 1..=count {
        let files = create(dir, &program(name), RunId(run)).unwrap();
        files.log.set_len(100 - HEADER_LEN).unwrap();
    }
}

const KEEP_ALL: Retention = Retention {
    count: None,
    age: None,
    size: None,
};

#[test]
fn the_oldest_logs_go_first_and_never_a_live_one() {
    let dir = tempfile::tempdir().unwrap();
    logs(dir.path(), "app", 9);
    let name = program("app");
    let removed = |bounds, live: &[RunId]| retain(dir.path(), &name, bounds, live).unwrap().runs;
    assert_eq!(removed(KEEP_ALL, &[]), []);
    let count = |count| Retention {
        count: Some(count),
        ..KEEP_ALL
    };
    assert_eq!(removed(count(7), &[]), [1, 2].map(RunId));
    assert_eq!(removed(count(5), &[RunId(3)]), [4, 5].map(RunId));
    let size = Retention {
        size: Some(399),
        ..KEEP_ALL
    };
    assert_eq!(removed(size, &[]), [3, 6].map(RunId));
    let age = Retention {
        age: Some(Duration::from_secs(3600)),
        ..KEEP_ALL
    };
    assert_eq!(removed(age, &[]), []);
    let old = std::time::SystemTime::now() - Duration::from_secs(4000);
    for file in [log_path, index_path].map(|path| path(dir.path(), &name, RunId(8))) {
        let file = File::options().write(true).open(file).unwrap();
        file.set_modified(old).unwrap();
    }
    assert_eq!(removed(age, &[]), [RunId(8)]);
    assert_eq!(removed(count(0), &[RunId(9)]), [RunId(7)]);
    assert!(Reader::open(dir.path(), &name, RunId(9)).is_ok());
}

#[test]
fn directories_without_logs_are_removed_but_not_those_of_others() {
    let dir = tempfile::tempdir().unwrap();
    logs(dir.path(), "team/app", 2);
    logs(dir.path(), "team/other", 1);
    let none = Retention {
        count: Some(0),
        ..KEEP_ALL
    };
    let removed = retain(dir.path(), &program("team/app"), none, &[]).unwrap();
    assert_eq!((removed.runs.len(), removed.bytes), (2, 200));
    assert!(!dir.path().join("team/app").exists() && dir.path().join("team/other").exists());
    retain(dir.path(), &program("team/other"), none, &[]).unwrap();
    assert!(!dir.path().join("team").exists() && dir.path().exists());
    retain(dir.path(), &program("team/other"), none, &[]).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_index_however_damaged_hides_or_repeats_a_byte(
        records in prop::collection::vec((any::<u8>(), 0u64..40, any::<i64>()), 0..30),
        noise in prop::collection::vec(any::<u8>(), 0..20),
        len in 0u64..40,
    ) {
        let sample = Sample::new();
        sample.log.set_len(len).unwrap();
        let mut idx = fs::read(sample.idx()).unwrap();
        for (kind, value, time) in records {
            idx.extend((u64::from(kind % 6) << 56 | value).to_le_bytes());
            idx.extend(time.to_le_bytes());
        }
        idx.extend(noise);
        fs::write(sample.idx(), idx).unwrap();
        assert_covers(&chunks(sample.reader()), len);
        let mut lines = Lines::new(sample.reader(), None);
        while lines.next_line().unwrap().is_some() {}
        let mut bytes = 0;
        while let Some(line) = lines.rest() {
            bytes += line.bytes.len() as u64;
        }
        prop_assert_eq!(bytes, len);
        // And whoever goes on with it adds to what is there.
        let file = File::options().read(true).write(true).open(sample.idx()).unwrap();
        let mut index = IndexWriter::resume(file, len, RUN).unwrap();
        index.segment(Stream::Stderr, len, 5).unwrap();
        sample.log.write_all_at(b"new", len).unwrap();
        let all = chunks(sample.reader());
        assert_covers(&all, len + 3);
        prop_assert_eq!(all.last().unwrap().stream, Stream::Stderr);
    }
}

/// A log of lines of 16 bytes, one segment each, that is cut at half whenever it is above 4 KiB.
#[test]
fn a_log_that_is_cut_keeps_its_offsets_and_loses_only_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let files = super::create_as(dir.path(), &program("app"), RUN, true).unwrap();
    let mut index = IndexWriter::resume(files.idx, 0, RUN).unwrap();
    let mut follower = Reader::open(dir.path(), &program("app"), RUN).unwrap();
    let mut followed = Vec::new();
    let line = |n: u64| format!("line {n:010}\n");
    let mut len = 0;
    for n in 0..4000 {
        let stream = if n % 3 == 0 {
            Stream::Stderr
        } else {
            Stream::Stdout
        };
        if len - index.cut().at > 4096 {
            index
                .cut_at(&files.log, index.cut().at + (len - index.cut().at) / 2)
                .unwrap();
        }
        index
            .segment(stream, len, i64::try_from(n).unwrap() * 10_000_000)
            .unwrap();
        files.log.write_all_at(line(n).as_bytes(), len).unwrap();
        len += 16;
        // Somebody who keeps up misses nothing.
        while let Some(chunk) = follower.next_chunk().unwrap() {
            let mut bytes = vec![0; usize::try_from(chunk.len).unwrap()];
            follower.read_at(&mut bytes, chunk.offset).unwrap();
            followed.extend(bytes);
        }
    }
    let all: String = (0..4000).map(line).collect();
    assert!(followed == all.as_bytes() && follower.missed() == 0);
    // Somebody who comes later gets the end, in order, with its streams.
    let read = |mut reader: Reader| {
        let mut lines = Vec::new();
        while let Some(chunk) = reader.next_chunk().unwrap() {
            let mut bytes = vec![0; usize::try_from(chunk.len).unwrap()];
            reader.read_at(&mut bytes, chunk.offset).unwrap();
            lines.push((
                chunk.stream,
                chunk.offset,
                String::from_utf8(bytes).unwrap(),
            ));
        }
        (lines, reader.missed())
    };
    let (lines, missed) = read(Reader::open(dir.path(), &program("app"), RUN).unwrap());
    assert_eq!(missed, index.cut().at);
    assert!(missed > 50_000);
    let text: String = lines.iter().map(|(_, _, text)| text.as_str()).collect();
    assert_eq!(text, all[usize::try_from(missed).unwrap()..]);
    for (stream, offset, _) in lines.iter().skip(1) {
        let wanted = if offset / 16 % 3 == 0 {
            Stream::Stderr
        } else {
            Stream::Stdout
        };
        assert_eq!((*stream, offset % 16), (wanted, 0));
    }
    // Also one that had been read a little, and one that is gone on with after a crash.
    let mut late = Reader::open(dir.path(), &program("app"), RUN).unwrap();
    late.seek(160);
    assert_eq!(read(late).0.len(), lines.len());
    let again = super::open_for_writing(dir.path(), &program("app"), RUN).unwrap();
    let resumed = IndexWriter::resume(again.idx, len, RUN).unwrap();
    assert_eq!(
        (resumed.cut().at, resumed.kept()),
        (index.cut().at, index.kept())
    );
    // What was left out is given back.
    let disk = fs::metadata(log_path(dir.path(), &program("app"), RUN)).unwrap();
    use std::os::unix::fs::MetadataExt as _;
    assert!(
        disk.len() == 64_000 && disk.blocks() * 512 < 24_000,
        "{}",
        disk.blocks()
    );
}
