//! `phalanx.heap` and `phalanx.sharedctypes`, the native half: shared memory with the buffer
//! protocol, and scalars in it that are read and written under a lock.

use std::sync::OnceLock;

use phalanx::arena::Handle;
use phalanx::shared::{Memory, Scalar};
use pyo3::exceptions::{PyIndexError, PyRuntimeError, PyValueError};
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFloat, PyInt, PyList, PySlice, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use crate::arena::{HandleForPickle, arena, handle_for_pickle};
use crate::error::to_py;
use crate::sync::Guarding;

/// Shared bytes, zeroed at first: a writable buffer.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
struct Block {
    memory: Memory,
}

#[pymethods]
impl Block {
    #[new]
    fn new(py: Python<'_>, size: i64) -> PyResult<Self> {
        let size = usize::try_from(size).map_err(|_| {
            PyValueError::new_err(format!("the size must not be negative, as {size} is"))
        })?;
        arena(py)?;
        let memory = py.detach(|| Memory::new(size)).map_err(to_py)?;
        Ok(Self { memory })
    }

    /// The block that a pickle names.
    #[staticmethod]
    fn _attach(py: Python<'_>, family: u64, handle: u64) -> PyResult<Self> {
        arena(py)?;
        let memory = Memory::attach(family, Handle::from_bits(handle)).map_err(to_py)?;
        Ok(Self { memory })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, HandleForPickle)> {
        let attach = slf.py().get_type::<Self>().getattr("_attach")?;
        Ok((
            attach,
            handle_for_pickle(slf.py(), slf.get().memory.object())?,
        ))
    }

    fn __len__(&self) -> usize {
        self.memory.len()
    }

    fn __repr__(&self) -> String {
        format!("<Block of {} shared bytes>", self.memory.len())
    }

    /// # Safety
    /// As the buffer protocol has it: `view` is to be filled.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: std::ffi::c_int,
    ) -> PyResult<()> {
        let memory = &slf.get().memory;
        let len = isize::try_from(memory.len())?;
        // SAFETY: the interpreter gives a view to fill; the memory lives as long as `slf`, to which
        // the view takes a reference.
        let failed = unsafe {
            let data = memory.as_ptr().as_ptr().cast();
            ffi::PyBuffer_FillInfo(view, slf.as_ptr(), data, len, 0, flags)
        };
        if failed == 0 {
            Ok(())
        } else {
            Err(PyErr::fetch(slf.py()))
        }
    }
}

/// The scalars that are read and written without the detour over ctypes.
#[derive(Clone, Copy)]
enum Code {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

impl Code {
    /// The code for a name such as `i4`: kind and size, as ctypes has them here.
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "i1" => Self::I8,
            "u1" => Self::U8,
            "i2" => Self::I16,
            "u2" => Self::U16,
            "i4" => Self::I32,
            "u4" => Self::U32,
            "i8" => Self::I64,
            "u8" => Self::U64,
            "f4" => Self::F32,
            "f8" => Self::F64,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::I64 | Self::U64 | Self::F64 => 8,
        }
    }
}

/// Scalars that lie at the beginning of a block.
struct Scalars {
    block: Py<Block>,
    code: Code,
    len: usize,
}

impl Scalars {
    fn read<'py>(&self, py: Python<'py>, index: usize) -> Bound<'py, PyAny> {
        fn int<'py, T: Scalar + Into<i64>>(
            py: Python<'py>,
            memory: &Memory,
            index: usize,
        ) -> Bound<'py, PyAny> {
            let value: i64 = memory.get::<T>(index).into();
            PyInt::new(py, value).into_any()
        }
        let memory = &self.block.get().memory;
        match self.code {
            Code::I8 => int::<i8>(py, memory, index),
            Code::U8 => int::<u8>(py, memory, index),
            Code::I16 => int::<i16>(py, memory, index),
            Code::U16 => int::<u16>(py, memory, index),
            Code::I32 => int::<i32>(py, memory, index),
            Code::U32 => int::<u32>(py, memory, index),
            Code::I64 => int::<i64>(py, memory, index),
            Code::U64 => PyInt::new(py, memory.get::<u64>(index)).into_any(),
            Code::F32 => PyFloat::new(py, memory.get::<f32>(index).into()).into_any(),
            Code::F64 => PyFloat::new(py, memory.get(index)).into_any(),
        }
    }

    /// Writes the value if it needs no conversion that ctypes knows better; says whether it did.
    fn write(&self, index: usize, value: &Bound<'_, PyAny>) -> bool {
        let memory = &self.block.get().memory;
        if let Code::F32 | Code::F64 = self.code {
            let Ok(value) = value.cast_exact::<PyFloat>() else {
                return false;
            };
            match self.code {
                #[allow(
                    clippy::cast_possible_truncation,
                    reason = "a C float holds what it can"
                )]
                Code::F32 => memory.set(index, value.value() as f32),
                _ => memory.set(index, value.value()),
            }
            return true;
        }
        let Ok(value) = value.cast_exact::<PyInt>() else {
            return false;
        };
        let Ok(value) = value.extract::<i64>() else {
            return false;
        };
        // As C has it: the low bits.
        match self.code.size() {
            1 => memory.set(index, value as u8),
            2 => memory.set(index, value as u16),
            4 => memory.set(index, value as u32),
            _ => memory.set(index, value as u64),
        }
        true
    }

    /// Writes a list, item by item; says whether that was possible. If not, some may be written,
    /// and ctypes has to begin again (and to find the error).
    fn write_run(&self, run: &Run, values: &Bound<'_, PyAny>) -> bool {
        let Ok(values) = values.cast_exact::<PyList>() else {
            return false;
        };
        values.len() == run.len
            && run
                .places()
                .zip(values.iter())
                .all(|(place, value)| self.write(place, &value))
    }

    /// The place of a Python index.
    fn place(&self, index: isize) -> Option<usize> {
        let index = if index < 0 {
            index.checked_add_unsigned(self.len)?
        } else {
            index
        };
        usize::try_from(index)
            .ok()
            .filter(|&index| index < self.len)
    }
}

