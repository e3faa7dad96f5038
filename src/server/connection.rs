//! One client, from its first byte to its last answer.
//!
//! A client gets [`PATIENCE`] for a whole request and [`MAX_REQUEST`] bytes for it. After that it
//! may be as slow as it likes: nothing but this task waits for it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest, unix::AsyncFd};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info};

use super::{Desk, Input, LiveLog, Notice, stream};
use crate::log::{Chunk, Reader, Stream};
use crate::policy::Peer;
use crate::protocol::MAX_REQUEST;
use crate::protocol::frame::{self, HEADER, Kind, MAX_DATA};
use crate::protocol::message::{
    self, Aside, ErrorCode, OutputWay, Reply, Request, RunRequest, StdinWay,
};
use crate::protocol::plain::{Answer, FirstLine, first_line};
use crate::sys;
use crate::sys::terminal::{Size, Terminal};

/// How long a client may take for a whole request.
const PATIENCE: Duration = Duration::from_secs(5);

/// When a refusal is answered, counted from the request: a program that is unknown and one that
/// is forbidden look the same to a stop-watch, too.
const REFUSAL_AFTER: Duration = Duration::from_millis(10);

/// How long a client that reads a log itself is not told again that it has grown.
const QUIET: Duration = Duration::from_millis(2);
/// How much of what a run says of itself is passed on, in characters.
const STATUS: usize = 256;
/// How long a client is not told of a silent run.
const SILENCE: Duration = Duration::from_millis(2);

/// How long a client whose answer is complete may take to close its end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one connection. Whatever the client does ends this connection at most.
pub async fn serve(mut socket: UnixStream, peer: Peer, desk: impl Desk) {
    let mut bytes = Vec::new();
    let uid = peer.raw_uid;
    let opening = timeout(PATIENCE, opening(&mut socket, &mut bytes)).await;
    let result = match opening {
        Err(_) => refuse(&mut socket, "no whole request within 5 seconds").await,
        Ok(Err(Opening::Io(e))) => Err(e),
        Ok(Err(Opening::Bad(message))) => refuse(&mut socket, &message).await,
        Ok(Err(Opening::BadFrame(message))) => {
            let reply = Reply::Error {
                code: ErrorCode::BadRequest,
                message,
            };
            socket.write_all(&control(&reply)).await
        }
        Ok(Ok(Some(Asked::Plain(name)))) => plain(socket, peer, name, bytes, desk).await,
        Ok(Ok(Some(Asked::Framed(request)))) => framed(socket, peer, *request, bytes, desk).await,
        Ok(Ok(None)) => Ok(()),
    };
    if let Err(e) = result {
        debug!(uid, "connection ended: {e}");
    }
}

/// What the first bytes asked for.
enum Asked {
    Plain(String),
    Framed(Box<Request>),
}

enum Opening {
    Io(io::Error),
    Bad(String),
    BadFrame(String),
}

/// Reads up to the end of the first request; what the client sent behind it stays in `bytes`.
async fn opening(socket: &mut UnixStream, bytes: &mut Vec<u8>) -> Result<Option<Asked>, Opening> {
    let used = loop {
        match first_line(bytes) {
            Ok(Some((FirstLine::Run(name), used))) => {
                bytes.drain(..used);
                return Ok(Some(Asked::Plain(name)));
            }
            Ok(Some((FirstLine::Framed, used))) => break used,
            Ok(None) => {}
            Err(e) => return Err(Opening::Bad(e.to_string())),
        }
        if more(socket, bytes).await? == 0 {
            return Ok(None);
        }
    };
    bytes.drain(..used);
    loop {
        match frame::decode(bytes) {
            Ok(Some((Kind::Control, length))) => {
                let parsed = serde_json::from_slice(&bytes[HEADER..HEADER + length]);
                bytes.drain(..HEADER + length);
                return match parsed {
                    Ok(request) => Ok(Some(Asked::Framed(request))),
                    Err(e) => Err(Opening::BadFrame(format!("the request is malformed: {e}"))),
                };
            }
            Ok(Some(_)) => {
                return Err(Opening::BadFrame(
                    "the first frame has to be a request".into(),
                ));
            }
            Ok(None) => {}
            Err(e) => return Err(Opening::BadFrame(e.to_string())),
        }
        if more(socket, bytes).await? == 0 {
            return Ok(None);
        }
    }
}

