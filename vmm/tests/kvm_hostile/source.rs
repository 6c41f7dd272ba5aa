//! The real source with a real guest, which every destination but a good one leaves running.

use std::fs::{create_dir_all, remove_file};
use std::io::{PipeReader, Read, pipe};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use sevferry::devices::SerialOutput;
use sevferry::machine::config::{Serial, VcpuCount};
use sevferry::machine::{Config, Machine, RunningMachine};
use sevferry::migration::convergence::{Goal, TimeoutStrategy};
use sevferry::migration::handover::Resolution;
use sevferry::migration::handover::journal::{Journal, Side};
use sevferry::migration::progress::{Outcome, Summary};
use sevferry::migration::source::Options;
use sevferry::migration::source::{Ended, send};
use sevferry::migration::watch::{Sight, Wish};
use sevferry::migration::wire::{PlatformBytes, Reason, Transfer, VmId};
use sevferry::page::{Frame, PageRange};
use sevferry::sev::software::{Identity, SoftwareHost, vendor_chain};
use sevferry::sev::target::PlatformCertificates;
use sevferry::vcpu::Stop;
use zerocopy::IntoBytes;

use super::answers::{Destination, HANG, Step};
use super::golden::{self, pvh};

/// How long a destination may say nothing.
pub(crate) const SILENCE: Duration = Duration::from_secs(4);

/// What the user does meanwhile.
#[derive(Debug, Clone, Copy)]
pub(crate) enum User {
    /// Waits.
    Patient,
    /// Cancels once the attempt is in this round; 0 is before the first.
    CancelsIn(u32),
    /// Decides when the handover is in doubt.
    Decides(Resolution),
}

/// A host with a guest that goes on writing to its serial port.
pub(crate) struct Bench {
    machine: Option<RunningMachine>,
    events: Sender<Stop>,
    stops: Receiver<Stop>,
    written: Receiver<()>,
    transfer: Transfer,
    path: PathBuf,
    listener: UnixListener,
    /// The certificates of a platform that the guest may be sent to.
    pub(crate) platform: Option<PlatformBytes>,
    pub(crate) silence: Duration,
}

/// Tells each time that something was written, until the guest is gone: all that there was.
fn tell(mut written: PipeReader, to: &Sender<()>) {
    let mut all_of_a_pipe = vec![0; 1 << 20];
    while let Ok(1..) = written.read(&mut all_of_a_pipe) {
        // Nobody may listen any more.
        to.send(()).unwrap_or_default();
    }
}

impl Bench {
    /// A plain VM, or an SEV guest of the software platform.
    pub(crate) fn new(encrypted: bool) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sevferry-answers-{}-{number}", process::id());
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let (write, written) = channel();
        let (events, stops) = channel();
        let machine = boot(encrypted, write, &events);
        fill(&machine);
        let vm = VmId([u8::try_from(number).unwrap(); 16]);
        let platform = encrypted.then(certificates);
        let transfer = Transfer { vm, epoch: 0 };
        let machine = Some(machine);
        let silence = SILENCE;
        let bench =
            Self { machine, events, stops, written, transfer, path, listener, platform, silence };
        bench.assert_runs();
        bench
    }

    /// The guest writes again.
    #[track_caller]
    pub(crate) fn assert_runs(&self) {
        while self.written.try_recv().is_ok() {}
        // What comes first may have been on its way already.
        for _ in 0..2 {
            self.written.recv_timeout(HANG).expect("the guest writes");
        }
        assert!(self.stops.try_recv().is_err(), "the guest has stopped");
    }

    /// Sends the guest to a destination that does the steps, which are made for the transfer; tells
    /// how that ended, and whether all steps were done.
    pub(crate) fn attempt(
        &mut self,
        user: User,
        steps: impl FnOnce(Transfer) -> Vec<Step>,
    ) -> (Box<Summary>, bool) {
        self.transfer.epoch += 1;
        let (steps, transfer) = (steps(self.transfer), self.transfer);
        let directory = self.path.with_extension("journals");
        create_dir_all(&directory).unwrap();
        let mut journal = Journal::open(&directory, transfer.vm, Side::Source).unwrap();
        let timeout = HANG;
        let downtime = Duration::from_secs(20);
        let options = Options {
            to: format!("unix:{}", self.path.display()).parse().unwrap(),
            connections: 2,
            goal: Goal { downtime, timeout, strategy: TimeoutStrategy::Cancel },
            silence: self.silence,
            transfer,
            abandoned: Vec::new(),
            allow_unchecked: false,
            throttle: true,
        };
        let mut watch = |sight: &Sight<'_>| match user {
            User::CancelsIn(round) if sight.progress.round >= round => {
                Some(Wish::Cancel(Reason::new("tired")))
            }
            User::Decides(resolution) if sight.in_doubt => Some(Wish::Resolve(resolution)),
            User::Patient | User::CancelsIn(_) | User::Decides(_) => None,
        };
        let machine = self.machine.take().expect("the guest is here");
        let (ended, over) = channel();
        let (listener, events) = (&self.listener, &self.events);
        let (end, played) = thread::scope(|scope| {
            let destination = scope.spawn(|| Destination::new(listener, over).play(&steps));
            let end = send(machine, &options, &mut journal, events, &mut watch);
            // It may have ended by itself.
            ended.send(()).unwrap_or_default();
            (end.expect("no guest is lost"), destination.join().unwrap())
        });
        // Connections that nobody accepted are not the next attempt's.
        while self.listener.accept().is_ok() {}
        match end {
            Ended::Moved(summary) => (summary, played),
            Ended::Stayed { machine, summary, .. } => {
                self.machine = machine.map(|machine| *machine);
                self.assert_runs();
                (summary, played)
            }
        }
    }

    /// [`Bench::attempt`], after which the guest runs on here: why it was not sent.
    #[track_caller]
    pub(crate) fn kept(&mut self, steps: impl FnOnce(Transfer) -> Vec<Step>) -> String {
        let (summary, _) = self.attempt(User::Patient, steps);
        reason(&summary)
    }

    /// A good destination gets the guest, after all that came before.
    #[track_caller]
    pub(crate) fn moves(mut self) {
        let platform = self.platform.clone();
        let good = |transfer| super::answers::good(transfer, platform.as_ref());
        let (summary, played) = self.attempt(User::Patient, good);
        assert_eq!(summary.outcome, Outcome::Moved, "{summary}");
        assert!(played, "a good destination was not heard to the end");
        assert!(self.machine.is_none());
    }
}

