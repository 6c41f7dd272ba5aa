//! The commands: one file each, from its options to its exit code.

mod ask;
mod certificates;
mod check;
mod digest;
mod migrate;
mod preflight;
mod receive;
mod run;

pub(crate) use ask::ask;
pub(crate) use certificates::export;
pub(crate) use check::check;
pub(crate) use digest::digest;
pub(crate) use migrate::migrate;
pub(crate) use preflight::preflight;
pub(crate) use receive::receive;
pub(crate) use run::run;
