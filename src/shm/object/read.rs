//! Reading: from tokens to values.

use super::arrays::{self, Runs};
use super::tokens::*;
use serde::de::value::BorrowedStrDeserializer;
use serde::de::{
    Deserialize, DeserializeSeed, Deserializer, EnumAccess, Error as _, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};
use serde::forward_to_deserialize_any;
use xxhash_rust::xxh3::xxh3_64_with_seed;

type Read<T> = std::result::Result<T, Why>;

/// Returns the value in `bytes`, all of which must belong to it.
pub(crate) fn read<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Read<T> {
    let mut reader = Reader::new(bytes);
    let value = match arrays::read(&mut reader) {
        Some(array) => array,
        None => T::deserialize(&mut reader)?,
    };
    match reader.rest.is_empty() && reader.left == 0 {
        true => Ok(value),
        false => Err(Why("it leaves bytes unread".to_owned())),
    }
}

pub(super) struct Reader<'de> {
    rest: &'de [u8],
    /// The kind of the scalars that follow without a head.
    kind: u8,
    left: usize,
    /// The names given so far, by their numbers.
    names: Vec<&'de str>,
}

/// The meaning of a token. A run of scalars gives one such token per scalar.
enum Token<'de> {
    Unit,
    None,
    Some,
    Str(&'de str),
    Bytes(&'de [u8]),
    Seq(usize),
    Map(usize),
    UnitVariant(&'de str),
    Variant(&'de str),
    Scalar(u8, &'de [u8]),
}

impl<'de> Reader<'de> {
    pub(super) fn new(bytes: &'de [u8]) -> Reader<'de> {
        Reader { rest: bytes, kind: UNIT, left: 0, names: Vec::new() }
    }

    #[inline]
    fn take(&mut self, len: usize) -> Read<&'de [u8]> {
        let (taken, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| Why("its bytes end too early".to_owned()))?;
        self.rest = rest;
        Ok(taken)
    }

    fn count(&mut self) -> Read<usize> {
        match self.take(1)?[0] {
            LONG => Ok(u64::from_le_bytes(self.take(8)?.try_into().unwrap_or_default()) as usize),
            short => Ok(usize::from(short)),
        }
    }

    fn blob(&mut self) -> Read<&'de [u8]> {
        let len = self.count()?;
        self.take(len)
    }

    fn text(&mut self) -> Read<&'de str> {
        std::str::from_utf8(self.blob()?).map_err(Why::custom)
    }

    /// Returns a name, whose head has been taken.
    fn name(&mut self, kind: u8) -> Read<&'de str> {
        if kind == NEW_NAME {
            let name = self.text()?;
            self.names.push(name);
            return Ok(name);
        }
        let number = self.count()?;
        let known = self.names.get(number).filter(|_| kind == NAME);
        known.copied().ok_or_else(|| Why("it has a name that was never given".to_owned()))
    }

    fn variant(&mut self) -> Read<&'de str> {
        let kind = self.take(1)?[0];
        self.name(kind)
    }

    #[inline]
    fn token(&mut self) -> Read<Token<'de>> {
        if self.left > 0 {
            self.left -= 1;
            let bytes = self.take(width(self.kind).unwrap_or(0))?;
            return Ok(Token::Scalar(self.kind, bytes));
        }
        self.fresh_token()
    }

    fn fresh_token(&mut self) -> Read<Token<'de>> {
        let kind = self.take(1)?[0];
        if let Some(width) = width(kind & !RUN) {
            self.kind = kind & !RUN;
            if kind & RUN != 0 {
                self.left = self.count()?.saturating_sub(1);
            }
            return Ok(Token::Scalar(self.kind, self.take(width)?));
        }
        Ok(match kind {
            UNIT => Token::Unit,
            NONE => Token::None,
            SOME => Token::Some,
            STR => Token::Str(self.text()?),
            BYTES => Token::Bytes(self.blob()?),
            NAME | NEW_NAME => Token::Str(self.name(kind)?),
            SEQ => Token::Seq(self.count()?),
            MAP => Token::Map(self.count()?),
            UNIT_VARIANT => Token::UnitVariant(self.variant()?),
            VARIANT => Token::Variant(self.variant()?),
            _ => return Err(Why(format!("it has a token of unknown kind {kind}"))),
        })
    }

    /// Takes the next token, if it has this kind and nothing behind its head; returns whether it did.
    fn accept(&mut self, kind: u8) -> bool {
        let accepted = self.left == 0 && self.rest.first() == Some(&kind);
        self.rest = &self.rest[usize::from(accepted)..];
        accepted
    }

    /// Reads shape and elements of an array: see [`Runs`]. `None` if another value follows, of which some is read.
    fn shape_and_run(
        &mut self,
        axes: Option<usize>,
        kind: u8,
        size: usize,
    ) -> Option<(Vec<usize>, &'de [u8])> {
        let key = |reader: &mut Self, name| {
            matches!(reader.token(), Ok(Token::Str(key)) if key == name).then_some(())
        };
        matches!(self.token(), Ok(Token::Map(3))).then_some(())?;
        key(self, "v")?;
        u8::deserialize(&mut *self).ok().filter(|&version| version == arrays::VERSION)?;
        key(self, "dim")?;
        let shape = Vec::<usize>::deserialize(&mut *self).ok()?;
        key(self, "data")?;
        let (count, bytes) = self.list_of(kind, size)?;
        let elements = shape.iter().try_fold(1usize, |product, &axis| product.checked_mul(axis));
        (elements == Some(count) && axes.is_none_or(|axes| axes == shape.len())).then_some((shape, bytes))
    }

    /// Reads a list that is one run; returns the number of its scalars, and their bytes. `None`: as above.
    fn list_of(&mut self, kind: u8, size: usize) -> Option<(usize, &'de [u8])> {
        let Ok(Token::Seq(count)) = self.token() else { return None };
        self.accept(kind | RUN).then_some(())?;
        self.count().ok().filter(|&run| run == count)?;
        Some((count, self.take(count.checked_mul(size)?).ok()?))
    }

    /// Reads something by `read`; if that gives nothing, nothing is read.
    fn attempt<R>(&mut self, read: impl FnOnce(&mut Self) -> Option<R>) -> Option<R> {
        let (rest, before, left, names) = (self.rest, self.kind, self.left, self.names.len());
        let found = read(self);
        if found.is_none() {
            (self.rest, self.kind, self.left) = (rest, before, left);
            self.names.truncate(names);
        }
        found
    }

    /// Returns a digest of the next value that does not depend on the order of elements; with `lists` it
    /// depends on the order of lists, and not on that of maps.
    pub(super) fn digest(&mut self, lists: bool) -> Read<u64> {
        let leaf = |kind: u8, bytes: &[u8]| Ok(xxh3_64_with_seed(bytes, kind.into()));
        match self.token()? {
            Token::Unit => leaf(UNIT, &[]),
            Token::None => leaf(NONE, &[]),
            Token::Some => Ok(xxh3_64_with_seed(&self.digest(lists)?.to_le_bytes(), SOME.into())),
            Token::Str(text) => leaf(STR, text.as_bytes()),
            Token::Bytes(bytes) => leaf(BYTES, bytes),
            // All NaNs are alike.
            Token::Scalar(F64, bytes)
                if lists && bytes.try_into().is_ok_and(|bytes| f64::from_le_bytes(bytes).is_nan()) =>
            {
                leaf(F64, &[])
            }
            Token::Scalar(F32, bytes)
                if lists && bytes.try_into().is_ok_and(|bytes| f32::from_le_bytes(bytes).is_nan()) =>
            {
                leaf(F32, &[])
            }
            Token::Scalar(kind, bytes) => leaf(kind, bytes),
            Token::UnitVariant(name) => leaf(UNIT_VARIANT, name.as_bytes()),
            Token::Variant(name) => Ok(xxh3_64_with_seed(name.as_bytes(), self.digest(lists)?)),
            Token::Seq(count) if lists => (0..count)
                .try_fold(count as u64 ^ u64::from(SEQ) << 56, |digest, _| {
                    Ok(xxh3_64_with_seed(&self.digest(lists)?.to_le_bytes(), digest))
                }),
            Token::Seq(count) => unordered(SEQ, (0..count).map(|_| self.digest(lists))),
            Token::Map(count) => {
                let entry = |_| {
                    let key = self.digest(lists)?;
                    Ok(xxh3_64_with_seed(&key.to_le_bytes(), self.digest(lists)?))
                };
                unordered(MAP, (0..count).map(entry))
            }
        }
    }
}

