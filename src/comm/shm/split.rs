//! Communicators split off another: their words lie in the members' heaps.

use crate::channel::call::Call;
use crate::channel::line::Line;
use crate::channel::ring::prepare;
use crate::channel::window::Window;
use crate::channel::world::Member;
use crate::comm::shm::Shm;
use crate::comm::transport::Transport;
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::os::mapping::PAGE;
use crate::shm::arena::{Block, Fill};
use std::rc::Rc;

impl<'w> Shm<'w> {
    pub(super) fn split(
        &mut self,
        call: &Call,
        colour: Option<u64>,
        key: u64,
    ) -> Result<Option<Box<dyn Transport<'w> + 'w>>> {
        Ok(self.split_off(call, colour, key)?.map(|group| Box::new(group) as Box<_>))
    }

    /// See [`Transport::split`].
    pub(crate) fn split_off(
        &mut self,
        call: &Call,
        colour: Option<u64>,
        key: u64,
    ) -> Result<Option<Shm<'w>>> {
        let mine = [u64::from(colour.is_some()), colour.unwrap_or(0), key];
        let mut all = vec![0u64; 3 * self.size()];
        self.all_gather(call, bytemuck::cast_slice(&mine), bytemuck::cast_slice_mut(&mut all))?;
        let same = |rank: &usize| all[3 * rank..3 * rank + 2] == mine[..2];
        let mut members: Vec<usize> = (0..self.size()).filter(same).collect();
        members.sort_by_key(|&rank| (all[3 * rank + 2], rank));
        let member = Member::new(members.len());
        let share = match colour {
            Some(_) => {
                Some(self.make_share(&member, members.len()).map_err(|error| self.abort(call, error))?)
            }
            None => None,
        };
        let serial = self.seat.splits.get() + 1;
        self.seat.splits.set(serial);
        let place = [share.as_ref().map_or(0, |share| share.offset() as u64), serial];
        let mut places = vec![[0u64; 2]; self.size()];
        self.all_gather(call, bytemuck::bytes_of(&place), bytemuck::cast_slice_mut(&mut places))?;
        let Some(share) = share else { return Ok(None) };
        let me = members.iter().position(|&rank| rank == self.rank()).unwrap_or(0);
        let place = |rank: usize| places[rank][0] as usize;
        let bases = members.iter().map(|&rank| place(rank)).collect();
        let others = members.iter().filter(|&&rank| rank != self.rank());
        let joined = others.map(|&rank| Block::join(&self.seat.segment, place(rank), share.bytes().len()));
        let mut shares = joined.collect::<Result<Vec<Block>>>()?;
        shares.push(share);
        let ranks = members.iter().map(|&rank| self.window.ranks()[rank]).collect();
        let (world, epoch) = (self.window.world(), self.window.epoch());
        let window = Window::new(world, epoch, me, ranks, (member, bases), places[members[0]][1]);
        point(Site::SplitDone);
        Ok(Some(Shm::over(window, Rc::clone(&self.seat), shares)))
    }

    /// This rank's words of a communicator of `size`, readied and shared. A ring that nobody uses has no memory.
    fn make_share(&self, member: &Member, size: usize) -> Result<Block> {
        let share = self.seat.heap.borrow_mut().alloc(member.len, PAGE, Fill::Sparse)?;
        let (base, segment, first) =
            (share.offset(), &self.seat.segment, self.window.world().plan.first_sequence);
        segment.place::<Line>(base).prepare(first);
        if first != 0 {
            (0..size).for_each(|sender| prepare(segment, member.ring_at(base, sender), first));
        }
        share.share(size);
        point(Site::SplitShared);
        Ok(share)
    }
}
