//! The SEV firmware's status codes (`SEV_RET_*` in `include/uapi/linux/psp-sev.h`) and what they mean.

use std::fmt::{Debug, Display, Formatter, Result as FmtResult};

/// A status code other than success, as found in `kvm_sev_cmd.error`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct SevStatus(pub u32);

/// Declares the codes, their names and their meaning in one place.
macro_rules! statuses {
    ($($name:ident = $code:literal, $meaning:literal;)*) => {
        impl SevStatus {
            $(#[doc = $meaning] pub const $name: Self = Self($code);)*

            /// Every code that plain SEV firmware returns.
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$name),*];

            /// The name without its `SEV_RET_` prefix; `None` for a code unknown to us.
            #[must_use]
            pub fn name(self) -> Option<&'static str> {
                match self {
                    $(Self::$name => Some(stringify!($name)),)*
                    _ => None,
                }
            }

            /// What it means and what to do about it.
            #[must_use]
            pub fn meaning(self) -> &'static str {
                match self {
                    $(Self::$name => $meaning,)*
                    _ => "a status that plain SEV does not document",
                }
            }
        }
    };
}

statuses! {
    INVALID_PLATFORM_STATE = 0x1, "the platform is not in a state that allows the command; is it initialised?";
    INVALID_GUEST_STATE = 0x2, "the guest is not in a state that allows the command";
    INVALID_CONFIG = 0x3, "the platform configuration is invalid";
    INVALID_LEN = 0x4, "a buffer length is wrong";
    ALREADY_OWNED = 0x5, "the platform already has an external owner; reset it first";
    INVALID_CERTIFICATE = 0x6, "a certificate is malformed or has the wrong usage or algorithm";
    POLICY_FAILURE = 0x7, "the guest policy forbids it, or asks for newer firmware than this";
    INACTIVE = 0x8, "the guest is not bound to an ASID";
    INVALID_ADDRESS = 0x9, "an address is not aligned to 16 bytes or not memory";
    BAD_SIGNATURE = 0xa, "a signature does not verify";
    BAD_MEASUREMENT = 0xb,
        "a MAC does not verify: the session, its policy or its packet was made for other keys";
    ASID_OWNED = 0xc, "the ASID belongs to another guest";
    INVALID_ASID = 0xd, "the ASID is out of range";
    WBINVD_REQUIRED = 0xe, "caches must be written back first";
    DFFLUSH_REQUIRED = 0xf, "the data fabric must be flushed first";
    INVALID_GUEST = 0x10, "no guest has that handle";
    INVALID_COMMAND = 0x11, "the firmware does not know the command; update it";
    ACTIVE = 0x12, "the guest is still bound to an ASID";
    HW_PLATFORM = 0x13, "the platform hardware failed, and a retry may succeed";
    HW_UNSAFE = 0x14, "the platform hardware failed, and a retry is not safe";
    UNSUPPORTED = 0x15, "the firmware does not support it";
    INVALID_PARAM = 0x16, "a parameter is wrong";
    RESOURCE_LIMIT = 0x17, "the firmware has run out of something; stop another guest";
    SECURE_DATA_INVALID = 0x18, "the firmware's stored data is damaged";
}

impl Debug for SevStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        Display::fmt(self, f)
    }
}

impl Display for SevStatus {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{} ({:#x})", self.name().unwrap_or("unknown status"), self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes are the kernel's: 1 to 0x18 without a gap, each with its own name.
    #[test]
    fn codes_are_those_of_the_kernel_header() {
        let codes: Vec<u32> = SevStatus::ALL.iter().map(|status| status.0).collect();
        assert_eq!(codes, (1..=0x18).collect::<Vec<u32>>());
        assert_eq!(SevStatus(7).to_string(), "POLICY_FAILURE (0x7)");
        assert_eq!(SevStatus(0x19).to_string(), "unknown status (0x19)");
    }
}
