//! Numbers in shared memory that are read and written without the detour over ctypes.

use phalanx::shared::{Memory, Scalar};
use pyo3::exceptions::PyValueError;
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyFloat, PyInt, PyList};

use crate::sync::Guarding;

/// A type of C, by kind and size.
#[derive(Clone, Copy)]
enum Code {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    I64,
    U64,
    F32,
    F64,
}

/// Does something with `T` being the type that a [`Code`] means.
macro_rules! with_type {
    ($code:expr, $T:ident => $action:expr) => {
        with_type!($code, $T => $action,
            I8 i8, U8 u8, I16 i16, U16 u16, I32 i32, U32 u32, I64 i64, U64 u64, F32 f32, F64 f64)
    };
    ($code:expr, $T:ident => $action:expr, $($name:ident $type:ident),*) => {
        match $code {
            $(Code::$name => {
                type $T = $type;
                $action
            })*
        }
    };
}

impl Code {
    /// The code for a name such as `i4`: kind and size, as ctypes has them here.
    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "i1" => Self::I8,
            "u1" => Self::U8,
            "i2" => Self::I16,
            "u2" => Self::U16,
            "i4" => Self::I32,
            "u4" => Self::U32,
            "i8" => Self::I64,
            "u8" => Self::U64,
            "f4" => Self::F32,
            "f8" => Self::F64,
            _ => return None,
        })
    }

    fn size(self) -> usize {
        with_type!(self, T => T::SIZE)
    }
}

/// How a number of C becomes one of Python, and back.
trait Number: Scalar {
    fn to_python(self, py: Python<'_>) -> Bound<'_, PyAny>;

    /// None if ctypes knows better how to convert it, or that it cannot be converted.
    fn from_python(value: &Bound<'_, PyAny>) -> Option<Self>;
}

macro_rules! integers {
    ($($type:ident)*) => {$(
        impl Number for $type {
            #[inline]
            fn to_python(self, py: Python<'_>) -> Bound<'_, PyAny> {
                PyInt::new(py, self).into_any()
            }

            #[inline]
            fn from_python(value: &Bound<'_, PyAny>) -> Option<Self> {
                // As C has it: the low bits.
                Some(integer(value)? as Self)
            }
        }
    )*};
}

integers!(i8 u8 i16 u16 i32 u32 i64 u64);

/// The value of an int itself, not of a subclass's object, if it is not large.
#[inline]
pub(super) fn integer(value: &Bound<'_, PyAny>) -> Option<i64> {
    let value = value.cast_exact::<PyInt>().ok()?;
    let mut overflow = 0;
    // SAFETY: an int; the call raises nothing for one.
    let value = unsafe { ffi::PyLong_AsLongLongAndOverflow(value.as_ptr(), &raw mut overflow) };
    (overflow == 0).then_some(value)
}

#[inline]
fn float(value: &Bound<'_, PyAny>) -> Option<f64> {
    Some(value.cast_exact::<PyFloat>().ok()?.value())
}

impl Number for f32 {
    #[inline]
    fn to_python(self, py: Python<'_>) -> Bound<'_, PyAny> {
        PyFloat::new(py, self.into()).into_any()
    }

    #[inline]
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a C float holds what it can"
    )]
    fn from_python(value: &Bound<'_, PyAny>) -> Option<Self> {
        Some(float(value)? as Self)
    }
}

impl Number for f64 {
    #[inline]
    fn to_python(self, py: Python<'_>) -> Bound<'_, PyAny> {
        PyFloat::new(py, self).into_any()
    }

    #[inline]
    fn from_python(value: &Bound<'_, PyAny>) -> Option<Self> {
        float(value)
    }
}

/// Numbers of one type that lie at the beginning of a memory.
pub(super) struct Scalars {
    memory: Memory,
    code: Code,
    len: usize,
}

impl Scalars {
    /// None if the type is none of those known here.
    pub(super) fn new(memory: &Memory, code: &str, len: usize) -> PyResult<Option<Self>> {
        let Some(code) = Code::parse(code) else {
            return Ok(None);
        };
        if len
            .checked_mul(code.size())
            .is_none_or(|size| size > memory.len())
        {
            return Err(PyValueError::new_err("the object is larger than its block"));
        }
        let memory = memory.clone();
        Ok(Some(Self { memory, code, len }))
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The place of a Python index.
    #[inline]
    pub(super) fn place(&self, index: i64) -> Option<usize> {
        let index = if index < 0 {
            index.checked_add_unsigned(self.len as u64)?
        } else {
            index
        };
        usize::try_from(index)
            .ok()
            .filter(|&index| index < self.len)
    }

    #[inline]
    pub(super) fn read<'py>(&self, py: Python<'py>, place: usize) -> Bound<'py, PyAny> {
        with_type!(self.code, T => self.memory.get::<T>(place).to_python(py))
    }

    /// Writes the value if it needs no conversion that ctypes knows better; says whether it did.
    #[inline]
    pub(super) fn write(&self, place: usize, value: &Bound<'_, PyAny>) -> bool {
        with_type!(self.code, T => T::from_python(value)
            .map(|value| self.memory.set(place, value))
            .is_some())
    }

    /// As `read` under the lock; None if that is not free, and nothing is done.
    #[cfg(not(feature = "abi3"))]
    #[inline]
    pub(super) fn read_now<'py>(
        &self,
        py: Python<'py>,
        place: usize,
        lock: &Guarding,
    ) -> Option<PyResult<Bound<'py, PyAny>>> {
        with_type!(self.code, T => {
            let number = lock.read_now(py, || self.memory.get::<T>(place))?;
            Some(number.map(|number| number.to_python(py)))
        })
    }

