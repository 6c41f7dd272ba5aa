//! Commands of the driver in the control queue: what it says, as a value.

use crate::devices::virtio::{Broken, DescriptorChain};

/// Longest command that we know, with class and number.
const COMMAND_BYTES_MAX: usize = 10;

/// A command, well formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NetCommand {
    /// The driver has announced itself.
    Announced,
    /// So many queue pairs are used.
    Pairs(u16),
    /// This of what was accepted may be undone in packets that it gets.
    Offloads(u64),
    /// What we do not know, or not in this length.
    Unknown,
}

impl NetCommand {
    /// Reads the command of a chain, which has room for the answer.
    ///
    /// # Errors
    /// [`Broken`] if it has not, or is no command at all.
    pub(super) fn read(chain: &mut DescriptorChain<'_>) -> Result<Self, Broken> {
        if chain.readable_bytes() < 2 || chain.writable_bytes() < 1 {
            let why = "a control command without a number, or without room for the answer";
            return Err(Broken::Request(why.to_owned()));
        }
        let is_longer = chain.readable_bytes() > COMMAND_BYTES_MAX as u64;
        let mut bytes = [0; COMMAND_BYTES_MAX];
        let length = chain.read(&mut bytes);
        Ok(match bytes.get(..length) {
            Some([3, 0]) => Self::Announced,
            Some(&[4, 0, low, high]) => Self::Pairs(u16::from_le_bytes([low, high])),
            Some([5, 0, offloads @ ..]) if !is_longer => offloads
                .first_chunk()
                .map_or(Self::Unknown, |o| Self::Offloads(u64::from_le_bytes(*o))),
            _ => Self::Unknown,
        })
    }
}
