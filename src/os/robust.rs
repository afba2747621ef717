//! Robust words: the kernel marks the word of a thread that dies, whatever the cause.
#![expect(unsafe_code, reason = "set_robust_list and gettid")]

#[cfg(not(loom))]
use core::sync::atomic::AtomicU32;

/// The bit that the kernel sets in a robust futex word whose owner has died.
pub(crate) const OWNER_DIED: u32 = libc::FUTEX_OWNER_DIED;

/// The bit that tells the kernel that a death must wake a sleeper on the robust word.
pub(crate) const WAITERS: u32 = libc::FUTEX_WAITERS;

/// The bits of a robust word that hold the owner's thread id.
pub(crate) const TID_MASK: u32 = libc::FUTEX_TID_MASK;

/// The robust list of one thread (`set_robust_list(2)`): one entry, whose word lies `offset` bytes behind it.
#[cfg(not(loom))]
#[repr(C)]
struct RobustList {
    first: *const RobustList,
    offset: libc::c_long,
    pending: *const RobustList,
}

/// Lets the kernel mark `word` on this thread's death, whatever the cause, and wake one sleeper: the word
/// becomes `OWNER_DIED | WAITERS`. The word must stay mapped while the thread lives. Replaces the thread's
/// robust list (glibc's robust mutexes are not available to it from here on).
///
/// Returns the value that says "alive". The caller stores it *after* this call.
#[cfg(not(loom))]
pub(crate) fn announce_death_through(word: &AtomicU32) -> u32 {
    // The node that the kernel follows is private and never freed: an entry is a pointer, and pointers have
    // no place in shared memory. Kernel: `entry + offset` is the futex word (futex.rst, "Robust futexes").
    let node: &'static mut [usize; 1] = Box::leak(Box::new([0]));
    let entry = node.as_mut_ptr();
    let head = Box::leak(Box::new(RobustList {
        first: entry.cast(),
        offset: word.as_ptr() as libc::c_long - entry as libc::c_long,
        pending: core::ptr::null(),
    }));
    node[0] = core::ptr::from_ref(head) as usize;
    if crate::os::fault::refused(crate::os::fault::Site::SetRobustList).is_none() {
        // SAFETY: the head and its one node are valid for the life of the process and form a closed list.
        unsafe {
            libc::syscall(libc::SYS_set_robust_list, core::ptr::from_ref(head), size_of::<RobustList>())
        };
    }
    // SAFETY: gettid takes nothing.
    let tid = unsafe { libc::gettid() } as u32;
    tid | WAITERS
}

/// Takes [`announce_death_through`] back, in a process that outlives its world.
#[cfg(feature = "mpi")]
pub(crate) fn announce_no_death() {
    let head =
        Box::leak(Box::new(RobustList { first: core::ptr::null(), offset: 0, pending: core::ptr::null() }));
    head.first = core::ptr::from_ref(head);
    // SAFETY: an empty list, which is never freed.
    unsafe { libc::syscall(libc::SYS_set_robust_list, core::ptr::from_ref(head), size_of::<RobustList>()) };
}
