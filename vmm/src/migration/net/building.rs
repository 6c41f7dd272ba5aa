//! Progress messages of a destination whose machine takes long to make: on SEV hardware all of the guest's
//! memory is pinned before the guest is accepted.
//!
//! The destination sends now and then how many pages are pinned. The source waits as long as that number grows.
//! The source knows how many pages there are and their number only grows, so it notices a destination that makes
//! no progress by the silence, and one that never ends by [`BUILDING_TIME_MAX`].

use std::time::{Duration, Instant};

use super::due::LinkError;
use super::link::Link;
use crate::machine::pinning::Pinned;
use crate::migration::wire::Message;

/// How often the destination sends its progress. For a machine that is made sooner it sends none.
pub(crate) const WORD_EVERY: Duration = Duration::from_secs(1);

/// How long a machine may take. The largest guest has 8 TiB; pinning takes a second or so for a few GiB.
pub(crate) const BUILDING_TIME_MAX: Duration = Duration::from_secs(4 * 60 * 60);

/// The destination's side.
#[derive(Debug)]
pub(crate) struct Words {
    said: Instant,
    pages: u64,
}

impl Words {
    pub(crate) fn new() -> Self {
        Self { said: Instant::now(), pages: 0 }
    }

    /// Sends how much is pinned, if it is time, and checks that the source is still there.
    ///
    /// # Errors
    /// [`LinkError`] if the source has given up, or sent a message that is not allowed now.
    pub(crate) fn say(
        &mut self,
        link: &mut Link,
        pinned: Pinned,
        stop: &mut dyn FnMut() -> bool,
    ) -> Result<(), LinkError> {
        link.nothing_said(stop)?;
        if self.said.elapsed() < WORD_EVERY || pinned.pages <= self.pages {
            return Ok(());
        }
        (self.said, self.pages) = (Instant::now(), pinned.pages);
        link.say(&Message::Building(pinned))
    }
}

/// The source's side.
#[derive(Debug)]
pub(crate) struct Heard {
    begun: Instant,
    /// All pages of the guest.
    of: u64,
    /// Pages that were pinned at the last message.
    pages: u64,
}

impl Heard {
    /// No message yet, for a guest with so many bytes of RAM.
    pub(crate) fn of_guest(ram_bytes: u64) -> Self {
        Self { begun: Instant::now(), of: ram_bytes.div_ceil(crate::page::PAGE_SIZE), pages: 0 }
    }

    /// A message has come: the source's wait starts again.
    ///
    /// # Errors
    /// [`LinkError::Stuck`] if it is no progress, or not about this guest; [`LinkError::Endless`].
    pub(crate) fn hear(&mut self, pinned: Pinned) -> Result<(), LinkError> {
        if self.begun.elapsed() > BUILDING_TIME_MAX {
            return Err(LinkError::Endless { patience: BUILDING_TIME_MAX });
        }
        if pinned.of != self.of || pinned.pages <= self.pages {
            return Err(LinkError::Stuck { pages: pinned.pages, of: pinned.of });
        }
        self.pages = pinned.pages;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::migration::Listener;
    use crate::migration::net::Due;
    use crate::migration::net::stream::Stream;
    use crate::migration::wire::{Reason, Say, Secret, Transfer, VmId, Word};

    const SILENCE: Duration = Duration::from_secs(10);

    /// Both ends of a connection.
    fn links() -> (Link, Link) {
        let directory = TempDir::new().unwrap();
        let to = format!("unix:{}", directory.as_path().join("socket").display()).parse().unwrap();
        let listener = Listener::bind(&to).unwrap();
        let source = Stream::connect(&to, SILENCE, &|| true).unwrap();
        let accepted = loop {
            if let Some(stream) = listener.accept(SILENCE).unwrap() {
                break stream;
            }
        };
        (Link::new(source, SILENCE), Link::new(accepted, SILENCE))
    }

    fn pinned(pages: u64) -> Pinned {
        Pinned { pages, of: 100 }
    }

    /// A word a second at most, and none that says the same again.
    #[test]
    fn words_are_few() {
        let (mut source, mut destination) = links();
        let mut words = Words::new();
        for pages in 0..50 {
            words.say(&mut destination, pinned(pages), &mut || false).unwrap();
        }
        source.nothing_said(&mut || false).unwrap();
        words.said -= WORD_EVERY;
        words.say(&mut destination, pinned(50), &mut || false).unwrap();
        words.say(&mut destination, pinned(60), &mut || false).unwrap();
        words.said -= WORD_EVERY;
        words.say(&mut destination, pinned(50), &mut || false).unwrap();
        let word = source.answer(Due::ACCEPT, SILENCE).unwrap();
        assert_eq!(word, Message::Building(pinned(50)));
        source.nothing_said(&mut || false).unwrap();
    }

    /// A source that gives up meanwhile is heard at the next piece, not when all is pinned.
    #[test]
    fn a_source_that_gives_up_is_heard() {
        let (mut source, mut destination) = links();
        let mut words = Words::new();
        let transfer = Transfer { vm: VmId([1; 16]), epoch: 1 };
        source
            .say(&Word::new(&Secret([1; 16]), transfer, Say::Abandon(Reason::new("enough"))).into())
            .unwrap();
        let until = Instant::now() + SILENCE;
        let refused = loop {
            match words.say(&mut destination, pinned(1), &mut || false) {
                Ok(()) if Instant::now() < until => thread::yield_now(),
                said => break said.unwrap_err(),
            }
        };
        assert!(refused.to_string().contains("enough"), "{refused}");
    }

    /// Pages only grow, up to the guest's, and a word without news is none.
    #[test]
    fn only_news_count() {
        let mut heard = Heard::of_guest(100 * 4096);
        for pages in [1, 2, 99, 100] {
            heard.hear(pinned(pages)).unwrap();
        }
        for (pages, of) in [(100, 100), (50, 100), (101, 200)] {
            let refused = heard.hear(Pinned { pages, of }).unwrap_err().to_string();
            assert!(refused.contains(&format!("{pages} of {of} pages")), "{refused}");
        }
        let mut heard = Heard::of_guest(100 * 4096);
        let Some(long_ago) = Instant::now().checked_sub(BUILDING_TIME_MAX + WORD_EVERY) else {
            return;
        };
        heard.begun = long_ago;
        assert!(heard.hear(pinned(1)).unwrap_err().to_string().contains("4 hours"));
    }
}
