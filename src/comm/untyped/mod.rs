//! The untyped interface of [`Comm`]: bytes with a datatype that is named at run time, for bindings to other
//! languages.
//!
//! Each call here checks that its bytes are whole, valid elements, and then makes the call of the typed
//! interface (bytes.rs).

mod folding;

use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::comm::buffer::{Room, Sent};
use crate::error::{Error, Result};
use crate::shm::datatype::Datatype;

impl Comm<'_> {
    /// Copies root's `data` to all other ranks, whose `data` are as long: [`Comm::broadcast`].
    ///
    /// # Errors
    /// As [`Comm::broadcast`]; and on all ranks if a rank's bytes are not whole elements of this datatype, or
    /// root's bytes not valid ones.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// phalanx::launch(3, |comm| {
    ///     let mut data = [comm.rank() as u8; 16];
    ///     comm.broadcast_bytes(&mut data, Datatype::Float64, 2)?;
    ///     assert_eq!(data, [2; 16]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn broadcast_bytes(&mut self, data: &mut [u8], datatype: Datatype, root: usize) -> Result<()> {
        let call = Call::new(Verb::Broadcast, datatype.tag()).root(root);
        if self.rank() == root {
            self.elements(&call, datatype, data)?;
        }
        let data = self.room(&call, datatype, data)?;
        filled(datatype, data, |data| self.broadcast_call(&call, data.bytes))
    }

    /// Collects equal parts, in rank order, in root's `recv`; the other ranks give `None`: [`Comm::gather`].
    ///
    /// # Errors
    /// As [`Comm::gather`]; and on all ranks if a rank's bytes are not whole, valid elements of this
    /// datatype.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// phalanx::launch(2, |comm| {
    ///     let mut all = comm.is_root().then_some([0; 4]);
    ///     let recv = all.as_mut().map(|all| &mut all[..]);
    ///     comm.gather_bytes(&[comm.rank() as u8, 7], recv, Datatype::UInt16, 0)?;
    ///     assert!(all.is_none_or(|all| all == [0, 7, 1, 7]));
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_bytes(
        &mut self,
        send: &[u8],
        recv: Option<&mut [u8]>,
        datatype: Datatype,
        root: usize,
    ) -> Result<()> {
        let call = Call::new(Verb::Gather, datatype.tag()).root(root);
        let counts = vec![send.len() / datatype.size(); self.size()];
        self.gather_parts(&call, send, recv.map(|recv| (recv, &counts[..])), datatype)
    }

    /// Collects parts of any lengths, in rank order, in root's `recv`; root also gives each rank's number of
    /// elements: [`Comm::gather_varcount`].
    ///
    /// # Errors
    /// As [`Comm::gather_varcount`]; and on all ranks if a rank's bytes are not whole, valid elements of this
    /// datatype.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// phalanx::launch(3, |comm| {
    ///     let (part, mut all) = (vec![comm.rank() as u8; 2 * comm.rank()], [9; 6]);
    ///     let recv = comm.is_root().then_some((&mut all[..], &[0, 1, 2][..]));
    ///     comm.gather_varcount_bytes(&part, recv, Datatype::Int16, 0)?;
    ///     assert!(!comm.is_root() || all == [1, 1, 2, 2, 2, 2]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn gather_varcount_bytes(
        &mut self,
        send: &[u8],
        recv: Option<(&mut [u8], &[usize])>,
        datatype: Datatype,
        root: usize,
    ) -> Result<()> {
        let call = Call::new(Verb::Gather, datatype.tag()).root(root);
        self.gather_parts(&call, send, recv, datatype)
    }

    fn gather_parts(
        &mut self,
        call: &Call,
        send: &[u8],
        recv: Option<(&mut [u8], &[usize])>,
        datatype: Datatype,
    ) -> Result<()> {
        let (send, size) = (self.elements(call, datatype, send)?, datatype.size());
        match recv.filter(|_| self.rank() == call.root) {
            Some((recv, counts)) => {
                let recv = self.room(call, datatype, recv)?;
                filled(datatype, recv, |recv| self.gather_call(call, size, send, Some((recv, counts))))
            }
            None => self.gather_call(call, size, send, None),
        }
    }

    /// Collects all parts, of any lengths, in rank order, on every rank: [`Comm::all_gather`].
    ///
    /// # Errors
    /// As [`Comm::all_gather`]; and on all ranks if a rank's bytes are not whole, valid elements of this
    /// datatype.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// phalanx::launch(3, |comm| {
    ///     let mut all = [9; 3];
    ///     comm.all_gather_bytes(&[comm.rank() as u8], &mut all, Datatype::UInt8)?;
    ///     assert_eq!(all, [0, 1, 2]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_gather_bytes(&mut self, send: &[u8], recv: &mut [u8], datatype: Datatype) -> Result<()> {
        let call = Call::new(Verb::AllGather, datatype.tag());
        let send = self.elements(&call, datatype, send)?;
        let recv = self.room(&call, datatype, recv)?;
        filled(datatype, recv, |recv| self.all_gather_call(&call, send.bytes, recv.bytes))
    }

    /// Deals root's `send` out in rank order, to each rank as many bytes as its `recv` has; the other ranks
    /// give `None`: [`Comm::scatter`].
    ///
    /// # Errors
    /// As [`Comm::scatter`]; and on all ranks if a rank's bytes are not whole, valid elements of this
    /// datatype.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// phalanx::launch(2, |comm| {
    ///     let mut part = vec![9; comm.rank() + 1];
    ///     comm.scatter_bytes(comm.is_root().then_some(&[1, 0, 1]), &mut part, Datatype::Bool, 0)?;
    ///     assert_eq!(part, [&[1][..], &[0, 1]][comm.rank()]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn scatter_bytes(
        &mut self,
        send: Option<&[u8]>,
        recv: &mut [u8],
        datatype: Datatype,
        root: usize,
    ) -> Result<()> {
        let call = Call::new(Verb::Scatter, datatype.tag()).root(root);
        let send = match send.filter(|_| self.rank() == root) {
            Some(send) => Some(self.elements(&call, datatype, send)?.bytes),
            None => None,
        };
        let recv = self.room(&call, datatype, recv)?;
        filled(datatype, recv, |recv| self.scatter_call(&call, send, recv.bytes))
    }

    /// Sends the r-th of the equal parts of `send` to rank r, and receives the part from rank r as the r-th
    /// part of `recv`: [`Comm::all_to_all`].
    ///
    /// # Errors
    /// As [`Comm::all_to_all`]; and on all ranks if a rank's bytes are not whole, valid elements of this
    /// datatype.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// phalanx::launch(2, |comm| {
    ///     let (mine, mut from_all) = (10 * comm.rank() as u8, [99; 2]);
    ///     comm.all_to_all_bytes(&[mine, mine + 1], &mut from_all, Datatype::UInt8)?;
    ///     assert_eq!(from_all, [comm.rank() as u8, 10 + comm.rank() as u8]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn all_to_all_bytes(&mut self, send: &[u8], recv: &mut [u8], datatype: Datatype) -> Result<()> {
        let call = Call::new(Verb::AllToAll, datatype.tag());
        let send = self.elements(&call, datatype, send)?;
        let recv = self.room(&call, datatype, recv)?;
        filled(datatype, recv, |recv| self.all_to_all_call(&call, send, recv))
    }

    /// Sends `message` to rank `to`: [`Comm::send`].
    ///
    /// # Errors
    /// As [`Comm::send`]; and if the bytes are not whole, valid elements of this datatype.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// phalanx::launch(2, |comm| {
    ///     let (neighbour, mut message) = (1 - comm.rank(), [9; 4]);
    ///     comm.send_bytes(&[comm.rank() as u8; 4], Datatype::Float32, neighbour)?;
    ///     comm.recv_bytes(&mut message, Datatype::Float32, neighbour)?;
    ///     assert_eq!(message, [neighbour as u8; 4]);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn send_bytes(&mut self, message: &[u8], datatype: Datatype, to: usize) -> Result<()> {
        let call = Call::new(Verb::Send, datatype.tag());
        let problem = not_whole(datatype, message.len()).or_else(|| not_valid(datatype, message));
        match problem {
            Some(problem) => Err(Error::bad(self.place(&call), problem)),
            None => self.send_call(&call, to, message),
        }
    }

    /// Receives the next message from rank `from` into `message`, which is as long: [`Comm::recv`].
    ///
    /// # Errors
    /// As [`Comm::recv`]; and if `message` has no room for whole elements of this datatype.
    ///
    /// ```
    /// use phalanx::untyped::Datatype;
    /// let (mut comm, mut message) = (phalanx::Comm::solo()?, [9; 2]);
    /// comm.send_bytes(&[1, 0], Datatype::Bool, 0)?;
    /// comm.recv_bytes(&mut message, Datatype::Bool, 0)?;
    /// assert_eq!(message, [1, 0]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn recv_bytes(&mut self, message: &mut [u8], datatype: Datatype, from: usize) -> Result<()> {
        let call = Call::new(Verb::Recv, datatype.tag());
        if let Some(problem) = not_whole(datatype, message.len()) {
            return Err(Error::bad(self.place(&call), problem));
        }
        let message = Room { count: message.len() / datatype.size(), bytes: message };
        filled(datatype, message, |message| self.recv_call(&call, from, message.bytes))
    }

    /// Returns `bytes` as elements; refuses bytes that are not whole, valid elements on all ranks.
    fn elements<'b>(&mut self, call: &Call, datatype: Datatype, bytes: &'b [u8]) -> Result<Sent<'b>> {
        match not_whole(datatype, bytes.len()).or_else(|| not_valid(datatype, bytes)) {
            Some(problem) => self.refuse(call, problem),
            None => Ok(Sent { bytes, count: bytes.len() / datatype.size() }),
        }
    }

    /// Returns `bytes` as room for elements; refuses bytes that are not room for whole elements on all ranks.
    fn room<'b>(&mut self, call: &Call, datatype: Datatype, bytes: &'b mut [u8]) -> Result<Room<'b>> {
        match not_whole(datatype, bytes.len()) {
            Some(problem) => self.refuse(call, problem),
            None => Ok(Room { count: bytes.len() / datatype.size(), bytes }),
        }
    }
}

/// Describes the problem if bytes end within an element.
fn not_whole(datatype: Datatype, len: usize) -> Option<String> {
    let (name, size) = (datatype.name(), datatype.size());
    let problem = || format!("{len} bytes are no whole number of elements: {name} has {size} bytes");
    (!len.is_multiple_of(size)).then(problem)
}

/// Describes the problem if bytes are not valid elements.
fn not_valid(datatype: Datatype, bytes: &[u8]) -> Option<String> {
    let at = datatype.invalid(bytes)?;
    Some(format!("byte {at} to send is {}, which is no {}", bytes[at], datatype.name()))
}

/// Lets `f` receive elements; if the bytes from a peer are not valid elements, replaces them by zeros and
/// returns an error.
fn filled(datatype: Datatype, recv: Room<'_>, f: impl FnOnce(Room<'_>) -> Result<()>) -> Result<()> {
    let Room { bytes, count } = recv;
    f(Room { bytes: &mut *bytes, count })?;
    if datatype.invalid(bytes).is_none() {
        return Ok(());
    }
    bytes.fill(0);
    Err(Error::Corrupt { what: "a received array" })
}
