//! The classes that access a ctypes object under a lock.

use std::sync::OnceLock;

use pyo3::exceptions::{PyIndexError, PyRuntimeError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyInt, PySlice, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::Block;
use super::scalars::{Run, Scalars, integer};
use crate::sync::Guarding;

pub(super) struct Guarded {
    pub(super) object: Py<PyAny>,
    pub(super) lock: Guarding,
    pub(super) scalars: Option<Scalars>,
}

/// A ctypes object with a lock: the base of `phalanx.sharedctypes.SynchronizedBase`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub(super) struct SynchronizedBase {
    pub(super) guarded: OnceLock<Guarded>,
}

impl SynchronizedBase {
    #[inline]
    fn get(&self) -> PyResult<&Guarded> {
        self.guarded.get().ok_or_else(|| {
            PyRuntimeError::new_err(
                "this synchronized object was not initialised; a subclass with an __init__ of its \
                 own has to call that of its base",
            )
        })
    }
}

#[pymethods]
impl SynchronizedBase {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyTuple>, _kwargs: Option<&Bound<'_, PyDict>>) -> Self {
        Self {
            guarded: OnceLock::new(),
        }
    }

    /// Fills the object. With a block, `object` is a scalar or an array of `len` of them, of the
    /// type `code`, that lies at the block's beginning.
    #[pyo3(signature = (object, lock, block=None, code="", len=0))]
    fn _create(
        &self,
        object: Py<PyAny>,
        lock: &Bound<'_, PyAny>,
        block: Option<&Bound<'_, Block>>,
        code: &str,
        len: usize,
    ) -> PyResult<()> {
        let scalars = match block {
            Some(block) => Scalars::new(&block.get().memory, code, len)?,
            None => None,
        };
        let guarded = Guarded {
            object,
            lock: Guarding::new(lock)?,
            scalars,
        };
        self.guarded
            .set(guarded)
            .map_err(|_| PyRuntimeError::new_err("this synchronized object is initialised already"))
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        let Some(guarded) = self.guarded.get() else {
            return Ok(());
        };
        visit.call(&guarded.object)?;
        guarded.lock.traverse(&visit)
    }

    /// The object without its lock.
    fn get_obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.get()?.object.clone_ref(py))
    }

    /// The lock.
    fn get_lock(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        Ok(self.get()?.lock.object(py))
    }

    #[getter]
    fn _obj(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get_obj(py)
    }

    #[getter]
    fn _lock(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.get_lock(py)
    }

    /// Acquires the lock, with the lock's own arguments.
    #[pyo3(signature = (*args, **kwargs))]
    fn acquire(
        &self,
        py: Python<'_>,
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<Py<PyAny>> {
        let lock = self.get_lock(py)?;
        lock.bind(py)
            .getattr(intern!(py, "acquire"))?
            .call(args, kwargs)
            .map(Bound::unbind)
    }

    /// Releases the lock.
    fn release(&self, py: Python<'_>) -> PyResult<()> {
        self.get()?.lock.release(py)
    }

    fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
        self.get()?.lock.acquire(py)
    }

    #[pyo3(signature = (_type=None, _value=None, _traceback=None))]
    fn __exit__(
        &self,
        py: Python<'_>,
        _type: Option<&Bound<'_, PyAny>>,
        _value: Option<&Bound<'_, PyAny>>,
        _traceback: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.get()?.lock.release(py)
    }
}

/// A scalar with a lock: the base of `phalanx.sharedctypes.Synchronized`.
#[pyclass(frozen, subclass, extends = SynchronizedBase, module = "phalanx._phalanx")]
pub(super) struct Synchronized;

#[pymethods]
impl Synchronized {
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(SynchronizedBase::new(args, kwargs)).add_subclass(Self)
    }

    /// The value, read and written under the lock. (`+=` is two such accesses: hold the lock
    /// around it.)
    #[getter]
    fn get_value<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        let (py, guarded) = (slf.py(), slf.as_super().get().get()?);
        guarded.lock.with(py, || match &guarded.scalars {
            Some(scalars) => Ok(scalars.read(py, 0)),
            None => guarded.object.bind(py).getattr("value"),
        })
    }

    #[setter]
    fn set_value(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, guarded) = (slf.py(), slf.as_super().get().get()?);
        guarded.lock.with(py, || match &guarded.scalars {
            Some(scalars) if scalars.write(0, value) => Ok(()),
            _ => guarded.object.bind(py).setattr("value", value),
        })
    }
}

/// An array with a lock: the base of `phalanx.sharedctypes.SynchronizedArray`.
#[pyclass(frozen, subclass, extends = SynchronizedBase, module = "phalanx._phalanx")]
pub(super) struct SynchronizedArray;

/// Where in `scalars` Python's index lies, if both are of the simple kind.
fn simple<'a>(
    guarded: &'a Guarded,
    index: &Bound<'_, PyAny>,
) -> PyResult<Option<(&'a Scalars, usize)>> {
    let Some(scalars) = &guarded.scalars else {
        return Ok(None);
    };
    if !index.is_exact_instance_of::<PyInt>() {
        return Ok(None);
    }
    let place = integer(index).and_then(|index| scalars.place(index));
    let place = place.ok_or_else(|| PyIndexError::new_err("invalid index"))?;
    Ok(Some((scalars, place)))
}

/// The places in `scalars` that Python's slice means, if both are of the simple kind.
fn run<'a>(guarded: &'a Guarded, index: &Bound<'_, PyAny>) -> PyResult<Option<(&'a Scalars, Run)>> {
    let (Some(scalars), Ok(slice)) = (&guarded.scalars, index.cast::<PySlice>()) else {
        return Ok(None);
    };
    let indices = slice.indices(isize::try_from(scalars.len())?)?;
    let (start, step, len) = (indices.start, indices.step, indices.slicelength);
    Ok(Some((scalars, Run { start, step, len })))
}

#[pymethods]
impl SynchronizedArray {
    #[new]
    #[pyo3(signature = (*args, **kwargs))]
    fn new(
        args: &Bound<'_, PyTuple>,
        kwargs: Option<&Bound<'_, PyDict>>,
    ) -> PyClassInitializer<Self> {
        PyClassInitializer::from(SynchronizedBase::new(args, kwargs)).add_subclass(Self)
    }

    fn __len__(slf: &Bound<'_, Self>) -> PyResult<usize> {
        let guarded = slf.as_super().get().get()?;
        guarded.object.bind(slf.py()).len()
    }

    fn __getitem__<'py>(
        slf: &Bound<'py, Self>,
        index: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, guarded) = (slf.py(), slf.as_super().get().get()?);
        if let Some((scalars, place)) = simple(guarded, index)? {
            return guarded.lock.with(py, || Ok(scalars.read(py, place)));
        }
        if let Some((scalars, run)) = run(guarded, index)? {
            return Ok(scalars.read_run(&run, &guarded.lock, py)?.into_any());
        }
        guarded
            .lock
            .with(py, || guarded.object.bind(py).get_item(index))
    }

    fn __setitem__(
        slf: &Bound<'_, Self>,
        index: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (py, guarded) = (slf.py(), slf.as_super().get().get()?);
        if let Some((scalars, place)) = simple(guarded, index)? {
            return guarded.lock.with(py, || {
                if scalars.write(place, value) {
                    return Ok(());
                }
                guarded.object.bind(py).set_item(index, value)
            });
        }
        if let Some((scalars, run)) = run(guarded, index)?
            && scalars.write_run(&run, &guarded.lock, value)?
        {
            return Ok(());
        }
        guarded
            .lock
            .with(py, || guarded.object.bind(py).set_item(index, value))
    }
}