async fn more(socket: &mut UnixStream, bytes: &mut Vec<u8>) -> Result<usize, Opening> {
    if bytes.capacity() - bytes.len() < 512 {
        bytes.reserve(bytes.len().max(1024));
    }
    socket.read_buf(bytes).await.map_err(Opening::Io)
}

async fn refuse(socket: &mut UnixStream, message: &str) -> io::Result<()> {
    socket.write_all(&Answer::Error(message).encode()).await?;
    socket.shutdown().await
}

/// Reads and throws away what the client still sends, until it closes or [`FAREWELL`] is over: a
/// socket closed over unread bytes would be reset under what the client has yet to read.
async fn farewell(mut from: OwnedReadHalf) {
    let mut sink = [0; 1024];
    let _ = timeout(FAREWELL, async {
        while matches!(from.read(&mut sink).await, Ok(n) if n > 0) {}
    })
    .await;
}

/// A plain client: one answer line, then raw bytes both ways.
async fn plain(
    socket: UnixStream,
    peer: Peer,
    name: String,
    early: Vec<u8>,
    desk: impl Desk,
) -> io::Result<()> {
    let asked_at = Instant::now();
    let (notices, mut told) = mpsc::unbounded_channel();
    let request = RunRequest {
        program: name,
        stdin: StdinWay::Frames,
        ..RunRequest::default()
    };
    desk.submit(peer, Request::Run(request), true, notices)
        .await;
    let (mut from, mut to) = socket.into_split();
    let mut answered = false;
    let mut early = Early {
        bytes: early,
        open: true,
    };
    let (log, stdin) = loop {
        let notice = tokio::select! {
            biased;
            notice = told.recv() => notice,
            gone = early.watch(&mut from) => if gone { return Ok(()) } else { continue },
        };
        match notice {
            Some(Notice::Started { log, stdin, .. }) => {
                if !answered {
                    to.write_all(&Answer::Ok.encode()).await?;
                }
                break (log, stdin);
            }
            Some(Notice::Reply(reply)) => match *reply {
                Reply::Accepted {
                    behind: Some(_), ..
                } => {
                    to.write_all(&Answer::OkWait.encode()).await?;
                    answered = true;
                }
                // Displaced: the newer request does for this one, too. Seed 000 closes here.
                Reply::Displaced => return Ok(()),
                _ => {}
            },
            // Of requests that a plain client cannot make.
            Some(Notice::Feed(_)) => {}
            Some(Notice::Final(reply)) => {
                let message = match *reply {
                    Reply::Error { message, code } => {
                        if code == ErrorCode::Refused {
                            sleep_until(asked_at + REFUSAL_AFTER).await;
                        }
                        message
                    }
                    Reply::Ended { run, .. } => run.detail.unwrap_or(run.outcome),
                    _ => String::new(),
                };
                let line = if answered {
                    format!("deployer: {message}\n").into_bytes()
                } else {
                    Answer::Error(&message).encode()
                };
                to.write_all(&line).await?;
                to.shutdown().await?;
                farewell(from).await;
                return Ok(());
            }
            None => return Ok(()),
        }
    };
    drop(told);
    let input = tokio::spawn(async move {
        let _ = feed_raw(&mut from, stdin, early.bytes).await;
        from
    });
    let output = raw_output(&mut to, &log).await;
    let shut = to.shutdown().await;
    // The run is over: whatever it did not read is of no use to anybody.
    if !input.is_finished() {
        input.abort();
    }
    if let Ok(from) = input.await {
        farewell(from).await;
    }
    output.and(shut)
}

