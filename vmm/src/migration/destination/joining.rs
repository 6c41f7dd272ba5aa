//! Waits for the page connections to introduce themselves. Other connections are closed, and delay nothing.

use std::time::{Duration, Instant};

use log::info;

use super::error::DestinationError;
use super::intake::IntakeError;
use super::placer::PagePlacer;
use crate::migration::net::{Due, Listener, Lobby, in_all};
use crate::migration::wire::{Message, Offer, Secret};

/// How often a wait checks whether to stop.
const LOOK_UP: Duration = Duration::from_millis(20);

/// Waits until every page connection has introduced itself: at most `silence` since the last message, and for all
/// of them together as long as for one message.
pub(crate) fn accept_connections(
    listener: &Listener,
    offer: &Offer,
    secret: &Secret,
    silence: Duration,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Vec<PagePlacer>, DestinationError> {
    let begun = Instant::now();
    let mut joined: Vec<Option<PagePlacer>> = Vec::new();
    joined.resize_with(usize::from(offer.connections), || None);
    let mut lobby = Lobby::of(Due::JOIN, silence);
    while joined.iter().any(Option::is_none) {
        if stop() {
            return Err(IntakeError::Stopped.into());
        }
        if lobby.last_word().elapsed() > silence || begun.elapsed() > in_all(silence, 0) {
            return Err(DestinationError::Connections { wanted: offer.connections });
        }
        let caller = match lobby.hear(listener, LOOK_UP) {
            None => continue,
            Some(Ok(caller)) => caller,
            Some(Err(cause)) => {
                info!("a connection that is no part of this migration was closed: {cause}");
                continue;
            }
        };
        // A second connection with the same index does not replace the first.
        if let Message::Join { session, index, proof } = caller.first
            && session == offer.session
            && proof.is(&secret.proof_of_join(session, index))
            && let Some(slot @ None) = joined.get_mut(usize::from(index))
        {
            *slot = Some(PagePlacer::new(caller.link.into_stream(), offer.connections));
        } else {
            caller.refuse("this connection is no part of the migration that is under way");
        }
    }
    Ok(joined.into_iter().flatten().collect())
}
