//! Memory of dropped arrays serves others, and goes back.

use crate::support::{Case, launch, world};
use bytemuck::{Pod, Zeroable};
use ndarray::{Array2, Ix1};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use phalanx::{Comm, Launch, Lease, Op, Result, SharedArray, Sweep, create_parallel_manager};
use std::time::Duration;

pub const CASES: &[Case] = cases! {
    growing_arrays_one_at_a_time
    growing_arrays_of_all_ranks
    one_array_at_a_time_never_fills_twice_its_size
    many_small_arrays_make_room_for_a_large_one
    iterations_keep_their_pages
    pages_of_an_old_array_go_back
    pages_of_results_go_back_one_by_one
    splits_take_memory_with_the_ranks
    limited_addresses
    a_manager_with_small_heaps
    elements_of_a_page
};

const MIB: usize = 1 << 20;

/// A field of a file of this process's in /proc, in KiB.
fn kib(file: &str, field: &str) -> usize {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
}

/// Shared memory that this process has mapped and touched.
fn shared() -> usize {
    kib("status", "RssShmem") << 10
}

/// Is each byte of the array this one?
fn is(array: &Lease<u8, Ix1>, mark: u8) -> bool {
    let view = array.view();
    let bytes = view.as_slice().unwrap();
    bytes[0] == mark && bytes[1..] == bytes[..bytes.len() - 1]
}

/// A world of one rank, with a heap of so many bytes.
fn alone<R: serde::Serialize + serde::de::DeserializeOwned + 'static>(
    heap: usize,
    body: impl for<'w> Fn(&mut Comm<'w>) -> Result<R>,
) -> R {
    let world = Launch { ranks: Some(1), heap: Some(heap), ..world() };
    world.fork(body).unwrap().unwrap().remove(0)
}

fn growing_arrays_one_at_a_time() {
    let most = alone(1 << 30, |comm| {
        let mut most = 0;
        for mib in (8..=80).step_by(8) {
            comm.alloc::<u8, _>(mib * MIB)?.view_mut().as_slice_mut().unwrap().fill(1);
            most = shared().max(most);
        }
        Ok(most)
    });
    assert!(most < 85 * MIB, "{} MiB", most / MIB);
}

/// As `parts`, as received sums, as messages.
fn growing_arrays_of_all_ranks() {
    let most = launch(2, |comm| {
        let (mut most, other) = (0, 1 - comm.rank());
        for mib in (3..=30).step_by(3) {
            let len = mib * MIB / 8;
            let mut part = comm.parts::<u64, _>(len)?;
            part.view_mut().as_slice_mut().unwrap().fill(1);
            assert_eq!(part.publish(comm)?.view()[len], 1);
            let mut mine = comm.alloc::<u64, _>(len)?;
            mine.view_mut().as_slice_mut().unwrap().fill(2);
            let room = comm.alloc(len)?;
            let sum = comm.all_reduce_into_lease(&mine.view(), room, &Op::sum())?;
            assert_eq!(sum.view()[len - 1], 4);
            drop(sum);
            comm.send_lease(mine, other)?;
            assert_eq!(comm.recv_lease::<u64, _>(len, other)?.view()[0], 2);
            // All have let go.
            comm.barrier()?;
            most = kib("smaps_rollup", "Pss_Shmem").max(most);
            comm.barrier()?;
        }
        Ok(most >> 10)
    });
    let most: usize = most.unwrap().unwrap().iter().sum();
    // At once there are two arrays of each rank, or one of both; a neighbour may let go late.
    assert!(most < 200, "{most} MiB");
}

fn one_array_at_a_time_never_fills_twice_its_size() {
    for (heap, turns) in [(4, 500), (10, 300), (64, 100), (512, 20)] {
        alone(heap * MIB, |comm| {
            let most = heap * MIB / 2;
            let mut random = heap as u64;
            for turn in 0..turns {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let len = match turn % 4 {
                    0 => most,
                    1 => 1 + (random >> 33) as usize % 5000,
                    _ => 1 + (random >> 33) as usize % most,
                };
                let mut array = comm.alloc::<u8, _>(len)?;
                let mut view = array.view_mut();
                assert_eq!([view[0], view[len / 2], view[len - 1]], [0; 3], "{turn}: {len}");
                (view[0], view[len / 2], view[len - 1]) = (7, 7, 7);
                // What a heap serves besides.
                comm.split(Some(1), 0)?;
            }
            for len in (1..=most / MIB).step_by(1 + most / MIB / 20) {
                comm.alloc::<u8, _>(len * MIB)?;
            }
            Ok(())
        });
    }
}

