//! What the command line answers to bad input, where no KVM is needed: the message, and the code.

use std::fs::read;
use std::process::Command;

use rustix::fs::{CWD, FileType, Mode, mknodat};
use support::process::{Ended, Sevferry};
use support::scratch::Scratch;

/// Runs it with `arguments`, separated by white space.
fn sevferry(arguments: &str) -> Ended {
    Sevferry::start(arguments.split_whitespace()).end()
}

/// The whole command line is wrong: code 2, and a message that says what would be right.
#[test]
fn a_bad_option_is_named_and_explained() {
    let memory = "a number of bytes, or of K, M, G or T";
    let platform_keys = "sev, policy, status, overflow, dh_cert_file, session_file, identity";
    for (options, message) in [
        ("--nonsense", "unexpected argument '--nonsense'"),
        ("--memory 512MB", memory),
        ("--memory size=0", "0 bytes of memory; a machine needs at least 16 MiB"),
        ("--memory size=15M", "at least 16 MiB"),
        ("--memory size=65T", "a machine has at most 8 TiB"),
        ("--memory size=16777217", "not whole pages of 4096 bytes"),
        ("--memory size=99999999999999999999", memory),
        ("--memory size=-1", memory),
        ("--memory size=1.5G", memory),
        ("--memory size=lots", memory),
        ("--memory size=", "size has no value"),
        ("--memory size=64M,size=64M", "size is given twice"),
        ("--memory size=64M,wings=2", "unknown key \"wings\""),
        ("--cpus boot=0", "0 vCPUs; a machine has 1 to 8"),
        ("--cpus boot=9", "9 vCPUs; a machine has 1 to 8"),
        ("--cpus boot=257", "257 vCPUs; a machine has 1 to 8"),
        ("--cpus boot=few", "expected a number of vCPUs"),
        ("--cpus few", "expected a number of vCPUs"),
        ("--serial file=", "expected tty, null or file=PATH"),
        ("--serial tcp", "expected tty, null or file=PATH"),
        ("--report=xml", "possible values: text, json"),
        ("--platform sev", "sev has no value"),
        ("--platform sev=maybe", "expected software or hardware"),
        ("--platform policy=1", "sev is missing"),
        ("--platform sev=software,wings=2", platform_keys),
        ("--platform sev=software,sev=software", "sev is given twice"),
        ("--platform sev=software,policy=garbage", "\"garbage\" is not a number of 32 bits"),
        ("--platform sev=software,policy=0x100000000", "not a number of 32 bits"),
        ("--platform sev=software,policy=-1", "not a number of 32 bits"),
        ("--platform sev=software,policy=0x25", "asks for SEV-ES, which is not supported"),
        ("--platform sev=software,overflow=burn", "expected promote or poison"),
        ("--platform sev=hardware,identity=x", "the keys of hardware are its own"),
        ("--platform sev=software,dh_cert_file=x", "without session_file"),
        ("--platform sev=software,session_file=x", "without dh_cert_file"),
    ] {
        let ended = sevferry(&format!("run --kernel nowhere {options}"));
        assert_eq!(ended.code, Some(2), "{options}: {ended}");
        assert!(ended.err.contains(message), "{options}: no '{message}'; {ended}");
        assert!(ended.out.is_empty(), "{options}: {ended}");
    }
    for (arguments, message) in [
        ("run", "--kernel <FILE>"),
        ("run --kernel nowhere --paused", "--api-socket <PATH>"),
        ("run --kernel nowhere --api-socket x --paused=0", "a number of seconds, at least 1"),
        ("inject-secret --api-socket x --header y --secret z --gpa ef000", "such as 0xef000"),
        ("certificates --platform sev=software", "--out <DIR>"),
        ("digest --c-bit 64 --kernel nowhere", "64 is not in 32..=51"),
        ("digest --kernel nowhere", "--platform"),
        (
            "digest --c-bit 51 --kernel nowhere --measurement AAAA",
            "3 bytes; a launch measurement has 48",
        ),
        ("digest --c-bit 51 --kernel nowhere --tik nowhere", "--measurement <BASE64>"),
        ("frobnicate", "unrecognized subcommand 'frobnicate'"),
        ("", "Usage: sevferry"),
    ] {
        let ended = sevferry(arguments);
        assert_eq!(ended.code, Some(2), "{arguments}: {ended}");
        assert!(ended.err.contains(message), "{arguments}: no '{message}'; {ended}");
    }
}

/// A serial output that cannot be had ends `run` and `receive` at their start, by name: a pipe without a
/// reader does not hold them up, and no source is told that its guest would be taken.
#[test]
fn a_serial_output_that_cannot_be_opened_is_named_at_the_start() {
    let scratch = Scratch::new("serial-outputs");
    let (pipe, missing, socket) =
        (scratch.path("pipe"), scratch.path("no/where"), scratch.path("listen"));
    assert!(Command::new("mkfifo").arg(&pipe).status().is_ok_and(|status| status.success()));
    for (file, why) in [(&pipe, "a pipe that nobody reads"), (&missing, "No such file")] {
        for command in ["run --kernel nowhere", &format!("receive --listen unix:{socket}")] {
            let ended = sevferry(&format!("{command} --serial file={file}")).with_code(1);
            let ended = ended.saying(file).saying(why).saying("serial output");
            assert!(!ended.err.contains("waiting for a guest"), "{ended}");
        }
    }
}

