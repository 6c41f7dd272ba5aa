//! The secrets of the guest's owner: found by the table below the reset vector, which is measured.
//!
//! `docs/secrets.md` has the form of both tables. Whatever does not begin with the GUID of a secret table
//! is nobody's secret: the host can put any ciphertext there, but does not know how it decrypts.

use core::fmt::{Display, Formatter, Result as FmtResult};

use crate::physical::{read8, read32, read64};

/// Where the GUID of the table's footer is, and the table's length before it.
const FOOTER: u64 = 0xf_ffd0;
/// Bytes of an entry's length and GUID, which come after its data.
const ENTRY_TAIL: u64 = 18;
/// Bytes of the GUID and the length that come before a secret, and before all of them.
const HEAD: u64 = 20;
/// A table of this kind has a few entries in a page.
const MAX_TABLE: u64 = 0xfd0;

/// `96b582de-1fb2-45f7-baea-a366c55a082d`, `4c2eb361-7d9b-4cc3-8081-127c90d3d294` and
/// `1e74f542-71dd-4d66-963e-ef4287ff173b`.
const TABLE: Guid = Guid(0x45f7_1fb2_96b5_82de, 0x2d08_5ac5_66a3_eaba);
const SECRET_AREA: Guid = Guid(0x4cc3_7d9b_4c2e_b361, 0x94d2_d390_7c12_8180);
const SECRET_TABLE: Guid = Guid(0x4d66_71dd_1e74_f542, 0x3b17_ff87_42ef_3e96);

/// A GUID as its two words of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guid(u64, u64);

impl Guid {
    fn read(at: u64) -> Self {
        Self(read64(at), read64(at + 8))
    }
}

impl Display for Guid {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let Self(low, high) = *self;
        let (second, third) = (low >> 32 & 0xffff, low >> 48);
        let high = high.swap_bytes();
        write!(f, "{:08x}-{second:04x}-{third:04x}-", low & 0xffff_ffff)?;
        write!(f, "{:04x}-{:012x}", high >> 48, high & 0xffff_ffff_ffff)
    }
}

/// Where secrets are: address and length in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) base: u64,
    bytes: u64,
}

/// One secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Secret {
    pub(crate) guid: Guid,
    data: u64,
    pub(crate) bytes: u64,
}

impl Secret {
    /// Whether it is this text, with or without a NUL behind it.
    pub(crate) fn is(self, text: &str) -> bool {
        let same = (self.data..).zip(text.bytes()).all(|(at, byte)| read8(at) == byte);
        let len = text.len() as u64;
        same && (self.bytes == len || self.bytes == len + 1 && read8(self.data + len) == 0)
    }
}

impl Area {
    /// What the table below the reset vector says; `None` without one.
    pub(crate) fn find() -> Option<Self> {
        if Guid::read(FOOTER) != TABLE {
            return None;
        }
        let total = read16(FOOTER - 2);
        let start = (FOOTER + 16).checked_sub(total).filter(|_| total <= MAX_TABLE)?;
        let mut end = FOOTER - 2;
        while end >= start + ENTRY_TAIL {
            let len = read16(end - ENTRY_TAIL);
            let begin = end.checked_sub(len).filter(|&at| len >= ENTRY_TAIL && at >= start)?;
            if Guid::read(end - 16) == SECRET_AREA && len == ENTRY_TAIL + 8 {
                let (base, bytes) = (read32(begin), read32(begin + 4));
                return Some(Self { base: base.into(), bytes: bytes.into() });
            }
            end = begin;
        }
        None
    }

    /// The bytes that the secret table takes; `None` if there is none.
    pub(crate) fn table_bytes(self) -> Option<u64> {
        if self.bytes < HEAD || Guid::read(self.base) != SECRET_TABLE {
            return None;
        }
        let bytes = u64::from(read32(self.base + 16));
        (HEAD..=self.bytes).contains(&bytes).then_some(bytes)
    }

    /// The secrets in a table of so many bytes, up to what is padding.
    pub(crate) fn secrets(self, table_bytes: u64) -> impl Iterator<Item = Secret> {
        let end = self.base + table_bytes;
        let mut at = self.base + HEAD;
        core::iter::from_fn(move || {
            if at + HEAD > end {
                return None;
            }
            let (guid, len) = (Guid::read(at), u64::from(read32(at + 16)));
            if len < HEAD || len > end - at {
                return None;
            }
            let secret = Secret { guid, data: at + HEAD, bytes: len - HEAD };
            at += len;
            Some(secret)
        })
    }
}

fn read16(at: u64) -> u64 {
    u64::from(read8(at)) | u64::from(read8(at + 1)) << 8
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::{SECRET_AREA, SECRET_TABLE, TABLE};

    #[test]
    fn guids_are_those_of_ovmf_and_linux() {
        assert_eq!(TABLE.to_string(), "96b582de-1fb2-45f7-baea-a366c55a082d");
        assert_eq!(SECRET_AREA.to_string(), "4c2eb361-7d9b-4cc3-8081-127c90d3d294");
        assert_eq!(SECRET_TABLE.to_string(), "1e74f542-71dd-4d66-963e-ef4287ff173b");
    }
}
