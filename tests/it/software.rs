//! Real servers under supervision: nginx, Redis, PostgreSQL, and a Python server with sd_notify.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use std::{fs, thread};

use crate::harness::{BOT_GID, BOT_UID, OWNER, Site, free_port, wait_for};

/// The program of one of these places; the test fails without it, since `tests/run` installs it.
fn program(places: &[&str]) -> String {
    let found = places.iter().find(|p| Path::new(p).exists());
    (*found.unwrap_or_else(|| panic!("none of {places:?} is there: tests/run installs it")))
        .to_owned()
}

/// A directory of the programs' user.
fn private(site: &Site, name: &str) -> String {
    let path = site.path("shared").join(name);
    fs::create_dir(&path).unwrap();
    std::os::unix::fs::chown(&path, Some(BOT_UID), Some(BOT_GID)).unwrap();
    crate::harness::chmod(&path, 0o700);
    path.to_string_lossy().into_owned()
}

/// What a server says to a text.
fn talk(port: u16, text: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(text.as_bytes())?;
    let mut answer = String::new();
    if text.starts_with("GET") {
        stream.read_to_string(&mut answer)?;
    } else {
        let mut bytes = [0; 256];
        let n = stream.read(&mut bytes)?;
        answer = String::from_utf8_lossy(&bytes[..n]).into_owned();
    }
    Ok(answer)
}

fn get(port: u16) -> bool {
    talk(port, "GET / HTTP/1.0\r\n\r\n").is_ok_and(|a| a.contains(" 200 ") && a.ends_with("page\n"))
}

#[test]
fn nginx_is_reloaded_under_load_without_a_failed_request() {
    root_only!(nginx_is_reloaded_under_load_without_a_failed_request);
    let nginx = program(&["/usr/sbin/nginx"]);
    let site = Site::new();
    let (dir, port) = (private(&site, "nginx"), free_port());
    fs::write(format!("{dir}/index.html"), "page\n").unwrap();
    let config = format!(
        "daemon off; pid {dir}/pid; error_log stderr warn; worker_processes 2;\n\
         events {{ worker_connections 256; }}\n\
         http {{ access_log off; client_body_temp_path {dir}/b; proxy_temp_path {dir}/p;\n\
         fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;\n\
         server {{ listen 127.0.0.1:{port}; root {dir}; }} }}\n"
    );
    fs::write(format!("{dir}/nginx.conf"), config).unwrap();
    for name in ["index.html", "nginx.conf"] {
        let file = format!("{dir}/{name}");
        std::os::unix::fs::chown(file, Some(BOT_UID), Some(BOT_GID)).unwrap();
    }
    site.configure(&format!(
        "[prog-nginx]\ncmd-start = exec {nginx} -e stderr -p {dir} -c {dir}/nginx.conf\n\
         ready = tcp:{port}\nstop-signal = QUIT\n\
         cmd-reload = {nginx} -e stderr -t -q -p {dir} -c {dir}/nginx.conf && kill -HUP $PID\n"
    ));
    let d = site.start();
    d.ask(OWNER, ["nginx", "start"]).exits(0);
    assert!(get(port));
    let (asked, failed, over) = (
        AtomicUsize::new(0),
        AtomicUsize::new(0),
        AtomicBool::new(false),
    );
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) || asked.load(Ordering::Relaxed) < 10_000 {
                    asked.fetch_add(1, Ordering::Relaxed);
                    if !get(port) {
                        failed.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for turn in 1..=20 {
            let before = asked.load(Ordering::Relaxed);
            wait_for("requests between the reloads", || {
                (asked.load(Ordering::Relaxed) > before + 200).then_some(())
            });
            d.ask(OWNER, ["nginx", "reload"]).exits(0);
            assert!(turn > 0);
        }
        over.store(true, Ordering::Relaxed);
    });
    assert!(asked.load(Ordering::Relaxed) >= 10_000);
    assert_eq!(failed.load(Ordering::Relaxed), 0);
    // A configuration with an error is not loaded, and says so.
    fs::write(format!("{dir}/nginx.conf"), "nonsense;").unwrap();
    let reload = d.ask(OWNER, ["nginx", "reload"]);
    assert!(
        reload.code() != Some(0) && reload.errors().contains("nonsense"),
        "{reload:?}"
    );
    assert!(get(port));
    // QUIT is not an error for it.
    d.ask(OWNER, ["nginx", "stop"]).exits(0);
    assert!(!get(port) && d.others().is_empty(), "{:?}", d.others());
}

