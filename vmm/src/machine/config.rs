//! What machine to build: valid by construction.

use std::fmt::{Display, Formatter, Result as FmtResult};
use std::path::PathBuf;

use thiserror::Error;

use crate::boot::BootConfig;
use crate::devices::virtio::{DiskOptions, Mac, RateLimit, TapSource};
use crate::encryption::Design;
use crate::page::{BadRange, PAGE_SIZE, RamLayout};
use crate::sev::Policy;
use crate::sev::certificate::Certificate;
use crate::sev::endorsement::EndorsementFiles;
use crate::sev::session::Session;
use crate::sev::software::Model;

/// Most vCPUs of a machine.
pub const VCPUS_MAX: u8 = 8;

/// Least RAM of a machine: a small kernel and its initramfs have room, tables and trampolines too.
pub const RAM_BYTES_MIN: u64 = 16 << 20;

/// Most RAM of a machine: what lies above the device hole is one memory slot, for which KVM takes
/// fewer than 2^31 pages.
pub const RAM_BYTES_MAX: u64 = 8 << 40;

/// The command line of a kernel that is given none: its console is the serial port.
pub const DEFAULT_CMDLINE: &str = "console=ttyS0";

/// A machine.
#[derive(Debug, Clone)]
pub struct Config {
    /// A bzImage, or an ELF with a PVH note.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// How many vCPUs.
    pub vcpus: VcpuCount,
    /// Where RAM is; made by [`ram_layout`].
    pub ram: RamLayout,
    /// Where the guest's serial port ends.
    pub serial: Serial,
    /// What makes it an SEV guest; `None` is a plain VM.
    pub sev: Option<SevConfig>,
    /// What is on its PCI bus, from slot 1 on.
    pub devices: Vec<DeviceConfig>,
}

/// A device on the PCI bus, and what of the host it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceConfig {
    /// Random bytes of this character device.
    Rng {
        /// Its path.
        source: PathBuf,
    },
    /// A network card.
    Net {
        /// Its wire.
        tap: TapSource,
        /// Its address; one without takes that of the card that comes.
        mac: Option<Mac>,
        /// Queue pairs.
        queues: u16,
        /// What each direction may carry.
        limit: Option<RateLimit>,
    },
    /// A file or a block device.
    Disk(DiskOptions),
}

impl Config {
    /// What the guest starts from: all that its launch digest depends on.
    #[must_use]
    pub fn boot(&self, c_bit: Option<u8>) -> BootConfig<'_> {
        BootConfig {
            kernel: &self.kernel,
            initramfs: self.initramfs.as_deref(),
            cmdline: &self.cmdline,
            vcpus: self.vcpus.get(),
            ram: self.ram,
            c_bit,
        }
    }
}

/// How many vCPUs: 1 to [`VCPUS_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuCount(u8);

impl VcpuCount {
    /// This many.
    ///
    /// # Errors
    /// [`BadVcpuCount`] unless it is 1 to [`VCPUS_MAX`].
    pub fn new(count: u64) -> Result<Self, BadVcpuCount> {
        match u8::try_from(count) {
            Ok(count @ 1..=VCPUS_MAX) => Ok(Self(count)),
            _ => Err(BadVcpuCount { count }),
        }
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u8 {
        self.0
    }
}

/// The layout of `bytes` of RAM, if a machine can have that much.
///
/// # Errors
/// [`BadRam`] if it is too little, too much, or not whole pages.
pub fn ram_layout(bytes: u64) -> Result<RamLayout, BadRam> {
    if bytes < RAM_BYTES_MIN {
        return Err(BadRam::TooLittle { bytes });
    }
    if bytes > RAM_BYTES_MAX {
        return Err(BadRam::TooMuch { bytes });
    }
    RamLayout::new(bytes).map_err(|cause| BadRam::NotPages { bytes, cause })
}

/// Where the guest's serial port ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Serial {
    /// Standard input and output.
    Tty,
    /// A file that output is appended to; no input.
    File(PathBuf),
    /// Nowhere.
    Null,
}

