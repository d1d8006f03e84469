//! Numbers in shared memory, changed in single steps.

use std::fmt;
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::handle::{self, travels_as_handle};
use crate::arena::{Shareable, Shared};
use crate::error::Result;
use crate::shared::memory::Bytes;
use crate::shared::{Memory, Scalar};

mod sealed {
    pub trait Sealed {}
}

/// What a [`Value`] can be: numbers of up to 64 bits, `bool` and `char`.
pub trait Word: sealed::Sealed + Copy + Send + Sync + 'static {
    #[doc(hidden)]
    fn to_bits(self) -> u64;
    #[doc(hidden)]
    fn from_bits(bits: u64) -> Self;
}

/// What a [`Value`] can count with.
pub trait Number: Word {
    #[doc(hidden)]
    fn plus(self, other: Self) -> Self;
    #[doc(hidden)]
    fn minus(self, other: Self) -> Self;
}

macro_rules! words {
    ($($name:ident: $to:expr, $from:expr;)*) => {$(
        impl sealed::Sealed for $name {}
        impl Word for $name {
            fn to_bits(self) -> u64 {
                let to: fn(Self) -> u64 = $to;
                to(self)
            }
            fn from_bits(bits: u64) -> Self {
                let from: fn(u64) -> Self = $from;
                from(bits)
            }
        }
    )*};
}

macro_rules! integers {
    ($($name:ident)*) => {$(
        words!($name: |v| v as u64, |b| b as $name;);
        impl Number for $name {
            fn plus(self, other: Self) -> Self {
                self.wrapping_add(other)
            }
            fn minus(self, other: Self) -> Self {
                self.wrapping_sub(other)
            }
        }
    )*};
}
integers!(u8 u16 u32 u64 usize i8 i16 i32 i64 isize);

words! {
    f64: f64::to_bits, f64::from_bits;
    f32: |v| v.to_bits().into(), |b| f32::from_bits(b as u32);
    bool: u64::from, |b| b != 0;
    // Nothing but a char is ever stored; should somebody write over it, it is the char for that.
    char: |v| u32::from(v).into(), |b| char::from_u32(b as u32).unwrap_or(char::REPLACEMENT_CHARACTER);
}

macro_rules! floats {
    ($($name:ident)*) => {$(
        impl Number for $name {
            fn plus(self, other: Self) -> Self {
                self + other
            }
            fn minus(self, other: Self) -> Self {
                self - other
            }
        }
    )*};
}
floats!(f32 f64);

/// The shared part of a [`Value`].
#[repr(transparent)]
pub(crate) struct ValueCore(AtomicU64);

// SAFETY: one atomic.
unsafe impl Shareable for ValueCore {
    const KIND: u32 = 65;
    const NAME: &'static str = "Value";
}

/// A number that processes share, and change in single steps without a lock.
///
/// Clones, and copies that went to another process, are the same value. Nothing blocks, and a
/// process that dies leaves the value before or after a step. For more than one number, or steps
/// that depend on other things, use a [`Mutex`](crate::Mutex).
///
/// ```
/// use phalanx::{Process, Value};
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let count = Value::new(40u32)?;
///     let child = Process::spawn(|count: Value<u32>| count.fetch_add(1), count.clone())?;
///     count.fetch_add(1);
///     assert!([40, 41].contains(&child.join()?));
///     assert_eq!(count.get(), 42);
///     Ok(())
/// }
/// ```
///
/// All steps are in one order for all processes (`SeqCst`), so a value may announce what was
/// written elsewhere.
pub struct Value<T> {
    core: Shared<ValueCore>,
    value: PhantomData<T>,
}

impl<T: Word> Value<T> {
    /// A value that begins as `value`.
    ///
    /// # Errors
    /// `is_arena_full`, and the system's when the arena cannot be made.
    pub fn new(value: T) -> Result<Self> {
        let core = Shared::create(ValueCore(AtomicU64::new(value.to_bits())))?;
        Ok(Self::from_core(core))
    }

    /// What it is now.
    pub fn get(&self) -> T {
        T::from_bits(self.core.0.load(SeqCst))
    }

    /// Makes it `value`.
    pub fn set(&self, value: T) {
        self.core.0.store(value.to_bits(), SeqCst);
    }

    /// Makes it `value`, and says what it was.
    pub fn swap(&self, value: T) -> T {
        T::from_bits(self.core.0.swap(value.to_bits(), SeqCst))
    }

