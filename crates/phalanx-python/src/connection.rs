//! Connections: messages over a descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use phalanx::arena::{Buffer, Handle};
use phalanx::channel::pipe::{self, End};
use phalanx::channel::wire::{Incoming, Outgoing, Reader};
use phalanx::channel::{Message, Patience};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyEOFError, PyOSError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyList};
use rustix::event::{PollFd, PollFlags, Timespec};

use crate::arena::{HandleForPickle, arena, handle_for_pickle};
use crate::buffer::ReceivedBuffer;
use crate::codec;
use crate::error::to_py;
use crate::large::bytes_object;
use crate::queue::Queue;
use crate::turn::{Turn, count_forks};
use crate::wait::blocking;

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
    /// A stream that came from elsewhere.
    Fd(Descriptor),
    /// One end of a pipe of this family, which is a stream, too, once its descriptor was asked for.
    Pipe(End),
}

/// A message that was left half written, when a signal handler raised, and has to come first.
#[derive(Debug, Default)]
struct Unsent(Vec<u8>);

/// A connection that is open.
#[derive(Debug)]
struct Channel {
    transport: Transport,
    reading: Turn<Reader>,
    writing: Turn<Unsent>,
}

/// The tag, in the arena, of a message that was sent as bytes and not as an object.
const RAW: u16 = 64;

/// A message that has come.
enum Body<'a> {
    /// Through the arena, and copied from there.
    Plain(u16, &'a [u8]),
    /// Through the arena, with buffers.
    Message(Message),
    /// Over a stream.
    Wire(Vec<u8>),
}

/// What a wait for a message in the arena has come to.
enum Found {
    Message(Message),
    End,
    /// The pipe has become a stream.
    Stream,
}

impl AsFd for Channel {
    /// The descriptor, for use within this file: looking at it decides nothing.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.transport {
            Transport::Fd(descriptor) => descriptor.as_fd(),
            Transport::Pipe(end) => end.socket(),
        }
    }
}

impl Channel {
    fn new(transport: Transport) -> Arc<Self> {
        Arc::new(Self {
            transport,
            reading: Turn::default(),
            writing: Turn::default(),
        })
    }

    /// The end of a pipe whose messages go through the arena, unless they go over a stream.
    fn in_arena(&self) -> Option<&End> {
        match &self.transport {
            Transport::Pipe(end) if !end.is_stream() => Some(end),
            _ => None,
        }
    }

    /// The descriptor, for everybody: the pipe becomes a stream if it can, since what becomes of the
    /// descriptor cannot be known.
    fn number(&self) -> RawFd {
        match &self.transport {
            Transport::Fd(descriptor) => descriptor.number,
            Transport::Pipe(end) if end.use_stream() => end.socket().as_raw_fd(),
            Transport::Pipe(end) => end.exposed_fd().as_raw_fd(),
        }
    }

    fn send_object(&self, py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Some(end) = self.in_arena().filter(|end| end.use_arena()) {
            return codec::encode(object, |bytes, tag, buffers| {
                post(py, end, bytes, tag, buffers)
            });
        }
        let data = pickler(py)?.call_method1(intern!(py, "dumps"), (object,))?;
        let buffer = PyUntypedBuffer::get(&data)?;
        self.write_message(py, bytes_of(&buffer))
    }

    fn send_bytes(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
        match self.in_arena().filter(|end| end.use_arena()) {
            Some(end) => post(py, end, bytes, RAW, Vec::new()),
            None => self.write_message(py, bytes),
        }
    }

    fn write_message(&self, py: Python<'_>, body: &[u8]) -> PyResult<()> {
        let mut unsent = self.writing.take(py)?;
        let done = self.write_in_turn(py, &mut unsent, body);
        self.writing.put(unsent);
        done
    }

