//! A software host, its device and one VM with a little RAM, for tests.

use std::sync::Arc;

use p384::SecretKey;

use crate::memory::{GuestRam, GuestView};
use crate::page::{PAGE_SIZE, RamLayout};
use crate::sev::launch::{Initialised, Launched};
use crate::sev::target::PlatformCertificates;
use crate::sev::{Platform, Policy, SevDevice};

use super::{
    Identity, Model, SoftwareDevice, SoftwareHost, SoftwarePlatform, user_memory, vendor_chain,
};

/// Bytes of RAM.
pub(crate) const RAM_LEN: u64 = 8 * PAGE_SIZE;

/// One host and the RAM of one guest.
#[derive(Debug)]
pub(crate) struct Fixture {
    pub(crate) host: SoftwareHost,
    pub(crate) device: SoftwareDevice,
    /// Host address of the RAM, page-aligned.
    pub(crate) ram: u64,
    pub(crate) view: GuestView,
    pub(crate) memory: Arc<GuestRam>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with_ram(RAM_LEN)
    }

    /// A host whose guest has so many bytes of RAM.
    pub(crate) fn with_ram(bytes: u64) -> Self {
        Self::with(Identity::ephemeral().unwrap(), bytes)
    }

    /// A host that has the same owner as others made with `oca`.
    pub(crate) fn owned_by(oca: &SecretKey) -> Self {
        Self::with(Identity::owned_by(oca).unwrap(), RAM_LEN)
    }

    /// The same, of firmware with this API.
    pub(crate) fn of_api(oca: &SecretKey, api: (u8, u8)) -> Self {
        Self::with(Identity::of_api(oca, api).unwrap(), RAM_LEN)
    }

    /// A host of another kind.
    pub(crate) fn modelled(identity: Identity, model: Model) -> Self {
        Self::modelled_with_ram(identity, model, RAM_LEN)
    }

    /// The same, whose guest has so many bytes of RAM.
    pub(crate) fn modelled_with_ram(identity: Identity, model: Model, bytes: u64) -> Self {
        Self::on(SoftwareHost::modelled(identity, model), bytes)
    }

    fn with(identity: Identity, bytes: u64) -> Self {
        Self::on(SoftwareHost::new(identity), bytes)
    }

    fn on(host: SoftwareHost, bytes: u64) -> Self {
        let device = host.open_device().unwrap();
        let (memory, view) = GuestRam::split(RamLayout::new(bytes).unwrap(), 47).unwrap();
        let (ram, _len) = memory.mappings().next().unwrap();
        Self { host, device, ram, view, memory: Arc::new(memory) }
    }

    /// A VM without SEV yet; what is to fail does not.
    pub(crate) fn platform(&self) -> SoftwarePlatform {
        self.host.new_vm(self.view.clone())
    }

    /// [`Fixture::platform`] as launches take it.
    pub(crate) fn boxed(&self) -> Box<dyn Platform> {
        self.host.new_platform(self.view.clone())
    }

    pub(crate) fn fd(&self) -> i32 {
        self.device.fd()
    }

    /// A VM with SEV on.
    pub(crate) fn initialised(&self) -> Initialised {
        Initialised::init(self.boxed(), self.fd()).unwrap()
    }

    /// A guest without an owner that may run; nothing was loaded.
    pub(crate) fn launched(&self, policy: Policy) -> Launched {
        let launching = self.initialised().start(policy, None).unwrap();
        launching.measure().unwrap().finish().unwrap()
    }

    /// All that vouches for the host.
    pub(crate) fn certificates(&self) -> PlatformCertificates {
        PlatformCertificates::export(&self.device, vendor_chain(), None).unwrap()
    }

    /// Writes private memory as the guest does.
    pub(crate) fn guest_writes(&self, offset: u64, bytes: &[u8]) {
        self.view.write(self.ram + offset, bytes).unwrap();
    }

    /// What the host sees at `offset` in RAM.
    pub(crate) fn host_sees(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        user_memory::read(self.ram + offset, &mut bytes).unwrap();
        bytes
    }

    /// Loads bytes into RAM as the VMM does.
    pub(crate) fn host_writes(&self, offset: u64, bytes: &[u8]) {
        user_memory::write(self.ram + offset, bytes).unwrap();
    }

    /// What the guest sees in private memory.
    pub(crate) fn guest_sees(&self, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.view.read(self.ram + offset, &mut bytes).unwrap();
        bytes
    }
}
