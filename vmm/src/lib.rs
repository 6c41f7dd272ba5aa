//! sevferry: a VMM for KVM that boots AMD SEV guests and live-migrates them between two hosts.
//!
//! A module names only modules above it in this list (`tests/tidy` enforces it):
//!
//! | module | owns |
//! |---|---|
//! | [`stream`] | reading and writing what may be slow, full or a pipe: [`stream::write_all`] |
//! | [`socket_file`] | a unix socket in the file system: [`socket_file::SocketFile`] |
//! | `text` | an error with its causes in a line, bytes as digits |
//! | [`saved`] | how state is written down: [`saved::KernelStruct`], [`saved::at_most`] |
//! | [`page`] | page arithmetic: [`page::Gpa`], [`page::Frame`], [`page::PageRange`], [`page::RamLayout`] |
//! | [`encryption`] | which pages are private and which are shared: [`encryption::PageStatus`] |
//! | [`memory`] | guest RAM, and who sees what of it: [`memory::GuestRam`], [`memory::Pages`] |
//! | [`sev`] | the SEV commands, over hardware or the software platform: [`sev::Platform`], [`sev::launch`] |
//! | [`devices`] | the serial port and the ways to stop: [`devices::Ports`] |
//! | [`vcpu`] | vCPU threads and their exits: [`vcpu::Vcpus`], [`vcpu::cpuid`] |
//! | [`boot`] | kernel, initramfs and tables into RAM, in measuring order: [`boot::load`] |
//! | [`machine`] | all of it assembled, run and reported: [`machine::Machine`] |
//! | [`migration`] | a guest on its way to another host: [`migration::Endpoint`] |
//! | [`control`] | the API socket: [`control::api`], [`control::policy`], [`control::Server`] |
//! | [`cli`] | the command line: [`cli::run`] |
//!
//! `docs/design.md` has the files, in order, that a page-status hypercall, a page on its way to another host, and a
//! command go through. A launch goes through `cli/commands/run.rs`, `machine/mod.rs` (the boot sequence),
//! `boot/mod.rs` (what is loaded), `machine/encrypted.rs`, `sev/launch.rs` (the commands), and `sev/software/` or
//! `sev/hardware.rs`.

pub mod boot;
pub mod cli;
pub mod control;
pub mod devices;
pub mod encryption;
pub mod machine;
pub mod memory;
pub mod migration;
pub mod page;
pub mod saved;
pub mod sev;
pub mod socket_file;
pub mod stream;
mod text;
pub mod vcpu;
