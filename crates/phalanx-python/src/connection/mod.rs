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
    #[cfg(not(feature = "abi3"))]
    {
        use crate::hot::{give, nothing, quicken};
        use front::Connection;
        // One way, small ints: 5.5 million a second before, 7.0 with these.
        let py = module.py();
        quicken!(
            py,
            Connection,
            c"send",
            |py, connection, arguments| match arguments {
                [value] => {
                    // SAFETY: an argument of the call, which the caller holds.
                    let value = unsafe { Borrowed::from_ptr(py, *value) };
                    connection.send_now(&value).map(|()| nothing())
                }
                _ => None,
            }
        )?;
        quicken!(
            py,
            Connection,
            c"recv",
            |py, connection, arguments| match arguments {
                [] => connection.recv_now(py).map(give),
                _ => None,
            }
        )?;
    }
    module.add_function(wrap_pyfunction!(front::join_by_pipe, module)?)?;
    module.add_function(wrap_pyfunction!(wait::wait, module)?)
}
