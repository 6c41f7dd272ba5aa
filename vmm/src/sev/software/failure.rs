//! Which command of a guest shall fail, and how.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::num::NonZeroU64;
use std::str::FromStr;

use thiserror::Error;

use crate::sev::command::Command;

/// Which command of a VM fails, which time it is issued, and how: `SEND_FINISH:1`. Queries of a length
/// count too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    pub(super) command: Command,
    pub(super) at: NonZeroU64,
    pub(super) how: How,
}

/// What happens then.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// `HW_PLATFORM`, once.
    Once,
    /// `:dead`: the secure processor hangs. The kernel returns -ETIMEDOUT for this command, and -EBUSY for every later
    /// command that needs the firmware.
    Dead,
    /// `:unknown`: an older firmware, which does not know the command: `INVALID_COMMAND`, each time.
    Unknown,
}

impl FromStr for Failure {
    type Err = BadFailure;

    fn from_str(text: &str) -> Result<Self, BadFailure> {
        let (name, rest) = text.split_once(':').ok_or(BadFailure)?;
        let (at, how) = match rest.split_once(':') {
            None => (rest, How::Once),
            Some((at, "dead")) => (at, How::Dead),
            Some((at, "unknown")) => (at, How::Unknown),
            Some(_) => return Err(BadFailure),
        };
        let command = Command::named(name).ok_or(BadFailure)?;
        let digits = at.bytes().all(|byte| byte.is_ascii_digit());
        let at = at.parse().ok().filter(|_| digits).ok_or(BadFailure)?;
        Ok(Self { command, at, how })
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        let how = match self.how {
            How::Once => "",
            How::Dead => ":dead",
            How::Unknown => ":unknown",
        };
        write!(f, "{}:{}{how}", self.command.short_name(), self.at)
    }
}

/// Not a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error(
    "expected the name of a KVM_SEV command and which time it fails, such as SEND_FINISH:1, and \
     :dead or :unknown if it is not to be that once"
)]
pub struct BadFailure;

#[cfg(test)]
mod tests {
    use super::*;

    /// What is no command, no number from 1 and no way to fail is refused.
    #[test]
    fn failures_are_a_command_and_a_number() {
        for good in ["SEND_FINISH:2", "SEND_FINISH:2:dead", "SEND_CANCEL:1:unknown"] {
            assert_eq!(good.parse::<Failure>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "SEND_FINISH",
            "SEND_FINISH:0",
            "SEND_FINISH:+1",
            "KVM_SEV_INIT:1",
            "X:1",
            "SEND_FINISH:1:",
            "SEND_FINISH:1:once",
            "SEND_FINISH:dead",
        ] {
            assert_eq!(bad.parse::<Failure>(), Err(BadFailure), "{bad}");
        }
    }
}
