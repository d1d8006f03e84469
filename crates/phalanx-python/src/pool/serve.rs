//! The worker's side: the loop that takes tasks, calls functions and delivers what they return.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use phalanx::arena::Shared;
use phalanx::pool::{FunctionKey, PoolCore, Task, Worker};
use pyo3::exceptions::{PyException, PyKeyboardInterrupt, PyRuntimeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};

use super::function::Loaded;
use super::wire::{self, Kind, Outcome};
use crate::arena::{HandleForPickle, attach, handle_for_pickle};
use crate::codec;
use crate::error::to_py;

/// The workers' end of a pool. It can be pickled into a child.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub(crate) struct PoolEnd {
    pub(super) core: Shared<PoolCore>,
}

#[pymethods]
impl PoolEnd {
    /// The pool's end that a pickle names.
    #[staticmethod]
    fn _attach(py: Python<'_>, family: u64, handle: u64) -> PyResult<Self> {
        Ok(Self {
            core: attach(py, family, handle)?,
        })
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, HandleForPickle)> {
        let handle = handle_for_pickle(slf.py(), &slf.get().core)?;
        Ok((slf.getattr("_attach")?, handle))
    }

    /// Makes this process a worker of the pool.
    fn enter(&self) -> PyResult<PoolSeat> {
        Ok(PoolSeat {
            worker: Worker::enter(self.core.clone()).map_err(to_py)?,
            busy: AtomicBool::new(false),
        })
    }
}

/// A worker's place in its pool.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub(crate) struct PoolSeat {
    worker: Worker,
    busy: AtomicBool,
}

#[pymethods]
impl PoolSeat {
    /// Tells the parent that the initializer has raised `error`.
    fn report(&self, error: &Bound<'_, PyAny>) -> PyResult<()> {
        let packed = pack_error(error, None, true)?;
        codec::encode(&packed, |bytes, tag, buffers| {
            let tag = Outcome::StartError.tag(tag);
            self.worker.note(bytes, tag, buffers).map_err(to_py)
        })
    }

    /// Works until the pool is closed, or for `maxtasks` tasks; returns how many there were.
    ///
    /// Waits for tasks without the GIL and without waking up. Errors of a task, whatever they are,
    /// go to the parent, with the traceback if `wrap`. A KeyboardInterrupt between two tasks
    /// concerns the program, not the worker, and is passed over.
    #[pyo3(signature = (maxtasks, wrap))]
    fn serve(&self, py: Python<'_>, maxtasks: Option<u64>, wrap: bool) -> PyResult<u64> {
        if self.busy.swap(true, Relaxed) {
            return Err(PyRuntimeError::new_err("a worker can serve but once"));
        }
        self.worker.ready();
        let mut loaded = Loaded::new(self.worker.core().family());
        let mut bytes = Vec::new();
        let mut done = 0;
        while let Some(task) = self.next(py, &mut bytes)? {
            self.work(py, task, &bytes, &mut loaded, wrap)?;
            done += 1;
            if maxtasks.is_some_and(|most| done >= most) {
                // So that the parent looks for our end at once.
                let _ = self.worker.note(&[], Outcome::Leaving.tag(0), Vec::new());
                break;
            }
            if bytes.capacity() > LARGE {
                bytes = Vec::new();
            }
        }
        self.worker.leave();
        Ok(done)
    }
}

/// A vector of more bytes is not kept for the next task.
const LARGE: usize = 1 << 20;

impl PoolSeat {
    /// The next task; `None` if there are no more.
    fn next(&self, py: Python<'_>, bytes: &mut Vec<u8>) -> PyResult<Option<Task>> {
        loop {
            serve_signals(py)?;
            match self.worker.try_next(bytes) {
                Ok(Some(task)) => return Ok(Some(task)),
                Ok(None) => {}
                Err(error) if error.is_closed() => return Ok(None),
                Err(error) => return Err(to_py(error)),
            }
            match py.detach(|| self.worker.wait(None)) {
                Err(error) if !error.is_interrupted() => return Err(to_py(error)),
                _ => {}
            }
        }
    }

