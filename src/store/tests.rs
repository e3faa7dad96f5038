use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write as _};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::config::model::Retention;
use crate::ids::{ActionName, ProgramName};
use crate::log;
use crate::testing::{Dice, Tmpfs};

const DEADLINE: Duration = Duration::from_secs(30);
const SECOND: i64 = 1_000_000_000;
/// 2026-11-21T08:07:00.123Z
const THEN: i64 = 1_795_248_420_123_456_789;

fn program(name: &str) -> ProgramName {
    ProgramName::new(name).unwrap()
}

fn new_run(id: u64, name: &str, outcome: Outcome) -> NewRun {
    NewRun {
        id: RunId(id),
        program: program(name),
        action: ActionName::run(),
        outcome,
        by: By {
            uid: 1001,
            gid: 100,
            user: "alice".to_owned(),
            pid: 4242,
        },
        reason: None,
        inputs: BTreeMap::new(),
        args: Vec::new(),
        requested_at: THEN,
        started_at: None,
        request_key: None,
    }
}

fn finish(outcome: Outcome) -> Finish {
    Finish {
        outcome,
        exit_code: None,
        signal: None,
        ended_at: THEN + 2 * SECOND,
        bytes: 0,
        dropped: 0,
        leftovers: false,
        detail: None,
    }
}

type Reported = Receiver<Result<(), StoreError>>;

/// A callback, and where it reports.
fn done() -> (Done, Reported) {
    let (to, reported) = channel();
    let done = Box::new(move |result| {
        let _ = to.send(result);
    });
    (done, reported)
}

/// Waits for what `ask` asks for.
fn wait(ask: impl FnOnce(Done)) -> Result<(), StoreError> {
    let (done, reported) = done();
    ask(done);
    reported.recv_timeout(DEADLINE).unwrap()
}

fn insert(store: &Store, run: NewRun) -> Result<(), StoreError> {
    wait(|done| store.insert(run, OnFailure::Report, done))
}

fn finished(store: &Store, id: RunId, finish: Finish) -> Result<(), StoreError> {
    wait(|done| {
        store.finished(id, finish, done);
        store.flush();
    })
}

/// Puts runs of these numbers on record, each with some text.
fn fill(store: &Store, ids: std::ops::RangeInclusive<u64>) {
    for id in ids {
        let mut run = new_run(id, "app", Outcome::Succeeded);
        run.reason = Some(format!("because of {id} {}", "x".repeat(100)));
        run.request_key = Some(format!("1001:{id}"));
        store.insert(run, OnFailure::Report, Box::new(|result| result.unwrap()));
    }
    wait(|done| store.barrier(done)).unwrap();
}

fn all(queries: &Queries, filter: Filter<'_>) -> Vec<Row> {
    let mut found = Vec::new();
    let each = &mut |row| {
        found.push(row);
        ControlFlow::Continue(())
    };
    let given = queries.rows(&filter, each).unwrap();
    assert_eq!(given, found.len() as u64);
    found
}

fn ids(queries: &Queries, filter: Filter<'_>) -> Vec<u64> {
    all(queries, filter).iter().map(|row| row.id.0).collect()
}

fn ids_of(store: &Store, outcome: Outcome) -> Vec<u64> {
    let rows = all(&store.queries(), Filter::default());
    let of = rows.iter().filter(|row| row.outcome == outcome);
    of.map(|row| row.id.0).collect()
}

/// A history in a directory of its own.
struct Setup {
    dir: TempDir,
    store: Store,
}

impl Setup {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let opened = Store::open(dir.path(), None).unwrap();
        assert_eq!((opened.next_id, opened.lost), (RunId(1), None));
        assert!(opened.unfinished.is_empty());
        Self {
            dir,
            store: opened.store,
        }
    }

    fn reopen(&mut self) -> Opened {
        self.store.close();
        let opened = Store::open(self.dir.path(), None).unwrap();
        self.store = opened.store.clone();
        opened
    }
}

#[test]
fn every_outcome_comes_back_as_it_was_written() {
    let mut setup = Setup::new();
    let store = &setup.store;
    for (n, outcome) in (1..).zip(Outcome::ALL) {
        insert(store, new_run(n, "app", Outcome::Waiting)).unwrap();
        let id = RunId(n);
        let keep = OnFailure::Keep;
        match outcome {
            Outcome::Waiting => wait(|done| store.waiting(id, keep, done)),
            Outcome::Running => wait(|done| store.started(id, THEN, None, keep, done)),
            Outcome::Superseded => wait(|done| store.superseded(id, None, THEN, keep, done)),
            _ => finished(store, id, finish(outcome)),
        }
        .unwrap();
    }
    let opened = setup.reopen();
    let rows = all(&opened.store.queries(), Filter::default());
    let found: Vec<Outcome> = rows.iter().map(|row| row.outcome).collect();
    assert_eq!(found, Outcome::ALL);
    for outcome in Outcome::ALL {
        assert_eq!(Outcome::from_word(outcome.as_str()), Some(outcome));
        assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.as_str());
    }
    let unfinished: Vec<u64> = opened.unfinished.iter().map(|row| row.id.0).collect();
    assert_eq!(unfinished, [1, 2]);
    assert_eq!(opened.next_id, RunId(12));
    assert_eq!(opened.lost, None);
}

