//! The grammars of single values: text in, value or a reason out.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use croner::parser::{CronParser, Seconds, Year};
use nix::sys::signal::Signal;

use super::diag::{Code, quote};
use super::model::{Digest, Limit, Ready, Resource, Retention, Schedule};

/// Why a value was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad {
    pub code: Code,
    pub message: String,
    pub help: Option<String>,
    /// Which characters of the value are meant; none is all of it.
    pub span: Option<Range<usize>>,
}

impl Bad {
    pub fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        let help = Some(help.into());
        Self {
            code: Code::BadValue,
            message: message.into(),
            help,
            span: None,
        }
    }

    pub fn at(mut self, item: &Item<'_>) -> Self {
        self.span = Some(item.start..item.start + item.text.chars().count());
        self
    }
}

/// One word of a list, and the character it begins at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Item<'a> {
    pub text: &'a str,
    pub start: usize,
}

/// The words of a list, separated by commas, blanks or both.
pub(super) fn items(value: &str) -> Vec<Item<'_>> {
    let separator = |c: char| c == ',' || c.is_whitespace();
    let mut items = Vec::new();
    let mut begin = None;
    for (n, (byte, c)) in value.char_indices().enumerate() {
        match (begin, separator(c)) {
            (None, false) => begin = Some((byte, n)),
            (Some((from, start)), true) => {
                items.push(Item {
                    text: &value[from..byte],
                    start,
                });
                begin = None;
            }
            _ => {}
        }
    }
    if let Some((from, start)) = begin {
        items.push(Item {
            text: &value[from..],
            start,
        });
    }
    items
}

/// One of a few words.
pub(super) fn word<T: Copy>(value: &str, words: &[(&str, T)]) -> Result<T, Bad> {
    if let Some((_, meaning)) = words.iter().find(|(w, _)| *w == value) {
        return Ok(*meaning);
    }
    let known: Vec<_> = words.iter().map(|(w, _)| format!("`{w}`")).collect();
    Err(Bad::new(
        format!("{} is not one of the words allowed here", quote(value)),
        format!("write {}", known.join(" or ")),
    ))
}

/// Times as cron writes them; `none` is never.
pub(super) fn schedule(value: &str) -> Result<Option<Schedule>, Bad> {
    if value == "none" {
        return Ok(None);
    }
    let parser = CronParser::builder()
        .seconds(Seconds::Disallowed)
        .year(Year::Disallowed)
        .build();
    parser
        .parse(value)
        .map(|cron| Some(Schedule(cron)))
        .map_err(|e| {
            Bad::new(
                format!("{} is no schedule: {e}", quote(value)),
                "minute, hour, day, month, day of the week, as in `*/5 * * * *`; `@daily`; `none`",
            )
        })
}

/// The address of a web server.
pub(super) fn web_address(value: &str) -> Result<String, Bad> {
    let host = value
        .strip_prefix("https://")
        .or(value.strip_prefix("http://"));
    let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]/".contains(c);
    if host.is_some_and(|host| !host.is_empty() && host.chars().all(plain)) {
        return Ok(value.to_owned());
    }
    let help = "write for example `https://s3.example.org`";
    Err(Bad::new(
        format!("{} is no web address", quote(value)),
        help,
    ))
}

/// An address to listen on.
pub(super) fn address(value: &str) -> Result<SocketAddr, Bad> {
    value.parse().map_err(|_| {
        let help = "write a number and a port, such as `127.0.0.1:8080` or `[::1]:8080`";
        Bad::new(format!("{} is no address to listen on", quote(value)), help)
    })
}

/// Addresses of machines.
pub(super) fn ip_addresses(value: &str) -> Result<Vec<IpAddr>, Bad> {
    let one = |item: Item<'_>| {
        item.text.parse().map_err(|_| {
            let help = "write numbers, such as `127.0.0.1` or `::1`";
            Bad::new(format!("{} is no address", quote(item.text)), help).at(&item)
        })
    };
    items(value).into_iter().map(one).collect()
}

