//! `BoundedSemaphore`: permits that come back when their holder dies.
//!
//! The entries say which process holds how many permits; they are the truth. The word (value and
//! `WAITERS`, as in [`Semaphore`](super::Semaphore)) is `max` minus their sum, kept for those who
//! only look or sleep. Both change under a [`RawLock`], the entry first:
//!
//! | killed | entry | word | survivors |
//! | --- | --- | --- | --- |
//! | acquiring, before the entry | – | – | find the lock abandoned: nothing to repair |
//! | acquiring, between | +1 | – | find the lock abandoned, drop the entry, compute the word anew |
//! | acquiring, after | +1 | −1 | find the lock abandoned, or the holder dead: the same |
//! | releasing, between | −1 | – | find the lock abandoned, compute the word anew |
//! | holding | | | a waiter looks at the holders once a slice: drops the entry, computes anew |
//!
//! Anybody may release, as in Python: who holds nothing himself takes from another's entry. Where
//! there is no room for an entry, a permit is a stray: it comes back by a release only.

use std::time::Instant;

use super::holdings::Holdings;
use super::raw::Guard;
use super::slots::Space;
use super::{
    LastLook, MemberId, Members, NotHeld, RawLock, SEM_VALUE_MAX, Stop, passed, slice_end,
};
use crate::fault::crash_point;
use crate::os::atomic::AtomicU32;
use crate::os::atomic::Ordering::Relaxed;
use crate::os::futex::{self, Wait};
use crate::os::spin;

const WAITERS: u32 = !SEM_VALUE_MAX;

/// A counter of permits between processes, with a maximum, that knows its holders.
#[derive(Debug, Default)]
#[repr(C)]
pub struct BoundedSemaphore {
    lock: RawLock,
    word: AtomicU32,
    max: AtomicU32,
    looked: LastLook,
    taken: Holdings,
}

impl BoundedSemaphore {
    /// A semaphore with `max` permits, at most [`SEM_VALUE_MAX`].
    pub fn new(max: u32) -> Self {
        let max = max.min(SEM_VALUE_MAX);
        Self {
            word: AtomicU32::new(max),
            max: AtomicU32::new(max),
            ..Self::default()
        }
    }

    /// The permits there are now.
    pub fn value(&self) -> u32 {
        self.word.load(Relaxed) & SEM_VALUE_MAX
    }

    /// The permits there are when nobody holds one.
    pub fn max(&self) -> u32 {
        self.max.load(Relaxed)
    }

    /// Takes a permit if there is one; `None` if another thread or process is at work on it just
    /// now. Never blocks and makes no system call.
    #[inline]
    pub fn try_acquire_free(&self, home: &(impl Members + Space)) -> Option<bool> {
        Some(self.take_under(self.guard_now(home)?, 0, home).is_some())
    }

    /// [`release`](Self::release), but `None` if another thread or process is at work on it just
    /// now. Never blocks.
    #[inline]
    pub fn try_release(&self, home: &(impl Members + Space)) -> Option<Result<(), NotHeld>> {
        Some(self.release_under(self.guard_now(home)?, home))
    }

    /// Takes a permit if there is one, or if a holder is found dead. Does not wait for permits.
    pub fn try_acquire(&self, home: &(impl Members + Space)) -> bool {
        if self.take(0, home).is_some() {
            return true;
        }
        self.looked.is_due() && self.bury(home) && self.take(0, home).is_some()
    }

    /// Takes a permit; waits for one until `deadline` at most, while living processes hold them.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`].
    pub fn acquire(
        &self,
        home: &(impl Members + Space),
        deadline: Option<Instant>,
    ) -> Result<(), Stop> {
        if self.take(0, home).is_some()
            || spin::until(|| self.value() != 0 && self.take(0, home).is_some())
        {
            return Ok(());
        }
        loop {
            if let Some(left) = self.take(WAITERS, home) {
                if left != 0 {
                    // Another release found the flag cleared by the one that woke us.
                    futex::wake(&self.word, 1);
                }
                return Ok(());
            }
            match futex::wait(&self.word, WAITERS, Some(slice_end(deadline))) {
                Wait::Woken => {}
                Wait::Interrupted => return Err(Stop::Interrupted),
                Wait::TimedOut => {
                    let freed = self.looked.is_due() && self.bury(home);
                    if !freed && passed(deadline) {
                        let taken = self.take(WAITERS, home).is_some();
                        return if taken { Ok(()) } else { Err(Stop::TimedOut) };
                    }
                }
            }
        }
    }

    /// Gives a permit back: this process's, if it holds one, else anybody's.
    ///
    /// # Errors
    /// [`NotHeld`] if nobody holds one.
    pub fn release(&self, home: &(impl Members + Space)) -> Result<(), NotHeld> {
        self.release_under(self.guard(home), home)
    }

    fn release_under(
        &self,
        guard: Guard<'_>,
        home: &(impl Members + Space),
    ) -> Result<(), NotHeld> {
        let value = self.value();
        if value >= self.max() {
            return Err(NotHeld);
        }
        self.taken.remove(home);
        crash_point!("bounded.left");
        let before = self.word.swap(value + 1, Relaxed);
        drop(guard);
        if before & WAITERS != 0 {
            crash_point!("bounded.released_unwoken");
            futex::wake(&self.word, 1);
        }
        Ok(())
    }

    /// Takes a permit and returns how many are left; without one, sets `flag` in the word.
    fn take(&self, flag: u32, home: &(impl Members + Space)) -> Option<u32> {
        self.take_under(self.guard(home), flag, home)
    }

