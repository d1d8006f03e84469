//! The typed front: what Rust programs use.
//!
//! It gives meaning to bytes, by serde and generics, and has no lock, ring or protocol of its own.
//!
//! * `child`: [`init`], and what a started child does; `builder`: how it is started; `process`:
//!   waiting for it
//! * `task`: functions as work; `codec`: values as bytes; `handle`: shared objects inside values
//! * `pool`: sharing out tasks; `crew`: the workers that run them; `job`: waiting for results
//! * `many`: items of a queue by the hundred
//! * `queue`, `pipe`, `mutex`, `rlock`, `value`, `sync`: typed faces of the layers below; `plain`:
//!   what may lie in shared memory as it is

mod builder;
mod child;
mod codec;
mod crew;
mod handle;
mod job;
mod many;
mod mutex;
mod pipe;
mod plain;
mod pool;
mod process;
mod queue;
mod rlock;
mod sync;
mod task;
mod value;

pub use builder::Builder;
pub use child::{init, process_name};
pub use job::{Results, Task};
pub(crate) use mutex::MutexCore;
pub use mutex::{Lock, Mutex, MutexGuard};
pub use pipe::{Pipe, Receiver, Sender};
pub use plain::Plain;
pub use pool::Pool;
pub use process::Process;
pub use queue::{Queue, Undelivered};
pub use rlock::{RLock, RLockGuard};
pub use sync::{Barrier, Condition, Event, Permit, Semaphore, Waited};
pub(crate) use value::ValueCore;
pub use value::{Array, Number, Value, Word};

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::sync::Stop;

/// Waits on when a signal has interrupted a wait: in Rust its handler has run by then.
fn retry<T>(mut wait: impl FnMut() -> Result<T>) -> Result<T> {
    loop {
        match wait() {
            Err(error) if error.is_interrupted() => {}
            done => return done,
        }
    }
}

/// As [`retry`], for what can run out of time only: `None` then.
fn patiently<T>(mut wait: impl FnMut() -> Result<T, Stop>) -> Option<T> {
    loop {
        match wait() {
            Ok(done) => return Some(done),
            Err(Stop::TimedOut) => return None,
            Err(Stop::Interrupted) => {}
        }
    }
}

/// When a wait that begins now ends; `None`, never, if that is beyond all clocks.
fn deadline(timeout: Duration) -> Option<Instant> {
    Instant::now().checked_add(timeout)
}

#[cfg(test)]
mod tests {
    /// The README's program is the crate's first, which the doc tests run.
    #[test]
    fn the_readme_says_what_the_crate_says() {
        let readme = include_str!("../../../../README.md");
        let (_, rest) = readme.split_once("```rust\n").unwrap();
        let (program, _) = rest.split_once("```").unwrap();
        let documented: String = program
            .lines()
            .map(|line| format!("//! {line}").trim_end().to_owned() + "\n")
            .collect();
        assert!(include_str!("../lib.rs").contains(&documented));
    }
}
