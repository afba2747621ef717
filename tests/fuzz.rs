//! Files of which anything may be wrong, also with checksums that are right: whoever reads one gets an error or its rows.
//!
//! ```text
//! [1] a file of a real sweep, one of several shapes
//! [2] some changes: a bit, a word of the header, a column, a record, a text, the board, the length; or another header that
//!     is right in itself. Checksums are made right after most of them, as chance would not
//! [3] all readers read it; now and then it is opened to be written, or a sweep resumes from it
//! [4] no panic, no allocation that is larger than the file, no row whose checksum is wrong; the file is put back
//! ```
//!
//! Each input follows from seed and number: FUZZ=1 FUZZ_SEED=S FUZZ_FROM=N is input N again. `tools/fuzz` runs many.

#![expect(clippy::unwrap_used, reason = "tests")]
#![expect(unsafe_code, reason = "an allocator that counts")]

mod support;

use phalanx::{Backend, FailureCause, Limits, Sweep, Table};
use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::Case;
use support::rows::{Dir, options};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

const CASES: &[Case] =
    &[("headers that are right in themselves", headers), ("files of which anything may be wrong", files)];

fn main() -> std::process::ExitCode {
    support::main_within(Duration::from_secs(24 * 3600), CASES)
}

// ---------------------------------------------------------------------------------------------------------- the allocator

/// Counts the bytes that are allocated, and the largest piece.
struct Counting;

static LIVE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);
static LARGEST: AtomicUsize = AtomicUsize::new(0);
/// The number of the input, for the message of an allocation that fails.
static INPUT: AtomicUsize = AtomicUsize::new(0);

impl Counting {
    fn count(at: *mut u8, size: usize) -> *mut u8 {
        if at.is_null() {
            // Nothing here may allocate.
            let mut text = *b"no memory at input 00000000000000000000\n";
            let mut number = INPUT.load(Ordering::Relaxed);
            for digit in text[19..39].iter_mut().rev() {
                *digit = b'0' + (number % 10) as u8;
                number /= 10;
            }
            let _ = std::io::stderr().write_all(&text);
            return at;
        }
        LARGEST.fetch_max(size, Ordering::Relaxed);
        MOST.fetch_max(LIVE.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
        at
    }
}

// SAFETY: the system's allocator, which keeps the rules, with counters beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        Counting::count(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller says.
        Counting::count(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Returns the largest piece and the most bytes that `work` has allocated.
fn allocated<R>(work: impl FnOnce() -> R) -> (R, usize, usize) {
    let before = LIVE.load(Ordering::Relaxed);
    MOST.store(before, Ordering::Relaxed);
    LARGEST.store(0, Ordering::Relaxed);
    let done = work();
    (done, LARGEST.load(Ordering::Relaxed), MOST.load(Ordering::Relaxed).saturating_sub(before))
}

// ------------------------------------------------------------------------------------------------------------- the inputs

/// SplitMix64: the same numbers everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    fn among(&mut self, range: Range<usize>) -> usize {
        range.start + self.below(range.len())
    }

    /// A number at which arithmetic goes wrong, or one near `near`.
    fn number(&mut self, near: u64) -> u64 {
        match self.below(8) {
            0 => self.below(5) as u64,
            1 => u64::MAX - self.below(9) as u64,
            2 => (1u64 << self.below(64)).wrapping_sub(self.below(3) as u64),
            3 => near.wrapping_add(self.below(17) as u64).wrapping_sub(8),
            4 => near.wrapping_mul(1 << self.below(12)),
            5 => (self.below(1 << 12) * 8) as u64,
            6 => near ^ 1 << self.below(64),
            _ => self.next(),
        }
    }
}

/// A column, as the header describes it.
struct Column {
    scalar: u32,
    count: u64,
}

/// The shape of a file: what its header says.
struct Shape {
    tasks: u64,
    inputs: usize,
    columns: Vec<Column>,
}

const FRONT: usize = 256;
const PAGE: u64 = 4096;
/// The bytes of the board: 512, and 64 for each of 1024 workers.
const BOARD: u64 = 512 + 64 * 1024;

