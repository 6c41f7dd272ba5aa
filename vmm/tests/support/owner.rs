//! A guest owner: a session with one platform, what the platform measured, and a sealed password.
#![expect(clippy::panic, reason = "a status without what an owner needs fails the test")]

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use sevferry::sev::Policy;
use sevferry::sev::certificate::Certificate;
use sevferry::sev::launch::SealedSecret;
use sevferry::sev::measurement::{Claim, FirmwareVersion, Measurement};
use sevferry::sev::session::OwnerSession;
use zerocopy::IntoBytes;

/// `1e74f542-71dd-4d66-963e-ef4287ff173b` and `736869e5-84f0-4973-92ec-06879ce3da0b` as in memory: a
/// table of secrets, and a disk's password in it.
const TABLE: [u8; 16] = *b"\x42\xf5\x74\x1e\xdd\x71\x66\x4d\x96\x3e\xef\x42\x87\xff\x17\x3b";
const PASSWORD: [u8; 16] = *b"\xe5\x69\x68\x73\xf0\x84\x73\x49\x92\xec\x06\x87\x9c\xe3\xda\x0b";

/// A guest owner with a session.
#[derive(Debug)]
pub struct GuestOwner(OwnerSession);

impl GuestOwner {
    /// A session for guests of the default policy.
    pub fn new(pdh: &Certificate) -> Self {
        Self(OwnerSession::new(pdh, Policy::default()).expect("a session"))
    }

    /// The files of `dh_cert_file=` and `session_file=`.
    pub fn files(&self) -> [String; 2] {
        let OwnerSession { certificate, session, .. } = &self.0;
        [certificate.as_bytes(), session.as_bytes()].map(|bytes| BASE64_STANDARD.encode(bytes))
    }

    /// What was measured, as `sevferry status --json` says, once it is verified.
    pub fn verified(&self, status: &Value) -> Measurement {
        let said = |name: &str| {
            let value = status.pointer(&format!("/launch/{name}"));
            value.unwrap_or_else(|| panic!("no {name} in {status}"))
        };
        let number = |name| said(name).as_u64().and_then(|n| u8::try_from(n).ok()).expect("small");
        let text = |name| said(name).as_str().expect("a text");
        let measurement = BASE64_STANDARD.decode(text("launch_measurement")).expect("base64");
        let measurement = Measurement::from_bytes(&measurement.try_into().expect("48 bytes"));
        let mut digest = [0; 32];
        for (byte, hex) in digest.iter_mut().zip(text("launch_digest").as_bytes().chunks(2)) {
            let hex = str::from_utf8(hex).expect("a text");
            *byte = u8::from_str_radix(hex, 16).expect("hexadecimal");
        }
        let (major, minor) = (number("api_major"), number("api_minor"));
        let version = FirmwareVersion { major, minor, build: number("build_id") };
        let claim = Claim { version, policy: Policy::default(), digest };
        claim.verify(&self.0.keys.tik, &measurement).expect("a measurement of what is claimed");
        measurement
    }

    /// Header and packet of a table with one password, for the guest that was measured so.
    pub fn seal(&self, measurement: &Measurement, password: &str) -> [Vec<u8>; 2] {
        let sealed = SealedSecret::seal(&self.0.keys, measurement, &table(password));
        let (header, packet) = sealed.expect("randomness").into_parts();
        [header.as_bytes().to_vec(), packet]
    }
}

/// A table with one password, padded as the firmware takes it.
fn table(password: &str) -> Vec<u8> {
    let len = |len: usize| u32::try_from(len).expect("small").to_le_bytes();
    let mut table = Vec::from(TABLE);
    table.extend(len(40 + password.len()));
    table.extend(PASSWORD);
    table.extend(len(20 + password.len()));
    table.extend(password.as_bytes());
    table.resize(table.len().next_multiple_of(16), 0);
    table
}
