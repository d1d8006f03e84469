//! Small messages, one after the other, as they lie in a segment.
//!
//! Put and taken as a whole they cost one lock, one copy and one publication for many.

use std::sync::atomic::Ordering::{Relaxed, Release};

use super::log::{Log, Patience};
use super::message::{IN_BUFFER, INLINE};
use super::segment::{self, Place, Record, RecordHead, segment_at};
use crate::arena::Arena;
use crate::error::{Error, Result};
use crate::fault::crash_point;

// Each message of a run fits into a segment of the usual size.
const _: () = assert!(8 + INLINE as u64 <= segment::USUAL - segment::HEAD);

/// Small messages without buffers, in order.
///
/// To be put: [`add`](Self::add) them, then [`Queue::put_run`](super::Queue::put_run), which takes those
/// off the front that are put. Taken: [`Queue::try_get_run`](super::Queue::try_get_run) appends, and
/// [`iter`](Self::iter) tells of all.
#[derive(Debug, Default)]
pub struct Run {
    /// Records, each padded to 8 bytes.
    records: Vec<u8>,
    /// Bytes of those at the front that have been put.
    begin: usize,
    /// Messages that have not been put.
    count: usize,
}

impl Run {
    /// Messages, and bytes, to put or take at a time: others wait for that long at most.
    pub const MOST: usize = 256;
    /// See [`MOST`](Self::MOST).
    pub const MOST_BYTES: usize = 32 * 1024;
    /// Bytes of a message above which copying them once more costs more than a lock of its own.
    pub const SMALL: usize = 1024;

    /// A run without messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a message; false if it is too large for a run.
    #[inline]
    pub fn add(&mut self, bytes: &[u8], tag: u16) -> bool {
        if bytes.len() > INLINE {
            return false;
        }
        let head = RecordHead {
            len: bytes.len() as u32,
            buffers: 0,
            tag: tag & !IN_BUFFER,
        };
        let end = self.records.len() + head.size() as usize;
        self.records.extend_from_slice(&head.word().to_ne_bytes());
        self.records.extend_from_slice(bytes);
        self.records.resize(end, 0);
        self.count += 1;
        true
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes that the messages take in the log.
    pub fn size(&self) -> usize {
        self.records.len() - self.begin
    }

    /// Whether it is time to put the messages.
    pub fn is_full(&self) -> bool {
        self.count >= Self::MOST || self.size() >= Self::MOST_BYTES
    }

    /// Forgets all messages, and keeps the memory.
    pub fn clear(&mut self) {
        self.records.clear();
        (self.begin, self.count) = (0, 0);
    }

    /// The messages: tag and bytes of each.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &[u8])> {
        let mut rest = &self.records[self.begin..];
        std::iter::from_fn(move || {
            let (head, body, after) = split(rest)?;
            rest = after;
            Some((head.tag, body))
        })
    }

    /// The messages at the front that fit into `room` bytes, at most `most`: their number and bytes.
    fn fitting(&self, room: u64, most: u64) -> (u32, &[u8]) {
        let all = &self.records[self.begin..];
        if all.len() as u64 <= room && self.count as u64 <= most {
            return (self.count as u32, all);
        }
        let (mut count, mut rest) = (0, all);
        while u64::from(count) < most
            && let Some((_, _, after)) = split(rest)
            && (all.len() - after.len()) as u64 <= room
        {
            (count, rest) = (count + 1, after);
        }
        (count, &all[..all.len() - rest.len()])
    }

    /// So many messages at the front, of so many bytes, have been put.
    fn put(&mut self, count: u32, bytes: usize) {
        self.begin += bytes;
        self.count -= count as usize;
    }
}

/// The first record's head and bytes, and the records behind it; `None` at the end.
#[inline]
fn split(records: &[u8]) -> Option<(RecordHead, &[u8], &[u8])> {
    let (word, body) = records.split_first_chunk()?;
    let head = RecordHead::of(u64::from_ne_bytes(*word));
    let (body, rest) = body.split_at_checked(head.size() as usize - 8)?;
    Some((head, body.get(..head.len as usize)?, rest))
}

impl Log {
    /// Appends the messages at the front of `run` and takes them off it; says how many. `room` is
    /// asked for how many there is room beside those in the log.
    ///
    /// # Errors
    /// `is_arena_full`, `is_corrupt`, if not even one could be put.
    pub(super) fn push_run(
        &self,
        arena: &'static Arena,
        run: &mut Run,
        patience: Patience,
        room: impl Fn(u64) -> u64,
    ) -> Result<usize> {
        let Some(_guard) = self.produce(arena, patience)? else {
            return Ok(0);
        };
        let mut put = 0;
        while !run.is_empty() {
            match self.append_run(arena, run, &room) {
                Ok(0) => break,
                Ok(more) => put += more,
                Err(error) if put == 0 => return Err(error),
                // It comes again with the next call.
                Err(_) => break,
            }
        }
        Ok(put)
    }

