//! A control group's memory is used up: the kernel kills, and who is killed is a rank.

use super::{Case, adopt, all_works, holdings};
use crate::group::Group;
use crate::support::launch;
use ndarray::{Array2, Ix1};
use phalanx::{
    Comm, Death, Error, Granularity, Launch, Outcome, Result, SharedArray, Sweep, create_parallel_manager,
};

pub const CASES: &[Case] = cases! {
    memory_of_a_rank
    memory_of_a_heap
    memory_of_dropped_arrays
    memory_of_all_ranks
    memory_of_a_shared_array
    memory_of_a_caller
    memory_for_a_row
    memory_for_a_sample
};

/// What the group may have, and what is asked for.
const LIMIT: usize = 64 << 20;
const WANTED: usize = 256 << 20;
/// How often.
const TURNS: usize = 8;

/// This process in a group of limited memory.
fn enter() -> Group {
    adopt();
    all_works();
    let group = Group::new("memory");
    group.limit_memory(LIMIT);
    group.enter();
    all_works();
    group
}

/// Rank 1 takes too much: the others and the caller learn how it died.
#[track_caller]
fn too_much(greedy: impl for<'w> Fn(&mut Comm<'w>) -> Result<()>) {
    let group = enter();
    let before = holdings();
    for turn in 0..TURNS {
        let mut told = SharedArray::<u8, Ix1>::zeros(3).unwrap();
        let error = launch(3, |comm| {
            let mut told = comm.open(&told)?;
            greedy(comm)?;
            let error = comm.barrier().unwrap_err();
            assert!(matches!(error, Error::PeerDied { .. }), "{error}");
            told.view_mut()[0] = 1;
            Err::<(), _>(error)
        });
        assert!(killed(&error), "{turn}: {error:?}");
        assert!(told.view().sum() < 3);
        drop(told);
        assert_eq!(holdings(), before, "{turn}");
    }
    all_works();
    drop(group);
    all_works();
}

/// A rank was killed for want of memory.
fn killed<T>(result: &Result<T>) -> bool {
    let Err(Error::PeerDied { cause, .. }) = result else { return false };
    *cause == Death::Oom && cause.to_string().contains("want of memory")
}

fn memory_of_a_rank() {
    too_much(|comm| {
        if comm.rank() == 1 {
            std::hint::black_box(vec![1u8; WANTED]);
        }
        Ok(())
    });
}

/// What is reserved up front is refused; what does not fit later, when it is touched, is a kill.
fn memory_of_a_heap() {
    let group = enter();
    let text = launch(2, |comm| Ok(comm.alloc::<u8, _>(WANTED).map(drop).unwrap_err().to_string()));
    let text = text.unwrap().unwrap().remove(1);
    assert!(text.contains("the memory cgroup has") && text.contains("higher limit"), "{text}");
    drop(group);
    too_much(|comm| {
        // A block is large enough to be reserved, and there is room; then there is none.
        if comm.rank() == 1 {
            let mut half = comm.alloc::<u8, _>(LIMIT / 2)?;
            half.view_mut().fill(1);
            std::hint::black_box(vec![1u8; LIMIT / 8 * 7]);
        }
        Ok(())
    });
}

/// What dropped arrays have left is no reason to refuse others: it serves them, or goes back.
fn memory_of_dropped_arrays() {
    let group = enter();
    let world = Launch { ranks: Some(1), ..crate::support::world() };
    let done = world.fork(|comm| {
        let filled = |comm: &mut Comm<'_>, len| {
            let mut array = comm.alloc::<u8, _>(len)?;
            array.view_mut().as_slice_mut().unwrap().fill(1);
            Ok::<_, Error>(array)
        };
        for mib in (2..=36).step_by(2) {
            filled(comm, mib << 20)?;
        }
        // Pieces that no large array can use, between small ones that stay.
        for size in [1 << 20, 64 << 10] {
            let mut fences = Vec::new();
            let mut pieces = Vec::new();
            for _ in 0..(36 << 20) / size {
                pieces.push(filled(comm, size)?);
                fences.push(filled(comm, 64)?);
            }
            drop(pieces);
            filled(comm, 36 << 20)?;
        }
        Ok(())
    });
    assert!(done.is_ok(), "{done:?}");
    drop(group);
    all_works();
}

