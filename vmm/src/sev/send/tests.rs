//! A guest's pages from one software host to another.

use std::error::Error as _;
use std::sync::{Arc, Mutex};
use std::thread;

use kvm_bindings::{
    kvm_enc_region, kvm_sev_cmd, sev_cmd_id_KVM_SEV_SEND_CANCEL as SEND_CANCEL,
    sev_cmd_id_KVM_SEV_SEND_FINISH as SEND_FINISH, sev_cmd_id_KVM_SEV_SEND_START as SEND_START,
    sev_cmd_id_KVM_SEV_SEND_UPDATE_DATA as SEND_UPDATE_DATA,
};

use super::*;
use crate::sev::abi::GuestState;
use crate::sev::launch::Launched;
use crate::sev::receive::{ReceiveError, Receiving};
use crate::sev::software::fixture::{Fixture, RAM_LEN};
use crate::sev::software::{Identity, Model};
use crate::sev::target::verify_target;
use crate::sev::{Errno, Platform, Policy, SevStatus};

const PAGES: u64 = RAM_LEN / PAGE_SIZE;

/// A page's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct SealedPage {
    header: [u8; HEADER_LEN],
    data: [u8; PAGE_LEN],
}

fn empty() -> SealedPage {
    SealedPage { header: [0; HEADER_LEN], data: [0; PAGE_LEN] }
}

/// Two hosts, and a guest being sent from the first to the second.
struct Pair {
    source: Fixture,
    target: Fixture,
}

impl Pair {
    fn new() -> Self {
        Self { source: Fixture::new(), target: Fixture::new() }
    }

    fn send(&self, launched: Launched) -> Sending {
        let (own, to) = (self.source.certificates(), self.target.certificates());
        verify_target(&to, Policy::default(), &own).unwrap();
        launched.start_send(&to, own.pdh).unwrap()
    }

    fn receive(&self, sending: &Sending) -> Receiving {
        self.target.initialised().start_receive(sending.session()).unwrap()
    }

    fn seal(&self, sending: &Sending, page: u64) -> SealedPage {
        let mut packet = empty();
        let address = self.source.ram + page * PAGE_SIZE;
        sending.seal(address, &mut packet.header, &mut packet.data).unwrap();
        packet
    }

    fn open(
        &self,
        receiving: &Receiving,
        page: u64,
        packet: &SealedPage,
    ) -> Result<(), ReceiveError> {
        receiving.open(self.target.ram + page * PAGE_SIZE, &packet.header, &packet.data)
    }
}

fn page_of(byte: u64) -> Vec<u8> {
    vec![u8::try_from(byte).unwrap() ^ 0x5a; PAGE_LEN]
}

/// Every page arrives as the guest left it, sealed and opened by two threads, and the host on neither
/// side sees it.
#[test]
fn a_guest_moves_to_another_host() {
    let pair = Pair::new();
    for page in 0..PAGES {
        pair.source.guest_writes(page * PAGE_SIZE, &page_of(page));
    }
    let sending = pair.send(pair.source.launched(Policy::default()));
    let receiving = pair.receive(&sending);
    assert_eq!(sending.status().unwrap().state, GuestState::SendUpdate);
    assert_eq!(receiving.status().unwrap().state, GuestState::ReceiveUpdate);
    thread::scope(|scope| {
        for first in 0..2 {
            let (pair, sending, receiving) = (&pair, &sending, &receiving);
            scope.spawn(move || {
                for page in (first..PAGES).step_by(2) {
                    let packet = pair.seal(sending, page);
                    assert_ne!(packet.data, *page_of(page));
                    pair.open(receiving, page, &packet).unwrap();
                }
            });
        }
    });
    let received = receiving.finish().unwrap();
    for page in 0..PAGES {
        let (at, bytes) = (page * PAGE_SIZE, page_of(page));
        assert_eq!(pair.target.guest_sees(at, PAGE_LEN), bytes);
        assert_ne!(pair.target.host_sees(at, PAGE_LEN), bytes);
    }
    let status = received.status().unwrap();
    assert_eq!((status.state, status.policy), (GuestState::Running, Policy::default().bits()));
    assert!(received.measurement().is_none());
    let sent = sending.finish().unwrap();
    assert_eq!(sent.status().unwrap().state, GuestState::Sent);
}

