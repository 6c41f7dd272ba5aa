//! What each command line means, and what is said to one that means nothing.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use vmm_sys_util::tempfile::TempFile;

use std::io::Write;
use std::time::Duration;

use super::*;
use crate::encryption::{Design, Overflow};
use crate::machine::config::{OwnerInput, Serial};
use crate::sev::Policy;
use crate::sev::endorsement::EndorsementFiles;
use crate::sev::measurement::{FirmwareVersion, Measurement};
use crate::sev::software::Model;

fn parse(line: &str) -> Result<Arguments, ArgumentError> {
    Arguments::parse(["sevferry"].into_iter().chain(line.split(' ')).map(OsString::from))
}

fn run(line: &str) -> (Config, RunOptions) {
    let line = format!("run --kernel k {line}").trim_end().replace("  ", " ");
    let Task::Run { config, options } = parse(&line).unwrap().task else {
        panic!("another task: {line}")
    };
    (*config, options)
}

fn digest(line: &str) -> DigestOptions {
    let Task::Digest(options) = parse(&format!("digest --kernel k {line}")).unwrap().task else {
        panic!("another task: {line}")
    };
    *options
}

/// The first paragraph of what is printed.
fn refused(line: &str) -> String {
    let error = parse(line).unwrap_err().to_string();
    error.split("\n\n").next().unwrap().to_owned()
}

/// A kernel is enough: the rest has defaults, and the guest is a plain VM.
#[test]
fn a_kernel_is_enough() {
    let (config, options) = run("");
    assert_eq!(config.kernel, PathBuf::from("k"));
    assert_eq!(config.initramfs, None);
    assert_eq!(config.cmdline, "console=ttyS0");
    assert_eq!((config.vcpus.get(), config.ram.bytes()), (1, 512 << 20));
    assert_eq!(config.serial, Serial::Tty);
    assert!(config.sev.is_none());
    let process = ProcessOptions { report: None, api_socket: None, journal: None };
    assert_eq!(options, RunOptions { reboot: true, paused: None, process });
}

/// Every flag of a machine arrives in its configuration.
#[test]
fn flags_make_a_machine() {
    let (config, options) =
        run("--initramfs i --cmdline quiet --cpus boot=8 --memory size=4G --serial file=a=b \
         --no-reboot --report --api-socket s --journal j");
    assert_eq!(config.initramfs, Some("i".into()));
    assert_eq!(config.cmdline, "quiet");
    assert_eq!((config.vcpus.get(), config.ram.bytes()), (8, 4 << 30));
    assert_eq!(config.serial, Serial::File("a=b".into()));
    let process = ProcessOptions {
        report: Some(ReportFormat::Text),
        api_socket: Some("s".into()),
        journal: Some("j".into()),
    };
    assert_eq!(options, RunOptions { reboot: false, paused: None, process });
    assert_eq!(run("--report=json").1.process.report, Some(ReportFormat::Json));
    assert_eq!(run("--serial null").0.serial, Serial::Null);
}

/// A guest may be held, for ever or for so long; requests come through its socket.
#[test]
fn a_guest_is_held_for_its_owner() {
    for (flag, pause) in [
        ("--paused", Pause(None)),
        ("-S", Pause(None)),
        ("--paused=90", Pause(Some(Duration::from_secs(90)))),
    ] {
        assert_eq!(run(&format!("{flag} --api-socket s")).1.paused, Some(pause), "{flag}");
    }
    assert_eq!(run("--api-socket s").1.paused, None);
    assert!(refused("run --kernel k --paused").contains("--api-socket <PATH>"));
    for seconds in ["0", "-1", "1.5", "soon", "4294967296"] {
        let refused = refused(&format!("run --kernel k --api-socket s --paused={seconds}"));
        assert!(refused.contains("at least 1"), "{refused}");
    }
}

