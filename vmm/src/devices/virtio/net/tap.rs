//! A tap of the host: opened by name or taken over by descriptor, and each of its queues a [`Port`].
//!
//! The one file here that hands addresses to the kernel: for ioctls, and for a packet that lies in
//! guest RAM, which is written from where it is.
#![expect(unsafe_code, reason = "a tap's ioctls, and one write of many pieces of guest RAM")]

use std::fs::{File, OpenOptions};
use std::io::{Error as IoError, Read};
use std::mem::zeroed;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use libc::{c_int, c_short, c_ulong, ifreq, iovec};
use rustix::net::netdevice::name_to_index;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use thiserror::Error;

use super::header::HEADER_BYTES;
use super::port::Port;
use crate::memory::DeviceSlice;

/// Which tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TapSource {
    /// The interface of this name, which is there already.
    Name(String),
    /// One descriptor for each queue, which whoever started this process has opened and set up.
    Descriptors(Vec<RawFd>),
}

/// One queue of a tap.
#[derive(Debug)]
struct TapQueue(File);

/// What a tap must be: Ethernet, nothing before the packet but the virtio header.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Most pieces of one write, the header among them.
const PIECES_MAX: usize = 1024;

impl TapSource {
    /// Opens `queues` queues of it. None of them leaves anything undone in packets yet.
    ///
    /// # Errors
    /// [`NoTap`].
    pub fn open(&self, queues: u16) -> Result<Vec<Box<dyn Port>>, NoTap> {
        let files = match self {
            Self::Name(name) => open(name, queues)?,
            Self::Descriptors(numbers) => {
                if numbers.len() != usize::from(queues) {
                    return Err(NoTap::Count { given: numbers.len(), queues });
                }
                numbers.iter().map(|number| take_over(*number)).collect::<Result<_, _>>()?
            }
        };
        let set_up = |file: File| {
            let failed = |cause| NoTap::SetUp { tap: self.name(), cause };
            rustix::io::ioctl_fionbio(&file, true).map_err(|errno| failed(errno.into()))?;
            let bytes = c_int::try_from(HEADER_BYTES).map_err(|e| failed(IoError::other(e)))?;
            // SAFETY: the kernel reads one int at that address.
            let set =
                unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) };
            checked(set).map_err(failed)?;
            let queue = TapQueue(file);
            queue.set_offloads(0).map_err(failed)?;
            Ok(Box::new(queue) as Box<dyn Port>)
        };
        files.into_iter().map(set_up).collect()
    }

    /// For people.
    fn name(&self) -> String {
        match self {
            Self::Name(name) => name.clone(),
            Self::Descriptors(numbers) => format!("of descriptor {numbers:?}"),
        }
    }
}

/// A tap that is there. Opening the name of one that is not would make it, until it is closed.
fn open(name: &str, queues: u16) -> Result<Vec<File>, NoTap> {
    let failed = |cause| NoTap::Open { name: name.to_owned(), cause };
    let asked = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None);
    let asked = asked.map_err(|errno| failed(errno.into()))?;
    if name_to_index(&asked, name).is_err() {
        return Err(NoTap::Missing { name: name.to_owned() });
    }
    // One that was made for several queues wants to be told so even if one is enough.
    let several = FLAGS | libc::IFF_MULTI_QUEUE;
    if queues == 1
        && let Ok(file) = open_queue(name, FLAGS)
    {
        return Ok(vec![file]);
    }
    let one = || open_queue(name, several).map_err(failed);
    (0..queues).map(|_| one()).collect()
}

fn open_queue(name: &str, flags: c_int) -> Result<File, IoError> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    let mut request = request(flags)?;
    let short = || IoError::from_raw_os_error(libc::ENAMETOOLONG);
    let room = request.ifr_name.len().checked_sub(1).ok_or_else(short)?;
    if name.len() > room {
        return Err(short());
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = byte.cast_signed();
    }
    ioctl(&file, libc::TUNSETIFF, &mut request)?;
    Ok(file)
}

/// The tap queue that somebody else has opened as descriptor `number`, which stays open.
fn take_over(number: RawFd) -> Result<File, NoTap> {
    let failed = |cause| NoTap::Descriptor { number, cause };
    // SAFETY: a number that is no descriptor is an error, and memory is not concerned.
    let copy = unsafe { libc::fcntl(number, libc::F_DUPFD_CLOEXEC, 3) };
    let copy = checked(copy).map_err(failed)?;
    // SAFETY: the kernel has just made this descriptor, for us alone.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(copy) });
    // Another card over the same descriptor may have detached it; one that is attached stays so.
    let mut attach = request(libc::IFF_ATTACH_QUEUE).map_err(failed)?;
    ioctl(&file, libc::TUNSETQUEUE, &mut attach).unwrap_or_default();
    let mut request = request(0).map_err(failed)?;
    ioctl(&file, libc::TUNGETIFF, &mut request).map_err(failed)?;
    // SAFETY: the kernel has filled in the flags.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    if flags & FLAGS != FLAGS || flags & libc::IFF_TUN != 0 {
        return Err(NoTap::Flags { number });
    }
    Ok(file)
}

