//! What lies where in the arena.
//!
//! ```text
//! 0            Header: identity, limits, the end of the used part, one free list per size class
//! HEADER_SIZE  the member table: MEMBERS slots
//! HEAP         chunks, one after the other, up to Header::top
//!
//! chunk, small classes:  | Chunk (64) | Block (64) payload | Block (64) payload | ...
//! chunk, large classes:  | Block (64)  unused to PAGE | payload, page-aligned ... |
//! ```
//!
//! Chunks begin on page boundaries and say their own size, so that the heap can be walked from
//! [`HEAP`] to `top`: by the audit, by the report of a full arena, and by whoever gives back the
//! blocks of a dead member.

use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::os::memory::PAGE;
use crate::sync::raw::RawLock;

pub(super) const MAGIC: u64 = u64::from_le_bytes(*b"phalanx1");
pub(super) const CHUNK_MAGIC: u32 = 0x7068_6c78;
/// Slots of the member table: processes of a family at one time.
pub(super) const MEMBERS: usize = 4096;
pub(super) const CLASSES: usize = 160;
/// Every block begins with a [`Block`] of this size.
pub(super) const BLOCK_HEADER: u64 = 64;
/// From this class size on a block is a chunk of its own with a page-aligned payload.
pub(super) const LARGE: u64 = 64 * 1024;
pub(super) const HEADER_SIZE: u64 = 64 * 1024;
pub(super) const HEAP: u64 = HEADER_SIZE + (MEMBERS * size_of::<Slot>()) as u64;

/// The first page of the arena.
#[repr(C)]
pub(super) struct Header {
    pub(super) magic: AtomicU64,
    /// Random; tells the handles of one family from those of another.
    pub(super) family: AtomicU64,
    /// Bytes of address space and of the file.
    pub(super) span: AtomicU64,
    /// Bytes that blocks in use and warm free blocks may take together.
    pub(super) limit: AtomicU64,
    /// Bytes of large free blocks that may keep their pages.
    pub(super) warm_limit: AtomicU64,
    /// The first byte that no chunk has; moved by one store after the chunk's header is in place.
    pub(super) top: AtomicU64,
    pub(super) top_lock: RawLock,
    /// Where the search for a free member slot begins.
    pub(super) slot_hint: AtomicU32,
    /// Bytes of blocks in use. A process killed while it allocates may leave it off by a block.
    pub(super) used: AtomicU64,
    /// Bytes of large free blocks whose pages are still there.
    pub(super) warm: AtomicU64,
    /// When stale ones were last looked for, in seconds of the monotonic clock.
    pub(super) swept: AtomicU64,
    pub(super) classes: [Class; CLASSES],
}

/// The free blocks of one size.
#[repr(C, align(64))]
pub(super) struct Class {
    pub(super) lock: RawLock,
    /// Offset of the first free block, 0 if there is none.
    pub(super) head: AtomicU64,
    /// The part of the newest small chunk that was never used: next block and end.
    pub(super) fresh: AtomicU64,
    pub(super) fresh_end: AtomicU64,
}

/// The head of a chunk of small blocks. Shares its first fields with [`Block`].
#[repr(C, align(64))]
pub(super) struct Chunk {
    pub(super) magic: AtomicU32,
    pub(super) class: AtomicU32,
    /// Bytes of the whole chunk.
    pub(super) size: AtomicU64,
}

/// The head of a block.
#[repr(C, align(64))]
pub(super) struct Block {
    /// `CHUNK_MAGIC`, set once.
    pub(super) magic: AtomicU32,
    /// The size class, set once.
    pub(super) class: AtomicU32,
    /// Bytes of the chunk, if the block is one.
    pub(super) size: AtomicU64,
    /// What the block holds, `kind::FREE` if nothing.
    pub(super) kind: AtomicU32,
    /// Counts the lives of the block (24 bits), so that an old handle is told from a new one.
    pub(super) generation: AtomicU32,
    /// The member that the block belongs to alone, or that allocated it; 0: nobody (in transit).
    pub(super) owner: AtomicU32,
    /// Members that hold the object.
    pub(super) refs: AtomicU32,
    /// Bytes asked for.
    pub(super) len: AtomicU64,
    /// The next free block.
    pub(super) next: AtomicU64,
    /// 1 if the pages of this free block were given back.
    pub(super) cold: AtomicU32,
    /// When this free block, if it is large and warm, was freed, in seconds of the monotonic clock.
    pub(super) freed: AtomicU64,
}