/// What makes a machine an SEV guest.
#[derive(Debug, Clone)]
pub struct SevConfig {
    /// What answers SEV commands.
    pub platform: PlatformKind,
    /// The guest's policy.
    pub policy: Policy,
    /// What keeps the record of shared pages.
    pub status: Design,
    /// The guest's owner, who can check the measurement.
    pub owner: OwnerInput,
}

/// What answers SEV commands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlatformKind {
    /// KVM and the AMD Secure Processor.
    Hardware {
        /// The vendor's certificates for it.
        endorsement: EndorsementFiles,
        /// Whether the kernel is made to write back all caches before the last round of a migration.
        write_back: bool,
    },
    /// Our model of both, which gives no confidentiality.
    Software {
        /// The directory that keeps its keys; `None` makes keys that end with the process.
        identity: Option<PathBuf>,
        /// What kind of host it stands for: its kernel, how long things take, what fails.
        model: Model,
    },
}

impl Display for PlatformKind {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.write_str(match self {
            Self::Hardware { .. } => "hardware",
            Self::Software { .. } => "software",
        })
    }
}

/// Who owns the guest, and so can check its measurement.
#[derive(Debug, Clone)]
pub enum OwnerInput {
    /// This process, for itself.
    Own,
    /// Another person or service. They have made these files for the platform.
    Files {
        /// The owner's DH certificate.
        certificate: Box<Certificate>,
        /// The session with the platform.
        session: Session,
    },
}

/// Not a number of vCPUs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{count} vCPUs; a machine has 1 to {VCPUS_MAX}")]
pub struct BadVcpuCount {
    /// How many were asked for.
    pub count: u64,
}

/// Not a size of RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum BadRam {
    /// Below [`RAM_BYTES_MIN`].
    #[error("{bytes} bytes of memory; a machine needs at least {} MiB", RAM_BYTES_MIN >> 20)]
    TooLittle {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Above [`RAM_BYTES_MAX`].
    #[error("{bytes} bytes of memory; a machine has at most {} TiB", RAM_BYTES_MAX >> 40)]
    TooMuch {
        /// Bytes asked for.
        bytes: u64,
    },
    /// Not whole pages.
    #[error("{bytes} bytes of memory are not whole pages of {PAGE_SIZE} bytes")]
    NotPages {
        /// Bytes asked for.
        bytes: u64,
        /// Why they are not.
        #[source]
        cause: BadRange,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One to eight vCPUs, and nothing that only looks so after truncation.
    #[test]
    fn a_machine_has_one_to_eight_vcpus() {
        for count in 1..=8 {
            assert_eq!(u64::from(VcpuCount::new(count).unwrap().get()), count);
        }
        for count in [0, 9, 256, 257, u64::MAX] {
            assert_eq!(VcpuCount::new(count), Err(BadVcpuCount { count }));
        }
    }

    /// The bounds themselves are accepted, what lies beyond is not.
    #[test]
    fn memory_is_whole_pages_within_bounds() {
        for bytes in [RAM_BYTES_MIN, RAM_BYTES_MIN + PAGE_SIZE, RAM_BYTES_MAX] {
            assert_eq!(ram_layout(bytes).unwrap().bytes(), bytes);
        }
        let bytes = RAM_BYTES_MIN - PAGE_SIZE;
        assert_eq!(ram_layout(bytes), Err(BadRam::TooLittle { bytes }));
        let bytes = RAM_BYTES_MAX + PAGE_SIZE;
        assert_eq!(ram_layout(bytes), Err(BadRam::TooMuch { bytes }));
        let odd = ram_layout(RAM_BYTES_MIN + 1);
        assert!(matches!(odd, Err(BadRam::NotPages { .. })), "{odd:?}");
    }

    /// All of the largest RAM has addresses below the C-bit of an EPYC, and KVM takes its slots.
    #[test]
    fn the_largest_memory_ends_below_the_c_bit() {
        let last = ram_layout(RAM_BYTES_MAX).unwrap().ranges().last().unwrap();
        assert!(last.start().0 + last.bytes() <= 1 << 47);
        assert!(last.pages() < 1 << 31);
    }
}
