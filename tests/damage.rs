//! Damaged files: whatever byte of a checkpoint is lost or changed, no result is silently wrong.
//!
//! Each bit is flipped in the file of a finished sweep; then the file is read, and a sweep resumes from it. Both give an
//! error that names the file, or all results to the bit. A row that is damaged is not read, and it is run again.

#![expect(clippy::unwrap_used, reason = "tests")]

mod support;

use ndarray::{Array2, s};
use phalanx::{Amount, Backend, Limits, Outcome, Sweep, Table};
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::Case;
use support::rows::{Dir, answer, check, model, options, table};

const CASES: &[Case] = &[
    ("a_file_that_was_cut_off_is_refused", a_file_that_was_cut_off_is_refused),
    (
        "a_file_that_is_cut_off_while_it_is_read_is_an_error",
        a_file_that_is_cut_off_while_it_is_read_is_an_error,
    ),
    ("every_bit_of_the_header", every_bit_of_the_header),
    ("every_bit_of_a_row", every_bit_of_a_row),
    ("every_bit_of_a_row_that_is_not_finished", every_bit_of_a_row_that_is_not_finished),
    ("every_bit_of_the_configuration", every_bit_of_the_configuration),
    ("every_bit_of_the_board", every_bit_of_the_board),
    ("bits_anywhere", bits_anywhere),
    ("a_row_of_another_number_is_not_damaged", a_row_of_another_number_is_not_damaged),
];

fn main() -> std::process::ExitCode {
    support::main_within(Duration::from_secs(300), CASES)
}

const ROWS: usize = 16;
/// The row that the model refuses.
const REFUSED: usize = 4;
/// In a file that is not finished: the number of rows that are done, and the first row that was not given up in order.
const SOME: usize = 7;
const OWNED: usize = 11;

/// Bytes of the header: the front, then two inputs and two outputs.
const FRONT: usize = 256;
const HEADER: usize = FRONT + 4 * 256;
/// The bytes of the front that its checksum covers, with the checksum.
const SUMMED: usize = 120;

/// A file, with the bytes that it should have.
struct Subject {
    dir: Dir,
    bytes: Vec<u8>,
    table: Array2<f64>,
}

/// What was found in a file.
#[derive(Debug, PartialEq)]
enum Found {
    /// An error that names the file.
    Refused,
    /// All rows, but for those of these numbers, which have no outcome of their own.
    Rows { without: Vec<usize> },
}

impl Subject {
    /// Makes the file of a finished sweep.
    fn finished() -> Subject {
        Subject::new(Limits::default())
    }

    fn new(limits: Limits) -> Subject {
        let (dir, table) = (Dir::new(), table(0, ROWS));
        let sweep = Sweep { limits, ..options(&dir.file(), Backend::Serial) };
        drop(sweep.run(table.view(), || Ok(()), model).unwrap());
        let bytes = fs::read(dir.file()).unwrap();
        Subject { dir, bytes, table }
    }

    /// Makes the file of a sweep that has ended early: then a row was owned, and others free, as after a kill.
    fn unfinished() -> Subject {
        let mut subject = Subject::new(Limits { min_done: Some(Amount::Rows(SOME)), ..Limits::default() });
        for row in OWNED..ROWS {
            let [record, ..] = subject.places(row);
            subject.bytes[record.clone()].fill(0);
            subject.bytes[record.start] = u8::from(row == OWNED);
        }
        subject.restore();
        subject
    }

    fn word(&self, at: usize) -> usize {
        u64::from_ne_bytes(self.bytes[at..at + 8].try_into().unwrap()) as usize
    }

    /// Returns the place of a row's record, of its inputs and of its outputs: see `channel/ledger/layout.rs`.
    fn places(&self, row: usize) -> [Range<usize>; 3] {
        [(48, 64), (56, 16), (64, 16)].map(|(word, len)| {
            let at = self.word(word) + len * row;
            at..at + len
        })
    }

    /// Returns the place of a text in the log, from its number of words on.
    fn text(&self, text: &str) -> Range<usize> {
        let at = self.bytes.windows(text.len()).position(|bytes| bytes == text.as_bytes()).unwrap();
        at - 8..(at + text.len()).next_multiple_of(8)
    }

    /// Puts all bytes back, also if another file has taken the place.
    fn restore(&self) {
        self.put(&self.bytes);
        assert_eq!(self.dir.strangers(&[]), [""; 0]);
    }

    fn put(&self, bytes: &[u8]) {
        let file = File::options().write(true).open(self.dir.file()).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
    }

    fn names(&self, error: &phalanx::Error) -> bool {
        error.to_string().contains(self.dir.file().to_str().unwrap())
    }

