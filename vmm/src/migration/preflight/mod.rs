//! Why a migration would be refused: every reason, before anything moves.
//!
//! It checks what a migration checks, by the same code: the page status, the offer and the destination's comparison
//! with it, and the destination's certificates against the guest's policy. The guest runs meanwhile, and afterwards
//! the destination waits for the next connection. Only the firmware is not asked, because the question would be
//! `SEND_START`.

mod assessment;

pub(crate) use assessment::assess;

use std::error::Error;

use serde::{Deserialize, Serialize};

use crate::machine::compatibility::MachineOffer;
use crate::machine::{MachineError, Prospect, RunningMachine, certificates_of};
pub use crate::migration::handover::journal::Side;
use crate::migration::net::{Due, Heard, Link, LinkError};
use crate::migration::source::{Options, SourceError};
use crate::migration::source::{connect, described};
use crate::migration::wire::{Assessment, Message, Objection, Reason, from_wire};
use crate::sev::Policy;
use crate::sev::target::{PlatformCertificates, RefusedTarget, refusals, refusals_anywhere};
use crate::text::chain_of;

/// One reason why the guest would not be moved.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hindrance {
    /// The side that refuses. The source: the guest or its host. The destination: its host, or the way there.
    pub by: Side,
    /// Its subject, in a word or two.
    pub subject: Reason,
    /// The reason, for people.
    pub reason: Reason,
}

impl Hindrance {
    /// `by` refuses because of `subject`.
    #[must_use]
    pub fn new(by: Side, subject: &str, reason: &dyn Error) -> Self {
        let Objection { subject, reason } = Objection::new(subject, &chain_of(reason));
        Self { by, subject, reason }
    }
}

/// A guest that might be moved.
#[derive(Debug)]
pub struct Candidate {
    /// What a destination must be able to make.
    machine: MachineOffer,
    /// The endorsement of its platform. `None` for a plain VM, or if there is none.
    own: Option<PlatformCertificates>,
    /// The reasons against any destination.
    hindrances: Vec<Hindrance>,
}

impl Candidate {
    /// The guest of `machine`.
    #[must_use]
    pub fn running(machine: &RunningMachine) -> Self {
        let own = |subject, reason: &dyn Error| Hindrance::new(Side::Source, subject, reason);
        let obstacles = machine.obstacles();
        let mut hindrances: Vec<_> =
            obstacles.iter().map(|obstacle| own("page status", obstacle)).collect();
        if !machine.can_be_sent() {
            hindrances.push(own("firmware", &SourceError::NotCancelled));
        }
        let certificates = machine.platform_certificates();
        hindrances.extend(certificates.as_ref().err().map(|cause| own("certificates", cause)));
        Self { machine: machine.offer(), own: certificates.ok().flatten(), hindrances }
    }

    /// A guest that would be started on this host.
    ///
    /// # Errors
    /// [`MachineError`] if it could not.
    pub fn new_guest(prospect: &Prospect) -> Result<Self, MachineError> {
        let machine = prospect.offer()?;
        let platform = prospect.sev.as_ref().map(|sev| &sev.platform);
        let certificates = platform.map(certificates_of).transpose();
        let uncertified = certificates.as_ref().err();
        let hindrances =
            uncertified.map(|cause| Hindrance::new(Side::Source, "certificates", cause));
        let hindrances = hindrances.into_iter().collect();
        Ok(Self { machine, own: certificates.ok().flatten(), hindrances })
    }

    /// Every reason why it would not be moved as `options` say; none if it would. Ends early once `stop` returns
    /// true.
    pub fn hindrances(self, options: &Options, stop: &mut dyn FnMut() -> bool) -> Vec<Hindrance> {
        let Self { machine, own, hindrances: mut found } = self;
        let mut target = None;
        match ask(&machine, options, stop) {
            Ok(Assessment { objections, platform }) => {
                match (machine.sev, platform.as_ref().map(from_wire)) {
                    (Some(_), Some(Ok(certificates))) => target = Some(certificates),
                    (Some(_), Some(Err(cause))) => found.push(theirs("certificates", &cause)),
                    (Some(_), None) if objections.is_empty() => {
                        found.push(theirs("platform", &SourceError::NoPlatform));
                    }
                    (None, Some(_)) => found.push(theirs("protocol", &SourceError::Unasked)),
                    (Some(_) | None, None) => {}
                }
                found.extend(objections.into_iter().map(|Objection { subject, reason }| {
                    Hindrance { by: Side::Destination, subject, reason }
                }));
            }
            Err(cause) => found.push(theirs(subject(&cause), &cause)),
        }
        // A policy with unknown bits is among the destination's reasons already.
        let policy = machine.sev.and_then(|sev| Policy::new(sev.policy).ok());
        if let Some(policy) = policy {
            let refusals = match (&target, &own) {
                (Some(target), Some(own)) => refusals(target, policy, own),
                _ => refusals_anywhere(policy),
            };
            let allowed = |refused: &RefusedTarget| {
                options.allow_unchecked && matches!(refused, RefusedTarget::Unattested)
            };
            found.extend(refusals.iter().filter(|refused| !allowed(refused)).map(|refused| {
                let subject = if refused.is_policy() { "policy" } else { "certificates" };
                Hindrance::new(Side::Source, subject, refused)
            }));
        }
        found
    }
}

