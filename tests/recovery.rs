//! Worlds that outlive their ranks: shrink, respawn and agree, whatever dies, and when.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array1, Ix1, arr1};
use phalanx::{Comm, Error, Launch, Op, RankStatus, Result, SharedArray};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};
use support::Case;

const CASES: &[Case] = &[
    ("survivors_go_on_whoever_dies", survivors_go_on_whoever_dies),
    ("kill_until_one_is_left", kill_until_one_is_left),
    ("respawned_ranks_take_their_place", respawned_ranks_take_their_place),
    ("respawn_a_hundred_times", respawn_a_hundred_times),
    ("respawn_after_shrink_restores_all", respawn_after_shrink_restores_all),
    ("a_rank_that_failed_in_words_is_replaced", a_rank_that_failed_in_words_is_replaced),
    ("death_during_recovery", death_during_recovery),
    ("agreement_is_uniform_whoever_dies", agreement_is_uniform_whoever_dies),
    ("agree_without_any_death", agree_without_any_death),
    ("who_does_not_come_to_agree_is_ended_and_named", who_does_not_come_to_agree_is_ended_and_named),
    ("different_wishes_are_told_to_all", different_wishes_are_told_to_all),
    ("agree_against_a_collective_is_a_mismatch", agree_against_a_collective_is_a_mismatch),
    ("what_was_split_off_is_stale", what_was_split_off_is_stale),
    ("messages_and_arrays_after_recovery", messages_and_arrays_after_recovery),
    ("who_has_left_cannot_be_respawned", who_has_left_cannot_be_respawned),
    ("who_does_not_come_is_ended_at_the_deadline", who_does_not_come_is_ended_at_the_deadline),
    ("a_stopped_rank_is_waited_for_without_deadline", a_stopped_rank_is_waited_for_without_deadline),
    ("shrink_without_any_death", shrink_without_any_death),
    ("a_death_that_nobody_answers_is_the_callers", a_death_that_nobody_answers_is_the_callers),
    ("the_last_one_dies", the_last_one_dies),
    ("worlds_that_do_not_recover_say_so", worlds_that_do_not_recover_say_so),
    ("killed_zygote_ends_who_asks", killed_zygote_ends_who_asks),
    ("a_rank_that_becomes_another_program_is_dead", a_rank_that_becomes_another_program_is_dead),
    ("a_failed_rank_that_lingers_is_replaced", a_failed_rank_that_lingers_is_replaced),
    ("counters_wrap_in_every_epoch", counters_wrap_in_every_epoch),
];

fn main() -> std::process::ExitCode {
    support::main(CASES)
}

fn recovering(ranks: usize) -> Launch {
    Launch { ranks: Some(ranks), recover: true, heap: Some(64 << 20), ..support::world() }
}

fn die() -> ! {
    let _ = Command::new("kill").args(["-KILL", &std::process::id().to_string()]).status();
    std::thread::sleep(Duration::from_secs(100));
    unreachable!("killed")
}

/// The sum of everyone's number plus one, in one of several ways.
fn sum(comm: &mut Comm<'_>, way: usize) -> Result<u64> {
    let mine = arr1(&[comm.rank() as u64 + 1]);
    let (size, mut sum) = (comm.size(), arr1(&[0]));
    match way % 4 {
        0 => comm.all_reduce(&mine, &mut sum, &Op::sum())?,
        1 => {
            let mut all = Array1::zeros(size);
            comm.all_gather(&mine, &mut all)?;
            sum[0] = all.sum();
        }
        2 => {
            let long = Array1::from_elem(100_000, mine[0]);
            let mut all = Array1::zeros(100_000);
            comm.all_reduce(&long, &mut all, &Op::sum())?;
            assert!(all.iter().all(|&value| value == all[0]));
            sum[0] = all[0];
        }
        _ => {
            let mut all = comm.is_root().then(|| Array1::zeros(size));
            comm.gather(&mine, &mut all, 0)?;
            sum[0] = all.map_or(0, |all: Array1<u64>| all.sum());
            comm.broadcast(&mut sum, 0)?;
        }
    }
    assert_eq!(sum[0], (size * (size + 1) / 2) as u64);
    Ok(sum[0])
}

