//! virtee's `sev` crate as the guest owner of sevferry's guests: each accepts what the other makes, and each refuses
//! what it must refuse.

mod platform;

use platform::Host;
use sev::certs::sev::sev::Certificate;
use sev::certs::sev::{Chain, Verifiable, builtin};
use sev::firmware::host::{Build, Version};
use sev::launch::sev::{
    HeaderFlags, Measurement, Policy as TheirPolicy, PolicyFlags, Secret as TheirSecret, Start,
};
use sev::parser::{Decoder, Encoder};
use sev::session::{Initialized, Session};
use sevferry::sev::launch::{LaunchError, Measured, SealedSecret};
use sevferry::sev::measurement::FirmwareVersion;
use sevferry::sev::packet::PacketHeader;
use sevferry::sev::vendor::{Root, VendorChain};
use sevferry::sev::{Policy, SevStatus};
use zerocopy::FromBytes;

/// Something of theirs as it travels.
fn bytes(value: &impl Encoder<()>) -> Vec<u8> {
    let mut bytes = Vec::new();
    value.encode(&mut bytes, ()).expect("a vector takes it");
    bytes
}

/// All that vouches for a host, as they read it.
fn chain(host: &Host) -> Chain {
    Chain::decode(&mut host.certificates().to_bytes().as_slice(), ()).expect("their form")
}

fn session(policy: Policy) -> Session<Initialized> {
    // Their conversion from the number would take four bits of each version only.
    let flags = u16::try_from(policy.bits() & 0xffff).expect("half of it");
    let (major, minor) = policy.minimum_api();
    let flags = PolicyFlags::from_bits_truncate(flags);
    Session::try_from(TheirPolicy { flags, minfw: Version { major, minor } }).expect("RDRAND")
}

/// The two files that `LAUNCH_START` takes.
fn files(start: &Start) -> (Vec<u8>, Vec<u8>) {
    let session = &start.session;
    let parts: [&[u8]; 5] = [
        &session.nonce,
        &session.wrap_tk,
        &session.wrap_iv,
        &session.wrap_mac,
        &session.policy_mac,
    ];
    (bytes(&start.cert), parts.concat())
}

fn build(version: FirmwareVersion) -> Build {
    let FirmwareVersion { major, minor, build } = version;
    Build { version: Version { major, minor }, build }
}

fn measurement(measured: &Measured) -> Measurement {
    let ours = measured.measurement();
    Measurement { measure: ours.mac, mnonce: ours.nonce }
}

/// A packet of theirs, as it comes in files.
fn packet(secret: &TheirSecret) -> SealedSecret {
    let whole = bytes(secret);
    let (header, ciphertext) = whole.split_at(52);
    SealedSecret::new(PacketHeader::read_from_bytes(header).expect("52 bytes"), ciphertext.to_vec())
}

fn status<T>(refused: Result<T, LaunchError>) -> Option<SevStatus> {
    match refused.err() {
        Some(LaunchError::Start { cause, .. } | LaunchError::Secret { cause, .. }) => {
            cause.status()
        }
        _ => None,
    }
}

/// Their parser reads our certificates to the last byte, and every link of the chain verifies, up to
/// the software platform's root; a bit that is changed in any of them breaks it.
#[test]
fn they_verify_our_chain() {
    let host = Host::ephemeral();
    let ours = host.certificates().to_bytes();
    let theirs = chain(&host);
    assert_eq!(bytes(&theirs), ours);
    let pdh = (&theirs).verify().expect("every link");
    assert_eq!(bytes(pdh), ours.get(..2084).expect("the PDH"));
    // A byte of the key of each: four certificates of 2084 bytes, two of 832.
    for at in [0, 2084, 4168, 6252]
        .map(|start| start + 0x20)
        .into_iter()
        .chain([8336 + 0x150, 9168 + 0x150])
    {
        let mut changed = ours.clone();
        *changed.get_mut(at).expect("in a certificate") ^= 1;
        let read = Chain::decode(&mut changed.as_slice(), ());
        assert!(read.is_err() || (&read.expect("read")).verify().is_err(), "byte {at:#x}");
    }
}

/// What they have built in as AMD's roots is what we have.
#[test]
fn we_have_the_same_roots() {
    for (name, ask, ark) in [
        ("Naples", builtin::naples::ASK, builtin::naples::ARK),
        ("Rome", builtin::rome::ASK, builtin::rome::ARK),
        ("Milan", builtin::milan::ASK, builtin::milan::ARK),
        ("Genoa", builtin::genoa::ASK, builtin::genoa::ARK),
        ("Turin", builtin::turin::ASK, builtin::turin::ARK),
    ] {
        let chain = VendorChain::decode(&[ask, ark].concat()).expect(name);
        chain.verify_ask().expect(name);
        assert_eq!(chain.root(), Some(Root::Amd(name)));
    }
}

