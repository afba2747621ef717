//! Where an export is written: standard output, or a file that gets its name when it is whole.

use crate::Result;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// A buffered file or standard output. Its errors name it.
pub(super) struct Output {
    writer: BufWriter<File>,
    name: String,
}

impl Output {
    /// Returns standard output.
    pub(super) fn standard() -> io::Result<Output> {
        use std::os::fd::AsFd;
        let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
        Ok(Output { writer: BufWriter::new(file), name: "standard output".to_owned() })
    }

    fn named<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.name)))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.writer.write(bytes);
        self.named(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.writer.flush();
        self.named(flushed)
    }
}

impl Seek for Output {
    fn seek(&mut self, place: SeekFrom) -> io::Result<u64> {
        let found = self.writer.seek(place);
        self.named(found)
    }
}

/// A file that is being written as `PATH.new`. It is removed unless it is finished.
pub(super) struct NewFile {
    output: Output,
    new: PathBuf,
    path: PathBuf,
    force: bool,
    is_named: bool,
}

impl NewFile {
    /// Makes the file for the place `path`, an export of `source`.
    pub(super) fn create(path: PathBuf, source: &Path, force: bool) -> Result<NewFile> {
        check(&path, source, force)?;
        // The place that a link leads to, so that the link stays one.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let mut new = OsString::from(&path);
        new.push(".new");
        let new = PathBuf::from(new);
        let mut options = File::options();
        options.write(true).truncate(force).create(force).create_new(!force);
        let file = options.open(&new).map_err(|error| refused(&new, error))?;
        let output = Output { writer: BufWriter::new(file), name: new.display().to_string() };
        Ok(NewFile { output, new, path, force, is_named: false })
    }

    /// Returns where to write.
    pub(super) fn output(&mut self) -> &mut Output {
        &mut self.output
    }

    /// Writes all to the disk, then gives the file its name.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.output.flush()?;
        let synced = self.output.writer.get_ref().sync_all();
        self.output.named(synced)?;
        if !self.force && fs::symlink_metadata(&self.path).is_ok() {
            return Err(io::Error::other(format!("{}: {EXISTS}", self.path.display())));
        }
        let renamed = fs::rename(&self.new, &self.path);
        self.is_named = renamed.is_ok();
        self.output.named(renamed)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_named {
            let _ = fs::remove_file(&self.new);
        }
    }
}

const EXISTS: &str = "it exists; choose another name (-o), or overwrite it (--force)";

/// Checks that a file may be put in this place.
fn check(path: &Path, source: &Path, force: bool) -> Result<()> {
    let refuse = |why: &str| Err(format!("{}: {why}", path.display()).into());
    let Ok(found) = fs::metadata(path) else { return Ok(()) };
    match (fs::canonicalize(path), fs::canonicalize(source)) {
        (Ok(path), Ok(source)) if path == source => {
            refuse("it is the checkpoint itself; choose another name (-o)")
        }
        _ if !found.is_file() => refuse("it is no plain file; choose another name (-o)"),
        _ if !force => refuse(EXISTS),
        _ => Ok(()),
    }
}

/// Returns the error for a file that cannot be made.
fn refused(new: &Path, error: io::Error) -> String {
    let hint = match error.kind() {
        io::ErrorKind::AlreadyExists => {
            "; another export is writing it, or was ended amid it: then remove it, or overwrite it (--force)"
        }
        io::ErrorKind::NotFound => "; make its directory first",
        _ => "",
    };
    format!("{}: {error}{hint}", new.display())
}
