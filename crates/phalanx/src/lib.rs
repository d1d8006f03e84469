//! Processes, queues, locks and pools over one shared arena, safe against the death of any process.
//!
//! For work that is better done by processes than by threads: parsers that may crash, libraries
//! that leak or are not thread-safe, limits of memory, work that must be killed. The parts are
//! those of Python's `multiprocessing`, typed.
//!
//! ```
//! use phalanx::{Process, Queue};
//!
//! fn square((numbers, results): (Queue<Option<u64>>, Queue<(u64, u64)>)) {
//!     while let Some(number) = numbers.get().unwrap() {
//!         results.put((number, number * number)).unwrap();
//!     }
//! }
//!
//! fn main() -> phalanx::Result<()> {
//!     phalanx::init();
//!     let (numbers, results) = (Queue::new()?, Queue::new()?);
//!     let workers = [
//!         Process::spawn(square, (numbers.clone(), results.clone()))?,
//!         Process::spawn(square, (numbers.clone(), results.clone()))?,
//!     ];
//!     for number in 0..10 {
//!         numbers.put(Some(number))?;
//!     }
//!     numbers.put(None)?;
//!     numbers.put(None)?;
//!     for worker in workers {
//!         worker.join()?; // before anything is read: the queue does not mind
//!     }
//!     assert_eq!(results.len()?, 10);
//!     Ok(())
//! }
//! ```
//!
//! # Processes
//! [`Process::spawn`] starts this same program once more, which enters the function at
//! [`init`]: so that call stands first in `main`. The function is a `fn` or a closure that captures
//! nothing; what it needs is its argument. Argument and result are any types that serde knows, but
//! those that must see the data to learn their type (untagged enums, flattened fields).
//!
//! ```
//! fn main() -> phalanx::Result<()> {
//!     phalanx::init();
//!     let child = phalanx::Process::spawn(|path: String| std::fs::read(path).is_ok(), "/".into())?;
//!     assert!(!child.join()?);
//!
//!     let child = phalanx::Process::spawn(|()| -> u8 { std::process::abort() }, ())?;
//!     let error = child.join().unwrap_err();
//!     assert!(error.is_peer_death());
//!     assert_eq!(error.exit_status().unwrap().signal(), Some(6));
//!     Ok(())
//! }
//! ```
//!
//! # Messages
//! A [`Queue`] is for any number of producers and consumers, a [`Pipe`] is between two, and tells
//! its end. Queues and everything else that is shared may themselves be arguments, items and fields
//! of structures. Many small items go faster by [`Queue::put_many`] and [`Queue::get_many`].
//!
//! To serde a `Vec<u8>` is a row of numbers, which it takes apart one by one. As `ByteBuf` of the
//! crate `serde_bytes`, or in a field marked `#[serde(with = "serde_bytes")]`, bytes travel in one
//! piece: a kilobyte three times as fast, a megabyte ten times.
//!
//! ```
//! use serde_bytes::ByteBuf;
//!
//! # fn main() -> phalanx::Result<()> {
//! let queue = phalanx::Queue::new()?;
//! queue.put(ByteBuf::from(vec![7; 1 << 20]))?;
//! let bytes: Vec<u8> = queue.get()?.into_vec();
//! assert_eq!(bytes.len(), 1 << 20);
//! # Ok(())
//! # }
//! ```
//!
//! # Shared state
//! A [`Value`] is a number changed in single steps, a [`Mutex`] any [`Plain`] value under a lock,
//! an [`Array`] numbers in a row. [`Semaphore`], [`Event`], [`Condition`] and [`Barrier`] are for
//! waiting.
//!
//! ```
//! use phalanx::{Mutex, Process};
//!
//! fn main() -> phalanx::Result<()> {
//!     phalanx::init();
//!     let total = Mutex::new(0u64)?;
//!     let child: Process<()> = Process::spawn(
//!         |total: Mutex<u64>| {
//!             let _held = total.lock().unwrap();
//!             std::process::abort()
//!         },
//!         total.clone(),
//!     )?;
//!     assert!(child.join().is_err());
//!     // The lock is free, and says that its holder died.
//!     let poisoned = total.lock().unwrap_err();
//!     assert_eq!(*poisoned.into_inner(), 0);
//!     Ok(())
//! }
//! ```
//!
//! # Pools
//! A [`Pool`] keeps worker processes for many short tasks. A worker's death costs the task that it
//! was at, and no other.
//!
//! ```
//! fn main() -> phalanx::Result<()> {
//!     phalanx::init();
//!     let pool = phalanx::Pool::new(2)?;
//!     let results = pool.map_each(0..4, |n: u32| if n == 2 { std::process::exit(1) } else { n });
//!     assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 3);
//!     assert!(results[2].as_ref().unwrap_err().is_peer_death());
//!     pool.join()
//! }
//! ```
//!
//! # When a process dies
//! | it held | the others see, within 100 ms |
//! | --- | --- |
//! | a [`Mutex`] | the next one gets it, poisoned |
//! | an [`RLock`] | the next one gets it, with an error that holds the guard |
//! | permits of a [`Semaphore`] | the permits come back |
//! | a place at a [`Barrier`] | the barrier breaks |
//! | a place at a [`Condition`] or [`Event`] | nothing |
//! | one end of a [`Pipe`] | what it had sent, then the end |
//! | an item that it was about to put, or had just taken | nothing: it is lost; all others are there |
//! | a task of a [`Pool`] | that task's error; another worker |
//!
//! A child does not end with its parent, unless it was asked to
//! ([`Builder::die_with_parent`]); a pool's workers do. Nothing is left behind: the shared memory
//! has no name and goes with the last process that uses it.
//!
//! # Waiting and signals
//! What waits goes on after a signal whose handler returns, as in std. `x` waits for ever, `try_x`
//! not at all, `x_timeout` for some time.
//!
//! # Tests
//! The standard test harness has a `main` of its own, without [`init`]: in it, starting a process
//! is an error. Write `harness = false` for the test in `Cargo.toml`, and a `main` that begins with
//! `phalanx::init()`. Doc tests with a `main` work as they are.
//!
//! # Below
//! The modules are the layers that the types stand on: bytes instead of types, deadlines and
//! interruptions instead of patience. They are for other fronts, as that for Python, and change
//! more often.
//!
//! Linux only, on 64-bit machines.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