impl Shape {
    fn draw(random: &mut Random) -> Shape {
        let scalars = |random: &mut Random| Column {
            scalar: 1 + random.below(5) as u32,
            count: random.below(9) as u64,
        };
        let mut columns: Vec<Column> = (0..random.below(5)).map(|_| scalars(random)).collect();
        let mut tasks = random.below(40) as u64;
        match (random.below(8), columns.last_mut()) {
            // Rows of any length, of which there is none.
            (0, Some(last)) => (tasks, last.count) = (0, random.number(8) & ((1 << 58) - 1)),
            (1, _) => tasks = random.below(20_000) as u64,
            (2, _) => tasks = 0,
            _ => {}
        }
        Shape { tasks, inputs: random.below(4), columns }
    }

    /// Returns the header, the bytes of a row, and the length of the file, as `channel/ledger/layout.rs` says; `None` if
    /// the places overflow.
    fn header(&self, random: &mut Random) -> Option<(Vec<u8>, u64)> {
        let mut described = vec![0u8; 256 * (self.inputs + self.columns.len())];
        let mut row = 0u64;
        for (at, described) in described.chunks_exact_mut(256).enumerate() {
            let name = format!("c{at}");
            described[..name.len()].copy_from_slice(name.as_bytes());
            let (scalar, count, offset) = match at.checked_sub(self.inputs) {
                None => (1, 1, 8 * at as u64),
                Some(at) => {
                    let Column { scalar, count } = self.columns[at];
                    let size = [8, 4, 8, 8, 1][scalar as usize - 1];
                    let offset = row.checked_next_multiple_of(size)?;
                    row = offset.checked_add(count.checked_mul(size)?)?;
                    (scalar, count, offset)
                }
            };
            described[236..240].copy_from_slice(&scalar.to_ne_bytes());
            described[240..248].copy_from_slice(&count.to_ne_bytes());
            described[248..].copy_from_slice(&offset.to_ne_bytes());
        }
        let row = row.checked_next_multiple_of(8)?;
        let given = self.tasks * 8 * self.inputs as u64;
        let records = ((FRONT + described.len()) as u64).next_multiple_of(PAGE);
        let inputs = (records + 64 * self.tasks).next_multiple_of(if given == 0 { 1 } else { PAGE });
        let rows = (inputs + given).next_multiple_of(PAGE);
        let log = rows.checked_add(self.tasks.checked_mul(row)?)?.next_multiple_of(PAGE);
        let log_len = (((self.tasks + 32) * 4104).min(16 << 20) / 8).max(self.tasks * 16);
        let board = (log + 8 * log_len).next_multiple_of(PAGE);
        let [columns, given] = [self.columns.len(), self.inputs].map(|count| count as u64);
        let words = [self.tasks, row, columns, given, records, inputs, rows, log, log_len, board];
        let mut header = vec![0; FRONT];
        header[..8].copy_from_slice(b"\x89PHLX\r\n\x1a");
        header[8..16].copy_from_slice(&[0x0102_0304u32, 2].map(u32::to_ne_bytes).concat());
        header[16..96].copy_from_slice(&words.map(u64::to_ne_bytes).concat());
        header[96..104].copy_from_slice(&random.number(0).to_ne_bytes());
        header.extend(described);
        sum(&mut header);
        Some((header, board + BOARD))
    }
}

/// Makes the checksum of a header right, if its columns are there.
fn sum(file: &mut [u8]) {
    let columns = word(file, 32).saturating_add(word(file, 40)).saturating_mul(256);
    let end = usize::try_from(columns).ok().and_then(|columns| columns.checked_add(FRONT));
    let Some(described) = end.and_then(|end| file.get(FRONT..end)) else { return };
    let summed = xxh3_64(&[&file[..112], described].concat());
    file[112..120].copy_from_slice(&summed.to_ne_bytes());
}

fn word(file: &[u8], at: usize) -> u64 {
    file.get(at..at + 8).map_or(0, |bytes| u64::from_ne_bytes(bytes.try_into().unwrap()))
}

fn put(file: &mut [u8], at: usize, value: u64) {
    if let Some(place) = file.get_mut(at..at + 8) {
        place.copy_from_slice(&value.to_ne_bytes());
    }
}

