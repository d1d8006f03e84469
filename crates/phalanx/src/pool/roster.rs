//! Who works here: one slot a worker, which says what it has claimed.
//!
//! | field | written by | meaning |
//! | --- | --- | --- |
//! | `who` | the worker, 0 -> pid and member; the parent, back to 0 | the slot is taken |
//! | `claim` | the worker, under the task log's consumer lock | the task it has, plus 1; 0: none |
//! | `stage` | the worker, upwards; the parent, back to 0 | how far it came |
//!
//! Only the parent frees a slot, once it knows that the worker's process has ended.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};

use crate::arena::{Arena, kind};
use crate::error::Result;
use crate::fault::crash_point;
use crate::sync::MemberId;

/// Slots of one chunk: 1 KiB with the link.
const SLOTS: usize = 15;

/// A worker's place in its pool.
#[repr(C, align(64))]
#[derive(Debug)]
pub(super) struct Slot {
    /// The worker's pid (high half) and member id (low half); 0: free.
    who: AtomicU64,
    claim: AtomicU64,
    stage: AtomicU32,
}

/// How far a worker came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    Starting = 0,
    /// It has been initialized and takes tasks.
    Ready = 1,
    /// It has ended its work in order.
    Left = 2,
}

impl Slot {
    pub(super) fn pid(&self) -> u32 {
        (self.who.load(Acquire) >> 32) as u32
    }

    pub(super) fn member(&self) -> Option<MemberId> {
        MemberId::new(self.who.load(Acquire) as u32)
    }

    pub(super) fn claim(&self) -> Option<u64> {
        // SYNC: pairs with the Release in `set_claim`.
        self.claim.load(Acquire).checked_sub(1)
    }

    /// Notes the task that this worker has from now on, or that it has none.
    #[inline]
    pub(super) fn set_claim(&self, task: Option<u64>) {
        // SYNC: pairs with the Acquire in `claim`. A claim is cleared after the result was
        // published, so who sees it cleared finds the result.
        self.claim.store(task.map_or(0, |n| n + 1), Release);
    }

    pub(super) fn stage(&self) -> Stage {
        match self.stage.load(Acquire) {
            0 => Stage::Starting,
            1 => Stage::Ready,
            _ => Stage::Left,
        }
    }

    pub(super) fn set_stage(&self, stage: Stage) {
        self.stage.store(stage as u32, Release);
    }

    /// Makes the slot free again; its process is dead.
    pub(super) fn free(&self) {
        self.claim.store(0, Relaxed);
        self.stage.store(Stage::Starting as u32, Relaxed);
        // SYNC: pairs with the Acquire in `enter`.
        self.who.store(0, Release);
    }
}

#[repr(C, align(64))]
struct Chunk {
    next: AtomicU64,
    slots: [Slot; SLOTS],
}

/// All slots: a chain of chunks, as long as there were ever workers at a time. Zeros are an empty
/// one.
#[repr(transparent)]
#[derive(Debug)]
pub(super) struct Roster {
    first: AtomicU64,
}

impl Roster {
    pub(super) const fn new() -> Self {
        Self {
            first: AtomicU64::new(0),
        }
    }

    /// Takes a free slot for the calling process.
    ///
    /// # Errors
    /// `is_arena_full`, `is_corrupt`.
    pub(super) fn enter(&self, arena: &'static Arena, me: MemberId) -> Result<&'static Slot> {
        let who = u64::from(std::process::id()) << 32 | u64::from(me.get());
        let mut link = &self.first;
        loop {
            let chunk = match link.load(Acquire) {
                0 => Self::grow(link, arena)?,
                at => chunk_at(arena, at)?,
            };
            for slot in &chunk.slots {
                // SYNC: pairs with the Release in `free`.
                if slot.who.compare_exchange(0, who, AcqRel, Relaxed).is_ok() {
                    crash_point!("pool.entered");
                    return Ok(slot);
                }
            }
            link = &chunk.next;
        }
    }

    /// Links a new chunk where there is none. Killed before the link is set: one block is lost.
    fn grow(link: &AtomicU64, arena: &'static Arena) -> Result<&'static Chunk> {
        let at = arena.alloc_zeroed(kind::PART, size_of::<Chunk>() as u64)?;
        // It must outlive this process.
        arena.set_owner(at, None);
        crash_point!("pool.roster_unlinked");
        // SYNC: pairs with the Acquires of those who follow the link.
        match link.compare_exchange(0, at, AcqRel, Acquire) {
            Ok(_) => chunk_at(arena, at),
            Err(other) => {
                arena.free(at, kind::PART);
                chunk_at(arena, other)
            }
        }
    }

    /// All slots in order, free ones included.
    pub(super) fn slots(&self, arena: &'static Arena) -> impl Iterator<Item = &'static Slot> {
        let mut at = self.first.load(Acquire);
        std::iter::from_fn(move || {
            let chunk = chunk_at(arena, at).ok()?;
            at = chunk.next.load(Acquire);
            Some(chunk)
        })
        .flat_map(|chunk| chunk.slots.iter())
    }

    pub(super) fn clear(&self, arena: &Arena) {
        let mut at = self.first.swap(0, AcqRel);
        while let Ok(chunk) = chunk_at(arena, at) {
            let next = chunk.next.load(Acquire);
            arena.free(at, kind::PART);
            at = next;
        }
    }
}

fn chunk_at(arena: &Arena, at: u64) -> Result<&'static Chunk> {
    let (payload, len) = arena.part(at, kind::PART)?;
    if len < size_of::<Chunk>() as u64 {
        return Err(crate::error::Error::corrupt("a pool's roster is too short"));
    }
    // SAFETY: a live block, large enough, aligned to 64; a chunk is atomics only, for which any
    // bytes will do. It stays mapped for ever and is freed only with the pool.
    Ok(unsafe { &*payload.cast::<Chunk>() })
}
