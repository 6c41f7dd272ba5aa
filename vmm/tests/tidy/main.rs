//! The house rules that no lint knows, as tests over the source tree.
#![expect(clippy::unwrap_used, reason = "a tree that cannot be read fails the test")]

mod circles;

use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// Lowest first: a module may name only modules before it.
const ORDER: [&str; 12] = [
    "stream",
    "page",
    "encryption",
    "memory",
    "sev",
    "devices",
    "vcpu",
    "boot",
    "machine",
    "migration",
    "control",
    "cli",
];

/// The only files that may opt in to unsafe code.
const UNSAFE_FILES: [&str; 15] = [
    "vmm/src/memory/advice.rs",
    "vmm/src/memory/dirty.rs",
    "vmm/src/memory/ram.rs",
    "vmm/src/memory/view.rs",
    "vmm/src/migration/net/not_taken.rs",
    "vmm/src/sev/hardware.rs",
    "vmm/src/sev/software/user_memory.rs",
    "vmm/src/vcpu/run_page.rs",
    "vmm/src/vcpu/xsave.rs",
    "vmm/tests/epyc/lib.rs",
    "vmm/tests/kvm_hostile/memory.rs",
    "guest-firmware/src/cpu.rs",
    "guest-firmware/src/entry.rs",
    "guest-firmware/src/physical.rs",
    "guest-firmware/src/symbols.rs",
];

/// Lines of a file.
const LINES_MAX: usize = 500;

/// Names that say nothing about what is in a file.
const EMPTY_NAMES: [&str; 4] = ["utils", "util", "common", "helpers"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust source file of the project, with its path from the top and its text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders: Vec<_> = ["vmm/src", "vmm/tests", "vmm/fuzz/fuzz_targets", "guest-firmware"]
        .iter()
        .map(|name| root().join(name))
        .collect();
    while let Some(folder) = folders.pop() {
        for entry in read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(found.len() > 30, "only {} files: is the tree where this test looks?", found.len());
    found
}

fn complaints(check: impl Fn(&str, &str) -> Option<String>) -> Vec<String> {
    sources().iter().filter_map(|(name, text)| check(name, text)).collect()
}

/// A reader learns from the first line what a file is for.
#[test]
fn every_file_says_what_it_is_for() {
    let wrong = complaints(|name, text| (!text.starts_with("//! ")).then(|| name.to_owned()));
    assert!(wrong.is_empty(), "without a first line that starts with `//! `: {wrong:?}");
}

/// A file can be read in one sitting.
#[test]
fn no_file_is_longer_than_500_lines() {
    let wrong = complaints(|name, text| {
        let lines = text.lines().count();
        (lines > LINES_MAX).then(|| format!("{name}: {lines}"))
    });
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// Nothing calls up: a module names only modules before it in the order of lib.rs.
#[test]
fn modules_name_only_lower_modules() {
    let rank = |module: &str| ORDER.iter().position(|&name| name == module);
    let wrong = complaints(|name, text| {
        let module = name.strip_prefix("vmm/src/")?.split(['/', '.']).next()?;
        let own = rank(module)?;
        let upward = text.lines().find(|line| {
            let code = line.split("//").next().unwrap_or_default();
            code.split("crate::").skip(1).any(|after| {
                let named = after.split(|c: char| !c.is_alphanumeric() && c != '_').next();
                named.and_then(rank).is_some_and(|other| other > own)
            })
        })?;
        Some(format!("{name}: {upward}"))
    });
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Unsafe code stays in the files whose purpose it is.
#[test]
fn unsafe_code_is_only_where_it_belongs() {
    let wrong = complaints(|name, text| {
        let opts_in =
            text.contains("expect(\n    unsafe_code") || text.contains("expect(unsafe_code");
        (opts_in && !UNSAFE_FILES.contains(&name) && !name.contains("tests/tidy/"))
            .then(|| name.to_owned())
    });
    assert!(wrong.is_empty(), "unsafe code outside the list: {wrong:?}");
}

/// What is unfinished is not committed, and names mean something.
#[test]
fn no_file_is_unfinished_or_named_for_nothing() {
    let marks = [["FIX", "ME"].concat(), ["XX", "X"].concat(), ["TO", "DO"].concat()];
    let wrong = complaints(|name, text| {
        let stem = Path::new(name).file_stem()?.to_str()?;
        let unfinished = marks.iter().any(|mark| text.contains(mark));
        (EMPTY_NAMES.contains(&stem) || unfinished).then(|| name.to_owned())
    });
    assert!(wrong.is_empty(), "{wrong:?}");
}

/// A file can be read without the files that need it: no two import each other, by whatever detour.
#[test]
fn no_files_import_each_other() {
    let sources = sources();
    let root = "guest-firmware/src/";
    let graph = circles::imports(&sources, root);
    assert!(graph.len() > 15, "{root} has only {} files", graph.len());
    assert_eq!(circles::circles(&graph), Vec::<Vec<&str>>::new(), "files below {root}");
}
