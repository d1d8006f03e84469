//! Shared objects inside arguments, results and messages: they travel as handles.
//!
//! A handle does not hold its object. Between two living processes the sender keeps its own
//! reference until the receiver has one. For a child that is being started, one is counted at
//! once, in the child's name, so that the parent may drop its own; and descriptors go along.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::codec;
use crate::arena::{Handle, Shareable, Shared};
use crate::error::{Error, Kind, Result};
use crate::sync::MemberId;

/// What goes with a child that is being started, beside its argument's bytes.
struct Luggage {
    child: MemberId,
    descriptors: Vec<OwnedFd>,
}

thread_local! {
    /// Of the child whose argument this thread is writing.
    static LUGGAGE: RefCell<Option<Luggage>> = const { RefCell::new(None) };
}

/// The descriptors that this process was started with and has not taken yet, by number.
static INHERITED: Mutex<Option<HashMap<RawFd, OwnedFd>>> = Mutex::new(None);

/// Runs `write`, counts every shared object that it serializes for `child`, and returns the
/// descriptors that the child is to inherit, too.
pub(super) fn for_child<R>(
    child: MemberId,
    write: impl FnOnce() -> Result<R>,
) -> Result<(R, Vec<OwnedFd>)> {
    /// Also if `write` panics; and a child may be started while another's argument is written.
    struct Restore(Option<Luggage>);
    impl Drop for Restore {
        fn drop(&mut self) {
            LUGGAGE.set(self.0.take());
        }
    }
    let luggage = Luggage {
        child,
        descriptors: Vec::new(),
    };
    let _restore = Restore(LUGGAGE.replace(Some(luggage)));
    let written = write()?;
    let descriptors = LUGGAGE.take().map(|l| l.descriptors).unwrap_or_default();
    Ok((written, descriptors))
}

/// Writes the object's handle.
pub(super) fn serialize<T: Shareable, S: Serializer>(
    object: &Shared<T>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    let child = LUGGAGE.with_borrow(|luggage| luggage.as_ref().map(|l| l.child));
    if let Some(child) = child {
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

/// A copy of a descriptor for the child that is being started; its number there.
///
/// # Errors
/// `is_unsupported` if no child is being started; the system's.
pub(super) fn pack_descriptor(descriptor: BorrowedFd<'_>) -> Result<RawFd> {
    LUGGAGE.with_borrow_mut(|luggage| {
        let luggage = luggage.as_mut().ok_or_else(|| {
            Error::new(
                Kind::Unsupported,
                "an end of a pipe goes to a process in its argument only, when it is started",
            )
        })?;
        // Above what programs expect to be free.
        let copy = rustix::io::fcntl_dupfd_cloexec(descriptor, 100)
            .map_err(|e| Error::os("a descriptor cannot be copied for a child", e))?;
        let number = copy.as_raw_fd();
        luggage.descriptors.push(copy);
        Ok(number)
    })
}

/// In the child: takes over the descriptors that it was started with.
///
/// # Safety
/// Nobody else in this process owns them.
pub(super) unsafe fn unpack_descriptors(numbers: &[RawFd]) {
    let mut all = HashMap::new();
    for &number in numbers {
        // SAFETY: our parent says that it has made it for us, under this number; the caller, that
        // it is nobody else's.
        let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
        let _ = rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC);
        all.insert(number, descriptor);
    }
    *INHERITED.lock().unwrap_or_else(PoisonError::into_inner) = Some(all);
}

/// The descriptor that [`pack_descriptor`] gave that number.
///
/// # Errors
/// `is_invalid` if it is not there, or was taken before.
pub(super) fn take_descriptor(number: RawFd) -> Result<OwnedFd> {
    INHERITED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .as_mut()
        .and_then(|all| all.remove(&number))
        .ok_or_else(|| {
            Error::new(
                Kind::Invalid,
                "an end of a pipe came without its descriptor: it can be read once, by the process \
                 that it was handed to",
            )
        })
}

/// Drops the descriptors that nobody has taken.
pub(super) fn drop_descriptors() {
    *INHERITED.lock().unwrap_or_else(PoisonError::into_inner) = None;
}

/// Makes a type that holds one `Shared` travel as its handle.
macro_rules! travels_as_handle {
    ($name:ident $(<$param:ident $(: $bound:path)?>)?, $core:ty, |$this:ident| $shared:expr, $build:expr) => {
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