/// Is it the news that others have died?
fn is_death(error: &Error) -> bool {
    matches!(
        error,
        Error::PeerDied { .. } | Error::PeerFailed { .. } | Error::Ended { .. } | Error::PeerLeft { .. }
    )
}

/// Sums until it works, shrinking after each death.
fn sum_of_survivors(comm: &mut Comm<'_>, way: usize) -> Result<u64> {
    loop {
        match sum(comm, way) {
            Err(error) if is_death(&error) => comm.shrink()?,
            done => return done,
        }
    }
}

fn survivors_go_on_whoever_dies() {
    for size in [2, 3, 4, 8] {
        for victim in [0, size / 2, size - 1] {
            for way in 0..4 {
                let sums = recovering(size).fork(|comm| {
                    sum(comm, way)?;
                    if comm.rank() == victim {
                        die();
                    }
                    let rank = comm.rank();
                    let sum = sum_of_survivors(comm, way)?;
                    assert_eq!((comm.epoch(), comm.size()), (1, size - 1));
                    assert_eq!(comm.rank(), if rank > victim { rank - 1 } else { rank });
                    Ok(sum)
                });
                let expected = (size * (size - 1) / 2) as u64;
                assert_eq!(sums.unwrap(), Some(vec![expected; size - 1]), "{size} ranks, {victim} dies");
            }
        }
    }
}

fn kill_until_one_is_left() {
    for round in 0..20 {
        let left = recovering(8).fork(|comm| {
            while comm.size() > 1 {
                // A different one each time.
                let victim = (round * 7 + comm.epoch() as usize * 3) % comm.size();
                if comm.rank() == victim {
                    die();
                }
                let before = comm.size();
                while comm.size() == before {
                    sum_of_survivors(comm, round)?;
                }
            }
            Ok(comm.epoch())
        });
        assert_eq!(left.unwrap(), Some(vec![7]), "round {round}");
    }
}

/// Runs `steps` steps of which each is a sum; whoever `dies` says dies before its step, once. Returns (steps, epoch).
fn steps(
    comm: &mut Comm<'_>,
    steps: u64,
    dies: impl Fn(usize, u64, u32) -> bool,
    recover: fn(&mut Comm<'_>) -> Result<()>,
) -> Result<(u64, u32)> {
    let mut step = arr1(&[0u64]);
    let mut fresh = comm.epoch() > 0;
    while step[0] < steps {
        let mut one = |comm: &mut Comm<'_>| {
            if std::mem::take(&mut fresh) {
                // Whoever is the furthest knows how far all are: a step that some have finished was finished.
                let mine = step.clone();
                comm.all_reduce(&mine, &mut step, &Op::max())?;
            }
            if dies(comm.rank(), step[0], comm.epoch()) {
                die();
            }
            sum(comm, step[0] as usize).map(drop)
        };
        match one(comm) {
            Ok(()) => step[0] += 1,
            Err(error) if is_death(&error) => {
                recover(comm)?;
                fresh = true;
            }
            Err(other) => return Err(other),
        }
    }
    Ok((step[0], comm.epoch()))
}

fn respawned_ranks_take_their_place() {
    for size in [1, 2, 3, 5] {
        for victim in [0, size - 1] {
            let dies = |rank, step, epoch| rank == victim && step == 3 && epoch == 0;
            let done = recovering(size).fork(|comm| steps(comm, 8, dies, |comm| comm.respawn()));
            if size == 1 {
                // Nobody is left to ask.
                assert!(matches!(done, Err(Error::PeerDied { rank: 0, .. })), "{done:?}");
            } else {
                assert_eq!(done.unwrap(), Some(vec![(8, 1); size]), "{size} ranks, {victim} dies");
            }
        }
    }
}

