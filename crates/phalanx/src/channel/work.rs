//! Who has taken which share of a joinable queue's messages and not reported it as done: what the
//! dead took is written off, so that nobody waits for it for ever.
//!
//! Messages taken = reported as done + in somebody's hands. A consumer puts a message into its hands
//! under the consumers' lock, before it leaves the log; a report takes one out of the reporter's
//! hands, else out of anybody's, and counts it after that, under a lock of its own. Whoever writes
//! off holds both: it drops the hands of the dead and counts as done what then is missing. So a
//! process may die at any step of either.

use std::time::Instant;

use super::tally::Tally;
use crate::arena::Arena;
use crate::error::Result;
use crate::fault::crash_point;
use crate::sync::holdings::Holdings;
use crate::sync::{LastLook, MemberId, RawLock, passed, slice_end};

/// See the module. All zeros for a queue that nobody joins: then nothing is written down.
#[repr(C)]
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// 1 if it is written down.
    on: u32,
    lock: RawLock,
    looked: LastLook,
    hands: Holdings,
}

impl Work {
    pub(crate) fn new(on: bool) -> Self {
        Self {
            on: on.into(),
            ..Self::default()
        }
    }

    /// This process takes a message. Under the consumers' lock, before the message is gone.
    #[inline]
    pub(crate) fn take(&self, arena: &Arena) {
        if self.on != 0 {
            self.hands.add(arena);
        }
    }

    /// Reports a message as done, of `puts` that were put; false if none is to be done.
    pub(crate) fn done(&self, arena: &Arena, tally: &Tally, puts: u64) -> bool {
        if self.on == 0 {
            return tally.task_done(puts);
        }
        let _guard = self.lock.guard(arena);
        if tally.unfinished(puts) == 0 {
            return false;
        }
        self.hands.remove(arena);
        crash_point!("work.uncounted");
        tally.task_done(puts)
    }

    /// What `from` has in its hands is in this process's from now on. Under the consumers' lock.
    pub(crate) fn inherit(&self, from: MemberId, arena: &Arena) {
        if self.on != 0 {
            let _guard = self.lock.guard(arena);
            self.hands.inherit(from, arena);
        }
    }

    /// Counts as done what the dead had taken, of `taken` messages. Under the consumers' lock.
    pub(crate) fn write_off(&self, arena: &Arena, tally: &Tally, taken: u64) {
        if self.on == 0 {
            return;
        }
        let _guard = self.lock.guard(arena);
        self.hands.bury(arena);
        tally.raise(taken.saturating_sub(self.hands.total(arena)));
    }

    /// Waits for [`Tally::join`]; `write_off` is called when a process died with something in its
    /// hands.
    ///
    /// # Errors
    /// `is_timeout`, `is_interrupted`, and those of `write_off`.
    pub(crate) fn join(
        &self,
        arena: &Arena,
        tally: &Tally,
        puts: impl Fn() -> u64,
        write_off: impl Fn() -> Result<()>,
        deadline: Option<Instant>,
    ) -> Result<()> {
        if self.on == 0 {
            return tally.join(puts, deadline);
        }
        loop {
            match tally.join(&puts, Some(slice_end(deadline))) {
                Err(error) if error.is_timeout() => {}
                other => return other,
            }
            if self.looked.is_due() && self.hands.any_dead(arena) {
                write_off()?;
            } else if passed(deadline) {
                return tally.join(puts, deadline);
            }
        }
    }

    /// Gives back what lies outside of the queue. Nobody may use it any more.
    pub(crate) fn reclaim(&self, arena: &Arena) {
        self.hands.reclaim(arena);
    }
}
