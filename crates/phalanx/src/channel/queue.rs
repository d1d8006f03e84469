//! A queue: a log with a bound on its length, and consumers and producers that sleep.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::bell::Bell;
use super::log::{Log, Patience, Pushed};
use super::message::{Letter, Message, Taken};
use super::watch::{Watch, Watches};
use crate::arena::{Arena, Buffer, Shareable, Shared};
use crate::error::{Error, Kind, Result};
use crate::fault::crash_point;

/// The shared part of a queue. Use it by [`Queue`].
#[repr(C)]
#[derive(Debug)]
pub struct QueueCore {
    log: Log,
    /// Messages that may be in the queue at a time; `u64::MAX`: any number.
    bound: u64,
    items: Bell,
    room: Bell,
    /// Messages that were reported as done.
    done: AtomicU64,
    all_done: Bell,
    watches: Watches,
}

// SAFETY: repr(C), atomics and a constant; `log` survives the death of its users, and the bells
// are words to sleep on.
unsafe impl Shareable for QueueCore {
    const KIND: u32 = 32;
    const NAME: &'static str = "Queue";

    fn reclaim(&self, arena: &Arena) {
        self.log.clear(arena);
    }

    const MINDS_DEATHS: bool = true;

    /// The dead member may have put an item and told nobody, or have been woken for one and never
    /// have taken it.
    fn peer_died(&self, arena: &Arena) {
        // A damaged log is reported to whoever uses it next.
        let _ = self.log.settle(arena);
        self.items.ring(1);
        self.room.ring(1);
        self.watches.ring(arena, || self.log.is_empty());
    }
}

/// A queue of byte messages, many producers to many consumers, first in first out.
///
/// A message put is in the queue when `put` returns: nothing is sent later by a helper thread. A
/// process killed in the middle of a `put` or `get` leaves the queue working; at most its own
/// message is lost.
#[derive(Clone, Debug)]
pub struct Queue {
    core: Shared<QueueCore>,
    /// This process's descriptor, once somebody has asked for it.
    watch: Arc<Mutex<Option<Watch>>>,
    /// Whether there is one: spares consumers the lock.
    watched: Arc<AtomicBool>,
}

impl Queue {
    /// A queue for at most `bound` messages at a time; `None`: any number.
    ///
    /// # Errors
    /// `is_arena_full`, `is_invalid` for a bound of 0.
    pub fn new(bound: Option<u64>) -> Result<Self> {
        if bound == Some(0) {
            return Err(Error::new(
                Kind::Invalid,
                "a queue's bound must be at least 1",
            ));
        }
        Ok(Self::from_core(Shared::create(QueueCore {
            log: Log::new(),
            bound: bound.unwrap_or(u64::MAX),
            items: Bell::new(),
            room: Bell::new(),
            done: AtomicU64::new(0),
            all_done: Bell::new(),
            watches: Watches::new(),
        })?))
    }

    /// The queue that a handle names.
    pub fn from_core(core: Shared<QueueCore>) -> Self {
        Self {
            core,
            watch: Arc::default(),
            watched: Arc::default(),
        }
    }

    /// The counted object behind the queue: its handle goes to other members.
    pub fn core(&self) -> &Shared<QueueCore> {
        &self.core
    }