/// After a cancelled attempt the guest is as before, and the next attempt works; what the first sealed
/// is worthless in it.
#[test]
fn a_cancelled_transfer_leaves_nothing() {
    let pair = Pair::new();
    pair.source.guest_writes(0, &page_of(1));
    let first = pair.send(pair.source.launched(Policy::default()));
    let stale = pair.seal(&first, 0);
    let launched = first.cancel().unwrap();
    assert_eq!(launched.status().unwrap().state, GuestState::Running);
    assert!(launched.measurement().is_some());

    let second = pair.send(launched);
    let receiving = pair.receive(&second);
    let Err(ReceiveError::Open { cause, .. }) = pair.open(&receiving, 0, &stale) else { panic!() };
    assert_eq!(cause.status(), Some(SevStatus::BAD_MEASUREMENT));
    assert_eq!(pair.target.guest_sees(0, PAGE_LEN), [0; PAGE_LEN]);
    pair.open(&receiving, 0, &pair.seal(&second, 0)).unwrap();
    assert_eq!(pair.target.guest_sees(0, PAGE_LEN), page_of(1));
    receiving.finish().unwrap();
    second.finish().unwrap();
}

/// A software platform that refuses what it is told to, and records the commands that got through.
#[derive(Debug)]
struct Unreliable {
    platform: Box<dyn Platform>,
    script: Arc<Mutex<Script>>,
}

#[derive(Debug, Default)]
struct Script {
    /// Refused with `HW_PLATFORM`, once.
    refuse: Option<u32>,
    done: Vec<u32>,
    /// Pinned, or let go.
    regions: Vec<(bool, kvm_enc_region)>,
}

impl Platform for Unreliable {
    fn memory_encrypt_op(&self, command: &mut kvm_sev_cmd) -> Result<(), Errno> {
        let mut script = self.script.lock().unwrap();
        if script.refuse.take_if(|id| *id == command.id).is_some() {
            command.error = SevStatus::HW_PLATFORM.0;
            return Err(Errno::EIO);
        }
        let answer = self.platform.memory_encrypt_op(command);
        if answer.is_ok() {
            script.done.push(command.id);
        }
        answer
    }

    fn register_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.script.lock().unwrap().regions.push((true, *region));
        self.platform.register_region(region)
    }

    fn unregister_region(&self, region: &kvm_enc_region) -> Result<(), Errno> {
        self.script.lock().unwrap().regions.push((false, *region));
        self.platform.unregister_region(region)
    }
}

/// The guest, whose commands are recorded from now on.
fn recorded(mut launched: Launched) -> (Launched, Arc<Mutex<Script>>) {
    let script = Arc::new(Mutex::new(Script::default()));
    let Vm { platform, sev_fd } = launched.vm;
    let platform = Box::new(Unreliable { platform, script: Arc::clone(&script) });
    launched.vm = Vm { platform, sev_fd };
    (launched, script)
}

/// Two hosts, the first of this kind.
fn pair_from(model: Model) -> Pair {
    let source = Fixture::modelled(Identity::ephemeral().unwrap(), model);
    Pair { source, target: Fixture::new() }
}

/// A firmware that does not say how long packets are makes such as all others do, and the guest moves.
#[test]
fn a_firmware_that_tells_no_lengths_sends() {
    let pair = pair_from(Model { tells_packet_lengths: false, ..Model::default() });
    pair.source.guest_writes(0, &page_of(1));
    let sending = pair.send(pair.source.launched(Policy::default()));
    let receiving = pair.receive(&sending);
    pair.open(&receiving, 0, &pair.seal(&sending, 0)).unwrap();
    assert_eq!(pair.target.guest_sees(0, PAGE_LEN), page_of(1));
}

