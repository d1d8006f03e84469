//! What processes wait for, beside locks: semaphores, events, conditions, barriers.

use std::fmt;
use std::sync::{LockResult, PoisonError};
use std::time::{Duration, Instant};

use super::handle::travels_as_handle;
use super::mutex::MutexGuard;
use super::plain::Plain;
use super::{deadline, patiently};
use crate::arena::Shared;
use crate::error::{Error, Kind, Result};
use crate::sync::barrier::{Arrival, Failure};
use crate::sync::{self, Stop};

/// A number of permits, each held by one process or thread at a time.
///
/// ```
/// let seats = phalanx::Semaphore::new(2)?;
/// let (first, second) = (seats.acquire(), seats.acquire());
/// assert!(seats.try_acquire().is_none());
/// drop(first);
/// assert!(seats.try_acquire().is_some());
/// # drop(second);
/// # Ok::<(), phalanx::Error>(())
/// ```
///
/// The permits of a process that dies come back, within 100 ms.
#[derive(Clone)]
pub struct Semaphore {
    core: Shared<sync::BoundedSemaphore>,
}

impl Semaphore {
    /// A semaphore with `permits`, of which nobody holds one yet.
    ///
    /// # Errors
    /// `is_invalid` for more than 2,147,483,647; `is_arena_full`.
    pub fn new(permits: u32) -> Result<Self> {
        if permits > sync::SEM_VALUE_MAX {
            let what = format!("a semaphore has {} permits at most", sync::SEM_VALUE_MAX);
            return Err(Error::new(Kind::Invalid, what));
        }
        let core = Shared::create(sync::BoundedSemaphore::new(permits))?;
        Ok(Self { core })
    }

    /// Takes a permit; blocks while living processes hold all.
    pub fn acquire(&self) -> Permit<'_> {
        loop {
            if let Some(permit) = self.acquire_until(None) {
                return permit;
            }
        }
    }

    /// Takes a permit if there is one. Never blocks.
    pub fn try_acquire(&self) -> Option<Permit<'_>> {
        let taken = self.core.try_acquire(self.core.arena());
        taken.then(|| Permit { semaphore: self })
    }

    /// Takes a permit; waits for `timeout` at most. `None` when that is over.
    pub fn acquire_timeout(&self, timeout: Duration) -> Option<Permit<'_>> {
        self.acquire_until(deadline(timeout))
    }

    fn acquire_until(&self, deadline: Option<Instant>) -> Option<Permit<'_>> {
        patiently(|| self.core.acquire(self.core.arena(), deadline))?;
        Some(Permit { semaphore: self })
    }

    /// How many permits nobody holds now.
    pub fn available(&self) -> u32 {
        self.core.value()
    }
}

impl fmt::Debug for Semaphore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Semaphore({} of {})", self.available(), self.core.max())
    }
}

travels_as_handle!(Semaphore, sync::BoundedSemaphore, |s| &s.core, |core| {
    Semaphore { core }
});

/// A permit of a [`Semaphore`]; given back when dropped.
#[derive(Debug)]
#[must_use = "the permit is given back when it is dropped"]
pub struct Permit<'a> {
    semaphore: &'a Semaphore,
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        let core = &self.semaphore.core;
        // It fails only if somebody wrote over the shared memory, and then there is nothing to do.
        let _ = core.release(core.arena());
    }
}

/// A flag that processes wait for.
///
/// A process that dies while it waits, sets or clears disturbs nobody.
#[derive(Clone)]
pub struct Event {
    core: Shared<sync::Event>,
}

