//! The commands that send and receive a guest.

use std::sync::Arc;

use kvm_bindings::kvm_sev_cmd;
use zerocopy::{FromZeros, IntoBytes};

use crate::page::{PAGE_LEN, PAGE_SIZE};
use crate::sev::abi::{self, BLOB_LEN_MAX, GuestState, length};
use crate::sev::packet::{HEADER_LEN, PacketHeader};
use crate::sev::session::SESSION_LEN;
use crate::sev::{Errno, SevStatus};

use super::super::firmware::TargetBlobs;
use super::super::guest::PacketShape;
use super::super::host::refuse;
use super::super::page_cipher::PageCipher;
use super::super::user_memory::{read_argument, read_directly, write_directly};
use super::{KvmVm, blob, left_in_page, read_value, user_memory, write_value};

/// Most bytes that the kernel allocates at once (`KMALLOC_MAX_SIZE`).
const ALLOCATION_LEN_MAX: u32 = 4 << 20;

impl KvmVm {
    /// `KVM_SEV_SEND_START`; no session length asks for that length.
    pub(super) fn send_start(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.sev()?;
        let mut start: abi::SendStart = read_value(command.data)?;
        let query = start.session_len == 0;
        let (mut pdh, mut chain, mut vendor) = (Vec::new(), Vec::new(), Vec::new());
        if !query {
            if start.session_uaddr == 0 || start.session_len > BLOB_LEN_MAX {
                return Err(Errno::EINVAL);
            }
            pdh = blob(start.pdh_uaddr, start.pdh_len)?;
            chain = blob(start.chain_uaddr, start.chain_len)?;
            vendor = blob(start.vendor_uaddr, start.vendor_len)?;
        }
        let target = TargetBlobs { pdh: &pdh, chain: &chain, vendor: &vendor };
        let room = start.session_len as usize;
        let answer = self.firmware(&mut command.error, |firmware, handle| {
            firmware.send_start(handle, &target, room)
        });
        // The kernel reports the firmware's policy and length, also when it refused.
        start.policy = answer.as_ref().map_or(0, |sent| sent.policy);
        if answer.is_ok() || command.error == SevStatus::INVALID_LEN.0 {
            start.session_len = length(SESSION_LEN);
        }
        let copied = match &answer {
            Ok(sent) => {
                let mut session = sent.session.as_bytes().to_vec();
                session.resize(room, 0);
                user_memory::write(start.session_uaddr, &session)
            }
            Err(_refused) => Ok(()),
        };
        copied?;
        write_value(command.data, &start)?;
        answer.map(|_sent| ())
    }

    /// `KVM_SEV_SEND_UPDATE_DATA`; without either length it asks for both.
    pub(super) fn send_update_data(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.sev()?;
        let mut packet: abi::Packet = read_argument(command)?;
        let query = packet.hdr_len == 0 || packet.trans_len == 0;
        if query {
            // The kernel passes on no address and no length.
            let none = abi::Packet::default();
            let answer = self.transfer(command, &none, GuestState::SendUpdate).map(|_keys| ());
            let too_short = answer.is_err() && command.error == SevStatus::INVALID_LEN.0;
            let tells = too_short && self.host.model.tells_packet_lengths;
            packet.hdr_len = if tells { length(HEADER_LEN) } else { 0 };
            packet.trans_len = 0;
            write_value(command.data, &packet)?;
            return answer;
        }
        check_place(&packet)?;
        self.pin(packet.guest_uaddr & !(PAGE_SIZE - 1), length(PAGE_LEN))?;
        if packet.hdr_len > ALLOCATION_LEN_MAX || packet.trans_len > ALLOCATION_LEN_MAX {
            return Err(Errno::ENOMEM);
        }
        let transfer = self.transfer(command, &packet, GuestState::SendUpdate)?;
        let mut page = [0; PAGE_LEN];
        let bytes = page.split_at_mut(packet.guest_len as usize).0;
        self.ram
            .read(packet.guest_uaddr, bytes)
            .map_err(|_not_ram| refuse(&mut command.error, SevStatus::INVALID_ADDRESS))?;
        let header = transfer.seal(bytes);
        write_directly([(packet.trans_uaddr, bytes), (packet.hdr_uaddr, header.as_bytes())])
    }