/// A firmware that does not know `SEND_CANCEL` is named, is told from one that fails once, and leaves a guest that
/// may run.
#[test]
fn a_firmware_that_cannot_cancel_is_named() {
    for (failure, unknown) in [("SEND_CANCEL:1:unknown", true), ("SEND_CANCEL:1", false)] {
        let failure = Some(failure.parse().unwrap());
        let pair = pair_from(Model { failure, ..Model::default() });
        let sending = pair.send(pair.source.launched(Policy::default()));
        let NotCancelled { sending, cause } = sending.cancel().unwrap_err();
        assert_eq!(cause.is_unknown_command(), unknown);
        let text = cause.source().unwrap().to_string();
        let named =
            text.contains("KVM_SEV_SEND_CANCEL") && text.contains("does not know the command");
        assert_eq!(named, unknown, "{text}");
        assert_eq!(sending.status().unwrap().state, GuestState::SendUpdate);
        assert_eq!(sending.cancel().is_err(), unknown);
    }
}

/// Caches are written back by pinning one page that is no guest's, and letting it go.
#[test]
fn caches_are_written_back_by_letting_a_page_go() {
    let pair = Pair::new();
    let (launched, script) = recorded(pair.source.launched(Policy::default()));
    let sending = pair.send(launched);
    sending.write_back_caches().unwrap();
    let [(true, pinned), (false, gone)] = script.lock().unwrap().regions[..] else { panic!() };
    assert_eq!((pinned, pinned.size, pinned.addr % PAGE_SIZE), (gone, PAGE_SIZE, 0));
    assert!(!(pair.source.ram..pair.source.ram + RAM_LEN).contains(&pinned.addr));
}

/// A refusal at any step before the end leaves a guest that runs and can be sent again.
#[test]
fn a_refusal_at_any_step_gives_the_guest_back() {
    let pair = Pair::new();
    let (own, to) = (pair.source.certificates(), pair.target.certificates());
    let (launched, script) = recorded(pair.source.launched(Policy::default()));
    let refuse = |id| *script.lock().unwrap() = Script { refuse: Some(id), ..Script::default() };
    let done = || script.lock().unwrap().done.clone();

    refuse(SEND_START);
    let NotSending { launched, cause } = launched.start_send(&to, own.pdh).unwrap_err();
    assert!(matches!(cause, SendError::Start(_)) && done().is_empty(), "{cause}");

    // Once started, a transfer whose packets are unknown is cancelled.
    refuse(SEND_UPDATE_DATA);
    let NotSending { launched, cause } = launched.start_send(&to, own.pdh).unwrap_err();
    assert!(matches!(cause, SendError::Query(_)), "{cause}");
    assert_eq!(done(), [SEND_START, SEND_CANCEL]);

    let sending = launched.start_send(&to, own.pdh).unwrap();
    refuse(SEND_UPDATE_DATA);
    let SealedPage { mut header, mut data } = empty();
    let refused = sending.seal(pair.source.ram, &mut header, &mut data).unwrap_err();
    assert!(matches!(refused, SendError::Seal { .. }), "{refused}");
    pair.seal(&sending, 0);

    refuse(SEND_CANCEL);
    let NotCancelled { sending, cause } = sending.cancel().unwrap_err();
    assert!(matches!(cause, SendError::Cancel(_)), "{cause}");
    assert_eq!(sending.status().unwrap().state, GuestState::SendUpdate);
    let launched = sending.cancel().unwrap();
    assert_eq!(launched.status().unwrap().state, GuestState::Running);

    let sending = launched.start_send(&to, own.pdh).unwrap();
    refuse(SEND_FINISH);
    let refused = sending.finish().unwrap_err();
    assert!(matches!(refused, SendError::Finish(_)), "{refused}");
}
