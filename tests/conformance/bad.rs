//! Bad input: an error on every rank, in the user's words, outputs untouched, and the communicator goes on.

use crate::world::{Back, World};
use ndarray::{Array0, Array1, Ix0, Ix1, Ix2, arr1};
use phalanx::{Comm, Error, Launch, Op, Result, SharedArray};
use serde::{Deserialize, Serialize, Serializer};
use std::process::Command;

/// Who can be wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    /// Any rank, by itself.
    Own,
    /// Root, by itself.
    Root,
    /// A rank in comparison with others.
    Between,
}
use Fault::{Between, Own, Root};

/// What outputs hold before.
const UNTOUCHED: f64 = -7.0;

/// The call of a rank; `bad`: with the wrong argument. The other ranks give what is right beside it.
type Call = fn(&mut Comm<'_>, Input<'_>, &mut Array1<f64>) -> Result<()>;

struct Input<'a> {
    bad: bool,
    root: usize,
    array: &'a SharedArray<f64, Ix1>,
}

struct Wrong {
    name: &'static str,
    fault: Fault,
    operation: &'static str,
    /// What the culprit's message must say.
    says: &'static str,
    call: Call,
}

/// Cannot be serialised.
#[derive(Deserialize)]
struct Secret(bool);

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if self.0 { Err(serde::ser::Error::custom("a secret")) } else { serializer.serialize_bool(false) }
    }
}

fn three() -> Array1<f64> {
    arr1(&[1.0, 2.0, 3.0])
}

macro_rules! wrong {
    ($($name:literal: $fault:ident, $operation:literal, $says:literal, |$comm:ident, $input:ident, $out:ident| $call:expr;)*) => {
        &[$(Wrong {
            name: $name,
            fault: $fault,
            operation: $operation,
            says: $says,
            call: |$comm: &mut Comm<'_>, $input: Input<'_>, $out: &mut Array1<f64>| $call,
        }),*]
    };
}

