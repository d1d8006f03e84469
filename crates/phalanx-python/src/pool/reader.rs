//! Reading the iterable of a call part by part.

use pyo3::prelude::*;
use pyo3::types::{PyIterator, PyRange, PySlice, PyTuple};

/// A range is sent as a range, not as its numbers, from so many a part on: to pickle it costs what
/// some 60 numbers cost.
const WORTH_A_RANGE: usize = 64;

/// What a call's items are read from.
///
/// A range is cut into ranges: for a million numbers, `map` takes 81 ms instead of 152. To cut lists
/// into slices gained nothing (94 ms, item by item 92).
pub(super) enum Reader {
    Iterator(Py<PyIterator>),
    Range(Py<PyRange>),
}

impl Reader {
    /// For parts of `chunk` items.
    ///
    /// # Errors
    /// What `iter(iterable)` raises.
    pub(super) fn new(iterable: &Bound<'_, PyAny>, chunk: usize) -> PyResult<Self> {
        if chunk >= WORTH_A_RANGE
            && let Ok(range) = iterable.cast_exact::<PyRange>()
        {
            return Ok(Self::Range(range.clone().unbind()));
        }
        Ok(Self::Iterator(iterable.try_iter()?.unbind()))
    }

    /// The part at place `index` as one body, a tuple or a range of `chunk` items; a single item is
    /// a body by itself. `None` at the end. The parts have to be read in order.
    ///
    /// # Errors
    /// Whatever the iterable raises.
    pub(super) fn read<'py>(
        &self,
        py: Python<'py>,
        index: u64,
        chunk: usize,
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let body = match self {
            Self::Iterator(iterator) => {
                let mut iterator = iterator.bind(py).clone();
                if chunk == 1 {
                    return iterator.next().transpose();
                }
                let items = iterator.take(chunk).collect::<PyResult<Vec<_>>>()?;
                PyTuple::new(py, items)?.into_any()
            }
            Self::Range(range) => {
                let from = (index as isize).saturating_mul(chunk as isize);
                let to = from.saturating_add(chunk as isize);
                let slice = PySlice::new(py, from, to, 1);
                range.bind(py).get_item(slice)?
            }
        };
        Ok(body.is_truthy()?.then_some(body))
    }
}
