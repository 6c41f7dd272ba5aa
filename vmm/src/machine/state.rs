//! The state of a paused machine, except its memory and page status, as it is sent to another host.

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_irqchip, kvm_pit_state2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use rmp_serde::encode::Error as EncodeError;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::errno::Error as Errno;

use super::clock::{ClockState, Elapsed, SavedBetween};
use super::devices::{BadDevices, Devices, DevicesState};
use super::encrypted::LaunchRecord;
use super::wire::{MACHINE_VERSION, Undecodable, decode};
use crate::devices::pci::PciBus;
use crate::devices::{SerialError, SerialPort, SerialState};
use crate::saved::KernelStruct;
use crate::sev::measurement::{FirmwareVersion, Measurement};
use crate::sev::{BadPolicy, Policy};
use crate::vcpu::{StateError, VcpuState};

/// The in-kernel interrupt controllers, in the order in which they are saved.
const IRQCHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

/// The state of a paused machine, except its memory and its page status.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct MachineState {
    version: u32,
    pub(super) vcpus: Vec<VcpuState>,
    irqchips: [KernelStruct<kvm_irqchip>; 3],
    pit: KernelStruct<kvm_pit_state2>,
    pub(super) clock: ClockState,
    serial: SerialState,
    devices: DevicesState,
    launch: Option<LaunchState>,
}

impl MachineState {
    /// Reads all of it from a machine whose vCPUs are paused.
    pub(super) fn save(
        vm: &VmFd,
        vcpus: &[VcpuFd],
        msrs: &[u32],
        (serial, devices): (&SerialPort, DevicesState),
        launch: Option<&LaunchRecord>,
    ) -> Result<Self, SaveError> {
        let step = |what| move |cause| SaveError::Kvm { what, cause };
        // The clock first, so that the time that reading the rest takes is not lost.
        let clock = ClockState::save(vm).map_err(step("clock"))?;
        let vcpus = (0..).zip(vcpus).map(|(index, vcpu)| {
            VcpuState::save(vcpu, msrs).map_err(|cause| SaveError::Vcpu { index, cause })
        });
        let vcpus = vcpus.collect::<Result<_, _>>()?;
        let mut irqchips = <[KernelStruct<kvm_irqchip>; 3]>::default();
        for (chip, chip_id) in irqchips.iter_mut().zip(IRQCHIPS) {
            chip.0.chip_id = chip_id;
            vm.get_irqchip(&mut chip.0).map_err(step("interrupt controllers"))?;
        }
        Ok(Self {
            version: MACHINE_VERSION,
            vcpus,
            irqchips,
            pit: KernelStruct(vm.get_pit2().map_err(step("timer"))?),
            clock,
            serial: serial.save(),
            devices,
            launch: launch.map(LaunchState::from),
        })
    }

    /// Gives all of it to a machine that has never run. Its clocks have gone on since it was saved.
    ///
    /// The interrupt controllers come after the LAPICs, because restoring them delivers what waits
    /// in them; the serial port and the devices come after both, because they raise their interrupts again.
    pub(super) fn restore(
        &self,
        vm: &VmFd,
        vcpus: &[VcpuFd],
        (serial, devices, bus): (&SerialPort, &Devices, &PciBus),
        saved: SavedBetween,
    ) -> Result<(), RestoreError> {
        let step = |what| move |cause| RestoreError::Kvm { what, cause };
        let elapsed = Elapsed::since(&self.clock, saved);
        for (index, (state, vcpu)) in self.vcpus.iter().zip(vcpus).enumerate() {
            state
                .restore(vcpu, elapsed.nanoseconds())
                .map_err(|cause| RestoreError::Vcpu { index, cause })?;
        }
        for (chip, chip_id) in self.irqchips.iter().zip(IRQCHIPS) {
            let chip = kvm_irqchip { chip_id, ..chip.0 };
            vm.set_irqchip(&chip).map_err(step("interrupt controllers"))?;
        }
        vm.set_pit2(&self.pit.0).map_err(step("timer"))?;
        self.clock.restore(vm, &elapsed).map_err(step("clock"))?;
        serial.restore(self.serial.clone())?;
        Ok(devices.restore(bus, &self.devices)?)
    }

    /// What was launched, as the source recorded it; `None` for a plain VM.
    ///
    /// # Errors
    /// [`BadPolicy`] if its policy is not a valid one.
    pub fn launch(&self) -> Result<Option<LaunchRecord>, BadPolicy> {
        self.launch.as_ref().map(LaunchState::record).transpose()
    }

    /// The serial form, with names, so that fields can be added.
    ///
    /// # Errors
    /// [`EncodeError`] if there is no memory for it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, EncodeError> {
        rmp_serde::to_vec_named(self)
    }

    /// Reads the serial form. The bytes are not trusted.
    ///
    /// # Errors
    /// [`Undecodable`] unless they are a state of this version.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Undecodable> {
        decode(bytes)
    }
}

