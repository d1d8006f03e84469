//! Functions on their way to the workers: serialized once by the parent, loaded once by a worker.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};

use phalanx::arena::Buffer;
use phalanx::pool::{Function, FunctionKey};
use pyo3::exceptions::PyRuntimeError;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyCFunction, PyFunction, PyList, PyType};

use crate::buffer::FunctionBytes;
use crate::codec;
use crate::error::to_py;

/// Functions up to this size stay in the arena after their last task, in case they come again.
const SMALL: usize = 16 * 1024;
/// How many of those, and how many functions are known by identity.
const KEPT: usize = 16;
/// Functions that a worker keeps ready, and their bytes.
const LOADED: usize = 32;
const LOADED_BYTES: usize = 256 << 20;

/// The parent's functions.
#[derive(Default)]
pub(super) struct Outbox {
    /// Functions that are pickled by name: the object alone tells what its pickle is.
    named: VecDeque<(Py<PyAny>, Arc<Function>)>,
    /// Small ones, to be found by content.
    kept: VecDeque<Arc<Function>>,
    /// Large ones, as long as their tasks are due.
    large: Vec<Weak<Function>>,
    /// The latest of them, in case it comes again.
    latest: Option<Arc<Function>>,
}

impl Outbox {
    /// The function in the arena if its pickle is its name and it was here lately.
    pub(super) fn named(
        &self,
        py: Python<'_>,
        function: &Bound<'_, PyAny>,
    ) -> Option<Arc<Function>> {
        let found = self.named.iter().find(|(f, _)| f.bind(py).is(function))?;
        Some(Arc::clone(&found.1))
    }

    /// The function with these bytes, if it is there.
    pub(super) fn same(&self, parts: &[&[u8]]) -> Option<Arc<Function>> {
        let large = self.large.iter().filter_map(Weak::upgrade);
        let mut all = self.kept.iter().cloned().chain(large);
        all.find(|function| function.is(parts))
    }

    /// Remembers a function of `len` bytes that was not there before.
    pub(super) fn keep(&mut self, function: &Arc<Function>, len: usize) {
        if len > SMALL {
            self.large.retain(|f| f.strong_count() > 0);
            self.large.push(Arc::downgrade(function));
            self.latest = (len <= LOADED_BYTES).then(|| Arc::clone(function));
        } else {
            self.kept.push_back(Arc::clone(function));
            if self.kept.len() > KEPT {
                self.kept.pop_front();
            }
        }
    }

    /// Remembers the object whose pickle is its name. What is returned is to be dropped when no
    /// lock is held.
    pub(super) fn keep_named(
        &mut self,
        object: Py<PyAny>,
        function: &Arc<Function>,
    ) -> Option<Py<PyAny>> {
        self.named.push_back((object, Arc::clone(function)));
        if self.named.len() > KEPT {
            return self.named.pop_front().map(|(object, _)| object);
        }
        None
    }
}

/// A serialized function, not yet in the arena for all.
pub(super) struct Pickled {
    head: Vec<u8>,
    pickle: Vec<u8>,
    buffers: Vec<Buffer>,
    /// The pickle is but the function's name.
    pub(super) is_name: bool,
}

impl Pickled {
    /// Serializes `function`.
    ///
    /// # Errors
    /// Whatever pickling raises.
    pub(super) fn new(function: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Some(pickle) = by_value(function, None)? {
            return Ok(Self::of(pickle, Vec::new(), false));
        }
        match codec::pickle(function) {
            Ok((pickle, buffers)) => Ok(Self::of(pickle, buffers, is_global(function))),
            Err(refused) => match by_value(function, Some(&refused))? {
                Some(pickle) => Ok(Self::of(pickle, Vec::new(), false)),
                None => Err(refused),
            },
        }
    }

    /// `head` is `| buffers | length of the pickle | lengths of the buffers |`, 8 bytes each.
    fn of(pickle: Vec<u8>, buffers: Vec<Buffer>, is_name: bool) -> Self {
        let lengths = buffers.iter().map(|buffer| buffer.len());
        let head = [buffers.len(), pickle.len()]
            .into_iter()
            .chain(lengths)
            .flat_map(|n| (n as u64).to_ne_bytes())
            .collect();
        Self {
            head,
            pickle,
            buffers,
            is_name,
        }
    }

    /// The bytes, in pieces.
    pub(super) fn parts(&self) -> Vec<&[u8]> {
        let mut parts: Vec<&[u8]> = vec![&self.head, &self.pickle];
        parts.extend(self.buffers.iter().map(|buffer| &buffer[..]));
        parts
    }
}

/// The pickle of what the workers could not find by name, if that is possible and needed.
///
/// Asked once before the plain pickle is made, for functions of a `__main__` that workers cannot
/// import, and again with the error if pickling has failed.
fn by_value(function: &Bound<'_, PyAny>, refused: Option<&PyErr>) -> PyResult<Option<Vec<u8>>> {
    let py = function.py();
    if refused.is_none() {
        let module = function.getattr(intern!(py, "__module__"));
        let is_main = module.is_ok_and(|m| m.eq(intern!(py, "__main__")).unwrap_or(false));
        if !is_main {
            return Ok(None);
        }
    }
    let helper = py
        .import("phalanx.reduction")?
        .getattr("pickle_function_by_value")?;
    helper
        .call1((function, refused.map(|e| e.value(py))))?
        .extract()
}

