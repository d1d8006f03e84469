//! Results, as Python has them in hand.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use pyo3::exceptions::{PyRuntimeError, PyStopIteration, PyValueError};
use pyo3::prelude::*;

use super::front::PoolHub;
use super::hub::Hub;
use super::job::{Callbacks, Job, Next, raise};
use crate::wait::deadline;

/// A job and the pool it belongs to.
pub(super) struct Ties {
    hub: Arc<Hub>,
    job: Arc<Job>,
}

impl Ties {
    pub(super) fn new(hub: &Arc<Hub>, job: &Arc<Job>) -> Self {
        Self {
            hub: Arc::clone(hub),
            job: Arc::clone(job),
        }
    }

    /// Waits until the job is done.
    fn wait(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<bool> {
        let job = &*self.job;
        Ok(job.is_done()
            || self
                .hub
                .wait(py, Some(job.id), &|| job.is_done(), until, false)?)
    }
}

fn tied(ties: &OnceLock<Ties>) -> PyResult<&Ties> {
    ties.get().ok_or_else(|| {
        PyRuntimeError::new_err("the result was never set up: call __init__ of its base class")
    })
}

fn tie(ties: &OnceLock<Ties>, with: Ties) -> PyResult<()> {
    ties.set(with)
        .map_err(|_| PyRuntimeError::new_err("the result has been set up already"))
}

/// `phalanx.TimeoutError`.
#[cold]
fn timed_out(py: Python<'_>) -> PyErr {
    let error = py
        .import("phalanx.context")
        .and_then(|context| context.getattr("TimeoutError")?.call0());
    match error {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// The native base of `phalanx.pool.ApplyResult` and `MapResult`.
#[pyclass(subclass, frozen, weakref, module = "phalanx._phalanx")]
pub(crate) struct PoolResult {
    ties: OnceLock<Ties>,
}

impl PoolResult {
    pub(super) fn tie(&self, ties: Ties) -> PyResult<()> {
        tie(&self.ties, ties)
    }
}

#[pymethods]
impl PoolResult {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self {
            ties: OnceLock::new(),
        }
    }

    /// Makes this the result of a call of `pool`, whose hub is `hub`, that somebody else will submit:
    /// with `length` results in chunks of `chunksize` if those are given.
    #[pyo3(signature = (hub, pool, callback, error_callback, chunksize=None, length=0))]
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of two Python classes"
    )]
    fn _create(
        &self,
        py: Python<'_>,
        hub: &Bound<'_, PoolHub>,
        pool: Py<PyAny>,
        callback: Option<Py<PyAny>>,
        error_callback: Option<Py<PyAny>>,
        chunksize: Option<usize>,
        length: usize,
    ) -> PyResult<()> {
        let hub = hub.get().hub();
        let callbacks = Callbacks {
            success: callback,
            error: error_callback,
        };
        let id = Hub::new_id();
        let job = Arc::new(match chunksize {
            None => Job::one(id, callbacks),
            Some(chunk) => Job::map(py, id, chunk, length, false, callbacks)?,
        });
        if !job.is_done() {
            job.hold_pool(pool);
            hub.open(py, &job)?;
        }
        self.tie(Ties::new(hub, &job))
    }

    /// Waits for the result, at most `timeout` seconds (None: for ever), and returns it; raises what
    /// the call raised, `TimeoutError` when the time is over, and `WorkerDied` if the worker died
    /// that had the task.
    #[pyo3(signature = (timeout=None))]
    fn get(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Py<PyAny>> {
        let ties = tied(&self.ties)?;
        if ties.wait(py, deadline(timeout)?)? {
            ties.job.outcome(py)
        } else {
            Err(timed_out(py))
        }
    }

    /// Waits until the result is there or `timeout` seconds have passed.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<()> {
        tied(&self.ties)?.wait(py, deadline(timeout)?).map(drop)
    }

    /// Whether the result is there. Never blocks.
    fn ready(&self, py: Python<'_>) -> PyResult<bool> {
        let ties = tied(&self.ties)?;
        if !ties.job.is_done() {
            ties.wait(py, Some(Instant::now()))?;
        }
        Ok(ties.job.is_done())
    }

    /// Whether the call ended without an exception; ValueError if it has not ended.
    fn successful(slf: &Bound<'_, Self>, py: Python<'_>) -> PyResult<bool> {
        if !slf.get().ready(py)? {
            return Err(PyValueError::new_err(format!("{} not ready", slf.repr()?)));
        }
        let result = tied(&slf.get().ties)?.job.result(py);
        Ok(result.is_some_and(|(success, _)| success))
    }

