//! Many items of a queue at once.
//!
//! Small items are encoded one behind the other and put as one run: one lock, one copy, one
//! publication, one look for sleepers; and as many are taken before the first is decoded. To make a
//! letter of each and put those under one lock gained nothing (1440 -> 1413 instructions for a small
//! int, put and taken in batches of 100); a run takes 761.

use std::time::Instant;

use phalanx::channel::{Patience, Queue, Run};
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::codec;
use crate::error::to_py;
use crate::wait::blocking;

/// Encoded items that are not put yet.
#[derive(Default)]
pub(crate) struct Batch(Run);

impl Batch {
    /// Adds an item if it is small.
    #[inline]
    pub(crate) fn add(&mut self, bytes: &[u8], tag: u16) -> bool {
        bytes.len() <= Run::SMALL && self.0.add(bytes, tag)
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full()
    }

    /// Puts all of them and is empty then, also after an error: the items before have been put.
    pub(crate) fn put(
        &mut self,
        py: Python<'_>,
        queue: &Queue,
        deadline: Option<Instant>,
    ) -> PyResult<phalanx::Result<()>> {
        let run = &mut self.0;
        let done = match queue.try_put_run(run, Patience::Now) {
            Ok(_) if run.is_empty() => Ok(Ok(())),
            Ok(_) => blocking(py, || queue.put_run(run, deadline)),
            Err(error) => Ok(Err(error)),
        };
        self.0.clear();
        done
    }
}

/// Appends up to `most` items that are in the queue now to `list`; says whether there were any. Only
/// such as need no unpickling: that may raise, and would take those behind it along.
///
/// # Errors
/// MemoryError; RuntimeError if the shared memory is damaged.
pub(crate) fn take(queue: &Queue, list: &Bound<'_, PyList>, most: usize) -> PyResult<bool> {
    let mut run = Run::new();
    let plain = |tag| tag != codec::tag::PICKLE;
    let taken = queue.try_get_run(&mut run, most.min(Run::MOST), Run::MOST_BYTES, plain);
    let any = taken.map_err(to_py)? > 0;
    for (tag, bytes) in run.iter() {
        list.append(codec::decode_plain(list.py(), tag, bytes)?)?;
    }
    Ok(any)
}
