//! Rust's errors as Python's.

use phalanx::Error;
use pyo3::PyErr;
use pyo3::exceptions::{PyBrokenPipeError, PyMemoryError, PyOSError, PyRuntimeError, PyValueError};

/// The Python exception that says the same.
///
/// Timeouts, full and empty queues have no one exception: the modules that meet them raise their
/// own before they come here.
pub(crate) fn to_py(error: Error) -> PyErr {
    let message = error.to_string();
    if error.is_arena_full() {
        PyMemoryError::new_err(message)
    } else if error.is_closed() || error.is_too_large() || error.is_invalid() {
        PyValueError::new_err(message)
    } else if error.is_peer_death() {
        PyBrokenPipeError::new_err(message)
    } else if let Some(code) = error.os_error().and_then(std::io::Error::raw_os_error) {
        PyOSError::new_err((code, message))
    } else {
        PyRuntimeError::new_err(message)
    }
}
