//! The extension module `phalanx._phalanx`: conversion, the GIL and signals; nothing else.

use pyo3::prelude::*;

/// The native half of the Python package `phalanx`.
#[pymodule]
fn _phalanx(_module: &Bound<'_, PyModule>) -> PyResult<()> {
    Ok(())
}
