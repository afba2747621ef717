//! Ranks that do not agree: on what they call, or on who holds an array.

use crate::world::{Back, World};
use ndarray::{Array0, Array1, Ix1, arr1};
use phalanx::{Comm, Error, Op, Result, SharedArray};

/// What outputs hold before.
const UNTOUCHED: f64 = -7.0;

fn three() -> Array1<f64> {
    arr1(&[1.0, 2.0, 3.0])
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
    comm.gather(&three(), &mut (comm.rank() == ROOT).then_some(&mut Array1::zeros(9)), ROOT)
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
        "broadcast_object, objects",
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
        |comm| comm.reduce(&three(), &mut comm.is_root().then_some(&mut three()), &Op::sum(), 0),
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
            assert!(error.to_string().contains("functions from different calls"), "{error}");
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
        let ended = self.try_run(&|comm| {
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
    let failed = back.world(2).try_run(&|comm| {
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
