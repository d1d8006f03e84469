//! Allocation: size classes with free lists, and chunks from the end of the arena.
//!
//! Every change of shared state here is one store that is right before and after, made under a
//! lock that survives its owner:
//!
//! * taking a block off a list: `head = next`. Killed right after it: the block is lost, one block.
//! * putting it back: `next = head`, then `head = block`. Killed in between: the same.
//! * a new chunk: its header is written first, then `top` moves. Killed in between: nothing.
//!
//! So a lock that is found abandoned needs no repair at all.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use super::layout::{self, BLOCK_HEADER, Block, CHUNK_MAGIC, Chunk, HEAP, LARGE};
use super::{Arena, Handle, kind};
use crate::error::{Error, Kind, Result};
use crate::fault::crash_point;
use crate::os::life;
use crate::os::memory::{self, PAGE};
use crate::sync::owner::MemberId;

/// Whoever allocates a block of this size looks for stale memory.
const SWEEPING: u64 = 32 * 1024;

/// The offset of a block that the caller may use: checked, or fresh from the allocator.
pub(crate) type Offset = u64;

impl Arena {
    /// A block for `len` bytes. The payload's contents are whatever was there before.
    ///
    /// The block belongs to this member; `refs` is 1.
    pub(crate) fn alloc(&self, kind: u32, len: u64) -> Result<Offset> {
        let class = layout::class_for(len).ok_or_else(|| self.full(len))?;
        let size = layout::class_size(class);
        if size >= SWEEPING {
            self.sweep(life::seconds());
        }
        let offset = match self.pop(class)? {
            Some(offset) => offset,
            None => self.fresh(class, len)?,
        };
        let block = self.block(offset)?;
        crash_point!("alloc.popped");
        block.owner.store(self.me_or_zero(), Relaxed);
        block.len.store(len, Relaxed);
        block.refs.store(1, Relaxed);
        // SYNC: pairs with the Acquire in `check`; the payload is published by whoever shares the
        // handle.
        block.kind.store(kind, Release);
        crash_point!("alloc.taken");
        self.header().used.fetch_add(size, Relaxed);
        Ok(offset)
    }

    /// As [`Arena::alloc`], with a payload of zeros.
    pub(crate) fn alloc_zeroed(&self, kind: u32, len: u64) -> Result<Offset> {
        let offset = self.alloc(kind, len)?;
        // SAFETY: the block is this caller's alone and has room for `len` bytes.
        unsafe { self.payload(offset)?.write_bytes(0, len as usize) };
        Ok(offset)
    }

    /// Gives a block back. A block that is free already, or of another kind, is left alone.
    pub(crate) fn free(&self, offset: Offset, kind: u32) {
        let Ok(block) = self.block(offset) else {
            return;
        };
        // SYNC: the Acquire orders the last uses of the block before its next life.
        if block
            .kind
            .compare_exchange(kind, kind::FREE, AcqRel, Relaxed)
            .is_err()
        {
            return;
        }
        crash_point!("free.unnamed");
        block.generation.fetch_add(1, Relaxed);
        block.owner.store(0, Relaxed);
        let class = block.class.load(Relaxed) as usize % layout::CLASSES;
        let size = layout::class_size(class);
        let header = self.header();
        saturating_sub(&header.used, size);
        if size >= LARGE {
            let warm = header.warm.load(Relaxed);
            let cold = warm.saturating_add(size) > header.warm_limit.load(Relaxed)
                && self.extent(offset, block).is_ok()
                && memory::discard(self.fd(), offset + PAGE as u64, size - PAGE as u64);
            block.cold.store(u32::from(cold), Relaxed);
            if !cold {
                block.freed.store(life::seconds(), Relaxed);
                header.warm.fetch_add(size, Relaxed);
            }
        }
        let list = &header.classes[class];
        let _guard = list.lock.guard(self);
        crash_point!("free.locked");
        block.next.store(list.head.load(Relaxed), Relaxed);
        crash_point!("free.unlinked");
        list.head.store(offset, Release);
    }

