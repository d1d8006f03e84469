//! A queue: a log with a bound on its length, and consumers and producers that sleep.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::bell::Bell;
use super::log::{Log, Patience, Pushed};
use super::message::{Letter, Message, Taken};
use super::run::Run;
use super::tally::{Phase, Tally};
use super::watch::{Watch, Watches};
use super::work::Work;
use crate::arena::{Arena, Buffer, Shareable, Shared};
use crate::error::{Error, Kind, Result};
use crate::fault::crash_point;
use crate::sync::MemberId;

/// The shared part of a queue. Use it by [`Queue`].
#[repr(C)]
#[derive(Debug)]
pub struct QueueCore {
    log: Log,
    /// Messages that may be in the queue at a time; `u64::MAX`: any number.
    bound: u64,
    items: Bell,
    room: Bell,
    tally: Tally,
    work: Work,
    watches: Watches,
}

impl QueueCore {
    /// Counts what the dead have taken and not reported as done; nobody else will.
    fn write_off(&self, arena: &Arena) -> Result<()> {
        self.log.settled(arena, |puts, gets| {
            let taken = gets.min(self.tally.owed(puts));
            self.work.write_off(arena, &self.tally, taken);
        })
    }

    /// Whether a `get` would have to wait now, as far as the counters say.
    fn is_idle(&self) -> bool {
        self.log.is_empty() && self.tally.is_open()
    }
}

// SAFETY: repr(C), atomics and a constant; `log` survives the death of its users, and the bells
// are words to sleep on.
unsafe impl Shareable for QueueCore {
    const KIND: u32 = 32;
    const NAME: &'static str = "Queue";

    fn reclaim(&self, arena: &Arena) {
        self.log.clear(arena);
        self.work.reclaim(arena);
    }

    const MINDS_DEATHS: bool = true;

    /// The dead member may have put an item or shut the queue and told nobody, or have been woken
    /// for an item and never have taken it, or have taken one and never have reported it.
    fn peer_died(&self, arena: &Arena) {
        // A damaged log is reported to whoever uses it next.
        let _ = self.write_off(arena);
        let sleepers = if self.tally.is_open() { 1 } else { u32::MAX };
        self.items.ring(sleepers);
        self.room.ring(sleepers);
        self.tally.ring();
        self.watches.ring(arena, || self.is_idle());
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
        Self::create(bound, false)
    }

    /// A queue that knows who has taken what, for [`task_done`](Queue::task_done) and
    /// [`join`](Queue::join): what was taken by a process that dies counts as done.
    ///
    /// # Errors
    /// As [`Queue::new`].
    pub fn joinable(bound: Option<u64>) -> Result<Self> {
        Self::create(bound, true)
    }

