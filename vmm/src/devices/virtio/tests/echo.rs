//! A device for tests: gives back in queue 0 what it is sent, and changes its configuration by queue 1.

use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::eventfd::EventFd;

use super::super::{BadState, Broken, DeviceKind, DeviceState, Queues, VirtioDevice};
use crate::memory::DeviceView;

const KIND: DeviceKind = DeviceKind { id: 41, name: "echo", class: [0xff, 0, 0] };

/// The device; its configuration is four bytes that the driver may write.
#[derive(Debug, Default)]
pub(super) struct Echo {
    word: [u8; 4],
    /// Wakes it; each time its word counts.
    source: Option<EventFd>,
}

impl Echo {
    /// With what wakes it.
    pub(super) fn woken_by(source: &EventFd) -> Self {
        Self { source: Some(source.try_clone().unwrap()), ..Self::default() }
    }
}

impl VirtioDevice for Echo {
    fn kind(&self) -> DeviceKind {
        KIND
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![128, 2]
    }

    fn sources(&self) -> Vec<RawFd> {
        self.source.iter().map(AsRawFd::as_raw_fd).collect()
    }

    fn wake(&mut self, source: usize, queues: &mut Queues<'_>) -> Result<(), Broken> {
        assert_eq!(source, 0);
        if self.source.as_ref().unwrap().read().is_ok() {
            self.word[0] += 1;
            queues.config_changed();
        }
        Ok(())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (place, byte) in data.iter_mut().zip(self.word.iter().skip(offset)) {
            *place = *byte;
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        for (place, byte) in self.word.iter_mut().skip(offset).zip(data) {
            *place = *byte;
        }
    }

    fn process(&mut self, index: u16, queues: &mut Queues<'_>) -> Result<(), Broken> {
        let mut count = 0;
        let mut queue = queues.get(index).unwrap();
        while let Some(mut chain) = queue.pop()? {
            let mut bytes = vec![0; usize::try_from(chain.readable_bytes().min(1 << 20)).unwrap()];
            chain.read(&mut bytes);
            chain.write(&bytes);
            queue.finish(chain.head(), chain.written())?;
            count += 1;
        }
        if index == 1 && count > 0 {
            queues.config_changed();
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.word = [0; 4];
    }

    fn state(&self) -> DeviceState {
        DeviceState::new(&KIND, 1, &self.word)
    }

    fn restore(&mut self, state: &DeviceState, _memory: &DeviceView) -> Result<(), BadState> {
        self.word = state.read(&KIND, 1)?;
        Ok(())
    }
}
