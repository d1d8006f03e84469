//! A chain of segments that carries messages from any producer to any consumer, in order.
//!
//! Unbounded, many producers and many consumers, no waiting: [`queue`](super::queue) and
//! [`pipe`](super::pipe) add bounds, sleeping and ends. How it survives the death of anybody is
//! told in `README.md` beside this file.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use crate::arena::{Arena, Buffer, Offset, buffer, kind};
use crate::error::{Error, Kind, Result};
use crate::sync::raw::{Guard, RawLock};

/// Payloads up to this size travel inside the segment, longer ones in a buffer of their own.
pub const INLINE: usize = crate::arena::MIN_BUFFER;

/// Bytes of the first segment and of all others, their heads included.
const FIRST_SEGMENT: u64 = 4 * 1024;
const SEGMENT: u64 = 60 * 1024;
const HEAD: u64 = size_of::<Segment>() as u64;

/// The message's bytes are in its last buffer, not in the record.
const IN_BUFFER: u16 = 1 << 15;

#[repr(C, align(64))]
#[derive(Debug)]
struct Line<T>(T);

/// The shared part of a log; all zeros is an empty one without segments.
#[repr(C)]
#[derive(Debug)]
pub struct Log {
    producers: Line<Producers>,
    consumers: Line<Consumers>,
}

#[repr(C)]
#[derive(Debug)]
struct Producers {
    lock: RawLock,
    /// The segment that is written to, 0 before the first message.
    tail: AtomicU64,
    /// Mirrors the number of messages ever put, and their bytes.
    puts: AtomicU64,
    bytes: AtomicU64,
}

#[repr(C)]
#[derive(Debug)]
struct Consumers {
    lock: RawLock,
    /// The segment that is read from, 0 before the first message.
    head: AtomicU64,
    /// Mirrors the number of messages ever taken, and their bytes.
    gets: AtomicU64,
    bytes: AtomicU64,
    /// `commit` of the head segment as last seen: spares a look at the producers' cache line.
    seen: AtomicU64,
}

#[repr(C)]
struct Segment {
    /// The next segment; set once, together with its first message.
    next: AtomicU64,
    /// The number of this segment's first message.
    base: AtomicU64,
    commit: Line<AtomicU64>,
    read: Line<AtomicU64>,
}

/// A place in a segment: bytes (low half) and messages (high half).
#[derive(Clone, Copy, PartialEq, Eq)]
struct Place {
    bytes: u32,
    count: u32,
}

impl Place {
    fn of(word: u64) -> Self {
        Self {
            bytes: word as u32,
            count: (word >> 32) as u32,
        }
    }

    fn word(self) -> u64 {
        u64::from(self.count) << 32 | u64::from(self.bytes)
    }

    fn after(self, bytes: u64) -> Self {
        Self {
            bytes: self.bytes + bytes as u32,
            count: self.count + 1,
        }
    }
}

/// What a record begins with.
#[derive(Clone, Copy, Debug)]
struct RecordHead {
    len: u32,
    buffers: u16,
    tag: u16,
}

impl RecordHead {
    fn word(self) -> u64 {
        u64::from(self.len) | u64::from(self.buffers) << 32 | u64::from(self.tag) << 48
    }

    fn of(word: u64) -> Self {
        Self {
            len: word as u32,
            buffers: (word >> 32) as u16,
            tag: (word >> 48) as u16,
        }
    }

    fn size(self) -> u64 {
        8 + 8 * u64::from(self.buffers) + u64::from(self.len).next_multiple_of(8)
    }
}

/// A message taken from a log.
#[derive(Debug)]
pub struct Message {
    /// How many messages were put before this one.
    pub number: u64,
    /// What the sender said about the bytes: 15 bits.
    pub tag: u16,
    /// The bytes that went along in buffers of their own, in order.
    pub buffers: Vec<Buffer>,
    payload: Payload,
}

#[derive(Debug)]
enum Payload {
    Inline(Vec<u8>),
    Buffer(Buffer),
}

impl Message {
    /// The message's bytes.
    pub fn bytes(&self) -> &[u8] {
        match &self.payload {
            Payload::Inline(bytes) => bytes,
            Payload::Buffer(buffer) => buffer,
        }
    }

    /// Whether the bytes came in the log itself, not in a buffer of their own.
    pub fn is_inline(&self) -> bool {
        matches!(self.payload, Payload::Inline(_))
    }

    /// The buffer that the bytes came in, if they did.
    pub fn into_buffer(self) -> Option<Buffer> {
        match self.payload {
            Payload::Inline(_) => None,
            Payload::Buffer(buffer) => Some(buffer),
        }
    }