#[test]
fn a_row_has_the_documented_json() {
    let setup = Setup::new();
    let mut run = new_run(1, "team/app", Outcome::Running);
    run.reason = Some("it is \"time\"".to_owned());
    run.inputs = BTreeMap::from([("branch".to_owned(), "x\u{0}y".to_owned())]);
    run.args = vec!["-d".to_owned(), String::new()];
    run.started_at = Some(THEN + 999_999);
    run.request_key = Some("1001:k".to_owned());
    insert(&setup.store, run).unwrap();
    let ended = Finish {
        signal: Some(15),
        bytes: 10,
        dropped: 3,
        leftovers: true,
        detail: Some("ended on request".to_owned()),
        ..finish(Outcome::Signalled)
    };
    finished(&setup.store, RunId(1), ended).unwrap();
    let queries = setup.store.queries();
    let row = queries.get(RunId(1)).unwrap().unwrap();
    let expected = concat!(
        r#"{"id":1,"program":"team/app","action":"run","outcome":"signalled","exit_code":null,"#,
        r#""signal":"SIGTERM","by":{"uid":1001,"gid":100,"user":"alice","pid":4242},"#,
        r#""reason":"it is \"time\"","inputs":{"branch":"x\u0000y"},"args":["-d",""],"#,
        r#""covered_by":null,"requested_at":"2026-11-21T08:07:00.123Z","#,
        r#""started_at":"2026-11-21T08:07:00.124Z","ended_at":"2026-11-21T08:07:02.123Z","#,
        r#""bytes":10,"dropped":3,"leftovers":true,"detail":"ended on request"}"#,
    );
    assert_eq!(serde_json::to_string(&row).unwrap(), expected);
    assert_eq!(queries.find_by_key("1001:k").unwrap(), Some(row.clone()));
    assert_eq!(queries.find_by_key("1002:k").unwrap(), None);
    let signal = |n| {
        let row = Row {
            signal: Some(n),
            ..row.clone()
        };
        serde_json::to_value(row).unwrap()["signal"].clone()
    };
    assert_eq!(signal(9), "SIGKILL");
    assert_eq!(signal(36), "SIGRTMIN+2");
    assert_eq!(signal(99), "SIG99");
}

#[test]
fn a_number_or_a_key_is_on_record_once() {
    let setup = Setup::new();
    let mut run = new_run(5, "app", Outcome::Waiting);
    run.request_key = Some("1001:a".to_owned());
    insert(&setup.store, run.clone()).unwrap();
    let again = insert(&setup.store, run.clone()).unwrap_err();
    assert!(matches!(again, StoreError::Duplicate(RunId(5))));
    run.id = RunId(6);
    let again = insert(&setup.store, run).unwrap_err();
    assert!(matches!(again, StoreError::Duplicate(RunId(6))));
    let none = finished(&setup.store, RunId(7), finish(Outcome::Failed));
    assert!(matches!(none, Err(StoreError::NoSuchRun(RunId(7)))));
    assert!(setup.store.healthy());
    assert_eq!(ids(&setup.store.queries(), Filter::default()), [5]);
}

#[test]
fn an_end_waits_for_what_is_written_next_and_is_not_lost_if_that_never_comes() {
    let setup = Setup::new();
    let store = &setup.store;
    let end = |id| {
        let (done, reported) = done();
        store.finished(RunId(id), finish(Outcome::Succeeded), done);
        reported
    };
    for id in 1..=4 {
        insert(store, new_run(id, "app", Outcome::Running)).unwrap();
    }
    let reported = end(1);
    assert!(reported.try_recv().is_err());
    assert_eq!(ids_of(store, Outcome::Running), [1, 2, 3, 4]);
    // What is written next takes it along, and so does whoever waits for all that was written.
    insert(store, new_run(5, "app", Outcome::Waiting)).unwrap();
    reported.recv_timeout(DEADLINE).unwrap().unwrap();
    let reported = end(2);
    wait(|done| store.barrier(done)).unwrap();
    reported.recv_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!(ids_of(store, Outcome::Running), [3, 4]);
    // The same with the end of the store, in both ways.
    let reported = end(3);
    store.close();
    reported.recv_timeout(DEADLINE).unwrap().unwrap();
    let Setup { dir, store } = setup;
    let queries = store.queries();
    drop(store);
    let opened = Store::open(dir.path(), None).unwrap();
    let (done, reported) = done();
    opened
        .store
        .finished(RunId(4), finish(Outcome::Succeeded), done);
    drop(opened);
    reported.recv_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!(
        queries.get(RunId(4)).unwrap().unwrap().outcome,
        Outcome::Succeeded
    );
}

