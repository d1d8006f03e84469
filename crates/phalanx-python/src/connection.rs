//! Connections: messages over a descriptor.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use phalanx::channel::wire::{Incoming, Outgoing, Reader};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyEOFError, PyOSError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::turn::{Turn, count_forks};

/// An open descriptor, closed with the last user of it.
#[derive(Debug)]
struct Descriptor {
    number: RawFd,
    /// Whether dropping closes it.
    owned: AtomicBool,
}

impl Descriptor {
    /// Closes the descriptor now, whoever else uses it, and says what went wrong.
    fn close(&self) -> io::Result<()> {
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

/// What carries the messages.
#[derive(Debug)]
enum Transport {
    Fd(Descriptor),
}

/// A message that was left half written, when a signal handler raised, and has to come first.
#[derive(Debug, Default)]
struct Unsent(Vec<u8>);

#[derive(Debug)]
struct Channel {
    transport: Transport,
    reading: Turn<Reader>,
    writing: Turn<Unsent>,
}

impl Channel {
    fn descriptor(&self) -> &Descriptor {
        let Transport::Fd(descriptor) = &self.transport;
        descriptor
    }

    fn send(&self, py: Python<'_>, body: &[u8]) -> PyResult<()> {
        let mut unsent = self.writing.take(py)?;
        let done = self.send_in_turn(py, &mut unsent, body);
        self.writing.put(unsent);
        done
    }

    fn send_in_turn(&self, py: Python<'_>, unsent: &mut Unsent, body: &[u8]) -> PyResult<()> {
        if !unsent.0.is_empty() {
            let mut rest = Outgoing::resumed(&unsent.0);
            let done = self.write(py, &mut rest);
            let rest = rest.rest();
            unsent.0 = rest;
            done?;
        }
        let mut letter = Outgoing::new(body);
        let done = self.write(py, &mut letter);
        if done.is_err() && letter.is_amid() {
            unsent.0 = letter.rest();
        }
        done
    }

    /// Writes all of `letter`: once begun, it is finished even on a non-blocking descriptor.
    fn write(&self, py: Python<'_>, letter: &mut Outgoing<'_>) -> PyResult<()> {
        loop {
            match serving_signals(py, || letter.write_to(self.descriptor())) {
                Err(Stopped::Io(error))
                    if error.kind() == io::ErrorKind::WouldBlock && letter.is_amid() =>
                {
                    let mut fds = [PollFd::new(self.descriptor(), PollFlags::OUT)];
                    serving_signals(py, || Ok(rustix::event::poll(&mut fds, None)?))?;
                }
                done => return Ok(done?),
            }
        }
    }

    fn receive(&self, py: Python<'_>, limit: Option<u64>) -> PyResult<Incoming> {
        let mut reader = self.reading.take(py)?;
        let got = serving_signals(py, || reader.read_from(self.descriptor(), limit));
        self.reading.put(reader);
        Ok(got?)
    }
}

/// Why a system call was given up.
enum Stopped {
    Io(io::Error),
    Raised(PyErr),
}

/// `OSError` with its errno, of the subclass that belongs to it.
fn os_error(error: &io::Error) -> PyErr {
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

impl From<Stopped> for PyErr {
    fn from(stopped: Stopped) -> Self {
        match stopped {
            Stopped::Io(error) => os_error(&error),
            Stopped::Raised(error) => error,
        }
    }
}

/// Calls `call` without the GIL, again and again while signals interrupt it.
fn serving_signals<T: Send>(
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

/// When a wait that begins now has to end; a timeout too long to count is none.
fn deadline(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    match timeout {
        None => Ok(None),
        Some(seconds) if seconds.is_nan() => {
            Err(PyValueError::new_err("the timeout is not a number (nan)"))
        }
        Some(seconds) => Ok(Duration::try_from_secs_f64(seconds.max(0.0))
            .ok()
            .and_then(|time| Instant::now().checked_add(time))),
    }
}

/// Waits until one of `fds` is ready, and returns how many are.
fn poll(py: Python<'_>, fds: &mut [PollFd<'_>], until: Option<Instant>) -> PyResult<usize> {
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

/// The bytes of any contiguous buffer.
fn bytes_of(buffer: &PyUntypedBuffer) -> &[u8] {
    if buffer.len_bytes() == 0 {
        return &[];
    }
    // SAFETY: the exporter keeps `len_bytes` bytes at this address for as long as the buffer is
    // held, and the caller has seen that they are contiguous. Another thread may change them while
    // they are read; they are only handed on to the kernel or copied.
    unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) }
}

/// Any contiguous buffer, or a contiguous copy of one that is not.
fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
    let buffer = PyUntypedBuffer::get(object)?;
    if buffer.is_c_contiguous() {
        return Ok(buffer);
    }
    let memoryview = object.py().import(intern!(object.py(), "builtins"))?;
    let copy = memoryview
        .call_method1(intern!(object.py(), "memoryview"), (object,))?
        .call_method0(intern!(object.py(), "tobytes"))?;
    PyUntypedBuffer::get(&copy)
}

/// The class that pickles for connections, `phalanx.reduction.ForkingPickler`.
fn pickler(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static PICKLER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let pickler = PICKLER.get_or_try_init(py, || {
        let reduction = py.import("phalanx.reduction")?;
        PyResult::Ok(reduction.getattr("ForkingPickler")?.unbind())
    })?;
    Ok(pickler.bind(py))
}

/// One end of a pipe, or of a socket connected to a `Listener`.
///
/// The native base of `phalanx.connection.Connection`. Messages are in the format of the standard
/// library. Several threads may send at once, and each message stays whole.
#[pyclass(subclass, module = "phalanx._phalanx")]
pub(crate) struct Connection {
    /// None when closed. Locked for a moment at a time, and only with the GIL held.
    channel: Mutex<Option<Arc<Channel>>>,
    readable: AtomicBool,
    writable: AtomicBool,
}

impl Connection {
    fn slot(&self) -> MutexGuard<'_, Option<Arc<Channel>>> {
        self.channel.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn open(&self) -> PyResult<Arc<Channel>> {
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

    fn receive(&self, py: Python<'_>, limit: Option<u64>) -> PyResult<Vec<u8>> {
        match self.open_to_read()?.receive(py, limit)? {
            Incoming::Message(body) => Ok(body),
            Incoming::End => Err(PyEOFError::new_err(())),
            Incoming::TooLong(_) | Incoming::Malformed => {
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

    fn close(&self) -> PyResult<()> {
        let channel = self.slot().take();
        match channel.as_deref().map(|channel| &channel.transport) {
            Some(Transport::Fd(descriptor)) => descriptor.close().map_err(|error| os_error(&error)),
            None => Ok(()),
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
        count_forks();
        let descriptor = Descriptor {
            number,
            owned: AtomicBool::new(true),
        };
        *self.slot() = Some(Arc::new(Channel {
            transport: Transport::Fd(descriptor),
            reading: Turn::default(),
            writing: Turn::default(),
        }));
        self.readable.store(readable, Ordering::Relaxed);
        self.writable.store(writable, Ordering::Relaxed);
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
        self.slot()
            .as_ref()
            .map(|channel| channel.descriptor().number)
    }

    /// Setting None makes the object let go of its descriptor without closing it.
    #[setter]
    #[allow(non_snake_case)] // Python's name is _handle
    fn set__handle(&self, handle: Option<RawFd>) -> PyResult<()> {
        if handle.is_some() {
            return Err(PyValueError::new_err("_handle can only be set to None"));
        }
        if let Some(channel) = self.slot().take() {
            channel.descriptor().owned.store(false, Ordering::Relaxed);
        }
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
        Ok(self.open()?.descriptor().number)
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
        let channel = self.open_to_write()?;
        let data = pickler(py)?.call_method1(intern!(py, "dumps"), (obj,))?;
        let buffer = PyUntypedBuffer::get(&data)?;
        channel.send(py, bytes_of(&buffer))
    }

    /// Receives an object. Blocks until one is there.
    ///
    /// Raises `EOFError` if the other end is closed or dead and nothing is left.
    fn recv<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let body = self.receive(py, None)?;
        pickler(py)?.call_method1(intern!(py, "loads"), (PyBytes::new(py, &body),))
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
        channel.send(py, part)
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
        Ok(PyBytes::new(py, &self.receive(py, limit)?))
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
        let body = self.receive(py, None)?;
        if body.len() > room {
            let context = py.import("phalanx.context")?;
            let error = context.call_method1("BufferTooShort", (PyBytes::new(py, &body),))?;
            return Err(PyErr::from_value(error));
        }
        if !body.is_empty() {
            // SAFETY: the buffer is writable, contiguous and held; `offset` and the body fit into
            // it; the body is memory of our own.
            unsafe {
                let to = buffer.buf_ptr().cast::<u8>().add(offset);
                std::ptr::copy_nonoverlapping(body.as_ptr(), to, body.len());
            }
        }
        Ok(body.len())
    }

    /// Whether something can be received (or the end be seen) within `timeout` seconds.
    ///
    /// Does not wait by default, and for ever with None.
    #[pyo3(signature = (timeout=Some(0.0)))]
    fn poll(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<bool> {
        let channel = self.open_to_read()?;
        let mut fds = [PollFd::new(channel.descriptor(), PollFlags::IN)];
        poll(py, &mut fds, deadline(timeout)?)?;
        let ready = fds[0].revents();
        if ready.contains(PollFlags::NVAL) {
            return Err(os_error(&rustix::io::Errno::BADF.into()));
        }
        Ok(!ready.is_empty())
    }

    fn __enter__(slf: PyRef<'_, Self>) -> PyRef<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_args))]
    fn __exit__(&self, _args: &Bound<'_, PyAny>) -> PyResult<()> {
        self.close()
    }
}

/// One object that `wait` waits for.
struct Waited<'py> {
    object: Bound<'py, PyAny>,
    number: RawFd,
    /// Keeps a connection's descriptor open while it is polled, whoever closes it.
    _channel: Option<Arc<Channel>>,
}

impl<'py> Waited<'py> {
    fn new(object: Bound<'py, PyAny>) -> PyResult<Self> {
        if let Ok(connection) = object.cast::<Connection>() {
            let channel = connection.borrow().open()?;
            let number = channel.descriptor().number;
            return Ok(Self {
                object,
                number,
                _channel: Some(channel),
            });
        }
        let py = object.py();
        let number: PyResult<RawFd> = object.extract().or_else(|_| {
            object
                .call_method0(intern!(py, "fileno"))
                .and_then(|number| number.extract())
        });
        match number {
            Ok(number) if number >= 0 => Ok(Self {
                object,
                number,
                _channel: None,
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
fn wait<'py>(
    py: Python<'py>,
    object_list: &Bound<'py, PyAny>,
    timeout: Option<f64>,
) -> PyResult<Bound<'py, PyList>> {
    let until = deadline(timeout)?;
    let waited: Vec<Waited<'py>> = object_list
        .try_iter()?
        .map(|object| Waited::new(object?))
        .collect::<PyResult<_>>()?;
    let mut fds: Vec<PollFd<'_>> = waited
        .iter()
        .map(|one| PollFd::new(one, PollFlags::IN))
        .collect();
    poll(py, &mut fds, until)?;
    let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
    let objects = waited
        .iter()
        .zip(ready)
        .filter(|(_, ready)| *ready)
        .map(|(one, _)| &one.object);
    PyList::new(py, objects.collect::<Vec<_>>())
}

/// Two connected descriptors, closed on exec: sockets, or the two ends of a one-way pipe, of which
/// the first is for reading.
#[pyfunction]
fn open_pipe(duplex: bool) -> PyResult<(RawFd, RawFd)> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType};
    let (first, second) = if duplex {
        rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )
    } else {
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)
    }
    .map_err(|error| os_error(&error.into()))?;
    Ok((first.into_raw_fd(), second.into_raw_fd()))
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Connection>()?;
    module.add_function(wrap_pyfunction!(open_pipe, module)?)?;
    module.add_function(wrap_pyfunction!(wait, module)?)
}