fn many_small_arrays_make_room_for_a_large_one() {
    alone(512 * MIB, |comm| {
        for size in [64, 5000, MIB] {
            let mut held = Vec::new();
            while let Ok(array) = comm.alloc::<u8, _>(size) {
                held.push(array);
                if held.len() * size > 400 * MIB || held.len() == 50_000 {
                    break;
                }
            }
            // Every second, then the rest.
            let mut second = false;
            held.retain(|_| {
                second = !second;
                second
            });
            drop(held);
            comm.alloc::<u8, _>(500 * MIB)?;
        }
        Ok(())
    });
}

/// A program that makes the same arrays in each iteration does not pay for their pages each time.
fn iterations_keep_their_pages() {
    alone(1 << 30, |comm| {
        let faults = |comm: &mut Comm<'_>| {
            let minor =
                |text: String| text.rsplit(") ").next().unwrap().split(' ').nth(7).unwrap().parse::<usize>();
            let before = minor(std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap();
            for mib in [9, 1, 20, 3, 9] {
                comm.alloc::<u8, _>(mib * MIB)?.view_mut().as_slice_mut().unwrap().fill(1);
            }
            Ok::<_, phalanx::Error>(
                minor(std::fs::read_to_string("/proc/self/stat").unwrap()).unwrap() - before,
            )
        };
        for _ in 0..3 {
            faults(comm)?;
        }
        // Where a machine stands still an array may have grown old.
        let again = (0..10).map(|_| faults(comm)).collect::<Result<Vec<_>>>()?;
        let least = again.iter().min().unwrap();
        assert!(*least < 300, "{again:?} faults for 42 MiB, which have 10752 pages");
        Ok(())
    });
}

fn pages_of_an_old_array_go_back() {
    alone(1 << 30, |comm| {
        let before = shared();
        let mut array = comm.alloc::<u8, _>(20 * MIB)?;
        array.view_mut().as_slice_mut().unwrap().fill(1);
        assert!(shared() > before + 19 * MIB);
        std::thread::sleep(Duration::from_secs(2));
        drop(array);
        assert!(shared() < before + 3 * MIB, "{} MiB", shared() / MIB);
        assert!(is(&comm.alloc::<u8, _>(20 * MIB)?, 0));
        Ok(())
    });
}

/// A world's segment lives as long as one of its results; what the others had does not.
fn pages_of_results_go_back_one_by_one() {
    let before = shared();
    let arrays = launch(4, |comm| {
        let mut array = comm.alloc::<u8, _>(20 * MIB)?;
        array.view_mut().as_slice_mut().unwrap().fill(1);
        Ok(array)
    });
    let mut arrays = arrays.unwrap().unwrap();
    assert!(arrays.iter().all(|array| is(array, 1)));
    assert!(shared() > before + 79 * MIB);
    while arrays.len() > 1 {
        arrays.pop();
        assert!(
            shared() < before + (20 * arrays.len() + 5) * MIB,
            "{}: {} MiB",
            arrays.len(),
            shared() / MIB
        );
        assert!(arrays.iter().all(|array| is(array, 1)));
    }
}

/// Shared memory, and page tables, that a rank takes for a communicator, in KiB: each page among those who map it.
fn cost_of_a_split(ranks: usize) -> usize {
    let cost = launch(ranks, |comm| {
        let taken = |comm: &mut Comm<'_>| {
            comm.barrier()?;
            let taken = kib("smaps_rollup", "Pss_Shmem") + kib("status", "VmPTE");
            comm.barrier()?;
            Ok::<_, phalanx::Error>(taken)
        };
        let before = taken(comm)?;
        let mut part = comm.split(Some(0), 0)?.unwrap();
        part.barrier()?;
        part.all_reduce(&ndarray::arr0(1u64), &mut ndarray::arr0(0), &Op::sum())?;
        Ok(taken(comm)?.saturating_sub(before))
    });
    cost.unwrap().unwrap().iter().sum::<usize>() / ranks
}

fn splits_take_memory_with_the_ranks() {
    let (few, many) = (cost_of_a_split(12), cost_of_a_split(72));
    println!("a rank takes {few} KiB among 12, {many} among 72");
    assert!(many < few + 40 && many < 100);
}

