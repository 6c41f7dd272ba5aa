//! The network card: queue pairs between the driver's rings and a tap of the host.
//!
//! ```text
//! driver: transmit ring -> header checked -> one write, from guest RAM -> tap
//! tap: readable -> read into the pair's buffer -> header -> receive ring, one buffer or several
//! ```
//!
//! Nothing waits for the tap: what it does not take is dropped, as on any network. A guest or a tap
//! that has no end of packets is left after some of them, so that pauses and registers have
//! their turn, and the rest is taken up again at once.

mod announce;
mod control;
mod drops;
mod flow;
mod header;
mod mac;
mod port;
mod rate;
mod receive;
mod tap;
#[cfg(test)]
mod tests;
mod timer;
mod transmit;

use std::io::Error as IoError;
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

use log::debug;
use serde::{Deserialize, Serialize};
use virtio_bindings::bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_VQ,
    VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ,
    VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_STATUS,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub use mac::{BadMac, Mac};
pub use port::Port;
pub use rate::RateLimit;
pub use tap::{NoTap, TapSource};

use super::{ANY, BadState, Broken, DeviceKind, DeviceState, Queues, VirtioDevice};
use crate::memory::DeviceView;
use announce::{Announcer, rarp};
use control::NetCommand;
use drops::Drop;
use flow::{AT_A_TIME, Flow, Rest};
use header::{RECEIVING, SENDING, bit, offloads};
use receive::Incoming;
use timer::Timer;
use transmit::transmit;

/// Most queue pairs of a card.
pub const PAIRS_MAX: u16 = 16;

/// Version of [`NetState`].
const VERSION: u32 = 1;

/// Entries of each queue for packets, and of the one for commands.
const QUEUE_SIZE: u16 = 256;
const CONTROL_SIZE: u16 = 64;

/// Bits of `status` in the card's configuration.
const LINK_UP: u8 = 1;
const ANNOUNCE: u8 = 2;

/// Answers to a command.
const DONE: u8 = 0;
const REFUSED: u8 = 1;

/// Places of what wakes the card; then its ports.
const AGAIN: usize = 0;
const ANNOUNCER: usize = 1;
const LIMIT: usize = 2;
const PORTS: usize = 3;

/// The device.
#[derive(Debug)]
pub struct Net {
    mac: Mac,
    /// Whether it was told to have this address.
    has_own_mac: bool,
    pairs: Vec<Pair>,
    /// How many of them are used.
    active: u16,
    /// What may be undone in packets that come.
    offloads: u64,
    is_up: bool,
    /// Whether the driver is asked to announce itself.
    wants_announcement: bool,
    announcer: Announcer,
    /// Written when there is more to do.
    again: EventFd,
    outgoing: Flow,
    incoming: Flow,
    /// Runs out when a limit lets more pass, at the time beside it.
    limit: Timer,
    due: Option<Instant>,
}

#[derive(Debug)]
struct Pair {
    port: Box<dyn Port>,
    incoming: Incoming,
}

/// What a queue is for.
enum Role {
    Receive(usize),
    Transmit(usize),
    Control,
}

impl Net {
    /// `VIRTIO_ID_NET`, an Ethernet controller.
    pub const KIND: DeviceKind = DeviceKind { id: 1, name: "net", class: [2, 0, 0] };

    /// A card of `pairs` queue pairs with its wire in a tap. Without an address it takes that of the
    /// card whose state it goes on with, and one made up until then. A limit is one for each direction.
    ///
    /// # Errors
    /// [`NoTap`].
    pub fn open(
        source: &TapSource,
        mac: Option<Mac>,
        pairs: u16,
        limit: Option<RateLimit>,
    ) -> Result<Self, NoTap> {
        Self::over(source.open(pairs)?, mac, limit).map_err(NoTap::Host)
    }

    /// The same over these ports, one for each queue pair.
    ///
    /// # Errors
    /// If the host has no descriptors to give, or a port cannot be detached.
    pub fn over(
        ports: Vec<Box<dyn Port>>,
        mac: Option<Mac>,
        limit: Option<RateLimit>,
    ) -> Result<Self, IoError> {
        let pair = |port| Pair { port, incoming: Incoming::new() };
        let pairs: Vec<_> = ports.into_iter().map(pair).collect();
        let active = u16::try_from(pairs.len()).unwrap_or(u16::MAX);
        let mut new = Self {
            mac: mac.unwrap_or(Mac::local([0; 6])),
            has_own_mac: mac.is_some(),
            pairs,
            active,
            offloads: 0,
            is_up: true,
            wants_announcement: false,
            announcer: Announcer::new()?,
            again: EventFd::new(EFD_NONBLOCK)?,
            outgoing: Flow::new(limit),
            incoming: Flow::new(limit),
            limit: Timer::new()?,
            due: None,
        };
        new.use_pairs(1)?;
        Ok(new)
    }

