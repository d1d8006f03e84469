//! Python objects as messages.
//!
//! Built-in values have an encoding of their own, since pickling an int costs more than moving it:
//! None, bool, int (64 bits), float, str, bytes, tuples of them, and a list or dict of them as the
//! whole message. (A list inside would lose its identity where an object holds it twice, which
//! pickle keeps.) Large str and bytes lie aside, each in a buffer of its own. All else is pickled by
//! protocol 5 with large buffers out of band: each is copied once, into the arena, and the
//! receiver's object is a view on it.

use std::cell::Cell;
use std::ptr::null_mut;
use std::sync::{Mutex, PoisonError};

use phalanx::arena::{Buffer, MIN_BUFFER};
use phalanx::channel::Message;
use pyo3::buffer::PyUntypedBuffer;
use pyo3::exceptions::{PyRuntimeError, PyUnicodeDecodeError};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::sync::critical_section::with_critical_section;
use pyo3::types::{PyBool, PyBytes, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use pyo3::{IntoPyObjectExt, intern};

use crate::arena::arena;
use crate::buffer::ReceivedBuffer;
use crate::error::to_py;
use crate::large::{append, bytes_object};
use crate::names;

/// What a message's tag says about its bytes.
pub(crate) mod tag {
    /// The encoding of this module.
    pub(crate) const VALUE: u16 = 0;
    pub(crate) const PICKLE: u16 = 1;
    /// One `bytes` object.
    pub(crate) const BYTES: u16 = 2;
}

const NONE: u8 = 0;
const FALSE: u8 = 1;
const TRUE: u8 = 2;
const BYTE: u8 = 3;
const INT: u8 = 4;
const FLOAT: u8 = 5;
const STR: u8 = 6;
const LONG_STR: u8 = 7;
const BYTES: u8 = 8;
const TUPLE: u8 = 9;
const LIST: u8 = 10;
const DICT: u8 = 11;
/// The next buffer is a str, or bytes.
const STR_ASIDE: u8 = 12;
const BYTES_ASIDE: u8 = 13;

/// Tuples may be nested so deep; deeper ones are pickled.
const DEPTH: u32 = 8;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
    static PICKLER: Cell<Option<CachedPickler>> = const { Cell::new(None) };
}

/// Vectors larger than this are not kept.
const KEEP: usize = 4 << 20;

/// Calls `with` with a vector of this thread's that is used again.
pub(crate) fn with_scratch<R>(with: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let result = with(&mut scratch);
    if scratch.capacity() <= KEEP {
        SCRATCH.set(scratch);
    }
    result
}

/// Turns `object` into the bytes, tag and buffers of a message and calls `send` with them.
///
/// # Errors
/// Whatever pickling raises; `send` is not called then.
pub(crate) fn encode<R>(
    object: &Bound<'_, PyAny>,
    send: impl FnOnce(&[u8], u16, Vec<Buffer>) -> PyResult<R>,
) -> PyResult<R> {
    if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        return send(bytes.as_bytes(), tag::BYTES, Vec::new());
    }
    with_scratch(|scratch| {
        let mut aside = Some(Vec::new());
        if value(object, scratch, &mut aside, DEPTH, true) {
            let buffers = match aside {
                Some(aside) if !aside.is_empty() => copy_aside(object.py(), aside)?,
                _ => Vec::new(),
            };
            return send(scratch, tag::VALUE, buffers);
        }
        let (bytes, buffers) = pickle(object)?;
        let sent = send(&bytes, tag::PICKLE, buffers);
        keep_space(bytes);
        sent
    })
}

/// As [`encode`], for what needs neither a pickler nor a buffer; `None` for everything else.
#[cfg(not(feature = "abi3"))]
#[inline]
pub(crate) fn encode_small<R>(
    object: &Bound<'_, PyAny>,
    send: impl FnOnce(&[u8], u16) -> Option<R>,
) -> Option<R> {
    if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        let bytes = bytes.as_bytes();
        return (bytes.len() <= MIN_BUFFER)
            .then(|| send(bytes, tag::BYTES))
            .flatten();
    }
    with_scratch(|scratch| {
        (value(object, scratch, &mut None, DEPTH, true) && scratch.len() <= MIN_BUFFER)
            .then(|| send(scratch, tag::VALUE))
            .flatten()
    })
}

