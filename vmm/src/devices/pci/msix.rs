//! MSI-X of one function: its table, its pending bits, and when an interrupt may leave.
//!
//! An interrupt that is masked becomes pending, and is sent when the mask goes. There is no `INTx` to
//! fall back to: before the guest enables MSI-X, interrupts are lost.

use std::io::Error as IoError;
use std::sync::Arc;

use log::{debug, warn};
use serde::{Deserialize, Serialize};
use thiserror::Error;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::wires::{MsiMessage, Wires};

/// `PCI_CAP_ID_MSIX`.
pub const MSIX_CAPABILITY: u8 = 0x11;

/// Bytes of a table entry: address, data, control.
pub const MSIX_ENTRY_BYTES: u64 = 16;

/// Message control: MSI-X is on.
const ENABLE: u16 = 1 << 15;

/// Message control: all vectors are masked.
const MASK_ALL: u16 = 1 << 14;

/// Vector control: this vector is masked.
const MASKED: u32 = 1;

/// The vectors of one function.
#[derive(Debug)]
pub struct Msix {
    control: u16,
    vectors: Vec<Vector>,
    wires: Arc<dyn Wires>,
}

#[derive(Debug)]
struct Vector {
    message: MsiMessage,
    control: u32,
    is_pending: bool,
    number: u32,
    interrupt: EventFd,
    /// What KVM sends when the interrupt is written.
    routed: Option<MsiMessage>,
}

impl Vector {
    /// As after a reset, but for its wire.
    fn clear(&mut self) {
        (self.message, self.control, self.is_pending) = (MsiMessage::default(), MASKED, false);
    }
}

impl Msix {
    /// So many vectors, all masked; MSI-X is off.
    ///
    /// # Errors
    /// From KVM, or without descriptors for their interrupts.
    pub fn new(vectors: u16, wires: Arc<dyn Wires>) -> Result<Self, IoError> {
        let vector = |_| {
            let interrupt = EventFd::new(EFD_NONBLOCK)?;
            let number = wires.connect(&interrupt)?;
            let message = MsiMessage::default();
            Ok(Vector {
                message,
                control: MASKED,
                is_pending: false,
                number,
                interrupt,
                routed: None,
            })
        };
        let vectors = (0..vectors).map(vector).collect::<Result<_, IoError>>()?;
        Ok(Self { control: 0, vectors, wires })
    }

    /// How many vectors there are.
    #[must_use]
    pub fn len(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.vectors.is_empty()
    }

    /// The capability's body, with the table and the pending bits at these offsets in BAR 0; and
    /// what the guest may write in it.
    #[must_use]
    pub fn capability(&self, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
        let mut body = [0; 10];
        let size = self.len().saturating_sub(1);
        for (place, byte) in body.iter_mut().zip(
            size.to_le_bytes().into_iter().chain(table.to_le_bytes()).chain(pending.to_le_bytes()),
        ) {
            *place = byte;
        }
        (body, (ENABLE | MASK_ALL).to_le_bytes())
    }

    /// Message control: what of it the guest can write.
    #[must_use]
    pub fn control(&self) -> u16 {
        self.control
    }

    /// The guest has written message control.
    pub fn set_control(&mut self, control: u16) {
        self.control = control & (ENABLE | MASK_ALL);
        self.send_pending();
    }

