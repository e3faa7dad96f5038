//! The pages, in a real browser.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{ALICE, CAROL, Daemon, OWNER, Running, Site, User, free_port, wait_for};
use crate::sources::Repository;

/// Says that there is no browser here; with root, where tests install what they need, that is
/// a failure.
fn has_browser() -> bool {
    let found = ["chromium", "chromedriver"].iter().all(|program| {
        let mut version = Command::new(program);
        version
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        version.status().is_ok_and(|status| status.success())
    });
    if !found {
        let wanted = std::env::var_os("DEPLOYER_TEST_ROOT").is_some();
        assert!(!wanted, "chromium and chromium-driver are missing");
        eprintln!("skipped: chromium and chromium-driver are missing");
    }
    found
}

/// A browser, driven from outside.
struct Browser {
    driver: Option<Running>,
    session: String,
}

impl Browser {
    fn new() -> Self {
        let port = free_port();
        let mut command = Command::new("chromedriver");
        command.arg(format!("--port={port}")).stdin(Stdio::null());
        let driver = Running::start(command);
        let base = format!("http://127.0.0.1:{port}");
        wait_for("the driver", || {
            call("GET", &format!("{base}/status"), None).ok()
        });
        let options = json!({
            "binary": "/usr/bin/chromium",
            "args": ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1200,900"],
        });
        let wanted = json!({"capabilities": {"alwaysMatch": {
            "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"},
        }}});
        let made = call("POST", &format!("{base}/session"), Some(&wanted)).unwrap();
        let id = made["sessionId"].as_str().unwrap();
        Self {
            driver: Some(driver),
            session: format!("{base}/session/{id}"),
        }
    }

    #[track_caller]
    fn go(&self, address: &str) {
        call(
            "POST",
            &format!("{}/url", self.session),
            Some(&json!({"url": address})),
        )
        .unwrap();
    }

    /// What a script returns.
    #[track_caller]
    fn script(&self, script: &str) -> Value {
        let body = json!({"script": script, "args": []});
        call(
            "POST",
            &format!("{}/execute/sync", self.session),
            Some(&body),
        )
        .unwrap_or_else(|e| panic!("{script}: {e}"))
    }

    fn text(&self) -> String {
        let text = self.script("return document.body.innerText");
        text.as_str().unwrap_or_default().to_owned()
    }

    #[track_caller]
    fn sees(&self, text: &str) {
        let mut last = String::new();
        let seen = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for(&format!("{text:?} on the page"), || {
                last = self.text();
                last.contains(text).then_some(())
            });
        }));
        assert!(
            seen.is_ok(),
            "{text:?} is not on the page:\n{last}\n{:?}",
            self.complaints()
        );
    }

    /// Waits until a script returns something true.
    #[track_caller]
    fn awaits(&self, what: &str, script: &str) {
        wait_for(what, || {
            (self.script(script) == Value::Bool(true)).then_some(())
        });
    }

    /// Presses the button with this text.
    #[track_caller]
    fn presses(&self, button: &str) {
        let script = format!(
            "const b = [...document.querySelectorAll('main button')].find(b => b.innerText === {button:?} && !b.hidden && !b.disabled); \
             if (b) b.click(); return !!b"
        );
        self.awaits(&format!("the button {button:?}"), &script);
    }

    /// Types a key where the page has the focus.
    fn types(&self, key: &str) {
        let script = format!(
            "(document.activeElement ?? document.body).dispatchEvent(new KeyboardEvent('keydown', {{key: {key:?}, bubbles: true, cancelable: true}}))"
        );
        self.script(&script);
    }

    /// What the browser has to complain about: errors, and what the policy has kept out.
    fn complaints(&self) -> Vec<String> {
        let body = json!({"type": "browser"});
        let log =
            call("POST", &format!("{}/se/log", self.session), Some(&body)).unwrap_or_default();
        let all = log.as_array().cloned().unwrap_or_default();
        all.iter().map(Value::to_string).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its processes end with the session, or else with the driver.
        let _ = call("DELETE", &self.session, None);
        drop(self.driver.take());
    }
}