    /// As `write` under the lock; None if that is not free or the value none of ours, and nothing
    /// is done.
    #[cfg(not(feature = "abi3"))]
    #[inline]
    pub(super) fn write_now(
        &self,
        place: usize,
        value: &Bound<'_, PyAny>,
        lock: &Guarding,
    ) -> Option<PyResult<()>> {
        with_type!(self.code, T => {
            let number = T::from_python(value)?;
            lock.with_now(value.py(), || self.memory.set(place, number))
        })
    }

    /// Reads the places under the lock, and makes a list of what was there.
    pub(super) fn read_run<'py>(
        &self,
        run: &Run,
        lock: &Guarding,
        py: Python<'py>,
    ) -> PyResult<Bound<'py, PyList>> {
        with_type!(self.code, T => {
            let numbers = lock.with(py, || Ok(run.read::<T>(&self.memory)))?;
            PyList::new(py, numbers.into_iter().map(|number| number.to_python(py)))
        })
    }

    /// Writes a list under the lock; says whether that was possible, or nothing is written: then
    /// ctypes has to convert the values (or to find the error).
    pub(super) fn write_run(
        &self,
        run: &Run,
        lock: &Guarding,
        values: &Bound<'_, PyAny>,
    ) -> PyResult<bool> {
        let Ok(values) = values.cast_exact::<PyList>() else {
            return Ok(false);
        };
        if values.len() != run.len {
            return Ok(false);
        }
        with_type!(self.code, T => {
            let mut numbers = Vec::with_capacity(run.len);
            for value in values {
                let Some(number) = T::from_python(&value) else {
                    return Ok(false);
                };
                numbers.push(number);
            }
            lock.with(values.py(), || {
                run.write::<T>(&self.memory, &numbers);
                Ok(true)
            })
        })
    }
}

/// The places that a slice means.
pub(super) struct Run {
    pub(super) start: isize,
    pub(super) step: isize,
    pub(super) len: usize,
}

impl Run {
    fn read<T: Number>(&self, memory: &Memory) -> Vec<T> {
        if self.step == 1 {
            return memory.get_run(self.start as usize, self.len);
        }
        self.places().map(|place| memory.get(place)).collect()
    }

    fn write<T: Number>(&self, memory: &Memory, numbers: &[T]) {
        if self.step == 1 {
            return memory.set_run(self.start as usize, numbers);
        }
        for (place, &number) in self.places().zip(numbers) {
            memory.set(place, number);
        }
    }

    fn places(&self) -> impl Iterator<Item = usize> {
        // Python has computed them for the array's length: none is negative.
        (0..self.len).map(|i| (self.start + self.step * i as isize) as usize)
    }
}
