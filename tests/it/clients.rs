//! P1–P9: clients that mean harm, or are just slow, many or broken.

use std::collections::BTreeSet;
use std::io::{IoSlice, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::json;

use crate::harness::{ALICE, CAROL, Daemon, OWNER, Running, Site, finish, root, wait_for};
use crate::talk::{CONTROL, Framed, Plain, answer_to, connect, frame, listen, request};

/// P1: a user has so many connections and no more; others do not notice.
#[test]
fn p1_connections_are_capped_per_user_and_others_are_served() {
    root_only!(p1_connections_are_capped_per_user_and_others_are_served);
    let site = Site::new();
    site.configure(&format!(
        "clients-per-user = 8\n[prog-app]\nallow-uid = {}\ncmd-run = echo ran\n",
        CAROL.uid
    ));
    let d = site.start();
    let mut held: Vec<UnixStream> = (0..8).map(|_| connect(&d, ALICE)).collect();
    let turned_away = |stream: &mut UnixStream| listen(stream, Duration::from_millis(500));
    // Those within the bound are not answered before they ask; the ones above it are, at once.
    for _ in 0..8 {
        let mut extra = Plain(connect(&d, ALICE));
        let line = extra.line();
        assert!(line.starts_with("ERROR busy"), "{line}");
    }
    assert_eq!(turned_away(&mut held[0]), None);
    let refused = d.ask(ALICE, ["RUN", "app"]).exits(125);
    assert!(refused.errors().contains("busy"), "{refused:?}");
    assert_eq!(d.ask(CAROL, ["RUN", "app"]).exits(0).text(), "ran\n");
    drop(held);
    wait_for("the places are free again", || {
        d.ask(ALICE, ["-t"]).errors().is_empty().then_some(())
    });
}

/// P1: when descriptors run out the daemon lives, turns clients away, and recovers.
#[test]
fn p1_running_out_of_descriptors_does_not_end_the_daemon() {
    let site = Site::new();
    site.script("app", "echo ran");
    site.wrap(["prlimit", "--nofile=80:80"]);
    let d = site.start();
    let before = d.daemon_pid();
    let many: Vec<UnixStream> = (0..150).map(|_| connect(&d, OWNER)).collect();
    let busy = wait_for("somebody is turned away", || {
        many.iter()
            .find_map(|s| listen(&mut s.try_clone().unwrap(), Duration::from_millis(1)))
    });
    assert!(
        busy.starts_with(b"ERROR busy"),
        "{}",
        String::from_utf8_lossy(&busy)
    );
    drop(many);
    wait_for("the daemon serves again", || {
        let done = d.ask(OWNER, ["RUN", "app"]);
        (done.code() == Some(0) && done.text() == "ran\n").then_some(())
    });
    assert_eq!(d.daemon_pid(), before);
}

/// P2: a client that says nothing, or one byte now and then, is sent away after five seconds.
#[test]
fn p2_a_client_without_a_whole_request_is_closed_after_five_seconds() {
    let site = Site::new();
    let d = site.start();
    let begun = Instant::now();
    let mut silent = connect(&d, OWNER);
    let mut slow = connect(&d, OWNER);
    let mut half = connect(&d, OWNER);
    half.write_all(b"DEPLOYER 1\n\x01\x00\x00").unwrap();
    let drip = wait_for("the slow one is sent away", || {
        let _ = slow.write_all(b"R");
        listen(&mut slow, Duration::from_millis(300))
    });
    assert!(drip.is_empty() || drip.starts_with(b"ERROR "), "{drip:?}");
    assert!(
        begun.elapsed() >= Duration::from_millis(4_500),
        "after {:?}",
        begun.elapsed()
    );
    for stream in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        assert!(rest.is_empty() || rest.starts_with(b"ERROR "), "{rest:?}");
    }
    assert!(
        begun.elapsed() < Duration::from_secs(30),
        "after {:?}",
        begun.elapsed()
    );
    // One whose request is whole may take its time.
    assert_eq!(d.ask(OWNER, ["-t"]).code(), Some(0));
}