/// Names of machines.
pub(super) fn hosts(value: &str) -> Result<Vec<String>, Bad> {
    let one = |item: Item<'_>| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-._:[]".contains(c);
        if item.text.chars().all(plain) {
            return Ok(item.text.to_ascii_lowercase());
        }
        let help = "write names without ports, such as `deploy.example.org`";
        Err(Bad::new(format!("{} is no name of a host", quote(item.text)), help).at(&item))
    };
    items(value).into_iter().map(one).collect()
}

/// The name of an HTTP header.
pub(super) fn header(value: &str) -> Result<String, Bad> {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-';
    if !value.is_empty() && value.chars().all(plain) {
        return Ok(value.to_ascii_lowercase());
    }
    let help = "write for example `X-Remote-User`";
    Err(Bad::new(
        format!("{} is no name of a header", quote(value)),
        help,
    ))
}

/// What an archive has to be.
pub(super) fn digest(value: &str) -> Result<Digest, Bad> {
    if value == "beside" {
        return Ok(Digest::Beside);
    }
    let hex = value
        .strip_prefix("sha256:")
        .unwrap_or(value)
        .to_ascii_lowercase();
    if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Ok(Digest::Is(hex));
    }
    let help =
        "write `sha256:` and 64 digits, or `beside` for the file with `.sha256` behind its name";
    Err(Bad::new(format!("{} is no SHA-256", quote(value)), help))
}

/// Paths below a directory.
pub(super) fn inner_paths(value: &str) -> Result<Vec<String>, Bad> {
    let mut paths = Vec::new();
    for item in items(value) {
        let path = item.text.trim_end_matches('/');
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            let message = format!("{} is no path inside a release", quote(item.text));
            return Err(Bad::new(message, "write for example `var/uploads`").at(&item));
        }
        paths.push(path.to_owned());
    }
    Ok(paths)
}

/// `yes` or `no`.
pub(super) fn yes_no(value: &str) -> Result<bool, Bad> {
    word(value, &[("yes", true), ("no", false)])
}

/// A plain decimal number up to `i64::MAX`, which is as far as the history can count.
fn number(digits: &str) -> Option<u64> {
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    let n: u64 = plain.then(|| digits.parse().ok())??;
    i64::try_from(n).is_ok().then_some(n)
}

/// Splits digits (and a point) from the unit behind them.
fn unit(value: &str) -> (&str, &str) {
    let at = value
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(value.len());
    value.split_at(at)
}

/// A whole number of at least 1.
pub(super) fn count(value: &str) -> Result<u32, Bad> {
    number(value)
        .and_then(|n| u32::try_from(n).ok())
        .filter(|n| *n > 0)
        .ok_or_else(|| {
            Bad::new(
                format!("{} is not a number of at least 1", quote(value)),
                "write for example `1024`",
            )
        })
}

/// No duration is longer, so that adding one to the time of day cannot overflow.
const LONGEST: Duration = Duration::from_secs(36_500 * 86_400);

/// `30`, `30s`, `1.5s`, `5m`, `2h`, `7d`.
pub(super) fn duration(value: &str) -> Result<Duration, Bad> {
    let bad = || {
        Bad::new(
            format!("{} is not a duration", quote(value)),
            "write seconds, or a number with s, m, h or d: `30`, `1.5s`, `5m`, `2h`, `7d`",
        )
    };
    let (digits, unit) = unit(value);
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        _ => return Err(bad()),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, "0"));
    if fraction.len() > 9 {
        return Err(bad());
    }
    let (Some(whole), Some(part)) = (number(whole), number(fraction)) else {
        return Err(bad());
    };
    let scale = 10_u64.pow(9 - u32::try_from(fraction.len()).unwrap_or(9));
    let nanos = (u128::from(whole) * 1_000_000_000 + u128::from(part * scale)) * factor;
    if nanos > LONGEST.as_nanos() {
        return Err(Bad::new(
            format!("{} is longer than 36500 days", quote(value)),
            "write a shorter duration",
        ));
    }
    // Both parts fit after the check above.
    Ok(Duration::new(
        u64::try_from(nanos / 1_000_000_000).unwrap_or(u64::MAX),
        u32::try_from(nanos % 1_000_000_000).unwrap_or(0),
    ))
}