/// The places that a slice means.
struct Run {
    start: isize,
    step: isize,
    len: usize,
}

impl Run {
    fn places(&self) -> impl Iterator<Item = usize> {
        // Python has computed them for the array's length: none is negative.
        (0..self.len as isize).map(|i| (self.start + self.step * i) as usize)
    }
}

struct Guarded {
    object: Py<PyAny>,
    lock: Guarding,
    scalars: Option<Scalars>,
}

/// A ctypes object with a lock: the base of `phalanx.sharedctypes.SynchronizedBase`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
struct SynchronizedBase {
    guarded: OnceLock<Guarded>,
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

impl Guarded {
    /// Does something with the lock held.
    #[inline]
    fn with<T>(&self, py: Python<'_>, action: impl FnOnce() -> PyResult<T>) -> PyResult<T> {
        self.lock.acquire(py)?;
        let done = action();
        let released = self.lock.release(py);
        let done = done?;
        released?;
        Ok(done)
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
        block: Option<Py<Block>>,
        code: &str,
        len: usize,
    ) -> PyResult<()> {
        let scalars =
            block
                .zip(Code::parse(code))
                .map(|(block, code)| Scalars { block, code, len });
        if let Some(scalars) = &scalars {
            let room = scalars.block.get().memory.len();
            if len
                .checked_mul(scalars.code.size())
                .is_none_or(|size| size > room)
            {
                return Err(PyValueError::new_err("the object is larger than its block"));
            }
        }
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
struct Synchronized;

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
        guarded.with(py, || match &guarded.scalars {
            Some(scalars) => Ok(scalars.read(py, 0)),
            None => guarded.object.bind(py).getattr("value"),
        })
    }

    #[setter]
    fn set_value(slf: &Bound<'_, Self>, value: &Bound<'_, PyAny>) -> PyResult<()> {
        let (py, guarded) = (slf.py(), slf.as_super().get().get()?);
        guarded.with(py, || match &guarded.scalars {
            Some(scalars) if scalars.write(0, value) => Ok(()),
            _ => guarded.object.bind(py).setattr("value", value),
        })
    }
}

/// An array with a lock: the base of `phalanx.sharedctypes.SynchronizedArray`.
#[pyclass(frozen, subclass, extends = SynchronizedBase, module = "phalanx._phalanx")]
struct SynchronizedArray;

/// Where in `scalars` Python's index lies, if both are of the simple kind.
fn simple<'a>(
    guarded: &'a Guarded,
    index: &Bound<'_, PyAny>,
) -> PyResult<Option<(&'a Scalars, usize)>> {
    let Some(scalars) = &guarded.scalars else {
        return Ok(None);
    };
    let Ok(index) = index.cast_exact::<PyInt>() else {
        return Ok(None);
    };
    let place = index.extract().ok().and_then(|index| scalars.place(index));
    let place = place.ok_or_else(|| PyIndexError::new_err("invalid index"))?;
    Ok(Some((scalars, place)))
}

/// The places in `scalars` that Python's slice means, if both are of the simple kind.
fn run<'a>(guarded: &'a Guarded, index: &Bound<'_, PyAny>) -> PyResult<Option<(&'a Scalars, Run)>> {
    let (Some(scalars), Ok(slice)) = (&guarded.scalars, index.cast::<PySlice>()) else {
        return Ok(None);
    };
    let indices = slice.indices(isize::try_from(scalars.len)?)?;
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
            return guarded.with(py, || Ok(scalars.read(py, place)));
        }
        if let Some((scalars, run)) = run(guarded, index)? {
            return guarded.with(py, || {
                let items: Vec<_> = run.places().map(|place| scalars.read(py, place)).collect();
                Ok(PyList::new(py, items)?.into_any())
            });
        }
        guarded.with(py, || guarded.object.bind(py).get_item(index))
    }

    fn __setitem__(
        slf: &Bound<'_, Self>,
        index: &Bound<'_, PyAny>,
        value: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let (py, guarded) = (slf.py(), slf.as_super().get().get()?);
        if let Some((scalars, place)) = simple(guarded, index)? {
            return guarded.with(py, || {
                if scalars.write(place, value) {
                    return Ok(());
                }
                guarded.object.bind(py).set_item(index, value)
            });
        }
        let run = run(guarded, index)?;
        guarded.with(py, || match run {
            Some((scalars, run)) if scalars.write_run(&run, value) => Ok(()),
            _ => guarded.object.bind(py).set_item(index, value),
        })
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Block>()?;
    module.add_class::<SynchronizedBase>()?;
    module.add_class::<Synchronized>()?;
    module.add_class::<SynchronizedArray>()
}
