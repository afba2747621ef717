//! Carries the output of slots to the caller's streams, in whole lines with the rank in front.
//!
//! ```text
//! slot     prints to its standard output and error, which are pipes: one per slot and stream
//! caller   [1] reads what is in the pipes, without waiting
//!          [2] cuts it into lines; the beginning of a line that has no end yet waits for the rest
//!          [3] prints whole lines as fast as they are taken; others wait in memory
//! ```
//!
//! *Nobody waits for ever.* The caller must look after its zygote and signals too, and therefore waits for
//! the reader of its output only for a moment at a time. While too much output waits to be printed, the
//! caller reads no more; pipes fill, and slots that print wait. When the slots have ended, the caller prints
//! what is left.

use crate::error::Result;
use crate::os::descriptor::{self, Pipe};
use std::os::fd::AsFd;
use std::time::Duration;

/// The number of bytes above which a line is broken, and above which, if they wait to be printed, slots that
/// print wait too.
const LONGEST: usize = 1 << 20;
/// The time for which the caller waits for the reader of its output before it looks after other things: while
/// slots run, and when none is left.
const PATIENCE: [Duration; 2] = [Duration::from_millis(5), Duration::from_millis(50)];

/// The standard output and error of the slots.
pub(super) struct Output {
    /// The pipes of all slots, by rank.
    slots: Vec<[Stream; 2]>,
    /// Whole lines that wait to be printed.
    waiting: [Vec<u8>; 2],
}

/// One stream of a slot.
struct Stream {
    pipe: Pipe,
    /// The beginning of a line whose end has not been read yet.
    unfinished: Vec<u8>,
}

impl Output {
    /// Makes the pipes, before the zygote is forked: the zygote and its slots inherit them.
    pub(super) fn open(ranks: usize) -> Result<Output> {
        let stream = || -> Result<Stream> { Ok(Stream { pipe: Pipe::new()?, unfinished: Vec::new() }) };
        let slots = (0..ranks).map(|_| Ok([stream()?, stream()?])).collect::<Result<_>>()?;
        Ok(Output { slots, waiting: [Vec::new(), Vec::new()] })
    }

    /// Sends the output of this process, a slot's, through its pipes from now on.
    pub(super) fn enter(&self, rank: usize) {
        let [out, err] = &self.slots[rank];
        descriptor::print_to(&out.pipe, &err.pipe);
    }

    /// Returns the pipes that end a wait of the caller early: those that the caller would read now.
    pub(super) fn sources(&self) -> impl Iterator<Item = &dyn AsFd> {
        let streams = self.slots.iter().flat_map(|streams| streams.iter().zip(&self.waiting));
        streams.filter(|(_, waiting)| waiting.len() <= LONGEST).map(|(stream, _)| &stream.pipe as &dyn AsFd)
    }

    /// \[1]-\[3] Reads, in the caller, and prints whole lines as far as they are taken; at the `end`, when no
    /// slot is left, also a line without an end. Returns whether nothing is left.
    pub(super) fn forward(&mut self, end: bool) -> bool {
        let mut read = true;
        for (rank, streams) in self.slots.iter_mut().enumerate() {
            for (stream, waiting) in streams.iter_mut().zip(&mut self.waiting) {
                // A stream that is not read now may have more.
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
    /// \[1], \[2] Reads the pipe until it is empty, or enough was read for now; returns whole lines, marked
    /// with the rank.
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
            // The line is too long, or nothing follows.
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
