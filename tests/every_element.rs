//! Every element of every call on every rank: all collectives one after the other, mixed, at lengths on both sides of
//! every switch between ways to do them, in arrays that begin anywhere, with ranks that dawdle now and then.
//!
//! Calls come in bursts without a barrier between them, and results are compared after a burst: so calls run into each
//! other. `PHALANX_TEST_LONG=1` makes all calls of a case, for each of many seeds; otherwise a case stops after some time.

mod support;

use ndarray::{Array1, ArrayView1, ArrayViewMut1, Ix1, s};
use phalanx::{Arithmetic, Comm, Element, Lease, Op, Result};
use std::fmt::Debug;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let cases = [
        ("ranks_2", (|| case(2)) as fn()),
        ("ranks_3", || case(3)),
        ("ranks_4", || case(4)),
        ("ranks_5", || case(5)),
        ("ranks_6", || case(6)),
        ("ranks_7", || case(7)),
        ("ranks_8", || case(8)),
    ];
    support::main_within(if is_long() { Duration::from_secs(7200) } else { Duration::from_secs(120) }, &cases)
}

fn is_long() -> bool {
    std::env::var("PHALANX_TEST_LONG").is_ok_and(|long| long != "0")
}

/// So long the short form of a case begins new bursts.
const SHORT: Duration = Duration::from_millis(1800);
/// Seeds of the long form.
const SEEDS: u64 = 10;
/// In the short form all ranks together bring no more to a call.
const SHORT_BYTES: usize = if cfg!(debug_assertions) { 4 << 20 } else { 32 << 20 };
/// Among so many short calls, times the ranks, there is a long one.
const LONG_ONE_IN: usize = 10;

/// A bijection that looks random (splitmix64).
fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

trait Sample: Element + Arithmetic + PartialEq + Debug {
    /// What stands beside the arrays and in results beforehand.
    const JUNK: Self;
    /// What `rank` brings to a call, at an index.
    fn value(rank: usize, call: u64, index: usize) -> Self;
    fn added(self, other: Self) -> Self;
}

impl Sample for u8 {
    const JUNK: u8 = 0xA5;

    fn value(rank: usize, call: u64, index: usize) -> u8 {
        let seed = (index as u64).wrapping_add(call << 32).wrapping_add((rank as u64) << 56);
        (seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 53) as u8
    }

    fn added(self, other: u8) -> u8 {
        self.wrapping_add(other)
    }
}

impl Sample for f64 {
    const JUNK: f64 = -1.5;

    /// Different for each rank, call and index; sums of eight are exact.
    fn value(rank: usize, call: u64, index: usize) -> f64 {
        (index as u64 + ((call % (1 << 20)) << 24) + ((rank as u64 + 1) << 46)) as f64
    }

    fn added(self, other: f64) -> f64 {
        self + other
    }
}

/// One call, the same on all ranks but for where its arrays lie.
#[derive(Clone, Copy)]
struct At {
    number: u64,
    len: usize,
    root: usize,
    rank: usize,
    ranks: usize,
    /// Decides where this rank's arrays lie.
    noise: u64,
}

impl At {
    fn is_root(&self) -> bool {
        self.rank == self.root
    }
}

/// Elements of a longer array, from any index on: a private one, or one in shared memory.
struct Strip<T> {
    all: All<T>,
    first: usize,
    len: usize,
}

enum All<T> {
    Private(Array1<T>),
    Shared(Lease<T, Ix1>),
}

/// Elements behind a strip that nobody may touch.
const BEHIND: usize = 3;

impl<T: Sample> Strip<T> {
    /// Full of junk; `which` array of a call it is.
    fn new(comm: &mut Comm<'_>, at: &At, which: u64, len: usize) -> Result<Strip<T>> {
        let noise = mix(at.noise ^ which << 48);
        let first = if noise.is_multiple_of(3) { 0 } else { (noise >> 8) as usize % 67 };
        let all = first + len + BEHIND;
        let all = if noise >> 32 & 1 == 0 {
            All::Private(Array1::from_elem(all, T::JUNK))
        } else {
            let mut lease = comm.alloc(all)?;
            lease.view_mut().fill(T::JUNK);
            All::Shared(lease)
        };
        Ok(Strip { all, first, len })
    }

