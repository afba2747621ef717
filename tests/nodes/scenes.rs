//! What the suite of one node has not: orders of folding, groups over nodes, failures.

use crate::elements::mix;
use ndarray::{Array1, Array2, ArrayView1, Ix1, arr1};
use phalanx::{
    Amount, Backend, Comm, Costs, Ended, Error, Launch, Lease, Limits, Op, Outcome, Progress, RankStatus,
    Result, Row, Schedule, SharedArray, Sweep, create_parallel_manager,
};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::cell::RefCell;
use std::io::Write;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Lengths on both sides of every switch: in the record, told by all, one chunk, several, not a multiple of anything.
const LENS: [usize; 11] = [1, 2, 9, 16, 100, 1_000, 8_191, 40_000, 50_000, 160_000, 300_001];

/// Sums of whole numbers come out the same in any order; of others, the same bits on all ranks.
pub fn fast_sums(comm: &mut Comm<'_>) -> Result<()> {
    let value = |rank: usize, at: usize| (mix((rank * 1_000_003 + at) as u64) % 1_000) as f64;
    for len in LENS {
        let send = Array1::from_shape_fn(len, |at| value(comm.rank(), at));
        let want = Array1::from_shape_fn(len, |at| (0..comm.size()).map(|rank| value(rank, at)).sum::<f64>());
        let mut recv = Array1::from_elem(len, -1.0);
        comm.all_reduce(&send, &mut recv, &Op::sum().fast())?;
        assert_eq!(recv, want, "fast, {len}");
        let root = len % comm.size();
        let mut recv = Array1::from_elem(len, -1.0);
        let is_root = comm.rank() == root;
        comm.reduce(&send, &mut is_root.then_some(&mut recv), &Op::sum().fast(), root)?;
        assert!(!is_root || recv == want, "fast, to {root}, {len}");
        let send = send.mapv(|value| 1.0 / (value + 0.7));
        let mut recv = Array1::zeros(len);
        comm.all_reduce(&send, &mut recv, &Op::sum().fast())?;
        let digest = recv.iter().fold(0, |digest, value| mix(digest ^ value.to_bits()));
        let mut digests = Array1::zeros(comm.size());
        comm.all_gather(&arr1(&[digest]), &mut digests)?;
        assert!(digests.iter().all(|&other| other == digest), "fast, {len}: other bits on other ranks");
    }
    Ok(())
}

/// Groups within nodes and across them, with members in any order.
pub fn groups(comm: &mut Comm<'_>) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    let mut node = comm.split_nodes()?;
    let mut sum = arr1(&[0u64]);
    node.all_reduce(&arr1(&[1u64]), &mut sum, &Op::sum())?;
    assert_eq!(sum[0] as usize, node.size());
    let part = node.parts::<u32, _>(2)?.publish(&mut node)?;
    assert_eq!(part.view().len(), 2 * node.size());
    drop(part);
    // All, in the same order: leaders stay leaders.
    let mut same = comm.split(Some(7), rank as u64)?.expect("a colour");
    check_group(&mut same, &(0..size).collect::<Vec<_>>())?;
    // Nobody.
    assert!(comm.split((rank == 0).then_some(1), 0)?.is_none_or(|alone| alone.size() == 1));
    // Backwards and woven: only where every rank is a process.
    let splits: [fn(usize, usize) -> (usize, usize); 3] =
        [|rank, size| (0, size - rank), |rank, _| (rank % 2, rank), |rank, size| (0, (rank * 7) % size)];
    for split in splits {
        let (colour, key) = split(rank, size);
        match comm.split(Some(colour as u64), key as u64) {
            Ok(group) => {
                let mut members: Vec<usize> =
                    (0..size).filter(|&other| split(other, size).0 == colour).collect();
                members.sort_by_key(|&other| (split(other, size).1, other));
                check_group(&mut group.expect("a colour"), &members)?;
            }
            Err(error) => assert!(error.to_string().contains("would speak for its node"), "{error}"),
        }
    }
    Ok(())
}

/// The group consists of these ranks, and its collectives work.
fn check_group(group: &mut Comm<'_>, members: &[usize]) -> Result<()> {
    assert_eq!(group.size(), members.len());
    let mine = members[group.rank()];
    let mut all = Array1::zeros(members.len());
    group.all_gather(&arr1(&[mine]), &mut all)?;
    assert_eq!(all.to_vec(), members);
    // Not commutative: shows the order.
    let fold = |a: u64, b: u64| a.wrapping_mul(31).wrapping_add(b);
    for len in [1, 5_000] {
        let mut folded = Array1::zeros(len);
        group.all_reduce(&Array1::from_elem(len, mine as u64 + 1), &mut folded, &Op::user(fold))?;
        let want = members.iter().map(|&member| member as u64 + 1).reduce(fold).expect("members");
        assert_eq!(folded, Array1::from_elem(len, want));
    }
    group.barrier()
}

