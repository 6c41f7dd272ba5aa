//! Control messages: whatever a peer sends is refused, or is a message that reads the same again. (Words
//! for people lose their control characters when they are read, so the bytes need not be the same.)
#![no_main]

use libfuzzer_sys::fuzz_target;
use sevferry::migration::wire::{FRAME_HEADER_LEN, FrameHeader};
use sevferry::migration::wire::Message;

fuzz_target!(|bytes: &[u8]| {
    let Some((header, body)) = bytes.split_first_chunk::<FRAME_HEADER_LEN>() else { return };
    let Ok(header) = FrameHeader::decode(header) else { return };
    let Ok(message) = Message::decode(header, body.to_vec()) else { return };
    let written = message.encode().expect("it was within its caps");
    let (header, body) = written.split_first_chunk().expect("a message has a header");
    let header = FrameHeader::decode(header).expect("our own header");
    assert_eq!(Message::decode(header, body.to_vec()).expect("our own message"), message);
});
