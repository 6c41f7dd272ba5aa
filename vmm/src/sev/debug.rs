//! What the host may read of a guest whose policy allows it: `KVM_SEV_DBG_DECRYPT`.

use super::abi::{self, length};
use super::command::{Command, CommandError, address_of_mut};
use super::launch::Launched;

impl Launched {
    /// `DBG_DECRYPT`: reads guest RAM at host address `address` as the guest sees it where it is
    /// private. The policy's NODBG forbids it.
    ///
    /// # Errors
    /// [`CommandError`]; with NODBG the firmware says `POLICY_FAILURE`.
    pub fn read_private(&self, address: u64, bytes: &mut [u8]) -> Result<(), CommandError> {
        let len = length(bytes.len());
        let mut debug =
            abi::Debug { src_uaddr: address, dst_uaddr: address_of_mut(bytes), len, pad0: 0 };
        self.vm.issue(Command::DBG_DECRYPT, &mut debug)
    }
}

#[cfg(test)]
mod tests {
    use crate::sev::launch::Initialised;
    use crate::sev::software::fixture::{Fixture, RAM_LEN};
    use crate::sev::{Policy, SevStatus};

    /// The host reads what the guest sees, if the policy says so, and else nothing.
    #[test]
    fn a_policy_decides_whether_the_host_reads() {
        for (policy, allowed) in [(Policy::SEV, true), (Policy::SEV | Policy::NODBG, false)] {
            let fixture = Fixture::new();
            let init = Initialised::init(fixture.boxed(), fixture.fd()).unwrap();
            init.register_region(fixture.ram, RAM_LEN).unwrap();
            let launching = init.start(Policy::new(policy).unwrap(), None).unwrap();
            fixture.host_writes(0x1000, &[7; 4096]);
            launching.update(fixture.ram + 0x1000, 4096).unwrap();
            let launched = launching.measure().unwrap().finish().unwrap();
            let mut page = [0; 4096];
            let read = launched.read_private(fixture.ram + 0x1000, &mut page);
            assert_eq!(page, if allowed { [7; 4096] } else { [0; 4096] });
            let status = read.map_err(|refused| refused.status());
            assert_eq!(status, if allowed { Ok(()) } else { Err(Some(SevStatus::POLICY_FAILURE)) });
        }
    }
}
