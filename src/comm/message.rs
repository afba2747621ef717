//! Messages between two ranks.

use crate::channel::call::{Call, Verb};
use crate::comm::Comm;
use crate::comm::buffer::{Buffer, BufferMut, call, with_bytes, with_bytes_mut};
use crate::error::Result;
use crate::shm::array::{Lease, byte_len};
use crate::shm::datatype::TypeTag;
use crate::shm::element::Element;
use ndarray::{Dimension, IntoDimension};

impl Comm<'_> {
    /// Sends the elements of `message` to rank `to`. Returns when they are under way. The call for a long
    /// message returns only when the receiver has begun to receive it: two ranks that both send long messages
    /// first wait for each other for ever. Two ranks that both send many short messages first do so too: at
    /// most 32 messages, and at most 64 KiB of them (less in large worlds), are under way from one rank to
    /// another. Messages between two ranks arrive in the order sent.
    ///
    /// # Errors
    /// If there is no such rank, or it is gone and the ring to it is full.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     if comm.is_root() {
    ///         comm.send(&arr1(&[1.5, 2.5]), 1)?;
    ///     } else {
    ///         let mut message = Array1::<f64>::zeros(2);
    ///         comm.recv(&mut message, 0)?;
    ///         assert_eq!(message, arr1(&[1.5, 2.5]));
    ///     }
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn send<S: Buffer + ?Sized>(&mut self, message: &S, to: usize) -> Result<()> {
        let call = call::<S>(Verb::Send);
        with_bytes(message, |message| self.send_call(&call, to, message.bytes))
    }

    /// Receives the next message from rank `from` into `message`, which must have as many elements.
    ///
    /// # Errors
    /// If there is no such rank, it is gone, or its next message has another element type or length: that
    /// message can then still be received.
    ///
    /// ```
    /// use ndarray::{arr1, Array1};
    /// phalanx::launch(2, |comm| {
    ///     let (mut message, neighbour) = (Array1::<u32>::zeros(1), 1 - comm.rank());
    ///     comm.send(&arr1(&[comm.rank() as u32]), neighbour)?;
    ///     comm.recv(&mut message, neighbour)?;
    ///     assert_eq!(message[0] as usize, neighbour);
    ///     Ok(())
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn recv<B: BufferMut + ?Sized>(&mut self, message: &mut B, from: usize) -> Result<()> {
        let call = call::<B>(Verb::Recv);
        with_bytes_mut(message, |message| self.recv_call(&call, from, message.bytes))
    }

    /// Hands a shared array of any size on to rank `to`, without copying. An array that the caller made
    /// before the world started cannot be sent.
    ///
    /// # Errors
    /// If there is no such rank or it is gone; the array is then lost.
    ///
    /// ```
    /// phalanx::launch(2, |comm| {
    ///     if comm.is_root() {
    ///         let mut array = comm.alloc::<f64, _>((1000, 1000))?;
    ///         array.view_mut()[[999, 999]] = 1.0;
    ///         comm.send_lease(array, 1)
    ///     } else {
    ///         let array = comm.recv_lease::<f64, _>((1000, 1000), 0)?;
    ///         assert_eq!((array.view()[[999, 999]], comm.bytes_copied()), (1.0, 0));
    ///         Ok(())
    ///     }
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn send_lease<T: Element, D: Dimension>(&mut self, array: Lease<T, D>, to: usize) -> Result<()> {
        let call = Call::new(Verb::SendLease, TypeTag::of::<T>());
        let (block, _) = array.into_parts();
        self.send_block_call(&call, to, block)
    }

    /// Receives the shared array that rank `from` hands on ([`Comm::send_lease`]), which must have this
    /// `shape`.
    ///
    /// # Errors
    /// If there is no such rank, it is gone, or its next message is no array of this type and size: that
    /// message can then still be received.
    ///
    /// ```
    /// phalanx::launch(2, |comm| match comm.rank() {
    ///     0 => {
    ///         let array = comm.alloc::<u8, _>(1 << 20)?;
    ///         comm.send_lease(array, 1)
    ///     }
    ///     _ => {
    ///         assert_eq!(comm.recv_lease::<u8, _>(1 << 20, 0)?.shape(), [1 << 20]);
    ///         Ok(())
    ///     }
    /// })?;
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    #[track_caller]
    pub fn recv_lease<T: Element, D: Dimension>(
        &mut self,
        shape: impl IntoDimension<Dim = D>,
        from: usize,
    ) -> Result<Lease<T, D>> {
        let call = Call::new(Verb::RecvLease, TypeTag::of::<T>());
        let dim = shape.into_dimension();
        let block = self.recv_block_call(&call, from, byte_len::<T, D>(&dim)?)?;
        Lease::received(block, dim)
    }
}
