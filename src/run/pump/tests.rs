use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, pipe_with};
use rustix::process::{Resource, getrlimit, setrlimit};
use tempfile::TempDir;

use super::*;
use crate::ids::ProgramName;
use crate::log::{self, Reader, log_path};
use crate::testing::{Dice, Tmpfs};

const DEADLINE: Duration = Duration::from_secs(30);
const GRACE: Duration = Duration::from_millis(50);
const UNLIMITED: u64 = u64::MAX;

#[derive(Debug)]
enum Heard {
    Grew(u64),
    Trouble(LogTrouble),
    Closed(Closed),
}

impl Listener for Sender<Heard> {
    fn grew(&mut self, bytes: u64) {
        let _ = self.send(Heard::Grew(bytes));
    }
    fn trouble(&mut self, what: LogTrouble) {
        let _ = self.send(Heard::Trouble(what));
    }
    fn closed(&mut self, report: Closed) {
        let _ = self.send(Heard::Closed(report));
    }
}

fn app() -> ProgramName {
    ProgramName::new("app").unwrap()
}

fn pipe() -> (OwnedFd, File) {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
    (read, write.into())
}

/// A run as the daemon has it: pipes with somebody writing, and a place for the log.
struct Setup {
    dir: Option<TempDir>,
    id: RunId,
    out: Option<File>,
    err: Option<File>,
    heard: Receiver<Heard>,
    grew: u64,
    troubles: Vec<LogTrouble>,
}

impl Setup {
    fn add(pump: &Pump, limit: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut setup = Self::add_at(pump, dir.path(), RunId(1), limit);
        setup.dir = Some(dir);
        setup
    }

    fn add_at(pump: &Pump, dir: &Path, id: RunId, limit: u64) -> Self {
        let (out, out_end) = pipe();
        let (err, err_end) = pipe();
        let heard = add_pipes(pump, dir, id, limit, out, err);
        Self {
            dir: None,
            id,
            out: Some(out_end),
            err: Some(err_end),
            heard,
            grew: 0,
            troubles: Vec::new(),
        }
    }

    fn write(&self, stream: Stream, bytes: &[u8]) {
        let end = match stream {
            Stream::Stdout => &self.out,
            Stream::Stderr => &self.err,
        };
        end.as_ref().unwrap().write_all(bytes).unwrap();
    }

    /// Closes both writing ends.
    fn hang_up(&mut self) {
        self.out = None;
        self.err = None;
    }

    /// Waits for the next thing other than growth.
    fn hear(&mut self) -> Option<Closed> {
        match self.heard.recv_timeout(DEADLINE).unwrap() {
            Heard::Grew(bytes) => self.grew = bytes,
            Heard::Trouble(what) => self.troubles.push(what),
            Heard::Closed(report) => return Some(report),
        }
        None
    }

    fn wait_until_grown(&mut self, bytes: u64) {
        while self.grew < bytes {
            assert!(self.hear().is_none(), "closed at {} of {bytes}", self.grew);
        }
    }

    /// Waits for the end, and that it comes once.
    fn closed(&mut self) -> Closed {
        loop {
            if let Some(report) = self.hear() {
                assert!(self.heard.recv().is_err(), "something came after the end");
                return report;
            }
        }
    }

    fn reader(&self) -> Reader {
        Reader::open(self.dir.as_ref().unwrap().path(), &app(), self.id).unwrap()
    }

    fn log(&self) -> Vec<u8> {
        fs::read(log_path(self.dir.as_ref().unwrap().path(), &app(), self.id)).unwrap()
    }
}

fn add_pipes(
    pump: &Pump,
    dir: &Path,
    run: RunId,
    limit: u64,
    out: OwnedFd,
    err: OwnedFd,
) -> Receiver<Heard> {
    let files = match log::open_for_writing(dir, &app(), run) {
        Ok(files) => files,
        Err(_) => log::create(dir, &app(), run).unwrap(),
    };
    let (listener, heard) = channel();
    let added = PumpRun {
        run,
        out,
        err,
        log: files.log,
        idx: files.idx,
        limit,
        rotates: false,
        listener: Box::new(listener),
    };
    pump.add(added).unwrap();
    heard
}

