//! The extension module `phalanx._phalanx`: conversion, the GIL and signals; nothing else.

mod arena;
mod error;
mod wait;

use pyo3::prelude::*;

/// The native half of the Python package `phalanx`.
#[pymodule]
fn _phalanx(module: &Bound<'_, PyModule>) -> PyResult<()> {
    arena::register(module)
}