    /// The message's bytes as a vector; copied only if they came in a buffer.
    pub fn into_vec(self) -> Vec<u8> {
        match self.payload {
            Payload::Inline(bytes) => bytes,
            Payload::Buffer(buffer) => buffer.to_vec(),
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

impl Log {
    /// An empty log. Memory of zeros is one, too.
    pub const fn new() -> Self {
        Self {
            producers: Line(Producers {
                lock: RawLock::new(),
                tail: AtomicU64::new(0),
                puts: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
            }),
            consumers: Line(Consumers {
                lock: RawLock::new(),
                head: AtomicU64::new(0),
                gets: AtomicU64::new(0),
                bytes: AtomicU64::new(0),
                seen: AtomicU64::new(0),
            }),
        }
    }

    /// Appends a message.
    ///
    /// `room` is asked under the producers' lock with the number of messages now in the log and
    /// their bytes; if it says no, nothing is put, and the letter may be posted again.
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
        let producers = &self.producers.0;
        let Some(guard) = patience.lock(&producers.lock, arena) else {
            return Ok(Pushed::Busy);
        };
        if guard.recovered || producers.tail.load(Relaxed) == 0 {
            self.repair_tail(arena)?;
        }
        let tail = producers.tail.load(Relaxed);
        let (segment, capacity) = segment_at(arena, tail)?;
        let place = Place::of(segment.commit.0.load(Relaxed));
        let number = segment.base.load(Relaxed) + u64::from(place.count);
        let bytes = producers.bytes.load(Relaxed);
        let in_log = number.saturating_sub(self.consumers.0.gets.load(Relaxed));
        let bytes_in_log = bytes.saturating_sub(self.consumers.0.bytes.load(Relaxed));
        if !room(in_log, bytes_in_log) {
            return Ok(Pushed::NoRoom);
        }
        let size = head.size();
        if u64::from(place.bytes) + size <= capacity {
            // SAFETY: `segment_at` checked that `capacity` bytes follow the head; what lies behind
            // `commit` is the producers', whose lock we hold.
            unsafe { write_record(segment, place, head, handles, parts) };
            // SYNC: pairs with the Acquire in `peek`. This store publishes the message.
            segment.commit.0.store(place.after(size).word(), Release);
        } else {
            let fresh = new_segment(arena, number, SEGMENT.max(size + HEAD))?;
            let (next, _) = segment_at(arena, fresh)?;
            let start = Place { bytes: 0, count: 0 };
            // SAFETY: a new segment with room for the record, which nobody else knows.
            unsafe { write_record(next, start, head, handles, parts) };
            next.commit.0.store(start.after(size).word(), Relaxed);
            // SYNC: pairs with the Acquire in `peek`. This store publishes segment and message.
            segment.next.store(fresh, Release);
            producers.tail.store(fresh, Relaxed);
        }
        producers
            .bytes
            .store(bytes + size + weight(arena, handles), Relaxed);
        // SYNC: pairs with the Acquire in `is_empty`.
        producers.puts.store(number + 1, Release);
        Ok(Pushed::Number(number))
    }

    /// Makes the producers' line agree with the segments after a death, or makes the first segment.
    #[cold]
    fn repair_tail(&self, arena: &'static Arena) -> Result<()> {
        let producers = &self.producers.0;
        let mut tail = producers.tail.load(Relaxed);
        if tail == 0 {
            // `head` is set first: killed in between, the next producer starts with it.
            tail = self.consumers.0.head.load(Acquire);
            if tail == 0 {
                tail = new_segment(arena, 0, FIRST_SEGMENT)?;
                // SYNC: pairs with the Acquire in `peek`.
                self.consumers.0.head.store(tail, Release);
            }
        }
        loop {
            let (segment, _) = segment_at(arena, tail)?;
            let next = segment.next.load(Acquire);
            if next == 0 {
                let count = Place::of(segment.commit.0.load(Relaxed)).count;
                let puts = segment.base.load(Relaxed) + u64::from(count);
                producers.tail.store(tail, Relaxed);
                producers.puts.store(puts, Release);
                return Ok(());
            }
            tail = next;
        }
    }

    /// Takes the oldest message, if there is one. Blocks for another consumer's copying only.
    ///
    /// # Errors
    /// `is_corrupt` if the shared memory was overwritten.
    pub fn pop(&self, arena: &'static Arena) -> Result<Option<Message>> {
        if self.is_empty() {
            return Ok(None);
        }
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
        claim: impl FnOnce(u64),
    ) -> Result<Option<Taken>> {
        if self.is_empty() {
            return Ok(None);
        }
        self.take(arena, bytes, Patience::Wait, claim)
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
        if self.is_empty() {
            return Ok(None);
        }
        self.take(arena, bytes, patience, |_| {})
    }

    fn take(
        &self,
        arena: &'static Arena,
        bytes: &mut Vec<u8>,
        patience: Patience,
        claim: impl FnOnce(u64),
    ) -> Result<Option<Taken>> {
        let consumers = &self.consumers.0;
        let Some(guard) = patience.lock(&consumers.lock, arena) else {
            return Ok(None);
        };
        if guard.recovered {
            self.repair_head(arena)?;
        }
        let Some((segment, place, commit)) = self.peek(arena)? else {
            return Ok(None);
        };
        let record = Record::at(segment, place, commit)?;
        let number = segment.base.load(Relaxed) + u64::from(place.count);
        let taken = Taken {
            number,
            tag: record.head.tag,
            handles: record.handles(),
        };
        bytes.clear();
        bytes.extend_from_slice(record.bytes());
        claim(number);
        let size = record.head.size();
        // SYNC: the copy above is done before the place is seen to move; producers never look.
        segment.read.0.store(place.after(size).word(), Release);
        consumers
            .bytes
            .store(consumers.bytes.load(Relaxed) + size, Relaxed);
        consumers.gets.store(number + 1, Release);
        Ok(Some(taken))
    }

    /// The segment and place of the oldest message. The consumers' lock is held.
    fn peek(&self, arena: &'static Arena) -> Result<Option<(&'static Segment, Place, Place)>> {
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

    /// Makes the consumers' line agree with the segments after a death.
    #[cold]
    fn repair_head(&self, arena: &'static Arena) -> Result<()> {
        let consumers = &self.consumers.0;
        consumers.seen.store(0, Relaxed);
        let head = consumers.head.load(Acquire);
        if head != 0 {
            let (segment, _) = segment_at(arena, head)?;
            let count = Place::of(segment.read.0.load(Relaxed)).count;
            let gets = segment.base.load(Relaxed) + u64::from(count);
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

    /// How many messages there are: exact, whoever was killed before. Takes both locks.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn len(&self, arena: &'static Arena) -> Result<u64> {
        let producers = self.producers.0.lock.guard(arena);
        if producers.recovered && self.producers.0.tail.load(Relaxed) != 0 {
            self.repair_tail(arena)?;
        }
        let consumers = self.consumers.0.lock.guard(arena);
        if consumers.recovered {
            self.repair_head(arena)?;
        }
        Ok(self.puts().saturating_sub(self.gets()))
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
    pub fn settle(&self, arena: &'static Arena) -> Result<()> {
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

/// What [`Log::pop_into`] says about the message whose bytes it copied.
#[derive(Debug)]
pub struct Taken {
    /// How many messages were put before this one.
    pub number: u64,
    tag: u16,
    handles: Vec<u64>,
}

impl Taken {
    /// What the sender said about the bytes.
    pub fn tag(&self) -> u16 {
        self.tag & !IN_BUFFER
    }

    /// Whether all of the message is in the bytes that were copied.
    pub fn is_plain(&self) -> bool {
        self.handles.is_empty()
    }

    /// The whole message, whose inline bytes are `bytes`.
    ///
    /// # Errors
    /// `is_corrupt` if one of its buffers is not there.
    pub fn into_message(self, arena: &'static Arena, bytes: Vec<u8>) -> Result<Message> {
        let mut buffers = Vec::with_capacity(self.handles.len());
        for &bits in &self.handles {
            buffers.push(Buffer::receive(arena, bits)?);
        }
        let payload = if self.tag & IN_BUFFER != 0 {
            Payload::Buffer(
                buffers
                    .pop()
                    .ok_or_else(|| Error::corrupt("a message without its payload"))?,
            )
        } else {
            Payload::Inline(bytes)
        };
        Ok(Message {
            number: self.number,
            tag: self.tag(),
            buffers,
            payload,
        })
    }
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

/// A message ready to be put, whose bytes are `parts` one after the other.
///
/// What is large has been copied into the arena already. May be tried as often as it takes; what
/// was not put is freed with it.
#[derive(Debug)]
pub struct Letter<'a> {
    arena: &'static Arena,
    head: RecordHead,
    /// What goes into the segment.
    parts: &'a [&'a [u8]],
    handles: Vec<u64>,
}

impl<'a> Letter<'a> {
    /// A message of `parts` and `buffers`, with 15 bits of `tag` for the receiver.
    ///
    /// # Errors
    /// `is_arena_full`; `is_too_large` for more than 65,534 buffers.
    #[inline]
    pub fn new(
        arena: &'static Arena,
        parts: &'a [&'a [u8]],
        tag: u16,
        buffers: Vec<Buffer>,
    ) -> Result<Self> {
        let len: usize = parts.iter().map(|p| p.len()).sum();
        let mut letter = Self {
            arena,
            head: RecordHead {
                len: len as u32,
                buffers: 0,
                tag: tag & !IN_BUFFER,
            },
            parts,
            handles: Vec::new(),
        };
        if len > INLINE || !buffers.is_empty() {
            letter.enclose(len, buffers)?;
        }
        Ok(letter)
    }

    #[cold]
    fn enclose(&mut self, len: usize, buffers: Vec<Buffer>) -> Result<()> {
        if buffers.len() + 1 >= usize::from(u16::MAX) {
            return Err(Error::new(
                Kind::TooLarge,
                format!(
                    "a message of {} buffers; it may bring at most 65,534",
                    buffers.len()
                ),
            ));
        }
        for buffer in buffers {
            self.handles.push(buffer.send()?);
        }
        if len > INLINE {
            self.handles
                .push(gather(self.arena, self.parts, len)?.send()?);
            self.head.len = 0;
            self.head.tag |= IN_BUFFER;
            self.parts = &[];
        }
        self.head.buffers = self.handles.len() as u16;
        Ok(())
    }
}

impl Drop for Letter<'_> {
    fn drop(&mut self) {
        for &bits in &self.handles {
            buffer::discard(self.arena, bits);
        }
    }
}

/// Bytes of a message's buffers.
fn weight(arena: &Arena, handles: &[u64]) -> u64 {
    handles.iter().map(|&bits| buffer::len(arena, bits)).sum()
}

fn gather(arena: &'static Arena, parts: &[&[u8]], len: usize) -> Result<Buffer> {
    let mut whole = Buffer::new(arena, len)?;
    let mut at = 0;
    for part in parts {
        whole[at..at + part.len()].copy_from_slice(part);
        at += part.len();
    }
    Ok(whole)
}

fn new_segment(arena: &Arena, base: u64, len: u64) -> Result<Offset> {
    let offset = arena.alloc(kind::SEGMENT, len)?;
    let (segment, _) = segment_at(arena, offset)?;
    segment.next.store(0, Relaxed);
    segment.base.store(base, Relaxed);
    segment.commit.0.store(0, Relaxed);
    segment.read.0.store(0, Relaxed);
    Ok(offset)
}

/// A segment and the bytes it has for records.
fn segment_at(arena: &Arena, offset: Offset) -> Result<(&'static Segment, u64)> {
    let (payload, len) = arena.part(offset, kind::SEGMENT)?;
    if len < HEAD {
        return Err(Error::corrupt("a segment is too short"));
    }
    // SAFETY: a live block with room for the head, aligned to 64; a head is atomics only. It stays
    // mapped for ever, so that even a stale reference reads nothing worse than wrong numbers.
    Ok((unsafe { &*payload.cast::<Segment>() }, len - HEAD))
}

/// # Safety
/// Behind the segment's head there is room for the record at `place`, and nobody else uses it.
unsafe fn write_record(
    segment: &Segment,
    place: Place,
    head: RecordHead,
    handles: &[u64],
    parts: &[&[u8]],
) {
    // SAFETY: the caller says that the record's bytes are ours and inside the block.
    unsafe {
        let mut at = std::ptr::from_ref(segment)
            .cast::<u8>()
            .cast_mut()
            .add(HEAD as usize + place.bytes as usize);
        at.cast::<u64>().write(head.word());
        at = at.add(8);
        for &handle in handles {
            at.cast::<u64>().write(handle);
            at = at.add(8);
        }
        for part in parts {
            at.copy_from_nonoverlapping(part.as_ptr(), part.len());
            at = at.add(part.len());
        }
    }
}

/// A record that lies wholly before `commit`.
struct Record<'a> {
    head: RecordHead,
    body: &'a [u8],
}

impl<'a> Record<'a> {
    fn at(segment: &'a Segment, place: Place, commit: Place) -> Result<Self> {
        let damaged = || Error::corrupt("a record reaches past its segment's end");
        let room = u64::from(commit.bytes.saturating_sub(place.bytes));
        if place.bytes % 8 != 0 || room < 8 {
            return Err(damaged());
        }
        // SAFETY: `commit` was checked to lie inside the segment, and `place` lies before it; what
        // lies before `commit` is not written any more until the segment is freed.
        let body = unsafe {
            let start = std::ptr::from_ref(segment)
                .cast::<u8>()
                .add(HEAD as usize + place.bytes as usize);
            std::slice::from_raw_parts(start, room as usize)
        };
        let (first, _) = body.split_first_chunk::<8>().ok_or_else(damaged)?;
        let head = RecordHead::of(u64::from_ne_bytes(*first));
        if head.size() > room {
            return Err(damaged());
        }
        Ok(Self {
            head,
            body: &body[8..],
        })
    }

    fn handles(&self) -> Vec<u64> {
        self.body[..8 * usize::from(self.head.buffers)]
            .chunks_exact(8)
            .map(|c| u64::from_ne_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]))
            .collect()
    }

    fn bytes(&self) -> &'a [u8] {
        let start = 8 * usize::from(self.head.buffers);
        &self.body[start..start + self.head.len as usize]
    }
}
