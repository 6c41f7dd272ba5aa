//! Peers that are slow, silent or gone, over real sockets.

use std::thread::{self, park_timeout};

use super::*;

/// Long enough for a busy machine, short enough for a test.
const SILENCE: Duration = Duration::from_millis(400);

/// Far below what a test may take.
const LONG: Duration = Duration::from_secs(60);

fn pair() -> (Stream, Stream) {
    let (one, other) = UnixStream::pair().unwrap();
    (Stream::Unix(one).prepared().unwrap(), Stream::Unix(other).prepared().unwrap())
}

fn tcp_pair() -> (Stream, Stream) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (other, _) = listener.accept().unwrap();
    (Stream::Tcp(one).prepared().unwrap(), Stream::Tcp(other).prepared().unwrap())
}

fn fill(stream: &mut Stream, buffer: &mut [u8], silence: Duration) -> Result<bool, IoError> {
    let len = buffer.len();
    stream.fill(buffer, &mut Wait::new(silence, len, &mut || false))
}

fn send(stream: &mut Stream, bytes: &[u8], silence: Duration) -> Result<(), IoError> {
    let mut stop = || false;
    let mut wait = Wait::new(silence, bytes.len(), &mut stop);
    stream.send(&mut [IoSlice::new(bytes)], &mut wait)
}

/// More than the buffers of any socket hold.
fn much() -> Vec<u8> {
    vec![7; 64 << 20]
}

/// Several parts arrive as one run of bytes, also where the socket takes them piecemeal.
#[test]
fn parts_arrive_whole_and_in_order() {
    let (mut sender, mut receiver) = pair();
    let large = vec![7; 4 << 20];
    thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let parts = [b"head".as_slice(), &[], &large];
            let mut stop = || false;
            let mut wait = Wait::new(LONG, large.len(), &mut stop);
            sender.send(&mut parts.map(IoSlice::new), &mut wait)
        });
        let mut got = vec![0; 4 + large.len()];
        assert!(fill(&mut receiver, &mut got, LONG).unwrap());
        assert_eq!(&got[..4], b"head");
        assert_eq!(got[4..], large);
        sending.join().unwrap().unwrap();
    });
}

/// The end of the stream between messages is an end; in the middle it is an error.
#[test]
fn an_end_in_the_middle_is_an_error() {
    let (mut sender, mut receiver) = pair();
    sender.send_at_once(b"abc").unwrap();
    drop(sender);
    let cut = fill(&mut receiver, &mut [0; 4], LONG).unwrap_err();
    assert_eq!(cut.kind(), ErrorKind::UnexpectedEof);
    assert!(!fill(&mut receiver, &mut [0; 4], LONG).unwrap());
}

/// A peer that stops reading, or sending, is noticed when the silence since the last byte is over:
/// not before, and not much later.
#[test]
fn a_silent_peer_is_noticed_when_the_silence_ends() {
    for (mut near, mut far) in [pair(), tcp_pair()] {
        far.send_at_once(b"a").unwrap();
        let much = much();
        for what in ["reads", "sends"] {
            let begun = Instant::now();
            let gone = match what {
                "reads" => send(&mut near, &much, SILENCE),
                _ => fill(&mut near, &mut [0; 4], SILENCE).map(drop),
            };
            let gone = gone.unwrap_err();
            assert_eq!(gone.kind(), ErrorKind::TimedOut, "{what}: {gone}");
            assert!(gone.to_string().contains("neither sent nor taken"), "{what}: {gone}");
            assert!(begun.elapsed() >= SILENCE, "{what}: {:?}", begun.elapsed());
            // Filling the sockets' buffers is part of it.
            assert!(begun.elapsed() < SILENCE * 10, "{what}: {:?}", begun.elapsed());
        }
    }
}

