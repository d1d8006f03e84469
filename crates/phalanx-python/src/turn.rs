//! One thread at a time on something that is used with the GIL released.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};

use pyo3::prelude::*;
use rustix::thread::futex;

/// How many forks lie between the first process and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// A state that one thread takes away, uses with the GIL released, and puts back.
///
/// A lock would do but for `fork`: the child of a process in which another thread holds the lock
/// inherits it locked, with nobody to release it. Here the child sees that the state was taken
/// away before the fork, and begins with a fresh one.
///
/// The mutex is only ever locked with the GIL held, for a few instructions: no fork sees it locked.
#[derive(Debug, Default)]
pub(crate) struct Turn<T> {
    place: Mutex<Place<T>>,
    /// Counts the times the state was put back, modulo 2^32: what waiters sleep on.
    returns: AtomicU32,
    /// Threads that sleep, or are about to.
    waiters: AtomicU32,
}

#[derive(Debug)]
enum Place<T> {
    Here(T),
    /// Taken, when [`FORKS`] had this value.
    Away(u32),
}

impl<T: Default> Default for Place<T> {
    fn default() -> Self {
        Self::Here(T::default())
    }
}

impl<T: Default + Send> Turn<T> {
    /// Takes the state, waiting for the thread that has it.
    ///
    /// Signals are served in the wait; what a handler raises ends it.
    pub(crate) fn take(&self, py: Python<'_>) -> PyResult<T> {
        loop {
            // SYNC: pairs with the increment in `put`.
            let seen = self.returns.load(Ordering::Acquire);
            let forks = FORKS.load(Ordering::Relaxed);
            {
                let mut place = self.lock();
                match &mut *place {
                    Place::Away(at) if *at == forks => {}
                    Place::Away(at) => {
                        *at = forks;
                        return Ok(T::default());
                    }
                    Place::Here(state) => {
                        let state = std::mem::take(state);
                        *place = Place::Away(forks);
                        return Ok(state);
                    }
                }
            }
            self.wait_slow(py, seen)?;
        }
    }

    /// Looks at the state, if nobody has it; false if somebody has.
    pub(crate) fn look(&self, at: impl FnOnce(&T) -> bool) -> bool {
        match &*self.lock() {
            Place::Here(state) => at(state),
            Place::Away(_) => false,
        }
    }

    /// Gives the state back, and wakes one thread that waits for it.
    pub(crate) fn put(&self, state: T) {
        *self.lock() = Place::Here(state);
        // SYNC: pairs with the Acquire in `take`; SeqCst, so that either this thread sees the waiter
        // or the waiter's futex sees the new count.
        self.returns.fetch_add(1, Ordering::SeqCst);
        if self.waiters.load(Ordering::SeqCst) > 0 {
            // Nobody to wake is no error.
            let _ = futex::wake(&self.returns, futex::Flags::PRIVATE, 1);
        }
    }

    #[cold]
    fn wait_slow(&self, py: Python<'_>, seen: u32) -> PyResult<()> {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        let ended = py.detach(|| futex::wait(&self.returns, futex::Flags::PRIVATE, seen, None));
        self.waiters.fetch_sub(1, Ordering::SeqCst);
        match ended {
            Ok(()) | Err(rustix::io::Errno::AGAIN) => Ok(()),
            Err(rustix::io::Errno::INTR) => py.check_signals(),
            Err(error) => Err(io::Error::from(error).into()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Place<T>> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes forks known from now on. Cheap after the first call.
pub(crate) fn count_forks() {
    extern "C" fn in_child() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: the handler is a plain function that does one atomic addition, which is allowed
        // in the child of a process with threads. A failure (no memory) leaves forks uncounted,
        // which only matters to a child whose parent was reading in another thread.
        unsafe {
            libc::pthread_atfork(None, None, Some(in_child));
        }
    });
}
