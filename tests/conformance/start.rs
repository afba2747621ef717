//! Before a world starts, and what remains of it.

use crate::world::Back;
use ndarray::{Array1, Array2, ArrayD, Ix1, IxDyn};
use phalanx::{Comm, Launch, Lease, Op, Result, SharedArray, Sweep};
use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

/// Before anything starts.
pub fn launches() {
    let body = |comm: &mut Comm<'_>| Ok(comm.size());
    for ranks in [0, 1025, usize::MAX] {
        let launch = Launch { ranks: Some(ranks), ..crate::support::world() };
        for error in [launch.fork(body).expect_err("refused"), launch.threads(body).expect_err("refused")] {
            let text = error.to_string();
            assert!(
                text.starts_with("launch") && text.contains(&ranks.to_string()) && text.contains("1 to 1024"),
                "{text}"
            );
        }
    }
    let huge = Launch { ranks: Some(2), heap: Some(usize::MAX), ..crate::support::world() };
    assert_eq!(huge.threads(body).expect("only address space").map(|sizes| sizes.len()), Some(2));
    let small = Launch { ranks: Some(2), heap: Some(1 << 20), ..crate::support::world() };
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
    let launch = Launch { ranks: Some(2), ..crate::support::world() };
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

/// Nested, empty, large; leases are read where they were written.
pub fn results() {
    let launch = Launch { ranks: Some(4), ..crate::support::world() };
    let nested =
        |rank: usize| -> (Option<String>, std::result::Result<u8, Vec<i32>>, BTreeMap<u8, ArrayD<f64>>) {
            let arrays = (0..rank as u8).map(|k| (k, ArrayD::from_elem(IxDyn(&[2, k as usize]), 0.5)));
            (
                (rank > 1).then(|| "ö".repeat(rank)),
                if rank == 2 { Err(vec![1, 2]) } else { Ok(7) },
                arrays.collect(),
            )
        };
    let wanted: Vec<_> = (0..4).map(nested).collect();
    assert_eq!(launch.fork(|comm| Ok(nested(comm.rank()))).expect("results"), Some(wanted));
    assert_eq!(launch.fork(|_| Ok(())).expect("results"), Some(vec![(); 4]));
    let mut late = launch.fork(|comm| {
        std::thread::sleep(Duration::from_millis(10 * (4 - comm.rank() as u64)));
        Ok(comm.rank())
    });
    assert_eq!(late.as_mut().ok().and_then(Option::take), Some(vec![0, 1, 2, 3]));
    let long =
        launch.fork(|comm| Ok(vec![comm.rank() as f64; if comm.rank() == 2 { 13_000_000 } else { 1 }]));
    let long = long.expect("104 MB").expect("results");
    assert_eq!(long.iter().map(Vec::len).collect::<Vec<_>>(), [1, 1, 13_000_000, 1]);
    assert!(long[2].iter().step_by(999_999).all(|&x| x == 2.0));
    let error = launch
        .fork(|comm| if comm.rank() == 2 { Err(phalanx::Error::other("no salt")) } else { comm.barrier() });
    assert_eq!(error.expect_err("an error").to_string(), "rank 2 returned an error: no salt");
}

/// Leases in results, several a rank, and what became of them on their way through other ranks.
pub fn leases_in_results(back: Back) {
    type Grid = Lease<f64, ndarray::Ix2>;
    let body = |comm: &mut Comm<'_>| -> Result<(Grid, Vec<Option<Lease<u8, Ix1>>>)> {
        let (rank, size) = (comm.rank(), comm.size());
        let mut grid = comm.alloc::<f64, _>((3, 1000))?;
        grid.view_mut().fill(rank as f64);
        comm.send_lease(grid, (rank + 1) % size)?;
        let grid = comm.recv_lease((3, 1000), (rank + size - 1) % size)?;
        let mut bytes = comm.alloc::<u8, _>(rank)?;
        bytes.view_mut().fill(rank as u8);
        Ok((grid, vec![Some(bytes), None, Some(comm.alloc(0)?)]))
    };
    let launch = Launch { ranks: Some(3), ..crate::support::world() };
    let results = if back == Back::Fork { launch.fork(body) } else { launch.threads(body) };
    let mut results = results.expect("results").expect("of one node");
    for (rank, (grid, bytes)) in results.iter_mut().enumerate() {
        assert_eq!(grid.view(), Array2::from_elem((3, 1000), ((rank + 2) % 3) as f64));
        grid.view_mut().fill(0.5);
        assert_eq!(grid.view().sum(), 1500.0);
        assert_eq!(bytes.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!(bytes[0].as_ref().expect("there").view().to_vec(), vec![rank as u8; rank]);
    }
    // A lease is of its own world.
    let other = launch.fork(|_| Comm::solo()?.alloc::<u8, _>(5)).expect_err("of another world");
    assert!(other.to_string().contains("its own world"), "{other}");
}

/// A rank is the caller of worlds of its own; arrays belong to the world whose caller made them.
pub fn worlds_within_worlds() {
    let outer = SharedArray::<u64, Ix1>::zeros(4).expect("memory");
    let launch = Launch { ranks: Some(2), ..crate::support::world() };
    let sums = launch.fork(|comm| {
        let mut inner = SharedArray::<u64, Ix1>::zeros(6)?;
        let rank = comm.rank() as u64;
        for threads in [true, false] {
            let body = |comm: &mut Comm<'_>| {
                assert!(comm.open(&outer).is_err(), "not made by the caller of this world");
                let mut part = comm.open(&inner)?;
                part.view_mut().mapv_inplace(|x| x + rank + 1);
                part.publish(comm)?;
                let mut lease = comm.alloc::<u64, _>(2)?;
                lease.view_mut().fill(comm.rank() as u64);
                Ok(lease)
            };
            let launch = Launch { ranks: Some(3), ..crate::support::world() };
            let leases = if threads { launch.threads(body) } else { launch.fork(body) };
            let leases = leases?.expect("results");
            assert_eq!(leases.iter().map(|lease| lease.view().sum()).collect::<Vec<_>>(), [0, 2, 4]);
        }
        let mut sum = Array1::zeros(6);
        comm.all_reduce(&inner.view(), &mut sum, &Op::sum())?;
        assert_eq!(comm.open(&outer)?.publish(comm)?.view().sum(), 0);
        Ok(sum.to_vec())
    });
    assert_eq!(sums.expect("nested"), Some(vec![vec![6; 6]; 2]));
}