impl Event {
    /// A flag that is not set.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn new() -> Result<Self> {
        let core = Shared::create(sync::Event::new())?;
        Ok(Self { core })
    }

    /// Whether it is set.
    pub fn is_set(&self) -> bool {
        self.core.is_set()
    }

    /// Sets it: all who wait go on, and who comes later does not wait.
    pub fn set(&self) {
        self.core.set();
    }

    /// Unsets it.
    pub fn clear(&self) {
        self.core.clear();
    }

    /// Waits until it is set, or was since the call; for ever, if nobody does.
    pub fn wait(&self) {
        while !self.wait_until(None) {}
    }

    /// Waits for `timeout` at most; says whether it was set.
    pub fn wait_timeout(&self, timeout: Duration) -> bool {
        self.wait_until(deadline(timeout))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> bool {
        let since = self.core.now();
        patiently(|| self.core.wait_since(since, deadline)).is_some()
    }
}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = if self.is_set() { "set" } else { "not set" };
        write!(f, "Event({said})")
    }
}

travels_as_handle!(Event, sync::Event, |event| &event.core, |core| Event {
    core
});

/// Lets processes wait for a change of what a [`Mutex`](super::Mutex) holds.
///
/// ```
/// use phalanx::{Condition, Mutex, Process};
///
/// fn open((door, changed): (Mutex<u8>, Condition)) {
///     let mut open = door.lock().unwrap();
///     *open = 1;
///     changed.notify_all(&open);
/// }
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let (door, changed) = (Mutex::new(0u8)?, Condition::new()?);
///     let child = Process::spawn(open, (door.clone(), changed.clone()))?;
///     let guard = changed.wait_while(door.lock().unwrap(), |open| *open == 0).unwrap();
///     assert_eq!(*guard, 1);
///     drop(guard);
///     child.join()
/// }
/// ```
///
/// As with [`std::sync::Condvar`], a wait may end without reason: look at the value, in a loop or
/// by [`wait_while`](Self::wait_while). Unlike there, who notifies holds the lock, and shows it:
/// the guard is that of the mutex that the others wait with. A waiter that dies takes no
/// notification from others.
#[derive(Clone)]
pub struct Condition {
    core: Shared<sync::Condition>,
}

/// What [`Condition::wait_timeout`] returns: the guard, and whether there was a notification.
pub type Waited<'a, T> = (MutexGuard<'a, T>, bool);

impl Condition {
    /// A condition that nobody waits for.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn new() -> Result<Self> {
        let core = Shared::create(sync::Condition::new())?;
        Ok(Self { core })
    }

    /// Gives the lock up, waits for a notification, and takes the lock again.
    ///
    /// # Errors
    /// The guard, if the mutex is poisoned.
    pub fn wait<'a, T: Plain>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
        match self.wait_until(guard, None) {
            Ok((guard, _)) => Ok(guard),
            Err(poisoned) => Err(PoisonError::new(poisoned.into_inner().0)),
        }
    }

    /// As [`wait`](Self::wait), for `timeout` at most, and the time that taking the lock needs.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout<'a, T: Plain>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: Duration,
    ) -> LockResult<Waited<'a, T>> {
        self.wait_until(guard, deadline(timeout))
    }

    /// Waits as long as `condition` says so of the value; asks it first, with the lock held.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_while<'a, T: Plain>(
        &self,
        mut guard: MutexGuard<'a, T>,
        mut condition: impl FnMut(&mut T) -> bool,
    ) -> LockResult<MutexGuard<'a, T>> {
        while condition(&mut guard) {
            guard = self.wait(guard)?;
        }
        Ok(guard)
    }

    fn wait_until<'a, T: Plain>(
        &self,
        guard: MutexGuard<'a, T>,
        deadline: Option<Instant>,
    ) -> LockResult<Waited<'a, T>> {
        let mutex = guard.mutex();
        let notified = match self.core.enlist(self.core.arena()) {
            Some(waiter) => {
                drop(guard);
                patiently(|| waiter.wait(deadline));
                waiter.leave()
            }
            // The arena has no room for one more waiter: wakes without reason, now and then.
            None => {
                drop(guard);
                std::thread::sleep(Duration::from_millis(1));
                false
            }
        };
        match mutex.lock() {
            Ok(guard) => Ok((guard, notified)),
            Err(poisoned) => Err(PoisonError::new((poisoned.into_inner(), notified))),
        }
    }

    /// Wakes the one who has waited longest. Never blocks.
    pub fn notify_one<T: Plain>(&self, held: &MutexGuard<'_, T>) {
        self.notify(held, 1);
    }

    /// Wakes the `n` who have waited longest; says how many there were. Never blocks.
    pub fn notify<T: Plain>(&self, _held: &MutexGuard<'_, T>, n: usize) -> usize {
        self.core.notify(n, self.core.arena())
    }

    /// Wakes all who wait. Never blocks.
    pub fn notify_all<T: Plain>(&self, _held: &MutexGuard<'_, T>) {
        self.core.notify_all(self.core.arena());
    }
}

