//! What Python's `Pool` stands on.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use phalanx::pool::Parent;
use pyo3::exceptions::{PyException, PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyFrozenSet, PyList, PyRange, PySet, PyString, PyTuple, PyType};

use super::feed::{Items, Source, Target, WINDOW};
use super::hub::{Engine, Front, Hub, locked};
use super::job::{Callbacks, Job};
use super::reader::Reader;
use super::result::{PoolIterator, PoolResult, Ties};
use super::serve::PoolEnd;
use super::wire::Kind;
use crate::arena::arena;
use crate::error::to_py;
use crate::wait::deadline;

/// The parent's side of a pool: it submits tasks and takes their results.
#[pyclass(frozen, module = "phalanx._phalanx")]
pub(crate) struct PoolHub {
    hub: Arc<Hub>,
    /// `__new__` of the class that `apply_async` made last.
    maker: Mutex<Option<(Py<PyType>, Py<PyAny>)>>,
}

impl PoolHub {
    pub(super) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// Makes a job known; it keeps `pool` alive if nobody waits for it.
    fn open(&self, py: Python<'_>, job: Job, pool: Option<Py<PyAny>>) -> PyResult<Arc<Job>> {
        let job = Arc::new(job);
        if !job.is_done() {
            if let Some(pool) = pool {
                job.hold_pool(pool);
            }
            self.hub.open(py, &job)?;
        }
        Ok(job)
    }

    /// Submits a call with one result. What goes wrong is the result.
    fn send(
        &self,
        job: &Arc<Job>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
        kwargs: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let py = function.py();
        let parts = || {
            let target = self.hub.target(function)?;
            let (kind, body) = arguments(args, kwargs)?;
            PyResult::Ok((target, kind, body))
        };
        match parts() {
            Ok((target, kind, body)) => {
                job.hold_target(&target);
                self.hub.submit(py, job, 0, &target, kind, &body)
            }
            Err(error) => {
                let value = error.value(py).clone().into_any();
                self.hub.deliver(py, job, 0, false, value, 0)
            }
        }
    }

    /// Begins a call of a map. What goes wrong is its result.
    fn begin(
        &self,
        py: Python<'_>,
        job: &Arc<Job>,
        function: &Bound<'_, PyAny>,
        source: impl FnOnce(Target) -> PyResult<Source>,
    ) -> PyResult<()> {
        if job.is_done() {
            return Ok(());
        }
        let target = self.hub.target(function).inspect(|t| job.hold_target(t));
        match target.and_then(source) {
            Ok(source) => self.hub.begin_feeding(py, job, source),
            Err(error) => {
                self.hub.fail(py, job, error.value(py).as_any());
                if error.is_instance_of::<PyException>(py) {
                    Ok(())
                } else {
                    Err(error)
                }
            }
        }
    }

    /// Sees to a job that nobody may be waiting for.
    fn watch_over(&self, py: Python<'_>, job: &Job) -> PyResult<()> {
        if job.is_done() {
            return Ok(());
        }
        match self.hub.supervise_from_now(py) {
            // There are no new threads at the interpreter's end. Who waits can do without. What else
            // is raised here comes from a signal.
            Err(error) if error.is_instance_of::<PyRuntimeError>(py) && !job.has_callbacks() => {
                Ok(())
            }
            done => done,
        }
    }

    /// Waits for a job that nobody else knows of. If a signal handler raises, it goes on without us.
    fn finish(&self, py: Python<'_>, job: &Arc<Job>) -> PyResult<Py<PyAny>> {
        if !job.is_done() {
            self.hub
                .wait(py, Some(job.id), &|| job.is_done(), None, false)?;
        }
        job.outcome(py)
    }
}

#[pymethods]
impl PoolHub {
    /// A pool whose workers are joined by `end`; or, with `put`, one whose tasks go to that function
    /// and whose results come by `_set`.
    ///
    /// `maintain()` is called when a worker seems to have ended, `start_thread(f)` to start a thread.
    #[new]
    #[pyo3(signature = (maintain, start_thread, put=None))]
    fn new(
        py: Python<'_>,
        maintain: Py<PyAny>,
        start_thread: Py<PyAny>,
        put: Option<Py<PyAny>>,
    ) -> PyResult<Self> {
        let engine = match put {
            Some(put) => Engine::Put(put),
            None => {
                arena(py)?;
                Engine::Arena(Parent::new().map_err(to_py)?)
            }
        };
        let front = Front {
            maintain,
            start_thread,
        };
        Ok(Self {
            hub: Hub::new(engine, front),
            maker: Mutex::default(),
        })
    }