/// P3: lines and frames have an end, and the daemon's memory has a bound.
#[test]
fn p3_lines_and_frames_are_capped() {
    let site = Site::new();
    let d = site.start();
    let long = vec![b'x'; 4 << 20];
    let mut run = b"RUN ".to_vec();
    run.extend(&long);
    let mut huge = b"DEPLOYER 1\n".to_vec();
    huge.extend([CONTROL, 0x7f, 0xff, 0xff, 0xff]);
    huge.extend(&long);
    let mut bigger = b"DEPLOYER 1\n".to_vec();
    bigger.extend(frame(CONTROL, &vec![b' '; 65_537]));
    let before = d.memory("VmRSS");
    for bytes in [&long, &run, &huge, &bigger] {
        for _ in 0..10 {
            let answer = answer_to(&d, OWNER, bytes);
            assert!(answer.len() < 4096, "{} bytes", answer.len());
        }
    }
    // 160 MiB were offered.
    let grown = d.memory("VmRSS").saturating_sub(before);
    assert!(grown < 8 * 1024, "{grown} kB");
    // Exactly as much as is allowed is allowed.
    let mut padded = json!({"op": "ping"}).to_string().into_bytes();
    padded.resize(65_536, b' ');
    let mut most = b"DEPLOYER 1\n".to_vec();
    most.extend(frame(CONTROL, &padded));
    let answer = answer_to(&d, OWNER, &most);
    assert!(
        String::from_utf8_lossy(&answer).contains("done"),
        "{answer:?}"
    );
}

/// P4: clients that never read hold up nothing, and find everything when they do read.
#[test]
fn p4_a_client_that_does_not_read_does_not_slow_the_run() {
    let site = Site::new();
    site.configure("log-max-size = 64M\n[prog-app]\ncmd-run = head -c 20000000 /dev/zero; echo; echo over >> @S@/trace\n");
    let d = site.start();
    let mut plain = Plain::run(&d, OWNER, "app");
    d.await_trace("over", 1);
    assert_eq!(d.ended(1)["bytes"], 20_000_001);
    let mut framed = Framed::run(&d, OWNER, "app");
    d.await_trace("over", 2);
    assert_eq!(d.ended(2)["outcome"], "succeeded");
    let client = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("over", 3);
    assert_eq!(plain.line(), "OK");
    assert_eq!(plain.rest().len(), 20_000_001);
    let outcome = framed.rest();
    assert_eq!(outcome.out.len(), 20_000_001);
    assert_eq!(outcome.last()["run"]["outcome"], "succeeded");
    assert_eq!(client.done().exits(0).out.len(), 20_000_001);
}

/// P5: however many ask, there is one more run, and each is answered by a run that began later.
#[test]
fn p5_any_number_of_requests_leads_to_one_more_run() {
    let requests: u64 = std::env::var("DEPLOYER_TEST_REQUESTS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(400);
    let site = Site::new();
    site.configure("clients-per-user = 1000000\n");
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo begin >> @S@/trace; read _ < @S@/gate; echo $DEPLOYER_RUN",
    );
    let d = site.start();
    let first = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let mut waiting = Vec::new();
    for _ in 0..requests {
        let mut client = Framed::run(&d, OWNER, "app");
        let accepted = client.until("accepted");
        assert_eq!(accepted["behind"]["id"], 1, "{accepted}");
        waiting.push((accepted["id"].as_u64().unwrap(), client));
    }
    assert_eq!(d.trace().len(), 1);
    gate.open(2);
    assert_eq!(first.done().exits(0).text(), "1\n");
    let last = requests + 1;
    for (id, mut client) in waiting {
        let outcome = client.rest();
        assert_eq!(outcome.all("ended").len(), 1);
        assert_eq!(outcome.last()["run"]["id"], last, "request {id}");
        assert_eq!(
            outcome.out,
            format!("{last}\n").into_bytes(),
            "request {id}"
        );
        assert_eq!(
            outcome.all("displaced").len(),
            usize::from(id != last),
            "request {id}"
        );
    }
    assert_eq!(d.trace().len(), 2);
    let rows = d.history();
    let superseded = rows
        .iter()
        .filter(|r| r["outcome"] == "superseded" && r["covered_by"] == last);
    assert_eq!(superseded.count() as u64, requests - 1);
}

