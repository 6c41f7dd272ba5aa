//! What makes a machine an SEV guest: its platform, its C-bit, and the launch.

use std::path::Path;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use kvm_bindings::CpuId;
use kvm_ioctls::VmFd;
use vm_memory::{Bytes, GuestAddress};

use super::config::{OwnerInput, PlatformKind, SevConfig};
use super::error::{EncryptedError, MachineError};
use super::host::{check_lockable, lockable_bytes};
use super::pinned::PinCallback;
use super::pinning::pin;
use crate::boot::Piece;
use crate::encryption::Design;
use crate::memory::{GuestRam, RamError};
use crate::page::RamLayout;
use crate::sev::device::{export_pdh, platform_status};
use crate::sev::endorsement::EndorsementError;
use crate::sev::hardware::{HardwareDevice, HardwarePlatform};
use crate::sev::launch::{GuestStatus, Initialised, Launched, Measured, OwnerFiles, VmType};
use crate::sev::measurement::{Claim, FirmwareVersion, LaunchDigest, Measurement};
use crate::sev::session::OwnerSession;
use crate::sev::software::{Identity, IdentityError, Model, SoftwareHost, vendor_chain};
use crate::sev::target::PlatformCertificates;
use crate::sev::{Platform, Policy, SevDevice};
use crate::text::hex;
use crate::vcpu::cpuid;

/// Bytes of launch data hashed at a time.
const STEP: usize = 64 << 10;

/// An SEV guest before it is launched or received.
#[derive(Debug)]
pub(super) struct Encrypted {
    c_bit: u8,
    pub(super) platform: PlatformKind,
    pub(super) device: Box<dyn SevDevice>,
    pub(super) initialised: Initialised,
}

/// The RAM of a plain VM, or of an SEV guest with the start of its launch.
type PreparedRam = (Arc<GuestRam>, Option<Encrypted>);

impl Encrypted {
    /// Maps guest RAM, and turns SEV on if there is a `platform`. This must come before the first vCPU.
    ///
    /// # Errors
    /// [`EncryptedError`] if the platform is missing or refuses.
    pub(super) fn prepare(
        platform: Option<&PlatformKind>,
        layout: RamLayout,
        (vm, vm_type): (&Arc<VmFd>, VmType),
        supported: &CpuId,
        watch: &mut PinCallback<'_>,
    ) -> Result<PreparedRam, EncryptedError> {
        let Some(kind) = platform else {
            return Ok((Arc::new(GuestRam::single(layout)?), None));
        };
        let (ram, c_bit, device, platform) = match kind {
            PlatformKind::Software { identity, model } => {
                let c_bit = cpuid::software_c_bit(supported).ok_or(EncryptedError::CBit)?;
                check_room(layout, c_bit)?;
                let (ram, private) = GuestRam::split(layout, c_bit)?;
                let host = software_host(identity.as_deref(), *model)?;
                let device = host.open_device().map_err(EncryptedError::Device)?;
                let device: Box<dyn SevDevice> = Box::new(device);
                (Arc::new(ram), c_bit, device, host.new_platform(private))
            }
            PlatformKind::Hardware { .. } => {
                // Checked first, because else the kernel would pin nearly all of it and then refuse.
                check_lockable(layout.bytes(), lockable_bytes())?;
                let device: Box<dyn SevDevice> = Box::new(HardwareDevice::open()?);
                let platform = HardwarePlatform::new(Arc::clone(vm))?;
                let c_bit = cpuid::hardware_c_bit(supported).ok_or(EncryptedError::CBit)?;
                check_room(layout, c_bit)?;
                let ram = Arc::new(GuestRam::pinned(layout)?);
                let platform: Box<dyn Platform> = Box::new(platform.keeping(Arc::clone(&ram)));
                (ram, c_bit, device, platform)
            }
        };
        let initialised = match vm_type {
            VmType::Default => Initialised::init(platform, device.fd())?,
            VmType::Sev => Initialised::init2(platform, device.fd())?,
        };
        // Only SEV hardware really pins pages.
        let populate = matches!(kind, PlatformKind::Hardware { .. });
        pin(&ram, &initialised, populate, watch)?;
        let platform = kind.clone();
        Ok((ram, Some(Self { c_bit, platform, device, initialised })))
    }