#[test]
fn a_run_covers_the_requests_that_were_displaced_since_the_one_before() {
    let setup = Setup::new();
    let store = &setup.store;
    let keep = OnFailure::Keep;
    let count = 10_000;
    insert(store, new_run(1, "app", Outcome::Running)).unwrap();
    for id in 2..=count {
        let name = if id % 100 == 0 { "other" } else { "app" };
        store.insert(new_run(id, name, Outcome::Waiting), keep, Box::new(|_| ()));
        if id < count {
            let by = Some(RunId(id + 1));
            store.superseded(RunId(id), by, THEN, keep, Box::new(|_| ()));
        }
    }
    let last = RunId(count + 1);
    insert(store, new_run(last.0, "app", Outcome::Waiting)).unwrap();
    wait(|done| store.started(last, THEN, Some(RunId(1)), keep, done)).unwrap();
    let rows = all(&store.queries(), Filter::default());
    assert_eq!(rows.len() as u64, count + 1);
    for row in &rows[1..count as usize - 1] {
        let by = if row.program == "app" {
            last
        } else {
            RunId(row.id.0 + 1)
        };
        assert_eq!(
            (row.outcome, row.covered_by),
            (Outcome::Superseded, Some(by))
        );
    }
    assert_eq!(
        (rows[0].covered_by, rows[count as usize].covered_by),
        (None, None)
    );
}

#[test]
fn rows_are_filtered_and_the_newest_are_given_oldest_first() {
    let setup = Setup::new();
    let store = &setup.store;
    for id in 1..=1_600u64 {
        let name = ["app", "web", "team/app"][(id % 3) as usize];
        let outcome = if id % 2 == 0 {
            Outcome::Succeeded
        } else {
            Outcome::Failed
        };
        store.insert(
            new_run(id, name, outcome),
            OnFailure::Report,
            Box::new(|_| ()),
        );
    }
    wait(|done| store.barrier(done)).unwrap();
    let queries = store.queries();
    let any = Filter::default();
    let expect = |filter: Filter<'_>, wanted: &dyn Fn(u64) -> bool| {
        let expected: Vec<u64> = (1..=1_600).filter(|id| wanted(*id)).collect();
        assert_eq!(ids(&queries, filter), expected);
    };
    expect(any, &|_| true);
    let app = program("app");
    let one = Filter {
        programs: Programs::One(&app),
        ..any
    };
    expect(one, &|id| id % 3 == 0);
    let allowed = Filter {
        programs: Programs::Allowed(&|name| name.ends_with("app")),
        outcomes: &[Outcome::Failed, Outcome::Lost],
        ..any
    };
    expect(allowed, &|id| id % 3 != 1 && id % 2 == 1);
    let limited = Filter {
        limit: Some(3),
        ..allowed
    };
    assert_eq!(ids(&queries, limited), [1_593, 1_595, 1_599]);
    let none = Filter {
        programs: Programs::Allowed(&|_| false),
        limit: Some(3),
        ..any
    };
    expect(none, &|_| false);
    let between = Filter {
        after: Some(RunId(10)),
        before: Some(RunId(20)),
        ..any
    };
    expect(between, &|id| (11..20).contains(&id));
    let id = |id| Filter {
        id: Some(RunId(id)),
        ..one
    };
    assert_eq!(ids(&queries, id(9)), [9]);
    assert!(ids(&queries, id(10)).is_empty());
    let zero = Filter {
        limit: Some(0),
        ..any
    };
    expect(zero, &|_| false);
    let mut seen = 0;
    let broken_off = queries.rows(&any, &mut |_| {
        seen += 1;
        if seen < 700 {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    });
    assert_eq!((broken_off.unwrap(), seen), (700, 700));
}

#[test]
fn the_last_row_the_last_run_and_the_usual_duration_are_found() {
    let setup = Setup::new();
    let store = &setup.store;
    let queries = store.queries();
    let (app, run) = (program("app"), ActionName::run());
    assert_eq!(queries.last(&app).unwrap(), None);
    assert_eq!(queries.usual_duration(&app, &run).unwrap(), None);
    for (id, seconds) in (1..).zip([500, 500, 500, 9, 3, 1, 2, 8].iter().chain(&[5; 17])) {
        let mut new = new_run(id, "app", Outcome::Running);
        new.started_at = Some(THEN);
        insert(store, new).unwrap();
        let ended = Finish {
            ended_at: THEN + seconds * SECOND,
            ..finish(Outcome::Succeeded)
        };
        finished(store, RunId(id), ended).unwrap();
    }
    insert(store, new_run(90, "app", Outcome::Superseded)).unwrap();
    insert(store, new_run(91, "other", Outcome::Running)).unwrap();
    assert_eq!(queries.last(&app).unwrap().unwrap().id, RunId(90));
    assert_eq!(queries.last_run(&app).unwrap().unwrap().id, RunId(25));
    let usual = queries.usual_duration(&app, &run).unwrap();
    assert_eq!(usual, Some(Duration::from_secs(5)));
    let cancel = ActionName::cancel();
    assert_eq!(queries.usual_duration(&app, &cancel).unwrap(), None);
}

const KEEP_ALL: Retention = Retention {
    count: None,
    age: None,
    size: None,
};

fn retain(store: &Store, name: &str, bounds: Retention, protect: &[u64]) -> Vec<u64> {
    let (to, reported) = channel();
    let protect: Vec<RunId> = protect.iter().copied().map(RunId).collect();
    store.retain(program(name), bounds, &protect, move |result| {
        to.send(result).unwrap();
    });
    let retained = reported.recv_timeout(DEADLINE).unwrap().unwrap();
    retained.removed.iter().map(|id| id.0).collect()
}