/// Returns the place of a task's record, and whether record, inputs and row are those that were committed, as
/// `channel/ledger/record.rs` says.
fn sound(file: &[u8], task: usize) -> Option<(usize, u64)> {
    let place = |at: usize| usize::try_from(word(file, at)).ok();
    let (width, row) = (place(40)?.checked_mul(8)?, place(24)?);
    let record = place(48)?.checked_add(64 * task)?;
    let inputs = file.get(place(56)?.checked_add(width.checked_mul(task)?)?..)?.get(..width)?;
    let outputs = file.get(place(64)?.checked_add(row.checked_mul(task)?)?..)?.get(..row)?;
    let words = file.get(record..record.checked_add(64)?)?;
    let seed = if inputs.is_empty() { 0 } else { xxh3_64(inputs) };
    let content = xxh3_64_with_seed(outputs, seed);
    Some((record, xxh3_64_with_seed(&[&words[..8], &words[16..]].concat(), content)))
}

/// One file, in memory and where it is read.
struct Subject {
    bytes: Vec<u8>,
    /// The same bytes, to be changed.
    changed: Vec<u8>,
    file: File,
    path: PathBuf,
}

impl Subject {
    /// Makes the file of a real sweep of so many rows, inputs and outputs.
    fn new(dir: &Dir, number: usize, (rows, inputs, outputs): (usize, usize, usize)) -> Subject {
        let path = dir.0.join(format!("{number}.phx"));
        resume(&path, (rows, inputs, outputs)).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let bytes = fs::read(&path).unwrap();
        Subject { changed: bytes.clone(), bytes, file, path }
    }

    /// Changes a copy of the bytes, and the file's length; returns the bytes that differ.
    fn change(&self, random: &mut Random, bytes: &mut Vec<u8>, dirty: &mut Vec<Range<usize>>) {
        let (records, rows, log) =
            (word(&self.bytes, 48) as usize, word(&self.bytes, 64) as usize, word(&self.bytes, 72) as usize);
        let (tasks, board) = (word(&self.bytes, 16) as usize, word(&self.bytes, 88) as usize);
        let mut touch = |bytes: &mut Vec<u8>, at: usize, value: u64| {
            put(bytes, at, value);
            dirty.push(at..(at + 8).min(bytes.len()));
        };
        match random.below(10) {
            // A word of the front.
            0 | 1 => {
                let at = 8 * random.among(1..18);
                touch(bytes, at, random.number(word(bytes, at)));
            }
            // A column.
            2 => {
                let at = FRONT + 256 * random.below(5) + [0, 8, 232, 240, 248][random.below(5)];
                touch(bytes, at, random.number(word(bytes, at)));
            }
            // A record, with its checksum.
            3 | 4 if tasks > 0 => {
                let task = random.below(tasks);
                let record = records + 64 * task;
                let at = record + 8 * random.below(8);
                let value = match at - record {
                    0 => {
                        random.below(5) as u64
                            | (random.below(9) as u64) << 8
                            | (random.next() & 0xFFFF) << 16
                    }
                    48 => random.number(word(bytes, at)) % (2 * word(&self.bytes, 80) + 3),
                    _ => random.number(word(bytes, at)),
                };
                touch(bytes, at, value);
                if let (true, Some((_, sum))) = (random.below(4) > 0, sound(bytes, task)) {
                    touch(bytes, record + 8, sum);
                }
            }
            // A text, with the word in front.
            5 => {
                let at = log + 8 * random.below(40);
                let len = random.number(word(bytes, at) & 0xFFFF_FFFF) as u32 as usize;
                let kept = bytes.get(at + 8..).and_then(|text| text.get(..len)).unwrap_or_default();
                let head = len as u64 | xxh3_64(kept) >> 32 << 32;
                touch(bytes, at, if random.below(4) == 0 { random.next() } else { head });
            }
            // The board.
            6 => {
                let at = board + 8 * random.below(80);
                touch(bytes, at, random.number(word(bytes, at)));
            }
            // A bit anywhere, mostly where something is.
            7 => {
                let end = [4096, rows + 4096, log + 512, bytes.len()][random.below(4)];
                let at = 8 * random.below(end / 8);
                touch(bytes, at, word(bytes, at) ^ 1 << random.below(64));
            }
            // The length.
            8 => {
                let places = [0, FRONT, records, rows, log, board, bytes.len()];
                let len = places[random.below(7)].saturating_add(random.below(17)).saturating_sub(8);
                let len = if random.below(4) == 0 { random.below(bytes.len() + 1) } else { len };
                dirty.push(len.min(bytes.len())..bytes.len());
                bytes.resize(len, 0);
            }
            // Another header, of a file of another length.
            _ => {
                let Some((header, len)) = Shape::draw(random).header(random) else { return };
                // One that is larger is cut off.
                let len = len.min(4 << 20) as usize;
                dirty.push(len.min(bytes.len())..bytes.len());
                bytes.resize(len.max(header.len()), 0);
                bytes[..header.len()].copy_from_slice(&header);
                dirty.push(0..header.len().max(FRONT + 5 * 256).min(bytes.len()));
            }
        }
        if random.below(8) > 0 && bytes.len() >= FRONT {
            sum(bytes);
            dirty.push(112..120);
        }
    }

