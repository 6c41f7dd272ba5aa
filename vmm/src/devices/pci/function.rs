//! What a device has to be, to be in a slot of the bus.

use std::fmt::Debug;

/// What is in a slot.
pub trait PciFunction: Debug + Send + Sync {
    /// The guest reads configuration space.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// The guest writes configuration space.
    fn write_config(&self, offset: u16, data: &[u8]);

    /// Where BAR 0 answers, if it does now.
    fn bar(&self) -> Option<u64>;

    /// The guest reads in BAR 0.
    fn read_bar(&self, offset: u64, data: &mut [u8]);

    /// The guest writes in BAR 0.
    fn write_bar(&self, offset: u64, data: &[u8]);
}
