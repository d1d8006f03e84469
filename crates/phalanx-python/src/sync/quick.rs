//! What locks and semaphores do at once when they are free; see [`crate::hot`].

use phalanx::arena::{Shareable, Shared};
use pyo3::prelude::*;

use super::semaphore::{BoundedSemaphore, Semaphore};
use super::{Lock, Object, RLock, home};
use crate::hot::{bound, is_bool, nothing, quicken, yes};

/// What is acquired and released.
pub(super) trait Quick {
    /// Acquires it if that needs no waiting, no system call and no warning; says whether it did.
    fn enter_now(&self) -> bool;

    /// Releases it; false if that is an error, of which nothing is said here.
    fn leave_now(&self) -> bool;
}

impl<T: Shareable> Object<T> {
    #[inline]
    fn now(&self) -> Option<&Shared<T>> {
        self.shared.get()
    }
}

impl Quick for Lock {
    #[inline]
    fn enter_now(&self) -> bool {
        let lock = self.object.now();
        lock.is_some_and(|lock| lock.try_acquire_free(home(lock)))
    }

    #[inline]
    fn leave_now(&self) -> bool {
        let lock = self.object.now();
        lock.is_some_and(|lock| lock.release().is_ok())
    }
}

impl Quick for RLock {
    #[inline]
    fn enter_now(&self) -> bool {
        let lock = self.object.now();
        lock.is_some_and(|lock| lock.try_acquire_free(home(lock)))
    }

    #[inline]
    fn leave_now(&self) -> bool {
        let lock = self.object.now();
        lock.is_some_and(|lock| lock.release(home(lock)).is_ok())
    }
}

impl Quick for Semaphore {
    #[inline]
    fn enter_now(&self) -> bool {
        let semaphore = self.object.now();
        semaphore.is_some_and(|semaphore| semaphore.try_acquire())
    }

    #[inline]
    fn leave_now(&self) -> bool {
        let semaphore = self.object.now();
        semaphore.is_some_and(|semaphore| semaphore.release().is_ok())
    }
}

impl Quick for BoundedSemaphore {
    #[inline]
    fn enter_now(&self) -> bool {
        let semaphore = self.object.now();
        semaphore.is_some_and(|semaphore| semaphore.try_acquire_free(home(semaphore)) == Some(true))
    }

    #[inline]
    fn leave_now(&self) -> bool {
        let semaphore = self.object.now();
        semaphore
            .is_some_and(|semaphore| matches!(semaphore.try_release(home(semaphore)), Some(Ok(()))))
    }
}

pub(super) fn register(py: Python<'_>) -> PyResult<()> {
    macro_rules! quicken_all {
        ($($class:ty),*) => {$(
            // `block` makes no difference to what is free.
            quicken!(py, $class, c"acquire", |_, it, arguments| {
                let simple = match arguments {
                    [] => true,
                    [block] => is_bool(*block),
                    _ => false,
                };
                (simple && it.enter_now()).then(yes)
            })?;
            quicken!(py, $class, c"release", |_, it, arguments| {
                (arguments.is_empty() && it.leave_now()).then(nothing)
            })?;
            quicken!(py, $class, c"__enter__", |_, it, arguments| {
                (arguments.is_empty() && it.enter_now()).then(yes)
            })?;
            quicken!(py, $class, c"__exit__", |_, it, arguments| {
                (arguments.len() <= 3 && it.leave_now()).then(nothing)
            })?;
            for name in ["__enter__", "__exit__"] {
                bound::replace(&py.get_type::<$class>(), name)?;
            }
        )*};
    }
    quicken_all!(Lock, RLock, Semaphore, BoundedSemaphore);
    Ok(())
}
