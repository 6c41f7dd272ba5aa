//! The destination's half of a pre-flight: every reason that it would have to refuse an offer.
//!
//! If there is none so far, it makes the machine as for a real migration, and drops it. So it also finds out whether
//! memory is short or cannot be locked, and whether the platform is full.

use std::io::Error as IoError;
use std::time::Instant;

use crate::devices::SerialOutput;
use crate::machine::compatibility::{HostOffer, MachineOffer, compare};
use crate::machine::{MachineError, ReceivingMachine, certificates_of, pinning};
use crate::migration::account::Account;
use crate::migration::destination::ReceiveConfig;
use crate::migration::handover::journal::Side;
use crate::migration::net::{Link, Words};
use crate::migration::watch::{Watch, cancelled};
use crate::migration::wire::{
    Assessment, OBJECTIONS_MAX, Objection, Offer, PlatformBytes, to_wire,
};
use crate::text::chain_of;

/// Every reason against the guest of `offer`. Nothing is left of it afterwards.
///
/// The progress is sent on `link`, and `watch` may cancel it.
pub(crate) fn assess(
    offer: &Offer,
    host: &mut ReceiveConfig<'_>,
    link: &mut Link,
    watch: &mut dyn Watch,
) -> Assessment {
    let (transfer, connections) = (offer.transfer, offer.connections);
    let mut account = Account::new(Instant::now(), transfer, Side::Destination, connections);
    let mut words = Words::new();
    let mut pinning = |pinned| {
        account.pinned(pinned);
        let mut stop = || cancelled(watch, account.now()).is_some();
        // A source that is gone needs no assessment.
        words.say(link, pinned, &mut stop).is_err() || stop()
    };
    let mut objections = Vec::new();
    let mut platform = None;
    match MachineOffer::from_bytes(&offer.machine) {
        Err(cause) => objections.push(Objection::new("version", &chain_of(&cause))),
        Ok(description) => {
            objections.extend(differences(&description, host));
            match make(&description, host, objections.is_empty(), &mut pinning) {
                Ok(certificates) => platform = certificates,
                Err(cause) => {
                    objections.push(Objection::new(subject(&cause), &chain_of(&cause)));
                }
            }
        }
    }
    let journal = (host.journal)(offer.transfer.vm);
    if let Err(cause) = journal.and_then(|journal| journal.reserve().map_err(IoError::other)) {
        objections.push(Objection::new("journal", &chain_of(&cause)));
    }
    Assessment { objections: bounded(objections), platform }
}

/// The differences of the machines: a real offer is refused for the first of them.
fn differences(description: &MachineOffer, host: &ReceiveConfig<'_>) -> Vec<Objection> {
    let here = match HostOffer::read(host.platform, host.devices) {
        Ok(here) => here,
        Err(cause) => return vec![Objection::new("KVM", &chain_of(&cause))],
    };
    let found = compare(description, &here).err().map(|refused| refused.differences);
    let found = found.unwrap_or_default();
    found.iter().map(|each| Objection::new(each.subject(), &chain_of(each))).collect()
}

/// The certificates that the source has to verify. They come from the machine itself, if it can be made.
fn make(
    description: &MachineOffer,
    host: &ReceiveConfig<'_>,
    can_be_made: bool,
    watch: &mut pinning::PinCallback<'_>,
) -> Result<Option<PlatformBytes>, MachineError> {
    if can_be_made {
        let ReceiveConfig { platform, devices, .. } = *host;
        let output = SerialOutput::nowhere();
        let machine = ReceivingMachine::build(description, platform, devices, output, watch)?;
        return Ok(machine.platform_certificates()?.as_ref().map(to_wire));
    }
    // A host that cannot make the machine sends them too: if they are wrong, that is one more reason.
    let platform = host.platform.filter(|_| description.sev.is_some());
    Ok(platform.map(certificates_of).transpose()?.as_ref().map(to_wire))
}

fn subject(cause: &MachineError) -> &'static str {
    match cause {
        MachineError::Endorsement(_) => "certificates",
        MachineError::Encrypted(_) => "SEV platform",
        MachineError::Devices(_) | MachineError::OfferedDevices(_) => "devices",
        MachineError::Ram(_) | MachineError::OfferedRam(_) => "memory",
        MachineError::Host(_)
        | MachineError::Interrupt(_)
        | MachineError::Boot(_)
        | MachineError::Cpuid(_)
        | MachineError::VcpuSetup(_)
        | MachineError::Msrs(_)
        | MachineError::OfferedVcpus(_)
        | MachineError::Vcpu(_) => "machine",
    }
}

/// As many as fit into a message. The last one says how many are left out.
fn bounded(mut objections: Vec<Objection>) -> Vec<Objection> {
    let most = OBJECTIONS_MAX as usize;
    if let Some(more) = objections.len().checked_sub(most).filter(|&more| more > 0) {
        objections.truncate(most - 1);
        objections.push(Objection::new("more", &format!("and {} reasons more", more + 1)));
    }
    objections
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that objects to everything says how much is left out.
    #[test]
    fn what_does_not_fit_is_counted() {
        let objections = |count: usize| vec![Objection::new("CPUID", "less"); count];
        assert_eq!(bounded(objections(64)), objections(64));
        let many = bounded(objections(70));
        assert_eq!(many.len(), 64);
        assert_eq!(many.last(), Some(&Objection::new("more", "and 7 reasons more")));
    }
}
