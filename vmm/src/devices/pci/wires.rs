//! What the bus asks of KVM: interrupts by message, and doorbells that need no exit to this process.

use std::fmt::Debug;
use std::io::Error as IoError;
use std::sync::{Arc, Mutex, PoisonError};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::{IoEventAddress, NoDatamatch, VmFd};
use vmm_sys_util::errno::Error as Errno;
use vmm_sys_util::eventfd::EventFd;

/// Pins of the I/O APIC; the first global system interrupt that is none of them is a message.
const IO_APIC_PINS: u32 = 24;

/// Pins of the two legacy controllers together.
const PIC_PINS: u32 = 16;

/// What a function writes to interrupt: an address that names processors, and data that names the
/// vector. Both are the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MsiMessage {
    /// Where.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// The other end of a bus.
pub trait Wires: Debug + Send + Sync {
    /// Makes `interrupt`, when it is written, send the message that [`Wires::route`] gives it.
    /// Returns its number.
    ///
    /// # Errors
    /// From KVM.
    fn connect(&self, interrupt: &EventFd) -> Result<u32, IoError>;

    /// Sets what interrupt `number` sends.
    ///
    /// # Errors
    /// From KVM; it sends what it did.
    fn route(&self, number: u32, message: MsiMessage) -> Result<(), IoError>;

    /// Makes a write of the guest at `address` ring `bell`.
    ///
    /// # Errors
    /// From KVM, as when another bell has that address: such a write comes as an exit then.
    fn attach(&self, bell: &EventFd, address: u64) -> Result<(), IoError>;

    /// Undoes [`Wires::attach`].
    ///
    /// # Errors
    /// From KVM.
    fn detach(&self, bell: &EventFd, address: u64) -> Result<(), IoError>;
}

/// KVM: irqfd with its routing table, and ioeventfd.
#[derive(Debug)]
pub struct KvmWires {
    vm: Arc<VmFd>,
    /// The messages, by number from [`IO_APIC_PINS`] on. KVM takes the whole table each time.
    routes: Mutex<Vec<Option<MsiMessage>>>,
}

impl KvmWires {
    /// The wires of `vm`, which has its interrupt controllers. It may have no other messages.
    #[must_use]
    pub fn new(vm: Arc<VmFd>) -> Self {
        Self { vm, routes: Mutex::default() }
    }
}

impl Wires for KvmWires {
    fn connect(&self, interrupt: &EventFd) -> Result<u32, IoError> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let number = IO_APIC_PINS + u32::try_from(routes.len()).map_err(IoError::other)?;
        self.vm.register_irqfd(interrupt, number).map_err(from_kvm)?;
        routes.push(None);
        Ok(number)
    }

    fn route(&self, number: u32, message: MsiMessage) -> Result<(), IoError> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let index = number.checked_sub(IO_APIC_PINS).and_then(|index| usize::try_from(index).ok());
        let unknown = || IoError::other("no such interrupt");
        let route = index.and_then(|index| routes.get_mut(index)).ok_or_else(unknown)?;
        let before = route.replace(message);
        let set = self.set(&routes);
        if set.is_err()
            && let Some(route) = index.and_then(|index| routes.get_mut(index))
        {
            *route = before;
        }
        set
    }

    fn attach(&self, bell: &EventFd, address: u64) -> Result<(), IoError> {
        let address = IoEventAddress::Mmio(address);
        self.vm.register_ioevent(bell, &address, NoDatamatch).map_err(from_kvm)
    }

    fn detach(&self, bell: &EventFd, address: u64) -> Result<(), IoError> {
        let address = IoEventAddress::Mmio(address);
        self.vm.unregister_ioevent(bell, &address, NoDatamatch).map_err(from_kvm)
    }
}

impl KvmWires {
    /// Gives KVM the whole table: its own entries for the controllers' pins, then the messages.
    fn set(&self, routes: &[Option<MsiMessage>]) -> Result<(), IoError> {
        let messages = (IO_APIC_PINS..).zip(routes).filter_map(|(number, route)| {
            let MsiMessage { address, data } = (*route)?;
            let [b0, b1, b2, b3, b4, b5, b6, b7] = address.to_le_bytes();
            let msi = kvm_irq_routing_msi {
                address_lo: u32::from_le_bytes([b0, b1, b2, b3]),
                address_hi: u32::from_le_bytes([b4, b5, b6, b7]),
                data,
                ..kvm_irq_routing_msi::default()
            };
            Some(entry(number, KVM_IRQ_ROUTING_MSI, kvm_irq_routing_entry__bindgen_ty_1 { msi }))
        });
        let table: Vec<_> = pins().chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&table)
            .map_err(|_too_many| IoError::other("more interrupts than KVM can route"))?;
        self.vm.set_gsi_routing(&table).map_err(from_kvm)
    }
}

/// KVM's default table, which setting a table replaces.
fn pins() -> impl Iterator<Item = kvm_irq_routing_entry> {
    let pin = |gsi, irqchip, pin| {
        let irqchip = kvm_irq_routing_irqchip { irqchip, pin };
        entry(gsi, KVM_IRQ_ROUTING_IRQCHIP, kvm_irq_routing_entry__bindgen_ty_1 { irqchip })
    };
    let half = PIC_PINS / 2;
    let legacy = (0..PIC_PINS).map(move |gsi| {
        let chip = if gsi < half { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        pin(gsi, chip, gsi % half)
    });
    legacy.chain((0..IO_APIC_PINS).map(move |gsi| pin(gsi, KVM_IRQCHIP_IOAPIC, gsi)))
}

fn entry(gsi: u32, type_: u32, u: kvm_irq_routing_entry__bindgen_ty_1) -> kvm_irq_routing_entry {
    kvm_irq_routing_entry { gsi, type_, u, ..kvm_irq_routing_entry::default() }
}

fn from_kvm(cause: Errno) -> IoError {
    IoError::from_raw_os_error(cause.errno())
}
