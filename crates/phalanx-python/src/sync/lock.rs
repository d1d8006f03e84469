//! `Lock` and `RLock`.

use phalanx::sync::{self, Acquired};
use pyo3::exceptions::{PyAssertionError, PyValueError};
use pyo3::prelude::*;

use super::holding::{Holding, holding_methods};
use super::{AbandonedLockWarning, Args, Kwargs, Object, Patience, home, waiting};
use crate::arena::member;

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
    if super::ACTING.get() {
        return Ok(());
    }
    let text = format!(
        "this {name} was abandoned: the process that held it has died, and what the lock protects \
         may be half changed"
    );
    let text = std::ffi::CString::new(text)?;
    PyErr::warn(py, &py.get_type::<AbandonedLockWarning>(), &text, 1)
}

/// Whether it was acquired; warns of a dead owner, and releases it if the warning is an error.
fn report(
    lock: &impl Holding,
    py: Python<'_>,
    name: &str,
    acquired: Option<Acquired>,
) -> PyResult<bool> {
    if matches!(acquired, Some(Acquired { recovered: true }))
        && let Err(error) = warn(py, name)
    {
        let _ = lock.let_go(py);
        return Err(error);
    }
    Ok(acquired.is_some())
}

fn not_held() -> PyErr {
    PyValueError::new_err("this Lock is not held, and cannot be released")
}

fn not_mine() -> PyErr {
    PyAssertionError::new_err("this RLock is not held by this thread, and cannot be released by it")
}

impl Holding for Lock {
    #[inline]
    fn try_free(&self) -> PyResult<bool> {
        let lock = self.object.get()?;
        Ok(lock.try_acquire_free(home(lock)))
    }

    #[cold]
    fn acquire_slow(&self, py: Python<'_>, patience: Patience) -> PyResult<bool> {
        let lock = self.object.get()?;
        let acquired = match patience {
            Patience::None => lock.try_acquire(home(lock)),
            Patience::Until(deadline) => {
                waiting(py, deadline, |until| lock.acquire(home(lock), until))?
            }
        };
        report(self, py, "Lock", acquired)
    }

    #[inline]
    fn let_go(&self, _py: Python<'_>) -> PyResult<()> {
        self.object.get()?.release().map_err(|_| not_held())
    }

    fn value(&self) -> PyResult<u32> {
        Ok(u32::from(!self.object.get()?.is_locked()))
    }
}

holding_methods! {
    Lock,
    acquire: {
        /// Acquires the lock and returns True, or False if that was not possible in `timeout`
        /// seconds (None: for ever; negative: 0) or, with `block` false, at once.
        ///
        /// If the process that held it has died, the lock is acquired and an AbandonedLockWarning
        /// issued.
    },
    release: {
        /// Frees the lock, whoever holds it. ValueError if nobody does.
    },

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

    fn _is_mine(&self) -> PyResult<bool> {
        let lock = self.object.get()?;
        Ok(lock.is_mine(home(lock)))
    }

    /// If the member `owner` holds it, this process does from now on.
    fn _inherit(&self, owner: u32) -> PyResult<()> {
        let lock = self.object.get()?;
        lock.inherit(member(owner)?, home(lock));
        Ok(())
    }

    /// How often this process holds it.
    fn _count(&self) -> PyResult<u32> {
        let lock = self.object.get()?;
        Ok(u32::from(lock.is_ours(home(lock))))
    }
}

impl Holding for RLock {
    #[inline]
    fn try_free(&self) -> PyResult<bool> {
        let lock = self.object.get()?;
        Ok(lock.try_acquire_free(home(lock)))
    }

    #[cold]
    fn acquire_slow(&self, py: Python<'_>, patience: Patience) -> PyResult<bool> {
        let lock = self.object.get()?;
        let acquired = match patience {
            Patience::None => lock.try_acquire(home(lock)),
            Patience::Until(deadline) => {
                waiting(py, deadline, |until| lock.acquire(home(lock), until))?
            }
        };
        report(self, py, "RLock", acquired)
    }

    #[inline]
    fn let_go(&self, _py: Python<'_>) -> PyResult<()> {
        let lock = self.object.get()?;
        lock.release(home(lock)).map_err(|_| not_mine())
    }

    fn value(&self) -> PyResult<u32> {
        Ok(u32::from(!self.object.get()?.is_locked()))
    }
}

holding_methods! {
    RLock,
    acquire: {
        /// Acquires the lock once more and returns True, or False if that was not possible in
        /// `timeout` seconds (None: for ever; negative: 0) or, with `block` false, at once.
        ///
        /// If the process that held it has died, the lock is acquired and an AbandonedLockWarning
        /// issued.
    },
    release: {
        /// Undoes one acquire; the last one frees the lock. AssertionError if this thread does not
        /// hold it.
    },

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
}
