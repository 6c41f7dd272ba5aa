//! Guest RAM: which memory backs it, its views, and how the guest's view follows page status.
//!
//! On SEV hardware one mapping serves everyone and the memory controller tells private from
//! shared. The software platform makes the difference real with two memories of the same size,
//! S (shared) and P (private), and three views:
//!
//! | view | who uses it | backed by |
//! |---|---|---|
//! | [`HostView`] | the VMM, devices, migration | S, always |
//! | C=0 (memory slots at the GPA) | the guest, without the C-bit | S where shared, P where private |
//! | C=1 (memory slots at GPA + 2^C) | the guest, with the C-bit | P, always |
//!
//! [`GuestView`] is P as the software firmware holds it. Nothing else in the VMM can reach P.

mod access;
mod advice;
mod device_memory;
mod dirty;
mod error;
mod guest_view;
mod pages;
mod ram;
mod slot;
mod view;

pub use access::is_zero;
pub use device_memory::{DeviceMemory, DeviceSlice, DeviceView};
pub use dirty::DirtyLog;
pub use error::RamError;
pub use guest_view::{GuestView, NotGuestRam};
pub use pages::Pages;
pub use ram::{GuestRam, HostView};