/// What a plain client sends before its run has started.
struct Early {
    bytes: Vec<u8>,
    /// Whether there is room, and the client has not closed its end.
    open: bool,
}

impl Early {
    /// Takes in what comes; true when the client is gone. One that only closed its sending end
    /// is not: it still wants the output.
    async fn watch(&mut self, from: &mut OwnedReadHalf) -> bool {
        if !self.open {
            std::future::pending::<()>().await;
        }
        match from.read_buf(&mut self.bytes).await {
            Ok(0) => {
                self.open = false;
                let mut poll = [PollFd::new(from.as_ref(), PollFlags::empty())];
                let polled = rustix::event::poll(&mut poll, Some(&Timespec::default()));
                polled.is_err() || poll[0].revents().contains(PollFlags::HUP)
            }
            Ok(_) => {
                self.open = self.bytes.len() < MAX_REQUEST;
                false
            }
            Err(_) => true,
        }
    }
}

/// Copies the log to the client until the run's output is complete.
async fn raw_output(to: &mut OwnedWriteHalf, live: &LiveLog) -> io::Result<()> {
    let file = Arc::new(File::open(&live.log)?);
    let mut progress = live.progress.clone();
    let mut offset = 0;
    loop {
        let now = *progress.borrow_and_update();
        while offset < now.bytes {
            let length = (now.bytes - offset).min(MAX_DATA as u64) as usize;
            let chunk = stream::read_at(&file, offset, length).await?;
            if chunk.is_empty() {
                return Err(io::Error::other("the log is shorter than it was"));
            }
            to.write_all(&chunk).await?;
            offset += chunk.len() as u64;
        }
        if now.complete {
            if now.dropped > 0 {
                to.write_all(dropped_text(now.dropped).as_bytes()).await?;
            }
            return Ok(());
        }
        if progress.changed().await.is_err() {
            return Ok(());
        }
    }
}

/// What a reader is told where output was not kept.
fn dropped_text(bytes: u64) -> String {
    format!("\ndeployer: {bytes} bytes of output were not kept: the log, or its disk, was full\n")
}

/// Copies what the client sends to the run's standard input, its end included.
async fn feed_raw(
    from: &mut OwnedReadHalf,
    stdin: Option<Input>,
    early: Vec<u8>,
) -> io::Result<()> {
    let mut feed = stdin.map(Feed::new).transpose()?;
    if let Some(f) = &feed
        && f.write(&early).await.is_err()
    {
        feed = None;
    }
    drop(early);
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let n = from.read(&mut buffer).await?;
        if n == 0 {
            if let Some(feed) = feed {
                feed.end();
            }
            return Ok(());
        }
        if let Some(f) = &feed
            && f.write(&buffer[..n]).await.is_err()
        {
            feed = None; // The run does not read any more: that is its right.
        }
    }
}

/// The way to a run's standard input.
struct Feed {
    fd: AsyncFd<OwnedFd>,
    terminal: Option<Arc<Terminal>>,
    joined: bool,
}

impl Feed {
    fn new(input: Input) -> io::Result<Self> {
        let (fd, terminal, joined) = match input {
            Input::Pipe(fd) => {
                rustix::io::ioctl_fionbio(&fd, true)?;
                (fd, None, false)
            }
            Input::Terminal { terminal, joined } => (terminal.try_clone()?, Some(terminal), joined),
        };
        let fd = crate::sys::fd::watch(fd, Interest::WRITABLE)?;
        Ok(Self {
            fd,
            terminal,
            joined,
        })
    }

    async fn write(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.write_some(bytes).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Writes what is taken now; waits while nothing is.
    async fn write_some(&self, bytes: &[u8]) -> io::Result<usize> {
        self.fd
            .async_io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?))
            .await
    }

    /// Nothing more will come.
    fn end(self) {
        if let Some(terminal) = self.terminal.filter(|_| !self.joined) {
            terminal.end_input();
        }
    }
}