/// A wrong argument of one rank is everyone's error, and all go on.
pub fn wrong_arguments(comm: &mut Comm<'_>) -> Result<()> {
    for who in 0..comm.size() {
        let (send, mut room) =
            (arr1(&[1.0; 4]), Array1::<f64>::zeros(if comm.rank() == who { 3 } else { 4 }));
        let error = comm.all_reduce(&send, &mut room, &Op::sum()).expect_err("a room of another length");
        assert!(matches!(error, Error::BadArgument { .. }), "{error}");
        assert_eq!(room.sum(), 0.0);
        let mut data = Array1::<u8>::zeros(if comm.rank() == who { 70 } else { 71 });
        let error = comm.broadcast(&mut data, 0).expect_err("a room of another length");
        assert!(error.to_string().contains("bytes given by the ranks in order"), "{error}");
        comm.barrier()?;
        // Refused by root before anyone knows what the others bring, which differs within nodes.
        let (mine, counts) = (Array1::from_elem(comm.rank(), 1u8), vec![1; comm.size()]);
        let mut all = Array1::zeros(comm.size() + 1);
        comm.gather_varcount(&mine, &mut all, &counts, who).expect_err("counts that do not fit");
        comm.barrier()?;
    }
    Ok(())
}

/// What is known of this node's ranks, by their numbers in the world.
pub fn states(comm: &mut Comm<'_>) -> Result<()> {
    let states = comm.state();
    let mine = states.iter().find(|state| state.rank == comm.rank()).expect("this rank");
    assert_eq!((mine.pid, mine.status), (std::process::id(), RankStatus::Running));
    assert!(states.is_sorted_by(|one, next| one.rank + 1 == next.rank), "{states:?}");
    comm.barrier()
}

/// What needs memory that all ranks share says so.
pub fn views_are_refused(comm: &mut Comm<'_>) -> Result<()> {
    if comm.split_nodes()?.size() == comm.size() {
        return Ok(());
    }
    let error = comm.parts::<f64, _>(3).expect_err("two nodes");
    assert!(error.to_string().contains("split_nodes"), "{error}");
    comm.barrier()
}

/// Messages around a ring, within nodes and across them: where every rank is a process of the job. Forked workers are
/// told that they cannot.
pub fn messages(comm: &mut Comm<'_>, crews: bool) -> Result<()> {
    let (rank, size) = (comm.rank(), comm.size());
    if crews {
        let error = comm.send(&arr1(&[1]), (rank + size / 2) % size).expect_err("another node");
        assert!(error.to_string().contains("is on another node"), "{error}");
        return Ok(());
    }
    let (to, from) = ((rank + 1) % size, (rank + size - 1) % size);
    for len in [0, 1, 100, 50_000] {
        let message = Array1::from_shape_fn(len, |at| mix((rank + at) as u64));
        let mut came = Array1::<u64>::zeros(len);
        if rank.is_multiple_of(2) {
            comm.send(&message, to)?;
            comm.recv(&mut came, from)?;
        } else {
            comm.recv(&mut came, from)?;
            comm.send(&message, to)?;
        }
        assert_eq!(came, Array1::from_shape_fn(len, |at| mix((from + at) as u64)));
    }
    Ok(())
}

/// A scene of its own.
pub fn run(scene: &str, launch: &Launch) -> Result<()> {
    match scene {
        "digest" => digest(launch),
        "manager" => manager(),
        "panic" => fail(launch, |comm| {
            assert!(comm.rank() != comm.size() - 1, "out of salt");
            forever(comm)
        }),
        "error" => fail(launch, |comm| match comm.rank() + 1 == comm.size() {
            true => Err(Error::other("the model diverged")),
            false => forever(comm),
        }),
        "abort" => fail(launch, |comm| match comm.rank() + 1 == comm.size() {
            true => std::process::abort(),
            false => forever(comm),
        }),
        "exit" => fail(launch, |comm| match comm.rank() == 0 {
            true => std::process::exit(0),
            false => forever(comm),
        }),
        "mismatch" => fail(launch, |comm| {
            let mut data = Array1::<f64>::zeros(3);
            match comm.rank() + 1 == comm.size() {
                true => comm.broadcast(&mut data, 0),
                false => comm.barrier(),
            }
        }),
        // In a group of all ranks but the first two.
        "group" => fail(launch, |comm| {
            let rank = comm.rank();
            match comm.split((rank > 1).then_some(0), 0)? {
                Some(mut group) if rank + 2 < comm.size() => group.barrier(),
                Some(mut group) => group.broadcast(&mut Array1::<f64>::zeros(3), 0),
                None => comm.barrier(),
            }
        }),
        "types" => fail(launch, |comm| match comm.rank() + 1 == comm.size() {
            true => comm.all_reduce(&arr1(&[1u64]), &mut arr1(&[0u64]), &Op::sum()),
            false => comm.all_reduce(&arr1(&[1.0]), &mut arr1(&[0.0]), &Op::sum()),
        }),
        "late" => fail(launch, |comm| {
            if comm.rank() + 1 == comm.size() {
                std::thread::sleep(Duration::from_secs(100));
            }
            comm.barrier()
        }),
        "forever" => fail(launch, forever),
        "panics" => fail(launch, panics),
        "sweep" => sweep(launch, &Bomb::never()),
        "sweep-panics" => sweep(launch, &Bomb::lit()),
        "rows-panic" => rows_panic(launch),
        "rows-left" => rows_left(launch),
        "ends-early" => ends_early(launch),
        "deal" => deal(launch),
        "idle" => idle(launch),
        "large" => large(launch),
        "early" => fail(launch, |comm| if comm.rank() + 1 == comm.size() { Ok(()) } else { comm.barrier() }),
        "again" => again(launch),
        "owners" => owners(launch),
        "writes" => writes(launch),
        "initialised" => initialised(launch),
        "mixed" => mixed(launch),
        "aligned" => launch.fork(crate::aligned::all).map(drop),
        "nested" => nested(launch),
        "unlike" => unlike(launch),
        "wire-gather" => wire(launch, |comm, mine, _| {
            let counts = vec![mine.len(); comm.size()];
            let room = if comm.is_root() {
                Some((comm.alloc(mine.len() * comm.size())?, &counts[..]))
            } else {
                None
            };
            comm.gather_into_lease(mine, room, 0).map(drop)
        }),
        "wire-fast" => wire(launch, |comm, mine, sum| comm.all_reduce(mine, sum, &Op::sum().fast())),
        "wire-ordered" => wire(launch, |comm, mine, sum| comm.all_reduce(mine, sum, &Op::sum())),
        _ => Err(Error::other(format!("no scene is called {scene}"))),
    }
}

