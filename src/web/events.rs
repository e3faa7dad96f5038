//! Streams of events: one session with the daemon for each identity, however many streams it has.
//!
//! A hub keeps what came last, written once for all. Each stream has a position in it and no
//! queue: one that nobody reads costs nothing, and one that falls behind by more than is kept is
//! told to look at everything anew.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::{mpsc, watch};

use super::upstream::{Caller, Fault, Session};
use crate::protocol::gateway::Claim;
use crate::protocol::message::{Event, Reply, Request};
use crate::sys;

/// How many events a hub keeps.
const KEPT: usize = 1024;
/// How long events are gathered before all streams are told: a burst is one word.
const GATHER: Duration = Duration::from_millis(30);
/// How often a silent stream says that it is there.
const STILL_HERE: Duration = Duration::from_secs(15);

/// In the place of a count: the daemon has gone.
const OVER: u64 = u64::MAX;

/// Whose streams may share a session: those of whom the daemon would find the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Identity {
    ids: Option<(u32, u32, Vec<u32>)>,
    address: Option<IpAddr>,
    claim: Claim,
}

impl Identity {
    fn of(caller: &Caller) -> Self {
        let client = caller.client.as_fd();
        let ids = rustix::net::sockopt::socket_peercred(client)
            .ok()
            .map(|ids| {
                let groups = sys::socket::peer_groups(client).unwrap_or_default();
                (ids.uid.as_raw(), ids.gid.as_raw(), groups)
            });
        let address = rustix::net::getpeername(client).ok().flatten();
        let address = address.and_then(|a| SocketAddr::try_from(a).ok());
        Self {
            ids,
            address: address.map(|a| a.ip()),
            claim: caller.claim.clone(),
        }
    }
}

/// All hubs.
#[derive(Default)]
pub struct Hubs(Mutex<HashMap<Identity, Weak<Hub>>>);

/// What one identity is told.
struct Hub {
    kept: Mutex<Kept>,
    /// How many events there were.
    newest: watch::Sender<u64>,
}

#[derive(Default)]
struct Kept {
    /// The event's number, and what is sent.
    events: VecDeque<(u64, Bytes)>,
    /// All events after this one came here.
    since: Option<u64>,
}

impl Hub {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        // Nobody leaves it half changed.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, events: Vec<Event>) {
        let mut kept = self.kept();
        let count = *self.newest.borrow() + events.len() as u64;
        for event in events {
            if kept.events.len() == KEPT {
                kept.events.pop_front();
            }
            // After such a one nobody has missed anything.
            if event.program.is_none() {
                kept.since = Some(event.id);
            }
            let data = serde_json::to_string(&event).unwrap_or_default();
            let text = format!("id: {}\ndata: {data}\n\n", event.id);
            kept.events.push_back((event.id, text.into()));
        }
        self.newest.send_replace(count);
    }

    /// From which position on a stream has to be told that has seen this event last; none if
    /// nobody knows here.
    fn position_after(&self, seen: u64) -> Option<u64> {
        let kept = self.kept();
        let newest = *self.newest.borrow();
        let oldest = kept.events.front().map(|(id, _)| *id);
        let complete = kept.since.is_some_and(|since| since <= seen) && newest <= KEPT as u64
            || oldest.is_some_and(|oldest| oldest <= seen);
        let behind = kept.events.iter().filter(|(id, _)| *id > seen).count();
        complete.then(|| newest - behind as u64)
    }

    /// What came after a position, and the position by then; `None`: more than is kept.
    fn after(&self, position: u64) -> (u64, Option<Bytes>) {
        let kept = self.kept();
        let newest = *self.newest.borrow();
        let behind = usize::try_from(newest - position).unwrap_or(usize::MAX);
        if behind > kept.events.len() {
            return (newest, None);
        }
        let from = kept.events.len() - behind;
        let events: Vec<&Bytes> = kept.events.range(from..).map(|(_, text)| text).collect();
        let all = match events.as_slice() {
            [one] => (*one).clone(),
            several => several
                .iter()
                .flat_map(|text| text.iter().copied())
                .collect(),
        };
        (newest, Some(all))
    }
}

