//! Machines that are paused, saved and made anew in the same process, while real guests work.
//!
//! What a migration does to a machine, without its stream: shared pages are copied, private ones
//! sealed and opened, the rest goes through its serial form.

use std::io::copy;
use std::thread::spawn;
use std::time::Instant;

use sevferry::devices::SerialOutput;
use sevferry::devices::virtio::Condition;
use sevferry::encryption::{Overflow, PageStatus, Status};
use sevferry::machine::compatibility::{HostOffer, MachineOffer, compare};
use sevferry::machine::config::{DeviceConfig, ram_layout};
use sevferry::machine::{
    Config, DEVICES_MAX, DevicesError, Machine, MachineError, MachineState, PausedMachine,
    ReceivingMachine, SavedBetween, Unpaused,
};
use sevferry::page::PAGE_LEN;
use sevferry::page::{Frame, FrameSet, PAGE_SIZE, PageRange};
use sevferry::sev::launch::Launched;
use support::guest::{Console, as_sev, asset, firmware, software, type_line};
use support::short_pipe::ShortPipe;

/// The machine elsewhere: paused there, and gone here.
fn moved(from: PausedMachine, console: &Console) -> PausedMachine {
    moved_with(from, &[], console)
}

/// The same, with devices there.
fn moved_with(
    mut from: PausedMachine,
    devices: &[DeviceConfig],
    console: &Console,
) -> PausedMachine {
    let bytes = from.offer().to_bytes().expect("an offer can be encoded");
    let offer = MachineOffer::from_bytes(&bytes).expect("an offer can be decoded");
    let platform = from.launch().map(|_| software());
    let here = HostOffer::read(platform.as_ref(), devices).expect("KVM answers");
    compare(&offer, &here).expect("a host is compatible with itself");
    let (output, platform) = (console.output(), platform.as_ref());
    let mut to = ReceivingMachine::build(&offer, platform, devices, output, &mut |_pinned| false)
        .expect("the machine can be built");

    let status = from.page_status();
    let launched = status.as_ref().map(|status| send_private(&mut from, &mut to, status));
    let mut page = vec![0; PAGE_LEN];
    for frame in from.ram().layout().ranges().flat_map(PageRange::frames) {
        if is_shared(status.as_ref(), frame) {
            from.ram().read_pages(one(frame), &mut page).expect("RAM");
            to.ram().write_pages(one(frame), &page).expect("RAM");
        }
    }
    let earliest = Instant::now();
    let bytes = from.save().expect("the state can be read").to_bytes().expect("and encoded");
    let state = MachineState::from_bytes(&bytes).expect("a state can be decoded");
    let pages = status.map(|status| {
        PageStatus::from_bytes(&status.to_bytes(), *status.layout(), Overflow::Promote)
            .expect("page status can be decoded")
    });
    drop(from);
    let saved = SavedBetween { earliest, latest: Instant::now() };
    to.finish((&state, saved), pages, launched).expect("the state can be restored")
}

/// Sends every private page through the firmware of both sides.
fn send_private(
    from: &mut PausedMachine,
    to: &mut ReceivingMachine,
    status: &PageStatus,
) -> Launched {
    let target = to.platform_certificates().expect("it exports").expect("an SEV guest");
    let own = from.platform_certificates().expect("it exports").expect("an SEV guest");
    let launched = from.take_launched().expect("it was launched");
    let sending = launched.start_send(&target, own.pdh).expect("SEND_START");
    let initialised = to.take_initialised().expect("nothing was received");
    let receiving = initialised.start_receive(sending.session()).expect("RECEIVE_START");
    let (mut header, mut data) = ([0; 52], [0; PAGE_LEN]);
    for frame in from.ram().layout().ranges().flat_map(PageRange::frames) {
        if !is_shared(Some(status), frame) {
            let address = from.ram().user_address(one(frame)).expect("RAM");
            sending.seal(address, &mut header, &mut data).expect("SEND_UPDATE_DATA");
            let address = to.ram().user_address(one(frame)).expect("RAM");
            receiving.open(address, &header, &data).expect("RECEIVE_UPDATE_DATA");
        }
    }
    sending.finish().expect("SEND_FINISH");
    receiving.finish().expect("RECEIVE_FINISH")
}

