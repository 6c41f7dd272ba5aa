//! Launching an SEV guest: the commands in the only order that the firmware takes, as consumed values.
//!
//! ```text
//! Initialised -- start --> Launching -- measure --> Measured -- finish --> Launched
//!   register_region          update                   inject_secret          may run
//! ```
//!
//! `KVM_SEV_INIT`, or `KVM_SEV_INIT2`, must come before the first vCPU, and regions before launch data.
//!
//! # Examples
//! A page is launched on the software platform, and its owner verifies the measurement. On hardware the
//! platform is a [`HardwarePlatform`](super::hardware::HardwarePlatform); the rest is the same.
//! ```
//! use sevferry::memory::GuestRam;
//! use sevferry::page::{Frame, PageRange, RamLayout};
//! use sevferry::sev::device::{export_pdh, platform_status};
//! use sevferry::sev::launch::{Initialised, OwnerFiles};
//! use sevferry::sev::measurement::{Claim, LaunchDigest};
//! use sevferry::sev::session::OwnerSession;
//! use sevferry::sev::software::{Identity, SoftwareHost};
//! use sevferry::sev::{Policy, SevDevice};
//!
//! let host = SoftwareHost::new(Identity::ephemeral()?);
//! let device = host.open_device()?;
//! let (ram, private) = GuestRam::split(RamLayout::new(1 << 20)?, 47)?;
//! let page = PageRange::one(Frame(0))?;
//! ram.write_pages(page, &[0xf4; 4096])?;
//!
//! let (pdh, _chain) = export_pdh(&device)?;
//! let policy = Policy::default();
//! let owner = OwnerSession::new(&pdh, policy)?;
//!
//! let initialised = Initialised::init(Box::new(host.new_vm(private)), device.fd())?;
//! for (address, bytes) in ram.mappings() {
//!     initialised.register_region(address, bytes)?;
//! }
//! let launching = initialised.start(policy, Some(OwnerFiles::from(&owner)))?;
//! launching.update(ram.user_address(page)?, page.bytes())?;
//! let measured = launching.measure()?;
//!
//! let mut digest = LaunchDigest::default();
//! digest.update(&[0xf4; 4096]);
//! let version = platform_status(&device)?.version;
//! let claim = Claim { version, policy, digest: digest.finish() };
//! claim.verify(&owner.keys.tik, measured.measurement())?;
//!
//! let launched = measured.finish()?;
//! println!("{:?}: vCPUs may run", launched.status()?);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use kvm_bindings::{KVM_X86_SEV_VM, kvm_enc_region};
use thiserror::Error;
use zerocopy::{FromZeros, IntoBytes};

use super::abi::{self, GuestState};
use super::certificate::Certificate;
use super::command::{Command, CommandError, Vm, address_of_mut, blob};
use super::measurement::{AttestationReport, MEASUREMENT_LEN, Measurement, REPORT_LEN};
pub use super::secret::SealedSecret;
use super::session::{OwnerSession, Session};
use super::{Platform, Policy};

/// Most bytes per `LAUNCH_UPDATE_DATA`; whole pages, so that each piece starts on one. The kernel pins
/// them beside the RAM that is registered, and counts both: a guest needs a locked-memory limit of its
/// RAM and this much, which covers the page or two of any other command.
pub const PIECE_LEN: u64 = 4 << 20;

/// What kind of VM KVM was asked for, which says how SEV is turned on for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmType {
    /// Any guest's: `KVM_SEV_INIT`.
    Default,
    /// `KVM_X86_SEV_VM`, which Linux has had since 6.10: `KVM_SEV_INIT2`.
    Sev,
}

impl VmType {
    /// What `KVM_CREATE_VM` takes.
    #[must_use]
    pub fn number(self) -> u64 {
        match self {
            Self::Default => 0,
            Self::Sev => KVM_X86_SEV_VM.into(),
        }
    }

    /// The best for an SEV guest of those that `KVM_CAP_VM_TYPES` names; 0 where KVM does not know
    /// that capability.
    #[must_use]
    pub fn best_of(types: i32) -> Self {
        if types & 1 << KVM_X86_SEV_VM == 0 { Self::Default } else { Self::Sev }
    }
}

/// SEV is on for the VM: vCPUs may be created, regions registered.
#[derive(Debug)]
pub struct Initialised {
    pub(super) vm: Vm,
}

/// What a guest owner gives for a launch: files made by their tools, or an [`OwnerSession`].
#[derive(Debug, Clone, Copy)]
pub struct OwnerFiles<'a> {
    /// The owner's DH certificate.
    pub certificate: &'a Certificate,
    /// The session made for this platform's PDH.
    pub session: &'a Session,
}