/// What the log says each stream printed.
fn streams(mut reader: Reader) -> [Vec<u8>; 2] {
    let mut found = [Vec::new(), Vec::new()];
    while let Some(chunk) = reader.next_chunk().unwrap() {
        assert!(chunk.time.is_some());
        let mut bytes = vec![0; chunk.len as usize];
        assert_eq!(
            reader.read_at(&mut bytes, chunk.offset).unwrap(),
            bytes.len()
        );
        found[chunk.stream as usize].extend(bytes);
    }
    found
}

#[test]
fn binary_output_of_both_streams_arrives_byte_by_byte() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, UNLIMITED);
    let mut ends = [setup.out.take().unwrap(), setup.err.take().unwrap()];
    let written = thread::scope(|scope| {
        let mut seed = 0;
        let writers = ends.each_mut().map(|end| {
            seed += 1;
            let mut dice = Dice::new(seed);
            scope.spawn(move || {
                let all = dice.bytes(3_000_000);
                let mut rest = &all[..];
                while !rest.is_empty() {
                    let most = if dice.below(4) == 0 { 200_000 } else { 300 };
                    let count = (1 + dice.below(most) as usize).min(rest.len());
                    end.write_all(&rest[..count]).unwrap();
                    rest = &rest[count..];
                }
                all
            })
        });
        writers.map(|writer| writer.join().unwrap())
    });
    drop(ends);
    let report = setup.closed();
    let expected = Closed {
        bytes: 6_000_000,
        dropped: 0,
        leftover: false,
    };
    assert_eq!(report, expected);
    assert_eq!(setup.reader().final_size().unwrap(), Some(6_000_000));
    assert!(
        streams(setup.reader()) == written,
        "the log differs from what was written"
    );
    assert!(setup.troubles.is_empty());
}

#[test]
fn a_run_without_output_has_an_empty_complete_log() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, UNLIMITED);
    setup.hang_up();
    assert_eq!(setup.closed().bytes, 0);
    assert!(setup.reader().is_complete().unwrap());
    pump.ended(setup.id, GRACE);
}

#[test]
fn both_streams_keep_their_order_when_they_take_turns() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, UNLIMITED);
    let mut expected = Vec::new();
    for n in 0..200u64 {
        let stream = if n % 3 == 0 {
            Stream::Stderr
        } else {
            Stream::Stdout
        };
        let line = format!("line {n}\n");
        setup.write(stream, line.as_bytes());
        expected.extend(line.into_bytes());
        setup.wait_until_grown(expected.len() as u64);
    }
    setup.hang_up();
    setup.closed();
    assert_eq!(setup.log(), expected);
}

#[test]
fn a_holder_of_the_pipe_is_left_behind_when_the_grace_is_over() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, UNLIMITED);
    setup.write(Stream::Stdout, b"said before the end\n");
    pump.ended(setup.id, GRACE);
    let began = Instant::now();
    let report = setup.closed();
    assert!(began.elapsed() >= GRACE - Duration::from_millis(5));
    assert!(report.leftover && report.bytes == 20);
    assert!(setup.reader().is_complete().unwrap());
    // Nobody reads any more.
    let late = setup.out.as_ref().unwrap().write_all(b"x").unwrap_err();
    assert_eq!(late.kind(), io::ErrorKind::BrokenPipe);
}

#[test]
fn a_holder_that_prints_without_end_does_not_keep_the_run() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, 1 << 20);
    let out = setup.out.take().unwrap();
    let printer = thread::spawn(move || while (&out).write_all(&[b'x'; 8192]).is_ok() {});
    pump.ended(setup.id, GRACE);
    assert!(setup.closed().leftover);
    printer.join().unwrap();
}

#[test]
fn a_run_whose_pipes_end_within_the_grace_leaves_nothing_behind() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, UNLIMITED);
    pump.ended(setup.id, DEADLINE);
    setup.write(Stream::Stderr, b"last words");
    setup.hang_up();
    let report = setup.closed();
    assert_eq!((report.bytes, report.leftover), (10, false));
}

