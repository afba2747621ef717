//! What safe code must not be able to break: a checklist of abuses, each with what is promised instead.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array1, Array2, ArrayView1, Ix1, Ix2, arr1};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx::{
    Backend, Comm, Death, Error, Launch, Lease, Op, Progress, Result, SharedArray, Sweep,
    create_parallel_manager,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::{Command, Stdio};
use std::sync::RwLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use support::{Case, launch, marked_processes};

const CASES: &[Case] = &[
    // Collectives.
    ("mixed_reductions_are_right", mixed_reductions_are_right),
    ("wrong_on_all_ranks_keeps_them_in_step", wrong_on_all_ranks_keeps_them_in_step),
    ("a_panic_in_a_reduction_ends_the_calls", a_panic_in_a_reduction_ends_the_calls),
    ("gather_is_not_gather_into_lease", gather_is_not_gather_into_lease),
    ("user_functions_must_be_the_same", user_functions_must_be_the_same),
    // Arrays of the caller.
    ("arrays_of_a_body_cannot_be_opened", arrays_of_a_body_cannot_be_opened),
    ("two_solos_cannot_open_one_array", two_solos_cannot_open_one_array),
    ("two_communicators_cannot_open_one_array", two_communicators_cannot_open_one_array),
    ("nested_worlds_cannot_open_outer_arrays", nested_worlds_cannot_open_outer_arrays),
    ("two_worlds_of_threads_cannot_open_one_array", two_worlds_of_threads_cannot_open_one_array),
    // Arrays of a world.
    ("publish_needs_its_own_communicator", publish_needs_its_own_communicator),
    ("publish_needs_the_same_array", publish_needs_the_same_array),
    ("leases_of_another_world_are_refused", leases_of_another_world_are_refused),
    ("leases_cannot_be_doubled", leases_cannot_be_doubled),
    ("leases_cannot_be_forged", leases_cannot_be_forged),
    // What a fork inherits.
    ("inherited_leases_are_read_only", inherited_leases_are_read_only),
    ("inherited_views_fault", inherited_views_fault),
    ("inherited_heaps_are_refused", inherited_heaps_are_refused),
    ("inherited_communicators_are_refused", inherited_communicators_are_refused),
    (
        "wrong_arguments_one_after_another_keep_their_texts",
        wrong_arguments_one_after_another_keep_their_texts,
    ),
    ("arrays_of_the_caller_do_not_change_under_workers", arrays_of_the_caller_do_not_change_under_workers),
    // Processes.
    ("a_core_dump_does_not_delay_the_news", a_core_dump_does_not_delay_the_news),
    ("reused_memory_wakes_sleepers", reused_memory_wakes_sleepers),
    ("a_build_ends_with_its_caller", a_build_ends_with_its_caller),
    ("grandchildren_end_with_the_caller", grandchildren_end_with_the_caller),
    ("helpers_of_a_build_live_as_long_as_the_sweep", helpers_of_a_build_live_as_long_as_the_sweep),
    ("no_zombies_pile_up", no_zombies_pile_up),
    ("ignored_sigchld", ignored_sigchld),
    ("joined_threads_do_not_count", joined_threads_do_not_count),
    // Limits.
    ("small_limit_on_files_is_named", small_limit_on_files_is_named),
    ("endless_deadline", endless_deadline),
    ("absurd_shapes", absurd_shapes),
    ("untouched_arrays_cost_nothing", untouched_arrays_cost_nothing),
    ("sweeps_in_a_world_do_not_pile_up", sweeps_in_a_world_do_not_pile_up),
    ("helper: progress that writes", progress_that_writes),
    ("helper: a long build", a_long_build),
    ("helper: ranks with children", ranks_with_children),
    ("helper: launch without SIGCHLD", launch_without_sigchld),
];

fn main() -> std::process::ExitCode {
    support::main(CASES)
}

/// The text of an error, or what must not have been.
fn refusal<T>(result: Result<T>) -> String {
    result.map_or_else(|error| error.to_string(), |_| "it was accepted".into())
}

#[track_caller]
fn assert_says(text: &str, part: &str) {
    assert!(text.contains(part), "{part:?} is missing in: {text}");
}

/// Deaths by signal are expected: no core files.
fn no_core_files() {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, 0, hard).unwrap();
}

/// A rank of the world died of touching memory that is not its own.
#[track_caller]
fn assert_fault<T>(result: Result<T>) {
    match result {
        Err(Error::PeerDied { cause: Death::Inherited { .. }, .. }) => {}
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("no fault"),
    }
}

