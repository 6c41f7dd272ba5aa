//! The status of a guest's pages for people: the same words in a status and in a report.

use crate::control::api::PagesReply;

/// How many pages are shared and private, how that is recorded, and what is doubtful: one line each.
pub(super) fn page_facts(pages: &PagesReply) -> Vec<String> {
    let counts = match (pages.shared, pages.private) {
        (Some(shared), Some(private)) => format!("{shared} shared, {private} private"),
        _ => "status unknown".to_owned(),
    };
    let record = format!("record: {}, {} bytes", pages.record, pages.record_bytes);
    let mut facts = vec![format!("pages: {counts}"), record];
    facts.extend(pages.doubts.iter().map(|doubt| format!("doubtful: {doubt}")));
    facts
}

/// Whether the guest's pages allow a migration now, or the reason why not.
pub(super) fn readiness(pages: &PagesReply) -> Result<(), &str> {
    pages.not_migratable.as_deref().map_or(Ok(()), Err)
}
