//! The lock that its holder may take again.

use std::fmt;
use std::marker::PhantomData;
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
use std::time::{Duration, Instant};

use super::handle::travels_as_handle;
use super::{deadline, patiently};
use crate::arena::Shared;
use crate::error::Result;
use crate::sync::{self, Acquired};

/// A lock that the thread that holds it may take again.
///
/// If the holder's process dies, the next one gets the lock, with an error that holds the guard.
#[derive(Clone)]
pub struct RLock {
    core: Shared<sync::RLock>,
}

impl RLock {
    /// A lock that nobody holds.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn new() -> Result<Self> {
        let core = Shared::create(sync::RLock::new())?;
        Ok(Self { core })
    }

    /// Acquires the lock; blocks while another thread or process holds it.
    ///
    /// # Errors
    /// The guard, if the last holder died with the lock.
    pub fn lock(&self) -> LockResult<RLockGuard<'_>> {
        loop {
            match self.lock_until(None) {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Err(poisoned),
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }

    /// Acquires the lock if no other thread or process holds it. Never blocks.
    ///
    /// # Errors
    /// `WouldBlock`; the guard, if the last holder died with the lock.
    pub fn try_lock(&self) -> TryLockResult<RLockGuard<'_>> {
        self.guard(self.core.try_acquire(self.core.arena()))
    }

    /// Acquires the lock; waits for `timeout` at most.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    pub fn lock_timeout(&self, timeout: Duration) -> TryLockResult<RLockGuard<'_>> {
        self.lock_until(deadline(timeout))
    }

    fn lock_until(&self, deadline: Option<Instant>) -> TryLockResult<RLockGuard<'_>> {
        self.guard(patiently(|| self.core.acquire(self.core.arena(), deadline)))
    }

    fn guard(&self, acquired: Option<Acquired>) -> TryLockResult<RLockGuard<'_>> {
        let recovered = acquired.ok_or(TryLockError::WouldBlock)?.recovered;
        let guard = RLockGuard {
            lock: self,
            thread: PhantomData,
        };
        if recovered {
            Err(TryLockError::Poisoned(PoisonError::new(guard)))
        } else {
            Ok(guard)
        }
    }
}

impl fmt::Debug for RLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = if self.core.is_locked() {
            "held"
        } else {
            "free"
        };
        write!(f, "RLock({said})")
    }
}

travels_as_handle!(RLock, sync::RLock, |lock| &lock.core, |core| RLock { core });

/// One hold of an [`RLock`], by the thread that has it; given back when dropped.
#[derive(Debug)]
#[must_use = "the lock is given back when the guard is dropped"]
pub struct RLockGuard<'a> {
    lock: &'a RLock,
    /// It belongs to its thread.
    thread: PhantomData<*const ()>,
}

impl Drop for RLockGuard<'_> {
    fn drop(&mut self) {
        let core = &self.lock.core;
        // It fails only if somebody wrote over the shared memory, and then there is nothing to do.
        let _ = core.release(core.arena());
    }
}
