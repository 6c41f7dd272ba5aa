//! A directory for one test's files, gone when the test is over.

use std::env::temp_dir;
use std::fs::{File, create_dir, remove_dir_all, write};
use std::path::PathBuf;
use std::process;

/// A directory with the files of one test.
#[derive(Debug)]
pub struct Scratch(PathBuf);

impl Scratch {
    /// `name` is the test's own.
    pub fn new(name: &str) -> Self {
        let path = temp_dir().join(format!("sevferry-{name}-{}", process::id()));
        create_dir(&path).expect("a new directory");
        Self(path)
    }

    /// The path of a file that may not be there.
    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("made of text").to_owned()
    }

    /// A file with these bytes.
    pub fn file(&self, name: &str, bytes: impl AsRef<[u8]>) -> String {
        write(self.path(name), bytes).expect("a file of our own");
        self.path(name)
    }

    /// A file of so many zeros, which need no space.
    pub fn zeros(&self, name: &str, bytes: u64) -> String {
        let file = File::create(self.path(name)).expect("a file of our own");
        file.set_len(bytes).expect("a sparse file");
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is in the way of nobody.
        let _left = remove_dir_all(&self.0);
    }
}
