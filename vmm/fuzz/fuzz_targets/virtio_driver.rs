//! A driver that writes anything, anywhere: registers, configuration space, rings and descriptors.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sevferry::devices::virtio::{DRIVER_LAYOUT, DRIVER_SLOT, Driver, Rng, Segment};

fuzz_target!(|steps: Vec<(u8, u64, u32, u16, u16)>| {
    let Ok(zeros) = Rng::open(Path::new("/dev/zero")) else { return };
    let Ok(mut driver) = Driver::new(Box::new(zeros), 4 << 20, 4096) else { return };
    let _accepted = driver.start(0);
    let config = DRIVER_LAYOUT.ecam.0 + (u64::from(DRIVER_SLOT) << 15);
    for (what, word, number, one, other) in steps.into_iter().take(64) {
        let data = word.to_le_bytes();
        let data = &data[..usize::from(other & 7) + 1];
        match what % 8 {
            0 => driver.bus().write(config + u64::from(one & 0xfff), data),
            1 => driver.bus().write(driver.bar() + u64::from(one & 0x7fff), data),
            // The common configuration, whose registers are few.
            2 => driver.write(u64::from(one & 0x3f), data),
            3 => driver.bus().read(driver.bar() + u64::from(one & 0x7fff), &mut [0; 8]),
            4 => {
                let Ok(queue) = driver.queue(0) else { continue };
                // Half of the addresses are RAM.
                let address = if other & 0x100 == 0 { word & 0x3f_ffff } else { word };
                let segment = Segment { address, bytes: number };
                let link = (other, one);
                let _written = queue.describe(driver.memory().view(), one & 0x3f, segment, link);
            }
            5 => {
                let Ok(mut queue) = driver.queue(0).cloned() else { continue };
                let _written = queue.publish(driver.memory().view(), one & 0x7f);
                driver.ring(0);
            }
            6 => driver.ring(0),
            _ => {
                let _accepted = driver.start(word);
            }
        }
    }
    driver.function().pause();
    driver.function().resume();
});