#[test]
fn rows_beyond_the_bounds_go_but_not_live_or_protected_ones() {
    let setup = Setup::new();
    let store = &setup.store;
    let now = log::now_ns();
    for id in 1..=20 {
        let outcome = if id == 3 {
            Outcome::Running
        } else {
            Outcome::Failed
        };
        let name = if id == 4 { "other" } else { "app" };
        let mut run = new_run(id, name, outcome);
        run.requested_at = now - (100 - id as i64) * SECOND;
        insert(store, run).unwrap();
    }
    assert!(retain(store, "app", KEEP_ALL, &[]).is_empty());
    let count = |count| Retention {
        count: Some(count),
        ..KEEP_ALL
    };
    assert_eq!(retain(store, "app", count(14), &[2]), [1, 5, 6]);
    let age = Retention {
        age: Some(Duration::from_millis(91_500)),
        ..KEEP_ALL
    };
    assert_eq!(retain(store, "app", age, &[]), [2, 7, 8]);
    assert_eq!(retain(store, "app", count(0), &[20]).len(), 11);
    assert_eq!(ids(&store.queries(), Filter::default()), [3, 4, 20]);
}

#[test]
fn a_large_retention_goes_in_steps_between_other_writes() {
    let setup = Setup::new();
    let store = &setup.store;
    fill(store, 1..=5_000);
    let bounds = Retention {
        count: Some(10),
        ..KEEP_ALL
    };
    let (to, reported) = channel();
    let (first, second) = (to.clone(), to);
    store.retain(program("app"), bounds, &[], move |result| {
        first.send(result.unwrap().removed.len()).unwrap();
    });
    store.insert(
        new_run(5_001, "app", Outcome::Running),
        OnFailure::Report,
        Box::new(move |_| second.send(0).unwrap()),
    );
    let order: Vec<usize> = reported.iter().collect();
    assert_eq!(order, [0, 4_990]);
    assert_eq!(ids(&store.queries(), Filter::default()).len(), 11);
}

#[test]
fn numbers_are_never_used_again() {
    let mut setup = Setup::new();
    fill(&setup.store, 1..=5);
    let none = Retention {
        count: Some(0),
        ..KEEP_ALL
    };
    assert_eq!(retain(&setup.store, "app", none, &[]).len(), 5);
    assert_eq!(setup.reopen().next_id, RunId(6));
    // A row whose log is there, but nothing else.
    setup.store.close();
    let logs = tempfile::tempdir().unwrap();
    let files = log::create(logs.path(), &program("team/app"), RunId(77)).unwrap();
    files.log.write_all_at(b"output", 0).unwrap();
    schema::remove(&setup.dir.path().join("runs.db")).unwrap();
    let opened = Store::open(setup.dir.path(), Some(logs.path())).unwrap();
    assert_eq!(opened.next_id, RunId(78));
    assert!(opened.lost.unwrap().contains("logs up to run 77"));
    opened.store.close();
    // Said once, and remembered without the log.
    let opened = Store::open(setup.dir.path(), None).unwrap();
    assert_eq!((opened.next_id, opened.lost), (RunId(78), None));
}

#[test]
fn files_are_the_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state/deployer");
    let opened = Store::open(&state, None).unwrap();
    fill(&opened.store, 1..=1);
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&state), 0o700);
    for file in fs::read_dir(&state).unwrap() {
        let file = file.unwrap();
        assert!(file.file_name().to_str().unwrap().starts_with("runs.db"));
        assert_eq!(mode(&file.path()), 0o600, "{file:?}");
    }
}

#[test]
fn a_newer_versions_history_is_left_alone() {
    let setup = Setup::new();
    fill(&setup.store, 1..=1);
    setup.store.close();
    let path = setup.dir.path().join("runs.db");
    let newer = rusqlite::Connection::open(&path).unwrap();
    newer
        .execute_batch("PRAGMA user_version = 7; UPDATE version SET schema = 7;")
        .unwrap();
    drop(newer);
    let refused = Store::open(setup.dir.path(), None).err().unwrap();
    assert!(matches!(refused, StoreError::Newer { found: 7, .. }));
    assert!(
        refused.to_string().contains("schema 7 of a newer version"),
        "{refused}"
    );
    assert!(path.exists());
}

#[test]
fn indexes_of_former_versions_are_dropped() {
    let setup = Setup::new();
    fill(&setup.store, 1..=3);
    setup.store.close();
    let path = setup.dir.path().join("runs.db");
    let former = rusqlite::Connection::open(&path).unwrap();
    former
        .execute_batch(
            "CREATE INDEX runs_succeeded ON runs (program, action) WHERE outcome = 'succeeded';
             CREATE INDEX runs_unfinished ON runs (id) WHERE outcome IN ('waiting', 'running');",
        )
        .unwrap();
    drop(former);
    for _ in 0..2 {
        let opened = Store::open(setup.dir.path(), None).unwrap();
        assert_eq!(opened.lost, None);
        assert_eq!(ids(&opened.store.queries(), Filter::default()), [1, 2, 3]);
        opened.store.close();
    }
    let database = rusqlite::Connection::open(&path).unwrap();
    let sql =
        "SELECT name FROM sqlite_schema WHERE type = 'index' AND name LIKE 'runs%' ORDER BY 1";
    let mut statement = database.prepare(sql).unwrap();
    let names = statement.query_map([], |row| row.get::<_, String>(0));
    let names: Vec<String> = names.unwrap().map(Result::unwrap).collect();
    assert_eq!(names, ["runs_key", "runs_program"]);
}