    /// Filled with values.
    fn of(
        comm: &mut Comm<'_>,
        at: &At,
        which: u64,
        len: usize,
        value: impl Fn(usize) -> T,
    ) -> Result<Strip<T>> {
        let mut strip = Strip::new(comm, at, which, len)?;
        let mut view = strip.view_mut();
        let elements = view.as_slice_mut().expect("a strip is contiguous");
        elements.iter_mut().enumerate().for_each(|(index, element)| *element = value(index));
        Ok(strip)
    }

    /// What this rank brings.
    fn mine(comm: &mut Comm<'_>, at: &At, len: usize) -> Result<Strip<T>> {
        Strip::of(comm, at, 0, len, |index| T::value(at.rank, at.number, index))
    }

    fn whole(&self) -> ArrayView1<'_, T> {
        match &self.all {
            All::Private(array) => array.view(),
            All::Shared(lease) => lease.view(),
        }
    }

    fn view(&self) -> ArrayView1<'_, T> {
        self.whole().slice_move(s![self.first..self.first + self.len])
    }

    fn view_mut(&mut self) -> ArrayViewMut1<'_, T> {
        let range = s![self.first..self.first + self.len];
        match &mut self.all {
            All::Private(array) => array.slice_mut(range),
            All::Shared(lease) => lease.view_mut().slice_move(range),
        }
    }

    /// It holds these, and nothing beside it has been touched.
    fn holds(&self, what: &str, at: &At, wanted: impl Fn(usize) -> T) {
        same(what, at, self.view(), wanted);
        let whole = self.whole();
        let beside = (0..self.first).chain(self.first + self.len..whole.len());
        let touched = beside.into_iter().find(|&index| whole[index] != T::JUNK);
        assert!(touched.is_none(), "{what}: call {}, rank {}: wrote beside its array", at.number, at.rank);
    }
}

fn same<T: Sample>(what: &str, at: &At, array: ArrayView1<'_, T>, wanted: impl Fn(usize) -> T) {
    let elements = array.as_slice().expect("results are contiguous");
    let wrong = elements.iter().enumerate().find(|&(index, &element)| element != wanted(index));
    if let Some((index, element)) = wrong {
        let At { number, len, root, rank, ranks, .. } = at;
        panic!(
            "{what}: call {number}, rank {rank} of {ranks}, root {root}, {len} of {}: element {index} of {} is {element:?}, not {:?}",
            std::any::type_name::<T>(),
            elements.len(),
            wanted(index)
        );
    }
}

/// Compares what has come out of a call.
type Check<'w> = Box<dyn FnOnce() + 'w>;
type Call = for<'w> fn(&mut Comm<'w>, At) -> Result<Check<'w>>;

fn nothing<'w>() -> Result<Check<'w>> {
    Ok(Box::new(|| ()))
}

/// The values of ranks `0..ranks`, folded.
fn folded<T: Sample>(ranks: usize, number: u64, index: usize) -> T {
    (1..ranks).fold(T::value(0, number, index), |sum, rank| sum.added(T::value(rank, number, index)))
}

fn barrier<'w, T: Sample>(comm: &mut Comm<'w>, _: At) -> Result<Check<'w>> {
    comm.barrier()?;
    nothing()
}

fn broadcast<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let mut data =
        if at.is_root() { Strip::mine(comm, &at, at.len)? } else { Strip::new(comm, &at, 0, at.len)? };
    comm.broadcast(&mut data.view_mut(), at.root)?;
    Ok(Box::new(move || data.holds("broadcast", &at, |index| T::value(at.root, at.number, index))))
}

/// Rank r brings `len` + r elements to calls with counts.
fn counts(at: &At) -> Vec<usize> {
    (0..at.ranks).map(|rank| at.len + rank).collect()
}

/// What lies at an index of all ranks' parts, one behind the other.
fn joined<T: Sample>(counts: &[usize], number: u64, index: usize) -> T {
    let mut index = index;
    let mut rank = 0;
    while index >= counts[rank] {
        index -= counts[rank];
        rank += 1;
    }
    T::value(rank, number, index)
}

