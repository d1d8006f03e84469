//! Coming to a family from outside: a place that was reserved, or, for a zygote, one taken late.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::sync::{Mutex, PoisonError};

use super::layout::{HEAP, MAGIC};
use super::{Arena, CREATE};
use crate::error::{Error, Kind, Result};
use crate::os::memory;
use crate::sync::owner::{MemberId, Members};

/// The arena to join when this process first needs one. Only locked while `CREATE` is.
static LATER: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// From here on, the first shared object makes this process a member of the family whose arena `fd`
/// is; it does not found a family of its own.
///
/// For a zygote: as long as it needs no shared object it stays out of the family, and forks fast.
pub fn join_later(fd: OwnedFd) {
    let _guard = CREATE.lock().unwrap_or_else(PoisonError::into_inner);
    *later() = Some(fd);
}

fn later() -> std::sync::MutexGuard<'static, Option<OwnedFd>> {
    LATER.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    /// Makes this process the member `id` of the family whose arena `fd` is: in a child that was
    /// started by exec or by the zygote.
    ///
    /// If it is a member of that family already (its zygote had joined it), it changes places: what
    /// it holds goes with it.
    ///
    /// # Errors
    /// `is_invalid` if this process is of another family, `is_foreign` if `fd` is no arena,
    /// `is_gone` if the place was given up in the meantime.
    pub fn adopt(fd: OwnedFd, id: MemberId) -> Result<&'static Self> {
        let guard = CREATE.lock().unwrap_or_else(PoisonError::into_inner);
        later().take();
        let Some(arena) = Self::current() else {
            let arena = Self::map_file(fd)?;
            arena.enter(id)?;
            let arena = arena.install();
            arena.adopt_booked();
            return Ok(arena);
        };
        drop(guard);
        if !same_file(arena, &fd) {
            return Err(Error::new(
                Kind::Invalid,
                "this process belongs to a family already and cannot adopt the arena of another",
            ));
        }
        let before = arena.me();
        arena.enter(id)?;
        arena.take_along();
        arena.leave(before);
        Ok(arena)
    }

    /// Joins the family that [`join_later`] named, if it did. The caller holds `CREATE`.
    pub(super) fn join() -> Option<Result<&'static Self>> {
        let fd = later().take()?;
        Some(Self::map_file(fd).and_then(|arena| {
            let id = arena.reserve()?;
            arena.enter(id)?;
            Ok(arena.install())
        }))
    }

    fn map_file(fd: OwnedFd) -> Result<Self> {
        let foreign = || Error::new(Kind::Foreign, "the descriptor is not that of an arena");
        let size = rustix::fs::fstat(&fd).map_err(|_| foreign())?.st_size;
        let span = u64::try_from(size).unwrap_or(0);
        if span < HEAP || !memory::is_large_enough(&fd, span) {
            return Err(foreign());
        }
        let base = memory::map(fd.as_fd(), size as usize)?;
        let arena = Self::at_base(base, span, fd);
        let header = arena.header();
        // SYNC: pairs with the Release in `create`.
        if header.magic.load(Acquire) != MAGIC || header.span.load(Relaxed) != span {
            return Err(foreign());
        }
        Ok(arena)
    }
}

fn same_file(arena: &Arena, fd: &OwnedFd) -> bool {
    match (rustix::fs::fstat(arena.fd()), rustix::fs::fstat(fd)) {
        (Ok(a), Ok(b)) => (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino),
        _ => false,
    }
}
