//! Element types by number: the built-in types, in one table, and the tags by which ranks compare their
//! calls.

use std::any::TypeId;
use std::hash::{Hash, Hasher};

/// Holds the table of built-in element types: calls a macro with a row for each. A code is part of the
/// signatures that ranks compare, and is stored by bindings: it never changes.
macro_rules! datatypes {
    ($use_rows:ident) => {
        $use_rows! {
            Int8 = 1, "int8", "i8", i8;
            Int16 = 2, "int16", "i16", i16;
            Int32 = 3, "int32", "i32", i32;
            Int64 = 4, "int64", "i64", i64;
            UInt8 = 5, "uint8", "u8", u8;
            UInt16 = 6, "uint16", "u16", u16;
            UInt32 = 7, "uint32", "u32", u32;
            UInt64 = 8, "uint64", "u64", u64;
            Float32 = 9, "float32", "f32", f32;
            Float64 = 10, "float64", "f64", f64;
            Bool = 11, "bool", "bool", bool;
            Complex64 = 12, "complex64", "Complex<f32>", num_complex::Complex<f32>;
            Complex128 = 13, "complex128", "Complex<f64>", num_complex::Complex<f64>;
            Int128 = 14, "int128", "i128", i128;
            IntPtr = 15, "intp", "isize", isize;
            UInt128 = 16, "uint128", "u128", u128;
            UIntPtr = 17, "uintp", "usize", usize;
        }
    };
}
pub(crate) use datatypes;

macro_rules! declare {
    ($($name:ident = $code:literal, $text:literal, $rust:literal, $type:ty;)*) => {
        /// A built-in element type, named at run time: see [`untyped`](crate::untyped).
        ///
        /// ```
        /// use phalanx::untyped::Datatype;
        /// let datatype = Datatype::from_name("float64").expect("a name of numpy's");
        /// assert_eq!((datatype, datatype.size()), (Datatype::Float64, 8));
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u16)]
        pub enum Datatype {
            $(#[doc = concat!("`", $rust, "`, numpy's `", $text, "`.")] $name = $code,)*
        }

        impl Datatype {
            /// All built-in element types, in the order of their codes.
            pub const ALL: &'static [Datatype] = &[$(Datatype::$name),*];

            /// Returns numpy's name of the type. (numpy lacks `int128` and `uint128`, which are named
            /// likewise.)
            ///
            /// ```
            /// assert_eq!(phalanx::untyped::Datatype::Complex64.name(), "complex64");
            /// ```
            pub fn name(self) -> &'static str {
                match self { $(Datatype::$name => $text,)* }
            }

            /// Returns the number of bytes of an element.
            ///
            /// ```
            /// assert_eq!(phalanx::untyped::Datatype::Complex64.size(), 8);
            /// ```
            pub fn size(self) -> usize {
                match self { $(Datatype::$name => size_of::<$type>(),)* }
            }

            /// Returns the boundary on which elements lie in arrays, in bytes. Calls take bytes on any
            /// boundary; a reduction copies those that are not aligned.
            ///
            /// ```
            /// assert_eq!(phalanx::untyped::Datatype::Complex64.align(), 4);
            /// ```
            pub fn align(self) -> usize {
                const { $(assert!(align_of::<$type>() <= LARGEST_ALIGN);)* }
                match self { $(Datatype::$name => align_of::<$type>(),)* }
            }
        }

        /// The names of the built-in types in messages, by code.
        const BUILT_IN: &[&str] = &["bytes", $($rust),*];

        impl TypeTag {
            /// Returns the tag of the elements `T`.
            pub(crate) fn of<T: 'static>() -> TypeTag {
                let types = [$(TypeId::of::<$type>()),*];
                match types.iter().position(|&id| id == TypeId::of::<T>()) {
                    Some(index) => TypeTag { code: index as u16 + 1, identity: index as u64 + 1 },
                    None => {
                        let mut bits = Bits(0);
                        TypeId::of::<T>().hash(&mut bits);
                        TypeTag { code: bits.0 as u16 | 0x8000, identity: bits.0 }
                    }
                }
            }
        }
    };
}
datatypes!(declare);

/// The largest alignment of a built-in type.
pub(crate) const LARGEST_ALIGN: usize = align_of::<u128>();

impl Datatype {
    /// Returns the type's number, which is the same in every version of this crate.
    ///
    /// ```
    /// assert_eq!(phalanx::untyped::Datatype::Float64.code(), 10);
    /// ```
    pub fn code(self) -> u16 {
        self as u16
    }

    /// Returns the type of this [`code`](Datatype::code), if there is one.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// assert_eq!(Datatype::from_code(10), Some(Datatype::Float64));
    /// assert_eq!(Datatype::from_code(0), None);
    /// ```
    pub fn from_code(code: u16) -> Option<Datatype> {
        Datatype::ALL.iter().copied().find(|datatype| datatype.code() == code)
    }

