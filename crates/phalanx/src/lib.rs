//! Processes, queues, locks and pools over one shared arena.

pub mod arena;
pub mod channel;
mod error;
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
