//! Each command's errno and firmware status: bad addresses, lengths, keys and policies.

use super::*;

/// Blobs of `LAUNCH_START`: the kernel checks where they are, the firmware what they say.
#[test]
fn launch_start_checks_the_owner() {
    let mut vm = TestVm::initialised();
    let pdh = *vm.fixture.host.lock().firmware.identity().pdh_certificate();
    let policy = Policy::default();
    let OwnerSession { certificate, session, .. } = OwnerSession::new(&pdh, policy).unwrap();
    let stranger = OwnerSession::new(&pdh, policy).unwrap();
    let pek = vm.fixture.host.lock().firmware.identity().chain().pek;
    let good = abi::LaunchStart {
        policy: policy.bits(),
        dh_uaddr: address_of(&certificate),
        dh_len: 2084,
        session_uaddr: address_of(&session),
        session_len: 128,
        ..abi::LaunchStart::default()
    };
    let with_certificate =
        |other: &Certificate| abi::LaunchStart { dh_uaddr: address_of(other), ..good };
    let with_session =
        |other: &Session| abi::LaunchStart { session_uaddr: address_of(other), ..good };
    let cases = [
        ("no length", abi::LaunchStart { dh_len: 0, ..good }, kernel(Errno::EINVAL)),
        ("too long", abi::LaunchStart { session_len: 0x4001, ..good }, kernel(Errno::EINVAL)),
        ("bad dh", abi::LaunchStart { dh_uaddr: BAD_ADDRESS, ..good }, kernel(Errno::EFAULT)),
        ("bad session", abi::LaunchStart { session_uaddr: 1, ..good }, kernel(Errno::EFAULT)),
        ("short", abi::LaunchStart { session_len: 127, ..good }, firmware(SevStatus::INVALID_LEN)),
        (
            "no session",
            abi::LaunchStart { session_uaddr: 0, ..good },
            firmware(SevStatus::INVALID_LEN),
        ),
        (
            "no dh",
            abi::LaunchStart { dh_uaddr: 0, ..good },
            firmware(SevStatus::INVALID_CERTIFICATE),
        ),
        (
            "short dh",
            abi::LaunchStart { dh_len: 2083, ..good },
            firmware(SevStatus::INVALID_CERTIFICATE),
        ),
        ("a PEK", with_certificate(&pek), firmware(SevStatus::INVALID_CERTIFICATE)),
        (
            "other owner",
            with_certificate(&stranger.certificate),
            firmware(SevStatus::BAD_MEASUREMENT),
        ),
        ("other session", with_session(&stranger.session), firmware(SevStatus::BAD_MEASUREMENT)),
        (
            "other policy",
            abi::LaunchStart { policy: 0x20, ..good },
            firmware(SevStatus::BAD_MEASUREMENT),
        ),
        (
            "reserved bit",
            abi::LaunchStart { policy: 0x61, ..good },
            firmware(SevStatus::POLICY_FAILURE),
        ),
        (
            "unknown peer",
            abi::LaunchStart { handle: 77, ..good },
            firmware(SevStatus::INVALID_GUEST),
        ),
    ];
    for (name, mut start, outcome) in cases {
        assert_eq!(vm.run(LAUNCH_START, &mut start), outcome, "{name}");
    }
    let mut start = good;
    assert_eq!(vm.run(LAUNCH_START, &mut start), DONE);
    assert_ne!(start.handle, 0);
}

/// A policy that this firmware cannot keep is refused.
#[test]
fn launch_start_checks_the_policy() {
    let mut vm = TestVm::initialised();
    for policy in [Policy::ES, 0x3801_0000, 0x0002_0000] {
        assert_eq!(vm.start(policy), firmware(SevStatus::POLICY_FAILURE), "{policy:#x}");
    }
}

/// Launch data must be guest RAM in blocks of 16 bytes.
#[test]
fn launch_data_is_checked() {
    let mut vm = TestVm::launching(1);
    let ram = vm.fixture.ram;
    for (address, len, outcome) in [
        (ram, 0, kernel(Errno::EINVAL)),
        (u64::MAX - 15, 32, kernel(Errno::EINVAL)),
        (0, 16, kernel(Errno::ENOMEM)),
        (BAD_ADDRESS, 4096, kernel(Errno::ENOMEM)),
        (ram - 16, 32, kernel(Errno::ENOMEM)),
        (ram + RAM_LEN - 16, 32, kernel(Errno::ENOMEM)),
        (ram + 8, 16, firmware(SevStatus::INVALID_ADDRESS)),
        (ram, 15, firmware(SevStatus::INVALID_LEN)),
        (ram + RAM_LEN - 16, 16, DONE),
        (ram, length(usize::try_from(RAM_LEN).unwrap()), DONE),
    ] {
        assert_eq!(vm.update(address, len), outcome, "{len} bytes at {address:#x}");
    }
}

