//! What parent and workers share.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, fence};

use super::roster::Roster;
use crate::arena::{Arena, Shareable};
use crate::channel::Log;
use crate::channel::bell::Bell;
use crate::sync::MemberId;

/// The shared part of a pool. Use it by [`Parent`](super::Parent) and [`Worker`](super::Worker).
#[repr(C)]
#[derive(Debug)]
pub struct PoolCore {
    pub(super) tasks: Log,
    pub(super) results: Log,
    pub(super) roster: Roster,
    /// Rung when there is a task that nobody is looking for, or when the phase changes.
    pub(super) tasks_bell: Bell,
    pub(super) searcher: Searcher,
    /// Rung when there is a result.
    pub(super) results_bell: Bell,
    phase: AtomicU32,
}

/// What workers are to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Take tasks, and wait for more.
    Open = 0,
    /// Take what tasks there are, then leave.
    Closing = 1,
    /// Take no more tasks.
    Stopped = 2,
}

impl PoolCore {
    pub(super) fn new() -> Self {
        Self {
            tasks: Log::new(),
            results: Log::new(),
            roster: Roster::new(),
            tasks_bell: Bell::new(),
            searcher: Searcher::new(),
            results_bell: Bell::new(),
            phase: AtomicU32::new(Phase::Open as u32),
        }
    }

    pub(super) fn phase(&self) -> Phase {
        // SYNC: pairs with the Release in `advance`: who sees `Closing` sees all tasks as well.
        match self.phase.load(Acquire) {
            0 => Phase::Open,
            1 => Phase::Closing,
            _ => Phase::Stopped,
        }
    }

    /// Goes on to `phase`, never back, and wakes all workers.
    pub(super) fn advance(&self, phase: Phase) {
        // SYNC: pairs with the Acquire in `phase`.
        self.phase.fetch_max(phase as u32, Release);
        self.tasks_bell.ring(u32::MAX);
    }
}

/// The one idle worker that spins for the next task; the others sleep.
///
/// While there is one, the parent need not wake anybody, which costs a system call. See `README.md`,
/// "Who looks for the next task".
#[repr(transparent)]
#[derive(Debug)]
pub(super) struct Searcher(AtomicU32);

impl Searcher {
    const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Makes `me` the searcher if there is none.
    pub(super) fn begin(&self, me: MemberId) -> bool {
        self.0
            .compare_exchange(0, me.get(), SeqCst, Relaxed)
            .is_ok()
    }

    /// Ends the search of `me`, who must look for a task once more after this.
    pub(super) fn end(&self, me: MemberId) {
        // SYNC: pairs with the fence in `is_there`: either the parent sees that there is no searcher
        // any more, or `me`, looking again, sees the parent's task.
        let _ = self.0.compare_exchange(me.get(), 0, SeqCst, Relaxed);
        fence(SeqCst);
    }

    /// Whether somebody is looking, to be asked after a task was put.
    pub(super) fn is_there(&self) -> bool {
        // SYNC: pairs with the fence in `end`.
        fence(SeqCst);
        self.0.load(Relaxed) != 0
    }
}

// SAFETY: repr(C), nothing but atomics, no address, no `Drop`; logs, roster and bells survive the
// death of their users.
unsafe impl Shareable for PoolCore {
    const KIND: u32 = 48;
    const NAME: &'static str = "Pool";

    fn reclaim(&self, arena: &Arena) {
        self.tasks.clear(arena);
        self.results.clear(arena);
        self.roster.clear(arena);
    }
}
