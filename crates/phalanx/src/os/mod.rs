//! The few system calls.

pub mod futex;
pub(crate) mod life;
pub(crate) mod memory;
pub mod spin;
