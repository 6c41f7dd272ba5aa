//! One guest context in the firmware: its state, its launch and its transfer.

use std::sync::Arc;

use zerocopy::FromBytes;

use crate::sev::abi::{GuestState, length};
use crate::sev::measurement::{
    Claim, FirmwareVersion, LaunchDigest, MEASUREMENT_LEN, Measurement, ReportBody,
};
use crate::sev::packet::{HEADER_LEN, PacketHeader, PacketKeys, Purpose};
use crate::sev::session::{Key, TransportKeys, random};
use crate::sev::{Policy, SevStatus};

use super::page_cipher::PageCipher;

/// Largest secret in bytes.
const SECRET_LEN_MAX: usize = 0x4000;

/// A guest that the firmware knows; without one the state is UNINIT.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) state: GuestState,
    pub(super) policy: Policy,
    pub(super) asid: Option<u32>,
    /// `None` for a guest that was received.
    launch: Option<Launch>,
    /// Set while the guest is being sent or received.
    transfer: Option<Arc<PageCipher>>,
}

/// A guest's launch, as its owner and the firmware know it.
#[derive(Debug)]
pub(super) struct Launch {
    keys: PacketKeys,
    tik: Key,
    pub(super) digest: LaunchDigest,
    /// Set by `LAUNCH_MEASURE`.
    measurement: Option<Measurement>,
}

impl Guest {
    /// A guest that accepts launch data.
    pub(super) fn launching(policy: Policy, keys: &TransportKeys) -> Self {
        let launch = Launch {
            keys: PacketKeys::new(keys),
            tik: keys.tik.clone(),
            digest: LaunchDigest::default(),
            measurement: None,
        };
        Self {
            state: GuestState::LaunchUpdate,
            policy,
            asid: None,
            launch: Some(launch),
            transfer: None,
        }
    }

    /// A guest that accepts pages from another platform.
    pub(super) fn receiving(policy: Policy, transfer: PageCipher) -> Self {
        Self {
            state: GuestState::ReceiveUpdate,
            policy,
            asid: None,
            launch: None,
            transfer: Some(Arc::new(transfer)),
        }
    }

    /// Refuses a command that is not legal now.
    pub(super) fn require(&self, state: GuestState) -> Result<(), SevStatus> {
        if self.state == state { Ok(()) } else { Err(SevStatus::INVALID_GUEST_STATE) }
    }

    /// Where launch data goes, unless the firmware would not take it.
    pub(super) fn update(
        &mut self,
        address: u64,
        len: u64,
    ) -> Result<&mut LaunchDigest, SevStatus> {
        self.require(GuestState::LaunchUpdate)?;
        self.require_active()?;
        check_blocks(address, len)?;
        let launch = self.launch.as_mut().ok_or(SevStatus::INVALID_GUEST_STATE)?;
        Ok(&mut launch.digest)
    }

    /// `LAUNCH_MEASURE` into a buffer of `room` bytes.
    pub(super) fn measure(
        &mut self,
        version: FirmwareVersion,
        room: usize,
    ) -> Result<Measurement, SevStatus> {
        self.require(GuestState::LaunchUpdate)?;
        if room < MEASUREMENT_LEN {
            return Err(SevStatus::INVALID_LEN);
        }
        let launch = self.launch.as_mut().ok_or(SevStatus::INVALID_GUEST_STATE)?;
        let claim = Claim { version, policy: self.policy, digest: launch.digest.finish() };
        let nonce = random().map_err(|_no_randomness| SevStatus::HW_PLATFORM)?;
        let measurement = claim.measure(&launch.tik, nonce);
        launch.measurement = Some(measurement);
        self.state = GuestState::LaunchSecret;
        Ok(measurement)
    }

