//! A driver that writes anything, anywhere: registers, configuration space, rings and descriptors.
#![no_main]

use std::path::Path;

use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use sevferry::devices::virtio::{DRIVER_LAYOUT, DRIVER_SLOT, Driver, Rng, Segment};

/// Where it writes what.
#[derive(Debug, Arbitrary)]
enum Step {
    Config(u16, Vec<u8>),
    Bar(u16, Vec<u8>),
    Describe(u8, u64, u32, u16, u16),
    Publish(u16),
    Ring,
    Start(u64),
}

fuzz_target!(|steps: Vec<Step>| {
    let Ok(zeros) = Rng::open(Path::new("/dev/zero")) else { return };
    let Ok(mut driver) = Driver::new(Box::new(zeros), 4 << 20, 4096) else { return };
    let _accepted = driver.start(0);
    let config = DRIVER_LAYOUT.ecam.0 + (u64::from(DRIVER_SLOT) << 15);
    for step in steps.into_iter().take(64) {
        match step {
            Step::Config(at, data) => {
                let data = &data[..data.len().min(8)];
                driver.bus().write(config + u64::from(at & 0xfff), data);
            }
            Step::Bar(at, data) => {
                let data = &data[..data.len().min(8)];
                driver.bus().write(driver.bar() + u64::from(at & 0x7fff), data);
            }
            Step::Describe(id, address, bytes, flags, next) => {
                let Ok(queue) = driver.queue(0) else { continue };
                // Half of the addresses are RAM.
                let address = if flags & 0x100 == 0 { address & 0x3f_ffff } else { address };
                let segment = Segment { address, bytes };
                let _written =
                    queue.describe(driver.memory().view(), id.into(), segment, (flags, next));
            }
            Step::Publish(head) => {
                let Ok(mut queue) = driver.queue(0).cloned() else { continue };
                let _written = queue.publish(driver.memory().view(), head);
            }
            Step::Ring => driver.ring(0),
            Step::Start(features) => {
                let _accepted = driver.start(features);
            }
        }
    }
    driver.function().pause();
    driver.function().resume();
});
