//! One VM's SEV ioctls as KVM answers them: its checks, in its order, with its errno
//! (`arch/x86/kvm/svm/sev.c` of Linux 6.1 to 6.17 is what this was compared with).

mod debug;
mod transfer;

use std::mem::offset_of;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use kvm_bindings as kvm;
use kvm_bindings::{kvm_enc_region, kvm_sev_cmd};
use zerocopy::IntoBytes;

use crate::memory::GuestView;
use crate::page::PAGE_SIZE;
use crate::sev::abi::{self, BLOB_LEN_MAX, GuestState, length};
use crate::sev::measurement::{MEASUREMENT_LEN, REPORT_LEN};
use crate::sev::{Errno, Platform, SevStatus};

use super::firmware::Firmware;
use super::host::SoftwareHost;
use super::model::Model;
use super::user_memory::{self, read_value, write_value};

/// A VM whose SEV commands are answered in software. Dropping it is destroying the VM.
#[derive(Debug)]
pub struct SoftwarePlatform {
    /// Stands for KVM's lock of the VM, but lets several threads seal or open pages. So a command that
    /// ends a transfer waits for the pages being sealed, and none is sealed after it.
    vm: RwLock<KvmVm>,
}

/// The VM as KVM sees it.
#[derive(Debug)]
struct KvmVm {
    host: SoftwareHost,
    ram: GuestView,
    /// Whether it has had a vCPU.
    has_vcpu: bool,
    /// Set by `KVM_SEV_INIT`.
    sev: Option<SevVm>,
    /// How often unregistering memory has made the kernel write back all caches.
    write_backs: u64,
}

/// What KVM keeps about an SEV VM.
#[derive(Debug)]
struct SevVm {
    asid: u32,
    /// The firmware's handle; 0 before `LAUNCH_START`.
    handle: u32,
    /// The `/dev/sev` of `LAUNCH_START`, which later commands use; 0 before it.
    sev_fd: i32,
    regions: Vec<kvm_enc_region>,
    /// Pages of those.
    locked: u64,
}

impl SoftwareHost {
    /// The SEV side of a new VM whose private memory is `ram`.
    #[must_use]
    pub fn new_vm(&self, ram: GuestView) -> SoftwarePlatform {
        SoftwarePlatform::new(self.clone(), ram)
    }
}

impl SoftwarePlatform {
    fn new(host: SoftwareHost, ram: GuestView) -> Self {
        let vm = KvmVm { host, ram, has_vcpu: false, sev: None, write_backs: 0 };
        Self { vm: RwLock::new(vm) }
    }

    /// The VM gets a vCPU, which KVM must hear of before `KVM_SEV_INIT`.
    pub fn vcpu_created(&self) {
        self.exclusive().has_vcpu = true;
    }

    /// How often unregistering memory has made the kernel write back all caches.
    #[must_use]
    pub fn write_backs(&self) -> u64 {
        self.with_others().write_backs
    }

