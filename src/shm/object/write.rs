//! Values to tokens.

use super::*;
use serde::ser::{
    Serialize, SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
    SerializeTupleStruct, SerializeTupleVariant, Serializer,
};
use std::collections::HashMap;

type Done = std::result::Result<(), Why>;

/// A value as bytes.
pub(crate) fn write<T: Serialize + ?Sized>(value: &T) -> std::result::Result<Vec<u8>, Why> {
    let mut writer = Writer::default();
    value.serialize(&mut writer)?;
    writer.end_run();
    Ok(writer.bytes)
}

#[derive(Default)]
struct Writer {
    bytes: Vec<u8>,
    /// The last token, if it is a scalar: its kind, its place, and how many stand there.
    run: Option<(u8, usize, u64)>,
    /// Is the value just written UNIT, NONE or SOME?
    hollow: bool,
    /// Numbers of names, by where the program has them: names are constants.
    names: HashMap<(usize, usize), u32>,
}

impl Writer {
    fn head(&mut self, kind: u8) {
        self.end_run();
        self.hollow = matches!(kind, UNIT | NONE);
        self.bytes.push(kind);
    }

    fn end_run(&mut self) {
        if let Some((_, at, count @ 2..)) = self.run.take() {
            self.bytes[at + 1..at + 9].copy_from_slice(&count.to_le_bytes());
        }
    }

    #[inline]
    fn scalar(&mut self, kind: u8, bytes: &[u8]) -> Done {
        match &mut self.run {
            Some((before, at, count)) if *before == kind => {
                if *count == 1 {
                    // Room for the count, which end_run writes.
                    self.bytes[*at] |= RUN;
                    let first = *at + 1;
                    self.bytes.splice(first..first, [0; 8]);
                }
                *count += 1;
            }
            _ => {
                self.head(kind);
                self.run = Some((kind, self.bytes.len() - 1, 1));
            }
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    fn blob(&mut self, kind: u8, bytes: &[u8]) {
        self.head(kind);
        self.bytes.extend((bytes.len() as u64).to_le_bytes());
        self.bytes.extend_from_slice(bytes);
    }

    fn name(&mut self, name: &'static str) {
        let next = self.names.len() as u32;
        let known = *self.names.entry((name.as_ptr() as usize, name.len())).or_insert(next);
        if known == next {
            self.blob(NEW_NAME, name.as_bytes());
        } else {
            self.head(NAME);
            self.bytes.extend(known.to_le_bytes());
        }
    }

    fn many(&mut self, kind: u8) -> std::result::Result<Many<'_>, Why> {
        self.head(kind);
        let at = self.bytes.len();
        self.bytes.extend([0; 8]);
        Ok(Many { writer: self, at, count: 0 })
    }
}

/// A sequence or map whose elements are being written.
struct Many<'a> {
    writer: &'a mut Writer,
    /// Where its count belongs.
    at: usize,
    count: u64,
}

impl Many<'_> {
    #[inline]
    fn element<T: Serialize + ?Sized>(&mut self, element: &T) -> Done {
        self.count += 1;
        element.serialize(&mut *self.writer)
    }

    fn field<T: Serialize + ?Sized>(&mut self, name: &'static str, value: &T) -> Done {
        self.writer.name(name);
        self.element(value)
    }

    fn close(self) -> Done {
        self.writer.end_run();
        self.writer.hollow = false;
        self.writer.bytes[self.at..self.at + 8].copy_from_slice(&self.count.to_le_bytes());
        Ok(())
    }
}

/// Scalars by their bytes.
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
        value.serialize(&mut *self)?;
        if self.hollow {
            self.bytes.insert(at, SOME);
        }
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, _: &'static str, value: &T) -> Done {
        value.serialize(self)
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
        value.serialize(&mut *self)?;
        self.hollow = false;
        Ok(())
    }

    fn serialize_seq(self, _: Option<usize>) -> std::result::Result<Many<'a>, Why> {
        self.many(SEQ)
    }

    fn serialize_tuple(self, _: usize) -> std::result::Result<Many<'a>, Why> {
        self.many(SEQ)
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> std::result::Result<Many<'a>, Why> {
        self.many(SEQ)
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> std::result::Result<Many<'a>, Why> {
        self.head(VARIANT);
        self.name(variant);
        self.many(SEQ)
    }

    fn serialize_map(self, _: Option<usize>) -> std::result::Result<Many<'a>, Why> {
        self.many(MAP)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> std::result::Result<Many<'a>, Why> {
        self.many(MAP)
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        _: usize,
    ) -> std::result::Result<Many<'a>, Why> {
        self.head(VARIANT);
        self.name(variant);
        self.many(MAP)
    }
}

/// The traits of compounds, which differ in name only.
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
