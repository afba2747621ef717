//! The layout of a ledger, to the byte: the same in a memfd, in a heap and in a file.
//!
//! ```text
//! 0      Front    256 B: what the ledger is (fixed), then how far it is used (changes)
//! 256    Column   256 B for each input of a task, then for each column of a row
//! page   Record   64 B for each task (record.rs); from 2 MiB on they begin on a boundary of 2 MiB
//! page   input    f64s for each task; only in files
//! page   row      for each task; like the records
//! page   log      texts (log.rs)
//! page   Board    the state of the run that writes the file (board.rs); only in files
//! ```
//!
//! No place depends on the number of workers. All words have the byte order of the machine that wrote them,
//! and the header says which. In a file all tables begin on a page boundary and no more.

use crate::channel::ledger::board::BOARD;
use crate::channel::ledger::log::{LONGEST, SHARE};
use crate::channel::ledger::record::Record;
use crate::error::{Error, Result, start_of};
use crate::os::mapping::{HUGE, PAGE};
use crate::shm::element::shared;
use crate::shm::segment::{Carver, Segment};
use crate::sync::atomic::{AtomicU64, Ordering};
use xxhash_rust::xxh3::xxh3_64;

/// The first bytes of every ledger. Like those of PNG, they do not survive a transfer as text.
const MAGIC: [u8; 8] = *b"\x89PHLX\r\n\x1a";
/// The word that shows the byte order.
const ORDER: u32 = 0x0102_0304;
/// The version of this layout.
const VERSION: u32 = 2;
/// The bytes for texts in memory that is occupied only where it is written. Up to this bound, the text of
/// every task has room.
const SPARSE: usize = 256 << 20;
/// The same bound for memory that is occupied when it is allocated.
const DENSE: usize = 1 << 20;
/// The same bound for files.
const FILED: usize = 16 << 20;
/// The number of texts that have room beyond one for each task: those of attempts whose worker died before it
/// could commit them.
const SPARE: usize = 32;

shared! {
    /// The header of a ledger.
    ///
    /// ```text
    ///   0  magic     8 B   89 'P' 'H' 'L' 'X' 0D 0A 1A
    ///   8  order     u32   0x01020304
    ///  12  version   u32   2
    ///  16  tasks     u64   tasks that have a place: records, inputs and rows
    ///  24  row       u64   bytes of a row
    ///  32  columns   u64   columns of a row
    ///  40  given     u64   inputs of a task
    ///  48  records   u64   offset of the first record
    ///  56  inputs    u64   offset of the first input
    ///  64  rows      u64   offset of the first row
    ///  72  log       u64   offset of the log
    ///  80  log_len   u64   words of the log
    ///  88  board     u64   offset of the board; 0: none
    ///  96  seed      u64   the seed from which the random numbers of all tasks start
    /// 104  digest    u64   XXH3 of the text that describes program and configuration; 0: none was given
    /// 112  sum       u64   XXH3 of bytes 0 to 112 and of all columns
    /// 128  log_used  u64   words of the log that are used
    /// 136  writer    u64   the process that writes, or wrote last
    /// ```
    #[repr(align(128))]
    pub(super) struct Front {
        fixed: [AtomicU64; FIXED],
        sum: AtomicU64,
        _to_128: [AtomicU64; 15 - FIXED],
        pub(super) log_used: AtomicU64,
        pub(super) writer: AtomicU64,
        _to_256: [AtomicU64; 14],
    }
}

/// The number of words that do not change.
const FIXED: usize = 14;

#[cfg(not(loom))]
const _: () = assert!(size_of::<Front>() == 256 && size_of::<Described>() == 256);

/// The type of a number in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Scalar {
    F64 = 1,
    F32 = 2,
    I64 = 3,
    U64 = 4,
    /// One byte, 0 or 1.
    Bool = 5,
}

impl Scalar {
    const ALL: [Scalar; 5] = [Scalar::F64, Scalar::F32, Scalar::I64, Scalar::U64, Scalar::Bool];

    fn size(self) -> usize {
        match self {
            Scalar::F64 | Scalar::I64 | Scalar::U64 => 8,
            Scalar::F32 => 4,
            Scalar::Bool => 1,
        }
    }
}

