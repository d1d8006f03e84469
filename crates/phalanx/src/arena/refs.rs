//! References: which member holds which object.
//!
//! An object's block counts the members that hold it. Each member writes the handles it holds into
//! a table of its own in the arena (chunks of entries, linked from its slot), so that whoever finds
//! it dead can give them back. Inside a process, all copies of a reference share one entry.
//!
//! ```text
//! take:  refs += 1 in the block, then the entry          killed in between: the object is never freed
//! drop:  the entry is cleared, then refs -= 1            the same
//! ```
//!
//! An object that is never freed is the lesser evil: with the two steps the other way round, whoever
//! reaps could count one down that was counted down already, and free what others hold. An entry
//! cannot say in one store with the count whether that has happened.
//!
//! ```text
//! fork:  the child's slot and table are filled before the parent forks; the child adopts them
//! ```

use std::collections::HashMap;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::{MutexGuard, PoisonError};

use super::alloc::Offset;
use super::kind::{self, Shareable};
use super::layout::Slot;
use super::{Arena, Handle, fork};
use crate::error::{Error, Kind, Result};
use crate::fault::crash_point;
use crate::sync::owner::{MemberId, Members};

/// Bytes of one chunk of a table: a link and entries.
const CHUNK: u64 = 960;

/// What this process holds, beside the table in the arena.
#[derive(Default)]
pub(super) struct Registry {
    objects: HashMap<u64, Local>,
    /// Entries of this member's table that are not in use.
    spare: Vec<Offset>,
    pub(super) buffers: HashMap<Offset, super::buffer::Held>,
}

struct Local {
    copies: usize,
    entry: Offset,
}

/// The registry, locked.
pub(super) struct Books {
    /// Always there until the drop.
    guard: Option<MutexGuard<'static, Registry>>,
    /// From the fork that this thread is in the middle of.
    lent: bool,
}

impl Deref for Books {
    type Target = Registry;

    fn deref(&self) -> &Registry {
        self.guard.as_ref().expect("taken by the drop only")
    }
}

impl DerefMut for Books {
    fn deref_mut(&mut self) -> &mut Registry {
        self.guard.as_mut().expect("taken by the drop only")
    }
}

impl Drop for Books {
    fn drop(&mut self) {
        if self.lent
            && let Some(guard) = self.guard.take()
        {
            fork::take_back(guard);
        }
    }
}

/// A child's references, booked before the fork.
pub(super) struct Booked {
    pub(super) child: MemberId,
    entries: HashMap<u64, Offset>,
    spare: Vec<Offset>,
}

