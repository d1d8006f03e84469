//! A value under a lock.

use std::cell::UnsafeCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{LockResult, PoisonError, TryLockError, TryLockResult};
use std::time::{Duration, Instant};

use super::handle::travels_as_handle;
use super::plain::Plain;
use super::{deadline, patiently};
use crate::arena::{Shareable, Shared};
use crate::error::Result;
use crate::sync::{self, Acquired};

/// The shared part of a [`Mutex`].
#[repr(C)]
pub(crate) struct MutexCore<T> {
    lock: sync::Lock,
    /// 1: somebody ended in the middle of changing the value.
    poisoned: AtomicU32,
    /// Read and written by the holder of the lock only.
    value: UnsafeCell<T>,
}

// SAFETY: whoever uses the value holds the lock, and it goes between threads (`Plain` is `Send`).
unsafe impl<T: Plain> Sync for MutexCore<T> {}

// SAFETY: `repr(C)`; atomics and, under the lock, a plain value; no address, no `Drop`. A holder
// that dies leaves the lock, which says so, and a value, half changed or not: any bytes are one.
unsafe impl<T: Plain> Shareable for MutexCore<T> {
    const KIND: u32 = 64;
    const NAME: &'static str = "Mutex";
}

/// A value that one process or thread at a time can use.
///
/// As [`std::sync::Mutex`], between processes: clones, and copies that went to another process,
/// are the same mutex. A mutex of nothing, `Mutex<()>`, is a plain lock: [`Lock`].
///
/// ```
/// use phalanx::{Mutex, Process};
///
/// fn add(total: Mutex<u64>) {
///     for _ in 0..1000 {
///         *total.lock().unwrap() += 1;
///     }
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let total = Mutex::new(0)?;
///     let child = Process::spawn(add, total.clone())?;
///     add(total.clone());
///     child.join()?;
///     assert_eq!(*total.lock().unwrap(), 2000);
///     Ok(())
/// }
/// ```
///
/// # When a process dies
/// If the holder dies, or panics, the next one gets the lock all the same, within 100 ms, and the
/// mutex is *poisoned*: the value may be half changed. `lock` then returns an error that holds the
/// guard, [`PoisonError::into_inner`]; repair the value, and [`clear_poison`](Self::clear_poison).
pub struct Mutex<T: Plain> {
    core: Shared<MutexCore<T>>,
}

/// A lock between processes that guards nothing of its own.
pub type Lock = Mutex<()>;

impl<T: Plain> Mutex<T> {
    /// A mutex that holds `value`.
    ///
    /// # Errors
    /// `is_arena_full`, and the system's when the arena cannot be made.
    pub fn new(value: T) -> Result<Self> {
        const {
            assert!(
                align_of::<T>() <= 64,
                "objects of the arena are aligned to 64"
            )
        };
        let core = Shared::create(MutexCore {
            lock: sync::Lock::new(),
            poisoned: AtomicU32::new(0),
            value: UnsafeCell::new(value),
        })?;
        Ok(Self { core })
    }

    /// Acquires the lock; blocks while a living process or another thread holds it.
    ///
    /// A thread that holds it already waits for itself, for ever.
    ///
    /// # Errors
    /// The guard, if the mutex is poisoned.
    pub fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        loop {
            match self.lock_until(None) {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Err(poisoned),
                Err(TryLockError::WouldBlock) => {}
            }
        }
    }

    /// Acquires the lock if it is free, or if its holder is dead. Never blocks.
    ///
    /// # Errors
    /// `WouldBlock` if somebody holds it; the guard, if the mutex is poisoned.
    pub fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        match self.core.lock.try_acquire(self.core.arena()) {
            Some(acquired) => self.guard(acquired).map_err(TryLockError::Poisoned),
            None => Err(TryLockError::WouldBlock),
        }
    }

    /// Acquires the lock; waits for `timeout` at most.
    ///
    /// # Errors
    /// As [`try_lock`](Self::try_lock).
    pub fn lock_timeout(&self, timeout: Duration) -> TryLockResult<MutexGuard<'_, T>> {
        self.lock_until(deadline(timeout))
    }

    fn lock_until(&self, deadline: Option<Instant>) -> TryLockResult<MutexGuard<'_, T>> {
        match patiently(|| self.core.lock.acquire(self.core.arena(), deadline)) {
            Some(acquired) => self.guard(acquired).map_err(TryLockError::Poisoned),
            None => Err(TryLockError::WouldBlock),
        }
    }

    fn guard(&self, acquired: Acquired) -> LockResult<MutexGuard<'_, T>> {
        if acquired.recovered {
            self.core.poisoned.store(1, Relaxed);
        }
        let guard = MutexGuard {
            mutex: self,
            panicking: std::thread::panicking(),
        };
        if self.is_poisoned() {
            Err(PoisonError::new(guard))
        } else {
            Ok(guard)
        }
    }

    /// Whether a holder died or panicked, as far as that has been noticed.
    pub fn is_poisoned(&self) -> bool {
        self.core.poisoned.load(Relaxed) != 0
    }

    /// Says that the value is as it should be.
    pub fn clear_poison(&self) {
        self.core.poisoned.store(0, Relaxed);
    }
}

impl<T: Plain> Clone for Mutex<T> {
    fn clone(&self) -> Self {
        Self {
            core: self.core.clone(),
        }
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("Mutex");
        match self.try_lock() {
            Ok(guard) => shown.field("value", &*guard),
            Err(TryLockError::Poisoned(poisoned)) => shown.field("value", &**poisoned.get_ref()),
            Err(TryLockError::WouldBlock) => shown.field("value", &format_args!("<locked>")),
        };
        shown.field("poisoned", &self.is_poisoned()).finish()
    }
}

travels_as_handle!(Mutex<T: Plain>, MutexCore<T>, |mutex| &mutex.core, |core| Mutex { core });

/// The right to use a mutex's value; gives the lock back when dropped.
#[must_use = "the lock is given back when the guard is dropped"]
pub struct MutexGuard<'a, T: Plain> {
    mutex: &'a Mutex<T>,
    /// The thread was panicking when it got the lock: its panic is none of the value's.
    panicking: bool,
}

impl<'a, T: Plain> MutexGuard<'a, T> {
    pub(super) fn mutex(&self) -> &'a Mutex<T> {
        self.mutex
    }
}

impl<T: Plain> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: this thread holds the lock, and nobody else touches the value without.
        unsafe { &*self.mutex.core.value.get() }
    }
}

impl<T: Plain> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as in `deref`, and `&mut self` makes the reference the only one.
        unsafe { &mut *self.mutex.core.value.get() }
    }
}

impl<T: Plain> Drop for MutexGuard<'_, T> {
    fn drop(&mut self) {
        if !self.panicking && std::thread::panicking() {
            self.mutex.core.poisoned.store(1, Relaxed);
        }
        // It fails only if somebody wrote over the shared memory, and then there is nothing to do.
        let _ = self.mutex.core.lock.release();
    }
}

impl<T: Plain + fmt::Debug> fmt::Debug for MutexGuard<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
