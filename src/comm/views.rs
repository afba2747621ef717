//! Arrays that the ranks of a communicator hold together: the first rung of the zero-copy ladder.

use crate::channel::call::{Call, Verb};
use crate::channel::view::{Open, Parts, Whole};
use crate::comm::Comm;
use crate::comm::buffer::{Buffer, with_bytes, with_bytes_mut};
use crate::comm::local::FORKED;
use crate::comm::op::Op;
use crate::error::Result;
use crate::os::fault::{Site, point};
use crate::os::mapping::PAGE;
use crate::shm::arena::{Block, Fill};
use crate::shm::array::{Lease, SharedArray, byte_len};
use crate::shm::datatype::TypeTag;
use crate::shm::element::Element;
use ndarray::{Dimension, IntoDimension};

impl<'w> Comm<'w> {
    /// Allocates a zeroed array of `shape` in this rank's shared heap: collectives move it without staging,
    /// and it can be handed on to other ranks. Not a collective.
    ///
    /// # Errors
    /// If the shape overflows or the heap is full.
    ///
    /// ```
    /// let mut comm = phalanx::Comm::solo()?;
    /// let mut array = comm.alloc::<f32, _>((2, 3))?;
    /// array.view_mut().fill(1.0);
    /// assert_eq!(array.view().sum(), 6.0);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    pub fn alloc<T: Element, D: Dimension>(
        &mut self,
        shape: impl IntoDimension<Dim = D>,
    ) -> Result<Lease<T, D>> {
        let dim = shape.into_dimension();
        let block = self.transport.local().alloc(byte_len::<T, D>(&dim)?, align_of::<T>(), Fill::Zero)?;
        Ok(Lease::new(block, dim))
    }

    /// Makes a zeroed array that all ranks hold together, and returns this rank's part of it. Each rank has
    /// some of the rows, which lie along the first axis: `shape` is the common row shape with this rank's
    /// number of rows. The array lies in rank 0's heap.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if the row shapes differ, or rank 0's heap is full.
    ///
    /// ```
    /// phalanx::launch(3, |comm| {
    ///     let mut part = comm.parts::<f64, _>((comm.rank() + 1, 4))?;
    ///     part.view_mut().fill(comm.rank() as f64);
    ///     let copied = comm.bytes_copied();
    ///     let whole = part.publish(comm)?;
    ///     assert_eq!((whole.view().nrows(), whole.view().sum()), (6, 4.0 * 8.0));
    ///     assert_eq!(comm.bytes_copied(), copied);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn parts<T: Element, D: Dimension>(
        &mut self,
        shape: impl IntoDimension<Dim = D>,
    ) -> Result<Parts<'w, T, D>> {
        let call = Call::new(Verb::Parts, TypeTag::of::<T>());
        self.check_node(&call)?;
        let mut dim = shape.into_dimension();
        if dim.ndim() == 0 {
            return self.refuse(&call, "an array without axes cannot be split along its first");
        }
        let rows = self.all_counts(&call, dim.slice()[0])?;
        let bounds = bounds(&rows);
        dim.slice_mut()[0] = bounds[rows.len()];
        let row_shape = dim.slice()[1..].iter().fold(0, |digest, &axis| {
            xxhash_rust::xxh3::xxh3_64_with_seed(&(axis as u64).to_ne_bytes(), digest)
        });
        self.transport.rendezvous(&call, row_shape)?;
        let len = byte_len::<T, D>(&dim)?;
        let (offset, block) = self.shared_block(&call, len, (align_of::<T>(), Fill::Zero))?;
        let agreed = self.transport.rendezvous(&call, offset as u64)?;
        let segment = block.segment().clone();
        let who = (self.transport.group(), self.rank());
        Parts::new((&segment, offset), dim, bounds, who, Some(block), None, agreed)
    }

    /// Returns `Ok` if all ranks share memory; else refuses the call.
    fn check_node(&mut self, call: &Call) -> Result<()> {
        match self.transport.nodes() {
            1 => Ok(()),
            nodes => self.refuse(
                call,
                format!(
                    "this needs memory that all ranks share, and only those of a node do; there are {nodes} nodes (a process of the \
                     job that forks ranks counts as one): do it in the communicator of each node (Comm::split_nodes), and gather \
                     what comes out"
                ),
            ),
        }
    }

    /// Makes a zeroed block in rank 0's heap, which every rank holds.
    fn shared_block(
        &mut self,
        call: &Call,
        len: usize,
        (align, fill): (usize, Fill),
    ) -> Result<(usize, Block)> {
        let mut offset = [0; 8];
        let mut own = None;
        if self.is_root() {
            let made = self.transport.local().alloc(len, align, fill);
            let block = match made {
                Ok(block) => block,
                Err(error) => return Err(self.transport.abort(call, error)),
            };
            block.share(self.size());
            offset = (block.offset() as u64).to_ne_bytes();
            own = Some(block);
        }
        self.transport.broadcast(call, &mut offset)?;
        let offset = u64::from_ne_bytes(offset) as usize;
        let block = match own {
            Some(block) => block,
            None => Block::join(&self.transport.local().segment, offset, len)?,
        };
        Ok((offset, block))
    }

    /// Makes shared memory that all ranks hold, on a page boundary; its first `zeroed` bytes are zero.
    /// `digest` says what the memory is for, and must be the same on all ranks.
    pub(crate) fn hold(&mut self, call: &Call, (len, zeroed): (usize, usize), digest: u64) -> Result<Block> {
        self.check_node(call)?;
        self.transport.rendezvous(call, digest)?;
        self.shared_block(call, len, (PAGE, Fill::Begin(zeroed))).map(|(_, block)| block)
    }

    /// Waits until all ranks have made this call, which is the last on this communicator.
    #[cfg(feature = "mpi")]
    pub(crate) fn leave(&mut self) -> Result<()> {
        self.transport.rendezvous(&Call::new(Verb::Leave, TypeTag::BYTES), 0).map(drop)
    }

    /// Waits until all ranks have made this call.
    pub(crate) fn arrive(&mut self, call: &Call) -> Result<()> {
        self.transport.rendezvous(call, 0).map(drop)
    }

    /// Opens an array that the caller made before the world started, split evenly along its first axis
    /// (numpy's `array_split`: the first parts are one row longer), and returns this rank's part. All ranks
    /// open the array together; each rank may have it open once at a time.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if they give different arrays, or one has it open already.
    ///
    /// ```
    /// let mut rows = phalanx::SharedArray::<usize, ndarray::Ix1>::zeros(5)?;
    /// phalanx::launch(2, |comm| {
    ///     let mut part = comm.open(&rows)?;
    ///     part.view_mut().fill(comm.rank());
    ///     Ok(())
    /// })?;
    /// assert_eq!(rows.view().to_vec(), [0, 0, 0, 1, 1]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn open<'a, T: Element, D: Dimension>(
        &mut self,
        array: &'a SharedArray<T, D>,
    ) -> Result<Parts<'a, T, D>> {
        let call = Call::new(Verb::Open, TypeTag::of::<T>());
        let rows = array.shape().first().copied().unwrap_or(0);
        let split = array_split(rows, self.size());
        self.open_call(array, &split, call)
    }

    /// Opens an array as [`Comm::open`] does, but gives rank r `rows[r]` rows.
    ///
    /// # Errors
    /// As [`Comm::open`]; and if the rows do not add up to the array's.
    ///
    /// ```
    /// let mut rows = phalanx::SharedArray::<usize, ndarray::Ix1>::zeros(5)?;
    /// phalanx::launch(2, |comm| {
    ///     comm.open_rows(&rows, &[1, 4])?.view_mut().fill(comm.rank());
    ///     Ok(())
    /// })?;
    /// assert_eq!(rows.view().to_vec(), [0, 1, 1, 1, 1]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn open_rows<'a, T: Element, D: Dimension>(
        &mut self,
        array: &'a SharedArray<T, D>,
        rows: &[usize],
    ) -> Result<Parts<'a, T, D>> {
        self.open_call(array, rows, Call::new(Verb::OpenRows, TypeTag::of::<T>()))
    }

    fn open_call<'a, T: Element, D: Dimension>(
        &mut self,
        array: &'a SharedArray<T, D>,
        rows: &[usize],
        call: Call,
    ) -> Result<Parts<'a, T, D>> {
        self.check_node(&call)?;
        let have = array.shape().first().copied();
        let total = rows.iter().try_fold(0usize, |sum, &rows| sum.checked_add(rows));
        if rows.len() != self.size() || have.is_none() || total != have {
            let problem = format!(
                "rows {rows:?} do not split an array of shape {:?} over {} ranks",
                array.shape(),
                self.size()
            );
            return self.refuse(&call, problem);
        }
        if !self.transport.local().is_own() {
            return self.refuse(&call, FORKED);
        }
        let (block, local, group) = (array.block(), self.transport.local(), self.transport.group());
        if block.holder() != local.caller {
            let problem = "the array was not made by the caller of this world, before it started";
            return self.refuse(&call, problem);
        }
        let Some(open) = Open::new(&local.opened, block, group) else {
            let problem = "the array is open already, here or in another communicator: drop what has been opened first; one that \
                           was open when a rank died is lost to this world, and after a failed world the caller must look at it \
                           (view) before the next";
            return self.refuse(&call, problem);
        };
        let bounds = bounds(rows);
        let address = block.at().as_ptr() as u64;
        let digest = bounds.iter().fold(address, |digest, &bound| {
            xxhash_rust::xxh3::xxh3_64_with_seed(&(bound as u64).to_ne_bytes(), digest)
        });
        let agreed = self.transport.rendezvous(&call, digest)?;
        point(Site::Opened);
        let place = (block.segment(), block.offset());
        Parts::new(place, array.dim().clone(), bounds, (group, self.rank()), None, Some(open), agreed)
    }

    /// Folds the ranks' vectors in rank order into one shared result. Each rank folds its own rows of the
    /// result, nothing is copied if the vectors lie in shared memory, and all ranks can then read the whole.
    /// `send` has as many elements as the result.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if lengths differ. The array is lost after an error.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let mut mine = comm.alloc::<f64, _>(1000)?;
    ///     mine.view_mut().fill(1.0);
    ///     let result = comm.parts::<f64, _>(500)?;
    ///     let sum = comm.all_reduce_parts(&mine.view(), result, &phalanx::Op::sum())?;
    ///     assert_eq!(sum.view().sum(), 2000.0);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_reduce_parts<'a, T: Element, S: Buffer<Elem = T> + ?Sized, E: Dimension>(
        &mut self,
        send: &S,
        mut result: Parts<'a, T, E>,
        op: &Op<'_, T>,
    ) -> Result<Whole<'a, T, E>> {
        let call = Call::new(Verb::AllReduceParts, TypeTag::of::<T>());
        if let Err(error) = self.check_group(&call, result.group()) {
            result.quarantine();
            return Err(error);
        }
        let reduced = op.with_fold(|fold| {
            let call = call.op(fold.code);
            let shape = result.shape().slice();
            let (total, row) = (shape.iter().product::<usize>(), shape[1..].iter().product::<usize>());
            let rows = result.bounds().windows(2).map(|bound| bound[1] - bound[0]);
            let counts: Vec<usize> = rows.map(|rows| rows * row * size_of::<T>()).collect();
            with_bytes(send, |send| {
                if total != send.count {
                    let problem = format!(
                        "send has {} elements, the result {total}; the lengths must be equal",
                        send.count
                    );
                    return self.refuse(&call, problem);
                }
                with_bytes_mut(&mut result.view_mut(), |recv| {
                    self.transport.reduce_scatter(&call, send.bytes, &counts, recv.bytes, fold)
                })
            })
        });
        match reduced {
            Ok(()) => self.publish(result, call),
            Err(error) => {
                result.quarantine();
                Err(error)
            }
        }
    }

    /// Returns `Ok` if an array is held by this communicator's ranks; else refuses the call.
    fn check_group(&mut self, call: &Call, group: u64) -> Result<()> {
        if group == self.transport.group() {
            return Ok(());
        }
        self.refuse(call, "the array belongs to another communicator: use the one that made or opened it")
    }

    fn publish<'a, T: Element, D: Dimension>(
        &mut self,
        parts: Parts<'a, T, D>,
        call: Call,
    ) -> Result<Whole<'a, T, D>> {
        let agreed = self.check_group(&call, parts.group());
        match agreed.and_then(|()| self.transport.rendezvous(&call, parts.identity())) {
            Ok(agreed) => {
                point(Site::Published);
                parts.into_whole(agreed)
            }
            Err(error) => {
                parts.quarantine();
                Err(error)
            }
        }
    }
}

