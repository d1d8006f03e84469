//! `Lock` and `RLock`.

use phalanx::sync::{self, Acquired};
use pyo3::exceptions::{PyAssertionError, PyValueError};
use pyo3::prelude::*;

use super::{AbandonedLockWarning, Args, Kwargs, Object, Patience, home, patience, waiting};
use crate::arena::HandleForPickle;

/// A lock that anybody may release: the base of `phalanx.synchronize.Lock`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub(crate) struct Lock {
    pub(crate) object: Object<sync::Lock>,
}

/// A recursive lock: the base of `phalanx.synchronize.RLock`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub(crate) struct RLock {
    pub(crate) object: Object<sync::RLock>,
}

/// Says that a lock was abandoned.
pub(super) fn warn(py: Python<'_>, name: &str) -> PyResult<()> {
    let text = format!(
        "this {name} was abandoned: the process that held it has died, and what the lock protects \
         may be half changed"
    );
    let text = std::ffi::CString::new(text)?;
    PyErr::warn(py, &py.get_type::<AbandonedLockWarning>(), &text, 1)
}

fn not_held(name: &str) -> PyErr {
    PyValueError::new_err(format!("this {name} is not held, and cannot be released"))
}

fn not_mine() -> PyErr {
    PyAssertionError::new_err("this RLock is not held by this thread, and cannot be released by it")
}

impl Lock {
    /// Acquires the lock as `with` does.
    #[inline]
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        let lock = self.object.get()?;
        if lock.try_acquire_free(home(lock)) {
            return Ok(true);
        }
        self.acquire_slow(py, Patience::Until(None))
    }

    #[cold]
    fn acquire_slow(&self, py: Python<'_>, patience: Patience) -> PyResult<bool> {
        let lock = self.object.get()?;
        let acquired = match patience {
            Patience::None => lock.try_acquire(home(lock)),
            Patience::Until(deadline) => waiting(py, || lock.acquire(home(lock), deadline))?,
        };
        self.report(py, acquired)
    }

    fn report(&self, py: Python<'_>, acquired: Option<Acquired>) -> PyResult<bool> {
        if matches!(acquired, Some(Acquired { recovered: true }))
            && let Err(error) = warn(py, "Lock")
        {
            let _ = self.object.get()?.release();
            return Err(error);
        }
        Ok(acquired.is_some())
    }
}

#[pymethods]
impl Lock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: Args<'_, '_>, _kwargs: Option<Kwargs<'_, '_>>) -> Self {
        Self {
            object: Object::empty(),
        }
    }

    fn _create(&self, py: Python<'_>, fork: bool) -> PyResult<()> {
        self.object.create_in(py, fork, sync::Lock::new())
    }

    #[getter]
    fn _is_fork_ctx(&self) -> bool {
        self.object.is_of_fork_context()
    }

    fn _attach(&self, py: Python<'_>, family: u64, handle: u64) -> PyResult<()> {
        self.object.attach(py, family, handle)
    }

    fn _handle_for_pickle(&self, py: Python<'_>) -> PyResult<HandleForPickle> {
        self.object.handle_for_pickle(py)
    }

    /// Acquires the lock and returns True, or False if that was not possible in `timeout` seconds
    /// (None: for ever; negative: 0) or, with `block` false, at once.
    ///
    /// If the process that held it has died, the lock is acquired and an AbandonedLockWarning
    /// issued.
    #[pyo3(signature = (block=None, timeout=None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let lock = self.object.get()?;
        if timeout.is_none() && lock.try_acquire_free(home(lock)) {
            return Ok(true);
        }
        self.acquire_slow(py, patience(block, timeout)?)
    }

    /// Frees the lock, whoever holds it. ValueError if nobody does.
    pub(crate) fn release(&self) -> PyResult<()> {
        self.object.get()?.release().map_err(|_| not_held("Lock"))
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py)
    }

    #[pyo3(signature = (_type=None, _value=None, _traceback=None))]
    fn __exit__(
        &self,
        _type: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.release()
    }

    /// Whether somebody holds it.
    fn locked(&self) -> PyResult<bool> {
        Ok(self.object.get()?.is_locked())
    }

    fn _is_mine(&self) -> PyResult<bool> {
        let lock = self.object.get()?;
        Ok(lock.is_mine(home(lock)))
    }

    /// How often this process holds it.
    fn _count(&self) -> PyResult<u32> {
        let lock = self.object.get()?;
        Ok(u32::from(lock.is_ours(home(lock))))
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(u32::from(!self.locked()?))
    }

    fn _is_zero(&self) -> PyResult<bool> {
        self.locked()
    }

    fn _handle(&self) -> PyResult<u64> {
        Ok(self.object.get()?.handle().bits())
    }
}