/// Panics at a moment that nobody knows before.
struct Bomb(Option<Instant>);

impl Bomb {
    fn never() -> Self {
        Self(None)
    }

    /// Within a second and a half.
    fn lit() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_nanos() as u64;
        Self(Some(Instant::now() + Duration::from_micros(mix(now) % 1_500_000)))
    }

    fn tick(&self) {
        if self.0.is_some_and(|at| Instant::now() > at) {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_millis();
            // At once: other processes write there too.
            let _ = std::io::stderr().write_all(format!("the moment is {now}\n").as_bytes());
            panic!("out of salt");
        }
    }
}

/// The last rank panics: between calls, or in an operation while it folds for others.
fn panics(comm: &mut Comm<'_>) -> Result<()> {
    let last = comm.rank() + 1 == comm.size();
    let bomb = if last { Bomb::lit() } else { Bomb::never() };
    let sum = Op::user(move |a: f64, b: f64| {
        bomb.tick();
        a + b
    });
    let bomb = if last { Bomb::lit() } else { Bomb::never() };
    until(comm, &sum, &bomb)
}

/// Sums and gathers until something happens.
fn forever(comm: &mut Comm<'_>) -> Result<()> {
    until(comm, &Op::sum(), &Bomb::never())
}

fn until(comm: &mut Comm<'_>, op: &Op<'_, f64>, bomb: &Bomb) -> Result<()> {
    for round in 0.. {
        let len = [1, 1_000, 100_000][round % 3];
        let mut sum = Array1::zeros(len);
        comm.all_reduce(&Array1::from_elem(len, comm.rank() as f64), &mut sum, op)?;
        bomb.tick();
        let mut all = comm.is_root().then(|| Array1::zeros(len * comm.size()));
        comm.gather(&sum, &mut all, 0)?;
        if round == 0 && comm.is_root() {
            println!("under way");
        }
    }
    Ok(())
}

/// Rows of a millisecond each, for half an hour, or until root's progress panics.
fn sweep(launch: &Launch, bomb: &Bomb) -> Result<()> {
    let rows = Array2::from_elem((1_000_000, 1), 1.0);
    let (mut said, bomb) = (false, Bomb(bomb.0));
    let progress = Box::new(move |progress: &Progress| {
        bomb.tick();
        if progress.done > 100 && !std::mem::replace(&mut said, true) {
            println!("under way");
        }
    });
    let sweep = Sweep {
        workers: launch.ranks,
        backend: launch.backend,
        progress: Some(progress),
        ..Sweep::default()
    };
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_millis(1));
        out[0] = row.values[0];
        Ok(())
    };
    sweep.run(rows.view(), || Ok(()), model).map(|_| println!("nothing happened"))
}

/// The workers of one process cannot build, from the start or after a panic each: the others do what it has not done, be it
/// root's or another one.
fn rows_left(launch: &Launch) -> Result<()> {
    for victim in ["1", "0"] {
        for schedule in [Schedule::Dynamic, Schedule::Static, Schedule::LongestFirst] {
            for at_once in [false, true] {
                rows_left_by(launch, victim, schedule, at_once)?;
            }
        }
    }
    Ok(())
}

