//! The untyped calls, each against the typed one: the same bytes, on every boundary, also where the ranks make either.

use crate::elements::Operand;
use crate::world::Back;
use ndarray::{Array1, arr1};
use num_complex::Complex;
use phalanx::untyped::{Datatype, Operation, Reduction};
use phalanx::{Comm, Error, ExactSum, Op, Result};

/// Elements of a datatype.
trait Named: Operand {
    const DATATYPE: Datatype;
}

macro_rules! named {
    ($($t:ty: $datatype:ident,)*) => {
        $(impl Named for $t {
            const DATATYPE: Datatype = Datatype::$datatype;
        })*

        /// Every call, with elements of every built-in type.
        pub fn all_types(comm: &mut Comm<'_>) -> Result<()> {
            assert_eq!([$(Datatype::$datatype),*].len(), Datatype::ALL.len(), "all of them");
            $(of_type::<$t>(comm)?;)*
            Ok(())
        }
    };
}
named!(
    i8: Int8, i16: Int16, i32: Int32, i64: Int64, i128: Int128, isize: IntPtr, u8: UInt8, u16: UInt16, u32: UInt32,
    u64: UInt64, u128: UInt128, usize: UIntPtr, f32: Float32, f64: Float64, bool: Bool, Complex<f32>: Complex64,
    Complex<f64>: Complex128,
);

/// The bytes of elements, so many bytes off their boundary.
struct Shifted {
    words: Vec<u128>,
    shift: usize,
    len: usize,
}

impl Shifted {
    fn new<T: Named>(elements: &[T], shift: usize) -> Shifted {
        let bytes: &[u8] = bytemuck::cast_slice(elements);
        let words = vec![0; (bytes.len() + shift).div_ceil(16)];
        let mut shifted = Shifted { words, shift, len: bytes.len() };
        shifted.bytes().copy_from_slice(bytes);
        shifted
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[self.shift..][..self.len]
    }
}

/// What a rank brings, and how its bytes lie.
struct Pair<'a, T> {
    send: &'a [T],
    count: usize,
}

impl<T: Named> Pair<'_, T> {
    /// Makes the typed call, the untyped one on two boundaries, and one of the two on each rank: all leave the same.
    fn check(
        &self,
        comm: &mut Comm<'_>,
        typed: impl Fn(&mut Comm<'_>, &Array1<T>, &mut Array1<T>) -> Result<()>,
        untyped: impl Fn(&mut Comm<'_>, &[u8], &mut [u8]) -> Result<()>,
    ) -> Result<()> {
        let send = Array1::from(self.send.to_vec());
        let run_typed = |comm: &mut Comm<'_>| {
            let mut recv = Array1::from(T::junk(self.count));
            typed(comm, &send, &mut recv)?;
            Result::<_>::Ok(Shifted::new(recv.as_slice().expect("contiguous"), 0))
        };
        let run_untyped = |comm: &mut Comm<'_>, shift: usize| {
            let mut recv = Shifted::new(&T::junk(self.count), shift);
            untyped(comm, Shifted::new(self.send, shift).bytes(), recv.bytes())?;
            Result::<_>::Ok(recv)
        };
        let mut expected = run_typed(comm)?;
        for shift in [0, 1] {
            assert_eq!(
                run_untyped(comm, shift)?.bytes(),
                expected.bytes(),
                "{:?} off by {shift}",
                T::DATATYPE
            );
        }
        let mut mixed = if comm.rank().is_multiple_of(2) { run_typed(comm)? } else { run_untyped(comm, 1)? };
        assert_eq!(mixed.bytes(), expected.bytes(), "{:?} beside typed calls", T::DATATYPE);
        Ok(())
    }
}

/// None, in the marks, staged; for doubles, over three ranks, in slices.
fn of_type<T: Named>(comm: &mut Comm<'_>) -> Result<()> {
    let is_long = T::DATATYPE == Datatype::Float64 && comm.size() == 3;
    for (n, len) in [0, 3, if is_long { 50_000 } else { 200 }].into_iter().enumerate() {
        moving::<T>(comm, len, n % comm.size())?;
        folding::<T>(comm, len, n % comm.size())?;
    }
    Ok(())
}

