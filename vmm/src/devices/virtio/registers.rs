//! The common configuration of a virtio device: what a driver reads and writes to bring it up.
//!
//! Pure data: a write returns what follows from it. A driver's steps are checked at each write and
//! not only when the device starts, because a guest may write whatever it likes at any time:
//!
//! ```text
//! reset -> ACKNOWLEDGE, DRIVER -> features -> FEATURES_OK -> queues -> DRIVER_OK
//!   ^                (status 0, from anywhere)                             |
//!   \----------------------------------------------- NEEDS_RESET, if the driver breaks it
//! ```

use serde::{Deserialize, Serialize};

use super::broken::Broken;
use super::queue::RingSetup;

/// Bytes of the common configuration.
pub(super) const COMMON_BYTES: u64 = 0x38;

/// A vector number that is none.
pub(super) const NO_VECTOR: u16 = 0xffff;

/// `VIRTIO_F_INDIRECT_DESC`.
const INDIRECT: u64 = 1 << 28;

/// `VIRTIO_F_EVENT_IDX`.
const EVENT_INDEX: u64 = 1 << 29;

/// `VIRTIO_F_VERSION_1`.
const VERSION_1: u64 = 1 << 32;

/// `VIRTIO_F_ACCESS_PLATFORM`: the driver asks its platform which memory the device can reach. An SEV
/// guest shares it then.
const ACCESS_PLATFORM: u64 = 1 << 33;

/// What every device offers.
const TRANSPORT: u64 = INDIRECT | EVENT_INDEX | VERSION_1 | ACCESS_PLATFORM;

/// What every driver must accept.
const REQUIRED: u64 = VERSION_1 | ACCESS_PLATFORM;

/// Device status: the driver is ready.
const DRIVER_OK: u8 = 4;
/// Device status: the features are settled.
const FEATURES_OK: u8 = 8;
/// Device status: only a reset helps.
const NEEDS_RESET: u8 = 64;

/// The registers.
#[derive(Debug)]
pub(super) struct Registers {
    offered: u64,
    vectors: u16,
    now: Written,
    queues: Vec<QueueRegisters>,
    /// Ring sizes at the most.
    max_sizes: Vec<u16>,
}

/// What the driver has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Written {
    device_select: u32,
    driver_select: u32,
    accepted: u64,
    config_vector: u16,
    status: u8,
    generation: u8,
    queue_select: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct QueueRegisters {
    setup: RingSetup,
    vector: u16,
    is_enabled: bool,
}

/// What follows from a write.
#[derive(Debug)]
pub(super) enum Action {
    /// Nothing.
    None,
    /// All starts anew.
    Reset,
    /// The queue is set up, and wants to be enabled.
    Enable(u16, RingSetup),
    /// The driver is ready.
    Start,
    /// The driver has broken the device.
    Break(Broken),
}

impl Registers {
    /// Of a device that offers `features` beside what every device does, with these queues.
    pub(super) fn new(features: u64, max_sizes: Vec<u16>, vectors: u16) -> Self {
        let mut new = Self {
            offered: features | TRANSPORT,
            vectors,
            now: Written::reset(),
            queues: Vec::new(),
            max_sizes,
        };
        new.reset();
        new
    }

    /// As they were at first.
    pub(super) fn reset(&mut self) {
        self.now = Written::reset();
        let fresh = |&size: &u16| QueueRegisters {
            setup: RingSetup { size, ..RingSetup::default() },
            vector: NO_VECTOR,
            is_enabled: false,
        };
        self.queues = self.max_sizes.iter().map(fresh).collect();
    }

