//! What `with` calls.
//!
//! Up to Python 3.13 `with` asks the descriptors of `__enter__` and `__exit__` for bound methods,
//! calls each once and drops it. A bound method of C is an object that the garbage collector has to
//! know; to make and to free two costs more than acquiring and releasing a lock. So these methods
//! get a descriptor whose bound methods the collector does not know, and which are used again.
//! `with` a Lock took 1607 instructions before, and takes 927 so; a Value's `+= 1` under its lock
//! 3286 and 2566.
//!
//! A program sees one only as `lock.__enter__`, where it answers like the bound method that it
//! stands for. (Kept as an attribute of its own lock, it would keep that for ever.)

use std::ffi::{CStr, c_int, c_uint, c_ulong, c_void};
use std::mem::offset_of;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::sync::atomic::AtomicPtr;
use std::sync::atomic::Ordering::Relaxed;

use pyo3::exceptions::PyMemoryError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::PyType;

type Object = *mut ffi::PyObject;

/// Stands in a class for `method`, a method descriptor of C, and is there for ever.
#[repr(C)]
struct Descriptor {
    base: ffi::PyObject,
    method: Object,
}

/// `method` of `slf`, for one call. `next` counts while it is free.
#[repr(C)]
struct BoundMethod {
    base: ffi::PyObject,
    call: ffi::vectorcallfunc,
    slf: Object,
    method: Object,
    next: *mut BoundMethod,
}

/// The first free one of a list. The GIL guards it.
static FREE: AtomicPtr<BoundMethod> = AtomicPtr::new(null_mut());

/// Lets `with` call the method of C `name` of the class for less.
pub(crate) fn replace(class: &Bound<'_, PyType>, name: &str) -> PyResult<()> {
    let py = class.py();
    if py.version_info() >= (3, 14) {
        return Ok(()); // its `with` makes no bound methods
    }
    let method = class.getattr("__dict__")?.get_item(name)?;
    let kind = &raw mut ffi::PyMethodDescr_Type;
    assert!(method.get_type_ptr() == kind, "{name} is no method of C");
    let types = types(py)?;
    // SAFETY: memory for a descriptor, which is filled; it and the method stay for ever.
    let descriptor = unsafe {
        let made = ffi::PyObject_Malloc(size_of::<Descriptor>()).cast::<Descriptor>();
        if made.is_null() {
            return Err(PyMemoryError::new_err(()));
        }
        ffi::PyObject_Init(made.cast(), types.descriptor.bind(py).as_type_ptr());
        (*made).method = method.into_ptr();
        Bound::from_owned_ptr(py, made.cast::<ffi::PyObject>())
    };
    class.setattr(name, descriptor.into_any())
}

/// The types of the two.
struct Types {
    descriptor: Py<PyType>,
    bound: Py<PyType>,
}

static TYPES: OnceLock<Types> = OnceLock::new();

