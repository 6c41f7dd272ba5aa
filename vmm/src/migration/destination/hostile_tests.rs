//! Our own source's stream, cut at every byte and damaged at random, into our own destination.
//!
//! From the first page connection to the machine's state, without KVM. `vmm/tests/kvm_hostile` has
//! the rest of the way, and the lies that need thought.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use std::{process, thread};

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::arrivals::Arrivals;
use super::intake::take_in;
use super::joining::accept_connections;
use super::placer::PageTarget;
use crate::encryption::{MapGpaRange, Overflow, PageStatus, Status};
use crate::migration::account::Tally;
use crate::migration::net::{Endpoint, Link, Listener, Stream};
use crate::migration::source::sender::{PageSender, Round};
use crate::migration::wire::{
    Closing, FRAME_HEADER_LEN, Kind, Message, Offer, PageKind, PagesHeader, PayloadDigest, Secret,
    Transfer, VmId,
};
use crate::page::{Frame, FrameSet, PAGE_LEN, PAGE_SIZE, PageRange};
use crate::sev::Policy;
use crate::sev::receive::Receiving;
use crate::sev::software::fixture::{Fixture, RAM_LEN};
use crate::text::chain_of;

const PAGES: u64 = RAM_LEN / PAGE_SIZE;
const SESSION: u64 = 0x1234_5678_9abc_def0;
const SECRET: Secret = Secret([0x42; 16]);
const STATE: &[u8] = b"the state of a machine";

/// By then all of a bad stream has arrived. If the source still seems to be alive, the test stops the destination.
const SOON: Duration = Duration::from_millis(100);

/// A good stream takes less on any machine.
const LATE: Duration = Duration::from_secs(120);

/// The private frame; all others are shared in the end.
const PRIVATE: u64 = 1;

fn page(byte: u8) -> [u8; PAGE_LEN] {
    std::array::from_fn(|at| byte ^ at.to_le_bytes()[0])
}

fn at(frame: u64) -> GuestAddress {
    GuestAddress(frame * PAGE_SIZE)
}

/// What a stream must bring.
struct Golden {
    source: Fixture,
    target: Fixture,
    receiving: Receiving,
    /// What is said on the control connection after the last round, and before on two page
    /// connections.
    streams: [Vec<u8>; 3],
}

impl Golden {
    /// Recorded from our own senders, in two rounds.
    fn record() -> Self {
        let (source, target) = (Fixture::new(), Fixture::new());
        let layout = source.memory.layout();
        let (own, to) = (source.certificates(), target.certificates());
        let sending = source.launched(Policy::default()).start_send(&to, own.pdh).unwrap();
        let receiving = target.initialised().start_receive(sending.session()).unwrap();
        let mut status = PageStatus::new(layout, Overflow::Promote);
        for (base, limit) in [(0, PRIVATE), (PRIVATE + 1, PAGES)] {
            let range = PageRange::new(Frame(base), Frame(limit)).unwrap();
            status.apply(MapGpaRange { range, status: Status::Shared }, &mut |_| ());
        }
        let pairs = [0, 1].map(|_| UnixStream::pair().unwrap());
        let (ends, tapes): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        let tapes: Vec<_> = tapes.into_iter().map(|tape| thread::spawn(|| played(tape))).collect();
        let mut senders: Vec<_> = (0..)
            .zip(ends)
            .map(|(index, end)| {
                PageSender::join(Stream::Unix(end), (SESSION, index), &SECRET, LATE).unwrap()
            })
            .collect();
        let (sent, stop) = (Tally::default(), AtomicBool::new(false));
        let rounds: [&[&[u64]]; 2] = [&[&[0, PRIVATE], &[2, 3, 4, 5, 6, 7]], &[&[PRIVATE], &[3]]];
        for (number, parts) in (1..).zip(rounds) {
            source.guest_writes(PRIVATE * PAGE_SIZE, &page(number));
            source.memory.host().write_slice(&page(number + 1), at(3)).unwrap();
            for (sender, frames) in senders.iter_mut().zip(parts) {
                let round = Round {
                    number: number.into(),
                    ram: &source.memory,
                    frames: &set(frames, layout),
                    shared: &set(&[0, 2, 3, 4, 5, 6, 7], layout),
                    sending: Some(&sending),
                    stop: &stop,
                    cursor: AtomicU64::new(0),
                    tally: &sent,
                };
                sender.send_round(&round).unwrap();
            }
        }
        drop(senders);
        let closing = |kind, bytes| Closing::new(kind, SESSION, 2, bytes);
        let list = Message::StatusList(closing(Kind::StatusList, status.to_bytes()));
        let control = [list, Message::State(closing(Kind::State, STATE.to_vec()))];
        let control = control.iter().flat_map(|message| message.encode().unwrap()).collect();
        let mut tapes = tapes.into_iter().map(|tape| tape.join().unwrap());
        let streams = [control, tapes.next().unwrap(), tapes.next().unwrap()];
        Self { source, target, receiving, streams }
    }