/// The object that a message brings.
///
/// # Errors
/// Whatever unpickling raises.
pub(crate) fn decode<'py>(py: Python<'py>, mut message: Message) -> PyResult<Bound<'py, PyAny>> {
    let buffers = std::mem::take(&mut message.buffers);
    match message.tag {
        tag::PICKLE if message.is_inline() => {
            unpickle(PyBytes::new(py, message.bytes()).as_any(), buffers)
        }
        tag::PICKLE => match message.into_buffer() {
            Some(buffer) => unpickle(
                Bound::new(py, ReceivedBuffer::new(buffer))?.as_any(),
                buffers,
            ),
            None => Err(damaged()),
        },
        tag => decode_parts(py, tag, message.bytes(), buffers),
    }
}

/// As [`decode`], for a message without buffers.
pub(crate) fn decode_plain<'py>(
    py: Python<'py>,
    tag: u16,
    bytes: &[u8],
) -> PyResult<Bound<'py, PyAny>> {
    decode_parts(py, tag, bytes, Vec::new())
}

/// As [`decode`], for a message whose bytes are inline.
pub(crate) fn decode_parts<'py>(
    py: Python<'py>,
    tag: u16,
    bytes: &[u8],
    mut buffers: Vec<Buffer>,
) -> PyResult<Bound<'py, PyAny>> {
    match tag {
        tag::VALUE => {
            let mut rest = bytes;
            buffers.reverse();
            let object = read(py, &mut rest, &mut buffers, DEPTH + 1)?;
            if rest.is_empty() && buffers.is_empty() {
                Ok(object)
            } else {
                Err(damaged())
            }
        }
        tag::PICKLE => unpickle(PyBytes::new(py, bytes).as_any(), buffers),
        tag::BYTES => Ok(bytes_object(py, bytes)?.into_any()),
        _ => Err(damaged()),
    }
}

/// For the tests: this module's own encoding of a value, None if it would be pickled.
#[pyfunction]
fn _encode_value<'py>(object: &Bound<'py, PyAny>) -> Option<Bound<'py, PyBytes>> {
    let mut bytes = Vec::new();
    value(object, &mut bytes, &mut None, DEPTH, true).then(|| PyBytes::new(object.py(), &bytes))
}

/// For the tests: decodes bytes that nobody need have encoded.
#[pyfunction]
fn _decode_value<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    decode_plain(py, tag::VALUE, bytes)
}

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(_encode_value, module)?)?;
    module.add_function(wrap_pyfunction!(_decode_value, module)?)
}

fn damaged() -> PyErr {
    PyRuntimeError::new_err(
        "a message in shared memory is damaged; a process of the family wrote over it",
    )
}

/// The large str and bytes of a message, in order; `None` where there may be none.
type Aside<'py> = Option<Vec<Bound<'py, PyAny>>>;

