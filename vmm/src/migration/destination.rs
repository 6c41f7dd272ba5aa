//! The incoming half: a list of phases up to a guest that is loaded, checked and paused.
//!
//! offer -> compare -> `RECEIVE_START` -> rounds -> region list and state -> checks ->
//! `RECEIVE_FINISH`, then the handover in `taking_over.rs`.

use std::io::Error as IoError;
use std::time::{Duration, Instant};

use getrandom::Error as RandomError;
use log::info;
use thiserror::Error;
use zerocopy::FromBytes;

use super::arrivals::{Arrivals, BadArrival};
use super::assessment::assess;
use super::building::Words;
use super::caller::{Caller, Line};
use super::certificates::{CertificatesError, to_wire};
use super::intake::{Delivered, IntakeError, take_in};
use super::joining::accept_connections;
use super::journal::{Journal, Side};
use super::link::{Due, Link, LinkError};
use super::message::{Message, NotRunning, Offer, Reason, SessionBytes, Transfer, VmId};
use super::placer::Target;
use super::progress::{Phase, Progress};
use super::recall::{admit, forget, recall};
use super::reception::{Arrived, Reception};
use super::transport::Listener;
use super::watch::{Watch, cancelled};
use super::word::Secret;
use crate::devices::SerialOutput;
use crate::encryption::{Malformed as MalformedStatus, NotMigratable, PageStatus};
use crate::machine::compatibility::{HostOffer, Incompatible, MachineOffer, compare};
use crate::machine::config::PlatformKind;
use crate::machine::{
    MachineError, MachineState, PausedMachine, ReceiveError as MachineReceiveError,
    ReceivingMachine, Undecodable,
};
use crate::sev::certificate::{BadCertificate, Certificate};
use crate::sev::receive::{ReceiveError, Receiving};
use crate::sev::send::SendSession;
use crate::sev::session::Session;

/// What this host receives guests with.
pub struct Host<'a> {
    /// Receives SEV guests; `None` takes plain VMs only.
    pub platform: Option<&'a PlatformKind>,
    /// Where a guest's serial port writes to: open already, so that no guest comes in vain.
    pub output: &'a SerialOutput,
    /// Opens a guest's journal.
    pub journal: &'a mut dyn FnMut(VmId) -> Result<Journal, IoError>,
    /// How long the source may be silent.
    pub silence: Duration,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("platform", &self.platform).finish_non_exhaustive()
    }
}

/// A guest that has arrived whole and is paused here, its owner not yet decided.
#[derive(Debug)]
pub struct Prepared {
    /// The machine.
    pub machine: PausedMachine,
    /// The control connection.
    pub(super) link: Link,
    /// Where it is written down whose it is.
    pub(super) journal: Journal,
    /// Which guest, which attempt.
    pub transfer: Transfer,
    /// What makes words about it count.
    pub(super) secret: Secret,
    /// How it came.
    pub reception: Reception,
}

impl Prepared {
    /// The guest is not to be taken over; its source, which was not told that it is prepared, keeps it.
    pub fn refuse(mut self, why: &str) {
        forget(&mut self.journal, self.transfer);
        Caller::refuse_on(self.link, why);
    }
}

/// What a caller has led to.
#[derive(Debug)]
pub enum Received {
    /// A guest.
    Guest(Box<Prepared>),
    /// The source of an earlier one was told what became of it here, and may have a last word.
    Answered(Transfer, NotRunning, Line),
    /// The source of an earlier one will not ask for it any more.
    Settled(Transfer),
    /// A source was told whether this guest would be taken: so many reasons against it.
    Asked(Transfer, usize),
}

