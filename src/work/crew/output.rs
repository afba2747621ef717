//! What the slots print, line by line, with the rank in front: through a pipe per slot and stream, which the caller reads.

use crate::error::Result;
use crate::os::process::{self, Pipe};
use std::io::Write;
use std::os::fd::AsFd;

/// A line longer than this is broken.
const LONGEST: usize = 1 << 20;

/// The pipes of all slots: standard output, standard error, by rank.
pub(super) struct Output(Vec<[Stream; 2]>);

struct Stream {
    pipe: Pipe,
    /// What has come since the last line ended.
    unfinished: Vec<u8>,
}

impl Output {
    pub(super) fn open(ranks: usize) -> Result<Output> {
        let stream = || -> Result<Stream> { Ok(Stream { pipe: Pipe::new()?, unfinished: Vec::new() }) };
        (0..ranks).map(|_| Ok([stream()?, stream()?])).collect::<Result<_>>().map(Output)
    }

    /// In a slot: what it prints from now on goes through its pipes.
    pub(super) fn enter(&self, rank: usize) {
        let [out, err] = &self.0[rank];
        process::print_to(&out.pipe, &err.pipe);
    }

    /// In the caller: what ends a wait early.
    pub(super) fn sources(&self) -> impl Iterator<Item = &dyn AsFd> {
        self.0.iter().flatten().map(|stream| &stream.pipe as &dyn AsFd)
    }

    /// In the caller: prints the whole lines that have come; at the `end` also what has not ended.
    pub(super) fn forward(&mut self, end: bool) {
        for (rank, [out, err]) in self.0.iter_mut().enumerate() {
            let _ = std::io::stdout().write_all(&out.lines(rank, end));
            let _ = std::io::stderr().write_all(&err.lines(rank, end));
        }
        let _ = std::io::stdout().flush();
    }
}

impl Stream {
    fn lines(&mut self, rank: usize, end: bool) -> Vec<u8> {
        let mut lines = Vec::new();
        loop {
            let more = self.pipe.read(&mut self.unfinished);
            let mut rest = &self.unfinished[..];
            while let Some(at) = rest.iter().position(|&byte| byte == b'\n') {
                let (line, behind) = rest.split_at(at + 1);
                lines.extend([format!("[{rank}] ").as_bytes(), line].concat());
                rest = behind;
            }
            if rest.len() > LONGEST || (end && !more && !rest.is_empty()) {
                lines.extend([format!("[{rank}] ").as_bytes(), rest, b"\n"].concat());
                rest = &[];
            }
            self.unfinished = rest.to_vec();
            if !more || (!end && lines.len() > LONGEST) {
                return lines;
            }
        }
    }
}
