//! The native base of `phalanx.connection.Connection`.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use phalanx::arena::Handle;
#[cfg(not(feature = "abi3"))]
use phalanx::channel::Patience;
use phalanx::channel::pipe::{self, End};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyEOFError, PyOSError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::channel::{Channel, Transport};
use super::descriptor::{Descriptor, os_error};
use super::payload::{Body, bytes_of, contiguous, object, raw};
use crate::arena::{HandleForPickle, arena, handle_for_pickle};
#[cfg(not(feature = "abi3"))]
use crate::codec;
use crate::error::to_py;
use crate::large::bytes_object;
use crate::turn::count_forks;
use crate::wait::after;

/// One end of a pipe, or of a socket connected to a `Listener`.
///
/// The native base of `phalanx.connection.Connection`. Messages are in the format of the standard
/// library. Several threads may send at once, and each message stays whole.
#[pyclass(subclass, frozen, module = "phalanx._phalanx")]
pub(super) struct Connection {
    /// None when closed. Locked for a moment at a time, and only with the GIL held.
    channel: Mutex<Option<Arc<Channel>>>,
    readable: AtomicBool,
    writable: AtomicBool,
}

impl Connection {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Channel>>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self) -> PyResult<Arc<Channel>> {
        self.slot()
            .clone()
            .ok_or_else(|| PyOSError::new_err("handle is closed"))
    }

    fn open_to_read(&self) -> PyResult<Arc<Channel>> {
        let channel = self.open()?;
        if !self.readable.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err("connection is write-only"));
        }
        Ok(channel)
    }

    fn open_to_write(&self) -> PyResult<Arc<Channel>> {
        let channel = self.open()?;
        if !self.writable.load(Ordering::Relaxed) {
            return Err(PyOSError::new_err("connection is read-only"));
        }
        Ok(channel)
    }

    fn receive<R>(
        &self,
        py: Python<'_>,
        limit: Option<u64>,
        with: impl FnOnce(Body<'_>) -> PyResult<R>,
    ) -> PyResult<R> {
        match self.open_to_read()?.receive(py, limit, with) {
            Ok(Some(result)) => Ok(result),
            Ok(None) => Err(PyEOFError::new_err(())),
            Err(Some(error)) => Err(error),
            Err(None) => {
                // What follows on the stream cannot be made sense of any more.
                if self.writable.load(Ordering::Relaxed) {
                    self.readable.store(false, Ordering::Relaxed);
                } else {
                    self.close()?;
                }
                Err(PyOSError::new_err("bad message length"))
            }
        }
    }

    /// Sends a small built-in value through the arena if there is room for it this moment; `None`
    /// if not, or if that would be an error.
    #[cfg(not(feature = "abi3"))]
    pub(super) fn send_now(&self, value: &Bound<'_, PyAny>) -> Option<()> {
        let channel = self.open_to_write().ok()?;
        let end = channel.in_arena().filter(|end| end.use_arena())?;
        codec::encode_small(value, |bytes, tag| {
            let parts = [bytes];
            let mut letter = end.letter(&parts, tag, Vec::new()).ok()?;
            let sent = end.try_send(&mut letter, Patience::Now);
            sent.is_ok_and(|sent| sent).then_some(())
        })
    }

    /// Receives what has come through the arena; `None` if nothing has, or if that would be an
    /// error.
    #[cfg(not(feature = "abi3"))]
    pub(super) fn recv_now<'py>(&self, py: Python<'py>) -> Option<PyResult<Bound<'py, PyAny>>> {
        let channel = self.open_to_read().ok()?;
        let end = channel.in_arena()?;
        codec::with_scratch(|bytes| {
            let taken = end.try_recv_into(bytes, Patience::Now).ok()??;
            if taken.is_plain() {
                return Some(object(py, Body::Plain(taken.tag(), bytes)));
            }
            let message = taken.into_message(end.arena(), std::mem::take(bytes));
            let message = message.map(Body::Message).map_err(to_py);
            Some(message.and_then(|body| object(py, body)))
        })
    }

    fn fill(&self, transport: Transport, readable: bool, writable: bool) {
        count_forks();
        *self.slot() = Some(Channel::new(transport));
        self.readable.store(readable, Ordering::Relaxed);
        self.writable.store(writable, Ordering::Relaxed);
    }

    fn close(&self) -> PyResult<()> {
        let channel = self.slot().take();
        match channel.as_deref().map(|channel| &channel.transport) {
            Some(Transport::Fd(descriptor)) => descriptor.close().map_err(|error| os_error(&error)),
            Some(Transport::Pipe(_)) | None => Ok(()),
        }
    }
}

