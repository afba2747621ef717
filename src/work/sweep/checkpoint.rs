//! The checkpoint of a sweep: the result table in a file.
//!
//! ```text
//! [1] no file: make one for the table, with all inputs; it gets its name when it is whole
//! [2] a file of the same rows in the same order, or of these and others behind: go on in it
//! [3] a file of other rows or of another order: make a new file, with what the old one knows of these rows, and its other
//!     finished rows behind; it replaces the old one when it is whole
//! [4] the agenda: rows that are not finished, or whose bytes are not what was committed
//! ```
//!
//! A row is known by the digest of its parameters, never by its number. Digests that agree are believed only if the
//! parameters do, too.

use crate::error::{Error, Result};
use crate::work::executor::{
    About, Column, Ledger, LedgerFile, MOST, NAME, Read, Reader, Scalar, Site, State, Texts, point, refused,
};
use crate::work::sweep::row::{Rows, Same, canonical};
use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::path::{Path, PathBuf};
use std::time::Duration;
use xxhash_rust::xxh3::xxh3_64;

/// What to do about a file that is there when a sweep begins.
///
/// ```
/// use phalanx::{Checkpoint, Existing};
/// let checkpoint = Checkpoint { existing: Existing::Resume, ..Checkpoint::new("night.phx") };
/// assert_ne!(checkpoint.existing, Existing::default());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Existing {
    /// It is an error: nothing that is there is overwritten.
    #[default]
    Refuse,
    /// Its finished rows are kept, and the others are run. Program and configuration must be the same.
    Resume,
    /// As [`Resume`](Existing::Resume), although program or configuration ([`Checkpoint::configuration`]) have changed.
    ResumeChanged,
    /// It is replaced by a new one.
    Replace,
}

/// The file in which a sweep keeps its results: see [`Sweep::checkpoint`](crate::Sweep::checkpoint).
///
/// The file *is* the result table: workers write rows into it as into memory, and a row counts when its checksum is there.
/// After a crash of the program no finished row is lost; after a crash of the machine those may be that were finished since
/// the last [`sync`](Checkpoint::sync), and they are run again. A row whose bytes are not what was committed is never used.
///
/// A row is known by its parameters, not by its number: a table that has become longer, or is in another order, resumes
/// from the same file, and only its new rows run. (Rows of the same parameters are told apart by which of them is the
/// first, the second, ...) Finished rows that the table has no more stay in the file.
///
/// One program writes the file at a time; [`crate::Error::Locked`] names it.
///
/// ```
/// use ndarray::Array2;
/// use phalanx::{Checkpoint, Existing, Sweep};
/// # let path = std::env::temp_dir().join(format!("checkpoint-{}.phx", std::process::id()));
/// # let path = path.to_str().unwrap();
/// let roots = |rows: usize| {
///     let table = Array2::from_shape_fn((rows, 1), |(row, _)| row as f64);
///     let checkpoint = Checkpoint {
///         existing: Existing::Resume,
///         inputs: vec!["x".into()],
///         outputs: vec!["root".into()],
///         configuration: "square roots, version 1".into(),
///         ..Checkpoint::new(path)
///     };
///     let sweep = Sweep { checkpoint: Some(checkpoint), workers: Some(2), ..Sweep::default() };
///     sweep.run(table.view(), || Ok(()), |(), row, out| {
///         out[0] = row.values[0].sqrt();
///         Ok(())
///     })
/// };
/// assert_eq!(roots(50)?.resumed(), 0);
/// let swept = roots(80)?;                                  // a longer table: the new rows are run
/// assert_eq!((swept.resumed(), swept.values()[[64, 0]]), (50, 8.0));
/// # std::fs::remove_file(path)?;
/// # Ok::<(), phalanx::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The file. Its directory must be on a file system that can share files between processes (not all network file
    /// systems can), and have room for all rows from the start.
    pub path: PathBuf,
    /// What to do if the file is there already.
    pub existing: Existing,
    /// The names of the inputs, as the table's columns: `x0`, `x1`, ... if there are none. At most 236 bytes each.
    pub inputs: Vec<String>,
    /// The names of the outputs: `y0`, `y1`, ... if there are none.
    pub outputs: Vec<String>,
    /// A text that says on what results depend besides the parameters: the program's version, the model's options. A file
    /// of another text is refused, and the error shows both. Also the [seed](crate::Sweep::seed) must be the same.
    pub configuration: String,
    /// The time after which what has changed is written to the disk, again and again; 10 s by default. A crash of the
    /// program loses nothing in any case.
    pub sync: Duration,
}

