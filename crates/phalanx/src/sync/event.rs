//! `Event`: a flag to wait for.
//!
//! One word: `SET` (bit 0), `WAITERS` (bit 1), and how often it was set (30 bits, wrapping).
//!
//! | `SET` | `WAITERS` | meaning |
//! | --- | --- | --- |
//! | 0 | 0 | unset, nobody sleeps |
//! | 0 | 1 | unset, somebody may sleep |
//! | 1 | 1 | set, and a `set` is about to wake them all |
//! | 1 | 0 | set |
//!
//! A waiter is released by a set flag *or* by a count other than the one it began with: a pulse
//! (`set`, `clear`) releases all who were waiting, however late they wake, where looking at the
//! flag again would make some of them sleep on or say "no" without a time-out (gh-95826).
//!
//! The flag `WAITERS` stays until they have been woken, so that if the setter dies in between,
//! whoever reaps it, and the next `set` or `clear`, wakes them. Waiters own nothing, so a dead one
//! disturbs nobody.

use std::time::Instant;

use super::Stop;
use crate::fault::crash_point;
use crate::os::atomic::AtomicU32;
use crate::os::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::os::futex::{self, Wait};
use crate::os::spin;

const SET: u32 = 1;
const WAITERS: u32 = 2;
const ONE_COUNT: u32 = 4;
const COUNT: u32 = !(SET | WAITERS);

/// A flag between processes.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Event {
    word: AtomicU32,
}

impl Event {
    /// An event that is not set.
    pub fn new() -> Self {
        Self {
            word: AtomicU32::new(0),
        }
    }

    /// Whether it is set.
    #[inline]
    pub fn is_set(&self) -> bool {
        // SYNC: pairs with the release in `set`.
        self.word.load(Acquire) & SET != 0
    }

    /// Sets it and wakes all who wait. Never blocks.
    pub fn set(&self) {
        let seen = self.mark();
        self.wake(seen);
    }

    /// The first step of [`set`](Self::set), after which a setter may die.
    pub(crate) fn mark(&self) -> u32 {
        let mut seen = self.word.load(Relaxed);
        while seen & SET == 0 {
            let next = seen.wrapping_add(ONE_COUNT) | SET;
            // SYNC: pairs with the acquires in `is_set` and `wait`.
            match self
                .word
                .compare_exchange_weak(seen, next, Release, Relaxed)
            {
                Ok(_) => seen = next,
                Err(now) => seen = now,
            }
        }
        seen
    }

    /// Unsets it. Never blocks.
    pub fn clear(&self) {
        let mut seen = self.word.load(Relaxed);
        while seen & SET != 0 {
            if seen & WAITERS != 0 {
                self.wake(seen);
                seen = self.word.load(Relaxed);
                continue;
            }
            match self
                .word
                .compare_exchange_weak(seen, seen & COUNT, Relaxed, Relaxed)
            {
                Ok(_) => return,
                Err(now) => seen = now,
            }
        }
    }

    /// Wakes the sleepers of a word that is set, and then says that this is done.
    fn wake(&self, seen: u32) {
        if seen & WAITERS != 0 {
            crash_point!("event.set_unwoken");
            futex::wake_all(&self.word);
            let _ = self
                .word
                .compare_exchange(seen, seen & !WAITERS, Relaxed, Relaxed);
        }
    }

    /// A process has died, perhaps between setting it and waking the sleepers: they are woken.
    pub(crate) fn peer_died(&self) {
        // SYNC: pairs with the release in `set`.
        let seen = self.word.load(Acquire);
        if seen & SET != 0 {
            self.wake(seen);
        }
    }

    /// Waits until it is set, or was set since the call, until `deadline` at most.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`]. To go on after a signal without missing a pulse
    /// that came in between, use [`wait_since`](Self::wait_since).
    #[inline]
    pub fn wait(&self, deadline: Option<Instant>) -> Result<(), Stop> {
        self.wait_since(self.now(), deadline)
    }

