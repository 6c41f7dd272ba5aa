//! Each command's errno and firmware status: which states allow it.

mod arguments;
mod histories;
mod kernels;
mod transfer;
mod transfer_arguments;

use super::*;
use crate::sev::certificate::Certificate;
use crate::sev::command::{address_of, address_of_mut};
use crate::sev::launch::SealedSecret;
use crate::sev::measurement::Measurement;
use crate::sev::session::{OwnerSession, Session, TransportKeys};
use crate::sev::software::fixture::{Fixture, RAM_LEN};
use crate::sev::software::model::ASID_MAX;
use crate::sev::{Policy, SevDevice};
use kvm::{
    sev_cmd_id_KVM_SEV_DBG_DECRYPT as DBG_DECRYPT, sev_cmd_id_KVM_SEV_DBG_ENCRYPT as DBG_ENCRYPT,
    sev_cmd_id_KVM_SEV_ES_INIT as ES_INIT,
    sev_cmd_id_KVM_SEV_GET_ATTESTATION_REPORT as GET_ATTESTATION_REPORT,
    sev_cmd_id_KVM_SEV_GUEST_STATUS as GUEST_STATUS, sev_cmd_id_KVM_SEV_INIT as INIT,
    sev_cmd_id_KVM_SEV_LAUNCH_FINISH as LAUNCH_FINISH,
    sev_cmd_id_KVM_SEV_LAUNCH_MEASURE as LAUNCH_MEASURE,
    sev_cmd_id_KVM_SEV_LAUNCH_SECRET as LAUNCH_SECRET,
    sev_cmd_id_KVM_SEV_LAUNCH_START as LAUNCH_START,
    sev_cmd_id_KVM_SEV_LAUNCH_UPDATE_DATA as LAUNCH_UPDATE_DATA,
    sev_cmd_id_KVM_SEV_LAUNCH_UPDATE_VMSA as LAUNCH_UPDATE_VMSA,
    sev_cmd_id_KVM_SEV_RECEIVE_FINISH as RECEIVE_FINISH,
    sev_cmd_id_KVM_SEV_RECEIVE_START as RECEIVE_START,
    sev_cmd_id_KVM_SEV_RECEIVE_UPDATE_DATA as RECEIVE_UPDATE_DATA,
    sev_cmd_id_KVM_SEV_SEND_CANCEL as SEND_CANCEL, sev_cmd_id_KVM_SEV_SEND_FINISH as SEND_FINISH,
    sev_cmd_id_KVM_SEV_SEND_START as SEND_START,
    sev_cmd_id_KVM_SEV_SEND_UPDATE_DATA as SEND_UPDATE_DATA,
};

/// What `error` holds before each command: the kernel leaves it alone unless the firmware answers.
const UNTOUCHED: u32 = 0xdead_beef;

/// An address that is never mapped.
const BAD_ADDRESS: u64 = 0xdead_0000_0000;

/// What a command did: its errno, and what `error` held afterwards.
type Outcome = (Result<(), Errno>, u32);

const DONE: Outcome = (Ok(()), 0);

const fn kernel(errno: Errno) -> Outcome {
    (Err(errno), UNTOUCHED)
}

const fn firmware(status: SevStatus) -> Outcome {
    (Err(Errno::EIO), status.0)
}

/// A fixture and its VM.
struct TestVm {
    fixture: Fixture,
    platform: SoftwarePlatform,
}

impl TestVm {
    fn new() -> Self {
        let fixture = Fixture::new();
        let platform = fixture.platform();
        Self { fixture, platform }
    }

    /// A VM after `KVM_SEV_INIT`.
    fn initialised() -> Self {
        let mut vm = Self::new();
        assert_eq!(vm.plain(INIT), (Ok(()), UNTOUCHED));
        vm
    }

    /// A guest without an owner, in state LUPDATE.
    fn launching(policy: u32) -> Self {
        let mut vm = Self::initialised();
        assert_eq!(vm.start(policy), DONE);
        vm
    }

    fn at(&mut self, id: u32, data: u64, sev_fd: i32) -> Outcome {
        let sev_fd = sev_fd.cast_unsigned();
        let mut command = kvm_sev_cmd { id, data, error: UNTOUCHED, sev_fd, pad0: 0 };
        let result = self.platform.memory_encrypt_op(&mut command);
        (result, command.error)
    }

    fn run<T>(&mut self, id: u32, data: &mut T) -> Outcome {
        let fd = self.fixture.fd();
        self.at(id, address_of_mut(data), fd)
    }

    fn plain(&mut self, id: u32) -> Outcome {
        self.run(id, &mut 0_u64)
    }