    fn pop(&self, class: usize) -> Result<Option<Offset>> {
        let header = self.header();
        let list = &header.classes[class];
        if list.head.load(Relaxed) == 0 {
            return Ok(None);
        }
        let _guard = list.lock.guard(self);
        let head = list.head.load(Acquire);
        if head == 0 {
            return Ok(None);
        }
        let block = self.free_block(head, class).inspect_err(|_| {
            // Whatever was behind it is lost, but allocation goes on.
            list.head.store(0, Release);
        })?;
        list.head.store(block.next.load(Relaxed), Release);
        crash_point!("alloc.unlinked");
        let size = layout::class_size(class);
        if size >= LARGE && block.cold.swap(0, Relaxed) == 0 {
            saturating_sub(&header.warm, size);
        }
        Ok(Some(head))
    }

    /// A block that was never used before.
    fn fresh(&self, class: usize, len: u64) -> Result<Offset> {
        let header = self.header();
        let size = layout::class_size(class);
        let limit = header.limit.load(Relaxed);
        let room = |taken: u64| limit.saturating_sub(taken) >= size;
        let used = || header.used.load(Relaxed);
        if !room(used().saturating_add(header.warm.load(Relaxed))) {
            self.trim();
            if !room(used()) {
                return Err(self.full(len));
            }
        }
        let list = &header.classes[class];
        let _class_guard = list.lock.guard(self);
        let at = list.fresh.load(Relaxed);
        let end = list.fresh_end.load(Relaxed).min(self.top());
        let fits = at >= HEAP
            && at.is_multiple_of(BLOCK_HEADER)
            && at.checked_add(size).is_some_and(|next| next <= end);
        if size < LARGE && fits {
            self.write_block_header(at, class);
            crash_point!("alloc.carved");
            list.fresh.store(at + size, Release);
            return Ok(at);
        }
        let chunk = layout::chunk_size(class);
        let _top_guard = header.top_lock.guard(self);
        let top = self.top();
        if !top.is_multiple_of(PAGE as u64) || top < HEAP {
            return Err(Error::corrupt(
                "the end of the heap is not where one can be",
            ));
        }
        if chunk > self.span - top {
            return Err(self.full(len));
        }
        self.write_block_header(top, class);
        // SAFETY: the chunk is this member's alone until `top` moves, and inside the mapping.
        let head = unsafe { &*self.at(top).cast::<Chunk>() };
        head.size.store(chunk, Relaxed);
        // SYNC: pairs with the Acquire in `chunks`.
        crash_point!("alloc.chunk_unpublished");
        header.top.store(top + chunk, Release);
        crash_point!("alloc.chunk_published");
        if size >= LARGE {
            return Ok(top);
        }
        let first = top + BLOCK_HEADER;
        self.write_block_header(first, class);
        // Killed between these two: what is left of the chunk is never used.
        list.fresh.store(0, Relaxed);
        list.fresh_end.store(top + chunk, Relaxed);
        crash_point!("alloc.chunk_unlisted");
        list.fresh.store(first + size, Release);
        Ok(first)
    }

    fn write_block_header(&self, offset: Offset, class: usize) {
        // SAFETY: the caller owns the block, which lies inside the mapping; the header is atomics.
        let block = unsafe { &*self.at(offset).cast::<Block>() };
        block.class.store(class as u32, Relaxed);
        block.kind.store(kind::FREE, Relaxed);
        // SYNC: pairs with the Acquire in `block`.
        block.magic.store(CHUNK_MAGIC, Release);
    }

    /// The block at `offset`, checked to belong on the free list of `class`.
    pub(super) fn free_block(&self, offset: Offset, class: usize) -> Result<&Block> {
        let block = self.check(offset, kind::FREE)?;
        if block.class.load(Relaxed) as usize != class {
            return Err(Error::corrupt("a free list points outside its class"));
        }
        self.extent(offset, block)?;
        Ok(block)
    }

    /// More links than any chain of blocks can have: damage could make one a ring.
    pub(crate) fn most_links(&self) -> u64 {
        self.top() / BLOCK_HEADER
    }

    /// The header of the block at `offset`, checked to be one.
    #[inline]
    pub(super) fn block(&self, offset: Offset) -> Result<&Block> {
        let inside = offset >= HEAP
            && offset.is_multiple_of(BLOCK_HEADER)
            && offset.saturating_add(BLOCK_HEADER) <= self.top();
        if !inside {
            return Err(no_block(offset));
        }
        // SAFETY: inside the mapping and aligned; a header is nothing but atomics, for which any
        // bytes are valid.
        let block = unsafe { &*self.at(offset).cast::<Block>() };
        // SYNC: pairs with the Release in `write_block_header`.
        if block.magic.load(Acquire) != CHUNK_MAGIC
            || block.class.load(Relaxed) as usize >= layout::CLASSES
        {
            return Err(no_block(offset));
        }
        Ok(block)
    }

