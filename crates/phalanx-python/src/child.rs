//! A child from before its start to its end: who owns what of it, whatever happens in between.
//!
//! KeyboardInterrupt, or what another signal's handler raises, may come after any instruction of
//! Python. So nothing here is given to Python as a number that it would have to give back: each call
//! keeps what it has got in the [`Child`], which the caller has had before, and until it is told to
//! [`keep`](Child::keep) the child, losing the object ends that.
//!
//! What a forked child touches of its parent's memory has to be copied for it page by page, at some
//! 2 µs each, and objects of Python lie on many pages. So what can be done here is not done there. (To
//! have pages copied in one call, by `MADV_POPULATE_WRITE`, costs 1.3 µs each instead of 1.5.)

use std::os::fd::{AsFd, AsRawFd, IntoRawFd, OwnedFd};
use std::time::Instant;

use phalanx::arena::Arena;
use phalanx::arena::fork::last_child;
use phalanx::process::{ExitStatus, watch, zygote};
use phalanx::sync::MemberId;
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};

use crate::arena;
use crate::error::to_py;
use crate::interrupt::{HeldInterrupt, begin_forked};
use crate::process::{borrow, borrow_all, memory_file, spawn_process};
use crate::wait::blocking;

/// A child of this process: its place in the family, its descriptors, and until it is kept its life.
#[pyclass]
struct Child {
    /// The process that made this. In a copy that was forked from there it owns nothing.
    maker: u32,
    place: Option<MemberId>,
    started: Option<Started>,
    /// What it reads at its start; later the exception that ended it.
    file: Option<OwnedFd>,
    kept: bool,
}

/// A child that has been started.
struct Started {
    pid: u32,
    /// A pidfd, or the connection to the zygote.
    sentinel: OwnedFd,
    by_zygote: bool,
}

impl Started {
    fn own(pid: u32) -> PyResult<Self> {
        match watch::open(pid) {
            Ok(sentinel) => Ok(Self {
                pid,
                sentinel,
                by_zygote: false,
            }),
            Err(error) => {
                // There is no descriptor left: without one nobody could wait for the child.
                if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
                    let _ = kill_process(pid, Signal::KILL);
                    let _ = waitpid(Some(pid), WaitOptions::empty());
                }
                Err(to_py(error))
            }
        }
    }

    /// Waits for its end; `None` if the deadline passed.
    fn wait(&self, deadline: Option<Instant>) -> Option<ExitStatus> {
        loop {
            let ended = if self.by_zygote {
                zygote::wait(self.sentinel.as_fd(), deadline)
            } else {
                watch::wait(self.sentinel.as_fd(), deadline)
            };
            match ended {
                Err(error) if error.is_interrupted() => {}
                Err(_) => return Some(ExitStatus::UNKNOWN),
                Ok(status) => return status,
            }
        }
    }

    fn end(&self) {
        if self.by_zygote {
            // As long as the zygote has not told of its end, the pid is the child's.
            if self.wait(Some(Instant::now())).is_some() {
                return;
            }
            if let Some(pid) = Pid::from_raw(self.pid.cast_signed()) {
                let _ = kill_process(pid, Signal::KILL);
            }
        } else {
            let _ = watch::send_signal(self.sentinel.as_fd(), libc::SIGKILL);
        }
        self.wait(None);
    }
}

impl Child {
    fn is_mine(&self) -> bool {
        self.maker == std::process::id()
    }

    /// Ends the child if it has been started, and gives back all that is held for it.
    fn undo(&mut self) {
        let (started, place) = (self.started.take(), self.place.take());
        self.file = None;
        if !self.is_mine() {
            return;
        }
        if let Some(started) = started {
            started.end();
        }
        if let (Some(place), Some(arena)) = (place, Arena::current()) {
            arena.cancel(place);
        }
    }

    fn begun(&self) -> PyResult<&Started> {
        self.started
            .as_ref()
            .ok_or_else(|| PyRuntimeError::new_err("the child has not been started"))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.kept {
            self.undo();
        }
    }
}

#[pymethods]
impl Child {
    #[new]
    fn new() -> Self {
        Self {
            maker: std::process::id(),
            place: None,
            started: None,
            file: None,
            kept: false,
        }
    }

