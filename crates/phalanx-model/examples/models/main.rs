//! Locks, semaphores, conditions, events, barriers, bells and the ends of queues under all schedules
//! that a model checker finds.
//!
//! The sources are those of `phalanx`, compiled with the atomics of loom and a futex that
//! knows no time. So a lost wake-up shows as a deadlock even where a slice would hide it. What lies
//! in the arena (the log, the free lists, the reference counts) cannot lie on the heap; for them
//! `plain.rs` repeats the order of their loads and stores on small structs.
//!
//! Run by `make loom`. `make loom ARGS=NAME` checks those models only whose names contain that.
#![allow(
    dead_code,
    unused_imports,
    unreachable_pub,
    reason = "most of the sources' functions are not modelled"
)]
#![allow(missing_docs, reason = "the docs are for readers of `phalanx`")]

mod futex;
mod plain;
mod primitives;

mod os {
    pub(crate) use crate::futex;

    pub(crate) mod atomic {
        pub(crate) use loom::sync::atomic::*;
    }

    pub(crate) mod spin {
        /// Spinning only adds schedules that are like others.
        pub(crate) fn until(mut ready: impl FnMut() -> bool) -> bool {
            ready()
        }
    }
}

mod fault {
    macro_rules! crash_point {
        ($name:literal) => {};
    }
    pub(crate) use crash_point;
}

mod error {
    #[derive(Debug)]
    pub(crate) struct Error;
    pub(crate) type Result<T> = std::result::Result<T, Error>;

    impl Error {
        pub(crate) fn timeout() -> Self {
            Self
        }

        pub(crate) fn interrupted() -> Self {
            Self
        }
    }
}

#[path = "../../../phalanx/src/channel/bell.rs"]
mod bell;
#[path = "../../../phalanx/src/sync/mod.rs"]
mod sync;
#[path = "../../../phalanx/src/channel/tally.rs"]
mod tally;

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

/// A model: its name, how many switches between running threads are tried, and what is run.
type Model = (&'static str, usize, fn());

fn main() {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let models = primitives::MODELS.iter().chain(plain::MODELS);
    let mut checked = 0;
    for &(name, preemptions, model) in models.filter(|(name, ..)| name.contains(&wanted)) {
        let begin = Instant::now();
        let schedules = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&schedules);
        let mut checker = loom::model::Builder::new();
        checker.preemption_bound = Some(preemptions);
        checker.max_branches = 20_000;
        checker.check(move || {
            count.fetch_add(1, Relaxed);
            model();
        });
        println!(
            "{name}: {} schedules ({:.1?})",
            schedules.load(Relaxed),
            begin.elapsed()
        );
        checked += 1;
    }
    assert!(checked > 0, "no model is called {wanted:?}");
    println!("{checked} models are sound");
}