/// The length query, short, missing, large and unwritable buffers of `LAUNCH_MEASURE`.
#[test]
fn measuring_asks_for_room_first() {
    let mut vm = TestVm::launching(1);
    let mut bytes = [0xff_u8; 256];
    let uaddr = address_of_mut(&mut bytes);
    let too_short = firmware(SevStatus::INVALID_LEN);
    for (uaddr, len, outcome, len_after) in [
        (0, 0, too_short, 48),
        (uaddr, 0, too_short, 48),
        (uaddr, 47, too_short, 47),
        (0, 48, too_short, 48),
        (0, 0x4001, too_short, 0x4001),
        (uaddr, 0x4001, kernel(Errno::EINVAL), 0x4001),
    ] {
        let mut buffer = abi::Buffer { uaddr, len, pad0: 0 };
        assert_eq!(vm.run(LAUNCH_MEASURE, &mut buffer), outcome, "{len} bytes at {uaddr:#x}");
        assert_eq!(buffer.len, len_after, "{len} bytes at {uaddr:#x}");
        assert_eq!(vm.state(), 1);
    }
    let mut buffer = abi::Buffer { uaddr, len: 256, pad0: 0 };
    assert_eq!(vm.run(LAUNCH_MEASURE, &mut buffer), DONE);
    assert_eq!((buffer.len, &bytes[48..]), (48, [0; 208].as_slice()));
    // In the wrong state a query has no length to report.
    buffer.len = 0;
    let refused = firmware(SevStatus::INVALID_GUEST_STATE);
    assert_eq!((vm.run(LAUNCH_MEASURE, &mut buffer), buffer.len), (refused, 0));

    // The firmware has measured before the kernel finds that it cannot copy the result.
    let mut vm = TestVm::launching(1);
    let mut buffer = abi::Buffer { uaddr: BAD_ADDRESS, len: 48, pad0: 0 };
    assert_eq!(vm.run(LAUNCH_MEASURE, &mut buffer), (Err(Errno::EFAULT), 0));
    assert_eq!(vm.state(), 2);
}

/// The attestation report follows the same rules for its buffer.
#[test]
fn attesting_asks_for_room_first() {
    let mut vm = TestVm::launching(1);
    assert_eq!(vm.measure(), DONE);
    let mut request = abi::AttestationReport::default();
    let asked = vm.run(GET_ATTESTATION_REPORT, &mut request);
    assert_eq!((asked, request.buffer.len), (firmware(SevStatus::INVALID_LEN), 208));
    request.buffer = abi::Buffer { uaddr: BAD_ADDRESS, len: 208, pad0: 0 };
    assert_eq!(vm.run(GET_ATTESTATION_REPORT, &mut request), (Err(Errno::EFAULT), 0));
}

/// Secrets: the kernel checks places and lengths, the firmware the packet.
#[test]
fn a_secret_is_checked() {
    let mut vm = TestVm::initialised();
    let pdh = *vm.fixture.host.lock().firmware.identity().pdh_certificate();
    let owner = OwnerSession::new(&pdh, Policy::default()).unwrap();
    let mut start = abi::LaunchStart {
        policy: Policy::default().bits(),
        dh_uaddr: address_of(&owner.certificate),
        dh_len: 2084,
        session_uaddr: address_of(&owner.session),
        session_len: 128,
        ..abi::LaunchStart::default()
    };
    assert_eq!(vm.run(LAUNCH_START, &mut start), DONE);
    let mut measurement = [0_u8; 48];
    let uaddr = address_of_mut(&mut measurement);
    assert_eq!(vm.run(LAUNCH_MEASURE, &mut abi::Buffer { uaddr, len: 48, pad0: 0 }), DONE);
    let measurement = Measurement::from_bytes(&measurement);
    let (header, bytes) =
        SealedSecret::seal(&owner.keys, &measurement, &[6; 32]).unwrap().into_parts();
    let forger = TransportKeys::random().unwrap();
    let (forged, _) = SealedSecret::seal(&forger, &measurement, &[6; 32]).unwrap().into_parts();
    let ram = vm.fixture.ram;
    let good = abi::Packet {
        hdr_uaddr: address_of(&header),
        hdr_len: 52,
        guest_uaddr: ram,
        guest_len: 32,
        trans_uaddr: address_of(bytes.as_slice()),
        trans_len: 32,
        ..abi::Packet::default()
    };
    for (name, mut packet, outcome) in [
        ("no guest length", abi::Packet { guest_len: 0, ..good }, kernel(Errno::EINVAL)),
        ("not RAM", abi::Packet { guest_uaddr: 4096, ..good }, kernel(Errno::ENOMEM)),
        ("two pages", abi::Packet { guest_uaddr: ram + 4080, ..good }, kernel(Errno::EINVAL)),
        ("no header", abi::Packet { hdr_uaddr: 0, ..good }, kernel(Errno::EINVAL)),
        ("no data", abi::Packet { trans_len: 0, ..good }, kernel(Errno::EINVAL)),
        ("large data", abi::Packet { trans_len: 0x4001, ..good }, kernel(Errno::EINVAL)),
        ("bad header", abi::Packet { hdr_uaddr: BAD_ADDRESS, ..good }, kernel(Errno::EFAULT)),
        ("bad data", abi::Packet { trans_uaddr: BAD_ADDRESS, ..good }, kernel(Errno::EFAULT)),
        ("short header", abi::Packet { hdr_len: 51, ..good }, firmware(SevStatus::INVALID_LEN)),
        ("other length", abi::Packet { guest_len: 48, ..good }, firmware(SevStatus::INVALID_LEN)),
        ("odd", abi::Packet { guest_uaddr: ram + 1, ..good }, firmware(SevStatus::INVALID_ADDRESS)),
        (
            "part of it",
            abi::Packet { guest_len: 16, trans_len: 16, ..good },
            firmware(SevStatus::BAD_MEASUREMENT),
        ),
        (
            "forged",
            abi::Packet { hdr_uaddr: address_of(&forged), ..good },
            firmware(SevStatus::BAD_MEASUREMENT),
        ),
    ] {
        assert_eq!(vm.run(LAUNCH_SECRET, &mut packet), outcome, "{name}");
        assert_eq!(vm.fixture.guest_sees(0, 64), [0; 64], "{name}");
    }
    let mut packet = good;
    assert_eq!(vm.run(LAUNCH_SECRET, &mut packet), DONE);
    assert_eq!(vm.fixture.guest_sees(0, 32), [6; 32]);
}