    fn create(bound: Option<u64>, joinable: bool) -> Result<Self> {
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
            tally: Tally::new(),
            work: Work::new(joinable),
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
    /// `is_closed` if the queue was shut, `is_full` when the deadline passes, `is_interrupted`,
    /// `is_arena_full`; the letter may then be put again.
    pub fn put(&self, letter: &mut Letter<'_>, deadline: Option<Instant>) -> Result<()> {
        while !self.try_put(letter, Patience::Wait)? {
            self.wait_for_room(deadline)?;
        }
        Ok(())
    }

    /// Puts a message if there is room for it now (and, with [`Patience::Now`], nobody else puts
    /// one this moment). There is no room in a queue that was shut.
    ///
    /// # Errors
    /// `is_arena_full`.
    #[inline]
    pub fn try_put(&self, letter: &mut Letter<'_>, patience: Patience) -> Result<bool> {
        let core = &*self.core;
        let room = |count: u64, _bytes: u64| count < core.bound && core.tally.is_open();
        let put = matches!(core.log.push(letter, patience, room)?, Pushed::Number(_));
        if put {
            crash_point!("queue.put_unrung");
            core.items.ring(1);
            core.watches.ring(self.core.arena(), || core.is_idle());
        }
        Ok(put)
    }

    /// Puts the messages of a run, waiting for room until `deadline` (`None`: for ever). Those that
    /// are put are no longer in `run`, also if this fails.
    ///
    /// # Errors
    /// As [`Queue::put`].
    pub fn put_run(&self, run: &mut Run, deadline: Option<Instant>) -> Result<()> {
        while !run.is_empty() {
            if self.try_put_run(run, Patience::Wait)? == 0 {
                self.wait_for_room(deadline)?;
            }
        }
        Ok(())
    }

    /// Puts those messages at the front of `run` that there is room for now, and takes them off it;
    /// says how many. They cost one lock, and sleepers are woken once.
    ///
    /// # Errors
    /// `is_arena_full`, if not even one could be put.
    pub fn try_put_run(&self, run: &mut Run, patience: Patience) -> Result<usize> {
        let core = &*self.core;
        let room = |count: u64| match core.tally.is_open() {
            true => core.bound.saturating_sub(count),
            false => 0,
        };
        let put = core.log.push_run(self.core.arena(), run, patience, room)?;
        if put > 0 {
            crash_point!("queue.put_unrung");
            core.items.ring(u32::try_from(put).unwrap_or(u32::MAX));
            core.watches.ring(self.core.arena(), || core.is_idle());
        }
        Ok(put)
    }

    /// Waits until there may be room.
    ///
    /// # Errors
    /// `is_closed` if the queue was shut, `is_full` when the deadline passes, `is_interrupted`.
    pub fn wait_for_room(&self, deadline: Option<Instant>) -> Result<()> {
        let core = &*self.core;
        if !core.tally.is_open() {
            return Err(shut_error());
        }
        // A consumer that was killed may have left the count too high.
        core.log.settle(self.core.arena())?;
        let ready = || {
            let count = core.log.puts().saturating_sub(core.log.gets());
            count < core.bound || !core.tally.is_open()
        };
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
    /// `is_closed` if the queue was shut and has nothing more, `is_empty` when the deadline passes,
    /// `is_interrupted`, `is_corrupt`.
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
        let log = &self.core.log;
        let message = log.pop_claimed(self.core.arena(), |number| self.claim(number))?;
        if message.is_some() {
            self.taken(1);
        }
        Ok(message.filter(|message| !self.core.tally.is_discarded(message.number)))
    }

    /// The fast form of [`Queue::try_get`]: copies the message's inline bytes over `bytes`.
    ///
    /// # Errors
    /// `is_corrupt`.
    #[inline]
    pub fn try_get_into(&self, bytes: &mut Vec<u8>, patience: Patience) -> Result<Option<Taken>> {
        let arena = self.core.arena();
        let claim = |number| self.claim(number);
        let log = &self.core.log;
        let Some(taken) = log.pop_claimed_into(arena, bytes, patience, claim)? else {
            return Ok(None);
        };
        self.taken(1);
        if self.core.tally.is_discarded(taken.number) {
            // Takes over its buffers and frees them.
            return taken.into_message(arena, Vec::new()).map(|_| None);
        }
        Ok(Some(taken))
    }

    /// Takes messages that are there now and appends them to `run`: up to `most`, and no more once
    /// they have brought `size` bytes; none with buffers or a tag that is not `wanted`. They cost one
    /// lock. Says how many: 0 does not mean that there are none.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn try_get_run(
        &self,
        run: &mut Run,
        most: usize,
        size: usize,
        wanted: impl Fn(u16) -> bool,
    ) -> Result<usize> {
        let core = &*self.core;
        let (taken, first) = core.log.pop_run(
            self.core.arena(),
            run,
            most,
            size,
            wanted,
            |first, count| self.claim_all(first, count),
        )?;
        if taken > 0 {
            self.taken(taken);
        }
        // A queue is shut under its locks: all of them are thrown away, or none.
        if taken > 0 && core.tally.is_discarded(first) {
            run.clear();
            return Ok(0);
        }
        Ok(taken)
    }

    /// Writes down who takes the message, while nobody else can.
    #[inline]
    fn claim(&self, number: u64) {
        self.claim_all(number, 1);
    }

    /// As `claim`, for `count` messages from number `first` on, of which all or none are discarded.
    #[inline]
    fn claim_all(&self, first: u64, count: usize) {
        let core = &*self.core;
        if !core.tally.is_discarded(first) {
            (0..count).for_each(|_| core.work.take(self.core.arena()));
        }
    }