    /// `KVM_SEV_RECEIVE_START`.
    pub(super) fn receive_start(&mut self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        self.sev()?;
        let start: abi::LaunchStart = read_value(command.data)?;
        if start.session_uaddr == 0 || start.session_len == 0 {
            return Err(Errno::EINVAL);
        }
        let pdh = blob(start.dh_uaddr, start.dh_len)?;
        let session = blob(start.session_uaddr, start.session_len)?;
        self.start(command, start, |firmware| {
            firmware.receive_start(start.handle, start.policy, &pdh, &session)
        })
    }

    /// `KVM_SEV_RECEIVE_UPDATE_DATA`.
    pub(super) fn receive_update_data(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        // Not -ENOTTY as everywhere else: so says KVM.
        self.sev().map_err(|_not_sev| Errno::EINVAL)?;
        let packet: abi::Packet = read_argument(command)?;
        let abi::Packet { hdr_uaddr, hdr_len, trans_uaddr, trans_len, .. } = packet;
        if hdr_uaddr == 0 || hdr_len == 0 || trans_len == 0 {
            return Err(Errno::EINVAL);
        }
        check_place(&packet)?;
        let mut header = PacketHeader::new_zeroed();
        let mut page = [0; PAGE_LEN];
        let fits = hdr_len == length(HEADER_LEN) && trans_len <= length(PAGE_LEN);
        let bytes = page.split_at_mut(trans_len.min(length(PAGE_LEN)) as usize).0;
        if fits {
            let parts = [(hdr_uaddr, header.as_mut_bytes()), (trans_uaddr, &mut *bytes)];
            read_directly(parts)?;
        } else {
            // Lengths that the firmware refuses, once the kernel has copied what they name.
            blob(hdr_uaddr, hdr_len)?;
            blob(trans_uaddr, trans_len)?;
        }
        self.pin(packet.guest_uaddr & !(PAGE_SIZE - 1), length(PAGE_LEN))?;
        let transfer = self.transfer(command, &packet, GuestState::ReceiveUpdate)?;
        transfer.open(&header, bytes).map_err(|status| refuse(&mut command.error, status))?;
        self.ram
            .write(packet.guest_uaddr, bytes)
            .map_err(|_not_ram| refuse(&mut command.error, SevStatus::INVALID_ADDRESS))
    }

    /// `KVM_SEV_SEND_FINISH`, `KVM_SEV_SEND_CANCEL` and `KVM_SEV_RECEIVE_FINISH`.
    pub(super) fn end_transfer(
        &self,
        command: &mut kvm_sev_cmd,
        (from, to): (GuestState, GuestState),
    ) -> Result<(), Errno> {
        self.firmware(&mut command.error, |firmware, handle| {
            firmware.guest(handle)?.end_transfer(from, to)
        })
    }

    /// Asks the firmware for the keys of a page command, which it then does outside its lock.
    fn transfer(
        &self,
        command: &mut kvm_sev_cmd,
        packet: &abi::Packet,
        state: GuestState,
    ) -> Result<Arc<PageCipher>, Errno> {
        let shape = PacketShape {
            address: packet.guest_uaddr,
            guest_len: packet.guest_len,
            header_len: packet.hdr_len,
            trans_len: packet.trans_len,
        };
        self.firmware(&mut command.error, |firmware, handle| {
            firmware.guest(handle)?.transfer(state, shape)
        })
    }
}

/// Page commands take addresses, and guest memory within one page.
fn check_place(packet: &abi::Packet) -> Result<(), Errno> {
    let &abi::Packet { hdr_uaddr, guest_uaddr, guest_len, trans_uaddr, .. } = packet;
    let given = hdr_uaddr != 0 && guest_uaddr != 0 && guest_len != 0 && trans_uaddr != 0;
    if given && guest_len <= left_in_page(guest_uaddr) { Ok(()) } else { Err(Errno::EINVAL) }
}
