//! Large pieces of memory that belong to one process at a time: a message's payload, a received
//! array.
//!
//! A buffer is written by its sender, travels inside a message without being copied, and is then
//! the receiver's own, writable memory. A fork would make it common to parent and child, which
//! both must see as theirs. So the memory is mapped again before a fork, as a private copy-on-write
//! view of the same pages, and counted for both; it costs one system call a buffer and copies
//! nothing.

use std::sync::atomic::Ordering::Relaxed;

use super::alloc::Offset;
use super::{Arena, Handle, kind, layout};
use crate::error::{Error, Result};
use crate::fault::crash_point;
use crate::os::memory;
use crate::sync::owner::{MemberId, Members};

/// How a process holds a buffer.
#[derive(Default)]
pub(super) struct Held {
    /// The entry in the table of references, once a fork has made the buffer common.
    pub(super) entry: Option<Offset>,
    /// Mapped as a private view.
    private: bool,
}

/// Buffers shorter than this are not worth a block of their own.
pub const MIN_BUFFER: usize = 56 * 1024;

/// Memory in the arena that belongs to this process alone.
#[derive(Debug)]
pub struct Buffer {
    arena: &'static Arena,
    offset: Offset,
    data: *mut u8,
    len: usize,
}

// SAFETY: the buffer owns its memory, as a `Box<[u8]>` does.
unsafe impl Send for Buffer {}
// SAFETY: as above; shared references only read.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// New memory of `len` bytes with undefined but harmless contents.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn new(arena: &'static Arena, len: usize) -> Result<Self> {
        // At least one large block, whose payload has its pages to itself.
        let room = (len as u64).max(layout::LARGE - memory::PAGE as u64);
        let offset = arena.alloc(kind::BUFFER, room)?;
        arena.block(offset)?.len.store(len as u64, Relaxed);
        Self::wrap(arena, offset)
    }

    /// New memory with a copy of `bytes`.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn copy(arena: &'static Arena, bytes: &[u8]) -> Result<Self> {
        let mut buffer = Self::new(arena, bytes.len())?;
        buffer.copy_from_slice(bytes);
        Ok(buffer)
    }

    fn wrap(arena: &'static Arena, offset: Offset) -> Result<Self> {
        let (data, len) = arena.part(offset, kind::BUFFER)?;
        arena.registry().buffers.insert(offset, Held::default());
        let len = usize::try_from(len).map_err(|_| Error::corrupt("a buffer's length"))?;
        Ok(Self {
            arena,
            offset,
            data,
            len,
        })
    }

    /// Gives the memory to a message: what is returned names it to the receiver. It stays this
    /// process's, and goes with it if it is killed, until [`hand_over`].
    pub(crate) fn send(self) -> Result<u64> {
        let this = std::mem::ManuallyDrop::new(self);
        let held = this.arena.registry().buffers.remove(&this.offset);
        if let Some(Held { entry: Some(_), .. }) = held {
            // Common to several processes by a fork: the receiver gets a copy of its own.
            this.arena
                .registry()
                .buffers
                .insert(this.offset, held.unwrap_or_default());
            let own = std::mem::ManuallyDrop::into_inner(this);
            return Self::copy(own.arena, &own)?.send();
        }
        crash_point!("buffer.unsent");
        Ok(this.arena.handle_of(this.offset)?.bits())
    }

    /// Takes the memory that a message brought.
    ///
    /// # Errors
    /// `is_corrupt` if there is no such buffer.
    pub(crate) fn receive(arena: &'static Arena, bits: u64) -> Result<Self> {
        let handle = Handle::from_bits(bits);
        if arena.handle_of(handle.offset())? != handle {
            return Err(Error::corrupt("a message names a buffer that is gone"));
        }
        arena.check(handle.offset(), kind::BUFFER)?;
        crash_point!("buffer.unreceived");
        arena.set_owner(handle.offset(), Some(arena.me()));
        Self::wrap(arena, handle.offset())
    }

    /// The address of the first byte.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.data
    }
}

/// Makes a message's buffers the property of `owner`, or of nobody while the message is on its way:
/// who waits with them for room, or has just taken them, may be killed at any time.
#[inline]
pub(crate) fn hand_over(arena: &Arena, handles: &[u64], owner: Option<MemberId>) {
    for &bits in handles {
        let handle = Handle::from_bits(bits);
        if arena.handle_of(handle.offset()).is_ok_and(|h| h == handle)
            && arena.check(handle.offset(), kind::BUFFER).is_ok()
        {
            arena.set_owner(handle.offset(), owner);
        }
    }
}

/// The bytes of a buffer in transit, 0 if there is none.
pub(crate) fn len(arena: &Arena, bits: u64) -> u64 {
    let offset = Handle::from_bits(bits).offset();
    arena.part(offset, kind::BUFFER).map_or(0, |(_, len)| len)
}

/// Frees a buffer that a message brought and nobody will take.
pub(crate) fn discard(arena: &Arena, bits: u64) {
    let handle = Handle::from_bits(bits);
    if arena.handle_of(handle.offset()).is_ok_and(|h| h == handle) {
        arena.free(handle.offset(), kind::BUFFER);
    }
}

impl std::ops::Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `part` checked that the block has `len` bytes; it is ours until we are dropped.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the slice the only one.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut registry = self.arena.registry();
        let Some(held) = registry.buffers.remove(&self.offset) else {
            return;
        };
        if held.private {
            let (offset, size) = self.arena.pages_of(self.offset);
            // SAFETY: the pages are this buffer's alone, which nobody can use any more. If it
            // fails, the block must never be used again: its memory here is not the arena's.
            let shared = unsafe {
                memory::remap(self.arena.fd(), self.arena.at(offset), offset, size, false)
            };
            if shared.is_err() {
                return;
            }
        }
        match held.entry {
            Some(entry) => self
                .arena
                .drop_shared_buffer(&mut registry, self.offset, entry),
            None => {
                drop(registry);
                self.arena.free(self.offset, kind::BUFFER);
            }
        }
    }
}

impl Arena {
    /// The pages of a large block's payload: where in the file, and how many bytes.
    fn pages_of(&self, offset: Offset) -> (u64, usize) {
        let class =
            self.block(offset).map_or(0, |b| b.class.load(Relaxed)) as usize % layout::CLASSES;
        let start = layout::payload_start(class);
        (offset + start, (layout::class_size(class) - start) as usize)
    }

    /// Makes every buffer of this process one that a forked child can have as well.
    pub(super) fn freeze_buffers(&self, registry: &mut super::refs::Registry) -> Result<()> {
        let offsets: Vec<Offset> = registry.buffers.keys().copied().collect();
        for at in offsets {
            let held = registry.buffers.entry(at).or_default();
            if !held.private {
                let (offset, size) = self.pages_of(at);
                // SAFETY: the pages are this process's alone, and stay the same bytes.
                unsafe { memory::remap(self.fd(), self.at(offset), offset, size, true)? };
                held.private = true;
            }
            if held.entry.is_none() {
                self.share_buffer(registry, at)?;
            }
        }
        Ok(())
    }
}
