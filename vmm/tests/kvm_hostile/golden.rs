//! Two machines to move, and the streams that move them: the good ones, recorded once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::channel;

use sevferry::devices::SerialOutput;
use sevferry::encryption::{MapGpaRange, Overflow, PageStatus, Status};
use sevferry::machine::config::{
    OwnerInput, PlatformKind, Serial, SevConfig, VcpuCount, ram_layout,
};
use sevferry::machine::pinning::Pinned;
use sevferry::machine::{Config, Machine, PausedMachine};
use sevferry::migration::wire::Closing;
use sevferry::migration::wire::{
    Assessment, Message, NotRunning, Offer, Reason, SessionBytes, Transfer, VmId,
};
use sevferry::migration::wire::{Kind, RoundDigest};
use sevferry::migration::wire::{Proof, Say, Secret, Word};
use sevferry::page::{Frame, PAGE_SIZE, PageRange, RamLayout};
use sevferry::sev::Policy;
use sevferry::sev::send::Sending;
use sevferry::sev::software::{Identity, Model, SoftwareHost, vendor_chain};
use sevferry::sev::target::PlatformCertificates;
use sevferry::vcpu::Stop;
use zerocopy::IntoBytes;

use super::script::{Closes, PAGE_LEN, PageFrame, Part, Script, encode};

/// The smallest machine.
pub(crate) const RAM_BYTES: u64 = 16 << 20;

/// Its frames.
pub(crate) const FRAMES: u64 = RAM_BYTES / PAGE_SIZE;

/// Private frames of the SEV guest in the end; all others are shared.
pub(crate) const PRIVATE: [u64; 6] = [0, 1, 2, 3, 40, 41];

/// Frames with something in them.
pub(crate) const FILLED: [u64; 3] = [8, 9, 200];

pub(crate) const TRANSFER: Transfer = Transfer { vm: VmId([0xa5; 16]), epoch: 3 };

/// The secret of no transfer.
pub(crate) const NOBODYS: Secret = Secret([0xee; 16]);

/// A good stream, and where it may be sent.
pub(crate) struct Golden {
    pub(crate) script: Script,
    pub(crate) platform: Option<PlatformKind>,
}

/// Of a plain VM.
pub(crate) fn plain() -> &'static Golden {
    static GOLDEN: OnceLock<Golden> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let machine = paused(None);
        let rest = rest(&[]);
        let script = Script {
            offer: offer(&machine),
            session: None,
            rounds: rounds(vec![], vec![], rest),
            status: None,
            state: machine.save().unwrap().to_bytes().unwrap(),
            closes: Closes::default(),
        };
        Golden { script, platform: None }
    })
}

/// Of an SEV guest, whose session and packets are for the platform that is always the same here.
pub(crate) fn sev() -> &'static Golden {
    static GOLDEN: OnceLock<Golden> = OnceLock::new();
    GOLDEN.get_or_init(|| {
        let identity = identity();
        let platform = software(Some(identity.clone()));
        let mut machine = paused(Some(software(None)));
        let sending = start_send(&mut machine, &identity);
        let bytes = session_bytes(&sending);
        let first = sealed(&machine, &sending, &PRIVATE);
        // Frame 2 again, and frame 7 was private for a while.
        let second = sealed(&machine, &sending, &[2]);
        let script = Script {
            offer: offer(&machine),
            session: Some(bytes),
            rounds: rounds(first, second, rest(&PRIVATE)),
            status: Some(status().to_bytes()),
            state: machine.save().unwrap().to_bytes().unwrap(),
            closes: Closes::default(),
        };
        Golden { script, platform: Some(platform) }
    })
}

/// A session with the same platform that the packets of [`sev`] are not of.
pub(crate) fn other_session() -> SessionBytes {
    let mut machine = paused(Some(software(None)));
    session_bytes(&start_send(&mut machine, &identity()))
}

fn session_bytes(sending: &Sending) -> SessionBytes {
    let session = sending.session();
    SessionBytes {
        policy: session.policy,
        pdh: session.source_pdh.as_bytes().to_vec(),
        session: session.session.as_bytes().to_vec(),
    }
}

