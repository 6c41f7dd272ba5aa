//! The commands that send and receive a guest: each state, errno, status and written-back length.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use zerocopy::FromZeros;

use super::*;
use crate::sev::software::mailbox::Mailbox;
use crate::sev::target::PlatformCertificates;

pub(super) const WRONG_STATE: Outcome = firmware(SevStatus::INVALID_GUEST_STATE);
pub(super) const POLICY: u32 = 0x21;

/// Buffers of a transfer, and the platform on the other side.
pub(super) struct TestTransfer {
    pub(super) peer: Fixture,
    pub(super) to: PlatformCertificates,
    pub(super) vendor: Vec<u8>,
    pub(super) session: Session,
    pub(super) header: [u8; 52],
    pub(super) data: [u8; 4096],
}

impl TestTransfer {
    pub(super) fn new() -> Self {
        let peer = Fixture::new();
        let to = peer.certificates();
        let vendor = to.vendor.to_bytes();
        let session = Session::new_zeroed();
        Self { peer, to, vendor, session, header: [0; 52], data: [0; 4096] }
    }

    /// A good `SEND_START` to the peer.
    pub(super) fn send_start(&mut self) -> abi::SendStart {
        abi::SendStart {
            pdh_uaddr: address_of(&self.to.pdh),
            pdh_len: 2084,
            chain_uaddr: address_of(&self.to.chain),
            chain_len: 6252,
            vendor_uaddr: address_of(self.vendor.as_slice()),
            vendor_len: 1664,
            session_uaddr: address_of_mut(&mut self.session),
            session_len: 128,
            ..abi::SendStart::default()
        }
    }

    /// A good page command for the first page of `vm`.
    pub(super) fn page(&mut self, vm: &TestVm) -> abi::Packet {
        abi::Packet {
            hdr_uaddr: address_of_mut(&mut self.header),
            hdr_len: 52,
            guest_uaddr: vm.fixture.ram,
            guest_len: 4096,
            trans_uaddr: address_of_mut(&mut self.data),
            trans_len: 4096,
            ..abi::Packet::default()
        }
    }

    /// A good `RECEIVE_START` of what `source` has sent to the peer.
    pub(super) fn receive_start(&self, source_pdh: &Certificate) -> abi::LaunchStart {
        abi::LaunchStart {
            policy: POLICY,
            dh_uaddr: address_of(source_pdh),
            dh_len: 2084,
            session_uaddr: address_of(&self.session),
            session_len: 128,
            ..abi::LaunchStart::default()
        }
    }
}

/// A guest in state RUNNING.
pub(super) fn running(policy: u32) -> TestVm {
    let mut vm = TestVm::launching(policy);
    assert_eq!(vm.measure(), DONE);
    assert_eq!(vm.plain(LAUNCH_FINISH), DONE);
    vm
}

/// A guest in state SUPDATE, and its transfer.
pub(super) fn sending() -> (TestVm, TestTransfer) {
    let (mut vm, mut transfer) = (running(POLICY), TestTransfer::new());
    assert_eq!(vm.run(SEND_START, &mut transfer.send_start()), DONE);
    (vm, transfer)
}

/// A guest in state RUPDATE, and one packet sealed for it.
pub(super) fn receiving() -> (TestVm, TestTransfer) {
    let (mut source, mut transfer) = sending();
    source.fixture.guest_writes(0, &[7; 4096]);
    let mut page = transfer.page(&source);
    assert_eq!(source.run(SEND_UPDATE_DATA, &mut page), DONE);
    let source_pdh = source.fixture.certificates().pdh;
    // The packet is for the peer's own VM.
    let fixture = std::mem::replace(&mut transfer.peer, Fixture::new());
    let mut vm = TestVm { platform: fixture.platform(), fixture };
    assert_eq!(vm.plain(INIT), (Ok(()), UNTOUCHED));
    assert_eq!(vm.run(RECEIVE_START, &mut transfer.receive_start(&source_pdh)), DONE);
    (vm, transfer)
}

/// A guest in state SENT, and its transfer.
fn sent() -> (TestVm, TestTransfer) {
    let (mut vm, transfer) = sending();
    assert_eq!(vm.plain(SEND_FINISH), DONE);
    (vm, transfer)
}

/// How to come to a state.
type Make<'a> = &'a dyn Fn() -> (TestVm, TestTransfer);