/// A copy of a directory's files.
type Files = Vec<(String, Vec<u8>)>;

fn snapshot(dir: &Path) -> Files {
    let mut files = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        files.push((name, fs::read(entry.path()).unwrap()));
    }
    files.retain(|(name, _)| !name.ends_with("reserve"));
    files.sort();
    files
}

/// A history of `count` runs as a killed process leaves it: the first half in the database, the
/// other half in the journal only.
fn killed(count: u64) -> Files {
    let mut setup = Setup::new();
    fill(&setup.store, 1..=count / 2);
    setup.reopen();
    fill(&setup.store, count / 2 + 1..=count);
    let mut files = snapshot(setup.dir.path());
    files.retain(|(name, _)| !name.ends_with("-shm"));
    assert_eq!(files.len(), 2, "database and journal");
    files
}

/// Opens what `files` hold, which must work whatever that is, and be good for further use. Gives
/// the numbers of the rows, and what was said to be lost.
fn open_damaged(files: &Files) -> (Vec<u64>, Option<String>) {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let opened = Store::open(dir.path(), None).unwrap();
    let found = all(&opened.store.queries(), Filter::default());
    for row in &found {
        let reason = format!("because of {} ", row.id);
        assert!(
            row.reason
                .as_ref()
                .is_some_and(|found| found.starts_with(&reason)),
            "{row:?}"
        );
    }
    let ids: Vec<u64> = found.iter().map(|row| row.id.0).collect();
    let next = opened.next_id.0;
    assert!(ids.last().is_none_or(|newest| *newest < next));
    insert(&opened.store, new_run(next, "app", Outcome::Waiting)).unwrap();
    opened.store.close();
    let again = Store::open(dir.path(), None).unwrap();
    assert_eq!((again.next_id.0, again.lost), (next + 1, None));
    if opened.lost.is_some() {
        assert!(dir.path().join("runs.db.damaged-1").exists() || files.len() < 2);
    }
    (ids, opened.lost)
}

/// The same files, one of them changed.
fn changed(files: &Files, ending: &str, change: impl FnOnce(&mut Vec<u8>)) -> Files {
    let mut files = files.clone();
    let (_, bytes) = files
        .iter_mut()
        .find(|(name, _)| name.ends_with(ending))
        .unwrap();
    change(bytes);
    files
}

#[test]
fn a_database_cut_anywhere_is_opened_and_keeps_what_can_be_read() {
    let files = killed(100);
    assert_eq!(open_damaged(&files), ((1..=100).collect(), None));
    let len = |ending| {
        files
            .iter()
            .find(|(name, _)| name.ends_with(ending))
            .unwrap()
            .1
            .len()
    };
    let (db, wal) = (len(".db"), len("-wal"));
    let mut dice = Dice::new(11);
    let mut cuts = vec![0, 1, 15, 16, 99, 100, 101, 4095, 4096, 4097, db - 1];
    cuts.extend((0..25).map(|_| dice.below(db as u64) as usize));
    for cut in cuts {
        let cut_files = changed(&files, ".db", |bytes| bytes.truncate(cut));
        let (ids, lost) = open_damaged(&cut_files);
        // What the journal holds may make up for all of it.
        assert!(
            lost.is_some() || ids.len() == 100,
            "cut at {cut}: {} rows",
            ids.len()
        );
    }
    let mut before = 0;
    let mut cuts: Vec<usize> = (0..25).map(|_| dice.below(wal as u64) as usize).collect();
    cuts.extend([0, 1, 31, 32, 33, wal - 1]);
    cuts.sort_unstable();
    for cut in cuts {
        let cut_files = changed(&files, "-wal", |bytes| bytes.truncate(cut));
        let (ids, lost) = open_damaged(&cut_files);
        // Whole transactions are missing at the end, and nothing else.
        assert_eq!(lost, None, "cut at {cut}");
        assert!(ids.len() >= 50.max(before) && ids.iter().copied().eq(1..=ids.len() as u64));
        before = ids.len();
    }
}

#[test]
fn rows_that_only_logs_know_of_are_said_to_be_lost() {
    let files = killed(100);
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in changed(&files, "-wal", Vec::clear) {
        fs::write(dir.path().join(name), bytes).unwrap();
    }
    let logs = tempfile::tempdir().unwrap();
    let files = log::create(logs.path(), &program("app"), RunId(93)).unwrap();
    files.log.write_all_at(b"output", 0).unwrap();
    let opened = Store::open(dir.path(), Some(logs.path())).unwrap();
    assert_eq!(opened.next_id, RunId(94));
    let lost = opened.lost.unwrap();
    assert!(
        lost.contains("logs up to run 93, but rows only up to run 50"),
        "{lost}"
    );
}

