//! A value and the items of an array, tried first by plain C functions; see [`crate::hot`].
//!
//! The functions stand in the classes' slots, where subclasses inherit them. They do what goes
//! without waiting and without an error, for numbers under locks of ours; all else is left to what
//! PyO3 made, which begins anew.

use std::ffi::{c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::OnceLock;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

use super::scalars::integer;
use super::synchronized::{Guarded, Synchronized, SynchronizedArray, SynchronizedBase};
use crate::hot::{Quick, bound, give, quicken, yes};

// What PyO3 made.
static GET_LOCK: OnceLock<ffi::PyCFunction> = OnceLock::new();
static GET_VALUE: OnceLock<ffi::getter> = OnceLock::new();
static SET_VALUE: OnceLock<ffi::setter> = OnceLock::new();
static GET_ITEM: OnceLock<ffi::binaryfunc> = OnceLock::new();
static SET_ITEM: OnceLock<ffi::objobjargproc> = OnceLock::new();

type Object = *mut ffi::PyObject;

impl Guarded {
    #[inline]
    fn read_now(&self, py: Python<'_>, place: Option<usize>) -> Quick {
        let value = self.scalars.as_ref()?.read_now(py, place?, &self.lock)?;
        Some(give(value))
    }

    #[inline]
    fn write_now(&self, place: Option<usize>, value: &Bound<'_, PyAny>) -> Option<c_int> {
        let written = self
            .scalars
            .as_ref()?
            .write_now(place?, value, &self.lock)?;
        Some(match written {
            Ok(()) => 0,
            Err(error) => {
                error.restore(value.py());
                -1
            }
        })
    }

    /// The place of an index that is an int and inside.
    #[inline]
    fn place(&self, index: &Bound<'_, PyAny>) -> Option<usize> {
        self.scalars.as_ref()?.place(integer(index)?)
    }
}

/// Runs what needs no waiting; `ordinary`, if it did nothing. A panic is left to that, too, which
/// will meet with it again and report it.
///
/// # Safety
/// `slf` is a `SynchronizedBase`, and the interpreter is attached.
#[inline]
unsafe fn attempt<T>(
    slf: Object,
    fast: impl FnOnce(Python<'_>, &Guarded) -> Option<T>,
    ordinary: impl FnOnce() -> T,
) -> T {
    // SAFETY: as the caller says; the interpreter holds a reference to `slf` during the call.
    let (py, slf) = unsafe {
        let py = Python::assume_attached();
        let slf = Borrowed::from_ptr(py, slf);
        (py, slf.cast_unchecked::<SynchronizedBase>())
    };
    let fast = || fast(py, slf.get().guarded.get()?);
    match catch_unwind(AssertUnwindSafe(fast)) {
        Ok(Some(done)) => done,
        _ => ordinary(),
    }
}

/// An argument.
///
/// # Safety
/// The interpreter holds a reference to the object during the call.
#[inline]
unsafe fn argument<'a, 'py>(py: Python<'py>, object: &'a Object) -> &'a Bound<'py, PyAny> {
    // SAFETY: as the caller says.
    unsafe { Bound::ref_from_ptr(py, object) }
}

// The functions below are called by the interpreter only, through descriptors and slots of the
// classes that they were put into, which vouch for `slf`. Arguments are never null, but for the
// value that a deletion does not have.

unsafe extern "C" fn get_lock(slf: Object, none: Object) -> Object {
    // SAFETY: as above; what PyO3 made is there before this function can be called.
    unsafe {
        attempt(
            slf,
            |py, guarded| Some(guarded.lock.object(py).into_ptr()),
            || made(&GET_LOCK)(slf, none),
        )
    }
}

unsafe extern "C" fn get_value(slf: Object, closure: *mut c_void) -> Object {
    // SAFETY: as above.
    unsafe {
        attempt(
            slf,
            |py, guarded| guarded.read_now(py, Some(0)),
            || made(&GET_VALUE)(slf, closure),
        )
    }
}

unsafe extern "C" fn set_value(slf: Object, value: Object, closure: *mut c_void) -> c_int {
    // SAFETY: as above.
    unsafe {
        attempt(
            slf,
            |py, guarded| {
                if value.is_null() {
                    return None;
                }
                guarded.write_now(Some(0), argument(py, &value))
            },
            || made(&SET_VALUE)(slf, value, closure),
        )
    }
}

unsafe extern "C" fn get_item(slf: Object, index: Object) -> Object {
    // SAFETY: as above.
    unsafe {
        attempt(
            slf,
            |py, guarded| guarded.read_now(py, guarded.place(argument(py, &index))),
            || made(&GET_ITEM)(slf, index),
        )
    }
}

unsafe extern "C" fn set_item(slf: Object, index: Object, value: Object) -> c_int {
    // SAFETY: as above.
    unsafe {
        attempt(
            slf,
            |py, guarded| {
                if value.is_null() {
                    return None;
                }
                let place = guarded.place(argument(py, &index));
                guarded.write_now(place, argument(py, &value))
            },
            || made(&SET_ITEM)(slf, index, value),
        )
    }
}

#[cold]
fn made<F: Copy>(function: &OnceLock<F>) -> F {
    *function.get().expect("set before the classes are used")
}

/// Puts `new` into a place, and what was there into `old`.
fn put<F>(place: &mut Option<F>, old: &OnceLock<F>, new: F) {
    let before = place.replace(new).expect("PyO3 has made one");
    assert!(old.set(before).is_ok(), "the classes are made once");
}

pub(super) fn register(py: Python<'_>) -> PyResult<()> {
    let descriptor = |class: &Bound<'_, PyType>, name: &str, kind: *mut ffi::PyTypeObject| {
        let descriptor = class.getattr("__dict__")?.get_item(name)?;
        assert!(
            descriptor.get_type_ptr() == kind,
            "{name} is of another kind"
        );
        // The class keeps it.
        PyResult::Ok(descriptor.as_ptr())
    };
    let base = py.get_type::<SynchronizedBase>();
    let value = py.get_type::<Synchronized>();
    let array = py.get_type::<SynchronizedArray>();
    let kind = &raw mut ffi::PyMethodDescr_Type;
    let lock = descriptor(&base, "get_lock", kind)?.cast::<ffi::PyMethodDescrObject>();
    let kind = &raw mut ffi::PyGetSetDescr_Type;
    let value = descriptor(&value, "value", kind)?.cast::<ffi::PyGetSetDescrObject>();
    let items = ["__getitem__", "__setitem__", "__delitem__"]
        .map(|name| descriptor(&array, name, &raw mut ffi::PyWrapperDescr_Type));
    // SAFETY: the descriptors are of the kinds that were asked for, and nobody uses the classes
    // yet. PyO3 has made their definitions on the heap, for ever. Subclasses take a slot's function
    // over from the descriptor if it is the one in the slot.
    unsafe {
        let definition = &mut (*(*lock).d_method);
        assert!(
            definition.ml_flags == ffi::METH_NOARGS,
            "get_lock has no arguments"
        );
        let mut method = Some(definition.ml_meth.PyCFunction);
        put(&mut method, &GET_LOCK, get_lock);
        definition.ml_meth.PyCFunction = get_lock;

        let definition = &mut (*(*value).d_getset);
        put(&mut definition.get, &GET_VALUE, get_value);
        put(&mut definition.set, &SET_VALUE, set_value);

        let slots = &mut (*(*array.as_type_ptr()).tp_as_mapping);
        put(&mut slots.mp_subscript, &GET_ITEM, get_item);
        put(&mut slots.mp_ass_subscript, &SET_ITEM, set_item);
        let functions = [get_item as *mut c_void, set_item as _, set_item as _];
        for (descriptor, function) in items.into_iter().zip(functions) {
            (*descriptor?.cast::<ffi::PyWrapperDescrObject>()).d_wrapped = function;
        }
    }

    // `with value:` and `with array:`
    quicken!(py, SynchronizedBase, c"__enter__", |_, it, arguments| {
        let lock = &it.guarded.get()?.lock;
        (arguments.is_empty() && lock.enter_now()).then(yes)
    })?;
    quicken!(py, SynchronizedBase, c"__exit__", |py, it, arguments| {
        if arguments.len() > 3 {
            return None;
        }
        let left = it.guarded.get()?.lock.release(py);
        Some(give(left.map(|()| py.None().into_bound(py))))
    })?;
    bound::replace(&base, "__enter__")?;
    bound::replace(&base, "__exit__")
}