    /// Takes in `(success, value)` for part `i`.
    fn _set(&self, py: Python<'_>, i: u64, obj: (bool, Bound<'_, PyAny>)) -> PyResult<()> {
        let ties = tied(&self.ties)?;
        ties.hub.deliver(py, &ties.job, i, obj.0, obj.1, 0)
    }

    /// The number of the call.
    #[getter]
    fn _job(&self) -> PyResult<u64> {
        Ok(tied(&self.ties)?.job.id)
    }

    /// The pool, until the result is there.
    #[getter]
    fn _pool(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(tied(&self.ties)?.job.pool(py))
    }

    /// Whether it went well so far.
    #[getter]
    fn _success(&self, py: Python<'_>) -> PyResult<bool> {
        let result = tied(&self.ties)?.job.result(py);
        Ok(result.is_none_or(|(success, _)| success))
    }

    /// The value or exception, if it is there.
    #[getter]
    fn _value(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        Ok(tied(&self.ties)?.job.result(py).map(|(_, value)| value))
    }
}

/// The native base of `phalanx.pool.IMapIterator` and `IMapUnorderedIterator`.
#[pyclass(subclass, frozen, weakref, module = "phalanx._phalanx")]
pub(crate) struct PoolIterator {
    ties: OnceLock<Ties>,
    ended: AtomicBool,
}

impl PoolIterator {
    pub(super) fn tie(&self, ties: Ties) -> PyResult<()> {
        tie(&self.ties, ties)
    }

    fn take(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<Option<Py<PyAny>>> {
        let ties = tied(&self.ties)?;
        let (hub, job) = (&ties.hub, &ties.job);
        loop {
            match job.next_item(py) {
                Next::Item((success, value)) => {
                    if job.count_taken() {
                        hub.feed(py, job)?;
                    }
                    return if success {
                        Ok(Some(value))
                    } else {
                        Err(raise(value.into_bound(py)))
                    };
                }
                Next::End => {
                    self.ended.store(true, Relaxed);
                    return Ok(None);
                }
                Next::NotYet => {
                    if !hub.wait(py, Some(job.id), &|| job.has_next(), until, false)? {
                        return Err(timed_out(py));
                    }
                }
            }
        }
    }
}

#[pymethods]
impl PoolIterator {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self {
            ties: OnceLock::new(),
            ended: AtomicBool::new(false),
        }
    }

    /// Makes this the iterator over the results of a call of `pool`, whose hub is `hub`, that
    /// somebody else will submit.
    fn _create(
        &self,
        py: Python<'_>,
        hub: &Bound<'_, PoolHub>,
        pool: Py<PyAny>,
        ordered: bool,
    ) -> PyResult<()> {
        let hub = hub.get().hub();
        let job = Arc::new(Job::items(Hub::new_id(), ordered));
        job.hold_pool(pool);
        hub.open(py, &job)?;
        self.tie(Ties::new(hub, &job))
    }

    fn __iter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    /// The next result; waits for it. Raises what its call raised.
    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        self.take(py, None)
    }

    /// The next result; `TimeoutError` if it is not there after `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn next(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Py<PyAny>> {
        self.take(py, deadline(timeout)?)?
            .ok_or_else(|| PyStopIteration::new_err(()))
    }

    /// Takes in `(success, value)` for item `i`.
    fn _set(&self, py: Python<'_>, i: u64, obj: (bool, Bound<'_, PyAny>)) -> PyResult<()> {
        let ties = tied(&self.ties)?;
        ties.hub.deliver(py, &ties.job, i, obj.0, obj.1, 0)
    }

    /// Tells how many items there will be.
    fn _set_length(&self, py: Python<'_>, length: u64) -> PyResult<()> {
        let ties = tied(&self.ties)?;
        let progress = ties.job.set_length(py, length);
        ties.hub.after(py, &ties.job, progress);
        Ok(())
    }

    /// The number of the call.
    #[getter]
    fn _job(&self) -> PyResult<u64> {
        Ok(tied(&self.ties)?.job.id)
    }
}

impl Drop for PoolIterator {
    fn drop(&mut self) {
        if let Some(ties) = self.ties.get()
            && !self.ended.load(Relaxed)
        {
            // All tasks are done all the same, but their results are let go; with a buffersize, those
            // that were read.
            ties.job.discard();
            ties.job.make_eager();
        }
    }
}
