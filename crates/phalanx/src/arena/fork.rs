//! What has to happen around a fork, so that the child is a member before it runs.
//!
//! Call [`prepare`] before, then [`parent`] or [`child`] after, all on the forking thread. Between
//! them the process's books are locked, so that the child does not inherit them half written by a
//! thread that it does not have.
//!
//! Other fork hooks may run between ours, on this thread, and drop or make shared objects there:
//! [`lend`] gives them the books that this thread has locked.

use std::cell::RefCell;
use std::sync::{MutexGuard, PoisonError};

use super::refs::{Booked, Registry};
use super::{Arena, CREATE};
use crate::fault::crash_point;
use crate::sync::owner::MemberId;

struct Prepared {
    _create: MutexGuard<'static, ()>,
    arena: &'static Arena,
    /// `None` while it is lent.
    books: Option<MutexGuard<'static, Registry>>,
    booked: Option<Booked>,
}

thread_local! {
    static PREPARED: RefCell<Option<Prepared>> = const { RefCell::new(None) };
    static LAST: RefCell<Option<MemberId>> = const { RefCell::new(None) };
}

/// Reserves the child's place and counts its references. Nothing to do without an arena.
pub fn prepare() {
    let create = CREATE.lock().unwrap_or_else(PoisonError::into_inner);
    let Some(arena) = Arena::current() else {
        return;
    };
    let mut books = arena.lock_books();
    let booked = arena.reserve().and_then(|child| {
        crash_point!("fork.reserved");
        arena.freeze_buffers(&mut books)?;
        arena.book_all(&books, child).inspect_err(|_| {
            arena.cancel(child);
        })
    });
    PREPARED.set(Some(Prepared {
        _create: create,
        arena,
        books: Some(books),
        // With no place for it (the table or the arena is full) the child still runs; what it does
        // with shared objects fails there, with the same error.
        booked: booked.ok(),
    }));
}

/// In the parent, whether or not the fork succeeded.
pub fn parent() {
    if let Some(prepared) = PREPARED.take() {
        LAST.set(prepared.booked.map(|b| b.child));
    }
}

/// The place reserved by this thread's last fork: to give it up with [`Arena::cancel`] when that
/// child is known to be dead, or was never born.
pub fn last_child() -> Option<MemberId> {
    LAST.take()
}

/// In the child.
pub fn child() {
    let Some(Prepared {
        arena,
        books: Some(mut books),
        booked,
        ..
    }) = PREPARED.take()
    else {
        return;
    };
    match booked {
        Some(booked) if arena.enter(booked.child).is_ok() => arena.take_booked(&mut books, booked),
        _ => arena.enter_late(&mut books),
    }
}

/// The books, if this thread has locked them for a fork.
pub(super) fn lend() -> Option<MutexGuard<'static, Registry>> {
    PREPARED.with_borrow_mut(|p| p.as_mut()?.books.take())
}

/// Takes back what was lent.
pub(super) fn take_back(books: MutexGuard<'static, Registry>) {
    PREPARED.with_borrow_mut(|p| {
        if let Some(prepared) = p {
            prepared.books = Some(books);
        }
    });
}
