//! `phalanx.heap` and `phalanx.sharedctypes`, the native half: shared memory with the buffer
//! protocol, and scalars in it that are read and written under a lock.

#[cfg(not(feature = "abi3"))]
mod quick;
mod scalars;
mod synchronized;

use phalanx::arena::Handle;
use phalanx::shared::Memory;
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;

use crate::arena::{HandleForPickle, arena, handle_for_pickle};
use crate::error::to_py;

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

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Block>()?;
    module.add_class::<synchronized::SynchronizedBase>()?;
    module.add_class::<synchronized::Synchronized>()?;
    module.add_class::<synchronized::SynchronizedArray>()?;
    #[cfg(not(feature = "abi3"))]
    quick::register(module.py())?;
    Ok(())
}
