//! Kernel structures in saved state: their bytes, and exactly as many as the kernel's header says.

use std::fmt::{Debug, Formatter, Result as FmtResult};
use std::marker::PhantomData;

use serde::de::{Error, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// A structure of the kernel's ABI, saved as its bytes: the ABI is the schema.
#[derive(Clone, Copy, Default)]
pub struct KernelStruct<T>(pub T);

impl<T: IntoBytes + Immutable> PartialEq for KernelStruct<T> {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_bytes() == other.0.as_bytes()
    }
}

impl<T> Debug for KernelStruct<T> {
    fn fmt(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "KernelStruct({} bytes)", size_of::<T>())
    }
}

impl<T: IntoBytes + Immutable> Serialize for KernelStruct<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0.as_bytes())
    }
}

impl<'de, T: FromBytes> Deserialize<'de> for KernelStruct<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(StructVisitor(PhantomData))
    }
}

/// Reads exactly the bytes of a `T`.
struct StructVisitor<T>(PhantomData<T>);

impl<T: FromBytes> Visitor<'_> for StructVisitor<T> {
    type Value = KernelStruct<T>;

    fn expecting(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "{} bytes", size_of::<T>())
    }

    fn visit_bytes<E: Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        let wrong = |_refused| E::invalid_length(bytes.len(), &self);
        T::read_from_bytes(bytes).map(KernelStruct).map_err(wrong)
    }
}

#[cfg(test)]
mod tests {
    use kvm_bindings::kvm_mp_state;

    use super::*;

    /// A structure of another length, as another architecture or kernel header would have it, is
    /// refused: it is neither cut nor padded.
    #[test]
    fn only_the_exact_length_is_a_structure() {
        let state = KernelStruct(kvm_mp_state { mp_state: 3 });
        let bytes = rmp_serde::to_vec(&state).unwrap();
        assert_eq!(rmp_serde::from_slice::<KernelStruct<kvm_mp_state>>(&bytes).unwrap(), state);
        for wrong in [&[3_u8, 0, 0][..], &[3, 0, 0, 0, 0]] {
            let bytes = rmp_serde::to_vec(&KernelBytes(wrong)).unwrap();
            rmp_serde::from_slice::<KernelStruct<kvm_mp_state>>(&bytes).unwrap_err();
        }
    }

    struct KernelBytes<'a>(&'a [u8]);

    impl Serialize for KernelBytes<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            serializer.serialize_bytes(self.0)
        }
    }
}
