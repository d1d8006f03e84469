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

    #[doc(hidden)]
    fn load(memory: &Memory, offset: usize) -> Self;

    #[doc(hidden)]
    fn store(self, memory: &Memory, offset: usize);
}

macro_rules! scalars {
    ($($atomic:ident [$($scalar:ident: $from:expr, $to:expr;)*])*) => {$($(
        impl sealed::Sealed for $scalar {}

        impl Scalar for $scalar {
            const SIZE: usize = size_of::<Self>();

            #[inline]
            fn load(memory: &Memory, offset: usize) -> Self {
                // SAFETY: `Memory::at` gives an address in shared memory that lives as long as
                // `memory`, with room for and aligned to the type.
                let bits = unsafe { $atomic::from_ptr(memory.at(offset, Self::SIZE).cast()) };
                $from(bits.load(Relaxed))
            }

            #[inline]
            fn store(self, memory: &Memory, offset: usize) {
                // SAFETY: as in `load`.
                let bits = unsafe { $atomic::from_ptr(memory.at(offset, Self::SIZE).cast()) };
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
        T::load(self, index.saturating_mul(T::SIZE))
    }

    /// Writes the scalar number `index`.
    ///
    /// # Panics
    /// If it does not lie inside.
    #[inline]
    pub fn set<T: Scalar>(&self, index: usize, value: T) {
        value.store(self, index.saturating_mul(T::SIZE));
    }

    #[inline]
    fn at(&self, offset: usize, size: usize) -> *mut u8 {
        let inside = offset
            .checked_add(size)
            .is_some_and(|end| end <= self.len());
        assert!(
            inside,
            "byte {offset} of a shared memory of {} bytes",
            self.len()
        );
        debug_assert!(offset.is_multiple_of(size));
        // SAFETY: inside, as was just checked.
        unsafe { self.as_ptr().add(offset).as_ptr() }
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
    #[should_panic(expected = "byte 16 of a shared memory of 16 bytes")]
    fn refuses_what_lies_outside() {
        Memory::new(16).unwrap().get::<u8>(16);
    }
}