impl<'a> From<&'a OwnerSession> for OwnerFiles<'a> {
    fn from(owner: &'a OwnerSession) -> Self {
        Self { certificate: &owner.certificate, session: &owner.session }
    }
}

impl Initialised {
    /// `KVM_SEV_INIT`, before the VM has a vCPU. `sev_fd` is an open `/dev/sev` that stays open.
    ///
    /// # Errors
    /// [`LaunchError::Init`].
    pub fn init(platform: Box<dyn Platform>, sev_fd: i32) -> Result<Self, LaunchError> {
        let vm = Vm { platform, sev_fd };
        vm.issue_plain(Command::INIT).map_err(LaunchError::Init)?;
        Ok(Self { vm })
    }

    /// `KVM_SEV_INIT2`, on a VM of the type [`VmType::Sev`]; otherwise as [`Initialised::init`].
    ///
    /// # Errors
    /// [`LaunchError::Init`].
    pub fn init2(platform: Box<dyn Platform>, sev_fd: i32) -> Result<Self, LaunchError> {
        let vm = Vm { platform, sev_fd };
        vm.issue(Command::INIT2, &mut abi::Init2::default()).map_err(LaunchError::Init)?;
        Ok(Self { vm })
    }

    /// `KVM_MEMORY_ENCRYPT_REG_REGION`: pins `len` bytes of guest RAM at host address `address`.
    ///
    /// # Errors
    /// [`LaunchError::Region`].
    pub fn register_region(&self, address: u64, len: u64) -> Result<(), LaunchError> {
        let region = kvm_enc_region { addr: address, size: len };
        self.vm.platform.register_region(&region).map_err(|errno| LaunchError::Region {
            address,
            len,
            cause: CommandError { command: "KVM_MEMORY_ENCRYPT_REG_REGION", errno, status: None },
        })
    }

    /// `LAUNCH_START`. Without `owner` nobody can check the measurement or send secrets.
    ///
    /// # Errors
    /// [`LaunchError::Start`].
    pub fn start(
        self,
        policy: Policy,
        owner: Option<OwnerFiles<'_>>,
    ) -> Result<Launching, LaunchError> {
        let mut start = abi::LaunchStart { policy: policy.bits(), ..abi::LaunchStart::default() };
        if let Some(OwnerFiles { certificate, session }) = owner {
            (start.dh_uaddr, start.dh_len) = blob(certificate.as_bytes());
            (start.session_uaddr, start.session_len) = blob(session.as_bytes());
        }
        self.vm
            .issue(Command::LAUNCH_START, &mut start)
            .map_err(|cause| LaunchError::Start { policy, cause })?;
        Ok(Launching { vm: self.vm })
    }
}

/// The guest accepts launch data.
#[derive(Debug)]
pub struct Launching {
    vm: Vm,
}

impl Launching {
    /// `LAUNCH_UPDATE_DATA`: encrypts `len` bytes of guest RAM at host address `address` in place and
    /// appends them to the launch digest. Both in multiples of 16.
    ///
    /// # Errors
    /// [`LaunchError::Update`]; what was encrypted before it stays so.
    pub fn update(&self, address: u64, len: u64) -> Result<(), LaunchError> {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(PIECE_LEN);
            let mut data = abi::Buffer {
                uaddr: address.saturating_add(done),
                len: u32::try_from(piece).unwrap_or(u32::MAX),
                pad0: 0,
            };
            self.vm
                .issue(Command::LAUNCH_UPDATE_DATA, &mut data)
                .map_err(|cause| LaunchError::Update { address, len, cause })?;
            done += piece;
        }
        Ok(())
    }

    /// `LAUNCH_MEASURE`, after asking for the length of its output: the firmware measures only once.
    ///
    /// # Errors
    /// [`LaunchError::Measure`]; [`LaunchError::MeasurementLength`] if it is not 48 bytes.
    pub fn measure(self) -> Result<Measured, LaunchError> {
        let mut query = abi::Buffer::default();
        self.vm.query(Command::LAUNCH_MEASURE, &mut query).map_err(LaunchError::Measure)?;
        if query.len as usize != MEASUREMENT_LEN {
            return Err(LaunchError::MeasurementLength { len: query.len });
        }
        let mut bytes = [0; MEASUREMENT_LEN];
        let mut measure =
            abi::Buffer { uaddr: address_of_mut(&mut bytes), len: query.len, pad0: 0 };
        self.vm.issue(Command::LAUNCH_MEASURE, &mut measure).map_err(LaunchError::Measure)?;
        Ok(Measured { vm: self.vm, measurement: Measurement::from_bytes(&bytes) })
    }
}

