//! The words of the command line, parsed. `docs/guest-firmware.md` is their reference.

use crate::fresh;
use crate::paging::Status;
use crate::ram::{PAGE_SIZE, Pages};
use crate::verdict::End;

/// One word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step<'w> {
    /// `ready`, `unready`
    Ready(bool),
    /// `share=`, `private=`
    Convert { pages: Pages, to: Status },
    /// `in-place-share=`, `in-place-private=`
    ConvertInPlace { pages: Pages, to: Status, seed: u64 },
    /// `fill=`
    Fill { pages: Pages, seed: u64 },
    /// `check=`
    Check { pages: Pages, seed: u64 },
    /// `hypercall=`, `hypercall-cpl3=`: GPA, pages, attributes
    Hypercall { call: [u64; 3], ring: Ring, expected: Option<i64> },
    /// `alternate=`
    Alternate { pages: Pages, rounds: u64 },
    /// `storm=`, `storm-smp=`
    Storm { storm: Storm, on: Processors },
    /// `fresh=`
    Fresh { pages: Pages, passes: u64 },
    /// `donate=`: where the table goes
    Donate { gpa: u64 },
    /// `secret`, `secret=`: what one of the secrets must be
    Secret { expected: Option<&'w str> },
    /// `no-secret`
    NoSecret,
    /// `count=`
    Count(u64),
    /// `tables`
    Tables,
    /// `cpus`, `cpus=`
    Cpus { expected: Option<u64> },
    /// `cpuid=`
    Cpuid { leaf: u32, subleaf: u32 },
    /// `input`
    Input,
    /// `ports`
    Ports,
    /// `unemulated`
    Unemulated,
    /// `forever`
    Forever,
    /// `then=`
    Then(End),
}

/// The privilege level that a hypercall is made from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ring {
    Kernel,
    User,
}

/// Which processors take part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Processors {
    First,
    All,
}

/// A pseudo-random run of conversions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Storm {
    pub(crate) pages: Pages,
    pub(crate) seed: u64,
    /// Steps of each processor.
    pub(crate) steps: u64,
    /// Whether some pages are written before their hypercall, as Linux does early.
    pub(crate) in_place: bool,
}

/// Steps of a storm that goes on until a byte arrives on the serial port.
pub(crate) const UNTIL_INPUT: u64 = u64::MAX;

impl<'w> Step<'w> {
    /// Parses a word; `None` if it is not understood.
    pub(crate) fn parse(word: &'w str) -> Option<Self> {
        match word.split_once('=') {
            None => Self::parse_name(word),
            Some((name, value)) => Self::parse_value(name, value),
        }
    }

    fn parse_name(name: &str) -> Option<Self> {
        Some(match name {
            "ready" => Self::Ready(true),
            "unready" => Self::Ready(false),
            "tables" => Self::Tables,
            "secret" => Self::Secret { expected: None },
            "no-secret" => Self::NoSecret,
            "forever" => Self::Forever,
            "input" => Self::Input,
            "ports" => Self::Ports,
            "unemulated" => Self::Unemulated,
            "cpus" => Self::Cpus { expected: None },
            _ => return None,
        })
    }

    fn parse_value(name: &str, value: &'w str) -> Option<Self> {
        Some(match name {
            "share" => Self::Convert { pages: pages(value)?, to: Status::Shared },
            "private" => Self::Convert { pages: pages(value)?, to: Status::Private },
            "in-place-share" => in_place(value, Status::Shared)?,
            "in-place-private" => in_place(value, Status::Private)?,
            "fill" => {
                let (pages, seed) = seeded(value)?;
                Self::Fill { pages, seed }
            }
            "check" => {
                let (pages, seed) = seeded(value)?;
                Self::Check { pages, seed }
            }
            "hypercall" => hypercall(value, Ring::Kernel)?,
            "hypercall-cpl3" => hypercall(value, Ring::User)?,
            "alternate" => {
                let (range, rounds) = value.split_once('*').unwrap_or((value, "1"));
                Self::Alternate { pages: pages(range)?, rounds: number(rounds)? }
            }
            "storm" => Self::Storm { storm: storm(value, true)?, on: Processors::First },
            "storm-smp" => Self::Storm { storm: storm(value, false)?, on: Processors::All },
            "fresh" => {
                let (range, passes) = value.split_once(':')?;
                let passes = if passes == "input" { fresh::UNTIL_INPUT } else { number(passes)? };
                Self::Fresh { pages: pages(range)?, passes }
            }
            "donate" => {
                let gpa = number(value)?;
                (gpa % PAGE_SIZE == 0).then_some(Self::Donate { gpa })?
            }
            "secret" => Self::Secret { expected: Some(value) },
            "count" => Self::Count(number(value)?),
            "cpus" => Self::Cpus { expected: Some(number(value)?) },
            "cpuid" => {
                let (leaf, subleaf) = value.split_once(',').unwrap_or((value, "0"));
                Self::Cpuid { leaf: narrow(leaf)?, subleaf: narrow(subleaf)? }
            }
            "then" => Self::Then(end(value)?),
            _ => return None,
        })
    }
}

fn end(value: &str) -> Option<End> {
    Some(match value {
        "poweroff" => End::PowerOff,
        "reboot" => End::Reboot,
        "triple-fault" => End::TripleFault,
        "halt" => End::Halt,
        _ => return None,
    })
}

