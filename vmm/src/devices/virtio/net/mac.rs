//! A MAC address: written, read, and made up for a card that is given none.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// The address of one network card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "[u8; 6]")]
pub struct Mac([u8; 6]);

/// First byte: a group of cards, not one.
const GROUP: u8 = 1;

/// First byte: not one that a manufacturer has given out.
const LOCAL: u8 = 2;

impl Mac {
    /// An address made up of `bytes`, which should be random: one card's, and locally administered.
    #[must_use]
    pub fn local([first, rest @ ..]: [u8; 6]) -> Self {
        let [b, c, d, e, f] = rest;
        Self([first & !GROUP | LOCAL, b, c, d, e, f])
    }

    /// Its bytes, as they are on the wire.
    #[must_use]
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl Display for Mac {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl FromStr for Mac {
    type Err = BadMac;

    fn from_str(text: &str) -> Result<Self, BadMac> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or(BadMac::Form)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_not_hex| BadMac::Form)?;
        }
        if parts.next().is_some() {
            return Err(BadMac::Form);
        }
        Self::try_from(bytes)
    }
}

impl TryFrom<[u8; 6]> for Mac {
    type Error = BadMac;

    fn try_from(bytes: [u8; 6]) -> Result<Self, BadMac> {
        let is_one = bytes[0] & GROUP == 0 && bytes != [0; 6];
        if is_one { Ok(Self(bytes)) } else { Err(BadMac::NotOne) }
    }
}

/// Not the address of a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadMac {
    /// Not six bytes.
    #[error("a MAC address is six bytes in hexadecimal, such as 52:54:00:12:34:56")]
    Form,
    /// Of a group, or nobody's.
    #[error("that is not the address of one card: its first byte must be even, and not all zero")]
    NotOne,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is written is read again, and only one card's address is one.
    #[test]
    fn an_address_is_six_bytes_of_one_card() {
        let text = "52:54:00:ab:cd:ef";
        let mac: Mac = text.parse().unwrap();
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 0xef]);
        assert_eq!(mac.to_string(), text);
        for wrong in
            ["", "52:54:00:ab:cd", "52:54:00:ab:cd:ef:01", "52:54:0:ab:cd:ef", "zz:0:0:0:0:0"]
        {
            assert_eq!(wrong.parse::<Mac>(), Err(BadMac::Form), "{wrong}");
        }
        for wrong in ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "00:00:00:00:00:00"] {
            assert_eq!(wrong.parse::<Mac>(), Err(BadMac::NotOne), "{wrong}");
        }
    }

    /// Whatever the random bytes are, what is made of them is an address that nobody was given.
    #[test]
    fn an_address_that_is_made_up_is_local() {
        for first in 0..=255 {
            let mac = Mac::local([first, 1, 2, 3, 4, 5]);
            assert_eq!(mac.bytes()[0] & 3, 2);
            assert_eq!(mac.to_string().parse(), Ok(mac));
        }
    }
}