impl Runs for Reader<'_> {
    fn run(&mut self, axes: Option<usize>, kind: u8, size: usize) -> Option<(Vec<usize>, &[u8])> {
        self.attempt(|reader| reader.shape_and_run(axes, kind, size))
    }

    fn list(&mut self, kind: u8, size: usize) -> Option<&[u8]> {
        self.attempt(|reader| reader.list_of(kind, size)).map(|(_, bytes)| bytes)
    }
}

macro_rules! number {
    ($type:ty, $bytes:expr) => {
        <$type>::from_le_bytes($bytes.try_into().unwrap_or_default())
    };
}

/// The value of a scalar.
enum Scalar {
    Bool(bool),
    I8(i8),
    I16(i16),
    I32(i32),
    I64(i64),
    I128(i128),
    U8(u8),
    U16(u16),
    U32(u32),
    U64(u64),
    U128(u128),
    F32(f32),
    F64(f64),
    Char(char),
}

impl Scalar {
    fn of(kind: u8, bytes: &[u8]) -> Read<Scalar> {
        Ok(match kind {
            BOOL => Scalar::Bool(bytes[0] != 0),
            I8 => Scalar::I8(number!(i8, bytes)),
            I16 => Scalar::I16(number!(i16, bytes)),
            I32 => Scalar::I32(number!(i32, bytes)),
            I64 => Scalar::I64(number!(i64, bytes)),
            I128 => Scalar::I128(number!(i128, bytes)),
            U8 => Scalar::U8(number!(u8, bytes)),
            U16 => Scalar::U16(number!(u16, bytes)),
            U32 => Scalar::U32(number!(u32, bytes)),
            U64 => Scalar::U64(number!(u64, bytes)),
            U128 => Scalar::U128(number!(u128, bytes)),
            F32 => Scalar::F32(number!(f32, bytes)),
            F64 => Scalar::F64(number!(f64, bytes)),
            _ => {
                let char = char::from_u32(number!(u32, bytes));
                Scalar::Char(char.ok_or_else(|| Why("it has a char that is none".to_owned()))?)
            }
        })
    }

