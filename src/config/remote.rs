//! Where code comes from: the value of `source`, taken apart. Pure.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a `source` names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Remote {
    /// A git repository.
    Git {
        /// As git understands it, without user name and password.
        url: String,
        /// What stood before the host in a web address: a secret.
        login: Option<Login>,
        /// Branch, tag or full commit; none is what the remote's HEAD is.
        reference: Option<String>,
        /// The directory of the repository that is meant; none is all of it.
        path: Option<String>,
    },
    /// An archive behind a web address, or in a file.
    Archive {
        /// Its address, without user name and password.
        url: String,
        /// What stood before the host: a secret.
        login: Option<Login>,
        /// How it is packed.
        kind: Kind,
        /// The directory in it that is meant; none is all of it.
        path: Option<String>,
    },
    /// An archive in S3.
    S3 {
        /// Where.
        bucket: String,
        /// The object.
        key: String,
        /// How it is packed.
        kind: Kind,
        /// The directory in it that is meant; none is all of it.
        path: Option<String>,
    },
}

/// How an archive is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)]
pub enum Kind {
    Zip,
    Tar,
    TarGz,
    TarZst,
}

/// The ends of names of archives.
const ARCHIVES: [(&str, Kind); 5] = [
    (".zip", Kind::Zip),
    (".tar.gz", Kind::TarGz),
    (".tgz", Kind::TarGz),
    (".tar.zst", Kind::TarZst),
    (".tar", Kind::Tar),
];

impl Remote {
    /// What to log in with, if the address says so.
    #[must_use]
    pub fn login(&self) -> Option<&Login> {
        match self {
            Self::Git { login, .. } | Self::Archive { login, .. } => login.as_ref(),
            Self::S3 { .. } => None,
        }
    }
}

/// A user name and, perhaps, a password.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Login {
    /// The name.
    pub user: String,
    /// The password or token.
    pub password: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({}, …)", self.user)
    }
}

/// As people may read it: without secrets.
impl fmt::Display for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (path, reference) = match self {
            Self::Git {
                url,
                path,
                reference,
                ..
            } => {
                f.write_str(url)?;
                (path, reference.as_ref())
            }
            Self::Archive { url, path, .. } => {
                f.write_str(url)?;
                (path, None)
            }
            Self::S3 {
                bucket, key, path, ..
            } => {
                write!(f, "s3://{bucket}/{key}")?;
                (path, None)
            }
        };
        if let Some(path) = path {
            write!(f, "/{path}")?;
        }
        if let Some(reference) = reference {
            write!(f, "#{reference}")?;
        }
        Ok(())
    }
}

/// The ways to a repository that git may take, as it calls them.
pub const GIT_PROTOCOLS: [&str; 4] = ["ssh", "https", "http", "file"];

/// Reads a `source`.
///
/// # Errors
/// What is wrong, a fragment that follows the value.
pub fn parse(text: &str) -> Result<Remote, String> {
    if text.is_empty() {
        return Err("is empty".into());
    }
    if text.chars().any(|c| c.is_control() || c == ' ') {
        return Err("has blanks or control characters".into());
    }
    if let Some(archive) = archive(text)? {
        return Ok(archive);
    }
    let (place, reference) = match text.rsplit_once('#') {
        Some((place, reference)) => (place, Some(checked_reference(reference)?)),
        None => (text, None),
    };
    let (place, path) = split_path(place)?;
    let (url, login) = git_url(place)?;
    Ok(Remote::Git {
        url,
        login,
        reference,
        path,
    })
}

/// `…/app.zip` is an archive, and `…/app.zip/config` a directory in it.
fn archive(text: &str) -> Result<Option<Remote>, String> {
    let ways = ["http://", "https://", "s3://", "file:///", "/"];
    if !ways.iter().any(|way| text.starts_with(way)) {
        return Ok(None);
    }
    let ends = ARCHIVES.iter().filter_map(|(end, kind)| {
        let at = match text.ends_with(end) {
            true => text.len() - end.len(),
            false => text.find(&format!("{end}/"))?,
        };
        Some((at + end.len(), *kind))
    });
    // `.tar.gz` ends later than `.tar`.
    let Some((end, kind)) = ends.max_by_key(|(end, _)| *end) else {
        return match text.starts_with("s3://") {
            true => Err("is no archive: it has to end in .zip, .tar, .tar.gz or .tar.zst".into()),
            false => Ok(None),
        };
    };
    let (place, path) = (&text[..end], inner_path(&text[end..])?);
    if let Some(object) = place.strip_prefix("s3://") {
        let (bucket, key) = object
            .split_once('/')
            .ok_or("names no object of its bucket")?;
        checked_host(bucket)?;
        let (bucket, key) = (bucket.to_owned(), key.trim_start_matches('/').to_owned());
        return Ok(Some(Remote::S3 {
            bucket,
            key,
            kind,
            path,
        }));
    }
    if place.contains(".git/") || place.contains('#') {
        return Ok(None);
    }
    let (url, login) = git_url(place)?;
    Ok(Some(Remote::Archive {
        url,
        login,
        kind,
        path,
    }))
}