/// What is left behind is blank in the ranks, and in workers; afterwards it is inherited again, unchanged.
pub fn left_behind() {
    let mut data = vec![7u8; 64 << 20];
    let middle = data[32 << 20..].as_ptr().addr();
    let inherited = || {
        let seen = phalanx::launch(2, |_| Ok(byte_at(middle))).expect("started").expect("root");
        let sweep = Sweep { workers: Some(1), ..Sweep::default() };
        let swept = sweep.run(
            Array2::zeros((1, 1)).view(),
            || Ok(()),
            |(), _, out| {
                out[0] = byte_at(middle).map_or(-1.0, f64::from);
                Ok(())
            },
        );
        assert_eq!(swept.expect("swept").values()[[0, 0]], seen[0].map_or(-1.0, f64::from));
        assert_eq!(seen[0], seen[1]);
        seen[0]
    };
    assert_eq!(inherited(), Some(7));
    assert_eq!(phalanx::leave_behind(&mut data, inherited), Some(0));
    let panics = || phalanx::leave_behind(&mut data, || panic!("on purpose"));
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(panics)).expect_err("a panic");
    assert_eq!(inherited(), Some(7));
    assert!(data.iter().all(|&byte| byte == 7));
    // Less than a page, and nothing.
    let few = phalanx::leave_behind(&mut data[1..100], || 1);
    assert_eq!(few + phalanx::leave_behind::<u64, _>(&mut [], || 2), 3);
    // Shared memory is no private memory: it stays what it was, and children read it.
    let mut array = SharedArray::<u64, Ix1>::zeros(1 << 20).expect("memory");
    let mut view = array.view_mut();
    phalanx::leave_behind(view.as_slice_mut().expect("contiguous"), || ());
    let middle = view.as_slice().expect("contiguous")[1 << 19..].as_ptr().addr();
    assert_eq!(phalanx::launch(1, |_| Ok(byte_at(middle))).expect("started"), Some(vec![Some(0)]));
}

/// What lies at an address of this process, if anything does.
fn byte_at(address: usize) -> Option<u8> {
    let mut byte = [0];
    let memory = std::fs::File::open("/proc/self/mem").expect("one's own memory");
    memory.read_exact_at(&mut byte, address as u64).ok().map(|()| byte[0])
}