fn limited_addresses() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    for mib in [256, 1024, 16_000] {
        setrlimit(Resource::RLIMIT_AS, (kib("status", "VmSize") as u64 + (mib << 10)) << 10, hard).unwrap();
        let sums = launch(4, |comm| {
            let whole = comm.parts::<u64, _>(100_000)?.publish(comm)?;
            // A world in a world, and a rank's own.
            Comm::solo()?.alloc::<u8, _>(MIB)?;
            let inner = Launch { ranks: Some(2), ..world() };
            inner.fork(|comm| comm.alloc::<u8, _>(MIB).map(drop))?;
            Ok(whole.view().len())
        });
        assert_eq!(sums.unwrap_or_else(|error| panic!("{mib} MiB: {error}")), Some(vec![400_000; 4]));
        let threads = Launch { ranks: Some(3), ..world() };
        threads.threads(|comm| comm.alloc::<u8, _>(MIB).map(drop)).unwrap();
        let table = Array2::from_shape_fn((1000, 1), |(row, _)| row as f64);
        let sweep = Sweep { workers: Some(4), ..Sweep::default() };
        let swept = sweep.run(
            table.view(),
            || Ok(()),
            |(), row, out| {
                out[0] = row.values[0];
                Ok(())
            },
        );
        assert_eq!(swept.unwrap().values().sum(), 499_500.0);
        let mut manager = create_parallel_manager("multiprocessing", 4).unwrap();
        let square = |samples: &[f64], _: &mut ()| {
            let mut out = Lease::<f64, Ix1>::zeros(10_000)?;
            out.view_mut().fill(samples[0] * samples[0]);
            Ok(out)
        };
        let scattered = manager.scatter(|| Ok(()), square, &[1.0, 2.0, 3.0]).unwrap();
        let squares = manager.gather(scattered).unwrap();
        assert_eq!(squares.iter().map(|local| local.results.view().sum()).sum::<f64>(), 140_000.0);
        SharedArray::<u64, Ix1>::zeros(100_000).unwrap().view_mut().as_slice_mut().unwrap().fill(1);
        Comm::solo().unwrap().barrier().unwrap();
        setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();
    }
}

fn a_manager_with_small_heaps() {
    let mut manager = create_parallel_manager("multiprocessing", 2).unwrap();
    let lease = |samples: &[usize], _: &mut ()| Ok(Lease::<u8, Ix1>::zeros(samples[0] * MIB)?);
    manager.heap = Some(16 * MIB);
    let scattered = manager.scatter(|| Ok(()), lease, &[1, 2]).unwrap();
    assert_eq!(manager.gather(scattered).unwrap()[1].results.shape(), [2 * MIB]);
    let scattered = manager.scatter(|| Ok(()), lease, &[1, 20]).unwrap();
    let text = manager.gather(scattered).map(drop).unwrap_err().to_string();
    assert!(text.contains("larger `heap`"), "{text}");
}

#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
#[repr(C, align(4096))]
struct Page([[u64; 32]; 16]);

/// Wherever an array can lie.
fn elements_of_a_page() {
    let page = |mark: u64| Page([[mark; 32]; 16]);
    let mut shared = SharedArray::<Page, Ix1>::zeros(6).unwrap();
    let leases = launch(3, |comm| {
        let me = comm.rank() as u64;
        // Nothing that was allocated before has this alignment.
        let odd = comm.alloc::<u8, _>(100)?;
        let mut lease = comm.alloc::<Page, _>(2)?;
        lease.view_mut().fill(page(me));
        let to = (comm.rank() + 1) % 3;
        comm.send_lease(lease, to)?;
        let lease = comm.recv_lease::<Page, _>(2, (comm.rank() + 2) % 3)?;
        assert_eq!(lease.view()[1], page((me + 2) % 3));
        let mut part = comm.parts::<Page, _>(2)?;
        part.view_mut().fill(page(me));
        let whole = part.publish(comm)?;
        assert_eq!(whole.view()[5], page(2));
        let mut open = comm.open(&shared)?;
        open.view_mut().fill(page(me));
        open.publish(comm)?;
        drop(odd);
        Ok(lease)
    });
    assert_eq!(shared.view()[4], page(2));
    assert_eq!(leases.unwrap().unwrap()[0].view()[1], page(2));
    let mut alone = Lease::<Page, Ix1>::zeros(1).unwrap();
    alone.view_mut()[0] = page(3);
    let mut manager = create_parallel_manager("shared-memory", 2).unwrap();
    let leases = |samples: &[u64], _: &mut ()| {
        Lease::<u8, Ix1>::zeros(3)?;
        let mut lease = Lease::<Page, Ix1>::zeros(1)?;
        lease.view_mut()[0] = page(samples[0]);
        Ok(lease)
    };
    let scattered = manager.scatter(|| Ok(()), leases, &[4, 5]).unwrap();
    assert_eq!(manager.gather(scattered).unwrap()[1].results.view()[0], page(5));
}
