//! Certificates of another host's platform: refused, or with one form; a signature is only ever
//! checked, never trusted.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sevferry::sev::certificate::{Certificate, Chain};
use sevferry::sev::target::PlatformCertificates;
use sevferry::sev::vendor::{VendorCertificate, VendorChain};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(certificate) = Certificate::decode(bytes) {
        assert_eq!(certificate.as_bytes(), bytes);
        // Whatever comes of it is an answer.
        let _verdict = certificate.verify(&certificate);
        let _key = certificate.diffie_hellman_key();
    }
    if let (Some((pdh, chain)), true) = (bytes.split_at_checked(0x824), bytes.len() > 0x824)
        && let (Ok(pdh), Ok(chain)) = (Certificate::decode(pdh), Chain::decode(chain))
    {
        let _verdict = chain.verify(&pdh);
    }
    if let Ok(platform) = PlatformCertificates::decode(bytes) {
        assert_eq!(platform.to_bytes(), bytes);
    }
    if let Ok(certificate) = VendorCertificate::decode(bytes) {
        assert!(bytes.starts_with(certificate.as_bytes()));
    }
    if let Ok(chain) = VendorChain::decode(bytes) {
        assert_eq!(chain.to_bytes(), bytes);
        let _verdict = chain.verify_ask();
    }
});
