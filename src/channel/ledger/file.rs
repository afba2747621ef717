//! Ledgers in files: the one that a run writes, which is mapped and locked; and any, read from outside.
//!
//! The file *is* the ledger (layout.rs). Its pages reach the disk in any order, so that after a crash of the machine a
//! record may be there without its row, or the other way round: each row counts only if its checksum is right. A row that
//! is not is done again.

use crate::channel::ledger::board::{Desk, Run};
use crate::channel::ledger::layout::{About, Column, FRONT, Layout};
use crate::channel::ledger::record::{self, Facts};
use crate::channel::ledger::{Ledger, Texts, log};
use crate::channel::recovery::MAX_RANKS;
use crate::error::{Error, Result};
use crate::os::fault::{Site, point};
use crate::os::file::{self, Held, refused};
use crate::os::process;
use crate::shm::segment::Segment;
use crate::sync::atomic::Ordering;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The place of the process number in the header.
const WRITER: usize = 136;
/// The most bytes that are read at once, of rows that are shorter, and the most records.
const PIECE: usize = 1 << 20;
const RECORDS: usize = PIECE / 64;

/// A ledger in a file that this process has for itself.
pub(crate) struct LedgerFile {
    held: Held,
    ledger: Ledger,
}

impl LedgerFile {
    /// Makes a file for the place `path`, where it will be put by [`LedgerFile::publish`]. `text` describes program and
    /// configuration.
    ///
    /// # Errors
    /// If the table is too large, or the file cannot be made: no room, no right, no directory.
    pub(crate) fn create(
        path: &Path,
        tasks: usize,
        (columns, about): (&[Column], &About),
        text: &str,
    ) -> Result<LedgerFile> {
        let layout = Layout::in_file(tasks, columns, about)?;
        let held = Held::create(path, layout.len())?;
        let segment = Arc::new(Segment::of_file(&held, layout.len())?);
        layout.write(&segment);
        point(Site::FileWritten);
        let ledger = Ledger::over(segment, layout);
        // The first text of the log, which every run finds there.
        Texts::default().place(ledger.log(), text, &|| 1);
        ledger.front().writer.store(u64::from(process::pid()), Ordering::Relaxed);
        Ok(LedgerFile { held, ledger })
    }

    /// Puts a new file under its name. Returns false if the name was taken meanwhile, unless the file there is to be
    /// replaced.
    ///
    /// # Errors
    /// If the disk or the directory cannot be written.
    pub(crate) fn publish(&mut self, path: &Path, replace: bool) -> Result<bool> {
        self.held.publish(path, replace)
    }

    /// Opens the ledger in a file, to write it; `None` if there is no such file.
    ///
    /// # Errors
    /// If the file is in use, is no ledger, was damaged or cut off.
    pub(crate) fn open(path: &Path) -> Result<Option<LedgerFile>> {
        let Some(held) = Held::open(path, |file| writer(file, path))? else { return Ok(None) };
        // Read before it is mapped: the length of a mapping must be that of the file.
        let layout = parse(held.file(), path, held.len()?)?;
        let segment = Arc::new(Segment::of_file(&held, layout.len())?);
        let ledger = Ledger::over(segment, layout);
        point(Site::FileOpened);
        ledger.front().writer.store(u64::from(process::pid()), Ordering::Relaxed);
        Ok(Some(LedgerFile { held, ledger }))
    }

    /// Returns the ledger.
    pub(crate) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Returns the ledger of a new file, to write its inputs.
    pub(crate) fn ledger_mut(&mut self) -> &mut Ledger {
        &mut self.ledger
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        self.held.path()
    }

    /// Writes to the disk what has changed; returns when it is there.
    ///
    /// # Errors
    /// If the disk cannot be written.
    pub(crate) fn flush(&self) -> Result<()> {
        self.ledger.segment().flush()
    }
}

/// Asks the run that writes a file for so many workers.
///
/// # Errors
/// If it is no ledger, or cannot be written.
pub(crate) fn ask_for_workers(path: &Path, workers: u64) -> Result<()> {
    let board = Reader::open(path)?.layout.board;
    file::write_at(path, &(workers + 1).to_ne_bytes(), board + core::mem::offset_of!(Run, wanted))
}

/// Returns the process that writes a file, or wrote it last.
fn writer(file: &File, path: &Path) -> u32 {
    let mut bytes = [0; 8];
    let read = file::read_at(file, path, &mut bytes, WRITER);
    read.map_or(0, |()| u64::from_ne_bytes(bytes) as u32)
}

/// Reads the header of a file of `len` bytes.
fn parse(file: &File, path: &Path, len: usize) -> Result<Layout> {
    if len < FRONT {
        return Err(refused(
            path,
            &format!("it is no checkpoint: it has {len} bytes, and a header alone has {FRONT}"),
        ));
    }
    let words = |at: usize, count: usize| {
        let mut words = vec![0u64; count];
        file::read_at(file, path, bytemuck::cast_slice_mut(&mut words), at)?;
        Ok(words)
    };
    let layout = Layout::parse(0, len, &words).map_err(|error| match error {
        Error::BadArgument { problem, .. } => refused(path, &problem),
        other => other,
    })?;
    match layout.board {
        0 => Err(refused(path, "it is no checkpoint: it is a table in memory, which was copied")),
        _ => Ok(layout),
    }
}

