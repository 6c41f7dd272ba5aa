//! For `sevferry audit`, and before a guest is sent: compares what the guest has reported with its page tables, if its
//! policy allows that.

use log::warn;
use thiserror::Error;

use super::guest_process::ProcessError;
use crate::control::Answer;
use crate::control::api::{AuditReply, Response};
use crate::machine::{Audit, RunningMachine, Unaudited};
use crate::text::chain_of;
use crate::vcpu::VcpuError;

/// Answers `sevferry audit`.
///
/// # Errors
/// [`ProcessError::Vcpu`] if the guest could not go on.
pub(crate) fn audit_guest(
    machine: &mut RunningMachine,
    answer: &Answer,
) -> Result<(), ProcessError> {
    match machine.audit() {
        Ok(audit) => answer.give(Response::Audited(reply_of(&audit))),
        Err(Unaudited::Lost(cause)) => return Err(lost(cause, answer)),
        Err(why) => answer.refuse(chain_of(&why)),
    }
    Ok(())
}

/// The contradiction between the guest's page tables and its reports, if there is one and its policy lets them be read.
///
/// # Errors
/// [`Gone`] if the guest does not run any more.
pub(crate) fn contradiction(
    machine: &mut RunningMachine,
) -> Result<Option<ContradictedReports>, Gone> {
    if !machine.can_be_audited() {
        return Ok(None);
    }
    match machine.audit() {
        Ok(audit) => Ok(reply_of(&audit).contradiction.map(ContradictedReports)),
        Err(Unaudited::Stopped) => Err(Gone::Ended),
        Err(Unaudited::Lost(cause)) => Err(Gone::Lost(cause)),
        Err(why) => {
            warn!("the guest's reports are unchecked: {}", chain_of(&why));
            Ok(None)
        }
    }
}

/// Tells the client that the guest is lost, and returns the error for the process.
pub(crate) fn lost(cause: VcpuError, answer: &Answer) -> ProcessError {
    answer.give(Response::Error { message: chain_of(&cause) });
    ProcessError::Vcpu(cause)
}

/// The guest would arrive damaged.
#[derive(Debug, Error)]
#[error("the guest's page tables contradict its reports: {0}")]
pub(crate) struct ContradictedReports(String);

/// A guest does not run any more.
#[derive(Debug)]
pub(crate) enum Gone {
    /// It has ended by itself. The inbox has the event that says how.
    Ended,
    /// It could not go on.
    Lost(VcpuError),
}

fn reply_of(audit: &Audit) -> AuditReply {
    let Audit { tables, contradictions } = audit;
    AuditReply {
        tables: *tables,
        unreported: contradictions.unreported.count(),
        not_shared: contradictions.not_shared.count(),
        contradiction: (!contradictions.is_empty()).then(|| contradictions.to_string()),
    }
}
