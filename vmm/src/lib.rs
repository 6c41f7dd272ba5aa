//! sevferry: a VMM for KVM that boots AMD SEV guests and live-migrates them between two hosts.
//!
//! A module names only modules above it in this list (`tests/tidy.rs` enforces it):
//!
//! | module | owns |
//! |---|---|
//! | [`page`] | page arithmetic: [`page::Gpa`], [`page::Frame`], [`page::PageRange`], [`page::RamLayout`] |
//! | [`encryption`] | which pages are private and which are shared: [`encryption::PageStatus`] |

pub mod encryption;
pub mod page;
