//! What each class does at best: a rank's part in one call.

use super::kernels::{Store, copy, fold, sum};
use super::rank::Rank;
use crate::support::measure::MOST_RANKS;
use crate::support::pages::Span;
use Store::Cached;

/// Tasks of a step that measures how many there are in a time.
pub const TASKS: u64 = 10_000;

pub fn sum_inline(rank: &mut Rank<'_>) {
    let (send, recv, n) = (rank.send, rank.recv, rank.send.len());
    // Everyone has heard what was said before this.
    rank.say(send, std::iter::empty());
    for peer in 0..rank.ranks {
        let add = |at, element| recv.set(at, if peer == 0 { element } else { recv.get(at) + element });
        match peer == rank.me {
            true => send.elements().iter().enumerate().for_each(|(at, &element)| add(at, element)),
            false => rank.hear(peer, add, n),
        }
    }
}

/// In step e everyone writes the half e & 1 of its staging. It does so again in step e + 2, after it has seen all others'
/// e + 1: they have finished e.
pub fn sum_flat(rank: &mut Rank<'_>) {
    let n = rank.send.len();
    let at = (rank.steps() & 1) as usize * n.next_multiple_of(8);
    copy(rank.staging[rank.me].part(at..at + n), rank.send, rank.staged);
    rank.step_done();
    rank.in_step();
    let part = |peer: usize| if peer == rank.me { rank.send } else { rank.staging[peer].part(at..at + n) };
    sum(rank.recv, &each(rank.ranks, part)[..rank.ranks], Cached);
}

/// The movement-avoiding sum (YHCCL, SC'23), three chunks under way. Step s: copy into staging what the others need of
/// chunk s; sum my slice of chunk s - 1, for me and into staging; copy the others' slices of chunk s - 2 out. A step begins
/// when all others have finished the one before, entirely:
/// 1. the inputs of chunk s - 1, staged in step s - 1, are complete;
/// 2. so are the slices of chunk s - 2, summed in step s - 1;
/// 3. the half s & 1 of the inputs, last read in step s - 1 (chunk s - 2), may be overwritten;
/// 4. so may the half (s - 1) & 1 of the slices, last read in step s - 1 (chunk s - 3).
pub fn sum_pipelined(rank: &mut Rank<'_>) {
    let (n, chunk, ranks, me) = (rank.send.len(), rank.chunk, rank.ranks, rank.me);
    let count = n.div_ceil(chunk);
    let room = chunk.div_ceil(ranks) + 8;
    let of = |number: usize| number * chunk..((number + 1) * chunk).min(n);
    let input = |rank: &Rank<'_>, peer: usize, number: usize| {
        let at = (number & 1) * chunk;
        rank.staging[peer].part(at..at + of(number).len())
    };
    let slice_of = |rank: &Rank<'_>, peer: usize, number: usize| {
        let slice = rank.slice(of(number).len(), peer);
        let at = 2 * chunk + (number & 1) * room;
        let whole = of(number).start;
        (rank.staging[peer].part(at..at + slice.len()), whole + slice.start..whole + slice.end)
    };
    for step in 0..count + 2 {
        rank.in_step();
        if step < count {
            for peer in rank.peers() {
                let slice = rank.slice(of(step).len(), peer);
                let from = rank.send.part(of(step)).part(slice.clone());
                copy(input(rank, me, step).part(slice), from, rank.staged);
            }
        }
        if (1..=count).contains(&step) {
            let number = step - 1;
            let (result, range) = slice_of(rank, me, number);
            let slice = rank.slice(of(number).len(), me);
            let part = |peer| match peer == me {
                true => rank.send.part(range.clone()),
                false => input(rank, peer, number).part(slice.clone()),
            };
            let parts = each(ranks, part);
            let outs = [rank.recv.part(range.clone()), result];
            fold(&outs, &parts[..ranks], 1.0, [rank.store, rank.staged]);
        }
        if step >= 2 {
            for peer in rank.peers() {
                let (result, range) = slice_of(rank, peer, step - 2);
                copy(rank.recv.part(range), result, rank.store);
            }
        }
        rank.step_done();
    }
}

pub fn sum_shared_in(rank: &mut Rank<'_>) {
    rank.meet();
    sum(rank.recv, &rank.sends, rank.store);
    rank.meet();
}

/// What each rank has, without an allocation.
fn each(ranks: usize, of: impl Fn(usize) -> Span) -> [Span; MOST_RANKS] {
    let mut spans = [Span::EMPTY; MOST_RANKS];
    spans[..ranks].iter_mut().enumerate().for_each(|(rank, span)| *span = of(rank));
    spans
}

pub fn sum_shared_in_out(rank: &mut Rank<'_>) {
    rank.meet();
    let mine = rank.slice(rank.send.len(), rank.me);
    let [outs, ins] =
        [&rank.recvs, &rank.sends].map(|arrays| each(rank.ranks, |peer| arrays[peer].part(mine.clone())));
    fold(&outs[..rank.ranks], &ins[..rank.ranks], 1.0, [rank.store; 2]);
    rank.meet();
}

