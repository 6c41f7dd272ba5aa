//! The software platform's `/dev/sev`.

use std::fs::File;
use std::io::Error as IoError;
use std::mem::replace;
use std::os::fd::AsRawFd;

use zerocopy::IntoBytes;

use crate::sev::abi::{self, BLOB_LEN_MAX, CHAIN_LEN, SevIssueCmd, device_command, length};
use crate::sev::certificate::CERTIFICATE_LEN;
use crate::sev::measurement::FirmwareVersion;
use crate::sev::{Errno, SevDevice, SevStatus};

use super::host::{HostState, SoftwareHost};
use super::identity::ID_LEN;
use super::model::Model;
use super::user_memory;

/// The first firmware API that knows `GET_ID2`; the kernel looks before it asks.
const GET_ID2_API: (u8, u8) = (0, 16);

/// Platform states as `PLATFORM_STATUS` numbers them: not initialised, no guest, or at least one.
const STATE_UNINIT: u8 = 0;
const STATE_INIT: u8 = 1;
const STATE_WORKING: u8 = 2;

/// An open descriptor of a [`SoftwareHost`]'s `/dev/sev`.
#[derive(Debug)]
pub struct SoftwareDevice {
    host: SoftwareHost,
    placeholder: File,
}

impl SoftwareHost {
    /// Opens this machine's `/dev/sev`.
    ///
    /// # Errors
    /// If the process has no descriptor left. One is held so that no other file gets its number.
    pub fn open_device(&self) -> Result<SoftwareDevice, IoError> {
        let placeholder = File::open("/dev/null")?;
        self.lock().devices.insert(placeholder.as_raw_fd());
        Ok(SoftwareDevice { host: self.clone(), placeholder })
    }
}

impl Drop for SoftwareDevice {
    fn drop(&mut self) {
        self.host.lock().devices.remove(&self.placeholder.as_raw_fd());
    }
}

impl SevDevice for SoftwareDevice {
    fn issue(&self, command: &mut SevIssueCmd) -> Result<(), Errno> {
        self.host.mailbox.wait();
        let (mut host, model) = (self.host.lock(), &self.host.model);
        host.firmware(self.fd())?;
        let FirmwareVersion { major, minor, .. } = model.firmware;
        let answer = match command.cmd {
            device_command::PLATFORM_STATUS => platform_status(&host, model, command.data),
            device_command::PDH_CERT_EXPORT => {
                // The kernel initialises a platform to be told this.
                let was_initialised = replace(&mut host.is_initialised, true);
                let answer = export_pdh(&host, command.data);
                host.is_initialised = was_initialised || !model.kernel.shuts_down_again();
                answer
            }
            device_command::GET_ID2 if (major, minor) < GET_ID2_API => {
                return Err(Errno::ENOTSUPP);
            }
            device_command::GET_ID2 => export_id(&host, command.data),
            _ => return Err(Errno::EINVAL),
        };
        match answer {
            Ok(()) => {
                command.error = 0;
                Ok(())
            }
            Err(CommandRefusal::Kernel(errno)) => Err(errno),
            Err(CommandRefusal::Firmware(status)) => {
                command.error = status.0;
                Err(Errno::EIO)
            }
        }
    }

    fn fd(&self) -> i32 {
        self.placeholder.as_raw_fd()
    }
}

/// What refused a command: only the firmware's word goes into `error`.
enum CommandRefusal {
    Kernel(Errno),
    Firmware(SevStatus),
}

