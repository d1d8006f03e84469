//! The extension module `phalanx._phalanx`: conversion, the GIL and signals; nothing else.

#![cfg_attr(not(test), warn(clippy::disallowed_methods, clippy::disallowed_types))]

mod arena;
mod batch;
mod buffer;
mod child;
mod codec;
mod connection;
mod error;
#[cfg(not(feature = "abi3"))]
mod hot;
mod interrupt;
mod large;
mod names;
mod pool;
mod process;
mod queue;
mod shared;
mod sync;
mod turn;
mod wait;

use pyo3::prelude::*;

/// The native half of the Python package `phalanx`.
#[pymodule]
fn _phalanx(module: &Bound<'_, PyModule>) -> PyResult<()> {
    arena::register(module)?;
    codec::register(module)?;
    connection::register(module)?;
    process::register(module)?;
    interrupt::register(module)?;
    child::register(module)?;
    shared::register(module)?;
    sync::register(module)?;
    queue::register(module)?;
    pool::register(module)?;
    Ok(())
}
