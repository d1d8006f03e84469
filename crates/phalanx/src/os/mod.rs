//! The few system calls.

pub mod futex;
pub mod spin;