/// Regions must be there, and are unregistered exactly as they were registered.
#[test]
fn regions_are_registered_and_unregistered_exactly() {
    let vm = TestVm::initialised();
    let ram = vm.fixture.ram;
    let region = |addr, size| kvm_enc_region { addr, size };
    for (bad, errno) in [
        (region(ram, 0), Errno::EINVAL),
        (region(u64::MAX, 2), Errno::EINVAL),
        (region(ram, BAD_ADDRESS - ram + 1), Errno::ENOMEM),
        (region(BAD_ADDRESS, 4096), Errno::ENOMEM),
    ] {
        assert_eq!(vm.platform.register_region(&bad), Err(errno), "{bad:?}");
    }
    for _twice in 0..2 {
        vm.platform.register_region(&region(ram, RAM_LEN)).unwrap();
    }
    assert_eq!(vm.platform.unregister_region(&region(ram, 4096)), Err(Errno::EINVAL));
    for _twice in 0..2 {
        vm.platform.unregister_region(&region(ram, RAM_LEN)).unwrap();
    }
    assert_eq!(vm.platform.unregister_region(&region(ram, RAM_LEN)), Err(Errno::EINVAL));
}

/// Debug commands move plaintext across page edges if the policy allows, and nothing if not.
#[test]
fn debug_commands_obey_the_policy() {
    let plain: Vec<u8> = (0..=255).cycle().take(5000).collect();
    let mut out = vec![0_u8; 5000];
    let mut vm = TestVm::launching(0);
    let guest = vm.fixture.ram + 4090;
    let write = |len| abi::Debug {
        src_uaddr: address_of(plain.as_slice()),
        dst_uaddr: guest,
        len,
        pad0: 0,
    };
    let mut read = abi::Debug {
        src_uaddr: guest,
        dst_uaddr: address_of_mut(out.as_mut_slice()),
        len: 5000,
        pad0: 0,
    };
    assert_eq!(vm.run(DBG_ENCRYPT, &mut write(5000)), DONE);
    assert_eq!(vm.fixture.guest_sees(4090, 5000), plain);
    assert_eq!(vm.run(DBG_DECRYPT, &mut read), DONE);
    assert_eq!(out, plain);
    assert_eq!(vm.run(DBG_ENCRYPT, &mut write(0)), kernel(Errno::EINVAL));
    for (source, target, errno) in [
        (guest, 0, Errno::EINVAL),
        (u64::MAX, guest, Errno::EINVAL),
        (BAD_ADDRESS, guest, Errno::ENOMEM),
    ] {
        let mut bad = abi::Debug { src_uaddr: source, dst_uaddr: target, len: 16, pad0: 0 };
        assert_eq!(vm.run(DBG_ENCRYPT, &mut bad), kernel(errno), "{source:#x} {target:#x}");
    }

    let mut closed = TestVm::launching(1);
    read.src_uaddr = closed.fixture.ram;
    assert_eq!(closed.run(DBG_DECRYPT, &mut read), firmware(SevStatus::POLICY_FAILURE));
    read.dst_uaddr = closed.fixture.ram;
    read.src_uaddr = address_of(plain.as_slice());
    assert_eq!(closed.run(DBG_ENCRYPT, &mut read), firmware(SevStatus::POLICY_FAILURE));
}
