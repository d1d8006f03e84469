//! `phalanx.queues`: the native base of the queue classes.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

use phalanx::arena::{Buffer, Shared};
use phalanx::channel::queue::QueueCore;
use phalanx::channel::{self, Message, Patience, Taken};
use pyo3::exceptions::{PyKeyboardInterrupt, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList, PyRange, PyTuple};

use crate::arena::{HandleForPickle, arena, attach, handle_for_pickle, member, pickling_alone};
use crate::batch::{self, Batch};
use crate::codec;
use crate::error::to_py;
use crate::wait::{blocking, deadline};

/// The native base of `phalanx.queues.Queue` and its kin.
#[pyclass(subclass, frozen, module = "phalanx._phalanx")]
pub(crate) struct Queue {
    queue: OnceLock<channel::Queue>,
    /// This process has closed its side.
    closed: AtomicBool,
    of_fork_context: AtomicBool,
    /// Whether `owed` has something.
    owes: AtomicBool,
    /// What the next `get` raises, in the process with this id.
    owed: Mutex<Option<(u32, PyErr)>>,
}

/// What a wait of a queue ended with, as Python says it: `queue.Full`, `queue.Empty`,
/// `queue.ShutDown`.
#[cold]
fn queue_error(py: Python<'_>, error: phalanx::Error) -> PyErr {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let name = match &error {
        error if error.is_full() => "Full",
        error if error.is_empty() => "Empty",
        error if error.is_closed() => "ShutDown",
        _ => return to_py(error),
    };
    let module = MODULE.get_or_try_init(py, || Ok(py.import("phalanx.queues")?.unbind()));
    match module.and_then(|module| module.bind(py).getattr(name)?.call0()) {
        Ok(error) => PyErr::from_value(error),
        Err(error) => error,
    }
}