fn moving<T: Named>(comm: &mut Comm<'_>, len: usize, root: usize) -> Result<()> {
    let (size, rank, datatype) = (comm.size(), comm.rank(), T::DATATYPE);
    let (mine, is_root) = (T::operands(rank, len), rank == root);
    let all = T::operands(rank, len * size);
    let one = Pair { send: &mine, count: len };
    let gathered = Pair { send: &mine, count: len * size };
    one.check(
        comm,
        |comm, send, data| {
            data.assign(send);
            comm.broadcast(data, root)
        },
        |comm, send, data| {
            data.copy_from_slice(send);
            comm.broadcast_bytes(data, datatype, root)
        },
    )?;
    gathered.check(
        comm,
        |comm, send, recv| comm.gather(send, &mut is_root.then_some(recv), root),
        |comm, send, recv| comm.gather_bytes(send, is_root.then_some(recv), datatype, root),
    )?;
    let counts = vec![len; size];
    gathered.check(
        comm,
        |comm, send, recv| comm.gather_varcount(send, &mut is_root.then_some(recv), &counts[..], root),
        |comm, send, recv| {
            comm.gather_varcount_bytes(send, is_root.then_some((recv, &counts[..])), datatype, root)
        },
    )?;
    gathered.check(
        comm,
        |comm, send, recv| comm.all_gather(send, recv),
        |comm, send, recv| comm.all_gather_bytes(send, recv, datatype),
    )?;
    Pair { send: &all, count: len }.check(
        comm,
        |comm, send, recv| comm.scatter(&is_root.then_some(send), recv, root),
        |comm, send, recv| comm.scatter_bytes(is_root.then_some(send), recv, datatype, root),
    )?;
    Pair { send: &all, count: len * size }.check(
        comm,
        |comm, send, recv| comm.all_to_all(send, recv),
        |comm, send, recv| comm.all_to_all_bytes(send, recv, datatype),
    )?;
    let (next, last) = ((rank + 1) % size, (rank + size - 1) % size);
    Pair { send: &mine[..len.min(100)], count: len.min(100) }.check(
        comm,
        |comm, send, recv| {
            comm.send(send, next)?;
            comm.recv(recv, last)
        },
        |comm, send, recv| {
            comm.send_bytes(send, datatype, next)?;
            comm.recv_bytes(recv, datatype, last)
        },
    )
}

fn folding<T: Named>(comm: &mut Comm<'_>, len: usize, root: usize) -> Result<()> {
    let (size, rank, datatype) = (comm.size(), comm.rank(), T::DATATYPE);
    let (mine, all, is_root) = (T::operands(rank, len), T::operands(rank, len * size), rank == root);
    let has = Reduction::ALL.iter().copied().filter(|reduction| reduction.folds(datatype));
    // The last one of the typed operations is a user function.
    let typed_ops = T::ops();
    assert_eq!(has.clone().count() + 1, typed_ops.len());
    for (reduction, (op, _)) in has.zip(&typed_ops) {
        let one = Pair { send: &mine, count: len };
        one.check(
            comm,
            |comm, send, recv| comm.reduce(send, &mut is_root.then_some(recv), op, root),
            |comm, send, recv| comm.reduce_bytes(send, is_root.then_some(recv), datatype, reduction, root),
        )?;
        one.check(
            comm,
            |comm, send, recv| comm.all_reduce(send, recv, op),
            |comm, send, recv| comm.all_reduce_bytes(send, recv, datatype, reduction),
        )?;
        Pair { send: &all, count: len }.check(
            comm,
            |comm, send, recv| comm.reduce_scatter(send, recv, op),
            |comm, send, recv| comm.reduce_scatter_bytes(send, recv, datatype, reduction),
        )?;
        one.check(
            comm,
            |comm, send, recv| comm.scan(send, recv, op),
            |comm, send, recv| comm.scan_bytes(send, recv, datatype, reduction),
        )?;
        one.check(
            comm,
            |comm, send, recv| comm.exclusive_scan(send, recv, op),
            |comm, send, recv| comm.exclusive_scan_bytes(send, recv, datatype, reduction),
        )?;
    }
    Ok(())
}

/// Sums in the library's order, and those that are rounded once.
pub fn other_sums(comm: &mut Comm<'_>) -> Result<()> {
    fn exact<T: Named + ExactSum>(comm: &mut Comm<'_>) -> Result<()> {
        Pair { send: &T::operands(comm.rank(), 1_000), count: 1_000 }.check(
            comm,
            |comm, send, recv| comm.all_reduce_exact(send, recv),
            |comm, send, recv| comm.all_reduce_exact_bytes(send, recv, T::DATATYPE),
        )
    }
    exact::<f32>(comm)?;
    exact::<f64>(comm)?;
    exact::<Complex<f32>>(comm)?;
    exact::<Complex<f64>>(comm)?;
    let (op, fast) = (Op::sum().fast(), Reduction::Sum.fast());
    Pair { send: &f64::operands(comm.rank(), 100), count: 100 }.check(
        comm,
        |comm, send, recv| comm.all_reduce(send, recv, &op),
        |comm, send, recv| comm.all_reduce_bytes(send, recv, Datatype::Float64, fast),
    )
}

