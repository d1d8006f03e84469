//! Whether a queue is open, and how many of its messages are still to be worked on.
//!
//! Both in one place because a shutdown that throws messages away must take them off the work that
//! [`join`](Tally::join) waits for, in the same store: a process killed in the middle of a shutdown
//! leaves the queue either open or shut, and the count right.

use std::time::Instant;

use super::bell::Bell;
use crate::error::Result;
use crate::fault::crash_point;
use crate::os::atomic::Ordering::{Relaxed, SeqCst};
use crate::os::atomic::{AtomicU64, fence};

/// What the word says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Messages come and go. The word is 0.
    Open,
    /// None is put any more; what is in the queue is taken. The word is 1.
    Shut,
    /// None is put or taken any more. So many had been taken before: a message with that number or
    /// a larger one is nobody's. The word is two more than `taken`.
    Discarded {
        /// How many messages were taken before.
        taken: u64,
    },
}

impl Phase {
    fn of(word: u64) -> Self {
        match word {
            0 => Self::Open,
            1 => Self::Shut,
            _ => Self::Discarded { taken: word - 2 },
        }
    }

    fn word(self) -> u64 {
        match self {
            Self::Open => 0,
            Self::Shut => 1,
            Self::Discarded { taken } => taken.saturating_add(2),
        }
    }
}

/// See the module.
#[repr(C)]
#[derive(Debug)]
pub(crate) struct Tally {
    phase: AtomicU64,
    /// Messages that were reported as done.
    done: AtomicU64,
    all_done: Bell,
}

impl Tally {
    pub(crate) fn new() -> Self {
        Self {
            phase: AtomicU64::new(0),
            done: AtomicU64::new(0),
            all_done: Bell::new(),
        }
    }

    /// Producers look under their lock, and a consumer after it has taken a message under its own:
    /// what orders this with [`Tally::end`] are those locks.
    #[inline]
    pub(crate) fn phase(&self) -> Phase {
        Phase::of(self.phase.load(SeqCst))
    }

    #[inline]
    pub(crate) fn is_open(&self) -> bool {
        self.phase() == Phase::Open
    }

    /// Whether the message with that number was taken too late.
    #[inline]
    pub(crate) fn is_discarded(&self, number: u64) -> bool {
        matches!(self.phase(), Phase::Discarded { taken } if number >= taken)
    }

    /// Shuts the queue, of whose messages `taken` have been taken. The caller holds the locks of
    /// producers and consumers, and rings when it has given them back.
    pub(crate) fn end(&self, discard: bool, taken: u64) {
        let phase = match self.phase() {
            before @ Phase::Discarded { .. } => before,
            _ if discard => Phase::Discarded { taken },
            _ => Phase::Shut,
        };
        self.phase.store(phase.word(), SeqCst);
    }

    /// Wakes all who wait for the work to be done, so that they look again.
    pub(crate) fn ring(&self) {
        self.all_done.ring(u32::MAX);
    }

    /// Messages that have to be worked on, done or not, if `puts` were put.
    pub(crate) fn owed(&self, puts: u64) -> u64 {
        match self.phase() {
            Phase::Discarded { taken } => taken.min(puts),
            Phase::Open | Phase::Shut => puts,
        }
    }

    /// Counts one message as done; false if all have been counted already.
    pub(crate) fn task_done(&self, puts: u64) -> bool {
        let owed = self.owed(puts);
        let next = |done: u64| (done < owed).then(|| done + 1);
        let Ok(before) = self.done.fetch_update(SeqCst, Relaxed, next) else {
            return false;
        };
        crash_point!("queue.done_unrung");
        // SYNC: pairs with the fence of `ring` in a shutdown: either it is over and seen here, and
        // may have made this the last message, or those it wakes see this count.
        fence(SeqCst);
        if before + 1 >= self.owed(puts) {
            self.ring();
        }
        true
    }

    /// Counts as many as done as that, if fewer are; whoever waits is woken to look.
    pub(crate) fn raise(&self, done: u64) {
        if self.done.fetch_max(done, SeqCst) < done {
            self.ring();
        }
    }

    /// Messages not yet reported as done.
    pub(crate) fn unfinished(&self, puts: u64) -> u64 {
        let done = self.done.load(SeqCst);
        self.owed(puts).saturating_sub(done)
    }

    /// Waits until every message has been reported as done or was thrown away.
    ///
    /// # Errors
    /// `is_timeout`, `is_interrupted`.
    pub(crate) fn join(&self, puts: impl Fn() -> u64, deadline: Option<Instant>) -> Result<()> {
        while self.unfinished(puts()) > 0 {
            self.all_done
                .wait(|| self.unfinished(puts()) == 0, deadline)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_and_their_words() {
        for (word, phase) in [
            (0, Phase::Open),
            (1, Phase::Shut),
            (2, Phase::Discarded { taken: 0 }),
            (9, Phase::Discarded { taken: 7 }),
        ] {
            assert_eq!((Phase::of(word), phase.word()), (phase, word));
        }
    }

    #[test]
    fn what_was_thrown_away_need_not_be_done() {
        let tally = Tally::new();
        assert!(tally.task_done(5));
        tally.end(true, 2);
        assert_eq!(tally.unfinished(5), 1);
        assert!(tally.is_discarded(2) && !tally.is_discarded(1));
        assert!(tally.task_done(5) && !tally.task_done(5));
        tally.join(|| 5, None).unwrap();
        tally.end(false, 4);
        assert_eq!(tally.phase(), Phase::Discarded { taken: 2 });
    }
}
