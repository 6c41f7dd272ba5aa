//! A split ring of one device, on `virtio-queue`: chains out, used entries in, notifications.
//!
//! What the driver writes in a ring is not trusted. Whatever breaks the rules of the ring is
//! [`Broken`], and the device is broken until it is reset; nothing is read or written that the
//! driver has not named, and no more than [`CHAIN_MAX`] descriptors are followed at a time.

use std::mem::{replace, take};
use std::sync::atomic::{Ordering, fence};

use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Error as RingError, Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use super::broken::{BadRing, Broken, CHAIN_MAX};
use super::chain::DescriptorChain;
use crate::memory::DeviceView;

/// Most chains that are taken from a ring in one turn. A driver that adds while its device takes would
/// otherwise keep it at work, and everybody who waits for the device's lock, for ever.
const TURN_MAX: u16 = 1024;

/// A ring, as its driver has set it up.
#[derive(Debug)]
pub struct Ring {
    queue: Queue,
    /// Whether the driver is asked to say when it adds to the ring.
    is_armed: bool,
    /// Whether something was finished, and the driver not yet told.
    has_finished: bool,
    /// How much was finished when the driver was last told, or did not want to be.
    told: u16,
    /// How many more chains may be taken in this turn.
    turn_left: u16,
    /// Whether the turn ended before the ring was found empty.
    is_cut_short: bool,
}

/// A ring and the memory that it is in.
#[derive(Debug)]
pub struct Virtqueue<'r, 'm> {
    ring: &'r mut Ring,
    memory: &'m DeviceView,
}

impl Ring {
    /// A ring of at most `size` entries, a power of two up to 32,768.
    ///
    /// # Errors
    /// [`RingError::InvalidMaxSize`].
    pub fn new(size: u16) -> Result<Self, RingError> {
        Ok(Self::of(Queue::new(size)?, 0))
    }

    fn of(queue: Queue, told: u16) -> Self {
        Self {
            queue,
            is_armed: true,
            has_finished: false,
            told,
            turn_left: TURN_MAX,
            is_cut_short: false,
        }
    }

    /// Goes on where `state` was.
    ///
    /// # Errors
    /// [`BadRing`] if it is none of this ring, or a ring that is ready is not in `memory`.
    pub fn restore(&mut self, state: &RingState, memory: &DeviceView) -> Result<(), BadRing> {
        let max_size = self.queue.max_size();
        let state = QueueState {
            max_size,
            next_avail: state.next_available,
            next_used: state.next_used,
            event_idx_enabled: state.event_index,
            size: state.size,
            ready: state.is_ready,
            desc_table: state.descriptors,
            avail_ring: state.available,
            used_ring: state.used,
        };
        let queue = Queue::try_from(state).map_err(BadRing::Fields)?;
        if state.ready && !is_valid(&queue, memory) {
            return Err(BadRing::NotRam);
        }
        *self = Self::of(queue, state.next_used);
        Ok(())
    }

    /// What there is beside the memory.
    #[must_use]
    pub fn state(&self) -> RingState {
        let state = self.queue.state();
        RingState {
            size: state.size,
            is_ready: state.ready,
            event_index: state.event_idx_enabled,
            descriptors: state.desc_table,
            available: state.avail_ring,
            used: state.used_ring,
            next_available: state.next_avail,
            next_used: state.next_used,
        }
    }

    /// Whether the driver has enabled it.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.queue.ready()
    }

    /// Most entries.
    #[must_use]
    pub fn max_size(&self) -> u16 {
        self.queue.max_size()
    }

    /// Enables the ring at the addresses of `setup`.
    ///
    /// # Errors
    /// [`BadRing`]; it is not enabled then.
    pub(super) fn enable(
        &mut self,
        setup: RingSetup,
        event_index: bool,
        memory: &DeviceView,
    ) -> Result<(), BadRing> {
        let state = RingState {
            size: setup.size,
            is_ready: true,
            event_index,
            descriptors: setup.descriptors,
            available: setup.available,
            used: setup.used,
            next_available: 0,
            next_used: 0,
        };
        self.restore(&state, memory)
    }

    /// As before the driver set it up.
    pub(super) fn reset(&mut self) {
        self.queue.reset();
        (self.is_armed, self.has_finished, self.told) = (true, false, 0);
        self.is_cut_short = false;
    }

    /// The device has another turn.
    pub(super) fn begin_turn(&mut self) {
        self.turn_left = TURN_MAX;
    }

    /// Whether the turn was too short for what is in the ring: the device must have another one.
    pub(super) fn wants_another_turn(&mut self) -> bool {
        take(&mut self.is_cut_short)
    }

    /// The ring, to work on.
    pub(super) fn in_memory<'r, 'm>(&'r mut self, memory: &'m DeviceView) -> Virtqueue<'r, 'm> {
        Virtqueue { ring: self, memory }
    }
}

