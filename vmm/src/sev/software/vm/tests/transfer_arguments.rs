//! The commands that send and receive a guest: bad addresses, lengths, keys and packets.

use zerocopy::FromZeros;

use super::transfer::{POLICY, TestTransfer, WRONG_STATE, receiving, running, sending};
use super::*;
use crate::sev::packet::PacketHeader;

/// `SEND_START`: the length query, what the kernel refuses, what the firmware refuses, and what is
/// written back.
#[test]
fn send_start_checks_its_buffers() {
    let (mut vm, mut transfer) = (running(POLICY), TestTransfer::new());
    let good = transfer.send_start();
    let einval = kernel(Errno::EINVAL);
    let short = firmware(SevStatus::INVALID_LEN);
    // After a call of the firmware policy and length are written back, even if it refused.
    let cases = [
        ("query", abi::SendStart::default(), short, 128),
        ("query with buffers", abi::SendStart { session_len: 0, ..good }, short, 128),
        ("no session", abi::SendStart { session_uaddr: 0, ..good }, einval, 128),
        ("long session", abi::SendStart { session_len: 0x4001, ..good }, einval, 0x4001),
        ("no PDH", abi::SendStart { pdh_uaddr: 0, ..good }, einval, 128),
        ("no PDH length", abi::SendStart { pdh_len: 0, ..good }, einval, 128),
        ("no chain", abi::SendStart { chain_uaddr: 0, ..good }, einval, 128),
        ("no chain length", abi::SendStart { chain_len: 0, ..good }, einval, 128),
        ("long chain", abi::SendStart { chain_len: 0x4001, ..good }, einval, 128),
        ("no vendor", abi::SendStart { vendor_uaddr: 0, ..good }, einval, 128),
        ("long vendor", abi::SendStart { vendor_len: 0x4001, ..good }, einval, 128),
        ("bad PDH", abi::SendStart { pdh_uaddr: BAD_ADDRESS, ..good }, kernel(Errno::EFAULT), 128),
        ("short session", abi::SendStart { session_len: 127, ..good }, short, 128),
        ("short PDH", abi::SendStart { pdh_len: 2083, ..good }, short, 128),
        ("short chain", abi::SendStart { chain_len: 6251, ..good }, short, 128),
        ("short vendor", abi::SendStart { vendor_len: 1663, ..good }, short, 128),
        (
            "a PEK as PDH",
            abi::SendStart { pdh_uaddr: address_of(&transfer.to.chain.pek), ..good },
            firmware(SevStatus::INVALID_CERTIFICATE),
            128,
        ),
    ];
    for (name, mut start, outcome, len) in cases {
        start.policy = 77;
        assert_eq!(vm.run(SEND_START, &mut start), outcome, "{name}");
        assert_eq!(start.session_len, len, "{name}");
        assert_eq!(start.policy, if outcome.1 == UNTOUCHED { 77 } else { 0 }, "{name}");
        assert_eq!(vm.state(), 3, "{name}");
        assert_eq!(transfer.session, Session::new_zeroed(), "{name}");
    }
    let mut room = [0xff_u8; 200];
    let mut start =
        abi::SendStart { session_uaddr: address_of_mut(&mut room), session_len: 200, ..good };
    assert_eq!(vm.run(SEND_START, &mut start), DONE);
    assert_eq!((start.policy, start.session_len), (POLICY, 128));
    assert!(room[..128] != [0; 128] && room[128..] == [0; 72]);
    // In the wrong state a query has no length to report.
    let mut query = abi::SendStart::default();
    assert_eq!((vm.run(SEND_START, &mut query), query.session_len), (WRONG_STATE, 0));
    // The firmware has started before the kernel finds that it cannot copy the session.
    let mut vm = running(POLICY);
    let mut start = abi::SendStart { session_uaddr: BAD_ADDRESS, ..good };
    assert_eq!(vm.run(SEND_START, &mut start), (Err(Errno::EFAULT), 0));
    assert_eq!(vm.state(), 4);
}

