//! Plain memory that processes share, and the scalars in it.

pub mod memory;
pub mod scalar;

pub use memory::Memory;
pub use scalar::Scalar;
