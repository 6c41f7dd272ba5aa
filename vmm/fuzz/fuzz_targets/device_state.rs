//! The state of a device from another host: refused, or the device goes on with it and is paused again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sevferry::devices::virtio::{Driver, FunctionState, Rng};

fuzz_target!(|bytes: &[u8]| {
    let Some(state) = FunctionState::from_bytes(bytes) else { return };
    let Ok(zeros) = Rng::open(Path::new("/dev/zero")) else { return };
    let Ok(driver) = Driver::new(Box::new(zeros), 4 << 20, 4096) else { return };
    if driver.function().restore(&state).is_ok() {
        driver.function().resume();
        driver.function().pause();
        let _state = driver.function().state();
    }
});
