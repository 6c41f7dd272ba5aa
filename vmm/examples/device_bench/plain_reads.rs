//! What a disk is measured against: reads by `io_uring`, and nothing else.
#![expect(unsafe_code, reason = "io_uring takes addresses")]

use std::error::Error;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use io_uring::types::Fd;
use io_uring::{IoUring, opcode};

/// Where `O_DIRECT` wants memory to start.
const ALIGNED: usize = 4096;

/// Reads `bytes` at each of `places`, `depth` at a time.
pub(crate) fn read_all(
    path: &Path,
    is_direct: bool,
    places: &[u64],
    (bytes, depth): (usize, usize),
) -> Result<(), Box<dyn Error>> {
    let flags = if is_direct { libc::O_DIRECT } else { 0 };
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let mut ring = IoUring::new(u32::try_from(depth)?)?;
    let mut memory = vec![0_u8; depth * bytes + ALIGNED];
    let start = memory.as_mut_ptr();
    let aligned = start.wrapping_add(start.align_offset(ALIGNED));
    let mut free: Vec<_> = (0..depth).collect();
    let mut places = places.iter();
    let mut flying = 0;
    loop {
        while let Some(slot) = free.pop() {
            let Some(place) = places.next() else { break };
            let to = aligned.wrapping_add(slot * bytes);
            let read = opcode::Read::new(Fd(file.as_raw_fd()), to, u32::try_from(bytes)?);
            let entry = read.offset(*place).build().user_data(slot as u64);
            // SAFETY: the slot's bytes are in `memory`, which outlives the ring's last completion.
            unsafe { ring.submission().push(&entry) }?;
            flying += 1;
        }
        if flying == 0 {
            return Ok(());
        }
        ring.submit_and_wait(1)?;
        for done in ring.completion() {
            if usize::try_from(done.result()) != Ok(bytes) {
                return Err(format!("a read of {bytes} bytes: {}", done.result()).into());
            }
            free.push(usize::try_from(done.user_data())?);
            flying -= 1;
        }
    }
}
