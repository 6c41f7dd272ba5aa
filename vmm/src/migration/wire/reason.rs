//! Reasons: text for people, and the codes for why a destination does not run a guest.

use std::fmt::{Display, Formatter, Result as FmtResult};

use serde::{Deserialize, Serialize};

/// Why a destination does not run a guest that it was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NotRunning {
    /// It never ran the guest and does not have it any more: its journal could not be written, or the process that had
    /// the guest is gone.
    GivenBack,
    /// It never ran the guest, and a person had it discard it.
    Discarded,
    /// It could not write its journal. It keeps the guest, because it has the last copy, and tries again.
    JournalFailed,
    /// It owned the guest and has crashed since: the guest is gone there.
    Crashed,
}

impl NotRunning {
    /// All, in the order of their numbers.
    pub const ALL: [Self; 4] =
        [Self::GivenBack, Self::Discarded, Self::JournalFailed, Self::Crashed];

    /// On the wire.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::GivenBack => 0,
            Self::Discarded => 1,
            Self::JournalFailed => 2,
            Self::Crashed => 3,
        }
    }

    /// Whether the destination has no copy and never ran it. Then the source's copy is the newest.
    #[must_use]
    pub fn gives_back(self) -> bool {
        matches!(self, Self::GivenBack | Self::Discarded)
    }
}

impl Display for NotRunning {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::GivenBack => "the destination could not keep the guest, and never ran it",
            Self::Discarded => "the destination was told to discard the guest, and has",
            Self::JournalFailed => "the destination could not write its journal; it keeps trying",
            Self::Crashed => "the destination owned the guest and has crashed since",
        })
    }
}

/// Text for people, from a peer that is not trusted: short, and without control characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Hash, Serialize, Deserialize)]
#[serde(from = "String")]
pub struct Reason(String);

impl From<String> for Reason {
    fn from(text: String) -> Self {
        Self::new(&text)
    }
}

impl Reason {
    /// Bytes of the longest.
    pub const BYTES_MAX: usize = 1024;

    /// `text`, with characters that control a terminal replaced, and cut at [`Reason::BYTES_MAX`].
    #[must_use]
    pub fn new(text: &str) -> Self {
        let mut kept = String::new();
        for char in text.chars().map(|char| if is_harmless(char) { char } else { ' ' }) {
            if kept.len() + char.len_utf8() > Self::BYTES_MAX {
                break;
            }
            kept.push(char);
        }
        Self(kept)
    }

    /// The words.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a character may be shown: no control character, none that changes the direction or place of others, and
/// none that is invisible (Unicode's `Bidi_Control` and most of `Cf`, and the separators of lines).
fn is_harmless(char: char) -> bool {
    let is_format = matches!(
        char,
        '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
    );
    !char.is_control() && !is_format
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A peer cannot fill the terminal, nor steer it.
    #[test]
    fn reasons_are_short_and_harmless() {
        assert_eq!(Reason::new("no\x1b[2Jpe\n").as_str(), "no [2Jpe ");
        assert_eq!(Reason::new("a\u{202e}b\u{2066}c\u{9b}d\u{2028}e").as_str(), "a b c d e");
        let long = Reason::new(&"ü".repeat(600));
        assert_eq!(long.as_str(), "ü".repeat(512));
        assert_eq!(Reason::new(long.as_str()), long);
    }
}
