//! Methods that programs call millions of times a second.
//!
//! The trampoline that PyO3 makes of a method counts, in a thread-local, that the interpreter is
//! attached, parses arguments by a table and moves a result of eight words: for an uncontended lock
//! that is more than the lock itself. So these methods are tried first by a plain C function, which
//! does what can be done at once and without an error; for everything else it calls the method that
//! PyO3 made. A pair of `acquire` and `release` took 728 instructions before, 546 in the standard
//! library, and takes 401 so (with PyO3 0.30, CPython 3.13, the loop around them included); `put` and `get` of
//! a small int in a Queue went from 2064 to 1609.
//!
//! The stable ABI of Python 3.11 has no vectorcall: there the methods stay as PyO3 made them.

pub(crate) mod bound;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::{Acquire, Release};

use pyo3::prelude::*;
use pyo3::types::PyType;
use pyo3::{PyClass, ffi};

/// The type of `pyo3`'s own fast methods.
pub(crate) type Method = ffi::PyCFunctionFastWithKeywords;

/// What a fast attempt gives: a new reference, or null with an exception set, or `None`: ask the
/// ordinary method.
pub(crate) type Quick = Option<*mut ffi::PyObject>;

/// `True`, to the caller.
#[inline]
pub(crate) fn yes() -> *mut ffi::PyObject {
    // SAFETY: only called by methods, whose caller is attached; `True` is always there.
    unsafe { ffi::Py_NewRef(ffi::Py_True()) }
}

/// `None`, to the caller.
#[inline]
pub(crate) fn nothing() -> *mut ffi::PyObject {
    // SAFETY: as in `yes`.
    unsafe { ffi::Py_NewRef(ffi::Py_None()) }
}

/// The object, or the exception, to the caller.
#[inline]
pub(crate) fn give(result: PyResult<Bound<'_, PyAny>>) -> *mut ffi::PyObject {
    match result {
        Ok(object) => object.into_ptr(),
        Err(error) => raise(error),
    }
}

#[cold]
fn raise(error: PyErr) -> *mut ffi::PyObject {
    // SAFETY: as in `yes`.
    error.restore(unsafe { Python::assume_attached() });
    std::ptr::null_mut()
}

/// Whether an argument is one of the two booleans.
#[inline]
pub(crate) fn is_bool(argument: *mut ffi::PyObject) -> bool {
    // SAFETY: the addresses of two objects that are always there.
    unsafe { argument == ffi::Py_True() || argument == ffi::Py_False() }
}

/// Lets `fast` have the first try at each call of a method.
///
/// `quicken!(py, Class, c"name", |py, object, arguments| ...)`: the closure captures nothing, gets a
/// `&Class` and the positional arguments as borrowed pointers (there are no keywords), and gives a
/// [`Quick`]. What it does must be undone, or not begun, when it gives `None`.
macro_rules! quicken {
    ($py:expr, $class:ty, $name:literal, $fast:expr) => {{
        static ORDINARY: ::std::sync::atomic::AtomicPtr<::pyo3::ffi::PyObject> =
            ::std::sync::atomic::AtomicPtr::new(::std::ptr::null_mut());

        unsafe extern "C" fn method(
            slf: *mut ::pyo3::ffi::PyObject,
            arguments: *const *mut ::pyo3::ffi::PyObject,
            count: ::pyo3::ffi::Py_ssize_t,
            names: *mut ::pyo3::ffi::PyObject,
        ) -> *mut ::pyo3::ffi::PyObject {
            let fast = $crate::hot::attempt::<$class, _>($fast);
            // SAFETY: the descriptor that `replace` makes has checked `slf`, and passes on what the
            // interpreter gave.
            unsafe { $crate::hot::call(slf, arguments, count, names, &ORDINARY, fast) }
        }

        $crate::hot::replace(&$py.get_type::<$class>(), $name, method, &ORDINARY)
    }};
}
pub(crate) use quicken;