/// A line of a file of /proc, in KiB.
fn kib(file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// A line of this process's status, in KiB.
fn status(field: &str) -> u64 {
    kib("/proc/self/status", field)
}

/// Element `i` of what rank `r` brings is `(r + 1) * (1 + i % 5)`: how many of `values`, from element `first` on, are
/// not `factor * (1 + i % 5)`.
fn wrong(values: ArrayView1<'_, f64>, first: usize, factor: usize) -> usize {
    let right = |i: usize| (factor * (1 + (first + i) % 5)) as f64;
    values.iter().enumerate().filter(|&(i, &value)| value != right(i)).count()
}

fn mixed_reductions_are_right() {
    for size in 2..=4 {
        let all = size * (size + 1) / 2;
        let checked = launch(size, |comm| {
            let me = comm.rank();
            for (n, leased) in [40_008, 70_008].into_iter().flat_map(|n| (0..1 << size).map(move |m| (n, m)))
            {
                let mine = Array1::from_shape_fn(n, |i| ((me + 1) * (1 + i % 5)) as f64);
                let mut lease = comm.alloc::<f64, _>(if leased >> me & 1 == 1 { n } else { 0 })?;
                let is_leased = !lease.view().is_empty();
                if is_leased {
                    lease.view_mut().assign(&mine);
                }
                let send = if is_leased { lease.view() } else { mine.view() };
                let told = format!("{n} elements over {size} ranks, leased by {leased:b}, on rank {me}");

                let mut total = Array1::from_elem(n, f64::NAN);
                comm.all_reduce(&send, &mut total, &Op::sum())?;
                assert_eq!(wrong(total.view(), 0, all), 0, "all_reduce: {told}");

                let root = leased % size;
                let mut total = (me == root).then(|| Array1::from_elem(n, f64::NAN));
                comm.reduce(&send, &mut total, &Op::sum(), root)?;
                assert_eq!(total.map_or(0, |total| wrong(total.view(), 0, all)), 0, "reduce: {told}");

                let mut part = Array1::from_elem(n / size, f64::NAN);
                comm.reduce_scatter(&send, &mut part, &Op::sum())?;
                assert_eq!(wrong(part.view(), me * (n / size), all), 0, "reduce_scatter: {told}");

                let mut upto = Array1::from_elem(n, f64::NAN);
                comm.scan(&send, &mut upto, &Op::sum())?;
                assert_eq!(wrong(upto.view(), 0, (me + 1) * (me + 2) / 2), 0, "scan: {told}");

                let parts = comm.parts::<f64, _>(n / size)?;
                let whole = comm.all_reduce_parts(&send, parts, &Op::sum())?;
                assert_eq!(wrong(whole.view(), 0, all), 0, "all_reduce_parts: {told}");
            }
            Ok(())
        });
        checked.unwrap();
    }
}

type Wrong = (&'static str, fn(&mut Comm<'_>) -> Result<()>);

const WRONG: &[Wrong] = &[
    ("broadcast from nobody", |comm| comm.broadcast(&mut arr1(&[0.0]), 99)),
    ("all_reduce into less room", |comm| comm.all_reduce(&arr1(&[1, 2, 3]), &mut arr1(&[0, 0]), &Op::sum())),
    ("all_to_all that does not divide", |comm| {
        let odd = comm.size() + 1;
        comm.all_to_all(&Array1::<u8>::zeros(odd), &mut Array1::zeros(odd))
    }),
];

fn wrong_on_all_ranks_keeps_them_in_step() {
    for (name, wrong) in WRONG {
        for run in 0..50 {
            let size = 2 + run % 2;
            let stayed = launch(size, |comm| {
                comm.barrier()?;
                let error = wrong(comm).unwrap_err();
                assert!(matches!(error, Error::BadArgument { .. }), "{name}: {error}");
                for round in 0..4 {
                    let mut all = Array1::<usize>::zeros(size);
                    comm.all_gather(&arr1(&[10 * round + comm.rank()]), &mut all)?;
                    assert_eq!(all, Array1::from_shape_fn(size, |rank| 10 * round + rank), "{name}");
                }
                Ok(())
            });
            assert!(stayed.is_ok(), "{name}, run {run}: {stayed:?}");
        }
    }
}

fn a_panic_in_a_reduction_ends_the_calls() {
    type Reduction = fn(&mut Comm<'_>, usize, &Op<'_, u64>) -> Result<(Array1<u64>, u64)>;
    let reductions: [Reduction; 4] = [
        // The panic comes while a peer may write into this rank's array: what is allocated next is not that one.
        |comm, n, op| {
            let room = comm.alloc::<u64, _>(n)?;
            let place = room.view().as_ptr().addr();
            let done = catch_unwind(AssertUnwindSafe(|| {
                comm.all_reduce_into_lease(&Array1::from_elem(n, 1), room, op)
            }));
            match done {
                Ok(sum) => sum.map(|sum| (sum.view().to_owned(), 4)),
                Err(panic) => {
                    let next = (0..20).map(|_| comm.alloc::<u64, _>(n)).collect::<Result<Vec<_>>>()?;
                    match next.iter().any(|next| next.view().as_ptr().addr() == place) {
                        true => Ok((Array1::zeros(n), 4)), // wrong data
                        false => resume_unwind(panic),
                    }
                }
            }
        },
        |comm, n, op| {
            let mut total = Array1::zeros(n);
            comm.all_reduce(&Array1::from_elem(n, 1), &mut total, op).map(|()| (total, 4))
        },
        |comm, n, op| {
            let mut total = Array1::zeros(n);
            comm.reduce_scatter(&Array1::from_elem(4 * n, 1), &mut total, op).map(|()| (total, 4))
        },
        |comm, n, op| {
            let (mut total, right) = (Array1::zeros(n), comm.rank() as u64 + 1);
            comm.scan(&Array1::from_elem(n, 1), &mut total, op).map(|()| (total, right))
        },
    ];
    let [right_data, wrong_data, an_error] = [1u8, 2, 3];
    for (number, reduction) in reductions.iter().enumerate() {
        for n in [10, 25_000, 70_000] {
            let mut verdicts = SharedArray::<u8, Ix1>::zeros(4).unwrap();
            let ended = launch(4, |comm| {
                let mut verdict = comm.open(&verdicts)?;
                let bad = Cell::new(comm.rank() == 1);
                let op = Op::user(|a: u64, b: u64| {
                    assert!(!bad.get(), "planned");
                    a + b
                });
                let result = loop {
                    let caught = catch_unwind(AssertUnwindSafe(|| reduction(comm, n, &op)));
                    bad.set(false);
                    if let Ok(result) = caught {
                        break result;
                    }
                };
                verdict.view_mut()[0] = match result {
                    Ok((total, right)) if total.iter().all(|&sum| sum == right) => right_data,
                    Ok(_) => wrong_data,
                    Err(_) => an_error,
                };
                Ok(())
            });
            let verdicts = verdicts.view();
            // Every body has dealt with the failure.
            ended.unwrap_or_else(|error| panic!("reduction {number} of {n}: {verdicts}: {error}"));
            assert!(
                !verdicts.iter().any(|&verdict| verdict == wrong_data),
                "reduction {number} of {n}: {verdicts}"
            );
            assert_eq!(verdicts[1], an_error, "reduction {number} of {n}: {verdicts}");
        }
    }
}

