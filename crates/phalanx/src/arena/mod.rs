//! The family's one shared memory: a memory file, an allocator, the member table, references.
//!
//! Created by the first shared object (or the first started process), mapped sparsely, and
//! inherited by every process that is forked or started from there. Nothing in it is an address:
//! objects are named by [`Handle`]s, and everything read from it that decides about memory safety
//! is checked. It has no name in any file system and vanishes with its last member.
//!
//! * [`layout`](self) what lies where, size classes
//! * `alloc`: free lists and chunks; `stale`: giving pages back; `audit`: walking the heap
//! * `member`: who is in the family, who is alive, reaping
//! * `join`: coming to a family from outside; `surrogate`: acting for somebody who does not
//! * `refs`: [`Shared`] objects, counted per member; `buffer`: memory of one process at a time
//! * [`fork`]: what has to happen around a fork

mod alloc;
mod audit;
pub(crate) mod buffer;
pub mod fork;
mod join;
pub(crate) mod kind;
mod layout;
mod member;
mod refs;
mod stale;
mod surrogate;
#[cfg(test)]
mod tests;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64};
use std::sync::{Mutex, PoisonError};

pub use audit::Usage;
pub use buffer::{Buffer, MIN_BUFFER};
pub use join::join_later;
pub use kind::Shareable;
pub use refs::Shared;
pub use surrogate::act_for;

pub(crate) use alloc::Offset;

use crate::error::{Error, Kind, Result};
use crate::os::memory;
use crate::sync::owner::{MemberId, Members};
use layout::{HEAP, Header, MAGIC, MEMBERS, Slot};

static ARENA: AtomicPtr<Arena> = AtomicPtr::new(std::ptr::null_mut());
static CREATE: Mutex<()> = Mutex::new(());
static LIMIT: AtomicU64 = AtomicU64::new(0);

/// The arena as this process sees it.
pub struct Arena {
    base: NonNull<u8>,
    span: u64,
    fd: OwnedFd,
    me: AtomicU32,
    registry: Mutex<refs::Registry>,
}

// SAFETY: the mapping lives as long as the process and all of it is atomics or checked blocks.
unsafe impl Send for Arena {}
// SAFETY: as above; what is not shared lies behind a mutex.
unsafe impl Sync for Arena {}

/// The name of an object in the arena: where it lies and which of the block's lives it is.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Handle(u64);

impl Handle {
    const GENERATIONS: u64 = 1 << 24;

    fn new(offset: Offset, generation: u32) -> Self {
        Self(((offset / 64) << 24) | (u64::from(generation) % Self::GENERATIONS))
    }

    fn offset(self) -> Offset {
        (self.0 >> 24) * 64
    }

    /// The handle as a number, for a pickle or a message.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// The handle that [`Handle::bits`] gave. Any number will do: it is checked when it is used.
    pub fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
}

/// Sets how many bytes the arena of this process may use, if it has none yet.
///
/// The default is the machine's memory; the environment variable `PHALANX_ARENA_LIMIT` (bytes)
/// comes before it.
///
/// # Errors
/// `is_invalid` if the arena exists already.
pub fn set_limit(bytes: u64) -> Result<()> {
    if Arena::current().is_some() {
        return Err(Error::new(
            Kind::Invalid,
            "the arena exists already; set its limit before the first shared object is made",
        ));
    }
    LIMIT.store(bytes, Relaxed);
    Ok(())
}