/// Every command of a transfer in every state of a guest: legal ones work, the rest are refused.
#[test]
fn commands_are_refused_in_the_wrong_state() {
    let launching = || (TestVm::launching(0), TestTransfer::new());
    let ran = || (running(0x20), TestTransfer::new());
    let states: [(u32, Make<'_>, u32); 5] = [
        (1, &launching, 0),
        (3, &ran, SEND_START),
        (4, &sending, SEND_UPDATE_DATA),
        (5, &receiving, RECEIVE_UPDATE_DATA),
        (6, &sent, 0),
    ];
    for (state, make, legal) in states {
        let run = |id: u32| {
            let (mut vm, mut transfer) = make();
            assert_eq!(vm.state(), state);
            let outcome = match id {
                SEND_START => vm.run(id, &mut transfer.send_start()),
                SEND_UPDATE_DATA | RECEIVE_UPDATE_DATA => vm.run(id, &mut transfer.page(&vm)),
                _ => vm.plain(id),
            };
            (outcome, vm.state())
        };
        for id in [SEND_START, SEND_UPDATE_DATA, RECEIVE_UPDATE_DATA] {
            let wanted = if id == legal { DONE } else { WRONG_STATE };
            let after = if (id, legal) == (SEND_START, SEND_START) { 4 } else { state };
            assert_eq!(run(id), (wanted, after), "command {id} in {state}");
        }
        for (id, from, to) in [(SEND_FINISH, 4, 6), (SEND_CANCEL, 4, 3), (RECEIVE_FINISH, 5, 3)] {
            let wanted = if state == from { (DONE, to) } else { (WRONG_STATE, state) };
            assert_eq!(run(id), wanted, "command {id} in {state}");
        }
    }
}

/// A guest that was sent answers nothing but its status.
#[test]
fn a_sent_guest_is_dead() {
    let (mut vm, transfer) = sent();
    let ram = vm.fixture.ram;
    assert_eq!(vm.update(ram, 16), WRONG_STATE);
    assert_eq!(vm.measure(), WRONG_STATE);
    assert_eq!(vm.secret(), WRONG_STATE);
    assert_eq!(vm.plain(LAUNCH_FINISH), WRONG_STATE);
    assert_eq!(vm.attest(), WRONG_STATE);
    let mut out = [0_u8; 16];
    let mut read =
        abi::Debug { src_uaddr: ram, dst_uaddr: address_of_mut(&mut out), len: 16, pad0: 0 };
    assert_eq!(vm.run(DBG_DECRYPT, &mut read), WRONG_STATE);
    // KVM lets a second guest be made, which cannot be bound. The session itself fits: both platforms
    // share one secret, whoever of them sends.
    let mut start = transfer.receive_start(&transfer.to.pdh);
    assert_eq!(vm.run(RECEIVE_START, &mut start), firmware(SevStatus::ASID_OWNED));
    assert_eq!(vm.start(1), firmware(SevStatus::ASID_OWNED));
    assert_eq!(vm.state(), 6);
}

/// No page is sealed by a command that was issued after the transfer's end had returned, however many
/// threads are sealing meanwhile.
#[test]
fn nothing_is_sealed_after_the_end() {
    for end in [SEND_FINISH, SEND_CANCEL] {
        let (vm, mut transfer) = sending();
        let page = transfer.page(&vm);
        let (started, ended) = (Barrier::new(3), AtomicBool::new(false));
        let issue = |id, data: u64| {
            let mut command = kvm_sev_cmd { id, data, ..kvm_sev_cmd::default() };
            vm.platform.memory_encrypt_op(&mut command)
        };
        let seal_until_refused = || {
            let (mut header, mut data) = ([0_u8; 52], [0_u8; 4096]);
            let (hdr_uaddr, trans_uaddr) = (address_of_mut(&mut header), address_of_mut(&mut data));
            let mut packet = abi::Packet { hdr_uaddr, trans_uaddr, ..page };
            issue(SEND_UPDATE_DATA, address_of_mut(&mut packet)).unwrap();
            started.wait();
            loop {
                let late = ended.load(Ordering::SeqCst);
                if issue(SEND_UPDATE_DATA, address_of_mut(&mut packet)).is_err() {
                    break;
                }
                assert!(!late, "sealed after the end");
            }
        };
        thread::scope(|scope| {
            let sealers = [scope.spawn(seal_until_refused), scope.spawn(seal_until_refused)];
            started.wait();
            issue(end, 0).unwrap();
            ended.store(true, Ordering::SeqCst);
            for sealer in sealers {
                sealer.join().unwrap();
            }
        });
    }
}

/// With a cost each firmware command takes its time, page commands too; the kernel's refusals are free.
#[test]
fn commands_cost_what_was_set() {
    let (mut vm, mut transfer) = sending();
    let cost = Duration::from_millis(5);
    let timed = |vm: &mut TestVm, packet: &mut abi::Packet| {
        let start = Instant::now();
        (vm.run(SEND_UPDATE_DATA, packet), start.elapsed())
    };
    vm.platform.vm.get_mut().unwrap().host.mailbox = Arc::new(Mailbox::new(cost));
    let mut page = transfer.page(&vm);
    let (outcome, time) = timed(&mut vm, &mut page);
    assert!(outcome == DONE && time >= cost, "{outcome:?} after {time:?}");
    page.guest_len = 0;
    let fastest = (0..20).map(|_| timed(&mut vm, &mut page)).min_by_key(|(_, time)| *time).unwrap();
    assert!(fastest.0 == kernel(Errno::EINVAL) && fastest.1 < cost, "{fastest:?}");
}
