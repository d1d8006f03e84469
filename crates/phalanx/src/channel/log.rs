//! A chain of segments that carries messages from any producer to any consumer, in order.
//!
//! Unbounded, many producers and many consumers, no waiting: [`queue`](super::queue) and
//! [`pipe`](super::pipe) add bounds, sleeping and ends. How it survives the death of anybody is
//! told in `README.md` beside this file.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::message::{Letter, Message, Taken, weight};
use super::segment::{self, Line, Place, Record, Segment, segment_at};
use crate::arena::{Arena, buffer, kind};
use crate::error::{Error, Result};
use crate::fault::crash_point;
use crate::sync::owner::Members;
use crate::sync::raw::{Guard, RawLock};

/// The shared part of a log; all zeros is an empty one without segments.
#[repr(C)]
#[derive(Debug)]
pub struct Log {
    pub(super) producers: Line<Producers>,
    pub(super) consumers: Line<Consumers>,
}

#[repr(C)]
#[derive(Debug)]
pub(super) struct Producers {
    lock: RawLock,
    /// The segment that is written to, 0 before the first message.
    pub(super) tail: AtomicU64,
    /// Mirrors the number of messages ever put, and their bytes.
    pub(super) puts: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// The consumers' `gets` and `bytes` as last seen: as long as there is room by these, their
    /// cache line need not be looked at. They make the log seem longer than it is, never shorter.
    gets_seen: AtomicU64,
    bytes_seen: AtomicU64,
}

#[repr(C)]
#[derive(Debug)]
pub(super) struct Consumers {
    lock: RawLock,
    /// The segment that is read from, 0 before the first message.
    head: AtomicU64,
    /// Mirrors the number of messages ever taken, and their bytes.
    pub(super) gets: AtomicU64,
    pub(super) bytes: AtomicU64,
    /// `commit` of the head segment, and the producers' `puts`, as last seen: as long as there is
    /// something to take by these, the producers' cache lines need not be looked at.
    seen: AtomicU64,
    puts_seen: AtomicU64,
}

/// How long to wait for another process that is at the same end of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Not at all: give up if somebody is there.
    Now,
    /// As long as it lives.
    Wait,
}

impl Patience {
    #[inline]
    fn lock<'a>(self, lock: &'a RawLock, arena: &Arena) -> Option<Guard<'a>> {
        match self {
            Self::Now => lock.try_guard(arena),
            Self::Wait => Some(lock.guard(arena)),
        }
    }
}

/// What became of a [`Log::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// The message is in the log; so many were put before it.
    Number(u64),
    /// There is no room for it.
    NoRoom,
    /// Another producer is at it, and there was no patience.
    Busy,
}

impl Producers {
    /// Messages in the log if `puts` were put: by what was last seen of the consumers, not too few.
    pub(super) fn length(&self, puts: u64) -> u64 {
        puts.saturating_sub(self.gets_seen.load(Relaxed))
    }

    /// The same for their bytes.
    fn pending(&self, bytes: u64) -> u64 {
        bytes.saturating_sub(self.bytes_seen.load(Relaxed))
    }
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// An empty log. Memory of zeros is one, too.
    pub fn new() -> Self {
        Self {
            producers: Line(Producers {
                lock: RawLock::new(),
                tail: AtomicU64::new(0),
                puts: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                gets_seen: AtomicU64::new(0),
                bytes_seen: AtomicU64::new(0),
            }),
            consumers: Line(Consumers {
                lock: RawLock::new(),
                head: AtomicU64::new(0),
                gets: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                seen: AtomicU64::new(0),
                puts_seen: AtomicU64::new(0),
            }),
        }
    }

    /// Appends a message.
    ///
    /// `room` is asked under the producers' lock with the number of messages in the log and their
    /// bytes, at first by what was last seen of the consumers, which may be too many; if it says no
    /// to the numbers of now, nothing is put, and the letter may be posted again.
    ///
    /// # Errors
    /// `is_arena_full`, `is_corrupt`; nothing is put then.
    #[inline]
    pub fn push(
        &self,
        letter: &mut Letter<'_>,
        patience: Patience,
        room: impl Fn(u64, u64) -> bool,
    ) -> Result<Pushed> {
        let pushed = self.append(letter, patience, room)?;
        if let Pushed::Number(_) = pushed {
            // The buffers are the message's now.
            letter.handles.clear();
        }
        Ok(pushed)
    }