/// `out` has three elements a rank; a world has three ranks, or one.
const WRONG: &[Wrong] = wrong! {
    "broadcast: root": Own, "broadcast", "root 9, but ranks go from 0 to",
        |comm, it, out| comm.broadcast(out, if it.bad { 9 } else { 0 });
    "broadcast: lengths": Between, "broadcast", "lengths",
        |comm, it, out| comm.broadcast(&mut out.slice_mut(ndarray::s![usize::from(it.bad)..]), it.root);
    "gather: root": Own, "gather", "root 9",
        |comm, it, out| comm.gather(&three(), comm.is_root().then_some(out), if it.bad { 9 } else { 0 });
    "gather: no array at root": Root, "gather", "root gave no array",
        |comm, it, out| comm.gather(&three(), (!it.bad).then_some(out), it.root);
    "gather: too small": Root, "gather", "the receiving array has",
        |comm, it, out| comm.gather(&three(), Some(&mut out.slice_mut(ndarray::s![..1])), it.root);
    "gather: lengths": Between, "gather", "not the lengths that the ranks send",
        |comm, it, out| comm.gather(&three().slice(ndarray::s![usize::from(it.bad)..]), (comm.rank() == it.root).then_some(out), it.root);
    "gather_varcount: too few counts": Root, "gather", "counts given for",
        |comm, it, out| comm.gather_varcount(&three(), Some((out, &[3; 7])), it.root);
    "gather_varcount: sum": Root, "gather", "add up to",
        |comm, it, out| comm.gather_varcount(&three(), Some((out, &vec![4; comm.size()])), it.root);
    "gather_varcount: sum overflows": Root, "gather", "add up to",
        |comm, it, out| comm.gather_varcount(&three(), Some((out, &vec![usize::MAX; comm.size()])), it.root);
    "gather_varcount: own count": Root, "gather", "its count says",
        |comm, it, out| comm.gather_varcount(&arr1(&[1.0]), Some((out, &vec![3; comm.size()])), it.root);
    "gather_varcount: counts are not what ranks send": Between, "gather", "not the lengths",
        |comm, it, out| {
            let recv = (comm.rank() == it.root).then_some((out, &[3, 3, 3][..]));
            comm.gather_varcount(&three().slice(ndarray::s![usize::from(it.bad)..]), recv, it.root)
        };
    "gather_into_lease: sum": Root, "gather_into_lease", "add up to",
        |comm, it, _out| {
            let room = comm.alloc::<f64, _>(5)?;
            comm.gather_into_lease(&three(), Some((room, &vec![3; comm.size()])), it.root).map(drop)
        };
    "gather_into_lease: no array at root": Root, "gather_into_lease", "root gave no array",
        |comm, it, _out| comm.gather_into_lease::<f64, _, _, Ix1>(&three(), None, it.root).map(drop);
    "all_gather: too small": Between, "all_gather", "do not add up",
        |comm, it, out| comm.all_gather(&three(), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..]));
    "scatter: root": Own, "scatter", "root 9",
        |comm, it, out| comm.scatter(Some(&three()), out, if it.bad { 9 } else { 0 });
    "scatter: no array at root": Root, "scatter", "root gave no array",
        |comm, it, out| comm.scatter((!it.bad).then_some(&three()), out, it.root);
    "scatter: rooms do not add up": Between, "scatter", "does not add up",
        |comm, it, out| {
            let send = Array1::zeros(out.len() * comm.size());
            comm.scatter(Some(&send), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..]), it.root)
        };
    "reduce: root": Own, "reduce", "root 9",
        |comm, it, out| {
            let mut out = out.slice_mut(ndarray::s![..3]);
            comm.reduce(&three(), comm.is_root().then_some(&mut out), &Op::sum(), if it.bad { 9 } else { 0 })
        };
    "reduce: no array at root": Root, "reduce", "root gave no array",
        |comm, it, out| comm.reduce(&three(), (!it.bad).then_some(out), &Op::sum(), it.root);
    "reduce: room": Root, "reduce", "as many",
        |comm, it, out| comm.reduce(&three(), Some(&mut out.slice_mut(ndarray::s![..2])), &Op::sum(), it.root);
    "all_reduce: room": Own, "all_reduce", "as many",
        |comm, it, out| comm.all_reduce(&three(), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..3]), &Op::sum());
    "all_reduce: lengths": Between, "all_reduce", "different lengths",
        |comm, it, out| {
            let len = 3 - usize::from(it.bad);
            comm.all_reduce(&three().slice(ndarray::s![..len]), &mut out.slice_mut(ndarray::s![..len]), &Op::sum())
        };
    "reduce_scatter: room": Own, "reduce_scatter", "as many",
        |comm, it, out| {
            let send = Array1::zeros(3 * comm.size() + usize::from(it.bad));
            comm.reduce_scatter(&send, &mut out.slice_mut(ndarray::s![..3]), &Op::sum())
        };
    "scan: room": Own, "scan", "as many",
        |comm, it, out| comm.scan(&three(), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..3]), &Op::max());
    "scan: lengths": Between, "scan", "different lengths",
        |comm, it, out| {
            let len = 3 - usize::from(it.bad);
            comm.scan(&three().slice(ndarray::s![..len]), &mut out.slice_mut(ndarray::s![..len]), &Op::max())
        };
    "exclusive_scan: room": Own, "exclusive_scan", "as many",
        |comm, it, out| comm.exclusive_scan(&three(), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..3]), &Op::max());
    "all_to_all: room": Own, "all_to_all", "as many",
        |comm, it, out| comm.all_to_all(&Array1::zeros(3 * comm.size() + usize::from(it.bad)), out);
    "all_to_all: lengths": Between, "all_to_all", "different amounts",
        |comm, it, out| {
            let len = if it.bad { 3 } else { 6 };
            comm.all_to_all(&Array1::zeros(len), &mut out.slice_mut(ndarray::s![..len]))
        };
    "all_reduce_parts: room": Own, "all_reduce_parts", "as many",
        |comm, it, _out| {
            let part = comm.parts(Ix1(1))?;
            comm.all_reduce_parts(&Array1::<f64>::zeros(comm.size() + usize::from(it.bad)), part, &Op::sum()).map(drop)
        };
    "parts: no axes": Own, "parts", "without axes",
        |comm, it, _out| match it.bad {
            true => comm.parts::<f64, Ix0>(Ix0()).map(drop),
            false => comm.parts::<f64, Ix1>(Ix1(1)).map(drop),
        };
    "parts: row shapes": Between, "parts", "different arrays",
        |comm, it, _out| comm.parts::<f64, Ix2>(Ix2(1, 2 + usize::from(it.bad))).map(drop);
    "open: twice": Own, "open", "open already",
        |comm, it, _out| {
            let first = if it.bad { None } else { Some(comm.open(it.array)?) };
            drop(first);
            comm.open(it.array).map(drop)
        };
    "open_rows: sum": Own, "open", "do not split",
        |comm, it, _out| comm.open_rows(it.array, &vec![if it.bad { 4 } else { 9 / comm.size() }; comm.size()]).map(drop);
    "open_rows: too few": Own, "open", "do not split",
        |comm, it, _out| comm.open_rows(it.array, if it.bad { &[9, 0] } else { &[9, 0, 0][..comm.size()] }).map(drop);
    "open_rows: splits": Between, "open", "different arrays or splits",
        |comm, it, _out| comm.open_rows(it.array, &[3, if it.bad { 2 } else { 3 }, if it.bad { 4 } else { 3 }]).map(drop);
    "broadcast_object: root": Own, "broadcast", "root 9",
        |comm, it, _out| comm.broadcast_object(1, if it.bad { 9 } else { 0 }).map(drop);
    "broadcast_object: secret": Root, "broadcast", "cannot be serialised: ",
        |comm, it, _out| comm.broadcast_object(Secret(it.bad), it.root).map(drop);
    "gather_objects: root": Own, "gather", "root 9",
        |comm, it, _out| comm.gather_objects(&1, if it.bad { 9 } else { 0 }).map(drop);
    "gather_objects: secret": Own, "gather", "cannot be serialised: ",
        |comm, it, _out| comm.gather_objects(&Secret(it.bad), 0).map(drop);
    "all_gather_objects: secret": Own, "all_gather", "cannot be serialised: ",
        |comm, it, _out| comm.all_gather_objects(&Secret(it.bad)).map(drop);
};