fn gather_is_not_gather_into_lease() {
    for leased_root in [true, false] {
        let error = launch(2, |comm| {
            let part = Array1::<u64>::from_elem(100, 1);
            if comm.is_root() == leased_root {
                let room = comm.alloc(200)?;
                let room = comm.is_root().then_some((room, &[100, 100][..]));
                comm.gather_into_lease::<u64, _, Ix1>(&part, room, 0).map(drop)
            } else {
                let mut all = comm.is_root().then(|| Array1::zeros(200));
                comm.gather(&part, &mut all, 0)
            }
        });
        let text = refusal(error);
        ["do not agree", ": gather,", ": gather_into_lease,"]
            .iter()
            .for_each(|part| assert_says(&text, part));
    }
}

fn user_functions_must_be_the_same() {
    let told = launch(2, |comm| {
        let plus = Op::user(|a: u64, b: u64| a + b);
        let times = Op::user(|a: u64, b: u64| a * b);
        let mut total = arr1(&[0]);
        let different = comm.all_reduce(&arr1(&[3]), &mut total, if comm.is_root() { &plus } else { &times });
        assert_eq!(total[0], 0, "no output is written");
        comm.all_reduce(&arr1(&[3]), &mut total, &times)?;
        assert_eq!(total[0], 9);
        // What a function captures may differ.
        let offset = comm.rank() as u64;
        comm.all_reduce(&arr1(&[3]), &mut total, &Op::user(|a: u64, b: u64| a + b + offset - offset))?;
        assert_eq!(total[0], 6);
        Ok(refusal(different))
    });
    told.unwrap().unwrap().iter().for_each(|text| assert_says(text, "functions from different calls"));
}

fn arrays_of_a_body_cannot_be_opened() {
    let told = launch(2, |comm| {
        let own = SharedArray::<u64, Ix1>::zeros(4)?;
        let text = refusal(comm.open(&own));
        comm.barrier().map(|()| text)
    });
    let text = &told.unwrap().unwrap()[0];
    assert_says(text, "not made by the caller of this world");
    let threads = Launch { ranks: Some(2), ..support::world() };
    let told = threads.threads(|comm| {
        let own = SharedArray::<u64, Ix1>::zeros(4)?;
        comm.barrier()?;
        let text = refusal(comm.open(&own));
        comm.barrier().map(|()| text)
    });
    told.unwrap().unwrap().iter().for_each(|text| assert_says(text, "different arrays"));
}

fn two_solos_cannot_open_one_array() {
    let array = SharedArray::<u64, Ix1>::zeros(4).unwrap();
    let (mut one, mut other) = (Comm::solo().unwrap(), Comm::solo().unwrap());
    let mut held = one.open(&array).unwrap();
    held.view_mut()[0] = 1;
    assert_says(&refusal(other.open(&array)), "open already");
    assert_says(&refusal(one.open(&array)), "open already");
    let whole = held.publish(&mut one).unwrap();
    assert_says(&refusal(other.open(&array)), "open already");
    drop(whole);
    assert_eq!(other.open(&array).unwrap().view().to_vec(), [1, 0, 0, 0]);
}

fn two_communicators_cannot_open_one_array() {
    let array = SharedArray::<u64, Ix1>::zeros(12).unwrap();
    // Each on its own: one is first.
    let opened = launch(3, |comm| {
        let mut own = comm.split(Some(comm.rank() as u64), 0)?.unwrap();
        let held = own.open(&array);
        comm.barrier()?;
        let opened = held.is_ok();
        assert!(opened || refusal(held).contains("open already"));
        comm.barrier()?;
        Ok(opened)
    });
    assert_eq!(opened.unwrap().unwrap().iter().filter(|&&opened| opened).count(), 1);
    launch(3, |comm| {
        let mut own = comm.split(Some(comm.rank() as u64), 0)?.unwrap();
        // All together, then one more on its own.
        let held = comm.open(&array)?;
        assert_says(&refusal(own.open(&array)), "open already");
        drop(held);
        comm.barrier()?;
        // One on its own, then all together.
        let held = (comm.rank() == 1).then(|| own.open(&array)).transpose()?;
        comm.barrier()?;
        refusal(comm.open(&array));
        assert_eq!(held.map_or(12, |held| held.rows().len()), 12);
        comm.barrier()?;
        // Nobody any more.
        assert_eq!(comm.open(&array)?.rows().len(), 4);
        comm.barrier()
    })
    .unwrap();
}

fn nested_worlds_cannot_open_outer_arrays() {
    let array = SharedArray::<u64, Ix1>::zeros(4).unwrap();
    let told = launch(2, |comm| {
        let mut part = comm.open(&array)?;
        part.view_mut().fill(1);
        let view = part.view();
        let text = refusal(launch(1, |inner| {
            inner.open(&array)?.view_mut().fill(9);
            Ok(())
        }));
        comm.barrier()?;
        assert_eq!(view.to_vec(), [1, 1]);
        Ok(text)
    });
    told.unwrap().unwrap().iter().for_each(|text| assert_says(text, "not made by the caller of this world"));
}

fn two_worlds_of_threads_cannot_open_one_array() {
    let array = SharedArray::<u64, Ix1>::zeros(4).unwrap();
    let world = Launch { ranks: Some(2), ..support::world() };
    let (world, array, held, tried) = (&world, &array, &AtomicU32::new(0), &AtomicU32::new(0));
    let wait_for = |count: &AtomicU32, value| {
        while count.load(Ordering::Acquire) < value {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(move || {
            world.threads(|comm| {
                let mut part = comm.open(array)?;
                part.view_mut().fill(1);
                held.fetch_add(1, Ordering::Release);
                wait_for(tried, 1);
                comm.barrier()?;
                assert_eq!(part.view().to_vec(), [1, 1]);
                Ok(())
            })
        });
        wait_for(held, 2);
        let second = world.threads(|comm| Ok(refusal(comm.open(array))));
        tried.fetch_add(1, Ordering::Release);
        first.join().unwrap().unwrap();
        let told = second.unwrap().unwrap();
        assert!(told.iter().any(|text| text.contains("open already")), "{told:?}");
        assert!(!told.iter().any(|text| text == "it was accepted"), "{told:?}");
    });
    world.threads(|comm| comm.open(array).map(drop)).unwrap();
}

