//! The worker's side.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::Instant;

use super::core::{Phase, PoolCore};
use super::parcel::{self, Large};
use super::roster::{Slot, Stage};
use super::search::NAP;
use crate::arena::{Buffer, Shared};
use crate::channel::{Patience, Taken};
use crate::error::{Error, Kind, Result};
use crate::fault::crash_point;
use crate::os::spin;
use crate::sync::Members;

/// A worker of a pool: one a process, made in that process.
#[derive(Debug)]
pub struct Worker {
    core: Shared<PoolCore>,
    slot: &'static Slot,
    /// It has searched or napped since it took a task: the parent has relied on it.
    searched: AtomicBool,
    /// Tasks that it has taken since it slept last.
    streak: AtomicU32,
}

/// A task that was taken; its head and, unless it is large, its body are in the bytes that came
/// with it.
#[derive(Debug)]
pub struct Task {
    /// What the parent's `submit` returned.
    pub number: u64,
    /// What the parent said about the bytes.
    pub tag: u16,
    taken: Taken,
}

impl Task {
    /// Whether all of the task is in its bytes.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.taken.is_plain()
    }

    /// The large part of the task.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn large(self, worker: &Worker) -> Result<Large> {
        parcel::unpack(worker.core.arena(), self.taken)
    }
}

/// The number of what is no task's result: see [`Worker::note`].
pub(super) const NOTE: u64 = u64::MAX;

impl Worker {
    /// Takes a place in the pool for this process.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn enter(core: Shared<PoolCore>) -> Result<Self> {
        let arena = core.arena();
        let slot = core.roster.enter(arena, arena.me())?;
        Ok(Self {
            core,
            slot,
            searched: AtomicBool::new(false),
            streak: AtomicU32::new(0),
        })
    }

    /// Says that this worker is able to work. One that dies before has failed to start.
    pub fn ready(&self) {
        self.slot.set_stage(Stage::Ready);
    }

    /// Says that this worker ends in order.
    pub fn leave(&self) {
        self.slot.set_stage(Stage::Left);
    }

    /// The pool this is a worker of.
    pub fn core(&self) -> &Shared<PoolCore> {
        &self.core
    }

    /// Takes the next task, waiting for one until `deadline` (`None`: for ever).
    ///
    /// An idle wait never wakes up by itself.
    ///
    /// # Errors
    /// `is_closed` when there is nothing left to do, `is_timeout`, `is_interrupted`, `is_corrupt`.
    pub fn next(&self, bytes: &mut Vec<u8>, deadline: Option<Instant>) -> Result<Task> {
        loop {
            if let Some(task) = self.try_next(bytes)? {
                return Ok(task);
            }
            self.wait(deadline)?;
        }
    }

    /// Takes the next task if there is one, and copies head and body over `bytes`.
    ///
    /// # Errors
    /// `is_closed` when there is nothing left to do, `is_corrupt`.
    #[inline]
    pub fn try_next(&self, bytes: &mut Vec<u8>) -> Result<Option<Task>> {
        // Looked at before the log: no task follows `Closing`.
        let phase = self.core.phase();
        if phase != Phase::Stopped {
            let claim = |number| {
                self.slot.set_claim(Some(number));
                crash_point!("pool.claimed");
            };
            let taken = self.core.tasks.pop_claimed_into(
                self.core.arena(),
                bytes,
                Patience::Wait,
                claim,
            )?;
            if let Some(taken) = taken {
                let streak = self.streak.load(Relaxed).wrapping_add(1);
                self.streak.store(streak, Relaxed);
                if self.searched.swap(false, Relaxed) && !self.core.tasks.is_empty() {
                    // The parent has relied on us for more than this task.
                    self.core.tasks_bell.ring(1);
                }
                return Ok(Some(Task {
                    number: taken.number,
                    tag: parcel::tag(&taken),
                    taken,
                }));
            }
        }
        if phase == Phase::Open {
            Ok(None)
        } else {
            Err(Error::new(Kind::Closed, "the pool has no more tasks"))
        }
    }

    /// Waits until there may be a task.
    ///
    /// # Errors
    /// `is_timeout`, `is_interrupted`.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<()> {
        let core = &*self.core;
        let ready = || !core.tasks.is_empty() || core.phase() != Phase::Open;
        let me = self.core.arena().me();
        if core.search.begin(me) {
            self.searched.store(true, Relaxed);
            crash_point!("pool.searching");
            spin::until(ready);
            crash_point!("pool.found");
            core.search.end(me);
            crash_point!("pool.searched");
            if ready() {
                return Ok(());
            }
        }
        // A worker that is woken for each task has nothing to gain by a nap.
        if self.streak.swap(0, Relaxed) > 1
            && let Some(nap) = core.search.begin_nap()
        {
            self.searched.store(true, Relaxed);
            crash_point!("pool.napping");
            let woken = core.tasks_bell.sleep(ready, Some(Instant::now() + NAP));
            let paid = core.search.end_nap(nap);
            crash_point!("pool.napped");
            match woken {
                Err(error) if error.is_timeout() => {
                    if paid || ready() {
                        self.streak.store(2, Relaxed);
                        return Ok(());
                    }
                }
                other => return other,
            }
        }
        core.tasks_bell.sleep(ready, deadline)
    }

    /// Delivers the result of a task: from here on this worker has none.
    ///
    /// # Errors
    /// `is_arena_full`, `is_too_large`: then nothing was delivered, and another, smaller result
    /// may be.
    pub fn finish(&self, number: u64, body: &[u8], tag: u16, buffers: Vec<Buffer>) -> Result<()> {
        self.deliver(number, body, tag, buffers)?;
        crash_point!("pool.delivered_claimed");
        self.slot.set_claim(None);
        Ok(())
    }

    /// Tells the parent something that is no task's result.
    ///
    /// # Errors
    /// As [`Worker::finish`].
    pub fn note(&self, body: &[u8], tag: u16, buffers: Vec<Buffer>) -> Result<()> {
        self.deliver(NOTE, body, tag, buffers)
    }

    fn deliver(&self, number: u64, body: &[u8], tag: u16, buffers: Vec<Buffer>) -> Result<()> {
        let core = &*self.core;
        let head = number.to_ne_bytes();
        parcel::pack(self.core.arena(), &head, body, tag, buffers, |letter| {
            core.results.push(letter, Patience::Wait, |_, _| true)
        })?;
        crash_point!("pool.delivered_unrung");
        core.results_bell.ring(1);
        Ok(())
    }
}