/// The last rank's arguments are wrong: an error on every rank, by its name; outputs stay, and the communicator goes on.
pub fn wrong_bytes(comm: &mut Comm<'_>) -> Result<()> {
    let (last, size) = (comm.rank() + 1 == comm.size(), comm.size());
    let send = |bad: &[u8], good: &[u8]| if last { bad.to_vec() } else { good.to_vec() };
    let refused = |comm: &mut Comm<'_>, done: Result<()>, out: &[u8], says: &str| {
        let error = done.expect_err("refused");
        assert!(matches!(error, Error::BadArgument { .. }) && error.to_string().contains(says), "{error}");
        assert!(out.iter().all(|&byte| byte == 9), "an output has changed");
        comm.barrier()
    };
    let half = "7 bytes are no whole number of elements: float64 has 8 bytes";
    let mut out = vec![9; 8 * size];
    let done = comm.all_gather_bytes(&send(&[1; 7], &[1; 8]), &mut out, Datatype::Float64);
    refused(comm, done, &out, half)?;
    let mut out = vec![9; 8];
    let short = if last { 7 } else { 8 };
    let done = comm.all_reduce_bytes(&[1; 8], &mut out[..short], Datatype::Float64, Reduction::Sum);
    refused(comm, done, &out, half)?;
    let done = comm.scan_bytes(&send(&[1, 7, 0], &[1, 1, 0]), &mut out[..3], Datatype::Bool, Reduction::Or);
    refused(comm, done, &out, "byte 1 to send is 7, which is no bool")?;
    let done = comm.all_to_all_bytes(&vec![9 - short as u8; size], &mut vec![9; size], Datatype::Bool);
    refused(comm, done, &out, "to send is 2, which is no bool")?;
    let done = comm.all_reduce_bytes(&[1; 8], &mut out, Datatype::Bool, Reduction::Sum);
    refused(comm, done, &out, "bool has no sum")?;
    let done = comm.all_reduce_exact_bytes(&[1; 8], &mut out, Datatype::Int64);
    refused(comm, done, &out, "int64 has no exact sum")?;
    let done = comm.send_bytes(&[2], Datatype::Bool, 0);
    refused(comm, done, &out, "byte 0 to send is 2, which is no bool")?;
    let done = comm.recv_bytes(&mut out[..7], Datatype::Float64, 0);
    refused(comm, done, &out, half)
}

/// Ranks that name different types, or reductions, learn what each called.
pub fn differ(back: Back) {
    let table = |reduction: fn(usize) -> (Datatype, Operation), says: [&str; 2]| {
        let body = move |comm: &mut Comm<'_>| {
            let (datatype, operation) = reduction(comm.rank());
            comm.all_reduce_bytes(&[0; 8], &mut [0; 8], datatype, operation)
        };
        let error = back.world(2).try_run(&body).expect_err("different calls").to_string();
        assert!(says.iter().all(|says| error.contains(says)), "{error}");
    };
    let types = |rank: usize| ([Datatype::Float64, Datatype::Int64][rank], Operation::from(Reduction::Sum));
    table(types, ["all_reduce (sum), f64", "all_reduce (sum), i64"]);
    let reductions =
        |rank: usize| (Datatype::Float64, Operation::from([Reduction::Min, Reduction::Max][rank]));
    table(reductions, ["all_reduce (min), f64", "all_reduce (max), f64"]);
    let typed = move |comm: &mut Comm<'_>| match comm.rank() {
        0 => comm.all_reduce(&arr1(&[0.0f64]), &mut arr1(&[0.0]), &Op::sum()),
        _ => comm.all_reduce_bytes(&[0; 8], &mut [0; 8], Datatype::UInt64, Reduction::Sum),
    };
    let error = back.world(2).try_run(&typed).expect_err("different calls").to_string();
    assert!(error.contains("f64") && error.contains("u64"), "{error}");
}

/// Numbers and names that nothing has.
pub fn unknown_codes() {
    for code in [0, 18, 0x7FFF, 0x8000, u16::MAX] {
        assert_eq!(Datatype::from_code(code), None, "{code}");
    }
    for code in [0, 9, 10, 11, u8::MAX] {
        assert_eq!(Reduction::from_code(code), None, "{code}");
    }
    for name in ["", "f64", "Float64", ">f8", "float16", "sum "] {
        assert_eq!((Datatype::from_name(name), Reduction::from_name(name)), (None, None), "{name}");
    }
}
