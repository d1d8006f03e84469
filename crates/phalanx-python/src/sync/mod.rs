//! `phalanx.synchronize`, the native half: the classes that the public ones derive from.
//!
//! An object begins empty: `__new__` takes anything, so that Python subclasses may have any
//! constructor, and `_create` or (for a pickle) `_attach` fills it. What is free is taken with the
//! GIL held; only a wait releases it.

mod condition;
mod guarding;
mod holding;
mod lock;
mod meeting;
#[cfg(not(feature = "abi3"))]
mod quick;
mod semaphore;

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use phalanx::arena::{Arena, Shareable, Shared, act_for};
use phalanx::sync::{self, SEM_VALUE_MAX, Stop};
use pyo3::create_exception;
use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::arena::{HandleForPickle, arena, attach, handle_for_pickle};
use crate::error::to_py;
use crate::wait::Watch;

pub(crate) use guarding::Guarding;
pub(crate) use lock::{Lock, RLock};

create_exception!(
    phalanx.synchronize,
    AbandonedLockWarning,
    PyRuntimeWarning,
    "A lock was acquired whose owner had died holding it: what it protects may be half changed."
);

/// Where a native class keeps its shared object.
///
/// (Also whether it was made by a fork context. An attribute of the Python object would do, but an
/// object whose `__dict__` is empty finds its methods twice as fast.)
pub(crate) struct Object<T: Shareable> {
    shared: OnceLock<Shared<T>>,
    of_fork_context: AtomicBool,
}

impl<T: Shareable> Object<T> {
    const fn empty() -> Self {
        Self {
            shared: OnceLock::new(),
            of_fork_context: AtomicBool::new(false),
        }
    }

    #[inline]
    pub(crate) fn get(&self) -> PyResult<&Shared<T>> {
        match self.shared.get() {
            Some(object) => Ok(object),
            None => Err(Self::is_empty()),
        }
    }

    #[cold]
    fn is_empty() -> PyErr {
        PyRuntimeError::new_err(format!(
            "this {} was not initialised; a subclass with an __init__ of its own has to call that \
             of its base",
            T::NAME
        ))
    }

    fn fill(&self, object: Shared<T>) -> PyResult<()> {
        self.shared.set(object).map_err(|_| {
            PyRuntimeError::new_err(format!("this {} is initialised already", T::NAME))
        })
    }

    fn create(&self, py: Python<'_>, value: T) -> PyResult<()> {
        arena(py)?;
        self.fill(Shared::create(value).map_err(to_py)?)
    }

    /// As `create`, by a context whose start method is fork or not.
    fn create_in(&self, py: Python<'_>, fork: bool, value: T) -> PyResult<()> {
        self.create(py, value)?;
        self.of_fork_context.store(fork, Relaxed);
        Ok(())
    }

    fn is_of_fork_context(&self) -> bool {
        self.of_fork_context.load(Relaxed)
    }

    fn attach(&self, py: Python<'_>, family: u64, handle: u64) -> PyResult<()> {
        self.fill(attach(py, family, handle)?)
    }

    fn handle_for_pickle(&self, py: Python<'_>) -> PyResult<HandleForPickle> {
        handle_for_pickle(py, self.get()?)
    }
}

/// What the native `__new__`s take: anything, for their subclasses' constructors.
type Args<'a, 'py> = &'a Bound<'py, PyTuple>;
type Kwargs<'a, 'py> = &'a Bound<'py, PyDict>;

/// Runs a wait until `deadline` without the GIL, again after each signal whose handler raises
/// nothing, and after each look of its watch. `None`: the deadline passed.
fn waiting<T: Send>(
    py: Python<'_>,
    deadline: Option<Instant>,
    mut wait: impl FnMut(Option<Instant>) -> Result<T, Stop> + Send,
) -> PyResult<Option<T>> {
    let mut watch = Watch::begin();
    loop {
        let until = watch.until(deadline);
        match py.detach(|| wait(until)) {
            Ok(done) => return Ok(Some(done)),
            Err(Stop::TimedOut) if until == deadline => return Ok(None),
            Err(Stop::TimedOut) => watch.look(py)?,
            Err(Stop::Interrupted) => py.check_signals()?,
        }
    }
}

thread_local! {
    /// Whether this thread is in `acting`: nobody here is interested in its warnings.
    static ACTING: Cell<bool> = const { Cell::new(false) };
}

/// Calls `function(*args, **kwargs)`, which claims locks and the like as the thread `thread` of
/// another member, see `phalanx::arena::act_for`; without a member, of this process.
#[pyfunction]
#[pyo3(signature = (member, thread, function, args, kwargs))]
fn acting<'py>(
    member: Option<u32>,
    thread: u32,
    function: &Bound<'py, PyAny>,
    args: &Bound<'py, PyTuple>,
    kwargs: &Bound<'py, PyDict>,
) -> PyResult<Bound<'py, PyAny>> {
    let member = member.map(crate::arena::member).transpose()?;
    act_for(member);
    let own = sync::act_as_thread(thread);
    ACTING.set(true);
    let done = function.call(args, Some(kwargs));
    ACTING.set(false);
    sync::act_as_thread(own);
    act_for(None);
    done
}

/// A number for a thread of another process, for `acting`.
#[pyfunction]
fn new_thread() -> u32 {
    sync::new_thread()
}

/// `acquire(block, timeout)`'s arguments: `None` not to wait at all, else until when.
enum Patience {
    None,
    Until(Option<Instant>),
}

fn patience(
    block: Option<&Bound<'_, PyAny>>,
    timeout: Option<&Bound<'_, PyAny>>,
) -> PyResult<Patience> {
    let deadline = crate::wait::deadline(timeout)?;
    match block {
        Some(block) if !block.is_truthy()? => Ok(Patience::None),
        _ => Ok(Patience::Until(deadline)),
    }
}

/// The arena a shared object lies in, as its home.
fn home<T: Shareable>(object: &Shared<T>) -> &'static Arena {
    object.arena()
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add(
        "AbandonedLockWarning",
        py.get_type::<AbandonedLockWarning>(),
    )?;
    module.add("SEM_VALUE_MAX", SEM_VALUE_MAX)?;
    module.add_class::<lock::Lock>()?;
    module.add_class::<lock::RLock>()?;
    module.add_class::<semaphore::Semaphore>()?;
    module.add_class::<semaphore::BoundedSemaphore>()?;
    module.add_class::<condition::Condition>()?;
    module.add_class::<meeting::Event>()?;
    module.add_class::<meeting::Barrier>()?;
    module.add_function(wrap_pyfunction!(crate::wait::watched, module)?)?;
    module.add_function(wrap_pyfunction!(acting, module)?)?;
    module.add_function(wrap_pyfunction!(new_thread, module)?)?;
    #[cfg(not(feature = "abi3"))]
    quick::register(py)?;
    Ok(())
}
