//! The outgoing half before the first page: offer -> verify the destination -> `SEND_START` -> page
//! connections.

use std::time::Duration;

use log::warn;
use zerocopy::IntoBytes;

use super::sender::PageSender;
use super::{Attempt, Guest, Options, SourceError};
use crate::machine::compatibility::{MachineOffer, SevOffer};
use crate::migration::net::{Dialling, Due, Heard, Link, LinkError, Overdue, Stream};
use crate::migration::progress::Phase;
use crate::migration::watch::Watch;
use crate::migration::wire::{
    CertificatesError, Message, Offer, PlatformBytes, Secret, SessionBytes, from_wire,
};
use crate::sev::Policy;
use crate::sev::session::random;
use crate::sev::target::{PlatformCertificates, RefusedTarget, verify_target};

/// How often waiting for a connection looks up.
const LOOK_UP: Duration = Duration::from_millis(50);

impl Attempt<'_> {
    /// Offers the guest; the destination says what it is, and is verified before anything is sent.
    pub(crate) fn offer(&mut self, watch: &mut dyn Watch) -> Result<(), SourceError> {
        let machine = self.running()?;
        machine.migratable()?;
        let machine = machine.offer();
        let offer = described(&machine, self.options)?;
        let session = offer.session;
        let stream = self.unless_ended(watch, |_, options, stop| connect(options, stop))?;
        self.link = Some(Link::new(stream, self.options.silence));
        self.ask(&Message::Offer(offer), watch)?;
        let (secret, platform) = self.acceptance(machine.ram_bytes, watch)?;
        self.session = session;
        self.secret = Some(secret);
        self.plan.account.enter(Phase::Attest);
        let encryption = self.attest(machine.sev.as_ref(), platform.as_ref())?;
        self.ask(&Message::Start { encryption }, watch)?;
        if self.answer(Due::STARTED, watch)? == Message::Started {
            return Ok(());
        }
        Err(LinkError::unexpected("a start").into())
    }

    /// The destination's platform, once it has made the machine: until then it says how far it is.
    fn acceptance(
        &mut self,
        ram_bytes: u64,
        watch: &mut dyn Watch,
    ) -> Result<(Secret, Option<PlatformBytes>), SourceError> {
        let mut heard = Heard::of_guest(ram_bytes);
        loop {
            let answer = self.answer(Due::ACCEPT, watch)?;
            if let Message::Accept { secret, platform } = answer {
                return Ok((secret, platform));
            }
            let Message::Building(pinned) = answer else {
                return Err(LinkError::unexpected("an acceptance").into());
            };
            heard.hear(pinned)?;
            self.plan.account.pinned(pinned);
        }
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
    pub(crate) fn join(&mut self, watch: &mut dyn Watch) -> Result<(), SourceError> {
        let secret = self.secret.ok_or(SourceError::Gone)?;
        for index in 0..self.options.connections {
            let stream = self.unless_ended(watch, |_, options, stop| connect(options, stop))?;
            let place = (self.session, index);
            self.senders.push(PageSender::join(stream, place, &secret, self.options.silence)?);
        }
        Ok(())
    }
}

/// What the destination is told of the guest.
pub(crate) fn described(machine: &MachineOffer, options: &Options) -> Result<Offer, SourceError> {
    let (transfer, connections) = (options.transfer, options.connections);
    let session = u64::from_le_bytes(random().map_err(SourceError::Random)?);
    let abandoned = options.abandoned.clone();
    Ok(Offer { transfer, session, connections, abandoned, machine: machine.to_bytes()? })
}

/// Connects, unless `stop` says so meanwhile.
pub(crate) fn connect(
    options: &Options,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Stream, SourceError> {
    let to = &options.to;
    let failed = |cause| SourceError::Connect { to: to.clone(), cause };
    let dialling = Dialling::start(to, options.silence).map_err(failed)?;
    loop {
        match dialling.outcome(LOOK_UP) {
            Some(outcome) => return outcome.map_err(failed),
            None if stop() => return Err(failed(Overdue::Unwanted.into())),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use super::*;
    use crate::migration::convergence::{Goal, TimeoutStrategy};
    use crate::migration::wire::{Transfer, VmId};

    /// A host whose queue is full answers nobody, like one that is not there; whoever wants no more
    /// is heard all the same.
    #[test]
    fn a_host_that_does_not_answer_is_given_up_at_once() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        rustix::net::listen(&listener, 0).unwrap();
        let address = listener.local_addr().unwrap();
        let moment = Duration::from_millis(200);
        let mut waiting = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, moment) {
            waiting.push(stream);
            assert!(waiting.len() < 10, "the queue takes everybody");
        }
        let options = Options {
            to: format!("tcp:{address}").parse().unwrap(),
            connections: 1,
            goal: Goal { downtime: moment, timeout: moment, strategy: TimeoutStrategy::Cancel },
            throttle: true,
            silence: Duration::from_secs(300),
            transfer: Transfer { vm: VmId([3; 16]), epoch: 1 },
            allow_unchecked: false,
            abandoned: Vec::new(),
        };
        let begun = Instant::now();
        let given_up = connect(&options, &mut || begun.elapsed() > moment).unwrap_err();
        assert!(matches!(given_up, SourceError::Connect { .. }), "{given_up}");
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
        let silent = Options { silence: moment, ..options };
        let failed = connect(&silent, &mut || false).unwrap_err();
        assert!(matches!(failed, SourceError::Connect { .. }), "{failed}");
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    }
}