/// Parts of a secret's packet are read in base64, in lines or not, and as they are; addresses are in
/// decimal or hexadecimal.
#[test]
fn a_secret_is_read_in_either_form() {
    let file = |bytes: &[u8]| {
        let file = TempFile::new().unwrap();
        file.as_file().write_all(bytes).unwrap();
        file
    };
    let bytes: Vec<u8> = (200..252).collect();
    let text = BASE64_STANDARD.encode(&bytes);
    let (first, second) = text.split_at(20);
    let lines = format!("{first}\n{second}\n");
    for (header, gpa) in [
        (bytes.as_slice(), "0x80d000"),
        (text.as_bytes(), "8441856"),
        (lines.as_bytes(), "0x0080D000"),
    ] {
        let (header, secret) = (file(header), file(&[0xff; 16]));
        let path = |file: &TempFile| file.as_path().to_str().unwrap().to_owned();
        let line = format!(
            "inject-secret --api-socket s --header {} --secret {} --gpa {gpa}",
            path(&header),
            path(&secret)
        );
        let Task::Ask(options) = parse(&line).unwrap().task else { panic!("another task") };
        let Request::InjectSecret(request) = options.request else { panic!("another request") };
        assert_eq!((request.packet_header.0, request.gpa), (bytes.clone(), Some(0x80_d000)));
        assert_eq!(request.secret.0, [0xff; 16]);
    }
    for address in ["ef000", "0x", "0xefg", "-1", "0x10000000000000000"] {
        let line = format!("inject-secret --api-socket s --header h --secret s --gpa={address}");
        assert!(refused(&line).contains("such as 0xef000"), "{address}");
    }
}

/// Sizes are in bytes, or in binary multiples of them.
#[test]
fn sizes_take_binary_suffixes() {
    for (text, bytes) in
        [("33554432", 32 << 20), ("16384K", 16 << 20), ("17m", 17 << 20), ("2g", 2 << 30)]
    {
        assert_eq!(run(&format!("--memory size={text}")).0.ram.bytes(), bytes, "{text}");
    }
    assert_eq!(run("--memory size=8T").0.ram.bytes(), 8 << 40);
}

/// What people type: the number alone, and the suffixes by their full names.
#[test]
fn the_only_key_of_a_flag_may_be_left_out() {
    for (memory, bytes) in
        [("512M", 512 << 20), ("64MiB", 64 << 20), ("2gib", 2 << 30), ("size=65536KiB", 64 << 20)]
    {
        let (config, _) = run(&format!("--cpus 4 --memory {memory}"));
        assert_eq!((config.vcpus.get(), config.ram.bytes()), (4, bytes), "{memory}");
    }
}

/// `--platform` makes an SEV guest, with a policy that keeps the host out unless told otherwise.
#[test]
fn platform_makes_an_sev_guest() {
    let sev = run("--platform sev=hardware").0.sev.unwrap();
    let (endorsement, write_back) = (EndorsementFiles::default(), false);
    let hardware = PlatformKind::Hardware { endorsement, write_back };
    assert_eq!((sev.platform, sev.policy), (hardware, Policy::default()));
    assert_eq!(sev.status, Design::List(Overflow::Promote));
    assert!(matches!(sev.owner, OwnerInput::Own));
    let keys = "cek_cert_file=c,ask_ark_file=a,write_back=last-round";
    let sev = run(&format!("--platform sev=hardware,{keys}")).0.sev.unwrap();
    let endorsement = EndorsementFiles { cek: Some("c".into()), ask_ark: Some("a".into()) };
    assert_eq!(sev.platform, PlatformKind::Hardware { endorsement, write_back: true });
    let keys =
        "policy=49,identity=d,overflow=poison,sev=software,command_cost_us=150,kernel=6.1,asids=0";
    let sev = run(&format!("--platform {keys}")).0.sev.unwrap();
    let model = Model {
        command_cost: Duration::from_micros(150),
        kernel: "6.1".parse().unwrap(),
        asids: 0,
        ..Model::default()
    };
    assert_eq!(sev.platform, PlatformKind::Software { identity: Some("d".into()), model });
    assert_eq!(sev.policy, Policy::new(0x31).unwrap());
    assert_eq!(sev.status, Design::List(Overflow::Poison));
}

