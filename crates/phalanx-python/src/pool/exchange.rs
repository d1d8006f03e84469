//! What goes to the workers and what comes from them.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use phalanx::pool::{Function, Ticket};
use pyo3::exceptions::{PyException, PyKeyboardInterrupt, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use super::feed::Target;
use super::function::Pickled;
use super::hub::{Engine, Hub, locked};
use super::job::Job;
use super::lead::ROUND;
use super::wire::{self, Kind, Outcome};
use crate::arena::arena;
use crate::codec;
use crate::error::to_py;

impl Hub {
    /// The function as tasks name it.
    ///
    /// # Errors
    /// Whatever pickling raises.
    pub(super) fn target(&self, function: &Bound<'_, PyAny>) -> PyResult<Target> {
        let py = function.py();
        if matches!(self.engine, Engine::Put(_)) {
            return Ok(Target::Object(Arc::new(function.clone().unbind())));
        }
        if let Some(found) = locked(&self.outbox).named(py, function) {
            return Ok(Target::Packed(found));
        }
        let pickled = Pickled::new(function)?;
        let parts = pickled.parts();
        let known = locked(&self.outbox).same(&parts);
        let packed = match known {
            Some(packed) => packed,
            None => {
                let arena = arena(py)?;
                let made = py.detach(|| Function::new(arena, &parts)).map_err(to_py)?;
                let made = Arc::new(made);
                let len = parts.iter().map(|p| p.len()).sum();
                locked(&self.outbox).keep(&made, len);
                made
            }
        };
        if pickled.is_name {
            let object = function.clone().unbind();
            let dropped = locked(&self.outbox).keep_named(object, &packed);
            drop(dropped);
        }
        Ok(Target::Packed(packed))
    }

    /// Submits a task. If it cannot be pickled, that is its result.
    ///
    /// # Errors
    /// What is no error of the task: an interruption. The task has its result all the same.
    pub(super) fn submit(
        &self,
        py: Python<'_>,
        job: &Arc<Job>,
        index: u64,
        target: &Target,
        kind: Kind,
        body: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let sent = match (&self.engine, target) {
            (Engine::Arena(parent), Target::Packed(function)) => {
                let head = function.key().to_bytes();
                let ticket = Ticket { job: job.id, index };
                codec::encode(body, |bytes, tag, buffers| {
                    let weight = bytes.len() + buffers.iter().map(|b| b.len()).sum::<usize>();
                    let tag = kind.tag(tag);
                    parent
                        .submit(ticket, &head, bytes, tag, buffers)
                        .map_err(to_py)?;
                    Ok(weight)
                })
            }
            (Engine::Put(put), Target::Object(function)) => {
                plain_task(py, job.id, index, function.bind(py), kind, body)
                    .and_then(|task| put.call1(py, (task,)))
                    .map(|_| 0)
            }
            _ => Err(PyValueError::new_err("the function is of another pool")),
        };
        match sent {
            Ok(weight) => {
                job.count_fed(weight);
                Ok(())
            }
            Err(error) => {
                job.count_fed(0);
                let value = error.value(py).clone().into_any();
                self.deliver(py, job, index, false, value, 0)?;
                if error.is_instance_of::<PyException>(py) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Takes up to `most` results; false if there are no more.
    ///
    /// # Errors
    /// An interruption: a result whose loading was interrupted has that for its outcome.
    pub(super) fn drain(&self, py: Python<'_>, most: usize) -> PyResult<bool> {
        let Some(parent) = self.parent() else {
            return Ok(false);
        };
        if !parent.has_results() {
            return Ok(false);
        }
        let mut bytes = Vec::new();
        for _ in 0..most {
            let Some(delivery) = parent.collect(&mut bytes).map_err(to_py)? else {
                return Ok(false);
            };
            let (ticket, tag) = (delivery.ticket, delivery.tag);
            let body_len = bytes.len().saturating_sub(8);
            let large = if delivery.is_plain() {
                None
            } else {
                Some(delivery.large(parent).map_err(to_py)?)
            };
            let weight = body_len
                + large.as_ref().map_or(0, |l| {
                    let buffers = l.buffers.iter().chain(&l.body);
                    buffers.map(|b| b.len()).sum::<usize>()
                });
            let body = bytes.get(8..).unwrap_or_default();
            let outcome = Outcome::of(tag);
            if outcome == Outcome::Leaving {
                self.watch.leaving.fetch_add(1, Relaxed);
                continue;
            }
            let decoded = wire::decode(py, tag, body, large).and_then(|value| match outcome {
                Outcome::Value => Ok(value),
                Outcome::Error | Outcome::StartError | Outcome::Leaving => unpack_error(&value),
            });
            let mut interrupted = None;
            let (success, value) = match decoded {
                Ok(value) => (outcome == Outcome::Value, value),
                Err(error) if error.is_instance_of::<PyException>(py) => {
                    (false, unloadable(py, &error))
                }
                // A signal that came just then is no fault of the result's.
                Err(signal) => {
                    let value = signal.value(py).clone().into_any();
                    interrupted = Some(signal);
                    (false, value)
                }
            };
            match ticket {
                Some(ticket) => {
                    // Without its job: it was failed before this came.
                    if let Some(job) = self.job(ticket.job) {
                        if !success && value.is_instance_of::<PyKeyboardInterrupt>() {
                            // Ctrl-C ends the call, not one item of it: a thread that no signal
                            // interrupts would else wait for all the others.
                            self.fail(py, &job, &value);
                        }
                        self.deliver(py, &job, ticket.index, success, value, weight)?;
                    }
                }
                None => {
                    let before = locked(&self.start_error).replace(value.unbind());
                    drop(before);
                }
            }
            if let Some(error) = interrupted {
                return Err(error);
            }
        }
        Ok(true)
    }

    /// Buries the worker that was process `pid`: `(worker, was_ready, had_left, lost task)`.
    #[allow(clippy::type_complexity, reason = "a tuple for Python")]
    pub(super) fn bury(
        &self,
        py: Python<'_>,
        pid: u32,
    ) -> PyResult<(Option<usize>, bool, bool, Option<(u64, u64)>)> {
        let Some(parent) = self.parent() else {
            return Ok((None, true, true, None));
        };
        let fallen = py.detach(|| parent.bury(pid)).map_err(to_py)?;
        if fallen.had_left {
            let one_less = |n: usize| n.checked_sub(1);
            let _ = self.watch.leaving.fetch_update(Relaxed, Relaxed, one_less);
        }
        let mut lost = None;
        if let Some(task) = fallen.task {
            while self.drain(py, ROUND)? {}
            lost = parent.lose(task).map(|t| (t.job, t.index));
        } else if !fallen.was_ready {
            while self.drain(py, ROUND)? {}
        }
        Ok((fallen.worker, fallen.was_ready, fallen.had_left, lost))
    }
}

/// The error that stands for a result that could not be loaded.
#[cold]
fn unloadable<'py>(py: Python<'py>, error: &PyErr) -> Bound<'py, PyAny> {
    // Where Python knows notes (3.11 on), the error says where it comes from.
    let note = "raised by unpickling the result of a task, in the process that has the pool";
    let value = error.value(py).clone().into_any();
    let _ = value.call_method1("add_note", (note,));
    value
}

/// The exception that a worker has packed.
#[cold]
fn unpack_error<'py>(packed: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
    let helper = packed.py().import("phalanx.pool")?;
    helper.call_method1("_unpack_error", (packed,))
}

/// A task as the standard library's workers know it.
fn plain_task<'py>(
    py: Python<'py>,
    job: u64,
    index: u64,
    function: &Bound<'py, PyAny>,
    kind: Kind,
    body: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyTuple>> {
    let mapper = |name: &str| py.import("phalanx.pool")?.getattr(name);
    let empty = PyDict::new(py).into_any();
    let (function, args, kwargs) = match kind {
        Kind::Call => (function.clone(), body.clone(), empty),
        Kind::CallKw => {
            let (args, kwargs): (Bound<'py, PyAny>, Bound<'py, PyAny>) = body.extract()?;
            (function.clone(), args, kwargs)
        }
        Kind::One => (
            function.clone(),
            PyTuple::new(py, [body])?.into_any(),
            empty,
        ),
        Kind::Star => {
            let args = PyTuple::new(py, [function, body])?;
            let args = PyTuple::new(py, [args])?.into_any();
            (mapper("_star")?, args, empty)
        }
        Kind::Map | Kind::StarMap => {
            let name = if kind == Kind::Map {
                "mapstar"
            } else {
                "starmapstar"
            };
            let args = PyTuple::new(py, [function, body])?;
            let args = PyTuple::new(py, [args])?.into_any();
            (mapper(name)?, args, empty)
        }
    };
    (job, index, function, args, kwargs).into_pyobject(py)
}
