//! Serde values as bytes that describe themselves: the value that a rank reads equals the one that was sent.
//!
//! A value is a sequence of tokens of serde's data model, each with its exact type. Structs are written by
//! the names of their fields. A reader that knows only names and types therefore needs no agreement about
//! which fields were left out.
//!
//! ```text
//! kind u8             what follows; counts are one byte below 255, else that and a u64
//! UNIT, NONE          nothing
//! SOME                a value: only where that is UNIT, NONE or SOME itself; any other value stands for itself
//! BOOL .. CHAR        its bytes, little endian; with the bit RUN: count, then so many of them
//! STR, BYTES          count, then so many bytes
//! NAME                count: the number of a name already given
//! NEW_NAME            count, then so many bytes: the next number's
//! SEQ                 count, then so many values
//! MAP                 count, then so many keys with their values; a struct's keys are names
//! UNIT_VARIANT        a name
//! VARIANT             a name and a value
//! ```
//!
//! Crates with such encodings were tried (ciborium, rmp-serde, cbor4ii, minicbor-serde, pot, serde-brief):
//! none tells `Some(None)` from `None`, and none keeps the widths of integers, by which [`arrival`] finds a
//! value that is read as another.

mod arrays;
mod read;
mod tokens;
mod write;

pub(crate) use read::read;
pub(crate) use tokens::Why;
pub(crate) use write::{write, write_behind};

use crate::error::{Error, Result};
use serde::{Serialize, de::DeserializeOwned};
use std::any::type_name;
use std::fmt;

/// Returns the error for a value that cannot travel: its type and the reason.
pub(crate) fn refusal<T>(why: Why) -> Error {
    refused(type_name::<T>(), &why)
}

fn refused(name: &str, why: &dyn fmt::Display) -> Error {
    Error::other(format!("a value of type {name} cannot travel between ranks: {why}"))
}

/// Returns the error for a value that is of another type than `T`: `what` says which value that is.
pub(crate) fn misread<T>(what: &str, why: &Why) -> Error {
    Error::other(format!("{what} is no {}: {why}", type_name::<T>()))
}

/// Writes a value as [`write()`] does; the error names the type.
fn written<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    write(value).map_err(|why| refused(type_name::<T>(), &format!("its Serialize says: {why}")))
}

/// Writes `value`, and reads it back. Returns the bytes, and the value as it will arrive.
///
/// # Errors
/// If the value cannot be written or read, or if another value would arrive.
pub(crate) fn travel<T: Serialize + DeserializeOwned>(value: &T) -> Result<(Vec<u8>, T)> {
    let bytes = written(value)?;
    let arrived = arrival(&bytes)?;
    Ok((bytes, arrived))
}

/// Returns the value that was written, as it will arrive; an error if that would be another value. Only what
/// serde sees is compared.
pub(crate) fn arrival<T: Serialize + DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let arrived: T = read(bytes).map_err(|why| unreadable(type_name::<T>(), &why))?;
    is_same(type_name::<T>(), &written(&arrived)?, bytes)?;
    Ok(arrived)
}

/// Returns whether all types that the name of `T` names are of Rust's own libraries or ndarray, which read what they
/// write: their values need no look at their [`arrival`]. (If a compiler names types otherwise, more are looked at.)
pub(crate) fn is_plain<T>() -> bool {
    is_plain_name(type_name::<T>())
}

/// Returns whether the name of a type is such a name.
pub(crate) fn is_plain_name(name: &str) -> bool {
    let paths = name.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':'));
    paths.into_iter().all(|path| match path.split_once("::") {
        Some((first, _)) => matches!(first, "alloc" | "core" | "std" | "ndarray" | "num_complex"),
        // A scalar, or a length.
        None => true,
    })
}

fn unreadable(name: &str, why: &Why) -> Error {
    let advice = "its Deserialize must read what its Serialize writes (`flatten`, `untagged` and internally tagged enums read \
                  no 128-bit integers); or send its parts";
    refused(name, &format!("written, it cannot be read back: {why}; {advice}"))
}

/// Returns an error unless `again`, the value written once more, is the same value as `bytes`.
fn is_same(name: &str, again: &[u8], bytes: &[u8]) -> Result<()> {
    if again == bytes || digest(again).is_some_and(|again| digest(bytes) == Some(again)) {
        return Ok(());
    }
    let advice = "look for an untagged enum of which an earlier variant accepts what a later one writes \
                  (put the later one first, or use a tag), a field that is only skipped on one side, and `with` \
                  that rounds";
    Err(refused(name, &format!("read back, it is another value; {advice}")))
}

/// Returns a digest that is the same for equal values in all processes of one program, and differs if
/// elements of a list change places. (Hash sets are written as lists: equal sets may have different digests.)
pub(crate) fn digest_of<T: Serialize>(value: &T) -> Result<u64> {
    let bytes = written(value)?;
    read::Reader::new(&bytes).digest(true).map_err(refusal::<T>)
}

