//! Certificates of ours and of a real EPYC.

use super::*;
use crate::sev::session::random_secret_key;

/// The certificates of a real EPYC.
fn rome() -> (Certificate, Chain) {
    let decode = |bytes: &[u8]| Certificate::decode(bytes).unwrap();
    let chain = Chain {
        pek: decode(include_bytes!("../../../tests/data/rome-pek.cert")),
        oca: decode(include_bytes!("../../../tests/data/rome-oca.cert")),
        cek: decode(include_bytes!("../../../tests/data/rome-cek.cert")),
    };
    (decode(include_bytes!("../../../tests/data/rome-pdh.cert")), chain)
}

/// Real certificates verify, and no certificate speaks for another's signer.
#[test]
fn verifies_a_real_chain() {
    let (pdh, chain) = rome();
    chain.verify(&pdh).unwrap();
    assert_eq!(pdh.as_bytes(), include_bytes!("../../../tests/data/rome-pdh.cert"));
    assert!(matches!(pdh.verify(&chain.oca), Err(BadCertificate::NotSignedBy { .. })));
    assert!(matches!(pdh.verify(&pdh), Err(BadCertificate::NotSignedBy { signer: "PDH" })));
    let exchanged = Chain { oca: chain.cek, cek: chain.oca, ..chain };
    assert!(exchanged.verify(&pdh).is_err());
}

/// A bit changed in what is signed, or in R or S, is noticed.
#[test]
fn a_changed_bit_breaks_a_signature() {
    let (pdh, chain) = rome();
    let signed = size_of::<Body>();
    let signature = signed + 8;
    let fields = [signature..signature + SCALAR_LEN, signature + FIELD_LEN..signature + 120];
    let all = (0..signed).step_by(11).chain(fields.into_iter().flatten().step_by(7));
    for at in all {
        let mut changed = pdh;
        changed.as_mut_bytes()[at] ^= 1;
        assert!(changed.verify(&chain.pek).is_err(), "byte {at}");
    }
}

/// A certificate of ours verifies like a real one, by either of two signers.
#[test]
fn signs_and_verifies_in_both_slots() {
    let (oca, cek, pek) =
        (random_secret_key().unwrap(), random_secret_key().unwrap(), random_secret_key().unwrap());
    let signing = |usage, key: &SecretKey| {
        Certificate::new(PublicKeyUse::signing(usage), &key.public_key(), (1, 55))
    };
    let mut certificate = signing(Usage::PEK, &pek);
    certificate.sign(Usage::OCA, &oca).unwrap();
    certificate.sign(Usage::CEK, &cek).unwrap();
    assert!(matches!(certificate.sign(Usage::CEK, &cek), Err(BadCertificate::Full)));
    certificate.verify(&signing(Usage::OCA, &oca)).unwrap();
    certificate.verify(&signing(Usage::CEK, &cek)).unwrap();
    let impostor = certificate.verify(&signing(Usage::OCA, &cek));
    assert!(matches!(impostor, Err(BadCertificate::Signature { signer: "OCA", .. })));
}

/// What is no certificate, no P-384 point or no PDH is refused.
#[test]
fn refuses_what_is_no_pdh() {
    let (pdh, chain) = rome();
    assert!(matches!(Certificate::decode(&[1; 2083]), Err(BadCertificate::Length { len: 2083 })));
    assert!(matches!(Certificate::decode(&[0; 2084]), Err(BadCertificate::Version { version: 0 })));
    assert!(matches!(chain.pek.diffie_hellman_key(), Err(BadCertificate::Key { .. })));
    let mut off_curve = pdh;
    off_curve.body.y[0] ^= 1;
    assert!(matches!(off_curve.diffie_hellman_key(), Err(BadCertificate::Point(_))));
    let mut zero = pdh;
    (zero.body.x, zero.body.y) = ([0; 72], [0; 72]);
    assert!(matches!(zero.diffie_hellman_key(), Err(BadCertificate::Point(_))));
    let mut other_curve = pdh;
    other_curve.body.curve = 1;
    assert!(matches!(other_curve.diffie_hellman_key(), Err(BadCertificate::Key { .. })));
}