    /// The guest reads in the table.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let vector = usize::try_from(at / MSIX_ENTRY_BYTES).ok();
            *byte = vector.and_then(|index| self.vectors.get(index)).map_or(0, |vector| {
                let field = usize::try_from(at % MSIX_ENTRY_BYTES).unwrap_or(0);
                entry_bytes(vector).get(field).copied().unwrap_or(0)
            });
        }
    }

    /// The guest writes in the table: four bytes, or eight, at a multiple of that; others are lost.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) {
        if data.len() == 8 && offset.is_multiple_of(8) {
            let (low, high) = data.split_at(4);
            self.write_table(offset, low);
            self.write_table(offset + 4, high);
            return;
        }
        let Ok(word) = data.try_into().map(u32::from_le_bytes) else { return };
        let index = usize::try_from(offset / MSIX_ENTRY_BYTES).ok();
        let Some(vector) = index.and_then(|index| self.vectors.get_mut(index)) else { return };
        let address = vector.message.address;
        match offset % MSIX_ENTRY_BYTES {
            0 => vector.message.address = address >> 32 << 32 | u64::from(word & !3),
            4 => vector.message.address = u64::from(word) << 32 | address & 0xffff_ffff,
            8 => vector.message.data = word,
            12 => vector.control = word & MASKED,
            _ => return,
        }
        self.send_pending();
    }

    /// The guest reads the pending bits.
    pub fn read_pending(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let first = usize::try_from(at).unwrap_or(usize::MAX).saturating_mul(8);
            let pending = self.vectors.iter().skip(first).take(8);
            *byte = pending.rev().fold(0, |bits, vector| bits << 1 | u8::from(vector.is_pending));
        }
    }

    /// Interrupts the guest with `vector`, now or when it is not masked any more. `may_send` says
    /// whether the function may write to the bus at all.
    pub fn signal(&mut self, vector: u16, may_send: bool) {
        if self.control & ENABLE == 0 || !may_send {
            return;
        }
        if let Some(vector) = self.vectors.get_mut(usize::from(vector)) {
            vector.is_pending = true;
        }
        self.send_pending();
    }

    /// What there is beside the wires.
    #[must_use]
    pub fn state(&self) -> MsixState {
        let vector = |vector: &Vector| VectorState {
            address: vector.message.address,
            data: vector.message.data,
            control: vector.control,
            is_pending: vector.is_pending,
        };
        MsixState { control: self.control, vectors: self.vectors.iter().map(vector).collect() }
    }

    /// Goes on where `state` was; what is pending and not masked is sent.
    ///
    /// # Errors
    /// [`BadMsix`] if it has another number of vectors.
    pub fn restore(&mut self, state: &MsixState) -> Result<(), BadMsix> {
        let (came, here) = (state.vectors.len(), self.vectors.len());
        if came != here {
            return Err(BadMsix { came, here });
        }
        for (vector, state) in self.vectors.iter_mut().zip(&state.vectors) {
            vector.message = MsiMessage { address: state.address & !3, data: state.data };
            vector.control = state.control & MASKED;
            vector.is_pending = state.is_pending;
        }
        self.set_control(state.control);
        Ok(())
    }

    /// As after a reset of the machine.
    pub fn reset(&mut self) {
        self.control = 0;
        self.vectors.iter_mut().for_each(Vector::clear);
    }

    /// Routes every vector that can send, and sends what is pending. KVM's table is set only when a
    /// message that can be sent has changed: a guest masks and unmasks vectors often.
    fn send_pending(&mut self) {
        if self.control & (ENABLE | MASK_ALL) != ENABLE {
            return;
        }
        for vector in self.vectors.iter_mut().filter(|vector| vector.control & MASKED == 0) {
            if vector.routed != Some(vector.message) {
                match self.wires.route(vector.number, vector.message) {
                    Ok(()) => vector.routed = Some(vector.message),
                    Err(cause) => {
                        warn!("an interrupt is lost, KVM does not route it: {cause}");
                        vector.is_pending = false;
                    }
                }
            }
            if vector.is_pending {
                vector.is_pending = false;
                if let Err(cause) = vector.interrupt.write(1) {
                    debug!("an interrupt is already on its way: {cause}");
                }
            }
        }
    }
}

fn entry_bytes(vector: &Vector) -> [u8; 16] {
    let MsiMessage { address, data } = vector.message;
    let word = u128::from(address) | u128::from(data) << 64 | u128::from(vector.control) << 96;
    word.to_le_bytes()
}

/// The state of [`Msix`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MsixState {
    control: u16,
    vectors: Vec<VectorState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct VectorState {
    address: u64,
    data: u32,
    control: u32,
    is_pending: bool,
}

/// Another function's interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{came} interrupt vectors came for a function that has {here}")]
pub struct BadMsix {
    /// In the state.
    pub came: usize,
    /// In the function.
    pub here: usize,
}

#[cfg(test)]
mod tests {
    use super::super::in_process::InProcess;
    use super::*;