    fn take_under(
        &self,
        _guard: Guard<'_>,
        flag: u32,
        home: &(impl Members + Space),
    ) -> Option<u32> {
        let word = self.word.load(Relaxed);
        let Some(left) = (word & SEM_VALUE_MAX).checked_sub(1) else {
            self.word.store(word | flag, Relaxed);
            return None;
        };
        self.taken.add(home);
        crash_point!("bounded.entered");
        self.word.store(left | (word & WAITERS) | flag, Relaxed);
        Some(left)
    }

    /// The permits that `from` holds are this process's from now on: it ends, and leaves them taken.
    pub fn inherit(&self, from: MemberId, home: &(impl Members + Space)) {
        let _guard = self.guard(home);
        self.taken.inherit(from, home);
    }

    /// Takes back what the dead hold; says whether that was anything.
    fn bury(&self, home: &(impl Members + Space)) -> bool {
        let _guard = self.guard(home);
        let found = self.taken.bury(home);
        if found {
            self.recompute(home);
        }
        found
    }

    /// A process has died: its permits are there again, also for those who only look.
    pub(super) fn peer_died(&self, home: &(impl Members + Space)) {
        self.bury(home);
    }

    fn guard_now(&self, members: &impl Members) -> Option<Guard<'_>> {
        self.lock.try_guard(members)
    }

    fn guard(&self, home: &(impl Members + Space)) -> Guard<'_> {
        let guard = self.lock.guard(home);
        if guard.recovered {
            self.recompute(home);
        }
        guard
    }

    /// Makes the word agree with the entries, and wakes everybody. Under the lock.
    #[cold]
    fn recompute(&self, home: &impl Space) {
        let value = u64::from(self.max()).saturating_sub(self.taken.total(home));
        self.word.store(u32::try_from(value).unwrap_or(0), Relaxed);
        futex::wake_all(&self.word);
    }

    /// Gives back what lies outside of the object. Nobody may use it any more.
    pub fn reclaim(&self, space: &impl Space) {
        self.taken.reclaim(space);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::testing::{Child, Heap, Mapped};
    use std::sync::atomic::Ordering::Release;

    #[test]
    fn smoke() {
        let semaphore = BoundedSemaphore::new(2);
        assert_eq!(semaphore.release(&Heap), Err(NotHeld));
        assert!(semaphore.try_acquire(&Heap) && semaphore.acquire(&Heap, None).is_ok());
        assert!(!semaphore.try_acquire(&Heap));
        let end = Instant::now() + std::time::Duration::from_millis(20);
        assert_eq!(semaphore.acquire(&Heap, Some(end)), Err(Stop::TimedOut));
        assert!(Instant::now() >= end);
        assert_eq!(semaphore.release(&Heap), Ok(()));
        assert_eq!(semaphore.release(&Heap), Ok(()));
        assert_eq!(semaphore.release(&Heap), Err(NotHeld));
    }

    #[derive(Default)]
    struct Scene {
        semaphore: BoundedSemaphore,
        ready: AtomicU32,
    }

    impl Scene {
        fn new(max: u32) -> Mapped<Self> {
            let scene = Mapped::<Self>::new();
            scene.semaphore.max.store(max, Relaxed);
            scene.semaphore.word.store(max, Relaxed);
            scene
        }
    }

    #[test]
    fn the_permits_of_the_dead_come_back() {
        let scene = Scene::new(3);
        let child = Child::run(|| {
            scene.semaphore.acquire(&Heap, None).unwrap();
            scene.semaphore.acquire(&Heap, None).unwrap();
            scene.ready.store(1, Release);
            Child::sleep_for_ever();
        });
        child.wait_for(&scene.ready);
        scene.semaphore.acquire(&Heap, None).unwrap();
        let soon = Instant::now() + std::time::Duration::from_millis(80);
        assert_eq!(
            scene.semaphore.acquire(&Heap, Some(soon)),
            Err(Stop::TimedOut)
        );
        child.kill();
        scene.semaphore.acquire(&Heap, None).unwrap();
        scene.semaphore.acquire(&Heap, None).unwrap();
        assert_eq!(scene.semaphore.value(), 0);
        for _ in 0..3 {
            assert_eq!(scene.semaphore.release(&Heap), Ok(()));
        }
        assert_eq!(scene.semaphore.release(&Heap), Err(NotHeld));
    }

    #[test]
    fn killed_between_entry_and_word() {
        let scene = Scene::new(2);
        let child = Child::run(|| {
            std::mem::forget(scene.semaphore.guard(&Heap));
            scene
                .semaphore
                .taken
                .my_entry(&Heap)
                .unwrap()
                .number
                .store(1, Relaxed);
        });
        assert_eq!(child.join(), 0);
        scene.semaphore.acquire(&Heap, None).unwrap();
        scene.semaphore.acquire(&Heap, None).unwrap();
        assert_eq!(scene.semaphore.value(), 0);
    }

    #[test]
    fn another_process_may_release() {
        let scene = Scene::new(1);
        scene.semaphore.acquire(&Heap, None).unwrap();
        let child = Child::run(|| assert_eq!(scene.semaphore.release(&Heap), Ok(())));
        assert_eq!(child.join(), 0);
        assert_eq!(scene.semaphore.value(), 1);
        assert_eq!(scene.semaphore.release(&Heap), Err(NotHeld));
    }

    #[test]
    fn conserves_permits() {
        let scene = Scene::new(2);
        let turn = || {
            for _ in 0..2_000 {
                scene.semaphore.acquire(&Heap, None).unwrap();
                scene.semaphore.release(&Heap).unwrap();
            }
        };
        let children = [Child::run(turn), Child::run(turn), Child::run(turn)];
        turn();
        for child in children {
            assert_eq!(child.join(), 0);
        }
        assert_eq!(scene.semaphore.value(), 2);
    }
}