    /// The number of the C-bit.
    pub(super) fn c_bit(&self) -> u8 {
        self.c_bit
    }

    /// Encrypts and measures `pieces` in order. The guest may run once [`Measured`] is finished.
    ///
    /// Without files of a guest owner the VMM is its own owner: it makes a session with the
    /// platform and verifies the measurement itself.
    ///
    /// # Errors
    /// [`EncryptedError`] with the step that failed.
    pub(super) fn launch(
        self,
        sev: &SevConfig,
        ram: &GuestRam,
        pieces: &[Piece],
    ) -> Result<(RunningGuest, Measured), EncryptedError> {
        let status = platform_status(self.device.as_ref())?;
        let own = match &sev.owner {
            OwnerInput::Files { .. } => None,
            OwnerInput::Own => {
                let (pdh, _chain) = export_pdh(self.device.as_ref())?;
                Some(OwnerSession::new(&pdh, sev.policy)?)
            }
        };
        let owner = match (&own, &sev.owner) {
            (None, OwnerInput::Files { certificate, session }) => {
                Some(OwnerFiles { certificate, session })
            }
            (own, _) => own.as_ref().map(OwnerFiles::from),
        };
        let launching = self.initialised.start(sev.policy, owner)?;
        let digest = digest_of(ram, pieces)?;
        for piece in pieces {
            launching.update(ram.user_address(piece.range)?, piece.range.bytes())?;
        }
        let measured = launching.measure()?;
        let record = LaunchRecord {
            c_bit: self.c_bit,
            policy: sev.policy,
            version: status.version,
            digest,
            measurement: *measured.measurement(),
            verified: own.is_some(),
        };
        if let Some(own) = &own {
            record.claim().verify(&own.keys.tik, &record.measurement)?;
        }
        let (platform, device, status) = (self.platform, self.device, sev.status);
        Ok((RunningGuest { record, platform, status, launched: None, device }, measured))
    }
}

/// The launch digest of `pieces` of RAM, in order, as the host sees them before they are encrypted.
///
/// # Errors
/// [`RamError::NotRam`] if a piece is not RAM.
pub fn digest_of(ram: &GuestRam, pieces: &[Piece]) -> Result<[u8; 32], RamError> {
    let mut digest = LaunchDigest::default();
    let mut buffer = vec![0; STEP];
    for piece in pieces {
        let (start, end) = (piece.range.start().0, piece.range.start().0 + piece.range.bytes());
        for address in (start..end).step_by(STEP) {
            let step = usize::try_from(end - address).unwrap_or(STEP).min(STEP);
            let bytes = buffer.get_mut(..step).unwrap_or_default();
            ram.host()
                .read_slice(bytes, GuestAddress(address))
                .map_err(|_outside| RamError::NotRam { range: piece.range })?;
            digest.update(bytes);
        }
    }
    Ok(digest.finish())
}

/// What is left of the platform while the guest runs.
#[derive(Debug)]
pub(super) struct RunningGuest {
    pub(super) record: LaunchRecord,
    pub(super) platform: PlatformKind,
    pub(super) status: Design,
    /// `None` until the guest may run, and while it is being sent.
    pub(super) launched: Option<Launched>,
    /// Commands after the launch go to this very descriptor, so it stays open.
    pub(super) device: Box<dyn SevDevice>,
}

impl RunningGuest {
    /// `GUEST_STATUS`; `None` while the guest is being sent, or if the firmware does not answer.
    pub(super) fn status(&self) -> Option<GuestStatus> {
        self.launched.as_ref()?.status().ok()
    }
}

