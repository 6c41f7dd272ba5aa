//! The destination's half of a pre-flight: what it would say to an offer, and all of it.
//!
//! A machine that nothing speaks against is made, as for a guest that comes, and dropped: so memory
//! that cannot be had or locked, and a platform that is full, are found out too.

use std::io::Error as IoError;
use std::time::Instant;

use crate::devices::SerialOutput;
use crate::machine::compatibility::{HostOffer, MachineOffer, compare};
use crate::machine::{MachineError, ReceivingMachine, certificates_of, pinning};
use crate::migration::account::Account;
use crate::migration::chain_of;
use crate::migration::destination::Host;
use crate::migration::handover::journal::Side;
use crate::migration::net::{Link, Words};
use crate::migration::watch::{Watch, cancelled};
use crate::migration::wire::{
    Assessment, OBJECTIONS_MAX, Objection, Offer, PlatformBytes, to_wire,
};

/// Everything that speaks against the guest of `offer`; nothing is left of it afterwards.
///
/// `link` hears how far that is, and `watch` may cancel it.
pub(crate) fn assess(
    offer: &Offer,
    host: &mut Host<'_>,
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

/// What a real offer is refused for first, one by one.
fn differences(description: &MachineOffer, host: &Host<'_>) -> Vec<Objection> {
    let here = match HostOffer::read(host.platform, host.devices) {
        Ok(here) => here,
        Err(cause) => return vec![Objection::new("KVM", &chain_of(&cause))],
    };
    let found = compare(description, &here).err().map(|refused| refused.differences);
    let found = found.unwrap_or_default();
    found.iter().map(|each| Objection::new(each.subject(), &chain_of(each))).collect()
}

/// The certificates that the source has to look at; of the machine itself, if it can be made.
fn make(
    description: &MachineOffer,
    host: &Host<'_>,
    can_be_made: bool,
    watch: &mut pinning::Watch<'_>,
) -> Result<Option<PlatformBytes>, MachineError> {
    if can_be_made {
        let Host { platform, devices, .. } = *host;
        let output = SerialOutput::nowhere();
        let machine = ReceivingMachine::build(description, platform, devices, output, watch)?;
        return Ok(machine.platform_certificates()?.as_ref().map(to_wire));
    }
    // Also of a host that cannot make the machine: whatever is wrong with them is one reason more.
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

/// As many as fit into a message; the last says how many do not.
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
