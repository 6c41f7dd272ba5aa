//! Compares the structures and ioctl numbers with the kernel's own headers, as `cc` reads them.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::mem::offset_of;
use std::process::Command;

use kvm_bindings::{kvm_enc_region, kvm_sev_cmd};
use vmm_sys_util::tempdir::TempDir;

use super::abi::*;
use super::hardware::{
    KVM_MEMORY_ENCRYPT_OP, KVM_MEMORY_ENCRYPT_REG_REGION, KVM_MEMORY_ENCRYPT_UNREG_REGION,
    SEV_ISSUE_CMD,
};

/// C expressions with the values that they must have.
type AbiNumbers = Vec<(String, u64)>;

fn number(value: impl TryInto<u64>) -> u64 {
    value.try_into().ok().unwrap()
}

/// A structure's size and its fields' offsets, ours under the kernel's names.
macro_rules! layout {
    ($into:ident: $ours:ident = $kernel:literal { $($field:ident = $theirs:literal),* $(,)? }) => {
        $into.push((format!("sizeof(struct {})", $kernel), number(size_of::<$ours>())));
        $($into.push((
            format!("offsetof(struct {}, {})", $kernel, $theirs),
            number(offset_of!($ours, $field)),
        ));)*
    };
}

fn structures() -> AbiNumbers {
    let mut all = AbiNumbers::new();
    layout!(all: kvm_sev_cmd = "kvm_sev_cmd" { id = "id", data = "data", error = "error", sev_fd = "sev_fd" });
    layout!(all: kvm_enc_region = "kvm_enc_region" { addr = "addr", size = "size" });
    layout!(all: LaunchStart = "kvm_sev_launch_start" {
        handle = "handle", policy = "policy", dh_uaddr = "dh_uaddr", dh_len = "dh_len",
        session_uaddr = "session_uaddr", session_len = "session_len",
    });
    layout!(all: LaunchStart = "kvm_sev_receive_start" {
        handle = "handle", policy = "policy", dh_uaddr = "pdh_uaddr", dh_len = "pdh_len",
        session_uaddr = "session_uaddr", session_len = "session_len",
    });
    layout!(all: Buffer = "kvm_sev_launch_update_data" { uaddr = "uaddr", len = "len" });
    layout!(all: Buffer = "kvm_sev_launch_measure" { uaddr = "uaddr", len = "len" });
    layout!(all: Packet = "kvm_sev_send_update_data" {
        hdr_uaddr = "hdr_uaddr", hdr_len = "hdr_len", guest_uaddr = "guest_uaddr",
        guest_len = "guest_len", trans_uaddr = "trans_uaddr", trans_len = "trans_len",
    });
    layout!(all: Packet = "kvm_sev_receive_update_data" {
        hdr_uaddr = "hdr_uaddr", hdr_len = "hdr_len", guest_uaddr = "guest_uaddr",
        guest_len = "guest_len", trans_uaddr = "trans_uaddr", trans_len = "trans_len",
    });
    layout!(all: Packet = "kvm_sev_launch_secret" {
        hdr_uaddr = "hdr_uaddr", hdr_len = "hdr_len", guest_uaddr = "guest_uaddr",
        guest_len = "guest_len", trans_uaddr = "trans_uaddr", trans_len = "trans_len",
    });
    layout!(all: SendStart = "kvm_sev_send_start" {
        policy = "policy", pdh_uaddr = "pdh_cert_uaddr", pdh_len = "pdh_cert_len",
        chain_uaddr = "plat_certs_uaddr", chain_len = "plat_certs_len",
        vendor_uaddr = "amd_certs_uaddr", vendor_len = "amd_certs_len",
        session_uaddr = "session_uaddr", session_len = "session_len",
    });
    layout!(all: GuestStatus = "kvm_sev_guest_status" {
        handle = "handle", policy = "policy", state = "state",
    });
    layout!(all: Debug = "kvm_sev_dbg" { src_uaddr = "src_uaddr", dst_uaddr = "dst_uaddr", len = "len" });
    layout!(all: AttestationReport = "kvm_sev_attestation_report" { mnonce = "mnonce", buffer = "uaddr" });
    layout!(all: SevIssueCmd = "sev_issue_cmd" { cmd = "cmd", data = "data", error = "error" });
    layout!(all: UserDataStatus = "sev_user_data_status" {
        api_major = "api_major", api_minor = "api_minor", state = "state", flags = "flags",
        build = "build", guest_count = "guest_count",
    });
    layout!(all: PdhCertExport = "sev_user_data_pdh_cert_export" {
        pdh_uaddr = "pdh_cert_address", pdh_len = "pdh_cert_len",
        chain_uaddr = "cert_chain_address", chain_len = "cert_chain_len",
    });
    layout!(all: IdExport = "sev_user_data_get_id2" { uaddr = "address", len = "length" });
    all
}