impl Checkpoint {
    /// Returns the options of a checkpoint in this file, which must not exist.
    ///
    /// ```
    /// let checkpoint = phalanx::Checkpoint::new("night.phx");
    /// assert_eq!(checkpoint.existing, phalanx::Existing::Refuse);
    /// ```
    pub fn new(path: impl Into<PathBuf>) -> Checkpoint {
        Checkpoint {
            path: path.into(),
            existing: Existing::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            configuration: String::new(),
            sync: Duration::from_secs(10),
        }
    }

    /// Returns the names of the columns of a table.
    fn names(&self, given: &[String], count: usize, (kind, letter): (&str, char)) -> Result<Vec<String>> {
        if given.is_empty() {
            return Ok((0..count).map(|column| format!("{letter}{column}")).collect());
        }
        let bad = |problem: String| Err(refused(&self.path, &problem));
        if given.len() != count {
            return bad(format!("{} names for {count} {kind}s", given.len()));
        }
        for (at, name) in given.iter().enumerate() {
            if name.len() > NAME || name.contains('\0') || name.trim().is_empty() {
                return bad(format!(
                    "{kind} {at} is called {name:?}; a name has 1 to {NAME} bytes, and none is zero"
                ));
            }
            if let Some(first) = given[..at].iter().position(|other| other == name) {
                return bad(format!("{kind}s {first} and {at} are both called {name:?}"));
            }
        }
        Ok(given.to_vec())
    }

    /// Returns the columns of a row with this number of outputs.
    pub(super) fn columns(&self, outputs: usize) -> Result<Vec<Column>> {
        let names = self.names(&self.outputs, outputs, ("output", 'y'))?;
        Ok(names.iter().map(|name| Column::new(name, Scalar::F64, 1)).collect())
    }

    /// Opens the file for these rows, which have their digests: \[1]-\[4].
    ///
    /// # Errors
    /// If the options do not fit each other, or the file does not fit them; if it is in use or cannot be written.
    pub(super) fn open(&self, rows: &Rows<'_>) -> Result<Opened> {
        let columns = self.columns(rows.outputs)?;
        let inputs = self.names(&self.inputs, rows.parameters.ncols(), ("input", 'x'))?;
        let digest = if self.configuration.is_empty() { 0 } else { xxh3_64(self.configuration.as_bytes()) };
        let about = About { inputs, seed: rows.seed, digest };
        let order = Order { checkpoint: self, rows, columns, about };
        loop {
            let opened = match LedgerFile::open(&self.path)? {
                Some(file) => Some(order.take_up(file)?),
                None => order.fresh(false)?,
            };
            // Otherwise another program has made the file meanwhile.
            if let Some(opened) = opened {
                return Ok(opened);
            }
        }
    }
}

/// An open checkpoint.
pub(super) struct Opened {
    pub(super) file: LedgerFile,
    /// The rows that are to be run.
    pub(super) todo: Vec<u32>,
    /// The number of rows whose bytes were not what had been committed: they are run again.
    pub(super) damaged: usize,
}

/// What a sweep wants of its file.
struct Order<'a, 'r> {
    checkpoint: &'a Checkpoint,
    rows: &'a Rows<'r>,
    columns: Vec<Column>,
    about: About,
}

impl Order<'_, '_> {
    fn path(&self) -> &Path {
        &self.checkpoint.path
    }

    fn count(&self) -> usize {
        self.rows.parameters.nrows()
    }

    /// Makes a file of so many rows, those of the table first.
    fn create(&self, rows: usize) -> Result<LedgerFile> {
        if rows > MOST {
            return Err(refused(
                self.path(),
                &format!("{rows} rows, with those of earlier tables; {MOST} are the most"),
            ));
        }
        let named = (&*self.columns, &self.about);
        let mut file = LedgerFile::create(self.path(), rows, named, &self.checkpoint.configuration)?;
        for row in 0..self.count() {
            file.ledger_mut().set_inputs(row, &canonical(self.rows.values(row)));
        }
        Ok(file)
    }

    /// \[1] Makes a new file; `None` if there is one meanwhile, and it is not to be replaced.
    fn fresh(&self, replace: bool) -> Result<Option<Opened>> {
        let mut file = self.create(self.count())?;
        point(Site::CheckpointFilled);
        let published = file.publish(self.path(), replace)?;
        point(Site::CheckpointPublished);
        let todo = (0..self.count() as u32).collect();
        Ok(published.then_some(Opened { file, todo, damaged: 0 }))
    }

    /// Takes up a file that was there.
    fn take_up(&self, file: LedgerFile) -> Result<Opened> {
        match self.checkpoint.existing {
            Existing::Refuse => {
                let advice = "it is there already; to go on in it, resume (`Existing::Resume`), or choose another name";
                return Err(refused(self.path(), advice));
            }
            Existing::Replace => {
                return self.fresh(true)?.ok_or(Error::Corrupt { what: "the place of a checkpoint" });
            }
            Existing::Resume | Existing::ResumeChanged => self.check(&file)?,
        }
        // Another configuration is another header.
        let is_same = file.ledger().layout().about == self.about && self.is_same(&file);
        if is_same { Ok(self.go_on(file)) } else { self.remake(&file) }
    }

