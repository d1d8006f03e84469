//! Locks and their kin, for processes that may die at any instruction.
//!
//! Everything here is a plain struct of atomics without addresses: it works wherever it lies,
//! in the arena or on the heap. Every claim names its owner, and whoever waits for an owner looks
//! at its life once a [`SLICE`].

pub mod owner;
pub mod raw;
#[cfg(test)]
pub(crate) mod testing;

use std::time::{Duration, Instant};

pub use owner::{MemberId, Members};
pub use raw::{Acquired, RawLock};

/// How long a waiter for something owned sleeps before it looks whether the owner lives.
pub const SLICE: Duration = Duration::from_millis(50);

/// Why a wait ended without what it waited for. The state is as if it had never begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// The deadline has passed.
    TimedOut,
    /// A signal was delivered: serve it, and call again.
    Interrupted,
}

/// The end of the next slice, or the deadline if that is nearer.
fn slice_end(deadline: Option<Instant>) -> Instant {
    let slice = Instant::now() + SLICE;
    deadline.map_or(slice, |deadline| deadline.min(slice))
}

/// Whether a deadline has passed.
fn passed(deadline: Option<Instant>) -> bool {
    deadline.is_some_and(|deadline| Instant::now() >= deadline)
}