    /// What goes to the workers; None if tasks do not go through the arena.
    #[getter]
    fn end(&self) -> Option<PoolEnd> {
        let core = self.hub.parent()?.core().clone();
        Some(PoolEnd { core })
    }

    /// `function(*args, **kwargs)` in a worker; blocks for its result.
    fn apply(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        args: &Bound<'_, PyAny>,
        kwargs: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PyAny>> {
        let job = self.open(py, Job::one(Hub::new_id(), Callbacks::default()), None)?;
        self.send(&job, function, args, kwargs)?;
        self.finish(py, &job)
    }

    /// As `apply`, but returns at once, with a new object of class `class_`, a `PoolResult`.
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of a Python method"
    )]
    fn apply_async<'py>(
        &self,
        py: Python<'py>,
        class_: &Bound<'py, PyType>,
        pool: Py<PyAny>,
        function: &Bound<'py, PyAny>,
        args: &Bound<'py, PyAny>,
        kwargs: Option<&Bound<'py, PyAny>>,
        callback: Option<Py<PyAny>>,
        error_callback: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let callbacks = Callbacks {
            success: callback,
            error: error_callback,
        };
        let job = self.open(py, Job::one(Hub::new_id(), callbacks), Some(pool))?;
        let result = self.result(class_, &job)?;
        self.send(&job, function, args, kwargs)?;
        self.watch_over(py, &job)?;
        Ok(result)
    }

    /// `[function(item) for item in iterable]` in the workers, `chunksize` items a task; with `star`
    /// the items are unpacked. `iterable` has a length. Blocks for the list.
    fn map(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
        iterable: &Bound<'_, PyAny>,
        chunksize: usize,
        star: bool,
    ) -> PyResult<Py<PyAny>> {
        let length = iterable.len()?;
        let id = Hub::new_id();
        let single = chunksize == 1;
        let callbacks = Callbacks::default();
        let job = self.open(
            py,
            Job::map(py, id, chunksize, length, single, callbacks)?,
            None,
        )?;
        self.begin(py, &job, function, |target| {
            map_source(iterable, target, chunksize, star)
        })?;
        self.finish(py, &job)
    }

    /// As `map`, but returns at once, with a new object of class `class_`, a `PoolResult`.
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of a Python method"
    )]
    fn map_async<'py>(
        &self,
        py: Python<'py>,
        class_: &Bound<'py, PyType>,
        pool: Py<PyAny>,
        function: &Bound<'py, PyAny>,
        iterable: &Bound<'py, PyAny>,
        chunksize: usize,
        star: bool,
        callback: Option<Py<PyAny>>,
        error_callback: Option<Py<PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let length = iterable.len()?;
        let callbacks = Callbacks {
            success: callback,
            error: error_callback,
        };
        let (id, single) = (Hub::new_id(), chunksize == 1);
        let job = self.open(
            py,
            Job::map(py, id, chunksize, length, single, callbacks)?,
            Some(pool),
        )?;
        let result = self.result(class_, &job)?;
        self.begin(py, &job, function, |target| {
            let mut source = map_source(iterable, target, chunksize, star)?;
            source.foreign = !is_tame(iterable);
            Ok(source)
        })?;
        self.watch_over(py, &job)?;
        Ok(result)
    }

    /// An iterator, an object of class `class_`, over `function(item) for item in iterable`; over
    /// lists of `chunksize` of them if that is not 1. Reads at most `window` such ahead, some
    /// hundreds if that is None.
    #[allow(
        clippy::too_many_arguments,
        reason = "the arguments of a Python method"
    )]
    #[pyo3(signature = (class_, pool, function, iterable, chunksize, ordered, window=None))]
    fn imap<'py>(
        &self,
        py: Python<'py>,
        class_: &Bound<'py, PyType>,
        pool: Py<PyAny>,
        function: &Bound<'py, PyAny>,
        iterable: &Bound<'py, PyAny>,
        chunksize: usize,
        ordered: bool,
        window: Option<u64>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let job = self.open(py, Job::items(Hub::new_id(), ordered), Some(pool))?;
        let result = class_.call_method1("__new__", (class_,))?;
        result
            .cast::<PoolIterator>()?
            .get()
            .tie(Ties::new(&self.hub, &job))?;
        let floor = 2 * self.hub.size() as u64 + 2;
        self.begin(py, &job, function, |function| {
            Ok(Source {
                items: Items::Calls {
                    reader: Reader::new(iterable, chunksize)?,
                    function,
                    kind: Kind::of_map(false, chunksize),
                    chunk: chunksize,
                },
                index: 0,
                window: window.unwrap_or((WINDOW / chunksize.max(1) as u64).max(floor)),
                foreign: !is_tame(iterable),
                strict: window.is_some(),
            })
        })?;
        self.watch_over(py, &job)?;
        Ok(result)
    }

    /// Submits tasks `(job, index, function, args, kwargs)` of one job from an iterable, then calls
    /// `set_length` with their number.
    #[pyo3(signature = (tasks, set_length=None))]
    fn put_tasks(
        &self,
        py: Python<'_>,
        tasks: &Bound<'_, PyAny>,
        set_length: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        // The job's number stands in the tasks only.
        let mut iterator = tasks.try_iter()?;
        let Some(first) = iterator.next().transpose()? else {
            return match set_length {
                Some(set_length) => set_length.call1((0,)).map(drop),
                None => Ok(()),
            };
        };
        let id: u64 = first.get_item(0)?.extract()?;
        let Some(job) = self.hub.job(id) else {
            return Ok(());
        };
        let all = py
            .import("itertools")?
            .getattr("chain")?
            .call1((PyTuple::new(py, [first])?, iterator))?;
        let source = Source {
            items: Items::Tasks {
                iterator: all.try_iter()?.unbind(),
            },
            index: 0,
            window: WINDOW,
            foreign: true,
            strict: false,
        };
        self.hub.begin_feeding(py, &job, source)?;
        self.watch_over(py, &job)
    }

    /// Takes in the result `(success, value)` of part `index` of a job, if that is still open.
    fn set_result(
        &self,
        py: Python<'_>,
        job: u64,
        index: u64,
        success: bool,
        value: Bound<'_, PyAny>,
    ) -> PyResult<()> {
        match self.hub.job(job) {
            Some(job) => self.hub.deliver(py, &job, index, success, value, 0),
            None => Ok(()),
        }
    }

    /// Says that process `pid`, a worker, has ended: `(worker, was_ready, had_left, lost)`, the last
    /// the `(job, index)` of the task that it had, None if none is lost.
    #[allow(clippy::type_complexity, reason = "a tuple for Python")]
    fn bury(
        &self,
        py: Python<'_>,
        pid: u32,
    ) -> PyResult<(Option<usize>, bool, bool, Option<(u64, u64)>)> {
        self.hub.bury(py, pid)
    }

    /// How many workers there should be, and descriptors that become readable when one ends.
    fn set_workers(&self, size: usize, sentinels: Vec<i32>) {
        self.hub.set_size(size);
        self.hub.set_sentinels(sentinels);
    }

    /// Whether some worker has finished its start.
    fn has_ready_workers(&self) -> bool {
        self.hub.parent().is_none_or(|parent| parent.ready() > 0)
    }

    /// What the initializer raised that failed last.
    fn start_error(&self, py: Python<'_>) -> Option<Py<PyAny>> {
        self.hub.start_error(py)
    }

    /// The numbers of the jobs that are not complete.
    fn open_jobs(&self) -> Vec<u64> {
        self.hub.open_jobs()
    }

    /// Whether nothing is outstanding, callbacks included.
    fn is_idle(&self) -> bool {
        self.hub.is_idle()
    }

    /// No more jobs will come: the workers leave when all are complete.
    fn close(&self) {
        self.hub.close();
    }

    /// Waits until nothing is outstanding, at most `timeout` seconds; whether that is so.
    ///
    /// All tasks are done, also those of iterators that nobody reads. RuntimeError in a callback: it
    /// would wait for itself.
    #[pyo3(signature = (timeout=None))]
    fn settle(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let until = deadline(timeout)?;
        if self.hub.is_supervisor() {
            return Err(PyRuntimeError::new_err(
                "a pool cannot be joined in one of its callbacks: join() waits for them",
            ));
        }
        self.hub.make_eager();
        self.hub.feed_all(py)?;
        self.hub
            .wait(py, None, &|| self.hub.is_idle(), until, false)
    }

    /// Fails all jobs with `error`, and all that will come.
    fn break_off(&self, py: Python<'_>, error: &Bound<'_, PyAny>) {
        self.hub.break_off(py, error);
    }

    /// As `break_off`; workers take no more tasks, and the pool's own threads end.
    fn stop(&self, py: Python<'_>, error: &Bound<'_, PyAny>) {
        self.hub.stop(py, error);
    }

    /// Waits until the supervisor has ended, at most `timeout` seconds.
    fn join_supervisor(&self, py: Python<'_>, timeout: f64) {
        let until = std::time::Instant::now() + Duration::from_secs_f64(timeout.max(0.0));
        self.hub.join_supervisor(py, until);
    }
}

