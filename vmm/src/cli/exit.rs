//! How the process ends, as its exit code tells.

use std::process::ExitCode;

/// The exit codes, for `--help`.
pub(crate) const EXIT_CODES: &str = "\
ExitStatus codes:
  0   the guest powered off or reset, has moved to another host, or was ended as asked
      (Ctrl-A x, quit, SIGTERM, SIGINT, or any signal that ends a program); for other commands: yes
  1   an error, which is printed
  2   the command line is wrong
  3   check, probe: this host cannot run the guests that were asked for;
      check --to: the guest would not be moved
  10  migrate: the guest did not move, and runs on where it was
  11  the guest crashed (triple fault)
  12  migrate: in doubt, whether the guest moved; status and resolve at both hosts decide
  13  migrate: interrupted twice; the migration goes on, status shows how it ends
  14  migrate: the guest powered off, was reset or crashed before it was moved, and runs nowhere";

/// How a guest's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The guest powered off.
    PowerOff,
    /// The guest asked for a reset, and was not to be booted again.
    Reset,
    /// A vCPU faulted while delivering a double fault.
    TripleFault,
    /// The user ended it.
    Quit,
    /// It runs on another host.
    Moved,
}

/// What the shell sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum ExitStatus {
    /// As asked.
    Success = 0,
    /// An error, which has been printed.
    Failure = 1,
    /// The command line is wrong.
    Usage = 2,
    /// This host's KVM is of no use.
    Unusable = 3,
    /// The guest runs on where it was.
    Stayed = 10,
    /// The guest crashed.
    GuestCrashed = 11,
    /// The guest runs here, or on the other host, or will when that is known.
    InDoubt = 12,
    /// The command was interrupted twice. The migration has not ended.
    GoesOn = 13,
    /// The guest ended while it was being moved.
    GuestEnded = 14,
}

impl From<Ending> for ExitStatus {
    fn from(ending: Ending) -> Self {
        match ending {
            Ending::PowerOff | Ending::Reset | Ending::Quit | Ending::Moved => Self::Success,
            Ending::TripleFault => Self::GuestCrashed,
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(exit: ExitStatus) -> Self {
        Self::from(exit as u8)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `--help` lists every exit code and no other.
    #[test]
    fn help_lists_every_code() {
        let listed: Vec<u8> = EXIT_CODES
            .lines()
            .filter_map(|line| line.strip_prefix("  ")?.split(' ').next()?.parse().ok())
            .collect();
        let all = [
            ExitStatus::Success,
            ExitStatus::Failure,
            ExitStatus::Usage,
            ExitStatus::Unusable,
            ExitStatus::Stayed,
            ExitStatus::GuestCrashed,
            ExitStatus::InDoubt,
            ExitStatus::GoesOn,
            ExitStatus::GuestEnded,
        ];
        assert_eq!(listed, all.map(|exit| exit as u8));
    }
}