    /// What the destination makes of these streams: the machine's state, or why not.
    fn receive(
        &self,
        listener: &ListeningHost,
        streams: &[Vec<u8>; 3],
        patience: Duration,
    ) -> Result<Vec<u8>, String> {
        self.receive_and(listener, streams, patience, drop)
    }

    /// The same; the second page connection goes on with `after`, on a thread of its own.
    fn receive_and(
        &self,
        listener: &ListeningHost,
        streams: &[Vec<u8>; 3],
        patience: Duration,
        after: impl FnOnce(UnixStream) + Send,
    ) -> Result<Vec<u8>, String> {
        let layout = self.target.memory.layout();
        for frame in 0..PAGES {
            self.target.memory.host().write_slice(&[0; PAGE_LEN], at(frame)).unwrap();
        }
        let (near, far) = UnixStream::pair().unwrap();
        let [_, second] = [&streams[1], &streams[2]].map(|bytes| {
            let mut stream = UnixStream::connect(&listener.path).unwrap();
            stream.write_all(bytes).unwrap();
            stream
        });
        let (arrivals, arrived) = (Arrivals::new(layout).unwrap(), Tally::default());
        let target = PageTarget {
            ram: &self.target.memory,
            arrivals: &arrivals,
            receiving: Some(&self.receiving),
            session: SESSION,
            tally: &arrived,
            silence: LATE,
        };
        let transfer = Transfer { vm: VmId([1; 16]), epoch: 1 };
        let (abandoned, machine) = (Vec::new(), Vec::new());
        let offer = Offer { transfer, session: SESSION, connections: 2, abandoned, machine };
        let begun = Instant::now();
        thread::scope(|scope| {
            scope.spawn(|| say_after_two_rounds(far, &streams[0]));
            scope.spawn(|| after(second));
            let mut stop = || begun.elapsed() > patience;
            let mut link = Link::new(Stream::Unix(near), LATE);
            let text = |cause: &dyn std::error::Error| chain_of(cause);
            let mut placers =
                accept_connections(&listener.socket, &offer, &SECRET, LATE, &mut stop)
                    .map_err(|cause| text(&cause))?;
            let delivered = take_in(&mut link, &mut placers, &target, &mut stop)
                .map_err(|cause| text(&cause))?;
            let list = delivered.status.ok_or("no region list")?;
            let status = PageStatus::from_bytes(&list, layout, Overflow::Promote);
            let status = status.map_err(|cause| text(&cause))?;
            arrivals.check(Some(&status)).map_err(|cause| text(&cause))?;
            assert_eq!(delivered.rounds, 2);
            Ok(delivered.state)
        })
    }

    /// The guest is the one that was sent.
    fn assert_equal(&self) {
        for frame in (0..PAGES).filter(|frame| *frame != PRIVATE) {
            let (mut here, mut there) = ([0; PAGE_LEN], [0; PAGE_LEN]);
            self.target.memory.host().read_slice(&mut here, at(frame)).unwrap();
            self.source.memory.host().read_slice(&mut there, at(frame)).unwrap();
            assert!(here == there, "frame {frame} differs");
        }
        let private = self.target.guest_sees(PRIVATE * PAGE_SIZE, PAGE_LEN);
        assert!(private == page(2), "the private frame differs");
    }
}

fn set(frames: &[u64], layout: crate::page::RamLayout) -> FrameSet {
    let mut set = FrameSet::new(layout);
    for &frame in frames {
        set.insert_range(PageRange::new(Frame(frame), Frame(frame + 1)).unwrap());
    }
    set
}

fn played(mut tape: UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    tape.read_to_end(&mut bytes).unwrap();
    bytes
}

/// The source's control connection; it ends early if the destination does.
fn say_after_two_rounds(mut stream: UnixStream, bytes: &[u8]) {
    let mut ok = [0; 2 * (FRAME_HEADER_LEN + 4)];
    if !bytes.is_empty() && stream.read_exact(&mut ok).is_ok() {
        // A destination that has refused already does not listen.
        stream.write_all(bytes).unwrap_or_default();
    }
}

/// Where a destination listens.
struct ListeningHost {
    path: PathBuf,
    socket: Listener,
}

impl ListeningHost {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sevferry-cut-{}-{number}", process::id()));
        let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
        Self { socket: Listener::bind(&endpoint).unwrap(), path }
    }
}