    /// Reads the file from outside; panics if a value is wrong.
    fn read(&self, told: &str) -> Found {
        let mut without = Vec::new();
        let read = Table::open(self.dir.file()).and_then(|opened| {
            drop(opened.status()?);
            opened.each(&mut |row| {
                let (bits, outcome) = answer(&self.table.row(row.index).to_vec());
                match row.outcome {
                    None | Some(Outcome::Cancelled(_)) => without.push(row.index),
                    Some(found) => {
                        let inputs = self.table.row(row.index).to_vec();
                        assert_eq!((row.inputs, &found), (&*inputs, &outcome), "{told}: row {}", row.index);
                        assert!(
                            row.outputs.iter().map(|value| value.to_bits()).eq(bits),
                            "{told}: row {}",
                            row.index
                        );
                    }
                }
                Ok(())
            })
        });
        match read {
            Ok(()) => Found::Rows { without },
            Err(error) => {
                assert!(self.names(&error), "{told}: {error}");
                Found::Refused
            }
        }
    }

    /// Resumes from the file; panics if a value is wrong. Returns the rows that were run, by their first value.
    fn resume(&self, table: &Array2<f64>, told: &str) -> Found {
        let called: [AtomicBool; ROWS] = Default::default();
        let counted = |state: &mut (), row: &phalanx::Row<'_>, out: &mut [f64]| {
            called[row.values[0] as usize].store(true, Ordering::Relaxed);
            model(state, row, out)
        };
        let found = match options(&self.dir.file(), Backend::Serial).run(table.view(), || Ok(()), counted) {
            Ok(swept) => check(&swept, table).map_err(|wrong| format!("{told}: {wrong}")),
            Err(error) => {
                assert!(self.names(&error), "{told}: {error}");
                return Found::Refused;
            }
        };
        found.unwrap();
        Found::Rows { without: (0..ROWS).filter(|&row| called[row].load(Ordering::Relaxed)).collect() }
    }

    /// Resumes with the same rows, and with these rows in another order, of which some are new.
    fn resume_both(&self, told: &str) -> [Found; 2] {
        let damaged = fs::read(self.dir.file()).unwrap();
        let same = self.resume(&self.table, told);
        self.put(&damaged);
        [same, self.resume(&self.table.slice(s![..;-1, ..]).to_owned(), told)]
    }

    /// Flips each of these bits in turn: `each` is told which, and looks at the file.
    fn flip(&self, bits: impl Iterator<Item = usize>, mut each: impl FnMut(usize, &str)) {
        for bit in bits {
            let (byte, told) = (bit / 8, format!("bit {} of byte {}", bit % 8, bit / 8));
            let file = File::options().write(true).open(self.dir.file()).unwrap();
            file.write_all_at(&[self.bytes[byte] ^ 1 << (bit % 8)], byte as u64).unwrap();
            drop(file);
            each(byte, &told);
            self.restore();
        }
    }
}

fn bits(bytes: Range<usize>) -> Range<usize> {
    8 * bytes.start..8 * bytes.end
}

/// All rows, to the bit.
fn whole() -> Found {
    Found::Rows { without: Vec::new() }
}

fn a_file_that_was_cut_off_is_refused() {
    let subject = Subject::finished();
    let all = subject.bytes.len();
    let lengths = (all - 4096..all).rev().chain([511, 256, 255, 1, 0]);
    for len in lengths {
        File::options().write(true).open(subject.dir.file()).unwrap().set_len(len as u64).unwrap();
        let told = format!("{len} of {all} bytes");
        assert_eq!(subject.read(&told), Found::Refused, "{told}");
        assert_eq!(subject.resume(&subject.table, &told), Found::Refused, "{told}");
    }
    subject.restore();
    assert_eq!((subject.read("restored"), subject.resume(&subject.table, "restored")), (whole(), whole()));
}

fn a_file_that_is_cut_off_while_it_is_read_is_an_error() {
    let subject = Subject::finished();
    let opened = Table::open(subject.dir.file()).unwrap();
    for len in [subject.places(ROWS - 1)[2].end - 1, subject.places(0)[0].start, 0] {
        File::options().write(true).open(subject.dir.file()).unwrap().set_len(len as u64).unwrap();
        let error = opened.each(&mut |_| Ok(())).unwrap_err();
        assert!(subject.names(&error) && error.to_string().contains("shorter"), "{len}: {error}");
    }
}

fn every_bit_of_the_header() {
    let subject = Subject::finished();
    subject.flip(bits(0..HEADER), |byte, told| {
        // Bytes that say how far the file is used, or nothing, are not believed.
        let is_known = !(SUMMED..FRONT).contains(&byte);
        let expected = if is_known { Found::Refused } else { whole() };
        assert_eq!(subject.read(told), expected, "{told}");
        assert_eq!(subject.resume(&subject.table, told), expected, "{told}");
    });
}

