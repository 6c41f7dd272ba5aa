//! Kinds of targets: which are refused, by the program and by the firmware, and why.

mod policy_table;

use std::fmt::Debug;

use zerocopy::FromBytes;

use super::*;
use crate::sev::SevStatus;
use crate::sev::certificate::{ECDSA_SHA256, PublicKeyUse, Usage};
use crate::sev::send::SendError;
use crate::sev::session::random_secret_key;
use crate::sev::software::fixture::Fixture;

/// What is wrong with a target, if anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Target {
    /// Another platform of the same owner.
    Good,
    /// A PDH that nobody signed, made by whoever wants the guest.
    SelfMadePdh,
    /// A PEK that the chip did not sign.
    WrongCek,
    /// A CEK that the vendor did not sign.
    UnsignedCek,
    /// The same chip under another vendor.
    WrongAsk,
    /// A platform of another owner.
    OtherOwner,
    /// An OCA that signed nothing.
    WrongOca,
    /// A PDH that is no key.
    BrokenPdh,
}

fn certificates(target: Target, peer: &Fixture, stranger: &Fixture) -> PlatformCertificates {
    let (mut made, other) = (peer.certificates(), stranger.certificates());
    match target {
        Target::Good => {}
        Target::SelfMadePdh => {
            let key = random_secret_key().unwrap().public_key();
            made.pdh = Certificate::new(PublicKeyUse::DIFFIE_HELLMAN, &key, (1, 55));
        }
        Target::WrongCek => made.chain.cek = other.chain.cek,
        Target::UnsignedCek => {
            let key = made.chain.cek.signing_key().unwrap();
            made.chain.cek = Certificate::new(PublicKeyUse::signing(Usage::CEK), &key, (1, 55));
        }
        Target::WrongAsk => {
            let rome = include_bytes!("../../amd/rome-ask-ark.cert");
            made.vendor = VendorChain::decode(rome).unwrap();
        }
        Target::OtherOwner => made = other,
        Target::WrongOca => made.chain.oca = other.chain.oca,
        Target::BrokenPdh => made.pdh = made.chain.pek,
    }
    made
}

/// The variant's name.
fn name(refused: &impl Debug) -> String {
    format!("{refused:?}").split(['(', ' ', '{']).next().unwrap_or_default().to_owned()
}

/// The chain of a real chip.
fn rome() -> PlatformCertificates {
    let file = |bytes: &[u8]| Certificate::decode(bytes).unwrap();
    PlatformCertificates {
        pdh: file(include_bytes!("../../../../tests/data/rome-pdh.cert")),
        chain: Chain {
            pek: file(include_bytes!("../../../../tests/data/rome-pek.cert")),
            oca: file(include_bytes!("../../../../tests/data/rome-oca.cert")),
            cek: file(include_bytes!("../../../../tests/data/rome-cek.cert")),
        },
        vendor: VendorChain::decode(include_bytes!("../../amd/rome-ask-ark.cert")).unwrap(),
    }
}

/// Hardware's chains and the software platform's never verify as each other, in either direction, and a
/// source whose own root is unknown sends nowhere.
#[test]
fn hardware_and_software_do_not_mix() {
    let rome = rome();
    let fixture = Fixture::new();
    let software = fixture.certificates();
    let policy = Policy::default();
    verify_target(&rome, policy, &rome).unwrap();
    verify_target(&software, policy, &software).unwrap();
    for (target, own) in [(&rome, &software), (&software, &rome)] {
        let refused = verify_target(target, policy, own).unwrap_err();
        assert!(matches!(refused, RefusedTarget::Root { .. }), "{refused:?}");
    }
    let refused = fixture.launched(policy).start_send(&rome, software.pdh).unwrap_err();
    let SendError::Start(refused) = refused.cause else { panic!() };
    assert_eq!(refused.status(), Some(SevStatus::BAD_SIGNATURE));

    let mut unknown = software.clone();
    let mut vendor = software.vendor.to_bytes();
    vendor[832 + 0x14] ^= 1;
    unknown.vendor = VendorChain::decode(&vendor).unwrap();
    let refused = verify_target(&software, policy, &unknown).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "the destination's root (ARK) is the software platform's and this platform's is unknown: a guest \
         moves only between hardware and hardware, or software and software"
    );
    // An ARK that merely claims to be the software platform's.
    let refused = verify_target(&unknown, policy, &software).unwrap_err();
    assert!(matches!(refused, RefusedTarget::Root { .. }), "{refused:?}");
}

/// What travels is what was sent, and nothing else decodes.
#[test]
fn certificates_travel_as_bytes() {
    let good = Fixture::new().certificates();
    let bytes = good.to_bytes();
    assert_eq!(PlatformCertificates::decode(&bytes).unwrap(), good);
    assert!(bytes.len() <= PLATFORM_CERTIFICATES_LEN_MAX);
    for len in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        assert!(PlatformCertificates::decode(&bytes[..len]).is_err(), "{len} bytes");
    }
    PlatformCertificates::decode(&[bytes.as_slice(), &[0]].concat()).unwrap_err();
    for version_at in [0, 2084, 4168, 6252, 8336, 9168] {
        let mut changed = bytes.clone();
        changed[version_at] = 2;
        assert!(PlatformCertificates::decode(&changed).is_err(), "byte {version_at}");
    }
}

/// A CEK of another chip does not replace the exported one.
#[test]
fn a_signed_cek_must_be_this_chips() {
    let fixture = Fixture::new();
    let own = fixture.certificates();
    let export = |cek| PlatformCertificates::export(&fixture.device, own.vendor.clone(), Some(cek));
    assert_eq!(export(own.chain.cek).unwrap(), own);
    let rome = Certificate::read_from_bytes(include_bytes!("../../../../tests/data/rome-cek.cert"));
    assert!(matches!(export(rome.unwrap()), Err(ExportError::OtherChip)));
    assert_eq!(own.chain.cek.signature_by(Usage::ASK, ECDSA_SHA256), None);
}
