//! How `sevferry run` begins and ends, as a user or a script sees it: codes, signals, terminal, files.

use std::arch::x86_64::__cpuid;
use std::fs::{read, read_to_string};
use std::io::Read;
use std::path::Path;
use std::thread::yield_now;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use rustix::process::Signal;
use sevferry::control::api::{Request, Response, State};
use sevferry::control::ask;
use sevferry::sev::Policy;
use sevferry::sev::session::OwnerSession;
use sevferry::sev::software::Identity;
use support::process::{PASS, Sevferry, asset, kernels};
use support::scratch::Scratch;
use support::short_pipe::ShortPipe;
use support::terminal::Terminal;
use support::unread::Unread;
use zerocopy::IntoBytes;

/// Arguments of `sevferry run` for guest-firmware: options, then the words of its scenario.
fn firmware(options: &str, words: &str) -> Vec<String> {
    let kernel = asset("guest-firmware.elf");
    let guest = ["run", "--kernel", &kernel, "--memory=size=64M", "--cmdline", words];
    guest.into_iter().chain(options.split_whitespace()).map(str::to_owned).collect()
}

/// Each way in which a guest ends has its exit code.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn the_exit_code_says_how_the_guest_ended() {
    for platform in ["", "--platform=sev=software"] {
        for (then, code) in [("poweroff", 0), ("reboot", 0), ("triple-fault", 11)] {
            let options = format!("--no-reboot {platform}");
            let words = format!("cpus then={then}");
            Sevferry::start(firmware(&options, &words)).end().with_code(code);
        }
    }
}

/// Without `--no-reboot` a guest that resets boots again, and a crash is still a crash.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn a_reset_boots_again() {
    let mut sevferry = Sevferry::start(firmware("--platform=sev=software", "ready then=reboot"));
    for _ in 0..3 {
        sevferry.wait_for("launch digest");
        sevferry.wait_for("guest-firmware: start");
        sevferry.wait_for(PASS);
    }
    sevferry.signal(Signal::TERM);
    sevferry.end().with_code(0);
    let crashed = Sevferry::start(firmware("", "then=triple-fault")).end().with_code(11);
    crashed.saying("sevferry: the guest crashed (triple fault)");
}

/// A user's signals end the guest in order, wherever it is.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn signals_end_it_in_order() {
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        for words in ["count=1 then=halt", "count=1000000000"] {
            let options = "--platform=sev=software --cpus=boot=2 --report=json";
            let mut sevferry = Sevferry::start(firmware(options, words));
            sevferry.wait_for("count: 1");
            sevferry.signal(signal);
            sevferry.end().with_code(0).report();
        }
    }
}

/// `SIGUSR1` reports while the guest runs on.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn a_signal_reports_while_the_guest_runs() {
    let words = "ready share=16M+16 count=1000000000";
    let mut sevferry = Sevferry::start(firmware("--platform=sev=software", words));
    sevferry.wait_for("count: 1");
    for _ in 0..2 {
        sevferry.signal(Signal::USR1);
        sevferry.wait_for("page status: 1 hypercalls (1 shared, 0 private, 0 refused, 0 clipped)");
        sevferry.wait_for("pages: 16 shared, 16368 private");
        sevferry.wait_for("migration: READY");
        sevferry.wait_for("0x1000000            0x100ffff         16");
        sevferry.wait_for("count: ");
    }
    sevferry.signal(Signal::TERM);
    let ended = sevferry.end().with_code(0);
    // Two, and none at the end: nobody asked for it.
    assert_eq!(ended.err.matches("page status:").count(), 2, "{ended}");
}

