//! The incoming half: a list of phases up to a guest that is loaded, checked and paused.
//!
//! offer -> compare -> `RECEIVE_START` -> rounds -> region list and state -> checks ->
//! `RECEIVE_FINISH`, then the handover in `handover.rs`.

pub(crate) mod arrivals;
mod error;
mod handover;
#[cfg(test)]
mod hostile_tests;
mod intake;
mod joining;
pub(crate) mod placer;
mod recall;
mod receive_config;
mod received;

pub use error::DestinationError;
pub use handover::{Answering, Taken, keep_answering, take_over};
pub use receive_config::ReceiveConfig;
pub use received::{Prepared, Received};

use std::time::{Duration, Instant};

use log::info;
use zerocopy::FromBytes;

use self::arrivals::Arrivals;
use self::intake::{Delivered, IntakeError, take_in};
use self::joining::accept_connections;
use self::placer::PageTarget;
use self::recall::{admit, recall};
use crate::encryption::PageStatus;
use crate::machine::compatibility::{HostOffer, MachineOffer, compare};
use crate::machine::{MachineError, MachineState, PausedMachine, ReceivingMachine};
use crate::migration::account::{Account, Tally};
use crate::migration::handover::journal::{Journal, Side, forget};
use crate::migration::net::{Caller, Due, Link, LinkError, Listener, Words};
use crate::migration::preflight::assess;
use crate::migration::progress::{Phase, Progress};
use crate::migration::watch::{Watch, cancelled};
use crate::migration::wire::{
    CertificatesError, Message, Offer, Reason, Secret, SessionBytes, to_wire,
};
use crate::sev::certificate::Certificate;
use crate::sev::receive::Receiving;
use crate::sev::send::SendSession;
use crate::sev::session::Session;
use crate::text::chain_of;

/// Receives one guest from `caller`, or tells it what the journal knows of an earlier one, or whether
/// its guest would be taken.
/// `watch` may cancel it. A refusal is told to the source.
///
/// # Errors
/// [`DestinationError`]; nothing is left of the guest then, and the source keeps it.
pub fn receive(
    caller: Caller,
    listener: &Listener,
    host: &mut ReceiveConfig<'_>,
    watch: &mut dyn Watch,
) -> Result<Received, DestinationError> {
    let Caller { mut link, first } = caller;
    if let Message::Word(word) = &first {
        return recall(link, word, host);
    }
    if let Message::Inquiry(offer) = &first {
        let assessment = assess(offer, host, &mut link, watch);
        let against = assessment.objections.len();
        let progress = Progress::new(offer.transfer, Side::Destination);
        link.send(&Message::Assessment(assessment), &mut || cancelled(watch, &progress).is_some())?;
        return Ok(Received::Asked(offer.transfer, against));
    }
    let received = match &first {
        Message::Offer(offer) => phases(&mut link, offer, listener, host, watch),
        Message::Refuse { reason } => Err(LinkError::Refused(reason.clone()).into()),
        Message::Accept { .. }
        | Message::Start { .. }
        | Message::Started
        | Message::Join { .. }
        | Message::RoundEnd(_)
        | Message::RoundOk { .. }
        | Message::StatusList(_)
        | Message::State(_)
        | Message::Word(_)
        | Message::Inquiry(_)
        | Message::Assessment(_)
        | Message::Building(_) => Err(LinkError::unexpected("an offer").into()),
    };
    match received {
        Ok((machine, (journal, secret), account)) => {
            let transfer = account.now().transfer;
            let prepared = Prepared { machine, link, journal, transfer, secret, account };
            Ok(Received::Guest(Box::new(prepared)))
        }
        Err(cause) => {
            let reason = Reason::new(&chain_of(&cause));
            // The source may be gone: then it needs no reason.
            link.say(&Message::Refuse { reason }).unwrap_or_default();
            Err(cause)
        }
    }
}

/// A guest that may come.
struct Expected<'a> {
    begun: Instant,
    offer: &'a Offer,
    description: MachineOffer,
    secret: Secret,
}

type Arrived = (PausedMachine, (Journal, Secret), Account);

fn phases(
    link: &mut Link,
    offer: &Offer,
    listener: &Listener,
    host: &mut ReceiveConfig<'_>,
    watch: &mut dyn Watch,
) -> Result<Arrived, DestinationError> {
    let begun = Instant::now();
    let description = MachineOffer::from_bytes(&offer.machine)?;
    compare(&description, &HostOffer::read(host.platform, host.devices)?)?;
    // Before anything is sent.
    let (mut journal, secret) = admit(offer, host)?;
    info!("{} is offered", offer.transfer);
    let guest = Expected { begun, offer, description, secret };
    match arrive(link, &guest, listener, host, watch) {
        Ok((machine, account)) => Ok((machine, (journal, secret), account)),
        Err(cause) => {
            // It was not said that the guest is prepared: the source will never ask.
            forget(&mut journal, offer.transfer);
            Err(cause)
        }
    }
}