fn every_bit_of_a_row() {
    let subject = Subject::finished();
    for row in [REFUSED, REFUSED + 1] {
        let damaged = || Found::Rows { without: vec![row] };
        for place in subject.places(row) {
            subject.flip(bits(place), |_, told| {
                assert_eq!(subject.read(told), damaged(), "{told} of row {row}");
                assert_eq!(subject.resume_both(told), [damaged(), damaged()], "{told} of row {row}");
            });
        }
    }
    let text = format!("row of {REFUSED} is refused");
    let place = subject.text(&text);
    subject.flip(bits(place.clone()), |byte, told| {
        // The last word is filled up.
        let expected = || {
            if byte < place.start + 8 + text.len() { Found::Rows { without: vec![REFUSED] } } else { whole() }
        };
        assert_eq!(subject.read(told), expected(), "{told} of the text");
        assert_eq!(subject.resume_both(told), [expected(), expected()], "{told} of the text");
    });
}

fn every_bit_of_a_row_that_is_not_finished() {
    let subject = Subject::unfinished();
    for row in [SOME + 2, OWNED, OWNED + 1] {
        let [record, inputs, outputs] = subject.places(row);
        for place in [record, outputs] {
            subject.flip(bits(place), |_, told| {
                let Found::Rows { without } = subject.read(told) else { panic!("{told} of row {row}") };
                assert!(without.contains(&row) && !without.contains(&0), "{told} of row {row}: {without:?}");
                for found in subject.resume_both(told) {
                    assert_eq!(found, Found::Rows { without: without.clone() }, "{told} of row {row}");
                }
            });
        }
        subject.flip(bits(inputs), |_, told| drop(subject.resume_both(told)));
    }
}

fn every_bit_of_the_configuration() {
    let subject = Subject::finished();
    let place = subject.text("rows, version 1");
    let told_of = |told: &str| {
        Table::open(subject.dir.file()).unwrap().configuration().map_err(|error| {
            assert!(subject.names(&error), "{told}: {error}");
        })
    };
    subject.flip(bits(place.start..place.start + 8 + 15), |_, told| {
        assert_eq!(told_of(told), Err(()), "{told}");
        // Whoever has the same configuration writes it again; also for a row whose text would come there.
        let [record, ..] = subject.places(REFUSED);
        let file = File::options().write(true).open(subject.dir.file()).unwrap();
        file.write_all_at(&[0; 64], record.start as u64).unwrap();
        assert_eq!(subject.resume(&subject.table, told), Found::Rows { without: vec![REFUSED] });
        assert_eq!(told_of(told), Ok("rows, version 1".to_owned()), "{told}");
        assert_eq!(subject.read(told), whole(), "{told}");
    });
}

fn every_bit_of_the_board() {
    let subject = Subject::finished();
    let board = subject.word(88);
    subject.flip(bits(board..board + 512 + 2 * 64), |_, told| {
        assert_eq!(subject.read(told), whole(), "{told}");
        assert_eq!(subject.resume(&subject.table, told), whole(), "{told}");
    });
}

/// Bits all over a file: no value is wrong, and only damage is run again.
fn bits_anywhere() {
    for subject in [Subject::finished(), Subject::unfinished()] {
        subject.flip((0..8 * subject.bytes.len()).step_by(1013), |_, told| {
            subject.read(told);
            subject.resume_both(told);
        });
    }
}

/// The second row of some parameters, of which the first was never finished.
fn a_row_of_another_number_is_not_damaged() {
    let dir = Dir::new();
    let run = |first: &[f64]| {
        let table = Array2::from_shape_fn(
            (first.len(), 2),
            |(row, column)| if column == 0 { first[row] } else { 0.0 },
        );
        let swept = options(&dir.file(), Backend::Serial).run(
            table.view(),
            || Ok(()),
            |(), row, out| {
                out.fill(row.index as f64);
                Ok(())
            },
        );
        let swept = swept.unwrap();
        (swept.resumed(), swept.damaged(), swept.values().column(0).to_vec())
    };
    assert_eq!(run(&[1.0, 1.0]), (0, 0, vec![0.0, 1.0]));
    let bytes = fs::read(dir.file()).unwrap();
    let records = u64::from_ne_bytes(bytes[48..56].try_into().unwrap());
    File::options().write(true).open(dir.file()).unwrap().write_all_at(&[0; 64], records).unwrap();
    assert_eq!(run(&[2.0]), (0, 0, vec![0.0]));
    assert_eq!(run(&[2.0, 1.0]), (1, 0, vec![0.0, 1.0]));
    assert_eq!(run(&[1.0, 1.0]), (2, 0, vec![1.0, 1.0]));
}