/// "open: twice" needs a first time.
fn call(wrong: &Wrong, comm: &mut Comm<'_>, input: Input<'_>, out: &mut Array1<f64>) -> Result<()> {
    if wrong.name != "open: twice" {
        return (wrong.call)(comm, input, out);
    }
    let (array, bad) = (input.array, input.bad);
    let first = comm.open(array)?;
    let kept = bad.then_some(first);
    let result = (wrong.call)(comm, input, out);
    drop(kept);
    result
}

/// One rank is wrong, each in turn; then all are, if that makes them wrong.
pub fn arguments(back: Back) {
    let ranks = if back == Back::Solo { 1 } else { 3 };
    for wrong in WRONG {
        if ranks == 1 && wrong.fault == Between {
            continue;
        }
        let all = if wrong.fault == Own && ranks > 1 { vec![None] } else { vec![] };
        for who in (0..ranks).map(Some).chain(all) {
            let array = SharedArray::zeros(9).expect("memory");
            let ran = back.world(ranks).try_run(|comm| one(wrong, comm, who, &array));
            ran.unwrap_or_else(|error| panic!("{}, wrong on {who:?}: {error}", wrong.name));
        }
    }
}

fn one(wrong: &Wrong, comm: &mut Comm<'_>, who: Option<usize>, array: &SharedArray<f64, Ix1>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let bad = who.is_none_or(|who| who == rank);
    // What compares with root is wrong on another rank than root.
    let root = if wrong.fault == Root { who.unwrap_or(0) } else { (who.unwrap_or(0) + 1) % size };
    for _ in 0..3 {
        let mut out = Array1::from_elem(3 * size, UNTOUCHED);
        let refused = call(wrong, comm, Input { bad, root, array }, &mut out);
        let text = refused.as_ref().err().map_or_else(String::new, ToString::to_string);
        let Err(Error::BadArgument { place, .. }) = refused else {
            panic!("{}: {refused:?} on rank {rank}", wrong.name)
        };
        assert_eq!((place.operation, place.rank), (wrong.operation, rank), "{text}");
        let culprit = bad || wrong.fault == Between;
        assert!(!culprit || text.contains(wrong.says), "{text}");
        let accused = who.is_none_or(|who| text.contains(&format!("rank {who} was given wrong arguments")));
        assert!(culprit || accused, "{text}");
        assert!(out.iter().all(|&x| x == UNTOUCHED), "{}: output changed", wrong.name);
        still_works(comm)?;
    }
    Ok(())
}

