//! Buffers of calls: bytes, with the number of elements that they hold.

/// A contribution: its bytes, and its number of elements, which those without a size do not show.
#[derive(Clone, Copy)]
pub(super) struct Sent<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) count: usize,
}

/// The room for a result: likewise.
pub(super) struct Room<'a> {
    pub(super) bytes: &'a mut [u8],
    pub(super) count: usize,
}
