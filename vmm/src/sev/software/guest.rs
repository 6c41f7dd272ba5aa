//! One guest context in the firmware: its state, keys and launch digest.

use zerocopy::FromBytes;

use crate::sev::abi::GuestState;
use crate::sev::measurement::{
    Claim, FirmwareVersion, LaunchDigest, MEASUREMENT_LEN, Measurement, ReportBody,
};
use crate::sev::packet::{self, Header, Purpose};
use crate::sev::session::{TransportKeys, random};
use crate::sev::{Policy, Status};

/// Largest secret in bytes.
const SECRET_LEN_MAX: usize = 0x4000;

/// A guest that the firmware knows; without one the state is UNINIT.
#[derive(Debug)]
pub(super) struct Guest {
    pub(super) state: GuestState,
    pub(super) policy: Policy,
    pub(super) asid: Option<u32>,
    keys: TransportKeys,
    digest: LaunchDigest,
    /// Set by `LAUNCH_MEASURE`.
    measurement: Option<Measurement>,
}

impl Guest {
    /// A guest that accepts launch data.
    pub(super) fn launching(policy: Policy, keys: TransportKeys) -> Self {
        Self {
            state: GuestState::LaunchUpdate,
            policy,
            asid: None,
            keys,
            digest: LaunchDigest::default(),
            measurement: None,
        }
    }

    /// Refuses a command that is not legal now.
    pub(super) fn require(&self, state: GuestState) -> Result<(), Status> {
        if self.state == state { Ok(()) } else { Err(Status::INVALID_GUEST_STATE) }
    }

    /// Refuses launch data that the firmware would not take.
    pub(super) fn check_update(&self, address: u64, len: u64) -> Result<(), Status> {
        self.require(GuestState::LaunchUpdate)?;
        self.require_active()?;
        check_blocks(address, len)
    }

    /// Where launch data goes after [`Guest::check_update`].
    pub(super) fn digest_mut(&mut self) -> &mut LaunchDigest {
        &mut self.digest
    }

    /// `LAUNCH_MEASURE` into a buffer of `room` bytes.
    pub(super) fn measure(
        &mut self,
        version: FirmwareVersion,
        room: usize,
    ) -> Result<Measurement, Status> {
        self.require(GuestState::LaunchUpdate)?;
        if room < MEASUREMENT_LEN {
            return Err(Status::INVALID_LEN);
        }
        let claim = Claim { version, policy: self.policy, digest: self.digest.finish() };
        let nonce = random().map_err(|_no_randomness| Status::HW_PLATFORM)?;
        let measurement = claim.measure(&self.keys.tik, nonce);
        self.measurement = Some(measurement);
        self.state = GuestState::LaunchSecret;
        Ok(measurement)
    }

    /// `LAUNCH_SECRET`: decrypts `ciphertext` in place.
    pub(super) fn open_secret(
        &self,
        header: &[u8],
        (address, guest_len): (u64, u32),
        ciphertext: &mut [u8],
    ) -> Result<(), Status> {
        self.require(GuestState::LaunchSecret)?;
        self.require_active()?;
        let header = Header::read_from_bytes(header).map_err(|_size| Status::INVALID_LEN)?;
        if ciphertext.len() > SECRET_LEN_MAX || ciphertext.len() != guest_len as usize {
            return Err(Status::INVALID_LEN);
        }
        check_blocks(address, guest_len.into())?;
        let measurement = self.measurement.as_ref().ok_or(Status::INVALID_GUEST_STATE)?;
        let purpose = Purpose::Secret { measure: &measurement.mac };
        packet::open(&self.keys, purpose, &header, ciphertext)
    }

    /// `LAUNCH_FINISH`.
    pub(super) fn finish_launch(&mut self) -> Result<(), Status> {
        self.require(GuestState::LaunchSecret)?;
        self.state = GuestState::Running;
        Ok(())
    }

    /// What `ATTESTATION` says about the guest, once it is measured.
    pub(super) fn report(&self, nonce: [u8; 16]) -> Result<ReportBody, Status> {
        match self.state {
            GuestState::LaunchSecret | GuestState::Running => Ok(ReportBody {
                nonce,
                digest: self.digest.finish(),
                policy: self.policy.bits().to_le_bytes(),
            }),
            GuestState::Uninitialised
            | GuestState::LaunchUpdate
            | GuestState::SendUpdate
            | GuestState::ReceiveUpdate
            | GuestState::Sent => Err(Status::INVALID_GUEST_STATE),
        }
    }

    /// Whether the host may read and write the guest's memory.
    pub(super) fn check_debug(&self) -> Result<(), Status> {
        self.require_active()?;
        if self.policy.has(Policy::NODBG) { Err(Status::POLICY_FAILURE) } else { Ok(()) }
    }

    fn require_active(&self) -> Result<(), Status> {
        self.asid.map(|_asid| ()).ok_or(Status::INACTIVE)
    }
}

/// Encrypted memory is addressed in blocks of 16 bytes.
fn check_blocks(address: u64, len: u64) -> Result<(), Status> {
    if !address.is_multiple_of(16) {
        return Err(Status::INVALID_ADDRESS);
    }
    if len == 0 || !len.is_multiple_of(16) {
        return Err(Status::INVALID_LEN);
    }
    Ok(())
}