/// A column of a table: one scalar per row, or an array of fixed length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    /// The name, of at most [`NAME`] bytes.
    pub(crate) name: String,
    pub(crate) scalar: Scalar,
    /// Scalars per row.
    pub(crate) count: usize,
}

impl Column {
    pub(crate) fn new(name: &str, scalar: Scalar, count: usize) -> Column {
        Column { name: name.to_owned(), scalar, count }
    }
}

/// The longest name of a column, in bytes.
pub(crate) const NAME: usize = 236;

/// A column as it stands in the header.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Described {
    name: [u8; NAME],
    scalar: u32,
    count: u64,
    /// Offset in the row; for an input, in the inputs of its task.
    offset: u64,
}

impl Described {
    fn new(Column { name, scalar, count }: &Column, offset: usize) -> Described {
        let mut bytes = [0; NAME];
        let known = start_of(name, NAME).as_bytes();
        bytes[..known.len()].copy_from_slice(known);
        Described { name: bytes, scalar: *scalar as u32, count: *count as u64, offset: offset as u64 }
    }

    /// Returns the column that is described, if it is one.
    fn column(&self) -> Option<Column> {
        let scalar = Scalar::ALL.into_iter().find(|&scalar| scalar as u32 == self.scalar)?;
        let name = std::str::from_utf8(&self.name).ok()?.trim_end_matches('\0').to_owned();
        Some(Column { name, scalar, count: usize::try_from(self.count).ok()? })
    }
}

/// The facts about the tasks of a ledger in a file, by which another run finds out whether they are its own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct About {
    /// The names of the inputs of a task, which are f64.
    pub(crate) inputs: Vec<String>,
    /// The seed from which the random numbers of all tasks start.
    pub(crate) seed: u64,
    /// The digest of the text that describes program and configuration; 0: there is none.
    pub(crate) digest: u64,
}

/// The places of all parts of a ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    /// Offset of the ledger in its segment.
    pub(super) base: usize,
    /// Tasks that have a place.
    pub(crate) tasks: usize,
    /// Bytes of a row.
    pub(crate) row: usize,
    pub(crate) columns: Vec<(Column, usize)>,
    pub(crate) about: About,
    pub(super) records: usize,
    pub(super) inputs: usize,
    pub(super) rows: usize,
    pub(super) log: usize,
    /// Words of the log.
    pub(super) log_len: usize,
    /// Offset of the board; 0: there is none.
    pub(super) board: usize,
    /// Offset of the first byte after the ledger.
    pub(super) end: usize,
}

/// The kind of memory in which a ledger lies; it decides how much room for texts is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Memory {
    /// A mapping of its own, which has memory only where it is written.
    Sparse,
    /// A heap, whose blocks have memory from the start.
    Dense,
    /// A file.
    File,
}

impl Layout {
    /// Lays out a ledger at `base`, a page boundary, of `tasks` rows of these columns; `None` if it
    /// overflows.
    fn try_new(
        base: usize,
        tasks: usize,
        (columns, about): (&[Column], &About),
        memory: Memory,
    ) -> Option<Layout> {
        let mut row = Carver::default();
        let mut placed = Vec::with_capacity(columns.len());
        for column in columns {
            let len = column.count.checked_mul(column.scalar.size()).filter(|&len| len < 1 << 62)?;
            placed.push((column.clone(), row.take(len, column.scalar.size())));
            (row.end() < 1 << 62).then_some(())?;
        }
        let row = row.end().checked_next_multiple_of(8).filter(|&row| row < 1 << 62)?;
        let table = tasks.checked_mul(row).filter(|&table| table < 1 << 62)?;
        let given = tasks.checked_mul(about.inputs.len().checked_mul(8)?).filter(|&given| given < 1 << 62)?;
        let room = match memory {
            Memory::Sparse => SPARSE,
            Memory::Dense => DENSE,
            Memory::File => FILED,
        };
        let all = tasks.checked_add(SPARE)?.checked_mul(LONGEST + 8)?.min(room) / 8;
        let log_len = all.max(tasks.checked_mul(SHARE / 8)?);
        // Places count from the beginning of the ledger, wherever that lies, so the bytes are the same
        // everywhere.
        let mut carver = Carver::default();
        carver.take_of::<Front>(1);
        carver.take_of::<Described>(about.inputs.len() + columns.len());
        // A table that fills huge pages begins with a huge page, if the ledger does.
        let huge = if memory == Memory::File { PAGE } else { HUGE };
        let page = |len: usize| if len >= HUGE { huge } else { PAGE };
        let words = tasks.checked_mul(size_of::<Record>())?;
        let records = carver.take(words, page(words));
        let inputs = carver.take(given, if given == 0 { 1 } else { PAGE });
        let rows = carver.take(table, page(table));
        let log = carver.take(log_len.checked_mul(8)?, PAGE);
        let board = if memory == Memory::File { base + carver.take(BOARD, PAGE) } else { 0 };
        let end = base.checked_add(carver.end()).filter(|&end| end < isize::MAX as usize)?;
        let [records, inputs, rows, log] = [records, inputs, rows, log].map(|place| base + place);
        let (columns, about) = (placed, about.clone());
        Some(Layout { base, tasks, row, columns, about, records, inputs, rows, log, log_len, board, end })
    }

