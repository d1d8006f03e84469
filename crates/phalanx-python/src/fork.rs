//! Starting a child by fork, and what every child has to know before anything else.
//!
//! What a forked child touches of its parent's memory has to be copied for it page by page, at some
//! 2 µs each, and objects of Python lie on many pages. So what can be done here is not done there. (To
//! have pages copied in one call, by `MADV_POPULATE_WRITE`, costs 1.3 µs each instead of 1.5.)

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::Relaxed};

use phalanx::arena::fork::last_child;
use phalanx::process::watch;
use phalanx::sync::MemberId;
use pyo3::intern;
use pyo3::prelude::*;
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::arena;
use crate::error::to_py;

/// Whether this process began with Ctrl-C held back and still has to let it in.
// SYNC: only the main thread of a child, which is to let it in, writes it.
static INTERRUPT_HELD: AtomicBool = AtomicBool::new(false);

/// The file in which this process leaves the exception that ends it, -1 if there is none.
// SYNC: written while a child has one thread only.
static FAILURE_FILE: AtomicI32 = AtomicI32::new(-1);

/// Descriptors that are closed when this is called, or collected.
#[pyclass]
struct Descriptors(Vec<OwnedFd>);

#[pymethods]
impl Descriptors {
    #[new]
    fn new(fds: Vec<i32>) -> Self {
        let own = |fd: i32| {
            // SAFETY: the caller hands the descriptor over.
            (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
        };
        Self(fds.into_iter().filter_map(own).collect())
    }

    fn __call__(&mut self) {
        self.0.clear();
    }
}

/// SIGINT is held back in this thread as long as this lives.
struct HeldInterrupt(libc::sigset_t);

impl HeldInterrupt {
    fn new() -> Self {
        Self(change_mask(libc::SIG_BLOCK))
    }

    /// Whether it came through before; also true in a process that has yet to let it in.
    fn is_new(&self) -> bool {
        // SAFETY: the set was filled in by the system.
        INTERRUPT_HELD.load(Relaxed)
            || unsafe { libc::sigismember(&raw const self.0, libc::SIGINT) } == 0
    }
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

/// Whether this process began with Ctrl-C held back, and still has to let it in.
#[pyfunction]
fn interrupt_held() -> bool {
    INTERRUPT_HELD.load(Relaxed)
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

/// A child of this process, forked.
///
/// In the parent: `(pid, sentinel, file of its failure, its place in the family, the owner of the
/// two descriptors)`. In the child the same, but the pid is 0 and the sentinel is that of its
/// parent; Ctrl-C is held back, and if it is `mortal` it is killed when its parent ends.
#[pyfunction]
fn fork(py: Python<'_>, mortal: bool) -> PyResult<(u32, i32, i32, u32, Descriptors)> {
    // Before the fork, so that parent and child are of one family.
    arena::arena(py)?;
    let interrupt = HeldInterrupt::new();
    // It may have come just before.
    py.check_signals()?;
    let file =
        memfd_create("phalanx-failure", MemfdFlags::CLOEXEC).map_err(std::io::Error::from)?;
    let parent = std::process::id();
    let pid: u32 = py
        .import(intern!(py, "os"))?
        .call_method0(intern!(py, "fork"))?
        .extract()?;
    if pid == 0 {
        INTERRUPT_HELD.store(interrupt.is_new(), Relaxed);
        std::mem::forget(interrupt);
        let file = file.into_raw_fd();
        FAILURE_FILE.store(file, Relaxed);
        let sentinel = begin(parent, mortal).unwrap_or_else(|error| {
            // It must not return into its parent's program.
            error.print(py);
            // SAFETY: the call does not return.
            unsafe { libc::_exit(1) }
        });
        return Ok((0, sentinel, file, 0, Descriptors(Vec::new())));
    }
    let token = last_child().map_or(0, MemberId::get);
    let sentinel = watch::open(pid).map_err(|error| {
        // There is no descriptor left: without one nobody could wait for the child.
        if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
        to_py(error)
    })?;
    let fds = [sentinel, file].map(IntoRawFd::into_raw_fd);
    let [sentinel, file] = fds;
    let owner = Descriptors::new(fds.to_vec());
    drop(interrupt);
    py.check_signals()?;
    Ok((pid, sentinel, file, token, owner))
}

fn begin(parent: u32, mortal: bool) -> PyResult<i32> {
    if mortal {
        watch::die_with_parent(parent).map_err(to_py)?;
    }
    Ok(watch::open(parent).map_err(to_py)?.into_raw_fd())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Descriptors>()?;
    module.add_function(wrap_pyfunction!(interrupt_held, module)?)?;
    module.add_function(wrap_pyfunction!(hold_interrupt, module)?)?;
    module.add_function(wrap_pyfunction!(release_interrupt, module)?)?;
    module.add_function(wrap_pyfunction!(set_failure_file, module)?)?;
    module.add_function(wrap_pyfunction!(failure_file, module)?)?;
    module.add_function(wrap_pyfunction!(fork, module)?)
}