fn publish_needs_its_own_communicator() {
    let told = launch(2, |comm| {
        let mut half = comm.split(Some(comm.rank() as u64), 0)?.unwrap();
        let (here, there, back) =
            (comm.parts::<u64, _>(10)?, comm.parts::<u64, _>(10)?, comm.parts::<u64, _>(10)?);
        let back = back.publish(comm)?;
        let texts = [
            refusal(here.publish(&mut Comm::solo()?)),
            refusal(there.publish(&mut half)),
            refusal(back.reopen(&mut half)),
        ];
        comm.barrier()?;
        let solo = Comm::solo()?.parts::<u64, _>(10)?;
        let strange = refusal(solo.publish(comm));
        let result = Comm::solo()?.parts::<f64, _>(10)?;
        let reduced = refusal(comm.all_reduce_parts(&Array1::zeros(10), result, &Op::sum()));
        comm.barrier()?;
        Ok(texts.into_iter().chain([strange, reduced]).collect::<Vec<_>>())
    });
    let texts = told.unwrap().unwrap().concat();
    assert_eq!(texts.len(), 10);
    texts.iter().for_each(|text| assert_says(text, "another communicator"));
}

fn publish_needs_the_same_array() {
    let (a, b) = (SharedArray::<u64, Ix1>::zeros(4).unwrap(), SharedArray::<u64, Ix1>::zeros(4).unwrap());
    let told = launch(2, |comm| {
        let (pa, pb) = (comm.open(&a)?, comm.open(&b)?);
        let (pc, pd) = (comm.parts::<u64, _>(2)?, comm.parts::<u64, _>(2)?);
        let (we, wf) = (comm.parts::<u64, _>(2)?.publish(comm)?, comm.parts::<u64, _>(2)?.publish(comm)?);
        let texts = [
            refusal(if comm.is_root() { pb } else { pa }.publish(comm)),
            refusal(if comm.is_root() { pc } else { pd }.publish(comm)),
            refusal(if comm.is_root() { we } else { wf }.reopen(comm)),
        ];
        comm.barrier()?;
        Ok(texts.to_vec())
    });
    told.unwrap().unwrap().concat().iter().for_each(|text| assert_says(text, "different arrays"));
}

fn leases_of_another_world_are_refused() {
    let told = launch(2, |comm| {
        // At the place where the stranger lies in its own world.
        let mut lowest = comm.alloc::<u64, _>(8192)?;
        lowest.view_mut().fill(0);
        let frozen = lowest.view();
        let strangers =
            || -> Result<[Lease<u64, Ix1>; 2]> { Ok([Comm::solo()?.alloc(8192)?, Lease::zeros(8192)?]) };
        let part = Array1::<u64>::from_elem(4096, 0xBAD);
        let mut texts = Vec::new();
        for stranger in strangers()? {
            let room = comm.is_root().then_some((stranger, &[4096, 4096][..]));
            texts.push(refusal(comm.gather_into_lease(&part, room, 0)));
        }
        for stranger in strangers()? {
            texts.push(refusal(comm.send_lease(stranger, 1 - comm.rank())));
        }
        comm.barrier()?;
        assert!(frozen.iter().all(|&zero| zero == 0), "another array was overwritten");
        Ok(texts)
    });
    let told = told.unwrap().unwrap();
    told[0].iter().chain(&told[1][2..]).for_each(|text| assert_says(text, "not this world's"));
    told[1][..2].iter().for_each(|text| assert_says(text, "rank 0: the array is not this world's"));
}

/// A result that names its array twice.
struct Twice(Option<Lease<u32, Ix1>>);

impl Serialize for Twice {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        (&self.0, &self.0).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Twice {
    fn deserialize<D: Deserializer<'de>>(_: D) -> std::result::Result<Self, D::Error> {
        Err(de::Error::custom("it was accepted"))
    }
}

fn leases_cannot_be_doubled() {
    let refused = "can be carried once";
    assert_says(&refusal(launch(2, |comm| Ok(Twice(Some(comm.alloc(64)?))))), refused);
    // Strangers to the world.
    assert_says(&refusal(launch(2, |_| Lease::<u8, Ix1>::zeros(64))), refused);
    assert_says(&refusal(launch(2, |_| Comm::solo()?.alloc::<u8, _>(64))), refused);
    // As messages.
    let told = launch(2, |comm| {
        let lease = comm.alloc::<u8, _>(64)?;
        let texts = [refusal(postcard::to_stdvec(&lease).map_err(Error::other))];
        let sent = refusal(comm.all_gather_objects(&lease));
        comm.barrier()?;
        Ok(texts.into_iter().chain([sent]).collect::<Vec<_>>())
    });
    assert!(told.unwrap().unwrap().concat().iter().all(|text| text != "it was accepted"));
}

/// A result that carries the bytes of its array's handle instead, and does this and that with them.
struct Forged {
    trick: u8,
    lease: Option<Lease<u32, Ix1>>,
    sum: Option<u32>,
}