fn software_host(identity: Option<&Path>, model: Model) -> Result<SoftwareHost, IdentityError> {
    let identity = match identity {
        Some(directory) => Identity::load_or_create(directory)?,
        None => Identity::ephemeral()?,
    };
    Ok(SoftwareHost::modelled(identity, model))
}

/// The endorsement of a platform of `kind`, without making a machine on it.
///
/// # Errors
/// [`MachineError`] if there is no such platform, or no certificates for it.
pub fn certificates_of(kind: &PlatformKind) -> Result<PlatformCertificates, MachineError> {
    let device: Box<dyn SevDevice> = match kind {
        PlatformKind::Software { identity, model } => {
            let host = software_host(identity.as_deref(), *model);
            let host = host.map_err(EncryptedError::Identity)?;
            Box::new(host.open_device().map_err(EncryptedError::Device)?)
        }
        PlatformKind::Hardware { .. } => {
            Box::new(HardwareDevice::open().map_err(EncryptedError::Unavailable)?)
        }
    };
    Ok(vouch(kind, device.as_ref())?)
}

/// The endorsement, for a migration, of the platform of `kind` behind `device`.
pub(super) fn vouch(
    kind: &PlatformKind,
    device: &dyn SevDevice,
) -> Result<PlatformCertificates, EndorsementError> {
    match kind {
        PlatformKind::Software { .. } => {
            Ok(PlatformCertificates::export(device, vendor_chain(), None)?)
        }
        PlatformKind::Hardware { endorsement, .. } => endorsement.complete(device),
    }
}

/// What was launched, for the user and the guest's owner.
#[derive(Debug, Clone, Copy)]
pub struct LaunchRecord {
    /// The number of the C-bit.
    pub c_bit: u8,
    /// The guest's policy.
    pub policy: Policy,
    /// The firmware that measured.
    pub version: FirmwareVersion,
    /// SHA-256 of the launch data in order; `sevferry digest` recomputes it from the files.
    pub digest: [u8; 32],
    /// The firmware's measurement.
    pub measurement: Measurement,
    /// Whether this VMM, as its own guest owner, has verified the measurement against the digest.
    pub verified: bool,
}

impl LaunchRecord {
    /// The measurement in base64, as the tools of guest owners take it.
    #[must_use]
    pub fn measurement_base64(&self) -> String {
        BASE64_STANDARD.encode(self.measurement.to_bytes())
    }

    /// The digest in hexadecimal.
    #[must_use]
    pub fn digest_hex(&self) -> String {
        hex(&self.digest)
    }

    /// What the measurement must state.
    #[must_use]
    pub fn claim(&self) -> Claim {
        Claim { version: self.version, policy: self.policy, digest: self.digest }
    }
}

/// Whether no address of RAM has the C-bit in it: KVM would find two slots at one address.
fn check_room(layout: RamLayout, c_bit: u8) -> Result<(), EncryptedError> {
    match layout.ranges().last().map(|range| range.start().0 + range.bytes()) {
        Some(end) if end > 1 << c_bit => Err(EncryptedError::RamReachesCBit { end, c_bit }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RAM may end where the C-bit begins, and one page later it may not: the answer names both.
    #[test]
    fn ram_must_end_below_the_c_bit() {
        let up_to = |end: u64| RamLayout::new(end - (1 << 30)).unwrap();
        let hole_ends = up_to(1 << 39).ranges().last().unwrap();
        assert_eq!(hole_ends.start().0 + hole_ends.bytes(), 1 << 39, "a hole of 1 GiB");
        check_room(up_to(1 << 39), 39).unwrap();
        let refused = check_room(up_to((1 << 39) + 4096), 39).unwrap_err().to_string();
        assert!(refused.contains("ends at 0x8000001000, but bit 39"), "{refused}");
    }
}