fn respawn_a_hundred_times() {
    let dies = |rank, step, epoch| epoch == step as u32 && rank == epoch as usize % 4 && step < 100;
    let done = recovering(4).fork(|comm| steps(comm, 101, dies, |comm| comm.respawn()));
    assert_eq!(done.unwrap(), Some(vec![(101, 100); 4]));
}

fn respawn_after_shrink_restores_all() {
    let done = recovering(4).fork(|comm| {
        if comm.epoch() == 0 {
            if [1, 2].contains(&comm.rank()) {
                die();
            }
            while comm.size() > 2 {
                sum_of_survivors(comm, 0)?;
            }
            comm.respawn()?;
        }
        sum(comm, 1)?;
        Ok((comm.rank(), comm.size()))
    });
    assert_eq!(done.unwrap(), Some((0..4).map(|rank| (rank, 4)).collect()));
}

fn a_rank_that_failed_in_words_is_replaced() {
    for panics in [true, false] {
        let done = recovering(3).fork(|comm| {
            if comm.rank() == 1 && comm.epoch() == 0 {
                assert!(!panics, "planned");
                return Err(Error::other("planned"));
            }
            if let Err(error) = sum(comm, 0) {
                assert!(
                    matches!(&error, Error::PeerFailed { rank: 1, text, .. } if text.contains("planned")),
                    "{error}"
                );
                comm.respawn()?;
                sum(comm, 0)?;
            }
            Ok(comm.epoch())
        });
        assert_eq!(done.unwrap(), Some(vec![1; 3]));
    }
}

fn death_during_recovery() {
    for round in 0..30 {
        let done = recovering(5).fork(|comm| {
            let rank = comm.rank();
            if rank == 0 {
                die();
            }
            if sum(comm, 0).is_err() && rank == 1 + round % 4 {
                // From within: shortly before, while or after the zygote decides.
                let late = format!("sleep 0.00{}; kill -KILL {}", round % 7, std::process::id());
                Command::new("sh").args(["-c", &late]).spawn()?;
            }
            comm.shrink()?;
            let until = Instant::now() + Duration::from_secs(20);
            while comm.size() > 3 {
                sum_of_survivors(comm, 1)?;
                assert!(Instant::now() < until, "the second one dies too");
            }
            sum(comm, 2)
        });
        assert_eq!(done.unwrap(), Some(vec![6; 3]), "round {round}");
    }
}

fn agreement_is_uniform_whoever_dies() {
    for round in 0..50 {
        let agreements = recovering(6).fork(|comm| {
            let rank = comm.rank();
            if rank == round % 6 {
                die();
            }
            if rank == (round + 3) % 6 {
                let late = format!("sleep 0.00{}; kill -KILL {}", round % 5, std::process::id());
                Command::new("sh").args(["-c", &late]).spawn()?;
            }
            let mut seen = vec![];
            for _ in 0..20 {
                let agreement = comm.agree(!(1 << rank))?;
                seen.push((agreement.value, agreement.gone));
                std::thread::sleep(Duration::from_micros(500));
            }
            Ok(seen)
        });
        // The dead are nobody's business but the caller's here: nobody has shrunk.
        let error = agreements.unwrap_err();
        assert!(matches!(error, Error::PeerDied { .. }), "{error}");
    }
    for round in 0..50 {
        let agreements = recovering(6).fork(|comm| {
            let rank = comm.rank();
            if rank == round % 6 {
                die();
            }
            if rank == (round + 3) % 6 {
                let late = format!("sleep 0.00{}; kill -KILL {}", round % 5, std::process::id());
                Command::new("sh").args(["-c", &late]).spawn()?;
            }
            let mut seen = vec![];
            while seen.last().is_none_or(|(_, gone): &(u64, Vec<usize>)| gone.len() < 2) {
                let agreement = comm.agree(!(1 << rank))?;
                seen.push((agreement.value, agreement.gone));
            }
            comm.shrink()?;
            Ok(seen)
        });
        let agreements = agreements.unwrap().unwrap();
        assert_eq!(agreements.len(), 4, "round {round}");
        assert!(agreements.iter().all(|seen| *seen == agreements[0]), "round {round}: {agreements:?}");
        for (value, gone) in &agreements[0] {
            let there =
                (0..6).filter(|rank| !gone.contains(rank)).fold(u64::MAX, |all, rank| all & !(1 << rank));
            assert_eq!(*value, there, "the value is that of those who are there");
        }
    }
}