/// Returns a digest that two writings of equal values have in common: elements of hash maps and sets have any
/// order.
fn digest(bytes: &[u8]) -> Option<u64> {
    read::Reader::new(bytes).digest(false).ok()
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::tokens::*;
    use super::*;
    use serde::{Deserialize, Serializer, ser::SerializeSeq};
    use std::collections::BTreeMap;

    #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
    enum Part {
        Unit,
        One(Option<Option<u8>>),
        Two(u64, char),
        Named { list: Vec<f64>, text: String },
    }

    type Parts = (Vec<Part>, BTreeMap<i32, bool>, [u16; 3], Option<()>, u128, Vec<u8>);

    fn parts() -> Parts {
        let named = |len| Part::Named { list: vec![0.5; len], text: "x".repeat(len) };
        let all =
            vec![Part::Unit, Part::One(Some(None)), Part::Two(1, 'ß'), named(3), named(300), Part::One(None)];
        (all, BTreeMap::from([(-1, true), (7, false)]), [1, 2, 3], Some(()), u128::MAX, vec![9; 254])
    }

    #[test]
    fn values_are_read_as_written() {
        assert_eq!(read::<Parts>(&write(&parts()).unwrap()).unwrap(), parts());
        for len in [0, 1, 2, 254, 255, 256, 70_000] {
            let list = vec![(3u8, 4u8); len];
            assert_eq!(read::<Vec<(u8, u8)>>(&write(&list).unwrap()).unwrap(), list, "{len}");
            let bytes = vec![7u8; len];
            assert_eq!(read::<Vec<u8>>(&write(&bytes).unwrap()).unwrap(), bytes, "{len}");
        }
    }

    /// An array that nobody recognises.
    struct Hidden<A>(A);

    impl<A: Serialize> Serialize for Hidden<A> {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            self.0.serialize(serializer)
        }
    }

    impl<'de, A: Deserialize<'de>> Deserialize<'de> for Hidden<A> {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
            A::deserialize(deserializer).map(Hidden)
        }
    }

    #[test]
    fn arrays_are_written_and_read_as_their_elements_are() {
        use ndarray::{Array1, Array2, Array3, ArrayD, IxDyn, s};
        type All = (Array1<f64>, Option<Array2<u8>>, ArrayD<i16>, Vec<Array1<f32>>, String, Array3<u64>);
        for len in [0, 1, 2, 63, 64, 65, 254, 255, 256, 1000, 100_000] {
            let flat = Array1::from_shape_fn(len, |at| at as f64 / 7.0);
            assert_eq!(write(&flat).unwrap(), write(&Hidden(&flat)).unwrap(), "{len}");
            assert_eq!(read::<Array1<f64>>(&write(&flat).unwrap()).unwrap(), flat);
            let wide = Array2::from_shape_fn((len, 3), |(row, column)| (row * column) as u8);
            let deep = ArrayD::from_shape_fn(IxDyn(&[2, len, 1]), |at| (at[1] as i16).wrapping_sub(5));
            let cube = Array3::from_shape_fn((2, 2, len), |(x, y, z)| (x + y * z) as u64);
            let list = vec![Array1::from_elem(len, 0.5f32); 2];
            let all: All = (flat.clone(), Some(wide.clone()), deep, list, "x".repeat(len), cube);
            let bytes = write(&all).unwrap();
            assert_eq!(read::<All>(&bytes).unwrap(), all, "{len}");
            // Read by a type that hides the array, and the other way around.
            assert_eq!(read::<Hidden<Array1<f64>>>(&write(&flat).unwrap()).unwrap().0, flat);
            assert_eq!(read::<Array1<f64>>(&write(&Hidden(flat.clone())).unwrap()).unwrap(), flat);
            let plain: Vec<u32> = (0..len as u32).collect();
            assert_eq!(write(&plain).unwrap(), write(&Hidden(&plain)).unwrap(), "{len}");
            let both = (plain.clone(), vec![7u8; len], Some(vec![0.5f32; len]));
            assert_eq!(read::<(Vec<u32>, Vec<u8>, Option<Vec<f32>>)>(&write(&both).unwrap()).unwrap(), both);
            assert_eq!(read::<Hidden<Vec<u32>>>(&write(&plain).unwrap()).unwrap().0, plain);
            assert_eq!(read::<Vec<u32>>(&write(&Hidden(plain.clone())).unwrap()).unwrap(), plain);
            // Not in standard order, and of another element type or dimension.
            let turned = wide.clone().reversed_axes();
            assert_eq!(read::<Array2<u8>>(&write(&turned).unwrap()).unwrap(), turned);
            let every = flat.slice(s![..;2]).to_owned();
            assert_eq!(read::<Array1<f64>>(&write(&every).unwrap()).unwrap(), every);
            if len > 0 {
                assert!(read::<Array1<u8>>(&write(&flat).unwrap()).is_err(), "{len}");
            }
            assert!(read::<Array2<f64>>(&write(&flat).unwrap()).is_err(), "{len}");
        }
    }

    /// Reads a list in its own way.
    #[derive(Debug, PartialEq, Serialize)]
    struct Backwards(Vec<f64>);

    impl<'de> Deserialize<'de> for Backwards {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = Vec<f64>;
                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a list")
                }
                fn visit_seq<A: serde::de::SeqAccess<'de>>(
                    self,
                    mut list: A,
                ) -> std::result::Result<Vec<f64>, A::Error> {
                    let mut found = Vec::new();
                    while let Some(value) = list.next_element()? {
                        found.insert(0, value);
                    }
                    Ok(found)
                }
            }
            deserializer.deserialize_seq(Visitor).map(Backwards)
        }
    }

    #[test]
    fn a_type_that_reads_lists_in_its_own_way_does() {
        let list: Vec<f64> = (0..1000).map(f64::from).collect();
        let read: Backwards = read(&write(&Backwards(list.clone())).unwrap()).unwrap();
        assert!(read.0.iter().rev().eq(list.iter()));
    }

    /// The names by which visitors are known are those of this serde and this ndarray.
    #[test]
    fn arrays_are_read_in_one_piece() {
        let (array, list) = (ndarray::Array1::from_elem(1000, 1.5), vec![7u8; 1000]);
        let bytes = write(&(array.clone(), list.clone())).unwrap();
        arrays::TAKEN.set(0);
        assert_eq!(read::<(ndarray::Array1<f64>, Vec<u8>)>(&bytes).unwrap(), (array, list));
        assert_eq!(arrays::TAKEN.get(), 2);
    }

    #[test]
    fn arrays_that_were_overwritten_do_no_harm() {
        let array = ndarray::Array2::<u32>::from_elem((10, 20), 7);
        let bytes = write(&array).unwrap();
        for at in (0..60).chain(bytes.len() - 3..bytes.len()) {
            for flip in 0..=255 {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                let _ = read::<ndarray::Array2<u32>>(&bytes);
                let _ = read::<ndarray::Array2<u32>>(&bytes[..at]);
            }
        }
    }

    #[test]
    fn equal_scalars_have_one_head() {
        assert_eq!(write(&vec![1.5f64; 100]).unwrap().len(), 2 + 2 + 800);
        assert_eq!(write(&7u8).unwrap(), [U8, 7]);
        assert_eq!(write(&(7u8, 8u8, 9i8)).unwrap(), [SEQ, 3, U8 | RUN, 2, 7, 8, I8, 9]);
    }

    #[test]
    fn names_are_given_once() {
        let one = write(&vec![Part::Two(1, 'a')]).unwrap().len();
        let two = write(&vec![Part::Two(1, 'a'); 2]).unwrap().len();
        assert_eq!(two - one, one - 2 - "Two".len());
    }

    /// A sequence that says that it has more elements than it has, or fewer.
    struct Says(Option<usize>);

    impl Serialize for Says {
        fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
            let mut seq = serializer.serialize_seq(self.0)?;
            (0..300u32).try_for_each(|i| seq.serialize_element(&i))?;
            seq.end()
        }
    }

    #[test]
    fn lengths_that_values_say_do_not_count() {
        for says in [None, Some(0), Some(3), Some(300), Some(1 << 40)] {
            let list: Vec<u32> =
                read(&write(&(Says(says), 5u8)).unwrap()).map(|(list, _): (_, u8)| list).unwrap();
            assert_eq!(list, (0..300).collect::<Vec<_>>(), "{says:?}");
        }
    }

    #[test]
    fn whatever_is_left_over_or_missing_is_an_error() {
        let bytes = write(&parts()).unwrap();
        assert!((0..bytes.len()).all(|len| read::<Parts>(&bytes[..len]).is_err()));
        assert!(read::<Parts>(&[&bytes[..], &[UNIT]].concat()).is_err());
        assert!(read::<u8>(&write(&[1u8, 2]).unwrap()).is_err());
        assert!(read::<[u8; 2]>(&write(&[1u8, 2, 3]).unwrap()).is_err());
    }

    #[test]
    fn overwritten_bytes_do_no_harm() {
        let bytes = write(&parts()).unwrap();
        for at in 0..bytes.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bytes = bytes.clone();
                bytes[at] ^= flip;
                let _ = read::<Parts>(&bytes);
                let _ = digest(&bytes);
            }
        }
    }

    #[test]
    fn what_is_read_as_another_value_is_found() {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        #[serde(untagged)]
        enum Number {
            Wide(u64),
            Narrow(u8),
        }
        assert_eq!(travel(&Number::Wide(3)).unwrap().1, Number::Wide(3));
        let error = travel(&vec![Number::Narrow(3)]).unwrap_err().to_string();
        assert!(error.contains("Vec<") && error.contains("another value"), "{error}");
        // Sets and maps have no order.
        let set: std::collections::HashSet<u64> = (0..1000).collect();
        let map: std::collections::HashMap<u64, Part> = (0..100).map(|n| (n, Part::Two(n, 'x'))).collect();
        assert_eq!(travel(&(set.clone(), map.clone())).unwrap().1, (set, map));
    }
}