impl Serialize for Forged {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let lease = self.lease.as_ref().unwrap();
        let view = lease.view();
        let bytes = postcard::to_stdvec(lease).map_err(ser::Error::custom)?;
        assert!(postcard::from_bytes::<Lease<u32, Ix1>>(&bytes).is_err(), "taken up while it is written");
        assert!(postcard::to_stdvec(lease).is_err(), "written twice");
        assert!(catch_unwind(AssertUnwindSafe(|| lease.view().len())).is_err(), "looked at when it has gone");
        assert!(view.iter().all(|&five| five == 5));
        (self.trick, bytes).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Forged {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let (trick, bytes) = <(u8, Vec<u8>)>::deserialize(deserializer)?;
        let take = |bytes: &[u8]| postcard::from_bytes::<Lease<u32, Ix1>>(bytes);
        let named = |number: u64, len: usize| postcard::to_stdvec(&(number, vec![len])).unwrap();
        let sum = match trick {
            0 => {
                let lease = take(&bytes).map_err(de::Error::custom)?;
                assert!(take(&bytes).is_err() && take(&named(0, 64)).is_err(), "taken up twice");
                Some(lease.view().sum())
            }
            1 => postcard::from_bytes::<Lease<f32, Ix1>>(&bytes).ok().map(|_| 0),
            2 => postcard::from_bytes::<Lease<u32, Ix2>>(&bytes).ok().map(|_| 0),
            3 => take(&named(0, 65)).ok().map(|_| 0),
            4 => take(&named(0, 1 << 62)).ok().map(|_| 0),
            5 => take(&named(1, 64)).ok().map(|_| 0),
            _ => take(&named(u64::MAX, 64)).ok().map(|_| 0),
        };
        Ok(Forged { trick, lease: None, sum })
    }
}

fn leases_cannot_be_forged() {
    for trick in 0..7 {
        let forged = launch(2, |comm| {
            let mut lease = comm.alloc::<u32, _>(64)?;
            lease.view_mut().fill(5);
            Ok(Forged { trick, lease: Some(lease), sum: None })
        });
        let right = if trick == 0 { Some(5 * 64) } else { None };
        assert!(forged.unwrap().unwrap().iter().all(|forged| forged.sum == right), "trick {trick}");
    }
    // What a serialiser holds outside of a result is worth nothing.
    assert!(
        postcard::from_bytes::<Lease<u32, Ix1>>(&postcard::to_stdvec(&(0u64, vec![64])).unwrap()).is_err()
    );
}

fn inherited_leases_are_read_only() {
    no_core_files();
    let inherited = "this process does not hold the array";
    let mut solo = Comm::solo().unwrap();
    let lease = RefCell::new(solo.alloc::<u64, _>(1000).unwrap());
    assert_eq!(launch(2, |_| Ok(lease.borrow().view().sum())), Ok(Some(vec![0; 2])));
    assert_says(
        &refusal(launch(2, |_| {
            lease.borrow_mut().view_mut().fill(1);
            Ok(())
        })),
        inherited,
    );
    let results = launch(2, |comm| comm.alloc::<u64, _>(1000)).unwrap().unwrap();
    assert_eq!(launch(2, |comm| Ok(results[comm.rank()].view().sum())), Ok(Some(vec![0; 2])));
    let results = RefCell::new(results);
    assert_says(
        &refusal(launch(2, |comm| {
            results.borrow_mut()[comm.rank()].view_mut().fill(1);
            Ok(())
        })),
        inherited,
    );
    let array = RefCell::new(SharedArray::<u64, Ix1>::zeros(1000).unwrap());
    assert_says(
        &refusal(launch(2, |_| {
            array.borrow_mut().view_mut().fill(1);
            Ok(())
        })),
        "Comm::open",
    );
    // One of a rank, in a world inside its world.
    let told = launch(2, |comm| {
        let lease = comm.alloc::<u64, _>(1000)?;
        let text = refusal(launch(1, |_| Ok(lease.view().sum())));
        comm.barrier().map(|()| text)
    });
    let foreign = "of a world of which it is no rank";
    told.unwrap().unwrap().iter().for_each(|text| assert_says(text, foreign));
    // Dropped in a child, it is still held in its owner.
    let lent = RefCell::new(Some(lease.into_inner()));
    launch(2, |_| {
        drop(lent.borrow_mut().take());
        Ok(())
    })
    .unwrap();
    let mut lease = lent.into_inner().unwrap();
    lease.view_mut().fill(7);
    let other = solo.alloc::<u64, _>(1000).unwrap();
    assert_eq!((lease.view().sum(), other.view().sum()), (7000, 0));
}

fn inherited_views_fault() {
    no_core_files();
    let mut array = SharedArray::<u64, Ix1>::zeros(1000).unwrap();
    {
        let view = RefCell::new(array.view_mut());
        assert_fault(launch(2, |comm| {
            view.borrow_mut().fill(comm.rank() as u64 + 1);
            comm.barrier()
        }));
    }
    assert!(array.view().iter().all(|&zero| zero == 0));

    let mut solo = Comm::solo().unwrap();
    let mut lease = solo.alloc::<u64, _>(1000).unwrap();
    {
        let view = RefCell::new(lease.view_mut());
        assert_fault(launch(2, |_| {
            view.borrow_mut().fill(1);
            Ok(())
        }));
    }
    assert_eq!(lease.view().sum(), 0);
    let mut part = solo.parts::<u64, _>(1000).unwrap();
    let inherited = RefCell::new(part.view_mut());
    assert_fault(launch(2, |_| {
        inherited.borrow_mut().fill(1);
        Ok(())
    }));
    assert_eq!(part.view().sum(), 0);
    let mut alone = Lease::<u64, Ix1>::zeros(1000).unwrap();
    let inherited = RefCell::new(alone.view_mut());
    assert_fault(launch(2, |_| {
        inherited.borrow_mut().fill(1);
        Ok(())
    }));
    assert_eq!(alone.view().sum(), 0);
}

fn inherited_heaps_are_refused() {
    no_core_files();
    let solo = RefCell::new(Comm::solo().unwrap());
    let take = || -> Result<()> {
        let mut mine = solo.borrow_mut().alloc::<u64, _>(1000)?;
        mine.view_mut().fill(1);
        Ok(())
    };
    let assert_refused = || {
        let refused = launch(2, |_| take()).unwrap_err().to_string();
        assert_says(&refused, "only the rank itself may call");
    };
    assert_refused();
    // With blocks that were given back.
    for _ in 0..3 {
        let held = [1000, 1000].map(|len| solo.borrow_mut().alloc::<u64, _>(len).unwrap());
        drop(held);
    }
    assert_refused();
    take().unwrap();
}

