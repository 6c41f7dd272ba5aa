//! What a destination's journal says about guests that were here, and whether an offered guest may come.

use std::io::Error as IoError;

use super::error::DestinationError;
use super::receive_config::ReceiveConfig;
use super::received::Received;
use crate::migration::handover::journal::{Journal, JournalError, forget};
use crate::migration::handover::{
    Destination, DestinationInput, DestinationOutput, DestinationState, Step, advance,
};
use crate::migration::net::{Caller, Line, Link, LinkError};
use crate::migration::wire::{Offer, Secret, Word};

/// The answer to a peer whose word on a guest does not count.
pub(crate) const UNPROVEN: &str = "that word on a guest has no proof that counts here";

/// Answers a word about a guest that this process does not have, or not any more: only the journal can tell the
/// source what became of it.
pub(crate) fn recall(
    mut link: Link,
    word: &Word,
    host: &mut ReceiveConfig<'_>,
) -> Result<Received, DestinationError> {
    let transfer = word.transfer;
    let mut journal = (host.journal)(transfer.vm).map_err(DestinationError::Journal)?;
    let Some((mut half, input)) = remembered(&journal, word) else {
        // The same words whether the guest is known or not, so that a stranger learns nothing.
        Caller::refuse_on(link, UNPROVEN);
        return Err(DestinationError::Unproven { transfer });
    };
    let mut perform = |half: &Destination, output: DestinationOutput| {
        match output {
            DestinationOutput::Send(say) => link.say(&half.word(say).into())?,
            DestinationOutput::Forget => forget(&mut journal, transfer),
            DestinationOutput::WriteJournal(_)
            | DestinationOutput::RunGuest
            | DestinationOutput::TearDown
            | DestinationOutput::Refuse(_) => {}
        }
        Ok::<_, LinkError>(None)
    };
    advance(&mut half, input, &mut perform)?;
    Ok(match (input, half.state) {
        (DestinationInput::Commit { .. }, DestinationState::Dropped(because)) => {
            Received::Answered(transfer, because, Line(link))
        }
        _ => Received::Settled(transfer),
    })
}

/// The destination's state as the journal has it, and the input that the word is.
fn remembered(journal: &Journal, word: &Word) -> Option<(Destination, DestinationInput)> {
    let last = journal.last(word.transfer)?;
    let side = Destination::recovered(last.transfer, last.secret, last.step)?;
    side.hear(word).map(|input| (side, input))
}

