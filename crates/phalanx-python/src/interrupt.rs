//! What a child has to know before anything else: that Ctrl-C is held back, and where to leave the
//! exception that ends it.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};

use pyo3::prelude::*;

/// Whether this process began with Ctrl-C held back and still has to let it in.
// SYNC: only the main thread of a child, which is to let it in, writes it.
static INTERRUPT_HELD: AtomicBool = AtomicBool::new(false);

/// The file in which this process leaves the exception that ends it, -1 if there is none.
// SYNC: written while a child has one thread only.
static FAILURE_FILE: AtomicI32 = AtomicI32::new(-1);

/// SIGINT is held back in this thread, and in the processes that it starts, as long as this lives.
///
/// A process in the middle of its birth, or one that runs the fork hooks of others, has nobody to
/// raise KeyboardInterrupt to: it would only print a traceback.
pub(crate) struct HeldInterrupt(libc::sigset_t);

impl HeldInterrupt {
    pub(crate) fn new() -> Self {
        Self(change_mask(libc::SIG_BLOCK))
    }

    /// Whether it came through before; also true in a process that has yet to let it in.
    fn is_new(&self) -> bool {
        // SAFETY: the set was filled in by the system.
        INTERRUPT_HELD.load(Relaxed)
            || unsafe { libc::sigismember(&raw const self.0, libc::SIGINT) } == 0
    }
}

/// In a forked child, which holds Ctrl-C back from here on; `failure` is the file for the exception
/// that ends it.
pub(crate) fn begin_forked(interrupt: HeldInterrupt, failure: i32) {
    INTERRUPT_HELD.store(interrupt.is_new(), Relaxed);
    std::mem::forget(interrupt);
    FAILURE_FILE.store(failure, Relaxed);
}

impl Drop for HeldInterrupt {
    fn drop(&mut self) {
        // SAFETY: the set was filled in by the system; nothing is to be told back.
        unsafe {
            libc::pthread_sigmask(libc::SIG_SETMASK, &raw const self.0, std::ptr::null_mut())
        };
    }
}

/// Blocks or unblocks SIGINT; what the mask was.
fn change_mask(how: i32) -> libc::sigset_t {
    // SAFETY: a zeroed set is one, the calls fill in both, and SIGINT is a signal.
    unsafe {
        let (mut interrupt, mut before) = std::mem::zeroed::<(libc::sigset_t, libc::sigset_t)>();
        libc::sigemptyset(&raw mut interrupt);
        libc::sigaddset(&raw mut interrupt, libc::SIGINT);
        libc::pthread_sigmask(how, &raw const interrupt, &raw mut before);
        before
    }
}

/// In a child: Ctrl-C is held back from here on, if the parent has not held it back itself.
#[pyfunction]
#[pyo3(signature = (held=true))]
fn hold_interrupt(held: bool) {
    INTERRUPT_HELD.store(held, Relaxed);
    if held {
        change_mask(libc::SIG_BLOCK);
    }
}

/// In a child: let Ctrl-C in, if it was held back; whether it was.
///
/// KeyboardInterrupt if it came meanwhile.
#[pyfunction]
fn release_interrupt(py: Python<'_>) -> PyResult<bool> {
    let held = INTERRUPT_HELD.swap(false, Relaxed);
    if held {
        change_mask(libc::SIG_UNBLOCK);
        py.check_signals()?;
    }
    Ok(held)
}

/// In a child: the file in which it leaves the exception that ends it.
#[pyfunction]
fn set_failure_file(fd: i32) {
    FAILURE_FILE.store(fd, Relaxed);
}

/// The descriptor that `set_failure_file` named, -1 if none was.
#[pyfunction]
fn failure_file() -> i32 {
    FAILURE_FILE.load(Relaxed)
}

/// Whether Ctrl-C comes through in this thread, or would if this process had let it in already: a
/// child that is started here begins with it held back, and lets it in.
#[pyfunction]
fn interrupt_expected() -> bool {
    HeldInterrupt::new().is_new()
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(interrupt_expected, module)?)?;
    module.add_function(wrap_pyfunction!(hold_interrupt, module)?)?;
    module.add_function(wrap_pyfunction!(release_interrupt, module)?)?;
    module.add_function(wrap_pyfunction!(set_failure_file, module)?)?;
    module.add_function(wrap_pyfunction!(failure_file, module)?)
}
