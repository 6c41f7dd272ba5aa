//! Before the first page: offer -> verify the destination -> `SEND_START` -> page connections.

use std::time::Duration;

use log::warn;
use zerocopy::IntoBytes;

use super::attempt::{Attempt, Peer};
use super::error::SourceError;
use super::options::Options;
use super::rounds::Rounds;
use super::sender::PageSender;
use super::stay::{GivenUp, Stay, Told};
use super::transfer::{PageFlow, Transferring};
use crate::machine::RunningMachine;
use crate::machine::compatibility::{MachineOffer, SevOffer};
use crate::migration::net::{Dialling, Due, Heard, Link, LinkError, Overdue, Stream};
use crate::migration::progress::Phase;
use crate::migration::wire::{
    CertificatesError, Message, Offer, PlatformBytes, Secret, SessionBytes, from_wire,
};
use crate::sev::Policy;
use crate::sev::send::Sending;
use crate::sev::session::random;
use crate::sev::target::{PlatformCertificates, RefusedTarget, verify_target};

/// How often the wait for a connection calls the watch.
const LOOK_UP: Duration = Duration::from_millis(50);

/// The first phase: the guest is not offered yet.
pub(super) struct Offering<'a> {
    pub(super) attempt: Attempt<'a>,
    pub(super) machine: RunningMachine,
}

impl<'a> Offering<'a> {
    /// Offers the guest. The destination names its platform, which is verified before anything is sent.
    pub(super) fn run(self) -> Result<Transferring<'a>, Box<GivenUp<'a>>> {
        let Self { mut attempt, machine } = self;
        attempt.plan.account.enter(Phase::Offer);
        let (mut link, offer) = match attempt.call(&machine) {
            Ok(called) => called,
            Err(cause) => {
                return Err(GivenUp::new(attempt, Stay::running(machine), Told::Nobody, cause));
            }
        };
        let (session, ram_bytes) = (offer.session, machine.offer().ram_bytes);
        let accepted = attempt
            .ask(&machine, &mut link, &Message::Offer(offer))
            .and_then(|()| attempt.acceptance(&machine, &mut link, ram_bytes));
        match accepted {
            Ok((secret, platform)) => {
                attempt.plan.account.enter(Phase::Attest);
                let peer = Peer { link, session, secret };
                Accepted { attempt, machine, peer }.start(platform.as_ref())
            }
            Err(cause) => {
                Err(GivenUp::new(attempt, Stay::running(machine), Told::Asked(link), cause))
            }
        }
    }
}

impl Attempt<'_> {
    /// A connection to the destination, and the offer.
    fn call(&mut self, machine: &RunningMachine) -> Result<(Link, Offer), SourceError> {
        machine.migratable()?;
        let options = self.options;
        let offer = described(&machine.offer(), options)?;
        let stream = self.unless_ended(machine, |_, stop| connect(options, stop))?;
        Ok((Link::new(stream, options.silence), offer))
    }

    /// The destination's platform, once it has made the machine. Until then it sends its progress.
    fn acceptance(
        &mut self,
        machine: &RunningMachine,
        link: &mut Link,
        ram_bytes: u64,
    ) -> Result<(Secret, Option<PlatformBytes>), SourceError> {
        let mut heard = Heard::of_guest(ram_bytes);
        loop {
            let answer = self.answer(machine, link, Due::ACCEPT)?;
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
}

/// The second phase: the destination has accepted the guest.
struct Accepted<'a> {
    attempt: Attempt<'a>,
    machine: RunningMachine,
    peer: Peer,
}

impl<'a> Accepted<'a> {
    /// `SEND_START`, for a platform whose certificates are verified. Then the destination begins to receive, and the
    /// page connections join.
    fn start(
        mut self,
        platform: Option<&PlatformBytes>,
    ) -> Result<Transferring<'a>, Box<GivenUp<'a>>> {
        let attested = self.attest(platform);
        let (sending, joined) = match attested {
            Ok(Some((sending, bytes))) => (Some(sending), self.join(Some(bytes))),
            Ok(None) => (None, self.join(None)),
            Err(cause) => (None, Err(cause)),
        };
        let Self { attempt, machine, peer } = self;
        match joined {
            Ok((senders, rounds)) => {
                let flow = PageFlow { sending, senders, rounds };
                Ok(Transferring { attempt, machine, peer, flow })
            }
            Err(cause) => {
                let stay = Stay { sending, ..Stay::running(machine) };
                Err(GivenUp::with(attempt, stay, peer, cause))
            }
        }
    }

    /// The session for the destination's platform; `None` for a guest without SEV.
    fn attest(
        &mut self,
        platform: Option<&PlatformBytes>,
    ) -> Result<Option<(Sending, SessionBytes)>, SourceError> {
        match (self.machine.offer().sev, platform) {
            (None, None) => Ok(None),
            (None, Some(_)) => Err(SourceError::Unasked),
            (Some(_), None) => Err(SourceError::NoPlatform),
            (Some(SevOffer { policy, .. }), Some(platform)) => {
                let policy = Policy::new(policy)?;
                self.start_sending(&from_wire(platform)?, policy).map(Some)
            }
        }
    }

    fn start_sending(
        &mut self,
        target: &PlatformCertificates,
        policy: Policy,
    ) -> Result<(Sending, SessionBytes), SourceError> {
        let machine = &mut self.machine;
        let own = machine.platform_certificates().map_err(CertificatesError::Own)?;
        let own = own.ok_or(SourceError::Unasked)?;
        match verify_target(target, policy, &own) {
            Err(RefusedTarget::Unattested) if self.attempt.options.allow_unchecked => {
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
                Ok((sending, bytes))
            }
            Err(refused) => {
                machine.put_launched_back(refused.launched);
                Err(SourceError::Send(refused.cause))
            }
        }
    }

    /// Has the destination begin, opens the page connections, and starts the log of what the guest writes.
    fn join(
        &mut self,
        encryption: Option<SessionBytes>,
    ) -> Result<(Vec<PageSender>, Rounds), SourceError> {
        let Self { attempt, machine, peer } = self;
        attempt.ask(machine, &mut peer.link, &Message::Start { encryption })?;
        if attempt.answer(machine, &mut peer.link, Due::STARTED)? != Message::Started {
            return Err(LinkError::unexpected("a start").into());
        }
        let options = attempt.options;
        let mut senders = Vec::new();
        for index in 0..options.connections {
            let stream = attempt.unless_ended(machine, |_, stop| connect(options, stop))?;
            let place = (peer.session, index);
            senders.push(PageSender::join(stream, place, &peer.secret, options.silence)?);
        }
        attempt.plan.account.enter(Phase::Rounds);
        let rounds = Rounds::start(machine.ram().clone(), machine.log_changes()?)?;
        Ok((senders, rounds))
    }
}

/// The offer of a guest.
pub(crate) fn described(machine: &MachineOffer, options: &Options) -> Result<Offer, SourceError> {
    let (transfer, connections) = (options.transfer, options.connections);
    let session = u64::from_le_bytes(random().map_err(SourceError::Random)?);
    let abandoned = options.abandoned.clone();
    Ok(Offer { transfer, session, connections, abandoned, machine: machine.to_bytes()? })
}

/// Connects. Gives up once `stop` returns true.
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

    /// A host whose queue is full does not answer, like one that is not there. The wait for it can be given up.
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
