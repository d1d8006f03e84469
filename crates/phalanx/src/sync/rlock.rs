//! `RLock`: mutual exclusion that its owner may enter again.
//!
//! The owner is a thread of a process. The word of a [`RawLock`] names the process; the thread
//! and the depth beside it are written by the holder alone, and count only while the word names
//! the reader's own process:
//!
//! | word | thread | this thread holds it |
//! | --- | --- | --- |
//! | free, or another process | anything | no |
//! | this process | 0, or another | no |
//! | this process | this | yes, `depth` times |
//!
//! The thread is set after the word was taken and cleared before it is freed, so a stale number
//! is never seen beside this process's name, and a free lock names no thread. A holder that dies
//! leaves any of the two behind: whoever takes the word over sets both anew.
//!
//! Who enters also counts `entries` up before it can change what the lock protects. So what was
//! read while the lock was free is what somebody who held it would have seen, if `entries` is still
//! the same afterwards ([`RLock::read_if_free`]).

use std::time::Instant;

use super::{Acquired, LastLook, Members, NotHeld, RawLock, Stop, this_thread};
use crate::fault::crash_point;
use crate::os::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::os::atomic::{AtomicU32, AtomicU64, fence};

/// A lock between processes and threads that its holder may acquire again.
#[derive(Debug, Default)]
#[repr(C)]
pub struct RLock {
    raw: RawLock,
    thread: AtomicU32,
    depth: AtomicU32,
    looked: LastLook,
    entries: AtomicU64,
}

const AGAIN: Acquired = Acquired { recovered: false };

impl RLock {
    /// A free lock.
    pub fn new() -> Self {
        Self {
            raw: RawLock::new(),
            thread: AtomicU32::new(0),
            depth: AtomicU32::new(0),
            looked: LastLook::new(),
            entries: AtomicU64::new(0),
        }
    }