impl<'m> Virtqueue<'_, 'm> {
    /// The next chain that the driver has made available; `None` if there is none, or the device has had its
    /// turn. After `None` the device is called again when there are more.
    ///
    /// # Errors
    /// [`Broken`] if the ring or the chain breaks the rules.
    pub fn pop(&mut self) -> Result<Option<DescriptorChain<'m>>, Broken> {
        if !self.ring.is_ready() {
            return Ok(None);
        }
        if self.ring.turn_left == 0 {
            self.ring.is_cut_short = true;
            return Ok(None);
        }
        loop {
            if let Some((head, descriptors)) = self.next_chain()? {
                self.ring.turn_left -= 1;
                self.arm(false)?;
                return DescriptorChain::new(self.memory, head, &descriptors).map(Some);
            }
            if !self.arm(true)? {
                return Ok(None);
            }
        }
    }

    /// Gives the chain with this head back to the driver, of whose writable part the first `written`
    /// bytes were written.
    ///
    /// # Errors
    /// [`Broken`] if the ring is none any more.
    pub fn finish(&mut self, head: u16, written: u32) -> Result<(), Broken> {
        self.ring.has_finished = true;
        Ok(self.ring.queue.add_used(self.memory, head, written)?)
    }

    /// Gives several chains back as [`Virtqueue::finish`] does; the driver sees all of them or none.
    ///
    /// # Errors
    /// [`Broken`] if the ring is none any more.
    pub fn finish_together(&mut self, chains: &[(u16, u32)]) -> Result<(), Broken> {
        let Some((&(last, written), before)) = chains.split_last() else { return Ok(()) };
        let queue = &mut self.ring.queue;
        let mut next = queue.next_used();
        for &(head, written) in before {
            let place = u64::from(next.checked_rem(queue.size()).unwrap_or(0));
            let entry = u64::from(head) | u64::from(written) << 32;
            let at = GuestAddress(queue.used_ring() + 4 + 8 * place);
            self.memory.write_obj(entry.to_le(), at).map_err(RingError::GuestMemory)?;
            next = next.wrapping_add(1);
        }
        queue.set_next_used(next);
        self.finish(last, written)
    }

    /// Undoes the last `count` calls of [`Virtqueue::pop`] that gave a chain: they come again.
    pub fn put_back(&mut self, count: u16) {
        let queue = &mut self.ring.queue;
        queue.set_next_avail(queue.next_avail().wrapping_sub(count));
    }

    /// Entries of the ring.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.queue.size()
    }

    /// Whether the driver wants an interrupt for what was finished since the last call.
    pub(super) fn wants_interrupt(&mut self) -> Result<bool, Broken> {
        if !take(&mut self.ring.has_finished) {
            return Ok(false);
        }
        let queue = &mut self.ring.queue;
        let new = queue.next_used();
        let old = replace(&mut self.ring.told, new);
        // What is used must be seen before it is looked whether the driver wants to know.
        fence(Ordering::SeqCst);
        if queue.event_idx_enabled() {
            // virtio-queue counts calls of `add_used`, and not what is finished together.
            let event = queue.avail_ring() + 4 + 2 * u64::from(queue.size());
            let event: u16 =
                self.memory.read_obj(GuestAddress(event)).map_err(RingError::GuestMemory)?;
            let since = new.wrapping_sub(u16::from_le(event)).wrapping_sub(1);
            return Ok(since < new.wrapping_sub(old));
        }
        // virtio-queue does not look at this flag.
        let flags: u16 = self
            .memory
            .read_obj(GuestAddress(queue.avail_ring()))
            .map_err(RingError::GuestMemory)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }

    /// The next chain's head and its descriptors.
    fn next_chain(&mut self) -> Result<Option<(u16, Vec<Descriptor>)>, Broken> {
        let queue = &mut self.ring.queue;
        let Some(chain) = queue.iter(self.memory)?.next() else { return Ok(None) };
        let head = chain.head_index();
        if head >= queue.size() {
            return Err(Broken::Head { head, size: queue.size() });
        }
        let descriptors: Vec<_> = chain.take(CHAIN_MAX + 1).collect();
        if descriptors.len() > CHAIN_MAX {
            return Err(Broken::TooLong { head });
        }
        // The iterator ends at whatever is wrong; a chain that is right ends where no next is named.
        match descriptors.last() {
            Some(last) if !last.has_next() => Ok(Some((head, descriptors))),
            _ => Err(Broken::Chain { head }),
        }
    }

    /// Asks the driver to say when it adds to the ring, or not to; returns whether it has added by
    /// now, when it was asked to.
    fn arm(&mut self, armed: bool) -> Result<bool, Broken> {
        let queue = &mut self.ring.queue;
        if armed {
            self.ring.is_armed = true;
            return Ok(queue.enable_notification(self.memory)?);
        }
        if self.ring.is_armed {
            self.ring.is_armed = false;
            queue.disable_notification(self.memory)?;
        }
        Ok(false)
    }
}

/// Whether all three parts of a ring are RAM. `Queue::is_valid` says the same, in the log too.
fn is_valid(queue: &Queue, memory: &DeviceView) -> bool {
    let size = usize::from(queue.size());
    let parts = [
        (queue.desc_table(), 16 * size),
        (queue.avail_ring(), 6 + 2 * size),
        (queue.used_ring(), 6 + 8 * size),
    ];
    // A ring at 0 is how virtio-queue knows one that was never set up.
    queue.avail_ring() != 0
        && parts.into_iter().all(|(at, bytes)| memory.check_range(GuestAddress(at), bytes))
}

/// Where a driver wants a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(super) struct RingSetup {
    pub(super) size: u16,
    pub(super) descriptors: u64,
    pub(super) available: u64,
    pub(super) used: u64,
}

/// The state of a [`Ring`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RingState {
    size: u16,
    is_ready: bool,
    event_index: bool,
    descriptors: u64,
    available: u64,
    used: u64,
    next_available: u16,
    next_used: u16,
}