fn types(py: Python<'_>) -> PyResult<&'static Types> {
    if let Some(types) = TYPES.get() {
        return Ok(types);
    }
    let descriptor = new_type::<Descriptor>(
        py,
        c"phalanx._phalanx._Method",
        0,
        &mut [
            slot(ffi::Py_tp_descr_get, get as *mut c_void),
            slot(ffi::Py_tp_getattro, descriptor_attribute as *mut c_void),
            slot(ffi::Py_tp_call, descriptor_call as *mut c_void),
            slot(0, null_mut()),
        ],
    )?;
    let mut members = [
        ffi::PyMemberDef {
            name: c"__vectorcalloffset__".as_ptr(),
            type_code: ffi::Py_T_PYSSIZET,
            offset: offset_of!(BoundMethod, call).cast_signed(),
            flags: ffi::Py_READONLY,
            doc: std::ptr::null(),
        },
        ffi::PyMemberDef::default(),
    ];
    let bound = new_type::<BoundMethod>(
        py,
        c"phalanx._phalanx._BoundMethod",
        ffi::Py_TPFLAGS_HAVE_VECTORCALL,
        &mut [
            slot(ffi::Py_tp_members, members.as_mut_ptr().cast()),
            slot(ffi::Py_tp_call, ffi::PyVectorcall_Call as *mut c_void),
            slot(ffi::Py_tp_getattro, bound_attribute as *mut c_void),
            slot(ffi::Py_tp_repr, bound_repr as *mut c_void),
            slot(ffi::Py_tp_dealloc, drop_bound as *mut c_void),
            slot(0, null_mut()),
        ],
    )?;
    Ok(TYPES.get_or_init(|| Types { descriptor, bound }))
}

fn slot(slot: c_int, pfunc: *mut c_void) -> ffi::PyType_Slot {
    ffi::PyType_Slot { slot, pfunc }
}

fn new_type<T>(
    py: Python<'_>,
    name: &'static CStr,
    flags: c_ulong,
    slots: &mut [ffi::PyType_Slot],
) -> PyResult<Py<PyType>> {
    let flags = ffi::Py_TPFLAGS_DEFAULT | ffi::Py_TPFLAGS_DISALLOW_INSTANTIATION | flags;
    let mut spec = ffi::PyType_Spec {
        name: name.as_ptr(),
        basicsize: c_int::try_from(size_of::<T>())?,
        itemsize: 0,
        flags: c_uint::try_from(flags)?,
        slots: slots.as_mut_ptr(),
    };
    // SAFETY: the slots end with a zero and have functions of their types; names live for ever,
    // and everything else is copied.
    let made = unsafe { Bound::from_owned_ptr_or_err(py, ffi::PyType_FromSpec(&raw mut spec))? };
    Ok(made.cast_into::<PyType>()?.unbind())
}

// The functions below are called by the interpreter alone, with the GIL held and with objects of
// the types that they were put into.

/// The method of `slf`; of the class, the method itself.
unsafe extern "C" fn get(descriptor: Object, slf: Object, class: Object) -> Object {
    // SAFETY: as above; methods know what they are methods of.
    unsafe {
        let method = (*descriptor.cast::<Descriptor>()).method;
        let of = (*method.cast::<ffi::PyMethodDescrObject>()).d_common.d_type;
        if slf.is_null() || ffi::PyObject_TypeCheck(slf, of) == 0 {
            return real(method, slf, class);
        }
        let free = FREE.load(Relaxed);
        let made = if free.is_null() {
            let made = ffi::PyObject_Malloc(size_of::<BoundMethod>()).cast::<BoundMethod>();
            if made.is_null() {
                return ffi::PyErr_NoMemory();
            }
            made
        } else {
            FREE.store((*free).next, Relaxed);
            free
        };
        let Some(types) = TYPES.get() else {
            unreachable!("a descriptor has its type")
        };
        ffi::PyObject_Init(made.cast(), types.bound.as_ptr().cast());
        (*made).call = call;
        (*made).slf = ffi::Py_NewRef(slf);
        (*made).method = method;
        made.cast()
    }
}

/// What the interpreter's own descriptor gives.
unsafe fn real(method: Object, slf: Object, class: Object) -> Object {
    // SAFETY: a method descriptor, and arguments that it knows how to check.
    unsafe {
        match (*ffi::Py_TYPE(method)).tp_descr_get {
            Some(get) => get(method, slf, class),
            None => unreachable!("methods are descriptors"),
        }
    }
}

unsafe extern "C" fn call(
    bound: Object,
    arguments: *const Object,
    count: usize,
    names: Object,
) -> Object {
    // SAFETY: `get` has checked that the method is one of `slf`, and `replace` that it is one of
    // those that `hot` makes.
    unsafe {
        let bound = &*bound.cast::<BoundMethod>();
        let definition = (*bound.method.cast::<ffi::PyMethodDescrObject>()).d_method;
        let function = (*definition).ml_meth.PyCFunctionFastWithKeywords;
        function(bound.slf, arguments, ffi::PyVectorcall_NARGS(count), names)
    }
}

unsafe extern "C" fn drop_bound(bound: Object) {
    // SAFETY: as above; nobody refers to the object any more. References are dropped last, since
    // that may run anything.
    unsafe {
        let kind = ffi::Py_TYPE(bound);
        let bound = bound.cast::<BoundMethod>();
        let slf = (*bound).slf;
        (*bound).next = FREE.load(Relaxed);
        FREE.store(bound, Relaxed);
        ffi::Py_DECREF(slf);
        ffi::Py_DECREF(kind.cast());
    }
}

/// The interpreter's own bound method.
unsafe fn real_bound(bound: Object) -> Object {
    // SAFETY: as above.
    unsafe {
        let bound = &*bound.cast::<BoundMethod>();
        real(bound.method, bound.slf, ffi::Py_TYPE(bound.slf).cast())
    }
}

unsafe extern "C" fn bound_attribute(bound: Object, name: Object) -> Object {
    // SAFETY: as above.
    unsafe { ask(real_bound(bound), |real| ffi::PyObject_GetAttr(real, name)) }
}

unsafe extern "C" fn bound_repr(bound: Object) -> Object {
    // SAFETY: as above.
    unsafe { ask(real_bound(bound), |real| ffi::PyObject_Repr(real)) }
}

/// What `question` gives for an object that is dropped then; null for none.
unsafe fn ask(object: Object, question: impl FnOnce(Object) -> Object) -> Object {
    if object.is_null() {
        return null_mut();
    }
    let answer = question(object);
    // SAFETY: the caller gives its reference.
    unsafe { ffi::Py_DECREF(object) };
    answer
}

unsafe extern "C" fn descriptor_attribute(descriptor: Object, name: Object) -> Object {
    // SAFETY: as above.
    unsafe { ffi::PyObject_GetAttr((*descriptor.cast::<Descriptor>()).method, name) }
}

unsafe extern "C" fn descriptor_call(descriptor: Object, args: Object, names: Object) -> Object {
    // SAFETY: as above.
    unsafe { ffi::PyObject_Call((*descriptor.cast::<Descriptor>()).method, args, names) }
}