/// Appends the encoding of `object`; false if it has none (`out` is then garbage).
fn value<'py>(
    object: &Bound<'py, PyAny>,
    out: &mut Vec<u8>,
    aside: &mut Aside<'py>,
    depth: u32,
    whole: bool,
) -> bool {
    if let Ok(int) = object.cast_exact::<PyInt>() {
        return match int.extract::<i64>() {
            Ok(n) => {
                match i8::try_from(n) {
                    Ok(n) => out.extend_from_slice(&[BYTE, n as u8]),
                    Err(_) => {
                        out.push(INT);
                        out.extend_from_slice(&n.to_le_bytes());
                    }
                }
                true
            }
            Err(_) => false,
        };
    }
    if let Ok(text) = object.cast_exact::<PyString>() {
        // A lone surrogate has no UTF-8.
        return text.to_str().is_ok_and(|text| {
            if text.len() > MIN_BUFFER {
                return lay_aside(object, out, STR_ASIDE, aside);
            }
            match u8::try_from(text.len()) {
                Ok(len) => out.extend_from_slice(&[STR, len]),
                Err(_) => put_len(out, LONG_STR, text.len()),
            }
            out.extend_from_slice(text.as_bytes());
            true
        });
    }
    if let Ok(float) = object.cast_exact::<PyFloat>() {
        out.push(FLOAT);
        out.extend_from_slice(&float.value().to_le_bytes());
        return true;
    }
    if object.is_none() {
        out.push(NONE);
        return true;
    }
    if let Ok(truth) = object.cast_exact::<PyBool>() {
        out.push(if truth.is_true() { TRUE } else { FALSE });
        return true;
    }
    if let Ok(tuple) = object.cast_exact::<PyTuple>() {
        if depth == 0 {
            return false;
        }
        put_len(out, TUPLE, tuple.len());
        return tuple
            .iter_borrowed()
            .all(|item| value(&item, out, aside, depth - 1, false));
    }
    if let Ok(bytes) = object.cast_exact::<PyBytes>() {
        let bytes = bytes.as_bytes();
        if bytes.len() > MIN_BUFFER {
            return lay_aside(object, out, BYTES_ASIDE, aside);
        }
        put_len(out, BYTES, bytes.len());
        out.extend_from_slice(bytes);
        return true;
    }
    if !whole {
        return false;
    }
    if let Ok(list) = object.cast_exact::<PyList>() {
        put_len(out, LIST, list.len());
        return list
            .iter()
            .all(|item| value(&item, out, aside, depth - 1, false));
    }
    if let Ok(dict) = object.cast_exact::<PyDict>() {
        put_len(out, DICT, dict.len());
        return pairs(dict, |key, item| {
            value(key, out, aside, depth - 1, false) && value(item, out, aside, depth - 1, false)
        });
    }
    false
}

/// More large items than this are left to the pickler.
const MOST_ASIDE: usize = 1000;

/// Says in `out` that the next buffer is `object`, and keeps that for [`copy_aside`]; false if that
/// cannot be. What a message holds twice is left to the pickler, which sends it once.
#[cold]
fn lay_aside<'py>(
    object: &Bound<'py, PyAny>,
    out: &mut Vec<u8>,
    kind: u8,
    aside: &mut Aside<'py>,
) -> bool {
    let Some(aside) = aside else {
        return false;
    };
    if aside.len() >= MOST_ASIDE || aside.iter().any(|other| other.is(object)) {
        return false;
    }
    out.push(kind);
    aside.push(object.clone());
    true
}

/// The large str and bytes of a message as buffers. 8 MB of `bytes` in a dict went through a queue at
/// 5 GB/s and more, where their pickle had 1.2 (and the standard library 0.34).
fn copy_aside(py: Python<'_>, aside: Vec<Bound<'_, PyAny>>) -> PyResult<Vec<Buffer>> {
    let copy = |object: Bound<'_, PyAny>| {
        let bytes = match object.cast_exact::<PyBytes>() {
            Ok(bytes) => bytes.as_bytes(),
            Err(_) => object.cast::<PyString>()?.to_str()?.as_bytes(),
        };
        let arena = arena(py)?;
        py.detach(|| Buffer::copy(arena, bytes)).map_err(to_py)
    };
    aside.into_iter().map(copy).collect()
}

