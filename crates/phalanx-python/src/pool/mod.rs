//! `phalanx.pool`: the natives of both sides.
//!
//! * `serve`: the worker's loop. `wire`, `function`: what it exchanges with the parent.
//! * `hub`: the parent's jobs. `job`: a call and its results. `feed`: handing a call over, part by
//!   part, which `reader` reads. `exchange`: tasks out, results in. `lead`: the threads that wait. `supervise`: threads of
//!   the pool's own.
//! * `front`: the classes that Python's `Pool` and its results stand on.

mod exchange;
mod feed;
mod front;
mod function;
mod hub;
mod job;
mod lead;
mod reader;
mod result;
mod serve;
mod supervise;
mod wire;

use pyo3::prelude::*;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<front::PoolHub>()?;
    module.add_class::<result::PoolResult>()?;
    module.add_class::<result::PoolIterator>()?;
    module.add_class::<serve::PoolEnd>()?;
    module.add_class::<serve::PoolSeat>()?;
    module.add_class::<supervise::PoolErrand>()
}
