//! The typed front: what Rust programs use.
//!
//! It gives meaning to bytes, by serde and generics, and has no lock, ring or protocol of its own.
//!
//! * `child`: [`init`], and what a started child does; `process`: starting it and waiting for it
//! * `task`: functions as work; `codec`: values as bytes; `handle`: shared objects inside values

mod child;
mod codec;
mod handle;
mod process;
mod queue;
mod task;

pub use child::{init, process_name};
pub use process::{Builder, Process};
pub use queue::{Queue, Undelivered};

use std::time::{Duration, Instant};

use crate::error::Result;

/// Waits on when a signal has interrupted a wait: in Rust its handler has run by then.
fn retry<T>(mut wait: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match wait() {
            Err(error) if error.is_interrupted() => {}
            done => return done,
        }
    }
}

/// When a wait that begins now ends; `None`, never, if that is beyond all clocks.
fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}
