//! Waiting for several connections, queues and other objects at once.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;
use rustix::event::{PollFd, PollFlags};

use super::channel::Channel;
use super::descriptor::poll;
use super::front::Connection;
use crate::error::to_py;
use crate::queue::Queue;
use crate::wait::{after, blocking};

/// One object that `wait` waits for.
struct Waited<'py> {
    object: Bound<'py, PyAny>,
    number: RawFd,
    /// Keeps a connection's descriptor open while it is polled, whoever closes it.
    channel: Option<Arc<Channel>>,
    /// The queue whose reading end this is.
    queue: Option<Bound<'py, Queue>>,
}

impl<'py> Waited<'py> {
    fn new(object: Bound<'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        if let Ok(connection) = object.cast::<Connection>() {
            let channel = connection.get().open()?;
            let number = channel.as_fd().as_raw_fd();
            return Ok(Self {
                object,
                number,
                channel: Some(channel),
                queue: None,
            });
        }
        let number: PyResult<RawFd> = object.extract().or_else(|_| {
            object
                .call_method0(intern!(py, "fileno"))
                .and_then(|number| number.extract())
        });
        match number {
            Ok(number) if number >= 0 => Ok(Self {
                queue: reading_end_of(&object)?,
                object,
                number,
                channel: None,
            }),
            Ok(number) => Err(PyValueError::new_err(format!(
                "Invalid file descriptor: {number}"
            ))),
            Err(error) if error.is_instance_of::<PyOSError>(py) => Err(error),
            Err(_) => Err(PyValueError::new_err(format!(
                "Invalid file object: {}",
                object.repr()?
            ))),
        }
    }

    /// Whether it is ready now, as far as that can be told without its descriptor. What is not is
    /// got ready for being polled.
    fn is_ready(&self) -> PyResult<bool> {
        let Some(end) = self.channel.as_deref().and_then(Channel::in_arena) else {
            return Ok(false);
        };
        let look = || Ok(end.wait(Some(Instant::now()))? && !end.is_stream() && end.is_ready()?);
        blocking(self.object.py(), look)?.map_err(to_py)
    }

    /// Whether it is ready, after its descriptor was.
    fn is_ready_indeed(&self) -> PyResult<bool> {
        match (
            self.channel.as_deref().and_then(Channel::in_arena),
            &self.queue,
        ) {
            (Some(_), _) => self.is_ready(),
            (None, Some(queue)) => queue.get().is_ready(),
            (None, None) => Ok(true),
        }
    }
}

/// The queue that `object` is the reading end of, as libraries know it: `queue._reader`.
fn reading_end_of<'py>(object: &Bound<'py, PyAny>) -> PyResult<Option<Bound<'py, Queue>>> {
    let queue = object.getattr_opt(intern!(object.py(), "_queue"))?;
    Ok(queue.and_then(|queue| queue.cast_into::<Queue>().ok()))
}

impl AsFd for Waited<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the number is not negative, and it is only polled: a number that is not open is
        // reported as such.
        unsafe { BorrowedFd::borrow_raw(self.number) }
    }
}

/// Waits until something in `object_list` is ready to be read, or has ended.
///
/// Takes connections, sockets, sentinels of processes, and anything else with a `fileno()`; returns
/// a list of those that are ready, in the order given, empty after `timeout` seconds.
#[pyfunction]
#[pyo3(signature = (object_list, timeout=None))]
pub(super) fn wait<'py>(
    py: Python<'py>,
    object_list: &Bound<'py, PyAny>,
    timeout: Option<f64>,
) -> PyResult<Bound<'py, PyList>> {
    let mut until = after(timeout)?;
    let waited: Vec<Waited<'py>> = object_list
        .try_iter()?
        .map(|object| Waited::new(object?))
        .collect::<PyResult<_>>()?;
    loop {
        let mut ready: Vec<bool> = waited
            .iter()
            .map(Waited::is_ready)
            .collect::<PyResult<_>>()?;
        if ready.contains(&true) {
            until = Some(Instant::now());
        }
        let mut fds: Vec<PollFd<'_>> = waited
            .iter()
            .map(|one| PollFd::new(one, PollFlags::IN))
            .collect();
        poll(py, &mut fds, until)?;
        for ((one, fd), ready) in waited.iter().zip(&fds).zip(&mut ready) {
            *ready = *ready || (!fd.revents().is_empty() && one.is_ready_indeed()?);
        }
        // A pipe's descriptor may have been readable for a message that somebody else has got.
        if ready.contains(&true) || until.is_some_and(|until| Instant::now() >= until) {
            let objects = waited.iter().zip(ready).filter(|(_, ready)| *ready);
            return PyList::new(py, objects.map(|(one, _)| &one.object).collect::<Vec<_>>());
        }
    }
}