/// `-v` counts, and stands before or after the command.
#[test]
fn verbosity_counts() {
    let level = |line| parse(line).unwrap().log.level;
    assert_eq!(level("probe"), LevelFilter::Warn);
    assert_eq!(level("-v probe"), LevelFilter::Info);
    assert_eq!(level("probe -vv"), LevelFilter::Debug);
    assert_eq!(level("probe -vvvv"), LevelFilter::Trace);
    assert_eq!(parse("probe --log-file f").unwrap().log.file, Some("f".into()));
}

/// `run` with this value refuses it, naming the flag and the value, with this answer.
fn refuses(flag: &str, value: &str, answer: &str) {
    let said = refused(&format!("run --kernel k --{flag} {value}"));
    let start = format!("error: invalid value '{value}' for '--{flag} <");
    assert!(said.starts_with(&start), "{said}");
    assert!(said.ends_with(&format!(">': {answer}")), "{said}");
}

/// What is not a number of vCPUs, an amount of memory or a serial port is named with what would be.
#[test]
fn wrong_machines_are_named() {
    let size = "expected a number of bytes, or of K, M, G or T, such as 512M or 512MiB";
    let serial = "expected tty, null or file=PATH";
    for (flag, value, answer) in [
        ("cpus", "boot=0", "boot=0: 0 vCPUs; a machine has 1 to 8"),
        ("cpus", "boot=9", "boot=9: 9 vCPUs; a machine has 1 to 8"),
        ("cpus", "boot=+2", "boot=+2: expected a number of vCPUs"),
        ("cpus", "boot=-1", "boot=-1: expected a number of vCPUs"),
        ("cpus", "9", "boot=9: 9 vCPUs; a machine has 1 to 8"),
        ("cpus", "4,max=4", "unknown key \"4\"; write key=value,... with the keys boot"),
        ("cpus", "boot=2,max=4", "unknown key \"max\"; write key=value,... with the keys boot"),
        ("memory", "size=0", "size=0: 0 bytes of memory; a machine needs at least 16 MiB"),
        ("memory", "size=1M", "size=1M: 1048576 bytes of memory; a machine needs at least 16 MiB"),
        (
            "memory",
            "size=65T",
            "size=65T: 71468255805440 bytes of memory; a machine has at most 8 TiB",
        ),
        (
            "memory",
            "size=16777217",
            "size=16777217: 16777217 bytes of memory are not whole pages of 4096 bytes",
        ),
        ("memory", "size=99999999T", &format!("size=99999999T: {size}")),
        ("memory", "size=12Q", &format!("size=12Q: {size}")),
        ("memory", "size=M", &format!("size=M: {size}")),
        ("memory", "size=1,size=2", "size is given twice"),
        ("memory", "size=", "size has no value; write size=VALUE"),
        ("memory", "64MB", &format!("size=64MB: {size}")),
        ("memory", "64iB", &format!("size=64iB: {size}")),
        ("memory", "MiB", &format!("size=MiB: {size}")),
        ("memory", "size", &format!("size=size: {size}")),
        ("serial", "pty", serial),
        ("serial", "file=", serial),
    ] {
        refuses(flag, value, answer);
    }
}

/// What a platform cannot be like is named, and which one can.
#[test]
fn wrong_models_are_named() {
    for (value, answer) in [
        (
            "sev=hardware,kernel=6.1",
            "kernel is given without sev=software; hardware is driven by this host's kernel",
        ),
        (
            "sev=software,kernel=5.13",
            "kernel=5.13: expected a kernel's version, 5.14 or newer, such as 6.1",
        ),
        ("sev=software,asids=1024", "asids=1024: expected a number up to 1023"),
        ("sev=hardware,write_back=on", "write_back=on: expected never or last-round"),
        (
            "sev=software,write_back=never",
            "write_back is given without sev=hardware; the software platform's memories have no \
             caches of their own",
        ),
    ] {
        refuses("platform", value, answer);
    }
}