/// A duration above zero, or `none`.
pub(super) fn optional_duration(value: &str) -> Result<Option<Duration>, Bad> {
    if value == "none" {
        return Ok(None);
    }
    match duration(value) {
        Ok(Duration::ZERO) => Err(Bad::new(
            "a time limit of zero would end every run at once",
            "write `none` for no limit",
        )),
        Ok(duration) => Ok(Some(duration)),
        Err(mut bad) => {
            bad.help = bad.help.map(|help| help + ", or `none`");
            Err(bad)
        }
    }
}

/// `no`, `yes` or the number of a group, from 1; `yes` is group 1.
pub(super) fn group_number(value: &str) -> Result<Option<u32>, Bad> {
    match value {
        "no" | "none" => Ok(None),
        "yes" => Ok(Some(1)),
        _ => count(value).map(Some).map_err(|_| {
            Bad::new(
                format!("{} is neither yes nor no nor a group", quote(value)),
                "write `yes`, `no` or a number of at least 1",
            )
        }),
    }
}

/// Seconds, or a duration; `none`, zero and negative numbers mean none.
pub(super) fn restart_delay(value: &str) -> Result<Option<Duration>, Bad> {
    let negative = value.strip_prefix('-').and_then(number).is_some();
    if value == "none" || negative {
        return Ok(None);
    }
    let delay = duration(value).map_err(|mut bad| {
        bad.help = bad.help.map(|help| help + ", or `none`");
        bad
    })?;
    Ok(Some(delay).filter(|d| !d.is_zero()))
}

/// Two durations, `0.5s..60s`, the first above zero and not above the second.
pub(super) fn durations(value: &str) -> Result<(Duration, Duration), Bad> {
    let bad = || {
        Bad::new(
            format!("{} is not a range of durations", quote(value)),
            "write the shortest and the longest one: `0.5s..60s`",
        )
    };
    let (first, last) = value.split_once("..").ok_or_else(bad)?;
    let (first, last) = (duration(first.trim())?, duration(last.trim())?);
    if first.is_zero() || first > last {
        return Err(bad());
    }
    Ok((first, last))
}

/// So many times in so long: `10 in 5m`; `none` is without bound.
pub(super) fn rate(value: &str) -> Result<Option<(u32, Duration)>, Bad> {
    if value == "none" {
        return Ok(None);
    }
    let bad = || {
        Bad::new(
            format!("{} does not say how often in which time", quote(value)),
            "write for example `10 in 5m`, or `none`",
        )
    };
    let (times, time) = value.split_once(" in ").ok_or_else(bad)?;
    let (times, time) = (count(times.trim())?, duration(time.trim())?);
    if time.is_zero() {
        return Err(bad());
    }
    Ok(Some((times, time)))
}

/// `notify`, `fd:N`, `tcp:PORT` or `cmd:COMMAND`.
pub(super) fn ready(value: &str) -> Result<Ready, Bad> {
    let bad = || {
        Bad::new(
            format!("{} is no way to be ready", quote(value)),
            "write `notify`, `fd:3`, `tcp:8080` or `cmd:COMMAND`",
        )
    };
    if value == "notify" {
        return Ok(Ready::Notify);
    }
    let (kind, rest) = value.split_once(':').ok_or_else(bad)?;
    match kind {
        "fd" => number(rest)
            .filter(|n| (3..=1000).contains(n))
            .and_then(|n| i32::try_from(n).ok())
            .map(Ready::Fd)
            .ok_or_else(bad),
        "tcp" => number(rest)
            .and_then(|n| u16::try_from(n).ok())
            .filter(|port| *port > 0)
            .map(Ready::Tcp)
            .ok_or_else(bad),
        "cmd" if !rest.trim().is_empty() => Ok(Ready::Command(rest.trim().to_owned())),
        _ => Err(bad()),
    }
}

/// `4096`, `64M`, `1GiB`: bytes; K, M, G and T count in steps of 1024.
pub(super) fn size(value: &str) -> Result<u64, Bad> {
    let (digits, unit) = unit(value);
    let shift = match unit {
        "" => Some(0),
        "K" | "KiB" => Some(10),
        "M" | "MiB" => Some(20),
        "G" | "GiB" => Some(30),
        "T" | "TiB" => Some(40),
        _ => None,
    };
    let bytes = number(digits).zip(shift).and_then(|(n, shift)| {
        n.checked_mul(1 << shift)
            .filter(|bytes| i64::try_from(*bytes).is_ok())
    });
    bytes.ok_or_else(|| {
        Bad::new(
            format!("{} is not a size", quote(value)),
            "write bytes, or a number with K, M, G or T: `4096`, `64M`, `1GiB`",
        )
    })
}

