//! Links a release statically where the C library is here as an archive: the client starts for
//! every request, and finding, mapping and binding a shared library is a fifth of that. It stays
//! position independent, with packed relocations. Elsewhere it is linked as usual; so is what is
//! tested, since some tests put a library with a clock of their own under the program.
//!
//! The compiler's own `crt-static` would ask for a target on each command line, and other paths.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is_release = env::var("PROFILE").is_ok_and(|profile| profile == "release");
    let is_native = env::var("HOST").ok() == env::var("TARGET").ok();
    let is_gnu = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|system| system == "gnu");
    // Before, relocations could not be packed.
    let is_due = is_release && is_native && is_gnu && glibc() >= Some((2, 36));
    if is_due && link_statically().is_none() {
        println!("cargo::warning=linked with shared libraries: libc.a is not here");
    }
}

/// Asks for it, if all that it takes is here.
fn link_statically() -> Option<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR")?);
    library("rcrt1.o")?;
    // They need one another.
    let group = ["libc.a", "libgcc_eh.a", "libgcc.a"].map(library);
    let [c, unwind, gcc] = group.map(|found| found.map(|path| path.display().to_string()));
    let (c, unwind, gcc) = (c?, unwind?, gcc?);
    let m = library("libm.a")?;
    // The compiler asks for shared libraries by name; these stand in for them.
    fs::write(out.join("libc.so"), format!("GROUP({c} {unwind} {gcc})\n")).ok()?;
    fs::write(
        out.join("libgcc_s.so"),
        format!("GROUP({unwind} {gcc} {c})\n"),
    )
    .ok()?;
    fs::write(out.join("libm.so"), format!("INPUT({})\n", m.display())).ok()?;
    let directory = format!("-L{}", out.display());
    for argument in [
        directory.as_str(),
        "-static-pie",
        "-Wl,-z,pack-relative-relocs",
    ] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
    Some(())
}

/// The version of the C library that is built for, which is the one that is here.
fn glibc() -> Option<(u32, u32)> {
    let asked = Command::new("getconf").arg("GNU_LIBC_VERSION").output();
    let said = String::from_utf8(asked.ok()?.stdout).ok()?;
    let (major, minor) = said.trim().strip_prefix("glibc ")?.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Where the C compiler finds this file.
fn library(file: &str) -> Option<PathBuf> {
    let asked = Command::new("cc")
        .arg(format!("-print-file-name={file}"))
        .output();
    let path = PathBuf::from(String::from_utf8(asked.ok()?.stdout).ok()?.trim());
    Path::is_absolute(&path).then_some(path)
}
