//! A card in a real tap, driven by a driver in this process, in a network namespace of its own.
//!
//! `unshare -rn cargo test --test tap -- --ignored --test-threads=1`

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};

use sevferry::devices::virtio::{Driver, Net, TapSource};

fn ip(arguments: &str) {
    let done = Command::new("ip").args(arguments.split_whitespace()).status().expect("ip runs");
    assert!(done.success(), "ip {arguments}");
}

fn tap(name: &str) -> TapSource {
    TapSource::Name(name.to_owned())
}

/// What is not there, not a tap, of other queues, or somebody else's, is refused by name.
#[test]
#[ignore = "needs a network namespace: unshare -rn cargo test --test tap -- --ignored"]
fn a_tap_that_is_none_is_refused() {
    ip("tuntap add alone mode tap");
    ip("tuntap add several mode tap multi_queue");
    ip("link add pair0 type veth peer name pair1");
    let refused = |name: &str, queues| tap(name).open(queues).unwrap_err().to_string();
    assert!(refused("none", 1).contains("there is no interface none"));
    for (name, queues) in [("pair0", 1), ("alone", 2), ("a-name-too-long-for-one", 1)] {
        assert!(refused(name, queues).contains(name), "{name}");
    }
    let one = tap("alone").open(1).expect("it is free");
    assert!(refused("alone", 1).contains("alone"));
    drop(one);
    tap("alone").open(1).expect("it is free again");
    tap("several").open(1).expect("one queue of several");
    assert_eq!(tap("several").open(4).expect("four queues").len(), 4);
    let zero = File::open("/dev/zero").expect("/dev/zero");
    let number = zero.as_raw_fd();
    for (numbers, queues) in [(vec![number], 1), (vec![9999], 1), (vec![number], 2)] {
        TapSource::Descriptors(numbers).open(queues).unwrap_err();
    }
}

/// A tap that was opened by somebody else serves one card after the other, as when a host only looks
/// first whether it can make one.
#[test]
#[ignore = "needs a network namespace: unshare -rn cargo test --test tap -- --ignored"]
fn a_tap_that_was_passed_serves_again_and_again() {
    ip("tuntap add passed mode tap multi_queue");
    let opened = tap("passed").open(2).expect("two queues");
    let passed = TapSource::Descriptors(opened.iter().map(|port| port.as_raw_fd()).collect());
    for _ in 0..3 {
        let card = Net::open(&passed, None, 2, None).expect("a card");
        let mut driver = Driver::new(Box::new(card), 64 << 20, 4096).expect("a driver");
        driver.start(u64::MAX).expect("it starts");
        driver.add(4, &[&[4, 0, 2, 0]], &[1]).expect("room");
        driver.ring(4);
        assert_eq!(driver.wait(4).expect("an answer").bytes, [0]);
    }
}

/// Queue pairs of a tap are attached when the driver uses them; the kernel takes every offload, and
/// packets of each pair.
#[test]
#[ignore = "needs a network namespace: unshare -rn cargo test --test tap -- --ignored"]
fn a_card_has_queue_pairs_of_a_tap() {
    ip("tuntap add pairs mode tap multi_queue");
    ip("link set pairs up");
    let card = Net::open(&tap("pairs"), None, 4, None).expect("a card");
    let mut driver = Driver::new(Box::new(card), 64 << 20, 4096).expect("a driver");
    let accepted = driver.start(u64::MAX).expect("it starts");
    assert_eq!(
        accepted & (1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 22),
        1 | 1 << 1 | 1 << 7 | 1 << 8 | 1 << 22
    );
    let mut command = |bytes: &[u8]| {
        driver.add(8, &[bytes], &[1]).expect("room");
        driver.ring(8);
        driver.wait(8).expect("an answer").bytes
    };
    for pairs in [4, 2, 1, 4] {
        assert_eq!(command(&[4, 0, pairs, 0]), [0]);
    }
    let packet = [&[0xff; 6], &[2, 0, 0, 0, 0, 1][..], &[0x88, 0xb5], &[0; 46]].concat();
    for pair in 0..4 {
        driver.add(2 * pair + 1, &[&[0; 12], &packet], &[]).expect("room");
        driver.ring(2 * pair + 1);
        driver.wait(2 * pair + 1).expect("it is sent");
    }
    let mut shown = Command::new("ip")
        .args(["-s", "link", "show", "pairs"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("ip runs");
    let lines: Vec<_> = BufReader::new(shown.stdout.take().expect("a pipe"))
        .lines()
        .map_while(Result::ok)
        .collect();
    shown.wait().expect("ip ends");
    // Bytes and packets that the host received.
    let received = lines.iter().skip_while(|line| !line.contains("RX:")).nth(1).expect("a line");
    assert_eq!(received.split_whitespace().nth(1), Some("4"), "{lines:?}");
    driver.write(0x14, &[0]);
    assert_eq!(driver.status(), 0);
}