/// A guest that prints what nobody reads, on the pipe that the messages go to as well, is ended as any
/// other.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn output_that_nobody_reads_keeps_nobody() {
    let scratch = Scratch::new("unread");
    let api = scratch.path("api");
    let options = format!("--api-socket={api} --report --platform=sev=software");
    let api = Path::new(&api);
    for signal in [Some(Signal::TERM), None] {
        let process = Unread::start(true, firmware(&options, "count=1000000000"));
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match ask(api, &Request::Status) {
                Ok(Response::Status(status)) if status.state == State::Running => break,
                other => assert!(Instant::now() < deadline, "it does not run: {other:?}"),
            }
            yield_now();
        }
        assert!(matches!(ask(api, &Request::Report), Ok(Response::Report(_))));
        match signal {
            Some(signal) => process.signal(signal),
            None => assert_eq!(ask(api, &Request::Quit).expect("an answer"), Response::Accepted),
        }
        assert_eq!(process.end(), Some(0));
    }
}

/// A file gets what the guest prints, after what was there; nowhere gets nothing.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn serial_output_goes_where_it_should() {
    let scratch = Scratch::new("serial");
    let file = scratch.file("serial", "before\n");
    let options = format!("--serial=file={file}");
    let ended = Sevferry::start(firmware(&options, "count=2")).end().with_code(0);
    let printed = read_to_string(&file).expect("it is there");
    assert!(printed.starts_with("before\nguest-firmware: start"), "{printed}");
    assert!(printed.ends_with("count: 2\r\nguest-firmware: PASS\r\n"), "{printed}");
    assert!(ended.out.is_empty(), "{ended}");
    let ended = Sevferry::start(firmware("--serial=null", "count=2")).end().with_code(0);
    assert!(ended.out.is_empty() && ended.err.is_empty(), "{ended}");
}

/// What `run` cannot use it names, and says why; nothing of a guest was started.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn run_names_what_it_cannot_use() {
    let scratch = Scratch::new("unusable");
    let kernel = kernels().remove(0);
    let image = read(&kernel).expect("a kernel");
    let half = scratch.file("half", image.get(..image.len() / 2).unwrap_or_default());
    let (missing, text) = (scratch.path("missing"), scratch.file("text", "hello"));
    let large = scratch.zeros("large", 512 << 20);
    let serial = scratch.path("missing/serial");
    for (options, name, message) in [
        (format!("--kernel {missing}"), &missing, "No such file or directory"),
        (format!("--kernel {text}"), &text, "is not a bzImage nor a PVH ELF"),
        (format!("--kernel {half}"), &half, "copy it again"),
        (format!("--kernel {kernel} --memory size=32M"), &kernel, "give the guest at least"),
        (format!("--kernel {kernel} --initramfs {missing}"), &missing, "No such file or directory"),
        (format!("--kernel {kernel} --initramfs {large}"), &large, "give the guest at least"),
        (format!("--kernel {kernel} --serial file={serial}"), &serial, "No such file or directory"),
    ] {
        for platform in ["", "--platform sev=software"] {
            let options = format!("run {options} {platform}");
            let ended = Sevferry::start(options.split_whitespace()).end().with_code(1);
            let ended = ended.saying(name).saying(message);
            assert!(ended.out.is_empty() && !ended.err.contains("launch"), "{options}: {ended}");
        }
    }
}

/// More memory than the host's processors can address is refused with their width.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn memory_beyond_the_hosts_address_width_names_the_width() {
    let [bits, ..] = __cpuid(0x8000_0008).eax.to_le_bytes();
    if bits >= 43 {
        // A machine has no more than that.
        return;
    }
    let kernel = asset("guest-firmware.elf");
    let ended = Sevferry::start(["run", "--kernel", &kernel, "--memory", "8T"]).end();
    let ended = ended.with_code(1).saying(&format!("this host's processors address {bits} bits"));
    ended.saying("give the guest less memory");
}

/// Somebody else who has the pipe has made it non-blocking, and reads late: every line of the guest's is
/// there, once and whole.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn a_late_reader_of_a_non_blocking_output_gets_every_line() {
    const LAST: usize = 1500;
    let (mut pipe, writer) = ShortPipe::new(true);
    let guest = firmware("", &format!("count={LAST}"));
    let sevferry = Sevferry::start_with_output(guest, writer.into());
    pipe.wait_until_full();
    let mut printed = String::new();
    pipe.0.read_to_string(&mut printed).expect("text");
    let counts = printed.lines().filter_map(|line| line.strip_prefix("count: "));
    let expected = (1..=LAST).map(|count| count.to_string());
    assert!(counts.eq(expected.collect::<Vec<_>>()), "{printed}");
    assert!(printed.ends_with("guest-firmware: PASS\r\n"), "{printed}");
    sevferry.end().with_code(0);
}

