//! `~/.netrc`, where people keep what they log in to servers with. git reads it by itself; this
//! is for archives.

use std::fs;
use std::path::Path;

use crate::config::remote::Login;

/// What the program's user has for the host of a web address; none if they have no such file.
pub fn login(url: &str) -> Option<Login> {
    let (_, rest) = url.split_once("://")?;
    let host = rest.split(['/', '?']).next()?;
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let file = Path::new(&std::env::var_os("HOME")?).join(".netrc");
    find(&fs::read_to_string(file).ok()?, host)
}

/// The first entry for a host, or the one for all others.
fn find(text: &str, host: &str) -> Option<Login> {
    let (mut user, mut password) = (None, None);
    // Whether the entry that is read is meant.
    let mut meant = false;
    let mut words = words(text).into_iter();
    while let Some(word) = words.next() {
        match word {
            "machine" | "default" if meant => break,
            "machine" => meant = words.next() == Some(host),
            "default" => meant = true,
            "login" if meant => user = words.next(),
            "password" if meant => password = words.next(),
            "login" | "password" | "account" => drop(words.next()),
            _ => {}
        }
    }
    Some(Login {
        user: user?.to_owned(),
        password: password.unwrap_or_default().to_owned(),
    })
}

/// All words but those of comments and macros; a macro goes up to the next empty line.
fn words(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut in_macro = false;
    for line in text.lines() {
        if line.trim().is_empty() {
            in_macro = false;
        }
        if in_macro || line.trim_start().starts_with('#') {
            continue;
        }
        for word in line.split_whitespace() {
            if word == "macdef" {
                in_macro = true;
                break;
            }
            found.push(word);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::find;

    #[test]
    fn the_entry_of_a_host_is_found() {
        let text = "# mine\nmachine a.example login anna password one\n\
                    machine b.example\n  login bob\n  account x\n  password two\n\
                    macdef init\nmachine c.example login no password no\n\n\
                    machine c.example login carl\n\
                    default login all password rest\n";
        for (host, user, password) in [
            ("a.example", "anna", "one"),
            ("b.example", "bob", "two"),
            ("c.example", "carl", ""),
            ("d.example", "all", "rest"),
        ] {
            let found = find(text, host).unwrap();
            assert_eq!((&*found.user, &*found.password), (user, password), "{host}");
        }
        assert_eq!(
            find("machine a.example login x password y", "b.example"),
            None
        );
        assert_eq!(find("machine", "b.example"), None);
    }
}
