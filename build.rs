//! Links what unwinds (libgcc) into the program where the C compiler has it to give: the client
//! starts for every request, and a library that the loader does not have to find makes that
//! faster. Where it has not, it is loaded as usual.

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
}

/// Whether the C compiler finds this library.
fn has(file: &str) -> bool {
    let asked = Command::new("cc")
        .arg(format!("-print-file-name={file}"))
        .output();
    asked.is_ok_and(|found| Path::new(String::from_utf8_lossy(&found.stdout).trim()).is_absolute())
}