    fn msix(vectors: u16) -> (Arc<InProcess>, Msix) {
        let wires = Arc::new(InProcess::new().unwrap());
        let msix = Msix::new(vectors, Arc::clone(&wires) as Arc<dyn Wires>).unwrap();
        (wires, msix)
    }

    fn program(msix: &mut Msix, vector: u64, data: u32) {
        let at = vector * MSIX_ENTRY_BYTES;
        msix.write_table(at, &0xfee0_1000_u64.to_le_bytes());
        msix.write_table(at + 8, &data.to_le_bytes());
    }

    fn pending(msix: &Msix) -> u8 {
        let mut byte = [0];
        msix.read_pending(0, &mut byte);
        byte[0]
    }

    /// An interrupt waits while its vector, or all, are masked, shows as pending meanwhile, and is
    /// sent once.
    #[test]
    fn a_masked_interrupt_waits_and_is_sent_once() {
        let (wires, mut msix) = msix(3);
        program(&mut msix, 1, 0x41);
        msix.set_control(ENABLE);
        msix.signal(1, true);
        msix.signal(1, true);
        assert_eq!((pending(&msix), wires.sent()), (0b10, vec![]));
        msix.set_control(ENABLE | MASK_ALL);
        msix.write_table(MSIX_ENTRY_BYTES + 12, &[0; 4]);
        assert_eq!((pending(&msix), wires.sent()), (0b10, vec![]));
        msix.set_control(ENABLE);
        let message = MsiMessage { address: 0xfee0_1000, data: 0x41 };
        assert_eq!((pending(&msix), wires.sent()), (0, vec![message]));
        msix.signal(1, true);
        assert_eq!(wires.sent(), [message]);
        msix.signal(7, true);
        msix.signal(1, false);
        msix.set_control(0);
        msix.signal(1, true);
        msix.set_control(ENABLE);
        assert_eq!(wires.sent(), []);
    }

    /// A vector that is moved to another processor sends there; KVM's table is set only then.
    #[test]
    fn a_moved_vector_sends_elsewhere() {
        let (wires, mut msix) = msix(1);
        program(&mut msix, 0, 0x41);
        msix.write_table(12, &[0; 4]);
        msix.set_control(ENABLE);
        msix.write_table(12, &[1, 0, 0, 0]);
        msix.write_table(12, &[0; 4]);
        assert_eq!(wires.routes(), 1);
        msix.write_table(0, &0xfee0_2000_u32.to_le_bytes());
        msix.signal(0, true);
        assert_eq!(wires.sent(), [MsiMessage { address: 0xfee0_2000, data: 0x41 }]);
        assert_eq!(wires.routes(), 2);
    }

    /// Accesses of odd sizes, across entries and beyond the table harm nothing.
    #[test]
    fn odd_accesses_are_harmless() {
        let (_wires, mut msix) = msix(2);
        program(&mut msix, 0, 5);
        for (offset, len) in [(1, 4), (3, 1), (30, 8), (32, 4), (u64::MAX - 2, 4), (6, 2)] {
            msix.write_table(offset, &vec![0xff; len]);
            msix.read_table(offset.min(1 << 40), &mut vec![0; len]);
        }
        let mut entry = [0; 16];
        msix.read_table(0, &mut entry);
        assert_eq!(entry[..12], [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(entry[12], 1);
    }

    /// What was pending when the state was taken is sent where it is restored.
    #[test]
    fn a_pending_interrupt_survives_a_move() {
        let (_wires, mut old) = msix(2);
        program(&mut old, 0, 9);
        old.set_control(ENABLE);
        old.signal(0, true);
        let (wires, mut new) = msix(2);
        new.restore(&old.state()).unwrap();
        assert_eq!(new.state(), old.state());
        assert_eq!(pending(&new), 1);
        new.write_table(12, &[0; 4]);
        assert_eq!(wires.sent(), [MsiMessage { address: 0xfee0_1000, data: 9 }]);
        let (_wires, mut other) = msix(3);
        assert_eq!(other.restore(&old.state()), Err(BadMsix { came: 2, here: 3 }));
    }
}
