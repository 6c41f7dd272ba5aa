//! A machine's offer and its state: refused, or read the same again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sevferry::machine::MachineState;
use sevferry::machine::compatibility::MachineOffer;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(state) = MachineState::from_bytes(bytes) {
        let written = state.to_bytes().expect("there is memory for it");
        let again = MachineState::from_bytes(&written).expect("our own bytes");
        assert_eq!(again.to_bytes().expect("as before"), written);
    }
    if let Ok(offer) = MachineOffer::from_bytes(bytes) {
        let written = offer.to_bytes().expect("there is memory for it");
        let again = MachineOffer::from_bytes(&written).expect("our own bytes");
        assert_eq!(again.to_bytes().expect("as before"), written);
    }
});
