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

/// The functions that a client runs through, made by `tests/bench/start`.
const START: &str = "src/sys/start.txt";

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed={START}");
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|its| its == value);
    let is_native = env::var("HOST").ok() == env::var("TARGET").ok();
    let flags = env::var("CARGO_ENCODED_RUSTFLAGS").unwrap_or_default();
    // Whoever has chosen a linker has one that may know none of this.
    let is_usual = is_native && env::var_os("RUSTC_LINKER").is_none() && !flags.contains("link");
    let is_due = is_usual && is("PROFILE", "release") && is("CARGO_CFG_TARGET_ENV", "gnu");
    // Before, relocations could not be packed.
    if is_due && glibc() >= Some((2, 36)) && link_statically().is_none() {
        let remedy = "libc6-dev has it on Debian, glibc-static on Fedora";
        println!("cargo::warning=linked with shared libraries, libc.a is not here; {remedy}");
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
    let stand_in = |name: &str, text: String| fs::write(out.join(name), text + "\n").ok();
    stand_in("libc.so", format!("GROUP({c} {unwind} {gcc})"))?;
    stand_in("libgcc_s.so", format!("GROUP({unwind} {gcc} {c})"))?;
    stand_in("libm.so", format!("INPUT({})", m.display()))?;
    stand_in("start.ld", place_together())?;
    let out = out.display();
    println!("cargo::rustc-link-arg-bins=-L{out}");
    println!("cargo::rustc-link-arg-bins=-static-pie");
    println!("cargo::rustc-link-arg-bins=-Wl,-z,pack-relative-relocs");
    println!("cargo::rustc-link-arg-bins=-T{out}/start.ld");
    Some(())
}

/// What a client runs through is less than a tenth of the program, but there is some in each part
/// of it. Side by side it is a few pages to map instead of hundreds. The script says so to the
/// linker; what of it is not there any more does no harm.
fn place_together() -> String {
    let names = fs::read_to_string(START).unwrap_or_default();
    let names = names.lines().filter(|line| !line.starts_with('#'));
    let sections: String = names.map(|name| format!("*(\".text.{name}\")\n")).collect();
    format!("SECTIONS {{ .text.start : {{\n{sections}}} }} INSERT BEFORE .text;")
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
