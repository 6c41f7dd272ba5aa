//! How a machine's state is written down: lists that are bounded, and structures of the kernel's.

mod at_most;
mod kernel_struct;

pub use at_most::{AtMost, at_most};
pub use kernel_struct::KernelStruct;
