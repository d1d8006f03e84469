//! Plain memory that processes share, and the scalars in it.
//!
//! ```
//! use phalanx::shared::Memory;
//!
//! let memory = Memory::new(16)?;
//! memory.set(1, 2.5_f64); // the second of two
//! let same = Memory::attach(memory.family(), memory.handle())?;
//! assert_eq!(same.get::<f64>(1), 2.5);
//! # Ok::<(), phalanx::Error>(())
//! ```

pub mod memory;
pub mod scalar;

pub use memory::Memory;
pub use scalar::Scalar;