fn is_shared(status: Option<&PageStatus>, frame: Frame) -> bool {
    status.is_none_or(|status| status.status(frame) == Ok(Status::Shared))
}

fn one(frame: Frame) -> PageRange {
    pages(frame.0 * PAGE_SIZE, 1)
}

fn pages(gpa: u64, count: u64) -> PageRange {
    let base = gpa / PAGE_SIZE;
    PageRange::new(Frame(base), Frame(base + count)).expect("some pages")
}

/// A guest that is paused and resumed a hundred times counts on without a gap.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn a_guest_does_not_notice_pauses() {
    let mut console = Console::new();
    let mut machine = console.boot(&firmware("count=3000", 1, None));
    for _ in 0..100 {
        console.wait_for("count: ");
        machine = console.resume(machine.pause().expect("it pauses"));
    }
    console.wait_for_pass();
    console.assert_counted_to(3000);
    machine.stop();
}

/// A processor that hangs in a write to a blocked console cannot be paused; the machine says so,
/// and once the console moves, all its processors go on.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn a_machine_that_cannot_be_paused_runs_on() {
    let mut console = Console::new();
    let (mut pipe, writer) = ShortPipe::new(true);
    let config = firmware("cpus=2 count=1000 storm-smp=8M+100:1,100", 2, None);
    let machine = Machine::build(&config, SerialOutput::to(writer)).expect("it can be built");
    let mut machine = machine.run(&console.end_sender).expect("threads for vCPUs");
    // A guest that is paused again and again gets nowhere.
    pipe.wait_until_full();
    let machine = loop {
        machine = match machine.pause() {
            // It is about to write the first byte that does not fit.
            Ok(paused) => console.resume(paused),
            Err(Unpaused::Busy(machine)) => break machine,
            Err(other) => panic!("{other}"),
        };
    };
    let mut to = console.writer();
    let reading = spawn(move || copy(&mut pipe.0, &mut to));
    console.wait_for_pass();
    console.assert_counted_to(1000);
    machine.stop();
    reading.join().expect("no panic").expect("all was copied");
}

/// A guest that has powered off cannot be paused, and that is no failure of the machine's.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn a_machine_that_has_stopped_is_not_paused() {
    let mut console = Console::new();
    let machine = console.boot(&firmware("count=1", 2, None));
    console.wait_for_pass();
    assert!(matches!(machine.pause(), Err(Unpaused::Stopped(_))));
}

/// Pausing finishes every exit: an SEV guest whose processors convert pages all the time finds the
/// answer to every hypercall, and all contents, as it should.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn processors_that_convert_pages_do_not_notice_pauses() {
    let mut console = Console::new();
    let words = "cpus=2 storm-smp=8M+500:3,3000";
    let mut machine = console.boot(&firmware(words, 2, as_sev()));
    console.wait_for("cpus: ");
    for _ in 0..30 {
        machine = console.resume(machine.pause().expect("it pauses"));
    }
    console.wait_for_pass();
    machine.stop();
}

/// A string instruction on a port is whole, however often its guest is paused in the middle of it, and
/// when it is moved.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn port_accesses_are_whole_across_pauses_and_moves() {
    let words = format!("count=1 {}", "ports ".repeat(150));
    for sev in [None, as_sev()] {
        let mut console = Console::new();
        let is_plain = sev.is_none();
        let mut machine = console.boot(&firmware(&words, 1, sev));
        console.wait_for("count: 1");
        for pauses in 0..30 {
            let mut paused = machine.pause().expect("it pauses");
            if is_plain && pauses % 10 == 9 {
                paused = moved(paused, &console);
            }
            machine = console.resume(paused);
            console.wait_for("ports: ok");
        }
        console.wait_for_pass();
        machine.stop();
    }
}