impl RLock {
    /// Acquires the lock as `with` does.
    #[inline]
    pub(crate) fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        let lock = self.object.get()?;
        if lock.try_acquire_free(home(lock)) {
            return Ok(true);
        }
        self.acquire_slow(py, Patience::Until(None))
    }

    #[cold]
    fn acquire_slow(&self, py: Python<'_>, patience: Patience) -> PyResult<bool> {
        let lock = self.object.get()?;
        let acquired = match patience {
            Patience::None => lock.try_acquire(home(lock)),
            Patience::Until(deadline) => waiting(py, || lock.acquire(home(lock), deadline))?,
        };
        if matches!(acquired, Some(Acquired { recovered: true }))
            && let Err(error) = warn(py, "RLock")
        {
            let _ = lock.release(home(lock));
            return Err(error);
        }
        Ok(acquired.is_some())
    }
}

#[pymethods]
impl RLock {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: Args<'_, '_>, _kwargs: Option<Kwargs<'_, '_>>) -> Self {
        Self {
            object: Object::empty(),
        }
    }

    fn _create(&self, py: Python<'_>, fork: bool) -> PyResult<()> {
        self.object.create_in(py, fork, sync::RLock::new())
    }

    #[getter]
    fn _is_fork_ctx(&self) -> bool {
        self.object.is_of_fork_context()
    }

    fn _attach(&self, py: Python<'_>, family: u64, handle: u64) -> PyResult<()> {
        self.object.attach(py, family, handle)
    }

    fn _handle_for_pickle(&self, py: Python<'_>) -> PyResult<HandleForPickle> {
        self.object.handle_for_pickle(py)
    }

    /// Acquires the lock once more and returns True, or False if that was not possible in
    /// `timeout` seconds (None: for ever; negative: 0) or, with `block` false, at once.
    ///
    /// If the process that held it has died, the lock is acquired and an AbandonedLockWarning
    /// issued.
    #[pyo3(signature = (block=None, timeout=None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let lock = self.object.get()?;
        if timeout.is_none() && lock.try_acquire_free(home(lock)) {
            return Ok(true);
        }
        self.acquire_slow(py, patience(block, timeout)?)
    }

    /// Undoes one acquire; the last one frees the lock. AssertionError if this thread does not
    /// hold it.
    pub(crate) fn release(&self) -> PyResult<()> {
        let lock = self.object.get()?;
        lock.release(home(lock)).map_err(|_| not_mine())
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.enter(py)
    }

    #[pyo3(signature = (_type=None, _value=None, _traceback=None))]
    fn __exit__(
        &self,
        _type: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.release()
    }

    /// Whether somebody holds it.
    fn locked(&self) -> PyResult<bool> {
        Ok(self.object.get()?.is_locked())
    }

    fn _is_mine(&self) -> PyResult<bool> {
        let lock = self.object.get()?;
        Ok(lock.is_mine(home(lock)))
    }

    /// How often this thread holds it; 1 if another thread of this process does.
    fn _count(&self) -> PyResult<u32> {
        let lock = self.object.get()?;
        Ok(match lock.depth(home(lock)) {
            0 => u32::from(lock.is_ours(home(lock))),
            depth => depth,
        })
    }

    fn _get_value(&self) -> PyResult<u32> {
        Ok(u32::from(!self.locked()?))
    }

    fn _is_zero(&self) -> PyResult<bool> {
        self.locked()
    }

    fn _handle(&self) -> PyResult<u64> {
        Ok(self.object.get()?.handle().bits())
    }
}