/// Why the guest stayed.
#[track_caller]
pub(crate) fn reason(summary: &Summary) -> String {
    let Outcome::Kept(reason) = &summary.outcome else { panic!("not kept: {summary}") };
    reason.clone()
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(machine) = self.machine.take() {
            machine.stop();
        }
        remove_file(&self.path).unwrap_or_default();
    }
}

/// More than the buffers of two connections hold: a destination that does not read is noticed.
fn fill(machine: &RunningMachine) {
    let page = golden::content(7);
    for frame in 1024..1536 {
        let range = PageRange::new(Frame(frame), Frame(frame + 1)).unwrap();
        machine.ram().write_pages(range, &page).unwrap();
    }
}

/// The platform that the guest may be sent to.
fn certificates() -> PlatformBytes {
    let host = SoftwareHost::new(Identity::load_or_create(&golden::identity()).unwrap());
    let device = host.open_device().unwrap();
    let target = PlatformCertificates::export(&device, vendor_chain(), None).unwrap();
    PlatformBytes {
        pdh: target.pdh.as_bytes().to_vec(),
        chain: target.chain.as_bytes().to_vec(),
        roots: target.vendor.to_bytes(),
    }
}

fn boot(encrypted: bool, written: Sender<()>, events: &Sender<Stop>) -> RunningMachine {
    let kernel = pvh("writes", &program(encrypted));
    let config = Config {
        kernel: kernel.clone(),
        initramfs: None,
        cmdline: String::new(),
        vcpus: VcpuCount::new(1).unwrap(),
        ram: golden::layout(),
        serial: Serial::Null,
        sev: encrypted.then(|| golden::sev_config(golden::software(None))),
        devices: Vec::new(),
    };
    let (reader, writer) = pipe().unwrap();
    thread::spawn(move || tell(reader, &written));
    let machine = Machine::build(&config, SerialOutput::to(writer)).unwrap();
    remove_file(kernel).unwrap();
    machine.run(events).unwrap()
}

/// Says that it may be migrated, if it is encrypted, and writes a byte to the serial port now and
/// then.
fn program(encrypted: bool) -> Vec<u8> {
    // mov ecx, MSR_KVM_MIGRATION_CONTROL; mov eax, 1; xor edx, edx; wrmsr
    let ready = b"\xb9\x08\x4d\x56\x4b\xb8\x01\0\0\0\x31\xd2\x0f\x30".as_slice();
    // mov dx, 0x3f8; mov al, '.'; again: out dx, al; mov ecx, 0x4000; loop .; jmp again
    let writes = b"\x66\xba\xf8\x03\xb0\x2e\xee\xb9\0\x40\0\0\xe2\xfe\xeb\xf6".as_slice();
    [if encrypted { ready } else { b"" }, writes].concat()
}