fn control(reply: &Reply) -> Vec<u8> {
    // A reply is plain data: strings, numbers and maps with string keys always serialise.
    let json = serde_json::to_vec(reply).unwrap_or_default();
    frame::encode(Kind::Control, &json)
}

/// What a framed client wants with the log.
#[derive(Clone, Copy)]
struct Wish {
    output: OutputWay,
    stdin: StdinWay,
    offset: u64,
    /// It is there for a run: a log in which nothing stands is of no use to it.
    runs: bool,
}

/// The size of a client's terminal, if it has one.
fn size_of(terminal: &message::Terminal) -> Option<Size> {
    let (rows, cols) = (terminal.rows, terminal.cols);
    (rows > 0 && cols > 0).then_some(Size { rows, cols })
}

/// A framed client: one request, then messages and data until the last message.
async fn framed(
    socket: UnixStream,
    peer: Peer,
    request: Request,
    mut early: Vec<u8>,
    desk: impl Desk,
) -> io::Result<()> {
    let asked_at = Instant::now();
    let nothing = Wish {
        output: OutputWay::None,
        stdin: StdinWay::None,
        offset: 0,
        runs: false,
    };
    let (wish, terminal) = match &request {
        Request::Run(r) => {
            let (output, stdin) = (r.output, r.stdin);
            let wish = Wish {
                output,
                stdin,
                runs: true,
                ..nothing
            };
            (wish, &r.terminal)
        }
        Request::Logs(l) => {
            let (output, offset) = (l.output, l.offset);
            let wish = Wish {
                output,
                offset,
                ..nothing
            };
            (wish, &l.terminal)
        }
        _ => (nothing, &None),
    };
    let size = terminal.as_ref().and_then(size_of);
    let (notices, mut told) = mpsc::unbounded_channel();
    desk.submit(peer, request, false, notices).await;
    early.shrink_to_fit();
    let (from, mut to) = socket.into_split();
    let mut incoming = Incoming {
        from,
        bytes: early,
        feed: None,
        size,
    };
    let mut view: Option<View> = None;
    let mut last: Option<Box<Reply>> = None;
    let mut next: Option<Notice> = None;
    loop {
        if let Some(v) = &mut view {
            v.send(&mut to).await?;
            if v.complete() {
                view = None;
            }
        }
        if view.is_none()
            && let Some(reply) = last.take()
        {
            if matches!(
                *reply,
                Reply::Error {
                    code: ErrorCode::Refused,
                    ..
                }
            ) {
                sleep_until(asked_at + REFUSAL_AFTER).await;
            }
            to.write_all(&control(&reply)).await?;
            break;
        }
        tokio::select! {
            biased;
            notice = following(&mut next, &mut told), if last.is_none() => match notice {
                Some(Notice::Reply(reply)) => to.write_all(&control(&reply)).await?,
                Some(Notice::Final(reply)) => last = Some(reply),
                Some(Notice::Feed(feed)) => return hand_on(feed, &mut to, &mut incoming).await,
                Some(Notice::Started { run, request, log, stdin }) => {
                    let mut wish = wish;
                    if let Some(Input::Terminal { joined: true, .. }) = stdin && wish.offset == 0 {
                        wish.offset = log.progress.borrow().bytes;
                    }
                    let way = match stdin {
                        Some(Input::Pipe(fd)) if wish.stdin == StdinWay::Fd => Some(fd),
                        input => {
                            incoming.attach(input)?;
                            None
                        }
                    };
                    let request = (request != run).then_some(request.0);
                    if way.is_none() && wish.output == OutputWay::Fd {
                        next = silence(&log, &mut told).await;
                    }
                    let start = Start { id: run.0, request, stdin: way, terminal: incoming.at_terminal() };
                    if let Some(Notice::Final(reply)) = &next && wish.runs && log.progress.borrow().bytes == 0 {
                        // All that there is to say about it, in one piece: it wakes its client once.
                        let whole = [start.message(Vec::new(), 0), control(reply)].concat();
                        to.write_all(&whole).await?;
                        break;
                    }
                    view = start_view(&mut to, start, wish, &log).await?;
                }
                None => {
                    info!("the daemon dropped a request without an answer");
                    let reply = Reply::Error { code: ErrorCode::Failed, message: "the request was lost; ask again".into() };
                    to.write_all(&control(&reply)).await?;
                    break;
                }
            },
            () = View::changed(&mut view) => {}
            result = incoming.step() => if !result? { return Ok(()) },
        }
    }
    if wish.stdin != StdinWay::Frames && incoming.is_silent() {
        to.forget();
        return Ok(());
    }
    to.shutdown().await?;
    farewell(incoming.from).await;
    Ok(())
}

