//! Any history of commands, checked against a state number and a plain array; any bytes as a command.

use proptest::collection::vec;
use proptest::prelude::*;
use sha2::{Digest, Sha256};
use zerocopy::FromZeros;

use super::transfer::{receiving, sending};
use super::*;
use crate::sev::measurement::AttestationReport;

/// A step of a launch.
#[derive(Debug, Clone, Copy)]
enum Step {
    Start,
    /// Load 16-byte blocks filled with a byte, then encrypt them.
    Update {
        block: u64,
        blocks: u32,
        fill: u8,
    },
    AskMeasure,
    Measure,
    Secret,
    Finish,
    Attest,
}

fn steps() -> impl Strategy<Value = Step> {
    let blocks = RAM_LEN / 16;
    prop_oneof![
        1 => Just(Step::Start),
        8 => (0..blocks - 300, 1..300_u32, any::<u8>())
            .prop_map(|(block, blocks, fill)| Step::Update { block, blocks, fill }),
        1 => Just(Step::AskMeasure),
        1 => Just(Step::Measure),
        1 => Just(Step::Secret),
        1 => Just(Step::Finish),
        2 => Just(Step::Attest),
    ]
}

/// What the guest must have seen: its state, its memory, and all launch data in order.
struct Model {
    state: u32,
    memory: Vec<u8>,
    loaded: Sha256,
}

/// What the model says about a step; moves it on.
fn expect(model: &mut Model, step: Step) -> Outcome {
    let allowed = match step {
        Step::Start => return firmware(SevStatus::ASID_OWNED),
        Step::Update { .. } | Step::AskMeasure | Step::Measure => model.state == 1,
        Step::Secret | Step::Finish => model.state == 2,
        Step::Attest => model.state >= 2,
    };
    if !allowed {
        return firmware(SevStatus::INVALID_GUEST_STATE);
    }
    match step {
        Step::Update { block, blocks, fill } => {
            let (start, len) = (usize::try_from(block).unwrap() * 16, blocks as usize * 16);
            model.memory[start..start + len].fill(fill);
            model.loaded.update(vec![fill; len]);
        }
        Step::Measure => model.state = 2,
        Step::Finish => model.state = 3,
        Step::AskMeasure => return firmware(SevStatus::INVALID_LEN),
        Step::Secret => return firmware(SevStatus::BAD_MEASUREMENT),
        Step::Start | Step::Attest => {}
    }
    DONE
}

fn take(vm: &mut TestVm, step: Step) -> Outcome {
    match step {
        Step::Start => vm.start(1),
        Step::Update { block, blocks, fill } => {
            vm.fixture.host_writes(block * 16, &vec![fill; blocks as usize * 16]);
            let address = vm.fixture.ram + block * 16;
            vm.update(address, blocks * 16)
        }
        Step::AskMeasure => vm.run(LAUNCH_MEASURE, &mut abi::Buffer::default()),
        Step::Measure => vm.measure(),
        Step::Secret => vm.secret(),
        Step::Finish => vm.plain(LAUNCH_FINISH),
        Step::Attest => vm.attest(),
    }
}

/// The digest that the platform attests.
fn attested(vm: &mut TestVm) -> [u8; 32] {
    let mut report = AttestationReport::new_zeroed();
    let buffer = abi::Buffer { uaddr: address_of_mut(&mut report), len: 208, pad0: 0 };
    let mut request = abi::AttestationReport { mnonce: [0; 16], buffer };
    assert_eq!(vm.run(GET_ATTESTATION_REPORT, &mut request), DONE);
    report.body.digest
}

/// Addresses that may be in a command: bad ones, guest RAM, and a scratch buffer. Whatever length goes
/// with them, no byte outside RAM and scratch is written, as outputs are at most as large as RAM.
fn address(choice: u8, vm: &TestVm, scratch: &mut [u8]) -> u64 {
    match choice % 6 {
        0 => 0,
        1 => BAD_ADDRESS,
        2 => u64::MAX - 7,
        3 => vm.fixture.ram,
        4 => address_of_mut(scratch) + 4,
        _ => address_of_mut(scratch),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// After any history, state, memory and digest are those of the model.
    #[test]
    fn a_launch_agrees_with_a_plain_array(history in vec(steps(), 0..24)) {
        let mut vm = TestVm::launching(1);
        let len = usize::try_from(RAM_LEN).unwrap();
        let mut model = Model { state: 1, memory: vec![0; len], loaded: Sha256::new() };
        for step in history {
            let expected = expect(&mut model, step);
            prop_assert_eq!(take(&mut vm, step), expected, "{:?} in state {}", step, model.state);
            prop_assert_eq!(vm.state(), model.state);
        }
        prop_assert!(vm.fixture.guest_sees(0, len) == model.memory);
        if model.state == 1 {
            prop_assert_eq!(vm.measure(), DONE);
        }
        prop_assert_eq!(attested(&mut vm), <[u8; 32]>::from(model.loaded.finalize()));
    }

    /// No command, whatever it holds, does more than fail with an errno that the kernel has for it.
    #[test]
    fn no_command_breaks_the_platform(
        commands in vec((0..26_u32, any::<[u8; 3]>(), vec(any::<u32>(), 3)), 1..24),
        state in 0..4_u8,
    ) {
        let mut vm = match state {
            0 => TestVm::initialised(),
            1 => TestVm::launching(0),
            2 => sending().0,
            _ => receiving().0,
        };
        let mut scratch = vec![0; 0x1_0000];
        for (id, places, lens) in commands {
            let len = |at: usize| length_near_a_limit(lens[at]);
            let place = |at: usize, scratch: &mut [u8]| address(places[at], &vm, scratch);
            let mut data = abi::Packet {
                hdr_uaddr: place(0, &mut scratch),
                hdr_len: len(0),
                guest_uaddr: place(1, &mut scratch),
                guest_len: len(1),
                trans_uaddr: place(2, &mut scratch),
                trans_len: len(2),
                ..abi::Packet::default()
            };
            let (result, error) = vm.run(id, &mut data);
            match result {
                Ok(()) => prop_assert!(error == 0 || error == UNTOUCHED),
                Err(Errno::EIO) => prop_assert!(SevStatus(error).name().is_some()),
                Err(errno) => prop_assert!(errno.name().is_some() && Errno::EIO != errno),
            }
        }
    }
}

/// Lengths around every limit.
fn length_near_a_limit(choice: u32) -> u32 {
    let lens = [0, 1, 15, 16, 32, 47, 48, 52, 128, 208, 2084, 4096, 0x4000, 0x4001, u32::MAX];
    lens[choice as usize % lens.len()]
}
