//! The engine's copies against the C library's and the processor's string move: sizes, and places of both sides in their
//! pages.
//!
//! ```text
//! cargo bench --bench copy               # a minute; the last line is the worst ratio
//! cargo bench --bench copy -- --test     # each point once
//! ```
//!
//! Arrays of a few KiB are copied again and again (then both are in the first-level cache), and one pair after another (then
//! they are not: as in the engine, where a peer has written what is copied); longer ones again and again. Each way has its
//! turn in each pass over the points; the figure is the least processor time of all passes, as others may use the machine.
//! Points at which the engine looks bad get more passes. The engine is judged by the policy that it takes for a call of such
//! a size with two ranks: the ratio is to the fastest of its own copy of this policy, memcpy and `rep movsb`.
#![allow(missing_docs, dead_code, unused_imports, clippy::allow_attributes, reason = "a program")]
#![expect(unsafe_code, reason = "a string move")]

#[path = "../src/shm/copy.rs"]
mod copy;
#[path = "../src/shm/kernel.rs"]
mod kernel;

/// Where the kernel finds its neighbours.
mod shm {
    pub(crate) use crate::copy;
}
mod os {
    pub(crate) mod topology {
        /// Bytes of the second-level cache of a processor.
        pub(crate) fn second_level_cache() -> usize {
            let size = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index2/size");
            let kib = size.ok().and_then(|size| size.trim().strip_suffix('K')?.parse::<usize>().ok());
            kib.map_or(1 << 20, |kib| kib << 10)
        }
    }
}

use kernel::Store;
use nix::time::{ClockId, clock_gettime};
use std::time::{Duration, Instant};

const SIZES: [usize; 9] = [256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 8 << 20, 64 << 20];
/// Places of source and destination in their pages: those of arrays from `malloc` (16), of cells and shared arrays (0, 64),
/// and any others.
const PLACES: [(usize, usize); 20] = [
    (0, 0),
    (0, 16),
    (0, 64),
    (0, 80),
    (0, 300),
    (0, 512),
    (0, 1024),
    (0, 2048),
    (0, 4080),
    (16, 0),
    (16, 16),
    (16, 80),
    (64, 0),
    (64, 16),
    (64, 64),
    (8, 24),
    (1, 0),
    (0, 1),
    (4080, 0),
    (4080, 16),
];
/// Pairs that are copied one after another have so many bytes together: more than a first-level cache.
const TOGETHER: usize = 256 << 10;
const PAGE: usize = 4096;
/// Copies are timed together until so many bytes have been moved.
const TIMED: usize = 256 << 10;
const WANTED: f64 = 1.25;
/// The time for passes over all points; points above the wanted ratio get half as much again.
const PATIENCE: Duration = Duration::from_secs(60);

