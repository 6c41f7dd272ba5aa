//! Where the journals of handovers are kept.

use std::env::var_os;
use std::fs::DirBuilder;
use std::io::Error as IoError;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use log::warn;
use rustix::process::geteuid;
use thiserror::Error;

use crate::migration::journal::{Journal, JournalError, Record, Side};
use crate::migration::recovery::{Fate, unfinished};
use crate::migration::wire::VmId;
use crate::text::chain_of;

/// Root's journals.
const SYSTEM_DIRECTORY: &str = "/var/lib/sevferry";

/// Opens the journal of `vm` in `directory`, or where this user's journals are, making it if needed.
///
/// # Errors
/// [`NoJournal`]: without a journal a crash could leave two guests running, so nothing is begun.
pub(crate) fn open_journal(
    directory: Option<&Path>,
    vm: VmId,
    side: Side,
) -> Result<Journal, NoJournal> {
    let directory = directory.map_or_else(default_directory, Path::to_owned);
    let mut builder = DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder
        .create(&directory)
        .map_err(|cause| NoJournal::Directory { path: directory.clone(), cause })?;
    Ok(Journal::open(&directory, vm, side)?)
}

/// [`open_journal`], with room reserved for the lines of a handover. Without that room nothing is begun.
///
/// # Errors
/// [`NoJournal`].
pub(crate) fn open_with_room(
    directory: Option<&Path>,
    vm: VmId,
    side: Side,
) -> Result<Journal, NoJournal> {
    let journal = open_journal(directory, vm, side)?;
    journal.reserve()?;
    Ok(journal)
}

/// Tells the user which guests were in doubt when their process ended, and begins to ask their destinations about them.
pub(crate) fn finish_handovers(directory: Option<&Path>) {
    let directory = directory.map_or_else(default_directory, Path::to_owned);
    if !directory.exists() {
        return;
    }
    let found = match unfinished(&directory) {
        Ok(found) => found,
        Err(cause) => return warn!("{}", chain_of(&cause)),
    };
    for found in found {
        let Record { transfer, peer, .. } = found.record();
        eprintln!(
            "sevferry: {transfer} was committed to {peer}, and its process here is gone; asking \
             there until it is known what became of it"
        );
        if let Err(cause) = found.finish(tell_fate) {
            warn!("starting a thread: {cause}");
        }
    }
}

fn tell_fate(record: &Record, fate: Fate) {
    let Record { transfer, peer, .. } = record;
    match fate {
        Fate::Runs => eprintln!("sevferry: {transfer} runs at {peer}"),
        Fate::Lost(because) => eprintln!("sevferry: {transfer} is lost: {because}"),
    }
}

/// A directory that survives a restart of the host, because a handover in doubt must survive it.
fn default_directory() -> PathBuf {
    let home = || var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    if geteuid().is_root() {
        return SYSTEM_DIRECTORY.into();
    }
    let state = var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    state.unwrap_or_else(|| "/var/tmp".into()).join("sevferry")
}

/// Why there is no journal.
#[derive(Debug, Error)]
pub(crate) enum NoJournal {
    /// Its directory.
    #[error("making the directory {} for the journal; name another with --journal", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        cause: IoError,
    },
    /// Its file.
    #[error(transparent)]
    Journal(#[from] JournalError),
}
