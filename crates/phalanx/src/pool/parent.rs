//! The parent's side.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::core::{Phase, PoolCore};
use super::ledger::{Ledger, Ticket};
use super::parcel::{self, Large};
use super::roster::Stage;
use super::worker::NOTE;
use crate::arena::{Buffer, Shared};
use crate::channel::{Patience, Pushed, Taken};
use crate::error::{Error, Kind, Result};

/// The process that submits tasks: exactly one a pool, with any number of threads.
#[derive(Debug)]
pub struct Parent {
    core: Shared<PoolCore>,
    ledger: Mutex<Ledger>,
}

/// A result, or a note; its body, unless it is large, is in the bytes that came with it.
#[derive(Debug)]
pub struct Delivery {
    /// Whose result it is; `None` for a note.
    pub ticket: Option<Ticket>,
    /// What the worker said about the bytes.
    pub tag: u16,
    taken: Taken,
}

impl Delivery {
    /// Whether all of the result is in its bytes.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.taken.is_plain()
    }

    /// The body in the bytes that came with the delivery; empty if it is large.
    #[inline]
    pub fn body<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(8..).unwrap_or_default()
    }

    /// The large part of the result.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn large(self, parent: &Parent) -> Result<Large> {
        parcel::unpack(parent.core.arena(), self.taken)
    }
}

/// What a worker left whose process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fallen {
    /// The worker's place in the pool, from 0; `None` if it died before it took one.
    pub worker: Option<usize>,
    /// It had finished its start. Dying before that is likely to happen to the next one, too.
    pub was_ready: bool,
    /// It had ended its work in order.
    pub had_left: bool,
    /// The task that it had taken. Its result may still lie in the log: see [`Parent::lose`].
    pub task: Option<u64>,
}