impl Arena {
    pub(super) fn lock_books(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn registry(&'static self) -> Books {
        match fork::lend() {
            Some(guard) => Books {
                guard: Some(guard),
                lent: true,
            },
            None => Books {
                guard: Some(self.lock_books()),
                lent: false,
            },
        }
    }

    pub(super) fn word(&self, at: Offset) -> &AtomicU64 {
        // SAFETY: `at` is an entry or link in a chunk of a table: inside a payload that was checked
        // when it was found, aligned to 8; chunks are freed only when their member is reaped.
        unsafe { &*self.at(at).cast::<AtomicU64>() }
    }

    /// The link and the entries of a chunk of a table.
    fn table_chunk(&self, chunk: Offset) -> Result<(Offset, impl Iterator<Item = Offset> + use<>)> {
        let (payload, len) = self.part(chunk, kind::REFS)?;
        let start = self.offset_of(payload);
        Ok((start, (1..len / 8).map(move |i| start + i * 8)))
    }

    /// Adds a chunk to a member's table and returns its entries.
    fn grow_table(&self, slot: &Slot) -> Result<Vec<Offset>> {
        let chunk = self.alloc_zeroed(kind::REFS, CHUNK)?;
        let (link, entries) = self.table_chunk(chunk)?;
        self.word(link).store(slot.refs.load(Acquire), Relaxed);
        crash_point!("refs.table_unlinked");
        // SYNC: pairs with the Acquire in `release_table`.
        slot.refs.store(chunk, Release);
        Ok(entries.collect())
    }

    fn entry(&self, registry: &mut Registry) -> Result<Offset> {
        if registry.spare.is_empty() {
            registry.spare = self.grow_table(self.slot_of(self.me()))?;
        }
        registry.spare.pop().ok_or_else(|| self.full(CHUNK))
    }

    /// Counts one more holder of the object, if the handle is still good.
    fn add_ref(&self, handle: Handle, kind: u32) -> Result<()> {
        let gone = || {
            Error::new(
                Kind::Gone,
                "the shared object behind this handle is gone: the last process that held it has \
                 dropped it; keep a reference until the receiver has one",
            )
        };
        let block = self.block(handle.offset()).map_err(|_| gone())?;
        // SYNC: pairs with the AcqRel in `drop_ref`; a count that reached 0 never rises again.
        block
            .refs
            .fetch_update(AcqRel, Relaxed, |n| {
                (n > 0 && n < u32::MAX / 2).then(|| n + 1)
            })
            .map_err(|_| gone())?;
        let same = Handle::new(handle.offset(), block.generation.load(Relaxed)) == handle;
        let found = block.kind.load(Acquire);
        if same && found == kind {
            return Ok(());
        }
        // Another object lives there now; what was added to its count goes back.
        self.drop_count(handle.offset(), found);
        if !same {
            return Err(gone());
        }
        Err(Self::wrong_kind(found, kind))
    }

    fn wrong_kind(found: u32, wanted: u32) -> Error {
        let name = |k| kind::info(k).map_or("something else", |i| i.name);
        let message = format!("the handle names a {}, not a {}", name(found), name(wanted));
        Error::new(Kind::Invalid, message)
    }

    /// Adds a reference that another object of the arena will hold.
    ///
    /// # Errors
    /// `is_gone`, `is_invalid`.
    pub(crate) fn retain<T: Shareable>(&self, handle: Handle) -> Result<()> {
        self.add_ref(handle, T::KIND)
    }

    /// Gives back what [`Arena::retain`] took.
    pub(crate) fn release(&self, handle: Handle) {
        self.drop_ref(handle);
    }

    /// The object of a handle that another object holds a reference to.
    ///
    /// # Errors
    /// `is_corrupt` if it is not there or of another type.
    pub(crate) fn object<T: Shareable>(&self, handle: Handle) -> Result<&'static T> {
        let (object, len) = self.part(handle.offset(), T::KIND)?;
        if len < size_of::<T>() as u64 || self.handle_of(handle.offset())? != handle {
            return Err(Error::corrupt(format!("{handle:?} is no {}", T::NAME)));
        }
        // SAFETY: a live block of that kind holds a `T`, and the mapping lasts as long as the
        // process.
        Ok(unsafe { &*object.cast::<T>() })
    }

    /// Tells the objects that mind it that a member has died.
    pub(super) fn tell_of_death(&self) {
        for (offset, _) in self.used_blocks() {
            let kind = self
                .block(offset)
                .map_or(kind::FREE, |b| b.kind.load(Acquire));
            let Some((info, tell)) = kind::info(kind).and_then(|i| Some((i, i.peer_died?))) else {
                continue;
            };
            // A reference of our own: the object must not be freed under our hands.
            let Ok(handle) = self.handle_of(offset) else {
                continue;
            };
            if self.add_ref(handle, kind).is_err() {
                continue;
            }
            if let Ok((object, len)) = self.part(offset, kind)
                && len >= info.size as u64
            {
                // SAFETY: a block of this kind holds such an object, and we hold a reference.
                unsafe { tell(object, self) };
            }
            self.drop_ref(handle);
        }
    }

    fn drop_ref(&self, handle: Handle) {
        if let Ok(block) = self.block(handle.offset())
            && Handle::new(handle.offset(), block.generation.load(Relaxed)) == handle
        {
            self.drop_count(handle.offset(), block.kind.load(Acquire));
        }
    }

    fn drop_count(&self, offset: Offset, kind: u32) {
        let Ok(block) = self.block(offset) else {
            return;
        };
        // SYNC: AcqRel orders every holder's last use before the reclaim by the last one.
        let before = block
            .refs
            .fetch_update(AcqRel, Relaxed, |n| n.checked_sub(1));
        if before == Ok(1) {
            if let (Some(info), Ok((object, len))) = (kind::info(kind), self.part(offset, kind))
                && len >= info.size as u64
            {
                // SAFETY: a block of this kind holds such an object, and nobody else has it now.
                unsafe { (info.reclaim)(object, self) };
            }
            self.free(offset, kind);
        }
    }

    /// Takes a reference for this process; all copies share one entry.
    fn hold(&'static self, handle: Handle, kind: u32) -> Result<()> {
        let mut registry = self.registry();
        if let Some(local) = registry.objects.get_mut(&handle.bits()) {
            let found = self.block(handle.offset())?.kind.load(Acquire);
            if found != kind {
                return Err(Self::wrong_kind(found, kind));
            }
            local.copies += 1;
            return Ok(());
        }
        let entry = self.entry(&mut registry)?;
        self.add_ref(handle, kind)
            .inspect_err(|_| registry.spare.push(entry))?;
        crash_point!("refs.counted");
        self.word(entry).store(handle.bits(), Release);
        registry
            .objects
            .insert(handle.bits(), Local { copies: 1, entry });
        Ok(())
    }