/// P6: a program without end fills its log up to the bound, goes on, and the reader is told.
#[test]
fn p6_output_without_end_is_bounded_and_the_run_goes_on() {
    let site = Site::new();
    site.configure("log-max-size = 100K\n[prog-app]\ncmd-run = echo first; head -c 30000000 /dev/zero; echo over >> @S@/trace\n");
    let d = site.start();
    let done = d.ask(OWNER, ["RUN", "app"]).exits(0);
    assert_eq!(d.trace(), ["over"]);
    let row = d.ended(1);
    let (kept, dropped) = (
        row["bytes"].as_u64().unwrap(),
        row["dropped"].as_u64().unwrap(),
    );
    assert_eq!(kept + dropped, 30_000_006, "{row}");
    assert!(kept <= 100 * 1024 && kept > 50 * 1024, "{row}");
    assert!(
        done.errors().contains(&dropped.to_string()),
        "{}",
        done.errors()
    );
    assert_eq!(done.out.len() as u64, kept);
    let logs = d.ask(OWNER, ["LOGS", "1"]).exits(0);
    assert!(logs.out.starts_with(b"first\n") && logs.out.len() as u64 == kept);
    assert!(
        logs.errors().contains(&dropped.to_string()),
        "{}",
        logs.errors()
    );
    let mut plain = Plain::run(&d, OWNER, "app");
    assert_eq!(plain.line(), "OK");
    let rest = plain.rest();
    assert!(String::from_utf8_lossy(&rest[rest.len() - 200..]).contains("not kept"));
}

/// How many descriptors the daemon has once it has opened all that it opens when it is needed.
fn settled(d: &Daemon) -> usize {
    d.history();
    // Clients that have left are let go a moment later.
    let mut least = d.descriptors();
    wait_for("the last client is let go", || {
        let now = d.descriptors();
        let same = now == least && d.ask(OWNER, ["-t"]).code() == Some(0);
        least = least.min(now);
        same.then_some(least)
    })
}

/// P7: descriptors that nobody asked for are closed.
#[test]
fn p7_descriptors_that_nobody_asked_for_are_closed() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script("app", "echo begin >> @S@/trace; read _ < @S@/gate");
    let d = site.start();
    let before = settled(&d);
    let (mut read, write) = std::io::pipe().unwrap();
    let mut held = Vec::new();
    for bytes in [
        b"RUN app\n".to_vec(),
        request(&json!({"op": "run", "program": "app"})),
        b"DEPLOYER 1\n".to_vec(),
        b"RU".to_vec(),
    ] {
        let stream = connect(&d, OWNER);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(20))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let fds = [write.as_fd(); 20];
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
        sendmsg(
            &stream,
            &[IoSlice::new(&bytes)],
            &mut ancillary,
            SendFlags::empty(),
        )
        .unwrap();
        held.push(stream);
    }
    d.await_trace("begin", 1);
    drop(write);
    // The end of the pipe comes when nobody holds its writing end: not the daemon, not the run.
    let reader = thread::spawn(move || read.read(&mut [0; 1]).unwrap());
    wait_for("nobody holds the pipe", || {
        reader.is_finished().then_some(())
    });
    assert_eq!(reader.join().unwrap(), 0);
    gate.open(2);
    drop(held);
    d.await_descriptors(before);
}

/// P8: garbage, halves and resets end their own connection and leave nothing behind.
#[test]
fn p8_broken_connections_end_alone_and_leak_nothing() {
    let site = Site::new();
    site.script("app", "cat >/dev/null; echo ran");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app"]).exits(0);
    let (pid, before) = (d.daemon_pid(), settled(&d));
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let run = request(&json!({"op": "run", "program": "app", "stdin": "frames"}));
    for round in 0..300 {
        let mut stream = connect(&d, OWNER);
        let length = (random() % 300) as usize;
        let noise: Vec<u8> = (0..length).map(|_| random() as u8).collect();
        let bytes = match round % 6 {
            0 => noise,
            1 => run[..run.len().min(length)].to_vec(),
            2 => [b"DEPLOYER 1\n".to_vec(), noise].concat(),
            3 => [run.clone(), noise].concat(),
            4 => [b"RUN app\n".to_vec(), noise].concat(),
            _ => [b"DEPLOYER 1\n".to_vec(), frame(CONTROL, &noise)].concat(),
        };
        let _ = stream.write_all(&bytes);
        match random() % 4 {
            0 => drop(stream.shutdown(Shutdown::Write)),
            1 => drop(stream.shutdown(Shutdown::Read)),
            2 => drop(stream.shutdown(Shutdown::Both)),
            _ => {}
        }
    }
    // Others are served as if nothing had been.
    assert_eq!(d.ask(OWNER, ["RUN", "app"]).exits(0).text(), "ran\n");
    wait_for("nothing runs any more", || {
        d.history()
            .iter()
            .all(|r| !matches!(r["outcome"].as_str(), Some("running" | "waiting")))
            .then_some(())
    });
    d.await_descriptors(before);
    assert_eq!(d.daemon_pid(), pid);
}