/// Exchanges of all kinds, and messages.
fn still_works(comm: &mut Comm<'_>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    comm.barrier()?;
    for len in [1, 100] {
        let mut sum = Array1::zeros(len);
        comm.all_reduce(&Array1::from_elem(len, rank as u64 + 1), &mut sum, &Op::sum())?;
        assert!(sum.iter().all(|&sum| sum as usize == size * (size + 1) / 2));
        let mut all = Array1::zeros(size * len);
        comm.all_gather(&Array1::from_elem(len, rank), &mut all)?;
        assert!(all.iter().enumerate().all(|(at, &from)| from == at / len));
    }
    comm.send(&arr1(&[rank]), (rank + 1) % size)?;
    let mut from = arr1(&[0]);
    comm.recv(&mut from, (rank + size - 1) % size)?;
    assert_eq!(from[0], (rank + size - 1) % size);
    Ok(())
}

/// Messages are between two: what is wrong stays with the one who is, and the message stays to be received.
pub fn messages(comm: &mut Comm<'_>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let (next, last) = ((rank + 1) % size, (rank + size - 1) % size);
    let refused = |result: Result<()>, says: &str| {
        let error = result.expect_err("refused");
        let text = error.to_string();
        assert!(matches!(error, Error::BadArgument { place, .. } if place.rank == rank), "{text}");
        assert!(text.contains(says), "{text}");
    };
    let mut three = arr1(&[UNTOUCHED; 3]);
    refused(comm.send(&three, 9), "rank 9, but ranks go from 0 to");
    refused(comm.recv(&mut three, size), "but ranks go from 0 to");
    let lease = comm.alloc::<f64, _>(3)?;
    refused(comm.send_lease(lease, size), "but ranks go from 0 to");
    refused(comm.recv_lease::<f64, _>(3, size).map(drop), "but ranks go from 0 to");
    comm.send(&arr1(&[1.0, 2.0, 3.0]), next)?;
    refused(comm.recv(&mut arr1(&[0.0; 2]), last), "");
    refused(comm.recv(&mut arr1(&[0.0; 4]), last), "");
    refused(comm.recv(&mut arr1(&[0i64; 3]), last), "");
    refused(comm.recv_lease::<f64, _>(3, last).map(drop), "");
    assert_eq!(three, arr1(&[UNTOUCHED; 3]));
    comm.recv(&mut three, last)?;
    assert_eq!(three, arr1(&[1.0, 2.0, 3.0]));
    let mut lease = comm.alloc::<f64, _>(3)?;
    lease.view_mut().fill(rank as f64);
    comm.send_lease(lease, next)?;
    refused(comm.recv(&mut three, last), "");
    refused(comm.recv_lease::<i64, _>(3, last).map(drop), "");
    refused(comm.recv_lease::<f64, _>((2, 3), last).map(drop), "");
    assert_eq!(comm.recv_lease::<f64, _>(3, last)?.view()[0], last as f64);
    still_works(comm)
}

/// Nobody sends to itself and waits.
pub fn message_to_nobody(comm: &mut Comm<'_>) -> Result<()> {
    let error = comm.recv(&mut arr1(&[0.0]), comm.rank()).expect_err("would wait for ever");
    assert!(error.to_string().contains("itself"), "{error}");
    Ok(())
}

type Twins = (&'static str, &'static str, fn(&mut Comm<'_>) -> Result<()>, fn(&mut Comm<'_>) -> Result<()>);

fn least(a: f64, b: f64) -> f64 {
    a.min(b)
}
fn sum(a: f64, b: f64) -> f64 {
    a + b
}

fn into_lease(comm: &mut Comm<'_>) -> Result<()> {
    let room = if comm.is_root() { Some((comm.alloc::<f64, _>(9)?, &[3, 3, 3][..])) } else { None };
    comm.gather_into_lease(&three(), room, 0).map(drop)
}

fn gather<const ROOT: usize>(comm: &mut Comm<'_>) -> Result<()> {
    comm.gather(&three(), (comm.rank() == ROOT).then_some(&mut Array1::zeros(9)), ROOT)
}

fn reduce(comm: &mut Comm<'_>, op: &Op<'_, f64>) -> Result<()> {
    let mut out = Array1::from_elem(3, UNTOUCHED);
    let result = comm.all_reduce(&three(), &mut out, op);
    assert!(result.is_ok() || out.iter().all(|&x| x == UNTOUCHED));
    result
}