    /// Makes it `new` if it is `current`, bit by bit.
    ///
    /// # Errors
    /// What it is instead.
    pub fn compare_exchange(&self, current: T, new: T) -> Result<T, T> {
        self.core
            .0
            .compare_exchange(current.to_bits(), new.to_bits(), SeqCst, SeqCst)
            .map(T::from_bits)
            .map_err(T::from_bits)
    }

    /// Makes it what `change` says of what it is, and says what it was.
    ///
    /// `change` is called again if somebody was faster.
    pub fn fetch_update(&self, mut change: impl FnMut(T) -> T) -> T {
        let mut now = self.core.0.load(SeqCst);
        loop {
            let next = change(T::from_bits(now)).to_bits();
            match self.core.0.compare_exchange_weak(now, next, SeqCst, SeqCst) {
                Ok(before) => return T::from_bits(before),
                Err(other) => now = other,
            }
        }
    }
}

impl<T: Number> Value<T> {
    /// Adds `by`, and says what it was. Integers wrap around.
    pub fn fetch_add(&self, by: T) -> T {
        self.fetch_update(|value| value.plus(by))
    }

    /// Takes `by` away, and says what it was. Integers wrap around.
    pub fn fetch_sub(&self, by: T) -> T {
        self.fetch_update(|value| value.minus(by))
    }
}

impl<T> Value<T> {
    fn from_core(core: Shared<ValueCore>) -> Self {
        Self {
            core,
            value: PhantomData,
        }
    }
}

impl<T> Clone for Value<T> {
    fn clone(&self) -> Self {
        Self::from_core(self.core.clone())
    }
}

impl<T: Word + fmt::Debug> fmt::Debug for Value<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Value").field(&self.get()).finish()
    }
}

travels_as_handle!(Value<T>, ValueCore, |value| &value.core, Value::from_core);

/// Numbers in a row that processes share, each read and written whole.
///
/// Nothing guards the row as one: processes that write to the same numbers need a
/// [`Lock`](crate::Lock) of their own. Nothing blocks.
///
/// ```
/// use phalanx::{Array, Process};
///
/// fn main() -> phalanx::Result<()> {
///     phalanx::init();
///     let row = Array::<f64>::new(4)?;
///     let child = Process::spawn(|row: Array<f64>| row.write(2, &[0.5, 1.5]), row.clone())?;
///     row.set(0, 9.0);
///     child.join()?;
///     assert_eq!(row.read(0..4), [9.0, 0.0, 0.5, 1.5]);
///     Ok(())
/// }
/// ```
#[derive(Debug)]
pub struct Array<T> {
    memory: Memory,
    items: PhantomData<T>,
}

impl<T: Scalar> Array<T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// `is_arena_full`.
    pub fn new(len: usize) -> Result<Self> {
        Memory::new(len.saturating_mul(T::SIZE)).map(Self::of)
    }

    /// How many numbers there are.
    pub fn len(&self) -> usize {
        self.memory.len() / T::SIZE
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The number at `index`.
    ///
    /// # Panics
    /// If there is none.
    pub fn get(&self, index: usize) -> T {
        self.memory.get(index)
    }

    /// Makes the number at `index` `value`.
    ///
    /// # Panics
    /// If there is none.
    pub fn set(&self, index: usize, value: T) {
        self.memory.set(index, value);
    }

    /// A copy of some of the numbers.
    ///
    /// # Panics
    /// If the range goes beyond the end.
    pub fn read(&self, range: Range<usize>) -> Vec<T> {
        range.map(|index| self.get(index)).collect()
    }

    /// Writes `values` over those from `start` on.
    ///
    /// # Panics
    /// If they go beyond the end; those before it are written.
    pub fn write(&self, start: usize, values: &[T]) {
        for (index, &value) in values.iter().enumerate() {
            self.set(start.saturating_add(index), value);
        }
    }
}

impl<T> Array<T> {
    fn of(memory: Memory) -> Self {
        Self {
            memory,
            items: PhantomData,
        }
    }
}

impl<T> Clone for Array<T> {
    fn clone(&self) -> Self {
        Self::of(self.memory.clone())
    }
}

impl<T> Serialize for Array<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        handle::serialize(self.memory.object(), serializer)
    }
}

impl<'de, T> Deserialize<'de> for Array<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        handle::deserialize::<Bytes, D>(deserializer)
            .map(Memory::of)
            .map(Self::of)
    }
}
