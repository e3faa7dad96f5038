//! Names of users for the record, from a cache: a name service may be slow, and is asked on the
//! blocking pool.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::accounts::{self, Account};
use crate::ids::{Gid, Uid};
use crate::policy::Peer;
use crate::store::By;

/// How long a name is believed.
const FRESH_FOR: Duration = Duration::from_secs(60);

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Names(Mutex<HashMap<u32, (String, Instant)>>);

impl Names {
    /// The peer as it stands in the record. A uid without a name is its own name.
    pub async fn by(&self, peer: &Peer) -> By {
        let uid = peer.raw_uid;
        let gid = peer.gid.map_or(u32::MAX, Gid::get);
        let cached = {
            let names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            names
                .get(&uid)
                .filter(|(_, at)| at.elapsed() < FRESH_FOR)
                .map(|(name, _)| name.clone())
        };
        let user = match cached {
            Some(name) => name,
            None => {
                let looked_up = tokio::task::spawn_blocking(move || name_of(uid)).await;
                let name = looked_up.unwrap_or_else(|_| uid.to_string());
                let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                if names.len() > 4096 {
                    names.clear();
                }
                names.insert(uid, (name.clone(), Instant::now()));
                name
            }
        };
        By {
            uid,
            gid,
            user,
            pid: peer.pid,
        }
    }
}

fn name_of(uid: u32) -> String {
    let found = accounts::user_of(uid).ok().flatten();
    found.map_or_else(|| uid.to_string(), |account| account.name)
}

/// A user as a peer would be, with all the groups that a login gives. A bare number without an
/// entry has no groups. None: there is no such user.
///
/// # Errors
/// Why it could not be found out.
pub fn peer_of_user(user: &str) -> io::Result<Option<Peer>> {
    let Some(Account { name, uid, gid, .. }) = accounts::find(user)? else {
        let number = user.parse::<u32>().ok();
        return Ok(number.map(|raw_uid| Peer {
            uid: Uid::new(raw_uid).ok(),
            gid: None,
            groups: Vec::new(),
            pid: 0,
            raw_uid,
            scope: None,
        }));
    };
    let groups = accounts::groups_of(&name, gid)?;
    Ok(Some(Peer {
        uid: Uid::new(uid).ok(),
        gid: Gid::new(gid).ok(),
        groups: groups
            .into_iter()
            .filter_map(|g| Gid::new(g).ok())
            .collect(),
        pid: 0,
        raw_uid: uid,
        scope: None,
    }))
}
