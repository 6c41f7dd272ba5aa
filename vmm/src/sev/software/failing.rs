//! A platform that lets one chosen command fail, to show what happens to a guest then.

use std::sync::atomic::{AtomicU64, Ordering};

use kvm_bindings::{kvm_enc_region, kvm_sev_cmd};

use crate::memory::GuestView;
use crate::sev::{Errno, Platform, SevStatus};

use super::failure::{Failure, How};
use super::host::{SoftwareHost, refuse};

impl SoftwareHost {
    /// The SEV side of a new VM as launches take it, with what is to fail.
    pub(crate) fn new_platform(&self, ram: GuestView) -> Box<dyn Platform> {
        let platform = Box::new(self.new_vm(ram));
        match self.model.failure {
            Some(failure) => Box::new(FailingPlatform::new(platform, failure, self.clone())),
            None => platform,
        }
    }
}

/// A platform that lets one command fail.
#[derive(Debug)]
struct FailingPlatform {
    platform: Box<dyn Platform>,
    failure: Failure,
    host: SoftwareHost,
    issued: AtomicU64,
}

impl FailingPlatform {
    fn new(platform: Box<dyn Platform>, failure: Failure, host: SoftwareHost) -> Self {
        Self { platform, failure, host, issued: AtomicU64::new(0) }
    }

    /// The failure of `command`, if it is to fail now.
    fn fails(&self, command: &mut kvm_sev_cmd) -> Option<Errno> {
        if !self.failure.command.is(command) {
            return None;
        }
        let (issued, at) = (self.issued.fetch_add(1, Ordering::Relaxed) + 1, self.failure.at.get());
        match self.failure.how {
            How::Once if issued == at => Some(refuse(&mut command.error, SevStatus::HW_PLATFORM)),
            How::Unknown if issued >= at => {
                Some(refuse(&mut command.error, SevStatus::INVALID_COMMAND))
            }
            How::Dead if issued == at => {
                self.host.stop_answering();
                command.error = 0;
                Some(Errno::ETIMEDOUT)
            }
            How::Once | How::Dead | How::Unknown => None,
        }
    }
}

impl Platform for FailingPlatform {
    fn memory_encrypt_op(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        match self.fails(command) {
            Some(errno) => Err(errno),
            None => self.platform.memory_encrypt_op(command),
        }
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
    use std::error::Error;

    use super::*;
    use crate::sev::Policy;
    use crate::sev::abi;
    use crate::sev::command::{Command, CommandError, Vm};
    use crate::sev::device::platform_status;
    use crate::sev::software::fixture::Fixture;
    use crate::sev::software::{Identity, Model};

    /// A host one of whose commands fails, and a VM on it.
    fn failing(failure: &str) -> (Fixture, Vm) {
        let failure = Some(failure.parse().unwrap());
        let model = Model { failure, ..Model::default() };
        let fixture = Fixture::modelled(Identity::ephemeral().unwrap(), model);
        let vm =
            Vm { platform: fixture.host.new_platform(fixture.view.clone()), sev_fd: fixture.fd() };
        vm.issue_plain(Command::INIT).unwrap();
        vm.issue(Command::LAUNCH_START, &mut abi::LaunchStart::default()).unwrap();
        (fixture, vm)
    }

    fn status(vm: &Vm) -> Result<(), CommandError> {
        vm.issue(Command::GUEST_STATUS, &mut abi::GuestStatus::default())
    }

    /// The one command fails the one time, and nothing else does.
    #[test]
    fn a_command_fails_once() {
        let (_fixture, vm) = failing("GUEST_STATUS:2");
        for expected in [None, Some(SevStatus::HW_PLATFORM), None] {
            assert_eq!(status(&vm).err().and_then(|refused| refused.status()), expected);
        }
    }

    /// A command that the firmware does not know fails each time, and no other does.
    #[test]
    fn an_unknown_command_stays_unknown() {
        let (_fixture, vm) = failing("SEND_CANCEL:1:unknown");
        for _again in 0..2 {
            let refused = vm.issue_plain(Command::SEND_CANCEL).unwrap_err();
            assert_eq!(refused.status(), Some(SevStatus::INVALID_COMMAND));
            assert!(refused.to_string().contains("the firmware does not know the command"));
            status(&vm).unwrap();
        }
    }

    /// A secure processor that hangs is given up by the kernel: the command that hung times out, and
    /// whatever would need the processor afterwards is busy for ever, for every VM and on `/dev/sev`. Each
    /// is told to restart the host.
    #[test]
    fn a_dead_processor_is_busy_for_ever() {
        let (fixture, vm) = failing("GUEST_STATUS:2:dead");
        let other = fixture.launched(Policy::default());
        status(&vm).unwrap();
        let hung = status(&vm).unwrap_err();
        assert_eq!((hung.errno(), hung.status()), (Errno::ETIMEDOUT, None));
        for _again in 0..3 {
            let busy = status(&vm).unwrap_err();
            assert_eq!((busy.errno(), busy.status()), (Errno::EBUSY, None));
            let text = busy.to_string();
            assert!(text.contains("stopped answering") && text.contains("restart"), "{text}");
        }
        let busy = platform_status(&fixture.device).unwrap_err();
        assert_eq!(busy.errno(), Errno::EBUSY);
        let text = other.status().unwrap_err();
        let text = text.source().unwrap().to_string();
        assert!(text.contains("EBUSY"), "{text}");
        // The kernel's own work goes on.
        let region = kvm_enc_region { addr: fixture.ram, size: 4096 };
        vm.platform.register_region(&region).unwrap();
    }
}
