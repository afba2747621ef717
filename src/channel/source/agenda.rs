//! The agenda: the tasks of a ledger in the order in which they are dealt. A source deals positions in it.
//!
//! Without a list, the position is the task. The list is written before the source grants any of its positions.

use crate::error::{Error, Result};
use crate::shm::segment::Segment;
use crate::sync::atomic::{AtomicU32, Ordering};
use std::sync::Arc;

/// The order in which the tasks of a ledger are dealt. Cloning shares it.
#[derive(Clone)]
pub(crate) struct Agenda {
    /// The number of tasks of the ledger.
    tasks: usize,
    /// The place of the list, which has room for all tasks: their number, then one by one; `None` if the position is the
    /// task.
    list: Option<(Arc<Segment>, usize)>,
}

impl Agenda {
    /// Returns the agenda of a ledger whose tasks are dealt in their own order.
    pub(crate) fn plain(tasks: usize) -> Agenda {
        Agenda { tasks, list: None }
    }

    /// Returns the bytes of a list of at most so many tasks.
    pub(crate) fn len(tasks: usize) -> usize {
        (1 + tasks) * size_of::<AtomicU32>()
    }

    /// Takes up a list at its place in a segment; the place of a new one is zeroed memory.
    ///
    /// # Errors
    /// If it does not fit.
    pub(crate) fn over(segment: Arc<Segment>, at: usize, tasks: usize) -> Result<Agenda> {
        match segment.bytes(at, Agenda::len(tasks)) {
            Some(_) => Ok(Agenda { tasks, list: Some((segment, at)) }),
            None => Err(Error::Corrupt { what: "the place of an agenda" }),
        }
    }

    fn words(&self) -> Option<(&AtomicU32, &[AtomicU32])> {
        let (segment, at) = self.list.as_ref()?;
        segment.places::<AtomicU32>(*at, 1 + self.tasks).split_first()
    }

    /// Writes the list. Call it only when nothing is granted.
    pub(crate) fn set(&self, tasks: &[u32]) {
        let Some((count, list)) = self.words() else { return };
        list.iter().zip(tasks).for_each(|(word, &task)| word.store(task, Ordering::Relaxed));
        // Workers see the list when they see what is granted of it.
        count.store(tasks.len() as u32, Ordering::Relaxed);
    }

    /// Returns whether there is a list.
    #[cfg(feature = "mpi")]
    pub(crate) fn is_listed(&self) -> bool {
        self.list.is_some()
    }

    /// Returns the list of tasks.
    #[cfg(feature = "mpi")]
    pub(crate) fn listed(&self) -> Vec<u32> {
        (0..self.positions()).map(|position| self.task(position) as u32).collect()
    }

    /// Returns the number of positions.
    pub(crate) fn positions(&self) -> usize {
        self.words().map_or(self.tasks, |(count, _)| (count.load(Ordering::Relaxed) as usize).min(self.tasks))
    }

    /// Returns the task at a position.
    pub(crate) fn task(&self, position: usize) -> usize {
        let word = self.words().and_then(|(_, list)| list.get(position));
        word.map_or(position, |word| word.load(Ordering::Relaxed) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_lead_to_tasks() {
        let plain = Agenda::plain(3);
        assert_eq!((plain.positions(), plain.task(2)), (3, 2));
        let segment = Arc::new(Segment::new(Agenda::len(5)).unwrap());
        let agenda = Agenda::over(segment, 0, 5).unwrap();
        assert_eq!(agenda.positions(), 0);
        agenda.set(&[4, 0, 2]);
        assert_eq!((agenda.positions(), agenda.task(0), agenda.task(2)), (3, 4, 2));
    }
}
