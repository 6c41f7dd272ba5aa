//! A donated table: whatever the guest's memory holds, and however it changes, each page of RAM is
//! shared or private, and the host neither fails nor reads elsewhere.
#![no_main]

use std::sync::{Arc, Mutex};

use libfuzzer_sys::fuzz_target;
use sevferry::encryption::{Design, PageStatus, TableMemory};
use sevferry::page::{Frame, Gpa, RamLayout};

/// RAM of [`RAM`] bytes that holds `bytes` again and again, each time turned by one more bit.
#[derive(Debug)]
struct Restless {
    bytes: Vec<u8>,
    reads: Mutex<u32>,
}

const RAM: u64 = 4 << 20;

impl TableMemory for Restless {
    fn read_words(&self, at: Gpa, words: &mut [u64]) -> bool {
        let fits = at.0.checked_add(words.len() as u64 * 8).is_some_and(|end| end <= RAM);
        let mut reads = self.reads.lock().expect("nobody panics with it");
        *reads = reads.wrapping_add(1);
        for (index, word) in words.iter_mut().enumerate() {
            let at = usize::try_from(at.0).expect("checked by `fits`, or not used") + index * 8;
            let bytes = std::array::from_fn(|byte| {
                self.bytes.get((at + byte) % (self.bytes.len() + 1)).copied().unwrap_or(0)
            });
            // The head is read once, and must not be refused each time.
            let turn = if *reads > 1 { *reads } else { 0 };
            *word = u64::from_le_bytes(bytes).rotate_left(turn);
        }
        fits
    }
}

fuzz_target!(|input: (u64, &[u8])| {
    let (register, bytes) = input;
    let layout = RamLayout::new(RAM).expect("whole pages");
    let mut status = PageStatus::new(layout, Design::Donated);
    let memory = Restless { bytes: bytes.to_vec(), reads: Mutex::new(0) };
    if status.write_table_register(register, Arc::new(memory)).is_err() {
        return;
    }
    let sample = status.sample();
    // Naming none is right too.
    let Ok(shared) = sample.shared_pages() else { return };
    assert_eq!(shared + sample.private_pages().expect("as before"), layout.pages());
    for frame in (0..layout.pages()).step_by(61).map(Frame) {
        status.status(frame).expect("a bit is an answer, whatever it is");
    }
    let bytes = sample.to_bytes();
    let read = PageStatus::from_bytes(&bytes, layout, Design::Donated).expect("our own bytes");
    assert_eq!(read.to_bytes(), bytes);
});