fn memory_of_all_ranks() {
    too_much(|comm| {
        std::hint::black_box(vec![1u8; WANTED]);
        comm.barrier()
    });
}

/// The array outlives the world, so its pages stay where the caller has them.
fn memory_of_a_shared_array() {
    let group = enter();
    let before = holdings();
    let text = SharedArray::<u8, Ix1>::zeros(WANTED).map(drop).unwrap_err().to_string();
    assert!(text.contains("the memory cgroup has") && text.contains("higher limit"), "{text}");
    for turn in 0..TURNS {
        // Each fits, both do not.
        let large = || SharedArray::<u8, Ix1>::zeros(LIMIT / 8 * 6).unwrap();
        let large = (large(), large());
        let error = launch(2, |comm| {
            comm.open(&large.0)?.view_mut().fill(1);
            comm.open(&large.1)?.view_mut().fill(1);
            comm.barrier()
        });
        assert!(killed(&error), "{turn}: {error:?}");
        drop(large);
        assert_eq!(holdings(), before, "{turn}");
    }
    all_works();
    drop(group);
}

/// The caller has more than any rank when memory ends; it is not the one who pays.
fn memory_of_a_caller() {
    let group = enter();
    let mut large = SharedArray::<u8, Ix1>::zeros(LIMIT / 8 * 5).unwrap();
    large.view_mut().fill(1);
    let before = holdings();
    for turn in 0..TURNS {
        let error = launch(3, |comm| {
            if comm.rank() == 1 {
                std::hint::black_box(vec![1u8; WANTED]);
            }
            comm.barrier()
        });
        assert!(killed(&error), "{turn}: {error:?}");
        assert_eq!(holdings(), before, "{turn}");
    }
    drop(large);
    all_works();
    drop(group);
}

fn memory_for_a_row() {
    let group = enter();
    let before = holdings();
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let swept = sweep.run(
        Array2::zeros((30, 1)).view(),
        || Ok(()),
        |(), row, out| {
            if row.index == 11 {
                std::hint::black_box(vec![1u8; WANTED]);
            }
            out[0] = 1.0;
            Ok(())
        },
    );
    let swept = swept.unwrap();
    let Outcome::Memory(text) = swept.outcome(11) else { panic!("{:?}", swept.outcome(11)) };
    assert!(text.contains("memory"), "{text}");
    assert_eq!(swept.values().iter().filter(|value| **value == 1.0).count(), 29);
    drop(swept);
    assert_eq!(holdings(), before);
    drop(group);
}

fn memory_for_a_sample() {
    let group = enter();
    let before = holdings();
    let mut manager = create_parallel_manager("shared-memory", 2).unwrap();
    manager.granularity = Granularity::PerSample;
    let greedy = |samples: &[u32], (): &mut ()| {
        if samples[0] == 7 {
            std::hint::black_box(vec![1u8; WANTED]);
        }
        Ok(samples[0])
    };
    let samples: Vec<u32> = (0..12).collect();
    let scattered = manager.scatter(|| Ok(()), greedy, &samples).unwrap();
    let text = manager.gather(scattered).map(drop).unwrap_err().to_string();
    assert!(text.contains("samples 7..8") && text.contains("memory"), "{text}");
    let scattered = manager.scatter(|| Ok(()), greedy, &samples[..7]).unwrap();
    assert_eq!(manager.gather(scattered).unwrap().len(), 7);
    drop(manager);
    assert_eq!(holdings(), before);
    drop(group);
}
