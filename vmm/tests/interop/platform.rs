//! A host of the software platform and one guest on it, driven as the product drives them, without KVM.

use sevferry::memory::GuestRam;
use sevferry::page::{PAGE_SIZE, RamLayout};
use sevferry::sev::certificate::Certificate;
use sevferry::sev::device::platform_status;
use sevferry::sev::launch::{Initialised, LaunchError, Launching, OwnerFiles};
use sevferry::sev::measurement::{FirmwareVersion, LaunchDigest};
use sevferry::sev::session::Session;
use sevferry::sev::software::{Identity, SoftwareDevice, SoftwareHost, vendor_chain};
use sevferry::sev::target::PlatformCertificates;
use sevferry::sev::{Policy, SevDevice};
use vm_memory::{Bytes, GuestAddress};
use zerocopy::FromBytes;

/// Of every guest.
const RAM_BYTES: u64 = 4 << 20;

/// A host.
pub(crate) struct Host {
    host: SoftwareHost,
    device: SoftwareDevice,
}

/// A guest that takes launch data, and its memory.
pub(crate) struct Guest {
    ram: GuestRam,
    pub(crate) launching: Launching,
}

impl Host {
    pub(crate) fn new(identity: Identity) -> Self {
        let host = SoftwareHost::new(identity);
        let device = host.open_device().expect("a descriptor");
        Self { host, device }
    }

    pub(crate) fn ephemeral() -> Self {
        Self::new(Identity::ephemeral().expect("randomness"))
    }

    pub(crate) fn certificates(&self) -> PlatformCertificates {
        PlatformCertificates::export(&self.device, vendor_chain(), None).expect("its certificates")
    }

    pub(crate) fn version(&self) -> FirmwareVersion {
        platform_status(&self.device).expect("its status").version
    }

    /// `LAUNCH_START` with the two files of an owner, as bytes.
    pub(crate) fn start(
        &self,
        policy: Policy,
        (certificate, session): (&[u8], &[u8]),
    ) -> Result<Guest, LaunchError> {
        let layout = RamLayout::new(RAM_BYTES).expect("whole pages");
        let (ram, private) = GuestRam::split(layout, 47).expect("memory");
        let initialised = Initialised::init(Box::new(self.host.new_vm(private)), self.device.fd())?;
        let certificate = Certificate::decode(certificate).expect("a certificate");
        let session = Session::read_from_bytes(session).expect("a session");
        let owner = OwnerFiles { certificate: &certificate, session: &session };
        Ok(Guest { ram, launching: initialised.start(policy, Some(owner))? })
    }
}

impl Guest {
    /// The host address of a page.
    pub(crate) fn page(&self, index: u64) -> u64 {
        let (start, _bytes) = self.ram.mappings().next().expect("RAM");
        start + index * PAGE_SIZE
    }

    /// Puts `data` (whole pages) into its first pages as launch data; the launch digest.
    pub(crate) fn load(&self, data: &[u8]) -> [u8; 32] {
        let mut digest = LaunchDigest::default();
        digest.update(data);
        self.ram.host().write_slice(data, GuestAddress(0)).expect("it has the room");
        self.launching.update(self.page(0), data.len() as u64).expect("launch data");
        digest.finish()
    }
}
