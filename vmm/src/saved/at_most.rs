//! Lists in saved state: no longer than they can be, because an element may take far more memory than
//! the bytes that stand for it.

use std::fmt::{Formatter, Result as FmtResult};
use std::marker::PhantomData;

use serde::de::{Error, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A list of at most `MAX` elements; more are an error, found at the first that is too many.
#[derive(Debug)]
pub struct AtMost<T, const MAX: usize>(pub Vec<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for AtMost<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(Elements(PhantomData))
    }
}

/// Reads a list, for `#[serde(deserialize_with)]`.
///
/// # Errors
/// From the deserializer, or if there are more than `MAX` elements.
pub fn at_most<'de, const MAX: usize, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    AtMost::<T, MAX>::deserialize(deserializer).map(|list| list.0)
}

struct Elements<T, const MAX: usize>(PhantomData<T>);

impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
    type Value = AtMost<T, MAX>;

    fn expecting(&self, f: &mut Formatter<'_>) -> FmtResult {
        write!(f, "at most {MAX} elements")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<Self::Value, A::Error> {
        let mut list = Vec::new();
        while let Some(element) = elements.next_element()? {
            if list.len() == MAX {
                return Err(A::Error::invalid_length(MAX + 1, &self));
            }
            list.push(element);
        }
        Ok(AtMost(list))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As many as allowed are read, one more is refused before the rest is looked at.
    #[test]
    fn a_list_ends_at_its_bound() {
        let read = |bytes: &[u8]| rmp_serde::from_slice::<AtMost<u8, 3>>(bytes);
        assert_eq!(read(&[0x93, 1, 2, 3]).unwrap().0, [1, 2, 3]);
        // Says that 2^32 - 1 follow, and four do.
        let refused = read(&[0xdd, 255, 255, 255, 255, 1, 2, 3, 4]).unwrap_err().to_string();
        assert_eq!(refused, "invalid length 4, expected at most 3 elements");
    }
}