fn who_does_not_come_to_agree_is_ended_and_named() {
    let world = Launch { deadline: Some(Duration::from_secs(1)), ..recovering(3) };
    let gone = world.fork(|comm| {
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_secs(100));
        }
        let agreed = comm.agree(1)?;
        while let Err(Error::PeerDied { rank: 1, .. }) = comm.barrier() {
            comm.shrink()?;
        }
        assert_eq!((comm.size(), sum(comm, 0)?), (2, 3));
        Ok(agreed.gone)
    });
    assert_eq!(gone.unwrap().unwrap(), [[1], [1]]);
}

fn agree_without_any_death() {
    let values = recovering(3).fork(|comm| {
        let mut values = vec![];
        for round in 0..100u64 {
            sum(comm, 0)?;
            let agreement = comm.agree(round | 1 << (40 + comm.rank()))?;
            assert!(agreement.gone.is_empty());
            values.push(agreement.value);
        }
        Ok(values)
    });
    assert_eq!(values.unwrap(), Some(vec![(0..100).collect(); 3]));
    assert_eq!(Comm::solo().unwrap().agree(5).unwrap().value, 5);
}

fn different_wishes_are_told_to_all() {
    let texts = recovering(3).fork(|comm| {
        let error = match comm.rank() {
            0 => comm.shrink(),
            1 => comm.respawn(),
            _ => comm.agree(0).map(drop),
        };
        let text = error.unwrap_err().to_string();
        // Then they come to terms.
        comm.shrink()?;
        sum(comm, 0)?;
        Ok(text)
    });
    for text in texts.unwrap().unwrap() {
        for row in
            ["rank 0: shrink, source line", "rank 1: respawn, source line", "rank 2: agree, source line"]
        {
            assert!(text.contains(row), "{text}");
        }
    }
}

fn agree_against_a_collective_is_a_mismatch() {
    let texts = recovering(2).fork(|comm| {
        let error = if comm.is_root() { comm.barrier().unwrap_err() } else { comm.agree(1).unwrap_err() };
        comm.shrink()?;
        sum(comm, 0)?;
        Ok(error.to_string())
    });
    for text in texts.unwrap().unwrap() {
        assert!(text.contains("rank 0: barrier") && text.contains("rank 1: agree"), "{text}");
    }
}

fn what_was_split_off_is_stale() {
    let done = recovering(4).fork(|comm| {
        let mut half = comm.split(Some(comm.rank() as u64 % 2), 0)?.unwrap();
        sum(&mut half, 0)?;
        // Whoever is through knows that all have begun, and they that they are through.
        comm.barrier()?;
        if comm.rank() == 3 {
            die();
        }
        let _ = sum(comm, 0);
        let text = half.shrink().unwrap_err().to_string();
        assert!(text.contains("split off"), "{text}");
        comm.shrink()?;
        for _ in 0..3 {
            let error = sum(&mut half, 0).unwrap_err();
            assert!(matches!(error, Error::Stale { .. }), "{error}");
        }
        drop(half);
        let mut again = comm.split(Some(0), 0)?.unwrap();
        sum(&mut again, 0)
    });
    assert_eq!(done.unwrap(), Some(vec![6; 3]));
}