impl<'a, T: Element, D: Dimension> Parts<'a, T, D> {
    /// Makes all ranks give up writing and returns the whole array to read: a gather to all without copying,
    /// at the price of a barrier.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if they publish different arrays. The array is lost after an
    /// error.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let mut part = comm.parts::<u8, _>(1000)?;
    ///     part.view_mut().fill(1);
    ///     assert_eq!(part.publish(comm)?.view().iter().map(|&one| one as u32).sum::<u32>(), 2000);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn publish(self, comm: &mut Comm<'_>) -> Result<Whole<'a, T, D>> {
        let call = Call::new(Verb::Publish, TypeTag::of::<T>());
        comm.publish(self, call)
    }
}

impl<'a, T: Element, D: Dimension> Whole<'a, T, D> {
    /// Makes all ranks give up reading and returns this rank's part to write again, at the price of a
    /// barrier. With two arrays in turn there is nothing to wait for.
    ///
    /// # Errors
    /// As all collectives; and on all ranks if they reopen different arrays. The array is lost after an
    /// error.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     let mut part = comm.parts::<u64, _>(1)?;
    ///     for round in 0..10 {
    ///         part.view_mut()[0] = round;
    ///         let whole = part.publish(comm)?;
    ///         assert_eq!(whole.view().sum(), 2 * round);
    ///         part = whole.reopen(comm)?;
    ///     }
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn reopen(self, comm: &mut Comm<'_>) -> Result<Parts<'a, T, D>> {
        let call = Call::new(Verb::Reopen, TypeTag::of::<T>());
        let agreed = comm.check_group(&call, self.group());
        match agreed.and_then(|()| comm.transport.rendezvous(&call, self.identity())) {
            Ok(agreed) => {
                point(Site::Reopened);
                Ok(self.into_parts(agreed))
            }
            Err(error) => {
                self.quarantine();
                Err(error)
            }
        }
    }
}

/// Returns the numbers of rows into which `numpy.array_split` splits `rows`: the first `rows % parts` parts
/// get one more.
pub(crate) fn array_split(rows: usize, parts: usize) -> Vec<usize> {
    (0..parts).map(|part| rows / parts + usize::from(part < rows % parts)).collect()
}

/// Returns the prefix sums of `rows`, from 0 to the total.
fn bounds(rows: &[usize]) -> Vec<usize> {
    let sums = rows.iter().scan(0usize, |sum, &rows| {
        *sum = sum.saturating_add(rows);
        Some(*sum)
    });
    std::iter::once(0).chain(sums).collect()
}