/// Asks the destination for its assessment.
fn ask(
    machine: &MachineOffer,
    options: &Options,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Assessment, SourceError> {
    let inquiry = Message::Inquiry(described(machine, options)?);
    let mut stopped = false;
    let mut stop = || {
        stopped = stopped || stop();
        stopped
    };
    let answer = inquire(&inquiry, machine.ram_bytes, options, &mut stop);
    if stopped {
        return Err(SourceError::Cancelled(Reason::new("the question was given up")));
    }
    match answer? {
        Some(Message::Assessment(assessment)) => Ok(assessment),
        Some(_) | None => Err(LinkError::unexpected("an assessment").into()),
    }
}

fn inquire(
    inquiry: &Message,
    ram_bytes: u64,
    options: &Options,
    stop: &mut dyn FnMut() -> bool,
) -> Result<Option<Message>, SourceError> {
    let mut link = Link::new(connect(options, stop)?, options.silence);
    link.ask(inquiry, stop)?;
    let mut heard = Heard::of_guest(ram_bytes);
    loop {
        match link.answer_unless(Due::ASSESSMENT, options.silence, stop)? {
            Some(Message::Building(pinned)) => heard.hear(pinned)?,
            answer => return Ok(answer),
        }
    }
}

fn theirs(subject: &str, reason: &dyn Error) -> Hindrance {
    Hindrance::new(Side::Destination, subject, reason)
}

/// The reason to show when there is no assessment.
fn subject(cause: &SourceError) -> &'static str {
    if matches!(cause, SourceError::Link(LinkError::Malformed(_))) {
        "protocol"
    } else if matches!(cause, SourceError::Link(LinkError::Refused(_))) {
        "destination"
    } else {
        "connection"
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use vmm_sys_util::tempdir::TempDir;

    use super::*;
    use crate::encryption::{Design, NotMigratable};
    use crate::machine::compatibility::{PlatformName, SevOffer};
    use crate::machine::pinning::Pinned;
    use crate::migration::convergence::{Goal, TimeoutStrategy};
    use crate::migration::wire::{PlatformBytes, Transfer, VmId, to_wire};
    use crate::migration::{Listener, Lobby};
    use crate::sev::software::fixture::Fixture;

    /// A guest with this policy on the platform of `own`, not ready to be moved.
    fn candidate(policy: u32, own: &Fixture) -> Candidate {
        let sev = SevOffer {
            platform: PlatformName::Software,
            policy,
            c_bit: 47,
            status: Design::default(),
        };
        let machine = MachineOffer {
            version: 2,
            ram_bytes: 16 << 20,
            cpuid: Vec::new(),
            msrs: Vec::new(),
            tsc_khz: 1,
            devices: Vec::new(),
            sev: Some(sev),
        };
        let unready = Hindrance::new(Side::Source, "page status", &NotMigratable::NotReady);
        Candidate { machine, own: Some(own.certificates()), hindrances: vec![unready] }
    }

    /// What the candidate hears from a destination that answers so; `None` is a destination that is
    /// not there.
    fn heard(
        candidate: Candidate,
        answer: Option<Message>,
        allow_unchecked: bool,
    ) -> Vec<Hindrance> {
        heard_all(candidate, answer.map(|answer| vec![answer]), allow_unchecked)
    }

    /// The same of a destination that says all of this.
    fn heard_all(
        candidate: Candidate,
        answer: Option<Vec<Message>>,
        allow_unchecked: bool,
    ) -> Vec<Hindrance> {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("socket");
        let to: super::super::Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        let listener = answer.as_ref().map(|_| Listener::bind(&to).unwrap());
        let options = Options {
            to,
            connections: 1,
            goal: Goal {
                downtime: Duration::from_millis(300),
                timeout: Duration::from_secs(9),
                strategy: TimeoutStrategy::Cancel,
            },
            throttle: true,
            silence: Duration::from_secs(60),
            transfer: Transfer { vm: VmId([3; 16]), epoch: 1 },
            abandoned: Vec::new(),
            allow_unchecked,
        };
        thread::scope(|scope| {
            scope.spawn(|| {
                let (Some(listener), Some(answer)) = (listener, answer) else { return };
                let caller = Lobby::new(SOON).hear(&listener, SOON);
                let mut caller = caller.unwrap().unwrap();
                assert!(matches!(caller.first, Message::Inquiry(_)), "{:?}", caller.first);
                // A source that has heard enough may be gone.
                for word in answer {
                    caller.link.send(&word, &mut || false).unwrap_or_default();
                }
            });
            candidate.hindrances(&options, &mut || false)
        })
    }

    fn subjects(hindrances: &[Hindrance]) -> Vec<(Side, &str)> {
        hindrances.iter().map(|found| (found.by, found.subject.as_str())).collect()
    }

    const SOON: Duration = Duration::from_secs(60);
    const HERE: Side = Side::Source;
    const THERE: Side = Side::Destination;

    fn assessment(objections: &[&str], platform: Option<PlatformBytes>) -> Option<Message> {
        let objections = objections.iter().map(|subject| Objection::new(subject, "no")).collect();
        Some(Message::Assessment(Assessment { objections, platform }))
    }

    /// Whatever is wrong on either side is named, and one thing does not hide another.
    #[test]
    fn every_reason_of_both_sides_is_named() {
        let (own, stranger) = (Fixture::new(), Fixture::new());
        let theirs = || Some(to_wire(&stranger.certificates()));
        // NOSEND and DOMAIN, an API version that nobody has, and not SEV.
        let found =
            heard(candidate(0x3801_0018, &own), assessment(&["TSC", "CPUID"], theirs()), false);
        let expected = [
            (HERE, "page status"),
            (THERE, "TSC"),
            (THERE, "CPUID"),
            (HERE, "policy"),
            (HERE, "policy"),
            (HERE, "policy"),
            (HERE, "policy"),
        ];
        assert_eq!(subjects(&found), expected, "{found:#?}");
        let mut broken = stranger.certificates();
        broken.chain.cek = own.certificates().chain.cek;
        let found = heard(candidate(0x21, &own), assessment(&[], Some(to_wire(&broken))), false);
        assert_eq!(subjects(&found), [(HERE, "page status"), (HERE, "certificates")]);
        let none = PlatformBytes::default();
        let found = heard(candidate(0x21, &own), assessment(&[], Some(none)), false);
        assert_eq!(subjects(&found), [(HERE, "page status"), (THERE, "certificates")]);
        let found = heard(candidate(0x21, &own), assessment(&[], None), false);
        assert_eq!(subjects(&found), [(HERE, "page status"), (THERE, "platform")]);
    }

    /// A destination that needs long to pin the guest's memory is waited for as long as it gets on; one that says
    /// the same again is not.
    #[test]
    fn a_destination_that_gets_on_is_waited_for() {
        let (own, other) = (Fixture::new(), Fixture::new());
        let building = |pages| Message::Building(Pinned { pages, of: 4096 });
        for (words, expected) in [
            (vec![building(1), building(2), building(4096)], &[][..]),
            (vec![building(1), building(1)], &[(THERE, "connection")]),
            (vec![Message::Building(Pinned { pages: 1, of: 1 })], &[(THERE, "connection")]),
        ] {
            let last = assessment(&[], Some(to_wire(&other.certificates())));
            let ready = Candidate { hindrances: Vec::new(), ..candidate(0x21, &own) };
            let found = heard_all(ready, Some([words, last.into_iter().collect()].concat()), false);
            assert_eq!(subjects(&found), expected, "{found:?}");
        }
    }

    /// Where nothing is wrong nothing is found; a policy that leaves destinations unchecked is a
    /// reason unless that is allowed.
    #[test]
    fn a_good_destination_is_told_from_a_weak_policy() {
        let (own, other) = (Fixture::new(), Fixture::new());
        let theirs = || assessment(&[], Some(to_wire(&other.certificates())));
        for (policy, allow_unchecked, expected) in
            [(0x21, false, &[][..]), (0x1, false, &[(HERE, "policy")]), (0x1, true, &[])]
        {
            let ready = Candidate { hindrances: Vec::new(), ..candidate(policy, &own) };
            let found = heard(ready, theirs(), allow_unchecked);
            assert_eq!(subjects(&found), expected, "{policy:#x} {found:?}");
        }
    }

    /// A destination that is not there, that refuses, or that speaks another protocol is one reason;
    /// those that need no destination are named all the same.
    #[test]
    fn without_an_assessment_the_rest_is_named() {
        let own = Fixture::new();
        let refuse = Message::Refuse { reason: Reason::new("a guest runs here already") };
        for (answer, subject) in [
            (None, "connection"),
            (Some(refuse), "destination"),
            (Some(Message::Started), "connection"),
        ] {
            let found = heard(candidate(0x29, &own), answer, false);
            let expected = [(HERE, "page status"), (THERE, subject), (HERE, "policy")];
            assert_eq!(subjects(&found), expected, "{found:#?}");
        }
        let found = heard(candidate(0x21, &own), None, false);
        assert!(found[1].reason.as_str().contains("is `sevferry receive` running there?"));
    }
}
