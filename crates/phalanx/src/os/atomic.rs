//! The atomics that locks, semaphores and bells are made of.
//!
//! They are the processor's. `crates/phalanx-model` compiles the same sources with those of a model
//! checker in this place, and with a futex of its own: so nothing here is taken from
//! `std::sync::atomic` directly.

pub(crate) use std::sync::atomic::*;
