//! Segments of a log, and the records in them.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use crate::arena::{Arena, Offset, kind};
use crate::error::{Error, Result};

/// Bytes of the first segment of a log and of all others, their heads included.
pub(super) const FIRST: u64 = 4 * 1024;
pub(super) const USUAL: u64 = 60 * 1024;
pub(super) const HEAD: u64 = size_of::<Segment>() as u64;

/// A field on a cache line of its own.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Line<T>(pub(super) T);

#[repr(C)]
pub(super) struct Segment {
    /// The next segment; set once, together with its first message.
    pub(super) next: AtomicU64,
    /// The number of this segment's first message.
    pub(super) base: AtomicU64,
    pub(super) commit: Line<AtomicU64>,
    pub(super) read: Line<AtomicU64>,
}

/// A place in a segment: bytes (low half) and messages (high half).
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bytes: u32,
    pub(super) count: u32,
}

impl Place {
    pub(super) fn of(word: u64) -> Self {
        Self {
            bytes: word as u32,
            count: (word >> 32) as u32,
        }
    }

    pub(super) fn word(self) -> u64 {
        u64::from(self.count) << 32 | u64::from(self.bytes)
    }

    pub(super) fn after(self, bytes: u64) -> Self {
        self.after_all(1, bytes as usize)
    }

    pub(super) fn after_all(self, count: u32, bytes: usize) -> Self {
        Self {
            bytes: self.bytes.wrapping_add(bytes as u32),
            count: self.count.wrapping_add(count),
        }
    }
}

/// What a record begins with.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHead {
    pub(super) len: u32,
    pub(super) buffers: u16,
    pub(super) tag: u16,
}

impl RecordHead {
    pub(super) fn word(self) -> u64 {
        u64::from(self.len) | u64::from(self.buffers) << 32 | u64::from(self.tag) << 48
    }

    pub(super) fn of(word: u64) -> Self {
        Self {
            len: word as u32,
            buffers: (word >> 32) as u16,
            tag: (word >> 48) as u16,
        }
    }

    pub(super) fn size(self) -> u64 {
        8 + 8 * u64::from(self.buffers) + u64::from(self.len).next_multiple_of(8)
    }
}

impl Segment {
    /// The number of the message at `place`. Wraps around only in damaged memory.
    pub(super) fn number(&self, place: Place) -> u64 {
        self.base.load(Relaxed).wrapping_add(u64::from(place.count))
    }
}

/// A new segment, empty, whose first message has the number `base`.
pub(super) fn create(arena: &Arena, base: u64, len: u64) -> Result<Offset> {
    let offset = arena.alloc(kind::SEGMENT, len)?;
    let (segment, _) = segment_at(arena, offset)?;
    segment.next.store(0, Relaxed);
    segment.base.store(base, Relaxed);
    segment.commit.0.store(0, Relaxed);
    segment.read.0.store(0, Relaxed);
    Ok(offset)
}

/// A segment and the bytes it has for records.
pub(super) fn segment_at(arena: &Arena, offset: Offset) -> Result<(&'static Segment, u64)> {
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
pub(super) unsafe fn write_record(
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

/// Writes whole records.
///
/// # Safety
/// As [`write_record`].
pub(super) unsafe fn write_records(segment: &Segment, place: Place, records: &[u8]) {
    // SAFETY: the caller says that these bytes of the block are ours.
    unsafe {
        std::ptr::from_ref(segment)
            .cast::<u8>()
            .cast_mut()
            .add(HEAD as usize + place.bytes as usize)
            .copy_from_nonoverlapping(records.as_ptr(), records.len());
    }
}

/// A record that lies wholly before `commit`.
pub(super) struct Record<'a> {
    pub(super) head: RecordHead,
    /// From its head up to `commit`.
    whole: &'a [u8],
}

impl<'a> Record<'a> {
    pub(super) fn at(segment: &'a Segment, place: Place, commit: Place) -> Result<Self> {
        let damaged = || Error::corrupt("a record reaches past its segment's end");
        let room = u64::from(commit.bytes.saturating_sub(place.bytes));
        if !place.bytes.is_multiple_of(8) || room < 8 {
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
        Ok(Self { head, whole: body })
    }

    /// The bytes of the records from this one up to `len` bytes further on, their heads included.
    pub(super) fn span(&self, len: usize) -> Option<&'a [u8]> {
        self.whole.get(..len)
    }

    pub(super) fn handles(&self) -> Vec<u64> {
        self.whole[8..8 + 8 * usize::from(self.head.buffers)]
            .chunks_exact(8)
            .map(|c| u64::from_ne_bytes([c[0], c[1], c[2], c[3], c[4], c[5], c[6], c[7]]))
            .collect()
    }

    pub(super) fn bytes(&self) -> &'a [u8] {
        let start = 8 + 8 * usize::from(self.head.buffers);
        &self.whole[start..start + self.head.len as usize]
    }
}
