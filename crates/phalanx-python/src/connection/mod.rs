//! `phalanx.connection`: connections, messages over a descriptor.
//!
//! * `descriptor`: descriptors and system calls. `channel`: what carries the messages. `payload`:
//!   messages as objects and bytes.
//! * `front`: the class that Python's Connection stands on. `wait`: waiting for several at once.

mod channel;
mod descriptor;
mod front;
mod payload;
mod wait;

use pyo3::prelude::*;

pub(crate) fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<front::Connection>()?;
    module.add_function(wrap_pyfunction!(front::join_by_pipe, module)?)?;
    module.add_function(wrap_pyfunction!(wait::wait, module)?)
}
