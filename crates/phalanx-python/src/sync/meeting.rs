//! `Event` and `Barrier`: waiting for something to happen, or for everybody.

use std::sync::OnceLock;

use phalanx::sync;
use phalanx::sync::barrier::{Arrival, Failure};
use pyo3::exceptions::{PyMemoryError, PyValueError};
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::{Args, Kwargs, Object, home, waiting};
use crate::arena::HandleForPickle;

/// A flag to wait for: the base of `phalanx.synchronize.Event`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub(crate) struct Event {
    object: Object<sync::Event>,
}

#[pymethods]
impl Event {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: Args<'_, '_>, _kwargs: Option<Kwargs<'_, '_>>) -> Self {
        Self {
            object: Object::empty(),
        }
    }

    fn _create(&self, py: Python<'_>) -> PyResult<()> {
        self.object.create(py, sync::Event::new())
    }

    fn _attach(&self, py: Python<'_>, family: u64, handle: u64) -> PyResult<()> {
        self.object.attach(py, family, handle)
    }

    fn _handle_for_pickle(&self, py: Python<'_>) -> PyResult<HandleForPickle> {
        self.object.handle_for_pickle(py)
    }

    /// Whether it is set.
    fn is_set(&self) -> PyResult<bool> {
        Ok(self.object.get()?.is_set())
    }

    /// Sets it and wakes all who wait. Never blocks.
    fn set(&self) -> PyResult<()> {
        self.object.get()?.set();
        Ok(())
    }

    /// Unsets it. Never blocks.
    fn clear(&self) -> PyResult<()> {
        self.object.get()?.clear();
        Ok(())
    }

    /// Waits until it is set, for `timeout` seconds (None: for ever). False if the time ran out.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let event = self.object.get()?;
        if timeout.is_none() && event.is_set() {
            return Ok(true);
        }
        let deadline = crate::wait::deadline(timeout)?;
        let moment = event.now();
        Ok(waiting(py, deadline, |until| event.wait_since(moment, until))?.is_some())
    }
}

/// A meeting point: the base of `phalanx.synchronize.Barrier`.
#[pyclass(frozen, subclass, module = "phalanx._phalanx")]
pub(crate) struct Barrier {
    object: Object<sync::Barrier>,
    /// Called by the last to arrive.
    action: OnceLock<Py<PyAny>>,
    /// The default of `wait`.
    timeout: OnceLock<Py<PyAny>>,
}

impl Barrier {
    fn set_rest(&self, action: Option<Py<PyAny>>, timeout: Option<Py<PyAny>>) {
        if let Some(action) = action {
            let _ = self.action.set(action);
        }
        if let Some(timeout) = timeout {
            let _ = self.timeout.set(timeout);
        }
    }
}

fn broken(py: Python<'_>) -> PyErr {
    let raise = || {
        let error = py
            .import("threading")?
            .getattr("BrokenBarrierError")?
            .call0()?;
        PyResult::Ok(PyErr::from_value(error))
    };
    raise().unwrap_or_else(|error| error)
}