/// Sweeps that end before all rows are done: by time, by success, by failures. All nodes end, and what is done is right.
fn ends_early(launch: &Launch) -> Result<()> {
    const ROWS: usize = 4_000;
    let rows = Array2::from_shape_fn((ROWS, 1), |(row, _)| row as f64);
    for round in 0..6 {
        for (limits, ended) in [
            (Limits { sweep: Some(Duration::from_millis(400)), ..Limits::default() }, Ended::Deadline),
            (Limits { min_done: Some(Amount::Rows(300)), ..Limits::default() }, Ended::Enough),
            (Limits { max_fails: Some(Amount::Rows(3)), ..Limits::default() }, Ended::TooManyFailed),
        ] {
            let sweep = Sweep { workers: launch.ranks, backend: launch.backend, limits, ..Sweep::default() };
            let swept = sweep.run(
                rows.view(),
                || Ok(()),
                |(), row, out| {
                    std::thread::sleep(Duration::from_millis(2));
                    if row.index % 5 == 0 {
                        return Err("refused".into());
                    }
                    assert!(row.index % 50 != 1, "every fiftieth");
                    out[0] = row.values[0] * 2.0;
                    Ok(())
                },
            )?;
            if !swept.is_root() {
                continue;
            }
            let told = format!("round {round}: {swept:?}, {:?}", swept.ended());
            assert_eq!(swept.ended(), ended, "{told}");
            let counts = swept.counts();
            assert!(counts.cancelled + counts.not_done > 0, "{told}");
            assert!(ended != Ended::Enough || counts.done >= 300, "{told}");
            assert!(ended != Ended::TooManyFailed || counts.panicked > 3, "{told}");
            for row in 0..ROWS {
                match swept.outcome(row) {
                    Outcome::Done => assert_eq!(swept.values()[[row, 0]], 2.0 * row as f64, "{told}"),
                    _ => assert!(swept.values()[[row, 0]].is_nan(), "{told}"),
                }
            }
            println!("{told}");
        }
    }
    Ok(())
}

fn rows_left_by(launch: &Launch, victim: &str, schedule: Schedule, at_once: bool) -> Result<()> {
    const ROWS: usize = 500;
    let number = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"].iter().find_map(|name| std::env::var(name).ok());
    let is_victim = number.as_deref() == Some(victim);
    // Hosts share this directory, and number their processes alike.
    let name = format!("phalanx-nodes-{}-{}", number.as_deref().unwrap_or("none"), std::process::id());
    let broken = std::env::temp_dir().join(name);
    if is_victim && at_once {
        std::fs::write(&broken, "")?;
    }
    let build = || if broken.exists() { Err("no licence".into()) } else { Ok(()) };
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_millis(1));
        if is_victim {
            std::fs::write(&broken, "")?;
            panic!("out of salt");
        }
        out[0] = row.index as f64;
        Ok(())
    };
    let costs = Costs::Given((0..ROWS).map(|row| (row * 7 % 11) as f64).collect());
    let sweep = Sweep { workers: launch.ranks, backend: launch.backend, schedule, costs, ..Sweep::default() };
    let rows = Array2::from_elem((ROWS, 1), 1.0);
    let swept = sweep.run(rows.view(), build, model);
    let _ = std::fs::remove_file(&broken);
    let swept = swept?;
    if !swept.is_root() {
        return Ok(());
    }
    let (counts, told) =
        (swept.counts(), format!("{swept:?}, {schedule:?}, process {victim}, at once: {at_once}"));
    assert!((counts.panicked == 0) == at_once && counts.panicked < ROWS / 4, "{told}");
    assert_eq!(counts.done + counts.panicked, ROWS, "{told}");
    for row in 0..ROWS {
        match swept.outcome(row) {
            Outcome::Done => assert_eq!(swept.values()[[row, 0]], row as f64),
            Outcome::Panicked(why) => assert!(why.starts_with("out of salt"), "{why}"),
            other => panic!("{other:?}: {told}"),
        }
    }
    println!("{told}");
    Ok(())
}

/// A model that panics costs its row: 20 of 20,000. Root hears how far all nodes have come.
fn rows_panic(launch: &Launch) -> Result<()> {
    const ROWS: usize = 20_000;
    let mut rows = Array2::from_shape_fn((ROWS, 2), |(row, column)| (row * (1 - column)) as f64);
    (0..20).for_each(|at| rows[[(at * 1_000 + mix(at) % 1_000) as usize, 1]] = 1.0);
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        std::thread::sleep(Duration::from_micros(500));
        assert!(row.values[1] == 0.0, "out of salt in {}", row.values[0]);
        out[0] = row.values[0].sqrt();
        Ok(())
    };
    let heard = RefCell::new(Vec::new());
    let progress: Box<dyn FnMut(&Progress)> = Box::new(|progress| heard.borrow_mut().push(*progress));
    let sweep = Sweep {
        workers: launch.ranks,
        backend: launch.backend,
        progress: Some(progress),
        ..Sweep::default()
    };
    let swept = sweep.run(rows.view(), || Ok(()), model)?;
    let heard: Vec<_> = heard.take().iter().map(|progress| (progress.done, progress.workers)).collect();
    if !swept.is_root() {
        assert!(heard.is_empty() && swept.rows() == 0, "only root tells");
        return Ok(());
    }
    for (row, values) in rows.outer_iter().enumerate() {
        let got = swept.values()[[row, 0]];
        match swept.outcome(row) {
            Outcome::Panicked(text) if values[1] == 1.0 => {
                assert!(got.is_nan() && text.starts_with(&format!("out of salt in {row} ")), "{text}");
            }
            outcome => assert_eq!((values[1], outcome, got), (0.0, Outcome::Done, (row as f64).sqrt())),
        }
    }
    let (last, before) = heard.split_last().expect("told at the end");
    assert_eq!(*last, (ROWS as u64, swept.workers.len()));
    assert!(heard.is_sorted() && heard[0].1 == swept.workers.len(), "{heard:?}");
    // Root's own workers do a third.
    assert!(before.last().is_some_and(|last| last.0 > ROWS as u64 / 2), "{heard:?}");
    println!("{ROWS} rows, of which {} panicked", rows.column(1).sum());
    Ok(())
}

