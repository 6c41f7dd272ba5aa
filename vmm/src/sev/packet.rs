//! A packet: a secret or a page, encrypted and authenticated under a session's keys.

use std::fmt::{Debug, Formatter, Result as FmtResult};

use aes::Aes128;
use ctr::cipher::{InnerIvInit, KeyInit, StreamCipher};
use ctr::{Ctr128BE, CtrCore};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::SevStatus;
use super::session::{TransportKeys, verify};

/// Bytes of a packet's header.
pub const HEADER_LEN: usize = 52;

/// First byte of the MAC's input for `LAUNCH_SECRET`.
const CONTEXT_SECRET: u8 = 0x01;

/// First byte of the MAC's input for `SEND_UPDATE_DATA` and `RECEIVE_UPDATE_DATA`.
const CONTEXT_PAGE: u8 = 0x02;

/// A packet's header as it travels.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable)]
pub struct PacketHeader {
    flags: [u8; 4],
    iv: [u8; 16],
    mac: [u8; 32],
}

const _: () = assert!(size_of::<PacketHeader>() == HEADER_LEN);

/// What a packet is for, as its MAC binds it.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Purpose<'a> {
    /// `LAUNCH_SECRET` into a guest with this measurement (API 0.17 and later).
    Secret { measure: &'a [u8; 32] },
    /// Guest memory on its way to another platform. The MAC binds neither its address nor its order.
    Page,
}

/// A session's keys, expanded once for all its packets.
#[derive(Clone)]
pub(crate) struct PacketKeys {
    cipher: Aes128,
    mac: Hmac<Sha256>,
}

impl Debug for PacketKeys {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str("PacketKeys(..)")
    }
}

impl PacketKeys {
    pub(crate) fn new(keys: &TransportKeys) -> Self {
        Self { cipher: Aes128::new(keys.tek.as_bytes().into()), mac: keys.tik.hmac() }
    }

    /// Encrypts `bytes` in place and returns their header. No two packets under the same keys may
    /// use overlapping runs of counter blocks, which start at `iv`.
    pub(crate) fn seal(
        &self,
        purpose: Purpose<'_>,
        iv: [u8; 16],
        bytes: &mut [u8],
    ) -> PacketHeader {
        self.apply(&iv, bytes);
        let mut header = PacketHeader { flags: [0; 4], iv, mac: [0; 32] };
        header.mac = self.mac(purpose, &header, bytes).finalize().into_bytes().into();
        header
    }

    /// Checks `bytes` against their header and decrypts them in place.
    ///
    /// # Errors
    /// [`SevStatus::UNSUPPORTED`] for any flag, [`SevStatus::BAD_MEASUREMENT`] if the MAC does not verify;
    /// `bytes` are then unchanged.
    pub(crate) fn open(
        &self,
        purpose: Purpose<'_>,
        header: &PacketHeader,
        bytes: &mut [u8],
    ) -> Result<(), SevStatus> {
        verify(self.mac(purpose, header, bytes), &header.mac)?;
        if header.flags != [0; 4] {
            return Err(SevStatus::UNSUPPORTED);
        }
        self.apply(&header.iv, bytes);
        Ok(())
    }

    fn apply(&self, iv: &[u8; 16], bytes: &mut [u8]) {
        let core = CtrCore::inner_iv_init(self.cipher.clone(), iv.into());
        Ctr128BE::<Aes128>::from_core(core).apply_keystream(bytes);
    }