/// [`LaunchRecord`] in serial form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct LaunchState {
    c_bit: u8,
    policy: u32,
    firmware: [u8; 3],
    digest: [u8; 32],
    measure: [u8; 32],
    nonce: [u8; 16],
    verified: bool,
}

impl From<&LaunchRecord> for LaunchState {
    fn from(record: &LaunchRecord) -> Self {
        let FirmwareVersion { major, minor, build } = record.version;
        Self {
            c_bit: record.c_bit,
            policy: record.policy.bits(),
            firmware: [major, minor, build],
            digest: record.digest,
            measure: record.measurement.mac,
            nonce: record.measurement.nonce,
            verified: record.verified,
        }
    }
}

impl LaunchState {
    fn record(&self) -> Result<LaunchRecord, BadPolicy> {
        let [major, minor, build] = self.firmware;
        Ok(LaunchRecord {
            c_bit: self.c_bit,
            policy: Policy::new(self.policy)?,
            version: FirmwareVersion { major, minor, build },
            digest: self.digest,
            measurement: Measurement { mac: self.measure, nonce: self.nonce },
            verified: self.verified,
        })
    }
}

/// A machine's state could not be read.
#[derive(Debug, Error)]
pub enum SaveError {
    /// A vCPU's.
    #[error("saving vCPU {index}")]
    Vcpu {
        /// Which vCPU.
        index: usize,
        /// What failed.
        #[source]
        cause: StateError,
    },
    /// That of KVM's devices.
    #[error("saving the {what}: {cause}")]
    Kvm {
        /// Which part.
        what: &'static str,
        /// KVM's errno.
        cause: Errno,
    },
}

/// A machine's state could not be written.
#[derive(Debug, Error)]
pub enum RestoreError {
    /// A vCPU's.
    #[error("restoring vCPU {index}")]
    Vcpu {
        /// Which vCPU.
        index: usize,
        /// What failed.
        #[source]
        cause: StateError,
    },
    /// That of KVM's devices.
    #[error("restoring the {what}: {cause}")]
    Kvm {
        /// Which part.
        what: &'static str,
        /// KVM's errno.
        cause: Errno,
    },
    /// The serial port's.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// A device's.
    #[error(transparent)]
    Devices(#[from] BadDevices),
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use vmm_sys_util::eventfd::EventFd;

    use super::super::wire::MACHINE_BYTES_MAX;
    use super::*;
    use crate::devices::SerialOutput;

    fn state() -> MachineState {
        let serial = SerialPort::new(EventFd::new(0).unwrap(), SerialOutput::nowhere()).unwrap();
        MachineState {
            version: MACHINE_VERSION,
            vcpus: vec![VcpuState::default(), VcpuState::default()],
            irqchips: <[KernelStruct<kvm_irqchip>; 3]>::default(),
            pit: KernelStruct(kvm_pit_state2::default()),
            clock: ClockState::default(),
            serial: serial.save(),
            devices: DevicesState::of_test(),
            launch: Some(LaunchState {
                c_bit: 51,
                policy: 0x21,
                firmware: [1, 55, 7],
                digest: [1; 32],
                measure: [2; 32],
                nonce: [3; 16],
                verified: true,
            }),
        }
    }

    /// What is written is read back, the launch record too, and eight vCPUs fit well.
    #[test]
    fn a_state_survives_its_serial_form() {
        let bytes = state().to_bytes().unwrap();
        let read = MachineState::from_bytes(&bytes).unwrap();
        assert_eq!(read, state());
        let record = read.launch().unwrap().unwrap();
        assert_eq!(LaunchState::from(&record), state().launch.unwrap());
        assert!(bytes.len() * 4 < MACHINE_BYTES_MAX / 4, "{} bytes", bytes.len());
    }

    /// Another version is refused, with both versions named.
    #[test]
    fn another_version_is_refused() {
        let bytes = MachineState { version: 1, ..state() }.to_bytes().unwrap();
        let text = MachineState::from_bytes(&bytes).unwrap_err().to_string();
        assert_eq!(text, "a machine in version 1; this program reads version 2");
    }

    proptest! {
        /// Damaged bytes are refused or are another state; a cut is always refused.
        #[test]
        fn damage_is_survived(
            cut in any::<prop::sample::Index>(),
            hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        ) {
            let bytes = state().to_bytes().unwrap();
            prop_assert!(MachineState::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
            let mut damaged = bytes;
            for (at, value) in hits {
                let at = at.index(damaged.len());
                damaged[at] = value;
            }
            if let Ok(state) = MachineState::from_bytes(&damaged) {
                prop_assert_eq!(state.version, MACHINE_VERSION);
            }
        }
    }
}
