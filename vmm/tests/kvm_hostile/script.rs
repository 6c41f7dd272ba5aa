//! What a source says, in order, as bytes: a good stream, and the places where a bad one differs.

use sevferry::migration::wire::{
    Closing, Kind, Message, Offer, PageKind, PagesHeader, PayloadDigest, Proof, RoundDigest,
    SessionBytes,
};
pub(crate) use sevferry::page::PAGE_LEN;

/// A join with this is sent with the proof that the destination's secret makes.
pub(crate) const TO_FILL_IN: Proof = Proof([0; 32]);

/// Which connection: 0 is the control connection, then the page connections.
pub(crate) type Channel = usize;

/// One thing that a source does.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Connect(Channel),
    Send(Channel, Vec<u8>),
    /// Waits on the control connection until the destination says this.
    Hear(Kind),
    /// Says this one byte a second.
    Trickle(Channel, Vec<u8>),
    /// Ends one connection.
    Close(Channel),
    /// Ends all connections: the source is gone.
    CloseAll,
}

/// A page frame before it is bytes. What is `None` is as it should be.
#[derive(Debug, Clone)]
pub(crate) struct PageFrame {
    pub(crate) kind: PageKind,
    pub(crate) numbers: Vec<u64>,
    pub(crate) packets: Vec<[u8; 52]>,
    pub(crate) pages: Vec<[u8; PAGE_LEN]>,
    pub(crate) session: Option<u64>,
    pub(crate) sequence: Option<u64>,
    pub(crate) round: Option<u32>,
    pub(crate) digest: Option<u64>,
}

impl PageFrame {
    fn new(kind: PageKind, numbers: Vec<u64>) -> Self {
        let (packets, pages) = (Vec::new(), Vec::new());
        let (session, sequence, round, digest) = (None, None, None, None);
        Self { kind, numbers, packets, pages, session, sequence, round, digest }
    }

    pub(crate) fn zero(numbers: impl IntoIterator<Item = u64>) -> Self {
        Self::new(PageKind::Zero, numbers.into_iter().collect())
    }

    pub(crate) fn shared(pages: impl IntoIterator<Item = (u64, [u8; PAGE_LEN])>) -> Self {
        let (numbers, pages) = pages.into_iter().unzip();
        Self { pages, ..Self::new(PageKind::Shared, numbers) }
    }

    pub(crate) fn private(
        pages: impl IntoIterator<Item = (u64, [u8; 52], [u8; PAGE_LEN])>,
    ) -> Self {
        let mut frame = Self::new(PageKind::Private, Vec::new());
        for (number, packet, page) in pages {
            frame.numbers.push(number);
            frame.packets.push(packet);
            frame.pages.push(page);
        }
        frame
    }
}

/// One page connection's part of a round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Part {
    pub(crate) frames: Vec<PageFrame>,
    /// Said in the round's end instead of what is true.
    pub(crate) said_frames: Option<u64>,
}

/// Everything that a source says up to the handover.
#[derive(Debug, Clone)]
pub(crate) struct Script {
    pub(crate) offer: Offer,
    pub(crate) session: Option<SessionBytes>,
    /// By round, then by connection.
    pub(crate) rounds: Vec<Vec<Part>>,
    pub(crate) status: Option<Vec<u8>>,
    pub(crate) state: Vec<u8>,
    pub(crate) closes: Closes,
}

/// How what follows the last round is bound to it, where that is not as it should be.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Closes {
    /// Bits of the session that differ.
    pub(crate) session: u64,
    pub(crate) round: Option<u32>,
    /// The last bit of this is changed on its way.
    pub(crate) flipped: Option<Kind>,
}

impl Script {
    /// The first frame of a kind in a round.
    pub(crate) fn frame(&mut self, round: usize, kind: PageKind) -> &mut PageFrame {
        let mut frames = self.rounds[round].iter_mut().flat_map(|part| &mut part.frames);
        frames.find(|frame| frame.kind == kind).expect("a frame of that kind")
    }

