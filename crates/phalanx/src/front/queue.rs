//! Queues of values.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Deref;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::handle::travels_as_handle;
use super::{codec, deadline, retry};
use crate::channel::queue::QueueCore;
use crate::channel::{self, Patience};
use crate::error::{Error, Result};

/// A queue of `T`s, first in first out, with any number of producers and consumers.
///
/// Clones, and copies that went to another process, are the same queue. An item is in the queue
/// when `put` returns: nothing is sent later, so a process may end at once after its last `put`.
///
/// ```
/// use phalanx::{Process, Queue};
///
/// fn greet(queue: Queue<String>) {
///     queue.put("hello".into()).unwrap();
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let queue = Queue::new()?;
///     let child = Process::spawn(greet, queue.clone())?;
///     assert_eq!(queue.get()?, "hello");
///     child.join()
/// }
/// ```
///
/// # When a process dies
/// An item is in the queue whole or not at all, and everybody else goes on. Nobody is told: who
/// waits for an item of a process that is dead waits for ever, unless with a timeout.
///
/// # Shared objects as items
/// A queue, a lock or a value may be an item, or part of one. It travels as a handle, which does
/// not keep the object: the sender must do so until the receiver has taken the item, whose `get`
/// otherwise fails with `is_gone`.
pub struct Queue<T> {
    pub(super) raw: channel::Queue,
    items: PhantomData<fn(T) -> T>,
}

impl<T> Queue<T> {
    /// A queue for any number of items: `put` never waits.
    ///
    /// # Errors
    /// `is_arena_full`, and the system's when the arena cannot be made.
    pub fn new() -> Result<Self> {
        channel::Queue::joinable(None).map(Self::from_raw)
    }

    /// A queue for `capacity` items at a time: `put` waits for room.
    ///
    /// # Errors
    /// `is_invalid` for a capacity of 0; else as [`new`](Self::new).
    pub fn bounded(capacity: u64) -> Result<Self> {
        channel::Queue::joinable(Some(capacity)).map(Self::from_raw)
    }

    fn from_raw(raw: channel::Queue) -> Self {
        Self {
            raw,
            items: PhantomData,
        }
    }

    /// How many items are in the queue, exactly.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn len(&self) -> Result<u64> {
        self.raw.len()
    }

    /// Whether there is nothing in the queue.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn is_empty(&self) -> Result<bool> {
        self.raw.is_empty()
    }

    /// How many items may be in the queue at a time; `None`: any number.
    pub fn capacity(&self) -> Option<u64> {
        self.raw.bound()
    }

    /// Ends the queue for everybody, for ever: each `put` fails from now on, and each `get` once the
    /// queue is empty. Whoever waits now, in any process, is woken.
    ///
    /// ```
    /// # fn main() -> phalanx::Result<()> {
    /// let queue = phalanx::Queue::new()?;
    /// queue.put(1)?;
    /// queue.close()?;
    /// assert!(queue.put(2).unwrap_err().is_closed());
    /// assert_eq!(queue.get()?, 1);
    /// assert!(queue.get().unwrap_err().is_closed());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn close(&self) -> Result<()> {
        self.raw.shutdown(false)
    }

    /// As [`close`](Self::close), and throws away what is in the queue: no `get` succeeds any more,
    /// and [`join`](Self::join) waits only for items that were taken before.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn close_now(&self) -> Result<()> {
        self.raw.shutdown(true)
    }

    /// Whether the queue was closed, by any process.
    pub fn is_closed(&self) -> bool {
        self.raw.is_shut()
    }

    /// Says that the work on one item that was taken is done; see [`join`](Self::join).
    ///
    /// # Errors
    /// `is_invalid` if that was said of all items ever put.
    pub fn task_done(&self) -> Result<()> {
        self.raw.task_done()
    }

    /// Waits until [`task_done`](Self::task_done) was called once for each item ever put, but for
    /// those that [`close_now`](Self::close_now) threw away.
    ///
    /// What a process had taken and not reported when it died counts as done.
    ///
    /// # Errors
    /// `is_corrupt`.
    pub fn join(&self) -> Result<()> {
        retry(|| self.raw.join(None))
    }

    /// As [`join`](Self::join), for `timeout` at most.
    ///
    /// # Errors
    /// `is_timeout`.
    pub fn join_timeout(&self, timeout: Duration) -> Result<()> {
        let deadline = deadline(timeout);
        retry(|| self.raw.join(deadline))
    }
}

