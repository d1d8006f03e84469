//! What locks and semaphores have in common as Python objects.

use pyo3::prelude::*;

use super::Patience;

/// What is acquired and released.
pub(super) trait Holding {
    /// Acquires it if that needs no waiting and no warning.
    fn try_free(&self) -> PyResult<bool>;

    /// Acquires it, with all that may belong to that.
    fn acquire_slow(&self, py: Python<'_>, patience: Patience) -> PyResult<bool>;

    /// Releases it.
    fn let_go(&self, py: Python<'_>) -> PyResult<()>;

    /// How often it could be acquired now.
    fn value(&self) -> PyResult<u32>;

    /// As `with` does.
    #[inline]
    fn enter(&self, py: Python<'_>) -> PyResult<bool> {
        if self.try_free()? {
            return Ok(true);
        }
        self.acquire_slow(py, Patience::Until(None))
    }
}

/// The Python methods of a class that is [`Holding`] and has an `object`: those that all have, here,
/// and its own. (There may be only one block of them.)
///
/// The texts are the documentation of `acquire` and `release`.
macro_rules! holding_methods {
    (
        $class:ident,
        acquire: { $(#[$acquire:meta])* },
        release: { $(#[$release:meta])* },
        $($own:tt)*
    ) => {
        #[pymethods]
        impl $class {
            $($own)*

            #[getter]
            fn _is_fork_ctx(&self) -> bool {
                self.object.is_of_fork_context()
            }

            fn _attach(&self, py: Python<'_>, family: u64, handle: u64) -> PyResult<()> {
                self.object.attach(py, family, handle)
            }

            fn _handle_for_pickle(
                &self,
                py: Python<'_>,
            ) -> PyResult<$crate::arena::HandleForPickle> {
                self.object.handle_for_pickle(py)
            }

            $(#[$acquire])*
            #[pyo3(
                signature = (block=None, timeout=None),
                text_signature = "($self, block=True, timeout=None)"
            )]
            fn acquire(
                &self,
                py: Python<'_>,
                block: Option<&Bound<'_, PyAny>>,
                timeout: Option<&Bound<'_, PyAny>>,
            ) -> PyResult<bool> {
                if timeout.is_none() && self.try_free()? {
                    return Ok(true);
                }
                self.acquire_slow(py, $crate::sync::patience(block, timeout)?)
            }

            $(#[$release])*
            fn release(&self, py: Python<'_>) -> PyResult<()> {
                self.let_go(py)
            }

            fn __enter__(&self, py: Python<'_>) -> PyResult<bool> {
                self.enter(py)
            }

            #[pyo3(signature = (_type=None, _value=None, _traceback=None))]
            fn __exit__(
                &self,
                py: Python<'_>,
                _type: Option<&Bound<'_, PyAny>>,
                _value: Option<&Bound<'_, PyAny>>,
                _traceback: Option<&Bound<'_, PyAny>>,
            ) -> PyResult<()> {
                self.let_go(py)
            }

            /// Whether an acquire would have to wait now.
            fn locked(&self) -> PyResult<bool> {
                Ok(self.value()? == 0)
            }

            fn _get_value(&self) -> PyResult<u32> {
                self.value()
            }

            fn _is_zero(&self) -> PyResult<bool> {
                self.locked()
            }

            fn _handle(&self) -> PyResult<u64> {
                Ok(self.object.get()?.handle().bits())
            }
        }
    };
}
pub(super) use holding_methods;
