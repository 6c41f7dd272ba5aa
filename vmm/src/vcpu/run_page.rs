//! Runs a vCPU, and reads what kvm-ioctls leaves out of an exit: the width of a port access, and why KVM gave up.
#![expect(unsafe_code, reason = "the members of a union that KVM's exit reason names")]

use std::ptr::NonNull;

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_INTERNAL_ERROR_DELIVERY_EV,
    KVM_INTERNAL_ERROR_EMULATION, KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES,
    KVM_INTERNAL_ERROR_SIMUL_EX, KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON, kvm_run,
};
use kvm_ioctls::{VcpuExit, VcpuFd};
use vmm_sys_util::errno::Error as Errno;

/// Why a vCPU has left the guest.
#[derive(Debug)]
pub(super) enum Exit<'a> {
    /// `KVM_EXIT_IO`, in: reads of `size` bytes each that fill `data`.
    PortRead { port: u16, size: usize, data: &'a mut [u8] },
    /// `KVM_EXIT_IO`, out: writes of `size` bytes each that are `data`.
    PortWrite { port: u16, size: usize, data: &'a [u8] },
    /// `KVM_EXIT_INTERNAL_ERROR`, in KVM's words.
    InternalError(String),
    /// All others.
    Other(VcpuExit<'a>),
}

#[expect(clippy::wildcard_enum_match_arm, reason = "what is not looked at here is passed on")]
/// Lets the vCPU into the guest, and calls `answer` with the exit that makes it leave.
pub(super) fn run<T>(vcpu: &mut VcpuFd, answer: impl FnOnce(Exit<'_>) -> T) -> Result<T, Errno> {
    let exit = match vcpu.run()? {
        VcpuExit::IoIn(port, data) => {
            let mut data = NonNull::from(data);
            let size = access_size(vcpu.get_kvm_run());
            // SAFETY: kvm-ioctls has just given these bytes out. They lie behind `kvm_run`, in the same
            // mapping, which lives as long as the vCPU, and nothing else refers to them.
            Exit::PortRead { port, size, data: unsafe { data.as_mut() } }
        }
        VcpuExit::IoOut(port, data) => {
            let data = NonNull::from(data);
            let size = access_size(vcpu.get_kvm_run());
            // SAFETY: as above.
            Exit::PortWrite { port, size, data: unsafe { data.as_ref() } }
        }
        VcpuExit::InternalError => Exit::InternalError(internal_error(vcpu.get_kvm_run())),
        other => Exit::Other(other),
    };
    Ok(answer(exit))
}

/// Bytes of each port access; 1 for other exits.
fn access_size(run: &kvm_run) -> usize {
    if run.exit_reason != KVM_EXIT_IO {
        return 1;
    }
    // SAFETY: the exit reason says that this member was written; it is plain integers anyhow.
    let io = unsafe { run.__bindgen_anon_1.io };
    io.size.max(1).into()
}

/// What KVM could not do, by the name of its suberror, with the data that goes with it.
fn internal_error(run: &kvm_run) -> String {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return "KVM_EXIT_INTERNAL_ERROR".to_owned();
    }
    // SAFETY: as in `access_size`.
    let internal = unsafe { run.__bindgen_anon_1.internal };
    let count = usize::try_from(internal.ndata).unwrap_or(usize::MAX);
    let data: Vec<_> = internal.data.into_iter().take(count).collect();
    let name = match internal.suberror {
        KVM_INTERNAL_ERROR_EMULATION => {
            return format!("KVM_INTERNAL_ERROR_EMULATION: {}", unemulated(&data));
        }
        KVM_INTERNAL_ERROR_SIMUL_EX => "SIMUL_EX: exceptions at the same time",
        KVM_INTERNAL_ERROR_DELIVERY_EV => {
            "DELIVERY_EV: the processor left the guest while it delivered an event"
        }
        KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON => {
            "UNEXPECTED_EXIT_REASON: KVM does not know why the processor left the guest"
        }
        other => return format!("KVM_EXIT_INTERNAL_ERROR, suberror {other}{}", listed(&data)),
    };
    format!("KVM_INTERNAL_ERROR_{name}{}", listed(&data))
}

/// The instruction that KVM cannot emulate. Data: flags, the number of its bytes, and 15 of them. KVMs
/// before Linux 5.14 give none, and none do if it could not be read.
fn unemulated(data: &[u64]) -> String {
    const HAS_BYTES: u64 = KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES as u64;
    let what = "KVM cannot emulate the instruction";
    match data {
        [flags, low, high, ..] if flags & HAS_BYTES != 0 => {
            let [low, high] = [low, high].map(|part| part.to_le_bytes());
            let [count, bytes @ ..] = low;
            let bytes = bytes.into_iter().chain(high).take(count.into());
            let text: Vec<_> = bytes.map(|byte| format!("{byte:02x}")).collect();
            format!("{what} {}", text.join(" "))
        }
        _ => format!("{what} there, and does not say which it is"),
    }
}

fn listed(data: &[u64]) -> String {
    if data.is_empty() { String::new() } else { format!(", data {data:#x?}").replace('\n', "") }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::{
        kvm_run__bindgen_ty_1__bindgen_ty_4 as Io, kvm_run__bindgen_ty_1__bindgen_ty_13 as Internal,
    };

    use super::*;

    fn failed(suberror: u32, data: &[u64]) -> String {
        let mut run = kvm_run { exit_reason: KVM_EXIT_INTERNAL_ERROR, ..kvm_run::default() };
        let ndata = u32::try_from(data.len()).unwrap();
        let mut internal = Internal { suberror, ndata, data: [0xbad; 16] };
        internal.data.iter_mut().zip(data).for_each(|(to, from)| *to = *from);
        run.__bindgen_anon_1.internal = internal;
        internal_error(&run)
    }

    /// Whatever KVM could not do has its name, and the instruction if KVM tells it.
    #[test]
    fn an_internal_error_names_its_suberror() {
        // fld dword [0x1234], as three bytes of data behind their number.
        let bytes = [1, u64::from_le_bytes([3, 0xd9, 0x05, 0x34, 0x90, 0x90, 0x90, 0x90]), 0x9090];
        let text = failed(KVM_INTERNAL_ERROR_EMULATION, &bytes);
        assert_eq!(
            text,
            "KVM_INTERNAL_ERROR_EMULATION: KVM cannot emulate the instruction d9 05 34"
        );
        let long = [1, u64::from_le_bytes([15, 1, 2, 3, 4, 5, 6, 7]), 0x0f0e_0d0c_0b0a_0908];
        let text = failed(KVM_INTERNAL_ERROR_EMULATION, &long);
        assert!(text.ends_with("01 02 03 04 05 06 07 08 09 0a 0b 0c 0d 0e 0f"), "{text}");
        for none in [&[][..], &[0, 0xff, 0]] {
            assert!(failed(KVM_INTERNAL_ERROR_EMULATION, none).contains("does not say which"));
        }
        for (suberror, name) in [
            (KVM_INTERNAL_ERROR_SIMUL_EX, "KVM_INTERNAL_ERROR_SIMUL_EX"),
            (KVM_INTERNAL_ERROR_DELIVERY_EV, "KVM_INTERNAL_ERROR_DELIVERY_EV"),
            (
                KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON,
                "KVM_INTERNAL_ERROR_UNEXPECTED_EXIT_REASON",
            ),
            (77, "KVM_EXIT_INTERNAL_ERROR, suberror 77"),
        ] {
            let text = failed(suberror, &[0x400, 2]);
            assert!(text.starts_with(name) && text.contains("0x400"), "{text}");
            assert!(!text.contains("bad") && !text.contains('\n'), "{text}");
        }
    }

    /// How wide an access is comes from KVM, and is never nothing.
    #[test]
    fn the_size_of_an_access_is_what_kvm_says() {
        let mut run = kvm_run { exit_reason: KVM_EXIT_IO, ..kvm_run::default() };
        for (size, expected) in [(1, 1), (2, 2), (4, 4), (0, 1)] {
            run.__bindgen_anon_1.io = Io { size, count: 3, ..Io::default() };
            assert_eq!(access_size(&run), expected);
        }
    }
}