/// Receives one guest from `caller`, or tells it what the journal knows of an earlier one, or whether
/// its guest would be taken.
/// `watch` may cancel it. A refusal is told to the source.
///
/// # Errors
/// [`DestinationError`]; nothing is left of the guest then, and the source keeps it.
pub fn receive(
    caller: Caller,
    listener: &Listener,
    host: &mut Host<'_>,
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
        Ok((machine, (journal, secret), reception)) => {
            let transfer = reception.now().transfer;
            let prepared = Prepared { machine, link, journal, transfer, secret, reception };
            Ok(Received::Guest(Box::new(prepared)))
        }
        Err(cause) => {
            let reason = Reason::new(&super::chain_of(&cause));
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

type Arrival = (PausedMachine, (Journal, Secret), Reception);

fn phases(
    link: &mut Link,
    offer: &Offer,
    listener: &Listener,
    host: &mut Host<'_>,
    watch: &mut dyn Watch,
) -> Result<Arrival, DestinationError> {
    let begun = Instant::now();
    let description = MachineOffer::from_bytes(&offer.machine)?;
    compare(&description, &HostOffer::read(host.platform)?)?;
    // Before anything is sent.
    let (mut journal, secret) = admit(offer, host)?;
    info!("{} is offered", offer.transfer);
    let guest = Expected { begun, offer, description, secret };
    match arrive(link, &guest, listener, host, watch) {
        Ok((machine, reception)) => Ok((machine, (journal, secret), reception)),
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
    host: &mut Host<'_>,
    watch: &mut dyn Watch,
) -> Result<(PausedMachine, Reception), DestinationError> {
    let Expected { begun, offer, ref description, ref secret } = *guest;
    let mut reception = Reception::new(begun, offer.transfer, offer.connections);
    reception.enter(Phase::Attest);
    let output = host.output.clone();
    let arrived = Arrived::default();
    let (mut words, mut lost) = (Words::new(), None);
    let mut pinning = |pinned| {
        reception.pinned(pinned);
        let progress = reception.progress(&arrived);
        lost = words.say(link, pinned, &mut || cancelled(watch, progress).is_some()).err();
        lost.is_some() || cancelled(watch, progress).is_some()
    };
    let built = ReceivingMachine::build(description, host.platform, output, &mut pinning);
    if let Some(cause) = lost {
        return Err(cause.into());
    }
    let mut machine = built?;
    let mut stop = || cancelled(watch, reception.progress(&arrived)).is_some();
    let receiving = start((link, secret, host.silence), &mut machine, description, &mut stop)?;
    let arrivals = Arrivals::new(machine.ram().layout()).ok_or(DestinationError::Memory)?;
    let mut placers = accept_connections(listener, offer, secret, host.silence, &mut stop)?;
    reception.enter(Phase::Rounds);
    let target = Target {
        ram: machine.ram(),
        arrivals: &arrivals,
        receiving: receiving.as_ref(),
        session: offer.session,
        arrived: &arrived,
        silence: host.silence,
    };
    let mut stop = || cancelled(watch, reception.progress(&arrived)).is_some();
    let Delivered { status, state, saved, rounds } =
        take_in(link, &mut placers, &target, &mut stop)?;
    reception.enter(Phase::State);
    let status = check(description, status, &arrivals)?;
    let state = MachineState::from_bytes(&state)?;
    let launched = receiving.map(Receiving::finish).transpose()?;
    let machine = machine.finish((&state, saved), status, launched)?;
    reception.all_arrived(&arrived, rounds);
    info!("{}: all arrived in {rounds} rounds", offer.transfer);
    Ok((machine, reception))
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

impl DestinationError {
    /// Whether nothing is wrong here: the source has given up, and said so.
    #[must_use]
    pub fn is_the_sources_wish(&self) -> bool {
        matches!(
            self,
            Self::Link(LinkError::Refused(_)) | Self::Intake(IntakeError::Abandoned { .. })
        )
    }
}

/// Why a guest could not be received.
#[derive(Debug, Error)]
pub enum DestinationError {
    /// The control connection.
    #[error(transparent)]
    Link(#[from] LinkError),
    /// The offer or the state is no such thing.
    #[error(transparent)]
    Undecodable(#[from] Undecodable),
    /// This host cannot run it.
    #[error(transparent)]
    Incompatible(#[from] Incompatible),
    /// This host's KVM.
    #[error(transparent)]
    Machine(#[from] MachineError),
    /// The journal.
    #[error("a guest cannot be owned here without its journal")]
    Journal(#[source] IoError),
    /// No secret could be made.
    #[error("making the secret of a transfer")]
    Random(#[source] RandomError),
    /// The same attempt once more.
    #[error("{transfer} was here before: its source would offer it with the next epoch")]
    Again {
        /// Which.
        transfer: Transfer,
    },
    /// It may be anybody's.
    #[error("somebody has a word on {transfer}, without a proof that counts here")]
    Unproven {
        /// Which.
        transfer: Transfer,
    },
    /// Listening.
    #[error("accepting connections")]
    Accept(#[from] IoError),
    /// Certificates.
    #[error(transparent)]
    Certificates(#[from] CertificatesError),
    /// The source's certificate.
    #[error("the source's PDH certificate")]
    Pdh(#[from] BadCertificate),
    /// The source's session.
    #[error("the source sent a session of {len} bytes; 128 are due")]
    Session {
        /// Bytes.
        len: usize,
    },
    /// What the source sent and offered do not fit together.
    #[error("what the source sent is not what it offered: SEV or not, and with which policy")]
    Platform,
    /// The guest is too large to keep count of.
    #[error("this host has no memory to count the pages of the guest: offer it to a larger one")]
    Memory,
    /// Page connections are missing.
    #[error("not all of the source's {wanted} page connections came")]
    Connections {
        /// How many were offered.
        wanted: u16,
    },
    /// Pages.
    #[error(transparent)]
    Intake(#[from] IntakeError),
    /// The region list.
    #[error("the source's region list")]
    Status(#[from] MalformedStatus),
    /// The list is that of a guest that must not be moved.
    #[error("the guest should not have been sent")]
    NotMigratable(#[from] NotMigratable),
    /// What arrived.
    #[error(transparent)]
    Arrivals(#[from] BadArrival),
    /// The firmware.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// The machine.
    #[error(transparent)]
    Finish(#[from] MachineReceiveError),
}
