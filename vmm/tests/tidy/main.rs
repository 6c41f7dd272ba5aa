//! The house rules that no lint knows, as tests over the source tree.
#![expect(clippy::unwrap_used, reason = "a tree that cannot be read fails the test")]

mod circles;

use std::collections::BTreeMap;
use std::fs::{read_dir, read_to_string};
use std::path::{Path, PathBuf};

/// Lowest first: a module may name only modules before it.
const ORDER: [&str; 15] = [
    "stream",
    "socket_file",
    "text",
    "saved",
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
const UNSAFE_FILES: [&str; 22] = [
    "vmm/examples/device_bench/plain_reads.rs",
    "vmm/examples/migration_bench/guest.rs",
    "vmm/src/devices/virtio/net/tap.rs",
    "vmm/src/memory/advice.rs",
    "vmm/src/devices/virtio/block/arena.rs",
    "vmm/src/devices/virtio/block/lock.rs",
    "vmm/src/devices/virtio/block/uring.rs",
    "vmm/src/memory/device_memory.rs",
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

/// Columns of a document.
const COLUMNS_MAX: usize = 120;

/// Names that say nothing about what is in a file.
const EMPTY_NAMES: [&str; 4] = ["utils", "util", "common", "helpers"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

/// Every Rust source file of the project, with its path from the top and its text.
fn sources() -> Vec<(String, String)> {
    let mut found = Vec::new();
    let tops = ["vmm/src", "vmm/tests", "vmm/examples", "vmm/fuzz/fuzz_targets", "guest-firmware"];
    let mut folders: Vec<_> = tops.iter().map(|name| root().join(name)).collect();
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

/// The first line has at least two words that are not the file's own name again.
#[test]
fn every_first_line_says_something() {
    let wrong = complaints(|name, text| {
        let line = text.lines().next().unwrap_or_default().trim_start_matches("//! ");
        (new_words(own_name(name), line) < 2).then(|| format!("{name}: {line}"))
    });
    assert!(wrong.is_empty(), "a reader learns nothing from the first line: {wrong:#?}");
    assert_eq!(new_words(own_name("vmm/src/sev/packet/mod.rs"), "All of the packets of SEV."), 1);
    assert_eq!(
        new_words(own_name("vmm/src/sev/packet.rs"), "Packets as the firmware seals them."),
        3
    );
}

/// What a file is called: its folder's name, where its own is that of every folder's face.
fn own_name(path: &str) -> &str {
    let mut parts = path.rsplit('/').map(|part| part.trim_end_matches(".rs"));
    parts.find(|part| !["mod", "lib", "main"].contains(part)).unwrap_or_default()
}

/// How many words of a line, but for the smallest, are not in a file's name.
fn new_words(name: &str, line: &str) -> usize {
    let words = line.split(|c: char| !c.is_alphanumeric()).map(str::to_lowercase);
    let small = ["the", "and", "for", "its", "that", "this", "what", "with", "all"];
    words
        .filter(|word| word.len() > 2 && !small.contains(&word.as_str()))
        .filter(|word| !name.contains(word.trim_end_matches('s')))
        .count()
}

/// A document can be read in a window of 120 columns. Tables and code cannot be broken.
#[test]
fn no_line_of_a_document_is_longer_than_120_columns() {
    let documents = documents();
    assert!(documents.len() > 15, "only {} documents", documents.len());
    let mut wrong = Vec::new();
    for (name, text) in documents {
        let mut is_fenced = false;
        for (number, line) in (1..).zip(text.lines()) {
            is_fenced ^= line.trim_start().starts_with("```");
            let is_code = is_fenced || line.starts_with("    ");
            let is_one_word = !line.trim_start_matches(['-', ' ']).contains(' ');
            let may_be_long = is_code || is_one_word || line.starts_with('|');
            if !may_be_long && line.chars().count() > COLUMNS_MAX {
                wrong.push(format!("{name}:{number}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every document, with its path from the top and its text.
fn documents() -> Vec<(String, String)> {
    let folders = [".", "docs", "docs/decisions"].map(|name| root().join(name));
    let paths = folders.into_iter().flat_map(|folder| read_dir(folder).unwrap());
    paths
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
        .map(|path| (path.display().to_string(), read_to_string(&path).unwrap()))
        .collect()
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

/// A type can be told from every other by its name alone, without a look at the imports.
#[test]
fn no_two_types_have_one_name() {
    let mut places = BTreeMap::<String, Vec<String>>::new();
    for (name, text) in sources() {
        if name.starts_with("vmm/src/") && !circles::is_test(&name) {
            for declared in types(&text) {
                places.entry(declared).or_default().push(name.clone());
            }
        }
    }
    assert!(places.len() > 300, "only {} types: are they still found?", places.len());
    places.retain(|_, files| files.len() > 1);
    assert!(places.is_empty(), "declared more than once: {places:#?}");
    let text = "pub(super) struct A<T> {}\n  enum B\ntype C = A;\n  type Of = B;\n#[cfg(test)]\nmod tests {\nenum D {}";
    assert_eq!(types(text), ["A", "B", "C"]);
}

/// The types that a file declares. What is indented and has no `pub` may be an item of a trait.
fn types(text: &str) -> Vec<String> {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().filter_map(|line| {
        let unindented = line.trim_start();
        let after = match unindented.strip_prefix("pub") {
            Some(after) if after.starts_with('(') => after.split_once(") ")?.1,
            Some(after) => after.strip_prefix(' ')?,
            None => unindented,
        };
        let (kind, rest) = after.split_once(' ')?;
        let declares = match kind {
            "struct" | "enum" | "trait" | "union" => true,
            "type" => line == unindented,
            _ => false,
        };
        let name = rest.split(|c: char| !c.is_alphanumeric()).next()?;
        (declares && name.starts_with(char::is_uppercase)).then(|| name.to_owned())
    });
    lines.collect()
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
    for (root, at_least) in [("vmm/src/", 150), ("guest-firmware/src/", 15)] {
        let graph = circles::imports(&sources, root);
        assert!(graph.len() > at_least, "{root} has only {} files", graph.len());
        assert_eq!(circles::described(&graph), "", "files below {root}");
    }
}