    fn start(&mut self, policy: u32) -> Outcome {
        self.run(LAUNCH_START, &mut abi::LaunchStart { policy, ..abi::LaunchStart::default() })
    }

    fn update(&mut self, address: u64, len: u32) -> Outcome {
        self.run(LAUNCH_UPDATE_DATA, &mut abi::Buffer { uaddr: address, len, pad0: 0 })
    }

    /// Measures into a buffer of the right size.
    fn measure(&mut self) -> Outcome {
        let mut bytes = [0_u8; 48];
        let uaddr = address_of_mut(&mut bytes);
        self.run(LAUNCH_MEASURE, &mut abi::Buffer { uaddr, len: 48, pad0: 0 })
    }

    fn attest(&mut self) -> Outcome {
        let mut bytes = [0_u8; 208];
        let buffer = abi::Buffer { uaddr: address_of_mut(&mut bytes), len: 208, pad0: 0 };
        self.run(GET_ATTESTATION_REPORT, &mut abi::AttestationReport { mnonce: [0; 16], buffer })
    }

    /// A secret that nobody sealed.
    fn secret(&mut self) -> Outcome {
        let (header, bytes) = ([0_u8; 52], [0_u8; 16]);
        let mut packet = abi::Packet {
            hdr_uaddr: address_of(&header),
            hdr_len: 52,
            guest_uaddr: self.fixture.ram,
            guest_len: 16,
            trans_uaddr: address_of(&bytes),
            trans_len: 16,
            ..abi::Packet::default()
        };
        self.run(LAUNCH_SECRET, &mut packet)
    }

    fn state(&mut self) -> u32 {
        let mut status = abi::GuestStatus::default();
        assert_eq!(self.run(GUEST_STATUS, &mut status), DONE);
        status.state
    }
}

/// Commands that the modelled kernel and platform know, with an SEV guest.
const GUEST_COMMANDS: [u32; 15] = [
    LAUNCH_START,
    LAUNCH_UPDATE_DATA,
    LAUNCH_MEASURE,
    LAUNCH_SECRET,
    LAUNCH_FINISH,
    GUEST_STATUS,
    DBG_DECRYPT,
    DBG_ENCRYPT,
    GET_ATTESTATION_REPORT,
    SEND_START,
    SEND_UPDATE_DATA,
    SEND_FINISH,
    SEND_CANCEL,
    RECEIVE_START,
    RECEIVE_FINISH,
];

/// Those that take no structure.
const PLAIN_COMMANDS: [u32; 4] = [LAUNCH_FINISH, SEND_FINISH, SEND_CANCEL, RECEIVE_FINISH];

/// Without `KVM_SEV_INIT` there is no SEV; unknown commands are unknown with or without it.
#[test]
fn without_init_nothing_works() {
    let mut vm = TestVm::new();
    for id in GUEST_COMMANDS {
        assert_eq!(vm.at(id, BAD_ADDRESS, 0), kernel(Errno::ENOTTY), "command {id}");
    }
    // The one command of another opinion.
    assert_eq!(vm.at(RECEIVE_UPDATE_DATA, BAD_ADDRESS, 0), kernel(Errno::EINVAL));
    for unknown in [10, 14, 19, 22, 23, 100, u32::MAX] {
        assert_eq!(vm.plain(unknown), kernel(Errno::EINVAL), "command {unknown}");
    }
    assert_eq!(vm.plain(ES_INIT), kernel(Errno::ENOTTY));
    let region = kvm_enc_region { addr: vm.fixture.ram, size: PAGE_SIZE };
    assert_eq!(vm.platform.register_region(&region), Err(Errno::ENOTTY));
    assert_eq!(vm.platform.unregister_region(&region), Err(Errno::ENOTTY));
    assert_eq!(vm.plain(INIT), (Ok(()), UNTOUCHED));
    assert_eq!(vm.plain(INIT), kernel(Errno::EINVAL));
    assert_eq!(vm.plain(LAUNCH_UPDATE_VMSA), kernel(Errno::ENOTTY));
}

/// A structure at a bad address is -EFAULT, whatever the state.
#[test]
fn a_bad_structure_address_is_efault() {
    let mut vm = TestVm::launching(1);
    let fd = vm.fixture.fd();
    let mut commands = GUEST_COMMANDS.to_vec();
    commands.push(RECEIVE_UPDATE_DATA);
    for id in commands.into_iter().filter(|id| !PLAIN_COMMANDS.contains(id)) {
        for address in [0, BAD_ADDRESS, u64::MAX] {
            let (result, _) = vm.at(id, address, fd);
            assert_eq!(result, Err(Errno::EFAULT), "command {id} at {address:#x}");
        }
    }
    // LAUNCH_FINISH has no structure, so its address is ignored.
    assert_eq!(vm.measure(), DONE);
    assert_eq!(vm.at(LAUNCH_FINISH, BAD_ADDRESS, fd), DONE);
}