/// What is not a platform is named with what would be.
#[test]
fn wrong_platforms_are_named() {
    let keys = "sev, policy, status, overflow, dh_cert_file, session_file, identity, \
                command_cost_us, pin_cost_us, kernel, asids, fail, cek_cert_file, ask_ark_file, \
                write_back";
    let both = "the guest owner makes both, for each other";
    for (value, answer) in [
        ("sev=on", "sev=on: expected software or hardware"),
        ("policy=1", "sev is missing; write sev=VALUE"),
        (
            "sev=software,polcy=1",
            &format!("unknown key \"polcy\"; write key=value,... with the keys {keys}"),
        ),
        (
            "sev=software,policy=garbage",
            "policy=garbage: guest policy \"garbage\" is not a number of 32 bits; write it as \
             0x21 or 33",
        ),
        (
            "sev=software,policy=0x1_00000001",
            "policy=0x1_00000001: guest policy \"0x1_00000001\" is not a number of 32 bits; write \
             it as 0x21 or 33",
        ),
        (
            "sev=software,policy=0x61",
            "policy=0x61: guest policy 0x61 sets reserved bits 0x40; only bits 0-5 and 16-31 exist",
        ),
        (
            "sev=software,policy=0x25",
            "policy=0x25: guest policy 0x25 (NODBG ES SEV) asks for SEV-ES, which is not supported",
        ),
        (
            "sev=software,command_cost_us=1000001",
            "command_cost_us=1000001: expected microseconds, at most 1000000",
        ),
        (
            "sev=hardware,command_cost_us=1",
            "command_cost_us is given without sev=software; hardware takes the time it takes",
        ),
        ("sev=software,overflow=x", "overflow=x: expected promote or poison"),
        ("sev=software,status=x", "status=x: expected list, bitmap or donated"),
        (
            "sev=software,status=bitmap,overflow=poison",
            "overflow is given without status=list; only a list can overflow",
        ),
        (
            "sev=hardware,identity=d",
            "identity is given without sev=software; the keys of hardware are its own",
        ),
        (
            "sev=software,cek_cert_file=f",
            "cek_cert_file is given without sev=hardware; the software platform has its vendor's \
             certificates itself",
        ),
        (
            "sev=hardware,ask_ark_file=f",
            "ask_ark_file is given without cek_cert_file; it is what signed the CEK",
        ),
        (
            "sev=hardware,dh_cert_file=f",
            &format!("dh_cert_file is given without session_file; {both}"),
        ),
        (
            "sev=hardware,session_file=f",
            &format!("session_file is given without dh_cert_file; {both}"),
        ),
    ] {
        refuses("platform", value, answer);
    }
}

/// A command line without what is needed, or with what is not known, says which.
#[test]
fn missing_and_unknown_flags_are_named() {
    assert!(refused("run").contains("--kernel <FILE>"));
    assert!(refused("run --kernel k --floppy f").contains("unexpected argument '--floppy'"));
    assert!(refused("fly").contains("unrecognized subcommand 'fly'"));
    assert!(refused("run --kernel k --report=xml").contains("[possible values: text, json]"));
    assert!(refused("digest --kernel k").contains("--platform"));
    let measurement = BASE64_STANDARD.encode([0; 48]);
    let lone = refused(&format!("digest --kernel k --c-bit 47 --measurement {measurement}"));
    for flag in ["--tik", "--api-major", "--api-minor", "--build-id"] {
        assert!(lone.contains(flag), "{lone}");
    }
    let kernel = parse("run --kernel=").unwrap_err().to_string();
    assert!(kernel.contains("'--kernel <FILE>'"), "{kernel}");
}

