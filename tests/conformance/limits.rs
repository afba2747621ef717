//! Counters at their end, more ranks than processors, waiting.

use crate::arrays::same;
use crate::elements::Sample;
use crate::world::Back;
use ndarray::Array1;
use phalanx::{Comm, Op, Result};
use std::time::{Duration, Instant};

/// Every exchange, message and sub-communicator of a short program meets the wrap-around in one of the runs.
pub fn wrap(back: Back) {
    for before in (0..48).map(|k| k * 3).chain([1, 2, 5, 31, 32, 33]) {
        let mut world = back.world(3);
        world.first = u32::MAX - before;
        world.run(mixed);
    }
    for first in [1, 2, 3, 0x7FFF_FFFF, 0x8000_0000] {
        let mut world = back.world(2);
        world.first = first;
        world.run(mixed);
    }
}

/// More than 40 exchanges and 100 messages.
fn mixed(comm: &mut Comm<'_>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let mut half = comm.split(Some(rank as u64 / 2), 0)?.expect("a colour");
    for turn in 0..12 {
        let len = [1, 50, 3000, 0][turn % 4];
        let mine = Array1::from_elem(len, (rank + turn) as f64);
        let mut sum = Array1::zeros(len);
        comm.all_reduce(&mine, &mut sum, &Op::sum())?;
        assert!(sum.iter().all(|&x| x == (0..size).map(|peer| peer + turn).sum::<usize>() as f64));
        half.barrier()?;
        let mut all = Array1::zeros(len * size);
        comm.all_gather(&mine, &mut all)?;
        assert!(all.iter().enumerate().all(|(at, &x)| x == (at / len + turn) as f64));
        for group in [&mut *comm, &mut half] {
            let (rank, size) = (group.rank(), group.size());
            for k in 0..9 {
                let (to, from) = ((rank + 1) % size, (rank + size - 1) % size);
                let len = [0, 4, 5, 700][(turn + k) % 4];
                group.send(&Array1::from(u64::data(rank, len)), to)?;
                let mut message = Array1::zeros(len);
                group.recv(&mut message, from)?;
                same(&message.to_vec(), &u64::data(from, len));
            }
        }
        let mut lease = comm.alloc::<f64, _>(len)?;
        lease.view_mut().assign(&mine);
        comm.send_lease(lease, (rank + 1) % size)?;
        let lease = comm.recv_lease::<f64, _>(len, (rank + size - 1) % size)?;
        let mut folded = Array1::zeros(len);
        comm.reduce(
            &lease.view(),
            &mut (rank == turn % size).then_some(&mut folded),
            &Op::max(),
            turn % size,
        )?;
        assert!(rank != turn % size || folded.iter().all(|&x| x == (size - 1 + turn) as f64));
    }
    Ok(())
}

/// Eight ranks and however many processors: a thousand barriers.
pub fn more_ranks_than_processors(back: Back) {
    back.world(8).run(|comm| (0..1000).try_for_each(|_| comm.barrier()));
    back.world(64).run(|comm| (0..5).try_for_each(|_| comm.barrier()));
}

/// Processor time of this process, in ticks of 10 ms.
fn ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/self/stat").expect("procfs");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
}

/// Ticks that are few for three seconds. A storm of signals (tools/strain) has its price.
fn few() -> u64 {
    if std::env::var_os("PHALANX_TEST_STORM").is_some() { 12 } else { 3 }
}

/// Waiting costs under 1 % of a processor: in a collective, in a receive, in a send.
pub fn idle() {
    Back::Fork.world(4).run(|comm| {
        let before = ticks();
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_secs(3));
        }
        comm.barrier()?;
        let spent = ticks() - before;
        assert!(spent <= few(), "rank {} spent {spent}0 ms waiting for 3 s in a barrier", comm.rank());
        let (short, long) = (Array1::<u8>::zeros(4), Array1::<u8>::zeros(1 << 20));
        let before = ticks();
        match comm.rank() {
            0 => comm.recv(&mut short.clone(), 1)?,
            1 => {
                std::thread::sleep(Duration::from_secs(2));
                comm.send(&short, 0)?;
                comm.recv(&mut long.clone(), 2)?;
            }
            2 => comm.send(&long, 1)?,
            _ => {}
        }
        let spent = ticks() - before;
        assert!(comm.rank() == 1 || spent <= few(), "rank {} spent {spent}0 ms waiting for 2 s", comm.rank());
        Ok(())
    });
}

/// Whoever sleeps is woken at once, also in words that lie where something else lay before.
pub fn wakes(back: Back) {
    let late = |comm: &mut Comm<'_>| -> Result<Duration> {
        let mut longest = Duration::ZERO;
        for _ in 0..5 {
            let mut message = Array1::<u64>::zeros(1);
            comm.barrier()?;
            if comm.is_root() {
                std::thread::sleep(Duration::from_millis(40));
                comm.send(&message, 1)?;
                comm.recv(&mut message, 1)?;
            } else {
                let start = Instant::now();
                comm.recv(&mut message, 0)?;
                longest = longest.max(start.elapsed());
                comm.send(&message, 0)?;
            }
        }
        Ok(longest)
    };
    let longest = back.world(2).run(|comm| {
        let mut junk = Vec::new();
        for len in (1..=64).map(|k| k << 15) {
            let mut lease = comm.alloc::<i32, _>(len / 4)?;
            lease.view_mut().fill(-1);
            junk.push(lease);
        }
        drop(junk);
        let mut again = comm.split(Some(0), 0)?.expect("a colour");
        Ok([late(comm)?, late(&mut again)?])
    });
    let [world, split] = longest[1];
    assert!(
        world < Duration::from_millis(140),
        "a receive took {world:?}, the message was there after 40 ms"
    );
    assert!(split < Duration::from_millis(140), "in a split communicator {split:?}");
}
