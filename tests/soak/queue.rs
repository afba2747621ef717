//! Workers of queues, killed at random by another process; and members of groups, which kill themselves.

use super::{Args, Belongings, HANG, Random, signal};
use nix::sys::signal::Signal;
use phalanx::{Controller, Error, Op, Queue, Result, Submit, Tasks};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// What the last line says.
#[derive(Default, Debug)]
pub struct Figures {
    pub calls: u64,
    pub kills: u64,
    pub died: u64,
    pub failed: u64,
    lost: u64,
    twice: u64,
    pub wrong: u64,
    pub leaks: u64,
}

impl Figures {
    pub fn print(&self, what: &str) -> bool {
        let Figures { calls, kills, died, failed, lost, twice, wrong, leaks } = self;
        println!(
            "{what}: calls= {calls} kills= {kills} died= {died} failed= {failed} lost= {lost} twice= {twice} wrong= {wrong} leaks= {leaks}"
        );
        [lost, twice, wrong, leaks] == [&0; 4]
    }
}

/// Kills workers of the process `caller` until standard input ends; then says how many.
pub fn kill_workers(caller: u32, seed: u64, pause: u64) {
    let (stop, stopped) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        let _ = stop.send(());
    });
    let mut random = Random(seed);
    let children = |process: u32| -> Vec<u32> {
        let list = std::fs::read_to_string(format!("/proc/{process}/task/{process}/children"));
        list.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    };
    let mut kills = 0u64;
    while stopped.try_recv().is_err() {
        std::thread::sleep(Duration::from_micros(random.below(2 * pause)));
        // The workers are the children of the caller's child.
        let zygote = children(caller).into_iter().find(|&child| child != std::process::id());
        let workers = zygote.map(children).unwrap_or_default();
        if !workers.is_empty() {
            let victim = workers[random.below(workers.len() as u64) as usize];
            kills += u64::from(signal(victim as i32, Signal::SIGKILL));
        }
    }
    println!("{kills}");
}

