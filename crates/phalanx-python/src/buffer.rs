//! Received memory as a Python object: what an unpickled array is a view on.

use std::ffi::c_int;

use phalanx::arena::Buffer;
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