/// Tells the compiler what kind of closure it is, outside of the `unsafe` block.
#[inline]
pub(crate) fn attempt<T, F>(fast: F) -> F
where
    F: FnOnce(Python<'_>, &T, &[*mut ffi::PyObject]) -> Quick,
{
    fast
}

/// # Safety
/// `slf` is a `T`, the others are the arguments of a fast call with keywords, `ordinary` is what
/// [`replace`] put there, and the interpreter is attached.
#[inline]
pub(crate) unsafe fn call<T: PyClass<Frozen = pyo3::pyclass::boolean_struct::True> + Sync>(
    slf: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
    ordinary: &AtomicPtr<ffi::PyObject>,
    fast: impl FnOnce(Python<'_>, &T, &[*mut ffi::PyObject]) -> Quick,
) -> *mut ffi::PyObject {
    if names.is_null() {
        // SAFETY: the caller is attached, `slf` is a T, and the interpreter holds a reference to it
        // and gives `count` arguments.
        let (py, slf, arguments) = unsafe {
            let py = Python::assume_attached();
            (
                py,
                Borrowed::from_ptr(py, slf).cast_unchecked::<T>(),
                slice(arguments, count),
            )
        };
        // A panic is left to the ordinary method, which will meet with it again and report it.
        if let Ok(Some(done)) = catch_unwind(AssertUnwindSafe(|| fast(py, slf.get(), arguments))) {
            return done;
        }
    }
    // SAFETY: as promised by the caller.
    unsafe { call_ordinary(slf, arguments, count, names, ordinary) }
}

unsafe fn slice<'a>(
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
) -> &'a [*mut ffi::PyObject] {
    if count == 0 {
        return &[];
    }
    // SAFETY: the caller has got so many arguments.
    unsafe { std::slice::from_raw_parts(arguments, count.unsigned_abs()) }
}

#[cold]
unsafe fn call_ordinary(
    slf: *mut ffi::PyObject,
    arguments: *const *mut ffi::PyObject,
    count: ffi::Py_ssize_t,
    names: *mut ffi::PyObject,
    ordinary: &AtomicPtr<ffi::PyObject>,
) -> *mut ffi::PyObject {
    // SAFETY: names are a tuple; behind the positional arguments lies one for each name.
    let all = unsafe {
        let named = if names.is_null() {
            0
        } else {
            ffi::PyTuple_GET_SIZE(names)
        };
        slice(arguments, count + named)
    };
    let mut with_self = Vec::with_capacity(all.len() + 1);
    with_self.push(slf);
    with_self.extend_from_slice(all);
    // SYNC: pairs with the store in `replace`.
    let ordinary = ordinary.load(Acquire);
    // SAFETY: a method descriptor of the class of `slf`, called with `slf` and the caller's own
    // arguments.
    unsafe {
        ffi::PyObject_Vectorcall(
            ordinary,
            with_self.as_ptr(),
            count.unsigned_abs() + 1,
            names,
        )
    }
}

/// Puts `method` in the place of the class's own, which goes to `ordinary`.
pub(crate) fn replace(
    class: &Bound<'_, PyType>,
    name: &'static std::ffi::CStr,
    method: Method,
    ordinary: &AtomicPtr<ffi::PyObject>,
) -> PyResult<()> {
    let py = class.py();
    let attribute = name.to_string_lossy();
    let before = class.getattr(attribute.as_ref())?;
    let before_ptr = before.clone().into_ptr();
    // SAFETY: methods of PyO3's classes are method descriptors, and those keep their definition.
    let documentation = unsafe {
        assert!(
            ffi::Py_TYPE(before_ptr) == &raw mut ffi::PyMethodDescr_Type,
            "{attribute} is no method"
        );
        (*(*before_ptr.cast::<ffi::PyMethodDescrObject>()).d_method).ml_doc
    };
    let definition = Box::leak(Box::new(ffi::PyMethodDef {
        ml_name: name.as_ptr(),
        ml_meth: ffi::PyMethodDefPointer {
            PyCFunctionFastWithKeywords: method,
        },
        ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
        ml_doc: documentation,
    }));
    // SYNC: pairs with the load in `call_ordinary`. The reference is kept for ever.
    ordinary.store(before_ptr, Release);
    // SAFETY: the definition lives for ever; the result is a new reference or an error.
    let descriptor = unsafe {
        let made = ffi::PyDescr_NewMethod(class.as_type_ptr(), definition);
        Bound::from_owned_ptr_or_err(py, made)?
    };
    class.setattr(attribute.as_ref(), descriptor)
}
