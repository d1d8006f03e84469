//! `Semaphore` and `BoundedSemaphore`.

use phalanx::sync::{self, SEM_VALUE_MAX};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::holding::{Holding, holding_methods};
use super::{Args, Kwargs, Object, Patience, home, waiting};
use crate::arena::member;

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

impl Holding for Semaphore {
    #[inline]
    fn try_free(&self) -> PyResult<bool> {
        Ok(self.object.get()?.try_acquire())
    }

    #[cold]
    fn acquire_slow(&self, py: Python<'_>, patience: Patience) -> PyResult<bool> {
        let semaphore = self.object.get()?;
        match patience {
            Patience::None => Ok(semaphore.try_acquire()),
            Patience::Until(deadline) => {
                Ok(waiting(py, deadline, |until| semaphore.acquire(until))?.is_some())
            }
        }
    }

    #[inline]
    fn let_go(&self, _py: Python<'_>) -> PyResult<()> {
        let released = self.object.get()?.release();
        released.map_err(|_| too_often("Semaphore", SEM_VALUE_MAX))
    }

    fn value(&self) -> PyResult<u32> {
        Ok(self.object.get()?.value())
    }
}

holding_methods! {
    Semaphore,
    acquire: {
        /// Takes a permit and returns True, or False if there was none in `timeout` seconds (None:
        /// for ever; negative: 0) or, with `block` false, at once.
    },
    release: {
        /// Adds a permit. ValueError if there are SEM_VALUE_MAX already.
    },

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

    /// The number of permits left.
    fn get_value(&self) -> PyResult<u32> {
        self.value()
    }
}

impl Holding for BoundedSemaphore {
    #[inline]
    fn try_free(&self) -> PyResult<bool> {
        let semaphore = self.object.get()?;
        Ok(semaphore.try_acquire_free(home(semaphore)) == Some(true))
    }

    #[cold]
    fn acquire_slow(&self, py: Python<'_>, patience: Patience) -> PyResult<bool> {
        let semaphore = self.object.get()?;
        let home = home(semaphore);
        match patience {
            Patience::None => Ok(py.detach(|| semaphore.try_acquire(home))),
            Patience::Until(deadline) => {
                Ok(waiting(py, deadline, |until| semaphore.acquire(home, until))?.is_some())
            }
        }
    }

    fn let_go(&self, py: Python<'_>) -> PyResult<()> {
        let semaphore = self.object.get()?;
        let home = home(semaphore);
        let released = match semaphore.try_release(home) {
            Some(released) => released,
            None => py.detach(|| semaphore.release(home)),
        };
        released.map_err(|_| too_often("BoundedSemaphore", semaphore.max()))
    }

    fn value(&self) -> PyResult<u32> {
        Ok(self.object.get()?.value())
    }
}

holding_methods! {
    BoundedSemaphore,
    acquire: {
        /// Takes a permit and returns True, or False if there was none in `timeout` seconds (None:
        /// for ever; negative: 0) or, with `block` false, at once. The permits of processes that
        /// have died come back.
    },
    release: {
        /// Gives a permit back. ValueError if nobody holds one.
    },

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

    /// The number of permits left.
    fn get_value(&self) -> PyResult<u32> {
        self.value()
    }

    /// The permits that the member `owner` holds are this process's from now on.
    fn _inherit(&self, py: Python<'_>, owner: u32) -> PyResult<()> {
        let (from, semaphore) = (member(owner)?, self.object.get()?);
        py.detach(|| semaphore.inherit(from, home(semaphore)));
        Ok(())
    }

    fn _maximum(&self) -> PyResult<u32> {
        Ok(self.object.get()?.max())
    }
}
