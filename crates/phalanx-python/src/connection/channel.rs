//! What carries the messages: a pipe of this family, or a stream in the standard library's format.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Instant;

use phalanx::arena::Buffer;
use phalanx::channel::pipe::End;
use phalanx::channel::wire::{Incoming, Outgoing, Reader};
use phalanx::channel::{Message, Patience};
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::PyOSError;
use pyo3::intern;
use pyo3::prelude::*;
use rustix::event::{PollFd, PollFlags};

use super::descriptor::{Descriptor, Stopped, os_error, poll, serving_signals};
use super::payload::{Body, RAW, bytes_of, pickler};
use crate::codec;
use crate::error::to_py;
use crate::turn::Turn;
use crate::wait::blocking;

/// What carries the messages.
#[derive(Debug)]
pub(super) enum Transport {
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
pub(super) struct Channel {
    pub(super) transport: Transport,
    reading: Turn<Reader>,
    writing: Turn<Unsent>,
}

/// What a wait for a message in the arena has come to.
enum Found {
    Message(Message),
    End,
    /// The pipe has become a stream.
    Stream,
}

impl AsFd for Channel {
    /// The descriptor, for use within this folder: looking at it decides nothing.
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.transport {
            Transport::Fd(descriptor) => descriptor.as_fd(),
            Transport::Pipe(end) => end.socket(),
        }
    }
}

impl Channel {
    pub(super) fn new(transport: Transport) -> Arc<Self> {
        Arc::new(Self {
            transport,
            reading: Turn::default(),
            writing: Turn::default(),
        })
    }

    /// The end of a pipe whose messages go through the arena, unless they go over a stream.
    pub(super) fn in_arena(&self) -> Option<&End> {
        match &self.transport {
            Transport::Pipe(end) if !end.is_stream() => Some(end),
            _ => None,
        }
    }

    /// The descriptor, for everybody: the pipe becomes a stream if it can, since what becomes of the
    /// descriptor cannot be known.
    pub(super) fn number(&self) -> RawFd {
        match &self.transport {
            Transport::Fd(descriptor) => descriptor.number,
            Transport::Pipe(end) if end.use_stream() => end.socket().as_raw_fd(),
            Transport::Pipe(end) => end.exposed_fd().as_raw_fd(),
        }
    }

    pub(super) fn send_object(&self, py: Python<'_>, object: &Bound<'_, PyAny>) -> PyResult<()> {
        if let Some(end) = self.in_arena().filter(|end| end.use_arena()) {
            return codec::encode(object, |bytes, tag, buffers| {
                post(py, end, bytes, tag, buffers)
            });
        }
        let data = pickler(py)?.call_method1(intern!(py, "dumps"), (object,))?;
        let buffer = PyUntypedBuffer::get(&data)?;
        self.write_message(py, bytes_of(&buffer))
    }

    pub(super) fn send_bytes(&self, py: Python<'_>, bytes: &[u8]) -> PyResult<()> {
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
    pub(super) fn receive<R>(
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

    /// Whether a message was left half sent, and will be finished before the next.
    pub(super) fn is_amid(&self) -> bool {
        self.writing.look(|unsent| !unsent.0.is_empty())
    }

    /// Whether there is something to receive, or the end to be seen, by `until`.
    pub(super) fn poll(&self, py: Python<'_>, until: Option<Instant>) -> PyResult<bool> {
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