/// However often a peer stalls, if each stall is shorter than the silence, all arrives: in either
/// direction, and longer in all than the silence.
#[test]
fn stalls_shorter_than_the_silence_end_nothing() {
    let (silence, stall) = (Duration::from_secs(2), Duration::from_millis(600));
    let (mut near, mut far) = tcp_pair();
    thread::scope(|scope| {
        let much = much();
        let sending = scope.spawn(move || send(&mut near, &much, silence).map(|()| near));
        let mut part = vec![0; 16 << 20];
        for _ in 0..4 {
            park_timeout(stall);
            assert!(fill(&mut far, &mut part, silence).unwrap());
        }
        let mut near = sending.join().unwrap().unwrap();
        let hearing = scope.spawn(move || {
            let mut word = [0; 4];
            fill(&mut near, &mut word, silence).map(|_| word)
        });
        for byte in b"word" {
            park_timeout(stall);
            far.send_at_once(&[*byte]).unwrap();
        }
        assert_eq!(&hearing.join().unwrap().unwrap(), b"word");
    });
}

/// A peer that sends, or takes, a byte now and then does not get more than its time in all.
#[test]
fn a_trickle_does_not_hold_the_line() {
    let (mut near, mut far) = pair();
    thread::scope(|scope| {
        let hearing = scope.spawn(move || fill(&mut near, &mut [0; 1 << 10], SILENCE));
        let mut bytes = 0;
        while far.send_at_once(b"a").is_ok() {
            assert!(bytes < 1 << 10, "all of it was taken");
            bytes += 1;
            park_timeout(SILENCE / 10);
        }
        let slow = hearing.join().unwrap().unwrap_err();
        assert!(slow.to_string().contains("the peer is too slow"), "{slow}");
    });
}

/// A wait is given up while a peer does not read, or does not send.
#[test]
fn a_wish_is_heard_meanwhile() {
    let (mut near, _far) = pair();
    let begun = Instant::now();
    let mut stop = || begun.elapsed() > Duration::from_millis(100);
    let much = much();
    let mut wait = Wait::new(LONG, much.len(), &mut stop);
    let given_up = near.send(&mut [IoSlice::new(&much)], &mut wait).unwrap_err();
    assert!(given_up.to_string().contains("given up"), "{given_up}");
    let mut wait = Wait::new(LONG, 4, &mut stop);
    near.fill(&mut [0; 4], &mut wait).unwrap_err();
    assert!(begun.elapsed() < LONG / 2);
}

/// A process that listens and accepts no connection is not waited for for ever.
#[test]
fn a_full_queue_is_not_waited_for() {
    let path = std::env::temp_dir().join(format!("sevferry-queue-{}", std::process::id()));
    let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
    let listener = Listener::bind(&endpoint).unwrap();
    let Listener::Unix(_, socket) = &listener else { panic!("a unix socket") };
    rustix::net::listen(socket, 0).unwrap();
    let mut waiting = Vec::new();
    let refused = loop {
        match Stream::connect(&endpoint, Duration::from_millis(50), &|| true) {
            Ok(stream) => waiting.push(stream),
            Err(cause) => break cause,
        }
        assert!(waiting.len() < 10, "the queue takes everybody");
    };
    assert_eq!(refused.kind(), ErrorKind::TimedOut, "{refused}");
}

/// A socket file left by a process that is gone is replaced; one in use is not.
#[test]
fn a_stale_socket_file_is_replaced() {
    let path = std::env::temp_dir().join(format!("sevferry-transport-{}", std::process::id()));
    let endpoint: Endpoint = format!("unix:{}", path.display()).parse().unwrap();
    // std does not remove the file when the listener is dropped.
    drop(UnixListener::bind(&path).unwrap());
    let listener = Listener::bind(&endpoint).unwrap();
    let taken = Listener::bind(&endpoint).unwrap_err();
    assert!(matches!(taken, NoSocket::InUse), "{taken}");
    let _client = Stream::connect(&endpoint, LONG, &|| true).unwrap();
    assert!(listener.accept(LONG).unwrap().is_some());
    assert!(listener.accept(Duration::from_millis(1)).unwrap().is_none(), "somebody else");
    drop(listener);
    assert!(!path.exists());
}