/// Their session starts our guest, they verify our measurement, and their secret arrives in our guest:
/// the whole of an owner's part. The guest's memory is the proof, in `kvm_owner`; here the firmware's
/// word is, which checks every byte of the packet.
#[test]
fn they_own_a_guest_from_its_session_to_its_secret() {
    let host = Host::ephemeral();
    for policy in
        [0x21, 0x1, 0x3f & !4, 0x2101_0021].map(|bits| Policy::new(bits).expect("a policy"))
    {
        let theirs = session(policy);
        let start = theirs.start(chain(&host)).expect("our chain");
        let (certificate, session) = files(&start);
        let guest = host.start(policy, (&certificate, &session)).expect("their session");
        let digest = guest.load(&[3; 3 * 4096]);
        let secret_page = guest.page(5);
        let measured = guest.launching.measure().expect("a measurement");
        let verified = theirs
            .verify(&digest, build(host.version()), measurement(&measured))
            .expect("our measurement");
        let secret = verified.secret(HeaderFlags::default(), &[7; 64]).expect("a packet");
        measured.inject_secret(secret_page, &packet(&secret)).expect("their secret");
        measured.finish().expect("the guest may run");
    }
}

/// A measurement of anything else than what the owner expects is refused by them.
#[test]
fn they_refuse_a_measurement_of_something_else() {
    let host = Host::ephemeral();
    let policy = Policy::default();
    let owner = session(policy);
    let (certificate, blob) = files(&owner.start(chain(&host)).expect("our chain"));
    let guest = host.start(policy, (&certificate, &blob)).expect("their session");
    let digest = guest.load(&[2; 2 * 4096]);
    let measured = guest.launching.measure().expect("a measurement");
    let (right, said) = (build(host.version()), measurement(&measured));
    let again = |policy: Policy| {
        let mut same = session(policy);
        same.tik.copy_from_slice(&owner.tik);
        same
    };
    let newer = Build { build: right.build + 1, ..right };
    assert!(again(policy).verify(&[0; 32], right, said).is_err(), "another digest");
    assert!(again(policy).verify(&digest, newer, said).is_err(), "another build");
    let other = Policy::new(0).expect("a policy");
    assert!(again(other).verify(&digest, right, said).is_err(), "another policy");
    assert!(session(policy).verify(&digest, right, said).is_err(), "another session");
    assert!(again(policy).verify(&digest, right, said).is_ok(), "and the right one is not");
}

/// A session for another policy or another host is refused by us.
#[test]
fn we_refuse_a_session_for_something_else() {
    let (host, other) = (Host::ephemeral(), Host::ephemeral());
    let policy = Policy::default();
    let (certificate, blob) = files(&session(policy).start(chain(&host)).expect("our chain"));
    let weaker = Policy::new(0).expect("a policy");
    let refused = host.start(weaker, (&certificate, &blob));
    assert_eq!(status(refused), Some(SevStatus::BAD_MEASUREMENT), "another policy");
    let refused = other.start(policy, (&certificate, &blob));
    assert_eq!(status(refused), Some(SevStatus::BAD_MEASUREMENT), "another host");
    let pdh = host.certificates().pdh;
    let pdh = Certificate::decode(&mut pdh.as_bytes(), ()).expect("their form");
    let (certificate, blob) = files(&session(policy).start_pdh(pdh).expect("our PDH"));
    host.start(policy, (&certificate, &blob)).expect("made from the PDH alone, as sevctl does");
}

/// A packet that was changed, or made for another launch, is refused by us; the right one still comes
/// in after it.
#[test]
fn we_refuse_a_secret_for_something_else() {
    let host = Host::ephemeral();
    let policy = Policy::default();
    let owner = session(policy);
    let (certificate, blob) = files(&owner.start(chain(&host)).expect("our chain"));
    // One session, two launches: the firmware's nonce tells their measurements apart.
    let launch = || {
        let guest = host.start(policy, (&certificate, &blob)).expect("their session");
        (guest.page(1), guest.load(&[1; 4096]), guest)
    };
    let (first_page, digest, first) = launch();
    let (second_page, _, second) = launch();
    let (first, second) = (
        first.launching.measure().expect("measured"),
        second.launching.measure().expect("measured"),
    );
    let of_first = measurement(&first);
    let verified = owner.verify(&digest, build(host.version()), of_first).expect("our measurement");
    let secret = verified.secret(HeaderFlags::default(), &[7; 32]).expect("a packet");
    let refused = second.inject_secret(second_page, &packet(&secret));
    assert_eq!(status(refused), Some(SevStatus::BAD_MEASUREMENT), "another launch");
    for change in [0, 4, 20, 51] {
        let (mut header, ciphertext) = (bytes(&secret), secret.ciphertext.clone());
        header.truncate(52);
        *header.get_mut(change).expect("in the header") ^= 1;
        let header = PacketHeader::read_from_bytes(&header).expect("52 bytes");
        let refused = first.inject_secret(first_page, &SealedSecret::new(header, ciphertext));
        assert_eq!(status(refused), Some(SevStatus::BAD_MEASUREMENT), "header byte {change}");
    }
    first.inject_secret(first_page, &packet(&secret)).expect("the right one");
    let compressed = verified.secret(HeaderFlags::COMPRESSED, &[7; 32]).expect("a packet");
    let refused = first.inject_secret(first_page, &packet(&compressed));
    assert_eq!(status(refused), Some(SevStatus::UNSUPPORTED), "compressed");
}
