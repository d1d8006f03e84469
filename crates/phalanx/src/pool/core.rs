//! What parent and workers share.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::{Acquire, Release};

use super::roster::Roster;
use super::search::Search;
use crate::arena::{Arena, Shareable};
use crate::channel::Log;
use crate::channel::bell::Bell;

/// The shared part of a pool. Use it by [`Parent`](super::Parent) and [`Worker`](super::Worker).
#[repr(C)]
#[derive(Debug)]
pub struct PoolCore {
    pub(super) tasks: Log,
    pub(super) results: Log,
    pub(super) roster: Roster,
    /// Rung when there is a task that nobody is looking for, or when the phase changes.
    pub(super) tasks_bell: Bell,
    pub(super) search: Search,
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
            search: Search::default(),
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