fn inherited_communicators_are_refused() {
    no_core_files();
    let gathered = launch(2, |comm| {
        let mut all = Array1::<u64>::zeros(2);
        if comm.rank() == 0 {
            let outer = RefCell::new(comm);
            let refused = launch(2, |_| {
                let mut all = Array1::<u64>::zeros(2);
                outer.borrow_mut().all_gather(&arr1(&[99]), &mut all)
            });
            assert_says(&refused.unwrap_err().to_string(), "only the rank itself may call");
            let refused = launch(1, |_| outer.borrow_mut().send(&arr1(&[99]), 1));
            assert_says(&refused.unwrap_err().to_string(), "only the rank itself may call");
            outer.into_inner().all_gather(&arr1(&[5]), &mut all)?;
        } else {
            comm.all_gather(&arr1(&[6]), &mut all)?;
        }
        Ok(all.to_vec())
    });
    assert_eq!(gathered.unwrap().unwrap(), [[5, 6], [5, 6]]);
}

/// Dies of what it writes.
fn progress_that_writes() {
    if std::env::var_os(support::MARK).is_none() {
        return;
    }
    no_core_files();
    let lease = RwLock::new(Lease::<u64, Ix1>::zeros(4).unwrap());
    let progress = |_: &Progress| lease.write().unwrap().view_mut().fill(1);
    let sweep = Sweep { workers: Some(2), progress: Some(Box::new(progress)), ..Sweep::default() };
    let look = |(): &mut (), _: &phalanx::Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_millis(100));
        out[0] = lease.read().unwrap().view()[0] as f64;
        Ok(())
    };
    let swept = sweep.run(Array2::zeros((40, 1)).view(), || Ok(()), look);
    panic!("{swept:?}");
}

fn arrays_of_the_caller_do_not_change_under_workers() {
    use std::os::unix::process::ExitStatusExt;
    let ended =
        support::case("helper: progress that writes").env(support::MARK, support::mark()).output().unwrap();
    assert_eq!(ended.status.signal(), Some(11), "{ended:?}");
    assert_says(&String::from_utf8_lossy(&ended.stderr), "wrote to shared memory that its workers read");

    let mut table = Lease::<f64, Ix1>::zeros(4).unwrap();
    table.view_mut().fill(1.0);
    let mut manager = create_parallel_manager("shared-memory", 2).unwrap();
    let look = |_: &[f64], _: &mut ()| {
        let view = table.view();
        let before = std::hint::black_box(&view)[0];
        std::thread::sleep(Duration::from_millis(300));
        Ok((before, std::hint::black_box(&view)[0]))
    };
    let scattered = manager.scatter(|| Ok(()), look, &[1.0, 2.0]).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    table.view_mut().fill(2.0);
    match manager.gather(scattered) {
        Err(error) => assert_says(&error.to_string(), "a caller that goes on meanwhile"),
        Ok(results) => {
            let changed = results.iter().any(|local| local.results.0 != local.results.1);
            panic!("the workers reached the caller's array; it changed under them: {changed}");
        }
    }
}

fn a_core_dump_does_not_delay_the_news() {
    let (_, hard) = getrlimit(Resource::RLIMIT_CORE).unwrap();
    setrlimit(Resource::RLIMIT_CORE, hard, hard).unwrap();
    let place = std::env::temp_dir().join(format!("phalanx-core-{}", support::mark()));
    std::fs::create_dir(&place).unwrap();
    std::env::set_current_dir(&place).unwrap();
    let mut waited = SharedArray::<u64, Ix1>::zeros(2).unwrap();
    let start = Instant::now();
    let error = launch(2, |comm| {
        let mut waited = comm.open(&waited)?;
        let mut large = comm.alloc::<u64, _>(1 << 20)?;
        large.view_mut().fill(1);
        comm.barrier()?;
        if comm.rank() == 1 {
            std::process::abort();
        }
        let start = Instant::now();
        let error = comm.barrier();
        waited.view_mut()[0] = start.elapsed().as_millis() as u64;
        error
    });
    let elapsed = start.elapsed();
    let size = |file: std::fs::DirEntry| file.metadata().unwrap().len();
    let cores: Vec<u64> = std::fs::read_dir(&place).unwrap().flatten().map(size).collect();
    std::env::set_current_dir("/").unwrap();
    std::fs::remove_dir_all(&place).unwrap();
    assert!(matches!(error, Err(Error::PeerDied { rank: 1, cause: Death::Signal(6), .. })), "{error:?}");
    assert!(
        waited.view()[0] < 2000 && elapsed < Duration::from_secs(4),
        "{} ms, {elapsed:?}",
        waited.view()[0]
    );
    assert!(cores.iter().all(|&size| size < 64 << 20), "core files of {cores:?} bytes");
}

fn reused_memory_wakes_sleepers() {
    for fill in [0, u32::MAX] {
        let elapsed = launch(2, |comm| {
            // One block of each size that the words of a communicator could be put into.
            for kib in (400..900).step_by(16) {
                let mut lease = comm.alloc::<u32, _>(kib * 256)?;
                lease.view_mut().fill(fill);
            }
            let mut pair = comm.split(Some(0), 0)?.unwrap();
            pair.barrier()?;
            let start = Instant::now();
            for round in 0..10 {
                let mut message = arr1(&[round]);
                if pair.rank() == 0 {
                    std::thread::sleep(Duration::from_millis(2));
                    pair.send(&message, 1)?;
                    pair.recv(&mut message, 1)?;
                } else {
                    pair.recv(&mut message, 0)?;
                    std::thread::sleep(Duration::from_millis(2));
                    pair.send(&message, 0)?;
                }
                assert_eq!(message[0], round);
            }
            Ok(start.elapsed())
        });
        let elapsed = elapsed.unwrap().unwrap();
        assert!(
            elapsed.iter().all(|&elapsed| elapsed < Duration::from_millis(500)),
            "{fill:#x}: {elapsed:?}"
        );
    }
}

