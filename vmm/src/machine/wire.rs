//! The serial form of what describes a machine: `MessagePack` with names, in a known version.

use rmp_serde::Deserializer;
use rmp_serde::decode::Error as DecodeError;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use thiserror::Error;

/// The version of a machine's description and state.
pub const MACHINE_VERSION: u32 = 2;

/// Most bytes of a description or a state: eight vCPUs need about 100 KiB.
pub const MACHINE_BYTES_MAX: usize = 1 << 20;

/// How deep lists and maps lie in each other: a few times as deep as they do, and far from what a
/// thread's stack can take.
const DEPTH_MAX: usize = 32;

/// What every version has.
#[derive(Deserialize)]
struct Versioned {
    version: u32,
}

/// Reads a `T` of [`MACHINE_VERSION`]. The bytes are not trusted.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Undecodable> {
    if bytes.len() > MACHINE_BYTES_MAX {
        return Err(Undecodable::TooLong { len: bytes.len() });
    }
    let mut reader = Deserializer::from_read_ref(bytes);
    reader.set_max_depth(DEPTH_MAX);
    let Versioned { version } = Versioned::deserialize(&mut reader)?;
    if version != MACHINE_VERSION {
        return Err(Undecodable::Version { version });
    }
    let mut rest = bytes;
    let mut reader = Deserializer::new(&mut rest);
    reader.set_max_depth(DEPTH_MAX);
    let value = T::deserialize(&mut reader)?;
    if rest.is_empty() { Ok(value) } else { Err(Undecodable::Trailing { len: rest.len() }) }
}

/// Bytes that do not describe a machine.
#[derive(Debug, Error)]
pub enum Undecodable {
    /// More than any machine has.
    #[error("a machine in {len} bytes; this program reads at most {MACHINE_BYTES_MAX}")]
    TooLong {
        /// Their number.
        len: usize,
    },
    /// Written by another version of this program.
    #[error("a machine in version {version}; this program reads version {MACHINE_VERSION}")]
    Version {
        /// The version in it.
        version: u32,
    },
    /// Something follows.
    #[error("a machine with {len} bytes after it")]
    Trailing {
        /// How many.
        len: usize,
    },
    /// Something else.
    #[error("reading a machine")]
    Malformed(#[from] DecodeError),
}

#[cfg(test)]
mod tests {
    use serde::Serialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Described {
        version: u32,
        word: String,
    }

    fn described(version: u32) -> Vec<u8> {
        rmp_serde::to_vec_named(&Described { version, word: "x".to_owned() }).unwrap()
    }

    /// Every cut, and every byte too many, is noticed.
    #[test]
    fn only_the_whole_is_read() {
        let whole = described(MACHINE_VERSION);
        assert_eq!(decode::<Described>(&whole).unwrap().word, "x");
        for len in 0..whole.len() {
            assert!(decode::<Described>(&whole[..len]).is_err(), "{len} bytes");
        }
        let longer = [whole.as_slice(), &[0]].concat();
        assert!(matches!(decode::<Described>(&longer), Err(Undecodable::Trailing { len: 1 })));
        let huge = vec![0; MACHINE_BYTES_MAX + 1];
        assert!(matches!(decode::<Described>(&huge), Err(Undecodable::TooLong { .. })));
    }

    /// Lists within lists are refused long before they could exhaust the stack.
    #[test]
    fn deep_descriptions_are_refused() {
        let lists = |depth| [&b"\x82\xa7version\x01\xa4word"[..], &vec![0x91; depth]].concat();
        let refused = decode::<Described>(&lists(100_000)).unwrap_err();
        let cause = std::error::Error::source(&refused).unwrap().to_string();
        assert_eq!(cause, "depth limit exceeded");
    }

    /// Another version is refused by number, even if it has other fields.
    #[test]
    fn another_version_is_named() {
        let refused = decode::<Described>(&described(7)).unwrap_err();
        assert!(matches!(refused, Undecodable::Version { version: 7 }), "{refused}");
        #[derive(Serialize)]
        struct Later {
            shape: [u8; 3],
            version: u32,
        }
        let later = rmp_serde::to_vec_named(&Later { shape: [1, 2, 3], version: 3 }).unwrap();
        let text = decode::<Described>(&later).unwrap_err().to_string();
        assert_eq!(text, "a machine in version 3; this program reads version 2");
    }
}
