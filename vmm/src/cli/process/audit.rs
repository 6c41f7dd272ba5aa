//! What the owner does for `sevferry audit`, and before a guest is sent: its reports are held against
//! its page tables, if its policy allows that.

use log::warn;
use thiserror::Error;

use super::guest_process::{GuestProcess, ProcessError};
use super::outgoing::Sent;
use crate::control::Answer;
use crate::control::api::{AuditReply, Response};
use crate::machine::{Audit, AuditError, Audited, RunningMachine, chain_of};

/// What is said to whoever asks about a guest that has just ended.
pub(crate) const HAS_ENDED: &str = "the guest has ended";

/// Answers `sevferry audit`.
///
/// # Errors
/// [`ProcessError::Vcpu`] if the guest could not go on.
pub(crate) fn audit_guest(
    machine: RunningMachine,
    answer: &Answer,
    process: &GuestProcess,
) -> Result<Sent, ProcessError> {
    let Some((machine, audit)) = audit(machine, answer, process)? else {
        answer.refuse(HAS_ENDED);
        return Ok(Sent::Ended);
    };
    match audit {
        Ok(audit) => answer.give(Response::Audited(reply_of(&audit))),
        Err(why) => answer.refuse(chain_of(&why)),
    }
    Ok(Sent::Stayed(Box::new(machine)))
}

/// Refuses to send a guest whose page tables contradict its reports: what is sent by them would
/// arrive as noise. `Err` is where the guest is then; the asker is not told if it has ended.
///
/// # Errors
/// [`ProcessError::Vcpu`] if the guest could not go on.
pub(crate) fn audit_before_sending(
    machine: RunningMachine,
    answer: &Answer,
    process: &GuestProcess,
) -> Result<Result<RunningMachine, Sent>, ProcessError> {
    let Some((machine, found)) = contradiction(machine, answer, process)? else {
        return Ok(Err(Sent::Ended));
    };
    match found {
        Some(found) => {
            answer.refuse(found.to_string());
            Ok(Err(Sent::Stayed(Box::new(machine))))
        }
        None => Ok(Ok(machine)),
    }
}

/// What the guest's page tables have against its reports, if its policy lets them be read; `None` if
/// the guest has ended meanwhile, which the asker is not told.
///
/// # Errors
/// [`ProcessError::Vcpu`] if the guest could not go on.
pub(crate) fn contradiction(
    machine: RunningMachine,
    answer: &Answer,
    process: &GuestProcess,
) -> Result<Option<(RunningMachine, Option<Contradiction>)>, ProcessError> {
    if !machine.can_be_audited() {
        return Ok(Some((machine, None)));
    }
    let Some((machine, audit)) = audit(machine, answer, process)? else { return Ok(None) };
    let found = match &audit {
        Ok(audit) => reply_of(audit).contradiction.map(Contradiction),
        Err(why) => {
            warn!("the guest's reports are unchecked: {}", chain_of(why));
            None
        }
    };
    Ok(Some((machine, found)))
}

/// The guest would arrive damaged.
#[derive(Debug, Error)]
#[error("the guest's page tables contradict its reports: {0}")]
pub(crate) struct Contradiction(String);

/// `None` if the guest has ended, which the owner's inbox knows.
fn audit(
    machine: RunningMachine,
    answer: &Answer,
    process: &GuestProcess,
) -> Result<Option<Audited>, ProcessError> {
    match machine.audit(&process.events) {
        Ok(audited) => Ok(Some(audited)),
        Err(AuditError::Stopped) => {
            // The event that says how it ended is kept for the owner.
            let _known = process.inbox.interruption(&process.board);
            Ok(None)
        }
        Err(AuditError::Vcpu(cause)) => {
            answer.give(Response::Error { message: chain_of(&cause) });
            Err(ProcessError::Vcpu(cause))
        }
    }
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
