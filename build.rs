//! Makes the program start fast, since the client starts for every request: what unwinds (libgcc)
//! is linked in where the C compiler has it to give, so that the loader need not find it; and
//! relocations are packed where the C library can read that. Elsewhere both are as usual.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let (Some(out), Some(system)) = (
        env::var_os("OUT_DIR"),
        env::var("CARGO_CFG_TARGET_ENV").ok(),
    ) else {
        return;
    };
    if system != "gnu" || env::var("HOST").ok() != env::var("TARGET").ok() {
        return;
    }
    let out = PathBuf::from(out);
    let script = out.join("libgcc_s.so");
    if has("libgcc_eh.a") && has("libgcc.a") && fs::write(script, "INPUT(-lgcc_eh -lgcc)\n").is_ok()
    {
        println!("cargo::rustc-link-arg-bins=-L{}", out.display());
    }
    if glibc() >= Some((2, 36)) {
        println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    }
}

/// The version of the C library that is built for, which is the one that is here.
fn glibc() -> Option<(u32, u32)> {
    let asked = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let said = String::from_utf8(asked.ok()?.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Whether the C compiler finds this library.
fn has(file: &str) -> bool {
    let asked = Command::new("cc")
        .arg(format!("-print-file-name={file}"))
        .output();
    asked.is_ok_and(|found| Path::new(String::from_utf8_lossy(&found.stdout).trim()).is_absolute())
}