    /// `LAUNCH_SECRET`: decrypts `ciphertext` in place.
    pub(super) fn open_secret(
        &self,
        header: &[u8],
        (address, guest_len): (u64, u32),
        ciphertext: &mut [u8],
    ) -> Result<(), SevStatus> {
        self.require(GuestState::LaunchSecret)?;
        self.require_active()?;
        let header =
            PacketHeader::read_from_bytes(header).map_err(|_size| SevStatus::INVALID_LEN)?;
        if ciphertext.len() > SECRET_LEN_MAX || ciphertext.len() != guest_len as usize {
            return Err(SevStatus::INVALID_LEN);
        }
        check_blocks(address, guest_len.into())?;
        let launch = self.launch.as_ref().ok_or(SevStatus::INVALID_GUEST_STATE)?;
        let measurement = launch.measurement.as_ref().ok_or(SevStatus::INVALID_GUEST_STATE)?;
        let purpose = Purpose::Secret { measure: &measurement.mac };
        launch.keys.open(purpose, &header, ciphertext)
    }

    /// `LAUNCH_FINISH`.
    pub(super) fn finish_launch(&mut self) -> Result<(), SevStatus> {
        self.require(GuestState::LaunchSecret)?;
        self.state = GuestState::Running;
        Ok(())
    }

    /// What `ATTESTATION` says about the guest, once it is measured.
    pub(super) fn report(&self, nonce: [u8; 16]) -> Result<ReportBody, SevStatus> {
        match self.state {
            GuestState::LaunchSecret | GuestState::Running => Ok(ReportBody {
                nonce,
                // A transfer does not carry the launch digest.
                digest: self.launch.as_ref().map_or([0; 32], |launch| launch.digest.finish()),
                policy: self.policy.bits().to_le_bytes(),
            }),
            GuestState::Uninitialised
            | GuestState::LaunchUpdate
            | GuestState::SendUpdate
            | GuestState::ReceiveUpdate
            | GuestState::Sent => Err(SevStatus::INVALID_GUEST_STATE),
        }
    }

    /// `SEND_START`, once the target is known to be right.
    pub(super) fn start_sending(&mut self, transfer: PageCipher) {
        self.transfer = Some(Arc::new(transfer));
        self.state = GuestState::SendUpdate;
    }

    /// Ends the transfer of state `from`, which forgets its keys, and goes on in state `to`:
    /// `SEND_FINISH`, `SEND_CANCEL` and `RECEIVE_FINISH`.
    pub(super) fn end_transfer(
        &mut self,
        from: GuestState,
        to: GuestState,
    ) -> Result<(), SevStatus> {
        self.require(from)?;
        self.transfer = None;
        self.state = to;
        Ok(())
    }

    /// The keys with which a page is sealed in state SUPDATE, or opened in state RUPDATE.
    pub(super) fn transfer(
        &self,
        state: GuestState,
        packet: PacketShape,
    ) -> Result<Arc<PageCipher>, SevStatus> {
        self.require(state)?;
        self.require_active()?;
        if packet.header_len != length(HEADER_LEN) || packet.trans_len != packet.guest_len {
            return Err(SevStatus::INVALID_LEN);
        }
        check_blocks(packet.address, packet.guest_len.into())?;
        self.transfer.clone().ok_or(SevStatus::INVALID_GUEST_STATE)
    }

    /// Whether the host may read and write the guest's memory.
    pub(super) fn check_debug(&self) -> Result<(), SevStatus> {
        if self.state == GuestState::Sent {
            return Err(SevStatus::INVALID_GUEST_STATE);
        }
        self.require_active()?;
        if self.policy.has(Policy::NODBG) { Err(SevStatus::POLICY_FAILURE) } else { Ok(()) }
    }

    fn require_active(&self) -> Result<(), SevStatus> {
        self.asid.map(|_asid| ()).ok_or(SevStatus::INACTIVE)
    }
}

/// What a page command says about its packet.
#[derive(Debug, Clone, Copy)]
pub(super) struct PacketShape {
    pub(super) address: u64,
    pub(super) guest_len: u32,
    pub(super) header_len: u32,
    pub(super) trans_len: u32,
}

/// Encrypted memory is addressed in blocks of 16 bytes.
fn check_blocks(address: u64, len: u64) -> Result<(), SevStatus> {
    if !address.is_multiple_of(16) {
        return Err(SevStatus::INVALID_ADDRESS);
    }
    if len == 0 || !len.is_multiple_of(16) {
        return Err(SevStatus::INVALID_LEN);
    }
    Ok(())
}
