//! Values that may lie in shared memory as they are.

/// A type whose values can lie in shared memory, as they are, for any process of the family.
///
/// Numbers, arrays of them, and what [`plain!`](crate::plain) defines. Not `bool`, `char`,
/// `Option` and enums, of which not every byte is a value: use a number. Not what points
/// anywhere: the address means nothing to others.
///
/// # Safety
/// Any bytes are a value of the type; it holds no address, and is aligned to 64 at most. Padding
/// is allowed.
pub unsafe trait Plain: Copy + Send + Sync + 'static {}

macro_rules! plain_numbers {
    ($($name:ident)*) => {$(
        // SAFETY: any bits are such a number.
        unsafe impl Plain for $name {}
    )*};
}
plain_numbers!(u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize f32 f64);

// SAFETY: it has no bytes.
unsafe impl Plain for () {}

// SAFETY: an array is its items one after the other.
unsafe impl<T: Plain, const N: usize> Plain for [T; N] {}

/// Defines a structure that can lie in shared memory: [`Plain`], `Copy` and `repr(C)`.
///
/// Each field must be `Plain`, or it does not compile.
///
/// ```
/// phalanx::plain! {
///     #[derive(Debug, PartialEq)]
///     pub struct Account {
///         pub balance: i64,
///         pub limits: [f32; 3],
///     }
/// }
///
/// let account = phalanx::Mutex::new(Account { balance: 5, limits: [0.5; 3] })?;
/// account.lock().unwrap().balance -= 2;
/// assert_eq!(account.lock().unwrap().balance, 3);
/// # Ok::<(), phalanx::Error>(())
/// ```
///
/// ```compile_fail,E0277
/// phalanx::plain! {
///     struct Named {
///         name: String,
///     }
/// }
/// ```
#[macro_export]
macro_rules! plain {
    (
        $(#[$meta:meta])*
        $vis:vis struct $name:ident {
            $($(#[$field_meta:meta])* $field_vis:vis $field:ident: $type:ty),* $(,)?
        }
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        #[repr(C)]
        $vis struct $name {
            $($(#[$field_meta])* $field_vis $field: $type),*
        }

        // SAFETY: each of its fields is plain.
        unsafe impl $crate::Plain for $name where $($type: $crate::Plain),* {}
    };
}