    fn write_in_turn(&self, py: Python<'_>, unsent: &mut Unsent, body: &[u8]) -> PyResult<()> {
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
            match serving_signals(py, || letter.write_to(self)) {
                Err(Stopped::Io(error))
                    if error.kind() == io::ErrorKind::WouldBlock && letter.is_amid() =>
                {
                    let mut fds = [PollFd::new(self, PollFlags::OUT)];
                    serving_signals(py, || Ok(rustix::event::poll(&mut fds, None)?))?;
                }
                done => return Ok(done?),
            }
        }
    }

    fn read_message(&self, py: Python<'_>, limit: Option<u64>) -> PyResult<Incoming> {
        let mut reader = self.reading.take(py)?;
        let got = serving_signals(py, || reader.read_from(self, limit));
        self.reading.put(reader);
        Ok(got?)
    }

    /// Receives a message and hands it to `with`; None at the end. A message that is too long, or
    /// nonsense, is `Err(None)`.
    fn receive<R>(
        &self,
        py: Python<'_>,
        limit: Option<u64>,
        with: impl FnOnce(Body<'_>) -> PyResult<R>,
    ) -> Result<Option<R>, Option<PyErr>> {
        let too_long = |len: usize| limit.is_some_and(|limit| len as u64 > limit);
        let mut with = Some(with);
        // Each path calls it once and is then done.
        let mut hand_over = |body: Body<'_>| with.take().map(|with| with(body)).transpose();
        if let Some(end) = self.in_arena() {
            let quick = codec::with_scratch(|bytes| {
                let taken = end
                    .try_recv_into(bytes, Patience::Now)
                    .map_err(pipe_error)?;
                match taken {
                    None => Ok(None),
                    Some(taken) if taken.is_plain() && too_long(bytes.len()) => Err(None),
                    Some(taken) if taken.is_plain() => {
                        hand_over(Body::Plain(taken.tag(), bytes)).map_err(Some)
                    }
                    Some(taken) => {
                        let message = taken.into_message(end.arena(), std::mem::take(bytes));
                        hand_over(Body::Message(message.map_err(pipe_error)?)).map_err(Some)
                    }
                }
            })?;
            if quick.is_some() {
                return Ok(quick);
            }
            match blocking(py, || await_message(end))
                .map_err(Some)?
                .map_err(pipe_error)?
            {
                Found::Message(message) if too_long(message.bytes().len()) => return Err(None),
                Found::Message(message) => {
                    return hand_over(Body::Message(message)).map_err(Some);
                }
                Found::End => return Ok(None),
                Found::Stream => {}
            }
        }
        match self.read_message(py, limit)? {
            Incoming::Message(body) => hand_over(Body::Wire(body)).map_err(Some),
            Incoming::End => Ok(None),
            Incoming::TooLong(_) | Incoming::Malformed => Err(None),
        }
    }

    /// Whether there is something to receive, or the end to be seen, by `until`.
    fn poll(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<bool> {
        while let Some(end) = self.in_arena() {
            let waited = blocking(py, || end.wait(until))?.map_err(to_py)?;
            if !end.is_stream() && (!waited || end.is_ready().map_err(to_py)?) {
                return Ok(waited);
            }
        }
        let mut fds = [PollFd::new(self, PollFlags::IN)];
        poll(py, &mut fds, until)?;
        let ready = fds[0].revents();
        if ready.contains(PollFlags::NVAL) {
            return Err(os_error(&rustix::io::Errno::BADF.into()));
        }
        Ok(!ready.is_empty())
    }
}

/// Sends a message through the arena.
fn post(py: Python<'_>, end: &End, bytes: &[u8], tag: u16, buffers: Vec<Buffer>) -> PyResult<()> {
    let parts = [bytes];
    let mut letter = end.letter(&parts, tag, buffers).map_err(to_py)?;
    let at_once = end.try_send(&mut letter, Patience::Now);
    if !at_once.map_err(pipe_error_of_sender)? {
        blocking(py, || end.send(&mut letter, None))?.map_err(pipe_error_of_sender)?;
    }
    Ok(())
}

fn await_message(end: &End) -> phalanx::Result<Found> {
    let mut woken = false;
    loop {
        if let Some(message) = end.try_recv()? {
            return Ok(Found::Message(message));
        }
        if end.is_stream() {
            return Ok(Found::Stream);
        }
        if woken && end.at_end()? {
            return Ok(Found::End);
        }
        woken = end.wait(None)?;
    }
}

fn pipe_error(error: phalanx::Error) -> Option<PyErr> {
    Some(to_py(error))
}

fn pipe_error_of_sender(error: phalanx::Error) -> PyErr {
    if error.is_peer_death() {
        let errno = rustix::io::Errno::PIPE.raw_os_error();
        return PyOSError::new_err((errno, format!("Broken pipe: {error}")));
    }
    to_py(error)
}

/// The object that was sent.
fn object<'py>(py: Python<'py>, body: Body<'_>) -> PyResult<Bound<'py, PyAny>> {
    let pickled = match body {
        Body::Plain(RAW, bytes) => PyBytes::new(py, bytes).into_any(),
        Body::Wire(bytes) => bytes_object(py, &bytes)?.into_any(),
        Body::Message(message) if message.tag == RAW => match message.is_inline() {
            true => bytes_object(py, message.bytes())?.into_any(),
            false => match message.into_buffer() {
                Some(buffer) => Bound::new(py, ReceivedBuffer::new(buffer))?.into_any(),
                None => PyBytes::new(py, &[]).into_any(),
            },
        },
        Body::Plain(tag, bytes) => return codec::decode_plain(py, tag, bytes),
        Body::Message(message) => return codec::decode(py, message),
    };
    pickler(py)?.call_method1(intern!(py, "loads"), (pickled,))
}

/// Calls `with` with the bytes that were sent: those of the pickle, if it was an object.
fn raw<R>(py: Python<'_>, body: Body<'_>, with: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
    let object = match body {
        Body::Plain(RAW, bytes) => return Ok(with(bytes)),
        Body::Wire(bytes) => return Ok(with(&bytes)),
        Body::Message(message) if message.tag == RAW => return Ok(with(message.bytes())),
        Body::Plain(tag, bytes) => codec::decode_plain(py, tag, bytes)?,
        Body::Message(message) => codec::decode(py, message)?,
    };
    let data = pickler(py)?.call_method1(intern!(py, "dumps"), (object,))?;
    Ok(with(bytes_of(&PyUntypedBuffer::get(&data)?)))
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
        let descriptor = Descriptor {
            number,
            owned: AtomicBool::new(true),
        };
        self.fill(Transport::Fd(descriptor), readable, writable);
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
                    descriptor.owned.store(false, Ordering::Relaxed);
                }
            }
            None => {}
        }
        Ok(())
    }

    /// Whether a message was left half sent (by a signal's handler that raised), and will be
    /// finished before the next.
    fn _is_amid(&self) -> bool {
        let amid = |channel: &Arc<Channel>| channel.writing.look(|unsent| !unsent.0.is_empty());
        self.slot().as_ref().is_some_and(amid)
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
        self.open_to_read()?.poll(py, deadline(timeout)?)
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
    channel: Option<Arc<Channel>>,
    /// The queue whose reading end this is.
    queue: Option<Bound<'py, Queue>>,
}

impl<'py> Waited<'py> {
    fn new(object: Bound<'py, PyAny>) -> PyResult<Self> {
        let py = object.py();
        if let Ok(connection) = object.cast::<Connection>() {
            let channel = connection.borrow().open()?;
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
fn wait<'py>(
    py: Python<'py>,
    object_list: &Bound<'py, PyAny>,
    timeout: Option<f64>,
) -> PyResult<Bound<'py, PyList>> {
    let mut until = deadline(timeout)?;
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

/// Makes two new connections the ends of a pipe; without `duplex` the first can only receive, and
/// the second only send.
#[pyfunction]
fn join_by_pipe(
    py: Python<'_>,
    first: &Bound<'_, Connection>,
    second: &Bound<'_, Connection>,
    duplex: bool,
) -> PyResult<()> {
    arena(py)?;
    let (a, b) = pipe::pipe().map_err(to_py)?;
    first.borrow().fill(Transport::Pipe(a), true, duplex);
    second.borrow().fill(Transport::Pipe(b), duplex, true);
    Ok(())
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Connection>()?;
    module.add_function(wrap_pyfunction!(join_by_pipe, module)?)?;
    module.add_function(wrap_pyfunction!(wait, module)?)
}
