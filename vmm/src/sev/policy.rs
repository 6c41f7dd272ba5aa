//! The guest policy: what the firmware and the host may do with a guest.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};
use std::num::ParseIntError;
use std::str::FromStr;

use thiserror::Error;

/// A guest policy word without reserved bits (AMD document 55766, "Guest Policy").
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Policy(u32);

/// Bits that must be zero.
const RESERVED: u32 = 0xffc0;

/// Every flag with its name, lowest first.
const FLAGS: [(u32, &str); 6] = [
    (Policy::NODBG, "NODBG"),
    (Policy::NOKS, "NOKS"),
    (Policy::ES, "ES"),
    (Policy::NOSEND, "NOSEND"),
    (Policy::DOMAIN, "DOMAIN"),
    (Policy::SEV, "SEV"),
];

impl Policy {
    /// The host may not read or write the guest with the debug commands.
    pub const NODBG: u32 = 1 << 0;
    /// No other guest may share this guest's key.
    pub const NOKS: u32 = 1 << 1;
    /// The guest's registers are encrypted too (SEV-ES).
    pub const ES: u32 = 1 << 2;
    /// The guest may never be sent to another platform.
    pub const NOSEND: u32 = 1 << 3;
    /// The guest may be sent only to platforms with the same owner certificate.
    pub const DOMAIN: u32 = 1 << 4;
    /// The guest may be sent only to platforms whose chain verifies to AMD.
    pub const SEV: u32 = 1 << 5;

    /// The policy with these bits.
    ///
    /// # Errors
    /// [`BadPolicy::Reserved`] if a reserved bit is set.
    pub fn new(bits: u32) -> Result<Self, BadPolicy> {
        match bits & RESERVED {
            0 => Ok(Self(bits)),
            reserved => Err(BadPolicy::Reserved { bits, reserved }),
        }
    }

    /// The word as the firmware takes it.
    #[must_use]
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether all these flags are set.
    #[must_use]
    pub fn has(self, flags: u32) -> bool {
        self.0 & flags == flags
    }

    /// `bits` as people read them, with the names of those that are known; also what is no policy.
    #[must_use]
    pub fn describe(bits: u32) -> String {
        Self::new(bits).map_or_else(|_none| format!("{bits:#x}"), |policy| policy.to_string())
    }

    /// The oldest firmware API that may run the guest: major, minor.
    #[must_use]
    pub fn minimum_api(self) -> (u8, u8) {
        let [_, _, major, minor] = self.0.to_le_bytes();
        (major, minor)
    }
}

impl Default for Policy {
    /// NODBG and SEV: not readable by the host, movable only to a verified platform.
    fn default() -> Self {
        Self(Self::NODBG | Self::SEV)
    }
}

impl FromStr for Policy {
    type Err = BadPolicy;

    fn from_str(text: &str) -> Result<Self, BadPolicy> {
        let bits = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
            Some(hex) => u32::from_str_radix(hex, 16),
            None => text.parse(),
        };
        Self::new(bits.map_err(|cause| BadPolicy::NotANumber { text: text.to_owned(), cause })?)
    }
}

impl Debug for Policy {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        Display::fmt(self, f)
    }
}

impl Display for Policy {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{:#x}", self.0)?;
        let mut separator = " (";
        for (_, name) in FLAGS.iter().filter(|(flag, _)| self.has(*flag)) {
            write!(f, "{separator}{name}")?;
            separator = " ";
        }
        if self.minimum_api() != (0, 0) {
            let (major, minor) = self.minimum_api();
            write!(f, "{separator}API>={major}.{minor}")?;
            separator = " ";
        }
        if separator == " " { f.write_str(")") } else { Ok(()) }
    }
}

/// Why a policy is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BadPolicy {
    /// Not a number.
    #[error("guest policy {text:?} is not a number of 32 bits; write it as 0x21 or 33")]
    NotANumber {
        /// What was given.
        text: String,
        /// Why it is not a number.
        #[source]
        cause: ParseIntError,
    },
    /// Reserved bits are set.
    #[error(
        "guest policy {bits:#x} sets reserved bits {reserved:#x}; only bits 0-5 and 16-31 exist"
    )]
    Reserved {
        /// The whole word.
        bits: u32,
        /// Those that must be zero.
        reserved: u32,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A policy is read in hexadecimal or decimal, and shown with its names.
    #[test]
    fn reads_and_shows_flags() {
        assert_eq!("0x21".parse::<Policy>().unwrap(), Policy::default());
        assert_eq!("33".parse::<Policy>().unwrap().to_string(), "0x21 (NODBG SEV)");
        assert_eq!(Policy::new(0).unwrap().to_string(), "0x0");
        let old = Policy::new(0x1101_0001).unwrap();
        assert_eq!(old.minimum_api(), (1, 0x11));
        assert_eq!(old.to_string(), "0x11010001 (NODBG API>=1.17)");
    }

    /// Each reserved bit alone, and text that is no number, is refused.
    #[test]
    fn refuses_reserved_bits_and_words() {
        for bit in 0..32 {
            assert_eq!(Policy::new(1 << bit).is_err(), (6..16).contains(&bit), "bit {bit}");
        }
        for text in ["", "0x", "sev", "-1", "0x1_0000", "4294967296", "0x21 "] {
            assert!(text.parse::<Policy>().is_err(), "{text:?}");
        }
    }
}