fn messages_and_arrays_after_recovery() {
    let first = SharedArray::<u64, Ix1>::zeros(8).unwrap();
    let second = SharedArray::<u64, Ix1>::zeros(9).unwrap();
    let done = recovering(4).fork(|comm| {
        let mut part = comm.open(&first)?;
        part.view_mut().fill(7);
        // What is under way when a rank dies is lost, and is not received later.
        for _ in 0..20 {
            comm.send(&arr1(&[99u64; 50]), (comm.rank() + 1) % 4)?;
        }
        // Whoever is through knows that all have sent.
        comm.barrier()?;
        if comm.rank() == 2 {
            die();
        }
        let _ = comm.barrier();
        comm.shrink()?;
        let (rank, size) = (comm.rank(), comm.size());
        let error = part.publish(comm).err().unwrap();
        assert!(matches!(error, Error::BadArgument { .. }), "{error}");
        let mut got = arr1(&[0u64; 50]);
        for round in 0..100 {
            comm.send(&Array1::from_elem(50, (round * 10 + rank) as u64), (rank + 1) % size)?;
            comm.recv(&mut got, (rank + size - 1) % size)?;
            assert!(got.iter().all(|&value| value == (round * 10 + (rank + size - 1) % size) as u64));
        }
        let mut lease = comm.alloc::<u64, _>(1000)?;
        lease.view_mut().fill(rank as u64);
        comm.send_lease(lease, (rank + 1) % size)?;
        let lease = comm.recv_lease::<u64, Ix1>(1000, (rank + size - 1) % size)?;
        assert_eq!(lease.view()[999], ((rank + size - 1) % size) as u64);
        let mut part = comm.open(&second)?;
        part.view_mut().fill(rank as u64);
        let whole = part.publish(comm)?;
        Ok(whole.view().sum())
    });
    assert_eq!(done.unwrap(), Some(vec![9; 3]));
}

fn who_has_left_cannot_be_respawned() {
    let done = recovering(3).fork(|comm| {
        if comm.rank() == 2 {
            return Ok(0);
        }
        let error = comm.barrier().unwrap_err();
        assert!(matches!(error, Error::PeerLeft { rank: 2, .. } | Error::Ended { .. }), "{error}");
        let error = comm.respawn().unwrap_err();
        assert!(matches!(error, Error::PeerLeft { rank: 2, .. }), "{error}");
        comm.shrink()?;
        sum(comm, 0)
    });
    assert_eq!(done.unwrap(), Some(vec![3, 3, 0]), "who has left has a result too");
}

fn who_does_not_come_is_ended_at_the_deadline() {
    let world = Launch { deadline: Some(Duration::from_millis(300)), ..recovering(3) };
    let start = Instant::now();
    let done = world.fork(|comm| {
        if comm.rank() == 1 {
            Command::new("kill").args(["-STOP", &std::process::id().to_string()]).status()?;
        }
        let error = comm.barrier().unwrap_err();
        let text = error.to_string();
        let told = matches!(&error, Error::Timeout { missing, .. } if missing[0].rank == 1 && missing[0].status == RankStatus::Stopped);
        assert!(told || matches!(error, Error::Ended { .. }), "{text}");
        comm.shrink()?;
        sum(comm, 0)
    });
    assert_eq!(done.unwrap(), Some(vec![3, 3]));
    assert!(start.elapsed() < Duration::from_secs(10));
}

fn a_stopped_rank_is_waited_for_without_deadline() {
    let done = recovering(3).fork(|comm| {
        if comm.rank() == 1 {
            let me = std::process::id();
            Command::new("sh").args(["-c", &format!("sleep 0.5; kill -CONT {me}")]).spawn()?;
            Command::new("kill").args(["-STOP", &me.to_string()]).status()?;
        }
        let agreement = comm.agree(6)?;
        sum(comm, 0)?;
        Ok((agreement.value, agreement.gone))
    });
    assert_eq!(done.unwrap(), Some(vec![(6, vec![]); 3]));
}

fn shrink_without_any_death() {
    let done = recovering(3).fork(|comm| {
        for _ in 0..50 {
            comm.shrink()?;
            sum(comm, 0)?;
            comm.respawn()?;
            sum(comm, 1)?;
        }
        Ok(comm.epoch())
    });
    assert_eq!(done.unwrap(), Some(vec![100; 3]));
}