fn a_long_build() {
    if std::env::var(support::MARK).is_err() {
        return;
    }
    let build = || {
        std::thread::sleep(Duration::from_secs(1000));
        Ok(())
    };
    let rows = Array2::zeros((4, 1));
    let _ = Sweep { workers: Some(2), ..Sweep::default() }.run(rows.view(), build, |(), _, _| Ok(()));
}

fn ranks_with_children() {
    if std::env::var(support::MARK).is_err() {
        return;
    }
    let _ = launch(2, |comm| {
        Command::new("sh").args(["-c", "sleep 4343 & wait"]).stdin(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_secs(1000));
        comm.barrier()
    });
}

/// Runs the case until `processes` have its mark, kills it, and waits until they have gone.
fn kill_caller(name: &str, processes: usize, patience: Duration) {
    for _ in 0..3 {
        let mark = support::mark();
        let mut caller = support::case(name).env(support::MARK, &mark).spawn().unwrap();
        let start = Instant::now();
        while marked_processes(&mark).len() < processes {
            assert!(start.elapsed() < Duration::from_secs(20), "{:?} start", marked_processes(&mark));
            std::thread::sleep(Duration::from_millis(5));
        }
        caller.kill().unwrap();
        caller.wait().unwrap();
        support::gone_within(patience, &mark);
    }
}

fn a_build_ends_with_its_caller() {
    kill_caller("helper: a long build", 2, Duration::from_secs(1));
}

fn grandchildren_end_with_the_caller() {
    // Caller, zygote, two ranks, a shell each, a sleeper each.
    kill_caller("helper: ranks with children", 8, Duration::from_secs(2));
}

fn helpers_of_a_build_live_as_long_as_the_sweep() {
    no_core_files();
    let mark = support::mark();
    let build = || {
        let mut helper = Command::new("sleep");
        helper.arg("1000").env(support::MARK, &mark).stdin(Stdio::null());
        Ok(helper.spawn()?.id())
    };
    let rows = Array2::zeros((100, 1));
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let swept = sweep.run(rows.view(), build, |helper, row, out| {
        std::thread::sleep(Duration::from_millis(10));
        if row.index == 7 && row.attempt == 0 {
            std::process::abort();
        }
        // A zombie has no program.
        out[0] = f64::from(u8::from(std::fs::read_link(format!("/proc/{helper}/exe")).is_ok()));
        Ok(())
    });
    assert_eq!(swept.unwrap().values().sum(), 100.0);
    assert!(marked_processes(&mark).is_empty(), "the helper outlives the sweep");
}

/// The children of a process, as `pid state`.
fn children(pid: u32) -> Vec<String> {
    let listed = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let state = |child: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).ok()?;
        Some(format!("{child} {}", stat.rsplit(") ").next()?.split(' ').next()?))
    };
    listed.split_whitespace().filter_map(state).collect()
}

fn no_zombies_pile_up() {
    // What the zygote leaves behind becomes a child of this process.
    nix::sys::prctl::set_child_subreaper(true).unwrap();
    let rows = Array2::zeros((200, 1));
    let sweep = Sweep { workers: Some(1), ..Sweep::default() };
    let swept = sweep.run(
        rows.view(),
        || Ok(()),
        |(), row, out| {
            Command::new("sh").args(["-c", "sleep 0.01 &"]).stdin(Stdio::null()).status().unwrap();
            if row.index == 199 {
                std::thread::sleep(Duration::from_millis(600));
                let zombies = children(std::os::unix::process::parent_id());
                out[0] = zombies.iter().filter(|child| child.ends_with(" Z")).count() as f64;
            }
            Ok(())
        },
    );
    let zombies = swept.unwrap().values()[[199, 0]];
    assert!(zombies <= 3.0, "{zombies} zombies");
    assert_eq!(children(std::process::id()), [""; 0]);
}

fn launch_without_sigchld() {
    if std::env::var(support::MARK).is_err() {
        return;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    assert_eq!(u64::from_str_radix(ignored.trim(), 16).unwrap() >> 16 & 1, 1, "SIGCHLD is ignored");
    let ranks = launch(3, |comm| comm.barrier().map(|()| comm.rank()));
    assert_eq!(ranks.unwrap(), Some(vec![0, 1, 2]));
    let error = launch(2, |comm| if comm.rank() == 1 { std::process::exit(7) } else { comm.barrier() });
    assert!(matches!(error, Err(Error::PeerDied { rank: 1, cause: Death::Exit(7), .. })), "{error:?}");
    let error = launch(2, |comm| if comm.rank() == 1 { panic!("planned") } else { comm.barrier() });
    assert!(matches!(error, Err(Error::Panicked { rank: 1, .. })), "{error:?}");
    let rows = Array2::zeros((20, 1));
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let swept = sweep.run(
        rows.view(),
        || Ok(()),
        |(), row, out| {
            if row.index == 3 && row.attempt == 0 {
                std::process::exit(1);
            }
            out[0] = 1.0;
            Ok(())
        },
    );
    assert_eq!(swept.unwrap().values().sum(), 20.0);
}

fn ignored_sigchld() {
    let program = std::env::current_exe().unwrap();
    let mut deaf = Command::new("env");
    deaf.arg("--ignore-signal=CHLD").arg(program).arg("--case=helper: launch without SIGCHLD");
    assert!(deaf.env(support::MARK, support::mark()).status().unwrap().success());
}

fn joined_threads_do_not_count() {
    for _ in 0..200 {
        let threads: Vec<_> = (0..2).map(|_| std::thread::spawn(|| {})).collect();
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        launch(1, |_| Ok(())).unwrap();
    }
}

fn small_limit_on_files_is_named() {
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    setrlimit(Resource::RLIMIT_FSIZE, 1 << 20, hard).unwrap();
    assert_says(&refusal(launch(2, |comm| comm.barrier())), "ulimit -f");
    assert_says(&refusal(Comm::solo()), "ulimit -f");
    assert_says(&refusal(SharedArray::<u8, Ix1>::zeros(4 << 20)), "ulimit -f");
    let rows = Array2::zeros((20, 1));
    for backend in [Backend::Serial, Backend::Threads, Backend::SharedMemory] {
        let sweep = Sweep { workers: Some(2), backend, ..Sweep::default() };
        assert_says(&refusal(sweep.run(rows.view(), || Ok(()), |(), _, _| Ok(()))), "ulimit -f");
    }
}

fn endless_deadline() {
    let world = Launch { ranks: Some(2), deadline: Some(Duration::MAX), ..support::world() };
    let body = |comm: &mut Comm<'_>| {
        let mut message = arr1(&[comm.rank()]).mapv(|rank| rank as u64);
        comm.send(&message.clone(), 1 - comm.rank())?;
        comm.recv(&mut message, 1 - comm.rank())?;
        comm.barrier().map(|()| message[0])
    };
    assert_eq!(world.fork(body).unwrap(), Some(vec![1, 0]));
    assert_eq!(world.threads(body).unwrap(), Some(vec![1, 0]));
}