    fn role(&self, index: u16, features: u64) -> Role {
        let pairs = if features & bit(VIRTIO_NET_F_MQ) == 0 { 1 } else { self.pairs.len() };
        let (pair, index) = (usize::from(index / 2), usize::from(index));
        if index >= 2 * pairs {
            Role::Control
        } else if index.is_multiple_of(2) {
            Role::Receive(pair)
        } else {
            Role::Transmit(pair)
        }
    }

    /// Packets come in the first `count` pairs only.
    fn use_pairs(&mut self, count: u16) -> Result<(), IoError> {
        for (index, pair) in (0..).zip(&mut self.pairs).skip(1) {
            let (was, is) = (index < self.active, index < count);
            if was != is {
                pair.port.set_attached(is)?;
                pair.incoming.clear();
            }
        }
        self.active = count;
        Ok(())
    }

    fn take_offloads(&mut self, wanted: u64) -> Result<(), IoError> {
        if let Some(pair) = self.pairs.first() {
            // Of the tap as a whole, whichever of its queues is asked.
            pair.port.set_offloads(offloads(wanted))?;
        }
        self.offloads = wanted;
        Ok(())
    }

    /// Back to one pair and whole packets.
    fn rest(&mut self) {
        let rested = self.use_pairs(1).and_then(|()| self.take_offloads(0));
        if let Err(cause) = rested {
            debug!("resetting a network card: {cause}");
        }
        for pair in &mut self.pairs {
            pair.incoming.clear();
        }
        self.wants_announcement = false;
    }

    /// Works on one queue for a while.
    fn work(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let (features, memory) = (queues.features(), queues.memory());
        let role = self.role(index, features);
        let Some(mut queue) = queues.get(index) else { return Ok(()) };
        let is_up = self.is_up;
        let left = match role {
            Role::Control => self.obey(index, queues)?,
            Role::Transmit(pair) => {
                let port = self.pairs.get(pair).map(|pair| &*pair.port).filter(|_| is_up);
                transmit(&mut queue, (memory, features), port, &mut self.outgoing)?
            }
            Role::Receive(pair) if pair < usize::from(self.active) => {
                let Some(Pair { port, incoming }) = self.pairs.get_mut(pair) else { return Ok(()) };
                if is_up {
                    incoming.receive(&mut queue, features, &**port, &mut self.incoming)?
                } else {
                    incoming.discard(&**port)
                }
            }
            Role::Receive(_) => Rest::Nothing,
        };
        self.come_back(left);
        Ok(())
    }

    /// Sees to it that the card is woken for what is left.
    fn come_back(&mut self, left: Rest) {
        match left {
            Rest::Nothing => {}
            Rest::More => {
                if let Err(cause) = self.again.write(1) {
                    debug!("a network card goes on: {cause}");
                }
            }
            Rest::Later(wait) => {
                let due = Instant::now() + wait;
                if self.due.is_none_or(|before| due < before) {
                    self.due = Some(due);
                    self.limit.set(wait);
                }
            }
        }
    }

    fn work_on_all(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let count = u16::try_from(2 * self.pairs.len() + 1).unwrap_or(u16::MAX);
        (0..count).try_for_each(|index| self.work(index, queues))
    }

    /// Commands of the driver.
    fn obey(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<Rest, Broken> {
        let features = queues.features();
        for _ in 0..AT_A_TIME {
            let Some(mut queue) = queues.get(index) else { break };
            let Some(mut chain) = queue.pop()? else { return Ok(Rest::Nothing) };
            let answer = self.answer(NetCommand::read(&mut chain)?, features);
            chain.write(&[answer]);
            queue.finish(chain.head(), chain.written())?;
        }
        Ok(Rest::More)
    }

    fn answer(&mut self, command: NetCommand, features: u64) -> u8 {
        let accepted = |feature| features & bit(feature) != 0;
        let pairs = u16::try_from(self.pairs.len()).unwrap_or(u16::MAX);
        let done = match command {
            NetCommand::Announced if accepted(VIRTIO_NET_F_GUEST_ANNOUNCE) => {
                self.wants_announcement = false;
                Ok(())
            }
            NetCommand::Pairs(count)
                if accepted(VIRTIO_NET_F_MQ) && (1..=pairs).contains(&count) =>
            {
                self.use_pairs(count)
            }
            NetCommand::Offloads(wanted)
                if accepted(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS)
                    && wanted & !(features & RECEIVING) == 0 =>
            {
                self.take_offloads(wanted)
            }
            NetCommand::Announced
            | NetCommand::Pairs(_)
            | NetCommand::Offloads(_)
            | NetCommand::Unknown => {
                return REFUSED;
            }
        };
        match done {
            Ok(()) => DONE,
            Err(cause) => {
                debug!("the tap refuses what the guest's driver wants, {command:?}: {cause}");
                REFUSED
            }
        }
    }

    fn announce(&mut self, queues: &mut Queues<'_>) {
        if !self.announcer.is_due() || !self.is_up {
            return;
        }
        if let Some(Err(cause)) =
            self.pairs.first().map(|pair| pair.port.write(&rarp(self.mac), &[]))
        {
            self.outgoing.drops.count(&Drop::Unsent(cause));
        }
        if queues.features() & bit(VIRTIO_NET_F_GUEST_ANNOUNCE) != 0 {
            self.wants_announcement = true;
            queues.config_changed();
        }
    }
}

impl VirtioDevice for Net {
    fn kind(&self) -> DeviceKind {
        Self::KIND
    }

