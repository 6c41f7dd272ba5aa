//! No file names another that names it back, by whatever detour: the imports of the tree as a graph.
//!
//! A path (`super::`, `crate::`, or a child's name in a `mod.rs`) leads to the file that defines its last
//! module. A name that a `mod.rs` only hands on leads to the file that it comes from, and the handing on
//! is no import: a folder's face may show what its rooms need of each other.
#![expect(clippy::indexing_slicing, reason = "a source that is cut wrongly fails the test")]

use std::collections::{BTreeMap, BTreeSet};

/// Imports of each file, by paths from the top.
pub(crate) type Graph = BTreeMap<String, BTreeSet<String>>;

/// A path as written, in parts.
type Parts = Vec<String>;

/// The files of a crate: its module paths, and what each file names.
struct Crate<'a> {
    /// From a module path below the root (`migration::source`) to the file that has it.
    files: BTreeMap<Parts, &'a str>,
    /// From a `mod.rs` and a name that it hands on to where the name comes from.
    handed_on: BTreeMap<(&'a str, String), Parts>,
}

/// Who imports whom, in the crate whose sources are below `root` (`vmm/src/`).
pub(crate) fn imports(sources: &[(String, String)], root: &str) -> Graph {
    let texts: Vec<_> = sources
        .iter()
        .filter(|(name, _)| name.starts_with(root) && !is_test(name))
        .map(|(name, text)| (name.as_str(), module_of(name, root), code(text)))
        .collect();
    let files = texts.iter().map(|(name, module, _)| (module.clone(), *name)).collect();
    let mut tree = Crate { files, handed_on: BTreeMap::new() };
    for (name, module, text) in &texts {
        for statement in handing_on(text) {
            for path in paths(statement) {
                let last = path.last().cloned().unwrap_or_default();
                tree.handed_on.insert((name, last), absolute(module, &path));
            }
        }
    }
    texts
        .iter()
        .map(|(name, module, text)| ((*name).to_owned(), tree.named(name, module, text)))
        .collect()
}

impl Crate<'_> {
    /// The files that a file names, but for itself.
    fn named(&self, name: &str, module: &Parts, text: &str) -> BTreeSet<String> {
        let mut rest = text.to_owned();
        for statement in handing_on(text) {
            rest = rest.replace(statement, "");
        }
        // A word alone names no other file: `mod child;` is the tree, not an import.
        let paths = paths(&rest).into_iter().filter(|path| path.len() > 1);
        let found = paths.filter_map(|path| self.file_of(module, &path));
        found.filter(|file| *file != name).map(str::to_owned).collect()
    }

    /// The file that defines what a path leads to, if it is one of this crate's.
    fn file_of(&self, module: &Parts, path: &Parts) -> Option<&str> {
        let roots = ["super", "crate", "self"];
        let child = [module.as_slice(), path.get(..1)?].concat();
        if !roots.contains(&path.first()?.as_str()) && !self.files.contains_key(&child) {
            return None;
        }
        let mut path = absolute(module, path);
        // A name may be handed on more than once.
        for _ in 0..8 {
            let depth =
                (0..=path.len()).rev().find(|&depth| self.files.contains_key(&path[..depth]))?;
            let file = self.files.get(&path[..depth])?;
            let handed_on =
                path.get(depth).and_then(|name| self.handed_on.get(&(*file, name.clone())));
            let Some(from) = handed_on.filter(|from| **from != path) else { return Some(file) };
            path = [from.as_slice(), &path[depth + 1..]].concat();
        }
        None
    }
}

/// Groups of files that import each other in a loop.
pub(crate) fn circles(graph: &Graph) -> Vec<Vec<&str>> {
    let reach: BTreeMap<_, _> =
        graph.keys().map(|file| (file.as_str(), reached(graph, file))).collect();
    let mut circles = BTreeSet::new();
    for (file, from_here) in &reach {
        let back = from_here
            .iter()
            .filter(|other| reach.get(*other).is_some_and(|set| set.contains(file)));
        let circle: Vec<_> = back.copied().collect();
        if !circle.is_empty() {
            circles.insert(circle);
        }
    }
    circles.into_iter().collect()
}

/// Every import that is part of a circle, one a line.
pub(crate) fn described(graph: &Graph) -> String {
    let mut lines = Vec::new();
    for circle in circles(graph) {
        for file in &circle {
            let named = graph.get(*file).into_iter().flatten();
            let within = named.filter(|other| circle.contains(&other.as_str()));
            lines.extend(within.map(|other| format!("{file} names {other}")));
        }
    }
    lines.join("\n")
}

