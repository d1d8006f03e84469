//! The one doorway for blocking: the GIL is released, signals are served, deadlines are kept.

use std::cell::Cell;
use std::time::{Duration, Instant};

use phalanx::Error;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyTuple;

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

thread_local! {
    static WATCH: Cell<Option<Py<PyAny>>> = const { Cell::new(None) };
}

/// Calls `function(*args)`, and `watch()` now and then while it waits: after 50 ms, then ever more
/// seldom, at last once a second. An error that `watch` raises ends the wait.
#[pyfunction]
#[pyo3(signature = (watch, function, *args))]
pub(crate) fn watched<'py>(
    watch: Bound<'py, PyAny>,
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
) -> PyResult<Bound<'py, PyAny>> {
    let before = WATCH.replace(Some(watch.unbind()));
    let done = function.call1(args);
    WATCH.set(before);
    done
}

/// What is called between the slices of a wait, if anything.
pub(crate) struct Watch {
    call: Option<Py<PyAny>>,
    slice: Duration,
}

impl Watch {
    const FIRST: Duration = Duration::from_millis(50);
    const LONGEST: Duration = Duration::from_secs(1);

    /// That of this thread. Until the wait is over no other has it: a signal's handler may wait, too.
    pub(crate) fn begin() -> Self {
        Self {
            call: WATCH.take(),
            slice: Self::FIRST,
        }
    }

    /// Until when to wait before the next look.
    pub(crate) fn until(&mut self, deadline: Option<Instant>) -> Option<Instant> {
        if self.call.is_none() {
            return deadline;
        }
        let end = Instant::now() + self.slice;
        self.slice = (self.slice * 2).min(Self::LONGEST);
        Some(deadline.map_or(end, |deadline| deadline.min(end)))
    }

    /// After a wait until what [`until`](Self::until) has said.
    pub(crate) fn look(&self, py: Python<'_>) -> PyResult<()> {
        match &self.call {
            Some(call) => call.call0(py).map(drop),
            None => Ok(()),
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(call) = self.call.take() {
            WATCH.set(Some(call));
        }
    }
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
