//! The guest's clock: saved with the time of day, so that it can go on at another host.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use log::warn;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno::Error as Errno;

/// Hosts that set their time of day by NTP differ by less.
const WORTH_SAYING: Duration = Duration::from_millis(500);

/// When a guest was saved at the other host, by this host's monotonic clock: between two moments. The two hosts' times
/// of day may differ by anything, but not these moments.
#[derive(Debug, Clone, Copy)]
pub struct SavedBetween {
    /// Not before this: the message after which the source saves it was sent then.
    pub earliest: Instant,
    /// Not after this: the state had arrived by then.
    pub latest: Instant,
}

/// kvmclock at a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(Default))]
pub(super) struct ClockState {
    /// What kvmclock showed, in nanoseconds.
    kvmclock_ns: u64,
    /// The time of day then, in nanoseconds since 1970.
    realtime_ns: u64,
}

impl ClockState {
    pub(super) fn save(vm: &VmFd) -> Result<Self, Errno> {
        let clock = vm.get_clock()?;
        let paired = clock.flags & KVM_CLOCK_REALTIME != 0;
        let realtime_ns = if paired { clock.realtime } else { realtime_ns() };
        Ok(Self { kvmclock_ns: clock.clock, realtime_ns })
    }

    /// Sets kvmclock to what it would show now.
    pub(super) fn restore(&self, vm: &VmFd, elapsed: &Elapsed) -> Result<(), Errno> {
        let clock = self.kvmclock_ns.saturating_add(elapsed.nanoseconds());
        vm.set_clock(&kvm_clock_data { clock, ..kvm_clock_data::default() })
    }
}

/// The time since a guest's clock was saved. It goes on.
#[derive(Debug)]
pub(super) struct Elapsed {
    before: Duration,
    since: Instant,
}

impl Elapsed {
    /// Since `saved`, by this host's time of day, within the two moments.
    pub(super) fn since(saved: &ClockState, between: SavedBetween) -> Self {
        let (since, now) = (Instant::now(), realtime_ns());
        let by_day = i128::from(now) - i128::from(saved.realtime_ns);
        let (before, differ) = held(by_day, since, between);
        if differ.by >= WORTH_SAYING {
            let (by, which) = (differ.by.as_secs_f64(), differ.which());
            warn!(
                "this host's time of day is {by:.1} s {which} the source's, or more: the guest's \
                 clocks go on by what can have passed; keep both hosts' clocks right, by NTP for one"
            );
        }
        Self { before, since }
    }

    pub(super) fn nanoseconds(&self) -> u64 {
        let all = self.before.saturating_add(self.since.elapsed());
        u64::try_from(all.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// The least by which two hosts' times of day differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Differ {
    by: Duration,
    /// Whether this host's is the later one.
    is_ahead: bool,
}

impl Differ {
    fn which(self) -> &'static str {
        if self.is_ahead { "ahead of" } else { "behind" }
    }
}

/// The time that has passed by `now`: `by_day` nanoseconds by the two hosts' times of day, corrected to what can have
/// passed.
fn held(by_day: i128, now: Instant, between: SavedBetween) -> (Duration, Differ) {
    let least = now.saturating_duration_since(between.latest);
    let most = now.saturating_duration_since(between.earliest).max(least);
    let nanoseconds = |time: Duration| i128::try_from(time.as_nanos()).unwrap_or(i128::MAX);
    let passed = by_day.clamp(nanoseconds(least), nanoseconds(most));
    let duration = |ns: u128| Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX));
    let differ = Differ { by: duration(by_day.abs_diff(passed)), is_ahead: by_day > passed };
    (duration(passed.unsigned_abs()), differ)
}

/// The time of day, in nanoseconds since 1970.
fn realtime_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i128 = 1_000_000_000;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    /// A guest's clock goes on by the time that has passed. It never goes back, and never jumps by the difference of
    /// two hosts' times of day, whether that is half an hour or a lifetime, ahead or behind.
    #[test]
    fn clocks_neither_step_back_nor_leap() {
        let earliest = Instant::now();
        let between = SavedBetween { earliest, latest: earliest + seconds(4) };
        let now = earliest + seconds(6);
        for (by_day, passed, by, is_ahead) in [
            (3, 3, 0, false),
            (2, 2, 0, false),
            (6, 6, 0, false),
            (6 + 1800, 6, 1800, true),
            (7, 6, 1, true),
            (0, 2, 2, false),
            (-1800, 2, 1802, false),
            (1_700_000_000, 6, 1_699_999_994, true),
        ] {
            let expected = (seconds(passed), Differ { by: seconds(by), is_ahead });
            assert_eq!(held(by_day * SECOND, now, between), expected, "{by_day} s");
        }
        for extreme in [i128::from(u64::MAX), -i128::from(u64::MAX), i128::MAX, i128::MIN] {
            let (passed, _) = held(extreme, now, between);
            assert!([seconds(2), seconds(6)].contains(&passed), "{extreme}: {passed:?}");
        }
    }

    /// A state that was saved with this or another host's time of day moves on within the seconds
    /// in which it can have been saved.
    #[test]
    fn a_saved_clock_goes_on_by_what_can_have_passed() {
        let now = realtime_ns();
        let half_an_hour = 1_800_000_000_000;
        let earliest = Instant::now();
        for realtime_ns in [now, now - half_an_hour, now + half_an_hour, 0, u64::MAX] {
            let saved = ClockState { kvmclock_ns: 5, realtime_ns };
            let between = SavedBetween { earliest, latest: Instant::now() };
            let elapsed = Elapsed::since(&saved, between);
            let passed = Duration::from_nanos(elapsed.nanoseconds());
            assert!(passed <= earliest.elapsed(), "{realtime_ns}: {passed:?}");
        }
    }
}