    /// Acquires the lock once more; waits until `deadline` at most, while a living process or
    /// another thread of this one holds it.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`].
    #[inline]
    pub fn acquire(
        &self,
        members: &impl Members,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Stop> {
        if self.enter_again(members) {
            return Ok(AGAIN);
        }
        let acquired = self.raw.lock_as(members.claimant(), members, deadline)?;
        crash_point!("rlock.entering");
        self.enter(1);
        Ok(acquired)
    }

    /// Acquires the lock if it is free, held by this thread, or if its owner is dead. Never blocks.
    #[inline]
    pub fn try_acquire(&self, members: &impl Members) -> Option<Acquired> {
        if self.enter_again(members) {
            return Some(AGAIN);
        }
        let me = members.claimant();
        let acquired = match self.raw.try_lock_as(me) {
            Some(acquired) => acquired,
            None if self.looked.is_due() => self.raw.try_take_over(me, members)?,
            None => return None,
        };
        self.enter(1);
        Some(acquired)
    }

    /// Acquires the lock if it is free or held by this thread. Never blocks and makes no system
    /// call.
    #[inline]
    pub fn try_acquire_free(&self, members: &impl Members) -> bool {
        if self.enter_again(members) {
            return true;
        }
        let taken = self.raw.try_lock_as(members.claimant()).is_some();
        if taken {
            self.enter(1);
        }
        taken
    }

    /// Does something with the lock held, if it is free or held by this thread: what makes no use
    /// of the lock itself. Never blocks and makes no system call.
    #[inline]
    pub fn with_free<T>(&self, members: &impl Members, action: impl FnOnce() -> T) -> Option<T> {
        if self.is_mine(members) {
            return Some(action());
        }
        let _held = self.raw.try_guard(members)?;
        self.count_entry();
        Some(action())
    }

    /// What `read` gives, as if the lock were held meanwhile, if it is free or held by this thread.
    /// Never blocks, and writes nothing.
    ///
    /// `read` makes one access by an atomic; it may see what was never meant to be seen, of which
    /// then nobody hears. Unlike an acquire, this does not wait for the caller's own earlier writes
    /// to get to memory.
    #[inline]
    pub fn read_if_free<T>(&self, members: &impl Members, read: impl FnOnce() -> T) -> Option<T> {
        // SYNC: pairs with the store in `count_entry`: who sees an entry sees the lock taken.
        let before = self.entries.load(Acquire);
        if !self.raw.is_free() {
            return self.is_mine(members).then(read);
        }
        let seen = read();
        // SYNC: pairs with the fence in `count_entry`: if `read` has seen what somebody wrote who
        // entered meanwhile, then that entry is seen here.
        fence(Acquire);
        (self.entries.load(Relaxed) == before).then_some(seen)
    }

    /// Undoes one acquire; the last one frees the lock.
    ///
    /// # Errors
    /// [`NotHeld`] if this thread does not hold it.
    #[inline]
    pub fn release(&self, members: &impl Members) -> Result<(), NotHeld> {
        if !self.is_mine(members) {
            return Err(NotHeld);
        }
        match self.depth.load(Relaxed) {
            depth @ 2.. => self.depth.store(depth - 1, Relaxed),
            _ => self.leave(),
        }
        Ok(())
    }

    /// Frees the lock however deep it is held, and says how deep it was.
    ///
    /// # Errors
    /// [`NotHeld`] if this thread does not hold it.
    pub fn release_all(&self, members: &impl Members) -> Result<u32, NotHeld> {
        if !self.is_mine(members) {
            return Err(NotHeld);
        }
        let depth = self.depth.load(Relaxed).max(1);
        self.leave();
        Ok(depth)
    }

    /// Undoes [`release_all`](Self::release_all): acquires the lock and holds it `depth` times.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`].
    pub fn acquire_all(
        &self,
        members: &impl Members,
        depth: u32,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Stop> {
        let acquired = self.raw.lock_as(members.claimant(), members, deadline)?;
        self.enter(depth);
        Ok(acquired)
    }

    /// How often this thread holds it.
    pub fn depth(&self, members: &impl Members) -> u32 {
        if self.is_mine(members) {
            self.depth.load(Relaxed)
        } else {
            0
        }
    }

    /// Whether somebody holds it, dead or alive.
    pub fn is_locked(&self) -> bool {
        self.raw.owner().is_some()
    }

    /// Whether this process holds it.
    pub fn is_ours(&self, members: &impl Members) -> bool {
        self.raw.owner() == Some(members.claimant())
    }

    /// Whether this thread of this process holds it.
    #[inline]
    pub fn is_mine(&self, members: &impl Members) -> bool {
        self.is_ours(members) && self.thread.load(Relaxed) == this_thread()
    }

    #[inline]
    fn enter_again(&self, members: &impl Members) -> bool {
        if !self.is_mine(members) {
            return false;
        }
        let depth = self.depth.load(Relaxed);
        self.depth.store(depth.saturating_add(1), Relaxed);
        true
    }

    /// The holder's first step, before it touches what the lock protects.
    #[inline]
    fn count_entry(&self) {
        let entries = self.entries.load(Relaxed).wrapping_add(1);
        // SYNC: pairs with the first load in `read_if_free`.
        self.entries.store(entries, Release);
        // SYNC: pairs with the fence in `read_if_free`.
        fence(Release);
    }

    fn enter(&self, depth: u32) {
        self.count_entry();
        self.depth.store(depth, Relaxed);
        self.thread.store(this_thread(), Relaxed);
    }

    fn leave(&self) {
        self.depth.store(0, Relaxed);
        self.thread.store(0, Relaxed);
        crash_point!("rlock.leaving");
        self.raw.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::testing::{Child, Mapped, Processes};

    #[test]
    fn smoke() {
        let lock = RLock::new();
        assert_eq!(lock.release(&Processes), Err(NotHeld));
        for depth in 1..=3 {
            assert!(!lock.acquire(&Processes, None).unwrap().recovered);
            assert_eq!(lock.depth(&Processes), depth);
        }
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(lock.depth(&Processes), 0);
                assert!(lock.try_acquire(&Processes).is_none());
                assert_eq!(lock.release(&Processes), Err(NotHeld));
            });
        });
        assert_eq!(lock.release_all(&Processes), Ok(3));
        assert!(!lock.is_locked());
        let _ = lock.acquire_all(&Processes, 2, None).unwrap();
        assert_eq!(lock.release(&Processes), Ok(()));
        assert!(lock.is_locked());
        assert_eq!(lock.release(&Processes), Ok(()));
        assert!(!lock.is_locked());
    }

    #[test]
    fn at_once_or_not_at_all() {
        let lock = RLock::new();
        assert_eq!(lock.read_if_free(&Processes, || 1), Some(1));
        let locked = lock.with_free(&Processes, || lock.is_locked());
        assert_eq!((locked, lock.is_locked()), (Some(true), false));
        let _ = lock.acquire(&Processes, None).unwrap();
        assert_eq!(lock.read_if_free(&Processes, || 2), Some(2));
        assert_eq!(
            lock.with_free(&Processes, || lock.depth(&Processes)),
            Some(1)
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert_eq!(lock.read_if_free(&Processes, || 3), None);
                assert_eq!(lock.with_free(&Processes, || 3), None);
            });
        });
        assert_eq!(lock.release(&Processes), Ok(()));
        // Somebody was in meanwhile.
        let meanwhile = || lock.with_free(&Processes, || 4);
        assert_eq!(lock.read_if_free(&Processes, meanwhile), None);
    }

    #[test]
    fn a_child_does_not_own_its_parents_lock() {
        let lock = Mapped::<RLock>::new();
        let _ = lock.acquire(&Processes, None).unwrap();
        let child = Child::run(|| {
            assert_eq!(lock.depth(&Processes), 0);
            assert!(lock.try_acquire(&Processes).is_none());
            assert_eq!(lock.release(&Processes), Err(NotHeld));
        });
        assert_eq!(child.join(), 0);
        assert_eq!(lock.release(&Processes), Ok(()));
    }

    #[test]
    fn a_dead_owner_is_followed() {
        let lock = Mapped::<RLock>::new();
        let child = Child::run(|| {
            let _ = lock.acquire(&Processes, None);
            let _ = lock.acquire(&Processes, None);
        });
        assert_eq!(child.join(), 0);
        assert!(lock.acquire(&Processes, None).unwrap().recovered);
        assert_eq!(lock.depth(&Processes), 1);
        assert_eq!(lock.release(&Processes), Ok(()));
        assert!(!lock.acquire(&Processes, None).unwrap().recovered);
    }
}