    /// Returns the type of this [`name`](Datatype::name), if there is one. Names with a byte order (`>f8`)
    /// have none.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// assert_eq!(Datatype::from_name("bool"), Some(Datatype::Bool));
    /// assert_eq!(Datatype::from_name("float16"), None);
    /// ```
    pub fn from_name(name: &str) -> Option<Datatype> {
        Datatype::ALL.iter().copied().find(|datatype| datatype.name() == name)
    }

    /// Returns whether every bit pattern is an element. For a `bool`, only 0 and 1 are: its bytes are
    /// checked.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// assert!(Datatype::Float64.takes_any_bits() && !Datatype::Bool.takes_any_bits());
    /// ```
    pub fn takes_any_bits(self) -> bool {
        self != Datatype::Bool
    }

    /// Returns the index of the first of `bytes` that belongs to no element.
    pub(crate) fn invalid(self, bytes: &[u8]) -> Option<usize> {
        if self.takes_any_bits() { None } else { bytes.iter().position(|&byte| byte > 1) }
    }

    /// Returns the tag of the type's elements.
    pub(crate) fn tag(self) -> TypeTag {
        TypeTag { code: self.code(), identity: u64::from(self.code()) }
    }
}

/// An element type's identity, alike in all processes of one program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TypeTag {
    /// The code for call signatures: that of a built-in type, 15 bits of the identity of a user type, or
    /// [`OBJECT`].
    pub(crate) code: u16,
    /// The code of a built-in type, or the compiler's hash of a user type: two types of one name differ. For
    /// objects it is a hash of the type's name.
    pub(crate) identity: u64,
}

/// The code of serialised objects.
const OBJECT: u16 = 0x7FFF;

impl TypeTag {
    /// The tag of calls without data.
    pub(crate) const BYTES: TypeTag = TypeTag { code: 0, identity: 0 };

    /// Returns the tag of serialised objects of type `T`, which need not be `'static`.
    pub(crate) fn of_object<T>() -> TypeTag {
        let name = std::any::type_name::<T>();
        TypeTag { code: OBJECT, identity: xxhash_rust::xxh3::xxh3_64(name.as_bytes()) }
    }

    /// Returns whether every bit pattern is known to be an element.
    pub(crate) fn takes_any_bits(self) -> bool {
        usize::from(self.code) < BUILT_IN.len() && self != Datatype::Bool.tag()
    }

    /// Describes an amount of bytes: in elements, if their size is known.
    pub(crate) fn amount(self, bytes: u64) -> String {
        match Datatype::from_code(self.code).map(|datatype| bytes / datatype.size() as u64) {
            Some(1) => "1 element".to_owned(),
            Some(count) => format!("{count} elements"),
            None => format!("{bytes} bytes"),
        }
    }

    /// Returns the type's name for messages, from what a signature holds.
    pub(crate) fn name(self) -> String {
        match BUILT_IN.get(usize::from(self.code)) {
            Some(&name) => name.to_owned(),
            None if self.code == OBJECT => format!("objects of type #{:016x}", self.identity),
            None => format!("user type #{:016x}", self.identity),
        }
    }
}

/// A hasher that collects the bits that a [`TypeId`] gives to it: they are a hash already.
struct Bits(u64);

impl Hasher for Bits {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = xxhash_rust::xxh3::xxh3_64_with_seed(bytes, self.0);
    }

    fn write_u64(&mut self, bits: u64) {
        self.0 ^= bits;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use num_complex::Complex;

    #[test]
    fn datatypes_differ() {
        let mut seen = vec![
            TypeTag::of::<u8>().identity,
            TypeTag::of::<bool>().identity,
            TypeTag::of::<f64>().identity,
            TypeTag::of::<[f64; 2]>().identity,
            TypeTag::of::<Complex<f64>>().identity,
        ];
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen.len(), 5);
        assert_eq!(TypeTag::of::<i32>().name(), "i32");
        assert_eq!(TypeTag::of::<Complex<f64>>().name(), "Complex<f64>");
    }

    macro_rules! rows {
        ($($name:ident = $code:literal, $text:literal, $rust:literal, $type:ty;)*) => {
            [$((Datatype::$name, $code, TypeTag::of::<$type>())),*]
        };
    }

    #[test]
    fn codes_names_and_types_agree() {
        for (index, (datatype, code, tag)) in datatypes!(rows).into_iter().enumerate() {
            assert_eq!((datatype.code(), datatype.tag(), Datatype::ALL[index]), (code, tag, datatype));
            assert_eq!(usize::from(code), index + 1);
            assert_eq!(Datatype::from_code(code), Some(datatype));
            assert_eq!(Datatype::from_name(datatype.name()), Some(datatype));
            assert_eq!(tag.takes_any_bits(), datatype.takes_any_bits());
        }
        assert_eq!(Datatype::ALL.len() + 1, BUILT_IN.len());
        assert!(!TypeTag::of::<[f64; 2]>().takes_any_bits());
    }
}
