//! Locks and their kin, for processes that may die at any instruction.
//!
//! Everything here is a plain struct of atomics without addresses: it works wherever it lies,
//! in the arena or on the heap. Every claim names its owner, and whoever waits for an owner looks
//! at its life once a [`SLICE`]. What lies where, which state means what, and what survivors see
//! of a death at each step is drawn in `README.md` beside this file.
//!
//! No wait loops over signals: it returns [`Stop::Interrupted`], and calling again is right.
//!
//! ```
//! use phalanx::arena::Shared;
//! use phalanx::sync::{Event, Lock};
//!
//! let lock = Shared::create(Lock::new())?;
//! let members = lock.arena();
//! let acquired = lock.acquire(members, None).expect("no deadline, no signal");
//! assert!(!acquired.recovered); // true if its owner had died holding it
//! assert!(lock.try_acquire(members).is_none());
//! lock.release().expect("it is held");
//!
//! let ready = Shared::create(Event::new())?;
//! ready.set();
//! assert_eq!(ready.wait(None), Ok(()));
//! # Ok::<(), phalanx::Error>(())
//! ```

pub mod barrier;
pub mod bounded;
pub mod condition;
pub mod event;
pub(crate) mod holdings;
pub mod lock;
pub mod owner;
#[cfg(not(loom))]
mod place;
pub mod raw;
pub mod rlock;
pub mod semaphore;
pub mod slots;
#[cfg(test)]
pub(crate) mod testing;

use crate::os::atomic::AtomicU32;
use crate::os::atomic::Ordering::Relaxed;
use std::cell::Cell;
use std::time::{Duration, Instant};

pub use barrier::Barrier;
pub use bounded::BoundedSemaphore;
pub use condition::Condition;
pub use event::Event;
pub use lock::Lock;
pub use owner::{MemberId, Members};
pub use raw::{Acquired, RawLock};
pub use rlock::RLock;
pub use semaphore::Semaphore;

/// How long a waiter for something owned sleeps before it looks whether the owner lives.
pub const SLICE: Duration = Duration::from_millis(50);

/// The largest value of a semaphore.
pub const SEM_VALUE_MAX: u32 = 0x7fff_ffff;

/// Why a wait ended without what it waited for. The state is as if it had never begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The deadline has passed.
    TimedOut,
    /// A signal was delivered: serve it, and call again.
    Interrupted,
}

/// A release of something that the caller (or, for a lock that anybody may free, nobody) holds, or
/// of a semaphore that is at its maximum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHeld;

/// The end of the next slice, or the deadline if that is nearer.
pub(crate) fn slice_end(deadline: Option<Instant>) -> Instant {
    let slice = Instant::now() + SLICE;
    deadline.map_or(slice, |deadline| deadline.min(slice))
}

/// Whether a deadline has passed.
pub(crate) fn passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}

/// A number for the calling thread: never 0, never that of another thread of this process, and
/// kept by the thread that goes on in the child of a fork.
#[inline]
fn this_thread() -> u32 {
    NUMBER.with(|number| {
        if number.get() == 0 {
            number.set(new_thread());
        }
        number.get()
    })
}

thread_local! {
    static NUMBER: Cell<u32> = const { Cell::new(0) };
}

/// A number for a thread that this process has none of yet: for one of another process, for which
/// threads of this one [act](act_as_thread).
#[cold]
pub fn new_thread() -> u32 {
    // Not the model's: a static has to be made without a model.
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// From here on the calling thread owns locks as the thread of that number; returns its own.
pub fn act_as_thread(number: u32) -> u32 {
    let own = this_thread();
    NUMBER.set(number);
    own
}

/// When somebody last looked whether the owners of an object live, for those who only *try*.
///
/// A program that polls must find a dead owner, too, but not pay for system calls at each try.
#[derive(Debug, Default)]
#[repr(transparent)]
pub(crate) struct LastLook(AtomicU32);

impl LastLook {
    pub(crate) fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    /// Whether it is time to look again; counts as having looked.
    pub(crate) fn is_due(&self) -> bool {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::MonotonicCoarse);
        // Milliseconds, wrapping round every 49 days.
        let now = (now.tv_sec as u64 * 1000 + now.tv_nsec as u64 / 1_000_000) as u32;
        let last = self.0.load(Relaxed);
        if now.wrapping_sub(last) < SLICE.as_millis() as u32 / 2 {
            return false;
        }
        self.0.store(now, Relaxed);
        true
    }
}