/// What one rank calls, and what the others call: an error on all, with a table that names what each called.
const DIFFERENT: &[Twins] = &[
    ("barrier", "gather, f64", |comm| comm.barrier(), gather::<0>),
    ("gather, f64, root 0", "gather, f64, root 1", gather::<0>, gather::<1>),
    (
        "broadcast, f64",
        "broadcast, i64",
        |comm| comm.broadcast(&mut three(), 0),
        |comm| comm.broadcast(&mut arr1(&[1i64, 2, 3]), 0),
    ),
    (
        "broadcast, f64",
        "broadcast, f32",
        |comm| comm.broadcast(&mut three(), 0),
        |comm| comm.broadcast(&mut Array1::<f32>::zeros(6), 0),
    ),
    (
        "broadcast, u8",
        "broadcast, bytes",
        |comm| comm.broadcast(&mut Array1::<u8>::zeros(8), 0),
        |comm| comm.broadcast_object(0u8, 0).map(drop),
    ),
    (
        "broadcast, f64",
        "broadcast, user type",
        |comm| comm.broadcast(&mut Array0::<f64>::zeros(()), 0),
        |comm| comm.broadcast(&mut Array0::from_elem((), [0.0; 1]), 0),
    ),
    ("(sum)", "(prod)", |comm| reduce(comm, &Op::sum()), |comm| reduce(comm, &Op::prod())),
    ("(sum)", "(user function)", |comm| reduce(comm, &Op::sum()), |comm| reduce(comm, &Op::user(sum))),
    (
        "reduce (sum)",
        "all_reduce (sum)",
        |comm| comm.reduce(&three(), comm.is_root().then_some(&mut three()), &Op::sum(), 0),
        |comm| reduce(comm, &Op::sum()),
    ),
    (
        "scan",
        "exclusive_scan",
        |comm| comm.scan(&three(), &mut three(), &Op::sum()),
        |comm| comm.exclusive_scan(&three(), &mut three(), &Op::sum()),
    ),
    ("split", "barrier", |comm| comm.split(None, 0).map(drop), |comm| comm.barrier()),
    (
        "all_gather, f64",
        "all_to_all, f64",
        |comm| comm.all_gather(&three(), &mut Array1::zeros(9)),
        |comm| comm.all_to_all(&three(), &mut three()),
    ),
];

/// Ranks that make different calls all learn what each called.
pub fn mismatch(back: Back) {
    for (one, other, odd, even) in DIFFERENT {
        for who in 0..3 {
            back.world(3).run_broken(|comm| {
                let error = if comm.rank() == who { odd(comm) } else { even(comm) }.expect_err("a mismatch");
                let Error::Mismatch { ref table, place } = error else { panic!("{error}") };
                let called = |rank: usize| format!("  rank {rank}: ");
                for (rank, line) in table.lines().enumerate() {
                    let what = if rank == who { one } else { other };
                    assert!(line.starts_with(&called(rank)) && line.contains(what), "{table}");
                }
                assert_eq!((table.lines().count(), place.rank), (3, comm.rank()), "{table}");
                comm.barrier().expect_err("the world has ended");
            });
        }
    }
}

/// Functions are part of what is called, closures of one function told apart.
pub fn functions_differ(back: Back) {
    for closures in [false, true] {
        back.world(2).run_broken(|comm| {
            let op = match (comm.is_root(), closures) {
                (true, false) => Op::user(sum),
                (false, false) => Op::user(least),
                (true, true) => Op::user(|a, b| a * 0.5 + b),
                (false, true) => Op::user(|a, b| a - b),
            };
            let error = reduce(comm, &op).expect_err("different functions");
            assert!(error.to_string().contains("other functions"), "{error}");
        });
    }
}

/// Gathering into shared memory and into private memory are different calls: nobody takes one for the other.
pub fn gathers_differ(back: Back) {
    for (root, others) in [
        (into_lease as fn(&mut Comm<'_>) -> Result<()>, gather::<0> as fn(&mut Comm<'_>) -> Result<()>),
        (gather::<0>, into_lease),
    ] {
        back.world(2).run_broken(|comm| {
            let result = if comm.is_root() { root(comm) } else { others(comm) };
            result.expect_err("gather and gather_into_lease");
        });
    }
}