/// Whether `each` is true for all pairs of a dict. It must not run any Python code, which might change
/// the dict: PyO3's iterator, which allows that, counts references and takes twice as long.
fn pairs<'py>(
    dict: &Bound<'py, PyDict>,
    mut each: impl FnMut(&Bound<'py, PyAny>, &Bound<'py, PyAny>) -> bool,
) -> bool {
    with_critical_section(dict, || {
        let (mut place, mut key, mut item) = (0, null_mut(), null_mut());
        // SAFETY: attached, a dict, and places to write to. It gives borrowed references, which are
        // valid as long as the dict is not changed.
        while unsafe { ffi::PyDict_Next(dict.as_ptr(), &mut place, &mut key, &mut item) } != 0 {
            // SAFETY: as above.
            let (key, item) = unsafe {
                (
                    Borrowed::from_ptr(dict.py(), key),
                    Borrowed::from_ptr(dict.py(), item),
                )
            };
            if !each(&key, &item) {
                return false;
            }
        }
        true
    })
}

fn put_len(out: &mut Vec<u8>, kind: u8, len: usize) {
    out.push(kind);
    out.extend_from_slice(&(len as u32).to_le_bytes());
}

fn chunk<'a>(rest: &mut &'a [u8], len: usize) -> PyResult<&'a [u8]> {
    let (chunk, after) = rest.split_at_checked(len).ok_or_else(damaged)?;
    *rest = after;
    Ok(chunk)
}

fn array<const N: usize>(rest: &mut &[u8]) -> PyResult<[u8; N]> {
    chunk(rest, N)?.try_into().map_err(|_| damaged())
}

/// A number of items or bytes, of which there must be that many left at least.
fn len(rest: &mut &[u8]) -> PyResult<usize> {
    let len = u32::from_le_bytes(array(rest)?) as usize;
    if len > rest.len() {
        Err(damaged())
    } else {
        Ok(len)
    }
}

/// A str of UTF-8 bytes.
pub(crate) fn text<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    // Python checks the bytes itself: to let Rust do it first cost 40 instructions a string.
    // SAFETY: attached, and the bytes are there; the result is a new reference or an error.
    let made = unsafe {
        let made =
            ffi::PyUnicode_FromStringAndSize(bytes.as_ptr().cast(), bytes.len().cast_signed());
        Bound::from_owned_ptr_or_err(py, made)
    };
    made.map_err(
        |error| match error.is_instance_of::<PyUnicodeDecodeError>(py) {
            true => damaged(),
            false => error,
        },
    )
}

/// Decodes one value off the front of `rest`, with buffers off the end of `aside`. Whatever the bytes
/// are, it ends with a value or an error.
fn read<'py>(
    py: Python<'py>,
    rest: &mut &[u8],
    aside: &mut Vec<Buffer>,
    depth: u32,
) -> PyResult<Bound<'py, PyAny>> {
    let [kind] = array(rest)?;
    let nested = || depth.checked_sub(1).ok_or_else(damaged);
    match kind {
        NONE => Ok(py.None().into_bound(py)),
        FALSE => false.into_bound_py_any(py),
        TRUE => true.into_bound_py_any(py),
        BYTE => i8::from_le_bytes(array(rest)?).into_bound_py_any(py),
        INT => i64::from_le_bytes(array(rest)?).into_bound_py_any(py),
        FLOAT => f64::from_le_bytes(array(rest)?).into_bound_py_any(py),
        STR => {
            let [len] = array(rest)?;
            text(py, chunk(rest, usize::from(len))?)
        }
        LONG_STR => {
            let len = len(rest)?;
            text(py, chunk(rest, len)?)
        }
        BYTES => {
            let len = len(rest)?;
            Ok(PyBytes::new(py, chunk(rest, len)?).into_any())
        }
        TUPLE => {
            let (depth, len) = (nested()?, len(rest)?);
            // SAFETY: attached; a new tuple of `len` places, each of which is filled once or, after
            // an error, never looked at. (Collecting the items in a vector first cost 250
            // instructions a tuple.)
            unsafe {
                let tuple = ffi::PyTuple_New(len.cast_signed());
                let tuple = Bound::from_owned_ptr_or_err(py, tuple)?;
                for place in 0..len {
                    let item = read(py, rest, aside, depth)?.into_ptr();
                    ffi::PyTuple_SetItem(tuple.as_ptr(), place.cast_signed(), item);
                }
                Ok(tuple)
            }
        }
        LIST => {
            let (depth, len) = (nested()?, len(rest)?);
            // SAFETY: as for tuples.
            unsafe {
                let list = ffi::PyList_New(len.cast_signed());
                let list = Bound::from_owned_ptr_or_err(py, list)?;
                for place in 0..len {
                    let item = read(py, rest, aside, depth)?.into_ptr();
                    ffi::PyList_SetItem(list.as_ptr(), place.cast_signed(), item);
                }
                Ok(list)
            }
        }
        DICT => {
            let depth = nested()?;
            let dict = PyDict::new(py);
            for _ in 0..len(rest)? {
                let key = match rest {
                    [STR, len, after @ ..] if after.len() >= usize::from(*len) => {
                        let (name, after) = after.split_at(usize::from(*len));
                        *rest = after;
                        names::get(py, name)?
                    }
                    _ => read(py, rest, aside, depth)?,
                };
                dict.set_item(key, read(py, rest, aside, depth)?)?;
            }
            Ok(dict.into_any())
        }
        STR_ASIDE => text(py, &aside.pop().ok_or_else(damaged)?),
        BYTES_ASIDE => {
            let buffer = aside.pop().ok_or_else(damaged)?;
            Ok(bytes_object(py, &buffer)?.into_any())
        }
        _ => Err(damaged()),
    }
}