    fn visit<'de, V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        match self {
            Scalar::Bool(value) => visitor.visit_bool(value),
            Scalar::I8(value) => visitor.visit_i8(value),
            Scalar::I16(value) => visitor.visit_i16(value),
            Scalar::I32(value) => visitor.visit_i32(value),
            Scalar::I64(value) => visitor.visit_i64(value),
            Scalar::I128(value) => visitor.visit_i128(value),
            Scalar::U8(value) => visitor.visit_u8(value),
            Scalar::U16(value) => visitor.visit_u16(value),
            Scalar::U32(value) => visitor.visit_u32(value),
            Scalar::U64(value) => visitor.visit_u64(value),
            Scalar::U128(value) => visitor.visit_u128(value),
            Scalar::F32(value) => visitor.visit_f32(value),
            Scalar::F64(value) => visitor.visit_f64(value),
            Scalar::Char(value) => visitor.visit_char(value),
        }
    }
}

/// Defines the methods for scalars that are asked for by their type. In a run of such scalars nothing else
/// need be looked at: lists are long.
macro_rules! scalars {
    ($($method:ident $visit:ident $kind:ident $type:ty;)*) => {
        $(#[inline]
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
            if self.left > 0 && self.kind == $kind {
                self.left -= 1;
                return visitor.$visit(number!($type, self.take(size_of::<$type>())?));
            }
            self.deserialize_any(visitor)
        })*
    };
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = Why;

    #[inline]
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        match self.token()? {
            Token::Scalar(kind, bytes) => Scalar::of(kind, bytes)?.visit(visitor),
            Token::Unit => visitor.visit_unit(),
            Token::None => visitor.visit_none(),
            Token::Some => visitor.visit_some(self),
            Token::Str(text) | Token::UnitVariant(text) => visitor.visit_borrowed_str(text),
            Token::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            Token::Seq(count) => {
                let mut many = Many { reader: self, left: count };
                let value = visitor.visit_seq(&mut many)?;
                many.end().map(|()| value)
            }
            Token::Map(count) => {
                let mut many = Many { reader: self, left: count };
                let value = visitor.visit_map(&mut many)?;
                many.end().map(|()| value)
            }
            // This is how human-readable formats have it: buffers for values of unknown type know no
            // variants.
            Token::Variant(name) => visitor.visit_map(Named { name: Some(name), reader: self }),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        if self.accept(NONE) || self.accept(UNIT) {
            return visitor.visit_none();
        }
        self.accept(SOME);
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        if self.accept(NONE) { visitor.visit_unit() } else { self.deserialize_any(visitor) }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Read<V::Value> {
        self.deserialize_unit(visitor)
    }

    #[inline]
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Read<V::Value> {
        let array = if arrays::is_their_own::<V>() { arrays::read(self) } else { None };
        array.map_or_else(|| self.deserialize_any(visitor), Ok)
    }

    #[inline]
    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        let array = if name == "Array" && arrays::is_their_own::<V>() { arrays::read(self) } else { None };
        array.map_or_else(|| self.deserialize_any(visitor), Ok)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Read<V::Value> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Read<V::Value> {
        match self.token()? {
            Token::UnitVariant(name) | Token::Str(name) => {
                visitor.visit_enum(BorrowedStrDeserializer::new(name))
            }
            Token::Variant(name) => visitor.visit_enum(Named { name: Some(name), reader: self }),
            // This is an enum that writes itself as a map.
            Token::Map(1) => match self.token()? {
                Token::Str(name) => visitor.visit_enum(Named { name: Some(name), reader: self }),
                _ => Err(Why("it has a variant without a name".to_owned())),
            },
            _ => Err(Why("it has another value where a variant of an enum is read".to_owned())),
        }
    }

    scalars! {
        deserialize_i32 visit_i32 I32 i32;
        deserialize_i64 visit_i64 I64 i64;
        deserialize_u8 visit_u8 U8 u8;
        deserialize_u32 visit_u32 U32 u32;
        deserialize_u64 visit_u64 U64 u64;
        deserialize_f32 visit_f32 F32 f32;
        deserialize_f64 visit_f64 F64 f64;
    }

    forward_to_deserialize_any! {
        bool i8 i16 i128 u16 u128 char str string bytes byte_buf tuple tuple_struct map
        identifier ignored_any
    }
}

