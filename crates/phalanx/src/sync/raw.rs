//! The robust lock that everything else stands on.
//!
//! One word:
//!
//! | word | meaning | who changes it |
//! | --- | --- | --- |
//! | 0 | free | anybody, to itself |
//! | owner | held, nobody sleeps | the owner, to 0; a waiter, adding `WAITERS` |
//! | owner, `WAITERS` | held, somebody may sleep | the owner, to 0, then wakes one; if the owner is dead, a waiter, to itself and `WAITERS` |
//!
//! A sleeper wakes each [`SLICE`](super::SLICE) and looks. That finds a dead owner, and also the
//! case that somebody died between freeing the lock and waking the next, or was woken and died
//! before it could take the lock: the word is then 0, and the sleeper takes it.
//!
//! The lock protects data that a dead owner may have left half changed. Whoever takes it over is
//! told so ([`Acquired::recovered`]) and must repair the data before it unlocks; if it dies in
//! the middle of that, the next one is told again.
//!
//! After a fork the child is another member: a lock that a thread of the parent held at that
//! moment is still the parent's, who will free it.

use std::time::Instant;

use super::{MemberId, Members, Stop, passed, slice_end};
use crate::fault::crash_point;
use crate::os::atomic::AtomicU32;
use crate::os::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::os::futex::{self, Wait};
use crate::os::spin;

/// Somebody may be asleep on the word.
const WAITERS: u32 = !MemberId::MASK;

/// A mutual exclusion lock that survives its owner's death. Not recursive, owned by a process.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct RawLock {
    word: AtomicU32,
}

/// How a lock was acquired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Acquired {
    /// The owner before died holding it: what it protects may be half changed.
    pub recovered: bool,
}

const CLEAN: Acquired = Acquired { recovered: false };

impl RawLock {
    /// A free lock. All-zero memory is one, too.
    pub fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
        }
    }

    /// Acquires the lock; blocks as long as a living member holds it.
    #[inline]
    pub fn lock(&self, members: &impl Members) -> Acquired {
        loop {
            if let Ok(acquired) = self.lock_until(members, None) {
                return acquired;
            }
        }
    }

    /// Acquires the lock, waiting until `deadline` at most, or until a signal.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`]; the lock is not held then. A free lock is
    /// acquired even if the deadline has passed.
    #[inline]
    pub fn lock_until(
        &self,
        members: &impl Members,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Stop> {
        self.lock_as(members.me(), members, deadline)
    }

    /// As [`lock_until`](Self::lock_until), for the owner `me`.
    #[inline]
    pub(super) fn lock_as(
        &self,
        me: MemberId,
        members: &impl Members,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Stop> {
        if self.take_free(me.get()) {
            return Ok(CLEAN);
        }
        self.lock_slow(me, members, deadline)
    }

    /// Acquires the lock if it is free now. Never blocks, makes no system call, and so does not
    /// notice that an owner is dead.
    #[inline]
    pub fn try_lock(&self, members: &impl Members) -> Option<Acquired> {
        self.try_lock_as(members.me())
    }

    /// As [`try_lock`](Self::try_lock), for the owner `me`.
    #[inline]
    pub(super) fn try_lock_as(&self, me: MemberId) -> Option<Acquired> {
        self.take_free(me.get()).then_some(CLEAN)
    }

    /// Acquires the lock for the owner `me` if it is free now or if its owner is dead. Never blocks.
    pub(super) fn try_take_over(&self, me: MemberId, members: &impl Members) -> Option<Acquired> {
        if let Some(acquired) = self.try_lock_as(me) {
            return Some(acquired);
        }
        let seen = self.word.load(Relaxed);
        let mine = me.get() | (seen & WAITERS);
        self.take_over(seen, mine, members)
            .then_some(Acquired { recovered: true })
    }

    /// Acquires the lock and gives it back when the guard is dropped.
    pub fn guard<M: Members>(&self, members: &M) -> Guard<'_> {
        let acquired = self.lock(members);
        Guard {
            lock: self,
            recovered: acquired.recovered,
        }
    }

    /// As [`guard`](Self::guard), if the lock is free now. Never blocks.
    #[inline]
    pub fn try_guard(&self, members: &impl Members) -> Option<Guard<'_>> {
        let Acquired { recovered } = self.try_lock(members)?;
        Some(Guard {
            lock: self,
            recovered,
        })
    }

    /// Frees the lock, which this process must hold.
    #[inline]
    pub fn unlock(&self) {
        let held = self.release();
        debug_assert!(held, "unlocked a lock that was free");
    }

    /// Frees the lock, whoever holds it; says whether somebody did.
    #[inline]
    pub(crate) fn release(&self) -> bool {
        // SYNC: pairs with the acquiring compare-exchange in `take_free` and `take_over`.
        let before = self.word.swap(0, Release);
        if before & WAITERS != 0 {
            crash_point!("lock.freed_unwoken");
            futex::wake(&self.word, 1);
        }
        before & MemberId::MASK != 0
    }

    /// Makes the lock `to`'s if it is `from`'s.
    pub(super) fn hand_over(&self, from: MemberId, to: MemberId) {
        loop {
            let seen = self.word.load(Relaxed);
            if MemberId::new(seen & MemberId::MASK) != Some(from)
                || self.replace(seen, to.get() | (seen & WAITERS))
            {
                return;
            }
        }
    }

    /// Who holds the lock now.
    pub fn owner(&self) -> Option<MemberId> {
        MemberId::new(self.word.load(Relaxed) & MemberId::MASK)
    }

    /// Whether nobody holds the lock, so that what those wrote who held it can be seen.
    #[inline]
    pub(crate) fn is_free(&self) -> bool {
        // SYNC: pairs with the release in `release`.
        self.word.load(Acquire) == 0
    }

    #[inline]
    fn take_free(&self, to: u32) -> bool {
        // SYNC: pairs with the release in `release`.
        self.word.compare_exchange(0, to, Acquire, Relaxed).is_ok()
    }

    #[cold]
    fn lock_slow(
        &self,
        me: MemberId,
        members: &impl Members,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Stop> {
        if spin::until(|| self.word.load(Relaxed) == 0 && self.take_free(me.get())) {
            return Ok(CLEAN);
        }
        // From here on others may sleep beside us, and only the word could tell: keep the flag.
        let mine = me.get() | WAITERS;
        loop {
            let seen = self.word.load(Relaxed);
            if seen == 0 {
                if self.take_free(mine) {
                    return Ok(CLEAN);
                }
                continue;
            }
            if seen & WAITERS == 0 && !self.replace(seen, seen | WAITERS) {
                continue;
            }
            let seen = seen | WAITERS;
            crash_point!("lock.about_to_sleep");
            match futex::wait(&self.word, seen, Some(slice_end(deadline))) {
                Wait::Woken => {}
                Wait::Interrupted => return Err(Stop::Interrupted),
                Wait::TimedOut => {
                    if self.take_over(seen, mine, members) {
                        crash_point!("lock.taken_over");
                        return Ok(Acquired { recovered: true });
                    }
                    if passed(deadline) {
                        // It may have been freed this moment, and its wake-up meant for us.
                        return if self.take_free(mine) {
                            Ok(CLEAN)
                        } else {
                            Err(Stop::TimedOut)
                        };
                    }
                }
            }
        }
    }

    /// Takes the lock from the owner that `seen` names, if it is dead.
    fn take_over(&self, seen: u32, mine: u32, members: &impl Members) -> bool {
        let Some(owner) = MemberId::new(seen & MemberId::MASK) else {
            return false;
        };
        if self.word.load(Relaxed) != seen || members.is_alive(owner) {
            return false;
        }
        // SYNC: pairs with the releases in `release` of those who held it before the dead one.
        self.word
            .compare_exchange(seen, mine, Acquire, Relaxed)
            .is_ok()
    }

    fn replace(&self, from: u32, to: u32) -> bool {
        self.word
            .compare_exchange(from, to, Relaxed, Relaxed)
            .is_ok()
    }
}