pub fn sum_shared_result(rank: &mut Rank<'_>) {
    rank.meet();
    let mine = rank.slice(rank.send.len(), rank.me);
    let ins = each(rank.ranks, |peer| rank.sends[peer].part(mine.clone()));
    sum(rank.recv.part(mine), &ins[..rank.ranks], rank.store);
    rank.meet();
}

/// The result takes the place of what rank 0 brought.
pub fn sum_in_place(rank: &mut Rank<'_>) {
    rank.meet();
    let mine = rank.slice(rank.send.len(), rank.me);
    let ins = each(rank.ranks, |peer| rank.sends[peer].part(mine.clone()));
    sum(ins[0], &ins[..rank.ranks], rank.store);
    rank.meet();
}

pub fn gather_inline(rank: &mut Rank<'_>) {
    let (send, recv, n) = (rank.send, rank.recv, rank.send.len());
    if rank.me > 0 {
        return rank.say(send, std::iter::once(0));
    }
    copy(recv.part(0..n), send, Cached);
    for peer in rank.peers() {
        rank.hear_and_tell(peer, |at, element| recv.set(peer * n + at, element), n);
    }
}

pub fn gather_ring(rank: &mut Rank<'_>) {
    match rank.me {
        0 => rank.pull_all(),
        _ => rank.push(rank.send, std::iter::once(0)),
    }
}

pub fn gather_shared_in(rank: &mut Rank<'_>) {
    rank.meet();
    if rank.me == 0 {
        let n = rank.send.len();
        for (peer, &send) in rank.sends.iter().enumerate() {
            copy(rank.recv.part(peer * n..(peer + 1) * n), send, rank.store);
        }
    }
    rank.meet();
}

pub fn gather_shared_out(rank: &mut Rank<'_>) {
    let n = rank.send.len();
    copy(rank.recv.part(rank.me * n..(rank.me + 1) * n), rank.send, rank.store);
    rank.meet();
}

pub fn broadcast_inline(rank: &mut Rank<'_>) {
    let (send, recv, n) = (rank.send, rank.recv, rank.send.len());
    match rank.me {
        0 => rank.say(send, rank.peers()),
        _ => rank.hear_and_tell(0, |at, element| recv.set(at, element), n),
    }
}

pub fn broadcast_ring(rank: &mut Rank<'_>) {
    match rank.me {
        0 => rank.push(rank.send, rank.peers()),
        _ => rank.pull(rank.recv, 0),
    }
}

pub fn broadcast_shared_in(rank: &mut Rank<'_>) {
    rank.meet();
    if rank.me > 0 {
        copy(rank.recv, rank.sends[0], rank.store);
    }
    rank.meet();
}

/// Turns what has come, if results are compared: it must have been here.
fn turn(rank: &Rank<'_>, array: Span) {
    if rank.check {
        (0..array.len()).for_each(|at| array.set(at, -array.get(at)));
    }
}

pub fn pingpong_line(rank: &mut Rank<'_>) {
    let (send, recv, n) = (rank.send, rank.recv, rank.send.len());
    let nobody = std::iter::empty;
    // What was said before has been answered.
    if rank.me == 0 {
        rank.say(send, nobody());
        rank.hear(1, |at, element| recv.set(at, element), n);
    } else if rank.me == 1 {
        rank.hear(0, |at, element| recv.set(at, element), n);
        turn(rank, recv);
        rank.say(recv, nobody());
    }
}

pub fn pingpong_ring(rank: &mut Rank<'_>) {
    if rank.me == 0 {
        rank.push(rank.send, std::iter::once(1));
        rank.pull(rank.recv, 1);
    } else if rank.me == 1 {
        rank.pull(rank.recv, 0);
        turn(rank, rank.recv);
        rank.push(rank.recv, std::iter::once(0));
    }
}

/// What travels is where the array lies (in a rank's only staging element).
pub fn hand_over(rank: &mut Rank<'_>) {
    let nobody = std::iter::empty;
    let (place, array) = (rank.staging[rank.me], rank.sends[0]);
    if rank.me == 0 {
        rank.say(place, nobody());
        rank.hear(1, |_, _| (), 1);
    } else if rank.me == 1 {
        rank.hear(0, |_, _| (), 1);
        turn(rank, array);
        rank.say(place, nobody());
    }
}

pub fn tasks(rank: &mut Rank<'_>) {
    let workers = rank.ranks - 1;
    let share = |worker: usize| TASKS as usize / workers + usize::from(worker <= TASKS as usize % workers);
    match rank.me {
        0 => (0..share(1)).for_each(|number| {
            (1..=workers).filter(|&worker| number < share(worker)).for_each(|worker| rank.give(worker));
        }),
        me => (0..share(me)).for_each(|_| rank.work()),
    }
    if rank.me == 0 {
        (1..=workers).for_each(|worker| rank.collect(worker));
    }
}

pub fn task_and_back(rank: &mut Rank<'_>) {
    match rank.me {
        0 => {
            rank.give(1);
            rank.collect(1);
        }
        1 => rank.work(),
        _ => (),
    }
}