    fn append(
        &self,
        letter: &Letter<'_>,
        patience: Patience,
        room: impl Fn(u64, u64) -> bool,
    ) -> Result<Pushed> {
        let Letter {
            arena,
            head,
            parts,
            ref handles,
        } = *letter;
        let Some(_guard) = self.produce(arena, patience)? else {
            return Ok(Pushed::Busy);
        };
        let producers = &self.producers.0;
        let tail = producers.tail.load(Relaxed);
        let (segment, capacity) = segment_at(arena, tail)?;
        let place = Place::of(segment.commit.0.load(Relaxed));
        let number = segment.number(place);
        let bytes = producers.bytes.load(Relaxed);
        if !room(producers.length(number), producers.pending(bytes)) {
            self.look_at_consumers();
            if !room(producers.length(number), producers.pending(bytes)) {
                return Ok(Pushed::NoRoom);
            }
        }
        let size = head.size();
        if !place.bytes.is_multiple_of(8) {
            return Err(Error::corrupt(
                "a segment's end is not where a record can be",
            ));
        }
        crash_point!("log.push_locked");
        if u64::from(place.bytes) + size <= capacity {
            // SAFETY: `segment_at` checked that `capacity` bytes follow the head; what lies behind
            // `commit` is the producers', whose lock we hold.
            unsafe { segment::write_record(segment, place, head, handles, parts) };
            crash_point!("log.written");
            buffer::hand_over(arena, handles, None);
            crash_point!("buffer.in_transit");
            // SYNC: pairs with the Acquire in `peek`. This store publishes the message.
            segment.commit.0.store(place.after(size).word(), Release);
        } else {
            let fresh = segment::create(arena, number, segment::USUAL.max(size + segment::HEAD))?;
            let (next, _) = segment_at(arena, fresh)?;
            let start = Place { bytes: 0, count: 0 };
            // SAFETY: a new segment with room for the record, which nobody else knows.
            unsafe { segment::write_record(next, start, head, handles, parts) };
            next.commit.0.store(start.after(size).word(), Relaxed);
            crash_point!("log.segment_unlinked");
            buffer::hand_over(arena, handles, None);
            // SYNC: pairs with the Acquire in `peek`. This store publishes segment and message.
            segment.next.store(fresh, Release);
            crash_point!("log.segment_linked");
            producers.tail.store(fresh, Relaxed);
        }
        producers.bytes.store(
            bytes
                .wrapping_add(size)
                .wrapping_add(weight(arena, handles)),
            Relaxed,
        );
        crash_point!("log.uncounted");
        // SYNC: pairs with the Acquire in `is_empty`.
        producers.puts.store(number.wrapping_add(1), Release);
        Ok(Pushed::Number(number))
    }

    /// Brings up to date what the producers have seen of the consumers. Their lock is held.
    pub(super) fn look_at_consumers(&self) {
        let (producers, consumers) = (&self.producers.0, &self.consumers.0);
        let gets = consumers.gets.load(Relaxed);
        producers.gets_seen.store(gets, Relaxed);
        let bytes = consumers.bytes.load(Relaxed);
        producers.bytes_seen.store(bytes, Relaxed);
    }