/// Permission bits, octal.
pub(super) fn mode(value: &str) -> Result<u32, Bad> {
    let octal = !value.is_empty() && value.len() <= 5 && value.bytes().all(|b| b.is_ascii_digit());
    octal
        .then(|| u32::from_str_radix(value, 8).ok())
        .flatten()
        .filter(|m| *m <= 0o777)
        .ok_or_else(|| {
            Bad::new(
                format!("{} is not a set of permission bits", quote(value)),
                "write an octal number from `0` to `0777`",
            )
        })
}

/// An absolute path.
pub(super) fn path(value: &str) -> Result<PathBuf, Bad> {
    if value.starts_with('/') {
        return Ok(PathBuf::from(value));
    }
    Err(Bad::new(
        format!("{} is not an absolute path", quote(value)),
        "begin it with `/`",
    ))
}

/// The path of a socket: absolute, and short enough for the kernel.
pub(super) fn socket_path(value: &str) -> Result<PathBuf, Bad> {
    const MAX: usize = 107;
    let path = path(value)?;
    if value.len() > MAX || value.ends_with('/') {
        return Err(Bad::new(
            format!("{} cannot be the path of a socket", quote(value)),
            format!("name a file, in at most {MAX} bytes"),
        ));
    }
    Ok(path)
}

/// A search path: absolute directories between colons.
pub(super) fn search_path(value: &str) -> Result<String, Bad> {
    let mut start = 0;
    for text in value.split(':') {
        if !text.starts_with('/') {
            // An empty part would mean the directory the script happens to be in.
            let message = format!("{} is not an absolute directory", quote(text));
            let help = "write absolute directories, separated by `:`";
            return Err(Bad::new(message, help).at(&Item { text, start }));
        }
        start += text.chars().count() + 1;
    }
    Ok(value.to_owned())
}

/// A signal: `TERM`, `SIGTERM` or its number.
pub(super) fn signal(value: &str) -> Result<i32, Bad> {
    let bad = || {
        Bad::new(
            format!("{} is not a signal", quote(value)),
            "write a name such as `TERM` or `SIGINT`, or a number from 1 to 64",
        )
    };
    if value.starts_with(|c: char| c.is_ascii_digit()) {
        // The C library keeps 32 and 33 for itself.
        let n = number(value)
            .filter(|n| matches!(n, 1..=31 | 34..=64))
            .ok_or_else(bad)?;
        return i32::try_from(n).map_err(|_| bad());
    }
    let name = value.to_ascii_uppercase();
    let name = name.strip_prefix("SIG").unwrap_or(&name);
    Signal::from_str(&format!("SIG{name}"))
        .map(|s| s as i32)
        .map_err(|_| bad())
}

/// `SOFT[:HARD]` or `unlimited`; one number means both.
pub(super) fn limit(resource: Resource, value: &str) -> Result<Limit, Bad> {
    let one = |text: &str| -> Result<Option<u64>, Bad> {
        if text == "unlimited" {
            return Ok(None);
        }
        let parsed = match resource {
            Resource::As
            | Resource::Core
            | Resource::Data
            | Resource::Fsize
            | Resource::Memlock
            | Resource::Stack => size(text),
            Resource::Cpu => duration(text).and_then(|d| match d.subsec_nanos() {
                0 => Ok(d.as_secs()),
                _ => Err(Bad::new(
                    format!("{} is not whole seconds", quote(text)),
                    "write `60` or `5m`",
                )),
            }),
            Resource::Nofile | Resource::Nproc => number(text).ok_or_else(|| {
                Bad::new(
                    format!("{} is not a number", quote(text)),
                    "write for example `1024`",
                )
            }),
        };
        parsed.map(Some).map_err(|mut bad| {
            bad.help = bad.help.map(|help| help + ", or `unlimited`");
            bad
        })
    };
    let Some((soft, hard)) = value.split_once(':') else {
        let both = one(value)?;
        return Ok(Limit {
            soft: both,
            hard: both,
        });
    };
    let start = soft.chars().count() + 1;
    let limit = Limit {
        soft: one(soft).map_err(|bad| {
            bad.at(&Item {
                text: soft,
                start: 0,
            })
        })?,
        hard: one(hard).map_err(|bad| bad.at(&Item { text: hard, start }))?,
    };
    if limit.soft.unwrap_or(u64::MAX) > limit.hard.unwrap_or(u64::MAX) {
        return Err(Bad::new(
            "the soft limit is above the hard one",
            "write `SOFT:HARD`",
        ));
    }
    Ok(limit)
}

