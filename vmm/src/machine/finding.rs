//! One fact about a host, and how it bears on what is wanted.

use serde::Serialize;

/// How a fact bears on what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As needed.
    Ok,
    /// It works without, or only in part.
    Note,
    /// Without this it does not work.
    Missing,
}

/// One fact.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Of what.
    pub subject: &'static str,
    /// How it bears.
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
