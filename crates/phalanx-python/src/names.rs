//! The keys of dicts that came lately.
//!
//! Messages repeat their keys. To make the str anew each time, and to let the dict hash it, took a
//! quarter of a small dict's way through a queue. So the latest short keys are kept, as JSON parsers
//! do within one document: with what else was
//! done at the time, a dict of three went from 6738 instructions to 5301.

use pyo3::prelude::*;
use pyo3::types::PyString;
use std::cell::RefCell;

/// Longer keys are not kept.
const LONGEST: usize = 32;
/// How many are kept, one for each value of a small hash.
const PLACES: usize = 256;

thread_local! {
    /// Made with the first key.
    static KEPT: RefCell<Vec<Option<Py<PyString>>>> = const { RefCell::new(Vec::new()) };
}

/// The str of UTF-8 bytes, perhaps one that was made before.
pub(crate) fn get<'py>(py: Python<'py>, bytes: &[u8]) -> PyResult<Bound<'py, PyAny>> {
    if bytes.len() > LONGEST {
        return crate::codec::text(py, bytes);
    }
    KEPT.with(|kept| {
        let Ok(mut kept) = kept.try_borrow_mut() else {
            return crate::codec::text(py, bytes);
        };
        if kept.is_empty() {
            kept.resize_with(PLACES, || None);
        }
        let place = &mut kept[hash(bytes) % PLACES];
        if let Some(name) = place
            && name
                .bind(py)
                .to_str()
                .is_ok_and(|name| name.as_bytes() == bytes)
        {
            return Ok(name.bind(py).clone().into_any());
        }
        let made = crate::codec::text(py, bytes)?;
        *place = made.clone().cast_into::<PyString>().ok().map(Bound::unbind);
        Ok(made)
    })
}

/// FNV-1a.
fn hash(bytes: &[u8]) -> usize {
    let step = |hash: u32, byte: &u8| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
    let hash = bytes.iter().fold(0x811c_9dc5, step);
    (hash ^ (hash >> 16)) as usize
}