/// Sweeps over a few trivial rows by many workers, dealt both ways in turn: their times on root, medians of seven.
fn deal(launch: &Launch) -> Result<()> {
    const ROWS: usize = 640;
    let rows = Array2::from_shape_fn((ROWS, 1), |(row, _)| row as f64);
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        out[0] = row.values[0];
        Ok(())
    };
    let mut times = [Vec::new(), Vec::new()];
    for round in 0..14 {
        let schedule = [Schedule::Static, Schedule::Dynamic][round % 2];
        let sweep = Sweep { workers: launch.ranks, backend: launch.backend, schedule, ..Sweep::default() };
        let start = Instant::now();
        let swept = sweep.run(rows.view(), || Ok(()), model)?;
        if swept.is_root() {
            assert!(swept.values().column(0).iter().enumerate().all(|(row, &value)| value == row as f64));
            times[round % 2].push(start.elapsed().as_secs_f64());
        }
    }
    times.iter_mut().for_each(|times| times.sort_by(f64::total_cmp));
    if let [Some(fixed), Some(dynamic)] = [&times[0], &times[1]].map(|times| times.get(3)) {
        let (workers, ratio) = (launch.ranks.unwrap_or(0), dynamic / fixed);
        println!(
            "{ROWS} rows by {workers} workers: static {fixed:.3} s, dynamic {dynamic:.3} s, ratio {ratio:.2}"
        );
    }
    Ok(())
}

/// The first of as many rows as workers keeps one worker, which tells the processor time that all processes take meanwhile: the
/// other workers wait for rows.
fn idle(launch: &Launch) -> Result<()> {
    const SECONDS: f64 = 8.0;
    let rows = Array2::<f64>::zeros((launch.ranks.unwrap_or(1), 1));
    let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
        if row.index > 0 {
            return Ok(());
        }
        // Time to fork the others and to join the job.
        std::thread::sleep(Duration::from_secs(3));
        // The second look tells how long one takes, which is not counted.
        let (first, before) = (ticks(), ticks());
        std::thread::sleep(Duration::from_secs_f64(SECONDS));
        out[0] = ticks() - before - (before - first);
        Ok(())
    };
    let sweep = Sweep { workers: launch.ranks, backend: launch.backend, ..Sweep::default() };
    let swept = sweep.run(rows.view(), || Ok(()), model)?;
    if swept.is_root() {
        let percent = swept.values()[[0, 0]] / SECONDS * 100.0;
        println!("{} workers, all but one idle: {percent:.2} % of a processor", swept.workers.len());
    }
    Ok(())
}

/// Seconds of processor time of all processes that run this program on this machine, as the kernel counts them for each.
fn ticks() -> f64 {
    let own = std::fs::read_to_string("/proc/self/comm").unwrap_or_default();
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let time = |process: std::fs::DirEntry| {
        let path = process.path();
        let same = std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name == own);
        // Nanoseconds on a processor, first.
        let text = std::fs::read_to_string(path.join("schedstat")).ok().filter(|_| same)?;
        text.split(' ').next()?.parse::<f64>().ok()
    };
    processes.filter_map(time).sum::<f64>() / 1e9
}

fn fail(launch: &Launch, body: impl for<'w> Fn(&mut Comm<'w>) -> Result<()>) -> Result<()> {
    launch.fork(body).map(|_| println!("nothing happened"))
}

/// The bits of sums of many lengths. Those in rank order are the same however ranks lie on nodes. Exact ones do not even
/// depend on who brings which operand, and how many ranks there are: ranks from the eighth on bring zeros.
fn digest(launch: &Launch) -> Result<()> {
    let digests = launch.fork(|comm| {
        let value = |operand: usize, at: usize| {
            let random = f64::from_bits(mix((operand * 7919 + at) as u64) >> 12 | 0x3FF0_0000_0000_0000).ln();
            // From 2^-40 to 2^40: every order of adding them rounds otherwise.
            random * f64::exp2((mix((operand * 31 + at) as u64) % 81) as f64 - 40.0)
        };
        let digest_of = |sum: &Array1<f64>, digest: u64| {
            sum.iter().fold(digest, |digest, &value| mix(digest ^ value.to_bits()))
        };
        let (mut ordered, mut exact) = (0, 0);
        for len in LENS {
            let mut sum = Array1::zeros(len);
            let send = Array1::from_shape_fn(len, |at| value(comm.rank(), at));
            comm.all_reduce(&send, &mut sum, &Op::sum())?;
            ordered = digest_of(&sum, ordered);
            if len > 50_000 {
                continue;
            }
            for factor in [1, 3, 5] {
                let mut again = Array1::zeros(len);
                let operand = (comm.rank() < 8).then_some(comm.rank() * factor % 8);
                let send = Array1::from_shape_fn(len, |at| operand.map_or(0.0, |operand| value(operand, at)));
                comm.all_reduce_exact(&send, &mut again)?;
                assert!(factor == 1 || again == sum, "exact sums depend on who brings what");
                sum = again;
            }
            exact = digest_of(&sum, exact);
        }
        Ok((ordered, exact))
    })?;
    if let Some(digests) = digests {
        assert!(digests.iter().all(|&digest| digest == digests[0]), "the ranks have different sums");
        println!("{} ranks: ordered {:016x}\nexact {:016x}", digests.len(), digests[0].0, digests[0].1);
    }
    Ok(())
}

