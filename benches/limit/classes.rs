//! The variants of each class.

use super::kernels::Store;
use super::rank::{INLINE, Rank, SLOTS};
use super::steps::{
    TASKS, broadcast_inline, broadcast_ring, broadcast_shared_in, gather_inline, gather_ring,
    gather_shared_in, gather_shared_out, hand_over, pingpong_line, pingpong_ring, sum_flat, sum_in_place,
    sum_inline, sum_pipelined, sum_shared_in, sum_shared_in_out, sum_shared_result, task_and_back, tasks,
};
use crate::support::pages::Pages;
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
            name += &format!("@{}K", (self.chunk * 8) >> 10);
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
        staging: SLOTS as usize * chunk,
        ..Variant::new("ring", (Private, Private), step)
    };
    sizes.into_iter().flat_map(|chunk| each_store(ring(chunk), bytes, true)).collect()
}
