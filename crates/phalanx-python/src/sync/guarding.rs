//! A lock that something else is guarded by.

use phalanx::sync::Acquired;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::{PyTraverseError, PyVisit};

use super::holding::Holding;
use super::lock::warn;
#[cfg(not(feature = "abi3"))]
use super::quick::Quick;
use super::{Lock, RLock, home, waiting};

/// The lock of a condition or of a synchronized value. For those of ours nothing of Python runs.
pub(crate) enum Guarding {
    Lock(Py<Lock>),
    RLock(Py<RLock>),
    /// Anything else with `acquire`, `release` and a `_semlock`.
    Other(Py<PyAny>),
}

impl Guarding {
    /// A lock that a subclass has taught another `acquire` or `release` is called from Python.
    pub(crate) fn new(lock: &Bound<'_, PyAny>) -> PyResult<Self> {
        let (py, class) = (lock.py(), lock.get_type());
        let as_in = |native: Bound<'_, PyType>| -> PyResult<bool> {
            for name in [intern!(py, "acquire"), intern!(py, "release")] {
                if !class.getattr(name)?.is(native.getattr(name)?) {
                    return Ok(false);
                }
            }
            Ok(true)
        };
        match (lock.cast::<Lock>(), lock.cast::<RLock>()) {
            (Ok(lock), _) if as_in(py.get_type::<Lock>())? => Ok(Self::Lock(lock.clone().unbind())),
            (_, Ok(lock)) if as_in(py.get_type::<RLock>())? => {
                Ok(Self::RLock(lock.clone().unbind()))
            }
            _ => Ok(Self::Other(lock.clone().unbind())),
        }
    }

    /// Acquires the lock if that needs no waiting, no system call and no warning, and if nothing
    /// of Python runs; says whether it did.
    #[cfg(not(feature = "abi3"))]
    #[inline]
    pub(crate) fn enter_now(&self) -> bool {
        match self {
            Self::Lock(lock) => lock.get().enter_now(),
            Self::RLock(lock) => lock.get().enter_now(),
            Self::Other(_) => false,
        }
    }

    /// Does with the lock held what makes no use of the lock and runs nothing of Python. None if
    /// the lock cannot be had at once: then nothing is done.
    #[cfg(not(feature = "abi3"))]
    #[inline]
    pub(crate) fn with_now<T>(
        &self,
        py: Python<'_>,
        action: impl FnOnce() -> T,
    ) -> Option<PyResult<T>> {
        match self {
            Self::Lock(lock) => lock.get().enter_now().then(|| {
                let done = action();
                lock.get().let_go(py).map(|()| done)
            }),
            Self::RLock(lock) => {
                let lock = lock.get().object.get().ok()?;
                lock.with_free(home(lock), action).map(Ok)
            }
            Self::Other(_) => None,
        }
    }

    /// As [`with_now`](Self::with_now), for one access by an atomic that only reads.
    #[cfg(not(feature = "abi3"))]
    #[inline]
    pub(crate) fn read_now<T>(
        &self,
        py: Python<'_>,
        read: impl FnOnce() -> T,
    ) -> Option<PyResult<T>> {
        match self {
            Self::RLock(lock) => {
                let lock = lock.get().object.get().ok()?;
                lock.read_if_free(home(lock), read).map(Ok)
            }
            _ => self.with_now(py, read),
        }
    }

    /// Acquires the lock, as `with` does.
    pub(crate) fn acquire(&self, py: Python<'_>) -> PyResult<bool> {
        match self {
            Self::Lock(lock) => lock.get().enter(py),
            Self::RLock(lock) => lock.get().enter(py),
            Self::Other(lock) => lock.call_method0(py, intern!(py, "acquire"))?.is_truthy(py),
        }
    }

    /// Releases the lock.
    #[inline]
    pub(crate) fn release(&self, py: Python<'_>) -> PyResult<()> {
        match self {
            Self::Lock(lock) => lock.get().let_go(py),
            Self::RLock(lock) => lock.get().let_go(py),
            Self::Other(lock) => lock.call_method0(py, intern!(py, "release")).map(drop),
        }
    }

    /// Does something with the lock held.
    #[inline]
    pub(crate) fn with<T>(
        &self,
        py: Python<'_>,
        action: impl FnOnce() -> PyResult<T>,
    ) -> PyResult<T> {
        self.acquire(py)?;
        let done = action();
        let released = self.release(py);
        let done = done?;
        released?;
        Ok(done)
    }

    /// For the garbage collector.
    pub(crate) fn traverse(&self, visit: &PyVisit<'_>) -> Result<(), PyTraverseError> {
        match self {
            Self::Lock(lock) => visit.call(lock),
            Self::RLock(lock) => visit.call(lock),
            Self::Other(lock) => visit.call(lock),
        }
    }

    /// The lock itself.
    pub(crate) fn object(&self, py: Python<'_>) -> Py<PyAny> {
        match self {
            Self::Lock(lock) => lock.clone_ref(py).into_any(),
            Self::RLock(lock) => lock.clone_ref(py).into_any(),
            Self::Other(lock) => lock.clone_ref(py),
        }
    }

    pub(super) fn is_mine(&self, py: Python<'_>) -> PyResult<bool> {
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
    pub(super) fn release_all(&self, py: Python<'_>) -> PyResult<u32> {
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
    pub(super) fn acquire_all(&self, py: Python<'_>, depth: u32) -> PyResult<()> {
        let mut first = Ok(());
        loop {
            let acquired = match self {
                Self::Lock(lock) => {
                    let lock = lock.get().object.get()?;
                    waiting(py, None, |until| lock.acquire(home(lock), until))
                }
                Self::RLock(lock) => {
                    let lock = lock.get().object.get()?;
                    waiting(py, None, |until| lock.acquire_all(home(lock), depth, until))
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
