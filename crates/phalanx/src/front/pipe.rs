//! Pipes of values: one end here, the other in another process.

use std::fmt;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::queue::Undelivered;
use super::{codec, deadline, handle, retry};
use crate::arena::Handle;
use crate::channel::Patience;
use crate::channel::pipe::{self, End};
use crate::error::{Error, Kind, Result};

/// One end of a pipe: sends `S`s to the other end, and receives `R`s from it.
///
/// ```
/// use phalanx::{Pipe, Process};
///
/// /// Answers questions until nobody asks any more.
/// fn answer(pipe: Pipe<usize, String>) {
///     while let Ok(question) = pipe.recv() {
///         pipe.send(question.len()).unwrap();
///     }
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let (here, there) = Pipe::new()?;
///     let child = Process::spawn(answer, there)?;
///     here.send("four".to_owned())?;
///     assert_eq!(here.recv()?, 4);
///     drop(here);
///     child.join()
/// }
/// ```
///
/// An end is handed to a process in its argument, when that is started, and is then that
/// process's alone; it cannot be an item of a queue or a task's. For many producers or consumers
/// use a [`Queue`](crate::Queue).
///
/// # When a process dies
/// A message arrives whole or not at all. When all who held the other end have dropped it or died,
/// what they had sent can still be received, and then `recv` fails with `is_closed`; `send` fails
/// with `is_peer_death`.
pub struct Pipe<S, R = S> {
    end: End,
    messages: PhantomData<fn(S) -> R>,
}

/// The sending end of a pipe of one direction: see [`Pipe::one_way`].
pub struct Sender<T>(Pipe<T, Nothing>);

/// The receiving end of a pipe of one direction: see [`Pipe::one_way`].
pub struct Receiver<T>(Pipe<Nothing, T>);

/// What never goes the other way.
enum Nothing {}

impl<S, R> Pipe<S, R> {
    /// A pipe's two ends: what one sends the other receives.
    ///
    /// # Errors
    /// `is_arena_full`; the system's, when it is out of descriptors.
    pub fn new() -> Result<(Self, Pipe<R, S>)> {
        let (first, second) = pipe::pipe()?;
        Ok((Self::of(first), Pipe::of(second)))
    }

    fn of(end: End) -> Self {
        Self {
            end,
            messages: PhantomData,
        }
    }
}

impl<T> Pipe<T, T> {
    /// A pipe of one direction.
    ///
    /// ```
    /// let (sender, receiver) = phalanx::Pipe::one_way()?;
    /// sender.send(1)?;
    /// sender.send(2)?;
    /// drop(sender);
    /// assert_eq!(receiver.iter().collect::<phalanx::Result<Vec<i32>>>()?, [1, 2]);
    /// # Ok::<(), phalanx::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn one_way() -> Result<(Sender<T>, Receiver<T>)> {
        let (first, second) = Pipe::new()?;
        Ok((Sender(first), Receiver(second)))
    }
}

impl<S: Serialize, R> Pipe<S, R> {
    /// Sends a message; waits if a megabyte of them is on the way.
    ///
    /// # Errors
    /// [`Undelivered`], with the message: `is_peer_death` if nobody will receive it,
    /// `is_arena_full`, `is_unsupported` if the type cannot be sent.
    pub fn send(&self, message: S) -> Result<(), Undelivered<S>> {
        self.send_until(message, None)
    }

    /// As [`send`](Self::send), waiting for `timeout` at most.
    ///
    /// # Errors
    /// `is_timeout`; else as [`send`](Self::send).
    pub fn send_timeout(&self, message: S, timeout: Duration) -> Result<(), Undelivered<S>> {
        self.send_until(message, deadline(timeout))
    }

    fn send_until(&self, message: S, deadline: Option<Instant>) -> Result<(), Undelivered<S>> {
        let sent = codec::with_encoded(&message, |bytes| {
            let parts = [bytes];
            let mut letter = self.end.letter(&parts, 0, Vec::new())?;
            retry(|| self.end.send(&mut letter, deadline))
        });
        sent.map_err(|error| Undelivered::new(error, message))
    }
}

impl<S, R: DeserializeOwned> Pipe<S, R> {
    /// Receives a message; waits for one.
    ///
    /// # Errors
    /// `is_closed` if nothing is left and the other end is gone; what a shared object in the
    /// message says (`is_gone`).
    pub fn recv(&self) -> Result<R> {
        self.recv_until(None)
    }

    /// Receives a message if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`recv`](Self::recv).
    pub fn try_recv(&self) -> Result<Option<R>> {
        match self.take()? {
            Some(message) => Ok(Some(message)),
            None if self.end.at_end()? => Err(closed()),
            None => Ok(None),
        }
    }