fn in_place(value: &str, to: Status) -> Option<Step<'static>> {
    let (pages, seed) = seeded(value)?;
    Some(Step::ConvertInPlace { pages, to, seed })
}

/// `RBX,RCX,RDX` or `RBX,RCX,RDX:RAX`
fn hypercall(value: &str, ring: Ring) -> Option<Step<'static>> {
    let (arguments, expected) = match value.split_once(':') {
        Some((arguments, expected)) => (arguments, Some(expected.parse().ok()?)),
        None => (value, None),
    };
    let mut arguments = arguments.split(',').map(number);
    let call = [arguments.next()??, arguments.next()??, arguments.next()??];
    arguments.next().is_none().then_some(Step::Hypercall { call, ring, expected })
}

/// `GPA+PAGES:SEED,STEPS` or `GPA+PAGES:SEED,input`
fn storm(value: &str, in_place: bool) -> Option<Storm> {
    let (range, rest) = value.split_once(':')?;
    let (seed, steps) = rest.split_once(',')?;
    let steps = if steps == "input" { UNTIL_INPUT } else { number(steps)? };
    Some(Storm { pages: pages(range)?, seed: number(seed)?, steps, in_place })
}

/// `GPA+PAGES:SEED`
fn seeded(value: &str) -> Option<(Pages, u64)> {
    let (range, seed) = value.split_once(':')?;
    Some((pages(range)?, number(seed)?))
}

/// `GPA+PAGES`: an aligned address and a number of pages, at least one.
fn pages(value: &str) -> Option<Pages> {
    let (gpa, count) = value.split_once('+')?;
    let (gpa, count) = (number(gpa)?, number(count)?);
    let limit = (gpa / PAGE_SIZE).checked_add(count)?.checked_mul(PAGE_SIZE);
    let valid = gpa % PAGE_SIZE == 0 && count > 0 && limit.is_some();
    valid.then_some(Pages { first: gpa / PAGE_SIZE, count })
}

fn narrow(value: &str) -> Option<u32> {
    number(value)?.try_into().ok()
}

/// Decimal, or hexadecimal after `0x`; `K`, `M` and `G` multiply by powers of 1024.
fn number(value: &str) -> Option<u64> {
    let (digits, shift) = match value.char_indices().next_back()? {
        (at, 'K') => (value.get(..at)?, 10),
        (at, 'M') => (value.get(..at)?, 20),
        (at, 'G') => (value.get(..at)?, 30),
        _ => (value, 0),
    };
    let number = match digits.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok()?,
        None => digits.parse().ok()?,
    };
    number.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::{Pages, Processors, Ring, Status, Step, Storm, UNTIL_INPUT};

    #[test]
    fn words_with_ranges_are_understood() {
        let pages = Pages { first: 0x400, count: 16 };
        assert_eq!(Step::parse("share=4M+16"), Some(Step::Convert { pages, to: Status::Shared }));
        assert_eq!(Step::parse("fresh=4M+16:9"), Some(Step::Fresh { pages, passes: 9 }));
        assert_eq!(Step::parse("fresh=4M+16"), None);
        assert_eq!(Step::parse("donate=4M"), Some(Step::Donate { gpa: 0x40_0000 }));
        assert_eq!(Step::parse("donate=0x400001"), None);
        assert_eq!(Step::parse("input"), Some(Step::Input));
        assert_eq!(Step::parse("secret=a=b"), Some(Step::Secret { expected: Some("a=b") }));
        assert_eq!(Step::parse("check=0x400000+16:7"), Some(Step::Check { pages, seed: 7 }));
        assert_eq!(
            Step::parse("alternate=4096K+0x10*1000"),
            Some(Step::Alternate { pages, rounds: 1000 })
        );
        let storm = Storm { pages, seed: 1, steps: 500, in_place: true };
        assert_eq!(
            Step::parse("storm=4M+16:1,500"),
            Some(Step::Storm { storm, on: Processors::First })
        );
        let storm = Storm { steps: UNTIL_INPUT, in_place: false, ..storm };
        assert_eq!(
            Step::parse("storm-smp=4M+16:1,input"),
            Some(Step::Storm { storm, on: Processors::All })
        );
    }

    #[test]
    fn a_hypercall_takes_any_numbers_and_an_optional_answer() {
        assert_eq!(
            Step::parse("hypercall=0xfffffffffffff001,0x10000000000000,0:-22"),
            Some(Step::Hypercall {
                call: [0xffff_ffff_ffff_f001, 1 << 52, 0],
                ring: Ring::Kernel,
                expected: Some(-22)
            })
        );
        assert_eq!(
            Step::parse("hypercall-cpl3=1,2,3"),
            Some(Step::Hypercall { call: [1, 2, 3], ring: Ring::User, expected: None })
        );
    }

    #[test]
    fn garbage_is_not_understood() {
        for word in [
            "",
            "=",
            "share",
            "share=",
            "share=1+1",
            "share=4M+0",
            "share=4M",
            "fill=4M+1",
            "hypercall=1,2",
            "hypercall=1,2,3,4",
            "then=sleep",
            "cpuid=0x100000000",
            "ready=1",
            "count=16777216T",
            "count=17179869184G",
            "share=0xfffffffffffff000+1",
            "console=ttyS0",
        ] {
            assert_eq!(Step::parse(word), None, "{word}");
        }
    }
}