impl<T: Serialize> Queue<T> {
    /// Puts an item; waits for room in a bounded queue, for ever if nobody takes.
    ///
    /// # Errors
    /// [`Undelivered`], with the item: `is_closed`, `is_arena_full`, `is_unsupported` if the type
    /// cannot be sent.
    pub fn put(&self, item: T) -> Result<(), Undelivered<T>> {
        self.put_until(item, None)
    }

    /// Puts an item if there is room. Never blocks.
    ///
    /// # Errors
    /// `is_full`; else as [`put`](Self::put).
    pub fn try_put(&self, item: T) -> Result<(), Undelivered<T>> {
        self.put_until(item, Some(Instant::now()))
    }

    /// Puts an item; waits for room for `timeout` at most.
    ///
    /// # Errors
    /// `is_full`; else as [`put`](Self::put).
    pub fn put_timeout(&self, item: T, timeout: Duration) -> Result<(), Undelivered<T>> {
        self.put_until(item, deadline(timeout))
    }

    fn put_until(&self, item: T, deadline: Option<Instant>) -> Result<(), Undelivered<T>> {
        let sent = codec::with_encoded(&item, |bytes| {
            let parts = [bytes];
            let mut letter = self.raw.letter(&parts, 0, Vec::new())?;
            retry(|| self.raw.put(&mut letter, deadline))
        });
        sent.map_err(|error| Undelivered::new(error, item))
    }
}

impl<T: DeserializeOwned> Queue<T> {
    /// Takes the oldest item; waits for one, for ever if nobody puts and the queue stays open.
    ///
    /// # Errors
    /// `is_closed` once a closed queue is empty. What a shared object in the item says (`is_gone`); `is_corrupt`. The item is lost then.
    pub fn get(&self) -> Result<T> {
        self.get_until(None)
    }

    /// Takes the oldest item, if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn try_get(&self) -> Result<Option<T>> {
        match self.get_until(Some(Instant::now())) {
            Ok(item) => Ok(Some(item)),
            Err(error) if error.is_empty() => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn take(&self) -> Result<Option<T>> {
        codec::receive(self.raw.core().arena(), |bytes| {
            self.raw.try_get_into(bytes, Patience::Wait)
        })
    }

    /// Takes the oldest item; waits for one for `timeout` at most.
    ///
    /// # Errors
    /// `is_empty` when the time is over; else as [`get`](Self::get).
    pub fn get_timeout(&self, timeout: Duration) -> Result<T> {
        self.get_until(deadline(timeout))
    }

    fn get_until(&self, deadline: Option<Instant>) -> Result<T> {
        loop {
            if let Some(item) = self.take()? {
                return Ok(item);
            }
            retry(|| self.raw.wait_for_item(deadline))?;
        }
    }
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Self::from_raw(self.raw.clone())
    }
}

impl<T> fmt::Debug for Queue<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("len", &self.len().ok())
            .field("capacity", &self.capacity())
            .finish()
    }
}

travels_as_handle!(Queue<T>, QueueCore, |queue| queue.raw.core(), |core| {
    Queue::from_raw(channel::Queue::from_core(core))
});

/// Why an item was not sent, and the item.
///
/// Turns into an [`Error`] by `?`, and has its predicates.
pub struct Undelivered<T> {
    error: Error,
    item: T,
}

impl<T> Undelivered<T> {
    pub(super) fn new(error: Error, item: T) -> Self {
        Self { error, item }
    }

    /// The item.
    pub fn into_inner(self) -> T {
        self.item
    }

    /// Both.
    pub fn into_parts(self) -> (Error, T) {
        (self.error, self.item)
    }
}

impl<T> Deref for Undelivered<T> {
    type Target = Error;

    fn deref(&self) -> &Error {
        &self.error
    }
}

impl<T> From<Undelivered<T>> for Error {
    fn from(undelivered: Undelivered<T>) -> Self {
        undelivered.error
    }
}

impl<T> fmt::Debug for Undelivered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.error, f)
    }
}

impl<T> fmt::Display for Undelivered<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.error, f)
    }
}

impl<T> std::error::Error for Undelivered<T> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&self.error)
    }
}