/// What MPI cannot count: more than 2^31 elements, more bytes than that from each rank, more than 2^32 in all. Root's room
/// is never more than once in memory.
fn large(launch: &Launch) -> Result<()> {
    const EACH: usize = (5 << 30) / 2 + 4097;
    let byte = |rank: usize, at: usize| (mix((at / 4096) as u64) as u8).wrapping_add(rank as u8 + at as u8);
    let done = launch.fork(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        // All from root's own and one other: the others bring nothing.
        let brings = |rank: usize| if rank == 0 || rank + 1 == size { EACH } else { 0 };
        let mine = Array1::from_shape_fn(brings(rank), |at| byte(rank, at));
        let counts: Vec<usize> = (0..size).map(brings).collect();
        let mut all = Array1::<u8>::zeros(if comm.is_root() { 2 * EACH } else { 0 });
        comm.gather_varcount(&mine, &mut comm.is_root().then_some(&mut all), &counts[..], 0)?;
        let wrong = |rank: usize| {
            let part = &all.as_slice().expect("contiguous")[if rank == 0 { 0 } else { EACH }..][..EACH];
            part.iter().enumerate().position(|(at, &got)| got != byte(rank, at))
        };
        if comm.is_root() {
            assert_eq!((wrong(0), wrong(size - 1)), (None, None), "the first wrong bytes");
        }
        drop((mine, all));
        // The same way back, to all: 2^31 elements and some.
        let mut data = Array1::from_shape_fn((1 << 31) + 4097, |at| if rank == 0 { byte(7, at) } else { 0 });
        comm.broadcast(&mut data, 0)?;
        assert!(data.iter().enumerate().all(|(at, &got)| got == byte(7, at)), "broadcast");
        drop(data);
        if size > 2 {
            return Ok(()); // it would need 16 GiB
        }
        let mut sum = Array1::zeros((1 << 31) + 4097);
        comm.all_reduce(&Array1::from_elem(sum.len(), rank as u8 + 1), &mut sum, &Op::sum())?;
        let want = (1..=size as u8).sum::<u8>();
        assert!(sum.iter().all(|&got| got == want), "sum");
        Ok(())
    })?;
    if done.is_some() {
        println!("gathered {} bytes: 1 passed, 0 failed, 0 skipped", 2 * EACH);
    }
    Ok(())
}

/// Eight times the same with 8 MiB a rank: so that what starting costs is little beside it.
fn wire(
    launch: &Launch,
    call: impl Fn(&mut Comm<'_>, &Array1<f64>, &mut Array1<f64>) -> Result<()>,
) -> Result<()> {
    let body = |comm: &mut Comm<'_>| {
        let (mine, mut sum) = (Array1::from_elem(1 << 20, comm.rank() as f64), Array1::zeros(1 << 20));
        (0..8).try_for_each(|_| call(comm, &mine, &mut sum))
    };
    launch.fork(body).map(|_| println!("8 times"))
}

/// Worlds and sweeps in one program.
fn mixed(launch: &Launch) -> Result<()> {
    for round in 1..4u64 {
        let sums = launch.fork(|comm| {
            let mut sum = arr1(&[0]);
            comm.all_reduce(&arr1(&[round]), &mut sum, &Op::sum())?;
            Ok(sum[0])
        })?;
        let rows = Array2::from_shape_fn((500, 1), |(row, _)| row as f64);
        let sweep = Sweep { workers: launch.ranks, backend: launch.backend, ..Sweep::default() };
        let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            out[0] = row.values[0] * round as f64;
            Ok(())
        };
        let swept = sweep.run(rows.view(), || Ok(()), model)?;
        assert_eq!(sums.is_some(), swept.is_root());
        if let Some(sums) = sums {
            assert!(sums.iter().all(|&sum| sum == round * sums.len() as u64), "{sums:?}");
            assert_eq!(swept.values(), rows * round as f64);
        }
    }
    println!("1 passed, 0 failed, 0 skipped");
    Ok(())
}

