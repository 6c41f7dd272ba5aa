//! Links the freestanding image; a hosted build (unit tests, clippy) links as any program does.

use std::{env, ffi::OsStr, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=link.ld");
    // Cargo tells the name of a custom profile only here: target/PROFILE/build/PACKAGE-HASH/out.
    let out = env::var_os("OUT_DIR").unwrap_or_default();
    if Path::new(&out).ancestors().nth(3).and_then(Path::file_name) != Some(OsStr::new("firmware"))
    {
        return;
    }
    let script = concat!("-Wl,-T,", env!("CARGO_MANIFEST_DIR"), "/link.ld");
    for argument in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", script] {
        println!("cargo::rustc-link-arg-bins={argument}");
    }
}