    /// The MAC over a header and the ciphertext; both lengths are those of the ciphertext, because
    /// nothing is compressed.
    fn mac(&self, purpose: Purpose<'_>, header: &PacketHeader, ciphertext: &[u8]) -> Hmac<Sha256> {
        // A packet is at most 16 KiB by then.
        let len = u32::try_from(ciphertext.len()).unwrap_or(u32::MAX).to_le_bytes();
        let (context, trailer): (u8, &[u8]) = match purpose {
            Purpose::Secret { measure } => (CONTEXT_SECRET, measure),
            Purpose::Page => (CONTEXT_PAGE, &[]),
        };
        let mac = self.mac.clone().chain_update([context]).chain_update(header.flags);
        let mac = mac.chain_update(header.iv).chain_update(len).chain_update(len);
        mac.chain_update(ciphertext).chain_update(trailer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::session::Key;
    use crate::sev::vectors::{counting, from_hex};

    fn keys() -> PacketKeys {
        let (tek, tik) = (Key::from_bytes(counting(0x20)), Key::from_bytes(counting(0x30)));
        PacketKeys::new(&TransportKeys { tek, tik })
    }

    /// A vector computed independently from the formulas.
    #[test]
    fn seals_a_secret_as_the_formulas_say() {
        let mut bytes: [u8; 32] = counting(0);
        let measure = counting(0x60);
        let purpose = Purpose::Secret { measure: &measure };
        let header = keys().seal(purpose, counting(0x50), &mut bytes);
        assert_eq!(
            bytes,
            from_hex("b0505bc0603c21e24d4ee2aa4b2cdfe43aaeef48ea3ac195ebe34bbff9770ae6")
        );
        assert_eq!(
            header.mac,
            from_hex("cd0f2a6f7bea966112a2e3350222884b4c444faf9457364a2ec7f79a4747b905")
        );
        keys().open(purpose, &header, &mut bytes).unwrap();
        assert_eq!(bytes, counting(0));
    }

    /// A page's packet has another context and no measurement.
    #[test]
    fn seals_a_page_as_the_formulas_say() {
        let mut bytes: [u8; 32] = counting(0);
        let header = keys().seal(Purpose::Page, counting(0x50), &mut bytes);
        assert_eq!(
            bytes,
            from_hex("b0505bc0603c21e24d4ee2aa4b2cdfe43aaeef48ea3ac195ebe34bbff9770ae6")
        );
        assert_eq!(
            header.mac,
            from_hex("7b22ac9770e0185677f16d46a251e8b39e7be7a7972f720f74b60cb018a1a94f")
        );
        let secret = Purpose::Secret { measure: &counting(0x60) };
        assert_eq!(keys().open(secret, &header, &mut bytes), Err(SevStatus::BAD_MEASUREMENT));
        keys().open(Purpose::Page, &header, &mut bytes).unwrap();
        assert_eq!(bytes, counting(0));
    }

    /// A changed bit anywhere, another guest's measurement or another length is refused, and the
    /// bytes stay as they were.
    #[test]
    fn refuses_a_changed_packet() {
        let measure = [1; 32];
        let purpose = Purpose::Secret { measure: &measure };
        let mut sealed = [5; 48];
        let header = keys().seal(purpose, [9; 16], &mut sealed);
        for at in 0..HEADER_LEN {
            let mut changed = header;
            changed.as_mut_bytes()[at] ^= 1;
            let mut bytes = sealed;
            let answer = keys().open(purpose, &changed, &mut bytes);
            assert_eq!(answer, Err(SevStatus::BAD_MEASUREMENT), "header byte {at}");
            assert_eq!(bytes, sealed);
        }
        for at in 0..sealed.len() {
            let mut bytes = sealed;
            bytes[at] ^= 0x80;
            assert_eq!(keys().open(purpose, &header, &mut bytes), Err(SevStatus::BAD_MEASUREMENT));
        }
        let mut short = sealed;
        assert!(keys().open(purpose, &header, &mut short[..32]).is_err());
        let other = Purpose::Secret { measure: &[2; 32] };
        assert!(keys().open(other, &header, &mut sealed).is_err());
    }

    /// A packet that says it is compressed is refused even by whoever has the keys.
    #[test]
    fn refuses_compression() {
        let purpose = Purpose::Secret { measure: &[0; 32] };
        let mut header = PacketHeader { flags: [1, 0, 0, 0], iv: [0; 16], mac: [0; 32] };
        let mut bytes = [0; 16];
        header.mac = keys().mac(purpose, &header, &bytes).finalize().into_bytes().into();
        assert_eq!(keys().open(purpose, &header, &mut bytes), Err(SevStatus::UNSUPPORTED));
    }
}