/// The stream as it was recorded is accepted, and the guest is byte for byte the one that was sent;
/// cut after any byte of any connection, it never is.
#[test]
fn every_truncation_is_refused() {
    let (golden, host) = (Golden::record(), ListeningHost::new());
    for connection in 0..3 {
        for len in 0..golden.streams[connection].len() {
            let mut streams = golden.streams.clone();
            streams[connection].truncate(len);
            // Now and then the rest of the source seems to be alive, which is waited for a little.
            if connection > 0 && len % 499 > 0 {
                streams[0].clear();
            }
            let refused = golden.receive(&host, &streams, SOON).expect_err("a cut stream");
            assert!(!refused.is_empty(), "{connection}, {len}");
        }
    }
    assert_eq!(golden.receive(&host, &golden.streams, LATE).as_deref(), Ok(STATE));
    golden.assert_equal();
}

/// A source that has sent the state, and then keeps a page connection readable with frames that are fast enough for
/// every deadline, is refused.
#[test]
fn pages_after_the_state_hold_nobody() {
    let (golden, host) = (Golden::record(), ListeningHost::new());
    let begun = Instant::now();
    let drip = |mut stream: UnixStream| {
        let frame = |sequence: u64| {
            let numbers = (sequence % PAGES).to_le_bytes();
            let kind = PageKind::Zero;
            let digest = PayloadDigest::of(&numbers, &[], &[]);
            let (session, round, count) = (SESSION, 3, 1);
            let header = PagesHeader { session, sequence, round, kind, count, digest };
            [&header.encode()[..], &numbers].concat()
        };
        // A frame takes five seconds, and there are more than fit into the time.
        for byte in (3..3 + PAGES).flat_map(frame) {
            if stream.write_all(&[byte]).is_err() {
                return;
            }
            thread::park_timeout(Duration::from_millis(100));
        }
    };
    let refused = golden.receive_and(&host, &golden.streams, LATE, drip).unwrap_err();
    assert_eq!(refused, "a page connection went on after the last round");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// One way to spoil bytes.
#[derive(Debug, Clone)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Drop(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
    Move(prop::sample::Index, prop::sample::Index, usize),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let run = |at: &prop::sample::Index, len: usize, whole: usize| {
            let start = at.index(whole);
            start..(start + len).min(whole)
        };
        if bytes.is_empty() {
            return;
        }
        let whole = bytes.len();
        match self {
            Self::Flip(at, bit) => bytes[at.index(whole)] ^= 1 << (bit % 8),
            Self::Drop(at, len) => drop(bytes.drain(run(at, *len, whole))),
            Self::Repeat(at, len) => {
                let run = run(at, *len, whole);
                let again = bytes[run.clone()].to_vec();
                bytes.splice(run.end..run.end, again);
            }
            Self::Move(from, to, len) => {
                let moved: Vec<_> = bytes.drain(run(from, *len, whole)).collect();
                let to = to.index(bytes.len() + 1);
                bytes.splice(to..to, moved);
            }
        }
    }
}

fn some_damage() -> impl Strategy<Value = Damage> {
    let index = any::<prop::sample::Index>;
    let len = || prop_oneof![1_usize..64, Just(52), Just(4096), Just(4148), Just(4192)];
    prop_oneof![
        3 => (index(), any::<u8>()).prop_map(|(at, bit)| Damage::Flip(at, bit)),
        1 => (index(), len()).prop_map(|(at, len)| Damage::Drop(at, len)),
        1 => (index(), len()).prop_map(|(at, len)| Damage::Repeat(at, len)),
        1 => (index(), index(), len()).prop_map(|(from, to, len)| Damage::Move(from, to, len)),
    ]
}

fn shared_golden() -> &'static (Golden, ListeningHost) {
    static GOLDEN: OnceLock<(Golden, ListeningHost)> = OnceLock::new();
    GOLDEN.get_or_init(|| (Golden::record(), ListeningHost::new()))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// If the stream is damaged anywhere but in the `join`, either an error names the damage, or the guest's memory and
    /// the machine's state are byte for byte what was sent.
    #[test]
    fn damage_is_refused_or_harmless(
        connection in 0_usize..3,
        damages in prop::collection::vec(some_damage(), 1..4),
    ) {
        let (golden, host) = shared_golden();
        let mut streams = golden.streams.clone();
        let kept = if connection == 0 { 0 } else { 22 };
        let mut rest = streams[connection].split_off(kept);
        for damage in damages {
            damage.apply(&mut rest);
        }
        streams[connection].extend(rest);
        match golden.receive(host, &streams, SOON) {
            Ok(state) => {
                prop_assert_eq!(state, STATE);
                golden.assert_equal();
            }
            Err(refused) => prop_assert!(!refused.is_empty()),
        }
    }
}
