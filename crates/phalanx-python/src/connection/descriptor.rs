//! Descriptors, and system calls on them without the GIL.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;
use rustix::event::{PollFd, Timespec};

/// An open descriptor, closed with the last user of it.
#[derive(Debug)]
pub(super) struct Descriptor {
    pub(super) number: RawFd,
    /// Whether dropping closes it.
    owned: AtomicBool,
}

impl Descriptor {
    /// Takes over an open descriptor; the number is not negative.
    pub(super) fn new(number: RawFd) -> Self {
        Self {
            number,
            owned: AtomicBool::new(true),
        }
    }

    /// Never closes it.
    pub(super) fn disown(&self) {
        self.owned.store(false, Ordering::Relaxed);
    }

    /// Closes the descriptor now, whoever else uses it, and says what went wrong.
    pub(super) fn close(&self) -> io::Result<()> {
        if self.owned.swap(false, Ordering::Relaxed) {
            // SAFETY: the number was given to this object to own, and is given up here, once.
            if unsafe { libc::close(self.number) } == -1 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the number is not negative (checked when the object is made), and what a program
        // does with a number closed behind our back is answered by the kernel with EBADF.
        unsafe { BorrowedFd::borrow_raw(self.number) }
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // Nobody is there to be told of an error.
        let _ = self.close();
    }
}

/// Why a system call was given up.
pub(super) enum Stopped {
    Io(io::Error),
    Raised(PyErr),
}

/// `OSError` with its errno, of the subclass that belongs to it.
pub(super) fn os_error(error: &io::Error) -> PyErr {
    match error.raw_os_error() {
        Some(errno) => {
            let text = error.to_string();
            let reason = text
                .split(" (os error")
                .next()
                .unwrap_or_default()
                .to_owned();
            PyOSError::new_err((errno, reason))
        }
        None => PyOSError::new_err(error.to_string()),
    }
}

impl From<Stopped> for Option<PyErr> {
    fn from(stopped: Stopped) -> Self {
        Some(stopped.into())
    }
}

impl From<Stopped> for PyErr {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Io(error) => os_error(&error),
            Stopped::Raised(error) => error,
        }
    }
}

/// Calls `call` without the GIL, again and again while signals interrupt it.
pub(super) fn serving_signals<T: Send>(
    py: Python<'_>,
    mut call: impl FnMut() -> io::Result<T> + Send,
) -> Result<T, Stopped> {
    loop {
        match py.detach(&mut call) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {
                py.check_signals().map_err(Stopped::Raised)?;
            }
            done => return done.map_err(Stopped::Io),
        }
    }
}

/// Waits until one of `fds` is ready, and returns how many are.
pub(super) fn poll(
    py: Python<'_>,
    fds: &mut [PollFd<'_>],
    until: Option<Instant>,
) -> PyResult<usize> {
    let ready = serving_signals(py, || {
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        });
        Ok(rustix::event::poll(fds, left.as_ref())?)
    })?;
    Ok(ready)
}