/// A request of no name, with flags.
fn request(flags: c_int) -> Result<ifreq, IoError> {
    // SAFETY: all of it are numbers, for which zero is a value.
    let mut request: ifreq = unsafe { zeroed() };
    request.ifr_ifru.ifru_flags = c_short::try_from(flags).map_err(IoError::other)?;
    Ok(request)
}

fn ioctl(file: &File, number: libc::Ioctl, request: &mut ifreq) -> Result<(), IoError> {
    // SAFETY: the kernel reads and writes one `ifreq` at that address for these requests.
    let answer = unsafe { libc::ioctl(file.as_raw_fd(), number, &raw mut *request) };
    checked(answer).map(drop)
}

fn checked(answer: c_int) -> Result<c_int, IoError> {
    if answer < 0 { Err(IoError::last_os_error()) } else { Ok(answer) }
}

impl AsRawFd for TapQueue {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Port for TapQueue {
    fn read(&self, into: &mut [u8]) -> Result<usize, IoError> {
        (&self.0).read(into)
    }

    fn write(&self, header: &[u8], packet: &[DeviceSlice<'_>]) -> Result<(), IoError> {
        let too_many = || IoError::from_raw_os_error(libc::EMSGSIZE);
        if packet.len() >= PIECES_MAX {
            return Err(too_many());
        }
        let first = iovec { iov_base: header.as_ptr().cast_mut().cast(), iov_len: header.len() };
        let guards: Vec<_> = packet.iter().map(|part| (part.ptr_guard(), part.len())).collect();
        let parts = guards.iter().map(|(guard, len)| iovec {
            iov_base: guard.as_ptr().cast_mut().cast(),
            iov_len: *len,
        });
        let pieces: Vec<_> = std::iter::once(first).chain(parts).collect();
        let count = c_int::try_from(pieces.len()).map_err(IoError::other)?;
        // SAFETY: every piece is readable as long as it says: the header is borrowed, and a slice of
        // guest RAM is mapped while it lives. The guest may change it meanwhile; the kernel copies.
        let written = unsafe { libc::writev(self.as_raw_fd(), pieces.as_ptr(), count) };
        if written < 0 { Err(IoError::last_os_error()) } else { Ok(()) }
    }

    fn set_offloads(&self, offloads: u32) -> Result<(), IoError> {
        let word = c_ulong::from(offloads);
        // SAFETY: this request takes a number and no address.
        checked(unsafe { libc::ioctl(self.as_raw_fd(), libc::TUNSETOFFLOAD, word) }).map(drop)
    }

    fn set_attached(&self, attached: bool) -> Result<(), IoError> {
        let flag = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        ioctl(&self.0, libc::TUNSETQUEUE, &mut request(flag)?)
    }
}

/// Why a card has no tap.
#[derive(Debug, Error)]
pub enum NoTap {
    /// There is no interface of that name.
    #[error("there is no interface {name}: make it with `ip tuntap add {name} mode tap`")]
    Missing {
        /// The name.
        name: String,
    },
    /// The kernel does not give it.
    #[error("opening the tap {name}, which must be one of as many queues, and nobody else's")]
    Open {
        /// The name.
        name: String,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// A number that is no tap's.
    #[error("descriptor {number} is not a tap that was passed to this process")]
    Descriptor {
        /// The number.
        number: RawFd,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// A descriptor whose packets look otherwise.
    #[error("the tap of descriptor {number} must have IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Flags {
        /// The number.
        number: RawFd,
    },
    /// Too few or too many descriptors.
    #[error("{given} descriptors for a card of {queues} queue pairs: it takes one for each")]
    Count {
        /// How many were given.
        given: usize,
        /// How many there must be.
        queues: u16,
    },
    /// Header or offloads.
    #[error("setting up the tap {tap}")]
    SetUp {
        /// Which.
        tap: String,
        /// Why not.
        #[source]
        cause: IoError,
    },
    /// Eventfd or timer.
    #[error("a network card needs descriptors")]
    Host(#[source] IoError),
}