impl Parent {
    /// A new pool without workers.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn new() -> Result<Self> {
        Ok(Self {
            core: Shared::create(PoolCore::new())?,
            ledger: Mutex::default(),
        })
    }

    /// What is shared with the workers: its handle goes to them.
    pub fn core(&self) -> &Shared<PoolCore> {
        &self.core
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits a task; never waits for a worker. Returns its number. Of `tag`, 14 bits reach the
    /// worker.
    ///
    /// # Errors
    /// `is_arena_full`, `is_too_large`, `is_closed`; nothing was submitted then.
    pub fn submit(
        &self,
        ticket: Ticket,
        head: &[u8],
        body: &[u8],
        tag: u16,
        buffers: Vec<Buffer>,
    ) -> Result<u64> {
        let core = &*self.core;
        if core.phase() != Phase::Open {
            return Err(Error::new(Kind::Closed, "the pool takes no more tasks"));
        }
        let number = parcel::pack(self.core.arena(), head, body, tag, buffers, |letter| {
            // Held over the push, so that no result comes before its ticket.
            let mut ledger = self.ledger();
            match core.tasks.push(letter, Patience::Wait, |_, _| true)? {
                Pushed::Number(number) => {
                    ledger.add(number, ticket);
                    Ok(number)
                }
                Pushed::NoRoom | Pushed::Busy => Err(Error::corrupt("a log without bounds")),
            }
        })?;
        if !core.search.is_on() {
            core.tasks_bell.ring(1);
        }
        Ok(number)
    }

    /// Takes the next result if there is one, and copies its body over `bytes`.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn collect(&self, bytes: &mut Vec<u8>) -> Result<Option<Delivery>> {
        let core = &*self.core;
        loop {
            let taken = core
                .results
                .pop_into(self.core.arena(), bytes, Patience::Wait)?;
            let Some(taken) = taken else {
                return Ok(None);
            };
            let Some(&number) = bytes.first_chunk::<8>() else {
                return Err(Error::corrupt("a pool's result without its number"));
            };
            let number = u64::from_ne_bytes(number);
            let ticket = self.ledger().take(number);
            let tag = parcel::tag(&taken);
            if ticket.is_none() && number != NOTE {
                // Of a task that counts as lost. Taking it apart frees its buffers.
                parcel::unpack(self.core.arena(), taken)?;
                continue;
            }
            return Ok(Some(Delivery { ticket, tag, taken }));
        }
    }

    /// Whether there was a result to collect a moment ago.
    pub fn has_results(&self) -> bool {
        !self.core.results.is_empty()
    }

    /// Waits until there may be a result, or until `done`, whose change somebody tells by
    /// [`Parent::wake`].
    ///
    /// # Errors
    /// `is_timeout`, `is_interrupted`.
    pub fn wait(&self, done: impl Fn() -> bool, deadline: Option<Instant>) -> Result<()> {
        let core = &*self.core;
        if core.search.only_naps() && !core.tasks.is_empty() {
            // We have something to wait for now: no task is to wait for the end of a nap.
            core.tasks_bell
                .ring(u32::try_from(self.backlog()).unwrap_or(u32::MAX));
        }
        let ready = || self.has_results() || done();
        core.results_bell.wait(ready, deadline)
    }

    /// Lets the threads look that are in [`Parent::wait`].
    pub fn wake(&self) {
        self.core.results_bell.ring(u32::MAX);
    }

    /// Tasks that have been neither delivered nor lost.
    pub fn due(&self) -> usize {
        self.ledger().due()
    }

    /// Tasks that no worker has taken yet.
    pub fn backlog(&self) -> u64 {
        let tasks = &self.core.tasks;
        tasks.puts().saturating_sub(tasks.gets())
    }

    /// Buries the worker whose process `pid` has ended, and says what it left.
    ///
    /// A task that is still in the log, or that another worker has taken after all, is not lost.
    /// One that is named here may have been finished: collect all results, then call
    /// [`Parent::lose`].
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn bury(&self, pid: u32) -> Result<Fallen> {
        let core = &*self.core;
        let arena = self.core.arena();
        let mut fallen = Fallen {
            worker: None,
            was_ready: false,
            had_left: false,
            task: None,
        };
        for (index, slot) in core.roster.slots(arena).enumerate() {
            if slot.pid() != pid {
                continue;
            }
            fallen.worker = Some(index);
            fallen.was_ready |= slot.stage() != Stage::Starting;
            fallen.had_left |= slot.stage() == Stage::Left;
            let claim = slot.claim();
            if let Some(member) = slot.member() {
                core.search.bury(member);
            }
            slot.free();
            if let Some(task) = claim
                && self.is_taken(task)?
            {
                fallen.task = Some(task);
            }
        }
        // What it published last may not be counted yet.
        core.results.settle(arena)?;
        // It may have been woken for a task, or looked for one, that it then did not take.
        core.tasks_bell.ring(u32::MAX);
        Ok(fallen)
    }

    /// Whether the task that a dead worker had claimed has left the log, and with nobody else.
    fn is_taken(&self, task: u64) -> Result<bool> {
        let core = &*self.core;
        let arena = self.core.arena();
        core.tasks.settle(arena)?;
        // First the log, then the claims: who takes the task in between has claimed it before it
        // left the log.
        Ok(core.tasks.gets() > task
            && !core
                .roster
                .slots(arena)
                .any(|slot| slot.claim() == Some(task)))
    }

    /// Strikes off the task of a dead worker; `None` if its result has come.
    pub fn lose(&self, task: u64) -> Option<Ticket> {
        self.ledger().take(task)
    }

    /// The pids of the workers that have a place.
    pub fn workers(&self) -> Vec<u32> {
        let slots = self.core.roster.slots(self.core.arena());
        slots.map(|s| s.pid()).filter(|&pid| pid != 0).collect()
    }

    /// How many workers have finished their start and not left, as far as is known.
    pub fn ready(&self) -> usize {
        let slots = self.core.roster.slots(self.core.arena());
        slots
            .filter(|s| s.pid() != 0 && s.stage() == Stage::Ready)
            .count()
    }

    /// No more tasks will come: workers leave when there are none left.
    pub fn close(&self) {
        self.core.advance(Phase::Closing);
    }

    /// Workers take no more tasks and leave.
    pub fn stop(&self) {
        self.core.advance(Phase::Stopped);
    }
}