fn absurd_shapes() {
    let mut solo = Comm::solo().unwrap();
    for shape in [(usize::MAX, 0), (0, usize::MAX), (usize::MAX, 1), (1 << 32, 1 << 32), (1 << 31, 1 << 31)] {
        let empty = shape.0 == 0 || shape.1 == 0;
        let is_sound = |len: Result<usize>| len.map_or(true, |len| empty && len == 0);
        assert!(is_sound(solo.alloc::<f64, _>(shape).map(|lease| lease.view().len())), "{shape:?}");
        assert!(is_sound(solo.parts::<f64, _>(shape).map(|part| part.view().len())), "{shape:?}");
        assert!(is_sound(Lease::<f64, Ix2>::zeros(shape).map(|lease| lease.view().len())), "{shape:?}");
        let array = SharedArray::<f64, Ix2>::zeros(shape);
        assert!(is_sound(array.map(|mut array| array.view().len())), "{shape:?}");
        launch(2, |comm| {
            let part = comm.parts::<f64, _>(shape);
            assert!(is_sound(part.map(|part| part.view().len())), "{shape:?}");
            comm.barrier()
        })
        .unwrap();
    }
    let empty = SharedArray::<f64, Ix2>::zeros((0, 5)).unwrap();
    launch(3, |comm| {
        assert!(comm.open(&empty)?.publish(comm)?.view().is_empty());
        Ok(())
    })
    .unwrap();
}

fn untouched_arrays_cost_nothing() {
    // Shared memory of the whole machine, where others work, too: the least of some.
    let shared = || kib("/proc/meminfo", "Shmem");
    let cost = |_| {
        let before = shared();
        let array = SharedArray::<u8, Ix1>::zeros(200 << 20).unwrap();
        let after = shared();
        drop(array);
        after.saturating_sub(before) >> 10
    };
    let least = (0..10).map(cost).min().unwrap();
    assert!(least < 20, "{least} MiB of shared memory");
    let before = status("VmRSS");
    let mut sparse = SharedArray::<u8, Ix1>::zeros(1 << 40).unwrap();
    let mut medium = SharedArray::<u8, Ix1>::zeros(200 << 20).unwrap();
    let grown = (status("VmRSS") - before) >> 10;
    assert!(grown < 20, "{grown} MiB");
    let costs = launch(2, |comm| {
        let before = status("VmRSS");
        let (mut part, mut other) = (comm.open(&sparse)?, comm.open(&medium)?);
        part.view_mut()[5] = 7;
        other.view_mut()[5] = 7;
        part.publish(comm)?;
        Ok((status("VmRSS") - before) >> 10)
    });
    assert!(costs.unwrap().unwrap().iter().all(|&grown| grown < 20));
    assert_eq!((sparse.view()[5], sparse.view()[(1 << 39) + 5], medium.view()[(100 << 20) + 5]), (7, 7, 7));
    let grown = (status("VmRSS") - before) >> 10;
    assert!(grown < 20, "{grown} MiB");
}

fn sweeps_in_a_world_do_not_pile_up() {
    // 4 MiB of results each time: fifty of them would not fit.
    let world = Launch { ranks: Some(2), heap: Some(48 << 20), ..support::world() };
    let rows = Array2::from_shape_fn((128, 1), |(row, _)| row as f64);
    let grown = world.fork(|comm| {
        let mut early = 0;
        for round in 0..50 {
            let swept = Sweep { outputs: 4096, ..Sweep::default() }.run_in(
                comm,
                rows.view(),
                || Ok(()),
                |(), row, out| {
                    out.fill(row.values[0]);
                    Ok(())
                },
            )?;
            assert!(!comm.is_root() || swept.values()[[127, 4095]] == 127.0);
            early = if round == 4 { status("VmRSS") } else { early };
        }
        Ok(status("VmRSS").saturating_sub(early) >> 10)
    });
    let grown = grown.unwrap().unwrap();
    assert!(grown.iter().all(|&grown| grown < 8), "{grown:?} MiB");
}

/// However soon one follows the other, each rank is told of the call that it is in.
fn wrong_arguments_one_after_another_keep_their_texts() {
    let told = launch(4, |comm| {
        for call in 0..500 {
            let wrong = comm.rank() == call % 4;
            let root = if wrong { 1000 + call } else { 0 };
            let text = refusal(comm.broadcast(&mut arr1(&[1.0]), root));
            let says = format!("root {}, but ranks go from 0 to 3", 1000 + call);
            assert!(text.contains(&says), "call {call} of rank {}: {text}", comm.rank());
        }
        Ok(())
    });
    told.unwrap();
}
