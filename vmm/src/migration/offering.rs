//! The outgoing half before the first page: offer -> verify the destination -> `SEND_START` -> page
//! connections.

use log::warn;
use zerocopy::IntoBytes;

use super::certificates::{CertificatesError, from_wire};
use super::link::{Due, Link, LinkError};
use super::message::{Message, Offer, PlatformBytes, SessionBytes};
use super::progress::Phase;
use super::sender::PageSender;
use super::source::{Attempt, Guest, Options, SourceError, Wishes};
use super::transport::Stream;
use crate::machine::compatibility::{MachineOffer, SevOffer};
use crate::sev::Policy;
use crate::sev::session::random;
use crate::sev::target::{PlatformCertificates, RefusedTarget, verify_target};

impl Attempt<'_> {
    /// Offers the guest; the destination says what it is, and is verified before anything is sent.
    pub(super) fn offer(&mut self, wish: &mut Wishes<'_>) -> Result<(), SourceError> {
        let machine = self.running()?;
        machine.migratable()?;
        let machine = machine.offer();
        let offer = described(&machine, self.options)?;
        let session = offer.session;
        let link = self.link.insert(Link::new(connect(self.options)?));
        link.ask(&Message::Offer(offer))?;
        let Message::Accept { secret, platform } = self.answer(Due::ACCEPT, wish)? else {
            return Err(LinkError::unexpected("an acceptance").into());
        };
        self.session = session;
        self.secret = Some(secret);
        self.account.enter(Phase::Attest);
        let encryption = self.attest(machine.sev.as_ref(), platform.as_ref())?;
        self.link.as_mut().ok_or(SourceError::Gone)?.ask(&Message::Start { encryption })?;
        if self.answer(Due::STARTED, wish)? == Message::Started {
            return Ok(());
        }
        Err(LinkError::unexpected("a start").into())
    }

    /// The session for the destination's platform; `None` for a guest without SEV.
    fn attest(
        &mut self,
        sev: Option<&SevOffer>,
        platform: Option<&PlatformBytes>,
    ) -> Result<Option<SessionBytes>, SourceError> {
        match (sev, platform) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(SourceError::Unasked),
            (Some(_), None) => Err(SourceError::NoPlatform),
            (Some(sev), Some(platform)) => {
                let policy = Policy::new(sev.policy)?;
                self.start_sending(&from_wire(platform)?, policy).map(Some)
            }
        }
    }

    /// `SEND_START`, to a platform whose certificates hold.
    fn start_sending(
        &mut self,
        target: &PlatformCertificates,
        policy: Policy,
    ) -> Result<SessionBytes, SourceError> {
        let Guest::Running(machine) = &mut self.guest else { return Err(SourceError::Gone) };
        let own = machine.platform_certificates().map_err(CertificatesError::Own)?;
        let own = own.ok_or(SourceError::Gone)?;
        match verify_target(target, policy, &own) {
            Err(RefusedTarget::Unattested) if self.options.allow_unchecked => {
                warn!("the guest's policy does not make the firmware check its destinations");
            }
            verified => verified?,
        }
        let launched = machine.take_launched().ok_or(SourceError::NotCancelled)?;
        match launched.start_send(target, own.pdh) {
            Ok(sending) => {
                let session = sending.session();
                let bytes = SessionBytes {
                    policy: session.policy,
                    pdh: session.source_pdh.as_bytes().to_vec(),
                    session: session.session.as_bytes().to_vec(),
                };
                self.sending = Some(sending);
                Ok(bytes)
            }
            Err(refused) => {
                machine.put_launched_back(refused.launched);
                Err(SourceError::Send(refused.cause))
            }
        }
    }

    /// Opens the page connections.
    pub(super) fn join(&mut self) -> Result<(), SourceError> {
        let secret = self.secret.ok_or(SourceError::Gone)?;
        for index in 0..self.options.connections {
            let stream = connect(self.options)?;
            self.senders.push(PageSender::join(stream, self.session, index, &secret)?);
        }
        Ok(())
    }
}

/// What the destination is told of the guest.
pub(super) fn described(machine: &MachineOffer, options: &Options) -> Result<Offer, SourceError> {
    let (transfer, connections) = (options.transfer, options.connections);
    let session = u64::from_le_bytes(random().map_err(SourceError::Random)?);
    let abandoned = options.abandoned.clone();
    Ok(Offer { transfer, session, connections, abandoned, machine: machine.to_bytes()? })
}

pub(super) fn connect(options: &Options) -> Result<Stream, SourceError> {
    let to = &options.to;
    Stream::connect(to).map_err(|cause| SourceError::Connect { to: to.clone(), cause })
}
