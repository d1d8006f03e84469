//! Which idle workers look for the next task by themselves, so that the parent need not wake one,
//! which costs a system call: see `README.md`, "Who looks for the next task".

use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};
use std::time::Duration;

use crate::os::life::microseconds;
use crate::sync::MemberId;

/// How long a nap is: what a task may have to wait that comes in the midst of many small ones, and
/// that the workers which are awake do not come to. A burst of `apply_async` had a wake-up for each
/// eighth task; without them it went from 0.31 to 0.47 million tasks a second on two cores, and from
/// 0.26 to 0.5 on one.
pub(super) const NAP: Duration = Duration::from_micros(100);
/// Who has not looked this long after its nap was to end, in microseconds, is stopped or dead.
const LATE: u64 = 400;

/// See the module. At most one worker searches, and at most one naps.
#[repr(C)]
#[derive(Debug, Default)]
pub(super) struct Search {
    /// Until when the worker that naps can be relied on, in microseconds of the monotonic clock;
    /// 0: there is none.
    nap: AtomicU64,
    /// The worker that spins.
    searcher: AtomicU32,
    /// 1 if the parent has relied on the nap.
    relied: AtomicU32,
}

impl Search {
    /// Makes `me` the searcher if there is none.
    pub(super) fn begin(&self, me: MemberId) -> bool {
        self.searcher
            .compare_exchange(0, me.get(), SeqCst, Relaxed)
            .is_ok()
    }

    /// Ends the search of `me`, who must look for a task once more after this.
    pub(super) fn end(&self, me: MemberId) {
        // SYNC: pairs with the fence in `is_on`: either the parent sees that there is no searcher any
        // more, or `me`, looking again, sees the parent's task.
        let _ = self.searcher.compare_exchange(me.get(), 0, SeqCst, Relaxed);
        fence(SeqCst);
    }

    /// Begins a nap, of [`NAP`], if nobody else naps; returns what `wake_up` is to be given.
    pub(super) fn begin_nap(&self) -> Option<u64> {
        let other = self.nap.load(Relaxed);
        if other != 0 && microseconds() < other {
            return None;
        }
        self.relied.store(0, Relaxed);
        let until = microseconds() + NAP.as_micros() as u64 + LATE;
        self.nap
            .compare_exchange(other, until, SeqCst, Relaxed)
            .is_ok()
            .then_some(until)
    }

    /// Ends a nap; the caller must look for a task once more after this. Returns whether it has
    /// saved the parent a system call.
    pub(super) fn end_nap(&self, until: u64) -> bool {
        // SYNC: as in `end`.
        let _ = self.nap.compare_exchange(until, 0, SeqCst, Relaxed);
        fence(SeqCst);
        self.relied.load(Relaxed) != 0
    }

    /// Whether somebody is looking or about to look, to be asked after a task was put.
    pub(super) fn is_on(&self) -> bool {
        // SYNC: pairs with the fences in `end` and `end_nap`.
        fence(SeqCst);
        if self.searcher.load(Relaxed) != 0 {
            return true;
        }
        let naps = self.naps();
        if naps {
            self.relied.store(1, Relaxed);
        }
        naps
    }

    /// Whether a worker naps, and none searches: the parent, which asks, is to wake somebody after
    /// all, and so has not gained by the nap.
    pub(super) fn only_naps(&self) -> bool {
        let only_naps = self.searcher.load(Relaxed) == 0 && self.naps();
        if only_naps {
            self.relied.store(0, Relaxed);
        }
        only_naps
    }

    fn naps(&self) -> bool {
        let until = self.nap.load(Relaxed);
        until != 0 && microseconds() < until
    }

    /// Relies no longer on `dead`, nor on a nap, which may have been its own.
    pub(super) fn bury(&self, dead: MemberId) {
        self.end(dead);
        self.nap.store(0, SeqCst);
    }
}
