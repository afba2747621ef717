//! The transport of a world of one rank: every collective is a copy or nothing.

use crate::channel::call::Call;
use crate::channel::recovery::Wish;
use crate::channel::window::Agreed;
use crate::channel::world::{Plan, World};
use crate::comm::local::Local;
use crate::comm::mailbox::Mailbox;
use crate::comm::op::Fold;
use crate::comm::transport::{Control, Folds, Messages, Moves, Recovers, Splits, Transport};
use crate::error::{Error, RankState, RankStatus, Result};
use crate::os::inherit::Access;
use crate::shm::arena::Block;
use crate::shm::kernel::Store;
use std::rc::Rc;

/// The transport of a world of one.
pub(crate) struct Solo {
    local: Rc<Local>,
    mail: Mailbox,
    calls: u32,
    /// See `World::group`. A communicator that is split off has the same rank alone.
    group: u64,
}

impl Solo {
    pub(crate) fn new(heap: Option<usize>) -> Result<Solo> {
        let world = World::new(Plan { ranks: 1, heap, ..Plan::default() })?;
        world.segment().allow(Access::Read, Access::Read);
        Ok(Solo::at(Rc::new(Local::new(&world, 0)), world.group(0, 0, 0)))
    }

    fn at(local: Rc<Local>, group: u64) -> Solo {
        Solo { local, mail: Mailbox::default(), calls: 0, group }
    }

    fn bad(&self, call: &Call, problem: impl Into<String>) -> Error {
        Error::bad(call.place(0, self.calls), problem)
    }

    /// Begins a call that moves `src` to `dst`, which must be as long.
    fn begin(&mut self, call: &Call, dst: &[u8], src: &[u8]) -> Result<()> {
        self.calls = self.calls.wrapping_add(1);
        match dst.len() == src.len() {
            true => Ok(()),
            false => {
                Err(self.bad(call, format!("{} bytes sent into {} bytes of room", src.len(), dst.len())))
            }
        }
    }

    fn copy(&mut self, call: &Call, dst: &mut [u8], src: &[u8]) -> Result<()> {
        self.begin(call, dst, src)?;
        self.local.copy(dst, src, Store::Cached);
        Ok(())
    }

    fn fold(&mut self, call: &Call, dst: &mut [u8], src: &[u8], fold: &Fold<'_>) -> Result<()> {
        self.begin(call, dst, src)?;
        self.local.count(src.len());
        fold.one(dst, src)
    }
}

impl Control for Solo {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn local(&self) -> &Rc<Local> {
        &self.local
    }

    fn group(&self) -> u64 {
        self.group
    }

    fn sequence(&self) -> u32 {
        self.calls
    }

    fn abort(&mut self, _: &Call, error: Error) -> Error {
        error
    }

    fn rendezvous(&mut self, _: &Call, _: u64) -> Result<Agreed> {
        Ok(Agreed::alone())
    }
}

impl Recovers for Solo {
    fn epoch(&self) -> u32 {
        0
    }

    fn states(&self) -> Vec<RankState> {
        let sequence = self.calls;
        let pid = std::process::id();
        vec![RankState {
            rank: 0,
            pid,
            status: RankStatus::Running,
            operation: None,
            sequence,
            line: 0,
            file: String::new(),
        }]
    }

    fn ask(&mut self, _call: &Call, _wish: Wish, value: u64) -> Result<(u64, Vec<usize>)> {
        Ok((value, Vec::new()))
    }
}

impl Moves for Solo {
    fn broadcast(&mut self, _: &Call, _: &mut [u8]) -> Result<()> {
        Ok(())
    }

    fn gather(&mut self, call: &Call, send: &[u8], recv: Option<(&mut [u8], &[usize])>) -> Result<()> {
        recv.map_or(Ok(()), |(recv, _)| self.copy(call, recv, send))
    }

    fn gather_shared(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<(&mut Block, &[usize])>,
    ) -> Result<()> {
        recv.map_or(Ok(()), |(block, _)| self.copy(call, block.bytes_mut(), send))
    }

    fn all_gather(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        self.copy(call, recv, send)
    }

    fn scatter(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        self.copy(call, recv, send)
    }

    fn all_to_all(&mut self, call: &Call, send: &[u8], recv: &mut [u8]) -> Result<()> {
        self.copy(call, recv, send)
    }
}

impl Folds for Solo {
    fn reduce(&mut self, call: &Call, send: &[u8], recv: Option<&mut [u8]>, fold: &Fold<'_>) -> Result<()> {
        recv.map_or(Ok(()), |recv| self.fold(call, recv, send, fold))
    }

    fn reduce_shared(&mut self, call: &Call, send: &[u8], recv: &mut Block, fold: &Fold<'_>) -> Result<()> {
        self.fold(call, recv.bytes_mut(), send, fold)
    }

    fn reduce_scatter(
        &mut self,
        call: &Call,
        send: &[u8],
        _: &[usize],
        recv: &mut [u8],
        fold: &Fold<'_>,
    ) -> Result<()> {
        self.fold(call, recv, send, fold)
    }

    fn scan(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: &mut [u8],
        fold: &Fold<'_>,
        inclusive: bool,
    ) -> Result<()> {
        if inclusive { self.fold(call, recv, send, fold) } else { Ok(()) }
    }
}

impl Messages for Solo {
    fn send(&mut self, call: &Call, _: usize, message: &[u8]) -> Result<()> {
        self.mail.send(call, message);
        Ok(())
    }

    fn recv(&mut self, call: &Call, _: usize, message: &mut [u8]) -> Result<()> {
        self.mail.recv(call, call.place(0, self.calls), message)
    }

    fn send_block(&mut self, call: &Call, _: usize, block: Block) -> Result<()> {
        self.mail.send_block(call, block);
        Ok(())
    }

    fn recv_block(&mut self, call: &Call, _: usize, len: usize) -> Result<Block> {
        self.mail.recv_block(call, call.place(0, self.calls), len)
    }
}

impl Splits for Solo {
    fn split(&mut self, _: &Call, colour: Option<u64>, _: u64) -> Result<Option<Box<dyn Transport>>> {
        Ok(colour.map(|_| Box::new(Solo::at(Rc::clone(&self.local), self.group)) as Box<_>))
    }
}