/// A plain VM, moved twice in the middle of its work, has its memory and goes on where it was.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn a_plain_machine_goes_on_elsewhere() {
    let mut console = Console::new();
    let words = "fill=4M+512:1 count=1000 check=4M+512:1 fill=4M+512:2 check=4M+512:2";
    let mut machine = console.boot(&firmware(words, 1, None));
    for stop in ["count: 100", "count: 500"] {
        console.wait_for(stop);
        let paused = moved(machine.pause().expect("it pauses"), &console);
        machine = console.resume(paused);
    }
    console.wait_for_pass();
    console.assert_counted_to(1000);
    machine.stop();
}

/// An SEV guest with two processors, moved while both convert and rewrite pages: every page is
/// there, with its content and its status, and what was launched is still known.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn an_sev_guest_goes_on_elsewhere() {
    let mut console = Console::new();
    // Many shared pages, because sealing the others takes long where all is emulated.
    let words =
        "ready share=10M+1500 share=3M+16 fill=3M+16:9 fill=4M+64:1 cpus=2 storm-smp=8M+400:3,600
                 storm=8M+400:4,300 check=3M+16:9 check=4M+64:1 tables";
    let mut machine = console.boot(&firmware(words, 2, as_sev()));
    let launched = *machine.launch().expect("an SEV guest");
    for stop in ["cpus: ", "storm: "] {
        console.wait_for(stop);
        assert_eq!(machine.migratable(), Ok(()));
        let paused = moved(machine.pause().expect("it pauses"), &console);
        machine = console.resume(paused);
    }
    console.wait_for_pass();
    let report = machine.stop().sev.expect("an SEV guest");
    assert_eq!(report.launch.digest, launched.digest);
    assert_eq!(report.launch.measurement, launched.measurement);
    assert!(report.guest.is_some(), "the firmware knows the guest");
    assert_eq!(report.pages.summary.migratable, Ok(()));
}

/// What the guest writes, through either view, and what it converts is logged once, and page
/// status comes with it.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn changes_are_logged_whatever_view_they_are_made_through() {
    for sev in [None, as_sev()] {
        let mut console = Console::new();
        let converts = sev.is_some();
        let words = "count=20 fill=4M+100:7 share=6M+4 fill=6M+4:2 count=2000 check=4M+100:7";
        let machine = console.boot(&firmware(words, 1, sev));
        console.wait_for("count: 1");
        let mut changed = FrameSet::new(machine.ram().layout());
        let mut log = machine.log_changes().expect("KVM can log");
        console.wait_for("fill: 0x600000+4");
        let status = log.take(&mut changed).expect("KVM tells");
        for frame in pages(4 << 20, 100).frames().chain(pages(6 << 20, 4).frames()) {
            assert!(changed.contains(frame), "{frame} was written; SEV: {converts}");
        }
        assert!(changed.count() < 1000, "{} frames were not all written", changed.count());
        let shared = status.map(|status| status.status(Frame(0x600)));
        assert_eq!(shared, converts.then_some(Ok(Status::Shared)));
        changed.clear();
        log.take(&mut changed).expect("KVM tells");
        assert!(!changed.contains(Frame(0x410)), "it was logged once; SEV: {converts}");
        log.stop().expect("KVM stops");
        console.wait_for_pass();
        machine.stop();
    }
}

/// Debian's older kernel, as a plain VM.
fn linux(cmdline: &str, vcpus: u64) -> Config {
    let kernel = ["vmlinuz-6.1", "vmlinuz-6.12"].map(asset).into_iter().find(|path| path.exists());
    Config {
        kernel: kernel.expect("a kernel among the assets: scripts/fetch gets them"),
        initramfs: Some(asset("guest.cpio.gz")),
        cmdline: cmdline.to_owned(),
        ram: ram_layout(192 << 20).expect("a size of RAM"),
        ..firmware("", vcpus, None)
    }
}

