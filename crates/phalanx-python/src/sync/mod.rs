//! `phalanx.synchronize`, the native half: the classes that the public ones derive from.
//!
//! An object begins empty: `__new__` takes anything, so that Python subclasses may have any
//! constructor, and `_create` or (for a pickle) `_attach` fills it. What is free is taken with the
//! GIL held; only a wait releases it.

mod condition;
mod guarding;
mod lock;
mod meeting;
mod semaphore;

use std::sync::OnceLock;
use std::time::Instant;

use phalanx::arena::{Arena, Shareable, Shared};
use phalanx::sync::{SEM_VALUE_MAX, Stop};
use pyo3::create_exception;
use pyo3::exceptions::{PyRuntimeError, PyRuntimeWarning};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};

use crate::arena::{arena, attach, handle_for_pickle};
use crate::error::to_py;

pub(crate) use guarding::Guarding;
pub(crate) use lock::{Lock, RLock};

create_exception!(
    phalanx.synchronize,
    AbandonedLockWarning,
    PyRuntimeWarning,
    "A lock was acquired whose owner had died holding it: what it protects may be half changed."
);

/// Where a native class keeps its shared object.
pub(crate) struct Object<T: Shareable>(OnceLock<Shared<T>>);

impl<T: Shareable> Object<T> {
    const fn empty() -> Self {
        Self(OnceLock::new())
    }

    #[inline]
    pub(crate) fn get(&self) -> PyResult<&Shared<T>> {
        match self.0.get() {
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
        self.0.set(object).map_err(|_| {
            PyRuntimeError::new_err(format!("this {} is initialised already", T::NAME))
        })
    }

    fn create(&self, py: Python<'_>, value: T) -> PyResult<()> {
        arena(py)?;
        self.fill(Shared::create(value).map_err(to_py)?)
    }

    fn attach(&self, py: Python<'_>, family: u64, handle: u64) -> PyResult<()> {
        self.fill(attach(py, family, handle)?)
    }

    fn handle_for_pickle(&self) -> PyResult<(u64, u64)> {
        handle_for_pickle(self.get()?)
    }
}

/// What the native `__new__`s take: anything, for their subclasses' constructors.
type Args<'a, 'py> = &'a Bound<'py, PyTuple>;
type Kwargs<'a, 'py> = &'a Bound<'py, PyDict>;

/// Runs a wait without the GIL, again after each signal whose handler raises nothing. `None`: the
/// deadline passed.
fn waiting<T: Send>(
    py: Python<'_>,
    mut wait: impl FnMut() -> Result<T, Stop> + Send,
) -> PyResult<Option<T>> {
    loop {
        match py.detach(&mut wait) {
            Ok(done) => return Ok(Some(done)),
            Err(Stop::TimedOut) => return Ok(None),
            Err(Stop::Interrupted) => py.check_signals()?,
        }
    }
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
    module.add_class::<meeting::Barrier>()
}