/// `SEND_UPDATE_DATA`: the query, places, and lengths around every limit.
#[test]
fn sealing_checks_place_and_lengths() {
    let (mut vm, mut transfer) = sending();
    vm.fixture.guest_writes(0, &[9; 4096]);
    let good = transfer.page(&vm);
    let ram = vm.fixture.ram;
    let einval = kernel(Errno::EINVAL);
    let short = firmware(SevStatus::INVALID_LEN);
    for mut query in [
        abi::Packet::default(),
        abi::Packet { hdr_len: 0, ..good },
        abi::Packet { trans_len: 0, ..good },
    ] {
        assert_eq!(vm.run(SEND_UPDATE_DATA, &mut query), short);
        assert_eq!((query.hdr_len, query.trans_len), (52, 0));
    }
    let of = |guest_len| abi::Packet { guest_len, trans_len: guest_len, ..good };
    let cases = [
        ("no header", abi::Packet { hdr_uaddr: 0, ..good }, einval),
        ("no data", abi::Packet { trans_uaddr: 0, ..good }, einval),
        ("no guest", abi::Packet { guest_uaddr: 0, ..good }, einval),
        ("no guest length", abi::Packet { guest_len: 0, ..good }, einval),
        ("4097 bytes", of(4097), einval),
        ("all bytes", of(u32::MAX), einval),
        ("two pages", abi::Packet { guest_uaddr: ram + 16, ..good }, einval),
        ("last page of all", abi::Packet { guest_uaddr: u64::MAX - 4095, ..good }, einval),
        ("not RAM", abi::Packet { guest_uaddr: 4096, ..good }, kernel(Errno::ENOMEM)),
        ("past RAM", abi::Packet { guest_uaddr: ram + RAM_LEN, ..good }, kernel(Errno::ENOMEM)),
        ("huge header", abi::Packet { hdr_len: u32::MAX, ..good }, kernel(Errno::ENOMEM)),
        ("huge data", abi::Packet { trans_len: u32::MAX, ..good }, kernel(Errno::ENOMEM)),
        ("short header", abi::Packet { hdr_len: 51, ..good }, short),
        ("long header", abi::Packet { hdr_len: 53, ..good }, short),
        ("short data", abi::Packet { trans_len: 4080, ..good }, short),
        ("long data", abi::Packet { trans_len: 4112, ..good }, short),
        ("1 byte", of(1), short),
        ("15 bytes", of(15), short),
        ("17 bytes", of(17), short),
        (
            "odd place",
            abi::Packet { guest_uaddr: ram + 8, ..of(16) },
            firmware(SevStatus::INVALID_ADDRESS),
        ),
        ("bad header", abi::Packet { hdr_uaddr: BAD_ADDRESS, ..good }, (Err(Errno::EFAULT), 0)),
        ("bad data", abi::Packet { trans_uaddr: BAD_ADDRESS, ..good }, (Err(Errno::EFAULT), 0)),
        (
            "data past everything",
            abi::Packet { trans_uaddr: u64::MAX - 7, ..good },
            (Err(Errno::EFAULT), 0),
        ),
    ];
    for (name, mut packet, outcome) in cases {
        let before = packet;
        assert_eq!(vm.run(SEND_UPDATE_DATA, &mut packet), outcome, "{name}");
        assert_eq!(packet, before, "{name}: the lengths are not written back");
        assert_eq!((transfer.header, transfer.data), ([0; 52], [0; 4096]), "{name}");
    }
    // Parts of a page are pages too.
    assert_eq!(vm.run(SEND_UPDATE_DATA, &mut of(16)), DONE);
    assert_ne!(transfer.data[..16], [0; 16]);
    assert_eq!(transfer.data[16..], [0; 4080]);
    assert_eq!(vm.state(), 4);
}