#[pymethods]
impl Connection {
    /// An object that is closed until `__init__` gives it a descriptor; subclasses may have other
    /// arguments.
    #[new]
    #[pyo3(signature = (*_args, **_kwargs))]
    fn new(_args: &Bound<'_, PyAny>, _kwargs: Option<&Bound<'_, PyAny>>) -> Self {
        Self {
            channel: Mutex::new(None),
            readable: AtomicBool::new(true),
            writable: AtomicBool::new(true),
        }
    }

    /// Takes over `handle`, an open descriptor of a stream.
    #[pyo3(signature = (handle, readable=true, writable=true))]
    fn __init__(&self, handle: &Bound<'_, PyAny>, readable: bool, writable: bool) -> PyResult<()> {
        let number: RawFd = handle
            .call_method0(intern!(handle.py(), "__index__"))?
            .extract()?;
        if number < 0 {
            return Err(PyValueError::new_err("invalid handle"));
        }
        if !readable && !writable {
            return Err(PyValueError::new_err(
                "at least one of `readable` and `writable` must be True",
            ));
        }
        self.fill(Transport::Fd(Descriptor::new(number)), readable, writable);
        Ok(())
    }

    /// True if the connection is closed.
    #[getter]
    fn closed(&self) -> bool {
        self.slot().is_none()
    }

    /// True if the connection can receive.
    #[getter]
    fn readable(&self) -> bool {
        self.readable.load(Ordering::Relaxed)
    }

    /// True if the connection can send.
    #[getter]
    fn writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    #[getter]
    fn _handle(&self) -> Option<RawFd> {
        self.slot().as_ref().map(|channel| channel.number())
    }

