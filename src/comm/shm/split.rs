//! Communicators split off another: their words lie in the members' heaps.

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
    /// See [`Splits::split`].
    pub(crate) fn split_off(&mut self, call: &Call, colour: Option<u64>, key: u64) -> Result<Option<Shm>> {
        let mine = [u64::from(colour.is_some()), colour.unwrap_or(0), key];
        let mut all = vec![0u64; 3 * self.size()];
        self.all_gather(call, bytemuck::cast_slice(&mine), bytemuck::cast_slice_mut(&mut all))?;
        let same = |rank: &usize| all[3 * rank..3 * rank + 2] == mine[..2];
        let mut members: Vec<usize> = (0..self.size()).filter(same).collect();
        members.sort_by_key(|&rank| (all[3 * rank + 2], rank));
        let me = members.iter().position(|&rank| rank == self.rank()).unwrap_or(0);
        let member = Member::new(members.len());
        let made = colour.map(|_| self.make_share(&member, members.len(), me == 0)).transpose();
        let made = made.map_err(|error| self.abort(call, error))?;
        let serial = self.local.splits.get() + 1;
        self.local.splits.set(serial);
        let at = |block: &Option<Block>| block.as_ref().map_or(0, |block| block.offset() as u64);
        let place =
            made.as_ref().map_or([0; 3], |(cells, boards)| [cells.offset() as u64, at(boards), serial]);
        let mut places = vec![[0u64; 3]; self.size()];
        self.all_gather(call, bytemuck::bytes_of(&place), bytemuck::cast_slice_mut(&mut places))?;
        let Some((cells, boards)) = made else { return Ok(None) };
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

    /// This rank's cells in a communicator of `size`, and for the `first` of its members the boards of all; readied and
    /// shared. Cells that nobody uses have no memory.
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
