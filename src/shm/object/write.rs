//! Writing: from values to tokens.

use super::arrays::{self, Parts};
use super::tokens::*;
use crate::os::mapping::spacious;
use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use std::collections::HashMap;

/// Room for what follows an array.
const SMALL: usize = 64;

type Done = std::result::Result<(), Why>;

/// Returns a value as bytes.
pub(crate) fn write<T: Serialize + ?Sized>(value: &T) -> std::result::Result<Vec<u8>, Why> {
    write_behind(Vec::new(), value)
}

/// Returns a value as bytes behind those of `head`.
pub(crate) fn write_behind<T: Serialize + ?Sized>(
    head: Vec<u8>,
    value: &T,
) -> std::result::Result<Vec<u8>, Why> {
    let mut writer = Writer { bytes: head, ..Writer::default() };
    writer.value(value)?;
    writer.end_run();
    Ok(writer.bytes)
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    /// The kind and place of the last head, if it is a scalar's: other scalars of its kind may follow.
    run: Option<(u8, usize)>,
    /// Whether the value just written is UNIT, NONE or SOME.
    hollow: bool,
    names: Names,
}

/// The numbers of names, by their addresses in the program: they are constants.
#[derive(Default)]
struct Names {
    numbers: HashMap<(usize, usize), usize>,
    /// Each name, and the number of the name that followed it last: lists repeat themselves.
    given: Vec<((usize, usize), usize)>,
    last: usize,
}

impl Names {
    /// Returns the name's number, and whether it is new.
    fn number(&mut self, name: &'static str) -> (usize, bool) {
        let place = (name.as_ptr() as usize, name.len());
        let guess = self.given.get(self.last).map_or(0, |&(_, next)| next);
        let next = self.given.len();
        let number = match self.given.get(guess) {
            Some(&(known, _)) if known == place => guess,
            _ => *self.numbers.entry(place).or_insert(next),
        };
        if number == next {
            self.given.push((place, 0));
        }
        self.given[self.last].1 = number;
        self.last = number;
        (number, number == next)
    }
}

/// Returns the bytes of a count, and their number.
fn count_bytes(count: usize) -> ([u8; 9], usize) {
    let mut bytes = [0; 9];
    if count < usize::from(LONG) {
        bytes[0] = count as u8;
        return (bytes, 1);
    }
    bytes[0] = LONG;
    bytes[1..].copy_from_slice(&(count as u64).to_le_bytes());
    (bytes, 9)
}

impl Writer {
    fn head(&mut self, kind: u8) {
        self.end_run();
        self.hollow = matches!(kind, UNIT | NONE);
        self.bytes.push(kind);
    }

    fn count(&mut self, count: usize) {
        let (bytes, len) = count_bytes(count);
        self.bytes.extend_from_slice(&bytes[..len]);
    }

    /// Puts a count at `at` in place of `before` bytes, and moves the bytes behind it.
    fn put_count(&mut self, at: usize, before: usize, count: usize) {
        let (bytes, len) = count_bytes(count);
        let end = self.bytes.len();
        self.bytes.resize(end.max(end + len - before), 0);
        self.bytes.copy_within(at + before..end, at + len);
        self.bytes.truncate(end + len - before);
        self.bytes[at..at + len].copy_from_slice(&bytes[..len]);
    }

    /// Completes the head of a run, when the number of its scalars is known.
    fn end_run(&mut self) {
        let Some((kind, at)) = self.run.take() else { return };
        let count = (self.bytes.len() - at - 1) / width(kind).unwrap_or(1);
        if count > 1 {
            self.bytes[at] |= RUN;
            self.put_count(at + 1, 0, count);
        }
    }

    #[inline]
    fn scalar(&mut self, kind: u8, bytes: &[u8]) -> Done {
        if self.run.is_none_or(|(before, _)| before != kind) {
            self.head(kind);
            self.run = Some((kind, self.bytes.len() - 1));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes a value: an array by one copy of its elements, if it is one.
    #[inline]
    fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        match arrays::parts(value) {
            Some(parts) => self.array(&parts),
            None => value.serialize(self),
        }
    }

    /// Writes what the `Serialize` of an array with these parts writes.
    fn array(&mut self, parts: &Parts<'_>) -> Done {
        let Some(shape) = parts.shape else { return self.run_of(parts) };
        let mut many = self.many(MAP, 3)?;
        many.field("v", &arrays::VERSION)?;
        many.field("dim", shape)?;
        many.writer.name("data");
        many.count += 1;
        many.writer.run_of(parts)?;
        many.close()
    }

    /// Writes a list of scalars.
    fn run_of(&mut self, Parts { kind, count, bytes, .. }: &Parts<'_>) -> Done {
        let mut data = self.many(SEQ, *count)?;
        data.count = *count;
        data.writer.head(kind | RUN);
        data.writer.count(*count);
        let written = &mut data.writer.bytes;
        if written.capacity() - written.len() < bytes.len() {
            let mut roomy = spacious(written.len() + bytes.len() + SMALL);
            roomy.append(written);
            *written = roomy;
        }
        written.extend_from_slice(bytes);
        data.close()
    }

    fn blob(&mut self, kind: u8, bytes: &[u8]) {
        self.head(kind);
        self.count(bytes.len());
        self.bytes.extend_from_slice(bytes);
    }

    fn name(&mut self, name: &'static str) {
        match self.names.number(name) {
            (_, true) => self.blob(NEW_NAME, name.as_bytes()),
            (number, false) => {
                self.head(NAME);
                self.count(number);
            }
        }
    }

    /// Begins a sequence or map. `expected` is the number of elements that the value says it has; some values
    /// say a wrong one.
    fn many(&mut self, kind: u8, expected: usize) -> std::result::Result<Many<'_>, Why> {
        self.head(kind);
        let at = self.bytes.len();
        self.count(expected);
        Ok(Many { writer: self, at, expected, count: 0 })
    }
}

