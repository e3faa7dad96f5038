//! Names of users for the record, from a cache: a name service may be slow, and is asked on the
//! blocking pool.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::unistd::{Gid as NixGid, Uid as NixUid, User, getgrouplist};

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
    users::get_user_by_uid(uid)
        .and_then(|u| u.name().to_str().map(str::to_owned))
        .unwrap_or_else(|| uid.to_string())
}

/// A user as a peer would be, with all the groups that a login gives. A bare number without an
/// entry has no groups.
#[must_use]
pub fn peer_of_user(user: &str) -> Option<Peer> {
    let number = user.parse::<u32>().ok();
    let found = User::from_name(user).ok().flatten();
    let found = found.or_else(|| User::from_uid(NixUid::from_raw(number?)).ok().flatten());
    let Some(found) = found else {
        let raw_uid = number?;
        return Some(Peer {
            uid: Uid::new(raw_uid).ok(),
            gid: None,
            groups: Vec::new(),
            pid: 0,
            raw_uid,
            scope: None,
        });
    };
    let name = std::ffi::CString::new(found.name).ok()?;
    let groups: Vec<NixGid> = getgrouplist(&name, found.gid).unwrap_or_default();
    Some(Peer {
        uid: Uid::new(found.uid.as_raw()).ok(),
        gid: Gid::new(found.gid.as_raw()).ok(),
        groups: groups
            .into_iter()
            .filter_map(|g| Gid::new(g.as_raw()).ok())
            .collect(),
        pid: 0,
        raw_uid: found.uid.as_raw(),
        scope: None,
    })
}