impl fmt::Debug for Condition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let waiters = self.core.waiters(self.core.arena());
        write!(f, "Condition({waiters} waiting)")
    }
}

travels_as_handle!(Condition, sync::Condition, |c| &c.core, |core| Condition {
    core
});

/// A meeting point for a fixed number of processes and threads, again and again.
///
/// If one of those who wait dies, the barrier breaks: the others' waits fail, and all later ones,
/// until it is [`reset`](Self::reset).
#[derive(Clone)]
pub struct Barrier {
    core: Shared<sync::Barrier>,
}

impl Barrier {
    /// A barrier for `parties`.
    ///
    /// # Errors
    /// `is_invalid` for 0 parties; `is_arena_full`.
    pub fn new(parties: u32) -> Result<Self> {
        if parties == 0 {
            return Err(Error::new(
                Kind::Invalid,
                "a barrier needs at least 1 party",
            ));
        }
        let core = Shared::create(sync::Barrier::new(parties))?;
        Ok(Self { core })
    }

    /// Waits until all have come; gives this one's place among them, from 0.
    ///
    /// # Errors
    /// `is_broken`; `is_arena_full` if there is no room for one more waiter.
    pub fn wait(&self) -> Result<u32> {
        self.wait_until(None)
    }

    /// As [`wait`](Self::wait), for `timeout` at most. If that is over, the barrier breaks.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_timeout(&self, timeout: Duration) -> Result<u32> {
        self.wait_until(deadline(timeout))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<u32> {
        let home = self.core.arena();
        let arrival = through_signals(|| self.core.arrive(false, home, deadline));
        match arrival.map_err(failure)? {
            Arrival::Last(index, _) => Ok(index),
            Arrival::Waiter(waiter) => {
                let outcome = through_signals(|| waiter.wait(home, deadline));
                waiter.leave(home);
                outcome.map_err(failure)
            }
        }
    }

    /// Breaks the barrier: all who wait fail, and who comes later.
    pub fn abort(&self) {
        self.core.abort(self.core.arena());
    }

    /// Makes the barrier as new. All who wait now fail.
    pub fn reset(&self) {
        self.core.reset(self.core.arena());
    }

    /// How many must come.
    pub fn parties(&self) -> u32 {
        self.core.parties()
    }

    /// How many wait now.
    pub fn waiting(&self) -> u32 {
        self.core.waiting()
    }

    /// Whether it is broken.
    pub fn is_broken(&self) -> bool {
        self.core.is_broken()
    }
}

fn through_signals<T>(mut wait: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    loop {
        match wait() {
            Err(Failure::Stopped(Stop::Interrupted)) => {}
            done => return done,
        }
    }
}

fn failure(failure: Failure) -> Error {
    match failure {
        Failure::Broken => Error::new(
            Kind::Broken,
            "the barrier is broken: a party did not come in time, died, or aborted or reset it",
        ),
        Failure::NoRoom => Error::new(
            Kind::ArenaFull,
            "the arena has no room for one more waiter at the barrier",
        ),
        Failure::Stopped(_) => Error::timeout(),
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier")
            .field("parties", &self.parties())
            .field("waiting", &self.waiting())
            .field("broken", &self.is_broken())
            .finish()
    }
}

travels_as_handle!(Barrier, sync::Barrier, |barrier| &barrier.core, |core| {
    Barrier { core }
});
