//! What travels between two hosts: kinds and caps, messages and page frames as bytes, and what can be wrong with them.
//!
//! No I/O: `net/` carries the bytes. `docs/protocol.md` has every layout.

mod certificates;
mod closing;
#[cfg(test)]
mod codec_tests;
mod cursor;
mod decode;
mod digest;
mod encode;
mod fields;
#[cfg(test)]
mod frame_tests;
mod header;
mod kind;
mod malformed;
mod message;
mod pages;
mod reason;
#[cfg(test)]
mod some_messages;
mod transfer;
mod word;

pub use certificates::CertificatesError;
pub(crate) use certificates::{from_wire, to_wire};
pub use closing::{BadClosing, Closing};
pub use digest::{PayloadDigest, RoundDigest};
pub use header::{FRAME_HEADER_LEN, FrameHeader, MAGIC, VERSION};
pub use kind::{
    ABANDONED_MAX, CERTIFICATES_BYTES_MAX, CLOSING_HEADER_LEN, CONNECTIONS_MAX, Kind,
    MACHINE_OFFER_BYTES_MAX, OBJECTIONS_MAX, PageKind, STATE_BYTES_MAX, STATUS_BYTES_MAX,
    status_bytes_max,
};
pub use malformed::Malformed;
pub use message::{
    Abandoned, Assessment, Message, Objection, Offer, PlatformBytes, RoundEnd, SessionBytes,
};
pub use pages::{
    PACKET_HEADER_LEN, PAGES_HEAD_LEN, PAGES_HEADER_LEN, PAGES_MAX, PagesHeader, Payload,
    decode_numbers, encode_numbers,
};
pub use reason::{NotRunning, Reason};
pub use transfer::{BadVmId, Transfer, VmId};
pub use word::{Proof, Say, Secret, Word};