    /// Appends what fits into one segment, with the producers' lock held.
    fn append_run(
        &self,
        arena: &'static Arena,
        run: &mut Run,
        room: impl Fn(u64) -> u64,
    ) -> Result<usize> {
        let producers = &self.producers.0;
        let (segment, capacity) = segment_at(arena, producers.tail.load(Relaxed))?;
        let place = Place::of(segment.commit.0.load(Relaxed));
        let number = segment.number(place);
        if !place.bytes.is_multiple_of(8) {
            return Err(Error::corrupt(
                "a segment's end is not where a record can be",
            ));
        }
        let mut most = room(producers.length(number));
        if most < run.count as u64 {
            self.look_at_consumers();
            most = room(producers.length(number));
        }
        if most == 0 {
            return Ok(0);
        }
        let (mut count, mut records) =
            run.fitting(capacity.saturating_sub(u64::from(place.bytes)), most);
        if count > 0 {
            // SAFETY: `segment_at` checked that `capacity` bytes follow the head; what lies behind
            // `commit` is the producers', whose lock we hold.
            unsafe { segment::write_records(segment, place, records) };
            crash_point!("run.written");
            let end = place.after_all(count, records.len());
            // SYNC: pairs with the Acquire in `peek`. This store publishes the messages.
            segment.commit.0.store(end.word(), Release);
        } else {
            (count, records) = run.fitting(segment::USUAL - segment::HEAD, most);
            let fresh = segment::create(arena, number, segment::USUAL)?;
            let (next, _) = segment_at(arena, fresh)?;
            let start = Place { bytes: 0, count: 0 };
            // SAFETY: a new segment of the usual size, which nobody else knows.
            unsafe { segment::write_records(next, start, records) };
            let end = start.after_all(count, records.len());
            next.commit.0.store(end.word(), Relaxed);
            crash_point!("run.segment_unlinked");
            // SYNC: pairs with the Acquire in `peek`. This store publishes segment and messages.
            segment.next.store(fresh, Release);
            crash_point!("run.segment_linked");
            producers.tail.store(fresh, Relaxed);
        }
        let len = records.len();
        let bytes = producers.bytes.load(Relaxed);
        producers
            .bytes
            .store(bytes.wrapping_add(len as u64), Relaxed);
        crash_point!("run.uncounted");
        // SYNC: pairs with the Acquire in `is_empty`.
        let puts = number.wrapping_add(u64::from(count));
        producers.puts.store(puts, Release);
        run.put(count, len);
        Ok(count as usize)
    }

    /// Takes the oldest messages and appends them to `run`: up to `most`, and no more once they have
    /// brought `size` bytes, from one segment, up to one that has buffers or a tag that is not
    /// `wanted`. Says how many, and the number of the first; `claim` is told both before they leave
    /// the log, while nobody else can take them.
    ///
    /// # Errors
    /// `is_corrupt`; nothing is taken then.
    pub(super) fn pop_run(
        &self,
        arena: &'static Arena,
        run: &mut Run,
        most: usize,
        size: usize,
        wanted: impl Fn(u16) -> bool,
        claim: impl FnOnce(u64, usize),
    ) -> Result<(usize, u64)> {
        if self.has_nothing() {
            return Ok((0, 0));
        }
        let Some(_guard) = self.consume(arena, Patience::Wait)? else {
            return Ok((0, 0));
        };
        let Some((segment, place, commit)) = self.peek(arena)? else {
            return Ok((0, 0));
        };
        let first = Record::at(segment, place, commit)?;
        let (mut end, mut count, mut len) = (place, 0, 0);
        while count < most && len < size && end.bytes < commit.bytes {
            let head = Record::at(segment, end, commit)?.head;
            if head.buffers != 0 || !wanted(head.tag) {
                break;
            }
            end = end.after(head.size());
            count += 1;
            len += head.size() as usize;
        }
        if count == 0 {
            return Ok((0, 0));
        }
        let records = first
            .span(len)
            .ok_or_else(|| Error::corrupt("records reach past their segment's end"))?;
        run.records.extend_from_slice(records);
        run.count += count;
        crash_point!("run.copied");
        let number = segment.number(place);
        claim(number, count);
        // SYNC: the copy above is done before the place is seen to move; producers never look.
        segment.read.0.store(end.word(), Release);
        crash_point!("run.read_moved");
        let consumers = &self.consumers.0;
        let bytes = consumers.bytes.load(Relaxed);
        consumers
            .bytes
            .store(bytes.wrapping_add(len as u64), Relaxed);
        crash_point!("run.taken_uncounted");
        consumers.gets.store(segment.number(end), Release);
        Ok((count, number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_added_comes_back() {
        let mut run = Run::new();
        assert!(run.is_empty() && run.iter().next().is_none());
        let bodies: [&[u8]; 4] = [b"", b"one", b"12345678", b"longer than a word"];
        for (tag, body) in (0..).zip(bodies) {
            assert!(run.add(body, tag));
        }
        assert!(!run.add(&vec![0; INLINE + 1], 0));
        assert_eq!(run.len(), 4);
        assert!(run.iter().eq((0..).zip(bodies)));
        assert_eq!(run.size(), 8 + 16 + 16 + 32);
        assert_eq!(run.fitting(1000, 1000).0, 4);
        assert_eq!(run.fitting(1000, 3).0, 3);
        assert_eq!(run.fitting(39, 9).0, 2);
        let (count, bytes) = run.fitting(40, 9);
        assert_eq!((count, bytes.len()), (3, 40));
        run.put(3, 40);
        assert!(run.iter().eq([(3, bodies[3])]));
        assert_eq!(run.fitting(31, 9), (0, &[][..]));
    }
}