    /// Lays out a ledger at `base`, a page boundary, of `tasks` rows of these columns.
    pub(crate) fn new(base: usize, tasks: usize, columns: &[Column], memory: Memory) -> Result<Layout> {
        let layout = Layout::try_new(base, tasks, (columns, &About::default()), memory);
        layout.ok_or_else(|| overflow(tasks, columns))
    }

    /// Lays out a ledger in a file.
    pub(crate) fn in_file(tasks: usize, columns: &[Column], about: &About) -> Result<Layout> {
        let layout = Layout::try_new(0, tasks, (columns, about), Memory::File);
        layout.ok_or_else(|| overflow(tasks, columns))
    }

    /// Returns the bytes of the ledger.
    pub(crate) fn len(&self) -> usize {
        self.end - self.base
    }

    /// Returns the bytes, from the first, that must be zero in a new ledger.
    pub(crate) fn zeroed(&self) -> usize {
        self.rows - self.base
    }

    fn described(&self) -> Vec<Described> {
        let input = |(at, name): (usize, &String)| Described::new(&Column::new(name, Scalar::F64, 1), 8 * at);
        let inputs = self.about.inputs.iter().enumerate().map(input);
        inputs.chain(self.columns.iter().map(|(column, offset)| Described::new(column, *offset))).collect()
    }

    /// Returns the words that do not change.
    fn fixed(&self) -> [u64; FIXED] {
        let place = |place: usize| place.saturating_sub(self.base) as u64;
        let About { inputs, seed, digest } = &self.about;
        [
            u64::from_ne_bytes(MAGIC),
            bytemuck::cast([ORDER, VERSION]),
            self.tasks as u64,
            self.row as u64,
            self.columns.len() as u64,
            inputs.len() as u64,
            place(self.records),
            place(self.inputs),
            place(self.rows),
            place(self.log),
            self.log_len as u64,
            place(self.board),
            *seed,
            *digest,
        ]
    }

    /// Writes the header, which says what the ledger is.
    pub(super) fn write(&self, segment: &Segment) {
        let front: &Front = segment.place(self.base);
        let (fixed, described) = (self.fixed(), self.described());
        let words = segment.places::<AtomicU64>(self.base + FRONT, WORDS * described.len());
        let columns: &[u64] = bytemuck::cast_slice(&described);
        words.iter().zip(columns).for_each(|(word, &value)| word.store(value, Ordering::Relaxed));
        front.fixed.iter().zip(fixed).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        front.sum.store(sum(&fixed, columns), Ordering::Release);
    }

    /// Reads the header of a ledger that another process wrote at `base`.
    ///
    /// # Errors
    /// If these bytes are no ledger, or one of another version or byte order, or cut off, or not whole.
    pub(crate) fn read(segment: &Segment, base: usize) -> Result<Layout> {
        let words = |at: usize, count: usize| {
            let words = segment.places::<AtomicU64>(base + at, count);
            Ok(words.iter().map(|word| word.load(Ordering::Relaxed)).collect())
        };
        Layout::parse(base, segment.len().saturating_sub(base), &words)
    }