/// The guest is measured; its owner may send secrets.
#[derive(Debug)]
pub struct Measured {
    vm: Vm,
    measurement: Measurement,
}

impl Measured {
    /// What the guest owner checks before sending secrets.
    #[must_use]
    pub fn measurement(&self) -> &Measurement {
        &self.measurement
    }

    /// `GUEST_STATUS`.
    ///
    /// # Errors
    /// [`StatusError`].
    pub fn status(&self) -> Result<GuestStatus, StatusError> {
        guest_status(&self.vm)
    }

    /// `LAUNCH_SECRET`: decrypts an owner's secret into guest RAM at host address `address`, 16-byte
    /// aligned and within one page, because its memory must be physically contiguous.
    ///
    /// # Errors
    /// [`LaunchError::Secret`].
    pub fn inject_secret(&self, address: u64, secret: &SealedSecret) -> Result<(), LaunchError> {
        let (hdr_uaddr, hdr_len) = blob(secret.header.as_bytes());
        let (trans_uaddr, trans_len) = blob(&secret.ciphertext);
        let mut data = abi::Packet {
            hdr_uaddr,
            hdr_len,
            guest_uaddr: address,
            guest_len: trans_len,
            trans_uaddr,
            trans_len,
            ..abi::Packet::default()
        };
        self.vm
            .issue(Command::LAUNCH_SECRET, &mut data)
            .map_err(|cause| LaunchError::Secret { address, cause })
    }

    /// `LAUNCH_FINISH`: the guest may run.
    ///
    /// # Errors
    /// [`LaunchError::Finish`].
    pub fn finish(self) -> Result<Launched, LaunchError> {
        self.vm.issue_plain(Command::LAUNCH_FINISH).map_err(LaunchError::Finish)?;
        Ok(Launched { vm: self.vm, measurement: Some(self.measurement) })
    }
}

/// Proof that the guest was launched or received: its vCPUs may run.
#[derive(Debug)]
pub struct Launched {
    pub(super) vm: Vm,
    /// `None` for a guest that was received.
    pub(super) measurement: Option<Measurement>,
}

impl Launched {
    /// What `LAUNCH_MEASURE` said; a guest that was received was measured elsewhere.
    #[must_use]
    pub fn measurement(&self) -> Option<&Measurement> {
        self.measurement.as_ref()
    }

    /// `GUEST_STATUS`.
    ///
    /// # Errors
    /// [`StatusError`].
    pub fn status(&self) -> Result<GuestStatus, StatusError> {
        guest_status(&self.vm)
    }

    /// `GET_ATTESTATION_REPORT`, signed by the platform's PEK over the caller's `nonce`.
    ///
    /// # Errors
    /// [`LaunchError::Report`].
    pub fn attestation_report(&self, nonce: [u8; 16]) -> Result<AttestationReport, LaunchError> {
        let mut report = AttestationReport::new_zeroed();
        let buffer = abi::Buffer {
            uaddr: address_of_mut(&mut report),
            len: abi::length(REPORT_LEN),
            pad0: 0,
        };
        let mut request = abi::AttestationReport { mnonce: nonce, buffer };
        self.vm
            .issue(Command::GET_ATTESTATION_REPORT, &mut request)
            .map_err(LaunchError::Report)?;
        Ok(report)
    }
}

/// A guest as the firmware sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestStatus {
    /// The firmware's number for it.
    pub handle: u32,
    /// The policy word in force.
    pub policy: u32,
    /// Where it is in its life.
    pub state: GuestState,
}

/// `GUEST_STATUS`, in whatever state the guest is.
pub(super) fn guest_status(vm: &Vm) -> Result<GuestStatus, StatusError> {
    let mut status = abi::GuestStatus::default();
    vm.issue(Command::GUEST_STATUS, &mut status)?;
    let abi::GuestStatus { handle, policy, state } = status;
    let state = GuestState::from_number(state).ok_or(StatusError::State { state })?;
    Ok(GuestStatus { handle, policy, state })
}

/// Why a guest's state is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum StatusError {
    /// `GUEST_STATUS`.
    #[error("asking the firmware for the guest's status")]
    Command(#[from] CommandError),
    /// A state number without a name.
    #[error("the firmware reports guest state {state}, which is unknown")]
    State {
        /// The number.
        state: u32,
    },
}