#[test]
fn a_database_with_garbage_in_it_is_opened_and_keeps_what_can_be_read() {
    let mut setup = Setup::new();
    fill(&setup.store, 1..=2_000);
    setup.reopen();
    setup.store.close();
    let files = snapshot(setup.dir.path());
    let len = files[0].1.len() as u64;
    let mut dice = Dice::new(21);
    let garbage = |dice: &mut Dice, at: usize, count: usize| {
        let noise = dice.bytes(count);
        changed(&files, ".db", |bytes| {
            let end = (at + count).min(bytes.len());
            bytes[at..end].copy_from_slice(&noise[..end - at]);
        })
    };
    // The first page has the names and places of the tables: they are known without it.
    let (ids, lost) = open_damaged(&garbage(&mut dice, 0, 4096));
    assert_eq!(ids.len(), 2_000, "{lost:?}");
    assert!(
        lost.unwrap()
            .contains("2000 rows could be read, up to run 2000")
    );
    // A page in the middle costs the rows that are on it, at most.
    let mut rows = Vec::new();
    for _ in 0..40 {
        let page = 4 + dice.below(len / 4096 - 4) as usize;
        let (ids, lost) = open_damaged(&garbage(&mut dice, page * 4096, 4096));
        rows.push(ids.len());
        assert!(lost.is_some() || ids.len() == 2_000);
    }
    rows.sort_unstable();
    assert!(rows[rows.len() / 2] >= 1_950, "{rows:?}");
    // All of it, and a file that never was a database.
    let (ids, lost) = open_damaged(&garbage(&mut dice, 0, len as usize));
    assert!(ids.is_empty() && lost.unwrap().contains("none of its rows could be read"));
}

#[test]
fn any_byte_of_the_header_may_be_wrong() {
    let mut setup = Setup::new();
    fill(&setup.store, 1..=200);
    setup.reopen();
    setup.store.close();
    let files = snapshot(setup.dir.path());
    for at in 0..100 {
        for flip in [0x01, 0xff] {
            let (ids, lost) = open_damaged(&changed(&files, ".db", |bytes| bytes[at] ^= flip));
            assert_eq!(ids.len(), 200, "byte {at}: {lost:?}");
        }
    }
}

#[test]
fn a_journal_of_another_time_or_place_does_no_harm() {
    let old = killed(40);
    let mut setup = Setup::new();
    fill(&setup.store, 1..=300);
    setup.reopen();
    setup.store.close();
    // A journal of another history.
    let mut files = snapshot(setup.dir.path());
    files.push(old[1].clone());
    let (ids, lost) = open_damaged(&files);
    assert_eq!(ids.len(), 300);
    assert!(
        lost.unwrap()
            .contains("its journal is of another time or place")
    );
    // A journal that is none.
    files.pop();
    files.push(("runs.db-wal".to_owned(), Dice::new(2).bytes(50_000)));
    let (ids, _) = open_damaged(&files);
    assert_eq!(ids.len(), 300);
    // One of its own, from before: its rows are in the database, and others since.
    let mut opened = setup.reopen();
    fill(&opened.store, 301..=350);
    let before = snapshot(setup.dir.path());
    fill(&opened.store, 351..=400);
    opened = setup.reopen();
    let after = |files: &Files, store: &Store| {
        fill(store, 401..=410);
        store.close();
        let mut mixed = snapshot(setup.dir.path());
        mixed.extend(
            files
                .iter()
                .filter(|(name, _)| name.ends_with("-wal"))
                .cloned(),
        );
        mixed
    };
    let (ids, lost) = open_damaged(&after(&before, &opened.store));
    assert_eq!(ids.len(), 410);
    assert!(
        lost.unwrap()
            .contains("its journal is of another time or place")
    );
    // A journal newer than the database, which was put back from a copy.
    let opened = setup.reopen();
    fill(&opened.store, 411..=450);
    let mut mixed = snapshot(setup.dir.path());
    mixed.retain(|(name, _)| name.ends_with("-wal"));
    mixed.extend(before.into_iter().filter(|(name, _)| name == "runs.db"));
    let (ids, lost) = open_damaged(&mixed);
    assert_eq!(ids.len(), 300);
    assert!(
        lost.unwrap()
            .contains("its journal is of another time or place")
    );
    // A journal whose database is gone.
    let (ids, lost) = open_damaged(&old[1..].to_vec());
    assert!(ids.is_empty() && lost.unwrap().contains("only its journal is there"));
}

#[test]
fn damaged_files_are_put_aside_under_the_next_free_name() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("runs.db.damaged-1"), b"earlier").unwrap();
    fs::write(dir.path().join("runs.db"), b"this is no database at all").unwrap();
    let opened = Store::open(dir.path(), None).unwrap();
    assert!(opened.lost.unwrap().ends_with("runs.db.damaged-2"));
    let aside = |n| fs::read(dir.path().join(format!("runs.db.damaged-{n}"))).unwrap();
    assert_eq!(
        (&aside(1)[..], &aside(2)[..]),
        (&b"earlier"[..], &b"this is no database at all"[..])
    );
}

