//! Bad input: an error on every rank, in the user's words, outputs untouched, and the communicator goes on.

use crate::world::Back;
use ndarray::{Array1, Ix0, Ix1, Ix2, arr1};
use phalanx::{Comm, Error, Launch, Op, Result, SharedArray};
use serde::{Deserialize, Serialize, Serializer};

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
        |comm, it, out| comm.gather(&three(), &mut comm.is_root().then_some(out), if it.bad { 9 } else { 0 });
    "gather: no array at root": Root, "gather", "root gave no array",
        |comm, it, out| comm.gather(&three(), &mut (!it.bad).then_some(out), it.root);
    "gather: too small": Root, "gather", "the receiving array has",
        |comm, it, out| comm.gather(&three(), &mut out.slice_mut(ndarray::s![..1]), it.root);
    "gather: lengths": Between, "gather", "not the lengths that the ranks send",
        |comm, it, out| comm.gather(&three().slice(ndarray::s![usize::from(it.bad)..]), &mut (comm.rank() == it.root).then_some(out), it.root);
    "gather_varcount: too few counts": Root, "gather_varcount", "counts given for",
        |comm, it, out| comm.gather_varcount(&three(), out, &[3; 7], it.root);
    "gather_varcount: sum": Root, "gather_varcount", "add up to",
        |comm, it, out| comm.gather_varcount(&three(), out, &vec![4; comm.size()], it.root);
    "gather_varcount: sum overflows": Root, "gather_varcount", "add up to",
        |comm, it, out| comm.gather_varcount(&three(), out, &vec![usize::MAX; comm.size()], it.root);
    "gather_varcount: own count": Root, "gather_varcount", "its count says",
        |comm, it, out| comm.gather_varcount(&arr1(&[1.0]), out, &vec![3; comm.size()], it.root);
    "gather_varcount: counts are not what ranks send": Between, "gather_varcount", "not the lengths",
        |comm, it, out| {
            let mut recv = (comm.rank() == it.root).then_some(out);
            comm.gather_varcount(&three().slice(ndarray::s![usize::from(it.bad)..]), &mut recv, &[3, 3, 3], it.root)
        };
    "gather_into_lease: sum": Root, "gather_into_lease", "add up to",
        |comm, it, _out| {
            let room = comm.alloc::<f64, _>(5)?;
            comm.gather_into_lease(&three(), Some((room, &vec![3; comm.size()])), it.root).map(drop)
        };
    "gather_into_lease: no array at root": Root, "gather_into_lease", "root gave no array",
        |comm, it, _out| comm.gather_into_lease::<f64, _, Ix1>(&three(), None, it.root).map(drop);
    "gather_to_lease: own count": Root, "gather_to_lease", "its count says",
        |comm, it, _out| comm.gather_to_lease(&arr1(&[1.0]), &vec![3; comm.size()], it.root).map(drop);
    "gather_to_lease: sum overflows": Root, "gather_to_lease", "count",
        |comm, it, _out| comm.gather_to_lease(&three(), &vec![usize::MAX; comm.size()], it.root).map(drop);
    "gather_to_lease: no counts at root": Root, "gather_to_lease", "0 counts given for",
        |comm, it, _out| comm.gather_to_lease(&three(), &[], it.root).map(drop);
    "all_gather: too small": Between, "all_gather", "do not add up",
        |comm, it, out| comm.all_gather(&three(), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..]));
    "scatter: root": Own, "scatter", "root 9",
        |comm, it, out| comm.scatter(&three(), out, if it.bad { 9 } else { 0 });
    "scatter: no array at root": Root, "scatter", "root gave no array",
        |comm, it, out| comm.scatter(&(!it.bad).then_some(&three()), out, it.root);
    "scatter: rooms do not add up": Between, "scatter", "does not add up",
        |comm, it, out| {
            let send = Array1::zeros(out.len() * comm.size());
            comm.scatter(&send, &mut out.slice_mut(ndarray::s![usize::from(it.bad)..]), it.root)
        };
    "reduce: root": Own, "reduce", "root 9",
        |comm, it, out| {
            let mut out = out.slice_mut(ndarray::s![..3]);
            comm.reduce(&three(), &mut comm.is_root().then_some(&mut out), &Op::sum(), if it.bad { 9 } else { 0 })
        };
    "reduce: no array at root": Root, "reduce", "root gave no array",
        |comm, it, out| comm.reduce(&three(), &mut (!it.bad).then_some(out), &Op::sum(), it.root);
    "reduce: room": Root, "reduce", "the lengths must be equal",
        |comm, it, out| comm.reduce(&three(), &mut out.slice_mut(ndarray::s![..2]), &Op::sum(), it.root);
    "all_reduce: room": Own, "all_reduce", "the lengths must be equal",
        |comm, it, out| comm.all_reduce(&three(), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..3]), &Op::sum());
    "all_reduce: lengths": Between, "all_reduce", "different lengths",
        |comm, it, out| {
            let len = 3 - usize::from(it.bad);
            comm.all_reduce(&three().slice(ndarray::s![..len]), &mut out.slice_mut(ndarray::s![..len]), &Op::sum())
        };
    "all_reduce_into_lease: room": Own, "all_reduce_into_lease", "the lengths must be equal",
        |comm, it, _out| {
            let room = comm.alloc::<f64, _>(3 - usize::from(it.bad))?;
            comm.all_reduce_into_lease(&three(), room, &Op::sum()).map(drop)
        };
    "all_reduce_into_lease: lengths": Between, "all_reduce_into_lease", "different lengths",
        |comm, it, _out| {
            let len = 3 - usize::from(it.bad);
            let room = comm.alloc::<f64, _>(len)?;
            comm.all_reduce_into_lease(&three().slice(ndarray::s![..len]), room, &Op::sum()).map(drop)
        };
    "reduce_scatter: room": Own, "reduce_scatter", "the lengths must be equal",
        |comm, it, out| {
            let send = Array1::zeros(3 * comm.size() + usize::from(it.bad));
            comm.reduce_scatter(&send, &mut out.slice_mut(ndarray::s![..3]), &Op::sum())
        };
    "scan: room": Own, "scan", "the lengths must be equal",
        |comm, it, out| comm.scan(&three(), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..3]), &Op::max());
    "scan: lengths": Between, "scan", "different lengths",
        |comm, it, out| {
            let len = 3 - usize::from(it.bad);
            comm.scan(&three().slice(ndarray::s![..len]), &mut out.slice_mut(ndarray::s![..len]), &Op::max())
        };
    "exclusive_scan: room": Own, "exclusive_scan", "the lengths must be equal",
        |comm, it, out| comm.exclusive_scan(&three(), &mut out.slice_mut(ndarray::s![usize::from(it.bad)..3]), &Op::max());
    "all_to_all: room": Own, "all_to_all", "the lengths must be equal",
        |comm, it, out| comm.all_to_all(&Array1::zeros(3 * comm.size() + usize::from(it.bad)), out);
    "all_to_all: lengths": Between, "all_to_all", "different amounts",
        |comm, it, out| {
            let len = if it.bad { 3 } else { 6 };
            comm.all_to_all(&Array1::zeros(len), &mut out.slice_mut(ndarray::s![..len]))
        };
    "all_reduce_parts: room": Own, "all_reduce_parts", "the lengths must be equal",
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
    "open_rows: sum": Own, "open_rows", "do not split",
        |comm, it, _out| comm.open_rows(it.array, &vec![if it.bad { 4 } else { 9 / comm.size() }; comm.size()]).map(drop);
    "open_rows: too few": Own, "open_rows", "do not split",
        |comm, it, _out| comm.open_rows(it.array, if it.bad { &[9, 0] } else { &[9, 0, 0][..comm.size()] }).map(drop);
    "open_rows: splits": Between, "open_rows", "different arrays or splits",
        |comm, it, _out| comm.open_rows(it.array, &[3, if it.bad { 2 } else { 3 }, if it.bad { 4 } else { 3 }]).map(drop);
    "broadcast_object: root": Own, "broadcast_object", "root 9",
        |comm, it, _out| comm.broadcast_object(1, if it.bad { 9 } else { 0 }).map(drop);
    "broadcast_object: secret": Root, "broadcast_object", "its Serialize says: a secret",
        |comm, it, _out| comm.broadcast_object(Secret(it.bad), it.root).map(drop);
    "gather_objects: root": Own, "gather_objects", "root 9",
        |comm, it, _out| comm.gather_objects(&1, if it.bad { 9 } else { 0 }).map(drop);
    "gather_objects: secret": Own, "gather_objects", "its Serialize says: a secret",
        |comm, it, _out| comm.gather_objects(&Secret(it.bad), 0).map(drop);
    "all_gather_objects: secret": Own, "all_gather_objects", "its Serialize says: a secret",
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
            let ran = back.world(ranks).try_run(&|comm| one(wrong, comm, who, &array));
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
        let told = |who| {
            ["rank {}: ", "the object of rank {} "].map(|told: &str| told.replace("{}", &format!("{who}")))
        };
        let accused = who.is_none_or(|who| told(who).iter().any(|told| text.contains(told)));
        assert!(culprit || (accused && text.contains(wrong.says)), "{text}");
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

/// No room in one rank's heap: an error on all, and on they go; what is freed can be had again, in other sizes.
pub fn full_heap(back: Back) {
    let launch = Launch { ranks: Some(2), heap: Some(16 << 20), ..crate::support::world() };
    let body = |comm: &mut Comm<'_>| {
        for (bytes, says) in [(64 << 20, "67108864"), (5 << 20, "")] {
            let part = comm.parts::<u8, _>(Ix1(bytes / 2));
            // It ends nothing, on no rank.
            assert!(matches!(part, Ok(_) | Err(Error::BadArgument { .. })));
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

/// What cannot be read all ranks refuse, before it is sent.
pub fn unreadable_objects(comm: &mut Comm<'_>) -> Result<()> {
    let errors = [
        comm.broadcast_object(Riddle, 0).map(drop),
        comm.gather_objects(&Riddle, 0).map(drop),
        comm.all_gather_objects(&Riddle).map(drop),
    ];
    for error in errors {
        let text = error.expect_err("refused").to_string();
        assert!(text.contains("a riddle") && text.contains("the object of rank 0 "), "{text}");
    }
    still_works(comm)
}
