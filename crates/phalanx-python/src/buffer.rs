//! Received memory as a Python object: what an unpickled array is a view on.

use std::ffi::c_int;
use std::ops::Range;

use phalanx::arena::Buffer;
use phalanx::pool::Function;
use pyo3::exceptions::{PyBufferError, PyRuntimeError};
use pyo3::ffi;
use pyo3::prelude::*;

/// Writable memory of this process alone, which lies in the arena and is freed with this object.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub(crate) struct ReceivedBuffer(Buffer);

impl ReceivedBuffer {
    pub(crate) fn new(buffer: Buffer) -> Self {
        Self(buffer)
    }
}

#[pymethods]
impl ReceivedBuffer {
    fn __len__(&self) -> usize {
        self.0.len()
    }

    /// # Safety
    /// Called by the interpreter with a `view` to fill in.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        let buffer = &slf.get().0;
        // SAFETY: the view keeps a reference to this object, and so to the memory, which nobody
        // else has; Python code that writes to it through several views does so under its own rules.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                buffer.as_mut_ptr().cast(),
                buffer.len() as isize,
                0,
                flags,
            )
        };
        if filled < 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        Ok(())
    }
}

/// Part of a function's bytes in the arena, which are there for all workers: read-only.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub(crate) struct FunctionBytes {
    function: Function,
    range: Range<usize>,
}

impl FunctionBytes {
    pub(crate) fn new(function: Function, range: Range<usize>) -> Self {
        Self { function, range }
    }
}

#[pymethods]
impl FunctionBytes {
    /// # Safety
    /// Called by the interpreter with a `view` to fill in.
    unsafe fn __getbuffer__(
        slf: Bound<'_, Self>,
        view: *mut ffi::Py_buffer,
        flags: c_int,
    ) -> PyResult<()> {
        if flags & ffi::PyBUF_WRITABLE != 0 {
            return Err(PyBufferError::new_err("a function's bytes are read-only"));
        }
        let Self { function, range } = slf.get();
        let bytes = function.bytes().ok().and_then(|b| b.get(range.clone()));
        let bytes = bytes.ok_or_else(|| PyRuntimeError::new_err("a function's bytes are gone"))?;
        // SAFETY: the view keeps a reference to this object, and so to the function, whose bytes
        // nobody writes to.
        let filled = unsafe {
            ffi::PyBuffer_FillInfo(
                view,
                slf.as_ptr(),
                bytes.as_ptr().cast_mut().cast(),
                bytes.len() as isize,
                1,
                flags,
            )
        };
        if filled < 0 {
            return Err(PyErr::fetch(slf.py()));
        }
        Ok(())
    }
}