    fn features(&self) -> u64 {
        let several = if self.pairs.len() > 1 { bit(VIRTIO_NET_F_MQ) } else { 0 };
        let own = [
            VIRTIO_NET_F_MAC,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_STATUS,
            VIRTIO_NET_F_CTRL_VQ,
            VIRTIO_NET_F_CTRL_GUEST_OFFLOADS,
            VIRTIO_NET_F_GUEST_ANNOUNCE,
        ];
        own.into_iter().fold(several | SENDING | RECEIVING, |all, feature| all | bit(feature))
    }

    fn queue_sizes(&self) -> Vec<u16> {
        let mut sizes = vec![QUEUE_SIZE; 2 * self.pairs.len()];
        sizes.push(CONTROL_SIZE);
        sizes
    }

    fn alike(&self) -> Vec<(&'static str, String)> {
        // Here a card without an address of its own takes that of the card that comes.
        let mac = if self.has_own_mac { self.mac.to_string() } else { ANY.to_owned() };
        vec![("mac", mac)]
    }

    fn sources(&self) -> Vec<RawFd> {
        let (announcer, limit) = (self.announcer.as_raw_fd(), self.limit.as_raw_fd());
        let own = [self.again.as_raw_fd(), announcer, limit];
        own.into_iter().chain(self.pairs.iter().map(|pair| pair.port.as_raw_fd())).collect()
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let status = u8::from(self.is_up) * LINK_UP + u8::from(self.wants_announcement) * ANNOUNCE;
        let [pairs, ..] = self.pairs.len().to_le_bytes();
        let image = self.mac.bytes().into_iter().chain([status, 0, pairs, 0]);
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (place, byte) in data.iter_mut().zip(image.skip(offset)) {
            *place = byte;
        }
    }

    fn start(&mut self, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let features = queues.features();
        let lacks = |any: u64, needed: u32| features & any != 0 && features & bit(needed) == 0;
        let commands = bit(VIRTIO_NET_F_MQ)
            | bit(VIRTIO_NET_F_GUEST_ANNOUNCE)
            | bit(VIRTIO_NET_F_CTRL_GUEST_OFFLOADS);
        if lacks(SENDING, VIRTIO_NET_F_CSUM)
            || lacks(RECEIVING, VIRTIO_NET_F_GUEST_CSUM)
            || lacks(commands, VIRTIO_NET_F_CTRL_VQ)
        {
            return Err(Broken::Protocol("features without those that they need"));
        }
        let taken = self.take_offloads(features & RECEIVING);
        taken.map_err(|cause| Broken::Request(format!("the offloads of its tap: {cause}")))
    }

    fn process(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken> {
        self.work(index, queues)
    }

    fn wake(&mut self, source: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        match source {
            // Nothing was written if the card only looks whether there is something to do.
            AGAIN if self.again.read().is_ok() => self.work_on_all(queues),
            AGAIN => Ok(()),
            LIMIT if self.limit.has_run_out() => {
                self.due = None;
                self.work_on_all(queues)
            }
            LIMIT => Ok(()),
            ANNOUNCER => {
                self.announce(queues);
                Ok(())
            }
            port => self.work(u16::try_from(2 * (port - PORTS)).unwrap_or(u16::MAX), queues),
        }
    }

    fn reset(&mut self) {
        self.rest();
    }

    fn state(&self) -> DeviceState {
        let Self { mac, active, offloads, is_up, .. } = *self;
        DeviceState::new(&Self::KIND, VERSION, &NetState { mac, active, offloads, is_up })
    }

    fn restore(&mut self, state: &DeviceState, _memory: &DeviceView) -> Result<(), BadState> {
        let NetState { mac, active, offloads, is_up } = state.read(&Self::KIND, VERSION)?;
        if active == 0 || usize::from(active) > self.pairs.len() || offloads & !RECEIVING != 0 {
            return Err(BadState::Values("a network card of other queue pairs or offloads"));
        }
        if self.has_own_mac && mac != self.mac {
            return Err(BadState::Values("a network card with another MAC address"));
        }
        let taken = self.use_pairs(active).and_then(|()| self.take_offloads(offloads));
        taken.map_err(BadState::Host)?;
        // From now on it is this card's, wherever it goes.
        (self.mac, self.has_own_mac, self.is_up) = (mac, true, is_up);
        self.announcer.begin();
        Ok(())
    }
}

/// What travels of a card. A packet that waited for buffers does not: a network may lose it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
struct NetState {
    mac: Mac,
    active: u16,
    offloads: u64,
    is_up: bool,
}
