//! Elements on boundaries of up to a page, in private arrays: every collective and message, at lengths on both sides of the
//! switches.

use bytemuck::{Pod, Zeroable};
use ndarray::Array1;
use phalanx::{Comm, Element, Op, Result};

/// What differs from rank to rank, from element to element, and at both ends of an element.
trait Aligned: Element + PartialEq + std::fmt::Debug {
    fn value(rank: usize, index: usize) -> Self;
    fn then(self, next: Self) -> Self;
}

macro_rules! aligned {
    ($($name:ident, $align:literal, $words:literal;)*) => {$(
        #[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
        #[repr(C, align($align))]
        struct $name([u64; $words]);

        impl Aligned for $name {
            fn value(rank: usize, index: usize) -> Self {
                let mut words = [7; $words];
                (words[0], words[$words - 1]) = (rank as u64 + 1, (index * 1000 + rank) as u64);
                Self(words)
            }

            /// Not commutative.
            fn then(self, next: Self) -> Self {
                Self(std::array::from_fn(|word| self.0[word].wrapping_mul(31).wrapping_add(next.0[word])))
            }
        }
    )*};
}
aligned!(Of128, 128, 16; Of256, 256, 96; Of1024, 1024, 128; Of2048, 2048, 256;);

/// Only moved: rustc 1.95 compiles programs that have such values on the stack to ones that crash (x86-64, optimised).
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C, align(4096))]
struct OfPage([u64; 512]);

pub fn all(comm: &mut Comm<'_>) -> Result<()> {
    for len in [0, 1, 3, 40, 700] {
        calls::<Of128>(comm, len)?;
        calls::<Of256>(comm, len)?;
        calls::<Of1024>(comm, len)?;
        calls::<Of2048>(comm, len)?;
        pages(comm, len)?;
    }
    Ok(())
}

/// Whole pages, which lie in shared memory at both ends.
fn pages(comm: &mut Comm<'_>, len: usize) -> Result<()> {
    let (rank, ranks) = (comm.rank(), comm.size());
    let word = |rank: usize, index: usize| (index * 1000 + rank + 1) as u64;
    let mut mine = comm.alloc::<OfPage, _>(len)?;
    let mut all = comm.alloc::<OfPage, _>(len * ranks)?;
    for (index, page) in mine.view_mut().iter_mut().enumerate() {
        (page.0[0], page.0[511]) = (word(rank, index), 9);
    }
    comm.all_gather(&mine.view(), &mut all.view_mut())?;
    for (at, page) in all.view().iter().enumerate() {
        assert_eq!((page.0[0], page.0[1], page.0[511]), (word(at / len, at % len), 0, 9));
    }
    comm.broadcast(&mut mine.view_mut(), ranks - 1)?;
    for (index, page) in mine.view().iter().enumerate() {
        assert_eq!(page.0[0], word(ranks - 1, index));
    }
    match rank {
        0 if ranks > 1 => comm.send(&all.view(), 1)?,
        1 => {
            comm.recv(&mut all.view_mut(), 0)?;
            assert!(all.view().iter().all(|page| page.0[511] == 9));
        }
        _ => {}
    }
    comm.barrier()
}

fn calls<T: Aligned>(comm: &mut Comm<'_>, len: usize) -> Result<()> {
    let (rank, ranks) = (comm.rank(), comm.size());
    let of = |rank: usize, len: usize| Array1::from_shape_fn(len, |index| T::value(rank, index));
    let room = |len: usize| Array1::from_elem(len, T::zeroed());
    let of_all = |len: usize| Array1::from_shape_fn(len * ranks, |index| T::value(index / len, index % len));
    let fold = |upto: usize, index: usize| {
        (1..upto).fold(T::value(0, index), |folded, rank| folded.then(T::value(rank, index)))
    };
    let folded = |upto: usize, len: usize| Array1::from_shape_fn(len, |index| fold(upto, index));
    let (op, root, mine) = (Op::user(T::then), len % ranks, of(rank, len));
    let is_root = rank == root;

    let mut data = if is_root { mine.clone() } else { room(len) };
    comm.broadcast(&mut data, root)?;
    assert_eq!(data, of(root, len));
    let mut all = room(if is_root { len * ranks } else { 0 });
    comm.gather(&mine, &mut is_root.then_some(&mut all), root)?;
    assert!(!is_root || all == of_all(len));
    let mut all = room(len * ranks);
    comm.all_gather(&mine, &mut all)?;
    assert_eq!(all, of_all(len));
    let mut part = room(len);
    comm.scatter(&is_root.then_some(&all), &mut part, root)?;
    assert_eq!(part, mine);
    let mut turned = room(len * ranks);
    comm.all_to_all(&of(rank, len * ranks), &mut turned)?;
    assert_eq!(turned, Array1::from_shape_fn(len * ranks, |at| T::value(at / len, rank * len + at % len)));

    let mut sum = room(len);
    comm.all_reduce(&mine, &mut sum, &op)?;
    assert_eq!(sum, folded(ranks, len));
    let mut sum = room(len);
    match is_root {
        true => comm.reduce(&mine, &mut sum, &op, root)?,
        false => comm.reduce(&mine, &mut [], &op, root)?,
    }
    assert!(!is_root || sum == folded(ranks, len));
    let mut part = room(len);
    comm.reduce_scatter(&of(rank, len * ranks), &mut part, &op)?;
    assert_eq!(part, Array1::from_shape_fn(len, |index| fold(ranks, rank * len + index)));
    let mut upto = room(len);
    comm.scan(&mine, &mut upto, &op)?;
    assert_eq!(upto, folded(rank + 1, len));
    let mut before = room(len);
    comm.exclusive_scan(&mine, &mut before, &op)?;
    assert_eq!(before, if rank == 0 { room(len) } else { folded(rank, len) });
    comm.barrier()
}