/// The ledger in a file, read from outside: nothing is mapped, so that a file that is cut off meanwhile is an error. Others
/// may write it.
pub(crate) struct Reader {
    file: File,
    path: PathBuf,
    layout: Layout,
}

/// A task as it stands in a file.
pub(crate) struct Read<'r> {
    pub(crate) task: usize,
    pub(crate) words: [u64; 8],
    pub(crate) inputs: &'r [f64],
    /// The bytes of the row, on a boundary of 8 bytes.
    pub(crate) row: &'r [u8],
}

impl Read<'_> {
    /// Returns whether record, inputs and row are those that were committed.
    pub(crate) fn is_sound(&self) -> bool {
        record::is_sound(&self.words, record::content(self.inputs, self.row))
    }

    /// Returns the facts about the task.
    pub(crate) fn facts(&self) -> Facts {
        Facts::of(&self.words).1
    }
}

impl Reader {
    /// Opens the ledger in a file.
    ///
    /// # Errors
    /// If there is no such file, or it is no ledger, was damaged or cut off.
    pub(crate) fn open(path: &Path) -> Result<Reader> {
        let file = file::open_to_read(path)?;
        let len = file.metadata().map_err(Error::from)?.len();
        let layout = parse(&file, path, usize::try_from(len).unwrap_or(usize::MAX))?;
        Ok(Reader { file, path: path.to_owned(), layout })
    }

    /// Returns the path of the file.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns whether a run is writing the file; `None` if that cannot be found out.
    pub(crate) fn is_held(&self) -> Option<bool> {
        file::is_held(&self.file)
    }

    /// Returns the number of tasks.
    pub(crate) fn tasks(&self) -> usize {
        self.layout.tasks
    }

    /// Returns the layout of the ledger.
    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&self, bytes: &mut [u8], at: usize) -> Result<()> {
        file::read_at(&self.file, &self.path, bytes, at)
    }

    /// Calls `each` with every task, in their order.
    ///
    /// # Errors
    /// If the file cannot be read, or the error of `each`.
    pub(crate) fn scan(&self, each: &mut dyn FnMut(Read<'_>) -> Result<()>) -> Result<()> {
        let Layout { tasks, row, records, inputs: given, rows, ref about, .. } = self.layout;
        if tasks == 0 {
            // Nothing bounds the bytes of a row.
            return Ok(());
        }
        let width = about.inputs.len();
        let piece = (PIECE / (64 + row + 8 * width)).clamp(1, tasks);
        let (mut words, mut inputs) = (vec![[0u64; 8]; piece], vec![0f64; piece * width]);
        let mut bytes = vec![0u64; piece * row / 8];
        for first in (0..tasks).step_by(piece) {
            let count = piece.min(tasks - first);
            self.read(bytemuck::cast_slice_mut(&mut words[..count]), records + 64 * first)?;
            self.read(bytemuck::cast_slice_mut(&mut inputs[..count * width]), given + 8 * width * first)?;
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut bytes);
            self.read(&mut bytes[..count * row], rows + row * first)?;
            for at in 0..count {
                let (inputs, row) = (&inputs[at * width..(at + 1) * width], &bytes[at * row..(at + 1) * row]);
                each(Read { task: first + at, words: words[at], inputs, row })?;
            }
        }
        Ok(())
    }

    /// Calls `each` with the number and the record of every task, in their order; inputs and rows are not read.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn records(&self, each: &mut dyn FnMut(usize, &[u64; 8])) -> Result<()> {
        let Layout { tasks, records, .. } = self.layout;
        let mut words = vec![[0u64; 8]; RECORDS.min(tasks)];
        for first in (0..tasks).step_by(RECORDS) {
            let count = RECORDS.min(tasks - first);
            self.read(bytemuck::cast_slice_mut(&mut words[..count]), records + 64 * first)?;
            words[..count].iter().enumerate().for_each(|(at, words)| each(first + at, words));
        }
        Ok(())
    }

    /// Returns the text at a place of the log; `None` if it is not what was written. There was no room for the text at
    /// place 0.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn text(&self, place: u64) -> Result<Option<String>> {
        let Layout { log, log_len, .. } = self.layout;
        let Some(at) = (place as usize).checked_sub(1) else { return Ok(Some(log::LOST.to_owned())) };
        let mut words = vec![0u64; log::MOST.min(log_len.saturating_sub(at))];
        self.read(bytemuck::cast_slice_mut(&mut words), (log + 8 * at.min(log_len)).min(self.layout.end))?;
        Ok(log::whole(&words).map(|text| String::from_utf8_lossy(&text).into_owned()))
    }

    /// Returns the text that describes program and configuration.
    ///
    /// # Errors
    /// If the file cannot be read, or the text was damaged.
    pub(crate) fn configuration(&self) -> Result<String> {
        self.text(1)?.ok_or_else(|| refused(&self.path, "the text of its configuration was damaged"))
    }

    /// Returns the state of the last run, as its caller saw it, and those of its workers.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub(crate) fn run(&self) -> Result<(Run, Vec<Desk>)> {
        let mut run: Run = bytemuck::Zeroable::zeroed();
        self.read(bytemuck::bytes_of_mut(&mut run), self.layout.board)?;
        let desks = (run.desks as usize).min(MAX_RANKS);
        let mut all = vec![bytemuck::Zeroable::zeroed(); desks];
        self.read(bytemuck::cast_slice_mut(&mut all), self.layout.board + size_of::<Run>())?;
        Ok((run, all))
    }
}
