//! P, the guest's private memory: what only the software firmware may hold.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::io::Error as IoError;

use aes::Aes128;
use ctr::Ctr128BE;
use ctr::cipher::{KeyIvInit, StreamCipher, StreamCipherSeek};
use thiserror::Error;
use vm_memory::{
    Address, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, VolatileSlice,
};
use zeroize::Zeroizing;

/// Bytes handled at a time: bounds what is copied out of guest memory at once.
const STEP: usize = 64 << 10;

/// Guest memory as the guest sees it with the C-bit.
///
/// Addresses are host user addresses inside the host's view, as SEV commands carry them.
#[cfg_attr(test, derive(Clone))]
pub struct GuestView {
    host: GuestMemoryMmap<()>,
    private: GuestMemoryMmap<()>,
    /// Stands for the guest's memory encryption key (VEK): what the host sees of a page that was
    /// encrypted in place is ciphertext under it.
    key: Zeroizing<[u8; 16]>,
}

impl Debug for GuestView {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        f.debug_struct("GuestView").finish_non_exhaustive()
    }
}

impl GuestView {
    /// Both memories map the same guest addresses.
    pub(super) fn new(
        host: GuestMemoryMmap<()>,
        private: GuestMemoryMmap<()>,
    ) -> Result<Self, IoError> {
        let mut key = Zeroizing::new([0; 16]);
        getrandom::fill(key.as_mut_slice()).map_err(IoError::other)?;
        Ok(Self { host, private, key })
    }

    /// Whether `len` bytes at `address` are all inside one run of guest RAM.
    #[must_use]
    pub fn contains(&self, address: u64, len: u64) -> bool {
        self.find(address, len).is_ok()
    }

    /// Moves what the host sees at `address..address + len` into private memory, leaves
    /// ciphertext in the host's view, and hands the plaintext to `each`, in order, in pieces.
    ///
    /// # Errors
    /// [`NotGuestRam`] if the bytes are not all inside one run of guest RAM; nothing is changed.
    pub fn encrypt_in_place(
        &self,
        address: u64,
        len: u64,
        each: &mut dyn FnMut(&[u8]),
    ) -> Result<(), NotGuestRam> {
        let (host, private) = self.find(address, len)?;
        let mut cipher = Ctr128BE::<Aes128>::new((&*self.key).into(), &[0; 16].into());
        // Equal plaintext at two addresses must not look equal.
        cipher.seek(self.gpa(address).map_or(0, |gpa| gpa.0));
        let mut buffer = Zeroizing::new(vec![0; STEP]);
        let mut done = 0;
        while done < host.len() {
            let step = STEP.min(host.len() - done);
            let bytes = buffer.get_mut(..step).unwrap_or_default();
            let (from, to) = (part(&host, done, step)?, part(&private, done, step)?);
            from.copy_to(bytes);
            to.copy_from(&*bytes);
            each(bytes);
            cipher.apply_keystream(bytes);
            from.copy_from(&*bytes);
            done += step;
        }
        Ok(())
    }

    /// Reads plaintext as the guest sees it with the C-bit.
    ///
    /// # Errors
    /// [`NotGuestRam`] if the bytes are not all inside one run of guest RAM.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Result<(), NotGuestRam> {
        let (_, private) = self.find(address, bytes.len() as u64)?;
        private.copy_to(bytes);
        Ok(())
    }

    /// Writes plaintext that the guest sees with the C-bit.
    ///
    /// # Errors
    /// [`NotGuestRam`] if the bytes are not all inside one run of guest RAM.
    pub fn write(&self, address: u64, bytes: &[u8]) -> Result<(), NotGuestRam> {
        let (_, private) = self.find(address, bytes.len() as u64)?;
        private.copy_from(bytes);
        Ok(())
    }

    /// The same bytes in both memories.
    fn find(
        &self,
        address: u64,
        len: u64,
    ) -> Result<(VolatileSlice<'_>, VolatileSlice<'_>), NotGuestRam> {
        let refused = NotGuestRam { address, len };
        let gpa = self.gpa(address).ok_or(refused)?;
        let bytes = usize::try_from(len).map_err(|_too_large| refused)?;
        let host = self.host.get_slice(gpa, bytes).map_err(|_outside| refused)?;
        let private = self.private.get_slice(gpa, bytes).map_err(|_outside| refused)?;
        Ok((host, private))
    }

    /// The guest address that the host sees at user address `address`.
    fn gpa(&self, address: u64) -> Option<GuestAddress> {
        self.host.iter().find_map(|region| {
            let offset = address.checked_sub(region.as_ptr() as u64)?;
            (offset < region.len()).then(|| region.start_addr().unchecked_add(offset))
        })
    }
}

/// The address is not guest RAM, or the bytes leave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{len:#x} bytes at user address {address:#x} are not guest RAM")]
pub struct NotGuestRam {
    /// Host user address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
}

fn part<'a>(
    slice: &VolatileSlice<'a>,
    offset: usize,
    len: usize,
) -> Result<VolatileSlice<'a>, NotGuestRam> {
    slice
        .subslice(offset, len)
        .map_err(|_outside| NotGuestRam { address: offset as u64, len: len as u64 })
}