impl From<Errno> for CommandRefusal {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

fn platform_status(host: &HostState, model: &Model, address: u64) -> Result<(), CommandRefusal> {
    let guests = host.firmware.guest_count();
    let FirmwareVersion { major: api_major, minor: api_minor, build } = model.firmware;
    let status = abi::UserDataStatus {
        api_major,
        api_minor,
        state: match (host.is_initialised, guests) {
            (false, _) => STATE_UNINIT,
            (true, 0) => STATE_INIT,
            (true, _) => STATE_WORKING,
        },
        // Self-owned, without SEV-ES.
        flags: 0,
        build,
        guest_count: u32::try_from(guests).unwrap_or(u32::MAX),
    };
    Ok(user_memory::write_value(address, &status)?)
}

fn export_pdh(host: &HostState, address: u64) -> Result<(), CommandRefusal> {
    let mut export: abi::PdhCertExport = user_memory::read_value(address)?;
    let asked = export;
    let query = asked.pdh_uaddr == 0
        || asked.pdh_len == 0
        || asked.chain_uaddr == 0
        || asked.chain_len == 0;
    if !query && (asked.pdh_len > BLOB_LEN_MAX || asked.chain_len > BLOB_LEN_MAX) {
        return Err(Errno::EFAULT.into());
    }
    let short = query
        || (asked.pdh_len as usize) < CERTIFICATE_LEN
        || (asked.chain_len as usize) < CHAIN_LEN;
    export.pdh_len = length(CERTIFICATE_LEN);
    export.chain_len = length(CHAIN_LEN);
    user_memory::write_value(address, &export)?;
    if short {
        return Err(CommandRefusal::Firmware(SevStatus::INVALID_LEN));
    }
    let identity = host.firmware.identity();
    user_memory::write(asked.pdh_uaddr, identity.pdh_certificate().as_bytes())?;
    Ok(user_memory::write(asked.chain_uaddr, identity.chain().as_bytes())?)
}

fn export_id(host: &HostState, address: u64) -> Result<(), CommandRefusal> {
    let mut export: abi::IdExport = user_memory::read_value(address)?;
    let asked = export;
    export.len = length(ID_LEN);
    user_memory::write_value(address, &export)?;
    if asked.uaddr == 0 || (asked.len as usize) < ID_LEN {
        return Err(CommandRefusal::Firmware(SevStatus::INVALID_LEN));
    }
    Ok(user_memory::write(asked.uaddr, &host.firmware.identity().chip_id())?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sev::certificate::Certificate;
    use crate::sev::command::address_of_mut;
    use crate::sev::device::{chip_id, export_pdh, platform_status};
    use crate::sev::endorsement::cek_address;
    use crate::sev::software::model::VERSION;
    use crate::sev::software::{Identity, Model};

    const UNTOUCHED: u32 = 0xdead_beef;
    const BAD_ADDRESS: u64 = 0xdead_0000_0000;

    fn device() -> SoftwareDevice {
        SoftwareHost::new(Identity::ephemeral().unwrap()).open_device().unwrap()
    }

    fn run<T>(cmd: u32, data: &mut T) -> (Result<(), Errno>, u32) {
        let mut command = SevIssueCmd { cmd, data: address_of_mut(data), error: UNTOUCHED };
        let result = device().issue(&mut command);
        (result, command.error)
    }

    /// What the platform says of itself is consistent.
    #[test]
    fn a_platform_describes_itself() {
        let device = device();
        let status = platform_status(&device).unwrap();
        assert_eq!((status.version, status.externally_owned, status.guests), (VERSION, false, 0));
        let (pdh, chain) = export_pdh(&device).unwrap();
        chain.verify(&pdh).unwrap();
        assert_eq!(pdh.api(), (VERSION.major, VERSION.minor));
        assert_eq!(chip_id(&device).unwrap().len(), ID_LEN);
    }

    /// A query, or a buffer too short, returns both lengths and no certificate.
    #[test]
    fn exporting_asks_for_room_first() {
        let mut pdh = [0_u8; CERTIFICATE_LEN];
        let mut chain = [0_u8; CHAIN_LEN];
        let good = abi::PdhCertExport {
            pdh_uaddr: address_of_mut(&mut pdh),
            pdh_len: 2084,
            chain_uaddr: address_of_mut(&mut chain),
            chain_len: 6252,
        };
        let query = (Err(Errno::EIO), SevStatus::INVALID_LEN.0);
        for mut export in [
            abi::PdhCertExport::default(),
            abi::PdhCertExport { pdh_uaddr: 0, ..good },
            abi::PdhCertExport { pdh_len: 0, ..good },
            abi::PdhCertExport { chain_uaddr: 0, ..good },
            abi::PdhCertExport { chain_len: 0, ..good },
            abi::PdhCertExport { pdh_len: 2083, ..good },
            abi::PdhCertExport { chain_len: 6251, ..good },
        ] {
            assert_eq!(run(device_command::PDH_CERT_EXPORT, &mut export), query);
            assert_eq!(({ export.pdh_len }, { export.chain_len }), (2084, 6252));
            assert_eq!((pdh[0], chain[0]), (0, 0));
        }
        let efault = |error| (Err(Errno::EFAULT), error);
        let mut long = abi::PdhCertExport { pdh_len: 0x4001, ..good };
        assert_eq!(run(device_command::PDH_CERT_EXPORT, &mut long), efault(UNTOUCHED));
        let mut bad = abi::PdhCertExport { chain_uaddr: BAD_ADDRESS, ..good };
        assert_eq!(run(device_command::PDH_CERT_EXPORT, &mut bad).0, Err(Errno::EFAULT));
        let mut export = good;
        assert_eq!(run(device_command::PDH_CERT_EXPORT, &mut export), (Ok(()), 0));
        Certificate::decode(&pdh).unwrap().diffie_hellman_key().unwrap();
    }

    fn device_of(model: Model) -> SoftwareDevice {
        SoftwareHost::modelled(Identity::ephemeral().unwrap(), model).open_device().unwrap()
    }

    /// A firmware before API 0.16 has no `GET_ID2`, and the kernel's answer names what to do; the address of
    /// the signed CEK is then told without the chip's identifier.
    #[test]
    fn an_old_firmware_has_no_chip_id() {
        for (minor, has_id) in [(15, false), (16, true)] {
            let firmware = FirmwareVersion { major: 0, minor, build: 1 };
            let device = device_of(Model { firmware, ..Model::default() });
            assert_eq!(platform_status(&device).unwrap().version, firmware);
            match chip_id(&device) {
                Ok(id) => assert!(has_id && id.len() == ID_LEN),
                Err(refused) => {
                    assert!(!has_id && refused.errno() == Errno(524), "{refused}");
                    let text = refused.to_string();
                    assert!(text.contains("ENOTSUPP") && text.contains("update"), "{text}");
                    let address = cek_address(&device);
                    assert!(address.ends_with("<the chip's identifier>"), "{address}");
                }
            }
        }
    }

    /// Asking for certificates initialises a platform, and newer kernels shut it down again.
    #[test]
    fn exporting_initialises_a_platform() {
        for (kernel, stays) in [("6.14", true), ("6.15", false)] {
            let kernel = kernel.parse().unwrap();
            let device = device_of(Model { is_initialised: false, kernel, ..Model::default() });
            assert!(!platform_status(&device).unwrap().is_initialised);
            export_pdh(&device).unwrap();
            assert_eq!(platform_status(&device).unwrap().is_initialised, stays, "{kernel}");
        }
    }

    /// Unknown commands and bad addresses are the kernel's to refuse.
    #[test]
    fn the_kernel_refuses_first() {
        for cmd in [0, 2, 3, 4, 6, 7, 9, u32::MAX] {
            assert_eq!(run(cmd, &mut 0_u64), (Err(Errno::EINVAL), UNTOUCHED), "command {cmd}");
        }
        for cmd in [1, 5, 8] {
            let mut command = SevIssueCmd { cmd, data: BAD_ADDRESS, error: UNTOUCHED };
            assert_eq!(device().issue(&mut command), Err(Errno::EFAULT));
            assert_eq!({ command.error }, UNTOUCHED);
        }
        let mut id = abi::IdExport { uaddr: BAD_ADDRESS, len: 64 };
        assert_eq!(run(device_command::GET_ID2, &mut id).0, Err(Errno::EFAULT));
    }
}
