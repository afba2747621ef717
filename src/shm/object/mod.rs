//! Serde values as bytes that describe themselves: what a rank reads equals what was sent.
//!
//! A value is a sequence of tokens of serde's data model, each with its exact type, and structs by the names of their fields.
//! A reader that knows only names and types therefore needs no agreement about which fields were left out.
//!
//! ```text
//! kind u8                         what follows
//! UNIT, NONE                      nothing
//! SOME                            a value: only where it is UNIT, NONE or SOME itself; any other value stands for itself
//! BOOL .. CHAR                    its bytes, little endian; with the bit RUN: count u64, then so many of them
//! STR, BYTES                      len u64, then so many bytes
//! NAME                            number u32: of a name already given
//! NEW_NAME                        len u64, then so many bytes: the next number's
//! SEQ                             count u64, then so many values
//! MAP                             count u64, then so many keys with their values; a struct's keys are names
//! UNIT_VARIANT, VARIANT           a name; for VARIANT a value
//! ```
//!
//! Crates for CBOR and MessagePack were tried (ciborium, rmp-serde, cbor4ii, pot, serde-brief): none tells `Some(None)` from
//! `None`, and bulk takes one byte more per number.

mod read;
mod write;

pub(crate) use read::read;
pub(crate) use write::write;

use crate::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::fmt;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const UNIT: u8 = 0;
const NONE: u8 = 1;
const SOME: u8 = 2;
const STR: u8 = 3;
const BYTES: u8 = 4;
const NAME: u8 = 5;
const NEW_NAME: u8 = 6;
const SEQ: u8 = 7;
const MAP: u8 = 8;
const UNIT_VARIANT: u8 = 9;
const VARIANT: u8 = 10;
const BOOL: u8 = 11;
const I8: u8 = 12;
const I16: u8 = 13;
const I32: u8 = 14;
const I64: u8 = 15;
const I128: u8 = 16;
const U8: u8 = 17;
const U16: u8 = 18;
const U32: u8 = 19;
const U64: u8 = 20;
const U128: u8 = 21;
const F32: u8 = 22;
const F64: u8 = 23;
const CHAR: u8 = 24;
/// Several scalars of one kind, one behind the other.
const RUN: u8 = 0x80;

/// Bytes of a scalar, if `kind` is one.
const fn width(kind: u8) -> Option<usize> {
    match kind {
        BOOL | I8 | U8 => Some(1),
        I16 | U16 => Some(2),
        I32 | U32 | F32 | CHAR => Some(4),
        I64 | U64 | F64 => Some(8),
        I128 | U128 => Some(16),
        _ => None,
    }
}

/// Why a value cannot be written or read, as its `Serialize` or `Deserialize` says.
#[derive(Debug)]
pub(crate) struct Why(String);

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
        Error::Other(format!("a value could not be carried between ranks: {why}"))
    }
}

/// A value that cannot travel: its type, why, and what helps.
pub(crate) fn refusal<T>(why: impl fmt::Display) -> Error {
    Error::Other(format!("a value of type {} cannot travel between ranks: {why}", std::any::type_name::<T>()))
}

/// Writes `value`, and reads it back: the bytes, and the value as it will arrive.
///
/// # Errors
/// If it cannot be written or read, or if what arrives would be another value.
pub(crate) fn travel<T: Serialize + DeserializeOwned>(value: &T) -> Result<(Vec<u8>, T)> {
    let bytes = write(value).map_err(|why| refusal::<T>(format!("its Serialize says: {why}")))?;
    let arrived = arrival(&bytes)?;
    Ok((bytes, arrived))
}

/// The value that was written, as it will arrive; an error if that would be another one. Only what serde sees is compared.
pub(crate) fn arrival<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let advice = "its Deserialize must read what its Serialize writes (`flatten`, `untagged` and internally tagged enums read \
                  no 128-bit integers); or send its parts";
    let arrived: T = read(bytes)
        .map_err(|why| refusal::<T>(format!("written, it cannot be read back: {why}; {advice}")))?;
    let again = write(&arrived).map_err(|why| refusal::<T>(format!("its Serialize says: {why}")))?;
    if again == bytes || digest(&again) == digest(bytes) {
        return Ok(arrived);
    }
    Err(refusal::<T>(
        "read back, it is another value; look for an untagged enum of which an earlier variant accepts what a later one writes \
         (put the later one first, or use a tag), a field that is only skipped on one side, and `with` that rounds",
    ))
}

/// What two writings of equal values have in common: elements of hash maps and sets have any order.
fn digest(bytes: &[u8]) -> Option<u64> {
    read::Reader::new(bytes).digest().ok()
}

/// Mixes the digests of parts whose order does not matter.
fn unordered(
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
