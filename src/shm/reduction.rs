//! The built-in reductions in one table: names, codes and kernels; and the traits of the elements that have
//! them.

use crate::shm::datatype::{Datatype, datatypes};
use crate::shm::element::Element;
use crate::shm::kernel::{self, Operands};
use num_complex::Complex;

/// Declares the reductions. A code is part of the signatures that ranks compare, and is stored by bindings:
/// it never changes. For each class of elements, a function returns the loops of the reductions that the
/// class has.
macro_rules! reductions {
    ($($class:ident in $loops:ident { $($(#[$about:meta])* $name:ident = $code:literal, $text:literal, $fold:expr;)* })*) => {
        /// A built-in reduction, named at run time: see [`untyped`](crate::untyped). [`Op`](crate::Op)
        /// describes the result of each.
        ///
        /// ```
        /// use phalanx::untyped::{Datatype, Reduction};
        /// let sum = Reduction::from_name("sum").expect("a reduction");
        /// assert!(sum.folds(Datatype::Float64) && !sum.folds(Datatype::Bool));
        /// ```
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum Reduction {
            $($($(#[$about])* $name = $code,)*)*
        }

        impl Reduction {
            /// All reductions, in the order of their codes.
            pub const ALL: &'static [Reduction] = &[$($(Reduction::$name),*),*];

            /// Returns the reduction's name.
            ///
            /// ```
            /// assert_eq!(phalanx::untyped::Reduction::And.name(), "logical and");
            /// ```
            pub fn name(self) -> &'static str {
                match self { $($(Reduction::$name => $text,)*)* }
            }
        }

        /// The code of a reduction in the signature of a call.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum OpCode {
            /// No reduction: the call does not fold.
            Nothing = 0,
            $($($name = $code,)*)*
            /// A user function.
            User = 9,
            /// Sums that are rounded once.
            Exact = 10,
        }

        impl OpCode {
            const ALL: &'static [OpCode] =
                &[OpCode::Nothing, $($(OpCode::$name,)*)* OpCode::User, OpCode::Exact];

            /// Returns the name for messages.
            pub(crate) fn name(self) -> &'static str {
                match self {
                    OpCode::Nothing => "",
                    $($(OpCode::$name => $text,)*)*
                    OpCode::User => "user function",
                    OpCode::Exact => "exact sum",
                }
            }
        }

        impl From<Reduction> for OpCode {
            fn from(reduction: Reduction) -> OpCode {
                match reduction { $($(Reduction::$name => OpCode::$name,)*)* }
            }
        }

        $(
            /// Returns the loop of a reduction, if elements of this class have it.
            fn $loops<T: $class>(reduction: Reduction) -> Option<FoldLoop<T>> {
                match reduction {
                    $(Reduction::$name => {
                        Some(FoldLoop(|operands| kernel::fold(operands, $fold)))
                    })*
                    _ => None,
                }
            }
        )*
    };
}

reductions! {
    Arithmetic in arithmetic {
        /// The sum: see [`Op::sum`](crate::Op::sum).
        Sum = 1, "sum", T::plus;
        /// The product: see [`Op::prod`](crate::Op::prod).
        Prod = 2, "prod", T::times;
    }
    Ordered in ordered {
        /// The minimum: see [`Op::min`](crate::Op::min).
        Min = 3, "min", T::least;
        /// The maximum: see [`Op::max`](crate::Op::max).
        Max = 4, "max", T::greatest;
    }
    Bits in bits {
        /// Logical and: see [`Op::and`](crate::Op::and).
        And = 5, "logical and", |a, b| T::truth(a.is_true() && b.is_true());
        /// Logical or: see [`Op::or`](crate::Op::or).
        Or = 6, "logical or", |a, b| T::truth(a.is_true() || b.is_true());
        /// Bitwise and: see [`Op::bit_and`](crate::Op::bit_and).
        BitAnd = 7, "bitwise and", T::both;
        /// Bitwise or: see [`Op::bit_or`](crate::Op::bit_or).
        BitOr = 8, "bitwise or", T::either;
    }
}

impl Reduction {
    /// Returns the reduction's number, which is the same in every version of this crate.
    ///
    /// ```
    /// assert_eq!(phalanx::untyped::Reduction::Max.code(), 4);
    /// ```
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Returns the reduction of this [`code`](Reduction::code), if there is one.
    ///
    /// ```
    /// use phalanx::untyped::Reduction;
    /// assert_eq!((Reduction::from_code(4), Reduction::from_code(99)), (Some(Reduction::Max), None));
    /// ```
    pub fn from_code(code: u8) -> Option<Reduction> {
        Reduction::ALL.iter().copied().find(|reduction| reduction.code() == code)
    }

    /// Returns the reduction of this [`name`](Reduction::name), if there is one.
    ///
    /// ```
    /// use phalanx::untyped::Reduction;
    /// assert_eq!((Reduction::from_name("max"), Reduction::from_name("mean")), (Some(Reduction::Max), None));
    /// ```
    pub fn from_name(name: &str) -> Option<Reduction> {
        Reduction::ALL.iter().copied().find(|reduction| reduction.name() == name)
    }
}

impl OpCode {
    /// Returns the name that belongs to a code out of a signature.
    pub(crate) fn name_of(code: u8) -> Option<&'static str> {
        OpCode::ALL.iter().find(|&&op| op as u8 == code).map(|op| op.name())
    }
}

macro_rules! folds {
    ($($name:ident = $code:literal, $text:literal, $rust:literal, $type:ty;)*) => {
        impl Reduction {
            /// Returns whether elements of this type have the reduction: integers have all, floats have sum,
            /// product, minimum and maximum, complex numbers sum and product, `bool` the logical and bitwise
            /// ones.
            ///
            /// ```
            /// use phalanx::untyped::{Datatype, Reduction};
            /// assert!(!Reduction::Max.folds(Datatype::Complex128) && Reduction::Or.folds(Datatype::Bool));
            /// ```
            pub fn folds(self, datatype: Datatype) -> bool {
                match datatype { $(Datatype::$name => <$type>::fold_loop(self).is_some(),)* }
            }
        }
    };
}
datatypes!(folds);

/// Elements that can be added and multiplied: integers (wrapping; `usize` and `isize` too), floats, complex
/// numbers.
///
/// ```
/// fn adds<T: phalanx::Arithmetic>() {}
/// adds::<i8>();
/// adds::<usize>();
/// adds::<num_complex::Complex<f64>>();
/// ```
pub trait Arithmetic: Reducible {
    #[doc(hidden)]
    fn plus(self, other: Self) -> Self;
    #[doc(hidden)]
    fn times(self, other: Self) -> Self;
}

/// Elements with a minimum and a maximum: integers and floats.
///
/// ```
/// fn compares<T: phalanx::Ordered>() {}
/// compares::<f32>();
/// ```
pub trait Ordered: Reducible {
    #[doc(hidden)]
    fn least(self, other: Self) -> Self;
    #[doc(hidden)]
    fn greatest(self, other: Self) -> Self;
}

/// Elements made of bits: integers and `bool`.
///
/// ```
/// fn has_bits<T: phalanx::Bits>() {}
/// has_bits::<bool>();
/// has_bits::<u64>();
/// ```
pub trait Bits: Reducible {
    #[doc(hidden)]
    fn is_true(self) -> bool;
    #[doc(hidden)]
    fn truth(value: bool) -> Self;
    #[doc(hidden)]
    fn both(self, other: Self) -> Self;
    #[doc(hidden)]
    fn either(self, other: Self) -> Self;
}

mod sealed {
    use super::{Element, Operands, Reduction};

    /// The loop that folds elements of one type.
    #[derive(Clone, Copy, Debug)]
    pub struct FoldLoop<T>(pub(crate) fn(Operands<'_, T>));

    /// Elements of built-in types, and the loops of the reductions that they have. The loops of a type are
    /// compiled once, with this crate, and not again in each program and each of its crates.
    pub trait Reducible: Element {
        /// Returns the loop of a reduction, if these elements have it.
        fn fold_loop(reduction: Reduction) -> Option<FoldLoop<Self>>;
    }
}
pub(crate) use sealed::{FoldLoop, Reducible};

macro_rules! integers {
    ($($int:ty)*) => {$(
        impl Arithmetic for $int {
            fn plus(self, other: Self) -> Self { self.wrapping_add(other) }
            fn times(self, other: Self) -> Self { self.wrapping_mul(other) }
        }
        impl Ordered for $int {
            fn least(self, other: Self) -> Self { self.min(other) }
            fn greatest(self, other: Self) -> Self { self.max(other) }
        }
        impl Reducible for $int {
            #[inline(never)]
            fn fold_loop(reduction: Reduction) -> Option<FoldLoop<$int>> {
                arithmetic(reduction).or_else(|| ordered(reduction)).or_else(|| bits(reduction))
            }
        }
        impl Bits for $int {
            fn is_true(self) -> bool { self != 0 }
            fn truth(value: bool) -> Self { value.into() }
            fn both(self, other: Self) -> Self { self & other }
            fn either(self, other: Self) -> Self { self | other }
        }
    )*};
}
integers!(i8 i16 i32 i64 i128 isize u8 u16 u32 u64 u128 usize);

macro_rules! floats {
    ($($float:ty)*) => {$(
        impl Arithmetic for $float {
            fn plus(self, other: Self) -> Self { self + other }
            fn times(self, other: Self) -> Self { self * other }
        }
        impl Ordered for $float {
            fn least(self, other: Self) -> Self { if self <= other || self.is_nan() { self } else { other } }
            fn greatest(self, other: Self) -> Self { if self >= other || self.is_nan() { self } else { other } }
        }
        impl Reducible for $float {
            #[inline(never)]
            fn fold_loop(reduction: Reduction) -> Option<FoldLoop<$float>> {
                arithmetic(reduction).or_else(|| ordered(reduction))
            }
        }
        impl Reducible for Complex<$float> {
            #[inline(never)]
            fn fold_loop(reduction: Reduction) -> Option<FoldLoop<Complex<$float>>> {
                arithmetic(reduction)
            }
        }
        impl Arithmetic for Complex<$float> {
            fn plus(self, other: Self) -> Self { self + other }
            fn times(self, other: Self) -> Self { self * other }
        }
    )*};
}
floats!(f32 f64);
impl Reducible for bool {
    #[inline(never)]
    fn fold_loop(reduction: Reduction) -> Option<FoldLoop<bool>> {
        bits(reduction)
    }
}
impl Bits for bool {
    fn is_true(self) -> bool {
        self
    }
    fn truth(value: bool) -> Self {
        value
    }
    fn both(self, other: Self) -> Self {
        self & other
    }
    fn either(self, other: Self) -> Self {
        self | other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_codes_agree() {
        for (index, op) in OpCode::ALL.iter().enumerate() {
            assert_eq!(*op as usize, index);
            assert_eq!(OpCode::name_of(index as u8), Some(op.name()));
        }
        assert_eq!(OpCode::name_of(OpCode::ALL.len() as u8), None);
        for &reduction in Reduction::ALL {
            let op = OpCode::from(reduction);
            assert_eq!((op as u8, op.name()), (reduction.code(), reduction.name()));
            assert_eq!(Reduction::from_code(reduction.code()), Some(reduction));
            assert_eq!(Reduction::from_name(reduction.name()), Some(reduction));
        }
    }

    #[test]
    fn each_class_has_its_reductions() {
        let count = |has: fn(Reduction) -> bool| Reduction::ALL.iter().filter(|&&one| has(one)).count();
        assert_eq!(count(|one| i64::fold_loop(one).is_some()), 8);
        assert_eq!(count(|one| f32::fold_loop(one).is_some()), 4);
        assert_eq!(count(|one| Complex::<f64>::fold_loop(one).is_some()), 2);
        assert_eq!(count(|one| bool::fold_loop(one).is_some()), 4);
    }
}