/// Hands on what comes until the client leaves.
async fn hand_on(
    mut feed: mpsc::Receiver<Reply>,
    to: &mut OwnedWriteHalf,
    incoming: &mut Incoming,
) -> io::Result<()> {
    loop {
        tokio::select! {
            reply = feed.recv() => match reply {
                Some(reply) => to.write_all(&control(&reply)).await?,
                None => return Ok(()),
            },
            result = incoming.step() => if !result? { return Ok(()) },
        }
    }
}

/// What a client is told next.
async fn following(
    next: &mut Option<Notice>,
    told: &mut mpsc::UnboundedReceiver<Notice>,
) -> Option<Notice> {
    match next.take() {
        Some(notice) => Some(notice),
        None => told.recv().await,
    }
}

/// Waits a moment for the first output of a run, or its end: a client that need not wake up twice
/// does not stand in the way of what it waits for.
async fn silence(log: &LiveLog, told: &mut mpsc::UnboundedReceiver<Notice>) -> Option<Notice> {
    let mut progress = log.progress.clone();
    let output = async {
        while progress.borrow_and_update().bytes == 0 {
            if progress.changed().await.is_err() {
                // It said nothing at all, and its end will be told.
                std::future::pending::<()>().await;
            }
        }
    };
    tokio::select! {
        notice = told.recv() => notice,
        () = output => None,
        () = tokio::time::sleep(SILENCE) => None,
    }
}

/// A run that has started, for a client.
struct Start {
    id: u64,
    request: Option<u64>,
    stdin: Option<OwnedFd>,
    terminal: bool,
}

impl Start {
    /// The message, with the names of the descriptors that come with it.
    fn message(&self, fds: Vec<String>, offset: u64) -> Vec<u8> {
        control(&Reply::Started {
            id: self.id,
            request: self.request,
            fds,
            terminal: self.terminal,
            offset,
        })
    }
}

/// Tells the client that its run has started, with the fds it wished for.
async fn start_view(
    to: &mut OwnedWriteHalf,
    mut start: Start,
    wish: Wish,
    live: &Arc<LiveLog>,
) -> io::Result<Option<View>> {
    let mut names = Vec::new();
    let mut fds: Vec<OwnedFd> = Vec::new();
    let mut view = None;
    match wish.output {
        OutputWay::None => {}
        OutputWay::Fd => {
            // Opened anew for each client: what one does to its descriptor is nobody else's concern.
            fds.push(File::open(&live.log)?.into());
            fds.push(File::open(&live.index)?.into());
            names.extend(["log".to_owned(), "index".to_owned()]);
            view = Some(View {
                live: Arc::clone(live),
                progress: live.progress.clone(),
                status: live.status.subscribe(),
                told: String::new(),
                sent: 0,
                source: None,
                quiet_until: Instant::now(),
                failed: false,
            });
        }
        OutputWay::Frames => {
            let mut reader = Reader::new(File::open(&live.log)?, Some(File::open(&live.index)?));
            reader.seek(wish.offset);
            view = Some(View {
                live: Arc::clone(live),
                progress: live.progress.clone(),
                status: live.status.subscribe(),
                told: String::new(),
                sent: wish.offset,
                source: Some(Box::new(Source { reader, rest: None })),
                quiet_until: Instant::now(),
                failed: false,
            });
        }
    }
    if let Some(fd) = start.stdin.take() {
        names.push("stdin".to_owned());
        fds.push(fd);
    }
    let message = start.message(names, wish.offset);
    send_with_fds(to, &message, &fds).await?;
    Ok(view)
}

