//! Surrogates: members for those who are not of the family.
//!
//! A process may act for others that cannot touch the arena: a manager's server for its clients on
//! other machines. What such a client claims (a lock, a permit, a place in a queue of waiters) has to
//! come back when it dies, and while it lives nobody else may take it for their own. So it gets a
//! place in the member table like a process's, which says that the server lives there, and a thread
//! of the server that serves it [acts for](act_for) that member: all it claims is the member's. When
//! the client is gone the server [removes](Arena::remove_surrogate) the member, and everybody finds
//! it dead. So they do when the server itself dies.
//!
//! A surrogate refers to no objects. What a thread holds only while it changes something (the locks
//! inside of objects, the allocator's) is the process's own, whomever it acts for.

use std::cell::Cell;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use super::Arena;
use crate::error::{Error, Kind, Result};
use crate::sync::owner::MemberId;

/// Whether any thread of this process has ever acted for somebody: most processes pay one load.
static EVER: AtomicBool = AtomicBool::new(false);

thread_local! {
    static FOR: Cell<Option<MemberId>> = const { Cell::new(None) };
}

impl Arena {
    /// Makes a member for somebody for whom this process will act; it lives as long as this process
    /// at most.
    ///
    /// # Errors
    /// `is_full` if the family has as many members as it can have.
    pub fn add_surrogate(&self) -> Result<MemberId> {
        let id = self.reserve()?;
        if self.occupy(id) {
            Ok(id)
        } else {
            Err(Error::new(
                Kind::Gone,
                "the place of a new member was given up at once",
            ))
        }
    }

    /// Ends a member that [`add_surrogate`](Self::add_surrogate) made: what it held comes back. No
    /// thread may act for it any more.
    pub fn remove_surrogate(&self, id: MemberId) {
        if id.get() != self.me_or_zero() {
            self.leave(id);
        }
    }
}

/// From here on the calling thread claims for that member, or again (`None`) for its process.
pub fn act_for(member: Option<MemberId>) {
    if member.is_some() {
        EVER.store(true, Relaxed);
    }
    FOR.set(member);
}

/// For whom the calling thread claims, if not for its process.
#[inline]
pub(super) fn acting_for() -> Option<MemberId> {
    // Only the thread that has set both asks for its own.
    if EVER.load(Relaxed) { ask() } else { None }
}

/// Out of line: what leads to a thread's own variable would cost each lock something.
#[cold]
#[inline(never)]
fn ask() -> Option<MemberId> {
    FOR.get()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Shared;
    use crate::sync::{BoundedSemaphore, Lock, Members};

    #[test]
    fn what_a_surrogate_held_comes_back() {
        let lock = Shared::create(Lock::new()).unwrap();
        let semaphore = Shared::create(BoundedSemaphore::new(2)).unwrap();
        let arena = lock.arena();
        let client = arena.add_surrogate().unwrap();
        assert!(arena.is_alive(client) && client != arena.me());
        act_for(Some(client));
        assert!(lock.try_acquire(arena).is_some() && lock.is_ours(arena));
        assert!(semaphore.try_acquire(arena));
        act_for(None);
        assert!(!lock.is_ours(arena) && lock.try_acquire(arena).is_none());
        assert_eq!(semaphore.value(), 1);
        arena.remove_surrogate(client);
        assert!(!arena.is_alive(client));
        // As it ended its permits came back; the lock is found by who wants it.
        assert_eq!(semaphore.value(), 2);
        assert!(lock.acquire(arena, None).unwrap().recovered);
    }

    #[test]
    fn what_was_inherited_stays() {
        let lock = Shared::create(Lock::new()).unwrap();
        let semaphore = Shared::create(BoundedSemaphore::new(1)).unwrap();
        let arena = lock.arena();
        let client = arena.add_surrogate().unwrap();
        act_for(Some(client));
        assert!(lock.try_acquire(arena).is_some() && semaphore.try_acquire(arena));
        act_for(None);
        lock.inherit(client, arena);
        semaphore.inherit(client, arena);
        arena.remove_surrogate(client);
        let soon = std::time::Instant::now() + std::time::Duration::from_millis(120);
        assert!(lock.acquire(arena, Some(soon)).is_err() && !semaphore.try_acquire(arena));
        assert!(lock.release().is_ok() && semaphore.release(arena).is_ok());
    }
}