/// `RECEIVE_UPDATE_DATA`: places, lengths, and packets that are not this session's.
#[test]
fn opening_checks_place_lengths_and_packet() {
    let (mut vm, mut transfer) = receiving();
    let good = transfer.page(&vm);
    let ram = vm.fixture.ram;
    let einval = kernel(Errno::EINVAL);
    let short = firmware(SevStatus::INVALID_LEN);
    let forged = firmware(SevStatus::BAD_MEASUREMENT);
    let of = |guest_len| abi::Packet { guest_len, trans_len: guest_len, ..good };
    let other = PacketHeader::new_zeroed();
    let cases = [
        ("nothing", abi::Packet::default(), einval),
        ("no header", abi::Packet { hdr_uaddr: 0, ..good }, einval),
        ("no header length", abi::Packet { hdr_len: 0, ..good }, einval),
        ("no data", abi::Packet { trans_uaddr: 0, ..good }, einval),
        ("no data length", abi::Packet { trans_len: 0, ..good }, einval),
        ("no guest", abi::Packet { guest_uaddr: 0, ..good }, einval),
        ("no guest length", abi::Packet { guest_len: 0, ..good }, einval),
        ("4097 bytes", of(4097), einval),
        ("all bytes", of(u32::MAX), einval),
        ("two pages", abi::Packet { guest_uaddr: ram + 16, ..good }, einval),
        ("huge header", abi::Packet { hdr_len: 0x4001, ..good }, einval),
        ("huge data", abi::Packet { trans_len: 0x4001, ..good }, einval),
        ("not RAM", abi::Packet { guest_uaddr: 4096, ..good }, kernel(Errno::ENOMEM)),
        ("bad header", abi::Packet { hdr_uaddr: BAD_ADDRESS, ..good }, kernel(Errno::EFAULT)),
        ("bad data", abi::Packet { trans_uaddr: BAD_ADDRESS, ..good }, kernel(Errno::EFAULT)),
        ("short header", abi::Packet { hdr_len: 51, ..good }, short),
        ("short data", abi::Packet { trans_len: 4080, ..good }, short),
        ("15 bytes", of(15), short),
        (
            "odd place",
            abi::Packet { guest_uaddr: ram + 8, ..of(16) },
            firmware(SevStatus::INVALID_ADDRESS),
        ),
        ("part of it", of(4080), forged),
        ("other header", abi::Packet { hdr_uaddr: address_of(&other), ..good }, forged),
    ];
    for (name, mut packet, outcome) in cases {
        assert_eq!(vm.run(RECEIVE_UPDATE_DATA, &mut packet), outcome, "{name}");
        assert_eq!(vm.fixture.guest_sees(0, 4096), [0; 4096], "{name}");
    }
    for at in (0..52).chain([100, 2000]) {
        let flip = |transfer: &mut TestTransfer| match at {
            ..52 => transfer.header[at] ^= 0x10,
            _ => transfer.data[at] ^= 0x10,
        };
        flip(&mut transfer);
        assert_eq!(vm.run(RECEIVE_UPDATE_DATA, &mut transfer.page(&vm)), forged, "byte {at}");
        flip(&mut transfer);
    }
    // Nothing binds a packet to a place or to a time.
    for offset in [0, 4096, 0] {
        let mut packet = abi::Packet { guest_uaddr: ram + offset, ..good };
        assert_eq!(vm.run(RECEIVE_UPDATE_DATA, &mut packet), DONE);
        assert_eq!(vm.fixture.guest_sees(offset, 4096), [7; 4096]);
    }
}

