//! The structures of `KVM_MEMORY_ENCRYPT_OP` and `/dev/sev`, byte for byte.
//!
//! The KVM ones repeat `kvm_bindings` (sizes and offsets are checked below) so that both ends of the
//! seam turn them into bytes and back without `unsafe`; padding is explicit and zero. Fields ending
//! in `_uaddr` are addresses in the caller's process.

use std::mem::{offset_of, size_of};

use kvm_bindings as kvm;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::certificate::CERTIFICATE_LEN;

/// Largest buffer that the kernel copies for the firmware (`SEV_FW_BLOB_MAX_SIZE`).
pub(crate) const BLOB_LEN_MAX: u32 = 0x4000;

/// A buffer's length as the commands take it. Nothing that this crate hands over is near 4 GiB.
pub(crate) fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Declares a structure that is plain bytes.
macro_rules! plain {
    ($(#[$meta:meta])* $name:ident { $($field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[derive(FromBytes, IntoBytes, Immutable)]
        pub(crate) struct $name { $(pub(crate) $field: $type,)* }
    };
}

/// Checks that one of ours has the size and the field offsets of the kernel's.
macro_rules! same_layout {
    ($ours:ident = $kernel:ident { $($field:ident = $theirs:ident),* $(,)? }) => {
        const _: () = {
            assert!(size_of::<$ours>() == size_of::<kvm::$kernel>());
            $(assert!(offset_of!($ours, $field) == offset_of!(kvm::$kernel, $theirs));)*
        };
    };
}

plain! {
    /// `KVM_SEV_LAUNCH_START`, and `KVM_SEV_RECEIVE_START` with the source's PDH.
    LaunchStart {
        handle: u32,
        policy: u32,
        dh_uaddr: u64,
        dh_len: u32,
        pad0: u32,
        session_uaddr: u64,
        session_len: u32,
        pad1: u32,
    }
}

plain! {
    /// `KVM_SEV_LAUNCH_UPDATE_DATA` and `KVM_SEV_LAUNCH_MEASURE`: a buffer.
    Buffer { uaddr: u64, len: u32, pad0: u32, }
}

plain! {
    /// `KVM_SEV_SEND_START`.
    SendStart {
        policy: u32,
        pad0: u32,
        pdh_uaddr: u64,
        pdh_len: u32,
        pad1: u32,
        chain_uaddr: u64,
        chain_len: u32,
        pad2: u32,
        vendor_uaddr: u64,
        vendor_len: u32,
        pad3: u32,
        session_uaddr: u64,
        session_len: u32,
        pad4: u32,
    }
}

plain! {
    /// `KVM_SEV_LAUNCH_SECRET`, `KVM_SEV_SEND_UPDATE_DATA` and `KVM_SEV_RECEIVE_UPDATE_DATA`.
    Packet {
        hdr_uaddr: u64,
        hdr_len: u32,
        pad0: u32,
        guest_uaddr: u64,
        guest_len: u32,
        pad1: u32,
        trans_uaddr: u64,
        trans_len: u32,
        pad2: u32,
    }
}

plain! {
    /// `KVM_SEV_GUEST_STATUS`.
    GuestStatus { handle: u32, policy: u32, state: u32, }
}

plain! {
    /// `KVM_SEV_DBG_DECRYPT` and `KVM_SEV_DBG_ENCRYPT`.
    Debug { src_uaddr: u64, dst_uaddr: u64, len: u32, pad0: u32, }
}

plain! {
    /// `KVM_SEV_GET_ATTESTATION_REPORT`.
    AttestationReport { mnonce: [u8; 16], buffer: Buffer, }
}

same_layout!(LaunchStart = kvm_sev_launch_start {
    handle = handle, policy = policy, dh_uaddr = dh_uaddr, dh_len = dh_len,
    session_uaddr = session_uaddr, session_len = session_len,
});
same_layout!(Buffer = kvm_sev_launch_update_data { uaddr = uaddr, len = len });
same_layout!(Buffer = kvm_sev_launch_measure { uaddr = uaddr, len = len });
same_layout!(Packet = kvm_sev_launch_secret {
    hdr_uaddr = hdr_uaddr, hdr_len = hdr_len, guest_uaddr = guest_uaddr, guest_len = guest_len,
    trans_uaddr = trans_uaddr, trans_len = trans_len,
});
same_layout!(LaunchStart = kvm_sev_receive_start {
    handle = handle, policy = policy, dh_uaddr = pdh_uaddr, dh_len = pdh_len,
    session_uaddr = session_uaddr, session_len = session_len,
});
same_layout!(SendStart = kvm_sev_send_start {
    policy = policy, pdh_uaddr = pdh_cert_uaddr, pdh_len = pdh_cert_len,
    chain_uaddr = plat_certs_uaddr, chain_len = plat_certs_len,
    vendor_uaddr = amd_certs_uaddr, vendor_len = amd_certs_len,
    session_uaddr = session_uaddr, session_len = session_len,
});
same_layout!(Packet = kvm_sev_send_update_data {
    hdr_uaddr = hdr_uaddr, hdr_len = hdr_len, guest_uaddr = guest_uaddr, guest_len = guest_len,
    trans_uaddr = trans_uaddr, trans_len = trans_len,
});
same_layout!(Packet = kvm_sev_receive_update_data {
    hdr_uaddr = hdr_uaddr, hdr_len = hdr_len, guest_uaddr = guest_uaddr, guest_len = guest_len,
    trans_uaddr = trans_uaddr, trans_len = trans_len,
});
same_layout!(GuestStatus = kvm_sev_guest_status { handle = handle, policy = policy, state = state });
same_layout!(Debug = kvm_sev_dbg { src_uaddr = src_uaddr, dst_uaddr = dst_uaddr, len = len });
same_layout!(AttestationReport = kvm_sev_attestation_report { mnonce = mnonce, buffer = uaddr });

plain! {
    /// `KVM_SEV_INIT2`: all zero for a guest without SEV-ES.
    Init2 { vmsa_features: u64, flags: u32, ghcb_version: u16, pad1: u16, pad2: [u32; 8], }
}

same_layout!(Init2 = kvm_sev_init {
    vmsa_features = vmsa_features, flags = flags, ghcb_version = ghcb_version, pad1 = pad1, pad2 = pad2,
});

// What is of the kernel's own header and passed through; kvm-bindings against the document's numbers.
const _: () = {
    assert!(size_of::<kvm::kvm_enc_region>() == 16);
    assert!(offset_of!(kvm::kvm_enc_region, addr) == 0);
    assert!(offset_of!(kvm::kvm_enc_region, size) == 8);
    assert!(offset_of!(kvm::kvm_sev_cmd, id) == 0);
    assert!(size_of::<kvm::kvm_sev_cmd>() == 24);
    assert!(offset_of!(kvm::kvm_sev_cmd, data) == 8);
    assert!(offset_of!(kvm::kvm_sev_cmd, error) == 16);
    assert!(offset_of!(kvm::kvm_sev_cmd, sev_fd) == 20);
};

// `include/uapi/linux/psp-sev.h`, for which there are no bindings: packed, so each field follows the
// one before.
const _: () = {
    assert!(size_of::<SevIssueCmd>() == 16);
    assert!(offset_of!(SevIssueCmd, cmd) == 0);
    assert!(offset_of!(SevIssueCmd, data) == 4);
    assert!(offset_of!(SevIssueCmd, error) == 12);
    assert!(size_of::<UserDataStatus>() == 12);
    assert!(offset_of!(UserDataStatus, api_major) == 0);
    assert!(offset_of!(UserDataStatus, api_minor) == 1);
    assert!(offset_of!(UserDataStatus, state) == 2);
    assert!(offset_of!(UserDataStatus, flags) == 3);
    assert!(offset_of!(UserDataStatus, build) == 7);
    assert!(offset_of!(UserDataStatus, guest_count) == 8);
    assert!(size_of::<PdhCertExport>() == 24);
    assert!(offset_of!(PdhCertExport, pdh_uaddr) == 0);
    assert!(offset_of!(PdhCertExport, pdh_len) == 8);
    assert!(offset_of!(PdhCertExport, chain_uaddr) == 12);
    assert!(offset_of!(PdhCertExport, chain_len) == 20);
    assert!(size_of::<IdExport>() == 12);
    assert!(offset_of!(IdExport, uaddr) == 0);
    assert!(offset_of!(IdExport, len) == 8);
};

/// Holds the numbers of commands in kvm-bindings against those of the kernel's header.
macro_rules! numbered {
    ($($id:ident = $number:literal),* $(,)?) => {
        const _: () = { $(assert!(kvm::$id == $number);)* };
    };
}

numbered! {
    sev_cmd_id_KVM_SEV_INIT = 0,
    sev_cmd_id_KVM_SEV_LAUNCH_START = 2,
    sev_cmd_id_KVM_SEV_LAUNCH_UPDATE_DATA = 3,
    sev_cmd_id_KVM_SEV_LAUNCH_SECRET = 5,
    sev_cmd_id_KVM_SEV_LAUNCH_MEASURE = 6,
    sev_cmd_id_KVM_SEV_LAUNCH_FINISH = 7,
    sev_cmd_id_KVM_SEV_SEND_START = 8,
    sev_cmd_id_KVM_SEV_SEND_UPDATE_DATA = 9,
    sev_cmd_id_KVM_SEV_SEND_FINISH = 11,
    sev_cmd_id_KVM_SEV_RECEIVE_START = 12,
    sev_cmd_id_KVM_SEV_RECEIVE_UPDATE_DATA = 13,
    sev_cmd_id_KVM_SEV_RECEIVE_FINISH = 15,
    sev_cmd_id_KVM_SEV_GUEST_STATUS = 16,
    sev_cmd_id_KVM_SEV_DBG_DECRYPT = 17,
    sev_cmd_id_KVM_SEV_DBG_ENCRYPT = 18,
    sev_cmd_id_KVM_SEV_GET_ATTESTATION_REPORT = 20,
    sev_cmd_id_KVM_SEV_SEND_CANCEL = 21,
    sev_cmd_id_KVM_SEV_INIT2 = 22,
    KVM_CAP_EXIT_HYPERCALL = 201,
    KVM_CAP_VM_TYPES = 235,
    KVM_X86_SEV_VM = 2,
}

/// `struct sev_issue_cmd`: the argument of `SEV_ISSUE_CMD` on `/dev/sev`
/// (`include/uapi/linux/psp-sev.h`; packed there as here).
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SevIssueCmd {
    /// A [`device_command`] number.
    pub cmd: u32,
    /// User address of the command's structure.
    pub data: u64,
    /// The firmware's status, written when the firmware was called.
    pub error: u32,
}

/// The `/dev/sev` commands used here (`enum` in `include/uapi/linux/psp-sev.h`).
pub mod device_command {
    /// Versions and state.
    pub const PLATFORM_STATUS: u32 = 1;
    /// The platform's PDH certificate and its chain.
    pub const PDH_CERT_EXPORT: u32 = 5;
    /// The chip's identifier.
    pub const GET_ID2: u32 = 8;
}

/// `struct sev_user_data_status`.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
pub(crate) struct UserDataStatus {
    pub(crate) api_major: u8,
    pub(crate) api_minor: u8,
    pub(crate) state: u8,
    pub(crate) flags: u32,
    pub(crate) build: u8,
    pub(crate) guest_count: u32,
}

/// `struct sev_user_data_pdh_cert_export`.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
pub(crate) struct PdhCertExport {
    pub(crate) pdh_uaddr: u64,
    pub(crate) pdh_len: u32,
    pub(crate) chain_uaddr: u64,
    pub(crate) chain_len: u32,
}

/// `struct sev_user_data_get_id2`.
#[repr(C, packed)]
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable)]
pub(crate) struct IdExport {
    pub(crate) uaddr: u64,
    pub(crate) len: u32,
}

/// Bytes of a platform's chain: PEK, OCA and CEK certificates.
pub(crate) const CHAIN_LEN: usize = 3 * CERTIFICATE_LEN;

/// A guest's state in the firmware, numbered as `GUEST_STATUS` reports it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuestState {
    /// No guest.
    Uninitialised = 0,
    /// Accepting launch data.
    LaunchUpdate = 1,
    /// Measured; accepting secrets.
    LaunchSecret = 2,
    /// May run.
    Running = 3,
    /// Running, and being sent.
    SendUpdate = 4,
    /// Being received.
    ReceiveUpdate = 5,
    /// Sent; never runs here again.
    Sent = 6,
}

impl GuestState {
    /// The state that the firmware numbers so.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            0 => Self::Uninitialised,
            1 => Self::LaunchUpdate,
            2 => Self::LaunchSecret,
            3 => Self::Running,
            4 => Self::SendUpdate,
            5 => Self::ReceiveUpdate,
            6 => Self::Sent,
            _ => return None,
        })
    }
}