    fn exclusive(&self) -> RwLockWriteGuard<'_, KvmVm> {
        self.vm.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn with_others(&self) -> RwLockReadGuard<'_, KvmVm> {
        self.vm.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl KvmVm {
    fn sev(&self) -> Result<&SevVm, Errno> {
        self.sev.as_ref().ok_or(Errno::ENOTTY)
    }

    /// Runs a firmware command for the guest that was started on this VM.
    fn firmware<R>(
        &self,
        error: &mut u32,
        command: impl FnOnce(&mut Firmware, u32) -> Result<R, SevStatus>,
    ) -> Result<R, Errno> {
        let sev = self.sev()?;
        self.host.call(sev.sev_fd, error, |firmware| command(firmware, sev.handle))
    }

    /// Pins guest RAM for a command, or says that it is none, or more than may be locked.
    fn pin(&self, address: u64, len: u32) -> Result<(), Errno> {
        self.lockable(pages(address, len.into())?)?;
        if self.ram.contains(address, len.into()) { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Whether so many pages may be locked beside those that are: KVM counts for each VM.
    fn lockable(&self, pages: u64) -> Result<(), Errno> {
        let locked = self.sev.as_ref().map_or(0, |sev| sev.locked).saturating_add(pages);
        match self.host.model.lock_limit {
            Some(most) if locked > most / PAGE_SIZE => Err(Errno::ENOMEM),
            _ => Ok(()),
        }
    }

    fn init(&mut self) -> Result<(), Errno> {
        let Model { kernel, asids, .. } = self.host.model;
        if self.has_vcpu {
            return Err(Errno::EINVAL);
        }
        if self.sev.is_some() {
            return Err(if kernel.has_newer_errors() { Errno::EINVAL } else { Errno::EBUSY });
        }
        if asids == 0 && kernel.has_newer_errors() {
            return Err(Errno::ENOTTY);
        }
        let mut host = self.host.lock();
        let asid = host.free_asids.pop_first().ok_or(Errno::EBUSY)?;
        host.is_initialised = true;
        drop(host);
        self.sev = Some(SevVm { asid, handle: 0, sev_fd: 0, regions: Vec::new(), locked: 0 });
        Ok(())
    }

    /// `KVM_SEV_LAUNCH_START`.
    fn launch_start(&mut self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.sev()?;
        let start: abi::LaunchStart = read_value(command.data)?;
        let certificate = optional_blob(start.dh_uaddr, start.dh_len)?;
        let session = optional_blob(start.session_uaddr, start.session_len)?;
        self.start(command, start, |firmware| {
            let (certificate, session) = (certificate.as_deref(), session.as_deref());
            firmware.launch_start(start.handle, start.policy, certificate, session)
        })
    }

    /// `KVM_SEV_LAUNCH_START` and `KVM_SEV_RECEIVE_START` once the structure is read: makes a guest,
    /// binds it to the VM's ASID, and reports its handle.
    fn start(
        &mut self,
        command: &mut kvm_sev_cmd,
        mut start: abi::LaunchStart,
        make: impl FnOnce(&mut Firmware) -> Result<u32, SevStatus>,
    ) -> Result<(), Errno> {
        let asid = self.sev()?.asid;
        let sev_fd = command.sev_fd.cast_signed();
        let handle = self.host.call(sev_fd, &mut command.error, make)?;
        let activated =
            self.host.call(sev_fd, &mut command.error, |firmware| firmware.activate(handle, asid));
        start.handle = handle;
        if let Err(errno) = activated.and_then(|()| write_value(command.data, &start)) {
            // Like KVM: nothing is left of a guest that could not be bound or reported.
            self.host.lock().firmware.forget(handle);
            return Err(errno);
        }
        if let Some(sev) = &mut self.sev {
            (sev.handle, sev.sev_fd) = (handle, sev_fd);
        }
        Ok(())
    }

    fn launch_update_data(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.sev()?;
        let abi::Buffer { uaddr, len, .. } = read_value(command.data)?;
        self.pin(uaddr, len)?;
        self.firmware(&mut command.error, |firmware, handle| {
            let digest = firmware.guest(handle)?.update(uaddr, len.into())?;
            self.ram
                .encrypt_in_place(uaddr, len.into(), &mut |bytes| digest.update(bytes))
                .map_err(|_not_ram| SevStatus::INVALID_ADDRESS)
        })
    }

    fn launch_measure(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.sev()?;
        let (buffer, version) = (command.data, self.host.model.firmware);
        self.export(command, buffer, MEASUREMENT_LEN, |firmware, handle, room| {
            let measurement = firmware.guest(handle)?.measure(version, room)?;
            Ok(measurement.to_bytes().to_vec())
        })
    }

    fn launch_secret(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.sev()?;
        let packet: abi::Packet = read_value(command.data)?;
        self.pin(packet.guest_uaddr, packet.guest_len)?;
        if packet.guest_len > left_in_page(packet.guest_uaddr) {
            return Err(Errno::EINVAL);
        }
        let mut bytes = blob(packet.trans_uaddr, packet.trans_len)?;
        let header = blob(packet.hdr_uaddr, packet.hdr_len)?;
        self.firmware(&mut command.error, |firmware, handle| {
            let place = (packet.guest_uaddr, packet.guest_len);
            firmware.guest(handle)?.open_secret(&header, place, &mut bytes)?;
            self.ram
                .write(packet.guest_uaddr, &bytes)
                .map_err(|_not_ram| SevStatus::INVALID_ADDRESS)
        })
    }

    fn launch_finish(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.firmware(&mut command.error, |firmware, handle| {
            firmware.guest(handle)?.finish_launch()
        })
    }

    fn guest_status(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        let status = self.firmware(&mut command.error, |firmware, handle| {
            let guest = firmware.guest(handle)?;
            Ok(abi::GuestStatus { handle, policy: guest.policy.bits(), state: guest.state as u32 })
        })?;
        write_value(command.data, &status)
    }

    fn attestation_report(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.sev()?;
        let request: abi::AttestationReport = read_value(command.data)?;
        let buffer = command.data.saturating_add(offset_of!(abi::AttestationReport, buffer) as u64);
        self.export(command, buffer, REPORT_LEN, |firmware, handle, room| {
            firmware.attest(handle, request.mnonce, room).map(|report| report.as_bytes().to_vec())
        })
    }

    /// A command whose output goes to the [`abi::Buffer`] at `buffer`: no length asks for the length.
    fn export(
        &self,
        command: &mut kvm_sev_cmd,
        buffer: u64,
        size: usize,
        produce: impl FnOnce(&mut Firmware, u32, usize) -> Result<Vec<u8>, SevStatus>,
    ) -> Result<(), Errno> {
        let mut asked: abi::Buffer = read_value(buffer)?;
        let room = if asked.uaddr == 0 { 0 } else { asked.len };
        if room > BLOB_LEN_MAX {
            return Err(Errno::EINVAL);
        }
        let answer = self.firmware(&mut command.error, |firmware, handle| {
            produce(firmware, handle, room as usize)
        });
        if asked.len == 0 {
            let too_short = answer.is_err() && command.error == SevStatus::INVALID_LEN.0;
            asked.len = if too_short { length(size) } else { 0 };
            write_value(buffer, &asked)?;
            return answer.map(|_output| ());
        }
        let mut output = answer?;
        // KVM copies as much as the caller offered, zeros behind the output.
        output.resize(room as usize, 0);
        let copied = user_memory::write(asked.uaddr, &output);
        asked.len = length(size);
        write_value(buffer, &asked)?;
        copied
    }
}

impl KvmVm {
    /// A command that runs alone on its VM.
    fn command(&mut self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        match command.id {
            kvm::sev_cmd_id_KVM_SEV_INIT => self.init(),
            kvm::sev_cmd_id_KVM_SEV_ES_INIT => Err(Errno::ENOTTY),
            kvm::sev_cmd_id_KVM_SEV_LAUNCH_START => self.launch_start(command),
            kvm::sev_cmd_id_KVM_SEV_LAUNCH_UPDATE_DATA => self.launch_update_data(command),
            // Only an SEV-ES VM has VMSAs.
            kvm::sev_cmd_id_KVM_SEV_LAUNCH_UPDATE_VMSA => Err(Errno::ENOTTY),
            kvm::sev_cmd_id_KVM_SEV_LAUNCH_MEASURE => self.launch_measure(command),
            kvm::sev_cmd_id_KVM_SEV_LAUNCH_SECRET => self.launch_secret(command),
            kvm::sev_cmd_id_KVM_SEV_LAUNCH_FINISH => self.launch_finish(command),
            kvm::sev_cmd_id_KVM_SEV_SEND_START => self.send_start(command),
            kvm::sev_cmd_id_KVM_SEV_SEND_FINISH => {
                self.end_transfer(command, (GuestState::SendUpdate, GuestState::Sent))
            }
            kvm::sev_cmd_id_KVM_SEV_SEND_CANCEL => {
                self.end_transfer(command, (GuestState::SendUpdate, GuestState::Running))
            }
            kvm::sev_cmd_id_KVM_SEV_RECEIVE_START => self.receive_start(command),
            kvm::sev_cmd_id_KVM_SEV_RECEIVE_FINISH => {
                self.end_transfer(command, (GuestState::ReceiveUpdate, GuestState::Running))
            }
            kvm::sev_cmd_id_KVM_SEV_GUEST_STATUS => self.guest_status(command),
            kvm::sev_cmd_id_KVM_SEV_DBG_DECRYPT => self.debug(command, false),
            kvm::sev_cmd_id_KVM_SEV_DBG_ENCRYPT => self.debug(command, true),
            kvm::sev_cmd_id_KVM_SEV_GET_ATTESTATION_REPORT => self.attestation_report(command),
            _ => Err(Errno::EINVAL),
        }
    }

    fn register_region(&mut self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.sev()?;
        let pages = pages(region.addr, region.size)?;
        self.lockable(pages)?;
        let last = region.addr.saturating_add(region.size - 1);
        let is_mapped = |address| user_memory::read(address, &mut [0]).is_ok();
        let is_ram = self.ram.contains(region.addr, region.size);
        if !is_ram && (!is_mapped(region.addr) || !is_mapped(last)) {
            return Err(Errno::ENOMEM);
        }
        self.host.model.take_time_to_pin(region.size);
        let sev = self.sev.as_mut().ok_or(Errno::ENOTTY)?;
        sev.locked = sev.locked.saturating_add(pages);
        sev.regions.push(*region);
        Ok(())
    }

    fn unregister_region(&mut self, region: &kvm_enc_region) -> Result<(), Errno> {
        let sev = self.sev.as_mut().ok_or(Errno::ENOTTY)?;
        let at = sev.regions.iter().position(|registered| registered == region);
        let gone = sev.regions.swap_remove(at.ok_or(Errno::EINVAL)?);
        sev.locked = sev.locked.saturating_sub(pages(gone.addr, gone.size)?);
        self.write_backs += 1;
        Ok(())
    }
}

impl Platform for SoftwarePlatform {
    fn memory_encrypt_op(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        match command.id {
            kvm::sev_cmd_id_KVM_SEV_SEND_UPDATE_DATA => {
                self.with_others().send_update_data(command)
            }
            kvm::sev_cmd_id_KVM_SEV_RECEIVE_UPDATE_DATA => {
                self.with_others().receive_update_data(command)
            }
            _ => self.exclusive().command(command),
        }
    }

    fn register_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.exclusive().register_region(region)
    }

    fn unregister_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.exclusive().unregister_region(region)
    }
}

impl Drop for KvmVm {
    fn drop(&mut self) {
        if let Some(sev) = &self.sev {
            let mut host = self.host.lock();
            host.firmware.forget(sev.handle);
            host.free_asids.insert(sev.asid);
        }
    }
}

/// What the kernel copies for the firmware.
fn blob(address: u64, len: u32) -> Result<Vec<u8>, Errno> {
    if address == 0 || len == 0 || len > BLOB_LEN_MAX {
        return Err(Errno::EINVAL);
    }
    let mut bytes = vec![0; len as usize];
    user_memory::read(address, &mut bytes)?;
    Ok(bytes)
}

fn optional_blob(address: u64, len: u32) -> Result<Option<Vec<u8>>, Errno> {
    if address == 0 { Ok(None) } else { blob(address, len).map(Some) }
}

/// How many pages the kernel pins for so many bytes.
fn pages(address: u64, len: u64) -> Result<u64, Errno> {
    let last =
        len.checked_sub(1).and_then(|rest| address.checked_add(rest)).ok_or(Errno::EINVAL)?;
    if last == u64::MAX {
        return Err(Errno::EINVAL);
    }
    Ok(last / PAGE_SIZE - address / PAGE_SIZE + 1)
}

/// Bytes from `address` to the end of its page.
fn left_in_page(address: u64) -> u32 {
    u32::try_from(PAGE_SIZE - address % PAGE_SIZE).unwrap_or(0)
}

#[cfg(test)]
mod tests;