#[test]
fn a_log_ends_at_its_limit_and_the_rest_is_counted() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, 10_000);
    let written = Dice::new(5).bytes(1_000_000);
    setup.write(Stream::Stdout, &written);
    setup.write(Stream::Stderr, b"lost, too");
    setup.hang_up();
    let report = setup.closed();
    assert_eq!(report.bytes + report.dropped, 1_000_009);
    assert!(matches!(
        setup.troubles[..],
        [LogTrouble::Full { limit: 10_000 }]
    ));
    let mut reader = setup.reader();
    assert_eq!(reader.dropped().unwrap(), report.dropped);
    assert_eq!(reader.final_size().unwrap(), Some(report.bytes));
    let idx = fs::metadata(log::index_path(
        setup.dir.as_ref().unwrap().path(),
        &app(),
        setup.id,
    ));
    let taken = report.bytes + idx.unwrap().len();
    assert!((9_900..=10_032).contains(&taken), "{taken}");
    assert_eq!(setup.log(), written[..report.bytes as usize]);
}

#[test]
fn an_index_of_tiny_pieces_counts_against_the_limit() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, 2_000);
    for n in 0..500 {
        let stream = if n % 2 == 0 {
            Stream::Stdout
        } else {
            Stream::Stderr
        };
        setup.write(stream, b"x");
        // As long as it grows each piece is to have a record of its own.
        while setup.troubles.is_empty() && setup.grew <= n {
            setup.hear();
        }
    }
    setup.hang_up();
    let report = setup.closed();
    assert_eq!(report.bytes + report.dropped, 500);
    assert!((100..130).contains(&report.bytes), "{}", report.bytes);
}

#[test]
fn the_count_of_dropped_bytes_is_written_while_the_run_goes_on() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, 1_000);
    let mut reader = setup.reader();
    let until = Instant::now() + DEADLINE;
    let mut written = 0;
    for round in 1..4 {
        setup.write(Stream::Stdout, &[b'x'; 5_000]);
        written += 5_000;
        while reader.dropped().unwrap() < written - 1_000 {
            assert!(Instant::now() < until, "round {round}");
            thread::yield_now();
        }
    }
    setup.hang_up();
    setup.closed();
}

#[test]
fn a_log_goes_on_where_an_earlier_pump_left_it() {
    let dir = tempfile::tempdir().unwrap();
    let (out, mut out_end) = pipe();
    let (err, err_end) = pipe();
    let mut expected = Vec::new();
    for n in 0..20u64 {
        let pump = Pump::start().unwrap();
        let (out, err) = (out.try_clone().unwrap(), err.try_clone().unwrap());
        let heard = add_pipes(&pump, dir.path(), RunId(1), UNLIMITED, out, err);
        let line = format!("pump {n}\n");
        out_end.write_all(line.as_bytes()).unwrap();
        expected.extend(line.into_bytes());
        // Whichever pump has the pipe; this one may have stopped reading before.
        let Ok(Heard::Grew(bytes)) = heard.recv_timeout(DEADLINE) else {
            panic!("no output came");
        };
        assert_eq!(bytes, expected.len() as u64);
        drop(pump);
        // It has let go when its listener has gone.
        assert!(heard.recv_timeout(DEADLINE).is_err());
    }
    drop((out_end, err_end));
    let pump = Pump::start().unwrap();
    let heard = add_pipes(&pump, dir.path(), RunId(1), UNLIMITED, out, err);
    let Ok(Heard::Closed(report)) = heard.recv_timeout(DEADLINE) else {
        panic!("no end came");
    };
    assert_eq!(report.bytes, expected.len() as u64);
    assert_eq!(
        fs::read(log_path(dir.path(), &app(), RunId(1))).unwrap(),
        expected
    );
}

#[test]
fn what_is_no_pipe_is_copied() {
    let pump = Pump::start().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (out, mut out_end) = UnixStream::pair().unwrap();
    let null = File::open("/dev/null").unwrap();
    let written = Dice::new(9).bytes(500_000);
    let heard = add_pipes(
        &pump,
        dir.path(),
        RunId(1),
        300_000,
        out.into(),
        null.into(),
    );
    out_end.write_all(&written).unwrap();
    drop(out_end);
    let report = heard.into_iter().find_map(|heard| match heard {
        Heard::Closed(report) => Some(report),
        _ => None,
    });
    let report = report.unwrap();
    assert_eq!(report.bytes + report.dropped, 500_000);
    assert!((299_000..300_000).contains(&report.bytes));
    let log = fs::read(log_path(dir.path(), &app(), RunId(1))).unwrap();
    assert!(log[..] == written[..log.len()]);
}

