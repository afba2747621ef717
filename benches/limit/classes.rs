//! What each class does at best, and its variants.

use super::kernels::{Store, copy, fold, sum};
use super::rank::{INLINE, Rank};
use crate::support::pages::{Pages, Span};
use Place::{Each, Nowhere, One, Private};
use Store::{Cached, Rep, Streamed};

/// Where an array lies.
#[derive(Clone, Copy, PartialEq)]
pub enum Place {
    Nowhere,
    Private,
    /// A shared one for each rank.
    Each,
    /// A shared one for all.
    One,
}

/// A way to do what a class does.
#[derive(Clone)]
pub struct Variant {
    name: &'static str,
    pub send: Place,
    pub recv: Place,
    /// Private arrays lie on these.
    pub pages: Pages,
    pub chunk: usize,
    /// Elements of staging that a rank has.
    pub staging: usize,
    pub store: Store,
    pub staged: Store,
    pub repeat: u64,
    pub share: u64,
    pub step: fn(&mut Rank<'_>),
}

impl Variant {
    fn new(name: &'static str, (send, recv): (Place, Place), step: fn(&mut Rank<'_>)) -> Variant {
        let (pages, store, staged) = (Pages::Private, Cached, Cached);
        Variant { name, send, recv, pages, chunk: 0, staging: 0, store, staged, repeat: 1, share: 1, step }
    }

    /// So many steps are timed as one.
    fn batch(self, repeat: u64) -> Variant {
        Variant { repeat, share: repeat, ..self }
    }

    fn share(self, share: u64) -> Variant {
        Variant { share, ..self }
    }

    fn stored(self, store: Store) -> Variant {
        Variant { store, ..self }
    }

    /// Its name, with what tells it from others of that name.
    pub fn name(&self) -> String {
        let mut name = self.name.to_owned();
        if self.chunk > 0 {
            name += &format!("@{}K", self.chunk * 8 >> 10);
        }
        let stores = [("", self.store), ("staged_", self.staged)];
        for (what, store) in stores {
            name += &match store {
                Cached => String::new(),
                Streamed => format!("_{what}nt"),
                Rep => format!("_{what}rep"),
            };
        }
        if self.repeat > 1 {
            name += &format!("_batch{}", self.repeat);
        }
        if self.pages == Pages::PrivateSmall {
            name += "_4k";
        }
        name
    }
}

/// From this on stores past the cache may pay.
const LARGE: usize = 1 << 20;
/// Up to this `flat` may.
const FLAT: usize = 2 << 20;
const BATCH: u64 = 20;
pub const TASKS: u64 = 10_000;

/// All variants of a class for contributions of so many bytes; none if there is no such class.
pub fn variants(op: &str, class: &str, bytes: usize, ranks: usize) -> Vec<Variant> {
    let n = bytes / 8;
    let short = n <= INLINE;
    let sums = |name, places, step| each_store(Variant::new(name, places, step), bytes, false);
    let copies = |name, places, step| each_store(Variant::new(name, places, step), bytes, true);
    match (op, class) {
        ("barrier", "private") => {
            vec![Variant::new("flags", (Nowhere, Nowhere), |rank| rank.meet()).batch(BATCH)]
        }
        ("all_reduce", "private") if short => {
            let inline = Variant::new("inline", (Private, Private), sum_inline);
            vec![inline.clone(), inline.batch(BATCH)]
        }
        ("all_reduce", "private") => [sums_flat(bytes), sums_in_chunks(bytes, ranks)].concat(),
        ("all_reduce", "shared_in") => sums("shared_in", (Each, Private), sum_shared_in),
        ("all_reduce", "shared_in_out") => sums("shared_in_out", (Each, Each), sum_shared_in_out),
        ("all_reduce", "shared_result") => sums("shared_result", (Each, One), sum_shared_result),
        ("all_reduce", "in_place") => sums("in_place", (Each, Nowhere), sum_in_place),
        ("gather", "private") if short => vec![Variant::new("inline", (Private, Private), gather_inline)],
        ("gather", "private") => rings(bytes, gather_ring),
        ("gather", "shared_in") => copies("shared_in", (Each, Private), gather_shared_in),
        ("gather", "shared_out") => copies("shared_out", (Private, One), gather_shared_out),
        ("gather", "views") => vec![
            Variant::new("publish", (One, Nowhere), |rank| rank.meet()),
            Variant::new("publish_reopen", (One, Nowhere), |rank| {
                rank.meet();
                rank.meet();
            }),
        ],
        ("broadcast", "private") if short => {
            vec![Variant::new("inline", (Private, Private), broadcast_inline)]
        }
        ("broadcast", "private") => rings(bytes, broadcast_ring),
        ("broadcast", "shared_in") => copies("shared_in", (Each, Private), broadcast_shared_in),
        ("pingpong", "private") if short => {
            vec![Variant::new("line", (Private, Private), pingpong_line).share(2)]
        }
        ("pingpong", "private") => {
            rings(bytes, pingpong_ring).into_iter().map(|variant| variant.share(2)).collect()
        }
        ("pingpong", "zero_copy") => {
            let place = Variant::new("place", (Each, Nowhere), hand_over).share(2);
            vec![Variant { staging: 1, ..place }]
        }
        ("tasks", "private") => vec![
            Variant::new("rate", (Private, Nowhere), tasks).share(TASKS),
            Variant::new("round_trip", (Private, Nowhere), task_and_back),
        ],
        _ => Vec::new(),
    }
}