/// What a rank starts by itself, and root in its progress, is its own: the others wait in the world's next call.
fn nested(launch: &Launch) -> Result<()> {
    fn alone() -> Result<()> {
        assert_eq!(phalanx::launch(2, |comm| Ok(comm.rank()))?, Some(vec![0, 1]));
        let rows = Array2::from_shape_fn((50, 1), |(row, _)| row as f64);
        let model = |(): &mut (), row: &Row<'_>, out: &mut [f64]| {
            out[0] = row.values[0];
            Ok(())
        };
        let sweep = Sweep { workers: Some(2), ..Sweep::default() };
        let swept = sweep.run(rows.view(), || Ok(()), model)?;
        assert!(swept.is_root(), "a rank is root of its own sweep");
        assert_eq!(swept.values(), rows);
        let mut manager = create_parallel_manager("auto", 2)?;
        let scattered = manager.scatter(|| Ok(()), |x: &[u64], ()| Ok(x.iter().sum::<u64>()), &[1, 2, 3])?;
        assert_eq!(manager.gather(scattered)?.iter().map(|part| part.results).sum::<u64>(), 6);
        for error in [
            Launch { ranks: Some(2), backend: Backend::Hybrid, ..Launch::default() }.fork(|_| Ok(())).err(),
            create_parallel_manager("mpi", 2).err(),
        ] {
            let error = error.expect("a rank joins nothing").to_string();
            assert!(error.contains("joins the processes"), "{error}");
        }
        Ok(())
    }
    launch.fork(|comm| {
        for who in [0, comm.size() - 1] {
            if comm.rank() == who {
                alone()?;
            }
            // Its death would still be heard.
            comm.barrier()?;
        }
        alone()?;
        let mut sum = arr1(&[0]);
        comm.all_reduce(&arr1(&[1]), &mut sum, &Op::sum())?;
        assert_eq!(sum[0], comm.size());
        Ok(())
    })?;
    let mut once = false;
    // The last call is after the end.
    let progress: Box<dyn FnMut(&Progress)> = Box::new(|progress| {
        if !std::mem::replace(&mut once, true) || progress.done == progress.rows {
            alone().expect("root may sweep in its progress");
        }
    });
    let sweep = Sweep { workers: launch.ranks, progress: Some(progress), ..Sweep::default() };
    let rows = Array2::from_elem((300, 1), 1.0);
    let model = |(): &mut (), _: &Row<'_>, _: &mut [f64]| {
        std::thread::sleep(Duration::from_millis(3));
        Ok(())
    };
    sweep.run(rows.view(), || Ok(()), model)?;
    // Managers beside each other, and a sweep of all meanwhile.
    let managers = [create_parallel_manager("auto", 1)?, create_parallel_manager("auto", 1)?];
    let sweep = Sweep { workers: launch.ranks, ..Sweep::default() };
    let root = sweep.run(rows.view(), || Ok(()), model)?.is_root();
    for mut manager in managers {
        assert_eq!(manager.is_root_process(), root);
        let size = manager.number_of_worker_processes();
        assert!(size > 1, "the job's processes");
        let mut sum = arr1(&[0]);
        manager.sum_values_and_sync(&arr1(&[1]), &mut sum)?;
        assert_eq!(sum[0], size);
    }
    if root {
        println!("1 passed, 0 failed, 0 skipped");
    }
    Ok(())
}

/// All ranks have the same bits, also of a function that gives others on other hosts: one by the mathematics library, which
/// goes by the processor.
fn unlike(launch: &Launch) -> Result<()> {
    let done = launch.fork(|comm| {
        let soft = |a: f64, b: f64| (a.exp() + b.exp()).ln();
        let value = |rank: usize, at: usize| (mix((rank * 7919 + at) as u64) % 100_000) as f64 / 9_999.7;
        let digest = |all: ndarray::ArrayView1<'_, f64>| {
            all.iter().fold(0, |digest, value| mix(digest ^ value.to_bits()))
        };
        fn are_alike(comm: &mut Comm<'_>, digest: u64) -> Result<bool> {
            let mut digests = Array1::zeros(comm.size());
            comm.all_gather(&arr1(&[digest]), &mut digests)?;
            Ok(digests.iter().all(|&other| other == digest))
        }
        let own = Array1::from_shape_fn(100_000, |at| soft(value(0, at), value(1, at)));
        let unlike = !are_alike(comm, digest(own.view()))?;
        for len in LENS {
            let mine = Array1::from_shape_fn(len, |at| value(comm.rank(), at));
            let op = Op::user(soft);
            for round in 0..20 {
                let mine = &mine + round as f64;
                let mut folded = Array1::zeros(len);
                comm.all_reduce(&mine, &mut folded, &op)?;
                let room = comm.alloc(len)?;
                let shared = comm.all_reduce_into_lease(&mine, room, &op)?;
                assert_eq!(digest(shared.view()), digest(folded.view()), "into a lease, {len}");
                assert!(are_alike(comm, digest(folded.view()))?, "{len} elements: other bits on other ranks");
                if len > 10_000 {
                    break;
                }
            }
        }
        Ok(unlike)
    })?;
    if let Some(unlike) = done {
        println!(
            "the hosts are {}: 1 passed, 0 failed, 0 skipped",
            if unlike[0] { "unlike" } else { "alike" }
        );
    }
    Ok(())
}

/// Somebody else has initialised MPI, speaks it before and after, and finalises it.
fn initialised(launch: &Launch) -> Result<()> {
    use mpi::traits::CommunicatorCollectives;
    let universe = mpi::initialize().ok_or_else(|| Error::other("MPI is there already"))?;
    let sum = |value: i32| {
        let mut sum = 0;
        universe.world().all_reduce_into(&value, &mut sum, mpi::collective::SystemOperation::sum());
        sum
    };
    let processes = sum(1);
    let sums = launch.fork(|comm| {
        let mut sum = arr1(&[0]);
        comm.all_reduce(&arr1(&[comm.rank() as u64]), &mut sum, &Op::sum())?;
        Ok(sum[0] as usize)
    })?;
    assert_eq!(sum(1), processes);
    if let Some(sums) = sums {
        let size = sums.len();
        assert_eq!((size, sums[0]), (processes as usize, size * (size - 1) / 2));
        println!("1 passed, 0 failed, 0 skipped");
    }
    Ok(())
}