#[test]
fn a_busy_pipe_is_made_larger() {
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add(&pump, UNLIMITED);
    let until = Instant::now() + DEADLINE;
    let mut written = 0;
    while fcntl_getpipe_size(setup.out.as_ref().unwrap()).unwrap() < 1 << 20 {
        assert!(Instant::now() < until);
        setup.write(Stream::Stdout, &[0; 65536]);
        written += 65536;
    }
    assert_eq!(
        fcntl_getpipe_size(setup.err.as_ref().unwrap()).unwrap(),
        65536
    );
    setup.hang_up();
    assert_eq!(setup.closed().bytes, written);
}

#[test]
fn many_runs_have_their_output_at_once() {
    let limit = getrlimit(Resource::Nofile);
    let raised = rustix::process::Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    setrlimit(Resource::Nofile, raised).unwrap();
    let count = (limit.maximum.unwrap_or(10_000) / 10).min(1_000);
    let dir = tempfile::tempdir().unwrap();
    let pump = Pump::start().unwrap();
    let mut setups: Vec<Setup> = (1..=count)
        .map(|n| Setup::add_at(&pump, dir.path(), RunId(n), UNLIMITED))
        .collect();
    for setup in &setups {
        setup.write(Stream::Stdout, format!("run {}\n", setup.id).as_bytes());
    }
    for (n, setup) in setups.iter_mut().enumerate() {
        if n % 2 == 0 {
            setup.hang_up();
        } else {
            pump.ended(setup.id, GRACE);
        }
    }
    for (n, setup) in setups.iter_mut().enumerate() {
        assert_eq!(setup.closed().leftover, n % 2 == 1);
        let log = fs::read(log_path(dir.path(), &app(), setup.id)).unwrap();
        assert_eq!(log, format!("run {}\n", setup.id).as_bytes());
    }
}

#[test]
fn a_full_disk_loses_output_but_holds_up_nobody_and_is_used_again() {
    let Some(disk) = Tmpfs::mount(1 << 20) else {
        return;
    };
    let pump = Pump::start().unwrap();
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 800 << 10]).unwrap();
    let mut setup = Setup::add_at(&pump, disk.path(), RunId(1), UNLIMITED);
    let mut other = Setup::add(&pump, UNLIMITED);
    let written = Dice::new(3).bytes(700 << 10);
    setup.write(Stream::Stdout, &written);
    other.write(Stream::Stdout, b"not disturbed");
    other.wait_until_grown(13);
    while setup.troubles.is_empty() {
        setup.hear();
    }
    let before = setup.grew;
    fs::remove_file(&filler).unwrap();
    let until = Instant::now() + DEADLINE;
    let mut total = written.len() as u64;
    let log = log_path(disk.path(), &app(), RunId(1));
    while fs::metadata(&log).unwrap().len() <= before {
        assert!(Instant::now() < until, "it was not tried again");
        setup.write(Stream::Stderr, b"again\n");
        total += 6;
    }
    setup.hang_up();
    let report = setup.closed();
    assert!(matches!(
        &setup.troubles[..],
        [LogTrouble::Disk { source, .. }] if source.kind() == io::ErrorKind::StorageFull
    ));
    assert_eq!(report.bytes + report.dropped, total);
    let mut reader = Reader::open(disk.path(), &app(), RunId(1)).unwrap();
    assert_eq!(reader.dropped().unwrap(), report.dropped);
    let [out, err] = streams(reader);
    assert!(out[..] == written[..out.len()] && !out.is_empty());
    assert!(err.ends_with(b"again\n"));
    other.hang_up();
    assert_eq!(other.closed().bytes, 13);
}

#[test]
fn the_end_of_a_log_is_written_when_the_disk_has_room_again() {
    let Some(disk) = Tmpfs::mount(256 << 10) else {
        return;
    };
    let pump = Pump::start().unwrap();
    let mut setup = Setup::add_at(&pump, disk.path(), RunId(1), UNLIMITED);
    // The index fills exactly a page, and the disk is full.
    let idx = log::index_path(disk.path(), &app(), RunId(1));
    let mut bytes = fs::read(&idx).unwrap();
    bytes.resize(4096, 0);
    fs::write(&idx, bytes).unwrap();
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 256 << 10]).unwrap_err();
    setup.write(Stream::Stdout, b"no room");
    setup.hang_up();
    let report = setup.closed();
    assert_eq!((report.bytes, report.dropped), (0, 7));
    let mut reader = Reader::open(disk.path(), &app(), RunId(1)).unwrap();
    assert!(!reader.is_complete().unwrap());
    fs::remove_file(filler).unwrap();
    let until = Instant::now() + DEADLINE;
    while !reader.is_complete().unwrap() {
        assert!(Instant::now() < until);
        thread::yield_now();
    }
    assert_eq!(reader.dropped().unwrap(), 7);
}

