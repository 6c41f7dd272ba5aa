//! The firmware on the secure processor: which guests exist and what each command does to them.
//!
//! From the public ABI and AMD's published tools; nothing here comes from firmware source.

use std::collections::BTreeMap;

use p384::PublicKey;
use zerocopy::FromBytes;

use crate::sev::certificate::Certificate;
use crate::sev::measurement::{AttestationReport, FirmwareVersion, REPORT_LEN};
use crate::sev::session::{Session, SharedSecret, TransportKeys};
use crate::sev::{Policy, Status};

use super::guest::Guest;
use super::identity::Identity;

/// The API version that this model follows; the newest for plain SEV.
pub(super) const VERSION: FirmwareVersion = FirmwareVersion { major: 1, minor: 55, build: 1 };

/// Most guests that the firmware keeps.
const GUESTS_MAX: usize = 4096;

/// The firmware's memory.
#[derive(Debug)]
pub(super) struct Firmware {
    identity: Identity,
    guests: BTreeMap<u32, Guest>,
    last_handle: u32,
}

impl Firmware {
    pub(super) fn new(identity: Identity) -> Self {
        Self { identity, guests: BTreeMap::new(), last_handle: 0 }
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    pub(super) fn guest_count(&self) -> usize {
        self.guests.len()
    }

    /// `LAUNCH_START`: makes a guest and returns its handle. `shared` is 0, or the handle of the
    /// guest whose memory key the new one shares.
    pub(super) fn launch_start(
        &mut self,
        shared: u32,
        policy: u32,
        owner_certificate: Option<&[u8]>,
        session: Option<&[u8]>,
    ) -> Result<u32, Status> {
        let peer = match owner_certificate {
            Some(bytes) => Some(peer_key(bytes)?),
            None => None,
        };
        let session = match session {
            Some(bytes) => {
                Some(Session::read_from_bytes(bytes).map_err(|_size| Status::INVALID_LEN)?)
            }
            None => None,
        };
        let policy = Policy::new(policy).map_err(|_reserved| Status::POLICY_FAILURE)?;
        let keys = match (peer, session) {
            (Some(peer), Some(session)) => {
                session.unwrap(&SharedSecret::agree(self.identity.pdh_key(), &peer), policy)?
            }
            (None, None) => {
                TransportKeys::random().map_err(|_no_randomness| Status::HW_PLATFORM)?
            }
            (Some(_), None) => return Err(Status::INVALID_LEN),
            (None, Some(_)) => return Err(Status::INVALID_CERTIFICATE),
        };
        check_policy(policy)?;
        self.check_key_sharing(shared, policy)?;
        self.add(Guest::launching(policy, keys))
    }

    /// `ACTIVATE`: binds a guest to an ASID.
    pub(super) fn activate(&mut self, handle: u32, asid: u32) -> Result<(), Status> {
        if self.guests.values().any(|guest| guest.asid == Some(asid)) {
            return Err(Status::ASID_OWNED);
        }
        let guest = self.guest(handle)?;
        match guest.asid {
            Some(_) => Err(Status::ACTIVE),
            None => {
                guest.asid = Some(asid);
                Ok(())
            }
        }
    }

    /// `DEACTIVATE` and `DECOMMISSION`, which KVM issues together and whose errors it ignores:
    /// forgets a guest and its keys.
    pub(super) fn forget(&mut self, handle: u32) {
        self.guests.remove(&handle);
    }

    /// `ATTESTATION` into a buffer of `room` bytes.
    pub(super) fn attest(
        &mut self,
        handle: u32,
        nonce: [u8; 16],
        room: usize,
    ) -> Result<AttestationReport, Status> {
        let body = self.guest(handle)?.report(nonce)?;
        if room < REPORT_LEN {
            return Err(Status::INVALID_LEN);
        }
        AttestationReport::sign(body, self.identity.pek_key())
            .map_err(|_unsigned| Status::HW_PLATFORM)
    }

    /// The guest with this handle.
    pub(super) fn guest(&mut self, handle: u32) -> Result<&mut Guest, Status> {
        self.guests.get_mut(&handle).ok_or(Status::INVALID_GUEST)
    }

    /// A guest may share another's key only if both have the same policy and it allows that.
    fn check_key_sharing(&self, handle: u32, policy: Policy) -> Result<(), Status> {
        if handle == 0 {
            return Ok(());
        }
        let other = self.guests.get(&handle).ok_or(Status::INVALID_GUEST)?;
        if other.policy == policy && !policy.has(Policy::NOKS) {
            Ok(())
        } else {
            Err(Status::POLICY_FAILURE)
        }
    }

    fn add(&mut self, guest: Guest) -> Result<u32, Status> {
        if self.guests.len() >= GUESTS_MAX {
            return Err(Status::RESOURCE_LIMIT);
        }
        // Handles are not reused soon, so that one kept too long is refused. 0 names no guest.
        let mut handle = self.last_handle;
        loop {
            handle = handle.wrapping_add(1);
            if handle != 0 && !self.guests.contains_key(&handle) {
                break;
            }
        }
        self.last_handle = handle;
        self.guests.insert(handle, guest);
        Ok(handle)
    }
}

/// The DH key of whoever made the session. Its certificate needs no signature.
fn peer_key(bytes: &[u8]) -> Result<PublicKey, Status> {
    Certificate::decode(bytes)
        .and_then(|certificate| certificate.diffie_hellman_key())
        .map_err(|_bad| Status::INVALID_CERTIFICATE)
}

/// Whether this firmware may run a guest with that policy. It has no SEV-ES.
fn check_policy(policy: Policy) -> Result<(), Status> {
    if policy.has(Policy::ES) || (VERSION.major, VERSION.minor) < policy.minimum_api() {
        Err(Status::POLICY_FAILURE)
    } else {
        Ok(())
    }
}
