//! Sets of bytes of a heap, as stretches that never touch each other: neighbours join.

use std::collections::{BTreeMap, BTreeSet};

/// A set of bytes. Each operation takes time that grows with the logarithm of the number of stretches, per
/// stretch that it changes.
#[derive(Default)]
pub(crate) struct Extents {
    /// The end of each stretch, by its beginning.
    ends: BTreeMap<usize, usize>,
    /// The same stretches as (length, beginning).
    lengths: BTreeSet<(usize, usize)>,
}

impl Extents {
    /// Adds a stretch of which no byte is in the set yet.
    pub(crate) fn insert(&mut self, start: usize, end: usize) {
        if start >= end {
            return;
        }
        let before = self.ends.range(..start).next_back().filter(|&(_, &end)| end == start);
        let first = before.map_or(start, |(&first, _)| first);
        let last = self.ends.get(&end).copied().unwrap_or(end);
        self.forget(first, start);
        self.forget(end, last);
        self.add(first, last);
    }

    /// Takes the bytes from `start` to `end` out of the set; `each` gets the stretches of them that were in
    /// it.
    pub(crate) fn cut(&mut self, start: usize, end: usize, mut each: impl FnMut(usize, usize)) {
        if start >= end {
            return;
        }
        while let Some((&first, &last)) =
            self.ends.range(..end).next_back().filter(|&(_, &last)| last > start)
        {
            self.forget(first, last);
            self.add(first, start);
            self.add(end, last);
            each(first.max(start), last.min(end));
        }
    }

    /// Returns the first place for `len` bytes on a boundary of `align` behind `header` bytes, in a short
    /// stretch. Among the stretches that are long enough only for some alignments, `tries` are looked at.
    pub(crate) fn fit(&self, len: usize, align: usize, header: usize, tries: usize) -> Option<usize> {
        let need = len.checked_add(header)?;
        let place = |&(length, start): &(usize, usize)| {
            let at = (start + header).checked_next_multiple_of(align)?;
            at.checked_add(len).is_some_and(|end| end <= start + length).then_some(at)
        };
        let short = self.lengths.range((need, 0)..).take(tries).find_map(place);
        short.or_else(|| self.lengths.range((need.checked_add(align)?, 0)..).find_map(place))
    }

    /// Returns the longest stretch.
    pub(crate) fn longest(&self) -> Option<(usize, usize)> {
        self.lengths.last().map(|&(length, start)| (start, start + length))
    }

    /// Returns the last stretch.
    pub(crate) fn last(&self) -> Option<(usize, usize)> {
        self.ends.last_key_value().map(|(&start, &end)| (start, end))
    }

    /// Returns all stretches, in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        self.ends.iter().map(|(&start, &end)| (start, end))
    }

    fn add(&mut self, start: usize, end: usize) {
        if start < end {
            self.ends.insert(start, end);
            self.lengths.insert((end - start, start));
        }
    }

    fn forget(&mut self, start: usize, end: usize) {
        if start < end {
            self.ends.remove(&start);
            self.lengths.remove(&(end - start, start));
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the stretches of a set that is a table of bytes.
    fn stretches(bytes: &[bool]) -> Vec<(usize, usize)> {
        let mut found: Vec<(usize, usize)> = Vec::new();
        for at in (0..bytes.len()).filter(|&at| bytes[at]) {
            match found.last_mut() {
                Some((_, end)) if *end == at => *end += 1,
                _ => found.push((at, at + 1)),
            }
        }
        found
    }

    #[test]
    fn sets_are_what_a_table_of_bytes_says() {
        let (mut set, mut table) = (Extents::default(), [false; 96]);
        let mut random = 1u64;
        let mut next = |below: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) as usize % below
        };
        for _ in 0..20_000 {
            let (start, len) = (next(96), 1 + next(24));
            let end = (start + len).min(96);
            if table[start..end].iter().all(|&byte| !byte) {
                set.insert(start, end);
                table[start..end].fill(true);
            } else {
                let mut gone: Vec<usize> = Vec::new();
                set.cut(start, end, |start, end| gone.extend(start..end));
                gone.sort_unstable();
                assert_eq!(gone, (start..end).filter(|&at| table[at]).collect::<Vec<_>>());
                table[start..end].fill(false);
            }
            let expected = stretches(&table);
            assert_eq!(set.iter().collect::<Vec<_>>(), expected);
            assert_eq!(set.lengths.len(), expected.len());
            assert_eq!(set.last(), expected.last().copied());
            let longest = expected.iter().map(|(start, end)| end - start).max();
            assert_eq!(set.longest().map(|(start, end)| end - start), longest);
            let (len, align) = (1 + next(12), 1 << next(4));
            let serves = |&(start, end): &(usize, usize)| (start + 2).next_multiple_of(align) + len <= end;
            let fit = set.fit(len, align, 2, usize::MAX);
            assert_eq!(fit.is_some(), expected.iter().any(serves));
            for at in fit.into_iter().chain(set.fit(len, align, 2, 1)) {
                assert!(at.is_multiple_of(align) && table[at - 2..at + len].iter().all(|&byte| byte));
            }
        }
    }
}
