//! A process that runs a function: waiting for its result, and ending it.

use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::builder::Builder;
use super::child::Tag;
use super::{codec, deadline, retry};
use crate::arena::Arena;
use crate::channel;
use crate::error::{Error, Kind, Result};
use crate::process::{ExitStatus, signal_descendants, watch};
use crate::sync::MemberId;

/// A process that runs a function and gives its result, an `R`.
///
/// ```
/// use phalanx::Process;
///
/// fn total(numbers: Vec<u64>) -> u64 {
///     numbers.iter().sum()
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let child = Process::spawn(total, vec![1, 2, 3])?;
///     assert_eq!(child.join()?, 6);
///     Ok(())
/// }
/// ```
///
/// The work is a function or a closure that captures nothing; all that it needs is in its
/// argument, which goes to the child by serde, as the result comes back. Shared objects among
/// them go as handles. A closure that captures something does not compile:
///
/// ```compile_fail,E0080
/// let factor = 3;
/// let child = phalanx::Process::spawn(move |n: u32| n * factor, 2);
/// ```
///
/// Dropping a `Process` neither ends nor waits for the child, as with [`std::process::Child`]; it
/// is reaped when it has ended and this process starts or joins another one.
#[derive(Debug)]
pub struct Process<R> {
    name: String,
    pid: u32,
    life: Option<Life>,
    mailbox: channel::Queue,
    status: OnceLock<ExitStatus>,
    taken: bool,
    result: PhantomData<fn() -> R>,
}

/// What must be done once a child has ended: reap it, and give back what it held.
#[derive(Debug)]
pub(super) struct Life {
    pidfd: OwnedFd,
    member: MemberId,
}

/// Children whose `Process` was dropped before they ended.
static LEFT: Mutex<Vec<Life>> = Mutex::new(Vec::new());

impl Life {
    pub(super) fn new(pidfd: OwnedFd, member: MemberId) -> Self {
        Self { pidfd, member }
    }

    /// Waits for the end until `deadline`.
    fn wait(&self, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
        let status = retry(|| watch::wait(self.pidfd.as_fd(), deadline))?;
        if status.is_some()
            && let Some(arena) = Arena::current()
        {
            arena.cancel(self.member);
        }
        Ok(status)
    }

    fn has_ended(&self) -> bool {
        matches!(self.wait(Some(Instant::now())), Ok(Some(_)))
    }
}

/// Reaps what has ended of the children that nobody waits for.
pub(super) fn reap_left() {
    LEFT.lock()
        .unwrap_or_else(PoisonError::into_inner)
        .retain(|life| !life.has_ended());
}

impl Process<()> {
    /// A process with a name, another environment or directory, or one that dies with this one.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

impl<R> Process<R> {
    pub(super) fn new(name: String, pid: u32, life: Life, mailbox: channel::Queue) -> Self {
        Self {
            name,
            pid,
            life: Some(life),
            mailbox,
            status: OnceLock::new(),
            taken: false,
            result: PhantomData,
        }
    }

    /// Starts a process that calls `function` with `argument`.
    ///
    /// # Errors
    /// `is_invalid` if [`init`](crate::init) was not called in `main`, `is_unsupported` if the
    /// argument's type cannot be sent or the function lies in a shared library, `is_arena_full`,
    /// `is_full` if the family has as many processes as it can have, and the system's.
    pub fn spawn<A, F>(function: F, argument: A) -> Result<Self>
    where
        A: Serialize + DeserializeOwned,
        R: Serialize + DeserializeOwned,
        F: Fn(A) -> R + Copy + 'static,
    {
        Builder::default().spawn(function, argument)
    }

    /// The process's name, for people.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process's id. Once the process has been waited for, it may be another one's.
    pub fn id(&self) -> u32 {
        self.pid
    }

    fn life(&self) -> &Life {
        self.life.as_ref().expect("taken by the drop only")
    }

    fn wait(&self, deadline: Option<Instant>) -> Result<Option<ExitStatus>> {
        if let Some(&status) = self.status.get() {
            return Ok(Some(status));
        }
        let ended = self.life().wait(deadline)?;
        // Two threads may have waited; the second finds the process reaped by the first.
        Ok(ended.map(|status| *self.status.get_or_init(|| status)))
    }

    /// Whether the process still runs. Never blocks.
    pub fn is_alive(&self) -> bool {
        !matches!(self.wait(Some(Instant::now())), Ok(Some(_)))
    }

    /// How the process ended, if it has. Never blocks.
    pub fn exit_status(&self) -> Option<ExitStatus> {
        self.wait(Some(Instant::now())).ok().flatten()
    }