/// Says something to the driver.
fn call(method: &str, address: &str, body: Option<&Value>) -> Result<Value, String> {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(40)))
        .build()
        .into();
    let answer = match (method, body) {
        ("POST", Some(body)) => agent.post(address).send(body.to_string()),
        ("DELETE", _) => agent.delete(address).call(),
        _ => agent.get(address).call(),
    };
    let mut answer = answer.map_err(|e| e.to_string())?;
    let text = answer
        .body_mut()
        .read_to_string()
        .map_err(|e| e.to_string())?;
    let value: Value = serde_json::from_str(&text).map_err(|e| format!("{e}: {text}"))?;
    match answer.status().as_u16() {
        200 => Ok(value["value"].clone()),
        _ => Err(value["value"]["message"].to_string()),
    }
}

/// `deployer UI` of somebody; the address that it says.
struct Pages(Child, String);

impl Pages {
    fn new(d: &Daemon, user: User) -> Self {
        let mut command = d.client(user, ["UI"]);
        command.stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().unwrap();
        let mut address = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut address).unwrap();
        assert!(address.starts_with("http://127."), "{address:?}");
        Self(child, address.trim().to_owned())
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_browser_looks_runs_watches_and_cancels() {
    if !has_browser() {
        return;
    }
    let site = Site::new();
    site.configure(
        "[prog-app]\ninput-to = choice staging production\ninput-note = text default x\n\
         cmd-run = printf '\\033[31mred\\033[0m\\n'; echo \"<b>$INPUT_NOTE</b>\" >&2; echo 40 %; read _ < @S@/gate; echo \"to $INPUT_TO\"\n\
         [prog-slow]\ncmd-run = echo begun; exec sleep 1000\n[prog-web]\ncmd-start = exec sleep 1000\n",
    );
    let gate = site.gate("gate");
    let d = site.start();
    let pages = Pages::new(&d, OWNER);
    let b = Browser::new();
    b.go(&pages.1);
    for name in ["app", "slow", "web", "idle", "stopped"] {
        b.sees(name);
    }
    // The address is used up, and the cookie is what counts.
    assert!(
        !b.script("return location.href")
            .as_str()
            .unwrap()
            .contains("ticket")
    );

    // A run with inputs, from the form.
    b.script("location.hash = '#/programs/app'");
    b.sees("arguments");
    b.script(
        "const f = document.querySelector('form.inputs'); f.elements.to.value = 'production'; \
         f.elements.note.value = '<i>n</i>'; f.elements.reason.value = 'because'; f.querySelector('button').click()",
    );
    b.sees("running");
    b.sees("<b><i>n</i></b>");
    assert_eq!(
        b.script("return document.querySelectorAll('.log b, .log i').length"),
        0
    );
    b.awaits(
        "colours",
        "return document.querySelector('.log .c1')?.innerText === 'red'",
    );
    b.awaits(
        "what came to stderr",
        "return document.querySelector('.log .err')?.innerText.includes('<i>')",
    );
    b.awaits(
        "the percentage",
        "return document.querySelector('progress').value === 40",
    );
    let row = d.row(1);
    assert_eq!(
        (&row["inputs"]["to"], &row["reason"]),
        (&json!("production"), &json!("because"))
    );
    // It is watched to its end without anybody touching anything.
    gate.open(1);
    b.sees("to production");
    b.sees("succeeded");
    b.types("r");
    b.sees("Run 2");
    gate.open(1);
    b.sees("succeeded");
    assert_eq!(
        d.row(2)["inputs"]["to"],
        "production",
        "run again, with the same inputs"
    );

    // Cancelled from the page of the run.
    b.script("location.hash = '#/programs/slow'");
    b.presses("run");
    b.sees("begun");
    b.presses("cancel");
    b.sees("cancelled");
    assert_eq!(d.ended(3)["outcome"], "cancelled");

    // What others do is seen at once.
    b.types("g");
    b.sees("stopped");
    d.ask(OWNER, ["web", "start"]).exits(0);
    b.awaits("that it runs", "return [...document.querySelectorAll('tr')].some(r => r.innerText.includes('web') && r.innerText.includes('running'))");
    // By keys alone: the second row, opened.
    b.types("j");
    b.types("j");
    b.awaits(
        "the row has the focus",
        "return document.activeElement.dataset.to === '#/programs/slow'",
    );
    b.types("Enter");
    b.sees("History");
    b.types("?");
    b.awaits("the keys", "return document.getElementById('help').open");
    assert_eq!(b.complaints(), Vec::<String>::new());
}

#[test]
fn a_browser_rolls_back_freezes_and_is_refused() {
    root_only!(a_browser_rolls_back_freezes_and_is_refused);
    if !has_browser() {
        return;
    }
    let site = Site::new();
    let repository = Repository::new(&site);
    let dir = site.path("deploy");
    fs::create_dir(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(5), Some(60)).unwrap();
    site.configure(&format!(
        "[prog-app]\nuser = games\nsource = @S@/origin.git#main\ndeploy-dir = @D@/deploy\nschedule-update = none\n\
         allow-uid = {}, {}\nuid-rollback = {}\nuid-freeze = {}\ncmd-run = true\n",
        ALICE.uid, CAROL.uid, ALICE.uid, ALICE.uid
    ));
    let d = site.start();
    d.ask(OWNER, ["app", "update"]).exits(0);
    repository.commit("two");
    d.ask(OWNER, ["app", "update"]).exits(0);
    let current = || fs::read_to_string(d.path("deploy/current/app")).unwrap();
    assert_eq!(current(), "two");

    let (hers, other) = (Pages::new(&d, ALICE), Pages::new(&d, CAROL));
    let b = Browser::new();
    b.go(&hers.1);
    b.script("location.hash = '#/programs/app'");
    b.sees("is current");
    b.presses("roll back");
    b.sees("Steps");
    b.sees("succeeded");
    assert_eq!(current(), "one");
    b.script("location.hash = '#/programs/app'; window.prompt = () => 'party'");
    b.presses("freeze");
    b.sees("party");
    b.awaits(
        "nothing can be begun",
        "return document.querySelector('form.inputs button').disabled",
    );
    b.presses("thaw");
    b.awaits("it goes on", "return !document.querySelector('.banner')");

    // Somebody else, on the same machine: no buttons for what they may not, and no way around.
    b.go(&other.1);
    b.script("location.hash = '#/programs/app'");
    b.sees("is current");
    b.sees(&CAROL.uid.to_string());
    let buttons =
        b.script("return [...document.querySelectorAll('main button')].map(b => b.innerText)");
    let buttons = buttons.to_string();
    assert!(buttons.contains("\"run\""), "{buttons}");
    assert!(
        !buttons.contains("roll back") && !buttons.contains("freeze"),
        "{buttons}"
    );
    let status = b.script(
        "const r = new XMLHttpRequest(); r.open('POST', '/api/v1/programs/app/actions/rollback', false); \
         r.setRequestHeader('Content-Type', 'application/json'); r.send('{}'); return r.status",
    );
    assert_eq!(status, 404);
    assert_eq!(current(), "one");
    // Without the cookie nothing is there.
    let bare = other.1.split("/?").next().unwrap().to_owned();
    let (mut curl, mut again) = (Command::new("curl"), Command::new("curl"));
    curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(format!("{bare}/api/v1/me"));
    assert_eq!(crate::harness::finish(curl).text(), "401");
    again
        .args(["-s", "-o", "/dev/null", "-w", "%{http_code}"])
        .arg(&other.1);
    assert_eq!(
        crate::harness::finish(again).text(),
        "401",
        "the address works once"
    );
}

/// Only what is to be seen of a log is on the page, however long it is.
#[test]
fn a_browser_shows_a_log_of_a_million_lines() {
    if !has_browser() {
        return;
    }
    let site = Site::new();
    site.configure("[prog-app]\ncmd-run = seq 1 1000000\n");
    let d = site.start();
    d.ask(OWNER, ["RUN", "app", "--detach"]).exits(0);
    d.ended(1);
    let pages = Pages::new(&d, OWNER);
    let b = Browser::new();
    b.go(&pages.1);
    b.script("location.hash = '#/runs/1'");
    b.sees("1000000 lines");
    b.awaits("its end", "return [...document.querySelectorAll('.log .line')].some(l => l.innerText.endsWith('1000000'))");
    let rows = b.script("return document.querySelectorAll('.log .line').length");
    assert!(rows.as_u64().unwrap() < 200, "{rows}");
    b.script("location.hash = '#/runs/1/L500000'");
    b.awaits(
        "the line",
        "return document.querySelector('.log .line.at')?.innerText.endsWith('500000')",
    );
    b.awaits(
        "it is to be seen",
        "const l = document.querySelector('.log .line.at').getBoundingClientRect(), p = document.querySelector('.log').getBoundingClientRect(); \
         return l.top >= p.top && l.bottom <= p.bottom",
    );
    b.script("const s = document.getElementById('search'); s.value = '777777'; s.dispatchEvent(new Event('input'))");
    b.sees("1 found");
    b.awaits(
        "what was searched",
        "return document.querySelector('.log .hit')?.innerText.endsWith('777777')",
    );
}
