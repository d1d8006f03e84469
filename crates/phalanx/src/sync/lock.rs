//! `Lock`: mutual exclusion that anybody may end.
//!
//! Python's rule: not recursive, and *any* process or thread may release it. So the owner is only
//! who is asked whether it lives. A lock whose owner has died goes to the next acquirer, who is
//! told. State word and crash safety are those of [`RawLock`]; the thread beside it only answers
//! [`Lock::is_mine`], is written by the holder alone, and means nothing while another process
//! holds the lock.

use std::time::Instant;

use super::{Acquired, LastLook, MemberId, Members, NotHeld, RawLock, Stop, this_thread};
use crate::os::atomic::AtomicU32;
use crate::os::atomic::Ordering::Relaxed;

/// A lock between processes and threads, not recursive, that anybody may release.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Lock {
    raw: RawLock,
    /// The thread that acquired it, in the process that the word names.
    thread: AtomicU32,
    looked: LastLook,
}

impl Lock {
    /// A free lock.
    pub fn new() -> Self {
        Self {
            raw: RawLock::new(),
            thread: AtomicU32::new(0),
            looked: LastLook::new(),
        }
    }

    /// Acquires the lock; waits until `deadline` at most, while a living process holds it.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`].
    #[inline]
    pub fn acquire(
        &self,
        members: &impl Members,
        deadline: Option<Instant>,
    ) -> Result<Acquired, Stop> {
        let acquired = self.raw.lock_as(members.claimant(), members, deadline)?;
        self.thread.store(this_thread(), Relaxed);
        Ok(acquired)
    }

    /// Acquires the lock if it is free, or if its owner is dead. Never blocks.
    ///
    /// Looks at the owner's life at most every 25 ms, so that polling stays cheap.
    #[inline]
    pub fn try_acquire(&self, members: &impl Members) -> Option<Acquired> {
        let me = members.claimant();
        let acquired = match self.raw.try_lock_as(me) {
            Some(acquired) => acquired,
            None if self.looked.is_due() => self.raw.try_take_over(me, members)?,
            None => return None,
        };
        self.thread.store(this_thread(), Relaxed);
        Some(acquired)
    }

    /// Acquires the lock if it is free. Never blocks and makes no system call.
    #[inline]
    pub fn try_acquire_free(&self, members: &impl Members) -> bool {
        let taken = self.raw.try_lock_as(members.claimant()).is_some();
        if taken {
            self.thread.store(this_thread(), Relaxed);
        }
        taken
    }

    /// Frees the lock, whoever holds it.
    ///
    /// # Errors
    /// [`NotHeld`] if nobody does.
    #[inline]
    pub fn release(&self) -> Result<(), NotHeld> {
        if self.raw.release() {
            Ok(())
        } else {
            Err(NotHeld)
        }
    }

    /// Makes it this process's if it is `from`'s, which ends and leaves it locked.
    pub fn inherit(&self, from: MemberId, members: &impl Members) {
        self.raw.hand_over(from, members.me());
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
    pub fn is_mine(&self, members: &impl Members) -> bool {
        self.is_ours(members) && self.thread.load(Relaxed) == this_thread()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::futex;
    use crate::sync::testing::{Child, Mapped, Processes};
    use std::sync::atomic::Ordering::Release;

    #[test]
    fn smoke() {
        let lock = Lock::new();
        assert_eq!(lock.release(), Err(NotHeld));
        assert!(!lock.acquire(&Processes, None).unwrap().recovered);
        assert!(lock.is_locked() && lock.is_mine(&Processes));
        assert!(lock.try_acquire(&Processes).is_none());
        assert_eq!(
            lock.acquire(&Processes, Some(Instant::now())),
            Err(Stop::TimedOut)
        );
        std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(lock.is_ours(&Processes) && !lock.is_mine(&Processes));
                assert_eq!(lock.release(), Ok(()));
            });
        });
        assert!(!lock.is_locked());
    }

    #[derive(Default)]
    struct Scene {
        lock: Lock,
        held: AtomicU32,
    }

    #[test]
    fn another_process_may_release() {
        let scene = Mapped::<Scene>::new();
        let child = Child::run(|| {
            let _ = scene.lock.acquire(&Processes, None).unwrap();
            scene.held.store(1, Release);
            futex::wake_all(&scene.held);
            Child::sleep_for_ever();
        });
        child.wait_for(&scene.held);
        assert!(scene.lock.is_locked() && !scene.lock.is_ours(&Processes));
        assert_eq!(scene.lock.release(), Ok(()));
        assert!(!scene.lock.try_acquire(&Processes).unwrap().recovered);
        child.kill();
    }

    #[test]
    fn who_only_tries_finds_a_dead_owner() {
        let scene = Mapped::<Scene>::new();
        let child = Child::run(|| {
            let _ = scene.lock.acquire(&Processes, None).unwrap();
            scene.held.store(1, Release);
            Child::sleep_for_ever();
        });
        child.wait_for(&scene.held);
        assert!(scene.lock.try_acquire(&Processes).is_none());
        child.kill();
        let acquired = loop {
            if let Some(acquired) = scene.lock.try_acquire(&Processes) {
                break acquired;
            }
        };
        assert!(acquired.recovered);
    }
}