fn gather<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    if !at.is_root() {
        comm.gather(&send.view(), None::<&mut ArrayViewMut1<'_, T>>, at.root)?;
        return nothing();
    }
    let mut recv = Strip::new(comm, &at, 1, at.len * at.ranks)?;
    comm.gather(&send.view(), Some(&mut recv.view_mut()), at.root)?;
    Ok(Box::new(move || {
        recv.holds("gather", &at, |index| T::value(index / at.len, at.number, index % at.len))
    }))
}

fn gather_varcount<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let send = Strip::<T>::mine(comm, &at, counts[at.rank])?;
    if !at.is_root() {
        comm.gather_varcount(&send.view(), None::<(&mut ArrayViewMut1<'_, T>, &[usize])>, at.root)?;
        return nothing();
    }
    let mut recv = Strip::new(comm, &at, 1, counts.iter().sum())?;
    comm.gather_varcount(&send.view(), Some((&mut recv.view_mut(), &counts[..])), at.root)?;
    Ok(Box::new(move || recv.holds("gather_varcount", &at, |index| joined(&counts, at.number, index))))
}

fn gather_into_lease<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let send = Strip::<T>::mine(comm, &at, counts[at.rank])?;
    let room = match at.is_root() {
        true => Some((comm.alloc::<T, _>(counts.iter().sum::<usize>())?, &counts[..])),
        false => None,
    };
    let all = comm.gather_into_lease(&send.view(), room, at.root)?;
    Ok(Box::new(move || {
        let all = all.as_ref();
        assert_eq!(all.is_some(), at.is_root());
        all.into_iter().for_each(|all| {
            same("gather_into_lease", &at, all.view(), |index| joined(&counts, at.number, index));
        });
    }))
}

fn all_gather<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let send = Strip::<T>::mine(comm, &at, counts[at.rank])?;
    let mut recv = Strip::new(comm, &at, 1, counts.iter().sum())?;
    comm.all_gather(&send.view(), &mut recv.view_mut())?;
    Ok(Box::new(move || recv.holds("all_gather", &at, |index| joined(&counts, at.number, index))))
}

fn scatter<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let total: usize = counts.iter().sum();
    let value = |index| T::value(at.root, at.number, index);
    let send = if at.is_root() { Some(Strip::of(comm, &at, 0, total, value)?) } else { None };
    let mut recv = Strip::new(comm, &at, 1, counts[at.rank])?;
    comm.scatter(send.as_ref().map(Strip::view).as_ref(), &mut recv.view_mut(), at.root)?;
    let first: usize = counts[..at.rank].iter().sum();
    Ok(Box::new(move || recv.holds("scatter", &at, |index| T::value(at.root, at.number, first + index))))
}

fn all_to_all<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len * at.ranks)?;
    let mut recv = Strip::new(comm, &at, 1, at.len * at.ranks)?;
    comm.all_to_all(&send.view(), &mut recv.view_mut())?;
    Ok(Box::new(move || {
        let from = |index| T::value(index / at.len, at.number, at.rank * at.len + index % at.len);
        recv.holds("all_to_all", &at, from);
    }))
}

fn reduce<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    if !at.is_root() {
        comm.reduce(&send.view(), None::<&mut ArrayViewMut1<'_, T>>, &Op::sum(), at.root)?;
        return nothing();
    }
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    comm.reduce(&send.view(), Some(&mut recv.view_mut()), &Op::sum(), at.root)?;
    Ok(Box::new(move || recv.holds("reduce", &at, |index| folded(at.ranks, at.number, index))))
}

fn all_reduce<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    comm.all_reduce(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    Ok(Box::new(move || recv.holds("all_reduce", &at, |index| folded(at.ranks, at.number, index))))
}

/// As `all_reduce`, all arrays in shared memory.
fn all_reduce_shared<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let [mut send, mut recv] = [comm.alloc::<T, _>(at.len)?, comm.alloc::<T, _>(at.len)?];
    let value = |index| T::value(at.rank, at.number, index);
    send.view_mut().iter_mut().enumerate().for_each(|(index, element)| *element = value(index));
    comm.all_reduce(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    Ok(Box::new(move || {
        same("all_reduce_shared", &at, recv.view(), |index| folded(at.ranks, at.number, index));
    }))
}

fn all_reduce_parts<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let rows = at.len / at.ranks + usize::from(at.rank < at.len % at.ranks);
    let parts = comm.parts::<T, _>(rows)?;
    let whole = comm.all_reduce_parts(&send.view(), parts, &Op::sum())?;
    Ok(Box::new(move || {
        same("all_reduce_parts", &at, whole.view(), |index| folded(at.ranks, at.number, index));
    }))
}

