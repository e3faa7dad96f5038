//! The daemon is killed at random moments under load, and nothing is lost.
//!
//! How often: `DEPLOYER_TEST_KILLS`.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Done, OWNER, Site, kill, wait_for, wait_until};

const PROGRAMS: [&str; 3] = ["red", "green", "blue"];

/// Its output and exit code say which run it was, so that a mixed-up one is noticed.
const SCRIPT: &str = "mkdir @S@/$PROGNAME.busy || echo OVERLAP >> @S@/trace\necho \"begin $DEPLOYER_RUN\" >> @S@/trace\n\
    i=0\nwhile [ $i -lt 400 ]; do echo \"$DEPLOYER_RUN line $i\"; i=$((i+1)); done\nseq -f \"$DEPLOYER_RUN number %.0f\" 1 3000\n\
    rmdir @S@/$PROGNAME.busy\necho \"end $DEPLOYER_RUN\" >> @S@/trace\nexit $((DEPLOYER_RUN % 5))";

fn expected(run: u64) -> String {
    let lines = (0..400).map(|i| format!("{run} line {i}\n"));
    lines
        .chain((1..=3000).map(|i| format!("{run} number {i}\n")))
        .collect()
}

/// A number below `bound` that nobody chose.
fn random(bound: u64) -> u64 {
    RandomState::new().build_hasher().finish() % bound
}

/// Which run a client was shown: all of it, in order, once, and with its exit code.
fn shown(done: &Done) -> Result<u64, String> {
    let text = done.text();
    let run = text.split(' ').next().and_then(|w| w.parse::<u64>().ok());
    let run = run.ok_or_else(|| format!("no output: {done:?}"))?;
    if text != expected(run) {
        let at = text
            .bytes()
            .zip(expected(run).bytes())
            .take_while(|(a, b)| a == b)
            .count();
        return Err(format!(
            "output of run {run} differs at byte {at} of {}; {}",
            text.len(),
            done.errors()
        ));
    }
    if done.code() != Some((run % 5) as i32) {
        return Err(format!(
            "run {run} came out as {}: {}",
            done.status,
            done.errors()
        ));
    }
    Ok(run)
}

#[test]
fn l2_random_kills_under_load_lose_nothing() {
    let kills: u64 = std::env::var("DEPLOYER_TEST_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(30);
    let site = Site::new();
    site.configure("history-keep = none\nlog-keep = none\n");
    for program in PROGRAMS {
        site.script(program, SCRIPT);
    }
    let d = site.start();
    let over = AtomicBool::new(false);
    let answers: Vec<Result<u64, String>> = thread::scope(|s| {
        let (d, over) = (&d, &over);
        let client = move |program: &'static str| {
            let mut answers = Vec::new();
            while !over.load(Ordering::Relaxed) {
                answers.push(shown(&d.ask(OWNER, ["RUN", program])));
            }
            answers
        };
        // Three for the first program: while one runs, the second is displaced by the third.
        let clients: Vec<_> = PROGRAMS
            .iter()
            .chain([&PROGRAMS[0]; 2])
            .map(|p| s.spawn(move || client(p)))
            .collect();
        for _ in 0..kills {
            let pid = d.daemon_pid();
            let moment = Instant::now() + Duration::from_micros(random(120_000));
            wait_until(Duration::from_secs(5), "the moment has come", || {
                (Instant::now() >= moment).then_some(())
            });
            kill(pid, Signal::KILL);
            wait_for("the daemon is dead", || {
                (d.daemon_pid_now() != Some(pid)).then_some(())
            });
        }
        over.store(true, Ordering::Relaxed);
        clients
            .into_iter()
            .flat_map(|c| c.join().expect("a client's thread does not panic"))
            .collect()
    });
    d.await_ready();
    let wrong: Vec<&String> = answers.iter().filter_map(|a| a.as_ref().err()).collect();
    assert!(
        wrong.is_empty(),
        "{} of {} answers: {wrong:#?}",
        wrong.len(),
        answers.len()
    );
    let rows = wait_for("nothing runs or waits any more", || {
        let rows = d.history();
        rows.iter()
            .all(|r| !matches!(r["outcome"].as_str(), Some("running" | "waiting")))
            .then_some(rows)
    });
    // What the scripts saw themselves: each began once, ended once, alone.
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for line in d.trace() {
        *seen.entry(line).or_default() += 1;
    }
    assert!(
        !seen.contains_key("OVERLAP"),
        "two runs of a program at once"
    );
    assert!(
        seen.values().all(|n| *n == 1),
        "{:?}",
        seen.iter().filter(|(_, n)| **n > 1).collect::<Vec<_>>()
    );
    let began: BTreeSet<u64> = seen
        .keys()
        .filter_map(|l| l.strip_prefix("begin ")?.parse().ok())
        .collect();
    let ended: BTreeSet<u64> = seen
        .keys()
        .filter_map(|l| l.strip_prefix("end ")?.parse().ok())
        .collect();
    assert_eq!(began, ended);
    // What the history says is the same.
    let recorded: BTreeSet<u64> = rows
        .iter()
        .filter(|r| !r["started_at"].is_null() && r["covered_by"].is_null())
        .filter_map(|r| r["id"].as_u64())
        .collect();
    assert_eq!(began, recorded);
    for row in &rows {
        let id = row["id"].as_u64().unwrap();
        if began.contains(&id) {
            assert_eq!(row["exit_code"], id % 5, "{row}");
            assert!(
                d.output(id) == expected(id).as_bytes(),
                "the log of run {id} is not what it printed"
            );
            assert_eq!(row["bytes"], expected(id).len(), "{row}");
        } else {
            let covering = row["covered_by"]
                .as_u64()
                .unwrap_or_else(|| panic!("nobody ran this: {row}"));
            assert!(began.contains(&covering) && covering > id, "{row}");
        }
    }
    // Everybody was shown a run that there was.
    assert!(answers.iter().flatten().all(|run| began.contains(run)));
    wait_for("nothing is left running", || {
        d.others().is_empty().then_some(())
    });
    let _ = std::io::Write::write_all(
        &mut std::io::stderr(),
        format!(
            "{kills} kills, {} runs, {} answers\n",
            began.len(),
            answers.len()
        )
        .as_bytes(),
    );
}