fn arrive(
    link: &mut Link,
    guest: &Expected<'_>,
    listener: &Listener,
    host: &mut ReceiveConfig<'_>,
    watch: &mut dyn Watch,
) -> Result<(PausedMachine, Account), DestinationError> {
    let Expected { begun, offer, ref description, ref secret } = *guest;
    let (transfer, connections) = (offer.transfer, offer.connections);
    let mut account = Account::new(begun, transfer, Side::Destination, connections);
    account.enter(Phase::Attest);
    let output = host.output.clone();
    let tally = Tally::default();
    let (mut words, mut lost) = (Words::new(), None);
    let mut pinning = |pinned| {
        account.pinned(pinned);
        let progress = account.progress(&tally);
        lost = words.say(link, pinned, &mut || cancelled(watch, progress).is_some()).err();
        lost.is_some() || cancelled(watch, progress).is_some()
    };
    let (platform, devices) = (host.platform, host.devices);
    let built = ReceivingMachine::build(description, platform, devices, output, &mut pinning);
    if let Some(cause) = lost {
        return Err(cause.into());
    }
    let mut machine = built?;
    let mut stop = || cancelled(watch, account.progress(&tally)).is_some();
    let receiving = start((link, secret, host.silence), &mut machine, description, &mut stop)?;
    let arrivals = Arrivals::new(machine.ram().layout()).ok_or(DestinationError::Memory)?;
    let mut placers = accept_connections(listener, offer, secret, host.silence, &mut stop)?;
    account.enter(Phase::Rounds);
    let target = PageTarget {
        ram: machine.ram(),
        arrivals: &arrivals,
        receiving: receiving.as_ref(),
        session: offer.session,
        tally: &tally,
        silence: host.silence,
    };
    let mut stop = || cancelled(watch, account.progress(&tally)).is_some();
    let Delivered { status, state, saved, rounds } =
        take_in(link, &mut placers, &target, &mut stop)?;
    account.enter(Phase::State);
    let status = check(description, status, &arrivals)?;
    let state = MachineState::from_bytes(&state)?;
    let launched = receiving.map(Receiving::finish).transpose()?;
    let machine = machine.finish((&state, saved), status, launched)?;
    account.all_arrived(&tally, rounds);
    info!("{}: all arrived in {rounds} rounds", offer.transfer);
    Ok((machine, account))
}

/// Says what this platform is, and takes the session that the source has made for it.
fn start(
    (link, secret, silence): (&mut Link, &Secret, Duration),
    machine: &mut ReceivingMachine,
    description: &MachineOffer,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Option<Receiving>, DestinationError> {
    let own = machine.platform_certificates().map_err(CertificatesError::Own)?;
    let platform = own.as_ref().map(to_wire);
    let encrypted = platform.is_some();
    link.send(&Message::Accept { secret: *secret, platform }, stop)?;
    let started = link.answer_unless(Due::START, silence, stop)?;
    let Message::Start { encryption } = started.ok_or(IntakeError::Stopped)? else {
        return Err(LinkError::unexpected("a start").into());
    };
    let receiving = match (encryption, encrypted) {
        (None, false) => None,
        (Some(bytes), true) => {
            let session = session_of(&bytes, description)?;
            let initialised = machine.take_initialised().ok_or(DestinationError::Platform)?;
            Some(initialised.start_receive(&session)?)
        }
        _ => return Err(DestinationError::Platform),
    };
    link.say(&Message::Started)?;
    Ok(receiving)
}

fn session_of(
    bytes: &SessionBytes,
    description: &MachineOffer,
) -> Result<SendSession, DestinationError> {
    let offered = description.sev.map(|sev| sev.policy);
    if offered != Some(bytes.policy) {
        return Err(DestinationError::Platform);
    }
    let source_pdh = Certificate::decode(&bytes.pdh)?;
    let session = Session::read_from_bytes(&bytes.session)
        .map_err(|_length| DestinationError::Session { len: bytes.session.len() })?;
    Ok(SendSession { policy: bytes.policy, source_pdh, session })
}

/// Every page has arrived, as what the region list says.
fn check(
    description: &MachineOffer,
    status: Option<Vec<u8>>,
    arrivals: &Arrivals,
) -> Result<Option<PageStatus>, DestinationError> {
    let status = match (description.sev, status) {
        (None, None) => None,
        (Some(sev), Some(bytes)) => {
            let layout = description.ram().map_err(MachineError::OfferedRam)?;
            let status = PageStatus::from_bytes(&bytes, layout, sev.status)?;
            // A source asks this last; one that did not must not make it our loss.
            status.migratable()?;
            Some(status)
        }
        _ => return Err(DestinationError::Platform),
    };
    arrivals.check(status.as_ref())?;
    Ok(status)
}