    /// Kills the process (`SIGKILL`). Nothing happens if it has ended.
    ///
    /// What it held is given back when it is joined, or sooner by who waits for it.
    ///
    /// # Errors
    /// The system's, if it has become another user's.
    pub fn kill(&self) -> Result<()> {
        self.signal(libc::SIGKILL)
    }

    /// Asks the process to end (`SIGTERM`), which kills it if it does not see to that signal.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn terminate(&self) -> Result<()> {
        self.signal(libc::SIGTERM)
    }

    /// Asks the process and all that descend from it to end (`SIGTERM`).
    ///
    /// None can get away by starting another one meanwhile: they are stopped first.
    ///
    /// # Errors
    /// As [`kill`](Self::kill).
    pub fn terminate_tree(&self) -> Result<()> {
        if self.is_alive() {
            signal_descendants(self.pid, libc::SIGTERM)?;
        }
        self.terminate()
    }

    fn signal(&self, signal: i32) -> Result<()> {
        watch::send_signal(self.life().pidfd.as_fd(), signal).map(|_| ())
    }

    /// Waits for the end of the process and gives its function's result.
    ///
    /// # Errors
    /// `is_panic` if the function panicked; `is_peer_death` if the process ended before it had a
    /// result, killed or by exiting; [`Error::exit_status`] tells how. `is_invalid` if the child's
    /// `main` does not call [`init`](crate::init), or if the result has been taken already;
    /// `is_unsupported` if its type cannot be sent. `is_gone` if there is a shared object in the
    /// result that the child alone held: make it here, and hand it over as an argument.
    pub fn join(mut self) -> Result<R>
    where
        R: DeserializeOwned,
    {
        match self.wait(None)? {
            Some(status) => self.take(status),
            None => Err(Error::timeout()),
        }
    }

    /// Gives the result if the process has ended. Never blocks.
    ///
    /// # Errors
    /// As [`join`](Self::join).
    pub fn try_join(&mut self) -> Result<Option<R>>
    where
        R: DeserializeOwned,
    {
        match self.wait(Some(Instant::now()))? {
            Some(status) => self.take(status).map(Some),
            None => Ok(None),
        }
    }

    /// Waits for the end of the process for `timeout` at most, and gives the result.
    ///
    /// # Errors
    /// `is_timeout` if it still runs; else as [`join`](Self::join).
    pub fn join_timeout(&mut self, timeout: Duration) -> Result<R>
    where
        R: DeserializeOwned,
    {
        match self.wait(deadline(timeout))? {
            Some(status) => self.take(status),
            None => Err(Error::new(
                Kind::Timeout,
                format!("{self} still runs after {timeout:?}"),
            )),
        }
    }

    /// What the process that ended so has left in its mailbox.
    fn take(&mut self, status: ExitStatus) -> Result<R>
    where
        R: DeserializeOwned,
    {
        reap_left();
        if std::mem::replace(&mut self.taken, true) {
            return Err(Error::new(
                Kind::Invalid,
                format!("the result of {self} has been taken already"),
            ));
        }
        let Some(message) = self.mailbox.try_get()? else {
            let what = format!("{self} ended with {status} before it had a result");
            return Err(Error::new(Kind::PeerDeath, what).with_exit(status));
        };
        let text = || String::from_utf8_lossy(message.bytes());
        let error = match Tag::of(message.tag) {
            Some(Tag::Result) => return codec::decode(message.bytes()),
            Some(Tag::Panic) => Error::new(Kind::Panic, format!("{self} panicked: {}", text())),
            Some(Tag::Failure) => Error::from_bytes(message.bytes()),
            Some(Tag::Request) if status.signal().is_none() => Error::new(
                Kind::Invalid,
                format!(
                    "{self} ended with {status} and never came to phalanx::init(): call it first \
                     in main"
                ),
            ),
            Some(Tag::Request) => Error::new(
                Kind::PeerDeath,
                format!("{self} ended with {status} before it began"),
            ),
            None => Error::corrupt("a process's mailbox"),
        };
        Err(error.with_exit(status))
    }
}

impl<R> std::fmt::Display for Process<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} (process {})", self.name, self.pid)
    }
}

impl<R> AsFd for Process<R> {
    /// A descriptor that is readable once the process has ended, for `poll` and its like.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.life().pidfd.as_fd()
    }
}

impl<R> Drop for Process<R> {
    fn drop(&mut self) {
        if self.is_alive()
            && let Some(life) = self.life.take()
        {
            LEFT.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(life);
        }
    }
}