/// Runs `f` while workers of this process are killed; returns how many were.
#[expect(clippy::zombie_processes, reason = "after an error this program ends")]
pub fn killing(args: &Args, f: impl FnOnce() -> Result<()>) -> Result<u64> {
    let mut killer = Command::new(std::env::current_exe().unwrap())
        .args(["--killer-of", &std::process::id().to_string()])
        .args(["--seed", &args.seed.to_string(), "--pause", &args.pause.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    f()?;
    killer.stdin.take().unwrap().write_all(b"\n").unwrap();
    let mut kills = String::new();
    BufReader::new(killer.stdout.take().unwrap()).read_line(&mut kills).unwrap();
    killer.wait().unwrap();
    Ok(kills.trim().parse().unwrap())
}

/// Runs `args.calls` calls on workers that are killed meanwhile, and more until `args.kills` workers have died.
fn calls(args: &Args, repeats: bool) -> bool {
    let before = Belongings::now();
    let path = std::env::temp_dir().join(format!("phalanx-soak-{}", super::support::mark()));
    // There are more calls than were asked for, until enough workers have died.
    let most = 20 * args.calls;
    std::fs::File::create(&path).unwrap().set_len(most).unwrap();
    let mut tasks = Tasks::new();
    let work = tasks.register("work", |(), x: u64| {
        let file = std::fs::File::options().read(true).write(true).open(&path)?;
        let mut begun = [0];
        file.read_exact_at(&mut begun, x)?;
        file.write_all_at(&[begun[0].saturating_add(1)], x)?;
        let start = Instant::now();
        while start.elapsed() < Duration::from_micros(x % 100) {}
        Ok(x * x)
    });
    let work = work.unwrap();
    if repeats {
        tasks.may_repeat(&work, u32::MAX).unwrap();
    }
    let mut figures = Figures::default();
    let mut answered = vec![0u8; most as usize];
    let workers = args.ranks.first().copied();
    let body = |controller: &mut Controller<'_>| -> Result<()> {
        let killed = killing(args, || {
            let (mut next, mut taken, mut heard, mut died) = (0, 0, Instant::now(), 0);
            while taken < args.calls || (died < args.kills && taken < most) {
                while next < most && next < taken + 200 {
                    controller.submit(&work, next)?;
                    next += 1;
                }
                let Some(finished) = controller.get_next_result()? else { break };
                assert!(heard.elapsed() < HANG, "{taken} calls have ended");
                (taken, heard) = (taken + 1, Instant::now());
                let id = finished.id;
                answered[id as usize] += 1;
                match finished.value::<u64>() {
                    Ok(square) => figures.wrong += u64::from(square != id * id),
                    Err(Error::Call { text, .. }) if text.contains("SIGKILL") && !repeats => {
                        figures.failed += 1
                    }
                    Err(_) => figures.wrong += 1,
                }
                if taken.is_multiple_of(1000) {
                    died = controller.stats().workers.iter().map(|worker| u64::from(worker.died)).sum();
                }
                if taken.is_multiple_of(20_000) {
                    println!("{taken} calls");
                }
            }
            figures.calls = next;
            while let Some(finished) = controller.get_next_result()? {
                answered[finished.id as usize] += 1;
                figures.failed += u64::from(finished.value::<u64>().is_err());
            }
            Ok(())
        })?;
        figures.kills = killed;
        figures.died = controller.stats().workers.iter().map(|worker| u64::from(worker.died)).sum();
        Ok(())
    };
    Queue { workers, ..Queue::default() }.run(&tasks, body).unwrap();
    let begun = std::fs::read(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    answered.truncate(figures.calls as usize);
    figures.lost = answered.iter().filter(|&&times| times == 0).count() as u64;
    figures.twice = answered.iter().filter(|&&times| times > 1).count() as u64;
    if !repeats {
        figures.twice += begun.iter().filter(|&&times| times > 1).count() as u64;
        // A worker that has died costs the call that it was at, and no other.
        figures.wrong += figures.failed.saturating_sub(figures.died);
    }
    let after = Belongings::now();
    if after != before {
        println!("before {before:?}, after {after:?}");
        figures.leaks += 1;
    }
    if repeats {
        figures.wrong += figures.failed;
    }
    let enough = figures.died >= args.kills;
    if !enough {
        println!("only {} workers have died: more calls, or a shorter pause", figures.died);
    }
    figures.print(if repeats { "at least once" } else { "at most once" }) && enough
}

/// Members of groups of three kill themselves, at any moment: each costs its group's call.
fn groups(args: &Args) -> bool {
    let before = Belongings::now();
    let mut tasks = Tasks::new();
    let work = tasks.register_collective("work", |(), comm, &(x, victim, after): &(u64, usize, u64)| {
        let mut sum = 0;
        for turn in 0..10 {
            if victim == comm.rank() && turn == after {
                signal(std::process::id() as i32, Signal::SIGKILL);
            }
            sum += comm.all_reduce_value(x + comm.rank() as u64, &Op::sum())?;
        }
        Ok(sum)
    });
    let work = work.unwrap();
    let (mut figures, mut random) = (Figures::default(), Random(args.seed));
    Queue { workers: Some(6), ..Queue::default() }
        .run(&tasks, |controller| {
            while figures.kills < args.kills {
                let mut calls = Vec::new();
                for _ in 0..20 {
                    let (x, victim, after) = (random.below(1000), random.below(6) as usize, random.below(10));
                    let options = Submit { ranks: 3, ..Submit::default() };
                    calls.push((x, victim, controller.submit_call(&work, (x, victim, after), options)?));
                }
                for (x, victim, call) in calls {
                    figures.calls += 1;
                    figures.kills += u64::from(victim < 3);
                    match (controller.get_result(&call), victim) {
                        (Ok(sums), 3..) => figures.wrong += u64::from(sums != [10 * (3 * x + 3); 3]),
                        (Err(Error::Call { text, .. }), 0..3) => {
                            let told = text.contains("SIGKILL") && text.contains(&format!("rank {victim}"));
                            figures.wrong += u64::from(!told);
                            figures.failed += 1;
                        }
                        _ => figures.wrong += 1,
                    }
                }
            }
            figures.died = controller.stats().workers.iter().map(|worker| u64::from(worker.died)).sum();
            Ok(())
        })
        .unwrap();
    // The worker that has forked the group goes on.
    figures.wrong += figures.died;
    let after = Belongings::now();
    if after != before {
        println!("before {before:?}, after {after:?}");
        figures.leaks += 1;
    }
    figures.print("groups")
}

pub fn soak(args: &Args) -> bool {
    let groups = groups(&Args { kills: args.kills / 10, ranks: Vec::new(), what: None, ..*args });
    [calls(args, true), calls(args, false), groups] == [true; 3]
}