/// Names the pipes and the log directory that [`a_pump_in_a_process_of_its_own`] has.
const HELPER: &str = "DEPLOYER_TEST_PUMP";

/// Not a test of its own: the process that the next test kills.
#[test]
fn a_pump_in_a_process_of_its_own() {
    let Ok(args) = std::env::var(HELPER) else {
        return;
    };
    let mut args = args.split(' ');
    let mut open = || File::open(args.next().unwrap()).unwrap();
    let (out, err) = (open(), open());
    let dir = Path::new(args.next().unwrap());
    let pump = Pump::start().unwrap();
    let heard = add_pipes(&pump, dir, RunId(1), UNLIMITED, out.into(), err.into());
    assert!(
        heard
            .into_iter()
            .any(|heard| matches!(heard, Heard::Closed(_)))
    );
}

#[test]
fn a_pump_killed_at_any_moment_loses_and_repeats_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let (out, out_end) = pipe();
    let (err, err_end) = pipe();
    log::create(dir.path(), &app(), RunId(1)).unwrap();
    let path = |fd: &OwnedFd| format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd());
    let args = format!("{} {} {}", path(&out), path(&err), dir.path().display());
    let helper = || {
        Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "run::pump::tests::a_pump_in_a_process_of_its_own",
            ])
            .env(HELPER, &args)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let log = log_path(dir.path(), &app(), RunId(1));
    let size = || fs::metadata(&log).unwrap().len();
    let stop = AtomicBool::new(false);
    let (written, kills) = thread::scope(|scope| {
        let writers = [(1, out_end), (2, err_end)].map(|(seed, end)| {
            let stop = &stop;
            scope.spawn(move || {
                let mut dice = Dice::new(seed);
                let mut all = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let most = if dice.below(8) == 0 { 100_000 } else { 500 };
                    let count = 1 + dice.below(most) as usize;
                    let bytes = dice.bytes(count);
                    (&end).write_all(&bytes).unwrap();
                    all.extend(bytes);
                }
                all
            })
        });
        let mut dice = Dice::new(77);
        let mut kills = 0;
        for _ in 0..120 {
            let mut process = helper();
            let until = size() + dice.below(300_000);
            let deadline = Instant::now() + DEADLINE;
            while size() <= until && Instant::now() < deadline {
                std::hint::spin_loop();
            }
            process.kill().unwrap();
            kills += u32::from(!process.wait().unwrap().success());
            // However it was left, it can be read.
            let reader = Reader::open(dir.path(), &app(), RunId(1)).unwrap();
            assert!(!reader.is_complete().unwrap());
        }
        stop.store(true, Ordering::Relaxed);
        let mut last = helper();
        let written = writers.map(|writer| writer.join().unwrap());
        let mut said = String::new();
        last.stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(last.wait().unwrap().success(), "{said}");
        (written, kills)
    });
    assert_eq!(kills, 120);
    let reader = Reader::open(dir.path(), &app(), RunId(1)).unwrap();
    let total = written.iter().map(Vec::len).sum::<usize>() as u64;
    assert_eq!(reader.final_size().unwrap(), Some(total));
    assert!(
        streams(reader) == written,
        "the log differs from what was written"
    );
}

#[test]
#[ignore = "a measurement, not a test: run it alone, in a release build"]
fn rate_of_one_fast_writer() {
    const TOTAL: usize = 4 << 30;
    let pump = Pump::start().unwrap();
    for round in 0..3 {
        let mut setup = Setup::add(&pump, UNLIMITED);
        let out = setup.out.take().unwrap();
        let began = Instant::now();
        let writer = thread::spawn(move || {
            let block = vec![b'x'; 128 << 10];
            for _ in 0..TOTAL / block.len() {
                (&out).write_all(&block).unwrap();
            }
        });
        setup.err = None;
        let report = setup.closed();
        let seconds = began.elapsed().as_secs_f64();
        writer.join().unwrap();
        assert_eq!(report.bytes as usize, TOTAL);
        eprintln!("round {round}: {:.2} GB/s", TOTAL as f64 / seconds / 1e9);
    }
}