impl World {
    /// Runs a body that expects an error on every rank. That may end the world, which the caller then hears of, too.
    fn run_broken(self, body: impl Fn(&mut Comm<'_>) + Sync) {
        let ended = self.try_run(|comm| {
            body(comm);
            Ok(())
        });
        assert!(matches!(ended, Ok(_) | Err(Error::Ended { .. })), "{}", ended.expect_err("failed"));
    }
}

/// A shared array changes hands by calls of all the ranks that hold it, for the same array.
pub fn views(back: Back) {
    let [first, second] = [(); 2].map(|()| SharedArray::<f64, Ix1>::zeros(8).expect("memory"));
    back.world(2).run_broken(|comm| {
        let (a, b) = (comm.open(&first).expect("first"), comm.open(&second).expect("second"));
        let published = if comm.is_root() { a.publish(comm) } else { b.publish(comm) };
        assert!(published.is_err(), "one rank published one array, one the other");
    });
    back.world(2).run_broken(|comm| {
        let mut alone = Comm::solo().expect("a communicator of one");
        let part = comm.parts::<f64, _>(Ix1(4)).expect("parts");
        assert!(part.publish(&mut alone).is_err(), "published to a communicator whose ranks do not hold it");
    });
    back.world(2).run_broken(|comm| {
        let mut alone = comm.split(Some(comm.rank() as u64), 0).expect("split").expect("a colour");
        let parts = [comm.open(&first).is_ok(), alone.open(&first).is_ok()];
        assert!(!parts[1], "each rank has opened the whole array for itself");
    });
}

/// The same array open twice would be written twice.
pub fn open_in_two_communicators() {
    let array = SharedArray::<f64, Ix1>::zeros(8).expect("memory");
    let mut comms = [(); 2].map(|()| Comm::solo().expect("a communicator of one"));
    let [first, second] = &mut comms;
    let mine = first.open(&array).expect("opened");
    assert!(second.open(&array).is_err(), "two parts of one array overlap");
    drop(mine);
    assert!(second.open(&array).is_ok(), "let go of");
}

/// One group at a time has an array open, whichever ranks it consists of; a world that failed does not keep it.
pub fn open_in_turn(back: Back) {
    let mut array = SharedArray::<f64, Ix1>::zeros(8).expect("memory");
    back.world(2).run(|comm| {
        let mut alone = comm.split(Some(comm.rank() as u64), 0)?.expect("a colour");
        for turn in 0..2 {
            let mine = if turn == comm.rank() { Some(alone.open(&array)?) } else { None };
            comm.barrier()?;
            assert!(turn == comm.rank() || alone.open(&array).is_err(), "open on the other rank");
            comm.barrier()?;
            drop(mine);
            comm.barrier()?;
        }
        comm.open(&array).map(drop)
    });
    let failed = back.world(2).try_run(|comm| {
        let part = comm.open(&array)?;
        assert!(!comm.is_root(), "out of salt");
        part.publish(comm).map(drop)
    });
    assert!(failed.is_err_and(|error| error.to_string().contains("out of salt")));
    array.view_mut().fill(1.0);
    back.world(2).run(|comm| {
        assert_eq!(comm.open(&array)?.publish(comm)?.view().sum(), 8.0);
        Ok(())
    });
}

/// No room in one rank's heap: an error on all, and on they go; what is freed can be had again, in other sizes.
pub fn full_heap(back: Back) {
    let launch = Launch { ranks: Some(2), heap: Some(16 << 20), ..Launch::default() };
    let body = |comm: &mut Comm<'_>| {
        for (bytes, says) in [(64 << 20, "67108864"), (5 << 20, "")] {
            let part = comm.parts::<u8, _>(Ix1(bytes / 2));
            let text = part.map_or_else(|error| error.to_string(), |_| String::new());
            assert_eq!(says.is_empty(), text.is_empty(), "{text}");
            assert!(text.contains(if comm.is_root() { says } else { "" }), "{text}");
            still_works(comm)?;
        }
        let mut kept = Vec::new();
        for len in if comm.is_root() { [].as_slice() } else { &[60_000, 1] } {
            kept.extend((0..2000).map_while(|_| comm.alloc::<u8, _>(*len).ok()));
        }
        assert!(kept.len() < 2000);
        assert!(comm.split(Some(0), 0).is_err(), "rank 1 has no room for the words of a communicator");
        still_works(comm)?;
        drop(kept);
        comm.alloc::<u8, _>(5000).map(drop)
    };
    let ran = if back == Back::Fork { launch.fork(body) } else { launch.threads(body) };
    ran.expect("only errors that were expected");
}

