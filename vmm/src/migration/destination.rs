//! The incoming half: a list of phases up to a guest that is loaded, checked and paused.
//!
//! offer -> compare -> `RECEIVE_START` -> rounds -> region list and state -> checks ->
//! `RECEIVE_FINISH`, then the handover in `taking_over.rs`.

use std::io::Write;
use std::time::{Duration, Instant};

use log::info;
use thiserror::Error;
use zerocopy::FromBytes;

use super::arrivals::{Arrivals, BadArrival};
use super::certificates::{CertificatesError, to_wire};
use super::intake::{Delivered, IntakeError, take_in};
use super::link::{Link, LinkError};
use super::message::{Message, Offer, Reason, SessionBytes, Transfer};
use super::placer::{PagePlacer, Target};
use super::progress::{Phase, Progress};
use super::reception::{Arrived, Reception};
use super::transport::{Listener, Stream};
use crate::encryption::{Malformed as MalformedStatus, PageStatus};
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

/// How long a peer may take for its first message, and for all of its page connections.
const GREETING_MAX: Duration = Duration::from_secs(10);

/// How long the source may take between phases.
const ANSWER_MAX: Duration = Duration::from_secs(30);

/// What this host receives guests with.
pub struct Host<'a> {
    /// Receives SEV guests; `None` takes plain VMs only.
    pub platform: Option<&'a PlatformKind>,
    /// Where a guest's serial port writes to.
    pub output: &'a mut dyn FnMut() -> Result<Box<dyn Write + Send>, std::io::Error>,
}

impl std::fmt::Debug for Host<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("platform", &self.platform).finish_non_exhaustive()
    }
}

/// Hears how far it is, and says whether to stop.
pub type LookUp<'a> = dyn FnMut(&Progress) -> bool + 'a;

/// A guest that has arrived whole and is paused here, its owner not yet decided.
#[derive(Debug)]
pub struct Prepared {
    /// The machine.
    pub machine: PausedMachine,
    /// The control connection.
    pub(super) link: Link,
    /// Which guest, which attempt.
    pub transfer: Transfer,
    /// How it came.
    pub reception: Reception,
}

/// Receives one guest from `stream`. `look_up` is told now and then how far it is, and says whether
/// to stop. A refusal is told to the source.
///
/// # Errors
/// [`DestinationError`]; nothing is left of the guest then, and the source keeps it.
pub fn receive(
    stream: Stream,
    listener: &Listener,
    host: &mut Host<'_>,
    look_up: &mut LookUp<'_>,
) -> Result<Prepared, DestinationError> {
    let mut link = Link::new(stream);
    match phases(&mut link, listener, host, look_up) {
        Ok((machine, reception)) => {
            let transfer = reception.now().transfer;
            Ok(Prepared { machine, link, transfer, reception })
        }
        Err(cause) => {
            let reason = Reason::new(&super::chain_of(&cause));
            // The source may be gone: then it needs no reason.
            link.send(&Message::Refuse { reason }).unwrap_or_default();
            Err(cause)
        }
    }
}

fn phases(
    link: &mut Link,
    listener: &Listener,
    host: &mut Host<'_>,
    look_up: &mut LookUp<'_>,
) -> Result<(PausedMachine, Reception), DestinationError> {
    let begun = Instant::now();
    let (offer, description) = take_offer(link, host)?;
    let mut reception = Reception::new(begun, offer.transfer, offer.connections);
    reception.enter(Phase::Attest);
    let output = (host.output)().map_err(DestinationError::Output)?;
    let mut machine = ReceivingMachine::build(&description, host.platform, output)?;
    let receiving = start(link, &mut machine, &description)?;
    let (arrivals, arrived) = (Arrivals::new(machine.ram().layout()), Arrived::default());
    let mut stop = || look_up(reception.progress(&arrived));
    let mut placers = accept_connections(listener, &offer, &mut stop)?;
    reception.enter(Phase::Rounds);
    let target = Target {
        ram: machine.ram(),
        arrivals: &arrivals,
        receiving: receiving.as_ref(),
        session: offer.session,
        arrived: &arrived,
    };
    let mut stop = || look_up(reception.progress(&arrived));
    let Delivered { status, state, rounds } = take_in(link, &mut placers, &target, &mut stop)?;
    reception.enter(Phase::State);
    let status = check(&description, status, &arrivals)?;
    let state = MachineState::from_bytes(&state)?;
    let launched = receiving.map(Receiving::finish).transpose()?;
    let machine = machine.finish(&state, status, launched)?;
    reception.all_arrived(&arrived, rounds);
    info!("{}: all arrived in {rounds} rounds", offer.transfer);
    Ok((machine, reception))
}

/// Reads the offer, and holds it against this host before anything is built.
fn take_offer(link: &mut Link, host: &Host<'_>) -> Result<(Offer, MachineOffer), DestinationError> {
    let Message::Offer(offer) = link.answer("an offer", GREETING_MAX)? else {
        return Err(LinkError::unexpected("an offer").into());
    };
    let description = MachineOffer::from_bytes(&offer.machine)?;
    compare(&description, &HostOffer::read(host.platform)?)?;
    info!("{} is offered", offer.transfer);
    Ok((offer, description))
}

/// Says what this platform is, and takes the session that the source has made for it.
fn start(
    link: &mut Link,
    machine: &mut ReceivingMachine,
    description: &MachineOffer,
) -> Result<Option<Receiving>, DestinationError> {
    let own = machine.platform_certificates().map_err(CertificatesError::Own)?;
    let platform = own.as_ref().map(to_wire);
    let encrypted = platform.is_some();
    link.send(&Message::Accept { platform })?;
    let Message::Start { encryption } = link.answer("a start", ANSWER_MAX)? else {
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
    link.send(&Message::Started)?;
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

/// Waits until every page connection has introduced itself; others are turned away.
fn accept_connections(
    listener: &Listener,
    offer: &Offer,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Vec<PagePlacer>, DestinationError> {
    let deadline = Instant::now() + GREETING_MAX;
    let mut joined: Vec<Option<PagePlacer>> = Vec::new();
    joined.resize_with(usize::from(offer.connections), || None);
    while joined.iter().any(Option::is_none) {
        if stop() || Instant::now() > deadline {
            return Err(DestinationError::Connections { wanted: offer.connections });
        }
        let Some(stream) = listener.accept(Duration::from_millis(100))? else { continue };
        let mut link = Link::new(stream);
        match link.answer("a page connection", GREETING_MAX) {
            Ok(Message::Join { session, index }) if session == offer.session => {
                if let Some(slot @ None) = joined.get_mut(usize::from(index)) {
                    *slot = Some(PagePlacer::new(link.into_stream()));
                }
            }
            other => info!("a connection that is no part of this migration was closed: {other:?}"),
        }
    }
    Ok(joined.into_iter().flatten().collect())
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
            Some(PageStatus::from_bytes(&bytes, layout, sev.overflow())?)
        }
        _ => return Err(DestinationError::Platform),
    };
    arrivals.check(status.as_ref())?;
    Ok(status)
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
    /// The serial output.
    #[error("opening the guest's serial output")]
    Output(#[source] std::io::Error),
    /// Listening.
    #[error("accepting connections")]
    Accept(#[from] std::io::Error),
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
