//! Which guest is moved, and in which attempt.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};
use std::str::FromStr;

use getrandom::Error as RandomError;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use thiserror::Error;

/// Which guest: random, chosen at its launch, and kept wherever it moves.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmId(pub [u8; 16]);

impl VmId {
    /// A new guest's identity.
    ///
    /// # Errors
    /// [`RandomError`] if the system has no randomness.
    pub fn random() -> Result<Self, RandomError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes)?;
        Ok(Self(bytes))
    }
}

impl Display for VmId {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Debug for VmId {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "VmId({self})")
    }
}

impl Serialize for VmId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for VmId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(D::Error::custom)
    }
}

impl FromStr for VmId {
    type Err = BadVmId;

    fn from_str(text: &str) -> Result<Self, BadVmId> {
        let bad = || BadVmId { text: text.chars().take(40).collect() };
        if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let number = u128::from_str_radix(text, 16).map_err(|_not_hex| bad())?;
        Ok(Self(number.to_be_bytes()))
    }
}

/// Text that is not a guest's identity.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("`{text}` is not the identity of a guest: 32 hexadecimal digits are")]
pub struct BadVmId {
    /// The text, cut at 40 characters.
    text: String,
}

/// One attempt to move one guest. The host that owns the guest counts the attempts, so that no message of one attempt
/// is taken for one of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Transfer {
    /// The guest.
    pub vm: VmId,
    /// Counts the attempts to move it, over all hosts.
    pub epoch: u64,
}

impl Display for Transfer {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "guest {}, epoch {}", self.vm, self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An identity reads back from its text, and nothing else does.
    #[test]
    fn identities_are_32_hexadecimal_digits() {
        let vm = VmId(*b"0123456789abcdef");
        assert_eq!(vm.to_string().parse(), Ok(vm));
        for bad in ["", "0", "+0000000000000000000000000000000", &"0".repeat(33), &"g".repeat(32)] {
            assert!(bad.parse::<VmId>().is_err(), "{bad}");
        }
    }
}