/// A directory below something else.
fn inner_path(path: &str) -> Result<Option<String>, String> {
    let path = path.trim_matches('/');
    if path.is_empty() {
        return Ok(None);
    }
    let parts: Vec<&str> = path.split('/').collect();
    if parts.iter().any(|p| matches!(*p, "" | "." | ".." | ".git")) {
        return Err(format!("names the directory {path:?}, which is none of it"));
    }
    Ok(Some(parts.join("/")))
}

/// `…/app.git/config` is the directory `config` of the repository `…/app.git`.
fn split_path(place: &str) -> Result<(&str, Option<String>), String> {
    let end = place
        .match_indices(".git/")
        .map(|(at, _)| at)
        // `/srv/app/.git` is the repository itself.
        .find(|at| !place[..*at].ends_with('/'));
    let Some(end) = end.map(|at| at + ".git".len()) else {
        return Ok((place, None));
    };
    Ok((&place[..end], inner_path(&place[end..])?))
}

/// What git is given. Git's own rules for names of references, and no leading dash.
fn checked_reference(reference: &str) -> Result<String, String> {
    let bad = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let good = !reference.is_empty()
        && !reference.contains(bad)
        && !reference.contains("..")
        && !reference.contains("@{")
        && !reference.contains("//")
        && !reference.starts_with(['-', '/', '.'])
        && !reference.ends_with(['/', '.'])
        && !reference.ends_with(".lock");
    if good {
        return Ok(reference.to_owned());
    }
    Err(format!(
        "names {reference:?}, which is no branch, tag or commit"
    ))
}

fn git_url(place: &str) -> Result<(String, Option<Login>), String> {
    if place.starts_with('/') {
        return Ok((format!("file://{place}"), None));
    }
    let Some((scheme, rest)) = place.split_once("://") else {
        return scp_like(place).map(|url| (url, None));
    };
    let scheme = scheme.strip_prefix("git+").unwrap_or(scheme);
    if !GIT_PROTOCOLS.contains(&scheme) {
        return Err(format!(
            "has the scheme {scheme:?}; there are {}",
            GIT_PROTOCOLS.join(", ")
        ));
    }
    if scheme == "file" {
        return match rest.starts_with('/') {
            true => Ok((format!("file://{rest}"), None)),
            false => Err("is not absolute: write `file:///srv/app.git`".into()),
        };
    }
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, authority),
    };
    if path.is_empty() {
        return Err("names a host and nothing on it".into());
    }
    checked_host(host)?;
    if scheme == "ssh" {
        let login = login.map(|l| l.split_once(':').map_or(l, |(user, _)| user));
        if let Some(user) = login {
            checked_host(user)?;
        }
        let login = login.map_or(String::new(), |user| format!("{user}@"));
        return Ok((format!("ssh://{login}{host}/{path}"), None));
    }
    let login = login.map(|login| {
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        Login {
            user: decoded(user),
            password: decoded(password),
        }
    });
    Ok((format!("{scheme}://{host}/{path}"), login))
}

/// `user@host:path`, as ssh's copy program has it.
fn scp_like(place: &str) -> Result<String, String> {
    let unknown = || {
        "is no address: write for example `git@host:team/app.git#main` or `https://host/app.git`"
            .to_owned()
    };
    let (login, path) = place.split_once(':').ok_or_else(unknown)?;
    let (user, host) = login.split_once('@').ok_or_else(unknown)?;
    if path.is_empty() || path.starts_with(':') {
        return Err(unknown());
    }
    checked_host(user)?;
    checked_host(host)?;
    // The same in the other notation, which knows no special cases. A path there begins at the root.
    match path.strip_prefix('/') {
        Some(absolute) => Ok(format!("ssh://{user}@{host}/{absolute}")),
        None => Ok(format!("{user}@{host}:{path}")),
    }
}

