//! Strangers of every kind in the lobby, and a source that must not wait for them.

use std::io::Write;
use std::os::unix::net::UnixStream;

use proptest::prelude::*;
use vmm_sys_util::tempdir::TempDir;

use super::*;
use crate::migration::wire::{Offer, Transfer, VmId};

/// Any of these connections is heard within it; far below what a first message may take.
const SOON: Duration = Duration::from_secs(5);

/// How long a stranger may be silent.
const SILENCE: Duration = Duration::from_secs(30);

struct LobbyHost {
    _directory: TempDir,
    path: std::path::PathBuf,
    listener: Listener,
}

impl LobbyHost {
    fn new() -> Self {
        let directory = TempDir::new().unwrap();
        let path = directory.as_path().join("lobby");
        let endpoint = format!("unix:{}", path.display()).parse().unwrap();
        Self { _directory: directory, path, listener: Listener::bind(&endpoint).unwrap() }
    }

    fn says(&self, bytes: &[u8]) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    }
}

fn offer(machine: usize) -> Message {
    let transfer = Transfer { vm: VmId([9; 16]), epoch: 1 };
    let (abandoned, machine) = (Vec::new(), vec![7; machine]);
    Message::Offer(Offer { transfer, session: 1, connections: 1, abandoned, machine })
}

/// The next caller. Connections that were refused before it are passed over.
fn caller(lobby: &mut Lobby, host: &LobbyHost) -> Caller {
    loop {
        let heard = lobby.hear(&host.listener, SOON);
        if let Ok(caller) = heard.expect("somebody is heard before the strangers' time is over") {
            return caller;
        }
    }
}

/// However many say nothing, or half a message, a source is heard at once.
#[test]
fn strangers_keep_nobody_waiting() {
    let (host, mut lobby) = (LobbyHost::new(), Lobby::new(SILENCE));
    let whole = offer(100).encode().unwrap();
    let mut strangers: Vec<_> = (0..60).map(|_| host.says(b"")).collect();
    strangers.extend((0..60).map(|len| host.says(&whole[..len])));
    let _source = host.says(&whole);
    assert_eq!(caller(&mut lobby, &host).first, offer(100));
    assert_eq!(lobby.newcomers.len(), strangers.len(), "the others still have their time");
    // And the next too.
    let _source = host.says(&offer(7).encode().unwrap());
    assert_eq!(caller(&mut lobby, &host).first, offer(7));
}

/// A connection with another first message is told why it is refused. One that goes away is forgotten.
#[test]
fn others_are_turned_away() {
    let (host, mut lobby) = (LobbyHost::new(), Lobby::new(SILENCE));
    let http = host.says(b"GET / HTTP/1.1\r\nHost: b\r\n\r\n");
    let heard = lobby.hear(&host.listener, SOON).unwrap();
    assert!(matches!(heard, Err(LinkError::Malformed(_))), "{heard:?}");
    let told = Link::new(Stream::Unix(http), SOON).answer(Due::REFUSAL, SOON);
    assert!(matches!(&told, Err(LinkError::Refused(why)) if why.as_str().contains("protocol")));
    let _started = host.says(&Message::Started.encode().unwrap());
    let heard = lobby.hear(&host.listener, SOON).unwrap();
    assert!(matches!(heard, Err(LinkError::Unexpected { .. })), "{heard:?}");
    drop(host.says(b"SV"));
    let heard = lobby.hear(&host.listener, SOON).unwrap();
    assert!(matches!(heard, Err(LinkError::Lost(_))), "{heard:?}");
    assert!(lobby.newcomers.is_empty());
    assert!(lobby.hear(&host.listener, Duration::ZERO).is_none());
}