/// Holds a [`RawLock`] while it lives.
#[derive(Debug)]
pub struct Guard<'a> {
    lock: &'a RawLock,
    /// The owner before died holding it: what it protects may be half changed.
    pub recovered: bool,
}

impl Drop for Guard<'_> {
    #[inline]
    fn drop(&mut self) {
        self.lock.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::testing::{Child, Mapped, Processes};
    use std::sync::atomic::AtomicU64;
    use std::time::Duration;

    #[derive(Default)]
    struct Counter {
        lock: RawLock,
        count: AtomicU64,
        ready: AtomicU32,
    }

    #[test]
    fn smoke() {
        let lock = RawLock::new();
        let held = lock.guard(&Processes);
        assert!(!held.recovered);
        assert_eq!(lock.owner(), Some(Processes.me()));
        assert!(lock.try_lock(&Processes).is_none());
        let begin = Instant::now();
        let end = begin + Duration::from_millis(20);
        assert_eq!(lock.lock_until(&Processes, Some(end)), Err(Stop::TimedOut));
        assert!(Instant::now() >= end);
        drop(held);
        assert!(lock.lock_until(&Processes, Some(begin)).is_ok());
    }

    #[test]
    fn excludes() {
        let shared = Mapped::<Counter>::new();
        let add = |n| {
            for _ in 0..n {
                let _held = shared.lock.guard(&Processes);
                let count = shared.count.load(Relaxed);
                shared.count.store(count + 1, Relaxed);
            }
        };
        let children = [Child::run(|| add(20_000)), Child::run(|| add(20_000))];
        std::thread::scope(|scope| {
            scope.spawn(|| add(5_000));
            scope.spawn(|| add(5_000));
        });
        for child in children {
            assert_eq!(child.join(), 0);
        }
        assert_eq!(shared.count.load(Relaxed), 50_000);
        assert_eq!(shared.lock.owner(), None);
    }

    #[test]
    fn a_dead_owner_is_followed() {
        let shared = Mapped::<Counter>::new();
        let child = Child::run(|| {
            let _ = shared.lock.lock(&Processes);
            shared.ready.store(1, Release);
            futex::wake_all(&shared.ready);
            Child::sleep_for_ever();
        });
        child.wait_for(&shared.ready);
        assert_eq!(shared.lock.owner(), Some(child.id()));
        // Alive: we wait in vain.
        let end = Instant::now() + Duration::from_millis(120);
        assert_eq!(
            shared.lock.lock_until(&Processes, Some(end)),
            Err(Stop::TimedOut)
        );
        child.kill();
        assert!(shared.lock.lock(&Processes).recovered);
        shared.lock.unlock();
        assert!(!shared.lock.lock(&Processes).recovered);
        shared.lock.unlock();
    }

    #[test]
    fn a_signal_interrupts() {
        let shared = Mapped::<Counter>::new();
        let held = shared.lock.guard(&Processes);
        let child = Child::run(|| {
            Child::handle_usr1();
            shared.ready.store(1, Release);
            futex::wake_all(&shared.ready);
            let stopped = shared.lock.lock_until(&Processes, None);
            Child::exit(if stopped == Err(Stop::Interrupted) {
                7
            } else {
                1
            });
        });
        child.wait_for(&shared.ready);
        let exit = child.signal_until_exit(libc::SIGUSR1);
        assert_eq!(exit, 7);
        drop(held);
    }
}