#[test]
fn servers_come_up_in_order_are_started_again_and_stopped() {
    root_only!(servers_come_up_in_order_are_started_again_and_stopped);
    let redis = program(&["/usr/bin/redis-server"]);
    let python = program(&["/usr/bin/python3", "/usr/local/bin/python3"]);
    let postgres = {
        let mut versions: Vec<_> = fs::read_dir("/usr/lib/postgresql")
            .expect("PostgreSQL is there: tests/run installs it")
            .map(|e| e.unwrap().path().join("bin"))
            .collect();
        versions.sort();
        versions.pop().unwrap().to_string_lossy().into_owned()
    };
    let site = Site::new();
    let (redis_dir, data, sockets) = (
        private(&site, "redis"),
        private(&site, "data"),
        private(&site, "pg"),
    );
    let (redis_port, web_port) = (free_port(), free_port());
    // Answers with what the two others say.
    fs::write(
        site.path("server.py"),
        "import http.server, os, socket, sys\n\
         class Handler(http.server.BaseHTTPRequestHandler):\n\
         \x20   def do_GET(self):\n\
         \x20       r = socket.create_connection(('127.0.0.1', int(sys.argv[2]))); r.sendall(b'PING\\r\\n')\n\
         \x20       self.send_response(200); self.end_headers(); self.wfile.write(r.recv(16) + b'page\\n')\n\
         \x20   def log_message(self, *args): pass\n\
         server = http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), Handler)\n\
         s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\n\
         s.connect('\\0' + os.environ['NOTIFY_SOCKET'][1:]); s.sendall(b'READY=1')\n\
         server.serve_forever()\n",
    )
    .unwrap();
    crate::harness::chmod(&site.path("server.py"), 0o644);
    site.configure(&format!(
        "restart = always\nrestart-backoff = 0.1s..1s\nautostart = yes\n\
         [prog-a-web]\nafter = z-redis y-postgres\nready = notify\n\
         cmd-start = exec {python} @D@/server.py {web_port} {redis_port}\n\
         [prog-y-postgres]\nstop-signal = INT\nready = cmd:{postgres}/pg_isready -q -h {sockets} -p 5432\n\
         cmd-start = test -e {data}/PG_VERSION || {postgres}/initdb -D {data} -A trust >/dev/null || exit 1; \
         exec {postgres}/postgres -D {data} -k {sockets} -h ''\n\
         cmd-query = exec {postgres}/psql -h {sockets} -d postgres -Atc 'select 6 * 7'\n\
         cmd-reload = kill -HUP $PID\n\
         [prog-z-redis]\nready = tcp:{redis_port}\n\
         cmd-start = exec {redis} --bind 127.0.0.1 --port {redis_port} --dir {redis_dir} --save '' --appendonly no\n"
    ));
    let d = site.start();
    let up = || get(web_port);
    wait_for("the last of them is up", || up().then_some(()));
    let order: Vec<String> = d
        .log()
        .lines()
        .filter_map(|l| {
            l.split(" started for ")
                .next()?
                .split(" of ")
                .nth(1)
                .map(str::to_owned)
        })
        .filter(|name| name.contains('-') && !name.contains("ready"))
        .collect();
    assert_eq!(order.last().map(String::as_str), Some("a-web"), "{order:?}");
    assert_eq!(
        d.ask(OWNER, ["y-postgres", "query"]).exits(0).text(),
        "42\n"
    );
    // Killed, each is there again, and the others have not noticed.
    for name in ["z-redis", "y-postgres", "a-web"] {
        d.ask(OWNER, [name, "kill", "KILL"]).exits(0);
        wait_for(&format!("{name} is up again"), || {
            let list = d.ask(OWNER, ["LIST", "--json"]).exits(0).text();
            let line = list
                .lines()
                .find(|l| l.contains(&format!("\"name\":\"{name}\"")))
                .unwrap();
            (line.contains("\"status\":\"running\"") && line.contains("\"restarts\":1"))
                .then_some(())
        });
    }
    assert!(talk(redis_port, "PING\r\n").unwrap().starts_with("+PONG"));
    assert!(up());
    assert_eq!(
        d.ask(OWNER, ["y-postgres", "query"]).exits(0).text(),
        "42\n"
    );
    d.ask(OWNER, ["y-postgres", "reload"]).exits(0);
    d.ask(OWNER, ["a-web", "restart"]).exits(0);
    assert!(up());
    // PostgreSQL ends well when it is asked to.
    d.ask(OWNER, ["y-postgres", "stop"]).exits(0);
    d.ask(OWNER, ["y-postgres", "query"]).exits(2);
    assert!(d.stop().success());
    d.await_strays();
}