/// Each command in each state of a launch: legal ones work, others are `INVALID_GUEST_STATE`.
#[test]
fn commands_are_refused_in_the_wrong_state() {
    const WRONG: Outcome = firmware(SevStatus::INVALID_GUEST_STATE);
    let secret = firmware(SevStatus::BAD_MEASUREMENT);
    for (state, update, measure, secret, finish, attest) in [
        (1, DONE, DONE, WRONG, WRONG, WRONG),
        (2, WRONG, WRONG, secret, DONE, DONE),
        (3, WRONG, WRONG, WRONG, WRONG, DONE),
    ] {
        let in_state = || {
            let mut vm = TestVm::launching(1);
            if state >= 2 {
                assert_eq!(vm.measure(), DONE);
            }
            if state == 3 {
                assert_eq!(vm.plain(LAUNCH_FINISH), DONE);
            }
            assert_eq!(vm.state(), state);
            vm
        };
        let mut vm = in_state();
        let ram = vm.fixture.ram;
        assert_eq!(vm.update(ram, 16), update, "update in {state}");
        assert_eq!(in_state().measure(), measure, "measure in {state}");
        assert_eq!(in_state().secret(), secret, "secret in {state}");
        assert_eq!(in_state().plain(LAUNCH_FINISH), finish, "finish in {state}");
        assert_eq!(in_state().attest(), attest, "attest in {state}");
        // KVM lets a second start through; its guest cannot be bound to the ASID and is dropped.
        let mut vm = in_state();
        assert_eq!(vm.start(1), firmware(SevStatus::ASID_OWNED), "start in {state}");
        assert_eq!(vm.state(), state);
        assert_eq!(vm.fixture.host.lock().firmware.guest_count(), 1);
    }
}

/// Commands use the `/dev/sev` of `LAUNCH_START` and fail when it is closed.
#[test]
fn the_descriptor_of_launch_start_counts() {
    let mut vm = TestVm::initialised();
    let mut status = abi::GuestStatus::default();
    assert_eq!(vm.run(GUEST_STATUS, &mut status), kernel(Errno::EBADF));
    assert_eq!(vm.plain(LAUNCH_FINISH), kernel(Errno::EBADF));
    let mut start = abi::LaunchStart { policy: 1, ..abi::LaunchStart::default() };
    for fd in [-1, 0, 2, i32::MAX] {
        let data = address_of_mut(&mut start);
        assert_eq!(vm.at(LAUNCH_START, data, fd), kernel(Errno::EBADF), "descriptor {fd}");
    }
    assert_eq!(vm.run(LAUNCH_START, &mut start), DONE);
    assert_eq!(vm.at(GUEST_STATUS, address_of_mut(&mut status), -1), DONE);
    assert_eq!((status.handle, status.policy, status.state), (start.handle, 1, 1));
    let other = vm.fixture.host.open_device().unwrap();
    vm.fixture.device = other;
    assert_eq!(vm.run(GUEST_STATUS, &mut status), kernel(Errno::EBADF));
}

/// A key is shared only with a guest of the same policy that allows it.
#[test]
fn a_key_is_shared_only_if_the_policy_says_so() {
    for (first, second, outcome) in [
        (0x1, 0x1, DONE),
        (0x1, 0x0, firmware(SevStatus::POLICY_FAILURE)),
        (0x3, 0x3, firmware(SevStatus::POLICY_FAILURE)),
    ] {
        let mut vm = TestVm::initialised();
        let mut start = abi::LaunchStart { policy: first, ..abi::LaunchStart::default() };
        assert_eq!(vm.run(LAUNCH_START, &mut start), DONE);
        start.policy = second;
        let peer = std::mem::replace(&mut vm.platform, vm.fixture.platform());
        assert_eq!(vm.plain(INIT), (Ok(()), UNTOUCHED));
        assert_eq!(vm.run(LAUNCH_START, &mut start), outcome, "{first:#x} {second:#x}");
        drop(peer);
    }
}

/// ASIDs run out, and come back when a VM ends.
#[test]
fn asids_are_given_back() {
    let fixture = Fixture::new();
    let init = || {
        let platform = fixture.platform();
        let mut command = kvm_sev_cmd { id: INIT, ..kvm_sev_cmd::default() };
        platform.memory_encrypt_op(&mut command).map(|()| platform)
    };
    let mut vms: Vec<_> = (0..ASID_MAX).map(|_| init().unwrap()).collect();
    assert_eq!(init().err(), Some(Errno::EBUSY));
    vms.pop();
    init().unwrap();
    assert!(fixture.device.fd() > 0);
}
