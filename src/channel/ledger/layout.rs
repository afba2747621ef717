//! The layout of a ledger, to the byte: the same in a memfd, in a heap and in a file.
//!
//! ```text
//! 0      Front    256 B: what the ledger is (fixed), then how far it is used (changes)
//! 256    Column   64 B for each column of a row
//! page   Record   64 B for each task (record.rs); from 2 MiB on they begin on a boundary of 2 MiB
//! page   row      for each task; likewise
//! page   log      texts (log.rs)
//! ```
//!
//! No place depends on the number of workers. All words have the byte order of the machine that wrote them,
//! and the header says which.

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
const VERSION: u32 = 1;
/// The bytes for texts in memory that is occupied only where it is written. Up to this bound, the text of
/// every task has room.
const SPARSE: usize = 256 << 20;
/// The same bound for memory that is occupied when it is allocated.
const DENSE: usize = 1 << 20;
/// The number of texts that have room beyond one for each task: those of attempts whose worker died before it
/// could commit them.
const SPARE: usize = 32;

shared! {
    /// The header of a ledger.
    ///
    /// ```text
    ///   0  magic     8 B   89 'P' 'H' 'L' 'X' 0D 0A 1A
    ///   8  order     u32   0x01020304
    ///  12  version   u32   1
    ///  16  tasks     u64   tasks that have a place: records and rows
    ///  24  row       u64   bytes of a row
    ///  32  columns   u64   columns of a row
    ///  40  records   u64   offset of the first record
    ///  48  rows      u64   offset of the first row
    ///  56  log       u64   offset of the log
    ///  64  log_len   u64   words of the log
    ///  72  sum       u64   XXH3 of bytes 0 to 72 and of all columns
    /// 128  appended  u64   tasks that there are: below `tasks` while more may be appended
    /// 136  log_used  u64   words of the log that are used
    /// ```
    #[repr(align(128))]
    pub(super) struct Front {
        fixed: [AtomicU64; FIXED],
        sum: AtomicU64,
        _to_128: [AtomicU64; 15 - FIXED],
        pub(super) appended: AtomicU64,
        pub(super) log_used: AtomicU64,
        _to_256: [AtomicU64; 14],
    }
}

/// The number of words that do not change.
const FIXED: usize = 9;

#[cfg(not(loom))]
const _: () = assert!(size_of::<Front>() == 256 && size_of::<Described>() == 64);

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
    /// The name, of at most 44 bytes.
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
const NAME: usize = 44;

/// A column as it stands in the header.
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Described {
    name: [u8; NAME],
    scalar: u32,
    count: u64,
    /// Offset in the row.
    offset: u64,
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
    pub(super) records: usize,
    pub(super) rows: usize,
    pub(super) log: usize,
    /// Words of the log.
    pub(super) log_len: usize,
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
}

impl Layout {
    /// Lays out a ledger at `base`, a page boundary, of `tasks` rows of these columns; `None` if it
    /// overflows.
    fn try_new(base: usize, tasks: usize, columns: &[Column], memory: Memory) -> Option<Layout> {
        let mut row = Carver::default();
        let mut placed = Vec::with_capacity(columns.len());
        for column in columns {
            let len = column.count.checked_mul(column.scalar.size()).filter(|&len| len < 1 << 62)?;
            placed.push((column.clone(), row.take(len, column.scalar.size())));
            (row.end() < 1 << 62).then_some(())?;
        }
        let row = row.end().checked_next_multiple_of(8).filter(|&row| row < 1 << 62)?;
        let table = tasks.checked_mul(row).filter(|&table| table < 1 << 62)?;
        let room = if memory == Memory::Sparse { SPARSE } else { DENSE };
        let all = tasks.checked_add(SPARE)?.checked_mul(LONGEST + 8)?.min(room) / 8;
        let log_len = all.max(tasks.checked_mul(SHARE / 8)?);
        // Places count from the beginning of the ledger, wherever that lies, so the bytes are the same
        // everywhere.
        let mut carver = Carver::default();
        carver.take_of::<Front>(1);
        carver.take_of::<Described>(columns.len());
        // A table that fills huge pages begins with a huge page, if the ledger does.
        let page = |len: usize| if len >= HUGE { HUGE } else { PAGE };
        let words = tasks.checked_mul(size_of::<Record>())?;
        let records = carver.take(words, page(words));
        let rows = carver.take(table, page(table));
        let log = carver.take(log_len.checked_mul(8)?, PAGE);
        let end = base.checked_add(carver.end()).filter(|&end| end < isize::MAX as usize)?;
        let [records, rows, log] = [records, rows, log].map(|place| base + place);
        Some(Layout { base, tasks, row, columns: placed, records, rows, log, log_len, end })
    }

    /// Lays out a ledger at `base`, a page boundary, of `tasks` rows of these columns.
    pub(crate) fn new(base: usize, tasks: usize, columns: &[Column], memory: Memory) -> Result<Layout> {
        let overflow = || {
            let bytes: u128 = columns.iter().map(|column| column.count as u128).sum();
            let problem = format!("a table of {tasks} rows of {bytes} outputs fits into no address space");
            Error::option("sweep", problem)
        };
        Layout::try_new(base, tasks, columns, memory).ok_or_else(overflow)
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
        let describe = |(column, offset): &(Column, usize)| {
            let mut name = [0; NAME];
            let known = start_of(&column.name, NAME).as_bytes();
            name[..known.len()].copy_from_slice(known);
            let (scalar, count, offset) = (column.scalar as u32, column.count as u64, *offset as u64);
            Described { name, scalar, count, offset }
        };
        self.columns.iter().map(describe).collect()
    }