/// Where the destination's platform keeps its keys.
pub(crate) fn identity() -> PathBuf {
    std::env::temp_dir().join(format!("sevferry-hostile-{}.keys", process::id()))
}

/// The serial form of a region list, whatever is in it.
pub(crate) fn regions(regions: &[(u64, u64)]) -> Vec<u8> {
    // Version 1, offered and ready, epoch 0.
    let mut bytes = b"SEVPAGES\x01\0\x06\0\0\0\0\0\0\0\0\0\0\0\0\0".to_vec();
    bytes.extend((regions.len() as u64).to_le_bytes());
    bytes
        .extend(regions.iter().flat_map(|&(base, limit)| [base, limit]).flat_map(u64::to_le_bytes));
    bytes
}

/// The SEV guest's page status in the end.
pub(crate) fn status() -> PageStatus {
    let mut status = PageStatus::new(layout(), Overflow::Promote);
    status.offer_migration();
    status.write_migration_control(1).unwrap();
    let mut shared = 0..FRAMES;
    for private in PRIVATE.into_iter().chain([FRAMES]) {
        if let Ok(range) = PageRange::new(Frame(shared.start), Frame(private)) {
            status.apply(MapGpaRange { range, status: Status::Shared }, &mut |_| ());
        }
        shared.start = private + 1;
    }
    status
}

pub(crate) fn layout() -> RamLayout {
    ram_layout(RAM_BYTES).unwrap()
}

/// What is in a filled frame.
pub(crate) fn content(frame: u64) -> [u8; PAGE_LEN] {
    let mut page = [0; PAGE_LEN];
    page.iter_mut().zip(frame..).for_each(|(byte, value)| *byte = value.to_le_bytes()[0] | 1);
    page
}

/// Two rounds over two connections: private frames on one, the rest on the other.
fn rounds(first: Vec<PageFrame>, second: Vec<PageFrame>, rest: Vec<PageFrame>) -> Vec<Vec<Part>> {
    let part = |frames| Part { frames, said_frames: None };
    let again = PageFrame::shared([(FILLED[0], content(FILLED[0]))]);
    let emptied = PageFrame::zero([300]);
    vec![vec![part(first), part(rest)], vec![part(second), part(vec![again, emptied])]]
}

/// All frames but the private ones.
fn rest(private: &[u64]) -> Vec<PageFrame> {
    let filled = PageFrame::shared(FILLED.map(|frame| (frame, content(frame))));
    let is_zero = |frame: &u64| !private.contains(frame) && !FILLED.contains(frame);
    let zero: Vec<_> = (0..FRAMES).filter(is_zero).collect();
    [filled].into_iter().chain(zero.chunks(64).map(|run| PageFrame::zero(run.to_vec()))).collect()
}

fn sealed(machine: &PausedMachine, sending: &Sending, frames: &[u64]) -> Vec<PageFrame> {
    let (mut header, mut data) = ([0; 52], [0; PAGE_LEN]);
    let pages = frames.iter().map(|&frame| {
        let range = PageRange::new(Frame(frame), Frame(frame + 1)).unwrap();
        sending.seal(machine.ram().user_address(range).unwrap(), &mut header, &mut data).unwrap();
        (frame, header, data)
    });
    vec![PageFrame::private(pages.collect::<Vec<_>>())]
}

fn start_send(machine: &mut PausedMachine, identity: &Path) -> Sending {
    let host = SoftwareHost::new(Identity::load_or_create(identity).unwrap());
    let device = host.open_device().unwrap();
    let target = PlatformCertificates::export(&device, vendor_chain(), None).unwrap();
    let own = machine.platform_certificates().unwrap().unwrap();
    machine.take_launched().unwrap().start_send(&target, own.pdh).unwrap()
}

fn offer(machine: &PausedMachine) -> Offer {
    let machine = machine.offer().to_bytes().unwrap();
    let abandoned = Vec::new();
    Offer { transfer: TRANSFER, session: 0x5e55_1011, connections: 2, abandoned, machine }
}

/// An SEV guest of this platform.
pub(crate) fn sev_config(platform: PlatformKind) -> SevConfig {
    let status = Overflow::Promote.into();
    SevConfig { platform, policy: Policy::default(), status, owner: OwnerInput::Own }
}