/// A sequence or map whose elements are being written.
struct Many<'a> {
    writer: &'a mut Writer,
    /// The place of the count, and (`expected`) the count written there.
    at: usize,
    expected: usize,
    count: usize,
}

impl Many<'_> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, element: &T) -> Done {
        self.count += 1;
        self.writer.value(element)
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Done {
        self.writer.name(name);
        self.element(value)
    }

    fn close(self) -> Done {
        self.writer.end_run();
        self.writer.hollow = false;
        if self.count != self.expected {
            let (_, before) = count_bytes(self.expected);
            self.writer.put_count(self.at, before, self.count);
        }
        Ok(())
    }
}

/// Defines the methods for scalars, which write their bytes.
macro_rules! scalars {
    ($($method:ident $type:ty, $kind:ident;)*) => {
        $(#[inline]
        fn $method(self, value: $type) -> Done {
            self.scalar($kind, &value.to_le_bytes())
        })*
    };
}

impl<'a> Serializer for &'a mut Writer {
    type Ok = ();
    type Error = Why;
    type SerializeSeq = Many<'a>;
    type SerializeTuple = Many<'a>;
    type SerializeTupleStruct = Many<'a>;
    type SerializeTupleVariant = Many<'a>;
    type SerializeMap = Many<'a>;
    type SerializeStruct = Many<'a>;
    type SerializeStructVariant = Many<'a>;

    scalars! {
        serialize_i8 i8, I8;
        serialize_i16 i16, I16;
        serialize_i32 i32, I32;
        serialize_i64 i64, I64;
        serialize_i128 i128, I128;
        serialize_u8 u8, U8;
        serialize_u16 u16, U16;
        serialize_u32 u32, U32;
        serialize_u64 u64, U64;
        serialize_u128 u128, U128;
        serialize_f32 f32, F32;
        serialize_f64 f64, F64;
    }

    fn serialize_bool(self, value: bool) -> Done {
        self.scalar(BOOL, &[value.into()])
    }

    fn serialize_char(self, value: char) -> Done {
        self.scalar(CHAR, &u32::from(value).to_le_bytes())
    }

    fn serialize_str(self, value: &str) -> Done {
        self.blob(STR, value.as_bytes());
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Done {
        self.blob(BYTES, value);
        Ok(())
    }

    fn serialize_unit(self) -> Done {
        self.head(UNIT);
        Ok(())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Done {
        self.serialize_unit()
    }

    fn serialize_none(self) -> Done {
        self.head(NONE);
        Ok(())
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Done {
        let at = self.bytes.len();
        self.value(value)?;
        if self.hollow {
            self.bytes.insert(at, SOME);
        }
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Done {
        self.value(value)
    }

    fn serialize_unit_variant(self, _: &'static str, _: u32, variant: &'static str) -> Done {
        self.head(UNIT_VARIANT);
        self.name(variant);
        Ok(())
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Done {
        self.head(VARIANT);
        self.name(variant);
        self.value(value)?;
        self.hollow = false;
        Ok(())
    }

    fn serialize_seq(self, len: Option<usize>) -> std::result::Result<Many<'a>, Why> {
        self.many(SEQ, len.unwrap_or(0))
    }

    fn serialize_tuple(self, len: usize) -> std::result::Result<Many<'a>, Why> {
        self.many(SEQ, len)
    }

    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> std::result::Result<Many<'a>, Why> {
        self.many(SEQ, len)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> std::result::Result<Many<'a>, Why> {
        self.head(VARIANT);
        self.name(variant);
        self.many(SEQ, len)
    }

    fn serialize_map(self, len: Option<usize>) -> std::result::Result<Many<'a>, Why> {
        self.many(MAP, len.unwrap_or(0))
    }

    fn serialize_struct(self, _: &'static str, len: usize) -> std::result::Result<Many<'a>, Why> {
        self.many(MAP, len)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        len: usize,
    ) -> std::result::Result<Many<'a>, Why> {
        self.head(VARIANT);
        self.name(variant);
        self.many(MAP, len)
    }
}

/// Implements the traits of compounds, which differ in name only.
macro_rules! compounds {
    ($($compound:ident $method:ident ($($name:ident: $type:ty)?) $by:ident;)*) => {
        $(impl $compound for Many<'_> {
            type Ok = ();
            type Error = Why;

            #[inline]
            fn $method<T: Serialize + ?Sized>(&mut self, $($name: $type,)? value: &T) -> Done {
                self.$by($($name,)? value)
            }

            fn end(self) -> Done {
                self.close()
            }
        })*
    };
}

compounds! {
    SerializeSeq serialize_element () element;
    SerializeTuple serialize_element () element;
    SerializeTupleStruct serialize_field () element;
    SerializeTupleVariant serialize_field () element;
    SerializeStruct serialize_field (name: &'static str) field;
    SerializeStructVariant serialize_field (name: &'static str) field;
}

impl SerializeMap for Many<'_> {
    type Ok = ();
    type Error = Why;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Done {
        key.serialize(&mut *self.writer)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Done {
        self.element(value)
    }

    fn end(self) -> Done {
        self.close()
    }
}
