//! Everything that can be wrong with the bytes of a migration, by name.

use thiserror::Error;

use super::kind::{Kind, PageKind};
use crate::page::Frame;

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[expect(missing_docs, reason = "the messages name the fields")]
pub enum Malformed {
    /// The peer speaks another protocol.
    #[error("the peer does not speak this protocol: a frame starts with {magic:02x?}")]
    Magic { magic: [u8; 4] },
    /// The peer speaks another version.
    #[error(
        "the peer speaks version {theirs} of the protocol and this program version {ours}: use the same release on both hosts"
    )]
    Version { theirs: u16, ours: u16 },
    /// No message has this number.
    #[error("a frame is of kind {number}, which does not exist")]
    UnknownKind { number: u16 },
    /// Longer than its cap. Nothing was allocated.
    #[error("a frame of kind {kind:?} has {length} bytes; at most {most} are allowed")]
    TooLong { kind: Kind, length: u64, most: u32 },
    /// Ends too early.
    #[error("{what} ends too early: {needed} more bytes are needed and {left} are left")]
    Truncated { what: &'static str, needed: usize, left: usize },
    /// Bytes are left over.
    #[error("a frame of kind {kind:?} has {extra} bytes after its end")]
    Trailing { kind: Kind, extra: usize },
    /// A message was expected.
    #[error("page frames are read by their own header, not as messages")]
    Pages,
    /// Pages were expected.
    #[error("a frame of kind {kind:?} came where pages were expected")]
    NotPages { kind: Kind },
    /// A part longer than its cap.
    #[error("{field} has {length} bytes; at most {most} are allowed")]
    FieldTooLong { field: &'static str, length: u64, most: u32 },
    /// A flag that is neither 0 nor 1.
    #[error("{field} is {found}, which is neither 0 nor 1")]
    NotABool { field: &'static str, found: u8 },
    /// Text that is not UTF-8.
    #[error("a reason is not UTF-8 text")]
    NotText,
    /// An unknown number.
    #[error("{field} is {found}, which is not allowed")]
    Value { field: &'static str, found: u64 },
    /// An unknown kind of page.
    #[error("pages are of kind {number}, which does not exist")]
    UnknownPageKind { number: u8 },
    /// No pages, or too many.
    #[error("a page frame has {count} pages; 1 to 64 are allowed")]
    PageCount { count: u8 },
    /// Reserved bits are set.
    #[error("reserved bytes of a page frame's header are {found:#x} instead of 0")]
    Reserved { found: u16 },
    /// The length contradicts the count.
    #[error("a page frame of {count} {kind:?} pages has {length} bytes; {needed} are needed")]
    PagesLength { kind: PageKind, count: u8, length: usize, needed: usize },
    /// The frame numbers do not fit a page frame.
    #[error("{bytes} bytes are not the numbers of 1 to 64 frames")]
    Numbers { bytes: usize },
    /// The frame numbers are out of order, or one repeats.
    #[error("frame {frame} of a page frame does not follow the one before: they must ascend")]
    NotAscending { frame: Frame },
}
