//! `Condition`: the core's queue of waiters, with a lock that Python brings.

use std::sync::OnceLock;
use std::time::Instant;

use phalanx::sync;
use pyo3::exceptions::{PyAssertionError, PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::guarding::Guarding;
use super::{Args, Kwargs, Object, home, waiting};
use crate::arena::HandleForPickle;

/// Waiters for a notification: the base of `phalanx.synchronize.Condition`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub(crate) struct Condition {
    object: Object<sync::Condition>,
    lock: OnceLock<Guarding>,
}

impl Condition {
    fn lock(&self) -> PyResult<&Guarding> {
        self.object.get()?;
        self.lock
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("this Condition was not initialised"))
    }

    fn set_lock(&self, lock: &Bound<'_, PyAny>) -> PyResult<()> {
        let _ = self.lock.set(Guarding::new(lock)?);
        Ok(())
    }

    fn must_be_mine(&self, py: Python<'_>, what: &str) -> PyResult<()> {
        if self.lock()?.is_mine(py)? {
            return Ok(());
        }
        Err(PyAssertionError::new_err(format!(
            "{what} needs the condition's lock to be held by this thread"
        )))
    }
}

#[pymethods]
impl Condition {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: Args<'_, '_>, _kwargs: Option<Kwargs<'_, '_>>) -> Self {
        Self {
            object: Object::empty(),
            lock: OnceLock::new(),
        }
    }

    fn _create(&self, py: Python<'_>, lock: &Bound<'_, PyAny>) -> PyResult<()> {
        self.object.create(py, sync::Condition::new())?;
        self.set_lock(lock)
    }

    fn _attach(
        &self,
        py: Python<'_>,
        family: u64,
        handle: u64,
        lock: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.object.attach(py, family, handle)?;
        self.set_lock(lock)
    }

    fn _handle_for_pickle(&self, py: Python<'_>) -> PyResult<HandleForPickle> {
        self.object.handle_for_pickle(py)
    }

    /// Releases the lock, waits for a notification for `timeout` seconds (None: for ever), and
    /// acquires the lock again. Returns whether there was one.
    ///
    /// AssertionError if this thread does not hold the lock.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        self.must_be_mine(py, "wait()")?;
        let deadline: Option<Instant> = crate::wait::deadline(timeout)?;
        let (condition, lock) = (self.object.get()?, self.lock()?);
        let waiter = condition.enlist(home(condition)).ok_or_else(|| {
            PyMemoryError::new_err("there is no room in the arena for another waiter")
        })?;
        let depth = lock.release_all(py)?;
        let waited = waiting(py, deadline, |until| waiter.wait(until));
        let notified = waiter.leave();
        let acquired = lock.acquire_all(py, depth);
        if let Err(error) = waited {
            if notified {
                // It was meant for somebody who goes on.
                condition.notify(1, home(condition));
            }
            return Err(error);
        }
        acquired.map(|()| notified)
    }

    /// Wakes `n` of those who wait, those first who have waited longest.
    ///
    /// AssertionError if this thread does not hold the lock.
    #[pyo3(signature = (n=1))]
    fn notify(&self, py: Python<'_>, n: isize) -> PyResult<()> {
        self.must_be_mine(py, "notify()")?;
        let condition = self.object.get()?;
        condition.notify(usize::try_from(n).unwrap_or(0), home(condition));
        Ok(())
    }

    /// Wakes all who wait.
    ///
    /// AssertionError if this thread does not hold the lock.
    fn notify_all(&self, py: Python<'_>) -> PyResult<()> {
        self.must_be_mine(py, "notify_all()")?;
        let condition = self.object.get()?;
        condition.notify_all(home(condition));
        Ok(())
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.lock()?.acquire(py)
    }

    #[pyo3(signature = (_type=None, _value=None, _traceback=None))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.lock()?.release(py)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.lock.get().map_or(Ok(()), |lock| lock.traverse(&visit))
    }

    /// How many wait and have not been notified.
    fn _waiters(&self) -> PyResult<usize> {
        let condition = self.object.get()?;
        Ok(condition.waiters(home(condition)))
    }
}
