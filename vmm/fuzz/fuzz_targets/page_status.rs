//! The serial form of page status: refused, or exactly what would be written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sevferry::encryption::{Design, Overflow, PageStatus};
use sevferry::page::RamLayout;

const DESIGNS: [Design; 4] = [
    Design::List(Overflow::Promote),
    Design::List(Overflow::Poison),
    Design::Bitmap,
    Design::Donated,
];

fuzz_target!(|input: (u8, u16, &[u8])| {
    let (design, megabytes, bytes) = input;
    let design = DESIGNS[usize::from(design) % DESIGNS.len()];
    let Ok(layout) = RamLayout::new(u64::from(megabytes % 8192) << 20) else { return };
    let Ok(status) = PageStatus::from_bytes(bytes, layout, design) else { return };
    assert_eq!(status.to_bytes(), bytes);
    let (Ok(shared), Ok(private)) = (status.shared_pages(), status.private_pages()) else { return };
    assert_eq!(shared + private, layout.pages());
});