/// Each way to store that may pay at a size.
fn stores(bytes: usize, rep: bool) -> impl Iterator<Item = Store> {
    let may_pay = move |store: &Store| match store {
        Cached => true,
        Streamed => bytes >= LARGE,
        Rep => rep && bytes >= 4096,
    };
    [Cached, Streamed, Rep].into_iter().filter(may_pay)
}

/// The variant with every way to store; also with private arrays on small pages.
fn each_store(variant: Variant, bytes: usize, rep: bool) -> Vec<Variant> {
    let mut all: Vec<Variant> = stores(bytes, rep).map(|store| variant.clone().stored(store)).collect();
    if bytes >= LARGE && [variant.send, variant.recv].contains(&Private) {
        let small = all.iter().map(|variant| Variant { pages: Pages::PrivateSmall, ..variant.clone() });
        all.extend(small.collect::<Vec<_>>());
    }
    all
}

/// Whole vectors staged, double-buffered; everyone sums all.
fn sums_flat(bytes: usize) -> Vec<Variant> {
    if bytes > FLAT {
        return Vec::new();
    }
    let n = (bytes / 8).next_multiple_of(8);
    let flat = Variant { staging: 2 * n, ..Variant::new("flat", (Private, Private), sum_flat) };
    let staged = [Cached, Streamed].map(|staged| Variant { staged, ..flat.clone() });
    staged.to_vec()
}

/// Chunks on their way through staging that stays in the cache.
fn chunks(bytes: usize) -> impl Iterator<Item = usize> {
    let of = move |&chunk: &usize| chunk <= bytes && (chunk > 64 << 10 || bytes < LARGE);
    [64 << 10, 256 << 10, 512 << 10, 1 << 20].into_iter().filter(of).map(|chunk| chunk / 8)
}

/// The movement-avoiding sum, pipelined.
fn sums_in_chunks(bytes: usize, ranks: usize) -> Vec<Variant> {
    let mut all = Vec::new();
    for chunk in chunks(bytes) {
        let staging = 2 * (chunk + chunk.div_ceil(ranks) + 8);
        let pipelined =
            Variant { chunk, staging, ..Variant::new("pipelined", (Private, Private), sum_pipelined) };
        all.extend(stores(bytes, true).map(|store| pipelined.clone().stored(store)));
        if bytes >= LARGE && chunk * 8 >= 512 << 10 {
            let staged = Variant { staged: Streamed, ..pipelined };
            all.extend([Cached, Streamed].map(|store| staged.clone().stored(store)));
        }
    }
    if bytes >= LARGE {
        let small = all.iter().filter(|variant| variant.chunk * 8 == 512 << 10);
        let small = small.map(|variant| Variant { pages: Pages::PrivateSmall, ..variant.clone() });
        all.extend(small.collect::<Vec<_>>());
    }
    all
}