/// A file that is no kernel is named, with what is wrong and what to do: code 1.
#[test]
fn a_bad_kernel_is_named_and_explained() {
    let scratch = Scratch::new("kernels");
    // An ELF, but a program for this very machine.
    let program = env!("CARGO_BIN_EXE_sevferry").to_owned();
    for (kernel, message) in [
        (scratch.path("missing"), "because: No such file or directory"),
        (scratch.file("empty", ""), "is empty"),
        (
            scratch.file("text", "hello"),
            "is not a bzImage nor a PVH ELF (it starts with 68 65 6c 6c)",
        ),
        (scratch.zeros("zeros", 1 << 20), "is not a bzImage nor a PVH ELF"),
        (scratch.path(""), "is not a regular file"),
        (program, "is an ELF without a PVH note"),
    ] {
        let ended = sevferry(&format!("digest --c-bit 51 --kernel {kernel}"));
        assert_eq!(ended.code, Some(1), "{kernel}: {ended}");
        assert!(ended.err.contains(&kernel), "{kernel} is not named; {ended}");
        assert!(ended.err.contains(message), "{kernel}: no '{message}'; {ended}");
        assert!(ended.out.is_empty(), "{kernel}: {ended}");
    }
}

/// Files of a guest owner that are of no use are named before anything is started.
#[test]
fn a_bad_file_of_the_guest_owner_is_named_and_explained() {
    let scratch = Scratch::new("owner");
    let (missing, empty) = (scratch.path("missing"), scratch.file("empty", ""));
    let (text, short) = (scratch.file("text", "hello!"), scratch.file("short", "aGVsbG8="));
    for (file, message) in [
        (missing, "because: No such file or directory"),
        (text, "is not base64"),
        (short, "is not the guest owner's DH certificate"),
        (empty, "is not the guest owner's DH certificate"),
    ] {
        let platform = format!("sev=software,dh_cert_file={file},session_file={file}");
        let ended = sevferry(&format!("run --kernel nowhere --platform {platform}"));
        let ended = ended.with_code(1).saying(&file);
        assert!(ended.err.contains(message), "{file}: no '{message}'; {ended}");
    }
}

/// Nothing is started when messages cannot be kept as asked.
#[test]
fn a_log_file_that_cannot_be_opened_is_an_error() {
    let path = Scratch::new("log").path("missing/log");
    let ended = sevferry(&format!("--log-file {path} digest --c-bit 51 --kernel nowhere"));
    ended.with_code(1).saying(&format!("opening the log file {path}"));
}

/// A log file that is a pipe without a reader is refused, and not waited for.
#[test]
fn a_log_that_nobody_reads_is_an_error() {
    let scratch = Scratch::new("fifo");
    let path = scratch.path("log");
    let mode = Mode::RUSR | Mode::WUSR;
    mknodat(CWD, &path, FileType::Fifo, mode, 0).expect("a FIFO");
    let ended = sevferry(&format!("--log-file {path} digest --c-bit 51 --kernel nowhere"));
    ended.with_code(1).saying(&format!("opening the log file {path}"));
}

/// Help and version are what was asked for, on standard output.
#[test]
fn help_is_no_error() {
    for arguments in ["--help", "run --help", "digest --help", "--version"] {
        let ended = sevferry(arguments).with_code(0);
        assert!(ended.out.contains("sevferry"), "{arguments}: {ended}");
        assert!(ended.err.is_empty(), "{arguments}: {ended}");
    }
}

/// A platform's certificates are written one to a file, and together as owners' tools take them.
#[test]
fn certificates_are_written_for_guest_owners() {
    let scratch = Scratch::new("certificates");
    let (identity, out) = (scratch.path("identity"), scratch.path("deep/out"));
    let export = format!("certificates --platform sev=software,identity={identity} --out {out}");
    let file = |name: &str| read(format!("{out}/{name}")).unwrap();
    let ended = sevferry(&export).with_code(0);
    assert!(ended.out.contains("sev.chain") && ended.out.contains("ca.chain"), "{ended}");
    let parts = ["pdh", "pek", "oca", "cek"].map(|name| file(&format!("{name}.cert")));
    assert_eq!(file("sev.chain"), parts.concat());
    assert_eq!(file("ca.chain"), ["ask", "ark"].map(|name| file(&format!("{name}.cert"))).concat());
    // The same keys, the same certificates.
    let before = file("sev.chain");
    sevferry(&export).with_code(0);
    assert_eq!(file("sev.chain"), before);
    let nobody = sevferry(&format!("certificates --platform sev=software --out {out}"));
    nobody.with_code(1).saying("add identity=DIR");
}