    /// All of it as what a source does.
    pub(crate) fn steps(&self) -> Vec<Step> {
        let mut steps = vec![Step::Connect(0), say(&Message::Offer(self.offer.clone()))];
        steps.push(Step::Hear(Kind::Accept));
        steps.push(say(&Message::Start { encryption: self.session.clone() }));
        steps.push(Step::Hear(Kind::Started));
        let connections = usize::from(self.offer.connections);
        let session = self.offer.session;
        for channel in 1..=connections {
            let index = u16::try_from(channel - 1).unwrap();
            steps.push(Step::Connect(channel));
            steps.push(Step::Send(
                channel,
                Message::Join { session, index, proof: TO_FILL_IN }.encode().unwrap(),
            ));
        }
        let mut sequences = vec![0; connections];
        for (round, parts) in (1..).zip(&self.rounds) {
            for ((channel, sequence), part) in (1..).zip(&mut sequences).zip(parts) {
                steps.push(Step::Send(channel, encode(part, session, round, sequence)));
            }
            steps.push(Step::Hear(Kind::RoundOk));
        }
        steps.extend((1..=connections).map(Step::Close));
        let last = u32::try_from(self.rounds.len()).unwrap();
        let closing = |kind, bytes: &[u8]| {
            let Closes { session: other, round, flipped } = self.closes;
            let session = session ^ other;
            let mut closing = Closing::new(kind, session, round.unwrap_or(last), bytes.to_vec());
            if flipped == Some(kind) {
                *closing.bytes.last_mut().unwrap() ^= 1;
            }
            closing
        };
        let list = self.status.as_deref();
        let list = list.map(|list| Message::StatusList(closing(Kind::StatusList, list)));
        steps.extend(list.as_ref().map(say));
        steps.push(say(&Message::State(closing(Kind::State, &self.state))));
        steps
    }
}

/// On the control connection.
pub(crate) fn say(message: &Message) -> Step {
    Step::Send(0, message.encode().unwrap())
}

/// A connection's part of a round, and its end.
pub(crate) fn encode(part: &Part, session: u64, round: u32, sequence: &mut u64) -> Vec<u8> {
    let (mut bytes, mut digest) = (Vec::new(), RoundDigest::default());
    for frame in &part.frames {
        let numbers: Vec<_> =
            frame.numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let (packets, pages) = (frame.packets.as_flattened(), frame.pages.as_flattened());
        let header = PagesHeader {
            session: frame.session.unwrap_or(session),
            sequence: frame.sequence.unwrap_or(*sequence),
            round: frame.round.unwrap_or(round),
            kind: frame.kind,
            count: u8::try_from(frame.numbers.len()).unwrap(),
            digest: frame.digest.unwrap_or_else(|| PayloadDigest::of(&numbers, packets, pages)),
        };
        let head = header.encode();
        digest.add(&head);
        *sequence += 1;
        bytes.extend([&head, numbers.as_slice(), packets, pages].concat());
    }
    let mut end = digest.end(round);
    end.frames = part.said_frames.unwrap_or(end.frames);
    bytes.extend(Message::RoundEnd(end).encode().unwrap());
    bytes
}

/// How many bytes a source sends.
pub(crate) fn length(steps: &[Step]) -> usize {
    steps.iter().map(|step| if let Step::Send(_, bytes) = step { bytes.len() } else { 0 }).sum()
}

/// The same source, gone after so many bytes.
pub(crate) fn cut(steps: &[Step], bytes: usize) -> Vec<Step> {
    let (mut left, mut kept) = (bytes, Vec::new());
    for step in steps {
        if let Step::Send(channel, bytes) = step {
            if left < bytes.len() {
                kept.push(Step::Send(*channel, bytes[..left].to_vec()));
                kept.push(Step::CloseAll);
                return kept;
            }
            left -= bytes.len();
        }
        kept.push(step.clone());
    }
    kept.push(Step::CloseAll);
    kept
}