/// A stranger has its time since its last byte, and for a whole message twice that; a source that
/// stalls for less is heard.
#[test]
fn a_stall_is_waited_for_and_silence_is_not() {
    let silence = Duration::from_millis(1500);
    let (host, mut lobby) = (LobbyHost::new(), Lobby::new(silence));
    let whole = offer(100).encode().unwrap();
    let begun = Instant::now();
    let _mute = host.says(b"");
    let mut source = host.says(&whole[..30]);
    let _half = host.says(&whole[..5]);
    assert!(lobby.hear(&host.listener, silence / 2).is_none());
    source.write_all(&whole[30..60]).unwrap();
    let (mut late, mut heard) = (Vec::new(), None);
    while late.len() < 2 {
        match lobby.hear(&host.listener, SOON).unwrap() {
            Ok(caller) => heard = Some(caller.first),
            Err(cause) => late.push(cause.to_string()),
        }
        if late.len() == 1 {
            source.write_all(&whole[60..]).unwrap_or_default();
        }
    }
    assert!(begun.elapsed() >= silence, "{:?}", begun.elapsed());
    let heard = heard.unwrap_or_else(|| caller(&mut lobby, &host).first);
    assert_eq!(heard, offer(100));
    assert!(late.iter().any(|cause| cause.contains("has not sent its first message")), "{late:?}");
}

/// Nothing of what follows the first message is read with it.
#[test]
fn what_follows_is_left() {
    let (host, mut lobby) = (LobbyHost::new(), Lobby::new(SILENCE));
    let next = Message::Start { encryption: None };
    let both = [offer(3).encode().unwrap(), next.encode().unwrap()].concat();
    let _source = host.says(&both);
    let mut caller = caller(&mut lobby, &host);
    assert_eq!(caller.link.answer(Due::START, SOON).unwrap(), next);
}

/// The oldest of too many goes first, and so a source that comes last is heard.
#[test]
fn there_is_room_for_so_many() {
    let (host, mut lobby) = (LobbyHost::new(), Lobby::new(SILENCE));
    let mut strangers = Vec::new();
    for _ in 0..ROOM + 20 {
        strangers.push(host.says(b"S"));
        if strangers.len() % 50 == 0 {
            let _crowded = lobby.hear(&host.listener, Duration::ZERO);
        }
    }
    let _source = host.says(&offer(3).encode().unwrap());
    assert_eq!(caller(&mut lobby, &host).first, offer(3));
    assert!(lobby.newcomers.len() <= ROOM);
}

/// Long first messages that do not end hold no more than their bound together, and a source with a
/// short one is heard all the same.
#[test]
fn long_messages_do_not_add_up() {
    let (host, mut lobby) = (LobbyHost::new(), Lobby::new(SILENCE));
    let long = offer(1 << 20).encode().unwrap();
    let mut strangers: Vec<_> = (0..8).map(|_| (host.says(b""), 0)).collect();
    let _source = host.says(&offer(3).encode().unwrap()[..30]);
    for _ in 0..400 {
        for (stranger, said) in &mut strangers {
            // All but the last byte; it may have been turned away, and the socket may be full.
            let rest = &long[*said..long.len() - 1];
            *said += stranger.write(&rest[..rest.len().min(1 << 16)]).unwrap_or(0);
        }
        if let Some(Ok(caller)) = lobby.hear(&host.listener, Duration::ZERO) {
            panic!("{caller:?} has not said all");
        }
        let held: usize = lobby.newcomers.iter().map(|newcomer| newcomer.held()).sum();
        assert!(held <= BYTES_MAX + ROOM * 64, "{held} bytes");
    }
    assert!(strangers.iter().any(|(_, said)| *said > 1 << 19), "they say much");
    let _other = host.says(&offer(5).encode().unwrap());
    assert_eq!(caller(&mut lobby, &host).first, offer(5));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In whatever pieces a first message comes, it is the same.
    #[test]
    fn pieces_make_a_message(len in 0..200_000_usize, mut cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let (host, mut lobby) = (LobbyHost::new(), Lobby::new(SILENCE));
        let (message, mut source) = (offer(len), host.says(b""));
        let bytes = message.encode().unwrap();
        let mut at: Vec<_> = cuts.drain(..).map(|cut| cut.index(bytes.len())).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let mut heard = None;
        for piece in at.windows(2) {
            let mut rest = &bytes[piece[0]..piece[1]];
            while !rest.is_empty() {
                prop_assert!(heard.is_none());
                rest = &rest[source.write(rest).unwrap_or(0)..];
                heard = lobby.hear(&host.listener, Duration::ZERO);
            }
        }
        while heard.is_none() {
            heard = lobby.hear(&host.listener, SOON);
        }
        prop_assert_eq!(heard.unwrap().unwrap().first, message);
    }
}