/// Python's `block` and `timeout`: when to give up; a wait that may not block ends at once.
fn until(block: bool, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<Option<Instant>> {
    if block {
        deadline(timeout)
    } else {
        Ok(Some(Instant::now()))
    }
}

impl Queue {
    /// Whether a `get` would not block now; if it would, its descriptor is not readable, either.
    pub(crate) fn is_ready(&self) -> PyResult<bool> {
        let queue = self.native()?;
        if self.owes.load(Relaxed) {
            return Ok(true);
        }
        if !queue.is_ready().map_err(to_py)? {
            queue.exposed_fd().map_err(to_py)?;
        }
        queue.is_ready().map_err(to_py)
    }

    #[inline]
    fn open(slf: &Bound<'_, Self>) -> PyResult<()> {
        if slf.get().closed.load(Relaxed) {
            return Err(PyValueError::new_err(format!(
                "Queue {} is closed",
                slf.repr()?
            )));
        }
        Ok(())
    }

    /// Has the next `get` raise `error`.
    ///
    /// A Ctrl-C does not wait for that: it comes again as soon as this call has returned.
    #[cold]
    fn owe(&self, py: Python<'_>, error: PyErr) {
        if error.is_instance_of::<PyKeyboardInterrupt>(py) {
            // SAFETY: callable at any time.
            return unsafe { pyo3::ffi::PyErr_SetInterrupt() };
        }
        *self.owed.lock().unwrap_or_else(PoisonError::into_inner) =
            Some((std::process::id(), error));
        self.owes.store(true, Relaxed);
    }

    /// Raises what is owed. (A forked child has a copy of it that is not for the child.)
    #[cold]
    fn settle(&self) -> PyResult<()> {
        self.owes.store(false, Relaxed);
        let owed = self
            .owed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        match owed {
            Some((pid, error)) if pid == std::process::id() => Err(error),
            _ => Ok(()),
        }
    }

    #[inline]
    fn native(&self) -> PyResult<&channel::Queue> {
        self.queue.get().ok_or_else(|| {
            PyValueError::new_err(
                "the queue was never set up: a subclass must call Queue.__init__ before using it",
            )
        })
    }

    fn set(&self, queue: channel::Queue) -> PyResult<()> {
        self.queue
            .set(queue)
            .map_err(|_| PyValueError::new_err("the queue has been set up already"))
    }

    fn send(
        &self,
        py: Python<'_>,
        bytes: &[u8],
        tag: u16,
        buffers: Vec<Buffer>,
        deadline: impl FnOnce() -> PyResult<Option<Instant>>,
    ) -> PyResult<()> {
        let queue = self.native()?;
        let parts = [bytes];
        let mut letter = queue.letter(&parts, tag, buffers).map_err(to_py)?;
        if queue.try_put(&mut letter, Patience::Now).map_err(to_py)? {
            return Ok(());
        }
        let deadline = deadline()?;
        blocking(py, || queue.put(&mut letter, deadline))?.map_err(|error| queue_error(py, error))
    }

    /// The oldest item if there is one now, taken without a vector of its own.
    #[inline]
    fn get_quickly<'py>(
        py: Python<'py>,
        queue: &channel::Queue,
        patience: Patience,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        codec::with_scratch(|bytes| {
            let Some(taken) = queue.try_get_into(bytes, patience).map_err(to_py)? else {
                return Ok(None);
            };
            Self::object(py, queue, taken, bytes).map(Some)
        })
    }

    /// The object that was taken, whose inline bytes are `bytes`.
    #[inline]
    fn object<'py>(
        py: Python<'py>,
        queue: &channel::Queue,
        taken: Taken,
        bytes: &mut Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if taken.is_plain() {
            return codec::decode_plain(py, taken.tag(), bytes);
        }
        let message = taken.into_message(queue.core().arena(), std::mem::take(bytes));
        codec::decode(py, message.map_err(to_py)?)
    }

    /// Puts a small built-in value if there is room for it this moment; `None` if not, or if that
    /// would be an error.
    #[cfg(not(feature = "abi3"))]
    fn put_now(&self, object: &Bound<'_, PyAny>) -> Option<()> {
        let queue = self.queue.get().filter(|_| !self.closed.load(Relaxed))?;
        codec::encode_small(object, |bytes, tag| {
            let parts = [bytes];
            let mut letter = queue.letter(&parts, tag, Vec::new()).ok()?;
            let put = queue.try_put(&mut letter, Patience::Now);
            put.is_ok_and(|put| put).then_some(())
        })
    }

    /// Takes an item if there is one this moment; `None` if not, or if that would be an error.
    #[cfg(not(feature = "abi3"))]
    fn get_now<'py>(&self, py: Python<'py>) -> Option<PyResult<Bound<'py, PyAny>>> {
        let usable = !self.closed.load(Relaxed) && !self.owes.load(Relaxed);
        let queue = self.queue.get().filter(|_| usable)?;
        codec::with_scratch(|bytes| {
            let taken = queue.try_get_into(bytes, Patience::Now).ok()??;
            Some(Self::object(py, queue, taken, bytes))
        })
    }

    /// Waits for a message without the GIL.
    fn wait(&self, py: Python<'_>, deadline: Option<Instant>) -> PyResult<Message> {
        let queue = self.native()?;
        blocking(py, || queue.get(deadline))?.map_err(|error| queue_error(py, error))
    }
}

