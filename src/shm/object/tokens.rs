//! The tokens of which written values consist: see the table in mod.rs.

use crate::error::Error;
use std::fmt;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

pub(super) const UNIT: u8 = 0;
pub(super) const NONE: u8 = 1;
pub(super) const SOME: u8 = 2;
pub(super) const STR: u8 = 3;
pub(super) const BYTES: u8 = 4;
pub(super) const NAME: u8 = 5;
pub(super) const NEW_NAME: u8 = 6;
pub(super) const SEQ: u8 = 7;
pub(super) const MAP: u8 = 8;
pub(super) const UNIT_VARIANT: u8 = 9;
pub(super) const VARIANT: u8 = 10;
pub(super) const BOOL: u8 = 11;
pub(super) const I8: u8 = 12;
pub(super) const I16: u8 = 13;
pub(super) const I32: u8 = 14;
pub(super) const I64: u8 = 15;
pub(super) const I128: u8 = 16;
pub(super) const U8: u8 = 17;
pub(super) const U16: u8 = 18;
pub(super) const U32: u8 = 19;
pub(super) const U64: u8 = 20;
pub(super) const U128: u8 = 21;
pub(super) const F32: u8 = 22;
pub(super) const F64: u8 = 23;
pub(super) const CHAR: u8 = 24;
/// The bit of a head that several scalars of one kind follow, one behind the other.
pub(super) const RUN: u8 = 0x80;
/// The first byte of a count that does not fit into one byte: counts from this number on.
pub(super) const LONG: u8 = u8::MAX;

/// Returns the number of bytes of a scalar, if `kind` is one.
pub(super) const fn width(kind: u8) -> Option<usize> {
    match kind {
        BOOL | I8 | U8 => Some(1),
        I16 | U16 => Some(2),
        I32 | U32 | F32 | CHAR => Some(4),
        I64 | U64 | F64 => Some(8),
        I128 | U128 => Some(16),
        _ => None,
    }
}

/// The reason why a value cannot be written or read, as its `Serialize` or `Deserialize` says.
#[derive(Debug)]
pub(crate) struct Why(pub(super) String);

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Why {}

impl serde::ser::Error for Why {
    fn custom<T: fmt::Display>(text: T) -> Why {
        Why(text.to_string())
    }
}

impl serde::de::Error for Why {
    fn custom<T: fmt::Display>(text: T) -> Why {
        Why(text.to_string())
    }
}

impl From<Why> for Error {
    fn from(why: Why) -> Error {
        Error::other(format!("a value could not be carried between ranks: {why}"))
    }
}

/// Mixes the digests of parts whose order does not matter.
pub(super) fn unordered(
    kind: u8,
    parts: impl Iterator<Item = std::result::Result<u64, Why>>,
) -> std::result::Result<u64, Why> {
    let (mut count, mut sum) = (0u64, 0u64);
    for part in parts {
        sum = sum.wrapping_add(xxh3_64(&part?.to_le_bytes()));
        count += 1;
    }
    Ok(xxh3_64_with_seed(bytemuck::bytes_of(&[count, sum]), kind.into()))
}