/// What a list of bounds may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bounds {
    /// Runs, age and bytes.
    Logs,
    /// Runs and age.
    Rows,
}

/// A list of bounds: `100` runs, `30d` of age, `4GiB`; or `none`.
pub(super) fn retention(value: &str, bounds: Bounds) -> Result<Retention, Bad> {
    let mut kept = Retention {
        count: None,
        age: None,
        size: None,
    };
    if value == "none" {
        return Ok(kept);
    }
    let help = match bounds {
        Bounds::Logs => "write a number of runs, an age, a size, or `none`: `100, 30d, 4GiB`",
        Bounds::Rows => "write a number of runs, an age, or `none`: `1000, 90d`",
    };
    let list = items(value);
    if list.is_empty() {
        return Err(Bad::new("there is no bound in this list", help));
    }
    for item in list {
        let (_, unit) = unit(item.text);
        let (zero, twice) = if unit.is_empty() {
            let n = number(item.text);
            let n = n.ok_or_else(|| not_a_bound(item, help))?;
            (n == 0, kept.count.replace(n).is_some())
        } else if matches!(unit, "s" | "m" | "h" | "d") {
            let age = duration(item.text).map_err(|bad| bad.at(&item))?;
            (age.is_zero(), kept.age.replace(age).is_some())
        } else {
            let bytes = size(item.text).map_err(|_| not_a_bound(item, help))?;
            if bounds == Bounds::Rows {
                return Err(Bad::new("the history is not bounded by size", help).at(&item));
            }
            (bytes == 0, kept.size.replace(bytes).is_some())
        };
        if zero {
            return Err(Bad::new("a bound of zero would keep nothing", help).at(&item));
        }
        if twice {
            return Err(Bad::new("two bounds of the same kind", help).at(&item));
        }
    }
    Ok(kept)
}