    /// The block at `offset` if it is in use and of this kind.
    #[inline]
    pub(super) fn check(&self, offset: Offset, kind: u32) -> Result<&Block> {
        let block = self.block(offset)?;
        // SYNC: pairs with the Release in `alloc`.
        if block.kind.load(Acquire) != kind {
            return Err(wrong_kind(offset, kind));
        }
        Ok(block)
    }

    /// Where the payload of a block begins; it has room for the block's `len` bytes at least.
    pub(crate) fn payload(&self, offset: Offset) -> Result<*mut u8> {
        self.extent(offset, self.block(offset)?).map(|(at, _)| at)
    }

    /// A block's payload as checked for a kind: address and the bytes asked for.
    pub(crate) fn part(&self, offset: Offset, kind: u32) -> Result<(*mut u8, u64)> {
        let block = self.check(offset, kind)?;
        let (payload, room) = self.extent(offset, block)?;
        Ok((payload, block.len.load(Relaxed).min(room)))
    }

    /// A block's payload: address and room.
    #[inline]
    fn extent(&self, offset: Offset, block: &Block) -> Result<(*mut u8, u64)> {
        let class = block.class.load(Relaxed) as usize;
        let Some(&layout::Extent { size, start }) = layout::EXTENTS.get(class) else {
            return Err(no_block(offset));
        };
        if size > self.top().saturating_sub(offset) {
            return Err(too_far(offset));
        }
        Ok((self.at(offset + start), size - start))
    }

    /// Makes a buffer block belong to `owner` (`None`: to nobody, it is in transit).
    pub(crate) fn set_owner(&self, offset: Offset, owner: Option<MemberId>) {
        if let Ok(block) = self.block(offset) {
            block.owner.store(owner.map_or(0, MemberId::get), Relaxed);
        }
    }

    pub(super) fn handle_of(&self, offset: Offset) -> Result<Handle> {
        let generation = self.block(offset)?.generation.load(Relaxed);
        Ok(Handle::new(offset, generation))
    }

    /// Frees the large blocks that belonged to a dead member alone: buffers, and those whose pages
    /// it was giving back.
    pub(super) fn free_owned_by(&self, dead: MemberId) {
        for (offset, _) in self.chunks().filter(|&(_, size)| size >= LARGE) {
            let Ok(block) = self.block(offset) else {
                continue;
            };
            let owned = |what| {
                block.kind.load(Acquire) == what
                    && block
                        .owner
                        .compare_exchange(dead.get(), 0, AcqRel, Relaxed)
                        .is_ok()
            };
            if owned(kind::BUFFER) {
                self.free(offset, kind::BUFFER);
            } else if owned(kind::COOLING) {
                self.warm_again(offset, block);
            }
        }
    }

    pub(super) fn full(&self, len: u64) -> Error {
        let limit = self.header().limit.load(Relaxed);
        Error::new(
            Kind::ArenaFull,
            format!(
                "the arena has no room for {len} more bytes: {}; free shared objects, or raise the \
                 limit of {limit} bytes by the environment variable PHALANX_ARENA_LIMIT",
                self.usage()
            ),
        )
    }
}

#[cold]
fn no_block(offset: Offset) -> Error {
    Error::corrupt(format!("there is no block at {offset:#x}"))
}

#[cold]
fn wrong_kind(offset: Offset, kind: u32) -> Error {
    Error::corrupt(format!("the block at {offset:#x} is not of kind {kind}"))
}

#[cold]
fn too_far(offset: Offset) -> Error {
    Error::corrupt(format!("the block at {offset:#x} reaches past the end"))
}

/// The books may be off by a block after a kill; they never go below zero.
pub(super) fn saturating_sub(count: &std::sync::atomic::AtomicU64, by: u64) {
    let _ = count.fetch_update(Relaxed, Relaxed, |n| Some(n.saturating_sub(by)));
}