/// Chunks through a sender's ring of staging.
fn rings(bytes: usize, step: fn(&mut Rank<'_>)) -> Vec<Variant> {
    let mut sizes: Vec<usize> = chunks(bytes).filter(|chunk| chunk * 8 < 1 << 20).collect();
    if bytes <= 64 << 10 {
        sizes = vec![(bytes / 8).next_multiple_of(8)];
    }
    let ring = |chunk| Variant {
        chunk,
        staging: super::rank::SLOTS as usize * chunk,
        ..Variant::new("ring", (Private, Private), step)
    };
    sizes.into_iter().flat_map(|chunk| each_store(ring(chunk), bytes, true)).collect()
}

fn sum_inline(rank: &mut Rank<'_>) {
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
fn sum_flat(rank: &mut Rank<'_>) {
    let n = rank.send.len();
    let at = (rank.steps() & 1) as usize * n.next_multiple_of(8);
    copy(rank.staging[rank.me].part(at..at + n), rank.send, rank.staged);
    rank.step_done();
    rank.in_step();
    let part = |peer: usize| if peer == rank.me { rank.send } else { rank.staging[peer].part(at..at + n) };
    let parts: Vec<Span> = (0..rank.ranks).map(part).collect();
    sum(rank.recv, &parts, Cached);
}

/// The movement-avoiding sum (YHCCL, SC'23), three chunks under way. Step s: copy into staging what the others need of
/// chunk s; sum my slice of chunk s - 1, for me and into staging; copy the others' slices of chunk s - 2 out. A step begins
/// when all others have finished the one before, entirely:
/// 1. the inputs of chunk s - 1, staged in step s - 1, are complete;
/// 2. so are the slices of chunk s - 2, summed in step s - 1;
/// 3. the half s & 1 of the inputs, last read in step s - 1 (chunk s - 2), may be overwritten;
/// 4. so may the half (s - 1) & 1 of the slices, last read in step s - 1 (chunk s - 3).
fn sum_pipelined(rank: &mut Rank<'_>) {
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
            let parts: Vec<Span> = (0..ranks).map(part).collect();
            fold(&[rank.recv.part(range.clone()), result], &parts, 1.0, [rank.store, rank.staged]);
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

fn sum_shared_in(rank: &mut Rank<'_>) {
    rank.meet();
    sum(rank.recv, &rank.sends, rank.store);
    rank.meet();
}

/// Parts of everyone's array.
fn parts(arrays: &[Span], range: &std::ops::Range<usize>) -> Vec<Span> {
    arrays.iter().map(|array| array.part(range.clone())).collect()
}

fn sum_shared_in_out(rank: &mut Rank<'_>) {
    rank.meet();
    let mine = rank.slice(rank.send.len(), rank.me);
    fold(&parts(&rank.recvs, &mine), &parts(&rank.sends, &mine), 1.0, [rank.store; 2]);
    rank.meet();
}

fn sum_shared_result(rank: &mut Rank<'_>) {
    rank.meet();
    let mine = rank.slice(rank.send.len(), rank.me);
    sum(rank.recv.part(mine.clone()), &parts(&rank.sends, &mine), rank.store);
    rank.meet();
}

/// The result takes the place of what rank 0 brought.
fn sum_in_place(rank: &mut Rank<'_>) {
    rank.meet();
    let mine = rank.slice(rank.send.len(), rank.me);
    sum(rank.sends[0].part(mine.clone()), &parts(&rank.sends, &mine), rank.store);
    rank.meet();
}

fn gather_inline(rank: &mut Rank<'_>) {
    let (send, recv, n) = (rank.send, rank.recv, rank.send.len());
    if rank.me > 0 {
        return rank.say(send, std::iter::once(0));
    }
    copy(recv.part(0..n), send, Cached);
    for peer in rank.peers() {
        rank.hear_and_tell(peer, |at, element| recv.set(peer * n + at, element), n);
    }
}

fn gather_ring(rank: &mut Rank<'_>) {
    match rank.me {
        0 => rank.pull_all(),
        _ => rank.push(rank.send, std::iter::once(0)),
    }
}

fn gather_shared_in(rank: &mut Rank<'_>) {
    rank.meet();
    if rank.me == 0 {
        let n = rank.send.len();
        for (peer, &send) in rank.sends.iter().enumerate() {
            copy(rank.recv.part(peer * n..(peer + 1) * n), send, rank.store);
        }
    }
    rank.meet();
}

fn gather_shared_out(rank: &mut Rank<'_>) {
    let n = rank.send.len();
    copy(rank.recv.part(rank.me * n..(rank.me + 1) * n), rank.send, rank.store);
    rank.meet();
}

fn broadcast_inline(rank: &mut Rank<'_>) {
    let (send, recv, n) = (rank.send, rank.recv, rank.send.len());
    match rank.me {
        0 => rank.say(send, rank.peers()),
        _ => rank.hear_and_tell(0, |at, element| recv.set(at, element), n),
    }
}

fn broadcast_ring(rank: &mut Rank<'_>) {
    match rank.me {
        0 => rank.push(rank.send, rank.peers()),
        _ => rank.pull(rank.recv, 0),
    }
}

fn broadcast_shared_in(rank: &mut Rank<'_>) {
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

fn pingpong_line(rank: &mut Rank<'_>) {
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

fn pingpong_ring(rank: &mut Rank<'_>) {
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
fn hand_over(rank: &mut Rank<'_>) {
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

fn tasks(rank: &mut Rank<'_>) {
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

fn task_and_back(rank: &mut Rank<'_>) {
    match rank.me {
        0 => {
            rank.give(1);
            rank.collect(1);
        }
        1 => rank.work(),
        _ => (),
    }
}
