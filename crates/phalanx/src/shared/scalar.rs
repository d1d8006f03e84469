//! Scalars in shared memory, read and written whole.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use super::Memory;

mod sealed {
    pub trait Sealed {}
}

/// A number that can lie in [`Memory`], in the machine's byte order.
///
/// Reads and writes are single ones of the machine: another process sees the number before or
/// after, never half of each, also if this one dies.
pub trait Scalar: sealed::Sealed + Copy + Send + 'static {
    /// Its size and alignment in bytes.
    const SIZE: usize;

    /// # Safety
    /// There is shared memory with room for the type, aligned for it.
    #[doc(hidden)]
    unsafe fn load(at: *mut u8) -> Self;

    /// # Safety
    /// As [`load`](Self::load).
    #[doc(hidden)]
    unsafe fn store(self, at: *mut u8);
}

macro_rules! scalars {
    ($($atomic:ident [$($scalar:ident: $from:expr, $to:expr;)*])*) => {$($(
        impl sealed::Sealed for $scalar {}

        impl Scalar for $scalar {
            const SIZE: usize = size_of::<Self>();

            #[inline]
            unsafe fn load(at: *mut u8) -> Self {
                // SAFETY: as the caller promises.
                let bits = unsafe { $atomic::from_ptr(at.cast()) };
                $from(bits.load(Relaxed))
            }

            #[inline]
            unsafe fn store(self, at: *mut u8) {
                // SAFETY: as the caller promises.
                let bits = unsafe { $atomic::from_ptr(at.cast()) };
                bits.store($to(self), Relaxed);
            }
        }
    )*)*};
}

scalars! {
    AtomicU8 [
        u8: |b| b, |v| v;
        i8: |b: u8| b.cast_signed(), i8::cast_unsigned;
    ]
    AtomicU16 [
        u16: |b| b, |v| v;
        i16: |b: u16| b.cast_signed(), i16::cast_unsigned;
    ]
    AtomicU32 [
        u32: |b| b, |v| v;
        i32: |b: u32| b.cast_signed(), i32::cast_unsigned;
        f32: f32::from_bits, f32::to_bits;
    ]
    AtomicU64 [
        u64: |b| b, |v| v;
        i64: |b: u64| b.cast_signed(), i64::cast_unsigned;
        f64: f64::from_bits, f64::to_bits;
    ]
}

impl Memory {
    /// The scalar number `index`, counted in its own size.
    ///
    /// # Panics
    /// If it does not lie inside.
    #[inline]
    pub fn get<T: Scalar>(&self, index: usize) -> T {
        // SAFETY: `at` says so.
        unsafe { T::load(self.at::<T>(index, 1).cast()) }
    }

    /// Writes the scalar number `index`.
    ///
    /// # Panics
    /// If it does not lie inside.
    #[inline]
    pub fn set<T: Scalar>(&self, index: usize, value: T) {
        // SAFETY: `at` says so.
        unsafe { value.store(self.at::<T>(index, 1).cast()) }
    }

    /// The `count` scalars from number `index` on, read one after the other.
    ///
    /// # Panics
    /// If they do not lie inside.
    pub fn get_run<T: Scalar>(&self, index: usize, count: usize) -> Vec<T> {
        let first = self.at::<T>(index, count);
        // SAFETY: `at` says so for all of them.
        let load = |i| unsafe { T::load(first.add(i).cast()) };
        (0..count).map(load).collect()
    }

    /// Writes scalars from number `index` on, one after the other.
    ///
    /// # Panics
    /// If they do not lie inside.
    pub fn set_run<T: Scalar>(&self, index: usize, values: &[T]) {
        let first = self.at::<T>(index, values.len());
        for (i, value) in values.iter().enumerate() {
            // SAFETY: `at` says so for all of them.
            unsafe { value.store(first.add(i).cast()) }
        }
    }

    /// Where scalar number `index` lies, which has room for `count` of them. It is aligned as they
    /// have to be, and stays as long as this value lives.
    #[inline]
    fn at<T: Scalar>(&self, index: usize, count: usize) -> *mut T {
        let inside = index
            .checked_add(count)
            .is_some_and(|end| end <= self.len() / T::SIZE);
        assert!(
            inside,
            "{count} of {} bytes from number {index} on in a shared memory of {} bytes",
            T::SIZE,
            self.len()
        );
        // SAFETY: inside, as was just checked. The memory is aligned to 64.
        unsafe { self.as_ptr().cast::<T>().add(index).as_ptr() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_was_written() {
        let memory = Memory::new(16).unwrap();
        memory.set(1, -5_i32);
        assert_eq!(memory.get::<i32>(1), -5);
        assert_eq!(memory.get::<u8>(4), 0xfb);
        memory.set(1, 1.5_f64);
        assert_eq!((memory.get::<f64>(1), memory.get::<i32>(1)), (1.5, -5));
    }

    #[test]
    fn reads_runs() {
        let memory = Memory::new(21).unwrap();
        memory.set_run(1, &[1_u32, 2, 3]);
        assert_eq!(memory.get_run::<u32>(0, 5), [0, 1, 2, 3, 0]);
        assert_eq!(memory.get_run::<u32>(5, 0), []);
        assert!(std::panic::catch_unwind(|| memory.get_run::<u32>(4, 2)).is_err());
        assert!(std::panic::catch_unwind(|| memory.set_run(usize::MAX, &[1_u8])).is_err());
    }

    #[test]
    #[should_panic(expected = "1 of 1 bytes from number 16 on in a shared memory of 16 bytes")]
    fn refuses_what_lies_outside() {
        Memory::new(16).unwrap().get::<u8>(16);
    }
}
