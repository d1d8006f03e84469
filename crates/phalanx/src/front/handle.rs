//! Shared objects inside arguments, results and messages: they travel as handles.
//!
//! A handle does not hold its object. Between two living processes the sender keeps its own
//! reference until the receiver has one. For a child that is being started, one is counted at
//! once, in the child's name, so that the parent may drop its own: [`for_child`].

use std::cell::Cell;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::codec;
use crate::arena::{Handle, Shareable, Shared};
use crate::error::Result;
use crate::sync::MemberId;

thread_local! {
    /// The child whose argument this thread is writing.
    static CHILD: Cell<Option<MemberId>> = const { Cell::new(None) };
}

/// Runs `write`, and counts every shared object that it serializes for `child`.
pub(super) fn for_child<R>(child: MemberId, write: impl FnOnce() -> R) -> R {
    struct Restore(Option<MemberId>);
    impl Drop for Restore {
        fn drop(&mut self) {
            CHILD.set(self.0);
        }
    }
    let _restore = Restore(CHILD.replace(Some(child)));
    write()
}

/// Writes the object's handle.
pub(super) fn serialize<T: Shareable, S: Serializer>(
    object: &Shared<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if let Some(child) = CHILD.get() {
        object
            .book_for(child)
            .map_err(|e| serde::ser::Error::custom(codec::because(e)))?;
    }
    (object.family(), object.handle().bits()).serialize(serializer)
}

/// Reads a handle and takes a reference to its object.
pub(super) fn deserialize<'de, T: Shareable, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Shared<T>, D::Error> {
    let (family, bits) = <(u64, u64)>::deserialize(deserializer)?;
    Shared::attach(family, Handle::from_bits(bits))
        .map_err(|e| serde::de::Error::custom(codec::because(e)))
}

/// Makes a type that holds one `Shared` travel as its handle.
macro_rules! travels_as_handle {
    ($name:ident $(<$param:ident $(: $bound:ident)?>)?, $core:ty, |$this:ident| $shared:expr, $build:expr) => {
        impl $(<$param $(: $bound)?>)? serde::Serialize for $name $(<$param>)? {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
                let $this = self;
                $crate::front::handle::serialize($shared, serializer)
            }
        }

        impl<'de $(, $param $(: $bound)?)?> serde::Deserialize<'de> for $name $(<$param>)? {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
                let build: fn($crate::arena::Shared<$core>) -> Self = $build;
                $crate::front::handle::deserialize(deserializer).map(build)
            }
        }
    };
}
pub(super) use travels_as_handle;