#[pymethods]
impl Barrier {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: Args<'_, '_>, _kwargs: Option<Kwargs<'_, '_>>) -> Self {
        Self {
            object: Object::empty(),
            action: OnceLock::new(),
            timeout: OnceLock::new(),
        }
    }

    #[pyo3(signature = (parties, action=None, timeout=None))]
    fn _create(
        &self,
        py: Python<'_>,
        parties: i64,
        action: Option<Py<PyAny>>,
        timeout: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        let parties = u32::try_from(parties)
            .ok()
            .filter(|&parties| parties > 0)
            .ok_or_else(|| {
                PyValueError::new_err(format!("a barrier needs at least 1 party, not {parties}"))
            })?;
        self.object.create(py, sync::Barrier::new(parties))?;
        self.set_rest(action, timeout);
        Ok(())
    }

    #[pyo3(signature = (family, handle, action=None, timeout=None))]
    fn _attach(
        &self,
        py: Python<'_>,
        family: u64,
        handle: u64,
        action: Option<Py<PyAny>>,
        timeout: Option<Py<PyAny>>,
    ) -> PyResult<()> {
        self.object.attach(py, family, handle)?;
        self.set_rest(action, timeout);
        Ok(())
    }

    fn _handle_for_pickle(&self, py: Python<'_>) -> PyResult<HandleForPickle> {
        self.object.handle_for_pickle(py)
    }

    /// Waits until all parties wait, for `timeout` seconds (None: the barrier's own timeout, or
    /// for ever). Returns a different number from 0 on to each of them.
    ///
    /// The last to arrive calls the barrier's action first. BrokenBarrierError if the barrier is
    /// broken or reset meanwhile, if the time runs out, or if one of the others dies.
    #[pyo3(signature = (timeout=None))]
    fn wait(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<u32> {
        let barrier = self.object.get()?;
        let home = home(barrier);
        let timeout = timeout.or_else(|| self.timeout.get().map(|timeout| timeout.bind(py)));
        let deadline = crate::wait::deadline(timeout)?;
        let with_action = self.action.get().is_some();
        // Arriving and waiting are one wait without the GIL unless a signal comes.
        let mut waiter = None;
        let mut turn = None;
        let outcome = waiting(py, deadline, |until| {
            let mut attempt = || {
                if waiter.is_none() {
                    match barrier.arrive(with_action, home, until)? {
                        Arrival::Last(index, with) => {
                            turn = with;
                            return Ok(index);
                        }
                        Arrival::Waiter(new) => waiter = Some(new),
                    }
                }
                match &waiter {
                    Some(waiter) if until == deadline => waiter.wait(home, until),
                    Some(waiter) => waiter.wait_a_while(home, until),
                    None => Err(Failure::Broken),
                }
            };
            match attempt() {
                Err(Failure::Stopped(stop)) => Err(stop),
                other => Ok(other),
            }
        });
        if let Some(waiter) = waiter {
            py.detach(|| waiter.leave(home));
        }
        let index = match outcome? {
            Some(Ok(index)) => index,
            Some(Err(Failure::NoRoom)) => {
                return Err(PyMemoryError::new_err(
                    "there is no room in the arena for another waiter of this Barrier",
                ));
            }
            _ => return Err(broken(py)),
        };
        if let (Some(turn), Some(action)) = (turn, self.action.get()) {
            if let Err(error) = action.call0(py) {
                py.detach(|| turn.break_up(home));
                return Err(error);
            }
            py.detach(|| turn.release(home)).map_err(|_| broken(py))?;
        }
        Ok(index)
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        visit.call(self.action.get())?;
        visit.call(self.timeout.get())
    }

    /// Makes the barrier as new. Those who wait get a BrokenBarrierError.
    fn reset(&self, py: Python<'_>) -> PyResult<()> {
        let barrier = self.object.get()?;
        py.detach(|| barrier.reset(home(barrier)));
        Ok(())
    }

    /// Breaks the barrier: those who wait, and all who come later, get a BrokenBarrierError.
    fn abort(&self, py: Python<'_>) -> PyResult<()> {
        let barrier = self.object.get()?;
        py.detach(|| barrier.abort(home(barrier)));
        Ok(())
    }

    /// How many make a round.
    #[getter]
    fn parties(&self) -> PyResult<u32> {
        Ok(self.object.get()?.parties())
    }

    /// How many wait now.
    #[getter]
    fn n_waiting(&self) -> PyResult<u32> {
        Ok(self.object.get()?.waiting())
    }

    /// Whether it is broken.
    #[getter]
    fn broken(&self) -> PyResult<bool> {
        Ok(self.object.get()?.is_broken())
    }

    #[getter]
    fn _action(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.action.get().map(|action| action.clone_ref(py))
    }

    #[getter]
    fn _timeout(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.timeout.get().map(|timeout| timeout.clone_ref(py))
    }
}