    fn work(
        &self,
        py: Python<'_>,
        task: Task,
        bytes: &[u8],
        loaded: &mut Loaded,
        wrap: bool,
    ) -> PyResult<()> {
        let number = task.number;
        let packed = match self.call(py, task, bytes, loaded) {
            Ok(value) => match self.deliver(number, Outcome::Value, &value) {
                Ok(()) => return Ok(()),
                // An interruption is no fault of the value's.
                Err(signal) if !signal.is_instance_of::<PyException>(py) => {
                    pack_error(signal.into_value(py).bind(py).as_any(), None, wrap)?
                }
                Err(refused) => pack_error(refused.value(py).as_any(), Some(&value), false)?,
            },
            Err(error) => {
                // Before Python 3.12 only `into_value` gives the exception its traceback.
                pack_error(error.into_value(py).bind(py).as_any(), None, wrap)?
            }
        };
        // If even that cannot be sent, the worker ends, and its death tells.
        self.deliver(number, Outcome::Error, &packed)
    }

    /// Calls the task's function.
    fn call<'py>(
        &self,
        py: Python<'py>,
        task: Task,
        bytes: &[u8],
        loaded: &mut Loaded,
    ) -> PyResult<Bound<'py, PyAny>> {
        let damaged = || PyRuntimeError::new_err("a task in shared memory is damaged");
        let (key, body) = bytes
            .split_first_chunk::<{ FunctionKey::SIZE }>()
            .ok_or_else(damaged)?;
        let tag = task.tag;
        let kind = Kind::of(tag).ok_or_else(damaged)?;
        let large = if task.is_plain() {
            None
        } else {
            Some(task.large(&self.worker).map_err(to_py)?)
        };
        let function = loaded.get(py, FunctionKey::from_bytes(*key))?;
        let body = wire::decode(py, tag, body, large)?;
        match kind {
            Kind::One => function.call1((body,)),
            Kind::Call => function.call1(body.cast_into::<PyTuple>()?),
            Kind::CallKw => {
                let (args, kwargs): (Bound<'py, PyAny>, Bound<'py, PyDict>) = body.extract()?;
                function.call(args.try_iter()?.collect_tuple(py)?, Some(&kwargs))
            }
            Kind::Star => function.call1(body.try_iter()?.collect_tuple(py)?),
            Kind::Map => {
                let results = PyList::empty(py);
                for item in body.try_iter()? {
                    results.append(function.call1((item?,))?)?;
                }
                Ok(results.into_any())
            }
            Kind::StarMap => {
                let results = PyList::empty(py);
                for item in body.try_iter()? {
                    results.append(function.call1(item?.try_iter()?.collect_tuple(py)?)?)?;
                }
                Ok(results.into_any())
            }
        }
    }

    /// Delivers a value or a packed exception, if it can be encoded.
    fn deliver(&self, number: u64, outcome: Outcome, value: &Bound<'_, PyAny>) -> PyResult<()> {
        codec::encode(value, |bytes, tag, buffers| {
            let tag = outcome.tag(tag);
            self.worker
                .finish(number, bytes, tag, buffers)
                .map_err(to_py)
        })
    }
}

/// An exception as something that can surely be sent: with the traceback if `wrap`; with `value`, the
/// `MaybeEncodingError` of that value, which `error` kept from being sent.
#[cold]
fn pack_error<'py>(
    error: &Bound<'py, PyAny>,
    value: Option<&Bound<'py, PyAny>>,
    wrap: bool,
) -> PyResult<Bound<'py, PyAny>> {
    let py = error.py();
    let helper = py.import("phalanx.pool")?;
    match value {
        None => helper.call_method1("_pack_error", (error, wrap)),
        Some(value) => helper.call_method1("_pack_refusal", (error, value)),
    }
}

/// Runs signal handlers; a KeyboardInterrupt is passed over.
fn serve_signals(py: Python<'_>) -> PyResult<()> {
    match py.check_signals() {
        Err(error) if error.is_instance_of::<PyKeyboardInterrupt>(py) => Ok(()),
        done => done,
    }
}

/// `tuple(iterable)`.
trait CollectTuple<'py> {
    fn collect_tuple(self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>>;
}

impl<'py, I: Iterator<Item = PyResult<Bound<'py, PyAny>>>> CollectTuple<'py> for I {
    fn collect_tuple(self, py: Python<'py>) -> PyResult<Bound<'py, PyTuple>> {
        PyTuple::new(py, self.collect::<PyResult<Vec<_>>>()?)
    }
}
