//! Archives, unpacked into an empty directory or refused as a whole.
//!
//! Nothing but files and directories comes out of one, and nothing of it lands outside: names are
//! checked part by part, links and devices are refused, and sizes are counted as they come, not
//! as the archive claims.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};

use super::{Failure, Outcome};
use crate::config::remote::Kind;

/// How deep directories may lie.
const DEEPEST: usize = 64;

/// How much may come out of an archive.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes in all.
    pub bytes: u64,
    /// Files and directories.
    pub entries: u64,
}

/// Unpacks an archive. `inside` is the directory of it that is meant; none is all of it.
pub fn unpack(
    archive: &Path,
    kind: Kind,
    inside: Option<&str>,
    tree: &Path,
    limits: Limits,
) -> Outcome<()> {
    let file = File::open(archive).map_err(Failure::io("open the archive"))?;
    let mut unpacker = Unpacker {
        tree,
        inside: inside.map(PathBuf::from),
        seen: HashSet::new(),
        limits,
        left: limits,
        wrote: false,
    };
    match kind {
        Kind::Zip => unpacker.zip(file)?,
        Kind::Tar => unpacker.tar(BufReader::new(file))?,
        Kind::TarGz => unpacker.tar(flate2::bufread::MultiGzDecoder::new(BufReader::new(file)))?,
        Kind::TarZst => {
            let decoder = ruzstd::decoding::StreamingDecoder::new(BufReader::new(file));
            let decoder = decoder.map_err(|e| bad(format!("is no zstd archive: {e}")))?;
            unpacker.tar(decoder)?;
        }
    }
    match (unpacker.wrote, inside) {
        (true, _) => Ok(()),
        (false, Some(inside)) => Err(bad(format!("has no directory {inside}"))),
        (false, None) => Err(bad("is empty")),
    }
}

fn bad(how: impl std::fmt::Display) -> Failure {
    Failure::lasting(format!("the archive {how}"))
}

struct Unpacker<'a> {
    tree: &'a Path,
    inside: Option<PathBuf>,
    /// Names in lower case: some file systems know no other.
    seen: HashSet<String>,
    limits: Limits,
    left: Limits,
    wrote: bool,
}

/// What an entry is.
enum What {
    Directory,
    File { mode: u32 },
}

