//! The dispatch core of a pool: tasks and results as bytes, workers that may die at any instruction.
//!
//! One [`Parent`] submits tasks and collects their results; any number of [`Worker`]s, each in a
//! process of its own, take tasks and deliver results. What is in the bytes is the front's affair.
//! The one invariant: *a task that was submitted is delivered once, or its worker's death is
//! reported once.* How that holds whatever dies where is told in `README.md` beside this file.
//!
//! ```
//! use phalanx::pool::{Parent, Ticket, Worker};
//!
//! # fn main() -> phalanx::Result<()> {
//! let parent = Parent::new()?;
//! let ticket = Ticket { job: 7, index: 0 };
//! let number = parent.submit(ticket, b"head", b"body", 0, Vec::new())?;
//!
//! // In the worker's process, which got the handle of `parent.core()`:
//! let worker = Worker::enter(parent.core().clone())?;
//! let mut bytes = Vec::new();
//! let task = worker.next(&mut bytes, None)?;
//! assert_eq!((task.number, &bytes[..]), (number, &b"headbody"[..]));
//! worker.finish(task.number, b"result", 0, Vec::new())?;
//!
//! let delivery = parent.collect(&mut bytes)?.expect("the worker has delivered");
//! assert_eq!(delivery.ticket, Some(ticket));
//! assert_eq!(delivery.body(&bytes), b"result");
//! # Ok(()) }
//! ```

mod core;
mod function;
mod ledger;
mod parcel;
mod parent;
mod roster;
mod search;
#[cfg(test)]
mod tests;
mod worker;

pub use self::core::PoolCore;
pub use function::{Function, FunctionCore, FunctionKey};
pub use ledger::Ticket;
pub use parcel::Large;
pub use parent::{Delivery, Fallen, Parent};
pub use worker::{Task, Worker};