    /// Reserves its place in the family; the token for `adopt`.
    fn reserve(&mut self, py: Python<'_>) -> PyResult<u32> {
        let place = arena::arena(py)?.reserve_child().map_err(to_py)?;
        self.place = Some(place);
        Ok(place.get())
    }

    /// Leaves it `data` in an anonymous file, of which this is the descriptor.
    fn write(&mut self, name: &str, data: &[u8]) -> PyResult<i32> {
        let file = memory_file(name, data)?;
        let number = file.as_raw_fd();
        self.file = Some(file);
        Ok(number)
    }

    /// Starts it as the program `path`; it inherits the standard streams and `fds`.
    ///
    /// Ctrl-C is held back in it: see `interrupt_expected`.
    fn spawn(
        &mut self,
        py: Python<'_>,
        path: Vec<u8>,
        arguments: Vec<Vec<u8>>,
        fds: Vec<i32>,
    ) -> PyResult<()> {
        let _interrupt = HeldInterrupt::new();
        let pid = spawn_process(py, path, arguments, fds)?;
        self.started = Some(Started::own(pid)?);
        Ok(())
    }

    /// Has it started by the zygote at the other end of `control`, which ends it with this process
    /// if it is `watched`.
    fn ask(
        &mut self,
        py: Python<'_>,
        control: i32,
        note: &[u8],
        fds: Vec<i32>,
        watched: bool,
    ) -> PyResult<()> {
        let (control, fds) = (borrow(control)?, borrow_all(&fds)?);
        let pending = py
            .detach(|| zygote::request(control, note, &fds, watched))
            .map_err(to_py)?;
        let pid = blocking(py, || pending.wait())?.map_err(to_py)?;
        self.started = Some(Started {
            pid,
            sentinel: pending.started(pid).map_err(to_py)?.connection,
            by_zygote: true,
        });
        Ok(())
    }

    /// Starts it by a fork. In the parent: None. In the child: the sentinel of its parent; Ctrl-C is
    /// held back, and if it is `mortal` it is killed when its parent ends.
    fn fork(&mut self, py: Python<'_>, mortal: bool) -> PyResult<Option<i32>> {
        // Before the fork, so that parent and child are of one family.
        arena::arena(py)?;
        let interrupt = HeldInterrupt::new();
        // It may have come just before.
        py.check_signals()?;
        let file = memory_file("phalanx-failure", &[])?;
        let parent = std::process::id();
        let pid: u32 = py
            .import(intern!(py, "os"))?
            .call_method0(intern!(py, "fork"))?
            .extract()?;
        if pid == 0 {
            begin_forked(interrupt, file.into_raw_fd());
            let sentinel = begin(parent, mortal).unwrap_or_else(|error| {
                // It must not return into its parent's program.
                error.print(py);
                // SAFETY: the call does not return.
                unsafe { libc::_exit(1) }
            });
            return Ok(Some(sentinel));
        }
        self.file = Some(file);
        self.place = last_child();
        self.started = Some(Started::own(pid)?);
        Ok(None)
    }

    /// The start is over: from here on the child lives whether or not this object does.
    fn keep(&mut self) {
        self.kept = true;
    }

    /// The start has failed: the child, if it has been started, is ended and reaped, and all that is
    /// held for it is given back.
    fn undone(&mut self, py: Python<'_>) {
        py.detach(|| self.undo());
    }

    /// Closes the descriptors.
    fn __call__(&mut self) {
        self.file = None;
        if self.kept {
            self.started = None;
        }
    }

    #[getter]
    fn pid(&self) -> PyResult<u32> {
        Ok(self.begun()?.pid)
    }

    /// A descriptor that is readable when it has ended.
    #[getter]
    fn sentinel(&self) -> PyResult<i32> {
        Ok(self.begun()?.sentinel.as_raw_fd())
    }

    #[getter]
    fn file(&self) -> PyResult<i32> {
        self.file
            .as_ref()
            .map(AsRawFd::as_raw_fd)
            .ok_or_else(|| PyRuntimeError::new_err("the child has no file"))
    }

    /// The token of its place in the family, 0 if it has none.
    #[getter]
    fn place(&self) -> u32 {
        self.place.map_or(0, MemberId::get)
    }
}

fn begin(parent: u32, mortal: bool) -> PyResult<i32> {
    if mortal {
        watch::die_with_parent(parent).map_err(to_py)?;
    }
    Ok(watch::open(parent).map_err(to_py)?.into_raw_fd())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Child>()
}