    fn unhold(&'static self, handle: Handle) {
        let mut registry = self.registry();
        let Some(local) = registry.objects.get_mut(&handle.bits()) else {
            return;
        };
        local.copies -= 1;
        if local.copies > 0 {
            return;
        }
        let entry = local.entry;
        registry.objects.remove(&handle.bits());
        self.word(entry).store(0, Release);
        registry.spare.push(entry);
        drop(registry);
        crash_point!("refs.erased");
        self.drop_ref(handle);
    }

    /// Books a reference on a child that has not started yet, so that this process may drop its own.
    pub(super) fn book(&'static self, child: MemberId, handle: Handle, kind: u32) -> Result<()> {
        // The registry's lock keeps this process's threads from booking into one entry.
        let _registry = self.registry();
        let slot = self.slot_of(child);
        let mut chunk = slot.refs.load(Acquire);
        let mut free = None;
        for _ in 0..self.most_links() {
            if chunk == 0 || free.is_some() {
                break;
            }
            let (link, entries) = self.table_chunk(chunk)?;
            for at in entries {
                match self.word(at).load(Relaxed) {
                    bits if bits == handle.bits() => return Ok(()),
                    0 => free = free.or(Some(at)),
                    _ => {}
                }
            }
            chunk = self.word(link).load(Relaxed);
        }
        let at = match free {
            Some(at) => at,
            None => self.grow_table(slot)?[0],
        };
        self.add_ref(handle, kind)?;
        crash_point!("refs.booked");
        self.word(at).store(handle.bits(), Release);
        Ok(())
    }

    /// Copies all this process holds into the table of a child that is about to be forked.
    pub(super) fn book_all(&self, registry: &Registry, child: MemberId) -> Result<Booked> {
        let slot = self.slot_of(child);
        let mut booked = Booked {
            child,
            entries: HashMap::with_capacity(registry.objects.len()),
            spare: Vec::new(),
        };
        let buffers = registry
            .buffers
            .keys()
            .filter_map(|&at| self.handle_of(at).ok());
        let handles = registry.objects.keys().map(|&bits| Handle::from_bits(bits));
        for handle in handles.chain(buffers) {
            let Ok(block) = self.block(handle.offset()) else {
                continue;
            };
            let at = match booked.spare.pop() {
                Some(at) => at,
                None => {
                    booked.spare = self.grow_table(slot)?;
                    booked.spare.pop().ok_or_else(|| self.full(CHUNK))?
                }
            };
            block.refs.fetch_add(1, AcqRel);
            self.word(at).store(handle.bits(), Release);
            booked.entries.insert(handle.bits(), at);
        }
        Ok(booked)
    }

    /// Takes over what was booked for this process: in a forked child.
    pub(super) fn take_booked(&self, registry: &mut Registry, booked: Booked) {
        registry.spare = booked.spare;
        let mut late = Vec::new();
        for (&bits, local) in &mut registry.objects {
            match booked.entries.get(&bits) {
                Some(&at) => local.entry = at,
                None => late.push(bits),
            }
        }
        // Made by another fork hook after the booking: the entry is the parent's.
        for bits in late {
            let handle = Handle::from_bits(bits);
            let kind = self
                .block(handle.offset())
                .map_or(kind::FREE, |b| b.kind.load(Acquire));
            let entry = self
                .entry(registry)
                .and_then(|at| self.add_ref(handle, kind).map(|()| at));
            match (entry, registry.objects.get_mut(&bits)) {
                (Ok(at), Some(local)) => {
                    self.word(at).store(bits, Release);
                    local.entry = at;
                }
                _ => drop(registry.objects.remove(&bits)),
            }
        }
        for (&offset, held) in &mut registry.buffers {
            let bits = self.handle_of(offset).map_or(0, Handle::bits);
            held.entry = booked.entries.get(&bits).copied();
        }
    }

