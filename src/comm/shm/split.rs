//! Splits communicators off a communicator, without a supervisor: MPI_Comm_split, over two all-gathers of the
//! parent.
//!
//! ```text
//! [1] all-gather    colour and key of every rank: all compute the same members, in the same order
//! [2] each member   allocates its cells in its own heap, the first one also the boards of all; readies the
//!                   boards; counts every member as a holder of its blocks
//! [3] all-gather    the places of these blocks, and the number by which the first member knows this split
//! [4] each member   joins the blocks of the others, and makes its window over them
//! ```
//!
//! *No word is used before it is ready.* A board is prepared in \[2], before its owner arrives at \[3], which
//! all members wait for before \[4].
//!
//! *No word is used after it is given back.* A block counts as many holders as there are members. Each member
//! lets go of it when it drops the communicator, and the heap of its owner uses it again after the last one
//! has.
//!
//! Ranks without a colour take part in both all-gathers, and get nothing.

use crate::channel::call::Call;
use crate::channel::group::{Board, Member, Share};
use crate::channel::window::Window;

use crate::comm::shm::Shm;
use crate::comm::transport::{Control, Moves, Splits, Transport};
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::os::mapping::PAGE;
use crate::shm::arena::{Block, Fill};
use std::rc::Rc;

impl Splits for Shm {
    fn split(&mut self, call: &Call, colour: Option<u64>, key: u64) -> Result<Option<Box<dyn Transport>>> {
        Ok(self.split_off(call, colour, key)?.map(|group| Box::new(group) as Box<_>))
    }
}

impl Shm {
    /// Splits: see [`Splits::split`], and the head of this file for the steps.
    pub(crate) fn split_off(&mut self, call: &Call, colour: Option<u64>, key: u64) -> Result<Option<Shm>> {
        // [1] Whether a colour is named is a word of its own: ranks without one form no group with colour 0.
        let mine = [u64::from(colour.is_some()), colour.unwrap_or(0), key];
        let mut all = vec![0u64; 3 * self.size()];
        self.all_gather(call, bytemuck::cast_slice(&mine), bytemuck::cast_slice_mut(&mut all))?;
        let same = |rank: &usize| all[3 * rank..3 * rank + 2] == mine[..2];
        let mut members: Vec<usize> = (0..self.size()).filter(same).collect();
        members.sort_by_key(|&rank| (all[3 * rank + 2], rank));
        let me = members.iter().position(|&rank| rank == self.rank()).unwrap_or(0);
        // [2] A rank whose heap is full ends the call for all: the others wait in [3], where they get its
        // error.
        let member = Member::new(members.len());
        let made = colour.map(|_| self.make_share(&member, members.len(), me == 0)).transpose();
        let made = made.map_err(|error| self.abort(call, error))?;
        // [3] Among the serial numbers only the first member's counts. No other split with the same first
        // member has this number, so that the communicator's number (`World::group`) is unique in the epoch.
        let serial = self.local.splits.get() + 1;
        self.local.splits.set(serial);
        let at = |block: &Option<Block>| block.as_ref().map_or(0, |block| block.offset() as u64);
        let place =
            made.as_ref().map_or([0; 3], |(cells, boards)| [cells.offset() as u64, at(boards), serial]);
        let mut places = vec![[0u64; 3]; self.size()];
        let told = self.all_gather(call, bytemuck::bytes_of(&place), bytemuck::cast_slice_mut(&mut places));
        if told.is_err() && self.window.not_revoked(call).is_ok() {
            // A rank has ended the call, so that nobody goes on to join: the blocks that this rank has made
            // are its own again.
            let made = made.iter().flat_map(|(cells, boards)| boards.iter().chain([cells]));
            made.for_each(|block| block.share(1));
        }
        told?;
        let Some((cells, boards)) = made else { return Ok(None) };
        // [4] This rank has one hold per block, for which it was counted in [2].
        let segment = &self.local.segment;
        let join = |place: u64, len| Block::join(segment, place as usize, len);
        let [_, first_board, serial] = places[members[0]];
        let others = members.iter().filter(|&&rank| rank != self.rank());
        let joined = others.map(|&rank| join(places[rank][0], member.cells()));
        let mut shares = joined.collect::<Result<Vec<Block>>>()?;
        shares.extend([cells, boards.map_or_else(|| join(first_board, members.len() * PAGE), Ok)?]);
        let words = members.iter().enumerate().map(|(member, &rank)| Share {
            board: first_board as usize + member * PAGE,
            cells: places[rank][0] as usize,
            room: None,
        });
        let words = words.collect();
        let ranks = members.iter().map(|&rank| self.window.ranks()[rank]).collect();
        let (world, epoch) = (self.window.world(), self.window.epoch());
        let window = Window::new(world, epoch, me, ranks, (member, words), serial);
        point(Site::SplitDone);
        Ok(Some(Shm::over(window, Rc::clone(&self.local), shares)))
    }

    /// \[2] Returns this rank's cells in a communicator of `size` ranks, and for the `first` of its members
    /// the boards of all. They are readied, and held by all members.
    ///
    /// Boards are one block: a rank that reads those of all others maps few page tables (group.rs). Cells are
    /// sparse: those that nobody uses have no memory.
    fn make_share(&self, member: &Member, size: usize, first: bool) -> Result<(Block, Option<Block>)> {
        let (segment, sequence) = (&self.local.segment, self.window.world().plan.first_sequence);
        let make = |len| self.local.heap.borrow_mut().alloc(len, PAGE, Fill::Sparse);
        let (cells, boards) = (make(member.cells())?, first.then(|| make(size * PAGE)).transpose()?);
        for board in boards.iter().flat_map(|boards| (boards.offset()..).step_by(PAGE).take(size)) {
            segment.place::<Board>(board).prepare(sequence);
        }
        boards.iter().chain([&cells]).for_each(|block| block.share(size));
        point(Site::SplitShared);
        Ok((cells, boards))
    }
}
