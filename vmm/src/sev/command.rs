//! One SEV command: encoded with the address of its structure, its failure put into words.

use std::error::Error;
use std::fmt::{Display, Formatter, Result as FmtResult};
use std::ptr;

use kvm_bindings as kvm;
use kvm_bindings::kvm_sev_cmd;

use super::abi::length;
use super::{Errno, Platform, SevStatus};

/// The number and the name of a `KVM_SEV_*` command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Command {
    id: u32,
    name: &'static str,
}

/// Declares commands under their kernel names.
macro_rules! commands {
    ($($name:ident = $id:ident, $text:literal;)*) => {
        impl Command {
            $(pub(crate) const $name: Self = Self { id: kvm::$id, name: $text };)*

            /// The command with this name, which has no `KVM_SEV_` before it.
            pub(crate) fn named(name: &str) -> Option<Self> {
                match name {
                    $(stringify!($name) => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

commands! {
    INIT = sev_cmd_id_KVM_SEV_INIT, "KVM_SEV_INIT";
    INIT2 = sev_cmd_id_KVM_SEV_INIT2, "KVM_SEV_INIT2";
    LAUNCH_START = sev_cmd_id_KVM_SEV_LAUNCH_START, "KVM_SEV_LAUNCH_START";
    LAUNCH_UPDATE_DATA = sev_cmd_id_KVM_SEV_LAUNCH_UPDATE_DATA, "KVM_SEV_LAUNCH_UPDATE_DATA";
    LAUNCH_MEASURE = sev_cmd_id_KVM_SEV_LAUNCH_MEASURE, "KVM_SEV_LAUNCH_MEASURE";
    LAUNCH_SECRET = sev_cmd_id_KVM_SEV_LAUNCH_SECRET, "KVM_SEV_LAUNCH_SECRET";
    LAUNCH_FINISH = sev_cmd_id_KVM_SEV_LAUNCH_FINISH, "KVM_SEV_LAUNCH_FINISH";
    DBG_DECRYPT = sev_cmd_id_KVM_SEV_DBG_DECRYPT, "KVM_SEV_DBG_DECRYPT";
    GUEST_STATUS = sev_cmd_id_KVM_SEV_GUEST_STATUS, "KVM_SEV_GUEST_STATUS";
    SEND_START = sev_cmd_id_KVM_SEV_SEND_START, "KVM_SEV_SEND_START";
    SEND_UPDATE_DATA = sev_cmd_id_KVM_SEV_SEND_UPDATE_DATA, "KVM_SEV_SEND_UPDATE_DATA";
    SEND_FINISH = sev_cmd_id_KVM_SEV_SEND_FINISH, "KVM_SEV_SEND_FINISH";
    SEND_CANCEL = sev_cmd_id_KVM_SEV_SEND_CANCEL, "KVM_SEV_SEND_CANCEL";
    RECEIVE_START = sev_cmd_id_KVM_SEV_RECEIVE_START, "KVM_SEV_RECEIVE_START";
    RECEIVE_UPDATE_DATA = sev_cmd_id_KVM_SEV_RECEIVE_UPDATE_DATA, "KVM_SEV_RECEIVE_UPDATE_DATA";
    RECEIVE_FINISH = sev_cmd_id_KVM_SEV_RECEIVE_FINISH, "KVM_SEV_RECEIVE_FINISH";
    GET_ATTESTATION_REPORT = sev_cmd_id_KVM_SEV_GET_ATTESTATION_REPORT, "KVM_SEV_GET_ATTESTATION_REPORT";
}

impl Command {
    /// Whether it is this one that was encoded.
    pub(crate) fn is(self, encoded: &kvm_sev_cmd) -> bool {
        self.id == encoded.id
    }

    /// Its name without the prefix.
    pub(crate) fn short_name(self) -> &'static str {
        self.name.trim_start_matches("KVM_SEV_")
    }
}

/// The VM and `/dev/sev` that every command needs.
#[derive(Debug)]
pub(crate) struct Vm {
    pub(crate) platform: Box<dyn Platform>,
    pub(crate) sev_fd: i32,
}

impl Vm {
    /// Issues `command` with `data` as its structure, which it may change; the buffers whose
    /// addresses are in `data` are the caller's to keep borrowed.
    ///
    /// # Errors
    /// [`CommandError`], with the firmware's status if the firmware was called and refused.
    pub(crate) fn issue<T>(&self, command: Command, data: &mut T) -> Result<(), CommandError> {
        let mut encoded = kvm_sev_cmd {
            id: command.id,
            data: address_of_mut(data),
            sev_fd: self.sev_fd.cast_unsigned(),
            ..kvm_sev_cmd::default()
        };
        self.platform.memory_encrypt_op(&mut encoded).map_err(|errno| CommandError {
            command: command.name,
            errno,
            status: (errno == Errno::EIO && encoded.error != 0).then_some(SevStatus(encoded.error)),
        })
    }

    /// A command without a structure.
    pub(crate) fn issue_plain(&self, command: Command) -> Result<(), CommandError> {
        self.issue(command, &mut 0_u64)
    }

    /// A command that is to fail because `data` offers no room, leaving in it how much is needed.
    ///
    /// # Errors
    /// [`CommandError`] if the firmware says anything else; it never accepts such a command.
    pub(crate) fn query<T>(&self, command: Command, data: &mut T) -> Result<(), CommandError> {
        match self.issue(command, data) {
            Err(refused) if refused.status() == Some(SevStatus::INVALID_LEN) => Ok(()),
            answer => answer,
        }
    }
}

/// Address and length of a buffer that a command reads.
pub(crate) fn blob(bytes: &[u8]) -> (u64, u32) {
    (address_of(bytes), length(bytes.len()))
}

/// The address of something that a command may write.
pub(crate) fn address_of_mut<T: ?Sized>(value: &mut T) -> u64 {
    ptr::from_mut(value).expose_provenance() as u64
}

/// The address of something that a command only reads.
pub(crate) fn address_of<T: ?Sized>(value: &T) -> u64 {
    ptr::from_ref(value).expose_provenance() as u64
}

/// An SEV command that the kernel or the firmware refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CommandError {
    pub(crate) command: &'static str,
    pub(crate) errno: Errno,
    pub(crate) status: Option<SevStatus>,
}

impl CommandError {
    /// The command's kernel name.
    #[must_use]
    pub fn command(&self) -> &'static str {
        self.command
    }

    /// What the ioctl returned.
    #[must_use]
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// What the firmware said, if it was asked.
    #[must_use]
    pub fn status(&self) -> Option<SevStatus> {
        self.status
    }
}

impl Display for CommandError {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        match self.status {
            Some(status) => {
                let Self { command, .. } = self;
                write!(f, "{command}: the SEV firmware says {status}: {}", status.meaning())
            }
            None => {
                let Self { command, errno, .. } = self;
                write!(f, "{command}: {errno}: {}", errno.meaning(command))
            }
        }
    }
}

impl Error for CommandError {}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_enc_region;

    use super::*;

    /// A platform that always answers the same.
    #[derive(Debug)]
    struct Fixed {
        answer: Result<(), Errno>,
        error: u32,
    }

    impl Platform for Fixed {
        fn memory_encrypt_op(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
            // The caller must not pass a stale status.
            assert_eq!((command.error, command.sev_fd), (0, 9));
            command.error = self.error;
            self.answer
        }

        fn register_region(&self, _region: &kvm_enc_region) -> Result<(), Errno> {
            self.answer
        }

        fn unregister_region(&self, _region: &kvm_enc_region) -> Result<(), Errno> {
            self.answer
        }
    }

    fn refused(errno: Errno, error: u32) -> CommandError {
        vm(Fixed { answer: Err(errno), error }).issue_plain(Command::LAUNCH_START).unwrap_err()
    }

    fn vm(platform: Fixed) -> Vm {
        Vm { platform: Box::new(platform), sev_fd: 9 }
    }

    /// The firmware's status counts only with -EIO, and only if there is one.
    #[test]
    fn a_failure_names_the_command_and_who_refused() {
        let by_firmware = refused(Errno::EIO, 7);
        assert_eq!(by_firmware.status(), Some(SevStatus::POLICY_FAILURE));
        assert_eq!(
            by_firmware.to_string(),
            "KVM_SEV_LAUNCH_START: the SEV firmware says POLICY_FAILURE (0x7): the guest policy \
             forbids it, or asks for newer firmware than this"
        );
        assert_eq!(refused(Errno::EIO, 0).status(), None);
        let by_kernel = refused(Errno::ENOTTY, 7);
        assert_eq!((by_kernel.status(), by_kernel.errno()), (None, Errno::ENOTTY));
        assert!(by_kernel.to_string().starts_with("KVM_SEV_LAUNCH_START: ENOTTY: SEV is off"));
        assert_eq!(refused(Errno(4), 0).errno().to_string(), "errno 4");
        vm(Fixed { answer: Ok(()), error: 0 }).issue_plain(Command::LAUNCH_FINISH).unwrap();
    }

    /// Only the firmware's word that a length is wrong answers a query.
    #[test]
    fn a_query_is_answered_by_a_refusal() {
        let query =
            |answer, error| vm(Fixed { answer, error }).query(Command::SEND_START, &mut 0_u64);
        query(Err(Errno::EIO), 4).unwrap();
        assert_eq!(query(Err(Errno::EIO), 2).unwrap_err().status(), Some(SevStatus(2)));
        assert_eq!(query(Err(Errno::EINVAL), 4).unwrap_err().status(), None);
    }
}
