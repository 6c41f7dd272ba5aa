//! The state of a device from another host, damaged: refused, or the device goes on with it and is
//! paused again.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use sevferry::devices::virtio::{Driver, FunctionState, Rng};

fn driver() -> Option<Driver> {
    let zeros = Rng::open(Path::new("/dev/zero")).ok()?;
    Driver::new(Box::new(zeros), 4 << 20, 4096).ok()
}

fuzz_target!(|damage: Vec<(u16, u8)>| {
    let (Some(mut source), Some(there)) = (driver(), driver()) else { return };
    let _accepted = source.start(0);
    source.function().pause();
    let Some(mut bytes) = source.function().state().to_bytes() else { return };
    for (at, value) in damage {
        let at = usize::from(at) % bytes.len();
        bytes[at] = value;
    }
    let Some(state) = FunctionState::from_bytes(&bytes) else { return };
    if there.function().restore(&state).is_ok() {
        there.function().resume();
        there.function().pause();
        let _state = there.function().state();
    }
});
