//! `Semaphore`: a counter that nobody owns.
//!
//! One word: the value (31 bits) and `WAITERS`.
//!
//! | value | `WAITERS` | meaning |
//! | --- | --- | --- |
//! | n > 0 | 0 | n permits |
//! | n > 0 | 1 | n permits, and a woken waiter is on its way or others sleep |
//! | 0 | 0 | none, nobody sleeps |
//! | 0 | 1 | none, somebody may sleep |
//!
//! A release adds one, clears the flag and, if it stood, wakes one sleeper. Who has slept takes
//! its permit with the flag set again, since others may sleep beside it, and wakes the next if
//! permits are left. Killed between the two steps of a release, or woken and killed: a permit
//! lies there and a sleeper does not know. So sleepers look once a [`SLICE`](super::SLICE).

use std::time::Instant;

use super::{NotHeld, SEM_VALUE_MAX, Stop, passed, slice_end};
use crate::fault::crash_point;
use crate::os::atomic::AtomicU32;
use crate::os::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::os::futex::{self, Wait};
use crate::os::spin;

const WAITERS: u32 = !SEM_VALUE_MAX;

/// A counter of permits between processes. A dead process's permits stay away.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Semaphore {
    word: AtomicU32,
}

impl Semaphore {
    /// A semaphore with `value` permits, at most [`SEM_VALUE_MAX`].
    pub fn new(value: u32) -> Self {
        Self {
            word: AtomicU32::new(value & SEM_VALUE_MAX),
        }
    }

    /// The permits there are now.
    pub fn value(&self) -> u32 {
        self.word.load(Relaxed) & SEM_VALUE_MAX
    }

    /// Takes a permit if there is one. Never blocks.
    #[inline]
    pub fn try_acquire(&self) -> bool {
        self.take(0).is_some()
    }

    /// Takes a permit; waits for one until `deadline` at most.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`].
    #[inline]
    pub fn acquire(&self, deadline: Option<Instant>) -> Result<(), Stop> {
        if self.try_acquire() {
            Ok(())
        } else {
            self.acquire_slow(deadline)
        }
    }

    /// Adds a permit. Never blocks.
    ///
    /// # Errors
    /// [`NotHeld`] if there are [`SEM_VALUE_MAX`] already.
    #[inline]
    pub fn release(&self) -> Result<(), NotHeld> {
        let mut seen = self.word.load(Relaxed);
        loop {
            let value = seen & SEM_VALUE_MAX;
            if value == SEM_VALUE_MAX {
                return Err(NotHeld);
            }
            // SYNC: pairs with the acquire in `take`.
            match self
                .word
                .compare_exchange_weak(seen, value + 1, Release, Relaxed)
            {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        if seen & WAITERS != 0 {
            crash_point!("semaphore.released_unwoken");
            futex::wake(&self.word, 1);
        }
        Ok(())
    }

    /// Takes a permit, setting the bits of `flag`, and returns the word it left.
    #[inline]
    fn take(&self, flag: u32) -> Option<u32> {
        let mut seen = self.word.load(Relaxed);
        while seen & SEM_VALUE_MAX != 0 {
            let left = (seen - 1) | flag;
            // SYNC: pairs with the release in `release`.
            match self
                .word
                .compare_exchange_weak(seen, left, Acquire, Relaxed)
            {
                Ok(_) => return Some(left),
                Err(now) => seen = now,
            }
        }
        None
    }

    #[cold]
    fn acquire_slow(&self, deadline: Option<Instant>) -> Result<(), Stop> {
        if spin::until(|| self.try_acquire()) {
            return Ok(());
        }
        loop {
            if let Some(left) = self.take(WAITERS) {
                if left & SEM_VALUE_MAX != 0 {
                    // Another release found the flag cleared by the one that woke us.
                    futex::wake(&self.word, 1);
                }
                return Ok(());
            }
            if passed(deadline) {
                return Err(Stop::TimedOut);
            }
            let seen = self.word.load(Relaxed);
            if seen & SEM_VALUE_MAX != 0
                || seen == 0
                    && self
                        .word
                        .compare_exchange(0, WAITERS, Relaxed, Relaxed)
                        .is_err()
            {
                continue;
            }
            crash_point!("semaphore.about_to_sleep");
            if futex::wait(&self.word, WAITERS, Some(slice_end(deadline))) == Wait::Interrupted {
                return Err(Stop::Interrupted);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::testing::{Child, Mapped};

    #[test]
    fn smoke() {
        let semaphore = Semaphore::new(2);
        assert!(semaphore.try_acquire() && semaphore.acquire(None).is_ok());
        assert!(!semaphore.try_acquire());
        let end = Instant::now() + std::time::Duration::from_millis(20);
        assert_eq!(semaphore.acquire(Some(end)), Err(Stop::TimedOut));
        assert!(Instant::now() >= end);
        assert_eq!(semaphore.release(), Ok(()));
        assert_eq!(semaphore.value(), 1);
        assert_eq!(Semaphore::new(SEM_VALUE_MAX).release(), Err(NotHeld));
    }

    /// Permits go round between processes and threads, and none is lost or made.
    #[test]
    fn conserves_permits() {
        let semaphore = Mapped::<Semaphore>::new();
        let turn = || {
            for _ in 0..5_000 {
                semaphore.acquire(None).unwrap();
                semaphore.release().unwrap();
            }
        };
        let children = [Child::run(turn), Child::run(turn), Child::run(turn)];
        semaphore.release().unwrap();
        semaphore.release().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(turn);
            scope.spawn(turn);
        });
        for child in children {
            assert_eq!(child.join(), 0);
        }
        assert_eq!(semaphore.value(), 2);
    }

    #[test]
    fn a_waiter_that_was_killed_takes_nothing() {
        let semaphore = Mapped::<Semaphore>::new();
        let victims: Vec<_> = (0..3)
            .map(|_| Child::run(|| semaphore.acquire(None).unwrap()))
            .collect();
        victims.into_iter().for_each(Child::kill);
        semaphore.release().unwrap();
        assert_eq!(semaphore.acquire(None), Ok(()));
    }
}
