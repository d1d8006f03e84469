//! `Semaphore` and `BoundedSemaphore`.

use phalanx::sync::{self, SEM_VALUE_MAX};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::{Args, Kwargs, Object, Patience, home, patience, waiting};
use crate::arena::HandleForPickle;

/// A counter of permits: the base of `phalanx.synchronize.Semaphore`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub(crate) struct Semaphore {
    pub(super) object: Object<sync::Semaphore>,
}

/// A counter with a maximum that knows its holders: the base of
/// `phalanx.synchronize.BoundedSemaphore`. A `Semaphore` to `isinstance` alone.
#[pyclass(frozen, subclass, extends = Semaphore, module = "phalanx._phalanx")]
pub(crate) struct BoundedSemaphore {
    pub(super) object: Object<sync::BoundedSemaphore>,
}

/// A semaphore's first value.
fn initial(value: i64) -> PyResult<u32> {
    u32::try_from(value)
        .ok()
        .filter(|&value| value <= SEM_VALUE_MAX)
        .ok_or_else(|| {
            PyValueError::new_err(format!(
                "a semaphore's value must be between 0 and {SEM_VALUE_MAX}, not {value}"
            ))
        })
}

fn too_often(name: &str, max: u32) -> PyErr {
    PyValueError::new_err(format!(
        "this {name} was released too many times: its value is {max} already, its maximum"
    ))
}

#[pymethods]
impl Semaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: Args<'_, '_>, _kwargs: Option<Kwargs<'_, '_>>) -> Self {
        Self {
            object: Object::empty(),
        }
    }

    fn _create(&self, py: Python<'_>, fork: bool, value: i64) -> PyResult<()> {
        self.object
            .create_in(py, fork, sync::Semaphore::new(initial(value)?))
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

    /// Takes a permit and returns True, or False if there was none in `timeout` seconds (None: for
    /// ever; negative: 0) or, with `block` false, at once.
    #[pyo3(signature = (block=None, timeout=None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let semaphore = self.object.get()?;
        if timeout.is_none() && semaphore.try_acquire() {
            return Ok(true);
        }
        match patience(block, timeout)? {
            Patience::None => Ok(semaphore.try_acquire()),
            Patience::Until(deadline) => Ok(waiting(py, || semaphore.acquire(deadline))?.is_some()),
        }
    }

    /// Adds a permit. ValueError if there are SEM_VALUE_MAX already.
    fn release(&self) -> PyResult<()> {
        let released = self.object.get()?.release();
        released.map_err(|_| too_often("Semaphore", SEM_VALUE_MAX))
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.acquire(py, None, None)
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

    /// Whether there is no permit left.
    fn locked(&self) -> PyResult<bool> {
        self._is_zero()
    }

    /// The number of permits left.
    fn get_value(&self) -> PyResult<u32> {
        Ok(self.object.get()?.value())
    }

    fn _get_value(&self) -> PyResult<u32> {
        self.get_value()
    }

    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self.object.get()?.value() == 0)
    }

    fn _handle(&self) -> PyResult<u64> {
        Ok(self.object.get()?.handle().bits())
    }
}

#[pymethods]
impl BoundedSemaphore {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: Args<'_, '_>, _kwargs: Option<Kwargs<'_, '_>>) -> PyClassInitializer<Self> {
        let (object, base) = (Object::empty(), Object::empty());
        PyClassInitializer::from(Semaphore { object: base }).add_subclass(Self { object })
    }

    fn _create(&self, py: Python<'_>, fork: bool, value: i64) -> PyResult<()> {
        self.object
            .create_in(py, fork, sync::BoundedSemaphore::new(initial(value)?))
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

    /// Takes a permit and returns True, or False if there was none in `timeout` seconds (None: for
    /// ever; negative: 0) or, with `block` false, at once. The permits of processes that have died
    /// come back.
    #[pyo3(signature = (block=None, timeout=None), text_signature = "($self, block=True, timeout=None)")]
    fn acquire(
        &self,
        py: Python<'_>,
        block: Option<&Bound<'_, PyAny>>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<bool> {
        let semaphore = self.object.get()?;
        let home = home(semaphore);
        if timeout.is_none() && semaphore.try_acquire_free(home) == Some(true) {
            return Ok(true);
        }
        match patience(block, timeout)? {
            Patience::None => Ok(py.detach(|| semaphore.try_acquire(home))),
            Patience::Until(deadline) => {
                Ok(waiting(py, || semaphore.acquire(home, deadline))?.is_some())
            }
        }
    }

    /// Gives a permit back. ValueError if nobody holds one.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        let semaphore = self.object.get()?;
        let home = home(semaphore);
        let released = match semaphore.try_release(home) {
            Some(released) => released,
            None => py.detach(|| semaphore.release(home)),
        };
        released.map_err(|_| too_often("BoundedSemaphore", semaphore.max()))
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.acquire(py, None, None)
    }

    #[pyo3(signature = (_type=None, _value=None, _traceback=None))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.release(py)
    }

    /// Whether there is no permit left.
    fn locked(&self) -> PyResult<bool> {
        self._is_zero()
    }

    /// The number of permits left.
    fn get_value(&self) -> PyResult<u32> {
        Ok(self.object.get()?.value())
    }

    fn _get_value(&self) -> PyResult<u32> {
        self.get_value()
    }

    fn _is_zero(&self) -> PyResult<bool> {
        Ok(self.object.get()?.value() == 0)
    }

    fn _maximum(&self) -> PyResult<u32> {
        Ok(self.object.get()?.max())
    }

    fn _handle(&self) -> PyResult<u64> {
        Ok(self.object.get()?.handle().bits())
    }
}