/// What a pickler writes to: bytes, and the large buffers beside them.
#[pyclass(frozen, module = "phalanx._phalanx")]
struct PickleSink {
    bytes: Mutex<Vec<u8>>,
    buffers: Mutex<Vec<Buffer>>,
}

#[pymethods]
impl PickleSink {
    /// Takes the next piece of the pickle.
    fn write(&self, data: &Bound<'_, PyAny>) -> PyResult<()> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(data) = data.cast_exact::<PyBytes>() {
            append(&mut bytes, data.as_bytes());
        } else {
            let view = PyUntypedBuffer::get(data)?;
            append(&mut bytes, contents(&view));
        }
        Ok(())
    }

    /// The pickler's `buffer_callback`: true means that the buffer is to stay in the pickle.
    fn buffer(&self, py: Python<'_>, pickle_buffer: &Bound<'_, PyAny>) -> PyResult<bool> {
        let Ok(raw) = pickle_buffer.call_method0(intern!(py, "raw")) else {
            return Ok(true); // Not contiguous.
        };
        let view = PyUntypedBuffer::get(&raw)?;
        if view.len_bytes() < MIN_BUFFER {
            return Ok(true);
        }
        let arena = arena(py)?;
        let bytes = contents(&view);
        let buffer = py.detach(|| Buffer::copy(arena, bytes)).map_err(to_py)?;
        self.buffers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(buffer);
        Ok(false)
    }
}

/// The bytes of a contiguous buffer.
pub(crate) fn contents(view: &PyUntypedBuffer) -> &[u8] {
    if view.len_bytes() == 0 {
        return &[];
    }
    // SAFETY: the exporter keeps this many bytes there as long as the view lives. Another thread may
    // write to them meanwhile, as it may while any other copy of a buffer is made.
    unsafe { std::slice::from_raw_parts(view.buf_ptr().cast(), view.len_bytes()) }
}

struct CachedPickler {
    dump: Py<PyAny>,
    clear_memo: Py<PyAny>,
    sink: Py<PickleSink>,
    /// The two tables of reducers that it began with a copy of, and how long they were then.
    tables: [(Py<PyDict>, usize); 2],
}

impl CachedPickler {
    /// Whether no type has got a reducer since this was made.
    fn is_current(&self, py: Python<'_>) -> bool {
        let mut tables = self.tables.iter();
        tables.all(|(table, length)| table.bind(py).len() == *length)
    }

