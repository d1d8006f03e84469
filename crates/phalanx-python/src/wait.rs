//! The one doorway for blocking: the GIL is released, signals are served, deadlines are kept.

use std::time::{Duration, Instant};

use phalanx::Error;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;

/// Python's `timeout`: `None` waits for ever, a negative number does not wait.
///
/// # Errors
/// `TypeError` for what is no number, `ValueError` for NaN.
pub(crate) fn deadline(timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Instant>> {
    let Some(timeout) = timeout.filter(|t| !t.is_none()) else {
        return Ok(None);
    };
    let seconds: f64 = timeout.extract().map_err(|_| {
        PyTypeError::new_err(format!(
            "timeout must be None or a number of seconds, not {}",
            timeout
                .get_type()
                .name()
                .map_or_else(|_| "?".into(), |n| n.to_string())
        ))
    })?;
    after(Some(seconds))
}

/// As [`deadline`], for a timeout that is known to be `None` or a number.
///
/// # Errors
/// `ValueError` for NaN.
pub(crate) fn after(seconds: Option<f64>) -> PyResult<Option<Instant>> {
    let Some(seconds) = seconds else {
        return Ok(None);
    };
    if seconds.is_nan() {
        return Err(PyValueError::new_err(
            "timeout must be a number of seconds, not NaN",
        ));
    }
    // Longer than a century is for ever.
    if seconds > 3.2e9 {
        return Ok(None);
    }
    Ok(Some(
        Instant::now() + Duration::from_secs_f64(seconds.max(0.0)),
    ))
}

/// Runs a wait of the core without the GIL, again and again as long as signals interrupt it and
/// their handlers raise nothing.
pub(crate) fn blocking<T: Send>(
    py: Python<'_>,
    mut wait: impl FnMut() -> Result<T, Error> + Send,
) -> PyResult<Result<T, Error>> {
    loop {
        match py.detach(&mut wait) {
            Err(error) if error.is_interrupted() => py.check_signals()?,
            done => return Ok(done),
        }
    }
}