/// A message that nobody received is not the next world's; and a rank may leave while its neighbour still receives.
fn again(launch: &Launch) -> Result<()> {
    launch.fork(|comm| {
        let to = (comm.rank() + 1) % comm.size();
        comm.send(&arr1(&[1u64]), to)
    })?;
    let sums = launch.fork(|comm| {
        let mut sum = 0;
        match comm.rank() {
            0 => {
                for from in 1..comm.size() {
                    let mut came = arr1(&[0u64]);
                    comm.recv(&mut came, from)?;
                    sum += came[0];
                }
            }
            rank => comm.send(&arr1(&[rank as u64 + 100]), 0)?,
        }
        Ok(sum)
    })?;
    if let Some(sums) = sums {
        let size = sums.len() as u64;
        assert_eq!(sums[0], (size - 1) * 100 + size * (size - 1) / 2);
        println!("1 passed, 0 failed, 0 skipped");
    }
    Ok(())
}

/// A result that gives away an array which its rank has leaked, and still looks at.
struct Away(std::result::Result<Option<&'static Lease<u64, Ix1>>, Option<Lease<u64, Ix1>>>);

impl Serialize for Away {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        match &self.0 {
            Ok(leaked) => leaked.serialize(serializer),
            Err(owned) => owned.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Away {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Away, D::Error> {
        Option::deserialize(deserializer).map(|lease| Away(Err(lease)))
    }
}

/// What a rank that lives on looks at stays as it is, whoever gets its results; what a program made before, all
/// ranks read in place.
fn owners(launch: &Launch) -> Result<()> {
    thread_local! {
        static KEPT: std::cell::Cell<Option<ArrayView1<'static, u64>>> = const { std::cell::Cell::new(None) };
    }
    let mut table = SharedArray::<u64, Ix1>::zeros(1 << 18)?;
    table.view_mut().iter_mut().zip(0..).for_each(|(value, at)| *value = at);
    let view = table.view();
    let given = launch.fork(|comm| {
        let held = vec![7u8; 4 << 20];
        assert_eq!(view.sum() + u64::from(held[5]), (1 << 17) * ((1 << 18) - 1) + 7);
        let mut lease = comm.alloc::<u64, _>(4)?;
        lease.view_mut().fill(comm.rank() as u64);
        let leaked: &'static Lease<_, _> = Box::leak(Box::new(lease));
        KEPT.set(Some(leaked.view()));
        // Only root's node can give arrays to root.
        let mut first = arr1(&[0u64]);
        comm.split_nodes()?.all_reduce(&arr1(&[comm.rank() as u64]), &mut first, &Op::min())?;
        Ok(Away(Ok((first[0] == 0).then_some(leaked))))
    })?;
    let mine = KEPT.get().map(|view| view[1]);
    if let Some(given) = given {
        for (rank, Away(lease)) in given.into_iter().enumerate() {
            let Err(Some(mut lease)) = lease else { continue };
            assert_eq!(lease.view().to_vec(), [rank as u64; 4]);
            lease.view_mut().fill(99);
        }
    }
    launch.fork(|comm| comm.barrier())?;
    assert_eq!(KEPT.get().map(|view| view[1]), mine, "what this rank still looks at has changed");
    println!("1 passed, 0 failed, 0 skipped");
    Ok(())
}

/// The process that leads a crew is a rank like its others: what it made before, no rank writes.
fn writes(launch: &Launch) -> Result<()> {
    let mut table = SharedArray::<u64, Ix1>::zeros(1000)?;
    let view = RefCell::new(table.view_mut());
    launch.fork(|comm| {
        comm.barrier()?;
        if comm.is_root() {
            view.borrow_mut().fill(1);
        }
        comm.barrier()
    })?;
    Ok(())
}

/// WaterTAP's operations by their names, in a program that every process runs from its start.
fn manager() -> Result<()> {
    let mut manager = create_parallel_manager("MPI", 1)?;
    let (rank, size) = (manager.get_rank(), manager.number_of_worker_processes());
    assert_eq!(manager.is_root_process(), rank == 0);
    let samples: Vec<u64> = (0..101).collect();
    let scattered = manager.scatter(
        || Ok(3),
        |mine, factor| Ok(mine.iter().map(|x| x * *factor).sum::<u64>()),
        &samples,
    )?;
    let gathered = manager.gather(scattered)?;
    assert_eq!(gathered.len(), size.min(101));
    assert_eq!(gathered.iter().map(|part| part.results).sum::<u64>(), 3 * 5050);
    let mut sum = arr1(&[0u64; 3]);
    manager.sum_values_and_sync(&arr1(&[rank as u64, 1, 0]), &mut sum)?;
    assert_eq!(sum, arr1(&[(size * (size - 1) / 2) as u64, size as u64, 0]));
    let counts: Vec<usize> = (1..=size).collect();
    let mut all = Array1::zeros(size * (size + 1) / 2);
    manager.gather_arrays_to_root(&Array1::from_elem(rank + 1, rank as f64), (&mut all, &counts))?;
    if manager.is_root_process() {
        assert_eq!(all[all.len() - 1], (size - 1) as f64);
        println!("1 passed, 0 failed, 0 skipped");
    }
    Ok(())
}