    /// Whether the device works: its driver is ready, and has not broken it.
    pub(super) fn is_running(&self) -> bool {
        self.now.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Whether only a reset helps.
    pub(super) fn is_broken(&self) -> bool {
        self.now.status & NEEDS_RESET != 0
    }

    /// What device and driver have in common.
    pub(super) fn features(&self) -> u64 {
        self.now.accepted & self.offered
    }

    /// Whether `EVENT_IDX` is used.
    pub(super) fn event_index(&self) -> bool {
        self.features() & EVENT_INDEX != 0
    }

    /// The vector of a queue.
    pub(super) fn queue_vector(&self, queue: usize) -> u16 {
        self.queues.get(queue).map_or(NO_VECTOR, |queue| queue.vector)
    }

    /// The vector of changes of the configuration.
    pub(super) fn config_vector(&self) -> u16 {
        self.now.config_vector
    }

    /// The device's own configuration has changed.
    pub(super) fn count_generation(&mut self) {
        self.now.generation = self.now.generation.wrapping_add(1);
    }

    /// Only a reset helps from now on.
    pub(super) fn set_broken(&mut self) {
        self.now.status |= NEEDS_RESET;
    }

    /// The driver reads.
    pub(super) fn read(&self, offset: u64, data: &mut [u8]) {
        let image = self.image();
        for (at, byte) in (offset..).zip(data) {
            let at = usize::try_from(at).unwrap_or(usize::MAX);
            *byte = image.get(at).copied().unwrap_or(0);
        }
    }

    /// The driver writes: a whole register, or half of one of 64 bits; anything else is lost.
    pub(super) fn write(&mut self, offset: u64, data: &[u8]) -> Action {
        let mut bytes = [0; 8];
        for (place, byte) in bytes.iter_mut().zip(data) {
            *place = *byte;
        }
        let value = u64::from_le_bytes(bytes);
        // Each is as wide as what was written, so nothing is cut off.
        let [low, high] = [bytes[0], bytes[1]];
        let (short, long) = (u16::from_le_bytes([low, high]), word(value));
        let may_negotiate = self.now.status & (FEATURES_OK | NEEDS_RESET) == 0;
        match (offset, data.len()) {
            (0x00, 4) => self.now.device_select = long,
            (0x08, 4) => self.now.driver_select = long,
            (0x0c, 4) if may_negotiate => self.accept(long),
            (0x10, 2) => self.now.config_vector = self.vector(short),
            (0x14, 1) => return self.set_status(low),
            (0x16, 2) => self.now.queue_select = short,
            (0x1a, 2) => {
                let vector = self.vector(short);
                if let Some(queue) = self.selected() {
                    queue.vector = vector;
                }
            }
            (0x18..0x38, _) => return self.set_queue(offset, data.len(), value),
            _ => {}
        }
        Action::None
    }

    /// What travels.
    pub(super) fn state(&self) -> RegistersState {
        RegistersState { offered: self.offered, now: self.now, queues: self.queues.clone() }
    }

    /// Goes on where `state` was; false if it is of another device.
    pub(super) fn restore(&mut self, state: &RegistersState) -> bool {
        let fits = state.queues.len() == self.max_sizes.len() && state.offered & !self.offered == 0;
        if fits {
            // The guest was offered this; more could be taken back under its feet.
            self.offered = state.offered;
            self.now = state.now;
            self.now.config_vector = self.vector(state.now.config_vector);
            self.queues.clone_from(&state.queues);
            let vectors = self.vectors;
            for queue in self.queues.iter_mut().filter(|queue| queue.vector >= vectors) {
                queue.vector = NO_VECTOR;
            }
        }
        fits
    }

    fn selected(&mut self) -> Option<&mut QueueRegisters> {
        self.queues.get_mut(usize::from(self.now.queue_select))
    }

    fn vector(&self, wanted: u16) -> u16 {
        if wanted < self.vectors { wanted } else { NO_VECTOR }
    }

    fn accept(&mut self, half: u32) {
        let accepted = self.now.accepted;
        match self.now.driver_select {
            0 => self.now.accepted = accepted >> 32 << 32 | u64::from(half),
            1 => self.now.accepted = accepted & 0xffff_ffff | u64::from(half) << 32,
            _ => {}
        }
    }

    /// Status only grows, but for a reset; the driver finds out what was agreed to by reading it.
    fn set_status(&mut self, wanted: u8) -> Action {
        if wanted == 0 {
            return Action::Reset;
        }
        let before = self.now.status;
        let mut added = wanted & !before & !NEEDS_RESET;
        let accepted = self.now.accepted;
        if accepted & !self.offered != 0 || accepted & REQUIRED != REQUIRED {
            added &= !FEATURES_OK;
        }
        self.now.status |= added;
        if added & DRIVER_OK == 0 || before & NEEDS_RESET != 0 {
            Action::None
        } else if before & FEATURES_OK == 0 {
            Action::Break(Broken::Protocol("DRIVER_OK before the features were settled"))
        } else {
            Action::Start
        }
    }

    /// A queue's registers are the driver's until it enables the queue, and then nobody's.
    fn set_queue(&mut self, offset: u64, len: usize, value: u64) -> Action {
        let index = self.now.queue_select;
        let is_setting_up =
            self.now.status & (FEATURES_OK | DRIVER_OK | NEEDS_RESET) == FEATURES_OK;
        let Some(queue) = self.selected().filter(|queue| !queue.is_enabled && is_setting_up) else {
            return Action::None;
        };
        let RingSetup { size, descriptors, available, used } = &mut queue.setup;
        match (offset, len) {
            (0x18, 2) => *size = u16::try_from(value).unwrap_or(0),
            (0x20 | 0x24, 4) | (0x20, 8) => set_half(descriptors, offset, len, value),
            (0x28 | 0x2c, 4) | (0x28, 8) => set_half(available, offset, len, value),
            (0x30 | 0x34, 4) | (0x30, 8) => set_half(used, offset, len, value),
            (0x1c, 2) if value == 1 => {
                queue.is_enabled = true;
                return Action::Enable(index, queue.setup);
            }
            _ => {}
        }
        Action::None
    }

    fn image(&self) -> Vec<u8> {
        let Written { device_select, driver_select, accepted, .. } = self.now;
        let half = |features: u64, select: u32| match select {
            0 => word(features),
            1 => word(features >> 32),
            _ => 0,
        };
        let none =
            QueueRegisters { setup: RingSetup::default(), vector: NO_VECTOR, is_enabled: false };
        let QueueRegisters { setup, vector, is_enabled } =
            self.queues.get(usize::from(self.now.queue_select)).copied().unwrap_or(none);
        let count = u16::try_from(self.queues.len()).unwrap_or(u16::MAX);
        let mut image = Vec::new();
        image.extend(device_select.to_le_bytes());
        image.extend(half(self.offered, device_select).to_le_bytes());
        image.extend(driver_select.to_le_bytes());
        image.extend(half(accepted, driver_select).to_le_bytes());
        image.extend(self.now.config_vector.to_le_bytes());
        image.extend(count.to_le_bytes());
        image.extend([self.now.status, self.now.generation]);
        image.extend(self.now.queue_select.to_le_bytes());
        image.extend(setup.size.to_le_bytes());
        image.extend(vector.to_le_bytes());
        image.extend(u16::from(is_enabled).to_le_bytes());
        // Where in the notification area its bell is.
        image.extend(self.now.queue_select.to_le_bytes());
        for address in [setup.descriptors, setup.available, setup.used] {
            image.extend(address.to_le_bytes());
        }
        image
    }
}

impl Written {
    fn reset() -> Self {
        Self {
            device_select: 0,
            driver_select: 0,
            accepted: 0,
            config_vector: NO_VECTOR,
            status: 0,
            generation: 0,
            queue_select: 0,
        }
    }
}

/// The low 32 bits.
fn word(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or(0)
}

fn set_half(register: &mut u64, offset: u64, len: usize, value: u64) {
    *register = match (len, offset % 8) {
        (8, _) => value,
        (_, 0) => *register >> 32 << 32 | value,
        _ => *register & 0xffff_ffff | value << 32,
    };
}

/// The state of [`Registers`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RegistersState {
    offered: u64,
    now: Written,
    queues: Vec<QueueRegisters>,
}
