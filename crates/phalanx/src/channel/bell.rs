//! One word to sleep on until something becomes true: see `README.md`, "Sleeping and waking".

use std::time::Instant;

use crate::error::{Error, Result};
use crate::fault::crash_point;
use crate::os::atomic::Ordering::{Relaxed, SeqCst};
use crate::os::atomic::{AtomicU32, fence};
use crate::os::futex::{self, Wait};
use crate::os::spin;

/// Somebody may sleep on the word.
const FLAG: u32 = 1;
/// Somebody is about to wake sleepers and does not know yet whether there are more.
const RINGING: u32 = 2;
const STEP: u32 = 4;

/// See the module.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Bell(AtomicU32);

impl Bell {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Waits until `ready`, which must become true only before a [`Bell::ring`].
    ///
    /// Returns also without reason; the caller looks again.
    pub(crate) fn wait(&self, ready: impl Fn() -> bool, deadline: Option<Instant>) -> Result<()> {
        if spin::until(&ready) {
            return Ok(());
        }
        self.sleep(ready, deadline)
    }

    /// As [`Bell::wait`], without spinning first.
    pub(crate) fn sleep(&self, ready: impl Fn() -> bool, deadline: Option<Instant>) -> Result<()> {
        let word = self.0.fetch_or(FLAG, SeqCst) | FLAG;
        fence(SeqCst);
        if ready() {
            return Ok(());
        }
        crash_point!("bell.about_to_sleep");
        match futex::wait(&self.0, word, deadline) {
            Wait::Woken => Ok(()),
            Wait::TimedOut if ready() => Ok(()),
            Wait::TimedOut => Err(Error::timeout()),
            Wait::Interrupted => Err(Error::interrupted()),
        }
    }

    /// Wakes up to `n` sleepers after the condition has become true.
    #[inline]
    pub(crate) fn ring(&self, n: u32) {
        // SYNC: pairs with the fence in `wait`.
        fence(SeqCst);
        if self.0.load(Relaxed) & (FLAG | RINGING) != 0 {
            self.ring_slow(n);
        }
    }

    #[cold]
    fn ring_slow(&self, n: u32) {
        let begin = |word: u32| Some((word.wrapping_add(STEP) & !FLAG) | RINGING);
        let _ = self.0.fetch_update(SeqCst, Relaxed, begin);
        crash_point!("bell.ringing");
        let more = if futex::wake(&self.0, n) > 0 { FLAG } else { 0 };
        crash_point!("bell.rung");
        let end = |word: u32| Some((word & !RINGING) | more);
        let _ = self.0.fetch_update(SeqCst, Relaxed, end);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn no_wake_up_is_missed() {
        for _ in 0..200 {
            let (bell, on) = (Bell::new(), AtomicBool::new(false));
            std::thread::scope(|scope| {
                for _ in 0..3 {
                    scope.spawn(|| {
                        while !on.load(SeqCst) {
                            bell.wait(|| on.load(SeqCst), None).unwrap();
                        }
                    });
                }
                on.store(true, SeqCst);
                bell.ring(u32::MAX);
            });
        }
    }

    /// Rings that meet: a ring must not be lost because another one is under way.
    #[test]
    fn tokens_reach_all_sleepers() {
        use std::sync::atomic::AtomicU32;
        for _ in 0..300 {
            let (bell, tokens) = (Bell::new(), AtomicU32::new(0));
            let take = || {
                let less = |n: u32| n.checked_sub(1);
                while tokens.fetch_update(SeqCst, SeqCst, less).is_err() {
                    bell.wait(|| tokens.load(SeqCst) > 0, None).unwrap();
                }
            };
            let give = |n: u32| {
                for _ in 0..n {
                    tokens.fetch_add(1, SeqCst);
                    bell.ring(1);
                }
            };
            std::thread::scope(|scope| {
                (0..4).for_each(|_| drop(scope.spawn(take)));
                (0..2).for_each(|_| drop(scope.spawn(|| give(2))));
            });
        }
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let bell = Bell::new();
        assert!(
            bell.wait(|| false, Some(Instant::now()))
                .unwrap_err()
                .is_timeout()
        );
    }
}