/// The elements of a sequence or map.
struct Many<'a, 'de> {
    reader: &'a mut Reader<'de>,
    left: usize,
}

impl Many<'_, '_> {
    /// Returns an error unless all elements have been read.
    fn end(&self) -> Read<()> {
        match self.left {
            0 => Ok(()),
            left => Err(Why(format!("{left} elements of a sequence or map are left unread"))),
        }
    }

    /// Returns the number of elements for which memory may be allocated in advance: no more than there are
    /// bytes, whatever the count says.
    fn hint(&self) -> Option<usize> {
        Some(self.left.min(self.reader.rest.len()))
    }
}

impl<'de> SeqAccess<'de> for &mut Many<'_, 'de> {
    type Error = Why;

    #[inline]
    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Read<Option<S::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

impl<'de> MapAccess<'de> for &mut Many<'_, 'de> {
    type Error = Why;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Read<Option<S::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.reader).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Read<S::Value> {
        seed.deserialize(&mut *self.reader)
    }

    fn size_hint(&self) -> Option<usize> {
        self.hint()
    }
}

/// A variant with its value: as an enum, or as a map of one entry.
struct Named<'a, 'de> {
    name: Option<&'de str>,
    reader: &'a mut Reader<'de>,
}

impl<'de> MapAccess<'de> for Named<'_, 'de> {
    type Error = Why;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Read<Option<S::Value>> {
        self.name.take().map(|name| seed.deserialize(BorrowedStrDeserializer::new(name))).transpose()
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Read<S::Value> {
        seed.deserialize(&mut *self.reader)
    }
}

impl<'de> EnumAccess<'de> for Named<'_, 'de> {
    type Error = Why;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(mut self, seed: S) -> Read<(S::Value, Self)> {
        let name = self.name.take().unwrap_or_default();
        Ok((seed.deserialize(BorrowedStrDeserializer::<Why>::new(name))?, self))
    }
}

impl<'de> VariantAccess<'de> for Named<'_, 'de> {
    type Error = Why;

    fn unit_variant(self) -> Read<()> {
        <()>::deserialize(self.reader)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Read<S::Value> {
        seed.deserialize(self.reader)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Read<V::Value> {
        self.reader.deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Read<V::Value> {
        self.reader.deserialize_any(visitor)
    }
}