    /// Setting None makes the object let go of its descriptor without closing it.
    #[setter]
    #[allow(non_snake_case)] // Python's name is _handle
    fn set__handle(&self, handle: Option<RawFd>) -> PyResult<()> {
        if handle.is_some() {
            return Err(PyValueError::new_err("_handle can only be set to None"));
        }
        match self.slot().take() {
            Some(channel) if matches!(channel.transport, Transport::Pipe(_)) => {
                std::mem::forget(channel);
            }
            Some(channel) => {
                if let Transport::Fd(descriptor) = &channel.transport {
                    descriptor.disown();
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Whether a message was left half sent (by a signal's handler that raised), and will be
    /// finished before the next.
    fn _is_amid(&self) -> bool {
        self.slot()
            .as_ref()
            .is_some_and(|channel| channel.is_amid())
    }

    /// The descriptor, for handing it on together with `_share`.
    fn _socket(&self) -> PyResult<RawFd> {
        Ok(self.open()?.as_fd().as_raw_fd())
    }

    /// Family and handle, for a pickle, of the end of a pipe whose messages go through the arena;
    /// None for a stream, which the pipe becomes if it may.
    ///
    /// The child that is being started is of this family, and the pipe need not become a stream.
    fn _share(&self, py: Python<'_>, to_child: bool) -> PyResult<Option<HandleForPickle>> {
        let channel = self.open()?;
        match &channel.transport {
            Transport::Pipe(end) if !end.is_stream() && (to_child || !end.use_stream()) => {
                handle_for_pickle(py, end.core()).map(Some)
            }
            _ => Ok(None),
        }
    }

    /// Makes this object an end of the pipe that a pickle names, with `fd` as its descriptor.
    fn _attach(
        &self,
        py: Python<'_>,
        family: u64,
        handle: u64,
        fd: RawFd,
        readable: bool,
        writable: bool,
    ) -> PyResult<()> {
        if fd < 0 {
            return Err(PyValueError::new_err("invalid handle"));
        }
        // SAFETY: the caller hands the descriptor over.
        let socket = unsafe { OwnedFd::from_raw_fd(fd) };
        arena(py)?;
        let end = End::attach(family, Handle::from_bits(handle), socket).map_err(to_py)?;
        self.fill(Transport::Pipe(end), readable, writable);
        Ok(())
    }

    fn _check_closed(&self) -> PyResult<()> {
        self.open().map(drop)
    }

    fn _check_readable(&self) -> PyResult<()> {
        self.open_to_read().map(drop)
    }

    fn _check_writable(&self) -> PyResult<()> {
        self.open_to_write().map(drop)
    }

    /// The descriptor of the connection, which polls readable when something can be received.
    fn fileno(&self) -> PyResult<RawFd> {
        Ok(self.open()?.number())
    }

    /// Closes the connection; closing it again does nothing.
    #[pyo3(name = "close")]
    fn py_close(&self) -> PyResult<()> {
        self.close()
    }

    /// Sends `obj`, pickled. Blocks while the channel is full.
    ///
    /// Raises `BrokenPipeError` or `ConnectionResetError` if the other end is closed or dead.
    fn send(&self, py: Python<'_>, obj: &Bound<'_, PyAny>) -> PyResult<()> {
        self.open_to_write()?.send_object(py, obj)
    }

    /// Receives an object. Blocks until one is there.
    ///
    /// Raises `EOFError` if the other end is closed or dead and nothing is left.
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.receive(py, None, |body| object(py, body))
    }

    /// Sends the bytes of a buffer, or `size` bytes of it from `offset` on, as one message.
    #[pyo3(signature = (buf, offset=0, size=None))]
    fn send_bytes(
        &self,
        py: Python<'_>,
        buf: &Bound<'_, PyAny>,
        offset: isize,
        size: Option<isize>,
    ) -> PyResult<()> {
        let channel = self.open_to_write()?;
        let buffer = contiguous(buf)?;
        let bytes = bytes_of(&buffer);
        let offset =
            usize::try_from(offset).map_err(|_| PyValueError::new_err("offset is negative"))?;
        let rest = bytes
            .get(offset..)
            .ok_or_else(|| PyValueError::new_err("buffer length < offset"))?;
        let size = size
            .map_or(Ok(rest.len()), usize::try_from)
            .map_err(|_| PyValueError::new_err("size is negative"))?;
        let part = rest
            .get(..size)
            .ok_or_else(|| PyValueError::new_err("buffer length < offset + size"))?;
        channel.send_bytes(py, part)
    }

    /// Receives a message as bytes. Blocks until one is there.
    ///
    /// A message longer than `maxlength` raises `OSError`, and nothing can be received afterwards.
    #[pyo3(signature = (maxlength=None))]
    fn recv_bytes<'py>(
        &self,
        py: Python<'py>,
        maxlength: Option<i64>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        self._check_readable()?;
        let limit = maxlength
            .map(u64::try_from)
            .transpose()
            .map_err(|_| PyValueError::new_err("negative maxlength"))?;
        self.receive(py, limit, |body| {
            raw(py, body, |bytes| bytes_object(py, bytes))?
        })
    }

    /// Receives a message into a writable buffer, from `offset` on, and returns its length.
    ///
    /// A message that does not fit raises `BufferTooShort`, which has it as its argument.
    #[pyo3(signature = (buf, offset=0))]
    fn recv_bytes_into(
        &self,
        py: Python<'_>,
        buf: &Bound<'_, PyAny>,
        offset: isize,
    ) -> PyResult<usize> {
        self._check_readable()?;
        let buffer = PyUntypedBuffer::get(buf)?;
        if buffer.readonly() || !buffer.is_c_contiguous() {
            return Err(PyValueError::new_err(
                "recv_bytes_into() needs a writable, contiguous buffer",
            ));
        }
        let offset =
            usize::try_from(offset).map_err(|_| PyValueError::new_err("negative offset"))?;
        let Some(room) = buffer.len_bytes().checked_sub(offset) else {
            return Err(PyValueError::new_err("offset too large"));
        };
        let copied = self.receive(py, None, |body| {
            raw(py, body, |bytes| {
                if bytes.len() > room {
                    return Err(PyBytes::new(py, bytes));
                }
                if !bytes.is_empty() {
                    // SAFETY: the buffer is writable, contiguous and held; `offset` and the bytes
                    // fit into it; the bytes are not part of it.
                    unsafe {
                        let to = buffer.buf_ptr().cast::<u8>().add(offset);
                        std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
                    }
                }
                Ok(bytes.len())
            })
        })?;
        copied.or_else(|whole| {
            let context = py.import("phalanx.context")?;
            let error = context.call_method1("BufferTooShort", (whole,))?;
            Err(PyErr::from_value(error))
        })
    }

    /// Whether something can be received (or the end be seen) within `timeout` seconds.
    ///
    /// Does not wait by default, and for ever with None.
    #[pyo3(signature = (timeout=Some(0.0)))]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        self.open_to_read()?.poll(py, after(timeout)?)
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, _args: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close()
    }
}

/// Makes two new connections the ends of a pipe; without `duplex` the first can only receive, and
/// the second only send.
#[pyfunction]
pub(super) fn join_by_pipe(
    py: Python<'_>,
    first: &Bound<'_, Connection>,
    second: &Bound<'_, Connection>,
    duplex: bool,
) -> PyResult<()> {
    arena(py)?;
    let (a, b) = pipe::pipe().map_err(to_py)?;
    first.get().fill(Transport::Pipe(a), true, duplex);
    second.get().fill(Transport::Pipe(b), duplex, true);
    Ok(())
}