    /// Takes over what the parent booked for this process by [`Arena::book`]: each entry becomes
    /// this process's own when the object is first attached, so entries are told apart by handle.
    pub(super) fn adopt_booked(&'static self) {
        let mut registry = self.registry();
        let mut chunk = self.slot_of(self.me()).refs.load(Acquire);
        for _ in 0..self.most_links() {
            let Ok((link, entries)) = self.table_chunk(chunk) else {
                break;
            };
            for at in entries {
                let bits = self.word(at).load(Relaxed);
                if bits == 0 {
                    registry.spare.push(at);
                } else {
                    registry.objects.insert(
                        bits,
                        Local {
                            copies: 0,
                            entry: at,
                        },
                    );
                }
            }
            chunk = self.word(link).load(Relaxed);
        }
    }

    /// After this process has changed places: moves what it holds to the table of the new place,
    /// and takes over what was booked there.
    ///
    /// Killed in between, it leaves objects that are never freed, but none that is freed too early.
    pub(super) fn take_along(&'static self) {
        let mut registry = self.registry();
        registry.spare.clear();
        let mine = std::mem::take(&mut registry.objects);
        drop(registry);
        self.adopt_booked();
        let mut registry = self.registry();
        let mut twice = Vec::new();
        for (bits, mut local) in mine {
            self.word(local.entry).store(0, Release);
            if let Some(booked) = registry.objects.get_mut(&bits) {
                booked.copies += local.copies;
                twice.push(bits);
            } else if let Ok(at) = self.entry(&mut registry) {
                self.word(at).store(bits, Release);
                local.entry = at;
                registry.objects.insert(bits, local);
            }
        }
        let buffers: Vec<_> = registry
            .buffers
            .iter()
            .filter_map(|(&offset, held)| Some((offset, held.entry?)))
            .collect();
        for (offset, before) in buffers {
            let bits = self.word(before).swap(0, AcqRel);
            let Ok(at) = self.entry(&mut registry) else {
                continue;
            };
            self.word(at).store(bits, Release);
            if let Some(held) = registry.buffers.get_mut(&offset) {
                held.entry = Some(at);
            }
        }
        drop(registry);
        for bits in twice {
            self.drop_ref(Handle::from_bits(bits));
        }
    }

    /// Drops what was booked for this process and that it has not attached: after it has unpickled
    /// all that its parent sent.
    pub fn drop_unclaimed(&'static self) {
        let unclaimed: Vec<(u64, Offset)> = {
            let mut registry = self.registry();
            let found: Vec<_> = registry
                .objects
                .iter()
                .filter(|(_, local)| local.copies == 0)
                .map(|(&bits, local)| (bits, local.entry))
                .collect();
            for (bits, entry) in &found {
                registry.objects.remove(bits);
                self.word(*entry).store(0, Release);
                registry.spare.push(*entry);
            }
            found
        };
        for (bits, _) in unclaimed {
            self.drop_ref(Handle::from_bits(bits));
        }
    }

    /// An entry of this member's table for a buffer that becomes shared by a fork.
    pub(super) fn share_buffer(&self, registry: &mut Registry, offset: Offset) -> Result<()> {
        let entry = self.entry(registry)?;
        let handle = self.handle_of(offset)?;
        self.word(entry).store(handle.bits(), Release);
        // From now on the table speaks for the buffer, no longer its owner word.
        self.set_owner(offset, None);
        if let Some(held) = registry.buffers.get_mut(&offset) {
            held.entry = Some(entry);
        }
        Ok(())
    }

    pub(super) fn drop_shared_buffer(
        &self,
        registry: &mut Registry,
        offset: Offset,
        entry: Offset,
    ) {
        self.word(entry).store(0, Release);
        registry.spare.push(entry);
        if let Ok(handle) = self.handle_of(offset) {
            self.drop_ref(handle);
        }
    }
}

/// Gives back all references of a dead member. May be begun again by another reaper at any point.
pub(super) fn release_table(arena: &Arena, slot: &Slot) {
    loop {
        // SYNC: pairs with the Release in `grow_table`.
        let chunk = slot.refs.load(Acquire);
        let Ok((link, entries)) = arena.table_chunk(chunk) else {
            slot.refs.store(0, Release);
            return;
        };
        for at in entries {
            let bits = arena.word(at).swap(0, AcqRel);
            if bits != 0 {
                crash_point!("reap.entry_taken");
                arena.drop_ref(Handle::from_bits(bits));
            }
        }
        slot.refs.store(arena.word(link).load(Relaxed), Release);
        crash_point!("reap.table_unlinked");
        arena.free(chunk, kind::REFS);
    }
}

