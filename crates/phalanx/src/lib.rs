//! Processes, queues, locks and pools over one shared arena.

pub mod os;
pub mod sync;