    #[inline]
    fn taken(&self, count: usize) {
        crash_point!("queue.taken_unrung");
        if self.core.bound != u64::MAX {
            let count = u32::try_from(count).unwrap_or(u32::MAX);
            self.core.room.ring(count);
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
            watch.settle(&core.watches, arena, || core.is_idle());
        }
    }

    /// A descriptor that is readable while there is something to take, as far as this process
    /// knows (another consumer may be faster), and once the queue was shut. Closed with the queue's last clone in this process.
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
        own.settle(&core.watches, arena, || core.is_idle());
        Ok(own.fd().as_raw_fd())
    }

    /// Waits until there may be something to take.
    ///
    /// # Errors
    /// `is_closed` if the queue was shut and has nothing more, `is_empty` when the deadline passes,
    /// `is_interrupted`.
    pub fn wait_for_item(&self, deadline: Option<Instant>) -> Result<()> {
        let core = &*self.core;
        // Before the count: nothing is put after it.
        let is_open = core.tally.is_open();
        // Exact: a producer that was killed may have left the count too low.
        let len = self.len()?;
        if !is_open {
            return if len > 0 { Ok(()) } else { Err(shut_error()) };
        }
        core.items
            .wait(|| !core.is_idle(), deadline)
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
        let core = &*self.core;
        core.log.settled(self.core.arena(), |puts, gets| {
            if matches!(core.tally.phase(), Phase::Discarded { .. }) {
                0
            } else {
                puts.saturating_sub(gets)
            }
        })
    }

    /// Whether a `get` would return or fail at once.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn is_ready(&self) -> Result<bool> {
        Ok(self.is_shut() || !self.is_empty()?)
    }

    /// Ends the queue for everybody: from now on each `put` fails by `is_closed`, and each `get` as
    /// soon as the queue is empty. With `discard` it is so at once: what nobody has taken is thrown
    /// away and counts as done. Wakes all who wait. Not to be undone; again, with `discard`, it
    /// throws away what is left.
    ///
    /// A process killed in the middle of it leaves the queue open or shut, as if it had not begun
    /// or had finished.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn shutdown(&self, discard: bool) -> Result<()> {
        let core = &*self.core;
        let arena = self.core.arena();
        core.log
            .settled(arena, |_, gets| core.tally.end(discard, gets))?;
        crash_point!("queue.shut_unrung");
        core.items.ring(u32::MAX);
        core.room.ring(u32::MAX);
        core.tally.ring();
        core.watches.ring(arena, || core.is_idle());
        if discard {
            // Only to give the memory back: nobody gets these any more.
            while core.log.pop(arena)?.is_some() {}
        }
        Ok(())
    }

    /// Whether the queue was shut, by whomever.
    pub fn is_shut(&self) -> bool {
        !self.core.tally.is_open()
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
        let arena = self.core.arena();
        if core.work.done(arena, &core.tally, core.log.puts()) {
            return Ok(());
        }
        Err(Error::new(
            Kind::Invalid,
            "task_done() was called more often than there were items put",
        ))
    }

    /// What `from` has taken and not reported, in a [`joinable`](Queue::joinable) queue, counts as
    /// taken by this process: the other one ends, and somebody else will report it.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn inherit(&self, from: MemberId) -> Result<()> {
        let (core, arena) = (&*self.core, self.core.arena());
        core.log
            .settled(arena, |_, _| core.work.inherit(from, arena))
    }

    /// Messages that were put and not yet reported as done.
    pub fn unfinished(&self) -> u64 {
        self.core.tally.unfinished(self.core.log.puts())
    }

    /// Waits until every message ever put has been reported as done, or was thrown away, or, in a
    /// [`joinable`](Queue::joinable) queue, was taken by a process that died.
    ///
    /// # Errors
    /// `is_timeout`, `is_interrupted`.
    pub fn join(&self, deadline: Option<Instant>) -> Result<()> {
        let core = &*self.core;
        let arena = self.core.arena();
        core.log.settle(arena)?;
        let puts = || core.log.puts();
        let write_off = || core.write_off(arena);
        core.work
            .join(arena, &core.tally, puts, write_off, deadline)
    }
}

fn shut_error() -> Error {
    Error::new(Kind::Closed, "the queue was shut down")
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