/// Writes the secret of this transfer into the journal of an offered guest. Without a journal this host could not
/// become the owner, so the guest is refused.
pub(crate) fn admit(
    offer: &Offer,
    host: &mut ReceiveConfig<'_>,
) -> Result<(Journal, Secret), DestinationError> {
    let transfer = offer.transfer;
    let mut journal = (host.journal)(transfer.vm).map_err(DestinationError::Journal)?;
    for word in offer.abandons() {
        if remembered(&journal, &word).is_some() {
            forget(&mut journal, word.transfer);
        }
    }
    // Otherwise a stranger's secret would replace the source's.
    if journal.last(transfer).is_some() {
        return Err(DestinationError::Again { transfer });
    }
    let secret = Secret::random().map_err(DestinationError::Random)?;
    let accepted = |cause: JournalError| DestinationError::Journal(IoError::other(cause));
    journal.reserve().map_err(accepted)?;
    journal.append(transfer, secret, Step::Accepted, "source").map_err(accepted)?;
    Ok((journal, secret))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::devices::SerialOutput;
    use crate::migration::destination::receive;
    use crate::migration::handover::journal::Side;
    use crate::migration::net::{Due, Listener, Lobby, Stream};
    use crate::migration::watch::Sight;
    use crate::migration::wire::{Abandoned, Message, NotRunning, Reason, Say, Transfer, VmId};

    const SILENCE: Duration = Duration::from_secs(5);

    const SECRET: Secret = Secret([7; 16]);

    fn step_of(journal: &Journal, transfer: Transfer) -> Option<Step> {
        journal.last(transfer).map(|last| last.step)
    }

    /// Gives `first` to a destination without a guest whose journal is in `directory`. Returns the result, and the
    /// peer's end of the connection.
    fn hears(directory: &TempDir, first: &Message) -> (Result<Received, DestinationError>, Link) {
        let mut journal =
            |vm| Journal::open(directory.as_path(), vm, Side::Destination).map_err(IoError::other);
        let output = &SerialOutput::nowhere();
        let silence = SILENCE;
        let platform = None;
        let mut host =
            ReceiveConfig { platform, devices: &[], output, journal: &mut journal, silence };
        let socket = format!("unix:{}", directory.as_path().join("socket").display());
        let endpoint = socket.parse().unwrap();
        let listener = Listener::bind(&endpoint).unwrap();
        let mut source = Link::new(Stream::connect(&endpoint, SILENCE, &|| true).unwrap(), SILENCE);
        source.say(first).unwrap();
        let caller = Lobby::new(SILENCE).hear(&listener, SILENCE).unwrap().unwrap();
        (receive(caller, &listener, &mut host, &mut |_: &Sight<'_>| None), source)
    }

    const TRANSFER: Transfer = Transfer { vm: VmId([5; 16]), epoch: 4 };

    fn journal(directory: &TempDir, steps: &[(Transfer, Step)]) -> Journal {
        let mut journal =
            Journal::open(directory.as_path(), TRANSFER.vm, Side::Destination).unwrap();
        for (transfer, step) in steps {
            journal.append(*transfer, SECRET, *step, "").unwrap();
        }
        journal
    }

    fn commit(secret: &Secret) -> Message {
        Word::new(secret, TRANSFER, Say::Commit { is_last: false }).into()
    }

    /// A source that is back hears what the journal knows, from a process that never had the guest,
    /// and proven; when it says that it has no more to ask, the journal goes.
    #[test]
    fn a_source_that_is_back_is_answered_from_the_journal() {
        let accepted = (TRANSFER, Step::Accepted);
        for (steps, because, last_word) in [
            (&[accepted][..], NotRunning::GivenBack, Say::Abandon(Reason::default())),
            (&[accepted, (TRANSFER, Step::Owner)][..], NotRunning::Crashed, Say::Released),
            (&[accepted, (TRANSFER, Step::Discarded)][..], NotRunning::Discarded, Say::Released),
        ] {
            let directory = TempDir::new().unwrap();
            drop(journal(&directory, steps));
            let (received, mut source) = hears(&directory, &commit(&SECRET));
            let Ok(Received::Answered(TRANSFER, why, _line)) = received else {
                panic!("{received:?}");
            };
            assert_eq!(why, because);
            let answer = source.answer(Due::VERDICT, SILENCE).unwrap();
            assert_eq!(answer, Word::new(&SECRET, TRANSFER, Say::NotRunning(because)).into());
            let last_word = Word::new(&SECRET, TRANSFER, last_word).into();
            let (received, _source) = hears(&directory, &last_word);
            assert!(matches!(received, Ok(Received::Settled(TRANSFER))), "{received:?}");
            assert_eq!(Journal::guests(directory.as_path(), Side::Destination).unwrap(), []);
        }
    }

    /// A stranger without a proof gets the same answer whether the guest is known or not, and changes nothing.
    #[test]
    fn a_stranger_is_not_answered_from_the_journal() {
        let (stranger, other) = (Secret([8; 16]), Transfer { epoch: 3, ..TRANSFER });
        let says = [Say::Commit { is_last: true }, Say::Abandon(Reason::default()), Say::Released];
        let words = says.map(|say| Word::new(&stranger, TRANSFER, say).into());
        for first in words.into_iter().chain([commit(&stranger)]) {
            let known = [(TRANSFER, Step::Accepted), (TRANSFER, Step::Owner)];
            for steps in [&[][..], &[(other, Step::Owner)], &known] {
                let directory = TempDir::new().unwrap();
                drop(journal(&directory, steps));
                let (received, mut source) = hears(&directory, &first);
                assert!(matches!(received, Err(DestinationError::Unproven { .. })), "{received:?}");
                let told = source.answer(Due::VERDICT, SILENCE);
                assert!(
                    matches!(&told, Err(LinkError::Refused(why)) if why.as_str() == UNPROVEN),
                    "{told:?}"
                );
                let left = journal(&directory, &[]);
                assert_eq!(left.records().len(), steps.len());
            }
        }
    }

    /// What an offer says of earlier attempts is believed if it is proven; one attempt is not made
    /// twice, with another's secret.
    #[test]
    fn an_offer_settles_earlier_attempts() {
        let (earlier, stranger) = (Transfer { epoch: 3, ..TRANSFER }, Secret([8; 16]));
        let directory = TempDir::new().unwrap();
        let mut open = |_| Ok(journal(&directory, &[]));
        let output = &SerialOutput::nowhere();
        let silence = SILENCE;
        let platform = None;
        let mut host =
            ReceiveConfig { platform, devices: &[], output, journal: &mut open, silence };
        let mut offer = Offer {
            transfer: TRANSFER,
            session: 1,
            connections: 1,
            abandoned: vec![Abandoned::new(&stranger, earlier)],
            machine: Vec::new(),
        };
        drop(journal(&directory, &[(earlier, Step::Accepted)]));
        let (mut admitted, secret) = admit(&offer, &mut host).unwrap();
        assert_eq!(step_of(&admitted, earlier), Some(Step::Accepted));
        assert_eq!(admitted.last(TRANSFER).unwrap().secret, secret);
        admitted.forget(TRANSFER).unwrap();
        drop(admitted);
        offer.abandoned.push(Abandoned::new(&SECRET, earlier));
        let (admitted, another) = admit(&offer, &mut host).unwrap();
        assert_eq!(step_of(&admitted, earlier), None);
        assert_ne!(secret, another);
        drop(admitted);
        let again = admit(&offer, &mut host);
        assert!(matches!(again, Err(DestinationError::Again { transfer: TRANSFER })), "{again:?}");
    }
}
