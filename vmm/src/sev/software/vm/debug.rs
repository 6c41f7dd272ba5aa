//! The debug commands: the host reads and writes a guest whose policy allows it.

use kvm_bindings::kvm_sev_cmd;

use crate::sev::{Errno, SevStatus, abi};

use super::{KvmVm, left_in_page, read_value, user_memory};

impl KvmVm {
    /// `KVM_SEV_DBG_DECRYPT`, or with `encrypt` `KVM_SEV_DBG_ENCRYPT`, a page of each side at a time.
    pub(super) fn debug(&self, command: &mut kvm_sev_cmd, encrypt: bool) -> Result<(), Errno> {
        self.sev()?;
        let abi::Debug { src_uaddr, dst_uaddr, len, .. } = read_value(command.data)?;
        let source_end = src_uaddr.checked_add(len.into());
        if len == 0 || source_end.is_none() || dst_uaddr == 0 {
            return Err(Errno::EINVAL);
        }
        let mut done = 0;
        while done < len {
            let source = src_uaddr.saturating_add(done.into());
            let target = dst_uaddr.saturating_add(done.into());
            let piece = (len - done).min(left_in_page(source)).min(left_in_page(target));
            let mut bytes = vec![0; piece as usize];
            // A page of each side.
            self.lockable(2)?;
            if !self.ram.contains(if encrypt { target } else { source }, piece.into()) {
                return Err(Errno::ENOMEM);
            }
            if encrypt {
                user_memory::read(source, &mut bytes).map_err(|_unpinnable| Errno::ENOMEM)?;
            }
            self.firmware(&mut command.error, |firmware, handle| {
                firmware.guest(handle)?.check_debug()?;
                let moved = if encrypt {
                    self.ram.write(target, &bytes)
                } else {
                    self.ram.read(source, &mut bytes)
                };
                moved.map_err(|_not_ram| SevStatus::INVALID_ADDRESS)
            })?;
            if !encrypt {
                user_memory::write(target, &bytes).map_err(|_unpinnable| Errno::ENOMEM)?;
            }
            done += piece;
        }
        Ok(())
    }
}