/// A guest that prints to a pipe that nobody reads ends when it is to, and at once.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn a_guest_whose_output_nobody_reads_is_ended_in_order() {
    let (pipe, writer) = ShortPipe::new(false);
    let sevferry = Sevferry::start_with_output(firmware("", "count=1000000000"), writer.into());
    pipe.wait_until_full();
    sevferry.signal(Signal::TERM);
    let ended = sevferry.end().with_code(0);
    assert!(!ended.err.contains("did not stop"), "{ended}");
    drop(pipe);
}

/// On a host without SEV, asking for it fails at once and says what is missing.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn hardware_that_is_not_there_is_named() {
    if Path::new("/dev/sev").exists() {
        return;
    }
    let ended = Sevferry::start(firmware("--platform=sev=hardware", "")).end().with_code(1);
    let ended = ended.saying("/dev/sev").saying("sev=software");
    assert!(ended.out.is_empty(), "{ended}");
}

/// While the guest runs the terminal is raw; however that ends, it is as it was before.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn the_terminal_is_as_it_was_after_every_ending() {
    type Act = fn(&Sevferry, &mut Terminal);
    let quit: Act = |_, terminal| terminal.press("\x01x");
    let kill: Act = |sevferry, _| sevferry.signal(Signal::TERM);
    let hang_up: Act = |sevferry, _| sevferry.signal(Signal::HUP);
    let nothing: Act = |_, _| ();
    let endless = "count=1 then=halt";
    for (options, words, act, code) in [
        ("", endless, quit, 0),
        ("--platform=sev=software", endless, quit, 0),
        ("", endless, kill, 0),
        ("", endless, hang_up, 0),
        ("", "count=1 then=poweroff", nothing, 0),
        ("--no-reboot", "count=1 then=reboot", nothing, 0),
        ("", "count=1 then=triple-fault", nothing, 11),
    ] {
        let mut terminal = Terminal::open();
        let before = terminal.modes();
        let mut sevferry = Sevferry::start_with_input(firmware(options, words), terminal.input());
        sevferry.wait_for("Ctrl-A x ends the guest");
        if code == 0 && words == endless {
            sevferry.wait_for("count: 1");
            assert_ne!(terminal.modes(), before, "{options}: the terminal is not raw");
        }
        act(&sevferry, &mut terminal);
        sevferry.end().with_code(code);
        assert_eq!(terminal.modes(), before, "{options} {words}");
    }
}

/// A machine that could not be built leaves the terminal alone too.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn the_terminal_is_as_it_was_after_an_error() {
    let terminal = Terminal::open();
    let before = terminal.modes();
    let run = ["run", "--kernel", "/nowhere/kernel"];
    Sevferry::start_with_input(run, terminal.input()).end().with_code(1).saying("/nowhere/kernel");
    assert_eq!(terminal.modes(), before);
}

/// Keys are the guest's, Ctrl-C too, but for those after Ctrl-A.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn a_terminal_is_the_guests_console() {
    let mut terminal = Terminal::open();
    let (kernel, initramfs) = (kernels().remove(0), asset("guest.cpio.gz"));
    let guest = ["run", "--kernel", &kernel, "--initramfs", &initramfs];
    let options = ["--cmdline=console=ttyS0 quiet", "--platform=sev=software"];
    let mut sevferry =
        Sevferry::start_with_input(guest.into_iter().chain(options), terminal.input());
    sevferry.wait_for("sevferry-guest: ready=");
    sevferry.wait_for("This guest's userspace is busybox");
    terminal.press("echo six times seven is $((6 * 7))\r");
    sevferry.wait_for("six times seven is 42");
    // What is echoed does not have the sum. It is printed by the program that Ctrl-C is to end: before
    // there is one, Ctrl-C is for the shell, which goes on and starts it.
    terminal.press("sh -c 'echo started $((1 + 1)); exec sleep 1000'\r");
    sevferry.wait_for("started 2");
    terminal.press("\x03echo interrupted, code $?\r");
    sevferry.wait_for("interrupted, code 130");
    terminal.press("\x01h");
    sevferry.wait_for("Ctrl-A r  report page status");
    terminal.press("\x01r");
    sevferry.wait_for("migration: READY");
    terminal.press("poweroff -f\r");
    sevferry.end().with_code(0);
}

