//! Debian with a network card, as a plain VM and as an SEV guest: reached through a tap of the host, and
//! moved to another tap while it answers.

use std::io::{BufRead, BufReader, Read, Write, stderr};
use std::net::{Shutdown, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use support::process::{Sevferry, asset, kernels};
use support::scratch::Scratch;

const GUEST: &str = "198.51.100.2";
const PORT: u16 = 5000;

/// How long an answer may take in the lab.
const PATIENCE: Duration = Duration::from_secs(120);

/// Runs a command that must succeed.
#[track_caller]
fn sh(line: &str) {
    let done = Command::new("sh").args(["-c", line]).output().expect("a shell");
    assert!(done.status.success(), "{line}: {}", String::from_utf8_lossy(&done.stderr));
}

/// A bridge with two taps on it, and the host's address; gone when this is dropped.
struct Network;

impl Network {
    fn new() -> Self {
        sh("brctl addbr br0 && ifconfig br0 198.51.100.1 netmask 255.255.255.0 up");
        for tap in ["tap0", "tap1"] {
            sh(&format!("tunctl -t {tap} && brctl addif br0 {tap} && ip link set {tap} up"));
        }
        Self
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        sh("ifconfig br0 down && brctl delbr br0 && tunctl -d tap0 && tunctl -d tap1");
    }
}

/// A guest that sends back what comes at its port, with its card in `tap0`.
fn run(kernel: &str, options: &str) -> Sevferry {
    let initramfs = asset("guest.cpio.gz");
    let cmdline = format!(
        "console=ttyS0 quiet panic=-1 sevferry.devices=yes sevferry.net={GUEST}/24 sevferry.then=echo"
    );
    let guest = ["run", "--kernel", kernel, "--initramfs", &initramfs, "--cmdline", &cmdline];
    let more = "--memory=size=192M --cpus=boot=2 --net=tap=tap0";
    let options = more.split_whitespace().chain(options.split_whitespace());
    let mut guest = Sevferry::start(guest.into_iter().chain(options));
    guest.wait_for("0x1af4 0x1041 virtio-pci");
    guest.wait_for("sevferry-guest: echo=");
    guest
}

/// A stream to the guest and back, each byte of which is looked at.
struct Echo {
    is_over: Arc<AtomicBool>,
    /// How much has come back, each time that more has.
    came: Receiver<u64>,
    sender: JoinHandle<u64>,
    /// How much came back, and the longest time without a byte.
    receiver: JoinHandle<(u64, Duration)>,
}

/// The byte at a place of the stream.
fn byte(at: u64) -> u8 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

impl Echo {
    fn start() -> Self {
        let stream = TcpStream::connect((GUEST, PORT)).expect("the guest answers");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        let (is_over, (progress, came)) = (Arc::new(AtomicBool::new(false)), channel());
        let (mut out, until) = (stream.try_clone().expect("a descriptor"), Arc::clone(&is_over));
        let sender = spawn(move || {
            let mut sent = 0;
            while !until.load(Ordering::Relaxed) {
                let chunk: Vec<_> = (sent..sent + 8192).map(byte).collect();
                out.write_all(&chunk).expect("the connection holds");
                sent += 8192;
            }
            out.shutdown(Shutdown::Write).expect("the connection holds");
            sent
        });
        let mut back = stream;
        let receiver = spawn(move || {
            let (mut buffer, mut gap, mut last) = ([0; 8192], Duration::ZERO, Instant::now());
            let mut count = 0;
            loop {
                let length = back.read(&mut buffer).expect("the connection holds");
                for (at, got) in (count..).zip(buffer.iter().take(length)) {
                    assert_eq!(*got, byte(at), "byte {at} of the stream");
                }
                if length == 0 {
                    return (count, gap);
                }
                count += length as u64;
                progress.send(count).unwrap_or_default();
                gap = gap.max(last.elapsed());
                last = Instant::now();
            }
        });
        Self { is_over, came, sender, receiver }
    }

    /// Waits until so many bytes more have come back.
    #[track_caller]
    fn wait_for(&self, bytes: u64) {
        let more = || self.came.recv_timeout(PATIENCE).expect("the stream goes on");
        let now = self.came.try_iter().last().unwrap_or_else(more);
        while more() < now + bytes {}
    }

    /// All that was sent came back; returns how much that was, and the longest gap.
    #[track_caller]
    fn end(self) -> (u64, Duration) {
        self.is_over.store(true, Ordering::Relaxed);
        let (came, gap) = self.receiver.join().expect("every byte is right");
        assert_eq!(came, self.sender.join().expect("the connection holds"));
        (came, gap)
    }
}

/// Pings without end; the longest time between two answers.
fn ping() -> (Child, JoinHandle<(u32, Duration)>) {
    let mut child = Command::new("ping")
        .args(["-i", "0.1", GUEST])
        .stdout(Stdio::piped())
        .spawn()
        .expect("ping runs");
    let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
    let answers = spawn(move || {
        let (mut count, mut gap, mut last) = (0, Duration::ZERO, Instant::now());
        for line in lines.map_while(Result::ok).filter(|line| line.contains("seq=")) {
            assert!(!line.contains("DUP"), "{line}");
            if count > 0 {
                gap = gap.max(last.elapsed());
            }
            last = Instant::now();
            count += 1;
        }
        (count, gap)
    });
    (child, answers)
}

/// The guest answers pings and sends back a stream, with each kernel, and its address is one that was
/// made up.
#[test]
#[ignore = "needs KVM: scripts/test kvm_net"]
fn the_guest_is_on_the_network() {
    for kernel in kernels() {
        for platform in ["", "--platform=sev=software"] {
            // Anew for each: the host remembers the address of the card before.
            let _network = Network::new();
            let guest = run(&kernel, platform);
            sh(&format!("ping -c 3 -w 60 {GUEST}"));
            let echo = Echo::start();
            echo.wait_for(1 << 20);
            let (bytes, _) = echo.end();
            assert!(bytes >= 1 << 20);
            guest.signal(Signal::TERM);
            guest.end();
        }
    }
}

/// A guest that is moved goes on to answer, by the tap that it has there: no byte of a stream is wrong or
/// lost. A host without the tap is refused by name, and the guest stays.
#[test]
#[ignore = "needs KVM: scripts/test kvm_net"]
fn the_card_moves_with_its_guest() {
    let kernel = kernels().pop().expect("one at least");
    for platform in ["", "--platform=sev=software"] {
        let _network = Network::new();
        let scratch = Scratch::new(&format!("net-{}", platform.len()));
        let (socket, listen) = (scratch.path("api"), format!("unix:{}", scratch.path("listen")));
        let guest = run(&kernel, &format!("{platform} --api-socket={socket}"));
        let receive = |options: &str| {
            let both = platform.split_whitespace().chain(options.split_whitespace());
            let mut there =
                Sevferry::start(["receive", "--listen", &listen].into_iter().chain(both));
            there.wait_for("waiting for a guest");
            there
        };
        let migrate = || {
            let to = ["migrate", "--api-socket", &socket, "--to", &listen, "--timeout-s=150"];
            Sevferry::start(to.into_iter().chain(["--timeout-strategy=stop"])).end()
        };
        let without = receive("--net=tap=tap7");
        let stayed = migrate().with_code(10);
        assert!(stayed.out.contains("there is no interface tap7"), "{stayed}");
        without.signal(Signal::TERM);
        without.end().with_code(0);

        let there = receive("--net=tap=tap1");
        let (mut pings, answers) = ping();
        let echo = Echo::start();
        echo.wait_for(1 << 18);
        migrate().with_code(0);
        echo.wait_for(1 << 18);
        let (bytes, gap) = echo.end();
        pings.kill().expect("ping runs");
        pings.wait().expect("ping ends");
        let (count, ping_gap) = answers.join().expect("no answer came twice");
        assert!(count > 10, "{count} answers");
        let kind = if platform.is_empty() { "plain" } else { "SEV" };
        let (gap, ping_gap) = (gap.as_millis(), ping_gap.as_millis());
        writeln!(
            stderr(),
            "kvm_net: {kind} guest moved: {bytes} bytes there and back, longest gap {gap} ms; {count} \
             pings, longest gap {ping_gap} ms"
        )
        .expect("stderr");
        guest.end().with_code(0);
        there.signal(Signal::TERM);
        there.end();
    }
}
