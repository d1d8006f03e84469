//! One word to sleep on until something becomes true: see `README.md`, "Sleeping and waking".

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, fence};
use std::time::Instant;

use crate::error::{Error, Result};
use crate::os::futex::{self, Wait};
use crate::os::spin;

/// Somebody may sleep on the word.
const FLAG: u32 = 1;
const STEP: u32 = 2;

/// See the module.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct Bell(AtomicU32);

impl Bell {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Waits until `ready`, which must become true only before a [`Bell::ring`].
    ///
    /// Returns also without reason; the caller looks again.
    pub(crate) fn wait(&self, ready: impl Fn() -> bool, deadline: Option<Instant>) -> Result<()> {
        if spin::until(&ready) {
            return Ok(());
        }
        let word = self.0.fetch_or(FLAG, SeqCst) | FLAG;
        fence(SeqCst);
        if ready() {
            return Ok(());
        }
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
        fence(SeqCst);
        if self.0.load(Relaxed) & FLAG != 0 {
            self.ring_slow(n);
        }
    }

    #[cold]
    fn ring_slow(&self, n: u32) {
        let step = |word: u32| Some(word.wrapping_add(STEP) & !FLAG);
        let _ = self.0.fetch_update(SeqCst, Relaxed, step);
        if futex::wake(&self.0, n) > 0 {
            // There may be more of them.
            self.0.fetch_or(FLAG, SeqCst);
        }
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