/// However much is typed to a guest that reads nothing, our own keys are heard.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn our_keys_work_when_the_guest_does_not_read() {
    let mut terminal = Terminal::open();
    let guest = firmware("--platform=sev=software", "count=1 then=halt");
    let mut sevferry = Sevferry::start_with_input(guest, terminal.input());
    sevferry.wait_for(PASS);
    terminal.press(&"unread ".repeat(100));
    terminal.press("\x01h");
    sevferry.wait_for("Ctrl-A r  report page status");
    terminal.press("\x01r");
    sevferry.wait_for("page status:");
    terminal.press("\x01x");
    sevferry.end().with_code(0);
}

/// A session with a platform's certificate starts a guest on that platform, again and again, and on no
/// other; and the guest's owner can verify what was measured.
#[test]
#[ignore = "needs KVM: scripts/test kvm_cli"]
fn a_guest_owner_has_a_session_with_one_platform_only() {
    let scratch = Scratch::new("identity");
    let (platform, other) = (scratch.path("platform"), scratch.path("other"));
    // Made by sevferry, so that what is read here was written by it.
    let make =
        |identity: &str| firmware(&format!("--platform=sev=software,identity={identity}"), "");
    Sevferry::start(make(&platform)).end().with_code(0);
    Sevferry::start(make(&other)).end().with_code(0);
    let identity = Identity::load_or_create(Path::new(&platform)).expect("the identity");
    let owner =
        OwnerSession::new(identity.pdh_certificate(), Policy::default()).expect("a session");
    let certificate =
        scratch.file("certificate", BASE64_STANDARD.encode(owner.certificate.as_bytes()));
    let session = scratch.file("session", BASE64_STANDARD.encode(owner.session.as_bytes()));
    let tik = scratch.file("tik", owner.keys.tik.as_bytes());
    let files = format!("dh_cert_file={certificate},session_file={session}");

    let options = |identity| format!("--platform=sev=software,identity={identity},{files}");
    for _ in 0..2 {
        let run = firmware(&format!("{} --report=json", options(&platform)), "");
        let ended =
            Sevferry::start(run).end().with_code(0).saying("(for the guest owner to verify)");
        let report = ended.report();
        let of_launch = |name: &str| {
            let value = report.pointer(&format!("/sev/{name}")).expect("it is in every report");
            value.as_str().map_or_else(|| value.to_string(), str::to_owned)
        };
        let mut verify =
            format!("digest --kernel {} --memory size=64M", asset("guest-firmware.elf"));
        for (option, name) in [
            ("--c-bit", "c_bit"),
            ("--measurement", "launch_measurement"),
            ("--api-major", "api_major"),
            ("--api-minor", "api_minor"),
            ("--build-id", "build_id"),
        ] {
            verify += &format!(" {option} {}", of_launch(name));
        }
        let verify = |cmdline| {
            let tik = ["--tik", &tik, "--cmdline", cmdline];
            Sevferry::start(verify.split_whitespace().chain(tik)).end()
        };
        let verified = verify("").with_code(0);
        assert!(verified.out.contains("launch measurement: verified"), "{verified}");
        verify("one=change").with_code(1).saying("the launch measurement does not match");
    }

    let ended = Sevferry::start(firmware(&options(&other), "")).end().with_code(1);
    let ended = ended.saying("LAUNCH_START");
    assert!(ended.out.is_empty(), "the guest ran; {ended}");
}
