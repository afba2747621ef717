//! What the processes of one run tell each other, in memory that all of them inherit.

use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use std::fmt::Display;
use std::num::NonZeroUsize;
use std::os::unix::process::parent_id;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Rows of the sweep.
pub const ROWS: usize = 6;
/// `Board::progress`: the victim makes the call.
pub const BEGUN: u32 = 1;
/// `Board::progress`: it has made it.
pub const DONE: u32 = 2;

/// Words that say nothing, zero, when a run begins.
#[derive(Default)]
pub struct Board {
    /// Process numbers: of who is to die, once it comes to the call, and of its peers.
    pub victim: AtomicU32,
    pub peers: [AtomicU32; 2],
    /// The victim may make the call.
    pub victim_may_go: AtomicU32,
    /// Its peers may, too.
    pub peers_may_go: AtomicU32,
    /// The victim's parent.
    pub zygote: AtomicU32,
    /// The caller's process, and whether it has ended.
    pub caller: AtomicU32,
    pub ended: AtomicU32,
    /// How far the victim has come.
    pub progress: AtomicU32,
    /// What became as it must, and what did not.
    pub good: AtomicU32,
    pub bad: AtomicU32,
    /// How often the model was started on a row, by the worker's attempt.
    pub started: [[AtomicU32; 2]; ROWS],
}

impl Board {
    /// One for a whole case.
    pub fn new() -> &'static Board {
        let len = NonZeroUsize::new(size_of::<Board>()).expect("a board has words");
        // SAFETY: a fresh mapping of its own.
        let at = unsafe {
            mmap_anonymous(None, len, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED)
        };
        let at = at.expect("a page of shared memory").cast::<Board>();
        // SAFETY: mapped for good, a page boundary, zeroed; atomics only.
        unsafe { at.as_ref() }
    }

    /// Wipes it for the next run.
    pub fn clear(&self) {
        let words = [&self.victim, &self.victim_may_go, &self.peers_may_go, &self.caller, &self.ended];
        let words = words.into_iter().chain([&self.zygote, &self.progress, &self.good, &self.bad]);
        words.chain(&self.peers).chain(self.started.iter().flatten()).for_each(|word| {
            word.store(0, SeqCst);
        });
    }

    /// This process is the victim, if it is the first to say so: waits for the tracer, and begins.
    pub fn stand_before_the_call(&self) -> bool {
        let is_victim = self.victim.compare_exchange(0, std::process::id(), SeqCst, SeqCst).is_ok();
        if is_victim {
            self.zygote.store(parent_id(), SeqCst);
            wait_for(&self.victim_may_go);
            self.progress.store(BEGUN, SeqCst);
        }
        is_victim
    }

    /// This process is one of the victim's peers.
    pub fn add_peer(&self) {
        let free = |word: &&AtomicU32| word.compare_exchange(0, std::process::id(), SeqCst, SeqCst).is_ok();
        assert!(self.peers.iter().find(free).is_some(), "room for a peer");
    }

    /// The peers that have come so far.
    pub fn peers(&self) -> Vec<u32> {
        self.peers.iter().map(|word| word.load(SeqCst)).filter(|&pid| pid != 0).collect()
    }

    /// An obligation was met, or not: then who and what go to standard error.
    pub fn report(&self, met: bool, what: impl Display) {
        if met {
            self.good.fetch_add(1, SeqCst);
        } else {
            eprintln!("wrong: {what}");
            self.bad.fetch_add(1, SeqCst);
        }
    }
}

/// Waits until `word` is no longer zero, without taking the processor from anyone.
pub fn wait_for(word: &AtomicU32) {
    until(Duration::MAX, || word.load(SeqCst) != 0);
}

/// Waits until `done`; did it come in time?
pub fn until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !done() {
        match start.elapsed() {
            over if over > patience => return false,
            short if short < Duration::from_micros(100) => std::thread::yield_now(),
            _ => std::thread::sleep(Duration::from_micros(30)),
        }
    }
    true
}