/// P9: escape sequences of clients and names come out harmless, in the log and on the terminal.
#[test]
fn p9_escape_sequences_are_escaped() {
    let site = Site::new();
    site.script("app", "printf 'raw\\033[1m\\n'");
    let d = site.start();
    let evil = "x\x1b]0;owned\x07\x1b[2J\r\ny";
    let done = d.ask(OWNER, ["RUN", "app", "--reason", evil]).exits(0);
    // What the script prints is its own affair.
    assert_eq!(done.out, b"raw\x1b[1m\n");
    answer_to(&d, OWNER, b"RUN \x1b[31mapp\x07\n");
    answer_to(
        &d,
        OWNER,
        &request(&json!({"op": "run", "program": "a\u{1b}[2Jb\nforged line"})),
    );
    let history = d.ask(OWNER, ["HISTORY"]).exits(0);
    let shown = d.ask(OWNER, ["RUN", "a\x1b[2Jb"]).errors();
    let json = d.ask(OWNER, ["HISTORY", "--json"]).exits(0).text();
    assert_eq!(d.history()[0]["reason"], evil);
    let log = wait_for("the refusals are logged", || {
        Some(d.log()).filter(|l| l.contains("forged line"))
    });
    assert!(!log.lines().any(|l| l.starts_with("forged line")), "{log}");
    for text in [history.text(), shown, json, log] {
        assert!(
            !text
                .chars()
                .any(|c| c.is_control() && c != '\n' && c != '\t'),
            "{text:?}"
        );
    }
}

/// Two hundred clients at once, of which half vanish: the others are all answered.
#[test]
fn p8_clients_that_vanish_while_they_wait_take_nobody_with_them() {
    let site = Site::new();
    let gate = site.gate("gate");
    site.script(
        "app",
        "echo begin >> @S@/trace; read _ < @S@/gate; echo $DEPLOYER_RUN",
    );
    let d = site.start();
    let _first = d.background(OWNER, ["RUN", "app"]);
    d.await_trace("begin", 1);
    let mut waiting = Vec::new();
    for _ in 0..200 {
        let mut client = Framed::run(&d, OWNER, "app");
        client.until("accepted");
        waiting.push(client);
    }
    let mut even = false;
    waiting.retain(|_| {
        even = !even;
        even
    });
    gate.open(2);
    let answers: BTreeSet<u64> = waiting
        .iter_mut()
        .map(|c| c.rest().last()["run"]["id"].as_u64().unwrap())
        .collect();
    assert_eq!(answers, [201].into());
    assert_eq!(d.trace().len(), 2);
}

/// Tools that everybody has speak the plain protocol.
#[test]
fn p8_a_client_that_closes_its_sending_end_at_once_still_gets_everything() {
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = cat; seq 1 20000\n");
    let d = site.start();
    let expected: String = (1..=20_000).map(|n| format!("{n}\n")).collect();
    let mut stream = connect(&d, OWNER);
    stream.write_all(b"RUN app\nsome input\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut plain = Plain(stream);
    assert_eq!(plain.line(), "OK");
    assert_eq!(plain.line(), "some input");
    assert_eq!(String::from_utf8(plain.rest()).unwrap(), expected);
    if root() {
        let mut quiet = Command::new("socat");
        quiet.args(["-u", &format!("UNIX-CONNECT:{}", d.socket().display()), "-"]);
        // It sends nothing and is sent away: what counts is that the daemon does not mind.
        let done = finish(quiet);
        assert!(done.text().starts_with("ERROR ") || done.out.is_empty());
    }
    let again = Running::start(d.client(OWNER, ["RUN", "app"])).done();
    assert_eq!(again.exits(0).text(), expected);
}