impl Arena {
    /// This process's arena, created if there is none.
    ///
    /// # Errors
    /// The system's, if it refuses the memory file or the mapping.
    pub fn get() -> Result<&'static Self> {
        match Self::current() {
            Some(arena) => Ok(arena),
            None => Self::create(),
        }
    }

    /// This process's arena, if it has one.
    #[inline]
    pub fn current() -> Option<&'static Self> {
        // SAFETY: the pointer is null or a leaked box.
        // SYNC: pairs with the Release in `install`.
        unsafe { ARENA.load(Acquire).as_ref() }
    }

    /// This process's arena if it is that of `family`.
    ///
    /// # Errors
    /// `is_foreign`.
    pub fn of_family(family: u64) -> Result<&'static Self> {
        match Self::current() {
            Some(arena) if arena.family() == family => Ok(arena),
            _ => Err(Error::new(
                Kind::Foreign,
                "the handle belongs to another family of processes: shared objects reach only \
                 processes that descend from the one that made them; use a manager or a Listener \
                 for others",
            )),
        }
    }

    #[cold]
    fn create() -> Result<&'static Self> {
        let _guard = CREATE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(arena) = Self::current() {
            return Ok(arena);
        }
        if let Some(joined) = Self::join() {
            return joined;
        }
        let limit = Self::configured_limit()?;
        let (fd, span, base) = Self::make_file(limit)?;
        let arena = Self::at_base(base, span, fd);
        let header = arena.header();
        header.family.store(random()?, Relaxed);
        header.span.store(span, Relaxed);
        header.limit.store(limit, Relaxed);
        header.warm_limit.store(limit / 8, Relaxed);
        header.top.store(HEAP, Relaxed);
        // SYNC: pairs with the Acquire in `adopt`.
        header.magic.store(MAGIC, Release);
        arena.enter_first()?;
        Ok(arena.install())
    }

    fn configured_limit() -> Result<u64> {
        let set = LIMIT.load(Relaxed);
        if set != 0 {
            return Ok(set);
        }
        let Some(text) = std::env::var_os("PHALANX_ARENA_LIMIT") else {
            return Ok(memory::physical());
        };
        match text.to_str().map(|text| text.trim().parse()) {
            Some(Ok(limit)) if limit > 0 => Ok(limit),
            _ => Err(Error::new(
                Kind::Invalid,
                format!(
                    "the environment variable PHALANX_ARENA_LIMIT is {text:?}, which is not a \
                     number of bytes greater than 0"
                ),
            )),
        }
    }

    /// A file and a mapping several times the limit: address space is free, and free blocks of one
    /// size are not made into another. Less if the system (a limit on address space) refuses it.
    fn make_file(limit: u64) -> Result<(OwnedFd, u64, NonNull<u8>)> {
        let least = (limit + HEAP).next_multiple_of(memory::PAGE as u64);
        let mut span = limit
            .saturating_mul(8)
            .clamp(1 << 36, 1 << 42)
            .min(memory::file_limit() & !(memory::PAGE as u64 - 1));
        loop {
            let made = usize::try_from(span)
                .map_err(|_| Error::new(Kind::Unsupported, "phalanx needs a 64-bit system"))
                .and_then(|size| {
                    let fd = memory::create(size)?;
                    let base = memory::map(fd.as_fd(), size)?;
                    Ok((fd, span, base))
                });
            match made {
                Ok(made) => return Ok(made),
                Err(error) if span / 2 < least.min(1 << 26) => return Err(error),
                Err(_) => span = (span / 2) & !(memory::PAGE as u64 - 1),
            }
        }
    }

    fn at_base(base: NonNull<u8>, span: u64, fd: OwnedFd) -> Self {
        Self {
            base,
            span,
            fd,
            me: AtomicU32::new(0),
            registry: Mutex::default(),
        }
    }

    fn install(self) -> &'static Self {
        let arena = Box::leak(Box::new(self));
        // SYNC: pairs with the Acquire in `current`.
        ARENA.store(arena, Release);
        arena
    }

    /// Reserves the place of a child in the family.
    ///
    /// # Errors
    /// `is_full` if the family has as many members as it can have.
    pub fn reserve_child(&self) -> Result<MemberId> {
        self.reserve()
    }

    /// A forked child whose reserved place is gone: it takes another one and what is still there.
    fn enter_late(&self, registry: &mut refs::Registry) {
        let Ok(id) = self.reserve() else { return };
        if self.enter(id).is_ok()
            && let Ok(booked) = self.book_all(registry, id)
        {
            self.take_booked(registry, booked);
        }
    }

    fn set_me(&self, id: MemberId) {
        self.me.store(id.get(), Relaxed);
    }

    fn me_or_zero(&self) -> u32 {
        self.me.load(Relaxed)
    }

    /// The random number that tells this family from others.
    pub fn family(&self) -> u64 {
        self.header().family.load(Relaxed)
    }

    /// The arena's file.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn header(&self) -> &Header {
        // SAFETY: the mapping is larger than a header, page-aligned, and a header is atomics only.
        unsafe { self.base.cast().as_ref() }
    }

    /// The end of the used part: never past the mapping, whatever the header says.
    fn top(&self) -> Offset {
        // SYNC: pairs with the Release in `fresh`.
        self.header().top.load(Acquire).min(self.span)
    }

    fn slots(&self) -> &[Slot] {
        // SAFETY: the table lies right behind the header, inside the mapping, aligned; slots are
        // atomics only.
        unsafe {
            std::slice::from_raw_parts(self.at(layout::HEADER_SIZE).cast_const().cast(), MEMBERS)
        }
    }

    /// The address of `offset`, which has been checked to be inside.
    fn at(&self, offset: Offset) -> *mut u8 {
        debug_assert!(offset < self.span);
        // SAFETY: inside the mapping.
        unsafe { self.base.as_ptr().add(offset as usize) }
    }

    fn offset_of(&self, address: *const u8) -> Offset {
        address as u64 - self.base.as_ptr() as u64
    }
}

impl std::fmt::Debug for Arena {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Arena({:#x}, {} bytes)", self.family(), self.span)
    }
}

impl Members for Arena {
    #[inline]
    fn me(&self) -> MemberId {
        match MemberId::new(self.me.load(Relaxed)) {
            Some(id) => id,
            None => lost(),
        }
    }

    #[inline]
    fn claimant(&self) -> MemberId {
        surrogate::acting_for().unwrap_or_else(|| self.me())
    }

    fn is_alive(&self, member: MemberId) -> bool {
        Self::is_alive(self, member)
    }
}

/// Only a child that found no place in a full family comes here, and then it cannot go on.
#[cold]
fn lost() -> ! {
    panic!("this process has no place in its family: the member table was full when it was forked")
}

/// This process's member id.
///
/// # Panics
/// Not in a process that has an arena; it is created if there is none, and that may fail.
pub fn me() -> MemberId {
    match Arena::get() {
        Ok(arena) => arena.me(),
        Err(error) => panic!("{error}"),
    }
}

/// Whether the process behind `id` lives; false without an arena.
pub fn is_alive(id: MemberId) -> bool {
    Arena::current().is_some_and(|arena| arena.is_alive(id))
}

fn random() -> Result<u64> {
    let mut bytes = [0u8; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|e| Error::os("cannot get a random number for the family", e))?;
    Ok(u64::from_ne_bytes(bytes) | 1)
}