/// Every slot of the PCI bus can have a device, and no more; Linux finds them all, and the last one
/// works also where the guest is moved to.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn a_bus_that_is_full_goes_on_elsewhere() {
    let mut console = Console::new();
    let mut config = linux("console=ttyS0 quiet sevferry.devices=yes", 1);
    config.devices = vec![DeviceConfig::Rng { source: "/dev/urandom".into() }; DEVICES_MAX + 1];
    let refused = Machine::build(&config, console.output()).expect_err("there is no slot 32");
    assert!(matches!(refused, MachineError::Devices(DevicesError::TooMany)), "{refused}");
    config.devices.pop();
    let machine = console.boot(&config);
    console.wait_for("pci=0000:00:1f.0 0x1af4 0x1044 virtio-pci");
    console.wait_for("sevferry-guest: ready=");
    let paused = machine.pause().expect("it pauses");
    let machine = console.resume(moved_with(paused, &config.devices, &console));
    type_line(
        &machine,
        "stty -echo; cd /sys/class/misc/hw_random; echo virtio_rng.30 >rng_current; \
                         echo; echo current $(cat rng_current) $(dd if=/dev/hwrng bs=9 count=1 | wc -c)",
    );
    console.wait_for("current virtio_rng.30 9");
    let report = machine.stop();
    assert_eq!(report.devices.len(), DEVICES_MAX);
    assert!(report.devices.iter().all(|device| device.condition == Condition::Used), "{report:?}");
}

/// Debian with two processors, moved while it prints its clocks: its lines neither repeat nor miss,
/// its clocks go on with the host's, it still hears its serial port, and its kernel has nothing to
/// complain of.
#[test]
#[ignore = "needs KVM: scripts/test kvm_state"]
fn linux_goes_on_elsewhere_and_its_clocks_do_not_jump() {
    let mut console = Console::new();
    let mut machine = console.boot(&linux("console=ttyS0", 2));
    console.wait_for("sevferry-guest: ready=");
    // From here on no prompt and no echo, which would come between the lines.
    type_line(
        &machine,
        "stty -echo; dmesg -c >/dev/null; while read line; do eval \"$line\"; done",
    );
    type_line(
        &machine,
        "n=0; while n=$((n + 1)); do read up rest </proc/uptime; \
                         echo clock $n $up $(date +%s); usleep 50000; done & clock=$!",
    );
    for _ in 0..3 {
        (0..5).for_each(|_| drop(console.wait_for("clock ")));
        machine = console.resume(moved(machine.pause().expect("it pauses"), &console));
    }
    (0..5).for_each(|_| drop(console.wait_for("clock ")));
    type_line(
        &machine,
        "kill $clock; echo; dmesg; echo complaints=$(dmesg | \
                         grep -ciE 'lockup|stall|unstable|bug|warning'); poweroff -f",
    );
    let complaints = console.wait_for("complaints=");
    console.wait_for_power_off();
    machine.stop();
    assert_eq!(complaints, "complaints=0", "{}", console.transcript());
    assert_clocks(&console);
}

/// Lines `clock N UPTIME EPOCH` are numbered without a gap, and both clocks go as far from line to
/// line as the host's, give or take a second.
#[track_caller]
fn assert_clocks(console: &Console) {
    let parse = |(when, line): &(Instant, String)| {
        let mut words = line.strip_prefix("clock ")?.split(' ');
        let mut number = || words.next()?.parse::<f64>().ok();
        Some((*when, number()?, number()?, number()?))
    };
    let clocks: Vec<_> = console.seen.iter().filter_map(parse).collect();
    assert!(clocks.len() >= 15, "{}", console.transcript());
    for ((when, count, uptime, epoch), next) in clocks.iter().zip(clocks.iter().skip(1)) {
        let passed = next.0.duration_since(*when).as_secs_f64();
        let fail = || format!("{count} after {passed} s; {}", console.transcript());
        assert!((next.1 - count - 1.0).abs() < f64::EPSILON, "{}", fail());
        for (clock, tolerance) in [(next.2 - uptime, 1.0), (next.3 - epoch, 2.0)] {
            assert!(clock >= 0.0 && (clock - passed).abs() <= tolerance, "{}", fail());
        }
    }
}
