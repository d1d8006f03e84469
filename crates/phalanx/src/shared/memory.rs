//! `Memory`: bytes of the arena without any meaning, counted like every object.

use std::ptr::NonNull;

use crate::arena::{Handle, Shareable, Shared};
use crate::error::Result;
use crate::sync::MemberId;

/// What stands before the bytes: nothing.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Bytes;

// SAFETY: it has no contents; what is behind it may be any bytes at any time.
unsafe impl Shareable for Bytes {
    const KIND: u32 = 24;
    const NAME: &'static str = "Memory";
}

/// Shared bytes: zeroed at first, aligned to 64, freed when the last process drops them.
///
/// Nothing guards them: processes that write to the same bytes need a lock of their own, and what
/// a process that dies was about to write is half written. Large ones begin on a page of their own.
#[derive(Clone, Debug)]
pub struct Memory {
    object: Shared<Bytes>,
    data: NonNull<u8>,
    len: usize,
}

// SAFETY: the memory is as common to processes as to threads; whoever accesses it must reckon with
// others, and does so by raw pointers or atomics.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` new bytes, all zero.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn new(len: usize) -> Result<Self> {
        Ok(Self::of(Shared::create_with_tail(Bytes, len as u64)?))
    }

    /// The bytes that `handle` of `family` names.
    ///
    /// # Errors
    /// `is_foreign`, `is_gone`, `is_invalid`, as for every object.
    pub fn attach(family: u64, handle: Handle) -> Result<Self> {
        Ok(Self::of(Shared::attach(family, handle)?))
    }

    pub(crate) fn of(object: Shared<Bytes>) -> Self {
        let (data, len) = object.tail();
        Self { object, data, len }
    }

    /// Where the bytes begin. They stay there as long as this value lives.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.data
    }

    /// How many they are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What names the bytes to other members of the family.
    pub fn handle(&self) -> Handle {
        self.object.handle()
    }

    /// The family that the handle means something to.
    pub fn family(&self) -> u64 {
        self.object.family()
    }

    /// Takes a reference on behalf of a child that is being started.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn book_for(&self, child: MemberId) -> Result<()> {
        self.object.book_for(child)
    }

    /// The object behind it.
    pub fn object(&self) -> &Shared<Bytes> {
        &self.object
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_zeroed_also_when_used_before() {
        for len in [1, 100, 100_000, 1 << 20] {
            for _ in 0..3 {
                let memory = Memory::new(len).unwrap();
                assert_eq!(memory.len(), len);
                assert_eq!(memory.as_ptr().addr().get() % 64, 0);
                // SAFETY: nobody else knows the memory yet.
                let bytes =
                    unsafe { std::slice::from_raw_parts_mut(memory.as_ptr().as_ptr(), len) };
                assert!(bytes.iter().all(|&byte| byte == 0));
                bytes.fill(0xaa);
            }
        }
        assert!(Memory::new(0).unwrap().is_empty());
    }

    #[test]
    fn is_found_by_its_handle() {
        let memory = Memory::new(8).unwrap();
        let same = Memory::attach(memory.family(), memory.handle()).unwrap();
        assert_eq!(same.as_ptr(), memory.as_ptr());
        assert_eq!(same.len(), 8);
        let (family, handle) = (memory.family(), memory.handle());
        drop((memory, same));
        assert!(Memory::attach(family, handle).unwrap_err().is_gone());
    }
}