/// A host, a port or a user: nothing that another program takes for an option.
fn checked_host(host: &str) -> Result<(), String> {
    let part = |c: char| c.is_ascii_alphanumeric() || "-._:[]%".contains(c);
    if host.is_empty() || host.starts_with('-') || !host.chars().all(part) {
        return Err(format!("names {host:?}, which is no host or user"));
    }
    Ok(())
}

/// `%40` is `@`.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(byte) if first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            _ => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(text: &str) -> (String, Option<String>, Option<String>) {
        let Remote::Git {
            url,
            path,
            reference,
            ..
        } = parse(text).unwrap_or_else(|e| panic!("{text} {e}"))
        else {
            panic!("{text} is no repository");
        };
        (url, path, reference)
    }

    #[test]
    fn addresses_are_taken_apart() {
        let s = |t: &str| Some(t.to_owned());
        for (text, url, path, reference) in [
            ("git@host:org/app.git", "git@host:org/app.git", None, None),
            (
                "user@github.com:barchart/app.git/path#branch",
                "user@github.com:barchart/app.git",
                s("path"),
                s("branch"),
            ),
            (
                "git+ssh://git@host:2222/app.git/a/b#v1.2",
                "ssh://git@host:2222/app.git",
                s("a/b"),
                s("v1.2"),
            ),
            (
                "git@host:/srv/app.git",
                "ssh://git@host/srv/app.git",
                None,
                None,
            ),
            (
                "https://host/team/app.git#feature/x",
                "https://host/team/app.git",
                None,
                s("feature/x"),
            ),
            (
                "git+http://127.0.0.1:8080/app",
                "http://127.0.0.1:8080/app",
                None,
                None,
            ),
            (
                "file:///srv/app.git/conf",
                "file:///srv/app.git",
                s("conf"),
                None,
            ),
            (
                "/srv/app/.git#main",
                "file:///srv/app/.git",
                None,
                s("main"),
            ),
            (
                "/srv/my.github/app.git",
                "file:///srv/my.github/app.git",
                None,
                None,
            ),
        ] {
            assert_eq!(git(text), (url.to_owned(), path, reference), "{text}");
        }
    }

    #[test]
    fn secrets_of_an_address_stand_apart_and_are_not_shown() {
        let remote = parse("https://bot:s%40crt@host/app.git#main").unwrap();
        assert_eq!(remote.login().unwrap().password, "s@crt");
        assert_eq!(remote.to_string(), "https://host/app.git#main");
        assert!(!format!("{remote:?}").contains("s@crt"));
    }

    #[test]
    fn archives_are_known_by_their_names() {
        for (text, url, kind, path) in [
            (
                "https://host/a/app.zip",
                "https://host/a/app.zip",
                Kind::Zip,
                None,
            ),
            (
                "http://host/app.tar.gz/conf",
                "http://host/app.tar.gz",
                Kind::TarGz,
                Some("conf"),
            ),
            ("/srv/app.tar", "file:///srv/app.tar", Kind::Tar, None),
            (
                "file:///srv/app.tar.zst",
                "file:///srv/app.tar.zst",
                Kind::TarZst,
                None,
            ),
            (
                "https://u:p@host/x.tgz",
                "https://host/x.tgz",
                Kind::TarGz,
                None,
            ),
        ] {
            let Ok(Remote::Archive {
                url: u,
                kind: k,
                path: p,
                ..
            }) = parse(text)
            else {
                panic!("{text} is no archive");
            };
            assert_eq!((&*u, k, p.as_deref()), (url, kind, path), "{text}");
        }
        assert!(parse("https://host/app.zip/../x").is_err());
        assert!(matches!(
            parse("https://host/app.git/x.zip"),
            Ok(Remote::Git { .. })
        ));
    }

    #[test]
    fn what_git_or_ssh_would_misread_is_refused() {
        for text in [
            "",
            "app.git",
            "ext::sh -c x",
            "ext::sh",
            "fd::17",
            "git://host/app.git",
            "ftp://host/app.git",
            "-oProxyCommand=x@host:app.git",
            "git@-oProxyCommand=x:app.git",
            "ssh://-oProxyCommand=x/app.git",
            "https://host",
            "file://srv/app.git",
            "git@host:app.git#--upload-pack=x",
            "git@host:app.git#a..b",
            "git@host:app.git#a b",
            "git@host:app.git#",
            "git@host:app.git/../x",
            "git@host:app.git/.git/hooks",
            "https://host/app.git\n",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }
}