fn a_death_that_nobody_answers_is_the_callers() {
    let done = recovering(3).fork(|comm| {
        if comm.rank() == 2 {
            die();
        }
        assert!(comm.barrier().is_err());
        Ok(())
    });
    assert!(matches!(done, Err(Error::PeerDied { rank: 2, .. })), "{done:?}");
}

fn the_last_one_dies() {
    let done = recovering(2).fork(|comm| {
        if comm.rank() == 0 {
            die();
        }
        assert!(comm.barrier().is_err());
        comm.shrink()?;
        assert_eq!(comm.size(), 1);
        sum(comm, 0)?;
        die();
        #[expect(unreachable_code, reason = "a type for the closure")]
        Ok(())
    });
    assert!(matches!(done, Err(Error::PeerDied { rank: 1, .. })), "{done:?}");
}

fn worlds_that_do_not_recover_say_so() {
    let done = support::launch(2, |comm| {
        let text = comm.shrink().unwrap_err().to_string();
        assert!(text.contains("set `recover`"), "{text}");
        sum(comm, 0)
    });
    assert_eq!(done.unwrap(), Some(vec![3, 3]));
    let error = recovering(2).threads(|_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("needs `fork`"), "{error}");
}

fn killed_zygote_ends_who_asks() {
    let start = Instant::now();
    let done = recovering(3).fork(|comm| {
        if comm.rank() == 1 {
            std::thread::sleep(Duration::from_millis(100));
            let zygote = std::os::unix::process::parent_id().to_string();
            Command::new("kill").args(["-KILL", &zygote]).status()?;
            std::thread::sleep(Duration::from_secs(100));
        }
        comm.shrink()
    });
    assert!(matches!(done, Err(Error::Supervisor { .. })), "{done:?}");
    assert!(start.elapsed() < Duration::from_secs(5));
}

/// The kernel tells its peers that it is dead, but its process goes on as another program.
fn a_rank_that_becomes_another_program_is_dead() {
    let done = recovering(3).fork(|comm| {
        if comm.rank() == 1 && comm.epoch() == 0 {
            return Err(Error::other(Command::new("sleep").arg("100").exec()));
        }
        while let Err(error) = sum(comm, 0) {
            assert!(is_death(&error), "{error}");
            comm.respawn()?;
        }
        Ok(comm.size())
    });
    assert_eq!(done.unwrap(), Some(vec![3; 3]));
}

/// A failed rank's process lingers while the others shrink and respawn: its slot is not filled twice.
fn a_failed_rank_that_lingers_is_replaced() {
    for _ in 0..20 {
        let done = recovering(3).fork(|comm| {
            if comm.rank() == 1 && comm.epoch() == 0 {
                Command::new("sleep").arg("100").spawn()?;
                return Err(Error::other("planned"));
            }
            if comm.epoch() == 0 {
                while comm.size() == 3 {
                    sum_of_survivors(comm, 0)?;
                }
                comm.respawn()?;
            }
            (0..4).try_for_each(|way| sum(comm, way).map(drop))?;
            Ok(comm.size())
        });
        assert_eq!(done.unwrap(), Some(vec![3; 3]));
    }
}

fn counters_wrap_in_every_epoch() {
    let world = Launch { first_sequence: u32::MAX - 3, ..recovering(4) };
    let dies = |rank, step, epoch| epoch * 10 == step as u32 && rank == epoch as usize % 4 && step < 50;
    let done = world.fork(|comm| {
        let (rank, size) = (comm.rank(), comm.size());
        if size == 4 && comm.epoch() == 0 {
            comm.send(&arr1(&[1u8; 100]), (rank + 1) % 4)?;
            comm.recv(&mut arr1(&[0u8; 100]), (rank + 3) % 4)?;
            comm.barrier()?;
        }
        steps(comm, 60, dies, |comm| comm.respawn())
    });
    assert_eq!(done.unwrap(), Some(vec![(60, 5); 4]));
}
