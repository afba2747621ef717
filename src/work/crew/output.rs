//! What the slots print, line by line, with the rank in front: through a pipe per slot and stream, which the caller reads.

use crate::error::Result;
use crate::os::descriptor::{self, Pipe};
use std::os::fd::AsFd;
use std::time::Duration;

/// A line longer than this is broken. While more than this waits to be printed, slots that print wait, too.
const LONGEST: usize = 1 << 20;
/// How long the caller waits for whoever reads what it prints before it looks after other things: while slots run, and when
/// there are none left.
const PATIENCE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];

/// The standard output and error of the slots.
pub(super) struct Output {
    /// The pipes of all slots, by rank.
    slots: Vec<[Stream; 2]>,
    /// Whole lines that wait to be printed.
    waiting: [Vec<u8>; 2],
}

struct Stream {
    pipe: Pipe,
    /// What has come since the last line ended.
    unfinished: Vec<u8>,
}

impl Output {
    pub(super) fn open(ranks: usize) -> Result<Output> {
        let stream = || -> Result<Stream> { Ok(Stream { pipe: Pipe::new()?, unfinished: Vec::new() }) };
        let slots = (0..ranks).map(|_| Ok([stream()?, stream()?])).collect::<Result<_>>()?;
        Ok(Output { slots, waiting: [Vec::new(), Vec::new()] })
    }

    /// In a slot: what it prints from now on goes through its pipes.
    pub(super) fn enter(&self, rank: usize) {
        let [out, err] = &self.slots[rank];
        descriptor::print_to(&out.pipe, &err.pipe);
    }

    /// In the caller: what ends a wait early.
    pub(super) fn sources(&self) -> impl Iterator<Item = &dyn AsFd> {
        let streams = self.slots.iter().flat_map(|streams| streams.iter().zip(&self.waiting));
        streams.filter(|(_, waiting)| waiting.len() <= LONGEST).map(|(stream, _)| &stream.pipe as &dyn AsFd)
    }

    /// In the caller: prints the whole lines that have come, at the `end` also what has not ended, as far as somebody takes
    /// them; returns whether that was all.
    pub(super) fn forward(&mut self, end: bool) -> bool {
        let mut read = true;
        for (rank, streams) in self.slots.iter_mut().enumerate() {
            for (stream, waiting) in streams.iter_mut().zip(&mut self.waiting) {
                read &= waiting.len() <= LONGEST;
                if waiting.len() <= LONGEST {
                    waiting.extend(stream.lines(rank, end));
                }
            }
        }
        for (fd, waiting) in [1, 2].into_iter().zip(&mut self.waiting) {
            waiting.drain(..descriptor::print(fd, waiting, PATIENCE[usize::from(end)]));
        }
        read && self.waiting.iter().all(Vec::is_empty)
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