#[pymethods]
impl Queue {
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self {
            queue: OnceLock::new(),
            closed: AtomicBool::new(false),
            owes: AtomicBool::new(false),
            owed: Mutex::new(None),
            of_fork_context: AtomicBool::new(false),
        }
    }

    /// Makes the shared queue; `maxsize` of 0 or less: any number of items.
    /// With `joinable`, what a process has taken when it dies counts as done.
    #[pyo3(signature = (maxsize, fork=false, joinable=false))]
    fn _create(
        &self,
        py: Python<'_>,
        maxsize: &Bound<'_, PyAny>,
        fork: bool,
        joinable: bool,
    ) -> PyResult<()> {
        let maxsize: i64 = maxsize.extract().map_err(|_| {
            PyTypeError::new_err(format!("maxsize must be an int, not {maxsize:?}"))
        })?;
        arena(py)?;
        let bound = u64::try_from(maxsize).ok().filter(|&n| n > 0);
        self.of_fork_context.store(fork, Relaxed);
        let queue = if joinable {
            channel::Queue::joinable(bound)
        } else {
            channel::Queue::new(bound)
        };
        self.set(queue.map_err(to_py)?)
    }

    /// Whether a context with the start method fork made it, and not a pickle.
    #[getter]
    fn _is_fork_ctx(&self) -> bool {
        self.of_fork_context.load(Relaxed)
    }

    /// Makes this object one for the shared queue that a pickle names.
    fn _attach(&self, py: Python<'_>, family: u64, handle: u64) -> PyResult<()> {
        let core: Shared<QueueCore> = attach(py, family, handle)?;
        self.set(channel::Queue::from_core(core))
    }

    /// Family and handle of the shared queue, for a pickle.
    fn _handle_for_pickle(&self, py: Python<'_>) -> PyResult<HandleForPickle> {
        handle_for_pickle(py, self.native()?.core())
    }

    /// Puts `obj` into the queue; it is there when this returns.
    ///
    /// Blocks while a bounded queue is full, up to `timeout` seconds; then, or at once without
    /// `block`, raises `queue.Full`; `queue.ShutDown` as soon as any process has shut the queue
    /// down. An object that cannot be pickled raises here. ValueError if the queue was closed by
    /// this process, MemoryError if the arena is full.
    #[pyo3(signature = (obj, block=true, timeout=None))]
    fn put(
        slf: &Bound<'_, Self>,
        obj: &Bound<'_, PyAny>,
        block: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        Self::open(slf)?;
        let mut pickled = false;
        let done = codec::encode(obj, |bytes, tag, buffers| {
            pickled = true;
            slf.get()
                .send(slf.py(), bytes, tag, buffers, || until(block, timeout))
        });
        match done {
            Err(error) if !pickled => {
                // A subclass may want to be told instead of raising.
                let py = slf.py();
                slf.call_method1(intern!(py, "_unpicklable"), (error.into_value(py), obj))?;
                Ok(())
            }
            done => done,
        }
    }

    /// Takes the oldest item out of the queue.
    ///
    /// Blocks while the queue is empty, up to `timeout` seconds; then, or at once without `block`,
    /// raises `queue.Empty`; `queue.ShutDown` if it was shut down and is empty. What a killed process was putting is never seen in part.
    #[pyo3(signature = (block=true, timeout=None))]
    fn get<'py>(
        slf: &Bound<'py, Self>,
        block: bool,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        Self::open(slf)?;
        if slf.get().owes.load(Relaxed) {
            slf.get().settle()?;
        }
        let py = slf.py();
        match Self::get_quickly(py, slf.get().native()?, Patience::Now)? {
            Some(object) => Ok(object),
            None => codec::decode(py, slf.get().wait(py, until(block, timeout)?)?),
        }
    }

    /// `put(obj, block=False)`.
    fn put_nowait(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        Self::put(slf, obj, false, None)
    }

    /// `get(block=False)`.
    fn get_nowait<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        Self::get(slf, false, None)
    }

    /// Puts each item of an iterable; returns how many. Blocks as `put` does, up to `timeout`
    /// seconds for all of them; on an error the items before it have been put.
    ///
    /// The items of a list, tuple or range are put in batches; those of other iterables, which may
    /// take their time, one by one.
    #[pyo3(signature = (items, timeout=None))]
    fn put_many(
        slf: &Bound<'_, Self>,
        items: &Bound<'_, PyAny>,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<usize> {
        Self::open(slf)?;
        let (py, queue) = (slf.py(), slf.get().native()?);
        let deadline = deadline(timeout)?;
        let at_once = items.is_exact_instance_of::<PyList>()
            || items.is_exact_instance_of::<PyTuple>()
            || items.is_exact_instance_of::<PyRange>();
        let mut batch = Batch::default();
        let mut count = 0;
        let put = |batch: &mut Batch| {
            batch
                .put(py, queue, deadline)?
                .map_err(|error| queue_error(py, error))
        };
        for item in items.try_iter()? {
            let done = item.and_then(|item| {
                codec::encode(&item, |bytes, tag, buffers| {
                    if at_once && buffers.is_empty() && batch.add(bytes, tag) {
                        return if batch.is_full() {
                            put(&mut batch)
                        } else {
                            Ok(())
                        };
                    }
                    put(&mut batch)?;
                    slf.get().send(py, bytes, tag, buffers, || Ok(deadline))
                })
            });
            if let Err(error) = done {
                put(&mut batch)?;
                return Err(error);
            }
            count += 1;
        }
        put(&mut batch)?;
        Ok(count)
    }

    /// Takes up to `max_items` items that are there: at least one, for which it blocks as `get`
    /// does, up to `timeout` seconds.
    ///
    /// What unpickling an item raises is raised when it is this item's turn: those before it are
    /// returned, and the next `get` or `get_many` of this object raises.
    #[pyo3(signature = (max_items, timeout=None))]
    fn get_many<'py>(
        slf: &Bound<'py, Self>,
        max_items: usize,
        timeout: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyList>> {
        let py = slf.py();
        if max_items == 0 {
            return Err(PyValueError::new_err("max_items must be at least 1, not 0"));
        }
        let items = PyList::empty(py);
        items.append(Self::get(slf, true, timeout)?)?;
        let queue = slf.get().native()?;
        let more = || {
            if batch::take(queue, &items, max_items - items.len())? {
                return Ok(true);
            }
            let item = Self::get_quickly(py, queue, Patience::Wait)?;
            item.map_or(Ok(false), |item| items.append(item).map(|()| true))
        };
        while items.len() < max_items {
            match more() {
                Ok(true) => {}
                Ok(false) => break,
                Err(error) => {
                    slf.get().owe(py, error);
                    break;
                }
            }
        }
        Ok(items)
    }

    /// How many items are in the queue, exactly.
    fn qsize(&self, py: Python<'_>) -> PyResult<u64> {
        let queue = self.native()?;
        py.detach(|| queue.len()).map_err(to_py)
    }

    /// True if there is nothing in the queue.
    fn empty(&self, py: Python<'_>) -> PyResult<bool> {
        Ok(self.qsize(py)? == 0)
    }

    /// True if a bounded queue holds as many items as it may.
    fn full(&self, py: Python<'_>) -> PyResult<bool> {
        let size = self.qsize(py)?;
        Ok(self.native()?.bound().is_some_and(|bound| size >= bound))
    }

    /// This process will neither put nor get any more; others go on, and get what was put.
    fn close(&self) {
        self.closed.store(true, Relaxed);
    }

    /// Ends the queue for all processes: see `phalanx.queues.Queue.shutdown`.
    fn _shutdown(&self, py: Python<'_>, immediate: bool) -> PyResult<()> {
        let queue = self.native()?;
        py.detach(|| queue.shutdown(immediate)).map_err(to_py)
    }

    #[getter]
    fn _is_shutdown(&self) -> PyResult<bool> {
        Ok(self.native()?.is_shut())
    }

    #[getter]
    fn _closed(&self) -> bool {
        self.closed.load(Relaxed)
    }

    #[setter(_closed)]
    fn set_closed(&self, closed: bool) {
        self.closed.store(closed, Relaxed);
    }

    /// Whether it has been neither created nor attached.
    #[getter]
    fn _is_empty_shell(&self) -> bool {
        self.queue.get().is_none()
    }

    /// A descriptor that is readable while there is something to take.
    fn _fileno(&self) -> PyResult<i32> {
        self.native()?.exposed_fd().map_err(to_py)
    }

    /// Whether there is something to take within `timeout` seconds, None: for ever. True, too, of a
    /// queue that was shut down.
    fn _poll_item(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let queue = self.native()?;
        let deadline = deadline(timeout)?;
        loop {
            if self.owes.load(Relaxed) || queue.is_ready().map_err(to_py)? {
                return Ok(true);
            }
            match blocking(py, || queue.wait_for_item(deadline))? {
                Err(error) if error.is_empty() => return Ok(false),
                Err(error) if error.is_closed() => return Ok(true),
                done => done.map_err(to_py)?,
            }
        }
    }

    /// Whether there is room within `timeout` seconds; True, too, of a queue that was shut down.
    fn _poll_room(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let queue = self.native()?;
        let deadline = deadline(timeout)?;
        match blocking(py, || queue.wait_for_room(deadline))? {
            Err(error) if error.is_full() => Ok(false),
            Err(error) if error.is_closed() => Ok(true),
            done => done.map(|()| true).map_err(to_py),
        }
    }

    /// Puts an object that has been pickled already.
    fn _put_pickle(&self, py: Python<'_>, pickle: &[u8]) -> PyResult<()> {
        self.send(py, pickle, codec::tag::PICKLE, Vec::new(), || Ok(None))
    }

    /// Takes an item as a pickle; None if it was not put as one, or has buffers beside it: then it
    /// is the second of the pair.
    #[allow(clippy::type_complexity, reason = "a tuple for Python")]
    fn _get_pickle<'py>(
        &self,
        py: Python<'py>,
    ) -> PyResult<(Option<Bound<'py, PyBytes>>, Option<Bound<'py, PyAny>>)> {
        let message = self.wait(py, None)?;
        if message.tag == codec::tag::PICKLE && message.buffers.is_empty() {
            return Ok((Some(PyBytes::new(py, message.bytes())), None));
        }
        Ok((None, Some(codec::decode(py, message)?)))
    }

    /// Whether anything was ever put.
    #[getter]
    fn _used(&self) -> PyResult<bool> {
        Ok(self.native()?.is_used())
    }

    /// The most items there may be at a time; None: any number.
    #[getter]
    fn _bound(&self) -> PyResult<Option<u64>> {
        Ok(self.native()?.bound())
    }

    /// Says that one item that was taken has been worked on; ValueError if more are reported than
    /// were put.
    fn _task_done(&self) -> PyResult<()> {
        self.native()?
            .task_done()
            .map_err(|_| PyValueError::new_err("task_done() called too many times"))
    }

    /// Blocks until every item ever put has been reported by `task_done`; False if that took more
    /// than `timeout` seconds.
    #[pyo3(signature = (timeout=None))]
    fn _join(&self, py: Python<'_>, timeout: Option<&Bound<'_, PyAny>>) -> PyResult<bool> {
        let queue = self.native()?;
        let deadline = deadline(timeout)?;
        match blocking(py, || queue.join(deadline))? {
            Err(error) if error.is_timeout() => Ok(false),
            done => done.map(|()| true).map_err(to_py),
        }
    }

    /// As `put_nowait`; but an object that is or has in it what has to be kept alive until the
    /// receiver has it, something shared, is not put: then False.
    fn _put_alone(slf: &Bound<'_, Self>, obj: &Bound<'_, PyAny>) -> PyResult<bool> {
        let (py, mut pickled) = (slf.py(), false);
        let (done, alone) = pickling_alone(|| {
            codec::encode(obj, |bytes, tag, buffers| {
                pickled = true;
                slf.get()
                    .send(py, bytes, tag, buffers, || Ok(Some(Instant::now())))
            })
        });
        if alone || pickled {
            return done.map(|()| true);
        }
        Ok(false)
    }

    /// What the member `owner` has taken and not reported counts as taken by this process.
    fn _inherit(&self, py: Python<'_>, owner: u32) -> PyResult<()> {
        let (owner, queue) = (member(owner)?, self.native()?);
        py.detach(|| queue.inherit(owner)).map_err(to_py)
    }
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Queue>()?;
    #[cfg(not(feature = "abi3"))]
    {
        use crate::hot::{give, nothing, quicken};
        let py = module.py();
        quicken!(py, Queue, c"put", |py, queue, arguments| match arguments {
            [object] => {
                // SAFETY: an argument of the call, which the caller holds.
                let object = unsafe { Borrowed::from_ptr(py, *object) };
                queue.put_now(&object).map(|()| nothing())
            }
            _ => None,
        })?;
        quicken!(py, Queue, c"get", |py, queue, arguments| match arguments {
            [] => queue.get_now(py).map(give),
            _ => None,
        })?;
    }
    Ok(())
}
