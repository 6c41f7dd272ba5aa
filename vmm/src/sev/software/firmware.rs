//! The firmware on the secure processor: which guests exist and what each command does to them.
//!
//! From the public ABI and AMD's published tools; nothing here comes from firmware source.

use std::collections::BTreeMap;

use p384::PublicKey;
use zerocopy::FromBytes;

use crate::sev::abi::{CHAIN_LEN, GuestState};
use crate::sev::certificate::{CERTIFICATE_LEN, Certificate, Chain};
use crate::sev::measurement::{AttestationReport, REPORT_LEN};
use crate::sev::session::{SESSION_LEN, Session, SharedSecret, TransportKeys};
use crate::sev::target::{PlatformCertificates, RefusedTarget, SendingPlatform, check_target};
use crate::sev::vendor::{Root, VendorChain};
use crate::sev::{Policy, SevStatus};

use super::guest::Guest;
use super::identity::Identity;
use super::model::VERSION;
use super::page_cipher::PageCipher;

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
    ) -> Result<u32, SevStatus> {
        let (policy, keys) = match (owner_certificate, session) {
            (Some(certificate), Some(session)) => self.unwrap(policy, certificate, session)?,
            (None, None) => {
                let keys =
                    TransportKeys::random().map_err(|_no_randomness| SevStatus::HW_PLATFORM)?;
                (known_policy(policy)?, keys)
            }
            (Some(certificate), None) => {
                peer_key(certificate)?;
                return Err(SevStatus::INVALID_LEN);
            }
            (None, Some(_)) => return Err(SevStatus::INVALID_CERTIFICATE),
        };
        check_policy(policy)?;
        self.check_key_sharing(shared, policy)?;
        self.add(Guest::launching(policy, &keys))
    }

    /// `RECEIVE_START`: makes a guest from a session that another platform's `SEND_START` made, and
    /// returns its handle. `shared` as for [`Firmware::launch_start`].
    pub(super) fn receive_start(
        &mut self,
        shared: u32,
        policy: u32,
        source_pdh: &[u8],
        session: &[u8],
    ) -> Result<u32, SevStatus> {
        let (policy, keys) = self.unwrap(policy, source_pdh, session)?;
        check_policy(policy)?;
        self.check_key_sharing(shared, policy)?;
        self.add(Guest::receiving(policy, PageCipher::new(&keys)?))
    }

    /// `SEND_START` with room for a session of `room` bytes.
    pub(super) fn send_start(
        &mut self,
        handle: u32,
        target: &TargetBlobs<'_>,
        room: usize,
    ) -> Result<SentSession, SevStatus> {
        let guest = self.guests.get_mut(&handle).ok_or(SevStatus::INVALID_GUEST)?;
        guest.require(GuestState::Running)?;
        let vendor_len = target.vendor.len();
        let lengths_fit = target.pdh.len() == CERTIFICATE_LEN
            && target.chain.len() == CHAIN_LEN
            && (vendor_len == VENDOR_LENS[0] || vendor_len == VENDOR_LENS[1]);
        if !lengths_fit || room < SESSION_LEN {
            return Err(SevStatus::INVALID_LEN);
        }
        let policy = guest.policy;
        let source =
            SendingPlatform { root: Some(Root::Software), oca: &self.identity.chain().oca };
        let theirs = check_blobs(target, policy, &source)?;
        let keys = TransportKeys::random().map_err(|_no_randomness| SevStatus::HW_PLATFORM)?;
        let secret = SharedSecret::agree(self.identity.pdh_key(), &theirs);
        let session = Session::wrap(&secret, &keys, policy)
            .map_err(|_no_randomness| SevStatus::HW_PLATFORM)?;
        guest.start_sending(PageCipher::new(&keys)?);
        Ok(SentSession { policy: policy.bits(), session })
    }

    /// The keys in a session that was made for this platform, and the policy that they came with.
    fn unwrap(
        &self,
        policy: u32,
        peer: &[u8],
        session: &[u8],
    ) -> Result<(Policy, TransportKeys), SevStatus> {
        let peer = peer_key(peer)?;
        let session = Session::read_from_bytes(session).map_err(|_size| SevStatus::INVALID_LEN)?;
        let policy = known_policy(policy)?;
        let secret = SharedSecret::agree(self.identity.pdh_key(), &peer);
        Ok((policy, session.unwrap(&secret, policy)?))
    }

    /// `ACTIVATE`: binds a guest to an ASID.
    pub(super) fn activate(&mut self, handle: u32, asid: u32) -> Result<(), SevStatus> {
        if self.guests.values().any(|guest| guest.asid == Some(asid)) {
            return Err(SevStatus::ASID_OWNED);
        }
        let guest = self.guest(handle)?;
        match guest.asid {
            Some(_) => Err(SevStatus::ACTIVE),
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
    ) -> Result<AttestationReport, SevStatus> {
        let body = self.guest(handle)?.report(nonce)?;
        if room < REPORT_LEN {
            return Err(SevStatus::INVALID_LEN);
        }
        AttestationReport::sign(body, self.identity.pek_key())
            .map_err(|_unsigned| SevStatus::HW_PLATFORM)
    }

    /// The guest with this handle.
    pub(super) fn guest(&mut self, handle: u32) -> Result<&mut Guest, SevStatus> {
        self.guests.get_mut(&handle).ok_or(SevStatus::INVALID_GUEST)
    }

    /// A guest may share another's key only if both have the same policy and it allows that.
    fn check_key_sharing(&self, handle: u32, policy: Policy) -> Result<(), SevStatus> {
        if handle == 0 {
            return Ok(());
        }
        let other = self.guests.get(&handle).ok_or(SevStatus::INVALID_GUEST)?;
        if other.policy == policy && !policy.has(Policy::NOKS) {
            Ok(())
        } else {
            Err(SevStatus::POLICY_FAILURE)
        }
    }

    fn add(&mut self, guest: Guest) -> Result<u32, SevStatus> {
        if self.guests.len() >= GUESTS_MAX {
            return Err(SevStatus::RESOURCE_LIMIT);
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

/// The certificates that `SEND_START` takes.
#[derive(Debug)]
pub(super) struct TargetBlobs<'a> {
    pub(super) pdh: &'a [u8],
    pub(super) chain: &'a [u8],
    pub(super) vendor: &'a [u8],
}

/// What `SEND_START` answers.
#[derive(Debug)]
pub(super) struct SentSession {
    pub(super) policy: u32,
    pub(super) session: Session,
}

/// Lengths of an ASK and ARK with keys of 2,048 or 4,096 bits.
const VENDOR_LENS: [usize; 2] = [1664, 3200];

/// Checks the target of a `SEND_START` as the policy asks; the key to agree on a secret with.
fn check_blobs(
    target: &TargetBlobs<'_>,
    policy: Policy,
    source: &SendingPlatform<'_>,
) -> Result<PublicKey, SevStatus> {
    if policy.has(Policy::NOSEND) {
        return Err(SevStatus::POLICY_FAILURE);
    }
    let theirs = peer_key(target.pdh)?;
    // With nothing to check in them, the other certificates may be anything.
    if policy.has(Policy::SEV) || policy.has(Policy::DOMAIN) || policy.minimum_api() != (0, 0) {
        let certificates = PlatformCertificates {
            pdh: Certificate::decode(target.pdh).map_err(|_bad| SevStatus::INVALID_CERTIFICATE)?,
            chain: Chain::decode(target.chain).map_err(|_bad| SevStatus::INVALID_CERTIFICATE)?,
            vendor: VendorChain::decode(target.vendor)
                .map_err(|_bad| SevStatus::INVALID_CERTIFICATE)?,
        };
        check_target(&certificates, policy, source).map_err(|refused| status_of(&refused))?;
    }
    Ok(theirs)
}

/// How the firmware words a refusal.
fn status_of(refused: &RefusedTarget) -> SevStatus {
    match refused {
        RefusedTarget::Pdh(_) => SevStatus::INVALID_CERTIFICATE,
        RefusedTarget::PdhByPek(_)
        | RefusedTarget::PekByCek(_)
        | RefusedTarget::CekByAsk(_)
        | RefusedTarget::AskByArk(_)
        | RefusedTarget::Root { .. }
        | RefusedTarget::PekByOca(_) => SevStatus::BAD_SIGNATURE,
        RefusedTarget::NoSend
        | RefusedTarget::Domain
        | RefusedTarget::Api { .. }
        | RefusedTarget::Unattested => SevStatus::POLICY_FAILURE,
    }
}

fn known_policy(bits: u32) -> Result<Policy, SevStatus> {
    Policy::new(bits).map_err(|_reserved| SevStatus::POLICY_FAILURE)
}

/// The DH key of the session's maker. Its certificate needs no signature.
fn peer_key(bytes: &[u8]) -> Result<PublicKey, SevStatus> {
    Certificate::decode(bytes)
        .and_then(|certificate| certificate.diffie_hellman_key())
        .map_err(|_bad| SevStatus::INVALID_CERTIFICATE)
}

/// Whether this firmware may run a guest with that policy. It has no SEV-ES.
fn check_policy(policy: Policy) -> Result<(), SevStatus> {
    if policy.has(Policy::ES) || (VERSION.major, VERSION.minor) < policy.minimum_api() {
        Err(SevStatus::POLICY_FAILURE)
    } else {
        Ok(())
    }
}