/// Wrong usage has the exit code that clap gives it, and help is no error.
#[test]
fn usage_exits_with_2() {
    for (line, code) in [("run", 2), ("run --kernel k --memory size=0", 2), ("--help", 0)] {
        match parse(line).unwrap_err() {
            ArgumentError::Usage(error) => assert_eq!(error.exit_code(), code, "{line}"),
            error @ ArgumentError::OwnerFile(_) => panic!("{error}"),
        }
    }
}

/// The digest is for a C-bit: that given, or that of a platform on this host.
#[test]
fn digest_knows_its_c_bit() {
    let options = digest("--c-bit 51 --cpus boot=4");
    assert_eq!((options.c_bit, options.policy), (CBit::Number(51), Policy::default()));
    assert_eq!(options.config.vcpus.get(), 4);
    assert!(options.check.is_none());
    let options = digest("--platform sev=software,policy=1");
    let software = PlatformKind::Software { identity: None, model: Model::default() };
    assert_eq!(options.c_bit, CBit::OfThisHost(software));
    assert_eq!(options.policy, Policy::new(1).unwrap());
    for bit in [0, 31, 52, 255] {
        let said = refused(&format!("digest --kernel k --c-bit {bit}"));
        assert!(said.ends_with("is not in 32..=51"), "{said}");
    }
}

/// A measurement comes with all that it takes to verify it.
#[test]
fn digest_takes_a_measurement_to_verify() {
    let tik = TempFile::new().unwrap();
    tik.as_file().write_all(&[7; 16]).unwrap();
    let line = |measurement: &str| {
        let tik = tik.as_path().display();
        format!(
            "--c-bit 47 --measurement {measurement} --tik {tik} --api-major 1 --api-minor 51 \
             --build-id 3"
        )
    };
    let check = digest(&line(&BASE64_STANDARD.encode([5; 48]))).check.unwrap();
    assert_eq!(check.measurement, Measurement::from_bytes(&[5; 48]));
    assert_eq!(check.tik.as_bytes(), &[7; 16]);
    assert_eq!(check.version, FirmwareVersion { major: 1, minor: 51, build: 3 });
    let short = refused(&format!("digest --kernel k {}", line("AAAA")));
    assert!(short.ends_with("3 bytes; a launch measurement has 48, in base64"), "{short}");
}

/// The guest owner's files are read, and one of no use is named.
#[test]
fn owner_files_are_read() {
    let file = |text: &str| {
        let file = TempFile::new().unwrap();
        file.as_file().write_all(text.as_bytes()).unwrap();
        file
    };
    let mut bytes = vec![0; 2084];
    bytes[0] = 1;
    let certificate = file(&(BASE64_STANDARD.encode(&bytes) + "\n"));
    let session = file(&BASE64_STANDARD.encode([9; 128]));
    let garbage = file("!");
    let line = |certificate: &TempFile, session: &TempFile| {
        let (certificate, session) = (certificate.as_path(), session.as_path());
        format!(
            "--platform sev=hardware,dh_cert_file={},session_file={}",
            certificate.display(),
            session.display()
        )
    };
    match run(&line(&certificate, &session)).0.sev.unwrap().owner {
        OwnerInput::Files { certificate, .. } => assert_eq!(certificate.as_bytes(), bytes),
        OwnerInput::Own => panic!("the files were not read"),
    }
    let path = |file: &TempFile| file.as_path().display().to_string();
    for (certificate, session, answer) in [
        (&session, &session, format!("{} is not the guest owner's DH certificate", path(&session))),
        (
            &certificate,
            &certificate,
            format!("{} has 2084 bytes; a launch session has 128, in base64", path(&certificate)),
        ),
        (
            &garbage,
            &session,
            format!("{} is not base64, as the tools of guest owners write it", path(&garbage)),
        ),
    ] {
        let said = refused(&format!("run --kernel k {}", line(certificate, session)));
        assert_eq!(said, answer);
    }
    let missing = refused("run --kernel k --platform sev=hardware,dh_cert_file=/-,session_file=/-");
    assert_eq!(missing, "reading /-");
}