fn reduce_scatter<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let send = Strip::<T>::mine(comm, &at, counts.iter().sum())?;
    let mut recv = Strip::new(comm, &at, 1, counts[at.rank])?;
    comm.reduce_scatter(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    let first: usize = counts[..at.rank].iter().sum();
    Ok(Box::new(move || {
        recv.holds("reduce_scatter", &at, |index| folded(at.ranks, at.number, first + index));
    }))
}

fn scan<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    comm.scan(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    Ok(Box::new(move || recv.holds("scan", &at, |index| folded(at.rank + 1, at.number, index))))
}

fn exclusive_scan<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    comm.exclusive_scan(&send.view(), &mut recv.view_mut(), &Op::sum())?;
    Ok(Box::new(move || {
        let before = |index| if at.rank == 0 { T::JUNK } else { folded(at.rank, at.number, index) };
        recv.holds("exclusive_scan", &at, before);
    }))
}

/// Published, reopened, and published again.
fn parts<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let counts = counts(&at);
    let mut parts = comm.parts::<T, _>(counts[at.rank])?;
    let fill = |mut view: ArrayViewMut1<'_, T>, number| {
        let value = |index| T::value(at.rank, number, index);
        view.iter_mut().enumerate().for_each(|(index, element)| *element = value(index));
    };
    fill(parts.view_mut(), at.number + 1000);
    let whole = parts.publish(comm)?;
    same("parts", &at, whole.view(), |index| joined(&counts, at.number + 1000, index));
    parts = whole.reopen(comm)?;
    fill(parts.view_mut(), at.number);
    let whole = parts.publish(comm)?;
    Ok(Box::new(move || same("parts again", &at, whole.view(), |index| joined(&counts, at.number, index))))
}

/// Every rank to the next; rank 0 receives first, so that long messages do not wait in a circle.
fn ring<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let send = Strip::<T>::mine(comm, &at, at.len)?;
    let mut recv = Strip::new(comm, &at, 1, at.len)?;
    let (next, previous) = ((at.rank + 1) % at.ranks, (at.rank + at.ranks - 1) % at.ranks);
    if at.rank == 0 {
        comm.recv(&mut recv.view_mut(), previous)?;
        comm.send(&send.view(), next)?;
    } else {
        comm.send(&send.view(), next)?;
        comm.recv(&mut recv.view_mut(), previous)?;
    }
    Ok(Box::new(move || recv.holds("ring", &at, |index| T::value(previous, at.number, index))))
}

fn lease_ring<'w, T: Sample>(comm: &mut Comm<'w>, at: At) -> Result<Check<'w>> {
    let (next, previous) = ((at.rank + 1) % at.ranks, (at.rank + at.ranks - 1) % at.ranks);
    let mut lease = comm.alloc::<T, _>(at.len)?;
    let value = |index| T::value(at.rank, at.number, index);
    lease.view_mut().iter_mut().enumerate().for_each(|(index, element)| *element = value(index));
    comm.send_lease(lease, next)?;
    let come = comm.recv_lease::<T, Ix1>(at.len, previous)?;
    Ok(Box::new(move || same("lease_ring", &at, come.view(), |index| T::value(previous, at.number, index))))
}

/// All calls with elements of a type.
fn calls<T: Sample>() -> [Call; 18] {
    [
        barrier::<T>,
        broadcast::<T>,
        gather::<T>,
        gather_varcount::<T>,
        gather_into_lease::<T>,
        all_gather::<T>,
        scatter::<T>,
        all_to_all::<T>,
        reduce::<T>,
        all_reduce::<T>,
        all_reduce_shared::<T>,
        all_reduce_parts::<T>,
        reduce_scatter::<T>,
        scan::<T>,
        exclusive_scan::<T>,
        parts::<T>,
        ring::<T>,
        lease_ring::<T>,
    ]
}

