//! A command that fails once, as it was told to: what happens to a guest then can be seen.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::num::NonZeroU64;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{kvm_enc_region, kvm_sev_cmd};
use thiserror::Error;

use crate::sev::command::Command;
use crate::sev::{Errno, Platform, Status};

/// Which command of a VM fails, and which time it is issued: `SEND_FINISH:1`. Queries of a length
/// count too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    command: Command,
    at: NonZeroU64,
}

impl FromStr for Failure {
    type Err = BadFailure;

    fn from_str(text: &str) -> Result<Self, BadFailure> {
        let (name, at) = text.split_once(':').ok_or(BadFailure)?;
        let command = Command::named(name).ok_or(BadFailure)?;
        let digits = at.bytes().all(|byte| byte.is_ascii_digit());
        let at = at.parse().ok().filter(|_| digits).ok_or(BadFailure)?;
        Ok(Self { command, at })
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{}:{}", self.command.short_name(), self.at)
    }
}

/// Not a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("expected the name of a KVM_SEV command and which time it fails, such as SEND_FINISH:1")]
pub struct BadFailure;

/// A platform whose hardware fails once.
#[derive(Debug)]
pub(crate) struct FailingPlatform {
    platform: Box<dyn Platform>,
    failure: Failure,
    issued: AtomicU64,
}

impl FailingPlatform {
    pub(crate) fn new(platform: Box<dyn Platform>, failure: Failure) -> Self {
        Self { platform, failure, issued: AtomicU64::new(0) }
    }
}

impl Platform for FailingPlatform {
    fn memory_encrypt_op(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        if self.failure.command.is(command)
            && self.issued.fetch_add(1, Ordering::Relaxed) + 1 == self.failure.at.get()
        {
            command.error = Status::HW_PLATFORM.0;
            return Err(Errno::EIO);
        }
        self.platform.memory_encrypt_op(command)
    }

    fn register_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.platform.register_region(region)
    }

    fn unregister_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.platform.unregister_region(region)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::command::Vm;

    /// What is no command, or no number from 1, is refused.
    #[test]
    fn failures_are_a_command_and_a_number() {
        let failure: Failure = "SEND_FINISH:2".parse().unwrap();
        assert_eq!(failure.to_string(), "SEND_FINISH:2");
        for bad in ["", "SEND_FINISH", "SEND_FINISH:0", "SEND_FINISH:+1", "KVM_SEV_INIT:1", "X:1"] {
            assert_eq!(bad.parse::<Failure>(), Err(BadFailure), "{bad}");
        }
    }

    #[derive(Debug)]
    struct Agreeable;

    impl Platform for Agreeable {
        fn memory_encrypt_op(&self, _command: &mut kvm_sev_cmd) -> Result<(), Errno> {
            Ok(())
        }

        fn register_region(&self, _region: &kvm_enc_region) -> Result<(), Errno> {
            Ok(())
        }

        fn unregister_region(&self, _region: &kvm_enc_region) -> Result<(), Errno> {
            Ok(())
        }
    }

    /// The one command fails the one time, and nothing else does.
    #[test]
    fn a_command_fails_once() {
        let failing = FailingPlatform::new(Box::new(Agreeable), "SEND_FINISH:2".parse().unwrap());
        let vm = Vm { platform: Box::new(failing), sev_fd: 3 };
        for (command, works) in [
            (Command::SEND_FINISH, true),
            (Command::SEND_CANCEL, true),
            (Command::SEND_FINISH, false),
            (Command::SEND_FINISH, true),
        ] {
            let answer = vm.issue_plain(command).map_err(|refused| refused.status());
            assert_eq!(answer, if works { Ok(()) } else { Err(Some(Status::HW_PLATFORM)) });
        }
    }
}