    /// Reads the header of a ledger at `base`, of which `left` bytes are there. `words` returns this number of words
    /// from an offset on, all of which are there. Nothing in the header is believed before it has been checked.
    ///
    /// # Errors
    /// As [`Layout::read`], and those of `words`.
    pub(crate) fn parse(
        base: usize,
        left: usize,
        words: &dyn Fn(usize, usize) -> Result<Vec<u64>>,
    ) -> Result<Layout> {
        if left < FRONT {
            return Err(refused(format!("it has {left} bytes, and a header alone has {FRONT}")));
        }
        let front = words(0, FIXED + 1)?;
        let (mut fixed, summed) = ([0; FIXED], front[FIXED]);
        fixed.copy_from_slice(&front[..FIXED]);
        known(&fixed)?;
        let [tasks, row, columns, given] =
            [2, 3, 4, 5].map(|at| usize::try_from(fixed[at]).unwrap_or(usize::MAX));
        let count = columns.checked_add(given).ok_or_else(damaged)?;
        let bytes = count.checked_mul(size_of::<Described>()).ok_or_else(damaged)?;
        if bytes > left - FRONT {
            return Err(refused(format!("it was cut off: its {left} bytes do not hold {count} columns")));
        }
        let described = words(FRONT, bytes / 8)?;
        if summed != sum(&fixed, &described) {
            return Err(damaged());
        }
        let all = bytemuck::cast_slice::<u64, Described>(&described).iter().map(Described::column);
        let mut inputs = all.collect::<Option<Vec<_>>>().ok_or_else(damaged)?;
        let columns = inputs.split_off(given);
        let inputs = inputs.into_iter().map(|input| input.name).collect();
        let about = About { inputs, seed: fixed[12], digest: fixed[13] };
        let fits = |memory: Memory| {
            let layout = Layout::try_new(base, tasks, (&columns, &about), memory)?;
            (layout.row == row && layout.fixed() == fixed).then_some(layout)
        };
        let layout = [Memory::Sparse, Memory::Dense, Memory::File].into_iter().find_map(fits);
        let layout = layout.ok_or_else(damaged)?;
        match layout.end - base <= left {
            true => Ok(layout),
            false => Err(refused(format!("it was cut off: it has {left} of {} bytes", layout.len()))),
        }
    }

    /// Checks that the columns of this layout are those of `wanted`.
    ///
    /// # Errors
    /// If they are not; the error lists both.
    pub(crate) fn expect(&self, wanted: &[Column]) -> Result<()> {
        let found = self.columns.iter().map(|(column, _)| column);
        if found.clone().eq(wanted) {
            return Ok(());
        }
        let list = |columns: &mut dyn Iterator<Item = &Column>| {
            let named = columns.map(|Column { name, scalar, count }| format!("{name}: {count} x {scalar:?}"));
            named.collect::<Vec<_>>().join(", ")
        };
        let (found, wanted) = (list(&mut found.clone()), list(&mut wanted.iter()));
        Err(refused(format!("its rows have other columns: [{found}] instead of [{wanted}]")))
    }
}

/// The bytes of the front, and the words of a column behind it.
pub(super) const FRONT: usize = size_of::<Front>();
const WORDS: usize = size_of::<Described>() / 8;

/// Returns the error for a table that is too large.
fn overflow(tasks: usize, columns: &[Column]) -> Error {
    let bytes: u128 = columns.iter().map(|column| column.count as u128).sum();
    let problem = format!("a table of {tasks} rows of {bytes} outputs fits into no address space");
    Error::option("sweep", problem)
}

fn refused(why: String) -> Error {
    Error::option("ledger", why)
}

fn damaged() -> Error {
    refused("its header was damaged: the checksum is wrong".to_owned())
}

/// Checks that these words begin a ledger that this program can read.
fn known(fixed: &[u64; FIXED]) -> Result<()> {
    let [order, version]: [u32; 2] = bytemuck::cast(fixed[1]);
    if fixed[0].to_ne_bytes() != MAGIC {
        return Err(refused("it is no ledger of this library: its first bytes are others".to_owned()));
    }
    if order == ORDER.swap_bytes() {
        return Err(refused(
            "it was written on a machine of the other byte order: read it on one of that order".to_owned(),
        ));
    }
    if order != ORDER || version != VERSION {
        return Err(refused(format!(
            "it has version {version} of the format, this program reads version {VERSION}: use the version of the program that \
             wrote it"
        )));
    }
    Ok(())
}

fn sum(fixed: &[u64; FIXED], columns: &[u64]) -> u64 {
    let words: Vec<u64> = fixed.iter().chain(columns).copied().collect();
    xxh3_64(bytemuck::cast_slice(&words))
}
