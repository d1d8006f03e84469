//! Functions as work for another process of the same program.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{codec, handle};
use crate::arena::Arena;
use crate::os::program::{self, Function};

/// The function that a child is started to run: reads the argument, calls `F`, writes the result.
pub(super) fn of_process<A, R, F>(_: F) -> Function
where
    A: DeserializeOwned,
    R: Serialize,
    F: Fn(A) -> R + Copy + 'static,
{
    const { assert_captures_nothing::<F>() };
    |bytes| {
        let argument = codec::decode(bytes)?;
        if let Some(arena) = Arena::current() {
            // Counted for this process by its parent, and not among what it has read.
            arena.drop_unclaimed();
        }
        handle::drop_descriptors();
        // SAFETY: this function is named only where there is an `F`: see the parameter.
        let function = unsafe { program::conjure::<F>() };
        codec::encode(&function(argument))
    }
}

/// The function of a pool's task: reads the argument, calls `F`, writes the result.
pub(super) fn of_task<A, R, F>(_: F) -> Function
where
    A: DeserializeOwned,
    R: Serialize,
    F: Fn(A) -> R + Copy + 'static,
{
    const { assert_captures_nothing::<F>() };
    |bytes| {
        // SAFETY: as in `of_process`.
        let function = unsafe { program::conjure::<F>() };
        codec::encode(&function(codec::decode(bytes)?))
    }
}

/// Stops the build if an `F` holds something that another process would not have.
const fn assert_captures_nothing<F>() {
    assert!(
        size_of::<F>() == 0,
        "work for another process must be a function or a closure that captures nothing: \
         hand over what it needs as its argument"
    );
}