fn reached<'a>(graph: &'a Graph, file: &str) -> BTreeSet<&'a str> {
    let (mut seen, mut open) = (BTreeSet::new(), vec![file]);
    while let Some(next) = open.pop() {
        for other in graph.get(next).into_iter().flatten() {
            if seen.insert(other.as_str()) {
                open.push(other);
            }
        }
    }
    seen
}

pub(crate) fn is_test(name: &str) -> bool {
    name.ends_with("tests.rs") || name.contains("/tests/")
}

/// `vmm/src/migration/source.rs` is `[migration, source]`, and its folder's `mod.rs` `[migration]`.
fn module_of(name: &str, root: &str) -> Parts {
    let path = name.strip_prefix(root).unwrap_or(name).trim_end_matches(".rs");
    let mut parts: Parts = path.split('/').map(str::to_owned).collect();
    if matches!(parts.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        parts.pop();
    }
    parts
}

/// What is compiled into the product: no comments, and nothing of the tests within a file.
fn code(text: &str) -> String {
    let end = text.find("#[cfg(test)]\nmod tests {").unwrap_or(text.len());
    let lines = text[..end].lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.fold(String::new(), |all, line| all + line + "\n")
}

/// The `pub use` statements of a file.
fn handing_on(text: &str) -> Vec<&str> {
    let starts = text.match_indices("\npub").filter_map(|(at, _)| {
        let statement = &text[at + 1..];
        let visible = statement.find("use ").filter(|&at| statement[..at].len() <= 13)?;
        let end = statement.find(';')?;
        (visible < end).then(|| &statement[visible + 4..=end])
    });
    starts.collect()
}

/// A path from the crate's root.
fn absolute(module: &Parts, path: &Parts) -> Parts {
    let mut at = module.clone();
    for (index, part) in path.iter().enumerate() {
        match part.as_str() {
            "crate" => at.clear(),
            "super" => {
                at.pop();
            }
            "self" if index == 0 => {}
            _ => at.push(part.clone()),
        }
    }
    at
}

/// Every path in a text, groups in braces taken apart: `a::{b, c::d}` is `a::b` and `a::c::d`.
fn paths(text: &str) -> Vec<Parts> {
    let mut found = Vec::new();
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        if is_word(bytes[at]) {
            let (end, paths) = path_at(text, at, &Parts::new());
            found.extend(paths);
            at = end;
        } else {
            at += 1;
        }
    }
    found
}

/// The paths that begin at a place, and where they end.
fn path_at(text: &str, start: usize, before: &Parts) -> (usize, Vec<Parts>) {
    let bytes = text.as_bytes();
    let (mut at, mut parts) = (start, before.clone());
    loop {
        let word = at;
        while at < bytes.len() && is_word(bytes[at]) {
            at += 1;
        }
        parts.push(text[word..at].to_owned());
        if !text[at..].starts_with("::") {
            return (at, vec![parts]);
        }
        at += 2;
        if text[at..].starts_with('{') {
            return group_at(text, at + 1, &parts);
        }
        if at >= bytes.len() || !is_word(bytes[at]) {
            return (at, vec![parts]);
        }
    }
}

/// What a group in braces names, and where it ends.
fn group_at(text: &str, start: usize, before: &Parts) -> (usize, Vec<Parts>) {
    let bytes = text.as_bytes();
    let (mut at, mut found) = (start, Vec::new());
    while at < bytes.len() && bytes[at] != b'}' {
        if is_word(bytes[at]) {
            let (end, paths) = path_at(text, at, before);
            found.extend(paths);
            at = end;
        } else {
            at += 1;
        }
    }
    (at + 1, found)
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// The graph sees a circle of three, through a group in braces and a name that a face hands on.
#[test]
fn a_circle_is_seen() {
    let file = |name: &str, text: &str| (format!("vmm/src/{name}"), text.to_owned());
    let face = file("a/mod.rs", "mod b;\nmod c;\nmod d;\npub use b::B;\npub(crate) use c::{C};\n");
    let sources = [
        face.clone(),
        file("a/b.rs", "use super::{C, x::{Y}};\n"),
        file("a/c.rs", "fn c() { crate::a::d::go() }\n"),
        file("a/d.rs", "use super::B;\n#[cfg(test)]\nmod tests {\nuse super::super::c;\n}\n"),
    ];
    let graph = imports(&sources, "vmm/src/");
    let all = ["vmm/src/a/b.rs", "vmm/src/a/c.rs", "vmm/src/a/d.rs"];
    assert_eq!(circles(&graph), [all], "{graph:#?}");
    let broken =
        [face, sources[1].clone(), sources[2].clone(), file("a/d.rs", "// use super::B;\n")];
    assert_eq!(circles(&imports(&broken, "vmm/src/")), Vec::<Vec<&str>>::new());
}