    /// The moment, for [`wait_since`](Self::wait_since).
    #[inline]
    pub fn now(&self) -> Moment {
        Moment(self.word.load(Relaxed) & COUNT)
    }

    /// Waits until it is set, or was set since `moment`, until `deadline` at most.
    ///
    /// # Errors
    /// [`Stop::TimedOut`], [`Stop::Interrupted`].
    #[inline]
    pub fn wait_since(&self, moment: Moment, deadline: Option<Instant>) -> Result<(), Stop> {
        if self.is_set_since(moment) {
            Ok(())
        } else {
            self.wait_slow(moment, deadline)
        }
    }

    /// Whether it is set, or was set since `moment`. Never blocks.
    #[inline]
    pub fn is_set_since(&self, moment: Moment) -> bool {
        // SYNC: pairs with the release in `set`.
        moment.is_over(self.word.load(Acquire))
    }

    #[cold]
    fn wait_slow(&self, moment: Moment, deadline: Option<Instant>) -> Result<(), Stop> {
        if spin::until(|| self.is_set_since(moment)) {
            return Ok(());
        }
        loop {
            // SYNC: pairs with the release in `set`.
            let seen = self.word.load(Acquire);
            if moment.is_over(seen) {
                return Ok(());
            }
            let flagged = seen | WAITERS;
            if seen != flagged
                && self
                    .word
                    .compare_exchange(seen, flagged, Relaxed, Relaxed)
                    .is_err()
            {
                continue;
            }
            crash_point!("event.about_to_sleep");
            match futex::wait(&self.word, flagged, deadline) {
                Wait::Woken => {}
                _ if self.is_set_since(moment) => return Ok(()),
                Wait::TimedOut => return Err(Stop::TimedOut),
                Wait::Interrupted => return Err(Stop::Interrupted),
            }
        }
    }
}

/// How often an [`Event`] had been set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment(u32);

impl Moment {
    fn is_over(self, word: u32) -> bool {
        word & SET != 0 || word & COUNT != self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::testing::{Child, Mapped};
    use std::time::Duration;

    #[test]
    fn smoke() {
        let event = Event::new();
        let end = Instant::now() + Duration::from_millis(20);
        assert_eq!(event.wait(Some(end)), Err(Stop::TimedOut));
        assert!(Instant::now() >= end);
        event.set();
        event.set();
        assert!(event.is_set() && event.wait(None).is_ok());
        event.clear();
        assert!(!event.is_set());
    }

    #[test]
    fn a_pulse_is_not_missed() {
        let event = Event::new();
        let moment = event.now();
        event.set();
        event.clear();
        assert_eq!(event.wait_since(moment, None), Ok(()));
        assert_eq!(event.wait(Some(Instant::now())), Err(Stop::TimedOut));
    }

    #[derive(Default)]
    struct Scene {
        event: Event,
        woken: AtomicU32,
    }

    #[test]
    fn wakes_all_whoever_was_killed() {
        let scene = Mapped::<Scene>::new();
        let wait = || {
            scene.event.wait(None).unwrap();
            scene.woken.fetch_add(1, Relaxed);
        };
        let victim = Child::run(wait);
        let children = [Child::run(wait), Child::run(wait), Child::run(wait)];
        while scene.event.word.load(Relaxed) & WAITERS == 0 {
            std::thread::yield_now();
        }
        victim.kill();
        scene.event.set();
        for child in children {
            assert_eq!(child.join(), 0);
        }
        assert_eq!(scene.woken.load(Relaxed), 3);
    }

    #[test]
    fn a_setter_that_died_before_waking_is_helped() {
        let scene = Mapped::<Scene>::new();
        let child = Child::run(|| scene.event.wait(None).unwrap());
        while scene.event.word.load(Relaxed) & WAITERS == 0 {
            std::thread::yield_now();
        }
        // As if a setter had been killed before its wake-up.
        scene.event.word.fetch_add(ONE_COUNT + SET, Release);
        scene.event.clear();
        assert_eq!(child.join(), 0);
    }
}