/// A counted reference to an object in the arena.
///
/// Clones are cheap and share one entry in the member's table; dropping the last one in the last
/// process frees the object. If a process is killed, what it held is given back by whoever finds it
/// dead.
pub struct Shared<T: Shareable> {
    object: NonNull<T>,
    handle: Handle,
    arena: &'static Arena,
    kind: PhantomData<T>,
}

// SAFETY: a `T: Shareable` is made to be used from many threads and processes at once.
unsafe impl<T: Shareable> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Shareable> Sync for Shared<T> {}

impl<T: Shareable> Shared<T> {
    /// Puts `value` into the arena, which is created if this process has none.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn create(value: T) -> Result<Self> {
        Self::create_with_tail(value, 0)
    }

    /// As [`create`](Self::create), followed by `len` zeroed bytes: see [`tail`](Self::tail).
    ///
    /// # Errors
    /// `is_arena_full`.
    pub(crate) fn create_with_tail(value: T, len: u64) -> Result<Self> {
        let arena = Arena::get()?;
        let head = size_of::<T>() as u64;
        let size = head.checked_add(len).ok_or_else(|| arena.full(len))?;
        let mut registry = arena.registry();
        let entry = arena.entry(&mut registry)?;
        let made = arena.alloc(T::KIND, size).and_then(|offset| {
            let (object, handle) = (arena.payload(offset)?, arena.handle_of(offset)?);
            let object = NonNull::new(object.cast::<T>())
                .ok_or_else(|| Error::corrupt("an object at address 0"))?;
            Ok((object, handle))
        });
        let (object, handle) = made.inspect_err(|_| registry.spare.push(entry))?;
        // SAFETY: the block is new, large enough for both, aligned to 64, and nobody else's.
        unsafe {
            object.write(value);
            object.add(1).cast::<u8>().write_bytes(0, len as usize);
        }
        arena.word(entry).store(handle.bits(), Release);
        registry
            .objects
            .insert(handle.bits(), Local { copies: 1, entry });
        drop(registry);
        Ok(Self {
            object,
            handle,
            arena,
            kind: PhantomData,
        })
    }

    /// The bytes behind the object, in the same block: where they begin and how many there are.
    pub(crate) fn tail(&self) -> (NonNull<u8>, usize) {
        let size = self
            .arena
            .part(self.handle.offset(), T::KIND)
            .map_or(0, |(_, size)| size);
        // SAFETY: `create` and `attach` have seen to it that a `T` lies there.
        let start = unsafe { self.object.add(1) }.cast();
        (start, (size as usize).saturating_sub(size_of::<T>()))
    }

    /// A reference to the object that `handle` of `family` names.
    ///
    /// # Errors
    /// `is_foreign` if the handle is of another family, `is_gone` if the object is no more,
    /// `is_invalid` if it is of another type.
    pub fn attach(family: u64, handle: Handle) -> Result<Self> {
        let arena = Arena::of_family(family)?;
        arena.hold(handle, T::KIND)?;
        let checked = arena
            .part(handle.offset(), T::KIND)
            .and_then(|(object, len)| match NonNull::new(object.cast::<T>()) {
                Some(object) if len >= size_of::<T>() as u64 => Ok(object),
                _ => Err(Error::corrupt("an object is smaller than its type")),
            });
        match checked {
            Ok(object) => Ok(Self {
                object,
                handle,
                arena,
                kind: PhantomData,
            }),
            Err(error) => {
                arena.unhold(handle);
                Err(error)
            }
        }
    }

    /// What names the object to other members.
    pub fn handle(&self) -> Handle {
        self.handle
    }

    /// The family that the handle means something to.
    pub fn family(&self) -> u64 {
        self.arena.family()
    }

    /// The arena the object lies in.
    pub fn arena(&self) -> &'static Arena {
        self.arena
    }

    /// Takes a reference on behalf of a child that is being started.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn book_for(&self, child: MemberId) -> Result<()> {
        self.arena.book(child, self.handle, T::KIND)
    }
}

impl<T: Shareable> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: the object stays where it is as long as this reference is counted.
        unsafe { self.object.as_ref() }
    }
}

impl<T: Shareable> Clone for Shared<T> {
    fn clone(&self) -> Self {
        let mut registry = self.arena.registry();
        if let Some(local) = registry.objects.get_mut(&self.handle.bits()) {
            local.copies += 1;
        }
        drop(registry);
        Self { ..*self }
    }
}

impl<T: Shareable> Drop for Shared<T> {
    fn drop(&mut self) {
        self.arena.unhold(self.handle);
    }
}

impl<T: Shareable> std::fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared<{}>({:#x})", T::NAME, self.handle.bits())
    }
}