    /// Receives a message; waits for one for `timeout` at most.
    ///
    /// # Errors
    /// `is_timeout`; else as [`recv`](Self::recv).
    pub fn recv_timeout(&self, timeout: Duration) -> Result<R> {
        self.recv_until(deadline(timeout))
    }

    /// The messages, until the other end is gone.
    pub fn iter(&self) -> impl Iterator<Item = Result<R>> {
        std::iter::from_fn(|| match self.recv() {
            Err(error) if error.is_closed() => None,
            received => Some(received),
        })
    }

    fn recv_until(&self, deadline: Option<Instant>) -> Result<R> {
        loop {
            if let Some(message) = self.try_recv()? {
                return Ok(message);
            }
            if !retry(|| self.end.wait(deadline))? {
                return Err(Error::new(
                    Kind::Timeout,
                    "nothing came through the pipe in time",
                ));
            }
        }
    }

    fn take(&self) -> Result<Option<R>> {
        codec::receive(self.end.core().arena(), |bytes| {
            self.end.try_recv_into(bytes, Patience::Wait)
        })
    }
}

fn closed() -> Error {
    Error::new(
        Kind::Closed,
        "the other end of the pipe is closed and nothing is left in it",
    )
}

impl<T: Serialize> Sender<T> {
    /// Sends a message; waits if a megabyte of them is on the way.
    ///
    /// # Errors
    /// As [`Pipe::send`].
    pub fn send(&self, message: T) -> Result<(), Undelivered<T>> {
        self.0.send(message)
    }

    /// As [`send`](Self::send), waiting for `timeout` at most.
    ///
    /// # Errors
    /// As [`Pipe::send_timeout`].
    pub fn send_timeout(&self, message: T, timeout: Duration) -> Result<(), Undelivered<T>> {
        self.0.send_timeout(message, timeout)
    }
}

impl<T: DeserializeOwned> Receiver<T> {
    /// Receives a message; waits for one.
    ///
    /// # Errors
    /// As [`Pipe::recv`].
    pub fn recv(&self) -> Result<T> {
        self.0.recv()
    }

    /// Receives a message if there is one. Never blocks.
    ///
    /// # Errors
    /// As [`Pipe::recv`].
    pub fn try_recv(&self) -> Result<Option<T>> {
        self.0.try_recv()
    }

    /// Receives a message; waits for one for `timeout` at most.
    ///
    /// # Errors
    /// As [`Pipe::recv_timeout`].
    pub fn recv_timeout(&self, timeout: Duration) -> Result<T> {
        self.0.recv_timeout(timeout)
    }

    /// The messages, until the sender is gone.
    pub fn iter(&self) -> impl Iterator<Item = Result<T>> {
        self.0.iter()
    }
}

impl<S, R> AsFd for Pipe<S, R> {
    /// A descriptor that is readable while there is something to receive, or the other end is
    /// gone: for `poll` and its like. From the first call on it is kept so, at the price of a
    /// system call for each message that finds the pipe empty. Only look at it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.end.exposed_fd()
    }
}

impl<T> AsFd for Receiver<T> {
    /// As that of [`Pipe`].
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl<S, R> Serialize for Pipe<S, R> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
        /// The counted object, by its handle.
        struct Core<'a>(&'a End);
        impl Serialize for Core<'_> {
            fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                handle::serialize(self.0.core(), serializer)
            }
        }
        let descriptor = handle::pack_descriptor(self.end.socket())
            .map_err(|e| serde::ser::Error::custom(codec::because(e)))?;
        (Core(&self.end), descriptor).serialize(serializer)
    }
}

impl<'de, S, R> Deserialize<'de> for Pipe<S, R> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let ((family, bits), descriptor) = <((u64, u64), RawFd)>::deserialize(deserializer)?;
        handle::take_descriptor(descriptor)
            .and_then(|socket| End::attach(family, Handle::from_bits(bits), socket))
            .map(Self::of)
            .map_err(|e| serde::de::Error::custom(codec::because(e)))
    }
}

macro_rules! travels_as_its_pipe {
    ($($name:ident)*) => {$(
        impl<T> Serialize for $name<T> {
            fn serialize<Z: Serializer>(&self, serializer: Z) -> Result<Z::Ok, Z::Error> {
                self.0.serialize(serializer)
            }
        }

        impl<'de, T> Deserialize<'de> for $name<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                Pipe::deserialize(deserializer).map(Self)
            }
        }

        impl<T> fmt::Debug for $name<T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(stringify!($name))
            }
        }
    )*};
}
travels_as_its_pipe!(Sender Receiver);

impl<S, R> fmt::Debug for Pipe<S, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pipe")
            .field(&self.end.core().handle())
            .finish()
    }
}
