//! The guest's clock: saved with the time of day, so that it can go on elsewhere.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kvm_bindings::{KVM_CLOCK_REALTIME, kvm_clock_data};
use kvm_ioctls::VmFd;
use log::warn;
use serde::{Deserialize, Serialize};
use vmm_sys_util::errno::Error as Errno;

/// More than this cannot lie between saving and restoring: a migration's last round is over in
/// seconds, or in minutes at the price of SEV hardware. It means that two hosts' clocks differ.
const LONGEST: Duration = Duration::from_secs(60 * 60);

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

    /// Sets kvmclock to what it would show by now.
    pub(super) fn restore(&self, vm: &VmFd, elapsed: &Elapsed) -> Result<(), Errno> {
        let clock = self.kvmclock_ns.saturating_add(elapsed.nanoseconds());
        vm.set_clock(&kvm_clock_data { clock, ..kvm_clock_data::default() })
    }
}

/// The time since a guest's clock was saved; it goes on.
#[derive(Debug)]
pub(super) struct Elapsed {
    before: Duration,
    since: Instant,
}

impl Elapsed {
    /// Since `saved`, by this host's time of day.
    pub(super) fn since(saved: &ClockState) -> Self {
        let before = between(saved.realtime_ns, realtime_ns());
        if before.is_none() {
            warn!(
                "the time of day differs too much between the two hosts: the guest's clocks stand \
                 still while it moves"
            );
        }
        Self { before: before.unwrap_or_default(), since: Instant::now() }
    }

    pub(super) fn nanoseconds(&self) -> u64 {
        let all = self.before.saturating_add(self.since.elapsed());
        u64::try_from(all.as_nanos()).unwrap_or(u64::MAX)
    }
}

/// From `saved` to `now`. If `now` is a little earlier, nothing: clocks must not step back. `None`
/// if the two cannot be of the same migration.
fn between(saved: u64, now: u64) -> Option<Duration> {
    let longest = u64::try_from(LONGEST.as_nanos()).unwrap_or(u64::MAX);
    (now.abs_diff(saved) <= longest).then(|| Duration::from_nanos(now.saturating_sub(saved)))
}

/// The time of day, in nanoseconds since 1970.
fn realtime_ns() -> u64 {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A guest's clock moves on by what passed, never back, and not by the hours or years by which
    /// two hosts' clocks may differ.
    #[test]
    fn clocks_neither_step_back_nor_leap() {
        let saved = 1_700_000_000 * SECOND;
        assert_eq!(between(saved, saved + 3 * SECOND), Some(Duration::from_secs(3)));
        assert_eq!(between(saved, saved - SECOND), Some(Duration::ZERO));
        assert_eq!(between(saved, saved + 3601 * SECOND), None);
        assert_eq!(between(saved, saved - 3601 * SECOND), None);
        assert_eq!(between(0, saved), None);
        assert_eq!(between(u64::MAX, 0), None);
    }
}