impl PoolHub {
    fn result<'py>(
        &self,
        class_: &Bound<'py, PyType>,
        job: &Arc<Job>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let known = locked(&self.maker)
            .as_ref()
            .filter(|(known, _)| known.is(class_))
            .map(|(_, new)| new.clone_ref(class_.py()));
        let new = match known {
            Some(new) => new.into_bound(class_.py()),
            None => {
                let new = class_.getattr("__new__")?;
                let maker = Some((class_.clone().unbind(), new.clone().unbind()));
                let before = std::mem::replace(&mut *locked(&self.maker), maker);
                drop(before);
                new
            }
        };
        let result = new.call1((class_,))?;
        result
            .cast::<PoolResult>()?
            .get()
            .tie(Ties::new(&self.hub, job))?;
        Ok(result)
    }
}

/// A call's arguments as one body.
fn arguments<'py>(
    args: &Bound<'py, PyAny>,
    kwargs: Option<&Bound<'py, PyAny>>,
) -> PyResult<(Kind, Bound<'py, PyAny>)> {
    let py = args.py();
    let tuple = match args.cast_exact::<PyTuple>() {
        Ok(tuple) => tuple.clone(),
        Err(_) => {
            let items: Vec<_> = args
                .try_iter()
                .map_err(|_| {
                    PyTypeError::new_err(format!("args must be an iterable, not {args:?}"))
                })?
                .collect::<PyResult<_>>()?;
            PyTuple::new(py, items)?
        }
    };
    match kwargs {
        Some(kwargs) if kwargs.is_truthy()? => {
            let kwargs = match kwargs.cast_exact::<PyDict>() {
                Ok(kwargs) => kwargs.clone(),
                Err(_) => {
                    let copy = PyDict::new(py);
                    copy.call_method1("update", (kwargs,))?;
                    copy
                }
            };
            let both = PyTuple::new(py, [tuple.into_any(), kwargs.into_any()])?;
            Ok((Kind::CallKw, both.into_any()))
        }
        _ => Ok((Kind::Call, tuple.into_any())),
    }
}

fn map_source(
    iterable: &Bound<'_, PyAny>,
    function: Target,
    chunk: usize,
    star: bool,
) -> PyResult<Source> {
    Ok(Source {
        items: Items::Calls {
            reader: Reader::new(iterable, chunk)?,
            function,
            kind: Kind::of_map(star, chunk),
            chunk,
        },
        index: 0,
        window: u64::MAX,
        foreign: false,
        strict: false,
    })
}

/// Whether reading the iterable runs no code of the program's, so that any thread may do it.
fn is_tame(iterable: &Bound<'_, PyAny>) -> bool {
    iterable.is_exact_instance_of::<PyList>()
        || iterable.is_exact_instance_of::<PyTuple>()
        || iterable.is_exact_instance_of::<PyRange>()
        || iterable.is_exact_instance_of::<PySet>()
        || iterable.is_exact_instance_of::<PyFrozenSet>()
        || iterable.is_exact_instance_of::<PyDict>()
        || iterable.is_exact_instance_of::<PyString>()
}
