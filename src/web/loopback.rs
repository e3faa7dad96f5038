//! `deployer UI`: the same pages and the same API on loopback, for the one who typed it.
//!
//! It runs as that user, so the daemon knows them as always. What keeps the machine's other users
//! out is a secret: the address that is printed works once, and the browser that used it gets a
//! cookie.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Mutex;

use hyper::header::{self, HeaderMap, HeaderValue};
use hyper::{StatusCode, Uri};
use tokio::net::TcpListener;

use super::answer::{self, Answer, Body, Problem};
use super::gateway::House;

/// The name of the cookie.
const COOKIE: &str = "deployer";

/// Who may come in.
pub struct Door {
    /// What the printed address holds; none when it has been used.
    ticket: Mutex<Option<String>>,
    /// What the browser holds since then.
    secret: String,
}

impl Door {
    fn new() -> io::Result<Self> {
        Ok(Self {
            ticket: Mutex::new(Some(secret()?)),
            secret: secret()?,
        })
    }

    /// Lets a request in that has the cookie, and gives it to the one that has the ticket.
    ///
    /// # Errors
    /// Neither.
    pub fn enter(&self, uri: &Uri, headers: &HeaderMap) -> Result<Option<Answer>, Problem> {
        let cookies = headers.get_all(header::COOKIE).iter();
        let mut cookies = cookies
            .filter_map(|c| c.to_str().ok())
            .flat_map(|c| c.split(';'));
        let known = |cookie: &str| {
            let (name, value) = cookie.trim().split_once('=').unwrap_or_default();
            name == COOKIE && same(value, &self.secret)
        };
        if cookies.any(known) {
            return Ok(None);
        }
        let shown = uri.query().and_then(|q| q.strip_prefix("ticket="));
        let mut ticket = self
            .ticket
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let (Some(shown), Some(right)) = (shown, &*ticket)
            && same(shown, right)
        {
            *ticket = None;
            let mut answer = answer::answer(StatusCode::SEE_OTHER, "text/plain", Body::Whole(None));
            let cookie = format!(
                "{COOKIE}={}; Path=/; HttpOnly; SameSite=Strict",
                self.secret
            );
            if let Ok(cookie) = HeaderValue::from_str(&cookie) {
                answer.headers_mut().insert(header::SET_COOKIE, cookie);
            }
            let home = HeaderValue::from_static("/");
            answer.headers_mut().insert(header::LOCATION, home);
            return Ok(Some(answer));
        }
        let detail = "the address that `deployer UI` prints works once, in one browser; call it again for another";
        Err(Problem::new(StatusCode::UNAUTHORIZED, "refused", detail))
    }
}

/// 128 bits that nobody guesses.
fn secret() -> io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

/// Compares without telling by the time it takes how much was right.
fn same(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |or, (a, b)| or | (a ^ b)) == 0
}

/// Serves the daemon at `socket` on loopback until the process is ended. `said` hears the address.
///
/// # Errors
/// There is no port.
pub fn serve(socket: &Path, said: impl FnOnce(&str)) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .build()?;
    runtime.block_on(async {
        // Cookies know no ports: at an address of its own no other server is sent this one's.
        let mut own = [0; 3];
        rustix::rand::getrandom(&mut own, rustix::rand::GetRandomFlags::empty())?;
        let own = Ipv4Addr::new(127, own[0], own[1], own[2].clamp(2, 254));
        let listener = TcpListener::bind(SocketAddr::from((own, 0))).await?;
        let door = Door::new()?;
        let ticket = door.ticket.lock().map(|t| t.clone().unwrap_or_default());
        let address = listener.local_addr()?;
        said(&format!(
            "http://{address}/?ticket={}",
            ticket.unwrap_or_default()
        ));
        House::private(socket, door, own).serve_tcp(listener).await;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_printed_address_works_once() {
        let door = Door::new().unwrap();
        let ticket = door.ticket.lock().unwrap().clone().unwrap();
        let uri = |query: &str| format!("/?{query}").parse::<Uri>().unwrap();
        let none = HeaderMap::new();
        assert!(door.enter(&uri(""), &none).is_err());
        assert!(door.enter(&uri("ticket="), &none).is_err());
        let let_in = door
            .enter(&uri(&format!("ticket={ticket}")), &none)
            .unwrap()
            .unwrap();
        assert!(
            door.enter(&uri(&format!("ticket={ticket}")), &none)
                .is_err()
        );
        let cookie = let_in.headers()[header::SET_COOKIE].to_str().unwrap();
        let mut with = HeaderMap::new();
        let pair = cookie.split(';').next().unwrap();
        with.insert(header::COOKIE, format!("a=b; {pair}").parse().unwrap());
        assert!(door.enter(&uri(""), &with).unwrap().is_none());
        with.insert(header::COOKIE, "deployer=".parse().unwrap());
        assert!(door.enter(&uri(""), &with).is_err());
    }
}
