//! The few system calls.

pub(crate) mod atomic;
pub(crate) mod fdpass;
pub mod futex;
pub(crate) mod life;
pub(crate) mod memory;
pub(crate) mod pidfd;
pub(crate) mod program;
pub(crate) mod signal;
pub mod spin;