    fn new(py: Python<'_>) -> PyResult<Self> {
        static CLASS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let class = CLASS.get_or_try_init(py, || {
            let reduction = py.import("phalanx.reduction")?;
            PyResult::Ok(reduction.getattr("ForkingPickler")?.unbind())
        })?;
        let sink = Bound::new(
            py,
            PickleSink {
                bytes: Mutex::default(),
                buffers: Mutex::default(),
            },
        )?;
        let table = |name| {
            let table = class.bind(py).getattr(name)?.cast_into::<PyDict>()?;
            let length = table.len();
            PyResult::Ok((table.unbind(), length))
        };
        let tables = [table("_extra_reducers")?, table("_copyreg_dispatch_table")?];
        // Positional, since the standard class takes nothing else: file, protocol, fix_imports,
        // buffer_callback.
        let pickler = class
            .bind(py)
            .call1((&sink, 5, true, sink.getattr("buffer")?))?;
        Ok(Self {
            dump: pickler.getattr("dump")?.unbind(),
            clear_memo: pickler.getattr("clear_memo")?.unbind(),
            sink: sink.unbind(),
            tables,
        })
    }

    fn taken(&self) -> (Vec<u8>, Vec<Buffer>) {
        let sink = self.sink.get();
        let bytes = sink.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        let buffers = sink.buffers.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut bytes, mut buffers) = (bytes, buffers);
        (std::mem::take(&mut bytes), std::mem::take(&mut buffers))
    }
}

/// Pickles by protocol 5 with `phalanx.reduction.ForkingPickler`: the bytes, and copies of the large
/// buffers.
///
/// # Errors
/// Whatever pickling raises.
pub(crate) fn pickle(object: &Bound<'_, PyAny>) -> PyResult<(Vec<u8>, Vec<Buffer>)> {
    let py = object.py();
    // Taken out while in use: pickling an object may pickle others on the way.
    let pickler = match PICKLER.take() {
        Some(pickler) if pickler.is_current(py) => pickler,
        _ => CachedPickler::new(py)?,
    };
    // On an error the pickler is dropped, in whatever state it is.
    pickler.dump.bind(py).call1((object,))?;
    pickler.clear_memo.bind(py).call0()?;
    let taken = pickler.taken();
    PICKLER.set(Some(pickler));
    Ok(taken)
}

/// Gives the bytes that [`pickle`] returned back, to be filled again: fresh memory costs more than
/// the copying.
fn keep_space(mut bytes: Vec<u8>) {
    if bytes.capacity() > KEEP {
        return;
    }
    bytes.clear();
    let pickler = PICKLER.take();
    if let Some(pickler) = &pickler {
        let sink = &pickler.sink.get().bytes;
        *sink.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
    }
    PICKLER.set(pickler);
}

/// Unpickles `data` with `buffers` out of band.
///
/// # Errors
/// Whatever unpickling raises.
pub(crate) fn unpickle<'py>(
    data: &Bound<'py, PyAny>,
    buffers: Vec<Buffer>,
) -> PyResult<Bound<'py, PyAny>> {
    if buffers.is_empty() {
        return loads(data.py())?.call1((data,));
    }
    let views = PyList::empty(data.py());
    for buffer in buffers {
        views.append(Bound::new(data.py(), ReceivedBuffer::new(buffer))?)?;
    }
    unpickle_with(data, &views)
}

/// As [`unpickle`], with any objects that have the buffer protocol.
///
/// # Errors
/// Whatever unpickling raises.
pub(crate) fn unpickle_with<'py>(
    data: &Bound<'py, PyAny>,
    buffers: &Bound<'py, PyList>,
) -> PyResult<Bound<'py, PyAny>> {
    let py = data.py();
    let kwargs = PyDict::new(py);
    kwargs.set_item(intern!(py, "buffers"), buffers)?;
    loads(py)?.call((data,), Some(&kwargs))
}

fn loads(py: Python<'_>) -> PyResult<&Bound<'_, PyAny>> {
    static LOADS: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let loads = LOADS.get_or_try_init(py, || {
        PyResult::Ok(py.import("pickle")?.getattr("loads")?.unbind())
    })?;
    Ok(loads.bind(py))
}