fn numbers() -> AbiNumbers {
    let mut all = vec![
        ("KVM_MEMORY_ENCRYPT_OP", number(KVM_MEMORY_ENCRYPT_OP)),
        ("KVM_MEMORY_ENCRYPT_REG_REGION", number(KVM_MEMORY_ENCRYPT_REG_REGION)),
        ("KVM_MEMORY_ENCRYPT_UNREG_REGION", number(KVM_MEMORY_ENCRYPT_UNREG_REGION)),
        ("SEV_ISSUE_CMD", number(SEV_ISSUE_CMD)),
        ("SEV_PLATFORM_STATUS", device_command::PLATFORM_STATUS.into()),
        ("SEV_PDH_CERT_EXPORT", device_command::PDH_CERT_EXPORT.into()),
        ("SEV_GET_ID2", device_command::GET_ID2.into()),
    ];
    // As reference lists and our documents have them.
    all.extend([("KVM_SEV_INIT", 0), ("KVM_SEV_LAUNCH_START", 2), ("KVM_SEV_LAUNCH_FINISH", 7)]);
    all.extend([
        ("KVM_SEV_SEND_START", 8),
        ("KVM_SEV_SEND_FINISH", 11),
        ("KVM_SEV_SEND_CANCEL", 21),
    ]);
    all.extend([("KVM_SEV_RECEIVE_START", 12), ("KVM_SEV_RECEIVE_FINISH", 15)]);
    all.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

/// What the compiler says that each expression is.
fn by_the_headers(expressions: &AbiNumbers) -> BTreeMap<String, u64> {
    let directory = TempDir::new().unwrap();
    let (source, program) = (directory.as_path().join("abi.c"), directory.as_path().join("abi"));
    let mut text =
        String::from("#include <stdio.h>\n#include <stddef.h>\n#include <linux/kvm.h>\n");
    text.push_str("#include <linux/psp-sev.h>\nint main(void) {\n");
    for (expression, _) in expressions {
        writeln!(
            text,
            "printf(\"%s: %llu\\n\", \"{expression}\", (unsigned long long)({expression}));"
        )
        .unwrap();
    }
    text.push_str("return 0; }\n");
    fs::write(&source, text).unwrap();
    let compiled = Command::new("cc").arg(&source).arg("-o").arg(&program).output().unwrap();
    let said = String::from_utf8_lossy(&compiled.stderr);
    assert!(compiled.status.success(), "is linux-libc-dev installed? cc says: {said}");
    let output = Command::new(&program).output().unwrap();
    let lines = String::from_utf8(output.stdout).unwrap();
    let pairs = lines.lines().filter_map(|line| line.rsplit_once(": "));
    pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect()
}

/// Every size, offset and number is the kernel's.
#[test]
fn the_abi_is_that_of_the_kernels_headers() {
    let expected = [structures(), numbers()].concat();
    let found = by_the_headers(&expected);
    assert!(expected.len() > 80, "only {} expressions", expected.len());
    for (expression, ours) in expected {
        assert_eq!(found.get(&expression), Some(&ours), "{expression}");
    }
}