/// One process of the family.
#[repr(C, align(64))]
pub(super) struct Slot {
    /// A [`super::member::SlotState`].
    pub(super) state: AtomicU32,
    pub(super) pid: AtomicU32,
    /// When the process took the slot, in clock ticks since boot: tells a reused pid. 0: unknown.
    pub(super) seen: AtomicU64,
    /// The first chunk of its references, 0 if none.
    pub(super) refs: AtomicU64,
    /// The member that reserved the slot, while it is reserved.
    pub(super) creator: AtomicU32,
    /// The member that reaps it, while it is reaped.
    pub(super) reaper: AtomicU32,
    /// When it was reserved, in seconds of the monotonic clock.
    pub(super) since: AtomicU64,
}

const _: () = {
    assert!(size_of::<Header>() as u64 <= HEADER_SIZE);
    assert!(size_of::<Block>() as u64 == BLOCK_HEADER);
    assert!(size_of::<Chunk>() as u64 == BLOCK_HEADER);
    assert!(size_of::<Slot>() == 64);
    assert!(HEAP.is_multiple_of(PAGE as u64));
};

/// Bytes of a block of class `class`, its header included: 128, 192, then four steps per doubling.
pub(super) const fn class_size(class: usize) -> u64 {
    match class {
        0 => 128,
        1 => 192,
        _ => {
            let k = 8 + (class - 2) / 4;
            let quarter = 1u64 << (k - 2);
            (1 << k) + quarter * ((class - 2) % 4) as u64
        }
    }
}

/// The smallest class whose blocks hold `len` bytes, `None` if there is none so large.
pub(super) fn class_for(len: u64) -> Option<usize> {
    let with = |header: u64| len.checked_add(header);
    let total = with(BLOCK_HEADER)?;
    // A large block spends its first page on the header.
    let total = if total > small_max() {
        with(PAGE as u64)?.max(LARGE)
    } else {
        total
    };
    if total <= 128 {
        return Some(0);
    }
    if total <= 192 {
        return Some(1);
    }
    let k = (63 - (total - 1).leading_zeros()).max(7) as usize;
    // 2^k <= total - 1 < 2^(k+1); below 256 all that is left is the class of 256.
    if k < 8 {
        return Some(2);
    }
    let quarter = 1u64 << (k - 2);
    let steps = (total - (1 << k)).div_ceil(quarter) as usize;
    let class = 2 + (k - 8) * 4 + steps;
    (class < CLASSES).then_some(class)
}

/// The largest class size below [`LARGE`].
const fn small_max() -> u64 {
    LARGE - LARGE / 8
}

/// Bytes of payload in a block of this class.
#[cfg(test)]
pub(super) fn payload_size(class: usize) -> u64 {
    class_size(class) - payload_start(class)
}

/// Where the payload begins in a block of this class.
pub(super) const fn payload_start(class: usize) -> u64 {
    if class_size(class) >= LARGE {
        PAGE as u64
    } else {
        BLOCK_HEADER
    }
}

/// Where a block of a class has its payload: each look at a message asks for it.
#[derive(Clone, Copy)]
pub(super) struct Extent {
    /// Bytes of the block.
    pub(super) size: u64,
    /// Bytes before the payload.
    pub(super) start: u64,
}

/// The extents of all classes. Computed anew at each look they took a seventh of the instructions
/// of a small message's way through a queue.
pub(super) static EXTENTS: [Extent; CLASSES] = {
    let mut extents = [Extent { size: 0, start: 0 }; CLASSES];
    let mut class = 0;
    while class < CLASSES {
        extents[class] = Extent {
            size: class_size(class),
            start: payload_start(class),
        };
        class += 1;
    }
    extents
};

/// Bytes of a chunk of small blocks of this class.
pub(super) fn chunk_size(class: usize) -> u64 {
    let size = class_size(class);
    if size >= LARGE {
        size
    } else if size > 8 * 1024 {
        256 * 1024
    } else {
        64 * 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_grow_and_stay_aligned() {
        for c in 1..CLASSES {
            assert!(class_size(c) > class_size(c - 1), "class {c}");
            assert_eq!(class_size(c) % 64, 0);
            if class_size(c) >= LARGE {
                assert_eq!(class_size(c) % PAGE as u64, 0, "class {c}");
            }
        }
    }

    #[test]
    fn the_smallest_class_that_fits_is_chosen() {
        for len in (0..300_000u64)
            .step_by(7)
            .chain([1 << 20, (1 << 32) + 5, 1 << 40])
        {
            let class = class_for(len).unwrap();
            assert!(payload_size(class) >= len, "{len} in class {class}");
            if class > 0 && class_size(class) != LARGE {
                assert!(
                    payload_size(class - 1) < len,
                    "{len} fits class {} too",
                    class - 1
                );
            }
        }
        assert_eq!(class_for(u64::MAX), None);
        assert_eq!(class_for(1 << 60), None);
    }
}