    /// The producers' lock, if there is patience for it, with everything behind it in order.
    #[inline]
    pub(super) fn produce(&self, arena: &Arena, patience: Patience) -> Result<Option<Guard<'_>>> {
        let producers = &self.producers.0;
        let Some(guard) = patience.lock(&producers.lock, arena) else {
            return Ok(None);
        };
        if guard.recovered || producers.tail.load(Relaxed) == 0 {
            self.repair_tail(arena)?;
        }
        Ok(Some(guard))
    }

    /// Makes the producers' line agree with the segments after a death, or makes the first segment.
    #[cold]
    fn repair_tail(&self, arena: &Arena) -> Result<()> {
        let producers = &self.producers.0;
        let mut tail = producers.tail.load(Relaxed);
        if tail == 0 {
            // `head` is set first: killed in between, the next producer starts with it.
            tail = self.consumers.0.head.load(Acquire);
            if tail == 0 {
                tail = segment::create(arena, 0, segment::FIRST)?;
                // SYNC: pairs with the Acquire in `peek`.
                self.consumers.0.head.store(tail, Release);
            }
        }
        for _ in 0..arena.most_links() {
            let (segment, _) = segment_at(arena, tail)?;
            let next = segment.next.load(Acquire);
            if next == 0 {
                let puts = segment.number(Place::of(segment.commit.0.load(Relaxed)));
                producers.tail.store(tail, Relaxed);
                producers.puts.store(puts, Release);
                return Ok(());
            }
            tail = next;
        }
        Err(Error::corrupt("a log's segments form a ring"))
    }

    /// Takes the oldest message, if there is one. Blocks for another consumer's copying only.
    ///
    /// # Errors
    /// `is_corrupt` if the shared memory was overwritten.
    pub fn pop(&self, arena: &'static Arena) -> Result<Option<Message>> {
        self.pop_claimed(arena, |_| {})
    }

    /// As [`Log::pop`]; `claim` is called with the message's number before it leaves the log, while
    /// nobody else can take it: if this process is killed after `claim`, the message has either
    /// left the log or is still there under that number.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn pop_claimed(
        &self,
        arena: &'static Arena,
        claim: impl FnOnce(u64),
    ) -> Result<Option<Message>> {
        if self.has_nothing() {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        match self.take(arena, &mut bytes, Patience::Wait, claim)? {
            Some(taken) => taken.into_message(arena, bytes).map(Some),
            None => Ok(None),
        }
    }

    /// As [`Log::pop_claimed`], with the message's inline bytes copied over `bytes`.
    ///
    /// # Errors
    /// `is_corrupt`.
    #[inline]
    pub fn pop_claimed_into(
        &self,
        arena: &'static Arena,
        bytes: &mut Vec<u8>,
        patience: Patience,
        claim: impl FnOnce(u64),
    ) -> Result<Option<Taken>> {
        if self.has_nothing() {
            return Ok(None);
        }
        self.take(arena, bytes, patience, claim)
    }

    /// Copies the oldest message's inline bytes over `bytes`. `None` if there is none, or if
    /// another consumer is at it and `patience` is [`Patience::Now`].
    ///
    /// The fast form of [`Log::pop`]: with a vector that is used again, nothing is allocated.
    ///
    /// # Errors
    /// `is_corrupt`.
    #[inline]
    pub fn pop_into(
        &self,
        arena: &'static Arena,
        bytes: &mut Vec<u8>,
        patience: Patience,
    ) -> Result<Option<Taken>> {
        self.pop_claimed_into(arena, bytes, patience, |_| {})
    }

    fn take(
        &self,
        arena: &'static Arena,
        bytes: &mut Vec<u8>,
        patience: Patience,
        claim: impl FnOnce(u64),
    ) -> Result<Option<Taken>> {
        let Some(_guard) = self.consume(arena, patience)? else {
            return Ok(None);
        };
        let consumers = &self.consumers.0;
        let Some((segment, place, commit)) = self.peek(arena)? else {
            return self.confirm_end(arena).map(|()| None);
        };
        let record = Record::at(segment, place, commit)?;
        let number = segment.number(place);
        let taken = Taken {
            number,
            tag: record.head.tag,
            handles: record.handles(),
        };
        bytes.clear();
        bytes.extend_from_slice(record.bytes());
        crash_point!("log.copied");
        claim(number);
        let size = record.head.size();
        // SYNC: the copy above is done before the place is seen to move; producers never look.
        segment.read.0.store(place.after(size).word(), Release);
        crash_point!("log.read_moved");
        buffer::hand_over(arena, &taken.handles, Some(arena.me()));
        let bytes_before = consumers.bytes.load(Relaxed);
        let weight = weight(arena, &taken.handles);
        consumers.bytes.store(
            bytes_before.wrapping_add(size).wrapping_add(weight),
            Relaxed,
        );
        crash_point!("log.taken_uncounted");
        consumers.gets.store(number.wrapping_add(1), Release);
        Ok(Some(taken))
    }

    /// The consumers' lock, if there is patience for it, with everything behind it in order.
    #[inline]
    pub(super) fn consume(&self, arena: &Arena, patience: Patience) -> Result<Option<Guard<'_>>> {
        let Some(guard) = patience.lock(&self.consumers.0.lock, arena) else {
            return Ok(None);
        };
        if guard.recovered {
            self.repair_head(arena)?;
        }
        Ok(Some(guard))
    }

    /// The segment and place of the oldest message. The consumers' lock is held.
    pub(super) fn peek(
        &self,
        arena: &'static Arena,
    ) -> Result<Option<(&'static Segment, Place, Place)>> {
        let consumers = &self.consumers.0;
        loop {
            // SYNC: pairs with the Release in `repair_tail`.
            let head = consumers.head.load(Acquire);
            if head == 0 {
                return Ok(None);
            }
            let (segment, capacity) = segment_at(arena, head)?;
            let place = Place::of(segment.read.0.load(Relaxed));
            let mut commit = Place::of(consumers.seen.load(Relaxed));
            if place.bytes >= commit.bytes {
                // SYNC: both pair with the Releases in `append`. `next` first: once it is set,
                // `commit` does not move any more.
                let next = segment.next.load(Acquire);
                commit = Place::of(segment.commit.0.load(Acquire));
                if place.bytes >= commit.bytes {
                    if next == 0 {
                        return Ok(None);
                    }
                    consumers.seen.store(0, Relaxed);
                    consumers.head.store(next, Release);
                    crash_point!("log.head_moved");
                    arena.free(head, kind::SEGMENT);
                    continue;
                }
                consumers.seen.store(commit.word(), Relaxed);
            }
            if u64::from(commit.bytes) > capacity {
                return Err(Error::corrupt("a segment's end lies outside it"));
            }
            return Ok(Some((segment, place, commit)));
        }
    }

    /// Checks that there is nothing to take, as [`Log::peek`] has said. The consumers' lock is held.
    #[cold]
    fn confirm_end(&self, arena: &'static Arena) -> Result<()> {
        let puts = self.puts();
        if puts > self.gets() && self.peek(arena)?.is_none() {
            self.repair_head(arena)?;
            if puts > self.gets() {
                return Err(Error::corrupt(
                    "a log's segments do not add up to its counts",
                ));
            }
        }
        Ok(())
    }

    /// Makes the consumers' line agree with the segments after a death.
    #[cold]
    fn repair_head(&self, arena: &Arena) -> Result<()> {
        let consumers = &self.consumers.0;
        consumers.seen.store(0, Relaxed);
        let head = consumers.head.load(Acquire);
        if head != 0 {
            let (segment, _) = segment_at(arena, head)?;
            let gets = segment.number(Place::of(segment.read.0.load(Relaxed)));
            if gets == self.producers.0.puts.load(Acquire) {
                // An empty log: the one moment at which the bytes are known again.
                consumers
                    .bytes
                    .store(self.producers.0.bytes.load(Relaxed), Relaxed);
            }
            consumers.gets.store(gets, Release);
        }
        Ok(())
    }

    /// Whether there was nothing to take, a moment ago. Takes no lock.
    #[inline]
    pub fn is_empty(&self) -> bool {
        // SYNC: pairs with the Release stores of `puts` and `gets`.
        let gets = self.consumers.0.gets.load(Acquire);
        self.producers.0.puts.load(Acquire) <= gets
    }

    /// As [`Log::is_empty`], without a look at the producers while there is something by what was
    /// last seen of them. `puts` only grows, so what was seen of it is never too large.
    #[inline]
    pub(super) fn has_nothing(&self) -> bool {
        let consumers = &self.consumers.0;
        // SYNC: `gets` pairs with its Release stores, `puts` with those of `append`.
        let gets = consumers.gets.load(Acquire);
        if gets < consumers.puts_seen.load(Relaxed) {
            return false;
        }
        let puts = self.producers.0.puts.load(Acquire);
        consumers.puts_seen.store(puts, Relaxed);
        puts <= gets
    }

    /// How many messages there are: exact, whoever was killed before. Takes both locks.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn len(&self, arena: &Arena) -> Result<u64> {
        self.settled(arena, |puts, gets| puts.saturating_sub(gets))
    }

    /// Calls `look` with the numbers of messages ever put and taken, exact, while nobody puts or
    /// takes any.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub(crate) fn settled<T>(&self, arena: &Arena, look: impl FnOnce(u64, u64) -> T) -> Result<T> {
        let _producers = self.producers.0.lock.guard(arena);
        if self.producers.0.tail.load(Relaxed) != 0 {
            self.repair_tail(arena)?;
        }
        let _consumers = self.consumers.0.lock.guard(arena);
        self.repair_head(arena)?;
        Ok(look(self.puts(), self.gets()))
    }

    /// How many messages were ever put.
    pub fn puts(&self) -> u64 {
        self.producers.0.puts.load(Acquire)
    }

    /// How many messages were ever taken. A message whose number is smaller has left the log.
    pub fn gets(&self) -> u64 {
        self.consumers.0.gets.load(Acquire)
    }

    /// Bytes of the messages in the log, their large buffers included.
    pub fn pending_bytes(&self) -> u64 {
        let taken = self.consumers.0.bytes.load(Relaxed);
        self.producers.0.bytes.load(Relaxed).saturating_sub(taken)
    }

    /// Brings the counters up to date if a process died in the middle of a `push` or `pop`.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn settle(&self, arena: &Arena) -> Result<()> {
        self.len(arena).map(|_| ())
    }

    /// Frees all segments and the buffers of messages never taken. Nobody else uses the log.
    pub(crate) fn clear(&self, arena: &Arena) {
        let mut at = self.consumers.0.head.swap(0, Acquire);
        self.producers.0.tail.store(0, Relaxed);
        while let Ok((segment, capacity)) = segment_at(arena, at) {
            let mut place = Place::of(segment.read.0.load(Relaxed));
            let commit = Place::of(segment.commit.0.load(Acquire));
            while place.bytes < commit.bytes && u64::from(commit.bytes) <= capacity {
                let Ok(record) = Record::at(segment, place, commit) else {
                    break;
                };
                record
                    .handles()
                    .iter()
                    .for_each(|&bits| buffer::discard(arena, bits));
                place = place.after(record.head.size());
            }
            let next = segment.next.load(Acquire);
            arena.free(at, kind::SEGMENT);
            at = next;
        }
    }
}