impl Hubs {
    /// A stream for a caller, who has seen this event last.
    ///
    /// # Errors
    /// The daemon's refusal.
    pub async fn stream(
        &self,
        caller: &Caller,
        seen: Option<u64>,
    ) -> Result<mpsc::Receiver<Bytes>, Fault> {
        let identity = Identity::of(caller);
        let (send, body) = mpsc::channel(1);
        let known = self.held().get(&identity).and_then(Weak::upgrade);
        let known = known.filter(|hub| *hub.newest.borrow() != OVER);
        let position = known.as_ref().and_then(|hub| match seen {
            None => Some(*hub.newest.borrow()),
            Some(seen) => hub.position_after(seen),
        });
        let (hub, position) = match known.zip(position) {
            Some(found) => found,
            None => {
                // A refusal is answered now; events themselves may be long in coming.
                caller.all(&Request::WhoAmI).await?;
                let session = caller.ask(&Request::Events { after: seen }).await?;
                let hub = Arc::new(Hub {
                    kept: Mutex::new(Kept {
                        since: seen,
                        ..Kept::default()
                    }),
                    newest: watch::Sender::new(0),
                });
                let mut hubs = self.held();
                hubs.retain(|_, hub| hub.strong_count() > 0);
                hubs.insert(identity, Arc::downgrade(&hub));
                tokio::spawn(fill(Arc::downgrade(&hub), hub.newest.subscribe(), session));
                (hub, 0)
            }
        };
        tokio::spawn(tell(hub, position, send));
        Ok(body)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Identity, Weak<Hub>>> {
        // Nobody leaves it half changed.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts what the daemon tells into a hub, until nobody has it any more or the daemon has gone.
async fn fill(hub: Weak<Hub>, gone: watch::Receiver<u64>, mut session: Session) {
    loop {
        let first = tokio::select! {
            told = session.receive() => told,
            // The hub's sender goes with the last stream.
            () = closed(gone.clone()) => return,
        };
        let mut events = Vec::new();
        let mut over = false;
        let until = tokio::time::sleep(GATHER);
        tokio::pin!(until);
        let mut told = Some(first);
        loop {
            match told.take() {
                Some(Ok(Reply::Event(event))) => events.push(event),
                Some(Ok(_)) | None => {}
                Some(Err(_)) => over = true,
            }
            if over || events.len() >= KEPT {
                break;
            }
            tokio::select! {
                next = session.receive() => told = Some(next),
                () = &mut until => break,
            }
        }
        let Some(hub) = hub.upgrade() else { return };
        hub.put(events);
        if over {
            // Streams end with their hub: who comes again gets a new one.
            hub.newest.send_replace(OVER);
            return;
        }
    }
}

async fn closed(mut newest: watch::Receiver<u64>) {
    while newest.changed().await.is_ok() {}
}

/// Tells one stream, until its reader has gone.
async fn tell(hub: Arc<Hub>, mut position: u64, send: mpsc::Sender<Bytes>) {
    let mut newest = hub.newest.subscribe();
    let mut text = Bytes::from_static(b"retry: 1000\n: deployer\n\n");
    loop {
        if send.send(text).await.is_err() {
            return;
        }
        let now = *newest.borrow_and_update();
        if now == position {
            tokio::select! {
                changed = newest.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(STILL_HERE) => {}
                () = send.closed() => return,
            }
        }
        text = match *newest.borrow_and_update() {
            OVER => return,
            now if now == position => Bytes::from_static(b": still here\n\n"),
            _ => {
                let (now, events) = hub.after(position);
                position = now;
                let anew = || {
                    let last = hub.kept().events.back().map_or(0, |(id, _)| *id);
                    let event = Event {
                        id: last,
                        ..Event::default()
                    };
                    let data = serde_json::to_string(&event).unwrap_or_default();
                    format!("id: {last}\ndata: {data}\n\n").into()
                };
                events.unwrap_or_else(anew)
            }
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub(since: Option<u64>) -> Hub {
        Hub {
            kept: Mutex::new(Kept {
                since,
                ..Kept::default()
            }),
            newest: watch::Sender::new(0),
        }
    }

    fn event(id: u64) -> Event {
        Event {
            id,
            program: Some("app".into()),
            ..Event::default()
        }
    }

    #[test]
    fn a_stream_goes_on_where_it_was_if_that_is_known() {
        let hub = hub(None);
        hub.put(vec![event(10), event(12)]);
        assert_eq!(hub.position_after(10), Some(1));
        assert_eq!(hub.position_after(11), Some(1));
        assert_eq!(hub.position_after(12), Some(2));
        assert_eq!(hub.position_after(9), None, "there may have been others");
        let (position, text) = hub.after(1);
        assert_eq!(position, 2);
        assert!(text.unwrap().starts_with(b"id: 12\n"));
    }

    #[test]
    fn a_hub_knows_since_when_it_knows_everything() {
        let hub = hub(Some(5));
        hub.put(vec![event(10)]);
        assert_eq!(hub.position_after(5), Some(0));
        assert_eq!(hub.position_after(4), None);
        for id in 11..(11 + KEPT as u64) {
            hub.put(vec![event(id)]);
        }
        assert_eq!(hub.position_after(5), None);
        assert_eq!(hub.after(0).1, None);
        assert!(hub.after(2).1.is_some());
    }
}