pub mod arena;
pub mod channel;
mod error;
#[cfg(feature = "crash-points")]
pub mod fault;
#[cfg(not(feature = "crash-points"))]
mod fault;
mod front;
pub mod os;
pub mod pool;
pub mod process;
pub mod shared;
pub mod sync;
#[cfg(test)]
mod testing;

pub use error::{Error, Result};
pub use front::{
    Array, Barrier, Builder, Condition, Event, Lock, Mutex, MutexGuard, Number, Permit, Pipe,
    Plain, Pool, Process, Queue, RLock, RLockGuard, Receiver, Results, Semaphore, Sender, Task,
    Undelivered, Value, Waited, Word, init, process_name,
};
pub use process::ExitStatus;

use arena::kind::KindInfo;

/// All kinds of counted objects: what any member, typed or not, needs to know to give back the
/// references of a dead one.
static KINDS: &[KindInfo] = &[
    KindInfo::of::<channel::queue::QueueCore>(),
    KindInfo::of::<channel::pipe::PipeCore>(),
    KindInfo::of::<channel::pipe::EndCore>(),
    KindInfo::of::<pool::PoolCore>(),
    KindInfo::of::<pool::FunctionCore>(),
    KindInfo::of::<sync::Lock>(),
    KindInfo::of::<sync::RLock>(),
    KindInfo::of::<sync::Semaphore>(),
    KindInfo::of::<sync::BoundedSemaphore>(),
    KindInfo::of::<sync::Condition>(),
    KindInfo::of::<sync::Event>(),
    KindInfo::of::<sync::Barrier>(),
    KindInfo::of::<shared::memory::Bytes>(),
    KindInfo::of::<front::MutexCore<()>>(),
    KindInfo::of::<front::ValueCore>(),
    #[cfg(test)]
    KindInfo::of::<testing::Counter>(),
];

/// The program in the README is tested with the others.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