/// Writes a message whose first byte carries `fds`.
async fn send_with_fds(to: &mut OwnedWriteHalf, bytes: &[u8], fds: &[OwnedFd]) -> io::Result<()> {
    if fds.is_empty() {
        return to.write_all(bytes).await;
    }
    let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let send = || sys::socket::send_with_fds(to.as_ref(), bytes, &borrowed);
    let sent = to.as_ref().async_io(Interest::WRITABLE, send).await?;
    to.write_all(&bytes[sent..]).await
}

/// A log on its way to a client: as data frames, or as word of how long it has become.
struct View {
    live: Arc<LiveLog>,
    progress: tokio::sync::watch::Receiver<super::Progress>,
    status: tokio::sync::watch::Receiver<String>,
    /// What the client was told last of what the run says of itself.
    told: String,
    /// How far the client has been served.
    sent: u64,
    source: Option<Box<Source>>,
    /// When it may be spoken of again.
    quiet_until: Instant,
    failed: bool,
}

impl View {
    /// Waits until there is something to send.
    async fn changed(view: &mut Option<View>) {
        match view {
            Some(v) => {
                // One word for much is better than much talk.
                sleep_until(v.quiet_until).await;
                tokio::select! {
                    changed = v.progress.changed() => v.failed |= changed.is_err(),
                    // Its sender lives as long as the log.
                    _ = v.status.changed() => {}
                }
            }
            None => std::future::pending().await,
        }
    }

    fn complete(&self) -> bool {
        let now = *self.progress.borrow();
        self.failed || (now.complete && self.sent >= now.bytes)
    }

    async fn send(&mut self, to: &mut OwnedWriteHalf) -> io::Result<()> {
        let now = *self.progress.borrow_and_update();
        let text: String = self
            .status
            .borrow_and_update()
            .chars()
            .take(STATUS)
            .collect();
        if text != self.told {
            self.told.clone_from(&text);
            to.write_all(&control(&Reply::Status { text })).await?;
            self.quiet_until = Instant::now() + QUIET;
        }
        let Some(mut source) = self.source.take() else {
            if self.sent != now.bytes {
                to.write_all(&control(&Reply::Grew { bytes: now.bytes }))
                    .await?;
                self.sent = now.bytes;
                self.quiet_until = Instant::now() + QUIET;
            }
            return Ok(());
        };
        while source.position() < now.bytes {
            // The index has to be read along, which may wait for the disk.
            let (back, chunk) = tokio::task::spawn_blocking(move || {
                let chunk = source.next();
                (source, chunk)
            })
            .await
            .map_err(io::Error::other)?;
            source = back;
            let Some((kind, bytes)) = chunk? else { break };
            to.write_all(&frame::encode(kind, &bytes)).await?;
        }
        if now.complete && source.position() < now.bytes {
            self.failed = true;
            debug!("{} is shorter than it was", self.live.log.display());
        }
        self.sent = source.position();
        self.source = Some(source);
        Ok(())
    }
}

/// A log, a frame at a time.
struct Source {
    reader: Reader,
    /// What is left of the last chunk.
    rest: Option<Chunk>,
}

impl Source {
    fn position(&self) -> u64 {
        self.rest
            .map_or(self.reader.position(), |chunk| chunk.offset)
    }