/// Lengths on both sides of every switch, in elements: what fits beside a flag, a message's slot, a cell and its share
/// for each rank, chunks, and several of them.
fn lens<T>(ranks: usize) -> Vec<usize> {
    let size = size_of::<T>();
    let small = [0, 1, 8, 9, 31, 32, 33].into_iter().chain(63..=73).chain([127, 128, 129]);
    let cell = 256 << 10;
    let switches =
        [4 << 10, 32 << 10, 64 << 10, 128 << 10, cell, 1 << 20, cell / ranks, 2 * cell / ranks, cell * ranks];
    let around = switches.into_iter().flat_map(|bytes| [bytes / size - 1, bytes / size, bytes / size + 1]);
    let mut lens: Vec<usize> =
        small.map(|bytes| bytes / size).chain(around).chain([(8 << 20) / size + 3]).collect();
    lens.sort_unstable();
    lens.dedup();
    lens
}

/// From this many bytes on a call is a long one.
const LONG: usize = 96 << 10;

/// Every call at every length, long ones strewn among the others, in an order that the seed decides.
fn program(ranks: usize, seed: u64) -> Vec<(Call, usize)> {
    fn all<T: Sample>(ranks: usize) -> impl Iterator<Item = (Call, usize, usize)> {
        let at = |len| calls::<T>().map(|call| (call, len, len * size_of::<T>()));
        lens::<T>(ranks).into_iter().flat_map(at)
    }
    let within = |bytes: usize| is_long() || bytes * ranks <= SHORT_BYTES;
    let all = all::<u8>(ranks).chain(all::<f64>(ranks)).filter(|&(.., bytes)| within(bytes));
    let mut keyed: Vec<_> =
        all.enumerate().map(|(number, call)| (mix(seed << 32 | number as u64), call)).collect();
    keyed.sort_unstable_by_key(|&(key, _)| key);
    let (long, short): (Vec<_>, Vec<_>) =
        keyed.into_iter().map(|(_, call)| call).partition(|call| call.2 >= LONG);
    let mut long = long.into_iter();
    let mut program = Vec::new();
    for (number, call) in short.into_iter().enumerate() {
        program.push(call);
        program.extend(if number % (LONG_ONE_IN * ranks) == 0 { long.next() } else { None });
    }
    program.extend(long);
    program.into_iter().map(|(call, len, _)| (call, len)).collect()
}

/// The calls of `burst`, each up to three times in a row; then what came out of them is compared.
fn burst(comm: &mut Comm<'_>, burst: &[(Call, usize)], number: &mut u64) -> Result<()> {
    let (rank, ranks) = (comm.rank(), comm.size());
    let mut checks = Vec::new();
    for &(call, len) in burst {
        for _ in 0..=mix(*number) % 3 {
            let chance = mix(*number ^ 0xDE1A);
            if chance.is_multiple_of(16) && (chance >> 8) as usize % ranks == rank {
                std::thread::sleep(Duration::from_micros(chance >> 16 & 0xFF));
            }
            let noise = mix(*number ^ (rank as u64) << 40);
            let root = (mix(*number ^ 0x4007) % ranks as u64) as usize;
            checks.push(call(comm, At { number: *number, len, root, rank, ranks, noise })?);
            *number += 1;
        }
    }
    checks.into_iter().for_each(|check| check());
    Ok(())
}

fn case(ranks: usize) {
    let seeds = if is_long() { SEEDS } else { 1 };
    for seed in 0..seeds {
        let program = program(ranks, seed << 8 | ranks as u64);
        let world = support::world();
        let world = phalanx::Launch { ranks: Some(ranks), ..world };
        let done = world.fork(|comm| {
            let (start, mut number, mut done) = (Instant::now(), 0, 0);
            while done < program.len() {
                // Bursts of one to sixteen calls, with at most one long one.
                let size = 1 + (mix(done as u64) % 16) as usize;
                let end = (done + size).min(program.len());
                burst(comm, &program[done..end], &mut number)?;
                done = end;
                let mut time_is_up = ndarray::arr1(&[!is_long() && start.elapsed() > SHORT]);
                comm.broadcast(&mut time_is_up, 0)?;
                if time_is_up[0] {
                    break;
                }
            }
            Ok((done, number))
        });
        let (done, calls) =
            done.expect("all elements are right").expect("on one node every caller is root")[0];
        println!("{ranks} ranks, seed {seed}: {calls} calls, {done} of {} kinds", program.len());
        assert!(done >= 2 * 18, "only {done} kinds of calls were made");
    }
}
