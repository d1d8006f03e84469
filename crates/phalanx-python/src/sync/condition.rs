//! `Condition`: the core's queue of waiters, with a lock that Python brings.

use std::sync::OnceLock;
use std::time::Instant;

use phalanx::sync::{self, Acquired};
use pyo3::exceptions::{PyAssertionError, PyMemoryError, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

use super::lock::warn;
use super::{Args, Kwargs, Lock, Object, RLock, home, waiting};

/// Waiters for a notification: the base of `phalanx.synchronize.Condition`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub(crate) struct Condition {
    object: Object<sync::Condition>,
    lock: OnceLock<Guarding>,
}

/// The lock of a condition. For those of ours nothing of Python runs.
enum Guarding {
    Lock(Py<Lock>),
    RLock(Py<RLock>),
    /// Anything else with `acquire`, `release` and a `_semlock`.
    Other(Py<PyAny>),
}

impl Guarding {
    fn new(lock: &Bound<'_, PyAny>) -> Self {
        if let Ok(lock) = lock.cast::<Lock>() {
            Self::Lock(lock.clone().unbind())
        } else if let Ok(lock) = lock.cast::<RLock>() {
            Self::RLock(lock.clone().unbind())
        } else {
            Self::Other(lock.clone().unbind())
        }
    }

    fn is_mine(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            Self::Lock(lock) => {
                let lock = lock.get().object.get()?;
                Ok(lock.is_mine(home(lock)))
            }
            Self::RLock(lock) => {
                let lock = lock.get().object.get()?;
                Ok(lock.is_mine(home(lock)))
            }
            Self::Other(lock) => lock
                .getattr(py, "_semlock")?
                .call_method0(py, "_is_mine")?
                .is_truthy(py),
        }
    }

    /// Releases the lock however deep this thread holds it, and says how deep.
    fn release_all(&self, py: Python<'_>) -> PyResult<u32> {
        let lost = || PyRuntimeError::new_err("the condition's lock was released by somebody else");
        match self {
            Self::Lock(lock) => {
                lock.get().object.get()?.release().map_err(|_| lost())?;
                Ok(1)
            }
            Self::RLock(lock) => {
                let lock = lock.get().object.get()?;
                lock.release_all(home(lock)).map_err(|_| lost())
            }
            Self::Other(lock) => {
                let depth: u32 = lock
                    .getattr(py, "_semlock")?
                    .call_method0(py, "_count")?
                    .extract(py)?;
                for _ in 0..depth {
                    lock.call_method0(py, "release")?;
                }
                Ok(depth)
            }
        }
    }

    /// Acquires the lock again. The caller's `with` block will release it, so it is held whatever
    /// a signal handler or a warning filter raises: that comes afterwards. Only a second exception
    /// in one wait ends it without the lock.
    fn acquire_all(&self, py: Python<'_>, depth: u32) -> PyResult<()> {
        let mut first = Ok(());
        loop {
            let acquired = match self {
                Self::Lock(lock) => {
                    let lock = lock.get().object.get()?;
                    waiting(py, || lock.acquire(home(lock), None))
                }
                Self::RLock(lock) => {
                    let lock = lock.get().object.get()?;
                    waiting(py, || lock.acquire_all(home(lock), depth, None))
                }
                Self::Other(lock) => (0..depth)
                    .try_for_each(|_| lock.call_method0(py, "acquire").map(drop))
                    .map(|()| Some(Acquired { recovered: false })),
            };
            match acquired {
                Ok(Some(Acquired { recovered: true })) => {
                    return first.and(warn(py, "Condition's lock"));
                }
                Ok(_) => return first,
                Err(error) if first.is_ok() => first = Err(error),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Condition {
    fn lock(&self) -> PyResult<&Guarding> {
        self.object.get()?;
        self.lock
            .get()
            .ok_or_else(|| PyRuntimeError::new_err("this Condition was not initialised"))
    }

    fn set_lock(&self, lock: &Bound<'_, PyAny>) {
        let _ = self.lock.set(Guarding::new(lock));
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
        self.set_lock(lock);
        Ok(())
    }

    fn _attach(
        &self,
        py: Python<'_>,
        family: u64,
        handle: u64,
        lock: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        self.object.attach(py, family, handle)?;
        self.set_lock(lock);
        Ok(())
    }

    fn _handle_for_pickle(&self) -> PyResult<(u64, u64)> {
        self.object.handle_for_pickle()
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
        let waited = waiting(py, || waiter.wait(deadline));
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

    /// Acquires the condition's lock.
    #[pyo3(signature = (*args))]
    fn __enter__<'py>(&self, py: Python<'py>, args: Args<'_, 'py>) -> PyResult<Py<PyAny>> {
        debug_assert!(args.is_empty());
        let free = match self.lock()? {
            Guarding::Lock(lock) => {
                let lock = lock.get().object.get()?;
                lock.try_acquire_free(home(lock))
            }
            Guarding::RLock(lock) => {
                let lock = lock.get().object.get()?;
                lock.try_acquire_free(home(lock))
            }
            Guarding::Other(_) => false,
        };
        if free {
            return Ok(pyo3::types::PyBool::new(py, true)
                .to_owned()
                .into_any()
                .unbind());
        }
        match self.lock()? {
            Guarding::Lock(lock) => lock.call_method0(py, "__enter__"),
            Guarding::RLock(lock) => lock.call_method0(py, "__enter__"),
            Guarding::Other(lock) => lock.call_method0(py, "__enter__"),
        }
    }

    /// Releases the condition's lock.
    #[pyo3(signature = (*args))]
    fn __exit__<'py>(&self, py: Python<'py>, args: Args<'_, 'py>) -> PyResult<()> {
        let lock = match self.lock()? {
            Guarding::Lock(lock) => lock.bind(py).as_any().clone(),
            Guarding::RLock(lock) => lock.bind(py).as_any().clone(),
            Guarding::Other(lock) => lock.bind(py).clone(),
        };
        let args: &Bound<'_, PyTuple> = args;
        lock.call_method1("__exit__", args).map(drop)
    }

    /// How many wait and have not been notified.
    fn _waiters(&self) -> PyResult<usize> {
        let condition = self.object.get()?;
        Ok(condition.waiters(home(condition)))
    }
}
