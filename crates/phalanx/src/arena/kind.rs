//! What a block of the arena can hold.

use crate::arena::Arena;

/// The block is on a free list, or about to be.
pub(crate) const FREE: u32 = 0;
/// Part of a member's table of references.
pub(crate) const REFS: u32 = 1;
/// A segment of a message log.
pub(crate) const SEGMENT: u32 = 2;
/// Bytes that belong to one member, or to a message in transit.
pub(crate) const BUFFER: u32 = 3;
/// Further waiter slots of a condition, entries of a bounded semaphore and the like: the object
/// that they belong to frees them.
pub(crate) const PART: u32 = 4;
/// A large free block that its owner has taken off the free list to give its pages back.
pub(crate) const COOLING: u32 = 5;
/// The first kind of a counted object; see [`crate::arena::Shareable`].
pub(crate) const OBJECTS: u32 = 16;

/// A type that lies in the arena and is shared by reference count.
///
/// # Safety
/// The type is `repr(C)`, consists of atomics and plain bytes, holds no address, has no `Drop`,
/// and is sound to use from several processes at once, even if one of them is killed at any
/// instruction. `KIND` is 16 or more, its own, and listed in `crate::KINDS` together
/// with `reclaim`.
pub unsafe trait Shareable: Send + Sync + Sized + 'static {
    /// Tells the type of a block.
    const KIND: u32;

    /// The name for error messages.
    const NAME: &'static str;

    /// Frees what belongs to the object. The last holder is gone; nobody else sees it any more.
    fn reclaim(&self, _arena: &Arena) {}

    /// Whether the object wants [`Shareable::peer_died`] to be called.
    const MINDS_DEATHS: bool = false;

    /// A member has died, perhaps in the middle of a call on this object: whoever was to be woken
    /// by it is woken.
    fn peer_died(&self, _arena: &Arena) {}
}

/// One entry of `crate::KINDS`: how the last reference to a kind of object is given back, by
/// whichever member does so, typed or not.
pub(crate) struct KindInfo {
    pub(crate) kind: u32,
    pub(crate) name: &'static str,
    /// Bytes that an object has at least.
    pub(crate) size: usize,
    pub(crate) reclaim: unsafe fn(*const u8, &Arena),
    /// If it has to be told of a member's death: how.
    pub(crate) peer_died: Option<unsafe fn(*const u8, &Arena)>,
}

impl KindInfo {
    pub(crate) const fn of<T: Shareable>() -> Self {
        assert!(T::KIND >= OBJECTS, "kinds below are the arena's own");
        /// # Safety
        /// `object` points to a `T` in the arena.
        unsafe fn reclaim<T: Shareable>(object: *const u8, arena: &Arena) {
            // SAFETY: the caller says so.
            unsafe { &*object.cast::<T>() }.reclaim(arena);
        }
        /// # Safety
        /// As above.
        unsafe fn peer_died<T: Shareable>(object: *const u8, arena: &Arena) {
            // SAFETY: the caller says so.
            unsafe { &*object.cast::<T>() }.peer_died(arena);
        }
        Self {
            kind: T::KIND,
            name: T::NAME,
            size: size_of::<T>(),
            reclaim: reclaim::<T>,
            peer_died: if T::MINDS_DEATHS {
                Some(peer_died::<T>)
            } else {
                None
            },
        }
    }
}

pub(crate) fn info(kind: u32) -> Option<&'static KindInfo> {
    crate::KINDS.iter().find(|k| k.kind == kind)
}