/// Which step of a launch failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum LaunchError {
    /// `KVM_SEV_INIT`.
    #[error("turning SEV on for the VM")]
    Init(#[source] CommandError),
    /// `KVM_MEMORY_ENCRYPT_REG_REGION`.
    #[error("pinning {len:#x} bytes of guest RAM at {address:#x}")]
    Region {
        /// Host address.
        address: u64,
        /// Bytes.
        len: u64,
        /// Why.
        #[source]
        cause: CommandError,
    },
    /// `LAUNCH_START`.
    #[error("starting the launch with guest policy {policy}")]
    Start {
        /// The policy asked for.
        policy: Policy,
        /// Why.
        #[source]
        cause: CommandError,
    },
    /// `LAUNCH_UPDATE_DATA`.
    #[error("encrypting {len:#x} bytes of guest RAM at {address:#x}")]
    Update {
        /// Host address.
        address: u64,
        /// Bytes.
        len: u64,
        /// Why.
        #[source]
        cause: CommandError,
    },
    /// `LAUNCH_MEASURE`.
    #[error("measuring the guest")]
    Measure(#[source] CommandError),
    /// `LAUNCH_MEASURE` does not speak the format we know.
    #[error("the firmware's measurement has {len} bytes, not {MEASUREMENT_LEN}")]
    MeasurementLength {
        /// The length it asked for.
        len: u32,
    },
    /// `LAUNCH_SECRET`.
    #[error("giving the guest its owner's secret at {address:#x}")]
    Secret {
        /// Host address.
        address: u64,
        /// Why.
        #[source]
        cause: CommandError,
    },
    /// `LAUNCH_FINISH`.
    #[error("finishing the launch")]
    Finish(#[source] CommandError),
    /// `GET_ATTESTATION_REPORT`.
    #[error("asking the firmware for the guest's attestation report")]
    Report(#[source] CommandError),
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::device::{export_pdh, platform_status};
    use crate::sev::measurement::{Claim, LaunchDigest};
    use crate::sev::software::fixture::{Fixture, RAM_LEN};

    /// An owner who made the session can verify the launch, and sends a secret that only the guest sees.
    #[test]
    fn owner_verifies_a_launch_and_sends_a_secret() {
        let fixture = Fixture::new();
        let (pdh, chain) = export_pdh(&fixture.device).unwrap();
        chain.verify(&pdh).unwrap();
        let version = platform_status(&fixture.device).unwrap().version;
        let policy = Policy::default();
        let owner = OwnerSession::new(&pdh, policy).unwrap();

        let init = Initialised::init(fixture.boxed(), fixture.fd()).unwrap();
        init.register_region(fixture.ram, RAM_LEN).unwrap();
        let launching = init.start(policy, Some(OwnerFiles::from(&owner))).unwrap();
        let mut digest = LaunchDigest::default();
        for (offset, bytes) in [(0x1000, [7_u8; 4096].as_slice()), (0, &[9; 64])] {
            fixture.host_writes(offset, bytes);
            launching.update(fixture.ram + offset, bytes.len() as u64).unwrap();
            digest.update(bytes);
            assert_eq!(fixture.guest_sees(offset, bytes.len()), bytes);
            assert_ne!(fixture.host_sees(offset, bytes.len()), bytes);
        }
        let measured = launching.measure().unwrap();
        let claim = Claim { version, policy, digest: digest.finish() };
        claim.verify(&owner.keys.tik, measured.measurement()).unwrap();
        let other = Claim { digest: [0; 32], ..claim };
        assert!(other.verify(&owner.keys.tik, measured.measurement()).is_err());

        let secret =
            SealedSecret::seal(&owner.keys, measured.measurement(), b"sixteen bytes...").unwrap();
        measured.inject_secret(fixture.ram + 0x2000, &secret).unwrap();
        assert_eq!(fixture.guest_sees(0x2000, 16), b"sixteen bytes...");
        let launched = measured.finish().unwrap();

        let status = launched.status().unwrap();
        assert_eq!((status.policy, status.state), (policy.bits(), GuestState::Running));
        let report = launched.attestation_report([3; 16]).unwrap();
        report.verify(&chain.pek).unwrap();
        assert_eq!((report.body.nonce, report.body.digest), ([3; 16], claim.digest));
        assert_eq!(platform_status(&fixture.device).unwrap().guests, 1);
        drop(launched);
        assert_eq!(platform_status(&fixture.device).unwrap().guests, 0);
    }
}