impl Unpacker<'_> {
    fn zip(&mut self, file: File) -> Outcome<()> {
        let mut zip = zip::ZipArchive::new(BufReader::new(file));
        let zip = zip
            .as_mut()
            .map_err(|e| bad(format!("is no zip file: {e}")))?;
        for n in 0..zip.len() {
            let mut entry = zip
                .by_index(n)
                .map_err(|e| bad(format!("is damaged: {e}")))?;
            let name = entry.name().map(std::borrow::Cow::into_owned);
            let name = name.map_err(|e| bad(format!("has a name that cannot be read: {e}")))?;
            let mode = entry.unix_mode();
            let kind = mode.map_or(0, |m| m & 0o170_000);
            let what = match (entry.is_dir(), kind) {
                (true, _) => What::Directory,
                (false, 0 | 0o100_000) => What::File {
                    mode: mode.unwrap_or(0o644),
                },
                _ => {
                    return Err(bad(format!(
                        "has {name:?}, which is neither a file nor a directory"
                    )));
                }
            };
            self.entry(&name, &what, &mut entry)?;
        }
        Ok(())
    }

    fn tar(&mut self, from: impl Read) -> Outcome<()> {
        let mut tar = tar::Archive::new(from);
        let damaged = |e: io::Error| bad(format!("is damaged: {e}"));
        for entry in tar.entries().map_err(damaged)? {
            let mut entry = entry.map_err(damaged)?;
            let name = String::from_utf8(entry.path_bytes().into_owned());
            let name = name.map_err(|e| bad(format!("has the name {e}, which is not UTF-8")))?;
            let what = match entry.header().entry_type() {
                tar::EntryType::Regular | tar::EntryType::Continuous => What::File {
                    mode: entry.header().mode().unwrap_or(0o644),
                },
                tar::EntryType::Directory => What::Directory,
                // Words about the archive as a whole, which git writes.
                tar::EntryType::XGlobalHeader => continue,
                _ => {
                    return Err(bad(format!(
                        "has {name:?}, which is neither a file nor a directory"
                    )));
                }
            };
            self.entry(&name, &what, &mut entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, name: &str, what: &What, from: &mut impl Read) -> Outcome<()> {
        let Some(path) = checked(name)? else {
            return Ok(());
        };
        self.left.entries = self.left.entries.checked_sub(1).ok_or_else(|| {
            bad(format!(
                "has more than {} entries (source-max-files)",
                self.limits.entries
            ))
        })?;
        let is_directory = matches!(what, What::Directory);
        let folded = path.to_string_lossy().to_lowercase();
        if !self.seen.insert(folded) && !is_directory {
            return Err(bad(format!("has {name:?} twice, or in two spellings")));
        }
        let path = match &self.inside {
            None => path,
            Some(inside) => match path.strip_prefix(inside) {
                Ok(path) if path.as_os_str().is_empty() => return Ok(()),
                Ok(path) => path.to_owned(),
                Err(_) => {
                    // Its bytes count all the same: they have to be read.
                    return self.copy(from, &mut io::sink());
                }
            },
        };
        self.wrote = true;
        let at = self.tree.join(&path);
        let cannot = |e| Failure::io(format!("unpack {name:?}"))(e);
        match what {
            What::Directory => fs::create_dir_all(&at).map_err(cannot),
            What::File { mode } => {
                if let Some(parent) = at.parent() {
                    fs::create_dir_all(parent).map_err(cannot)?;
                }
                let mut file = File::create_new(&at).map_err(cannot)?;
                self.copy(from, &mut file)?;
                // Neither set-uid nor writable by everybody, and readable by its user.
                let mode = (mode & 0o755) | 0o600;
                file.set_permissions(fs::Permissions::from_mode(mode))
                    .map_err(cannot)
            }
        }
    }

    fn copy(&mut self, from: &mut impl Read, to: &mut impl Write) -> Outcome<()> {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(bad(format!("is damaged: {e}"))),
            };
            self.left.bytes = self.left.bytes.checked_sub(n as u64).ok_or_else(|| {
                bad(format!(
                    "holds more than {} bytes (source-max-size)",
                    self.limits.bytes
                ))
            })?;
            to.write_all(&buffer[..n])
                .map_err(Failure::io("write what is unpacked"))?;
        }
    }
}

/// The path of an entry, if it stays inside; none for the archive's own root.
fn checked(name: &str) -> Outcome<Option<PathBuf>> {
    let refused = |why: &str| Err(bad(format!("has {name:?}, {why}")));
    if name.contains(['\0', '\\']) || name.chars().any(char::is_control) {
        return refused("which is no name for a file here");
    }
    let mut path = PathBuf::new();
    for component in Path::new(name).components() {
        match component {
            Component::CurDir => {}
            Component::Normal(part) => {
                if part.eq_ignore_ascii_case(".git") {
                    return refused("and nothing of git may come in an archive");
                }
                path.push(part);
            }
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => {
                return refused("which leads out of it");
            }
        }
    }
    if path.components().count() > DEEPEST {
        return refused("which lies too deep");
    }
    Ok((!path.as_os_str().is_empty()).then_some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_out_are_refused() {
        for name in [
            "../x",
            "a/../../x",
            "/etc/passwd",
            "a\\..\\x",
            "a/.git/config",
            ".GIT/x",
            "a\nb",
            "a\0b",
        ] {
            assert!(checked(name).is_err(), "{name:?}");
        }
        assert!(checked(&"a/".repeat(100)).is_err());
        assert_eq!(checked("./a//b/").unwrap(), Some(PathBuf::from("a/b")));
        assert_eq!(checked("./").unwrap(), None);
    }
}