    /// Writes what has changed.
    fn write(&self, bytes: &[u8], dirty: &[Range<usize>]) {
        self.file.set_len(bytes.len() as u64).unwrap();
        for part in dirty.iter().filter_map(|part| bytes.get(part.start..part.end.min(bytes.len()))) {
            let at = part.as_ptr() as usize - bytes.as_ptr() as usize;
            self.file.write_all_at(part, at as u64).unwrap();
        }
    }

    /// Puts back the file after a program that has written it, or has put another in its place.
    fn replace(&mut self) {
        let _ = fs::remove_file(&self.path);
        fs::write(&self.path, &self.bytes).unwrap();
        self.file = File::options().write(true).open(&self.path).unwrap();
    }
}

/// Resumes a sweep of so many rows, inputs and outputs from a file.
fn resume(path: &Path, (rows, inputs, outputs): (usize, usize, usize)) -> phalanx::Result<()> {
    let table = ndarray::Array2::from_shape_fn((rows, inputs), |(row, column)| (row + column) as f64);
    // A file may say that there are rows that take long: there are none.
    let limits = Limits { sweep: Some(Duration::from_secs(20)), ..Limits::default() };
    let sweep = Sweep { outputs, limits, ..options(path, Backend::Serial) };
    let swept = sweep.run(
        table.view(),
        || Ok(()),
        |(), row, out| {
            if row.index % 3 == 1 {
                return Err(format!("row {} is refused", row.index).into());
            }
            out.fill(row.index as f64);
            Ok(())
        },
    )?;
    let right = |((row, _), value): ((usize, usize), &f64)| {
        if row % 3 == 1 { value.is_nan() } else { *value == row as f64 }
    };
    assert!(swept.values().indexed_iter().all(right), "a wrong value");
    Ok(())
}

/// Reads all that a file has; returns the rows that have an outcome.
fn read(path: &Path) -> phalanx::Result<Vec<usize>> {
    let table = Table::open(path)?;
    let _ = (table.inputs().len(), table.outputs().len(), table.seed(), table.configuration());
    let status = table.status()?;
    let _ = (status.rate(), status.eta(), status.state.to_string());
    let mut finished = Vec::new();
    table.each(&mut |row| {
        if row.outcome.is_some() {
            finished.push(row.index);
        }
        Ok(())
    })?;
    Ok(finished)
}

// -------------------------------------------------------------------------------------------------------------- the cases

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |number| number.parse().unwrap())
}

/// The layout that is described is the one that is read.
fn headers() {
    let (dir, mut read_back) = (Dir::new(), 0);
    let mut random = Random(number("FUZZ_SEED", 1));
    for _ in 0..500 {
        let shape = Shape::draw(&mut random);
        let Some((header, len)) = shape.header(&mut random).filter(|&(_, len)| len < 64 << 20) else {
            continue;
        };
        fs::write(dir.file(), &header).unwrap();
        File::options().write(true).open(dir.file()).unwrap().set_len(len).unwrap();
        let rows = Table::open(dir.file()).map(|table| (table.rows() as u64, table.inputs().len()));
        assert_eq!(rows.ok(), Some((shape.tasks, shape.inputs)), "{header:?}");
        File::options().write(true).open(dir.file()).unwrap().set_len(len - 1).unwrap();
        assert!(Table::open(dir.file()).unwrap_err().to_string().contains("cut off"));
        read_back += 1;
    }
    assert!(read_back > 300);
}