/// Whether all there is to the object is a name in a module.
fn is_global(object: &Bound<'_, PyAny>) -> bool {
    object.is_instance_of::<PyFunction>()
        || object.is_instance_of::<PyType>()
        || is_builtin_function(object)
}

/// Whether it is a function of a module in C: a bound method of C has state.
fn is_builtin_function(function: &Bound<'_, PyAny>) -> bool {
    function.is_instance_of::<PyCFunction>()
        && function
            .getattr("__self__")
            .is_ok_and(|owner| owner.is_none() || owner.is_instance_of::<PyModule>())
}

/// The functions that a worker has loaded.
pub(super) struct Loaded {
    family: u64,
    /// The latest last.
    functions: VecDeque<(FunctionKey, Form)>,
    /// Their bytes as they were sent.
    bytes: usize,
}

/// What is kept of a function.
enum Form {
    /// The object, for all tasks, and the bytes that it was made of.
    Object(Py<PyAny>, usize),
    /// The pickle, since each task gets an object of its own: it may have state that a task changes.
    Pickle(Py<PyBytes>),
}

impl Loaded {
    pub(super) fn new(family: u64) -> Self {
        Self {
            family,
            functions: VecDeque::new(),
            bytes: 0,
        }
    }

    /// The function of this key, ready to be called.
    ///
    /// # Errors
    /// Whatever unpickling raises.
    #[inline]
    pub(super) fn get<'py>(
        &mut self,
        py: Python<'py>,
        key: FunctionKey,
    ) -> PyResult<Bound<'py, PyAny>> {
        match self.functions.back() {
            Some((last, Form::Object(function, _))) if *last == key => {
                Ok(function.bind(py).clone())
            }
            _ => self.get_slow(py, key),
        }
    }

    fn get_slow<'py>(&mut self, py: Python<'py>, key: FunctionKey) -> PyResult<Bound<'py, PyAny>> {
        let place = self.functions.iter().position(|(k, _)| *k == key);
        if let Some(entry) = place.and_then(|place| self.functions.remove(place)) {
            let function = match &entry.1 {
                Form::Object(function, _) => Ok(function.bind(py).clone()),
                Form::Pickle(pickle) => codec::unpickle(pickle.bind(py).as_any(), Vec::new()),
            };
            self.functions.push_back(entry);
            return function;
        }
        let (function, form) = load(py, self.family, key)?;
        self.bytes += form.bytes();
        while (self.functions.len() >= LOADED || self.bytes > LOADED_BYTES)
            && let Some((_, oldest)) = self.functions.pop_front()
        {
            self.bytes -= oldest.bytes();
        }
        self.functions.push_back((key, form));
        Ok(function)
    }
}

impl Form {
    fn bytes(&self) -> usize {
        match self {
            Self::Object(_, bytes) => *bytes,
            Self::Pickle(_) => 0,
        }
    }
}

fn load(py: Python<'_>, family: u64, key: FunctionKey) -> PyResult<(Bound<'_, PyAny>, Form)> {
    let damaged = || PyRuntimeError::new_err("a function in shared memory is damaged");
    let blob = Function::fetch(family, key).map_err(to_py)?;
    let bytes = blob.bytes().map_err(to_py)?;
    let word = |i: usize| {
        let word = bytes.get(8 * i..)?.first_chunk::<8>()?;
        usize::try_from(u64::from_ne_bytes(*word)).ok()
    };
    let (count, len) = word(0).zip(word(1)).ok_or_else(damaged)?;
    let mut at = count
        .checked_add(2)
        .and_then(|n| n.checked_mul(8))
        .ok_or_else(damaged)?;
    let mut piece = |len: usize| {
        let range = at..at.checked_add(len).ok_or_else(damaged)?;
        at = range.end;
        match bytes.get(range.clone()) {
            Some(piece) => Ok((range, piece)),
            None => Err(damaged()),
        }
    };
    let (range, pickle) = piece(len)?;
    let data = if bytes.len() <= SMALL {
        PyBytes::new(py, pickle).into_any()
    } else {
        // Not copied.
        Bound::new(py, FunctionBytes::new(blob.clone(), range))?.into_any()
    };
    // A copy for this process: the bytes in the arena are for all workers.
    let buffers = PyList::empty(py);
    for i in 0..count {
        let (_, buffer) = piece(word(2 + i).ok_or_else(damaged)?)?;
        buffers.append(PyByteArray::new(py, buffer))?;
    }
    let function = codec::unpickle_with(&data, &buffers)?;
    let form = match data.cast_into::<PyBytes>() {
        Ok(pickle) if !is_global(&function) => Form::Pickle(pickle.unbind()),
        _ => Form::Object(function.clone().unbind(), bytes.len()),
    };
    Ok((function, form))
}
