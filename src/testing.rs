//! What the tests of several modules need.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

/// A small file system of its own, gone when this is dropped.
pub(crate) struct Tmpfs {
    dir: TempDir,
}

impl Tmpfs {
    /// Mounts one with room for `size` bytes. None, said on stderr, where that is not allowed;
    /// a failure where `DEPLOYER_TEST_ROOT=1` says that it must be.
    pub(crate) fn mount(size: u64) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let options = format!("size={size},mode=0700");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(dir.path())
            .output();
        match mounted {
            Ok(output) if output.status.success() => Some(Self { dir }),
            other => {
                let expected = std::env::var_os("DEPLOYER_TEST_ROOT").is_some_and(|v| v == "1");
                assert!(!expected, "no tmpfs although root is expected: {other:?}");
                eprintln!("SKIPPED: this test needs root to mount a tmpfs");
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // Lazily, since a thread may have files open yet.
        let _ = Command::new("umount")
            .arg("-l")
            .arg(self.dir.path())
            .status();
    }
}

/// Numbers that look random and are the same in every run of the test.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed | 1)
    }

    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    pub(crate) fn bytes(&mut self, count: usize) -> Vec<u8> {
        let words = (0..count.div_ceil(8)).flat_map(|_| self.below(u64::MAX).to_le_bytes());
        words.take(count).collect()
    }
}
