//! The reasons against moving a guest to another host, as a screen for people or as JSON.

use serde_json::json;

use crate::control::api::Hindrance;
use crate::migration::Endpoint;
use crate::migration::preflight::Side;

/// The same for programs, in one line.
pub(crate) fn hindrances_json(to: &Endpoint, hindrances: &[Hindrance]) -> String {
    let would_move = hindrances.is_empty();
    let whole = json!({ "version": 1, "to": to, "would_move": would_move, "reasons": hindrances });
    format!("{whole}\n")
}

/// Every reason, by the side that has it, and the conclusion.
pub(crate) fn hindrances_text(to: &Endpoint, hindrances: &[Hindrance]) -> String {
    let mut text = String::new();
    for (side, title) in
        [(Side::Source, "This side refuses"), (Side::Destination, "The destination refuses")]
    {
        let of_side = hindrances.iter().filter(|hindrance| hindrance.by == side);
        let lines: Vec<_> = of_side
            .map(|Hindrance { subject, reason, .. }| {
                format!("  {:<16} {reason}\n", subject.as_str())
            })
            .collect();
        if !lines.is_empty() {
            text.push_str(&format!("{title}\n{}", lines.concat()));
        }
    }
    text.push_str(&match hindrances.len() {
        0 => format!(
            "Nothing speaks against moving the guest to {to}. (The firmware itself is asked only \
             when it is moved.)\n"
        ),
        1 => format!("The guest would NOT be moved to {to}, for this reason.\n"),
        count => format!("The guest would NOT be moved to {to}, for these {count} reasons.\n"),
    });
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migration::BadEndpoint;

    fn found() -> Vec<Hindrance> {
        let because = |by, subject| Hindrance::new(by, subject, &BadEndpoint::Path);
        vec![because(Side::Source, "policy"), because(Side::Destination, "TSC")]
    }

    /// People read which side refuses, and every reason, or that nothing speaks against it.
    #[test]
    fn a_screen_has_every_reason() {
        let to = "tcp:b:4444".parse().unwrap();
        let text = hindrances_text(&to, &found());
        for part in ["This side refuses\n  policy  ", "destination refuses\n  TSC  ", "2 reasons"] {
            assert!(text.contains(part), "'{part}' in {text}");
        }
        assert!(
            hindrances_text(&to, &[]).starts_with("Nothing speaks against"),
            "{}",
            hindrances_text(&to, &[])
        );
    }

    /// A program reads the same.
    #[test]
    fn json_has_the_same() {
        let to = "tcp:b:4444".parse().unwrap();
        let value: serde_json::Value =
            serde_json::from_str(&hindrances_json(&to, &found())).unwrap();
        assert_eq!(value.pointer("/would_move"), Some(&json!(false)));
        assert_eq!(value.pointer("/reasons/1/by"), Some(&json!("destination")));
        assert_eq!(value.pointer("/reasons/0/subject"), Some(&json!("policy")));
        assert!(hindrances_json(&to, &[]).contains("\"would_move\":true"));
    }
}