/// `RECEIVE_START`: only the session, the source's key and the policy that belong together.
#[test]
fn receive_start_checks_the_session() {
    let (source, mut transfer) = sending();
    let source_pdh = source.fixture.certificates().pdh;
    let good = transfer.receive_start(&source_pdh);
    let fixture = std::mem::replace(&mut transfer.peer, Fixture::new());
    let mut vm = TestVm { platform: fixture.platform(), fixture };
    assert_eq!(vm.plain(INIT), (Ok(()), UNTOUCHED));
    let einval = kernel(Errno::EINVAL);
    let forged = firmware(SevStatus::BAD_MEASUREMENT);
    let pek = transfer.to.chain.pek;
    let cases = [
        ("no PDH", abi::LaunchStart { dh_uaddr: 0, ..good }, einval),
        ("no PDH length", abi::LaunchStart { dh_len: 0, ..good }, einval),
        ("no session", abi::LaunchStart { session_uaddr: 0, ..good }, einval),
        ("no session length", abi::LaunchStart { session_len: 0, ..good }, einval),
        ("long session", abi::LaunchStart { session_len: 0x4001, ..good }, einval),
        ("bad PDH", abi::LaunchStart { dh_uaddr: BAD_ADDRESS, ..good }, kernel(Errno::EFAULT)),
        ("short session", abi::LaunchStart { session_len: 127, ..good }, firmware(SevStatus(4))),
        ("short PDH", abi::LaunchStart { dh_len: 2083, ..good }, firmware(SevStatus(6))),
        ("a PEK", abi::LaunchStart { dh_uaddr: address_of(&pek), ..good }, firmware(SevStatus(6))),
        (
            "other source",
            abi::LaunchStart { dh_uaddr: address_of(&transfer.to.pdh), ..good },
            forged,
        ),
        (
            "unknown peer",
            abi::LaunchStart { handle: 77, ..good },
            firmware(SevStatus::INVALID_GUEST),
        ),
    ];
    for (name, mut start, outcome) in cases {
        assert_eq!(vm.run(RECEIVE_START, &mut start), outcome, "{name}");
    }
    assert_eq!(vm.fixture.host.lock().firmware.guest_count(), 0);
    // The session was made for this platform and no other.
    let mut stranger = TestVm::initialised();
    let mut start = good;
    assert_eq!(stranger.run(RECEIVE_START, &mut start), forged);
    assert_eq!(vm.run(RECEIVE_START, &mut start), DONE);
    assert_eq!((vm.state(), start.handle != 0), (5, true));
    start.handle = 0;
    assert_eq!(vm.run(RECEIVE_START, &mut start), firmware(SevStatus::ASID_OWNED));
    assert_eq!(vm.plain(RECEIVE_FINISH), DONE);
    assert_eq!(vm.attest(), DONE);
}

/// A changed bit of the policy or of the session is noticed.
#[test]
fn receive_start_notices_any_change() {
    let (source, mut transfer) = sending();
    let source_pdh = source.fixture.certificates().pdh;
    let good = transfer.receive_start(&source_pdh);
    let fixture = std::mem::replace(&mut transfer.peer, Fixture::new());
    let mut vm = TestVm { platform: fixture.platform(), fixture };
    assert_eq!(vm.plain(INIT), (Ok(()), UNTOUCHED));
    let forged = firmware(SevStatus::BAD_MEASUREMENT);
    for bit in 0..32 {
        let mut start = abi::LaunchStart { policy: good.policy ^ 1 << bit, ..good };
        let reserved = (6..16).contains(&bit);
        let wanted = if reserved { firmware(SevStatus::POLICY_FAILURE) } else { forged };
        assert_eq!(vm.run(RECEIVE_START, &mut start), wanted, "policy bit {bit}");
    }
    for byte in (0..128).step_by(3) {
        let mut changed = transfer.session;
        changed.as_mut_bytes()[byte] ^= 4;
        let mut start = abi::LaunchStart { session_uaddr: address_of(&changed), ..good };
        assert_eq!(vm.run(RECEIVE_START, &mut start), forged, "session byte {byte}");
    }
    let mut start = good;
    assert_eq!(vm.run(RECEIVE_START, &mut start), DONE);
}