fn not_a_bound(item: Item<'_>, help: &str) -> Bad {
    Bad::new(format!("{} is not a bound", quote(item.text)), help).at(&item)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SEC: fn(u64) -> Duration = Duration::from_secs;

    #[test]
    fn durations() {
        for (text, expected) in [
            ("30", SEC(30)),
            ("30s", SEC(30)),
            ("1.5s", Duration::from_millis(1500)),
            ("0.000000001", Duration::from_nanos(1)),
            ("5m", SEC(300)),
            ("1.5h", SEC(5400)),
            ("2h", SEC(7200)),
            ("7d", SEC(604_800)),
            ("36500d", LONGEST),
            ("0", SEC(0)),
        ] {
            assert_eq!(duration(text).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "s",
            ".5",
            "5.",
            "1.2.3",
            "5x",
            "5 m",
            "-5",
            "+5",
            "5M",
            "1e3",
            "36501d",
            "9223372036854775807d",
            "99999999999999999999",
            "1.0000000001",
            "５",
        ] {
            assert!(duration(bad).is_err(), "{bad:?}");
        }
        assert_eq!(optional_duration("none").unwrap(), None);
        assert!(optional_duration("0").is_err());
        assert!(optional_duration("None").is_err());
    }

    #[test]
    fn sizes_count_in_steps_of_1024() {
        for (text, expected) in [
            ("4096", 4096),
            ("1K", 1024),
            ("64M", 64 << 20),
            ("1GiB", 1 << 30),
            ("2T", 2 << 40),
            ("0", 0),
        ] {
            assert_eq!(size(text).unwrap(), expected, "{text}");
        }
        for bad in [
            "",
            "M",
            "1m",
            "1KB",
            "1.5G",
            "-1",
            "8388608T",
            "9223372036854775808",
            "1 G",
        ] {
            assert!(size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(mode("0666").unwrap(), 0o666);
        assert_eq!(mode("22").unwrap(), 0o22);
        for bad in ["", "8", "0o22", "1777", "01777", "-1", "rw", "000000"] {
            assert!(mode(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn signals_by_name_or_number() {
        for text in ["TERM", "SIGTERM", "15", "term"] {
            assert_eq!(signal(text).unwrap(), 15, "{text}");
        }
        assert_eq!(signal("64").unwrap(), 64);
        for bad in ["", "0", "32", "65", "-9", "SIG", "SIGSIGTERM", "FOO", "9x"] {
            assert!(signal(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn limits() {
        let both = |n| Limit {
            soft: Some(n),
            hard: Some(n),
        };
        assert_eq!(limit(Resource::Nofile, "1024").unwrap(), both(1024));
        assert_eq!(limit(Resource::As, "1G").unwrap(), both(1 << 30));
        assert_eq!(limit(Resource::Cpu, "5m").unwrap(), both(300));
        assert_eq!(
            limit(Resource::Core, "unlimited").unwrap(),
            Limit {
                soft: None,
                hard: None
            }
        );
        let open = Limit {
            soft: Some(5),
            hard: None,
        };
        assert_eq!(limit(Resource::Nproc, "5:unlimited").unwrap(), open);
        for bad in ["", "5:", ":5", "9:5", "unlimited:5", "1:2:3", "64M", "-1"] {
            assert!(limit(Resource::Nofile, bad).is_err(), "{bad:?}");
        }
        assert!(limit(Resource::Cpu, "1.5").is_err());
        assert_eq!(limit(Resource::Nofile, "5:x").unwrap_err().span, Some(2..3));
    }

    #[test]
    fn retention_tells_runs_age_and_size_apart_by_their_units() {
        let kept = retention("100, 30d 4GiB", Bounds::Logs).unwrap();
        assert_eq!(
            kept,
            Retention {
                count: Some(100),
                age: Some(SEC(30 * 86_400)),
                size: Some(4 << 30)
            }
        );
        let none = Retention {
            count: None,
            age: None,
            size: None,
        };
        assert_eq!(retention("none", Bounds::Rows).unwrap(), none);
        let five = retention("5m,5M", Bounds::Logs).unwrap();
        assert_eq!((five.age, five.size), (Some(SEC(300)), Some(5 << 20)));
        for bad in [
            "", ",", "0", "0d", "100, 200", "none, 5", "5x", "1.5", "-1", "1d 2h",
        ] {
            assert!(retention(bad, Bounds::Logs).is_err(), "{bad:?}");
        }
        assert_eq!(
            retention("5, 4GiB", Bounds::Rows).unwrap_err().span,
            Some(3..7)
        );
    }

    #[test]
    fn search_paths_have_no_relative_part() {
        assert!(search_path("/bin:/usr/bin").is_ok());
        for bad in ["", "bin", "/bin:", ":/bin", "/bin:.:/usr/bin"] {
            assert!(search_path(bad).is_err(), "{bad:?}");
        }
        assert_eq!(search_path("/é:.").unwrap_err().span, Some(3..4));
    }

    #[test]
    fn socket_paths_fit_the_kernel() {
        assert!(socket_path(&format!("/{}", "x".repeat(106))).is_ok());
        assert!(socket_path(&format!("/{}", "x".repeat(107))).is_err());
        assert!(socket_path("/run/").is_err());
    }

    #[test]
    fn lists_are_split_at_commas_and_blanks() {
        let found: Vec<_> = items(" a,é  b,, c")
            .iter()
            .map(|i| (i.text, i.start))
            .collect();
        assert_eq!(found, [("a", 1), ("é", 3), ("b", 6), ("c", 10)]);
    }

    proptest! {
        #[test]
        fn no_value_panics(text in r"[0-9a-zA-Z.:, -]{0,24}|\PC{0,12}") {
            let _ = (duration(&text), size(&text), mode(&text), signal(&text), count(&text));
            let _ = (search_path(&text), socket_path(&text), optional_duration(&text));
            let _ = (retention(&text, Bounds::Logs), retention(&text, Bounds::Rows));
            for r in [Resource::As, Resource::Cpu, Resource::Nproc] {
                let _ = limit(r, &text);
            }
        }
    }
}