    /// Writes the header, which says what the ledger is.
    pub(super) fn write(&self, segment: &Segment) {
        let front: &Front = segment.place(self.base);
        let magic = u64::from_ne_bytes(MAGIC);
        let order: u64 = bytemuck::cast([ORDER, VERSION]);
        let places = [self.records, self.rows, self.log].map(|place| (place - self.base) as u64);
        let [records, rows, log] = places;
        let (tasks, row, columns) = (self.tasks as u64, self.row as u64, self.columns.len() as u64);
        let fixed = [magic, order, tasks, row, columns, records, rows, log, self.log_len as u64];
        let described = self.described();
        let words = segment.places::<AtomicU64>(self.base + size_of::<Front>(), 8 * described.len());
        let columns: &[u64] = bytemuck::cast_slice(&described);
        words.iter().zip(columns).for_each(|(word, &value)| word.store(value, Ordering::Relaxed));
        front.fixed.iter().zip(fixed).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        front.appended.store(tasks, Ordering::Relaxed);
        front.sum.store(sum(&fixed, columns), Ordering::Release);
    }

    /// Reads the header of a ledger that another process wrote at `base`. Nothing in the header is believed
    /// before it has been checked.
    ///
    /// # Errors
    /// If these bytes are no ledger, or one of another version or byte order, or cut off, or not whole.
    pub(crate) fn read(segment: &Segment, base: usize) -> Result<Layout> {
        let refused = |why: String| Error::option("ledger", why);
        let left = segment.len().saturating_sub(base);
        if left < size_of::<Front>() {
            return Err(refused(format!(
                "it has {left} bytes, and a header alone has {}",
                size_of::<Front>()
            )));
        }
        let front: &Front = segment.place(base);
        let fixed: [u64; FIXED] = core::array::from_fn(|at| front.fixed[at].load(Ordering::Relaxed));
        let [order, version]: [u32; 2] = bytemuck::cast(fixed[1]);
        if fixed[0].to_ne_bytes() != MAGIC {
            return Err(refused("it is no ledger of this library: its first bytes are others".to_owned()));
        }
        if order == ORDER.swap_bytes() {
            return Err(refused(
                "it was written on a machine of the other byte order: read it on one of that order"
                    .to_owned(),
            ));
        }
        if order != ORDER || version != VERSION {
            let problem = format!(
                "it has version {version} of the format, this program reads version {VERSION}: use the version of the program \
                 that wrote it"
            );
            return Err(refused(problem));
        }
        let corrupt = || refused("its header was damaged: the checksum is wrong".to_owned());
        let count = usize::try_from(fixed[4]).map_err(|_| corrupt())?;
        let bytes = count.checked_mul(size_of::<Described>()).ok_or_else(corrupt)?;
        if bytes > left - size_of::<Front>() {
            return Err(refused(format!("it was cut off: its {left} bytes do not hold {count} columns")));
        }
        let words = segment.places::<AtomicU64>(base + size_of::<Front>(), bytes / 8);
        let words: Vec<u64> = words.iter().map(|word| word.load(Ordering::Relaxed)).collect();
        if front.sum.load(Ordering::Acquire) != sum(&fixed, &words) {
            return Err(corrupt());
        }
        let columns =
            bytemuck::cast_slice::<u64, Described>(&words).iter().map(column).collect::<Option<Vec<_>>>();
        let columns = columns.ok_or_else(corrupt)?;
        let tasks = usize::try_from(fixed[2]).map_err(|_| corrupt())?;
        let fits = |memory: &Memory| {
            let layout = Layout::try_new(base, tasks, &columns, *memory)?;
            let [_, _, _, row, _, records, rows, log, log_len] = fixed;
            let places = [layout.records, layout.rows, layout.log].map(|place| (place - base) as u64);
            let said = places == [records, rows, log] && layout.row as u64 == row;
            (said && layout.log_len as u64 == log_len).then_some(layout)
        };
        let layout = [Memory::Sparse, Memory::Dense].iter().find_map(fits).ok_or_else(corrupt)?;
        match layout.end <= segment.len() {
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
        Err(Error::option("ledger", format!("its rows have other columns: [{found}] instead of [{wanted}]")))
    }
}

/// Returns the column that a header describes.
fn column(described: &Described) -> Option<Column> {
    let scalar = Scalar::ALL.into_iter().find(|&scalar| scalar as u32 == described.scalar)?;
    let name = std::str::from_utf8(&described.name).ok()?.trim_end_matches('\0').to_owned();
    Some(Column { name, scalar, count: usize::try_from(described.count).ok()? })
}

fn sum(fixed: &[u64; FIXED], columns: &[u64]) -> u64 {
    let words: Vec<u64> = fixed.iter().chain(columns).copied().collect();
    xxh3_64(bytemuck::cast_slice(&words))
}