    /// Checks that a file has results of this program and configuration.
    fn check(&self, file: &LedgerFile) -> Result<()> {
        let layout = file.ledger().layout();
        let found: Vec<&str> = layout.columns.iter().map(|(column, _)| &*column.name).collect();
        let wanted: Vec<&str> = self.columns.iter().map(|column| &*column.name).collect();
        for (kind, found, wanted) in [
            (
                "inputs",
                layout.about.inputs.iter().map(String::as_str).collect(),
                self.about.inputs.iter().map(String::as_str).collect(),
            ),
            ("outputs", found, wanted),
        ] as [(&str, Vec<&str>, Vec<&str>); 2]
        {
            if found != wanted {
                let (found, wanted) = (found.join(", "), wanted.join(", "));
                let problem =
                    format!("its {kind} are [{found}], those of this sweep [{wanted}]; choose another file");
                return Err(refused(self.path(), &problem));
            }
        }
        layout.expect(&self.columns)?;
        if self.checkpoint.existing == Existing::ResumeChanged {
            return Ok(());
        }
        let advice = "the results would be of two kinds; choose another file, or go on all the same (`Existing::ResumeChanged`)";
        let (was, is) = (&layout.about, &self.about);
        if was.seed != is.seed {
            let problem = format!("its seed is {}, that of this sweep {}: {advice}", was.seed, is.seed);
            return Err(refused(self.path(), &problem));
        }
        if was.digest != is.digest {
            let (was, is) = (file.ledger().log().text(1), &self.checkpoint.configuration);
            let problem = format!("its configuration is {was:?}, that of this sweep {is:?}: {advice}");
            return Err(refused(self.path(), &problem));
        }
        Ok(())
    }

    /// Returns whether a file begins with the rows of the table, in their order. The result of the second row of some
    /// parameters is not that of the first.
    fn is_same(&self, file: &LedgerFile) -> bool {
        let ledger = file.ledger();
        let digests = self.rows.known_digests();
        let is_known = |row: usize| ledger.record(row).facts().digest == digests[row];
        let same = |row: usize| {
            same(ledger.inputs(row), self.rows.values(row))
                && (!ledger.state(row).is_settled() || is_known(row))
        };
        ledger.tasks() >= self.count() && (0..self.count()).all(same)
    }

    /// \[2], \[4] Goes on in a file.
    fn go_on(&self, file: LedgerFile) -> Opened {
        let digests = self.rows.known_digests();
        let ledger = file.ledger();
        // The digest in the header is that of this text.
        ledger.log().restore(&self.checkpoint.configuration);
        let damaged = ledger.settle(|row| digests.get(row).copied());
        point(Site::CheckpointSettled);
        let todo =
            (0..self.count()).filter(|&row| !ledger.state(row).is_finished()).map(|row| row as u32).collect();
        Opened { file, todo, damaged }
    }

    /// \[3], \[4] Makes a new file of the rows of the table and of all that an old one knows.
    fn remake(&self, old: &LedgerFile) -> Result<Opened> {
        let reader = Reader::open(old.path())?;
        let (mut known, mut damaged) = (HashMap::<u64, u32, BuildHasherDefault<Same>>::default(), 0);
        let mut said = HashMap::new();
        reader.scan(&mut |read| {
            match State::of(read.words[0]) {
                State::Done | State::Failed(_) if !is_whole(&read, &reader, &mut said)? => damaged += 1,
                state if state.is_settled() => {
                    _ = known.entry(read.facts().digest).or_insert(read.task as u32)
                }
                _ => {}
            }
            Ok(())
        })?;
        // Where each row of the old file goes.
        let mut places = vec![None; reader.layout().tasks];
        let digests = self.rows.known_digests();
        for (row, digest) in digests.iter().enumerate() {
            if let Some(old) = known.remove(digest) {
                places[old as usize] = Some(row);
            }
        }
        let mut others: Vec<u32> = known.into_values().collect();
        others.sort_unstable();
        others.iter().enumerate().for_each(|(at, &old)| places[old as usize] = Some(self.count() + at));
        let mut file = self.create(self.count() + others.len())?;
        let mut texts = Texts::default();
        reader.scan(&mut |read| match places[read.task] {
            Some(row) => self.keep(file.ledger_mut(), row, &read, &mut texts, &reader),
            None => Ok(()),
        })?;
        point(Site::CheckpointKept);
        file.publish(self.path(), true)?;
        point(Site::CheckpointPublished);
        let ledger = file.ledger();
        let todo =
            (0..self.count()).filter(|&row| !ledger.state(row).is_finished()).map(|row| row as u32).collect();
        Ok(Opened { file, todo, damaged })
    }

