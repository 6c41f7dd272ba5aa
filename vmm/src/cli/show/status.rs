//! A status for people; programs get the reply itself.

use super::devices::device_lines;
use super::launch::launch_facts;
use super::pages::{page_facts, readiness};
use crate::control::api::{PagesReply, State, StatusReply};
use crate::migration::progress::Phase;

/// How things stand, in lines.
pub(crate) fn status_text(status: &StatusReply) -> String {
    let mut lines = vec![format!("guest: {} (process {})", name_of(status.state), status.process)];
    if let Some(launch) = &status.launch {
        let [what, digest, measurement] = launch_facts(launch);
        lines.extend([format!("launch: {what}"), digest, measurement]);
    }
    if let Some(pages) = &status.pages {
        lines.extend(page_lines(pages));
    }
    lines.extend(device_lines(&status.devices));
    if let Some(migration) = &status.migration {
        let which = if migration.phase == Phase::Done { "last migration" } else { "migration" };
        lines.push(format!("{which}: {migration}"));
    }
    lines.join("\n")
}

fn page_lines(pages: &PagesReply) -> Vec<String> {
    let readiness = match readiness(pages) {
        Ok(()) => "can be migrated".to_owned(),
        Err(reason) => format!("cannot be migrated now: {reason}"),
    };
    let mut lines = page_facts(pages);
    if let Some(counts) = lines.first_mut() {
        counts.push_str(&format!("; {readiness}"));
    }
    lines
}

/// A state for people.
fn name_of(state: State) -> &'static str {
    match state {
        State::Starting => "starting or ending",
        State::Paused => "paused before it runs (sevferry continue lets it run)",
        State::Running => "running",
        State::Migrating => "migrating to another host",
        State::Waiting => "none yet; waiting for one",
        State::Receiving => "arriving from another host",
        State::InDoubt => "stopped; the other host may run it (sevferry resolve decides)",
        State::Moved => "moved to another host",
    }
}
