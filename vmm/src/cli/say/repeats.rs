//! Limits messages that come again and again: at most one a second from each place in the source, and a count of those
//! left out.
//!
//! A stranger that connects thousands of times a second must not fill a disk. Pure data: no I/O.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// Where in the source a message comes from.
pub(crate) type CallSite = (&'static str, u32);

/// Least time between two messages from one place.
const BETWEEN: Duration = Duration::from_secs(1);

/// Most bytes of a message: a part of it may be a stranger's text.
const BYTES_MAX: usize = 2048;

/// The recent messages from each place.
#[derive(Debug, Default)]
pub(crate) struct Repeats(HashMap<CallSite, Recent>);

#[derive(Debug)]
struct Recent {
    /// When the next message may come.
    after: Instant,
    held: Option<HeldBack>,
}

/// The messages that came too early.
#[derive(Debug)]
struct HeldBack {
    newest: String,
    /// The newest among them.
    count: u64,
}

impl Repeats {
    /// Returns `text` if it may be printed now. Else it is held back until [`Repeats::due`], or until a newer message
    /// takes its place.
    pub(crate) fn admit(&mut self, kind: CallSite, text: String, now: Instant) -> Option<String> {
        let text = cut(text);
        let recent = self.0.entry(kind).or_insert(Recent { after: now, held: None });
        if let Some(held) = &mut recent.held {
            *held = HeldBack { newest: text, count: held.count.saturating_add(1) };
            return None;
        }
        if now < recent.after {
            recent.held = Some(HeldBack { newest: text, count: 1 });
            return None;
        }
        recent.after = now + BETWEEN;
        Some(text)
    }

    /// The messages that were held back and may be printed now.
    pub(crate) fn due(&mut self, now: Instant) -> Vec<String> {
        let due = self.0.values_mut().filter(|recent| recent.after <= now);
        due.filter_map(|recent| {
            let held = recent.held.take()?;
            recent.after = now + BETWEEN;
            Some(held.text())
        })
        .collect()
    }

    /// All that was held back.
    pub(crate) fn release(&mut self) -> Vec<String> {
        let all = self.0.values_mut();
        all.filter_map(|recent| recent.held.take()).map(HeldBack::text).collect()
    }

    /// When the next message that was held back may be printed.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let holding = self.0.values().filter(|recent| recent.held.is_some());
        holding.map(|recent| recent.after).min()
    }
}

impl HeldBack {
    fn text(self) -> String {
        match self.count {
            0 | 1 => self.newest,
            count => format!("{} (and {} more like it)", self.newest, count - 1),
        }
    }
}

fn cut(mut text: String) -> String {
    if text.len() > BYTES_MAX {
        text.truncate(text.floor_char_boundary(BYTES_MAX));
        text.push_str("...");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: CallSite = ("a.rs", 1);
    const OTHER: CallSite = ("a.rs", 2);

    /// The first comes at once; of those in the second after it the newest comes, with their number;
    /// and so on. Another kind is not kept waiting.
    #[test]
    fn one_a_second_of_a_kind_and_a_count() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let mut admit = |kind, text: &str, ms| repeats.admit(kind, text.to_owned(), at(ms));
        assert_eq!(admit(ONE, "one", 0).as_deref(), Some("one"));
        for number in 0..1000 {
            assert_eq!(admit(ONE, &format!("again {number}"), number / 2), None);
        }
        assert_eq!(admit(OTHER, "other", 500).as_deref(), Some("other"));
        assert_eq!(repeats.next_due(), Some(at(1000)));
        assert_eq!(repeats.due(at(999)), Vec::<String>::new());
        assert_eq!(repeats.due(at(1000)), ["again 999 (and 999 more like it)"]);
        assert_eq!(repeats.next_due(), None);
        assert_eq!(repeats.admit(ONE, "late".to_owned(), at(1500)), None);
        assert_eq!(repeats.next_due(), Some(at(2000)));
        assert_eq!(repeats.release(), ["late"]);
        assert_eq!(repeats.admit(ONE, "free".to_owned(), at(2000)).as_deref(), Some("free"));
    }

    /// What is late itself does not let a newer one pass it.
    #[test]
    fn nothing_overtakes_what_is_held() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        assert!(repeats.admit(ONE, "one".to_owned(), start).is_some());
        assert!(repeats.admit(ONE, "two".to_owned(), start).is_none());
        let late = start + 5 * BETWEEN;
        assert!(repeats.admit(ONE, "three".to_owned(), late).is_none());
        assert_eq!(repeats.due(late), ["three (and 1 more like it)"]);
    }

    /// A long text is cut, between characters.
    #[test]
    fn a_text_has_a_bound() {
        let long = "\u{e4}".repeat(BYTES_MAX);
        let said = Repeats::default().admit(ONE, format!("x{long}"), Instant::now()).unwrap();
        assert_eq!(said.len(), BYTES_MAX - 1 + 3);
        assert!(said.ends_with("\u{e4}..."));
    }
}