/// Can be written, not read.
#[derive(Serialize)]
struct Riddle;

impl<'de> Deserialize<'de> for Riddle {
    fn deserialize<D: serde::Deserializer<'de>>(_: D) -> std::result::Result<Riddle, D::Error> {
        Err(serde::de::Error::custom("a riddle"))
    }
}

/// Who cannot read an object gets an error, alone: all have done their part.
pub fn unreadable_objects(comm: &mut Comm<'_>) -> Result<()> {
    let is_root = comm.is_root();
    assert_eq!(comm.broadcast_object(Riddle, 0).is_ok(), is_root);
    assert_eq!(comm.gather_objects(&Riddle, 0).is_err(), is_root);
    assert!(comm.all_gather_objects(&Riddle).is_err());
    still_works(comm)
}

/// Before anything starts.
pub fn launches() {
    let body = |comm: &mut Comm<'_>| Ok(comm.size());
    for ranks in [0, 1025, usize::MAX] {
        let launch = Launch { ranks: Some(ranks), ..Launch::default() };
        for error in [launch.fork(body).expect_err("refused"), launch.threads(body).expect_err("refused")] {
            let text = error.to_string();
            assert!(
                text.starts_with("launch") && text.contains(&ranks.to_string()) && text.contains("1 to 1024"),
                "{text}"
            );
        }
    }
    let huge = Launch { ranks: Some(2), heap: Some(usize::MAX), ..Launch::default() };
    assert_eq!(huge.threads(body).expect("only address space").map(|sizes| sizes.len()), Some(2));
    let small = Launch { ranks: Some(2), heap: Some(1 << 20), ..Launch::default() };
    let error = small.fork(|comm| comm.alloc::<u8, _>(1 << 30).map(drop)).expect_err("no room");
    assert!(error.to_string().contains("1073741824") && error.to_string().contains("heap"), "{error}");
    let error = small.fork(|comm| comm.alloc::<f64, _>((usize::MAX, 2)).map(drop)).expect_err("overflow");
    assert!(error.to_string().contains("overflows"), "{error}");
}

/// The number of ranks out of the environment; this case calls itself.
pub fn environment() {
    const NAME: &str = "PHALANX_RANKS";
    if let Ok(text) = std::env::var(NAME) {
        match (phalanx::Launch::default().fork(|comm| Ok(comm.size())), text.trim().parse::<usize>()) {
            (Ok(sizes), Ok(ranks)) if (1..=1024).contains(&ranks) => {
                assert_eq!(sizes, Some(vec![ranks; ranks]))
            }
            (Ok(sizes), _) => panic!("{text:?} started {sizes:?}"),
            (Err(error), _) => {
                let error = error.to_string();
                assert!(error.starts_with("launch") && error.contains(text.trim()), "{error}");
            }
        }
        return;
    }
    let program = std::env::current_exe().expect("this program");
    for text in ["3", " 2 ", "nonsense", "0", "-1", "1025", "2.5", "99999999999999999999"] {
        let status = Command::new(&program)
            .arg("--case=ranks_from_environment")
            .env(NAME, text)
            .status()
            .expect("a process");
        assert!(status.success(), "{NAME}={text:?}");
    }
}

/// A fork would copy the locks of other threads, but not them.
pub fn running_threads() {
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let (start, started) = std::sync::mpsc::channel::<()>();
    let background = move || start.send(()).is_ok() && stopped.recv().is_ok();
    let thread = std::thread::Builder::new().name("background".into()).spawn(background);
    started.recv().expect("a thread that has got its name");
    let launch = Launch { ranks: Some(2), ..Launch::default() };
    let error = launch.fork(|comm| comm.barrier()).expect_err("refused");
    assert!(
        error.to_string().contains("background") && error.to_string().contains("allow_threads"),
        "{error}"
    );
    launch.threads(|comm| comm.barrier()).expect("threads need no fork");
    Launch { allow_threads: true, ..launch.clone() }.fork(|comm| comm.barrier()).expect("allowed");
    drop(stop);
    let _ = thread.expect("a thread").join();
    launch.fork(|comm| comm.barrier()).expect("single-threaded again");
}
