//! Where hosts are: asks the name services of the system, by [`getent`].

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, Error};

use crate::getent;

/// How long a name may take where the request has no limit of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// What speaks HTTP, so.
pub fn agent(config: Config) -> Agent {
    Agent::with_parts(config, DefaultConnector::default(), Services)
}

#[derive(Debug)]
struct Services;

impl Resolver for Services {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let host = uri.host().ok_or(Error::HostNotFound)?;
        let default = match uri.scheme_str() {
            Some("https") => 443,
            _ => 80,
        };
        let port = uri.port_u16().unwrap_or(default);
        let addresses = match addresses(host, PATIENCE.min(*timeout.after)) {
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                return Err(Error::Timeout(timeout.reason));
            }
            found => found?,
        };
        let addresses = addresses.into_iter().map(|ip| SocketAddr::new(ip, port));
        let mut found = self.empty();
        for address in config.ip_family().keep_wanted(addresses) {
            if found.try_push(address).is_err() {
                break;
            }
        }
        if found.is_empty() {
            return Err(Error::HostNotFound);
        }
        Ok(found)
    }
}

/// The addresses of a host, in the order in which they should be tried.
fn addresses(host: &str, patience: Duration) -> io::Result<Vec<IpAddr>> {
    let number = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    if let Ok(ip) = number.unwrap_or(host).parse() {
        return Ok(vec![ip]);
    }
    let answer = getent::ask("ahosts", host, patience)?.unwrap_or_default();
    Ok(read(&answer))
}

/// Each address stands there once for each type of socket.
fn read(answer: &str) -> Vec<IpAddr> {
    let mut found = Vec::new();
    for line in answer.lines() {
        let address = line.split_ascii_whitespace().next();
        if let Some(ip) = address.and_then(|a| a.parse().ok())
            && !found.contains(&ip)
        {
            found.push(ip);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_not_looked_up() {
        let ip = |text: &str| vec![text.parse::<IpAddr>().unwrap()];
        let none = Duration::ZERO;
        assert_eq!(addresses("192.0.2.1", none).unwrap(), ip("192.0.2.1"));
        assert_eq!(addresses("[2001:db8::1]", none).unwrap(), ip("2001:db8::1"));
    }

    #[test]
    fn a_host_has_its_addresses_once_each() {
        let answer = "2001:db8::1     STREAM example.com\n2001:db8::1     DGRAM  \n\
                      192.0.2.1       STREAM \n192.0.2.1       DGRAM  \nwhat is this\n";
        let found: Vec<String> = read(answer).iter().map(IpAddr::to_string).collect();
        assert_eq!(found, ["2001:db8::1", "192.0.2.1"]);
        assert!(read("").is_empty());
        let found = addresses("localhost", PATIENCE).unwrap();
        assert!(
            !found.is_empty() && found.iter().all(IpAddr::is_loopback),
            "{found:?}"
        );
    }

    #[test]
    fn a_host_that_is_not_there_is_said_to_be() {
        let agent = agent(Agent::config_builder().proxy(None).build());
        let e = agent.get("http://nowhere.invalid/").call().unwrap_err();
        assert!(matches!(e, Error::HostNotFound), "{e}");
    }
}