/// A machine that has just begun to halt.
fn paused(platform: Option<PlatformKind>) -> PausedMachine {
    let kernel = kernel(platform.is_some());
    let sev = platform.map(sev_config);
    let config = Config {
        kernel: kernel.clone(),
        initramfs: None,
        cmdline: String::new(),
        vcpus: VcpuCount::new(1).unwrap(),
        ram: layout(),
        serial: Serial::Null,
        sev,
        devices: Vec::new(),
    };
    let machine = Machine::build(&config, SerialOutput::nowhere()).unwrap();
    fs::remove_file(kernel).unwrap();
    let (events, _stops) = channel::<Stop>();
    machine.run(&events).unwrap().pause().unwrap()
}

/// The least PVH kernel there is: it halts.
fn kernel(encrypted: bool) -> PathBuf {
    pvh(if encrypted { "sev" } else { "plain" }, &[0xf4, 0xeb, 0xfd, 0])
}

/// A PVH kernel that is this program, in a file of its own.
pub(crate) fn pvh(name: &str, program: &[u8]) -> PathBuf {
    const ENTRY: u32 = 0x20_0000;
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    // A program for x86-64, its two program headers right after this header.
    file.extend([[2_u16, 62], [1, 0]].as_flattened().iter().flat_map(|half| half.to_le_bytes()));
    file.extend([u64::from(ENTRY), 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    file.extend([0_u16, 0, 64, 56, 2, 0, 0, 0].iter().flat_map(|half| half.to_le_bytes()));
    // Loaded: the program; a note: the entry.
    let len = program.len() as u64;
    for (kind, offset, bytes) in [(1_u64 | 7 << 32, 0x100_u64, len), (4, 0x200, 20)] {
        let entry = u64::from(ENTRY);
        let words = [kind, offset, entry, entry, bytes, bytes, 1];
        file.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    }
    file.resize(0x100, 0);
    file.extend(program);
    file.resize(0x200, 0);
    file.extend([4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(b"Xen\0");
    file.extend(ENTRY.to_le_bytes());
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("sevferry-hostile-{}-{name}-{number}.elf", process::id());
    let path = std::env::temp_dir().join(name);
    fs::write(&path, file).unwrap();
    path
}

/// A good message of every kind.
pub(crate) fn one_of_each() -> Vec<(Kind, Vec<u8>)> {
    let reason = Reason::new("no reason");
    let word = |say| Word::new(&NOBODYS, TRANSFER, say).into();
    let end = RoundDigest::default().end(1);
    let closing = |kind, bytes| Closing::new(kind, plain().script.offer.session, 2, bytes);
    let messages = [
        Message::Offer(plain().script.offer.clone()),
        Message::Accept { secret: NOBODYS, platform: None },
        Message::Refuse { reason: reason.clone() },
        Message::Start { encryption: None },
        Message::Started,
        Message::Join { session: plain().script.offer.session, index: 0, proof: Proof([1; 32]) },
        Message::RoundEnd(end),
        Message::RoundOk { round: 1 },
        Message::StatusList(closing(Kind::StatusList, regions(&[]))),
        Message::State(closing(Kind::State, plain().script.state.clone())),
        word(Say::Prepared),
        word(Say::Commit { is_last: false }),
        word(Say::Running),
        word(Say::NotRunning(NotRunning::GivenBack)),
        word(Say::Abandon(reason)),
        word(Say::Released),
        Message::Inquiry(plain().script.offer.clone()),
        Message::Assessment(Assessment::default()),
        Message::Building(Pinned { pages: 1, of: 2 }),
    ];
    let mut all: Vec<_> =
        messages.iter().map(|message| (message.kind(), message.encode().unwrap())).collect();
    let pages = Part { frames: vec![PageFrame::zero([300])], said_frames: None };
    all.push((Kind::Pages, encode(&pages, plain().script.offer.session, 1, &mut 0)));
    assert_eq!(all.len(), Kind::ALL.len());
    all
}

pub(crate) fn software(identity: Option<PathBuf>) -> PlatformKind {
    PlatformKind::Software { identity, model: Model::default() }
}
