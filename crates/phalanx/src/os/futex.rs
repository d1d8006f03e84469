//! Sleeping on a 32-bit word that several processes share.
//!
//! The flags are always *shared*: the private futexes of the standard library are keyed by the
//! address space and would never meet a waiter of another process.
//!
//! [`wait`] sleeps once and says why it came back. It never loops: the caller looks at its own
//! state again and decides, and a signal is for the front to serve.

use std::time::Instant;

use crate::os::atomic::AtomicU32;
use rustix::io::Errno;
use rustix::thread::futex;
use rustix::time::Timespec;

/// Why [`wait`] returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Somebody woke the word, or it did not hold the expected value (any more).
    Woken,
    /// The deadline has passed.
    TimedOut,
    /// A signal was delivered to this thread.
    Interrupted,
}

/// Sleeps while `word` holds `expected`, until woken, until `deadline`, or until a signal.
///
/// Spurious returns of [`Wait::Woken`] are possible; a deadline that has passed is
/// [`Wait::TimedOut`] without a system call. Blocks without limit if `deadline` is `None`. The
/// kernel compares and goes to sleep in one step, so a change of the word followed by a [`wake`]
/// is never missed.
pub fn wait(word: &AtomicU32, expected: u32, deadline: Option<Instant>) -> Wait {
    let timeout = match deadline {
        None => None,
        Some(deadline) => {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Wait::TimedOut;
            }
            // Further away than the kernel can count is for ever.
            Timespec::try_from(left).ok()
        }
    };
    match futex::wait(word, futex::Flags::empty(), expected, timeout.as_ref()) {
        Ok(()) | Err(Errno::AGAIN) => Wait::Woken,
        Err(Errno::TIMEDOUT) => Wait::TimedOut,
        Err(Errno::INTR) => Wait::Interrupted,
        // The word is mapped and aligned (it is a reference), and the timeout is well formed.
        Err(error) => unreachable!("futex wait failed: {error}"),
    }
}

/// Wakes at most `n` of those who sleep on `word`, and says how many were sleeping.
///
/// Wakes by address only: change the word first.
pub fn wake(word: &AtomicU32, n: u32) -> usize {
    // The kernel takes the number as a signed one.
    let n = n.min(i32::MAX as u32);
    futex::wake(word, futex::Flags::empty(), n).unwrap_or(0)
}

/// [`wake`] without a limit.
pub fn wake_all(word: &AtomicU32) -> usize {
    wake(word, u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::Duration;

    #[test]
    fn a_changed_word_does_not_sleep() {
        assert_eq!(wait(&AtomicU32::new(1), 2, None), Wait::Woken);
    }

    #[test]
    fn a_deadline_is_kept() {
        let word = AtomicU32::new(0);
        let begin = Instant::now();
        let end = begin + Duration::from_millis(20);
        while wait(&word, 0, Some(end)) != Wait::TimedOut {}
        assert!(begin.elapsed() >= Duration::from_millis(20));
        assert_eq!(wait(&word, 0, Some(begin)), Wait::TimedOut);
    }

    #[test]
    fn wakes_a_thread() {
        let word = AtomicU32::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while word.load(SeqCst) == 0 {
                    wait(&word, 0, None);
                }
            });
            word.store(1, SeqCst);
            wake_all(&word);
        });
        assert_eq!(wake(&word, 1), 0);
    }
}
