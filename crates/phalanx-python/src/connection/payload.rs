//! Messages as Python's objects and bytes.

use phalanx::channel::Message;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyBytes;

use crate::buffer::ReceivedBuffer;
use crate::codec;
use crate::large::bytes_object;

/// The tag, in the arena, of a message that was sent as bytes and not as an object.
pub(super) const RAW: u16 = 64;

/// A message that has come.
pub(super) enum Body<'a> {
    /// Through the arena, and copied from there.
    Plain(u16, &'a [u8]),
    /// Through the arena, with buffers.
    Message(Message),
    /// Over a stream.
    Wire(Vec<u8>),
}

/// The object that was sent.
pub(super) fn object<'py>(py: Python<'py>, body: Body<'_>) -> PyResult<Bound<'py, PyAny>> {
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
pub(super) fn raw<R>(py: Python<'_>, body: Body<'_>, with: impl FnOnce(&[u8]) -> R) -> PyResult<R> {
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

/// The bytes of any contiguous buffer.
pub(super) fn bytes_of(buffer: &PyUntypedBuffer) -> &[u8] {
    if buffer.len_bytes() == 0 {
        return &[];
    }
    // SAFETY: the exporter keeps `len_bytes` bytes at this address for as long as the buffer is
    // held, and the caller has seen that they are contiguous. Another thread may change them while
    // they are read; they are only handed on to the kernel or copied.
    unsafe { std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes()) }
}

/// Any contiguous buffer, or a contiguous copy of one that is not.
pub(super) fn contiguous(object: &Bound<'_, PyAny>) -> PyResult<PyUntypedBuffer> {
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
pub(super) fn pickler(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static PICKLER: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let pickler = PICKLER.get_or_try_init(py, || {
        let reduction = py.import("phalanx.reduction")?;
        PyResult::Ok(reduction.getattr("ForkingPickler")?.unbind())
    })?;
    Ok(pickler.bind(py))
}
