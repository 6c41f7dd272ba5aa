//! The software platform's `/dev/sev`.

use std::fs::File;
use std::os::fd::AsRawFd;

use zerocopy::IntoBytes;

use crate::sev::abi::{self, BLOB_LEN_MAX, CHAIN_LEN, SevIssueCmd, device_command, length};
use crate::sev::certificate::CERTIFICATE_LEN;
use crate::sev::{Errno, SevDevice, Status};

use super::firmware::VERSION;
use super::identity::ID_LEN;
use super::{HostState, SoftwareHost, user_memory};

/// Platform states as `PLATFORM_STATUS` numbers them: no guest, or at least one.
const STATE_INIT: u8 = 1;
const STATE_WORKING: u8 = 2;

/// An open descriptor of a [`SoftwareHost`]'s `/dev/sev`.
#[derive(Debug)]
pub struct SoftwareDevice {
    host: SoftwareHost,
    placeholder: File,
}

impl SoftwareDevice {
    pub(super) fn new(host: SoftwareHost, placeholder: File) -> Self {
        Self { host, placeholder }
    }
}

impl Drop for SoftwareDevice {
    fn drop(&mut self) {
        self.host.lock().devices.remove(&self.placeholder.as_raw_fd());
    }
}

impl SevDevice for SoftwareDevice {
    fn issue(&mut self, command: &mut SevIssueCmd) -> Result<(), Errno> {
        let host = self.host.lock();
        let answer = match command.cmd {
            device_command::PLATFORM_STATUS => platform_status(&host, command.data),
            device_command::PDH_CERT_EXPORT => export_pdh(&host, command.data),
            device_command::GET_ID2 => export_id(&host, command.data),
            _ => return Err(Errno::EINVAL),
        };
        match answer {
            Ok(()) => {
                command.error = 0;
                Ok(())
            }
            Err(Refusal::Kernel(errno)) => Err(errno),
            Err(Refusal::Firmware(status)) => {
                command.error = status.0;
                Err(Errno::EIO)
            }
        }
    }

    fn fd(&self) -> i32 {
        self.placeholder.as_raw_fd()
    }
}

/// Who refused a command: only the firmware's word goes into `error`.
enum Refusal {
    Kernel(Errno),
    Firmware(Status),
}

impl From<Errno> for Refusal {
    fn from(errno: Errno) -> Self {
        Self::Kernel(errno)
    }
}

fn platform_status(host: &HostState, address: u64) -> Result<(), Refusal> {
    let guests = host.firmware.guest_count();
    let status = abi::PlatformStatus {
        api_major: VERSION.major,
        api_minor: VERSION.minor,
        state: if guests == 0 { STATE_INIT } else { STATE_WORKING },
        // Self-owned, without SEV-ES.
        flags: 0,
        build: VERSION.build,
        guest_count: u32::try_from(guests).unwrap_or(u32::MAX),
    };
    Ok(user_memory::write_value(address, &status)?)
}

fn export_pdh(host: &HostState, address: u64) -> Result<(), Refusal> {
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
        return Err(Refusal::Firmware(Status::INVALID_LEN));
    }
    let identity = host.firmware.identity();
    user_memory::write(asked.pdh_uaddr, identity.pdh_certificate().as_bytes())?;
    Ok(user_memory::write(asked.chain_uaddr, identity.chain().as_bytes())?)
}

fn export_id(host: &HostState, address: u64) -> Result<(), Refusal> {
    let mut export: abi::IdExport = user_memory::read_value(address)?;
    let asked = export;
    export.len = length(ID_LEN);
    user_memory::write_value(address, &export)?;
    if asked.uaddr == 0 || (asked.len as usize) < ID_LEN {
        return Err(Refusal::Firmware(Status::INVALID_LEN));
    }
    Ok(user_memory::write(asked.uaddr, &host.firmware.identity().chip_id())?)
}