fn files() {
    let (inputs, seed, from) = (number("FUZZ", 5_000), number("FUZZ_SEED", 1), number("FUZZ_FROM", 0));
    let dir = Dir::new();
    let shapes = [(0, 1, 1), (1, 1, 1), (3, 2, 2), (40, 1, 5), (12, 3, 1)];
    let mut subjects: Vec<Subject> =
        shapes.into_iter().enumerate().map(|(number, shape)| Subject::new(&dir, number, shape)).collect();
    let (mut refused, mut opened, mut finished, mut slowest) = (0u64, 0u64, 0u64, Duration::ZERO);
    let mut dirty = Vec::new();
    for input in from..from + inputs {
        INPUT.store(input as usize, Ordering::Relaxed);
        let mut random = Random(seed.wrapping_mul(0xD6E8_FEB8_6659_FD93) ^ input);
        random.next();
        let which = random.below(subjects.len());
        let subject = &mut subjects[which];
        let mut bytes = std::mem::take(&mut subject.changed);
        dirty.clear();
        (0..1 + random.below(3)).for_each(|_| subject.change(&mut random, &mut bytes, &mut dirty));
        subject.write(&bytes, &dirty);
        let writes = [random.below(16) == 0, random.below(256) == 0];
        let begun = Instant::now();
        let ended = catch_unwind(AssertUnwindSafe(|| allocated(|| read(&subject.path))));
        let told = format!("input {input} of seed {seed}");
        let (found, largest, most) = ended.unwrap_or_else(|_| fail(&told, "a panic of a reader"));
        // The names of columns, their places, and texts are kept beside what was read.
        if largest > bytes.len() + 4096 || most > 4 * bytes.len() + (1 << 16) {
            fail(&told, &format!("{largest} and {most} bytes for a file of {}", bytes.len()));
        }
        match found {
            Err(error) if !error.to_string().contains(subject.path.to_str().unwrap()) => {
                fail(&told, &format!("an error that does not name the file: {error}"))
            }
            Err(_) => refused += 1,
            Ok(rows) => {
                opened += 1;
                finished += rows.len() as u64;
                let is_right = |&row: &usize| {
                    sound(&bytes, row).is_some_and(|(record, sum)| word(&bytes, record + 8) == sum)
                };
                if !rows.iter().all(is_right) {
                    fail(&told, "a row that was not committed");
                }
            }
        }
        if writes[0] {
            let causes = [FailureCause::Infeasible];
            let ended = catch_unwind(AssertUnwindSafe(|| Table::retry(&subject.path, &causes)));
            drop(ended.unwrap_or_else(|_| fail(&told, "a panic of a writer")));
        }
        if writes[1] {
            let ended = catch_unwind(AssertUnwindSafe(|| resume(&subject.path, shapes[which])));
            drop(ended.unwrap_or_else(|_| fail(&told, "a panic of a sweep, or a wrong value")));
        }
        slowest = slowest.max(begun.elapsed());
        if begun.elapsed() > Duration::from_secs(10) {
            fail(&told, "10 s");
        }
        match writes {
            [false, false] => subject.write(&subject.bytes, &dirty),
            _ => subject.replace(),
        }
        subject.changed = restored(bytes, &subject.bytes, &dirty);
        if input % 1024 == 0
            && (fs::read(&subject.path).unwrap() != subject.bytes || subject.changed != subject.bytes)
        {
            fail(&told, "the file was not put back");
        }
    }
    println!(
        "inputs= {inputs} opened= {opened} refused= {refused} rows= {finished} panics= 0 wrong= 0 slowest_us= {}",
        slowest.as_micros()
    );
    assert!(opened > inputs / 10 && refused > inputs / 10, "both are tried");
}

/// Puts back what has changed in these bytes.
fn restored(mut changed: Vec<u8>, bytes: &[u8], dirty: &[Range<usize>]) -> Vec<u8> {
    changed.resize(bytes.len(), 0);
    for part in
        dirty.iter().map(|part| part.start..part.end.min(bytes.len())).filter(|part| part.start < part.end)
    {
        changed[part.clone()].copy_from_slice(&bytes[part]);
    }
    changed
}

/// Ends the case; panics are not told of here.
fn fail(told: &str, what: &str) -> ! {
    println!("{told}: {what}");
    std::process::exit(1)
}
