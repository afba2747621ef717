//! Actors of pools, killed at random by another process while they do tasks.

use super::queue::{Figures, killing};
use super::{Args, Belongings};
use ndarray::{Array1, Ix1};
use phalanx::{Common, Error, Modules, Pool, Synced};
use std::collections::HashMap;

/// What an actor owns.
struct Owned {
    /// The tasks that it has done since its process began.
    count: u64,
    /// When it has done the first: numbers of processes are used again.
    since: u64,
    round: u64,
    long: Synced<u64, Ix1>,
    /// The tasks that all actors have done in this round, twice.
    done: Common<u64, Ix1>,
}

/// Elements of the array that is synchronised.
const LONG: usize = 20_000;

/// The tasks of one round.
const TASKS: u64 = 200;

/// Maps over actors that are killed meanwhile, until `args.kills` have died.
pub fn pool(args: &Args) -> bool {
    let before = Belongings::now();
    let mut modules = Modules::new();
    let owned = Owned {
        count: 0,
        since: 0,
        round: 0,
        long: Array1::zeros(LONG).into(),
        done: Array1::zeros(2).into(),
    };
    let key = modules.add("owned", owned).unwrap();
    let work = modules.method("work", |owned: &mut Owned, x: u64| {
        let long = owned.long.view();
        let whole = long.iter().all(|&element| element == owned.round);
        owned.done.write(|mut done| {
            done[0] += 1;
            (0..2000).for_each(|_| std::hint::spin_loop());
            done[1] += 1;
        })?;
        if owned.count == 0 {
            owned.since = std::time::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
        }
        owned.count += 1;
        let who = (std::process::id(), owned.since);
        Ok((x * x, owned.round, whole, who, owned.count, phalanx::task_seed()))
    });
    let work = work.unwrap();
    modules.attribute("round", |owned: &mut Owned| &mut owned.round).unwrap();
    modules.synced("long", |owned: &mut Owned| &mut owned.long).unwrap();
    modules.common("done", |owned: &mut Owned| &mut owned.done).unwrap();
    let mut figures = Figures::default();
    let options =
        Pool { actors: args.ranks.first().copied(), seed: args.seed, heap: Some(8 << 20), ..Pool::default() };
    let ran = options.run(&modules, |pool| {
        // Actors that have nothing to do die, too, and are given up if they do so five times in a row.
        let slower = Args { pause: args.pause.max(15_000), ranks: Vec::new(), what: None, ..*args };
        let killed = killing(&slower, || {
            let (mut counts, mut round): (HashMap<(u32, u64), Vec<u64>>, u64) = (HashMap::new(), 0);
            let mut halves = 0;
            while figures.died < args.kills {
                round += 1;
                let mut own = pool.module(&key)?;
                (own.round, own.long) = (round, Array1::from_elem(LONG, round).into());
                own.done = Array1::zeros(2).into();
                drop(own);
                pool.synchronize(&key)?;
                let (mut answered, mut killed, mut half) = (0, 0, 0);
                for (x, end) in (0..).zip(pool.map_all(&work, &key, 0..TASKS)?) {
                    let number = (round - 1) * TASKS + x;
                    figures.calls += 1;
                    match end {
                        Ok((square, seen, whole, who, count, seed)) => {
                            counts.entry(who).or_default().push(count);
                            answered += 1;
                            let right = square == x * x && seen == round && whole;
                            figures.wrong +=
                                u64::from(!right || seed != phalanx::seed(args.seed, number as usize));
                        }
                        Err(Error::Call { text, .. }) if text.contains("SIGKILL") => killed += 1,
                        Err(Error::Call { text, .. }) if text.contains("half written") => half += 1,
                        Err(_) => figures.wrong += 1,
                    }
                }
                // One that died after it had counted, and before it had answered, has counted; one that died amid that is told of.
                let counted = pool.module(&key)?.done.read(|done| (done[0], done[1]));
                figures.wrong += match counted {
                    Ok((a, b)) => {
                        u64::from(a != b || half > 0 || !(answered..=answered + killed).contains(&a))
                    }
                    Err(_) => u64::from(killed == 0),
                };
                figures.failed += killed;
                figures.died = pool.stats().workers.iter().map(|worker| u64::from(worker.died)).sum();
                halves += u64::from(half > 0);
                if round % 100 == 0 {
                    println!(
                        "{} tasks, {} actors have died, of whom {halves} were amid a change",
                        figures.calls, figures.died
                    );
                }
            }
            // A process counts from 1, every task that it has answered.
            for mut counts in counts.into_values() {
                counts.sort_unstable();
                figures.wrong += u64::from(!(1..=counts.len() as u64).eq(counts));
            }
            Ok(())
        })?;
        figures.kills = killed;
        Ok(())
    });
    ran.unwrap();
    // The caller's array lies in the pool's memory.
    drop(modules);
    // A death costs the task that the actor was at, and no other.
    figures.wrong += figures.failed.saturating_sub(figures.died);
    let after = Belongings::now();
    if after != before {
        println!("before {before:?}, after {after:?}");
        figures.leaks += 1;
    }
    figures.print("maps")
}