type Way = (&'static str, fn(&mut [u8], &[u8]));

/// The engine's ways first, in the order of [`Point::policy`].
const WAYS: [Way; 4] = [
    ("cached", |dst, src| kernel::copy(dst, src, Store::Cached)),
    ("streamed", |dst, src| kernel::copy(dst, src, Store::Streamed)),
    ("memcpy", |dst, src| dst.copy_from_slice(src)),
    ("rep movsb", string_move),
];

#[cfg(target_arch = "x86_64")]
fn string_move(dst: &mut [u8], src: &[u8]) {
    assert_eq!(dst.len(), src.len());
    // SAFETY: as many bytes as both have, upwards (the direction flag is clear by the ABI); they do not overlap.
    unsafe {
        std::arch::asm!("rep movsb", inout("rcx") dst.len() => _, inout("rdi") dst.as_mut_ptr() => _,
            inout("rsi") src.as_ptr() => _, options(nostack, preserves_flags));
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn string_move(dst: &mut [u8], src: &[u8]) {
    dst.copy_from_slice(src);
}

/// The processor time of this thread: others may use the machine.
fn own_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Arrays of one size at one place, and the least time of each way so far, in nanoseconds.
struct Point {
    size: usize,
    places: (usize, usize),
    /// Pairs of arrays that are copied one after another.
    pairs: usize,
    least: [f64; 4],
}

impl Point {
    fn all() -> Vec<Point> {
        let point = |size, places, pairs| Point { size, places, pairs, least: [f64::INFINITY; 4] };
        let several = |size: usize| (PAGE..TOGETHER / 4).contains(&size).then_some(TOGETHER / 2 / size);
        let of_size = |size| std::iter::once(1).chain(several(size)).map(move |pairs| (size, pairs));
        let sizes = SIZES.into_iter().flat_map(of_size);
        sizes.flat_map(|(size, pairs)| PLACES.map(|places| point(size, places, pairs))).collect()
    }

    /// Times every way, beginning with another in each pass.
    fn pass(&mut self, number: usize, from: &[u8], to: &mut [u8]) {
        let (size, stride) = (self.size, self.size.next_multiple_of(PAGE) + PAGE);
        let mut copy_all = |way: usize| {
            for at in (0..self.pairs).map(|pair| pair * stride) {
                let (from, to) = (&from[at + self.places.0..][..size], &mut to[at + self.places.1..][..size]);
                WAYS[way].1(to, from);
            }
        };
        let rounds = (TIMED / (size * self.pairs)).max(1);
        for way in (0..WAYS.len()).map(|turn| (number + turn) % WAYS.len()) {
            copy_all(way);
            let start = own_time();
            (0..rounds).for_each(|_| copy_all(way));
            let each = (own_time() - start).as_secs_f64() * 1e9 / (rounds * self.pairs) as f64;
            self.least[way] = self.least[way].min(each);
        }
    }

    /// The engine's way.
    fn policy(&self) -> usize {
        usize::from(Store::best(2 * self.size, 2) == Store::Streamed)
    }

    /// The engine's time to the best.
    fn ratio(&self) -> f64 {
        let [.., memcpy, string_move] = self.least;
        let own = self.least[self.policy()];
        own / own.min(memcpy).min(string_move)
    }

    fn line(&self) -> String {
        let (from, to) = self.places;
        let rates = self.least.map(|least| format!("{:>9.1}", self.size as f64 / least)).join(" ");
        let turns = if self.pairs > 1 { "in turn" } else { "again" };
        let policy = WAYS[self.policy()].0;
        format!("{:>9} {turns:>8} {from:>5} {to:>5} {rates}  {policy:<9} {:>5.2}", self.size, self.ratio())
    }
}

/// Room for the longest arrays at any place, from the beginning of a page on.
fn room() -> (Vec<u8>, usize) {
    let room = vec![1; SIZES[SIZES.len() - 1] + 3 * PAGE];
    let skip = room.as_ptr().addr().wrapping_neg() % PAGE;
    (room, skip)
}

fn main() {
    let is_test = std::env::args().any(|arg| arg == "--test");
    let ((from, skip), (mut to, to_skip)) = (room(), room());
    let (from, to) = (&from[skip..], &mut to[to_skip..]);
    let mut points = Point::all();
    let begin = Instant::now();
    for number in 0.. {
        // Passes over the longest take as long as over all others, and are disturbed less.
        let due = |point: &&mut Point| point.size <= 1 << 20 || number % 10 == 0;
        points.iter_mut().filter(due).for_each(|point| point.pass(number, from, to));
        if is_test || begin.elapsed() > PATIENCE {
            break;
        }
    }
    let again = Instant::now();
    for number in 0.. {
        let mut bad: Vec<_> = points.iter_mut().filter(|point| point.ratio() > WANTED).collect();
        if is_test || bad.is_empty() || again.elapsed() > PATIENCE / 2 {
            break;
        }
        bad.iter_mut().for_each(|point| point.pass(number, from, to));
    }
    let names = WAYS.map(|(name, _)| format!("{name:>9}")).join(" ");
    println!(
        "{:>9} {:>8} {:>5} {:>5} {names}  {:<9} {:>5}",
        "bytes", "copied", "from", "to", "engine", "ratio"
    );
    println!("{:>9} {:>8} {:>5} {:>5} {:>9}", "", "", "", "", "GB/s");
    points.iter().for_each(|point| println!("{}", point.line()));
    let worst = |points: &mut dyn Iterator<Item = &Point>| {
        let worst = points.max_by(|a, b| a.ratio().total_cmp(&b.ratio()));
        worst.map_or_else(String::new, |point| {
            let (from, to) = point.places;
            format!("{:.2} ({} bytes from {from} to {to})", point.ratio(), point.size)
        })
    };
    let is_far = |point: &&Point| point.size * point.pairs >= TOGETHER / 4;
    println!(
        "worst ratio, wanted <= {WANTED}: {} beyond the first-level cache; {} at any point",
        worst(&mut points.iter().filter(is_far)),
        worst(&mut points.iter())
    );
}