    /// A message for this queue, whose bytes are `parts` one after the other.
    ///
    /// # Errors
    /// `is_arena_full`, `is_too_large`.
    #[inline]
    pub fn letter<'a>(
        &self,
        parts: &'a [&'a [u8]],
        tag: u16,
        buffers: Vec<Buffer>,
    ) -> Result<Letter<'a>> {
        Letter::new(self.core.arena(), parts, tag, buffers)
    }

    /// Puts a message, waiting for room until `deadline` (`None`: for ever).
    ///
    /// # Errors
    /// `is_full` when the deadline passes, `is_interrupted`, `is_arena_full`; the letter may then be
    /// put again.
    pub fn put(&self, letter: &mut Letter<'_>, deadline: Option<Instant>) -> Result<()> {
        while !self.try_put(letter, Patience::Wait)? {
            self.wait_for_room(deadline)?;
        }
        Ok(())
    }

    /// Puts a message if there is room for it now (and, with [`Patience::Now`], nobody else puts
    /// one this moment).
    ///
    /// # Errors
    /// `is_arena_full`.
    #[inline]
    pub fn try_put(&self, letter: &mut Letter<'_>, patience: Patience) -> Result<bool> {
        let core = &*self.core;
        let room = |count: u64, _bytes: u64| count < core.bound;
        let put = matches!(core.log.push(letter, patience, room)?, Pushed::Number(_));
        if put {
            crash_point!("queue.put_unrung");
            core.items.ring(1);
            core.watches.ring(self.core.arena(), || core.log.is_empty());
        }
        Ok(put)
    }

    /// Waits until there may be room.
    ///
    /// # Errors
    /// `is_full` when the deadline passes, `is_interrupted`.
    pub fn wait_for_room(&self, deadline: Option<Instant>) -> Result<()> {
        let core = &*self.core;
        // A consumer that was killed may have left the count too high.
        core.log.settle(self.core.arena())?;
        let ready = || core.log.puts().saturating_sub(core.log.gets()) < core.bound;
        core.room.wait(ready, deadline).map_err(|error| {
            if error.is_timeout() {
                Error::new(
                    Kind::Full,
                    format!("the queue is full: it holds {}", core.bound),
                )
            } else {
                error
            }
        })
    }

    /// Takes the oldest message, waiting for one until `deadline` (`None`: for ever).
    ///
    /// # Errors
    /// `is_empty` when the deadline passes, `is_interrupted`, `is_corrupt`.
    pub fn get(&self, deadline: Option<Instant>) -> Result<Message> {
        loop {
            if let Some(message) = self.try_get()? {
                return Ok(message);
            }
            self.wait_for_item(deadline)?;
        }
    }

    /// Takes the oldest message if there is one now.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn try_get(&self) -> Result<Option<Message>> {
        let message = self.core.log.pop(self.core.arena())?;
        if message.is_some() {
            self.taken();
        }
        Ok(message)
    }

    /// The fast form of [`Queue::try_get`]: copies the message's inline bytes over `bytes`.
    ///
    /// # Errors
    /// `is_corrupt`.
    #[inline]
    pub fn try_get_into(&self, bytes: &mut Vec<u8>, patience: Patience) -> Result<Option<Taken>> {
        let taken = self.core.log.pop_into(self.core.arena(), bytes, patience)?;
        if taken.is_some() {
            self.taken();
        }
        Ok(taken)
    }

    #[inline]
    fn taken(&self) {
        crash_point!("queue.taken_unrung");
        if self.core.bound != u64::MAX {
            self.core.room.ring(1);
        }
        if self.watched.load(Relaxed) {
            self.settle_watch();
        }
    }

    #[cold]
    fn settle_watch(&self) {
        let core = &*self.core;
        let arena = self.core.arena();
        if let Some(watch) = &*self.watch.lock().unwrap_or_else(PoisonError::into_inner)
            && watch.is_own(arena)
        {
            watch.settle(&core.watches, arena, || core.log.is_empty());
        }
    }

    /// A descriptor that is readable while there is something to take, as far as this process
    /// knows: another consumer may be faster. Closed with the queue's last clone in this process.
    ///
    /// # Errors
    /// `is_full` if as many processes as possible poll this queue, or the system's.
    pub fn exposed_fd(&self) -> Result<RawFd> {
        let core = &*self.core;
        let arena = self.core.arena();
        let mut watch = self.watch.lock().unwrap_or_else(PoisonError::into_inner);
        if !watch.as_ref().is_some_and(|w| w.is_own(arena)) {
            *watch = Some(Watch::new(&core.watches, arena)?);
            self.watched.store(true, Relaxed);
        }
        let Some(own) = watch.as_ref() else {
            return Err(Error::corrupt("a queue's watch"));
        };
        own.settle(&core.watches, arena, || core.log.is_empty());
        Ok(own.fd().as_raw_fd())
    }

    /// Waits until there may be something to take.
    ///
    /// # Errors
    /// `is_empty` when the deadline passes, `is_interrupted`.
    pub fn wait_for_item(&self, deadline: Option<Instant>) -> Result<()> {
        let core = &*self.core;
        // A producer that was killed may have left the count too low.
        core.log.settle(self.core.arena())?;
        core.items
            .wait(|| !core.log.is_empty(), deadline)
            .map_err(|error| {
                if error.is_timeout() {
                    Error::new(Kind::Empty, "the queue is empty")
                } else {
                    error
                }
            })
    }

    /// How many messages are in the queue, exactly.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn len(&self) -> Result<u64> {
        self.core.log.len(self.core.arena())
    }

    /// Whether there is nothing in the queue.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn is_empty(&self) -> Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Whether anything was ever put.
    pub fn is_used(&self) -> bool {
        self.core.log.puts() > 0
    }

    /// How many messages may be in the queue at a time; `None`: any number.
    pub fn bound(&self) -> Option<u64> {
        (self.core.bound != u64::MAX).then_some(self.core.bound)
    }

    /// Says that one message that was taken has been worked on.
    ///
    /// # Errors
    /// `is_invalid` if all messages ever put have been reported already.
    pub fn task_done(&self) -> Result<()> {
        let core = &*self.core;
        let puts = core.log.puts();
        let next = |done: u64| (done < puts).then(|| done + 1);
        match core.done.fetch_update(SeqCst, Relaxed, next) {
            Ok(before) if before + 1 == puts => core.all_done.ring(u32::MAX),
            Ok(_) => {}
            Err(_) => {
                return Err(Error::new(
                    Kind::Invalid,
                    "task_done() was called more often than there were items put",
                ));
            }
        }
        Ok(())
    }

    /// Messages that were put and not yet reported as done.
    pub fn unfinished(&self) -> u64 {
        let done = self.core.done.load(Acquire);
        self.core.log.puts().saturating_sub(done)
    }

    /// Waits until every message ever put has been reported as done.
    ///
    /// # Errors
    /// `is_timeout`, `is_interrupted`.
    pub fn join(&self, deadline: Option<Instant>) -> Result<()> {
        self.core.log.settle(self.core.arena())?;
        while self.unfinished() > 0 {
            self.core
                .all_done
                .wait(|| self.unfinished() == 0, deadline)?;
        }
        Ok(())
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        if Arc::strong_count(&self.watch) == 1
            && let Some(watch) = self
                .watch
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take()
        {
            watch.end(&self.core.watches, self.core.arena());
        }
    }
}