#[test]
fn a_rebuild_that_was_cut_short_is_completed() {
    let mut setup = Setup::new();
    fill(&setup.store, 1..=30);
    setup.reopen();
    setup.store.close();
    let [(_, bytes)] = &snapshot(setup.dir.path())[..] else {
        panic!("more than the database");
    };
    // The old one was put aside, the new one is complete, and an old journal is still there.
    let (_, journal) = &killed(10)[1];
    let files = vec![
        ("runs.db.damaged-1".to_owned(), b"old".to_vec()),
        ("runs.db.new".to_owned(), bytes.clone()),
        ("runs.db-wal".to_owned(), journal.clone()),
    ];
    assert_eq!(open_damaged(&files), ((1..=30).collect(), None));
    // It is not complete, and the old one is still in its place.
    let files = vec![
        ("runs.db".to_owned(), bytes.clone()),
        ("runs.db.new".to_owned(), bytes[..5000].to_vec()),
    ];
    assert_eq!(open_damaged(&files), ((1..=30).collect(), None));
}

#[test]
fn a_full_disk_is_reported_and_outcomes_are_written_when_there_is_room() {
    let Some(disk) = Tmpfs::mount(4 << 20) else {
        return;
    };
    let store = Store::open(disk.path(), None).unwrap().store;
    insert(&store, new_run(1, "app", Outcome::Running)).unwrap();
    insert(&store, new_run(2, "app", Outcome::Running)).unwrap();
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
    // Until what the files have room for is used up.
    let mut run = new_run(3, "app", Outcome::Running);
    run.reason = Some("x".repeat(20_000));
    let mut written = 2;
    while insert(&store, run.clone()).is_ok() {
        written = run.id.0;
        run.id.0 += 1;
        assert!(written < 1_000, "the disk is not full");
    }
    assert!(!store.healthy());
    let reports = [1, 2].map(|id| {
        let (done, reported) = done();
        let long = Finish {
            detail: Some("y".repeat(20_000)),
            ..finish(Outcome::Failed)
        };
        store.finished(RunId(id), long, done);
        reported
    });
    assert!(wait(|done| store.barrier(done)).is_err());
    assert!(reports.iter().all(|reported| reported.try_recv().is_err()));
    // Reading goes on.
    let queries = store.queries();
    assert_eq!(all(&queries, Filter::default()).len() as u64, written);
    // Nobody asks for anything: it is found out all the same.
    fs::remove_file(filler).unwrap();
    for reported in &reports {
        reported.recv_timeout(DEADLINE).unwrap().unwrap();
    }
    assert!(store.healthy());
    insert(&store, run.clone()).unwrap();
    let rows = all(&queries, Filter::default());
    assert_eq!(rows.len() as u64, written + 1);
    assert!(rows[..2].iter().all(|row| row.outcome == Outcome::Failed));
    store.close();
    let opened = Store::open(disk.path(), None).unwrap();
    assert_eq!((opened.lost, opened.next_id.0), (None, run.id.0 + 1));
}

#[test]
fn a_disk_that_recovers_makes_the_store_healthy_without_being_asked() {
    let Some(disk) = Tmpfs::mount(4 << 20) else {
        return;
    };
    let store = Store::open(disk.path(), None).unwrap().store;
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 4 << 20]).unwrap_err();
    let mut run = new_run(1, "app", Outcome::Running);
    run.reason = Some("x".repeat(20_000));
    while insert(&store, run.clone()).is_ok() {
        run.id.0 += 1;
        assert!(run.id.0 < 1_000, "the disk is not full");
    }
    // A kept one comes first when it works again.
    let (kept, reported) = done();
    store.insert(run.clone(), OnFailure::Keep, kept);
    let mut next = run.clone();
    next.id.0 += 1;
    assert!(insert(&store, next).is_err());
    fs::remove_file(filler).unwrap();
    let until = Instant::now() + DEADLINE;
    while !store.healthy() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    reported.recv_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!(
        store.queries().last(&program("app")).unwrap().unwrap().id,
        run.id
    );
}

#[test]
fn a_full_disk_does_not_keep_the_history_from_being_opened() {
    let Some(disk) = Tmpfs::mount(2 << 20) else {
        return;
    };
    let store = Store::open(disk.path(), None).unwrap().store;
    fill(&store, 1..=100);
    store.close();
    let filler = disk.path().join("filler");
    fs::write(&filler, vec![0; 2 << 20]).unwrap_err();
    let opened = Store::open(disk.path(), None).unwrap();
    assert_eq!((opened.next_id, opened.lost), (RunId(101), None));
    // What was set aside does not last.
    let mut run = new_run(101, "app", Outcome::Waiting);
    run.reason = Some("x".repeat(20_000));
    while insert(&opened.store, run.clone()).is_ok() {
        run.id.0 += 1;
        assert!(run.id.0 < 1_000, "the disk is not full");
    }
    opened.store.close();
    let opened = Store::open(disk.path(), None).unwrap();
    assert_eq!(opened.next_id, run.id);
    fs::remove_file(filler).unwrap();
    let until = Instant::now() + DEADLINE;
    while !opened.store.healthy() {
        assert!(Instant::now() < until);
        std::thread::yield_now();
    }
    insert(&opened.store, run).unwrap();
}

