//! Little processor time.

use super::{Case, adopt, all_works, holdings};
use crate::group::Group;
use crate::support::{launch, on_one_processor};
use ndarray::{Array1, Array2, arr1};
use phalanx::{Comm, Launch, Op, Result, Sweep};
use std::time::{Duration, Instant};

pub const CASES: &[Case] = cases! {
    eight_ranks_on_one_processor
    pinned_when_under_way
    one_rank_with_little_processor_time
    all_with_little_processor_time
    sixty_four_workers_that_sleep_cost_next_to_nothing
};

/// Every collective, many times, with checked results.
fn rounds(comm: &mut Comm<'_>, rounds: usize) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let total = size * (size + 1) / 2;
    for round in 0..rounds {
        let len = [1, 1000, 100, 40_000][round % 4];
        let root = round % size;
        let mine = Array1::from_elem(len, (rank + 1) as f64);
        comm.barrier()?;
        let mut sum = Array1::zeros(len);
        comm.all_reduce(&mine, &mut sum, &Op::sum())?;
        assert!(sum.iter().all(|&x| x == total as f64));
        let mut copy = if rank == root { mine.clone() } else { Array1::zeros(len) };
        comm.broadcast(&mut copy, root)?;
        assert!(copy.iter().all(|&x| x == (root + 1) as f64));
        let mut all = (rank == root).then(|| Array1::zeros(len * size));
        comm.gather(&mine, &mut all, root)?;
        assert!(all.is_none_or(|all| all.iter().enumerate().all(|(at, &x)| x == (at / len + 1) as f64)));
        let mut all = Array1::zeros(size);
        comm.all_to_all(&Array1::from_elem(size, rank as u64), &mut all)?;
        assert!(all.iter().enumerate().all(|(at, &x)| x == at as u64));
        let mut message = arr1(&[0]);
        comm.send(&arr1(&[rank]).mapv(|rank| rank as i32), (rank + 1) % size)?;
        comm.recv(&mut message, (rank + size - 1) % size)?;
        assert_eq!(message[0] as usize, (rank + size - 1) % size);
        let mut part = comm.parts::<u64, _>(3)?;
        part.view_mut().fill(rank as u64);
        assert_eq!(part.publish(comm)?.view().sum(), 3 * (total - size) as u64);
    }
    Ok(())
}

fn eight_ranks_on_one_processor() {
    adopt();
    on_one_processor().unwrap();
    all_works();
    let before = holdings();
    launch(8, |comm| rounds(comm, 16)).unwrap();
    let error = launch(8, |comm| {
        rounds(comm, 3)?;
        if comm.rank() == 5 {
            std::process::abort();
        }
        rounds(comm, 8)
    });
    assert!(matches!(error, Err(phalanx::Error::PeerDied { rank: 5, .. })), "{error:?}");
    assert_eq!(holdings(), before);
    Launch { ranks: Some(8), ..crate::support::world() }.threads(|comm| rounds(comm, 8)).unwrap();
    let sweep = Sweep { workers: Some(8), ..Sweep::default() };
    let swept = sweep.run(
        Array2::zeros((5000, 1)).view(),
        || Ok(()),
        |(), row, out| {
            out[0] = row.index as f64;
            Ok(())
        },
    );
    assert_eq!(swept.unwrap().values().sum(), (4999 * 2500) as f64);
}

/// The ranks have counted their processors before they lose them.
fn pinned_when_under_way() {
    launch(8, |comm| {
        rounds(comm, 3)?;
        on_one_processor().unwrap();
        rounds(comm, 8)
    })
    .unwrap();
}

/// Silence is not death.
fn one_rank_with_little_processor_time() {
    let group = Group::new("cpu");
    group.limit_processors(1_000, 100_000);
    let slow = launch(3, |comm| {
        comm.barrier()?;
        if comm.rank() == 1 {
            group.enter();
            // Half a second's worth of 1 %.
            let (start, before) = (Instant::now(), processor_time());
            while processor_time() < before + Duration::from_millis(5) {
                std::hint::black_box(start.elapsed());
            }
        }
        rounds(comm, 3)?;
        Ok(comm.rank())
    });
    assert_eq!(slow.unwrap(), Some(vec![0, 1, 2]));
    let sweep = Sweep { workers: Some(2), ..Sweep::default() };
    let build = || Ok(());
    let swept = sweep.run(Array2::zeros((60, 1)).view(), build, |(), row, out| {
        if row.index == 0 {
            group.enter();
        }
        out[0] = f64::from(row.attempt + 1);
        std::thread::sleep(Duration::from_millis(1));
        Ok(())
    });
    assert_eq!(swept.unwrap().values().sum(), 60.0, "each row once");
}

/// The supervisor, too.
fn all_with_little_processor_time() {
    let group = Group::new("cpu");
    group.limit_processors(1_000, 100_000);
    group.enter();
    launch(3, |comm| rounds(comm, 3)).unwrap();
    let error = launch(3, |comm| {
        if comm.rank() == 2 {
            std::process::abort();
        }
        comm.barrier()
    });
    assert!(matches!(error, Err(phalanx::Error::PeerDied { rank: 2, .. })), "{error:?}");
}

/// What this process has used.
fn processor_time() -> Duration {
    let used = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).unwrap();
    let micros = |time: nix::sys::time::TimeVal| (time.tv_sec() * 1_000_000 + time.tv_usec()) as u64;
    Duration::from_micros(micros(used.user_time()) + micros(used.system_time()))
}

/// Seconds of processor time of a worker's caller, supervisor and fellows, but not its own, as the kernel counts them for each.
fn time_of_others() -> f64 {
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    let supervisor = std::os::unix::process::parent_id();
    let caller = read(format!("/proc/{supervisor}/stat"));
    let caller = caller.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().to_owned();
    let fellows = read(format!("/proc/{supervisor}/task/{supervisor}/children"));
    let all = fellows.split_whitespace().map(str::to_owned).chain([caller, supervisor.to_string()]);
    let others = all.filter(|pid| *pid != std::process::id().to_string());
    // Nanoseconds on a processor, first.
    let time = |pid: String| read(format!("/proc/{pid}/schedstat")).split(' ').next()?.parse::<f64>().ok();
    others.filter_map(time).sum::<f64>() / 1e9
}

/// Supervisor, caller and workers together, while all models sleep.
fn sixty_four_workers_that_sleep_cost_next_to_nothing() {
    const WORKERS: usize = 64;
    let rows = Array2::<f64>::zeros((WORKERS, 1));
    let begin = Instant::now() + Duration::from_secs(2);
    let model = |(): &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
        std::thread::sleep(begin.saturating_duration_since(Instant::now()));
        let before = if row.index == 0 { time_of_others() } else { 0.0 };
        std::thread::sleep(Duration::from_secs(4));
        out[0] = if row.index == 0 { (time_of_others() - before) / 4.0 } else { 0.0 };
        // The others leave when that has been measured.
        std::thread::sleep(Duration::from_secs(1));
        Ok(())
    };
    let sweep = Sweep { workers: Some(WORKERS), ..Sweep::default() };
    let swept = sweep.run(rows.view(), || Ok(()), model).unwrap();
    let share = swept.values()[[0, 0]];
    println!("64 workers, all asleep: {:.2} % of a processor", 100.0 * share);
    assert!(share > 0.0 && share < 0.01, "{share}");
}
