//! The software platform's root: an ARK and an ASK in AMD's format.
//!
//! **They authenticate nothing.** All software platforms share them, so that any two trust each other as two EPYCs
//! do. The ASK's private exponent is in this directory, so anybody can sign a CEK. They exist so that the certificate
//! chains of software platforms have the same form as hardware's, and neither kind verifies as the other. The ARK's
//! private half signed the ASK once and was thrown away.

use crate::sev::certificate::{BadCertificate, Certificate, Usage};
use crate::sev::rsa;
use crate::sev::vendor::VendorChain;

/// ASK and ARK, 2,048 bits each.
const CHAIN: [&[u8]; 2] = [include_bytes!("root/ask.cert"), include_bytes!("root/ark.cert")];

/// The ASK's private exponent, little-endian.
const ASK_PRIVATE: &[u8] = include_bytes!("root/ask.private");

/// The vendor's certificates of every software platform.
#[must_use]
#[expect(clippy::expect_used, reason = "the bytes are part of the program, and a test reads them")]
pub fn vendor_chain() -> VendorChain {
    VendorChain::decode(&CHAIN.concat()).expect("the software root is a chain")
}

/// Signs a software platform's CEK, with `salt` that is random.
pub(super) fn sign_cek(cek: &mut Certificate, salt: &[u8; 32]) -> Result<(), BadCertificate> {
    let ask = vendor_chain().ask;
    let signature = rsa::sign((ask.key().0, ASK_PRIVATE), cek.signed_bytes(), salt)
        .ok_or(BadCertificate::VendorKey)?;
    cek.add_signature((Usage::ASK, ask.signature_form().1), &signature)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::vendor::Root;

    /// The chain verifies to the software root and to no other.
    #[test]
    fn the_software_root_is_its_own() {
        let chain = vendor_chain();
        chain.verify_ask().unwrap();
        assert_eq!(chain.root(), Some(Root::Software));
        assert!(!Root::Software.is_kin_of(Root::Amd("Milan")));
        assert!(!Root::Amd("Milan").is_kin_of(Root::Software));
        assert!(Root::Amd("Milan").is_kin_of(Root::Amd("Rome")));
    }
}