#[test]
fn a_store_that_was_closed_refuses() {
    let setup = Setup::new();
    setup.store.close();
    setup.store.close();
    let refused = insert(&setup.store, new_run(1, "app", Outcome::Waiting)).unwrap_err();
    assert!(matches!(refused, StoreError::Closed));
    let refused = wait(|done| setup.store.barrier(done)).unwrap_err();
    assert!(matches!(refused, StoreError::Closed));
}

#[test]
fn the_last_handle_to_go_writes_what_was_asked_for() {
    let setup = Setup::new();
    let (done, reported) = done();
    setup
        .store
        .insert(new_run(1, "app", Outcome::Waiting), OnFailure::Report, done);
    let dir = setup.dir;
    drop(setup.store);
    reported.recv_timeout(DEADLINE).unwrap().unwrap();
    assert_eq!(Store::open(dir.path(), None).unwrap().next_id, RunId(2));
}

/// Names the state directory that [`a_store_in_a_process_of_its_own`] has.
const HELPER: &str = "DEPLOYER_TEST_STORE";

/// Not a test of its own: the process that the next test kills. It reports on stderr what is
/// committed: `i` and a number for a row, `f` for its end.
#[test]
fn a_store_in_a_process_of_its_own() {
    let Ok(dir) = std::env::var(HELPER) else {
        return;
    };
    let opened = Store::open(Path::new(&dir), None).unwrap();
    assert_eq!(opened.lost, None);
    let report = |kind: char, id: u64| -> Done {
        Box::new(move |result| {
            result.unwrap();
            let _ = std::io::stderr().write_all(format!("{kind} {id}\n").as_bytes());
        })
    };
    for id in opened.next_id.0.. {
        let run = new_run(id, "app", Outcome::Running);
        opened.store.insert(run, OnFailure::Report, report('i', id));
        opened
            .store
            .finished(RunId(id), finish(Outcome::Failed), report('f', id));
        if id % 10 == 0 {
            wait(|done| opened.store.barrier(done)).unwrap();
        }
    }
}

#[test]
fn what_was_reported_as_written_is_there_after_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let mut dice = Dice::new(31);
    let mut newest_row = 0;
    let mut ends = Vec::new();
    for round in 0..40 {
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "store::tests::a_store_in_a_process_of_its_own",
                "--nocapture",
            ])
            .env(HELPER, dir.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let mut kill_after = 1 + dice.below(2_000);
        let mut reported = 0;
        // Reads on behind the kill: what it had said counts, too.
        while let Some(Ok(line)) = lines.next() {
            let Some((kind, id)) = line.split_once(' ') else {
                continue;
            };
            let Ok(id) = id.parse::<u64>() else {
                panic!("round {round}: {line}");
            };
            match kind {
                "i" => newest_row = newest_row.max(id),
                "f" => ends.push(id),
                _ => panic!("round {round}: {line}"),
            }
            reported += 1;
            if reported >= kill_after {
                process.kill().unwrap();
                kill_after = u64::MAX;
            }
        }
        assert!(!process.wait().unwrap().success());
        let store = Store::open(dir.path(), None).unwrap().store;
        let rows = all(&store.queries(), Filter::default());
        assert!(rows.len() as u64 >= newest_row, "round {round}");
        assert!(rows.iter().map(|row| row.id.0).eq(1..=rows.len() as u64));
        let ended = |id: &u64| rows[*id as usize - 1].outcome == Outcome::Failed;
        assert!(ends.iter().all(ended), "round {round}");
        store.close();
    }
    assert!(newest_row > 1_000);
}

#[test]
fn a_hole_in_the_middle_of_the_file_does_not_keep_it_from_being_read() {
    let mut setup = Setup::new();
    fill(&setup.store, 1..=2_000);
    setup.reopen();
    setup.store.close();
    let path = setup.dir.path().join("runs.db");
    let file = File::options().write(true).open(&path).unwrap();
    let middle = file.metadata().unwrap().len() / 8192 * 4096;
    file.write_all_at(&[0; 8 * 4096], middle).unwrap();
    let opened = Store::open(setup.dir.path(), None).unwrap();
    let found = ids(&opened.store.queries(), Filter::default());
    assert!((1_500..2_000).contains(&found.len()), "{}", found.len());
    assert_eq!((found.first(), found.last()), (Some(&1), Some(&2_000)));
    assert_eq!(opened.next_id, RunId(2_001));
}

#[test]
#[ignore = "a measurement, not a test: run it alone, in a release build"]
fn latency_of_one_insert() {
    let setup = Setup::new();
    let mut took = Vec::new();
    for id in 1..=20_000 {
        let run = new_run(id, "app", Outcome::Running);
        let began = Instant::now();
        insert(&setup.store, run).unwrap();
        took.push(began.elapsed());
    }
    took.sort_unstable();
    let at = |part: f64| took[(took.len() as f64 * part) as usize];
    eprintln!(
        "median {:?}, 90 % {:?}, 99 % {:?}",
        at(0.5),
        at(0.9),
        at(0.99)
    );
    let began = Instant::now();
    fill(&setup.store, 20_001..=220_000);
    eprintln!(
        "{:.0} queued inserts a second",
        200_000.0 / began.elapsed().as_secs_f64()
    );
}
