//! One fact about a host, and what it means for the guests that are wanted.

use serde::Serialize;

/// What a fact means for the guests that are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As needed.
    Ok,
    /// It works without this, or only in part.
    Note,
    /// Without this it does not work.
    Missing,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its subject.
    pub subject: &'static str,
    /// What it means.
    pub verdict: Verdict,
    /// What was found.
    pub found: String,
    /// What to do, unless all is well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advice: Option<&'static str>,
}

impl Finding {
    pub(super) fn ok(subject: &'static str, found: impl Into<String>) -> Self {
        Self { subject, verdict: Verdict::Ok, found: found.into(), advice: None }
    }

    pub(super) fn note(
        subject: &'static str,
        found: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self { subject, verdict: Verdict::Note, found: found.into(), advice: Some(advice) }
    }

    pub(super) fn missing(
        subject: &'static str,
        found: impl Into<String>,
        advice: &'static str,
    ) -> Self {
        Self { verdict: Verdict::Missing, ..Self::note(subject, found, advice) }
    }
}
