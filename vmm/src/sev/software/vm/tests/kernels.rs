//! What differs between kernels and hosts: turning SEV on, ASIDs, and how much may be locked.

use std::error::Error;

use super::*;
use crate::sev::launch::{Initialised, LaunchError, PIECE_LEN};
use crate::sev::software::{Identity, KernelVersion, Model};

fn fixture(model: Model) -> Fixture {
    Fixture::modelled(Identity::ephemeral().unwrap(), model)
}

fn init(platform: &SoftwarePlatform) -> Result<(), Errno> {
    platform.memory_encrypt_op(&mut kvm_sev_cmd { id: INIT, ..kvm_sev_cmd::default() })
}

/// What the user reads when SEV cannot be turned on for a VM.
fn said(fixture: &Fixture, platform: SoftwarePlatform) -> String {
    let refused = Initialised::init(Box::new(platform), fixture.fd()).unwrap_err();
    refused.source().unwrap().to_string()
}

/// SEV is turned on once for a VM, and before its first vCPU; kernels say so with different numbers,
/// and the words that go with each name both reasons.
#[test]
fn sev_is_turned_on_once_and_before_vcpus() {
    for (kernel, errno) in [
        ("5.14", Errno::EBUSY),
        ("6.1", Errno::EBUSY),
        ("6.11", Errno::EINVAL),
        ("6.17", Errno::EINVAL),
    ] {
        let kernel: KernelVersion = kernel.parse().unwrap();
        let fixture = fixture(Model { kernel, ..Model::default() });
        let platform = fixture.platform();
        init(&platform).unwrap();
        assert_eq!(init(&platform), Err(errno), "{kernel}");
        assert!(said(&fixture, platform).contains("SEV is already on for this VM"), "{kernel}");
        let platform = fixture.platform();
        platform.vcpu_created();
        assert_eq!(init(&platform), Err(Errno::EINVAL), "{kernel}");
        assert!(said(&fixture, platform).contains("had a vCPU before"), "{kernel}");
    }
}

/// A host whose ASIDs are all kept for SEV-ES has none for our guests: newer kernels say so, older
/// ones as if others had taken them.
#[test]
fn all_asids_may_be_kept_for_sev_es() {
    for (kernel, errno, words) in [
        ("6.1", Errno::EBUSY, "no free SEV ASID"),
        ("6.11", Errno::ENOTTY, "all of its ASIDs are kept for SEV-ES"),
    ] {
        let kernel: KernelVersion = kernel.parse().unwrap();
        let fixture = fixture(Model { kernel, asids: 0, ..Model::default() });
        assert_eq!(init(&fixture.platform()), Err(errno), "{kernel}");
        let text = said(&fixture, fixture.platform());
        assert!(text.contains(words), "{kernel}: {text}");
    }
    let fixture = fixture(Model { asids: 1, ..Model::default() });
    let first = fixture.platform();
    init(&first).unwrap();
    assert_eq!(init(&fixture.platform()), Err(Errno::EBUSY));
    drop(first);
    init(&fixture.platform()).unwrap();
}

/// A host that lets a guest of so many bytes of RAM lock `limit`, and a VM whose RAM is registered.
fn locked(ram: u64, limit: u64) -> (Fixture, Result<Initialised, Errno>) {
    let model = Model { lock_limit: Some(limit), ..Model::default() };
    let fixture = Fixture::modelled_with_ram(Identity::ephemeral().unwrap(), model, ram);
    let vm = fixture.initialised();
    let registered = vm.register_region(fixture.ram, ram).map_err(|refused| {
        let LaunchError::Region { cause, .. } = refused else { panic!("{refused}") };
        cause.errno()
    });
    (fixture, registered.map(|()| vm))
}

/// What a launch encrypts is pinned beside the registered RAM, a piece at a time: RAM and a piece are
/// enough for a guest of any size, and RAM alone lets it register and no more.
#[test]
fn a_launch_locks_a_piece_beside_ram() {
    const RAM: u64 = 3 * PIECE_LEN;
    let update = |limit: u64| {
        let (fixture, vm) = locked(RAM, limit);
        let launching = vm.unwrap().start(Policy::default(), None).unwrap();
        // Longer than a piece: the whole of RAM.
        let updated = launching.update(fixture.ram, RAM);
        updated.and_then(|()| launching.measure().map(|_measured| ()))
    };
    update(RAM + PIECE_LEN).unwrap();
    let refused = update(RAM).unwrap_err();
    let text = refused.source().unwrap().to_string();
    assert!(text.contains("ENOMEM") && text.contains("locked-memory limit"), "{text}");
    let (_fixture, vm) = locked(RAM, RAM - 1);
    assert_eq!(vm.unwrap_err(), Errno::ENOMEM);
}

/// A page that is sent, received or debugged counts beside RAM too, a region as long as it is
/// registered, and each VM for itself.
#[test]
fn every_command_counts_what_it_pins() {
    let mut out = [0_u8; 16];
    for (pages_beside, debugs) in [(1, false), (2, true)] {
        let (fixture, vm) = locked(RAM_LEN, RAM_LEN + pages_beside * PAGE_SIZE);
        let launched = vm.unwrap().start(Policy::new(0).unwrap(), None).unwrap();
        launched.update(fixture.ram, 4096).unwrap();
        let launched = launched.measure().unwrap().finish().unwrap();
        let read = launched.read_private(fixture.ram, &mut out);
        assert_eq!(read.is_ok(), debugs, "{pages_beside} {read:?}");
    }
    let model = Model { lock_limit: Some(RAM_LEN), ..Model::default() };
    let fixture = fixture(model);
    let (one, other) = (fixture.platform(), fixture.platform());
    let region = kvm_enc_region { addr: fixture.ram, size: RAM_LEN };
    for vm in [&one, &other] {
        init(vm).unwrap();
        vm.register_region(&region).unwrap();
        assert_eq!(vm.register_region(&region), Err(Errno::ENOMEM));
        vm.unregister_region(&region).unwrap();
        vm.register_region(&region).unwrap();
        assert_eq!(vm.write_backs(), 1);
    }
}