    /// Copies what another file knows of a row.
    fn keep(
        &self,
        ledger: &mut Ledger,
        row: usize,
        read: &Read<'_>,
        texts: &mut Texts,
        reader: &Reader,
    ) -> Result<()> {
        if row >= self.count() {
            ledger.set_inputs(row, read.inputs);
        } else if !same(read.inputs, self.rows.values(row)) {
            // Two rows of one digest: this one is run.
            return Ok(());
        }
        copy((ledger, row), read, (texts, reader))
    }
}

/// Copies the outcome of a row from one file to another, with its text.
fn copy(
    (to, row): (&mut Ledger, usize),
    read: &Read<'_>,
    (texts, from): (&mut Texts, &Reader),
) -> Result<()> {
    let place = match (read.facts().text, from.text(read.facts().text)?) {
        (0, _) => 0,
        (_, Some(text)) => texts.place(to.log(), &text, &|| to.tasks()),
        (_, None) => return Ok(()),
    };
    to.put(row, read, place);
    Ok(())
}

/// Returns whether the outcome of a finished row and its text are what was committed. `said` remembers the places of texts.
fn is_whole(read: &Read<'_>, from: &Reader, said: &mut HashMap<u64, bool>) -> Result<bool> {
    let place = read.facts().text;
    if place == 0 || !read.is_sound() {
        return Ok(read.is_sound());
    }
    if let Some(&known) = said.get(&place) {
        return Ok(known);
    }
    let known = from.text(place)?.is_some();
    said.insert(place, known);
    Ok(known)
}

/// Makes a file of all finished rows of some others, in their order. A row that several files have comes from the first in
/// which it has a result. Returns the number of rows, and of those that were damaged.
pub(super) fn merge(files: &[PathBuf], to: &Path) -> Result<(usize, usize)> {
    let readers = files.iter().map(|path| Reader::open(path)).collect::<Result<Vec<_>>>()?;
    let Some(first) = readers.first() else { return Err(Error::option("merge", "no file is named")) };
    let layout = first.layout();
    let columns: Vec<Column> = layout.columns.iter().map(|(column, _)| column.clone()).collect();
    for reader in &readers {
        reader.layout().expect(&columns).map_err(|error| refused(reader.path(), &error.to_string()))?;
        if reader.layout().about != layout.about {
            let other = "inputs, seed or configuration are not those of the first file";
            return Err(refused(reader.path(), other));
        }
    }
    let mut known = HashMap::<u64, (usize, usize, bool), BuildHasherDefault<Same>>::default();
    let mut damaged = 0;
    for (file, reader) in readers.iter().enumerate() {
        let mut said = HashMap::new();
        reader.scan(&mut |read| {
            let state = State::of(read.words[0]);
            if !state.is_settled() {
                return Ok(());
            }
            if !is_whole(&read, reader, &mut said)? {
                damaged += 1;
                return Ok(());
            }
            let found = (file, read.task, state == State::Done);
            let kept = known.entry(read.facts().digest).or_insert(found);
            if !kept.2 && found.2 {
                *kept = found;
            }
            Ok(())
        })?;
    }
    let mut rows: Vec<(usize, usize)> = known.into_values().map(|(file, task, _)| (file, task)).collect();
    rows.sort_unstable();
    let mut made = LedgerFile::create(to, rows.len(), (&columns, &layout.about), &first.configuration()?)?;
    let mut texts = Texts::default();
    let mut wanted = rows.iter().enumerate().peekable();
    for (file, reader) in readers.iter().enumerate() {
        reader.scan(&mut |read| {
            let Some((row, _)) = wanted.next_if(|&(_, &place)| place == (file, read.task)) else {
                return Ok(());
            };
            made.ledger_mut().set_inputs(row, read.inputs);
            copy((made.ledger_mut(), row), &read, (&mut texts, reader))
        })?;
    }
    match made.publish(to, false)? {
        true => Ok((rows.len(), damaged)),
        false => Err(refused(to, "it is there already; choose another name")),
    }
}

/// Returns whether the inputs in a file are these parameters, to the bit.
fn same(inputs: &[f64], values: &[f64]) -> bool {
    let bits = |numbers: &[f64]| bytemuck::cast_slice::<f64, u64>(numbers).to_vec();
    inputs.len() == values.len()
        && (inputs.iter().zip(values).all(|(a, b)| a.to_bits() == b.to_bits())
            || bits(inputs) == bits(&canonical(values)))
}
