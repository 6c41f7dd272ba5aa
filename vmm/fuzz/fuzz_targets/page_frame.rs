//! Page frames' headers and frame numbers: refused, or with one form, and never longer than the cap.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sevferry::migration::wire::{
    FRAME_HEADER_LEN, FrameHeader, PAGES_HEADER_LEN, PAGES_MAX, PagesHeader, decode_numbers,
    encode_numbers,
};
use sevferry::page::Frame;

fuzz_target!(|bytes: &[u8]| {
    let Some((first, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else { return };
    let Ok(frame) = FrameHeader::decode(first) else { return };
    assert!(frame.length() <= frame.kind().length_max() as usize);
    assert_eq!(frame.encode(), *first);
    let Some((second, rest)) = rest.split_first_chunk::<PAGES_HEADER_LEN>() else { return };
    let Ok(header) = PagesHeader::decode(frame, second) else { return };
    assert_eq!(header.encode()[FRAME_HEADER_LEN..], *second);
    let Some(numbers) = rest.get(..header.payload().numbers) else { return };
    let mut room = [Frame(0); PAGES_MAX];
    let Ok(frames) = decode_numbers(numbers, &mut room) else { return };
    let mut again = Vec::new();
    encode_numbers(frames, &mut again);
    assert_eq!(again, numbers);
});