    /// The next bytes; none if there are no more for now.
    fn next(&mut self) -> io::Result<Option<(Kind, Vec<u8>)>> {
        let failed = |e: crate::log::LogError| io::Error::other(format!("{e}: {}", e.source));
        let chunk = match self.rest.take() {
            Some(chunk) => chunk,
            None => match self.reader.next_chunk().map_err(failed)? {
                Some(chunk) => chunk,
                None => return Ok(None),
            },
        };
        let mut bytes = vec![0; usize::try_from(chunk.len).unwrap_or(MAX_DATA).min(MAX_DATA)];
        let read = self
            .reader
            .read_at(&mut bytes, chunk.offset)
            .map_err(failed)?;
        bytes.truncate(read);
        let (offset, len) = (chunk.offset + read as u64, chunk.len - read as u64);
        self.rest = (read > 0 && len > 0).then_some(Chunk {
            offset,
            len,
            ..chunk
        });
        let kind = match chunk.stream {
            Stream::Stdout => Kind::Stdout,
            Stream::Stderr => Kind::Stderr,
        };
        Ok((read > 0).then_some((kind, bytes)))
    }
}

/// What a framed client sends after its request.
struct Incoming {
    from: OwnedReadHalf,
    bytes: Vec<u8>,
    feed: Option<Feed>,
    /// How large the client's terminal is, if it has one.
    size: Option<Size>,
}

impl Incoming {
    fn attach(&mut self, input: Option<Input>) -> io::Result<()> {
        self.feed = input.map(Feed::new).transpose()?;
        if let Some(size) = self.size {
            if self.feed.as_ref().is_some_and(|f| f.joined) {
                // Another size for a moment: what draws on a terminal draws all of it again.
                let rows = size.rows.saturating_sub(1);
                self.resize(Size { rows, ..size });
            }
            self.resize(size);
        }
        Ok(())
    }

    /// Whether the client has nothing to say, and nothing under way: then its end can be closed
    /// without a farewell.
    fn is_silent(&self) -> bool {
        let unread = || self.from.try_read(&mut [0]);
        self.feed.is_none()
            && self.size.is_none()
            && self.bytes.is_empty()
            && matches!(unread(), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    fn at_terminal(&self) -> bool {
        self.feed.as_ref().is_some_and(|f| f.terminal.is_some())
    }

    fn resize(&mut self, size: Size) {
        self.size = Some(size);
        if let Some(terminal) = self.feed.as_ref().and_then(|f| f.terminal.as_ref())
            && let Err(e) = terminal.resize(size)
        {
            debug!("a terminal cannot be resized: {e}");
        }
    }

    /// Takes in one piece; false when the client has left, an error when it talks nonsense.
    ///
    /// Safe to be dropped at any await: bytes are consumed only once they were dealt with.
    async fn step(&mut self) -> io::Result<bool> {
        match frame::decode(&self.bytes).map_err(io::Error::other)? {
            Some((Kind::Stdin, 0)) => {
                self.bytes.drain(..HEADER);
                if let Some(feed) = self.feed.take() {
                    feed.end();
                }
                Ok(true)
            }
            Some((Kind::Control, length)) => {
                let aside = serde_json::from_slice(&self.bytes[HEADER..HEADER + length])?;
                self.bytes.drain(..HEADER + length);
                let Aside::Resize { rows, cols } = aside;
                self.resize(Size { rows, cols });
                Ok(true)
            }
            Some((Kind::Stdin, length)) => {
                match &self.feed {
                    Some(feed) => {
                        // Bytes leave the buffer as they are taken: the header shrinks with them.
                        let n = feed.write_some(&self.bytes[HEADER..HEADER + length]).await;
                        let n = n.unwrap_or(length);
                        self.bytes.drain(..HEADER + n);
                        if n < length {
                            let rest = frame::header(Kind::Stdin, length - n);
                            self.bytes.splice(..0, rest);
                        }
                    }
                    None => drop(self.bytes.drain(..HEADER + length)),
                }
                Ok(true)
            }
            Some(_) => Err(io::Error::other("a frame that is out of place")),
            None => {
                if self.bytes.capacity() - self.bytes.len() < 64 {
                    self.bytes.reserve(self.bytes.len().max(64));
                }
                Ok(self.from.read_buf(&mut self.bytes).await? > 0)
            }
        }
    }
}
